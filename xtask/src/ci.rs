//! What has to pass before a change lands.

use std::time::{Duration, Instant};

use crate::run::{Result, Run, cargo};

/// A check, by name.
type Step = (&'static str, fn() -> Result<()>);

/// Runs all checks in order, and stops at the first that fails.
pub(crate) fn run() -> Result<()> {
    let begin = Instant::now();
    let mut times = Vec::new();
    let steps: [Step; 5] = [
        ("format", format),
        ("lints", lints),
        ("tests", || crate::test(&[])),
        ("documentation", documentation),
        ("dependencies", dependencies),
    ];
    for (name, step) in steps {
        println!("\n== {name}");
        let start = Instant::now();
        let outcome = step();
        times.push((name, start.elapsed()));
        if let Err(failure) = outcome {
            println!("\n== {name} failed after {}", minutes(start.elapsed()));
            return Err(failure);
        }
    }
    println!();
    for (name, time) in times {
        println!("== {name}: {}", minutes(time));
    }
    println!("== all: {}", minutes(begin.elapsed()));
    Ok(())
}

fn minutes(time: Duration) -> String {
    format!("{} min {:02} s", time.as_secs() / 60, time.as_secs() % 60)
}

fn format() -> Result<()> {
    cargo(["fmt", "--all", "--check"]).run()
}

fn lints() -> Result<()> {
    cargo([
        "clippy",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ])
    .run()
}

fn documentation() -> Result<()> {
    cargo(["doc", "--workspace", "--no-deps"])
        .env("RUSTDOCFLAGS", "-D warnings")
        .run()
}

fn dependencies() -> Result<()> {
    if !cargo(["deny", "--version"]).succeeds() {
        return Err(crate::run::Failure::new(
            "cargo-deny is missing: cargo install --locked cargo-deny",
        ));
    }
    cargo([
        "deny",
        "--all-features",
        "check",
        "licenses",
        "bans",
        "sources",
    ])
    .run()?;
    advisories()
}

/// Advisories come from a database on the internet; where that cannot be reached, what is known is that nothing was checked.
fn advisories() -> Result<()> {
    let reachable = Run::new("git")
        .args([
            "-c",
            "http.lowSpeedLimit=1000",
            "-c",
            "http.lowSpeedTime=10",
        ])
        .args([
            "ls-remote",
            "--exit-code",
            "https://github.com/RustSec/advisory-db",
            "HEAD",
        ])
        .env("GIT_TERMINAL_PROMPT", "0")
        .succeeds();
    if reachable {
        cargo(["deny", "--all-features", "check", "advisories"]).run()
    } else {
        println!("advisories: not checked, since their database cannot be reached from here");
        Ok(())
    }
}
