//! Nothing on the disk tells what is stored: neither contents, names nor hashes, in none of the ways that hashes are written.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use data_encoding::{BASE32_NOPAD, BASE64, BASE64URL, HEXLOWER, HEXUPPER};
use futures::StreamExt;
use iroh_blobs::{
    Hash,
    api::blobs::EncodedItem,
    format::collection::Collection,
    protocol::{ChunkRanges, ChunkRangesExt},
};

use crate::support::{Place, import_ranges, mem_with, noise};

/// What must not be found, and what it is.
#[derive(Default)]
struct Needles(Vec<(String, Vec<u8>)>);

impl Needles {
    /// Part of a content, as it is.
    fn content(&mut self, what: &str, bytes: &[u8]) {
        assert!(bytes.len() >= 8);
        self.0.push((what.to_owned(), bytes.to_vec()));
    }

    /// A name, as it is and in other letters.
    fn name(&mut self, name: &str) {
        self.content(&format!("the name {name}"), name.as_bytes());
        self.content(
            &format!("the name {name} in hex"),
            HEXLOWER.encode(name.as_bytes()).as_bytes(),
        );
        let wide: Vec<u8> = name.encode_utf16().flat_map(u16::to_le_bytes).collect();
        self.content(&format!("the name {name} in UTF-16"), &wide);
    }

    /// The beginning of a hash, in all the ways to write it.
    fn hash(&mut self, what: &str, hash: &[u8; 32]) {
        let hex = HEXLOWER.encode(hash);
        let base32 = BASE32_NOPAD.encode(hash);
        for (how, text) in [
            ("raw", hash[..12].to_vec()),
            ("raw at its end", hash[20..].to_vec()),
            ("in hex", hex[..24].into()),
            ("in upper hex", HEXUPPER.encode(hash)[..24].into()),
            ("in base32", base32[..20].into()),
            ("in lower base32", base32[..20].to_lowercase().into()),
            ("in base64", BASE64.encode(hash)[..16].into()),
            ("in URL base64", BASE64URL.encode(hash)[..16].into()),
        ] {
            self.0.push((format!("{what} {how}"), text));
        }
    }

    /// What is found in the contents and the names of all files below `dir`.
    fn find(&self, dir: &Path) -> BTreeSet<String> {
        // By their first two bytes, so that each file is read once.
        let mut by_start = vec![Vec::new(); 1 << 16];
        for (what, needle) in &self.0 {
            by_start[usize::from(u16::from_le_bytes([needle[0], needle[1]]))].push((what, needle));
        }
        let mut found = BTreeSet::new();
        for file in files(dir) {
            let name = file.strip_prefix(dir).unwrap().to_str().unwrap().to_owned();
            for bytes in [fs::read(&file).unwrap(), name.clone().into_bytes()] {
                for at in 0..bytes.len().saturating_sub(1) {
                    let start = u16::from_le_bytes([bytes[at], bytes[at + 1]]);
                    for (what, needle) in &by_start[usize::from(start)] {
                        if bytes[at..].starts_with(needle) {
                            found.insert((*what).clone());
                        }
                    }
                }
            }
        }
        found
    }
}

/// All files below a directory.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(files(&path));
        } else {
            all.push(path);
        }
    }
    all
}

/// The same line again and again, so that every part of the blob has it.
fn text(line: &str, size: usize) -> Bytes {
    line.bytes().cycle().take(size).collect::<Vec<u8>>().into()
}

