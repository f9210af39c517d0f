//! What a two-level root reaches.

use std::collections::HashSet;

use iroh_blobs::{
    Hash,
    api::{Store, blobs::BlobStatus},
    hashseq::HashSeq,
};

use crate::{Error, Result};

/// The largest hash sequence that is read, in bytes: two million links. What a repository writes stays far below.
pub(crate) const MAX_SEQUENCE: u64 = 64 * 1024 * 1024;

/// The root itself, then what it links to, then what its shards link to, each once.
pub(crate) async fn reachable(store: &Store, root: Hash) -> Result<Vec<Hash>> {
    let mut found = Found::default();
    found.add(root);
    let shards = match links(store, root).await? {
        Some(links) => {
            links.iter().copied().for_each(|link| found.add(link));
            // The first link of a collection is its metadata, which is no hash sequence.
            links.into_iter().skip(1).collect()
        }
        None => Vec::new(),
    };
    let mut walked = HashSet::new();
    for shard in shards {
        // Empty shards are all the same blob.
        if walked.insert(shard)
            && let Some(links) = links(store, shard).await?
        {
            links.into_iter().for_each(|link| found.add(link));
        }
    }
    Ok(found.order)
}

/// The links of a hash sequence; none when the blob is not here and complete, or is no hash sequence.
pub(crate) async fn links(store: &Store, hash: Hash) -> Result<Option<Vec<Hash>>> {
    let size = match store.status(hash).await.map_err(Error::blobs)? {
        BlobStatus::Complete { size } => size,
        BlobStatus::NotFound | BlobStatus::Partial { .. } => return Ok(None),
    };
    if size % 32 != 0 {
        return Ok(None);
    }
    if size > MAX_SEQUENCE {
        return Err(Error::SequenceTooLarge { hash, size });
    }
    let bytes = store.get_bytes(hash).await.map_err(Error::blobs)?;
    Ok(HashSeq::new(bytes).map(|seq| seq.iter().collect()))
}

#[derive(Default)]
struct Found {
    order: Vec<Hash>,
    seen: HashSet<Hash>,
}

impl Found {
    fn add(&mut self, hash: Hash) {
        if self.seen.insert(hash) {
            self.order.push(hash);
        }
    }
}
