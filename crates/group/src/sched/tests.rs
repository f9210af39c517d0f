//! The scheduler against holders of all sorts, in virtual time.

use std::collections::HashSet;

use bao_tree::ChunkNum;

use super::*;
use crate::have::Holding;

const MS: Duration = Duration::from_millis(1);
const STEP: Duration = Duration::from_millis(5);
const MIB: u64 = 1024 * 1024;
/// A chunk group.
const GROUP: u64 = 16 * 1024;

/// A holder as it really is.
#[derive(Clone)]
struct Real {
    /// Bytes per second, shared by its streams.
    rate: f64,
    latency: Duration,
    /// What it has; everything where nothing is said.
    only: Option<HashMap<Hash, ChunkRanges>>,
    dies: Option<Now>,
    lies: bool,
    /// It says that everything is too large.
    exaggerates: bool,
    /// It always has too much to do.
    refuses: bool,
    /// It claims to have what it does not.
    lacks: HashSet<Hash>,
}

impl Real {
    fn new(rate: f64, latency: u64) -> Self {
        Self {
            rate,
            latency: MS * u32::try_from(latency).unwrap(),
            only: None,
            dies: None,
            lies: false,
            exaggerates: false,
            refuses: false,
            lacks: HashSet::new(),
        }
    }
}

struct Transfer {
    start: Start,
    begun: Now,
    /// Bytes of the present part that came.
    came: f64,
    /// Those of them that are whole chunk groups.
    verified: u64,
    /// What was missing of the present part when it began.
    missing: Option<ChunkRanges>,
    at: usize,
}

#[derive(Default)]
struct World {
    s: Scheduler,
    holders: Vec<Real>,
    sizes: HashMap<Hash, u64>,
    here: HashMap<Hash, ChunkRanges>,
    transfers: BTreeMap<TaskId, Transfer>,
    now: Now,
    /// Answers on their way.
    answers: Vec<(Now, HolderId, Vec<Hash>)>,
    observed: Vec<(Now, HolderId, Hash)>,
    stored: HashSet<Hash>,
    failed: HashSet<Hash>,
    too_large: HashSet<Hash>,
    faults: Vec<(HolderId, Fault)>,
    /// A float, since steps do not bring whole bytes.
    sent: f64,
    tasks: usize,
    asked: Vec<(HolderId, Hash, ChunkRanges)>,
    looked: usize,
}

fn full(size: u64) -> ChunkRanges {
    ChunkRanges::bytes(0..size.max(1))
}

fn hash(name: &str) -> Hash {
    Hash::new(name)
}

impl World {
    fn new(holders: Vec<Real>) -> Self {
        let mut world = Self {
            holders,
            ..Self::default()
        };
        for id in 0..world.holders.len() {
            world.s.join(u32::try_from(id).unwrap(), None);
        }
        world
    }

    fn want(&mut self, name: &str, size: u64) -> Hash {
        let hash = hash(name);
        self.sizes.insert(hash, size);
        let here = self.here.get(&hash).cloned().unwrap_or_default();
        self.s.want(Want {
            hash,
            kind: Kind::Blob,
            size: Some(size),
            limit: size,
            like: None,
            missing: &full(size) - &here,
            whole: false,
        });
        hash
    }

    fn hash_of_shard(&mut self, n: u32) -> Hash {
        let hash = hash(&format!("shard {n}"));
        self.sizes.insert(hash, 10 * 1024);
        hash
    }

    fn sent(&self) -> u64 {
        self.sent.round() as u64
    }

    fn real(&self, id: HolderId) -> &Real {
        &self.holders[id as usize]
    }

    fn has(&self, id: HolderId, hash: &Hash) -> ChunkRanges {
        match &self.real(id).only {
            None => full(self.sizes[hash]),
            Some(only) => only.get(hash).cloned().unwrap_or_default(),
        }
    }

    fn alive(&self, id: HolderId) -> bool {
        self.real(id).dies.is_none_or(|dies| self.now < dies)
    }

