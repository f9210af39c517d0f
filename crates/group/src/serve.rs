//! Answering the other members: what is here, and the blobs themselves.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use iroh_blobs::{
    Hash,
    api::{Store, blobs::BlobStatus},
    hashseq::HashSeq,
    protocol::{ERR_INTERNAL, ERR_LIMIT, GetRequest},
    provider::{
        self,
        events::{AbortReason, EventMask, EventSender, ObserveMode, ProviderMessage, RequestMode},
    },
};
use tokio::{sync::Semaphore, time::timeout};
use tokio_util::task::TaskTracker;
use tunnels::{Incoming, Listener};

use crate::{
    have::{self, Holding},
    stream::{BlobRecv, BlobSend},
};

/// Stream protocol: iroh-blobs' get protocol, one request for each stream.
pub(crate) const BLOBS: u16 = 1;
/// Stream protocol: the question what is here (see `have`).
pub(crate) const HAVE: u16 = 2;

/// Streams that are served at a time; more are told to come back.
const STREAMS: usize = 256;
/// No hash sequence of ours is longer; a larger blob is not read to be looked through.
const LARGEST_SEQUENCE: u64 = 1024 * 1024;
/// How long a question may take to arrive.
const QUESTION: Duration = Duration::from_secs(30);

/// A root, and all that it reaches.
type Reached = (Hash, HashSet<Hash>);

/// The blobs that the members of one group may be told of: what its repos' roots reach, and nothing else.
#[derive(Debug, Default)]
pub(crate) struct Reach {
    /// For each repo its current root and the one before, since somebody may be in the middle of fetching that.
    by_repo: RwLock<HashMap<String, Vec<Reached>>>,
}

impl Reach {
    /// Replaces what the repo named `repo` reaches.
    pub(crate) fn set(&self, repo: &str, root: Hash, hashes: HashSet<Hash>) {
        let mut by_repo = self.by_repo.write().unwrap_or_else(PoisonError::into_inner);
        let roots = by_repo.entry(repo.to_owned()).or_default();
        roots.retain(|(known, _)| *known != root);
        roots.insert(0, (root, hashes));
        roots.truncate(2);
    }

    /// Whether `repo` is known to be at `root`.
    pub(crate) fn is_at(&self, repo: &str, root: &Hash) -> bool {
        self.by_repo
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(repo)
            .and_then(|roots| roots.first())
            .is_some_and(|(known, _)| known == root)
    }

    /// Whether any root of the group reaches `hash`.
    pub(crate) fn contains(&self, hash: &Hash) -> bool {
        self.by_repo
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .flatten()
            .any(|(_, hashes)| hashes.contains(hash))
    }
}

/// Serves one group's streams until the listener is closed.
pub(crate) async fn serve(listener: Arc<Listener>, store: Store, reach: Arc<Reach>) {
    let tasks = TaskTracker::new();
    let (events, admission) = admission(store.clone(), reach.clone());
    let admission = tasks.spawn(admission);
    let free = Arc::new(Semaphore::new(STREAMS));
    while let Some(incoming) = listener.accept().await {
        let Ok(permit) = free.clone().try_acquire_owned() else {
            refuse(incoming, ERR_LIMIT.into_inner());
            continue;
        };
        let (store, reach, events) = (store.clone(), reach.clone(), events.clone());
        tasks.spawn(async move {
            serve_stream(incoming, store, reach, events).await;
            drop(permit);
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
                BlobRecv(incoming.recv),
                BlobSend(incoming.send),
                events,
            );
            if let Err(error) = provider::handle_stream(pair, store).await {
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
                    let allowed = m.inner.request.hashes.iter().all(|h| reach.contains(h));
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

/// A request for a hash sequence with its children passes only when every child is reached as well: otherwise a file that
/// somebody made up of foreign hashes would open the blobs of other groups.
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
    match store.blobs().get_bytes(request.hash).await {
        Ok(bytes) => HashSeq::try_from(bytes)
            .is_ok_and(|children| children.iter().all(|child| reach.contains(&child))),
        Err(_) => false,
    }
}
