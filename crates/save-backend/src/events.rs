//! What happens, as a stream of numbered events.

use std::sync::{Mutex, PoisonError};

use group::GroupEvent;
use tokio::sync::broadcast;

use crate::GroupId;

/// Events that a slow listener may fall behind before it misses some.
const BACKLOG: usize = 1024;

/// Something that happened.
#[derive(Clone, Debug)]
pub struct Event {
    /// Counts up by one with each event of a backend, from 1; a gap means that events were missed.
    pub seq: u64,
    /// What happened.
    pub kind: EventKind,
}

/// What happened.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum EventKind {
    /// The device came onto the network, or left it.
    Network {
        /// Whether it can reach others now.
        online: bool,
    },
    /// This device is in a group that it was not in before.
    GroupAdded {
        /// Which.
        group: GroupId,
    },
    /// This device is in a group no more: it left, or forgot it.
    GroupRemoved {
        /// Which.
        group: GroupId,
    },
    /// Nothing is left here of a group that was left or forgotten. If it was left, the others know.
    GroupLeft {
        /// Which.
        group: GroupId,
    },
    /// Something in a group.
    Group {
        /// Which.
        group: GroupId,
        /// What.
        event: GroupEvent,
    },
    /// A storage node of the DHT served an older value than this device has seen. It was ignored, and the newer one is published
    /// again.
    Rollback {
        /// The counter that was seen before.
        seen: u64,
        /// The counter that came now.
        got: u64,
    },
    /// The backend stopped; no event follows.
    Stopped,
}

/// Numbers events and hands them to whoever listens.
pub(crate) struct Events {
    seq: Mutex<u64>,
    sender: broadcast::Sender<Event>,
}

impl Default for Events {
    fn default() -> Self {
        Self {
            seq: Mutex::new(0),
            sender: broadcast::Sender::new(BACKLOG),
        }
    }
}

impl Events {
    pub(crate) fn emit(&self, kind: EventKind) {
        // Sent under the lock, so that events arrive in the order of their numbers.
        let mut seq = self.seq.lock().unwrap_or_else(PoisonError::into_inner);
        *seq += 1;
        // Nobody listening is fine.
        let _ = self.sender.send(Event { seq: *seq, kind });
    }

    /// Leaves a gap in the numbers for events that were missed on the way here.
    pub(crate) fn skip(&self, missed: u64) {
        *self.seq.lock().unwrap_or_else(PoisonError::into_inner) += missed;
    }

    pub(crate) fn subscribe(&self) -> EventStream {
        EventStream {
            receiver: self.sender.subscribe(),
        }
    }
}

/// The events from the moment of subscribing on.
#[derive(Debug)]
pub struct EventStream {
    receiver: broadcast::Receiver<Event>,
}

impl EventStream {
    /// The next event; `None` once the backend is gone. Where a slow listener missed events, the sequence number jumps.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            match self.receiver.recv().await {
                Ok(event) => return Some(event),
                Err(broadcast::error::RecvError::Lagged(missed)) => {
                    tracing::debug!(missed, "a listener missed events");
                }
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }
}
