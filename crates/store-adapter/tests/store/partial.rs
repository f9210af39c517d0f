//! Blobs of which only parts are there.

use std::{
    num::NonZeroU64,
    sync::atomic::{AtomicU64, Ordering},
};

use bao_tree::ByteRanges;
use bytes::Bytes;
use futures::StreamExt;
use iroh_blobs::{
    Hash,
    api::{
        Store,
        blobs::{Bitfield, BlobStatus},
    },
    protocol::{ChunkRanges, ChunkRangesExt},
    store::mem::MemStore,
};
use proptest::{prelude::*, test_runner::TestRunner};
use store_adapter::VeilidStore;

use crate::support::{
    GROUP, Place, ROW, assert_holds, chunks, encoded, import_ranges, mem_with, noise, whole_groups,
};

on_each_backend!(
    a_single_last_chunk_tells_the_size,
    parts_add_up_as_in_irohs_store,
    parts_come_in_any_order_from_many_tasks,
    observers_see_a_blob_grow_until_it_is_complete,
    an_observer_sees_an_import,
    a_lie_costs_only_itself,
    a_lie_about_the_size_is_outlived,
    an_import_that_ends_early_keeps_what_came,
    a_partial_blob_becomes_complete_by_an_import_of_the_whole,
    many_are_asked_for_at_once,
);

async fn bitfield(store: &Store, hash: Hash) -> Bitfield {
    store.observe(hash).await.unwrap()
}

/// Those ranges of a blob can be read, and are right.
async fn assert_exports(store: &Store, data: &Bytes, ranges: &ChunkRanges) {
    let (hash, right) = encoded(data, ranges).await;
    let exported = store.export_bao(hash, ranges.clone()).bao_to_vec();
    assert!(exported.await.unwrap() == right);
}

async fn a_single_last_chunk_tells_the_size(store: VeilidStore) {
    for (seed, size) in [1025, GROUP + 1, ROW + 1, 1_000_000, (1 << 20) + GROUP]
        .into_iter()
        .enumerate()
    {
        let data = noise(seed as u64, size);
        let hash = import_ranges(&store, &data, &ChunkRanges::last_chunk()).await;
        let last = chunks(size) - 1;
        assert_eq!(
            bitfield(&store, hash).await,
            Bitfield::new(ChunkRanges::chunks(last..), size as u64)
        );
        assert_eq!(
            store.status(hash).await.unwrap(),
            BlobStatus::Partial {
                size: Some(size as u64)
            }
        );
        assert!(!store.has(hash).await.unwrap());
        let tail = ByteRanges::from(last * 1024..);
        assert_eq!(
            store.export_ranges(hash, tail).concatenate().await.unwrap(),
            data[last as usize * 1024..]
        );
        // The rest, by a chunk of its own and then all that lies between.
        for ranges in [ChunkRanges::chunks(0..1), ChunkRanges::chunks(1..last)] {
            import_ranges(&store, &data, &ranges).await;
        }
        assert_holds(&store, hash, &data).await;
    }
}

/// The same state, and the right answers to whoever asks for parts.
async fn assert_same(store: &Store, mem: &MemStore, data: &Bytes, asked: &ChunkRanges) {
    let hash = Hash::new(data);
    let here = bitfield(mem, hash).await;
    assert_eq!(bitfield(store, hash).await, here);
    assert_eq!(
        store.status(hash).await.unwrap(),
        mem.status(hash).await.unwrap()
    );
    let groups = whole_groups(&here.ranges, data.len());
    for ranges in [asked, &here.ranges, &groups] {
        let ours = store.export_bao(hash, ranges.clone()).bao_to_vec().await;
        let theirs = mem.export_bao(hash, ranges.clone()).bao_to_vec().await;
        match ours {
            Ok(bytes) => assert!(bytes == encoded(data, ranges).await.1, "{ranges:?}"),
            Err(error) => assert!(theirs.is_err(), "{ranges:?}: {error:?}"),
        }
    }
}

static NEXT: AtomicU64 = AtomicU64::new(0);

