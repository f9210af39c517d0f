//! What is read out of a store is what iroh's own store gives, to the byte.

use bao_tree::ByteRanges;
use bytes::Bytes;
use futures::{StreamExt, stream};
use iroh_blobs::{
    Hash,
    api::{
        Store,
        blobs::{ExportMode, ExportOptions},
    },
    protocol::{ChunkRanges, ChunkRangesExt},
    store::mem::MemStore,
};
use proptest::{prelude::*, test_runner::TestRunner};
use store_adapter::VeilidStore;
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use crate::support::{GROUP, SIZES, chunks, mem_with, noise, telling_ranges};

on_each_backend!(
    every_size_is_exported_as_by_iroh,
    random_ranges_are_exported_as_by_iroh,
    a_hundred_mebibytes_are_exported_as_by_iroh,
    a_reader_reads_and_seeks,
    files_are_exported_whole,
);

async fn assert_same_bao(store: &Store, mem: &MemStore, hash: Hash, ranges: &ChunkRanges) {
    let ours = store
        .export_bao(hash, ranges.clone())
        .bao_to_vec()
        .await
        .unwrap();
    let theirs = mem
        .export_bao(hash, ranges.clone())
        .bao_to_vec()
        .await
        .unwrap();
    assert!(ours == theirs, "{hash} differs in {ranges:?}");
}

async fn assert_same_bytes(store: &Store, mem: &MemStore, hash: Hash, ranges: &ByteRanges) {
    let ours = store
        .export_ranges(hash, ranges.clone())
        .concatenate()
        .await
        .unwrap();
    let theirs = mem
        .export_ranges(hash, ranges.clone())
        .concatenate()
        .await
        .unwrap();
    assert!(ours == theirs, "{hash} differs in {ranges:?}");
}

async fn every_size_is_exported_as_by_iroh(store: VeilidStore) {
    for (seed, size) in SIZES.into_iter().enumerate() {
        let data = noise(seed as u64, size);
        let (mem, hash) = mem_with(&data).await;
        let tag = store.add_bytes(data.clone()).temp_tag().await.unwrap();
        assert_eq!(tag.hash(), hash);
        for ranges in telling_ranges(size) {
            assert_same_bao(&store, &mem, hash, &ranges).await;
        }
        let end = size as u64;
        for ranges in [
            ByteRanges::empty(),
            ByteRanges::all(),
            ByteRanges::from(0..1),
            ByteRanges::from(end / 2..),
            ByteRanges::from(end / 3..end / 2 + 1),
            ByteRanges::from(end..),
            ByteRanges::from(end + 10..end + 20),
            ByteRanges::from(0..10) | ByteRanges::from(end / 2..end / 2 + 2000),
            ByteRanges::from(1023..1025) | ByteRanges::from(end.saturating_sub(1)..end + 1),
        ] {
            assert_same_bytes(&store, &mem, hash, &ranges).await;
        }
        assert_eq!(store.get_bytes(hash).await.unwrap(), data);
    }
}

/// Up to four pieces below `limit`, and perhaps all that follows one more place.
fn places(limit: u64) -> impl Strategy<Value = (Vec<(u64, u64)>, Option<u64>)> {
    let piece = (0..limit).prop_flat_map(move |from| (Just(from), from + 1..=limit));
    (
        proptest::collection::vec(piece, 0..4),
        proptest::option::weighted(0.3, 0..limit),
    )
}

