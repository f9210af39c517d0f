//! The task that does what the scheduler decides.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex},
    time::Duration,
};

use dht_records::Fetch;
use iroh_blobs::{Hash, protocol::ChunkRanges};
use tokio::{
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep, timeout},
};

use super::{Engine, Failure, State, lock, transfer};
use crate::{
    Error, Group,
    group::Inner,
    have,
    ignore::Fault,
    members,
    peers::Peer,
    sched::{Event, HolderId, Kind, Now, RECENT, TaskId},
};

/// How long a holder may take to say what it has.
const ANSWER: Duration = Duration::from_secs(12);
/// How long looking for everybody's current tunnels may take.
const LOOK: Duration = Duration::from_secs(12);
/// How long the guests are waited for where nobody else has what is wanted. Where a node has just gone, Veilid takes up to 10 s for each of
/// opening their record, inspecting it and reading what changed.
const GUESTS: Duration = Duration::from_secs(32);
/// How often the scheduler looks at the clock while there is something to do.
const TICK: Duration = Duration::from_millis(200);
/// How often the tunnels that are known from earlier are taken up again.
const TAKE_UP: Duration = Duration::from_secs(3);
/// How often everybody's current tunnels are looked for while something is wanted: others than those known may have it.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// Fetches what is wanted until the group stops.
pub(crate) async fn run(group: &Group) {
    let engine = group.inner.engine.clone();
    let mut driver = Driver {
        inner: group.inner.clone(),
        group,
        engine,
        jobs: JoinSet::new(),
        tasks: HashMap::new(),
        taken_up: None,
        looking: Arc::default(),
    };
    loop {
        let engine = driver.engine.clone();
        let changed = engine.changed.notified();
        tokio::pin!(changed);
        // From here on no change is missed.
        changed.as_mut().enable();
        driver.step().await;
        let idle = engine.lock().scheduler.is_idle();
        tokio::select! {
            () = &mut changed => {}
            () = sleep(TICK), if !idle => {}
        }
    }
}

/// Ends everybody's wait.
pub(crate) fn close(engine: &Engine) {
    let mut state = engine.lock();
    state.closed = true;
    state.progress.clear();
}

struct Driver<'a> {
    group: &'a Group,
    inner: Arc<Inner>,
    engine: Arc<Engine>,
    /// Questions, transfers, checks. They end with the driver.
    jobs: JoinSet<()>,
    tasks: HashMap<TaskId, AbortHandle>,
    taken_up: Option<Instant>,
    looking: Arc<Mutex<Looking>>,
}

/// When everybody was looked for.
#[derive(Debug, Default)]
struct Looking {
    now: bool,
    /// When that began, since who came later was not seen; and when it ended.
    last: Option<(Now, Now)>,
    /// Whether the guests were among them.
    guests: bool,
}

impl Looking {
    /// Whether it began within this time.
    fn within(&self, time: Duration, now: Now) -> bool {
        self.last.is_some_and(|(began, _)| now < began + time)
    }

    /// When a look began that has just ended, and that counts for what was wanted since then.
    fn counts(&self, since: Now, now: Now) -> Option<Now> {
        let (began, ended) = self.last?;
        (now < ended + RECENT && since <= began + RECENT).then_some(began)
    }
}

