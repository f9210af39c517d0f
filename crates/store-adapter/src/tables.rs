//! The tables of a store, and the one task that writes to them.
//!
//! What is written goes in three steps, each a transaction: the bytes (pack rows and pages), then the index that claims them,
//! then what the index no longer claims is deleted. A crash between two of them leaves rows that nobody claims, and the next
//! garbage collection removes those. Requests that wait at the same time share their transactions.

use std::{collections::BTreeSet, num::NonZeroUsize, ops::Deref, sync::Arc};

use bytes::Bytes;
use lru::LruCache;
use tokio::sync::{Mutex, RwLock, mpsc, oneshot};

use crate::{
    Error, Result,
    backend::{Backend, Op, Table},
    index::{COLUMNS, Change, Entry, Id, Index, Place, Totals},
    seal::{Key, random_key},
    secret::StoreSecret,
};

/// A pack is full at this size; what is mostly dead is rewritten as a whole.
pub(crate) const PACK_BYTES: u64 = 128 * 1024 * 1024;
/// Open packs; each has a connection and a thread of its own.
const OPEN_PACKS: usize = 6;
/// The most bytes in one transaction.
const BATCH_BYTES: usize = 4 * 1024 * 1024;
const BATCH_REQUESTS: usize = 512;
const COPY_ROWS: usize = 1000;
/// After so many new blobs, their bytes are brought to the disk itself.
const RECENT_BLOBS: usize = 4096;

pub(crate) const PAGES: u32 = 0;

/// What has to be written, all of it or nothing.
#[derive(Debug, Default)]
pub(crate) struct Request {
    /// The sealed row of a small blob, with its entry, which gets its pack here.
    pub(crate) pack: Option<(Entry, Bytes)>,
    /// Rows of the pages table, before the index claims them.
    pub(crate) pages: Vec<Op>,
    pub(crate) changes: Vec<Change>,
    /// Rows of the index that need no sealing.
    pub(crate) index: Vec<Op>,
    /// Rows of the pages table that nobody claims any more.
    pub(crate) dead_pages: Vec<Op>,
    pub(crate) dead_rows: Vec<(u32, Id)>,
    /// Packs that may hold what is not on the disk itself.
    pub(crate) unsynced: BTreeSet<u32>,
    pub(crate) blobs: i64,
    pub(crate) bytes: i64,
}

impl Request {
    fn len(&self) -> usize {
        let pages = self.pages.iter().map(|op| match op {
            Op::Put { value, .. } => value.len(),
            Op::Delete { .. } => 0,
        });
        512 + self.pack.as_ref().map_or(0, |(_, row)| row.len()) + pages.sum::<usize>()
    }
}

enum Message {
    Write(Box<Request>, oneshot::Sender<Result<Option<Entry>>>),
    /// Puts the index under a new key.
    Rotate(oneshot::Sender<Result<()>>),
    /// Deletes packs that nothing claims.
    DropPacks(Vec<u32>, oneshot::Sender<Result<()>>),
    /// From now on small blobs go to a new pack.
    NewPack(oneshot::Sender<Result<()>>),
    /// Counts anew what the index holds.
    Recount(oneshot::Sender<Result<()>>),
    Checkpoint(oneshot::Sender<Result<()>>),
    /// Answered once everything that was asked before is done.
    Settle(oneshot::Sender<()>),
    Close(oneshot::Sender<()>),
}

/// The tables while the store is open.
#[derive(Debug)]
pub(crate) struct Open {
    pub(crate) index: Index,
    pub(crate) pages: Arc<dyn Table>,
    packs: Mutex<Packs>,
}

