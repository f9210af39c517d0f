//! The devnet itself: a router, backbone nodes, and the hosts that a test asks for.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use futures::future::try_join_all;
use tempfile::TempDir;
use tokio::sync::Mutex;

use crate::host::{Host, HostPlan};
use crate::links;
use crate::node::{self, Node, NodeOptions};
use crate::thread::NamespaceThread;
use crate::{Error, NetworkSettings, Result};

/// The smallest number of backbone nodes: with fewer, no two distinct routes of two hops are found
/// and no node gets ready.
pub const MIN_NODES: usize = 6;

/// The largest number of hosts, those of the backbone included: one address each, less the
/// router's.
pub const MAX_HOSTS: usize = 253;

/// How long [`Devnet::stop`] and dropping a devnet take at most.
const STOP: Duration = Duration::from_secs(8);

/// How a devnet is started.
#[derive(Debug, Clone)]
pub struct DevnetOptions {
    /// The number of backbone nodes, at least [`MIN_NODES`].
    pub nodes: usize,
    /// How long all of them together get to be ready.
    pub timeout: Duration,
    /// How many records of others a node keeps. `None` takes Veilid's default of 128, of which
    /// the least recently used go first: for tests of republishing.
    pub remote_max_records: Option<u32>,
    /// How many MiB of records of others a node keeps; `None` takes Veilid's default.
    pub remote_max_storage_space_mb: Option<u32>,
}

impl Default for DevnetOptions {
    /// Six nodes that keep 20,000 records each, and 90 s to get ready: they need 5 to 10 on an
    /// idle machine.
    fn default() -> Self {
        Self {
            nodes: MIN_NODES,
            timeout: Duration::from_secs(90),
            remote_max_records: Some(20_000),
            remote_max_storage_space_mb: Some(1_024),
        }
    }
}

/// A Veilid network in this process. It stops when dropped, within seconds.
pub struct Devnet {
    router: Arc<NamespaceThread>,
    backbone: Vec<Node>,
    hosts: Mutex<BTreeMap<String, Host>>,
    next_index: AtomicU8,
    settings: NetworkSettings,
    program: String,
    directory: TempDir,
}

impl Devnet {
    /// Starts a network of `nodes` backbone nodes, at least [`MIN_NODES`], and waits until all of
    /// them are ready.
    pub async fn start(nodes: usize) -> Result<Self> {
        Self::start_with(DevnetOptions {
            nodes,
            ..DevnetOptions::default()
        })
        .await
    }

    /// As [`Devnet::start`], with options.
    pub async fn start_with(options: DevnetOptions) -> Result<Self> {
        if options.nodes < MIN_NODES {
            return Err(Error::TooFewNodes {
                nodes: options.nodes,
            });
        }
        if !crate::inside() {
            return Err(Error::NotInside);
        }
        let begin = Instant::now();
        let mut devnet = Self::without_nodes(&options).await?;
        devnet.start_backbone(&options).await?;
        let ready = devnet.backbone.iter().map(|node| {
            let left = options.timeout.saturating_sub(begin.elapsed());
            node.ready(left)
        });
        try_join_all(ready).await?;
        tracing::debug!(nodes = options.nodes, elapsed = ?begin.elapsed(), "devnet is ready");
        Ok(devnet)
    }

    /// A router with no host yet.
    async fn without_nodes(options: &DevnetOptions) -> Result<Self> {
        // Veilid tells the nodes of one process apart by program and namespace.
        static DEVNETS: AtomicU32 = AtomicU32::new(0);
        let number = DEVNETS.fetch_add(1, Ordering::Relaxed);
        let router = NamespaceThread::start("router")?;
        router.run(async { forward() }).await??;
        router.run(links::bring_loopback_up()).await??;
        let directory = tempfile::Builder::new()
            .prefix("devnet-")
            .tempdir()
            .map_err(Error::file(std::env::temp_dir()))?;
        Ok(Self {
            router: Arc::new(router),
            backbone: Vec::new(),
            hosts: Mutex::new(BTreeMap::new()),
            next_index: AtomicU8::new(1),
            settings: NetworkSettings {
                bootstrap_records: Some(Vec::new()),
                bootstrap: Some(Vec::new()),
                bootstrap_keys: Some(Vec::new()),
                network_key: Some("devnet".to_owned()),
                insecure_storage: Some(true),
                upnp: Some(false),
                detect_address_changes: Some(false),
                disable_capabilities: None,
                remote_max_records: options.remote_max_records,
                remote_max_storage_space_mb: options.remote_max_storage_space_mb,
                chaos: None,
            },
            program: format!("devnet{number}"),
            directory,
        })
    }

