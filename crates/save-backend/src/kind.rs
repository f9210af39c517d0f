//! What kind of failure an error is, for callers that tell people what to do next.

use std::io;

use veilid_core::VeilidAPIError;

use crate::Error;

/// The kind of an [`Error`], whichever layer it comes from. Where the text says what happened, this says what can be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The caller asked for something that makes no sense, such as an empty name. Ask differently.
    Invalid,
    /// A link cannot be used. Ask for another one.
    Link,
    /// A path cannot stand in an archive. Choose another one.
    Path,
    /// There is no such group, member, file or device.
    NotFound,
    /// Several members have such a file. Say whose.
    Ambiguous,
    /// The network cannot be reached. Try again when it can.
    Offline,
    /// A group or a member does not answer. Try again when others are online.
    NoAnswer,
    /// The group is full or can be read only.
    Refused,
    /// Another process uses the directory.
    DirectoryInUse,
    /// The keys cannot be stored or read.
    KeyStorage,
    /// The keys are protected by a password or a key file, and none was given.
    KeyRequired,
    /// The password or the key file is not the right one.
    WrongKey,
    /// A local file or directory cannot be read or written.
    Io,
    /// What arrived or is stored is not what it should be.
    Damaged,
    /// Anything else.
    Other,
}

impl Error {
    /// What kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Link(_) | Self::LinkKind { .. } => ErrorKind::Link,
            Self::LinkNotHeld { .. } | Self::StillLeaving => ErrorKind::Refused,
            Self::Offline { .. } => ErrorKind::Offline,
            Self::GroupNotFound | Self::NoSuchFile | Self::NotMoved => ErrorKind::NotFound,
            Self::Ambiguous { .. } => ErrorKind::Ambiguous,
            Self::InvalidPath(_) => ErrorKind::Path,
            Self::InvalidName { .. } | Self::Setting { .. } => ErrorKind::Invalid,
            Self::File { source, .. } | Self::Directory { source, .. } => io_kind(source),
            Self::DirectoryInUse => ErrorKind::DirectoryInUse,
            Self::NoDevice { .. } => ErrorKind::NotFound,
            Self::PasswordRequired | Self::KeyFileRequired => ErrorKind::KeyRequired,
            Self::WrongKey => ErrorKind::WrongKey,
            Self::KeyringUnavailable { .. }
            | Self::InsecureKeyStorage
            | Self::NotWrapped
            | Self::KeyFile { .. }
            | Self::KeyLost => ErrorKind::KeyStorage,
            Self::StateDamaged { .. } | Self::KeyDamaged | Self::NewerKeyFormat { .. } => {
                ErrorKind::Damaged
            }
            Self::Group(error) => group_kind(error),
            Self::Records(error) => records_kind(error),
            Self::Store(error) => store_kind(error),
            Self::Veilid(error) => veilid_kind(error),
            Self::Randomness | Self::Stopped => ErrorKind::Other,
        }
    }
}

fn group_kind(error: &group::Error) -> ErrorKind {
    use group::Error as E;
    match error {
        E::Records(error) => records_kind(error),
        E::Repo(error) => repo_kind(error),
        E::StoreAdapter(error) => store_kind(error),
        E::Store(error) => io_kind(error),
        E::NotStored(cause) | E::NotPublished(cause) | E::NotSeen(cause) => group_kind(cause),
        E::GroupFull { .. }
        | E::ReadOnly
        | E::Unreadable
        | E::Left
        | E::NothingToPublish
        | E::TooManyStaying { .. }
        | E::TooManyWanted { .. } => ErrorKind::Refused,
        E::NameTooLong { .. } => ErrorKind::Invalid,
        E::NoSuchMember => ErrorKind::NotFound,
        // A tunnel fails because its other end is not there, or not any more.
        E::Tunnel(_)
        | E::GroupDoesNotAnswer
        | E::MemberDoesNotAnswer
        | E::NobodyHas { .. }
        | E::Timeout { .. } => ErrorKind::NoAnswer,
        E::TooLarge { .. } | E::BadMessage { .. } => ErrorKind::Damaged,
        E::Veilid(error) => veilid_kind(error),
        _ => ErrorKind::Other,
    }
}