#[derive(Debug)]
struct Packs {
    numbers: Vec<u32>,
    /// What the last one takes on disk, once that is known.
    written: Option<u64>,
    open: LruCache<u32, Arc<dyn Table>>,
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
    backend: Arc<dyn Backend>,
    prefix: String,
    /// Held for reading while a row is read, so that no table is deleted below a reader.
    open: RwLock<Option<Open>>,
    totals: std::sync::Mutex<Totals>,
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
            let ops = vec![index.put_totals(&Totals::default())?, index.put_packs(&[])?];
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
        let packs = Packs {
            numbers: packs.unwrap_or_else(|| pack_numbers(&*backend, &prefix)),
            written: None,
            open: LruCache::new(NonZeroUsize::new(OPEN_PACKS).unwrap_or(NonZeroUsize::MIN)),
        };
        let (writer, requests) = mpsc::channel(BATCH_REQUESTS);
        let shared = Arc::new(Shared {
            backend,
            prefix,
            open: RwLock::new(Some(Open {
                index,
                pages,
                packs: Mutex::new(packs),
            })),
            totals: std::sync::Mutex::new(totals.unwrap_or_default()),
        });
        tokio::spawn(
            Writer {
                tables: shared.clone(),
                secret,
                broken: None,
                recent: 0,
                unsynced: BTreeSet::new(),
            }
            .run(requests),
        );
        Ok((Arc::new(Self { shared, writer }), counted))
    }

    /// Writes, and gives the entry of a small blob with its place.
    pub(crate) async fn write(&self, request: Request) -> Result<Option<Entry>> {
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

    pub(crate) async fn drop_packs(&self, packs: Vec<u32>) -> Result<()> {
        self.ask(|done| Message::DropPacks(packs, done)).await?
    }

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

    /// The row of a small blob.
    pub(crate) async fn pack_row(&self, pack: u32, id: Id) -> Result<Option<Bytes>> {
        let open = self.read().await?;
        let table = self.pack(&open, pack).await?;
        table.load(0, Bytes::copy_from_slice(&id)).await
    }

    pub(crate) async fn pack_rows(&self, pack: u32) -> Result<Vec<Bytes>> {
        let open = self.read().await?;
        let table = self.pack(&open, pack).await?;
        table.keys(0).await
    }

    pub(crate) async fn packs(&self) -> Result<Vec<u32>> {
        Ok(self.read().await?.packs.lock().await.numbers.clone())
    }

    /// What all tables take on disk.
    pub(crate) async fn disk_bytes(&self) -> Result<u64> {
        let open = self.read().await?;
        let mut bytes = self
            .backend
            .table_bytes(&index_name(&self.prefix, open.index.epoch))
            + self.backend.table_bytes(&format!("{}_pages", self.prefix));
        let packs = open.packs.lock().await.numbers.clone();
        for pack in packs {
            let name = self.pack_name(pack);
            if self.backend.table_bytes(&name) == 0 {
                // Its size is known once it was opened.
                self.pack(&open, pack).await?;
            }
            bytes += self.backend.table_bytes(&name);
        }
        Ok(bytes)
    }

    pub(crate) async fn pack_bytes(&self, pack: u32) -> Result<u64> {
        let open = self.read().await?;
        self.pack(&open, pack).await?;
        Ok(self.backend.table_bytes(&self.pack_name(pack)))
    }

    pub(crate) fn totals(&self) -> Totals {
        *lock(&self.totals)
    }

    async fn pack(&self, open: &Open, pack: u32) -> Result<Arc<dyn Table>> {
        let mut packs = open.packs.lock().await;
        if let Some(table) = packs.open.get(&pack) {
            return Ok(table.clone());
        }
        let table = self.backend.open_table(&self.pack_name(pack), 1).await?;
        packs.open.put(pack, table.clone());
        Ok(table)
    }

    fn pack_name(&self, pack: u32) -> String {
        format!("{}_pack_{pack}", self.prefix)
    }
}

pub(crate) type ReadGuard<'a> = tokio::sync::RwLockReadGuard<'a, Open>;

pub(crate) fn index_name(prefix: &str, epoch: u64) -> String {
    format!("{prefix}_index_{epoch}")
}

