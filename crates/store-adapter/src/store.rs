//! The store itself: opening, named roots, guards, usage, closing.

use std::{
    collections::{HashMap, HashSet},
    fs::{File, TryLockError},
    io::{self, Write},
    ops::Deref,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use futures::StreamExt;
use iroh_blobs::{
    Hash, HashAndFormat,
    api::{Store, blobs::BlobStatus},
    store::fs::{FsStore, options::Options},
};
use tokio::sync::{RwLock, mpsc, oneshot};
use veilid_core::VeilidAPI;

use crate::{
    Error, GcReport, Result,
    gc::{self, Round},
    walk,
};

const FORMAT: &str = "save-store files 1\n";
const FORMAT_FILE: &str = "format";
const LOCK_FILE: &str = "lock";
const INDEX_FILE: &str = "blobs.db";
const ROOT_PREFIX: &str = "root/";

/// How a store is opened.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct StoreOptions {}

/// What the store holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Usage {
    /// Blobs, partial ones included.
    pub blobs: u64,
    /// The bytes of all blobs that are here. Hash trees and the index, about half a percent, are not counted.
    pub bytes: u64,
}

/// An iroh-blobs store with named roots; see the [crate's page](crate).
///
/// Cheap to clone; all clones are one store. [`close`](Self::close) it at the end. It dereferences to iroh's [`Store`]. Blobs are removed by [`gc`](Self::gc)
/// alone, and only those that no named root, no tag, no temporary tag and no [`Protected`] reaches.
#[derive(Debug, Clone)]
pub struct VeilidStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    store: FsStore,
    collect: mpsc::Sender<Round>,
    /// Held exclusively by a garbage collection, shared by whoever changes what is reachable. So no root can move from
    /// a place that was not looked at yet to one that was.
    gate: Arc<RwLock<()>>,
    protected: Arc<Mutex<HashMap<Hash, usize>>>,
    /// The lock on the directory; none once the store is closed.
    lock: Mutex<Option<File>>,
}

impl VeilidStore {
    /// The longest name of a root, in bytes.
    pub const MAX_ROOT_NAME: usize = 255;

    /// Opens the store in `dir`, which is created when it does not exist.
    ///
    /// The Veilid node is where the store's key will come from once the store encrypts at rest; nothing is asked of it
    /// yet.
    ///
    /// # Errors
    /// [`Error::InUse`], [`Error::UnknownFormat`], [`Error::Damaged`], [`Error::Io`]; in each case nothing was changed.
    pub async fn open(api: &VeilidAPI, dir: &Path, options: StoreOptions) -> Result<Self> {
        let _ = api;
        Self::load(dir, options).await
    }

    pub(crate) async fn load(dir: &Path, _options: StoreOptions) -> Result<Self> {
        let path = dir.to_owned();
        let lock = tokio::task::spawn_blocking(move || prepare(&path))
            .await
            .map_err(|_| Error::Closed)??;
        let (gc, collect) = gc::on_demand();
        let mut options = Options::new(dir);
        options.gc = Some(gc);
        let store = FsStore::load_with_opts(dir.join(INDEX_FILE), options)
            .await
            .map_err(|error| opening(dir, error.to_string()))?;
        Ok(Self {
            inner: Arc::new(Inner {
                dir: dir.to_owned(),
                store,
                collect,
                gate: Arc::default(),
                protected: Arc::default(),
                lock: Mutex::new(Some(lock)),
            }),
        })
    }

    /// Gives a root a name, replacing the one that had it. When this returns, the name and all blobs that were complete
    /// before the call survive the death of the process.
    ///
    /// # Errors
    /// [`Error::RootName`] for an empty or too long name, [`Error::Closed`], [`Error::Blobs`].
    pub async fn set_root(&self, name: &str, root: Hash) -> Result<()> {
        let tag = tag_of(name)?;
        self.check_open()?;
        let _gate = self.inner.gate.read().await;
        self.tags()
            .set(tag, HashAndFormat::hash_seq(root))
            .await
            .map_err(Error::blobs)?;
        self.sync_db().await.map_err(Error::blobs)
    }

    /// The root of that name.
    ///
    /// # Errors
    /// As [`set_root`](Self::set_root).
    pub async fn root(&self, name: &str) -> Result<Option<Hash>> {
        let tag = tag_of(name)?;
        self.check_open()?;
        Ok(self
            .tags()
            .get(tag)
            .await
            .map_err(Error::blobs)?
            .map(|info| info.hash))
    }

