//! The contents of a repo at one time, in shards.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use dht_records::DeviceId;
use iroh_blobs::{Hash, format::collection::Collection};

use super::{
    CollectionError, Deleted, Entry, EntryKeys, MAX_ENTRIES, PathHash, Record, TOMBSTONE_LIFETIME,
    Version,
};
use crate::EntryPath;

/// How many shards a number of entries has, deleted ones included: 1 up to 64, 16 up to 2,048, and 256 beyond.
///
/// So a shard has about 128 entries at most until there are 32,768 of them, and one more file rewrites one shard (about 330
/// bytes for each of its entries) and a root of less than 10 KiB.
#[must_use]
pub fn shards_for(entries: usize) -> usize {
    match entries {
        0..=64 => 1,
        65..=2048 => 16,
        _ => 256,
    }
}

/// The shard of a place, by its first bits.
pub(crate) fn shard_of(place: &PathHash, shards: usize) -> usize {
    let [first, ..] = *place;
    // 0, 4 or 8 bits.
    (usize::from(first) * shards) >> 8
}

/// What a shard holds, in the order of the places. Shared between versions of the contents.
#[derive(Debug, Clone, Default)]
pub(crate) struct Shard {
    pub(crate) records: BTreeMap<PathHash, Record>,
    /// The hash of the shard's blob, once it is known.
    pub(crate) hash: Option<Hash>,
}

impl Shard {
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
        self.files().fold((0, 0), |(files, bytes), entry| {
            (files + 1, bytes.saturating_add(entry.size))
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
        let highest = self
            .records()
            .map(|record| record.version().lamport)
            .max()
            .unwrap_or(0);
        let lamport = highest.checked_add(1).ok_or(CollectionError::Exhausted)?;
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
        let mut changed = false;
        let mut len = self.len();
        for record in records {
            let place = keys.place(&record);
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
                let shard = Arc::make_mut(shard);
                shard.hash = None;
                shard.records.insert(place, record);
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
        self.merge(keys, other.records().cloned())
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
        let highest = self.records().map(|record| record.version().lamport).max();
        let is_old = |record: &Record| match record {
            Record::Deleted(deleted) => {
                deleted.at.saturating_add(TOMBSTONE_LIFETIME) < now
                    && Some(deleted.version.lamport) != highest
            }
            Record::File(_) => false,
        };
        let mut changed = false;
        for shard in &mut self.shards {
            if shard.records.values().any(is_old) {
                let shard = Arc::make_mut(shard);
                shard.hash = None;
                shard.records.retain(|_, record| !is_old(record));
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
                    shard.records.insert(place, record);
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
        _ => format!("1.{index:02x}"),
    }
}

/// Metadata and hash sequence of one of iroh's collections.
pub(crate) fn blobs_of(collection: &Collection) -> [Bytes; 2] {
    let mut blobs = collection.to_blobs();
    [(); 2].map(|()| blobs.next().expect("a collection is two blobs"))
}
