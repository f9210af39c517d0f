//! Messages survive the way there and back, and the specification's vectors hold.

use proptest::prelude::*;

use super::super::fixed;

use super::*;

fn ranges() -> impl Strategy<Value = Vec<Range<u64>>> {
    proptest::collection::vec((0u64..1 << 40, 1u64..1 << 20), 0..5).prop_map(|parts| {
        let mut at = 0;
        parts
            .into_iter()
            .map(|(gap, len)| {
                let start = at + gap;
                at = start + len;
                start..at
            })
            .collect()
    })
}

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![0u64..70, 0u64..20_000, 0u64..1 << 31, 0u64..=MAX_VARINT]
}

fn frame() -> impl Strategy<Value = Frame> {
    prop_oneof![
        number().prop_map(|features| Frame::Hello { features }),
        (number(), number(), number()).prop_map(|(reply_max, hold_ms, settled)| Frame::Ask {
            reply_max,
            hold_ms,
            settled
        }),
        (number(), number(), number()).prop_map(|(backlog, wait_ms, held_ms)| Frame::Next {
            backlog,
            wait_ms,
            held_ms
        }),
        (number(), any::<u16>()).prop_map(|(stream, protocol)| Frame::Open { stream, protocol }),
        (
            number(),
            0u64..1 << 60,
            any::<bool>(),
            proptest::collection::vec(any::<u8>(), 0..200)
        )
            .prop_map(|(stream, offset, fin, bytes)| Frame::Data {
                stream,
                offset,
                fin,
                bytes: bytes.into()
            }),
        (number(), number(), ranges()).prop_map(|(stream, window, ranges)| Frame::Ack {
            stream,
            offset: 0,
            window,
            ranges
        }),
        (number(), number()).prop_map(|(stream, code)| Frame::Reset { stream, code }),
        (number(), number()).prop_map(|(stream, code)| Frame::Stop { stream, code }),
        number().prop_map(|stream| Frame::Refuse { stream }),
        number().prop_map(|nonce| Frame::Ping { nonce }),
        number().prop_map(|nonce| Frame::Pong { nonce }),
        ranges().prop_map(|calls| Frame::Lost { calls }),
        number().prop_map(|code| Frame::Close { code }),
        number().prop_map(|wait_ms| Frame::Busy { wait_ms }),
    ]
}

fn keys() -> Keys {
    Keys::derive(
        &Psk::from_bytes([1; 32]),
        SessionId::from_bytes([2; 16]),
        RouteTag([3; 32]),
    )
}

proptest! {
    #![proptest_config(fixed(256))]

    #[test]
    fn frames_survive(frames in proptest::collection::vec(frame(), 0..20), call: u64) {
        let mut builder = Builder::new(SessionId::from_bytes([2; 16]), call, 32_768);
        for frame in &frames {
            prop_assert!(builder.push(frame));
        }
        let len = builder.len();
        let message = Bytes::from(builder.seal(&keys(), Direction::Call));
        prop_assert_eq!(message.len(), len);
        prop_assert!(keys().verify(Direction::Call, &message));
        prop_assert!(!keys().verify(Direction::Reply, &message));
        prop_assert_eq!(Header::parse(&message), Some(Header { session: SessionId::from_bytes([2; 16]), number: call }));
        prop_assert_eq!(Frame::decode_all(&message), Ok(frames));
    }

    #[test]
    fn any_bytes_are_decoded_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let bytes = Bytes::from(bytes);
        let _ = Header::parse(&bytes);
        let _ = Frame::decode_all(&bytes);
        let _ = keys().verify(Direction::Call, &bytes);
    }

    #[test]
    fn any_cut_is_noticed(frames in proptest::collection::vec(frame(), 1..5), cut in 1usize..60) {
        let mut builder = Builder::new(SessionId::from_bytes([2; 16]), 1, 32_768);
        for frame in &frames {
            builder.push(frame);
        }
        let message = Bytes::from(builder.seal(&keys(), Direction::Call));
        let cut = message.slice(..message.len().saturating_sub(cut));
        prop_assert!(!keys().verify(Direction::Call, &cut));
    }
}

