//! How streams and sessions end.

use super::*;

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_reader_that_stops_tells_the_writer() {
    let mut sim = Sim::new(
        40,
        Link {
            lose_calls: 5,
            lose_replies: 5,
            ..Link::default()
        },
    );
    let task = sim.start(protocol::STOP, vec![1; 20 << 20]);
    sim.run(60 * SECOND, |sim| sim.tasks[task].send_end.is_some());
    assert_eq!(sim.tasks[task].send_end, Some(Error::Stopped { code: 7 }));
}

#[test]
fn a_client_that_stops_frees_the_server() {
    let mut sim = Sim::new(41, Link::default());
    let task = sim.start(protocol::SOURCE, (64u64 << 20).to_be_bytes().to_vec());
    sim.run_for(300 * MS);
    let (id, now) = (sim.tasks[task].id, sim.now);
    sim.client.streams.drop_recv(id, now);
    sim.tasks[task].end = Some(Ok(()));
    sim.run_for(5 * SECOND);
    assert_eq!(sim.app_errors, [Error::Stopped { code: 0 }]);
    let key = (sim.listener, sim.client.id());
    assert_eq!(sim.server.with(&key, |streams| streams.len()), Some(0));
    assert_eq!(sim.client.streams.len(), 0);
}

#[test]
fn a_reset_reaches_the_reader() {
    for seed in 42..50 {
        let mut sim = Sim::new(
            seed,
            Link {
                lose_calls: 10,
                lose_replies: 20,
                ..Link::default()
            },
        );
        let task = sim.start(protocol::RESET, vec![1; 10]);
        sim.run_tasks(60 * SECOND);
        assert_eq!(sim.tasks[task].end, Some(Err(Error::Reset { code: 9 })));
        sim.run_for(30 * SECOND);
        let key = (sim.listener, sim.client.id());
        assert_eq!(sim.server.with(&key, |streams| streams.len()), Some(0));
    }
}

#[test]
fn dropped_halves_end_the_stream() {
    let mut sim = Sim::new(50, Link::default());
    let task = sim.start(protocol::DROP, vec![1; 5 << 20]);
    sim.run(60 * SECOND, |sim| {
        sim.tasks[task].send_end.is_some() && sim.tasks[task].end.is_some()
    });
    assert_eq!(sim.tasks[task].send_end, Some(Error::Stopped { code: 0 }));
    assert_eq!(
        sim.tasks[task].end,
        Some(Ok(())),
        "a dropped sending half is an orderly end"
    );
}

#[test]
fn nothing_published_is_no_route() {
    let mut sim = Sim::new(51, Link::default());
    sim.published = None;
    let task = sim.start(protocol::COUNT, vec![1]);
    let took = sim.run_tasks(100 * SECOND);
    assert_eq!(
        sim.tasks[task].end,
        Some(Err(Error::NoRoute {
            after: took,
            reason: "nothing published".into()
        }))
    );
    assert_eq!(took.as_secs(), 60);
    // The session is not spoilt by that.
    sim.published = Some(route(1));
    sim.start(protocol::COUNT, vec![1]);
    sim.run_tasks(5 * SECOND);
    assert_eq!(sim.tasks[1].end, Some(Ok(())));
}

#[test]
fn nobody_there_is_unreachable() {
    let mut sim = Sim::new(52, Link::default());
    sim.alive.clear();
    let task = sim.start(protocol::COUNT, vec![1]);
    sim.run_tasks(100 * SECOND);
    assert!(
        matches!(sim.tasks[task].end, Some(Err(Error::Unreachable { after })) if after.as_secs() == 60),
        "{:?}",
        sim.tasks[task].end
    );
    assert!(sim.route_requests > 2, "other routes were asked for");
}

#[test]
fn another_route_is_looked_for_while_the_first_is_tried() {
    let mut sim = Sim::new(57, Link::default());
    sim.alive = [route(2)].into();
    sim.server.add_route(sim.listener, route(2));
    let task = sim.start(protocol::COUNT, vec![1]);
    sim.run_for(10 * MS);
    // What was known at once is an old route. The simulated search takes 400 ms, the first call is given up later.
    sim.published = Some(route(2));
    let took = sim.run_tasks(5 * SECOND);
    assert_eq!(sim.tasks[task].end, Some(Ok(())));
    assert!(took < 600 * MS, "{took:?}");
    assert_eq!(sim.route_requests, 2);
}

