//! Records on a node that is not on any network: what has to work offline, and what has to say that it is.

use super::*;
use crate::record::{Layout, Record};
use crate::testing::{Node, keypair};
use crate::value::{Kind, MAX_PAYLOAD_1024};
use crate::*;

fn named(name: &str) -> GroupMetadata {
    GroupMetadata {
        name: name.to_owned(),
        ..GroupMetadata::default()
    }
}

async fn records(node: &Node) -> Records {
    Records::new(
        node.api.clone(),
        Arc::new(TableCache::open(&node.api).await.unwrap()),
    )
}

#[tokio::test]
async fn metadata_are_edited_where_they_are() {
    let node = Node::start().await;
    let records = records(&node).await;
    let owner = keypair();
    let group = GroupRecord::create(&records, owner.clone()).await.unwrap();
    let rename = |name: &'static str| group.edit_metadata(|it| it.name = name.to_owned());
    assert_eq!(rename("one").await, Ok(true));
    assert_eq!(rename("one").await, Ok(false));
    let by = keypair().key();
    let moved = group.edit_metadata(|it| it.moved_by = Some(by.clone()));
    assert_eq!(moved.await, Ok(true));
    assert_eq!(rename("two").await, Ok(true));
    let metadata = group.metadata(Fetch::Cached).await.unwrap().unwrap();
    assert_eq!(metadata.counter, 3);
    assert_eq!(metadata.value.name, "two");
    assert_eq!(metadata.value.moved_by, Some(by));
    // What is no metadata does not stand in the way.
    let access = group.access().clone();
    let raw = Record::attach(&records, Layout::Group, &access, owner.key(), Some(owner));
    raw.await.unwrap().write(0, b"[]").await.unwrap();
    assert!(group.metadata(Fetch::Cached).await.is_err());
    assert_eq!(rename("three").await, Ok(true));
    let metadata = group.metadata(Fetch::Cached).await.unwrap().unwrap();
    assert_eq!((metadata.counter, metadata.value), (5, named("three")));
    records.close().await;
    node.stop().await;
}

#[tokio::test]
async fn a_group_is_made_and_read_offline_and_survives_a_restart() {
    let node = Node::start().await;
    let owner = keypair();
    {
        let records = records(&node).await;
        let group = GroupRecord::create(&records, owner.clone()).await.unwrap();
        assert_eq!(group.metadata(Fetch::Cached).await, Ok(None));
        assert_eq!(group.unpublished().await, Ok(vec![]));
        assert_eq!(group.set_metadata(&named("one")).await, Ok(1));
        assert_eq!(group.set_metadata(&named("two")).await, Ok(2));
        let index = SlotIndex::new(9).unwrap();
        let slot = group
            .sign_slot(index, &keypair(), None, Some("Ada"))
            .await
            .unwrap();
        assert_eq!(group.set_slot(index, &slot.into()).await, Ok(1));
        assert_eq!(group.unpublished().await, Ok(vec![0, 9]));
        assert_eq!(group.publish().await, Err(Error::Offline));
        assert_eq!(group.unpublished().await, Ok(vec![0, 9]));
        records.close().await;
        assert_eq!(group.metadata(Fetch::Cached).await, Err(Error::CacheClosed));
    }
    let node = node.restart().await;
    let records = records(&node).await;
    let group = GroupRecord::attach(&records, GroupAccess::Member { owner })
        .await
        .unwrap();
    let metadata = group.metadata(Fetch::Cached).await.unwrap().unwrap();
    assert_eq!((metadata.counter, metadata.value), (2, named("two")));
    let slots = group.slots(Fetch::Cached).await.unwrap();
    assert_eq!(slots.len(), 1);
    let SlotValue::Member(slot) = slots[0].1.clone().unwrap().value else {
        panic!("a member's slot");
    };
    assert_eq!(slot.name.as_deref(), Some("Ada"));
    assert_eq!(group.unpublished().await, Ok(vec![0, 9]));
    // The counter goes on where it was.
    assert_eq!(group.set_metadata(&named("three")).await, Ok(3));
    assert_eq!(group.clear_slot(SlotIndex::new(9).unwrap()).await, Ok(2));
    let slots = group.slots(Fetch::Cached).await.unwrap();
    assert_eq!(slots[0].1.clone().unwrap().value, SlotValue::Empty);
    records.close().await;
    node.stop().await;
}

