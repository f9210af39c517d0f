//! Who does what next.

use std::time::Duration;

use bao_tree::ChunkNum;
use iroh_blobs::{Hash, protocol::ChunkRanges};
use range_collections::range_set::RangeSetRange;

use super::{
    Blob, Has, Holder, HolderId, Kind, Now, Part, STREAMS, Scheduler, Start, Task, TaskId,
};
use crate::progress::FetchState;

/// Blobs up to this size, in bytes, go together into one request.
pub(crate) const SMALL: u64 = 64 * 1024;
/// So many of them at most.
pub(crate) const BATCH: usize = 64;
/// The largest piece, and the most bytes of small blobs in one request.
const PIECE: u64 = 1024 * 1024;
/// What a collection of unknown size brings, with its list of names: a shard of an archive that is neither small nor huge.
const COLLECTION: u64 = 16 * 1024;
/// The smallest piece that a blob is cut into.
const SHORTEST: u64 = 64 * 1024;
/// A piece takes a holder about so long.
const TIME: f64 = 0.3;
/// The first pieces of a holder of unknown rate: this, twice this, and so on, so that they do not all end at once.
const FIRST: u64 = 256 * 1024;
/// Streams to a holder of unknown rate.
const FIRST_STREAMS: usize = 4;
/// Streams to a holder that are always worth it.
const LEAST_STREAMS: usize = 3;
/// A task younger than this is not taken over.
const YOUNG: Duration = Duration::from_millis(500);
const CHUNK: u64 = 1024;
const GROUP: u64 = 16;

impl Holder {
    /// Whether one more request keeps the way to it full, where so many bytes are still to come of those before: twice what is on
    /// its way at a time, so that a request arrives before the last one ends. Counted in bytes, since streams that share a way end
    /// together when they were begun together.
    fn has_room(&self, to_come: u64) -> bool {
        if self.busy >= self.most || (self.unsure && self.busy > 0) {
            return false;
        }
        match self.enough() {
            None => self.busy < FIRST_STREAMS,
            Some(enough) => self.busy < LEAST_STREAMS || to_come < enough,
        }
    }

    /// How much should always be to come, in bytes, once its rate is known.
    fn enough(&self) -> Option<u64> {
        // A float to integer cast saturates.
        Some((2.0 * self.on_its_way()?) as u64 + self.piece())
    }

    /// Bytes that are on their way at a time, once its rate is known.
    fn on_its_way(&self) -> Option<f64> {
        Some(self.rate.bytes_per_second()? * self.rate.latency().as_secs_f64())
    }

    /// Bytes that it is asked for in one request.
    fn piece(&self) -> u64 {
        match self.rate.bytes_per_second() {
            None => (self.busy as u64 + 1).saturating_mul(FIRST).min(PIECE),
            Some(rate) => ((rate * TIME) as u64).clamp(2 * SHORTEST, PIECE),
        }
    }

    /// No piece needs to be smaller than what is on its way to one stream.
    fn worthwhile(&self) -> u64 {
        let streams = self.busy.max(LEAST_STREAMS) as f64;
        ((self.on_its_way().unwrap_or(0.0) / streams) as u64).clamp(SHORTEST, PIECE)
    }
}

impl Scheduler {
    /// Bytes that are still to come of what a holder was asked for.
    fn to_come(&self, id: HolderId) -> u64 {
        let tasks = self.tasks.values().filter(|task| task.holder == id);
        tasks
            .map(|task| task.expected.saturating_sub(task.bytes))
            .sum()
    }

    /// Whether one more request to a holder keeps the way to it full.
    pub(super) fn has_room(&self, id: HolderId) -> bool {
        let holder = self.holders.get(&id);
        holder.is_some_and(|holder| holder.has_room(self.to_come(id)))
    }
}

pub(super) fn next(s: &mut Scheduler, now: Now) -> Option<Start> {
    if s.tasks.len() >= STREAMS {
        return None;
    }
    let mut free: Vec<(HolderId, usize)> = s
        .holders
        .iter()
        .filter(|(id, holder)| !holder.is_out(now) && holder.has_room(s.to_come(**id)))
        .map(|(id, holder)| (*id, holder.busy))
        .collect();
    // Whoever has the least to do comes first.
    free.sort_by_key(|(id, busy)| (*busy, *id));
    for (id, _) in &free {
        if let Some(parts) = new_work(s, *id) {
            return Some(start(s, *id, parts, None, now));
        }
    }
    for (id, _) in free {
        if let Some((of, parts)) = take_over(s, id, now) {
            return Some(start(s, id, parts, Some(of), now));
        }
    }
    None
}

