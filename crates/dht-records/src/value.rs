//! The sealed value: the one format in which a subkey's bytes travel. Specified in `docs/formats/records.md`.
//!
//! `version (1) ‖ nonce (24) ‖ check (8) ‖ XChaCha20-Poly1305(counter (8) ‖ length (2) ‖ payload ‖ zeros)`

use std::fmt;

use chacha20poly1305::aead::AeadInOut;
use chacha20poly1305::{KeyInit, XChaCha20Poly1305};
use subtle::ConstantTimeEq;
use veilid_core::OpaqueRecordKey;
use zeroize::Zeroizing;

use crate::contexts::{Purpose, VALUE_DOMAIN};
use crate::error::{Error, Result};
use crate::keys::SubKey;

/// The version that this program writes, and the only one it reads.
pub const VERSION: u8 = 1;
/// Bytes of a sealed value beside its padded plaintext.
pub const OVERHEAD: usize = 1 + NONCE + CHECK + TAG;
/// The largest payload in a subkey of 1,024 bytes, such as those of a group record.
pub const MAX_PAYLOAD_1024: usize = max_payload(1024);
/// The largest payload in a subkey of 32 KiB, such as those of a repo record.
pub const MAX_PAYLOAD_32768: usize = max_payload(32_768);

const NONCE: usize = 24;
const CHECK: usize = 8;
const TAG: usize = 16;
/// Counter and length.
const INNER: usize = 8 + 2;
const BODY: usize = 1 + NONCE + CHECK;
/// Lengths to which a plaintext is padded; after these come the powers of two from 1,024.
const BUCKETS: [usize; 5] = [64, 128, 256, 512, 928];

/// What a value is. Part of the associated data, so that no value passes for one of another kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// Subkey 0 of a group record.
    GroupMetadata,
    /// Subkeys 1 to 1,023 of a group record.
    Slot,
    /// A member's name inside a slot.
    SlotName,
    /// Subkey 0 of a repo record.
    RepoMetadata,
    /// Subkey 1 of a repo record.
    Root,
    /// Subkeys 2 to 31 of a repo record.
    Tunnel,
}

impl Kind {
    /// The name under which the kind stands in the associated data.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Kind::GroupMetadata => "group-metadata",
            Kind::Slot => "slot",
            Kind::SlotName => "slot-name",
            Kind::RepoMetadata => "repo-metadata",
            Kind::Root => "root",
            Kind::Tunnel => "tunnel",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// Where a value belongs: it opens nowhere else.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// The record, by the part of its key that the network sees.
    pub record: &'a OpaqueRecordKey,
    /// The subkey in it.
    pub subkey: u32,
    /// What the value is.
    pub kind: Kind,
}

/// The key of sealed values with what follows from it computed once.
#[derive(Clone)]
pub struct ValueKey {
    seal: SubKey,
    check: SubKey,
}

impl ValueKey {
    /// Prepares a key, such as [`Purpose::LocatorValues`] of a locator key.
    #[must_use]
    pub fn new(seal: SubKey) -> Self {
        let check = seal.derive(Purpose::ValueCheck);
        Self { seal, check }
    }

    fn cipher(&self) -> XChaCha20Poly1305 {
        XChaCha20Poly1305::new(self.seal.as_bytes().into())
    }

    /// The check bytes: the first half depends on key and nonce, the second also on the place.
    ///
    /// Without the key they are as random as the nonce. They only name the reason of a failure; what decides whether a
    /// value opens is the cipher's tag.
    fn check(&self, nonce: &[u8], associated: &[u8]) -> [u8; CHECK] {
        let mut hasher = blake3::Hasher::new_keyed(self.check.as_bytes());
        hasher.update(nonce);
        let key_half = hasher.finalize();
        hasher.update(associated);
        let place_half = hasher.finalize();
        let mut check = [0; CHECK];
        let (left, right) = check.split_at_mut(CHECK / 2);
        left.copy_from_slice(&key_half.as_bytes()[..CHECK / 2]);
        right.copy_from_slice(&place_half.as_bytes()[..CHECK / 2]);
        check
    }
}

impl fmt::Debug for ValueKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ValueKey([redacted])")
    }
}

/// What a sealed value holds.
#[derive(Clone, PartialEq, Eq)]
pub struct Opened {
    /// The writer's counter, at least 1.
    pub counter: u64,
    /// The payload; empty where a value was cleared. Erased on drop.
    pub payload: Zeroizing<Vec<u8>>,
}

impl fmt::Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Opened {{ counter: {}, payload: [redacted] }}",
            self.counter
        )
    }
}

/// The largest payload that fits a subkey of `limit` bytes, 0 where none does.
#[must_use]
pub const fn max_payload(limit: usize) -> usize {
    match largest_bucket(limit) {
        Some(bucket) => bucket - INNER,
        None => 0,
    }
}

/// Seals `payload` for `place` with a fresh nonce.
///
/// # Errors
/// [`Error::TooLarge`] if it exceeds [`max_payload`] of `limit`; [`Error::Randomness`].
pub fn seal(
    key: &ValueKey,
    place: &Place<'_>,
    counter: u64,
    payload: &[u8],
    limit: usize,
) -> Result<Vec<u8>> {
    let mut nonce = [0; NONCE];
    getrandom::fill(&mut nonce).map_err(|_| Error::Randomness)?;
    seal_with_nonce(key, place, counter, payload, limit, nonce)
}

