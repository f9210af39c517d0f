//! What can go wrong in the store.

use std::{io, path::PathBuf};

use iroh_blobs::Hash;

/// The result of a store operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong in the store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file was to be imported by reference. What the store holds is sealed, so it holds a copy or nothing: import with
    /// `ImportMode::Copy`.
    #[error(
        "the store seals every byte, so it cannot refer to a file outside; import a copy of it"
    )]
    ByReference,
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
    /// An earlier version wrote the store, in a format that this one does not read. Nothing was changed; what it holds can be
    /// fetched again into an empty directory.
    #[error("the store in {path} has an older format")]
    OlderFormat {
        /// The directory of the store.
        path: PathBuf,
    },
    /// A later version wrote the store. Nothing was changed; open it with that version.
    #[error("the store in {path} has the newer format {version}")]
    NewerFormat {
        /// The directory of the store.
        path: PathBuf,
        /// What its format file says.
        version: u32,
    },
    /// The store is there, and the protected store has no key for it: the keyring was reset, or is another user's. Nothing was
    /// changed. Restore the keyring; without the key nothing can be read.
    #[error("the key of the store is lost")]
    KeyLost,
    /// What the protected store holds as the key of this store is no key. Nothing was changed; restore the keyring.
    #[error("the key of the store is damaged")]
    KeyDamaged,
    /// The store's key was being replaced, and the protected store, which failed, does not say which one it has now. Nothing is written until
    /// the store is opened anew, which finds it out.
    #[error("it is not known which key of the store counts; open it anew")]
    KeyUncertain,
    /// The store's key is there, and the index that belongs to it is not: the keyring is older than the tables, or the tables
    /// of the Veilid node were taken away. Nothing was changed. Restore what belongs together.
    #[error("the index of the store is lost")]
    IndexLost,
    /// Tags cannot be read, so that it cannot be told what they keep. Set them again, or remove them.
    #[error("{count} tags are damaged")]
    TagsDamaged {
        /// How many.
        count: usize,
    },
    /// Hash sequences that were complete are damaged, so that it cannot be told what they keep. Fetch them again.
    #[error("{count} hash sequences are damaged, and have to be fetched again")]
    SequencesDamaged {
        /// How many.
        count: usize,
    },
    /// What was to be imported could not be read.
    #[error("what was to be imported could not be read")]
    Input {
        /// What the system said.
        source: io::Error,
    },
    /// Pieces came in that do not make the blob. Nothing of them was kept.
    #[error("what came in is not the blob")]
    Unverified,
    /// Something could not be sealed. Nothing was written.
    #[error("a value could not be sealed")]
    Sealing,
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
    #[error("a hash sequence has {size} bytes, more than can be followed")]
    SequenceTooLarge {
        /// The blob.
        hash: Hash,
        /// Its size in bytes.
        size: u64,
    },
    /// The protected store cannot be reached or is locked. Nothing is lost: unlock the keyring and try again.
    #[error("the keyring cannot be used: {reason}")]
    KeyringUnavailable {
        /// What the layer below reported.
        reason: String,
    },
    /// The keys were to be guarded by the operating system's keyring, and the protected store is, or may be, a plain file.
    /// Choose another [`Protection`](crate::Protection): a password or a key file.
    #[error("the keys would lie in a plain file; a password or a key file can protect them there")]
    InsecureKeyStorage,
    /// The keys are wrapped by a password, and none was given. Open with [`Protection::Password`](crate::Protection::Password).
    #[error("the keys are protected by a password")]
    PasswordRequired,
    /// The keys are wrapped by a key file, and none was given. Open with [`Protection::KeyFile`](crate::Protection::KeyFile).
    #[error("the keys are protected by a key file")]
    KeyFileRequired,
    /// A password or a key file was given, and the keys are wrapped by none. Open as they are kept, then change their
    /// protection.
    #[error("the keys are protected neither by a password nor by a key file")]
    NotWrapped,
    /// It is not the password, or not the key file, by which the keys are wrapped. Try the right one.
    #[error("the password or the key file is not the right one")]
    WrongKey,
    /// The key file cannot be read or made, or is no key file. Nothing was changed; make it available and try again.
    #[error("the key file {path} cannot be used")]
    KeyFile {
        /// Where it was looked for.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// What the protected store holds is damaged or belongs under another name. Nothing was changed; restore the
    /// keyring from a backup.
    #[error("a key in the protected store is damaged")]
    DamagedKeyRecord,
    /// A newer version wrote the key. Nothing was changed; use that version.
    #[error("a key in the protected store has the unknown format {found}")]
    NewerKeyFormat {
        /// The version that it states.
        found: u8,
    },
    /// The operating system gives no randomness. Nothing was written.
    #[error("the operating system gives no randomness")]
    Randomness,
    /// The layer below failed at one operation; the store as a whole goes on.
    #[error("the blob store failed: {cause}")]
    Blobs {
        /// What the layer below reported.
        cause: String,
        /// What kind of failure of the system that was, such as a full disk; [`io::ErrorKind::Other`] if it was none.
        kind: io::ErrorKind,
    },
}

