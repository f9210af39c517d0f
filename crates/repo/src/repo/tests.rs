//! Tests of the repo on a Veilid node that was never attached: everything but publishing.

use std::{
    io::SeekFrom,
    sync::atomic::{AtomicU64, Ordering},
};

use dht_records::Outcome;
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use super::{commit::Step, *};
use crate::{
    collection::CollectionError,
    testing::{Device, FailingReader, group},
};

mod crash;
mod others;

fn path(text: &str) -> EntryPath {
    EntryPath::parse(text).unwrap()
}

fn data(len: usize, seed: usize) -> Vec<u8> {
    (0..len)
        .map(|index| (index * 31 + index / 253 + seed) as u8)
        .collect()
}

async fn put(repo: &Repo, name: &str, bytes: &[u8]) -> Entry {
    repo.write(&path(name), bytes, WriteOptions::default())
        .await
        .unwrap()
}

async fn get(repo: &Repo, name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    repo.read(&path(name))
        .await
        .unwrap()
        .read_to_end(&mut bytes)
        .await
        .unwrap();
    bytes
}

async fn names(repo: &Repo) -> Vec<String> {
    repo.list()
        .await
        .unwrap()
        .into_iter()
        .map(|entry| entry.path.to_string())
        .collect()
}

/// The replaced versions of files, with what they hold.
async fn versions(repo: &Repo) -> Vec<(String, Vec<u8>)> {
    let mut versions = Vec::new();
    for entry in repo.replaced().await.unwrap() {
        let path = entry.path.to_string();
        let mut bytes = Vec::new();
        let mut reader = repo.read_version(entry).await.unwrap();
        reader.read_to_end(&mut bytes).await.unwrap();
        versions.push((path, bytes));
    }
    versions
}

/// What must hold between any two calls.
async fn check(repo: &Repo) {
    let held = repo.held_root().await.unwrap().unwrap();
    let record = repo
        .record()
        .root(Fetch::Cached)
        .await
        .unwrap()
        .unwrap()
        .value;
    assert_eq!(
        (held.hash.as_bytes(), held.bytes, held.files),
        (&record.hash, record.bytes, record.files)
    );
    let entries = repo.list().await.unwrap();
    assert_eq!(entries.len() as u64, held.files);
    for entry in &entries {
        assert!(repo.is_here(entry).await.unwrap());
    }
    assert_eq!(
        repo.inner
            .store
            .root(&repo.inner.names.pending)
            .await
            .unwrap(),
        None
    );
}

/// Brings all that a root reaches from one store into another, as a fetch does.
async fn bring(from: &VeilidStore, to: &VeilidStore, root: Hash) {
    for hash in from.reachable(root).await.unwrap() {
        if hash != Hash::EMPTY && from.has(hash).await.unwrap() {
            let bytes = from.get_bytes(hash).await.unwrap();
            assert_eq!(to.add_bytes(bytes).temp_tag().await.unwrap().hash(), hash);
        }
    }
}

