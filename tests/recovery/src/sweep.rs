//! The same change, killed at one write after the other, or without space from there on, or dropped by whoever waits for it.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    panic,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::Instant,
};

use crate::{Check, Kill, Run, State, Trial, trial::Moment};

/// Bytes by which the store's files may differ at the end: how full the last pack is.
const SLACK: u64 = 16 * 1024;

/// How far apart the points are at which restarts of neighbouring trials are killed; shares no divisor with usual numbers of writes.
const STRIDE: u64 = 37;

/// How much is tried.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    /// Writes of the change that are points to be killed at, at most.
    pub most: u64,
    /// A point in one of the ways to die, in turns, instead of in all of them.
    pub in_turns: bool,
    /// Besides, what is on the disk at each write of the change is looked at, without its network.
    pub every: bool,
    /// Of these points, those from which on the disk is full, at most.
    pub full: u64,
    /// How often the change is dropped half way, after so many polls each time, at most.
    pub drops: u64,
    /// Bytes that may lie dead in packs at the end. What came twice since its first record was torn stays there until there is more of it.
    pub dead: u64,
    /// Devices at the same time.
    pub workers: usize,
}

/// What befalls a device.
#[derive(Debug, Clone, Copy)]
enum Mishap {
    /// It is killed.
    Death {
        kill: Kill,
        /// When it is started again after that.
        again: Option<Kill>,
    },
    /// Its disk is full from this write on.
    FullDisk(u64),
    /// Its change is dropped after so many polls, and made again at once or not.
    Drop { polls: u64, again: bool },
}

#[derive(Debug, Default)]
struct Outcome {
    old: usize,
    new: usize,
    acknowledged: usize,
    /// Changes that failed on a full disk, and that were made all the same.
    full: [usize; 2],
    /// Changes that were dropped and not made then, and that were made all the same or again.
    dropped: [usize; 2],
}

/// Which of so many writes are points to be killed at, if there is time for `most`: at equal distances, from the first to the last.
fn points(writes: u64, most: u64) -> BTreeSet<u64> {
    if writes <= most {
        return (1..=writes).collect();
    }
    let between = most.saturating_sub(1).max(1);
    (0..most).map(|n| 1 + (writes - 1) * n / between).collect()
}

/// The ways to die at the points of a change: before the write, in the midst of it, and once more while the device starts again.
fn deaths(run: &Run, restart: &Run, effort: Effort) -> VecDeque<Mishap> {
    let writes = run.writes.len() as u64;
    let restarts = (restart.writes.len() as u64).max(1);
    let mut deaths = VecDeque::new();
    for (n, point) in points(writes, effort.most).into_iter().enumerate() {
        let kill = Kill { point, torn: false };
        let before = Mishap::Death { kill, again: None };
        let torn = Mishap::Death {
            kill: Kill { point, torn: true },
            again: None,
        };
        let twice = Mishap::Death {
            kill,
            again: Some(Kill {
                point: 1 + point * STRIDE % restarts,
                torn: point % 2 == 0,
            }),
        };
        if effort.in_turns {
            let turn = [before, torn, twice];
            deaths.push_back(turn[n % turn.len()]);
        } else {
            deaths.extend([before, twice]);
            if run.can_be_torn(point) {
                deaths.push_back(torn);
            }
        }
    }
    deaths
}

/// Runs a change once without killing it early, which tells how many writes it makes; then kills it at its writes, in trials that `trial`
/// makes for each worker.
pub fn sweep<'a>(name: &str, effort: Effort, trial: impl Fn(usize) -> Trial<'a> + Sync) {
    let begin = Instant::now();
    let first = trial(0);
    let run = if effort.every {
        let (run, moments) = first.run_copying();
        look_at_all(name, moments, effort.workers);
        run
    } else {
        first.run(None)
    };
    assert!(run.acknowledged);
    let restart = first.restart(None);
    let reference = first.check(&run);
    assert_eq!(reference.found, State::New);
    let blobs = first.operation.writes_blobs().then_some((&run, "blobs/"));
    for (run, place) in [(&run, "veilid/"), (&restart, "veilid/")]
        .into_iter()
        .chain(blobs)
    {
        assert!(
            run.writes.iter().any(|write| write.contains(place)),
            "no write in {place} was seen: {:?}",
            run.writes
        );
    }
    let mut mishaps = deaths(&run, &restart, effort);
    let full = points(run.writes.len() as u64, effort.full);
    mishaps.extend(full.into_iter().map(Mishap::FullDisk));
    if effort.drops > 0 {
        let (run, polls) = trial(0).run_dropping(u64::MAX, false);
        assert!(run.acknowledged);
        let drops = points(polls, effort.drops).into_iter().enumerate();
        mishaps.extend(drops.map(|(n, polls)| Mishap::Drop {
            polls,
            again: n % 2 == 1,
        }));
    }
    let count = mishaps.len();
    let queue = Mutex::new(mishaps);
    let outcome = Mutex::new(Outcome::default());
    let work = |worker: usize| {
        loop {
            let Some(mishap) = lock(&queue).pop_front() else {
                return;
            };
            let mut write = None;
            let one = panic::AssertUnwindSafe(|| {
                let trial = trial(worker);
                let run = match mishap {
                    Mishap::Death { kill, again } => {
                        let run = trial.run(Some(kill));
                        write = run.writes.last().cloned();
                        if again.is_some() {
                            trial.restart(again);
                        }
                        run
                    }
                    Mishap::FullDisk(point) => {
                        write = run.writes.get(point as usize - 1).cloned();
                        trial.run_on_full_disk(point)
                    }
                    Mishap::Drop { polls, again } => trial.run_dropping(polls, again).0,
                };
                let check = trial.check(&run);
                compare(&check, &reference, effort.dead);
                lock(&outcome).add(mishap, &run, &check);
            });
            if let Err(error) = panic::catch_unwind(one) {
                eprintln!("{name}: this was {mishap:?}, at {write:?}");
                // The others need not go on.
                lock(&queue).clear();
                panic::resume_unwind(error);
            }
        }
    };
    thread::scope(|scope| {
        for worker in 0..effort.workers {
            let work = &work;
            scope.spawn(move || work(worker));
        }
    });
    let Outcome {
        old,
        new,
        acknowledged,
        full: [failed, made],
        dropped: [dropped, again],
    } = *lock(&outcome);
    println!(
        "{name}: killed {} times at {} writes, {old} old and {new} new, {acknowledged} after the last write; on a full disk {failed} \
         failed and {made} did not; dropped {dropped} times, and {again} times and made again; in {:.1?}",
        count - failed - made - dropped - again,
        run.writes.len(),
        begin.elapsed()
    );
    assert!(old > 0, "it was never killed early enough");
    assert!(failed > 0 || effort.full == 0, "the disk was never full");
    assert!(dropped > 0 || effort.drops == 0, "it was never dropped");
}

