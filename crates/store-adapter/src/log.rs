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
/// What is read alone where the disk fails.
const PIECE: usize = 4096;
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
    /// Whether the system has failed to bring something to the disk. It says so once, and takes it for written from then on.
    unsure: bool,
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
    /// Whether there may be something after the end that could not be taken away.
    is_over: bool,
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
            tail: found.filter(|found| found.is_whole).map(|found| Tail {
                pack: found.pack,
                file: found.file,
                end: found.end,
                pushed: found.end,
                synced: found.end,
                named: true,
                is_over: false,
            }),
            pushing: None,
            unsure: false,
        };
        Ok((log, entries))
    }

    /// Where everything ends that was written.
    pub(crate) fn end(&self) -> Option<(Id, u64)> {
        self.end
    }

    /// Whether the next blob needs a new pack.
    pub(crate) fn is_full(&self) -> bool {
        self.tail
            .as_ref()
            .is_none_or(|tail| tail.is_over || tail.end >= PACK_BYTES)
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
            is_over: false,
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
        let written = blocking(move || {
            file.write_all_at(&records, end).map_err(|error| {
                // A record that was written before it failed would be found later.
                let cut = file.cut(end).is_ok();
                (error, cut)
            })
        });
        match written.await? {
            Ok(()) => {}
            Err((error, true)) => return Err(segment_error(error)),
            Err((error, false)) => {
                self.end = Some((tail.pack, tail.end + len as u64));
                // What was written before is still to be brought to the disk, so the pack stays until the next one begins.
                tail.is_over = true;
                return Err(segment_error(error));
            }
        }
        tail.end += len as u64;
        self.end = Some((tail.pack, tail.end));
        if tail.end - tail.pushed >= PUSH_BYTES
            && self.pushing.as_ref().is_none_or(JoinHandle::is_finished)
        {
            let file = tail.file.clone();
            let end = tail.end;
            tail.pushed = end;
            self.pushed().await;
            self.pushing = Some(tokio::task::spawn_blocking(move || file.sync()));
        }
        Ok(entries)
    }

    async fn pushed(&mut self) {
        if let Some(pushing) = self.pushing.take()
            && !matches!(pushing.await, Ok(Ok(())))
        {
            self.unsure = true;
        }
    }

    /// Brings everything that was written to the disk itself.
    pub(crate) async fn sync(&mut self) -> Result<()> {
        self.pushed().await;
        let Some(tail) = &mut self.tail else {
            return Ok(());
        };
        if tail.synced == tail.end && tail.named {
            return Ok(());
        }
        let (file, backend, named) = (tail.file.clone(), self.backend.clone(), tail.named);
        let again = self.unsure.then_some((tail.synced, tail.end));
        // Until it has succeeded.
        self.unsure = true;
        blocking(move || {
            if let Some((from, to)) = again {
                write_again(&*file, from, to)?;
            }
            file.sync()?;
            if named { Ok(()) } else { backend.sync_files() }
        })
        .await?
        .map_err(segment_error)?;
        self.unsure = false;
        tail.named = true;
        tail.synced = tail.end;
        tail.pushed = tail.end;
        Ok(())
    }
}

/// Writes what is there once more, so that the system brings it to the disk once more.
fn write_again(file: &dyn SegmentFile, from: u64, to: u64) -> io::Result<()> {
    let mut at = from;
    while at < to {
        // At most a window.
        let mut bytes = vec![0; (to - at).min(WINDOW as u64) as usize];
        file.read_exact_at(&mut bytes, at)?;
        file.write_all_at(&bytes, at)?;
        at += bytes.len() as u64;
    }
    Ok(())
}

/// The last pack.
struct Found {
    pack: Id,
    file: Arc<dyn SegmentFile>,
    /// Where its records end.
    end: u64,
    /// Whether its bytes end there as well, and could all be read.
    is_whole: bool,
}

/// Reads what comes after the place up to which the index has claimed everything.
fn recover(
    backend: &dyn Backend,
    headers: &Headers,
    packs: &Packs,
    lens: &HashMap<String, u64>,
) -> io::Result<(Vec<Entry>, Option<Found>)> {
    let len = |pack: &Id| lens.get(&pack_name(pack)).copied();
    let there = packs.list.iter().filter(|pack| len(pack).is_some());
    let there: Vec<Id> = there.copied().collect();
    let (first, mut from) = match packs.claimed {
        // It is not known what was claimed, so all of it is read.
        None => (0, 0),
        Some((pack, offset)) => match there.iter().position(|other| *other == pack) {
            Some(at) => (at, offset),
            // What the index claims ends in a pack that is gone. Older ones are all claimed, and what was deleted in them must not
            // come back; newer ones are not.
            None => {
                let listed = packs.list.iter().position(|other| *other == pack);
                let newer = listed.map_or(&[][..], |at| &packs.list[at..]);
                let at = there.iter().position(|other| newer.contains(other));
                (at.unwrap_or(there.len()), 0)
            }
        },
    };
    let mut entries = Vec::new();
    let mut last = None;
    for pack in &there[first..] {
        let len = len(pack).unwrap_or(0);
        let file = backend.open_file(&pack_name(pack))?;
        let mut reader = Reader {
            file: &*file,
            len,
            window: Vec::new(),
            start: 0,
            is_whole: true,
        };
        let known = entries.len();
        let start = std::mem::take(&mut from);
        let end = scan(&mut reader, headers, *pack, start, &mut entries)?;
        let is_whole = reader.is_whole && end == len;
        if entries.len() > known {
            file.sync()?;
        }
        last = Some(Found {
            pack: *pack,
            file,
            end,
            is_whole,
        });
    }
    if let (None, Some(pack)) = (&last, there.last()) {
        last = Some(Found {
            pack: *pack,
            file: backend.open_file(&pack_name(pack))?,
            end: len(pack).unwrap_or(0),
            is_whole: false,
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
    /// Whether the disk gave everything.
    is_whole: bool,
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
            self.start = at;
            if self.file.read_exact_at(&mut self.window, at).is_err() {
                // What cannot be read costs what lies in it, and nothing else.
                self.is_whole = false;
                for (piece, at) in self.window.chunks_mut(PIECE).zip((at..).step_by(PIECE)) {
                    if self.file.read_exact_at(piece, at).is_err() {
                        piece.fill(0);
                    }
                }
            }
        }
        // Inside the window.
        let from = (at - self.start) as usize;
        Ok(Some(&self.window[from..from + len]))
    }
}
