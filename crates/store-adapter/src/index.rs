//! The index: what blobs and tags there are, each row sealed under the key of the present epoch.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use bytes::Bytes;
use iroh_blobs::{BlobFormat, Hash, HashAndFormat, api::Tag};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use zeroize::{Zeroize, Zeroizing};

use crate::{
    Error, Result,
    backend::{Op, Table},
    seal::{self, Key, Kind, derive},
};

/// One row for each blob.
const ENTRIES: u32 = 0;
/// The ids of the blobs that have a file, as keys.
const FILES: u32 = 1;
const TAGS: u32 = 2;
/// Every tag once more: a tag that got lost would cost all that it keeps.
const TAGS_AGAIN: u32 = 3;
const META: u32 = 4;
/// The rows of complete blobs with a file whose hash tree may not have reached the disk itself: after a power cut the index can be
/// ahead of the pages, so these are looked at before anybody is told that they are there.
const RECENT: u32 = 5;
/// The rows of partial blobs.
const PARTIAL: u32 = 6;
pub(crate) const COLUMNS: u32 = 7;

const META_TOTALS: &[u8] = b"totals";
/// Twice as well: what lies in the packs beyond the place that it names is found by nothing else.
const META_PACKS: [&[u8]; 2] = [b"packs", b"packs again"];
const META_LOST: &[u8] = b"lost";

/// Names the rows and the file of one blob, or a pack's file; random, so that it says nothing about a hash.
pub(crate) type Id = [u8; 16];

/// What the store knows of a blob.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) hash: [u8; 32],
    pub(crate) id: Id,
    key: [u8; 32],
    /// Of a partial blob, what the sender said.
    pub(crate) size: u64,
    /// The bytes that are here, as the totals count them.
    pub(crate) here: u64,
    pub(crate) place: Place,
    pub(crate) complete: bool,
}

/// Where the bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Place {
    /// Complete, in a record of that pack.
    Pack {
        pack: Id,
        /// Where its bytes begin.
        offset: u64,
    },
    /// A file.
    File,
    /// Partial, in the row of its state.
    Row,
}

impl Place {
    /// What the log of the packs sets when it takes the blob.
    pub(crate) const PACK: Self = Self::Pack {
        pack: [0; 16],
        offset: 0,
    };
}

impl Entry {
    /// A new blob, with an id and a key of its own.
    pub(crate) fn new(hash: Hash, size: u64, place: Place, complete: bool) -> Result<Self> {
        let (mut id, mut key) = ([0; 16], [0; 32]);
        let random = Zeroizing::new(seal::random::<48>()?);
        id.copy_from_slice(&random[..16]);
        key.copy_from_slice(&random[16..]);
        Ok(Self {
            hash: *hash.as_bytes(),
            id,
            key,
            size,
            here: if complete { size } else { 0 },
            place,
            complete,
        })
    }

    pub(crate) fn key(&self) -> Key {
        Key::new(self.key)
    }

    pub(crate) fn hash(&self) -> Hash {
        Hash::from_bytes(self.hash)
    }

    pub(crate) fn file_name(&self) -> String {
        file_name(&self.id)
    }

    /// What stands before the bytes of a small blob in a pack.
    fn header(&self) -> Zeroizing<[u8; HEADER]> {
        let mut header = Zeroizing::new([0; HEADER]);
        header[..32].copy_from_slice(&self.hash);
        header[32..48].copy_from_slice(&self.id);
        header[48..80].copy_from_slice(&self.key);
        header[80..].copy_from_slice(&self.size.to_be_bytes());
        header
    }

    fn of_header(header: &[u8; HEADER], place: Place) -> Self {
        let (mut hash, mut id, mut key, mut size) = ([0; 32], [0; 16], [0; 32], [0; 8]);
        hash.copy_from_slice(&header[..32]);
        id.copy_from_slice(&header[32..48]);
        key.copy_from_slice(&header[48..80]);
        size.copy_from_slice(&header[80..]);
        let size = u64::from_be_bytes(size);
        Self {
            hash,
            id,
            key,
            size,
            here: size,
            place,
            complete: true,
        }
    }
}

const PACK_SUFFIX: &str = ".pack";
/// Hash, id, key and size.
const HEADER: usize = 88;
/// The sealed header of a record.
pub(crate) const SEALED_HEADER: usize = HEADER + seal::ROW_OVERHEAD;

/// Seals and opens the headers of records in packs, under the key of the present epoch.
#[derive(Debug)]
pub(crate) struct Headers(Redacted);