    /// All roots whose names begin with `prefix`, in the order of their names.
    ///
    /// # Errors
    /// [`Error::Closed`], [`Error::Blobs`].
    pub async fn roots(&self, prefix: &str) -> Result<Vec<(String, Hash)>> {
        self.check_open()?;
        let mut tags = Box::pin(
            self.tags()
                .list_prefix(format!("{ROOT_PREFIX}{prefix}"))
                .await
                .map_err(Error::blobs)?,
        );
        let mut roots = Vec::new();
        while let Some(info) = tags.next().await {
            let info = info.map_err(Error::blobs)?;
            // Names are given as text, so others are not ours.
            if let Some(name) = str::from_utf8(info.name.as_ref())
                .ok()
                .and_then(|name| name.strip_prefix(ROOT_PREFIX))
            {
                roots.push((name.to_owned(), info.hash));
            }
        }
        Ok(roots)
    }

    /// Takes a root's name away, durably. The blobs stay until the next [`gc`](Self::gc). It is no error if there is no such
    /// root.
    ///
    /// # Errors
    /// As [`set_root`](Self::set_root).
    pub async fn remove_root(&self, name: &str) -> Result<()> {
        let tag = tag_of(name)?;
        self.check_open()?;
        let _gate = self.inner.gate.read().await;
        self.tags().delete(tag).await.map_err(Error::blobs)?;
        self.sync_db().await.map_err(Error::blobs)
    }

    /// Keeps a root and all that it reaches, two levels deep, until the guard is dropped: for a root that is being
    /// fetched or written and has no name yet. Waits while a garbage collection runs.
    ///
    /// Nothing of it has to be here yet. A shard's links are kept as soon as the shard is complete.
    pub async fn protect(&self, root: Hash) -> Protected {
        let _gate = self.inner.gate.read().await;
        let protected = self.inner.protected.clone();
        *protected
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(root)
            .or_default() += 1;
        Protected { root, protected }
    }

    /// All that a root reaches, each hash once: the root, the metadata, the shards, and what the shards link to.
    ///
    /// What is not here is listed as well, as far as the sequence that links to it is here; whether a blob is here says
    /// iroh's `status`.
    ///
    /// # Errors
    /// [`Error::SequenceTooLarge`], [`Error::Closed`], [`Error::Blobs`].
    pub async fn reachable(&self, root: Hash) -> Result<Vec<Hash>> {
        self.check_open()?;
        walk::reachable(self, root).await
    }

    /// The links of one hash sequence: for a collection its metadata, then its members. `None` when the blob is not
    /// here and complete, or is no hash sequence.
    ///
    /// # Errors
    /// As [`reachable`](Self::reachable).
    pub async fn links(&self, hash: Hash) -> Result<Option<Vec<Hash>>> {
        self.check_open()?;
        walk::links(self, hash).await
    }

    /// Removes every blob that nothing reaches, and returns when that is done. Dropping the future does not stop a
    /// collection that has begun.
    ///
    /// # Errors
    /// If anything that a root reaches is here and cannot be read, nothing is removed: [`Error::SequenceTooLarge`] or
    /// [`Error::Blobs`]. [`Error::Closed`] if the collector has ended.
    pub async fn gc(&self) -> Result<GcReport> {
        self.check_open()?;
        let gate = self.inner.gate.clone().write_owned().await;
        let before = self.sizes().await?;
        let live = self.live().await?;
        let (done, is_done) = oneshot::channel();
        self.inner
            .collect
            .send(Round { live, gate, done })
            .await
            .map_err(|_| Error::Closed)?;
        // The other end is dropped without a word when a round fails, because iroh's loop ends then.
        is_done.await.map_err(|_| Error::Closed)?;
        let kept: HashSet<Hash> = self
            .list()
            .hashes()
            .await
            .map_err(Error::blobs)?
            .into_iter()
            .collect();
        let removed: Vec<u64> = before
            .iter()
            .filter(|(hash, _)| !kept.contains(hash))
            .map(|(_, size)| *size)
            .collect();
        Ok(GcReport {
            removed_blobs: removed.len() as u64,
            removed_bytes: removed.iter().sum(),
            kept_blobs: kept.len() as u64,
        })
    }

    /// What the store holds. Looks at every blob, so it takes time in proportion to their number.
    ///
    /// # Errors
    /// [`Error::Closed`], [`Error::Blobs`].
    pub async fn usage(&self) -> Result<Usage> {
        self.check_open()?;
        let sizes = self.sizes().await?;
        Ok(Usage {
            blobs: sizes.len() as u64,
            bytes: sizes.iter().map(|(_, size)| size).sum(),
        })
    }

    /// Writes everything down and releases the directory. All clones are closed by it; closing again does nothing.
    ///
    /// # Errors
    /// [`Error::Blobs`] if the store below could not be shut down in order; the directory is released all the same.
    pub async fn close(&self) -> Result<()> {
        let lock = self
            .inner
            .lock
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if lock.is_none() {
            return Ok(());
        }
        let result = self.inner.store.shutdown().await.map_err(Error::blobs);
        drop(lock);
        result
    }