#[test]
fn both_sides_notice_a_peer_that_is_gone() {
    let mut sim = Sim::new(53, Link::default());
    sim.start(protocol::SOURCE, (64u64 << 20).to_be_bytes().to_vec());
    sim.run_for(300 * MS);
    sim.alive.clear();
    sim.run_tasks(100 * SECOND);
    assert!(matches!(
        sim.tasks[0].end,
        Some(Err(Error::Unreachable { .. }))
    ));
    sim.run_for(100 * SECOND);
    assert_eq!(
        sim.app_errors,
        [Error::Unreachable {
            after: Limits::default().idle_session
        }]
    );
    assert_eq!(sim.server.session_count(), 0);
}

#[test]
fn a_forgotten_session_is_said_so_and_goes_on_as_a_new_one() {
    let mut sim = Sim::new(54, Link::default());
    let slow = sim.start(protocol::SOURCE, (8u64 << 20).to_be_bytes().to_vec());
    sim.tasks[slow].reading = false;
    sim.run_for(2 * SECOND);
    // The server restarts.
    let psk = crate::Psk::from_bytes([5; 32]);
    let mut server = super::super::server::ServerCore::new(Limits::default());
    sim.listener = server.listen(psk);
    server.add_route(sim.listener, route(1));
    sim.server = server;
    sim.tasks[slow].reading = true;
    let fresh = sim.start(protocol::COUNT, vec![1; 1_000]);
    sim.run_tasks(20 * SECOND);
    assert_eq!(sim.tasks[slow].end, Some(Err(Error::SessionLost)));
    assert_eq!(
        sim.tasks[fresh].end,
        Some(Ok(())),
        "a stream that had not reached the other side starts again"
    );
    assert_eq!(sim.tasks[fresh].got, 1_000u64.to_be_bytes());
}

#[test]
fn a_session_that_had_to_give_way_goes_on_as_a_new_one() {
    let limits = Limits {
        sessions: 1,
        ..Limits::default()
    };
    let mut sim = Sim::with_limits(66, Link::default(), Limits::default(), limits);
    let open = sim.start(protocol::DEAF, vec![1]);
    sim.run_for(SECOND);
    // It is cut off for a while, and another comes.
    sim.alive.clear();
    sim.run_for(10 * SECOND);
    let now = sim.now;
    let mut other = super::super::client::ClientCore::new(
        crate::Psk::from_bytes([5; 32]),
        Limits::default(),
        super::super::sim::ids(67),
    );
    other.set_route(route(1), now);
    other.open(protocol::DEAF, now).unwrap();
    let call = other.poll(now + 10 * MS).expect("a first call");
    let message = call.message.into();
    sim.server.on_call(u64::MAX, route(1), message, now);
    assert_eq!(sim.server.poll(now + SECOND).len(), 1);
    assert_eq!(sim.server.session_count(), 1);
    // The other falls silent in its turn.
    sim.run_for(10 * SECOND);
    sim.alive.insert(route(1));
    let fresh = sim.start(protocol::COUNT, vec![1; 1_000]);
    sim.run(20 * SECOND, |sim| sim.tasks[fresh].end.is_some());
    assert_eq!(sim.tasks[open].end, Some(Err(Error::SessionLost)));
    assert_eq!(sim.tasks[fresh].end, Some(Ok(())));
}

#[test]
fn an_idle_session_makes_no_calls_and_is_renewed() {
    let mut sim = Sim::new(55, Link::default());
    sim.start(protocol::COUNT, vec![1]);
    sim.run_tasks(SECOND);
    let id = sim.client.id();
    sim.run_for(SECOND);
    let calls = sim.calls;
    sim.run_for(200 * SECOND);
    assert_eq!(sim.calls, calls);
    assert_eq!(sim.server.session_count(), 0, "expired");
    sim.start(protocol::COUNT, vec![1]);
    let took = sim.run_tasks(SECOND);
    assert_eq!(sim.tasks[1].end, Some(Ok(())));
    assert!(took < 60 * MS, "{took:?}");
    assert_ne!(sim.client.id(), id);
}

