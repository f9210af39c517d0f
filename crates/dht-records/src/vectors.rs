//! The vectors of `docs/formats/records.md`, computed again and opened.

use std::collections::BTreeMap;

use data_encoding::HEXLOWER;
use veilid_core::{
    BareOpaqueRecordKey, BareSecretKey, CRYPTO_KIND_VLD0, KeyPair, OpaqueRecordKey, SecretKey,
};

use crate::contexts::Purpose;
use crate::error::Error;
use crate::keys::GroupSecret;
use crate::repo::{DeviceId, GuestRole, TunnelValue};
use crate::slot::{SlotContext, SlotIndex, SlotRoot, SlotValue};
use crate::testing::Node;
use crate::value::{self, Kind, Place, ValueKey};

const DOC: &str = include_str!("../../../docs/formats/records.md");

/// The lines `name = hex` of all blocks marked `vectors`.
fn documented() -> BTreeMap<String, Vec<u8>> {
    let mut vectors = BTreeMap::new();
    let mut inside = false;
    for line in DOC.lines() {
        if line.starts_with("```") {
            inside = line == "```vectors";
            continue;
        }
        let line = line.trim();
        if !inside || line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, hex) = line.split_once(" = ").expect("name = hex");
        let bytes = HEXLOWER.decode(hex.as_bytes()).expect("lower-case hex");
        assert!(
            vectors.insert(name.to_owned(), bytes).is_none(),
            "{name} stands there twice"
        );
    }
    vectors
}

fn owner_secret() -> SecretKey {
    SecretKey::new(CRYPTO_KIND_VLD0, BareSecretKey::new(&[0x07; 32]))
}

fn record() -> OpaqueRecordKey {
    OpaqueRecordKey::new(CRYPTO_KIND_VLD0, BareOpaqueRecordKey::new(&[0x11; 32]))
}

#[test]
fn keys_are_as_documented() {
    let doc = documented();
    let group = GroupSecret::from_owner(&owner_secret());
    let (locator, content) = (group.locator(), group.content());
    let mut computed: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    let mut put = |name: &str, bytes: &[u8]| computed.insert(name.to_owned(), bytes.to_vec());
    put("owner_secret", owner_secret().ref_value());
    put("group_secret", group.as_bytes());
    put("locator_key", locator.as_bytes());
    put("content_key", content.as_bytes());
    put(
        "locator_values",
        locator.derive(Purpose::LocatorValues).as_bytes(),
    );
    put("tunnel_psk", locator.derive(Purpose::TunnelPsk).as_bytes());
    put(
        "content_values",
        content.derive(Purpose::ContentValues).as_bytes(),
    );
    put("slot_names", content.derive(Purpose::SlotName).as_bytes());
    let check = content
        .derive(Purpose::ContentValues)
        .derive(Purpose::ValueCheck);
    put("content_values_check", check.as_bytes());
    compare(&computed, &doc);
    for purpose in Purpose::ALL {
        assert!(
            DOC.contains(purpose.context()),
            "{purpose:?} is not documented"
        );
    }
}

#[test]
fn values_are_as_documented() {
    let doc = documented();
    let group = GroupSecret::from_owner(&owner_secret());
    let content = ValueKey::new(group.content().derive(Purpose::ContentValues));
    let locator = ValueKey::new(group.locator().derive(Purpose::LocatorValues));
    let record = record();
    let metadata = Place {
        record: &record,
        subkey: 0,
        kind: Kind::GroupMetadata,
    };
    let slot = Place {
        record: &record,
        subkey: 5,
        kind: Kind::Slot,
    };
    let json = br#"{"name":"Archive"}"#;
    let sealed = value::seal_with_nonce(&content, &metadata, 1, json, 1024, [0x22; 24]).unwrap();
    let cleared = value::seal_with_nonce(&locator, &slot, 2, b"", 1024, [0x33; 24]).unwrap();
    let mut computed: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    computed.insert("record".into(), (&record).into());
    computed.insert("metadata_payload".into(), json.to_vec());
    computed.insert(
        "metadata_associated_data".into(),
        value::associated_data(&metadata),
    );
    computed.insert("metadata_sealed".into(), sealed.clone());
    computed.insert("cleared_slot_sealed".into(), cleared.clone());

    let change = |at: usize| {
        let mut bad = sealed.clone();
        bad[at] ^= 1;
        bad
    };
    let elsewhere = Place {
        subkey: 1,
        ..metadata
    };
    let invalid = [
        (
            "invalid_unknown_version",
            [&[2], &sealed[1..]].concat(),
            Error::UnknownVersion { version: 2 },
        ),
        (
            "invalid_short",
            sealed[..64].to_vec(),
            Error::ShortValue { len: 64 },
        ),
        (
            "invalid_wrong_key",
            value::seal_with_nonce(&locator, &metadata, 1, json, 1024, [0x22; 24]).unwrap(),
            Error::WrongKey,
        ),
        (
            "invalid_moved",
            value::seal_with_nonce(&content, &elsewhere, 1, json, 1024, [0x22; 24]).unwrap(),
            Error::Moved,
        ),
        ("invalid_damaged", change(40), Error::Damaged),
    ];
    for (name, bytes, _) in &invalid {
        computed.insert((*name).into(), bytes.clone());
    }
    compare(&computed, &doc);

    let opened = value::open(&content, &metadata, &doc["metadata_sealed"]).unwrap();
    assert_eq!(
        (opened.counter, opened.payload.as_slice()),
        (1, json.as_slice())
    );
    let opened = value::open(&locator, &slot, &doc["cleared_slot_sealed"]).unwrap();
    assert_eq!(
        (opened.counter, opened.payload.as_slice()),
        (2, b"".as_slice())
    );
    for (name, _, error) in invalid {
        assert_eq!(
            value::open(&content, &metadata, &doc[name]).unwrap_err(),
            error,
            "{name}"
        );
    }
}

