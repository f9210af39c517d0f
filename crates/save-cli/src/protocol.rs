//! What a command and the running `save` say to each other over the socket.
//!
//! A frame is the payload's length (4 bytes, big-endian), a kind (1 byte) and the payload, which is JSON for every kind but
//! [`Frame::Data`]. A client sends one [`Frame::Request`] and reads until [`Frame::Done`] or [`Frame::Failed`];
//! closing the connection before that cancels the request.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio_util::codec::{Decoder, Encoder};

use crate::error::{Error, Failure};
use crate::items::{Activity, Item};
use crate::ops::Operation;

/// The version of what is described here; both sides have to have the same.
pub const PROTOCOL_VERSION: u32 = 6;
/// The largest payload: a request that names some 50,000 files.
pub const MAX_PAYLOAD: usize = 16 * 1024 * 1024;
/// The largest payload of [`Frame::Data`] that this version sends.
pub const DATA_CHUNK: usize = 128 * 1024;
const HEADER: usize = 5;

/// A request with everything that it needs besides the operation itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// [`PROTOCOL_VERSION`] of who asks.
    pub version: u32,
    /// How long the network or a member may be silent, in milliseconds.
    pub timeout_ms: u64,
    /// Use what is on this device, and nothing else.
    pub offline: bool,
    /// What is asked for.
    pub operation: Operation,
}

/// One message. The payload of the last one says how a request ended.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Frame {
    /// From the client, once: what it wants.
    Request(Call),
    /// How far the request has come; may be dropped where the reader is slow.
    Progress(Activity),
    /// One result.
    Item(Item),
    /// The next bytes of the file that the last [`Item`] named.
    Data(Bytes),
    /// The request is done.
    Done,
    /// The request failed.
    Failed(Failure),
}

impl Frame {
    fn kind(&self) -> u8 {
        match self {
            Self::Request(_) => 1,
            Self::Progress(_) => 2,
            Self::Item(_) => 3,
            Self::Data(_) => 4,
            Self::Done => 5,
            Self::Failed(_) => 6,
        }
    }
}

/// Turns [`Frame`]s into bytes and back.
#[derive(Clone, Copy, Debug, Default)]
pub struct FrameCodec;

impl Encoder<&Frame> for FrameCodec {
    type Error = Error;

    fn encode(&mut self, frame: &Frame, into: &mut BytesMut) -> Result<(), Error> {
        let json;
        let payload: &[u8] = match frame {
            Frame::Data(bytes) => bytes,
            Frame::Done => &[],
            Frame::Request(call) => {
                json = to_json(call)?;
                &json
            }
            Frame::Progress(activity) => {
                json = to_json(activity)?;
                &json
            }
            Frame::Item(item) => {
                json = to_json(item)?;
                &json
            }
            Frame::Failed(failure) => {
                json = to_json(failure)?;
                &json
            }
        };
        let length = u32::try_from(payload.len())
            .ok()
            .filter(|_| payload.len() <= MAX_PAYLOAD)
            .ok_or_else(|| protocol("a message is too long"))?;
        into.reserve(HEADER + payload.len());
        into.put_u32(length);
        into.put_u8(frame.kind());
        into.put_slice(payload);
        Ok(())
    }
}

impl Decoder for FrameCodec {
    type Item = Frame;
    type Error = Error;

    fn decode(&mut self, from: &mut BytesMut) -> Result<Option<Frame>, Error> {
        let Some((&[a, b, c, d, kind], _)) = from.split_first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let length = usize::try_from(u32::from_be_bytes([a, b, c, d]))
            .ok()
            .filter(|length| *length <= MAX_PAYLOAD)
            .ok_or_else(|| protocol("a message is too long"))?;
        if from.len() < HEADER + length {
            return Ok(None);
        }
        from.advance(HEADER);
        let payload = from.split_to(length).freeze();
        let frame = match kind {
            1 => Frame::Request(from_json(&payload)?),
            2 => Frame::Progress(from_json(&payload)?),
            3 => Frame::Item(from_json(&payload)?),
            4 => Frame::Data(payload),
            5 => Frame::Done,
            6 => Frame::Failed(from_json(&payload)?),
            _ => return Err(protocol("a message of an unknown kind")),
        };
        Ok(Some(frame))
    }

