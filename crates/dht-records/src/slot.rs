//! A member's slot in the group record, signed by the member's repo.

use std::fmt;

use serde::{Deserialize, Serialize};
use veilid_core::{KeyPair, OpaqueRecordKey, PublicKey, Signature, VeilidAPI};

use crate::bytes_in_json::{base64, hex32};
use crate::contexts::Purpose;
use crate::error::{Error, Result};
use crate::value::{self, Kind, Place, ValueKey};

/// How many slots a group has.
pub const SLOTS: u32 = 1023;
/// The longest member name in a slot, in bytes.
pub const MAX_NAME: usize = value::max_payload(256 + value::OVERHEAD);
/// Bytes of the longest sealed name.
const SEALED_NAME: usize = 256 + value::OVERHEAD;

/// The place of a member in a group: 1 to 1,023.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotIndex(u32);

impl SlotIndex {
    /// Takes an index.
    ///
    /// # Errors
    /// [`Error::InvalidSlotIndex`] outside 1 to 1,023.
    pub fn new(index: u32) -> Result<Self> {
        match index {
            1..=SLOTS => Ok(Self(index)),
            other => Err(Error::InvalidSlotIndex(other)),
        }
    }

    /// The index where a repo's search for a slot begins: `hash(repo key) mod 1,023 + 1`.
    #[must_use]
    pub fn start_of(repo: &PublicKey) -> Self {
        let key: Vec<u8> = typed_bytes(repo);
        let hash = blake3::derive_key(Purpose::SlotStart.context(), &key);
        let (first, _) = hash.split_first_chunk::<8>().expect("a hash has 32 bytes");
        let index = u64::from_be_bytes(*first) % u64::from(SLOTS) + 1;
        Self(u32::try_from(index).expect("at most 1,023"))
    }

    /// The index after this one; after the last comes the first.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 % SLOTS + 1)
    }

    /// The index, which is also the subkey.
    #[must_use]
    pub fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for SlotIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The state of a member's collection, as their slot states it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotRoot {
    /// The hash of the collection.
    #[serde(with = "hex32")]
    pub hash: [u8; 32],
    /// The counter of the root in the member's repo record.
    pub counter: u64,
    /// Bytes of all files.
    pub bytes: u64,
    /// Number of files.
    pub files: u64,
}

/// What is in a slot.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum SlotValue {
    /// A member.
    Member(Slot),
    /// A member who left, by their own signature.
    Left(Leave),
    /// Nobody: cleared.
    Empty,
}

/// A member's slot. Signed over everything in it, the group and the index, so it holds nowhere else.
#[derive(Clone, PartialEq, Eq)]
pub struct Slot {
    /// The member's repo.
    pub repo: PublicKey,
    /// The state of its collection; `None` before the first file.
    pub root: Option<SlotRoot>,
    /// The member's name; `None` where none was given, or without the content key.
    pub name: Option<String>,
    signed: Signed,
}

/// A member's word that they left.
#[derive(Clone, PartialEq, Eq)]
pub struct Leave {
    /// The member's repo.
    pub repo: PublicKey,
    signed: Signed,
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slot")
            .field("index", &self.signed.index)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Leave {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leave")
            .field("index", &self.signed.index)
            .finish_non_exhaustive()
    }
}

impl Slot {
    /// The index that the slot was signed for.
    #[must_use]
    pub fn index(&self) -> SlotIndex {
        self.signed.index
    }
}

impl Leave {
    /// The index that it was signed for.
    #[must_use]
    pub fn index(&self) -> SlotIndex {
        self.signed.index
    }
}

impl From<Slot> for SlotValue {
    fn from(slot: Slot) -> Self {
        SlotValue::Member(slot)
    }
}

impl From<Leave> for SlotValue {
    fn from(leave: Leave) -> Self {
        SlotValue::Left(leave)
    }
}