fn start(
    s: &mut Scheduler,
    id: HolderId,
    parts: Vec<Part>,
    repeats: Option<TaskId>,
    now: Now,
) -> Start {
    let task = s.next_task;
    s.next_task += 1;
    for part in &parts {
        s.set_state(part.hash, FetchState::Queued, FetchState::Fetching);
        s.set_state(part.hash, FetchState::Finding, FetchState::Fetching);
        if repeats.is_none()
            && let Some(blob) = s.blobs.get_mut(&part.hash)
        {
            blob.todo -= part.ranges.clone();
        }
    }
    if let Some(other) = repeats.and_then(|other| s.tasks.get_mut(&other)) {
        other.repeated = true;
    }
    let mut presumed = false;
    if let Some(holder) = s.holders.get_mut(&id) {
        holder.busy += 1;
        presumed = parts
            .iter()
            .any(|part| holder.presumed.contains(&part.hash));
    }
    s.tasks.insert(
        task,
        Task {
            holder: id,
            expected: parts.iter().map(expected).sum(),
            parts: parts.clone(),
            bytes: 0,
            started: now,
            last: now,
            heard: now,
            presumed,
            repeats,
            repeated: false,
        },
    );
    Start {
        task,
        holder: id,
        parts,
    }
}

/// Bytes that a part brings, as far as that is known.
fn expected(part: &Part) -> u64 {
    let chunks = count(&part.ranges).unwrap_or(u64::MAX);
    let usual = match part.kind {
        Kind::Blob => PIECE,
        Kind::Collection => COLLECTION,
    };
    chunks.saturating_mul(CHUNK).min(part.size.unwrap_or(usual))
}

fn part(hash: Hash, blob: &Blob, ranges: ChunkRanges) -> Part {
    Part {
        hash,
        kind: blob.kind,
        ranges,
        size: blob.size,
        limit: blob.limit,
        whole: blob.whole,
        done: false,
    }
}

/// What nobody does yet and this holder can.
fn new_work(s: &Scheduler, id: HolderId) -> Option<Vec<Part>> {
    let holder = s.holders.get(&id)?;
    let piece = piece(s, holder);
    let mut batch: Vec<Part> = Vec::new();
    let mut bytes = 0;
    for hash in s.order.values() {
        let Some(blob) = s.blobs.get(hash) else {
            continue;
        };
        if !blob.is_open() || blob.todo.is_empty() {
            continue;
        }
        let can = match holder.has.get(hash) {
            Some(Has::All) => blob.todo.clone(),
            Some(Has::Part {
                ranges: Some(ranges),
                ..
            }) => &blob.todo & ranges,
            _ => continue,
        };
        if can.is_empty() {
            continue;
        }
        let size = blob.size.or(blob.claimed).unwrap_or(u64::MAX);
        let small = blob.kind == Kind::Blob && size <= SMALL && can == blob.all();
        if small {
            if !batch.is_empty() && (batch.len() >= holder.batch || bytes + size > piece) {
                break;
            }
            bytes += size;
            batch.push(part(*hash, blob, can));
        } else if batch.is_empty() {
            let ranges = match (blob.kind, blob.size.or(blob.claimed)) {
                (Kind::Blob, Some(_)) => first(&can, piece / CHUNK),
                // How it could be cut is not known.
                _ => can,
            };
            return Some(vec![part(*hash, blob, ranges)]);
        }
    }
    (!batch.is_empty()).then_some(batch)
}

/// How many bytes to ask a holder for: near the end less, so that several end together.
fn piece(s: &Scheduler, holder: &Holder) -> u64 {
    let usual = holder.piece();
    let active = s.holders.values().filter(|holder| holder.busy > 0).count();
    if active < 2 {
        return usual;
    }
    let left: u64 = s
        .blobs
        .values()
        .filter(|blob| blob.is_open())
        .map(|blob| {
            let chunks = count(&blob.todo).unwrap_or(0);
            chunks.saturating_mul(CHUNK)
        })
        .fold(0, u64::saturating_add);
    let streams: usize = s.holders.values().map(|holder| holder.busy).sum();
    let share = left / (2 * streams.max(1) as u64);
    usual.min(share.max(holder.worthwhile()))
}

