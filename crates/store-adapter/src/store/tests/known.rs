//! What the index says of many blobs at once is what each blob's row says.

use bao_tree::{ChunkNum, ChunkRanges};
use proptest::prelude::*;

use super::*;
use crate::index::Index;

const SIZES: [usize; 4] = [10, 40_000, 300_000, 1_500_000];

#[derive(Debug, Clone)]
enum Step {
    /// The first groups of a blob come in.
    Part(usize),
    Add(usize),
    /// As well, and its name keeps it.
    Name(usize),
    Unname(usize),
    Collect,
    Erase,
    Flush,
    Restart,
    /// The disk is full after so many writes, until the next step is done.
    Full(u64),
    /// A row is damaged.
    Damage(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let blob = || 0..SIZES.len();
    let step = prop_oneof![
        4 => blob().prop_map(Step::Part),
        4 => blob().prop_map(Step::Add),
        4 => blob().prop_map(Step::Name),
        2 => blob().prop_map(Step::Unname),
        2 => Just(Step::Collect),
        1 => Just(Step::Erase),
        2 => Just(Step::Flush),
        1 => Just(Step::Restart),
        2 => (0..6u64).prop_map(Step::Full),
        1 => blob().prop_map(Step::Damage),
    ];
    proptest::collection::vec(step, 1..30)
}

fn content(blob: usize) -> Bytes {
    vec![blob as u8 + 1; SIZES[blob]].into()
}

#[test]
fn the_index_says_what_the_rows_say() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let parts: Vec<(ChunkRanges, Vec<u8>)> = runtime.block_on(async {
        let source = VeilidStore::in_memory(StoreOptions::default());
        let source = source.await.unwrap();
        let mut parts = Vec::new();
        for blob in 0..SIZES.len() {
            let tag = source.add_bytes(content(blob)).temp_tag().await.unwrap();
            let ranges = ChunkRanges::from(ChunkNum(0)..ChunkNum(16));
            let encoded = source.export_bao(tag.hash(), ranges.clone());
            parts.push((ranges, encoded.bao_to_vec().await.unwrap()));
        }
        parts
    });
    proptest!(ProptestConfig::with_cases(64), |(steps in steps())| {
        runtime.block_on(run(&steps, &parts));
    });
}

async fn run(steps: &[Step], parts: &[(ChunkRanges, Vec<u8>)]) {
    let mut disk = Disk::default();
    let mut store = disk.open().await;
    let hashes: Vec<Hash> = (0..SIZES.len()).map(|at| Hash::new(content(at))).collect();
    let mut full = false;
    for step in steps {
        // On a full disk any of these may fail.
        match *step {
            Step::Part(at) => {
                let (ranges, bytes) = parts[at].clone();
                let taken = store.import_bao_bytes(hashes[at], ranges, bytes).await;
                assert!(full || taken.is_ok(), "{taken:?}");
            }
            Step::Add(at) => {
                let added = store.add_bytes(content(at)).temp_tag().await;
                assert!(full || added.is_ok(), "{:?}", added.map(|tag| tag.hash()));
            }
            Step::Name(at) => {
                let added = store
                    .add_bytes(content(at))
                    .with_named_tag([b't', at as u8]);
                let added = added.await;
                assert!(full || added.is_ok(), "{added:?}");
            }
            Step::Unname(at) => drop(store.tags().delete([b't', at as u8]).await),
            Step::Collect => drop(store.gc().await),
            Step::Erase => drop(store.erase().await),
            Step::Flush => drop(store.inner.core.tables.flush().await),
            Step::Restart => {
                disk.memory.free_disk();
                store.close().await.unwrap();
                store = disk.open().await;
            }
            Step::Full(writes) => {
                full = true;
                disk.memory.fill_disk_after(writes);
                continue;
            }
            Step::Damage(at) => {
                store.inner.core.tables.flush().await.ok();
                let open = store.inner.core.tables.read().await.unwrap();
                let index = &open.index;
                let row = index.row_of(hashes[at].as_bytes());
                if !matches!(index.entry_at(row.clone()).await, Ok(None)) {
                    disk.memory.free_disk();
                    let damaged = Index::damaged(row);
                    index.table().commit(vec![damaged]).await.unwrap();
                }
                drop(open);
                // What is in memory of it stays whole; the rows do not say so any more.
                store.inner.core.forget_caches();
                // Somebody asks for it.
                store.has(hashes[at]).await.unwrap();
            }
        }
        if full {
            full = false;
            disk.memory.free_disk();
        }
        store.inner.core.forget_caches();
        let rows = store.complete(&hashes).await.unwrap();
        let many = hashes.repeat(256);
        let told = store.complete_by_index(&many).await.unwrap();
        assert_eq!(told, rows.repeat(256), "after {step:?}");
        for (hash, here) in hashes.iter().zip(rows) {
            assert_eq!(store.has(*hash).await.unwrap(), here, "after {step:?}");
        }
    }
    store.close().await.unwrap();
}

/// Rows are not read for it.
#[tokio::test]
async fn what_is_complete_is_known_from_the_names_of_the_rows() {
    let mut disk = Disk::default();
    let mut store = disk.open().await;
    let mut hashes = Vec::new();
    for blob in 0..SIZES.len() {
        let added = store
            .add_bytes(content(blob))
            .with_named_tag([b't', blob as u8]);
        hashes.push(added.await.unwrap().hash);
    }
    for start in ["at first", "after a restart", "under a new key"] {
        store.inner.core.tables.flush().await.unwrap();
        store.inner.core.forget_caches();
        let told = store.complete_by_index(&hashes.repeat(256)).await.unwrap();
        assert!(told.iter().all(|here| *here), "{start}");
        for hash in &hashes {
            let known = store.inner.core.tables.says_complete(hash).await;
            assert!(known.unwrap(), "{start}");
        }
        match start {
            "at first" => {
                store.close().await.unwrap();
                store = disk.open().await;
            }
            _ => store.erase().await.unwrap(),
        }
    }
    store.close().await.unwrap();
}
