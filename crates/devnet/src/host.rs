//! A host: an address, a network namespace and a runtime of its own.

use std::ffi::OsStr;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::Mutex;
use veilid_core::VeilidConfig;

use crate::delay::{self, Delay};
use crate::links::{self, Addresses, HOST_LINK};
use crate::node::{Node, NodeOptions};
use crate::rate::TokenBucket;
use crate::thread::{NamespaceThread, enter_namespace};
use crate::{Error, NetworkSettings, Result};

/// A machine on the devnet. Cheap to clone; it lives until its [`crate::Devnet`] stops.
#[derive(Clone)]
pub struct Host {
    inner: Arc<Inner>,
}

struct Inner {
    thread: NamespaceThread,
    router: Arc<NamespaceThread>,
    /// The name of the router's end of this host's link.
    link: String,
    addresses: Addresses,
    /// Made when it is first asked for.
    delay: Arc<Mutex<Option<Delay>>>,
    settings: NetworkSettings,
    program: String,
    directory: PathBuf,
}

/// What a host is made from.
pub(crate) struct HostPlan<'a> {
    pub(crate) name: &'a str,
    pub(crate) index: u8,
    pub(crate) router: Arc<NamespaceThread>,
    pub(crate) settings: NetworkSettings,
    pub(crate) program: String,
    pub(crate) directory: PathBuf,
}

impl Host {
    pub(crate) async fn create(plan: HostPlan<'_>) -> Result<Self> {
        let HostPlan {
            name,
            index,
            router,
            settings,
            program,
            directory,
        } = plan;
        std::fs::create_dir_all(&directory).map_err(Error::file(&directory))?;
        let thread = NamespaceThread::start(name)?;
        let addresses = Addresses::of(index);
        let link = format!("v{index}");
        let (router_end, namespace) = (link.clone(), thread.namespace());
        router
            .run(async move { links::create(&router_end, namespace, addresses).await })
            .await??;
        thread.run(links::configure_host(addresses)).await??;
        Ok(Self {
            inner: Arc::new(Inner {
                thread,
                router,
                link,
                addresses,
                delay: Arc::default(),
                settings,
                program,
                directory,
            }),
        })
    }

    /// The name it was asked for by.
    pub fn name(&self) -> &str {
        self.inner.thread.name()
    }

    /// Its IPv4 address.
    pub fn ipv4(&self) -> Ipv4Addr {
        self.inner.addresses.v4
    }

    /// Its IPv6 address.
    pub fn ipv6(&self) -> Ipv6Addr {
        self.inner.addresses.v6
    }

    /// A directory of its own for files, deleted when the devnet stops.
    pub fn directory(&self) -> &Path {
        &self.inner.directory
    }

    /// A runtime whose threads are inside the host's namespace. Sockets belong to the namespace
    /// of the thread that opens them, so every call on a node of this host has to be made here.
    pub fn handle(&self) -> &Handle {
        self.inner.thread.handle()
    }

