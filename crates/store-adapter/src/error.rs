//! What can go wrong in the store.

use std::{io, path::PathBuf};

use iroh_blobs::Hash;

/// The result of a store operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong in the store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Another process, or another [`VeilidStore`](crate::VeilidStore) of this one, has the directory open.
    /// Close that one first.
    #[error("the store in {path} is in use by another process")]
    InUse {
        /// The directory of the store.
        path: PathBuf,
    },
    /// The directory holds a store of a format that this version does not know, usually that of a newer one.
    /// Nothing was changed; open it with the version that wrote it.
    #[error("the store in {path} has the unknown format {found:?}")]
    UnknownFormat {
        /// The directory of the store.
        path: PathBuf,
        /// What its format file says.
        found: String,
    },
    /// The index of the store cannot be read. Nothing was changed; the directory can be restored from a backup, or moved
    /// away, after which everything is fetched again.
    #[error("the store in {path} is damaged: {cause}")]
    Damaged {
        /// The directory of the store.
        path: PathBuf,
        /// What the layer below reported.
        cause: String,
    },
    /// The file system refused something, for example for lack of space or of permission.
    #[error("input or output failed at {path}")]
    Io {
        /// Where it happened.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The store was closed, or its worker has ended.
    #[error("the store is closed")]
    Closed,
    /// A root's name is empty or longer than [`VeilidStore::MAX_ROOT_NAME`](crate::VeilidStore::MAX_ROOT_NAME) bytes.
    #[error("a root's name has to have 1 to {limit} bytes, not {len}", limit = crate::VeilidStore::MAX_ROOT_NAME)]
    RootName {
        /// The length of the refused name in bytes.
        len: usize,
    },
    /// A blob that stands where a hash sequence is expected is larger than any that this crate reads into memory.
    #[error("the hash sequence {hash} has {size} bytes")]
    SequenceTooLarge {
        /// The blob.
        hash: Hash,
        /// Its size in bytes.
        size: u64,
    },
    /// The layer below failed at one operation; the store as a whole goes on.
    #[error("the blob store failed: {cause}")]
    Blobs {
        /// What the layer below reported.
        cause: String,
    },
}

impl Error {
    /// Whether the same call can succeed later without anything being repaired first.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self,
            Self::InUse { .. } | Self::Io { .. } | Self::Blobs { .. }
        )
    }

    /// Wraps what iroh-blobs reported. Its error types differ for each call and carry no more than text to act upon.
    pub(crate) fn blobs(cause: impl std::fmt::Display) -> Self {
        Self::Blobs {
            cause: cause.to_string(),
        }
    }
}
