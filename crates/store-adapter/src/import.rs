//! What comes in: bytes, streams, files, and verified pieces from elsewhere.

use std::{
    collections::{
        VecDeque,
        hash_map::Entry::{Occupied, Vacant},
    },
    io, mem,
    path::PathBuf,
    sync::Arc,
};

use bao_tree::io::BaoContentItem;
use bytes::{Bytes, BytesMut};
use futures::FutureExt;
use iroh_blobs::{
    Hash, HashAndFormat,
    api::{
        self, TempTag,
        proto::{AddProgressItem, Bitfield, ImportByteStreamUpdate},
    },
};
use irpc::channel::{mpsc, oneshot};
use tokio::{io::AsyncReadExt, task::JoinHandle};

use crate::{
    Error, Result,
    backend::{Op, SegmentFile},
    blob::{
        Blob, Changing, FilePartial, Partial, SmallPartial, View, Work, chunks_of, chunks_of_groups,
    },
    core::{Core, SMALL, blocking, lock, segment_error, signed},
    index::{Change, Entry, Id, Place},
    pins::Pinning,
    seal::{self, SEALED_SEGMENT, SEGMENT, Segments, sealed_offset},
    tables::Request,
    tree::{self, Builder, Page, PageId, Pair, group_hash, pair_of},
};

/// What is sealed and written at once: 1 MiB.
const BLOCK: usize = 64 * SEGMENT;
/// Blocks that are being sealed at the same time.
const BLOCKS: usize = 3;
/// After so much, what was written is pushed to the disk while more comes in.
const SYNC_BYTES: u64 = 64 * 1024 * 1024;
/// Pieces from elsewhere that are taken together.
const PIECES: usize = 64;
/// What may be lost of a download when the process dies.
const UNWRITTEN: u64 = 16 * 1024 * 1024;

/// Where an import's bytes come from.
pub(crate) enum Input {
    Stream(mpsc::Receiver<ImportByteStreamUpdate>),
    Path(PathBuf),
    File(Box<tokio::fs::File>),
}

impl Input {
    /// The next bytes; none at the end.
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        match self {
            Self::Stream(rx) => match rx.recv().await {
                Ok(Some(ImportByteStreamUpdate::Bytes(bytes))) => Ok(Some(bytes)),
                Ok(Some(ImportByteStreamUpdate::Done)) => Ok(None),
                // Whoever sent went away before the end.
                Ok(None) => Err(io::ErrorKind::UnexpectedEof.into()),
                Err(error) => Err(io::Error::other(error.to_string())),
            },
            Self::Path(path) => {
                let file = tokio::fs::File::open(&path).await?;
                if !file.metadata().await?.is_file() {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidInput,
                        "what is to be imported is no file",
                    ));
                }
                *self = Self::File(Box::new(file));
                Box::pin(self.next()).await
            }
            Self::File(file) => {
                let mut buffer = BytesMut::with_capacity(256 * 1024);
                while buffer.len() < buffer.capacity() {
                    if file.read_buf(&mut buffer).await? == 0 {
                        break;
                    }
                }
                Ok((!buffer.is_empty()).then(|| buffer.freeze()))
            }
        }
    }
}

/// Takes bytes that are in memory already.
pub(crate) async fn import_bytes(
    core: &Core,
    data: Bytes,
    pins: Pinning<'_>,
    format: iroh_blobs::BlobFormat,
    tx: mpsc::Sender<AddProgressItem>,
) {
    let size = data.len() as u64;
    let imported = async {
        if size <= SMALL {
            let tag = import_small(core, data, pins, format).await?;
            // All at once, so that whoever waits is woken once.
            send(&tx, AddProgressItem::Size(size)).await?;
            send(&tx, AddProgressItem::CopyDone).await?;
            Ok(tag)
        } else {
            send(&tx, AddProgressItem::Size(size)).await?;
            send(&tx, AddProgressItem::CopyDone).await?;
            let mut large = Large::begin(core).await?;
            let fed = large.feed(data).await;
            large.end(fed, pins, format).await
        }
    };
    finish(imported.await, &tx).await;
}

