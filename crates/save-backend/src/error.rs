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
    /// Nobody says that the group moved, or not to this member.
    #[error("the group did not move to other keys, as far as this device is told")]
    NotMoved,
    /// This device left the group, and the others could not be told yet. Try again when there is a connection.
    #[error("this device is still leaving the group")]
    StillLeaving,
    /// This device does not hold what such a link would give away.
    #[error("this device cannot give out a {kind} link of this group")]
    LinkNotHeld {
        /// The kind that was asked for.
        kind: &'static str,
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
    /// No device is in the directory that is to be wiped.
    #[error("there is no device in '{}'", path.display())]
    NoDevice {
        /// The directory.
        path: PathBuf,
    },
    /// Another process uses the directory. End it, or talk to it.
    #[error("another process uses the directory")]
    DirectoryInUse,
    /// The operating system has no keyring that could hold this device's keys, or it is locked. Unlock it and try again; on a
    /// machine without one choose [`KeyStorage::Password`](crate::KeyStorage::Password) or
    /// [`KeyStorage::KeyFile`](crate::KeyStorage::KeyFile).
    #[error("no keyring holds this device's keys: {reason}")]
    KeyringUnavailable {
        /// What the keyring said.
        reason: String,
    },
    /// The keys were to be guarded by a keyring, and they lie in a plain file of the directory, unprotected. Nothing was changed.
    /// Start with [`KeyStorage::InsecureFile`](crate::KeyStorage::InsecureFile) knowingly, and protect them with
    /// [`Backend::rekey`](crate::Backend::rekey).
    #[error("this device's keys lie in a plain file, not in a keyring")]
    InsecureKeyStorage,
    /// The keys are protected by a password. Start with it.
    #[error("this device's keys are protected by a password")]
    PasswordRequired,
    /// The keys are protected by a key file. Start with it.
    #[error("this device's keys are protected by a key file")]
    KeyFileRequired,
    /// A password or a key file was given, and the keys are protected by none. Start without, and protect them with
    /// [`Backend::rekey`](crate::Backend::rekey).
    #[error("this device's keys are protected neither by a password nor by a key file")]
    NotWrapped,
    /// It is another password, or another key file, that protects the keys. Try the right one.
    #[error("the password or the key file is not the right one")]
    WrongKey,
    /// The key file cannot be read or made, or is no key file. Nothing was changed; make it available and try again.
    #[error("the key file {} cannot be used", path.display())]
    KeyFile {
        /// Where it was looked for.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The keys are gone from where they are kept, or belong to another device, while what they seal is still there. Nothing
    /// was deleted; restore the keyring, or the directory as a whole.
    #[error("this device's keys are missing from their storage")]
    KeyLost,
    /// What is kept as a key is damaged. Nothing was changed; restore the keyring, or the directory as a whole.
    #[error("this device's keys are damaged")]
    KeyDamaged,
    /// A newer version wrote the keys. Nothing was changed; use that version.
    #[error("this device's keys have the unknown format {found}")]
    NewerKeyFormat {
        /// The version that they state.
        found: u8,
    },
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
    Store(store_adapter::Error),
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

impl From<store_adapter::Error> for Error {
    fn from(error: store_adapter::Error) -> Self {
        use store_adapter::Error as E;
        match error {
            E::KeyringUnavailable { reason } => Self::KeyringUnavailable { reason },
            E::InsecureKeyStorage => Self::InsecureKeyStorage,
            E::PasswordRequired => Self::PasswordRequired,
            E::KeyFileRequired => Self::KeyFileRequired,
            E::NotWrapped => Self::NotWrapped,
            E::WrongKey => Self::WrongKey,
            E::KeyFile { path, source } => Self::KeyFile { path, source },
            E::KeyLost => Self::KeyLost,
            E::KeyDamaged | E::DamagedKeyRecord => Self::KeyDamaged,
            E::NewerKeyFormat { found } => Self::NewerKeyFormat { found },
            E::Randomness => Self::Randomness,
            error => Self::Store(error),
        }
    }
}

impl Error {
    /// Whether the same call can succeed later without a change by the caller.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Offline { .. } | Self::KeyringUnavailable { .. } | Self::StillLeaving => true,
            Self::Group(e) => e.is_retryable(),
            Self::Records(e) => e.is_retryable(),
            Self::Store(e) => e.is_retryable(),
            _ => false,
        }
    }
}
