//! The packs: files to which small blobs are appended, and which say themselves what is in them.
//!
//! A record is a sealed header, which is the blob's entry, and the blob's sealed bytes. So a blob survives the death of the process
//! as soon as its record is written, and the index is told of many at once, later. What the index does not claim yet is found
//! again when the store is opened.

use std::{collections::HashMap, io, sync::Arc};

use tokio::task::JoinHandle;

use crate::{
    Error, Result,
    backend::{Backend, SegmentFile},
    core::{SMALL, blocking, segment_error},
    index::{Entry, Headers, Id, Packs, Place, SEALED_HEADER, pack_name},
    seal::{self, sealed_size},
    tables::{Open, Request},
};

/// A pack is full at this size; what is mostly dead is rewritten as a whole.
pub(crate) const PACK_BYTES: u64 = 128 * 1024 * 1024;
/// After so much, what was written is pushed to the disk while more comes in.
const PUSH_BYTES: u64 = 16 * 1024 * 1024;
/// How much of a pack is read at once.
const WINDOW: usize = 1024 * 1024;

/// The end of the packs, where blobs are appended.
#[derive(Debug)]
pub(crate) struct Log {
    backend: Arc<dyn Backend>,
    tail: Option<Tail>,
    /// Everything that is there ends here.
    end: Option<(Id, u64)>,
    pushing: Option<JoinHandle<io::Result<()>>>,
}

#[derive(Debug)]
struct Tail {
    pack: Id,
    file: Arc<dyn SegmentFile>,
    end: u64,
    pushed: u64,
    synced: u64,
    /// Whether the file's name is on the disk itself.
    named: bool,
}

impl Log {
    /// Finds the end, and what the packs hold that the index does not claim.
    pub(crate) async fn open(
        backend: Arc<dyn Backend>,
        headers: Headers,
        packs: &mut Packs,
    ) -> Result<(Self, Vec<Entry>)> {
        let (disk, listed) = (backend.clone(), packs.clone());
        let (entries, found, there) = blocking(move || {
            let lens = disk.list_files()?.into_iter().collect();
            let (entries, found) = recover(&*disk, &headers, &listed, &lens)?;
            // Others were listed and not made before the end of the process.
            let there = |pack: &Id| lens.contains_key(&pack_name(pack));
            let there = listed.list.into_iter().filter(there).collect();
            Ok::<_, io::Error>((entries, found, there))
        })
        .await?
        .map_err(segment_error)?;
        packs.list = there;
        let log = Self {
            backend,
            end: found.as_ref().map(|found| (found.pack, found.end)),
            // After something that is no record, nothing is appended: it could hide what follows.
            tail: found
                .filter(|found| found.end == found.len)
                .map(|found| Tail {
                    pack: found.pack,
                    file: found.file,
                    end: found.end,
                    pushed: found.end,
                    synced: found.end,
                    named: true,
                }),
            pushing: None,
        };
        Ok((log, entries))
    }

    /// Where everything ends that was written.
    pub(crate) fn end(&self) -> Option<(Id, u64)> {
        self.end
    }

    /// Whether the next blob needs a new pack.
    pub(crate) fn is_full(&self) -> bool {
        self.tail.as_ref().is_none_or(|tail| tail.end >= PACK_BYTES)
    }

    /// Begins a pack, which has to be listed by the index already.
    pub(crate) async fn begin(&mut self, pack: Id) -> Result<()> {
        let backend = self.backend.clone();
        let file = blocking(move || backend.create_file(&pack_name(&pack)))
            .await?
            .map_err(segment_error)?;
        self.tail = Some(Tail {
            pack,
            file,
            end: 0,
            pushed: 0,
            synced: 0,
            named: false,
        });
        self.end = Some((pack, 0));
        Ok(())
    }

    /// Appends the small blobs of some requests, and gives their entries with their places.
    pub(crate) async fn append(
        &mut self,
        open: &Open,
        requests: &[Request],
    ) -> Result<Vec<Option<Arc<Entry>>>> {
        let small = || requests.iter().filter_map(|request| request.pack.as_ref());
        if small().next().is_none() {
            return Ok(requests.iter().map(|_| None).collect());
        }
        let tail = self.tail.as_mut().ok_or(Error::Closed)?;
        let headers = open.index.headers();
        let len = small().map(|(_, data)| SEALED_HEADER + data.len()).sum();
        let mut records = Vec::with_capacity(len);
        let mut entries = Vec::with_capacity(requests.len());
        for request in requests {
            let Some((entry, data)) = &request.pack else {
                entries.push(None);
                continue;
            };
            let at = tail.end + records.len() as u64;
            let mut entry = entry.clone();
            entry.place = Place::Pack {
                pack: tail.pack,
                offset: at + SEALED_HEADER as u64,
            };
            records.extend_from_slice(&headers.seal(&entry, &tail.pack, at)?);
            records.extend_from_slice(data);
            entries.push(Some(Arc::new(entry)));
        }
        let (file, end) = (tail.file.clone(), tail.end);
        // If it fails, the next one goes to the same place.
        blocking(move || file.write_all_at(&records, end))
            .await?
            .map_err(segment_error)?;
        tail.end += len as u64;
        self.end = Some((tail.pack, tail.end));
        if tail.end - tail.pushed >= PUSH_BYTES
            && self.pushing.as_ref().is_none_or(JoinHandle::is_finished)
        {
            let file = tail.file.clone();
            let end = tail.end;
            tail.pushed = end;
            self.pushed().await?;
            self.pushing = Some(tokio::task::spawn_blocking(move || file.sync()));
        }
        Ok(entries)
    }

