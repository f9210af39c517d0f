//! The same change, killed at one write after the other.

use std::{
    collections::{BTreeSet, VecDeque},
    panic,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::Instant,
};

use crate::{Check, Kill, Run, State, Trial};

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
    /// Devices at the same time.
    pub workers: usize,
}

/// When a device is killed.
#[derive(Debug, Clone, Copy)]
struct Death {
    kill: Kill,
    /// When it is started again after that.
    again: Option<Kill>,
}

#[derive(Debug, Default)]
struct Outcome {
    old: usize,
    new: usize,
    acknowledged: usize,
}

/// Which of so many writes are points to be killed at, if there is time for `most`: at equal distances, up to the last.
fn points(writes: u64, most: u64) -> BTreeSet<u64> {
    if writes <= most {
        return (1..=writes).collect();
    }
    (1..=most).map(|n| writes * n / most).collect()
}

/// The ways to die at the points of a change: before the write, in the midst of it, and once more while the device starts again.
fn deaths(run: &Run, restart: &Run, effort: Effort) -> VecDeque<Death> {
    let writes = run.writes.len() as u64;
    let restarts = (restart.writes.len() as u64).max(1);
    let mut deaths = VecDeque::new();
    for (n, point) in points(writes, effort.most).into_iter().enumerate() {
        let before = Death {
            kill: Kill { point, torn: false },
            again: None,
        };
        let torn = Death {
            kill: Kill { point, torn: true },
            again: None,
        };
        let twice = Death {
            again: Some(Kill {
                point: 1 + point * STRIDE % restarts,
                torn: point % 2 == 0,
            }),
            ..before
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
    let run = first.run(None);
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
    let deaths = deaths(&run, &restart, effort);
    let count = deaths.len();
    let queue = Mutex::new(deaths);
    let outcome = Mutex::new(Outcome::default());
    let work = |worker: usize| {
        loop {
            let Some(death) = lock(&queue).pop_front() else {
                return;
            };
            let mut write = None;
            let one = panic::AssertUnwindSafe(|| {
                let trial = trial(worker);
                let run = trial.run(Some(death.kill));
                write = run.writes.last().cloned();
                if death.again.is_some() {
                    trial.restart(death.again);
                }
                let check = trial.check(&run);
                compare(&check, &reference);
                lock(&outcome).add(&run, &check);
            });
            if let Err(error) = panic::catch_unwind(one) {
                eprintln!("{name}: this was at {death:?}, {write:?}");
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
    } = *lock(&outcome);
    println!(
        "{name}: killed {count} times at {} writes, {old} old and {new} new, {acknowledged} after the last write; in {:.1?}",
        run.writes.len(),
        begin.elapsed()
    );
    assert!(old > 0, "it was never killed early enough");
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Nothing of the attempt that was killed may be left at the end.
fn compare(check: &Check, reference: &Check) {
    assert!(
        check.blobs == reference.blobs && check.files <= reference.files + SLACK,
        "something is missing or left over: {check:?}, without a kill {reference:?}"
    );
}

impl Outcome {
    fn add(&mut self, run: &Run, check: &Check) {
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
    fn few_points_are_spread_and_the_last_write_is_one() {
        let points = |writes, most| points(writes, most).into_iter().collect::<Vec<_>>();
        assert_eq!(points(3, 5), [1, 2, 3]);
        assert_eq!(points(100, 4), [25, 50, 75, 100]);
        assert_eq!(points(7, 3), [2, 4, 7]);
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
            workers: 1,
        };
        let deaths = deaths(&run(&writes), &run(&writes), effort);
        let torn = deaths.iter().filter(|death| death.kill.torn);
        assert_eq!(torn.map(|death| death.kill.point).collect::<Vec<_>>(), [2]);
        assert_eq!(deaths.len(), 7);
    }
}
