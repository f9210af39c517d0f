//! One request to one holder: iroh-blobs' get protocol, verified on arrival, into the store.

use std::{io, mem, num::NonZeroU64, pin::pin, sync::Arc, task::Poll, time::Duration};

use bao_tree::{
    BaoTree,
    io::{
        BaoContentItem, DecodeError,
        fsm::{ResponseDecoder, ResponseDecoderNext},
    },
};
use futures::poll;
use iroh_blobs::{
    Hash,
    api::{
        Store,
        blobs::{BlobStatus, ImportBaoHandle},
    },
    hashseq::HashSeq,
    protocol::{
        ChunkRanges, ChunkRangesExt, ERR_INTERNAL, ERR_LIMIT, ERR_PERMISSION, GetManyRequest,
        GetRequest, ObserveItem, ObserveRequest, Request,
    },
    store::IROH_BLOCK_SIZE,
    util::{RecvStream, RecvStreamAsyncStreamReader},
};
use tokio::{task::JoinHandle, time::Instant};

use super::Engine;
use crate::{
    Error, Result,
    group::Inner,
    peers::Peer,
    sched::{End, Kind, Part, Start},
    serve,
    stream::BlobRecv,
};

/// Chunk groups on their way to the store, for one stream.
const ON_THE_WAY: usize = 16;
/// What came together goes to the store together, up to so many bytes.
const TOGETHER: u64 = 64 * 1024;
/// Of a larger blob it is written down at once that it was obtained in this group, in bytes; of others when they are complete.
const WORTH_A_MARK: u64 = 256 * 1024;
/// How often a stream is said to be alive that brings bytes, but nothing whole yet.
const SIGN_OF_LIFE: Duration = Duration::from_secs(1);
/// The longest description of what a holder has, in bytes.
const LONGEST_RANGES: u64 = 256 * 1024;
/// No list of names that comes with a collection is larger, in bytes.
const LONGEST_NAMES: u64 = 16 * 1024 * 1024;
/// A hash sequence that is larger is no collection of ours, in bytes.
const LONGEST_SEQUENCE: u64 = 16 * 1024 * 1024;

/// Why a blob did not come.
enum Failure {
    NotThere,
    WrongSize,
    TooLarge,
    Lied,
    Busy,
    BrokeOff,
    Store(Error),
}

/// Does one task, and says how it ended.
pub(super) async fn run(inner: Arc<Inner>, engine: Arc<Engine>, peer: Arc<Peer>, start: Start) {
    let task = start.task;
    let job = Job {
        inner: &inner,
        engine: &engine,
        peer: &peer,
        start: &start,
    };
    let end = match job.work().await {
        Ok(()) => End::Done,
        Err((hash, failure)) => match failure {
            Failure::NotThere | Failure::WrongSize => End::NotThere(hash),
            // Nothing proves it, so it says something of this holder only.
            Failure::TooLarge => End::TooLarge(hash),
            Failure::Lied => End::Lied,
            Failure::Busy => End::Busy,
            Failure::BrokeOff => End::BrokeOff,
            Failure::Store(error) => {
                engine.store_failed(hash, error);
                End::NotStored
            }
        },
    };
    if end != End::Done {
        tracing::debug!(peer = %peer.short(), ?end, "a request was not answered in full");
    }
    engine.finished(task, end);
}

struct Job<'a> {
    inner: &'a Arc<Inner>,
    engine: &'a Arc<Engine>,
    peer: &'a Peer,
    start: &'a Start,
}

