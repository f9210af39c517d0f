//! The contents of a repo at one time, in shards.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{Arc, OnceLock},
};

use bytes::Bytes;
use dht_records::DeviceId;
use iroh_blobs::{Hash, format::collection::Collection};

use super::{
    CollectionError, Deleted, Entry, EntryKeys, MAX_ENTRIES, MAX_SHARDS, PathHash, Record,
    TOMBSTONE_LIFETIME, Version,
};
use crate::EntryPath;

/// How many shards a number of entries has, deleted ones included: 1 up to 64, 16 up to 2,048, 256 up to 32,768, and 1,024
/// beyond.
///
/// So a shard has about 128 entries at most until there are 131,072 of them. One more file rewrites one shard, about 260 bytes
/// for each of its entries, and 32 bytes of the root for each shard. From 32,768 entries on the two together are less with
/// 1,024 shards than with 256.
#[must_use]
pub fn shards_for(entries: usize) -> usize {
    match entries {
        0..=64 => 1,
        65..=2048 => 16,
        2049..=32_768 => 256,
        _ => MAX_SHARDS,
    }
}

/// The shard of a place, by its first bits.
pub(crate) fn shard_of(place: &PathHash, shards: usize) -> usize {
    let [first, second, ..] = *place;
    // 0, 4, 8 or 10 bits.
    (usize::from(u16::from_be_bytes([first, second])) * shards) >> 16
}

/// What a shard holds, in the order of the places. Shared between versions of the contents.
#[derive(Debug, Clone, Default)]
pub(crate) struct Shard {
    records: BTreeMap<PathHash, Record>,
    /// The shard's blobs, once they are known.
    pub(crate) blobs: Option<ShardBlobs>,
    /// So that a change of one shard does not ask for a look at all records of the others.
    summary: OnceLock<Summary>,
}

/// The hashes of a shard's two blobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ShardBlobs {
    pub(crate) metadata: Hash,
    /// That of its sequence, which is the shard's own.
    pub(crate) links: Hash,
}

/// What the records of a shard come to.
#[derive(Debug, Clone, Copy, Default)]
struct Summary {
    files: u64,
    /// Of the files, before sealing.
    bytes: u64,
    /// The highest version counter.
    highest: u64,
    /// When the oldest deletion was.
    oldest_deletion: Option<u64>,
}

impl Shard {
    #[cfg(test)]
    pub(crate) fn records(&self) -> &BTreeMap<PathHash, Record> {
        &self.records
    }

    pub(crate) fn insert(&mut self, place: PathHash, record: Record) {
        self.records_mut().insert(place, record);
    }

    fn records_mut(&mut self) -> &mut BTreeMap<PathHash, Record> {
        self.blobs = None;
        self.summary.take();
        &mut self.records
    }

    fn summary(&self) -> Summary {
        *self.summary.get_or_init(|| {
            let mut summary = Summary::default();
            for record in self.records.values() {
                summary.highest = summary.highest.max(record.version().lamport);
                match record {
                    Record::File(entry) => {
                        summary.files += 1;
                        summary.bytes = summary.bytes.saturating_add(entry.size);
                    }
                    Record::Deleted(deleted) => {
                        let oldest = summary.oldest_deletion.unwrap_or(deleted.at);
                        summary.oldest_deletion = Some(oldest.min(deleted.at));
                    }
                }
            }
            summary
        })
    }

    /// Whether the other one is the same, as far as that shows without looking at the records.
    fn is_same(&self, other: &Self) -> bool {
        std::ptr::eq(self, other) || (self.blobs.is_some() && self.blobs == other.blobs)
    }

    pub(crate) fn collection(&self, keys: &EntryKeys) -> Collection {
        self.records
            .values()
            .map(|record| (keys.seal(record), record.link()))
            .collect()
    }
}

/// What a repo holds at one time. Copies are cheap: they share their shards.
#[derive(Debug, Clone)]
pub struct Contents {
    pub(crate) shards: Vec<Arc<Shard>>,
}

impl Default for Contents {
    fn default() -> Self {
        Self {
            shards: vec![Arc::default()],
        }
    }
}

impl PartialEq for Contents {
    fn eq(&self, other: &Self) -> bool {
        self.shards.len() == other.shards.len() && self.records().eq(other.records())
    }
}

