//! Measured round trips, and how long to wait for a reply (after RFC 6298).

use std::time::Duration;

/// Before anything was measured. A first call may have to build routes.
const INITIAL: Duration = Duration::from_millis(2_500);
const MIN_RTO: Duration = Duration::from_millis(500);

#[derive(Debug, Clone, Default)]
pub(crate) struct Rtt {
    smooth: Option<(Duration, Duration)>,
    /// Doublings since the last reply.
    backoff: u32,
}

impl Rtt {
    pub fn sample(&mut self, rtt: Duration) {
        self.backoff = 0;
        self.smooth = Some(match self.smooth {
            None => (rtt, rtt / 2),
            Some((smooth, variation)) => (
                (smooth * 7 + rtt) / 8,
                (variation * 3 + smooth.abs_diff(rtt)) / 4,
            ),
        });
    }

    /// A reply came, too late to be measured.
    pub fn heard(&mut self) {
        self.backoff = 0;
    }

    pub fn timed_out(&mut self) {
        self.backoff = (self.backoff + 1).min(2);
    }

    /// How long to wait for a reply that is not held, at most `limit`.
    pub fn rto(&self, limit: Duration) -> Duration {
        let base = self
            .smooth
            .map_or(INITIAL, |(smooth, variation)| smooth + 4 * variation);
        (base.max(MIN_RTO) * (1 << self.backoff)).min(limit)
    }

    pub fn variation(&self) -> Duration {
        self.smooth
            .map_or(Duration::ZERO, |(_, variation)| variation)
    }

    pub fn smooth(&self) -> Option<Duration> {
        self.smooth.map(|(smooth, _)| smooth)
    }
}
