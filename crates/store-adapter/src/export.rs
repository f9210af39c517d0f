//! What goes out: verified encodings, ranges, files, and what is observed.

use std::{
    collections::{HashMap, VecDeque},
    io,
    sync::Arc,
};

use bao_tree::{
    BaoTree, ChunkNum, ChunkRanges, ChunkRangesRef, TreeNode,
    io::{EncodeError, Leaf, Parent, mixed::EncodedItem, mixed::traverse_selected_rec},
    iter::BaoChunk,
};
use bytes::Bytes;
use iroh_blobs::{
    Hash,
    api::proto::{Bitfield, ExportProgressItem, ExportRangesItem, ExportRangesRequest},
    store::IROH_BLOCK_SIZE,
};
use irpc::channel::mpsc;
use range_collections::range_set::RangeSetRange;
use tokio::{io::AsyncWriteExt, sync::OwnedSemaphorePermit, task::JoinHandle};

use crate::{
    Error, Result,
    backend::SegmentFile,
    blob::{Blob, Partial, chunks_of_groups},
    core::{Core, SMALL, blocking},
    index::{Entry, Place, file_name},
    seal::{self, Key, SEALED_SEGMENT, SEGMENT, Segments, sealed_len, sealed_offset, segment_len},
    tree::{self, Pair, halves, pair_of, parent_hash, tree_of},
};

/// Groups that are read at once where there is room for it, 256 KiB, which the cache of a core holds; and where there is not.
const WINDOW: usize = 16;
const NARROW: usize = 4;
/// Windows that are read ahead for one export.
const WINDOWS: usize = 8;
const LOG_GROUP_CHUNKS: u32 = 4;
/// A blob of at most this size is opened where it is asked for: that takes less than to hand it to another thread and back.
const INLINE: u64 = 64 * 1024;

/// How often a blob is looked at that changes meanwhile.
const SOURCE_TRIES: usize = 8;

/// A blob as it is when somebody begins to read it.
struct Source {
    blob: Arc<Blob>,
    size: u64,
    present: ChunkRanges,
    content: Content,
}

/// Where its bytes are.
enum Content {
    Memory {
        groups: Vec<Bytes>,
        pairs: Vec<Option<Pair>>,
        /// Whether all of it has the right hash.
        verified: bool,
    },
    File {
        entry: Arc<Entry>,
        file: Arc<dyn SegmentFile>,
        segments: Arc<Segments>,
        /// Groups that are here in part.
        fragments: HashMap<u64, Bytes>,
    },
}

/// Why a group could not be read.
enum Unread {
    /// It is not what was sealed.
    Damaged(u64),
    Io(io::Error),
}

impl Core {
    /// `None` if there is no such blob.
    async fn source(&self, blob: &Arc<Blob>, pairs: bool) -> Result<Option<Source>> {
        for _ in 0..SOURCE_TRIES {
            if let Some(source) = self.source_now(blob, pairs).await? {
                return Ok(source);
            }
            // It changed while it was looked at, or a change was broken off: look again.
            blob.doubt();
        }
        Err(Error::Blobs {
            cause: "a blob changes faster than it can be read".to_owned(),
        })
    }

