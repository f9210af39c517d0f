//! Sending what is not published, and making sure that it is.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::{StreamExt, stream};
use tokio::time::Instant;
use veilid_core::{AllowOffline, SetDHTValueOptions, ValueData, ValueSeqNum};

use super::merge::{self, Note};
use super::{Record, network_seqs};
use crate::cache::Cached;
use crate::error::{Error, Result};
use crate::stats::Operation;

/// How often a subkey is sent in one call, where others write to it at the same time.
const ROUNDS: usize = 8;
/// The shortest time over which writers who met spread before they send again.
const SPREAD: Duration = Duration::from_millis(100);
/// How long Veilid may take to bring back what others wrote and the network lost, and how often we look meanwhile.
const RETURN: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_secs(2);

/// What `publish` did, by subkey in ascending order. Empty if there was nothing to do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[must_use = "a write can lose against another writer, and this is where that is said"]
pub struct Published {
    /// One entry for each subkey that was not published, and one for each write that was lost since the last call. So a
    /// subkey stands here twice if this device wrote it again after a loss that nobody was told of.
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
    /// Enough nodes took it, under this sequence number.
    Sent(Sent),
    Done(Outcome),
    /// The network holds an older value: send once more, above it.
    Again,
    /// Nodes hold different values under this one sequence number, and will for ever: what is in the row has to be sent
    /// above it. With what became of our own value, if it lost.
    Contested {
        seq: u32,
        lost: Option<Outcome>,
    },
    /// Nothing to send any more.
    Nothing,
}

#[derive(Clone)]
struct Sent {
    counter: u64,
    sealed: Vec<u8>,
    seq: u32,
}

/// The progress of one call.
#[derive(Default)]
struct Round {
    outcomes: BTreeMap<u32, Outcome>,
    /// What is to be sent (again), and above which sequence number, if that is known.
    todo: BTreeMap<u32, Option<u32>>,
    contested: bool,
}

impl Round {
    fn take(&mut self, subkey: u32, step: Result<Step>) -> Option<Sent> {
        match step {
            Ok(Step::Sent(sent)) => return Some(sent),
            Ok(Step::Done(outcome)) => self.note(subkey, outcome),
            Ok(Step::Again) => {
                self.todo.insert(subkey, None);
            }
            Ok(Step::Contested { seq, lost }) => {
                if let Some(lost) = lost {
                    self.note(subkey, lost);
                }
                self.todo.insert(subkey, Some(seq));
                self.contested = true;
            }
            Ok(Step::Nothing) => {}
            Err(error) => self.note(subkey, Outcome::Failed(error)),
        }
        None
    }

    fn note(&mut self, subkey: u32, outcome: Outcome) {
        // After a loss it is the winner's value that is sent once more, and what becomes of that is not our news.
        if !matches!(
            self.outcomes.get(&subkey),
            Some(Outcome::Overwritten { .. })
        ) {
            self.outcomes.insert(subkey, outcome);
        }
    }
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

    /// The subkeys that are not published. None for who cannot write, however old what the network shows is.
    pub(crate) async fn unpublished(&self) -> Result<Vec<u32>> {
        let mut unpublished = Vec::new();
        if !self.writable() {
            return Ok(unpublished);
        }
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
        let mut round = Round::default();
        for &subkey in &pending {
            match self.lost(subkey).await? {
                Some((true, lost)) => subkeys.push((subkey, lost)),
                Some((false, lost)) => round.note(subkey, lost),
                None => {}
            }
        }
        subkeys.extend(self.push(round, pending).await?);
        subkeys.sort_by_key(|(subkey, _)| *subkey);
        let published = Published { subkeys };
        // Last, so that a call that is dropped before it could report leaves it to the next one.
        for subkey in published.overwritten() {
            self.forget_lost(subkey).await?;
        }
        Ok(published)
    }

