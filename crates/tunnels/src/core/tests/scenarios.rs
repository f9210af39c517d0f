//! The table of bad networks: what each costs, and that bytes arrive once and in order all the same.

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn ask(len: usize) -> Vec<u8> {
    (len as u64).to_be_bytes().to_vec()
}

/// One download, one upload and an echo at once, whole and in order. Returns how long it took.
fn check(seed: u64, link: Link, len: usize, limit: Duration) -> Duration {
    let mut sim = Sim::new(seed, link);
    let down = sim.start(protocol::SOURCE, ask(len));
    let up_data = sim.rng.bytes(len);
    let up = sim.start(protocol::COUNT, up_data);
    let echo_data = sim.rng.bytes(len / 2);
    let echo = sim.start(protocol::ECHO, echo_data.clone());
    let took = sim.run_tasks(limit);
    for task in &sim.tasks {
        assert_eq!(task.end, Some(Ok(())), "after {took:?}");
    }
    assert!(
        sim.tasks[down].got == Sim::source(sim.tasks[down].id, len),
        "download differs"
    );
    assert_eq!(sim.tasks[up].got, (len as u64).to_be_bytes());
    assert!(sim.tasks[echo].got == echo_data, "echo differs");
    took
}

/// A row of the table: what is wrong with the network, and how long a mebibyte each way and half of it there and back may take, in the median.
struct Row {
    name: &'static str,
    link: Link,
    within: Duration,
}

fn rows() -> Vec<Row> {
    let row = |name, link, within| Row {
        name,
        link,
        within: Duration::from_secs(within),
    };
    let lossy = |percent| Link {
        lose_calls: percent,
        lose_replies: percent,
        ..Link::default()
    };
    let datagrams = |thousandths| Link {
        lose_datagrams: thousandths,
        ..Link::default()
    };
    vec![
        row("no loss", lossy(0), 1),
        row("1 % of messages lost each way", lossy(1), 2),
        row("10 % of messages lost each way", lossy(10), 5),
        row("50 % of messages lost each way", lossy(50), 60),
        row("1 % of datagrams lost", datagrams(10), 3),
        row("10 % of datagrams lost", datagrams(100), 15),
        row("20 % of datagrams lost", datagrams(200), 90),
        row(
            "duplicate calls",
            Link {
                duplicate: 30,
                ..Link::default()
            },
            2,
        ),
        row(
            "duplicate replies",
            Link {
                duplicate_replies: 30,
                ..Link::default()
            },
            2,
        ),
        row(
            "20 % of replies lost and no calls",
            Link {
                lose_replies: 20,
                ..Link::default()
            },
            12,
        ),
        row(
            "reordered",
            Link {
                jitter: 200 * MS,
                duplicate: 5,
                ..Link::default()
            },
            6,
        ),
        row(
            "replies later than our timer",
            Link {
                late: 5,
                ..Link::default()
            },
            10,
        ),
        row(
            "damaged replies",
            Link {
                junk: 5,
                ..Link::default()
            },
            30,
        ),
        row(
            "replies longer than Veilid allows",
            Link {
                oversize: 5,
                ..Link::default()
            },
            30,
        ),
        row(
            "1.5 s and 10 % of messages lost",
            Link {
                latency: 750 * MS,
                lose_calls: 5,
                lose_replies: 5,
                ..Link::default()
            },
            60,
        ),
    ]
}

/// How often each row is run. Where much is lost, luck counts for much.
const RUNS: u64 = 5;

#[test]
fn bytes_arrive_once_and_in_order_whatever_the_network_does() {
    for (number, Row { name, link, within }) in rows().into_iter().enumerate() {
        let seeds = (0..RUNS).map(|run| 1_000 * run + number as u64);
        let mut took: Vec<Duration> = seeds
            .map(|seed| check(seed, link.clone(), 1 << 20, 20 * within))
            .collect();
        took.sort();
        let median = took[took.len() / 2];
        println!("{name}: {median:.1?}, {took:.1?}");
        assert!(median < within, "{name}: {took:?}");
    }
}

/// Four streams on a slow link: when the first is through, the others nearly are.
#[test]
fn streams_of_a_route_share_it_evenly() {
    const LEN: usize = 2 << 20;
    let link = Link {
        latency: 50 * MS,
        rate: Some(1_000_000),
        ..Link::default()
    };
    let mut sim = Sim::new(80, link);
    for _ in 0..4 {
        sim.start(protocol::SOURCE, ask(LEN));
    }
    sim.run(60 * SECOND, |sim| {
        sim.tasks.iter().any(|task| task.got.len() == LEN)
    });
    for task in &sim.tasks {
        let part = task.got.len() as f64 / LEN as f64;
        println!("{part:.2} of a stream");
        assert!(part > 0.85, "{part}");
    }
}

/// The route dies when so much has arrived; another one is published a second later.
#[test]
fn a_route_that_dies_is_replaced_without_loss() {
    const LEN: usize = 8 << 20;
    for (seed, (name, arrived)) in [
        ("before the first message", 0),
        ("at the first message", 1),
        ("in the middle", LEN / 2),
        ("towards the end", LEN - 1_500_000),
        ("at the last message", LEN - 32_000),
        ("after the last byte", LEN),
    ]
    .into_iter()
    .enumerate()
    {
        let link = Link {
            latency: 30 * MS,
            jitter: 10 * MS,
            ..Link::default()
        };
        let mut sim = Sim::new(seed as u64, link);
        sim.start(protocol::SOURCE, ask(LEN));
        let data = sim.rng.bytes(LEN / 2);
        sim.start(protocol::COUNT, data);
        sim.run(60 * SECOND, |sim| sim.tasks[0].got.len() >= arrived);
        sim.alive.clear();
        sim.server.remove_route(route(1));
        sim.run_for(SECOND);
        sim.alive.insert(route(2));
        sim.server.add_route(sim.listener, route(2));
        sim.published = Some(route(2));
        let took = sim.run_tasks(60 * SECOND);
        println!("a route that died {name}: {took:.1?}");
        assert!(took < 10 * SECOND, "{name}: {took:?}");
        assert!(
            sim.tasks[0].got == Sim::source(0, LEN),
            "{name}: download differs"
        );
        assert_eq!(sim.tasks[1].got, ((LEN / 2) as u64).to_be_bytes());
        assert_eq!(sim.server.session_count(), 1, "the session went on");
    }
}
