//! Devices for the tests: whole backends on hosts of their own.
#![allow(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    missing_docs,
    reason = "a test may panic"
)]

use std::{future::Future, path::PathBuf, time::Duration};

use devnet::{Devnet, Host};
use dht_records::{Fetch, GroupAccess, GroupRecord};
use save_backend::{
    Backend, BackendBuilder, Entry, EntryPath, ErrorKind, GroupId, Link, LinkKind, ListedFile,
    Member, NewFile, Progress, PublicKey,
};
use tokio::{
    io::AsyncReadExt,
    time::{sleep, timeout},
};

/// Longer than anything here takes on a loaded machine.
pub const LIMIT: Duration = Duration::from_secs(150);

/// What is watched is told of within this, on a loaded machine too. Without a watch it would take up to a minute.
pub const WATCHED: Duration = Duration::from_secs(30);

/// A network of the usual size.
pub async fn devnet() -> Devnet {
    devnet::trace_to_stderr();
    Devnet::start(devnet::MIN_NODES).await.unwrap()
}

pub fn path(text: &str) -> EntryPath {
    EntryPath::parse(text).unwrap()
}

/// Bytes that no compression or coincidence makes equal to others.
pub fn noise(len: usize, seed: u8) -> Vec<u8> {
    noise_of(len, seed.into())
}

pub fn noise_of(len: usize, seed: u32) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new()
        .update(&seed.to_be_bytes())
        .finalize_xof()
        .fill(&mut bytes);
    bytes
}

/// A backend on a host of its own.
pub struct Device {
    pub name: &'static str,
    pub host: Host,
    pub directory: PathBuf,
    pub backend: Backend,
}

impl Device {
    pub async fn start(devnet: &Devnet, name: &'static str) -> Self {
        let host = devnet.host(name).await.unwrap();
        let directory = host.directory().join("device");
        let backend = start(&host, directory.clone()).await;
        let device = Self {
            name,
            host,
            directory,
            backend,
        };
        device
            .on(|b| async move { b.wait_online(LIMIT).await.unwrap() })
            .await;
        device
    }

    /// Starts one that stays off the network.
    pub async fn start_offline(devnet: &Devnet, name: &'static str) -> Self {
        let host = devnet.host(name).await.unwrap();
        let directory = host.directory().join("device");
        let backend = start_with(&host, directory.clone(), |builder| builder.offline(true))
            .await
            .unwrap();
        Self {
            name,
            host,
            directory,
            backend,
        }
    }

    /// Runs something on the device, inside its network namespace.
    pub async fn on<T: Send + 'static, F: Future<Output = T> + Send + 'static>(
        &self,
        what: impl FnOnce(Backend) -> F,
    ) -> T {
        let work = what(self.backend.clone());
        timeout(LIMIT, self.host.run(work))
            .await
            .unwrap_or_else(|_| panic!("{} is stuck", self.name))
    }

    pub async fn create(&self) -> GroupId {
        let me = self.name;
        let id = self
            .on(move |b| async move { b.create_group("Archive", me).await.unwrap().id })
            .await;
        self.flush(&id).await;
        id
    }

    pub async fn join(&self, of: &Device, id: &GroupId) {
        self.join_as(LinkKind::Member, of, id).await;
    }

    /// Joins by a link of some kind.
    pub async fn join_as(&self, kind: LinkKind, of: &Device, id: &GroupId) {
        let (of_id, me) = (id.clone(), self.name);
        let link = of
            .on(move |b| async move { b.link(&of_id, kind).await.unwrap() })
            .await;
        self.on(move |b| async move { b.join_group(&link, me).await.unwrap() })
            .await;
        self.flush(id).await;
    }

    /// Joins as soon as the group answers.
    pub async fn join_with(&self, link: &Link, id: &GroupId) {
        let (link, me) = (link.clone(), self.name);
        self.on(move |b| async move {
            while let Err(error) = b.join_group(&link, me).await {
                assert_eq!(error.kind(), ErrorKind::NoAnswer, "{error}");
                sleep(Duration::from_millis(300)).await;
            }
        })
        .await;
        self.flush(id).await;
    }

