//! Holders of all sorts, in virtual time.

use std::collections::HashSet;

use bao_tree::ChunkNum;

use super::super::*;
use crate::have::Holding;

pub(super) const MS: Duration = Duration::from_millis(1);
pub(super) const STEP: Duration = Duration::from_millis(5);
pub(super) const MIB: u64 = 1024 * 1024;
/// A chunk group.
pub(super) const GROUP: u64 = 16 * 1024;

/// A holder as it really is.
#[derive(Clone)]
pub(super) struct Real {
    /// Bytes per second, shared by its streams.
    pub(super) rate: f64,
    pub(super) latency: Duration,
    /// What it has; everything where nothing is said.
    pub(super) only: Option<HashMap<Hash, ChunkRanges>>,
    pub(super) dies: Option<Now>,
    /// When it is there again.
    pub(super) returns: Option<Now>,
    pub(super) lies: bool,
    /// It says that everything is too large.
    pub(super) exaggerates: bool,
    /// It always has too much to do.
    pub(super) refuses: bool,
    /// It claims to have what it does not.
    pub(super) lacks: HashSet<Hash>,
}

impl Real {
    pub(super) fn new(rate: f64, latency: u64) -> Self {
        Self {
            rate,
            latency: MS * u32::try_from(latency).unwrap(),
            only: None,
            dies: None,
            returns: None,
            lies: false,
            exaggerates: false,
            refuses: false,
            lacks: HashSet::new(),
        }
    }
}

pub(super) struct Transfer {
    pub(super) start: Start,
    pub(super) begun: Now,
    /// Bytes of the present part that came.
    pub(super) came: f64,
    /// Those of them that are whole chunk groups.
    pub(super) verified: u64,
    /// What was missing of the present part when it began.
    pub(super) missing: Option<ChunkRanges>,
    pub(super) at: usize,
}

#[derive(Default)]
pub(super) struct World {
    pub(super) s: Scheduler,
    pub(super) holders: Vec<Real>,
    pub(super) sizes: HashMap<Hash, u64>,
    pub(super) here: HashMap<Hash, ChunkRanges>,
    pub(super) transfers: BTreeMap<TaskId, Transfer>,
    pub(super) now: Now,
    /// Answers on their way.
    pub(super) answers: Vec<(Now, HolderId, Vec<Hash>)>,
    pub(super) observed: Vec<(Now, HolderId, Hash)>,
    pub(super) stored: HashSet<Hash>,
    pub(super) failed: HashSet<Hash>,
    pub(super) too_large: HashSet<Hash>,
    pub(super) faults: Vec<(HolderId, Fault)>,
    /// A float, since steps do not bring whole bytes.
    pub(super) sent: f64,
    pub(super) tasks: usize,
    pub(super) asked: Vec<(HolderId, Hash, ChunkRanges)>,
    pub(super) looked: usize,
    /// The next blob of which all came turns out not to be here.
    pub(super) forgets: bool,
    /// What was told of the blobs, in order.
    pub(super) states: Vec<(Hash, FetchState)>,
}

pub(super) fn full(size: u64) -> ChunkRanges {
    ChunkRanges::bytes(0..size.max(1))
}

pub(super) fn hash(name: &str) -> Hash {
    Hash::new(name)
}

impl World {
    pub(super) fn new(holders: Vec<Real>) -> Self {
        let mut world = Self {
            holders,
            ..Self::default()
        };
        for id in 0..world.holders.len() {
            world.s.join(u32::try_from(id).unwrap(), None);
        }
        world
    }

    pub(super) fn want(&mut self, name: &str, size: u64) -> Hash {
        let hash = hash(name);
        self.sizes.insert(hash, size);
        let here = self.here.get(&hash).cloned().unwrap_or_default();
        self.s.want(Want {
            hash,
            kind: Kind::Blob,
            size: Some(size),
            limit: size,
            since: self.now,
            like: None,
            missing: &full(size) - &here,
            whole: false,
        });
        hash
    }

    pub(super) fn hash_of_shard(&mut self, n: u32) -> Hash {
        let hash = hash(&format!("shard {n}"));
        self.sizes.insert(hash, 10 * 1024);
        hash
    }

