//! The repo itself.

mod commit;
mod publish;
mod replaced;

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use dht_records::{DeviceId, Fetch, GroupAccess, Records, RepoRecord};
use futures::{StreamExt, TryStreamExt, stream};
use iroh_blobs::Hash;
use store_adapter::VeilidStore;
use tokio::{
    io::AsyncRead,
    sync::{Mutex as AsyncMutex, MutexGuard as AsyncMutexGuard},
};
use veilid_core::{CRYPTO_KIND_VLD0, Crypto, KeyPair, PublicKey};

use crate::{
    Clock, Entry, EntryPath, Error, Existing, FileReader, Result,
    collection::{Contents, EntryKeys, Record, Shape, Version, blobs, file_blobs},
    export,
    import::{Imported, OnProgress, import, media_type},
    seal::FileKeys,
};

/// Contents with more records than this are read anew for each call instead of being kept in memory.
const CACHED_RECORDS: usize = 250_000;

/// How many files of one `write_many` are sealed at the same time.
const PARALLEL_IMPORTS: usize = 4;

/// What all repos of one device share.
#[derive(Clone)]
pub struct RepoContext {
    /// The records of this node.
    pub records: Records,
    /// Where the blobs lie.
    pub store: VeilidStore,
    /// This device.
    pub device: DeviceId,
    /// The time.
    pub clock: Arc<dyn Clock>,
}

/// How a file is written.
#[derive(Clone, Default)]
pub struct WriteOptions {
    /// Its media type, at most 127 bytes of visible ASCII; by default what the ending of its name says.
    pub media_type: Option<String>,
    /// When it was modified, in seconds since 1970; by default now.
    pub modified: Option<u64>,
    /// Called with the bytes read so far.
    pub progress: Option<OnProgress>,
}

impl fmt::Debug for WriteOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WriteOptions")
            .field("media_type", &self.media_type)
            .field("modified", &self.modified)
            .finish_non_exhaustive()
    }
}

/// The data of a file that is to be written.
pub type Source = Box<dyn AsyncRead + Send + Unpin>;

/// A collection that is here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Root {
    /// Its hash.
    pub hash: Hash,
    /// The bytes of all its files before sealing. A replica cannot know them, and counts the sealed bytes that it has.
    pub bytes: u64,
    /// The number of its files.
    pub files: u64,
}

/// A repo: the files of one member of a group. Cheap to clone; all clones are one repo.
///
/// Open each repo once per process and clone the handle: writes through one handle are serialised, those through two are
/// not. Nothing but the methods that say so touches the network.
///
/// # When the process dies
/// A write stores in this order: the blobs, the shards, the root, the root's name in the store, the record; publishing comes
/// after. So there is the old state or the new one, never a part. Where it ended between name and record,
/// [`open`](Self::open) does the rest. Dropping a call is no different from that, and the next call does the rest.
#[derive(Clone)]
pub struct Repo {
    inner: Arc<Inner>,
}

struct Inner {
    record: RepoRecord,
    store: VeilidStore,
    device: DeviceId,
    clock: Arc<dyn Clock>,
    /// None for a replica.
    keys: Option<Keys>,
    /// The names of roots in the store.
    names: Names,
    /// Held while the collection is changed.
    writing: AsyncMutex<()>,
    /// Whether what is here was given up.
    forgotten: AtomicBool,
    cache: Mutex<Option<Held>>,
    #[cfg(test)]
    fail_at: Mutex<Option<commit::Step>>,
}

struct Keys {
    files: FileKeys,
    entries: EntryKeys,
}

struct Names {
    /// What is here completely, shards and all, and what this device says the repo is.
    held: String,
    /// Set while the record does not say yet what is held.
    pending: String,
    /// A list of what another device replaced, which keeps nothing but itself.
    replaced: String,
}

/// Contents with the hash of their collection.
#[derive(Clone)]
struct Held {
    root: Hash,
    contents: Contents,
}