    pub async fn flush(&self, id: &GroupId) {
        let id = id.clone();
        self.on(move |b| async move { b.flush(&id, LIMIT).await.unwrap() })
            .await;
    }

    /// Archives a file, and waits until that is published.
    pub async fn put(&self, id: &GroupId, path: &str, bytes: Vec<u8>) -> Entry {
        let mut entries = self.put_many(id, vec![(path.to_owned(), bytes)]).await;
        entries.remove(0)
    }

    /// Archives files as one change, and waits until that is published.
    pub async fn put_many(&self, id: &GroupId, files: Vec<(String, Vec<u8>)>) -> Vec<Entry> {
        let entries = self.try_put_many(id, files).await.unwrap();
        self.flush(id).await;
        entries
    }

    /// Archives a file, and does not wait until that is published.
    pub async fn put_unpublished(&self, id: &GroupId, path: &str, bytes: Vec<u8>) {
        self.try_put(id, path, bytes).await.unwrap();
    }

    pub async fn try_put(
        &self,
        id: &GroupId,
        path: &str,
        bytes: Vec<u8>,
    ) -> save_backend::Result<Vec<Entry>> {
        self.try_put_many(id, vec![(path.to_owned(), bytes)]).await
    }

    async fn try_put_many(
        &self,
        id: &GroupId,
        files: Vec<(String, Vec<u8>)>,
    ) -> save_backend::Result<Vec<Entry>> {
        let of = id.clone();
        let sources = self.host.directory().join("sources");
        self.on(move |b| async move {
            std::fs::create_dir_all(&sources).unwrap();
            let mut new = Vec::new();
            for (n, (to, bytes)) in files.into_iter().enumerate() {
                let source = sources.join(n.to_string());
                std::fs::write(&source, bytes).unwrap();
                new.push(NewFile {
                    path: path(&to),
                    source,
                });
            }
            b.put(&of, new, |_| {}).await
        })
        .await
    }

    /// The paths of all files, in order, as this device sees them after asking the network, once `done` is content with them.
    pub async fn list_until(
        &self,
        id: &GroupId,
        done: impl Fn(&[String]) -> bool + Send + 'static,
    ) {
        let id = id.clone();
        self.on(move |b| async move {
            loop {
                let files = b.list(&id, true).await.unwrap();
                if done(&sorted_paths(&files)) {
                    return;
                }
                sleep(Duration::from_millis(200)).await;
            }
        })
        .await;
    }

    /// The paths of all files, in order, as this device knows them.
    pub async fn listed(&self, id: &GroupId) -> Vec<String> {
        let id = id.clone();
        self.on(move |b| async move { sorted_paths(&b.list(&id, false).await.unwrap()) })
            .await
    }

    /// Waits until the device knows so many members.
    pub async fn members(&self, id: &GroupId, count: usize) -> Vec<Member> {
        let id = id.clone();
        self.on(move |b| async move {
            loop {
                let members = b.members(&id, true).await.unwrap();
                if members.len() == count {
                    return members;
                }
                sleep(Duration::from_millis(200)).await;
            }
        })
        .await
    }

    /// Waits until the names of the members are these, without asking: what is told has to arrive by itself. Gives how long it took.
    pub async fn told(&self, id: &GroupId, names: &[&str]) -> Duration {
        let begin = tokio::time::Instant::now();
        let (id, expected) = (id.clone(), names.iter().map(|n| (*n).to_owned()).collect());
        self.on(move |b| async move {
            let expected: Vec<String> = expected;
            loop {
                let members = b.members(&id, false).await.unwrap();
                let mut names: Vec<String> = members.into_iter().filter_map(|m| m.name).collect();
                names.sort();
                if names == expected {
                    return;
                }
                sleep(Duration::from_millis(100)).await;
            }
        })
        .await;
        begin.elapsed()
    }

    pub async fn get(&self, id: &GroupId, path: &str) -> Vec<u8> {
        self.get_with(id, path, |_| {}).await.unwrap()
    }