#[test]
fn a_message_never_exceeds_its_limit() {
    for limit in [64, 100, 1_024, 32_768] {
        let mut builder = Builder::new(SessionId::from_bytes([2; 16]), 1, limit);
        while builder.push(&Frame::Ping { nonce: 77 }) {}
        assert!(builder.seal(&keys(), Direction::Call).len() <= limit);
        let mut builder = Builder::new(SessionId::from_bytes([2; 16]), 1, 32_768);
        let room = builder.room() - DATA_HEADER;
        builder.push_data(MAX_VARINT, 1 << 61, true, (&vec![1; room], &[]));
        assert_eq!(builder.seal(&keys(), Direction::Call).len(), 32_768);
    }
}

/// The vectors of the specification: `name value` lines, message bytes with comments, then the frames as they print.
mod vectors {
    use super::*;

    const SPECIFICATION: &str = include_str!("../../../../../docs/formats/tunnel.md");

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
        digits
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect()
    }

    #[derive(Default)]
    struct Vector {
        psk: Vec<u8>,
        session: Vec<u8>,
        route: Vec<u8>,
        call_key: Vec<u8>,
        reply_key: Vec<u8>,
        direction: String,
        number: u64,
        message: Vec<u8>,
        frames: Vec<String>,
    }

    fn parse(block: &str) -> Vector {
        let mut vector = Vector::default();
        for line in block.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let (name, value) = line.split_once(' ').unwrap();
            let value = value.split('#').next().unwrap().trim();
            match name {
                "psk" => vector.psk = hex(value),
                "session" => vector.session = hex(value),
                "route" => vector.route = hex(value),
                "call-key" => vector.call_key = hex(value),
                "reply-key" => vector.reply_key = hex(value),
                "direction" => vector.direction = value.into(),
                "number" => vector.number = value.parse().unwrap(),
                "message" => vector.message.extend(hex(value)),
                "frame" => vector.frames.push(value.into()),
                other => panic!("unknown line {other:?}"),
            }
        }
        vector
    }

    #[test]
    fn of_the_specification_hold() {
        let blocks: Vec<&str> = SPECIFICATION
            .split("```tunnel-vector\n")
            .skip(1)
            .map(|rest| rest.split("```").next().unwrap())
            .collect();
        assert!(blocks.len() >= 5, "{} vectors", blocks.len());
        for block in blocks {
            let vector = parse(block);
            let session = SessionId::from_bytes(vector.session[..].try_into().unwrap());
            let keys = Keys::derive(
                &Psk::from_bytes(vector.psk[..].try_into().unwrap()),
                session,
                RouteTag(vector.route[..].try_into().unwrap()),
            );
            assert_eq!(
                (&keys.call[..], &keys.reply[..]),
                (&vector.call_key[..], &vector.reply_key[..])
            );
            let (direction, other) = match &vector.direction[..] {
                "call" => (Direction::Call, Direction::Reply),
                "reply" => (Direction::Reply, Direction::Call),
                other => panic!("unknown direction {other:?}"),
            };
            let message = Bytes::from(vector.message);
            assert!(keys.verify(direction, &message));
            assert!(!keys.verify(other, &message));
            assert_eq!(
                Header::parse(&message),
                Some(Header {
                    session,
                    number: vector.number
                })
            );
            let frames = Frame::decode_all(&message).unwrap();
            assert_eq!(
                frames
                    .iter()
                    .map(|frame| format!("{frame:?}"))
                    .collect::<Vec<_>>(),
                vector.frames
            );
            let mut builder = Builder::new(session, vector.number, 32_768);
            assert!(frames.iter().all(|frame| builder.push(frame)));
            let again = builder.seal(&keys, direction);
            // What a reader skips is not written again.
            if !block.contains("unknown type") {
                assert_eq!(again, message);
            }
        }
    }
}
