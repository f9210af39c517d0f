//! How fast a holder is, and how far away.

use std::time::Duration;

use super::Now;

/// Bytes are counted over at least so long before they change the rate.
const WINDOW: Duration = Duration::from_millis(300);
/// What a new window weighs.
const WEIGHT: f64 = 0.4;

/// How fast a holder is, and how far away.
#[derive(Debug, Default)]
pub(crate) struct Rate {
    per_second: Option<f64>,
    /// The time from a request to its first byte, lately.
    latency: Option<Duration>,
    since: Option<Now>,
    bytes: u64,
}

impl Rate {
    /// Bytes came in.
    pub(crate) fn came(&mut self, bytes: u64, now: Now) {
        self.bytes += bytes;
        let Some(since) = self.since else {
            // What came first says nothing of the time before.
            self.since = Some(now);
            self.bytes = 0;
            return;
        };
        let time = now.saturating_sub(since);
        if time >= WINDOW {
            // Precise enough: nobody sends 2^53 bytes in a moment.
            let new = self.bytes as f64 / time.as_secs_f64();
            self.per_second = Some(
                self.per_second
                    .map_or(new, |old| old * (1.0 - WEIGHT) + new * WEIGHT),
            );
            self.since = Some(now);
            self.bytes = 0;
        }
    }

    /// The first byte of a request came after so long.
    pub(crate) fn answered_after(&mut self, time: Duration) {
        self.latency = Some(self.latency.map_or(time, |old| (old * 3 + time) / 4));
    }

    /// Nothing is asked any more, so the time that comes now does not count.
    pub(crate) fn pause(&mut self) {
        self.since = None;
        self.bytes = 0;
    }

    /// Bytes per second, once that was measured.
    pub(crate) fn bytes_per_second(&self) -> Option<f64> {
        self.per_second
    }

    /// The time from a request to its first byte, as it was lately: on a busy way, what waits in its queues is a good part of it.
    pub(crate) fn latency(&self) -> Duration {
        self.latency.unwrap_or(Duration::from_millis(100))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latency_is_the_usual_one_and_no_exception() {
        let mut rate = Rate::default();
        assert_eq!(rate.latency(), Duration::from_millis(100));
        for _ in 0..20 {
            rate.answered_after(Duration::from_millis(200));
        }
        assert_eq!(rate.latency(), Duration::from_millis(200));
        // One that finds the way empty.
        rate.answered_after(Duration::from_millis(20));
        assert_eq!(rate.latency(), Duration::from_millis(155));
        for _ in 0..20 {
            rate.answered_after(Duration::from_millis(200));
        }
        assert!(rate.latency() > Duration::from_millis(199));
    }
}
