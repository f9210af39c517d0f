//! What this device remembers of each subkey: high-water mark, offline copy, and queue of what is not published yet.

mod memory;
mod table;

pub use memory::MemoryCache;
pub use table::TableCache;

use async_trait::async_trait;
use veilid_core::OpaqueRecordKey;

use crate::error::{Error, Result};

/// The first half of a BLAKE3 hash, by which a sealed value is known again.
pub type Digest = [u8; 16];

/// What is remembered of one subkey.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cached {
    /// The counter inside `sealed`.
    pub counter: u64,
    /// The sealed value, as it stands on the network or is to go there. Empty where only the mark is left of it.
    pub sealed: Vec<u8>,
    /// Whether this device wrote it.
    pub own: bool,
    /// Whether the network has given this very value back. What is not published is sent by the next `publish`.
    pub published: bool,
    /// Whether it was handed to Veilid, so that it may be on the network although nobody said so yet.
    pub attempted: bool,
    /// The highest counter that the network has shown: the mark below which a value is a rollback. 0 before the first.
    pub confirmed: u64,
    /// The digest of the value with that counter: what a write of this device that waits was based on.
    pub confirmed_digest: Digest,
    /// Veilid's sequence number of what the network showed last. Tells an inspection what has changed since.
    pub seq: Option<u32>,
    /// The counter of a write of this device that lost against another writer and was not reported by `publish` yet.
    pub overwritten: Option<u64>,
    /// Earlier values of this device that were handed to Veilid and replaced before they were read back. At most 16;
    /// on the network they are no other writer's.
    pub earlier: Vec<Digest>,
}

impl Cached {
    const VERSION: u8 = 1;
    const EARLIER: usize = 16;

    /// The digest of a sealed value.
    #[must_use]
    pub fn digest(sealed: &[u8]) -> Digest {
        let hash = blake3::hash(sealed);
        let (digest, _) = hash
            .as_bytes()
            .split_first_chunk()
            .expect("a hash has 32 bytes");
        *digest
    }

    /// The row as bytes, numbers big-endian: `version ‖ flags ‖ counter ‖ confirmed ‖ confirmed digest ‖ seq ‖
    /// overwritten ‖ number of earlier digests ‖ earlier digests ‖ sealed`.
    ///
    /// Flags: bit 0 published, 1 seq present, 2 overwritten present, 3 own, 4 attempted.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let flags = [
            self.published,
            self.seq.is_some(),
            self.overwritten.is_some(),
            self.own,
            self.attempted,
        ];
        let flags = flags
            .iter()
            .rev()
            .fold(0u8, |all, flag| all << 1 | u8::from(*flag));
        let skipped = self.earlier.len().saturating_sub(Self::EARLIER);
        let earlier = self.earlier.get(skipped..).unwrap_or_default();
        let mut out = Vec::with_capacity(64 + 16 * earlier.len() + self.sealed.len());
        out.extend_from_slice(&[Self::VERSION, flags]);
        out.extend_from_slice(&self.counter.to_be_bytes());
        out.extend_from_slice(&self.confirmed.to_be_bytes());
        out.extend_from_slice(&self.confirmed_digest);
        out.extend_from_slice(&self.seq.unwrap_or(0).to_be_bytes());
        out.extend_from_slice(&self.overwritten.unwrap_or(0).to_be_bytes());
        out.push(u8::try_from(earlier.len()).expect("at most 16"));
        out.extend_from_slice(earlier.as_flattened());
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
            let (confirmed_digest, rest) = rest.split_first_chunk::<16>()?;
            let (seq, rest) = rest.split_first_chunk::<4>()?;
            let (overwritten, rest) = rest.split_first_chunk::<8>()?;
            let (count, rest) = rest.split_first()?;
            let (earlier, sealed) = rest.split_at_checked(16 * usize::from(*count))?;
            let (earlier, _) = earlier.as_chunks::<16>();
            if *version != Cached::VERSION || *flags > 0b1_1111 || earlier.len() > Cached::EARLIER {
                return None;
            }
            let flag = |bit: u8| flags & (1 << bit) != 0;
            Some(Cached {
                counter: u64::from_be_bytes(*counter),
                sealed: sealed.to_vec(),
                own: flag(3),
                published: flag(0),
                attempted: flag(4),
                confirmed: u64::from_be_bytes(*confirmed),
                confirmed_digest: *confirmed_digest,
                seq: flag(1).then_some(u32::from_be_bytes(*seq)),
                overwritten: flag(2).then_some(u64::from_be_bytes(*overwritten)),
                earlier: earlier.to_vec(),
            })
        }
        parse(bytes).ok_or(Error::CacheRow)
    }

    /// Whether there is a value, and not only a mark.
    #[must_use]
    pub fn has_value(&self) -> bool {
        !self.sealed.is_empty()
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
