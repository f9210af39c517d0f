//! What is done to a store, of whichever kind, and how long it takes.

use std::{fs::File, io, path::Path, time::Instant};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use iroh_blobs::{
    Hash,
    api::{
        Store,
        blobs::{EncodedItem, ExportBaoProgress},
    },
    protocol::{ChunkRanges, ChunkRangesExt},
};

use crate::{MIB, Result, rate};

/// The size of a small blob.
pub(super) const SMALL: usize = 20 * 1024;
/// The size of one read at a random place.
const PART: usize = 64 * 1024;
/// How much is handed over at a time when a large blob is imported.
const PIECE: usize = 256 * 1024;
/// Small blobs under way at once.
const AT_ONCE: usize = 16;

/// Streams one blob in, until it would survive a power cut; megabytes a second.
pub(super) async fn import_large(
    store: &Store,
    dir: &Path,
    size: usize,
    seed: u16,
) -> Result<(Hash, f64)> {
    // Pieces are cut out of one block at changing places, so that making them costs nothing.
    let block = noise(PIECE + MIB, seed.into());
    let mut places = Places::new(seed);
    let mut left = size;
    let pieces = stream::iter(std::iter::from_fn(move || {
        let length = left.min(PIECE);
        left -= length;
        let start = places.below(MIB as u64) as usize;
        (length > 0).then(|| io::Result::Ok(block.slice(start..start + length)))
    }));
    settle(dir)?;
    let start = Instant::now();
    let tag = store.add_stream(pieces).await.temp_tag().await?;
    make_durable(store, dir).await?;
    Ok((tag.hash(), rate(size, start)))
}

/// Reads a whole blob, verified; megabytes a second.
pub(super) async fn read_large(store: &Store, dir: &Path, hash: Hash, size: usize) -> Result<f64> {
    settle(dir)?;
    let start = Instant::now();
    let got = drain(store.export_bao(hash, ChunkRanges::all())).await?;
    expect(got == size, "a blob is too short")?;
    Ok(rate(size, start))
}

/// Reads parts of a blob at random places, verified, one after the other; megabytes a second.
pub(super) async fn read_parts(
    store: &Store,
    dir: &Path,
    hash: Hash,
    size: usize,
    reads: usize,
    seed: u16,
) -> Result<f64> {
    let mut places = Places::new(seed);
    settle(dir)?;
    let start = Instant::now();
    for _ in 0..reads {
        let from = places.below((size - PART) as u64);
        let ranges = ChunkRanges::bytes(from..from + PART as u64);
        let got = drain(store.export_bao(hash, ranges)).await?;
        expect(got >= PART, "a part is too short")?;
    }
    Ok(rate(reads * PART, start))
}

/// Adds small blobs, until all would survive a power cut; blobs a second.
pub(super) async fn import_small(
    store: &Store,
    dir: &Path,
    number: usize,
    size: usize,
    seed: u16,
) -> Result<(Vec<Hash>, f64)> {
    let block = noise(size, seed.into());
    let block = &block;
    settle(dir)?;
    let start = Instant::now();
    let hashes = stream::iter(0..number)
        .map(|index| async move {
            let mut data = block.to_vec();
            let mark = (index as u64).to_le_bytes();
            data.iter_mut()
                .zip(mark)
                .for_each(|(byte, mark)| *byte ^= mark);
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(
                store.add_bytes(data).temp_tag().await?.hash(),
            )
        })
        .buffer_unordered(AT_ONCE)
        .try_collect::<Vec<_>>()
        .await?;
    make_durable(store, dir).await?;
    Ok((hashes, number as f64 / start.elapsed().as_secs_f64()))
}

/// Reads small blobs in a random order, verified; blobs a second.
pub(super) async fn read_small(
    store: &Store,
    dir: &Path,
    mut hashes: Vec<Hash>,
    size: usize,
    seed: u16,
) -> Result<f64> {
    let mut places = Places::new(seed);
    for last in (1..hashes.len()).rev() {
        hashes.swap(last, places.below(last as u64 + 1) as usize);
    }
    settle(dir)?;
    let start = Instant::now();
    let number = hashes.len();
    stream::iter(hashes)
        .map(|hash| async move {
            let got = store.get_bytes(hash).await?.len();
            expect(got == size, "a blob is too short")
        })
        .buffer_unordered(AT_ONCE)
        .try_collect::<Vec<()>>()
        .await?;
    Ok(number as f64 / start.elapsed().as_secs_f64())
}

/// The number of bytes of data that came.
async fn drain(export: ExportBaoProgress) -> Result<usize> {
    let mut items = std::pin::pin!(export.stream());
    let mut got = 0;
    while let Some(item) = items.next().await {
        match item {
            EncodedItem::Leaf(leaf) => got += leaf.data.len(),
            EncodedItem::Error(error) => return Err(error.into()),
            EncodedItem::Size(_) | EncodedItem::Parent(_) | EncodedItem::Done => {}
        }
    }
    Ok(got)
}

fn expect(condition: bool, otherwise: &str) -> Result<()> {
    if condition {
        Ok(())
    } else {
        Err(otherwise.into())
    }
}

/// Brings everything to the disk. iroh's file store writes down its index when it is asked to, and leaves its files to the
/// system; so the system is asked as well, for either store.
async fn make_durable(store: &Store, dir: &Path) -> Result<()> {
    store.sync_db().await?;
    settle(dir)
}

/// Waits until the file system has written all that was left behind, which the next measurement would pay for otherwise.
pub(super) fn settle(dir: &Path) -> Result<()> {
    rustix::fs::syncfs(File::open(dir)?)?;
    Ok(())
}

/// Bytes that no two seeds share and that nothing compresses.
fn noise(size: usize, seed: u64) -> Bytes {
    let mut bytes = vec![0; size];
    blake3::Hasher::new()
        .update(&seed.to_le_bytes())
        .finalize_xof()
        .fill(&mut bytes);
    bytes.into()
}

/// A sequence of numbers that looks random (splitmix64) and is the same for the same seed.
struct Places(u64);

impl Places {
    fn new(seed: u16) -> Self {
        Self(seed.into())
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }
}
