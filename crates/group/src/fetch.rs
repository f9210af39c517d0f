//! Fetching blobs from everybody who has them, in parallel and verified.
//!
//! Each blob is cut into pieces of about a mebibyte that are asked for by the blob's own hash, minus what is already here. Every
//! holder works on pieces until none is left; a piece whose holder fails goes back to the queue, and what arrived of it stays.
//! iroh-blobs verifies each chunk group before it is written, so nothing that a holder sends can do more than cost time.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::{StreamExt, stream::FuturesUnordered};
use iroh_blobs::{
    Hash,
    api::{Store, remote::GetProgressItem},
    get::{
        self, GetError,
        fsm::{AtBlobHeaderNextError, DecodeError},
    },
    protocol::{ChunkRanges, ChunkRangesExt, GetRequest},
};
use tokio::{sync::Notify, time::timeout};

use crate::{
    Error, Result,
    have::{self, Holding},
    ignore::Fault,
    peers::Peer,
    progress::{FetchState, Reporter},
    serve,
    stream::{BlobRecv, BlobSend},
};

/// Size of a piece in bytes: large enough to fill a window, small enough to move to a faster holder.
const PIECE: u64 = 1024 * 1024;
/// A blob is cut into so many pieces at most; beyond that they get larger.
const MOST_PIECES: u64 = 65_536;
/// Streams that are open to one holder at a time.
const STREAMS: usize = 4;
/// A holder that sends nothing for so long has failed the piece.
const STALL: Duration = Duration::from_secs(20);
/// How long a holder may take to say what it has.
const ANSWER: Duration = Duration::from_secs(30);
/// A holder that fails so many pieces in a row is left alone.
const FAILURES: u32 = 3;

/// A blob to be fetched.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Want {
    pub(crate) hash: Hash,
    /// The size in bytes, where a sealed entry tells it; otherwise the blob is fetched in one piece.
    pub(crate) size: Option<u64>,
    /// No more bytes than this are fetched.
    pub(crate) limit: u64,
}

#[derive(Clone, Debug)]
struct Piece {
    hash: Hash,
    ranges: ChunkRanges,
}

#[derive(Debug, Default)]
struct Queue {
    todo: VecDeque<Piece>,
    /// Pieces under way, and which holders work on each.
    under_way: Vec<(Piece, Vec<usize>)>,
}

impl Queue {
    fn position(&self, piece: &Piece) -> Option<usize> {
        self.under_way
            .iter()
            .position(|(p, _)| p.hash == piece.hash && p.ranges == piece.ranges)
    }
}

enum Next {
    Piece(Piece),
    Wait,
    Done,
}

/// Fetches all of `wants` that are not here yet. Dropping the future stops it; what was verified stays.
///
/// The caller has to protect the blobs from garbage collection. `fault` is told of each peer that behaved (`None`) or failed.
///
/// # Errors
/// [`Error::NobodyHas`] names what is still missing once everybody has been tried.
pub(crate) async fn fetch(
    store: &Store,
    peers: &[Arc<Peer>],
    wants: &[Want],
    reporter: &Reporter,
    fault: &(dyn Fn(&Peer, Option<Fault>) + Sync),
) -> Result<()> {
    let mut wanted = Vec::new();
    let mut queue = Queue::default();
    for want in wants {
        let pieces = pieces(store, want).await?;
        if !pieces.is_empty() {
            wanted.push(want.hash);
            queue.todo.extend(pieces);
        }
    }
    if wanted.is_empty() {
        return Ok(());
    }
    reporter.state(FetchState::Finding);
    let job = Job {
        store,
        queue: Mutex::new(queue),
        changed: Notify::new(),
        reporter,
        fault,
    };
    let mut workers: FuturesUnordered<_> = peers
        .iter()
        .enumerate()
        .map(|(index, peer)| job.work_with(index, peer, &wanted))
        .collect();
    while workers.next().await.is_some() {
        if job.lock().todo.is_empty() && job.lock().under_way.is_empty() {
            break;
        }
    }
    drop(workers);
    let mut missing = Vec::new();
    for want in wants {
        if !is_complete(store, want.hash).await? {
            if beyond_limit(store, want).await? {
                return Err(Error::TooLarge { limit: want.limit });
            }
            missing.push(want.hash);
        }
    }
    if missing.is_empty() {
        Ok(())
    } else {
        Err(Error::NobodyHas { missing })
    }
}

/// Whether all of a blob is here and verified.
pub(crate) async fn is_complete(store: &Store, hash: Hash) -> Result<bool> {
    store
        .blobs()
        .has(hash)
        .await
        .map_err(|e| Error::Store(std::io::Error::other(e)))
}

async fn here(store: &Store, hash: Hash) -> Result<ChunkRanges> {
    let bitfield = store
        .blobs()
        .observe(hash)
        .await
        .map_err(|e| Error::Store(std::io::Error::other(e)))?;
    Ok(bitfield.ranges)
}

