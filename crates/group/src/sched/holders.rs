//! What is known of the holders: whom to ask what, what they said, and whether anybody is left.

use std::collections::{BTreeSet, HashSet};

use iroh_blobs::{Hash, protocol::ChunkRanges};

use super::{
    BUSY, Blob, Event, Has, Holder, HolderId, Now, PART_AGAIN, PATIENCE, PRESENT, RECENT,
    STREAMS_PER_HOLDER, Scheduler, TaskId, choose,
};
use crate::{have::Holding, ignore::Fault, progress::FetchState};

/// Partial blobs whose ranges a holder is asked at a time. Each occupies one of the streams that it serves.
const OBSERVATIONS: usize = 8;
/// A holder that does not say its ranges of a blob so often has nothing of it.
const OBSERVE_TRIES: u32 = 3;
/// Boundaries of ranges that are kept of a holder's part of a blob: of more than this, only of what is to be done now, and not of all of that.
const BOUNDARIES: usize = 1_024;

impl Scheduler {
    /// Somebody can be asked; left alone until `out`, and whether for a lie.
    pub(crate) fn join(&mut self, holder: HolderId, out: Option<(Now, bool)>) {
        let holder = self.holders.entry(holder).or_insert_with(|| Holder {
            batch: choose::BATCH,
            most: STREAMS_PER_HOLDER,
            ..Holder::default()
        });
        if let Some((until, lied)) = out {
            holder.keep_out(until, lied);
        }
    }

    /// Those who can be asked now are these, and nobody else.
    pub(crate) fn keep_only(&mut self, holders: &BTreeSet<HolderId>) {
        let gone: Vec<HolderId> = self
            .holders
            .keys()
            .filter(|id| !holders.contains(id))
            .copied()
            .collect();
        for id in gone {
            self.drop_tasks(id);
            self.holders.remove(&id);
        }
    }

    /// Leaves a holder alone for a while, and gives its work to others; `lied` is whether for a lie.
    pub(crate) fn leave_out(&mut self, id: HolderId, until: Now, lied: bool) {
        self.drop_tasks(id);
        if let Some(holder) = self.holders.get_mut(&id) {
            holder.keep_out(until, lied);
            holder.has.clear();
            holder.presumed.clear();
            holder.asking.clear();
            holder.observing.clear();
        }
    }

    fn drop_tasks(&mut self, id: HolderId) {
        let dead: Vec<TaskId> = self
            .tasks
            .iter()
            .filter(|(_, task)| task.holder == id)
            .map(|(id, _)| *id)
            .collect();
        for task in dead {
            self.events.push(Event::Cancel(task));
            self.put_back(task);
        }
    }

    /// Whom to ask what they have, and of what: at most `most` hashes each, and one question at a time.
    pub(crate) fn questions(&mut self, most: usize, now: Now) -> Vec<(HolderId, Vec<Hash>)> {
        let mut questions = Vec::new();
        for (id, holder) in &mut self.holders {
            if !holder.asking.is_empty() || holder.is_out(now) {
                continue;
            }
            let unknown: Vec<Hash> = self
                .order
                .values()
                .filter(|hash| {
                    let presumed = holder.unsure && holder.presumed.contains(*hash);
                    presumed || !holder.has.contains_key(*hash)
                })
                .filter(|hash| self.blobs.get(*hash).is_some_and(Blob::is_open))
                .take(most)
                .copied()
                .collect();
            if unknown.is_empty() {
                continue;
            }
            holder.asking = unknown.iter().copied().collect();
            questions.push((*id, unknown));
        }
        for (_, hashes) in &questions {
            for hash in hashes {
                self.set_state(*hash, FetchState::Queued, FetchState::Finding);
            }
        }
        questions
    }