impl Driver<'_> {
    async fn step(&mut self) {
        while self.jobs.try_join_next().is_some() {}
        let fresh = std::mem::take(&mut self.engine.lock().fresh);
        if fresh && self.taken_up.is_none_or(|at| at.elapsed() >= TAKE_UP) {
            self.taken_up = Some(Instant::now());
            let before = self.engine.lock().taken_up;
            let (peers, complete) = members::devices(self.group, Fetch::Cached).await;
            take_up(&self.inner, &self.engine, peers, complete, before);
        }
        self.look_around();
        let now = self.engine.now();
        self.engine.lock().presume(now);
        loop {
            let engine = self.engine.clone();
            let now = engine.now();
            let mut state = engine.lock();
            if state.scheduler.is_idle() && self.tasks.is_empty() {
                let events = state.scheduler.take_events();
                self.handle(&mut state, events, now);
                return;
            }
            state.scheduler.tick(now);
            for (holder, hashes) in state.scheduler.questions(have::MAX_HASHES, now) {
                self.ask(&state, holder, hashes);
            }
            for (holder, hash) in state.scheduler.observations(now) {
                self.observe(&state, holder, hash);
            }
            while let Some(start) = state.scheduler.next(now) {
                let Some(peer) = peer(&state, start.holder) else {
                    break;
                };
                let job = transfer::run(self.inner.clone(), engine.clone(), peer, start.clone());
                self.tasks.insert(start.task, self.jobs.spawn(job));
            }
            let (first, last) = state.scheduler.stuck(now);
            if !first.is_empty() {
                state.scheduler.finding(&first);
                let since = state.scheduler.since(&first).unwrap_or(now);
                self.look_for_everybody(first, since);
            }
            for hash in last {
                let nobody = !state.scheduler.has_holders();
                let failure = match state.scheduler.too_large(&hash) {
                    _ if nobody => Failure::Nobody,
                    Some(limit) => Failure::TooLarge(limit),
                    None => Failure::NobodyHas,
                };
                engine.fail(&mut state, hash, failure);
            }
            let events = state.scheduler.take_events();
            if events.is_empty() {
                return;
            }
            self.handle(&mut state, events, now);
        }
    }

    /// Looks for everybody's current tunnels while something is wanted, if that is due.
    fn look_around(&mut self) {
        let now = self.engine.now();
        let due = {
            let mut state = self.engine.lock();
            if state.scheduler.is_idle() {
                return;
            }
            let mut looking = lock(&self.looking);
            if looking.now {
                return;
            }
            if std::mem::take(&mut state.newcomer) {
                looking.last = None;
            }
            !looking.within(LOOK_AGAIN, now)
        };
        if due {
            self.look_for_everybody(Vec::new(), now);
        }
    }

    fn handle(&mut self, state: &mut State, events: Vec<Event>, now: Now) {
        for event in events {
            match event {
                Event::State(hash, to) => {
                    self.engine
                        .report(state, hash, |progress| progress.state = to);
                }
                Event::Check(hash, kind) => {
                    self.jobs
                        .spawn(check(self.inner.clone(), self.engine.clone(), hash, kind));
                }
                Event::Cancel(task) => {
                    if let Some(job) = self.tasks.remove(&task) {
                        job.abort();
                    }
                    state.scheduler.cancelled(task);
                }
                Event::Ended(task) => {
                    self.tasks.remove(&task);
                }
                Event::NobodyHas(hash) => self.engine.fail(state, hash, Failure::NobodyHas),
                Event::Behaved(holder, fault) => {
                    let Some(peer) = peer(state, holder) else {
                        continue;
                    };
                    let clock = Instant::now();
                    let mut ignore = self.inner.ignore();
                    match fault {
                        None => ignore.forgive(&peer.id),
                        Some(fault) => {
                            ignore.strike(peer.id.clone(), fault, clock);
                            let left = ignore.ignored(&peer.id, clock);
                            drop(ignore);
                            tracing::debug!(peer = %peer.short(), ?fault, "a member is left alone for a while");
                            let left = left.map_or(Duration::ZERO, |left| left.remaining);
                            let lied = fault == Fault::Lied;
                            state.scheduler.leave_out(holder, now + left, lied);
                        }
                    }
                }
            }
        }
    }

    fn ask(&mut self, state: &State, holder: HolderId, hashes: Vec<Hash>) {
        let Some(peer) = peer(state, holder) else {
            return;
        };
        let (engine, inner) = (self.engine.clone(), self.inner.clone());
        self.jobs.spawn(async move {
            let answer = timeout(ANSWER, have::ask(&peer, &hashes)).await;
            let mut state = engine.lock();
            match answer {
                Ok(Ok(holdings)) => {
                    inner.heard(&peer.id);
                    let now = engine.now();
                    state.scheduler.answered(holder, &holdings, now);
                }
                failed => {
                    let error = failed.err().map(|_| "timeout");
                    tracing::debug!(peer = %peer.short(), ?error, "a member does not say what it has");
                    state.scheduler.silent(holder, engine.now());
                }
            }
            drop(state);
            engine.changed.notify_one();
        });
    }

    fn observe(&mut self, state: &State, holder: HolderId, hash: Hash) {
        let Some(peer) = peer(state, holder) else {
            return;
        };
        let engine = self.engine.clone();
        self.jobs.spawn(async move {
            let ranges = match timeout(ANSWER, transfer::observe(&peer, hash)).await {
                Ok(Ok(ranges)) => Some(ranges),
                failed => {
                    let error = failed.ok().and_then(Result::err);
                    tracing::debug!(peer = %peer.short(), ?error, "a member does not say which part it has");
                    None
                }
            };
            let now = engine.now();
            engine.lock().scheduler.observed(holder, hash, ranges, now);
            engine.changed.notify_one();
        });
    }

    /// Looks for everybody's current tunnels, once at a time; then these blobs, wanted since then, are tried with all of them.
    fn look_for_everybody(&mut self, hashes: Vec<Hash>, since: Now) {
        let now = self.engine.now();
        let recent = {
            let mut looking = lock(&self.looking);
            if looking.now {
                return;
            }
            looking.now = true;
            let recent = looking.counts(since, now);
            recent.filter(|_| hashes.is_empty() || looking.guests)
        };
        let (group, engine, looking) = (
            self.group.clone(),
            self.engine.clone(),
            self.looking.clone(),
        );
        self.jobs.spawn(async move {
            let mut heard = true;
            if recent.is_none() {
                let guests = members::look_for_guests(&group);
                let before = engine.lock().taken_up;
                let found = timeout(LOOK, members::devices(&group, Fetch::Network)).await;
                let (peers, complete) = match found {
                    Ok(found) => found,
                    Err(_) => (members::devices(&group, Fetch::Cached).await.0, false),
                };
                take_up(&group.inner, &engine, peers, complete, before);
                if !hashes.is_empty() {
                    engine.lock().scheduler.try_all(&hashes, None, engine.now());
                }
                engine.changed.notify_one();
                // Nobody waits for these: what is wanted is asked of the others meanwhile.
                heard = timeout(GUESTS, guests)
                    .await
                    .is_ok_and(|told| told.unwrap_or(false));
                let guests = members::guest_devices(&group).await;
                take_up(&group.inner, &engine, guests, false, before);
            }
            if !hashes.is_empty() {
                let began = recent.unwrap_or(now);
                let mut state = engine.lock();
                state.scheduler.try_all(&hashes, Some(began), engine.now());
            }
            {
                let mut looking = lock(&looking);
                looking.now = false;
                if recent.is_none() {
                    looking.last = Some((now, engine.now()));
                    looking.guests = heard;
                }
            }
            engine.changed.notify_one();
        });
    }
}

