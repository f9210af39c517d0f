//! Repos on a real Veilid network: what one device publishes, another finds by the public key alone.
#![cfg(target_os = "linux")]
#![recursion_limit = "256"]
#![allow(
    clippy::unwrap_used,
    reason = "a test that unwraps an error fails, which is what it is for"
)]

use std::{
    future::Future,
    sync::{Arc, OnceLock},
    time::Duration,
};

use devnet::{Devnet, Host, MIN_NODES, Node, NodeOptions};
use dht_records::{DeviceId, Fetch, GroupAccess, Records, TableCache};
use integration_tests::answered;
use repo::{EntryPath, Error, Hash, Repo, RepoContext, SystemClock, WriteOptions};
use store_adapter::{Protection, StoreOptions, VeilidStore};
use tokio::io::AsyncReadExt;
use veilid_core::{CRYPTO_KIND_VLD0, Crypto, KeyPair, UpdateCallback, VeilidUpdate};

const READY: Duration = Duration::from_secs(60);

/// A device: a node on a host of its own, with records and a store.
struct Device {
    host: Host,
    node: Node,
    ctx: RepoContext,
}

impl Device {
    async fn start(devnet: &Devnet, name: &str) -> Self {
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
        let directory = host.directory().join("device");
        let node = host.start_node_with(&directory, options).await.unwrap();
        let api = node.api().clone();
        let ctx = host
            .run(async move {
                let cache = Arc::new(TableCache::open(&api).await.unwrap());
                RepoContext {
                    records: Records::new(api.clone(), cache),
                    store: VeilidStore::open(
                        &api,
                        &directory.join("store"),
                        StoreOptions::default().with_protection(Protection::Insecure),
                    )
                    .await
                    .unwrap(),
                    device: DeviceId::random().unwrap(),
                    clock: Arc::new(SystemClock),
                }
            })
            .await;
        assert!(slot.set(ctx.records.clone()).is_ok());
        node.ready(READY).await.unwrap();
        Self { host, node, ctx }
    }

    /// Runs on the device's host, as every call on its node has to.
    async fn run<T, F>(&self, work: impl FnOnce(RepoContext) -> F) -> T
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        self.host.run(work(self.ctx.clone())).await
    }

    async fn open(&self, access: &GroupAccess, keys: &KeyPair, writable: bool) -> Repo {
        let (access, keys) = (access.clone(), keys.clone());
        self.run(move |ctx| async move {
            let secret = writable.then(|| keys.clone());
            Repo::open(&ctx, &access, keys.key(), secret).await.unwrap()
        })
        .await
    }

    async fn stop(self) {
        let ctx = self.ctx;
        self.host
            .run(async move {
                ctx.store.close().await.unwrap();
                ctx.records.close().await;
            })
            .await;
        self.node.shutdown().await.unwrap();
    }
}

fn path(text: &str) -> EntryPath {
    EntryPath::parse(text).unwrap()
}

async fn write(repo: &Repo, name: &str, bytes: &[u8]) {
    repo.write(&path(name), bytes, WriteOptions::default())
        .await
        .unwrap();
}

async fn read(repo: &Repo, name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut reader = repo.read(&path(name)).await.unwrap();
    reader.read_to_end(&mut bytes).await.unwrap();
    bytes
}

/// The root that the network names.
async fn published_root(repo: &Repo) -> Hash {
    let root = answered(|| repo.record().root(Fetch::Network))
        .await
        .unwrap();
    Hash::from_bytes(root.value.hash)
}

