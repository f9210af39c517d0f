//! The process that is killed: checks what the last one left, then works until its end.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    io::Read,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures::StreamExt;
use iroh_blobs::{
    Hash,
    api::blobs::BlobStatus,
    protocol::{ChunkRanges, ChunkRangesExt},
    store::mem::MemStore,
};
use store_adapter::VeilidStore;

use crate::{
    DIR,
    facts::{Facts, Value, Word},
    support::{Node, ROW, Random, chunks, import_ranges, noise, options, whole_groups},
};

/// The seed of what this process does.
pub(crate) const SEED: &str = "SAVE_STORE_TEST_SEED";
/// Tasks that import, tag and delete, each with names of its own.
const WORKERS: u64 = 3;
/// Names of each.
const NAMES: u64 = 7;
/// With more blobs, a collection may take longer than a process lives; then none would ever end, and each look at everything take longer.
const MANY: u64 = 300;

pub(crate) fn run() {
    let dir = PathBuf::from(env::var_os(DIR).unwrap());
    let seed = env::var(SEED).unwrap().parse().unwrap();
    let mut facts = String::new();
    std::io::stdin().read_to_string(&mut facts).unwrap();
    let facts = Facts::read(&facts);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let node = Node::start(&dir.join("node"), "crash").await;
        let dir = dir.join("store");
        let store = VeilidStore::open(&node.api, &dir, options()).await.unwrap();
        let tags = check(&store, &dir, &facts).await;
        for name in facts.tags.keys() {
            tell(Word::Set(name.clone(), tags.get(name).copied()));
        }
        resume(&store, &facts, &tags).await;
        if store.usage().await.unwrap().blobs > MANY {
            collect_once(&store).await;
        }
        tell(Word::Ready);
        work(store, tags, seed).await;
    });
}

/// What is left at the end, without being killed.
pub(crate) fn finish(dir: &Path, facts: &Facts) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let node = Node::start(&dir.join("node"), "crash").await;
        let dir = dir.join("store");
        let store = VeilidStore::open(&node.api, &dir, options()).await.unwrap();
        check(&store, &dir, facts).await;
        assert_eq!(store.verify(|_| {}).await.unwrap().damaged, []);
        store.tags().delete_all().await.unwrap();
        store.gc().await.unwrap();
        assert_eq!(store.list().hashes().await.unwrap(), []);
        assert_eq!(blob_files(&dir), 0);
        // Of the packs, the one is left to which the next blob goes.
        let left = std::fs::read_dir(dir.join("segments")).unwrap();
        let left = left.map(|file| file.unwrap().metadata().unwrap().len());
        assert!(left.sum::<u64>() < 2 << 20);
        store.close().await.unwrap();
        node.stop().await;
    });
}

fn tell(word: Word) {
    // One line is written at once, so that a kill never cuts it.
    println!("{}", word.line());
}

/// What a seed stands for: small blobs mostly.
fn blob(seed: u64) -> Bytes {
    let mut random = Random::new(seed);
    let size = match random.below(10) {
        0..=5 => random.below(30_000),
        6..=7 => random.below(ROW as u64 + 1),
        _ => ROW as u64 + 1 + random.below(1_500_000),
    };
    noise(seed, size.max(1) as usize)
}

/// Files of one blob each.
fn blob_files(dir: &Path) -> usize {
    let files = std::fs::read_dir(dir.join("segments")).unwrap();
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    names.filter(|name| !name.ends_with(".pack")).count()
}

/// Everything that the facts claim, and everything that the store claims.
async fn check(store: &VeilidStore, dir: &Path, facts: &Facts) -> BTreeMap<String, u64> {
    let (mut bytes, mut files) = (0, 0);
    let listed = store.list().hashes().await.unwrap();
    for hash in &listed {
        let observed = store.observe(*hash).await.unwrap();
        bytes += observed.total_bytes();
        files += usize::from(observed.size() > ROW as u64);
        match store.status(*hash).await.unwrap() {
            BlobStatus::Complete { size } => {
                let bytes = store.get_bytes(*hash).await.unwrap();
                assert_eq!(bytes.len() as u64, size);
                assert_eq!(Hash::new(&bytes), *hash, "wrong bytes");
            }
            BlobStatus::Partial { .. } => {
                // The receiver verifies what it gets.
                let size = observed.size() as usize;
                let groups = whole_groups(&observed.ranges, size);
                let bao = store.export_bao(*hash, groups.clone());
                let bao = bao.bao_to_vec().await.unwrap();
                let mem = MemStore::new();
                mem.import_bao_bytes(*hash, groups, bao).await.unwrap();
            }
            BlobStatus::NotFound => panic!("{hash} is listed and not found"),
        }
    }
    assert_eq!(
        blob_files(dir),
        files,
        "files in the directory, and files that are known"
    );
    let usage = store.usage().await.unwrap();
    assert_eq!((usage.blobs, usage.bytes), (listed.len() as u64, bytes));

    let seeds: BTreeMap<Hash, u64> = facts
        .tags
        .values()
        .flatten()
        .flatten()
        .map(|seed| (Hash::new(blob(*seed)), *seed))
        .collect();
    let mut tags = BTreeMap::new();
    let mut found = Box::pin(store.tags().list().await.unwrap());
    while let Some(info) = found.next().await {
        let info = info.unwrap();
        let name = String::from_utf8(info.name.as_ref().to_vec()).unwrap();
        tags.insert(name, seeds[&info.hash]);
    }
    let names: BTreeSet<&String> = facts.tags.keys().chain(tags.keys()).collect();
    for name in names {
        let value: Value = tags.get(name).copied();
        let possible = facts.tags.get(name).cloned().unwrap_or_default();
        assert!(
            possible.contains(&value),
            "{name} is {value:?}, not {possible:?}"
        );
    }
    for seed in facts
        .kept
        .iter()
        .chain(tags.values().filter(|seed| facts.added.contains(*seed)))
    {
        let hash = Hash::new(blob(*seed));
        assert!(store.has(hash).await.unwrap(), "blob {seed} is lost");
    }
    for seed in tags.values() {
        let Some(parts) = facts.parts.get(seed) else {
            continue;
        };
        let data = blob(*seed);
        let here = store.observe(Hash::new(&data)).await.unwrap().ranges;
        for (from, to) in parts {
            let part = ChunkRanges::chunks(*from..*to);
            assert!(
                part.is_subset(&here),
                "chunks {from} to {to} of blob {seed} are lost"
            );
        }
    }
    for hash in &facts.gone {
        let status = store.status(*hash).await.unwrap();
        assert_eq!(status, BlobStatus::NotFound, "{hash} was removed");
    }
    tags
}