    async fn pushed(&mut self) -> Result<()> {
        match self.pushing.take() {
            Some(pushing) => pushing
                .await
                .map_err(|_| Error::Closed)?
                .map_err(segment_error),
            None => Ok(()),
        }
    }

    /// Brings everything that was written to the disk itself.
    pub(crate) async fn sync(&mut self) -> Result<()> {
        // An error is told once by the system, so it is not to be lost.
        self.pushed().await?;
        let Some(tail) = &mut self.tail else {
            return Ok(());
        };
        if tail.synced == tail.end && tail.named {
            return Ok(());
        }
        let (file, backend, named) = (tail.file.clone(), self.backend.clone(), tail.named);
        blocking(move || {
            file.sync()?;
            if named { Ok(()) } else { backend.sync_files() }
        })
        .await?
        .map_err(segment_error)?;
        tail.named = true;
        tail.synced = tail.end;
        tail.pushed = tail.end;
        Ok(())
    }
}

/// The last pack.
struct Found {
    pack: Id,
    file: Arc<dyn SegmentFile>,
    /// Where its records end, and its bytes.
    end: u64,
    len: u64,
}

/// Reads what comes after the place up to which the index has claimed everything.
fn recover(
    backend: &dyn Backend,
    headers: &Headers,
    packs: &Packs,
    lens: &HashMap<String, u64>,
) -> io::Result<(Vec<Entry>, Option<Found>)> {
    let claimed = packs.claimed.and_then(|(pack, offset)| {
        let at = packs.list.iter().position(|other| *other == pack)?;
        Some((at, offset))
    });
    let (first, mut from) = claimed.unwrap_or((0, 0));
    let mut entries = Vec::new();
    let mut last = None;
    for pack in packs.list.iter().skip(first) {
        let name = pack_name(pack);
        let start = std::mem::take(&mut from);
        let Some(len) = lens.get(&name).copied() else {
            continue;
        };
        let file = backend.open_file(&name)?;
        let mut reader = Reader {
            file: &*file,
            len,
            window: Vec::new(),
            start: 0,
        };
        let known = entries.len();
        let end = scan(&mut reader, headers, *pack, start, &mut entries)?;
        if entries.len() > known {
            file.sync()?;
        }
        last = Some(Found {
            pack: *pack,
            file,
            end,
            len,
        });
    }
    backend.sync_files()?;
    Ok((entries, last))
}

/// Reads the records of a pack; gives where the last one ends. What is none is skipped, as far as a record can be long: the
/// header of one may be damaged, or may have been lost with the power while the next was not.
fn scan(
    reader: &mut Reader<'_>,
    headers: &Headers,
    pack: Id,
    from: u64,
    entries: &mut Vec<Entry>,
) -> io::Result<u64> {
    let longest = SEALED_HEADER as u64 + sealed_size(SMALL);
    let (mut at, mut end) = (from, from);
    while at <= end + longest
        && let Some(header) = reader.get(at, SEALED_HEADER)?
    {
        let entry = header
            .starts_with(&[seal::VERSION])
            .then(|| headers.open(header, pack, at))
            .flatten()
            .filter(|entry| entry.size <= SMALL);
        let Some(entry) = entry else {
            at += 1;
            continue;
        };
        // A small blob's, so it fits.
        let len = sealed_size(entry.size) as usize;
        let Some(data) = reader.get(at + SEALED_HEADER as u64, len)? else {
            break;
        };
        if seal::open_small(&entry.key(), data.to_vec()).is_some() {
            entries.push(entry);
        } else {
            tracing::warn!("a small blob was not written down in time");
        }
        at += (SEALED_HEADER + len) as u64;
        end = at;
    }
    Ok(end)
}

struct Reader<'a> {
    file: &'a dyn SegmentFile,
    len: u64,
    window: Vec<u8>,
    start: u64,
}

impl Reader<'_> {
    /// Some bytes; none if the file ends before.
    fn get(&mut self, at: u64, len: usize) -> io::Result<Option<&[u8]>> {
        if at + len as u64 > self.len {
            return Ok(None);
        }
        if at < self.start || at + len as u64 > self.start + self.window.len() as u64 {
            let read = (self.len - at).min(WINDOW.max(len) as u64);
            // At most a window or a record.
            self.window.resize(read as usize, 0);
            self.file.read_exact_at(&mut self.window, at)?;
            self.start = at;
        }
        // Inside the window.
        let from = (at - self.start) as usize;
        Ok(Some(&self.window[from..from + len]))
    }
}
