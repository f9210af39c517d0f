//! Records on a real Veilid network: published, found by a public key, raced for, replayed, cut off, restarted.
// Veilid's futures are nested deeper than the default allows to look.
#![recursion_limit = "256"]
#![allow(
    clippy::unwrap_used,
    reason = "a test that unwraps an error fails, which is what it is for"
)]

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use devnet::{Devnet, Host, MIN_NODES, Node, NodeOptions};
use dht_records::{
    Changed, DeviceId, Error, Fetch, GroupAccess, GroupMetadata, GroupRecord, MemoryCache, Outcome,
    Published, RecordEvent, Records, RecordsOptions, RepoMetadata, RepoRecord, RootValue,
    SlotIndex, SlotRoot, SlotValue, Stamped, TableCache, TunnelValue,
};
use integration_tests::answered;
use veilid_core::{
    CRYPTO_KIND_VLD0, Crypto, KeyPair, RecordKey, SetDHTValueOptions, UpdateCallback, VeilidUpdate,
};

const READY: Duration = Duration::from_secs(60);

/// A device: a node on a host of its own, and its records.
struct Device {
    host: Host,
    node: Node,
    records: Records,
}

impl Device {
    async fn start(devnet: &Devnet, name: &str) -> Self {
        let device = Self::begin(devnet, name).await;
        device.node.ready(READY).await.unwrap();
        device
    }

    /// Starts a device, or starts it again in its directory, without waiting for the network.
    async fn begin(devnet: &Devnet, name: &str) -> Self {
        let host = devnet.host(name).await.unwrap();
        let slot: Arc<OnceLock<Records>> = Arc::default();
        let seen = slot.clone();
        let on_update: UpdateCallback = Arc::new(move |update: VeilidUpdate| {
            if let Some(records) = seen.get() {
                records.handle_update(&update);
            }
        });
        let mut options = NodeOptions::default();
        options.on_update = Some(on_update);
        let node = host
            .start_node_with(&host.directory().join("device"), options)
            .await
            .unwrap();
        let api = node.api().clone();
        let records = host
            .run(async move {
                let cache = Arc::new(TableCache::open(&api).await.unwrap());
                let options = RecordsOptions {
                    set: Duration::from_secs(12),
                    poll: Duration::from_secs(20),
                    ..RecordsOptions::default()
                };
                Records::with_options(api, cache, options)
            })
            .await;
        assert!(slot.set(records.clone()).is_ok());
        Self {
            host,
            node,
            records,
        }
    }

    async fn stop(self) {
        let (records, begin) = (self.records, Instant::now());
        self.host.run(async move { records.close().await }).await;
        say(begin, "to close the records");
        self.node.shutdown().await.unwrap();
    }

    /// Runs on the device's host, as every call on its node has to.
    async fn run<T, F>(&self, work: impl FnOnce(Records) -> F) -> T
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        self.host.run(work(self.records.clone())).await
    }

    async fn group(&self, access: &GroupAccess) -> GroupRecord {
        let access = access.clone();
        self.run(|records| async move { GroupRecord::attach(&records, access).await.unwrap() })
            .await
    }

    async fn name(&self, group: &GroupRecord) -> Result<Option<Stamped<GroupMetadata>>, Error> {
        let group = group.clone();
        self.run(|_| async move { group.metadata(Fetch::Network).await })
            .await
    }

    async fn repo(&self, access: &GroupAccess, repo: &KeyPair) -> RepoRecord {
        let (access, repo) = (access.clone(), repo.clone());
        self.run(
            |records| async move { RepoRecord::create(&records, repo, &access).await.unwrap() },
        )
        .await
    }

    /// What a hostile owner can do: any bytes, past this crate.
    async fn set_raw(&self, key: &RecordKey, subkey: u32, bytes: Vec<u8>, writer: &KeyPair) {
        let (key, writer) = (key.clone(), writer.clone());
        self.run(|records| async move {
            let context = records.api().routing_context().unwrap();
            let _ = context
                .open_dht_record(key.clone(), None, None)
                .await
                .unwrap();
            // So that its sequence number is above what the network has.
            let _ = context
                .get_dht_value(key.clone(), subkey, true)
                .await
                .unwrap();
            let options = SetDHTValueOptions {
                writer: Some(writer),
                ..Default::default()
            };
            let other = context
                .set_dht_value(key, subkey, bytes, Some(options))
                .await
                .unwrap();
            assert_eq!(other, None);
        })
        .await;
    }

    /// What the network has, past this crate.
    async fn get_raw(&self, key: &RecordKey, subkey: u32) -> Vec<u8> {
        let key = key.clone();
        self.run(|records| async move {
            let context = records.api().routing_context().unwrap();
            let _ = context
                .open_dht_record(key.clone(), None, None)
                .await
                .unwrap();
            let value = context.get_dht_value(key, subkey, true).await.unwrap();
            value.map(|value| value.data().to_vec()).unwrap_or_default()
        })
        .await
    }
}

