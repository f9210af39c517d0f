//! The rules one by one, and all together on a simulated network.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

/// A value that another writer published and that was read here.
fn read(counter: u64) -> Cached {
    take_in(None, &seen(counter, b"theirs")).0
}

/// A write of ours on top of it.
fn waiting(counter: u64) -> Cached {
    write(Some(read(counter - 1)), counter, b"ours".to_vec())
}

fn seen(counter: u64, sealed: &[u8]) -> Seen<'_> {
    seen_at(4, counter, sealed)
}

fn seen_at(seq: u32, counter: u64, sealed: &[u8]) -> Seen<'_> {
    Seen {
        counter,
        sealed,
        seq: Some(seq),
        above_sent: false,
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
    assert!(!after.own);
}

#[test]
fn newer_value_is_taken() {
    let (after, note) = take_in(Some(&read(5)), &seen_at(5, 6, b"x"));
    assert_eq!(note, None);
    assert_eq!(
        (after.counter, after.sealed.as_slice(), after.confirmed),
        (6, b"x".as_slice(), 6)
    );
}

#[test]
fn older_value_is_ignored_and_ours_goes_out_again() {
    let before = read(5);
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
    let (other, note) = take_in(Some(&after), &seen_at(5, 5, b"other"));
    assert_eq!((other.sealed.as_slice(), note), (b"other".as_slice(), None));
}

#[test]
fn a_waiting_write_outlives_what_it_was_based_on() {
    let (after, note) = take_in(Some(&waiting(6)), &seen(5, b"theirs"));
    assert_eq!(note, None);
    assert_eq!(
        (after.counter, after.published, after.confirmed, after.seq),
        (6, false, 5, Some(4))
    );
    let (after, note) = take_in(Some(&waiting(6)), &seen(3, b"old"));
    assert_eq!(note, Some(Note::Rollback { seen: 5, got: 3 }));
    assert_eq!((after.counter, after.published), (6, false));
}

#[test]
fn a_waiting_write_loses_to_whatever_it_does_not_know_of() {
    for theirs in [5, 6, 9] {
        let (after, note) = take_in(Some(&waiting(6)), &seen_at(5, theirs, b"x"));
        assert_eq!(note, Some(Note::Overwritten { ours: 6, theirs }));
        assert_eq!(
            (after.counter, after.published, after.overwritten),
            (theirs, true, Some(6))
        );
        // The next write is above both.
        assert_eq!(next_counter(Some(&after)), Some(theirs.max(6) + 1));
    }
    // Two writes while away do not win by their higher counter either.
    let twice = write(Some(waiting(6)), 7, b"again".to_vec());
    let (_, note) = take_in(Some(&twice), &seen(6, b"x"));
    assert_eq!(note, Some(Note::Overwritten { ours: 7, theirs: 6 }));
}

#[test]
fn our_own_earlier_write_is_no_other_writer() {
    let attempted = Cached {
        attempted: true,
        ..waiting(6)
    };
    let next = write(Some(attempted), 7, b"again".to_vec());
    let (after, note) = take_in(Some(&next), &seen(6, b"ours"));
    assert_eq!(note, None);
    assert_eq!(
        (after.counter, after.published, after.confirmed),
        (7, false, 6)
    );
    // One that was never sent cannot be there.
    let never_sent = write(Some(waiting(6)), 7, b"again".to_vec());
    assert_eq!(never_sent.earlier, Vec::<[u8; 16]>::new());
}

#[test]
fn a_published_write_that_the_network_gave_up_is_reported() {
    let ours = confirm(&waiting(6), 6, b"ours", Some(5));
    assert!(ours.published);
    let (after, note) = take_in(Some(&ours), &seen(6, b"x"));
    assert_eq!(note, Some(Note::Overwritten { ours: 6, theirs: 6 }));
    assert_eq!(after.overwritten, Some(6));
    // A newer one builds on ours.
    let (_, note) = take_in(Some(&ours), &seen_at(6, 7, b"x"));
    assert_eq!(note, None);
    // Not so under the same number, whatever the counters: its writer did not know of ours.
    let (after, note) = take_in(Some(&ours), &seen_at(5, 7, b"x"));
    assert_eq!(note, Some(Note::Overwritten { ours: 6, theirs: 7 }));
    assert!(!after.published);
}

/// A write of ours that was handed to Veilid and lost against another under the same number.
fn yielded(ours: u64, theirs: u64) -> Cached {
    let attempted = Cached {
        attempted: true,
        ..write(None, ours, b"ours".to_vec())
    };
    let (row, note) = take_in(Some(&attempted), &seen(theirs, b"theirs"));
    assert_eq!(note, Some(Note::Overwritten { ours, theirs }));
    row
}