#[tokio::test]
async fn slots_that_were_verified_are_looked_at_again_when_they_change() {
    let node = Node::start().await;
    let records = records(&node).await;
    let owner = keypair();
    let group = GroupRecord::create(&records, owner.clone()).await.unwrap();
    let secret = GroupSecret::from_owner(&owner.secret());
    let replica = GroupAccess::Replica {
        public: owner.key(),
        locator: secret.locator(),
    };
    let replica = GroupRecord::attach(&records, replica).await.unwrap();
    let index = SlotIndex::new(9).unwrap();
    let name = async |group: &GroupRecord| {
        let slots = group.slots(Fetch::Cached).await.unwrap();
        let [(found, Ok(slot))] = slots.as_slice() else {
            panic!("one slot");
        };
        assert_eq!(*found, index);
        assert_eq!(
            group.slot(index, Fetch::Cached).await,
            Ok(Some(slot.clone()))
        );
        match &slot.value {
            SlotValue::Member(slot) => slot.name.clone(),
            _ => None,
        }
    };
    let member = keypair();
    for expected in ["Ada", "Ben"] {
        let slot = group
            .sign_slot(index, &member, None, Some(expected))
            .await
            .unwrap();
        let _counter = group.set_slot(index, &slot.into()).await.unwrap();
        for _ in 0..2 {
            assert_eq!(name(&group).await.as_deref(), Some(expected));
            // What one handle has opened, another one with fewer keys does not see.
            assert_eq!(name(&replica).await, None);
        }
    }
    let _counter = group.clear_slot(index).await.unwrap();
    assert_eq!(name(&group).await, None);
    group.forget().await.unwrap();
    assert_eq!(group.slots(Fetch::Cached).await, Ok(vec![]));
    assert_eq!(records.stats().gets, 0);
    records.close().await;
    node.stop().await;
}

#[tokio::test]
async fn without_a_network_reads_say_so_at_once() {
    let node = Node::start().await;
    let records = records(&node).await;
    let made = GroupRecord::create(&records, keypair()).await.unwrap();
    let unknown = GroupRecord::attach(&records, GroupAccess::Member { owner: keypair() })
        .await
        .unwrap();
    for group in [&made, &unknown] {
        assert_eq!(group.metadata(Fetch::Network).await, Err(Error::Offline));
        assert_eq!(
            group.slots(Fetch::Network).await.unwrap_err(),
            Error::Offline
        );
        assert!(Error::Offline.is_retryable());
        assert_eq!(group.slots(Fetch::Cached).await.unwrap(), vec![]);
        // Nothing to publish is no reason to need the network.
        assert_eq!(group.publish().await, Ok(Published::default()));
    }
    records.close().await;
    node.stop().await;
}

#[tokio::test]
async fn making_a_record_twice_does_no_harm() {
    let node = Node::start().await;
    let owner = keypair();
    {
        let records = records(&node).await;
        let one = GroupRecord::create(&records, owner.clone()).await.unwrap();
        one.set_metadata(&named("kept")).await.unwrap();
        let two = GroupRecord::create(&records, owner.clone()).await.unwrap();
        assert_eq!(one.record_key(), two.record_key());
        one.close().await;
        GroupRecord::create(&records, owner.clone()).await.unwrap();
        records.close().await;
    }
    let node = node.restart().await;
    let records = records(&node).await;
    let again = GroupRecord::create(&records, owner).await.unwrap();
    assert_eq!(
        again.metadata(Fetch::Cached).await.unwrap().unwrap().value,
        named("kept")
    );
    again.forget().await.unwrap();
    assert_eq!(again.metadata(Fetch::Cached).await, Ok(None));
    again.forget().await.unwrap();
    records.close().await;
    node.stop().await;
}

