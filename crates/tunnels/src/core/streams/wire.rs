//! What arrives for the streams, and what they have to send.

use std::collections::VecDeque;
use std::ops::Range;

use bytes::Bytes;

use super::super::codec::{Builder, DATA_HEADER, Frame, Violation};
use super::super::stream::{Delivery, Stream};
use super::super::{ACK_DELAY, INITIAL_WINDOW, Now, Side};
use super::{Due, Event, MAX_ACK_RANGES, MAX_OPEN_GAPS, MIN_SHARE, Sent, Streams};
use crate::Error;

impl Streams {
    /// Takes a frame that concerns streams. `room_for_opens`: whether a new stream may be accepted.
    pub fn process(
        &mut self,
        frame: Frame,
        room_for_opens: &mut dyn FnMut() -> bool,
        now: Now,
    ) -> Result<(), Violation> {
        match frame {
            Frame::Open { stream, protocol } => {
                self.opened_by_other(stream, protocol, room_for_opens)
            }
            Frame::Data {
                stream,
                offset,
                fin,
                bytes,
            } => self.arrived(stream, offset, fin, bytes, now),
            Frame::Ack {
                stream,
                offset,
                window,
                ranges,
            } => {
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
                    self.recount(id);
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

    fn opened_by_other(
        &mut self,
        id: u64,
        protocol: u16,
        room: &mut dyn FnMut() -> bool,
    ) -> Result<(), Violation> {
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
        self.streams
            .insert(id, Stream::new(protocol, Delivery::Delivered));
        // The wider window goes along with the next reply; on its own it is not worth one, so that a held reply can wait for the answer.
        self.grant(id, self.allowance(0) as u64);
        self.events.push(Event::Opened(id));
        self.enqueue(id);
        Ok(())
    }

    fn arrived(
        &mut self,
        id: u64,
        offset: u64,
        fin: bool,
        bytes: Bytes,
        now: Now,
    ) -> Result<(), Violation> {
        let Some(stream) = self.streams.get_mut(&id) else {
            // It is over, or was refused: the other side does not know yet.
            return if self.side == Side::Server && !self.seen.contains(id >> 1) {
                Err(Violation("data of a stream that was not opened"))
            } else {
                Ok(())
            };
        };
        if stream.failed.is_some() || stream.recv.reset.is_some() || stream.recv.stop.is_some() {
            return Ok(());
        }
        let was_readable = stream.recv.buffer.is_readable();
        self.recv_held += stream
            .recv
            .buffer
            .insert(offset, bytes, fin, stream.recv.window)?;
        if stream.recv.buffer.is_readable() != was_readable {
            self.events.push(Event::Recv(id));
        }
        let ended = fin || stream.recv.buffer.is_complete();
        if self.side == Side::Client {
            stream.recv.ack_pending = true;
            self.enqueue(id);
            self.set_due(Due::At(now + ACK_DELAY));
        } else if stream.recv.buffer.is_complete() {
            // The reply to the call says as much.
            stream.recv.ack_pending = false;
        } else if stream.recv.ack_pending
            && stream.recv.buffer.contiguous() >= INITIAL_WINDOW as u64 / 2
        {
            self.touch(id, now, true);
        }
        if ended {
            // Nothing more comes than what there is, however wide the window.
            self.recount(id);
        }
        self.reap(id);
        Ok(())
    }

    fn acknowledged(
        &mut self,
        id: u64,
        offset: u64,
        window: u64,
        ranges: Vec<Range<u64>>,
        now: Now,
    ) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
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
        let Some(stream) = self.streams.get(&id) else {
            return;
        };
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
        if self.has_pending() {
            self.due
        } else {
            Due::Never
        }
    }

    /// Whether [`fill`](Self::fill) would write anything.
    pub fn has_pending(&self) -> bool {
        let has = |queue: &VecDeque<u64>, what: fn(&Stream) -> bool| {
            queue
                .iter()
                .any(|id| self.streams.get(id).is_some_and(what))
        };
        !self.refusals.is_empty()
            || has(&self.data, Stream::has_data)
            || has(&self.control, Stream::has_control)
    }

    /// Bytes that could be sent now, or as soon as what is on its way is acknowledged.
    pub fn backlog(&self) -> u64 {
        let now = self
            .data
            .iter()
            .filter(|id| !self.hungry.contains(id))
            .filter_map(|id| self.streams.get(id))
            .map(|stream| stream.send.buffer.sendable(stream.send.window) + DATA_HEADER as u64);
        // Where the writer had to wait for room, more comes for every byte that is acknowledged: half a round trip after it arrived.
        let soon = self
            .hungry
            .iter()
            .filter_map(|id| self.streams.get(id))
            .map(|stream| {
                let buffer = &stream.send.buffer;
                if buffer.is_blocked(stream.send.window) {
                    buffer.sendable(stream.send.window)
                } else {
                    buffer.len() as u64 / 3 * 2
                }
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
            let Some(stream) = self.streams.get_mut(&id) else {
                continue;
            };
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
            let Some(stream) = self.streams.get_mut(&id) else {
                continue;
            };
            stream.in_data = false;
            if !stream.has_data() {
                continue;
            }
            if stream.open != Delivery::Delivered
                && !sent.contains(&Sent::Open(id))
                && !push_open(id, stream, builder, sent)
            {
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
            let range = send
                .buffer
                .take((room - DATA_HEADER).min(share), send.window)
                .unwrap_or(end..end);
            let fin = send.fin.is_some() && range.end == end;
            builder.push_data(id, range.start, fin, send.buffer.slices(&range));
            if fin && send.fin == Some(Delivery::Pending) {
                send.fin = Some(Delivery::Sent);
            }
            sent.push(Sent::Data {
                stream: id,
                range,
                fin,
            });
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
            Sent::Data {
                stream: id,
                range,
                fin,
            } => {
                let Some(stream) = self.streams.get_mut(&id) else {
                    return;
                };
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
        let (Sent::Open(id)
        | Sent::Data { stream: id, .. }
        | Sent::Ack { stream: id, .. }
        | Sent::Reset(id)
        | Sent::Stop(id)
        | Sent::Refuse(id)) = sent;
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
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
            Sent::Ack { .. } => {
                stream.recv.ack_pending |= !stream.recv.has_ended()
                    || (self.side == Side::Client
                        && !stream.recv.end_acked
                        && stream.recv.buffer.is_complete())
            }
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
}

fn push_open(id: u64, stream: &mut Stream, builder: &mut Builder, sent: &mut Vec<Sent>) -> bool {
    if !builder.push(&Frame::Open {
        stream: id,
        protocol: stream.protocol,
    }) {
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
    if stream.has_control()
        && stream.open != Delivery::Delivered
        && !sent.contains(&Sent::Open(id))
        && !push_open(id, stream, builder, sent)
    {
        return false;
    }
    if stream.recv.ack_pending {
        let buffer = &stream.recv.buffer;
        let end = buffer.is_complete();
        let offset = buffer.contiguous() + u64::from(end);
        let ack = Frame::Ack {
            stream: id,
            offset,
            window: stream.recv.window,
            ranges: buffer.beyond(MAX_ACK_RANGES),
        };
        if !builder.push(&ack) {
            return false;
        }
        stream.recv.ack_pending = false;
        sent.push(Sent::Ack { stream: id, end });
    }
    if let Some((code, delivery @ Delivery::Pending)) = &mut stream.recv.stop {
        if !builder.push(&Frame::Stop {
            stream: id,
            code: *code,
        }) {
            return false;
        }
        *delivery = Delivery::Sent;
        sent.push(Sent::Stop(id));
    }
    if let Some((code, delivery @ Delivery::Pending)) = &mut stream.send.reset {
        if !builder.push(&Frame::Reset {
            stream: id,
            code: *code,
        }) {
            return false;
        }
        *delivery = Delivery::Sent;
        sent.push(Sent::Reset(id));
    }
    true
}