    pub(super) fn sent(&self) -> u64 {
        self.sent.round() as u64
    }

    pub(super) fn real(&self, id: HolderId) -> &Real {
        &self.holders[id as usize]
    }

    pub(super) fn has(&self, id: HolderId, hash: &Hash) -> ChunkRanges {
        match &self.real(id).only {
            None => full(self.sizes[hash]),
            Some(only) => only.get(hash).cloned().unwrap_or_default(),
        }
    }

    pub(super) fn alive(&self, id: HolderId) -> bool {
        let real = self.real(id);
        real.dies.is_none_or(|dies| self.now < dies)
            || real.returns.is_some_and(|returns| self.now >= returns)
    }

    pub(super) fn events(&mut self) {
        loop {
            let events = self.s.take_events();
            if events.is_empty() {
                return;
            }
            for event in events {
                if let Event::State(hash, state) = event {
                    self.states.push((hash, state));
                }
                match event {
                    Event::State(hash, FetchState::Stored) => {
                        self.stored.insert(hash);
                    }
                    Event::State(..) | Event::Ended(_) | Event::Behaved(_, None) => {}
                    Event::Check(hash, _) => {
                        let missing = &full(self.sizes[&hash]) - &self.here[&hash];
                        if std::mem::take(&mut self.forgets) {
                            self.here.remove(&hash);
                            self.s.incomplete(hash, full(self.sizes[&hash]));
                        } else if missing.is_empty() {
                            self.s.complete(hash);
                        } else {
                            self.s.incomplete(hash, missing);
                        }
                    }
                    Event::Cancel(task) => {
                        self.transfers.remove(&task);
                        self.s.cancelled(task);
                    }
                    Event::Behaved(holder, Some(fault)) => {
                        self.faults.push((holder, fault));
                        let lied = fault == Fault::Lied;
                        self.s
                            .leave_out(holder, self.now + Duration::from_secs(30), lied);
                    }
                    Event::NobodyHas(hash) => {
                        self.failed.insert(hash);
                    }
                }
            }
        }
    }

    pub(super) fn step(&mut self) {
        let now = self.now;
        self.s.tick(now);
        for (holder, hashes) in self.s.questions(1_024, now) {
            self.answers
                .push((now + self.real(holder).latency, holder, hashes));
        }
        for (holder, hash) in self.s.observations(now) {
            self.observed
                .push((now + self.real(holder).latency, holder, hash));
        }
        let (due, rest) = std::mem::take(&mut self.answers)
            .into_iter()
            .partition::<Vec<_>, _>(|(at, ..)| *at <= now);
        self.answers = rest;
        for (at, holder, hashes) in due {
            if !self.alive(holder) {
                if now < at + Duration::from_secs(20) {
                    self.answers.push((at, holder, hashes));
                } else {
                    self.s.silent(holder, now);
                }
                continue;
            }
            let answer: Vec<_> = hashes
                .iter()
                .map(|hash| {
                    let has = self.has(holder, hash);
                    let holding = if has.is_empty() {
                        Holding::None
                    } else if full(self.sizes[hash]).is_subset(&has) {
                        Holding::Complete {
                            size: self.sizes[hash],
                        }
                    } else {
                        Holding::Partial
                    };
                    (*hash, holding)
                })
                .collect();
            self.s.answered(holder, &answer, now);
        }
        let (due, rest) = std::mem::take(&mut self.observed)
            .into_iter()
            .partition::<Vec<_>, _>(|(at, ..)| *at <= now);
        self.observed = rest;
        for (_, holder, hash) in due {
            let has = self.alive(holder).then(|| self.has(holder, &hash));
            self.s.observed(holder, hash, has, now);
        }
        self.events();
        while let Some(start) = self.s.next(now) {
            self.tasks += 1;
            for part in &start.parts {
                self.asked
                    .push((start.holder, part.hash, part.ranges.clone()));
            }
            self.transfers.insert(
                start.task,
                Transfer {
                    start,
                    begun: now,
                    came: 0.0,
                    verified: 0,
                    missing: None,
                    at: 0,
                },
            );
        }
        assert!(self.transfers.len() <= STREAMS);
        let (first, last) = self.s.stuck(now);
        if !first.is_empty() {
            self.looked += 1;
            self.s.finding(&first);
            self.s.try_all(&first, Some(now), now);
        }
        for hash in last {
            self.failed.insert(hash);
            if self.s.too_large(&hash).is_some() {
                self.too_large.insert(hash);
            }
            self.s.give_up(hash);
        }
        self.events();
        self.deliver();
        self.events();
        self.now += STEP;
    }