fn keypair() -> KeyPair {
    Crypto::generate_keypair(CRYPTO_KIND_VLD0).unwrap()
}

fn named(name: &str) -> GroupMetadata {
    GroupMetadata {
        name: name.to_owned(),
        ..GroupMetadata::default()
    }
}

fn index(index: u32) -> SlotIndex {
    SlotIndex::new(index).unwrap()
}

fn root(byte: u8) -> RootValue {
    RootValue {
        hash: [byte; 32],
        bytes: 1,
        files: 1,
    }
}

fn say(begin: Instant, what: &str) {
    eprintln!("{:6.2} s  {what}", begin.elapsed().as_secs_f64());
}

async fn sign(group: &GroupRecord, at: SlotIndex, repo: &KeyPair, name: &str) -> SlotValue {
    let root = SlotRoot {
        hash: [7; 32],
        counter: 1,
        bytes: 10,
        files: 1,
    };
    group
        .sign_slot(at, repo, Some(root), Some(name))
        .await
        .unwrap()
        .into()
}

async fn publish_slot(
    device: &Device,
    group: &GroupRecord,
    at: SlotIndex,
    repo: &KeyPair,
    name: &'static str,
) {
    let (group, repo) = (group.clone(), repo.clone());
    device
        .run(|_| async move {
            let slot = sign(&group, at, &repo, name).await;
            group.set_slot(at, &slot).await.unwrap();
            let published = answered(|| group.publish()).await;
            let outcome = published
                .subkeys
                .iter()
                .find(|(subkey, _)| *subkey == at.get());
            assert!(
                matches!(outcome, Some((_, Outcome::Published { .. }))),
                "{published:?}"
            );
        })
        .await;
}

async fn slots(device: &Device, group: &GroupRecord) -> BTreeMap<u32, Result<SlotValue, Error>> {
    let group = group.clone();
    let slots = device
        .run(|_| async move { answered(|| group.slots(Fetch::Network)).await })
        .await;
    slots
        .into_iter()
        .map(|(index, slot)| (index.get(), slot.map(|slot| slot.value)))
        .collect()
}

fn member_name(slot: &Result<SlotValue, Error>) -> Option<&str> {
    match slot {
        Ok(SlotValue::Member(slot)) => slot.name.as_deref(),
        _ => None,
    }
}