#[tokio::test]
async fn keys_decide_what_a_handle_can_do() {
    let node = Node::start().await;
    let records = records(&node).await;
    let member = GroupAccess::Member { owner: keypair() };
    let (reader, replica) = (member.to_reader().unwrap(), member.to_replica());
    let group = GroupRecord::attach(&records, member.clone()).await.unwrap();
    group.set_metadata(&named("secret name")).await.unwrap();
    let index = SlotIndex::new(1).unwrap();
    let slot = group
        .sign_slot(index, &keypair(), None, Some("Ada"))
        .await
        .unwrap();
    group.set_slot(index, &slot.clone().into()).await.unwrap();

    let read = GroupRecord::attach(&records, reader.clone()).await.unwrap();
    assert_eq!(
        read.metadata(Fetch::Cached).await.unwrap().unwrap().value,
        named("secret name")
    );
    assert_eq!(read.set_metadata(&named("x")).await, Err(Error::ReadOnly));
    assert_eq!(
        read.set_slot(index, &slot.into()).await,
        Err(Error::ReadOnly)
    );
    assert_eq!(read.clear_slot(index).await, Err(Error::ReadOnly));
    assert_eq!(read.publish().await, Err(Error::ReadOnly));
    assert!(!read.writable() && group.writable());

    let replicated = GroupRecord::attach(&records, replica.clone())
        .await
        .unwrap();
    assert_eq!(
        replicated.metadata(Fetch::Cached).await,
        Err(Error::NoContentKey)
    );
    assert_eq!(
        replicated.metadata(Fetch::Network).await,
        Err(Error::NoContentKey)
    );
    let Some(Stamped {
        value: SlotValue::Member(seen),
        ..
    }) = replicated.slot(index, Fetch::Cached).await.unwrap()
    else {
        panic!("a member's slot");
    };
    assert_eq!(seen.name, None);

    let repo = keypair();
    let own = RepoRecord::create(&records, repo.clone(), &member)
        .await
        .unwrap();
    own.set_metadata(&RepoMetadata {
        name: "Ada".into(),
        ..RepoMetadata::default()
    })
    .await
    .unwrap();
    let root = RootValue {
        hash: [1; 32],
        bytes: 2,
        files: 3,
    };
    own.set_root(&root).await.unwrap();
    let other = RepoRecord::attach(&records, &replica, repo.key(), None)
        .await
        .unwrap();
    assert_eq!(
        other.root(Fetch::Cached).await.unwrap().unwrap().value,
        root
    );
    assert_eq!(
        other.metadata(Fetch::Cached).await,
        Err(Error::NoContentKey)
    );
    assert_eq!(other.set_root(&root).await, Err(Error::ReadOnly));
    let wrong = RepoRecord::attach(&records, &member, repo.key(), Some(keypair())).await;
    assert_eq!(wrong.unwrap_err(), Error::KeyMismatch);
    // Another group's keys do not open it.
    let stranger = GroupAccess::Member { owner: keypair() };
    let stranger = RepoRecord::attach(&records, &stranger, repo.key(), None)
        .await
        .unwrap();
    assert_eq!(stranger.root(Fetch::Cached).await, Err(Error::WrongKey));
    records.close().await;
    node.stop().await;
}

#[tokio::test]
async fn tunnels_come_and_go() {
    let node = Node::start().await;
    let records = records(&node).await;
    let access = GroupAccess::Member { owner: keypair() };
    let repo = RepoRecord::create(&records, keypair(), &access)
        .await
        .unwrap();
    let tunnel = |device, published_at| TunnelValue {
        route: vec![9; 757],
        device: DeviceId([device; 16]),
        published_at,
        role: None,
    };
    let first = repo.set_tunnel(&tunnel(1, 10)).await.unwrap();
    let second = repo.set_tunnel(&tunnel(2, 20)).await.unwrap();
    assert_ne!(first, second);
    assert_eq!(repo.set_tunnel(&tunnel(1, 30)).await, Ok(first));
    let tunnels = repo.tunnels(Fetch::Cached).await.unwrap();
    assert_eq!(tunnels.len(), 2);
    assert_eq!(repo.clear_tunnel(DeviceId([1; 16])).await, Ok(1));
    assert_eq!(repo.clear_tunnel(DeviceId([1; 16])).await, Ok(0));
    let tunnels = repo.tunnels(Fetch::Cached).await.unwrap();
    assert_eq!(tunnels.len(), 1);
    assert_eq!(tunnels[0].1.clone().unwrap().value, tunnel(2, 20));
    // A cleared subkey is free again.
    assert_eq!(repo.set_tunnel(&tunnel(1, 40)).await, Ok(first));
    assert_eq!(repo.unpublished().await.unwrap().len(), 2);
    records.close().await;
    node.stop().await;
}

#[tokio::test]
async fn a_payload_that_does_not_fit_changes_nothing() {
    let node = Node::start().await;
    let records = records(&node).await;
    let group = GroupRecord::create(&records, keypair()).await.unwrap();
    let overhead = r#"{"name":""}"#.len();
    let max = MAX_PAYLOAD_1024;
    group
        .set_metadata(&named(&"n".repeat(max - overhead)))
        .await
        .unwrap();
    let too_long = named(&"n".repeat(max - overhead + 1));
    assert_eq!(
        group.set_metadata(&too_long).await,
        Err(Error::TooLarge { len: max + 1, max })
    );
    assert_eq!(
        group
            .metadata(Fetch::Cached)
            .await
            .unwrap()
            .unwrap()
            .counter,
        1
    );
    records.close().await;
    node.stop().await;
}

