//! What strangers get, and what bounds the others.

use bytes::Bytes;

use super::super::client::ClientCore;
use super::super::codec::{Builder, Direction, Frame, Header, Keys, REFUSAL};
use super::super::server::ServerCore;
use super::super::sim::{Rng, ids};
use super::*;
use crate::{Psk, SessionId};

const SECOND: Duration = Duration::from_secs(1);

fn server(limits: Limits) -> (ServerCore, u64) {
    let mut server = ServerCore::new(limits);
    let listener = server.listen(Psk::from_bytes([5; 32]));
    server.add_route(listener, route(1));
    (server, listener)
}

fn message(psk: u8, session: u8, number: u64, frames: &[Frame]) -> Bytes {
    let session = SessionId::from_bytes([session; 16]);
    let mut builder = Builder::new(session, number, crate::MAX_MESSAGE);
    for frame in frames {
        assert!(builder.push(frame));
    }
    builder
        .seal(
            &Keys::derive(&Psk::from_bytes([psk; 32]), session, route(1)),
            Direction::Call,
        )
        .into()
}

fn hello() -> Frame {
    Frame::Hello { features: 0 }
}

/// Names call 0 as lost.
fn lost_first() -> Frame {
    let first = 0..1;
    Frame::Lost { calls: vec![first] }
}

fn refused() -> Vec<(u64, Vec<u8>)> {
    vec![(9, REFUSAL.to_vec())]
}

#[test]
fn a_stranger_gets_one_byte_whatever_it_says() {
    let (mut server, _) = server(Limits::default());
    let good = message(5, 1, 0, &[hello()]);
    let mut rng = Rng(70);
    let mut said: Vec<Bytes> = vec![
        Bytes::new(),
        Bytes::from_static(b"hello"),
        vec![0; 32_768].into(),
        message(6, 1, 0, &[hello()]),
    ];
    said.extend((0..good.len()).map(|len| good.slice(..len)));
    for i in 0..good.len() * 8 {
        let mut flipped = good.to_vec();
        flipped[i / 8] ^= 1 << (i % 8);
        said.push(flipped.into());
    }
    for _ in 0..200 {
        let len = usize::try_from(rng.next() % 300).unwrap();
        said.push(rng.bytes(len).into());
    }
    for (i, message) in said.into_iter().enumerate() {
        let now = Duration::from_secs(i as u64);
        assert_eq!(server.on_call(9, route(1), message, now), refused());
    }
    assert_eq!(server.session_count(), 0);
    assert_eq!(
        server.on_call(9, route(2), good.clone(), 9_999 * SECOND),
        refused(),
        "another route"
    );
    assert_ne!(
        server.on_call(9, route(1), good, 9_999 * SECOND),
        refused(),
        "the message itself was in order"
    );
}

#[test]
fn strangers_share_a_bucket_that_does_not_concern_members() {
    let (mut server, _) = server(Limits {
        unproved_per_second: 10,
        ..Limits::default()
    });
    let now = 100 * SECOND;
    assert_ne!(
        server.on_call(9, route(1), message(5, 1, 0, &[hello()]), now),
        refused()
    );
    for i in 0..1_000 {
        assert_eq!(
            server.on_call(9, route(1), message(6, 2, i, &[hello()]), now),
            refused()
        );
    }
    assert_eq!(
        server.on_call(9, route(1), message(5, 3, 0, &[hello()]), now),
        refused(),
        "nobody new for the moment"
    );
    assert_ne!(
        server.on_call(9, route(1), message(5, 1, 1, &[]), now),
        refused(),
        "a session that is known goes on"
    );
    assert_ne!(
        server.on_call(9, route(1), message(5, 3, 1, &[hello()]), now + SECOND),
        refused()
    );
}

