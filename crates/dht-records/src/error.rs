//! What can go wrong with a record.

use std::time::Duration;

use veilid_core::VeilidAPIError;

use crate::value::Kind;

/// This crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong here. Texts carry no key, name or value, so they may be logged; what lies behind
/// [`Veilid`](Self::Veilid) may quote some.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The value has a version that this program does not know: written by a newer one. Update this program; it never
    /// overwrites such a value by itself.
    #[error("sealed value has the unknown version {version}")]
    UnknownVersion {
        /// The version found.
        version: u8,
    },
    /// The value is too short to be a sealed value, or not of a padded length: cut off, or never one of ours.
    #[error("sealed value of {len} bytes is not of a possible length")]
    ShortValue {
        /// Bytes found.
        len: usize,
    },
    /// The value was sealed under another key. (Damage in its nonce or check bytes looks the same.)
    #[error("value was sealed under another key")]
    WrongKey,
    /// The value was sealed under this key for another record, subkey or kind, and brought here. (Damage in the second
    /// half of its check bytes looks the same.)
    #[error("value was sealed for another place")]
    Moved,
    /// The value was sealed under this key for this place, and changed since.
    #[error("sealed value is damaged")]
    Damaged,
    /// The payload does not fit its subkey. Shorten it.
    #[error("payload of {len} bytes exceeds the {max} bytes of this subkey")]
    TooLarge {
        /// Bytes asked for.
        len: usize,
        /// Bytes that fit.
        max: usize,
    },
    /// The value opened, but what is in it is not what its kind says: written by a faulty or hostile program.
    #[error("payload is not a valid {kind}")]
    InvalidPayload {
        /// What was expected.
        kind: Kind,
    },
    /// The slot is not signed by the repo that it names, or not for this group and this slot: forged or copied.
    #[error("slot is not signed by its repo for this place")]
    BadSignature,
    /// A slot index outside 1 to 1,023.
    #[error("{0} is not a slot index")]
    InvalidSlotIndex(u32),
    /// A slot signed for one index was to be written at another. Sign it for the index that it goes to.
    #[error("slot was signed for index {signed}, not {written}")]
    SlotIndexMismatch {
        /// The index in the signature.
        signed: u32,
        /// The index it was to be written at.
        written: u32,
    },
    /// Writing needs a secret key that this handle does not have.
    #[error("record is read-only for this device")]
    ReadOnly,
    /// Reading this needs the content key, which a replica does not have.
    #[error("content key is not held")]
    NoContentKey,
    /// The secret key given does not belong to the public key given.
    #[error("key pair does not belong to the record")]
    KeyMismatch,
    /// The subkey's counter has reached its end. Only a hostile writer gets there; the record has to be replaced.
    #[error("counter of the subkey is exhausted")]
    CounterExhausted,
    /// This node is not on the network, or nobody answered. Try again when it is.
    #[error("not on the network")]
    Offline,
    /// Nodes answered, and none of them knows the record: never published, or forgotten. Try again later; a holder
    /// of the record who opens it brings it back.
    #[error("record is not known to the network")]
    RecordNotFound,
    /// The network did not answer in time. Try again.
    #[error("{operation} took longer than {after:?}")]
    Timeout {
        /// What was waited for.
        operation: &'static str,
        /// How long.
        after: Duration,
    },
    /// A value was sent, but the network does not give it, and no newer one either. It stays queued; try again.
    #[error("value could not be read back from the network")]
    NotConfirmed,
    /// A row of the local cache cannot be read: the table is damaged, or written by a newer program. Reading from the
    /// network replaces the row.
    #[error("row of the record cache is damaged")]
    CacheRow,
    /// Veilid does not find a record among its own that it has open, most often because there was no space when it was to be stored. It
    /// opens it again after the node was started anew; what was written is queued here all the same.
    #[error("record is not in the node's own store")]
    NotStored,
    /// The cache was closed, because the node is stopping.
    #[error("record cache is closed")]
    CacheClosed,
    /// The system gave no randomness.
    #[error("no randomness from the system")]
    Randomness,
    /// Veilid refused the call for another reason, which the source tells in full.
    #[error("the Veilid node refused a call: {}", kind_of(.0))]
    Veilid(#[source] VeilidAPIError),
}

impl Error {
    /// Whether the same call may succeed later without anything else being changed.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Error::Offline
            | Error::RecordNotFound
            | Error::Timeout { .. }
            | Error::NotConfirmed => true,
            Error::Veilid(error) => matches!(
                error,
                VeilidAPIError::Timeout
                    | VeilidAPIError::TryAgain { .. }
                    | VeilidAPIError::NoConnection { .. }
            ),
            _ => false,
        }
    }

    /// Whether this device's disk or node failed: neither the network nor a value is to blame, and waiting does not help.
    #[must_use]
    pub fn is_local(&self) -> bool {
        match self {
            Error::NotStored | Error::CacheRow | Error::CacheClosed | Error::Randomness => true,
            Error::Veilid(_) => !self.is_retryable(),
            _ => false,
        }
    }
}

/// The name of an error without what it quotes.
pub(crate) fn kind_of(error: &VeilidAPIError) -> &'static str {
    use VeilidAPIError as E;
    match error {
        E::NotInitialized => "not initialized",
        E::AlreadyInitialized => "already initialized",
        E::Timeout => "timeout",
        E::TryAgain { .. } => "try again",
        E::InvalidTarget { .. } => "invalid target",
        E::NoConnection { .. } => "no connection",
        E::Shutdown => "shutdown",
        E::KeyNotFound { .. } => "key not found",
        E::Internal { .. } => "internal",
        E::Unimplemented { .. } => "unimplemented",
        E::ParseError { .. } => "parse error",
        E::InvalidArgument { .. } => "invalid argument",
        E::MissingArgument { .. } => "missing argument",
        E::Generic { .. } => "generic",
        E::TransactionNotFound { .. } => "transaction not found",
    }
}

/// What Veilid says of a record that it has open and cannot find, while it is open and when it is to be opened again.
const NOT_STORED: [&str; 2] = ["but is now missing", "should never be opened at this point"];

impl From<VeilidAPIError> for Error {
    fn from(error: VeilidAPIError) -> Self {
        match error {
            // The text of this one holds the record key, which does not belong in a log.
            VeilidAPIError::KeyNotFound { .. } => Error::RecordNotFound,
            // "offline, try again later", "no node answered": the same to a caller.
            VeilidAPIError::TryAgain { .. } | VeilidAPIError::NoConnection { .. } => Error::Offline,
            // These, too, quote the key.
            VeilidAPIError::Internal { message }
                if NOT_STORED.iter().any(|words| message.contains(words)) =>
            {
                Error::NotStored
            }
            other => Error::Veilid(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;

    #[test]
    fn what_veilid_quotes_is_in_the_source_only() {
        let error = Error::from(VeilidAPIError::internal("VLD0:secret is odd"));
        assert_eq!(
            error.to_string(),
            "the Veilid node refused a call: internal"
        );
        let source = error.source().unwrap().to_string();
        assert!(source.contains("VLD0:secret"));
    }
}