    /// `None` to look again.
    async fn source_now(&self, blob: &Arc<Blob>, pairs: bool) -> Result<Option<Option<Source>>> {
        if blob.hash == Hash::EMPTY {
            return Ok(Some(Some(Source {
                blob: blob.clone(),
                size: 0,
                present: ChunkRanges::all(),
                content: Content::Memory {
                    groups: vec![Bytes::new()],
                    pairs: Vec::new(),
                    verified: true,
                },
            })));
        }
        let view = self.view(blob).await?;
        let Some(entry) = view.entry else {
            return Ok(Some(None));
        };
        let source = |size, present, content| Source {
            blob: blob.clone(),
            size,
            present,
            content,
        };
        match (entry.place, entry.complete) {
            (Place::Pack { .. }, _) => {
                let Some(content) = self.small(blob, &entry, pairs).await? else {
                    return Ok(Some(None));
                };
                Ok(Some(Some(source(entry.size, ChunkRanges::all(), content))))
            }
            (Place::Row, _) => {
                let work = blob.work.lock().await;
                let Some(Partial::Small(partial)) = &work.partial else {
                    // Completed, or gone, in between.
                    return Ok(None);
                };
                let bitfield = blob.view().bitfield;
                let mut data = partial.data.clone();
                // No more than a small blob, whatever somebody said about its size.
                data.resize(data.len().max(bitfield.size().min(SMALL) as usize), 0);
                let data = Bytes::from(data);
                let starts = (0..data.len()).step_by(SEGMENT);
                let content = Content::Memory {
                    groups: starts
                        .map(|start| data.slice(start..data.len().min(start + SEGMENT)))
                        .collect(),
                    pairs: partial.pairs(),
                    verified: false,
                };
                Ok(Some(Some(source(
                    bitfield.size(),
                    bitfield.ranges,
                    content,
                ))))
            }
            (Place::File, complete) => {
                let mut fragments = HashMap::new();
                let mut file = None;
                let (mut size, mut present) = (entry.size, ChunkRanges::all());
                if !complete {
                    let work = blob.work.lock().await;
                    let Some(Partial::File(partial)) = &work.partial else {
                        return Ok(None);
                    };
                    let bitfield = blob.view().bitfield;
                    fragments = partial
                        .fragments
                        .iter()
                        .map(|(group, fragment)| (*group, fragment.data.clone().into()))
                        .collect();
                    file = Some(partial.file.clone());
                    (size, present) = (bitfield.size(), bitfield.ranges);
                }
                let file = match file {
                    Some(file) => file,
                    None => match self.open_file(&entry.id, file_name).await {
                        Ok(file) => file,
                        Err(Error::Io { source, .. })
                            if source.kind() == io::ErrorKind::NotFound =>
                        {
                            self.lose(blob, &entry, &[(0, u64::MAX)]).await?;
                            return Ok(Some(None));
                        }
                        Err(error) => return Err(error),
                    },
                };
                let segments = Arc::new(Segments::new(&entry.key())?);
                let content = Content::File {
                    entry,
                    file,
                    segments,
                    fragments,
                };
                Ok(Some(Some(source(size, present, content))))
            }
        }
    }

    /// The bytes of a small blob, and its tree if that is asked for. `None` if they cannot be read, and then it counts as missing.
    async fn small(&self, blob: &Blob, entry: &Arc<Entry>, tree: bool) -> Result<Option<Content>> {
        let mut entry = entry.clone();
        // Once more if a garbage collection moved it meanwhile.
        for _ in 0..2 {
            let Place::Pack { pack, offset } = entry.place else {
                return Ok(None);
            };
            if let Some(sealed) = self.packed(&entry, &pack, offset).await? {
                let (key, hash) = (entry.key(), blob.hash);
                let open = move || open_small(&key, sealed, hash, tree);
                let content = if entry.size <= INLINE {
                    open()
                } else {
                    blocking(open).await?
                };
                if content.is_some() {
                    return Ok(content);
                }
            }
            let now = blob.view().entry;
            match now {
                Some(now) if now.complete && now.place != entry.place => entry = now,
                _ => break,
            }
        }
        self.lose(blob, &entry, &[(0, u64::MAX)]).await?;
        Ok(None)
    }
}

fn open_small(key: &Key, sealed: Vec<u8>, hash: Hash, tree: bool) -> Option<Content> {
    let groups = seal::open_small(key, sealed)?;
    let mut pairs = Vec::new();
    if tree {
        let found;
        (found, pairs) = tree_of(groups.iter().map(|group| &group[..]));
        if found != hash {
            return None;
        }
    }
    Some(Content::Memory {
        groups,
        pairs,
        verified: tree,
    })
}

impl Source {
    async fn pair(&self, core: &Core, index: u64) -> Result<Option<Pair>> {
        match &self.content {
            Content::Memory { pairs, .. } => {
                let index = usize::try_from(index).unwrap_or(usize::MAX);
                Ok(pairs.get(index).copied().flatten())
            }
            Content::File { entry, .. } => core.pair(&self.blob, entry, index).await,
        }
    }

