//! The tables of a store, as everybody sees them; the [writer](crate::writer) writes to them.

use std::{
    collections::{HashMap, HashSet},
    ops::Deref,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use iroh_blobs::Hash;
use tokio::{
    sync::{RwLock, mpsc, oneshot},
    time::timeout,
};

use crate::{
    Error, Result,
    backend::{Backend, Op, Table},
    core::{blocking, lock, segment_error, signed},
    index::{COLUMNS, Change, Entry, Id, Index, Packs, Totals, changed_rows, pack_of},
    log::Log,
    secret::StoreSecret,
    writer::{BATCH_REQUESTS, Message, Writer},
};

/// So many blobs that were not there were asked for when it is worthwhile to know which are.
const MISSES: u32 = 256;
/// With more blobs than that, the index is asked for each.
const MOST_KNOWN: usize = 200_000;
/// So many names of rows are read in about the time of one row.
const NAMES_PER_ROW: u64 = 16;
/// How long reading them is waited for.
const PATIENCE: Duration = Duration::from_millis(250);

pub(crate) const PAGES: u32 = 0;

/// What has to be written, all of it or nothing.
#[derive(Debug, Default)]
pub(crate) struct Request {
    /// The sealed bytes of a small blob, with its entry, which gets its place when they are written.
    pub(crate) pack: Option<(Entry, Bytes)>,
    /// Rows of the pages table, before the index claims them.
    pub(crate) pages: Vec<Op>,
    pub(crate) changes: Vec<Change>,
    /// Rows of the index that need no sealing.
    pub(crate) index: Vec<Op>,
    /// Rows of the pages table that nobody claims any more.
    pub(crate) dead_pages: Vec<Op>,
    pub(crate) blobs: i64,
    pub(crate) bytes: i64,
}

impl Request {
    pub(crate) fn len(&self) -> usize {
        let pages = self.pages.iter().map(|op| match op {
            Op::Put { value, .. } => value.len(),
            Op::Delete { .. } => 0,
        });
        512 + self.pack.as_ref().map_or(0, |(_, data)| data.len()) + pages.sum::<usize>()
    }

    /// Whether it is a small blob and nothing else: then the log of the packs is all that has to be written now.
    pub(crate) fn is_logged(&self) -> bool {
        self.pack.is_some()
            && self.pages.is_empty()
            && self.changes.is_empty()
            && self.index.is_empty()
            && self.dead_pages.is_empty()
    }
}

/// The tables while the store is open.
#[derive(Debug)]
pub(crate) struct Open {
    pub(crate) index: Index,
    pub(crate) pages: Arc<dyn Table>,
}

/// The tables, and the way to their writer, which ends with the last handle.
#[derive(Debug)]
pub(crate) struct Tables {
    shared: Arc<Shared>,
    writer: mpsc::Sender<Message>,
}

impl Deref for Tables {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.shared
    }
}

/// What readers and the writer share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) prefix: String,
    /// Held for reading while a row is read, so that no table is deleted below a reader.
    pub(crate) open: RwLock<Option<Open>>,
    pub(crate) totals: std::sync::Mutex<Totals>,
    pub(crate) packs: std::sync::Mutex<Packs>,
    /// Blobs in the log that the index does not claim yet.
    pub(crate) logged: std::sync::Mutex<HashMap<[u8; 32], Logged>>,
    known: std::sync::Mutex<Known>,
}

/// A blob in the log, with what it adds to the totals.
#[derive(Debug, Clone)]
pub(crate) struct Logged {
    pub(crate) entry: Arc<Entry>,
    pub(crate) blobs: i64,
    pub(crate) bytes: i64,
}

/// Which rows the index may have. New blobs are asked for in vain, each with a look at the table otherwise.
#[derive(Debug, Default)]
struct Known {
    /// The beginning of each row's name, and whether it is certain that the index has the row and says that its blob is complete; none
    /// as long as nobody looked, or if there are too many.
    rows: Option<HashMap<u64, bool>>,
    /// Rows that were read, and do not say so.
    doubted: HashSet<u64>,
    /// Whether the names were asked for, in vain or not.
    asked: bool,
    misses: u32,
}