fn repo_kind(error: &repo::Error) -> ErrorKind {
    use repo::Error as E;
    match error {
        E::ReadOnly | E::NoContentKey | E::Forgotten => ErrorKind::Refused,
        E::NoSuchFile => ErrorKind::NotFound,
        E::NotHere { .. } => ErrorKind::NoAnswer,
        E::Path(_) => ErrorKind::Path,
        E::MediaType => ErrorKind::Invalid,
        E::KeyMismatch | E::Collection(_) | E::Seal(_) | E::SizeMismatch { .. } => {
            ErrorKind::Damaged
        }
        E::Source(source) | E::Export { source, .. } => io_kind(source),
        E::Exists { .. } | E::NotADirectory { .. } => ErrorKind::Io,
        E::Store(error) => store_kind(error),
        E::Records(error) => records_kind(error),
        _ => ErrorKind::Other,
    }
}

fn records_kind(error: &dht_records::Error) -> ErrorKind {
    use dht_records::Error as E;
    match error {
        E::Offline => ErrorKind::Offline,
        E::RecordNotFound | E::Timeout { .. } | E::NotConfirmed => ErrorKind::NoAnswer,
        E::ReadOnly | E::NoContentKey => ErrorKind::Refused,
        E::UnknownVersion { .. }
        | E::ShortValue { .. }
        | E::WrongKey
        | E::Moved
        | E::Damaged
        | E::InvalidPayload { .. }
        | E::BadSignature
        | E::SlotIndexMismatch { .. }
        | E::KeyMismatch
        | E::CacheRow => ErrorKind::Damaged,
        E::NotStored => ErrorKind::Io,
        E::Veilid(error) => veilid_kind(error),
        _ => ErrorKind::Other,
    }
}

fn store_kind(error: &store_adapter::Error) -> ErrorKind {
    use store_adapter::Error as E;
    match error {
        E::InUse { .. } => ErrorKind::DirectoryInUse,
        E::UnknownFormat { .. }
        | E::OlderFormat { .. }
        | E::NewerFormat { .. }
        | E::TagsDamaged { .. }
        | E::SequencesDamaged { .. }
        | E::Unverified
        | E::SequenceTooLarge { .. }
        | E::IndexLost
        | E::KeyDamaged
        | E::DamagedKeyRecord
        | E::NewerKeyFormat { .. }
        | E::Damaged { .. } => ErrorKind::Damaged,
        E::Io { source, .. } | E::Input { source } => io_kind(source),
        E::PasswordRequired | E::KeyFileRequired => ErrorKind::KeyRequired,
        E::WrongKey => ErrorKind::WrongKey,
        E::KeyringUnavailable { .. }
        | E::InsecureKeyStorage
        | E::NotWrapped
        | E::KeyFile { .. }
        | E::KeyLost
        | E::KeyUncertain => ErrorKind::KeyStorage,
        E::Blobs { kind, .. } if *kind != io::ErrorKind::Other => system_kind(*kind),
        _ => ErrorKind::Other,
    }
}

/// What a table of Veilid's could not read or write comes in words only, those of SQLite or of the system.
fn veilid_kind(error: &VeilidAPIError) -> ErrorKind {
    const DAMAGE: &[&str] = &["DatabaseCorrupt", "NotADatabase"];
    const STORAGE: &[&str] = &[
        "DiskFull",
        "SystemIoFailure",
        "CannotOpen",
        "disk is full",
        "No space left",
        "I/O error",
        "unable to open",
    ];
    let text = error.to_string();
    let says = |words: &[&str]| words.iter().any(|word| text.contains(word));
    if says(DAMAGE) {
        ErrorKind::Damaged
    } else if says(STORAGE) {
        ErrorKind::Io
    } else {
        ErrorKind::Other
    }
}