    /// Begins to read some groups. What is asked of each is done where it is read, off the async threads.
    fn read<T: Send + 'static>(
        &self,
        groups: Vec<u64>,
        each: impl Fn(u64, Bytes) -> T + Send + 'static,
    ) -> Reading<T> {
        match &self.content {
            Content::Memory { groups: data, .. } => {
                let read = groups.into_iter().map(|group| {
                    let at = usize::try_from(group).unwrap_or(usize::MAX);
                    Ok(each(group, data.get(at).cloned().unwrap_or_default()))
                });
                Reading::Done(read.collect())
            }
            Content::File {
                file,
                segments,
                fragments,
                ..
            } => {
                let (file, segments, size) = (file.clone(), segments.clone(), self.size);
                let fragments: HashMap<u64, Bytes> = groups
                    .iter()
                    .filter_map(|group| Some((*group, fragments.get(group)?.clone())))
                    .collect();
                Reading::Going(tokio::task::spawn_blocking(move || {
                    read_groups(&*file, &segments, size, &groups, &fragments)
                        .into_iter()
                        .zip(groups)
                        .map(|(data, group)| data.map(|data| each(group, data)))
                        .collect()
                }))
            }
        }
    }

    /// Notes that some groups cannot be read.
    async fn lost(&self, core: &Core, groups: &[(u64, u64)]) {
        if let Content::File { entry, .. } = &self.content
            && let Err(error) = core.lose(&self.blob, entry, groups).await
        {
            tracing::warn!(%error, "damage could not be written down");
        }
    }

    /// Notes that a group cannot be read, with all others of the blob that cannot either: damage rarely comes alone, and so
    /// it is fetched again at once instead of one group for each attempt to read.
    async fn damaged(&self, core: &Core, found: u64) {
        let mut damaged = vec![(found, found + 1)];
        let groups: Vec<u64> = (0..self.size.div_ceil(SEGMENT as u64))
            .filter(|group| chunks_of_groups(*group, group + 1).is_subset(&self.present))
            .collect();
        for groups in groups.chunks(WINDOW) {
            let Ok(read) = self.read(groups.to_vec(), |_, _| ()).get().await else {
                break;
            };
            for unread in read.into_iter().filter_map(Result::err) {
                match unread {
                    Unread::Damaged(group) if group != found => damaged.push((group, group + 1)),
                    Unread::Damaged(_) | Unread::Io(_) => {}
                }
            }
        }
        self.lost(core, &damaged).await;
    }
}

enum Reading<T> {
    Done(Vec<Result<T, Unread>>),
    Going(JoinHandle<Vec<Result<T, Unread>>>),
}

impl<T> Reading<T> {
    async fn get(self) -> io::Result<Vec<Result<T, Unread>>> {
        match self {
            Self::Done(read) => Ok(read),
            Self::Going(task) => task
                .await
                .map_err(|_| io::Error::other("the reading thread is gone")),
        }
    }
}

fn read_groups(
    file: &dyn SegmentFile,
    segments: &Segments,
    size: u64,
    groups: &[u64],
    fragments: &HashMap<u64, Bytes>,
) -> Vec<Result<Bytes, Unread>> {
    let mut read = Vec::with_capacity(groups.len());
    for run in groups
        .chunk_by(|a, b| a + 1 == *b && !fragments.contains_key(a) && !fragments.contains_key(b))
    {
        if let Some(data) = fragments.get(&run[0]) {
            read.push(Ok(data.clone()));
            continue;
        }
        let last = run[run.len() - 1];
        let len = (run.len() - 1) * SEALED_SEGMENT + sealed_len(last, size);
        let mut sealed = vec![0; len];
        if let Err(error) = file.read_exact_at(&mut sealed, sealed_offset(run[0])) {
            if error.kind() != io::ErrorKind::UnexpectedEof {
                let kind = error.kind();
                read.push(Err(Unread::Io(error)));
                read.extend(run[1..].iter().map(|_| Err(Unread::Io(kind.into()))));
                continue;
            }
            // Shorter than it should be: each by itself, so that only what is missing is lost.
            for group in run {
                let mut sealed = vec![0; sealed_len(*group, size)];
                let opened = file
                    .read_exact_at(&mut sealed, sealed_offset(*group))
                    .ok()
                    .and_then(|()| segments.open(*group, &mut sealed));
                read.push(match opened {
                    Some(len) => {
                        sealed.truncate(len);
                        Ok(sealed.into())
                    }
                    None => Err(Unread::Damaged(*group)),
                });
            }
            continue;
        }
        let opened: Vec<Option<usize>> = run
            .iter()
            .zip(sealed.chunks_mut(SEALED_SEGMENT))
            .map(|(group, sealed)| segments.open(*group, sealed))
            .collect();
        let plain = Bytes::from(sealed);
        for (at, (group, len)) in run.iter().zip(opened).enumerate() {
            let start = at * SEALED_SEGMENT;
            read.push(match len {
                Some(len) => Ok(plain.slice(start..start + len)),
                None => Err(Unread::Damaged(*group)),
            });
        }
    }
    read
}