async fn random_ranges_are_exported_as_by_iroh(store: VeilidStore) {
    let strategy = prop_oneof![1..4 * GROUP, GROUP..40 * GROUP].prop_flat_map(|size| {
        (
            Just(size),
            places(chunks(size) + 4),
            places(size as u64 + 100),
        )
    });
    let runtime = tokio::runtime::Handle::current();
    tokio::task::spawn_blocking(move || {
        TestRunner::new(ProptestConfig {
            cases: 96,
            failure_persistence: None,
            ..ProptestConfig::default()
        })
        .run(&strategy, |(size, in_chunks, in_bytes)| {
            runtime.block_on(async {
                let data = noise(size as u64, size);
                let (mem, hash) = mem_with(&data).await;
                let tag = store.add_bytes(data).temp_tag().await.unwrap();
                assert_eq!(tag.hash(), hash);
                let mut ranges = ChunkRanges::empty();
                for (from, to) in in_chunks.0 {
                    ranges |= ChunkRanges::chunks(from..to);
                }
                if let Some(from) = in_chunks.1 {
                    ranges |= ChunkRanges::chunks(from..);
                }
                assert_same_bao(&store, &mem, hash, &ranges).await;
                let mut ranges = ByteRanges::empty();
                for (from, to) in in_bytes.0 {
                    ranges |= ByteRanges::from(from..to);
                }
                if let Some(from) = in_bytes.1 {
                    ranges |= ByteRanges::from(from..);
                }
                assert_same_bytes(&store, &mem, hash, &ranges).await;
            });
            Ok(())
        })
        .unwrap();
    })
    .await
    .unwrap();
}

/// A fingerprint of an export that is too large to be compared in memory.
async fn fingerprint(store: &Store, hash: Hash, ranges: ChunkRanges) -> blake3::Hash {
    let mut pieces = std::pin::pin!(store.export_bao(hash, ranges).into_byte_stream());
    let mut hasher = blake3::Hasher::new();
    while let Some(piece) = pieces.next().await {
        hasher.update(&piece.unwrap());
    }
    hasher.finalize()
}

async fn a_hundred_mebibytes_are_exported_as_by_iroh(store: VeilidStore) {
    const SIZE: usize = 100 << 20;
    let data = noise(100, SIZE);
    let (mem, hash) = mem_with(&data).await;
    let whole = data.clone();
    // Pieces of a length that fits nothing.
    let pieces = (0..SIZE)
        .step_by(333_333)
        .map(move |from| Ok(whole.slice(from..(from + 333_333).min(SIZE))));
    let tag = store
        .add_stream(stream::iter(pieces))
        .await
        .temp_tag()
        .await
        .unwrap();
    assert_eq!(tag.hash(), hash);
    for ranges in [
        ChunkRanges::all(),
        ChunkRanges::chunks(99_000..) | ChunkRanges::chunks(3..40_007),
    ] {
        assert_eq!(
            fingerprint(&store, hash, ranges.clone()).await,
            fingerprint(&mem, hash, ranges).await
        );
    }
    let places = ByteRanges::from(12_345_678..23_456_789) | ByteRanges::from(SIZE as u64 - 1..);
    assert_same_bytes(&store, &mem, hash, &places).await;
}

async fn a_reader_reads_and_seeks(store: VeilidStore) {
    let data = noise(7, 3_000_000);
    let tag = store.add_bytes(data.clone()).temp_tag().await.unwrap();
    let mut reader = store.reader(tag.hash());
    let mut whole = Vec::new();
    reader.read_to_end(&mut whole).await.unwrap();
    assert!(whole == data);
    for from in [2_999_999_u64, 0, 1_048_575, 777] {
        reader.seek(std::io::SeekFrom::Start(from)).await.unwrap();
        let mut part = [0; 1];
        reader.read_exact(&mut part).await.unwrap();
        assert_eq!(part[0], data[from as usize]);
    }
}

async fn files_are_exported_whole(store: VeilidStore) {
    let dir = tempfile::tempdir().unwrap();
    for (seed, size) in SIZES.into_iter().enumerate() {
        let data: Bytes = noise(seed as u64 + 50, size);
        let tag = store.add_bytes(data.clone()).temp_tag().await.unwrap();
        for mode in [ExportMode::Copy, ExportMode::TryReference] {
            let target = dir.path().join(format!("new/{size}-{mode:?}"));
            let exported = store
                .export_with_opts(ExportOptions {
                    hash: tag.hash(),
                    mode,
                    target: target.clone(),
                })
                .await
                .unwrap();
            assert_eq!(exported, size as u64);
            assert!(std::fs::read(&target).unwrap() == data);
            // The store's own copy is another one.
            std::fs::write(&target, "changed").unwrap();
        }
        assert_eq!(store.get_bytes(tag.hash()).await.unwrap(), data);
    }
    assert!(
        store.export(Hash::EMPTY, "relative/path").await.is_err(),
        "only absolute paths are taken"
    );
}
