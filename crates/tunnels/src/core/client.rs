//! The side that makes the calls.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;

use super::codec::{Builder, Direction, Frame, Header, Keys, REFUSAL, RouteTag, Violation, close};
use super::ranges::RangeSet;
use super::rtt::Rtt;
use super::streams::{Due, Sent, Streams};
use super::{Now, Side};
use crate::{Error, Limits, Psk, SessionId};

mod pace;
use pace::Pace;

/// Calls that were given up but may still be answered, before the oldest are forgotten.
const MAX_LATE: usize = 128;
/// Ranges of lost calls named in one call.
const MAX_LOST_RANGES: usize = 64;
/// Answers of one byte in a row, before the other side counts as refusing us.
const MAX_REFUSALS: u32 = 6;
/// The room that we keep between our own timer and Veilid's.
const TIMER_MARGIN: Duration = Duration::from_millis(250);

/// Why a call brought no reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CallFailure {
    /// Nothing came in time.
    Timeout,
    /// The route does not lead anywhere (any more).
    NoRoute,
    /// This node could not send, for now.
    Local,
    /// This node will not send any more.
    Fatal(String),
}

/// Whether a route is wanted, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RouteNeed {
    /// There is work and no route (yet), or the one there was does not work.
    Missing,
    /// The route that there is has been silent, and may be dead.
    Silent,
}