/// One step of a verified encoding.
enum Step {
    Parent {
        node: TreeNode,
        is_root: bool,
        left: bool,
        right: bool,
    },
    Leaf {
        start: ChunkNum,
    },
}

/// What has to be known of a leaf to encode it.
#[derive(Clone)]
struct Job {
    group: u64,
    is_root: bool,
    /// None for the whole group.
    ranges: Option<ChunkRanges>,
    present: bool,
}

/// An encoded leaf with its hash.
type Encoded = (blake3::Hash, Vec<EncodedItem>);

struct Window {
    steps: Vec<Step>,
    leaves: Option<Reading<Option<Encoded>>>,
    _permit: Option<OwnedSemaphorePermit>,
}

/// Sends the encoding of some ranges.
pub(crate) async fn export_bao(
    core: &Core,
    blob: Arc<Blob>,
    ranges: ChunkRanges,
    tx: mpsc::Sender<EncodedItem>,
) {
    let source = match core.source(&blob, true).await {
        Ok(Some(source)) => source,
        Ok(None) => {
            let missing = io::Error::new(io::ErrorKind::NotFound, "hash not found");
            let _ = tx.send(EncodeError::Io(missing).into()).await;
            return;
        }
        Err(error) => {
            let _ = tx.send(EncodeError::Io(error.into_io()).into()).await;
            return;
        }
    };
    let last = match encode(core, &source, &ranges, &tx).await {
        Ok(()) => EncodedItem::Done,
        Err(Stop::Error(error)) => error.into(),
        // Nobody listens any more.
        Err(Stop::Closed) => return,
    };
    let _ = tx.send(last).await;
}

enum Stop {
    Error(EncodeError),
    Closed,
}

impl From<EncodeError> for Stop {
    fn from(error: EncodeError) -> Self {
        Self::Error(error)
    }
}

async fn send(tx: &mpsc::Sender<EncodedItem>, item: EncodedItem) -> Result<(), Stop> {
    tx.send(item).await.map_err(|_| Stop::Closed)
}

