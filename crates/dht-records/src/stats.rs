//! How often Veilid was asked.

use std::sync::atomic::{AtomicU64, Ordering};

/// Calls on Veilid that ask the network, since the start. Each counts as it begins, whatever becomes of it; what Veilid does
/// for one, such as asking several nodes, is its own business.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Records opened. One that is stored here may open without asking anybody.
    pub opens: u64,
    /// Inspections of a whole record.
    pub inspections: u64,
    /// Subkeys read from the network.
    pub gets: u64,
    /// Subkeys written.
    pub sets: u64,
    /// Watches asked for.
    pub watches: u64,
    /// The most of all these that were under way at one time.
    pub most_at_once: u64,
}

impl Stats {
    /// All calls.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.opens + self.inspections + self.gets + self.sets + self.watches
    }
}

/// What is asked of Veilid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    Open,
    /// What the local store has of a record.
    InspectHere,
    Inspect,
    /// A subkey that the local store has.
    GetHere,
    Get,
    Set,
    Flush,
    Watch,
}

impl Operation {
    /// Its name in errors.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::InspectHere | Self::Inspect => "inspect",
            Self::GetHere | Self::Get => "get",
            Self::Set => "set",
            Self::Flush => "flush",
            Self::Watch => "watch",
        }
    }
}

/// Counts calls.
#[derive(Default)]
pub(crate) struct Counters {
    opens: AtomicU64,
    inspections: AtomicU64,
    gets: AtomicU64,
    sets: AtomicU64,
    watches: AtomicU64,
    under_way: AtomicU64,
    most_at_once: AtomicU64,
}

/// A call that is under way, until this is dropped.
pub(crate) struct UnderWay<'a>(&'a AtomicU64);

impl Counters {
    /// Counts a call that begins now; none that asks nobody.
    pub(crate) fn begin(&self, operation: Operation) -> Option<UnderWay<'_>> {
        let counter = match operation {
            Operation::Open => &self.opens,
            Operation::Inspect => &self.inspections,
            Operation::Get => &self.gets,
            Operation::Set => &self.sets,
            Operation::Watch => &self.watches,
            // A flush waits for what was asked for already.
            Operation::InspectHere | Operation::GetHere | Operation::Flush => return None,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        let now = self.under_way.fetch_add(1, Ordering::Relaxed) + 1;
        self.most_at_once.fetch_max(now, Ordering::Relaxed);
        Some(UnderWay(&self.under_way))
    }

    pub(crate) fn stats(&self) -> Stats {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            opens: of(&self.opens),
            inspections: of(&self.inspections),
            gets: of(&self.gets),
            sets: of(&self.sets),
            watches: of(&self.watches),
            most_at_once: of(&self.most_at_once),
        }
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_on_the_network_count_and_others_do_not() {
        let counters = Counters::default();
        let first = counters.begin(Operation::Get);
        let second = counters.begin(Operation::Inspect);
        assert!(counters.begin(Operation::InspectHere).is_none());
        assert!(counters.begin(Operation::GetHere).is_none());
        assert!(counters.begin(Operation::Flush).is_none());
        drop((first, second));
        let third = counters.begin(Operation::Get);
        drop(third);
        let expected = Stats {
            inspections: 1,
            gets: 2,
            most_at_once: 2,
            ..Stats::default()
        };
        assert_eq!(counters.stats(), expected);
        assert_eq!(counters.stats().calls(), 3);
    }
}
