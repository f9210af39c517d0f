//! Looking in the background who can be reached: the tunnels that the members' records advertise.
//!
//! Nobody tells when a device comes or goes, so the records are inspected. That costs one call on the DHT each, and one more for a tunnel that
//! changed. A member is looked at after a start and after a change of their slot, again after 15 s, and then after twice as long each
//! time up to 10 minutes while nothing changes. A group looks at 16 members at once at the most, and then at one every 10 s.

use std::{collections::BTreeMap, time::Duration};

use futures::{StreamExt, stream, stream::FuturesUnordered};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use veilid_core::PublicKey;

use crate::{Group, upkeep::online};

/// No member is looked at again before.
const SOONEST: Duration = Duration::from_secs(15);
/// Nor later than this, where the group is small enough.
const LATEST: Duration = Duration::from_secs(10 * 60);
/// A group's looks may come as often as this, in the long run.
const EACH: Duration = Duration::from_secs(10);
/// So many may come at once.
const BURST: u32 = 16;
/// Looks under way at the same time.
const AT_ONCE: usize = 4;
/// How long one may take. Of a record that nobody ever wrote, the network takes long to say so.
const LOOK: Duration = Duration::from_secs(30);
/// What was seen is written down so long after it changed.
const WRITE: Duration = Duration::from_secs(60);
/// How long a look at everybody may take, where somebody waits for it.
const ALL: Duration = Duration::from_secs(4);
/// Looks under way at the same time, where somebody waits.
const ALL_AT_ONCE: usize = 16;
/// What was looked at so recently is not looked at again for somebody who waits.
const RECENT: Duration = Duration::from_secs(5);

/// Looks who can be reached, and writes down when they were seen, until the group stops.
pub(crate) async fn keep_looking(group: &Group) {
    tokio::join!(look_in_turn(group), keep_written(group));
}

async fn look_in_turn(group: &Group) {
    let inner = &group.inner;
    let origin = Instant::now();
    let mut schedule = Schedule::default();
    let mut under_way = FuturesUnordered::new();
    loop {
        // What is under way goes on meanwhile.
        let mut is_online = std::pin::pin!(online(group));
        loop {
            tokio::select! {
                online = &mut is_online => match online {
                    Ok(()) => break,
                    Err(_) => return,
                },
                Some((repo, found)) = under_way.next(), if !under_way.is_empty() => {
                    schedule.looked(&repo, found, origin.elapsed());
                }
            }
        }
        let now = origin.elapsed();
        schedule.keep(group.lookable(), now);
        while under_way.len() < AT_ONCE
            && let Some(repo) = schedule.next(now)
        {
            under_way.push(async move {
                let found = look(group, &repo).await;
                (repo, found)
            });
        }
        let next = schedule.wake().filter(|_| under_way.len() < AT_ONCE);
        tokio::select! {
            Some((repo, found)) = under_way.next(), if !under_way.is_empty() => {
                schedule.looked(&repo, found, origin.elapsed());
            }
            () = inner.slots_changed.notified() => {}
            () = sleep_until(origin + next.unwrap_or_default()), if next.is_some() => {}
        }
    }
}

async fn keep_written(group: &Group) {
    let inner = &group.inner;
    loop {
        inner.peers.presences.changed().await;
        sleep(WRITE).await;
        if let Err(error) = inner.peers.presences.write(&inner.ledger).await {
            tracing::debug!(%error, "who was seen when is not written down");
        }
    }
}

/// Looks at one member's tunnels, or at the guests'. Whether others advertise one than before.
async fn look(group: &Group, key: &PublicKey) -> bool {
    let inner = &group.inner;
    let looked = async {
        let repo = match key == inner.guests.public_key() {
            true => inner.guests.clone(),
            false => group.repo(key).await?,
        };
        inner.peers.look(&repo).await
    };
    let found = match timeout(LOOK, looked).await {
        Ok(Ok(changed)) => {
            if changed {
                // Sessions ended, or somebody else can be asked for what is wanted.
                inner.engine.newcomer();
            }
            changed
        }
        Ok(Err(error)) => {
            tracing::debug!(%error, "a member's tunnels cannot be read");
            false
        }
        Err(_) => {
            tracing::debug!("a member's tunnels cannot be read in time");
            false
        }
    };
    if inner.left().contains(&key.to_string()) {
        // They left meanwhile.
        inner.peers.forget(key);
    }
    found
}