async fn encode(
    core: &Core,
    source: &Source,
    ranges: &ChunkRanges,
    tx: &mpsc::Sender<EncodedItem>,
) -> Result<(), Stop> {
    send(tx, EncodedItem::Size(source.size)).await?;
    let tree = BaoTree::new(source.size, IROH_BLOCK_SIZE);
    let ranges = truncated(ranges, source.size);
    let mut chunks = tree.ranges_pre_order_chunks_iter_ref(&ranges, 0);
    if let Content::Memory {
        groups,
        pairs,
        verified: true,
    } = &source.content
    {
        return encode_verified(groups, pairs, chunks, tx).await;
    }
    let mut stack = vec![*source.blob.hash.as_bytes()];
    let mut ahead = VecDeque::with_capacity(WINDOWS);
    for _ in 0..WINDOWS {
        ahead.extend(window(core, source, &mut chunks));
    }
    while let Some(Window {
        steps,
        leaves,
        _permit,
    }) = ahead.pop_front()
    {
        let read = match leaves {
            Some(leaves) => leaves.get().await.map_err(EncodeError::Io)?,
            None => Vec::new(),
        };
        ahead.extend(window(core, source, &mut chunks));
        let mut read = read.into_iter();
        for step in steps {
            // There is one for each step, since each step below the root was pushed by the one above it.
            let expected = stack.pop().unwrap_or_default();
            match step {
                Step::Parent {
                    node,
                    is_root,
                    left,
                    right,
                } => {
                    let index = pair_of(node).ok_or(EncodeError::ParentHashMismatch(node))?;
                    let pair = source
                        .pair(core, index)
                        .await
                        .map_err(|error| EncodeError::Io(error.into_io()))?;
                    let good = pair.filter(|pair| parent_hash(pair, is_root) == expected);
                    let Some(pair) = good else {
                        // It is there if anything below it is.
                        let below = ChunkRanges::from(node.chunk_range());
                        if !source.present.is_disjoint(&below) {
                            source.lost(core, &[tree::place(index).0.groups()]).await;
                        }
                        return Err(EncodeError::ParentHashMismatch(node).into());
                    };
                    let (l, r) = halves(&pair);
                    if right {
                        stack.push(r);
                    }
                    if left {
                        stack.push(l);
                    }
                    let pair = (blake3::Hash::from(l), blake3::Hash::from(r));
                    send(tx, Parent { node, pair }.into()).await?;
                }
                Step::Leaf { start } => {
                    let mismatch = EncodeError::LeafHashMismatch(start);
                    match read.next() {
                        Some(Ok(Some((hash, items)))) if *hash.as_bytes() == expected => {
                            for item in items {
                                send(tx, item).await?;
                            }
                        }
                        Some(Err(Unread::Damaged(group))) => {
                            source.damaged(core, group).await;
                            return Err(mismatch.into());
                        }
                        Some(Err(Unread::Io(error))) => return Err(EncodeError::Io(error).into()),
                        // Not here, or here in part.
                        _ => return Err(mismatch.into()),
                    }
                }
            }
        }
    }
    Ok(())
}

/// Sends the encoding of what is in memory and was verified as a whole.
async fn encode_verified<'a>(
    groups: &[Bytes],
    pairs: &[Option<Pair>],
    chunks: impl Iterator<Item = BaoChunk<&'a ChunkRangesRef>>,
    tx: &mpsc::Sender<EncodedItem>,
) -> Result<(), Stop> {
    let at = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
    for chunk in chunks {
        match chunk {
            BaoChunk::Parent { node, .. } => {
                let pair = pair_of(node).and_then(|index| pairs.get(at(index)).copied().flatten());
                let (l, r) = halves(&pair.ok_or(EncodeError::ParentHashMismatch(node))?);
                let pair = (blake3::Hash::from(l), blake3::Hash::from(r));
                send(tx, Parent { node, pair }.into()).await?;
            }
            BaoChunk::Leaf {
                start_chunk,
                is_root,
                ranges,
                ..
            } => {
                let group = start_chunk.0 >> LOG_GROUP_CHUNKS;
                let data = groups.get(at(group)).cloned();
                let data = data.ok_or(EncodeError::LeafHashMismatch(start_chunk))?;
                if ranges.is_all() {
                    let offset = group * SEGMENT as u64;
                    send(tx, Leaf { offset, data }.into()).await?;
                    continue;
                }
                let mut items = Vec::new();
                traverse_selected_rec(
                    start_chunk,
                    data,
                    is_root,
                    ranges,
                    LOG_GROUP_CHUNKS,
                    true,
                    &mut items,
                );
                for item in items {
                    send(tx, item).await?;
                }
            }
        }
    }
    Ok(())
}

/// Takes the next steps, and begins to read their leaves.
fn window<'a>(
    core: &Core,
    source: &Source,
    chunks: &mut impl Iterator<Item = BaoChunk<&'a ChunkRangesRef>>,
) -> Option<Window> {
    let (most, permit) = room(core);
    let mut steps = Vec::new();
    let mut jobs = Vec::new();
    while jobs.len() < most
        && let Some(chunk) = chunks.next()
    {
        match chunk {
            BaoChunk::Parent {
                node,
                is_root,
                left,
                right,
                ..
            } => steps.push(Step::Parent {
                node,
                is_root,
                left,
                right,
            }),
            BaoChunk::Leaf {
                start_chunk,
                is_root,
                ranges,
                ..
            } => {
                let group = start_chunk.0 >> LOG_GROUP_CHUNKS;
                steps.push(Step::Leaf { start: start_chunk });
                let end = ChunkNum::chunks(
                    (group * SEGMENT as u64) + segment_len(group, source.size) as u64,
                );
                let all = ChunkRanges::from(start_chunk..end.max(ChunkNum(start_chunk.0 + 1)));
                jobs.push(Job {
                    group,
                    is_root,
                    ranges: (!ranges.is_all()).then(|| ranges.intersection(&ChunkRanges::all())),
                    present: all.is_subset(&source.present),
                });
            }
        }
    }
    if steps.is_empty() {
        return None;
    }
    let groups: Vec<u64> = jobs.iter().map(|job| job.group).collect();
    let leaves = (!groups.is_empty()).then(|| {
        let jobs: HashMap<u64, Job> = jobs.into_iter().map(|job| (job.group, job)).collect();
        let present: Vec<u64> = groups.clone();
        source.read(present, move |group, data| encode_leaf(&jobs, group, data))
    });
    Some(Window {
        steps,
        leaves,
        _permit: permit,
    })
}

