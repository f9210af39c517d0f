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
async fn a_crash_anywhere_leaves_the_old_or_the_new_state() {
    let mut device = Device::start().await;
    let access = group();
    let (repo, keypair) = Repo::create(&device.ctx, &access, "r").await.unwrap();
    put(&repo, "first", b"1").await;
    drop(repo);
    let open = async |device: &Device| {
        Repo::open(&device.ctx, &access, keypair.key(), Some(keypair.clone()))
            .await
            .unwrap()
    };
    for (step, is_new) in [
        (Step::Blobs, false),
        (Step::Root, false),
        (Step::Pending, true),
        (Step::Held, true),
        (Step::Recorded, true),
    ] {
        let name = format!("{step:?}");
        let repo = open(&device).await;
        let before = names(&repo).await;
        *repo.inner.fail_at.lock().unwrap() = Some(step);
        let write = repo
            .write(&path(&name), &b"2"[..], WriteOptions::default())
            .await;
        assert!(matches!(write, Err(Error::Source(_))), "{step:?}");
        drop(repo);
        device = device.restart().await;
        device.ctx.store.gc().await.unwrap();

        let repo = open(&device).await;
        check(&repo).await;
        let mut expected = before.clone();
        if is_new {
            expected.push(name.clone());
            expected.sort();
        }
        assert_eq!(names(&repo).await, expected, "{step:?}");
        for name in expected {
            get(&repo, &name).await;
        }

        // Without a restart, as after a dropped call: the next change finds it and does the rest.
        let again = format!("{step:?} again");
        *repo.inner.fail_at.lock().unwrap() = Some(step);
        assert!(
            repo.write(&path(&again), &b"3"[..], WriteOptions::default())
                .await
                .is_err()
        );
        *repo.inner.fail_at.lock().unwrap() = None;
        put(&repo, "first", step.to_string().as_bytes()).await;
        check(&repo).await;
        assert_eq!(
            repo.entry(&path(&again)).await.unwrap().is_some(),
            is_new,
            "{step:?}"
        );
        device.ctx.store.gc().await.unwrap();
        assert_eq!(get(&repo, "first").await, step.to_string().as_bytes());
        drop(repo);
    }
    device.stop().await;
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
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
async fn concurrent_writes_all_arrive_and_dropped_ones_do_not_matter() {
    let device = Device::start().await;
    let (repo, _) = Repo::create(&device.ctx, &group(), "r").await.unwrap();
    let writes = (0..20).map(|index| {
        let repo = repo.clone();
        async move { put(&repo, &format!("{index}"), &data(70_000, index)).await }
    });
    let entries = futures::future::join_all(writes).await;
    let lamports: std::collections::BTreeSet<_> =
        entries.iter().map(|entry| entry.version.lamport).collect();
    assert_eq!(lamports.len(), 20);
    assert_eq!(repo.list().await.unwrap().len(), 20);

    for polls in [1, 5, 20, 60] {
        let name = format!("dropped after {polls}");
        let write_path = path(&name);
        let bytes = data(200_000, polls);
        let mut write = Box::pin(repo.write(&write_path, &bytes[..], WriteOptions::default()));
        for _ in 0..polls {
            if futures::poll!(&mut write).is_ready() {
                break;
            }
            tokio::task::yield_now().await;
        }
        drop(write);
        put(&repo, "after", &bytes).await;
        check(&repo).await;
        if repo.entry(&path(&name)).await.unwrap().is_some() {
            assert!(get(&repo, &name).await == bytes);
        }
    }
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
async fn a_reader_takes_over_what_it_fetched_and_refuses_to_write() {
    let (writer, reader) = (Device::start().await, Device::start().await);
    let access = group();
    let (mine, keypair) = Repo::create(&writer.ctx, &access, "r").await.unwrap();
    for index in 0..80 {
        put(&mine, &format!("{index}"), &data(5000, index)).await;
    }
    mine.delete(&path("3")).await.unwrap();
    let root = mine.held_root().await.unwrap().unwrap();

    let theirs = Repo::open(
        &reader.ctx,
        &access.to_reader().unwrap(),
        keypair.key(),
        None,
    )
    .await
    .unwrap();
    assert!(!theirs.is_writable());
    assert_eq!(theirs.held_root().await.unwrap(), None);
    assert_eq!(theirs.list().await.unwrap(), []);
    match theirs.adopt(root.hash).await {
        Err(Error::NotHere { hash }) => assert_eq!(hash, root.hash),
        other => panic!("{other:?}"),
    }
    // Root and shards, and one file.
    let reachable = mine.reachable().await.unwrap();
    let files: Vec<_> = mine
        .list()
        .await
        .unwrap()
        .into_iter()
        .map(|entry| entry.blob)
        .collect();
    for hash in reachable
        .iter()
        .filter(|hash| !files.contains(hash) && **hash != Hash::EMPTY)
    {
        let bytes = writer.ctx.store.get_bytes(*hash).await.unwrap();
        let _ = reader.ctx.store.add_bytes(bytes).temp_tag().await.unwrap();
    }
    theirs.adopt(root.hash).await.unwrap();
    assert_eq!(theirs.held_root().await.unwrap().unwrap(), root);
    assert_eq!(theirs.list().await.unwrap(), mine.list().await.unwrap());
    let wanted = theirs.entry(&path("5")).await.unwrap().unwrap();
    match theirs.read(&path("5")).await {
        Err(Error::NotHere { hash }) => assert_eq!(hash, wanted.blob),
        other => panic!("{other:?}"),
    }
    assert!(!theirs.is_here(&wanted).await.unwrap());
    bring(&writer.ctx.store, &reader.ctx.store, root.hash).await;
    reader.ctx.store.gc().await.unwrap();
    assert_eq!(get(&theirs, "5").await, data(5000, 5));

    assert!(matches!(
        theirs
            .write(&path("x"), &b""[..], WriteOptions::default())
            .await,
        Err(Error::ReadOnly)
    ));
    assert!(matches!(
        theirs.delete(&path("5")).await,
        Err(Error::ReadOnly)
    ));
    assert!(matches!(theirs.set_name("x").await, Err(Error::ReadOnly)));
    assert!(matches!(theirs.publish().await, Err(Error::ReadOnly)));
    assert!(matches!(
        theirs.publish_tunnel(b"route").await,
        Err(Error::ReadOnly)
    ));
    assert!(matches!(
        theirs.withdraw_tunnel().await,
        Err(Error::ReadOnly)
    ));

    // Blobs that are no collection of this repo are not taken over, and what is held stays.
    let junk = reader
        .ctx
        .store
        .add_slice(b"junk")
        .temp_tag()
        .await
        .unwrap()
        .hash();
    assert!(matches!(
        theirs.adopt(junk).await,
        Err(Error::Collection(CollectionError::NotACollection { .. }))
    ));
    let (other, _) = Repo::create(&reader.ctx, &access, "other").await.unwrap();
    put(&other, "f", b"f").await;
    let foreign = other.held_root().await.unwrap().unwrap().hash;
    assert!(matches!(
        theirs.adopt(foreign).await,
        Err(Error::Collection(CollectionError::Sealed))
    ));
    assert_eq!(theirs.held_root().await.unwrap().unwrap(), root);
    theirs.forget().await.unwrap();
    assert_eq!(theirs.held_root().await.unwrap(), None);
    writer.stop().await;
    reader.stop().await;
}

#[tokio::test]
async fn a_replica_keeps_everything_and_reads_nothing() {
    let (writer, replica) = (Device::start().await, Device::start().await);
    let access = group();
    let (mine, keypair) = Repo::create(&writer.ctx, &access, "r").await.unwrap();
    put(&mine, "kept", &data(5000, 1)).await;
    put(&mine, "deleted", b"x").await;
    mine.delete(&path("deleted")).await.unwrap();
    let root = mine.held_root().await.unwrap().unwrap();
    let theirs = Repo::open(&replica.ctx, &access.to_replica(), keypair.key(), None)
        .await
        .unwrap();
    assert!(matches!(
        theirs.adopt(root.hash).await,
        Err(Error::NotHere { .. })
    ));
    bring(&writer.ctx.store, &replica.ctx.store, root.hash).await;
    theirs.adopt(root.hash).await.unwrap();
    assert_eq!(replica.ctx.store.gc().await.unwrap().removed_blobs, 0);
    let held = theirs.held_root().await.unwrap().unwrap();
    assert_eq!(
        (held.hash, held.files, held.bytes),
        (root.hash, 1, 5000 + 69 + 16)
    );
    assert_eq!(
        theirs.reachable().await.unwrap(),
        mine.reachable().await.unwrap()
    );
    assert!(matches!(theirs.list().await, Err(Error::NoContentKey)));
    assert!(matches!(
        theirs.read(&path("kept")).await,
        Err(Error::NoContentKey)
    ));
    assert!(matches!(
        theirs.name(Fetch::Cached).await,
        Err(Error::NoContentKey)
    ));
    assert!(matches!(
        Repo::create(&replica.ctx, &access.to_replica(), "r").await,
        Err(Error::NoContentKey)
    ));
    writer.stop().await;
    replica.stop().await;
}

#[tokio::test]
async fn two_devices_of_one_member_agree() {
    let (phone, laptop) = (Device::start().await, Device::start().await);
    let access = group();
    let (on_phone, keypair) = Repo::create(&phone.ctx, &access, "r").await.unwrap();
    put(&on_phone, "shared", b"1").await;
    put(&on_phone, "phone", b"p").await;
    let first = on_phone.held_root().await.unwrap().unwrap().hash;

    let on_laptop = Repo::open(&laptop.ctx, &access, keypair.key(), Some(keypair.clone()))
        .await
        .unwrap();
    bring(&phone.ctx.store, &laptop.ctx.store, first).await;
    on_laptop.adopt(first).await.unwrap();
    check(&on_laptop).await;
    assert_eq!(on_laptop.held_root().await.unwrap().unwrap().hash, first);

    // Both change the same things without knowing of each other.
    put(&on_phone, "shared", b"from the phone").await;
    on_laptop.delete(&path("phone")).await.unwrap();
    put(&on_laptop, "shared", b"from the laptop, later").await;
    put(&on_laptop, "laptop", b"l").await;
    let (a, b) = (
        on_phone.held_root().await.unwrap().unwrap().hash,
        on_laptop.held_root().await.unwrap().unwrap().hash,
    );
    bring(&phone.ctx.store, &laptop.ctx.store, a).await;
    bring(&laptop.ctx.store, &phone.ctx.store, b).await;
    on_phone.adopt(b).await.unwrap();
    on_laptop.adopt(a).await.unwrap();
    check(&on_phone).await;
    check(&on_laptop).await;
    assert_eq!(
        on_phone.held_root().await.unwrap(),
        on_laptop.held_root().await.unwrap()
    );
    assert_eq!(names(&on_phone).await, ["laptop", "shared"]);
    for repo in [&on_phone, &on_laptop] {
        assert_eq!(get(repo, "shared").await, b"from the laptop, later");
    }
    // Adopting again, or something old, changes nothing.
    let counter = on_phone
        .record()
        .root(Fetch::Cached)
        .await
        .unwrap()
        .unwrap()
        .counter;
    on_phone.adopt(b).await.unwrap();
    on_phone.adopt(first).await.unwrap();
    assert_eq!(
        on_phone
            .record()
            .root(Fetch::Cached)
            .await
            .unwrap()
            .unwrap()
            .counter,
        counter
    );
    phone.stop().await;
    laptop.stop().await;
}

#[tokio::test]
async fn a_device_that_holds_nothing_does_not_empty_the_repo() {
    let device = Device::start().await;
    let access = group();
    let (repo, _) = Repo::create(&device.ctx, &access, "r").await.unwrap();
    put(&repo, "precious", b"1").await;
    let root = repo.held_root().await.unwrap().unwrap().hash;
    repo.forget().await.unwrap();
    device.ctx.store.gc().await.unwrap();
    // The record names a root that is not here; writing on nothing would replace it.
    match repo
        .write(&path("x"), &b"2"[..], WriteOptions::default())
        .await
    {
        Err(Error::NotHere { hash }) => assert_eq!(hash, root),
        other => panic!("{other:?}"),
    }
    assert_eq!(
        repo.record()
            .root(Fetch::Cached)
            .await
            .unwrap()
            .unwrap()
            .value
            .hash,
        *root.as_bytes()
    );
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
async fn damage_on_disk_is_an_error_and_never_other_bytes() {
    let device = Device::start().await;
    let (repo, _) = Repo::create(&device.ctx, &group(), "r").await.unwrap();
    let entry = put(&repo, "f", &data(500_000, 1)).await;
    let file = device
        .ctx
        .store
        .dir()
        .join(format!("data/{}.data", entry.blob.to_hex()));
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[300_000] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let mut reader = repo.read(&path("f")).await.unwrap();
    let mut read = Vec::new();
    assert!(reader.read_to_end(&mut read).await.is_err());
    assert!(read == data(500_000, 1)[..read.len()]);
    assert!(reader.range(0..100_000).await.is_ok());
    drop(reader);
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
