//! Garbage collection: what nothing reaches goes, and the space comes back.

use std::{
    collections::{HashMap, HashSet},
    sync::atomic::{AtomicBool, Ordering},
};

use bytes::Bytes;
use futures::StreamExt;
use iroh_blobs::{BlobFormat, Hash, api::Store};

use crate::{
    Error, Result,
    actor::{self, with_tags},
    backend::Op,
    core::{Core, lock},
    index::{Change, Entry, Id, Index, Place, SEALED_HEADER, pack_name},
    pins::Pins,
    seal::sealed_size,
    tables::{PAGES, Request},
    walk::Reached,
};

/// A pack of which less than half is alive is rewritten, if that gives back as much as this.
const WORTHWHILE: u64 = 1024 * 1024;
/// Blobs that are moved at the same time.
const MOVING: usize = 64;

/// What one garbage collection did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct GcReport {
    /// Blobs that were removed, partial ones included.
    pub removed_blobs: u64,
    /// Their bytes, as [`Usage::bytes`](crate::Usage::bytes) counts them.
    pub removed_bytes: u64,
    /// Blobs that are still there.
    pub kept_blobs: u64,
}

/// Removes what neither tags, temporary tags nor `roots` reach.
pub(crate) async fn collect(
    core: &Core,
    store: &Store,
    pins: &Pins,
    roots: Vec<Hash>,
    swept: &AtomicBool,
) -> Result<GcReport> {
    let _collecting = Collecting::new(core);
    // Temporary tags first: whoever turns one into a tag sets the tag before the other is dropped.
    let temporary = pins.list().await?;
    let (tags, lost) = with_tags(core, |tags| {
        (tags.tags.values().copied().collect::<Vec<_>>(), tags.lost)
    })
    .await?;
    if lost > 0 {
        // What they kept is not known.
        return Err(Error::TagsDamaged { count: lost });
    }
    let mut live = Reached::default();
    for value in temporary.into_iter().chain(tags) {
        match value.format {
            BlobFormat::HashSeq => live.walk(store, value.hash).await?,
            BlobFormat::Raw => live.add(value.hash),
        }
    }
    for root in roots {
        live.walk(store, root).await?;
    }
    let scan = scan(core).await?;
    settle_lost(core, &live, &scan).await?;
    let before = core.tables.totals();
    let dead: Vec<Hash> = scan
        .entries
        .iter()
        .map(Entry::hash)
        .filter(|hash| !live.contains(hash))
        .collect();
    // Those that came in while the index was read are not in the scan.
    let removed = actor::remove(core, dead, false).await?;
    let after = core.tables.totals();
    let gone: HashSet<Hash> = removed.iter().copied().collect();
    let kept: Vec<Entry> = scan
        .entries
        .into_iter()
        .filter(|entry| !gone.contains(&entry.hash()))
        .collect();
    if !swept.load(Ordering::Relaxed) {
        sweep(core).await?;
        swept.store(true, Ordering::Relaxed);
    }
    compact(core, &kept).await?;
    Ok(GcReport {
        removed_blobs: removed.len() as u64,
        removed_bytes: before.bytes.saturating_sub(after.bytes),
        kept_blobs: after.blobs,
    })
}

/// While it lives, what comes in is remembered.
struct Collecting<'a>(&'a Core);

impl<'a> Collecting<'a> {
    fn new(core: &'a Core) -> Self {
        *lock(&core.fresh) = Some(HashSet::new());
        Self(core)
    }
}

impl Drop for Collecting<'_> {
    fn drop(&mut self) {
        *lock(&self.0.fresh) = None;
    }
}

/// A look at the whole index, which claims all that is in the log by then.
async fn scan(core: &Core) -> Result<Scan> {
    core.tables.flush().await?;
    Scan::new(core).await
}

/// What stands in the index.
struct Scan {
    entries: Vec<Entry>,
    unreadable: Vec<Bytes>,
}

impl Scan {
    async fn new(core: &Core) -> Result<Self> {
        loop {
            let (epoch, rows) = {
                let open = core.tables.read().await?;
                (open.index.epoch, open.index.entry_rows().await?)
            };
            let mut scan = Self {
                entries: Vec::with_capacity(rows.len()),
                unreadable: Vec::new(),
            };
            let mut same = true;
            for row in rows {
                let open = core.tables.read().await?;
                // In another epoch the rows have other names, so that none of these would be found.
                same = open.index.epoch == epoch;
                if !same {
                    break;
                }
                match open.index.entry_at(row.clone()).await {
                    Ok(Some(entry)) => scan.entries.push(entry),
                    Ok(None) => {}
                    Err(None) => scan.unreadable.push(row),
                    Err(Some(error)) => return Err(error),
                }
            }
            if same {
                return Ok(scan);
            }
        }
    }
}

