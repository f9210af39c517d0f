//! Opening, sharing, closing and dropping.

use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, stream};
use iroh_blobs::{
    Hash, HashAndFormat,
    api::Store,
    protocol::{ChunkRanges, ChunkRangesExt},
};
use store_adapter::{Error, VeilidStore};

use crate::support::{Place, assert_holds, encoded, noise};

on_each_backend!(
    clones_are_one_store,
    after_closing_everything_is_an_error,
    closing_ends_what_is_under_way,
);

/// Longer than anything here takes; a store that hangs fails the test instead of stopping all of them.
const STUCK: Duration = Duration::from_secs(120);

async fn clones_are_one_store(store: VeilidStore) {
    let clone = store.clone();
    let plain: Store = (*store).clone();
    let tag = clone.add_slice(b"shared").temp_tag().await.unwrap();
    assert_holds(&store, tag.hash(), &Bytes::from_static(b"shared")).await;
    assert!(plain.has(tag.hash()).await.unwrap());
    drop(clone);
    assert!(plain.has(tag.hash()).await.unwrap());
    let clone = store.clone();
    clone.close().await.unwrap();
    assert!(matches!(store.gc().await, Err(Error::Closed)));
    store.close().await.unwrap();
}

async fn after_closing_everything_is_an_error(store: VeilidStore) {
    let data = noise(1, 400_000);
    let (hash, bao) = encoded(&data, &ChunkRanges::all()).await;
    store
        .add_bytes(data.clone())
        .with_named_tag("kept")
        .await
        .unwrap();
    store.close().await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "content").unwrap();
    let content = HashAndFormat::raw(hash);
    let calls = async {
        store.add_bytes(data.clone()).temp_tag().await.unwrap_err();
        store.add_path(&file).temp_tag().await.unwrap_err();
        let piece = stream::iter([Ok(data.clone())]);
        let import = store.add_stream(piece).await;
        import.temp_tag().await.unwrap_err();
        store
            .import_bao_bytes(hash, ChunkRanges::all(), bao)
            .await
            .unwrap_err();
        store.status(hash).await.unwrap_err();
        store.has(hash).await.unwrap_err();
        store.list().hashes().await.unwrap_err();
        store.get_bytes(hash).await.unwrap_err();
        let part = store.export_bao(hash, ChunkRanges::chunks(0..1));
        part.bao_to_vec().await.unwrap_err();
        let part = store.export_ranges(hash, 0..10);
        part.concatenate().await.unwrap_err();
        let target = dir.path().join("target");
        store.export(hash, &target).await.unwrap_err();
        assert!(!target.exists());
        store.observe(hash).await.unwrap_err();
        store.observe(hash).await_completion().await.unwrap_err();
        assert!(store.batch().await.is_err());
        store.tags().set("a", content).await.unwrap_err();
        store.tags().create(content).await.unwrap_err();
        store.tags().get("kept").await.unwrap_err();
        assert!(store.tags().list().await.is_err());
        store.tags().rename("kept", "b").await.unwrap_err();
        store.tags().delete_all().await.unwrap_err();
        store.tags().temp_tag(content).await.unwrap_err();
        assert!(store.tags().list_temp_tags().await.is_err());
        store.sync_db().await.unwrap_err();
        store.wait_idle().await.unwrap_err();
        assert!(matches!(store.gc().await, Err(Error::Closed)));
        assert!(matches!(store.usage().await, Err(Error::Closed)));
        assert!(matches!(
            store.set_root("r", hash).await,
            Err(Error::Closed)
        ));
        assert!(matches!(store.root("r").await, Err(Error::Closed)));
        assert!(matches!(store.roots("").await, Err(Error::Closed)));
        assert!(matches!(store.remove_root("r").await, Err(Error::Closed)));
        assert!(matches!(store.reachable(hash).await, Err(Error::Closed)));
        assert!(matches!(store.links(hash).await, Err(Error::Closed)));
        // A guard of a closed store keeps nothing, and harms nothing.
        drop(store.protect(hash).await);
        store.close().await.unwrap();
    };
    tokio::time::timeout(STUCK, calls).await.unwrap();
}

