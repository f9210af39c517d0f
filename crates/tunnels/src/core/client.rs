//! The side that makes the calls.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use super::codec::{Builder, Direction, Frame, Keys, RouteTag, close};
use super::ranges::RangeSet;
use super::rtt::Rtt;
use super::streams::{Due, Sent, Streams};
use super::{Now, Side};
use crate::{Error, Limits, Psk, SessionId};

mod ends;
mod outcome;
mod pace;
mod size;
use pace::{Pace, Trip};

/// Calls that were given up but may still be answered, before the oldest are forgotten.
const MAX_LATE: usize = 512;
/// Calls in flight whose replies may wait for data: one to hear of news at once, one for the time in which that is on its way.
const HOLDING: usize = 2;
/// Ranges of lost calls named in one call.
const MAX_LOST_RANGES: usize = 64;
/// Answers of one byte in a row, before the other side counts as refusing us.
const MAX_REFUSALS: u32 = 5;
/// Silence that does not make a route suspicious yet.
const MIN_PATIENCE: Duration = Duration::from_secs(1);
/// Times that nothing came back in a row, before a session without work stops to call.
const MAX_IDLE_TIMEOUTS: u32 = 3;
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
    /// The route that there is has been silent, or nothing was ever heard over it: it may be dead.
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
    /// The call itself.
    len: usize,
    /// How long the reply may wait for data.
    hold: Duration,
    /// Later calls were answered, so that the timer is shorter.
    overtaken: bool,
    trip: Trip,
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
    /// Lost calls to be named, and those of which the other side may not have heard.
    lost_pending: RangeSet,
    lost_unconfirmed: RangeSet,
    pings: BTreeMap<u64, Ping>,
    next_nonce: u64,
    rtt: Rtt,
    pace: Pace,
    /// How much longer than usual an overtaken call is waited for.
    patience: f64,
    /// The newest call that was answered.
    newest: Option<u64>,
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
    /// When fewer calls were allowed last, for want of answers.
    hushed_at: Now,
    work_since: Option<Now>,
    no_route_reason: Option<String>,
    closing: Closing,
    /// Pings have changed.
    pub ping_events: bool,
}

impl ClientCore {
    pub fn new(
        psk: Psk,
        limits: Limits,
        mut fresh_id: Box<dyn FnMut() -> SessionId + Send>,
    ) -> Self {
        let pace = Pace::new(limits.calls_in_flight, limits.max_message);
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
            lost_pending: RangeSet::default(),
            lost_unconfirmed: RangeSet::default(),
            pings: BTreeMap::new(),
            next_nonce: 0,
            rtt: Rtt::default(),
            pace,
            patience: 1.0,
            newest: None,
            not_before: Now::ZERO,
            next_poll: Now::ZERO,
            settle_at: None,
            refusals: 0,
            failures: 0,
            timeouts: 0,
            last_heard: Now::ZERO,
            hushed_at: Now::ZERO,
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
        if self.route.is_none() {
            Some(RouteNeed::Missing)
        } else {
            self.need
        }
    }

    /// Goes on over this route, which may be the same as before.
    pub fn set_route(&mut self, tag: RouteTag, now: Now) {
        // The first one may be an old one: while it is tried, another is looked for.
        let unproved = self.route.is_none() && self.last_heard.is_zero();
        self.need = unproved.then_some(RouteNeed::Silent);
        self.timeouts = 0;
        self.no_route_reason = None;
        self.not_before = now;
        if self
            .route
            .as_ref()
            .is_some_and(|(current, _)| *current == tag)
        {
            return;
        }
        self.route = Some((tag, Keys::derive(&self.psk, self.id, tag)));
        // Whoever refused over another route decides nothing for this one.
        self.refusals = 0;
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
            || !self.streams.is_settled()
            || !self
                .pings
                .values()
                .all(|ping| matches!(ping, Ping::Done(_)))
    }

    /// The next call to make now, if any. To be called until it returns `None`, after every input and whenever [`next_wake`](Self::next_wake) has come.
    pub fn poll(&mut self, now: Now) -> Option<Transmit> {
        self.expire(now);
        self.give_up(now);
        if self.closing == Closing::Draining && self.streams.is_idle() {
            self.start_closing();
        }
        if self.closing == Closing::Closed
            || self.route.is_none()
            || now < self.not_before
            || (!self.pace.may_send() && !self.wants_to_say_close())
        {
            return None;
        }
        if self.wants_call(now) {
            Some(self.build(now))
        } else {
            self.pace.idle();
            if !self.streams.expects() {
                self.pace.rest();
            }
            None
        }
    }

