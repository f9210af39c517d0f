//! iroh's own provider and get code, with this store on either side.

use bytes::Bytes;
use iroh_blobs::{
    Hash, HashAndFormat,
    api::{Store, blobs::Bitfield},
    format::collection::Collection,
    get::GetError,
    protocol::{
        ChunkRanges, ChunkRangesExt, GetManyRequest, GetRequest, ObserveItem, ObserveRequest,
        Request,
    },
    store::mem::MemStore,
    util::{RecvStream, SendStream},
};
use store_adapter::VeilidStore;

use crate::{
    streams::{connect, get_from, get_until},
    support::{GROUP, Place, ROW, SIZES, assert_holds, chunks, import_ranges, noise},
};

on_each_backend!(
    blobs_of_every_size_are_served_and_fetched,
    ranges_are_served_and_fetched,
    a_collection_is_served_and_fetched,
    many_are_served_by_one_request,
    a_cut_transfer_goes_on_where_it_was,
    a_partial_blob_is_served_as_far_as_it_is_here,
    what_is_here_can_be_observed_from_afar,
    what_is_not_here_is_refused,
);

/// From ours to iroh's, and from iroh's to ours.
async fn both_ways(store: &VeilidStore) -> [(Store, Store); 2] {
    let ours: Store = (**store).clone();
    let theirs: Store = (*MemStore::new()).clone();
    [(ours.clone(), theirs.clone()), (theirs, ours)]
}

async fn blobs_of_every_size_are_served_and_fetched(store: VeilidStore) {
    for (way, (from, to)) in both_ways(&store).await.into_iter().enumerate() {
        for (index, size) in SIZES.into_iter().chain([5_000_000]).enumerate() {
            let data = noise((way * 100 + index) as u64, size);
            let tag = from.add_bytes(data.clone()).temp_tag().await.unwrap();
            let stats = to
                .remote()
                .fetch(get_from(&from), tag.hash_and_format())
                .await
                .unwrap();
            assert_eq!(stats.payload_bytes_read, size as u64);
            assert_holds(&to, tag.hash(), &data).await;
            // What is here is not fetched again.
            let stats = to
                .remote()
                .fetch(get_from(&from), tag.hash_and_format())
                .await
                .unwrap();
            assert_eq!(stats.payload_bytes_read, 0);
        }
    }
}

async fn ranges_are_served_and_fetched(store: VeilidStore) {
    for (way, (from, to)) in both_ways(&store).await.into_iter().enumerate() {
        for (index, size) in [60_000, ROW + 1, 3_000_000].into_iter().enumerate() {
            let data = noise((way * 100 + index) as u64, size);
            let tag = from.add_bytes(data.clone()).temp_tag().await.unwrap();
            let hash = tag.hash();
            let some = ChunkRanges::bytes(10_000..10_100) | ChunkRanges::chunks(30..53);
            let request = GetRequest::blob_ranges(hash, some.clone() | ChunkRanges::last_chunk());
            let ranges = some | ChunkRanges::chunks(chunks(size) - 1..);
            to.remote()
                .execute_get(get_from(&from), request)
                .await
                .unwrap();
            assert_eq!(
                to.observe(hash).await.unwrap(),
                Bitfield::new(ranges, size as u64)
            );
            let stats = to.remote().fetch(get_from(&from), hash).await.unwrap();
            assert!(stats.payload_bytes_read < size as u64);
            assert_holds(&to, hash, &data).await;
        }
    }
}

/// A collection of blobs of many sizes.
async fn collection(store: &Store, seed: u64) -> (Hash, Vec<Bytes>) {
    let mut blobs = Vec::new();
    let mut links = Vec::new();
    for (index, size) in [0, 1, 20_000, GROUP, 300_000, 5000, 1_000_000]
        .into_iter()
        .enumerate()
    {
        let data = noise(seed + index as u64, size);
        store.add_bytes(data.clone()).await.unwrap();
        links.push((format!("file {index}"), Hash::new(&data)));
        blobs.push(data);
    }
    let collection: Collection = links.into_iter().collect();
    let tag = collection.store(store).await.unwrap();
    store
        .tags()
        .set("collection", tag.hash_and_format())
        .await
        .unwrap();
    (tag.hash(), blobs)
}

async fn a_collection_is_served_and_fetched(store: VeilidStore) {
    for (way, (from, to)) in both_ways(&store).await.into_iter().enumerate() {
        let (root, blobs) = collection(&from, way as u64 * 100).await;
        let content = HashAndFormat::hash_seq(root);
        to.remote().fetch(get_from(&from), content).await.unwrap();
        assert!(to.remote().local(content).await.unwrap().is_complete());
        for data in blobs {
            assert_holds(&to, Hash::new(&data), &data).await;
        }
        let loaded = Collection::load(root, &to).await.unwrap();
        assert_eq!(loaded.len(), 7);
    }
}

async fn many_are_served_by_one_request(store: VeilidStore) {
    for (way, (from, to)) in both_ways(&store).await.into_iter().enumerate() {
        let (_, blobs) = collection(&from, way as u64 * 100 + 50).await;
        let request: GetManyRequest = blobs.iter().map(Hash::new).collect();
        let (mut recv, mut send) = connect(&from);
        let bytes = postcard::to_stdvec(&Request::GetMany(request.clone())).unwrap();
        send.send_bytes(bytes.into()).await.unwrap();
        drop(send);
        for hash in &request.hashes {
            recv = to
                .import_bao_reader(*hash, ChunkRanges::all(), recv)
                .await
                .unwrap();
        }
        for data in blobs {
            assert_holds(&to, Hash::new(&data), &data).await;
        }
    }
}

