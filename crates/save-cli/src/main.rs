//! The `save` command. Everything is in the library beside it, where it can be tested.

use std::process::ExitCode;

fn main() -> ExitCode {
    save_cli::main()
}