/// The inner hashes of a blob's tree.
async fn inner_hashes(data: &Bytes) -> Vec<[u8; 32]> {
    let (mem, hash) = mem_with(data).await;
    let mut hashes = Vec::new();
    let mut items = std::pin::pin!(mem.export_bao(hash, ChunkRanges::all()).stream());
    while let Some(item) = items.next().await {
        if let EncodedItem::Parent(parent) = item {
            hashes.push(parent.pair.0.into());
            hashes.push(parent.pair.1.into());
        }
    }
    hashes
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_on_the_disk_tells_what_is_stored() {
    let mut place = Place::veilid().await;
    let mut needles = Needles::default();
    let store = place.open().await;

    // Blobs of every kind: one row, a file, a partial row, a partial file.
    let lines = [
        ("a small secret, ", 3000),
        ("a large secret, ", 900_000),
        ("half of a small secret, ", 100_000),
        ("half of a large secret, ", 900_001),
        ("a secret that is deleted, ", 500_000),
        ("a small one that is deleted, ", 5000),
    ];
    for (index, (line, size)) in lines.into_iter().enumerate() {
        let data = text(line, size);
        needles.content(line, line.as_bytes());
        needles.hash(&format!("the hash of {line}"), Hash::new(&data).as_bytes());
        for hash in inner_hashes(&data).await.into_iter().take(40) {
            needles.hash(&format!("an inner hash of {line}"), &hash);
        }
        let tag = format!("tag-of-{index}-in-clear-text");
        needles.name(&tag);
        if line.starts_with("half") {
            let part = ChunkRanges::chunks(20..70) | ChunkRanges::last_chunk();
            let hash = import_ranges(&store, &data, &part).await;
            store.tags().set(&tag, hash).await.unwrap();
        } else {
            store.add_bytes(data).with_named_tag(&tag).await.unwrap();
        }
    }
    let blob = noise(5, 70_000);
    let member = store.add_bytes(blob).temp_tag().await.unwrap();
    needles.hash("a member's hash", member.hash().as_bytes());
    let collection: Collection = [("holiday-photograph.jpeg", member.hash())]
        .into_iter()
        .collect();
    let root = collection.store(&store).await.unwrap();
    needles.hash("the root's hash", root.hash().as_bytes());
    needles.name("holiday-photograph.jpeg");
    store
        .set_root("repository-of-someone", root.hash())
        .await
        .unwrap();
    needles.name("repository-of-someone");
    drop((root, member));

    let none = BTreeSet::new();
    assert_eq!(needles.find(place.path()), none, "while it is open");
    store.tags().delete("tag-of-4-in-clear-text").await.unwrap();
    store.tags().delete("tag-of-5-in-clear-text").await.unwrap();
    store
        .tags()
        .rename("tag-of-0-in-clear-text", "a-tag-of-another-name")
        .await
        .unwrap();
    needles.name("a-tag-of-another-name");
    assert_eq!(store.gc().await.unwrap().removed_blobs, 2);
    assert_eq!(needles.find(place.path()), none, "after a collection");
    store.erase().await.unwrap();
    store.verify(|_| {}).await.unwrap();
    assert_eq!(needles.find(place.path()), none, "under a new key");
    store.close().await.unwrap();
    assert_eq!(needles.find(place.path()), none, "when it is closed");
    place.stop_node().await;
    assert_eq!(needles.find(place.path()), none, "without the node");

    // It would be found if it were there.
    let disk: u64 = files(place.path())
        .iter()
        .map(|file| fs::metadata(file).unwrap().len())
        .sum();
    assert!(disk > 1_000_000, "there are {disk} bytes to look through");
    let control = place.path().join("control");
    for (index, (_, needle)) in needles.0.iter().enumerate() {
        let directory = control.join(index.to_string());
        fs::create_dir_all(&directory).unwrap();
        let mut bytes = noise(index as u64, 1000 + index).to_vec();
        bytes.extend_from_slice(needle);
        bytes.extend_from_slice(b"after");
        fs::write(directory.join("content"), bytes).unwrap();
    }
    let all: BTreeSet<String> = needles.0.iter().map(|(what, _)| what.clone()).collect();
    assert_eq!(needles.find(&control), all);
    fs::remove_dir_all(&control).unwrap();
    fs::create_dir(&control).unwrap();
    let hash = HEXLOWER.encode(Hash::new(text(lines[0].0, lines[0].1)).as_bytes());
    fs::write(control.join(&hash), "the name alone tells it").unwrap();
    assert_eq!(
        needles.find(&control),
        BTreeSet::from([format!("the hash of {} in hex", lines[0].0)])
    );
}