async fn a_cut_transfer_goes_on_where_it_was(store: VeilidStore) {
    for (way, (from, to)) in both_ways(&store).await.into_iter().enumerate() {
        for (index, size) in [200_000, 3_000_000].into_iter().enumerate() {
            let data = noise((way * 10 + index) as u64, size);
            let tag = from.add_bytes(data.clone()).temp_tag().await.unwrap();
            let content = tag.hash_and_format();
            let cut = get_until(&from, size as u64 / 2);
            to.remote().fetch(cut, content).await.unwrap_err();
            // What came before the cut may still be on its way in.
            to.wait_idle().await.unwrap();
            let had = to.observe(content.hash).await.unwrap().total_bytes();
            assert!(had > size as u64 / 3 && had < size as u64);
            let stats = to.remote().fetch(get_from(&from), content).await.unwrap();
            assert_eq!(stats.payload_bytes_read, size as u64 - had);
            assert_holds(&to, content.hash, &data).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_transfer_goes_on_after_closing() {
    let place = Place::veilid().await;
    let from = MemStore::new();
    let (root, blobs) = collection(&from, 1).await;
    let content = HashAndFormat::hash_seq(root);
    let mut limit = 30_000;
    let mut cuts = 0;
    loop {
        let store = place.open().await;
        let guard = store.protect(root).await;
        let before = store.remote().local(content).await.unwrap().local_bytes();
        let done = store
            .remote()
            .fetch(get_until(&from, limit), content)
            .await
            .is_ok();
        // What came before the cut may still be on its way in.
        store.wait_idle().await.unwrap();
        let after = store.remote().local(content).await.unwrap().local_bytes();
        assert!(after > before);
        drop(guard);
        store.close().await.unwrap();
        if done {
            break;
        }
        cuts += 1;
        limit *= 2;
    }
    assert!(cuts > 3);
    let store = place.open().await;
    for data in blobs {
        assert_holds(&store, Hash::new(&data), &data).await;
    }
    // And back out of the store that was closed so often.
    let to = MemStore::new();
    to.remote().fetch(get_from(&store), content).await.unwrap();
    assert!(to.remote().local(content).await.unwrap().is_complete());
    store.close().await.unwrap();
    place.end().await;
}

async fn a_partial_blob_is_served_as_far_as_it_is_here(store: VeilidStore) {
    let data = noise(1, 1_000_000);
    // The last group, of which less than 16 chunks exist, and 38 whole ones.
    let part = ChunkRanges::chunks(32..640) | ChunkRanges::chunks(976..);
    let hash = import_ranges(&store, &data, &part).await;
    let to = MemStore::new();
    let request = GetRequest::blob_ranges(hash, part.clone());
    to.remote()
        .execute_get(get_from(&store), request)
        .await
        .unwrap();
    assert_eq!(
        to.observe(hash).await.unwrap(),
        Bitfield::new(part, data.len() as u64)
    );
    // Of the whole there comes what is before the gap, and then an end.
    let to = MemStore::new();
    let request = GetRequest::blob_ranges(hash, ChunkRanges::chunks(32..));
    to.remote()
        .execute_get(get_from(&store), request)
        .await
        .unwrap_err();
    let got = to.observe(hash).await.unwrap().ranges;
    assert!(got.is_subset(&ChunkRanges::chunks(32..640)));
}

async fn what_is_here_can_be_observed_from_afar(store: VeilidStore) {
    let data = noise(1, 700_000);
    let part = ChunkRanges::chunks(5..100);
    let hash = import_ranges(&store, &data, &part).await;
    let (mut recv, mut send) = connect(&store);
    let request = Request::Observe(ObserveRequest::new(hash));
    let bytes = postcard::to_stdvec(&request).unwrap();
    send.send_bytes(bytes.into()).await.unwrap();
    drop(send);
    // Each item is preceded by its length.
    let first = observed(&mut recv).await;
    assert_eq!(first.ranges, part);
    import_ranges(&store, &data, &ChunkRanges::all()).await;
    let mut seen = first.ranges;
    while !ChunkRanges::chunks(0..chunks(data.len())).is_subset(&seen) {
        let item = observed(&mut recv).await;
        assert_eq!(item.size, data.len() as u64);
        seen |= item.ranges;
    }
}

async fn observed(recv: &mut impl RecvStream) -> ObserveItem {
    let mut length = 0;
    for shift in (0..).step_by(7) {
        let mut byte = [0];
        recv.recv_exact(&mut byte).await.unwrap();
        length |= usize::from(byte[0] & 0x7f) << shift;
        if byte[0] & 0x80 == 0 {
            break;
        }
    }
    let bytes = recv.recv_bytes_exact(length).await.unwrap();
    postcard::from_bytes(&bytes).unwrap()
}

async fn what_is_not_here_is_refused(store: VeilidStore) {
    let absent = Hash::new(b"absent");
    let to = MemStore::new();
    let refused = to.remote().fetch(get_from(&store), absent).await;
    let error = refused.unwrap_err();
    assert!(
        matches!(error, GetError::AtBlobHeaderNext { .. }),
        "{error:?}"
    );
    assert!(!to.has(absent).await.unwrap());
}
