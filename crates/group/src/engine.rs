//! Fetching: one for all that a group wants, whoever wants it.
//!
//! The decisions are those of [`Scheduler`]; here are the streams, the store and the clock. Whoever wants a blob gets a [`Ticket`] and
//! waits at it; two who want the same share one transfer. What was verified stays in the store, whatever happens.

mod driver;
mod transfer;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use iroh_blobs::{
    Hash,
    api::{Store, TempTag},
    protocol::{ChunkRanges, ChunkRangesExt},
};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use veilid_core::PublicKey;

pub(crate) use self::driver::{close, run};
use crate::{
    Error, Result,
    peers::{Peer, PeerId},
    progress::{FetchState, Reporter},
    sched::{End, HolderId, Kind, Now, Scheduler, TaskId, Want},
};

/// A blob to be fetched.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    pub(crate) hash: Hash,
    pub(crate) kind: Kind,
    /// The size in bytes, where a sealed entry tells it.
    pub(crate) size: Option<u64>,
    /// No more bytes than this are fetched.
    pub(crate) limit: u64,
    /// Since when: who advertises a tunnel may have changed after a look at everybody that began before.
    pub(crate) since: Instant,
    /// Who has all of this one has the wanted one as well, most likely.
    pub(crate) like: Option<Hash>,
    /// All of it is fetched from the members, whatever is here: it may have come from another group, and what is not asked for would
    /// tell them so.
    pub(crate) whole: bool,
}

/// Why a blob was not fetched.
#[derive(Clone, Debug)]
enum Failure {
    NobodyHas,
    Nobody,
    TooLarge(u64),
    NotStored(Arc<Error>),
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
    /// Those who were listed last.
    peers: HashMap<HolderId, Arc<Peer>>,
    ids: HashMap<PeerId, HolderId>,
    next_holder: HolderId,
    /// How often devices were taken up.
    taken_up: u64,
    /// What is wanted as a member's file, since the driver last looked: that member's devices have it, most likely.
    presumed: Vec<(Hash, PublicKey)>,
    /// Something new is wanted, so the known tunnels are taken up again.
    fresh: bool,
    /// There is a member who was never looked for.
    newcomer: bool,
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
    /// [`Error::NobodyHas`], [`Error::MemberDoesNotAnswer`], [`Error::TooLarge`], [`Error::NotStored`], [`Error::Closed`].
    pub(crate) async fn done(&mut self, reporter: &Reporter) -> Result<()> {
        let hash = self.hash;
        let Some(progress) = &mut self.progress else {
            reporter.state(FetchState::Stored);
            return Ok(());
        };
        reporter.state(FetchState::Queued);
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
            Self::NotStored(cause) => Error::NotStored(cause),
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

    /// Wants blobs, as files of a member if that is said. What is here already costs nothing.
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::Store`], [`Error::Closed`].
    pub(crate) async fn want(
        self: &Arc<Self>,
        wanted: &[Wanted],
        of: Option<&PublicKey>,
    ) -> Result<Vec<Ticket>> {
        let mut tickets = Vec::with_capacity(wanted.len());
        let mut wants = Vec::new();
        for wanted in wanted {
            let hash = wanted.hash;
            if wanted.size.is_some_and(|size| size > wanted.limit) {
                return Err(Error::TooLarge {
                    limit: wanted.limit,
                });
            }
            if !wanted.whole && self.is_here(hash, wanted.kind).await? {
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
                .map_err(Error::store)?;
            let size = wanted.size.unwrap_or(wanted.limit);
            let (missing, bytes) = if wanted.whole {
                (ChunkRanges::bytes(0..size.max(1)), 0)
            } else {
                self.missing(hash, wanted.kind, size).await?
            };
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
                since: wanted.since.saturating_duration_since(self.origin),
                like: wanted.like,
                missing,
                whole: wanted.whole,
            });
            if let Some(of) = of {
                state.presumed.push((wanted.hash, of.clone()));
            }
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
        if !self.store.blobs().has(hash).await.map_err(Error::store)? {
            return Ok(false);
        }
        if kind == Kind::Blob {
            return Ok(true);
        }
        match self.first_child(hash).await? {
            Some(names) => self.store.blobs().has(names).await.map_err(Error::store),
            // It is no collection, which whoever wanted it finds out.
            None => Ok(true),
        }
    }

    /// The first link of a hash sequence, which is a collection's list of names; none where it is not here.
    pub(crate) async fn first_child(&self, hash: Hash) -> Result<Option<Hash>> {
        transfer::first_child(&self.store, hash).await
    }

    /// What is missing of a blob that [is not here](Self::is_here), and how many bytes are.
    async fn missing(&self, hash: Hash, kind: Kind, size: u64) -> Result<(ChunkRanges, u64)> {
        let here = self
            .store
            .blobs()
            .observe(hash)
            .await
            .map_err(Error::store)?;
        let all = ChunkRanges::bytes(0..size.max(1));
        let missing = &all - &here.ranges;
        if missing.is_empty() && kind == Kind::Collection {
            // All but its list of names, which comes with it.
            return Ok((all, 0));
        }
        Ok((missing, here.total_bytes().min(size)))
    }

    /// There is a member who was not known before, and who may have what is wanted.
    pub(crate) fn newcomer(&self) {
        self.lock().newcomer = true;
        self.changed.notify_one();
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
        let more = state.scheduler.progress(task, bytes, now);
        self.report(&state, hash, |progress| progress.bytes += bytes);
        drop(state);
        if more {
            self.changed.notify_one();
        }
    }

    /// Bytes of a task came in that are not verified yet.
    fn alive(&self, task: TaskId) {
        let now = self.now();
        self.lock().scheduler.alive(task, now);
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
    fn store_failed(&self, hash: Hash, error: Error) {
        // Whoever waits is told the cause. Veilid's words for it may quote keys.
        tracing::warn!(%error, "a blob cannot be stored");
        let mut state = self.lock();
        self.fail(&mut state, hash, Failure::NotStored(Arc::new(error)));
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere leaves plain data behind, which stays usable.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
