//! Messages and frames as bytes. `docs/formats/tunnel.md` is the specification.

use std::ops::Range;

use bytes::Bytes;
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::{Psk, SessionId};

/// The version of the message format, its first byte.
pub(crate) const VERSION: u8 = 1;
/// Version, session id, call number.
pub(crate) const HEADER: usize = 1 + 16 + 8;
pub(crate) const MAC: usize = 16;
/// What a stranger is answered, whatever it said.
pub(crate) const REFUSAL: [u8; 1] = [0];
/// The largest number that a varint carries.
pub(crate) const MAX_VARINT: u64 = (1 << 62) - 1;
/// Type and length of a frame.
const FRAME_HEADER: usize = 3;
/// The largest header of a data frame, before its bytes.
pub(crate) const DATA_HEADER: usize = FRAME_HEADER + 8 + 8 + 1;

const KEY_LABEL: &[u8] = b"save-dweb tunnel v1";

/// What stands for a route in the derivation of keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct RouteTag(pub [u8; 32]);

/// The keys of a session on one route, one for each direction.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub(crate) struct Keys {
    call: [u8; 32],
    reply: [u8; 32],
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Keys([redacted])")
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    Call,
    Reply,
}

impl Keys {
    pub fn derive(psk: &Psk, session: SessionId, route: RouteTag) -> Self {
        let one = |direction: u8| {
            let input = [KEY_LABEL, &[direction], session.as_bytes(), &route.0].concat();
            *blake3::keyed_hash(psk.as_bytes(), &input).as_bytes()
        };
        Keys {
            call: one(0),
            reply: one(1),
        }
    }

    fn mac(&self, direction: Direction, message: &[u8]) -> [u8; MAC] {
        let key = match direction {
            Direction::Call => &self.call,
            Direction::Reply => &self.reply,
        };
        let hash = blake3::keyed_hash(key, message);
        let mut mac = [0; MAC];
        mac.copy_from_slice(&hash.as_bytes()[..MAC]);
        mac
    }

    /// Whether `message` ends in the right MAC.
    pub fn verify(&self, direction: Direction, message: &[u8]) -> bool {
        match message.split_last_chunk::<MAC>() {
            Some((body, mac)) => self.mac(direction, body).ct_eq(mac).into(),
            None => false,
        }
    }
}

/// What a message says before its frames. Nothing of it is proved before the MAC is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub session: SessionId,
    pub number: u64,
}

impl Header {
    /// Reads the header of a message that is long enough and of our version.
    pub fn parse(message: &[u8]) -> Option<Header> {
        if message.len() < HEADER + MAC {
            return None;
        }
        let (version, rest) = message.split_first()?;
        if *version != VERSION {
            return None;
        }
        let (session, rest) = rest.split_first_chunk::<16>()?;
        let (number, _) = rest.split_first_chunk::<8>()?;
        Some(Header {
            session: SessionId::from_bytes(*session),
            number: u64::from_be_bytes(*number),
        })
    }
}

/// One frame of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Frame {
    /// Starts the session if it is new. In every call until the first proved reply.
    Hello {
        features: u64,
    },
    /// How large the reply may be, how long it may wait for data, and the call below which every reply has arrived or was named lost.
    Ask {
        reply_max: u64,
        hold_ms: u64,
        settled: u64,
    },
    /// How much waits to be sent, when to ask again, and how long this reply was held.
    Next {
        backlog: u64,
        wait_ms: u64,
        held_ms: u64,
    },
    Open {
        stream: u64,
        protocol: u16,
    },
    Data {
        stream: u64,
        offset: u64,
        fin: bool,
        bytes: Bytes,
    },
    /// Everything below `offset` and in `ranges` has arrived; bytes up to `window` are welcome.
    Ack {
        stream: u64,
        offset: u64,
        window: u64,
        ranges: Vec<Range<u64>>,
    },
    Reset {
        stream: u64,
        code: u64,
    },
    Stop {
        stream: u64,
        code: u64,
    },
    /// The stream was not accepted, for want of room.
    Refuse {
        stream: u64,
    },
    Ping {
        nonce: u64,
    },
    Pong {
        nonce: u64,
    },
    /// Calls whose replies did not arrive.
    Lost {
        calls: Vec<Range<u64>>,
    },
    Close {
        code: u64,
    },
    /// Nothing of the call was looked at; ask again later.
    Busy {
        wait_ms: u64,
    },
}

