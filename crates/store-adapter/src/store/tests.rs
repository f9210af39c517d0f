//! Tests of the store, in a directory each.

use super::*;
use crate::testing::Node;
use bytes::Bytes;
use iroh_blobs::{
    BlobFormat,
    api::{TempTag, blobs::AddBytesOptions},
    format::collection::Collection,
};

mod faults;
mod known;
mod packs;

/// A disk in memory.
#[derive(Default)]
struct Disk {
    memory: MemoryBackend,
    begun: bool,
}

impl Disk {
    async fn open(&mut self) -> VeilidStore {
        let fresh = !std::mem::replace(&mut self.begun, true);
        self.memory = self.memory.restart();
        VeilidStore::over_memory(self.memory.clone(), fresh, StoreOptions::default())
            .await
            .unwrap()
    }
}

async fn open(disk: &mut Disk) -> VeilidStore {
    disk.open().await
}

fn options() -> StoreOptions {
    StoreOptions::default().with_protection(Protection::Insecure)
}

/// Adds bytes and lets go of them, so that only roots keep them.
async fn add(store: &VeilidStore, bytes: impl Into<Bytes>) -> Hash {
    store
        .add_bytes(bytes.into())
        .temp_tag()
        .await
        .unwrap()
        .hash()
}

/// Adds a collection without a name.
async fn collection(store: &VeilidStore, links: Vec<(&str, Hash)>) -> TempTag {
    let mut last = None;
    for (blob, format) in links
        .into_iter()
        .collect::<Collection>()
        .to_blobs()
        .zip([BlobFormat::Raw, BlobFormat::HashSeq])
    {
        let tag = store
            .add_bytes_with_opts(AddBytesOptions { data: blob, format })
            .temp_tag()
            .await
            .unwrap();
        // The metadata is kept by the sequence once that is there; nothing is collected in between here.
        last = Some(tag);
    }
    last.unwrap()
}

/// A root over two shards with two files each, the second of 100 KiB; none of it has a name yet.
async fn tree(store: &VeilidStore, seed: u8) -> (TempTag, Vec<Hash>) {
    let mut shards = Vec::new();
    let mut files = Vec::new();
    for index in 0..2u8 {
        let small = add(store, vec![seed, index, 1]).await;
        let large = add(
            store,
            vec![seed ^ index ^ 0x55; 100 * 1024 + usize::from(seed)],
        )
        .await;
        files.extend([small, large]);
        shards.push(
            collection(store, vec![("a", small), ("b", large)])
                .await
                .hash(),
        );
    }
    (
        collection(store, vec![("0", shards[0]), ("1", shards[1])]).await,
        files,
    )
}

#[tokio::test]
async fn a_named_root_keeps_everything_two_levels_deep() {
    let mut disk = Disk::default();
    let store = open(&mut disk).await;
    let (kept_tag, kept_files) = tree(&store, 1).await;
    let (lost_tag, lost_files) = tree(&store, 2).await;
    let (kept, lost) = (kept_tag.hash(), lost_tag.hash());
    store.set_root("repo/kept", kept).await.unwrap();
    store.set_root("repo/lost", lost).await.unwrap();
    drop((kept_tag, lost_tag));

    // 1 root, 2 shards, their 3 metadata blobs, 4 files; the two shards' names are the same, so is their metadata.
    let reachable = store.reachable(kept).await.unwrap();
    assert_eq!(reachable.len(), 9);
    assert_eq!(reachable[0], kept);
    assert!(kept_files.iter().all(|file| reachable.contains(file)));

    let report = store.gc().await.unwrap();
    assert_eq!(report.removed_blobs, 0);
    let before = store.usage().await.unwrap();

    store.remove_root("repo/lost").await.unwrap();
    let report = store.gc().await.unwrap();
    // The metadata blobs are shared with the root that is kept.
    assert_eq!(report.removed_blobs, 7);
    let after = store.usage().await.unwrap();
    assert_eq!(before.bytes - after.bytes, report.removed_bytes);
    assert!(report.removed_bytes > 2 * 100 * 1024);
    assert_eq!(report.kept_blobs, after.blobs);
    for hash in lost_files.iter().chain([&lost]) {
        assert!(!store.has(*hash).await.unwrap());
    }
    for hash in store.reachable(kept).await.unwrap() {
        assert!(store.has(hash).await.unwrap(), "{hash} was collected");
        store.get_bytes(hash).await.unwrap();
    }
    store.close().await.unwrap();
}

