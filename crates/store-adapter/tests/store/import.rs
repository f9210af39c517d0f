//! Every way into a store.

use std::io;

use bytes::Bytes;
use futures::{StreamExt, stream};
use iroh_blobs::{
    BlobFormat, Hash,
    api::{
        Store, TempTag,
        blobs::{AddBytesOptions, AddPathOptions, AddProgressItem, BlobStatus, ImportMode},
    },
    protocol::ChunkRanges,
};
use store_adapter::VeilidStore;

use crate::support::{GROUP, SIZES, assert_holds, encoded, kind_of, noise, telling_ranges};

on_each_backend!(
    every_way_in_gives_the_same_blob,
    files_are_copied_and_never_referenced,
    progress_is_told_in_order,
    an_import_that_fails_leaves_nothing,
    an_import_that_is_dropped_leaves_nothing,
    one_blob_is_imported_by_many_at_once,
    different_blobs_are_imported_at_once,
    the_format_is_kept_in_the_tag,
);

/// A blob in pieces of which none fits the tree.
fn pieces(data: &Bytes, length: usize) -> Vec<io::Result<Bytes>> {
    data.chunks(length)
        .map(|piece| Ok(Bytes::copy_from_slice(piece)))
        .collect()
}

async fn stream_in(store: &Store, data: &Bytes, length: usize) -> TempTag {
    store
        .add_stream(stream::iter(pieces(data, length)))
        .await
        .temp_tag()
        .await
        .unwrap()
}

async fn every_way_in_gives_the_same_blob(store: VeilidStore) {
    let dir = tempfile::tempdir().unwrap();
    for (index, size) in SIZES.into_iter().enumerate() {
        // Each way gets a blob of its own, or the later ones would find it there.
        let data = |way: u64| noise(1000 * way + index as u64, size);
        let hash = |way: u64| Hash::new(data(way));

        let tag = store.add_bytes(data(1)).temp_tag().await.unwrap();
        assert_eq!(tag.hash(), hash(1));
        let tag = stream_in(&store, &data(2), 777).await;
        assert_eq!(tag.hash(), hash(2));
        let tag = stream_in(&store, &data(3), 3 * GROUP + 5).await;
        assert_eq!(tag.hash(), hash(3));
        let path = dir.path().join(size.to_string());
        std::fs::write(&path, data(4)).unwrap();
        let tag = store.add_path(&path).temp_tag().await.unwrap();
        assert_eq!(tag.hash(), hash(4));
        let batch = store.batch().await.unwrap();
        let tag = batch.add_bytes(data(5)).await.unwrap();
        assert_eq!(tag.hash(), hash(5));
        let info = store.add_slice(data(6)).await.unwrap();
        assert_eq!(info.hash, hash(6));
        let (encoded_hash, bytes) = encoded(&data(7), &ChunkRanges::all()).await;
        store
            .import_bao_bytes(encoded_hash, ChunkRanges::all(), bytes)
            .await
            .unwrap();

        for way in 1..=7 {
            assert_holds(&store, hash(way), &data(way)).await;
        }
    }
}

async fn files_are_copied_and_never_referenced(store: VeilidStore) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    for size in [100, 2_000_000] {
        let data = noise(size as u64, size);
        std::fs::write(&path, &data).unwrap();
        let add = |mode| {
            store.add_path_with_opts(AddPathOptions {
                path: path.clone(),
                format: BlobFormat::Raw,
                mode,
            })
        };
        let refused = add(ImportMode::TryReference).temp_tag().await.unwrap_err();
        let refused = format!("{refused:?}");
        assert!(refused.contains("import a copy"), "{refused}");
        assert!(!store.has(Hash::new(&data)).await.unwrap());
        let tag = add(ImportMode::Copy).temp_tag().await.unwrap();
        std::fs::write(&path, "something else").unwrap();
        assert_holds(&store, tag.hash(), &data).await;
        std::fs::remove_file(&path).unwrap();
        assert_holds(&store, tag.hash(), &data).await;
    }
}

async fn progress_is_told_in_order(store: VeilidStore) {
    for size in [0, 5000, 3_000_000] {
        let data = noise(size as u64, size);
        let mut items = store
            .add_stream(stream::iter(pieces(&data, 100_000)))
            .await
            .stream()
            .await;
        let (mut copied, mut told, mut done) = (0, None, None);
        let mut copy_done = false;
        while let Some(item) = items.next().await {
            assert!(done.is_none(), "{item:?} after the end");
            match item {
                AddProgressItem::CopyProgress(bytes) => {
                    assert!(copied <= bytes && bytes <= size as u64 && !copy_done);
                    copied = bytes;
                }
                AddProgressItem::Size(bytes) => told = Some(bytes),
                AddProgressItem::CopyDone => copy_done = true,
                AddProgressItem::OutboardProgress(bytes) => assert!(bytes <= size as u64),
                AddProgressItem::Done(tag) => done = Some(tag.hash()),
                AddProgressItem::Error(error) => panic!("{error}"),
            }
        }
        assert_eq!(told, Some(size as u64));
        assert!(copy_done);
        assert_eq!(done, Some(Hash::new(&data)));
    }
}

