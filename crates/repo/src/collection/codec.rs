//! How an entry is sealed into a name, and opened again.

use std::fmt;

use chacha20poly1305::{
    KeyInit, XChaCha20Poly1305, XNonce,
    aead::{Aead, Payload},
};
use data_encoding::BASE64URL_NOPAD;
use dht_records::{ContentKey, DeviceId, Purpose, SubKey};
use iroh_blobs::Hash;
use veilid_core::PublicKey;

use super::{CollectionError, Deleted, Entry, PathHash, Record, Version};
use crate::EntryPath;

type Result<T, E = CollectionError> = std::result::Result<T, E>;

const VERSION: u8 = 1;
const FILE: u8 = 0;
const DELETED: u8 = 1;
/// Plaintexts are padded to a multiple of this, so that a name's length says little about the path.
const PAD: usize = 64;
const NONCE: usize = 24;
const MAX_MEDIA_TYPE: usize = 127;
/// The longest extension that is carried along, in bytes.
const MAX_EXTENSION: usize = 1024;

/// Whether it can be the media type of an entry.
pub(crate) fn is_media_type(text: &str) -> bool {
    text.len() <= MAX_MEDIA_TYPE && text.bytes().all(|byte| (0x20..0x7f).contains(&byte))
}

/// What seals the entries of one repo.
#[derive(Clone)]
pub struct EntryKeys {
    entry: SubKey,
    nonce: SubKey,
    path: SubKey,
    repo: [u8; 36],
}

impl EntryKeys {
    /// The keys of a repo's entries under a content key.
    #[must_use]
    pub fn new(content: &ContentKey, repo: &PublicKey) -> Self {
        let mut bytes = [0; 36];
        let kind = repo.kind();
        let typed = kind.bytes().iter().chain(repo.ref_value().iter());
        bytes
            .iter_mut()
            .zip(typed)
            .for_each(|(to, from)| *to = *from);
        Self {
            entry: content.derive(Purpose::EntryKey),
            nonce: content.derive(Purpose::EntryNonce),
            path: content.derive(Purpose::PathHash),
            repo: bytes,
        }
    }

    /// Where a path has its place.
    #[must_use]
    pub fn path_hash(&self, path: &EntryPath) -> PathHash {
        *blake3::keyed_hash(self.path.as_bytes(), path.key().as_bytes()).as_bytes()
    }

    /// Where a record has its place.
    #[must_use]
    pub fn place(&self, record: &Record) -> PathHash {
        match record {
            Record::File(entry) => self.path_hash(&entry.path),
            Record::Deleted(deleted) => deleted.path_hash,
        }
    }

    /// The name that a record has in its shard, next to its link. Equal records have equal names.
    #[must_use]
    pub fn seal(&self, record: &Record) -> String {
        let plain = encode(record);
        let associated = self.associated(record.link());
        let nonce = self.nonce(&associated, &plain);
        let sealed = XChaCha20Poly1305::new(self.entry.as_bytes().into())
            .encrypt(
                &nonce,
                Payload {
                    msg: &plain,
                    aad: &associated,
                },
            )
            .expect("an entry is far shorter than what the cipher takes");
        let mut name = Vec::with_capacity(1 + NONCE + sealed.len());
        name.push(VERSION);
        name.extend_from_slice(&nonce);
        name.extend_from_slice(&sealed);
        BASE64URL_NOPAD.encode(&name)
    }

    /// Opens a name with the link that stands next to it.
    ///
    /// # Errors
    /// [`CollectionError::UnknownVersion`] and [`CollectionError::UnknownKind`] if a newer program wrote it;
    /// [`CollectionError::Sealed`], [`CollectionError::Malformed`], [`CollectionError::Path`].
    pub fn open(&self, name: &str, link: Hash) -> Result<Record> {
        let name = BASE64URL_NOPAD
            .decode(name.as_bytes())
            .map_err(|_| CollectionError::Malformed)?;
        let (&version, rest) = name.split_first().ok_or(CollectionError::Malformed)?;
        if version != VERSION {
            return Err(CollectionError::UnknownVersion { version });
        }
        let (nonce, sealed) = rest
            .split_first_chunk::<NONCE>()
            .ok_or(CollectionError::Malformed)?;
        let nonce = XNonce::from(*nonce);
        let associated = self.associated(link);
        let plain = XChaCha20Poly1305::new(self.entry.as_bytes().into())
            .decrypt(
                &nonce,
                Payload {
                    msg: sealed,
                    aad: &associated,
                },
            )
            .map_err(|_| CollectionError::Sealed)?;
        // Another nonce would give equal states different hashes.
        if nonce != self.nonce(&associated, &plain) {
            return Err(CollectionError::NotCanonical);
        }
        decode(&plain, link)
    }

    /// Decides between two records of one path, the greater one standing: by version, and where a device gave one version
    /// twice (after it was restored from a backup) by what they say.
    #[must_use]
    pub fn is_newer(&self, new: &Record, old: &Record) -> bool {
        let by_text = || (encode(new), new.link()) > (encode(old), old.link());
        new.version() > old.version() || (new.version() == old.version() && by_text())
    }

