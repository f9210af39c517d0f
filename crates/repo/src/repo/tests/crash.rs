//! What an interruption or damage leaves.

use super::*;

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
async fn a_merge_that_ends_anywhere_lists_what_it_replaces() {
    let (phone, laptop) = (Device::start().await, Device::start().await);
    let access = group();
    let (on_phone, keypair) = Repo::create(&phone.ctx, &access, "r").await.unwrap();
    put(&on_phone, "shared", b"first").await;
    let open = async |device: &Device| {
        Repo::open(&device.ctx, &access, keypair.key(), Some(keypair.clone()))
            .await
            .unwrap()
    };
    let on_laptop = open(&laptop).await;
    let held = async |repo: &Repo| repo.held_root().await.unwrap().unwrap().hash;
    for step in [Step::Root, Step::Pending, Step::Held, Step::Recorded] {
        let on_phone = open(&phone).await;
        let root = held(&on_phone).await;
        bring(&phone.ctx.store, &laptop.ctx.store, root).await;
        on_laptop.adopt(root).await.unwrap();
        let ours = format!("of the phone, {step:?}").into_bytes();
        put(&on_phone, "shared", &ours).await;
        put(&on_phone, "own", &ours).await;
        for _ in 0..3 {
            put(&on_laptop, "shared", step.to_string().as_bytes()).await;
        }
        let theirs = held(&on_laptop).await;
        bring(&laptop.ctx.store, &phone.ctx.store, theirs).await;
        *on_phone.inner.fail_at.lock().unwrap() = Some(step);
        assert!(on_phone.adopt(theirs).await.is_err(), "{step:?}");
        drop(on_phone);

        let on_phone = open(&phone).await;
        let is_listed = async || {
            let version = ("shared".to_owned(), ours.clone());
            versions(&on_phone).await.contains(&version)
        };
        let is_merged = get(&on_phone, "shared").await != ours;
        assert_eq!(is_merged, step != Step::Root, "{step:?}");
        assert_eq!(is_listed().await, is_merged, "{step:?}");
        on_phone.adopt(theirs).await.unwrap();
        check(&on_phone).await;
        assert_eq!(get(&on_phone, "own").await, ours);
        assert!(is_listed().await, "{step:?}");
    }
    phone.stop().await;
    laptop.stop().await;
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
async fn a_device_that_holds_nothing_does_not_empty_the_repo() {
    let device = Device::start().await;
    let access = group();
    let (repo, keys) = Repo::create(&device.ctx, &access, "r").await.unwrap();
    put(&repo, "precious", b"1").await;
    let root = repo.held_root().await.unwrap().unwrap().hash;
    repo.forget().await.unwrap();
    device.ctx.store.gc().await.unwrap();
    // Whoever was about to write into it is told.
    let late = repo
        .write(&path("late"), &b"3"[..], WriteOptions::default())
        .await;
    assert!(matches!(late, Err(Error::Forgotten)));
    assert!(matches!(repo.adopt(root).await, Err(Error::Forgotten)));
    let repo = Repo::open(&device.ctx, &access, keys.key(), Some(keys))
        .await
        .unwrap();
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
async fn damage_on_disk_is_an_error_and_never_other_bytes() {
    let device = Device::start().await;
    let (repo, _) = Repo::create(&device.ctx, &group(), "r").await.unwrap();
    put(&repo, "f", &data(500_000, 1)).await;
    // The only blob that is large enough for a file.
    let mut files = std::fs::read_dir(device.ctx.store.dir().join("segments"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        // Not a pack, of small blobs.
        .filter(|path| path.extension().is_none());
    let file = files.next().unwrap();
    assert!(files.next().is_none());
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
