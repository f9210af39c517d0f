//! Where the time comes from.

use std::{
    fmt,
    time::{SystemTime, UNIX_EPOCH},
};

/// Gives the time. A parameter, so that tests need not wait.
pub trait Clock: Send + Sync + fmt::Debug {
    /// Seconds since 1970, UTC.
    fn now(&self) -> u64;
}

/// The system's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> u64 {
        // A clock before 1970 is not set; nothing here depends on it being right.
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs())
    }
}
