#![doc = include_str!("../README.md")]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may panic"))]

mod core;
mod error;
mod keys;
mod limits;
mod listener;
mod node;
mod session;
mod stream;
mod tunnels;

pub use error::{Error, Result};
pub use keys::{Psk, SessionId};
pub use limits::{Limits, MAX_MESSAGE};
pub use listener::{Incoming, Listener};
pub use session::Session;
pub use stream::{RecvStream, SendStream};
pub use tunnels::{RouteSource, Stats, Tunnels};
