//! What another device of the member replaced, until it is collected.

use std::collections::HashSet;

use iroh_blobs::{Hash, HashAndFormat, api::Tag};

use super::{Held, Repo};
use crate::{
    Entry, FileReader, Result,
    collection::{Contents, Record, blobs},
};

/// The most versions that are listed; the oldest go first.
const MOST: usize = 1_000;

/// A version as it stands in the list: sealed as in a shard, with the blob that it links to.
type Sealed = (String, [u8; 32]);

/// Versions that a merge is about to replace.
#[derive(Default)]
pub(super) struct Replaced(Vec<Sealed>);

impl Repo {
    /// Versions of files that this device had, and that a merge with what another of the member's devices wrote replaced or took away, as
    /// far as they are still here: a garbage collection takes them. The last 1,000, by path, the newest first.
    ///
    /// # Errors
    /// [`Error::NoContentKey`](crate::Error::NoContentKey), [`Error::Collection`](crate::Error::Collection),
    /// [`Error::Store`](crate::Error::Store).
    pub async fn replaced(&self) -> Result<Vec<Entry>> {
        let keys = &self.keys()?.entries;
        let present = self.contents().await?;
        let list = self.listed().await?.unwrap_or_default();
        let mut replaced = Vec::new();
        for (name, link) in self.still_here(list).await? {
            if let Ok(Record::File(entry)) = keys.open(&name, Hash::from_bytes(link))
                // It is written before the merge is, which may not have come about.
                && present.file(keys, &entry.path).is_none_or(|now| now.blob != entry.blob)
            {
                replaced.push(entry);
            }
        }
        replaced.sort_unstable_by(|a, b| a.path.cmp(&b.path).then(b.version.cmp(&a.version)));
        Ok(replaced)
    }

    /// Begins to read a version of a file that [`list`](Self::list) or [`replaced`](Self::replaced) gave.
    ///
    /// # Errors
    /// [`Error::NotHere`](crate::Error::NotHere); else as [`read`](Self::read).
    pub async fn read_version(&self, entry: Entry) -> Result<FileReader> {
        FileReader::open(&self.inner.store, &self.keys()?.files, entry).await
    }

    /// What of the files that are held a merge replaces and is here. Nothing if that cannot be told: a row that cannot be read must not
    /// hold up a change.
    pub(super) async fn replaced_by(&self, held: &Held, merged: &Contents) -> Replaced {
        match self.try_replaced_by(held, merged).await {
            Ok(replaced) => Replaced(replaced),
            Err(error) => {
                tracing::warn!(%error, "which versions are replaced cannot be told");
                Replaced::default()
            }
        }
    }

    async fn try_replaced_by(&self, held: &Held, merged: &Contents) -> Result<Vec<Sealed>> {
        let keys = &self.keys()?.entries;
        let mut entries = held.contents.replaced_in(merged);
        let mut replaced = Vec::new();
        while replaced.len() < MOST {
            let some: Vec<Sealed> = entries
                .by_ref()
                .take(MOST)
                .map(|entry| {
                    let name = keys.seal(&Record::File(entry.clone()));
                    (name, *entry.blob.as_bytes())
                })
                .collect();
            if some.is_empty() {
                break;
            }
            replaced.extend(self.still_here(some).await?);
        }
        replaced.truncate(MOST);
        Ok(replaced)
    }

    /// Before a merge takes the place of what is held: lists what it replaces, and forgets what was collected. Names blobs and keeps none. If it
    /// fails, the merge goes on all the same. `writing` has to be held.
    pub(super) async fn list_replaced(&self, replaced: Replaced) {
        if replaced.0.is_empty() {
            return;
        }
        if let Err(error) = self.try_list_replaced(replaced.0).await {
            tracing::warn!(%error, "replaced versions are not listed");
        }
    }

    async fn try_list_replaced(&self, replaced: Vec<Sealed>) -> Result<()> {
        let list = self.listed().await?.unwrap_or_default();
        let mut list = self.still_here(list).await?;
        let new: HashSet<Sealed> = replaced.into_iter().collect();
        list.retain(|listed| !new.contains(listed));
        list.extend(new);
        list.drain(..list.len().saturating_sub(MOST));
        self.set_listed(&list).await
    }

    /// Forgets what was collected since; without that it is only longer. `writing` has to be held.
    pub(super) async fn prune_replaced(&self) {
        let pruned = async {
            let listed = self.listed().await?;
            let list = self.still_here(listed.clone().unwrap_or_default()).await?;
            match listed {
                Some(listed) if listed == list => Ok(()),
                _ => self.set_listed(&list).await,
            }
        };
        if let Err(error) = pruned.await {
            tracing::warn!(%error, "the list of replaced versions is not put in order");
        }
    }

    pub(super) async fn forget_replaced(&self) -> Result<()> {
        self.set_listed(&[]).await
    }

    /// The list, as it was written; none if it is damaged or gone.
    async fn listed(&self) -> Result<Option<Vec<Sealed>>> {
        let store = &self.inner.store;
        let tag = store.tags().get(self.replaced_tag()).await;
        let Some(tag) = tag.map_err(blobs)? else {
            return Ok(Some(Vec::new()));
        };
        let list = match store.has(tag.hash).await.map_err(blobs)? {
            true => {
                let bytes = store.get_bytes(tag.hash).await.map_err(blobs)?;
                postcard::from_bytes(&bytes).ok()
            }
            false => None,
        };
        if list.is_none() {
            tracing::warn!("which versions were replaced is not known any more");
        }
        Ok(list)
    }

    async fn still_here(&self, list: Vec<Sealed>) -> Result<Vec<Sealed>> {
        let links: Vec<Hash> = list.iter().map(|(_, link)| Hash::from(*link)).collect();
        let here = self.inner.store.complete(&links).await?;
        let list = list.into_iter().zip(here);
        Ok(list
            .filter_map(|(sealed, here)| here.then_some(sealed))
            .collect())
    }

    async fn set_listed(&self, list: &[Sealed]) -> Result<()> {
        let (store, tag) = (&self.inner.store, self.replaced_tag());
        if list.is_empty() {
            store.tags().delete(tag).await.map_err(blobs)?;
            return Ok(());
        }
        let bytes = postcard::to_stdvec(list).expect("texts and hashes can always be encoded");
        let added = store.add_bytes(bytes).temp_tag().await.map_err(blobs)?;
        let list = HashAndFormat::raw(added.hash());
        store.tags().set(tag, list).await.map_err(blobs)
    }

    fn replaced_tag(&self) -> Tag {
        Tag::from(self.inner.names.replaced.as_str())
    }
}