impl Repo {
    /// Makes a new repo, empty, with new keys. Needs no network.
    ///
    /// The key pair is not stored here; without it the repo cannot be written any more.
    ///
    /// # Errors
    /// As [`create_with`](Self::create_with).
    pub async fn create(
        ctx: &RepoContext,
        access: &GroupAccess,
        name: &str,
    ) -> Result<(Self, KeyPair)> {
        let keypair =
            Crypto::generate_keypair(CRYPTO_KIND_VLD0).map_err(dht_records::Error::from)?;
        Ok((
            Self::create_with(ctx, access, keypair.clone(), name).await?,
            keypair,
        ))
    }

    /// Makes a new repo with keys that the caller has stored already. Doing it again after an interruption does no harm.
    ///
    /// # Errors
    /// [`Error::NoContentKey`] for a replica, [`Error::Records`], [`Error::Store`].
    pub async fn create_with(
        ctx: &RepoContext,
        access: &GroupAccess,
        keypair: KeyPair,
        name: &str,
    ) -> Result<Self> {
        if access.content().is_none() {
            return Err(Error::NoContentKey);
        }
        let record = RepoRecord::create(&ctx.records, keypair, access).await?;
        let repo = Self::new(ctx, access, record);
        repo.set_name(name).await?;
        if repo.held_hash().await?.is_none() {
            // An empty collection tells the others that there is nothing, where none would say nothing.
            repo.change(|_, _| Ok(())).await?;
        }
        Ok(repo)
    }

    /// Opens a repo, writable with its key pair. Needs no network. Finishes a write that was interrupted.
    ///
    /// # Errors
    /// [`Error::KeyMismatch`], [`Error::Records`], [`Error::Store`]; [`Error::Collection`] if a write was interrupted and its
    /// collection is damaged.
    pub async fn open(
        ctx: &RepoContext,
        access: &GroupAccess,
        public: PublicKey,
        secret: Option<KeyPair>,
    ) -> Result<Self> {
        let record = match RepoRecord::attach(&ctx.records, access, public, secret).await {
            Err(dht_records::Error::KeyMismatch) => return Err(Error::KeyMismatch),
            attached => attached?,
        };
        let repo = Self::new(ctx, access, record);
        if repo.is_writable() {
            let _writing = repo.inner.writing.lock().await;
            repo.finish_pending().await?;
            repo.prune_replaced().await;
        }
        Ok(repo)
    }

    fn new(ctx: &RepoContext, access: &GroupAccess, record: RepoRecord) -> Self {
        let public = record.public_key();
        let keys = access.content().map(|content| Keys {
            files: FileKeys::new(&content),
            entries: EntryKeys::new(&content, public),
        });
        let names = Names {
            held: format!("repo/{public}"),
            pending: format!("repo-pending/{public}"),
            replaced: format!("repo-replaced/{public}"),
        };
        Self {
            inner: Arc::new(Inner {
                store: ctx.store.clone(),
                device: ctx.device,
                clock: ctx.clock.clone(),
                record,
                keys,
                names,
                writing: AsyncMutex::default(),
                forgotten: AtomicBool::new(false),
                cache: Mutex::default(),
                #[cfg(test)]
                fail_at: Mutex::default(),
            }),
        }
    }

    /// The repo's public key, which identifies it.
    pub fn public_key(&self) -> &PublicKey {
        self.inner.record.public_key()
    }

