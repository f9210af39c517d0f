//! What was deleted stays so, and what is given up leaves nothing.

use std::{
    fs,
    path::{Path, PathBuf},
};

use iroh_blobs::Hash;
use store_adapter::{Error, VeilidStore};

use crate::support::{Place, assert_holds, noise};

/// The bytes of all files below some places.
fn bytes_in(paths: &[PathBuf]) -> u64 {
    paths
        .iter()
        .map(|path| match fs::read_dir(path) {
            Ok(entries) => {
                let below: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
                bytes_in(&below)
            }
            Err(_) => fs::metadata(path).map_or(0, |metadata| metadata.len()),
        })
        .sum()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_image_of_the_disk_gives_nothing_back_that_was_erased() {
    let mut place = Place::veilid().await;
    let sizes = [5000, 1_000_000];
    let (kept, gone) = (|size| noise(1, size), |size| noise(2, size));
    let store = place.open().await;
    for size in sizes {
        store.add_bytes(kept(size)).await.unwrap();
        store
            .add_bytes(gone(size))
            .with_named_tag(size.to_string())
            .await
            .unwrap();
    }
    store.close().await.unwrap();
    let protected = place.protected_store();
    place.stop_node().await;
    let image = tempfile::tempdir().unwrap();
    copy(place.path(), image.path());

    for erased in [false, true] {
        place.start_node().await;
        let store = place.open().await;
        if erased {
            for size in sizes {
                store.tags().delete(size.to_string()).await.unwrap();
            }
            assert_eq!(store.gc().await.unwrap().removed_blobs, 2);
            store.erase().await.unwrap();
        }
        store.close().await.unwrap();
        place.stop_node().await;
        // The disk as it was, with the keys as they are.
        let keys = tempfile::tempdir().unwrap();
        copy(&protected, keys.path());
        let now = tempfile::tempdir().unwrap();
        copy(place.path(), now.path());
        fs::remove_dir_all(place.path()).unwrap();
        copy(image.path(), place.path());
        fs::remove_dir_all(&protected).unwrap();
        copy(keys.path(), &protected);
        place.start_node().await;
        match place.try_open().await {
            Ok(store) => {
                for size in sizes {
                    let read = store.get_bytes(Hash::new(gone(size))).await;
                    assert_eq!(read.is_err(), erased, "{size}, erased: {erased}");
                }
                store.close().await.unwrap();
            }
            Err(error) => assert!(erased, "{error}"),
        }
        // And back, where what was not deleted is as it was.
        place.stop_node().await;
        fs::remove_dir_all(place.path()).unwrap();
        copy(now.path(), place.path());
        place.start_node().await;
        let store = place.open().await;
        for size in sizes {
            assert_holds(&store, Hash::new(kept(size)), &kept(size)).await;
        }
        store.close().await.unwrap();
        place.stop_node().await;
    }
    place.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_tells_what_lies_on_the_disk() {
    let place = Place::veilid().await;
    let store = place.open().await;
    let on_disk = || {
        let mut paths = place.table_files(&place.store_dir());
        for file in paths.clone() {
            for end in ["-wal", "-shm"] {
                let mut beside = file.clone().into_os_string();
                beside.push(end);
                paths.push(beside.into());
            }
        }
        paths.push(place.store_dir());
        bytes_in(&paths)
    };
    let mut tags = Vec::new();
    for turn in 0..3 {
        for index in 0..200_u64 {
            let size = match index % 20 {
                0 => 1_000_000,
                1..=4 => 100_000,
                _ => 5000,
            };
            let data = noise(1000 * turn + index, size);
            tags.push(store.add_bytes(data).temp_tag().await.unwrap());
        }
        // All but a few go.
        tags.truncate(20 + tags.len() / 10);
        for _ in 0..2 {
            let usage = store.usage().await.unwrap();
            let (told, found) = (usage.disk_bytes, on_disk());
            assert!(
                told.abs_diff(found) <= found / 20 + (1 << 20),
                "{told} bytes are told, and {found} are there"
            );
            store.gc().await.unwrap();
        }
    }
    drop(tags);
    store.gc().await.unwrap();
    store.erase().await.unwrap();
    let usage = store.usage().await.unwrap();
    assert_eq!((usage.blobs, usage.bytes), (0, 0));
    // Packs of which nothing is alive are given back, and so is everything large.
    assert!(on_disk() < 4 << 20, "{} bytes are left", on_disk());
    store.close().await.unwrap();
    place.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_wiped_or_destroyed_leaves_nothing() {
    let mut place = Place::veilid().await;
    for wiped in [true, false] {
        let store = place.open().await;
        for size in [5000, 1_000_000] {
            store.add_bytes(noise(1, size)).await.unwrap();
        }
        let tables = place.table_files(&place.store_dir());
        if wiped {
            let clone = store.clone();
            store.wipe().await.unwrap();
            assert!(matches!(clone.gc().await, Err(Error::Closed)));
        } else {
            let api = place.api().clone();
            let used = VeilidStore::destroy(&api, &place.store_dir()).await;
            assert!(matches!(used, Err(Error::InUse { .. })), "{used:?}");
            store.close().await.unwrap();
            VeilidStore::destroy(&api, &place.store_dir())
                .await
                .unwrap();
        }
        assert!(!place.store_dir().exists());
        for file in tables {
            assert!(!file.exists());
        }
        let store = place.open().await;
        assert_eq!(store.list().hashes().await.unwrap(), []);
        store.close().await.unwrap();
        place.restart_node().await;
    }
    place.end().await;
}