#[tokio::test]
async fn concurrent_writes_get_counters_of_their_own() {
    let node = Node::start().await;
    let records = records(&node).await;
    let access = GroupAccess::Member { owner: keypair() };
    let writes = (0..20).map(|i| {
        let (records, access) = (records.clone(), access.clone());
        async move {
            let group = GroupRecord::attach(&records, access).await.unwrap();
            group.set_metadata(&named(&i.to_string())).await.unwrap()
        }
    });
    let mut counters = futures::future::join_all(writes).await;
    counters.sort_unstable();
    assert_eq!(counters, (1..=20).collect::<Vec<u64>>());
    records.close().await;
    node.stop().await;
}

#[tokio::test]
async fn a_damaged_or_foreign_row_is_an_error_for_its_slot_alone() {
    let node = Node::start().await;
    let records = records(&node).await;
    let group = GroupRecord::create(&records, keypair()).await.unwrap();
    let index = SlotIndex::new(4).unwrap();
    let slot = group
        .sign_slot(index, &keypair(), None, None)
        .await
        .unwrap();
    group.set_slot(index, &slot.into()).await.unwrap();
    let record = group.record_key().opaque();
    let good = records.cache().load(&record, 4).await.unwrap().unwrap();
    let bad = Cached {
        sealed: vec![1; 113],
        ..good.clone()
    };
    records.cache().store(&record, 2, &bad).await.unwrap();
    records.cache().store(&record, 3, &good).await.unwrap();
    let slots = group.slots(Fetch::Cached).await.unwrap();
    let results: Vec<_> = slots
        .iter()
        .map(|(index, slot)| (index.get(), slot.as_ref().err().cloned()))
        .collect();
    assert_eq!(
        results,
        vec![
            (2, Some(Error::WrongKey)),
            (3, Some(Error::Moved)),
            (4, None)
        ]
    );
    records.close().await;
    node.stop().await;
}

#[tokio::test]
async fn a_counter_at_its_end_refuses() {
    let node = Node::start().await;
    let records = records(&node).await;
    let group = GroupRecord::create(&records, keypair()).await.unwrap();
    group.set_metadata(&named("x")).await.unwrap();
    let record = group.record_key().opaque();
    let row = records.cache().load(&record, 0).await.unwrap().unwrap();
    let last = Cached {
        confirmed: u64::MAX,
        ..row
    };
    records.cache().store(&record, 0, &last).await.unwrap();
    assert_eq!(
        group.set_metadata(&named("y")).await,
        Err(Error::CounterExhausted)
    );
    records.close().await;
    node.stop().await;
}

#[tokio::test]
async fn a_watch_offline_waits_and_ends_with_the_record() {
    let node = Node::start().await;
    let records = records(&node).await;
    let group = GroupRecord::create(&records, keypair()).await.unwrap();
    let mut watch = group.watch().await.unwrap();
    let change = |subkeys: &[u32], count| {
        VeilidUpdate::ValueChange(Box::new(veilid_core::VeilidValueChange {
            key: group.record_key().clone(),
            subkeys: subkeys.iter().copied().collect(),
            count,
            value: None,
        }))
    };
    records.handle_update(&change(&[7, 3], 5));
    records.handle_update(&change(&[5_000, 9], 4));
    assert_eq!(
        watch.next().await,
        Some(Changed {
            subkeys: vec![3, 7, 9]
        })
    );
    // A watch that Veilid ended goes on.
    records.handle_update(&change(&[], 0));
    records.handle_update(&change(&[1], 3));
    assert_eq!(watch.next().await, Some(Changed { subkeys: vec![1] }));
    group.close().await;
    assert_eq!(watch.next().await, None);
    records.close().await;
    node.stop().await;
}

#[test]
fn errors_say_which_can_be_tried_again() {
    assert!(Error::RecordNotFound.is_retryable());
    assert!(
        Error::Timeout {
            operation: "get",
            after: Duration::from_secs(1)
        }
        .is_retryable()
    );
    assert!(Error::NotConfirmed.is_retryable());
    for error in [
        Error::WrongKey,
        Error::ReadOnly,
        Error::UnknownVersion { version: 2 },
        Error::InvalidPayload { kind: Kind::Root },
    ] {
        assert!(!error.is_retryable());
    }
}
