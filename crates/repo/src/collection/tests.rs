//! Tests of collections: canonical form, merging, expiry.

use std::collections::BTreeSet;

use bytes::Bytes;
use dht_records::{ContentKey, DeviceId};
use iroh_blobs::format::collection::Collection;
use proptest::prelude::*;
use veilid_core::{BarePublicKey, CRYPTO_KIND_VLD0, PublicKey};

use super::{
    contents::{blobs_of, shard_name},
    *,
};
use crate::EntryPath;

fn repo(seed: u8) -> PublicKey {
    PublicKey::new(CRYPTO_KIND_VLD0, BarePublicKey::new(&[seed; 32]))
}

fn keys() -> EntryKeys {
    EntryKeys::new(&ContentKey::from_bytes([3; 32]), &repo(4))
}

fn version(lamport: u64, device: u8) -> Version {
    Version {
        lamport,
        device: DeviceId([device; 16]),
    }
}

fn file(path: &str, lamport: u64, device: u8) -> Record {
    Record::File(Entry {
        path: EntryPath::parse(path).unwrap(),
        size: lamport.saturating_mul(1000),
        media_type: "text/plain".to_owned(),
        modified: 1_700_000_000,
        plain_hash: [5; 32],
        blob: Hash::new(format!("{path} {lamport} {device}")),
        version: version(lamport, device),
        extension: Vec::new(),
    })
}

fn deleted(path: &str, lamport: u64, device: u8, at: u64) -> Record {
    let path_hash = keys().path_hash(&EntryPath::parse(path).unwrap());
    Record::Deleted(Deleted {
        path_hash,
        at,
        version: version(lamport, device),
        extension: Vec::new(),
    })
}

fn contents(records: impl IntoIterator<Item = Record>) -> Contents {
    let mut contents = Contents::default();
    contents.merge(&keys(), records).unwrap();
    contents
}

fn root(contents: &Contents) -> Hash {
    Hash::new(contents.to_blobs(&keys()).last().unwrap())
}

#[test]
fn records_come_back_and_open_with_their_own_link_alone() {
    let keys = keys();
    let other_key = EntryKeys::new(&ContentKey::from_bytes([4; 32]), &repo(4));
    let other_repo = EntryKeys::new(&ContentKey::from_bytes([3; 32]), &repo(5));
    for record in [file("a/b.txt", 7, 1), deleted("a/b.txt", 8, 1, 99)] {
        let name = keys.seal(&record);
        assert_eq!(keys.open(&name, record.link()).unwrap(), record);
        assert_eq!(name, keys.seal(&record));
        assert_eq!(
            keys.open(&name, Hash::new(b"another file")),
            Err(CollectionError::Sealed)
        );
        for wrong in [&other_key, &other_repo] {
            assert_eq!(
                wrong.open(&name, record.link()),
                Err(CollectionError::Sealed)
            );
            assert_ne!(wrong.seal(&record), name);
        }
    }
    assert_eq!(deleted("x", 1, 1, 1).link(), Hash::EMPTY);
    assert_eq!(format!("{keys:?}"), "EntryKeys([redacted])");
}

#[test]
fn names_of_similar_length_are_equally_long() {
    let keys = keys();
    let len = |path: &str| keys.seal(&file(path, 1, 1)).len();
    assert_eq!(len("a"), len("a somewhat longer name.jpeg"));
}

