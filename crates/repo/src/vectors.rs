//! The vectors of `docs/formats/files.md` and `docs/formats/collection.md`, computed again and opened.

use std::collections::BTreeMap;

use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use dht_records::{ContentKey, DeviceId, Purpose, SubKey};
use iroh_blobs::Hash;
use veilid_core::{BarePublicKey, CRYPTO_KIND_VLD0, PublicKey};

use crate::{
    EntryPath,
    collection::{Contents, Deleted, Entry, EntryKeys, Record, Version, shards_for},
    seal::{FileKeys, HEADER, Header, Layout, SealStream, UnsealStream},
};

type Vectors = BTreeMap<String, Vec<u8>>;

/// The lines `name = hex` of all blocks marked `vectors`.
fn documented(doc: &str) -> Vectors {
    let mut vectors = Vectors::new();
    let mut inside = false;
    for line in doc.lines().map(str::trim) {
        if line.starts_with("```") {
            inside = line == "```vectors";
        } else if inside && !line.is_empty() && !line.starts_with('#') {
            let (name, hex) = line.split_once(" = ").expect("name = hex");
            let bytes = HEXLOWER.decode(hex.as_bytes()).expect("lower-case hex");
            assert!(
                vectors.insert(name.to_owned(), bytes).is_none(),
                "{name} stands there twice"
            );
        }
    }
    vectors
}

fn assert_documented(doc: &str, computed: &Vectors) {
    let doc = documented(doc);
    let lines = |vectors: &Vectors| -> Vec<String> {
        vectors
            .iter()
            .map(|(name, bytes)| format!("{name} = {}", HEXLOWER.encode(bytes)))
            .collect()
    };
    assert_eq!(lines(&doc).join("\n"), lines(computed).join("\n"));
}

fn content_key() -> ContentKey {
    ContentKey::from_bytes([0x21; 32])
}

const SALT: [u8; 32] = [0x5a; 32];

/// The bytes of the long file: byte i is i modulo 251.
fn long() -> Vec<u8> {
    (0..131_073usize).map(|index| (index % 251) as u8).collect()
}

async fn seal(plain: &[u8]) -> Vec<u8> {
    let mut stream = SealStream::with_salt(&FileKeys::new(&content_key()), SALT, plain);
    let mut sealed = Vec::new();
    while let Some(piece) = stream.next().await.unwrap() {
        sealed.extend_from_slice(&piece);
    }
    sealed
}

#[tokio::test]
async fn files_are_as_documented() {
    let doc = include_str!("../../../docs/formats/files.md");
    let (empty, text, long) = (
        seal(b"").await,
        seal(b"They said that ...").await,
        seal(&long()).await,
    );
    let material = SubKey::from_bytes(*content_key().as_bytes());
    let mut computed = Vectors::new();
    let mut put = |name: &str, bytes: &[u8]| computed.insert(name.to_owned(), bytes.to_vec());
    put("content_key", content_key().as_bytes());
    put("salt", &SALT);
    put(
        "file_key",
        material.derive_salted(Purpose::FileKey, &SALT).as_bytes(),
    );
    put(
        "commitment",
        material
            .derive_salted(Purpose::FileCommitment, &SALT)
            .as_bytes(),
    );
    put("header", &text[..HEADER]);
    put("associated_data", blake3::hash(&text[..HEADER]).as_bytes());
    put("sealed_empty", &empty);
    put("text", b"They said that ...");
    put("sealed_text", &text);
    put("sealed_long_blake3", blake3::hash(&long).as_bytes());
    put("sealed_long_last_segment", &long[long.len() - 17..]);
    assert_documented(doc, &computed);
    assert_eq!(long.len(), 131_190);
    assert_eq!(Layout::of_sealed(131_190).unwrap().segments(), 3);

    let doc = documented(doc);
    assert_eq!(
        Header::parse(&doc["header"]).unwrap().to_bytes(),
        doc["header"][..]
    );
    let mut stream = UnsealStream::new(&FileKeys::new(&content_key()), &doc["sealed_text"][..]);
    assert_eq!(stream.next().await.unwrap().unwrap(), doc["text"]);
    assert_eq!(stream.next().await.unwrap(), None);
    let mut stream = UnsealStream::new(&FileKeys::new(&content_key()), &doc["sealed_empty"][..]);
    assert_eq!(stream.next().await.unwrap(), None);
}