#[test]
fn a_replayed_call_is_refused_and_changes_nothing() {
    let (mut server, listener) = server(Limits::default());
    let open = message(
        5,
        1,
        0,
        &[
            hello(),
            Frame::Open {
                stream: 0,
                protocol: 1,
            },
            Frame::Data {
                stream: 0,
                offset: 0,
                fin: true,
                bytes: Bytes::from_static(b"x"),
            },
        ],
    );
    let now = 100 * SECOND;
    assert_ne!(server.on_call(9, route(1), open.clone(), now), refused());
    let opened = server.events.len();
    assert_eq!(server.on_call(9, route(1), open.clone(), now), refused());
    assert_eq!(server.events.len(), opened);
    // Nor when the session is over: its id is remembered.
    let key = (listener, SessionId::from_bytes([1; 16]));
    server.with(&key, |streams| {
        streams.drop_send(0, now);
        streams.drop_recv(0, now);
    });
    server.poll(now + 1_000 * SECOND);
    assert_eq!(server.session_count(), 0);
    server.events.clear();
    let replies = server.on_call(9, route(1), open, now + 1_000 * SECOND);
    assert!(
        replies[0].1.len() > 1,
        "whoever proves the key is told that the session is over"
    );
    assert!(server.events.is_empty());
    assert_eq!(server.session_count(), 0);
}

#[test]
fn a_call_named_lost_is_not_taken_when_it_comes_late() {
    let (mut server, _) = server(Limits::default());
    let now = 100 * SECOND;
    let late = message(
        5,
        1,
        0,
        &[
            hello(),
            Frame::Open {
                stream: 0,
                protocol: 1,
            },
        ],
    );
    server.on_call(9, route(1), message(5, 1, 1, &[hello(), lost_first()]), now);
    assert_eq!(server.on_call(9, route(1), late, now), refused());
    assert!(server.events.is_empty());
}

#[test]
fn a_wrong_key_is_refused_in_the_end() {
    let mut sim = Sim::new(71, Link::default());
    sim.client = ClientCore::new(Psk::from_bytes([6; 32]), Limits::default(), ids(71));
    let task = sim.start(protocol::COUNT, vec![1]);
    let took = sim.run_tasks(60 * SECOND);
    assert_eq!(sim.tasks[task].end, Some(Err(Error::Refused)));
    assert!(took < 15 * SECOND, "{took:?}");
}

/// Whoever sent it: what is longer than a message may be is none, neither as a call nor as a reply.
#[test]
fn an_overlong_message_is_refused() {
    let now = 100 * SECOND;
    for (pongs, in_order) in [(0, true), (8_000, false)] {
        let padded = |session, number, frame: &Frame, direction| {
            let mut builder = Builder::new(session, number, usize::MAX);
            for frame in std::iter::once(frame).chain(vec![&Frame::Pong { nonce: 77 }; pongs]) {
                assert!(builder.push(frame));
            }
            let keys = Keys::derive(&Psk::from_bytes([5; 32]), session, route(1));
            let message: Bytes = builder.seal(&keys, direction).into();
            assert_eq!(message.len() <= crate::MAX_MESSAGE, in_order);
            message
        };
        let mut client = ClientCore::new(Psk::from_bytes([5; 32]), Limits::default(), ids(72));
        client.set_route(route(1), now);
        let stream = client.open(protocol::COUNT, now).unwrap();
        let call = client.poll(now).unwrap();
        let header = Header::parse(&call.message).unwrap();
        let data = Frame::Data {
            stream,
            offset: 0,
            fin: false,
            bytes: Bytes::from_static(b"x"),
        };
        let reply = padded(header.session, header.number, &data, Direction::Reply);
        client.on_reply(call.number, reply, now + MS);
        let came = client.streams.read(stream, 10, now + MS).unwrap();
        assert_eq!(came.is_some(), in_order);

        let (mut server, _) = server(Limits::default());
        let call = padded(SessionId::from_bytes([1; 16]), 0, &hello(), Direction::Call);
        let answer = server.on_call(9, route(1), call, now);
        assert_eq!(answer != refused(), in_order);
    }
}

#[test]
fn sessions_are_bounded() {
    let (mut server, _) = server(Limits {
        sessions: 2,
        ..Limits::default()
    });
    let now = 100 * SECOND;
    for session in 1..=5 {
        let replies = server.on_call(
            9,
            route(1),
            message(
                5,
                session,
                0,
                &[
                    hello(),
                    Frame::Open {
                        stream: 0,
                        protocol: 1,
                    },
                ],
            ),
            now,
        );
        assert_eq!(replies.len(), 1);
        assert_eq!(server.session_count(), usize::from(session).min(2));
    }
    let mut sim = Sim::with_limits(
        72,
        Link::default(),
        Limits::default(),
        Limits {
            sessions: 0,
            ..Limits::default()
        },
    );
    let task = sim.start(protocol::COUNT, vec![1]);
    sim.run_tasks(5 * SECOND);
    assert_eq!(sim.tasks[task].end, Some(Err(Error::Busy)));
}

