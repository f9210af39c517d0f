//! A cache in Veilid's table store, which lasts across restarts.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use veilid_core::{OpaqueRecordKey, TableDB, VeilidAPI};

use super::{Cached, RecordCache};
use crate::error::{Error, Result};

/// The table's name; changes when its layout does.
const TABLE: &str = "dht-records-v1";

/// Keeps rows in Veilid's table store, one row for each subkey, encrypted under the device's key.
///
/// A table is not authenticated: who can write to this device's disk can lower a high-water mark. The values in the
/// rows are sealed by themselves, so that is all such a writer can do.
///
/// Call [`RecordCache::close`] before the node shuts down: Veilid waits for open tables.
pub struct TableCache {
    state: Mutex<Option<State>>,
}

struct State {
    table: TableDB,
    // Keys cannot be listed by prefix, so the subkeys of each record are kept here.
    index: HashMap<OpaqueRecordKey, BTreeSet<u32>>,
}

impl TableCache {
    /// Opens the table, which needs the node to be started but not attached.
    ///
    /// # Errors
    /// [`Error::Veilid`] if the table store does not open it; [`Error::CacheRow`] if a key in it is not one of ours.
    pub async fn open(api: &VeilidAPI) -> Result<Self> {
        let table = api.open_table_db(TABLE, 1).await?;
        let mut index: HashMap<OpaqueRecordKey, BTreeSet<u32>> = HashMap::new();
        for key in table.get_keys(0).await? {
            let (record, subkey) = parse_key(&key).ok_or(Error::CacheRow)?;
            index.entry(record).or_default().insert(subkey);
        }
        Ok(Self {
            state: Mutex::new(Some(State { table, index })),
        })
    }

    fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> Result<T> {
        let mut guard = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        guard.as_mut().map(f).ok_or(Error::CacheClosed)
    }
}

impl std::fmt::Debug for TableCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TableCache").finish_non_exhaustive()
    }
}

fn row_key(record: &OpaqueRecordKey, subkey: u32) -> Vec<u8> {
    let mut key: Vec<u8> = record.into();
    key.extend_from_slice(&subkey.to_be_bytes());
    key
}

fn parse_key(key: &[u8]) -> Option<(OpaqueRecordKey, u32)> {
    let (record, subkey) = key.split_last_chunk::<4>()?;
    Some((
        OpaqueRecordKey::try_from(record).ok()?,
        u32::from_be_bytes(*subkey),
    ))
}

#[async_trait]
impl RecordCache for TableCache {
    async fn load(&self, record: &OpaqueRecordKey, subkey: u32) -> Result<Option<Cached>> {
        let known = self.with(|state| {
            let known = state
                .index
                .get(record)
                .is_some_and(|subkeys| subkeys.contains(&subkey));
            known.then(|| state.table.clone())
        })?;
        let Some(table) = known else { return Ok(None) };
        let row = table.load(0, row_key(record, subkey).into()).await?;
        row.map(|bytes| Cached::from_bytes(&bytes)).transpose()
    }

    async fn subkeys(&self, record: &OpaqueRecordKey) -> Result<Vec<u32>> {
        self.with(|state| {
            let subkeys = state.index.get(record);
            subkeys
                .map(|s| s.iter().copied().collect())
                .unwrap_or_default()
        })
    }

    async fn store(&self, record: &OpaqueRecordKey, subkey: u32, row: &Cached) -> Result<()> {
        let table = self.with(|state| state.table.clone())?;
        table
            .store(0, row_key(record, subkey).into(), row.to_bytes().into())
            .await?;
        self.with(|state| {
            state
                .index
                .entry(record.clone())
                .or_default()
                .insert(subkey);
        })
    }

    async fn remove(&self, record: &OpaqueRecordKey) -> Result<()> {
        let (table, subkeys) = self.with(|state| {
            let subkeys = state.index.get(record).cloned().unwrap_or_default();
            (state.table.clone(), subkeys)
        })?;
        let transaction = table.transact();
        for subkey in subkeys {
            transaction
                .delete(0, row_key(record, subkey).into())
                .await?;
        }
        transaction.commit().await?;
        self.with(|state| {
            state.index.remove(record);
        })
    }

    async fn close(&self) {
        // The handle goes when its last user is done; a clone lives only inside a call above.
        self.state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
    }
}
