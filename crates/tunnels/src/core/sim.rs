//! A pair of cores with a bad network between them, in virtual time. Every run follows from its seed.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use bytes::Bytes;

use super::Now;
use super::client::{CallFailure, ClientCore, RouteNeed};
use super::codec::RouteTag;
use super::server::{ListenerId, ServerCore, SessionKey};
use super::streams::Event;
use crate::{Error, Limits, Psk, SessionId};

pub const MS: Duration = Duration::from_millis(1);

/// SplitMix64.
#[derive(Clone)]
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn chance(&mut self, percent: u64) -> bool {
        self.next() % 100 < percent
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }
}

/// What the server's application does with a stream, by protocol number.
pub mod protocol {
    /// Reads everything, answers with the number of bytes.
    pub const COUNT: u16 = 1;
    /// Reads eight bytes, answers with as many bytes as they say.
    pub const SOURCE: u16 = 2;
    /// Answers with what it reads.
    pub const ECHO: u16 = 3;
    /// Stops with code 7 after the first bytes.
    pub const STOP: u16 = 4;
    /// Answers 10,000 bytes and then resets with code 9.
    pub const RESET: u16 = 5;
    /// Never reads.
    pub const DEAF: u16 = 6;
    /// Drops both halves at once.
    pub const DROP: u16 = 7;
    /// As [`COUNT`], but does not read before [`Sim::awake`](super::Sim::awake).
    pub const SLEEPER: u16 = 8;
}

#[derive(Clone)]
pub struct Link {
    /// One way.
    pub latency: Duration,
    pub jitter: Duration,
    /// In percent.
    pub lose_calls: u64,
    pub lose_replies: u64,
    pub duplicate: u64,
    pub duplicate_replies: u64,
    /// Replies that arrive later than our timer but before Veilid's, in percent.
    pub late: u64,
    /// Replies that are damaged, in percent.
    pub junk: u64,
    /// Replies that arrive longer than Veilid allows, in percent.
    pub oversize: u64,
    /// How long the server's application thinks before it answers.
    pub think: Duration,
    /// Bytes per second, each way.
    pub rate: Option<u64>,
    /// What waits for longer than this before a slow link is dropped.
    pub queue: Duration,
    /// Datagrams of which one is lost in 1,000; a message is lost with any of its own.
    pub lose_datagrams: u64,
}

impl Default for Link {
    fn default() -> Self {
        Link {
            latency: 20 * MS,
            jitter: Duration::ZERO,
            lose_calls: 0,
            lose_replies: 0,
            duplicate: 0,
            duplicate_replies: 0,
            late: 0,
            junk: 0,
            oversize: 0,
            think: Duration::ZERO,
            rate: None,
            queue: 400 * MS,
            lose_datagrams: 0,
        }
    }
}

/// Bytes of a message in one datagram, and what routing adds to a message.
const DATAGRAM: usize = 1_200;
const ROUTING: usize = 400;

enum Ev {
    Call {
        number: u64,
        route: RouteTag,
        message: Bytes,
    },
    Reply {
        number: u64,
        message: Bytes,
    },
    Fail {
        number: u64,
        failure: CallFailure,
    },
    Route,
}

/// A stream as the client's application sees it.
pub struct Task {
    pub id: u64,
    pub send: Vec<u8>,
    pub sent: usize,
    pub finish: bool,
    pub reading: bool,
    pub got: Vec<u8>,
    pub end: Option<Result<(), Error>>,
    pub send_end: Option<Error>,
    pub done_at: Option<Now>,
}

struct App {
    key: SessionKey,
    id: u64,
    protocol: u16,
    input: Vec<u8>,
    input_ended: bool,
    output: Vec<u8>,
    written: usize,
    answer_at: Option<Now>,
    send_open: bool,
    recv_open: bool,
}

pub struct Sim {
    pub now: Now,
    pub rng: Rng,
    pub link: Link,
    pub client: ClientCore,
    pub server: ServerCore,
    pub listener: ListenerId,
    reply_max: usize,
    pub tasks: Vec<Task>,
    apps: Vec<App>,
    events: BTreeMap<(Now, u64), Ev>,
    seq: u64,
    tokens: BTreeMap<u64, u64>,
    next_token: u64,
    /// Routes that lead to the server.
    pub alive: HashSet<RouteTag>,
    /// What the client is told when it asks for a route.
    pub published: Option<RouteTag>,
    asked_route: bool,
    pub calls: u64,
    pub route_requests: u64,
    /// When the link is free again, for calls and for replies.
    free: [Now; 2],
    /// Errors of the server's streams.
    pub app_errors: Vec<Error>,
    /// Whether the server's sleepers read.
    pub awake: bool,
}

