//! The state of one stream: its two halves, and what of it is on its way.

use super::INITIAL_WINDOW;
use super::recv::RecvBuffer;
use super::send::SendBuffer;
use crate::Error;

/// How far something that has to reach the other side has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Delivery {
    Pending,
    Sent,
    Delivered,
}

#[derive(Debug)]
pub(crate) struct SendHalf {
    pub buffer: SendBuffer,
    /// The other side takes bytes below this offset.
    pub window: u64,
    /// The writer said that this is all; how far the end has come.
    pub fin: Option<Delivery>,
    pub reset: Option<(u64, Delivery)>,
    /// The other side does not want any more.
    pub stopped: Option<u64>,
    /// The handle is gone.
    pub dropped: bool,
}

#[derive(Debug)]
pub(crate) struct RecvHalf {
    pub buffer: RecvBuffer,
    /// The window that the other side was told, or will be told by an acknowledgement that is pending.
    pub window: u64,
    /// What the session counts for it, see [`Stream::charge`].
    pub charged: usize,
    pub ack_pending: bool,
    /// The other side knows that everything arrived.
    pub end_acked: bool,
    pub reset: Option<u64>,
    pub stop: Option<(u64, Delivery)>,
    pub dropped: bool,
}

#[derive(Debug)]
pub(crate) struct Stream {
    pub protocol: u16,
    /// How far the opening has come.
    pub open: Delivery,
    pub send: SendHalf,
    pub recv: RecvHalf,
    /// What ended the stream before its time.
    pub failed: Option<Error>,
    /// Whether it stands in the queue of streams with control frames to send, and in that of streams with data.
    pub in_control: bool,
    pub in_data: bool,
}

impl Stream {
    pub fn new(protocol: u16, open: Delivery) -> Self {
        Stream {
            protocol,
            open,
            send: SendHalf {
                buffer: SendBuffer::default(),
                window: INITIAL_WINDOW as u64,
                fin: None,
                reset: None,
                stopped: None,
                dropped: false,
            },
            recv: RecvHalf {
                buffer: RecvBuffer::default(),
                window: INITIAL_WINDOW as u64,
                charged: 0,
                ack_pending: false,
                end_acked: false,
                reset: None,
                stop: None,
                dropped: false,
            },
            failed: None,
            in_control: false,
            in_data: false,
        }
    }

    /// Whether a data frame could be sent now.
    pub fn has_data(&self) -> bool {
        self.failed.is_none() && self.send.has_data()
    }

    /// Whether a frame other than data is to be sent.
    pub fn has_control(&self) -> bool {
        self.failed.is_none()
            && (self.open == Delivery::Pending
                || self.recv.ack_pending
                || matches!(self.recv.stop, Some((_, Delivery::Pending)))
                || matches!(self.send.reset, Some((_, Delivery::Pending))))
    }

    /// Whether neither the application nor the other side can do anything more with the stream.
    /// `acks_end`: whether this side has to tell the other that the end arrived.
    pub fn is_over(&self, acks_end: bool) -> bool {
        self.send.dropped && self.recv.dropped && self.is_settled(acks_end)
    }

    /// Whether both sides know all that there is to know of the stream.
    pub fn is_settled(&self, acks_end: bool) -> bool {
        self.failed.is_some()
            || (self.open == Delivery::Delivered
                && self.send.is_done()
                && self.recv.is_done(acks_end))
    }

    /// Whether nothing is to be expected from the other side any more, so that nobody has to ask.
    pub fn is_quiet(&self) -> bool {
        self.failed.is_some() || (self.send.is_done() && self.recv.has_ended())
    }

    /// Bytes that may have to be held for the reader, those that are on their way or can still be sent included, beyond what every
    /// stream may have.
    pub fn charge(&self) -> usize {
        let (recv, buffer) = (&self.recv, &self.recv.buffer);
        let ahead = if self.failed.is_some() || recv.stop.is_some() || recv.has_ended() {
            buffer.len()
        } else {
            let ahead = buffer
                .limit(recv.window)
                .saturating_sub(buffer.read_offset());
            usize::try_from(ahead).unwrap_or(usize::MAX)
        };
        ahead.saturating_sub(INITIAL_WINDOW)
    }

    /// Whether something of the stream can be lost by starting it again from the beginning.
    pub fn is_touched(&self) -> bool {
        self.open == Delivery::Delivered
    }
}

impl SendHalf {
    fn has_data(&self) -> bool {
        self.reset.is_none()
            && self.stopped.is_none()
            && (self.buffer.has_sendable(self.window)
                || (self.fin == Some(Delivery::Pending) && !self.buffer.is_blocked(self.window)))
    }

    /// Whether the other side needs nothing more of this half.
    pub fn is_done(&self) -> bool {
        self.stopped.is_some()
            || matches!(self.reset, Some((_, Delivery::Delivered)))
            || (self.reset.is_none()
                && self.fin == Some(Delivery::Delivered)
                && self.buffer.is_empty())
    }
}

impl RecvHalf {
    /// Whether nothing more can arrive that is wanted.
    pub fn has_ended(&self) -> bool {
        self.reset.is_some()
            || self.buffer.is_complete()
            || self
                .stop
                .is_some_and(|(_, delivery)| delivery == Delivery::Delivered)
    }

    fn is_done(&self, acks_end: bool) -> bool {
        self.reset.is_some()
            || self
                .stop
                .is_some_and(|(_, delivery)| delivery == Delivery::Delivered)
            || (self.buffer.is_complete() && (self.end_acked || !acks_end))
    }
}