impl Known {
    fn says_complete(&self, row: u64) -> bool {
        let rows = self.rows.as_ref();
        rows.is_some_and(|rows| rows.get(&row) == Some(&true)) && !self.doubted.contains(&row)
    }

    fn short(row: &[u8]) -> u64 {
        row.first_chunk().copied().map_or(0, u64::from_be_bytes)
    }
}

impl Tables {
    /// Opens the tables and starts the writer. Gives as well whether everything has to be counted again.
    pub(crate) async fn open(
        backend: Arc<dyn Backend>,
        prefix: String,
        secret: StoreSecret,
        fresh: bool,
    ) -> Result<(Arc<Self>, bool)> {
        let (epoch, key) = secret.current();
        let table = backend
            .open_table(&index_name(&prefix, epoch), COLUMNS)
            .await?;
        let index = Index::new(epoch, &key, table);
        if fresh {
            // From now on an index that is there is not empty.
            let mut ops = vec![index.put_totals(&Totals::default())?];
            index.put_packs(&Packs::default(), &mut ops)?;
            index.table().commit(ops).await?;
            index.table().checkpoint().await?;
        } else if index.is_empty().await? {
            // Another epoch's key, or tables that were taken away. Whatever else is there may still be of use.
            return Err(Error::IndexLost);
        }
        for other in [epoch.wrapping_sub(1), epoch + 1] {
            // Left by a rotation that was cut off after, or before, its key was saved.
            backend.delete_table(&index_name(&prefix, other)).await?;
        }
        let pages = backend.open_table(&format!("{prefix}_pages"), 1).await?;
        let (totals, packs) = (index.totals().await?, index.packs().await?);
        let counted = totals.is_some() && packs.is_some();
        let mut packs = match packs {
            Some(packs) => packs,
            None => unlisted_packs(&backend).await?,
        };
        let (log, found) = Log::open(backend.clone(), index.headers(), &mut packs).await?;
        let claimed = totals.unwrap_or_default();
        let mut totals = claimed;
        let mut logged = HashMap::new();
        for entry in found {
            let new = match index.entry_at(index.row_of(&entry.hash)).await {
                // In another place, which is as good.
                Ok(Some(_)) => continue,
                Ok(None) => true,
                // A damaged row is counted.
                Err(None) => false,
                Err(Some(error)) => return Err(error),
            };
            let found = Logged {
                blobs: i64::from(new),
                bytes: if new { signed(entry.size) } else { 0 },
                entry: Arc::new(entry),
            };
            let counted = found.clone();
            if logged.insert(found.entry.hash, found).is_none() {
                totals.add(counted.blobs, counted.bytes);
            }
        }
        if !logged.is_empty() {
            tracing::info!(blobs = logged.len(), "small blobs were found in the log");
        }
        let known = Known {
            rows: fresh.then(HashMap::new),
            ..Known::default()
        };
        let shared = Arc::new(Shared {
            backend,
            prefix,
            open: RwLock::new(Some(Open { index, pages })),
            totals: std::sync::Mutex::new(totals),
            packs: std::sync::Mutex::new(packs),
            logged: std::sync::Mutex::new(logged),
            known: std::sync::Mutex::new(known),
        });
        let (writer, requests) = mpsc::channel(BATCH_REQUESTS);
        tokio::spawn(Writer::new(shared.clone(), secret, log, claimed).run(requests));
        Ok((Arc::new(Self { shared, writer }), counted))
    }