impl Job<'_> {
    async fn work(&self) -> Result<(), (Hash, Failure)> {
        let mut wanted = Vec::with_capacity(self.start.parts.len());
        for part in &self.start.parts {
            let missing = self
                .still_missing(part)
                .await
                .map_err(|failure| (part.hash, failure))?;
            if missing.is_empty() && part.kind == Kind::Blob {
                self.engine.part_done(self.start.task, part.hash);
            } else {
                wanted.push((part, missing));
            }
        }
        // The order in which iroh's request of many blobs names them, and the holder sends them.
        wanted.sort_by_key(|(part, _)| part.hash);
        let Some((first, missing)) = wanted.first() else {
            return Ok(());
        };
        let request = match (&wanted[..], first.kind) {
            ([_], Kind::Blob) => Request::Get(GetRequest::blob_ranges(first.hash, missing.clone())),
            ([_], Kind::Collection) => Request::Get(
                GetRequest::builder()
                    .root(missing.clone())
                    .child(0, ChunkRanges::bytes(0..LONGEST_NAMES))
                    .build(first.hash),
            ),
            _ => {
                let mut request = GetManyRequest::builder();
                for (part, missing) in &wanted {
                    request = request.hash(part.hash, missing.clone());
                }
                Request::GetMany(request.build())
            }
        };
        let mut reader = self
            .request(&request)
            .await
            .map_err(|error| (first.hash, Failure::of(&error)))?;
        for (part, missing) in wanted {
            reader = self
                .receive_part(part, missing, reader)
                .await
                .map_err(|failure| (part.hash, failure))?;
            self.engine.part_done(self.start.task, part.hash);
        }
        Ok(())
    }

    async fn still_missing(&self, part: &Part) -> Result<ChunkRanges, Failure> {
        if part.whole {
            return Ok(part.ranges.clone());
        }
        let here = self.engine.store.blobs().observe(part.hash).await;
        let here = here.map_err(Failure::store)?;
        Ok(&part.ranges - &here.ranges)
    }

    async fn request(&self, request: &Request) -> io::Result<BlobRecv> {
        let mut reader = ask(self.peer, request).await?;
        let (engine, task) = (self.engine.clone(), self.start.task);
        let mut told = Instant::now();
        reader.on_bytes(move || {
            if told.elapsed() >= SIGN_OF_LIFE {
                told = Instant::now();
                engine.alive(task);
            }
        });
        Ok(reader)
    }

    async fn receive_part(
        &self,
        part: &Part,
        missing: ChunkRanges,
        mut reader: BlobRecv,
    ) -> Result<BlobRecv, Failure> {
        if !missing.is_empty() {
            reader = self
                .receive(
                    part.hash,
                    missing,
                    (part.size, part.limit),
                    part.hash,
                    reader,
                )
                .await?;
        }
        if part.kind == Kind::Collection {
            let names = first_child(&self.engine.store, part.hash)
                .await
                .map_err(Failure::Store)?;
            // What is no collection is found to be none by whoever wanted it.
            if let Some(names) = names {
                let all = ChunkRanges::bytes(0..LONGEST_NAMES);
                let limits = (None, LONGEST_NAMES);
                reader = self.receive(names, all, limits, part.hash, reader).await?;
            }
        }
        Ok(reader)
    }

    /// Receives some ranges of a blob; what is verified of it counts for the blob `of`.
    async fn receive(
        &self,
        hash: Hash,
        ranges: ChunkRanges,
        limits: (Option<u64>, u64),
        of: Hash,
        mut reader: BlobRecv,
    ) -> Result<BlobRecv, Failure> {
        let mut header = [0; 8];
        reader
            .recv_exact(&mut header)
            .await
            .map_err(|error| Failure::before(&error))?;
        let got = u64::from_le_bytes(header);
        if limits.0.is_some_and(|size| size != got) {
            return Err(Failure::WrongSize);
        }
        if got > limits.1 {
            return Err(Failure::TooLarge);
        }
        let Some(size) = NonZeroU64::new(got) else {
            return if hash == Hash::EMPTY {
                Ok(reader)
            } else {
                Err(Failure::Lied)
            };
        };
        let store = &self.engine.store;
        let import = store
            .import_bao(hash, size, ON_THE_WAY)
            .await
            .map_err(Failure::store)?;
        let tree = BaoTree::new(got, IROH_BLOCK_SIZE);
        let stream = RecvStreamAsyncStreamReader::new(reader);
        let mut decoder = ResponseDecoder::new(hash.into(), ranges, tree, stream);
        let mut arrived = Arrived {
            job: self,
            import,
            hash,
            of,
            size: got,
            items: Vec::new(),
            bytes: 0,
            any: false,
            marking: None,
        };
        let received = loop {
            let mut next = pin!(decoder.next());
            let next = match poll!(next.as_mut()) {
                Poll::Ready(next) => next,
                // What came together is handed on together: each hand-over wakes the store, and whoever waits.
                Poll::Pending => {
                    if let Err(failure) = arrived.hand_over().await {
                        break Err(failure);
                    }
                    next.await
                }
            };
            match next {
                ResponseDecoderNext::Done(stream) => break Ok(stream.into_inner()),
                ResponseDecoderNext::More((rest, Ok(item))) => {
                    decoder = rest;
                    if arrived.push(item)
                        && let Err(failure) = arrived.hand_over().await
                    {
                        break Err(failure);
                    }
                }
                ResponseDecoderNext::More((_, Err(error))) => {
                    break Err(Failure::decoding(&error, arrived.any()));
                }
            }
        };
        let received = match arrived.hand_over().await {
            Ok(()) => received,
            Err(failure) => received.and(Err(failure)),
        };
        // What came is written down, also where it broke off.
        arrived.end().await?;
        received
    }
}

