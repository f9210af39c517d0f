//! What arrived on a stream and has not been read yet, put in order.

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::{Bytes, BytesMut};

use super::codec::Violation;
use super::ranges::RangeSet;

/// Gaps in what arrived on one stream. An honest sender leaves no more than a few for each message in flight.
const MAX_GAPS: usize = 4 * 1_024;
/// Pieces that are held before small neighbours are joined.
const JOIN_AT: usize = 1_024;
/// Pieces below this size are copied, so that they do not keep a whole message alive, and are joined with their neighbours.
const SMALL: usize = 4 * 1_024;

/// The receive buffer of a stream.
#[derive(Debug, Default)]
pub(crate) struct RecvBuffer {
    /// Pieces by offset, disjoint, none below `read`.
    pieces: BTreeMap<u64, Bytes>,
    /// Everything below has been read.
    read: u64,
    /// What has arrived, read or not.
    arrived: RangeSet,
    /// Bytes in `pieces`.
    held: usize,
    /// Length of the whole stream, once known.
    size: Option<u64>,
    /// Highest offset seen.
    highest: u64,
    /// Pieces that were left when small ones were joined last.
    joined: usize,
}

impl RecvBuffer {
    /// Bytes held.
    pub fn len(&self) -> usize {
        self.held
    }

    /// Nothing can arrive from here on, if the other side may send what lies below `window`.
    pub fn limit(&self, window: u64) -> u64 {
        self.size.map_or(window, |size| size.min(window))
    }

    /// Offset of the next byte to read.
    pub fn read_offset(&self) -> u64 {
        self.read
    }

    /// Everything below has arrived.
    pub fn contiguous(&self) -> u64 {
        match self.arrived.first() {
            Some(first) if first.start == 0 => first.end,
            _ => 0,
        }
    }

    /// Whether bytes at this offset are what those beyond the first gap wait for.
    pub fn is_gap(&self, offset: u64) -> bool {
        let contiguous = self.contiguous();
        offset <= contiguous && contiguous < self.highest
    }

    /// What arrived beyond the first gap, at most `max` ranges.
    pub fn beyond(&self, max: usize) -> Vec<Range<u64>> {
        let contiguous = self.contiguous();
        self.arrived
            .iter()
            .filter(|r| r.start > contiguous)
            .take(max)
            .collect()
    }

    /// Whether every byte up to the end has arrived.
    pub fn is_complete(&self) -> bool {
        self.size.is_some_and(|size| self.contiguous() >= size)
    }

    /// Whether everything up to the end has been read.
    pub fn is_at_end(&self) -> bool {
        self.size.is_some_and(|size| self.read >= size)
    }

    /// Whether a read would return something: bytes or the end.
    pub fn is_readable(&self) -> bool {
        self.is_at_end()
            || self
                .pieces
                .first_key_value()
                .is_some_and(|(&offset, _)| offset == self.read)
    }

    /// Takes bytes that arrived. Those that were there already are dropped. Returns how many bytes are held more than before.
    pub fn insert(
        &mut self,
        offset: u64,
        bytes: Bytes,
        fin: bool,
        window: u64,
    ) -> Result<usize, Violation> {
        let end = offset + bytes.len() as u64;
        if fin {
            if self.size.is_some_and(|size| size != end) || self.highest > end {
                return Err(Violation("end of stream moved"));
            }
            self.size = Some(end);
        } else if self.size.is_some_and(|size| end > size) {
            return Err(Violation("data behind the end of the stream"));
        }
        if end > window {
            return Err(Violation("data beyond the window"));
        }
        self.highest = self.highest.max(end);
        let before = self.held;
        for missing in self.arrived.missing_in(offset..end) {
            let start = usize::try_from(missing.start - offset).unwrap_or(usize::MAX);
            let stop = usize::try_from(missing.end - offset).unwrap_or(usize::MAX);
            let piece = bytes.slice(start..stop);
            let piece = if piece.len() < SMALL {
                Bytes::copy_from_slice(&piece)
            } else {
                piece
            };
            self.held += piece.len();
            self.pieces.insert(missing.start, piece);
        }
        self.arrived.insert(offset..end);
        if self.arrived.len() > MAX_GAPS {
            return Err(Violation("too many gaps"));
        }
        if self.pieces.len() > JOIN_AT.max(2 * self.joined) {
            self.join_small();
        }
        Ok(self.held - before)
    }

    /// The next bytes in order, at most `max`; `None` when there are none (yet).
    pub fn read(&mut self, max: usize) -> Option<Bytes> {
        let mut piece = self
            .pieces
            .first_entry()
            .filter(|piece| *piece.key() == self.read && max > 0)?;
        let bytes = if piece.get().len() <= max {
            piece.remove()
        } else {
            let bytes = piece.get_mut().split_to(max);
            let rest = piece.remove();
            self.pieces.insert(self.read + bytes.len() as u64, rest);
            bytes
        };
        self.read += bytes.len() as u64;
        self.held -= bytes.len();
        Some(bytes)
    }