#[tokio::test]
async fn collecting_gives_disk_space_back() {
    let node = Node::start().await;
    let dir = node.store_dir();
    let store = VeilidStore::open(&node.api, &dir, options()).await.unwrap();
    let empty = store.usage().await.unwrap();
    let big = add(&store, vec![7; 4 << 20]).await;
    for seed in 0..100 {
        add(&store, vec![seed; 100_000 + usize::from(seed)]).await;
    }
    let full = store.usage().await.unwrap();
    assert!(full.disk_bytes > empty.disk_bytes + (13 << 20), "{full:?}");
    let report = store.gc().await.unwrap();
    assert_eq!(report.removed_blobs, 101);
    assert_eq!(report.removed_bytes, (4 << 20) + 100 * 100_000 + 4950);
    assert!(!store.has(big).await.unwrap());
    let left = store.usage().await.unwrap();
    assert_eq!((left.blobs, left.bytes), (0, 0));
    assert!(left.disk_bytes < empty.disk_bytes + (2 << 20), "{left:?}");
    store.close().await.unwrap();
    node.stop().await;
}

#[tokio::test]
async fn guards_and_temporary_tags_keep_what_has_no_name() {
    let mut disk = Disk::default();
    let store = open(&mut disk).await;
    let tagged = store
        .add_slice(b"with a temporary tag")
        .temp_tag()
        .await
        .unwrap();
    let (root, files) = tree(&store, 3).await;
    let guard = store.protect(root.hash()).await;
    let second = store.protect(root.hash()).await;
    drop((root, second));
    assert_eq!(store.gc().await.unwrap().removed_blobs, 0);
    drop(guard);
    // Nine blobs of the tree, less the one with the temporary tag, which stays.
    assert_eq!(store.gc().await.unwrap().removed_blobs, 9);
    assert!(!store.has(files[3]).await.unwrap());
    assert!(store.has(tagged.hash()).await.unwrap());
    store.close().await.unwrap();
}

#[tokio::test]
async fn roots_survive_a_restart_and_are_listed_by_prefix() {
    let mut disk = Disk::default();
    let store = open(&mut disk).await;
    let (root, _) = tree(&store, 4).await;
    let root = root.hash();
    for name in ["repo/b", "repo/a", "other"] {
        store.set_root(name, root).await.unwrap();
    }
    store.remove_root("absent").await.unwrap();
    store.close().await.unwrap();
    assert!(matches!(store.root("other").await, Err(Error::Closed)));
    assert!(matches!(store.gc().await, Err(Error::Closed)));
    store.close().await.unwrap();

    let store = open(&mut disk).await;
    assert_eq!(store.root("other").await.unwrap(), Some(root));
    assert_eq!(store.root("absent").await.unwrap(), None);
    let roots = store.roots("repo/").await.unwrap();
    assert_eq!(
        roots,
        [("repo/a".to_owned(), root), ("repo/b".to_owned(), root)]
    );
    assert_eq!(store.gc().await.unwrap().removed_blobs, 0);
    store.close().await.unwrap();
}

#[tokio::test]
async fn missing_children_are_listed_and_do_not_stop_a_collection() {
    let mut disk = Disk::default();
    let store = open(&mut disk).await;
    let absent = Hash::new(b"not here");
    let shard = collection(&store, vec![("a", absent), ("b", Hash::EMPTY)]).await;
    let root = collection(
        &store,
        vec![
            ("0", shard.hash()),
            ("1", Hash::new(b"a shard that is not here")),
        ],
    )
    .await;
    store.set_root("r", root.hash()).await.unwrap();
    let reachable = store.reachable(root.hash()).await.unwrap();
    assert!(reachable.contains(&absent));
    assert!(reachable.contains(&Hash::new(b"a shard that is not here")));
    assert_eq!(store.gc().await.unwrap().removed_blobs, 0);
    assert_eq!(store.reachable(absent).await.unwrap(), [absent]);
    assert_eq!(store.links(absent).await.unwrap(), None);
    store.close().await.unwrap();
}

#[tokio::test]
async fn collections_at_once_and_dropped_ones_do_no_harm() {
    let mut disk = Disk::default();
    let store = open(&mut disk).await;
    let (root, _) = tree(&store, 5).await;
    store.set_root("r", root.hash()).await.unwrap();
    drop(root);
    for _ in 0..20 {
        let (a, b) = tokio::join!(store.gc(), store.gc());
        assert_eq!((a.unwrap().removed_blobs, b.unwrap().removed_blobs), (0, 0));
        // Polled once and dropped: the round may have begun, and ends by itself.
        let mut dropped = Box::pin(store.gc());
        assert!(futures::poll!(&mut dropped).is_pending());
        drop(dropped);
        let added = store.add_slice(b"new").temp_tag().await.unwrap();
        store.set_root("r2", added.hash()).await.unwrap();
        drop(added);
        store.gc().await.unwrap();
        assert!(store.has(Hash::new(b"new")).await.unwrap());
    }
    store.close().await.unwrap();
}