    fn decode_eof(&mut self, from: &mut BytesMut) -> Result<Option<Frame>, Error> {
        match self.decode(from)? {
            None if !from.is_empty() => Err(Error::ConnectionLost),
            frame => Ok(frame),
        }
    }
}

impl From<std::io::Error> for Error {
    /// The codec's transport is the socket, so its errors mean that the other side is gone.
    fn from(_: std::io::Error) -> Self {
        Self::ConnectionLost
    }
}

fn protocol(reason: &str) -> Error {
    Error::Protocol {
        reason: reason.to_owned(),
    }
}

fn to_json(value: &impl Serialize) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(value).map_err(|error| protocol(&error.to_string()))
}

fn from_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    // The text of serde's error can quote the value, which may be a link.
    serde_json::from_slice(bytes).map_err(|error| {
        protocol(&format!(
            "a message is malformed at byte {} of line {}",
            error.column(),
            error.line()
        ))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::exit::Code;
    use crate::items::Secret;
    use crate::ops::PutFile;

    fn frames() -> impl Strategy<Value = Frame> {
        let operation = prop_oneof![
            Just(Operation::Status),
            ".*".prop_map(|link| Operation::Join {
                link: Secret::new(link),
                me: "me".into()
            }),
            ("\\PC*", prop::collection::vec(".*", 0..4)).prop_map(|(group, names)| {
                Operation::Put {
                    group: Some(group),
                    files: names
                        .into_iter()
                        .map(|name| PutFile {
                            source: format!("/{name}").into(),
                            path: name,
                        })
                        .collect(),
                }
            }),
        ];
        prop_oneof![
            (any::<u32>(), any::<u64>(), any::<bool>(), operation).prop_map(
                |(version, timeout_ms, offline, operation)| Frame::Request(Call {
                    version,
                    timeout_ms,
                    offline,
                    operation
                })
            ),
            ".*".prop_map(|path| Frame::Item(Item::Removed { path })),
            prop::collection::vec(any::<u8>(), 0..300).prop_map(|data| Frame::Data(data.into())),
            Just(Frame::Done),
            (".*", any::<bool>()).prop_map(|(message, retryable)| Frame::Failed(Failure {
                code: Code::Offline,
                message,
                retryable
            })),
        ]
    }

    proptest! {
        #[test]
        fn frames_survive_any_cutting(sent in prop::collection::vec(frames(), 0..6), step in 1_usize..64) {
            let mut bytes = BytesMut::new();
            for frame in &sent {
                FrameCodec.encode(frame, &mut bytes).unwrap();
            }
            let mut received = Vec::new();
            let mut buffer = BytesMut::new();
            for piece in bytes.chunks(step) {
                buffer.extend_from_slice(piece);
                while let Some(frame) = FrameCodec.decode(&mut buffer).unwrap() {
                    received.push(frame);
                }
            }
            prop_assert!(FrameCodec.decode_eof(&mut buffer).unwrap().is_none());
            prop_assert_eq!(received, sent);
        }

        #[test]
        fn junk_never_panics(junk in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut buffer = BytesMut::from(&junk[..]);
            while let Ok(Some(_)) = FrameCodec.decode(&mut buffer) {}
        }

        #[test]
        fn a_cut_stream_is_noticed(frame in frames(), cut in any::<prop::sample::Index>()) {
            let mut bytes = BytesMut::new();
            FrameCodec.encode(&frame, &mut bytes).unwrap();
            bytes.truncate(cut.index(bytes.len() - 1) + 1);
            prop_assume!(FrameCodec.decode(&mut bytes.clone()).unwrap().is_none());
            prop_assert!(matches!(FrameCodec.decode_eof(&mut bytes), Err(Error::ConnectionLost)));
        }
    }

    #[test]
    fn too_long_a_message_is_refused_before_it_comes() {
        let mut bytes = BytesMut::from(&[0xff, 0, 0, 0, 1][..]);
        assert!(matches!(
            FrameCodec.decode(&mut bytes),
            Err(Error::Protocol { .. })
        ));
    }
}
