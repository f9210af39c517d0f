//! The codec, against itself, against damage, and against the vectors in `docs/formats/records.md`.

use proptest::prelude::*;

use super::*;
use crate::testing::record;

fn key(byte: u8) -> ValueKey {
    ValueKey::new(SubKey::from_bytes([byte; 32]))
}

fn place(record: &OpaqueRecordKey) -> Place<'_> {
    Place {
        record,
        subkey: 5,
        kind: Kind::Slot,
    }
}

#[test]
fn largest_payloads_are_as_documented() {
    assert_eq!(OVERHEAD, 49);
    assert_eq!(MAX_PAYLOAD_1024, 918);
    assert_eq!(MAX_PAYLOAD_32768, 16_374);
    assert_eq!(max_payload(0), 0);
    assert_eq!(max_payload(OVERHEAD + 63), 0);
    assert_eq!(max_payload(OVERHEAD + 64), 54);
}

#[test]
fn a_payload_fits_up_to_the_limit_and_no_further() {
    let record = record(1);
    for (limit, max) in [(1024, MAX_PAYLOAD_1024), (32_768, MAX_PAYLOAD_32768)] {
        let largest = vec![0xab; max];
        let sealed = seal(&key(1), &place(&record), 1, &largest, limit).unwrap();
        assert!(sealed.len() <= limit);
        assert_eq!(
            *open(&key(1), &place(&record), &sealed).unwrap().payload,
            largest
        );
        let larger = vec![0xab; max + 1];
        assert_eq!(
            seal(&key(1), &place(&record), 1, &larger, limit),
            Err(Error::TooLarge { len: max + 1, max })
        );
    }
    let huge = vec![0; 100_000];
    assert_eq!(
        seal(&key(1), &place(&record), 1, &huge, usize::MAX).unwrap_err(),
        Error::TooLarge {
            len: 100_000,
            max: max_payload(usize::MAX)
        }
    );
}

#[test]
fn lengths_say_only_the_bucket() {
    let record = record(1);
    let len = |payload: usize| {
        seal(&key(1), &place(&record), 1, &vec![1; payload], 32_768)
            .unwrap()
            .len()
            - OVERHEAD
    };
    for (payload, padded) in [
        (0, 64),
        (54, 64),
        (55, 128),
        (118, 128),
        (119, 256),
        (246, 256),
        (247, 512),
        (502, 512),
        (503, 928),
        (918, 928),
        (919, 1024),
        (1015, 2048),
        (16_374, 16_384),
    ] {
        assert_eq!(len(payload), padded, "payload of {payload} bytes");
    }
}

#[test]
fn every_flipped_bit_is_an_error_of_its_part() {
    let record = record(1);
    let sealed = seal(&key(1), &place(&record), 7, b"payload", 1024).unwrap();
    for byte in 0..sealed.len() {
        for bit in 0..8 {
            let mut bad = sealed.clone();
            bad[byte] ^= 1 << bit;
            let error = open(&key(1), &place(&record), &bad).unwrap_err();
            let expected = match byte {
                0 => Error::UnknownVersion { version: bad[0] },
                1..=28 => Error::WrongKey,
                29..=32 => Error::Moved,
                _ => Error::Damaged,
            };
            assert_eq!(error, expected, "byte {byte}, bit {bit}");
        }
    }
}

#[test]
fn every_other_length_is_short() {
    let record = record(1);
    let sealed = seal(&key(1), &place(&record), 7, &[3; 100], 1024).unwrap();
    for len in 0..sealed.len() {
        let error = open(&key(1), &place(&record), &sealed[..len]).unwrap_err();
        // Cut to another padded length it is the tag that fails.
        match len {
            113 => assert_eq!(error, Error::Damaged),
            _ => assert_eq!(error, Error::ShortValue { len }),
        }
    }
    let mut longer = sealed.clone();
    longer.push(0);
    assert_eq!(
        open(&key(1), &place(&record), &longer).unwrap_err(),
        Error::ShortValue { len: longer.len() }
    );
}

