//! The scheduler against holders of all sorts, in virtual time.

mod world;

use std::collections::HashSet;

use bao_tree::ChunkNum;

use super::*;
use crate::have::Holding;
use world::*;

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

/// The only holder's route dies, and it publishes another one after a while.
#[test]
fn one_who_falls_silent_is_waited_for() {
    let mut moves = Real::new(5e6, 20);
    moves.dies = Some(Duration::from_secs(1));
    moves.returns = Some(Duration::from_secs(70));
    let mut world = World::new(vec![moves]);
    let film = world.want("film", 10 * MIB);
    let time = world.run(Duration::from_secs(120));
    assert!(world.stored.contains(&film), "given up after {time:?}");
}

/// The world with the first holder heard of, and a film of a mebibyte that it has most likely.
fn presumed(holders: Vec<Real>) -> (World, Hash) {
    let mut world = World::new(holders);
    world.want("a word", 1_000);
    world.run(Duration::from_secs(5));
    let film = world.want("film", MIB);
    world.s.presume(0, film, world.now);
    (world, film)
}

/// In whose archive it is wanted is not asked whether it is there.
#[test]
fn one_who_most_likely_has_it_is_asked_for_it_at_once() {
    let (mut world, film) = presumed(vec![Real::new(5e6, 20), Real::new(5e6, 20)]);
    world.step();
    assert!(!world.transfers.is_empty());
    let asked: Vec<_> = world.answers.iter().map(|(_, holder, _)| *holder).collect();
    assert_eq!(asked, [1]);
    world.run(Duration::from_secs(5));
    assert!(world.stored.contains(&film));
    assert_eq!(world.sent(), MIB + 1_000);
}

#[test]
fn one_who_does_not_have_what_it_most_likely_had_is_asked_what_it_has() {
    // The second half, so that what it is asked for first is not there.
    let film = hash("film");
    let half = &full(MIB) - &full(MIB / 2);
    let mut part = Real::new(5e6, 20);
    part.only = Some(HashMap::from([(film, half), (hash("a word"), full(1_000))]));
    part.lacks.insert(film);
    let mut other = Real::new(1e5, 20);
    other.only = Some(HashMap::from([(film, full(MIB))]));
    let (mut world, film) = presumed(vec![part, other]);
    world.step();
    assert!(
        world
            .transfers
            .values()
            .all(|transfer| transfer.start.holder == 0)
    );
    // It is asked by now.
    while !world.answers.iter().any(|(_, holder, _)| *holder == 0) {
        world.step();
        assert!(world.now < Duration::from_secs(2));
    }
    world.holders[0].lacks.clear();
    world.run(Duration::from_secs(20));
    assert!(world.stored.contains(&film));
    assert_eq!(world.faults, []);
    let of_part = world
        .asked
        .iter()
        .filter(|(holder, hash, _)| *holder == 0 && *hash == film);
    assert!(of_part.count() > 1, "its half is used");
}

/// Whoever may be gone is given little work unasked, and asked all the same.
#[test]
fn one_who_was_not_heard_of_is_asked_for_one_piece_and_what_it_has() {
    let mut world = World::new(vec![Real::new(5e6, 20)]);
    let film = world.want("film", MIB);
    world.s.presume(0, film, world.now);
    world.step();
    assert_eq!((world.transfers.len(), world.answers.len()), (1, 1));
    world.run(Duration::from_secs(5));
    assert_eq!(world.sent(), MIB);

    let mut dead = Real::new(5e6, 20);
    dead.dies = Some(Duration::ZERO);
    let mut world = World::new(vec![dead, Real::new(1e6, 20)]);
    let film = world.want("film", MIB);
    world.s.presume(0, film, world.now);
    let time = world.run(Duration::from_secs(5));
    assert!(time < Duration::from_millis(2_500), "{time:?}");
}

/// Others may have come since an earlier look.
#[test]
fn what_is_wanted_once_more_is_looked_for_once_more() {
    let mut nothing = Real::new(5e6, 20);
    nothing.only = Some(HashMap::new());
    let mut world = World::new(vec![nothing]);
    let film = world.want("film", MIB);
    let (began, late) = (Duration::from_secs(10), Duration::from_secs(30));
    world.s.try_all(&[film], Some(began), began);
    assert_eq!(world.s.blobs[&film].thorough, Some(began));
    world.now = late;
    world.want("film", MIB);
    assert_eq!(world.s.blobs[&film].thorough, None);
    world.s.try_all(&[film], Some(began), late);
    assert_eq!(
        world.s.blobs[&film].thorough, None,
        "that look began too early"
    );
    world.s.try_all(&[film], Some(late - RECENT), late);
    assert_eq!(world.s.blobs[&film].thorough, Some(late));
}

/// However many fall silent one after the other.
#[test]
fn nobody_is_waited_for_without_end() {
    let mut dead = Real::new(5e6, 20);
    dead.dies = Some(Duration::ZERO);
    let mut world = World::new(vec![dead; 30]);
    let film = world.want("film", MIB);
    for id in 1..30 {
        world.s.holders.remove(&id);
    }
    let mut next = 1;
    while !world.failed.contains(&film) {
        world.step();
        if world.now > Duration::from_secs(30) * next {
            world.s.join(next, None);
            next += 1;
        }
        assert!(world.now < Duration::from_secs(150));
    }
}

/// In the order in which it happens, also where it goes back.
#[test]
fn what_is_told_of_a_blob_is_true() {
    use FetchState::{Fetching, Finding, Stored, Verifying};
    let mut dead = Real::new(5e6, 20);
    dead.dies = Some(Duration::from_secs(1));
    let mut world = World::new(vec![dead]);
    let film = world.want("film", 40 * MIB);
    world.run(Duration::from_secs(200));
    // They are all gone, and looked for.
    let told = [Finding, Fetching, Finding];
    assert_eq!(world.states, told.map(|state| (film, state)));

    let mut world = World::new(vec![Real::new(5e6, 20)]);
    let film = world.want("film", 4 * MIB);
    world.forgets = true;
    world.run(Duration::from_secs(60));
    let told = [
        Finding, Fetching, Verifying, Finding, Fetching, Verifying, Stored,
    ];
    assert_eq!(world.states, told.map(|state| (film, state)));
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
        since: Duration::ZERO,
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
            since: Duration::ZERO,
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
        since: Duration::ZERO,
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
        since: Duration::ZERO,
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