    /// What is known of a blob on the disk.
    pub(crate) async fn entry(&self, hash: &Hash) -> Result<Option<Arc<Entry>>> {
        let open = self.read().await?;
        if let Some(logged) = lock(&self.logged).get(hash.as_bytes()) {
            return Ok(Some(logged.entry.clone()));
        }
        let name = open.index.row_of(hash.as_bytes());
        let row = Known::short(&name);
        let lacks = |known: &Known| {
            let rows = known.rows.as_ref();
            rows.is_some_and(|rows| !rows.contains_key(&row))
        };
        if lacks(&lock(&self.known)) {
            return Ok(None);
        }
        let read = open.index.entry_at(name).await;
        let entry = match read {
            Ok(entry) => entry.filter(|entry| entry.hash == *hash.as_bytes()),
            Err(None) => {
                tracing::warn!("a row of the store's index is damaged; its blob counts as missing");
                lock(&self.known).doubted.insert(row);
                None
            }
            Err(Some(error)) => {
                lock(&self.known).doubted.insert(row);
                return Err(error);
            }
        };
        let misses = {
            let mut known = lock(&self.known);
            let complete = entry.as_ref().is_some_and(|entry| entry.complete);
            if !complete && known.says_complete(row) {
                known.doubted.insert(row);
            }
            if let Some(entry) = entry {
                return Ok(Some(Arc::new(entry)));
            }
            known.misses += 1;
            known.misses
        };
        if misses == MISSES {
            // If it is too busy for that, it stays as it is.
            let (done, _) = oneshot::channel();
            let _ = self.writer.try_send(Message::Know(done));
        }
        Ok(None)
    }

    /// Whether the index says that a blob is complete, as far as that is known without reading its row. False if it is not known.
    pub(crate) async fn says_complete(&self, hash: &Hash) -> Result<bool> {
        let open = self.read().await?;
        let row = Known::short(&open.index.row_of(hash.as_bytes()));
        Ok(lock(&self.known).says_complete(row))
    }

    /// Finds out which rows the index has, if that is worthwhile for so many blobs. Does not wait long for it.
    pub(crate) async fn get_to_know(&self, asked: usize) -> Result<()> {
        let (asked, rows) = (asked as u64, self.totals().blobs);
        if rows > MOST_KNOWN as u64
            || asked < MISSES.into()
            || asked.saturating_mul(NAMES_PER_ROW) < rows
        {
            return Ok(());
        }
        let once = {
            let mut known = lock(&self.known);
            !std::mem::replace(&mut known.asked, true) && known.rows.is_none()
        };
        if !once {
            return Ok(());
        }
        // Whoever writes meanwhile may take long.
        match timeout(PATIENCE, self.ask(Message::Know)).await {
            Ok(asked) => asked,
            Err(_) => Ok(()),
        }
    }

    /// Writes, and gives the entry of a small blob with its place.
    pub(crate) async fn write(&self, request: Request) -> Result<Option<Arc<Entry>>> {
        self.ask(|done| Message::Write(Box::new(request), done))
            .await?
    }

    /// Brings everything that was written to the disk itself.
    pub(crate) async fn checkpoint(&self) -> Result<()> {
        self.ask(Message::Checkpoint).await?
    }

    /// Waits until everything is written that was asked for before.
    pub(crate) async fn settle(&self) -> Result<()> {
        self.ask(Message::Settle).await
    }

    /// Puts the index under a new key and forgets the old one.
    pub(crate) async fn rotate(&self) -> Result<()> {
        self.ask(Message::Rotate).await?
    }

    /// Lets the index claim everything that is in the log.
    pub(crate) async fn flush(&self) -> Result<()> {
        self.ask(Message::Flush).await?
    }

    /// Removes packs in which nothing is alive.
    pub(crate) async fn drop_packs(&self, packs: Vec<Id>) -> Result<()> {
        self.ask(|done| Message::DropPacks(packs, done)).await?
    }

    /// From now on small blobs go to a new pack.
    pub(crate) async fn new_pack(&self) -> Result<()> {
        self.ask(Message::NewPack).await?
    }

    /// Counts anew what the index holds.
    pub(crate) async fn recount(&self) -> Result<()> {
        self.ask(Message::Recount).await?
    }