/// The hashes of all blobs in the index.
pub(crate) async fn hashes(core: &Core) -> Result<Vec<Hash>> {
    // In this order, so that none is missed that goes from here to there meanwhile. Nothing is written, so it works on a full disk.
    let mut hashes: HashSet<Hash> = lock(&core.tables.logged)
        .keys()
        .copied()
        .map(Hash::from_bytes)
        .collect();
    let scan = Scan::new(core).await?;
    hashes.extend(scan.entries.iter().map(Entry::hash));
    Ok(hashes.into_iter().collect())
}

/// A sequence that was here and got damaged may be all that says what else is needed. Until it is here again, nothing is
/// collected.
async fn settle_lost(core: &Core, live: &Reached, scan: &Scan) -> Result<()> {
    let missing: HashSet<[u8; 32]> = live.missing.iter().map(|hash| *hash.as_bytes()).collect();
    let lost = lock(&core.lost).clone();
    let needed = lost
        .intersection(&missing.iter().copied().collect())
        .count();
    if needed > 0 {
        return Err(Error::SequencesDamaged { count: needed });
    }
    if !scan.unreadable.is_empty() {
        // Which blobs these were is not known any more.
        if !missing.is_empty() {
            return Err(Error::SequencesDamaged {
                count: scan.unreadable.len(),
            });
        }
        let mut index: Vec<Op> = scan
            .unreadable
            .iter()
            .cloned()
            .map(Index::remove_row)
            .collect();
        // Their files are those that nobody else has.
        let files = core.tables.read().await?.index.files().await?;
        let known: HashSet<Id> = scan.entries.iter().map(|entry| entry.id).collect();
        let importing = lock(&core.importing).clone();
        let fresh = self::scan(core).await?;
        let new: HashSet<Id> = fresh.entries.iter().map(|entry| entry.id).collect();
        let dead: Vec<Id> = files
            .iter()
            .filter_map(|id| <Id>::try_from(&id[..]).ok())
            .filter(|id| !known.contains(id) && !new.contains(id) && !importing.contains(id))
            .collect();
        index.extend(dead.iter().copied().map(Index::remove_file_row));
        core.tables
            .write(Request {
                index,
                ..Request::default()
            })
            .await?;
        core.tables.recount().await?;
        let backend = core.backend.clone();
        crate::core::blocking(move || {
            dead.iter()
                .try_for_each(|id| backend.remove_file(&crate::index::file_name(id)))
        })
        .await?
        .map_err(crate::core::segment_error)?;
    }
    if !lost.is_empty() {
        // What got lost since stays.
        let left = {
            let mut now = lock(&core.lost);
            now.retain(|hash| !lost.contains(hash));
            now.clone()
        };
        core.tables
            .write(Request {
                changes: vec![Change::Lost(left)],
                ..Request::default()
            })
            .await?;
    }
    Ok(())
}

/// Removes rows that nothing claims: what a crash left.
async fn sweep(core: &Core) -> Result<()> {
    let rows = core.tables.read().await?.pages.keys(PAGES).await?;
    // In this order: an import that had written rows by then is either going on, or claims them by now.
    let importing = lock(&core.importing).clone();
    core.tables.settle().await?;
    let claimed: HashSet<Id> = scan(core)
        .await?
        .entries
        .iter()
        .map(|entry| entry.id)
        .collect();
    let dead_pages: Vec<Op> = rows
        .into_iter()
        .filter(|row| {
            row.first_chunk::<16>()
                .is_some_and(|id| !claimed.contains(id) && !importing.contains(id))
        })
        .map(|key| Op::Delete { column: PAGES, key })
        .collect();
    if !dead_pages.is_empty() {
        tracing::info!(
            rows = dead_pages.len(),
            "rows that nothing claimed were removed"
        );
        core.tables
            .write(Request {
                dead_pages,
                ..Request::default()
            })
            .await?;
    }
    Ok(())
}