    /// The directory of the store.
    pub fn dir(&self) -> &Path {
        &self.inner.dir
    }

    fn check_open(&self) -> Result<()> {
        match *self
            .inner
            .lock
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
        {
            Some(_) => Ok(()),
            None => Err(Error::Closed),
        }
    }

    /// Everything that named roots and guards reach.
    async fn live(&self) -> Result<HashSet<Hash>> {
        let mut roots: HashSet<Hash> = self
            .roots("")
            .await?
            .into_iter()
            .map(|(_, root)| root)
            .collect();
        roots.extend(
            self.inner
                .protected
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .keys(),
        );
        let mut live = HashSet::new();
        for root in roots {
            live.extend(walk::reachable(self, root).await?);
        }
        Ok(live)
    }

    async fn sizes(&self) -> Result<Vec<(Hash, u64)>> {
        let hashes = self.list().hashes().await.map_err(Error::blobs)?;
        let mut sizes = Vec::with_capacity(hashes.len());
        for hash in hashes {
            let size = match self.status(hash).await.map_err(Error::blobs)? {
                BlobStatus::Complete { size } => size,
                BlobStatus::Partial { .. } => self
                    .observe(hash)
                    .await
                    .map_err(Error::blobs)?
                    .total_bytes(),
                BlobStatus::NotFound => continue,
            };
            sizes.push((hash, size));
        }
        Ok(sizes)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // iroh's collector keeps the file store alive until it is shut down; without this, a store that was never closed
        // would keep its directory busy for the life of the process.
        let open = self
            .lock
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let (Some(lock), Ok(runtime)) = (open, tokio::runtime::Handle::try_current()) {
            let store = self.store.clone();
            runtime.spawn(async move {
                if let Err(error) = store.shutdown().await {
                    tracing::warn!(%error, "a store that was dropped could not be shut down");
                }
                drop(lock);
            });
        }
    }
}

impl Deref for VeilidStore {
    type Target = Store;

    fn deref(&self) -> &Store {
        &self.inner.store
    }
}

/// Keeps a root from being collected while it lives; see [`VeilidStore::protect`].
#[derive(Debug)]
#[must_use = "the root is protected only as long as this lives"]
pub struct Protected {
    root: Hash,
    protected: Arc<Mutex<HashMap<Hash, usize>>>,
}

impl Protected {
    /// The root that is kept.
    pub fn root(&self) -> Hash {
        self.root
    }
}

impl Drop for Protected {
    fn drop(&mut self) {
        let mut protected = self
            .protected
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = protected.get_mut(&self.root) {
            *count -= 1;
            if *count == 0 {
                protected.remove(&self.root);
            }
        }
    }
}

fn tag_of(name: &str) -> Result<String> {
    if name.is_empty() || name.len() > VeilidStore::MAX_ROOT_NAME {
        return Err(Error::RootName { len: name.len() });
    }
    Ok(format!("{ROOT_PREFIX}{name}"))
}

/// What it means that the index could not be opened.
fn opening(dir: &Path, cause: String) -> Error {
    let path = dir.to_owned();
    // The index has a lock of its own, which can be held by a store of this process that was dropped a moment ago.
    if cause.contains("already open") {
        Error::InUse { path }
    } else {
        Error::Damaged { path, cause }
    }
}

/// Makes the directory, takes its lock and checks its format.
fn prepare(dir: &Path) -> Result<File> {
    let io = |source: io::Error| Error::Io {
        path: dir.to_owned(),
        source,
    };
    std::fs::create_dir_all(dir).map_err(io)?;
    let lock = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(dir.join(LOCK_FILE))
        .map_err(io)?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(Error::InUse {
                path: dir.to_owned(),
            });
        }
        Err(TryLockError::Error(source)) => return Err(io(source)),
    }
    let format = dir.join(FORMAT_FILE);
    match std::fs::read(&format) {
        Ok(found) if found == FORMAT.as_bytes() => {}
        Ok(found) => {
            let found = String::from_utf8_lossy(found.get(..64).unwrap_or(&found))
                .trim_end()
                .to_owned();
            return Err(Error::UnknownFormat {
                path: dir.to_owned(),
                found,
            });
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if dir.join(INDEX_FILE).exists() {
                return Err(Error::Damaged {
                    path: dir.to_owned(),
                    cause: "there is an index, but no format file".to_owned(),
                });
            }
            write_format(dir, &format).map_err(io)?;
        }
        Err(source) => return Err(io(source)),
    }
    Ok(lock)
}

/// Renamed into place, so that a crash leaves either no format file or a whole one.
fn write_format(dir: &Path, format: &Path) -> io::Result<()> {
    let new = dir.join("format.new");
    let mut file = File::create(&new)?;
    file.write_all(FORMAT.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&new, format)
}

#[cfg(test)]
mod tests;
