use std::time::Duration;

use super::{Answer, Now, Pace, Trip};

const MS: Duration = Duration::from_millis(1);
const SIZE: usize = 32_000;

fn answer(took: Duration) -> Answer {
    Answer {
        bytes: SIZE,
        largest: SIZE,
        took,
        held: false,
    }
}

/// Makes calls at these times and answers each after its time. Calls are made before others are answered at the same moment.
fn run(pace: &mut Pace, calls: &[(Now, Duration)]) {
    let mut events: Vec<(Now, bool, usize)> = calls
        .iter()
        .enumerate()
        .flat_map(|(n, (at, took))| [(*at, false, n), (*at + *took, true, n)])
        .collect();
    events.sort();
    let mut trips: Vec<Option<Trip>> = vec![None; calls.len()];
    for (now, answered, n) in events {
        if answered {
            let trip = trips[n].take().expect("it was made before");
            pace.landed(trip);
            pace.answered(trip, answer(calls[n].1), now);
        } else {
            trips[n] = Some(pace.sent(true, now));
        }
    }
}

#[test]
fn the_rate_is_what_was_delivered() {
    let mut pace = Pace::new(64, 32_768);
    // One every 10 ms, each 40 ms on its way: 3.2 MB/s.
    let calls: Vec<_> = (0..100).map(|n| (MS * 10 * n, MS * 40)).collect();
    run(&mut pace, &calls);
    assert!((3.1e6..3.3e6).contains(&pace.rate()), "{}", pace.rate());
}

#[test]
fn replies_that_were_held_up_and_come_at_once_are_no_rate() {
    let mut pace = Pace::new(64, 32_768);
    // As before, but from the 50th on all replies of half a second come in the same moment.
    let calls: Vec<_> = (0..100)
        .map(|n| {
            let at = MS * 10 * n;
            let back = (at + MS * 40).max(if n < 50 { Now::ZERO } else { MS * 1_000 });
            (at, back - at)
        })
        .collect();
    run(&mut pace, &calls);
    assert!((3.1e6..3.6e6).contains(&pace.rate()), "{}", pace.rate());
}

#[test]
fn the_queue_of_a_far_way_is_a_part_of_its_round_trip() {
    for (base, queue) in [(5, 25), (200, 25), (400, 50), (1_600, 200)] {
        assert_eq!(super::queue(MS * base), MS * queue);
    }
}

#[test]
fn after_a_rest_few_calls_only_fetch() {
    let fetching = |rest: bool| {
        let mut pace = Pace::new(64, 32_768);
        let calls: Vec<_> = (0..100).map(|n| (MS * n, MS * 40)).collect();
        run(&mut pace, &calls);
        pace.heard(60, true);
        if rest {
            pace.rest();
        }
        while pace.may_poll() {
            pace.sent(true, MS * 200);
        }
        pace.in_flight()
    };
    assert!(fetching(false) > 30);
    assert_eq!(fetching(true), super::LEAST);
}
