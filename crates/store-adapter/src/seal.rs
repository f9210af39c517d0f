//! Sealing what goes to the disk: rows of tables, and segments of files.

use bytes::Bytes;
use chacha20poly1305::{
    KeyInit, XChaCha20Poly1305, XNonce,
    aead::{Aead, Payload},
};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use zeroize::Zeroizing;

use crate::{Error, Result};

/// The plain bytes of a segment: one chunk group of iroh's, so that what arrives verified is written once.
pub(crate) const SEGMENT: usize = 16 * 1024;
const TAG: usize = 16;
/// The sealed bytes of a whole segment; a segment begins at a multiple of this.
pub(crate) const SEALED_SEGMENT: usize = SEGMENT + TAG;

/// Every sealed row begins with it.
pub(crate) const VERSION: u8 = 1;
const NONCE: usize = 24;
/// How much longer a sealed row is than what is in it.
pub(crate) const ROW_OVERHEAD: usize = 1 + NONCE + TAG;

/// A key of this store; gone from memory when it is dropped.
pub(crate) type Key = Zeroizing<[u8; 32]>;

/// What a row is, so that a row of one kind never opens as one of another.
#[derive(Debug, Clone, Copy)]
#[repr(u8)]
pub(crate) enum Kind {
    Entry = 1,
    Tag = 2,
    Meta = 3,
    Header = 4,
    Page = 5,
    State = 6,
}

pub(crate) fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|_| Error::Randomness)?;
    Ok(bytes)
}

pub(crate) fn random_key() -> Result<Key> {
    let mut key = Key::default();
    getrandom::fill(&mut *key).map_err(|_| Error::Randomness)?;
    Ok(key)
}

/// A key for one purpose.
pub(crate) fn derive(context: &str, key: &Key) -> Key {
    Zeroizing::new(blake3::derive_key(context, &**key))
}

/// Seals a value, so that it opens only in its own row. 41 bytes longer than the value.
pub(crate) fn seal_row(key: &Key, kind: Kind, row: &[u8], plain: &[u8]) -> Result<Vec<u8>> {
    let nonce = random::<NONCE>()?;
    let aad = associated(kind, row);
    let sealed = XChaCha20Poly1305::new((&**key).into())
        .encrypt(
            &XNonce::from(nonce),
            Payload {
                msg: plain,
                aad: &aad,
            },
        )
        .map_err(|_| Error::Sealing)?;
    let mut out = Vec::with_capacity(1 + NONCE + sealed.len());
    out.push(VERSION);
    out.extend_from_slice(&nonce);
    out.extend_from_slice(&sealed);
    Ok(out)
}

/// Opens what [`seal_row`] made. `None` if it was not sealed with this key for this row, or was changed since.
pub(crate) fn open_row(
    key: &Key,
    kind: Kind,
    row: &[u8],
    sealed: &[u8],
) -> Option<Zeroizing<Vec<u8>>> {
    let (version, rest) = sealed.split_first()?;
    if *version != VERSION {
        return None;
    }
    let (nonce, sealed) = rest.split_first_chunk::<NONCE>()?;
    let aad = associated(kind, row);
    XChaCha20Poly1305::new((&**key).into())
        .decrypt(
            &XNonce::from(*nonce),
            Payload {
                msg: sealed,
                aad: &aad,
            },
        )
        .ok()
        .map(Zeroizing::new)
}

fn associated(kind: Kind, row: &[u8]) -> Vec<u8> {
    let mut aad = Vec::with_capacity(2 + row.len());
    aad.extend_from_slice(&[VERSION, kind as u8]);
    aad.extend_from_slice(row);
    aad
}

/// Seals the segments of one file.
///
/// The nonce is the number of the segment. Each file has a key of its own, and what stands at a place of a blob follows
/// from the blob's hash, which is verified before anything is sealed: so there are never two plain texts under one nonce,
/// however often a segment is written.
///
/// The bulk of the data goes through this, so it is ring's: the same cipher as that of the rows, at 1.8 times the speed.
pub(crate) struct Segments(LessSafeKey);

impl Segments {
    pub(crate) fn new(blob_key: &Key) -> Result<Self> {
        let key = derive("save-dweb-backend store segments v1", blob_key);
        let key = UnboundKey::new(&CHACHA20_POLY1305, &*key).map_err(|_| Error::Sealing)?;
        Ok(Self(LessSafeKey::new(key)))
    }