impl Headers {
    /// The header of a small blob's record at that place of a pack.
    pub(crate) fn seal(&self, entry: &Entry, pack: &Id, offset: u64) -> Result<Vec<u8>> {
        let row = header_row(pack, offset);
        seal::seal_row(&self.0.0, Kind::Header, &row, &*entry.header())
    }

    /// What [`seal`](Self::seal) made; none if it is not that.
    pub(crate) fn open(&self, sealed: &[u8], pack: Id, offset: u64) -> Option<Entry> {
        let plain = seal::open_row(&self.0.0, Kind::Header, &header_row(&pack, offset), sealed)?;
        let header = plain.first_chunk::<HEADER>()?;
        let offset = offset + SEALED_HEADER as u64;
        Some(Entry::of_header(header, Place::Pack { pack, offset }))
    }
}

/// What is known of the packs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Packs {
    /// All of them, the oldest first. New blobs go to the last.
    pub(crate) list: Vec<Id>,
    /// A pack and a place in it: what was written before that is claimed by the index as far as it is alive.
    pub(crate) claimed: Option<(Id, u64)>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry")
            .field("size", &self.size)
            .field("place", &self.place)
            .field("complete", &self.complete)
            .finish_non_exhaustive()
    }
}

pub(crate) fn pack_name(id: &Id) -> String {
    format!("{}{PACK_SUFFIX}", file_name(id))
}

/// The pack that a file is, if it is one.
pub(crate) fn pack_of(name: &str) -> Option<Id> {
    let id = name.strip_suffix(PACK_SUFFIX)?;
    data_encoding::HEXLOWER
        .decode(id.as_bytes())
        .ok()?
        .try_into()
        .ok()
}

/// The rows of blobs that a commit changes, one after the other, and whether each is that of a complete blob then.
pub(crate) fn changed_rows(ops: &[Op]) -> impl Iterator<Item = (&Bytes, bool)> {
    ops.iter().filter_map(|op| match op {
        Op::Put { column, key, .. } => match *column {
            ENTRIES => Some((key, true)),
            // It stands behind the row itself.
            PARTIAL => Some((key, false)),
            _ => None,
        },
        Op::Delete { column, key } => (*column == ENTRIES).then_some((key, false)),
    })
}

fn header_row(pack: &Id, offset: u64) -> [u8; 24] {
    let mut row = [0; 24];
    row[..16].copy_from_slice(pack);
    row[16..].copy_from_slice(&offset.to_be_bytes());
    row
}

pub(crate) fn file_name(id: &Id) -> String {
    data_encoding::HEXLOWER.encode(id)
}

/// What the store holds in all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Totals {
    pub(crate) blobs: u64,
    /// The bytes of complete blobs, and of partial ones as far as they are here.
    pub(crate) bytes: u64,
    /// Whether something was removed whose key is still there.
    pub(crate) erasable: bool,
}

impl Totals {
    pub(crate) fn add(&mut self, blobs: i64, bytes: i64) {
        self.blobs = self.blobs.saturating_add_signed(blobs);
        self.bytes = self.bytes.saturating_add_signed(bytes);
    }
}

/// A change of the index, not sealed yet: the key may change before it is written.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    Put(Entry),
    Remove(Entry),
    Tag(Tag, HashAndFormat),
    Untag(Tag),
    /// All that were complete and got damaged.
    Lost(BTreeSet<[u8; 32]>),
}

/// The table of one epoch with its keys.
#[derive(Debug)]
pub(crate) struct Index {
    pub(crate) epoch: u64,
    table: Arc<dyn Table>,
    rows: Redacted,
    names: Redacted,
}

struct Redacted(Key);

impl fmt::Debug for Redacted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

#[derive(Serialize, Deserialize)]
struct StoredTag {
    name: Vec<u8>,
    hash: [u8; 32],
    hash_seq: bool,
}

/// What was found when all tags were read.
#[derive(Debug, Default)]
pub(crate) struct Tags {
    pub(crate) tags: BTreeMap<Tag, HashAndFormat>,
    /// Rows that cannot be read, in both places.
    pub(crate) lost: usize,
}

impl Index {
    pub(crate) fn new(epoch: u64, key: &Key, table: Arc<dyn Table>) -> Self {
        Self {
            epoch,
            table,
            rows: Redacted(derive("save-dweb-backend store index rows v1", key)),
            names: Redacted(derive("save-dweb-backend store index names v1", key)),
        }
    }

