//! A file into the store, sealed on the way.

use std::sync::Arc;

use bytes::Bytes;
use futures::{SinkExt, StreamExt, channel::mpsc};
use iroh_blobs::api::{TempTag, blobs::AddProgressItem};
use store_adapter::VeilidStore;
use tokio::io::AsyncRead;

use crate::{
    Error, Result,
    seal::{FileKeys, SealStream},
};

/// Called with the bytes of one file that were read so far.
pub type OnProgress = Arc<dyn Fn(u64) + Send + Sync>;

/// A sealed file in the store, kept there as long as its tag lives.
pub(crate) struct Imported {
    pub(crate) tag: TempTag,
    pub(crate) size: u64,
    pub(crate) plain_hash: [u8; 32],
}

/// Reads to the end, seals, and stores. Dropping it leaves nothing behind.
pub(crate) async fn import<R: AsyncRead + Unpin>(
    store: &VeilidStore,
    keys: &FileKeys,
    source: R,
    progress: Option<&OnProgress>,
) -> Result<Imported> {
    let mut sealed = SealStream::new(keys, source)?;
    let (mut pieces, received) = mpsc::channel::<std::io::Result<Bytes>>(2);
    let pump = async {
        let result = loop {
            match sealed.next().await {
                Ok(Some(piece)) => {
                    if let Some(progress) = progress {
                        progress(sealed.size());
                    }
                    if pieces.send(Ok(piece)).await.is_err() {
                        // The store has given up, and says why itself.
                        break Ok(());
                    }
                }
                Ok(None) => break Ok(()),
                Err(error) => {
                    // Only an error makes the store drop what it has; an end would make it a blob.
                    let stop = std::io::Error::other("the source failed");
                    let _ = pieces.send(Err(stop)).await;
                    break Err(error);
                }
            }
        };
        pieces.close_channel();
        result
    };
    let (pumped, stored) = tokio::join!(pump, store_stream(store, received));
    pumped?;
    Ok(Imported {
        tag: stored?,
        size: sealed.size(),
        plain_hash: sealed.plain_hash(),
    })
}

async fn store_stream(
    store: &VeilidStore,
    pieces: mpsc::Receiver<std::io::Result<Bytes>>,
) -> Result<TempTag> {
    let mut items = store.add_stream(pieces).await.stream().await;
    while let Some(item) = items.next().await {
        match item {
            AddProgressItem::Done(tag) => return Ok(tag),
            AddProgressItem::Error(error) => {
                return Err(store_adapter::Error::Io {
                    path: store.dir().to_owned(),
                    source: error,
                }
                .into());
            }
            _ => {}
        }
    }
    Err(store_adapter::Error::Closed.into())
}

/// What the media type of a file is, by the ending of its name, unless it was given.
pub(crate) fn media_type(given: Option<String>, name: &str) -> Result<String> {
    match given {
        Some(given) if crate::collection::is_media_type(&given) => Ok(given),
        Some(_) => Err(Error::MediaType),
        None => Ok(mime_guess::from_path(name)
            .first_raw()
            .unwrap_or("application/octet-stream")
            .to_owned()),
    }
}