#[tokio::test]
async fn files_are_written_listed_read_deleted_and_there_after_a_restart() {
    let device = Device::start().await;
    let access = group();
    let (repo, keypair) = Repo::create(&device.ctx, &access, "Alice").await.unwrap();
    assert!(repo.is_writable());
    assert_eq!(repo.name(Fetch::Cached).await.unwrap().unwrap(), "Alice");
    assert_eq!(names(&repo).await, Vec::<String>::new());
    check(&repo).await;

    let files = [
        ("a.txt", 0),
        ("photos/b.PNG", 1),
        ("photos/c", 65_536),
        ("big.bin", 300_000),
    ];
    for (name, len) in files {
        let entry = put(&repo, name, &data(len, len)).await;
        assert_eq!(entry.size, len as u64);
        assert_eq!(entry.plain_hash, *blake3::hash(&data(len, len)).as_bytes());
        assert_eq!(entry.modified, 1_700_000_000);
        assert_eq!(repo.entry(&path(name)).await.unwrap().unwrap(), entry);
        check(&repo).await;
    }
    assert_eq!(
        names(&repo).await,
        ["a.txt", "big.bin", "photos/b.PNG", "photos/c"]
    );
    let types: Vec<_> = repo
        .list()
        .await
        .unwrap()
        .into_iter()
        .map(|entry| entry.media_type)
        .collect();
    assert_eq!(
        types,
        [
            "text/plain",
            "application/octet-stream",
            "image/png",
            "application/octet-stream"
        ]
    );
    let lamports: Vec<_> = repo
        .list()
        .await
        .unwrap()
        .iter()
        .map(|entry| entry.version.lamport)
        .collect();
    assert_eq!(lamports, [1, 4, 2, 3]);

    repo.delete(&path("PHOTOS/C")).await.unwrap();
    assert!(matches!(
        repo.delete(&path("photos/c")).await,
        Err(Error::NoSuchFile)
    ));
    assert!(matches!(
        repo.read(&path("photos/c")).await,
        Err(Error::NoSuchFile)
    ));
    put(&repo, "a.txt", b"a newer version").await;
    check(&repo).await;
    let root = repo.held_root().await.unwrap().unwrap();
    assert_eq!((root.files, root.bytes), (3, 300_016));

    drop(repo);
    let device = device.restart().await;
    let public = keypair.key();
    let repo = Repo::open(&device.ctx, &access, public.clone(), Some(keypair))
        .await
        .unwrap();
    assert_eq!(repo.public_key(), &public);
    assert_eq!(repo.held_root().await.unwrap().unwrap(), root);
    assert_eq!(names(&repo).await, ["a.txt", "big.bin", "photos/b.PNG"]);
    assert_eq!(get(&repo, "a.txt").await, b"a newer version");
    assert_eq!(get(&repo, "photos/b.png").await, data(1, 1));
    assert_eq!(get(&repo, "BIG.bin").await, data(300_000, 300_000));
    assert_eq!(repo.name(Fetch::Cached).await.unwrap().unwrap(), "Alice");
    check(&repo).await;
    // Nobody was asked, so nothing was published.
    assert_eq!(repo.record().unpublished().await.unwrap(), [0, 1]);
    match repo.publish().await {
        Err(Error::Records(error)) => assert!(error.is_retryable()),
        Ok(published) => {
            assert!(
                published
                    .subkeys
                    .iter()
                    .all(|(_, outcome)| matches!(outcome, Outcome::Failed(_)))
            );
        }
        Err(error) => panic!("{error}"),
    }
    drop(repo);
    device.stop().await;
}

#[tokio::test]
async fn any_part_of_a_file_can_be_read() {
    let device = Device::start().await;
    let (repo, _) = Repo::create(&device.ctx, &group(), "r").await.unwrap();
    let bytes = data(1_500_000, 3);
    put(&repo, "f", &bytes).await;
    let mut reader = repo.read(&path("f")).await.unwrap();
    assert_eq!(reader.size(), 1_500_000);
    for start in [0, 1, 65_535, 65_536, 100_000, 1_499_999] {
        for len in [1, 2, 65_536, 200_000] {
            let end = (start + len).min(bytes.len());
            let range = reader
                .range(start as u64..(start + len) as u64)
                .await
                .unwrap();
            assert!(range == bytes[start..end], "{start}+{len}");
            assert_eq!(
                reader.seek(SeekFrom::Start(start as u64)).await.unwrap(),
                start as u64
            );
            let mut part = vec![0; end - start];
            reader.read_exact(&mut part).await.unwrap();
            assert!(part == bytes[start..end], "{start}+{len}");
        }
    }
    assert_eq!(reader.seek(SeekFrom::End(-10)).await.unwrap(), 1_499_990);
    let mut tail = Vec::new();
    reader.read_to_end(&mut tail).await.unwrap();
    assert_eq!(tail, bytes[1_499_990..]);
    assert_eq!(reader.seek(SeekFrom::Current(-5)).await.unwrap(), 1_499_995);
    assert!(reader.seek(SeekFrom::Current(i64::MIN)).await.is_err());
    assert_eq!(
        reader.seek(SeekFrom::Start(2_000_000)).await.unwrap(),
        2_000_000
    );
    assert_eq!(reader.read(&mut [0; 8]).await.unwrap(), 0);
    assert_eq!(reader.range(1_500_000..u64::MAX).await.unwrap().len(), 0);
    drop(reader);
    device.stop().await;
}