fn version(lamport: u64) -> Version {
    Version {
        lamport,
        device: DeviceId([0xd1; 16]),
    }
}

#[test]
fn collections_are_as_documented() {
    let doc = include_str!("../../../docs/formats/collection.md");
    let repo = PublicKey::new(CRYPTO_KIND_VLD0, BarePublicKey::new(&[0x31; 32]));
    let keys = EntryKeys::new(&content_key(), &repo);
    let path = EntryPath::parse("Photos/\u{c9}t\u{e9}.JPG").unwrap();
    let file = Record::File(Entry {
        path: path.clone(),
        size: 131_073,
        media_type: "image/jpeg".to_owned(),
        modified: 1_700_000_000,
        plain_hash: *blake3::hash(&long()).as_bytes(),
        blob: Hash::from_bytes([0xb1; 32]),
        version: version(7),
        extension: Vec::new(),
    });
    let gone = EntryPath::parse("gone.txt").unwrap();
    let deleted = Record::Deleted(Deleted {
        path_hash: keys.path_hash(&gone),
        at: 1_700_000_001,
        version: version(8),
        extension: Vec::new(),
    });
    let mut contents = Contents::default();
    contents
        .merge(&keys, [file.clone(), deleted.clone()])
        .unwrap();
    let blobs = contents.to_blobs(&keys);
    let empty = Contents::default().to_blobs(&keys);

    let mut computed = Vectors::new();
    let mut put = |name: &str, bytes: &[u8]| computed.insert(name.to_owned(), bytes.to_vec());
    let unbase64 = |name: &str| BASE64URL_NOPAD.decode(name.as_bytes()).unwrap();
    put("content_key", content_key().as_bytes());
    put("repo", &[b"VLD0".as_slice(), &[0x31; 32]].concat());
    put(
        "entry_key",
        content_key().derive(Purpose::EntryKey).as_bytes(),
    );
    put(
        "nonce_key",
        content_key().derive(Purpose::EntryNonce).as_bytes(),
    );
    put(
        "path_key",
        content_key().derive(Purpose::PathHash).as_bytes(),
    );
    put("path", path.as_str().as_bytes());
    put("path_without_case", path.key().as_bytes());
    put("path_hash", &keys.path_hash(&path));
    put("link", file.link().as_bytes());
    put("file_plaintext", &crate::collection::encode(&file));
    put("file_sealed", &unbase64(&keys.seal(&file)));
    put("deleted_path", gone.as_str().as_bytes());
    put("deleted_path_hash", &keys.path_hash(&gone));
    put("deleted_link", deleted.link().as_bytes());
    put("deleted_plaintext", &crate::collection::encode(&deleted));
    put("deleted_sealed", &unbase64(&keys.seal(&deleted)));
    for (name, blobs) in [("", &blobs), ("empty_", &empty)] {
        for (part, blob) in ["shard_metadata", "shard", "root_metadata", "root"]
            .iter()
            .zip(blobs)
        {
            put(&format!("{name}{part}"), blob);
        }
        put(&format!("{name}root_hash"), Hash::new(&blobs[3]).as_bytes());
    }
    assert_documented(doc, &computed);

    let doc = documented(doc);
    for (kind, record) in [("file", &file), ("deleted", &deleted)] {
        let name = BASE64URL_NOPAD.encode(&doc[&format!("{kind}_sealed")]);
        assert_eq!(keys.open(&name, record.link()).unwrap(), *record);
    }
    assert_eq!(
        (
            shards_for(64),
            shards_for(65),
            shards_for(2048),
            shards_for(2049),
            shards_for(32_768),
            shards_for(32_769)
        ),
        (1, 16, 16, 256, 256, 1024)
    );
}