impl State {
    /// The devices of the member in whose archive a blob is wanted are asked for it at once, beside the question who has it.
    fn presume(&mut self, now: Now) {
        for (hash, of) in self.presumed.drain(..) {
            let devices = self.peers.iter().filter(|(_, peer)| peer.id.repo == of);
            for (holder, _) in devices {
                self.scheduler.presume(*holder, hash, now);
            }
        }
    }
}

fn peer(state: &State, holder: HolderId) -> Option<Arc<Peer>> {
    state.peers.get(&holder).cloned()
}

/// Takes up who can be asked now. Who is not among them is dropped if these are all, and nobody was taken up since they were looked for, which
/// was after `before` times.
fn take_up(inner: &Inner, engine: &Engine, peers: Vec<Arc<Peer>>, all: bool, before: u64) {
    let clock = Instant::now();
    let now = engine.now();
    let mut state = engine.lock();
    let state = &mut *state;
    let mut here = BTreeSet::new();
    for peer in peers {
        let id = *state.ids.entry(peer.id.clone()).or_insert_with(|| {
            state.next_holder = state.next_holder.wrapping_add(1);
            state.next_holder
        });
        let left = inner.ignore().ignored(&peer.id, clock);
        state.scheduler.join(
            id,
            left.map(|left| (now + left.remaining, left.fault == Fault::Lied)),
        );
        state.peers.insert(id, peer);
        here.insert(id);
    }
    let all = all && state.taken_up == before;
    state.taken_up += 1;
    if all {
        state.scheduler.keep_only(&here);
        state.peers.retain(|id, _| here.contains(id));
        state.ids.retain(|_, id| here.contains(id));
    }
}

/// Asks the store whether a blob of which everything came is complete.
async fn check(inner: Arc<Inner>, engine: Arc<Engine>, hash: Hash, kind: Kind) {
    let outcome = async {
        if engine.is_here(hash, kind).await? {
            return Ok(None);
        }
        let size = engine.lock().scheduler.size_of(&hash);
        let Some(size) = size else {
            return Ok::<_, Error>(Some(ChunkRanges::empty()));
        };
        let (missing, _) = engine.missing(hash, kind, size).await?;
        Ok(Some(missing))
    };
    let outcome = outcome.await;
    if matches!(outcome, Ok(None))
        && let Err(error) = inner.held.write(&inner.ledger).await
    {
        // The file is here all the same. Others are told of it until this device restarts.
        tracing::warn!(%error, "what was obtained is not written down");
    }
    let mut state = engine.lock();
    match outcome {
        Ok(None) => state.scheduler.complete(hash),
        Ok(Some(missing)) => state.scheduler.incomplete(hash, missing),
        Err(error) => {
            engine.fail(&mut state, hash, Failure::NotStored(Arc::new(error)));
        }
    }
    drop(state);
    engine.changed.notify_one();
}
