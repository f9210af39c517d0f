#![doc = include_str!("../README.md")]
#![cfg_attr(test, allow(clippy::unwrap_used))] // a test that unwraps an error fails, which is what it is for

mod clock;
pub mod collection;
mod error;
mod export;
mod import;
mod path;
mod reader;
mod repo;
pub mod seal;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod vectors;

pub use clock::{Clock, SystemClock};
pub use collection::{Entry, Version};
pub use error::{Error, Result};
pub use export::Existing;
pub use import::OnProgress;
pub use iroh_blobs::Hash;
pub use path::{EntryPath, PathError};
pub use reader::FileReader;
pub use repo::{Repo, RepoContext, Root, Source, WriteOptions};