/// Takes what has to be read to its end first.
pub(crate) async fn import_stream(
    core: &Core,
    mut input: Input,
    pins: Pinning<'_>,
    format: iroh_blobs::BlobFormat,
    tx: mpsc::Sender<AddProgressItem>,
) {
    let imported = async {
        let mut read: u64 = 0;
        let mut head = BytesMut::new();
        let mut large = None;
        let fed = loop {
            let bytes = match input.next().await {
                Ok(Some(bytes)) => bytes,
                Ok(None) => break Ok(()),
                Err(source) => break Err(Error::Input { source }),
            };
            read += bytes.len() as u64;
            // Progress is a courtesy: whoever does not look at it does not hold the import up. Who has gone away ends it.
            if tx
                .try_send(AddProgressItem::CopyProgress(read))
                .await
                .is_err()
            {
                break Err(Error::Closed);
            }
            match &mut large {
                None if read <= SMALL => head.extend_from_slice(&bytes),
                None => {
                    let mut begun = Large::begin(core).await?;
                    let mut fed = begun.feed(mem::take(&mut head).freeze()).await;
                    if fed.is_ok() {
                        fed = begun.feed(bytes).await;
                    }
                    large = Some(begun);
                    if fed.is_err() {
                        break fed;
                    }
                }
                Some(large) => {
                    let fed = large.feed(bytes).await;
                    if fed.is_err() {
                        break fed;
                    }
                }
            }
        };
        let told = async {
            send(&tx, AddProgressItem::Size(read)).await?;
            send(&tx, AddProgressItem::CopyDone).await
        };
        match large {
            None => {
                fed?;
                told.await?;
                import_small(core, head.freeze(), pins, format).await
            }
            Some(large) => {
                let fed = match fed {
                    Ok(()) => told.await,
                    failed => failed,
                };
                large.end(fed, pins, format).await
            }
        }
    };
    finish(imported.await, &tx).await;
}

async fn send(tx: &mpsc::Sender<AddProgressItem>, item: AddProgressItem) -> Result<()> {
    // Nobody waits for this import any more: what it wrote is taken away.
    tx.send(item).await.map_err(|_| Error::Closed)
}

pub(crate) async fn finish(imported: Result<TempTag>, tx: &mpsc::Sender<AddProgressItem>) {
    let item = match imported {
        Ok(tag) => AddProgressItem::Done(tag),
        Err(error) => {
            tracing::debug!(%error, "an import failed");
            AddProgressItem::Error(error.into_io())
        }
    };
    // Whoever asked may have gone away.
    let _ = tx.send(item).await;
}

async fn import_small(
    core: &Core,
    data: Bytes,
    pins: Pinning<'_>,
    format: iroh_blobs::BlobFormat,
) -> Result<TempTag> {
    let hash = Hash::new(&data);
    // Before the blob is there, so that no garbage collection finds it without.
    let tag = pins.pin(HashAndFormat { hash, format }).await?;
    if hash != Hash::EMPTY {
        let blob = core.blob(hash);
        let mut work = blob.work.lock().await;
        core.load(&blob, &mut work).await?;
        core.freshen(hash);
        complete_small(core, &blob, &mut work, &data).await?;
    }
    Ok(tag)
}

/// Makes a blob complete whose bytes are all in memory.
async fn complete_small(core: &Core, blob: &Blob, work: &mut Work, data: &[u8]) -> Result<()> {
    let view = blob.view();
    if view.complete().is_some() {
        return Ok(());
    }
    let size = data.len() as u64;
    let entry = Entry::new(blob.hash, size, Place::PACK, true)?;
    let sealed = seal::seal_small(&entry.key(), data)?;
    let request = Request {
        pack: Some((entry, sealed.into())),
        ..replace(core, &view, work, size)
    };
    let written = core.change(blob, request).await?;
    completed(core, blob, work, view, written).await;
    Ok(())
}

