//! What can go wrong in a repo.

use std::{io, path::PathBuf};

use iroh_blobs::Hash;

use crate::{PathError, collection::CollectionError, seal::SealError};

/// The result of a repo's operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong in a repo. Texts carry no file name, key or content, so they may be logged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Writing needs the repo's key pair, which this device does not have.
    #[error("the repo is read-only for this device")]
    ReadOnly,
    /// Names and files need the content key, which a replica does not have.
    #[error("content key is not held")]
    NoContentKey,
    /// The key pair given does not belong to the public key given.
    #[error("key pair does not belong to the repo")]
    KeyMismatch,
    /// What this device had of the repo was given up meanwhile.
    #[error("the repo was given up on this device")]
    Forgotten,
    /// The repo has no such file, or not any more.
    #[error("no such file")]
    NoSuchFile,
    /// A blob that is needed is not here, or not completely. Fetch it and try again.
    #[error("the blob {hash} is not here")]
    NotHere {
        /// The blob.
        hash: Hash,
    },
    /// The path is not one of this project.
    #[error(transparent)]
    Path(#[from] PathError),
    /// The media type is longer than 127 bytes, or has other characters than visible ASCII.
    #[error("not a media type")]
    MediaType,
    /// The collection is damaged, forged or of a newer version.
    #[error(transparent)]
    Collection(#[from] CollectionError),
    /// The sealed file is damaged, forged, of another key or of a newer version.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The sealed file is sound, but has not the size that its entry says.
    #[error("the entry says {entry} bytes, the file has {file}")]
    SizeMismatch {
        /// Bytes according to the entry.
        entry: u64,
        /// Bytes of the file.
        file: u64,
    },
    /// The source of a file could not be read. Nothing was changed.
    #[error("the source of the file could not be read")]
    Source(#[source] io::Error),
    /// A file of that name is there already, and was not to be replaced.
    #[error("{} exists", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// Something below the root of an export is no directory of its own: a symbolic link, or a file.
    #[error("{} is not a directory", path.display())]
    NotADirectory {
        /// What stands in the way.
        path: PathBuf,
    },
    /// Writing the exported file failed.
    #[error("{} could not be written", path.display())]
    Export {
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The system gave no randomness.
    #[error("no randomness from the system")]
    Randomness,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] store_adapter::Error),
    /// The records failed.
    #[error(transparent)]
    Records(#[from] dht_records::Error),
}

impl Error {
    /// Whether the same call may succeed later without anything else being changed.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::NotHere { .. } | Self::Source(_) => true,
            Self::Store(error) => error.is_retryable(),
            Self::Records(error) => error.is_retryable(),
            _ => false,
        }
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let kind = match &error {
            Error::NotHere { .. } | Error::NoSuchFile => io::ErrorKind::NotFound,
            Error::Seal(_) | Error::Collection(_) | Error::SizeMismatch { .. } => {
                io::ErrorKind::InvalidData
            }
            _ => io::ErrorKind::Other,
        };
        io::Error::new(kind, error)
    }
}
