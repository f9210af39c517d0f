//! What becomes of a row when the network shows a value: a pure function, because every rule about counters is here.

use crate::cache::Cached;

/// A value that the network showed, opened and found good.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seen<'a> {
    pub(crate) counter: u64,
    pub(crate) sealed: &'a [u8],
    pub(crate) seq: Option<u32>,
    /// Whether it stands above everything that this device may have sent and that was not read back.
    pub(crate) above_sent: bool,
}

/// What has to be said about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Note {
    /// Older than what the network showed before.
    Rollback { seen: u64, got: u64 },
    /// A write of this device lost against another writer.
    Overwritten { ours: u64, theirs: u64 },
    /// Nodes hold another value under the sequence number of the one in the row, and will for ever. What is in the row
    /// now has to be sent above it.
    Contested,
}

/// The row after this device writes `sealed`, under a counter from [`next_counter`].
pub(crate) fn write(row: Option<Cached>, counter: u64, sealed: Vec<u8>) -> Cached {
    let mut next = Cached {
        counter,
        sealed,
        own: true,
        published: false,
        attempted: false,
        ..row.clone().unwrap_or_default()
    };
    if let Some(row) = row.filter(|row| row.own && row.attempted && !row.published) {
        next.earlier.push(Cached::digest(&row.sealed));
    }
    next
}

/// The counter of the next write; `None` at the end.
pub(crate) fn next_counter(row: Option<&Cached>) -> Option<u64> {
    let highest = row.map_or(0, |row| {
        row.counter
            .max(row.confirmed)
            .max(row.overwritten.unwrap_or(0))
    });
    highest.checked_add(1)
}

/// The row after a value of this device was read back from the network.
pub(crate) fn confirm(row: &Cached, counter: u64, sealed: &[u8], seq: Option<u32>) -> Cached {
    let mut after = row.clone();
    after.seq = row.seq.max(seq);
    if counter >= row.confirmed {
        after.confirmed = counter;
        after.confirmed_digest = Cached::digest(sealed);
        after.earlier.clear();
    }
    // A newer write may have come while this one was on its way.
    after.published |= row.sealed == sealed;
    after
}

/// The row after a write that waits was given up: the mark stays.
pub(crate) fn discard(row: &Cached) -> Cached {
    Cached {
        counter: row.confirmed,
        confirmed: row.confirmed,
        confirmed_digest: row.confirmed_digest,
        published: true,
        overwritten: row.overwritten,
        ..Cached::default()
    }
}

/// The row after the network showed `seen`.
///
/// Storage nodes keep what reached them first under a sequence number. So where two values may stand under one number,
/// the row that comes out is never a published one: whoever knows of the two sends one of them above that number.
pub(crate) fn take_in(row: Option<&Cached>, seen: &Seen<'_>) -> (Cached, Option<Note>) {
    let digest = Cached::digest(seen.sealed);
    let fresh = Cached {
        counter: seen.counter,
        sealed: seen.sealed.to_vec(),
        published: true,
        confirmed: seen.counter,
        confirmed_digest: digest,
        seq: seen.seq,
        ..Cached::default()
    };
    let Some(row) = row else {
        return (fresh, None);
    };
    let mut kept = Cached {
        seq: seen.seq.max(row.seq),
        ..row.clone()
    };
    if seen.counter < row.confirmed {
        // Ours goes out again: what the network holds now is older.
        kept.published = !row.has_value();
        let note = Note::Rollback {
            seen: row.confirmed,
            got: seen.counter,
        };
        return (kept, Some(note));
    }
    if seen.sealed == row.sealed {
        // Not a proof that it is published: Veilid also gives what it has only queued. `publish` decides that.
        return (kept, None);
    }
    // Written without knowing of the value that the network showed under this number before.
    let rival = row.has_value() && seen.seq <= row.seq;
    // Nodes may hold what the row has under the number of what was seen, or below it.
    let contested = rival || row.attempted && !row.published && !seen.above_sent;
    let overwritten = || {
        let note = Note::Overwritten {
            ours: row.counter,
            theirs: seen.counter,
        };
        let mut after = Cached {
            published: !contested,
            overwritten: Some(row.counter),
            ..fresh.clone()
        };
        if contested {
            // What was given up may be shown again before the other one stands above it.
            after.earlier = row.earlier.clone();
            after.earlier.push(Cached::digest(&row.sealed));
        }
        (after, Some(note))
    };
    let waiting = row.own && !row.published && row.counter > row.confirmed;
    if waiting {
        // Waits on, if the network shows what it was based on, or an earlier value of our own. Anything else is a
        // value that our write does not know of: sending it would undo another writer's work, whatever the counters.
        if row.earlier.contains(&digest) {
            if seen.counter > row.confirmed {
                kept.confirmed = seen.counter;
                kept.confirmed_digest = digest;
            }
            return (kept, None);
        }
        if seen.counter == row.confirmed && digest == row.confirmed_digest {
            return (kept, None);
        }
        return overwritten();
    }
    if row.own && (rival || seen.counter == row.counter) {
        // Both writers were told that theirs is published, and the network settled on the other.
        return overwritten();
    }
    if rival && !row.published && (seen.counter == row.counter || row.earlier.contains(&digest)) {
        // The one that was chosen stays: it is on its way above the number under which both stand.
        return (kept, Some(Note::Contested));
    }
    let after = Cached {
        published: !contested,
        overwritten: row.overwritten,
        ..fresh
    };
    (after, contested.then_some(Note::Contested))
}

#[cfg(test)]
mod tests;
