#![doc = include_str!("../README.md")]
// Veilid's futures are nested deeper than the default allows to look.
#![recursion_limit = "256"]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod backend;
mod builder;
mod directory;
mod error;
mod events;
mod groups;
mod keys;
mod kind;
mod lifecycle;
pub mod link;
mod settings;
mod state;
mod sync;
mod time;
mod wipe;

pub use backend::{Backend, GroupStatus, Status};
pub use builder::BackendBuilder;
pub use error::{Error, Result};
pub use events::{Event, EventKind, EventStream};
pub use group::{
    Copied, Fault, Guest, Ignored, ListedFile, Member, Role, SyncProgress, Unpublished, Wanted,
};
pub use groups::{GroupId, GroupInfo, NewFile, Progress, ProgressState};
pub use keys::KeyStorage;
pub use kind::ErrorKind;
pub use lifecycle::Moved;
pub use link::*;
pub use repo::{Clock, Entry, EntryPath, FileReader, PathError, SystemClock};
pub use settings::NetworkSettings;
pub use store_adapter::{GcReport, Hash, VerifyProgress, VerifyReport};
pub use sync::RepoSync;
pub use time::UtcTime;
pub use veilid_core::PublicKey;
