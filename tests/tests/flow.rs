//! The flow and the roadmap that the project was asked for, on real networks: each test has devices that find each other over
//! a devnet's DHT and exchange real files over its routes.
#![cfg(target_os = "linux")]
#![recursion_limit = "256"]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    future::Future,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use devnet::{Devnet, Host};
use dht_records::{
    Fetch, GroupAccess, GroupRecord, MemoryCache, Purpose, Records, RepoRecord, SlotValue,
};
use iroh_blobs::Hash;
use save_backend::{
    Backend, Entry, EntryPath, EventKind, GroupId, LinkKind, NewFile, Progress, ProgressState,
    PublicKey,
};
use tokio::{
    io::AsyncReadExt,
    time::{sleep, timeout},
};

/// Longer than anything here takes on a loaded machine.
const LIMIT: Duration = Duration::from_secs(120);

struct Device {
    name: &'static str,
    host: Host,
    directory: PathBuf,
    backend: Backend,
}

impl Device {
    async fn start(devnet: &Devnet, name: &'static str) -> Self {
        let host = devnet.host(name).await.unwrap();
        let directory = host.directory().join("device");
        let backend = start(&host, directory.clone()).await.unwrap();
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

    /// Runs something on the device, inside its network namespace.
    async fn on<T: Send + 'static, F: Future<Output = T> + Send + 'static>(
        &self,
        what: impl FnOnce(Backend) -> F,
    ) -> T {
        let work = what(self.backend.clone());
        timeout(LIMIT, self.host.run(work))
            .await
            .unwrap_or_else(|_| panic!("{} is stuck", self.name))
    }

    async fn create(&self) -> GroupId {
        let me = self.name;
        let id = self
            .on(move |b| async move { b.create_group("Field archive", me).await.unwrap().id })
            .await;
        self.flush(&id).await;
        id
    }

    async fn join(&self, of: &Device, id: &GroupId) {
        let (of_id, me) = (id.clone(), self.name);
        let link = of
            .on(move |b| async move { b.link(&of_id, LinkKind::Member).await.unwrap() })
            .await;
        self.on(move |b| async move { b.join_group(&link, me).await.unwrap() })
            .await;
        self.flush(id).await;
    }

    async fn flush(&self, id: &GroupId) {
        let id = id.clone();
        self.on(move |b| async move { b.flush(&id, LIMIT).await.unwrap() })
            .await;
    }

    /// Archives bytes and waits until that is published.
    async fn put(&self, id: &GroupId, path: &str, bytes: Vec<u8>) -> Entry {
        let entry = self.put_unpublished(id, path, bytes).await;
        self.flush(id).await;
        entry
    }

    async fn put_unpublished(&self, id: &GroupId, path: &str, bytes: Vec<u8>) -> Entry {
        let (id, path) = (id.clone(), EntryPath::parse(path).unwrap());
        let source = self.host.directory().join("source");
        self.on(move |b| async move {
            tokio::fs::write(&source, bytes).await.unwrap();
            let file = NewFile { path, source };
            b.put(&id, vec![file], |_| {}).await.unwrap().remove(0)
        })
        .await
    }

    /// The paths of a member's files as this device sees them after asking the network, once `done` is content with them.
    async fn list_until(
        &self,
        id: &GroupId,
        done: impl Fn(&[String]) -> bool + Send + 'static,
    ) -> Vec<String> {
        let id = id.clone();
        self.on(move |b| async move {
            loop {
                let files = b.list(&id, true).await.unwrap();
                let mut paths: Vec<String> = files
                    .iter()
                    .map(|file| file.entry.path.as_str().to_owned())
                    .collect();
                paths.sort();
                if done(&paths) {
                    return paths;
                }
                sleep(Duration::from_millis(200)).await;
            }
        })
        .await
    }

    /// Waits until the device knows so many members.
    async fn members(&self, id: &GroupId, count: usize) -> Vec<save_backend::Member> {
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

    async fn get(&self, id: &GroupId, path: &str) -> Vec<u8> {
        self.get_with(id, path, |_| {}).await.unwrap()
    }

    async fn get_with(
        &self,
        id: &GroupId,
        path: &str,
        progress: impl Fn(Progress) + Send + Sync + 'static,
    ) -> save_backend::Result<Vec<u8>> {
        let (id, path) = (id.clone(), EntryPath::parse(path).unwrap());
        self.on(move |b| async move {
            let mut reader = b.get(&id, None, &path, progress).await?;
            let mut bytes = Vec::new();
            reader.read_to_end(&mut bytes).await.unwrap();
            Ok(bytes)
        })
        .await
    }

    async fn stop(self) {
        self.on(|b| async move { b.stop().await.unwrap() }).await;
    }

    /// Stops and starts again from the same directory. Does not wait for the network.
    async fn restart(self) -> Self {
        self.on(|b| async move { b.stop().await.unwrap() }).await;
        let backend = start(&self.host, self.directory.clone()).await.unwrap();
        Self { backend, ..self }
    }
}

async fn start(host: &Host, directory: PathBuf) -> save_backend::Result<Backend> {
    let settings = serde_json::to_value(host.network_settings()).unwrap();
    let network = serde_json::from_value(settings).unwrap();
    host.run(async move {
        Backend::builder()
            .directory(directory)
            .network(network)
            .start()
            .await
    })
    .await
}

/// Bytes that no compression or coincidence makes equal to others.
fn noise(len: usize, seed: u8) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new()
        .update(&[seed])
        .finalize_xof()
        .fill(&mut bytes);
    bytes
}

async fn devnet() -> Devnet {
    devnet::trace_to_stderr();
    Devnet::start(devnet::MIN_NODES).await.unwrap()
}

/// "get veilid building and running inside backend class"; one directory, one process.
#[tokio::test]
async fn the_backend_runs_veilid_and_holds_its_directory() {
    let devnet = devnet().await;
    let ana = Device::start(&devnet, "ana").await;
    let ben = Device::start(&devnet, "ben").await;
    for device in [&ana, &ben] {
        let status = device.backend.status();
        assert!(status.online, "{status:?}");
    }
    assert!(ana.on(|b| async move { b.groups().await }).await.is_empty());
    let second = start(&ana.host, ana.directory.clone()).await;
    assert!(matches!(second, Err(save_backend::Error::DirectoryInUse)));
    let ana = ana.restart().await;
    ben.stop().await;
    ana.stop().await;
    devnet.stop().await.unwrap();
}

/// "create groups and publish to veilid with name, read name from keypair"; "create data repo with name and advertise to
/// dht/read name back"; "add own repo to group, list known repos, get their names": read back with nothing but the keys.
#[tokio::test]
async fn names_and_repos_are_read_back_from_the_dht() {
    let devnet = devnet().await;
    let ana = Device::start(&devnet, "ana").await;
    let ben = Device::start(&devnet, "ben").await;
    let id = ana.create().await;
    ben.join(&ana, &id).await;
    let members = ana.members(&id, 2).await;
    let mut names: Vec<_> = members.iter().filter_map(|m| m.name.clone()).collect();
    names.sort();
    assert_eq!(names, ["ana", "ben"]);
    assert_eq!(members.iter().filter(|m| m.is_self).count(), 1);
    let groups = ben.on(|b| async move { b.groups().await }).await;
    assert_eq!(groups[0].name.as_deref(), Some("Field archive"));

    // A node that was never told anything else.
    let host = devnet.host("reader").await.unwrap();
    let node = host
        .start_node(&host.directory().join("node"))
        .await
        .unwrap();
    node.ready(LIMIT).await.unwrap();
    let api = node.api().clone();
    let access = access(&ana, &id);
    let repos: Vec<PublicKey> = members.into_iter().map(|m| m.repo).collect();
    host.run(async move {
        let records = Records::new(api, Arc::new(MemoryCache::default()));
        let group = GroupRecord::attach(&records, access.clone()).await.unwrap();
        let name = group.metadata(Fetch::Network).await.unwrap().unwrap();
        assert_eq!(name.value.name, "Field archive");
        let slots = group.slots(Fetch::Network).await.unwrap();
        let mut advertised = Vec::new();
        for (_, slot) in slots {
            if let SlotValue::Member(slot) = slot.unwrap().value {
                advertised.push(slot.repo);
            }
        }
        advertised.sort();
        let mut expected = repos.clone();
        expected.sort();
        assert_eq!(advertised, expected);
        let mut names = Vec::new();
        for repo in repos {
            let repo = RepoRecord::attach(&records, &access, repo, None)
                .await
                .unwrap();
            let name = repo.metadata(Fetch::Network).await.unwrap().unwrap();
            names.push(name.value.name);
            let tunnels = repo.tunnels(Fetch::Network).await.unwrap();
            assert_eq!(tunnels.len(), 1, "one tunnel for each device");
        }
        names.sort();
        assert_eq!(names, ["ana", "ben"]);
        records.close().await;
    })
    .await;
    node.shutdown().await.unwrap();
    ana.stop().await;
    ben.stop().await;
    devnet.stop().await.unwrap();
}

fn access(device: &Device, id: &GroupId) -> GroupAccess {
    device.backend.group(id).unwrap().access().clone()
}

/// "add tunnel to own repo, send 'ping' app_call to others"; and "before closing we should make sure to remove our tunnel".
#[tokio::test]
async fn members_ping_each_other_until_one_withdraws() {
    let devnet = devnet().await;
    let ana = Device::start(&devnet, "ana").await;
    let ben = Device::start(&devnet, "ben").await;
    let id = ana.create().await;
    ben.join(&ana, &id).await;
    for device in [&ana, &ben] {
        let other = device
            .members(&id, 2)
            .await
            .into_iter()
            .find(|m| !m.is_self)
            .unwrap();
        let id = id.clone();
        let time = device
            .on(move |b| async move { b.ping(&id, &other.repo).await.unwrap() })
            .await;
        assert!(time > Duration::ZERO);
    }
    let ben_repo = ben
        .backend
        .group(&id)
        .unwrap()
        .own_repo()
        .unwrap()
        .public_key()
        .clone();
    ben.stop().await;
    let (of, repo) = (id.clone(), ben_repo.clone());
    let error = ana
        .on(move |b| async move { b.ping(&of, &repo).await.unwrap_err() })
        .await;
    assert!(
        matches!(
            error,
            save_backend::Error::Group(group::Error::MemberDoesNotAnswer)
        ),
        "{error:?}"
    );
    assert!(error.is_retryable());
    ana.stop().await;
    devnet.stop().await.unwrap();
}

/// "track collection for data repo and add data to it, update dht with hash"; "get iroh replication for collection using
/// app_call to tunnels in repo"; delete; and the second read needs no network.
#[tokio::test]
async fn files_are_listed_fetched_verified_deleted_and_kept() {
    let devnet = devnet().await;
    let ana = Device::start(&devnet, "ana").await;
    let ben = Device::start(&devnet, "ben").await;
    let id = ana.create().await;
    ben.join(&ana, &id).await;
    let (large, small) = (noise(3_000_001, 1), b"a note".to_vec());
    ana.put(&id, "video.bin", large.clone()).await;
    ana.put(&id, "notes/today.txt", small.clone()).await;
    ana.put(&id, "empty", Vec::new()).await;
    ben.list_until(&id, |paths| {
        paths == ["empty", "notes/today.txt", "video.bin"]
    })
    .await;

    let seen = Arc::new(Mutex::new(Vec::new()));
    let states = seen.clone();
    let read = ben
        .get_with(&id, "video.bin", move |progress| {
            states.lock().unwrap().push(progress)
        })
        .await
        .unwrap();
    assert!(read == large, "the bytes differ");
    let seen = std::mem::take(&mut *seen.lock().unwrap());
    assert_eq!(seen.last().unwrap().state, ProgressState::Stored);
    assert!(
        seen.iter()
            .any(|progress| progress.state == ProgressState::Fetching)
    );
    assert!(
        seen.windows(2)
            .all(|pair| pair[0].bytes_done <= pair[1].bytes_done)
    );
    assert_eq!(ben.get(&id, "notes/today.txt").await, small);
    assert_eq!(ben.get(&id, "empty").await, b"");

    let gone = EntryPath::parse("notes/today.txt").unwrap();
    let of = id.clone();
    ana.on(move |b| async move { b.delete(&of, &gone).await.unwrap() })
        .await;
    ana.flush(&id).await;
    ben.list_until(&id, |paths| paths == ["empty", "video.bin"])
        .await;
    let error = ben
        .get_with(&id, "notes/today.txt", |_| {})
        .await
        .unwrap_err();
    assert!(
        matches!(error, save_backend::Error::NoSuchFile),
        "{error:?}"
    );

    // Without a network, and after a restart: what was read once is here.
    ben.host.cut_off().await.unwrap();
    let ben = ben.restart().await;
    assert!(
        ben.get(&id, "video.bin").await == large,
        "the bytes differ after a restart"
    );
    let groups = ben.on(|b| async move { b.groups().await }).await;
    assert_eq!(groups[0].name.as_deref(), Some("Field archive"));
    assert_eq!(groups[0].members, 2);
    ana.stop().await;
    ben.stop().await;
    devnet.stop().await.unwrap();
}

/// "attempt to send requests to tunnels of other peers and do parallel reads for those that have the data (track dead tunnels to
/// add to ignore list)".
#[tokio::test]
async fn a_file_comes_from_everybody_who_has_it_and_the_dead_are_left_alone() {
    let devnet = devnet().await;
    let ana = Device::start(&devnet, "ana").await;
    let ben = Device::start(&devnet, "ben").await;
    let cleo = Device::start(&devnet, "cleo").await;
    let id = ana.create().await;
    ben.join(&ana, &id).await;
    cleo.join(&ana, &id).await;
    let file = noise(4_000_000, 2);
    let entry = ana.put(&id, "video.bin", file.clone()).await;
    ben.list_until(&id, |paths| paths.len() == 1).await;
    assert!(ben.get(&id, "video.bin").await == file);
    cleo.list_until(&id, |paths| paths.len() == 1).await;
    // Ben was seen last, so Cleo asks both who "has" it.
    cleo.members(&id, 3).await;
    let (of, asked) = (id.clone(), entry.clone());
    let mut holders = cleo
        .on(move |b| async move {
            loop {
                let holders = b.group(&of).unwrap().holders(&asked).await.unwrap();
                if holders.len() == 2 {
                    return holders;
                }
                sleep(Duration::from_millis(200)).await;
            }
        })
        .await;
    holders.sort();
    let mut expected = [
        ana.backend
            .group(&id)
            .unwrap()
            .own_repo()
            .unwrap()
            .public_key()
            .clone(),
        ben.backend
            .group(&id)
            .unwrap()
            .own_repo()
            .unwrap()
            .public_key()
            .clone(),
    ];
    expected.sort();
    assert_eq!(holders, expected);

    // Only Ana has this one.
    ana.put(&id, "rare.txt", b"rare".to_vec()).await;
    cleo.list_until(&id, |paths| paths.len() == 2).await;

    // The one who wrote the file goes without a word. The other holder is enough.
    ana.host.cut_off().await.unwrap();
    assert!(cleo.get(&id, "video.bin").await == file, "the bytes differ");
    let nobody = cleo.get_with(&id, "rare.txt", |_| {}).await.unwrap_err();
    assert!(nobody.is_retryable(), "{nobody:?}");
    assert!(
        matches!(
            nobody,
            save_backend::Error::Group(group::Error::NobodyHas { .. })
        ),
        "{nobody:?}"
    );
    let ana_repo = expected.iter().find(|repo| {
        **repo
            == *ana
                .backend
                .group(&id)
                .unwrap()
                .own_repo()
                .unwrap()
                .public_key()
    });
    let missing = noise(100, 3);
    ana.put_unpublished(&id, "later.txt", missing.clone()).await;
    let (of, dead) = (id.clone(), ana_repo.unwrap().clone());
    let error = cleo
        .on(move |b| async move { b.ping(&of, &dead).await.unwrap_err() })
        .await;
    assert!(error.is_retryable(), "{error:?}");

    // It comes back, and what it wrote in the meantime is published and read.
    ana.host.rejoin().await.unwrap();
    ana.flush(&id).await;
    cleo.list_until(&id, |paths| paths.len() == 3).await;
    assert_eq!(cleo.get(&id, "later.txt").await, missing);
    assert_eq!(cleo.get(&id, "rare.txt").await, b"rare");
    for device in [ana, ben, cleo] {
        device.stop().await;
    }
    devnet.stop().await.unwrap();
}

/// What is written without a network is kept over a restart and published when there is one.
#[tokio::test]
async fn writing_works_offline_and_is_published_after_a_restart() {
    let devnet = devnet().await;
    let ana = Device::start(&devnet, "ana").await;
    let ben = Device::start(&devnet, "ben").await;
    let id = ana.create().await;
    ben.join(&ana, &id).await;
    ana.host.cut_off().await.unwrap();
    ana.put_unpublished(&id, "offline.txt", b"written in the field".to_vec())
        .await;
    assert!(ana.backend.group(&id).unwrap().has_unpublished());
    let ana = ana.restart().await;
    assert_eq!(ana.get(&id, "offline.txt").await, b"written in the field");
    let group = ana.on(|b| async move { b.groups().await.remove(0) }).await;
    assert!(
        group.unpublished,
        "a restart must not forget what is not published"
    );
    ana.host.rejoin().await.unwrap();
    ana.flush(&id).await;
    ben.list_until(&id, |paths| paths == ["offline.txt"]).await;
    assert_eq!(ben.get(&id, "offline.txt").await, b"written in the field");
    ana.stop().await;
    ben.stop().await;
    devnet.stop().await.unwrap();
}

/// Whoever proved one group's key learns nothing of another group's blobs, and a stranger nothing at all.
#[tokio::test]
async fn only_what_the_groups_roots_reach_is_served() {
    let devnet = devnet().await;
    let ana = Device::start(&devnet, "ana").await;
    let first = ana.create().await;
    let second = ana.create().await;
    let mine = ana.put(&first, "first.bin", noise(100_000, 4)).await;
    let foreign = ana.put(&second, "second.bin", noise(100_000, 5)).await;
    let host = devnet.host("prober").await.unwrap();
    let node = host
        .start_node(&host.directory().join("node"))
        .await
        .unwrap();
    node.ready(LIMIT).await.unwrap();
    let access = access(&ana, &first);
    let repo = ana
        .backend
        .group(&first)
        .unwrap()
        .own_repo()
        .unwrap()
        .public_key()
        .clone();
    let api = node.api().clone();
    host.run(async move {
        let records = Records::new(api.clone(), Arc::new(MemoryCache::default()));
        let record = RepoRecord::attach(&records, &access, repo, None)
            .await
            .unwrap();
        let (_, tunnel) = record.tunnels(Fetch::Network).await.unwrap().remove(0);
        let route = tunnel.unwrap().value.route;
        let tunnels = tunnels::Tunnels::new(api, tunnels::Limits::default());
        let psk = tunnels::Psk::from_bytes(*access.locator().derive(Purpose::TunnelPsk).as_bytes());
        let session = tunnels.connect(psk, Arc::new(Route(route.clone())));
        assert_eq!(
            have(&session, mine.blob).await,
            2,
            "a member's own blob is there"
        );
        assert_eq!(
            have(&session, foreign.blob).await,
            0,
            "another group's blob is not"
        );
        assert!(get(&session, mine.blob).await > 100_000);
        assert_eq!(get(&session, foreign.blob).await, 0);

        let stranger = tunnels.connect(tunnels::Psk::from_bytes([7; 32]), Arc::new(Route(route)));
        let refused = timeout(LIMIT, stranger.ping()).await.unwrap();
        assert!(refused.is_err(), "a stranger gets no answer");
        tunnels.close().await;
        records.close().await;
    })
    .await;
    node.shutdown().await.unwrap();
    ana.stop().await;
    devnet.stop().await.unwrap();
}

struct Route(Vec<u8>);

#[async_trait::async_trait]
impl tunnels::RouteSource for Route {
    async fn route(&self, _: Option<&[u8]>) -> tunnels::Result<Vec<u8>> {
        Ok(self.0.clone())
    }
}

/// Asks the question HAVE by hand: 0 none, 1 partial, 2 complete.
async fn have(session: &tunnels::Session, hash: Hash) -> u8 {
    let (mut send, mut recv) = session.open(2).await.unwrap();
    let mut question = vec![1, 0, 1];
    question.extend_from_slice(hash.as_bytes());
    send.write_all(&question).await.unwrap();
    send.finish().unwrap();
    let answer = recv.read_to_end(1000).await.unwrap();
    assert_eq!(&answer[..3], [1, 0, 1]);
    answer[3]
}

/// Asks for a blob with iroh's own request, and counts the bytes that come.
async fn get(session: &tunnels::Session, hash: Hash) -> usize {
    let (mut send, mut recv) = session.open(1).await.unwrap();
    let request = iroh_blobs::protocol::GetRequest::blob(hash);
    let mut bytes = vec![0];
    bytes.extend(postcard::to_stdvec(&request).unwrap());
    send.write_all(&bytes).await.unwrap();
    send.finish().unwrap();
    recv.read_to_end(1_000_000)
        .await
        .map_or(0, |bytes| bytes.len())
}

/// Events are numbered without a gap, and tell what happens to the network and the groups.
#[tokio::test]
async fn events_tell_what_happens_in_order() {
    let devnet = devnet().await;
    let ana = Device::start(&devnet, "ana").await;
    let mut events = ana.backend.events();
    let id = ana.create().await;
    ana.put(&id, "file", b"1".to_vec()).await;
    let ana_events = ana.backend.clone();
    ana.on(move |_| async move { ana_events.stop().await.unwrap() })
        .await;
    let mut seen = Vec::new();
    while let Some(event) = timeout(LIMIT, events.next()).await.unwrap() {
        let last = matches!(event.kind, EventKind::Stopped);
        seen.push(event);
        if last {
            break;
        }
    }
    assert!(
        seen.windows(2).all(|pair| pair[1].seq == pair[0].seq + 1),
        "{seen:?}"
    );
    assert!(
        seen.iter()
            .any(|e| matches!(&e.kind, EventKind::GroupAdded { group } if *group == id))
    );
    assert!(seen.iter().any(|e| matches!(
        &e.kind,
        EventKind::Group {
            event: group::GroupEvent::Published,
            ..
        }
    )));
    drop(ana);
    devnet.stop().await.unwrap();
}
