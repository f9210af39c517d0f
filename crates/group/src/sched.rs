//! Which piece is asked of which holder: the scheduler of all that a group is fetching, without socket, store or clock.
//!
//! Blobs that are wanted go in, and what is heard of their holders; tasks come out, each one request to one holder. A large blob is
//! cut into pieces whose size follows from the holder's rate; small blobs go together into one request. A holder that has nothing
//! new to do takes over what a much slower one is busy with; the first to finish wins. What a task did not bring goes back.

mod choose;
mod holders;
mod rate;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::Duration,
};

use iroh_blobs::{
    Hash,
    protocol::{ChunkRanges, ChunkRangesExt},
};

use crate::{ignore::Fault, progress::FetchState};
use rate::Rate;

/// A point in time: the time since an arbitrary origin.
pub(crate) type Now = Duration;
/// A member's device.
pub(crate) type HolderId = u32;
/// One request to one holder.
pub(crate) type TaskId = u64;

/// Streams that are open to one holder at a time, at most.
pub(crate) const STREAMS_PER_HOLDER: usize = 16;
/// Streams that are open for one group, at most. With what a stream may hold (its window of 4 MiB and 16 chunk groups on their way
/// to the store) this bounds the memory of everything that a group fetches.
pub(crate) const STREAMS: usize = 32;
/// A task that brings nothing for so long has failed.
pub(crate) const STALL: Duration = Duration::from_secs(15);
/// So has one that brings something, but nothing that can be verified: even four streams that share 5 kbit/s bring a chunk group each in this time.
const NOTHING_WHOLE: Duration = Duration::from_secs(120);
/// How long a holder of a part is left alone before it is asked again what it has by now.
const PART_AGAIN: Duration = Duration::from_secs(3);
/// How long a holder that has too much to do is left alone.
const BUSY: Duration = Duration::from_millis(1_500);
/// So long after it fell silent, a holder that still advertises a tunnel is waited for where nobody else has what is wanted: it takes a
/// device up to a minute to notice that its route died, and to publish another. No blob is waited for longer once everybody was tried.
const PATIENCE: Duration = Duration::from_secs(60);
/// A look at everybody counts for what was wanted so long after it began, at most.
pub(crate) const RECENT: Duration = Duration::from_secs(5);
/// Who was heard of so recently is there, and asked for what it has most likely without a question.
const PRESENT: Duration = Duration::from_secs(60);
/// One that had too much to do so often in a row has failed each further time.
const REFUSALS: u32 = 20;
/// A holder that fails so many tasks one after the other is left alone.
const FAILURES: u32 = 3;
/// A holder from whom so many tasks in a row were taken over by faster ones, and who is slower than a twentieth of the fastest, starves
/// others of what it holds up.
const LOST: u32 = 6;
const STARVING: f64 = 0.05;
/// How often a blob is looked over again whose pieces all came and which is not complete.
const ROUNDS: u32 = 8;

/// What is wanted of a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// All of it.
    Blob,
    /// All of it, and of its first child: a collection with its list of names.
    Collection,
}

/// A blob that is wanted.
#[derive(Clone, Debug)]
pub(crate) struct Want {
    pub(crate) hash: Hash,
    pub(crate) kind: Kind,
    /// The size in bytes, where a sealed entry tells it.
    pub(crate) size: Option<u64>,
    /// No more bytes than this are taken.
    pub(crate) limit: u64,
    pub(crate) since: Now,
    /// Who has all of this one has the wanted one as well, most likely, and need not be asked.
    pub(crate) like: Option<Hash>,
    /// What is not here yet.
    pub(crate) missing: ChunkRanges,
    /// All of it is fetched, whatever is here.
    pub(crate) whole: bool,
}

/// What a holder is known to have of a blob.
#[derive(Clone, Debug)]
enum Has {
    Nothing,
    /// It says, without a proof, that it is larger than what is taken.
    TooLarge,
    /// Some of it; which ranges, once that was asked.
    Part {
        ranges: Option<ChunkRanges>,
        asked: Now,
        /// How often that was not answered.
        failed: u32,
    },
    All,
}