async fn parts_add_up_as_in_irohs_store(store: VeilidStore) {
    let sizes = prop_oneof![2 * 1024..3 * GROUP, ROW - GROUP..ROW + 4 * GROUP];
    let strategy = sizes.prop_flat_map(|size| {
        let piece = (0..chunks(size)).prop_flat_map(move |from| {
            let end = chunks(size);
            (
                Just(from),
                prop_oneof![from + 1..(from + 3).min(end) + 1, from + 1..end + 1],
            )
        });
        let part = proptest::collection::vec(piece, 1..4);
        (
            Just(size),
            proptest::collection::vec(part.clone(), 1..6),
            part,
        )
    });
    let runtime = tokio::runtime::Handle::current();
    tokio::task::spawn_blocking(move || {
        TestRunner::new(ProptestConfig {
            cases: 64,
            failure_persistence: None,
            ..ProptestConfig::default()
        })
        .run(&strategy, |(size, parts, asked)| {
            let union = |pieces: Vec<(u64, u64)>| {
                pieces
                    .into_iter()
                    .fold(ChunkRanges::empty(), |all, (from, to)| {
                        all | ChunkRanges::chunks(from..to)
                    })
            };
            runtime.block_on(async {
                // Every case has a blob of its own.
                let data = noise(NEXT.fetch_add(1, Ordering::Relaxed), size);
                let asked = union(asked);
                let mem = MemStore::new();
                for part in parts {
                    let part = union(part);
                    import_ranges(&store, &data, &part).await;
                    import_ranges(&mem, &data, &part).await;
                    assert_same(&store, &mem, &data, &asked).await;
                }
                import_ranges(&store, &data, &ChunkRanges::all()).await;
                assert_holds(&store, Hash::new(&data), &data).await;
            });
            Ok(())
        })
        .unwrap();
    })
    .await
    .unwrap();
}

async fn parts_come_in_any_order_from_many_tasks(store: VeilidStore) {
    for (seed, size) in [20_000, 5 * GROUP + 1, ROW + 2 * GROUP, 1_000_000]
        .into_iter()
        .enumerate()
    {
        let data = noise(seed as u64, size);
        let (mem, hash) = mem_with(&data).await;
        let n = chunks(size);
        // Pieces of seven chunks, so that several tasks write into one group at a time, dealt out in a mixed order.
        let mut tasks = tokio::task::JoinSet::new();
        for task in 0..5_u64 {
            let (store, mem) = (store.clone(), mem.clone());
            tasks.spawn(async move {
                let count = n.div_ceil(7);
                for index in (task..count).step_by(5) {
                    let piece = (index * 13 + task) % count;
                    // Every task also tries what another one brings.
                    for piece in [index, piece] {
                        let ranges = ChunkRanges::chunks(piece * 7..(piece * 7 + 7).min(n));
                        let bytes = mem
                            .export_bao(hash, ranges.clone())
                            .bao_to_vec()
                            .await
                            .unwrap();
                        store.import_bao_bytes(hash, ranges, bytes).await.unwrap();
                    }
                }
            });
        }
        while let Some(task) = tasks.join_next().await {
            task.unwrap();
        }
        assert_holds(&store, hash, &data).await;
    }
}

async fn observers_see_a_blob_grow_until_it_is_complete(store: VeilidStore) {
    for (seed, size) in [40_000, 1_000_000].into_iter().enumerate() {
        let data = noise(seed as u64, size);
        let hash = Hash::new(&data);
        assert_eq!(store.status(hash).await.unwrap(), BlobStatus::NotFound);
        let mut states = Box::pin(store.observe(hash).stream().await.unwrap());
        assert_eq!(states.next().await.unwrap(), Bitfield::empty());
        assert_eq!(store.list().hashes().await.unwrap().len(), seed);
        let n = chunks(size);
        let mut seen = ChunkRanges::empty();
        for ranges in [
            ChunkRanges::chunks(n / 2..n / 2 + 3),
            ChunkRanges::last_chunk(),
            ChunkRanges::chunks(0..17),
            ChunkRanges::all(),
        ] {
            import_ranges(&store, &data, &ranges).await;
            // Several changes may come as one state, but what was imported shows in some.
            let whole = ChunkRanges::chunks(0..n);
            while !(&ranges & &whole).is_subset(&seen) {
                let state = states.next().await.unwrap();
                assert!(seen.is_subset(&state.ranges), "a state lost something");
                assert_eq!(state.size(), size as u64);
                seen = state.ranges;
            }
        }
        assert_eq!(
            bitfield(&store, hash).await,
            Bitfield::complete(size as u64)
        );
        let complete = store.observe(hash).await_completion().await.unwrap();
        assert!(complete.is_complete());
    }
}

