//! Small blobs in packs, of which the index does not know everything when the process ends.

use super::*;
use crate::{
    index::{Place, SEALED_HEADER, pack_name},
    seal::sealed_size,
};

fn content(seed: u8) -> Vec<u8> {
    let len = 20_000 + usize::from(seed);
    (0..len).map(|i| seed ^ (i / 5) as u8).collect()
}

fn hash(seed: u8) -> Hash {
    Hash::new(content(seed))
}

async fn add_all(store: &VeilidStore, seeds: std::ops::Range<u8>) -> Vec<TempTag> {
    let mut tags = Vec::new();
    for seed in seeds {
        tags.push(store.add_bytes(content(seed)).temp_tag().await.unwrap());
    }
    tags
}

/// These are there, whole, and nothing else is.
async fn assert_holds(store: &VeilidStore, seeds: impl IntoIterator<Item = u8>) {
    let seeds: Vec<u8> = seeds.into_iter().collect();
    for seed in &seeds {
        assert_eq!(
            store.get_bytes(hash(*seed)).await.unwrap(),
            content(*seed),
            "{seed}"
        );
    }
    let usage = store.usage().await.unwrap();
    assert_eq!(usage.blobs, seeds.len() as u64);
    let bytes = seeds.iter().map(|seed| content(*seed).len() as u64);
    assert_eq!(usage.bytes, bytes.sum::<u64>());
    assert_eq!(store.list().hashes().await.unwrap().len(), seeds.len());
}

fn pack(store: &VeilidStore) -> String {
    let packs = store.inner.core.tables.packs();
    pack_name(packs.last().unwrap())
}

