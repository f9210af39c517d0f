//! The backend in memory. Its disk outlives the process that used it, so that tests can end one at any write and go on
//! with the next, or lose what was not synced.

use std::{
    collections::{BTreeMap, HashMap},
    fmt, io,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use futures::future::{BoxFuture, ready};
use zeroize::Zeroizing;

use super::{Backend, Op, SegmentFile, Table};
use crate::{Error, Result, secrets::RawSecrets};

#[cfg(test)]
mod faults;

#[cfg(test)]
pub(crate) use faults::Loss;

type Rows = BTreeMap<(u32, Bytes), Bytes>;

/// A disk, and a process that uses it. Clones are the same process.
#[derive(Clone)]
pub(crate) struct MemoryBackend {
    disk: Arc<Disk>,
    process: Arc<Process>,
}

#[derive(Default)]
struct Disk {
    tables: Mutex<BTreeMap<String, Arc<TableData>>>,
    files: Mutex<BTreeMap<String, Arc<FileData>>>,
    /// The files as a power cut would leave them.
    durable_files: Mutex<BTreeMap<String, Arc<FileData>>>,
    secrets: Mutex<BTreeMap<String, Zeroizing<Vec<u8>>>>,
    unguarded: AtomicBool,
    /// Whether what is not durable is kept apart. Costs memory, and is of use only to who cuts the power.
    keeps_durable: bool,
}

struct Process {
    alive: AtomicBool,
    /// Writes until now, of all kinds.
    writes: AtomicU64,
    /// After so many, the process dies in the middle of the next.
    dies_after: AtomicU64,
    /// After so many, the disk is full.
    full_after: AtomicU64,
    open: Mutex<HashMap<String, Weak<MemoryTable>>>,
}

#[derive(Default)]
struct TableData {
    columns: AtomicU64,
    state: Mutex<TableState>,
}

#[derive(Default)]
struct TableState {
    rows: Rows,
    /// None as long as the table itself is not durable.
    durable: Option<Rows>,
    since: Vec<Vec<Op>>,
}

#[derive(Default)]
struct FileData {
    state: Mutex<FileState>,
}

#[derive(Default)]
struct FileState {
    data: Vec<u8>,
    durable: Vec<u8>,
    since: Vec<(usize, Bytes)>,
}

/// Why a write fails.
enum Fault {
    Dead,
    /// The process dies now, in the middle of the write.
    Dies,
    Full,
}

impl From<Fault> for io::Error {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Dead | Fault::Dies => io::Error::other("the process is dead"),
            Fault::Full => io::ErrorKind::StorageFull.into(),
        }
    }
}

impl fmt::Debug for MemoryBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryBackend").finish_non_exhaustive()
    }
}

impl Default for MemoryBackend {
    fn default() -> Self {
        Self::on(Arc::default())
    }
}

impl MemoryBackend {
    fn on(disk: Arc<Disk>) -> Self {
        Self {
            disk,
            process: Arc::new(Process {
                alive: AtomicBool::new(true),
                writes: AtomicU64::new(0),
                dies_after: AtomicU64::new(u64::MAX),
                full_after: AtomicU64::new(u64::MAX),
                open: Mutex::default(),
            }),
        }
    }

    fn open_now(&self, name: &str, columns: u32) -> Result<Arc<dyn Table>> {
        let mut open = lock(&self.process.open);
        let known = open.get(name).and_then(Weak::upgrade);
        if let Some(table) = known {
            if u64::from(columns) > table.data.columns.load(Ordering::Relaxed) {
                return Err(Error::blobs("the table is open with fewer columns"));
            }
            return Ok(table);
        }
        self.process.read().map_err(failed)?;
        let mut tables = lock(&self.disk.tables);
        let data = match tables.get(name) {
            Some(data) => data.clone(),
            None => {
                self.process.write().map_err(failed)?;
                let data = Arc::new(TableData::default());
                tables.insert(name.to_owned(), data.clone());
                data
            }
        };
        data.columns.fetch_max(columns.into(), Ordering::Relaxed);
        let table = Arc::new(MemoryTable {
            data,
            process: self.process.clone(),
            keeps_durable: self.disk.keeps_durable,
        });
        open.insert(name.to_owned(), Arc::downgrade(&table));
        Ok(table)
    }

    fn delete_now(&self, name: &str) -> Result<()> {
        if lock(&self.process.open)
            .get(name)
            .is_some_and(|table| table.strong_count() > 0)
        {
            return Err(Error::blobs("the table is still open"));
        }
        // Deleting needs no space.
        self.process.write().or_else(not_full).map_err(failed)?;
        lock(&self.disk.tables).remove(name);
        Ok(())
    }
}

