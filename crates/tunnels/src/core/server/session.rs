//! One session, as the side sees it that answers.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use super::super::bucket::Bucket;
use super::super::codec::{Builder, Direction, Frame, HEADER, Keys, MAC, RouteTag, Violation};
use super::super::ranges::RangeSet;
use super::super::streams::{Due, Sent, Streams};
use super::super::{Now, Side};
use crate::{Limits, SessionId};

/// Replies of which it is not known whether they arrived, before the oldest count as lost.
const MAX_REPLIES: usize = 4_096;
/// Gaps in the numbers of calls.
const MAX_NUMBER_GAPS: usize = 4_096;
/// Pings answered in one reply.
const MAX_PONGS: usize = 64;
/// The largest `Next` frame.
const NEXT_FRAME: usize = 3 + 3 * 8;
/// Pauses between questions to a session that has nothing to say.
const WAITS: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(10)..=Duration::from_secs(2);

pub(crate) struct Session {
    id: SessionId,
    pub route: RouteTag,
    pub keys: Keys,
    pub streams: Streams,
    pub last_call: Now,
    /// It has ended; kept until the application drops its streams.
    pub dead: bool,
    opens: Bucket,
    /// Calls that were taken, above `settled`.
    taken: RangeSet,
    /// Replies to calls below have arrived, or were named lost.
    settled: u64,
    replies: BTreeMap<u64, Vec<Sent>>,
    pongs: Vec<u64>,
    /// When something other than an empty call or reply was last exchanged.
    active: Now,
}

/// What a call asks for.
pub(crate) struct Asked {
    pub reply_max: usize,
    pub hold: Duration,
    pub closes: bool,
    /// Calls that the client has given up.
    pub lost: Vec<Range<u64>>,
}

impl Session {
    pub fn new(id: SessionId, route: RouteTag, keys: Keys, limits: Limits, now: Now) -> Self {
        Session {
            id,
            route,
            keys,
            opens: Bucket::new(limits.opens_per_second, now),
            streams: Streams::new(Side::Server, limits),
            last_call: now,
            dead: false,
            taken: RangeSet::default(),
            settled: 0,
            replies: BTreeMap::new(),
            pongs: Vec::new(),
            active: now,
        }
    }

    /// Whether a call of this number is new. Each counts once.
    pub fn accept_number(&mut self, number: u64) -> bool {
        if number < self.settled
            || number == u64::MAX
            || self.taken.contains(number)
            || self.taken.len() > MAX_NUMBER_GAPS
        {
            return false;
        }
        self.taken.insert(number..number + 1);
        true
    }

    /// Acts on the frames of a call.
    pub fn take(
        &mut self,
        frames: Vec<Frame>,
        unaccepted: Option<&mut usize>,
        limits: &Limits,
        now: Now,
    ) -> Result<Asked, Violation> {
        let mut asked = Asked {
            reply_max: limits.max_message,
            hold: Duration::ZERO,
            closes: false,
            lost: Vec::new(),
        };
        let mut settled = None;
        let mut none = limits.accept_queue;
        let unaccepted = unaccepted.unwrap_or(&mut none);
        let opens = &mut self.opens;
        let mut room = || {
            let room = *unaccepted < limits.accept_queue && opens.take(now);
            *unaccepted += usize::from(room);
            room
        };
        for frame in frames {
            match frame {
                Frame::Hello { .. }
                | Frame::Next { .. }
                | Frame::Pong { .. }
                | Frame::Busy { .. } => {}
                Frame::Ask {
                    reply_max,
                    hold_ms,
                    settled: below,
                } => {
                    let least = HEADER + NEXT_FRAME + MAC + 64;
                    asked.reply_max = usize::try_from(reply_max)
                        .unwrap_or(usize::MAX)
                        .clamp(least, limits.max_message);
                    asked.hold = Duration::from_millis(hold_ms);
                    settled = Some(below);
                }
                Frame::Ping { nonce } => {
                    if self.pongs.len() < MAX_PONGS {
                        self.pongs.push(nonce);
                    }
                }
                Frame::Close { .. } => asked.closes = true,
                Frame::Lost { calls } => {
                    for range in &calls {
                        // A call that arrives after it was given up must not be answered with anything that counts.
                        self.taken.insert(range.start.max(self.settled)..range.end);
                        let lost: Vec<u64> = self
                            .replies
                            .range(range.start..range.end.max(range.start))
                            .map(|(&number, _)| number)
                            .collect();
                        for number in lost {
                            for item in self.replies.remove(&number).into_iter().flatten() {
                                self.streams.lost(item, now);
                            }
                        }
                    }
                    asked.lost.extend(calls);
                }
                frame => {
                    self.active = now;
                    self.streams.process(frame, &mut room, now)?;
                }
            }
        }
        // After the losses that it counts on.
        if let Some(settled) = settled
            && settled > self.settled
        {
            self.settled = settled;
            self.taken.remove(0..settled);
            let later = self.replies.split_off(&settled);
            for (_, items) in std::mem::replace(&mut self.replies, later) {
                for item in items {
                    self.streams.delivered(item, now);
                }
            }
        }
        Ok(asked)
    }

    /// Whether there is something to say that should not wait.
    pub fn wants_reply(&self, now: Now) -> bool {
        self.dead
            || !self.pongs.is_empty()
            || match self.streams.due() {
                Due::Now => true,
                Due::At(at) => at <= now,
                Due::Never => false,
            }
    }

    /// The reply to a call, with whatever there is to say.
    pub fn reply(&mut self, number: u64, reply_max: usize, held: Duration, now: Now) -> Vec<u8> {
        let mut items = Vec::new();
        let mut builder = Builder::new(self.id, number, reply_max - NEXT_FRAME);
        self.pongs
            .retain(|&nonce| !builder.push(&Frame::Pong { nonce }));
        self.streams.fill(&mut builder, &mut items);
        if !builder.is_empty() {
            self.active = now;
        }
        let backlog = self.streams.backlog();
        let wait = (now.saturating_sub(self.active) / 2).clamp(*WAITS.start(), *WAITS.end());
        builder.grow(NEXT_FRAME);
        builder.push(&Frame::Next {
            backlog,
            wait_ms: millis(wait),
            held_ms: millis(held),
        });
        if !items.is_empty() {
            self.replies.insert(number, items);
        }
        while self.replies.len() > MAX_REPLIES {
            for item in self
                .replies
                .pop_first()
                .map(|(_, items)| items)
                .into_iter()
                .flatten()
            {
                self.streams.lost(item, now);
            }
        }
        builder.seal(&self.keys, Direction::Reply)
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