    /// Sees to it that the network still has what is known here. Gives how many subkeys it had lost.
    pub(crate) async fn republish(&self) -> Result<usize> {
        // Opening anew makes Veilid look after all copies, but not those of a record that it made itself in this session, and not
        // when it did so a while ago.
        self.core.reopen().await?;
        let on_network = self.on_network(None).await?;
        let (mut round, mut theirs) = (Round::default(), BTreeMap::new());
        let mut lost = 0;
        for subkey in self.known().await? {
            let Some(row) = self.row(subkey, true).await?.filter(Cached::has_value) else {
                continue;
            };
            if row.published && row.seq.is_some() && on_network.get(&subkey).copied() < row.seq {
                lost += 1;
                // What others wrote is theirs to send, and Veilid's to keep: two who send it at once would only meet.
                if row.own && self.writable() {
                    round.todo.insert(subkey, row.seq);
                } else {
                    theirs.insert(subkey, row.seq);
                }
            }
        }
        let mut queued = false;
        if !round.todo.is_empty() {
            let _publishing = self.core.publishing.lock().await;
            self.mark_lost(round.todo.keys().copied()).await?;
            let outcomes = self.push(round, Vec::new()).await?;
            queued = outcomes
                .values()
                .any(|outcome| matches!(outcome, Outcome::Failed(_)));
        }
        self.return_of(&theirs).await?;
        if queued {
            return Err(Error::NotConfirmed);
        }
        Ok(lost)
    }

    /// Waits until the network has these subkeys again, which Veilid sends in the background and tells nobody of.
    async fn return_of(&self, subkeys: &BTreeMap<u32, Option<u32>>) -> Result<()> {
        let begin = Instant::now();
        while !subkeys.is_empty() {
            tokio::time::sleep(LOOK).await;
            match self.on_network(None).await {
                Ok(on_network) => {
                    let is_back = |(subkey, seq): (&u32, &Option<u32>)| {
                        on_network.get(subkey).copied() >= *seq
                    };
                    if subkeys.iter().all(is_back) {
                        break;
                    }
                }
                Err(error) if error.is_retryable() => {}
                Err(error) => return Err(error),
            }
            if begin.elapsed() > RETURN {
                return Err(Error::NotConfirmed);
            }
        }
        Ok(())
    }

    /// What the network lost has to be sent again.
    async fn mark_lost(&self, subkeys: impl Iterator<Item = u32>) -> Result<()> {
        let _rows = self.core.rows.lock().await;
        for subkey in subkeys {
            if let Some(mut row) = self.row(subkey, true).await?
                && row.published
            {
                row.published = false;
                self.store(subkey, &row).await?;
            }
        }
        Ok(())
    }

    /// Publishes again what the network rolled back, and what has to stand above a contested number. What does not get
    /// through stays queued for `publish`.
    pub(super) async fn restore(&self, subkeys: Vec<u32>) {
        let _publishing = self.core.publishing.lock().await;
        match self.push(Round::default(), subkeys).await {
            Ok(outcomes) => {
                let failed = outcomes
                    .values()
                    .filter(|o| matches!(o, Outcome::Failed(_)))
                    .count();
                tracing::info!(
                    restored = outcomes.len() - failed,
                    failed,
                    "older or contested values on the network replaced"
                );
            }
            Err(error) => {
                tracing::warn!(%error, "older or contested values on the network not replaced yet");
            }
        }
    }

    async fn push(&self, mut round: Round, subkeys: Vec<u32>) -> Result<BTreeMap<u32, Outcome>> {
        round
            .todo
            .extend(subkeys.into_iter().map(|subkey| (subkey, None)));
        for _ in 0..ROUNDS {
            let begin = Instant::now();
            self.round(&mut round).await;
            if round.todo.is_empty() {
                return Ok(round.outcomes);
            }
            if std::mem::take(&mut round.contested) {
                // Writers who send at the same time again would meet again.
                tokio::time::sleep(random_up_to(SPREAD + 2 * begin.elapsed())?).await;
            }
        }
        // Others write faster than this; what is left is not ours to win in one call.
        for subkey in std::mem::take(&mut round.todo).into_keys() {
            round.note(subkey, Outcome::Failed(Error::NotConfirmed));
        }
        Ok(round.outcomes)
    }

