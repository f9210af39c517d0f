#![doc = include_str!("../README.md")]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may panic"))]
// The futures of veilid-core are nested more deeply than the compiler follows by default.
#![recursion_limit = "256"]
#![cfg(unix)]

pub mod args;
pub mod client;
pub mod commands;
pub mod daemon;
pub mod error;
pub mod exit;
pub mod export;
pub mod items;
pub mod keys;
pub mod links;
pub mod ops;
pub mod print;
pub mod prompt;
pub mod protocol;
pub mod qr;
pub mod settings;
pub mod signals;
pub mod socket;
pub mod sources;

pub use commands::main;