    pub async fn get_with(
        &self,
        id: &GroupId,
        from: &str,
        progress: impl Fn(Progress) + Send + Sync + 'static,
    ) -> save_backend::Result<Vec<u8>> {
        let (id, path) = (id.clone(), path(from));
        self.on(move |b| async move {
            let mut reader = b.get(&id, None, &path, progress).await?;
            let mut bytes = Vec::new();
            reader.read_to_end(&mut bytes).await.unwrap();
            Ok(bytes)
        })
        .await
    }

    /// The key of this device's own repo.
    pub fn repo(&self, id: &GroupId) -> PublicKey {
        let group = self.backend.group(id).unwrap();
        group.own_repo().unwrap().public_key().clone()
    }

    /// A handle of a group's record of its own.
    pub async fn group_record(&self, id: &GroupId) -> GroupRecord {
        let group = self.backend.group(id).unwrap();
        let records = &group.context().records;
        GroupRecord::attach(records, group.access().clone())
            .await
            .unwrap()
    }

    /// The route that this device publishes.
    pub async fn route(&self, id: &GroupId) -> Vec<u8> {
        let group = self.backend.group(id).unwrap();
        let record = group.own_repo().unwrap().record().clone();
        let tunnels = record.tunnels(Fetch::Cached).await.unwrap();
        let (_, tunnel) = tunnels.into_iter().next().unwrap();
        tunnel.unwrap().value.route
    }

    /// Takes a route of this device away, as if one of its hops had gone.
    pub async fn kill_route(&self, id: &GroupId, route: Vec<u8>) {
        let group = self.backend.group(id).unwrap();
        let api = group.context().records.api().clone();
        self.host
            .run(async move {
                // Veilid names a route by its keys, so the import tells the id of the allocated route, and takes it until it is released.
                let id = api.import_remote_private_route(route).unwrap();
                api.release_private_route(id.clone()).unwrap();
                api.release_private_route(id).unwrap();
            })
            .await;
    }

    pub fn access(&self, id: &GroupId) -> GroupAccess {
        self.backend.group(id).unwrap().access().clone()
    }

    pub async fn stop(self) {
        self.on(|b| async move { b.stop().await.unwrap() }).await;
    }

    /// Stops, and starts again from the same directory without a network.
    pub async fn restart_cut_off(self) -> Self {
        self.host.cut_off().await.unwrap();
        self.restart().await
    }

    /// Stops and starts again from the same directory. Does not wait for the network.
    pub async fn restart(self) -> Self {
        self.stopped().await.start().await
    }

    /// Stops, to be started again later.
    pub async fn stopped(self) -> Stopped {
        self.on(|b| async move { b.stop().await.unwrap() }).await;
        Stopped {
            name: self.name,
            host: self.host,
            directory: self.directory,
        }
    }
}

/// A device that is off.
pub struct Stopped {
    name: &'static str,
    host: Host,
    directory: PathBuf,
}

impl Stopped {
    /// Starts it from the same directory. Does not wait for the network.
    pub async fn start(self) -> Device {
        let backend = start(&self.host, self.directory.clone()).await;
        Device {
            name: self.name,
            host: self.host,
            directory: self.directory,
            backend,
        }
    }
}

fn sorted_paths(files: &[ListedFile]) -> Vec<String> {
    let paths = files.iter().map(|file| file.entry.path.as_str().to_owned());
    let mut paths: Vec<_> = paths.collect();
    paths.sort();
    paths
}

async fn start(host: &Host, directory: PathBuf) -> Backend {
    try_start(host, directory).await.unwrap()
}

pub async fn try_start(host: &Host, directory: PathBuf) -> save_backend::Result<Backend> {
    start_with(host, directory, |builder| builder).await
}

async fn start_with(
    host: &Host,
    directory: PathBuf,
    options: impl FnOnce(BackendBuilder) -> BackendBuilder,
) -> save_backend::Result<Backend> {
    // Links are slowed down and cut here, and nobody else's routes should feel it.
    let settings = host.network_settings().serving_nobody();
    let settings = serde_json::to_value(settings).unwrap();
    let network = serde_json::from_value(settings).unwrap();
    let builder = Backend::builder().directory(directory).network(network);
    host.run(options(builder).start()).await
}
