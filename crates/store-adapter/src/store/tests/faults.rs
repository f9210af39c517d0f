//! The death of the process at every write, power cuts, a full disk, flipped bits.

use std::collections::BTreeSet;

use bao_tree::{ChunkNum, ChunkRanges};
use iroh_blobs::api::blobs::BlobStatus;

use super::*;
use crate::backend::memory::Loss;

fn bytes(seed: u8, len: usize) -> Vec<u8> {
    (0..len)
        .map(|i| seed ^ (i / 3) as u8 ^ (i >> 12) as u8)
        .collect()
}

/// What the store has said.
#[derive(Default, Debug)]
struct Said {
    /// Tagged and complete.
    tagged: BTreeSet<Hash>,
    /// Tags whose change was not acknowledged: either state is right.
    unsure: BTreeSet<Hash>,
    /// Groups from the beginning of the partial blob.
    partial: u64,
}

const SMALL: [u8; 3] = [1, 2, 3];
const LARGE: [u8; 2] = [4, 5];
const SMALL_LEN: usize = 3000;
const LARGE_LEN: usize = 400_000;
const PARTIAL_LEN: usize = 1_000_000;

fn content(seed: u8) -> Vec<u8> {
    bytes(
        seed,
        if SMALL.contains(&seed) {
            SMALL_LEN
        } else {
            LARGE_LEN
        },
    )
}

/// Everything that a store does, until something fails.
async fn work(store: &VeilidStore, said: &mut Said, encoded: &[Vec<u8>]) -> Result<(), ()> {
    let partial = Hash::new(bytes(9, PARTIAL_LEN));
    for seed in SMALL.into_iter().chain(LARGE) {
        let hash = Hash::new(content(seed));
        said.unsure.insert(hash);
        let named = store.add_bytes(content(seed)).with_named_tag([b't', seed]);
        named.await.map_err(drop)?;
        said.tagged.insert(hash);
        said.unsure.remove(&hash);
    }
    let pinned = store.tags().set("partial", partial).await;
    pinned.map_err(drop)?;
    for (piece, encoded) in encoded.iter().enumerate() {
        let ranges = piece_ranges(piece as u64);
        let taken = store
            .import_bao_bytes(partial, ranges, encoded.clone())
            .await;
        taken.map_err(drop)?;
        said.partial = 16 * (piece as u64 + 1);
    }
    for seed in [SMALL[0], LARGE[0]] {
        let hash = Hash::new(content(seed));
        said.tagged.remove(&hash);
        said.unsure.insert(hash);
        store.tags().delete([b't', seed]).await.map_err(drop)?;
        // Not tagged any more, so nothing is promised.
    }
    store.gc().await.map_err(drop)?;
    store.erase().await.map_err(drop)?;
    store.sync_db().await.map_err(drop)?;
    for seed in [SMALL[0], LARGE[0]] {
        said.unsure.remove(&Hash::new(content(seed)));
    }
    Ok(())
}

/// 16 groups each.
fn piece_ranges(piece: u64) -> ChunkRanges {
    ChunkRanges::from(ChunkNum(piece * 256)..ChunkNum((piece + 1) * 256))
}

async fn pieces() -> Vec<Vec<u8>> {
    let source = VeilidStore::in_memory(StoreOptions::default())
        .await
        .unwrap();
    let tag = source
        .add_bytes(bytes(9, PARTIAL_LEN))
        .temp_tag()
        .await
        .unwrap();
    let mut pieces = Vec::new();
    for piece in 0..2 {
        let encoded = source.export_bao(tag.hash(), piece_ranges(piece));
        pieces.push(encoded.bao_to_vec().await.unwrap());
    }
    source.close().await.unwrap();
    pieces
}

/// What has to be true after any end. `lenient` after a power cut: the last moments may be lost, but nothing is half there.
async fn check(store: &VeilidStore, said: &Said, lenient: bool, when: &str) {
    let partial = Hash::new(bytes(9, PARTIAL_LEN));
    let listed = store.list().hashes().await.unwrap();
    for seed in SMALL.into_iter().chain(LARGE) {
        let hash = Hash::new(content(seed));
        match store.status(hash).await.unwrap() {
            BlobStatus::Complete { size } => {
                assert_eq!(size, content(seed).len() as u64, "{when}");
                assert_eq!(
                    store.get_bytes(hash).await.unwrap(),
                    content(seed),
                    "{when}"
                );
                assert!(listed.contains(&hash), "{when}");
            }
            other => {
                assert!(
                    lenient || !said.tagged.contains(&hash),
                    "{when}: {seed} is {other:?}"
                );
                assert!(!listed.contains(&hash), "{when}: {seed} is listed");
            }
        }
    }
    let observed = store.observe(partial).await.unwrap();
    let claimed = observed.ranges.clone();
    if !lenient {
        for piece in 0..said.partial / 16 {
            assert!(piece_ranges(piece).is_subset(&claimed), "{when}");
        }
    }
    for piece in 0..2 {
        if piece_ranges(piece).is_subset(&claimed) {
            let encoded = store.export_bao(partial, piece_ranges(piece));
            encoded
                .bao_to_vec()
                .await
                .unwrap_or_else(|e| panic!("{when}: {e:?}"));
        }
    }
    let report = store.verify(|_| {}).await.unwrap();
    assert_eq!(report.damaged, [], "{when}");
    let usage = store.usage().await.unwrap();
    assert_eq!(usage.blobs, report.blobs, "{when}");
    assert_eq!(usage.bytes, report.bytes, "{when}");
}