/// What takes the place of a partial blob takes its rows away.
fn replace(core: &Core, view: &View, work: &Work, size: u64) -> Request {
    let request = match (&view.entry, work.counted) {
        (Some(old), Some(_)) => core.discard(old, false),
        _ => Request::default(),
    };
    Request {
        blobs: i64::from(work.counted.is_none()),
        bytes: signed(size) - signed(work.counted.unwrap_or(0)),
        ..request
    }
}

async fn completed(
    core: &Core,
    blob: &Blob,
    work: &mut Work,
    old: View,
    entry: Option<Arc<Entry>>,
) {
    let Some(entry) = entry else {
        return;
    };
    *work = Work {
        counted: Some(entry.size),
        ..Work::default()
    };
    blob.view.set(View {
        loaded: true,
        bitfield: Bitfield::complete(entry.size),
        entry: Some(entry.clone()),
    });
    if let Some(old) = old.entry.filter(|old| old.id != entry.id) {
        core.remove_file(&old).await;
    }
}

/// A blob that goes to a file while it is read, with constant memory.
struct Large<'a> {
    core: &'a Core,
    entry: Entry,
    file: Arc<dyn SegmentFile>,
    segments: Arc<Segments>,
    buffer: BytesMut,
    /// The next group that is given out to be sealed.
    next: u64,
    sealing: VecDeque<JoinHandle<io::Result<Vec<[u8; 32]>>>>,
    syncing: Option<JoinHandle<io::Result<()>>>,
    unsynced: u64,
    size: u64,
    builder: Builder,
    /// Pages that are not full yet, one on each level.
    pages: Vec<(PageId, Page)>,
    full: Vec<Op>,
    _importing: Importing<'a>,
}

/// Says that rows of a blob may be there which the index does not claim yet.
struct Importing<'a>(&'a Core, Id);

impl<'a> Importing<'a> {
    fn new(core: &'a Core, id: Id) -> Self {
        lock(&core.importing).insert(id);
        Self(core, id)
    }
}

impl Drop for Importing<'_> {
    fn drop(&mut self) {
        lock(&self.0.importing).remove(&self.1);
    }
}

impl<'a> Large<'a> {
    async fn begin(core: &'a Core) -> Result<Self> {
        // The hash and the size are set at the end.
        let entry = Entry::new(Hash::EMPTY, 0, Place::File, true)?;
        let importing = Importing::new(core, entry.id);
        let file = core.create_file(&entry).await?;
        Ok(Self {
            _importing: importing,
            core,
            segments: Arc::new(Segments::new(&entry.key())?),
            entry,
            file,
            buffer: BytesMut::with_capacity(BLOCK),
            next: 0,
            sealing: VecDeque::new(),
            syncing: None,
            unsynced: 0,
            size: 0,
            builder: Builder::default(),
            pages: Vec::new(),
            full: Vec::new(),
        })
    }

    async fn feed(&mut self, mut data: Bytes) -> Result<()> {
        self.size += data.len() as u64;
        while !data.is_empty() {
            let room = (BLOCK - self.buffer.len()).min(data.len());
            self.buffer.extend_from_slice(&data.split_to(room));
            if self.buffer.len() == BLOCK {
                self.seal().await?;
            }
        }
        Ok(())
    }

    /// Gives the buffer to a thread that hashes, seals and writes it.
    async fn seal(&mut self) -> Result<()> {
        while self.sealing.len() >= BLOCKS {
            self.sealed().await?;
        }
        let block = mem::replace(&mut self.buffer, BytesMut::with_capacity(BLOCK)).freeze();
        let first = self.next;
        self.next += block.len().div_ceil(SEGMENT) as u64;
        let (file, segments) = (self.file.clone(), self.segments.clone());
        self.sealing.push_back(tokio::task::spawn_blocking(move || {
            let groups = block.len().div_ceil(SEGMENT);
            let mut hashes = Vec::with_capacity(groups);
            let mut sealed = Vec::with_capacity(groups * SEALED_SEGMENT);
            for (group, data) in (first..).zip(block.chunks(SEGMENT)) {
                hashes.push(group_hash(group, data));
                segments
                    .seal(group, data, &mut sealed)
                    .map_err(Error::into_io)?;
            }
            file.write_all_at(&sealed, sealed_offset(first))?;
            Ok(hashes)
        }));
        Ok(())
    }

