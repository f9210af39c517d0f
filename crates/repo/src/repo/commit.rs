//! Changes of the collection, one at a time, in an order that survives a crash.

use dht_records::{Fetch, RootValue};
use iroh_blobs::Hash;

use super::{Held, Repo, replaced::Replaced};
use crate::{
    Error, Result,
    collection::{Contents, EntryKeys, Shape},
};

/// The points between which a crash leaves the old or the new state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// The files are in the store.
    Blobs,
    /// Shards and root are in the store.
    Root,
    /// The root has its pending name.
    Pending,
    /// The root is the one that is held.
    Held,
    /// The record says so.
    Recorded,
}

/// What is held with what another device wrote.
struct Merged {
    contents: Contents,
    /// Whether that is all that it wrote.
    all: bool,
    /// What it replaces of what is held.
    replaced: Replaced,
}

impl Repo {
    /// Changes the contents, and makes the result durable.
    pub(super) async fn change(
        &self,
        change: impl FnOnce(&EntryKeys, &mut Contents) -> Result<()>,
    ) -> Result<()> {
        self.check_writable()?;
        let keys = &self.keys()?.entries;
        let _writing = self.writing().await?;
        self.finish_pending().await?;
        let Merged {
            mut contents,
            all,
            replaced,
        } = self.merged_with_record().await?;
        change(keys, &mut contents)?;
        contents.expire(self.inner.clock.now());
        self.list_replaced(replaced).await;
        if all {
            self.commit(contents).await
        } else {
            self.commit_unmerged(contents).await
        }
    }

    /// Makes contents the held ones, and leaves the record as it is: it names what another device of this member wrote, which is not
    /// here yet. What is published next has to have both. `writing` has to be held.
    async fn commit_unmerged(&self, mut contents: Contents) -> Result<()> {
        let keys = &self.keys()?.entries;
        let store = &self.inner.store;
        let stored = contents.store(store, keys).await?;
        self.step(Step::Root)?;
        store.set_root(&self.inner.names.held, stored.root).await?;
        self.step(Step::Held)?;
        self.set_cache(Some(Held {
            root: stored.root,
            contents,
        }));
        Ok(())
    }

    /// What another device of this member wrote, as the record says, and that is not merged into what is held here: fetch that
    /// collection, and [`adopt`](Self::adopt) it. Until then, what this device writes is not published. `None` where nothing is missing,
    /// and for those who cannot write.
    ///
    /// # Errors
    /// [`Error::Store`], [`Error::Records`].
    pub async fn unmerged(&self) -> Result<Option<Hash>> {
        if !self.is_writable() || self.inner.keys.is_none() {
            return Ok(None);
        }
        let _writing = self.writing().await?;
        self.finish_pending().await?;
        let held = self.held_hash().await?;
        Ok(self
            .record_hash()
            .await?
            .filter(|recorded| Some(*recorded) != held))
    }

