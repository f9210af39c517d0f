//! How far a fetch has come.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};

/// What is happening to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FetchState {
    /// Wanted, not looked for yet.
    Queued,
    /// The members are being asked who has it.
    Finding,
    /// Bytes are coming in; each is verified before it counts.
    Fetching,
    /// All bytes are here and the whole is being checked.
    Verifying,
    /// Verified and on disk.
    Stored,
}

/// How far a fetch has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FetchProgress {
    /// What is happening.
    pub state: FetchState,
    /// Verified bytes that are here, sealed as they travel.
    pub bytes_done: u64,
    /// All bytes, where known.
    pub bytes_total: Option<u64>,
}

/// Told of progress; called often, so it has to return quickly.
pub type OnProgress = Arc<dyn Fn(FetchProgress) + Send + Sync>;

/// Counts and reports.
pub(crate) struct Reporter {
    done: AtomicU64,
    total: Option<u64>,
    /// What was reported last.
    state: Mutex<Option<FetchState>>,
    report: Option<OnProgress>,
}

impl Reporter {
    /// A reporter that starts with `done` bytes here already.
    pub(crate) fn new(done: u64, total: Option<u64>, report: Option<OnProgress>) -> Self {
        Self {
            done: AtomicU64::new(done),
            total,
            state: Mutex::new(None),
            report,
        }
    }

    /// One that nobody listens to.
    pub(crate) fn silent() -> Self {
        Self::new(0, None, None)
    }

    /// Changes the state, and reports it if it is a new one.
    pub(crate) fn state(&self, state: FetchState) {
        {
            let mut current = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            if current.replace(state) == Some(state) {
                return;
            }
        }
        self.emit();
    }

    /// So many verified bytes are here.
    pub(crate) fn reached(&self, bytes: u64) {
        if self.done.fetch_max(bytes, Ordering::Relaxed) < bytes {
            self.emit();
        }
    }

    fn emit(&self) {
        let Some(report) = &self.report else { return };
        let done = self.done.load(Ordering::Relaxed);
        let state = *self.state.lock().unwrap_or_else(PoisonError::into_inner);
        report(FetchProgress {
            state: state.unwrap_or(FetchState::Queued),
            // A piece asked twice near the end can count twice.
            bytes_done: self.total.map_or(done, |total| done.min(total)),
            bytes_total: self.total,
        });
    }
}