/// Looks at what a kill at each write would leave. Once the change is there, it stays.
fn look_at_all(name: &str, moments: Vec<Moment<'_>>, workers: usize) {
    let begin = Instant::now();
    let count = moments.len();
    let queue: VecDeque<_> = moments.into_iter().enumerate().collect();
    let (queue, found) = (Mutex::new(queue), Mutex::new(BTreeMap::new()));
    let work = || {
        loop {
            let Some((n, moment)) = lock(&queue).pop_front() else {
                return;
            };
            let look = panic::AssertUnwindSafe(|| moment.look());
            let state = panic::catch_unwind(look).unwrap_or_else(|error| {
                eprintln!("{name}: this was a kill at {:?}", moment.write);
                lock(&queue).clear();
                panic::resume_unwind(error)
            });
            lock(&found).insert(n, state);
        }
    };
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(work);
        }
    });
    let found: Vec<State> = lock(&found).values().copied().collect();
    let old = found.iter().take_while(|state| **state == State::Old);
    let old = old.count();
    assert!(old > 0, "no write came before the change");
    assert!(
        found[old..].iter().all(|state| *state == State::New),
        "what was there is gone: {found:?}"
    );
    println!(
        "{name}: what a kill at each of {count} writes leaves, {old} old and {} new; in {:.1?}",
        count - old,
        begin.elapsed()
    );
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Nothing of the attempt that was killed may be left at the end.
fn compare(check: &Check, reference: &Check, dead: u64) {
    assert!(
        check.blobs == reference.blobs
            && check.files <= reference.files + SLACK
            && check.packs <= reference.packs + SLACK + dead,
        "something is missing or left over: {check:?}, without a kill {reference:?}"
    );
}

impl Outcome {
    fn add(&mut self, mishap: Mishap, run: &Run, check: &Check) {
        if let Mishap::FullDisk(_) = mishap {
            // It was made once there was space.
            assert_eq!(check.found, State::New);
            self.full[usize::from(run.acknowledged)] += 1;
            return;
        }
        if let Mishap::Drop { .. } = mishap {
            self.dropped[usize::from(run.acknowledged)] += 1;
            return;
        }
        match check.found {
            State::Old => self.old += 1,
            State::New => self.new += 1,
        }
        self.acknowledged += usize::from(run.acknowledged);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_points_are_spread_from_the_first_write_to_the_last() {
        let points = |writes, most| points(writes, most).into_iter().collect::<Vec<_>>();
        assert_eq!(points(3, 5), [1, 2, 3]);
        assert_eq!(points(100, 4), [1, 34, 67, 100]);
        assert_eq!(points(7, 3), [1, 4, 7]);
        assert_eq!(points(7, 1), [1]);
    }

    #[test]
    fn what_writes_no_bytes_is_not_torn() {
        let writes = ["mkdir a", "pwrite64 a/b", "unlink a/b"].map(str::to_owned);
        let run = |writes: &[String]| Run {
            writes: writes.to_vec(),
            acknowledged: true,
        };
        let effort = Effort {
            most: u64::MAX,
            in_turns: false,
            every: false,
            full: 0,
            drops: 0,
            dead: 0,
            workers: 1,
        };
        let deaths = deaths(&run(&writes), &run(&writes), effort);
        let torn = deaths.iter().filter_map(|mishap| match mishap {
            Mishap::Death { kill, .. } if kill.torn => Some(kill.point),
            _ => None,
        });
        assert_eq!(torn.collect::<Vec<_>>(), [2]);
        assert_eq!(deaths.len(), 7);
    }
}