/// The packs that there are, for when the list of them is damaged.
fn pack_numbers(backend: &dyn Backend, prefix: &str) -> Vec<u32> {
    let start = format!("{prefix}_pack_");
    let names = backend.table_names().into_iter();
    let mut numbers: Vec<u32> = names
        .filter_map(|name| name.strip_prefix(&start)?.parse().ok())
        .collect();
    numbers.sort_unstable();
    numbers
}

fn lock<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

struct Writer {
    tables: Arc<Shared>,
    secret: StoreSecret,
    /// Set when nobody can tell any more which key the next start will find; nothing is written after that.
    broken: Option<Error>,
    /// New blobs since the last checkpoint.
    recent: usize,
    /// Packs that were written to since then.
    unsynced: BTreeSet<u32>,
}

impl Writer {
    async fn run(mut self, mut requests: mpsc::Receiver<Message>) {
        let mut next = None;
        loop {
            let message = match next.take() {
                Some(message) => message,
                None => match requests.recv().await {
                    Some(message) => message,
                    None => break,
                },
            };
            // Whoever asked may have gone away; what was asked for is done all the same.
            match message {
                Message::Write(request, done) => {
                    let mut bytes = request.len();
                    let mut batch = vec![(*request, done)];
                    while bytes < BATCH_BYTES && batch.len() < BATCH_REQUESTS {
                        match requests.try_recv() {
                            Ok(Message::Write(request, done)) => {
                                bytes += request.len();
                                batch.push((*request, done));
                            }
                            Ok(other) => {
                                next = Some(other);
                                break;
                            }
                            Err(_) => break,
                        }
                    }
                    self.write_all(batch).await;
                }
                Message::Rotate(done) => {
                    let _ = done.send(self.rotate().await);
                }
                Message::DropPacks(packs, done) => {
                    let _ = done.send(self.drop_packs(&packs).await);
                }
                Message::NewPack(done) => {
                    let _ = done.send(self.new_pack().await);
                }
                Message::Recount(done) => {
                    let _ = done.send(self.recount().await);
                }
                Message::Settle(done) => {
                    let _ = done.send(());
                }
                Message::Checkpoint(done) => {
                    // All that wait for one share it, since what they want on the disk was written before they asked.
                    let mut waiting = vec![done];
                    loop {
                        match requests.try_recv() {
                            Ok(Message::Checkpoint(done)) => waiting.push(done),
                            Ok(other) => {
                                next = Some(other);
                                break;
                            }
                            Err(_) => break,
                        }
                    }
                    let brought = self.checkpoint().await;
                    for done in waiting {
                        let _ = done.send(match &brought {
                            Ok(()) => Ok(()),
                            Err(error) => Err(error.again()),
                        });
                    }
                }
                Message::Close(done) => {
                    requests.close();
                    if let Err(error) = self.checkpoint().await {
                        tracing::warn!(%error, "the last writes were not brought to the disk");
                    }
                    drop(self.tables.open.write().await.take());
                    let _ = done.send(());
                    return;
                }
            }
        }
        drop(self.tables.open.write().await.take());
    }

    async fn write_all(&mut self, batch: Vec<(Request, oneshot::Sender<Result<Option<Entry>>>)>) {
        let (requests, done): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
        match self.write(&requests).await {
            Ok(entries) => {
                for (done, entry) in done.into_iter().zip(entries) {
                    let _ = done.send(Ok(entry));
                }
            }
            // One that is too large for the disk must not fail the others.
            Err(error) if requests.len() > 1 => {
                tracing::debug!(%error, "writing together failed");
                for (request, done) in requests.iter().zip(done) {
                    let result = self.write(std::slice::from_ref(request)).await;
                    let _ = done.send(result.map(|mut entries| entries.pop().flatten()));
                }
            }
            Err(error) => {
                for done in done {
                    let _ = done.send(Err(error.again()));
                }
            }
        }
    }