/// Goes on after the end: completes what was begun, collects, and leaves nothing behind that nobody claims.
async fn go_on(memory: &MemoryBackend, store: &VeilidStore, encoded: &[Vec<u8>], when: &str) {
    let mut said = Said::default();
    work(store, &mut said, encoded)
        .await
        .unwrap_or_else(|()| panic!("{when}"));
    check(store, &said, false, when).await;
    for seed in [SMALL[0], LARGE[0]] {
        assert!(
            !store.has(Hash::new(content(seed))).await.unwrap(),
            "{when}"
        );
    }
    let files = memory.list_files().unwrap().into_iter();
    let (packs, blobs): (Vec<_>, Vec<_>) = files.partition(|(name, _)| name.ends_with(".pack"));
    // Two large blobs less one, and the partial one.
    assert_eq!(blobs.len(), 2, "{when}");
    assert!(packs.len() <= 2, "{when}: {}", packs.len());
    store.close().await.unwrap();
}

#[tokio::test]
async fn the_process_may_die_at_any_write() {
    let encoded = pieces().await;
    for writes in 0.. {
        let memory = MemoryBackend::default();
        let store = VeilidStore::over_memory(memory.clone(), true, StoreOptions::default())
            .await
            .unwrap();
        let mut said = Said::default();
        memory.die_after(writes);
        let ended = work(&store, &mut said, &encoded).await;
        let memory = memory.restart();
        drop(store);
        let store = VeilidStore::over_memory(memory.clone(), false, StoreOptions::default())
            .await
            .unwrap();
        let when = format!("after {writes} writes");
        check(&store, &said, false, &when).await;
        go_on(&memory, &store, &encoded, &when).await;
        if ended.is_ok() {
            assert!(writes > 50, "{writes} writes are too few to be all of them");
            return;
        }
    }
}

#[tokio::test]
async fn a_power_cut_takes_the_last_moments_at_most() {
    let encoded = pieces().await;
    for seed in 0..60 {
        let memory = MemoryBackend::with_power_cuts();
        let store = VeilidStore::over_memory(memory.clone(), true, StoreOptions::default())
            .await
            .unwrap();
        let before = store
            .add_slice(b"before")
            .with_named_tag("before")
            .await
            .unwrap();
        store.sync_db().await.unwrap();
        let mut said = Said::default();
        memory.die_after(seed * 2);
        let _ = work(&store, &mut said, &encoded).await;
        let loss = if seed % 3 == 0 {
            Loss::All
        } else {
            Loss::Some(seed)
        };
        let memory = memory.cut_power(loss);
        drop(store);
        let store = VeilidStore::over_memory(memory.clone(), false, StoreOptions::default())
            .await
            .unwrap();
        let when = format!("power cut {seed}");
        assert_eq!(
            store.get_bytes(before.hash).await.unwrap(),
            "before",
            "{when}"
        );
        check(&store, &said, true, &when).await;
        go_on(&memory, &store, &encoded, &when).await;
    }
}

#[tokio::test]
async fn a_full_disk_is_an_error_and_nothing_else() {
    let encoded = pieces().await;
    for writes in 0.. {
        let memory = MemoryBackend::default();
        let store = VeilidStore::over_memory(memory.clone(), true, StoreOptions::default())
            .await
            .unwrap();
        let kept = store.add_slice(b"kept").await.unwrap().hash;
        let mut said = Said::default();
        memory.fill_disk_after(writes);
        let ended = work(&store, &mut said, &encoded).await;
        let when = format!("full after {writes} writes");
        assert_eq!(store.get_bytes(kept).await.unwrap(), "kept", "{when}");
        memory.free_disk();
        // The same store, without being opened again.
        store.sync_db().await.unwrap();
        check(&store, &said, false, &when).await;
        let ok = ended.is_ok();
        go_on(&memory, &store, &encoded, &when).await;
        if ok {
            return;
        }
    }
}