#[test]
fn what_is_wrong_with_an_entry_is_told_apart() {
    let keys = keys();
    let record = file("a", 1, 1);
    let mut raw = data_encoding::BASE64URL_NOPAD
        .decode(keys.seal(&record).as_bytes())
        .unwrap();
    let open = |raw: &[u8]| keys.open(&data_encoding::BASE64URL_NOPAD.encode(raw), record.link());
    raw[0] = 2;
    assert_eq!(
        open(&raw),
        Err(CollectionError::UnknownVersion { version: 2 })
    );
    raw[0] = 1;
    raw[30] ^= 1;
    assert_eq!(open(&raw), Err(CollectionError::Sealed));
    assert_eq!(open(&raw[..20]), Err(CollectionError::Malformed));
    assert_eq!(open(&[]), Err(CollectionError::Malformed));
    assert_eq!(
        keys.open("not base64!", record.link()),
        Err(CollectionError::Malformed)
    );
    // A link where there is no blob, and no link where there is one.
    let mut no_blob = record.clone();
    if let Record::File(entry) = &mut no_blob {
        entry.blob = Hash::EMPTY;
    }
    assert_eq!(
        keys.open(&keys.seal(&no_blob), Hash::EMPTY),
        Err(CollectionError::Malformed)
    );
    let mut media_type = record.clone();
    if let Record::File(entry) = &mut media_type {
        entry.media_type = "text/plain\n".to_owned();
    }
    assert_eq!(
        keys.open(&keys.seal(&media_type), record.link()),
        Err(CollectionError::Malformed)
    );
}

#[test]
fn what_a_newer_program_added_is_kept() {
    let keys = keys();
    let mut record = file("a", 1, 1);
    if let Record::File(entry) = &mut record {
        entry.extension = b"something new".to_vec();
    }
    let name = keys.seal(&record);
    let opened = keys.open(&name, record.link()).unwrap();
    assert_eq!(opened, record);
    assert_eq!(keys.seal(&opened), name);
}

#[test]
fn the_longest_entry_fits() {
    let keys = keys();
    let mut record = file(
        &format!("{}/{}/x", "a".repeat(255), "b".repeat(254)),
        u64::MAX,
        255,
    );
    if let Record::File(entry) = &mut record {
        entry.media_type = "m".repeat(127);
        entry.extension = vec![1; 1024];
    }
    let name = keys.seal(&record);
    assert_eq!(keys.open(&name, record.link()).unwrap(), record);
    // So that a shard with its share of the greatest number stays below the bound for blobs.
    assert!(
        name.len() * (MAX_ENTRIES / MAX_SHARDS) < 16 * 1024 * 1024 * 3 / 4,
        "{}",
        name.len()
    );
}

#[test]
fn shards_follow_from_the_number_of_entries() {
    for (entries, shards) in [
        (0, 1),
        (64, 1),
        (65, 16),
        (2048, 16),
        (2049, 256),
        (32_768, 256),
        (32_769, 1024),
        (MAX_ENTRIES, 1024),
    ] {
        assert_eq!(shards_for(entries), shards);
    }
    let names = (0..2049).map(|index| format!("file {index}"));
    let mut contents = Contents::default();
    for (index, name) in names.enumerate() {
        contents.merge(&keys(), [file(&name, 1, 1)]).unwrap();
        assert_eq!(contents.len(), index + 1);
        assert_eq!(contents.shards.len(), shards_for(index + 1));
    }
    // Back again, one over the border.
    let path = EntryPath::parse("file 7").unwrap();
    let place = keys().path_hash(&path);
    assert!(contents.file(&keys(), &path).is_some());
    let (mut low, mut high) = (0, 0);
    for (index, shard) in contents.shards.iter().enumerate() {
        for place in shard.records().keys() {
            assert_eq!(usize::from(place[0]), index);
            if index < 128 { low += 1 } else { high += 1 }
        }
    }
    assert!(low > 700 && high > 700, "{low} and {high}");
    assert_eq!(contents.record(&place).unwrap().version(), version(1, 1));
}

#[test]
fn the_root_of_a_large_repo_is_small() {
    let contents = contents((0..2100).map(|index| file(&format!("file {index}"), 1, 1)));
    let blobs = contents.to_blobs(&keys());
    assert_eq!(blobs.len(), 2 * 257);
    let root: usize = blobs[512..].iter().map(|blob| blob.len()).sum();
    assert!(root < 10 * 1024, "{root}");
    // The largest one.
    let links = (0..MAX_SHARDS).map(|index| (shard_name(index, MAX_SHARDS), Hash::EMPTY));
    let root: usize = blobs_of(&links.collect()).iter().map(Bytes::len).sum();
    assert!(root < 40 * 1024, "{root}");
}

