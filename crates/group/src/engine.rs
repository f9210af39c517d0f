//! Fetching: one for all that a group wants, whoever wants it.
//!
//! The decisions are those of [`Scheduler`]; here are the streams, the store and the clock. Whoever wants a blob gets a [`Ticket`] and
//! waits at it; two who want the same share one transfer. What was verified stays in the store, whatever happens.

mod transfer;

use std::{
    collections::{BTreeSet, HashMap},
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use dht_records::Fetch;
use iroh_blobs::{
    Hash,
    api::{Store, TempTag},
    protocol::{ChunkRanges, ChunkRangesExt},
};
use tokio::{
    sync::{Notify, watch},
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep, timeout},
};

use crate::{
    Error, Group, Result,
    group::Inner,
    have, members,
    peers::{Peer, PeerId},
    progress::{FetchState, Reporter},
    sched::{End, Event, HolderId, Kind, Now, Scheduler, TaskId, Want},
};

/// How long a holder may take to say what it has.
const ANSWER: Duration = Duration::from_secs(12);
/// How long looking for everybody's current tunnels may take.
const LOOK: Duration = Duration::from_secs(12);
/// How often the scheduler looks at the clock while there is something to do.
const TICK: Duration = Duration::from_millis(200);
/// How often the tunnels that are known from earlier are taken up again.
const TAKE_UP: Duration = Duration::from_secs(3);
/// How often everybody's current tunnels are looked for while something is wanted: others than those known may have it.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// What was found so recently need not be looked for again.
const RECENT: Duration = Duration::from_secs(5);

/// A blob to be fetched.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    pub(crate) hash: Hash,
    pub(crate) kind: Kind,
    /// The size in bytes, where a sealed entry tells it.
    pub(crate) size: Option<u64>,
    /// No more bytes than this are fetched.
    pub(crate) limit: u64,
    /// Who has all of this one has the wanted one as well, most likely.
    pub(crate) like: Option<Hash>,
}

/// Why a blob was not fetched.
#[derive(Clone, Debug)]
enum Failure {
    NobodyHas,
    Nobody,
    TooLarge(u64),
    Store(Arc<str>),
}

/// How far a blob is.
#[derive(Clone, Debug)]
struct Progress {
    state: FetchState,
    /// Verified bytes that are here.
    bytes: u64,
    failure: Option<Failure>,
}

/// All that a group fetches.
pub(crate) struct Engine {
    store: Store,
    state: Mutex<State>,
    changed: Notify,
    origin: Instant,
}

#[derive(Default)]
struct State {
    scheduler: Scheduler,
    progress: HashMap<Hash, watch::Sender<Progress>>,
    peers: Vec<Arc<Peer>>,
    ids: HashMap<PeerId, HolderId>,
    /// Something new is wanted, so the known tunnels are taken up again.
    fresh: bool,
    closed: bool,
    /// Bytes of blobs that came in, since the start.
    received: u64,
}

/// One who waits for a blob. Dropping it gives it up, unless somebody else waits as well.
pub(crate) struct Ticket {
    engine: Weak<Engine>,
    hash: Hash,
    progress: Option<watch::Receiver<Progress>>,
    _tag: Option<TempTag>,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let (Some(progress), Some(engine)) = (&self.progress, self.engine.upgrade()) else {
            return;
        };
        let mut state = engine.lock();
        let Some(sender) = state.progress.get(&self.hash) else {
            return;
        };
        // It may be another, of those who came after this one's wait had ended.
        if !sender.subscribe().same_channel(progress) {
            return;
        }
        if sender.receiver_count() == 1 {
            state.progress.remove(&self.hash);
        }
        state.scheduler.unwant(self.hash);
        drop(state);
        engine.changed.notify_one();
    }
}