/// What came of a blob and is verified, and is not in the store's hands yet.
struct Arrived<'a> {
    job: &'a Job<'a>,
    import: ImportBaoHandle,
    hash: Hash,
    of: Hash,
    size: u64,
    items: Vec<BaoContentItem>,
    /// Those of the items.
    bytes: u64,
    /// Whether one with bytes was handed over.
    any: bool,
    /// Writes down that the blob was obtained, while more comes.
    marking: Option<JoinHandle<Result<(), Error>>>,
}

impl Arrived<'_> {
    /// Takes one more; whether it is time to hand over.
    fn push(&mut self, item: BaoContentItem) -> bool {
        if let BaoContentItem::Leaf(leaf) = &item {
            self.bytes += leaf.data.len() as u64;
        }
        self.items.push(item);
        self.bytes >= TOGETHER
    }

    async fn hand_over(&mut self) -> Result<(), Failure> {
        let bytes = mem::take(&mut self.bytes);
        for item in self.items.drain(..) {
            if self.import.tx.send(item).await.is_err() {
                return Err(Failure::store(broken()));
            }
        }
        if bytes == 0 {
            return Ok(());
        }
        if !mem::replace(&mut self.any, true) {
            let inner = self.job.inner.clone();
            // Whoever sends a true byte of it has it.
            inner.held.obtained(self.hash);
            if self.size > WORTH_A_MARK {
                // Without the mark, all of it would be fetched once more after a crash.
                let write = async move { inner.held.write(&inner.ledger).await };
                self.marking = Some(tokio::spawn(write));
            }
        }
        self.job.engine.came(self.job.start.task, self.of, bytes);
        Ok(())
    }

    /// Whether a byte of it came.
    fn any(&self) -> bool {
        self.any || self.bytes > 0
    }

    /// Waits until what was handed over is in the store.
    async fn end(self) -> Result<(), Failure> {
        drop(self.import.tx);
        let stored = self.import.rx.await.map_err(|_| Failure::store(broken()));
        if let Some(marking) = self.marking {
            let marked = marking.await.map_err(Failure::store)?;
            marked.map_err(Failure::Store)?;
        }
        stored?.map_err(Failure::store)
    }
}

impl Failure {
    /// The store refused something.
    fn store(cause: impl std::error::Error + 'static) -> Self {
        Self::Store(Error::store(cause))
    }

