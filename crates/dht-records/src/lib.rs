#![doc = include_str!("../README.md")]
#![cfg_attr(test, allow(clippy::unwrap_used))] // a test that unwraps an error fails, which is what it is for

mod access;
mod bytes_in_json;
pub mod cache;
pub mod contexts;
mod error;
mod group;
mod keys;
mod record;
mod records;
mod repo;
mod slot;
mod stats;
pub mod value;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod vectors;

pub use access::GroupAccess;
pub use cache::{Cached, MemoryCache, RecordCache, TableCache};
pub use contexts::Purpose;
pub use error::{Error, Result};
pub use group::{GroupMetadata, GroupRecord};
pub use keys::{ContentKey, GroupSecret, LocatorKey, SubKey, public_of};
pub use record::{Changed, Fetch, Outcome, Published, Stamped, Watch};
pub use records::{RecordEvent, Records, RecordsOptions};
pub use repo::{
    DeviceId, GuestRole, MAX_TUNNELS, MoveNotice, RepoMetadata, RepoRecord, RootValue, TunnelEntry,
    TunnelValue,
};
pub use slot::{Leave, MAX_NAME, SLOTS, Slot, SlotIndex, SlotRoot, SlotValue};
pub use stats::Stats;
