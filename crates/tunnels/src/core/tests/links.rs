//! What a session makes of a link: the share of its capacity that arrives as payload.

use super::*;

/// The share of a link's capacity that a long download in four streams gets, of which a hundredth and more is framing and routing.
fn share(rate: u64, latency: u32, queue: u32, lose_datagrams: u64) -> f64 {
    let link = Link {
        rate: Some(rate),
        latency: latency * MS,
        queue: queue * MS,
        lose_datagrams,
        ..Link::default()
    };
    let mut sim = Sim::new(1, link);
    // For 20 seconds, in which starting up counts little.
    let len = (5 * rate).min(16 << 20);
    for _ in 0..4 {
        sim.start(protocol::SOURCE, len.to_be_bytes().to_vec());
    }
    let took = sim.run_tasks(Duration::from_secs(1_000));
    assert!(
        sim.tasks
            .iter()
            .all(|task| task.got == Sim::source(task.id, usize::try_from(len).unwrap()))
    );
    4.0 * len as f64 / rate as f64 / took.as_secs_f64()
}

/// Links from the loopback to a satellite: rate in bytes per second, latency of one way and queue in milliseconds, losses of datagrams in 1,000, and
/// the least share.
const LINKS: &[(u64, u32, u32, u64, f64)] = &[
    (20_000_000, 3, 400, 0, 0.95),
    (20_000_000, 50, 400, 0, 0.85),
    (20_000_000, 150, 400, 0, 0.5),
    (1_000_000, 10, 400, 0, 0.95),
    (1_000_000, 10, 50, 0, 0.85),
    (1_000_000, 50, 400, 10, 0.75),
    (600_000, 50, 800, 0, 0.9),
    (250_000, 100, 800, 10, 0.7),
    (250_000, 750, 800, 0, 0.7),
    (250_000, 750, 800, 10, 0.45),
    (250_000, 750, 800, 100, 0.12),
    (50_000, 300, 2_000, 0, 0.85),
];

#[test]
fn links_of_all_kinds_are_filled() {
    for &(rate, latency, queue, loss, least) in LINKS {
        let share = share(rate, latency, queue, loss);
        assert!(
            share >= least,
            "{rate} B/s, {} ms, queue {queue} ms, {loss} in 1,000 lost: {share:.2}",
            2 * latency
        );
    }
}

/// Whoever else uses the link does not wait for long.
#[test]
fn a_slow_link_does_not_get_a_long_queue() {
    let mut sim = Sim::new(
        1,
        Link {
            rate: Some(1_000_000),
            latency: 10 * MS,
            queue: 4_000 * MS,
            ..Link::default()
        },
    );
    sim.start(protocol::SOURCE, (16u64 << 20).to_be_bytes().to_vec());
    sim.run_for(Duration::from_secs(4));
    for _ in 0..100 {
        sim.run_for(50 * MS);
        let queued = sim.queued();
        assert!(queued < 250 * MS, "{queued:?}");
    }
}