    /// Waits for the block that was given out first, and puts its hashes into the tree.
    async fn sealed(&mut self) -> Result<()> {
        let Some(block) = self.sealing.pop_front() else {
            return Ok(());
        };
        let hashes = block
            .await
            .map_err(|_| Error::Closed)?
            .map_err(segment_error)?;
        self.unsynced += (hashes.len() * SEGMENT) as u64;
        for hash in hashes {
            let mut pairs = Vec::new();
            self.builder
                .push(hash, |index, pair| pairs.push((index, pair)));
            self.put(pairs)?;
        }
        if !self.full.is_empty() {
            // The index does not claim them yet, so they wait for nothing.
            let pages = mem::take(&mut self.full);
            let request = Request {
                pages,
                ..Request::default()
            };
            self.core.tables.write(request).await?;
        }
        if self.unsynced >= SYNC_BYTES {
            if let Some(syncing) = self.syncing.take() {
                syncing
                    .await
                    .map_err(|_| Error::Closed)?
                    .map_err(segment_error)?;
            }
            self.unsynced = 0;
            let file = self.file.clone();
            self.syncing = Some(tokio::task::spawn_blocking(move || file.sync()));
        }
        Ok(())
    }

    fn put(&mut self, pairs: Vec<(u64, Pair)>) -> Result<()> {
        for (index, pair) in pairs {
            let (page, slot) = tree::place(index);
            let level = usize::from(page.level);
            while self.pages.len() <= level {
                // Below there are pages already, so the number fits.
                let level = self.pages.len() as u8;
                self.pages
                    .push((PageId { level, number: 0 }, Page::default()));
            }
            if self.pages[level].0 != page {
                let (full, content) = mem::replace(&mut self.pages[level], (page, Page::default()));
                self.full
                    .push(Core::seal_page(&self.entry, full, &content)?);
            }
            self.pages[level].1.set(slot, &pair);
        }
        Ok(())
    }

    /// Ends the import; what was written is taken away if it failed.
    async fn end(
        mut self,
        fed: Result<()>,
        pins: Pinning<'_>,
        format: iroh_blobs::BlobFormat,
    ) -> Result<TempTag> {
        let ended = match fed {
            Ok(()) => self.complete(pins, format).await,
            Err(error) => Err(error),
        };
        match ended {
            Ok((tag, true)) => Ok(tag),
            kept => {
                // Nothing writes to the file any more when it is removed.
                for block in mem::take(&mut self.sealing) {
                    let _ = block.await;
                }
                if let Some(syncing) = self.syncing.take() {
                    let _ = syncing.await;
                }
                self.entry.size = self.size;
                let request = Request {
                    dead_pages: self.core.discard(&self.entry, false).dead_pages,
                    ..Request::default()
                };
                if let Err(error) = self.core.tables.write(request).await {
                    tracing::debug!(%error, "pages of an import that failed were not removed yet");
                }
                self.core.remove_file(&self.entry).await;
                kept.map(|(tag, _)| tag)
            }
        }
    }

