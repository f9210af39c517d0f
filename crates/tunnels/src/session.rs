//! The side that calls.

use std::time::Duration;

use crate::{RecvStream, Result, SendStream, SessionId};

/// A session with a listener. Cheap to clone. When the last clone and the last stream are dropped, what was written is delivered and the session ends.
#[derive(Clone)]
pub struct Session {}

impl Session {
    /// The id under which the other side knows this session. A session that was idle for long goes on under a new one.
    pub fn id(&self) -> SessionId {
        SessionId::from_bytes([0; 16])
    }

    /// Calls the other side and says how long its answer took.
    ///
    /// # Errors
    /// [`Unreachable`](crate::Error::Unreachable), [`NoRoute`](crate::Error::NoRoute), [`Refused`](crate::Error::Refused),
    /// [`Busy`](crate::Error::Busy) or [`Closed`](crate::Error::Closed).
    pub async fn ping(&self) -> Result<Duration> {
        Err(crate::Error::Closed)
    }

    /// Opens a stream. Sends nothing by itself: the opening travels with the first bytes, or after a moment without any.
    ///
    /// # Errors
    /// [`TooManyStreams`](crate::Error::TooManyStreams) at once, or [`Closed`](crate::Error::Closed).
    pub async fn open(&self, protocol: u16) -> Result<(SendStream, RecvStream)> {
        let _ = protocol;
        Err(crate::Error::Closed)
    }

    /// Ends the session at once: all of its streams fail, here and on the other side. What was not delivered yet is lost.
    pub fn close(&self) {}
}
