//! Watching a record: Veilid's notices where they come, inspection where they do not.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::{Record, network_seqs};
use crate::error::Result;
use crate::stats::Operation;

/// How long after Veilid ended a watch it is registered again.
const REREGISTER: Duration = Duration::from_secs(2);

/// Subkeys that may have changed. Reading them from the network tells how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changed {
    /// In ascending order, never empty.
    pub subkeys: Vec<u32>,
}

/// The watches of one record.
#[derive(Default)]
pub(crate) struct Watchers {
    states: Mutex<Vec<Weak<State>>>,
}

#[derive(Default)]
struct State {
    news: Mutex<News>,
    wake: Notify,
}

// A set, not a queue: however many notices come, it is bounded by the subkeys, and none is lost.
#[derive(Default)]
struct News {
    subkeys: BTreeSet<u32>,
    died: bool,
    look: bool,
    ended: bool,
}

impl Watchers {
    pub(crate) fn changed(&self, subkeys: impl Iterator<Item = u32>, died: bool) {
        // A hostile node could name four billion subkeys; no record has more than 1,024.
        let subkeys: Vec<u32> = subkeys.take_while(|subkey| *subkey < 1024).collect();
        self.tell(|news| {
            news.subkeys.extend(&subkeys);
            news.died |= died;
        });
    }

    pub(crate) fn look(&self) {
        self.tell(|news| news.look = true);
    }

    pub(crate) fn died(&self) {
        self.tell(|news| news.died = true);
    }

    pub(crate) fn end(&self) {
        self.tell(|news| news.ended = true);
    }

    fn tell(&self, f: impl Fn(&mut News)) {
        let mut states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        states.retain(|state| {
            let Some(state) = state.upgrade() else {
                return false;
            };
            f(&mut state.news.lock().unwrap_or_else(PoisonError::into_inner));
            state.wake.notify_one();
            true
        });
    }

    fn add(&self) -> Arc<State> {
        let state = Arc::new(State::default());
        let mut states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        states.push(Arc::downgrade(&state));
        state
    }
}

/// Changes of one record: first what the network has and this device has not read yet, then what comes. All the work is
/// done in [`Watch::next`].
pub struct Watch {
    record: Record,
    state: Arc<State>,
    registered: bool,
    /// The sequence numbers last seen, so that an inspection tells what is new. `None` before the first.
    known: Option<BTreeMap<u32, u32>>,
    next_look: Instant,
}

impl Watch {
    pub(crate) async fn new(record: Record) -> Result<Self> {
        let state = record.core.watchers.add();
        let mut watch = Self {
            record,
            state,
            registered: false,
            known: None,
            next_look: Instant::now(),
        };
        watch.register().await;
        Ok(watch)
    }

    /// The next changes: waits until there are some. `None` once the record was closed.
    ///
    /// Changes come from Veilid's notices, usually within a second or two, and from an inspection every
    /// [`RecordsOptions::poll`](crate::RecordsOptions::poll), after the node came back to the network, and after
    /// Veilid ended its watch, which is then registered again. A write of this device can be among them. Changes that
    /// were announced stay until this is called; dropping the call loses none.
    pub async fn next(&mut self) -> Option<Changed> {
        loop {
            let look = {
                let mut news = self
                    .state
                    .news
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                if news.ended {
                    return None;
                }
                if std::mem::take(&mut news.died) {
                    self.registered = false;
                    // Not at once: a node that ends every watch must not make this one spin.
                    self.next_look = self.next_look.min(Instant::now() + REREGISTER);
                }
                if !news.subkeys.is_empty() {
                    let subkeys = std::mem::take(&mut news.subkeys);
                    return Some(Changed {
                        subkeys: subkeys.into_iter().collect(),
                    });
                }
                std::mem::take(&mut news.look)
            };
            if look || Instant::now() >= self.next_look {
                // Set first: a call that is dropped half way does not make the next one look at once, for ever.
                self.next_look = Instant::now() + self.record.core.inner.options.poll;
                self.register().await;
                self.look().await;
                continue;
            }
            tokio::select! {
                () = self.state.wake.notified() => {}
                () = tokio::time::sleep_until(self.next_look) => {}
            }
        }
    }

    async fn register(&mut self) {
        if self.registered {
            return;
        }
        let core = &self.record.core;
        let asked = core
            .call(
                None,
                Operation::Watch,
                core.inner.options.open,
                |context| async move {
                    context
                        .watch_dht_values(core.key.clone(), None, None, None)
                        .await
                },
            )
            .await;
        match asked {
            Ok(active) => self.registered = active,
            Err(error) => tracing::debug!(%error, "watch not registered; inspection goes on"),
        }
    }

    /// Inspects the record and notes what is newer than what was known.
    async fn look(&mut self) {
        let report = match self.record.core.inspect(None).await {
            Ok(report) => report,
            Err(error) => {
                tracing::debug!(%error, "record not inspected");
                return;
            }
        };
        let mut now: BTreeMap<u32, u32> = network_seqs(&report).collect();
        let mut newer = BTreeSet::new();
        for (&subkey, &seq) in &now {
            // What the cache has read already is no news, and before the first look it is all that is known.
            let read = self
                .record
                .row(subkey, true)
                .await
                .ok()
                .flatten()
                .and_then(|row| row.seq);
            let known = self
                .known
                .as_ref()
                .and_then(|known| known.get(&subkey).copied());
            if Some(seq) > read.max(known) {
                newer.insert(subkey);
            }
        }
        // A node that holds less than others do must not make old values look new later.
        for (subkey, seq) in self.known.take().unwrap_or_default() {
            let entry = now.entry(subkey).or_insert(seq);
            *entry = seq.max(*entry);
        }
        self.known = Some(now);
        let mut news = self
            .state
            .news
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        news.subkeys.extend(newer);
    }
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch")
            .field("registered", &self.registered)
            .finish_non_exhaustive()
    }
}
