//! What becomes of a row when the network shows a value: a pure function, because every rule about counters is here.

use crate::cache::Cached;

/// A value that the network showed, opened and found good.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seen<'a> {
    pub(crate) counter: u64,
    pub(crate) sealed: &'a [u8],
    pub(crate) seq: Option<u32>,
}

/// What has to be said about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Note {
    /// Older than what the network showed before.
    Rollback { seen: u64, got: u64 },
    /// A write that was not published lost against another writer.
    Overwritten { ours: u64, theirs: u64 },
}

/// The row after the network showed `seen`.
pub(crate) fn take_in(row: Option<&Cached>, seen: &Seen<'_>) -> (Cached, Option<Note>) {
    let fresh = |overwritten| Cached {
        counter: seen.counter,
        sealed: seen.sealed.to_vec(),
        published: true,
        confirmed: seen.counter,
        seq: seen.seq,
        overwritten,
    };
    let Some(row) = row else {
        return (fresh(None), None);
    };
    let mut kept = Cached {
        seq: seen.seq.max(row.seq),
        ..row.clone()
    };
    if seen.counter < row.confirmed {
        // Ours goes out again: what the network holds now is older.
        kept.published = false;
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
    let waiting = !row.published && row.counter > row.confirmed;
    if waiting && seen.counter < row.counter {
        // Known before our write, which is still to be sent.
        kept.confirmed = seen.counter;
        return (kept, None);
    }
    if waiting {
        let note = Note::Overwritten {
            ours: row.counter,
            theirs: seen.counter,
        };
        return (fresh(Some(row.counter)), Some(note));
    }
    // Newer, or another writer's value under the same counter that the network settled on.
    (fresh(row.overwritten), None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn row(counter: u64, published: bool, confirmed: u64) -> Cached {
        Cached {
            counter,
            sealed: vec![1, counter as u8],
            published,
            confirmed,
            seq: Some(3),
            overwritten: None,
        }
    }

    fn seen(counter: u64, sealed: &[u8]) -> Seen<'_> {
        Seen {
            counter,
            sealed,
            seq: Some(4),
        }
    }

    #[test]
    fn first_value_is_taken() {
        let (after, note) = take_in(None, &seen(5, b"x"));
        assert_eq!(note, None);
        assert_eq!(
            (after.counter, after.published, after.confirmed, after.seq),
            (5, true, 5, Some(4))
        );
    }

    #[test]
    fn newer_value_is_taken() {
        let (after, note) = take_in(Some(&row(5, true, 5)), &seen(6, b"x"));
        assert_eq!(note, None);
        assert_eq!(
            (after.counter, after.sealed.as_slice(), after.confirmed),
            (6, b"x".as_slice(), 6)
        );
    }

    #[test]
    fn older_value_is_ignored_and_ours_goes_out_again() {
        let before = row(5, true, 5);
        let (after, note) = take_in(Some(&before), &seen(4, b"x"));
        assert_eq!(note, Some(Note::Rollback { seen: 5, got: 4 }));
        assert_eq!(
            (
                after.counter,
                &after.sealed,
                after.published,
                after.confirmed
            ),
            (5, &before.sealed, false, 5)
        );
        // Shown again before ours is out, it is still a rollback, and ours is still no lost write.
        let (again, note) = take_in(Some(&after), &seen(4, b"x"));
        assert_eq!(note, Some(Note::Rollback { seen: 5, got: 4 }));
        assert_eq!(again.counter, 5);
        let (other, note) = take_in(Some(&after), &seen(5, b"other"));
        assert_eq!((other.sealed.as_slice(), note), (b"other".as_slice(), None));
    }

    #[test]
    fn a_waiting_write_outlives_what_it_was_based_on() {
        let (after, note) = take_in(Some(&row(6, false, 5)), &seen(5, b"x"));
        assert_eq!(note, None);
        assert_eq!(
            (after.counter, after.published, after.confirmed, after.seq),
            (6, false, 5, Some(4))
        );
    }

    #[test]
    fn a_waiting_write_loses_to_the_same_or_a_higher_counter() {
        for theirs in [6, 9] {
            let (after, note) = take_in(Some(&row(6, false, 5)), &seen(theirs, b"x"));
            assert_eq!(note, Some(Note::Overwritten { ours: 6, theirs }));
            assert_eq!(
                (after.counter, after.published, after.overwritten),
                (theirs, true, Some(6))
            );
        }
    }

    #[test]
    fn a_lost_write_is_remembered_until_reported() {
        let (lost, _) = take_in(Some(&row(6, false, 5)), &seen(6, b"x"));
        let (after, _) = take_in(Some(&lost), &seen(7, b"y"));
        assert_eq!((after.counter, after.overwritten), (7, Some(6)));
    }

    #[test]
    fn our_own_value_is_not_taken_for_published() {
        let before = row(6, false, 5);
        let sealed = before.sealed.clone();
        let (after, note) = take_in(Some(&before), &seen(6, &sealed));
        assert_eq!((after.published, note), (false, None));
    }

    proptest! {
        /// In any order of delivery the mark only grows, nothing below it is ever taken, and the highest counter wins.
        #[test]
        fn counters_never_go_back(counters in proptest::collection::vec(1u64..20, 1..40)) {
            let mut row: Option<Cached> = None;
            let mut highest = 0;
            for counter in counters {
                let sealed = [counter as u8];
                let (after, note) = take_in(row.as_ref(), &seen(counter, &sealed));
                prop_assert_eq!(note.is_some(), counter < highest);
                highest = highest.max(counter);
                prop_assert_eq!(after.confirmed, highest);
                prop_assert_eq!(after.counter, highest);
                prop_assert_eq!(after.sealed.as_slice(), &[highest as u8]);
                row = Some(after);
            }
        }
    }
}
