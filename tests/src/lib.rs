//! What the integration tests, the demo and the benchmarks share.
#![cfg(target_os = "linux")]

pub mod device;