#[test]
fn an_open_stream_without_data_is_polled_seldom() {
    let mut sim = Sim::new(56, Link::default());
    let task = sim.start(protocol::DEAF, vec![1]);
    sim.run_for(60 * SECOND);
    let calls = sim.calls;
    sim.run_for(60 * SECOND);
    assert!(
        sim.calls - calls < 35,
        "{} calls in a minute",
        sim.calls - calls
    );
    assert_eq!(sim.tasks[task].end, None);
}

#[test]
fn closing_tells_the_other_side() {
    let mut sim = Sim::new(57, Link::default());
    let task = sim.start(protocol::SOURCE, (64u64 << 20).to_be_bytes().to_vec());
    sim.run_for(300 * MS);
    sim.client.close(false);
    sim.run(5 * SECOND, |sim| {
        sim.client.is_closed() && sim.tasks[task].end.is_some()
    });
    assert_eq!(sim.tasks[task].end, Some(Err(Error::Closed)));
    sim.run_for(SECOND);
    assert_eq!(sim.app_errors, [Error::PeerClosed { code: 0 }]);
    assert_eq!(sim.server.session_count(), 0);
}

#[test]
fn draining_delivers_everything_first() {
    for seed in 58..62 {
        let mut sim = Sim::new(
            seed,
            Link {
                lose_calls: 10,
                lose_replies: 10,
                ..Link::default()
            },
        );
        let data = sim.rng.bytes(1 << 20);
        let task = sim.start(protocol::COUNT, data);
        sim.client.close(true);
        sim.run(60 * SECOND, |sim| sim.client.is_closed());
        assert_eq!(sim.tasks[task].got, (1u64 << 20).to_be_bytes());
    }
}

#[test]
fn a_listener_that_closes_ends_its_sessions() {
    for held in [true, false] {
        let mut sim = Sim::new(63, Link::default());
        let task = sim.start(protocol::DEAF, vec![1]);
        sim.run_for(5 * SECOND);
        sim.run(5 * SECOND, |sim| (sim.server.held_count() > 0) == held);
        let listener = sim.listener;
        for (token, reply) in sim.server.close_listener(listener) {
            sim.answer(token, reply);
        }
        assert_eq!(sim.server.has_untold(listener), !held);
        let took = sim.run_tasks(5 * SECOND);
        assert_eq!(
            sim.tasks[task].end,
            Some(Err(Error::PeerClosed { code: 0 }))
        );
        assert!(took < 2_100 * MS, "{took:?}");
        assert!(!sim.server.has_untold(listener));
        sim.start(protocol::COUNT, vec![1]);
        sim.run_tasks(SECOND);
        assert_eq!(
            sim.tasks[1].end,
            Some(Err(Error::PeerClosed { code: 0 })),
            "nobody new is let in"
        );
    }
}

#[test]
fn ping_measures_the_round_trip() {
    let mut sim = Sim::new(
        64,
        Link {
            latency: 70 * MS,
            ..Link::default()
        },
    );
    let now = sim.now;
    let nonce = sim.client.start_ping(now).unwrap();
    let mut result = None;
    sim.run(5 * SECOND, |sim| {
        result = sim.client.take_ping(nonce);
        result.is_some()
    });
    assert_eq!(result, Some(Ok(140 * MS)));
    // Lost ones are repeated.
    sim.link.lose_calls = 60;
    let now = sim.now;
    let nonce = sim.client.start_ping(now).unwrap();
    sim.run(30 * SECOND, |sim| {
        sim.client
            .take_ping(nonce)
            .is_some_and(|result| result.is_ok())
    });
}

#[test]
fn closing_does_not_wait_for_a_full_window() {
    let mut sim = Sim::new(
        65,
        Link {
            latency: 500 * MS,
            ..Link::default()
        },
    );
    let task = sim.start(protocol::SOURCE, (64u64 << 20).to_be_bytes().to_vec());
    sim.run_for(8 * SECOND);
    let (calls, now) = (sim.calls, sim.now);
    sim.client.close(false);
    let call = sim.client.poll(now).expect("the call that closes");
    assert!(call.message.len() < 200);
    assert!(sim.client.poll(now).is_none());
    assert!(calls > 31, "{calls}");
    assert!(sim.tasks[task].end.is_none());
}