mod kind {
    pub const HELLO: u8 = 0x01;
    pub const ASK: u8 = 0x02;
    pub const NEXT: u8 = 0x03;
    pub const OPEN: u8 = 0x04;
    pub const DATA: u8 = 0x05;
    pub const ACK: u8 = 0x06;
    pub const RESET: u8 = 0x07;
    pub const STOP: u8 = 0x08;
    pub const REFUSE: u8 = 0x09;
    pub const PING: u8 = 0x0a;
    pub const PONG: u8 = 0x0b;
    pub const LOST: u8 = 0x0c;
    pub const CLOSE: u8 = 0x0d;
    pub const BUSY: u8 = 0x0e;
}

/// Why the other side closed a session.
pub(crate) mod close {
    /// It was asked to.
    pub const DONE: u64 = 0;
    /// It does not know the session.
    pub const UNKNOWN_SESSION: u64 = 1;
    /// It has no room for another session.
    pub const NO_ROOM: u64 = 2;
    /// A proved message broke the rules.
    pub const VIOLATION: u64 = 3;
}

/// What is wrong with a proved message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Violation(pub &'static str);

/// A message being written: header, then frames up to a limit, then the MAC.
pub(crate) struct Builder {
    buf: Vec<u8>,
    /// Where frames end.
    limit: usize,
}

impl Builder {
    pub fn new(session: SessionId, number: u64, max_message: usize) -> Self {
        let mut buf = Vec::with_capacity(1_024.min(max_message));
        buf.push(VERSION);
        buf.extend_from_slice(session.as_bytes());
        buf.extend_from_slice(&number.to_be_bytes());
        Builder {
            buf,
            limit: max_message.max(HEADER + MAC) - MAC,
        }
    }

    /// Lets the message be longer by this.
    pub fn grow(&mut self, by: usize) {
        self.limit += by;
    }

    /// Bytes left for frames.
    pub fn room(&self) -> usize {
        self.limit.saturating_sub(self.buf.len())
    }

    /// Whether no frame was written yet.
    pub fn is_empty(&self) -> bool {
        self.buf.len() == HEADER
    }

    pub fn len(&self) -> usize {
        self.buf.len() + MAC
    }

    /// Adds a frame if there is room for it.
    pub fn push(&mut self, frame: &Frame) -> bool {
        let before = self.buf.len();
        frame.encode(&mut self.buf);
        if self.buf.len() > self.limit {
            self.buf.truncate(before);
            return false;
        }
        true
    }

    /// Adds a data frame of the bytes in both slices. The caller has made sure of [`DATA_HEADER`] and the bytes in [`room`](Self::room).
    pub fn push_data(&mut self, stream: u64, offset: u64, fin: bool, (head, tail): (&[u8], &[u8])) {
        self.buf
            .reserve(DATA_HEADER + head.len() + tail.len() + MAC);
        let start = begin(&mut self.buf, kind::DATA);
        put_varint(&mut self.buf, stream);
        put_varint(&mut self.buf, offset);
        self.buf.push(u8::from(fin));
        self.buf.extend_from_slice(head);
        self.buf.extend_from_slice(tail);
        end(&mut self.buf, start);
        debug_assert!(self.buf.len() <= self.limit);
    }

    pub fn seal(mut self, keys: &Keys, direction: Direction) -> Vec<u8> {
        let mac = keys.mac(direction, &self.buf);
        self.buf.extend_from_slice(&mac);
        self.buf
    }
}

fn begin(buf: &mut Vec<u8>, kind: u8) -> usize {
    buf.extend_from_slice(&[kind, 0, 0]);
    buf.len()
}