#[tokio::test]
async fn a_flipped_bit_costs_the_part_that_it_is_in() {
    let encoded = pieces().await;
    let mut disk = Disk::default();
    let store = open(&mut disk).await;
    let mut said = Said::default();
    work(&store, &mut said, &encoded).await.unwrap();
    let big = Hash::new(content(LARGE[1]));
    let name = {
        let entry = store
            .inner
            .core
            .view(&store.inner.core.blob(big))
            .await
            .unwrap();
        entry.entry.unwrap().file_name()
    };
    store.close().await.unwrap();

    // In the sixth group.
    disk.memory.flip_file(&name, (5 * 16_400 + 100) * 8 + 3);
    let store = open(&mut disk).await;
    // Not read yet, so not known yet; a read does not give wrong bytes, and then it is known.
    assert!(store.get_bytes(big).await.is_err());
    assert!(matches!(
        store.status(big).await.unwrap(),
        BlobStatus::Partial { .. }
    ));
    let missing = ChunkRanges::from(ChunkNum(80)..ChunkNum(96));
    let observed = store.observe(big).await.unwrap();
    assert_eq!(&ChunkRanges::all() - &observed.ranges, missing);
    // It is still known after a restart, and a garbage collection does not take what is left.
    store.close().await.unwrap();
    let store = open(&mut disk).await;
    assert_eq!(store.gc().await.unwrap().removed_blobs, 0);
    assert_eq!(store.observe(big).await.unwrap(), observed);
    // The part comes again from elsewhere.
    let other = VeilidStore::in_memory(StoreOptions::default())
        .await
        .unwrap();
    let tag = other.add_bytes(content(LARGE[1])).temp_tag().await.unwrap();
    let part = other.export_bao(tag.hash(), missing.clone());
    let part = part.bao_to_vec().await.unwrap();
    store.import_bao_bytes(big, missing, part).await.unwrap();
    assert_eq!(store.get_bytes(big).await.unwrap(), content(LARGE[1]));
    check(&store, &said, false, "after the repair").await;
    store.close().await.unwrap();
    other.close().await.unwrap();

    // Cut off, and gone.
    disk.memory.truncate_file(&name, 3 * 16_400 + 7);
    let store = open(&mut disk).await;
    let report = store.verify(|_| {}).await.unwrap();
    assert_eq!(report.damaged, [big]);
    assert_eq!(store.observe(big).await.unwrap().total_bytes(), 3 * 16_384);
    store.close().await.unwrap();
    disk.memory.restart().remove_file(&name).unwrap();
    let store = open(&mut disk).await;
    assert_eq!(store.status(big).await.unwrap(), BlobStatus::NotFound);
    store.close().await.unwrap();
}

#[tokio::test]
async fn a_flipped_bit_in_any_row_is_noticed() {
    let encoded = pieces().await;
    let mut disk = Disk::default();
    let store = open(&mut disk).await;
    let mut said = Said::default();
    work(&store, &mut said, &encoded).await.unwrap();
    store.close().await.unwrap();
    let tags = ["t\u{2}", "t\u{3}", "t\u{5}", "partial"];
    for (table, columns) in disk
        .memory
        .table_names()
        .into_iter()
        .map(|name| (name.clone(), if name.contains("index") { 7 } else { 1 }))
    {
        for column in 0..columns {
            let opened = disk.memory.restart();
            let keys = opened.open_table(&table, columns).await.unwrap();
            let keys = keys.keys(column).await.unwrap();
            for key in keys {
                // Undone afterwards by flipping it again in a copy of the disk.
                let mut copy = Disk {
                    memory: disk.memory.copy(),
                    begun: true,
                };
                copy.memory.flip_row(&table, column, &key, 5);
                let store = open(&mut copy).await;
                let when = format!("{table} {column}");
                let damaged = store.verify(|_| {}).await.unwrap().damaged.len();
                let mut missing = 0;
                for seed in [SMALL[1], SMALL[2], LARGE[1]] {
                    let hash = Hash::new(content(seed));
                    match store.status(hash).await.unwrap() {
                        BlobStatus::Complete { .. } => {
                            assert_eq!(store.get_bytes(hash).await.unwrap(), content(seed));
                        }
                        _ => missing += 1,
                    }
                }
                // One row is of one blob at most.
                assert!(missing <= 1 && damaged <= 1, "{when}: {missing} {damaged}");
                for tag in tags {
                    assert!(
                        store.tags().get(tag).await.unwrap().is_some(),
                        "{when} {tag}"
                    );
                }
                let _ = store.gc().await;
                let usage = store.usage().await.unwrap();
                let hashes = store.list().hashes().await.unwrap().len() as u64;
                assert_eq!(usage.blobs, hashes, "{when}");
                store.close().await.unwrap();
            }
        }
    }
}