    pub(crate) fn table(&self) -> &Arc<dyn Table> {
        &self.table
    }

    /// The row in which a blob stands, if it is there.
    pub(crate) fn row_of(&self, hash: &[u8; 32]) -> Bytes {
        self.row(hash)
    }

    /// Whether there is nothing at all, not even a count.
    pub(crate) async fn is_empty(&self) -> Result<bool> {
        for column in [META, ENTRIES, TAGS, TAGS_AGAIN] {
            if !self.table.keys(column).await?.is_empty() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The rows of all blobs.
    pub(crate) async fn entry_rows(&self) -> Result<Vec<Bytes>> {
        self.table.keys(ENTRIES).await
    }

    /// The entry in a row, if there is one. `Err(None)` if it is damaged: then its blob counts as missing.
    pub(crate) async fn entry_at(&self, row: Bytes) -> Result<Option<Entry>, Option<Error>> {
        match self.table.load(ENTRIES, row.clone()).await {
            Ok(None) => Ok(None),
            Ok(Some(sealed)) => self
                .open::<Entry>(Kind::Entry, &row, &sealed)
                .map(Some)
                .ok_or(None),
            Err(error) => Err(Some(error)),
        }
    }

    /// A row that nobody can read.
    #[cfg(test)]
    pub(crate) fn damaged(row: Bytes) -> Op {
        Op::Put {
            column: ENTRIES,
            key: row,
            value: Bytes::from_static(b"damaged"),
        }
    }

    pub(crate) fn remove_row(row: Bytes) -> Op {
        Op::Delete {
            column: ENTRIES,
            key: row,
        }
    }

    pub(crate) fn remove_file_row(id: Id) -> Op {
        Op::Delete {
            column: FILES,
            key: Bytes::copy_from_slice(&id),
        }
    }

    /// The rows whose bytes may not be there after a power cut.
    pub(crate) async fn recent(&self) -> Result<Vec<Bytes>> {
        self.table.keys(RECENT).await
    }

    /// The rows of partial blobs.
    pub(crate) async fn partial(&self) -> Result<Vec<Bytes>> {
        self.table.keys(PARTIAL).await
    }

    pub(crate) fn settle(row: Bytes) -> Op {
        Op::Delete {
            column: RECENT,
            key: row,
        }
    }

    /// The ids of the blobs that have files.
    pub(crate) async fn files(&self) -> Result<Vec<Bytes>> {
        self.table.keys(FILES).await
    }

    pub(crate) async fn tags(&self) -> Result<Tags> {
        let mut rows = self.table.keys(TAGS).await?;
        rows.extend(self.table.keys(TAGS_AGAIN).await?);
        rows.sort();
        rows.dedup();
        let mut found = Tags::default();
        let mut repair = Vec::new();
        for row in rows {
            let mut read = None;
            let mut missing = false;
            for column in [TAGS, TAGS_AGAIN] {
                let stored = self.table.load(column, row.clone()).await?;
                let tag =
                    stored.and_then(|sealed| self.open::<StoredTag>(Kind::Tag, &row, &sealed));
                match tag {
                    Some(tag) => read = read.or(Some(tag)),
                    None => missing = true,
                }
            }
            let Some(tag) = read else {
                found.lost += 1;
                continue;
            };
            let format = if tag.hash_seq {
                BlobFormat::HashSeq
            } else {
                BlobFormat::Raw
            };
            let (name, value) = (
                Tag::from(tag.name.as_slice()),
                HashAndFormat::new(Hash::from_bytes(tag.hash), format),
            );
            if missing {
                self.seal_change(&Change::Tag(name.clone(), value), &mut repair)?;
            }
            found.tags.insert(name, value);
        }
        if !repair.is_empty() {
            tracing::warn!(tags = repair.len() / 2, "damaged tags were restored");
            self.table.commit(repair).await?;
        }
        Ok(found)
    }

    pub(crate) async fn totals(&self) -> Result<Option<Totals>> {
        self.meta(META_TOTALS).await
    }

    pub(crate) async fn packs(&self) -> Result<Option<Packs>> {
        for name in META_PACKS {
            if let Some(packs) = self.meta(name).await? {
                return Ok(Some(packs));
            }
        }
        Ok(None)
    }

    pub(crate) async fn lost(&self) -> Result<BTreeSet<[u8; 32]>> {
        Ok(self.meta(META_LOST).await?.unwrap_or_default())
    }

    pub(crate) fn put_totals(&self, totals: &Totals) -> Result<Op> {
        self.put_meta(META_TOTALS, totals)
    }

    pub(crate) fn put_packs(&self, packs: &Packs, ops: &mut Vec<Op>) -> Result<()> {
        for name in META_PACKS {
            ops.push(self.put_meta(name, packs)?);
        }
        Ok(())
    }

    /// Seals and opens the headers of records in packs.
    pub(crate) fn headers(&self) -> Headers {
        Headers(Redacted(self.rows.0.clone()))
    }

    /// The row of a blob, and nothing about it in other columns.
    pub(crate) fn put_entry(&self, entry: &Entry) -> Result<Op> {
        self.put(ENTRIES, Kind::Entry, self.row(&entry.hash), entry)
    }

    /// Seals a change into what has to be written.
    pub(crate) fn seal_change(&self, change: &Change, ops: &mut Vec<Op>) -> Result<()> {
        match change {
            Change::Put(entry) => {
                ops.push(self.put_entry(entry)?);
                let key = self.row(&entry.hash);
                let (now, before) = match (entry.complete, entry.place) {
                    // Their bytes are on the disk itself when they are claimed.
                    (true, Place::Pack { .. }) => (None, PARTIAL),
                    (true, _) => (Some(RECENT), PARTIAL),
                    (false, _) => (Some(PARTIAL), RECENT),
                };
                ops.push(Op::Delete {
                    column: before,
                    key: key.clone(),
                });
                ops.extend(now.map(|column| Op::Put {
                    column,
                    key,
                    value: Bytes::from_static(&[1]),
                }));
                if entry.place == Place::File {
                    ops.push(Op::Put {
                        column: FILES,
                        key: Bytes::copy_from_slice(&entry.id),
                        value: Bytes::from_static(&[1]),
                    });
                }
            }
            Change::Remove(entry) => {
                let key = self.row(&entry.hash);
                ops.extend([ENTRIES, RECENT, PARTIAL].map(|column| Op::Delete {
                    column,
                    key: key.clone(),
                }));
                if entry.place == Place::File {
                    ops.push(Self::remove_file_row(entry.id));
                }
            }
            Change::Tag(name, value) => {
                let row = self.row(name.as_ref());
                let tag = StoredTag {
                    name: name.as_ref().to_vec(),
                    hash: *value.hash.as_bytes(),
                    hash_seq: value.format.is_hash_seq(),
                };
                for column in [TAGS, TAGS_AGAIN] {
                    ops.push(self.put(column, Kind::Tag, row.clone(), &tag)?);
                }
            }
            Change::Lost(lost) => ops.push(self.put_meta(META_LOST, lost)?),
            Change::Untag(name) => {
                let key = self.row(name.as_ref());
                ops.extend([TAGS, TAGS_AGAIN].map(|column| Op::Delete {
                    column,
                    key: key.clone(),
                }));
            }
        }
        Ok(())
    }

    /// A row's key: nobody who lacks the index key can tell which hash or name it belongs to.
    fn row(&self, name: &[u8]) -> Bytes {
        Bytes::copy_from_slice(&blake3::keyed_hash(&self.names.0, name).as_bytes()[..16])
    }

    async fn meta<T: DeserializeOwned>(&self, name: &'static [u8]) -> Result<Option<T>> {
        let row = Bytes::from_static(name);
        let sealed = self.table.load(META, row.clone()).await?;
        Ok(sealed.and_then(|sealed| self.open(Kind::Meta, &row, &sealed)))
    }

    fn put_meta<T: Serialize>(&self, name: &'static [u8], value: &T) -> Result<Op> {
        self.put(META, Kind::Meta, Bytes::from_static(name), value)
    }

    fn put<T: Serialize>(&self, column: u32, kind: Kind, row: Bytes, value: &T) -> Result<Op> {
        let mut plain = postcard::to_stdvec(value).map_err(|_| Error::Sealing)?;
        let sealed = seal::seal_row(&self.rows.0, kind, &row, &plain);
        plain.zeroize();
        Ok(Op::Put {
            column,
            key: row,
            value: sealed?.into(),
        })
    }

    fn open<T: DeserializeOwned>(&self, kind: Kind, row: &[u8], sealed: &[u8]) -> Option<T> {
        let plain = seal::open_row(&self.rows.0, kind, row, sealed)?;
        postcard::from_bytes(&plain).ok()
    }
}
