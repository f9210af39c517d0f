//! A set of numbers, kept as disjoint half-open ranges.

use std::collections::BTreeMap;
use std::ops::Range;

/// Disjoint, non-adjacent, half-open ranges of `u64`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct RangeSet {
    /// Start to end.
    ranges: BTreeMap<u64, u64>,
}

impl RangeSet {
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// How many separate ranges there are.
    pub fn len(&self) -> usize {
        self.ranges.len()
    }

    pub fn iter(&self) -> impl DoubleEndedIterator<Item = Range<u64>> + '_ {
        self.ranges.iter().map(|(&start, &end)| start..end)
    }

    pub fn contains(&self, value: u64) -> bool {
        self.ranges
            .range(..=value)
            .next_back()
            .is_some_and(|(_, &end)| value < end)
    }

    /// The lowest range.
    pub fn first(&self) -> Option<Range<u64>> {
        self.iter().next()
    }

    pub fn insert(&mut self, range: Range<u64>) {
        if range.start >= range.end {
            return;
        }
        let (mut start, mut end) = (range.start, range.end);
        if let Some((&before, &before_end)) = self.ranges.range(..start).next_back()
            && before_end >= start
        {
            start = before;
            end = end.max(before_end);
        }
        while let Some((&next, &next_end)) = self.ranges.range(start..).next() {
            if next > end {
                break;
            }
            end = end.max(next_end);
            self.ranges.remove(&next);
        }
        self.ranges.insert(start, end);
    }

    pub fn remove(&mut self, range: Range<u64>) {
        if range.start >= range.end {
            return;
        }
        if let Some((&before, &before_end)) = self.ranges.range(..range.start).next_back()
            && before_end > range.start
        {
            self.ranges.insert(before, range.start);
            if before_end > range.end {
                self.ranges.insert(range.end, before_end);
                return;
            }
        }
        while let Some((&next, &next_end)) = self.ranges.range(range.start..range.end).next() {
            self.ranges.remove(&next);
            if next_end > range.end {
                self.ranges.insert(range.end, next_end);
            }
        }
    }

    /// The parts of `range` that are not in the set.
    pub fn missing_in(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let mut missing = Vec::new();
        let mut at = range.start;
        let from = self
            .ranges
            .range(..=range.start)
            .next_back()
            .map_or(range.start, |(&start, _)| start);
        for (&start, &end) in self.ranges.range(from..) {
            if start >= range.end {
                break;
            }
            if start > at {
                missing.push(at..start);
            }
            at = at.max(end);
        }
        if at < range.end {
            missing.push(at..range.end);
        }
        missing
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    use super::super::fixed;
    use std::collections::BTreeSet;

    proptest! {
        #![proptest_config(fixed(256))]

        #[test]
        fn behaves_like_a_set_of_numbers(ops in proptest::collection::vec((any::<bool>(), 0u64..60, 0u64..12), 0..40), probe in 0u64..60, len in 0u64..20) {
            let (mut ranges, mut model) = (RangeSet::default(), BTreeSet::new());
            for (insert, start, len) in ops {
                if insert {
                    ranges.insert(start..start + len);
                    model.extend(start..start + len);
                } else {
                    ranges.remove(start..start + len);
                    model.retain(|v| !(start..start + len).contains(v));
                }
            }
            prop_assert_eq!(ranges.iter().flatten().collect::<Vec<_>>(), model.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!(ranges.contains(probe), model.contains(&probe));
            let missing: Vec<u64> = ranges.missing_in(probe..probe + len).into_iter().flatten().collect();
            prop_assert_eq!(missing, (probe..probe + len).filter(|v| !model.contains(v)).collect::<Vec<_>>());
            let parts: Vec<_> = ranges.iter().collect();
            prop_assert!(parts.windows(2).all(|w| w[0].end < w[1].start));
        }
    }
}