    fn associated(&self, link: Hash) -> [u8; 69] {
        let mut bytes = [VERSION; 69];
        let rest = self.repo.iter().chain(link.as_bytes());
        bytes
            .iter_mut()
            .skip(1)
            .zip(rest)
            .for_each(|(to, from)| *to = *from);
        bytes
    }

    fn nonce(&self, associated: &[u8], plain: &[u8]) -> XNonce {
        let mut hasher = blake3::Hasher::new_keyed(self.nonce.as_bytes());
        hasher.update(associated);
        hasher.update(plain);
        let mut nonce = [0; NONCE];
        hasher.finalize_xof().fill(&mut nonce);
        nonce.into()
    }
}

impl fmt::Debug for EntryKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EntryKeys([redacted])")
    }
}

/// The plaintext of an entry. The link is not in it; it is bound as associated data.
pub(crate) fn encode(record: &Record) -> Vec<u8> {
    let mut out = Vec::with_capacity(4 * PAD);
    let version = record.version();
    let head = |out: &mut Vec<u8>, kind: u8| {
        out.push(kind);
        out.extend_from_slice(&version.lamport.to_be_bytes());
        out.extend_from_slice(&version.device.0);
    };
    let extension = match record {
        Record::File(entry) => {
            head(&mut out, FILE);
            out.extend_from_slice(&entry.size.to_be_bytes());
            out.extend_from_slice(&entry.modified.to_be_bytes());
            out.extend_from_slice(&entry.plain_hash);
            let media_type =
                u8::try_from(entry.media_type.len()).expect("a media type has at most 127 bytes");
            out.push(media_type);
            out.extend_from_slice(entry.media_type.as_bytes());
            push_long(&mut out, entry.path.as_str().as_bytes());
            &entry.extension
        }
        Record::Deleted(deleted) => {
            head(&mut out, DELETED);
            out.extend_from_slice(&deleted.at.to_be_bytes());
            out.extend_from_slice(&deleted.path_hash);
            &deleted.extension
        }
    };
    push_long(&mut out, extension);
    out.resize(out.len().next_multiple_of(PAD), 0);
    out
}

fn push_long(out: &mut Vec<u8>, bytes: &[u8]) {
    let len =
        u16::try_from(bytes.len()).expect("paths and extensions are bounded far below 64 KiB");
    out.extend_from_slice(&len.to_be_bytes());
    out.extend_from_slice(bytes);
}

fn decode(plain: &[u8], link: Hash) -> Result<Record> {
    let mut input = Input(plain);
    let kind = input.byte()?;
    if kind != FILE && kind != DELETED {
        return Err(CollectionError::UnknownKind { kind });
    }
    let version = Version {
        lamport: input.number()?,
        device: DeviceId(input.array()?),
    };
    let record = if kind == FILE {
        let size = input.number()?;
        let modified = input.number()?;
        let plain_hash = input.array()?;
        let len = usize::from(input.byte()?);
        let media_type = input.text(len)?.to_owned();
        if !is_media_type(&media_type) || link == Hash::EMPTY {
            return Err(CollectionError::Malformed);
        }
        let path = input.long()?;
        let path = str::from_utf8(path).map_err(|_| CollectionError::Malformed)?;
        let path = EntryPath::parse_stored(path).map_err(CollectionError::Path)?;
        let extension = input.extension()?;
        Record::File(Entry {
            path,
            size,
            media_type,
            modified,
            plain_hash,
            blob: link,
            version,
            extension,
        })
    } else {
        if link != Hash::EMPTY {
            return Err(CollectionError::Malformed);
        }
        let at = input.number()?;
        let path_hash = input.array()?;
        Record::Deleted(Deleted {
            path_hash,
            at,
            version,
            extension: input.extension()?,
        })
    };
    // What is left is the padding, which has to be the shortest.
    if input.0.len() >= PAD
        || input.0.iter().any(|byte| *byte != 0)
        || !plain.len().is_multiple_of(PAD)
    {
        return Err(CollectionError::Malformed);
    }
    Ok(record)
}

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self
            .0
            .split_at_checked(len)
            .ok_or(CollectionError::Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (taken, rest) = self
            .0
            .split_first_chunk::<N>()
            .ok_or(CollectionError::Malformed)?;
        self.0 = rest;
        Ok(*taken)
    }

    fn byte(&mut self) -> Result<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn number(&mut self) -> Result<u64> {
        self.array().map(u64::from_be_bytes)
    }

    fn text(&mut self, len: usize) -> Result<&'a str> {
        str::from_utf8(self.take(len)?).map_err(|_| CollectionError::Malformed)
    }

    fn long(&mut self) -> Result<&'a [u8]> {
        let len = self.array().map(u16::from_be_bytes)?;
        self.take(usize::from(len))
    }

    fn extension(&mut self) -> Result<Vec<u8>> {
        let extension = self.long()?;
        if extension.len() > MAX_EXTENSION {
            return Err(CollectionError::Malformed);
        }
        Ok(extension.to_vec())
    }
}