    /// Appends the sealed segment to `out`.
    pub(crate) fn seal(&self, index: u64, plain: &[u8], out: &mut Vec<u8>) -> Result<()> {
        let start = out.len();
        out.extend_from_slice(plain);
        let tag = self
            .0
            .seal_in_place_separate_tag(nonce(index), Aad::empty(), &mut out[start..])
            .map_err(|_| Error::Sealing)?;
        out.extend_from_slice(tag.as_ref());
        Ok(())
    }

    /// Opens a segment in place, and gives its plain length. `None` if it is not what was sealed.
    pub(crate) fn open(&self, index: u64, sealed: &mut [u8]) -> Option<usize> {
        let plain = self
            .0
            .open_in_place(nonce(index), Aad::empty(), sealed)
            .ok()?;
        Some(plain.len())
    }
}

/// Where a segment begins in its file.
pub(crate) fn sealed_offset(index: u64) -> u64 {
    index * SEALED_SEGMENT as u64
}

/// How long the sealed segment is.
pub(crate) fn sealed_len(index: u64, size: u64) -> usize {
    segment_len(index, size) + TAG
}

/// How long all segments of a blob are together.
pub(crate) fn sealed_size(size: u64) -> u64 {
    size + size.div_ceil(SEGMENT as u64) * TAG as u64
}

/// The plain bytes in a segment of a blob of `size` bytes.
pub(crate) fn segment_len(index: u64, size: u64) -> usize {
    let rest = size.saturating_sub(index * SEGMENT as u64);
    // At most a segment, so it fits.
    rest.min(SEGMENT as u64) as usize
}

/// Seals a small blob as a whole.
pub(crate) fn seal_small(key: &Key, data: &[u8]) -> Result<Vec<u8>> {
    let segments = Segments::new(key)?;
    let mut sealed = Vec::with_capacity(data.len() + data.len().div_ceil(SEGMENT) * TAG);
    for (index, data) in (0..).zip(data.chunks(SEGMENT)) {
        segments.seal(index, data, &mut sealed)?;
    }
    Ok(sealed)
}

/// Opens what [`seal_small`] made, in its own memory: the groups. `None` if it is not that.
pub(crate) fn open_small(key: &Key, mut sealed: Vec<u8>) -> Option<Vec<Bytes>> {
    let segments = Segments::new(key).ok()?;
    let mut lens = Vec::with_capacity(sealed.len().div_ceil(SEALED_SEGMENT));
    for (index, sealed) in (0..).zip(sealed.chunks_mut(SEALED_SEGMENT)) {
        lens.push(segments.open(index, sealed)?);
    }
    let plain = Bytes::from(sealed);
    let starts = (0..).step_by(SEALED_SEGMENT);
    Some(
        starts
            .zip(lens)
            .map(|(start, len)| plain.slice(start..start + len))
            .collect(),
    )
}

fn nonce(index: u64) -> Nonce {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&index.to_be_bytes());
    Nonce::assume_unique_for_key(nonce)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_opens_in_its_own_place_only() {
        let key = random_key().unwrap();
        let sealed = seal_row(&key, Kind::Entry, b"row", b"plain text").unwrap();
        assert_eq!(
            **open_row(&key, Kind::Entry, b"row", &sealed).unwrap(),
            *b"plain text"
        );
        assert!(!sealed.windows(5).any(|w| w == b"plain"));
        assert!(open_row(&key, Kind::Entry, b"ro", &sealed).is_none());
        assert!(open_row(&key, Kind::Tag, b"row", &sealed).is_none());
        assert!(open_row(&random_key().unwrap(), Kind::Entry, b"row", &sealed).is_none());
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(open_row(&key, Kind::Entry, b"row", &changed).is_none());
            assert!(open_row(&key, Kind::Entry, b"row", &sealed[..at]).is_none());
        }
    }

    #[test]
    fn a_segment_opens_under_its_own_number_only() {
        let key = random_key().unwrap();
        let segments = Segments::new(&key).unwrap();
        let mut sealed = Vec::new();
        segments.seal(7, b"segment", &mut sealed).unwrap();
        assert_eq!(sealed.len(), sealed_len(0, 7));
        let mut again = sealed.clone();
        assert_eq!(segments.open(7, &mut again), Some(7));
        assert_eq!(&again[..7], b"segment");
        assert_eq!(segments.open(8, &mut sealed.clone()), None);
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 0x80;
            assert_eq!(segments.open(7, &mut changed), None);
        }
        assert_eq!(segments.open(7, &mut []), None);
    }
}
