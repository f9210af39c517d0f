//! All streams of one session, the same for both sides: what the application does to them, what arrives for them, and what they have to send.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;

use super::codec::MAX_VARINT;
use super::ranges::RangeSet;
use super::stream::{Delivery, Stream};
use super::{INITIAL_WINDOW, Now, Side};
use crate::{Error, Limits};

mod app;
mod wire;

/// Streams that this many others could have been opened before but were not, before the session counts as broken.
const MAX_OPEN_GAPS: usize = 4_096;
/// Ranges in one acknowledgement.
const MAX_ACK_RANGES: usize = 32;
/// A stream's window may grow by one in so many parts of what the session has left: the first few streams get whole windows, and however many
/// there are, something is left for the next.
const WINDOW_SHARE: usize = 8;
/// The least that a stream puts into a message when many share it.
const MIN_SHARE: usize = 2_048;

/// Something that the application may be waiting for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// The other side opened a stream.
    Opened(u64),
    /// The state of the sending half changed.
    Send(u64),
    /// The state of the receiving half changed.
    Recv(u64),
}

/// What a message carried, so that it can be sent again if the message is lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Sent {
    Open(u64),
    Data {
        stream: u64,
        range: Range<u64>,
        fin: bool,
    },
    Ack {
        stream: u64,
        end: bool,
    },
    Reset(u64),
    Stop(u64),
    Refuse(u64),
}

/// When something should leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Due {
    Never,
    At(Now),
    Now,
}

pub(crate) struct Streams {
    side: Side,
    limits: Limits,
    streams: BTreeMap<u64, Stream>,
    /// Client: number of streams opened so far. Server: which were.
    opened: u64,
    seen: RangeSet,
    control: VecDeque<u64>,
    data: VecDeque<u64>,
    refusals: BTreeSet<u64>,
    /// Writers without room.
    waiting: BTreeSet<u64>,
    /// Streams whose last write found too little room.
    hungry: BTreeSet<u64>,
    send_held: usize,
    recv_held: usize,
    /// The [charges](Stream::charge) of all streams. Windows do not shrink, so what they allow counts from the moment when they are granted.
    promised: usize,
    due: Due,
    pub events: Vec<Event>,
}

impl Streams {
    pub fn new(side: Side, limits: Limits) -> Self {
        Streams {
            side,
            limits,
            streams: BTreeMap::new(),
            opened: 0,
            seen: RangeSet::default(),
            control: VecDeque::new(),
            data: VecDeque::new(),
            refusals: BTreeSet::new(),
            waiting: BTreeSet::new(),
            hungry: BTreeSet::new(),
            send_held: 0,
            recv_held: 0,
            promised: 0,
            due: Due::Never,
            events: Vec::new(),
        }
    }

    pub fn len(&self) -> usize {
        self.streams.len()
    }

    pub fn ids(&self) -> Vec<u64> {
        self.streams.keys().copied().collect()
    }

    pub fn protocol(&self, id: u64) -> Option<u16> {
        self.streams.get(&id).map(|stream| stream.protocol)
    }

    /// Bytes received and not read.
    pub fn recv_held(&self) -> usize {
        self.recv_held
    }

    /// Whether bytes of a stream at this offset let its reader go on to what is held already.
    pub fn fills_gap(&self, id: u64, offset: u64) -> bool {
        let stream = self.streams.get(&id);
        stream.is_some_and(|stream| stream.recv.buffer.is_gap(offset))
    }

    /// Whether the other side may have something to say, so that it has to be asked.
    pub fn expects(&self) -> bool {
        self.streams.values().any(|stream| !stream.is_quiet())
    }

    /// Whether both sides know all that there is to know of every stream.
    pub fn is_settled(&self) -> bool {
        let acks_end = self.side == Side::Client;
        self.refusals.is_empty()
            && self
                .streams
                .values()
                .all(|stream| stream.is_settled(acks_end))
    }

    /// Whether nothing of any stream is left to be sent or to be heard of.
    pub fn is_idle(&self) -> bool {
        self.refusals.is_empty() && self.streams.values().all(|stream| stream.failed.is_some())
    }

