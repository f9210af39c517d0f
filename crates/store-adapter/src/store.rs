//! The store itself: opening, named roots, guards, usage, keys, closing.

use std::{
    collections::HashMap,
    fs::{File, TryLockError},
    io::{self, Write},
    ops::Deref,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::{StreamExt, TryStreamExt, stream};
use iroh_blobs::{Hash, HashAndFormat, api::Store};
use tokio::sync::RwLock;
use veilid_core::VeilidAPI;

use crate::{
    Error, GcReport, Protection, Result, Secrets,
    actor::{self, Lock},
    backend::{Backend, memory::MemoryBackend, veilid::VeilidBackend},
    bao,
    core::{Core, blocking, lock, segment_error},
    gc,
    pins::Pins,
    seal,
    secret::StoreSecret,
    secrets::sync_directory,
    tables::Tables,
    walk::{self, Reached},
    writer::first_key,
};

const FORMAT_FILE: &str = "format";
const NEW_FORMAT_FILE: &str = "format.new";
const LOCK_FILE: &str = "lock";
const FORMAT: &str = "save-store ";
const VERSION: u32 = 3;
/// The store of the first version kept plain files.
const OLD_FORMAT: &str = "save-store files 1";
const ROOT_PREFIX: &str = "root/";
/// Rows of the index that are asked for at the same time, by whoever wants to know of many blobs.
const ASKED_AT_ONCE: usize = 64;

/// How a store is opened.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct StoreOptions {
    /// How the store's key is guarded. Default: by the operating system's keyring.
    pub protection: Protection,
    /// How long after one garbage collection the next one begins by itself. After one that removed something, what was
    /// removed is erased for good as well. Default: never.
    pub gc_interval: Option<Duration>,
}

impl StoreOptions {
    /// Sets [`protection`](Self::protection).
    #[must_use]
    pub fn with_protection(mut self, protection: Protection) -> Self {
        self.protection = protection;
        self
    }

    /// Sets [`gc_interval`](Self::gc_interval).
    #[must_use]
    pub fn with_gc_interval(mut self, interval: Option<Duration>) -> Self {
        self.gc_interval = interval;
        self
    }
}

/// What the store holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Usage {
    /// Blobs, partial ones included.
    pub blobs: u64,
    /// The bytes of all blobs that are here, without what the store adds.
    pub bytes: u64,
    /// What the store takes on disk: files, tables, and what is dead in them but not given back yet.
    pub disk_bytes: u64,
}

/// How far [`VeilidStore::verify`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct VerifyProgress {
    /// Blobs that were read.
    pub blobs: u64,
    /// Blobs in all.
    pub of_blobs: u64,
    /// Bytes that were read.
    pub bytes: u64,
}

/// What [`VeilidStore::verify`] found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct VerifyReport {
    /// Blobs that were read.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Those that were damaged. What is damaged counts as missing now, and can be fetched again.
    pub damaged: Vec<Hash>,
}

/// An iroh-blobs store, encrypted at rest, with named roots; see the [crate's page](crate).
///
/// Cheap to clone; all clones are one store. [`close`](Self::close) it at the end, before the Veilid node is shut down. It
/// dereferences to iroh's [`Store`]. Blobs are removed by garbage collection alone, and only those that no named root, no
/// tag, no temporary tag and no [`Protected`] reaches.
#[derive(Debug, Clone)]
pub struct VeilidStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    id: String,
    store: Store,
    core: Arc<Core>,
    pins: Arc<Pins>,
    secrets: Arc<Secrets>,
    /// Held exclusively by a garbage collection, shared by whoever changes what is reachable. So no root can move from
    /// a place that was not looked at yet to one that was.
    gate: RwLock<()>,
    protected: Arc<Mutex<HashMap<Hash, usize>>>,
    closed: AtomicBool,
    closing: tokio::sync::Mutex<bool>,
    swept: AtomicBool,
}

impl VeilidStore {
    /// The longest name of a root, in bytes.
    pub const MAX_ROOT_NAME: usize = 255;

