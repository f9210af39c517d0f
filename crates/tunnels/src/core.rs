//! The protocol itself, without socket, task or clock.

/// Bytes that each side may send on a new stream before it hears how much the other side takes.
pub(crate) const INITIAL_WINDOW: usize = 32 * 1024;
