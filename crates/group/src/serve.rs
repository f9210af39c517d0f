//! Answering the other members: what is here, and the blobs themselves.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard},
    time::Duration,
};

use iroh_blobs::{
    Hash,
    api::{Store, blobs::BlobStatus},
    hashseq::HashSeq,
    protocol::{ERR_INTERNAL, ERR_LIMIT, GetRequest, Request},
    provider::{
        self,
        events::{AbortReason, EventMask, EventSender, ObserveMode, ProviderMessage, RequestMode},
    },
    util::{RecvStream, SendStream},
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tokio_util::task::TaskTracker;
use tunnels::{Incoming, Listener, SessionId};

use crate::{
    have::{self, Holding},
    held::Held,
    stream::{BlobRecv, BlobSend},
};

/// Stream protocol: iroh-blobs' get protocol, one request for each stream.
pub(crate) const BLOBS: u16 = 1;
/// Stream protocol: the question what is here (see `have`).
pub(crate) const HAVE: u16 = 2;

/// Streams that are served for one group at a time.
const STREAMS: usize = 256;
/// Streams that are served in one session at a time: four times what a member of this version opens for its fetching.
const STREAMS_PER_SESSION: usize = 64;
/// Streams that are served by one node at a time, in all groups.
const STREAMS_PER_NODE: usize = 512;
/// No hash sequence of ours is longer; a larger blob is not read to be looked through.
const LARGEST_SEQUENCE: u64 = 16 * 1024 * 1024;
/// How long a question or a request may take to arrive, and how long somebody may watch which ranges of a blob are here. A member of this
/// version wants to hear that once.
const QUESTION: Duration = Duration::from_secs(30);

/// How many streams a node serves at once, in all of its groups together. Cheap to clone; all clones share.
#[derive(Clone, Debug)]
pub struct Serving(Arc<Semaphore>);

impl Default for Serving {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(STREAMS_PER_NODE)))
    }
}

/// A root, and all that it reaches.
#[derive(Debug)]
struct Reached {
    root: Hash,
    /// What may be told of if it is here.
    free: Sorted,
    /// What may be told of only if it was obtained in this group.
    files: Sorted,
}

/// Hashes in order: there may be hundreds of thousands, and a set would take half as much again, for a moment several times that.
#[derive(Debug)]
struct Sorted(Vec<Hash>);

impl Sorted {
    fn new(mut hashes: Vec<Hash>) -> Self {
        hashes.sort_unstable();
        hashes.dedup();
        hashes.shrink_to_fit();
        Self(hashes)
    }

    fn contains(&self, hash: &Hash) -> bool {
        self.0.binary_search(hash).is_ok()
    }

    fn retain(&mut self, keep: impl Fn(&Hash) -> bool) {
        self.0.retain(keep);
        self.0.shrink_to_fit();
    }
}

/// The blobs that the members of one group may be told of: what its repos' roots reach, and nothing else. Of the files of other
/// members only what was obtained in this group, since anybody can name any hash.
#[derive(Debug, Default)]
pub(crate) struct Reach {
    /// For each repo its current root, and what only the one before reaches, since somebody may be in the middle of fetching that.
    by_repo: RwLock<HashMap<String, Vec<Reached>>>,
    held: Arc<Held>,
}

