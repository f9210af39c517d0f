//! `devnet-run COMMAND…`: enters network namespaces and becomes the command.
//!
//! It is made for cargo's `runner` setting, which starts each test binary through it. The command
//! takes its place, so exit codes and signals are the command's own.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

const USAGE: &str = "\
Usage: devnet-run [--serial PACKAGE] COMMAND [ARGUMENT…]

Runs COMMAND in namespaces of its own, in which it can start a devnet.

  --serial PACKAGE  let the tests of this cargo package run one after the other:
                    sets RUST_TEST_THREADS=1 for them, unless it is set
  -h, --help        print this text

Exit codes: 125 where namespaces are forbidden, 126 or 127 where COMMAND cannot
be started, else those of COMMAND.";

const FORBIDDEN: u8 = 125;
const NOT_STARTED: u8 = 126;
const NOT_FOUND: u8 = 127;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let mut next = arguments.next();
    let mut serial = None;
    loop {
        match next.as_ref().and_then(|argument| argument.to_str()) {
            Some("-h" | "--help") => {
                println!("{USAGE}");
                return ExitCode::SUCCESS;
            }
            Some("--serial") => {
                serial = arguments.next();
                next = arguments.next();
            }
            Some("--") => {
                next = arguments.next();
                break;
            }
            _ => break,
        }
    }
    let Some(program) = next else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    if let Err(error) = devnet::enter() {
        eprintln!("devnet-run: {error}");
        return ExitCode::from(FORBIDDEN);
    }
    let namespace = match devnet::current_namespace() {
        Ok(namespace) => namespace,
        Err(error) => {
            eprintln!("devnet-run: {error}");
            return ExitCode::from(FORBIDDEN);
        }
    };
    let mut command = Command::new(&program);
    command
        .args(arguments)
        .env(devnet::INSIDE_VARIABLE, namespace);
    if is_test_of(serial) && std::env::var_os("RUST_TEST_THREADS").is_none() {
        command.env("RUST_TEST_THREADS", "1");
    }
    let error = command.exec();
    eprintln!("devnet-run: {}: {error}", program.to_string_lossy());
    ExitCode::from(match error.kind() {
        std::io::ErrorKind::NotFound => NOT_FOUND,
        _ => NOT_STARTED,
    })
}

/// Whether cargo is running a test of this package.
fn is_test_of(package: Option<OsString>) -> bool {
    package.is_some() && package == std::env::var_os("CARGO_PKG_NAME")
}