/// The exact text that was signed, so that fields which this program does not know stay signed.
#[derive(Clone, PartialEq, Eq)]
struct Signed {
    index: SlotIndex,
    body: String,
    signature: Signature,
}

/// The payload of a slot's subkey.
#[derive(Serialize, Deserialize)]
struct Envelope {
    slot: String,
    #[serde(with = "base64")]
    signature: Vec<u8>,
}

/// The signed text, as JSON. Room to extend: unknown fields are ignored, and covered by the signature.
#[derive(Serialize, Deserialize)]
struct Body {
    repo: String,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    left: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    root: Option<SlotRoot>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    name: Option<SealedName>,
}

#[derive(Serialize, Deserialize)]
struct SealedName(#[serde(with = "base64")] Vec<u8>);

/// Where slots are signed and verified: one group.
pub(crate) struct SlotContext<'a> {
    pub(crate) api: &'a VeilidAPI,
    pub(crate) group: &'a PublicKey,
    pub(crate) record: &'a OpaqueRecordKey,
    /// The key of names, where the content key is held.
    pub(crate) names: Option<&'a ValueKey>,
}

impl SlotContext<'_> {
    pub(crate) async fn sign(
        &self,
        index: SlotIndex,
        repo: &KeyPair,
        root: Option<SlotRoot>,
        name: Option<&str>,
    ) -> Result<Slot> {
        let sealed = match name {
            None => None,
            Some(name) => {
                let key = self.names.ok_or(Error::NoContentKey)?;
                // The counter of a name means nothing; the slot's own counter orders it.
                let sealed = value::seal(
                    key,
                    &self.name_place(index),
                    0,
                    name.as_bytes(),
                    SEALED_NAME,
                )?;
                Some(SealedName(sealed))
            }
        };
        let body = Body {
            repo: repo.key().to_string(),
            left: false,
            root,
            name: sealed,
        };
        Ok(Slot {
            repo: repo.key(),
            root,
            name: name.map(str::to_owned),
            signed: self.sign_body(index, repo, &body).await?,
        })
    }

    pub(crate) async fn sign_leave(&self, index: SlotIndex, repo: &KeyPair) -> Result<Leave> {
        let body = Body {
            repo: repo.key().to_string(),
            left: true,
            root: None,
            name: None,
        };
        Ok(Leave {
            repo: repo.key(),
            signed: self.sign_body(index, repo, &body).await?,
        })
    }

    /// The payload of a slot, checked to be one that readers accept at this index of this group.
    pub(crate) async fn write_payload(
        &self,
        index: SlotIndex,
        value: &SlotValue,
    ) -> Result<Vec<u8>> {
        let (repo, signed) = match value {
            SlotValue::Empty => return Ok(Vec::new()),
            SlotValue::Member(slot) => (&slot.repo, &slot.signed),
            SlotValue::Left(leave) => (&leave.repo, &leave.signed),
        };
        if signed.index != index {
            return Err(Error::SlotIndexMismatch {
                signed: signed.index.get(),
                written: index.get(),
            });
        }
        self.verify(repo, signed).await?;
        let envelope = Envelope {
            slot: signed.body.clone(),
            signature: signed.signature.ref_value().to_vec(),
        };
        crate::record::to_json(&envelope, Kind::Slot)
    }

    /// Reads and verifies the payload of a slot.
    pub(crate) async fn read_payload(&self, index: SlotIndex, payload: &[u8]) -> Result<SlotValue> {
        const INVALID: Error = Error::InvalidPayload { kind: Kind::Slot };
        if payload.is_empty() {
            return Ok(SlotValue::Empty);
        }
        let envelope: Envelope = serde_json::from_slice(payload).map_err(|_| INVALID)?;
        let body: Body = serde_json::from_str(&envelope.slot).map_err(|_| INVALID)?;
        let repo: PublicKey = body.repo.parse().map_err(|_| INVALID)?;
        self.api
            .crypto()?
            .check_public_key(&repo)
            .map_err(|_| INVALID)?;
        let signed = Signed {
            index,
            body: envelope.slot,
            signature: Signature::new(repo.kind(), envelope.signature.into()),
        };
        self.verify(&repo, &signed).await?;
        if body.left {
            return Ok(SlotValue::Left(Leave { repo, signed }));
        }
        let name = match (&body.name, self.names) {
            (Some(SealedName(sealed)), Some(key)) => {
                let opened = value::open(key, &self.name_place(index), sealed)?;
                let name = String::from_utf8(opened.payload.to_vec());
                Some(name.map_err(|_| Error::InvalidPayload {
                    kind: Kind::SlotName,
                })?)
            }
            _ => None,
        };
        Ok(SlotValue::Member(Slot {
            repo,
            root: body.root,
            name,
            signed,
        }))
    }

    /// The message and the payload of a slot with a name that is sealed already, for the documented vectors.
    #[cfg(test)]
    pub(crate) async fn vector(
        &self,
        index: SlotIndex,
        repo: &KeyPair,
        root: SlotRoot,
        name: Vec<u8>,
    ) -> (Vec<u8>, Vec<u8>) {
        let body = Body {
            repo: repo.key().to_string(),
            left: false,
            root: Some(root),
            name: Some(SealedName(name)),
        };
        let signed = self.sign_body(index, repo, &body).await.unwrap();
        let message = self.message(index, &signed.body);
        let envelope = Envelope {
            slot: signed.body,
            signature: signed.signature.ref_value().to_vec(),
        };
        (message, serde_json::to_vec(&envelope).unwrap())
    }

    async fn sign_body(&self, index: SlotIndex, repo: &KeyPair, body: &Body) -> Result<Signed> {
        let body =
            serde_json::to_string(body).map_err(|_| Error::InvalidPayload { kind: Kind::Slot })?;
        let crypto = self.api.crypto()?;
        let system = crypto.get_async(repo.kind()).ok_or(Error::BadSignature)?;
        let message = self.message(index, &body);
        let signature = system
            .sign(&repo.key(), &repo.secret(), message.into())
            .await?;
        Ok(Signed {
            index,
            body,
            signature,
        })
    }

    async fn verify(&self, repo: &PublicKey, signed: &Signed) -> Result<()> {
        let crypto = self.api.crypto()?;
        let system = crypto.get_async(repo.kind()).ok_or(Error::BadSignature)?;
        let message = self.message(signed.index, &signed.body);
        // A key or signature that is malformed verifies as little as a wrong one.
        match system.verify(repo, message.into(), &signed.signature).await {
            Ok(true) => Ok(()),
            Ok(false) | Err(_) => Err(Error::BadSignature),
        }
    }

    /// What is signed: domain, group, index and text, each behind its length in four bytes.
    fn message(&self, index: SlotIndex, body: &str) -> Vec<u8> {
        let group = typed_bytes(self.group);
        let index = index.get().to_be_bytes();
        let mut out = Vec::with_capacity(body.len() + 128);
        for part in [
            Purpose::SlotSignature.context().as_bytes(),
            &group,
            &index,
            body.as_bytes(),
        ] {
            let length = u32::try_from(part.len()).expect("a slot is far below 4 GiB");
            out.extend_from_slice(&length.to_be_bytes());
            out.extend_from_slice(part);
        }
        out
    }

    fn name_place(&self, index: SlotIndex) -> Place<'_> {
        Place {
            record: self.record,
            subkey: index.get(),
            kind: Kind::SlotName,
        }
    }
}

/// A public key as its kind and its bytes.
fn typed_bytes(key: &PublicKey) -> Vec<u8> {
    let mut bytes = key.kind().bytes().to_vec();
    bytes.extend_from_slice(key.ref_value());
    bytes
}

#[cfg(test)]
mod tests;
