//! Entries as they are in memory.

use std::fmt;

use dht_records::DeviceId;
use iroh_blobs::Hash;

use crate::EntryPath;

/// The keyed hash of a path's [`key`](EntryPath::key): where an entry has its place, and what makes a path unique.
pub type PathHash = [u8; 32];

/// The version of an entry. The higher one wins, so two devices that changed the same file agree, in whatever order they
/// hear of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// One more than the highest in the collection that the change was made to.
    pub lamport: u64,
    /// The device that made the change. Decides between equal counters.
    pub device: DeviceId,
}

/// One file of a repo.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Entry {
    /// Its path.
    pub path: EntryPath,
    /// Its size in bytes, as it was before sealing.
    pub size: u64,
    /// Its media type, at most 127 bytes of visible ASCII; may be empty.
    pub media_type: String,
    /// When it was modified, in seconds since 1970. Given by whoever wrote it.
    pub modified: u64,
    /// The BLAKE3 hash of the file, as it was before sealing.
    pub plain_hash: [u8; 32],
    /// The blob that holds the sealed file.
    pub blob: Hash,
    /// The version.
    pub version: Version,
    /// What a newer program wrote and this one does not know; kept as it is, so that the entry stays the same.
    pub(crate) extension: Vec<u8>,
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry")
            .field("path", &self.path)
            .field("size", &self.size)
            .field("blob", &self.blob)
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}

/// That a file was deleted. Remembered for [`TOMBSTONE_LIFETIME`](super::TOMBSTONE_LIFETIME), so that a device that has not
/// heard of it does not bring the file back. The name itself is not kept.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Deleted {
    /// Which path.
    pub path_hash: PathHash,
    /// When, in seconds since 1970, by the clock of the device that deleted it. Decides when it is forgotten and nothing else.
    pub at: u64,
    /// The version.
    pub version: Version,
    /// As in [`Entry`].
    pub(crate) extension: Vec<u8>,
}

/// What a collection says of one path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// There is a file.
    File(Entry),
    /// There was one.
    Deleted(Deleted),
}

impl Record {
    /// The version.
    #[must_use]
    pub fn version(&self) -> Version {
        match self {
            Self::File(entry) => entry.version,
            Self::Deleted(deleted) => deleted.version,
        }
    }

    /// What the collection links to for this record. A deletion has no blob, so it links to the empty one, which everyone
    /// has and which no sealed file can be.
    #[must_use]
    pub fn link(&self) -> Hash {
        match self {
            Self::File(entry) => entry.blob,
            Self::Deleted(_) => Hash::EMPTY,
        }
    }

    /// The file, if there is one.
    #[must_use]
    pub fn file(&self) -> Option<&Entry> {
        match self {
            Self::File(entry) => Some(entry),
            Self::Deleted(_) => None,
        }
    }
}
