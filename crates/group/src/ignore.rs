//! Members who do not answer, or lie, are left alone for a growing while.

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;

/// Why a member is being left alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// No answer in time, or the tunnel could not be built.
    Silent,
    /// It says what it has, and again and again does not bring what it is asked for.
    Stalling,
    /// A byte that did not match its hash.
    Lied,
    /// So slow that others again and again had to do its part of the work.
    Starving,
}

/// A member who is being left alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ignored {
    /// Why.
    pub fault: Fault,
    /// How often in a row.
    pub strikes: u32,
    /// For how much longer.
    pub remaining: Duration,
}

/// First delay after silence, and after transfers that failed; it doubles with each further strike.
const SILENT_BASE: Duration = Duration::from_secs(2);
/// First delay after starving others.
const STARVING_BASE: Duration = Duration::from_secs(15);
/// First delay after a lie.
const LIED_BASE: Duration = Duration::from_secs(60);
/// No delay is longer.
const LONGEST: Duration = Duration::from_secs(600);

#[derive(Debug)]
struct Strike {
    fault: Fault,
    strikes: u32,
    until: Instant,
}

/// The members who are being left alone, by a key of the caller's.
#[derive(Debug)]
pub(crate) struct IgnoreList<K> {
    strikes: HashMap<K, Strike>,
}

impl<K> Default for IgnoreList<K> {
    fn default() -> Self {
        Self {
            strikes: HashMap::new(),
        }
    }
}

impl<K: std::hash::Hash + Eq> IgnoreList<K> {
    /// Records a fault: the delay doubles with each one in a row. Who behaved for long begins anew.
    pub(crate) fn strike(&mut self, key: K, fault: Fault, now: Instant) {
        self.strikes
            .retain(|_, strike| now < strike.until + LONGEST);
        let entry = self.strikes.entry(key).or_insert(Strike {
            fault,
            strikes: 0,
            until: now,
        });
        // A lie is not forgotten for being silent as well.
        if entry.fault != Fault::Lied || entry.until <= now {
            entry.fault = fault;
        }
        entry.strikes = entry.strikes.saturating_add(1);
        let base = match fault {
            Fault::Silent | Fault::Stalling => SILENT_BASE,
            Fault::Lied => LIED_BASE,
            Fault::Starving => STARVING_BASE,
        };
        let doublings = entry.strikes.saturating_sub(1).min(16);
        let until = now + base.saturating_mul(1 << doublings).min(LONGEST);
        entry.until = entry.until.max(until);
    }

    /// Forgets all faults of one who behaved.
    pub(crate) fn forgive(&mut self, key: &K) {
        self.strikes.remove(key);
    }

    /// Forgets the silence of one who answered. Nothing else is made good by an answer.
    pub(crate) fn heard(&mut self, key: &K) {
        if self
            .strikes
            .get(key)
            .is_some_and(|strike| strike.fault == Fault::Silent)
        {
            self.strikes.remove(key);
        }
    }

    /// Whether, why and for how long `key` is being left alone.
    pub(crate) fn ignored(&self, key: &K, now: Instant) -> Option<Ignored> {
        let strike = self.strikes.get(key)?;
        let remaining = strike.until.checked_duration_since(now)?;
        if remaining.is_zero() {
            return None;
        }
        Some(Ignored {
            fault: strike.fault,
            strikes: strike.strikes,
            remaining,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_delay_doubles_up_to_a_limit_and_ends() {
        let mut list = IgnoreList::default();
        let now = Instant::now();
        assert_eq!(list.ignored(&1, now), None);
        let mut last = Duration::ZERO;
        for strikes in 1..=20 {
            list.strike(1, Fault::Silent, now);
            let ignored = list.ignored(&1, now).unwrap();
            assert_eq!(ignored.strikes, strikes);
            assert!(ignored.remaining >= last && ignored.remaining <= LONGEST);
            last = ignored.remaining;
        }
        assert_eq!(last, LONGEST);
        assert_eq!(list.ignored(&1, now + LONGEST), None);
        // Who was quiet for long is not remembered, whoever comes.
        let later = now + 2 * LONGEST;
        list.strike(2, Fault::Silent, later);
        assert_eq!(list.strikes.len(), 1);
        list.strike(1, Fault::Silent, later);
        assert_eq!(list.ignored(&1, later).unwrap().strikes, 1);
    }

    #[test]
    fn a_lie_weighs_more_and_good_behaviour_is_forgiven() {
        let mut list = IgnoreList::default();
        let now = Instant::now();
        list.strike("silent", Fault::Silent, now);
        list.strike("liar", Fault::Lied, now);
        let silent = list.ignored(&"silent", now).unwrap();
        let liar = list.ignored(&"liar", now).unwrap();
        assert!(liar.remaining > silent.remaining);
        list.strike("staller", Fault::Stalling, now);
        for all in ["silent", "liar", "staller"] {
            list.heard(&all);
        }
        assert_eq!(list.ignored(&"silent", now), None);
        assert!(list.ignored(&"liar", now).is_some());
        assert!(list.ignored(&"staller", now).is_some());
        list.strike("liar", Fault::Silent, now);
        assert_eq!(list.ignored(&"liar", now).unwrap().fault, Fault::Lied);
        assert!(list.ignored(&"liar", now).unwrap().remaining >= liar.remaining);
        list.forgive(&"liar");
        assert_eq!(list.ignored(&"liar", now), None);
    }
}