/// The items of a leaf with the hash of all its data. `None` if it is not all here.
fn encode_leaf(jobs: &HashMap<u64, Job>, group: u64, data: Bytes) -> Option<Encoded> {
    let job = jobs.get(&group).filter(|job| job.present)?;
    let offset = group * SEGMENT as u64;
    match &job.ranges {
        None => {
            let hash = if job.is_root {
                blake3::hash(&data)
            } else {
                blake3::Hash::from_bytes(tree::group_hash(group, &data))
            };
            Some((hash, vec![Leaf { offset, data }.into()]))
        }
        Some(ranges) => {
            let mut items = Vec::new();
            let start = ChunkNum(group << LOG_GROUP_CHUNKS);
            let hash = traverse_selected_rec(
                start,
                data,
                job.is_root,
                ranges,
                LOG_GROUP_CHUNKS,
                true,
                &mut items,
            );
            Some((hash, items))
        }
    }
}

/// Ranges that reach past the end mean the last chunk, which proves the size. The same as bao-tree does for itself.
fn truncated(ranges: &ChunkRanges, size: u64) -> ChunkRanges {
    let last = ChunkNum(ChunkNum::chunks(size).0.saturating_sub(1));
    let boundaries = ranges.boundaries();
    let keep = match boundaries.binary_search(&last) {
        // The last chunk begins a range, which is left open.
        Ok(at) if at % 2 == 0 => at + 1,
        // It ends one, and nothing follows.
        Ok(at) if boundaries.len() == at + 1 => at + 1,
        // It ends one, and what follows means the last chunk.
        Ok(at) => at,
        Err(at) if at % 2 == 0 && boundaries.len() > at => at + 1,
        Err(at) => at,
    };
    ChunkRanges::new(boundaries[..keep].into()).unwrap_or_else(|| ranges.clone())
}

/// Sends the plain bytes of some ranges. Each segment is authenticated when it is opened, and what lies in it was verified
/// when it came in.
pub(crate) async fn export_ranges(
    core: &Core,
    blob: Arc<Blob>,
    request: ExportRangesRequest,
    tx: mpsc::Sender<ExportRangesItem>,
) {
    if let Err(error) = ranges(core, &blob, &request, &tx).await {
        // Whoever asked may have gone away.
        let _ = tx.send(ExportRangesItem::Error(error.into())).await;
    }
}

fn not_found(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, what.to_owned())
}

async fn ranges(
    core: &Core,
    blob: &Arc<Blob>,
    request: &ExportRangesRequest,
    tx: &mpsc::Sender<ExportRangesItem>,
) -> io::Result<()> {
    let source = core
        .source(blob, false)
        .await
        .map_err(Error::into_io)?
        .ok_or_else(|| not_found("hash not found"))?;
    let size = source.size;
    let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
    tx.send(ExportRangesItem::Size(size)).await.map_err(gone)?;
    for range in request.ranges.iter() {
        let (start, end) = match range {
            RangeSetRange::Range(range) => (size.min(*range.start), size.min(*range.end)),
            RangeSetRange::RangeFrom(range) => (size.min(*range.start), size),
        };
        let wanted = ChunkRanges::from(ChunkNum::full_chunks(start)..ChunkNum::chunks(end));
        if start < end && !wanted.is_subset(&source.present) {
            return Err(not_found("a part of the range is missing"));
        }
        let mut reader = RangeReader::new(core, &source, start, end);
        while let Some((offset, data)) = reader.next().await? {
            let leaf = Leaf { offset, data };
            tx.send(leaf.into()).await.map_err(gone)?;
        }
    }
    Ok(())
}