/// Begins to watch, and waits until the watch names a subkey; gives how long that took from the beginning.
async fn announcement(
    device: &Device,
    group: &GroupRecord,
    subkey: u32,
) -> tokio::task::JoinHandle<Duration> {
    let group = group.clone();
    let (ready, is_ready) = tokio::sync::oneshot::channel();
    let task = device.host.handle().spawn(async move {
        let mut watch = group.watch().await.unwrap();
        // What the network has and this device has not read would be the first news.
        answered(|| group.slots(Fetch::Network)).await;
        answered(|| group.metadata(Fetch::Network)).await;
        ready.send(()).unwrap();
        let begin = Instant::now();
        loop {
            let Changed { subkeys } = watch.next().await.unwrap();
            if subkeys.contains(&subkey) {
                return begin.elapsed();
            }
        }
    });
    is_ready.await.unwrap();
    task
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_is_found_by_its_public_key_and_protected_from_its_owners() {
    devnet::trace_to_stderr();
    let begin = Instant::now();
    let devnet = Devnet::start(MIN_NODES).await.unwrap();
    let (ada, bob) = tokio::join!(Device::start(&devnet, "ada"), Device::start(&devnet, "bob"));
    say(begin, "devnet and two devices ready");

    // Created with a name on one, read by the bare key on the other.
    let owner = keypair();
    let access = GroupAccess::Member {
        owner: owner.clone(),
    };
    let at_ada = {
        let owner = owner.clone();
        ada.run(|records| async move {
            let group = GroupRecord::create(&records, owner).await.unwrap();
            group.set_metadata(&named("one")).await.unwrap();
            let published = answered(|| group.publish()).await;
            assert_eq!(
                published.subkeys,
                vec![(0, Outcome::Published { counter: 1 })]
            );
            assert_eq!(group.unpublished().await, Ok(vec![]));
            assert_eq!(group.publish().await, Ok(Published::default()));
            group
        })
        .await
    };
    say(begin, "group created and published");
    let reader = bob.group(&access.to_reader().unwrap()).await;
    let at_bob = bob.group(&access).await;
    assert_eq!(reader.record_key(), at_ada.record_key());
    let read = {
        let group = reader.clone();
        bob.run(|_| async move {
            assert_eq!(group.metadata(Fetch::Cached).await, Ok(None));
            let metadata = answered(|| group.metadata(Fetch::Network)).await;
            assert_eq!(group.metadata(Fetch::Cached).await.unwrap(), metadata);
            metadata
        })
        .await
    };
    assert_eq!(
        read,
        Some(Stamped {
            counter: 1,
            value: named("one")
        })
    );
    say(begin, "read by the bare key elsewhere");

    // A group that nobody made is no group.
    let unknown = bob.group(&GroupAccess::Member { owner: keypair() }).await;
    assert_eq!(bob.name(&unknown).await, Err(Error::RecordNotFound));
    say(begin, "an unknown record is not found");

    // Slots of several writers, on both sides, announced by the watch of the other.
    let (repo_ada, repo_bob) = (keypair(), keypair());
    let announced = announcement(&bob, &at_bob, 5).await;
    publish_slot(&ada, &at_ada, index(5), &repo_ada, "Ada").await;
    say(begin, "a slot published");
    let after = announced.await.unwrap();
    say(
        begin,
        &format!("its change announced, {after:?} after the watch began"),
    );
    publish_slot(&bob, &at_bob, index(900), &repo_bob, "Bob").await;
    for (device, group) in [(&ada, &at_ada), (&bob, &at_bob), (&bob, &reader)] {
        let slots = slots(device, group).await;
        let names: Vec<_> = slots
            .iter()
            .map(|(at, slot)| (*at, member_name(slot)))
            .collect();
        assert_eq!(names, vec![(5, Some("Ada")), (900, Some("Bob"))]);
    }
    say(begin, "slots read on both sides");

    // A watch whose notices never come finds changes by inspection.
    let polled = {
        let access = access.clone();
        bob.run(|records| async move {
            let options = RecordsOptions {
                poll: Duration::from_secs(1),
                ..Default::default()
            };
            let records =
                Records::with_options(records.api().clone(), Arc::new(MemoryCache::new()), options);
            let group = GroupRecord::attach(&records, access).await.unwrap();
            let mut watch = group.watch().await.unwrap();
            // First what is there and was not read.
            assert_eq!(
                watch.next().await,
                Some(Changed {
                    subkeys: vec![0, 5, 900]
                })
            );
            watch
        })
        .await
    };
    publish_slot(&ada, &at_ada, index(6), &keypair(), "Eve").await;
    let change = bob
        .run(|_| async move {
            let mut watch = polled;
            watch.next().await
        })
        .await;
    assert_eq!(change, Some(Changed { subkeys: vec![6] }));
    say(begin, "a change found by inspection");

    // A replica reads roots and slots, and neither name.
    let replica = bob.group(&access.to_replica()).await;
    let seen = slots(&bob, &replica).await;
    let Ok(SlotValue::Member(slot)) = &seen[&5] else {
        panic!("{seen:?}")
    };
    assert_eq!(
        (&slot.repo, slot.root.unwrap().files, &slot.name),
        (&repo_ada.key(), 1, &None)
    );
    assert_eq!(bob.name(&replica).await, Err(Error::NoContentKey));

    // Garbage and a value from elsewhere stop nobody else.
    let key = at_ada.record_key().clone();
    let moved = bob.get_raw(&key, 5).await;
    ada.set_raw(&key, 77, b"\x01arbage".to_vec(), &owner).await;
    ada.set_raw(&key, 78, moved, &owner).await;
    let seen = slots(&bob, &at_bob).await;
    assert_eq!(seen[&77], Err(Error::ShortValue { len: 7 }));
    assert_eq!(seen[&78], Err(Error::Moved));
    assert_eq!(
        (member_name(&seen[&5]), member_name(&seen[&900])),
        (Some("Ada"), Some("Bob"))
    );
    // And are not in the way of who takes the slot.
    publish_slot(&bob, &at_bob, index(77), &repo_bob, "Bob").await;
    say(
        begin,
        "undecodable slots are errors alone, and can be taken",
    );

    // A leave is signed, a cleared slot is empty.
    {
        let (group, repo) = (at_bob.clone(), repo_bob.clone());
        bob.run(|_| async move {
            let leave = group.sign_leave(index(900), &repo).await.unwrap();
            group.set_slot(index(900), &leave.into()).await.unwrap();
            group.clear_slot(index(77)).await.unwrap();
            assert!(answered(|| group.publish()).await.is_complete());
        })
        .await;
    }
    let seen = slots(&ada, &at_ada).await;
    assert!(
        matches!(&seen[&900], Ok(SlotValue::Left(leave)) if leave.repo == repo_bob.key()),
        "{seen:?}"
    );
    assert_eq!(seen[&77], Ok(SlotValue::Empty));
    say(begin, "left and cleared");

    // An owner replays an older value at a higher sequence number.
    let older = bob.get_raw(&key, 0).await;
    {
        let group = at_ada.clone();
        ada.run(|_| async move {
            group.set_metadata(&named("two")).await.unwrap();
            assert!(answered(|| group.publish()).await.is_complete());
        })
        .await;
    }
    let newer = bob.get_raw(&key, 0).await;
    let mut events = bob.records.events();
    let two = Stamped {
        counter: 2,
        value: named("two"),
    };
    assert_eq!(bob.name(&at_bob).await, Ok(Some(two.clone())));
    ada.set_raw(&key, 0, older.clone(), &owner).await;
    assert_eq!(ada.get_raw(&key, 0).await, older);
    assert_eq!(bob.name(&at_bob).await, Ok(Some(two.clone())));
    let record = key.opaque();
    assert_eq!(
        events.try_recv(),
        Ok(RecordEvent::Rollback {
            record,
            subkey: 0,
            seen: 2,
            got: 1
        })
    );
    assert!(events.try_recv().is_err());
    assert_eq!(ada.get_raw(&key, 0).await, newer);
    assert_eq!(bob.name(&at_bob).await, Ok(Some(two)));
    say(
        begin,
        "a replayed value was ignored, reported, and replaced",
    );

    // A newer program's value is left alone, whoever wants the slot.
    ada.set_raw(&key, 79, b"\x02newer".to_vec(), &owner).await;
    {
        let (group, repo) = (at_bob.clone(), repo_bob.clone());
        let (refused, still) = bob
            .run(|_| async move {
                let slot = sign(&group, index(79), &repo, "Bob").await;
                group.set_slot(index(79), &slot).await.unwrap();
                (
                    group.slot(index(79), Fetch::Network).await,
                    answered(|| group.publish()).await,
                )
            })
            .await;
        let version = Error::UnknownVersion { version: 2 };
        assert_eq!(refused, Err(version.clone()));
        assert_eq!(still.subkeys, vec![(79, Outcome::Failed(version))]);
    }
    assert_eq!(ada.get_raw(&key, 79).await, b"\x02newer");
    // The write that waits for it can be given up.
    let group = at_bob.clone();
    bob.run(|_| async move {
        group.discard_slot(index(79)).await.unwrap();
        assert_eq!(group.publish().await, Ok(Published::default()));
        assert_eq!(group.slot(index(79), Fetch::Cached).await, Ok(None));
    })
    .await;
    say(begin, "a newer program's value was left alone");

    ada.stop().await;
    bob.stop().await;
    devnet.stop().await.unwrap();
    say(begin, "stopped");
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_who_race_are_told_who_won() {
    devnet::trace_to_stderr();
    let begin = Instant::now();
    let devnet = Devnet::start(MIN_NODES).await.unwrap();
    let (ada, bob) = tokio::join!(Device::start(&devnet, "ada"), Device::start(&devnet, "bob"));
    say(begin, "devnet and two devices ready");
    let owner = keypair();
    let access = GroupAccess::Member {
        owner: owner.clone(),
    };
    ada.run(|records| async move {
        let group = GroupRecord::create(&records, owner).await.unwrap();
        group.set_metadata(&named("race")).await.unwrap();
        assert!(answered(|| group.publish()).await.is_complete());
    })
    .await;
    let devices = [&ada, &bob];
    let groups = [ada.group(&access).await, bob.group(&access).await];
    let repos = [keypair(), keypair()];

    // Both take the same ten slots at the same time, three times.
    let (mut wins, mut late, mut yielded) = ([0, 0], 0, 0);
    for round in 0..3 {
        let range = 10 * round + 11..=10 * round + 20;
        // So that both have the record open, and neither is late.
        for side in [0, 1] {
            slots(devices[side], &groups[side]).await;
        }
        let race = |side: usize| {
            let (group, repo, range) = (groups[side].clone(), repos[side].clone(), range.clone());
            devices[side].run(|_| async move {
                for at in range {
                    let slot = sign(&group, index(at), &repo, "racer").await;
                    group.set_slot(index(at), &slot).await.unwrap();
                }
                answered(|| group.publish()).await
            })
        };
        let (first, second) = tokio::join!(race(0), race(1));
        let published = [first, second].map(|published| BTreeMap::from_iter(published.subkeys));
        let stands = [slots(&ada, &groups[0]).await, slots(&bob, &groups[1]).await];
        // Who was told at first that theirs is published, and then found that it is not, is told so as well.
        let again = |side: usize| {
            let group = groups[side].clone();
            devices[side].run(|_| async move { answered(|| group.publish()).await })
        };
        let later =
            [again(0).await, again(1).await].map(|later| later.overwritten().collect::<Vec<_>>());
        for at in range {
            assert_eq!(stands[0][&at], stands[1][&at], "slot {at}: {published:?}");
            let Ok(SlotValue::Member(winner)) = &stands[0][&at] else {
                panic!("{stands:?}")
            };
            let told = |side: usize| match &published[side][&at] {
                Outcome::Published { .. } => later[side].contains(&at),
                Outcome::Overwritten { .. } => true,
                other => panic!("slot {at}: {other:?}"),
            };
            let winner = usize::from(winner.repo == repos[1].key());
            wins[winner] += 1;
            late += usize::from(later[1 - winner].contains(&at));
            // Whoever lost is told. Who won may have yielded as well, while each saw the other's; nobody believes to
            // have a slot that is not theirs.
            assert!(told(1 - winner), "slot {at}: {published:?} {later:?}");
            yielded += usize::from(told(winner));
        }
        for side in [0, 1] {
            let group = groups[side].clone();
            let unpublished = devices[side]
                .run(|_| async move { group.unpublished().await })
                .await;
            assert_eq!(unpublished, Ok(vec![]));
        }
    }
    assert_eq!(wins[0] + wins[1], 30);
    say(
        begin,
        &format!(
            "thirty slots raced for, won {} to {}, {late} told later, {yielded} yielded by both",
            wins[0], wins[1]
        ),
    );

    // Two devices of one member write the root, one of them twice while it does not look.
    let repo = keypair();
    let (at_ada, at_bob) = (
        ada.repo(&access, &repo).await,
        bob.repo(&access, &repo).await,
    );
    {
        let repo = at_ada.clone();
        ada.run(|_| async move {
            repo.set_metadata(&RepoMetadata {
                name: "Ada".into(),
                ..RepoMetadata::default()
            })
            .await
            .unwrap();
            repo.set_root(&root(1)).await.unwrap();
            let tunnel = TunnelValue {
                route: vec![3; 757],
                device: DeviceId([1; 16]),
                published_at: 5,
                role: None,
            };
            repo.set_tunnel(&tunnel).await.unwrap();
            let published = answered(|| repo.publish()).await;
            assert!(
                published.is_complete() && published.subkeys.len() == 3,
                "{published:?}"
            );
        })
        .await;
    }
    {
        let repo = at_bob.clone();
        bob.run(|_| async move {
            repo.set_root(&root(2)).await.unwrap();
            repo.set_root(&root(3)).await.unwrap();
            let published = answered(|| repo.publish()).await;
            assert_eq!(
                published.subkeys,
                vec![(1, Outcome::Overwritten { ours: 2, theirs: 1 })]
            );
            // What stands is here now, to be merged; the merged root goes through.
            assert_eq!(
                repo.root(Fetch::Cached).await.unwrap().unwrap().value,
                root(1)
            );
            assert_eq!(answered(|| repo.publish()).await, Published::default());
            repo.set_root(&root(4)).await.unwrap();
            assert!(answered(|| repo.publish()).await.is_complete());
            let tunnels = answered(|| repo.tunnels(Fetch::Network)).await;
            assert_eq!(tunnels.len(), 1);
            assert_eq!(
                tunnels[0].1.as_ref().unwrap().value.device,
                DeviceId([1; 16])
            );
            assert_eq!(
                answered(|| repo.metadata(Fetch::Network))
                    .await
                    .unwrap()
                    .value
                    .name,
                "Ada"
            );
        })
        .await;
    }
    {
        let repo = at_ada.clone();
        ada.run(|_| async move {
            assert_eq!(
                answered(|| repo.root(Fetch::Network)).await.unwrap().value,
                root(4)
            );
            assert_eq!(repo.clear_tunnel(DeviceId([1; 16])).await, Ok(1));
            assert!(answered(|| repo.publish()).await.is_complete());
        })
        .await;
    }
    let repo = at_bob.clone();
    let tunnels = bob
        .run(|_| async move { answered(|| repo.tunnels(Fetch::Network)).await })
        .await;
    assert_eq!(tunnels, vec![]);
    say(begin, "two devices of one member, no root undone");

    ada.stop().await;
    bob.stop().await;
    devnet.stop().await.unwrap();
    say(begin, "stopped");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_written_while_away_is_published_later() {
    devnet::trace_to_stderr();
    let begin = Instant::now();
    let devnet = Devnet::start(MIN_NODES).await.unwrap();
    let (ada, bob) = tokio::join!(Device::start(&devnet, "ada"), Device::start(&devnet, "bob"));
    say(begin, "devnet and two devices ready");
    let owner = keypair();
    let access = GroupAccess::Member {
        owner: owner.clone(),
    };
    let at_ada = ada
        .run(|records| async move {
            let group = GroupRecord::create(&records, owner).await.unwrap();
            group.set_metadata(&named("before")).await.unwrap();
            assert!(answered(|| group.publish()).await.is_complete());
            group
        })
        .await;
    let at_bob = bob.group(&access).await;
    assert_eq!(
        bob.name(&at_bob).await.unwrap().unwrap().value,
        named("before")
    );

    // Cut off, with a node that may not have noticed yet.
    ada.host.cut_off().await.unwrap();
    let (cut, group) = (Instant::now(), at_ada.clone());
    let failed = ada
        .run(|_| async move {
            group.set_metadata(&named("while away")).await.unwrap();
            let slot = sign(&group, index(3), &keypair(), "Ada").await;
            group.set_slot(index(3), &slot).await.unwrap();
            let failed = group
                .publish()
                .await
                .and_then(Published::or_failure)
                .unwrap_err();
            assert_eq!(group.unpublished().await, Ok(vec![0, 3]));
            assert_eq!(
                group.metadata(Fetch::Cached).await.unwrap().unwrap().value,
                named("while away")
            );
            failed
        })
        .await;
    assert!(failed.is_retryable(), "{failed:?}");
    say(
        begin,
        &format!(
            "not published while cut off: {failed} after {:?}",
            cut.elapsed()
        ),
    );
    let stale = ada.name(&at_ada).await;
    assert!(stale.as_ref().is_err_and(Error::is_retryable), "{stale:?}");
    say(begin, "nor read");
    assert_eq!(
        bob.name(&at_bob).await.unwrap().unwrap().value,
        named("before")
    );

    // Restarted while cut off: everything is there, and waits.
    drop(at_ada);
    ada.stop().await;
    say(begin, "stopped while cut off");
    let ada = Device::begin(&devnet, "ada").await;
    let at_ada = ada.group(&access).await;
    {
        let group = at_ada.clone();
        ada.run(|_| async move {
            assert_eq!(
                group.metadata(Fetch::Cached).await.unwrap().unwrap().value,
                named("while away")
            );
            assert_eq!(group.slots(Fetch::Cached).await.unwrap().len(), 1);
            assert_eq!(group.unpublished().await, Ok(vec![0, 3]));
            assert_eq!(group.publish().await, Err(Error::Offline));
            assert_eq!(group.metadata(Fetch::Network).await, Err(Error::Offline));
        })
        .await;
    }
    say(begin, "restarted while cut off, nothing lost");

    // Back on the network.
    let announced = announcement(&bob, &at_bob, 3).await;
    ada.host.rejoin().await.unwrap();
    let back = Instant::now();
    ada.node.ready(READY).await.unwrap();
    say(
        begin,
        &format!("ready {:?} after rejoining", back.elapsed()),
    );
    {
        let group = at_ada.clone();
        ada.run(|_| async move {
            let published = answered(|| group.publish()).await;
            assert!(
                published.is_complete() && published.subkeys.len() == 2,
                "{published:?}"
            );
            assert_eq!(group.unpublished().await, Ok(vec![]));
        })
        .await;
    }
    announced.await.unwrap();
    assert_eq!(
        bob.name(&at_bob).await.unwrap().unwrap().value,
        named("while away")
    );
    assert_eq!(member_name(&slots(&bob, &at_bob).await[&3]), Some("Ada"));
    say(begin, "published and read after rejoining");

    // A restart keeps the marks.
    drop(at_ada);
    ada.stop().await;
    let ada = Device::start(&devnet, "ada").await;
    let at_ada = ada.group(&access).await;
    assert_eq!(ada.name(&at_ada).await.unwrap().unwrap().counter, 2);
    say(begin, "restarted once more");

    ada.stop().await;
    bob.stop().await;
    devnet.stop().await.unwrap();
    say(begin, "stopped");
}
