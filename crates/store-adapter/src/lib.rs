#![doc = include_str!("../README.md")]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod error;
mod gc;
mod store;
mod walk;

pub use error::{Error, Result};
pub use gc::GcReport;
pub use iroh_blobs::{Hash, HashAndFormat};
pub use store::{Protected, StoreOptions, Usage, VeilidStore};
