//! C2SP's published vectors for age's STREAM, against the core that sealed files are made with.
//!
//! age derives the payload's key from the file key and a nonce behind the header, and has no associated data; from there on
//! the construction is the same.

use std::{collections::BTreeMap, io::Read, path::Path};

use hkdf::Hkdf;
use sha2::{Digest, Sha256};

use super::{SealError, Sealer, SegmentCipher, Unsealer};

struct Vector {
    name: String,
    fields: BTreeMap<String, String>,
    file: Vec<u8>,
}

fn vectors() -> Vec<Vector> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/age");
    let mut vectors: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_none())
        .map(|path| {
            let bytes = std::fs::read(&path).unwrap();
            let end = bytes.windows(2).position(|pair| pair == b"\n\n").unwrap();
            let fields: BTreeMap<_, _> = str::from_utf8(&bytes[..end])
                .unwrap()
                .lines()
                .map(|line| line.split_once(": ").unwrap())
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .collect();
            let mut file = bytes[end + 2..].to_vec();
            if fields.get("compressed").is_some_and(|how| how == "zlib") {
                let compressed = std::mem::take(&mut file);
                flate2::read::ZlibDecoder::new(&compressed[..])
                    .read_to_end(&mut file)
                    .unwrap();
            }
            Vector {
                name: path.file_name().unwrap().to_str().unwrap().to_owned(),
                fields,
                file,
            }
        })
        .collect();
    vectors.sort_by(|a, b| a.name.cmp(&b.name));
    vectors
}

impl Vector {
    /// What stands behind age's own header: the line that begins with `---`.
    fn payload(&self) -> &[u8] {
        let mac = self
            .file
            .windows(4)
            .position(|bytes| bytes == b"\n---")
            .unwrap()
            + 1;
        let end = self.file[mac..]
            .iter()
            .position(|byte| *byte == b'\n')
            .unwrap();
        &self.file[mac + end + 1..]
    }

    /// None if the nonce is not whole, which in age counts as a part of the header.
    fn split(&self) -> Option<(SegmentCipher, &[u8])> {
        let (nonce, stream) = self.payload().split_first_chunk::<16>()?;
        let file_key = data_encoding::HEXLOWER
            .decode(self.fields["file key"].as_bytes())
            .unwrap();
        let mut key = [0; 32];
        Hkdf::<Sha256>::new(Some(nonce), &file_key)
            .expand(b"payload", &mut key)
            .unwrap();
        Some((SegmentCipher::new(&key, b""), stream))
    }
}

fn unseal(cipher: SegmentCipher, stream: &[u8], piece: usize) -> (Vec<u8>, Result<(), SealError>) {
    let mut released = Vec::new();
    let mut unsealer = Unsealer::new(cipher);
    for bytes in stream.chunks(piece) {
        if let Err(error) = unsealer.update(bytes, &mut released) {
            return (released, Err(error));
        }
    }
    let result = unsealer.finish(&mut released);
    (released, result)
}

#[test]
fn every_vector_gives_what_it_should() {
    let (mut good, mut bad, mut without_nonce) = (0, 0, 0);
    for vector in vectors() {
        let name = &vector.name;
        let Some((_, stream)) = vector.split() else {
            assert_eq!(vector.fields["expect"], "header failure", "{name}");
            without_nonce += 1;
            continue;
        };
        // The way in which the bytes come in does not matter; the long ones would take long in small pieces.
        let pieces = if stream.len() > 1 << 20 {
            &[1 << 20][..]
        } else {
            &[1 << 20, 40_000, 61]
        };
        for &piece in pieces {
            let (cipher, _) = vector.split().unwrap();
            let (released, result) = unseal(cipher, stream, piece);
            let hash = data_encoding::HEXLOWER.encode(&Sha256::digest(&released));
            match vector.fields["expect"].as_str() {
                "success" => assert_eq!(result, Ok(()), "{name}"),
                "payload failure" => assert!(result.is_err(), "{name} was accepted"),
                other => panic!("{name} expects {other}"),
            }
            assert_eq!(
                hash,
                vector.fields["payload"],
                "{name} released {} bytes",
                released.len()
            );
        }
        if vector.fields["expect"] == "success" {
            // And the other way: sealing what was in it gives the same bytes.
            let (cipher, _) = vector.split().unwrap();
            let (plain, _) = unseal(cipher, stream, 1 << 20);
            let (cipher, _) = vector.split().unwrap();
            let mut sealer = Sealer::new(cipher);
            let mut sealed = Vec::new();
            for bytes in plain.chunks(50_001) {
                sealer.update(bytes, &mut sealed).unwrap();
            }
            sealer.finish(&mut sealed).unwrap();
            assert!(sealed == stream, "{name} was sealed to something else");
            good += 1;
        } else {
            bad += 1;
        }
    }
    assert_eq!((good, bad, without_nonce), (8, 18, 2));
}