impl Backend for MemoryBackend {
    fn open_table(&self, name: &str, columns: u32) -> BoxFuture<'_, Result<Arc<dyn Table>>> {
        Box::pin(ready(self.open_now(name, columns)))
    }

    fn delete_table(&self, name: &str) -> BoxFuture<'_, Result<()>> {
        Box::pin(ready(self.delete_now(name)))
    }

    fn table_names(&self) -> Vec<String> {
        lock(&self.disk.tables).keys().cloned().collect()
    }

    fn table_bytes(&self, name: &str) -> u64 {
        lock(&self.disk.tables).get(name).map_or(0, |table| {
            lock(&table.state)
                .rows
                .iter()
                .map(|((_, key), value)| (key.len() + value.len()) as u64)
                .sum()
        })
    }

    fn secrets(&self) -> Arc<dyn RawSecrets> {
        Arc::new(self.clone())
    }

    fn create_file(&self, name: &str) -> io::Result<Arc<dyn SegmentFile>> {
        let mut files = lock(&self.disk.files);
        if files.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.process.write()?;
        let data = Arc::new(FileData::default());
        files.insert(name.to_owned(), data.clone());
        Ok(self.file(data))
    }

    fn open_file(&self, name: &str) -> io::Result<Arc<dyn SegmentFile>> {
        self.process.read()?;
        match lock(&self.disk.files).get(name) {
            Some(data) => Ok(self.file(data.clone())),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn remove_file(&self, name: &str) -> io::Result<()> {
        self.process.write().or_else(not_full)?;
        lock(&self.disk.files).remove(name);
        Ok(())
    }

    fn list_files(&self) -> io::Result<Vec<(String, u64)>> {
        self.process.read()?;
        Ok(lock(&self.disk.files)
            .iter()
            .map(|(name, file)| (name.clone(), lock(&file.state).data.len() as u64))
            .collect())
    }

    fn sync_files(&self) -> io::Result<()> {
        self.process.write().or_else(not_full)?;
        if self.disk.keeps_durable {
            let files = lock(&self.disk.files).clone();
            *lock(&self.disk.durable_files) = files;
        }
        Ok(())
    }
}

impl MemoryBackend {
    fn file(&self, data: Arc<FileData>) -> Arc<dyn SegmentFile> {
        Arc::new(MemoryFile {
            data,
            process: self.process.clone(),
            keeps_durable: self.disk.keeps_durable,
        })
    }
}

impl Process {
    fn read(&self) -> Result<(), Fault> {
        if self.alive.load(Ordering::SeqCst) {
            Ok(())
        } else {
            Err(Fault::Dead)
        }
    }

    /// Counts a write, and says whether it fails.
    fn write(&self) -> Result<(), Fault> {
        self.read()?;
        let before = self.writes.fetch_add(1, Ordering::SeqCst);
        if before >= self.dies_after.load(Ordering::SeqCst) {
            self.alive.store(false, Ordering::SeqCst);
            return Err(Fault::Dies);
        }
        if before >= self.full_after.load(Ordering::SeqCst) {
            return Err(Fault::Full);
        }
        Ok(())
    }
}

struct MemoryTable {
    data: Arc<TableData>,
    process: Arc<Process>,
    keeps_durable: bool,
}

impl fmt::Debug for MemoryTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryTable").finish_non_exhaustive()
    }
}

impl MemoryTable {
    fn check(&self, column: u32) -> Result<()> {
        self.process.read().map_err(failed)?;
        if u64::from(column) < self.data.columns.load(Ordering::Relaxed) {
            Ok(())
        } else {
            Err(Error::blobs("there is no such column"))
        }
    }

    fn commit_now(&self, ops: Vec<Op>) -> Result<()> {
        for op in &ops {
            let (Op::Put { column, .. } | Op::Delete { column, .. }) = op;
            self.check(*column)?;
        }
        if ops.is_empty() {
            return Ok(());
        }
        self.process.write().map_err(failed)?;
        let mut state = lock(&self.data.state);
        apply(&mut state.rows, &ops);
        if self.keeps_durable {
            state.since.push(ops);
        }
        Ok(())
    }

    fn checkpoint_now(&self) -> Result<()> {
        self.process.write().map_err(failed)?;
        if self.keeps_durable {
            let mut state = lock(&self.data.state);
            let state = &mut *state;
            let durable = state.durable.get_or_insert_default();
            for ops in state.since.drain(..) {
                apply(durable, &ops);
            }
        }
        Ok(())
    }
}

