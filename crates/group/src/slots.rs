//! Which slot a member takes.

use std::collections::BTreeMap;

use dht_records::SlotIndex;

/// What is in a slot, as a writer sees it. Slots that nobody ever wrote are not listed, and free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// The writer's own.
    Own,
    /// Nobody's any more.
    Empty,
    /// Somebody who left, which others who were away have to see.
    Farewell,
    /// Somebody else's; or it cannot be read, and then it may be somebody's.
    Other,
}

/// The slot to stand in: the first of one's own, else the first from `start` on, around the end, that is free. Those of members who
/// left are taken last. None if all are taken.
///
/// Writers who do not see each other can choose the same slot, and then one of them is overwritten. So whoever wrote looks again
/// until they stand in a slot.
pub(crate) fn place(start: SlotIndex, slots: &BTreeMap<SlotIndex, Content>) -> Option<SlotIndex> {
    let own = slots.iter().find(|(_, content)| **content == Content::Own);
    if let Some((index, _)) = own {
        return Some(*index);
    }
    let mut farewell = None;
    let mut index = start;
    loop {
        match slots.get(&index) {
            None | Some(Content::Empty) => return Some(index),
            Some(Content::Farewell) => farewell = farewell.or(Some(index)),
            Some(Content::Own | Content::Other) => {}
        }
        index = index.next();
        if index == start {
            return farewell;
        }
    }
}

#[cfg(test)]
mod tests {
    use dht_records::SLOTS;
    use proptest::prelude::*;

    use super::*;

    fn index(n: u32) -> SlotIndex {
        SlotIndex::new(n).unwrap()
    }

    #[test]
    fn the_own_slot_stands_and_farewells_are_taken_last() {
        let slots = |of: &[(u32, Content)]| of.iter().map(|(n, c)| (index(*n), *c)).collect();
        use Content::{Empty, Farewell, Other, Own};
        assert_eq!(place(index(5), &slots(&[])), Some(index(5)));
        let seen = slots(&[(5, Other), (6, Farewell), (7, Empty)]);
        assert_eq!(place(index(5), &seen), Some(index(7)));
        let seen = slots(&[(2, Own), (5, Own)]);
        assert_eq!(place(index(5), &seen), Some(index(2)));
        let mut full: BTreeMap<_, _> = (1..=SLOTS).map(|n| (index(n), Other)).collect();
        assert_eq!(place(index(1023), &full), None);
        full.insert(index(3), Farewell);
        full.insert(index(9), Farewell);
        assert_eq!(place(index(1023), &full), Some(index(3)));
        full.insert(index(1022), Empty);
        assert_eq!(place(index(1023), &full), Some(index(1022)));
    }

    /// What one writer knows of the register, and has to write.
    struct Writer {
        start: SlotIndex,
        seen: BTreeMap<SlotIndex, usize>,
    }

    impl Writer {
        fn place(&self, me: usize) -> SlotIndex {
            let slots = self
                .seen
                .iter()
                .map(|(index, who)| {
                    let content = if *who == me {
                        Content::Own
                    } else {
                        Content::Other
                    };
                    (*index, content)
                })
                .collect();
            place(self.start, &slots).unwrap()
        }
    }

    proptest! {
        /// However looking and writing interleave, all end up in slots of their own once everybody looks as often as it takes.
        #[test]
        fn racing_writers_end_up_in_slots_of_their_own(
            starts in prop::collection::vec(1_000..=SLOTS, 1..12),
            steps in prop::collection::vec((any::<prop::sample::Index>(), any::<bool>()), 0..80),
        ) {
            let mut register: BTreeMap<SlotIndex, usize> = BTreeMap::new();
            let mut writers: Vec<Writer> = starts
                .iter()
                .map(|start| Writer { start: index(*start), seen: BTreeMap::new() })
                .collect();
            for (who, looks) in steps {
                let me = who.index(writers.len());
                let writer = &mut writers[me];
                if looks {
                    writer.seen = register.clone();
                } else {
                    // With what it saw, however long ago.
                    register.insert(writer.place(me), me);
                }
            }
            // From here on a writer looks before it writes, and after.
            for _ in 0..starts.len() {
                for (me, writer) in writers.iter_mut().enumerate() {
                    writer.seen = register.clone();
                    register.insert(writer.place(me), me);
                }
            }
            for (me, writer) in writers.iter_mut().enumerate() {
                writer.seen = register.clone();
                prop_assert_eq!(register.get(&writer.place(me)), Some(&me));
            }
        }
    }
}