async fn an_observer_sees_an_import(store: VeilidStore) {
    for size in [1, 5000, 2_000_000] {
        let data = noise(size as u64, size);
        let mut states = Box::pin(store.observe(Hash::new(&data)).stream().await.unwrap());
        assert_eq!(states.next().await.unwrap(), Bitfield::empty());
        let tag = store.add_bytes(data).temp_tag().await.unwrap();
        let state = states.next().await.unwrap();
        assert_eq!(state, Bitfield::complete(size as u64));
        drop(tag);
    }
    assert_eq!(
        store.observe(Hash::EMPTY).await.unwrap(),
        Bitfield::complete(0)
    );
}

async fn a_lie_costs_only_itself(store: VeilidStore) {
    for (seed, size) in [100_000, 1_000_000].into_iter().enumerate() {
        let data = noise(seed as u64, size);
        let (hash, bytes) = encoded(&data, &ChunkRanges::all()).await;
        for place in [bytes.len() / 2, bytes.len() - 1] {
            let mut forged = bytes.to_vec();
            forged[place] ^= 1;
            store
                .import_bao_bytes(hash, ChunkRanges::all(), forged)
                .await
                .unwrap_err();
            let had = bitfield(&store, hash).await;
            assert!(!had.is_complete());
            // What came before the lie is there, and right.
            let groups = whole_groups(&had.ranges, size);
            assert!(!groups.is_empty());
            assert_exports(&store, &data, &groups).await;
        }
        import_ranges(&store, &data, &ChunkRanges::all()).await;
        assert_holds(&store, hash, &data).await;
    }
}

async fn a_lie_about_the_size_is_outlived(store: VeilidStore) {
    // As far as both sizes give the same tree above what comes, nobody can tell.
    for (seed, size, lie) in [
        (0, 100_000, 99_000),
        (1, 100_000, 110_000),
        (2, 1_000_000, 1_030_000),
        (3, ROW, ROW + GROUP / 2),
        (4, ROW + GROUP / 2, ROW),
    ] {
        let data = noise(seed, size);
        let first = ChunkRanges::chunks(0..16);
        let (hash, bytes) = encoded(&data, &first).await;
        let mut forged = bytes.to_vec();
        forged[..8].copy_from_slice(&(lie as u64).to_le_bytes());
        let mem = MemStore::new();
        // Taken or not, as by iroh's store.
        let theirs = mem
            .import_bao_bytes(hash, first.clone(), forged.clone())
            .await;
        let ours = store.import_bao_bytes(hash, first.clone(), forged).await;
        assert_eq!(ours.is_ok(), theirs.is_ok());
        assert_eq!(bitfield(&store, hash).await, bitfield(&mem, hash).await);
        import_ranges(&store, &data, &first).await;
        import_ranges(&mem, &data, &first).await;
        assert_eq!(bitfield(&store, hash).await, bitfield(&mem, hash).await);
        // Nobody who verifies what comes is misled by it.
        let served = store.export_bao(hash, first.clone()).bao_to_vec().await;
        let receiver = MemStore::new();
        receiver
            .import_bao_bytes(hash, first.clone(), served.unwrap())
            .await
            .unwrap();
        import_ranges(&store, &data, &ChunkRanges::all()).await;
        assert_holds(&store, hash, &data).await;
    }
    let usage = store.usage().await.unwrap();
    assert_eq!(usage.blobs, 5);
    let sizes = 2 * 100_000 + 1_000_000 + ROW + ROW + GROUP / 2;
    assert_eq!(usage.bytes, sizes as u64);
}

async fn an_import_that_ends_early_keeps_what_came(store: VeilidStore) {
    let data = noise(1, 1_000_000);
    let (hash, bytes) = encoded(&data, &ChunkRanges::all()).await;
    let cut = bytes.slice(..700_000);
    store
        .import_bao_bytes(hash, ChunkRanges::all(), cut)
        .await
        .unwrap_err();
    let had = bitfield(&store, hash).await;
    assert!(had.total_bytes() > 600_000 && !had.is_complete());
    // A handle that is dropped without a single item changes nothing and is no error.
    let size = NonZeroU64::new(data.len() as u64).unwrap();
    let handle = store.import_bao(hash, size, 8).await.unwrap();
    drop(handle.tx);
    handle.rx.await.unwrap().unwrap();
    assert_eq!(bitfield(&store, hash).await, had);
    let missing = ChunkRanges::all() - had.ranges;
    import_ranges(&store, &data, &missing).await;
    assert_holds(&store, hash, &data).await;
}

