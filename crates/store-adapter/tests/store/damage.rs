//! Flipped bits, cut and swapped files: found, never read as if they were right, and fetched again.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use iroh_blobs::{
    Hash,
    api::{Store, blobs::BlobStatus},
    protocol::{ChunkRanges, ChunkRangesExt},
    store::mem::MemStore,
};
use store_adapter::{Error, VeilidStore};

use crate::{
    streams::get_from,
    support::{GROUP, Place, ROW, Random, assert_holds, import_ranges, noise},
};

/// Blobs that fill a few files and some rows.
fn blobs() -> Vec<Bytes> {
    let small = (0..12).map(|seed| noise(seed, 1000 + 9000 * seed as usize));
    let large = (0..4).map(|seed| noise(100 + seed, ROW + 1 + 100_000 * seed as usize));
    small.chain(large).collect()
}

/// The same blobs at somebody who has all of them.
async fn elsewhere(blobs: &[Bytes]) -> MemStore {
    let mem = MemStore::new();
    for data in blobs {
        mem.add_bytes(data.clone()).await.unwrap();
    }
    mem
}

async fn fill(store: &Store, blobs: &[Bytes]) {
    for (index, data) in blobs.iter().enumerate() {
        store
            .add_bytes(data.clone())
            .with_named_tag(index.to_string())
            .await
            .unwrap();
    }
}

fn segments(place: &Place) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(place.store_dir().join("segments"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_none())
        .collect();
    files.sort();
    files
}

/// The one pack.
fn pack(place: &Place) -> PathBuf {
    let files = fs::read_dir(place.store_dir().join("segments")).unwrap();
    let mut packs = files
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some());
    let pack = packs.next().unwrap();
    assert_eq!(packs.next(), None);
    pack
}

fn flip(file: &Path, random: &mut Random) {
    let mut bytes = fs::read(file).unwrap();
    let at = random.below(bytes.len() as u64) as usize;
    bytes[at] ^= 1 << random.below(8);
    fs::write(file, bytes).unwrap();
}

/// Reads everything; gives the blobs that are not whole any more. Wrong bytes fail the test.
async fn read_all(store: &Store, blobs: &[Bytes]) -> BTreeSet<Hash> {
    let mut missing = BTreeSet::new();
    for data in blobs {
        let hash = Hash::new(data);
        let whole = store.get_bytes(hash).await;
        if let Ok(bytes) = &whole {
            assert!(bytes == data, "wrong bytes were read");
        }
        let ranges = store.export_ranges(hash, 0..data.len() as u64);
        if let Ok(bytes) = ranges.concatenate().await {
            assert!(bytes == *data, "wrong bytes were read unverified");
        }
        let complete = store.has(hash).await.unwrap();
        assert_eq!(complete, whole.is_ok(), "what cannot be read is not there");
        if !complete {
            missing.insert(hash);
        }
    }
    missing
}

/// Fetches what is missing from somebody else, and then all is there.
async fn mend(store: &Store, mem: &MemStore, blobs: &[Bytes]) {
    for data in blobs {
        let hash = Hash::new(data);
        if !store.has(hash).await.unwrap() {
            store.remote().fetch(get_from(mem), hash).await.unwrap();
        }
        assert_holds(store, hash, data).await;
    }
}

