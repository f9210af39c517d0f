//! What every cache has to keep, run against each.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::testing::{Node, record};

fn row(counter: u64) -> Cached {
    Cached {
        counter,
        sealed: vec![7; 113],
        published: false,
        confirmed: counter - 1,
        seq: None,
        overwritten: Some(3),
        own: true,
        attempted: true,
        confirmed_digest: [5; 16],
        earlier: vec![[8; 16]; 16],
    }
}

/// Run it on an empty cache; it leaves it closed.
pub(crate) async fn conformance(cache: Arc<dyn RecordCache>) {
    let (one, two) = (record(1), record(2));
    assert_eq!(cache.load(&one, 0).await, Ok(None));
    assert_eq!(cache.subkeys(&one).await, Ok(vec![]));
    cache.remove(&one).await.unwrap();

    for subkey in [1023, 0, 7] {
        cache
            .store(&one, subkey, &row(u64::from(subkey) + 1))
            .await
            .unwrap();
    }
    cache.store(&two, 7, &row(99)).await.unwrap();
    assert_eq!(cache.subkeys(&one).await, Ok(vec![0, 7, 1023]));
    assert_eq!(cache.load(&one, 7).await, Ok(Some(row(8))));
    assert_eq!(cache.load(&two, 7).await, Ok(Some(row(99))));
    assert_eq!(cache.load(&two, 0).await, Ok(None));

    let later = Cached {
        published: true,
        seq: Some(u32::MAX - 1),
        sealed: vec![],
        ..row(u64::MAX)
    };
    cache.store(&one, 7, &later).await.unwrap();
    assert_eq!(cache.load(&one, 7).await, Ok(Some(later)));
    assert_eq!(cache.subkeys(&one).await, Ok(vec![0, 7, 1023]));

    cache.remove(&one).await.unwrap();
    assert_eq!(cache.subkeys(&one).await, Ok(vec![]));
    assert_eq!(cache.load(&one, 7).await, Ok(None));
    assert_eq!(cache.load(&two, 7).await, Ok(Some(row(99))));

    cache.close().await;
    cache.close().await;
    assert_eq!(cache.load(&two, 7).await, Err(Error::CacheClosed));
    assert_eq!(cache.subkeys(&two).await, Err(Error::CacheClosed));
    assert_eq!(cache.store(&two, 7, &row(1)).await, Err(Error::CacheClosed));
    assert_eq!(cache.remove(&two).await, Err(Error::CacheClosed));
}

#[tokio::test]
async fn memory_cache_conforms() {
    conformance(Arc::new(MemoryCache::new())).await;
}

#[tokio::test]
async fn table_cache_conforms_and_lasts() {
    let node = Node::start().await;
    conformance(Arc::new(TableCache::open(&node.api).await.unwrap())).await;

    // What the conformance test left, after a restart of the node.
    let node = node.restart().await;
    let cache = TableCache::open(&node.api).await.unwrap();
    assert_eq!(cache.subkeys(&record(1)).await, Ok(vec![]));
    assert_eq!(cache.subkeys(&record(2)).await, Ok(vec![7]));
    assert_eq!(cache.load(&record(2), 7).await, Ok(Some(row(99))));
    cache.close().await;
    node.stop().await;
}

#[tokio::test]
async fn a_damaged_row_is_said_to_be_one() {
    let node = Node::start().await;
    let cache = TableCache::open(&node.api).await.unwrap();
    cache.store(&record(1), 4, &row(1)).await.unwrap();
    cache.close().await;
    let table = node.api.open_table_db("dht-records-v1", 1).await.unwrap();
    let key = table.get_keys(0).await.unwrap().pop().unwrap();
    table.store(0, key, vec![9; 3].into()).await.unwrap();
    drop(table);
    let cache = TableCache::open(&node.api).await.unwrap();
    assert_eq!(cache.load(&record(1), 4).await, Err(Error::CacheRow));
    cache.store(&record(1), 4, &row(2)).await.unwrap();
    assert_eq!(cache.load(&record(1), 4).await, Ok(Some(row(2))));
    cache.close().await;
    node.stop().await;
}

proptest! {
    #[test]
    fn rows_survive_as_bytes(
        (counter, confirmed, published, own, attempted) in any::<(u64, u64, bool, bool, bool)>(),
        (seq, overwritten, confirmed_digest) in any::<(Option<u32>, Option<u64>, Digest)>(),
        earlier in proptest::collection::vec(any::<Digest>(), 0..=16),
        sealed in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        let row = Cached {
            counter, sealed, own, published, attempted, confirmed, confirmed_digest, seq, overwritten, earlier,
        };
        prop_assert_eq!(Cached::from_bytes(&row.to_bytes()), Ok(row));
    }

    #[test]
    fn only_the_newest_earlier_digests_are_kept(count in 17usize..40) {
        let earlier: Vec<Digest> = (0..count).map(|i| [i as u8; 16]).collect();
        let row = Cached { earlier: earlier.clone(), ..row(1) };
        let read = Cached::from_bytes(&row.to_bytes()).unwrap();
        prop_assert_eq!(read.earlier.as_slice(), &earlier[count - 16..]);
    }

    #[test]
    fn any_bytes_make_a_row_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        if let Ok(row) = Cached::from_bytes(&bytes) {
            let again = Cached::from_bytes(&row.to_bytes());
            prop_assert_eq!(again, Ok(row));
        }
    }
}
