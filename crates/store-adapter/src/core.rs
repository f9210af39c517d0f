//! What all commands work on: the blobs in memory, the tables, the files, the caches.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    io,
    num::NonZeroUsize,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Instant,
};

use bytes::Bytes;
use iroh_blobs::{Hash, api::proto::Bitfield};
use lru::LruCache;
use serde::Serialize;
use tokio::sync::Semaphore;

use crate::{
    Error, Result,
    backend::{Backend, Op, SegmentFile},
    blob::{
        Blob, BrokenOff, Changing, FilePartial, Partial, Shown, SmallPartial, StoredState, View,
        Work, chunks_of_groups,
    },
    index::{Change, Entry, Id, Index, Place, Tags, file_name, pack_name, pack_of},
    seal::{self, Kind, sealed_size},
    tables::{PAGES, Request, Tables},
    tree::{self, Page, PageId, Pair},
};

/// A blob of at most this size is one record of a pack.
pub(crate) const SMALL: u64 = 256 * 1024;
/// Blobs that stay in memory after use: their index entries alone.
const KEPT_BLOBS: usize = 12 * 1024;
/// Files that stay open after use.
const KEPT_FILES: usize = 64;
/// Pages of hash trees in memory, 64 KiB at most each.
const KEPT_PAGES: usize = 16;
/// A partial blob to which more is coming is written down again after so many times as long as that took.
const WRITE_PAUSE: u32 = 3;
/// Groups that all exports together may read ahead.
const AHEAD: usize = 512;

#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) tables: Arc<Tables>,
    blobs: Mutex<Blobs>,
    files: Mutex<LruCache<Id, Arc<dyn SegmentFile>>>,
    pages: Mutex<LruCache<(Id, PageId), Arc<Page>>>,
    pub(crate) ahead: Arc<Semaphore>,
    pub(crate) broken_off: BrokenOff,
    /// Read when they are asked for first.
    pub(crate) tags: tokio::sync::Mutex<Option<Tags>>,
    /// What came in since the garbage collection began that is under way; none if there is none.
    pub(crate) fresh: Mutex<Option<HashSet<Hash>>>,
    /// Blobs whose rows are being written before the index claims them.
    pub(crate) importing: Mutex<HashSet<Id>>,
    /// Blobs that were complete and got damaged. What they link to cannot be told, so it is not collected.
    pub(crate) lost: Mutex<BTreeSet<[u8; 32]>>,
}

#[derive(Debug)]
struct Blobs {
    all: HashMap<Hash, Weak<Blob>>,
    kept: LruCache<Hash, Arc<Blob>>,
}

fn cache<K: std::hash::Hash + Eq, V>(len: usize) -> LruCache<K, V> {
    LruCache::new(NonZeroUsize::new(len).unwrap_or(NonZeroUsize::MIN))
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Does something on a thread that may block.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| Error::Closed)
}

/// The key of a row of the pages table.
pub(crate) fn page_row(id: &Id, page: PageId) -> Bytes {
    let mut row = Vec::with_capacity(26);
    row.extend_from_slice(id);
    row.extend_from_slice(&[b'p', page.level]);
    row.extend_from_slice(&page.number.to_be_bytes());
    row.into()
}

/// The key of the row with a partial blob's state.
pub(crate) fn state_row(id: &Id) -> Bytes {
    let mut row = Vec::with_capacity(17);
    row.extend_from_slice(id);
    row.push(b's');
    row.into()
}

impl Core {
    pub(crate) fn new(
        backend: Arc<dyn Backend>,
        tables: Arc<Tables>,
        lost: BTreeSet<[u8; 32]>,
    ) -> Self {
        Self {
            backend,
            tables,
            blobs: Mutex::new(Blobs {
                all: HashMap::new(),
                kept: cache(KEPT_BLOBS),
            }),
            files: Mutex::new(cache(KEPT_FILES)),
            pages: Mutex::new(cache(KEPT_PAGES)),
            ahead: Arc::new(Semaphore::new(AHEAD)),
            broken_off: BrokenOff::default(),
            tags: tokio::sync::Mutex::default(),
            fresh: Mutex::default(),
            importing: Mutex::default(),
            lost: Mutex::new(lost),
        }
    }