    /// Lets go of all tables, once everything that waits is written.
    pub(crate) async fn close(&self) {
        // An error means that it is closed already.
        let _ = self.ask(Message::Close).await;
    }

    async fn ask<T>(&self, message: impl FnOnce(oneshot::Sender<T>) -> Message) -> Result<T> {
        let (done, answer) = oneshot::channel();
        self.writer
            .send(message(done))
            .await
            .map_err(|_| Error::Closed)?;
        answer.await.map_err(|_| Error::Closed)
    }
}

impl Shared {
    /// Does something with the open tables.
    pub(crate) async fn read(&self) -> Result<ReadGuard<'_>> {
        let guard = self.open.read().await;
        tokio::sync::RwLockReadGuard::try_map(guard, Option::as_ref).map_err(|_| Error::Closed)
    }

    pub(crate) fn packs(&self) -> Vec<Id> {
        lock(&self.packs).list.clone()
    }

    /// What all tables take on disk.
    pub(crate) async fn disk_bytes(&self) -> Result<u64> {
        let open = self.read().await?;
        let index = index_name(&self.prefix, open.index.epoch);
        let pages = format!("{}_pages", self.prefix);
        Ok(self.backend.table_bytes(&index) + self.backend.table_bytes(&pages))
    }

    pub(crate) fn totals(&self) -> Totals {
        *lock(&self.totals)
    }

    /// Changes the rows of blobs in the index.
    pub(crate) async fn commit(&self, open: &Open, ops: Vec<Op>) -> Result<()> {
        let rows: Vec<(u64, bool)> = changed_rows(&ops)
            .map(|(row, complete)| (Known::short(row), complete))
            .collect();
        // Nothing is certain until it is written, nor if that fails.
        self.know(rows.iter().map(|(row, _)| (*row, false)));
        open.index.table().commit(ops).await?;
        self.know(rows.into_iter());
        Ok(())
    }

    fn know(&self, rows: impl Iterator<Item = (u64, bool)>) {
        let known = &mut *lock(&self.known);
        for (row, complete) in rows {
            if complete {
                known.doubted.remove(&row);
            }
            if let Some(rows) = &mut known.rows {
                rows.insert(row, complete);
            }
        }
        if known
            .rows
            .as_ref()
            .is_some_and(|rows| rows.len() > MOST_KNOWN)
        {
            known.rows = None;
        }
    }

    /// Nobody writes meanwhile.
    pub(crate) async fn learn(&self, open: &Open) -> Result<()> {
        if lock(&self.known).rows.is_some() || self.totals().blobs > MOST_KNOWN as u64 {
            return Ok(());
        }
        let rows = self.read_names(open).await?;
        lock(&self.known).rows = Some(rows);
        Ok(())
    }

    async fn read_names(&self, open: &Open) -> Result<HashMap<u64, bool>> {
        let rows = open.index.entry_rows().await?;
        let mut rows: HashMap<u64, bool> =
            rows.iter().map(|row| (Known::short(row), true)).collect();
        for row in open.index.partial().await? {
            rows.insert(Known::short(&row), false);
        }
        Ok(rows)
    }

    /// The rows have other names from now on.
    pub(crate) fn know_nothing(&self) {
        *lock(&self.known) = Known::default();
    }
}

pub(crate) type ReadGuard<'a> = tokio::sync::RwLockReadGuard<'a, Open>;

pub(crate) fn index_name(prefix: &str, epoch: u64) -> String {
    format!("{prefix}_index_{epoch}")
}

/// What packs there are, for when both lists of them are damaged.
async fn unlisted_packs(backend: &Arc<dyn Backend>) -> Result<Packs> {
    let backend = backend.clone();
    let files = blocking(move || backend.list_files())
        .await?
        .map_err(segment_error)?;
    let mut list: Vec<Id> = files.iter().filter_map(|(name, _)| pack_of(name)).collect();
    list.sort_unstable();
    Ok(Packs {
        list,
        claimed: None,
    })
}