async fn a_partial_blob_becomes_complete_by_an_import_of_the_whole(store: VeilidStore) {
    for (seed, size) in [30_000, ROW + GROUP, 1_500_000].into_iter().enumerate() {
        let data = noise(seed as u64, size);
        let hash = import_ranges(&store, &data, &ChunkRanges::chunks(3..20)).await;
        let tag = store.add_bytes(data.clone()).temp_tag().await.unwrap();
        assert_eq!(tag.hash(), hash);
        assert_holds(&store, hash, &data).await;
        // What comes once more changes nothing.
        import_ranges(&store, &data, &ChunkRanges::chunks(0..5)).await;
        assert_holds(&store, hash, &data).await;
        assert_eq!(store.usage().await.unwrap().blobs, seed as u64 + 1);
    }
}

async fn many_are_asked_for_at_once(store: VeilidStore) {
    let mut hashes = vec![Hash::EMPTY, Hash::new(b"is nowhere")];
    let mut tags = Vec::new();
    for size in [10, 30_000, 1_500_000] {
        let data = noise(size as u64, size);
        tags.push(store.add_bytes(data).temp_tag().await.unwrap());
        hashes.extend(tags.last().map(|tag| tag.hash()));
        let data = noise(1 + size as u64, size.max(2_000));
        hashes.push(import_ranges(&store, &data, &ChunkRanges::chunks(0..1)).await);
    }
    let told = store.complete(&hashes).await.unwrap();
    assert_eq!(told, [true, false, true, false, true, false, true, false]);
    for (hash, told) in hashes.iter().zip(told) {
        assert_eq!(store.has(*hash).await.unwrap(), told);
    }
    assert_same_by_index(&store, &hashes).await;
    drop(tags);
    store.wait_idle().await.unwrap();
    store.gc().await.unwrap();
    let told = store.complete(&hashes).await.unwrap();
    assert_eq!(told.iter().filter(|told| **told).count(), 1, "{told:?}");
    assert_same_by_index(&store, &hashes).await;
    assert_eq!(store.complete(&[]).await.unwrap(), Vec::<bool>::new());
}

/// The index says the same; it is asked for so many that their rows are not read.
async fn assert_same_by_index(store: &VeilidStore, hashes: &[Hash]) {
    let told = store.complete(hashes).await.unwrap();
    let by_index = store.complete_by_index(&hashes.repeat(256)).await.unwrap();
    assert_eq!(by_index, told.repeat(256));
}

#[tokio::test(flavor = "multi_thread")]
async fn partial_blobs_survive_closing() {
    let mut place = Place::veilid().await;
    let blobs: Vec<Bytes> = [5000, 60_000, ROW, ROW + 1, 2_000_000]
        .into_iter()
        .enumerate()
        .map(|(seed, size)| noise(seed as u64, size))
        .collect();
    let part = |data: &Bytes, turn: u64| {
        let n = chunks(data.len());
        match turn {
            0 => ChunkRanges::chunks(1..2) | ChunkRanges::chunks(n / 2..n / 2 + 5),
            1 => ChunkRanges::last_chunk() | ChunkRanges::chunks(3..n / 3),
            _ => ChunkRanges::all(),
        }
    };
    let hashes: Vec<Hash> = blobs.iter().map(Hash::new).collect();
    let mut before: Vec<Bitfield> = vec![Bitfield::empty(); blobs.len()];
    for turn in 0..3 {
        let store = place.open().await;
        let complete: Vec<bool> = before.iter().map(Bitfield::is_complete).collect();
        assert_eq!(store.complete(&hashes).await.unwrap(), complete);
        let mut after = Vec::new();
        for (index, data) in blobs.iter().enumerate() {
            let hash = Hash::new(data);
            if turn > 0 {
                assert_eq!(bitfield(&store, hash).await, before[index]);
                let groups = whole_groups(&before[index].ranges, data.len());
                assert_exports(&store, data, &groups).await;
            }
            import_ranges(&store, data, &part(data, turn)).await;
            after.push(bitfield(&store, hash).await);
        }
        before = after;
        store.close().await.unwrap();
        if turn == 0 {
            place.restart_node().await;
        }
    }
    let store = place.open().await;
    assert_eq!(store.complete(&hashes).await.unwrap(), [true; 5]);
    for data in &blobs {
        assert_holds(&store, Hash::new(data), data).await;
    }
    store.close().await.unwrap();
    place.end().await;
}