    /// The blob, shared with all who use it at the moment.
    pub(crate) fn blob(&self, hash: Hash) -> Arc<Blob> {
        let mut blobs = lock(&self.blobs);
        if let Some(blob) = blobs.kept.get(&hash) {
            return blob.clone();
        }
        let blob = match blobs.all.get(&hash).and_then(Weak::upgrade) {
            Some(blob) => blob,
            None => {
                if blobs.all.len() > 2 * KEPT_BLOBS {
                    blobs.all.retain(|_, blob| blob.strong_count() > 0);
                }
                let blob = Arc::new(Blob::new(hash));
                blobs.all.insert(hash, Arc::downgrade(&blob));
                blob
            }
        };
        // Partial ones hold more than an index entry, so they are not kept.
        if blob.view().entry.is_none_or(|entry| entry.complete) {
            blobs.kept.put(hash, blob.clone());
        }
        blob
    }

    /// Whether a blob is here, complete. Nothing of it is kept for the next time, so that many can be asked for. If the word of the index
    /// is enough, its row may be damaged.
    pub(crate) async fn is_complete(&self, hash: Hash, by_index: bool) -> Result<bool> {
        if hash == Hash::EMPTY {
            return Ok(true);
        }
        let in_use = {
            let blobs = lock(&self.blobs);
            let kept = blobs.kept.peek(&hash).cloned();
            kept.or_else(|| blobs.all.get(&hash).and_then(Weak::upgrade))
        };
        if let Some(blob) = in_use {
            return Ok(self.view(&blob).await?.complete().is_some());
        }
        if by_index && self.tables.says_complete(&hash).await? {
            return Ok(true);
        }
        let entry = self.tables.entry(&hash).await?;
        Ok(entry.is_some_and(|entry| entry.complete))
    }

    /// A blob that turned out to be partial lives as long as somebody uses it.
    pub(crate) fn do_not_keep(&self, hash: Hash) {
        lock(&self.blobs).kept.pop(&hash);
    }

    /// Writes a change of a blob.
    pub(crate) async fn change(&self, blob: &Blob, request: Request) -> Result<Option<Arc<Entry>>> {
        let changing = Changing::new(blob, &self.broken_off);
        let written = self.tables.write(request).await;
        changing.answered();
        written
    }

    /// All blobs that somebody holds.
    pub(crate) fn held(&self) -> Vec<Arc<Blob>> {
        lock(&self.blobs)
            .all
            .values()
            .filter_map(Weak::upgrade)
            .collect()
    }

    /// Lets go of everything that is only kept for the next time.
    pub(crate) fn forget_caches(&self) {
        lock(&self.blobs).kept.clear();
        lock(&self.files).clear();
        lock(&self.pages).clear();
    }

    /// What is known of a blob.
    pub(crate) async fn view(&self, blob: &Blob) -> Result<View> {
        let view = blob.view();
        if view.loaded && !blob.is_stale() {
            return Ok(view);
        }
        let mut work = blob.work.lock().await;
        self.load(blob, &mut work).await
    }

