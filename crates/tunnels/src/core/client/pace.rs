//! How much a session has in flight.
//!
//! The window follows two measurements, as in BBR (Cardwell and others, 2016): the highest rate at which bytes were delivered lately, and the
//! shortest round trip. Their product is what the way holds; the window is a quarter more than that and what [`QUEUE`] of queueing adds. A
//! loss alone says little on a radio link, so it does not shrink the window; delays do, since they lower the rate. After a round in which
//! [`HEAVY`] of everything was lost, no queueing is allowed. Where nothing is answered at all, half as many calls are in flight with each
//! round of timeouts, down to [`LEAST`]; what was measured is kept, and twice as many with each answer after that.

use std::collections::VecDeque;
use std::time::Duration;

use super::super::Now;
use super::size::Sizes;

/// Calls in flight at the start.
const START: usize = 4;
/// Calls that are always allowed: fewer keep no way busy, and one of them may be held.
const LEAST: usize = 4;
/// Queueing that the window may cause: little for whoever else uses the way, and enough to keep it busy. On a long way more, as a part of
/// the shortest round trip.
const QUEUE: Duration = Duration::from_millis(25);
const QUEUE_PART: u32 = 8;
/// Round trips that are longer than the shortest by this, or by a quarter, were spent in a queue for the most part.
const CROWDED: Duration = Duration::from_millis(200);
/// More than what the way holds, so that a rise of its rate is noticed and variation of its delay is bridged.
const GAIN: f64 = 1.25;
/// The rate is the highest of so many rounds, and of this time; but of no more than so many of the shortest round trips, since a round takes long
/// where a way that got slower has a queue.
const RATE_ROUNDS: u64 = 10;
const RATE_TIME: Duration = Duration::from_secs(1);
const RATE_TRIPS: u32 = 20;
/// At the start the window triples each round, until the rate did not grow by a quarter in three of them.
const START_GAIN: f64 = 2.9;
const GROWTH: f64 = 1.25;
const FLAT_ROUNDS: u32 = 3;
/// Or until so many replies in a row took much longer than the shortest round trip.
const SLOW_REPLIES: u32 = 3;
/// The shortest round trip is measured anew after this time, with a window that lets queues run empty; and not before so many round trips,
/// since it costs two.
const BASE_TIME: Duration = Duration::from_secs(10);
const BASE_TRIPS: u32 = 20;
/// A share of losses in one round after which no queueing is allowed for some rounds.
const HEAVY: f64 = 0.3;
const CAUTION: u64 = 16;
/// Losses and replies that make a round count.
const ENOUGH: u32 = 8;
/// Share of one outcome in the average of losses.
const SMOOTH: f64 = 0.02;

/// What was known when a call was made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Trip {
    delivered: u64,
    delivered_at: Now,
    sent_at: Now,
    /// When the latest of the calls was made that had been answered.
    answered_sent_at: Now,
    /// More could have been in flight.
    limited: bool,
    /// Bytes that the call and its reply may have, each.
    pub size: usize,
    /// It carries much, or is expected to bring much.
    pub bulk: bool,
}

/// A reply that came in time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Answer {
    /// Bytes of the call and the reply, and of the larger of both.
    pub bytes: usize,
    pub largest: usize,
    /// The round trip, without the time that the reply waited for data.
    pub took: Duration,
    /// It waited for data.
    pub held: bool,
}

#[derive(Debug)]
pub(crate) struct Pace {
    most: usize,
    /// In bytes of messages, those of the current size.
    window: f64,
    sizes: Sizes,
    /// Calls in flight, and the bytes that their messages may have.
    calls: usize,
    bytes: usize,
    /// Still looking for the rate.
    filling: bool,
    flat: (f64, u32),
    polls: usize,
    delivered: u64,
    delivered_at: Now,
    /// When the latest of the calls was made that were answered.
    answered_sent_at: Now,
    /// Samples of calls that were made before this much was delivered say less than what was possible.
    limited_until: u64,
    round: u64,
    round_ends: u64,
    /// Highest rates in bytes per second, falling, with the round and the time of each.
    rates: VecDeque<(u64, Now, f64)>,
    /// The shortest round trip and when it was seen last.
    base: Option<(Duration, Now)>,
    smooth: Duration,
    drain: Option<Drain>,
    /// Losses and replies of this round.
    round_lost: u32,
    round_answered: u32,
    /// Replies in a row that waited in a queue for long.
    slow: u32,
    /// Too much was lost in a round shortly before this one.
    cautious_until: u64,
    /// The share of losses.
    loss: f64,
    /// How many calls may be in flight while nobody answers.
    silence: Option<usize>,
    /// The sizes from before that: in a silence all are lost alike, which says nothing about them.
    before: Option<Sizes>,
    /// A message of the current size arrived since the sizes were put back last.
    size_proved: bool,
}