#[tokio::test]
async fn a_directory_belongs_to_one_store_at_a_time() {
    let node = Node::start().await;
    let dir = node.store_dir();
    let store = VeilidStore::open(&node.api, &dir, options()).await.unwrap();
    let again = VeilidStore::open(&node.api, &dir, options()).await;
    assert!(matches!(again, Err(Error::InUse { .. })), "{again:?}");
    store.close().await.unwrap();
    let store = VeilidStore::open(&node.api, &dir, options()).await.unwrap();
    store.close().await.unwrap();
    node.stop().await;
}

#[tokio::test]
async fn foreign_formats_are_told_apart_and_left_alone() {
    let node = Node::start().await;
    let dir = node.store_dir();
    let store = VeilidStore::open(&node.api, &dir, options()).await.unwrap();
    let kept = store.add_slice(b"kept").await.unwrap();
    store.close().await.unwrap();
    drop(store);
    let format = dir.join(FORMAT_FILE);
    let good = std::fs::read(&format).unwrap();
    let open = || VeilidStore::open(&node.api, &dir, options());

    std::fs::write(&format, "save-store 4\nwhatever\n").unwrap();
    let newer = open().await;
    assert!(
        matches!(newer, Err(Error::NewerFormat { version: 4, .. })),
        "{newer:?}"
    );
    std::fs::write(&format, "save-store files 1\n").unwrap();
    let older = open().await;
    assert!(matches!(older, Err(Error::OlderFormat { .. })), "{older:?}");
    std::fs::write(&format, "something else").unwrap();
    let unknown = open().await;
    assert!(
        matches!(unknown, Err(Error::UnknownFormat { .. })),
        "{unknown:?}"
    );
    std::fs::write(&format, "save-store 3\n0123456789abcdef0123456789abcdef\n").unwrap();
    let lost = open().await;
    assert!(matches!(lost, Err(Error::KeyLost)), "{lost:?}");
    std::fs::remove_file(&format).unwrap();
    std::fs::write(dir.join("segments/00"), "x").unwrap();
    let damaged = open().await;
    assert!(matches!(damaged, Err(Error::Damaged { .. })), "{damaged:?}");
    std::fs::remove_file(dir.join("segments/00")).unwrap();

    std::fs::write(&format, good).unwrap();
    let store = open().await.unwrap();
    assert_eq!(store.get_bytes(kept.hash).await.unwrap(), "kept");
    store.close().await.unwrap();
    node.stop().await;
}

#[tokio::test]
async fn what_nothing_claims_goes_at_the_next_opening() {
    let mut disk = Disk::default();
    let store = open(&mut disk).await;
    let big = store.add_bytes(vec![1; 1 << 20]).await.unwrap();
    store.close().await.unwrap();
    disk.memory.restart().create_file("0123").unwrap();
    assert_eq!(disk.memory.restart().list_files().unwrap().len(), 2);
    let store = open(&mut disk).await;
    assert_eq!(disk.memory.list_files().unwrap().len(), 1);
    assert_eq!(store.get_bytes(big.hash).await.unwrap(), vec![1; 1 << 20]);
    store.close().await.unwrap();
}

#[tokio::test]
async fn a_new_key_changes_nothing_but_the_key() {
    let node = Node::start().await;
    let dir = node.store_dir();
    let password = |text: &str| Protection::Password(text.to_owned().into());
    let with = |protection| StoreOptions::default().with_protection(protection);
    let store = VeilidStore::open(&node.api, &dir, with(password("first")))
        .await
        .unwrap();
    let small = store.add_slice(b"small").await.unwrap().hash;
    let big = store.add_bytes(vec![9; 1 << 20]).await.unwrap().hash;
    store.set_root("r", small).await.unwrap();
    store.erase().await.unwrap();
    let more = store.add_slice(b"more").await.unwrap().hash;
    store.rekey(password("second")).await.unwrap();
    store.close().await.unwrap();
    drop(store);

    let wrong = VeilidStore::open(&node.api, &dir, with(password("first"))).await;
    assert!(matches!(wrong, Err(Error::WrongKey)), "{wrong:?}");
    let none = VeilidStore::open(&node.api, &dir, options()).await;
    assert!(matches!(none, Err(Error::PasswordRequired)), "{none:?}");
    let store = VeilidStore::open(&node.api, &dir, with(password("second")))
        .await
        .unwrap();
    assert_eq!(store.get_bytes(small).await.unwrap(), "small");
    assert_eq!(store.get_bytes(more).await.unwrap(), "more");
    assert_eq!(store.get_bytes(big).await.unwrap(), vec![9; 1 << 20]);
    assert_eq!(store.root("r").await.unwrap(), Some(small));
    assert_eq!(store.usage().await.unwrap().blobs, 3);
    assert!(store.verify(|_| {}).await.unwrap().damaged.is_empty());

    store.wipe().await.unwrap();
    assert!(!dir.exists());
    let store = VeilidStore::open(&node.api, &dir, options()).await.unwrap();
    assert!(!store.has(small).await.unwrap());
    store.close().await.unwrap();
    drop(store);
    VeilidStore::destroy(&node.api, &dir).await.unwrap();
    assert!(!dir.exists());
    node.stop().await;
}

