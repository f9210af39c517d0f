//! Tags, temporary tags and batches.

use std::collections::BTreeSet;

use futures::{StreamExt, TryStreamExt};
use iroh_blobs::{
    BlobFormat, Hash, HashAndFormat,
    api::{
        Store,
        tags::{ListOptions, TagInfo},
    },
    store::mem::MemStore,
};
use proptest::{prelude::*, test_runner::TestRunner};
use store_adapter::VeilidStore;

use crate::support::{Kind, Place, noise};

on_each_backend!(
    tags_do_what_irohs_store_does,
    automatic_tags_are_all_different,
    temporary_tags_end_when_they_are_dropped,
    a_batch_ends_with_its_tags,
);

#[derive(Debug, Clone)]
enum Step {
    Set(Vec<u8>, u8, bool),
    Delete(Vec<u8>),
    DeletePrefix(Vec<u8>),
    DeleteRange(Vec<u8>, Vec<u8>),
    DeleteAll,
    Rename(Vec<u8>, Vec<u8>),
    Get(Vec<u8>),
    ListPrefix(Vec<u8>),
    ListRange(Vec<u8>, Vec<u8>),
    ListFormat(bool),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    // Few letters, so that names meet; 0xff has no next prefix.
    let letter = prop_oneof![Just(0), Just(b'a'), Just(b'b'), Just(0xff)];
    let name = proptest::collection::vec(letter, 0..4).boxed();
    let n = move || name.clone();
    let step = prop_oneof![
        8 => (n(), any::<u8>(), any::<bool>()).prop_map(|(a, b, c)| Step::Set(a, b, c)),
        2 => n().prop_map(Step::Delete),
        1 => n().prop_map(Step::DeletePrefix),
        1 => (n(), n()).prop_map(|(a, b)| Step::DeleteRange(a, b)),
        1 => Just(Step::DeleteAll),
        3 => (n(), n()).prop_map(|(a, b)| Step::Rename(a, b)),
        2 => n().prop_map(Step::Get),
        2 => n().prop_map(Step::ListPrefix),
        2 => (n(), n()).prop_map(|(a, b)| Step::ListRange(a, b)),
        1 => any::<bool>().prop_map(Step::ListFormat),
    ];
    proptest::collection::vec(step, 1..30)
}

async fn list(store: &Store, options: ListOptions) -> Vec<TagInfo> {
    let tags = store.tags().list_with_opts(options).await.unwrap();
    tags.try_collect().await.unwrap()
}

/// What a step tells.
async fn take(store: &Store, step: Step) -> String {
    let tags = store.tags();
    match step {
        Step::Set(name, seed, sequence) => {
            let format = match sequence {
                true => BlobFormat::HashSeq,
                false => BlobFormat::Raw,
            };
            let value = HashAndFormat::new(Hash::new([seed]), format);
            tags.set(name, value).await.unwrap();
            String::new()
        }
        Step::Delete(name) => tags.delete(name).await.unwrap().to_string(),
        Step::DeletePrefix(prefix) => tags.delete_prefix(prefix).await.unwrap().to_string(),
        Step::DeleteRange(from, to) => tags.delete_range(from..to).await.unwrap().to_string(),
        Step::DeleteAll => tags.delete_all().await.unwrap().to_string(),
        Step::Rename(from, to) => match tags.rename(from, to).await {
            Ok(()) => String::new(),
            Err(error) => error.kind(),
        },
        Step::Get(name) => format!("{:?}", tags.get(name).await.unwrap()),
        Step::ListPrefix(prefix) => {
            format!("{:?}", list(store, ListOptions::prefix(&prefix)).await)
        }
        Step::ListRange(from, to) => {
            format!("{:?}", list(store, ListOptions::range(from..=to)).await)
        }
        Step::ListFormat(true) => format!("{:?}", list(store, ListOptions::hash_seq()).await),
        Step::ListFormat(false) => format!("{:?}", list(store, ListOptions::raw()).await),
    }
}