impl Group {
    /// Those who can be looked at, with the counters of their slots: the other members, this member's other devices, the guests once
    /// there was one.
    fn lookable(&self) -> Vec<(PublicKey, u64)> {
        let inner = &self.inner;
        let members = self.known_members().into_iter();
        let mut all: Vec<_> = members
            .filter(|known| !inner.is_own(&known.repo))
            .map(|known| (known.repo, known.counter))
            .collect();
        let own = self.own_repo().filter(|_| !inner.has_left());
        all.extend(own.map(|own| (own.public_key().clone(), 0)));
        // A record that nobody ever wrote is not looked for: the network takes long to say so, and whoever wants a file that only a guest has
        // would wait for that. They are found when something is wanted, or when they are asked for.
        let guests = inner.guests.public_key();
        if inner.peers.presences.of(guests).last_seen().is_some() {
            all.push((guests.clone(), 0));
        }
        all
    }

    /// Looks who of the members can be reached: at the tunnels of all of them, those who were looked at longest ago first, for at most
    /// 4 seconds. Who could not be looked at in that time is looked at in the background, in their turn.
    pub async fn look_at_members(&self) {
        let presences = &self.inner.peers.presences;
        let guests = self.inner.guests.public_key();
        let mut due: Vec<_> = self
            .lookable()
            .into_iter()
            .map(|(repo, _)| (presences.looked(&repo), repo))
            .filter(|(looked, repo)| {
                repo != guests && looked.is_none_or(|looked| looked.elapsed() >= RECENT)
            })
            .collect();
        due.sort();
        let looks = stream::iter(due)
            .map(|(_, repo)| async move { look(self, &repo).await })
            .buffer_unordered(ALL_AT_ONCE)
            .collect::<Vec<_>>();
        // Whoever is left is looked at in their turn.
        let _ = timeout(ALL, looks).await;
    }
}

/// When whom to look at. Times are counted from the start.
#[derive(Debug, Default)]
struct Schedule {
    turns: BTreeMap<PublicKey, Turn>,
    /// When looks that came in the pace of [`EACH`] would be used up.
    used: Duration,
    /// The last one was preferred for a change of their slot, so the next one is in their turn.
    preferred: bool,
}

#[derive(Debug)]
struct Turn {
    /// The counter of the slot.
    counter: u64,
    due: Duration,
    pause: Duration,
    /// When the last look began.
    looked: Option<Duration>,
    /// Their slot is new or changed, so they are there, and come before all others.
    changed: bool,
    under_way: bool,
}

impl Schedule {
    /// Takes up who is there, with the counters of their slots.
    fn keep(&mut self, all: Vec<(PublicKey, u64)>, now: Duration) {
        let mut before = std::mem::take(&mut self.turns);
        let starting = before.is_empty();
        for (repo, counter) in all {
            let turn = match before.remove(&repo) {
                None => Turn {
                    counter,
                    due: now,
                    pause: SOONEST,
                    looked: None,
                    changed: !starting,
                    under_way: false,
                },
                Some(turn) if turn.counter == counter => turn,
                Some(turn) => Turn {
                    counter,
                    due: turn.looked.map_or(now, |at| now.max(at + SOONEST)),
                    pause: SOONEST,
                    changed: true,
                    ..turn
                },
            };
            self.turns.insert(repo, turn);
        }
    }

    /// Whom to look at now.
    fn next(&mut self, now: Duration) -> Option<PublicKey> {
        if now < self.allowed() {
            return None;
        }
        let (repo, turn) = self
            .turns
            .iter_mut()
            .filter(|(_, turn)| !turn.under_way && turn.due <= now)
            // At most every second one is preferred: those who change all the time must not be all who are looked at.
            .min_by_key(|(_, turn)| (turn.changed == self.preferred, turn.due))?;
        turn.under_way = true;
        self.preferred = std::mem::take(&mut turn.changed);
        turn.looked = Some(now);
        self.used = self.used.max(now) + EACH;
        Some(repo.clone())
    }

    /// Before this, no look may begin.
    fn allowed(&self) -> Duration {
        self.used.saturating_sub(EACH * (BURST - 1))
    }

    /// When there may be somebody to look at.
    fn wake(&self) -> Option<Duration> {
        let waiting = self.turns.values().filter(|turn| !turn.under_way);
        let due = waiting.map(|turn| turn.due).min()?;
        Some(due.max(self.allowed()))
    }