impl Contents {
    /// How many records there are, deletions included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.records.len()).sum()
    }

    /// Whether there is no record.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.shards.iter().all(|shard| shard.records.is_empty())
    }

    /// All records, in the order of their places.
    pub fn records(&self) -> impl Iterator<Item = &Record> {
        self.shards.iter().flat_map(|shard| shard.records.values())
    }

    /// All files, in the order of their places.
    pub fn files(&self) -> impl Iterator<Item = &Entry> {
        self.records().filter_map(Record::file)
    }

    /// The number of files, and their bytes before sealing.
    #[must_use]
    pub fn totals(&self) -> (u64, u64) {
        self.summaries().fold((0, 0), |(files, bytes), shard| {
            (files + shard.files, bytes.saturating_add(shard.bytes))
        })
    }

    /// The record of a place.
    #[must_use]
    pub fn record(&self, place: &PathHash) -> Option<&Record> {
        self.shards
            .get(shard_of(place, self.shards.len()))?
            .records
            .get(place)
    }

    /// The file of a path.
    #[must_use]
    pub fn file(&self, keys: &EntryKeys, path: &EntryPath) -> Option<&Entry> {
        self.record(&keys.path_hash(path))?.file()
    }

    /// The version that the next change by a device has.
    ///
    /// # Errors
    /// [`CollectionError::Exhausted`].
    pub fn next_version(&self, device: DeviceId) -> Result<Version, CollectionError> {
        let lamport = self
            .highest()
            .checked_add(1)
            .ok_or(CollectionError::Exhausted)?;
        Ok(Version { lamport, device })
    }

    /// Takes records in. One stands if it is newer than what there is for its path; so the order does not matter, and
    /// taking one in twice does nothing. Tells whether anything changed.
    ///
    /// # Errors
    /// [`CollectionError::TooManyEntries`]; then some of them are in and some not.
    pub fn merge(
        &mut self,
        keys: &EntryKeys,
        records: impl IntoIterator<Item = Record>,
    ) -> Result<bool, CollectionError> {
        self.merge_placed(
            keys,
            records
                .into_iter()
                .map(|record| (keys.place(&record), record)),
        )
    }

    fn merge_placed(
        &mut self,
        keys: &EntryKeys,
        records: impl IntoIterator<Item = (PathHash, Record)>,
    ) -> Result<bool, CollectionError> {
        let mut changed = false;
        let mut len = self.len();
        for (place, record) in records {
            let old = self.record(&place);
            if old.is_some_and(|old| !keys.is_newer(&record, old)) {
                continue;
            }
            if old.is_none() {
                len += 1;
                if len > MAX_ENTRIES {
                    return Err(CollectionError::TooManyEntries);
                }
            }
            let index = shard_of(&place, self.shards.len());
            if let Some(shard) = self.shards.get_mut(index) {
                Arc::make_mut(shard).insert(place, record);
                changed = true;
            }
        }
        self.reshard(len);
        Ok(changed)
    }

    /// Takes in all that another version says.
    ///
    /// # Errors
    /// As [`merge`](Self::merge).
    pub fn merge_all(&mut self, keys: &EntryKeys, other: &Self) -> Result<bool, CollectionError> {
        let alike = self.shards.len() == other.shards.len();
        let same: Vec<bool> = self
            .shards
            .iter()
            .zip(&other.shards)
            .map(|(ours, theirs)| alike && ours.is_same(theirs))
            .chain(std::iter::repeat(false))
            .take(other.shards.len())
            .collect();
        let news = other.shards.iter().zip(same).filter(|(_, same)| !same);
        let news = news.flat_map(|(shard, _)| &shard.records);
        self.merge_placed(keys, news.map(|(place, record)| (*place, record.clone())))
    }

    /// The files that other contents have in another version, or not any more.
    pub(crate) fn replaced_in<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = &'a Entry> {
        let alike = self.shards.len() == other.shards.len();
        let shards = self.shards.iter().enumerate();
        let changed = shards.filter(move |(at, shard)| {
            let same = |theirs: &Arc<Shard>| shard.is_same(theirs);
            !(alike && other.shards.get(*at).is_some_and(same))
        });
        let records = changed.flat_map(|(_, shard)| &shard.records);
        records.filter_map(|(place, record)| {
            let entry = record.file()?;
            let theirs = other.record(place).map(Record::link);
            (theirs != Some(entry.blob)).then_some(entry)
        })
    }

    /// The record that deletes a file now.
    ///
    /// # Errors
    /// [`CollectionError::Exhausted`].
    pub fn deletion(
        &self,
        keys: &EntryKeys,
        path: &EntryPath,
        device: DeviceId,
        now: u64,
    ) -> Result<Record, CollectionError> {
        Ok(Record::Deleted(Deleted {
            path_hash: keys.path_hash(path),
            at: now,
            version: self.next_version(device)?,
            extension: Vec::new(),
        }))
    }

    /// Forgets deletions that are older than [`TOMBSTONE_LIFETIME`]. One that has the highest version of all stays, because
    /// versions must not begin again below it. Tells whether anything changed.
    pub fn expire(&mut self, now: u64) -> bool {
        let highest = self.highest();
        let is_past = |at: u64| at.saturating_add(TOMBSTONE_LIFETIME) < now;
        let is_old = |record: &Record| match record {
            Record::Deleted(deleted) => is_past(deleted.at) && deleted.version.lamport != highest,
            Record::File(_) => false,
        };
        let mut changed = false;
        for shard in &mut self.shards {
            if shard.summary().oldest_deletion.is_some_and(is_past)
                && shard.records.values().any(is_old)
            {
                let records = Arc::make_mut(shard).records_mut();
                records.retain(|_, record| !is_old(record));
                changed = true;
            }
        }
        self.reshard(self.len());
        changed
    }

    /// The blobs that the contents are published as, in the order in which they have to be stored: for each shard and at
    /// last for the root its metadata and its hash sequence. The hash of the last one is the hash of the contents.
    #[must_use]
    pub fn to_blobs(&self, keys: &EntryKeys) -> Vec<Bytes> {
        let mut blobs = Vec::new();
        let mut root = Vec::with_capacity(self.shards.len());
        for (index, shard) in self.shards.iter().enumerate() {
            let [metadata, links] = blobs_of(&shard.collection(keys));
            root.push((shard_name(index, self.shards.len()), Hash::new(&links)));
            blobs.extend([metadata, links]);
        }
        blobs.extend(blobs_of(&root.into_iter().collect()));
        blobs
    }

    /// All blobs of the collection and of its files, each once, in the order in which the store finds them; `None` where a shard was
    /// changed and not stored since.
    pub(crate) fn reachable(&self, root: Hash) -> Option<Vec<Hash>> {
        let count = self.shards.len();
        let mut links = Vec::with_capacity(count);
        for (index, shard) in self.shards.iter().enumerate() {
            links.push((shard_name(index, count), shard.blobs?.links));
        }
        let shards: Vec<Hash> = links.iter().map(|(_, link)| *link).collect();
        let [metadata, _] = blobs_of(&links.into_iter().collect());
        let mut reachable = Vec::with_capacity(self.len() + 2 * count + 2);
        reachable.extend([root, Hash::new(&metadata)]);
        reachable.extend(shards);
        for shard in &self.shards {
            reachable.push(shard.blobs?.metadata);
            reachable.extend(shard.records.values().map(Record::link));
        }
        // Two paths can have one blob, and empty shards are one.
        let mut seen = HashSet::with_capacity(reachable.len());
        reachable.retain(|hash| seen.insert(*hash));
        Some(reachable)
    }

    fn summaries(&self) -> impl Iterator<Item = Summary> {
        self.shards.iter().map(|shard| shard.summary())
    }

    /// The highest version counter; 0 if there is no record.
    fn highest(&self) -> u64 {
        let highest = self.summaries().map(|shard| shard.highest).max();
        highest.unwrap_or(0)
    }

    /// Distributes the records anew if their number asks for another number of shards.
    fn reshard(&mut self, len: usize) {
        let count = shards_for(len);
        if count == self.shards.len() {
            return;
        }
        let mut shards = vec![Shard::default(); count];
        for shard in std::mem::take(&mut self.shards) {
            for (place, record) in Arc::unwrap_or_clone(shard).records {
                if let Some(shard) = shards.get_mut(shard_of(&place, count)) {
                    shard.insert(place, record);
                }
            }
        }
        self.shards = shards.into_iter().map(Arc::new).collect();
    }
}

/// The name of a shard in the root: the version of the format, a dot, and the first bits of its places in hex.
pub(crate) fn shard_name(index: usize, shards: usize) -> String {
    match shards {
        1 => "1.".to_owned(),
        16 => format!("1.{index:x}"),
        256 => format!("1.{index:02x}"),
        _ => format!("1.{index:03x}"),
    }
}

/// Metadata and hash sequence of one of iroh's collections.
pub(crate) fn blobs_of(collection: &Collection) -> [Bytes; 2] {
    let mut blobs = collection.to_blobs();
    [(); 2].map(|()| blobs.next().expect("a collection is two blobs"))
}
