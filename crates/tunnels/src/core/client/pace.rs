//! How many calls a session has in flight.

use std::time::Duration;

/// Calls in flight at the start.
const START: f64 = 4.0;
/// At least one call beside one that is held.
const LEAST: f64 = 2.0;
/// Replies that take longer do not make the window grow: Veilid gives up after five seconds.
const SLOW: Duration = Duration::from_millis(2_000);

/// The window grows by one for every full reply in time until something is lost, then by one for every round; it halves, once a round, on a loss.
/// Within it, `polls` calls at most are made only to fetch what the other side has.
#[derive(Debug)]
pub(crate) struct Pace {
    most: f64,
    window: f64,
    threshold: f64,
    polls: usize,
    /// Losses of calls below are part of one that was acted on.
    recovered: u64,
    /// The newest call that was answered.
    newest: Option<u64>,
}

impl Pace {
    pub fn new(most: usize) -> Self {
        let most = (most as f64).max(LEAST);
        Pace {
            most,
            window: START.min(most),
            threshold: most,
            polls: 1,
            recovered: 0,
            newest: None,
        }
    }

    /// Begins anew on another route.
    pub fn restart(&mut self) {
        self.window = START.min(self.most);
        self.threshold = self.most;
        self.polls = 1;
    }

    /// Calls that may be in flight.
    pub fn window(&self) -> usize {
        // Between 2 and `most`, so the conversion keeps the value.
        self.window as usize
    }

    /// Calls that may be in flight when none of them carries anything.
    pub fn polls(&self) -> usize {
        self.polls.clamp(1, (self.window() - 1).max(1))
    }

    /// A reply came in time. `full`: it or its call was rather full; `useful`: it carried something; `wanted` and `sends`: further
    /// calls that the other side and this side could fill; `in_flight`: those that are under way.
    #[allow(
        clippy::too_many_arguments,
        reason = "one fact each, all of them plain numbers"
    )]
    pub fn answered(
        &mut self,
        number: u64,
        full: bool,
        useful: bool,
        wanted: u64,
        sends: u64,
        in_flight: usize,
        took: Duration,
    ) {
        let could = usize::try_from(wanted.saturating_add(sends)).unwrap_or(usize::MAX);
        if full && could > in_flight && took < SLOW {
            self.window = (self.window
                + if self.window < self.threshold {
                    1.0
                } else {
                    1.0 / self.window
                })
            .min(self.most);
        }
        if self.newest.is_some_and(|newest| newest > number) {
            return;
        }
        self.newest = Some(number);
        let wanted = usize::try_from(wanted).unwrap_or(usize::MAX);
        // One reply that finds little to fetch does not mean that the source has dried up: come down one by one.
        self.polls = if wanted == 0 && !useful {
            self.polls.saturating_sub(1)
        } else {
            wanted.max(self.polls.saturating_sub(1))
        };
        self.polls = self.polls.clamp(1, self.most as usize);
    }

    pub fn lost(&mut self, number: u64, next: u64) {
        if number < self.recovered {
            return;
        }
        self.recovered = next;
        self.threshold = (self.window / 2.0).max(LEAST);
        self.window = self.threshold;
    }
}
