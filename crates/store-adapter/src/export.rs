//! What goes out as plain bytes: ranges and files; and what is observed.

use std::{collections::VecDeque, io, sync::Arc};

use bao_tree::{ChunkNum, ChunkRanges, io::Leaf};
use bytes::Bytes;
use iroh_blobs::{
    Hash,
    api::proto::{Bitfield, ExportProgressItem, ExportRangesItem, ExportRangesRequest},
};
use irpc::channel::mpsc;
use range_collections::range_set::RangeSetRange;
use tokio::{io::AsyncWriteExt, sync::OwnedSemaphorePermit};

use crate::{
    Error,
    blob::Blob,
    core::Core,
    seal::SEGMENT,
    source::{Reading, Source, Unread, room},
};

/// Sends the plain bytes of some ranges. Each segment is authenticated when it is opened, and what lies in it was verified
/// when it came in.
pub(crate) async fn export_ranges(
    core: &Core,
    blob: Arc<Blob>,
    request: ExportRangesRequest,
    tx: mpsc::Sender<ExportRangesItem>,
) {
    if let Err(error) = ranges(core, &blob, &request, &tx).await {
        // Whoever asked may have gone away.
        let _ = tx.send(ExportRangesItem::Error(error.into())).await;
    }
}

fn not_found(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, what.to_owned())
}

async fn ranges(
    core: &Core,
    blob: &Arc<Blob>,
    request: &ExportRangesRequest,
    tx: &mpsc::Sender<ExportRangesItem>,
) -> io::Result<()> {
    let source = core
        .source(blob, false)
        .await
        .map_err(Error::into_io)?
        .ok_or_else(|| not_found("hash not found"))?;
    let size = source.size;
    let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
    tx.send(ExportRangesItem::Size(size)).await.map_err(gone)?;
    for range in request.ranges.iter() {
        let (start, end) = match range {
            RangeSetRange::Range(range) => (size.min(*range.start), size.min(*range.end)),
            RangeSetRange::RangeFrom(range) => (size.min(*range.start), size),
        };
        let wanted = ChunkRanges::from(ChunkNum::full_chunks(start)..ChunkNum::chunks(end));
        if start < end && !wanted.is_subset(&source.present) {
            return Err(not_found("a part of the range is missing"));
        }
        let mut reader = RangeReader::new(core, &source, start, end);
        while let Some((offset, data)) = reader.next().await? {
            let leaf = Leaf { offset, data };
            tx.send(leaf.into()).await.map_err(gone)?;
        }
    }
    Ok(())
}

type Ahead = (Reading<(u64, Bytes)>, Option<OwnedSemaphorePermit>);

/// Reads the bytes of a range in order.
struct RangeReader<'a> {
    core: &'a Core,
    source: &'a Source,
    start: u64,
    end: u64,
    /// The group that is read next.
    next: u64,
    ahead: Option<Ahead>,
    ready: VecDeque<Result<(u64, Bytes), Unread>>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl<'a> RangeReader<'a> {
    fn new(core: &'a Core, source: &'a Source, start: u64, end: u64) -> Self {
        let mut reader = Self {
            core,
            source,
            start,
            end,
            next: start / SEGMENT as u64,
            ahead: None,
            ready: VecDeque::new(),
            _permit: None,
        };
        reader.ahead = reader.begin();
        reader
    }

    fn begin(&mut self) -> Option<Ahead> {
        let stop = self.end.div_ceil(SEGMENT as u64);
        if self.start >= self.end || self.next >= stop {
            return None;
        }
        let (most, permit) = room(self.core);
        let stop = (self.next + most as u64).min(stop);
        let groups = (self.next..stop).collect();
        self.next = stop;
        let reading = self.source.read(groups, |group, data| (group, data));
        Some((reading, permit))
    }

    /// The next bytes with their offset; none at the end.
    async fn next(&mut self) -> io::Result<Option<(u64, Bytes)>> {
        while self.ready.is_empty() {
            let Some((reading, permit)) = self.ahead.take() else {
                return Ok(None);
            };
            self.ready = reading.get().await?.into();
            self._permit = permit;
            self.ahead = self.begin();
        }
        match self.ready.pop_front() {
            None => Ok(None),
            Some(Ok((group, data))) => {
                let offset = group * SEGMENT as u64;
                // Inside the group.
                let from = self.start.saturating_sub(offset) as usize;
                let to = (self.end - offset).min(data.len() as u64) as usize;
                Ok(Some((offset + from as u64, data.slice(from..to))))
            }
            Some(Err(Unread::Io(error))) => Err(error),
            Some(Err(Unread::Damaged(group))) => {
                self.source.damaged(self.core, group).await;
                Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "a part of the blob is damaged and counts as missing now",
                ))
            }
        }
    }
}