/// The window is small for a moment.
#[derive(Debug, Clone, Copy)]
enum Drain {
    /// Until little is in flight.
    Emptying,
    /// Until a call that was made since then is answered.
    Empty(Now),
}

impl Pace {
    pub fn new(most: usize, max_message: usize) -> Self {
        let sizes = Sizes::new(max_message);
        Pace {
            most: most.max(2),
            window: (START * sizes.current()) as f64,
            sizes,
            calls: 0,
            bytes: 0,
            filling: true,
            flat: (0.0, 0),
            polls: 1,
            delivered: 0,
            delivered_at: Now::ZERO,
            answered_sent_at: Now::ZERO,
            limited_until: 0,
            round: 0,
            round_ends: 0,
            rates: VecDeque::new(),
            base: None,
            smooth: Duration::ZERO,
            drain: None,
            round_lost: 0,
            round_answered: 0,
            slow: 0,
            cautious_until: 0,
            loss: 0.0,
            silence: None,
            before: None,
            size_proved: false,
        }
    }

    /// Begins anew on another route.
    pub fn restart(&mut self) {
        *self = Pace {
            delivered: self.delivered,
            delivered_at: self.delivered_at,
            answered_sent_at: self.answered_sent_at,
            round_ends: self.delivered,
            calls: self.calls,
            bytes: self.bytes,
            ..Pace::new(self.most, self.sizes.largest())
        };
    }

    /// Calls in flight.
    pub fn in_flight(&self) -> usize {
        self.calls
    }

    /// Whether a call that carries something may be made.
    pub fn may_send(&self) -> bool {
        // One more than calls that fetch only.
        self.has_room(self.calls.saturating_sub(1))
    }

    /// Whether a call may be made only to fetch what the other side has.
    pub fn may_poll(&self) -> bool {
        self.calls < self.polls && self.has_room(self.calls)
    }

    fn has_room(&self, calls: usize) -> bool {
        let most = if self.drain.is_some() {
            self.drained()
        } else if (self.bytes as f64) < self.window {
            self.silence.unwrap_or(self.most)
        } else {
            LEAST
        };
        calls < most.min(self.most)
    }

    /// Calls while a queue is to run empty: half of what the way holds. On a slow way even [`LEAST`] of them would wait for each other, and what is
    /// measured then would count as the way's own delay.
    fn drained(&self) -> usize {
        let Some((base, _)) = self.base else {
            return LEAST;
        };
        let calls = self.rate() * base.as_secs_f64() / 2.0 / self.sizes.current() as f64;
        (calls as usize).clamp(1, LEAST)
    }

    /// A call is made, of the size that is returned within. `bulk`: it carries much, or is expected to bring much.
    pub fn sent(&mut self, bulk: bool, now: Now) -> Trip {
        if self.calls == 0 {
            (self.delivered_at, self.answered_sent_at) = (now, now);
        }
        let trip = Trip {
            delivered: self.delivered,
            delivered_at: self.delivered_at,
            sent_at: now,
            answered_sent_at: self.answered_sent_at,
            limited: self.delivered < self.limited_until,
            size: if bulk {
                self.sizes.next()
            } else {
                self.sizes.current()
            },
            bulk,
        };
        self.calls += 1;
        self.bytes += trip.size;
        trip
    }

    /// A call is not in flight any more.
    pub fn landed(&mut self, trip: Trip) {
        self.calls = self.calls.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(trip.size);
    }

