//! The records of one Veilid node: what they share, and where Veilid's updates enter.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::broadcast;
use veilid_core::{DHTSchema, OpaqueRecordKey, PublicKey, VeilidAPI, VeilidUpdate};

use crate::cache::RecordCache;
use crate::error::{Error, Result};
use crate::record::Core;
use crate::stats::{Counters, Stats};

/// How many events wait for a slow receiver before the oldest are dropped.
const EVENTS: usize = 256;

/// How long calls on the network may take, and how much happens at once.
///
/// ```
/// let options = dht_records::RecordsOptions { parallel: 4, ..Default::default() };
/// assert_eq!(options.get, std::time::Duration::from_secs(15));
/// ```
#[derive(Debug, Clone)]
pub struct RecordsOptions {
    /// Opening a record that is not stored here, which asks the network. 20 s.
    pub open: Duration,
    /// Reading one subkey from the network. 15 s, above Veilid's own 10 s.
    pub get: Duration,
    /// Writing one subkey. 20 s.
    pub set: Duration,
    /// Waiting until Veilid has sent everything that it queued for a record. 20 s.
    pub flush: Duration,
    /// Inspecting a record. 20 s.
    pub inspect: Duration,
    /// How often a watch inspects the record by itself, for where watches are refused or a notice was lost. 60 s.
    pub poll: Duration,
    /// How many subkeys are read or written at once. 16.
    pub parallel: usize,
}

impl Default for RecordsOptions {
    fn default() -> Self {
        Self {
            open: Duration::from_secs(20),
            get: Duration::from_secs(15),
            set: Duration::from_secs(20),
            flush: Duration::from_secs(20),
            inspect: Duration::from_secs(20),
            poll: Duration::from_secs(60),
            parallel: 16,
        }
    }
}

/// Something that a reader of records should know and no return value says.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum RecordEvent {
    /// The network gave an older value than it had given before. It was ignored, and the newer one is published
    /// again by whoever can write.
    Rollback {
        /// The record.
        record: OpaqueRecordKey,
        /// The subkey.
        subkey: u32,
        /// The highest counter seen before.
        seen: u64,
        /// The counter of the value that was ignored.
        got: u64,
    },
    /// A write of this device that was not published yet lost against another writer, whose value stands now.
    /// `publish` reports it as well.
    Overwritten {
        /// The record.
        record: OpaqueRecordKey,
        /// The subkey.
        subkey: u32,
        /// The counter of the value that lost.
        ours: u64,
        /// The counter of the value that won.
        theirs: u64,
    },
    /// The network gave a value that does not open. What was known before is kept.
    Undecodable {
        /// The record.
        record: OpaqueRecordKey,
        /// The subkey.
        subkey: u32,
        /// Why.
        error: Error,
    },
}

/// The records of one Veilid node. Cheap to clone; all clones are the same.
#[derive(Clone)]
pub struct Records {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) api: VeilidAPI,
    pub(crate) cache: Arc<dyn RecordCache>,
    pub(crate) options: RecordsOptions,
    pub(crate) counters: Counters,
    events: broadcast::Sender<RecordEvent>,
    ready: AtomicBool,
    // Two handles of one record share its state; a record without handles is forgotten.
    cores: Mutex<HashMap<OpaqueRecordKey, Weak<Core>>>,
}

impl Records {
    /// The records of the node `api`, which has to be started and need not be attached.
    #[must_use]
    pub fn new(api: VeilidAPI, cache: Arc<dyn RecordCache>) -> Self {
        Self::with_options(api, cache, RecordsOptions::default())
    }

    /// As [`Records::new`], with other times.
    #[must_use]
    pub fn with_options(
        api: VeilidAPI,
        cache: Arc<dyn RecordCache>,
        options: RecordsOptions,
    ) -> Self {
        Self {
            inner: Arc::new(Inner {
                api,
                cache,
                options,
                counters: Counters::default(),
                events: broadcast::Sender::new(EVENTS),
                ready: AtomicBool::new(false),
                cores: Mutex::default(),
            }),
        }
    }

    /// The node.
    pub fn api(&self) -> &VeilidAPI {
        &self.inner.api
    }

    /// The cache.
    #[must_use]
    pub fn cache(&self) -> &Arc<dyn RecordCache> {
        &self.inner.cache
    }

    /// How often the network was asked so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.inner.counters.stats()
    }

    /// Takes in an update of the node. Call it for each, inside Veilid's callback: it neither blocks nor waits.
    pub fn handle_update(&self, update: &VeilidUpdate) {
        match update {
            VeilidUpdate::ValueChange(change) => {
                let Some(core) = self.inner.core(&change.key.opaque()) else {
                    return;
                };
                // No subkeys, or a count of zero: the watch is dead.
                let died = change.subkeys.is_empty() || change.count == 0;
                core.watchers.changed(change.subkeys.iter(), died);
            }
            VeilidUpdate::Attachment(state) => {
                let was_ready = self
                    .inner
                    .ready
                    .swap(state.public_internet_ready, Ordering::AcqRel);
                if was_ready || !state.public_internet_ready {
                    return;
                }
                // What was announced while this node was away is lost: look once.
                let cores: Vec<_> = self
                    .inner
                    .lock_cores()
                    .values()
                    .filter_map(Weak::upgrade)
                    .collect();
                for core in cores {
                    core.watchers.look();
                }
            }
            _ => {}
        }
    }

    /// Events from now on. A receiver that falls more than 256 behind is told how many it lost.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<RecordEvent> {
        self.inner.events.subscribe()
    }

    /// Closes every open record and the cache, before the node shuts down. Watches end.
    pub async fn close(&self) {
        let cores: Vec<_> = self
            .inner
            .lock_cores()
            .values()
            .filter_map(Weak::upgrade)
            .collect();
        for core in cores {
            core.close().await;
        }
        self.inner.cache.close().await;
    }

    /// The state of the record that `owner` and `schema` name, shared by all its handles.
    pub(crate) async fn core(
        &self,
        schema: DHTSchema,
        owner: PublicKey,
        limit: usize,
    ) -> Result<Arc<Core>> {
        let key = self
            .inner
            .api
            .get_dht_record_key(schema.clone(), owner.clone(), None)
            .await?;
        let mut cores = self.inner.lock_cores();
        cores.retain(|_, core| core.strong_count() > 0);
        if let Some(core) = cores.get(&key.opaque()).and_then(Weak::upgrade) {
            return Ok(core);
        }
        let core = Arc::new(Core::new(self.inner.clone(), key, schema, owner, limit));
        cores.insert(core.opaque.clone(), Arc::downgrade(&core));
        Ok(core)
    }
}

impl std::fmt::Debug for Records {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Records").finish_non_exhaustive()
    }
}

impl Inner {
    pub(crate) fn emit(&self, event: RecordEvent) {
        // Nobody listening is no error.
        let _ = self.events.send(event);
    }

    fn core(&self, record: &OpaqueRecordKey) -> Option<Arc<Core>> {
        self.lock_cores().get(record).and_then(Weak::upgrade)
    }

    fn lock_cores(&self) -> std::sync::MutexGuard<'_, HashMap<OpaqueRecordKey, Weak<Core>>> {
        self.cores.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