    async fn write(&mut self, requests: &[Request]) -> Result<Vec<Option<Entry>>> {
        if let Some(error) = &self.broken {
            return Err(error.again());
        }
        let tables = self.tables.clone();
        let open = tables.read().await?;
        let mut entries: Vec<Option<Entry>> = Vec::with_capacity(requests.len());
        let mut rows = Vec::new();
        let small = requests.iter().filter_map(|request| request.pack.as_ref());
        let row_bytes: u64 = small.map(|(_, row)| row.len() as u64).sum();
        let pack = if row_bytes > 0 {
            Some(self.pack_for(&open, row_bytes).await?)
        } else {
            None
        };
        for request in requests {
            let entry = match (&request.pack, pack) {
                (Some((entry, row)), Some(pack)) => {
                    let mut entry = entry.clone();
                    entry.place = Place::Pack(pack);
                    rows.push(Op::Put {
                        column: 0,
                        key: Bytes::copy_from_slice(&entry.id),
                        value: row.clone(),
                    });
                    Some(entry)
                }
                _ => None,
            };
            entries.push(entry);
        }
        let pages: Vec<Op> = requests
            .iter()
            .flat_map(|request| request.pages.iter().cloned())
            .collect();
        for request in requests {
            self.unsynced.extend(&request.unsynced);
        }
        // The bytes.
        if let Some(pack) = pack {
            self.unsynced.insert(pack);
            tables.pack(&open, pack).await?.commit(rows).await?;
        }
        if !pages.is_empty() {
            open.pages.commit(pages).await?;
        }
        // The claim.
        let mut ops = Vec::new();
        let before = tables.totals();
        let mut totals = before;
        for (request, entry) in requests.iter().zip(&entries) {
            if let Some(entry) = entry {
                open.index
                    .seal_change(&Change::Put(entry.clone()), &mut ops)?;
            }
            for change in &request.changes {
                open.index.seal_change(change, &mut ops)?;
            }
            ops.extend(request.index.iter().cloned());
            totals.blobs = totals.blobs.saturating_add_signed(request.blobs);
            totals.bytes = totals.bytes.saturating_add_signed(request.bytes);
            totals.erasable |= request
                .changes
                .iter()
                .any(|change| matches!(change, Change::Remove(_) | Change::Untag(_)));
        }
        if totals != before || ops.is_empty() {
            ops.push(open.index.put_totals(&totals)?);
        }
        open.index.table().commit(ops).await?;
        *lock(&tables.totals) = totals;
        self.recent += requests
            .iter()
            .map(|request| usize::from(request.pack.is_some()) + request.changes.len())
            .sum::<usize>();
        if self.recent >= RECENT_BLOBS
            && let Err(error) = self.checkpoint_of(&open).await
        {
            tracing::warn!(%error, "the last writes were not brought to the disk yet");
        }
        // What is not claimed any more. If it stays, it costs space until the next garbage collection.
        let any_dead = requests
            .iter()
            .any(|request| !request.dead_pages.is_empty() || !request.dead_rows.is_empty());
        // Not before what takes their place, and the index without them, are on the disk itself.
        if any_dead && let Err(error) = self.checkpoint_of(&open).await {
            tracing::warn!(%error, "what is dead was not removed yet");
            return Ok(entries);
        }
        let dead: Vec<Op> = requests
            .iter()
            .flat_map(|request| request.dead_pages.iter().cloned())
            .collect();
        if !dead.is_empty()
            && let Err(error) = open.pages.commit(dead).await
        {
            tracing::warn!(%error, "dead pages were not removed yet");
        }
        let mut dead_rows: Vec<(u32, Id)> = requests
            .iter()
            .flat_map(|request| request.dead_rows.iter().copied())
            .collect();
        // A row that was written anew in the same pack is not dead.
        dead_rows.retain(|(pack, id)| {
            !entries
                .iter()
                .flatten()
                .any(|entry| entry.id == *id && entry.place == Place::Pack(*pack))
        });
        dead_rows.sort_unstable();
        for rows in dead_rows.chunk_by(|a, b| a.0 == b.0) {
            let ops = rows.iter().map(|(_, id)| Op::Delete {
                column: 0,
                key: Bytes::copy_from_slice(id),
            });
            let removed = match tables.pack(&open, rows[0].0).await {
                Ok(table) => table.commit(ops.collect()).await,
                Err(error) => Err(error),
            };
            if let Err(error) = removed {
                tracing::warn!(%error, "dead blobs were not removed yet");
            }
        }
        Ok(entries)
    }