    /// Joins small pieces that follow on each other, so that a stream of tiny writes that nobody reads costs little more than its bytes.
    fn join_small(&mut self) {
        let mut joined: BTreeMap<u64, Bytes> = BTreeMap::new();
        let mut run: Option<(u64, BytesMut)> = None;
        for (offset, piece) in std::mem::take(&mut self.pieces) {
            if piece.len() < SMALL
                && let Some((start, bytes)) = &mut run
                && *start + bytes.len() as u64 == offset
                && bytes.len() < 4 * SMALL
            {
                bytes.extend_from_slice(&piece);
                continue;
            }
            if let Some((start, bytes)) = run.take() {
                joined.insert(start, bytes.freeze());
            }
            if piece.len() < SMALL {
                run = Some((offset, BytesMut::from(&piece[..])));
            } else {
                joined.insert(offset, piece);
            }
        }
        if let Some((start, bytes)) = run {
            joined.insert(start, bytes.freeze());
        }
        self.joined = joined.len();
        self.pieces = joined;
    }

    /// Drops what is held. Returns how many bytes that were.
    pub fn discard(&mut self) -> usize {
        self.pieces.clear();
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    use super::super::fixed;

    proptest! {
        #![proptest_config(fixed(256))]

        /// Whatever the order, the overlaps and the sizes of reads: each byte comes out once and in order.
        #[test]
        fn puts_pieces_in_order(
            len in 0usize..400,
            pieces in proptest::collection::vec((0usize..400, 0usize..90), 0..30),
            reads in proptest::collection::vec(1usize..70, 1..12),
        ) {
            let data: Vec<u8> = (0..len).map(|i| u8::try_from(i % 251).unwrap()).collect();
            let whole = Bytes::from(data.clone());
            let (mut buffer, mut out, mut reads) = (RecvBuffer::default(), Vec::new(), reads.into_iter().cycle());
            let cover = (0..len.max(1)).step_by(37).map(|start| (start, 37));
            for (start, size) in pieces.into_iter().chain(cover) {
                let (start, end) = (start.min(len), (start + size).min(len));
                buffer.insert(start as u64, whole.slice(start..end), end == len, len as u64).unwrap();
                if let Some(bytes) = buffer.read(reads.next().unwrap()) {
                    out.extend_from_slice(&bytes);
                }
            }
            prop_assert!(buffer.is_complete());
            while let Some(bytes) = buffer.read(reads.next().unwrap()) {
                out.extend_from_slice(&bytes);
            }
            prop_assert_eq!(out, data);
            prop_assert!(buffer.is_at_end());
            prop_assert_eq!(buffer.len(), 0);
        }
    }

    #[test]
    fn tiny_pieces_are_joined() {
        let mut buffer = RecvBuffer::default();
        for i in 0..20_000u64 {
            buffer
                .insert(
                    i,
                    Bytes::from(vec![u8::try_from(i % 256).unwrap()]),
                    false,
                    1 << 20,
                )
                .unwrap();
        }
        assert!(
            buffer.pieces.len() <= 2 * JOIN_AT,
            "{} pieces",
            buffer.pieces.len()
        );
        assert_eq!(buffer.len(), 20_000);
        let mut out = Vec::new();
        while let Some(bytes) = buffer.read(usize::MAX) {
            out.extend_from_slice(&bytes);
        }
        assert!(
            out.iter()
                .enumerate()
                .all(|(i, &b)| usize::from(b) == i % 256)
                && out.len() == 20_000
        );
    }

    #[test]
    fn refuses_what_breaks_the_rules() {
        let mut buffer = RecvBuffer::default();
        assert_eq!(
            buffer.insert(0, Bytes::from_static(b"abcd"), false, 3),
            Err(Violation("data beyond the window"))
        );
        buffer
            .insert(0, Bytes::from_static(b"abcd"), true, 8)
            .unwrap();
        assert_eq!(
            buffer.insert(4, Bytes::from_static(b"e"), false, 8),
            Err(Violation("data behind the end of the stream"))
        );
        assert_eq!(
            buffer.insert(0, Bytes::from_static(b"abc"), true, 8),
            Err(Violation("end of stream moved"))
        );
        let mut gaps = RecvBuffer::default();
        let refused = (0..=MAX_GAPS as u64).find_map(|i| {
            gaps.insert(2 * i, Bytes::from_static(b"x"), false, u64::MAX)
                .err()
        });
        assert_eq!(refused, Some(Violation("too many gaps")));
    }
}