/// How many verified bytes of a blob are here.
pub(crate) async fn bytes_here(store: &Store, hash: Hash) -> Result<u64> {
    let bitfield = store
        .blobs()
        .observe(hash)
        .await
        .map_err(|e| Error::Store(std::io::Error::other(e)))?;
    Ok(bitfield.total_bytes())
}

/// Everything up to the limit is here, and still the blob is not complete.
async fn beyond_limit(store: &Store, want: &Want) -> Result<bool> {
    if want.size.is_some() {
        return Ok(false);
    }
    let allowed = ChunkRanges::bytes(0..want.limit);
    Ok((&allowed - &here(store, want.hash).await?).is_empty())
}

async fn pieces(store: &Store, want: &Want) -> Result<Vec<Piece>> {
    if is_complete(store, want.hash).await? {
        return Ok(Vec::new());
    }
    let Some(size) = want.size else {
        return Ok(vec![Piece {
            hash: want.hash,
            ranges: ChunkRanges::bytes(0..want.limit),
        }]);
    };
    if size > want.limit {
        return Err(Error::TooLarge { limit: want.limit });
    }
    let here = here(store, want.hash).await?;
    // The size is another member's word, so the number of pieces must not follow it without end.
    let piece = PIECE.max(size.div_ceil(MOST_PIECES).next_multiple_of(PIECE));
    let mut pieces = Vec::new();
    let mut start = 0_u64;
    loop {
        let end = start.saturating_add(piece);
        let last = end >= size;
        // The last piece always covers the last chunk, which proves the size.
        let ranges = if last {
            ChunkRanges::bytes(start..size.max(1)) | ChunkRanges::last_chunk()
        } else {
            ChunkRanges::bytes(start..end)
        };
        let ranges = &ranges - &here;
        if !ranges.is_empty() {
            pieces.push(Piece {
                hash: want.hash,
                ranges,
            });
        }
        if last {
            return Ok(pieces);
        }
        start = end;
    }
}

struct Job<'a> {
    store: &'a Store,
    queue: Mutex<Queue>,
    changed: Notify,
    reporter: &'a Reporter,
    fault: &'a (dyn Fn(&Peer, Option<Fault>) + Sync),
}

/// What one holder is known to have, shared by the streams to it.
struct Holder<'a> {
    index: usize,
    peer: &'a Peer,
    has: Mutex<HashMap<Hash, Holding>>,
    failures: AtomicU64,
}