    /// What a stream's error says.
    fn of(error: &io::Error) -> Self {
        match code(error) {
            Some(code) if code == ERR_LIMIT.into_inner() => Self::Busy,
            Some(code) if code == ERR_PERMISSION.into_inner() => Self::NotThere,
            _ => Self::BrokeOff,
        }
    }

    /// The same, before anything came of a blob: the provider gives up a stream at a blob that it does not have.
    fn before(error: &io::Error) -> Self {
        match code(error) {
            Some(code) if code == ERR_INTERNAL.into_inner() => Self::NotThere,
            None if error.kind() == io::ErrorKind::UnexpectedEof => Self::NotThere,
            _ => Self::of(error),
        }
    }

    fn decoding(error: &DecodeError, any: bool) -> Self {
        match error {
            DecodeError::ParentHashMismatch(_) | DecodeError::LeafHashMismatch(_) => Self::Lied,
            DecodeError::Io(error) if !any => Self::before(error),
            DecodeError::Io(error) => Self::of(error),
            // An early end: a holder of a part, or one that went away.
            DecodeError::ParentNotFound(_) | DecodeError::LeafNotFound(_) if !any => Self::NotThere,
            DecodeError::ParentNotFound(_) | DecodeError::LeafNotFound(_) => Self::BrokeOff,
        }
    }
}

/// The code with which the other side ended a stream.
fn code(error: &io::Error) -> Option<u64> {
    let error = error.get_ref()?.downcast_ref::<tunnels::Error>()?;
    match error {
        tunnels::Error::Reset { code } | tunnels::Error::Stopped { code } => Some(*code),
        _ => None,
    }
}

/// Sends one of iroh's requests on a stream of its own, and gives what comes back.
async fn ask(peer: &Peer, request: &Request) -> io::Result<BlobRecv> {
    let bytes = postcard::to_stdvec(request).map_err(io::Error::other)?;
    let (mut send, recv) = peer.session.open(serve::BLOBS).await?;
    send.write_all(&bytes).await?;
    send.finish()?;
    Ok(BlobRecv::new(recv))
}

/// Which ranges of a blob a holder has at the moment.
///
/// # Errors
/// Those of the stream; [`Error::BadMessage`].
pub(super) async fn observe(peer: &Peer, hash: Hash) -> Result<ChunkRanges> {
    let malformed = || Error::BadMessage {
        what: "observed ranges",
    };
    let request = Request::Observe(ObserveRequest::new(hash));
    let mut recv = ask(peer, &request)
        .await
        .map_err(|_| Error::MemberDoesNotAnswer)?
        .into_inner();
    // A length as postcard writes it, then so many bytes. Dropping the stream ends the observation.
    let mut length = 0_u64;
    for shift in (0..64).step_by(7) {
        let byte = *recv.read_exact(1).await?.first().ok_or_else(malformed)?;
        length |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            break;
        }
    }
    if length > LONGEST_RANGES {
        return Err(malformed());
    }
    let length = usize::try_from(length).map_err(|_| malformed())?;
    let item = recv.read_exact(length).await?;
    let item: ObserveItem = postcard::from_bytes(&item).map_err(|_| malformed())?;
    Ok(item.ranges)
}

/// The first link of a hash sequence; none where there is none, or the blob is not complete.
pub(super) async fn first_child(store: &Store, hash: Hash) -> Result<Option<Hash>> {
    match store.status(hash).await.map_err(Error::store)? {
        BlobStatus::Complete { size } if size <= LONGEST_SEQUENCE => {}
        _ => return Ok(None),
    }
    let bytes = store.get_bytes(hash).await.map_err(Error::store)?;
    Ok(HashSeq::new(bytes).and_then(|sequence| sequence.get(0)))
}

/// The store ended an import, and does not say why.
fn broken() -> io::Error {
    io::ErrorKind::BrokenPipe.into()
}
