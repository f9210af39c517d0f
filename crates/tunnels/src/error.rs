//! What can go wrong in a tunnel.

use std::io;
use std::time::Duration;

/// Everything that a tunnel, a session or a stream can fail with.
///
/// The error of a session is given to each of its streams, so it can be cloned.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// This side closed the node's tunnels, the listener or the session. Nothing to do but to connect or listen again.
    #[error("closed on this side")]
    Closed,
    /// The other side closed the session. Connect again if the data is still wanted.
    #[error("closed by the other side (code {code})")]
    PeerClosed {
        /// The code that the other side gave.
        code: u64,
    },
    /// The other side does not know this session any more: it was restarted, or the session was silent for too long.
    /// Open a new stream on the same session and ask again.
    #[error("the other side forgot the session")]
    SessionLost,
    /// Somebody answers on the route but does not accept the proof: the pre-shared keys differ, or whoever listened has stopped.
    #[error("the other side refuses this pre-shared key")]
    Refused,
    /// The other side serves as many sessions as it allows itself. Try again later.
    #[error("the other side has no room for another session")]
    Busy,
    /// The other side has as many streams open in this session, or opened in this second, as it allows. Close some, or try again later.
    #[error("the other side refused the stream: too many")]
    StreamRefused,
    /// This session has as many streams open as [`Limits::streams_per_session`](crate::Limits::streams_per_session) allows. Close some first.
    #[error("more than {limit} streams at once")]
    TooManyStreams {
        /// The limit that was reached.
        limit: usize,
    },
    /// Nothing was heard from the other side for that long, over any route that was to be had. Try again when it is expected to be online.
    #[error("no answer for {} ms", after.as_millis())]
    Unreachable {
        /// How long we tried.
        after: Duration,
    },
    /// No route to the other side was found in that time. Try again when it has published one.
    #[error("no route for {} ms: {reason}", after.as_millis())]
    NoRoute {
        /// How long we tried.
        after: Duration,
        /// What the [`RouteSource`](crate::RouteSource) said last.
        reason: String,
    },
    /// What a [`RouteSource`](crate::RouteSource) returns when it has no route (yet). It is asked again until the session gives up.
    #[error("no route known: {0}")]
    RouteSource(String),
    /// The other side abandoned what it was sending. What was read so far is whole, the rest will not come.
    #[error("stream reset by the other side (code {code})")]
    Reset {
        /// The code given to `reset`.
        code: u64,
    },
    /// The other side stopped reading. Nothing more can be written to this stream.
    #[error("stream stopped by the other side (code {code})")]
    Stopped {
        /// The code given to `stop`; 0 when the receive half was dropped.
        code: u64,
    },
    /// Written to a stream after `finish` or `reset`, or read after `stop`: a mistake of the caller.
    #[error("this half of the stream is finished")]
    Finished,
    /// The stream ended before as many bytes came as were asked for.
    #[error("stream ended after {got} of {wanted} bytes")]
    UnexpectedEnd {
        /// Bytes asked for.
        wanted: usize,
        /// Bytes that came.
        got: usize,
    },
    /// More bytes came than the caller allowed.
    #[error("stream is longer than {limit} bytes")]
    TooLong {
        /// The limit that the caller gave.
        limit: usize,
    },
    /// The other side proved the key but broke the rules of the protocol: a defect or another implementation. The session is over.
    #[error("protocol violation: {0}")]
    Protocol(&'static str),
    /// The Veilid node refused in a way that trying again does not cure, such as a shutdown.
    #[error("veilid: {0}")]
    Veilid(String),
}

/// The result of a tunnel operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Whether the same operation may succeed later without a change of its arguments.
    pub fn is_retryable(&self) -> bool {
        match self {
            Error::PeerClosed { .. }
            | Error::SessionLost
            | Error::Busy
            | Error::StreamRefused
            | Error::TooManyStreams { .. }
            | Error::Unreachable { .. }
            | Error::NoRoute { .. }
            | Error::RouteSource(_) => true,
            Error::Closed
            | Error::Refused
            | Error::Reset { .. }
            | Error::Stopped { .. }
            | Error::Finished
            | Error::UnexpectedEnd { .. }
            | Error::TooLong { .. }
            | Error::Protocol(_)
            | Error::Veilid(_) => false,
        }
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let kind = match &error {
            Error::Closed | Error::PeerClosed { .. } | Error::SessionLost => {
                io::ErrorKind::ConnectionAborted
            }
            Error::Refused => io::ErrorKind::PermissionDenied,
            Error::Busy | Error::StreamRefused | Error::TooManyStreams { .. } => {
                io::ErrorKind::QuotaExceeded
            }
            Error::Unreachable { .. } => io::ErrorKind::TimedOut,
            Error::NoRoute { .. } | Error::RouteSource(_) => io::ErrorKind::HostUnreachable,
            Error::Reset { .. } => io::ErrorKind::ConnectionReset,
            Error::Stopped { .. } => io::ErrorKind::BrokenPipe,
            Error::Finished => io::ErrorKind::NotConnected,
            Error::UnexpectedEnd { .. } => io::ErrorKind::UnexpectedEof,
            Error::TooLong { .. } => io::ErrorKind::FileTooLarge,
            Error::Protocol(_) => io::ErrorKind::InvalidData,
            Error::Veilid(_) => io::ErrorKind::Other,
        };
        io::Error::new(kind, error)
    }
}
