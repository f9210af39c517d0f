//! Sending what is not published, and making sure that it is.

use std::collections::BTreeMap;

use futures::{StreamExt, stream};
use veilid_core::{AllowOffline, SetDHTValueOptions};

use super::merge::{self, Note};
use super::{Record, network_seqs};
use crate::cache::Cached;
use crate::error::{Error, Result};

/// How often a subkey is sent in one call, where the network answers with an older value under a higher sequence number.
const ROUNDS: usize = 4;

/// What `publish` did, by subkey in ascending order. Empty if there was nothing to do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[must_use = "a write can lose against another writer, and this is where that is said"]
pub struct Published {
    /// One entry for each subkey that was not published, and one for each write that was lost since the last call. So a
    /// subkey stands here twice if it was written again after a loss that nobody was told of.
    pub subkeys: Vec<(u32, Outcome)>,
}

/// What became of one subkey.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// The network gave the value back.
    Published {
        /// Its counter.
        counter: u64,
    },
    /// Another writer's value stands, and the cache holds it now. Read it, and write again if need be.
    Overwritten {
        /// The counter of the value that lost.
        ours: u64,
        /// The counter of the value that stands.
        theirs: u64,
    },
    /// It did not get through. It stays queued.
    Failed(Error),
}

impl Published {
    /// Whether everything got through and nothing was overwritten.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.subkeys
            .iter()
            .all(|(_, outcome)| matches!(outcome, Outcome::Published { .. }))
    }

    /// The subkeys whose value lost against another writer's.
    pub fn overwritten(&self) -> impl Iterator<Item = u32> + '_ {
        let lost = self
            .subkeys
            .iter()
            .filter(|(_, outcome)| matches!(outcome, Outcome::Overwritten { .. }));
        lost.map(|(subkey, _)| *subkey)
    }

    /// Turns the first subkey that did not get through into an error.
    ///
    /// # Errors
    /// That subkey's.
    pub fn or_failure(self) -> Result<Published> {
        let failure = self.subkeys.iter().find_map(|(_, outcome)| match outcome {
            Outcome::Failed(error) => Some(error.clone()),
            _ => None,
        });
        failure.map_or(Ok(self), Err)
    }
}

/// What one step did with a subkey.
enum Step {
    /// Handed to Veilid: this counter, these bytes.
    Sent {
        counter: u64,
        sealed: Vec<u8>,
    },
    Done(Outcome),
    /// The network holds an older value: send once more, above it.
    Again,
    /// Nothing to send any more.
    Nothing,
}

impl Record {
    /// The subkeys that are not published, or whose write was lost and not reported yet.
    async fn pending(&self) -> Result<Vec<u32>> {
        let mut pending = Vec::new();
        for subkey in self.known().await? {
            if self
                .row(subkey, true)
                .await?
                .is_some_and(|row| row.is_pending())
            {
                pending.push(subkey);
            }
        }
        Ok(pending)
    }

    /// The subkeys that are not published.
    pub(crate) async fn unpublished(&self) -> Result<Vec<u32>> {
        let mut unpublished = Vec::new();
        for subkey in self.known().await? {
            if self
                .row(subkey, true)
                .await?
                .is_some_and(|row| !row.published)
            {
                unpublished.push(subkey);
            }
        }
        Ok(unpublished)
    }

    /// Publishes what is not published.
    pub(crate) async fn publish(&self) -> Result<Published> {
        let writer = self.writer.as_ref().ok_or(Error::ReadOnly)?;
        let _publishing = self.core.publishing.lock().await;
        let pending = self.pending().await?;
        if pending.is_empty() {
            return Ok(Published::default());
        }
        let state = self.core.inner.api.get_state().await?;
        if !state.attachment.public_internet_ready {
            return Err(Error::Offline);
        }
        self.core.ensure_open(Some(writer)).await?;
        let mut subkeys = Vec::new();
        for &subkey in &pending {
            if let Some(lost) = self.lost(subkey).await? {
                subkeys.push((subkey, lost));
            }
        }
        subkeys.extend(self.push(pending).await?);
        subkeys.sort_by_key(|(subkey, _)| *subkey);
        let published = Published { subkeys };
        // Last, so that a call that is dropped before it could report leaves it to the next one.
        for subkey in published.overwritten() {
            self.forget_lost(subkey).await?;
        }
        Ok(published)
    }

