//! What a garbage collection keeps and what it removes.

use std::collections::BTreeSet;

use bytes::Bytes;
use futures::{StreamExt, stream};
use iroh_blobs::{
    BlobFormat, Hash, HashAndFormat,
    api::{Store, TempTag},
    hashseq::HashSeq,
    protocol::{ChunkRanges, ChunkRangesExt},
};
use store_adapter::VeilidStore;

use crate::support::{assert_holds, import_ranges, noise};

on_each_backend!(
    tags_keep_what_they_name,
    hash_sequences_keep_their_members,
    batches_keep_what_they_hold,
    partial_blobs_are_kept_and_removed_like_others,
    what_was_removed_can_come_again,
    nothing_is_lost_while_others_import_and_tag,
    usage_follows,
);

async fn here(store: &Store) -> BTreeSet<Hash> {
    store.list().hashes().await.unwrap().into_iter().collect()
}

async fn add(store: &Store, data: impl Into<Bytes>) -> TempTag {
    store.add_bytes(data).temp_tag().await.unwrap()
}

async fn sequence(store: &Store, hashes: impl IntoIterator<Item = Hash>) -> TempTag {
    let sequence: Bytes = hashes.into_iter().collect::<HashSeq>().into();
    store
        .add_bytes_with_opts((sequence, BlobFormat::HashSeq))
        .temp_tag()
        .await
        .unwrap()
}

/// Lets go of a tag.
fn release(tag: TempTag) -> Hash {
    tag.hash()
}

const SIZES: [usize; 4] = [10, 30_000, 300_000, 2_000_000];

async fn tags_keep_what_they_name(store: VeilidStore) {
    for (index, size) in SIZES.into_iter().enumerate() {
        let index = index as u64 * 10;
        let named = add(&store, noise(index, size)).await;
        let held = add(&store, noise(index + 1, size)).await;
        let lost = release(add(&store, noise(index + 2, size)).await);
        store
            .tags()
            .set("named", named.hash_and_format())
            .await
            .unwrap();
        let named = release(named);
        let report = store.gc().await.unwrap();
        assert_eq!((report.removed_blobs, report.kept_blobs), (1, 2));
        assert_eq!(report.removed_bytes, size as u64);
        assert!(!store.has(lost).await.unwrap());
        assert_holds(&store, named, &noise(index, size)).await;
        assert_holds(&store, held.hash(), &noise(index + 1, size)).await;

        store.tags().rename("named", "renamed").await.unwrap();
        assert_eq!(store.gc().await.unwrap().removed_blobs, 0);
        store.tags().delete("renamed").await.unwrap();
        let held = release(held);
        assert_eq!(store.gc().await.unwrap().removed_blobs, 2);
        assert!(!store.has(held).await.unwrap());
        assert_eq!(here(&store).await, BTreeSet::new());
    }
}

async fn hash_sequences_keep_their_members(store: VeilidStore) {
    let members: Vec<TempTag> = stream::iter(0..4)
        .then(|seed| add(&store, noise(seed, 100_000)))
        .collect()
        .await;
    let hashes: Vec<Hash> = members.iter().map(TempTag::hash).collect();
    let absent = Hash::new(b"absent");
    let kept = sequence(&store, [hashes[0], absent, hashes[1]]).await;
    let raw = sequence(&store, [hashes[2], hashes[3]]).await;
    store
        .tags()
        .set("kept", HashAndFormat::hash_seq(kept.hash()))
        .await
        .unwrap();
    // As a blob, a sequence keeps itself alone.
    store
        .tags()
        .set("raw", HashAndFormat::raw(raw.hash()))
        .await
        .unwrap();
    let (kept, raw) = (release(kept), release(raw));
    drop(members);
    assert_eq!(store.gc().await.unwrap().removed_blobs, 2);
    assert_eq!(
        here(&store).await,
        BTreeSet::from([kept, raw, hashes[0], hashes[1]])
    );
    // A temporary tag is as good.
    let held = store
        .tags()
        .temp_tag(HashAndFormat::hash_seq(kept))
        .await
        .unwrap();
    store.tags().delete_all().await.unwrap();
    store.gc().await.unwrap();
    assert_eq!(
        here(&store).await,
        BTreeSet::from([kept, hashes[0], hashes[1]])
    );
    drop(held);
    store.gc().await.unwrap();
    assert_eq!(here(&store).await, BTreeSet::new());
}