type Ahead = (Reading<(u64, Bytes)>, Option<OwnedSemaphorePermit>);

/// Reads the bytes of a range in order.
struct RangeReader<'a> {
    core: &'a Core,
    source: &'a Source,
    start: u64,
    end: u64,
    /// The group that is read next.
    next: u64,
    ahead: Option<Ahead>,
    ready: VecDeque<Result<(u64, Bytes), Unread>>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl<'a> RangeReader<'a> {
    fn new(core: &'a Core, source: &'a Source, start: u64, end: u64) -> Self {
        let mut reader = Self {
            core,
            source,
            start,
            end,
            next: start / SEGMENT as u64,
            ahead: None,
            ready: VecDeque::new(),
            _permit: None,
        };
        reader.ahead = reader.begin();
        reader
    }

    fn begin(&mut self) -> Option<Ahead> {
        let stop = self.end.div_ceil(SEGMENT as u64);
        if self.start >= self.end || self.next >= stop {
            return None;
        }
        let (most, permit) = room(self.core);
        let stop = (self.next + most as u64).min(stop);
        let groups = (self.next..stop).collect();
        self.next = stop;
        let reading = self.source.read(groups, |group, data| (group, data));
        Some((reading, permit))
    }

    /// The next bytes with their offset; none at the end.
    async fn next(&mut self) -> io::Result<Option<(u64, Bytes)>> {
        while self.ready.is_empty() {
            let Some((reading, permit)) = self.ahead.take() else {
                return Ok(None);
            };
            self.ready = reading.get().await?.into();
            self._permit = permit;
            self.ahead = self.begin();
        }
        match self.ready.pop_front() {
            None => Ok(None),
            Some(Ok((group, data))) => {
                let offset = group * SEGMENT as u64;
                // Inside the group.
                let from = self.start.saturating_sub(offset) as usize;
                let to = (self.end - offset).min(data.len() as u64) as usize;
                Ok(Some((offset + from as u64, data.slice(from..to))))
            }
            Some(Err(Unread::Io(error))) => Err(error),
            Some(Err(Unread::Damaged(group))) => {
                self.source.damaged(self.core, group).await;
                Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "a part of the blob is damaged and counts as missing now",
                ))
            }
        }
    }
}

/// How many groups may be read at once now.
fn room(core: &Core) -> (usize, Option<OwnedSemaphorePermit>) {
    let permits = u32::try_from(WINDOW).unwrap_or(u32::MAX);
    let permit = core.ahead.clone().try_acquire_many_owned(permits).ok();
    let most = if permit.is_some() { WINDOW } else { NARROW };
    (most, permit)
}

/// Writes a blob to a file outside. What is missing of a partial blob is zeros there.
pub(crate) async fn export_path(
    core: &Core,
    blob: Arc<Blob>,
    target: std::path::PathBuf,
    tx: mpsc::Sender<ExportProgressItem>,
) {
    let item = match export_file(core, &blob, &target, &tx).await {
        Ok(()) => ExportProgressItem::Done,
        Err(error) => ExportProgressItem::Error(error.into()),
    };
    // Whoever asked may have gone away.
    let _ = tx.send(item).await;
}

async fn export_file(
    core: &Core,
    blob: &Arc<Blob>,
    target: &std::path::Path,
    tx: &mpsc::Sender<ExportProgressItem>,
) -> io::Result<()> {
    if !target.is_absolute() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "path is not absolute",
        ));
    }
    let source = core
        .source(blob, false)
        .await
        .map_err(Error::into_io)?
        .ok_or_else(|| not_found("hash not found"))?;
    let size = source.size;
    let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
    if let Some(parent) = target.parent() {
        tokio::fs::create_dir_all(parent).await?;
    }
    let mut file = tokio::fs::File::create(target).await?;
    tx.send(ExportProgressItem::Size(size))
        .await
        .map_err(gone)?;
    file.set_len(size).await?;
    for range in source.present.iter() {
        let (start, end) = match range {
            RangeSetRange::Range(range) => (range.start.to_bytes(), range.end.to_bytes()),
            RangeSetRange::RangeFrom(range) => (range.start.to_bytes(), size),
        };
        let (start, end) = (start.min(size), end.min(size));
        tokio::io::AsyncSeekExt::seek(&mut file, io::SeekFrom::Start(start)).await?;
        let mut reader = RangeReader::new(core, &source, start, end);
        while let Some((offset, data)) = reader.next().await? {
            file.write_all(&data).await?;
            // Progress is a courtesy.
            let _ = tx.try_send(ExportProgressItem::CopyProgress(offset)).await;
        }
    }
    file.flush().await
}