#[tokio::test]
async fn deleting_gives_the_bytes_back_and_touches_nothing_else() {
    let device = Device::start().await;
    let (repo, _) = Repo::create(&device.ctx, &group(), "r").await.unwrap();
    let store = &device.ctx.store;
    for index in 0..100 {
        put(
            &repo,
            &format!("dir/file {index}"),
            &data(1000 + index, index),
        )
        .await;
    }
    let big = put(&repo, "big", &data(2_000_000, 1)).await;
    store.gc().await.unwrap();
    let before = store.usage().await.unwrap();

    let mut open = repo.read(&path("big")).await.unwrap();
    repo.delete(&path("big")).await.unwrap();
    store.gc().await.unwrap();
    assert!(repo.is_here(&big).await.unwrap(), "somebody still reads it");
    let mut bytes = Vec::new();
    open.read_to_end(&mut bytes).await.unwrap();
    assert!(bytes == data(2_000_000, 1));
    drop(open);
    let report = store.gc().await.unwrap();
    assert!(report.removed_bytes > 2_000_000);
    assert!(!repo.is_here(&big).await.unwrap());

    // A replaced file is released as well.
    let old = repo.entry(&path("dir/file 7")).await.unwrap().unwrap();
    put(&repo, "dir/file 7", b"new").await;
    store.gc().await.unwrap();
    assert!(!repo.is_here(&old).await.unwrap());
    let after = store.usage().await.unwrap();
    assert!(
        after.bytes < before.bytes - 2_000_000,
        "{before:?} {after:?}"
    );
    for index in (0..100).filter(|index| *index != 7) {
        assert_eq!(
            get(&repo, &format!("dir/file {index}")).await,
            data(1000 + index, index)
        );
    }
    check(&repo).await;
    // What is unreachable is gone: there is nothing but what the root reaches.
    assert_eq!(
        after.blobs,
        repo.reachable()
            .await
            .unwrap()
            .iter()
            .filter(|hash| **hash != Hash::EMPTY)
            .count() as u64
    );
    device.stop().await;
}

#[tokio::test]
async fn many_files_make_one_root_or_none() {
    let device = Device::start().await;
    let (repo, _) = Repo::create(&device.ctx, &group(), "r").await.unwrap();
    let before = repo
        .record()
        .root(Fetch::Cached)
        .await
        .unwrap()
        .unwrap()
        .counter;
    let mut files: Vec<(EntryPath, Source, WriteOptions)> = (0..70)
        .map(|index| {
            let bytes = std::io::Cursor::new(data(100 * index, index));
            (
                path(&format!("{index}")),
                Box::new(bytes) as Source,
                WriteOptions::default(),
            )
        })
        .collect();
    files.push((
        path("7"),
        Box::new(&b"the later one"[..]),
        WriteOptions::default(),
    ));
    let entries = repo.write_many(files).await.unwrap();
    assert_eq!(entries.len(), 71);
    assert_eq!(
        repo.record()
            .root(Fetch::Cached)
            .await
            .unwrap()
            .unwrap()
            .counter,
        before + 1
    );
    assert_eq!(repo.list().await.unwrap().len(), 70);
    assert_eq!(get(&repo, "7").await, b"the later one");
    assert_eq!(get(&repo, "69").await, data(6900, 69));
    check(&repo).await;

    let held = repo.held_root().await.unwrap();
    let files: Vec<(EntryPath, Source, WriteOptions)> = vec![
        (path("good"), Box::new(&b"x"[..]), WriteOptions::default()),
        (
            path("bad"),
            Box::new((&b"some"[..]).chain(FailingReader)),
            WriteOptions::default(),
        ),
    ];
    assert!(matches!(
        repo.write_many(files).await,
        Err(Error::Source(_))
    ));
    assert_eq!(repo.held_root().await.unwrap(), held);
    assert_eq!(repo.write_many(Vec::new()).await.unwrap(), []);
    assert_eq!(repo.held_root().await.unwrap(), held);
    device.ctx.store.gc().await.unwrap();
    check(&repo).await;
    device.stop().await;
}