#[test]
fn a_large_repo_has_more_shards() {
    let mut large = contents((0..32_768).map(|index| file(&format!("file {index}"), 1, 1)));
    assert_eq!(large.shards.len(), 256);
    large.merge(&keys(), [file("one more", 2, 1)]).unwrap();
    assert_eq!(large.shards.len(), 1024);
    assert_eq!(large.len(), 32_769);
    for (index, shard) in large.shards.iter().enumerate() {
        for place in shard.records().keys() {
            // The first ten bits.
            let first = usize::from(place[0]) << 2 | usize::from(place[1]) >> 6;
            assert_eq!(first, index);
        }
    }
    assert_eq!(shard_name(0x2af, 1024), "1.2af");
    assert_eq!(large.totals(), (32_769, 32_768 * 1000 + 2000));
    assert_eq!(
        large.next_version(DeviceId([9; 16])).unwrap(),
        version(3, 9)
    );
    // Another one changes one shard, and a copy shares the rest.
    let before = large.clone();
    large.merge(&keys(), [file("another", 3, 1)]).unwrap();
    let changed = large
        .shards
        .iter()
        .zip(&before.shards)
        .filter(|(new, old)| !std::sync::Arc::ptr_eq(new, old))
        .count();
    assert_eq!(changed, 1);
    assert_eq!(large.totals(), (32_770, 32_768 * 1000 + 5000));
}

#[test]
fn one_more_file_changes_one_shard_and_the_root() {
    let mut one = contents((0..1000).map(|index| file(&format!("file {index}"), 1, 1)));
    let before: BTreeSet<_> = one.to_blobs(&keys()).into_iter().collect();
    one.merge(&keys(), [file("one more", 2, 1)]).unwrap();
    let after = one.to_blobs(&keys());
    let new: Vec<_> = after
        .iter()
        .filter(|blob| !before.contains(*blob))
        .collect();
    // The shard's two blobs and the root's sequence; the root's metadata does not change.
    assert_eq!(new.len(), 3);
    let bytes: usize = new.iter().map(|blob| blob.len()).sum();
    assert!(bytes < 40_000, "{bytes}");
}

#[test]
fn paths_that_differ_in_case_are_one_file() {
    let contents = contents([file("Photo.JPG", 1, 1), file("photo.jpg", 2, 2)]);
    assert_eq!(contents.len(), 1);
    assert_eq!(contents.files().next().unwrap().path.as_str(), "photo.jpg");
}

#[test]
fn deletions_win_over_what_they_knew_and_lose_to_what_came_after() {
    let mut one = contents([file("a", 1, 1)]);
    one.merge(&keys(), [deleted("a", 2, 2, 10)]).unwrap();
    assert_eq!((one.len(), one.files().count()), (1, 0));
    assert!(!one.merge(&keys(), [file("a", 1, 1)]).unwrap());
    assert_eq!(one.totals(), (0, 0));
    assert!(one.merge(&keys(), [file("a", 3, 1)]).unwrap());
    assert_eq!(one.totals(), (1, 3000));
    assert_eq!(one.next_version(DeviceId([9; 16])).unwrap(), version(4, 9));
}

#[test]
fn old_deletions_are_forgotten_but_versions_go_on() {
    let day = 24 * 60 * 60;
    let mut one = contents([
        file("kept", 1, 1),
        deleted("old", 2, 1, 1000 * day),
        deleted("young", 3, 1, 1100 * day),
        deleted("newest but old", 4, 1, 1000 * day),
    ]);
    assert!(!one.expire(1180 * day));
    assert!(one.expire(1180 * day + 1));
    assert_eq!(one.len(), 3);
    assert_eq!(one.next_version(DeviceId([1; 16])).unwrap().lamport, 5);
    one.merge(&keys(), [file("newer", 5, 1)]).unwrap();
    assert!(one.expire(1180 * day + 1));
    assert_eq!(one.len(), 3);
    assert!(!one.expire(1180 * day + 1));
    // A clock gone mad forgets too early; it never takes a file.
    assert!(one.expire(u64::MAX));
    assert_eq!(one.files().count(), 2);
}