pub(crate) fn seal_with_nonce(
    key: &ValueKey,
    place: &Place<'_>,
    counter: u64,
    payload: &[u8],
    limit: usize,
    nonce: [u8; NONCE],
) -> Result<Vec<u8>> {
    let too_large = || Error::TooLarge {
        len: payload.len(),
        max: max_payload(limit),
    };
    let length = u16::try_from(payload.len()).map_err(|_| too_large())?;
    let padded = bucket(INNER + payload.len()).ok_or_else(too_large)?;
    if padded + OVERHEAD > limit {
        return Err(too_large());
    }
    let associated = associated_data(place);
    // One allocation of the final size, so that no copy of the plaintext stays behind when the vector grows.
    let mut out = Vec::with_capacity(padded + OVERHEAD);
    out.push(VERSION);
    out.extend_from_slice(&nonce);
    out.extend_from_slice(&key.check(&nonce, &associated));
    out.extend_from_slice(&counter.to_be_bytes());
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(payload);
    out.resize(BODY + padded, 0);
    let (_, plaintext) = out.split_at_mut(BODY);
    let tag = key
        .cipher()
        .encrypt_inout_detached(&nonce.into(), &associated, plaintext.into())
        .expect("32 KiB are far below the cipher's limit");
    out.extend_from_slice(&tag);
    Ok(out)
}

/// Opens a sealed value that was found at `place`.
///
/// # Errors
/// [`Error::UnknownVersion`], [`Error::ShortValue`], [`Error::WrongKey`], [`Error::Moved`], [`Error::Damaged`].
pub fn open(key: &ValueKey, place: &Place<'_>, sealed: &[u8]) -> Result<Opened> {
    let short = || Error::ShortValue { len: sealed.len() };
    match sealed.first() {
        None => return Err(short()),
        Some(&VERSION) => {}
        Some(&version) => return Err(Error::UnknownVersion { version }),
    }
    let padded = sealed.len().checked_sub(OVERHEAD).ok_or_else(short)?;
    if bucket(padded) != Some(padded) {
        return Err(short());
    }
    let nonce: [u8; NONCE] = sealed
        .get(1..1 + NONCE)
        .and_then(|n| n.try_into().ok())
        .ok_or_else(short)?;
    let check = sealed.get(1 + NONCE..BODY).ok_or_else(short)?;
    let body = sealed.get(BODY..BODY + padded).ok_or_else(short)?;
    let tag: [u8; TAG] = sealed
        .get(BODY + padded..)
        .and_then(|t| t.try_into().ok())
        .ok_or_else(short)?;

    let associated = associated_data(place);
    let expected = key.check(&nonce, &associated);
    let (found_key, found_place) = check.split_at(CHECK / 2);
    let (expected_key, expected_place) = expected.split_at(CHECK / 2);
    if !bool::from(found_key.ct_eq(expected_key)) {
        return Err(Error::WrongKey);
    }
    if !bool::from(found_place.ct_eq(expected_place)) {
        return Err(Error::Moved);
    }
    let mut plaintext = Zeroizing::new(body.to_vec());
    key.cipher()
        .decrypt_inout_detached(
            &nonce.into(),
            &associated,
            plaintext.as_mut_slice().into(),
            &tag.into(),
        )
        .map_err(|_| Error::Damaged)?;
    parse_plaintext(&plaintext).ok_or(Error::Damaged)
}

fn parse_plaintext(plaintext: &[u8]) -> Option<Opened> {
    let (counter, rest) = plaintext.split_first_chunk::<8>()?;
    let (length, rest) = rest.split_first_chunk::<2>()?;
    let payload = rest.get(..usize::from(u16::from_be_bytes(*length)))?;
    Some(Opened {
        counter: u64::from_be_bytes(*counter),
        payload: Zeroizing::new(payload.to_vec()),
    })
}

/// Domain, version, record, subkey and kind, each behind its length in two bytes.
pub(crate) fn associated_data(place: &Place<'_>) -> Vec<u8> {
    let record: Vec<u8> = place.record.into();
    let subkey = place.subkey.to_be_bytes();
    let parts: [&[u8]; 5] = [
        VALUE_DOMAIN.as_bytes(),
        &[VERSION],
        &record,
        &subkey,
        place.kind.label().as_bytes(),
    ];
    let mut out = Vec::with_capacity(128);
    for part in parts {
        let length = u16::try_from(part.len()).expect("keys and labels are far below 64 KiB");
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(part);
    }
    out
}

/// The padded length of a plaintext of `len` bytes.
const fn bucket(len: usize) -> Option<usize> {
    let mut i = 0;
    while i < BUCKETS.len() {
        if len <= BUCKETS[i] {
            return Some(BUCKETS[i]);
        }
        i += 1;
    }
    len.checked_next_power_of_two()
}

const fn largest_bucket(limit: usize) -> Option<usize> {
    let mut best = None;
    let mut len = 1;
    while let Some(candidate) = bucket(len) {
        if candidate + OVERHEAD > limit {
            break;
        }
        best = Some(candidate);
        len = candidate + 1;
    }
    best
}

#[cfg(test)]
mod tests;
