//! The collection of a repo: its entries, and the two levels of iroh collections that they are published as. The format is
//! specified in `docs/formats/collection.md`.
//!
//! [`Contents`] is what a repo holds at one time, in memory. It is made of shards that are shared between versions, so that a
//! copy with one change costs one shard.

mod codec;
mod contents;
mod entry;
mod load;

#[cfg(test)]
pub(crate) use self::codec::encode;
pub use self::{
    codec::EntryKeys,
    contents::{Contents, shards_for},
    entry::{Deleted, Entry, PathHash, Record, Version},
};
pub(crate) use self::{
    codec::is_media_type,
    load::{Shape, blobs, file_blobs},
};

use iroh_blobs::Hash;

use crate::PathError;

/// The most entries of one repo, deleted ones included.
pub const MAX_ENTRIES: usize = 1 << 20;

/// The most shards of one collection. So its root links to at most one blob more, its list of names.
pub const MAX_SHARDS: usize = 1024;

/// How long a deletion is remembered, in seconds: 180 days. A device that was away for longer can bring a deleted file back.
pub const TOMBSTONE_LIFETIME: u64 = 180 * 24 * 60 * 60;

/// Why a collection is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CollectionError {
    /// A blob stands where a collection is expected and is none, or not in the one way that it is written in.
    #[error("{hash} is not a collection")]
    NotACollection {
        /// The blob.
        hash: Hash,
    },
    /// A blob of the collection is larger than any that a repo writes.
    #[error("{hash} has {size} bytes, too many for a part of a collection")]
    TooLarge {
        /// The blob.
        hash: Hash,
        /// Its size in bytes.
        size: u64,
    },
    /// The root names its shards in a way that this program does not know: written by a newer one, or no root.
    #[error("the root {hash} has shards of an unknown format")]
    UnknownFormat {
        /// The root.
        hash: Hash,
    },
    /// An entry has a version that this program does not know: written by a newer one.
    #[error("entry has the unknown version {version}")]
    UnknownVersion {
        /// The version found.
        version: u8,
    },
    /// An entry is of a kind that this program does not know: written by a newer one.
    #[error("entry is of the unknown kind {kind}")]
    UnknownKind {
        /// The kind found.
        kind: u8,
    },
    /// An entry does not open: sealed under another key or for another repo, or its link was exchanged, or it is damaged.
    #[error("entry does not open")]
    Sealed,
    /// An entry opened, but what is in it breaks the format: written by a faulty or hostile program.
    #[error("entry is malformed")]
    Malformed,
    /// An entry opened, but its path is none.
    #[error("entry has an invalid path")]
    Path(#[source] PathError),
    /// The entries are not in their order, not in their shard, or not in as many shards as their number asks for. Equal
    /// states have to have equal hashes, so there is one way only.
    #[error("collection is not in canonical form")]
    NotCanonical,
    /// There are more than [`MAX_ENTRIES`].
    #[error("collection has more than {MAX_ENTRIES} entries")]
    TooManyEntries,
    /// The version counter has reached its end. Only a faulty or hostile writer gets there.
    #[error("version counter is exhausted")]
    Exhausted,
}

#[cfg(test)]
mod tests;