    /// Whether what was written is what the store keeps; if not, somebody else brought the same blob.
    async fn complete(
        &mut self,
        pins: Pinning<'_>,
        format: iroh_blobs::BlobFormat,
    ) -> Result<(TempTag, bool)> {
        if !self.buffer.is_empty() {
            self.seal().await?;
        }
        while !self.sealing.is_empty() {
            self.sealed().await?;
        }
        let mut pairs = Vec::new();
        let hash = mem::take(&mut self.builder)
            .finish(|index, pair| pairs.push((index, pair)))
            .ok_or(Error::Sealing)?;
        self.put(pairs)?;
        if let Some(syncing) = self.syncing.take() {
            syncing
                .await
                .map_err(|_| Error::Closed)?
                .map_err(segment_error)?;
        }
        let (file, backend) = (self.file.clone(), self.core.backend.clone());
        blocking(move || {
            file.sync()?;
            backend.sync_files()
        })
        .await?
        .map_err(segment_error)?;
        let mut pages = mem::take(&mut self.full);
        for (page, content) in mem::take(&mut self.pages) {
            if !content.0.is_empty() {
                pages.push(Core::seal_page(&self.entry, page, &content)?);
            }
        }
        // Before the blob is there, so that no garbage collection finds it without.
        let tag = pins.pin(HashAndFormat { hash, format }).await?;
        let blob = self.core.blob(hash);
        let mut work = blob.work.lock().await;
        let view = self.core.load(&blob, &mut work).await?;
        self.core.freshen(hash);
        if view.complete().is_some() {
            return Ok((tag, false));
        }
        self.entry.hash = *hash.as_bytes();
        self.entry.size = self.size;
        self.entry.here = self.size;
        let mut request = replace(self.core, &view, &work, self.size);
        request.pages.extend(pages);
        request.changes.push(Change::Put(self.entry.clone()));
        self.core.change(&blob, request).await?;
        let entry = Some(Arc::new(self.entry.clone()));
        completed(self.core, &blob, &mut work, view, entry).await;
        Ok((tag, true))
    }
}

/// Takes verified pieces of a blob from elsewhere. What came is kept if the other side stops.
pub(crate) async fn import_bao(
    core: &Core,
    blob: &Blob,
    size: u64,
    mut rx: mpsc::Receiver<BaoContentItem>,
    tx: oneshot::Sender<api::Result<()>>,
) {
    let result = take_pieces(core, blob, size, &mut rx).await;
    if let Err(error) = &result {
        tracing::debug!(%error, "pieces of a blob were not kept");
    }
    // Whoever asked may have gone away.
    let _ = tx
        .send(result.map_err(|error| error.into_io().into()))
        .await;
}

async fn take_pieces(
    core: &Core,
    blob: &Blob,
    size: u64,
    rx: &mut mpsc::Receiver<BaoContentItem>,
) -> Result<()> {
    core.freshen(blob.hash);
    let mut open = true;
    let mut early = Vec::new();
    while open {
        let mut items = Vec::new();
        let mut pieces = 0;
        while pieces < PIECES {
            // What is there already is taken together.
            let item = if items.is_empty() {
                rx.recv().await
            } else {
                match rx.recv().now_or_never() {
                    Some(item) => item,
                    None => break,
                }
            };
            match item {
                Ok(Some(item)) => {
                    pieces += usize::from(matches!(item, BaoContentItem::Leaf(_)));
                    items.push(item);
                }
                // The end, or as far as it came.
                Ok(None) | Err(_) => {
                    open = false;
                    break;
                }
            }
        }
        let mut work = blob.work.lock().await;
        let view = core.load(blob, &mut work).await?;
        if blob.hash == Hash::EMPTY || view.complete().is_some() {
            continue;
        }
        // Nothing is begun for a blob of which no byte has come: until then, its size is only what somebody says.
        early.append(&mut items);
        if view.entry.is_none() && !early.iter().any(|i| matches!(i, BaoContentItem::Leaf(_))) {
            continue;
        }
        let items = mem::take(&mut early);
        let taken = async {
            let small = matches!(&view.entry, Some(entry) if entry.place != Place::File);
            if small && size > SMALL {
                // One of the two sizes is wrong, and nothing says which: begin anew.
                forget(core, blob, &mut work).await?;
            }
            if !items.is_empty() {
                take(core, blob, &mut work, size, items).await?;
            }
            let due = (!open && work.unwritten > 0) || work.unwritten >= UNWRITTEN;
            if due && work.partial.is_some() {
                core.write_down(blob, &mut work).await?;
            }
            Ok(())
        };
        let taken: Result<()> = taken.await;
        if taken.is_err() && work.counted.is_none() {
            // The index knows nothing of it, so its file would stay for nothing.
            forget(core, blob, &mut work).await?;
        }
        taken?;
    }
    Ok(())
}