#[derive(Debug)]
struct Blob {
    kind: Kind,
    size: Option<u64>,
    /// What a holder says the size is.
    claimed: Option<u64>,
    limit: u64,
    /// Since when it is wanted; by the last of those who want it.
    since: Now,
    /// What nobody is working on.
    todo: ChunkRanges,
    whole: bool,
    users: u32,
    state: FetchState,
    rounds: u32,
    /// Being looked over by the store.
    checking: bool,
    /// Since when everybody's current tunnels are tried, beside those that were known.
    thorough: Option<Now>,
}

/// A part of a task.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub(crate) hash: Hash,
    pub(crate) kind: Kind,
    pub(crate) ranges: ChunkRanges,
    /// The known size of the blob.
    pub(crate) size: Option<u64>,
    pub(crate) limit: u64,
    /// As in [`Want`].
    pub(crate) whole: bool,
    done: bool,
}

/// What is to be asked of a holder.
#[derive(Clone, Debug)]
pub(crate) struct Start {
    pub(crate) task: TaskId,
    pub(crate) holder: HolderId,
    pub(crate) parts: Vec<Part>,
}

#[derive(Debug)]
struct Task {
    holder: HolderId,
    parts: Vec<Part>,
    bytes: u64,
    expected: u64,
    started: Now,
    /// When verified bytes came last.
    last: Now,
    /// When any bytes came last.
    heard: Now,
    /// Whether the holder did not say that it has all of this.
    presumed: bool,
    /// Whether it repeats what another is busy with.
    repeats: Option<TaskId>,
    repeated: bool,
}

#[derive(Debug, Default)]
struct Holder {
    has: HashMap<Hash, Has>,
    asking: HashSet<Hash>,
    /// Blobs whose ranges are being asked.
    observing: HashSet<Hash>,
    busy: usize,
    rate: Rate,
    failures: u32,
    /// When the last of them was counted: what broke off together counts once.
    failed: Option<Now>,
    /// How often in a row it had too much to do; what was refused together counts once.
    refused: u32,
    lost: u32,
    /// When it was heard of last.
    heard: Option<Now>,
    /// Since when it does not say what it has.
    silent: Option<Now>,
    /// What it has most likely, and did not say yet.
    presumed: HashSet<Hash>,
    /// It may not be there: until it is heard of, it gets one stream.
    unsure: bool,
    /// Streams to it at a time, at most; half as many after some that stalled, which may have shared too slow a way.
    most: usize,
    /// Small blobs for one request; fewer after one that broke off.
    batch: usize,
    /// Left alone until then.
    out: Option<Now>,
    /// The same for a lie, which nothing shortens.
    distrusted: Option<Now>,
}

/// How a task ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// All of its parts were done.
    Done,
    /// The holder does not have this blob (any more), or not in this size.
    NotThere(Hash),
    /// The holder says that this blob is larger than what is taken.
    TooLarge(Hash),
    /// A byte did not match its hash.
    Lied,
    /// The holder has too much to do.
    Busy,
    /// It broke off, for whatever reason.
    BrokeOff,
    /// It brought nothing for too long.
    Stalled,
    /// What came cannot be stored here, which says nothing of the holder.
    NotStored,
}

/// What follows from what was put in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A blob is in another state.
    State(Hash, FetchState),
    /// All of a blob came: the store has to say whether it is complete.
    Check(Hash, Kind),
    /// A task is of no use any more: to be ended, and told by [`Scheduler::cancelled`].
    Cancel(TaskId),
    /// A task is over.
    Ended(TaskId),
    /// A holder behaved, or did not.
    Behaved(HolderId, Option<Fault>),
    /// Nobody has what is missing of a blob.
    NobodyHas(Hash),
}

