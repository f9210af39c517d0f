//! The real backend: Veilid's table store and protected store, and files in the store's directory.

use std::{
    collections::HashMap,
    fmt,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::{
    sync::Mutex,
    time::{Instant, sleep},
};
use veilid_core::{TableDB, VeilidAPI, VeilidAPIError};

use super::{Backend, Op, SegmentFile, Table};
use crate::{
    Error, Result,
    secrets::{RawSecrets, VeilidSecrets, sync_directory, sync_parent},
};

mod names;

use names::{Names, Tables};

/// How Veilid says that a table cannot be deleted yet.
const STILL_OPEN: &str = "still opened";
const SEGMENTS: &str = "segments";
/// Bytes that are written to find out whether a disk is full.
const PROBE: usize = 256 * 1024;
/// Veilid's own upkeep opens every table now and then for as long as it takes to empty their logs. A table that cannot be closed for that
/// reason is tried again so often and for so long.
const AGAIN: Duration = Duration::from_millis(5);
const PATIENCE: Duration = Duration::from_secs(30);

/// Tables and secrets of a Veilid node, and the segment files below a directory.
pub(crate) struct VeilidBackend {
    api: VeilidAPI,
    segments: PathBuf,
    tables: Tables,
    /// Held while a table is opened or deleted.
    changing: Mutex<()>,
    /// What the handles on a table have in common.
    open: std::sync::Mutex<HashMap<String, Weak<()>>>,
    secrets: Arc<VeilidSecrets>,
}

impl fmt::Debug for VeilidBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VeilidBackend")
            .field("segments", &self.segments)
            .finish_non_exhaustive()
    }
}

impl VeilidBackend {
    /// Makes what is missing in `dir`, which has to be there and to be this process's own.
    pub(crate) async fn open(api: &VeilidAPI, dir: &Path) -> Result<Self> {
        let config = api.config().map_err(|_| Error::Closed)?;
        let dir = dir.to_owned();
        let (api, secrets) = (api.clone(), Arc::new(VeilidSecrets::new(api)));
        blocking(move || {
            let failed = |source| Error::Io {
                path: dir.clone(),
                source,
            };
            let segments = dir.join(SEGMENTS);
            make_directory(&segments).map_err(failed)?;
            let names = Names::read(&dir).map_err(failed)?;
            Ok(Self {
                api,
                segments,
                tables: Tables::new(&config, names),
                changing: Mutex::default(),
                open: std::sync::Mutex::default(),
                secrets,
            })
        })
        .await?
    }

    fn handle(&self, name: &str) -> Arc<()> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(handle) = open.get(name).and_then(Weak::upgrade) {
            return handle;
        }
        open.retain(|_, handle| handle.strong_count() > 0);
        let handle = Arc::new(());
        open.insert(name.to_owned(), Arc::downgrade(&handle));
        handle
    }

    fn has_handles(&self, name: &str) -> bool {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.get(name)
            .is_some_and(|handle| handle.strong_count() > 0)
    }
}

impl Backend for VeilidBackend {
    fn open_table(&self, name: &str, columns: u32) -> BoxFuture<'_, Result<Arc<dyn Table>>> {
        let name = name.to_owned();
        Box::pin(async move {
            let _changing = self.changing.lock().await;
            let db = open_known(&self.api, &self.tables, &name, columns).await?;
            let path = self.tables.path(&db.table_name());
            let handle = self.handle(&name);
            Ok(Arc::new(VeilidTable {
                db,
                path,
                named: AtomicBool::new(false),
                handle,
            }) as Arc<dyn Table>)
        })
    }

    fn delete_table(&self, name: &str) -> BoxFuture<'_, Result<()>> {
        let name = name.to_owned();
        Box::pin(async move {
            let _changing = self.changing.lock().await;
            let give_up = Instant::now() + PATIENCE;
            while let Err(error) = self.api.delete_table_db(&name).await {
                let open = error.to_string().contains(STILL_OPEN);
                if !open || self.has_handles(&name) || Instant::now() > give_up {
                    return Err(failed(self.tables.directory(), error).await);
                }
                sleep(AGAIN).await;
            }
            let tables = self.tables.clone();
            blocking(move || tables.forget(&name)).await?
        })
    }

    fn table_names(&self) -> Vec<String> {
        self.tables.names()
    }

    fn table_bytes(&self, name: &str) -> u64 {
        self.tables.bytes(name)
    }

    fn secrets(&self) -> Arc<dyn RawSecrets> {
        self.secrets.clone()
    }

    fn create_file(&self, name: &str) -> io::Result<Arc<dyn SegmentFile>> {
        let mut options = File::options();
        options.read(true).write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let file = options.open(self.segments.join(name))?;
        Ok(Arc::new(VeilidFile { file }))
    }

    fn open_file(&self, name: &str) -> io::Result<Arc<dyn SegmentFile>> {
        let path = self.segments.join(name);
        let file = File::options().read(true).write(true).open(path)?;
        Ok(Arc::new(VeilidFile { file }))
    }

    fn remove_file(&self, name: &str) -> io::Result<()> {
        unless_missing(fs::remove_file(self.segments.join(name)))
    }

    fn list_files(&self) -> io::Result<Vec<(String, u64)>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.segments)? {
            let entry = entry?;
            let meta = match entry.metadata() {
                // Removed since.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                meta => meta?,
            };
            // What is no file or has another name than those that are given here is not ours.
            if let (true, Ok(name)) = (meta.is_file(), entry.file_name().into_string()) {
                files.push((name, meta.len()));
            }
        }
        Ok(files)
    }

    fn sync_files(&self) -> io::Result<()> {
        sync_directory(&self.segments)
    }
}

