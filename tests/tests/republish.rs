//! Storage nodes that forget, at the number of records that Veilid has them keep by default.
#![cfg(target_os = "linux")]
#![recursion_limit = "256"]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::time::Duration;

use devnet::{Devnet, DevnetOptions, Node};
use dht_records::RepoRecord;
use futures::{StreamExt as _, future, stream};
use integration_tests::peers::{Device, LIMIT, noise};
use save_backend::{ErrorKind, GroupId, Link, LinkKind, RepoSync};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use veilid_core::{CRYPTO_KIND_VLD0, DHTSchema, RecordKey, RoutingContext, VeilidAPIError};

/// Records that are written before somebody looks, which makes those that are there the most recently used: each is kept by five of
/// seven nodes, so this is more than a node keeps.
const BATCH: usize = 256;

/// Others, who use the same storage nodes.
struct Others(Node);

impl Others {
    async fn start(devnet: &Devnet) -> Self {
        let host = devnet.host("others").await.unwrap();
        let node = host
            .start_node(&host.directory().join("node"))
            .await
            .unwrap();
        node.ready(LIMIT).await.unwrap();
        Self(node)
    }

    /// Writes records of their own until nobody has these any more. Gives how many that took.
    async fn crowd_out(&self, keys: &[RecordKey]) -> usize {
        let (api, keys) = (self.0.api().clone(), keys.to_vec());
        let crowded = self.0.host().run(async move {
            let context = api.routing_context().unwrap();
            let mut written = 0;
            while any_is_there(&context, &keys).await {
                stream::iter(0..BATCH)
                    .for_each_concurrent(8, |_| write_one(&context))
                    .await;
                written += BATCH;
            }
            written
        });
        timeout(LIMIT, crowded).await.expect("the records stay")
    }
}

async fn write_one(context: &RoutingContext) {
    let schema = DHTSchema::dflt(1).unwrap();
    let created = context.create_dht_record(CRYPTO_KIND_VLD0, schema, None);
    let key = created.await.unwrap().key();
    // Some do not get through while so many are written at once. The others crowd as well.
    let _ = context
        .set_dht_value(key.clone(), 0, vec![7; 64], None)
        .await;
    context.delete_dht_record(key).await.unwrap();
}

/// Whether a node that has no copy finds any of the records.
async fn any_is_there(context: &RoutingContext, keys: &[RecordKey]) -> bool {
    for key in keys {
        match context.open_dht_record(key.clone(), None, None).await {
            Ok(_) => {
                context.delete_dht_record(key.clone()).await.unwrap();
                return true;
            }
            Err(VeilidAPIError::KeyNotFound { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
    false
}

/// The records of a group and of its members.
async fn records(device: &Device, id: &GroupId) -> Vec<RecordKey> {
    let group = device.group_record(id).await;
    let (of, access) = (id.clone(), device.access(id));
    let mut records = vec![group.record_key().clone()];
    let members = device
        .on(move |b| async move {
            let records = b.group(&of).unwrap().context().records.clone();
            let mut keys = Vec::new();
            for member in b.members(&of, false).await.unwrap() {
                let record = RepoRecord::attach(&records, &access, member.repo, None);
                keys.push(record.await.unwrap().record_key().clone());
            }
            keys
        })
        .await;
    records.extend(members);
    records
}

async fn sync(device: &Device, id: &GroupId) {
    let id = id.clone();
    device
        .on(move |b| async move {
            loop {
                let synced = b.sync_all(&id, |_| {}).await.unwrap();
                if !synced.is_empty() && synced.iter().all(RepoSync::is_complete) {
                    return;
                }
                sleep(Duration::from_millis(300)).await;
            }
        })
        .await;
}

/// Looks after the records until the network has all of them and somebody new has joined. Veilid looks after a record every five minutes
/// at most, and until then a single node may have it, whom not everybody asks; so this may take longer than other calls.
async fn republish_until_joined(device: &Device, id: &GroupId, newcomer: &Device, link: &Link) {
    let (joined, has_joined) = watch::channel(false);
    let (backend, of) = (device.backend.clone(), id.clone());
    let republish = device.host.run(async move {
        backend.wait_online(LIMIT).await.unwrap();
        let group = backend.group(&of).unwrap();
        loop {
            match group.republish().await {
                Ok(_) if *has_joined.borrow() => return,
                Ok(_) => {}
                Err(error) => {
                    assert!(error.is_retryable(), "{error}");
                    eprintln!("not all of it is back: {error:?}");
                }
            }
            sleep(Duration::from_secs(2)).await;
        }
    });
    let (backend, link, me) = (newcomer.backend.clone(), link.clone(), newcomer.name);
    let join = newcomer.host.run(async move {
        while let Err(error) = backend.join_group(&link, me).await {
            assert_eq!(error.kind(), ErrorKind::NoAnswer, "{error}");
            sleep(Duration::from_millis(300)).await;
        }
        joined.send_replace(true);
    });
    timeout(
        Duration::from_secs(300) + LIMIT,
        future::join(republish, join),
    )
    .await
    .expect("the network does not get the records back");
    newcomer.flush(id).await;
}

/// Nobody of the group is online for a while, and others need the space. When a replica comes back, which can read nothing and wrote
/// nothing of it, all can be found again: at its start, and later when it looks after the records.
#[tokio::test]
async fn what_storage_nodes_forget_is_brought_back_by_anybody() {
    devnet::trace_to_stderr();
    let options = DevnetOptions {
        remote_max_records: None,
        remote_max_storage_space_mb: None,
        ..DevnetOptions::default()
    };
    let devnet = Devnet::start_with(options).await.unwrap();
    let ana = Device::start(&devnet, "ana").await;
    let id = ana.create().await;
    ana.put(&id, "kept.bin", noise(300_000, 1)).await;
    let replica = Device::start(&devnet, "replica").await;
    replica.join_as(LinkKind::Replica, &ana, &id).await;
    sync(&replica, &id).await;
    let of = id.clone();
    let link = ana
        .on(move |b| async move { b.link(&of, LinkKind::Member).await.unwrap() })
        .await;
    let records = records(&replica, &id).await;
    assert_eq!(records.len(), 2);
    ana.stop().await;
    let others = Others::start(&devnet).await;

    // The replica is off.
    let replica = replica.stopped().await;
    let written = others.crowd_out(&records).await;
    eprintln!("the records were gone after {written} others");
    let replica = replica.start().await;
    let ben = Device::start(&devnet, "ben").await;
    ben.join_with(&link, &id).await;
    ben.list_until(&id, |paths| paths == ["kept.bin"]).await;
    assert_eq!(ben.get(&id, "kept.bin").await, noise(300_000, 1));
    ben.stop().await;

    // The replica has no network.
    replica.host.cut_off().await.unwrap();
    let written = others.crowd_out(&records).await;
    eprintln!("the records were gone after {written} others");
    replica.host.rejoin().await.unwrap();
    // All of it may be back before: with the network, everything that publishes and watches opens its records again.
    let cleo = Device::start(&devnet, "cleo").await;
    republish_until_joined(&replica, &id, &cleo, &link).await;
    cleo.list_until(&id, |paths| paths == ["kept.bin"]).await;
    assert_eq!(cleo.get(&id, "kept.bin").await, noise(300_000, 1));
    for device in [cleo, replica] {
        device.stop().await;
    }
    devnet.stop().await.unwrap();
}
