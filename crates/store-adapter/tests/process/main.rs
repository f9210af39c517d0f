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
    // What `cargo test` passes on to every test program.
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "--list") {
        scenarios
            .iter()
            .for_each(|(name, _)| println!("{name}: test"));
        return;
    }
    let filters: Vec<&String> = arguments
        .iter()
        .filter(|argument| !argument.starts_with('-'))
        .collect();
    for (name, scenario) in scenarios {
        if filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str())) {
            println!("test {name} ...");
            scenario();
            println!("test {name} ... ok");
        }
    }
}
