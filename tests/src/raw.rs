//! Bare nodes with a group's keys, which can do what a backend never would.
#![allow(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    missing_docs,
    reason = "a test may panic"
)]

use std::{
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use devnet::{Devnet, Host, Node, NodeOptions};
use dht_records::{
    DeviceId, Fetch, GroupAccess, GroupRecord, MemoryCache, Purpose, Records, RepoRecord,
    SlotIndex, SlotRoot, SlotValue,
};
use group::{Group, GroupContext, Ledger, Serving};
use iroh_blobs::{
    Hash,
    protocol::{ChunkRanges, GetRequest, Request},
    store::mem::MemStore,
};
use repo::{Repo, RepoContext, SystemClock};
use save_backend::PublicKey;
use store_adapter::{StoreOptions, VeilidStore};
use tokio::time::{sleep, timeout};
use tunnels::{Limits, Listener, Psk, Session, Tunnels};
use veilid_core::VeilidUpdate;

use crate::{
    answered,
    peers::{LIMIT, path},
};

/// A bare node with a group's keys.
pub struct Raw {
    pub host: Host,
    node: Node,
    access: GroupAccess,
    records: Records,
    tunnels: Tunnels,
    store: VeilidStore,
    lies: Arc<AtomicUsize>,
}

impl Raw {
    pub async fn start(devnet: &Devnet, name: &str, access: GroupAccess) -> Self {
        let host = devnet.host(name).await.unwrap();
        let told: Arc<OnceLock<(Tunnels, Records)>> = Arc::default();
        let taken = told.clone();
        let mut options = NodeOptions::default();
        options.on_update = Some(Arc::new(move |update: VeilidUpdate| {
            if let Some((tunnels, records)) = taken.get() {
                tunnels.handle_update(&update);
                records.handle_update(&update);
            }
        }));
        let node = host
            .start_node_with(&host.directory().join("node"), options)
            .await
            .unwrap();
        node.ready(LIMIT).await.unwrap();
        let api = node.api().clone();
        let (records, started, store) = host
            .run(async move {
                let records = Records::new(api.clone(), Arc::new(MemoryCache::default()));
                let store = VeilidStore::in_memory(StoreOptions::default())
                    .await
                    .unwrap();
                (records, Tunnels::new(api, Limits::default()), store)
            })
            .await;
        told.set((started.clone(), records.clone())).ok().unwrap();
        Self {
            host,
            node,
            access,
            records,
            tunnels: started,
            store,
            lies: Arc::default(),
        }
    }

    /// Takes the keys of another group.
    pub fn turn_to(&mut self, access: GroupAccess) {
        self.access = access;
    }

    fn psk(&self) -> Psk {
        let key = self.access.locator().derive(Purpose::TunnelPsk);
        Psk::from_bytes(*key.as_bytes())
    }

    fn repo_context(&self) -> RepoContext {
        RepoContext {
            records: self.records.clone(),
            store: self.store.clone(),
            device: DeviceId::random().unwrap(),
            clock: Arc::new(SystemClock),
        }
    }

    /// Watches the group's record, from when this returns on.
    pub async fn watch_group(&self) -> GroupWatch {
        let (records, access) = (self.records.clone(), self.access.clone());
        let watching = self.host.run(async move {
            let record = GroupRecord::attach(&records, access).await.unwrap();
            answered(|| record.slots(Fetch::Network)).await;
            let mut watch = record.watch().await.unwrap();
            {
                let mut first = std::pin::pin!(watch.next());
                while records.stats().watches == 0 {
                    tokio::select! {
                        _ = &mut first => break,
                        () = sleep(Duration::from_millis(100)) => {}
                    }
                }
            }
            (record, watch)
        });
        let (record, watch) = timeout(LIMIT, watching).await.unwrap();
        GroupWatch {
            host: self.host.clone(),
            record,
            watch,
        }
    }

    /// A session with a device of a member.
    pub async fn session(&self, repo: &PublicKey) -> Session {
        self.session_with(repo, self.psk()).await
    }

    /// The same for somebody who found the route, and has another key.
    pub async fn strange_session(&self, repo: &PublicKey) -> Session {
        self.session_with(repo, Psk::from_bytes([7; 32])).await
    }

    async fn session_with(&self, repo: &PublicKey, psk: Psk) -> Session {
        let (records, access) = (self.records.clone(), self.access.clone());
        let (tunnels, repo) = (self.tunnels.clone(), repo.clone());
        self.host
            .run(async move {
                let record = RepoRecord::attach(&records, &access, repo, None)
                    .await
                    .unwrap();
                let route = timeout(LIMIT, async {
                    loop {
                        let found = record.tunnels(Fetch::Network).await.unwrap_or_default();
                        if let Some((_, Ok(tunnel))) = found.into_iter().next() {
                            return tunnel.value.route;
                        }
                        sleep(Duration::from_millis(300)).await;
                    }
                });
                tunnels.connect(psk, Arc::new(Route(route.await.unwrap())))
            })
            .await
    }

    /// All of a blob from a member, as it travels.
    pub async fn download(&self, repo: &PublicKey, hash: Hash) -> Vec<u8> {
        let session = self.session(repo).await;
        self.host
            .run(async move { download(&session, &GetRequest::blob(hash)).await.unwrap() })
            .await
    }

    /// Takes a blob that came from elsewhere into the store.
    pub async fn import(&self, hash: Hash, bytes: Vec<u8>) {
        let store = self.store.clone();
        self.host
            .run(async move {
                store
                    .import_bao_bytes(hash, ChunkRanges::all(), bytes)
                    .await
                    .unwrap();
                // Nothing names it here.
                std::mem::forget(store.tags().temp_tag(hash).await.unwrap());
            })
            .await;
    }

    pub async fn has(&self, hash: Hash) -> bool {
        let store = self.store.clone();
        self.host
            .run(async move { store.has(hash).await.unwrap() })
            .await
    }

    /// Becomes a member in earnest, and waits until it can be reached.
    pub async fn join_group(&self, me: &'static str) -> Group {
        let context = GroupContext {
            records: self.records.clone(),
            store: self.store.clone(),
            tunnels: self.tunnels.clone(),
            device: DeviceId::random().unwrap(),
            clock: Arc::new(SystemClock),
            ledger: Ledger::in_memory(),
            serving: Serving::default(),
        };
        let access = self.access.clone();
        self.host
            .run(async move {
                let (group, _) = Group::join(context, access, me).await.unwrap();
                let mut events = group.events();
                group.start();
                timeout(LIMIT, async {
                    while events.recv().await.unwrap() != group::GroupEvent::Reachable {}
                })
                .await
                .unwrap();
                group
            })
            .await
    }

    /// Reads a file as a member.
    pub async fn read(&self, group: &Group, repo: &PublicKey, from: &str) {
        let (group, repo, path) = (group.clone(), repo.clone(), path(from));
        self.host
            .run(async move {
                timeout(LIMIT, async {
                    while group.find(&path).await.unwrap().is_empty() {
                        group.list(Fetch::Network).await.unwrap();
                        sleep(Duration::from_millis(200)).await;
                    }
                    group.read(&repo, &path, None).await.unwrap();
                })
                .await
                .unwrap();
            })
            .await;
    }

    pub async fn stop_group(&self, group: Group) {
        self.host
            .run(async move { group.stop(Duration::from_secs(3)).await })
            .await;
    }

    /// Advertises itself as a member who has a blob, and serves it with one wrong byte in the last chunk group of each answer. Gives
    /// the key of the member's repo.
    pub async fn pose_as_member(&self, sealed: Vec<u8>, hash: Hash) -> PublicKey {
        let (listener, repo) = self.pose(None).await;
        let lies = self.lies.clone();
        self.host
            .run(async move {
                let blobs = MemStore::new();
                blobs
                    .import_bao_bytes(hash, ChunkRanges::all(), sealed)
                    .await
                    .unwrap();
                tokio::spawn(lie(listener, blobs, lies));
            })
            .await;
        repo
    }

    /// Advertises itself as a member whose list names `part`, and serves the list, but not that. Gives the key of the member's repo, and
    /// what it is asked for.
    pub async fn pose_with_a_list_that_names(
        &self,
        part: Hash,
    ) -> (PublicKey, Arc<Mutex<Vec<Hash>>>) {
        let names = b"names".to_vec();
        let list = [Hash::new(&names), part]
            .map(|hash| *hash.as_bytes())
            .concat();
        let root = SlotRoot {
            hash: *Hash::new(&list).as_bytes(),
            counter: 1,
            bytes: 1,
            files: 1,
        };
        let (listener, repo) = self.pose(Some(root)).await;
        let asked: Arc<Mutex<Vec<Hash>>> = Arc::default();
        let heard = asked.clone();
        self.host
            .run(async move {
                let blobs = MemStore::new();
                for bytes in [list, names] {
                    blobs.add_bytes(bytes).await.unwrap();
                }
                tokio::spawn(give(listener, blobs, heard));
            })
            .await;
        (repo, asked)
    }

    /// Advertises itself as a member, who listens.
    async fn pose(&self, root: Option<SlotRoot>) -> (Listener, PublicKey) {
        let (context, access) = (self.repo_context(), self.access.clone());
        let (tunnels, psk) = (self.tunnels.clone(), self.psk());
        let records = self.records.clone();
        self.host
            .run(async move {
                let (repo, keys) = Repo::create(&context, &access, "Mallory").await.unwrap();
                let listener = tunnels.listen(psk).await.unwrap();
                let route = listener.route().borrow().clone().unwrap();
                let _ = answered(|| repo.publish_tunnel(&route, None)).await;
                let record = GroupRecord::attach(&records, access).await.unwrap();
                let taken: Vec<u32> = answered(|| record.slots(Fetch::Network))
                    .await
                    .into_iter()
                    .map(|(index, _)| index.get())
                    .collect();
                let mut index = SlotIndex::start_of(repo.public_key());
                while taken.contains(&index.get()) {
                    index = index.next();
                }
                let slot = record.sign_slot(index, &keys, root, Some("Mallory")).await;
                record
                    .set_slot(index, &SlotValue::Member(slot.unwrap()))
                    .await
                    .unwrap();
                let _ = answered(|| record.publish()).await;
                (listener, repo.public_key().clone())
            })
            .await
    }

    /// How many wrong answers it gave.
    pub fn lies(&self) -> usize {
        self.lies.load(Ordering::Relaxed)
    }

    pub async fn stop(self) {
        let (tunnels, records, store) = (self.tunnels, self.records, self.store);
        self.host
            .run(async move {
                tunnels.close().await;
                records.close().await;
                store.close().await.unwrap();
            })
            .await;
        self.node.shutdown().await.unwrap();
    }
}

/// Says that it has everything, and sends what it has with one wrong byte.
async fn lie(listener: Listener, blobs: MemStore, lies: Arc<AtomicUsize>) {
    while let Some(mut incoming) = listener.accept().await {
        let (blobs, lies) = (blobs.clone(), lies.clone());
        tokio::spawn(async move {
            let asked = incoming.recv.read_to_end(1 << 20).await.unwrap();
            let mut answer = Vec::new();
            if incoming.protocol == 2 {
                answer.extend_from_slice(&asked[..3]);
                for _ in asked[3..].chunks(32) {
                    answer.push(2);
                    answer.extend_from_slice(&8_000_000_u64.to_be_bytes());
                }
            } else if let Ok(Request::Get(request)) = postcard::from_bytes(&asked) {
                let ranges = request.ranges.iter_non_empty_infinite().next();
                let ranges = ranges.unwrap().1.clone();
                let export = blobs.export_bao(request.hash, ranges);
                answer = export.bao_to_vec().await.unwrap();
                if let Some(last) = answer.last_mut() {
                    *last ^= 1;
                    lies.fetch_add(1, Ordering::Relaxed);
                }
            }
            let _ = incoming.send.write_all(&answer).await;
            let _ = incoming.send.finish();
            let _ = incoming.send.stopped().await;
        });
    }
}

/// Notes what it is asked for, and gives of lists what it has.
async fn give(listener: Listener, blobs: MemStore, asked: Arc<Mutex<Vec<Hash>>>) {
    while let Some(mut incoming) = listener.accept().await {
        let (blobs, asked) = (blobs.clone(), asked.clone());
        tokio::spawn(async move {
            let question = incoming.recv.read_to_end(1 << 20).await.unwrap();
            let mut answer = Vec::new();
            if incoming.protocol == 2 {
                answer.extend_from_slice(&question[..3]);
                for hash in question[3..].chunks(32) {
                    let hash = Hash::from_bytes(hash.try_into().unwrap());
                    asked.lock().unwrap().push(hash);
                    let there = blobs.has(hash).await.unwrap();
                    answer.push(if there { 2 } else { 0 });
                    let size = if there { 64_u64 } else { 0 };
                    answer.extend_from_slice(&size.to_be_bytes());
                }
            } else if let Ok(Request::Get(request)) = postcard::from_bytes(&question) {
                asked.lock().unwrap().push(request.hash);
                let Ok(list) = blobs.get_bytes(request.hash).await else {
                    incoming.send.reset(1);
                    return;
                };
                let names = Hash::from_bytes(list[..32].try_into().unwrap());
                for hash in [request.hash, names] {
                    let export = blobs.export_bao(hash, ChunkRanges::all());
                    answer.extend(export.bao_to_vec().await.unwrap());
                }
            }
            let _ = incoming.send.write_all(&answer).await;
            let _ = incoming.send.finish();
            let _ = incoming.send.stopped().await;
        });
    }
}

/// A blob's hash, and the blob as it travels.
pub async fn sealed(bytes: &[u8]) -> (Hash, Vec<u8>) {
    let blobs = MemStore::new();
    let hash = blobs.add_slice(bytes).await.unwrap().hash;
    let export = blobs.export_bao(hash, ChunkRanges::all());
    (hash, export.bao_to_vec().await.unwrap())
}

/// A watch on a group's record.
pub struct GroupWatch {
    host: Host,
    record: GroupRecord,
    watch: dht_records::Watch,
}

impl GroupWatch {
    /// Waits until there is a member of this name, and looks at the slots only after the watch said that something changed.
    pub async fn told_of(self, name: &'static str) {
        let Self {
            host,
            record,
            mut watch,
        } = self;
        let is_told = |slot: SlotValue| match slot {
            SlotValue::Member(member) => member.name.as_deref() == Some(name),
            _ => false,
        };
        host.run(async move {
            loop {
                let changed = watch.next().await.unwrap();
                if !record.read_changed(&changed).await.unwrap() {
                    answered(|| record.slots(Fetch::Network)).await;
                }
                let slots = record.slots(Fetch::Cached).await.unwrap();
                let mut slots = slots.into_iter().filter_map(|(_, slot)| slot.ok());
                if slots.any(|slot| is_told(slot.value)) {
                    return;
                }
            }
        })
        .await;
    }
}

struct Route(Vec<u8>);

#[async_trait::async_trait]
impl tunnels::RouteSource for Route {
    async fn route(&self, _: Option<&[u8]>) -> tunnels::Result<Vec<u8>> {
        Ok(self.0.clone())
    }
}

/// Asks the question HAVE by hand: 0 none, 1 partial, 2 complete.
pub async fn have(session: &Session, hash: Hash) -> u8 {
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
pub async fn get(session: &Session, request: &GetRequest) -> usize {
    download(session, request)
        .await
        .map_or(0, |bytes| bytes.len())
}

/// What comes for a request of iroh's.
///
/// # Errors
/// Those of the stream.
pub async fn download(session: &Session, request: &GetRequest) -> tunnels::Result<Vec<u8>> {
    let (mut send, mut recv) = session.open(1).await?;
    let request = postcard::to_stdvec(&Request::Get(request.clone())).unwrap();
    send.write_all(&request).await?;
    send.finish()?;
    Ok(recv.read_to_end(64 << 20).await?.to_vec())
}