impl Error {
    /// Whether the same call can succeed later without anything being repaired first.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self,
            Self::InUse { .. }
                | Self::Io { .. }
                | Self::KeyringUnavailable { .. }
                | Self::Blobs { .. }
        )
    }

    /// The same error for one more caller.
    pub(crate) fn again(&self) -> Self {
        match self {
            Self::Closed => Self::Closed,
            Self::Randomness => Self::Randomness,
            Self::KeyUncertain => Self::KeyUncertain,
            Self::TagsDamaged { count } => Self::TagsDamaged { count: *count },
            Self::Io { path, source } => Self::Io {
                path: path.clone(),
                source: io::Error::new(source.kind(), source.to_string()),
            },
            Self::KeyringUnavailable { reason } => Self::KeyringUnavailable {
                reason: reason.clone(),
            },
            Self::Damaged { path, cause } => Self::Damaged {
                path: path.clone(),
                cause: cause.clone(),
            },
            Self::Blobs { cause, kind } => Self::Blobs {
                cause: cause.clone(),
                kind: *kind,
            },
            other => Self::blobs(other),
        }
    }

    /// As iroh's interface takes it.
    pub fn into_io(self) -> io::Error {
        match self {
            // Of others the kind says what it was.
            Self::Io { ref source, .. } if source.kind() == io::ErrorKind::Other => {
                io::Error::other(self)
            }
            Self::Blobs { kind, .. } => io::Error::new(kind, self),
            Self::Io { source, .. } | Self::Input { source } => source,
            Self::Closed => io::Error::new(io::ErrorKind::BrokenPipe, self),
            Self::ByReference => io::Error::new(io::ErrorKind::InvalidInput, self),
            other => io::Error::other(other),
        }
    }

    /// Wraps what iroh-blobs reported. Its error types differ for each call, name its own layers, and have what the system said below
    /// those.
    pub fn iroh(cause: impl std::error::Error + 'static) -> Self {
        let mut layer: Option<&(dyn std::error::Error + 'static)> = Some(&cause);
        while let Some(error) = layer {
            if let Some(error) = error.downcast_ref::<io::Error>() {
                // What the store itself said comes back as it was.
                return match error
                    .get_ref()
                    .and_then(|inner| inner.downcast_ref::<Self>())
                {
                    Some(ours) => ours.again(),
                    None => Self::Blobs {
                        cause: error.to_string(),
                        kind: system_kind(error),
                    },
                };
            }
            layer = error.source();
        }
        Self::blobs(cause)
    }

    pub(crate) fn blobs(cause: impl std::fmt::Display) -> Self {
        Self::Blobs {
            cause: cause.to_string(),
            kind: io::ErrorKind::Other,
        }
    }
}

/// The kind of an error if the system gave it. iroh and this store use some kinds for what is theirs, such as a blob that is not there.
fn system_kind(error: &io::Error) -> io::ErrorKind {
    use io::ErrorKind as E;
    match error.kind() {
        E::BrokenPipe | E::InvalidInput | E::InvalidData | E::NotFound | E::UnexpectedEof => {
            E::Other
        }
        kind => kind,
    }
}

#[cfg(test)]
mod tests {
    use iroh_blobs::api;

    use super::*;

    #[test]
    fn what_the_system_said_is_found_below_irohs_layers() {
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        let wrapped = [
            Error::iroh(api::Error::Io(full())),
            Error::iroh(api::RequestError::from(api::Error::Io(full()))),
        ];
        for error in wrapped {
            let Error::Blobs { cause, kind } = error else {
                panic!("{error:?}")
            };
            assert_eq!(kind, io::ErrorKind::StorageFull);
            assert_eq!(cause, full().to_string());
        }
    }
}
