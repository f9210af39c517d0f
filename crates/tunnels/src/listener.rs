//! The side that is called.

use bytes::Bytes;
use tokio::sync::watch;

use crate::{RecvStream, SendStream, SessionId};

/// Listens on a private route, which it replaces when it dies. Dropping it closes it.
pub struct Listener {}

/// A stream that the other side opened.
pub struct Incoming {
    /// The session that it belongs to. All streams with this id come from one client.
    pub session: SessionId,
    /// What the client wants to speak on the stream.
    pub protocol: u16,
    /// What goes to the client.
    pub send: SendStream,
    /// What comes from the client.
    pub recv: RecvStream,
}

impl Listener {
    /// The blob of the current route, to be published; it changes when a dead route was replaced, and is `None` while there is none.
    pub fn route(&self) -> watch::Receiver<Option<Bytes>> {
        watch::channel(None).1
    }

    /// The next stream that a client opens, or `None` once the listener is closed. May be called by several tasks at once.
    pub async fn accept(&self) -> Option<Incoming> {
        None
    }

    /// Ends all sessions of this listener and releases its route.
    pub async fn close(&self) {}
}
