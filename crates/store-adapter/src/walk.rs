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
/// The largest that is taken for a shard: a quarter million links. What is larger is a file whose length happens to fit.
pub(crate) const MAX_SHARD: u64 = 8 * 1024 * 1024;

/// What is reached, in order, each once.
#[derive(Debug, Default)]
pub(crate) struct Reached {
    pub(crate) hashes: Vec<Hash>,
    seen: HashSet<Hash>,
    /// Sequences that are not here: what they link to is not known.
    pub(crate) missing: Vec<Hash>,
}

impl Reached {
    pub(crate) fn contains(&self, hash: &Hash) -> bool {
        self.seen.contains(hash)
    }

    pub(crate) fn add(&mut self, hash: Hash) {
        if self.seen.insert(hash) {
            self.hashes.push(hash);
        }
    }

    /// The root itself, then what it links to, then what its shards link to.
    pub(crate) async fn walk(&mut self, store: &Store, root: Hash) -> Result<()> {
        self.add(root);
        let Some(links) = self.links(store, root, MAX_SEQUENCE).await? else {
            return Ok(());
        };
        for link in &links {
            self.add(*link);
        }
        let mut walked = HashSet::new();
        // The first link of a collection is its metadata, which is no hash sequence.
        for shard in links.into_iter().skip(1) {
            // Empty shards are all the same blob.
            if walked.insert(shard)
                && let Some(links) = self.links(store, shard, MAX_SHARD).await?
            {
                for link in links {
                    self.add(link);
                }
            }
        }
        Ok(())
    }

    async fn links(&mut self, store: &Store, hash: Hash, most: u64) -> Result<Option<Vec<Hash>>> {
        match sequence(store, hash, most).await {
            Ok(Links::Some(links)) => Ok(Some(links)),
            Ok(Links::NoSequence) => Ok(None),
            Err(Error::SequenceTooLarge { .. }) if most == MAX_SHARD => Ok(None),
            Err(error) => Err(error),
            Ok(Links::Missing) => {
                self.missing.push(hash);
                Ok(None)
            }
        }
    }
}

enum Links {
    Some(Vec<Hash>),
    NoSequence,
    Missing,
}

/// The links of a hash sequence; none when the blob is not here and complete, or is no hash sequence.
pub(crate) async fn links(store: &Store, hash: Hash) -> Result<Option<Vec<Hash>>> {
    match sequence(store, hash, MAX_SEQUENCE).await? {
        Links::Some(links) => Ok(Some(links)),
        Links::NoSequence | Links::Missing => Ok(None),
    }
}

async fn sequence(store: &Store, hash: Hash, most: u64) -> Result<Links> {
    let size = match store.status(hash).await.map_err(Error::iroh)? {
        BlobStatus::Complete { size } => size,
        BlobStatus::NotFound | BlobStatus::Partial { .. } => return Ok(Links::Missing),
    };
    if size % 32 != 0 {
        return Ok(Links::NoSequence);
    }
    if size > most {
        return Err(Error::SequenceTooLarge { hash, size });
    }
    let bytes = store.get_bytes(hash).await.map_err(Error::iroh)?;
    Ok(match HashSeq::new(bytes) {
        Some(sequence) => Links::Some(sequence.iter().collect()),
        None => Links::NoSequence,
    })
}