    /// When [`poll`](Self::poll) has something to do, without further input.
    pub fn next_wake(&self, now: Now) -> Option<Now> {
        if self.closing == Closing::Closed {
            return None;
        }
        let mut wake: Option<Now> = None;
        let mut at = |time: Now| wake = Some(wake.map_or(time, |wake| wake.min(time)));
        if let Some(expires) = self
            .calls
            .values()
            .filter(|call| call.state == CallState::InFlight)
            .map(|call| call.expires)
            .min()
        {
            at(expires);
        }
        if let Some(since) = self.work_since {
            at(since.max(self.last_heard) + self.limits.give_up);
        } else if self.has_work() {
            at(now);
        }
        if self.route.is_some() && self.pace.may_send() {
            let mut send_at = |time: Now| at(time.max(self.not_before));
            match self.streams.due() {
                Due::Now => send_at(now),
                Due::At(time) => send_at(time),
                Due::Never => {}
            }
            if let Some(settle) = self.settle_at {
                send_at(settle);
            }
            if self.wants_to_name_losses()
                || self.wants_to_say_close()
                || self
                    .pings
                    .values()
                    .any(|ping| matches!(ping, Ping::Pending))
            {
                send_at(now);
            }
            if self.pace.may_poll() && self.streams.expects() {
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
        due || self.wants_to_name_losses()
            || self.settle_at.is_some_and(|at| at <= now)
            || self.wants_to_say_close()
            || self
                .pings
                .values()
                .any(|ping| matches!(ping, Ping::Pending))
            || (self.pace.may_poll() && now >= self.next_poll && self.streams.expects())
    }

    /// Lost calls are named for the sake of what comes after them. Where nothing does and nobody answers, it is not worth many calls.
    fn wants_to_name_losses(&self) -> bool {
        !self.lost_pending.is_empty() && (self.timeouts < MAX_IDLE_TIMEOUTS || self.has_work())
    }

    fn wants_to_say_close(&self) -> bool {
        matches!(self.closing, Closing::Saying(_))
            && !self
                .calls
                .values()
                .any(|call| call.cargo.closes && call.state == CallState::InFlight)
    }

    /// Below this, every reply has arrived, or the other side knows that it did not.
    fn settled(&self) -> u64 {
        let flying = self
            .calls
            .iter()
            .find(|(_, call)| call.state == CallState::InFlight)
            .map(|(&number, _)| number);
        let lost = self.lost_unconfirmed.first().map(|range| range.start);
        [flying, lost]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(self.next_number)
    }

    fn build(&mut self, now: Now) -> Transmit {
        let (_, keys) = self
            .route
            .clone()
            .expect("poll has checked that there is a route");
        let number = self.next_number;
        let settled = self.settled();
        self.next_number += 1;
        let bulk = self.streams.expects() || self.streams.has_pending();
        let trip = self.pace.sent(bulk, now);
        let limit = self.limits.call_timeout.saturating_sub(TIMER_MARGIN);
        let rto = self.rtt.rto(limit);
        let held = self
            .calls
            .values()
            .filter(|call| call.state == CallState::InFlight && !call.hold.is_zero());
        let hold = if held.count() < HOLDING {
            self.limits.hold.min(limit.saturating_sub(rto))
        } else {
            Duration::ZERO
        };
        let mut builder = Builder::new(self.id, number, trip.size);
        if self.hello {
            builder.push(&Frame::Hello { features: 0 });
        }
        builder.push(&Frame::Ask {
            reply_max: trip.size as u64,
            hold_ms: millis(hold),
            settled,
        });
        let mut call = Call {
            state: CallState::InFlight,
            sent_at: now,
            expires: now + rto + hold,
            session: self.id,
            keys: keys.clone(),
            cargo: Cargo {
                lost: self.lost_pending.iter().take(MAX_LOST_RANGES).collect(),
                ..Cargo::default()
            },
            len: 0,
            hold,
            overtaken: false,
            trip,
        };
        let cargo = &mut call.cargo;
        if let Closing::Saying(tries) = self.closing
            && self.wants_to_say_close()
        {
            builder.push(&Frame::Close { code: close::DONE });
            cargo.closes = true;
            self.closing = Closing::Saying(tries + 1);
        }
        if !cargo.lost.is_empty()
            && builder.push(&Frame::Lost {
                calls: cargo.lost.clone(),
            })
        {
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
        call.len = builder.len();
        self.settle_at = None;
        self.calls.insert(number, call);
        Transmit {
            number,
            message: builder.seal(&keys, Direction::Call),
        }
    }

    #[cfg(test)]
    pub fn in_flight(&self) -> usize {
        self.pace.in_flight()
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
