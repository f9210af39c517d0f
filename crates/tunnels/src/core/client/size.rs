//! How large messages are.
//!
//! A message of 32 KiB travels as some 25 datagrams, of which one lost loses all. So the size follows what arrives: for each size the share of
//! messages that arrived is kept, and where that is not known, it is guessed as if each datagram were lost by itself. The size is the
//! one that brings most through.

/// What a message costs beside its payload: routing headers of several hops, and the call or reply on the other way.
const OVERHEAD: f64 = 700.0;
/// The smallest size: one datagram.
const SMALLEST: usize = 1_024;
/// What one outcome leaves of those before it.
const KEEP: f64 = 0.98;
/// Outcomes of a size that need no trial; a guess weighs as much as `GUESS` of them.
const ENOUGH: f64 = 8.0;
const GUESS: f64 = 4.0;
/// How much better a smaller size has to be.
const BETTER: f64 = 1.05;
/// As how many outcomes a loss counts where nothing arrives at all.
const SILENT: f64 = 4.0;
/// One in so many messages tries the next larger size where that is not known.
const TRY: u32 = 16;

#[derive(Debug, Clone, Copy)]
struct Class {
    size: usize,
    arrived: f64,
    lost: f64,
}

impl Class {
    fn outcomes(&self) -> f64 {
        self.arrived + self.lost
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Sizes {
    /// From small to large.
    classes: Vec<Class>,
    current: usize,
    sent: u32,
}

impl Sizes {
    pub fn new(largest: usize) -> Self {
        let mut classes = vec![largest];
        while let Some(&last) = classes.last()
            && last / 2 >= SMALLEST
        {
            classes.push(last / 2);
        }
        let classes: Vec<Class> = classes
            .into_iter()
            .rev()
            .map(|size| Class {
                size,
                arrived: 0.0,
                lost: 0.0,
            })
            .collect();
        Sizes {
            current: classes.len() - 1,
            classes,
            sent: 0,
        }
    }

    pub fn current(&self) -> usize {
        self.classes
            .get(self.current)
            .map_or(SMALLEST, |class| class.size)
    }

    pub fn largest(&self) -> usize {
        self.classes.last().map_or(SMALLEST, |class| class.size)
    }

    /// The size of the next message, which may be a trial of a larger one.
    pub fn next(&mut self) -> usize {
        self.sent = self.sent.wrapping_add(1);
        match self.classes.get(self.current + 1) {
            Some(larger) if self.sent.is_multiple_of(TRY) && larger.outcomes() < ENOUGH => {
                larger.size
            }
            _ => self.current(),
        }
    }

    pub fn arrived(&mut self, size: usize) {
        self.outcome(size, |class| class.arrived += 1.0);
    }

    /// `silent`: nothing at all arrives, so that there is no time to be sure.
    pub fn lost(&mut self, size: usize, silent: bool) {
        let weight = if silent { SILENT } else { 1.0 };
        self.outcome(size, |class| class.lost += weight);
    }

    /// What was counted as lost arrived after all.
    pub fn late(&mut self, size: usize) {
        self.outcome(size, |class| {
            class.lost = (class.lost - 1.0).max(0.0);
            class.arrived += 1.0;
        });
    }

    /// Counts for the smallest class that holds `size` bytes.
    fn outcome(&mut self, size: usize, count: impl Fn(&mut Class)) {
        let index = self.classes.partition_point(|class| class.size < size);
        for class in &mut self.classes {
            class.arrived *= KEEP;
            class.lost *= KEEP;
        }
        if let Some(class) = self.classes.get_mut(index) {
            count(class);
        }
        self.choose();
    }

    fn choose(&mut self) {
        let Some(now) = self.score(self.current) else {
            return;
        };
        // The neighbours alone: what is further away is a guess upon a guess.
        let (smaller, larger) = (self.current.checked_sub(1), self.current + 1);
        // To the larger one for any gain: fewer messages are less work as well.
        for (index, better) in [(Some(larger), 1.0), (smaller, BETTER)] {
            if let Some(index) = index
                && self.score(index).is_some_and(|score| score > now * better)
            {
                self.current = index;
                return;
            }
        }
    }

    /// The part of what is sent in messages of this size that arrives as payload.
    fn score(&self, index: usize) -> Option<f64> {
        let class = self.classes.get(index)?;
        let arrives = (class.arrived + GUESS * self.guess(index)) / (class.outcomes() + GUESS);
        let size = class.size as f64;
        Some(arrives * size / (size + OVERHEAD))
    }

    /// The share that should arrive, going by the other sizes, and by hope for as much as one outcome.
    fn guess(&self, index: usize) -> f64 {
        let Some(class) = self.classes.get(index) else {
            return 1.0;
        };
        let (mut sum, mut weight) = (1.0, 1.0);
        for (other, known) in self.classes.iter().enumerate() {
            let outcomes = known.outcomes();
            if other != index && outcomes > 0.0 {
                // Where nothing is lost, nothing speaks against larger ones, however small these are.
                let arrives = (known.arrived + 1.0) / (outcomes + 1.0);
                // What is near says more.
                let near = outcomes / (other.abs_diff(index) as f64);
                sum += near * arrives.powf(class.size as f64 / known.size as f64);
                weight += near;
            }
        }
        sum / weight
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::sim::Rng;
    use super::*;

    /// Sends messages whose datagrams are lost with this probability in 1,000, and messages in 100. Returns the size that was used most.
    fn run(sizes: &mut Sizes, datagrams: u64, messages: u64) -> usize {
        let mut rng = Rng(7);
        let mut counts = std::collections::BTreeMap::<usize, u32>::new();
        for turn in 0..6_000 {
            let size = sizes.next();
            let lost = rng.chance(messages)
                || (0..=size.div_ceil(1_200)).any(|_| rng.next() % 1_000 < datagrams);
            if lost {
                sizes.lost(size, false);
            } else {
                sizes.arrived(size);
            }
            if turn > 1_000 {
                *counts.entry(sizes.current()).or_default() += 1;
            }
        }
        counts.into_iter().max_by_key(|&(_, n)| n).unwrap().0
    }

    #[test]
    fn the_size_fits_the_losses_and_grows_back() {
        let mut sizes = Sizes::new(32_768);
        assert_eq!(run(&mut sizes, 0, 0), 32_768);
        assert!(run(&mut sizes, 1, 0) >= 16_384);
        let some = run(&mut sizes, 10, 0);
        assert!((4_096..=16_384).contains(&some), "{some}");
        let many = run(&mut sizes, 100, 0);
        assert!((1_024..=4_096).contains(&many), "{many}");
        assert_eq!(run(&mut sizes, 0, 0), 32_768);
    }

    #[test]
    fn nothing_but_losses_makes_messages_smaller() {
        let mut sizes = Sizes::new(32_768);
        for size in [100, 1_000, 2_000, 5_000, 12_000, 30_000] {
            for _ in 0..200 {
                sizes.arrived(size);
                assert_eq!(sizes.current(), 32_768, "after {size} bytes");
            }
        }
    }

    #[test]
    fn losses_that_small_messages_do_not_avoid_leave_them_large() {
        let few = run(&mut Sizes::new(32_768), 0, 5);
        assert!(few >= 16_384, "{few}");
    }
}