/// A first call that opens a stream and may be held.
fn first_call(psk: u8, session: u8, on: u8) -> Bytes {
    let id = SessionId::from_bytes([session; 16]);
    let mut builder = Builder::new(id, 0, crate::MAX_MESSAGE);
    for frame in [
        hello(),
        Frame::Ask {
            reply_max: 32_768,
            hold_ms: 500,
            settled: 0,
        },
        Frame::Open {
            stream: 0,
            protocol: 1,
        },
    ] {
        assert!(builder.push(&frame));
    }
    let keys = Keys::derive(&Psk::from_bytes([psk; 32]), id, route(on));
    builder.seal(&keys, Direction::Call).into()
}

fn closes(reply: &[u8]) -> Option<u64> {
    let frames = Frame::decode_all(&reply.to_vec().into()).ok()?;
    frames.iter().find_map(|frame| match frame {
        Frame::Close { code } => Some(*code),
        _ => None,
    })
}

#[test]
fn whoever_fills_one_listener_keeps_nobody_away_from_another() {
    let (mut server, crowded) = server(Limits {
        sessions: 8,
        ..Limits::default()
    });
    let other = server.listen(Psk::from_bytes([6; 32]));
    server.add_route(other, route(2));
    let now = 100 * SECOND;
    for session in 1..=8 {
        server.on_call(
            u64::from(session),
            route(1),
            first_call(5, session, 1),
            now + u32::from(session) * MS,
        );
    }
    let now = now + SECOND;
    for session in 11..=14 {
        let replies = server.on_call(9, route(2), first_call(6, session, 2), now);
        assert!(
            replies.iter().all(|(_, reply)| closes(reply).is_none()),
            "one of the first listener's gives way"
        );
        assert_eq!(server.session_count(), 8);
    }
    for session in 1..=4 {
        let key = (crowded, SessionId::from_bytes([session; 16]));
        assert!(
            server
                .with(&key, |streams| streams.write(0, b"x", now).is_err())
                .unwrap_or(true),
            "the longest silent ones went"
        );
    }
    // Each has its half, and the sessions of both are in use.
    for (psk, on) in [(5, 1), (6, 2)] {
        let replies = server.on_call(9, route(on), first_call(psk, 20 + on, on), now);
        assert_eq!(closes(&replies[0].1), Some(2));
    }
    // What is silent gives way also to another of its own listener; what is in use does not.
    let now = now + 6 * SECOND;
    for session in 12..=14 {
        server.on_call(9, route(2), again(6, session, 2), now);
    }
    let replies = server.on_call(30, route(2), first_call(6, 30, 2), now);
    assert!(replies.iter().all(|(token, _)| *token != 30), "it is held");
    let replies = server.on_call(9, route(2), again(6, 11, 2), now);
    assert_eq!(closes(&replies[0].1), Some(1), "it is told that it is over");
    let replies = server.on_call(9, route(2), first_call(6, 31, 2), now);
    assert_eq!(closes(&replies[0].1), Some(2));
    assert_eq!(server.session_count(), 8);
}

/// A second call.
fn again(psk: u8, session: u8, on: u8) -> Bytes {
    let id = SessionId::from_bytes([session; 16]);
    let keys = Keys::derive(&Psk::from_bytes([psk; 32]), id, route(on));
    Builder::new(id, 1, crate::MAX_MESSAGE)
        .seal(&keys, Direction::Call)
        .into()
}

