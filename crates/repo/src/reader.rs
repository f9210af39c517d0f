//! Reading a sealed file out of the store.

use std::{
    fmt,
    io::{self, SeekFrom},
    ops::Range,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use futures::{StreamExt, future::BoxFuture};
use iroh_blobs::{
    Hash, HashAndFormat,
    api::{
        TempTag,
        blobs::{BlobStatus, EncodedItem},
    },
    protocol::{ChunkRanges, ChunkRangesExt},
};
use store_adapter::VeilidStore;
use tokio::io::{AsyncRead, AsyncSeek, ReadBuf};

use crate::{
    Entry, Error, Result,
    collection::blobs,
    seal::{FileKeys, HEADER, Header, Layout, SEALED_SEGMENT, SEGMENT, SealError, SegmentCipher},
};

/// The most segments that are read at once, when reading on and on. Bounds the memory of a reader to some 2 MiB.
const READ_AHEAD: u64 = 16;

/// Reads one file of a repo: an [`AsyncRead`] and [`AsyncSeek`] over what was sealed.
///
/// Every byte is verified twice before it is given out, against the hash of the blob and by the cipher. The blob is not
/// collected while the reader lives, even if the file is deleted meanwhile.
pub struct FileReader {
    source: Arc<Source>,
    entry: Entry,
    position: u64,
    window: Window,
    /// Segments to read at the next miss.
    ahead: u64,
    pending: Option<BoxFuture<'static, Result<Window>>>,
}

impl FileReader {
    /// Begins to read a file.
    ///
    /// # Errors
    /// [`Error::NotHere`] if the blob is not here and complete; [`Error::Seal`]; [`Error::SizeMismatch`].
    pub(crate) async fn open(store: &VeilidStore, keys: &FileKeys, entry: Entry) -> Result<Self> {
        let blob = entry.blob;
        let tag = store
            .tags()
            .temp_tag(HashAndFormat::raw(blob))
            .await
            .map_err(blobs)?;
        let size = match store.status(blob).await.map_err(blobs)? {
            BlobStatus::Complete { size } => size,
            BlobStatus::Partial { .. } | BlobStatus::NotFound => {
                return Err(Error::NotHere { hash: blob });
            }
        };
        let header = sealed_bytes(store, blob, 0..size.min(HEADER as u64)).await?;
        let cipher = keys.open(&Header::parse(&header)?)?;
        let layout = Layout::of_sealed(size)?;
        if layout.plain_len() != entry.size {
            return Err(Error::SizeMismatch {
                entry: entry.size,
                file: layout.plain_len(),
            });
        }
        let source = Source {
            store: store.clone(),
            blob,
            cipher,
            layout,
            _tag: tag,
        };
        Ok(Self {
            source: Arc::new(source),
            entry,
            position: 0,
            window: Window::default(),
            ahead: 1,
            pending: None,
        })
    }

    /// The entry of the file.
    #[must_use]
    pub fn entry(&self) -> &Entry {
        &self.entry
    }

    /// The bytes of the file.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.source.layout.plain_len()
    }

    /// Reads a range of the file without moving, cut off at its end. It is held in memory as a whole.
    ///
    /// # Errors
    /// [`Error::Store`], [`Error::Seal`].
    pub async fn range(&self, range: Range<u64>) -> Result<Bytes> {
        let end = range.end.min(self.size());
        if range.start >= end {
            return Ok(Bytes::new());
        }
        let window = self.source.read(range.start, end).await?;
        window
            .from(range.start)
            .map(|bytes| bytes.slice(..bytes.len().min(to_usize(end - range.start))))
            .ok_or_else(short)
    }
}

impl AsyncRead for FileReader {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.position >= this.size() || buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            if let Some(bytes) = this.window.from(this.position) {
                let bytes = bytes.slice(..bytes.len().min(buf.remaining()));
                buf.put_slice(&bytes);
                this.position += bytes.len() as u64;
                return Poll::Ready(Ok(()));
            }
            let pending = this.pending.get_or_insert_with(|| {
                let source = this.source.clone();
                let start = this.position;
                let end = start
                    .saturating_add(this.ahead * SEGMENT as u64)
                    .min(source.layout.plain_len());
                this.ahead = (this.ahead * 2).min(READ_AHEAD);
                Box::pin(async move { source.read(start, end).await })
            });
            let window = ready!(pending.as_mut().poll(cx));
            this.pending = None;
            this.window = window?;
            if this.window.from(this.position).is_none() {
                return Poll::Ready(Err(short().into()));
            }
        }
    }
}