async fn take(
    core: &Core,
    blob: &Blob,
    work: &mut Work,
    size: u64,
    items: Vec<BaoContentItem>,
) -> Result<()> {
    let entry = match blob.view().entry {
        Some(entry) => entry,
        None => {
            let place = if size <= SMALL {
                Place::Row
            } else {
                Place::File
            };
            let entry = Entry::new(blob.hash, size, place, false)?;
            work.partial = Some(match place {
                Place::Row | Place::Pack { .. } => Partial::Small(SmallPartial::default()),
                Place::File => Partial::File(FilePartial::new(core.create_file(&entry).await?)),
            });
            let entry = Arc::new(entry);
            blob.view.update(|view| view.entry = Some(entry.clone()));
            core.do_not_keep(blob.hash);
            entry
        }
    };
    let mut bitfield = blob.view().bitfield;
    let mut whole = Vec::new();
    for item in items {
        match item {
            BaoContentItem::Parent(parent) => {
                // Pairs inside a group follow from its data.
                let Some(index) = pair_of(parent.node) else {
                    continue;
                };
                let mut pair = [0; 64];
                pair[..32].copy_from_slice(parent.pair.0.as_bytes());
                pair[32..].copy_from_slice(parent.pair.1.as_bytes());
                match &mut work.partial {
                    Some(Partial::Small(partial)) => partial.set_pair(index, &pair),
                    Some(Partial::File(partial)) => {
                        set_pair(core, &entry, partial, index, &pair).await?;
                    }
                    None => {}
                }
            }
            BaoContentItem::Leaf(leaf) => {
                let len = leaf.data.len();
                work.unwritten += len as u64;
                match &mut work.partial {
                    Some(Partial::Small(partial)) => {
                        if leaf.offset + len as u64 > SMALL {
                            return Err(Error::Unverified);
                        }
                        partial.write(leaf.offset, &leaf.data);
                    }
                    Some(Partial::File(partial)) => {
                        let present = &bitfield.ranges;
                        whole.extend(partial.take(size, leaf.offset, &leaf.data, present));
                    }
                    None => {}
                }
                bitfield.update(&Bitfield::new(chunks_of(leaf.offset, len), size));
            }
        }
    }
    if let (Some(Partial::File(partial)), false) = (&work.partial, whole.is_empty()) {
        let groups: Vec<u64> = whole.iter().map(|(group, _)| *group).collect();
        let written = write_groups(partial.file.clone(), Segments::new(&entry.key())?, whole).await;
        if let Err(error) = written {
            // Parts of them were here already, and went into what could not be written.
            blob.view.update(|view| {
                let mut ranges = view.bitfield.ranges.clone();
                for group in groups {
                    ranges -= chunks_of_groups(group, group + 1);
                }
                view.bitfield = Bitfield::new(ranges, view.bitfield.size());
            });
            return Err(error);
        }
    }
    let complete = bitfield.is_complete();
    if !complete {
        blob.view.update(|view| view.bitfield = bitfield);
        return Ok(());
    }
    // Until it is put back or done with, nobody knows of it.
    let changing = Changing::new(blob, &core.broken_off);
    let completed = complete_partial(core, blob, work, &entry, &bitfield).await;
    changing.answered();
    completed
}

/// Makes a blob complete of which everything is here.
async fn complete_partial(
    core: &Core,
    blob: &Blob,
    work: &mut Work,
    entry: &Entry,
    bitfield: &Bitfield,
) -> Result<()> {
    match work.partial.take() {
        Some(Partial::Small(partial)) => {
            let hash = Hash::new(&partial.data);
            if hash != blob.hash {
                // Cannot be, since all pieces were verified; if it is, nothing of it is kept.
                forget(core, blob, work).await?;
                return Err(Error::Unverified);
            }
            let written = complete_small(core, blob, work, &partial.data).await;
            if written.is_err() {
                work.partial = Some(Partial::Small(partial));
            }
            written
        }
        Some(Partial::File(mut partial)) => {
            let written = complete_file(core, blob, work, entry, &mut partial, bitfield).await;
            if written.is_err() {
                work.partial = Some(Partial::File(partial));
            }
            written
        }
        None => Err(Error::Unverified),
    }
}