#[tokio::test]
async fn a_new_key_that_cannot_be_saved_leaves_the_old_one() {
    let dir = tempfile::tempdir().unwrap();
    let file = |number: u8| {
        let path = dir.path().join(number.to_string());
        std::fs::write(&path, [number; 32]).unwrap();
        Protection::KeyFile(path)
    };
    let with = |protection| StoreOptions::default().with_protection(protection);
    let (old, new) = (file(1), file(2));
    for writes in 0.. {
        let memory = MemoryBackend::default().unguarded();
        let store = VeilidStore::over_memory(memory.clone(), true, with(old.clone()))
            .await
            .unwrap();
        let hash = store.add_slice(b"kept").await.unwrap().hash;
        memory.fill_disk_after(writes);
        let changed = store.rekey(new.clone()).await.is_ok();
        memory.free_disk();
        // Whatever became of it, the store goes on, and what comes in now is there under the key that it has.
        let more = store.add_slice(b"more").await.unwrap().hash;
        store.close().await.unwrap();
        let (right, wrong) = if changed { (&new, &old) } else { (&old, &new) };
        let memory = memory.restart();
        let refused = VeilidStore::over_memory(memory.clone(), false, with(wrong.clone())).await;
        assert!(
            matches!(refused, Err(Error::WrongKey)),
            "{writes}: {refused:?}"
        );
        let memory = memory.restart();
        let store = VeilidStore::over_memory(memory, false, with(right.clone()))
            .await
            .unwrap();
        assert_eq!(store.get_bytes(hash).await.unwrap(), "kept", "{writes}");
        assert_eq!(store.get_bytes(more).await.unwrap(), "more", "{writes}");
        store.close().await.unwrap();
        if changed {
            assert!(writes > 3, "{writes}");
            return;
        }
    }
}

#[tokio::test]
async fn an_index_that_is_gone_is_said_to_be_gone() {
    let mut disk = Disk::default();
    let store = open(&mut disk).await;
    let tag = store.add_bytes(vec![1; 1 << 20]).temp_tag().await.unwrap();
    store.add_slice(b"small").await.unwrap();
    drop(tag);
    store.close().await.unwrap();
    let memory = disk.memory.restart();
    let files = memory.list_files().unwrap().len();
    let names = memory.table_names();
    let index = names.iter().find(|name| name.contains("index")).unwrap();
    memory.delete_table(index).await.unwrap();
    for _ in 0..2 {
        let memory = disk.memory.restart();
        let lost = VeilidStore::over_memory(memory, false, StoreOptions::default()).await;
        assert!(matches!(lost, Err(Error::IndexLost)), "{lost:?}");
    }
    assert_eq!(disk.memory.restart().list_files().unwrap().len(), files);
}

#[tokio::test]
async fn a_file_that_looks_like_a_sequence_is_one_link() {
    let mut disk = Disk::default();
    let store = open(&mut disk).await;
    // A collection of one level: its members are looked at as if they were shards.
    let data: Vec<u8> = (0..640_000u32).map(|i| (i / 7) as u8).collect();
    let tag = store.add_bytes(data.clone()).temp_tag().await.unwrap();
    let file = tag.hash();
    let root = collection(&store, vec![("file", file)]).await;
    store.set_root("r", root.hash()).await.unwrap();
    drop((tag, root));
    assert_eq!(store.gc().await.unwrap().removed_blobs, 0);
    assert_eq!(store.get_bytes(file).await.unwrap(), data);
    store.remove_root("r").await.unwrap();
    assert_eq!(store.gc().await.unwrap().removed_blobs, 3);
    store.close().await.unwrap();
}

#[tokio::test]
async fn names_of_roots_are_bounded() {
    let mut disk = Disk::default();
    let store = open(&mut disk).await;
    let root = Hash::EMPTY;
    assert!(matches!(
        store.set_root("", root).await,
        Err(Error::RootName { len: 0 })
    ));
    let longest = "x".repeat(VeilidStore::MAX_ROOT_NAME);
    store.set_root(&longest, root).await.unwrap();
    assert!(matches!(
        store.set_root(&format!("{longest}y"), root).await,
        Err(Error::RootName { len: 256 })
    ));
    store.close().await.unwrap();
}
