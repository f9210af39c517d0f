//! One blob in memory: what is known of it, and what of a partial one is not written down yet.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Instant,
};

use bao_tree::{ChunkNum, ChunkRanges};
use bytes::Bytes;
use iroh_blobs::{
    Hash,
    api::{blobs::BlobStatus, proto::Bitfield},
};
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, watch};

use crate::{
    backend::SegmentFile,
    core::{SMALL, lock},
    index::{Entry, Id},
    seal::{SEGMENT, segment_len},
    tree::{Page, PageId, Pair, place},
};

const CHUNK: usize = 1024;

/// What readers and observers see.
#[derive(Debug, Clone, Default)]
pub(crate) struct View {
    pub(crate) loaded: bool,
    pub(crate) entry: Option<Arc<Entry>>,
    pub(crate) bitfield: Bitfield,
}

impl View {
    pub(crate) fn status(&self) -> BlobStatus {
        match &self.entry {
            None => BlobStatus::NotFound,
            Some(entry) if entry.complete => BlobStatus::Complete { size: entry.size },
            Some(_) => BlobStatus::Partial {
                size: self.bitfield.validated_size(),
            },
        }
    }

    pub(crate) fn complete(&self) -> Option<&Arc<Entry>> {
        self.entry.as_ref().filter(|entry| entry.complete)
    }
}

/// A view, and who wants to hear of its changes. Most blobs are never observed, and what that takes is larger than all the rest.
#[derive(Debug, Default)]
pub(crate) struct Watched {
    view: std::sync::Mutex<View>,
    observers: OnceLock<watch::Sender<()>>,
}

impl Watched {
    pub(crate) fn get(&self) -> View {
        lock(&self.view).clone()
    }

    pub(crate) fn set(&self, view: View) {
        self.update(|old| *old = view);
    }

    pub(crate) fn update(&self, change: impl FnOnce(&mut View)) {
        change(&mut lock(&self.view));
        if let Some(observers) = self.observers.get() {
            observers.send_replace(());
        }
    }

    /// Hears of every change from now on.
    pub(crate) fn subscribe(&self) -> watch::Receiver<()> {
        let observers = self.observers.get_or_init(|| watch::Sender::new(()));
        observers.subscribe()
    }
}

/// A blob that somebody does something with. All who do, share it.
#[derive(Debug)]
pub(crate) struct Blob {
    pub(crate) hash: Hash,
    pub(crate) view: Watched,
    /// Held by whoever changes the blob.
    pub(crate) work: Mutex<Work>,
    /// Set while what is written and what is known may differ: see [`Changing`].
    stale: AtomicBool,
}

impl Blob {
    pub(crate) fn new(hash: Hash) -> Self {
        Self {
            hash,
            view: Watched::default(),
            work: Mutex::default(),
            stale: AtomicBool::new(false),
        }
    }

    /// Whether a change was broken off, so that what is known of the blob has to be read again.
    pub(crate) fn is_stale(&self) -> bool {
        self.stale.load(Ordering::SeqCst)
    }

    pub(crate) fn refreshed(&self) {
        self.stale.store(false, Ordering::SeqCst);
    }

    pub(crate) fn doubt(&self) {
        self.stale.store(true, Ordering::SeqCst);
    }

    pub(crate) fn view(&self) -> View {
        self.view.get()
    }
}

/// Changes that were broken off: whoever wrote was dropped meanwhile, and the change is made all the same.
#[derive(Debug, Default)]
pub(crate) struct BrokenOff {
    count: AtomicU64,
    /// So many of them are written by now.
    settled: AtomicU64,
}

impl BrokenOff {
    /// How many there were, if some may still wait to be written.
    pub(crate) fn waiting(&self) -> Option<u64> {
        let count = self.count.load(Ordering::SeqCst);
        (count > self.settled.load(Ordering::SeqCst)).then_some(count)
    }

    /// Everything was written that came before so many.
    pub(crate) fn settled(&self, count: u64) {
        self.settled.fetch_max(count, Ordering::SeqCst);
    }
}

/// Lives while a change is being written. If it is broken off, what is known of the blob is read again by the next one.
pub(crate) struct Changing<'a>(Option<(&'a Blob, &'a BrokenOff)>);