#[test]
fn a_value_opens_nowhere_else() {
    let (here, there) = (record(1), record(2));
    let sealed = seal(&key(1), &place(&here), 7, b"payload", 1024).unwrap();
    for elsewhere in [
        Place {
            record: &there,
            ..place(&here)
        },
        Place {
            subkey: 6,
            ..place(&here)
        },
        Place {
            kind: Kind::Tunnel,
            ..place(&here)
        },
    ] {
        assert_eq!(
            open(&key(1), &elsewhere, &sealed).unwrap_err(),
            Error::Moved
        );
        assert_eq!(
            open(&key(2), &elsewhere, &sealed).unwrap_err(),
            Error::WrongKey
        );
    }
    assert_eq!(
        open(&key(2), &place(&here), &sealed).unwrap_err(),
        Error::WrongKey
    );
}

#[test]
fn the_tag_alone_protects_the_place() {
    // With the check bytes of another place put in, so that only the associated data differs.
    let (here, there) = (record(1), record(2));
    let sealed = seal(&key(1), &place(&here), 7, b"payload", 1024).unwrap();
    let elsewhere = Place {
        record: &there,
        ..place(&here)
    };
    let mut forged = sealed.clone();
    let check = key(1).check(&sealed[1..25], &associated_data(&elsewhere));
    forged[25..33].copy_from_slice(&check);
    assert_eq!(
        open(&key(1), &elsewhere, &forged).unwrap_err(),
        Error::Damaged
    );
}

#[test]
fn an_empty_value_and_a_newer_version() {
    let record = record(1);
    assert_eq!(
        open(&key(1), &place(&record), &[]).unwrap_err(),
        Error::ShortValue { len: 0 }
    );
    // The version speaks first: a newer program may have other lengths.
    assert_eq!(
        open(&key(1), &place(&record), &[2]).unwrap_err(),
        Error::UnknownVersion { version: 2 }
    );
}

#[test]
fn nonces_are_fresh() {
    let record = record(1);
    let one = seal(&key(1), &place(&record), 7, b"payload", 1024).unwrap();
    let two = seal(&key(1), &place(&record), 7, b"payload", 1024).unwrap();
    assert_ne!(one[1..25], two[1..25]);
    assert_ne!(one[25..33], two[25..33]);
}

#[test]
fn kinds_have_labels_of_their_own() {
    let kinds = [
        Kind::GroupMetadata,
        Kind::Slot,
        Kind::SlotName,
        Kind::RepoMetadata,
        Kind::Root,
        Kind::Tunnel,
    ];
    let labels: std::collections::HashSet<_> = kinds.iter().map(|kind| kind.label()).collect();
    assert_eq!(labels.len(), kinds.len());
}

proptest! {
    #[test]
    fn what_is_sealed_opens(
        payload in proptest::collection::vec(any::<u8>(), 0..=MAX_PAYLOAD_1024),
        counter: u64,
        subkey: u32,
    ) {
        let record = record(9);
        let place = Place { record: &record, subkey, kind: Kind::Root };
        let sealed = seal(&key(1), &place, counter, &payload, 1024).unwrap();
        let opened = open(&key(1), &place, &sealed).unwrap();
        prop_assert_eq!(opened.counter, counter);
        prop_assert_eq!(&*opened.payload, &payload);
    }

    #[test]
    fn any_bytes_are_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2048)) {
        prop_assert!(open(&key(1), &place(&record(1)), &bytes).is_err());
    }

    #[test]
    fn any_body_behind_a_good_head_is_refused(body in proptest::collection::vec(any::<u8>(), 80)) {
        let record = record(1);
        let mut sealed = vec![VERSION];
        sealed.extend_from_slice(&[4; NONCE]);
        sealed.extend_from_slice(&key(1).check(&[4; NONCE], &associated_data(&place(&record))));
        sealed.extend_from_slice(&body);
        prop_assert_eq!(open(&key(1), &place(&record), &sealed).unwrap_err(), Error::Damaged);
    }
}