#[test]
fn a_session_without_streams_gives_way_first() {
    let (mut server, listener) = server(Limits {
        sessions: 2,
        ..Limits::default()
    });
    let now = 100 * SECOND;
    server.on_call(1, route(1), first_call(5, 1, 1), now);
    let ask = Frame::Ask {
        reply_max: 32_768,
        hold_ms: 500,
        settled: 0,
    };
    let idle = message(5, 2, 0, &[hello(), ask]);
    assert_eq!(server.on_call(2, route(1), idle, now + 60 * SECOND), []);
    let replies = server.on_call(3, route(1), first_call(5, 3, 1), now + 60 * SECOND);
    assert_eq!(replies.len(), 1, "its call that was held is answered");
    assert_eq!((replies[0].0, closes(&replies[0].1)), (2, Some(1)));
    let key = |session| (listener, SessionId::from_bytes([session; 16]));
    assert!(server.with(&key(2), |_| ()).is_none());
    assert!(server.with(&key(1), |_| ()).is_some());
}

#[test]
fn streams_are_bounded_on_both_sides() {
    let few = Limits {
        streams_per_session: 3,
        ..Limits::default()
    };
    let mut sim = Sim::with_limits(73, Link::default(), Limits::default(), few.clone());
    for _ in 0..5 {
        sim.start(protocol::DEAF, vec![1; 10]);
    }
    sim.run(5 * SECOND, |sim| {
        sim.tasks
            .iter()
            .filter(|task| task.end == Some(Err(Error::StreamRefused)))
            .count()
            == 2
    });
    let mut sim = Sim::with_limits(74, Link::default(), few, Limits::default());
    for _ in 0..3 {
        sim.start(protocol::DEAF, vec![1; 10]);
    }
    let now = sim.now;
    assert_eq!(
        sim.client.open(1, now),
        Err(Error::TooManyStreams { limit: 3 })
    );
}

#[test]
fn opens_per_second_are_bounded() {
    let limits = Limits {
        opens_per_second: 5,
        ..Limits::default()
    };
    let mut sim = Sim::with_limits(75, Link::default(), Limits::default(), limits);
    for _ in 0..20 {
        sim.start(protocol::COUNT, vec![1; 10]);
    }
    sim.run_tasks(10 * SECOND);
    let refused = sim
        .tasks
        .iter()
        .filter(|task| task.end == Some(Err(Error::StreamRefused)))
        .count();
    assert_eq!(refused, 15);
    assert_eq!(
        sim.tasks
            .iter()
            .filter(|task| task.end == Some(Ok(())))
            .count(),
        5
    );
}

#[test]
fn held_replies_are_few_and_short() {
    let (mut server, _) = server(Limits::default());
    let now = 100 * SECOND;
    let ask = || Frame::Ask {
        reply_max: 32_768,
        hold_ms: 60_000,
        settled: 0,
    };
    let mut answered = 0;
    for session in 1..=9 {
        answered += server
            .on_call(
                u64::from(session),
                route(1),
                message(5, session, 0, &[hello(), ask()]),
                now,
            )
            .len();
        assert!(server.held_count() <= 4);
    }
    assert_eq!(answered, 5);
    assert_eq!(server.poll(now + 499 * MS), []);
    assert_eq!(server.poll(now + 500 * MS).len(), 4);
    assert_eq!(server.held_count(), 0);
}

#[test]
fn a_session_with_many_held_replies_gives_way() {
    let (mut server, _) = server(Limits::default());
    let now = 100 * SECOND;
    let ask = || Frame::Ask {
        reply_max: 32_768,
        hold_ms: 60_000,
        settled: 0,
    };
    for number in 0..4 {
        assert_eq!(
            server.on_call(
                number,
                route(1),
                message(5, 1, number, &[hello(), ask()]),
                now
            ),
            []
        );
    }
    let replies = server.on_call(7, route(1), message(5, 2, 0, &[hello(), ask()]), now);
    assert_eq!(
        replies.iter().map(|(token, _)| *token).collect::<Vec<_>>(),
        [0],
        "the oldest of the greedy one"
    );
}

#[test]
fn a_node_that_holds_too_much_puts_calls_off() {
    let limits = Limits {
        buffered_bytes: 1 << 20,
        ..Limits::default()
    };
    let mut sim = Sim::with_limits(76, Link::default(), Limits::default(), limits);
    for _ in 0..3 {
        sim.start(protocol::DEAF, vec![1; 2 << 20]);
    }
    sim.run_for(20 * SECOND);
    let key = (sim.listener, sim.client.id());
    let held = sim
        .server
        .with(&key, |streams| streams.recv_held())
        .unwrap();
    assert!(held <= (1 << 20) + 32_768, "{held}");
}