/// The scheduler.
#[derive(Debug, Default)]
pub(crate) struct Scheduler {
    blobs: HashMap<Hash, Blob>,
    /// In the order in which they were wanted.
    order: BTreeMap<u64, Hash>,
    place: HashMap<Hash, u64>,
    holders: BTreeMap<HolderId, Holder>,
    tasks: BTreeMap<TaskId, Task>,
    next_task: TaskId,
    next_place: u64,
    events: Vec<Event>,
}

impl Scheduler {
    /// Wants a blob, once more if it is wanted already. Each time has to be taken back with [`unwant`](Self::unwant).
    pub(crate) fn want(&mut self, want: Want) {
        if let Some(blob) = self.blobs.get_mut(&want.hash) {
            blob.users += 1;
            blob.limit = blob.limit.max(want.limit);
            if blob.since < want.since {
                blob.since = want.since;
                // Others may have come since then.
                blob.thorough = None;
            }
            blob.whole |= want.whole;
            if want.kind == Kind::Collection {
                blob.kind = want.kind;
            }
            if blob.size != want.size {
                self.doubt_size(want);
            }
            return;
        }
        let hash = want.hash;
        self.blobs.insert(
            hash,
            Blob {
                kind: want.kind,
                size: want.size,
                claimed: None,
                limit: want.limit,
                since: want.since,
                todo: want.missing,
                whole: want.whole,
                users: 1,
                state: FetchState::Queued,
                rounds: 0,
                checking: false,
                thorough: None,
            },
        );
        self.order.insert(self.next_place, hash);
        self.place.insert(hash, self.next_place);
        self.next_place += 1;
        if let Some(like) = want.like {
            for holder in self.holders.values_mut() {
                if matches!(holder.has.get(&like), Some(Has::All)) {
                    holder.has.insert(hash, Has::All);
                }
            }
        }
        self.check_if_all_came(hash);
    }

    /// Those who want a blob do not agree on its size. Anybody can say anything, so it counts as unknown.
    fn doubt_size(&mut self, want: Want) {
        let hash = want.hash;
        let mut missing = want.missing;
        for part in self.tasks.values().flat_map(|task| &task.parts) {
            if part.hash == hash && !part.done {
                missing -= part.ranges.clone();
            }
        }
        let Some(blob) = self.blobs.get_mut(&hash) else {
            return;
        };
        blob.size = None;
        if blob.is_open() {
            blob.todo |= missing;
            blob.todo &= blob.all();
        }
        // Whoever was asked for the other size may have it after all.
        for holder in self.holders.values_mut() {
            if matches!(holder.has.get(&hash), Some(Has::Nothing)) {
                holder.has.remove(&hash);
            }
        }
        self.check_if_all_came(hash);
    }

    /// Takes a [`want`](Self::want) back.
    pub(crate) fn unwant(&mut self, hash: Hash) {
        let Some(blob) = self.blobs.get_mut(&hash) else {
            return;
        };
        blob.users = blob.users.saturating_sub(1);
        if blob.users == 0 {
            self.remove(hash);
        }
    }

    /// Nobody waits for a blob any more.
    pub(crate) fn give_up(&mut self, hash: Hash) {
        self.remove(hash);
    }

    /// The bytes of a blob that are wanted at most.
    pub(crate) fn size_of(&self, hash: &Hash) -> Option<u64> {
        let blob = self.blobs.get(hash)?;
        Some(blob.size.unwrap_or(blob.limit))
    }

    fn remove(&mut self, hash: Hash) {
        self.blobs.remove(&hash);
        if let Some(place) = self.place.remove(&hash) {
            self.order.remove(&place);
        }
        for holder in self.holders.values_mut() {
            holder.has.remove(&hash);
            holder.presumed.remove(&hash);
        }
        for (id, task) in &mut self.tasks {
            if task.parts.iter().any(|part| part.hash == hash) {
                for part in task.parts.iter_mut().filter(|part| part.hash == hash) {
                    part.done = true;
                }
                if task.parts.iter().all(|part| part.done) {
                    self.events.push(Event::Cancel(*id));
                }
            }
        }
    }

