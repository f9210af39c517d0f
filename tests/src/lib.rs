//! What the integration tests, the demo and the benchmarks share.
#![cfg(target_os = "linux")]
// Veilid's futures are nested deeper than the default allows to look.
#![recursion_limit = "256"]

pub mod device;
pub mod peers;
