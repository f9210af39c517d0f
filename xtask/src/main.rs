//! `cargo xtask`: what there is to do in this workspace, by one name each.

mod ci;
mod run;

use std::process::ExitCode;

use run::{Result, cargo, in_devnet, prerequisites};

const USAGE: &str = "\
Usage: cargo xtask COMMAND

  demo [ARGUMENT…]     three devices on a Veilid network of their own archive and read files;
                       cargo xtask demo --help tells its arguments
  test [ARGUMENT…]     all tests, those on a network included; arguments go to `cargo test`
  bench [ARGUMENT…]    the benchmarks, in release; cargo xtask bench --help tells their arguments
  devnet [-- COMMAND]  a shell, or COMMAND, on a host of a fresh Veilid network on this machine
  ci                   what has to pass: format, lints, tests, documentation, dependencies

Nothing here needs root or, once the crates are fetched, the internet.";

fn main() -> ExitCode {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.is_empty() {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    }
    let command = arguments.remove(0);
    let done = match command.as_str() {
        "demo" => demo(&arguments),
        "test" => test(&arguments),
        "bench" => bench(&arguments),
        "devnet" => shell(&arguments),
        "ci" => ci::run(),
        "-h" | "--help" | "help" => {
            println!("{USAGE}");
            Ok(())
        }
        _ => {
            eprintln!("cargo xtask: no command is called {command:?}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if let Some(message) = &failure.message {
                eprintln!("cargo xtask {command}: {message}");
            }
            ExitCode::from(failure.code)
        }
    }
}

/// Always the whole workspace: which features a dependency is built with depends on what is built, and a build that asks for
/// less would build Veilid anew.
const WORKSPACE: [&str; 2] = ["build", "--workspace"];

/// All binaries; and one small test, since only with a test among the targets do the features that tests need count, without
/// which Veilid would be built once for the demo and once more for the tests.
const BINARIES: [&str; 3] = ["--bins", "--test", "layers"];

fn demo(arguments: &[String]) -> Result<()> {
    prerequisites()?;
    // What the demo prints is for standard output, so cargo's own words go where they always go.
    cargo(WORKSPACE).args(BINARIES).run()?;
    in_devnet("debug", "save-demo")?.args(arguments).run()
}

pub(crate) fn test(arguments: &[String]) -> Result<()> {
    prerequisites()?;
    // The binaries first: one of them is the runner, and tests start the others. Cargo builds what the arguments ask for
    // beyond that.
    cargo(WORKSPACE).args(BINARIES).run()?;
    cargo(["--config", &run::runner()?, "test", "--workspace"])
        .args(arguments)
        .run()
}

fn bench(arguments: &[String]) -> Result<()> {
    prerequisites()?;
    cargo(WORKSPACE).args(BINARIES).arg("--release").run()?;
    // What is measured of the store needs no network.
    let program = if arguments.iter().any(|name| name.starts_with("store")) {
        run::binary("release", "save-bench")?
    } else {
        in_devnet("release", "save-bench")?
    };
    program.args(arguments).run()
}

fn shell(arguments: &[String]) -> Result<()> {
    prerequisites()?;
    cargo(WORKSPACE).args(BINARIES).run()?;
    in_devnet("debug", "devnet-shell")?.args(arguments).run()
}