    /// Whether anything is wanted that is not here yet.
    pub(crate) fn is_idle(&self) -> bool {
        self.blobs
            .values()
            .all(|blob| blob.state == FetchState::Stored)
    }

    /// Whether there is anybody who could have something.
    pub(crate) fn has_holders(&self) -> bool {
        !self.holders.is_empty()
    }

    /// Bytes came in that are not verified yet. Where the way is slow, whole chunk groups are long in coming.
    pub(crate) fn alive(&mut self, task: TaskId, now: Now) {
        if let Some(task) = self.tasks.get_mut(&task) {
            task.heard = now;
            if let Some(holder) = self.holders.get_mut(&task.holder) {
                holder.heard(now);
            }
        }
    }

    /// Verified bytes came in; whether their holder can be asked for more because of that.
    pub(crate) fn progress(&mut self, task_id: TaskId, bytes: u64, now: Now) -> bool {
        let Some(task) = self.tasks.get(&task_id) else {
            return false;
        };
        let (id, first, started) = (task.holder, task.bytes == 0, task.started);
        let had_room = self.has_room(id);
        if let Some(holder) = self.holders.get_mut(&id) {
            if first {
                holder.rate.answered_after(now.saturating_sub(started));
            }
            holder.rate.came(bytes, now);
            holder.refused = 0;
            holder.heard(now);
        }
        if let Some(task) = self.tasks.get_mut(&task_id) {
            task.bytes += bytes;
            task.last = now;
            task.heard = now;
        }
        !had_room && self.has_room(id)
    }

    /// All of a part is in the store.
    pub(crate) fn part_done(&mut self, id: TaskId, hash: Hash) {
        let Some(task) = self.tasks.get_mut(&id) else {
            return;
        };
        let (winner, mut behind) = (task.holder, task.repeats);
        let mut ranges = ChunkRanges::empty();
        for part in task.parts.iter_mut().filter(|part| part.hash == hash) {
            part.done = true;
            ranges |= part.ranges.clone();
        }
        if ranges.is_empty() {
            return;
        }
        let mut overtaken = Vec::new();
        while let Some(task) = behind {
            overtaken.push(task);
            behind = self.tasks.get(&task).and_then(|task| task.repeats);
        }
        let mut losers = Vec::new();
        if let Some(blob) = self.blobs.get_mut(&hash) {
            blob.todo -= ranges.clone();
        }
        for (other, task) in &mut self.tasks {
            if *other == id {
                continue;
            }
            let mut changed = false;
            for part in &mut task.parts {
                if part.hash == hash && !part.done && part.ranges.is_subset(&ranges) {
                    part.done = true;
                    changed = true;
                }
            }
            if changed && task.parts.iter().all(|part| part.done) {
                self.events.push(Event::Cancel(*other));
                if overtaken.contains(other) {
                    losers.push(task.holder);
                }
            }
        }
        for loser in losers {
            self.lost(loser, winner);
        }
        self.check_if_all_came(hash);
    }

