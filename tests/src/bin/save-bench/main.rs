//! Benchmarks. Each figure stands beside a baseline from the same run, since machines differ and are noisy.

mod report;
mod store;
mod tunnel;

use std::{error::Error, path::PathBuf, process::ExitCode, time::Instant};

use clap::{Parser, ValueEnum};

pub(crate) const MIB: usize = 1 << 20;

/// Measures what this project does against what the network could carry, and against iroh's own store.
#[derive(Debug, Parser)]
#[command(name = "save-bench", version)]
struct Arguments {
    /// Which figure; all of them if left out
    name: Option<Name>,
    /// Print one JSON object for each figure
    #[arg(long)]
    json: bool,
    /// How often each side is measured, in turns
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=100))]
    rounds: u16,
    /// How much is sent through the tunnel in each turn, in MiB
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=4096))]
    mib: u16,
    /// Where the stores that are measured lie while it runs; beside this program if left out
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Divides the sizes and numbers of what is stored, for a quick look; the figures then mean little
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1000))]
    scale: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Name {
    /// Bytes through one stream of a tunnel, over the best rate of bare calls between the same two nodes
    TunnelGoodput,
    /// All figures about the store, each beside iroh's file store
    Store,
    /// Storing one blob of 1 GiB, until it would survive a power cut, in MB/s
    StoreImportLarge,
    /// Reading it, verified, in MB/s
    StoreReadLarge,
    /// Storing 10,000 blobs of 20 KiB, 16 at a time, until they would survive a power cut, in blobs a second
    StoreImportSmall,
    /// Reading them in another order, 16 at a time, in blobs a second
    StoreReadSmall,
    /// Reading 64 KiB at random places of 1 GiB, verified, in MB/s
    StoreRandomRead,
    /// Opening a store with 100,000 blobs, in milliseconds; the baseline opens the same tables and nothing else, and less
    /// is better
    StoreOpen,
    /// The most memory that all of this takes beyond that of a Veilid node with an empty store, in MiB; the baseline is
    /// what is allowed, and less is better
    StoreMemory,
    #[value(hide = true)]
    StoreMemoryChild,
}

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // The store would only warn, each time that it is opened, that its key lies in a plain file here.
    if arguments
        .name
        .is_none_or(|name| name == Name::TunnelGoodput)
    {
        devnet::trace_to_stderr();
    }
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("save-bench: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(&arguments)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("save-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: &Arguments) -> Result<()> {
    match arguments.name {
        Some(Name::TunnelGoodput) => tunnel::run(arguments).await,
        Some(name) => store::run(arguments, name).await,
        None => {
            tunnel::run(arguments).await?;
            store::run(arguments, Name::Store).await
        }
    }
}

/// Megabytes a second.
fn rate(bytes: usize, start: Instant) -> f64 {
    bytes as f64 / start.elapsed().as_secs_f64() / 1e6
}