async fn closing_ends_what_is_under_way(store: VeilidStore) {
    let data = noise(2, 2_000_000);
    let tag = store.add_bytes(data.clone()).temp_tag().await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    let (began, mut beginnings) = tokio::sync::mpsc::unbounded_channel();
    for index in 0..6_u64 {
        let (store, began, hash) = (store.clone(), began.clone(), tag.hash());
        tasks.spawn(async move {
            let _ = began.send(());
            match index % 3 {
                // An import whose source never ends.
                0 => {
                    let source = stream::iter([Ok(noise(index, 300_000))]).chain(stream::pending());
                    let import = store.add_stream(source).await;
                    import.temp_tag().await.unwrap_err();
                }
                // A reader that takes as long as the store is there.
                1 => while store.get_bytes(hash).await.is_ok() {},
                _ => {
                    let absent = Hash::new(index.to_le_bytes());
                    store.observe(absent).await_completion().await.unwrap_err();
                }
            }
        });
    }
    for _ in 0..6 {
        beginnings.recv().await.unwrap();
    }
    let closed = tokio::time::timeout(STUCK, store.close()).await;
    closed.expect("closing hangs").unwrap();
    for _ in 0..6 {
        let ended = tokio::time::timeout(STUCK, tasks.join_next()).await;
        ended.expect("a task hangs").unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_stored_is_there_after_closing() {
    let mut place = Place::veilid().await;
    let sizes = [1, 20_000, 300_000, 2_500_000];
    let store = place.open().await;
    for (seed, size) in sizes.into_iter().enumerate() {
        let data = noise(seed as u64, size);
        store
            .add_bytes(data)
            .with_named_tag(size.to_string())
            .await
            .unwrap();
    }
    let untagged = store.add_slice(b"untagged").temp_tag().await.unwrap();
    let untagged = untagged.hash();
    let usage = store.usage().await.unwrap();
    store.close().await.unwrap();
    for restart in [false, true] {
        if restart {
            place.restart_node().await;
        }
        let store = place.open().await;
        for (seed, size) in sizes.into_iter().enumerate() {
            let data = noise(seed as u64, size);
            assert_holds(&store, Hash::new(&data), &data).await;
        }
        assert!(store.has(untagged).await.unwrap());
        let again = store.usage().await.unwrap();
        assert_eq!((again.blobs, again.bytes), (usage.blobs, usage.bytes));
        store.close().await.unwrap();
    }
    place.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_stores_of_one_node_do_not_mix() {
    let place = Place::veilid().await;
    let first = place.open().await;
    let second = place.open_at(&place.path().join("second")).await;
    let tag = first.add_slice(b"in the first").temp_tag().await.unwrap();
    assert!(!second.has(tag.hash()).await.unwrap());
    second.gc().await.unwrap();
    second.close().await.unwrap();
    assert!(first.has(tag.hash()).await.unwrap());
    first.close().await.unwrap();
    place.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_belongs_to_one_store() {
    let place = Place::veilid().await;
    let store = place.open().await;
    let again = place.try_open().await;
    assert!(matches!(again, Err(Error::InUse { .. })), "{again:?}");
    let added = store.add_slice(b"still works").await.unwrap();
    store.close().await.unwrap();
    let store = place.open().await;
    assert!(store.has(added.hash).await.unwrap());
    store.close().await.unwrap();
    place.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_the_last_clone_releases_the_directory() {
    let place = Place::veilid().await;
    for round in 0..3_u64 {
        let store = place.open().await;
        let clone = store.clone();
        let data = noise(round, 100_000);
        store
            .add_bytes(data)
            .with_named_tag(round.to_string())
            .await
            .unwrap();
        drop(store);
        assert!(matches!(place.try_open().await, Err(Error::InUse { .. })));
        drop(clone);
        // The store's worker releases the directory when it has ended, which nothing waits for.
        let reopened = tokio::time::timeout(STUCK, async {
            loop {
                match place.try_open().await {
                    Ok(store) => break store,
                    Err(Error::InUse { .. }) => tokio::task::yield_now().await,
                    Err(error) => panic!("{error}"),
                }
            }
        });
        let store = reopened.await.unwrap();
        for round in 0..=round {
            let data = noise(round, 100_000);
            assert_holds(&store, Hash::new(&data), &data).await;
        }
        store.close().await.unwrap();
    }
    place.end().await;
}