async fn set_pair(
    core: &Core,
    entry: &Entry,
    partial: &mut FilePartial,
    index: u64,
    pair: &Pair,
) -> Result<()> {
    let (page, slot) = tree::place(index);
    let content = match partial.pages.entry(page) {
        Occupied(entry) => entry.into_mut(),
        Vacant(vacant) => {
            let known = core.page(entry, page).await?;
            if known.as_ref().and_then(|page| page.get(slot)).as_ref() == Some(pair) {
                return Ok(());
            }
            vacant.insert(known.map_or_else(Page::default, |page| (*page).clone()))
        }
    };
    content.set(slot, pair);
    Ok(())
}

async fn write_groups(
    file: Arc<dyn SegmentFile>,
    segments: Segments,
    mut groups: Vec<(u64, Bytes)>,
) -> Result<()> {
    blocking(move || {
        groups.sort_by_key(|(group, _)| *group);
        let mut sealed = Vec::with_capacity(groups.len() * SEALED_SEGMENT);
        for run in groups.chunk_by(|a, b| a.0 + 1 == b.0) {
            sealed.clear();
            for (group, data) in run {
                segments
                    .seal(*group, data, &mut sealed)
                    .map_err(Error::into_io)?;
            }
            file.write_all_at(&sealed, sealed_offset(run[0].0))?;
        }
        Ok(())
    })
    .await?
    .map_err(segment_error)
}

/// Claims that a blob whose groups are all in its file is complete.
async fn complete_file(
    core: &Core,
    blob: &Blob,
    work: &mut Work,
    entry: &Entry,
    partial: &mut FilePartial,
    bitfield: &Bitfield,
) -> Result<()> {
    if !partial.fragments.is_empty() {
        // Cannot be, since every chunk is here; if it is, their groups are fetched once more.
        return Err(Error::Unverified);
    }
    let (file, backend) = (partial.file.clone(), core.backend.clone());
    blocking(move || {
        file.sync()?;
        backend.sync_files()
    })
    .await?
    .map_err(segment_error)?;
    let mut entry = entry.clone();
    entry.size = bitfield.size();
    entry.here = entry.size;
    entry.complete = true;
    let mut request = Request {
        blobs: i64::from(work.counted.is_none()),
        bytes: signed(entry.size) - signed(work.counted.unwrap_or(0)),
        ..Request::default()
    };
    for (page, content) in &partial.pages {
        core.forget_page(&entry, *page);
        request.pages.push(Core::seal_page(&entry, *page, content)?);
    }
    request.changes.push(Change::Put(entry.clone()));
    request.dead_pages.push(Op::Delete {
        column: crate::tables::PAGES,
        key: crate::core::state_row(&entry.id),
    });
    core.change(blob, request).await?;
    for (page, content) in partial.pages.drain() {
        core.keep_page(&entry, page, Arc::new(content));
    }
    let old = blob.view();
    completed(core, blob, work, old, Some(Arc::new(entry))).await;
    Ok(())
}

/// Takes a blob away whose bytes are of no use.
async fn forget(core: &Core, blob: &Blob, work: &mut Work) -> Result<()> {
    let view = blob.view();
    if let (Some(entry), Some(counted)) = (&view.entry, work.counted) {
        let request = Request {
            blobs: -1,
            bytes: -signed(counted),
            ..core.discard(entry, true)
        };
        core.change(blob, request).await?;
    }
    *work = Work::default();
    blob.view.set(View {
        loaded: true,
        ..View::default()
    });
    if let Some(entry) = &view.entry {
        core.remove_file(entry).await;
    }
    Ok(())
}

/// Removes a blob, unless it came in since the collection began and is to be kept then. `false` if there was none.
pub(crate) async fn remove(core: &Core, blob: &Blob, keep_fresh: bool) -> Result<bool> {
    let mut work = blob.work.lock().await;
    if keep_fresh && core.is_fresh(blob.hash) {
        return Ok(false);
    }
    let view = core.load(blob, &mut work).await?;
    let there = view.entry.is_some();
    forget(core, blob, &mut work).await?;
    Ok(there)
}