    /// Runs a future on the host's runtime. Dropping the returned future ends it.
    ///
    /// # Panics
    /// Where the future panics, and where the host has been stopped.
    pub async fn run<F>(&self, future: F) -> F::Output
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        match self.inner.thread.run(future).await {
            Ok(output) => output,
            Err(error) => panic!("{error}"),
        }
    }

    /// A command whose process runs inside the host's namespace.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let namespace = self.inner.thread.namespace();
        let mut command = Command::new(program);
        // SAFETY: runs between fork and exec, where only async-signal-safe calls are allowed: it
        // makes one system call on a descriptor that is open, and does not allocate.
        #[allow(unsafe_code, reason = "the only way to start a process in a namespace")]
        unsafe {
            command.pre_exec(move || Ok(enter_namespace(&namespace)?));
        }
        command
    }

    /// The settings with which a backend on this host joins the devnet.
    pub fn network_settings(&self) -> NetworkSettings {
        self.inner.settings.clone()
    }

    /// A configuration for tests that start a node with veilid-core alone, on this host's runtime.
    ///
    /// `directory` holds the node's stores; a node that is to find them again needs the same
    /// `namespace`, and two nodes of one process need different ones.
    pub fn veilid_config(&self, directory: &Path, namespace: &str) -> VeilidConfig {
        self.config_with(&self.inner.settings, directory, namespace)
            .expect("a devnet's own settings are well formed")
    }

    pub(crate) fn config_with(
        &self,
        settings: &NetworkSettings,
        directory: &Path,
        namespace: &str,
    ) -> Result<VeilidConfig> {
        let storage = directory.to_string_lossy();
        let mut config = VeilidConfig::new(
            &self.inner.program,
            "devnet",
            "test",
            Some(&storage),
            Some(&storage),
        );
        config.namespace = namespace.to_owned();
        config.table_store.wipe_on_invalid_device_encryption_key = false;
        settings.apply(&mut config)?;
        Ok(config)
    }

    /// Starts and attaches a Veilid node whose stores lie in `directory`. Does not wait for the
    /// network: see [`Node::ready`].
    pub async fn start_node(&self, directory: &Path) -> Result<Node> {
        self.start_node_with(directory, NodeOptions::default())
            .await
    }

    /// As [`Host::start_node`], with options.
    pub async fn start_node_with(&self, directory: &Path, options: NodeOptions) -> Result<Node> {
        Node::start(self, directory, options).await
    }

    /// Cuts the host off: whatever it sends, and whatever is sent to it, is silently lost.
    pub async fn cut_off(&self) -> Result<()> {
        self.set_connected(false).await
    }

    /// Joins the host to the network again.
    pub async fn rejoin(&self) -> Result<()> {
        self.set_connected(true).await
    }

    /// Limits the host's link to a rate, in each direction alone. Replaces an earlier limit.
    pub async fn limit_rate(&self, bytes_per_second: u64) -> Result<()> {
        self.shape(Some(TokenBucket::new(bytes_per_second)?)).await
    }

    /// Takes the limit away.
    pub async fn unlimit_rate(&self) -> Result<()> {
        self.shape(None).await
    }

    /// Whether a limit is in force, in both directions.
    pub async fn is_limited(&self) -> Result<bool> {
        let link = self.inner.link.clone();
        let down = self
            .inner
            .router
            .run(async move { links::queueing(&link).await })
            .await??;
        let up = self.inner.thread.run(links::queueing(HOST_LINK)).await??;
        Ok(down == TokenBucket::KIND && up == TokenBucket::KIND)
    }

    /// Makes each round trip over the host's link longer by so much, at most 10 s; `None` and zero take that back.
    ///
    /// All of it is added on the way to the host, for IPv4 and IPv6 alike. Nothing gets lost or overtaken while the delay stays
    /// the same, unless more than 64 MiB are under way; when it is taken back, packets that are under way are overtaken.
    ///
    /// The connections that there are may need 10 s to get used to a longer way: until then TCP's BBR, where that is what the system
    /// uses, believes in the shortest round trip that it has seen, and sends little.
    ///
    /// Fails with [`Error::TunUnavailable`] where the system does not let this process have a TUN device.
    pub async fn set_delay(&self, round_trip: Option<Duration>) -> Result<()> {
        let round_trip = round_trip.filter(|round_trip| !round_trip.is_zero());
        if let Some(round_trip) = round_trip.filter(|round_trip| *round_trip > delay::LONGEST) {
            return Err(Error::InvalidDelay { round_trip });
        }
        let (link, addresses) = (self.inner.link.clone(), self.inner.addresses);
        let delay = Arc::clone(&self.inner.delay);
        let change = async move {
            let mut delay = delay.lock().await;
            if delay.is_none() && round_trip.is_some() {
                *delay = Some(Delay::create(&link, addresses).await?);
            }
            match &mut *delay {
                Some(delay) => delay.set(round_trip).await,
                None => Ok(()),
            }
        };
        self.inner.router.run(change).await?
    }

    /// What [`Host::set_delay`] added to each round trip.
    pub async fn delay(&self) -> Option<Duration> {
        let delay = self.inner.delay.lock().await;
        delay.as_ref().and_then(Delay::get)
    }

    async fn set_connected(&self, connected: bool) -> Result<()> {
        let (link, addresses) = (self.inner.link.clone(), self.inner.addresses);
        let change = async move { links::set_connected(&link, addresses, connected).await };
        self.inner.router.run(change).await?
    }

    async fn shape(&self, bucket: Option<TokenBucket>) -> Result<()> {
        let link = self.inner.link.clone();
        self.inner
            .router
            .run(async move { links::shape(&link, bucket).await })
            .await??;
        self.inner
            .thread
            .run(links::shape(HOST_LINK, bucket))
            .await?
    }

    pub(crate) fn thread(&self) -> &NamespaceThread {
        &self.inner.thread
    }
}

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Host")
            .field("name", &self.name())
            .field("ipv4", &self.ipv4())
            .finish_non_exhaustive()
    }
}