pub fn route(n: u8) -> RouteTag {
    RouteTag([n; 32])
}

pub fn ids(seed: u64) -> Box<dyn FnMut() -> SessionId + Send> {
    let mut rng = Rng(seed ^ 0xfeed);
    Box::new(move || {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&rng.next().to_le_bytes());
        id[8..].copy_from_slice(&rng.next().to_le_bytes());
        SessionId::from_bytes(id)
    })
}

impl Sim {
    pub fn new(seed: u64, link: Link) -> Self {
        Sim::with_limits(seed, link, Limits::default(), Limits::default())
    }

    pub fn with_limits(seed: u64, link: Link, client: Limits, server: Limits) -> Self {
        let psk = Psk::from_bytes([5; 32]);
        let mut core = ServerCore::new(server);
        let listener = core.listen(psk.clone());
        core.add_route(listener, route(1));
        Sim {
            now: Duration::from_secs(1_000),
            rng: Rng(seed),
            link,
            reply_max: client.max_message,
            client: ClientCore::new(psk, client, ids(seed)),
            server: core,
            listener,
            tasks: Vec::new(),
            apps: Vec::new(),
            events: BTreeMap::new(),
            seq: 0,
            tokens: BTreeMap::new(),
            next_token: 0,
            alive: HashSet::from([route(1)]),
            published: Some(route(1)),
            asked_route: false,
            calls: 0,
            route_requests: 0,
            free: [Now::ZERO; 2],
            app_errors: Vec::new(),
            awake: false,
        }
    }

    /// How long the next reply would wait before a slow link.
    pub fn queued(&self) -> Duration {
        self.free[1].saturating_sub(self.now)
    }

    /// How long a message is under way; `None` when it is lost.
    fn carry(&mut self, way: usize, len: usize) -> Option<Duration> {
        let len = len + ROUTING;
        let mut wait = Duration::ZERO;
        if let Some(rate) = self.link.rate {
            let start = self.free[way].max(self.now);
            if start - self.now > self.link.queue {
                return None;
            }
            self.free[way] = start + Duration::from_secs_f64(len as f64 / rate as f64);
            wait = self.free[way] - self.now;
        }
        let lost = self.link.lose_datagrams;
        if lost > 0 && (0..len.div_ceil(DATAGRAM)).any(|_| self.rng.next() % 1_000 < lost) {
            return None;
        }
        Some(wait + self.delay())
    }

    /// Opens a stream, sends `data` and the end, and reads the answer. Returns the number of the task.
    pub fn start(&mut self, protocol: u16, data: Vec<u8>) -> usize {
        let id = self.client.open(protocol, self.now).unwrap();
        self.tasks.push(Task {
            id,
            send: data,
            sent: 0,
            finish: true,
            reading: true,
            got: Vec::new(),
            end: None,
            send_end: None,
            done_at: None,
        });
        self.tasks.len() - 1
    }

    /// What a [`protocol::SOURCE`] stream answers.
    pub fn source(id: u64, len: usize) -> Vec<u8> {
        Rng(id ^ 0xabcd).bytes(len)
    }

    fn schedule(&mut self, at: Now, event: Ev) {
        self.seq += 1;
        self.events.insert((at, self.seq), event);
    }

    fn delay(&mut self) -> Duration {
        let jitter = u64::try_from(self.link.jitter.as_micros()).unwrap();
        self.link.latency
            + Duration::from_micros(if jitter == 0 {
                0
            } else {
                self.rng.next() % jitter
            })
    }

    /// Brings a reply that the test got from the server on its way.
    pub fn answer(&mut self, token: u64, message: Vec<u8>) {
        self.reply(token, message);
    }

    fn reply(&mut self, token: u64, mut message: Vec<u8>) {
        assert!(
            message.len() <= self.reply_max,
            "reply of {} bytes to a call that allows {}",
            message.len(),
            self.reply_max
        );
        let Some(number) = self.tokens.remove(&token) else {
            panic!("answered twice")
        };
        if self.rng.chance(self.link.lose_replies) {
            return;
        }
        if self.rng.chance(self.link.junk) {
            let at = usize::try_from(self.rng.next()).unwrap() % message.len();
            message[at] ^= 1 << (self.rng.next() % 8);
            if self.rng.chance(30) {
                message.truncate(at);
            }
        }
        if self.rng.chance(self.link.oversize) {
            message.resize(crate::MAX_MESSAGE + 1, 0);
        }
        let message = Bytes::from(message);
        let times = 1 + usize::from(self.rng.chance(self.link.duplicate_replies));
        for _ in 0..times {
            let Some(mut delay) = self.carry(1, message.len()) else {
                continue;
            };
            if self.rng.chance(self.link.late) {
                delay += 3_500 * MS;
            }
            let message = message.clone();
            self.schedule(self.now + delay, Ev::Reply { number, message });
        }
    }