    /// Nobody else writes meanwhile.
    async fn recount(&mut self) -> Result<()> {
        let tables = self.tables.clone();
        let open = tables.read().await?;
        let mut totals = Totals {
            erasable: true,
            ..Totals::default()
        };
        for row in open.index.entry_rows().await? {
            match open.index.entry_at(row).await {
                Ok(Some(entry)) => {
                    totals.blobs += 1;
                    totals.bytes += entry.here;
                }
                Ok(None) | Err(None) => {}
                Err(Some(error)) => return Err(error),
            }
        }
        let packs = open.packs.lock().await.numbers.clone();
        let ops = vec![
            open.index.put_totals(&totals)?,
            open.index.put_packs(&packs)?,
        ];
        open.index.table().commit(ops).await?;
        *lock(&tables.totals) = totals;
        Ok(())
    }

    async fn checkpoint(&mut self) -> Result<()> {
        let tables = self.tables.clone();
        let open = tables.read().await?;
        self.checkpoint_of(&open).await
    }

    /// Brings the bytes to the disk before what claims them, and then nothing is recent any more.
    async fn checkpoint_of(&mut self, open: &Open) -> Result<()> {
        for pack in &self.unsynced {
            self.tables.pack(open, *pack).await?.checkpoint().await?;
        }
        open.pages.checkpoint().await?;
        let recent = open.index.recent().await?;
        if !recent.is_empty() {
            let settled = recent.into_iter().map(Index::settle).collect();
            open.index.table().commit(settled).await?;
        }
        open.index.table().checkpoint().await?;
        self.unsynced.clear();
        self.recent = 0;
        Ok(())
    }

    /// The pack that takes so many bytes more.
    async fn pack_for(&self, open: &Open, bytes: u64) -> Result<u32> {
        let last = open.packs.lock().await.numbers.last().copied();
        if let Some(last) = last {
            if open.packs.lock().await.written.is_none() {
                self.tables.pack(open, last).await?;
                let name = self.tables.pack_name(last);
                open.packs.lock().await.written = Some(self.tables.backend.table_bytes(&name));
            }
            let mut packs = open.packs.lock().await;
            let written = packs.written.unwrap_or(0);
            if written < PACK_BYTES {
                packs.written = Some(written + bytes);
                return Ok(last);
            }
        }
        self.next_pack(open, bytes).await
    }

    /// Begins a pack. It is listed before it is made, so that none can be forgotten.
    async fn next_pack(&self, open: &Open, bytes: u64) -> Result<u32> {
        let mut packs = open.packs.lock().await;
        let next = packs.numbers.last().map_or(0, |last| last + 1);
        let mut numbers = packs.numbers.clone();
        numbers.push(next);
        open.index
            .table()
            .commit(vec![open.index.put_packs(&numbers)?])
            .await?;
        packs.numbers = numbers;
        packs.written = Some(bytes);
        Ok(next)
    }

    async fn new_pack(&self) -> Result<()> {
        let open = self.tables.read().await?;
        self.next_pack(&open, 0).await.map(drop)
    }

    async fn drop_packs(&mut self, dead: &[u32]) -> Result<()> {
        // What was moved, and the index that says where to, have to be on the disk itself.
        self.checkpoint().await?;
        // Alone with the tables: a table that somebody reads cannot be deleted.
        let guard = self.tables.open.write().await;
        let open = guard.as_ref().ok_or(Error::Closed)?;
        let mut packs = open.packs.lock().await;
        for pack in dead {
            packs.open.pop(pack);
            self.tables
                .backend
                .delete_table(&self.tables.pack_name(*pack))
                .await?;
        }
        let numbers: Vec<u32> = packs
            .numbers
            .iter()
            .copied()
            .filter(|number| !dead.contains(number))
            .collect();
        open.index
            .table()
            .commit(vec![open.index.put_packs(&numbers)?])
            .await?;
        if numbers.last() != packs.numbers.last() {
            packs.written = None;
        }
        packs.numbers = numbers;
        Ok(())
    }

