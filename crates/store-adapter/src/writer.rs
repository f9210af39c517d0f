//! The one task that writes.
//!
//! What is written goes in three steps: the bytes (records of the log, and pages), then the index that claims them, then what the
//! index no longer claims is deleted. A crash between two of them leaves rows that nobody claims, and the next garbage collection
//! removes those. Requests that wait at the same time share their writes. Small blobs that take nobody's place are done with the
//! first step: the index claims many of them at once, later.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

use crate::{
    Error, Result,
    backend::Op,
    core::{blocking, lock, segment_error},
    index::{COLUMNS, Change, Entry, Id, Index, Packs, Totals, pack_name},
    log::Log,
    seal::{self, Key, random_key},
    secret::StoreSecret,
    tables::{Logged, Open, Request, Shared, index_name},
};

/// The most bytes that are written at once.
const BATCH_BYTES: usize = 4 * 1024 * 1024;
pub(crate) const BATCH_REQUESTS: usize = 512;
/// Rows in one transaction when many are written.
const ROWS: usize = 1000;
/// After so many new large blobs, their hash trees are brought to the disk itself.
const RECENT_BLOBS: usize = 4096;
/// So much lies in the log, at most, before the index claims it: it has to be read again after a crash.
const LOGGED_BLOBS: usize = 8192;
const LOGGED_BYTES: u64 = 256 * 1024 * 1024;
/// The index claims what is in the log when nothing was written for so long.
const IDLE: Duration = Duration::from_secs(1);

type Written = Result<Option<Arc<Entry>>>;

pub(crate) enum Message {
    Write(Box<Request>, oneshot::Sender<Written>),
    /// Lets the index claim everything that is in the log.
    Flush(oneshot::Sender<Result<()>>),
    /// Finds out which rows the index has, if it can.
    Know(oneshot::Sender<()>),
    /// Puts the index under a new key.
    Rotate(oneshot::Sender<Result<()>>),
    /// Removes packs in which nothing is alive.
    DropPacks(Vec<Id>, oneshot::Sender<Result<()>>),
    /// From now on small blobs go to a new pack.
    NewPack(oneshot::Sender<Result<()>>),
    /// Counts anew what the index holds.
    Recount(oneshot::Sender<Result<()>>),
    Checkpoint(oneshot::Sender<Result<()>>),
    /// Answered once everything that was asked before is done.
    Settle(oneshot::Sender<()>),
    Close(oneshot::Sender<()>),
}

pub(crate) struct Writer {
    tables: Arc<Shared>,
    secret: StoreSecret,
    log: Log,
    /// The totals without what is only in the log.
    claimed: Totals,
    /// Bytes of the log that the index does not claim.
    logged: u64,
    /// Whether the index claims blobs beyond the place in the log that it names. They would be found in the log again, and passed
    /// over only as long as the index has them.
    behind: bool,
    /// Packs that are in no list any more, and whose files are still there.
    dead: Vec<Id>,
    /// Set when nobody can tell any more which key the next start will find; nothing is written after that.
    broken: Option<Error>,
    /// New large blobs since the last checkpoint.
    recent: usize,
    /// Whether the tables may hold what is not on the disk itself.
    index_dirty: bool,
    pages_dirty: bool,
}

impl Writer {
    pub(crate) fn new(tables: Arc<Shared>, secret: StoreSecret, log: Log, claimed: Totals) -> Self {
        let behind = lock(&tables.packs).claimed != log.end();
        Self {
            tables,
            secret,
            log,
            claimed,
            logged: 0,
            behind,
            dead: Vec::new(),
            broken: None,
            recent: 0,
            // The last process may have left something.
            index_dirty: true,
            pages_dirty: true,
        }
    }