#[tokio::test]
async fn progress_is_told_and_options_are_kept() {
    let device = Device::start().await;
    let (repo, _) = Repo::create(&device.ctx, &group(), "r").await.unwrap();
    let (calls, last) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let progress: OnProgress = {
        let (calls, last) = (calls.clone(), last.clone());
        Arc::new(move |bytes| {
            calls.fetch_add(1, Ordering::Relaxed);
            assert!(last.swap(bytes, Ordering::Relaxed) <= bytes);
        })
    };
    let options = WriteOptions {
        media_type: Some("video/x-own".to_owned()),
        modified: Some(5),
        progress: Some(progress),
    };
    let entry = repo
        .write(&path("f"), &data(1 << 20, 0)[..], options)
        .await
        .unwrap();
    assert_eq!(
        (entry.media_type.as_str(), entry.modified),
        ("video/x-own", 5)
    );
    assert_eq!(last.load(Ordering::Relaxed), 1 << 20);
    assert!(calls.load(Ordering::Relaxed) > 10);
    for bad in ["a\nb", &"x".repeat(128), "é"] {
        let options = WriteOptions {
            media_type: Some(bad.to_owned()),
            ..WriteOptions::default()
        };
        assert!(matches!(
            repo.write(&path("g"), &b""[..], options).await,
            Err(Error::MediaType)
        ));
    }
    device.stop().await;
}

#[tokio::test]
async fn deletions_are_forgotten_in_time() {
    let device = Device::start().await;
    let (repo, _) = Repo::create(&device.ctx, &group(), "r").await.unwrap();
    put(&repo, "a", b"1").await;
    repo.delete(&path("a")).await.unwrap();
    put(&repo, "b", b"1").await;
    assert_eq!(repo.contents().await.unwrap().len(), 2);
    device
        .clock
        .0
        .fetch_add(crate::collection::TOMBSTONE_LIFETIME, Ordering::Relaxed);
    put(&repo, "b", b"2").await;
    assert_eq!(repo.contents().await.unwrap().len(), 2);
    device.clock.0.fetch_add(1, Ordering::Relaxed);
    put(&repo, "b", b"3").await;
    assert_eq!(repo.contents().await.unwrap().len(), 1);
    check(&repo).await;
    device.stop().await;
}

#[tokio::test]
async fn the_disk_shows_neither_content_nor_name() {
    fn grep(dir: &Path, needle: &[u8]) -> bool {
        std::fs::read_dir(dir).unwrap().any(|entry| {
            let path = entry.unwrap().path();
            if path.is_dir() {
                grep(&path, needle)
            } else {
                std::fs::read(&path)
                    .unwrap()
                    .windows(needle.len())
                    .any(|window| window == needle)
            }
        })
    }
    let device = Device::start().await;
    let (repo, _) = Repo::create(&device.ctx, &group(), "name of the repo")
        .await
        .unwrap();
    let content = b"a sentence that nobody else writes ".repeat(3000);
    put(&repo, "a name like no other.txt", &content).await;
    let out = tempfile::tempdir().unwrap();
    let target = repo
        .export(
            &path("a name like no other.TXT"),
            out.path(),
            Existing::Keep,
        )
        .await
        .unwrap();
    assert_eq!(target, out.path().join("a name like no other.txt"));
    assert!(grep(out.path(), b"nobody else writes"));
    let dir = device.ctx.store.dir().parent().unwrap().to_owned();
    for needle in [
        &b"nobody else writes"[..],
        b"like no other",
        b"name of the repo",
    ] {
        assert!(!grep(&dir, needle));
    }
    device.stop().await;
}
