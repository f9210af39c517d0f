//! A cache that lasts as long as the process.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use veilid_core::OpaqueRecordKey;

use super::{Cached, RecordCache};
use crate::error::{Error, Result};

type Rows = BTreeMap<(OpaqueRecordKey, u32), Cached>;

/// Keeps rows in memory: for tests, and for readers that keep nothing.
///
/// Without the rows of an earlier run an older value cannot be told from the newest one, and what was not published
/// is lost.
#[derive(Debug)]
pub struct MemoryCache {
    rows: Mutex<Option<Rows>>,
}

impl MemoryCache {
    /// An empty cache.
    #[must_use]
    pub fn new() -> Self {
        Self {
            rows: Mutex::new(Some(Rows::new())),
        }
    }

    fn with<T>(&self, f: impl FnOnce(&mut Rows) -> T) -> Result<T> {
        let mut guard = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        guard.as_mut().map(f).ok_or(Error::CacheClosed)
    }
}

impl Default for MemoryCache {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl RecordCache for MemoryCache {
    async fn load(&self, record: &OpaqueRecordKey, subkey: u32) -> Result<Option<Cached>> {
        self.with(|rows| rows.get(&(record.clone(), subkey)).cloned())
    }

    async fn subkeys(&self, record: &OpaqueRecordKey) -> Result<Vec<u32>> {
        self.with(|rows| {
            rows.range((record.clone(), 0)..=(record.clone(), u32::MAX))
                .map(|((_, subkey), _)| *subkey)
                .collect()
        })
    }

    async fn store(&self, record: &OpaqueRecordKey, subkey: u32, row: &Cached) -> Result<()> {
        self.with(|rows| {
            rows.insert((record.clone(), subkey), row.clone());
        })
    }

    async fn remove(&self, record: &OpaqueRecordKey) -> Result<()> {
        self.with(|rows| rows.retain(|(key, _), _| key != record))
    }

    async fn close(&self) {
        *self.rows.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}