    /// A look came to its end, and found others there than before or not.
    fn looked(&mut self, repo: &PublicKey, others: bool, now: Duration) {
        let Some(turn) = self.turns.get_mut(repo) else {
            return;
        };
        turn.under_way = false;
        if others {
            turn.pause = SOONEST;
        }
        if !turn.changed {
            turn.due = now + turn.pause;
            turn.pause = (turn.pause * 2).min(LATEST);
        }
    }
}

#[cfg(test)]
mod tests {
    use veilid_core::{CRYPTO_KIND_VLD0, Crypto};

    use super::*;

    fn members(count: usize) -> Vec<(PublicKey, u64)> {
        let key = |_| Crypto::generate_keypair(CRYPTO_KIND_VLD0).unwrap().key();
        (0..count).map(|n| (key(n), 1)).collect()
    }

    /// Lets looks come until `end`, each taking no time and finding nothing new. When whom.
    fn run(
        schedule: &mut Schedule,
        all: &[(PublicKey, u64)],
        from: Duration,
        end: Duration,
    ) -> Vec<(Duration, PublicKey)> {
        let (mut now, mut looks) = (from, Vec::new());
        loop {
            schedule.keep(all.to_vec(), now);
            while let Some(repo) = schedule.next(now) {
                schedule.looked(&repo, false, now);
                looks.push((now, repo));
            }
            match schedule.wake() {
                Some(next) if next < end => now = now.max(next),
                _ => return looks,
            }
        }
    }

    fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn an_idle_group_is_looked_at_every_ten_minutes() {
        let all = members(5);
        let mut schedule = Schedule::default();
        let looks = run(&mut schedule, &all, Duration::ZERO, secs(3_600));
        for (repo, _) in &all {
            let of: Vec<u64> = looks
                .iter()
                .filter(|(_, looked)| looked == repo)
                .map(|(at, _)| at.as_secs())
                .collect();
            assert_eq!(of, [0, 15, 45, 105, 225, 465, 945, 1545, 2145, 2745, 3345]);
        }
    }

    #[test]
    fn a_large_group_is_looked_at_in_turn() {
        let all = members(100);
        let mut schedule = Schedule::default();
        let looks = run(&mut schedule, &all, Duration::ZERO, secs(1_000));
        let at_first = looks.iter().filter(|(at, _)| at.is_zero()).count();
        assert_eq!(at_first, 16);
        for window in looks.windows(17) {
            assert!(window[16].0 - window[0].0 >= EACH, "{looks:?}");
        }
        assert!(looks.len() <= 16 + 100, "{}", looks.len());
        // Nobody is forgotten over those who are due again.
        let mut seen: Vec<_> = looks.iter().take(100).map(|(_, repo)| repo).collect();
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), 100);
    }

    #[test]
    fn whoever_changed_their_slot_is_next() {
        let mut all = members(100);
        let mut schedule = Schedule::default();
        run(&mut schedule, &all, Duration::ZERO, secs(50));
        let now = secs(60);
        let changed = all[99].0.clone();
        all[99].1 = 2;
        schedule.keep(all.clone(), now);
        let looked = schedule.turns[&changed].looked;
        let later = now
            .max(looked.map_or(now, |at| at + SOONEST))
            .max(schedule.allowed());
        assert_eq!(schedule.next(later), Some(changed.clone()));
        // It changes again while it is being looked at.
        all[99].1 = 3;
        schedule.keep(all.clone(), later);
        schedule.looked(&changed, true, later + secs(1));
        assert_eq!(schedule.turns[&changed].due, later + SOONEST);
        // Whoever is gone has no turn.
        all.truncate(1);
        schedule.keep(all.clone(), later);
        schedule.looked(&changed, false, later);
        assert_eq!(schedule.turns.len(), 1);
    }

    #[test]
    fn whoever_comes_or_goes_is_looked_at_again_soon() {
        let all = members(1);
        let mut schedule = Schedule::default();
        run(&mut schedule, &all, Duration::ZERO, secs(2_000));
        let now = schedule.wake().unwrap();
        let repo = schedule.next(now).unwrap();
        schedule.looked(&repo, true, now);
        assert_eq!(schedule.wake(), Some(now + SOONEST));
    }
}
