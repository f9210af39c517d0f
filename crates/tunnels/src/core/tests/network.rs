//! Bytes arrive once and in order, whatever the network does.

use proptest::prelude::*;

use super::super::fixed;
use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn ask(len: usize) -> Vec<u8> {
    (len as u64).to_be_bytes().to_vec()
}

#[test]
fn a_small_request_is_answered_in_one_call() {
    let mut sim = Sim::new(
        1,
        Link {
            think: 5 * MS,
            ..Link::default()
        },
    );
    sim.start(protocol::SOURCE, ask(300));
    let took = sim.run_tasks(SECOND);
    assert_eq!(sim.calls, 1);
    assert!(took < 50 * MS, "{took:?}");
    // One more call tells the server that the answer arrived; then there is silence, and nothing is left on either side.
    sim.run_for(10 * SECOND);
    assert_eq!(sim.calls, 2);
    assert_eq!(sim.client.streams.len(), 0);
    let key = (sim.listener, sim.client.id());
    assert_eq!(sim.server.with(&key, |streams| streams.len()), Some(0));
}

#[test]
fn a_good_network_is_filled() {
    let link = Link {
        latency: 50 * MS,
        jitter: 10 * MS,
        rate: Some(100_000_000),
        ..Link::default()
    };
    let mut sim = Sim::new(2, link.clone());
    sim.start(protocol::SOURCE, ask(32 << 20));
    let took = sim.run_tasks(60 * SECOND);
    // 32 MiB are 1,028 replies; 127 in each round trip of 110 ms make 9 rounds, after some to get going.
    assert!(took < 2_200 * MS, "{took:?}");
    assert!(sim.calls < 1_250, "{} calls", sim.calls);
    let mut sim = Sim::new(2, link);
    let data = sim.rng.bytes(32 << 20);
    sim.start(protocol::COUNT, data);
    let took = sim.run_tasks(60 * SECOND);
    assert!(took < 2_200 * MS, "{took:?}");
    assert!(sim.calls < 1_250, "{} calls", sim.calls);
}

#[test]
fn a_reported_dead_route_is_left_at_once() {
    let mut sim = Sim::new(25, Link::default());
    sim.start(protocol::SOURCE, ask(4 << 20));
    sim.run_for(100 * MS);
    sim.alive = [route(2)].into();
    sim.server.add_route(sim.listener, route(2));
    sim.published = Some(route(2));
    let now = sim.now;
    sim.client.drop_route(now);
    let took = sim.run_tasks(60 * SECOND);
    assert!(took < 2 * SECOND, "{took:?}");
    assert!(
        sim.tasks[0].got == Sim::source(0, 4 << 20),
        "download differs"
    );
}

#[test]
fn many_streams_at_once() {
    for seed in [30, 31] {
        let mut sim = Sim::new(
            seed,
            Link {
                lose_calls: 2,
                lose_replies: 2,
                jitter: 20 * MS,
                ..Link::default()
            },
        );
        for i in 0..1_000 {
            sim.start(protocol::SOURCE, ask(i * 7));
        }
        sim.run_tasks(120 * SECOND);
        for (i, task) in sim.tasks.iter().enumerate() {
            assert_eq!(task.end, Some(Ok(())));
            assert!(
                task.got == Sim::source(task.id, i * 7),
                "stream {i} differs"
            );
        }
        sim.run_for(20 * SECOND);
        let key = (sim.listener, sim.client.id());
        assert_eq!(
            sim.server.with(&key, |streams| streams.len()),
            Some(0),
            "nothing is left behind"
        );
        assert_eq!(sim.client.streams.len(), 0);
    }
}