fn end(buf: &mut [u8], start: usize) {
    let len = u16::try_from(buf.len() - start)
        .expect("a frame is shorter than a message of 32,768 bytes");
    buf[start - 2..start].copy_from_slice(&len.to_be_bytes());
}

impl Frame {
    pub fn encode(&self, buf: &mut Vec<u8>) {
        let put = |buf: &mut Vec<u8>, kind: u8, numbers: &[u64]| {
            let start = begin(buf, kind);
            for &number in numbers {
                put_varint(buf, number);
            }
            start
        };
        let start = match self {
            Frame::Hello { features } => put(buf, kind::HELLO, &[*features]),
            Frame::Ask {
                reply_max,
                hold_ms,
                settled,
            } => put(buf, kind::ASK, &[*reply_max, *hold_ms, *settled]),
            Frame::Next {
                backlog,
                wait_ms,
                held_ms,
            } => put(buf, kind::NEXT, &[*backlog, *wait_ms, *held_ms]),
            Frame::Open { stream, protocol } => {
                put(buf, kind::OPEN, &[*stream, u64::from(*protocol)])
            }
            Frame::Data {
                stream,
                offset,
                fin,
                bytes,
            } => {
                let start = put(buf, kind::DATA, &[*stream, *offset]);
                buf.push(u8::from(*fin));
                buf.extend_from_slice(bytes);
                start
            }
            Frame::Ack {
                stream,
                offset,
                window,
                ranges,
            } => {
                let start = put(buf, kind::ACK, &[*stream, *offset, *window]);
                let mut at = *offset;
                for range in ranges {
                    put_varint(buf, range.start.saturating_sub(at));
                    put_varint(buf, range.end.saturating_sub(range.start));
                    at = range.end;
                }
                start
            }
            Frame::Reset { stream, code } => put(buf, kind::RESET, &[*stream, *code]),
            Frame::Stop { stream, code } => put(buf, kind::STOP, &[*stream, *code]),
            Frame::Refuse { stream } => put(buf, kind::REFUSE, &[*stream]),
            Frame::Ping { nonce } => put(buf, kind::PING, &[*nonce]),
            Frame::Pong { nonce } => put(buf, kind::PONG, &[*nonce]),
            Frame::Lost { calls } => {
                let start = begin(buf, kind::LOST);
                let mut at = 0;
                for range in calls {
                    put_varint(buf, range.start.saturating_sub(at));
                    put_varint(buf, range.end.saturating_sub(range.start));
                    at = range.end;
                }
                start
            }
            Frame::Close { code } => put(buf, kind::CLOSE, &[*code]),
            Frame::Busy { wait_ms } => put(buf, kind::BUSY, &[*wait_ms]),
        };
        end(buf, start);
    }

    /// Reads the frames of a proved message. Frames of unknown type are skipped, and so is what follows the known fields of a frame.
    pub fn decode_all(message: &Bytes) -> Result<Vec<Frame>, Violation> {
        let end = message
            .len()
            .checked_sub(MAC)
            .ok_or(Violation("message shorter than its MAC"))?;
        if end < HEADER {
            return Err(Violation("message shorter than its header"));
        }
        let mut rest = message.slice(HEADER..end);
        let mut frames = Vec::new();
        while !rest.is_empty() {
            let (&[kind, high, low], _) = rest
                .split_first_chunk::<FRAME_HEADER>()
                .ok_or(Violation("frame header cut short"))?;
            let len = usize::from(u16::from_be_bytes([high, low]));
            if rest.len() - FRAME_HEADER < len {
                return Err(Violation("frame cut short"));
            }
            let body = rest.slice(FRAME_HEADER..FRAME_HEADER + len);
            rest = rest.slice(FRAME_HEADER + len..);
            if let Some(frame) = Frame::decode(kind, body)? {
                frames.push(frame);
            }
        }
        Ok(frames)
    }