    /// Sends each subkey once, and reads them back from the network.
    async fn round(&self, round: &mut Round) {
        let todo = std::mem::take(&mut round.todo);
        let sent = self
            .each(todo.keys().copied().collect(), |subkey| {
                let above = todo.get(&subkey).copied().flatten();
                async move { self.send(subkey, above).await }
            })
            .await;
        let mut check = BTreeMap::new();
        for (subkey, step) in sent {
            check.extend(round.take(subkey, step).map(|sent| (subkey, sent)));
        }
        if check.is_empty() {
            return;
        }
        let subkeys: Vec<u32> = check.keys().copied().collect();
        let on_network = match self.flush().await {
            // Only of what was sent: another subkey of which there are few copies would hold this up.
            Ok(()) => self.on_network(Some(&subkeys)).await,
            Err(error) => Err(error),
        };
        let on_network = match on_network {
            Ok(seqs) => seqs,
            Err(error) => {
                for subkey in check.into_keys() {
                    round.note(subkey, Outcome::Failed(error.clone()));
                }
                return;
            }
        };
        let checked = self
            .each(subkeys, |subkey| {
                let sent = check.get(&subkey).cloned();
                let seq = on_network.get(&subkey).copied();
                async move {
                    match sent {
                        Some(sent) => self.read_back(subkey, &sent, seq).await,
                        None => Ok(Step::Nothing),
                    }
                }
            })
            .await;
        for (subkey, step) in checked {
            round.take(subkey, step);
        }
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

    /// What the row says of a write that was lost, and whether this device wrote again since.
    async fn lost(&self, subkey: u32) -> Result<Option<(bool, Outcome)>> {
        let row = self.row(subkey, true).await?;
        Ok(row.and_then(|row| {
            let (ours, theirs) = (row.overwritten?, row.confirmed);
            Some((row.own, Outcome::Overwritten { ours, theirs }))
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

    /// Sends the value in the row; with `above`, under a sequence number above that one, unless the network is there
    /// already.
    async fn send(&self, subkey: u32, above: Option<u32>) -> Result<Step> {
        // Another writer's value is only sent to stand above something: after a contest above the number that was
        // contested, after a rollback above the older value.
        let mut least_above = match (above, self.row(subkey, true).await?) {
            (None, Some(row)) if !row.own && !row.published => row.seq,
            (above, _) => above,
        };
        // What Veilid learned through a watch or an earlier read is in its local copy, and a write would step over it:
        // look first whether another writer was there. After a contest, look at the network.
        let stored = match least_above {
            Some(_) => self.core.get(subkey, true).await?,
            None => self.core.stored(subkey).await?,
        };
        let base = stored.as_ref().and_then(|stored| stored.seq().to_option());
        if let Some(stored) = &stored {
            // Whatever an earlier call sent did not know of this one, and so stands under no higher number.
            match self.settle(subkey, stored, above.or(base)).await? {
                Step::Contested { seq, lost: None } => least_above = Some(seq),
                step @ (Step::Done(_) | Step::Contested { .. }) => return Ok(step),
                _ => {}
            }
        }
        let Some(row) = self.attempt(subkey).await? else {
            return Ok(Step::Nothing);
        };
        let least = least_above
            .filter(|above| base.is_none_or(|base| base <= *above))
            .map(|above| above.saturating_add(1));
        // Veilid must not queue it: a queued write stays in its local copy, hides what other writers put on the network
        // under the same sequence number, and the write after it would undo theirs. The queue is ours.
        let options = SetDHTValueOptions {
            writer: self.writer.clone(),
            allow_offline: Some(AllowOffline(false)),
            min_seqnum: least.map(ValueSeqNum::from),
        };
        let answer = self
            .core
            .call(
                self.writer.as_ref(),
                Operation::Set,
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
        if let Some(other) = answer {
            let seq = other.seq().to_option().unwrap_or(0);
            if other.data() == row.sealed {
                // Ours is what most nodes hold, and some hold another.
                return Ok(Step::Contested { seq, lost: None });
            }
            let ours = base
                .map_or(0, |base| base.saturating_add(1))
                .max(least.unwrap_or(0));
            return self.settle(subkey, &other, Some(ours)).await;
        }
        // Too few nodes answering is no error to Veilid. It shows in that the value did not become the local copy.
        let stored = self.core.stored(subkey).await?;
        let stored = stored
            .filter(|stored| stored.data() == row.sealed)
            .ok_or(Error::NotConfirmed)?;
        Ok(Step::Sent(Sent {
            counter: row.counter,
            seq: stored.seq().to_option().unwrap_or(0),
            sealed: row.sealed,
        }))
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

    /// What another value at this subkey means for what the row has, of which nothing was sent above the number `sent`.
    async fn settle(&self, subkey: u32, other: &ValueData, sent: Option<u32>) -> Result<Step> {
        match self.take_in(subkey, other, sent).await {
            Ok(note) => {
                let row = self.row(subkey, true).await?;
                let waits = row.is_some_and(|row| !row.published);
                Ok(judge(note, waits, other.seq().to_option(), sent))
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
            .call(
                None,
                Operation::Flush,
                after + after / 2,
                |context| async move {
                    context
                        .flush_dht_record(self.core.key.clone(), Some(after))
                        .await
                },
            )
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
    /// answers it, Veilid gives the local copy. None if they do not have the record.
    async fn on_network(&self, subkeys: Option<&[u32]>) -> Result<BTreeMap<u32, u32>> {
        match self.core.inspect(subkeys).await {
            Ok(report) => Ok(network_seqs(&report).collect()),
            Err(Error::RecordNotFound) => Ok(BTreeMap::new()),
            Err(error) => Err(error),
        }
    }

    async fn read_back(&self, subkey: u32, sent: &Sent, on_network: Option<u32>) -> Result<Step> {
        let data = self
            .core
            .get(subkey, true)
            .await?
            .ok_or(Error::NotConfirmed)?;
        let seq = data.seq().to_option();
        if data.data() != sent.sealed {
            return match seq > Some(sent.seq) {
                true => self.settle(subkey, &data, Some(sent.seq)).await,
                // Enough nodes took ours, and a reader may still be shown another.
                false => Ok(Step::Contested {
                    seq: sent.seq,
                    lost: None,
                }),
            };
        }
        if on_network < seq {
            return Err(Error::NotConfirmed);
        }
        let _rows = self.core.rows.lock().await;
        if let Some(row) = self.row(subkey, true).await? {
            let confirmed = merge::confirm(&row, sent.counter, &sent.sealed, seq);
            self.store(subkey, &confirmed).await?;
        }
        let counter = sent.counter;
        Ok(Step::Done(Outcome::Published { counter }))
    }
}

/// What the note on a value under the number `seq` means for what the row has now, of which nothing was sent above the
/// number `sent`; with whether it waits to be sent.
fn judge(note: Option<Note>, waits: bool, seq: Option<u32>, sent: Option<u32>) -> Step {
    let seq = seq.max(sent).unwrap_or(0);
    match note {
        Some(Note::Overwritten { ours, theirs }) => {
            let lost = Outcome::Overwritten { ours, theirs };
            match waits {
                true => Step::Contested {
                    seq,
                    lost: Some(lost),
                },
                false => Step::Done(lost),
            }
        }
        Some(Note::Contested) if waits => Step::Contested { seq, lost: None },
        _ if waits => Step::Again,
        _ => Step::Nothing,
    }
}

fn random_up_to(longest: Duration) -> Result<Duration> {
    let random = getrandom::u32().map_err(|_| Error::Randomness)?;
    Ok(longest.mul_f64(f64::from(random) / f64::from(u32::MAX)))
}

#[cfg(test)]
mod tests;