/// Brings a root from one store into another. What a fetch over a tunnel does is the business of another crate.
async fn bring(from: &VeilidStore, to: &VeilidStore, root: Hash) {
    for hash in from.reachable(root).await.unwrap() {
        if hash != Hash::EMPTY {
            let bytes = from.get_bytes(hash).await.unwrap();
            let _ = to.add_bytes(bytes).temp_tag().await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn name_root_and_tunnels_are_read_back_on_another_device() {
    let devnet = Devnet::start(MIN_NODES).await.unwrap();
    let alice = Device::start(&devnet, "alice").await;
    let bob = Device::start(&devnet, "bob").await;
    let owner = Crypto::generate_keypair(CRYPTO_KIND_VLD0).unwrap();
    let access = GroupAccess::Member { owner };

    let group = access.clone();
    let (mine, keys) = alice
        .run(move |ctx| async move {
            let (repo, keys) = Repo::create(&ctx, &group, "Alice's archive").await.unwrap();
            write(&repo, "notes/first.txt", b"They said that ...").await;
            write(&repo, "photo.png", &[7; 100_000]).await;
            let published = answered(|| repo.publish_tunnel(b"the blob of a route", None)).await;
            assert!(published.is_complete(), "{published:?}");
            assert!(repo.record().unpublished().await.unwrap().is_empty());
            (repo, keys)
        })
        .await;

    // Bob has the group's keys and the repo's public key, and nothing else.
    let theirs = bob.open(&access, &keys, false).await;
    let (repo, device, root) = (
        theirs.clone(),
        alice.ctx.device,
        mine.held_root().await.unwrap().unwrap(),
    );
    bob.run(move |_| async move {
        let name = answered(|| repo.name(Fetch::Network)).await;
        assert_eq!(name.as_deref(), Some("Alice's archive"));
        let value = answered(|| repo.record().root(Fetch::Network))
            .await
            .unwrap()
            .value;
        assert_eq!(
            (Hash::from_bytes(value.hash), value.files, value.bytes),
            (root.hash, 2, 100_018)
        );
        let tunnels = answered(|| repo.tunnels(Fetch::Network)).await;
        assert_eq!(tunnels.len(), 1);
        assert_eq!(tunnels[0].value.route, b"the blob of a route");
        assert_eq!(tunnels[0].value.device, device);
        assert!(matches!(
            repo.adopt(root.hash).await,
            Err(Error::NotHere { .. })
        ));
    })
    .await;
    bring(&alice.ctx.store, &bob.ctx.store, root.hash).await;
    let repo = theirs.clone();
    bob.run(move |_| async move {
        repo.adopt(root.hash).await.unwrap();
        assert_eq!(read(&repo, "notes/first.txt").await, b"They said that ...");
        let refused = repo
            .write(&path("x"), &b"x"[..], WriteOptions::default())
            .await;
        assert!(matches!(refused, Err(Error::ReadOnly)));
    })
    .await;

    // A deletion, a new name and the withdrawn tunnel arrive.
    let repo = mine.clone();
    alice
        .run(move |_| async move {
            repo.delete(&path("photo.png")).await.unwrap();
            repo.set_name("Alice").await.unwrap();
            assert!(answered(|| repo.withdraw_tunnel()).await.is_complete());
        })
        .await;
    let repo = theirs.clone();
    let root = bob
        .run(move |_| async move {
            assert_eq!(
                answered(|| repo.name(Fetch::Network)).await.as_deref(),
                Some("Alice")
            );
            assert!(answered(|| repo.tunnels(Fetch::Network)).await.is_empty());
            published_root(&repo).await
        })
        .await;
    assert_eq!(root, mine.held_root().await.unwrap().unwrap().hash);
    bring(&alice.ctx.store, &bob.ctx.store, root).await;
    theirs.adopt(root).await.unwrap();
    let removed = bob.ctx.store.gc().await.unwrap();
    assert!(removed.removed_bytes > 100_000);
    let names: Vec<_> = theirs.list().await.unwrap();
    assert_eq!(names.len(), 1);

    drop((mine, theirs));
    alice.stop().await;
    bob.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_devices_of_one_member_publish_into_one_repo() {
    let devnet = Devnet::start(MIN_NODES).await.unwrap();
    let phone = Device::start(&devnet, "phone").await;
    let laptop = Device::start(&devnet, "laptop").await;
    let owner = Crypto::generate_keypair(CRYPTO_KIND_VLD0).unwrap();
    let access = GroupAccess::Member { owner };

    let group = access.clone();
    let (on_phone, keys) = phone
        .run(move |ctx| async move {
            let (repo, keys) = Repo::create(&ctx, &group, "Carol").await.unwrap();
            write(&repo, "shared", b"1").await;
            assert!(
                answered(|| repo.publish_tunnel(b"route of the phone", None))
                    .await
                    .is_complete()
            );
            (repo, keys)
        })
        .await;
    let on_laptop = laptop.open(&access, &keys, true).await;
    let repo = on_laptop.clone();
    let first = laptop
        .run(move |_| async move { published_root(&repo).await })
        .await;

    // Before it has fetched anything, the laptop cannot replace what is there.
    let repo = on_laptop.clone();
    laptop
        .run(move |_| async move {
            let refused = repo
                .write(&path("x"), &b"x"[..], WriteOptions::default())
                .await;
            assert!(matches!(refused, Err(Error::NotHere { hash }) if hash == first));
        })
        .await;
    bring(&phone.ctx.store, &laptop.ctx.store, first).await;
    let repo = on_laptop.clone();
    laptop
        .run(move |_| async move {
            repo.adopt(first).await.unwrap();
            write(&repo, "laptop", b"2").await;
            let _ = answered(|| repo.tunnels(Fetch::Network)).await;
            assert!(
                answered(|| repo.publish_tunnel(b"route of the laptop", None))
                    .await
                    .is_complete()
            );
        })
        .await;

    // The phone wrote meanwhile, without knowing of it. Its root loses, and is merged once the other one is here.
    let repo = on_phone.clone();
    let second = phone
        .run(move |_| async move {
            write(&repo, "phone", b"3").await;
            let published = answered(|| repo.publish()).await;
            assert_eq!(
                published.overwritten().collect::<Vec<_>>(),
                [1],
                "{published:?}"
            );
            published_root(&repo).await
        })
        .await;
    bring(&laptop.ctx.store, &phone.ctx.store, second).await;
    let repo = on_phone.clone();
    let merged = phone
        .run(move |_| async move {
            repo.adopt(second).await.unwrap();
            assert!(answered(|| repo.publish()).await.is_complete());
            assert_eq!(answered(|| repo.tunnels(Fetch::Network)).await.len(), 2);
            published_root(&repo).await
        })
        .await;
    bring(&phone.ctx.store, &laptop.ctx.store, merged).await;
    let repo = on_laptop.clone();
    laptop
        .run(move |_| async move {
            assert_eq!(published_root(&repo).await, merged);
            repo.adopt(merged).await.unwrap();
            assert!(repo.record().unpublished().await.unwrap().is_empty());
        })
        .await;
    for repo in [&on_phone, &on_laptop] {
        assert_eq!(repo.held_root().await.unwrap().unwrap().hash, merged);
        for (name, bytes) in [("shared", b"1"), ("laptop", b"2"), ("phone", b"3")] {
            assert_eq!(read(repo, name).await, bytes);
        }
    }
    drop((on_phone, on_laptop));
    phone.stop().await;
    laptop.stop().await;
}