    /// Publishes again what the network rolled back. What does not get through stays queued for `publish`.
    pub(super) async fn restore(&self, subkeys: Vec<u32>) {
        let _publishing = self.core.publishing.lock().await;
        match self.push(subkeys).await {
            Ok(outcomes) => {
                let failed = outcomes
                    .values()
                    .filter(|o| matches!(o, Outcome::Failed(_)))
                    .count();
                tracing::info!(
                    restored = outcomes.len() - failed,
                    failed,
                    "older values on the network replaced"
                );
            }
            Err(error) => tracing::warn!(%error, "older values on the network not replaced yet"),
        }
    }

    async fn push(&self, subkeys: Vec<u32>) -> Result<BTreeMap<u32, Outcome>> {
        let mut outcomes = BTreeMap::new();
        let mut todo = subkeys;
        for _ in 0..ROUNDS {
            todo = self.round(todo, &mut outcomes).await?;
            if todo.is_empty() {
                return Ok(outcomes);
            }
        }
        // Someone writes older values faster than this; what is left is not ours to win in one call.
        outcomes.extend(
            todo.into_iter()
                .map(|subkey| (subkey, Outcome::Failed(Error::NotConfirmed))),
        );
        Ok(outcomes)
    }

    /// Sends each subkey once, waits until Veilid has sent all of them, and reads them back. Gives those to send again.
    async fn round(
        &self,
        todo: Vec<u32>,
        outcomes: &mut BTreeMap<u32, Outcome>,
    ) -> Result<Vec<u32>> {
        let sent = self
            .each(todo, |subkey| async move { self.send(subkey).await })
            .await;
        let mut again = Vec::new();
        let mut check = BTreeMap::new();
        for (subkey, step) in sent {
            match step {
                Ok(Step::Sent { counter, sealed }) => {
                    check.insert(subkey, (counter, sealed));
                }
                Ok(Step::Done(outcome)) => {
                    outcomes.insert(subkey, outcome);
                }
                Ok(Step::Again) => again.push(subkey),
                Ok(Step::Nothing) => {}
                Err(error) => {
                    outcomes.insert(subkey, Outcome::Failed(error));
                }
            }
        }
        if check.is_empty() {
            return Ok(again);
        }
        let confirmed = match self.flush().await {
            Ok(()) => self.on_network().await,
            Err(error) => Err(error),
        };
        let confirmed = match confirmed {
            Ok(seqs) => seqs,
            Err(error) => {
                outcomes.extend(
                    check
                        .into_keys()
                        .map(|subkey| (subkey, Outcome::Failed(error.clone()))),
                );
                return Ok(again);
            }
        };
        let checked = self
            .each(check.keys().copied().collect(), |subkey| {
                let (counter, sealed) = &check[&subkey];
                let seq = confirmed.get(&subkey).copied();
                async move { self.read_back(subkey, *counter, sealed, seq).await }
            })
            .await;
        for (subkey, step) in checked {
            match step {
                Ok(Step::Done(outcome)) => {
                    outcomes.insert(subkey, outcome);
                }
                Ok(Step::Again) => again.push(subkey),
                Ok(Step::Sent { .. } | Step::Nothing) => {}
                Err(error) => {
                    outcomes.insert(subkey, Outcome::Failed(error));
                }
            }
        }
        Ok(again)
    }

    async fn each<F>(&self, subkeys: Vec<u32>, step: impl Fn(u32) -> F) -> Vec<(u32, Result<Step>)>
    where
        F: Future<Output = Result<Step>>,
    {
        stream::iter(subkeys)
            .map(|subkey| {
                let step = step(subkey);
                async move { (subkey, step.await) }
            })
            .buffer_unordered(self.core.inner.options.parallel.max(1))
            .collect()
            .await
    }

    /// What the row says of a write that was lost.
    async fn lost(&self, subkey: u32) -> Result<Option<Outcome>> {
        let row = self.row(subkey, true).await?;
        Ok(row.and_then(|row| {
            let (ours, theirs) = (row.overwritten?, row.confirmed);
            Some(Outcome::Overwritten { ours, theirs })
        }))
    }

    async fn forget_lost(&self, subkey: u32) -> Result<()> {
        let _rows = self.core.rows.lock().await;
        if let Some(mut row) = self.row(subkey, true).await?
            && row.overwritten.take().is_some()
        {
            self.store(subkey, &row).await?;
        }
        Ok(())
    }