    pub(crate) async fn run(mut self, mut requests: mpsc::Receiver<Message>) {
        let mut next = None;
        let mut idle = false;
        loop {
            let message = match next.take() {
                Some(message) => message,
                None if idle || lock(&self.tables.logged).is_empty() => {
                    match requests.recv().await {
                        Some(message) => message,
                        None => break,
                    }
                }
                None => match timeout(IDLE, requests.recv()).await {
                    Ok(Some(message)) => message,
                    Ok(None) => break,
                    Err(_) => {
                        // Once: if it fails, it is tried again after the next write.
                        idle = true;
                        self.flush_now().await;
                        continue;
                    }
                },
            };
            idle = false;
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
                Message::Flush(done) => {
                    let _ = done.send(self.flush().await);
                }
                Message::Know(done) => {
                    self.get_to_know().await;
                    let _ = done.send(());
                }
                Message::Rotate(done) => {
                    let _ = done.send(self.rotate().await);
                }
                Message::DropPacks(packs, done) => {
                    let _ = done.send(self.drop_packs(packs).await);
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
                    self.flush_now().await;
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

    async fn write_all(&mut self, batch: Vec<(Request, oneshot::Sender<Written>)>) {
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
        if self.logged >= LOGGED_BYTES || lock(&self.tables.logged).len() >= LOGGED_BLOBS {
            self.flush_now().await;
        }
    }

    async fn write(&mut self, requests: &[Request]) -> Result<Vec<Option<Arc<Entry>>>> {
        if let Some(error) = &self.broken {
            return Err(error.again());
        }
        let tables = self.tables.clone();
        let open = tables.read().await?;
        // The bytes.
        let bytes: u64 = requests
            .iter()
            .filter_map(|request| request.pack.as_ref())
            .map(|(_, data)| data.len() as u64)
            .sum();
        if bytes > 0 && self.log.is_full() {
            self.next_pack(&open).await?;
        }
        // If anything fails from here on, there may be records that nobody was told of; then the next change of the index claims
        // everything up to their end.
        let behind = self.behind;
        self.behind |= bytes > 0;
        let entries = self.log.append(&open, requests).await?;
        self.logged += bytes;
        let pages: Vec<Op> = requests
            .iter()
            .flat_map(|request| request.pages.iter().cloned())
            .collect();
        if !pages.is_empty() {
            self.pages_dirty = true;
            open.pages.commit(pages).await?;
        }
        // The claim.
        let wholly = self.is_wholly(requests, behind);
        if wholly {
            // What was in the log before comes first; and nothing is claimed that is not on the disk itself.
            self.flush_to(&open).await?;
            self.log.sync().await?;
        }
        let is_claimed = |request: &Request| wholly || !request.is_logged();
        let mut ops = Vec::new();
        let (mut claimed, mut totals) = (self.claimed, tables.totals());
        for (request, entry) in requests.iter().zip(&entries) {
            count(&mut totals, request);
            if !is_claimed(request) {
                continue;
            }
            count(&mut claimed, request);
            if let Some(entry) = entry {
                let change = Change::Put((**entry).clone());
                open.index.seal_change(&change, &mut ops)?;
            }
            for change in &request.changes {
                open.index.seal_change(change, &mut ops)?;
            }
            ops.extend(request.index.iter().cloned());
            self.recent += request.changes.len();
        }
        if claimed != self.claimed {
            ops.push(open.index.put_totals(&claimed)?);
        }
        if !ops.is_empty() {
            self.index_dirty = true;
            tables.commit(&open, ops).await?;
        }
        if !wholly {
            self.behind = behind;
        }
        self.claimed = claimed;
        *lock(&tables.totals) = totals;
        let logged = requests.iter().zip(&entries);
        {
            let mut all = lock(&tables.logged);
            for (request, entry) in logged.filter(|(request, _)| !is_claimed(request)) {
                let Some(entry) = entry else {
                    continue;
                };
                // One that moves before the index claims it is still new.
                let before = all.get(&entry.hash).map(|old| (old.blobs, old.bytes));
                let (blobs, bytes) = before.unwrap_or_default();
                let new = Logged {
                    entry: entry.clone(),
                    blobs: blobs + request.blobs,
                    bytes: bytes + request.bytes,
                };
                all.insert(entry.hash, new);
            }
        }
        if self.recent >= RECENT_BLOBS
            && let Err(error) = self.checkpoint_of(&open).await
        {
            tracing::warn!(%error, "the last writes were not brought to the disk yet");
        }
        // What is not claimed any more. If it stays, it costs space until the next garbage collection.
        let dead: Vec<Op> = requests
            .iter()
            .flat_map(|request| request.dead_pages.iter().cloned())
            .collect();
        if !dead.is_empty() {
            // Not before what takes their place, and the index without them, are on the disk itself.
            let removed = match self.checkpoint_of(&open).await {
                Ok(()) => open.pages.commit(dead).await,
                Err(error) => Err(error),
            };
            if let Err(error) = removed {
                tracing::warn!(%error, "dead pages were not removed yet");
            }
        }
        Ok(entries)
    }

    /// Whether the index has to claim all that is in the log together with these: one of them changes what is only there, or is a
    /// small blob that takes the place of something.
    fn is_wholly(&self, requests: &[Request], behind: bool) -> bool {
        let logged = lock(&self.tables.logged);
        let new = |hash: &[u8; 32]| {
            let mut packed = requests.iter().filter_map(|request| request.pack.as_ref());
            packed.any(|(entry, _)| entry.hash == *hash)
        };
        requests.iter().any(|request| {
            (request.pack.is_some() && !request.is_logged())
                || request.changes.iter().any(|change| match change {
                    Change::Put(entry) | Change::Remove(entry) => {
                        behind || logged.contains_key(&entry.hash) || new(&entry.hash)
                    }
                    Change::Tag(..) | Change::Untag(_) | Change::Lost(_) => false,
                })
        })
    }

    async fn flush_now(&mut self) {
        if let Err(error) = self.flush().await {
            tracing::warn!(%error, "the index does not claim the last small blobs yet");
        }
    }

    async fn flush(&mut self) -> Result<()> {
        if let Some(error) = &self.broken {
            return Err(error.again());
        }
        let tables = self.tables.clone();
        let open = tables.read().await?;
        self.flush_to(&open).await
    }

    /// Lets the index claim everything that is in the log.
    async fn flush_to(&mut self, open: &Open) -> Result<()> {
        let logged: Vec<Logged> = lock(&self.tables.logged).values().cloned().collect();
        if logged.is_empty() && !self.behind {
            return Ok(());
        }
        self.log.sync().await?;
        let mut claimed = self.claimed;
        for some in logged.chunks(ROWS) {
            let mut ops = Vec::with_capacity(some.len() + 1);
            for Logged {
                entry,
                blobs,
                bytes,
            } in some
            {
                ops.push(open.index.put_entry(entry)?);
                claimed.add(*blobs, *bytes);
            }
            ops.push(open.index.put_totals(&claimed)?);
            self.index_dirty = true;
            self.behind = true;
            self.tables.commit(open, ops).await?;
            self.claimed = claimed;
            let mut left = lock(&self.tables.logged);
            for one in some {
                left.remove(&one.entry.hash);
            }
        }
        let packs = Packs {
            claimed: self.log.end(),
            ..lock(&self.tables.packs).clone()
        };
        self.list(open, packs).await?;
        self.behind = false;
        self.logged = 0;
        Ok(())
    }

    async fn get_to_know(&self) {
        let known = match self.tables.read().await {
            Ok(open) => self.tables.learn(&open).await,
            Err(error) => Err(error),
        };
        if let Err(error) = known {
            tracing::debug!(%error, "the index was not read");
        }
    }

    /// Nobody else writes meanwhile.
    async fn recount(&mut self) -> Result<()> {
        self.flush().await?;
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
        let mut ops = vec![open.index.put_totals(&totals)?];
        open.index
            .put_packs(&lock(&tables.packs).clone(), &mut ops)?;
        self.index_dirty = true;
        open.index.table().commit(ops).await?;
        self.claimed = totals;
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
        self.log.sync().await?;
        if self.pages_dirty {
            open.pages.checkpoint().await?;
            self.pages_dirty = false;
        }
        if self.index_dirty {
            let recent = open.index.recent().await?;
            if !recent.is_empty() {
                let settled = recent.into_iter().map(Index::settle).collect();
                open.index.table().commit(settled).await?;
            }
            open.index.table().checkpoint().await?;
            self.index_dirty = false;
        }
        self.recent = 0;
        Ok(())
    }

    /// Begins a pack. It is listed before it is made, so that none can be forgotten.
    async fn next_pack(&mut self, open: &Open) -> Result<()> {
        // From here on, only the last one may hold what is not on the disk itself.
        self.log.sync().await?;
        let pack: Id = seal::random()?;
        let mut packs = lock(&self.tables.packs).clone();
        packs.list.push(pack);
        self.list(open, packs).await?;
        let begun = self.log.begin(pack).await;
        if begun.is_err() {
            // The last one is still that which is written to.
            lock(&self.tables.packs).list.retain(|other| *other != pack);
        }
        begun
    }

    async fn list(&mut self, open: &Open, packs: Packs) -> Result<()> {
        let mut ops = Vec::new();
        open.index.put_packs(&packs, &mut ops)?;
        self.index_dirty = true;
        open.index.table().commit(ops).await?;
        *lock(&self.tables.packs) = packs;
        Ok(())
    }

    async fn new_pack(&mut self) -> Result<()> {
        let tables = self.tables.clone();
        let open = tables.read().await?;
        self.next_pack(&open).await
    }

    async fn drop_packs(&mut self, dead: Vec<Id>) -> Result<()> {
        self.flush().await?;
        let tables = self.tables.clone();
        let open = tables.read().await?;
        let mut packs = lock(&tables.packs).clone();
        // Never the one that is written to.
        self.dead
            .extend(dead.iter().filter(|pack| packs.list.last() != Some(pack)));
        packs.list.retain(|pack| !self.dead.contains(pack));
        packs.claimed = self.log.end();
        // What is claimed ends there, so it has to be there.
        self.log.sync().await?;
        self.list(&open, packs).await?;
        // What was moved, and the index that says where to, have to be on the disk itself.
        self.checkpoint_of(&open).await?;
        let backend = tables.backend.clone();
        let dead = self.dead.clone();
        blocking(move || {
            dead.iter()
                .try_for_each(|pack| backend.remove_file(&pack_name(pack)))
        })
        .await?
        .map_err(segment_error)?;
        self.dead.clear();
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
            // The headers in the log do not open under the new key.
            self.flush_to(&open).await?;
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
                    tracing::warn!(%unknown, "which key counts is not known");
                    self.broken = Some(Error::KeyUncertain);
                    return Err(Error::KeyUncertain);
                }
            }
        }
        let old = {
            let mut guard = tables.open.write().await;
            let open = guard.as_mut().ok_or(Error::Closed)?;
            tables.know_nothing();
            // As the new index says.
            lock(&tables.packs).claimed = self.log.end();
            self.behind = false;
            std::mem::replace(&mut open.index, index)
        };
        self.claimed.erasable = false;
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
            if ops.len() >= ROWS {
                index.table().commit(std::mem::take(&mut ops)).await?;
            }
        }
        let totals = Totals {
            erasable: false,
            ..self.claimed
        };
        ops.push(index.put_totals(&totals)?);
        // What is claimed now ends where everything ends, since the older headers do not open any more.
        let packs = Packs {
            claimed: self.log.end(),
            ..lock(&self.tables.packs).clone()
        };
        index.put_packs(&packs, &mut ops)?;
        index.seal_change(&Change::Lost(open.index.lost().await?), &mut ops)?;
        ops.extend(index.recent().await?.into_iter().map(Index::settle));
        index.table().commit(ops).await?;
        // The old key goes next: this has to be on the disk by then.
        index.table().checkpoint().await
    }
}

/// Counts what a request changes.
fn count(totals: &mut Totals, request: &Request) {
    totals.add(request.blobs, request.bytes);
    totals.erasable |= request
        .changes
        .iter()
        .any(|change| matches!(change, Change::Remove(_) | Change::Untag(_)));
}

/// The key under which a new store begins.
pub(crate) fn first_key() -> Result<(u64, Key)> {
    Ok((1, random_key()?))
}
