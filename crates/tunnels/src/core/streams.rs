//! All streams of one session, the same for both sides: what the application does to them, what arrives for them, and what they have to send.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;

use bytes::Bytes;

use super::codec::{Builder, DATA_HEADER, Frame, MAX_VARINT, Violation};
use super::ranges::RangeSet;
use super::stream::{Delivery, Stream};
use super::{INITIAL_WINDOW, Now, Side};
use crate::{Error, Limits};

/// Streams that this many others could have been opened before but were not, before the session counts as broken.
const MAX_OPEN_GAPS: usize = 4_096;
/// Ranges in one acknowledgement.
const MAX_ACK_RANGES: usize = 32;
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
    Data { stream: u64, range: Range<u64>, fin: bool },
    Ack { stream: u64, end: bool },
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
            due: Due::Never,
            events: Vec::new(),
        }
    }

    // What the application does.

    /// Opens a stream. Nothing leaves before the first byte or the end of the coalescing time.
    pub fn open(&mut self, protocol: u16, now: Now) -> Result<u64, Error> {
        if self.streams.len() >= self.limits.streams_per_session {
            return Err(Error::TooManyStreams { limit: self.limits.streams_per_session });
        }
        let id = self.opened << 1;
        self.opened += 1;
        let mut stream = Stream::new(protocol, Delivery::Pending);
        // The first call tells how much the answer may hold.
        stream.recv.window = self.allowance() as u64;
        stream.recv.ack_pending = true;
        self.streams.insert(id, stream);
        self.touch(id, now, false);
        Ok(id)
    }

    /// Takes what there is room for; 0 when there is none.
    pub fn write(&mut self, id: u64, data: &[u8], now: Now) -> Result<usize, Error> {
        let spare = self.limits.buffered_bytes_per_session.saturating_sub(self.send_held);
        let Some(stream) = self.streams.get_mut(&id) else { return Err(Error::Finished) };
        stream.check_send()?;
        if stream.send.fin.is_some() {
            return Err(Error::Finished);
        }
        let held = stream.send.buffer.len();
        let most = self.limits.buffered_bytes_per_stream.min(held.saturating_add(spare).max(INITIAL_WINDOW));
        let taken = most.saturating_sub(held).min(data.len());
        if taken < data.len() {
            self.hungry.insert(id);
        } else {
            self.hungry.remove(&id);
        }
        if taken == 0 {
            if !data.is_empty() {
                self.waiting.insert(id);
            }
            return Ok(0);
        }
        stream.send.buffer.write(&data[..taken]);
        let full = stream.send.buffer.sendable(stream.send.window) >= self.limits.max_message as u64;
        self.send_held += taken;
        self.touch(id, now, full);
        Ok(taken)
    }

    /// Sends what was written without waiting for more.
    pub fn flush(&mut self, id: u64, now: Now) -> Result<(), Error> {
        let Some(stream) = self.streams.get(&id) else { return Err(Error::Finished) };
        stream.check_send()?;
        if stream.has_data() {
            self.touch(id, now, true);
        }
        Ok(())
    }

    pub fn finish(&mut self, id: u64, now: Now) -> Result<(), Error> {
        let Some(stream) = self.streams.get_mut(&id) else { return Err(Error::Finished) };
        stream.check_send()?;
        if stream.send.fin.is_none() {
            stream.send.fin = Some(Delivery::Pending);
            self.hungry.remove(&id);
            self.touch(id, now, true);
        }
        Ok(())
    }

    pub fn reset(&mut self, id: u64, code: u64, now: Now) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if stream.failed.is_some() || stream.send.is_done() || stream.send.reset.is_some() {
            return;
        }
        self.send_held -= stream.send.buffer.len();
        stream.send.buffer.clear();
        stream.send.reset = Some((code.min(MAX_VARINT), Delivery::Pending));
        self.touch(id, now, true);
        self.wake_writers(id);
    }

    /// `Some` once the other side stopped, or has everything.
    pub fn stopped(&self, id: u64) -> Result<Option<Option<u64>>, Error> {
        let Some(stream) = self.streams.get(&id) else { return Err(Error::Finished) };
        match (&stream.failed, stream.send.stopped) {
            (_, Some(code)) => Ok(Some(Some(code))),
            _ if stream.send.reset.is_some() => Err(Error::Finished),
            _ if stream.send.is_done() => Ok(Some(None)),
            (Some(error), None) => Err(error.clone()),
            (None, None) => Ok(None),
        }
    }

    /// The next bytes, empty at the end; `None` when there are none yet.
    pub fn read(&mut self, id: u64, max: usize, now: Now) -> Result<Option<Bytes>, Error> {
        let Some(stream) = self.streams.get_mut(&id) else { return Err(Error::Finished) };
        if stream.recv.stop.is_some() {
            return Err(Error::Finished);
        }
        if let Some(code) = stream.recv.reset {
            return Err(Error::Reset { code });
        }
        if stream.recv.buffer.is_at_end() {
            return Ok(Some(Bytes::new()));
        }
        let Some(bytes) = stream.recv.buffer.read(max) else {
            return match &stream.failed {
                Some(error) => Err(error.clone()),
                None => Ok(None),
            };
        };
        self.recv_held -= bytes.len();
        self.widen(id, now);
        Ok(Some(bytes))
    }

    pub fn stop(&mut self, id: u64, code: u64, now: Now) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if stream.recv.stop.is_some() {
            return;
        }
        self.recv_held -= stream.recv.buffer.discard();
        if stream.failed.is_none() && !stream.recv.has_ended() {
            stream.recv.stop = Some((code.min(MAX_VARINT), Delivery::Pending));
            self.touch(id, now, true);
        }
    }

    /// The sending handle is gone: what was written is delivered, then the stream ends.
    pub fn drop_send(&mut self, id: u64, now: Now) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.send.dropped = true;
        if stream.failed.is_none() && stream.send.fin.is_none() && stream.send.reset.is_none() && stream.send.stopped.is_none() {
            stream.send.fin = Some(Delivery::Pending);
            self.touch(id, now, true);
        }
        self.waiting.remove(&id);
        self.hungry.remove(&id);
        self.reap(id);
    }

    /// The receiving handle is gone: the other side may stop sending.
    pub fn drop_recv(&mut self, id: u64, now: Now) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.recv.dropped = true;
        self.stop(id, 0, now);
        self.reap(id);
    }

    // What the other side says.

    /// Takes a frame that concerns streams. `room_for_opens`: whether a new stream may be accepted.
    pub fn process(&mut self, frame: Frame, room_for_opens: &mut dyn FnMut() -> bool, now: Now) -> Result<(), Violation> {
        match frame {
            Frame::Open { stream, protocol } => self.opened_by_other(stream, protocol, room_for_opens),
            Frame::Data { stream, offset, fin, bytes } => self.arrived(stream, offset, fin, bytes, now),
            Frame::Ack { stream, offset, window, ranges } => {
                self.acknowledged(stream, offset, window, ranges, now);
                Ok(())
            }
            Frame::Reset { stream: id, code } => {
                if let Some(stream) = self.streams.get_mut(&id)
                    && !stream.recv.has_ended()
                {
                    self.recv_held -= stream.recv.buffer.discard();
                    stream.recv.reset = Some(code);
                    stream.recv.ack_pending = false;
                    self.events.push(Event::Recv(id));
                    self.reap(id);
                }
                Ok(())
            }
            Frame::Stop { stream: id, code } => {
                if let Some(stream) = self.streams.get_mut(&id)
                    && !stream.send.is_done()
                {
                    self.send_held -= stream.send.buffer.len();
                    stream.send.buffer.clear();
                    stream.send.stopped = Some(code);
                    self.wake_writers(id);
                    self.reap(id);
                }
                Ok(())
            }
            Frame::Refuse { stream } => {
                self.fail(stream, &Error::StreamRefused);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn opened_by_other(&mut self, id: u64, protocol: u16, room: &mut dyn FnMut() -> bool) -> Result<(), Violation> {
        let index = id >> 1;
        if self.side == Side::Client {
            // Version 1 has no streams opened by the server; room for a later one.
            self.refusals.insert(id);
            self.set_due(Due::Now);
            return Ok(());
        }
        if id & 1 != 0 {
            return Err(Violation("stream number of the wrong side"));
        }
        if self.seen.contains(index) {
            return Ok(());
        }
        self.seen.insert(index..index + 1);
        if self.seen.len() > MAX_OPEN_GAPS {
            return Err(Violation("too many stream numbers left out"));
        }
        if self.streams.len() >= self.limits.streams_per_session || !room() {
            self.refusals.insert(id);
            self.set_due(Due::Now);
            return Ok(());
        }
        let mut stream = Stream::new(protocol, Delivery::Delivered);
        // The wider window goes along with the next reply; on its own it is not worth one, so that a held reply can wait for the answer.
        stream.recv.window = self.allowance() as u64;
        stream.recv.ack_pending = true;
        self.streams.insert(id, stream);
        self.events.push(Event::Opened(id));
        self.enqueue(id);
        Ok(())
    }

    fn arrived(&mut self, id: u64, offset: u64, fin: bool, bytes: Bytes, now: Now) -> Result<(), Violation> {
        let Some(stream) = self.streams.get_mut(&id) else {
            // It is over, or was refused: the other side does not know yet.
            return if self.side == Side::Server && !self.seen.contains(id >> 1) { Err(Violation("data of a stream that was not opened")) } else { Ok(()) };
        };
        if stream.failed.is_some() || stream.recv.reset.is_some() || stream.recv.stop.is_some() {
            return Ok(());
        }
        let was_readable = stream.recv.buffer.is_readable();
        self.recv_held += stream.recv.buffer.insert(offset, bytes, fin, stream.recv.window)?;
        if stream.recv.buffer.is_readable() != was_readable {
            self.events.push(Event::Recv(id));
        }
        if self.side == Side::Client {
            stream.recv.ack_pending = true;
            self.enqueue(id);
            self.set_due(Due::At(now + super::ACK_DELAY));
        } else if stream.recv.buffer.is_complete() {
            // The reply to the call says as much.
            stream.recv.ack_pending = false;
        } else if stream.recv.ack_pending && stream.recv.buffer.contiguous() >= INITIAL_WINDOW as u64 / 2 {
            self.touch(id, now, true);
        }
        self.reap(id);
        Ok(())
    }

    fn acknowledged(&mut self, id: u64, offset: u64, window: u64, ranges: Vec<Range<u64>>, now: Now) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if stream.failed.is_some() {
            return;
        }
        let end = stream.send.buffer.end();
        let mut freed = stream.send.buffer.ack(0..offset);
        for range in ranges {
            freed += stream.send.buffer.ack(range);
        }
        stream.send.window = stream.send.window.max(window);
        // The end counts as one byte behind the last.
        if offset > end && stream.send.fin.is_some() {
            stream.send.fin = Some(Delivery::Delivered);
        }
        self.send_held -= freed;
        self.after_ack(id, freed, now);
    }

    /// Wakes whoever waits for room or for the end, and queues what the window now allows.
    fn after_ack(&mut self, id: u64, freed: usize, now: Now) {
        let Some(stream) = self.streams.get(&id) else { return };
        let (has_data, done) = (stream.has_data(), stream.send.is_done());
        if has_data && !stream.in_data {
            self.touch(id, now, true);
        }
        if freed > 0 || done {
            self.wake_writers(id);
        }
        self.reap(id);
    }

    // What is to be sent.

    /// Writes as much as there is room for, control frames first, and notes what it wrote.
    pub fn fill(&mut self, builder: &mut Builder, sent: &mut Vec<Sent>) {
        let full = !self.fill_control(builder, sent) | !self.fill_data(builder, sent);
        self.due = if full { Due::Now } else { Due::Never };
    }

    /// When [`fill`](Self::fill) should be called.
    pub fn due(&self) -> Due {
        if self.has_pending() { self.due } else { Due::Never }
    }

    /// Whether [`fill`](Self::fill) would write anything.
    pub fn has_pending(&self) -> bool {
        let has = |queue: &VecDeque<u64>, what: fn(&Stream) -> bool| queue.iter().any(|id| self.streams.get(id).is_some_and(what));
        !self.refusals.is_empty() || has(&self.data, Stream::has_data) || has(&self.control, Stream::has_control)
    }

    /// Bytes that could be sent now, or as soon as what is on its way is acknowledged.
    pub fn backlog(&self) -> u64 {
        let now = self.data.iter().filter(|id| !self.hungry.contains(id)).filter_map(|id| self.streams.get(id)).map(|stream| {
            stream.send.buffer.sendable(stream.send.window) + DATA_HEADER as u64
        });
        // Where the writer had to wait for room, more comes for every byte that is acknowledged.
        let soon = self.hungry.iter().filter_map(|id| self.streams.get(id)).map(|stream| {
            let buffer = &stream.send.buffer;
            if buffer.is_blocked(stream.send.window) { buffer.sendable(stream.send.window) } else { buffer.len() as u64 }
        });
        now.chain(soon).sum()
    }

    fn fill_control(&mut self, builder: &mut Builder, sent: &mut Vec<Sent>) -> bool {
        while let Some(&id) = self.refusals.first() {
            if !builder.push(&Frame::Refuse { stream: id }) {
                return false;
            }
            self.refusals.remove(&id);
            sent.push(Sent::Refuse(id));
        }
        while let Some(id) = self.control.pop_front() {
            let Some(stream) = self.streams.get_mut(&id) else { continue };
            stream.in_control = false;
            if !push_control(id, stream, builder, sent) {
                stream.in_control = true;
                self.control.push_front(id);
                return false;
            }
        }
        true
    }

    fn fill_data(&mut self, builder: &mut Builder, sent: &mut Vec<Sent>) -> bool {
        let share = (builder.room() / self.data.len().max(1)).max(MIN_SHARE);
        while let Some(id) = self.data.pop_front() {
            let Some(stream) = self.streams.get_mut(&id) else { continue };
            stream.in_data = false;
            if !stream.has_data() {
                continue;
            }
            if stream.open != Delivery::Delivered && !sent.contains(&Sent::Open(id)) && !push_open(id, stream, builder, sent) {
                stream.in_data = true;
                self.data.push_front(id);
                return false;
            }
            let room = builder.room();
            if room <= DATA_HEADER {
                stream.in_data = true;
                self.data.push_front(id);
                return false;
            }
            let send = &mut stream.send;
            let end = send.buffer.end();
            let range = send.buffer.take((room - DATA_HEADER).min(share), send.window).unwrap_or(end..end);
            let fin = send.fin.is_some() && range.end == end;
            builder.push_data(id, range.start, fin, send.buffer.slices(&range));
            if fin && send.fin == Some(Delivery::Pending) {
                send.fin = Some(Delivery::Sent);
            }
            sent.push(Sent::Data { stream: id, range, fin });
            if stream.has_data() {
                stream.in_data = true;
                self.data.push_back(id);
            }
        }
        true
    }

    /// The message that carried this arrived and was acted on.
    pub fn delivered(&mut self, sent: Sent, now: Now) {
        match sent {
            Sent::Open(id) => {
                if let Some(stream) = self.streams.get_mut(&id) {
                    stream.open = Delivery::Delivered;
                }
                self.reap(id);
            }
            Sent::Data { stream: id, range, fin } => {
                let Some(stream) = self.streams.get_mut(&id) else { return };
                if stream.failed.is_some() {
                    return;
                }
                let freed = stream.send.buffer.ack(range);
                if fin && stream.send.fin.is_some() {
                    stream.send.fin = Some(Delivery::Delivered);
                }
                self.send_held -= freed;
                self.after_ack(id, freed, now);
            }
            Sent::Ack { stream: id, end } => {
                if let Some(stream) = self.streams.get_mut(&id) {
                    stream.recv.end_acked |= end;
                }
                self.reap(id);
            }
            Sent::Reset(id) => {
                if let Some(stream) = self.streams.get_mut(&id)
                    && let Some((_, delivery)) = &mut stream.send.reset
                {
                    *delivery = Delivery::Delivered;
                }
                self.reap(id);
            }
            Sent::Stop(id) => {
                if let Some(stream) = self.streams.get_mut(&id)
                    && let Some((_, delivery)) = &mut stream.recv.stop
                {
                    *delivery = Delivery::Delivered;
                }
                self.reap(id);
            }
            Sent::Refuse(_) => {}
        }
    }

    /// The message that carried this was lost: what of it still matters is sent again.
    pub fn lost(&mut self, sent: Sent, now: Now) {
        if let Sent::Refuse(id) = sent {
            self.refusals.insert(id);
            self.set_due(Due::Now);
            return;
        }
        let (Sent::Open(id) | Sent::Data { stream: id, .. } | Sent::Ack { stream: id, .. } | Sent::Reset(id) | Sent::Stop(id) | Sent::Refuse(id)) = sent;
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let again = |delivery: &mut Delivery| {
            if *delivery == Delivery::Sent {
                *delivery = Delivery::Pending;
            }
        };
        match sent {
            Sent::Open(_) => again(&mut stream.open),
            Sent::Data { range, fin, .. } => {
                stream.send.buffer.lose(range);
                if fin && let Some(delivery) = &mut stream.send.fin {
                    again(delivery);
                }
            }
            Sent::Ack { .. } => stream.recv.ack_pending |= !stream.recv.has_ended() || (self.side == Side::Client && !stream.recv.end_acked && stream.recv.buffer.is_complete()),
            Sent::Reset(_) => {
                if let Some((_, delivery)) = &mut stream.send.reset {
                    again(delivery);
                }
            }
            Sent::Stop(_) => {
                if let Some((_, delivery)) = &mut stream.recv.stop {
                    again(delivery);
                }
            }
            Sent::Refuse(_) => {}
        }
        self.touch(id, now, true);
    }

    // The session as a whole.

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

    /// Whether the other side may have something to say, so that it has to be asked.
    pub fn expects(&self) -> bool {
        self.streams.values().any(|stream| !stream.is_quiet())
    }

    /// Whether nothing of any stream is left to be sent or to be heard of.
    pub fn is_idle(&self) -> bool {
        self.refusals.is_empty() && self.streams.values().all(|stream| stream.failed.is_some())
    }

    /// Ends a stream before its time.
    pub fn fail(&mut self, id: u64, error: &Error) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if stream.failed.is_some() {
            return;
        }
        stream.failed = Some(error.clone());
        self.send_held -= stream.send.buffer.len();
        stream.send.buffer.clear();
        self.events.extend([Event::Send(id), Event::Recv(id)]);
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
            let Some(stream) = self.streams.get_mut(&id) else { continue };
            if stream.is_touched() {
                self.fail(id, error);
                continue;
            }
            stream.open = Delivery::Pending;
            stream.send.buffer.rewind();
            stream.recv.ack_pending = true;
            for delivery in [stream.send.fin.as_mut(), stream.send.reset.as_mut().map(|r| &mut r.1), stream.recv.stop.as_mut().map(|s| &mut s.1)].into_iter().flatten() {
                *delivery = Delivery::Pending;
            }
            self.touch(id, now, true);
        }
    }

    /// Puts the stream into the queues where it belongs.
    fn enqueue(&mut self, id: u64) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
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
        let Some(stream) = self.streams.get(&id) else { return };
        if stream.in_control || stream.in_data {
            self.set_due(if urgent { Due::Now } else { Due::At(now + self.limits.coalesce) });
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
    fn widen(&mut self, id: u64, now: Now) {
        let most = self.allowance() as u64;
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if stream.recv.has_ended() || stream.recv.stop.is_some() || stream.failed.is_some() {
            return;
        }
        let window = stream.recv.buffer.read_offset().saturating_add(most).min(MAX_VARINT);
        if window >= stream.recv.window.saturating_add(most / 4) {
            stream.recv.window = window;
            stream.recv.ack_pending = true;
            self.touch(id, now, true);
        }
    }

    /// Bytes that a stream may send ahead of its reader: less when the session holds much already.
    fn allowance(&self) -> usize {
        let spare = self.limits.buffered_bytes_per_session.saturating_sub(self.recv_held);
        self.limits.buffered_bytes_per_stream.min(spare.max(INITIAL_WINDOW))
    }

    fn wake_writers(&mut self, id: u64) {
        self.waiting.remove(&id);
        self.events.push(Event::Send(id));
        if self.send_held < self.limits.buffered_bytes_per_session && !self.waiting.is_empty() {
            self.events.extend(std::mem::take(&mut self.waiting).into_iter().map(Event::Send));
        }
    }

    /// Forgets a stream that is over on both sides.
    fn reap(&mut self, id: u64) {
        if self.streams.get(&id).is_some_and(|stream| stream.is_over(self.side == Side::Client))
            && let Some(mut stream) = self.streams.remove(&id)
        {
            self.send_held -= stream.send.buffer.len();
            self.recv_held -= stream.recv.buffer.discard();
            self.waiting.remove(&id);
            self.hungry.remove(&id);
        }
    }
}