    /// What a holder answered.
    pub(crate) fn answered(&mut self, id: HolderId, holdings: &[(Hash, Holding)], now: Now) {
        let Some(holder) = self.holders.get_mut(&id) else {
            return;
        };
        holder.heard(now);
        for (hash, holding) in holdings {
            holder.asking.remove(hash);
            holder.presumed.remove(hash);
            let Some(blob) = self.blobs.get_mut(hash) else {
                continue;
            };
            let has = match holding {
                Holding::None => Has::Nothing,
                Holding::Partial => Has::Part {
                    ranges: None,
                    asked: now,
                    failed: 0,
                },
                Holding::Complete { size } => {
                    blob.claim(*size);
                    Has::All
                }
            };
            holder.has.insert(*hash, has);
        }
    }

    /// A holder has all of a blob, most likely. It is asked for it; and what it has only if that brings nothing, or if it may not be there.
    pub(crate) fn presume(&mut self, id: HolderId, hash: Hash, now: Now) {
        if let Some(holder) = self.holders.get_mut(&id)
            && holder.silent.is_none()
            && !holder.is_out(now)
            && !holder.has.contains_key(&hash)
            && self.blobs.contains_key(&hash)
        {
            holder.unsure = holder.heard.is_none_or(|heard| now >= heard + PRESENT);
            holder.has.insert(hash, Has::All);
            holder.presumed.insert(hash);
        }
    }

    /// A holder did not answer.
    pub(crate) fn silent(&mut self, id: HolderId, now: Now) {
        if let Some(holder) = self.holders.get_mut(&id) {
            holder.asking.clear();
            holder.silent.get_or_insert(now);
        }
        self.events.push(Event::Behaved(id, Some(Fault::Silent)));
    }

    /// Of which partial blobs the holders' ranges have to be asked: of each holder a few at a time, first what was not asked for longest.
    pub(crate) fn observations(&mut self, now: Now) -> Vec<(HolderId, Hash)> {
        let mut observations = Vec::new();
        for (id, holder) in &mut self.holders {
            let free = OBSERVATIONS.saturating_sub(holder.observing.len());
            if holder.is_out(now) || free == 0 {
                continue;
            }
            let mut due = Vec::new();
            for (hash, has) in &holder.has {
                let Has::Part {
                    ranges,
                    asked,
                    failed,
                } = has
                else {
                    continue;
                };
                let Some(blob) = self.blobs.get(hash).filter(|blob| blob.is_open()) else {
                    continue;
                };
                let again = now >= *asked + PART_AGAIN;
                let is_due = match ranges {
                    None => *failed == 0 || again,
                    Some(ranges) => ranges.is_disjoint(&blob.todo) && again,
                };
                if is_due && !holder.observing.contains(hash) {
                    due.push((*asked, *hash));
                }
            }
            due.sort_unstable_by_key(|(asked, _)| *asked);
            for (_, hash) in due.into_iter().take(free) {
                holder.observing.insert(hash);
                observations.push((*id, hash));
            }
        }
        observations
    }

    /// Which ranges a holder has of a blob; none if it did not say.
    pub(crate) fn observed(
        &mut self,
        id: HolderId,
        hash: Hash,
        ranges: Option<ChunkRanges>,
        now: Now,
    ) {
        let Some(holder) = self.holders.get_mut(&id) else {
            return;
        };
        if !holder.observing.remove(&hash) {
            return;
        }
        let Some(blob) = self.blobs.get(&hash) else {
            return;
        };
        let failed = match holder.has.get(&hash) {
            Some(Has::Part { failed, .. }) => *failed + 1,
            _ => 1,
        };
        let has = match ranges {
            Some(ranges) => Has::Part {
                ranges: Some(useful(&ranges, blob)),
                asked: now,
                failed: 0,
            },
            None if failed >= OBSERVE_TRIES => Has::Nothing,
            // It may only have had too much to do.
            None => Has::Part {
                ranges: None,
                asked: now,
                failed,
            },
        };
        holder.has.insert(hash, has);
    }

    /// The limit of a blob of which somebody says, without a proof, that it is larger.
    pub(crate) fn too_large(&self, hash: &Hash) -> Option<u64> {
        let mut holders = self.holders.values();
        let said = holders.any(|holder| matches!(holder.has.get(hash), Some(Has::TooLarge)));
        let blob = self.blobs.get(hash).filter(|_| said)?;
        Some(blob.limit)
    }

