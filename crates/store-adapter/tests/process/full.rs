//! A disk that takes no more: what does not fit is an error, and everything else goes on.

use std::{env, path::PathBuf, process::Command};

use iroh_blobs::{
    Hash,
    api::blobs::BlobStatus,
    protocol::{ChunkRanges, ChunkRangesExt},
};
use rustix::process::{Resource, Rlimit, setrlimit};
use store_adapter::VeilidStore;

use crate::{
    DIR, ROLE,
    support::{Node, assert_holds, import_ranges, noise, options},
};

/// No file grows beyond this.
const LIMIT: u64 = 3 << 20;

pub(crate) fn run() {
    let dir = tempfile::tempdir().unwrap();
    // The shell lets the process ignore the signal that comes with the limit, which leaves the error.
    let status = Command::new("sh")
        .args(["-c", "trap '' XFSZ; exec \"$0\""])
        .arg(env::current_exe().unwrap())
        .env(ROLE, "full")
        .env(DIR, dir.path())
        .status()
        .unwrap();
    assert!(status.success(), "{status}");
}

fn limit(bytes: Option<u64>) {
    let limit = Rlimit {
        current: bytes,
        maximum: None,
    };
    setrlimit(Resource::Fsize, limit).unwrap();
}

pub(crate) fn child() {
    let dir = PathBuf::from(env::var_os(DIR).unwrap());
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let node = Node::start(&dir.join("node"), "full").await;
        let store_dir = dir.join("store");
        let store = VeilidStore::open(&node.api, &store_dir, options())
            .await
            .unwrap();
        let (small, large) = (noise(1, 5000), noise(2, 2_000_000));
        for data in [&small, &large] {
            let name = Hash::new(data).to_string();
            store
                .add_bytes(data.clone())
                .with_named_tag(name)
                .await
                .unwrap();
        }
        limit(Some(LIMIT));

        // A file that grows too large, imported and fetched.
        let too_large = noise(3, 6_000_000);
        let hash = Hash::new(&too_large);
        store
            .add_bytes(too_large.clone())
            .temp_tag()
            .await
            .unwrap_err();
        assert_eq!(store.status(hash).await.unwrap(), BlobStatus::NotFound);
        let (_, bao) = crate::support::encoded(&too_large, &ChunkRanges::all()).await;
        store
            .import_bao_bytes(hash, ChunkRanges::all(), bao)
            .await
            .unwrap_err();
        assert!(!store.has(hash).await.unwrap());
        goes_on(&store, 10).await;
        let part = ChunkRanges::chunks(0..100);
        import_ranges(&store, &too_large, &part).await;

        // Rows until the tables are full.
        let mut added = Vec::new();
        loop {
            let data = noise(1000 + added.len() as u64, 100_000);
            match store.add_bytes(data.clone()).temp_tag().await {
                Ok(tag) => added.push((tag, data)),
                Err(_) => {
                    assert!(!store.has(Hash::new(&data)).await.unwrap());
                    break;
                }
            }
            assert!(added.len() < 1000, "the limit does nothing");
        }
        assert!(!added.is_empty());
        for (tag, data) in &added {
            assert_holds(&store, tag.hash(), data).await;
        }
        for data in [&small, &large] {
            assert_holds(&store, Hash::new(data), data).await;
        }
        // What takes space away works without any.
        let some = added.split_off(added.len() / 2);
        let gone: Vec<Hash> = some.iter().map(|(tag, _)| tag.hash()).collect();
        drop(some);
        store.gc().await.unwrap();
        for hash in gone {
            assert!(!store.has(hash).await.unwrap());
        }

        limit(None);
        goes_on(&store, 20).await;
        import_ranges(&store, &too_large, &ChunkRanges::all()).await;
        assert_holds(&store, hash, &too_large).await;
        store.close().await.unwrap();
        let store = VeilidStore::open(&node.api, &store_dir, options())
            .await
            .unwrap();
        for data in [&small, &large] {
            assert_holds(&store, Hash::new(data), data).await;
        }
        for (tag, data) in &added {
            assert_holds(&store, tag.hash(), data).await;
        }
        assert_eq!(store.verify(|_| {}).await.unwrap().damaged, []);
        store.close().await.unwrap();
        node.stop().await;
    });
}

/// Importing, tagging, reading and removing work.
async fn goes_on(store: &VeilidStore, seed: u64) {
    let data = noise(seed, 10_000);
    store
        .add_bytes(data.clone())
        .with_named_tag("goes on")
        .await
        .unwrap();
    assert_holds(store, Hash::new(&data), &data).await;
    assert_eq!(store.tags().delete("goes on").await.unwrap(), 1);
    store.sync_db().await.unwrap();
}