async fn assert_empty(store: &VeilidStore) {
    assert_eq!(store.list().hashes().await.unwrap(), []);
    assert_eq!(store.usage().await.unwrap().blobs, 0);
    assert_eq!(store.usage().await.unwrap().bytes, 0);
}

async fn an_import_that_fails_leaves_nothing(store: VeilidStore) {
    for size in [10, GROUP, 1_500_000] {
        let data = noise(size as u64, size);
        let mut failing = pieces(&data, 100_000);
        failing.push(Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "the source failed",
        )));
        let failed = store
            .add_stream(stream::iter(failing))
            .await
            .temp_tag()
            .await;
        assert_eq!(kind_of(failed), "PermissionDenied");
        store.wait_idle().await.unwrap();
        assert_eq!(
            store.status(Hash::new(&data)).await.unwrap(),
            BlobStatus::NotFound
        );
        assert_empty(&store).await;
    }
    let absent = store.add_path("/nowhere/at/all").temp_tag().await;
    assert_eq!(kind_of(absent), "NotFound");
    let dir = tempfile::tempdir().unwrap();
    store.add_path(dir.path()).temp_tag().await.unwrap_err();
    store.wait_idle().await.unwrap();
    assert_empty(&store).await;
}

async fn an_import_that_is_dropped_leaves_nothing(store: VeilidStore) {
    for size in [10, 1_500_000] {
        let data = noise(size as u64, size);
        let (taken, seen) = tokio::sync::oneshot::channel();
        // All of the data, then a word that it was taken, then never an end.
        let endless = stream::iter(pieces(&data, 100_000)).chain(stream::once(async move {
            taken.send(()).unwrap();
            std::future::pending().await
        }));
        let import = store.add_stream(endless).await.temp_tag();
        tokio::select! {
            end = import => panic!("the import ended: {end:?}"),
            word = seen => word.unwrap(),
        }
        store.wait_idle().await.unwrap();
        assert_empty(&store).await;
    }
}

async fn one_blob_is_imported_by_many_at_once(store: VeilidStore) {
    for size in [1000, 300_000, 2_000_000] {
        let data = noise(size as u64, size);
        let hash = Hash::new(&data);
        let path = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(path.path(), &data).unwrap();
        let mut tasks = tokio::task::JoinSet::new();
        for index in 0..24_usize {
            let (store, data, path) = (store.clone(), data.clone(), path.path().to_owned());
            tasks.spawn(async move {
                match index % 4 {
                    0 => Some(store.add_bytes(data).temp_tag().await.unwrap()),
                    1 => Some(stream_in(&store, &data, 10_000).await),
                    2 => Some(store.add_path(path).temp_tag().await.unwrap()),
                    _ => {
                        let ranges = telling_ranges(size).swap_remove(index / 4 + 1);
                        let (hash, bytes) = encoded(&data, &ranges).await;
                        store.import_bao_bytes(hash, ranges, bytes).await.unwrap();
                        None
                    }
                }
            });
        }
        while let Some(tag) = tasks.join_next().await {
            if let Some(tag) = tag.unwrap() {
                assert_eq!(tag.hash(), hash);
                assert_holds(&store, hash, &data).await;
            }
        }
    }
    assert_eq!(store.list().hashes().await.unwrap().len(), 3);
    let usage = store.usage().await.unwrap();
    assert_eq!((usage.blobs, usage.bytes), (3, 1000 + 300_000 + 2_000_000));
}

async fn different_blobs_are_imported_at_once(store: VeilidStore) {
    let sizes = [10, 20_000, 300_000, 1_000_000];
    let tags: Vec<TempTag> = stream::iter(0..200_usize)
        .map(|index| {
            let store = &store;
            let data = noise(index as u64, sizes[index % sizes.len()] + index);
            async move { store.add_bytes(data).temp_tag().await.unwrap() }
        })
        .buffered(16)
        .collect()
        .await;
    for (index, tag) in tags.iter().enumerate() {
        let data = noise(index as u64, sizes[index % sizes.len()] + index);
        assert_eq!(tag.hash(), Hash::new(&data));
        assert_holds(&store, tag.hash(), &data).await;
    }
    let mut listed = store.list().hashes().await.unwrap();
    let mut added: Vec<Hash> = tags.iter().map(TempTag::hash).collect();
    listed.sort();
    added.sort();
    assert_eq!(listed, added);
}

async fn the_format_is_kept_in_the_tag(store: VeilidStore) {
    for format in [BlobFormat::Raw, BlobFormat::HashSeq] {
        let data = noise(1, 64);
        let tag = store
            .add_bytes_with_opts(AddBytesOptions {
                data: data.clone(),
                format,
            })
            .temp_tag()
            .await
            .unwrap();
        assert_eq!(tag.format(), format);
        let info = store
            .add_bytes_with_opts((data, format))
            .with_tag()
            .await
            .unwrap();
        assert_eq!(info.format, format);
        let kept = store.tags().get(&info.name).await.unwrap().unwrap();
        assert_eq!(kept, info);
    }
}
