//! The bounds of everything that a node's tunnels hold in memory or do for others.

use std::time::Duration;

/// The largest `app_call` message, and the largest reply, that Veilid carries, in bytes.
pub const MAX_MESSAGE: usize = 32_768;

/// Bounds and timings of a node's tunnels. Take the defaults and change single fields:
///
/// ```
/// let limits = tunnels::Limits { calls_in_flight: 16, ..Default::default() };
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Sessions that the listeners of this node serve at once, all together. Beyond that a new one takes the place of one of the listener that has
    /// most: of one without streams, else of one that has long been silent. Default 256.
    pub sessions: usize,
    /// Streams open at once in one session. Default 1,024.
    pub streams_per_session: usize,
    /// Bytes held for one stream in each direction: written and not acknowledged, received and not read. Default 4 MiB,
    /// as much as can be in flight.
    pub buffered_bytes_per_stream: usize,
    /// Bytes held for one session in each direction, beside 32 KiB for each stream. What the other side was allowed to send counts as held, so a
    /// stream may get a smaller window than its own limit allows, an eighth of what is left at a time; it grows as it is read. Default 32 MiB.
    pub buffered_bytes_per_session: usize,
    /// Bytes received and not read in all sessions that this node serves, before calls that bring more are put off. From half of that on, those of
    /// sessions that hold more than an even part of that half, so that no session uses up what others need. Default 128 MiB.
    pub buffered_bytes: usize,
    /// Streams that a session may open per second, with a burst of the same size. Default 2,000.
    pub opens_per_second: u32,
    /// Calls per second, of all strangers together, that get as far as a check of their proof. The rest is refused unread. Default 200.
    pub unproved_per_second: u32,
    /// Bytes of a call and of a reply, at most [`MAX_MESSAGE`] (the default), at least 1,024.
    pub max_message: usize,
    /// Calls that a session has in flight, at most. Within that, it follows what the route carries. Default 128.
    pub calls_in_flight: usize,
    /// Replies that wait for data at once on this node. Each occupies one of Veilid's RPC workers. Default 4.
    pub held_replies: usize,
    /// How long a reply may wait for data. Default 500 ms.
    pub hold: Duration,
    /// A session that makes no call for this long is forgotten by whoever serves it. Default 120 s.
    pub idle_session: Duration,
    /// A session that has work to do and hears nothing for this long fails its streams. Default 60 s.
    pub give_up: Duration,
    /// How long a few written bytes wait for more before they are sent anyway. Default 2 ms.
    pub coalesce: Duration,
    /// How long Veilid itself waits for a reply (`network.rpc.timeout_ms`); our own timer stays below. Default 5 s.
    pub call_timeout: Duration,
    /// Calls that wait for this node's attention before further ones are dropped. Default 256.
    pub call_queue: usize,
    /// Incoming streams that nobody accepted yet, per listener, before further ones are refused. Default 1,024.
    pub accept_queue: usize,
    /// Pauses between attempts to allocate or find a route grow from 1/40 of this up to this. Default 10 s.
    pub route_backoff: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            sessions: 256,
            streams_per_session: 1_024,
            buffered_bytes_per_stream: 4 << 20,
            buffered_bytes_per_session: 32 << 20,
            buffered_bytes: 128 << 20,
            opens_per_second: 2_000,
            unproved_per_second: 200,
            max_message: MAX_MESSAGE,
            calls_in_flight: 128,
            held_replies: 4,
            hold: Duration::from_millis(500),
            idle_session: Duration::from_secs(120),
            give_up: Duration::from_secs(60),
            coalesce: Duration::from_millis(2),
            call_timeout: Duration::from_secs(5),
            call_queue: 256,
            accept_queue: 1_024,
            route_backoff: Duration::from_secs(10),
        }
    }
}

impl Limits {
    /// The same limits, each brought into the range where the protocol works.
    pub(crate) fn checked(mut self) -> Self {
        self.max_message = self.max_message.clamp(1_024, MAX_MESSAGE);
        self.sessions = self.sessions.max(1);
        self.streams_per_session = self.streams_per_session.max(1);
        self.buffered_bytes_per_stream = self
            .buffered_bytes_per_stream
            .max(crate::core::INITIAL_WINDOW);
        self.calls_in_flight = self.calls_in_flight.max(1);
        self.call_queue = self.call_queue.max(1);
        self.accept_queue = self.accept_queue.max(1);
        self
    }
}
