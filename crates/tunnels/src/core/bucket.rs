//! A token bucket.

use super::Now;

/// Allows `rate` events per second, and as many at once after a second of rest.
#[derive(Debug, Clone)]
pub(crate) struct Bucket {
    rate: f64,
    tokens: f64,
    at: Now,
}

impl Bucket {
    pub fn new(rate: u32, now: Now) -> Self {
        let rate = f64::from(rate);
        Bucket {
            rate,
            tokens: rate,
            at: now,
        }
    }

    pub fn take(&mut self, now: Now) -> bool {
        let passed = now.saturating_sub(self.at);
        self.at = self.at.max(now);
        self.tokens = (self.tokens + passed.as_secs_f64() * self.rate).min(self.rate);
        if self.tokens < 1.0 {
            return false;
        }
        self.tokens -= 1.0;
        true
    }

    /// Gives back what was taken for an event that need not count.
    pub fn refund(&mut self) {
        self.tokens = (self.tokens + 1.0).min(self.rate);
    }
}