#[test]
fn the_loser_sends_the_winners_value_above_their_own() {
    let row = yielded(1, 1);
    assert_eq!(
        (row.sealed.as_slice(), row.own, row.published, row.seq),
        (b"theirs".as_slice(), false, false, Some(4))
    );
    // Where ours cannot be under that number, nothing is left to send.
    let attempted = Cached {
        attempted: true,
        ..write(None, 1, b"ours".to_vec())
    };
    let above = Seen {
        above_sent: true,
        ..seen(1, b"theirs")
    };
    assert!(take_in(Some(&attempted), &above).0.published);
    assert!(take_in(Some(&waiting(6)), &seen_at(5, 6, b"x")).0.published);
}

#[test]
fn what_was_yielded_does_not_come_back_under_the_contested_number() {
    for ours in [1, 2] {
        let row = yielded(ours, 1);
        // Another read reaches the nodes that took ours.
        let (after, note) = take_in(Some(&row), &seen(ours, b"ours"));
        assert_eq!((&after, note), (&row, Some(Note::Contested)));
        // A third writer's is no reason to choose again either.
        let (after, note) = take_in(Some(&row), &seen(1, b"third"));
        assert_eq!((&after, note), (&row, Some(Note::Contested)));
        // What stands above it does, and then there is nothing to send.
        let (after, note) = take_in(Some(&row), &seen_at(5, ours, b"ours"));
        assert_eq!(
            (after.sealed.as_slice(), after.published, note),
            (b"ours".as_slice(), true, None)
        );
        // Unless the winner's was sent by us already, perhaps under the very same number.
        let sent = Cached {
            attempted: true,
            ..row
        };
        let (after, note) = take_in(Some(&sent), &seen_at(5, 1, b"third"));
        assert_eq!((after.published, note), (false, Some(Note::Contested)));
    }
}

#[test]
fn a_write_on_top_of_the_winners_value_does_not_yield_to_what_was_yielded() {
    let row = yielded(1, 1);
    let next = write(Some(row), 2, b"merged".to_vec());
    for sealed in [b"ours".as_slice(), b"theirs"] {
        let (after, note) = take_in(Some(&next), &seen(1, sealed));
        assert_eq!((&after, note), (&next, None));
    }
}

#[test]
fn a_reader_notices_two_values_under_one_number() {
    let row = read(5);
    let (after, note) = take_in(Some(&row), &seen(5, b"other"));
    assert_eq!(
        (after.sealed.as_slice(), after.published, note),
        (b"other".as_slice(), false, Some(Note::Contested))
    );
    let (after, note) = take_in(Some(&row), &seen_at(5, 5, b"other"));
    assert_eq!((after.published, note), (true, None));
    let ours = confirm(&waiting(6), 6, b"ours", Some(5));
    let (after, note) = take_in(Some(&ours), &seen_at(5, 6, b"x"));
    assert_eq!(note, Some(Note::Overwritten { ours: 6, theirs: 6 }));
    assert!(!after.published);
}

#[test]
fn a_lost_write_is_remembered_until_reported() {
    let (lost, _) = take_in(Some(&waiting(6)), &seen(6, b"x"));
    let (after, _) = take_in(Some(&lost), &seen(7, b"y"));
    assert_eq!((after.counter, after.overwritten), (7, Some(6)));
}

#[test]
fn our_own_value_is_not_taken_for_published() {
    let (after, note) = take_in(Some(&waiting(6)), &seen(6, b"ours"));
    assert_eq!((after.published, note), (false, None));
}

#[test]
fn a_confirmation_that_comes_late_leaves_the_newer_write_waiting() {
    let newer = write(Some(waiting(6)), 7, b"again".to_vec());
    let after = confirm(&newer, 6, b"ours", Some(8));
    assert_eq!(
        (after.published, after.confirmed, after.counter),
        (false, 6, 7)
    );
    let (_, note) = take_in(Some(&after), &seen(6, b"ours"));
    assert_eq!(note, None);
}

#[test]
fn a_write_that_was_given_up_leaves_the_mark() {
    let after = discard(&waiting(6));
    assert_eq!(
        (after.has_value(), after.is_pending(), after.confirmed),
        (false, false, 5)
    );
    let (rolled_back, note) = take_in(Some(&after), &seen(4, b"old"));
    assert_eq!(note, Some(Note::Rollback { seen: 5, got: 4 }));
    assert!(!rolled_back.is_pending());
    let (read, note) = take_in(Some(&after), &seen(5, b"theirs"));
    assert_eq!(
        (read.counter, read.sealed.as_slice(), note),
        (5, b"theirs".as_slice(), None)
    );
    assert_eq!(next_counter(Some(&after)), Some(6));
}

#[test]
fn counters_end() {
    let last = Cached {
        counter: u64::MAX,
        ..Cached::default()
    };
    assert_eq!(next_counter(Some(&last)), None);
    assert_eq!(next_counter(None), Some(1));
}

/// Several devices write to one subkey of a network that keeps the value with the highest sequence number, as Veilid
/// does. A value is a set of items; a device adds its own to what it knows, and merges when it is told that it lost.
struct Device {
    row: Option<Cached>,
    stored: Option<(u32, Vec<u8>)>,
    items: BTreeSet<u8>,
}

