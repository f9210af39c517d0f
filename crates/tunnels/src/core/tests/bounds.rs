//! What is held for readers that do not read, and that everything comes when they do.

use super::super::codec::{Builder, Direction, Frame, Keys};
use super::*;
use crate::{Psk, SessionId};

const SECOND: Duration = Duration::from_secs(1);
const MIB: usize = 1 << 20;
const STREAMS: usize = 64;
/// What a session may hold beside the windows that all streams have.
const SESSION: usize = 32 * MIB;
const WINDOW: usize = super::super::INITIAL_WINDOW;

fn ask(len: usize) -> Vec<u8> {
    (len as u64).to_be_bytes().to_vec()
}

/// Streams of a session whose readers do not read.
fn unread(sim: &mut Sim, streams: usize, len: usize) {
    for _ in 0..streams {
        let task = sim.start(protocol::SOURCE, ask(len));
        sim.tasks[task].reading = false;
    }
    sim.run_for(20 * SECOND);
}

fn assert_bounded(held: usize, streams: usize) {
    println!("{:.1} MiB held", held as f64 / MIB as f64);
    assert!(held <= SESSION + streams * WINDOW, "{held}");
    assert!(held >= SESSION / 4, "not much was sent: {held}");
}

#[test]
fn what_a_client_holds_is_bounded_and_all_of_it_comes_in_the_end() {
    let mut sim = Sim::new(90, Link::default());
    unread(&mut sim, STREAMS, MIB);
    assert_bounded(sim.client.streams.recv_held(), STREAMS);
    for task in &mut sim.tasks {
        task.reading = true;
    }
    let took = sim.run_tasks(20 * SECOND);
    println!("read within {took:.1?}");
    for task in &sim.tasks {
        assert!(task.got == Sim::source(task.id, MIB), "{} differs", task.id);
    }
}

#[test]
fn what_a_server_holds_is_bounded_and_all_of_it_comes_in_the_end() {
    let mut sim = Sim::new(91, Link::default());
    for _ in 0..STREAMS {
        sim.start(protocol::SLEEPER, vec![1; MIB]);
    }
    sim.run_for(20 * SECOND);
    let key = (sim.listener, sim.client.id());
    let held = sim.server.with(&key, |streams| streams.recv_held());
    assert_bounded(held.unwrap(), STREAMS);
    sim.awake = true;
    let took = sim.run_tasks(20 * SECOND);
    println!("read within {took:.1?}");
    for task in &sim.tasks {
        assert_eq!(task.got, (MIB as u64).to_be_bytes());
    }
}

/// As many as a session may have, so that there is little more for each than the window that all have. One beside them that is read goes on.
#[test]
fn the_most_streams_that_a_session_may_have_are_bounded_as_well() {
    const MOST: usize = 1_000;
    let mut sim = Sim::new(92, Link::default());
    unread(&mut sim, MOST, 5 * WINDOW);
    assert_bounded(sim.client.streams.recv_held(), MOST);
    let task = sim.start(protocol::SOURCE, ask(MIB));
    let took = sim.run(60 * SECOND, |sim| sim.tasks[task].end.is_some());
    println!("1 MiB beside them within {took:.1?}");
    assert!(sim.tasks[task].got == Sim::source(sim.tasks[task].id, MIB));
    // Those that are read at last go on as well.
    for task in &mut sim.tasks {
        task.reading = true;
    }
    let took = sim.run_tasks(60 * SECOND);
    println!("read within {took:.1?}");
}

/// A stream whose window was small beside others is as fast as ever when they are gone.
#[test]
fn a_small_window_grows_when_there_is_room_again() {
    const LEN: usize = 8 * MIB;
    const HOGS: usize = 1_000;
    let link = Link {
        latency: 50 * MS,
        ..Link::default()
    };
    let download = |sim: &mut Sim| {
        let task = sim.start(protocol::SOURCE, ask(LEN));
        let took = sim.run(600 * SECOND, |sim| sim.tasks[task].end.is_some());
        assert!(sim.tasks[task].got == Sim::source(sim.tasks[task].id, LEN));
        took
    };
    let usual = download(&mut Sim::new(93, link.clone()));
    let mut sim = Sim::new(93, link);
    unread(&mut sim, HOGS, 5 * WINDOW);
    // One that is granted little while so many are there, and goes on without them.
    let task = sim.start(protocol::SOURCE, ask(LEN));
    sim.run_for(SECOND);
    let (had, now) = (sim.tasks[task].got.len(), sim.now);
    for other in 0..task {
        if sim.tasks[other].end.is_some() {
            continue;
        }
        sim.client.streams.drop_recv(sim.tasks[other].id, now);
        sim.tasks[other].end = Some(Ok(()));
    }
    let rest = sim.run(600 * SECOND, |sim| sim.tasks[task].end.is_some());
    println!("8 MiB: {usual:.1?} alone, after {had} bytes {rest:.1?} again");
    assert!(had < LEN / 2, "{had} bytes in a second");
    assert!(rest < 2 * usual, "{rest:?}");
}

/// Another session fills half of what the node may hold, with streams that nobody reads.
#[test]
fn a_session_that_holds_much_does_not_put_off_another() {
    const NODE: usize = 8 * MIB;
    let limits = Limits {
        buffered_bytes: NODE,
        ..Limits::default()
    };
    let mut sim = Sim::with_limits(94, Link::default(), Limits::default(), limits);
    let id = SessionId::from_bytes([9; 16]);
    let keys = Keys::derive(&Psk::from_bytes([5; 32]), id, route(1));
    let mut put_off = 0;
    for number in 0..500 {
        let stream = 2 * number;
        let mut builder = Builder::new(id, number, crate::MAX_MESSAGE);
        assert!(builder.push(&Frame::Hello { features: 0 }));
        assert!(builder.push(&Frame::Open {
            stream,
            protocol: protocol::DEAF,
        }));
        builder.push_data(stream, 0, false, (&[1; 32_000], &[]));
        let message = builder.seal(&keys, Direction::Call).into();
        let now = sim.now;
        for (_, reply) in sim.server.on_call(u64::MAX, route(1), message, now) {
            let frames = Frame::decode_all(&reply.into()).unwrap();
            put_off += usize::from(matches!(frames[..], [Frame::Busy { .. }]));
        }
    }
    let greedy = (sim.listener, id);
    let held = sim.server.with(&greedy, |streams| streams.recv_held());
    assert!(held.unwrap() <= NODE / 2 + 32_000, "{held:?}");
    assert!(put_off > 300, "{put_off}");
    let data = sim.rng.bytes(NODE);
    let task = sim.start(protocol::COUNT, data);
    let took = sim.run(60 * SECOND, |sim| sim.tasks[task].end.is_some());
    assert_eq!(sim.tasks[task].got, (NODE as u64).to_be_bytes());
    assert!(took < 2 * SECOND, "{took:?}");
}