    fn decode(kind: u8, body: Bytes) -> Result<Option<Frame>, Violation> {
        let mut r = Reader { rest: &body };
        let frame = match kind {
            kind::HELLO => Frame::Hello {
                features: r.varint()?,
            },
            kind::ASK => Frame::Ask {
                reply_max: r.varint()?,
                hold_ms: r.varint()?,
                settled: r.varint()?,
            },
            kind::NEXT => Frame::Next {
                backlog: r.varint()?,
                wait_ms: r.varint()?,
                held_ms: r.varint()?,
            },
            kind::OPEN => Frame::Open {
                stream: r.varint()?,
                protocol: u16::try_from(r.varint()?)
                    .map_err(|_| Violation("protocol number out of range"))?,
            },
            kind::DATA => {
                let (stream, offset, flags) = (r.varint()?, r.varint()?, r.byte()?);
                let bytes = body.slice(body.len() - r.rest.len()..);
                let len = u64::try_from(bytes.len()).map_err(|_| Violation("frame too long"))?;
                if offset.checked_add(len).is_none_or(|end| end > MAX_VARINT) {
                    return Err(Violation("stream longer than 2^62 bytes"));
                }
                Frame::Data {
                    stream,
                    offset,
                    fin: flags & 1 != 0,
                    bytes,
                }
            }
            kind::ACK => {
                let (stream, offset, window) = (r.varint()?, r.varint()?, r.varint()?);
                Frame::Ack {
                    stream,
                    offset,
                    window,
                    ranges: r.ranges(offset)?,
                }
            }
            kind::RESET => Frame::Reset {
                stream: r.varint()?,
                code: r.varint()?,
            },
            kind::STOP => Frame::Stop {
                stream: r.varint()?,
                code: r.varint()?,
            },
            kind::REFUSE => Frame::Refuse {
                stream: r.varint()?,
            },
            kind::PING => Frame::Ping { nonce: r.varint()? },
            kind::PONG => Frame::Pong { nonce: r.varint()? },
            kind::LOST => Frame::Lost {
                calls: r.ranges(0)?,
            },
            kind::CLOSE => Frame::Close { code: r.varint()? },
            kind::BUSY => Frame::Busy {
                wait_ms: r.varint()?,
            },
            _ => return Ok(None),
        };
        Ok(Some(frame))
    }
}

/// Writes a number below 2^62 in 1, 2, 4 or 8 bytes, as RFC 9000 section 16 does.
pub(crate) fn put_varint(buf: &mut Vec<u8>, value: u64) {
    let value = value.min(MAX_VARINT);
    let bytes = value.to_be_bytes();
    let [.., d, c, b, a] = bytes;
    if value < 1 << 6 {
        buf.push(a);
    } else if value < 1 << 14 {
        buf.extend_from_slice(&[0x40 | b, a]);
    } else if value < 1 << 30 {
        buf.extend_from_slice(&[0x80 | d, c, b, a]);
    } else {
        buf.extend_from_slice(&(value | 0xc0 << 56).to_be_bytes());
    }
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl Reader<'_> {
    fn byte(&mut self) -> Result<u8, Violation> {
        let (&byte, rest) = self
            .rest
            .split_first()
            .ok_or(Violation("frame too short"))?;
        self.rest = rest;
        Ok(byte)
    }

    fn varint(&mut self) -> Result<u64, Violation> {
        let first = self.byte()?;
        let mut value = u64::from(first & 0x3f);
        for _ in 0..(1u8 << (first >> 6)) - 1 {
            value = value << 8 | u64::from(self.byte()?);
        }
        Ok(value)
    }

    /// Pairs of gap and length, to the end of the frame.
    fn ranges(&mut self, from: u64) -> Result<Vec<Range<u64>>, Violation> {
        let mut ranges = Vec::new();
        let mut at = from;
        while !self.rest.is_empty() {
            let start = at
                .checked_add(self.varint()?)
                .ok_or(Violation("range out of bounds"))?;
            let end = start
                .checked_add(self.varint()?)
                .ok_or(Violation("range out of bounds"))?;
            if end > MAX_VARINT {
                return Err(Violation("range out of bounds"));
            }
            ranges.push(start..end);
            at = end;
        }
        Ok(ranges)
    }
}

#[cfg(test)]
mod tests;
