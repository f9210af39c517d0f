//! Verified encodings.

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
use iroh_blobs::{Hash, api::proto::Bitfield, store::IROH_BLOCK_SIZE};
use irpc::channel::mpsc;
use range_collections::range_set::RangeSetRange;
use tokio::sync::OwnedSemaphorePermit;

use crate::{
    Error, Result,
    blob::Blob,
    core::Core,
    seal::{SEGMENT, segment_len},
    source::{Content, Reading, Source, Unread, room},
    tree::{self, Pair, halves, pair_of, parent_hash},
};

/// Windows that are read ahead for one export.
const WINDOWS: usize = 8;
const LOG_GROUP_CHUNKS: u32 = 4;

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
            return Err(Error::blobs("a blob cannot be read"));
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