impl Table for MemoryTable {
    fn load(&self, column: u32, key: Bytes) -> BoxFuture<'_, Result<Option<Bytes>>> {
        let value = self
            .check(column)
            .map(|()| lock(&self.data.state).rows.get(&(column, key)).cloned());
        Box::pin(ready(value))
    }

    fn keys(&self, column: u32) -> BoxFuture<'_, Result<Vec<Bytes>>> {
        let keys = self.check(column).map(|()| {
            lock(&self.data.state)
                .rows
                .range((column, Bytes::new())..)
                .take_while(|((of, _), _)| *of == column)
                .map(|((_, key), _)| key.clone())
                .collect()
        });
        Box::pin(ready(keys))
    }

    fn commit(&self, ops: Vec<Op>) -> BoxFuture<'_, Result<()>> {
        Box::pin(ready(self.commit_now(ops)))
    }

    fn checkpoint(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(ready(self.checkpoint_now()))
    }
}

struct MemoryFile {
    data: Arc<FileData>,
    process: Arc<Process>,
    keeps_durable: bool,
}

impl fmt::Debug for MemoryFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryFile").finish_non_exhaustive()
    }
}

impl MemoryFile {
    fn put(&self, data: &[u8], offset: u64) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let end = start
            .checked_add(data.len())
            .ok_or(io::ErrorKind::FileTooLarge)?;
        let mut state = lock(&self.data.state);
        write_at(&mut state.data, start..end, data);
        if self.keeps_durable {
            state.since.push((start, Bytes::copy_from_slice(data)));
        }
        Ok(())
    }
}

impl SegmentFile for MemoryFile {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.process.read()?;
        let state = lock(&self.data.state);
        let part = usize::try_from(offset)
            .ok()
            .and_then(|start| state.data.get(start..)?.get(..buf.len()))
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        buf.copy_from_slice(part);
        Ok(())
    }

    fn read_now(&self, buf: &mut [u8], offset: u64) -> io::Result<bool> {
        self.read_exact_at(buf, offset).map(|()| true)
    }

    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        match self.process.write() {
            Ok(()) => self.put(data, offset),
            Err(Fault::Dead) => Err(Fault::Dead.into()),
            // A write that fails can have written a part.
            Err(fault) => {
                let (part, _) = data.split_at(data.len() / 2);
                self.put(part, offset)?;
                Err(fault.into())
            }
        }
    }

    fn cut(&self, len: u64) -> io::Result<()> {
        self.process.read()?;
        let mut state = lock(&self.data.state);
        // As far as it goes, that is all of it.
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        state.data.truncate(len);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.process.write().or_else(not_full)?;
        if self.keeps_durable {
            let mut state = lock(&self.data.state);
            let state = &mut *state;
            for (start, data) in state.since.drain(..) {
                write_at(&mut state.durable, start..start + data.len(), &data);
            }
        }
        Ok(())
    }
}

impl RawSecrets for MemoryBackend {
    fn load<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<Zeroizing<Vec<u8>>>>> {
        let read = self.process.read().map_err(failed);
        Box::pin(ready(
            read.map(|()| lock(&self.disk.secrets).get(name).cloned()),
        ))
    }

    fn save<'a>(&'a self, name: &'a str, value: &'a [u8]) -> BoxFuture<'a, Result<()>> {
        let written = self.process.write().map_err(failed);
        Box::pin(ready(written.map(|()| {
            let value = Zeroizing::new(value.to_vec());
            lock(&self.disk.secrets).insert(name.to_owned(), value);
        })))
    }

    fn remove<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<()>> {
        let written = self.process.write().or_else(not_full).map_err(failed);
        Box::pin(ready(written.map(|()| {
            lock(&self.disk.secrets).remove(name);
        })))
    }

    fn guarded(&self) -> bool {
        !self.disk.unguarded.load(Ordering::Relaxed)
    }
}

fn apply(rows: &mut Rows, ops: &[Op]) {
    for op in ops.iter().cloned() {
        match op {
            Op::Put { column, key, value } => rows.insert((column, key), value),
            Op::Delete { column, key } => rows.remove(&(column, key)),
        };
    }
}

fn write_at(file: &mut Vec<u8>, range: std::ops::Range<usize>, data: &[u8]) {
    if file.len() < range.end {
        file.resize(range.end, 0);
    }
    if let Some(target) = file.get_mut(range) {
        target.copy_from_slice(data);
    }
}

/// What gives space back works on a full disk.
fn not_full(fault: Fault) -> Result<(), Fault> {
    match fault {
        Fault::Full => Ok(()),
        fault => Err(fault),
    }
}

fn failed(fault: Fault) -> Error {
    Error::Io {
        path: PathBuf::from("memory"),
        source: fault.into(),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