/// Does something to the files of a closed store, and says which blobs were found damaged, by reading or by a look at
/// everything.
async fn damage(place: &Place, blobs: &[Bytes], harm: impl FnOnce(), verify: bool) -> VeilidStore {
    let mem = elsewhere(blobs).await;
    harm();
    let store = place.open().await;
    let missing = if verify {
        let mut told = 0;
        let report = store
            .verify(|progress| {
                told += 1;
                assert_eq!(progress.blobs, told);
                assert!(progress.blobs <= progress.of_blobs);
            })
            .await
            .unwrap();
        assert_eq!(told, report.blobs);
        let damaged: BTreeSet<Hash> = report.damaged.iter().copied().collect();
        for hash in &damaged {
            assert!(!store.has(*hash).await.unwrap());
        }
        assert!(read_all(&store, blobs).await.is_subset(&damaged));
        damaged
    } else {
        read_all(&store, blobs).await
    };
    assert_eq!(missing.len(), 1, "one blob is damaged and no other");
    mend(&store, &mem, blobs).await;
    assert_eq!(store.verify(|_| {}).await.unwrap().damaged, []);
    store
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_in_a_file_costs_that_blob_alone() {
    let place = Place::veilid().await;
    let blobs = blobs();
    let store = place.open().await;
    fill(&store, &blobs).await;
    store.close().await.unwrap();
    let mut random = Random::new(1);
    for round in 0..24 {
        let harm = || {
            let files = segments(&place);
            assert_eq!(files.len(), 4);
            let file = random.pick(&files).clone();
            flip(&file, &mut random);
        };
        let store = damage(&place, &blobs, harm, round % 2 == 0).await;
        store.close().await.unwrap();
    }
    place.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_in_a_pack_costs_one_blob_at_most() {
    let place = Place::veilid().await;
    let blobs = blobs();
    let mem = elsewhere(&blobs).await;
    let store = place.open().await;
    fill(&store, &blobs).await;
    store.close().await.unwrap();
    let mut random = Random::new(2);
    let mut hits = 0;
    for _ in 0..24 {
        flip(&pack(&place), &mut random);
        let store = place.open().await;
        let missing = read_all(&store, &blobs).await;
        // Nobody needs the headers of blobs that the index has, nor what was damaged and came again elsewhere.
        assert!(missing.len() <= 1, "{missing:?}");
        hits += missing.len();
        mend(&store, &mem, &blobs).await;
        assert_eq!(store.verify(|_| {}).await.unwrap().damaged, []);
        store.close().await.unwrap();
    }
    assert!(hits > 6, "{hits}");
    place.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_part_is_fetched_again_without_the_rest() {
    let place = Place::veilid().await;
    let data = noise(1, 4_000_000);
    let store = place.open().await;
    fill(&store, std::slice::from_ref(&data)).await;
    store.close().await.unwrap();
    let file = segments(&place).remove(0);
    let mut bytes = fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&file, bytes).unwrap();
    let store = place.open().await;
    let hash = Hash::new(&data);
    store.get_bytes(hash).await.unwrap_err();
    assert!(matches!(
        store.status(hash).await.unwrap(),
        BlobStatus::Partial { .. }
    ));
    let mem = elsewhere(std::slice::from_ref(&data)).await;
    let stats = store.remote().fetch(get_from(&mem), hash).await.unwrap();
    assert!(stats.payload_bytes_read <= 4 * GROUP as u64);
    assert_holds(&store, hash, &data).await;
    store.close().await.unwrap();
    place.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_are_cut_gone_or_swapped_are_found() {
    let place = Place::veilid().await;
    let blobs = blobs();
    let store = place.open().await;
    fill(&store, &blobs).await;
    store.close().await.unwrap();
    for verify in [false, true] {
        let cut = || {
            let file = segments(&place).remove(0);
            let bytes = fs::read(&file).unwrap();
            fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
        };
        damage(&place, &blobs, cut, verify)
            .await
            .close()
            .await
            .unwrap();
        let gone = || fs::remove_file(&segments(&place)[1]).unwrap();
        damage(&place, &blobs, gone, verify)
            .await
            .close()
            .await
            .unwrap();
        let empty = || fs::write(&segments(&place)[2], []).unwrap();
        damage(&place, &blobs, empty, verify)
            .await
            .close()
            .await
            .unwrap();
        // Two pieces of one file change places; each is sealed for its own.
        let swapped = || {
            let file = segments(&place).remove(3);
            let mut bytes = fs::read(&file).unwrap();
            let sealed = GROUP + 16;
            let (first, rest) = bytes.split_at_mut(sealed);
            first.swap_with_slice(&mut rest[..sealed]);
            fs::write(&file, bytes).unwrap();
        };
        damage(&place, &blobs, swapped, verify)
            .await
            .close()
            .await
            .unwrap();
    }
    // Two files under each other's names.
    let files = segments(&place);
    let third = place.path().join("third");
    fs::rename(&files[0], &third).unwrap();
    fs::rename(&files[1], &files[0]).unwrap();
    fs::rename(&third, &files[1]).unwrap();
    let store = place.open().await;
    assert_eq!(read_all(&store, &blobs).await.len(), 2);
    mend(&store, &elsewhere(&blobs).await, &blobs).await;
    store.close().await.unwrap();
    place.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_in_a_partial_file_costs_what_it_hit() {
    let place = Place::veilid().await;
    let data = noise(1, 2_000_000);
    let part = ChunkRanges::chunks(160..1600);
    let mut random = Random::new(2);
    let store = place.open().await;
    let hash = import_ranges(&store, &data, &part).await;
    store.tags().set("partial", hash).await.unwrap();
    store.close().await.unwrap();
    let file = segments(&place).remove(0);
    let sealed = GROUP + 16;
    for _ in 0..6 {
        let mut bytes = fs::read(&file).unwrap();
        let at = 10 * sealed + random.below(90 * sealed as u64) as usize;
        bytes[at] ^= 1;
        fs::write(&file, bytes).unwrap();
        let store = place.open().await;
        store
            .export_bao(hash, part.clone())
            .bao_to_vec()
            .await
            .unwrap_err();
        let had = store.observe(hash).await.unwrap();
        let lost = (at / sealed * 16) as u64;
        assert_eq!(
            had.ranges,
            &part - &ChunkRanges::chunks(lost..lost + 16),
            "the damaged group is missing"
        );
        import_ranges(&store, &data, &part).await;
        store.close().await.unwrap();
    }
    let store = place.open().await;
    let mem = elsewhere(std::slice::from_ref(&data)).await;
    mend(&store, &mem, &[data]).await;
    store.close().await.unwrap();
    place.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_in_a_table_never_gives_wrong_bytes() {
    let mut place = Place::veilid().await;
    let blobs = blobs();
    let mem = elsewhere(&blobs).await;
    let mut random = Random::new(3);
    let (mut refused, mut unlisted, mut lost, mut unharmed) = (0, 0, 0, 0);
    for round in 0..30 {
        let dir = place.path().join(format!("store{round}"));
        let store = place.open_at(&dir).await;
        fill(&store, &blobs).await;
        store.close().await.unwrap();
        let tables = place.table_files(&dir);
        place.stop_node().await;
        let file = random.pick(&tables).clone();
        let before = fs::read(&file).unwrap();
        flip(&file, &mut random);
        place.start_node().await;
        match place.try_open_at(&dir).await {
            Ok(store) => {
                let missing = read_all(&store, &blobs).await;
                let report = match store.verify(|_| {}).await {
                    Ok(report) => report,
                    // The name of a row is damaged, so that nobody can list them.
                    Err(Error::Io { .. } | Error::Damaged { .. }) => {
                        unlisted += 1;
                        store.gc().await.unwrap_err();
                        assert_eq!(read_all(&store, &blobs).await, missing);
                        store.close().await.unwrap();
                        restore(&mut place, &file, before).await;
                        assert_whole(&place, &dir, &blobs).await;
                        continue;
                    }
                    Err(error) => panic!("{error:?}"),
                };
                for hash in &report.damaged {
                    assert!(!store.has(*hash).await.unwrap());
                }
                match missing.len() + report.damaged.len() {
                    0 => unharmed += 1,
                    _ => lost += 1,
                }
                mend(&store, &mem, &blobs).await;
                assert_eq!(store.verify(|_| {}).await.unwrap().damaged, []);
                store.close().await.unwrap();
            }
            Err(Error::Damaged { .. } | Error::IndexLost | Error::Io { .. }) => {
                refused += 1;
                restore(&mut place, &file, before).await;
                assert_whole(&place, &dir, &blobs).await;
            }
            Err(error) => panic!("{error:?}"),
        }
    }
    assert!(
        lost > 0,
        "{refused} refused, {unlisted} unlisted, {lost} lost, {unharmed} unharmed"
    );
    place.end().await;
}

/// Puts a table's file back as it was.
async fn restore(place: &mut Place, file: &Path, before: Vec<u8>) {
    place.stop_node().await;
    fs::write(file, before).unwrap();
    place.start_node().await;
}

/// Nothing was deleted: with the bit as it was, all is there.
async fn assert_whole(place: &Place, dir: &Path, blobs: &[Bytes]) {
    let store = place.open_at(dir).await;
    assert_eq!(read_all(&store, blobs).await, BTreeSet::new());
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_nothing_knows_are_removed_at_opening() {
    let place = Place::veilid().await;
    let blobs = blobs();
    let store = place.open().await;
    fill(&store, &blobs).await;
    let usage = store.usage().await.unwrap();
    store.close().await.unwrap();
    let before = segments(&place);
    let orphan = place
        .store_dir()
        .join("segments")
        .join("0123456789abcdef0123456789abcdef");
    fs::write(&orphan, noise(1, 5_000_000)).unwrap();
    let store = place.open().await;
    assert!(!orphan.exists());
    assert_eq!(segments(&place), before);
    assert_eq!(read_all(&store, &blobs).await, BTreeSet::new());
    assert!(store.usage().await.unwrap().disk_bytes < usage.disk_bytes + 5_000_000);
    store.close().await.unwrap();
    place.end().await;
}
