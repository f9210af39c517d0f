//! What can go wrong in the backend.

use std::{io, path::PathBuf, time::Duration};

use crate::LinkError;

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong in the backend.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The link cannot be used; the inner error says which part of it is wrong.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The link is sound, but of a kind that this call does not take.
    #[error("this is a {got} link; what is needed here is a {wanted} link")]
    LinkKind {
        /// The kind that was given.
        got: &'static str,
        /// The kind that is needed.
        wanted: &'static str,
    },
    /// The device is not on the Veilid network, or did not get there in time. Retry when there is a connection.
    #[error("not on the network within {} s", waited.as_secs())]
    Offline {
        /// How long was waited.
        waited: Duration,
    },
    /// This device is in no group with this key.
    #[error("this device is in no such group")]
    GroupNotFound,
    /// No member has a file at this path, as far as is known here.
    #[error("there is no file at this path")]
    NoSuchFile,
    /// Several members have a file at this path: say whose.
    #[error("{} members have a file at this path", holders.len())]
    Ambiguous {
        /// Their repo keys.
        holders: Vec<veilid_core::PublicKey>,
    },
    /// The path cannot be one in an archive.
    #[error("this path cannot stand in an archive")]
    InvalidPath(#[from] repo::PathError),
    /// A name is empty, too long, or has control characters in it.
    #[error("the {what} cannot be used: {reason}")]
    InvalidName {
        /// Which name.
        what: &'static str,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A local file could not be read.
    #[error("{} cannot be read", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The directory of the backend cannot be used.
    #[error("the directory {} cannot be used", path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another process uses the directory. End it, or talk to it.
    #[error("another process uses the directory")]
    DirectoryInUse,
    /// The operating system has no keyring that could hold this device's keys, or it is locked. Unlock it, or choose
    /// [`KeyStorage::InsecureFile`](crate::KeyStorage::InsecureFile) knowingly.
    #[error("no keyring holds this device's keys: {reason}")]
    KeyringUnavailable {
        /// What the keyring said.
        reason: String,
    },
    /// The key that seals this device's state is gone from the keyring, while the state is still there. Restore the keyring;
    /// nothing was deleted.
    #[error("the key of this device's state is missing from its key storage")]
    KeyLost,
    /// A row of this device's state does not open: it was changed on disk, or belongs to another key.
    #[error("the local state is damaged: {what}")]
    StateDamaged {
        /// Which part.
        what: &'static str,
    },
    /// A setting does not make sense.
    #[error("the network setting {name} is not valid: {reason}")]
    Setting {
        /// Which.
        name: &'static str,
        /// Why.
        reason: String,
    },
    /// A group failed. Ask its own `is_retryable`.
    #[error(transparent)]
    Group(#[from] group::Error),
    /// A DHT record failed. Ask its own `is_retryable`.
    #[error(transparent)]
    Records(#[from] dht_records::Error),
    /// The blob store failed.
    #[error(transparent)]
    Store(#[from] store_adapter::Error),
    /// Veilid failed.
    #[error("the Veilid node failed")]
    Veilid(#[from] veilid_core::VeilidAPIError),
    /// The operating system gave no random bytes.
    #[error("the operating system gives no random bytes")]
    Randomness,
    /// The backend was stopped.
    #[error("the backend has been stopped")]
    Stopped,
}

impl Error {
    /// Whether the same call can succeed later without a change by the caller.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Offline { .. } => true,
            Self::Group(e) => e.is_retryable(),
            Self::Records(e) => e.is_retryable(),
            Self::Store(e) => e.is_retryable(),
            _ => false,
        }
    }
}
