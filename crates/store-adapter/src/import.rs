//! What comes in as plain bytes: in memory, as a stream, from a file.

use std::{io, mem, path::PathBuf, sync::Arc};

use bytes::{Bytes, BytesMut};
use iroh_blobs::{
    Hash, HashAndFormat,
    api::{
        TempTag,
        proto::{AddProgressItem, Bitfield, ImportByteStreamUpdate},
    },
};
use irpc::channel::mpsc;
use tokio::io::AsyncReadExt;

use crate::{
    Error, Result,
    blob::{Blob, View, Work},
    core::{Core, SMALL, signed},
    index::{Entry, Place},
    large::Large,
    pins::Pinning,
    seal,
    tables::Request,
};

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
pub(crate) async fn complete_small(
    core: &Core,
    blob: &Blob,
    work: &mut Work,
    data: &[u8],
) -> Result<()> {
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
pub(crate) fn replace(core: &Core, view: &View, work: &Work, size: u64) -> Request {
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

pub(crate) async fn completed(
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