/// Otherwise nothing of it could ever be read.
#[test]
fn what_fills_a_gap_is_not_put_off() {
    let (mut server, listener) = server(Limits {
        buffered_bytes: 16 * 1024,
        ..Limits::default()
    });
    let open = Frame::Open {
        stream: 0,
        protocol: 1,
    };
    let data = |offset: u64, len: usize| Frame::Data {
        stream: 0,
        offset,
        fin: false,
        bytes: vec![7; len].into(),
    };
    let mut number = 0;
    let mut call = |server: &mut ServerCore, frames: &[Frame]| {
        number += 1;
        let call = message(5, 1, number, frames);
        let replies = server.on_call(number, route(1), call, 100 * SECOND);
        Frame::decode_all(&replies[0].1.clone().into()).unwrap()
    };
    // The first thousand bytes got lost.
    call(&mut server, &[hello(), open, data(1_000, 8_000)]);
    let busy = [Frame::Busy { wait_ms: 100 }];
    assert_ne!(call(&mut server, &[data(9_000, 500)]), busy);
    assert_eq!(call(&mut server, &[data(9_500, 500)]), busy);
    assert_ne!(call(&mut server, &[data(0, 1_000)]), busy);
    let key = (listener, SessionId::from_bytes([1; 16]));
    let mut read = 0;
    while let Some(bytes) = server
        .with(&key, |streams| streams.read(0, usize::MAX, 100 * SECOND))
        .unwrap()
        .unwrap()
    {
        read += bytes.len();
    }
    assert_eq!(read, 9_500);
    assert_ne!(call(&mut server, &[data(9_500, 500)]), busy);
}

#[test]
fn a_proved_peer_that_breaks_the_rules_is_cut_off() {
    let broken = [
        vec![Frame::Open {
            stream: 1,
            protocol: 1,
        }],
        vec![Frame::Data {
            stream: 4,
            offset: 0,
            fin: false,
            bytes: Bytes::from_static(b"x"),
        }],
        vec![
            Frame::Open {
                stream: 0,
                protocol: 1,
            },
            Frame::Data {
                stream: 0,
                offset: 1 << 40,
                fin: false,
                bytes: Bytes::from_static(b"x"),
            },
        ],
        vec![
            Frame::Open {
                stream: 0,
                protocol: 1,
            },
            Frame::Data {
                stream: 0,
                offset: 0,
                fin: true,
                bytes: Bytes::from_static(b"x"),
            },
            Frame::Data {
                stream: 0,
                offset: 0,
                fin: false,
                bytes: Bytes::from_static(b"xyz"),
            },
        ],
    ];
    for frames in broken {
        let (mut server, _) = server(Limits::default());
        let frames: Vec<Frame> = [hello()].into_iter().chain(frames).collect();
        let replies = server.on_call(9, route(1), message(5, 1, 0, &frames), 100 * SECOND);
        let frames = Frame::decode_all(&replies[0].1.clone().into()).unwrap();
        assert_eq!(frames, [Frame::Close { code: 3 }]);
        assert_eq!(server.session_count(), 0);
    }
}

#[test]
fn a_held_call_that_was_named_lost_carries_nothing() {
    let (mut server, listener) = server(Limits::default());
    let now = 100 * SECOND;
    let ask = |settled| Frame::Ask {
        reply_max: 32_768,
        hold_ms: 500,
        settled,
    };
    let open = Frame::Open {
        stream: 0,
        protocol: 1,
    };
    assert_eq!(
        server.on_call(0, route(1), message(5, 1, 0, &[hello(), ask(0), open]), now),
        []
    );
    // Its client gives it up; the next call is held in its place.
    let replies = server.on_call(1, route(1), message(5, 1, 1, &[ask(0), lost_first()]), now);
    assert_eq!(replies, [(0, REFUSAL.to_vec())]);
    let key = (listener, SessionId::from_bytes([1; 16]));
    server
        .with(&key, |streams| streams.write(0, &[7; 40_000], now))
        .unwrap()
        .unwrap();
    let replies = server.poll(now);
    assert_eq!(
        replies.iter().map(|(token, _)| *token).collect::<Vec<_>>(),
        [1]
    );
}
