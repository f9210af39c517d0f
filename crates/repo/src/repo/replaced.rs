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

impl Repo {
    /// Versions of files that this device had, and that a merge with what another of the member's devices wrote replaced or took away, as
    /// far as they are still here: a garbage collection takes them. The last 1,000, by path, the newest first.
    ///
    /// # Errors
    /// [`Error::NoContentKey`](crate::Error::NoContentKey), [`Error::Collection`](crate::Error::Collection),
    /// [`Error::Store`](crate::Error::Store).
    pub async fn replaced(&self) -> Result<Vec<Entry>> {
        let keys = &self.keys()?.entries;
        let mut replaced = Vec::new();
        for (name, link) in self.still_here(self.listed().await?).await? {
            if let Ok(Record::File(entry)) = keys.open(&name, Hash::from_bytes(link)) {
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

    /// After a merge took the place of what was held before: lists what is not the present version any more, and forgets what was collected.
    /// Names blobs and keeps none. If it fails, the merge stands all the same. `writing` has to be held.
    pub(super) async fn list_replaced(&self, before: &Held, merged: &Contents) {
        if let Err(error) = self.try_list_replaced(before, merged).await {
            tracing::warn!(%error, "replaced versions are not listed");
        }
    }

    async fn try_list_replaced(&self, before: &Held, merged: &Contents) -> Result<()> {
        let keys = &self.keys()?.entries;
        let listed = self.listed().await?;
        let mut list = self.still_here(listed.clone()).await?;
        let sealed = |entry: &Entry| {
            let name = keys.seal(&Record::File(entry.clone()));
            (name, *entry.blob.as_bytes())
        };
        let replaced = before.contents.replaced_in(merged).take(MOST);
        let new: HashSet<Sealed> = replaced.map(sealed).collect();
        list.retain(|listed| !new.contains(listed));
        list.extend(new);
        list.drain(..list.len().saturating_sub(MOST));
        match list == listed {
            true => Ok(()),
            false => self.set_listed(&list).await,
        }
    }

    /// Forgets what was collected since. `writing` has to be held.
    pub(super) async fn prune_replaced(&self) -> Result<()> {
        let listed = self.listed().await?;
        let list = self.still_here(listed.clone()).await?;
        match list == listed {
            true => Ok(()),
            false => self.set_listed(&list).await,
        }
    }

    pub(super) async fn forget_replaced(&self) -> Result<()> {
        self.set_listed(&[]).await
    }

    async fn listed(&self) -> Result<Vec<Sealed>> {
        let store = &self.inner.store;
        let tag = store.tags().get(self.replaced_tag()).await;
        let Some(tag) = tag.map_err(blobs)? else {
            return Ok(Vec::new());
        };
        let list = match store.get_bytes(tag.hash).await {
            Ok(bytes) => postcard::from_bytes(&bytes).ok(),
            Err(error) => {
                tracing::debug!(%error, "a list of replaced versions cannot be read");
                None
            }
        };
        if list.is_none() {
            tracing::warn!("which versions were replaced is not known any more");
        }
        Ok(list.unwrap_or_default())
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
