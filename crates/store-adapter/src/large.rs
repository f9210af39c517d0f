//! Blobs that go to a file while they come in.

use std::{collections::VecDeque, io, mem, sync::Arc};

use bytes::{Bytes, BytesMut};
use iroh_blobs::{Hash, HashAndFormat, api::TempTag};
use tokio::task::JoinHandle;

use crate::{
    Error, Result,
    backend::{Op, SegmentFile},
    core::{Core, blocking, lock, segment_error},
    import::{completed, replace},
    index::{Change, Entry, Id, Place},
    pins::Pinning,
    seal::{SEALED_SEGMENT, SEGMENT, Segments, sealed_offset},
    tables::Request,
    tree::{self, Builder, Page, PageId, Pair, group_hash},
};

/// What is sealed and written at once: 1 MiB.
const BLOCK: usize = 64 * SEGMENT;
/// Blocks that are being sealed at the same time.
const BLOCKS: usize = 3;
/// After so much, what was written is pushed to the disk while more comes in.
const SYNC_BYTES: u64 = 64 * 1024 * 1024;

/// A blob that goes to a file while it is read, with constant memory.
pub(crate) struct Large<'a> {
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
    pub(crate) async fn begin(core: &'a Core) -> Result<Self> {
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

    pub(crate) async fn feed(&mut self, mut data: Bytes) -> Result<()> {
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
    pub(crate) async fn end(
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