    /// As [`view`](Self::view), for whoever holds the work.
    pub(crate) async fn load(&self, blob: &Blob, work: &mut Work) -> Result<View> {
        let view = blob.view();
        if view.loaded && !blob.is_stale() {
            return Ok(view);
        }
        if blob.is_stale() {
            *work = Work::default();
        }
        if let Some(count) = self.broken_off.waiting() {
            self.tables.settle().await?;
            self.broken_off.settled(count);
        }
        let entry = self.tables.entry(&blob.hash).await?;
        let mut view = View {
            loaded: true,
            ..View::default()
        };
        if let Some(entry) = entry {
            if entry.complete {
                view.bitfield = Bitfield::complete(entry.size);
                work.counted = Some(entry.size);
                view.entry = Some(entry);
            } else if let Some((partial, bitfield)) = self.load_partial(&entry).await? {
                self.do_not_keep(blob.hash);
                work.counted = Some(entry.here);
                work.partial = Some(partial);
                view.bitfield = bitfield;
                let counted = entry.here;
                view.entry = Some(entry);
                if view.bitfield.total_bytes() != counted {
                    // The process ended between the bytes and the index.
                    blob.view.set(view);
                    blob.refreshed();
                    if let Err(error) = self.write_down(blob, work).await {
                        // Tried again when more of it comes.
                        tracing::debug!(%error, "a partial blob was not counted anew yet");
                    }
                    return Ok(blob.view());
                }
            } else {
                // Its state cannot be read: it counts as missing, and is not counted any more.
                self.tables
                    .write(Request {
                        blobs: -1,
                        bytes: -signed(entry.here),
                        ..self.discard(&entry, true)
                    })
                    .await?;
                self.remove_file(&entry).await;
            }
        }
        blob.view.set(view.clone());
        blob.refreshed();
        Ok(view)
    }

    /// Writes down what came in of partial blobs and is not written down yet.
    pub(crate) async fn write_all_down(&self) -> Result<()> {
        for blob in self.held() {
            let mut work = blob.work.lock().await;
            if work.unwritten > 0 && !blob.is_stale() {
                self.write_down(&blob, &mut work).await?;
            }
        }
        Ok(())
    }

    async fn load_partial(&self, entry: &Entry) -> Result<Option<(Partial, Bitfield)>> {
        let row = state_row(&entry.id);
        let sealed = {
            let open = self.tables.read().await?;
            open.pages.load(PAGES, row.clone()).await?
        };
        let state =
            sealed.and_then(|sealed| seal::open_row(&entry.key(), Kind::State, &row, &sealed));
        let Some(state) = state else {
            return Ok(None);
        };
        if entry.place == Place::Row {
            let partial = postcard::from_bytes::<SmallPartial>(&state).ok();
            return Ok(partial.map(|partial| {
                let bitfield = partial.bitfield.clone();
                (Partial::Small(partial), bitfield)
            }));
        }
        let Ok(state) = postcard::from_bytes::<StoredState>(&state) else {
            return Ok(None);
        };
        let Some(file) = self.find_file(&entry.id, file_name).await? else {
            return Ok(None);
        };
        let mut partial = FilePartial::new(file);
        partial.fragments = state.fragments;
        Ok(Some((Partial::File(partial), state.bitfield)))
    }

    /// The file of a blob or a pack, open.
    pub(crate) async fn open_file(
        &self,
        id: &Id,
        name: impl FnOnce(&Id) -> String,
    ) -> Result<Arc<dyn SegmentFile>> {
        if let Some(file) = lock(&self.files).get(id) {
            return Ok(file.clone());
        }
        let (backend, name) = (self.backend.clone(), name(id));
        let is_pack = pack_of(&name).is_some();
        let file = blocking(move || backend.open_file(&name))
            .await?
            .map_err(segment_error)?;
        let mut files = lock(&self.files);
        // Not of a pack that was removed since: its space would stay taken.
        if !is_pack || self.tables.packs().contains(id) {
            files.put(*id, file.clone());
        }
        drop(files);
        Ok(file)
    }