    fn pump(&mut self) {
        loop {
            let mut progress = false;
            while let Some(call) = self.client.poll(self.now) {
                progress = true;
                self.calls += 1;
                assert!(
                    call.message.len() <= crate::MAX_MESSAGE,
                    "call of {} bytes",
                    call.message.len()
                );
                let tag = self.published_to_client();
                self.schedule(
                    self.now + 5_000 * MS,
                    Ev::Fail {
                        number: call.number,
                        failure: CallFailure::Timeout,
                    },
                );
                let times = if self.rng.chance(self.link.duplicate) {
                    2
                } else {
                    1
                };
                for _ in 0..times {
                    if self.rng.chance(self.link.lose_calls) {
                        continue;
                    }
                    if let Some(delay) = self.carry(0, call.message.len()) {
                        let at = self.now + delay;
                        self.schedule(
                            at,
                            Ev::Call {
                                number: call.number,
                                route: tag,
                                message: call.message.clone().into(),
                            },
                        );
                    }
                }
            }
            if self.client.route_need().is_some() && !self.asked_route {
                self.asked_route = true;
                self.route_requests += 1;
                let wait = if self.client.route_need() == Some(RouteNeed::Missing)
                    && self.route_requests == 1
                {
                    Duration::ZERO
                } else {
                    400 * MS
                };
                self.schedule(self.now + wait, Ev::Route);
            }
            for (token, reply) in self.server.poll(self.now) {
                progress = true;
                self.reply(token, reply);
            }
            progress |= self.applications();
            if !progress {
                return;
            }
        }
    }

    fn published_to_client(&self) -> RouteTag {
        self.client.current_route().unwrap()
    }

    fn applications(&mut self) -> bool {
        let mut progress = false;
        self.client.streams.events.clear();
        for task in &mut self.tasks {
            let streams = &mut self.client.streams;
            while task.sent < task.send.len() && task.send_end.is_none() {
                match streams.write(task.id, &task.send[task.sent..], self.now) {
                    Ok(0) => break,
                    Ok(n) => {
                        task.sent += n;
                        progress = true;
                    }
                    Err(error) => task.send_end = Some(error),
                }
            }
            if task.finish && task.sent == task.send.len() && task.send_end.is_none() {
                streams.drop_send(task.id, self.now);
                task.finish = false;
                progress = true;
            }
            while task.reading && task.end.is_none() {
                match streams.read(task.id, 50_000, self.now) {
                    Ok(None) => break,
                    Ok(Some(bytes)) if bytes.is_empty() => task.end = Some(Ok(())),
                    Ok(Some(bytes)) => task.got.extend_from_slice(&bytes),
                    Err(error) => task.end = Some(Err(error)),
                }
                progress = true;
            }
            if task.end.is_some() && task.done_at.is_none() {
                task.done_at = Some(self.now);
                streams.drop_recv(task.id, self.now);
                if !task.finish || task.send_end.is_some() {
                    streams.drop_send(task.id, self.now);
                }
            }
        }
        for (key, event) in std::mem::take(&mut self.server.events) {
            progress = true;
            if let Event::Opened(id) = event {
                self.server.accepted(self.listener);
                let protocol = self
                    .server
                    .with(&key, |streams| streams.protocol(id))
                    .unwrap()
                    .unwrap();
                self.apps.push(App {
                    key,
                    id,
                    protocol,
                    input: Vec::new(),
                    input_ended: false,
                    output: Vec::new(),
                    written: 0,
                    answer_at: None,
                    send_open: true,
                    recv_open: true,
                });
            }
        }
        let mut apps = std::mem::take(&mut self.apps);
        apps.retain_mut(|app| {
            progress |= self.application(app);
            app.send_open || app.recv_open
        });
        self.apps = apps;
        progress
    }