fn io_kind(error: &io::Error) -> ErrorKind {
    system_kind(error.kind())
}

fn system_kind(kind: io::ErrorKind) -> ErrorKind {
    match kind {
        io::ErrorKind::NotFound => ErrorKind::NotFound,
        io::ErrorKind::InvalidData => ErrorKind::Damaged,
        _ => ErrorKind::Io,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(code: &str) -> VeilidAPIError {
        let failure = format!("Rusqlite(SqliteFailure(Error {{ code: {code} }}, None))");
        VeilidAPIError::generic(format!("failed to store: {failure}"))
    }

    #[test]
    fn a_full_disk_is_told_whoever_met_it() {
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        let store = |error| Error::Group(group::Error::Repo(repo::Error::Store(error)));
        for error in [
            store(store_adapter::Error::iroh(full())),
            Error::Group(group::Error::Store(full())),
            Error::Records(dht_records::Error::Veilid(table("DiskFull"))),
            Error::Veilid(table("DiskFull")),
        ] {
            assert_eq!(error.kind(), ErrorKind::Io, "{error:?}");
        }
        assert_eq!(
            Error::Veilid(table("DatabaseCorrupt")).kind(),
            ErrorKind::Damaged
        );
        assert_eq!(
            Error::Veilid(table("DatabaseBusy")).kind(),
            ErrorKind::Other
        );
    }

    #[test]
    fn what_the_store_said_comes_back_through_iroh() {
        use store_adapter::Error as E;
        let io = |kind| E::Io {
            path: "store".into(),
            source: io::Error::new(kind, "so it is"),
        };
        let damaged = E::Damaged {
            path: "store".into(),
            cause: "so it is".to_owned(),
        };
        for (error, kind) in [
            (io(io::ErrorKind::Other), ErrorKind::Io),
            (io(io::ErrorKind::StorageFull), ErrorKind::Io),
            (damaged, ErrorKind::Damaged),
            (E::Closed, ErrorKind::Other),
        ] {
            let back = E::iroh(error.into_io());
            assert!(back.to_string().matches("failed").count() < 2, "{back}");
            assert_eq!(store_kind(&back), kind, "{back:?}");
        }
        // A blob that is not there is no file of the system's.
        let missing = io::Error::from(io::ErrorKind::NotFound);
        assert_eq!(store_kind(&E::iroh(missing)), ErrorKind::Other);
    }

    #[test]
    fn the_layer_does_not_matter() {
        let offline = || dht_records::Error::Offline;
        assert_eq!(Error::Records(offline()).kind(), ErrorKind::Offline);
        let group = group::Error::Records(offline());
        assert_eq!(Error::Group(group).kind(), ErrorKind::Offline);
        let missing = group::Error::Repo(repo::Error::NoSuchFile);
        assert_eq!(Error::Group(missing).kind(), ErrorKind::NotFound);
    }

    #[test]
    fn what_is_wrong_with_the_keys_is_told_apart() {
        use store_adapter::Error as E;
        let file = || E::KeyFile {
            path: "key".into(),
            source: io::ErrorKind::NotFound.into(),
        };
        for (error, kind) in [
            (E::PasswordRequired, ErrorKind::KeyRequired),
            (E::KeyFileRequired, ErrorKind::KeyRequired),
            (E::WrongKey, ErrorKind::WrongKey),
            (E::InsecureKeyStorage, ErrorKind::KeyStorage),
            (E::NotWrapped, ErrorKind::KeyStorage),
            (E::KeyLost, ErrorKind::KeyStorage),
            (file(), ErrorKind::KeyStorage),
            (E::DamagedKeyRecord, ErrorKind::Damaged),
            (E::NewerKeyFormat { found: 2 }, ErrorKind::Damaged),
        ] {
            assert_eq!(store_kind(&error), kind, "{error}");
            let error = Error::from(error);
            assert!(!matches!(error, Error::Store(_)), "{error}");
            assert_eq!(error.kind(), kind, "{error}");
        }
    }
}