impl Holder<'_> {
    fn may_have(&self, hash: &Hash) -> bool {
        !matches!(lock(&self.has).get(hash), None | Some(Holding::None))
    }

    fn given_up(&self) -> bool {
        self.failures.load(Ordering::Relaxed) >= u64::from(FAILURES)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere leaves plain data behind, which stays usable.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Job<'_> {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        lock(&self.queue)
    }

    /// Asks `peer` what it has, then fetches pieces from it until there is nothing left for it to do.
    async fn work_with(&self, index: usize, peer: &Peer, wanted: &[Hash]) {
        let holdings = match timeout(ANSWER, ask(peer, wanted)).await {
            Ok(Ok(holdings)) => holdings,
            Ok(Err(error)) => {
                tracing::debug!(peer = %peer.short(), %error, "a member does not say what it has");
                (self.fault)(peer, Some(Fault::Silent));
                return;
            }
            Err(_) => {
                tracing::debug!(peer = %peer.short(), "a member is silent");
                (self.fault)(peer, Some(Fault::Silent));
                return;
            }
        };
        let holder = Holder {
            index,
            peer,
            has: Mutex::new(holdings),
            failures: AtomicU64::new(0),
        };
        let mut streams: FuturesUnordered<_> =
            (0..STREAMS).map(|_| self.work_on_stream(&holder)).collect();
        while streams.next().await.is_some() {}
    }

    async fn work_on_stream(&self, holder: &Holder<'_>) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Registered before the queue is looked at, so that no change in between is missed.
            changed.as_mut().enable();
            let piece = match self.next(holder) {
                Next::Piece(piece) => piece,
                Next::Done => return,
                Next::Wait => {
                    changed.await;
                    continue;
                }
            };
            self.reporter.state(FetchState::Fetching);
            let outcome = self.fetch_piece(holder.peer, &piece).await;
            self.finish(holder, piece, outcome);
        }
    }

    fn next(&self, holder: &Holder<'_>) -> Next {
        let mut queue = self.lock();
        if holder.given_up() || (queue.todo.is_empty() && queue.under_way.is_empty()) {
            return Next::Done;
        }
        if let Some(index) = queue.todo.iter().position(|p| holder.may_have(&p.hash))
            && let Some(piece) = queue.todo.remove(index)
        {
            queue.under_way.push((piece.clone(), vec![holder.index]));
            return Next::Piece(piece);
        }
        // Nothing new to do: the oldest piece of another holder is asked a second time, and the first to finish wins.
        if let Some((piece, holders)) = queue.under_way.iter_mut().find(|(p, holders)| {
            holders.len() == 1 && !holders.contains(&holder.index) && holder.may_have(&p.hash)
        }) {
            holders.push(holder.index);
            return Next::Piece(piece.clone());
        }
        // What others work on can come back to the queue; nothing else can, so waiting for anything else would never end.
        if queue
            .under_way
            .iter()
            .any(|(p, _)| holder.may_have(&p.hash))
        {
            Next::Wait
        } else {
            Next::Done
        }
    }

    fn finish(&self, holder: &Holder<'_>, piece: Piece, outcome: Result<bool, Failure>) {
        let done = outcome.is_ok();
        match outcome {
            Ok(true) => {
                holder.failures.store(0, Ordering::Relaxed);
                (self.fault)(holder.peer, None);
            }
            Ok(false) => {}
            Err(Failure::NotThere) => {
                lock(&holder.has).insert(piece.hash, Holding::None);
            }
            Err(Failure::Lied) => {
                holder
                    .failures
                    .store(u64::from(FAILURES), Ordering::Relaxed);
                (self.fault)(holder.peer, Some(Fault::Lied));
            }
            Err(Failure::Other) => {
                if holder.failures.fetch_add(1, Ordering::Relaxed) + 1 == u64::from(FAILURES) {
                    (self.fault)(holder.peer, Some(Fault::Silent));
                }
            }
        }
        let mut queue = self.lock();
        if let Some(position) = queue.position(&piece) {
            let (_, holders) = &mut queue.under_way[position];
            holders.retain(|index| *index != holder.index);
            if done {
                queue.under_way.remove(position);
            } else if holders.is_empty() {
                queue.under_way.remove(position);
                queue.todo.push_front(piece);
            }
        }
        drop(queue);
        self.changed.notify_waiters();
    }

    /// Fetches what is missing of a piece; `false` where others had done it.
    async fn fetch_piece(&self, peer: &Peer, piece: &Piece) -> Result<bool, Failure> {
        let here = here(self.store, piece.hash)
            .await
            .map_err(|_| Failure::Other)?;
        let missing = &piece.ranges - &here;
        if missing.is_empty() || is_complete(self.store, piece.hash).await.unwrap_or(false) {
            return Ok(false);
        }
        let (send, recv) = timeout(ANSWER, peer.session.open(serve::BLOBS))
            .await
            .map_err(|_| Failure::Other)?
            .map_err(|_| Failure::Other)?;
        let streams = get::StreamPair::new(0, BlobRecv(recv), BlobSend(send));
        let request = GetRequest::blob_ranges(piece.hash, missing);
        let mut items = Box::pin(self.store.remote().execute_get(streams, request).stream());
        let mut before = 0;
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.lock().position(piece).is_none() {
                // Somebody else finished it.
                return Ok(false);
            }
            let item = tokio::select! {
                item = timeout(STALL, items.next()) => item,
                () = changed => continue,
            };
            match item {
                Err(_) | Ok(None) => return Err(Failure::Other),
                Ok(Some(GetProgressItem::Progress(bytes))) => {
                    self.reporter.fetched(bytes.saturating_sub(before));
                    before = bytes;
                }
                Ok(Some(GetProgressItem::Done(stats))) => {
                    self.reporter
                        .fetched(stats.payload_bytes_read.saturating_sub(before));
                    return Ok(true);
                }
                Ok(Some(GetProgressItem::Error(error))) => {
                    tracing::debug!(peer = %peer.short(), %error, "a piece failed");
                    return Err(Failure::from(error));
                }
            }
        }
    }
}

/// Why a piece was not fetched.
#[derive(Debug, PartialEq, Eq)]
enum Failure {
    NotThere,
    Lied,
    Other,
}

impl From<GetError> for Failure {
    fn from(error: GetError) -> Self {
        match error {
            GetError::AtBlobHeaderNext {
                source: AtBlobHeaderNextError::NotFound { .. },
                ..
            } => Self::NotThere,
            GetError::Decode {
                source:
                    DecodeError::ParentHashMismatch { .. } | DecodeError::LeafHashMismatch { .. },
                ..
            } => Self::Lied,
            // An early end of the stream among others: a partial holder, or one that went away.
            _ => Self::Other,
        }
    }
}

/// Asks one member which of `hashes` they have.
pub(crate) async fn ask(peer: &Peer, hashes: &[Hash]) -> Result<HashMap<Hash, Holding>> {
    let mut known = HashMap::with_capacity(hashes.len());
    for batch in hashes.chunks(have::MAX_HASHES) {
        let (mut send, mut recv) = peer.session.open(serve::HAVE).await?;
        send.write_all(&have::encode_request(batch)).await?;
        send.finish()?;
        let reply = recv.read_to_end(have::MAX_MESSAGE).await?;
        let holdings = have::decode_reply(&reply, batch.len())?;
        known.extend(batch.iter().copied().zip(holdings));
    }
    Ok(known)
}
