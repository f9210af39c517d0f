//! Garbage collection when it is asked for.
//!
//! iroh's file store collects in a loop of its own and has no "now". Its loop asks a callback before each round; ours
//! waits in that callback until somebody wants a round, so nothing wakes up in between. The call after a round is the
//! sign that the round is over.

use std::{collections::HashSet, sync::Arc, time::Duration};

use iroh_blobs::{
    Hash,
    store::{GcConfig, ProtectCb, ProtectOutcome},
};
use tokio::sync::{Mutex, OwnedRwLockWriteGuard, mpsc, oneshot};

/// The loop's pause between two rounds. It only matters to callers who ask again at once.
const PAUSE: Duration = Duration::from_millis(1);

/// What one garbage collection did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct GcReport {
    /// Blobs that were removed, partial ones included.
    pub removed_blobs: u64,
    /// Their bytes, as [`Usage::bytes`](crate::Usage::bytes) counts them.
    pub removed_bytes: u64,
    /// Blobs that are still there.
    pub kept_blobs: u64,
}

/// One round: what to keep, and whom to tell.
pub(crate) struct Round {
    pub(crate) live: HashSet<Hash>,
    /// Held for the whole round, even when the one who asked has gone away.
    pub(crate) gate: OwnedRwLockWriteGuard<()>,
    pub(crate) done: oneshot::Sender<()>,
}

/// Makes the configuration for the file store, and the way to ask it for a round.
pub(crate) fn on_demand() -> (GcConfig, mpsc::Sender<Round>) {
    let (ask, asked) = mpsc::channel::<Round>(1);
    let state = Arc::new(Mutex::new(Waiting {
        asked,
        running: None,
    }));
    let callback: ProtectCb = Arc::new(move |live| {
        let state = state.clone();
        Box::pin(async move {
            let mut state = state.lock().await;
            state.finish();
            match state.asked.recv().await {
                Some(Round {
                    live: keep,
                    gate,
                    done,
                }) => {
                    live.extend(keep);
                    state.running = Some((gate, done));
                    ProtectOutcome::Continue
                }
                // The store was dropped; its loop ends with it, and must not collect until then.
                None => std::future::pending().await,
            }
        })
    });
    (
        GcConfig {
            interval: PAUSE,
            add_protected: Some(callback),
        },
        ask,
    )
}

struct Waiting {
    asked: mpsc::Receiver<Round>,
    running: Option<(OwnedRwLockWriteGuard<()>, oneshot::Sender<()>)>,
}

impl Waiting {
    fn finish(&mut self) {
        if let Some((gate, done)) = self.running.take() {
            drop(gate);
            // Whoever asked may have gone away meanwhile; the round is over either way.
            let _ = done.send(());
        }
    }
}