    async fn rotate(&mut self) -> Result<()> {
        if let Some(error) = &self.broken {
            return Err(error.again());
        }
        let tables = self.tables.clone();
        let key = random_key()?;
        let (index, name) = {
            // Readers go on: only this task writes.
            let open = tables.read().await?;
            // In the new index nothing is recent.
            self.checkpoint_of(&open).await?;
            let epoch = open.index.epoch + 1;
            let name = index_name(&tables.prefix, epoch);
            tables.backend.delete_table(&name).await?;
            let table = tables.backend.open_table(&name, COLUMNS).await?;
            let index = Index::new(epoch, &key, table);
            let copied = self.copy(&open, &index).await;
            if let Err(error) = copied {
                drop(index);
                let _ = tables.backend.delete_table(&name).await;
                return Err(error);
            }
            (index, name)
        };
        if let Err(error) = self.secret.replace(index.epoch, &key).await {
            // Which one is there now decides which index counts.
            match self.secret.stored_epoch().await {
                Ok(Some(epoch)) if epoch == index.epoch => {}
                // The old one, or one that does not open as the new one would.
                Ok(_)
                | Err(
                    Error::WrongKey
                    | Error::PasswordRequired
                    | Error::KeyFileRequired
                    | Error::KeyFile { .. }
                    | Error::NotWrapped
                    | Error::InsecureKeyStorage,
                ) => {
                    drop(index);
                    let _ = tables.backend.delete_table(&name).await;
                    return Err(error);
                }
                Err(unknown) => {
                    self.broken = Some(unknown);
                    return Err(error);
                }
            }
        }
        let old = {
            let mut guard = tables.open.write().await;
            let open = guard.as_mut().ok_or(Error::Closed)?;
            std::mem::replace(&mut open.index, index)
        };
        lock(&tables.totals).erasable = false;
        let old_name = index_name(&tables.prefix, old.epoch);
        drop(old);
        // Unreadable from now on; its space comes back here, or at the next start.
        if let Err(error) = tables.backend.delete_table(&old_name).await {
            tracing::warn!(%error, "the index of the last epoch was not removed yet");
        }
        Ok(())
    }

    async fn copy(&self, open: &Open, index: &Index) -> Result<()> {
        let tags = open.index.tags().await?;
        if tags.lost > 0 {
            return Err(Error::TagsDamaged { count: tags.lost });
        }
        let mut ops = Vec::new();
        for (name, value) in tags.tags {
            index.seal_change(&Change::Tag(name, value), &mut ops)?;
        }
        for row in open.index.entry_rows().await? {
            match open.index.entry_at(row).await {
                Ok(Some(entry)) => index.seal_change(&Change::Put(entry), &mut ops)?,
                // Damaged: its blob counts as missing, and does so in the new table by not being there.
                Ok(None) | Err(None) => {}
                Err(Some(error)) => return Err(error),
            }
            if ops.len() >= COPY_ROWS {
                index.table().commit(std::mem::take(&mut ops)).await?;
            }
        }
        let totals = Totals {
            erasable: false,
            ..self.tables.totals()
        };
        ops.push(index.put_totals(&totals)?);
        ops.push(index.put_packs(&open.packs.lock().await.numbers)?);
        index.seal_change(&Change::Lost(open.index.lost().await?), &mut ops)?;
        ops.extend(index.recent().await?.into_iter().map(Index::settle));
        index.table().commit(ops).await?;
        // The old key goes next: this has to be on the disk by then.
        index.table().checkpoint().await
    }
}

/// The key under which a new store begins.
pub(crate) fn first_key() -> Result<(u64, Key)> {
    Ok((1, random_key()?))
}
