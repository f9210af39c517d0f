//! What is not there is told as iroh's own store tells it.

use bao_tree::ByteRanges;
use iroh_blobs::{
    Hash,
    api::{Store, blobs::BlobStatus},
    protocol::{ChunkRanges, ChunkRangesExt},
    store::mem::MemStore,
};
use store_adapter::VeilidStore;

use crate::support::{chunks, import_ranges, kind_of, noise};

on_each_backend!(
    a_blob_that_is_not_there_is_not_found,
    ranges_that_are_not_there_are_not_found,
    the_empty_blob_is_always_there,
);

async fn a_blob_that_is_not_there_is_not_found(store: VeilidStore) {
    let hash = Hash::new(b"never stored");
    let mem = MemStore::new();
    let dir = tempfile::tempdir().unwrap();
    for store in [&*store, &*mem] {
        let store: &Store = store;
        assert_eq!(store.status(hash).await.unwrap(), BlobStatus::NotFound);
        assert!(!store.has(hash).await.unwrap());
        assert_eq!(kind_of(store.get_bytes(hash).await), "NotFound");
        let bao = store.export_bao(hash, ChunkRanges::all()).bao_to_vec();
        assert_eq!(kind_of(bao.await), "NotFound");
        let ranges = store.export_ranges(hash, 0..1).concatenate();
        assert_eq!(kind_of(ranges.await), "NotFound");
        let target = dir.path().join("out");
        assert_eq!(kind_of(store.export(hash, &target).await), "NotFound");
        assert!(!target.exists());
        assert_eq!(
            kind_of(store.tags().rename("absent", "new").await),
            "NotFound"
        );
        assert_eq!(store.tags().delete("absent").await.unwrap(), 0);
        assert_eq!(store.tags().get("absent").await.unwrap(), None);
    }
}

async fn ranges_that_are_not_there_are_not_found(store: VeilidStore) {
    for (seed, size) in [100_000_usize, 1_000_000].into_iter().enumerate() {
        let data = noise(seed as u64, size);
        let mem = MemStore::new();
        let here = ChunkRanges::chunks(10..40) | ChunkRanges::chunks(chunks(size) / 16 * 16..);
        let mut told = Vec::new();
        for store in [&*store, &*mem] {
            let store: &Store = store;
            let hash = import_ranges(store, &data, &here).await;
            let end = size as u64;
            for ranges in [
                // Missing, half missing, and there.
                ByteRanges::from(0..1),
                ByteRanges::from(39 * 1024..41 * 1024),
                ByteRanges::from(end / 2..),
                ByteRanges::all(),
                ByteRanges::from(11 * 1024 + 5..39 * 1024),
                ByteRanges::from(end - 1..end + 5),
                ByteRanges::from(end + 7..end + 9),
            ] {
                let got = store.export_ranges(hash, ranges).concatenate().await;
                told.push(match got {
                    Ok(bytes) => format!("{} bytes", bytes.len()),
                    Err(error) => kind_of::<(), _>(Err(error)),
                });
            }
            for ranges in [
                ChunkRanges::chunks(0..1),
                ChunkRanges::chunks(16..64),
                ChunkRanges::all(),
            ] {
                store
                    .export_bao(hash, ranges)
                    .bao_to_vec()
                    .await
                    .unwrap_err();
            }
            let part = ChunkRanges::chunks(16..32) | ChunkRanges::last_chunk();
            let got = store.export_bao(hash, part).bao_to_vec().await.unwrap();
            told.push(format!("{} bytes of bao", got.len()));
        }
        let theirs = told.split_off(told.len() / 2);
        assert_eq!(told, theirs);
    }
}

async fn the_empty_blob_is_always_there(store: VeilidStore) {
    let mem = MemStore::new();
    for store in [&*store, &*mem] {
        let store: &Store = store;
        assert_eq!(
            store.status(Hash::EMPTY).await.unwrap(),
            BlobStatus::Complete { size: 0 }
        );
        assert_eq!(store.get_bytes(Hash::EMPTY).await.unwrap(), "");
        let bao = store.export_bao(Hash::EMPTY, ChunkRanges::all());
        assert_eq!(bao.bao_to_vec().await.unwrap(), [0; 8]);
        let ranges = store.export_ranges(Hash::EMPTY, 0..10).concatenate();
        assert!(ranges.await.unwrap().is_empty());
    }
}