    /// Opens the store in `dir`, which is created when it does not exist. Its tables lie in the table store of the Veilid
    /// node, its key in the node's protected store.
    ///
    /// # Errors
    /// [`Error::InUse`], [`Error::OlderFormat`], [`Error::NewerFormat`], [`Error::UnknownFormat`], [`Error::Damaged`],
    /// [`Error::Io`]; of the key [`Error::KeyLost`], [`Error::KeyDamaged`] and what [`Secrets::load`] gives. In each case
    /// nothing was changed.
    pub async fn open(api: &VeilidAPI, dir: &Path, options: StoreOptions) -> Result<Self> {
        let path = dir.to_owned();
        let (file, found) = blocking(move || prepare(&path)).await??;
        let secrets = Arc::new(Secrets::new(api, options.protection.clone()));
        let backend = Arc::new(VeilidBackend::open(api, dir).await?);
        let (id, fresh) = match found {
            Some(id) => (id, false),
            None => (data_encoding::HEXLOWER.encode(&seal::random::<16>()?), true),
        };
        let at = dir.to_owned();
        let write = id.clone();
        Self::start(
            dir,
            backend,
            secrets,
            id,
            fresh,
            Some(file),
            &options,
            // Once the key is saved: a store that says it is one has its key.
            move || write_format(&at, &write),
        )
        .await
    }

    /// A store in memory, for tests: the same code over tables and files that end with the process.
    ///
    /// # Errors
    /// [`Error::Randomness`].
    pub async fn in_memory(options: StoreOptions) -> Result<Self> {
        Self::over_memory(MemoryBackend::default(), true, options).await
    }

    pub(crate) async fn over_memory(
        memory: MemoryBackend,
        fresh: bool,
        options: StoreOptions,
    ) -> Result<Self> {
        let backend = Arc::new(memory);
        let secrets = Arc::new(Secrets::over(backend.secrets(), options.protection.clone()));
        let id = "00000000000000000000000000000000".to_owned();
        Self::start(
            Path::new("memory"),
            backend,
            secrets,
            id,
            fresh,
            None,
            &options,
            || Ok(()),
        )
        .await
    }

    #[allow(clippy::too_many_arguments)]
    async fn start(
        dir: &Path,
        backend: Arc<dyn Backend>,
        secrets: Arc<Secrets>,
        id: String,
        fresh: bool,
        lock: Lock,
        options: &StoreOptions,
        begun: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) -> Result<Self> {
        let name = secret_name(&id);
        let secret = if fresh {
            StoreSecret::create(secrets.clone(), name, first_key()?).await?
        } else {
            StoreSecret::load(secrets.clone(), name)
                .await?
                .ok_or(Error::KeyLost)?
        };
        let (tables, counted) = Tables::open(backend.clone(), prefix(&id), secret, fresh).await?;
        let opened = async {
            if !counted {
                tables.recount().await?;
            }
            let lost = tables.read().await?.index.lost().await?;
            let core = Arc::new(Core::new(backend, tables.clone(), lost));
            if fresh {
                // Now that it has a key and an index.
                let at = dir.to_owned();
                blocking(begun)
                    .await?
                    .map_err(|source| Error::Io { path: at, source })?;
            }
            gc::remove_orphans(&core).await?;
            gc::check_recent(&core).await?;
            Ok(core)
        };
        let core = match opened.await {
            Ok(core) => core,
            Err(error) => {
                // Nothing holds on to the tables any more.
                tables.close().await;
                return Err(error);
            }
        };
        let pins = Arc::new(Pins::new());
        let store = actor::start(core.clone(), pins.clone(), lock);
        let inner = Arc::new(Inner {
            dir: dir.to_owned(),
            id,
            store,
            core,
            pins,
            secrets,
            gate: RwLock::default(),
            protected: Arc::default(),
            closed: AtomicBool::new(false),
            closing: tokio::sync::Mutex::new(false),
            swept: AtomicBool::new(false),
        });
        if let Some(interval) = options.gc_interval {
            let store = Arc::downgrade(&inner);
            tokio::spawn(async move {
                loop {
                    tokio::time::sleep(interval).await;
                    let Some(inner) = store.upgrade() else {
                        return;
                    };
                    let store = Self { inner };
                    match store.tidy().await {
                        Ok(()) => {}
                        Err(Error::Closed) => return,
                        Err(error) => tracing::warn!(%error, "nothing was collected"),
                    }
                }
            });
        }
        Ok(Self { inner })
    }