impl AsyncSeek for FileReader {
    fn start_seek(self: Pin<&mut Self>, to: SeekFrom) -> io::Result<()> {
        let this = self.get_mut();
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::Current(by) => this.position.checked_add_signed(by),
            SeekFrom::End(by) => this.size().checked_add_signed(by),
        };
        let Some(position) = position else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "seek before the beginning or too far",
            ));
        };
        if position != this.position {
            this.position = position;
            this.pending = None;
            this.ahead = 1;
        }
        Ok(())
    }

    fn poll_complete(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<u64>> {
        Poll::Ready(Ok(self.position))
    }
}

impl fmt::Debug for FileReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileReader")
            .field("entry", &self.entry)
            .field("position", &self.position)
            .finish_non_exhaustive()
    }
}

struct Source {
    store: VeilidStore,
    blob: Hash,
    cipher: SegmentCipher,
    layout: Layout,
    _tag: TempTag,
}

impl Source {
    /// The whole segments that hold a range of the file, which must not be empty.
    async fn read(&self, start: u64, end: u64) -> Result<Window> {
        let first = start / SEGMENT as u64;
        let segments = first..end.div_ceil(SEGMENT as u64);
        let sealed =
            sealed_bytes(&self.store, self.blob, self.layout.sealed_range(segments)).await?;
        let last = self.layout.segments() - 1;
        let mut plain = Vec::with_capacity(sealed.len());
        for (segment, index) in sealed.chunks(SEALED_SEGMENT).zip(first..) {
            let mut segment = segment.to_vec();
            self.cipher.open(index, index == last, &mut segment)?;
            plain.extend_from_slice(&segment);
        }
        Ok(Window {
            start: first * SEGMENT as u64,
            bytes: plain.into(),
        })
    }
}

/// A part of the file that was opened.
#[derive(Default)]
struct Window {
    start: u64,
    bytes: Bytes,
}

impl Window {
    /// What it holds from a position on, at least one byte.
    fn from(&self, position: u64) -> Option<Bytes> {
        let skip = usize::try_from(position.checked_sub(self.start)?).ok()?;
        (skip < self.bytes.len()).then(|| self.bytes.slice(skip..))
    }
}

/// Verified bytes of a blob.
async fn sealed_bytes(store: &VeilidStore, blob: Hash, range: Range<u64>) -> Result<Vec<u8>> {
    let len = to_usize(range.end.saturating_sub(range.start));
    let mut bytes = Vec::with_capacity(len);
    let mut items = Box::pin(
        store
            .export_bao(blob, ChunkRanges::bytes(range.clone()))
            .stream(),
    );
    while let Some(item) = items.next().await {
        match item {
            // Leaves are whole chunks in ascending order, so the first can begin before the range and the last end after.
            EncodedItem::Leaf(leaf) => {
                let next = range.start + bytes.len() as u64;
                let skip = to_usize(next.saturating_sub(leaf.offset)).min(leaf.data.len());
                let rest = leaf.data.slice(skip..);
                bytes.extend_from_slice(&rest[..rest.len().min(len - bytes.len())]);
            }
            EncodedItem::Error(error) => return Err(blobs(error)),
            EncodedItem::Size(_) | EncodedItem::Parent(_) | EncodedItem::Done => {}
        }
    }
    if bytes.len() == len {
        Ok(bytes)
    } else {
        Err(short())
    }
}

/// The store gave less than it said it had.
fn short() -> Error {
    SealError::Length { len: 0 }.into()
}

/// A length that fits, because it is that of a buffer in memory.
fn to_usize(len: u64) -> usize {
    usize::try_from(len).unwrap_or(usize::MAX)
}