async fn tags_do_what_irohs_store_does(store: VeilidStore) {
    let runtime = tokio::runtime::Handle::current();
    tokio::task::spawn_blocking(move || {
        TestRunner::new(ProptestConfig {
            cases: 64,
            failure_persistence: None,
            ..ProptestConfig::default()
        })
        .run(&steps(), |steps| {
            runtime.block_on(async {
                let mem = MemStore::new();
                store.tags().delete_all().await.unwrap();
                for step in steps {
                    let ours = take(&store, step.clone()).await;
                    assert_eq!(ours, take(&mem, step).await);
                    let all = list(&store, ListOptions::all()).await;
                    assert_eq!(all, list(&mem, ListOptions::all()).await);
                }
            });
            Ok(())
        })
        .unwrap();
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn tags_survive_closing() {
    let mut place = Place::veilid().await;
    let store = place.open().await;
    let names: Vec<Vec<u8>> = (0..50_u8)
        .map(|index| vec![index, 0xff - index, 0, b'/'])
        .chain([vec![], vec![b'n'; 2000]])
        .collect();
    for (index, name) in names.iter().enumerate() {
        let value = HashAndFormat::hash_seq(Hash::new(index.to_le_bytes()));
        store.tags().set(name, value).await.unwrap();
    }
    store.tags().delete(&names[3]).await.unwrap();
    store.tags().rename(&names[4], "renamed").await.unwrap();
    let automatic = store
        .tags()
        .create(HashAndFormat::raw(Hash::EMPTY))
        .await
        .unwrap();
    let before = list(&store, ListOptions::all()).await;
    assert_eq!(before.len(), names.len());
    assert!(before.iter().any(|info| info.name == automatic));
    store.close().await.unwrap();
    place.restart_node().await;
    let store = place.open().await;
    assert_eq!(list(&store, ListOptions::all()).await, before);
    store.close().await.unwrap();
    place.end().await;
}

async fn automatic_tags_are_all_different(store: VeilidStore) {
    let value = HashAndFormat::raw(Hash::new(b"x"));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let store = store.clone();
        tasks.spawn(async move { store.tags().create(value).await.unwrap() });
    }
    let mut names = BTreeSet::new();
    while let Some(name) = tasks.join_next().await {
        assert!(names.insert(name.unwrap()));
    }
    let listed = list(&store, ListOptions::all()).await;
    assert_eq!(listed.len(), 50);
    assert!(
        listed
            .iter()
            .all(|info| names.contains(&info.name) && info.hash_and_format() == value)
    );
}

async fn temporary(store: &Store) -> Vec<HashAndFormat> {
    let mut tags: Vec<_> = store.tags().list_temp_tags().await.unwrap().collect().await;
    tags.sort();
    tags.dedup();
    tags
}

async fn temporary_tags_end_when_they_are_dropped(store: VeilidStore) {
    assert_eq!(temporary(&store).await, []);
    let value = HashAndFormat::hash_seq(Hash::new(b"not even here"));
    let first = store.tags().temp_tag(value).await.unwrap();
    let second = store.tags().temp_tag(value).await.unwrap();
    assert_eq!(first.hash_and_format(), value);
    let added = store.add_slice(b"added").temp_tag().await.unwrap();
    let mut expected = vec![value, added.hash_and_format()];
    expected.sort();
    assert_eq!(temporary(&store).await, expected);
    drop(first);
    assert_eq!(temporary(&store).await, expected);
    drop(added);
    assert_eq!(temporary(&store).await, [value]);
    drop(second);
    assert_eq!(temporary(&store).await, []);
    // A tag with a name takes over from the temporary one.
    store.add_slice(b"named").with_named_tag("n").await.unwrap();
    assert_eq!(temporary(&store).await, []);
}

async fn a_batch_ends_with_its_tags(store: VeilidStore) {
    let batch = store.batch().await.unwrap();
    let other = store.batch().await.unwrap();
    let first = batch.add_bytes(noise(1, 100)).await.unwrap();
    let second = batch
        .temp_tag(HashAndFormat::raw(Hash::new(b"second")))
        .await
        .unwrap();
    let third = other
        .temp_tag(HashAndFormat::raw(Hash::new(b"third")))
        .await
        .unwrap();
    assert_eq!(temporary(&store).await.len(), 3);
    // A tag of a batch that is dropped ends at once.
    let ended = first.hash_and_format();
    drop(first);
    assert!(!temporary(&store).await.contains(&ended));
    assert_eq!(temporary(&store).await.len(), 2);
    drop(other);
    drop(batch);
    // The end of a batch is a task of the store; when there is none, it is over.
    store.wait_idle().await.unwrap();
    assert_eq!(temporary(&store).await, []);
    drop((second, third));
}