async fn batches_keep_what_they_hold(store: VeilidStore) {
    let batch = store.batch().await.unwrap();
    let held = batch.add_bytes(noise(1, 50_000)).await.unwrap();
    let dropped = release(batch.add_bytes(noise(2, 50_000)).await.unwrap());
    store.gc().await.unwrap();
    assert!(store.has(held.hash()).await.unwrap());
    assert!(!store.has(dropped).await.unwrap());
    drop(batch);
    store.wait_idle().await.unwrap();
    store.gc().await.unwrap();
    assert!(!store.has(held.hash()).await.unwrap());
}

async fn partial_blobs_are_kept_and_removed_like_others(store: VeilidStore) {
    let part = ChunkRanges::chunks(20..40);
    let kept = Hash::new(noise(1, 1_000_000));
    let tag = store
        .tags()
        .temp_tag(HashAndFormat::raw(kept))
        .await
        .unwrap();
    import_ranges(&store, &noise(1, 1_000_000), &part).await;
    let lost = import_ranges(&store, &noise(2, 1_000_000), &part).await;
    let small = import_ranges(&store, &noise(3, 100_000), &part).await;
    let usage = store.usage().await.unwrap();
    assert_eq!((usage.blobs, usage.bytes), (3, 3 * 20 * 1024));
    let report = store.gc().await.unwrap();
    assert_eq!((report.removed_blobs, report.kept_blobs), (2, 1));
    assert_eq!(report.removed_bytes, 2 * 20 * 1024);
    for hash in [lost, small] {
        assert!(store.observe(hash).await.unwrap().ranges.is_empty());
    }
    assert_eq!(
        store.observe(kept).await.unwrap().ranges,
        ChunkRanges::chunks(20..40)
    );
    import_ranges(&store, &noise(1, 1_000_000), &ChunkRanges::all()).await;
    assert_holds(&store, kept, &noise(1, 1_000_000)).await;
    drop(tag);
}

async fn what_was_removed_can_come_again(store: VeilidStore) {
    for size in SIZES {
        for _ in 0..3 {
            let data = noise(9, size);
            let tag = add(&store, data.clone()).await;
            assert_holds(&store, tag.hash(), &data).await;
            let hash = release(tag);
            store.gc().await.unwrap();
            assert!(!store.has(hash).await.unwrap());
            import_ranges(&store, &data, &ChunkRanges::chunks(0..5)).await;
            store.gc().await.unwrap();
            assert_eq!(here(&store).await, BTreeSet::new());
        }
    }
}

async fn nothing_is_lost_while_others_import_and_tag(store: VeilidStore) {
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..4_u64 {
        let store = store.clone();
        tasks.spawn(async move {
            for turn in 0..25_u64 {
                let seed = task * 1000 + turn;
                let data = noise(seed, SIZES[(seed % 4) as usize] / 2 + 1);
                let name = format!("{task}/{turn}");
                store
                    .add_bytes(data.clone())
                    .with_named_tag(&name)
                    .await
                    .unwrap();
                assert_holds(&store, Hash::new(&data), &data).await;
                // The same small blob is let go and brought again by everyone.
                let shared = noise(77, 5000);
                let tag = add(&store, shared.clone()).await;
                assert_holds(&store, tag.hash(), &shared).await;
                drop(tag);
                if turn % 2 == 1 {
                    store.tags().delete(&name).await.unwrap();
                }
            }
        });
    }
    let mut rounds = 0;
    while !tasks.is_empty() {
        store.gc().await.unwrap();
        rounds += 1;
        while let Some(task) = tasks.try_join_next() {
            task.unwrap();
        }
    }
    assert!(rounds > 1);
    store.gc().await.unwrap();
    let mut expected = BTreeSet::new();
    for task in 0..4 {
        for turn in (0..25).step_by(2) {
            let seed: u64 = task * 1000 + turn;
            let data = noise(seed, SIZES[(seed % 4) as usize] / 2 + 1);
            assert_holds(&store, Hash::new(&data), &data).await;
            expected.insert(Hash::new(&data));
        }
    }
    assert_eq!(here(&store).await, expected);
}

async fn usage_follows(store: VeilidStore) {
    let mut tags = Vec::new();
    let mut bytes = 0;
    for (index, size) in SIZES.into_iter().enumerate() {
        tags.push(add(&store, noise(index as u64, size)).await);
        bytes += size as u64;
        let usage = store.usage().await.unwrap();
        assert_eq!((usage.blobs, usage.bytes), (tags.len() as u64, bytes));
    }
    drop(tags.remove(2));
    store.gc().await.unwrap();
    let usage = store.usage().await.unwrap();
    assert_eq!((usage.blobs, usage.bytes), (3, bytes - SIZES[2] as u64));
}