    /// Blobs that nobody can give as things stand: nobody works on them, and nobody who has them, or was not asked yet, is left.
    /// Those in the first list may be had when everybody is looked for anew; for those in the second that was done, and nobody is left who
    /// fell silent so recently that it may be about to move to another route.
    pub(crate) fn stuck(&self, now: Now) -> (Vec<Hash>, Vec<Hash>) {
        let (mut first, mut last) = (Vec::new(), Vec::new());
        let parts = self.tasks.values().flat_map(|task| &task.parts);
        let flying: HashSet<Hash> = parts
            .filter(|part| !part.done)
            .map(|part| part.hash)
            .collect();
        let may_move = self.holders.values().any(|holder| {
            // It has to be asked once more in this time.
            let out = holder.out.max(holder.distrusted);
            holder.silent.is_some_and(|since| {
                let end = since + PATIENCE;
                now < end && out.is_none_or(|out| out < end)
            })
        });
        for hash in self.order.values() {
            let Some(blob) = self.blobs.get(hash) else {
                continue;
            };
            if !blob.is_open() || blob.todo.is_empty() || flying.contains(hash) {
                continue;
            }
            let waited = blob.thorough.is_some_and(|since| now >= since + PATIENCE);
            let hope = self.holders.values().any(|holder| {
                // It is asked again and again.
                if waited && holder.silent.is_some() {
                    return false;
                }
                if holder.asking.contains(hash) || holder.observing.contains(hash) {
                    return true;
                }
                // Whoever only has too much to do is waited for; it is out for a moment.
                let out = holder.out.max(holder.distrusted);
                let soon = out.is_some_and(|out| out <= now + BUSY);
                if holder.is_out(now) && !soon {
                    return false;
                }
                match holder.has.get(hash) {
                    None | Some(Has::All) => true,
                    Some(Has::Nothing | Has::TooLarge) => false,
                    Some(Has::Part { ranges, .. }) => ranges
                        .as_ref()
                        .is_none_or(|ranges| !ranges.is_disjoint(&blob.todo)),
                }
            });
            if !hope {
                match blob.thorough {
                    None => first.push(*hash),
                    Some(_) if may_move && !waited => {}
                    Some(_) => last.push(*hash),
                }
            }
        }
        (first, last)
    }

    /// Since when the last of these is wanted.
    pub(crate) fn since(&self, hashes: &[Hash]) -> Option<Now> {
        let blobs = hashes.iter().filter_map(|hash| self.blobs.get(hash));
        blobs.map(|blob| blob.since).max()
    }

    /// Somebody who has these blobs is looked for.
    pub(crate) fn finding(&mut self, hashes: &[Hash]) {
        for hash in hashes {
            for from in [FetchState::Queued, FetchState::Fetching] {
                self.set_state(*hash, from, FetchState::Finding);
            }
        }
    }

    /// Those who were looked for anew may have these blobs: forgets who does not have them, and who is left alone for anything but a lie.
    /// These were all that there were when the look `began`, if that is said.
    pub(crate) fn try_all(&mut self, hashes: &[Hash], began: Option<Now>, now: Now) {
        for hash in hashes {
            if let Some(blob) = self.blobs.get_mut(hash)
                && began.is_some_and(|began| blob.since <= began + RECENT)
            {
                blob.thorough.get_or_insert(now);
            }
        }
        for holder in self.holders.values_mut() {
            holder.out = None;
            for hash in hashes {
                if !matches!(holder.has.get(hash), Some(Has::All)) {
                    holder.has.remove(hash);
                }
            }
        }
    }
}

/// What of these ranges is worth keeping, whatever a holder says.
fn useful(ranges: &ChunkRanges, blob: &Blob) -> ChunkRanges {
    let useful = ranges & &blob.all();
    if useful.boundaries().len() <= BOUNDARIES {
        return useful;
    }
    let useful = ranges & &blob.todo;
    // An even number of boundaries, so this one begins a range.
    match useful.boundaries().get(BOUNDARIES) {
        Some(cut) => &useful & &ChunkRanges::from(..*cut),
        None => useful,
    }
}