/// Completes some of the partial blobs.
async fn resume(store: &VeilidStore, facts: &Facts, tags: &BTreeMap<String, u64>) {
    let partial = tags.values().filter(|seed| facts.parts.contains_key(*seed));
    for seed in partial.take(2) {
        let data = blob(*seed);
        let hash = Hash::new(&data);
        let here = store.observe(hash).await.unwrap().ranges;
        import_ranges(store, &data, &(ChunkRanges::all() - here)).await;
        assert_eq!(store.get_bytes(hash).await.unwrap(), data);
        tell(Word::Added(*seed));
    }
}

async fn work(store: VeilidStore, tags: BTreeMap<String, u64>, seed: u64) {
    let store = Arc::new(store);
    let mut tasks = tokio::task::JoinSet::new();
    for worker in 0..WORKERS {
        let own = format!("{worker}/");
        let tags: BTreeMap<String, u64> = tags
            .iter()
            .filter(|(name, _)| name.starts_with(&own))
            .map(|(name, seed)| (name.clone(), *seed))
            .collect();
        tasks.spawn(import(store.clone(), own, tags, Random::new(seed ^ worker)));
    }
    tasks.spawn(collect(store, Random::new(!seed)));
    // None of them ends, unless it fails.
    if let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
}

async fn import(
    store: Arc<VeilidStore>,
    own: String,
    mut tags: BTreeMap<String, u64>,
    mut random: Random,
) {
    loop {
        let name = format!("{own}{}", random.below(NAMES));
        match random.below(10) {
            0..=4 => {
                let seed = random.next();
                let tag = store.add_bytes(blob(seed)).temp_tag().await.unwrap();
                tell(Word::Added(seed));
                set(&store, &mut tags, name, seed).await;
                drop(tag);
            }
            5 => {
                let seeds: Vec<u64> = (0..8).map(|_| random.next()).collect();
                let adding = seeds.iter().map(|seed| {
                    let store = store.clone();
                    async move {
                        let tag = store.add_bytes(blob(*seed)).temp_tag().await.unwrap();
                        tell(Word::Added(*seed));
                        tag
                    }
                });
                let tag = futures::future::join_all(adding).await.swap_remove(0);
                set(&store, &mut tags, name, seeds[0]).await;
                drop(tag);
            }
            6..=7 => {
                let seed = random.next();
                let data = blob(seed);
                set(&store, &mut tags, name, seed).await;
                for _ in 0..random.below(4) + 1 {
                    let from = random.below(chunks(data.len()));
                    let to = from + 1 + random.below(200);
                    let to = to.min(chunks(data.len()));
                    import_ranges(&store, &data, &ChunkRanges::chunks(from..to)).await;
                    tell(Word::Part(seed, from, to));
                }
            }
            _ => {
                if tags.remove(&name).is_some() {
                    tell(Word::Setting(name.clone(), None));
                    store.tags().delete(&name).await.unwrap();
                    tell(Word::Set(name, None));
                }
            }
        }
    }
}

async fn set(store: &VeilidStore, tags: &mut BTreeMap<String, u64>, name: String, seed: u64) {
    tell(Word::Setting(name.clone(), Some(seed)));
    let hash = Hash::new(blob(seed));
    store.tags().set(&name, hash).await.unwrap();
    tell(Word::Set(name.clone(), Some(seed)));
    tags.insert(name, seed);
}

async fn collect(store: Arc<VeilidStore>, mut random: Random) {
    loop {
        // So that blobs without a tag live for a while.
        tokio::time::sleep(Duration::from_millis(random.below(60))).await;
        match random.below(4) {
            0 => store.erase().await.unwrap(),
            1 => store.sync_db().await.unwrap(),
            _ => collect_once(&store).await,
        }
    }
}

async fn collect_once(store: &VeilidStore) {
    let before = listed(store).await;
    tell(Word::Collecting);
    store.gc().await.unwrap();
    let after = listed(store).await;
    // No seed comes twice, so what is gone stays so.
    for hash in before.difference(&after) {
        tell(Word::Gone(*hash));
    }
    tell(Word::Collected);
}

async fn listed(store: &VeilidStore) -> BTreeSet<Hash> {
    store.list().hashes().await.unwrap().into_iter().collect()
}