    /// A task ended. Whatever of it is not done goes back.
    pub(crate) fn finished(&mut self, id: TaskId, mut end: End, now: Now) {
        let Some(task) = self.put_back(id) else {
            return;
        };
        self.events.push(Event::Ended(id));
        let whole = task.parts.iter().all(|part| part.done);
        let Some(holder) = self.holders.get_mut(&task.holder) else {
            return;
        };
        if end == End::Busy && !whole {
            if !holder.is_out(now) {
                holder.refused += 1;
            }
            holder.out = Some(now + BUSY);
            if holder.refused >= REFUSALS {
                end = End::BrokeOff;
            }
        }
        match end {
            End::Done => {
                holder.failures = 0;
                holder.refused = 0;
                holder.lost = 0;
                holder.most = (holder.most * 2).min(STREAMS_PER_HOLDER);
                holder.batch = (holder.batch * 2).min(choose::BATCH);
                self.events.push(Event::Behaved(task.holder, None));
            }
            // Others have done it meanwhile, so this says nothing.
            _ if whole => {}
            End::NotThere(hash) => {
                holder.batch = (task.parts.len() / 2).max(1);
                let size = self.blobs.get(&hash).map(|blob| blob.size);
                let asked = task.parts.iter().find(|part| part.hash == hash);
                if size.is_some_and(|size| asked.is_some_and(|part| part.size != size)) {
                    // It was asked for a size that is in doubt by now.
                    holder.has.remove(&hash);
                } else if task.parts.len() == 1 && !task.presumed {
                    holder.has.insert(hash, Has::Nothing);
                } else {
                    // Which of them it was is not sure: those that are left are asked for again.
                    for part in task.parts.iter().filter(|part| !part.done) {
                        holder.has.remove(&part.hash);
                    }
                }
            }
            End::TooLarge(hash) => {
                holder.has.insert(hash, Has::TooLarge);
            }
            End::Lied => {
                holder.has.clear();
                self.events
                    .push(Event::Behaved(task.holder, Some(Fault::Lied)));
            }
            End::Busy | End::NotStored => {}
            End::BrokeOff | End::Stalled if task.presumed => {
                // It never said that it has it.
                for part in &task.parts {
                    holder.has.remove(&part.hash);
                }
            }
            End::BrokeOff | End::Stalled => {
                holder.batch = (task.parts.len() / 2).max(1);
                if holder.failed.is_none_or(|failed| task.started > failed) {
                    holder.failures += 1;
                    holder.failed = Some(now);
                    if end == End::Stalled {
                        // This one is not among the busy ones any more.
                        holder.most = holder.busy.div_ceil(2).max(1);
                    }
                }
                if holder.failures >= FAILURES {
                    holder.failures = 0;
                    holder.silent.get_or_insert(now);
                    self.events
                        .push(Event::Behaved(task.holder, Some(Fault::Stalling)));
                } else if task.parts.len() == 1 {
                    // It may have it no longer, or only a part.
                    for part in &task.parts {
                        holder.has.remove(&part.hash);
                    }
                }
            }
        }
    }

    /// A task was ended because of [`Event::Cancel`].
    pub(crate) fn cancelled(&mut self, id: TaskId) {
        self.put_back(id);
    }

    /// A task of a slow holder was done by another, who was faster.
    fn lost(&mut self, loser: HolderId, winner: HolderId) {
        let fast = self
            .holders
            .get(&winner)
            .and_then(|holder| holder.rate.bytes_per_second());
        let Some(holder) = self.holders.get_mut(&loser) else {
            return;
        };
        holder.lost += 1;
        let slow = holder.rate.bytes_per_second().unwrap_or(0.0);
        if holder.lost >= LOST && fast.is_some_and(|fast| slow < fast * STARVING) {
            holder.lost = 0;
            self.events
                .push(Event::Behaved(loser, Some(Fault::Starving)));
        }
    }

    /// Takes a task out, and gives what is not done of it to whoever comes next.
    fn put_back(&mut self, id: TaskId) -> Option<Task> {
        let task = self.tasks.remove(&id)?;
        if let Some(holder) = self.holders.get_mut(&task.holder) {
            holder.busy = holder.busy.saturating_sub(1);
            if holder.busy == 0 {
                holder.rate.pause();
            }
        }
        for other in self.tasks.values_mut() {
            if other.repeats == Some(id) {
                other.repeats = None;
            }
        }
        if let Some(other) = task.repeats.and_then(|other| self.tasks.get_mut(&other)) {
            other.repeated = false;
        }
        for part in task.parts.iter().filter(|part| !part.done) {
            let mut ranges = part.ranges.clone();
            for other in self.tasks.values() {
                for flying in &other.parts {
                    if flying.hash == part.hash && !flying.done {
                        ranges -= flying.ranges.clone();
                    }
                }
            }
            if let Some(blob) = self.blobs.get_mut(&part.hash)
                && blob.is_open()
            {
                blob.todo |= ranges;
            }
        }
        Some(task)
    }