#[test]
fn a_slow_stream_does_not_hold_up_a_fast_one() {
    let mut sim = Sim::new(32, Link::default());
    let slow = sim.start(protocol::SOURCE, ask(64 << 20));
    sim.tasks[slow].reading = false;
    let deaf = sim.start(protocol::DEAF, vec![1; 64 << 20]);
    sim.tasks[deaf].reading = false;
    sim.run_for(3 * SECOND);
    let fast = sim.start(protocol::SOURCE, ask(4 << 20));
    let took = sim.run(30 * SECOND, |sim| sim.tasks[fast].end.is_some());
    assert!(took < 2 * SECOND, "{took:?}");
    let held = Limits::default().buffered_bytes_per_stream;
    assert!(
        sim.client.streams.recv_held() <= held,
        "the reader that stopped is bounded"
    );
    assert!(
        sim.tasks[deaf].sent <= 2 * held,
        "the writer felt it: {}",
        sim.tasks[deaf].sent
    );
    // The slow one wakes up and gets the rest.
    sim.tasks[slow].reading = true;
    sim.run(60 * SECOND, |sim| sim.tasks[slow].end.is_some());
    assert!(
        sim.tasks[slow].got == Sim::source(0, 64 << 20),
        "slow stream differs"
    );
}

#[test]
fn small_messages() {
    let limits = Limits {
        max_message: 1_024,
        ..Limits::default()
    };
    let mut sim = Sim::with_limits(
        33,
        Link {
            lose_replies: 5,
            ..Link::default()
        },
        limits,
        Limits::default(),
    );
    for i in 0..50 {
        sim.start(protocol::SOURCE, ask(i * 500));
    }
    sim.run_tasks(120 * SECOND);
    assert!(
        sim.tasks
            .iter()
            .enumerate()
            .all(|(i, task)| task.got == Sim::source(task.id, i * 500))
    );
}

proptest! {
    #![proptest_config(fixed(64))]

    /// Any mixture of bad luck, with buffers of any size, and a route that dies at any time.
    #[test]
    fn delivered_once_and_in_order(
        seed: u64,
        times in (1u32..400, 0u32..400, 0u32..300),
        losses in (0u64..30, 0u64..30, 0u64..20, 0u64..8, 0u64..8),
        buffers in (32_768usize..300_000, 32_768usize..300_000, 1_024usize..32_769),
        dies_at in proptest::option::of(0u32..3_000),
        lens in proptest::collection::vec(0usize..200_000, 1..6),
    ) {
        let (latency, jitter, think) = (times.0 * MS, times.1 * MS, times.2 * MS);
        let (lose_calls, lose_replies, duplicate, late, junk) = losses;
        let duplicate_replies = duplicate;
        let link = Link { latency, jitter, lose_calls, lose_replies, duplicate, duplicate_replies, late, junk, think, ..Link::default() };
        let limits = |buffer| Limits {
            buffered_bytes_per_stream: buffer,
            buffered_bytes_per_session: 2 * buffer,
            max_message: buffers.2,
            ..Limits::default()
        };
        let mut sim = Sim::with_limits(seed, link, limits(buffers.0), limits(buffers.1));
        let mut expected = Vec::new();
        for (i, &len) in lens.iter().enumerate() {
            let data = sim.rng.bytes(len);
            match i % 3 {
                0 => {
                    let task = sim.start(protocol::SOURCE, ask(len));
                    expected.push(Sim::source(sim.tasks[task].id, len));
                }
                1 => {
                    sim.start(protocol::COUNT, data);
                    expected.push((len as u64).to_be_bytes().to_vec());
                }
                _ => {
                    sim.start(protocol::ECHO, data.clone());
                    expected.push(data);
                }
            }
        }
        if let Some(at) = dies_at {
            sim.run_for(at * MS);
            sim.alive = [route(2)].into();
            sim.server.remove_route(route(1));
            sim.server.add_route(sim.listener, route(2));
            sim.published = Some(route(2));
        }
        sim.run_tasks(1_200 * SECOND);
        for (task, expected) in sim.tasks.iter().zip(&expected) {
            prop_assert_eq!(&task.end, &Some(Ok(())));
            prop_assert!(task.got == *expected, "stream {} differs", task.id);
        }
        prop_assert_eq!(&sim.app_errors, &[]);
        // Nothing is left behind, and both sides are silent.
        sim.run_for(60 * SECOND);
        prop_assert_eq!(sim.client.streams.len(), 0);
        let key = (sim.listener, sim.client.id());
        prop_assert_eq!(sim.server.with(&key, |streams| streams.len()), Some(0));
        let calls = sim.calls;
        sim.run_for(30 * SECOND);
        prop_assert_eq!(sim.calls, calls);
    }
}