    /// No call is in flight any more.
    pub fn forget_flight(&mut self) {
        (self.calls, self.bytes) = (0, 0);
    }

    /// There is nothing more to send now, although the window has room.
    pub fn idle(&mut self) {
        if self.has_room(self.calls) {
            self.limited_until = self.delivered + 1 + self.bytes as u64;
        }
    }

    /// Nothing is expected any more. What there was to fetch until now says nothing about the next time, and of what comes first then those
    /// calls tell that wait for it; some more, since they may get lost.
    pub fn rest(&mut self) {
        self.polls = self.polls.min(LEAST);
    }

    /// A reply came in time.
    pub fn answered(&mut self, trip: Trip, answer: Answer, now: Now) {
        self.delivered += answer.bytes as u64;
        self.delivered_at = now;
        self.answered_sent_at = self.answered_sent_at.max(trip.sent_at);
        self.round_answered += 1;
        self.loss -= self.loss * SMOOTH;
        self.spoken();
        self.sizes.arrived(answer.largest.min(trip.size));
        self.size_proved |= answer.largest.min(trip.size) * 2 > self.sizes.current();
        self.smooth = if self.smooth.is_zero() {
            answer.took
        } else {
            (self.smooth * 7 + answer.took) / 8
        };
        self.take_base(trip, answer, now);
        if answer.took > self.crowded() {
            self.slow += 1;
            self.filling &= self.slow < SLOW_REPLIES;
        } else {
            self.slow = 0;
        }
        // Replies that were held up come all at once, and no faster in the long run than the calls were made.
        let passed = now
            .saturating_sub(trip.delivered_at)
            .max(trip.sent_at.saturating_sub(trip.answered_sent_at))
            .max(Duration::from_micros(100));
        let rate = (self.delivered - trip.delivered) as f64 / passed.as_secs_f64();
        let limited = trip.limited || answer.held || self.drain.is_some();
        if !limited || rate > self.rate() {
            while self
                .rates
                .back()
                .is_some_and(|&(_, _, other)| other <= rate)
            {
                self.rates.pop_back();
            }
            self.rates.push_back((self.round, now, rate));
        }
        if trip.delivered >= self.round_ends {
            self.end_round(limited, now);
        }
        let size = self.sizes.current() as f64;
        let target = self.target();
        if self.filling {
            if answer.largest * 2 > trip.size && !trip.limited && self.drain.is_none() {
                let most = self.holds(START_GAIN).max(START as f64 * size);
                self.window = (self.window + 2.0 * size).min(most.max(self.window));
            }
        } else if self.window < target {
            // As fast as at the start, and no further.
            self.window = (self.window + size).min(target);
        } else {
            self.window = target;
        }
        self.window = self.window.min(self.most as f64 * size);
    }

    fn end_round(&mut self, limited: bool, now: Now) {
        self.round += 1;
        self.round_ends = self.delivered;
        let trips = self
            .base
            .map_or(Duration::MAX, |(base, _)| base * RATE_TRIPS);
        while self.rates.len() > 1
            && self.rates.front().is_some_and(|&(round, at, _)| {
                let age = now.saturating_sub(at);
                age > RATE_TIME && (round + RATE_ROUNDS < self.round || age > trips)
            })
        {
            self.rates.pop_front();
        }
        let all = self.round_lost + self.round_answered;
        if all >= ENOUGH {
            if f64::from(self.round_lost) > HEAVY * f64::from(all) {
                self.cautious_until = self.round + CAUTION;
            }
            (self.round_lost, self.round_answered) = (0, 0);
        }
        if !self.filling || limited {
            return;
        }
        let rate = self.rate();
        if rate >= self.flat.0 * GROWTH {
            self.flat = (rate, 0);
        } else {
            self.flat.1 += 1;
            self.filling = self.flat.1 < FLAT_ROUNDS;
        }
    }

