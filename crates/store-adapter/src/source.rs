//! A blob as its readers see it, and the reading of its groups.

use std::{collections::HashMap, io, sync::Arc};

use bao_tree::ChunkRanges;
use bytes::Bytes;
use iroh_blobs::Hash;
use tokio::{sync::OwnedSemaphorePermit, task::JoinHandle};

use crate::{
    Error, Result,
    backend::SegmentFile,
    blob::{Blob, Partial, chunks_of_groups},
    core::{Core, SMALL, blocking},
    index::{Entry, Place, file_name},
    seal::{self, Key, SEALED_SEGMENT, SEGMENT, Segments, sealed_len, sealed_offset},
    tree::{Pair, tree_of},
};

/// Groups that are read at once where there is room for it, 256 KiB, which the cache of a core holds; and where there is not.
const WINDOW: usize = 16;
const NARROW: usize = 4;
/// A blob of at most this size is opened where it is asked for: that takes less than to hand it to another thread and back.
const INLINE: u64 = 64 * 1024;

/// How often a blob is looked at that changes meanwhile.
const SOURCE_TRIES: usize = 8;

/// A blob as it is when somebody begins to read it.
pub(crate) struct Source {
    pub(crate) blob: Arc<Blob>,
    pub(crate) size: u64,
    pub(crate) present: ChunkRanges,
    pub(crate) content: Content,
}

/// Where its bytes are.
pub(crate) enum Content {
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
pub(crate) enum Unread {
    /// It is not what was sealed.
    Damaged(u64),
    Io(io::Error),
}

impl Core {
    /// `None` if there is no such blob.
    pub(crate) async fn source(&self, blob: &Arc<Blob>, pairs: bool) -> Result<Option<Source>> {
        for _ in 0..SOURCE_TRIES {
            if let Some(source) = self.source_now(blob, pairs).await? {
                return Ok(source);
            }
            // It changed while it was looked at, or a change was broken off: look again.
            blob.doubt();
        }
        Err(Error::blobs("a blob changes faster than it can be read"))
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
    pub(crate) async fn pair(&self, core: &Core, index: u64) -> Result<Option<Pair>> {
        match &self.content {
            Content::Memory { pairs, .. } => {
                let index = usize::try_from(index).unwrap_or(usize::MAX);
                Ok(pairs.get(index).copied().flatten())
            }
            Content::File { entry, .. } => core.pair(&self.blob, entry, index).await,
        }
    }

    /// Begins to read some groups. What is asked of each is done where it is read, off the async threads.
    pub(crate) fn read<T: Send + 'static>(
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
    pub(crate) async fn lost(&self, core: &Core, groups: &[(u64, u64)]) {
        if let Content::File { entry, .. } = &self.content
            && let Err(error) = core.lose(&self.blob, entry, groups).await
        {
            tracing::warn!(%error, "damage could not be written down");
        }
    }

    /// Notes that a group cannot be read, with all others of the blob that cannot either: damage rarely comes alone, and so
    /// it is fetched again at once instead of one group for each attempt to read.
    pub(crate) async fn damaged(&self, core: &Core, found: u64) {
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

pub(crate) enum Reading<T> {
    Done(Vec<Result<T, Unread>>),
    Going(JoinHandle<Vec<Result<T, Unread>>>),
}

impl<T> Reading<T> {
    pub(crate) async fn get(self) -> io::Result<Vec<Result<T, Unread>>> {
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

/// How many groups may be read at once now.
pub(crate) fn room(core: &Core) -> (usize, Option<OwnedSemaphorePermit>) {
    let permits = u32::try_from(WINDOW).unwrap_or(u32::MAX);
    let permit = core.ahead.clone().try_acquire_many_owned(permits).ok();
    let most = if permit.is_some() { WINDOW } else { NARROW };
    (most, permit)
}