    fn application(&mut self, app: &mut App) -> bool {
        let (now, id, think) = (self.now, app.id, self.link.think);
        let reads = match app.protocol {
            protocol::DEAF => false,
            protocol::SLEEPER => self.awake,
            _ => true,
        };
        let mut progress = false;
        let errors = &mut self.app_errors;
        self.server.with(&app.key, |streams| {
            if app.protocol == protocol::DROP {
                app.recv_open = false;
                app.send_open = false;
                streams.drop_recv(id, now);
                streams.drop_send(id, now);
                progress = true;
                return;
            }
            while app.recv_open && !app.input_ended && reads {
                match streams.read(id, 9_999, now) {
                    Ok(None) => break,
                    Ok(Some(bytes)) if bytes.is_empty() => app.input_ended = true,
                    Ok(Some(bytes)) if app.protocol == protocol::ECHO => {
                        app.output.extend_from_slice(&bytes)
                    }
                    Ok(Some(bytes)) => {
                        app.input.extend_from_slice(&bytes);
                        if app.protocol == protocol::STOP {
                            streams.stop(id, 7, now);
                            streams.drop_recv(id, now);
                            app.recv_open = false;
                        }
                    }
                    Err(error) => {
                        errors.push(error);
                        app.input_ended = true;
                        app.protocol = protocol::DROP;
                    }
                }
                progress = true;
            }
            if app.input_ended && app.answer_at.is_none() {
                app.answer_at = Some(now + think);
                app.output.extend(match app.protocol {
                    protocol::COUNT | protocol::SLEEPER => {
                        (app.input.len() as u64).to_be_bytes().to_vec()
                    }
                    protocol::SOURCE => Sim::source(
                        id,
                        usize::try_from(u64::from_be_bytes(app.input[..].try_into().unwrap()))
                            .unwrap(),
                    ),
                    protocol::RESET => vec![1; 10_000],
                    _ => Vec::new(),
                });
            }
            let may_write =
                app.protocol == protocol::ECHO || app.answer_at.is_some_and(|at| at <= now);
            while app.send_open && may_write && app.written < app.output.len() {
                let end = app.output.len().min(app.written + 16_384);
                match streams.write(id, &app.output[app.written..end], now) {
                    Ok(0) => break,
                    Ok(n) => app.written += n,
                    Err(error) => {
                        errors.push(error);
                        streams.drop_send(id, now);
                        app.send_open = false;
                    }
                }
                progress = true;
            }
            if app.send_open
                && app.answer_at.is_some_and(|at| at <= now)
                && app.written == app.output.len()
            {
                if app.protocol == protocol::RESET {
                    streams.reset(id, 9, now);
                }
                streams.drop_send(id, now);
                app.send_open = false;
                progress = true;
            }
            if app.input_ended && app.recv_open {
                streams.drop_recv(id, now);
                app.recv_open = false;
                progress = true;
            }
        });
        progress
    }

    /// Goes on to the next thing that happens, but not past `end`. `false` when nothing ever will.
    fn step(&mut self, end: Now) -> bool {
        self.pump();
        let mut next = self.events.keys().next().map(|&(at, _)| at);
        let thinking = self
            .apps
            .iter()
            .filter_map(|app| app.answer_at.filter(|&at| at > self.now))
            .min();
        for wake in [
            self.client.next_wake(self.now),
            self.server.next_wake(),
            thinking,
        ]
        .into_iter()
        .flatten()
        {
            next = Some(next.map_or(wake, |next| next.min(wake)));
        }
        let Some(next) = next else { return false };
        // A wake that has nothing to do must not stop the clock.
        self.now = next
            .max(self.now + Duration::from_micros(1))
            .min(end.max(self.now));
        while let Some((&(at, seq), _)) = self.events.iter().next() {
            if at > self.now {
                break;
            }
            let event = self.events.remove(&(at, seq)).unwrap();
            self.happen(event);
        }
        true
    }

    fn happen(&mut self, event: Ev) {
        match event {
            Ev::Call {
                number,
                route,
                message,
            } => {
                if !self.alive.contains(&route) {
                    return;
                }
                self.next_token += 1;
                let token = self.next_token;
                self.tokens.insert(token, number);
                for (token, reply) in self.server.on_call(token, route, message, self.now) {
                    self.reply(token, reply);
                }
            }
            Ev::Reply { number, message } => self.client.on_reply(number, message, self.now),
            Ev::Fail { number, failure } => self.client.on_failure(number, failure, self.now),
            Ev::Route => {
                self.asked_route = false;
                match self.published {
                    Some(route) => self.client.set_route(route, self.now),
                    None => self.client.no_route("nothing published".into()),
                }
            }
        }
    }

    /// Runs until `done`, or fails after `limit`. Returns how long it took.
    pub fn run(&mut self, limit: Duration, mut done: impl FnMut(&mut Sim) -> bool) -> Duration {
        let start = self.now;
        loop {
            self.pump();
            if done(self) {
                return self.now - start;
            }
            assert!(
                self.now - start < limit,
                "not done after {:?}",
                self.now - start
            );
            assert!(self.step(Now::MAX), "stuck after {:?}", self.now - start);
        }
    }

    /// Runs for a time, whatever happens.
    pub fn run_for(&mut self, time: Duration) {
        let end = self.now + time;
        self.pump();
        while self.now < end && self.step(end) {}
        self.now = end;
        self.pump();
    }

    pub fn run_tasks(&mut self, limit: Duration) -> Duration {
        self.run(limit, |sim| sim.tasks.iter().all(|task| task.end.is_some()))
    }
}