/// A call to make.
#[derive(Debug)]
pub(crate) struct Transmit {
    pub number: u64,
    pub message: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CallState {
    InFlight,
    /// Declared lost; a reply is still welcome.
    Late,
}

#[derive(Debug)]
struct Call {
    state: CallState,
    sent_at: Now,
    expires: Now,
    session: SessionId,
    keys: Keys,
    cargo: Cargo,
    reply_max: u64,
    /// It was rather full.
    full: bool,
}

/// What a call carried that has to arrive.
#[derive(Debug, Clone, Default)]
struct Cargo {
    items: Vec<Sent>,
    lost: Vec<Range<u64>>,
    pings: Vec<u64>,
    closes: bool,
}

#[derive(Debug)]
enum Ping {
    Pending,
    Sent,
    Done(Result<Duration, Error>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Closing {
    Open,
    /// As soon as everything is delivered.
    Draining,
    /// To be said to the other side, if it knows us; how often it was tried.
    Saying(u8),
    Closed,
}

pub(crate) struct ClientCore {
    psk: Psk,
    limits: Limits,
    fresh_id: Box<dyn FnMut() -> SessionId + Send>,
    id: SessionId,
    pub streams: Streams,
    route: Option<(RouteTag, Keys)>,
    need: Option<RouteNeed>,
    /// No reply has proved yet that the other side knows the session.
    hello: bool,
    next_number: u64,
    /// Calls below were made under an earlier session id.
    first_number: u64,
    calls: BTreeMap<u64, Call>,
    in_flight: usize,
    /// Lost calls to be named, and those of which the other side may not have heard.
    lost_pending: RangeSet,
    lost_unconfirmed: RangeSet,
    pings: BTreeMap<u64, Ping>,
    next_nonce: u64,
    rtt: Rtt,
    pace: Pace,
    /// No call before this.
    not_before: Now,
    /// No call that only asks for data before this.
    next_poll: Now,
    /// The other side waits to hear that its reply arrived.
    settle_at: Option<Now>,
    refusals: u32,
    failures: u32,
    timeouts: u32,
    last_heard: Now,
    work_since: Option<Now>,
    no_route_reason: Option<String>,
    closing: Closing,
    /// Pings have changed.
    pub ping_events: bool,
}

impl ClientCore {
    pub fn new(psk: Psk, limits: Limits, mut fresh_id: Box<dyn FnMut() -> SessionId + Send>) -> Self {
        let pace = Pace::new(limits.calls_in_flight);
        ClientCore {
            psk,
            id: fresh_id(),
            fresh_id,
            streams: Streams::new(Side::Client, limits.clone()),
            limits,
            route: None,
            need: None,
            hello: true,
            next_number: 0,
            first_number: 0,
            calls: BTreeMap::new(),
            in_flight: 0,
            lost_pending: RangeSet::default(),
            lost_unconfirmed: RangeSet::default(),
            pings: BTreeMap::new(),
            next_nonce: 0,
            rtt: Rtt::default(),
            pace,
            not_before: Now::ZERO,
            next_poll: Now::ZERO,
            settle_at: None,
            refusals: 0,
            failures: 0,
            timeouts: 0,
            last_heard: Now::ZERO,
            work_since: None,
            no_route_reason: None,
            closing: Closing::Open,
            ping_events: false,
        }
    }

    pub fn id(&self) -> SessionId {
        self.id
    }

    // What the application does, apart from streams.

    pub fn open(&mut self, protocol: u16, now: Now) -> Result<u64, Error> {
        if self.closing != Closing::Open {
            return Err(Error::Closed);
        }
        self.renew_if_stale(now);
        self.streams.open(protocol, now)
    }

    pub fn start_ping(&mut self, now: Now) -> Result<u64, Error> {
        if self.closing != Closing::Open {
            return Err(Error::Closed);
        }
        self.renew_if_stale(now);
        let nonce = self.next_nonce;
        self.next_nonce += 1;
        self.pings.insert(nonce, Ping::Pending);
        Ok(nonce)
    }

    /// The result of a ping, once.
    pub fn take_ping(&mut self, nonce: u64) -> Option<Result<Duration, Error>> {
        match self.pings.get(&nonce) {
            Some(Ping::Done(_)) => match self.pings.remove(&nonce) {
                Some(Ping::Done(result)) => Some(result),
                _ => None,
            },
            Some(_) => None,
            None => Some(Err(Error::Closed)),
        }
    }

    pub fn cancel_ping(&mut self, nonce: u64) {
        self.pings.remove(&nonce);
    }

    /// Ends the session: at once, or when everything is delivered.
    pub fn close(&mut self, drain: bool) {
        match (drain, self.closing) {
            (true, Closing::Open) => self.closing = Closing::Draining,
            (false, Closing::Open | Closing::Draining) => {
                self.streams.fail_all(&Error::Closed);
                self.fail_pings(&Error::Closed);
                self.start_closing();
            }
            _ => {}
        }
    }

    pub fn is_closed(&self) -> bool {
        self.closing == Closing::Closed
    }

    // Routes.

    /// Whether a route should be looked for.
    pub fn route_need(&self) -> Option<RouteNeed> {
        if self.closing == Closing::Closed || !self.has_work() {
            return None;
        }
        if self.route.is_none() { Some(RouteNeed::Missing) } else { self.need }
    }

    /// Goes on over this route, which may be the same as before.
    pub fn set_route(&mut self, tag: RouteTag, now: Now) {
        self.need = None;
        self.timeouts = 0;
        self.no_route_reason = None;
        self.not_before = now;
        if self.route.as_ref().is_some_and(|(current, _)| *current == tag) {
            return;
        }
        self.route = Some((tag, Keys::derive(&self.psk, self.id, tag)));
        self.rtt = Rtt::default();
        self.pace.restart();
        self.next_poll = now;
        self.lose_all_in_flight(now);
    }

    /// The route is dead: nothing is sent before the next [`set_route`](Self::set_route).
    pub fn drop_route(&mut self, now: Now) {
        self.route = None;
        self.need = None;
        self.lose_all_in_flight(now);
        if matches!(self.closing, Closing::Saying(_)) {
            // Not worth a search: the other side forgets the session by itself.
            self.closing = Closing::Closed;
        }
    }

    /// No route was found, for this reason.
    pub fn no_route(&mut self, reason: String) {
        self.no_route_reason = Some(reason);
        // It is asked again, after the caller's pause.
        if self.route.is_some() {
            self.need = Some(RouteNeed::Silent);
        }
    }

    // The machine.

    fn has_work(&self) -> bool {
        matches!(self.closing, Closing::Saying(_))
            || self.streams.expects()
            || self.streams.has_pending()
            || !self.pings.values().all(|ping| matches!(ping, Ping::Done(_)))
    }

    /// The next call to make now, if any. To be called until it returns `None`, after every input and whenever [`next_wake`](Self::next_wake) has come.
    pub fn poll(&mut self, now: Now) -> Option<Transmit> {
        self.expire(now);
        self.give_up(now);
        if self.closing == Closing::Draining && self.streams.is_idle() {
            self.start_closing();
        }
        if self.closing == Closing::Closed || self.route.is_none() || now < self.not_before || self.in_flight >= self.pace.window() {
            return None;
        }
        if self.wants_call(now) { Some(self.build(now)) } else { None }
    }

    /// When [`poll`](Self::poll) has something to do, without further input.
    pub fn next_wake(&self, now: Now) -> Option<Now> {
        if self.closing == Closing::Closed {
            return None;
        }
        let mut wake: Option<Now> = None;
        let mut at = |time: Now| wake = Some(wake.map_or(time, |wake| wake.min(time)));
        if let Some(expires) = self.calls.values().filter(|call| call.state == CallState::InFlight).map(|call| call.expires).min() {
            at(expires);
        }
        if let Some(since) = self.work_since {
            at(since.max(self.last_heard) + self.limits.give_up);
        } else if self.has_work() {
            at(now);
        }
        if self.route.is_some() && self.in_flight < self.pace.window() {
            let mut send_at = |time: Now| at(time.max(self.not_before));
            match self.streams.due() {
                Due::Now => send_at(now),
                Due::At(time) => send_at(time),
                Due::Never => {}
            }
            if let Some(settle) = self.settle_at {
                send_at(settle);
            }
            if !self.lost_pending.is_empty() || self.wants_to_say_close() || self.pings.values().any(|ping| matches!(ping, Ping::Pending)) {
                send_at(now);
            }
            if self.in_flight < self.pace.polls() && self.streams.expects() {
                send_at(self.next_poll);
            }
        }
        wake
    }

    fn wants_call(&self, now: Now) -> bool {
        let due = match self.streams.due() {
            Due::Now => true,
            Due::At(time) => time <= now,
            Due::Never => false,
        };
        due || !self.lost_pending.is_empty()
            || self.settle_at.is_some_and(|at| at <= now)
            || self.wants_to_say_close()
            || self.pings.values().any(|ping| matches!(ping, Ping::Pending))
            || (self.in_flight < self.pace.polls() && now >= self.next_poll && self.streams.expects())
    }

    fn wants_to_say_close(&self) -> bool {
        matches!(self.closing, Closing::Saying(_)) && !self.calls.values().any(|call| call.cargo.closes && call.state == CallState::InFlight)
    }

    /// Below this, every reply has arrived, or the other side knows that it did not.
    fn settled(&self) -> u64 {
        let flying = self.calls.iter().find(|(_, call)| call.state == CallState::InFlight).map(|(&number, _)| number);
        let lost = self.lost_unconfirmed.first().map(|range| range.start);
        [flying, lost].into_iter().flatten().min().unwrap_or(self.next_number)
    }

    fn build(&mut self, now: Now) -> Transmit {
        let (_, keys) = self.route.clone().expect("poll has checked that there is a route");
        let number = self.next_number;
        let settled = self.settled();
        self.next_number += 1;
        let reply_max = self.limits.max_message as u64;
        let limit = self.limits.call_timeout.saturating_sub(TIMER_MARGIN);
        let rto = self.rtt.rto(limit);
        let hold = self.limits.hold.min(limit.saturating_sub(rto));
        let mut builder = Builder::new(self.id, number, self.limits.max_message);
        if self.hello {
            builder.push(&Frame::Hello { features: 0 });
        }
        builder.push(&Frame::Ask { reply_max, hold_ms: millis(hold), settled });
        let mut call = Call {
            state: CallState::InFlight,
            sent_at: now,
            expires: now + rto + hold,
            session: self.id,
            keys: keys.clone(),
            cargo: Cargo { lost: self.lost_pending.iter().take(MAX_LOST_RANGES).collect(), ..Cargo::default() },
            reply_max,
            full: false,
        };
        let cargo = &mut call.cargo;
        if let Closing::Saying(tries) = self.closing
            && self.wants_to_say_close()
        {
            builder.push(&Frame::Close { code: close::DONE });
            cargo.closes = true;
            self.closing = Closing::Saying(tries + 1);
        }
        if !cargo.lost.is_empty() && builder.push(&Frame::Lost { calls: cargo.lost.clone() }) {
            for range in &cargo.lost {
                self.lost_pending.remove(range.clone());
            }
        } else {
            cargo.lost.clear();
        }
        for (&nonce, ping) in &mut self.pings {
            if matches!(ping, Ping::Pending) && builder.push(&Frame::Ping { nonce }) {
                *ping = Ping::Sent;
                cargo.pings.push(nonce);
            }
        }
        self.streams.fill(&mut builder, &mut cargo.items);
        call.full = builder.len() > self.limits.max_message / 2;
        self.settle_at = None;
        self.in_flight += 1;
        self.calls.insert(number, call);
        Transmit { number, message: builder.seal(&keys, Direction::Call) }
    }

    // What comes back.

    /// The reply to a call.
    pub fn on_reply(&mut self, number: u64, reply: Bytes, now: Now) {
        let Some(call) = self.calls.remove(&number) else { return };
        if call.state == CallState::InFlight {
            self.in_flight -= 1;
        }
        let proved = call.keys.verify(Direction::Reply, &reply)
            && Header::parse(&reply).is_some_and(|header| header.session == call.session && header.number == number);
        if !proved {
            if call.state == CallState::InFlight {
                if reply[..] == REFUSAL {
                    self.refusals += 1;
                }
                self.back_off(now);
                self.lose(number, call.cargo, now);
            }
            return;
        }
        self.last_heard = now;
        self.timeouts = 0;
        self.refusals = 0;
        self.failures = 0;
        self.need = None;
        match Frame::decode_all(&reply) {
            Ok(frames) => self.answered(number, call, frames, reply.len(), now),
            Err(violation) => self.violated(violation),
        }
    }

    fn answered(&mut self, number: u64, call: Call, frames: Vec<Frame>, size: usize, now: Now) {
        let late = call.state == CallState::Late;
        for frame in &frames {
            match *frame {
                Frame::Close { code } if !call.cargo.closes => return self.closed_by_other(code, now),
                Frame::Busy { wait_ms } => {
                    self.hello = false;
                    self.not_before = now + Duration::from_millis(wait_ms).clamp(Duration::from_millis(10), Duration::from_secs(5));
                    if !late {
                        self.lose(number, call.cargo, now);
                    }
                    return;
                }
                _ => {}
            }
        }
        self.hello = false;
        if call.cargo.closes {
            self.closing = Closing::Closed;
            return;
        }
        for item in call.cargo.items {
            self.streams.delivered(item, now);
        }
        for range in call.cargo.lost {
            self.lost_unconfirmed.remove(range);
        }
        let (mut next, mut owes) = (None, false);
        for frame in frames {
            match frame {
                Frame::Next { backlog, wait_ms, held_ms } => next = Some((backlog, wait_ms, held_ms)),
                Frame::Pong { .. } => {}
                frame => {
                    owes = true;
                    if let Err(violation) = self.streams.process(frame, &mut || false, now) {
                        return self.violated(violation);
                    }
                }
            }
        }
        let (backlog, wait_ms, held_ms) = next.unwrap_or_default();
        let took = now.saturating_sub(call.sent_at).saturating_sub(Duration::from_millis(held_ms));
        for nonce in call.cargo.pings {
            self.finish_ping(nonce, Ok(took));
        }
        if owes {
            self.settle_at = Some(now + super::ACK_DELAY);
        }
        if late {
            self.rtt.heard();
            return;
        }
        self.rtt.sample(took);
        let full = call.full || size as u64 * 2 > call.reply_max;
        let sends = self.streams.backlog();
        self.pace.answered(number, full, owes, backlog.div_ceil(call.reply_max.max(1)), sends.div_ceil(call.reply_max.max(1)), self.in_flight, took);
        if !owes && backlog == 0 {
            self.next_poll = now + Duration::from_millis(wait_ms).min(Duration::from_secs(5));
        } else {
            self.next_poll = now;
        }
    }

    /// A call brought nothing.
    pub fn on_failure(&mut self, number: u64, failure: CallFailure, now: Now) {
        let Some(call) = self.calls.remove(&number) else { return };
        // A call over an earlier route, or one that our own timer gave up, says nothing new.
        let current = call.state == CallState::InFlight;
        if current {
            self.in_flight -= 1;
            self.lose(number, call.cargo, now);
        }
        match failure {
            CallFailure::Timeout if current => self.timed_out(now),
            CallFailure::NoRoute if current => self.drop_route(now),
            CallFailure::Local if current => self.back_off(now),
            CallFailure::Fatal(message) => {
                self.streams.fail_all(&Error::Veilid(message.clone()));
                self.fail_pings(&Error::Veilid(message));
                self.closing = Closing::Closed;
            }
            _ => {}
        }
    }

    fn timed_out(&mut self, now: Now) {
        self.timeouts += 1;
        self.rtt.timed_out();
        let patience = (3 * self.rtt.smooth().unwrap_or_default()).max(Duration::from_millis(1_500));
        if self.timeouts >= 2 && now.saturating_sub(self.last_heard) > patience {
            self.need = Some(RouteNeed::Silent);
        }
    }

    fn back_off(&mut self, now: Now) {
        self.failures = (self.failures + 1).min(5);
        self.not_before = self.not_before.max(now + Duration::from_millis(100 << self.failures));
    }

    fn expire(&mut self, now: Now) {
        let expired: Vec<u64> =
            self.calls.iter().filter(|(_, call)| call.state == CallState::InFlight && call.expires <= now).map(|(&number, _)| number).collect();
        let any = !expired.is_empty();
        for number in expired {
            self.lose_in_flight(number, now);
        }
        if any {
            // Calls that were lost together count as one.
            self.timed_out(now);
        }
        while self.calls.len() - self.in_flight > MAX_LATE {
            let Some(oldest) = self.calls.iter().find(|(_, call)| call.state == CallState::Late).map(|(&number, _)| number) else { break };
            self.calls.remove(&oldest);
        }
    }

    fn lose_in_flight(&mut self, number: u64, now: Now) {
        let Some(call) = self.calls.get_mut(&number).filter(|call| call.state == CallState::InFlight) else { return };
        call.state = CallState::Late;
        let cargo = call.cargo.clone();
        self.in_flight -= 1;
        self.lose(number, cargo, now);
    }

    fn lose_all_in_flight(&mut self, now: Now) {
        let flying: Vec<u64> = self.calls.iter().filter(|(_, call)| call.state == CallState::InFlight).map(|(&number, _)| number).collect();
        for number in flying {
            self.lose_in_flight(number, now);
        }
    }

    /// What the call carried is to be sent again, and what its reply carried is to be asked for.
    fn lose(&mut self, number: u64, cargo: Cargo, now: Now) {
        self.lost_pending.insert(number..number + 1);
        self.lost_unconfirmed.insert(number..number + 1);
        for range in cargo.lost {
            self.lost_pending.insert(range);
        }
        for item in cargo.items {
            self.streams.lost(item, now);
        }
        for nonce in cargo.pings {
            if let Some(ping @ Ping::Sent) = self.pings.get_mut(&nonce) {
                *ping = Ping::Pending;
            }
        }
        if cargo.closes && matches!(self.closing, Closing::Saying(tries) if tries >= 2) {
            self.closing = Closing::Closed;
        }
        self.pace.lost(number, self.next_number);
    }

    // Ends.

    fn give_up(&mut self, now: Now) {
        if !self.has_work() {
            self.work_since = None;
            return;
        }
        let since = (*self.work_since.get_or_insert(now)).max(self.last_heard);
        let after = now.saturating_sub(since);
        let error = if self.refusals >= MAX_REFUSALS {
            Error::Refused
        } else if after < self.limits.give_up {
            return;
        } else if let (None, Some(reason)) = (&self.route, &self.no_route_reason) {
            Error::NoRoute { after, reason: reason.clone() }
        } else {
            Error::Unreachable { after }
        };
        self.fail_work(&error);
        if self.closing != Closing::Open {
            self.closing = Closing::Closed;
        }
    }

    /// Everything that is under way fails; the session goes on as a new one.
    fn fail_work(&mut self, error: &Error) {
        self.streams.fail_all(error);
        self.fail_pings(error);
        self.work_since = None;
        self.refusals = 0;
        self.renew();
    }

    fn violated(&mut self, violation: Violation) {
        self.fail_work(&Error::Protocol(violation.0));
    }

    fn closed_by_other(&mut self, code: u64, now: Now) {
        if matches!(self.closing, Closing::Saying(_)) {
            self.closing = Closing::Closed;
            return;
        }
        match code {
            close::UNKNOWN_SESSION => {
                self.streams.restart(&Error::SessionLost, now);
                for ping in self.pings.values_mut() {
                    if matches!(ping, Ping::Sent) {
                        *ping = Ping::Pending;
                    }
                }
                self.renew();
            }
            close::NO_ROOM => self.fail_work(&Error::Busy),
            close::VIOLATION => self.fail_work(&Error::Protocol("the other side found a violation")),
            code => self.fail_work(&Error::PeerClosed { code }),
        }
    }

    fn start_closing(&mut self) {
        let known = !self.hello || self.next_number > self.first_number;
        self.closing = if known && self.route.is_some() { Closing::Saying(0) } else { Closing::Closed };
    }

    /// A session that was silent for so long that the other side may have forgotten it goes on under a new id, if nothing is lost by that.
    fn renew_if_stale(&mut self, now: Now) {
        if !self.hello && self.streams.len() == 0 && now.saturating_sub(self.last_heard) > self.limits.idle_session / 2 {
            self.renew();
        }
    }

    fn renew(&mut self) {
        self.id = (self.fresh_id)();
        self.hello = true;
        self.first_number = self.next_number;
        self.calls.clear();
        self.in_flight = 0;
        self.lost_pending = RangeSet::default();
        self.lost_unconfirmed = RangeSet::default();
        self.settle_at = None;
        self.pace.restart();
        if let Some((tag, keys)) = &mut self.route {
            *keys = Keys::derive(&self.psk, self.id, *tag);
        }
    }

    fn finish_ping(&mut self, nonce: u64, result: Result<Duration, Error>) {
        if let Some(ping) = self.pings.get_mut(&nonce) {
            *ping = Ping::Done(result);
            self.ping_events = true;
        }
    }

    fn fail_pings(&mut self, error: &Error) {
        for ping in self.pings.values_mut() {
            if !matches!(ping, Ping::Done(_)) {
                *ping = Ping::Done(Err(error.clone()));
            }
        }
        self.ping_events = true;
    }

    #[cfg(test)]
    pub fn current_route(&self) -> Option<RouteTag> {
        self.route.as_ref().map(|(tag, _)| *tag)
    }

    /// When the other side was last heard.
    pub fn last_heard(&self) -> Now {
        self.last_heard
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