/// Writes a blob to a file outside. What is missing of a partial blob is zeros there.
pub(crate) async fn export_path(
    core: &Core,
    blob: Arc<Blob>,
    target: std::path::PathBuf,
    tx: mpsc::Sender<ExportProgressItem>,
) {
    let item = match export_file(core, &blob, &target, &tx).await {
        Ok(()) => ExportProgressItem::Done,
        Err(error) => ExportProgressItem::Error(error.into()),
    };
    // Whoever asked may have gone away.
    let _ = tx.send(item).await;
}

async fn export_file(
    core: &Core,
    blob: &Arc<Blob>,
    target: &std::path::Path,
    tx: &mpsc::Sender<ExportProgressItem>,
) -> io::Result<()> {
    if !target.is_absolute() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "path is not absolute",
        ));
    }
    let source = core
        .source(blob, false)
        .await
        .map_err(Error::into_io)?
        .ok_or_else(|| not_found("hash not found"))?;
    let size = source.size;
    let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
    if let Some(parent) = target.parent() {
        tokio::fs::create_dir_all(parent).await?;
    }
    let mut file = tokio::fs::File::create(target).await?;
    tx.send(ExportProgressItem::Size(size))
        .await
        .map_err(gone)?;
    file.set_len(size).await?;
    for range in source.present.iter() {
        let (start, end) = match range {
            RangeSetRange::Range(range) => (range.start.to_bytes(), range.end.to_bytes()),
            RangeSetRange::RangeFrom(range) => (range.start.to_bytes(), size),
        };
        let (start, end) = (start.min(size), end.min(size));
        tokio::io::AsyncSeekExt::seek(&mut file, io::SeekFrom::Start(start)).await?;
        let mut reader = RangeReader::new(core, &source, start, end);
        while let Some((offset, data)) = reader.next().await? {
            file.write_all(&data).await?;
            // Progress is a courtesy.
            let _ = tx.try_send(ExportProgressItem::CopyProgress(offset)).await;
        }
    }
    file.flush().await
}

/// Sends what is here of a blob, now and at every change, until nobody listens.
pub(crate) async fn observe(core: &Core, blob: Arc<Blob>, tx: mpsc::Sender<Bitfield>) {
    let mut changes = blob.view.subscribe();
    if blob.hash == Hash::EMPTY {
        if tx.send(Bitfield::complete(0)).await.is_ok() {
            tx.closed().await;
        }
        return;
    }
    if let Err(error) = core.view(&blob).await {
        tracing::debug!(%error, "a blob cannot be observed");
        return;
    }
    changes.mark_unchanged();
    let mut last = blob.view().bitfield;
    if tx.send(last.clone()).await.is_err() {
        return;
    }
    loop {
        tokio::select! {
            () = tx.closed() => return,
            changed = changes.changed() => {
                if changed.is_err() {
                    return;
                }
                let now = blob.view().bitfield;
                if now != last {
                    if tx.send(now.clone()).await.is_err() {
                        return;
                    }
                    last = now;
                }
            }
        }
    }
}