    /// The file of a blob or a pack, open; none if it is gone.
    pub(crate) async fn find_file(
        &self,
        id: &Id,
        name: impl FnOnce(&Id) -> String,
    ) -> Result<Option<Arc<dyn SegmentFile>>> {
        match self.open_file(id, name).await {
            Ok(file) => Ok(Some(file)),
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The file is gone, or will be.
    pub(crate) fn forget_file(&self, id: &Id) {
        lock(&self.files).pop(id);
    }

    /// The sealed bytes of a small blob. `None` if they are not there.
    pub(crate) async fn packed(
        &self,
        entry: &Entry,
        pack: &Id,
        offset: u64,
    ) -> Result<Option<Vec<u8>>> {
        let Some(file) = self.find_file(pack, pack_name).await? else {
            return Ok(None);
        };
        // A small blob's, so it fits.
        let mut sealed = vec![0; sealed_size(entry.size.min(SMALL)) as usize];
        let read = match file.read_now(&mut sealed, offset) {
            Ok(true) => Ok(sealed),
            _ => blocking(move || file.read_exact_at(&mut sealed, offset).map(|()| sealed)).await?,
        };
        match read {
            Ok(sealed) => Ok(Some(sealed)),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(segment_error(error)),
        }
    }

    /// Makes a file for a blob.
    pub(crate) async fn create_file(&self, entry: &Entry) -> Result<Arc<dyn SegmentFile>> {
        let (backend, name) = (self.backend.clone(), entry.file_name());
        blocking(move || backend.create_file(&name))
            .await?
            .map_err(segment_error)
    }

    /// Removes the file of a blob that is not in the index any more. If that fails, the next start does it.
    pub(crate) async fn remove_file(&self, entry: &Entry) {
        if entry.place != Place::File {
            return;
        }
        self.forget_file(&entry.id);
        let (backend, name) = (self.backend.clone(), entry.file_name());
        match blocking(move || backend.remove_file(&name)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "a dead file was not removed yet"),
            Err(_) => {}
        }
    }

    /// What takes an entry's rows away: of the bytes alone, or of the index as well.
    pub(crate) fn discard(&self, entry: &Entry, from_index: bool) -> Request {
        let mut request = Request::default();
        if from_index {
            request.changes.push(Change::Remove(entry.clone()));
        } else if entry.place == Place::File {
            request.index.push(Index::remove_file_row(entry.id));
        }
        let dead = |key| Op::Delete { column: PAGES, key };
        if entry.place == Place::File {
            let pages = tree::pages(entry.size).into_iter();
            request
                .dead_pages
                .extend(pages.map(|page| dead(page_row(&entry.id, page))));
        }
        // A record in a pack is dead when the index does not claim it.
        if !entry.complete {
            request.dead_pages.push(dead(state_row(&entry.id)));
        }
        request
    }

    /// A page of a tree as it was written down. `None` if it is not there or damaged.
    pub(crate) async fn page(&self, entry: &Entry, page: PageId) -> Result<Option<Arc<Page>>> {
        if let Some(found) = lock(&self.pages).get(&(entry.id, page)) {
            return Ok(Some(found.clone()));
        }
        let row = page_row(&entry.id, page);
        let sealed = self
            .tables
            .read()
            .await?
            .pages
            .load(PAGES, row.clone())
            .await?;
        let Some(plain) =
            sealed.and_then(|sealed| seal::open_row(&entry.key(), Kind::Page, &row, &sealed))
        else {
            return Ok(None);
        };
        let found = Arc::new(Page(plain.to_vec()));
        self.keep_page(entry, page, found.clone());
        Ok(Some(found))
    }

    /// What is written next may be on disk even if the writing fails, so it is read again then.
    pub(crate) fn forget_page(&self, entry: &Entry, page: PageId) {
        lock(&self.pages).pop(&(entry.id, page));
    }

    pub(crate) fn keep_page(&self, entry: &Entry, page: PageId, content: Arc<Page>) {
        lock(&self.pages).put((entry.id, page), content);
    }

    /// What writes a page.
    pub(crate) fn seal_page(entry: &Entry, page: PageId, content: &Page) -> Result<Op> {
        let row = page_row(&entry.id, page);
        let sealed = seal::seal_row(&entry.key(), Kind::Page, &row, &content.0)?;
        Ok(Op::Put {
            column: PAGES,
            key: row,
            value: sealed.into(),
        })
    }

    /// The groups of a blob with a file that the index claims and that are not there, as far as that shows without reading them.
    pub(crate) async fn missing(&self, entry: &Entry) -> Result<Vec<(u64, u64)>> {
        // Its bytes were synced before it was claimed.
        if self.find_file(&entry.id, file_name).await?.is_none() {
            return Ok(vec![(0, u64::MAX)]);
        }
        let mut missing = Vec::new();
        for page in tree::pages(entry.size) {
            if tree::is_used(page, entry.size) && self.page(entry, page).await?.is_none() {
                missing.push(page.groups());
            }
        }
        Ok(missing)
    }

    /// A pair of hashes of a blob with a file.
    pub(crate) async fn pair(
        &self,
        blob: &Blob,
        entry: &Entry,
        index: u64,
    ) -> Result<Option<Pair>> {
        if !entry.complete {
            let work = blob.work.lock().await;
            if let Some(Partial::File(partial)) = &work.partial
                && let Some(pair) = partial.pair(index)
            {
                return Ok(Some(pair));
            }
        }
        let (page, slot) = tree::place(index);
        Ok(self
            .page(entry, page)
            .await?
            .and_then(|page| page.get(slot)))
    }

    /// Writes down that some groups of a blob are not here any more, since they cannot be read. A blob without any is gone.
    pub(crate) async fn lose(
        &self,
        blob: &Blob,
        entry: &Entry,
        groups: &[(u64, u64)],
    ) -> Result<()> {
        let mut work = blob.work.lock().await;
        let view = self.load(blob, &mut work).await?;
        let Some(now) = view.entry.filter(|now| now.id == entry.id) else {
            return Ok(());
        };
        if now.place != entry.place || (now.complete && !entry.complete) {
            // Moved, or completed, since it was looked at.
            return Ok(());
        }
        tracing::warn!("a part of a blob is damaged and counts as missing");
        // Before it is gone, so that no garbage collection takes what only it links to.
        let lost = {
            let mut lost = lock(&self.lost);
            lost.insert(now.hash);
            lost.clone()
        };
        self.tables
            .write(Request {
                changes: vec![Change::Lost(lost)],
                ..Request::default()
            })
            .await?;
        let mut ranges = view.bitfield.ranges.clone();
        for (start, end) in groups {
            ranges -= chunks_of_groups(*start, *end);
        }
        let left = Bitfield::new(ranges.clone(), now.size);
        let file = match now.place {
            Place::File if left.total_bytes() > 0 => self.find_file(&now.id, file_name).await?,
            _ => None,
        };
        let Some(file) = file else {
            let request = Request {
                blobs: work.counted.map_or(0, |_| -1),
                bytes: -signed(work.counted.unwrap_or(0)),
                ..self.discard(&now, true)
            };
            self.change(blob, request).await?;
            *work = Work::default();
            blob.view.set(View {
                loaded: true,
                ..View::default()
            });
            self.remove_file(&now).await;
            return Ok(());
        };
        let mut entry = (*now).clone();
        entry.complete = false;
        let mut partial = match work.partial.take() {
            Some(Partial::File(partial)) => partial,
            _ => FilePartial::new(file),
        };
        partial.fragments.retain(|group, _| {
            !groups
                .iter()
                .any(|(start, end)| (*start..*end).contains(group))
        });
        work.partial = Some(Partial::File(partial));
        blob.view.set(View {
            loaded: true,
            entry: Some(Arc::new(entry)),
            bitfield: left,
        });
        self.write_down(blob, &mut work).await
    }

    /// Writes down what is there of a partial blob: first the bytes, then the claim.
    pub(crate) async fn write_down(&self, blob: &Blob, work: &mut Work) -> Result<()> {
        let file = match &work.partial {
            Some(Partial::File(partial)) => Some(partial.file.clone()),
            _ => None,
        };
        let shown = Shown::of(blob, work);
        if let Some(file) = file {
            self.sync(file, work.counted.is_none()).await?;
        }
        self.write_shown(blob, work, shown).await
    }

    /// Makes sure that what is in a file lasts; of a new one, that the file itself does.
    pub(crate) async fn sync(&self, file: Arc<dyn SegmentFile>, is_new: bool) -> Result<()> {
        let backend = self.backend.clone();
        blocking(move || {
            file.sync()?;
            if is_new { backend.sync_files() } else { Ok(()) }
        })
        .await?
        .map_err(segment_error)
    }

    /// Writes down what was there of a partial blob when it was [looked at](Shown), which has to be on disk by now. More may have come
    /// since.
    pub(crate) async fn write_shown(
        &self,
        blob: &Blob,
        work: &mut Work,
        shown: Shown,
    ) -> Result<()> {
        let view = blob.view();
        let Some(entry) = view.entry.filter(|entry| !entry.complete) else {
            return Ok(());
        };
        if shown.id != Some(entry.id) {
            // It was begun anew meanwhile.
            return Ok(());
        }
        // What turned out to be damaged meanwhile is not here.
        let ranges = &shown.bitfield.ranges & &view.bitfield.ranges;
        let bitfield = Bitfield::new(ranges, shown.bitfield.size());
        let here = bitfield.total_bytes();
        let mut entry = (*entry).clone();
        entry.here = here;
        let mut request = Request {
            blobs: i64::from(work.counted.is_none()),
            bytes: signed(here) - signed(work.counted.unwrap_or(0)),
            ..Request::default()
        };
        match &mut work.partial {
            None => return Ok(()),
            Some(Partial::Small(partial)) => {
                partial.bitfield = bitfield.clone();
                request.pages.push(Self::seal_state(&entry, partial)?);
                request.changes.push(Change::Put(entry.clone()));
            }
            Some(Partial::File(partial)) => {
                for (page, content) in &partial.pages {
                    self.forget_page(&entry, *page);
                    request.pages.push(Self::seal_page(&entry, *page, content)?);
                }
                request.pages.push(Self::seal_state(
                    &entry,
                    &StoredState {
                        bitfield: bitfield.clone(),
                        fragments: shown.fragments.clone(),
                    },
                )?);
                request.changes.push(Change::Put(entry.clone()));
            }
        }
        self.change(blob, request).await?;
        let entry = Arc::new(entry);
        blob.view.update(|view| view.entry = Some(entry.clone()));
        if let Some(Partial::File(partial)) = &mut work.partial {
            for (page, content) in partial.pages.drain() {
                self.keep_page(&entry, page, Arc::new(content));
            }
        }
        work.counted = Some(here);
        work.unwritten = work.unwritten.saturating_sub(shown.unwritten);
        let end = Instant::now();
        work.write_again = end + (end - shown.at) * WRITE_PAUSE;
        Ok(())
    }

    fn seal_state(entry: &Entry, state: &impl Serialize) -> Result<Op> {
        let row = state_row(&entry.id);
        let plain = postcard::to_stdvec(state).map_err(|_| Error::Sealing)?;
        let sealed = seal::seal_row(&entry.key(), Kind::State, &row, &plain)?;
        Ok(Op::Put {
            column: PAGES,
            key: row,
            value: sealed.into(),
        })
    }

    /// What came in now is not collected by a collection that is under way.
    pub(crate) fn freshen(&self, hash: Hash) {
        if let Some(fresh) = &mut *lock(&self.fresh) {
            fresh.insert(hash);
        }
    }

    pub(crate) fn is_fresh(&self, hash: Hash) -> bool {
        lock(&self.fresh)
            .as_ref()
            .is_some_and(|fresh| fresh.contains(&hash))
    }
}

pub(crate) fn segment_error(source: io::Error) -> Error {
    Error::Io {
        path: "segments".into(),
        source,
    }
}

pub(crate) fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