    /// Collects, and erases what was collected.
    async fn tidy(&self) -> Result<()> {
        self.gc().await?;
        if self.inner.core.tables.totals().erasable {
            self.erase().await?;
        }
        Ok(())
    }

    /// Gives a root a name, replacing the one that had it. When this returns, the name and all blobs that were complete
    /// before the call survive the death of the process, and a power cut.
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
            .map_err(Error::iroh)?;
        self.sync_db().await.map_err(Error::iroh)
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
            .map_err(Error::iroh)?
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
                .map_err(Error::iroh)?,
        );
        let mut roots = Vec::new();
        while let Some(info) = tags.next().await {
            let info = info.map_err(Error::iroh)?;
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

    /// Takes a root's name away, durably. The blobs stay until the next garbage collection. It is no error if there is no
    /// such root.
    ///
    /// # Errors
    /// As [`set_root`](Self::set_root).
    pub async fn remove_root(&self, name: &str) -> Result<()> {
        let tag = tag_of(name)?;
        self.check_open()?;
        let _gate = self.inner.gate.read().await;
        self.tags().delete(tag).await.map_err(Error::iroh)?;
        self.sync_db().await.map_err(Error::iroh)
    }

    /// Keeps a root and all that it reaches, two levels deep, until the guard is dropped: for a root that is being
    /// fetched or written and has no name yet. Waits while a garbage collection runs.
    ///
    /// Nothing of it has to be here yet. A shard's links are kept as soon as the shard is complete.
    pub async fn protect(&self, root: Hash) -> Protected {
        let _gate = self.inner.gate.read().await;
        let protected = self.inner.protected.clone();
        *lock(&protected).entry(root).or_default() += 1;
        Protected { root, protected }
    }

    /// Which of these blobs are here, complete and verified, in the order of the hashes. For many it takes about half the time of asking
    /// iroh's `has` for each.
    ///
    /// # Errors
    /// [`Error::Closed`]; those of the tables.
    pub async fn complete(&self, hashes: &[Hash]) -> Result<Vec<bool>> {
        self.are_complete(hashes, false).await
    }

    /// As [`complete`](Self::complete), by the names of the index's rows alone, which are read once where many are asked for and the store
    /// has up to 200,000 blobs. That a row is damaged shows when somebody asks for its blob alone; until then it counts as here.
    ///
    /// # Errors
    /// As [`complete`](Self::complete).
    pub async fn complete_by_index(&self, hashes: &[Hash]) -> Result<Vec<bool>> {
        self.check_open()?;
        self.inner.core.tables.get_to_know(hashes.len()).await?;
        self.are_complete(hashes, true).await
    }

    async fn are_complete(&self, hashes: &[Hash], by_index: bool) -> Result<Vec<bool>> {
        self.check_open()?;
        stream::iter(hashes.to_vec())
            .map(|hash| {
                let core = self.inner.core.clone();
                async move { core.is_complete(hash, by_index).await }
            })
            .buffered(ASKED_AT_ONCE)
            .try_collect()
            .await
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
        let mut reached = Reached::default();
        reached.walk(self, root).await?;
        Ok(reached.hashes)
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

    /// Removes every blob that nothing reaches, and gives the space back. Dropping the future leaves what was not removed
    /// yet to the next collection.
    ///
    /// # Errors
    /// Nothing is removed if anything that is needed to tell what is reachable cannot be read: [`Error::TagsDamaged`],
    /// [`Error::SequencesDamaged`], [`Error::SequenceTooLarge`], [`Error::Blobs`]. [`Error::Closed`], [`Error::Io`].
    pub async fn gc(&self) -> Result<GcReport> {
        self.check_open()?;
        let inner = &self.inner;
        let _gate = inner.gate.write().await;
        let roots = lock(&inner.protected).keys().copied().collect();
        gc::collect(&inner.core, &inner.store, &inner.pins, roots, &inner.swept).await
    }

    /// Does something to its end, also when whoever asked goes away.
    async fn to_the_end<T: Send + 'static>(
        task: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        tokio::spawn(task).await.map_err(|_| Error::Closed)?
    }

    /// Makes what was removed unreadable for good, even for somebody who gets both the disk and the key later: puts the index, which
    /// holds the key of each blob, under a new key and deletes the old one. Takes time in proportion to the number of
    /// blobs, so it is done for many deleted ones together.
    ///
    /// The old key was one entry of the protected store. Whether that forgets what it deletes is up to the operating
    /// system; flash memory may keep remains of it for a while.
    ///
    /// # Errors
    /// [`Error::TagsDamaged`], and those of the key's store; then the old key stays. [`Error::Closed`], [`Error::Io`].
    pub async fn erase(&self) -> Result<()> {
        self.check_open()?;
        // Alone, since whoever reads the whole index finds nothing under the names of another epoch.
        let _gate = self.inner.gate.write().await;
        self.inner.core.tables.rotate().await
    }

    /// Guards the store's key in another way from now on, and changes it: for a new password, or when the old one may be
    /// known to somebody.
    ///
    /// # Errors
    /// As [`erase`](Self::erase); then the old protection stays, except after [`Error::KeyUncertain`].
    pub async fn rekey(&self, protection: Protection) -> Result<()> {
        self.check_open()?;
        let inner = self.inner.clone();
        // To its end, so that a protection which was not taken is not left in place.
        Self::to_the_end(async move {
            let _gate = inner.gate.write().await;
            let old = inner.secrets.set_protection(protection).await;
            let rotated = inner.core.tables.rotate().await;
            if rotated.is_err() {
                inner.secrets.set_protection(old).await;
            }
            rotated
        })
        .await
    }

    /// What the store holds.
    ///
    /// # Errors
    /// [`Error::Closed`], [`Error::Io`].
    pub async fn usage(&self) -> Result<Usage> {
        self.check_open()?;
        let core = &self.inner.core;
        let tables = core.tables.disk_bytes().await?;
        let backend = core.backend.clone();
        let files = blocking(move || backend.list_files())
            .await?
            .map_err(segment_error)?;
        let totals = core.tables.totals();
        Ok(Usage {
            blobs: totals.blobs,
            bytes: totals.bytes,
            disk_bytes: tables + files.iter().map(|(_, bytes)| bytes).sum::<u64>(),
        })
    }

    /// Reads every blob and verifies it against its hash. What is damaged counts as missing afterwards.
    ///
    /// # Errors
    /// [`Error::Closed`], [`Error::Io`], [`Error::Damaged`] and [`Error::Blobs`] if the disk, or the names of the index's rows, cannot be
    /// read at all.
    pub async fn verify(
        &self,
        mut progress: impl FnMut(VerifyProgress) + Send,
    ) -> Result<VerifyReport> {
        self.check_open()?;
        let hashes = self.list().hashes().await.map_err(Error::iroh)?;
        let mut report = VerifyReport::default();
        for hash in &hashes {
            self.check_open()?;
            let (bytes, damaged) = bao::verify(&self.inner.core, *hash).await?;
            report.blobs += 1;
            report.bytes += bytes;
            if damaged {
                report.damaged.push(*hash);
            }
            progress(VerifyProgress {
                blobs: report.blobs,
                of_blobs: hashes.len() as u64,
                bytes: report.bytes,
            });
        }
        Ok(report)
    }

    /// Writes everything down and releases the directory. All clones are closed by it; closing again does nothing.
    ///
    /// # Errors
    /// [`Error::Blobs`] if the store could not be shut down in order.
    pub async fn close(&self) -> Result<()> {
        self.inner.closed.store(true, Ordering::Relaxed);
        // Whoever closes at the same time waits until it is done.
        let mut done = self.inner.closing.lock().await;
        if *done {
            return Ok(());
        }
        *done = true;
        self.inner.store.shutdown().await.map_err(Error::iroh)
    }

    /// Closes the store and destroys it: first its key, so that nothing can be read from then on, then all the rest.
    ///
    /// # Errors
    /// [`Error::Io`] and those of the key's store. Call [`destroy`](Self::destroy) to try again.
    pub async fn wipe(self) -> Result<()> {
        let core = self.inner.core.clone();
        let name = secret_name(&self.inner.id);
        self.inner.secrets.remove(&name).await?;
        self.close().await?;
        // A new key may have been on its way.
        self.inner.secrets.remove(&name).await?;
        delete_tables(&*core.backend, &prefix(&self.inner.id)).await?;
        let (backend, dir) = (core.backend.clone(), self.inner.dir.clone());
        blocking(move || {
            for (name, _) in backend.list_files()? {
                backend.remove_file(&name)?;
            }
            remove_dir(&dir)
        })
        .await?
        .map_err(segment_error)
    }

    /// As [`wipe`](Self::wipe), for a store that cannot be opened, since its key or its password is lost.
    ///
    /// # Errors
    /// [`Error::InUse`], [`Error::Io`] and those of the key's store.
    pub async fn destroy(api: &VeilidAPI, dir: &Path) -> Result<()> {
        let path = dir.to_owned();
        let (lock, found) = blocking(move || prepare(&path)).await??;
        if let Some(id) = found {
            let secrets = Secrets::new(api, Protection::default());
            secrets.remove(&secret_name(&id)).await?;
            let backend = VeilidBackend::open(api, dir).await?;
            delete_tables(&backend, &prefix(&id)).await?;
        }
        let path = dir.to_owned();
        blocking(move || {
            remove_dir(&path)?;
            drop(lock);
            Ok(())
        })
        .await?
        .map_err(|source| Error::Io {
            path: dir.to_owned(),
            source,
        })
    }

    /// The directory of the store.
    pub fn dir(&self) -> &Path {
        &self.inner.dir
    }

    fn check_open(&self) -> Result<()> {
        if self.inner.closed.load(Ordering::Relaxed) {
            return Err(Error::Closed);
        }
        Ok(())
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

fn secret_name(id: &str) -> String {
    format!("save-store-{id}")
}

fn prefix(id: &str) -> String {
    format!("save_store_{}", &id[..16])
}

async fn delete_tables(backend: &dyn Backend, prefix: &str) -> Result<()> {
    for name in backend.table_names() {
        if name.starts_with(prefix) {
            backend.delete_table(&name).await?;
        }
    }
    Ok(())
}

/// Removes what a store made in its directory, the directory itself if nothing else is in it.
fn remove_dir(dir: &Path) -> io::Result<()> {
    let gone = |result: io::Result<()>| match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    };
    gone(std::fs::remove_dir_all(dir.join("segments")))?;
    for file in [
        FORMAT_FILE,
        NEW_FORMAT_FILE,
        "tables",
        "tables.new",
        LOCK_FILE,
    ] {
        gone(std::fs::remove_file(dir.join(file)))?;
    }
    match gone(std::fs::remove_dir(dir)) {
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
        result => result,
    }
}

/// Makes the directory, takes its lock and reads its format: the id of the store, if there is one.
fn prepare(dir: &Path) -> Result<(File, Option<String>)> {
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
    match std::fs::read(dir.join(FORMAT_FILE)) {
        Ok(found) => read_format(dir, &found).map(|id| (lock, Some(id))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let segments = dir.join("segments");
            let used =
                std::fs::read_dir(&segments).is_ok_and(|mut entries| entries.next().is_some());
            if used {
                return Err(Error::Damaged {
                    path: dir.to_owned(),
                    cause: "there are segments, but no format file".to_owned(),
                });
            }
            Ok((lock, None))
        }
        Err(source) => Err(io(source)),
    }
}

fn read_format(dir: &Path, found: &[u8]) -> Result<String> {
    let path = dir.to_owned();
    let text = String::from_utf8_lossy(found.get(..128).unwrap_or(found)).into_owned();
    let mut lines = text.lines();
    let first = lines.next().unwrap_or_default();
    if first == OLD_FORMAT {
        return Err(Error::OlderFormat { path });
    }
    let version = first
        .strip_prefix(FORMAT)
        .and_then(|version| version.parse::<u32>().ok());
    let id = lines.next().unwrap_or_default();
    match version {
        Some(version) if version > VERSION => Err(Error::NewerFormat { path, version }),
        Some(version) if version < VERSION => Err(Error::OlderFormat { path }),
        Some(VERSION) if id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit()) => {
            Ok(id.to_owned())
        }
        _ => Err(Error::UnknownFormat {
            path,
            found: text.chars().take(64).collect(),
        }),
    }
}

/// Renamed into place, so that a crash leaves either no format file or a whole one.
fn write_format(dir: &Path, id: &str) -> io::Result<()> {
    let new = dir.join(NEW_FORMAT_FILE);
    let mut file = File::create(&new)?;
    file.write_all(format!("{FORMAT}{VERSION}\n{id}\n").as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&new, dir.join(FORMAT_FILE))?;
    sync_directory(dir)
}

#[cfg(test)]
mod tests;
