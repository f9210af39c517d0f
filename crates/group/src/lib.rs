#![doc = include_str!("../README.md")]
// Veilid's futures are nested deeper than the default allows to look.
#![recursion_limit = "256"]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod collection;
mod error;
mod fetch;
mod files;
mod group;
mod have;
mod ignore;
mod members;
mod peers;
mod progress;
mod serve;
mod stream;
mod upkeep;

pub use error::{Error, Result};
pub use files::ListedFile;
pub use group::{Group, GroupContext, GroupEvent, GroupSecrets};
pub use ignore::{Fault, Ignored};
pub use members::Member;
pub use progress::{FetchProgress, FetchState, OnProgress};
