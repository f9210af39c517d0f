//! What this device remembers of each subkey: high-water mark, offline copy, and queue of what is not published yet.

mod memory;
mod table;

pub use memory::MemoryCache;
pub use table::TableCache;

use async_trait::async_trait;
use veilid_core::OpaqueRecordKey;

use crate::error::{Error, Result};

/// What is remembered of one subkey.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cached {
    /// The counter inside `sealed`.
    pub counter: u64,
    /// The sealed value, as it stands on the network or is to go there.
    pub sealed: Vec<u8>,
    /// Whether the network has given this very value back. What is not published is sent by the next `publish`.
    pub published: bool,
    /// The highest counter that the network has shown: the mark below which a value is a rollback. 0 before the first.
    pub confirmed: u64,
    /// Veilid's sequence number of what the network showed last. Tells an inspection what has changed since.
    pub seq: Option<u32>,
    /// The counter of a write of this device that lost against another writer and was not reported by `publish` yet.
    pub overwritten: Option<u64>,
}

impl Cached {
    const VERSION: u8 = 1;
    const HEAD: usize = 1 + 1 + 8 + 8 + 4 + 8;

    /// The row as bytes: `version ‖ flags ‖ counter ‖ confirmed ‖ seq ‖ overwritten ‖ sealed`, numbers big-endian.
    ///
    /// Flags: bit 0 published, bit 1 seq present, bit 2 overwritten present.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut flags = u8::from(self.published);
        flags |= u8::from(self.seq.is_some()) << 1;
        flags |= u8::from(self.overwritten.is_some()) << 2;
        let mut out = Vec::with_capacity(Self::HEAD + self.sealed.len());
        out.extend_from_slice(&[Self::VERSION, flags]);
        out.extend_from_slice(&self.counter.to_be_bytes());
        out.extend_from_slice(&self.confirmed.to_be_bytes());
        out.extend_from_slice(&self.seq.unwrap_or(0).to_be_bytes());
        out.extend_from_slice(&self.overwritten.unwrap_or(0).to_be_bytes());
        out.extend_from_slice(&self.sealed);
        out
    }

    /// Reads what [`Cached::to_bytes`] wrote.
    ///
    /// # Errors
    /// [`Error::CacheRow`] for anything else.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        fn parse(bytes: &[u8]) -> Option<Cached> {
            let ([version, flags], rest) = bytes.split_first_chunk::<2>()?;
            let (counter, rest) = rest.split_first_chunk::<8>()?;
            let (confirmed, rest) = rest.split_first_chunk::<8>()?;
            let (seq, rest) = rest.split_first_chunk::<4>()?;
            let (overwritten, sealed) = rest.split_first_chunk::<8>()?;
            if *version != Cached::VERSION || *flags > 0b111 {
                return None;
            }
            Some(Cached {
                counter: u64::from_be_bytes(*counter),
                sealed: sealed.to_vec(),
                published: flags & 1 != 0,
                confirmed: u64::from_be_bytes(*confirmed),
                seq: (flags & 2 != 0).then_some(u32::from_be_bytes(*seq)),
                overwritten: (flags & 4 != 0).then_some(u64::from_be_bytes(*overwritten)),
            })
        }
        parse(bytes).ok_or(Error::CacheRow)
    }

    /// Whether `publish` has something to do or to report for this row.
    #[must_use]
    pub fn is_pending(&self) -> bool {
        !self.published || self.overwritten.is_some()
    }
}

/// Rows of [`Cached`] by record and subkey.
///
/// A row is durable when `store` returns. Writers of one record are serialised by the caller, so an implementation
/// needs no transactions. `tests::conformance` in this crate's sources says what it has to keep.
#[async_trait]
pub trait RecordCache: Send + Sync + 'static {
    /// The row of one subkey.
    ///
    /// # Errors
    /// [`Error::CacheRow`] if there is one and it cannot be read; [`Error::CacheClosed`]; [`Error::Veilid`].
    async fn load(&self, record: &OpaqueRecordKey, subkey: u32) -> Result<Option<Cached>>;

    /// The subkeys of a record that have a row, in ascending order.
    ///
    /// # Errors
    /// [`Error::CacheClosed`]; [`Error::Veilid`].
    async fn subkeys(&self, record: &OpaqueRecordKey) -> Result<Vec<u32>>;

    /// Writes a row, in place of the one before.
    ///
    /// # Errors
    /// [`Error::CacheClosed`]; [`Error::Veilid`].
    async fn store(&self, record: &OpaqueRecordKey, subkey: u32, row: &Cached) -> Result<()>;

    /// Forgets a record: also the high-water marks, so a value older than those would be accepted afterwards.
    ///
    /// # Errors
    /// [`Error::CacheClosed`]; [`Error::Veilid`].
    async fn remove(&self, record: &OpaqueRecordKey) -> Result<()>;

    /// Gives back what has to be given back before the node stops. Calls after this fail with [`Error::CacheClosed`].
    async fn close(&self);
}

#[cfg(test)]
pub(crate) mod tests;