#[test]
fn tunnels_are_as_documented() {
    let doc = documented();
    let tunnel = |role| TunnelValue {
        route: vec![1, 2, 3],
        device: DeviceId([0x0f; 16]),
        published_at: 1_772_366_400,
        role,
    };
    for (name, role) in [
        ("tunnel_payload", None),
        ("tunnel_of_reader_payload", Some(GuestRole::Reader)),
        ("tunnel_of_replica_payload", Some(GuestRole::Replica)),
    ] {
        let json = serde_json::to_vec(&tunnel(role)).unwrap();
        assert_eq!(json, doc[name], "{name}");
        let read: TunnelValue = serde_json::from_slice(&doc[name]).unwrap();
        assert_eq!(read, tunnel(role), "{name}");
    }
    let newer = String::from_utf8(doc["tunnel_of_unknown_role_payload"].clone()).unwrap();
    // Nor does a role that is no word make a tunnel unreadable.
    let odd = newer.replace("\"of a newer program\"", "{\"a\":[1]}");
    assert_ne!(odd, newer);
    for text in [newer, odd] {
        let read: TunnelValue = serde_json::from_str(&text).unwrap();
        assert_eq!(read, tunnel(None), "{text}");
    }
}

#[tokio::test]
async fn slots_are_as_documented() {
    let doc = documented();
    let text = |name: &str| String::from_utf8(doc[name].clone()).unwrap();
    let repo: KeyPair = text("slot_repo").parse().unwrap();
    let group: KeyPair = text("slot_group").parse().unwrap();
    let secret = GroupSecret::from_owner(&owner_secret());
    let names = ValueKey::new(secret.content().derive(Purpose::SlotName));
    let record = record();
    let node = Node::start().await;
    let context = SlotContext {
        api: &node.api,
        group: &group.key(),
        record: &record,
        names: Some(&names),
    };
    let index = SlotIndex::new(5).unwrap();
    let place = Place {
        record: &record,
        subkey: 5,
        kind: Kind::SlotName,
    };
    let sealed = value::seal_with_nonce(&names, &place, 0, b"Ada", 305, [0x44; 24]).unwrap();
    let root = SlotRoot {
        hash: [0xcd; 32],
        counter: 4,
        bytes: 1000,
        files: 2,
    };
    let (message, payload) = context.vector(index, &repo, root, sealed.clone()).await;
    let mut computed: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    computed.insert("slot_name_sealed".into(), sealed);
    computed.insert("slot_message".into(), message);
    computed.insert("slot_payload".into(), payload);
    let start = SlotIndex::start_of(&repo.key()).get();
    computed.insert("slot_start".into(), start.to_be_bytes().to_vec());
    compare(&computed, &doc);

    let SlotValue::Member(slot) = context
        .read_payload(index, &doc["slot_payload"])
        .await
        .unwrap()
    else {
        panic!("a member's slot");
    };
    assert_eq!(
        (slot.repo, slot.root, slot.name.as_deref()),
        (repo.key(), Some(root), Some("Ada"))
    );
    node.stop().await;
}

fn compare(computed: &BTreeMap<String, Vec<u8>>, doc: &BTreeMap<String, Vec<u8>>) {
    for (name, bytes) in computed {
        let hex = HEXLOWER.encode(bytes);
        assert_eq!(
            doc.get(name).map(|bytes| HEXLOWER.encode(bytes)),
            Some(hex),
            "{name}"
        );
    }
}
