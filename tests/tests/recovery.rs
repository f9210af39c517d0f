//! Changes that need a network, killed at their writes, on real networks.
#![recursion_limit = "256"]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[cfg(target_os = "linux")]
#[path = "recovery/online.rs"]
mod online;

fn main() {
    #[cfg(target_os = "linux")]
    online::main();
}
