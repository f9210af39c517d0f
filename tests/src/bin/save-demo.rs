//! Three devices on a Veilid network of their own: one archives, the others read, through the `save` command.

#[path = "save-demo/files.rs"]
mod files;
#[path = "save-demo/report.rs"]
mod report;
#[path = "save-demo/story.rs"]
mod story;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

use report::Report;

/// Watch one member archive files and two others read them back, over a real Veilid network on this machine.
///
/// The command starts the network itself, in network namespaces; it needs neither root nor the internet. Each device is a
/// process of its own, a `save run`, driven through the `save` command.
#[derive(Debug, Parser)]
#[command(
    name = "save-demo",
    version,
    after_help = "Exit codes: 0 if all went well, 1 if anything did not, 2 for a wrong command line."
)]
struct Arguments {
    /// Print one JSON object for each step, and a last one with the result
    #[arg(long)]
    json: bool,
    /// Archive this file, too (may be given several times)
    #[arg(long = "file", value_name = "PATH")]
    files: Vec<PathBuf>,
    /// The size of the large file
    #[arg(long, value_name = "MIB", default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=65_536))]
    size: u64,
    /// Give up after this many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    timeout: u64,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    devnet::trace_to_stderr();
    let mut report = Report::new(arguments.json);
    // Before the runtime, which starts threads.
    let told = match devnet::enter() {
        Ok(()) => run(&arguments, &mut report),
        Err(error) => Err(error.into()),
    };
    report.end(told)
}

fn run(arguments: &Arguments, report: &mut Report) -> Result<(), story::Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let limit = Duration::from_secs(arguments.timeout);
    let plan = story::Plan {
        files: arguments.files.clone(),
        large: arguments.size * 1024 * 1024,
    };
    // Dropping the story kills every process that it has started.
    let told = runtime.block_on(async {
        tokio::select! {
            told = story::tell(&plan, report) => told,
            () = tokio::time::sleep(limit) => Err(format!("it took longer than {} s", limit.as_secs()).into()),
            _ = tokio::signal::ctrl_c() => Err("interrupted".into()),
            () = terminated() => Err("terminated".into()),
        }
    });
    runtime.shutdown_timeout(Duration::from_secs(5));
    told
}

async fn terminated() {
    use tokio::signal::unix::{SignalKind, signal};
    match signal(SignalKind::terminate()) {
        Ok(mut signal) => {
            signal.recv().await;
        }
        // Then the signal ends the process at once, and its children with it.
        Err(_) => std::future::pending().await,
    }
}