#[test]
fn a_counter_at_its_end_refuses() {
    let one = contents([file("a", u64::MAX, 1)]);
    assert_eq!(
        one.next_version(DeviceId([1; 16])),
        Err(CollectionError::Exhausted)
    );
}

#[tokio::test]
async fn what_is_not_canonical_is_refused() {
    let device = crate::testing::Device::start().await;
    let store = &device.ctx.store;
    let keys = keys();
    let mut records = vec![file("a", 1, 1), file("b", 1, 1), file("c", 1, 1)];
    records.sort_by_key(|record| keys.place(record));
    let pairs: Vec<_> = records
        .iter()
        .map(|record| (keys.seal(record), record.link()))
        .collect();
    let add = async |links: Vec<(String, Hash)>| {
        let mut last = Hash::EMPTY;
        for blob in blobs_of(&links.into_iter().collect::<Collection>()) {
            last = store.add_bytes(blob).temp_tag().await.unwrap().hash();
        }
        last
    };
    let load = async |root: Hash| match Contents::load(store, &keys, root, None).await {
        Ok(contents) => Ok(contents),
        Err(crate::Error::Collection(error)) => Err(error),
        Err(error) => panic!("{error}"),
    };

    let shard = add(pairs.clone()).await;
    let good = add(vec![("1.".to_owned(), shard)]).await;
    let loaded = load(good).await.unwrap();
    assert_eq!(loaded, contents(records));
    assert_eq!(root(&loaded), good);

    let swapped = add(vec![pairs[1].clone(), pairs[0].clone(), pairs[2].clone()]).await;
    let twice = add(vec![pairs[0].clone(), pairs[0].clone()]).await;
    for shard in [swapped, twice] {
        let root = add(vec![("1.".to_owned(), shard)]).await;
        assert_eq!(load(root).await, Err(CollectionError::NotCanonical));
    }
    let exchanged = add(vec![(pairs[0].0.clone(), pairs[1].1)]).await;
    let root = add(vec![("1.".to_owned(), exchanged)]).await;
    assert_eq!(load(root).await, Err(CollectionError::Sealed));

    // Sixteen shards where one is enough; a shard that is not its own.
    let empty = add(vec![]).await;
    let many = (0..16)
        .map(|index| (format!("1.{index:x}"), empty))
        .collect();
    let root = add(many).await;
    assert_eq!(load(root).await, Err(CollectionError::NotCanonical));
    let wrong = (0..16)
        .map(|index| (format!("1.{index:x}"), shard))
        .collect();
    let root = add(wrong).await;
    assert_eq!(load(root).await, Err(CollectionError::NotCanonical));

    for names in [vec!["2."], vec!["1.0"], vec!["1.", "1."], vec![]] {
        let root = add(names
            .iter()
            .map(|name| ((*name).to_owned(), shard))
            .collect())
        .await;
        assert_eq!(
            load(root).await,
            Err(CollectionError::UnknownFormat { hash: root }),
            "{names:?}"
        );
    }
    for junk in [&b""[..], b"junk", &[7; 64]] {
        let hash = store.add_slice(junk).temp_tag().await.unwrap().hash();
        let result = Contents::load(store, &keys, hash, None).await;
        let refused = match &result {
            Err(crate::Error::Collection(error)) => {
                *error == CollectionError::NotACollection { hash }
            }
            // 64 bytes are a sequence, whose first blob is not here.
            Err(crate::Error::NotHere { .. }) => junk.len() == 64,
            _ => false,
        };
        assert!(refused, "{result:?}");
    }
    let huge = store
        .add_bytes(vec![0; 17 << 20])
        .temp_tag()
        .await
        .unwrap()
        .hash();
    assert_eq!(
        load(huge).await,
        Err(CollectionError::TooLarge {
            hash: huge,
            size: 17 << 20
        })
    );
    device.stop().await;
}

