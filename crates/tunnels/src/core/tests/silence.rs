//! Ways that fall silent or get slower while much is under way.

use super::*;

const SECOND: Duration = Duration::from_secs(1);
const RATE: u64 = 5_000_000;

/// A long download over a way that it fills. Returns the bytes per second that it gets.
fn filled(link: Link) -> (Sim, f64) {
    let mut sim = Sim::new(95, link);
    sim.start(protocol::SOURCE, (96u64 << 20).to_be_bytes().to_vec());
    sim.run_for(4 * SECOND);
    let rate = per_second(&mut sim);
    assert!(rate > 0.8 * RATE as f64, "{rate}");
    (sim, rate)
}

/// Bytes that come in the next second.
fn per_second(sim: &mut Sim) -> f64 {
    let before = sim.tasks[0].got.len();
    sim.run_for(SECOND);
    (sim.tasks[0].got.len() - before) as f64
}

#[test]
fn a_silent_way_is_asked_seldom_and_filled_again_when_it_answers() {
    for (lose_calls, lose_replies) in [(100, 0), (0, 100)] {
        let link = Link {
            latency: 100 * MS,
            rate: Some(RATE),
            ..Link::default()
        };
        let (mut sim, rate) = filled(link);
        let in_flight = sim.client.in_flight();
        (sim.link.lose_calls, sim.link.lose_replies) = (lose_calls, lose_replies);
        let mut calls = Vec::new();
        for _ in 0..20 {
            let before = sim.calls;
            sim.run_for(SECOND);
            calls.push(sim.calls - before);
        }
        let got = sim.tasks[0].got.len();
        (sim.link.lose_calls, sim.link.lose_replies) = (0, 0);
        let answered = sim.run(20 * SECOND, |sim| sim.tasks[0].got.len() > got);
        // Five round trips.
        sim.run_for(SECOND);
        let again = per_second(&mut sim);
        println!(
            "{in_flight} in flight; calls in each second of silence: {calls:?}; answered after {answered:.1?}; {:.0} % of the rate again",
            100.0 * again / rate
        );
        let late: u64 = calls.iter().skip(8).sum();
        assert!(in_flight > 30, "{in_flight}");
        assert!(late <= 12 * 4, "{late} calls in the last 12 seconds");
        assert!(answered < 3 * SECOND, "{answered:?}");
        assert!(again > 0.9 * rate, "{again} after {rate}");
    }
}

/// The window is too large then. What waits before the link is little again when the old rate is forgotten.
#[test]
fn a_link_that_gets_ten_times_slower_does_not_keep_a_long_queue() {
    let link = Link {
        rate: Some(RATE),
        queue: 4_000 * MS,
        ..Link::default()
    };
    let (mut sim, _) = filled(link);
    sim.link.rate = Some(RATE / 10);
    let mut queued = Vec::new();
    for _ in 0..100 {
        sim.run_for(100 * MS);
        queued.push(sim.queued());
    }
    let most = |range: std::ops::Range<usize>| queued[range].iter().max().copied().unwrap();
    println!(
        "queued: {:?} in the first second, then {:?}",
        most(0..10),
        (1..10)
            .map(|n| most(10 * n..10 * n + 10))
            .collect::<Vec<_>>()
    );
    assert!(most(0..10) > 300 * MS, "the change was felt");
    assert!(most(50..100) < 350 * MS, "{:?}", most(50..100));
}