impl Ticket {
    /// Waits until the blob is verified and on disk.
    ///
    /// # Errors
    /// [`Error::NobodyHas`], [`Error::MemberDoesNotAnswer`], [`Error::TooLarge`], [`Error::Store`], [`Error::Closed`].
    pub(crate) async fn done(&mut self, reporter: &Reporter) -> Result<()> {
        let hash = self.hash;
        let Some(progress) = &mut self.progress else {
            reporter.state(FetchState::Stored);
            return Ok(());
        };
        loop {
            let now = progress.borrow_and_update().clone();
            if let Some(failure) = now.failure {
                return Err(failure.into_error(hash));
            }
            reporter.reached(now.bytes);
            if now.state == FetchState::Stored {
                // Whoever waits for more than this blob says so itself.
                return Ok(());
            }
            reporter.state(now.state);
            progress.changed().await.map_err(|_| Error::Closed)?;
        }
    }
}

impl Failure {
    fn into_error(self, hash: Hash) -> Error {
        match self {
            Self::NobodyHas => Error::NobodyHas {
                missing: vec![hash],
            },
            Self::Nobody => Error::MemberDoesNotAnswer,
            Self::TooLarge(limit) => Error::TooLarge { limit },
            Self::Store(what) => Error::Store(io::Error::other(what.to_string())),
        }
    }
}