    async fn send(&self, subkey: u32) -> Result<Step> {
        // What Veilid learned through a watch or an earlier read is in its local copy, and a write would step over it:
        // look first whether another writer was there.
        if let Some(stored) = self.core.stored(subkey).await?
            && let Step::Done(outcome) = self.settle(subkey, &stored).await?
        {
            return Ok(Step::Done(outcome));
        }
        let Some(row) = self.attempt(subkey).await? else {
            return Ok(Step::Nothing);
        };
        // Veilid must not queue it: a queued write stays in its local copy, hides what other writers put on the network
        // under the same sequence number, and the write after it would undo theirs. The queue is ours.
        let options = SetDHTValueOptions {
            writer: self.writer.clone(),
            allow_offline: Some(AllowOffline(false)),
            ..Default::default()
        };
        let other = self
            .core
            .call(
                self.writer.as_ref(),
                "set",
                self.core.inner.options.set,
                |context| {
                    let (sealed, options) = (row.sealed.clone(), options.clone());
                    async move {
                        context
                            .set_dht_value(self.core.key.clone(), subkey, sealed, Some(options))
                            .await
                    }
                },
            )
            .await?;
        if let Some(other) = other.filter(|other| other.data() != row.sealed) {
            return self.settle(subkey, &other).await;
        }
        // Too few nodes answering is no error to Veilid. It shows in that the value did not become the local copy.
        let stored = self.core.stored(subkey).await?;
        if stored.is_none_or(|stored| stored.data() != row.sealed) {
            return Err(Error::NotConfirmed);
        }
        Ok(Step::Sent {
            counter: row.counter,
            sealed: row.sealed,
        })
    }

    /// The row to send, marked as handed to Veilid: from here on it may be on the network.
    async fn attempt(&self, subkey: u32) -> Result<Option<Cached>> {
        let _rows = self.core.rows.lock().await;
        let Some(mut row) = self.row(subkey, true).await?.filter(|row| !row.published) else {
            return Ok(None);
        };
        if !row.attempted {
            row.attempted = true;
            self.store(subkey, &row).await?;
        }
        Ok(Some(row))
    }

    /// What another value at this subkey means for ours.
    async fn settle(&self, subkey: u32, other: &veilid_core::ValueData) -> Result<Step> {
        match self.take_in(subkey, other).await {
            Ok(Some(Note::Overwritten { ours, theirs })) => {
                Ok(Step::Done(Outcome::Overwritten { ours, theirs }))
            }
            Ok(_) => {
                let row = self.row(subkey, true).await?;
                Ok(match row.is_some_and(|row| !row.published) {
                    true => Step::Again,
                    false => Step::Nothing,
                })
            }
            // A newer program's value is not ours to replace.
            Err(error @ Error::UnknownVersion { .. }) => Err(error),
            Err(Error::ShortValue { .. } | Error::WrongKey | Error::Moved | Error::Damaged) => {
                Ok(Step::Again)
            }
            Err(error) => Err(error),
        }
    }

    async fn flush(&self) -> Result<()> {
        let after = self.core.inner.options.flush;
        let flushed = self
            .core
            // Veilid ends the wait by itself; the outer limit only covers its own delays.
            .call(None, "flush", after + after / 2, |context| async move {
                context
                    .flush_dht_record(self.core.key.clone(), Some(after))
                    .await
            })
            .await?;
        match flushed {
            true => Ok(()),
            false => Err(Error::Timeout {
                operation: "flush",
                after,
            }),
        }
    }

    /// The sequence numbers that nodes other than this one hold. A forced read alone would not do: where nobody
    /// answers it, Veilid gives the local copy.
    async fn on_network(&self) -> Result<BTreeMap<u32, u32>> {
        Ok(network_seqs(&self.core.inspect().await?).collect())
    }

    async fn read_back(
        &self,
        subkey: u32,
        counter: u64,
        sealed: &[u8],
        on_network: Option<u32>,
    ) -> Result<Step> {
        let Some(data) = self.core.get(subkey, true).await? else {
            return Err(Error::NotConfirmed);
        };
        if data.data() != sealed {
            return self.settle(subkey, &data).await;
        }
        let seq = data.seq().to_option();
        if on_network < seq {
            return Err(Error::NotConfirmed);
        }
        let _rows = self.core.rows.lock().await;
        if let Some(row) = self.row(subkey, true).await? {
            let confirmed = merge::confirm(&row, counter, sealed, seq);
            self.store(subkey, &confirmed).await?;
        }
        Ok(Step::Done(Outcome::Published { counter }))
    }
}
