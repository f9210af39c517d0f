//! What needs processes of its own: being killed at any moment, and a disk that is full.
//!
//! The processes that are killed are this same program, told by an environment variable what to be.
#![allow(clippy::unwrap_used)] // a test that unwraps an error fails, which is what it is for

mod child;
mod crash;
mod facts;
mod full;
#[path = "../store/support.rs"]
#[allow(dead_code)] // the other tests use the rest
mod support;

use libtest_mimic::{Arguments, Trial};

/// Set for the processes that this program starts: what they are to do.
const ROLE: &str = "SAVE_STORE_TEST_ROLE";
/// Where they do it.
const DIR: &str = "SAVE_STORE_TEST_DIR";

fn main() {
    match std::env::var(ROLE).as_deref() {
        Ok("crash") => return child::run(),
        Ok("full") => return full::child(),
        _ => {}
    }
    let scenarios: [(&str, fn()); 2] = [
        ("killed_at_any_moment", crash::run),
        ("full_disk", full::run),
    ];
    let trials = scenarios
        .map(|(name, scenario)| {
            Trial::test(name, move || {
                scenario();
                Ok(())
            })
        })
        .into();
    // Each has workers of its own.
    let arguments = Arguments {
        test_threads: Some(1),
        ..Arguments::from_args()
    };
    libtest_mimic::run(&arguments, trials).exit();
}