impl<'a> Changing<'a> {
    pub(crate) fn new(blob: &'a Blob, broken_off: &'a BrokenOff) -> Self {
        Self(Some((blob, broken_off)))
    }

    /// The answer is there.
    pub(crate) fn answered(mut self) {
        self.0 = None;
    }
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        if let Some((blob, broken_off)) = self.0 {
            blob.doubt();
            // The blob may not outlive this, and the next one of that name would know nothing.
            broken_off.count.fetch_add(1, Ordering::SeqCst);
        }
    }
}

#[derive(Debug)]
pub(crate) struct Work {
    pub(crate) partial: Option<Partial>,
    /// What the store's totals say of this blob: its bytes, if the index has it.
    pub(crate) counted: Option<u64>,
    /// Bytes that came since the last time that everything was written down.
    pub(crate) unwritten: u64,
    /// Not before then, unless nothing more comes: writing down takes its share of the time and no more.
    pub(crate) write_again: Instant,
}

impl Default for Work {
    fn default() -> Self {
        Self {
            partial: None,
            counted: None,
            unwritten: 0,
            write_again: Instant::now(),
        }
    }
}

/// What is there of a partial blob at some moment, to be written down once it is on disk.
#[derive(Debug)]
pub(crate) struct Shown {
    pub(crate) at: Instant,
    pub(crate) id: Option<Id>,
    pub(crate) bitfield: Bitfield,
    pub(crate) fragments: BTreeMap<u64, Fragment>,
    pub(crate) unwritten: u64,
}

impl Shown {
    pub(crate) fn of(blob: &Blob, work: &Work) -> Self {
        let view = blob.view();
        Self {
            at: Instant::now(),
            id: view.entry.map(|entry| entry.id),
            bitfield: view.bitfield,
            fragments: match &work.partial {
                Some(Partial::File(partial)) => partial.fragments.clone(),
                _ => BTreeMap::new(),
            },
            unwritten: work.unwritten,
        }
    }
}

/// The bytes of a blob that is not complete.
#[derive(Debug)]
pub(crate) enum Partial {
    Small(SmallPartial),
    File(FilePartial),
}

/// Kept in memory as a whole while somebody works on it, and in one row otherwise.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub(crate) struct SmallPartial {
    pub(crate) bitfield: Bitfield,
    pub(crate) data: Vec<u8>,
    pairs: BTreeMap<u64, (Vec<u8>, Vec<u8>)>,
}

impl SmallPartial {
    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) {
        // Small blobs only.
        let start = offset as usize;
        let end = start + data.len();
        if self.data.len() < end {
            self.data.resize(end, 0);
        }
        self.data[start..end].copy_from_slice(data);
    }

    pub(crate) fn set_pair(&mut self, index: u64, pair: &Pair) {
        self.pairs
            .insert(index, (pair[..32].to_vec(), pair[32..].to_vec()));
    }

    pub(crate) fn pairs(&self) -> Vec<Option<Pair>> {
        let len = self.pairs.keys().next_back().map_or(0, |last| last + 1);
        // Of a small blob, so there are few.
        let len = len.min(SMALL / SEGMENT as u64) as usize;
        let mut pairs = vec![None; len];
        for (index, (left, right)) in &self.pairs {
            let mut pair = [0; 64];
            if let Some(place) = pairs.get_mut(*index as usize)
                && left.len() == 32
                && right.len() == 32
            {
                pair[..32].copy_from_slice(left);
                pair[32..].copy_from_slice(right);
                *place = Some(pair);
            }
        }
        pairs
    }
}

/// Part of a group: it goes to the file once the group is whole, so that no segment is ever written over.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Fragment {
    /// Which chunks are there, the first in the lowest bit.
    have: u16,
    pub(crate) data: Vec<u8>,
}

/// What of a partial blob lies in its state row.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct StoredState {
    pub(crate) bitfield: Bitfield,
    pub(crate) fragments: BTreeMap<u64, Fragment>,
}

#[derive(Debug)]
pub(crate) struct FilePartial {
    pub(crate) file: Arc<dyn SegmentFile>,
    /// Pages that changed since everything was written down last.
    pub(crate) pages: HashMap<PageId, Page>,
    pub(crate) fragments: BTreeMap<u64, Fragment>,
}