/// Sends what is here of a blob, now and at every change, until nobody listens.
pub(crate) async fn observe(core: &Core, blob: Arc<Blob>, tx: mpsc::Sender<Bitfield>) {
    let mut changes = blob.view.subscribe();
    if blob.hash == Hash::EMPTY {
        if tx.send(Bitfield::complete(0)).await.is_ok() {
            tx.closed().await;
        }
        return;
    }
    if let Err(error) = core.view(&blob).await {
        tracing::debug!(%error, "a blob cannot be observed");
        return;
    }
    changes.mark_unchanged();
    let mut last = blob.view().bitfield;
    if tx.send(last.clone()).await.is_err() {
        return;
    }
    loop {
        tokio::select! {
            () = tx.closed() => return,
            changed = changes.changed() => {
                if changed.is_err() {
                    return;
                }
                let now = blob.view().bitfield;
                if now != last {
                    if tx.send(now.clone()).await.is_err() {
                        return;
                    }
                    last = now;
                }
            }
        }
    }
}

/// Reads all of a blob that is here and verifies it against its hash. What is damaged counts as missing afterwards.
///
/// Gives the bytes that were read, and whether anything was damaged.
pub(crate) async fn verify(core: &Core, hash: Hash) -> Result<(u64, bool)> {
    let blob = core.blob(hash);
    let before = core.view(&blob).await?;
    let Some(entry) = before.entry else {
        return Ok((0, false));
    };
    let bytes = before.bitfield.total_bytes();
    let mut damaged = false;
    loop {
        let view = core.view(&blob).await?;
        if view.entry.is_none() {
            return Ok((bytes, true));
        }
        // Groups that are here in part cannot be verified by the tree, but were authenticated when they were loaded.
        let whole = whole_groups(&view.bitfield, view.bitfield.size());
        let (tx, rx) = tokio::sync::mpsc::channel(64);
        let export = export_bao(core, blob.clone(), whole, tx.into());
        let (good, ()) = tokio::join!(drain(rx), export);
        if good {
            return Ok((bytes, damaged));
        }
        let after = core.view(&blob).await?;
        if after.bitfield == view.bitfield && after.entry.as_ref().map(|e| e.id) == Some(entry.id) {
            // Nothing was lost by it, so it is not damage: the disk could not be read.
            return Err(Error::Blobs {
                cause: "a blob cannot be read".to_owned(),
            });
        }
        damaged = true;
    }
}

async fn drain(mut rx: tokio::sync::mpsc::Receiver<EncodedItem>) -> bool {
    let mut done = false;
    while let Some(item) = rx.recv().await {
        done = matches!(item, EncodedItem::Done);
    }
    done
}

/// The groups that are here as a whole.
fn whole_groups(bitfield: &Bitfield, size: u64) -> ChunkRanges {
    if bitfield.ranges.is_all() {
        return ChunkRanges::all();
    }
    let mut whole = ChunkRanges::empty();
    let end = ChunkNum::chunks(size);
    for range in bitfield.ranges.iter() {
        let (start, stop) = match range {
            RangeSetRange::Range(range) => (range.start.0, range.end.0),
            RangeSetRange::RangeFrom(range) => (range.start.0, u64::MAX),
        };
        let group = 1u64 << LOG_GROUP_CHUNKS;
        let first = start.div_ceil(group) * group;
        let last = if stop >= end.0 {
            end.0
        } else {
            stop / group * group
        };
        if first < last {
            whole |= ChunkRanges::from(ChunkNum(first)..ChunkNum(last));
        }
    }
    whole
}
