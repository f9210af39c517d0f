#![doc = include_str!("../README.md")]
// Veilid's futures are nested deeper than the default allows to look.
#![recursion_limit = "256"]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod collection;
mod edits;
mod engine;
mod error;
mod files;
mod group;
mod have;
mod held;
mod ignore;
mod leave;
mod ledger;
mod looking;
mod members;
mod moving;
mod own;
mod peers;
mod presence;
mod progress;
mod publish;
mod sched;
mod serve;
mod slots;
mod stream;
mod sync;
mod upkeep;
mod wanted;

pub use error::{Error, Result};
pub use files::ListedFile;
pub use group::{Group, GroupContext, GroupEvent, GroupSecrets, OwnSecrets};
pub use ignore::{Fault, Ignored};
pub use ledger::Ledger;
pub use members::{Guest, Member, Role};
pub use moving::{Copied, MAX_STAYING, Move};
pub use progress::{FetchProgress, FetchState, OnProgress};
pub use publish::Unpublished;
pub use serve::Serving;
pub use sync::{OnSync, RepoSync, SyncProgress, SyncReport};
pub use wanted::{MAX_WANTED, Wanted};
