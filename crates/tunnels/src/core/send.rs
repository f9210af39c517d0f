//! What was written to a stream and has not been acknowledged yet.

use std::collections::VecDeque;
use std::ops::Range;

use super::ranges::RangeSet;

/// The send buffer of a stream: bytes from the first one that is not acknowledged to the last one written.
#[derive(Debug, Default)]
pub(crate) struct SendBuffer {
    bytes: VecDeque<u8>,
    /// Stream offset of the first byte in `bytes`.
    base: u64,
    /// Everything from here on has never been sent.
    next: u64,
    /// Sent, lost, to be sent again.
    lost: RangeSet,
    /// Acknowledged above `base`.
    acked: RangeSet,
}

impl SendBuffer {
    /// Bytes held.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Offset behind the last byte written.
    pub fn end(&self) -> u64 {
        self.base + self.bytes.len() as u64
    }

    /// Whether every byte written was acknowledged.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub fn write(&mut self, data: &[u8]) {
        self.bytes.extend(data);
    }

    /// Drops everything.
    pub fn clear(&mut self) {
        *self = SendBuffer {
            base: self.end(),
            next: self.end(),
            ..SendBuffer::default()
        };
    }

    /// Bytes that could be sent now if the other side takes those below `window`.
    pub fn sendable(&self, window: u64) -> u64 {
        let lost: u64 = self.lost.iter().map(|r| r.end - r.start).sum();
        lost + self.end().min(window).saturating_sub(self.next)
    }

    /// Whether something may be sent: the same as a positive [`sendable`](Self::sendable), but quicker.
    pub fn has_sendable(&self, window: u64) -> bool {
        !self.lost.is_empty() || self.end().min(window) > self.next
    }

    /// Bytes that are written, not sent, and not allowed by `window`.
    pub fn is_blocked(&self, window: u64) -> bool {
        self.next >= window && self.end() > self.next
    }

    /// Takes the next range to send, at most `max` bytes, what was lost first.
    pub fn take(&mut self, max: usize, window: u64) -> Option<Range<u64>> {
        let max = max as u64;
        if max == 0 {
            return None;
        }
        if let Some(first) = self.lost.first() {
            let range = first.start..first.end.min(first.start.saturating_add(max));
            self.lost.remove(range.clone());
            return Some(range);
        }
        let end = self.end().min(window).min(self.next.saturating_add(max));
        if end <= self.next {
            return None;
        }
        let range = self.next..end;
        self.next = end;
        Some(range)
    }

    /// The bytes of a range that was taken.
    pub fn slices(&self, range: &Range<u64>) -> (&[u8], &[u8]) {
        let clip = |offset: u64| {
            usize::try_from(offset.saturating_sub(self.base))
                .unwrap_or(usize::MAX)
                .min(self.bytes.len())
        };
        let (start, end) = (clip(range.start), clip(range.end));
        let (head, tail) = self.bytes.as_slices();
        let split = head.len();
        (
            &head[start.min(split)..end.min(split)],
            &tail[start.saturating_sub(split)..end.saturating_sub(split)],
        )
    }

    /// The range arrived. Returns how many bytes were freed.
    pub fn ack(&mut self, range: Range<u64>) -> usize {
        let range = range.start.max(self.base)..range.end.min(self.end());
        if range.start >= range.end {
            return 0;
        }
        self.lost.remove(range.clone());
        self.acked.insert(range);
        let Some(first) = self.acked.first() else {
            return 0;
        };
        if first.start != self.base {
            return 0;
        }
        let freed = usize::try_from(first.end - self.base)
            .unwrap_or(usize::MAX)
            .min(self.bytes.len());
        self.bytes.drain(..freed);
        self.acked.remove(first.clone());
        self.base = first.end;
        self.next = self.next.max(self.base);
        if self.bytes.is_empty() && self.bytes.capacity() > 64 * 1024 {
            self.bytes = VecDeque::new();
        }
        freed
    }

    /// The range got lost on its way: what of it is still wanted will be sent again.
    pub fn lose(&mut self, range: Range<u64>) {
        let range = range.start.max(self.base)..range.end.min(self.next);
        for missing in self.acked.missing_in(range) {
            self.lost.insert(missing);
        }
    }

    /// Everything is to be sent again from the first byte. Only before anything was acknowledged.
    pub fn rewind(&mut self) {
        self.lost = RangeSet::default();
        self.acked = RangeSet::default();
        self.next = self.base;
    }
}