    fn take_base(&mut self, trip: Trip, answer: Answer, now: Now) {
        match self.drain {
            Some(Drain::Emptying) if self.calls <= self.drained() => {
                self.drain = Some(Drain::Empty(now));
            }
            Some(Drain::Empty(since)) if trip.sent_at >= since => {
                self.drain = None;
                self.base = Some((answer.took, now));
                return;
            }
            _ => {}
        }
        match self.base {
            Some((base, at)) if answer.took > base + base / 10 => {
                let queued = self.smooth.saturating_sub(base) > queue(base) / 2;
                if self.drain.is_none()
                    && queued
                    && now.saturating_sub(at) > BASE_TIME.max(base * BASE_TRIPS)
                {
                    self.drain = Some(Drain::Emptying);
                }
            }
            Some((base, _)) => self.base = Some((base.min(answer.took), now)),
            None => self.base = Some((answer.took, now)),
        }
    }

    /// A round trip that is longer was spent in a queue for the most part.
    fn crowded(&self) -> Duration {
        self.base
            .map_or(Duration::MAX, |(base, _)| base + CROWDED.max(base / 4))
    }

    fn cautious(&self) -> bool {
        self.round < self.cautious_until
    }

    fn rate(&self) -> f64 {
        self.rates.front().map_or(0.0, |&(_, _, rate)| rate)
    }

    /// What should be in flight, in bytes.
    fn target(&self) -> f64 {
        self.holds(GAIN)
    }

    /// So many times what the way holds, in bytes, and some queueing.
    fn holds(&self, gain: f64) -> f64 {
        let Some((base, _)) = self.base else {
            return self.window;
        };
        // What is lost was in flight as well.
        let sent = self.rate() / (1.0 - self.loss.min(0.75));
        let queue = if self.cautious() {
            Duration::ZERO
        } else {
            queue(base)
        };
        sent * (base.as_secs_f64() * gain + queue.as_secs_f64())
    }

    /// What the other side has to say: `wanted` calls could fetch it. `useful`: the reply carried something.
    pub fn heard(&mut self, wanted: u64, useful: bool) {
        let wanted = usize::try_from(wanted).unwrap_or(usize::MAX);
        // One reply that finds little to fetch does not mean that the source has dried up: come down one by one.
        self.polls = if wanted == 0 && !useful {
            self.polls.saturating_sub(1)
        } else {
            wanted.max(self.polls.saturating_sub(1))
        };
        self.polls = self.polls.clamp(1, self.most);
    }

    /// Calls ran out of time, and nothing was answered since the oldest of them was made. `in_flight`: how many there were with them.
    pub fn silent(&mut self, in_flight: usize) {
        let most = self.silence.unwrap_or(self.most).min(in_flight);
        self.silence = Some((most / 2).max(LEAST));
        // Where it was put back and nothing of that size came since, the size may well be what is wrong.
        if self.before.is_none() && std::mem::take(&mut self.size_proved) {
            self.before = Some(self.sizes.clone());
        }
    }

    /// Something was answered: a silence is over.
    fn spoken(&mut self) {
        self.silence = self
            .silence
            .map(|calls| calls * 2)
            .filter(|&calls| calls < self.most);
        if let Some(sizes) = self.before.take() {
            self.sizes = sizes;
        }
    }

    /// The reply to a call that was taken for lost came after all.
    pub fn late(&mut self, trip: Trip) {
        self.spoken();
        if trip.bulk {
            self.sizes.late(trip.size);
        }
    }

    /// A call or its reply was lost. `alive`: something arrived since it was made.
    pub fn lost(&mut self, trip: Trip, alive: bool) {
        // Where nothing arrives, losses say nothing about how much is too much.
        if alive {
            self.round_lost += 1;
            self.loss += (1.0 - self.loss) * SMOOTH;
        }
        // What a full queue drops says nothing about sizes.
        let full = self.smooth > self.crowded() || (self.loss > HEAVY && !self.cautious());
        if trip.bulk && !full {
            self.sizes.lost(trip.size, !alive);
        }
        if let Some(Drain::Empty(since)) = self.drain
            && trip.sent_at >= since
        {
            self.drain = None;
        }
    }
}

/// The queueing that the window may cause where the shortest round trip is this.
fn queue(base: Duration) -> Duration {
    QUEUE.max(base / QUEUE_PART)
}

#[cfg(test)]
mod tests;