    /// Ends a stream before its time.
    pub fn fail(&mut self, id: u64, error: &Error) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        if stream.failed.is_some() {
            return;
        }
        stream.failed = Some(error.clone());
        self.send_held -= stream.send.buffer.len();
        stream.send.buffer.clear();
        self.events.extend([Event::Send(id), Event::Recv(id)]);
        self.recount(id);
        self.reap(id);
    }

    pub fn fail_all(&mut self, error: &Error) {
        for id in self.ids() {
            self.fail(id, error);
        }
    }

    /// The other side forgot the session: streams that never reached it start again, the others fail.
    pub fn restart(&mut self, error: &Error, now: Now) {
        self.refusals.clear();
        for id in self.ids() {
            let Some(stream) = self.streams.get_mut(&id) else {
                continue;
            };
            if stream.is_touched() {
                self.fail(id, error);
                continue;
            }
            stream.open = Delivery::Pending;
            stream.send.buffer.rewind();
            stream.recv.ack_pending = true;
            for delivery in [
                stream.send.fin.as_mut(),
                stream.send.reset.as_mut().map(|r| &mut r.1),
                stream.recv.stop.as_mut().map(|s| &mut s.1),
            ]
            .into_iter()
            .flatten()
            {
                *delivery = Delivery::Pending;
            }
            self.touch(id, now, true);
        }
    }

    /// Puts the stream into the queues where it belongs.
    fn enqueue(&mut self, id: u64) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        if stream.has_control() && !stream.in_control {
            stream.in_control = true;
            self.control.push_back(id);
        }
        if stream.has_data() && !stream.in_data {
            stream.in_data = true;
            self.data.push_back(id);
        }
    }

    fn touch(&mut self, id: u64, now: Now, urgent: bool) {
        self.enqueue(id);
        let Some(stream) = self.streams.get(&id) else {
            return;
        };
        if stream.in_control || stream.in_data {
            self.set_due(if urgent {
                Due::Now
            } else {
                Due::At(now + self.limits.coalesce)
            });
        }
    }

    fn set_due(&mut self, due: Due) {
        self.due = match (self.due, due) {
            (Due::Now, _) | (_, Due::Now) => Due::Now,
            (Due::At(a), Due::At(b)) => Due::At(a.min(b)),
            (Due::Never, other) | (other, Due::Never) => other,
        };
    }

    /// Raises the window of a stream when enough was read, or when the other side has little left.
    ///
    /// Nobody else has to wake a stream that got a small window: it always has one of nearly 32 KiB, so a reader that reads gets bytes, and what it
    /// reads brings it here again.
    fn widen(&mut self, id: u64, now: Now) {
        self.recount(id);
        let Some(stream) = self.streams.get(&id) else {
            return;
        };
        let recv = &stream.recv;
        if recv.has_ended() || recv.stop.is_some() || stream.failed.is_some() {
            return;
        }
        let most = self.allowance(recv.charged) as u64;
        let window = recv
            .buffer
            .read_offset()
            .saturating_add(most)
            .min(MAX_VARINT);
        if window >= recv.window.saturating_add(most / 4) {
            self.grant(id, window);
            self.touch(id, now, true);
        }
    }

    /// Tells the other side of a window.
    fn grant(&mut self, id: u64, window: u64) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.recv.window = window;
            stream.recv.ack_pending = true;
            self.recount(id);
        }
    }

    /// Bytes that the other side may send ahead of the reader of a stream that is charged for so much already.
    fn allowance(&self, charged: usize) -> usize {
        let spare = self
            .limits
            .buffered_bytes_per_session
            .saturating_sub(self.promised);
        self.limits
            .buffered_bytes_per_stream
            .min(INITIAL_WINDOW + charged + spare / WINDOW_SHARE)
    }

    /// Counts anew what a stream may have to hold: whenever it was granted a window, was read, or ended.
    fn recount(&mut self, id: u64) {
        if let Some(stream) = self.streams.get_mut(&id) {
            let charge = stream.charge();
            self.promised = self.promised - stream.recv.charged + charge;
            stream.recv.charged = charge;
        }
    }

    fn wake_writers(&mut self, id: u64) {
        self.waiting.remove(&id);
        self.events.push(Event::Send(id));
        if self.send_held < self.limits.buffered_bytes_per_session && !self.waiting.is_empty() {
            self.events.extend(
                std::mem::take(&mut self.waiting)
                    .into_iter()
                    .map(Event::Send),
            );
        }
    }

    /// Forgets a stream that is over on both sides.
    fn reap(&mut self, id: u64) {
        if self
            .streams
            .get(&id)
            .is_some_and(|stream| stream.is_over(self.side == Side::Client))
            && let Some(mut stream) = self.streams.remove(&id)
        {
            self.send_held -= stream.send.buffer.len();
            self.recv_held -= stream.recv.buffer.discard();
            self.promised -= stream.recv.charged;
            self.waiting.remove(&id);
            self.hungry.remove(&id);
        }
    }
}