    async fn start_backbone(&mut self, options: &DevnetOptions) -> Result<()> {
        let first = self.host("backbone-1").await?;
        let keys = node::generate_keys(&first, &first.directory().join("keys")).await?;
        let record = format!("0|0|{}|{}|U5150,T5150,W5150/ws", keys.key(), first.ipv4());
        self.settings.bootstrap_records = Some(vec![record]);

        let mut hosts = vec![first];
        for number in 2..=options.nodes {
            hosts.push(self.host(&format!("backbone-{number}")).await?);
        }
        let mut keys = Some(keys);
        let nodes = hosts.iter().map(|host| {
            let options = NodeOptions {
                // The first host was made before the record was known.
                settings: Some(self.settings.clone()),
                bootstrap: keys.take(),
                ..NodeOptions::default()
            };
            let directory = host.directory().join("node");
            async move { host.start_node_with(&directory, options).await }
        });
        self.backbone = try_join_all(nodes).await?;
        Ok(())
    }

    /// The host of this name; the first call makes it. Names are free, those that start with
    /// `backbone-` are the backbone's own.
    ///
    /// Fails with [`Error::TooManyHosts`] once [`MAX_HOSTS`] have been made.
    pub async fn host(&self, name: &str) -> Result<Host> {
        let mut hosts = self.hosts.lock().await;
        if let Some(host) = hosts.get(name) {
            return Ok(host.clone());
        }
        let index = self.next_index.load(Ordering::Relaxed);
        if usize::from(index) > MAX_HOSTS {
            return Err(Error::TooManyHosts);
        }
        // Taken before anything is made, so that a call that is dropped half way leaves no address
        // behind that is in use.
        self.next_index.store(index + 1, Ordering::Relaxed);
        let host = Host::create(HostPlan {
            name,
            index,
            router: Arc::clone(&self.router),
            settings: self.settings.clone(),
            program: self.program.clone(),
            directory: self.directory.path().join(format!("host-{index}")),
        })
        .await?;
        hosts.insert(name.to_owned(), host.clone());
        Ok(host)
    }

    /// The backbone nodes, the bootstrap node first.
    pub fn backbone(&self) -> &[Node] {
        &self.backbone
    }

    /// The directory of everything that the devnet writes, deleted when it stops.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Stops all nodes and hosts and deletes the directory. Processes that were started with
    /// [`Host::command`] are not touched.
    ///
    /// Takes some seconds at most and fails with [`Error::NotStopped`] where a host does not end
    /// in that time.
    pub async fn stop(mut self) -> Result<()> {
        let stopped = tokio::task::spawn_blocking(move || self.halt()).await;
        stopped.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
    }

    /// Stops everything within [`STOP`]. Blocks; hosts have threads of their own, so that they end
    /// whatever the caller's runtime does.
    fn halt(&mut self) -> Result<()> {
        let hosts = std::mem::take(self.hosts.get_mut());
        for host in hosts.values() {
            host.thread().stop();
        }
        let until = Instant::now() + STOP;
        let mut late = None;
        for (name, host) in hosts {
            if !host.thread().wait(until) {
                late = Some(name);
            }
        }
        self.backbone.clear();
        self.router.stop();
        if !self.router.wait(until) {
            late.get_or_insert_with(|| "router".to_owned());
        }
        match late {
            Some(host) => Err(Error::NotStopped { host, waited: STOP }),
            None => Ok(()),
        }
    }
}

impl Drop for Devnet {
    fn drop(&mut self) {
        if let Err(error) = self.halt() {
            tracing::warn!("{error}");
        }
    }
}

impl std::fmt::Debug for Devnet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Devnet")
            .field("backbone", &self.backbone.len())
            .finish_non_exhaustive()
    }
}

/// Makes a router of the calling thread's namespace.
fn forward() -> Result<()> {
    for path in [
        "/proc/sys/net/ipv4/ip_forward",
        "/proc/sys/net/ipv6/conf/all/forwarding",
    ] {
        std::fs::write(path, "1").map_err(Error::file(path))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::links::Addresses;

    #[tokio::test]
    async fn too_few_nodes_are_refused_before_anything_starts() {
        assert!(matches!(
            Devnet::start(5).await,
            Err(Error::TooFewNodes { nodes: 5 })
        ));
    }

    #[test]
    fn every_host_has_an_address_of_its_own() {
        let last = u8::try_from(MAX_HOSTS).unwrap();
        assert_eq!(Addresses::of(last).v4.octets(), [192, 88, 99, 253]);
        assert_eq!(Addresses::of(7).v6.to_string(), "3fff:0:7::2");
    }
}