    pub(super) fn deliver(&mut self) {
        let mut busy: HashMap<HolderId, usize> = HashMap::new();
        for transfer in self.transfers.values() {
            if self.now >= transfer.begun + self.real(transfer.start.holder).latency {
                *busy.entry(transfer.start.holder).or_default() += 1;
            }
        }
        let ids: Vec<TaskId> = self.transfers.keys().copied().collect();
        for id in ids {
            let Some(transfer) = self.transfers.get(&id) else {
                continue;
            };
            let holder = transfer.start.holder;
            let real = self.real(holder).clone();
            if !self.alive(holder) || self.now < transfer.begun + real.latency {
                continue;
            }
            let mut budget = real.rate * STEP.as_secs_f64() / busy[&holder] as f64;
            let mut end = None;
            while end.is_none() && budget > 0.0 {
                let Some(transfer) = self.transfers.get_mut(&id) else {
                    break;
                };
                let Some(part) = transfer.start.parts.get(transfer.at).cloned() else {
                    end = Some(End::Done);
                    break;
                };
                if real.refuses {
                    end = Some(End::Busy);
                    break;
                }
                if real.exaggerates {
                    end = Some(End::TooLarge(part.hash));
                    break;
                }
                let wrong = part.size.is_some_and(|size| size != self.sizes[&part.hash]);
                if wrong || real.lacks.contains(&part.hash) {
                    end = Some(End::NotThere(part.hash));
                    break;
                }
                if real.lies {
                    end = Some(End::Lied);
                    break;
                }
                let here = self.here.entry(part.hash).or_default();
                let missing = transfer
                    .missing
                    .get_or_insert_with(|| &part.ranges - &*here);
                let size = (count(missing) * 1024).min(self.sizes[&part.hash]) as f64;
                let before = transfer.came;
                let take = budget.min(size - transfer.came);
                budget -= take;
                transfer.came += take;
                self.sent += take;
                if transfer.came.floor() > before.floor() {
                    self.s.alive(id, self.now);
                }
                let whole = transfer.came >= size - 0.5;
                let verified = if whole {
                    size as u64
                } else {
                    transfer.came as u64 / GROUP * GROUP
                };
                if verified > transfer.verified {
                    self.s.progress(id, verified - transfer.verified, self.now);
                    transfer.verified = verified;
                    *here |= first(missing, verified / 1024);
                }
                if whole {
                    *here |= part.ranges.clone();
                    transfer.came = 0.0;
                    transfer.verified = 0;
                    transfer.missing = None;
                    transfer.at += 1;
                    self.s.part_done(id, part.hash);
                    self.events();
                }
            }
            if let Some(end) = end {
                self.transfers.remove(&id);
                self.s.finished(id, end, self.now);
            }
        }
    }

    /// Runs until everything is stored or given up, and says how long that took.
    pub(super) fn run(&mut self, limit: Duration) -> Duration {
        let begin = self.now;
        while !self.s.is_idle() {
            self.step();
            assert!(
                self.now < begin + limit,
                "not done after {limit:?}: {:?}",
                self.s
            );
        }
        self.now - begin
    }
}

pub(super) fn count(ranges: &ChunkRanges) -> u64 {
    ranges
        .boundaries()
        .chunks(2)
        .map(|pair| pair[1].0 - pair[0].0)
        .sum()
}

/// The first so many chunks.
pub(super) fn first(ranges: &ChunkRanges, mut most: u64) -> ChunkRanges {
    let mut first = ChunkRanges::empty();
    for pair in ranges.boundaries().chunks(2) {
        let end = pair[1].0.min(pair[0].0 + most);
        first |= ChunkRanges::from(pair[0]..ChunkNum(end));
        most -= end - pair[0].0;
    }
    first
}
