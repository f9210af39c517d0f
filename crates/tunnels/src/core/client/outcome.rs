//! What comes of the calls: replies, failures, losses.

use std::time::Duration;

use bytes::Bytes;

use super::super::codec::{Direction, Frame, Header, REFUSAL};
use super::super::{ACK_DELAY, Now};
use super::pace::Answer;
use super::{
    Call, CallFailure, CallState, Cargo, ClientCore, Closing, MAX_LATE, MIN_PATIENCE, Ping,
    RouteNeed,
};
use crate::{Error, MAX_MESSAGE};

/// The least time that an overtaken call is waited for beyond a round trip.
const LEAST_SPARE: Duration = Duration::from_millis(30);
/// How many times longer that gets at most when calls were given up too early.
const MOST_PATIENCE: f64 = 8.0;

impl ClientCore {
    /// The reply to a call.
    pub fn on_reply(&mut self, number: u64, reply: Bytes, now: Now) {
        let Some(call) = self.calls.remove(&number) else {
            return;
        };
        if call.state == CallState::InFlight {
            self.pace.landed(call.trip);
        }
        let proved = reply.len() <= MAX_MESSAGE
            && call.keys.verify(Direction::Reply, &reply)
            && Header::parse(&reply)
                .is_some_and(|header| header.session == call.session && header.number == number);
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

    pub(super) fn answered(
        &mut self,
        number: u64,
        call: Call,
        frames: Vec<Frame>,
        size: usize,
        now: Now,
    ) {
        let late = call.state == CallState::Late;
        for frame in &frames {
            match *frame {
                Frame::Close { code } if !call.cargo.closes => {
                    return self.closed_by_other(code, now);
                }
                Frame::Busy { wait_ms } => {
                    self.hello = false;
                    self.not_before = now
                        + Duration::from_millis(wait_ms)
                            .clamp(Duration::from_millis(10), Duration::from_secs(5));
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
                Frame::Next {
                    backlog,
                    wait_ms,
                    held_ms,
                } => next = Some((backlog, wait_ms, held_ms)),
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
        let took = now
            .saturating_sub(call.sent_at)
            .saturating_sub(Duration::from_millis(held_ms));
        for nonce in call.cargo.pings {
            self.finish_ping(nonce, Ok(took));
        }
        if owes {
            self.settle_at = Some(now + ACK_DELAY);
        }
        if late {
            // It was given up too early.
            self.rtt.heard();
            self.pace.late(call.trip);
            self.patience = (self.patience * 1.5).min(MOST_PATIENCE);
            return;
        }
        self.rtt.sample(took);
        let most = call.trip.size;
        self.pace.answered(
            call.trip,
            Answer {
                bytes: call.len + size,
                largest: call.len.max(size),
                took,
                held: held_ms > 0,
            },
            now,
        );
        tracing::trace!(number, ?took, backlog, pace = ?self.pace, "answered");
        self.overtake(number, took, now);
        if self.newest.is_none_or(|newest| newest < number) {
            self.newest = Some(number);
            self.pace.heard(backlog.div_ceil(most.max(1) as u64), owes);
        }
        if !owes && backlog == 0 {
            self.next_poll = now + Duration::from_millis(wait_ms).min(Duration::from_secs(5));
        } else {
            self.next_poll = now;
        }
    }

    /// Calls that were made before this one, and whose replies are not allowed to wait, should be answered by now: after RACK (RFC 8985).
    fn overtake(&mut self, number: u64, took: Duration, now: Now) {
        let spare = (took / 2).max(self.rtt.variation() * 2).max(LEAST_SPARE);
        let wait = took + spare.mul_f64(self.patience);
        self.patience = (self.patience * 0.999).max(1.0);
        for (_, call) in self.calls.range_mut(..number) {
            if call.state == CallState::InFlight && call.hold.is_zero() {
                let due = (call.sent_at + wait).max(now);
                if due < call.expires {
                    call.expires = due;
                    call.overtaken = true;
                }
            }
        }
    }

    /// A call brought nothing.
    pub fn on_failure(&mut self, number: u64, failure: CallFailure, now: Now) {
        let Some(call) = self.calls.remove(&number) else {
            return;
        };
        // A call over an earlier route, or one that our own timer gave up, says nothing new.
        let current = call.state == CallState::InFlight;
        if current {
            self.pace.landed(call.trip);
            self.lose(number, call.cargo, now);
        }
        match failure {
            CallFailure::Timeout if current => {
                // It is not in flight any more.
                self.unanswered(call.sent_at, self.pace.in_flight() + 1, now);
                self.timed_out(1, now);
            }
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

    /// Calls ran out of time together.
    pub(super) fn timed_out(&mut self, calls: usize, now: Now) {
        self.timeouts += 1;
        self.rtt.timed_out();
        let patience = (3 * self.rtt.smooth().unwrap_or_default()).max(MIN_PATIENCE);
        if (self.timeouts >= 2 || calls >= 3) && now.saturating_sub(self.last_heard) > patience {
            self.need = Some(RouteNeed::Silent);
        }
    }

    /// Calls ran out of time, the oldest of which was made then. Where nothing was answered since, fewer are made from now on, once for all that
    /// were in flight together.
    fn unanswered(&mut self, oldest: Now, in_flight: usize, now: Now) {
        if oldest > self.last_heard && oldest >= self.hushed_at {
            self.hushed_at = now;
            self.pace.silent(in_flight);
        }
    }

    pub(super) fn back_off(&mut self, now: Now) {
        self.failures = (self.failures + 1).min(5);
        self.not_before = self
            .not_before
            .max(now + Duration::from_millis(100 << self.failures));
    }

    pub(super) fn expire(&mut self, now: Now) {
        let over = |call: &Call| call.state == CallState::InFlight && call.expires <= now;
        let expired: Vec<(u64, bool)> = self
            .calls
            .iter()
            .filter(|(_, call)| over(call))
            .map(|(&number, call)| (number, call.overtaken))
            .collect();
        if let Some(oldest) = self.calls.values().find(|call| over(call)) {
            self.unanswered(oldest.sent_at, self.pace.in_flight(), now);
        }
        for &(number, _) in &expired {
            self.lose_in_flight(number, now);
        }
        // Where later calls were answered, the route is alive.
        let silent = expired.iter().filter(|(_, overtaken)| !overtaken).count();
        if silent > 0 {
            self.timed_out(silent, now);
        }
        while self.calls.len() - self.pace.in_flight() > MAX_LATE {
            let Some(oldest) = self
                .calls
                .iter()
                .find(|(_, call)| call.state == CallState::Late)
                .map(|(&number, _)| number)
            else {
                break;
            };
            self.calls.remove(&oldest);
        }
    }

    pub(super) fn lose_in_flight(&mut self, number: u64, now: Now) {
        let Some(call) = self
            .calls
            .get_mut(&number)
            .filter(|call| call.state == CallState::InFlight)
        else {
            return;
        };
        call.state = CallState::Late;
        let cargo = call.cargo.clone();
        let trip = call.trip;
        let alive = self.last_heard >= call.sent_at;
        self.pace.landed(trip);
        self.pace.lost(trip, alive);
        self.lose(number, cargo, now);
    }

    pub(super) fn lose_all_in_flight(&mut self, now: Now) {
        let flying: Vec<u64> = self
            .calls
            .iter()
            .filter(|(_, call)| call.state == CallState::InFlight)
            .map(|(&number, _)| number)
            .collect();
        for number in flying {
            self.lose_in_flight(number, now);
        }
    }

    /// What the call carried is to be sent again, and what its reply carried is to be asked for.
    pub(super) fn lose(&mut self, number: u64, cargo: Cargo, now: Now) {
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
    }
}
