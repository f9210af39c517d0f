//! Kills a device at each write of a change, starts it again, and checks that it has the old state or the new one, never less.
//!
//! - [`operations`] has the changes, one row each; a change that is added there is tested with the others.
//! - [`Trial`] is one device in a directory of its own. It runs in a process, which is the test program itself, started once more with
//!   `kill-at-write` in front of the C library; and in another one afterwards, which checks what is left.
//! - [`sweep`] does so at every write, or at so many as there is time for: before the write, in the midst of it, and once more while the
//!   device starts again.
//!
//! A test program calls [`child`] before anything else, and [`run`] with its scenarios.
#![cfg(target_os = "linux")]
#![recursion_limit = "256"]
#![allow(
    clippy::unwrap_used,
    reason = "all of this is test code, which may panic"
)]

mod child;
mod device;
mod operation;
pub mod operations;
mod run;
mod sweep;
mod trial;

pub use child::child;
pub use device::{Device, File, LIMIT, sources};
pub use operation::{Operation, State};
pub use run::{Scenario, run};
pub use sweep::{Effort, sweep};
pub use trial::{Check, Kill, Launch, Run, Trial, Witness, launch};
