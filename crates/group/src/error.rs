//! What can go wrong in a group.

use std::{io, sync::Arc, time::Duration};

use iroh_blobs::Hash;

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong in a group.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A DHT record could not be read or written. Ask its own `is_retryable`.
    #[error("a group or repo record failed")]
    Records(#[from] dht_records::Error),
    /// A data repository failed. Ask its own `is_retryable`.
    #[error("a data repository failed")]
    Repo(#[from] repo::Error),
    /// A tunnel failed. Ask its own `is_retryable`.
    #[error("a tunnel failed")]
    Tunnel(#[from] tunnels::Error),
    /// The local blob store failed; a full disk shows up here.
    #[error("the local blob store failed")]
    Store(#[source] io::Error),
    /// The store's adapter failed.
    #[error("the local blob store failed")]
    StoreAdapter(#[from] store_adapter::Error),
    /// A blob that came cannot be kept, for a reason of this device's. What of it is here already stays.
    #[error("what came cannot be stored")]
    NotStored(#[source] Arc<Error>),
    /// What was written here cannot be published, for a reason that does not pass by itself. It is here all the same, and tried again.
    #[error("what was written here cannot be published")]
    NotPublished(#[source] Arc<Error>),
    /// Veilid refused a call, most often because the node is shutting down.
    #[error("the Veilid node refused a call")]
    Veilid(#[from] veilid_core::VeilidAPIError),
    /// All 1,023 slots of the group are taken.
    #[error("the group is full: all {slots} slots are taken")]
    GroupFull {
        /// How many slots a group has.
        slots: usize,
    },
    /// The DHT knows no such group, or none of its holders is online. Retry when the network is better.
    #[error("the group does not answer")]
    GroupDoesNotAnswer,
    /// The group's record cannot be read now, so there may be more than what is known here. Retry when the network is better.
    #[error("who is in the group and what they have could not be read")]
    NotSeen(#[source] Arc<Error>),
    /// This device holds no list of files of this member's, so without the one that is missing it would publish an empty one.
    #[error("this device has no list of files that it could publish instead")]
    NothingToPublish,
    /// Nobody in the group has this repo key.
    #[error("no member of the group has this repo key")]
    NoSuchMember,
    /// The member has published no tunnel, or none that answers. Retry when they are online.
    #[error("the member does not answer")]
    MemberDoesNotAnswer,
    /// Nobody who is online has these blobs. Retry when others are.
    #[error("nobody who is online has {} of the wanted blobs", missing.len())]
    NobodyHas {
        /// The blobs that are still missing.
        missing: Vec<Hash>,
    },
    /// A blob is larger than what its place in a collection allows; its publisher is broken or hostile.
    #[error("a blob is larger than {limit} bytes allow")]
    TooLarge {
        /// The limit in bytes.
        limit: u64,
    },
    /// As much is wanted and not here yet as this device remembers. Forget some of it first.
    #[error("more than {limit} files are wanted already")]
    TooManyWanted {
        /// The limit.
        limit: usize,
    },
    /// A message of another member is malformed.
    #[error("malformed message: {what}")]
    BadMessage {
        /// Which part.
        what: &'static str,
    },
    /// The group was opened with keys that cannot do this.
    #[error("this group can be read only")]
    ReadOnly,
    /// Names and files need the content key, which a replica does not have.
    #[error("this device stores the group's files and cannot read them")]
    Unreadable,
    /// More members stay than a notice can tell. Leave some out, and invite them by links.
    #[error("a notice tells at most {limit} members")]
    TooManyStaying {
        /// The limit.
        limit: usize,
    },
    /// The name does not fit.
    #[error("the name is longer than {limit} bytes")]
    NameTooLong {
        /// The longest, in bytes.
        limit: usize,
    },
    /// This member left the group, from this device or from another.
    #[error("this member left the group")]
    Left,
    /// Nothing came within the time allowed. Retry.
    #[error("no answer within {} s", limit.as_secs())]
    Timeout {
        /// The time allowed.
        limit: Duration,
    },
    /// The group has been closed.
    #[error("the group has been closed")]
    Closed,
}

impl Error {
    /// Of what iroh-blobs reported.
    pub(crate) fn store(cause: impl std::error::Error + 'static) -> Self {
        Self::Store(store_adapter::Error::iroh(cause).into_io())
    }

    /// Whether this device's own disk or node failed: neither the network nor another member is to blame.
    pub(crate) fn is_local(&self) -> bool {
        match self {
            Self::Store(_)
            | Self::StoreAdapter(_)
            | Self::NotStored(_)
            | Self::Repo(repo::Error::Store(_)) => true,
            Self::Veilid(error) => dht_records::Error::from(error.clone()).is_local(),
            Self::Records(error) | Self::Repo(repo::Error::Records(error)) => error.is_local(),
            _ => false,
        }
    }

    /// Whether the same call can succeed later without a change by the caller.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Records(e) => e.is_retryable(),
            Self::Repo(e) => e.is_retryable(),
            Self::Tunnel(e) => e.is_retryable(),
            Self::StoreAdapter(e) => e.is_retryable(),
            Self::NotStored(cause) | Self::NotPublished(cause) | Self::NotSeen(cause) => {
                cause.is_retryable()
            }
            Self::GroupDoesNotAnswer
            | Self::MemberDoesNotAnswer
            | Self::NobodyHas { .. }
            | Self::Timeout { .. } => true,
            Self::Store(_)
            | Self::Veilid(_)
            | Self::GroupFull { .. }
            | Self::NoSuchMember
            | Self::TooLarge { .. }
            | Self::TooManyWanted { .. }
            | Self::BadMessage { .. }
            | Self::NothingToPublish
            | Self::ReadOnly
            | Self::Unreadable
            | Self::Left
            | Self::NameTooLong { .. }
            | Self::TooManyStaying { .. }
            | Self::Closed => false,
        }
    }
}