/// Rewrites packs that are mostly dead: their space comes back when the old one is removed.
async fn compact(core: &Core, entries: &[Entry]) -> Result<()> {
    let mut alive: HashMap<Id, u64> = HashMap::new();
    for entry in entries {
        if let Place::Pack { pack, .. } = entry.place {
            *alive.entry(pack).or_default() += SEALED_HEADER as u64 + sealed_size(entry.size);
        }
    }
    let backend = core.backend.clone();
    let files: HashMap<String, u64> = crate::core::blocking(move || backend.list_files())
        .await?
        .map_err(crate::core::segment_error)?
        .into_iter()
        .collect();
    let packs = core.tables.packs();
    let mut dead = Vec::new();
    for pack in &packs {
        let bytes = files.get(&pack_name(pack)).copied().unwrap_or(0);
        let alive = alive.get(pack).copied().unwrap_or(0);
        // A crash can end a pack early.
        let stunted = bytes < WORTHWHILE && packs.last() != Some(pack);
        if stunted || bytes >= WORTHWHILE + 2 * alive {
            dead.push(*pack);
        }
    }
    if dead.is_empty() {
        return Ok(());
    }
    if packs.last().is_some_and(|last| dead.contains(last)) {
        core.tables.new_pack().await?;
    }
    let mut moving = Vec::new();
    for entry in entries {
        if matches!(entry.place, Place::Pack { pack, .. } if dead.contains(&pack)) {
            moving.push(relocate(core, entry.hash(), &dead));
        }
    }
    let moved: Vec<Result<()>> = futures::stream::iter(moving)
        .buffer_unordered(MOVING)
        .collect()
        .await;
    moved.into_iter().collect::<Result<()>>()?;
    // Blobs that came in since the scan went to a newer pack, except those that were written before it began.
    let scan = scan(core).await?;
    let used: HashSet<Id> = scan
        .entries
        .iter()
        .filter_map(|entry| match entry.place {
            Place::Pack { pack, .. } => Some(pack),
            Place::File | Place::Row => None,
        })
        .collect();
    dead.retain(|pack| !used.contains(pack));
    if dead.is_empty() {
        return Ok(());
    }
    tracing::info!(
        packs = dead.len(),
        "packs that were mostly dead were rewritten"
    );
    core.tables.drop_packs(dead.clone()).await?;
    for pack in &dead {
        core.forget_file(pack);
    }
    Ok(())
}

async fn relocate(core: &Core, hash: Hash, dead: &[Id]) -> Result<()> {
    let blob = core.blob(hash);
    let mut work = blob.work.lock().await;
    let view = core.load(&blob, &mut work).await?;
    let Some(entry) = view.entry else {
        return Ok(());
    };
    let Place::Pack { pack, offset } = entry.place else {
        return Ok(());
    };
    if !dead.contains(&pack) || work.counted.is_none() {
        return Ok(());
    }
    let Some(sealed) = core.packed(&entry, &pack, offset).await? else {
        drop(work);
        return core.lose(&blob, &entry, &[(0, u64::MAX)]).await;
    };
    let request = Request {
        pack: Some(((*entry).clone(), sealed.into())),
        ..Request::default()
    };
    let written = core.change(&blob, request).await?;
    if let Some(written) = written {
        blob.view.update(|view| view.entry = Some(written));
    }
    Ok(())
}

/// Removes the files that the index does not know: what a crash left.
pub(crate) async fn remove_orphans(core: &Core) -> Result<()> {
    let known: HashSet<String> = core
        .tables
        .read()
        .await?
        .index
        .files()
        .await?
        .iter()
        .map(|id| data_encoding::HEXLOWER.encode(id))
        .chain(core.tables.packs().iter().map(pack_name))
        .collect();
    let backend = core.backend.clone();
    crate::core::blocking(move || {
        let mut removed = 0;
        for (name, _) in backend.list_files()? {
            if !known.contains(&name) {
                backend.remove_file(&name)?;
                removed += 1;
            }
        }
        if removed > 0 {
            tracing::info!(removed, "files that nothing claimed were removed");
        }
        Ok(())
    })
    .await?
    .map_err(crate::core::segment_error)
}

/// Looks at what was claimed last before the end of the process, and takes back what is not there: after a power cut the index
/// can be ahead of the other tables.
pub(crate) async fn check_recent(core: &Core) -> Result<()> {
    let partial = core.tables.read().await?.index.partial().await?;
    for row in partial {
        let entry = core.tables.read().await?.index.entry_at(row).await;
        if let Ok(Some(entry)) = entry {
            // Puts right what was written down of it.
            core.view(&core.blob(entry.hash())).await?;
        }
    }
    let recent = core.tables.read().await?.index.recent().await?;
    let mut damaged = 0;
    for row in &recent {
        let entry = core.tables.read().await?.index.entry_at(row.clone()).await;
        let entry = match entry {
            Ok(Some(entry)) => entry,
            Ok(None) | Err(None) => continue,
            Err(Some(error)) => return Err(error),
        };
        let missing = core.missing(&entry).await?;
        if !missing.is_empty() {
            damaged += 1;
            let blob = core.blob(entry.hash());
            core.view(&blob).await?;
            core.lose(&blob, &entry, &missing).await?;
        }
    }
    if damaged > 0 {
        tracing::warn!(
            damaged,
            "blobs that came in just before the end are not whole"
        );
    }
    if !recent.is_empty() {
        core.tables.checkpoint().await?;
    }
    Ok(())
}