    /// Publishes what is held here, nothing included, without what another device of this member wrote, for where that device is lost
    /// and nobody has its list. If it comes back, it merges the two.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub async fn overrule(&self) -> Result<()> {
        self.check_writable()?;
        let _writing = self.writing().await?;
        self.finish_pending().await?;
        let contents = self.contents().await?;
        self.commit(contents).await
    }

    /// Makes contents the held ones. `writing` has to be held.
    async fn commit(&self, mut contents: Contents) -> Result<()> {
        let keys = &self.keys()?.entries;
        let (store, names) = (&self.inner.store, &self.inner.names);
        let stored = contents.store(store, keys).await?;
        self.step(Step::Root)?;
        store.set_root(&names.pending, stored.root).await?;
        self.step(Step::Pending)?;
        store.set_root(&names.held, stored.root).await?;
        let (files, bytes) = contents.totals();
        let root = RootValue {
            hash: *stored.root.as_bytes(),
            bytes,
            files,
        };
        self.set_cache(Some(Held {
            root: stored.root,
            contents,
        }));
        self.step(Step::Held)?;
        self.inner.record.set_root(&root).await?;
        self.step(Step::Recorded)?;
        store.remove_root(&names.pending).await?;
        Ok(())
    }

    /// Does the rest of a change that was interrupted after its root was complete. `writing` has to be held.
    pub(super) async fn finish_pending(&self) -> Result<()> {
        let (store, names) = (&self.inner.store, &self.inner.names);
        let Some(root) = store.root(&names.pending).await? else {
            return Ok(());
        };
        tracing::info!("finishing a change that was interrupted");
        store.set_root(&names.held, root).await?;
        if self.record_hash().await? != Some(root) {
            let (files, bytes) = self.contents().await?.totals();
            self.inner
                .record
                .set_root(&RootValue {
                    hash: *root.as_bytes(),
                    bytes,
                    files,
                })
                .await?;
        }
        store.remove_root(&names.pending).await?;
        Ok(())
    }

    /// What is held, with what another device of this member has published as far as that is here.
    async fn merged_with_record(&self) -> Result<Merged> {
        let keys = &self.keys()?.entries;
        let held = self.held().await?;
        let recorded = self.record_hash().await?;
        let Some(recorded) =
            recorded.filter(|root| Some(*root) != held.as_ref().map(|held| held.root))
        else {
            return Ok(Merged {
                contents: held.map(|held| held.contents).unwrap_or_default(),
                all: true,
                replaced: Replaced::default(),
            });
        };
        let known = held.as_ref().map(|held| &held.contents);
        match (
            Contents::load(&self.inner.store, keys, recorded, known).await,
            held,
        ) {
            (Ok(theirs), Some(held)) => {
                let mut contents = held.contents.clone();
                contents.merge_all(keys, &theirs)?;
                Ok(Merged {
                    replaced: self.replaced_by(&held, &contents).await,
                    contents,
                    all: true,
                })
            }
            (Ok(theirs), None) => Ok(Merged {
                contents: theirs,
                all: true,
                replaced: Replaced::default(),
            }),
            // Work goes on.
            (Err(Error::NotHere { .. }), Some(held)) => Ok(Merged {
                contents: held.contents,
                all: false,
                replaced: Replaced::default(),
            }),
            // Beginning with nothing would publish an empty repo over a full one.
            (Err(error), _) => Err(error),
        }
    }

    /// Merges what another device has published, if it is here. `writing` has to be held.
    pub(super) async fn take_in_record(&self) -> Result<()> {
        let Some(recorded) = self.record_hash().await? else {
            return Ok(());
        };
        match self.adopt_locked(recorded).await {
            // It has to be fetched first, which is not done here.
            Err(Error::NotHere { .. }) => Ok(()),
            result => result,
        }
    }

    /// As [`adopt`](Repo::adopt). `writing` has to be held.
    pub(super) async fn adopt_locked(&self, root: Hash) -> Result<()> {
        let store = &self.inner.store;
        let Some(keys) = &self.inner.keys else {
            Shape::load(store, root).await?;
            return Ok(store.set_root(&self.inner.names.held, root).await?);
        };
        if self.is_writable() {
            self.finish_pending().await?;
        }
        let held = self.held().await?;
        if held.as_ref().is_some_and(|held| held.root == root) && !self.is_writable() {
            return Ok(());
        }
        let known = held.as_ref().map(|held| &held.contents);
        let theirs = Contents::load(store, &keys.entries, root, known).await?;
        if !self.is_writable() {
            store.set_root(&self.inner.names.held, root).await?;
            self.set_cache(Some(Held {
                root,
                contents: theirs,
            }));
            return Ok(());
        }
        let mut merged = held.clone().map(|held| held.contents).unwrap_or_default();
        let changed = merged.merge_all(&keys.entries, &theirs)?;
        let recorded = self.record_hash().await?;
        if !changed
            && held
                .as_ref()
                .is_some_and(|held| recorded == Some(held.root))
        {
            // It says nothing new, and the record says what is held.
            return Ok(());
        }
        if let Some(held) = held.filter(|_| changed) {
            let replaced = self.replaced_by(&held, &merged).await;
            self.list_replaced(replaced).await;
        }
        if merged == theirs && recorded == Some(root) {
            // Nothing of ours is newer, so there is nothing to publish.
            store.set_root(&self.inner.names.held, root).await?;
            self.set_cache(Some(Held {
                root,
                contents: theirs,
            }));
            return Ok(());
        }
        self.commit(merged).await
    }

    async fn record_hash(&self) -> Result<Option<Hash>> {
        let root = self.inner.record.root(Fetch::Cached).await?;
        Ok(root.map(|root| Hash::from_bytes(root.value.hash)))
    }

    /// Where tests let a change end, as a crash would.
    #[cfg(test)]
    pub(super) fn step(&self, step: Step) -> Result<()> {
        let fail_at = *self
            .inner
            .fail_at
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if fail_at == Some(step) {
            return Err(Error::Source(std::io::Error::other(
                "the test ends it here",
            )));
        }
        Ok(())
    }

    #[cfg(not(test))]
    #[expect(
        clippy::unnecessary_wraps,
        clippy::unused_self,
        reason = "fails in tests"
    )]
    pub(super) fn step(&self, _: Step) -> Result<()> {
        Ok(())
    }
}
