//! The question "which of these blobs do you have", and its answer.
//!
//! Request: version `1` (1 byte), number of hashes (2 bytes, big-endian), the hashes (32 bytes each); then the end of the stream.
//! Reply: version `1`, the number again, and for each hash in order a state (1 byte: 0 none, 1 partial, 2 complete) and the
//! size in bytes (8 bytes, big-endian; 0 where it is not known). A hash that the asker's group does not reach is answered
//! exactly as one that does not exist.

use iroh_blobs::Hash;

use crate::{Error, Result, peers::Peer, serve};

/// The most hashes that one question may name; more are asked in several.
pub(crate) const MAX_HASHES: usize = 1024;

const VERSION: u8 = 1;
const HEADER: usize = 3;
const ANSWER: usize = 9;

/// The longest request or reply in bytes.
pub(crate) const MAX_MESSAGE: usize = HEADER + MAX_HASHES * 32;

/// How much of a blob somebody holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Holding {
    /// Nothing, or nothing that the asker may know of.
    None,
    /// Some verified ranges.
    Partial,
    /// All of it; the size in bytes is the holder's claim until a byte of it is verified.
    Complete {
        /// Claimed size in bytes.
        size: u64,
    },
}

pub(crate) fn encode_request(hashes: &[Hash]) -> Vec<u8> {
    let count = u16::try_from(hashes.len().min(MAX_HASHES)).expect("MAX_HASHES fits 16 bits");
    let mut out = Vec::with_capacity(HEADER + hashes.len() * 32);
    out.push(VERSION);
    out.extend_from_slice(&count.to_be_bytes());
    for hash in hashes.iter().take(MAX_HASHES) {
        out.extend_from_slice(hash.as_bytes());
    }
    out
}

pub(crate) fn decode_request(bytes: &[u8]) -> Result<Vec<Hash>, Error> {
    let (count, body) = header(bytes)?;
    if body.len() != count * 32 {
        return Err(Error::BadMessage {
            what: "HAVE request length",
        });
    }
    Ok(body
        .chunks_exact(32)
        .filter_map(|chunk| <[u8; 32]>::try_from(chunk).ok())
        .map(Hash::from_bytes)
        .collect())
}

pub(crate) fn encode_reply(holdings: &[Holding]) -> Vec<u8> {
    let count = u16::try_from(holdings.len().min(MAX_HASHES)).expect("MAX_HASHES fits 16 bits");
    let mut out = Vec::with_capacity(HEADER + holdings.len() * ANSWER);
    out.push(VERSION);
    out.extend_from_slice(&count.to_be_bytes());
    for holding in holdings.iter().take(MAX_HASHES) {
        let (state, size) = match holding {
            Holding::None => (0, 0),
            Holding::Partial => (1, 0),
            Holding::Complete { size } => (2, *size),
        };
        out.push(state);
        out.extend_from_slice(&size.to_be_bytes());
    }
    out
}

pub(crate) fn decode_reply(bytes: &[u8], asked: usize) -> Result<Vec<Holding>, Error> {
    let (count, body) = header(bytes)?;
    if count != asked || body.len() != count * ANSWER {
        return Err(Error::BadMessage {
            what: "HAVE reply length",
        });
    }
    body.chunks_exact(ANSWER)
        .map(|chunk| {
            let (state, size) = chunk.split_first().ok_or(Error::BadMessage {
                what: "HAVE reply entry",
            })?;
            let size = <[u8; 8]>::try_from(size).map_err(|_| Error::BadMessage {
                what: "HAVE reply entry",
            })?;
            match state {
                0 => Ok(Holding::None),
                1 => Ok(Holding::Partial),
                2 => Ok(Holding::Complete {
                    size: u64::from_be_bytes(size),
                }),
                _ => Err(Error::BadMessage {
                    what: "HAVE reply state",
                }),
            }
        })
        .collect()
}

/// Asks one member which of at most [`MAX_HASHES`] blobs they have.
///
/// # Errors
/// Those of the tunnel; [`Error::BadMessage`].
pub(crate) async fn ask(peer: &Peer, hashes: &[Hash]) -> Result<Vec<(Hash, Holding)>> {
    let hashes = hashes.get(..MAX_HASHES).unwrap_or(hashes);
    let (mut send, mut recv) = peer.session.open(serve::HAVE).await?;
    send.write_all(&encode_request(hashes)).await?;
    send.finish()?;
    let reply = recv.read_to_end(MAX_MESSAGE).await?;
    let holdings = decode_reply(&reply, hashes.len())?;
    Ok(hashes.iter().copied().zip(holdings).collect())
}

fn header(bytes: &[u8]) -> Result<(usize, &[u8]), Error> {
    let (head, body) = bytes
        .split_first_chunk::<HEADER>()
        .ok_or(Error::BadMessage {
            what: "HAVE header",
        })?;
    let [version, high, low] = *head;
    if version != VERSION {
        return Err(Error::BadMessage {
            what: "HAVE version",
        });
    }
    let count = usize::from(u16::from_be_bytes([high, low]));
    if count > MAX_HASHES {
        return Err(Error::BadMessage { what: "HAVE count" });
    }
    Ok((count, body))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn holding() -> impl Strategy<Value = Holding> {
        prop_oneof![
            Just(Holding::None),
            Just(Holding::Partial),
            any::<u64>().prop_map(|size| Holding::Complete { size }),
        ]
    }

    proptest! {
        #[test]
        fn requests_round_trip(raw in prop::collection::vec(any::<[u8; 32]>(), 0..50)) {
            let hashes: Vec<Hash> = raw.into_iter().map(Hash::from_bytes).collect();
            prop_assert_eq!(decode_request(&encode_request(&hashes)).unwrap(), hashes);
        }

        #[test]
        fn replies_round_trip(holdings in prop::collection::vec(holding(), 0..50)) {
            let bytes = encode_reply(&holdings);
            prop_assert_eq!(decode_reply(&bytes, holdings.len()).unwrap(), holdings);
        }

        #[test]
        fn junk_is_an_error_and_never_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            // Most junk fails; what happens to be well-formed must encode back to itself.
            if let Ok(hashes) = decode_request(&bytes) {
                prop_assert_eq!(encode_request(&hashes), bytes.clone());
            }
            let asked = bytes.get(2).copied().unwrap_or(0).into();
            let _ = decode_reply(&bytes, asked);
        }
    }

    #[test]
    fn a_reply_to_another_question_is_refused() {
        let bytes = encode_reply(&[Holding::Partial]);
        assert!(matches!(
            decode_reply(&bytes, 2),
            Err(Error::BadMessage {
                what: "HAVE reply length"
            })
        ));
    }

    #[test]
    fn a_newer_version_is_refused() {
        let mut bytes = encode_request(&[]);
        bytes[0] = 2;
        assert!(matches!(
            decode_request(&bytes),
            Err(Error::BadMessage {
                what: "HAVE version"
            })
        ));
    }
}