    fn events(&mut self) {
        loop {
            let events = self.s.take_events();
            if events.is_empty() {
                return;
            }
            for event in events {
                match event {
                    Event::State(hash, FetchState::Stored) => {
                        self.stored.insert(hash);
                    }
                    Event::State(..) | Event::Ended(_) | Event::Behaved(_, None) => {}
                    Event::Check(hash, _) => {
                        let missing = &full(self.sizes[&hash]) - &self.here[&hash];
                        if missing.is_empty() {
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

    fn step(&mut self) {
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
                    self.s.silent(holder);
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
            self.s.try_all(&first);
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

    fn deliver(&mut self) {
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
    fn run(&mut self, limit: Duration) -> Duration {
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

fn count(ranges: &ChunkRanges) -> u64 {
    ranges
        .boundaries()
        .chunks(2)
        .map(|pair| pair[1].0 - pair[0].0)
        .sum()
}

/// The first so many chunks.
fn first(ranges: &ChunkRanges, mut most: u64) -> ChunkRanges {
    let mut first = ChunkRanges::empty();
    for pair in ranges.boundaries().chunks(2) {
        let end = pair[1].0.min(pair[0].0 + most);
        first |= ChunkRanges::from(pair[0]..ChunkNum(end));
        most -= end - pair[0].0;
    }
    first
}

#[test]
fn a_long_way_is_kept_full() {
    for (rate, latency) in [
        (18e6, 5),
        (18e6, 100),
        (18e6, 300),
        (1e6, 50),
        (200e3, 1_500),
    ] {
        let mut world = World::new(vec![Real::new(rate, latency)]);
        let size = ((rate * 6.0) as u64).max(MIB);
        world.want("film", size);
        let time = world.run(Duration::from_secs(120)).as_secs_f64();
        let ideal = size as f64 / rate + 3.0 * latency as f64 / 1_000.0;
        assert!(time < ideal * 1.05, "{rate} {latency}: {time} {ideal}");
        assert!(world.sent() < size + size / 50, "{}", world.sent);
    }
}

#[test]
fn n_holders_are_n_times_as_fast() {
    let time = |n: usize| {
        let mut world = World::new(vec![Real::new(1e6, 20); n]);
        world.want("film", 24 * MIB);
        let time = world.run(Duration::from_secs(120)).as_secs_f64();
        assert!(world.sent() < 26 * MIB, "{}", world.sent);
        time
    };
    let one = time(1);
    for n in [2, 4] {
        let gain = one / time(n);
        assert!(gain > 0.9 * n as f64, "{n} holders: {gain}");
    }
}

#[test]
fn a_slow_holder_does_not_hold_up_the_end() {
    let mut world = World::new(vec![Real::new(5e6, 20), Real::new(20e3, 20)]);
    world.want("film", 40 * MIB);
    let time = world.run(Duration::from_secs(60));
    assert!(time < Duration::from_secs(11), "{time:?}");
}

#[test]
fn one_who_starves_the_others_again_and_again_is_left_alone() {
    let mut world = World::new(vec![Real::new(5e6, 20), Real::new(2e3, 20)]);
    for n in 0..40 {
        world.want(&format!("film {n}"), 2 * MIB);
        world.run(Duration::from_secs(60));
    }
    assert!(
        world.faults.contains(&(1, Fault::Starving)),
        "{:?}",
        world.faults
    );
    assert!(world.faults.iter().all(|(id, _)| *id == 1));
}

#[test]
fn a_dead_holder_costs_nothing_but_its_own_pieces() {
    let mut dead = Real::new(5e6, 20);
    dead.dies = Some(Duration::from_secs(1));
    let mut world = World::new(vec![Real::new(5e6, 20), dead]);
    world.want("film", 40 * MIB);
    let time = world.run(Duration::from_secs(60));
    // 7.4 s at 5 MB/s, with what the other gave in the first second.
    assert!(time < Duration::from_secs(9), "{time:?}");
}

#[test]
fn one_who_is_dead_from_the_beginning_delays_nobody_and_is_noticed() {
    let mut dead = Real::new(5e6, 20);
    dead.dies = Some(Duration::ZERO);
    let mut world = World::new(vec![dead, Real::new(1e6, 20)]);
    world.want("film", 25 * MIB);
    let time = world.run(Duration::from_secs(60));
    assert!(time < Duration::from_secs(29), "{time:?}");
    assert_eq!(world.faults, [(0, Fault::Silent)]);
}

#[test]
fn all_die_and_it_is_said() {
    let mut dead = Real::new(5e6, 20);
    dead.dies = Some(Duration::from_secs(1));
    let mut world = World::new(vec![dead]);
    let film = world.want("film", 40 * MIB);
    world.run(Duration::from_secs(200));
    assert!(world.failed.contains(&film));
    assert_eq!(world.looked, 1);
    assert!(
        world
            .faults
            .iter()
            .all(|fault| *fault == (0, Fault::Silent))
    );
}

#[test]
fn a_liar_is_left_alone_and_the_rest_comes_from_others() {
    let mut liar = Real::new(5e6, 5);
    liar.lies = true;
    let mut world = World::new(vec![liar, Real::new(5e6, 20)]);
    let film = world.want("film", 10 * MIB);
    world.run(Duration::from_secs(30));
    assert!(world.stored.contains(&film));
    assert!(world.faults.contains(&(0, Fault::Lied)));
}

#[test]
fn a_liar_stays_left_alone_when_everybody_is_tried_again() {
    let mut liar = Real::new(5e6, 20);
    liar.lies = true;
    let mut honest = Real::new(1e5, 20);
    let film = hash("film");
    honest.only = Some([(film, full(10 * MIB))].into());
    let mut world = World::new(vec![liar, honest]);
    world.want("film", 10 * MIB);
    for _ in 0..1_000 {
        world.step();
    }
    let faults = world.faults.len();
    assert!(faults > 0 && world.faults.iter().all(|fault| *fault == (0, Fault::Lied)));
    // Only the liar says that it has this one.
    let rare = world.want("rare", MIB);
    let asked = world.asked.len();
    for _ in 0..1_000 {
        world.step();
    }
    assert!(world.looked > 0 && world.failed.contains(&rare));
    assert!(world.asked[asked..].iter().all(|(holder, ..)| *holder == 1));
    assert_eq!(world.faults.len(), faults);
}

#[test]
fn nobody_waits_for_a_liar_who_had_too_much_to_do_before() {
    let mut liar = Real::new(5e6, 20);
    liar.lies = true;
    let mut world = World::new(vec![liar]);
    world.s.leave_out(0, MS, false);
    let film = world.want("film", 10 * MIB);
    let time = world.run(Duration::from_secs(20));
    assert!(world.failed.contains(&film), "{time:?}");
}

#[test]
fn partial_holders_are_asked_for_what_they_have() {
    let film = hash("film");
    let size = 16 * MIB;
    let half = ChunkNum(8 * 1024);
    let mut first = Real::new(2e6, 20);
    first.only = Some([(film, full(size) & ChunkRanges::from(..half))].into());
    let mut second = Real::new(2e6, 20);
    second.only = Some([(film, full(size) & ChunkRanges::from(half..))].into());
    let mut world = World::new(vec![first, second]);
    world.want("film", size);
    let time = world.run(Duration::from_secs(30));
    assert!(world.stored.contains(&film));
    assert!(time < Duration::from_secs(6), "{time:?}");
    for (holder, hash, ranges) in &world.asked {
        assert!(ranges.is_subset(&world.has(*holder, hash)));
    }
}

#[test]
fn what_nobody_has_is_said_and_what_there_is_comes() {
    let film = hash("film");
    let size = 4 * MIB;
    let mut part = Real::new(2e6, 20);
    part.only = Some([(film, ChunkRanges::from(..ChunkNum(1_024)))].into());
    let mut world = World::new(vec![part]);
    world.want("film", size);
    world.run(Duration::from_secs(30));
    assert!(world.failed.contains(&film));
    assert_eq!(count(&world.here[&film]), 1_024);
}

#[test]
fn many_small_blobs_take_few_requests() {
    let mut world = World::new(vec![Real::new(5e6, 50)]);
    for n in 0..1_000 {
        world.want(&format!("note {n}"), 4_096);
    }
    let time = world.run(Duration::from_secs(30));
    assert_eq!(world.stored.len(), 1_000);
    assert!(world.tasks <= 24, "{}", world.tasks);
    assert!(time < Duration::from_secs(3), "{time:?}");
    assert_eq!(world.sent(), 4_096_000);
}

#[test]
fn one_missing_blob_does_not_stop_a_batch() {
    let mut real = Real::new(5e6, 20);
    real.lacks = [hash("note 20")].into();
    let mut world = World::new(vec![real]);
    for n in 0..50 {
        world.want(&format!("note {n}"), 4_096);
    }
    world.run(Duration::from_secs(60));
    assert_eq!(world.stored.len(), 49);
    assert_eq!(world.failed, [hash("note 20")].into());
    assert!(world.faults.is_empty(), "{:?}", world.faults);
    assert_eq!(world.sent(), 49 * 4_096, "nothing came twice");
}

#[test]
fn what_is_here_is_not_asked_for() {
    let film = hash("film");
    let mut world = World::new(vec![Real::new(5e6, 20)]);
    world
        .here
        .insert(film, ChunkRanges::from(..ChunkNum(3 * 1_024)));
    world.want("film", 8 * MIB);
    world.run(Duration::from_secs(30));
    assert!(world.stored.contains(&film));
    assert_eq!(world.sent(), 5 * MIB);
}

#[test]
fn two_who_want_the_same_share_it() {
    let mut world = World::new(vec![Real::new(5e6, 20)]);
    let film = world.want("film", 8 * MIB);
    world.want("film", 8 * MIB);
    for _ in 0..60 {
        world.step();
    }
    world.s.unwant(film);
    world.run(Duration::from_secs(30));
    assert!(world.stored.contains(&film));
    assert_eq!(world.sent(), 8 * MIB);
}

#[test]
fn what_nobody_wants_any_more_is_stopped() {
    let mut world = World::new(vec![Real::new(5e6, 20)]);
    let film = world.want("film", 80 * MIB);
    for _ in 0..100 {
        world.step();
    }
    assert!(!world.transfers.is_empty());
    world.s.unwant(film);
    world.events();
    assert!(world.transfers.is_empty());
    assert!(world.s.is_idle());
    // Wanted again, it goes on.
    world.want("film", 10 * MIB);
    world.run(Duration::from_secs(30));
}

#[test]
fn whoever_has_the_root_is_asked_for_its_shards_at_once() {
    let mut world = World::new(vec![Real::new(5e6, 100)]);
    let root = world.want("root", 100);
    world.run(Duration::from_secs(5));
    let shard = hash("shard");
    world.sizes.insert(shard, 5_000);
    world.s.want(Want {
        hash: shard,
        kind: Kind::Collection,
        size: None,
        limit: MIB,
        like: Some(root),
        missing: full(5_000),
        whole: false,
    });
    assert!(world.s.questions(1_024, world.now).is_empty());
    let start = world.s.next(world.now).unwrap();
    assert_eq!(start.parts[0].hash, shard);
    assert_eq!(start.parts[0].kind, Kind::Collection);
}

/// None of them says how large it is, and they are small.
#[test]
fn many_shards_are_asked_for_at_once() {
    let mut world = World::new(vec![Real::new(5e6, 200)]);
    world.want("film", 4 * MIB);
    world.run(Duration::from_secs(10));
    for n in 0..100_u32 {
        let hash = world.hash_of_shard(n);
        world.s.want(Want {
            hash,
            kind: Kind::Collection,
            size: None,
            limit: 16 * MIB,
            like: None,
            missing: full(16 * MIB),
            whole: false,
        });
    }
    let mut most = 0;
    for _ in 0..200 {
        world.step();
        most = most.max(world.transfers.len());
    }
    assert_eq!(most, STREAMS_PER_HOLDER);
}

#[test]
fn one_with_too_much_to_do_is_asked_again_in_a_moment() {
    let mut world = World::new(vec![Real::new(5e6, 20)]);
    let film = world.want("film", 80 * MIB);
    for _ in 0..20 {
        world.step();
    }
    let tasks: Vec<TaskId> = world.transfers.keys().copied().collect();
    for task in tasks {
        world.transfers.remove(&task);
        world.s.finished(task, End::Busy, world.now);
    }
    world.step();
    assert!(world.transfers.is_empty());
    world.run(Duration::from_secs(60));
    assert!(world.stored.contains(&film));
    assert!(world.faults.is_empty());
    assert_eq!(world.looked, 0);
}

#[test]
fn one_who_always_has_too_much_to_do_is_given_up() {
    let mut busy = Real::new(5e6, 20);
    busy.refuses = true;
    let mut world = World::new(vec![busy]);
    let film = world.want("film", MIB);
    let time = world.run(Duration::from_secs(200));
    assert!(world.failed.contains(&film));
    assert!(time > Duration::from_secs(25), "not at once: {time:?}");
    assert!(world.faults.contains(&(0, Fault::Stalling)));
}

#[test]
fn one_who_says_that_a_blob_is_too_large_fails_nobody_but_itself() {
    let mut liar = Real::new(5e6, 5);
    liar.exaggerates = true;
    let mut world = World::new(vec![liar.clone(), Real::new(1e6, 50)]);
    let list = world.want("list", MIB);
    world.run(Duration::from_secs(30));
    assert!(world.stored.contains(&list));
    assert!(world.faults.is_empty());
    // Where nobody else has it, that is what is said.
    let mut nothing = Real::new(5e6, 5);
    nothing.only = Some(HashMap::new());
    let mut world = World::new(vec![liar, nothing]);
    let list = world.want("list", MIB);
    world.run(Duration::from_secs(30));
    assert!(world.failed.contains(&list));
    assert!(world.too_large.contains(&list));
    assert_eq!(world.looked, 1);
}

fn wrong(hash: Hash, size: u64) -> Want {
    Want {
        hash,
        kind: Kind::Blob,
        size: Some(size),
        limit: size,
        like: None,
        missing: full(size),
        whole: false,
    }
}

#[test]
fn a_false_size_in_one_list_does_not_keep_a_file_from_another() {
    for size in [1_000, 3 * MIB, 1 << 40] {
        for steps in 0..30 {
            // The far one keeps the hope alive meanwhile.
            let mut world = World::new(vec![Real::new(5e6, 20), Real::new(5e6, 1_000)]);
            let film = hash("film");
            world.sizes.insert(film, 2 * MIB);
            world.s.want(wrong(film, size));
            for _ in 0..steps {
                world.step();
            }
            assert!(!world.failed.contains(&film));
            world.want("film", 2 * MIB);
            world.run(Duration::from_secs(30));
            assert!(world.stored.contains(&film), "{size} {steps}");
            assert!(full(2 * MIB).is_subset(&world.here[&film]));
            assert!(world.faults.is_empty());
            // The other way round.
            let mut world = World::new(vec![Real::new(5e6, 20), Real::new(5e6, 1_000)]);
            world.want("film", 2 * MIB);
            for _ in 0..steps {
                world.step();
            }
            world.s.want(wrong(film, size));
            world.run(Duration::from_secs(30));
            assert!(world.stored.contains(&film), "{size} {steps}");
        }
    }
}

#[test]
fn a_collection_that_somebody_lists_as_a_file_stays_a_collection() {
    let mut world = World::new(vec![Real::new(5e6, 20)]);
    let list = hash("list");
    world.sizes.insert(list, 5_000);
    world.s.want(wrong(list, 4_000));
    world.s.want(Want {
        hash: list,
        kind: Kind::Collection,
        size: None,
        limit: MIB,
        like: None,
        missing: full(MIB),
        whole: false,
    });
    world.s.questions(1_024, world.now);
    let holding = Holding::Complete { size: 5_000 };
    world.s.answered(0, &[(list, holding)], world.now);
    let start = world.s.next(world.now).unwrap();
    assert_eq!(start.parts[0].kind, Kind::Collection);
    assert_eq!(start.parts[0].size, None);
    assert_eq!(start.parts[0].limit, MIB);
}

#[test]
fn a_very_slow_way_brings_something_all_the_same() {
    // With four streams, a chunk group takes 26 s at the first rate; with three, 160 s at the second.
    for (rate, files, limit) in [(2_500.0, 4, 300), (300.0, 3, 2_000)] {
        let mut world = World::new(vec![Real::new(rate, 300)]);
        for n in 0..files {
            world.want(&format!("picture {n}"), 66 * 1024);
        }
        world.run(Duration::from_secs(limit));
        assert_eq!(world.stored.len(), files);
        assert!(world.faults.is_empty(), "{:?}", world.faults);
    }
}

#[test]
fn one_who_only_trickles_is_given_up() {
    let mut world = World::new(vec![Real::new(0.1, 20)]);
    let film = world.want("film", MIB);
    world.run(Duration::from_secs(1_000));
    assert!(world.failed.contains(&film));
    assert!(world.faults.contains(&(0, Fault::Stalling)));
    // Nor does it hold up what others have.
    let mut world = World::new(vec![Real::new(0.1, 20), Real::new(5e6, 20)]);
    let film = world.want("film", 10 * MIB);
    world.run(Duration::from_secs(10));
    assert!(world.stored.contains(&film));
    // Nor do two of them, of whom one takes over from the other.
    let trickle = || Real::new(0.1, 20);
    let mut world = World::new(vec![trickle(), trickle(), Real::new(5e6, 20)]);
    let film = world.want("film", 200 * 1024);
    world.run(Duration::from_secs(10));
    assert!(world.stored.contains(&film));
}

#[test]
fn ranges_are_asked_a_few_at_a_time_and_again_where_nobody_said_them() {
    let mut world = World::new(vec![Real::new(5e6, 20)]);
    let hashes: Vec<Hash> = (0..20)
        .map(|n| world.want(&format!("file {n}"), MIB))
        .collect();
    let mut now = world.now;
    world.s.questions(1_024, now);
    let partial: Vec<_> = hashes
        .iter()
        .map(|hash| (*hash, Holding::Partial))
        .collect();
    world.s.answered(0, &partial, now);
    let mut asked: HashMap<Hash, u32> = HashMap::new();
    for _ in 0..3 {
        assert!(world.s.stuck(now).0.is_empty(), "there is hope");
        let mut round = HashSet::new();
        loop {
            let some = world.s.observations(now);
            assert!(some.len() <= 8);
            assert!(world.s.observations(now).len() + some.len() <= 8);
            if some.is_empty() {
                break;
            }
            for (_, hash) in some {
                assert!(round.insert(hash), "not again at once");
                *asked.entry(hash).or_default() += 1;
                world.s.observed(0, hash, None, now);
            }
        }
        now += PART_AGAIN;
    }
    assert_eq!(asked.len(), 20);
    assert!(asked.values().all(|times| *times == 3));
    assert!(world.s.observations(now).is_empty());
    assert_eq!(world.s.stuck(now).0.len(), 20);
}

#[test]
fn of_what_a_holder_says_of_its_ranges_little_is_kept() {
    let mut world = World::new(vec![Real::new(5e6, 20)]);
    let film = world.want("film", 16 * MIB);
    world.s.questions(1_024, world.now);
    world.s.answered(0, &[(film, Holding::Partial)], world.now);
    let kept = |world: &mut World, ranges: ChunkRanges| {
        world.now += PART_AGAIN;
        assert_eq!(world.s.observations(world.now), [(0, film)]);
        world.s.observed(0, film, Some(ranges), world.now);
        match &world.s.holders[&0].has[&film] {
            Has::Part { ranges, .. } => ranges.clone().unwrap(),
            has => panic!("{has:?}"),
        }
    };
    // Behind the end it has nothing that counts.
    let tail = ChunkRanges::from(ChunkNum(16 * 1_024)..);
    assert!(kept(&mut world, tail).is_empty());
    let every_other = ChunkRanges::new((0..16 * 1_024).map(ChunkNum).collect()).unwrap();
    let mut got = ChunkRanges::empty();
    for _ in 0..16 {
        let some = kept(&mut world, every_other.clone());
        assert_eq!(some.boundaries().len(), 1_024);
        assert!(some.is_disjoint(&got), "it goes on");
        got |= some.clone();
        // As if it had come.
        world.s.blobs.get_mut(&film).unwrap().todo -= some;
    }
    assert_eq!(got, every_other);
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config {
        cases: 60,
        failure_persistence: None,
        ..proptest::test_runner::Config::default()
    })]
    #[test]
    fn whatever_the_holders_are_like_one_good_one_is_enough(
        sizes in proptest::collection::vec(0_u64..3 * MIB, 1..12),
        others in proptest::collection::vec((1e4_f64..2e7, 1_u64..400, 0..4_u8, 0_u64..5), 0..4),
    ) {
        let mut holders = vec![Real::new(3e6, 40)];
        for (rate, latency, kind, when) in others {
            let mut real = Real::new(rate, latency);
            match kind {
                0 => real.dies = Some(Duration::from_secs(when)),
                1 => real.lies = true,
                2 => real.only = Some(HashMap::new()),
                _ => {}
            }
            holders.push(real);
        }
        let mut world = World::new(holders);
        let hashes: Vec<Hash> = sizes
            .iter()
            .enumerate()
            .map(|(n, size)| world.want(&format!("file {n}"), *size))
            .collect();
        world.run(Duration::from_secs(120));
        for (hash, size) in hashes.iter().zip(&sizes) {
            proptest::prop_assert!(world.stored.contains(hash));
            proptest::prop_assert!(full(*size).is_subset(&world.here[hash]));
        }
        proptest::prop_assert!(world.faults.iter().all(|(id, _)| *id != 0), "{:?}", world.faults);
    }
}
