//! Repos on several devices: readers, replicas, and two devices of one member.

use super::*;

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
        theirs.publish_tunnel(b"route", None).await,
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
    // What the laptop replaced is there for the phone until it is collected.
    assert_eq!(
        versions(&on_phone).await,
        [
            ("phone".to_owned(), b"p".to_vec()),
            ("shared".to_owned(), b"from the phone".to_vec()),
        ]
    );
    assert_eq!(versions(&on_laptop).await, []);
    // Nor is one of them forgotten when there is more.
    let before = on_phone.held_root().await.unwrap().unwrap().hash;
    bring(&phone.ctx.store, &laptop.ctx.store, before).await;
    put(&on_laptop, "laptop", b"again").await;
    let next = on_laptop.held_root().await.unwrap().unwrap().hash;
    bring(&laptop.ctx.store, &phone.ctx.store, next).await;
    on_phone.adopt(next).await.unwrap();
    let on_phone = Repo::open(&phone.ctx, &access, keypair.key(), Some(keypair.clone()))
        .await
        .unwrap();
    let there = versions(&on_phone).await;
    let there: Vec<_> = there.iter().map(|(path, _)| path.as_str()).collect();
    assert_eq!(there, ["laptop", "phone", "shared"]);
    // What this device changes itself is no such version, nor one that is listed already once more.
    put(&on_phone, "shared", b"changed here").await;
    on_phone.delete(&path("laptop")).await.unwrap();
    put(&on_phone, "laptop", b"again").await;
    assert_eq!(versions(&on_phone).await.len(), 3);
    phone.ctx.store.gc().await.unwrap();
    assert_eq!(versions(&on_phone).await, []);
    check(&on_phone).await;
    assert_eq!(lists(&phone.ctx.store).await, 1);
    let on_phone = Repo::open(&phone.ctx, &access, keypair.key(), Some(keypair.clone()))
        .await
        .unwrap();
    assert_eq!(lists(&phone.ctx.store).await, 0, "there is nothing to list");
    let before = on_phone.held_root().await.unwrap().unwrap().hash;
    bring(&phone.ctx.store, &laptop.ctx.store, before).await;
    on_laptop.adopt(before).await.unwrap();
    put(&on_laptop, "laptop", b"once more").await;
    let last = on_laptop.held_root().await.unwrap().unwrap().hash;
    bring(&laptop.ctx.store, &phone.ctx.store, last).await;
    on_phone.adopt(last).await.unwrap();
    assert_eq!(
        versions(&on_phone).await,
        [("laptop".to_owned(), b"again".to_vec())]
    );
    assert_eq!(lists(&phone.ctx.store).await, 1);
    on_phone.forget().await.unwrap();
    assert_eq!(lists(&phone.ctx.store).await, 0);
    phone.stop().await;
    laptop.stop().await;
}

async fn lists(store: &VeilidStore) -> usize {
    let tags = store.tags().list_prefix("repo-replaced/").await.unwrap();
    tags.count().await
}