type Network = Option<(u32, Vec<u8>)>;

fn encode(counter: u64, device: u8, items: &BTreeSet<u8>) -> Vec<u8> {
    let mut out = counter.to_be_bytes().to_vec();
    out.push(device);
    out.extend(items);
    out
}

fn decode(sealed: &[u8]) -> (u64, BTreeSet<u8>) {
    let (counter, rest) = sealed.split_first_chunk::<8>().unwrap();
    (
        u64::from_be_bytes(*counter),
        rest[1..].iter().copied().collect(),
    )
}

impl Device {
    fn add(&mut self, id: u8, item: Option<u8>) {
        self.items.extend(item);
        if let Some(row) = &self.row {
            self.items.extend(decode(&row.sealed).1);
        }
        let counter = next_counter(self.row.as_ref()).unwrap();
        self.row = Some(write(
            self.row.take(),
            counter,
            encode(counter, id, &self.items),
        ));
    }

    fn take(&mut self, (seq, sealed): &(u32, Vec<u8>)) -> Option<Note> {
        if self.stored.as_ref().is_none_or(|(known, _)| known <= seq) {
            self.stored = Some((*seq, sealed.clone()));
        }
        let seen = Seen {
            counter: decode(sealed).0,
            sealed,
            seq: Some(*seq),
            above_sent: false,
        };
        let (row, note) = take_in(self.row.as_ref(), &seen);
        self.row = Some(row);
        note
    }

    /// One round of `publish`; the answer may be lost. Says whether to go on.
    fn publish(&mut self, id: u8, network: &mut Network, answer_lost: bool) -> bool {
        if let Some(stored) = self.stored.clone()
            && matches!(self.take(&stored), Some(Note::Overwritten { .. }))
        {
            self.add(id, None);
            return true;
        }
        let Some(row) = self.row.as_mut().filter(|row| !row.published) else {
            return false;
        };
        row.attempted = true;
        let (counter, sealed) = (row.counter, row.sealed.clone());
        let seq = match &self.stored {
            Some((seq, stored)) if *stored == sealed => *seq,
            Some((seq, _)) => seq + 1,
            None => 0,
        };
        let newer = network.as_ref().is_none_or(|(held, _)| *held < seq);
        if newer {
            *network = Some((seq, sealed.clone()));
        }
        if answer_lost {
            // Its own copy stays what the network showed last: writes are sent with `AllowOffline(false)`.
            return true;
        }
        let held = network.clone().expect("something was written");
        if held.1 == sealed {
            self.stored = Some(held.clone());
            let row = self.row.as_ref().expect("it was there above");
            self.row = Some(confirm(row, counter, &sealed, Some(held.0)));
            return false;
        }
        if matches!(self.take(&held), Some(Note::Overwritten { .. })) {
            self.add(id, None);
        }
        true
    }
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
            let older = matches!(note, Some(Note::Rollback { .. }));
            prop_assert_eq!(older, counter < highest);
            highest = highest.max(counter);
            prop_assert_eq!(after.confirmed, highest);
            prop_assert_eq!(after.counter, highest);
            prop_assert_eq!(after.sealed.as_slice(), &[highest as u8]);
            row = Some(after);
        }
    }

    /// Whatever the devices do in whatever order, with answers lost, no item that any of them wrote is missing in the
    /// end.
    #[test]
    fn no_write_is_ever_undone(steps in proptest::collection::vec((0usize..3, 0u8..4), 1..60)) {
        let mut network: Network = None;
        let mut devices: Vec<Device> = (0..3)
            .map(|_| Device { row: None, stored: None, items: BTreeSet::new() })
            .collect();
        let mut written = BTreeSet::new();
        for (number, (at, what)) in steps.into_iter().enumerate() {
            let device = &mut devices[at];
            let id = at as u8;
            match what {
                0 => {
                    written.insert(number as u8);
                    device.add(id, Some(number as u8));
                }
                1 => {
                    device.publish(id, &mut network, false);
                }
                2 => {
                    device.publish(id, &mut network, true);
                }
                _ => {
                    if let Some(held) = network.clone()
                        && matches!(device.take(&held), Some(Note::Overwritten { .. }))
                    {
                        device.add(id, None);
                    }
                }
            }
        }
        // Everybody publishes until nothing is left to do.
        for _ in 0..20 {
            for (id, device) in devices.iter_mut().enumerate() {
                for _ in 0..4 {
                    if !device.publish(id as u8, &mut network, false) {
                        break;
                    }
                }
            }
        }
        let items = network.map(|(_, sealed)| decode(&sealed).1).unwrap_or_default();
        prop_assert_eq!(items, written);
        prop_assert!(devices.iter().all(|device| device.row.as_ref().is_none_or(|row| row.published)));
    }
}