/// The work of a slower holder that this one can do, if it would be done much earlier by that. What took over from another may be
/// taken over as well, so that two slow ones keep nothing from a fast one, but nobody does the same work twice.
fn take_over(s: &Scheduler, id: HolderId, now: Now) -> Option<(TaskId, Vec<Part>)> {
    let holder = s.holders.get(&id)?;
    let mut best: Option<(f64, TaskId, Vec<Part>)> = None;
    for (task_id, task) in &s.tasks {
        let age = now.saturating_sub(task.started);
        if task.holder == id || task.repeated || age < YOUNG {
            continue;
        }
        let parts: Vec<Part> = task
            .parts
            .iter()
            .filter(|part| !part.done && has_all(s, holder, part))
            .cloned()
            .collect();
        if parts.is_empty() || parts.iter().any(|part| does(s, id, part)) {
            continue;
        }
        let mut left = task.expected.saturating_sub(task.bytes);
        if parts.iter().any(|part| part.size.is_none()) {
            // There may be as much again.
            left = left.max(task.bytes);
        }
        let left = left.max(1) as f64;
        let theirs = if now.saturating_sub(task.last) > Duration::from_secs(2) || task.bytes == 0 {
            f64::INFINITY
        } else {
            left * age.as_secs_f64() / task.bytes as f64
        };
        let ours = holder.rate.latency().as_secs_f64()
            + match holder.rate.bytes_per_second() {
                Some(rate) if rate > 0.0 => left * (holder.busy as f64 + 1.0) / rate,
                _ => 1.0,
            };
        if theirs > 1.5 * ours && best.as_ref().is_none_or(|(most, ..)| theirs > *most) {
            best = Some((theirs, *task_id, parts));
        }
    }
    best.map(|(_, task, parts)| (task, parts))
}

/// Whether a holder is busy with some of a part.
fn does(s: &Scheduler, id: HolderId, part: &Part) -> bool {
    let tasks = s.tasks.values().filter(|task| task.holder == id);
    tasks
        .flat_map(|task| &task.parts)
        .any(|own| own.hash == part.hash && !own.done && !own.ranges.is_disjoint(&part.ranges))
}

fn has_all(s: &Scheduler, holder: &Holder, part: &Part) -> bool {
    match holder.has.get(&part.hash) {
        Some(Has::All) => s.blobs.contains_key(&part.hash),
        Some(Has::Part {
            ranges: Some(ranges),
            ..
        }) => part.ranges.is_subset(ranges),
        _ => false,
    }
}

/// The first so many chunks of some ranges, up to the end of a chunk group.
fn first(ranges: &ChunkRanges, most: u64) -> ChunkRanges {
    let mut left = most.max(GROUP);
    let mut out = ChunkRanges::empty();
    for range in ranges.iter() {
        let (start, end) = match range {
            RangeSetRange::Range(range) => (range.start.0, range.end.0),
            RangeSetRange::RangeFrom(range) => (range.start.0, u64::MAX),
        };
        let cut = start.saturating_add(left);
        let cut = (cut - cut % GROUP).max(start.saturating_add(1));
        let to = end.min(if cut - start < GROUP && end - start > GROUP {
            cut.next_multiple_of(GROUP)
        } else {
            cut
        });
        out |= ChunkRanges::from(ChunkNum(start)..ChunkNum(to));
        left = left.saturating_sub(to - start);
        // A request with many gaps is no smaller than several.
        if left < GROUP || to < end {
            break;
        }
    }
    out
}

/// How many chunks some ranges have; none for ranges without an end.
fn count(ranges: &ChunkRanges) -> Option<u64> {
    ranges.iter().try_fold(0_u64, |sum, range| match range {
        RangeSetRange::Range(range) => Some(sum.saturating_add(range.end.0 - range.start.0)),
        RangeSetRange::RangeFrom(_) => None,
    })
}