impl FilePartial {
    pub(crate) fn new(file: Arc<dyn SegmentFile>) -> Self {
        Self {
            file,
            pages: HashMap::new(),
            fragments: BTreeMap::new(),
        }
    }

    pub(crate) fn pair(&self, index: u64) -> Option<Pair> {
        let (page, slot) = place(index);
        self.pages.get(&page)?.get(slot)
    }

    /// Takes a verified piece; gives the groups that are whole now. What is `present` is not taken again in parts, which
    /// would hide the whole group that is in the file.
    pub(crate) fn take(
        &mut self,
        size: u64,
        offset: u64,
        data: &Bytes,
        present: &ChunkRanges,
    ) -> Vec<(u64, Bytes)> {
        let mut whole = Vec::new();
        let mut at = 0;
        while at < data.len() {
            let position = offset + at as u64;
            let group = position / SEGMENT as u64;
            // Less than a group.
            let inside = (position % SEGMENT as u64) as usize;
            let len = (SEGMENT - inside).min(data.len() - at);
            let piece = data.slice(at..at + len);
            at += len;
            let group_len = segment_len(group, size);
            if inside == 0 && len == group_len {
                self.fragments.remove(&group);
                whole.push((group, piece));
                continue;
            }
            if !self.fragments.contains_key(&group)
                && chunks_of(group * SEGMENT as u64, group_len).is_subset(present)
            {
                continue;
            }
            let fragment = self.fragments.entry(group).or_insert_with(|| Fragment {
                have: 0,
                data: vec![0; group_len],
            });
            let end = inside + len;
            if fragment.data.len() < end {
                fragment.data.resize(end, 0);
            }
            fragment.data[inside..end].copy_from_slice(&piece);
            for chunk in inside / CHUNK..end.div_ceil(CHUNK) {
                fragment.have |= 1 << chunk;
            }
            let chunks = group_len.div_ceil(CHUNK);
            let all = u16::MAX >> (16 - chunks.clamp(1, 16));
            if fragment.have & all == all
                && let Some(mut fragment) = self.fragments.remove(&group)
            {
                // The size that was said first may have been too large.
                fragment.data.truncate(group_len);
                whole.push((group, fragment.data.into()));
            }
        }
        whole
    }
}

/// The chunks of a leaf.
pub(crate) fn chunks_of(offset: u64, len: usize) -> ChunkRanges {
    let end = ChunkNum::chunks(offset + len as u64);
    ChunkRanges::from(ChunkNum::full_chunks(offset)..end)
}

/// The chunks of some groups.
pub(crate) fn chunks_of_groups(start: u64, end: u64) -> ChunkRanges {
    let chunk = |group: u64| ChunkNum(group.saturating_mul((SEGMENT / CHUNK) as u64));
    ChunkRanges::from(chunk(start)..chunk(end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{Backend, memory::MemoryBackend};

    #[test]
    fn pieces_of_a_group_are_kept_until_it_is_whole() {
        let mut partial = FilePartial::new(MemoryBackend::default().create_file("a").unwrap());
        let size = 2 * SEGMENT as u64 + 1500;
        let whole = Bytes::from(vec![1; SEGMENT]);
        let none = ChunkRanges::empty();
        let first = partial.take(size, 0, &whole, &none);
        assert_eq!(first, vec![(0, whole.clone())]);
        let tail = Bytes::from(vec![2; 476]);
        assert!(
            partial
                .take(size, 2 * SEGMENT as u64 + 1024, &tail, &none)
                .is_empty()
        );
        assert_eq!(partial.fragments.len(), 1);
        let head = Bytes::from(vec![3; 1024]);
        let got = partial.take(size, 2 * SEGMENT as u64, &head, &none);
        assert_eq!(got.len(), 1);
        assert_eq!((got[0].0, got[0].1.len()), (2, 1500));
        assert_eq!((got[0].1[0], got[0].1[1499]), (3, 2));
        assert!(partial.fragments.is_empty());
        // What is in the file as a whole is not begun again.
        let present = chunks_of(0, SEGMENT);
        assert!(partial.take(size, 1024, &head, &present).is_empty());
        assert!(partial.fragments.is_empty());
    }
}
