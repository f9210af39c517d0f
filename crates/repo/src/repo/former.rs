//! What another device of the member replaced, until it is collected.

use iroh_blobs::{Hash, HashAndFormat, api::Tag};

use super::{Held, Repo};
use crate::{
    Entry, Error, FileReader, Result,
    collection::{Contents, blobs},
};

impl Repo {
    /// Versions of files that were this member's present ones on this device until another of the member's devices replaced or deleted
    /// them, as far as they are still here: a garbage collection takes them. By path, the newest first.
    ///
    /// # Errors
    /// [`Error::NoContentKey`], [`Error::Collection`], [`Error::Store`].
    pub async fn replaced(&self) -> Result<Vec<Entry>> {
        let keys = &self.keys()?.entries;
        let store = &self.inner.store;
        let present = self.contents().await?;
        let mut replaced = Vec::new();
        for root in self.former_roots().await? {
            let former = match Contents::load(store, keys, root, Some(&present)).await {
                Err(Error::NotHere { .. }) => continue,
                former => former?,
            };
            for entry in former.replaced_in(&present) {
                if self.is_here(entry).await? {
                    replaced.push(entry.clone());
                }
            }
        }
        replaced.sort_unstable_by(|a, b| a.path.cmp(&b.path).then(b.version.cmp(&a.version)));
        replaced.dedup();
        Ok(replaced)
    }

    /// Begins to read a version of a file that [`list`](Self::list) or [`replaced`](Self::replaced) gave.
    ///
    /// # Errors
    /// [`Error::NotHere`]; else as [`read`](Self::read).
    pub async fn read_version(&self, entry: Entry) -> Result<FileReader> {
        FileReader::open(&self.inner.store, &self.keys()?.files, entry).await
    }

    /// Before other contents take the place of those that are held: keeps the name of these, and not what they name.
    pub(super) async fn remember_former(&self, held: &Held, next: &Contents) -> Result<()> {
        if held.contents.replaced_in(next).next().is_none() {
            return Ok(());
        }
        let keys = &self.keys()?.entries;
        let store = &self.inner.store;
        for root in self.former_roots().await? {
            let former = Contents::load(store, keys, root, Some(&held.contents)).await;
            if matches!(former, Err(Error::NotHere { .. })) {
                store
                    .tags()
                    .delete(self.former_tag(root))
                    .await
                    .map_err(blobs)?;
            }
        }
        let tag = self.former_tag(held.root);
        let named = store.tags().set(tag, HashAndFormat::raw(held.root)).await;
        named.map_err(blobs)
    }

    pub(super) async fn forget_former(&self) -> Result<()> {
        for root in self.former_roots().await? {
            let tag = self.former_tag(root);
            self.inner.store.tags().delete(tag).await.map_err(blobs)?;
        }
        Ok(())
    }

    async fn former_roots(&self) -> Result<Vec<Hash>> {
        let prefix = &self.inner.names.former;
        let tags = self.inner.store.tags().list_prefix(prefix).await;
        let tags = tags.map_err(blobs)?;
        let mut roots = Vec::new();
        let mut tags = std::pin::pin!(tags);
        while let Some(tag) = futures::StreamExt::next(&mut tags).await {
            roots.push(tag.map_err(blobs)?.hash);
        }
        Ok(roots)
    }

    fn former_tag(&self, root: Hash) -> Tag {
        Tag::from(format!("{}{root}", self.inner.names.former))
    }
}