impl Stream {
    fn check_send(&self) -> Result<(), Error> {
        if let Some(code) = self.send.stopped {
            return Err(Error::Stopped { code });
        }
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        if self.send.reset.is_some() {
            return Err(Error::Finished);
        }
        Ok(())
    }
}

fn push_open(id: u64, stream: &mut Stream, builder: &mut Builder, sent: &mut Vec<Sent>) -> bool {
    if !builder.push(&Frame::Open { stream: id, protocol: stream.protocol }) {
        return false;
    }
    stream.open = Delivery::Sent;
    sent.push(Sent::Open(id));
    true
}

/// Writes the control frames of a stream; `false` when there was no room for one.
fn push_control(id: u64, stream: &mut Stream, builder: &mut Builder, sent: &mut Vec<Sent>) -> bool {
    if stream.failed.is_some() {
        return true;
    }
    if stream.open == Delivery::Pending && !push_open(id, stream, builder, sent) {
        return false;
    }
    // Other frames of a stream that may not be open on the other side yet come with its opening.
    if stream.has_control() && stream.open != Delivery::Delivered && !sent.contains(&Sent::Open(id)) && !push_open(id, stream, builder, sent) {
        return false;
    }
    if stream.recv.ack_pending {
        let buffer = &stream.recv.buffer;
        let end = buffer.is_complete();
        let offset = buffer.contiguous() + u64::from(end);
        let ack = Frame::Ack { stream: id, offset, window: stream.recv.window, ranges: buffer.beyond(MAX_ACK_RANGES) };
        if !builder.push(&ack) {
            return false;
        }
        stream.recv.ack_pending = false;
        sent.push(Sent::Ack { stream: id, end });
    }
    if let Some((code, delivery @ Delivery::Pending)) = &mut stream.recv.stop {
        if !builder.push(&Frame::Stop { stream: id, code: *code }) {
            return false;
        }
        *delivery = Delivery::Sent;
        sent.push(Sent::Stop(id));
    }
    if let Some((code, delivery @ Delivery::Pending)) = &mut stream.send.reset {
        if !builder.push(&Frame::Reset { stream: id, code: *code }) {
            return false;
        }
        *delivery = Delivery::Sent;
        sent.push(Sent::Reset(id));
    }
    true
}
