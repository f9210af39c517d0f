#![doc = include_str!("../README.md")]
#![cfg_attr(test, allow(clippy::unwrap_used))]
#![recursion_limit = "256"]

mod actor;
mod backend;
mod bao;
mod blob;
mod core;
mod error;
mod export;
mod gc;
mod import;
mod index;
mod large;
mod log;
mod pieces;
mod pins;
mod seal;
mod secret;
mod secrets;
mod source;
mod store;
mod tables;
#[cfg(test)]
mod testing;
mod tree;
mod walk;
mod writer;

pub use backend::veilid::open_table;
pub use error::{Error, Result};
pub use gc::GcReport;
pub use iroh_blobs::{Hash, HashAndFormat};
pub use secrets::{Protection, Secrets, repair_secrets};
pub use store::{Protected, StoreOptions, Usage, VeilidStore, VerifyProgress, VerifyReport};
