//! Contents from the store, and into it.

use std::{collections::HashSet, sync::Arc};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use iroh_blobs::{
    BlobFormat, Hash,
    api::{
        Store, TempTag,
        blobs::{AddBytesOptions, BlobStatus},
    },
    format::collection::{Collection, CollectionMeta},
    hashseq::HashSeq,
};
use store_adapter::VeilidStore;

use super::{
    CollectionError, Contents, EntryKeys, MAX_ENTRIES, MAX_SHARDS,
    contents::{Shard, ShardBlobs, blobs_of, shard_name, shard_of},
    shards_for,
};
use crate::{Error, Result};

/// The largest blob of a collection that is read, in bytes. A shard with its share of [`MAX_ENTRIES`] stays below it even if
/// every name has its greatest length.
const MAX_BLOB: u64 = 16 * 1024 * 1024;

/// How many shards are read at the same time.
const PARALLEL_LOADS: usize = 4;

/// Contents that lie in the store, kept there by temporary tags until a name keeps them.
pub(crate) struct Stored {
    pub(crate) root: Hash,
    pub(crate) _tags: Vec<TempTag>,
}

impl Contents {
    /// Reads contents whose collection is here, files or not. Takes over the shards that `known` has already.
    ///
    /// # Errors
    /// [`Error::NotHere`] if a part of the collection is missing; [`Error::Collection`].
    pub(crate) async fn load(
        store: &VeilidStore,
        keys: &EntryKeys,
        root: Hash,
        known: Option<&Contents>,
    ) -> Result<Self> {
        let links = root_links(store, root).await?;
        let count = links.len();
        let known = known.filter(|known| known.shards.len() == count);
        let mut loads = Vec::with_capacity(count);
        for (index, hash) in links.into_iter().enumerate() {
            let known = known.and_then(|known| known.shards.get(index));
            let is_known = |shard: &&Arc<Shard>| shard.blobs.is_some_and(|b| b.links == hash);
            let known = known.filter(is_known).cloned();
            loads.push(async move {
                match known {
                    Some(shard) => Ok(shard),
                    None => load_shard(store, keys, hash, index, count).await,
                }
            });
        }
        let shards = stream::iter(loads)
            .buffered(PARALLEL_LOADS)
            .try_collect()
            .await?;
        let contents = Self { shards };
        check_number(contents.len(), count)?;
        Ok(contents)
    }

    /// Writes what is not in the store yet: the shards that changed, and the root.
    pub(crate) async fn store(&mut self, store: &VeilidStore, keys: &EntryKeys) -> Result<Stored> {
        let count = self.shards.len();
        let mut tags = Vec::new();
        let mut root = Vec::with_capacity(count);
        for (index, shard) in self.shards.iter_mut().enumerate() {
            let blobs = match shard.blobs {
                Some(blobs) => blobs,
                None => {
                    let (metadata, tag) = add(store, &shard.collection(keys)).await?;
                    let blobs = ShardBlobs {
                        metadata,
                        links: tag.hash(),
                    };
                    tags.push(tag);
                    Arc::make_mut(shard).blobs = Some(blobs);
                    blobs
                }
            };
            root.push((shard_name(index, count), blobs.links));
        }
        let (_, tag) = add(store, &root.into_iter().collect()).await?;
        let root = tag.hash();
        tags.push(tag);
        Ok(Stored { root, _tags: tags })
    }
}

/// What can be seen of a collection without keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) files: u64,
    /// The bytes of the sealed files that are here.
    pub(crate) sealed_bytes: u64,
}

impl Shape {
    /// Checks all that can be checked without keys.
    ///
    /// # Errors
    /// As [`Contents::load`].
    pub(crate) async fn load(store: &VeilidStore, root: Hash) -> Result<Self> {
        let links = root_links(store, root).await?;
        let mut shape = Self {
            files: 0,
            sealed_bytes: 0,
        };
        let mut entries = 0usize;
        let mut seen = HashSet::new();
        for hash in &links {
            let shard = load_collection(store, *hash).await?;
            for (_, link) in shard.pairs {
                entries += 1;
                if link != Hash::EMPTY {
                    shape.files += 1;
                    let status = store.status(link).await.map_err(blobs)?;
                    if let (BlobStatus::Complete { size }, true) = (status, seen.insert(link)) {
                        shape.sealed_bytes += size;
                    }
                }
            }
        }
        check_number(entries, links.len())?;
        Ok(shape)
    }
}

/// The blobs of the files that a collection names.
pub(crate) async fn file_blobs(store: &Store, root: Hash) -> Result<Vec<Hash>> {
    let mut blobs = Vec::new();
    for shard in root_links(store, root).await? {
        let pairs = load_collection(store, shard).await?.pairs;
        let links = pairs.into_iter().map(|(_, link)| link);
        blobs.extend(links.filter(|link| *link != Hash::EMPTY));
    }
    Ok(blobs)
}

