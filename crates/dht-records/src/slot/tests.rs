//! Slots: what is signed holds in its place and nowhere else.

use std::collections::HashSet;

use proptest::prelude::*;
use veilid_core::{BarePublicKey, CRYPTO_KIND_VLD0};

use super::*;
use crate::GroupAccess;
use crate::keys::SubKey;
use crate::testing::{Node, keypair, record};

const ROOT: SlotRoot = SlotRoot {
    hash: [0xcd; 32],
    counter: 4,
    bytes: 1_000,
    files: 2,
};

struct Group {
    node: Node,
    owner: KeyPair,
    record: OpaqueRecordKey,
    names: ValueKey,
}

impl Group {
    async fn new() -> Self {
        let owner = keypair();
        let access = GroupAccess::Member {
            owner: owner.clone(),
        };
        Self {
            node: Node::start().await,
            owner,
            record: record(3),
            names: ValueKey::new(access.content().unwrap().derive(Purpose::SlotName)),
        }
    }

    async fn with<T>(&self, test: impl AsyncFnOnce(SlotContext<'_>) -> T) -> T {
        let group = self.owner.key();
        test(SlotContext {
            api: &self.node.api,
            group: &group,
            record: &self.record,
            names: Some(&self.names),
        })
        .await
    }
}

fn index(index: u32) -> SlotIndex {
    SlotIndex::new(index).unwrap()
}

#[tokio::test]
async fn a_signed_slot_reads_back() {
    let group = Group::new().await;
    group
        .with(async |context| {
            let repo = keypair();
            let slot = context
                .sign(index(5), &repo, Some(ROOT), Some("Ada"))
                .await
                .unwrap();
            let value = SlotValue::from(slot.clone());
            let payload = context.write_payload(index(5), &value).await.unwrap();
            assert_eq!(context.read_payload(index(5), &payload).await, Ok(value));
            assert_eq!(
                (slot.repo, slot.root, slot.name.as_deref()),
                (repo.key(), Some(ROOT), Some("Ada"))
            );

            let bare = context
                .sign(index(5), &repo, None, None)
                .await
                .unwrap()
                .into();
            let payload = context.write_payload(index(5), &bare).await.unwrap();
            assert_eq!(context.read_payload(index(5), &payload).await, Ok(bare));

            let leave = context.sign_leave(index(5), &repo).await.unwrap().into();
            let payload = context.write_payload(index(5), &leave).await.unwrap();
            assert_eq!(context.read_payload(index(5), &payload).await, Ok(leave));

            let payload = context
                .write_payload(index(5), &SlotValue::Empty)
                .await
                .unwrap();
            assert_eq!(payload, b"");
            assert_eq!(
                context.read_payload(index(5), b"").await,
                Ok(SlotValue::Empty)
            );
        })
        .await;
    group.node.stop().await;
}

#[tokio::test]
async fn a_slot_holds_in_its_place_alone() {
    let group = Group::new().await;
    group
        .with(async |context| {
            let repo = keypair();
            let slot = SlotValue::from(
                context
                    .sign(index(5), &repo, Some(ROOT), None)
                    .await
                    .unwrap(),
            );
            let payload = context.write_payload(index(5), &slot).await.unwrap();
            // Copied to another index.
            assert_eq!(
                context.read_payload(index(6), &payload).await,
                Err(Error::BadSignature)
            );
            assert_eq!(
                context.write_payload(index(6), &slot).await,
                Err(Error::SlotIndexMismatch {
                    signed: 5,
                    written: 6
                })
            );
            // Copied to another group.
            let other = keypair().key();
            let elsewhere = SlotContext {
                group: &other,
                ..context
            };
            assert_eq!(
                elsewhere.read_payload(index(5), &payload).await,
                Err(Error::BadSignature)
            );
            assert_eq!(
                elsewhere.write_payload(index(5), &slot).await,
                Err(Error::BadSignature)
            );
        })
        .await;
    group.node.stop().await;
}

#[tokio::test]
async fn a_forged_slot_is_refused() {
    let group = Group::new().await;
    group
        .with(async |context| {
            let (repo, other) = (keypair(), keypair());
            let slot = context
                .sign(index(5), &repo, Some(ROOT), None)
                .await
                .unwrap()
                .into();
            let payload = context.write_payload(index(5), &slot).await.unwrap();
            let envelope: Envelope = serde_json::from_slice(&payload).unwrap();
            let forge = |slot: String, signature: &[u8]| {
                serde_json::to_vec(&Envelope {
                    slot,
                    signature: signature.to_vec(),
                })
                .unwrap()
            };
            // Another root, another member, a leave, under the signature of the first.
            for text in [
                envelope.slot.replace(r#""files":2"#, r#""files":3"#),
                envelope
                    .slot
                    .replace(&repo.key().to_string(), &other.key().to_string()),
                envelope
                    .slot
                    .replace(r#","root""#, r#","left":true,"root""#),
                format!("{} ", envelope.slot),
            ] {
                assert_ne!(text, envelope.slot);
                let forged = forge(text, &envelope.signature);
                assert_eq!(
                    context.read_payload(index(5), &forged).await,
                    Err(Error::BadSignature)
                );
            }
            // Another signature, of any length.
            for len in [0, 1, 63, 64, 65, 500] {
                let forged = forge(envelope.slot.clone(), &vec![7; len]);
                assert_eq!(
                    context.read_payload(index(5), &forged).await,
                    Err(Error::BadSignature)
                );
            }
        })
        .await;
    group.node.stop().await;
}

#[tokio::test]
async fn what_is_no_slot_is_an_error() {
    let group = Group::new().await;
    group
        .with(async |context| {
            let invalid = Err(Error::InvalidPayload { kind: Kind::Slot });
            for payload in [
                "x",
                "{}",
                r#"{"slot":"{}","signature":""}"#,
                r#"{"slot":"{\"repo\":\"VLD0:AAAA\"}","signature":""}"#,
                r#"{"slot":"{\"repo\":\"NONE:AAAA\"}","signature":""}"#,
                r#"{"slot":"{\"repo\":7}","signature":""}"#,
            ] {
                assert_eq!(
                    context.read_payload(index(5), payload.as_bytes()).await,
                    invalid,
                    "{payload}"
                );
            }
        })
        .await;
    group.node.stop().await;
}

#[tokio::test]
async fn fields_of_a_newer_program_are_ignored_and_signed() {
    let group = Group::new().await;
    group
        .with(async |context| {
            let repo = keypair();
            let body = format!(r#"{{"repo":"{}","colour":"red"}}"#, repo.key());
            let crypto = context.api.crypto().unwrap();
            let system = crypto.get_async(CRYPTO_KIND_VLD0).unwrap();
            let message = context.message(index(5), &body);
            let signature = system
                .sign(&repo.key(), &repo.secret(), message.into())
                .await
                .unwrap();
            let signature = signature.ref_value().to_vec();
            let envelope = |slot| {
                serde_json::to_vec(&Envelope {
                    slot,
                    signature: signature.clone(),
                })
                .unwrap()
            };
            let read = context
                .read_payload(index(5), &envelope(body.clone()))
                .await
                .unwrap();
            let SlotValue::Member(slot) = &read else {
                panic!("{read:?}")
            };
            assert_eq!(
                (&slot.repo, slot.root, &slot.name),
                (&repo.key(), None, &None)
            );
            // Written again, as by who moves a value, it is the same text.
            assert_eq!(
                context.write_payload(index(5), &read).await.unwrap(),
                envelope(body.clone())
            );
            let changed = envelope(body.replace("red", "blue"));
            assert_eq!(
                context.read_payload(index(5), &changed).await,
                Err(Error::BadSignature)
            );
        })
        .await;
    group.node.stop().await;
}

#[tokio::test]
async fn names_are_for_those_with_the_content_key() {
    let group = Group::new().await;
    group
        .with(async |context| {
            let repo = keypair();
            let slot = context
                .sign(index(5), &repo, None, Some("Ada Lovelace"))
                .await
                .unwrap()
                .into();
            let payload = context.write_payload(index(5), &slot).await.unwrap();
            assert!(!String::from_utf8_lossy(&payload).contains("Ada"));
            let replica = SlotContext {
                names: None,
                ..context
            };
            let SlotValue::Member(seen) = replica.read_payload(index(5), &payload).await.unwrap()
            else {
                panic!("a member's slot");
            };
            assert_eq!(seen.name, None);
            assert_eq!(
                replica.sign(index(5), &repo, None, Some("x")).await,
                Err(Error::NoContentKey)
            );
            let stranger = ValueKey::new(SubKey::from_bytes([1; 32]));
            let stranger = SlotContext {
                names: Some(&stranger),
                ..replica
            };
            assert_eq!(
                stranger.read_payload(index(5), &payload).await,
                Err(Error::WrongKey)
            );
        })
        .await;
    group.node.stop().await;
}

#[tokio::test]
async fn the_largest_slot_fits_its_subkey() {
    let group = Group::new().await;
    group
        .with(async |context| {
            let root = SlotRoot {
                hash: [0xff; 32],
                counter: u64::MAX,
                bytes: u64::MAX,
                files: u64::MAX,
            };
            let name = "n".repeat(MAX_NAME);
            assert_eq!(MAX_NAME, 246);
            let slot = context
                .sign(index(1023), &keypair(), Some(root), Some(&name))
                .await
                .unwrap();
            let payload = context
                .write_payload(index(1023), &slot.into())
                .await
                .unwrap();
            // Room to extend.
            assert!(
                payload.len() + 60 <= value::MAX_PAYLOAD_1024,
                "{} bytes",
                payload.len()
            );
            let longer = "n".repeat(MAX_NAME + 1);
            assert_eq!(
                context
                    .sign(index(1), &keypair(), None, Some(&longer))
                    .await,
                Err(Error::TooLarge {
                    len: MAX_NAME + 1,
                    max: MAX_NAME
                })
            );
        })
        .await;
    group.node.stop().await;
}

#[test]
fn indexes_are_parsed() {
    for bad in [0, 1024, u32::MAX] {
        assert_eq!(SlotIndex::new(bad), Err(Error::InvalidSlotIndex(bad)));
    }
    assert_eq!(index(1).next(), index(2));
    assert_eq!(index(1023).next(), index(1));
    let mut seen = HashSet::new();
    let mut at = index(500);
    while seen.insert(at) {
        at = at.next();
    }
    assert_eq!(seen.len(), 1023);
}

proptest! {
    #[test]
    fn every_repo_starts_at_an_index(bytes: [u8; 32]) {
        let repo = PublicKey::new(CRYPTO_KIND_VLD0, BarePublicKey::new(&bytes));
        let start = SlotIndex::start_of(&repo);
        prop_assert!((1..=SLOTS).contains(&start.get()));
        prop_assert_eq!(start, SlotIndex::start_of(&repo));
    }
}