/// Opens a table of a node, or makes it, and remembers in `dir` which of the node's files it is.
///
/// Veilid forgets that when it fails to open a table, for lack of space for example, and when its own list, which has no
/// checksum, is damaged; the next time it makes an empty table of the same name. Then the file is put back. For tables that
/// must not be lost; not for those of a [`VeilidStore`](crate::VeilidStore), which does the same for its own. One process at a
/// time uses `dir`, which has to be there.
///
/// # Errors
/// [`Error::Damaged`] if the tables belong to another node, [`Error::Io`], [`Error::Closed`].
pub async fn open_table(api: &VeilidAPI, dir: &Path, name: &str, columns: u32) -> Result<TableDB> {
    let config = api.config().map_err(|_| Error::Closed)?;
    let path = dir.to_owned();
    let names = blocking(move || Names::read(&path))
        .await?
        .map_err(|source| Error::Io {
            path: dir.to_owned(),
            source,
        })?;
    open_known(api, &Tables::new(&config, names), name, columns).await
}

async fn open_known(api: &VeilidAPI, tables: &Tables, name: &str, columns: u32) -> Result<TableDB> {
    let db = open_once(api, tables, name, columns).await?;
    let internal = db.table_name();
    let known = tables.internal(name);
    if known.as_ref() == Some(&internal) {
        return Ok(db);
    }
    let (owned, owned_name) = (tables.clone(), name.to_owned());
    match known.filter(|known| tables.path(known).exists()) {
        Some(known) => {
            tracing::warn!("the table store has lost a table; its file is there and is put back");
            drop(db);
            let give_up = Instant::now() + PATIENCE;
            while tables.is_open(&internal) && Instant::now() < give_up {
                sleep(AGAIN).await;
            }
            blocking(move || owned.put_back(&owned_name, &known, &internal)).await??;
            open_once(api, tables, name, columns).await
        }
        None => {
            blocking(move || owned.remember(&owned_name, &internal)).await??;
            Ok(db)
        }
    }
}

async fn open_once(api: &VeilidAPI, tables: &Tables, name: &str, columns: u32) -> Result<TableDB> {
    match api.open_table_db(name, columns).await {
        Ok(db) => Ok(db),
        Err(VeilidAPIError::NotInitialized) if !api.is_shutdown() => Err(Error::Damaged {
            path: tables.directory().to_owned(),
            cause: "the node's device key is not the one of the tables".to_owned(),
        }),
        Err(error) => Err(failed(tables.directory(), error).await),
    }
}

#[derive(Debug)]
struct VeilidTable {
    db: TableDB,
    path: PathBuf,
    /// Whether the name of the log is durable.
    named: AtomicBool,
    /// Only to be counted.
    #[expect(dead_code)]
    handle: Arc<()>,
}

impl VeilidTable {
    async fn failed(&self, error: VeilidAPIError) -> Error {
        failed(&self.path, error).await
    }
}

impl Table for VeilidTable {
    fn load(&self, column: u32, key: Bytes) -> BoxFuture<'_, Result<Option<Bytes>>> {
        Box::pin(async move {
            match self.db.load(column, key).await {
                Ok(value) => Ok(value),
                Err(error) => Err(self.failed(error).await),
            }
        })
    }

    fn keys(&self, column: u32) -> BoxFuture<'_, Result<Vec<Bytes>>> {
        Box::pin(async move {
            match self.db.get_keys(column).await {
                Ok(keys) => Ok(keys),
                Err(error) => Err(self.failed(error).await),
            }
        })
    }

    fn commit(&self, ops: Vec<Op>) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let transaction = self.db.transact();
            for op in ops {
                let added = match op {
                    Op::Put { column, key, value } => transaction.store(column, key, value).await,
                    Op::Delete { column, key } => transaction.delete(column, key).await,
                };
                if let Err(error) = added {
                    transaction.rollback();
                    return Err(self.failed(error).await);
                }
            }
            match transaction.commit().await {
                Ok(()) => Ok(()),
                Err(error) => Err(self.failed(error).await),
            }
        })
    }

    fn checkpoint(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let path = self.path.clone();
            let named = self.named.load(Ordering::Relaxed);
            let synced = blocking(move || sync_log(&path, named)).await?;
            match synced {
                Ok(true) => self.named.store(true, Ordering::Relaxed),
                Ok(false) => {
                    if let Err(error) = self.db.cleanup().await {
                        return Err(self.failed(error).await);
                    }
                }
                Err(source) => {
                    let path = self.path.clone();
                    return Err(Error::Io { path, source });
                }
            }
            Ok(())
        })
    }
}