impl Reach {
    pub(crate) fn new(held: Arc<Held>) -> Self {
        Self {
            by_repo: RwLock::default(),
            held,
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, HashMap<String, Vec<Reached>>> {
        self.by_repo.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces what the repo named `repo` reaches: `free` is what was checked or made here, `files` what only was named.
    pub(crate) fn set(&self, repo: &str, root: Hash, free: Vec<Hash>, files: Vec<Hash>) {
        let (free, files) = (Sorted::new(free), Sorted::new(files));
        let mut by_repo = self.by_repo.write().unwrap_or_else(PoisonError::into_inner);
        let roots = by_repo.entry(repo.to_owned()).or_default();
        roots.truncate(1);
        for before in roots.iter_mut() {
            before.free.retain(|hash| !free.contains(hash));
            before.files.retain(|hash| !files.contains(hash));
        }
        roots.insert(0, Reached { root, free, files });
    }

    /// What the repo named `repo` reaches is told to nobody any more.
    pub(crate) fn remove(&self, repo: &str) {
        let mut by_repo = self.by_repo.write().unwrap_or_else(PoisonError::into_inner);
        by_repo.remove(repo);
    }

    /// Whether `repo` is known to be at `root`.
    pub(crate) fn is_at(&self, repo: &str, root: &Hash) -> bool {
        self.read()
            .get(repo)
            .and_then(|roots| roots.first())
            .is_some_and(|known| known.root == *root)
    }

    /// Whether a member names `hash` as a file of theirs.
    pub(crate) fn names(&self, hash: &Hash) -> bool {
        let by_repo = self.read();
        by_repo
            .values()
            .flatten()
            .any(|reached| reached.files.contains(hash))
    }

    /// Whether the group may be told whether `hash` is here.
    pub(crate) fn contains(&self, hash: &Hash) -> bool {
        let by_repo = self.read();
        let mut named = false;
        for reached in by_repo.values().flatten() {
            if reached.free.contains(hash) {
                return true;
            }
            named |= reached.files.contains(hash);
        }
        drop(by_repo);
        named && self.held.contains(hash)
    }
}

/// How many streams each session has open.
#[derive(Default)]
struct Sessions(Mutex<HashMap<SessionId, usize>>);

/// The place of one stream.
struct Place {
    sessions: Arc<Sessions>,
    session: SessionId,
    _group: OwnedSemaphorePermit,
    _node: OwnedSemaphorePermit,
}

impl Sessions {
    fn lock(&self) -> MutexGuard<'_, HashMap<SessionId, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// None where the session has as many streams as it may.
    fn place(
        self: &Arc<Self>,
        session: SessionId,
        group: OwnedSemaphorePermit,
        node: OwnedSemaphorePermit,
    ) -> Option<Place> {
        let mut open = self.lock();
        let count = open.entry(session).or_default();
        if *count >= STREAMS_PER_SESSION {
            return None;
        }
        *count += 1;
        drop(open);
        Some(Place {
            sessions: self.clone(),
            session,
            _group: group,
            _node: node,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.sessions.lock();
        if let Some(count) = open.get_mut(&self.session) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.session);
            }
        }
    }
}

/// Serves one group's streams until the listener is closed.
pub(crate) async fn serve(
    listener: Arc<Listener>,
    store: Store,
    reach: Arc<Reach>,
    serving: Serving,
) {
    let tasks = TaskTracker::new();
    let (events, admission) = admission(store.clone(), reach.clone());
    let admission = tasks.spawn(admission);
    let free = Arc::new(Semaphore::new(STREAMS));
    let sessions = Arc::new(Sessions::default());
    while let Some(incoming) = listener.accept().await {
        let place = free
            .clone()
            .try_acquire_owned()
            .ok()
            .zip(serving.0.clone().try_acquire_owned().ok())
            .and_then(|(group, node)| sessions.place(incoming.session, group, node));
        let Some(place) = place else {
            refuse(incoming, ERR_LIMIT.into_inner());
            continue;
        };
        let (store, reach, events) = (store.clone(), reach.clone(), events.clone());
        tasks.spawn(async move {
            serve_stream(incoming, store, reach, events).await;
            drop(place);
        });
    }
    admission.abort();
    tasks.close();
    tasks.wait().await;
}

fn refuse(mut incoming: Incoming, code: u64) {
    incoming.recv.stop(code);
    incoming.send.reset(code);
}

async fn serve_stream(incoming: Incoming, store: Store, reach: Arc<Reach>, events: EventSender) {
    match incoming.protocol {
        BLOBS => {
            let pair = provider::StreamPair::new(
                0,
                BlobRecv::new(incoming.recv),
                BlobSend(incoming.send),
                events,
            );
            if let Err(error) = serve_blobs(pair, store, QUESTION).await {
                tracing::debug!(%error, "a blob was not served");
            }
        }
        HAVE => {
            if let Err(error) = answer_have(incoming, &store, &reach).await {
                tracing::debug!(%error, "a question was not answered");
            }
        }
        _ => refuse(incoming, ERR_INTERNAL.into_inner()),
    }
}

/// What iroh-blobs' `handle_stream` does, with a limit on the time that a place is held for a request that does not come, or by a watcher.
/// Whoever reads blobs takes as long as it takes.
async fn serve_blobs<R: RecvStream, W: SendStream>(
    mut pair: provider::StreamPair<R, W>,
    store: Store,
    patience: Duration,
) -> io::Result<()> {
    let request = timeout(patience, pair.read_request()).await?;
    let served = match request {
        Ok(Request::Get(request)) => provider::handle_get(pair, store, request).await,
        Ok(Request::GetMany(request)) => provider::handle_get_many(pair, store, request).await,
        Ok(Request::Observe(request)) => {
            timeout(patience, provider::handle_observe(pair, store, request)).await?
        }
        // It is refused.
        Ok(Request::Push(request)) => provider::handle_push(pair, store, request).await,
        Ok(_) => Ok(()),
        Err(error) => Err(error),
    };
    served.map_err(|error| io::Error::other(format!("{error:#}")))
}

async fn answer_have(incoming: Incoming, store: &Store, reach: &Reach) -> crate::Result<()> {
    let Incoming {
        mut send, mut recv, ..
    } = incoming;
    let question = timeout(QUESTION, recv.read_to_end(have::MAX_MESSAGE))
        .await
        .map_err(|_| crate::Error::Timeout { limit: QUESTION })??;
    let mut holdings = Vec::new();
    for hash in have::decode_request(&question)? {
        holdings.push(if reach.contains(&hash) {
            holding(store, hash).await
        } else {
            Holding::None
        });
    }
    send.write_all(&have::encode_reply(&holdings)).await?;
    send.finish()?;
    Ok(())
}

async fn holding(store: &Store, hash: Hash) -> Holding {
    match store.blobs().status(hash).await {
        Ok(BlobStatus::Complete { size }) => Holding::Complete { size },
        Ok(BlobStatus::Partial { .. }) => Holding::Partial,
        Ok(BlobStatus::NotFound) => Holding::None,
        Err(error) => {
            tracing::warn!(%error, "the store does not say what it has");
            Holding::None
        }
    }
}

/// An event sender for iroh-blobs' provider, and the task that answers it: a request passes when all that it asks for is reached.
fn admission(
    store: Store,
    reach: Arc<Reach>,
) -> (EventSender, impl Future<Output = ()> + Send + 'static) {
    let (events, mut requests) = EventSender::channel(
        64,
        EventMask {
            get: RequestMode::Intercept,
            get_many: RequestMode::Intercept,
            observe: ObserveMode::Intercept,
            push: RequestMode::Disabled,
            ..EventMask::DEFAULT
        },
    );
    let answer = |allowed: bool| {
        if allowed {
            Ok(())
        } else {
            Err(AbortReason::Permission)
        }
    };
    let task = async move {
        while let Some(request) = requests.recv().await {
            match request {
                ProviderMessage::GetRequestReceived(m) => {
                    let allowed = get_allowed(&m.inner.request, &store, &reach).await;
                    m.tx.send(answer(allowed)).await.ok();
                }
                ProviderMessage::GetManyRequestReceived(m) => {
                    let hashes = &m.inner.request.hashes;
                    let allowed = hashes.len() <= have::MAX_HASHES
                        && hashes.iter().all(|hash| reach.contains(hash));
                    m.tx.send(answer(allowed)).await.ok();
                }
                ProviderMessage::ObserveRequestReceived(m) => {
                    let allowed = reach.contains(&m.inner.request.hash);
                    m.tx.send(answer(allowed)).await.ok();
                }
                ProviderMessage::PushRequestReceived(m) => {
                    m.tx.send(answer(false)).await.ok();
                }
                _ => {}
            }
        }
    };
    (events, task)
}

/// A request for children of a hash sequence passes only when each child that it asks for may be told of as well: otherwise a
/// file that somebody made up of foreign hashes would open the blobs of other groups.
async fn get_allowed(request: &GetRequest, store: &Store, reach: &Reach) -> bool {
    if !reach.contains(&request.hash) {
        return false;
    }
    if request.ranges.is_blob() {
        return true;
    }
    match store.blobs().status(request.hash).await {
        Ok(BlobStatus::Complete { size }) if size <= LARGEST_SEQUENCE => {}
        _ => return false,
    }
    let Ok(bytes) = store.blobs().get_bytes(request.hash).await else {
        return false;
    };
    let Ok(children) = HashSeq::try_from(bytes) else {
        return false;
    };
    let asked = request.ranges.iter_non_empty_infinite();
    asked
        .map(|(offset, _)| offset)
        .skip_while(|offset| *offset == 0)
        .map_while(|offset| children.get(usize::try_from(offset - 1).ok()?))
        .all(|child| reach.contains(&child))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use iroh::endpoint::VarInt;
    use iroh_blobs::protocol::{ChunkRanges, ChunkRangesSeq, ObserveRequest};
    use store_adapter::{StoreOptions, VeilidStore};

    use super::*;

    #[test]
    fn a_file_that_was_only_named_is_not_told_of() {
        let held = Arc::new(Held::default());
        let reach = Reach::new(held.clone());
        let [root, list, file, other] = [b"root", b"list", b"file", b"oth."].map(Hash::new);
        reach.set("ben", root, vec![root, list], vec![file]);
        assert!(reach.contains(&root) && reach.contains(&list));
        assert!(!reach.contains(&file) && reach.names(&file));
        held.obtained(file);
        held.obtained(other);
        assert!(reach.contains(&file));
        assert!(!reach.contains(&other), "no root reaches it any more");
    }

    #[test]
    fn the_root_before_is_still_served_and_none_before_that() {
        let reach = Reach::default();
        let hashes: Vec<Hash> = (0..6_u8).map(|n| Hash::new([n])).collect();
        for (root, both) in hashes.iter().zip(hashes.windows(2)) {
            reach.set("me", *root, both.to_vec(), Vec::new());
        }
        // The last root is that of 4 and 5, the one before of 3 and 4.
        let reached: Vec<bool> = hashes.iter().map(|hash| reach.contains(hash)).collect();
        assert_eq!(reached, [false, false, false, true, true, true]);
    }

    #[tokio::test]
    async fn children_are_served_only_where_each_may_be_told_of() {
        let store = VeilidStore::in_memory(StoreOptions::default())
            .await
            .unwrap();
        let mine = store.add_slice(b"mine").await.unwrap().hash;
        let foreign = store.add_slice(b"foreign").await.unwrap().hash;
        let sequence: HashSeq = [mine, foreign].into_iter().collect();
        let sequence = bytes::Bytes::from(sequence);
        let sequence = store.add_bytes(sequence).await.unwrap().hash;
        let reach = Reach::default();
        reach.set("me", sequence, vec![sequence, mine], vec![foreign]);
        let allowed = async |request: GetRequest| get_allowed(&request, &store, &reach).await;
        assert!(allowed(GetRequest::blob(sequence)).await);
        assert!(allowed(GetRequest::blob(mine)).await);
        assert!(!allowed(GetRequest::blob(foreign)).await);
        assert!(!allowed(GetRequest::all(sequence)).await);
        let child = |index| {
            GetRequest::builder()
                .root(ChunkRanges::all())
                .child(index, ChunkRanges::all())
                .build(sequence)
        };
        assert!(allowed(child(0)).await);
        assert!(!allowed(child(1)).await);
        let without_root = ChunkRangesSeq::from_ranges([ChunkRanges::empty(), ChunkRanges::all()]);
        assert!(allowed(GetRequest::new(sequence, without_root)).await);
        store.close().await.unwrap();
    }

    #[test]
    fn a_session_has_its_share() {
        let sessions = Arc::new(Sessions::default());
        let all = Arc::new(Semaphore::new(1_000));
        let permit = || all.clone().try_acquire_owned().unwrap();
        let (one, other) = (
            SessionId::from_bytes([1; 16]),
            SessionId::from_bytes([2; 16]),
        );
        let mut places: Vec<_> = (0..STREAMS_PER_SESSION)
            .map(|_| sessions.place(one, permit(), permit()).unwrap())
            .collect();
        assert!(sessions.place(one, permit(), permit()).is_none());
        assert!(sessions.place(other, permit(), permit()).is_some());
        places.pop();
        assert!(sessions.place(one, permit(), permit()).is_some());
        drop(places);
        assert!(sessions.lock().is_empty());
        assert_eq!(all.available_permits(), 1_000);
    }

    /// Gives what is in it, and then either its end or nothing more.
    struct Asking {
        left: Bytes,
        ends: bool,
    }

    impl RecvStream for Asking {
        async fn recv_bytes(&mut self, len: usize) -> io::Result<Bytes> {
            if self.left.len() < len && !self.ends {
                std::future::pending::<()>().await;
            }
            Ok(self.left.split_to(len.min(self.left.len())))
        }

        async fn recv_bytes_exact(&mut self, len: usize) -> io::Result<Bytes> {
            let bytes = self.recv_bytes(len).await?;
            if bytes.len() < len {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            Ok(bytes)
        }

        async fn recv_exact(&mut self, target: &mut [u8]) -> io::Result<()> {
            target.copy_from_slice(&self.recv_bytes_exact(target.len()).await?);
            Ok(())
        }

        fn stop(&mut self, _: VarInt) -> io::Result<()> {
            Ok(())
        }

        fn id(&self) -> u64 {
            0
        }
    }

    /// Takes everything, and never stops.
    struct Watching;

    impl SendStream for Watching {
        async fn send_bytes(&mut self, _: Bytes) -> io::Result<()> {
            Ok(())
        }

        async fn send(&mut self, _: &[u8]) -> io::Result<()> {
            Ok(())
        }

        async fn sync(&mut self) -> io::Result<()> {
            Ok(())
        }

        fn reset(&mut self, _: VarInt) -> io::Result<()> {
            Ok(())
        }

        async fn stopped(&mut self) -> io::Result<Option<VarInt>> {
            std::future::pending().await
        }

        fn id(&self) -> u64 {
            0
        }
    }

    #[tokio::test]
    async fn a_place_is_not_held_for_a_request_that_does_not_come_or_by_a_watcher() {
        let store = VeilidStore::in_memory(StoreOptions::default())
            .await
            .unwrap();
        let hash = store.add_slice(b"mine").await.unwrap().hash;
        let request = Request::Observe(ObserveRequest::new(hash));
        let request = Bytes::from(postcard::to_stdvec(&request).unwrap());
        for (left, ends) in [
            (Bytes::new(), false),
            (request.slice(..3), false),
            (request, true),
        ] {
            let asking = Asking { left, ends };
            let pair = provider::StreamPair::new(0, asking, Watching, EventSender::DEFAULT);
            let served = serve_blobs(pair, (*store).clone(), Duration::from_millis(20));
            let served = timeout(QUESTION, served).await;
            let error = served.expect("it ends").unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        }
        store.close().await.unwrap();
    }
}
