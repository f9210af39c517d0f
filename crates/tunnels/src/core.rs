//! The protocol itself, without socket, task or clock: input and the time go in, messages to send come out.

pub(crate) mod bucket;
pub(crate) mod client;
pub(crate) mod codec;
pub(crate) mod ranges;
pub(crate) mod recv;
pub(crate) mod rtt;
pub(crate) mod send;
pub(crate) mod server;
pub(crate) mod stream;
pub(crate) mod streams;

#[cfg(test)]
mod sim;
#[cfg(test)]
mod tests;

use std::time::Duration;

/// Bytes that each side may send on a new stream before it hears how much the other side takes.
pub(crate) const INITIAL_WINDOW: usize = 32 * 1024;
/// How long an acknowledgement waits for a call that goes anyway.
pub(crate) const ACK_DELAY: Duration = Duration::from_millis(25);

/// A point in time: the time since an arbitrary origin.
pub(crate) type Now = Duration;

/// Which end of a session it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// Makes the calls.
    Client,
    /// Answers them.
    Server,
}

/// So many cases of a property, the same in each run.
#[cfg(test)]
fn fixed(cases: u32) -> proptest::test_runner::Config {
    proptest::test_runner::Config {
        cases,
        rng_seed: proptest::test_runner::RngSeed::Fixed(2),
        failure_persistence: None,
        ..proptest::test_runner::Config::default()
    }
}