/// Syncs the log in which SQLite puts its commits until it moves them to the table's file, which it does not before the log is
/// synced, nor does it write over the log before that file is. That is a third of the time of Veilid's own `cleanup`, which moves
/// them. False if there is no log.
///
/// Never to be done with the file itself: closing it would take SQLite's locks away.
fn sync_log(table: &Path, named: bool) -> io::Result<bool> {
    let mut log = table.as_os_str().to_owned();
    log.push("-wal");
    match File::options().write(true).open(log) {
        Ok(log) => log.sync_data()?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    }
    if !named {
        sync_parent(table)?;
    }
    Ok(true)
}

#[derive(Debug)]
struct VeilidFile {
    file: File,
}

impl SegmentFile for VeilidFile {
    #[cfg(unix)]
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(&self.file, buf, offset)
    }

    #[cfg(unix)]
    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::write_all_at(&self.file, data, offset)
    }

    #[cfg(windows)]
    fn read_exact_at(&self, mut buf: &mut [u8], mut offset: u64) -> io::Result<()> {
        while !buf.is_empty() {
            match std::os::windows::fs::FileExt::seek_read(&self.file, buf, offset) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => {
                    buf = &mut buf[read..];
                    offset += read as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    #[cfg(windows)]
    fn write_all_at(&self, mut data: &[u8], mut offset: u64) -> io::Result<()> {
        while !data.is_empty() {
            match std::os::windows::fs::FileExt::seek_write(&self.file, data, offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    data = &data[written..];
                    offset += written as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn read_now(&self, mut buf: &mut [u8], mut offset: u64) -> io::Result<bool> {
        use rustix::io::{Errno, ReadWriteFlags, preadv2};
        while !buf.is_empty() {
            let read = preadv2(
                &self.file,
                &mut [io::IoSliceMut::new(buf)],
                offset,
                ReadWriteFlags::NOWAIT,
            );
            match read {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => {
                    buf = &mut buf[read..];
                    offset += read as u64;
                }
                Err(Errno::INTR) => {}
                // Not in memory, or the file system or the kernel cannot tell.
                Err(_) => return Ok(false),
            }
        }
        Ok(true)
    }

    fn cut(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

/// What a failure of the table store means. Veilid's errors carry no more than text.
async fn failed(path: &Path, error: VeilidAPIError) -> Error {
    if matches!(
        error,
        VeilidAPIError::NotInitialized | VeilidAPIError::Shutdown
    ) {
        return Error::Closed;
    }
    let cause = error.to_string();
    let says = |words: &[&str]| words.iter().any(|word| cause.contains(word));
    let path = path.to_owned();
    if says(&[
        "malformed",
        "not a database",
        "too short to decrypt",
        "data is too short",
    ]) {
        return Error::Damaged { path, cause };
    }
    if says(&[STILL_OPEN]) {
        return Error::blobs(cause);
    }
    let full = says(&["disk is full", "No space left", "quota exceeded"])
        // SQLite says no more than this when there is no space for its shared memory.
        || (says(&["I/O error", "unable to open"]) && is_full(&path).await);
    let source = if full {
        io::Error::new(io::ErrorKind::StorageFull, cause)
    } else {
        io::Error::other(cause)
    };
    Error::Io { path, source }
}

/// Whether the disk on which the table lies, or will lie, takes nothing more.
async fn is_full(path: &Path) -> bool {
    let directory = match path.parent() {
        Some(parent) if !path.is_dir() => parent.to_owned(),
        _ => path.to_owned(),
    };
    let probe = move || {
        let probe = directory.join("probe.tmp");
        let written = File::create(&probe)
            .and_then(|mut file| io::Write::write_all(&mut file, &vec![0; PROBE]));
        let _ = fs::remove_file(&probe);
        written.is_err_and(|error| {
            matches!(
                error.kind(),
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
            )
        })
    };
    blocking(probe).await.unwrap_or(false)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| Error::Closed)
}

fn make_directory(path: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)
}

fn unless_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}
