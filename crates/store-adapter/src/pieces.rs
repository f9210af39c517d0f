//! What comes in as verified pieces from elsewhere; and the removal of blobs.

use std::{
    collections::hash_map::Entry::{Occupied, Vacant},
    mem,
    sync::Arc,
    time::{Duration, Instant},
};

use bao_tree::io::BaoContentItem;
use bytes::Bytes;
use futures::FutureExt;
use iroh_blobs::{
    Hash,
    api::{self, proto::Bitfield},
};
use irpc::channel::{mpsc, oneshot};
use tokio::sync::MutexGuard;

use crate::{
    Error, Result,
    backend::{Op, SegmentFile},
    blob::{
        Blob, Changing, FilePartial, Partial, Shown, SmallPartial, View, Work, chunks_of,
        chunks_of_groups,
    },
    core::{Core, SMALL, blocking, segment_error, signed},
    import::{complete_small, completed},
    index::{Change, Entry, Place},
    seal::{SEALED_SEGMENT, Segments, sealed_offset},
    tables::Request,
    tree::{self, Page, Pair, pair_of},
};

/// Pieces from elsewhere that are taken together.
const PIECES: usize = 64;
/// Longer than writing down takes.
const WRITTEN_DOWN: Duration = Duration::from_secs(10);
/// So many bytes of a download are worth being written down at once.
const WORTHWHILE: u64 = 256 * 1024;

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
            if !open && work.unwritten > 0 && work.partial.is_some() {
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
        if open && work.unwritten >= WORTHWHILE && Instant::now() >= work.write_again {
            write_down_beside(core, blob, work).await?;
        }
    }
    Ok(())
}

/// Writes down what is there of a file while others go on with it: what takes long is to wait for the disk.
async fn write_down_beside(core: &Core, blob: &Blob, mut work: MutexGuard<'_, Work>) -> Result<()> {
    let Some(Partial::File(partial)) = &work.partial else {
        return Ok(());
    };
    let file = partial.file.clone();
    let is_new = work.counted.is_none();
    let shown = Shown::of(blob, &work);
    // Nobody else begins.
    work.write_again = Instant::now() + WRITTEN_DOWN;
    drop(work);
    core.sync(file, is_new).await?;
    let mut work = blob.work.lock().await;
    core.load(blob, &mut work).await?;
    if work.partial.is_some() {
        core.write_shown(blob, &mut work, shown).await?;
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