    /// The store says that all of a blob is there.
    pub(crate) fn complete(&mut self, hash: Hash) {
        if let Some(blob) = self.blobs.get_mut(&hash) {
            blob.todo = ChunkRanges::empty();
            blob.checking = false;
            blob.state = FetchState::Stored;
            self.events.push(Event::State(hash, FetchState::Stored));
        }
    }

    /// The store says that this is missing of a blob although all of it came.
    pub(crate) fn incomplete(&mut self, hash: Hash, missing: ChunkRanges) {
        let Some(blob) = self.blobs.get_mut(&hash) else {
            return;
        };
        blob.checking = false;
        blob.rounds += 1;
        if blob.rounds > ROUNDS || missing.is_empty() {
            self.events.push(Event::NobodyHas(hash));
            return;
        }
        blob.todo = missing;
        // It may have been a lie.
        blob.claimed = None;
        blob.state = FetchState::Finding;
        self.events.push(Event::State(hash, FetchState::Finding));
    }

    fn check_if_all_came(&mut self, hash: Hash) {
        let flying = self.is_flying(&hash);
        if let Some(blob) = self.blobs.get_mut(&hash)
            && blob.is_open()
            && blob.todo.is_empty()
            && !flying
        {
            blob.checking = true;
            blob.state = FetchState::Verifying;
            let kind = blob.kind;
            self.events.push(Event::State(hash, FetchState::Verifying));
            self.events.push(Event::Check(hash, kind));
        }
    }

    fn is_flying(&self, hash: &Hash) -> bool {
        self.tasks.values().any(|task| {
            task.parts
                .iter()
                .any(|part| part.hash == *hash && !part.done)
        })
    }

    fn set_state(&mut self, hash: Hash, from: FetchState, to: FetchState) {
        if let Some(blob) = self.blobs.get_mut(&hash)
            && blob.state == from
        {
            blob.state = to;
            self.events.push(Event::State(hash, to));
        }
    }

    /// Ends what has brought nothing for too long.
    pub(crate) fn tick(&mut self, now: Now) {
        let stalled: Vec<TaskId> = self
            .tasks
            .iter()
            .filter(|(_, task)| now >= task.heard + STALL || now >= task.last + NOTHING_WHOLE)
            .map(|(id, _)| *id)
            .collect();
        for id in stalled {
            self.events.push(Event::Cancel(id));
            self.finished(id, End::Stalled, now);
        }
    }

    /// What is to be asked next, of whom; none when there is nothing to do as things stand.
    pub(crate) fn next(&mut self, now: Now) -> Option<Start> {
        choose::next(self, now)
    }

    /// What happened since the last call.
    pub(crate) fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }
}

impl Blob {
    /// Whether there is still something to be fetched.
    fn is_open(&self) -> bool {
        !self.checking && self.state != FetchState::Stored
    }

    fn all(&self) -> ChunkRanges {
        let claimed = self.claimed.filter(|_| self.kind == Kind::Blob);
        let size = self.size.or(claimed).unwrap_or(self.limit);
        ChunkRanges::bytes(0..size.max(1))
    }

    /// A holder says how large it is. Where nothing else does, that decides how it is cut; the store finds out whether it was true.
    fn claim(&mut self, size: u64) {
        if self.claimed.is_some() || size > self.limit {
            return;
        }
        self.claimed = Some(size);
        if self.size.is_none() {
            self.todo &= self.all();
        }
    }
}

impl Holder {
    fn heard(&mut self, now: Now) {
        self.heard = Some(now);
        self.silent = None;
        self.unsure = false;
    }

    fn is_out(&self, now: Now) -> bool {
        self.out.max(self.distrusted).is_some_and(|out| out > now)
    }

    fn keep_out(&mut self, until: Now, lied: bool) {
        let out = if lied {
            &mut self.distrusted
        } else {
            &mut self.out
        };
        *out = (*out).max(Some(until));
    }
}