#[tokio::test]
async fn contents_come_back_from_the_store_and_unchanged_shards_are_taken_over() {
    let device = crate::testing::Device::start().await;
    let store = &device.ctx.store;
    let keys = keys();
    let mut one = contents((0..300).map(|index| file(&format!("file {index}"), 1, 1)));
    let first = one.store(store, &keys).await.unwrap();
    let loaded = Contents::load(store, &keys, first.root, None)
        .await
        .unwrap();
    assert_eq!(loaded, one);
    assert_eq!(root(&one), first.root);
    one.merge(&keys, [file("one more", 2, 1)]).unwrap();
    let second = one.store(store, &keys).await.unwrap();
    let again = Contents::load(store, &keys, second.root, Some(&loaded))
        .await
        .unwrap();
    assert_eq!(again, one);
    // What is known in memory is what the store finds.
    for contents in [&one, &again] {
        let known = contents.reachable(second.root).unwrap();
        let found = store.reachable(second.root).await.unwrap();
        assert_eq!(known, found);
    }
    let shared = again
        .shards
        .iter()
        .zip(&loaded.shards)
        .filter(|(a, b)| std::sync::Arc::ptr_eq(a, b))
        .count();
    assert_eq!(shared, 15);
    device.stop().await;
}

fn any_record() -> impl Strategy<Value = Record> {
    let path = prop::sample::select(vec!["a", "A", "b", "dir/c", "é", "e\u{301}"]);
    (path, 1u64..5, 1u8..3, any::<bool>(), 0u64..3).prop_map(
        |(path, lamport, device, is_file, at)| {
            if is_file {
                // Equal versions with different files, as a device restored from a backup makes them.
                let mut record = file(path, lamport, device);
                if let Record::File(entry) = &mut record {
                    entry.modified = at;
                }
                record
            } else {
                deleted(path, lamport, device, at)
            }
        },
    )
}

proptest! {
    #[test]
    fn merging_is_commutative_associative_and_idempotent(
        a in prop::collection::vec(any_record(), 0..12),
        b in prop::collection::vec(any_record(), 0..12),
        c in prop::collection::vec(any_record(), 0..12),
    ) {
        let keys = keys();
        let merge = |one: &Contents, other: &Contents| {
            let mut merged = one.clone();
            merged.merge_all(&keys, other).unwrap();
            merged
        };
        let (a, b, c) = (contents(a), contents(b), contents(c));
        let ab = merge(&a, &b);
        prop_assert_eq!(&ab, &merge(&b, &a));
        prop_assert_eq!(root(&ab), root(&merge(&b, &a)));
        let one = merge(&ab, &c);
        prop_assert_eq!(root(&one), root(&merge(&a, &merge(&b, &c))));
        prop_assert_eq!(root(&merge(&one, &one)), root(&one));
        prop_assert_eq!(root(&merge(&one, &a)), root(&one));
    }

    #[test]
    fn the_hash_depends_on_the_state_and_not_on_its_history(
        records in prop::collection::vec(any_record(), 0..30),
        seed in any::<u64>(),
    ) {
        let mut shuffled = records.clone();
        let len = shuffled.len().max(1);
        for index in 0..shuffled.len() {
            let other = (seed.wrapping_mul(index as u64 + 7) % len as u64) as usize;
            shuffled.swap(index, other);
        }
        prop_assert_eq!(root(&contents(records)), root(&contents(shuffled)));
    }

    #[test]
    fn no_name_makes_the_decoder_panic(name in prop::collection::vec(any::<u8>(), 0..300)) {
        let name = data_encoding::BASE64URL_NOPAD.encode(&name);
        prop_assert!(keys().open(&name, Hash::EMPTY).is_err());
    }
}