fn check_number(entries: usize, shards: usize) -> Result<(), CollectionError> {
    if entries > MAX_ENTRIES {
        return Err(CollectionError::TooManyEntries);
    }
    if shards != shards_for(entries) {
        return Err(CollectionError::NotCanonical);
    }
    Ok(())
}

/// The shards that a root links to, 1, 16, 256 or 1,024 of them.
async fn root_links(store: &Store, root: Hash) -> Result<Vec<Hash>> {
    let collection = load_collection(store, root).await?.pairs;
    let count = collection.len();
    let is_named = |(index, (name, _)): (usize, &(String, Hash))| *name == shard_name(index, count);
    if !matches!(count, 1 | 16 | 256 | MAX_SHARDS) || !collection.iter().enumerate().all(is_named) {
        return Err(CollectionError::UnknownFormat { hash: root }.into());
    }
    Ok(collection.into_iter().map(|(_, link)| link).collect())
}

async fn load_shard(
    store: &Store,
    keys: &EntryKeys,
    hash: Hash,
    index: usize,
    count: usize,
) -> Result<Arc<Shard>> {
    let Loaded { metadata, pairs } = load_collection(store, hash).await?;
    let keys = keys.clone();
    // A large list keeps a processor busy, which the caller's other tasks need.
    let open = move || open_shard(&keys, pairs, index, count);
    let mut shard = tokio::task::spawn_blocking(open)
        .await
        .map_err(|_| store_adapter::Error::Closed)??;
    shard.blobs = Some(ShardBlobs {
        metadata,
        links: hash,
    });
    Ok(Arc::new(shard))
}

fn open_shard(
    keys: &EntryKeys,
    pairs: Vec<(String, Hash)>,
    index: usize,
    count: usize,
) -> Result<Shard, CollectionError> {
    let mut shard = Shard::default();
    let mut last = None;
    for (name, link) in pairs {
        let record = keys.open(&name, link)?;
        let place = keys.place(&record);
        if last >= Some(place) || shard_of(&place, count) != index {
            return Err(CollectionError::NotCanonical);
        }
        last = Some(place);
        shard.insert(place, record);
    }
    Ok(shard)
}

/// One of iroh's collections.
struct Loaded {
    /// The hash of its list of names.
    metadata: Hash,
    /// Names and links.
    pairs: Vec<(String, Hash)>,
}

/// One of iroh's collections, with more care than its own `load` takes: sizes are bounded, and there is one encoding only.
async fn load_collection(store: &Store, hash: Hash) -> Result<Loaded> {
    let not = || CollectionError::NotACollection { hash };
    let links = load_blob(store, hash).await?;
    let sequence = HashSeq::new(links.clone()).ok_or_else(not)?;
    let metadata_hash = sequence.get(0).ok_or_else(not)?;
    let metadata = load_blob(store, metadata_hash).await?;
    let parsed: CollectionMeta = postcard::from_bytes(&metadata).map_err(|_| not())?;
    if !parsed.check_header() || parsed.names().len() + 1 != sequence.len() {
        return Err(not().into());
    }
    let pairs: Vec<_> = parsed
        .names()
        .iter()
        .cloned()
        .zip(sequence.iter().skip(1))
        .collect();
    if blobs_of(&pairs.iter().cloned().collect::<Collection>()) != [metadata, links] {
        return Err(not().into());
    }
    Ok(Loaded {
        metadata: metadata_hash,
        pairs,
    })
}

async fn load_blob(store: &Store, hash: Hash) -> Result<Bytes> {
    match store.status(hash).await.map_err(blobs)? {
        BlobStatus::Complete { size } if size > MAX_BLOB => {
            Err(CollectionError::TooLarge { hash, size }.into())
        }
        BlobStatus::Complete { .. } => Ok(store.get_bytes(hash).await.map_err(blobs)?),
        BlobStatus::Partial { .. } | BlobStatus::NotFound => Err(Error::NotHere { hash }),
    }
}

/// Stores a collection, and gives the hash of its metadata. The tag on its sequence keeps the metadata as well.
async fn add(store: &Store, collection: &Collection) -> Result<(Hash, TempTag)> {
    let [metadata, links] = blobs_of(collection);
    let metadata = store.add_bytes(metadata).temp_tag().await.map_err(blobs)?;
    let links = AddBytesOptions {
        data: links,
        format: BlobFormat::HashSeq,
    };
    let tag = store
        .add_bytes_with_opts(links)
        .temp_tag()
        .await
        .map_err(blobs)?;
    Ok((metadata.hash(), tag))
}

/// What iroh-blobs reports, as the store's error.
pub(crate) fn blobs(cause: impl std::error::Error + 'static) -> Error {
    store_adapter::Error::iroh(cause).into()
}