impl Engine {
    pub(crate) fn new(store: Store) -> Self {
        Self {
            store,
            state: Mutex::default(),
            changed: Notify::new(),
            origin: Instant::now(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn now(&self) -> Now {
        self.origin.elapsed()
    }

    /// Wants blobs. What is here already costs nothing.
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::Store`], [`Error::Closed`].
    pub(crate) async fn want(self: &Arc<Self>, wanted: &[Wanted]) -> Result<Vec<Ticket>> {
        let mut tickets = Vec::with_capacity(wanted.len());
        let mut wants = Vec::new();
        for wanted in wanted {
            let hash = wanted.hash;
            if wanted.size.is_some_and(|size| size > wanted.limit) {
                return Err(Error::TooLarge {
                    limit: wanted.limit,
                });
            }
            if self.is_here(hash, wanted.kind).await? {
                tickets.push(Ticket {
                    engine: Weak::new(),
                    hash,
                    progress: None,
                    _tag: None,
                });
                continue;
            }
            let tag = self
                .store
                .tags()
                .temp_tag(hash)
                .await
                .map_err(|e| Error::Store(io::Error::other(e)))?;
            let (missing, bytes) = self
                .missing(hash, wanted.size.unwrap_or(wanted.limit))
                .await?;
            wants.push((tickets.len(), bytes, tag, *wanted, missing));
            // Its place is kept.
            tickets.push(Ticket {
                engine: Weak::new(),
                hash,
                progress: None,
                _tag: None,
            });
        }
        if wants.is_empty() {
            return Ok(tickets);
        }
        let mut state = self.lock();
        if state.closed {
            return Err(Error::Closed);
        }
        // All at once, so that they go into one question and into few requests.
        for (place, bytes, tag, wanted, missing) in wants {
            state.scheduler.want(Want {
                hash: wanted.hash,
                kind: wanted.kind,
                size: wanted.size,
                limit: wanted.limit,
                like: wanted.like,
                missing,
            });
            let progress = state
                .progress
                .entry(wanted.hash)
                .or_insert_with(|| {
                    watch::Sender::new(Progress {
                        state: FetchState::Queued,
                        bytes,
                        failure: None,
                    })
                })
                .subscribe();
            if let Some(ticket) = tickets.get_mut(place) {
                *ticket = Ticket {
                    engine: Arc::downgrade(self),
                    hash: wanted.hash,
                    progress: Some(progress),
                    _tag: Some(tag),
                };
            }
        }
        state.fresh = true;
        drop(state);
        self.changed.notify_one();
        Ok(tickets)
    }

    /// Whether all of a blob is here and verified; of a collection, its list of names as well.
    pub(crate) async fn is_here(&self, hash: Hash, kind: Kind) -> Result<bool> {
        let failed = |e| Error::Store(io::Error::other(e));
        if !self.store.blobs().has(hash).await.map_err(failed)? {
            return Ok(false);
        }
        if kind == Kind::Blob {
            return Ok(true);
        }
        match transfer::first_child(&self.store, hash).await {
            Ok(Some(names)) => self.store.blobs().has(names).await.map_err(failed),
            // It is no collection, which whoever wanted it finds out.
            Ok(None) => Ok(true),
            Err(error) => Err(Error::Store(error)),
        }
    }

    async fn missing(&self, hash: Hash, size: u64) -> Result<(ChunkRanges, u64)> {
        let here = self
            .store
            .blobs()
            .observe(hash)
            .await
            .map_err(|e| Error::Store(io::Error::other(e)))?;
        let all = ChunkRanges::bytes(0..size.max(1));
        Ok((&all - &here.ranges, here.total_bytes().min(size)))
    }

    /// Bytes of blobs that came in from others, since the start.
    pub(crate) fn received(&self) -> u64 {
        self.lock().received
    }

    /// Verified bytes of a blob came in.
    fn came(&self, task: TaskId, hash: Hash, bytes: u64) {
        let now = self.now();
        let mut state = self.lock();
        state.received += bytes;
        state.scheduler.progress(task, bytes, now);
        self.report(&state, hash, |progress| progress.bytes += bytes);
    }

    /// All of a part of a task is in the store.
    fn part_done(&self, task: TaskId, hash: Hash) {
        self.lock().scheduler.part_done(task, hash);
        self.changed.notify_one();
    }

    fn finished(&self, task: TaskId, end: End) {
        let now = self.now();
        self.lock().scheduler.finished(task, end, now);
        self.changed.notify_one();
    }

    /// The local store does not take what comes: nobody who waits for this blob can be helped.
    fn store_failed(&self, hash: Hash, error: &io::Error) {
        tracing::warn!(%error, "a blob cannot be stored");
        let what: Arc<str> = error.to_string().into();
        let mut state = self.lock();
        self.fail(&mut state, hash, Failure::Store(what));
    }

    fn too_large(&self, hash: Hash, limit: u64) {
        let mut state = self.lock();
        self.fail(&mut state, hash, Failure::TooLarge(limit));
    }

    fn report(&self, state: &State, hash: Hash, change: impl FnOnce(&mut Progress)) {
        if let Some(progress) = state.progress.get(&hash) {
            progress.send_modify(change);
        }
    }

    /// Somebody's wait ends without the blob.
    fn fail(&self, state: &mut State, hash: Hash, failure: Failure) {
        self.report(state, hash, |progress| progress.failure = Some(failure));
        // Whoever wants it from now on begins anew.
        state.progress.remove(&hash);
        state.scheduler.give_up(hash);
    }
}

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
    last: Option<Instant>,
}

impl Looking {
    fn within(&self, time: Duration) -> bool {
        self.last.is_some_and(|last| last.elapsed() < time)
    }
}

impl Driver<'_> {
    async fn step(&mut self) {
        while self.jobs.try_join_next().is_some() {}
        let fresh = std::mem::take(&mut self.engine.lock().fresh);
        if fresh && self.taken_up.is_none_or(|at| at.elapsed() >= TAKE_UP) {
            self.taken_up = Some(Instant::now());
            let peers = members::devices(self.group, Fetch::Cached).await;
            take_up(&self.inner, &self.engine, peers, true);
            if !lock(&self.looking).within(LOOK_AGAIN) {
                self.look_for_everybody(Vec::new());
            }
        }
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
                self.look_for_everybody(first);
            }
            for hash in last {
                let nobody = !state.scheduler.has_holders();
                let failure = if nobody {
                    Failure::Nobody
                } else {
                    Failure::NobodyHas
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

    fn handle(&mut self, state: &mut State, events: Vec<Event>, now: Now) {
        for event in events {
            match event {
                Event::State(hash, to) => {
                    self.engine
                        .report(state, hash, |progress| progress.state = to);
                }
                Event::Check(hash, kind) => {
                    self.jobs.spawn(check(self.engine.clone(), hash, kind));
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
                            state.scheduler.leave_out(holder, now + left);
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
                    inner.ignore().heard(&peer.id);
                    let now = engine.now();
                    state.scheduler.answered(holder, &holdings, now);
                }
                failed => {
                    let error = failed.err().map(|_| "timeout");
                    tracing::debug!(peer = %peer.short(), ?error, "a member does not say what it has");
                    state.scheduler.silent(holder);
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
                _ => None,
            };
            let now = engine.now();
            engine.lock().scheduler.observed(holder, hash, ranges, now);
            engine.changed.notify_one();
        });
    }

    /// Looks for everybody's current tunnels, once at a time; then these blobs are tried with all of them.
    fn look_for_everybody(&mut self, hashes: Vec<Hash>) {
        let recent = {
            let mut looking = lock(&self.looking);
            if looking.now {
                return;
            }
            looking.now = true;
            looking.within(RECENT)
        };
        let (group, engine, looking) = (
            self.group.clone(),
            self.engine.clone(),
            self.looking.clone(),
        );
        self.jobs.spawn(async move {
            if !recent {
                let peers = timeout(LOOK, members::devices(&group, Fetch::Network)).await;
                let complete = peers.is_ok();
                let peers = match peers {
                    Ok(peers) => peers,
                    Err(_) => members::devices(&group, Fetch::Cached).await,
                };
                take_up(&group.inner, &engine, peers, complete);
            }
            if !hashes.is_empty() {
                engine.lock().scheduler.try_all(&hashes);
            }
            {
                let mut looking = lock(&looking);
                looking.now = false;
                if !recent {
                    looking.last = Some(Instant::now());
                }
            }
            engine.changed.notify_one();
        });
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere leaves plain data behind, which stays usable.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn peer(state: &State, holder: HolderId) -> Option<Arc<Peer>> {
    let place = usize::try_from(holder).ok()?;
    state.peers.get(place).cloned()
}

/// Takes up who can be asked now. Who is not among them is dropped if these are all.
fn take_up(inner: &Inner, engine: &Engine, peers: Vec<Arc<Peer>>, all: bool) {
    let clock = Instant::now();
    let now = engine.now();
    let mut state = engine.lock();
    let mut here = BTreeSet::new();
    for peer in peers {
        let next = HolderId::try_from(state.peers.len()).unwrap_or(HolderId::MAX);
        let id = *state.ids.entry(peer.id.clone()).or_insert(next);
        if id == next {
            state.peers.push(peer.clone());
        }
        let left = inner.ignore().ignored(&peer.id, clock);
        state
            .scheduler
            .join(id, left.map(|left| now + left.remaining));
        here.insert(id);
    }
    if all {
        state.scheduler.keep_only(&here);
    }
}

/// Asks the store whether a blob of which everything came is complete.
async fn check(engine: Arc<Engine>, hash: Hash, kind: Kind) {
    let outcome = async {
        if engine.is_here(hash, kind).await? {
            return Ok(None);
        }
        let size = engine.lock().scheduler.size_of(&hash);
        let Some(size) = size else {
            return Ok::<_, Error>(Some(ChunkRanges::empty()));
        };
        let (missing, _) = engine.missing(hash, size).await?;
        Ok(Some(missing))
    };
    let outcome = outcome.await;
    let mut state = engine.lock();
    match outcome {
        Ok(None) => state.scheduler.complete(hash),
        Ok(Some(missing)) => state.scheduler.incomplete(hash, missing),
        Err(error) => {
            let what: Arc<str> = error.to_string().into();
            engine.fail(&mut state, hash, Failure::Store(what));
        }
    }
    drop(state);
    engine.changed.notify_one();
}