    /// Whether this handle can write.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.inner.record.writable()
    }

    /// The repo's record.
    #[must_use]
    pub fn record(&self) -> &RepoRecord {
        &self.inner.record
    }

    /// The repo's name; `None` if it is not known.
    ///
    /// # Errors
    /// [`Error::NoContentKey`] for a replica, [`Error::Records`].
    pub async fn name(&self, fetch: Fetch) -> Result<Option<String>> {
        self.keys()?;
        Ok(self
            .inner
            .record
            .metadata(fetch)
            .await?
            .map(|metadata| metadata.value.name))
    }

    /// Sets the repo's name, to be published.
    ///
    /// # Errors
    /// [`Error::ReadOnly`], [`Error::NoContentKey`], [`Error::Records`].
    pub async fn set_name(&self, name: &str) -> Result<()> {
        self.check_writable()?;
        let named = self
            .inner
            .record
            .edit_metadata(|metadata| name.clone_into(&mut metadata.name));
        named.await?;
        Ok(())
    }

    /// Writes a file, replacing one of the same path. What is returned is durable here, and to be published.
    ///
    /// The data are sealed and stored as they come, in memory that does not depend on their size. Other calls go on meanwhile;
    /// of two writes of one path the one that ends last stands.
    ///
    /// # Errors
    /// [`Error::ReadOnly`], [`Error::NoContentKey`], [`Error::MediaType`], [`Error::Source`], [`Error::Store`],
    /// [`Error::Records`]; [`Error::Collection`] if the repo is full or damaged. Nothing was changed then.
    pub async fn write<R>(&self, path: &EntryPath, data: R, options: WriteOptions) -> Result<Entry>
    where
        R: AsyncRead + Send + Unpin,
    {
        let file = self.import(path.clone(), data, options).await?;
        let mut entries = self.enter(vec![file]).await?;
        Ok(entries.pop().expect("one entry for each file"))
    }

    /// Writes many files, and makes one root for all of them: either all are there afterwards, or none. Where two have the
    /// same path, the later one stands.
    ///
    /// # Errors
    /// As [`write`](Self::write), of the first file that fails.
    pub async fn write_many(
        &self,
        files: Vec<(EntryPath, Source, WriteOptions)>,
    ) -> Result<Vec<Entry>> {
        // Collected first: a closure inside the stream would not be general enough for a caller that has to be `Send`.
        let imports: Vec<_> = files
            .into_iter()
            .map(|(path, data, options)| self.import(path, data, options))
            .collect();
        let files = stream::iter(imports)
            .buffered(PARALLEL_IMPORTS)
            .try_collect()
            .await?;
        self.enter(files).await
    }

    /// Deletes a file, to be published. Its bytes come back with the next garbage collection of the store, unless another
    /// path has them too.
    ///
    /// # Errors
    /// [`Error::NoSuchFile`]; else as [`write`](Self::write).
    pub async fn delete(&self, path: &EntryPath) -> Result<()> {
        self.check_writable()?;
        let (device, now) = (self.inner.device, self.inner.clock.now());
        self.change(|keys, contents| {
            if contents.file(keys, path).is_none() {
                return Err(Error::NoSuchFile);
            }
            let deletion = contents.deletion(keys, path, device, now)?;
            contents.merge(keys, [deletion])?;
            Ok(())
        })
        .await
    }

    /// Begins to read a file.
    ///
    /// # Errors
    /// [`Error::NoSuchFile`]; [`Error::NotHere`] with the blob that has to be fetched first (the file's, or one of the
    /// collection); [`Error::NoContentKey`], [`Error::Seal`], [`Error::SizeMismatch`], [`Error::Store`].
    pub async fn read(&self, path: &EntryPath) -> Result<FileReader> {
        let entry = self.entry(path).await?.ok_or(Error::NoSuchFile)?;
        self.read_version(entry).await
    }

    /// Writes a file to disk below a directory, at the place that its path says, and gives that place. It appears there when
    /// it is complete, or not at all. Symbolic links below the directory are not followed.
    ///
    /// # Errors
    /// [`Error::Exists`], [`Error::NotADirectory`], [`Error::Export`]; else as [`read`](Self::read).
    pub async fn export(
        &self,
        path: &EntryPath,
        root: &Path,
        existing: Existing,
    ) -> Result<PathBuf> {
        let reader = self.read(path).await?;
        let path = reader.entry().path.clone();
        export::export(root, &path, reader, existing).await
    }

    /// All files, by path.
    ///
    /// # Errors
    /// [`Error::NoContentKey`], [`Error::Collection`], [`Error::Store`].
    pub async fn list(&self) -> Result<Vec<Entry>> {
        let contents = self.contents().await?;
        let mut entries: Vec<Entry> = contents.files().cloned().collect();
        entries.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        Ok(entries)
    }

    /// One file; `None` if there is none.
    ///
    /// # Errors
    /// As [`list`](Self::list).
    pub async fn entry(&self, path: &EntryPath) -> Result<Option<Entry>> {
        let contents = self.contents().await?;
        Ok(contents.file(&self.keys()?.entries, path).cloned())
    }

    /// Whether the blob of a file is here and complete.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn is_here(&self, entry: &Entry) -> Result<bool> {
        self.inner.store.has(entry.blob).await.map_err(blobs)
    }

    /// The collection that is here, shards and all (files or not); `None` if there is none yet.
    ///
    /// # Errors
    /// [`Error::Collection`], [`Error::Store`].
    pub async fn held_root(&self) -> Result<Option<Root>> {
        let Some(hash) = self.held_hash().await? else {
            return Ok(None);
        };
        Ok(Some(match &self.inner.keys {
            Some(_) => {
                let (files, bytes) = self.contents().await?.totals();
                Root { hash, bytes, files }
            }
            None => {
                let shape = Shape::load(&self.inner.store, hash).await?;
                Root {
                    hash,
                    bytes: shape.sealed_bytes,
                    files: shape.files,
                }
            }
        }))
    }

    /// All that the held collection reaches: the root, its shards, their metadata, and the blobs of the files, here or not.
    /// Empty if there is no collection. From memory, if the list is there.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn reachable(&self) -> Result<Vec<Hash>> {
        let Some(root) = self.held_hash().await? else {
            return Ok(Vec::new());
        };
        let known = self.cached(root);
        match known.and_then(|held| held.contents.reachable(root)) {
            Some(reachable) => Ok(reachable),
            None => Ok(self.inner.store.reachable(root).await?),
        }
    }

    /// The blobs of all files of the held collection, here or not, each once. Needs no keys.
    ///
    /// # Errors
    /// [`Error::Collection`], [`Error::Store`].
    pub async fn blobs(&self) -> Result<Vec<Hash>> {
        let Some(root) = self.held_hash().await? else {
            return Ok(Vec::new());
        };
        let mut blobs = if self.inner.keys.is_some() {
            let contents = self.contents().await?;
            contents.files().map(|entry| entry.blob).collect()
        } else {
            file_blobs(&self.inner.store, root).await?
        };
        blobs.sort_unstable();
        blobs.dedup();
        Ok(blobs)
    }

    /// Takes over a collection that was fetched: its root and all shards have to be here, files need not. Keep it with
    /// [`VeilidStore::protect`] while it is being fetched.
    ///
    /// A reader holds it afterwards instead of the former one. With the repo's key pair it comes from another device of the
    /// same member, and is merged: what is held afterwards, and is to be published, has the newer version of every file. The older
    /// ones that were here are [`replaced`](Self::replaced).
    ///
    /// # Errors
    /// [`Error::NotHere`] with what is missing; [`Error::Collection`] if it is not acceptable. Nothing was changed then.
    pub async fn adopt(&self, root: Hash) -> Result<()> {
        let _protected = self.inner.store.protect(root).await;
        let _writing = self.writing().await?;
        self.adopt_locked(root).await
    }

    /// Gives up what is held of this repo on this device; the blobs go with the next garbage collection. The record stays. A write that is
    /// under way, or comes later, fails with [`Error::Forgotten`].
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn forget(&self) -> Result<()> {
        let _writing = self.inner.writing.lock().await;
        self.inner.forgotten.store(true, Ordering::Relaxed);
        // First, so that it reaches the disk with the rest.
        self.forget_replaced().await?;
        self.inner
            .store
            .remove_root(&self.inner.names.pending)
            .await?;
        self.inner.store.remove_root(&self.inner.names.held).await?;
        self.set_cache(None);
        Ok(())
    }

    /// Waits for the other writers.
    async fn writing(&self) -> Result<AsyncMutexGuard<'_, ()>> {
        let writing = self.inner.writing.lock().await;
        if self.inner.forgotten.load(Ordering::Relaxed) {
            return Err(Error::Forgotten);
        }
        Ok(writing)
    }

    fn keys(&self) -> Result<&Keys> {
        self.inner.keys.as_ref().ok_or(Error::NoContentKey)
    }

    fn check_writable(&self) -> Result<()> {
        if self.is_writable() {
            Ok(())
        } else {
            Err(Error::ReadOnly)
        }
    }

    async fn held_hash(&self) -> Result<Option<Hash>> {
        Ok(self.inner.store.root(&self.inner.names.held).await?)
    }

    /// What is held, from memory if possible; empty if there is nothing.
    async fn contents(&self) -> Result<Contents> {
        Ok(self
            .held()
            .await?
            .map(|held| held.contents)
            .unwrap_or_default())
    }

    async fn held(&self) -> Result<Option<Held>> {
        let keys = self.keys()?;
        let Some(root) = self.held_hash().await? else {
            return Ok(None);
        };
        if let Some(held) = self.cached(root) {
            return Ok(Some(held));
        }
        let cached = self.lock_cache().clone();
        let known = cached.as_ref().map(|cached| &cached.contents);
        let contents = Contents::load(&self.inner.store, &keys.entries, root, known).await?;
        let held = Held { root, contents };
        self.set_cache(Some(held.clone()));
        Ok(Some(held))
    }

    fn set_cache(&self, held: Option<Held>) {
        let held = held.filter(|held| held.contents.len() <= CACHED_RECORDS);
        *self.lock_cache() = held;
    }

    /// What is held, if it is in memory.
    fn cached(&self, root: Hash) -> Option<Held> {
        let cached = self.lock_cache();
        cached.as_ref().filter(|held| held.root == root).cloned()
    }

    fn lock_cache(&self) -> MutexGuard<'_, Option<Held>> {
        self.inner
            .cache
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    async fn import<R>(&self, path: EntryPath, data: R, options: WriteOptions) -> Result<NewEntry>
    where
        R: AsyncRead + Send + Unpin,
    {
        self.check_writable()?;
        let media_type = media_type(options.media_type, path.file_name())?;
        let modified = options.modified.unwrap_or_else(|| self.inner.clock.now());
        let files = &self.keys()?.files;
        let imported = import(&self.inner.store, files, data, options.progress.as_ref()).await?;
        Ok(NewEntry {
            path,
            media_type,
            modified,
            imported,
        })
    }

    /// Enters imported files into the collection.
    async fn enter(&self, files: Vec<NewEntry>) -> Result<Vec<Entry>> {
        self.step(commit::Step::Blobs)?;
        if files.is_empty() {
            return Ok(Vec::new());
        }
        let mut entries = Vec::with_capacity(files.len());
        let device = self.inner.device;
        self.change(|keys, contents| {
            let mut version = contents.next_version(device)?;
            for file in &files {
                entries.push(file.entry(version));
                version.lamport = version
                    .lamport
                    .checked_add(1)
                    .ok_or(crate::collection::CollectionError::Exhausted)?;
            }
            contents.merge(keys, entries.iter().cloned().map(Record::File))?;
            Ok(())
        })
        .await?;
        Ok(entries)
    }
}

impl fmt::Debug for Repo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Repo")
            .field("writable", &self.is_writable())
            .finish_non_exhaustive()
    }
}

/// A file whose blob is in the store and which is in no collection yet.
struct NewEntry {
    path: EntryPath,
    media_type: String,
    modified: u64,
    imported: Imported,
}

impl NewEntry {
    fn entry(&self, version: Version) -> Entry {
        Entry {
            path: self.path.clone(),
            size: self.imported.size,
            media_type: self.media_type.clone(),
            modified: self.modified,
            plain_hash: self.imported.plain_hash,
            blob: self.imported.tag.hash(),
            version,
            extension: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests;