/// Where a blob's record begins.
async fn record(store: &VeilidStore, seed: u8) -> usize {
    let core = &store.inner.core;
    let view = core.view(&core.blob(hash(seed))).await.unwrap();
    match view.entry.unwrap().place {
        Place::Pack { offset, .. } => offset as usize - SEALED_HEADER,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn what_the_index_does_not_claim_yet_is_found_again() {
    let mut disk = Disk::default();
    let store = open(&mut disk).await;
    let tags = add_all(&store, 0..10).await;
    assert_holds_without_looking(&store, 10);
    // Without being closed.
    let crashed = open(&mut disk).await;
    drop((tags, store));
    assert_holds(&crashed, 0..10).await;
    // Once more, with some that are claimed by now and some that are not.
    crashed.tags().set("keep", hash(3)).await.unwrap();
    let tags = add_all(&crashed, 10..15).await;
    let again = open(&mut disk).await;
    drop((tags, crashed));
    assert_holds(&again, 0..15).await;
    assert_eq!(again.gc().await.unwrap().removed_blobs, 14);
    let collected = open(&mut disk).await;
    drop(again);
    assert_holds(&collected, [3]).await;
    collected.close().await.unwrap();
}

/// Looking at all of them would let the index claim them.
fn assert_holds_without_looking(store: &VeilidStore, blobs: u64) {
    assert_eq!(store.inner.core.tables.totals().blobs, blobs);
}

#[tokio::test]
async fn what_was_deleted_does_not_come_back() {
    let mut disk = Disk::default();
    let store = open(&mut disk).await;
    let tags = add_all(&store, 0..4).await;
    store.tags().set("keep", hash(1)).await.unwrap();
    drop(tags);
    store.gc().await.unwrap();
    store.erase().await.unwrap();
    let tags = add_all(&store, 4..6).await;
    let crashed = open(&mut disk).await;
    drop((tags, store));
    assert_holds(&crashed, [1, 4, 5]).await;
    crashed.close().await.unwrap();
}

#[tokio::test]
async fn damage_in_the_log_costs_one_blob() {
    // In a header, in the bytes, and at the end.
    for (damaged, inside) in [(2, 40), (2, SEALED_HEADER + 17_000), (4, 3)] {
        let mut disk = Disk::default();
        let store = open(&mut disk).await;
        let tags = add_all(&store, 0..5).await;
        let at = record(&store, damaged).await + inside;
        let name = pack(&store);
        drop((tags, store));
        disk.memory.flip_file(&name, at * 8);
        let store = open(&mut disk).await;
        let left: Vec<u8> = (0..5).filter(|seed| *seed != damaged).collect();
        assert_holds(&store, left.clone()).await;
        assert!(!store.has(hash(damaged)).await.unwrap());
        // What comes in afterwards is found again as well, and so is the lost one when it comes again.
        let tags = add_all(&store, 5..7).await;
        let again = store.add_bytes(content(damaged)).temp_tag().await.unwrap();
        let crashed = open(&mut disk).await;
        drop((tags, again, store));
        assert_holds(&crashed, 0..7).await;
        crashed.close().await.unwrap();
    }
}

#[tokio::test]
async fn a_log_that_was_cut_off_loses_the_end() {
    let mut disk = Disk::default();
    let store = open(&mut disk).await;
    let tags = add_all(&store, 0..3).await;
    let (name, last) = (pack(&store), record(&store, 2).await);
    drop((tags, store));
    disk.memory.truncate_file(&name, last + SEALED_HEADER + 100);
    let store = open(&mut disk).await;
    assert_holds(&store, 0..2).await;
    // Nothing is appended to what is left of the record.
    let tags = add_all(&store, 3..4).await;
    assert_eq!(store.inner.core.tables.packs().len(), 2);
    assert_ne!(pack(&store), name);
    let crashed = open(&mut disk).await;
    drop((tags, store));
    assert_holds(&crashed, [0, 1, 3]).await;
    // The pack that ended early goes with the next collection, and nothing that is in it.
    let kept = [0, 1, 3].map(|seed| {
        crashed
            .tags()
            .create(iroh_blobs::HashAndFormat::raw(hash(seed)))
    });
    futures::future::try_join_all(kept.map(IntoFuture::into_future))
        .await
        .unwrap();
    crashed.gc().await.unwrap();
    assert_eq!(crashed.inner.core.tables.packs().len(), 1);
    let crashed = open(&mut disk).await;
    assert_holds(&crashed, [0, 1, 3]).await;
    crashed.close().await.unwrap();
}

#[tokio::test]
async fn the_packs_are_found_without_their_list() {
    let mut disk = Disk::default();
    let store = open(&mut disk).await;
    let tags = add_all(&store, 0..4).await;
    let large = store.add_bytes(vec![7; 400_000]).temp_tag().await.unwrap();
    store.sync_db().await.unwrap();
    let more = add_all(&store, 4..6).await;
    let index = disk.memory.table_names();
    let index = index.iter().find(|name| name.contains("index")).unwrap();
    drop((tags, more, store));
    for key in [&b"packs"[..], b"packs again"] {
        disk.memory.flip_row(index, 4, key, 77);
    }
    let store = open(&mut disk).await;
    assert_eq!(store.usage().await.unwrap().blobs, 7);
    assert_eq!(
        store.get_bytes(large.hash()).await.unwrap(),
        vec![7; 400_000]
    );
    for seed in 0..6 {
        assert_eq!(store.get_bytes(hash(seed)).await.unwrap(), content(seed));
    }
    store.close().await.unwrap();
}

#[tokio::test]
async fn a_pack_that_is_mostly_dead_is_rewritten() {
    let mut disk = Disk::default();
    let store = open(&mut disk).await;
    let tags = add_all(&store, 0..120).await;
    for seed in [5, 50, 119] {
        store.tags().set([seed], hash(seed)).await.unwrap();
    }
    let before = store.usage().await.unwrap().disk_bytes;
    drop(tags);
    // Somebody reads meanwhile.
    let reader = store.clone();
    let reading = tokio::spawn(async move {
        for _ in 0..200 {
            for seed in [5, 50, 119] {
                assert_eq!(reader.get_bytes(hash(seed)).await.unwrap(), content(seed));
            }
        }
    });
    assert_eq!(store.gc().await.unwrap().removed_blobs, 117);
    reading.await.unwrap();
    let size = |seed: u8| sealed_size(content(seed).len() as u64);
    let left =
        before - (0..120).map(size).sum::<u64>() + [5, 50, 119].map(size).iter().sum::<u64>();
    let after = store.usage().await.unwrap().disk_bytes;
    assert!(after < left + 64 * 1024, "{before} {after} {left}");
    let crashed = open(&mut disk).await;
    drop(store);
    assert_holds(&crashed, [5, 50, 119]).await;
    crashed.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_goes_away_leaves_nothing_in_doubt() {
    let mut disk = Disk::default();
    let store = open(&mut disk).await;
    for seed in 0..60u8 {
        let adding = tokio::spawn({
            let store = store.clone();
            async move { store.add_bytes(content(seed)).temp_tag().await }
        });
        for _ in 0..seed % 12 {
            tokio::task::yield_now().await;
        }
        adding.abort();
        let _ = adding.await;
        // Either it is there or not, and then it comes in as if nothing had been.
        if store.has(hash(seed)).await.unwrap() {
            assert_eq!(store.get_bytes(hash(seed)).await.unwrap(), content(seed));
        }
        let tag = store.add_bytes(content(seed)).temp_tag().await.unwrap();
        assert_eq!(store.get_bytes(tag.hash()).await.unwrap(), content(seed));
    }
    assert_holds(&store, 0..60).await;
    store.close().await.unwrap();
    let store = open(&mut disk).await;
    assert_holds(&store, 0..60).await;
    store.close().await.unwrap();
}

#[tokio::test]
async fn what_was_claimed_in_part_and_deleted_does_not_come_back() {
    for writes in 0.. {
        let mut disk = Disk::default();
        let store = open(&mut disk).await;
        // So many that they are claimed in several steps.
        let mut tags = Vec::new();
        for index in 0..2500u32 {
            let data = index.to_be_bytes();
            tags.push(store.add_slice(data).temp_tag().await.unwrap());
        }
        let kept = tags[7].hash();
        store.tags().set("keep", kept).await.unwrap();
        disk.memory.die_after(writes);
        let listed = store.inner.core.tables.flush().await.is_ok();
        drop((tags, store));
        let store = open(&mut disk).await;
        assert_eq!(store.usage().await.unwrap().blobs, 2500, "{writes}");
        // Removed while the place in the log is still the old one.
        store.gc().await.unwrap();
        let crashed = open(&mut disk).await;
        drop(store);
        assert_eq!(crashed.usage().await.unwrap().blobs, 1, "{writes}");
        assert_eq!(crashed.list().hashes().await.unwrap(), [kept]);
        crashed.close().await.unwrap();
        if listed {
            assert!(writes > 3, "{writes}");
            return;
        }
    }
}

#[tokio::test]
async fn what_a_full_disk_left_in_the_log_does_not_come_back() {
    for closed in [true, false] {
        for writes in 0.. {
            let mut disk = Disk::default();
            let store = open(&mut disk).await;
            let tags = add_all(&store, 0..80).await;
            for seed in 60..80 {
                store.tags().set([seed], hash(seed)).await.unwrap();
            }
            drop(tags);
            disk.memory.fill_disk_after(writes);
            // Moves those that are left.
            let collected = store.gc().await.is_ok();
            let more = store.add_bytes(content(90)).temp_tag().await;
            disk.memory.free_disk();
            drop(more);
            for seed in 60..80 {
                assert_eq!(store.get_bytes(hash(seed)).await.unwrap(), content(seed));
            }
            store.tags().delete_all().await.unwrap();
            store.gc().await.unwrap();
            assert_holds(&store, []).await;
            let tags = add_all(&store, 95..99).await;
            if closed {
                store.close().await.unwrap();
            }
            let store = open(&mut disk).await;
            drop(tags);
            assert_holds(&store, 95..99).await;
            store.close().await.unwrap();
            if collected {
                assert!(writes > 3, "{writes}");
                break;
            }
        }
    }
}

#[tokio::test]
async fn a_pack_that_is_gone_takes_its_own_blobs_alone() {
    let mut disk = Disk::default();
    let store = open(&mut disk).await;
    let tags = add_all(&store, 0..4).await;
    store.tags().set("keep", hash(1)).await.unwrap();
    store.tags().set("gone", hash(5)).await.unwrap();
    store.inner.core.tables.new_pack().await.unwrap();
    let more = add_all(&store, 4..6).await;
    let name = pack(&store);
    drop((tags, more));
    // Too little to be worth a pack of its own, so it would be moved; deleted by hand then.
    for seed in [0, 2, 3, 4] {
        let deleted = crate::actor::remove(&store.inner.core, vec![hash(seed)], true).await;
        assert_eq!(deleted.unwrap(), [hash(seed)]);
    }
    store.close().await.unwrap();
    disk.memory.restart().remove_file(&name).unwrap();
    for _ in 0..2 {
        let store = open(&mut disk).await;
        assert_eq!(store.get_bytes(hash(1)).await.unwrap(), content(1));
        assert!(store.get_bytes(hash(5)).await.is_err());
        let tag = store.add_bytes(content(7)).temp_tag().await.unwrap();
        assert_holds(&store, [1, 7]).await;
        store.tags().set("seven", hash(7)).await.unwrap();
        drop(tag);
    }
    let store = open(&mut disk).await;
    assert_holds(&store, [1, 7]).await;
    store.close().await.unwrap();
}
