//! Benchmarks. Each figure stands beside a baseline from the same run, since machines differ and are noisy.

mod calls;
mod child;
mod device;
mod files;
mod goodput;
mod links;
mod protocol;
mod report;
mod rest;
mod scale;
mod store;

use std::{
    error::Error,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::{Parser, builder::PossibleValuesParser};

pub(crate) const MIB: usize = 1 << 20;

/// The first argument of a process that is a device of the bench.
pub(crate) const CHILD: &str = "device";
/// The name by which the store's process that measures its memory is started.
pub(crate) const STORE_MEMORY_CHILD: &str = "store_memory_child";

/// Measures what this project does against what the network could carry, and against iroh's own store.
#[derive(Debug, Parser)]
#[command(name = "save-bench", version, after_help = figures())]
struct Arguments {
    /// Which figure, or what the names of several begin with; all of them if left out
    #[arg(value_parser = PossibleValuesParser::new(names()), hide_possible_values = true)]
    name: Option<String>,
    /// Print one JSON object for each figure
    #[arg(long)]
    json: bool,
    /// How often each side is measured, in turns
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=100))]
    rounds: u16,
    /// How much is sent in each turn of `tunnel_goodput` and `fetch_goodput`, in MiB
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=4096))]
    mib: u16,
    /// What is added to each round trip in `tunnel_goodput` and `fetch_goodput`, in milliseconds; their limits hold without
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u16).range(0..=10_000))]
    delay: u16,
    /// Where the stores that are measured lie while it runs; beside this program if left out
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Divides the sizes and numbers of what is stored, for a quick look; the figures then mean little
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1000))]
    scale: u16,
}

/// Every figure, and what it says.
const FIGURES: &[(&str, &str)] = &[
    (
        "tunnel_goodput",
        "bytes through one stream of a tunnel, in MB/s; the baseline is the best rate of bare calls between the same two nodes",
    ),
    (
        "fetch_goodput",
        "a file through a group, sealed, verified and stored, in MB/s; the baseline is the same",
    ),
    (
        "vs_stop_and_wait_0",
        "a file of 16 MiB through a group, in MB/s; the baseline sends 28 KiB a call and waits for the answer to each",
    ),
    (
        "vs_stop_and_wait_100",
        "the same with 100 ms added to each round trip",
    ),
    (
        "vs_stop_and_wait_300",
        "the same with 300 ms added to each round trip",
    ),
    (
        "vs_fixed_window_0",
        "a file of 16 MiB through a group, in MB/s; the baseline has twenty calls in flight that are answered with 32,000 bytes each",
    ),
    (
        "vs_fixed_window_100",
        "the same with 100 ms added to each round trip",
    ),
    (
        "vs_fixed_window_300",
        "the same with 300 ms added to each round trip",
    ),
    (
        "parallel_2",
        "a file of 8 MiB from two holders whose links carry 1 MB/s each, in MB/s; the baseline has one holder",
    ),
    ("parallel_4", "the same from four"),
    (
        "many_small",
        "1,000 files of 4 KiB, in files a second, and calls for each; the baseline is one bare call for each",
    ),
    (
        "mobile",
        "a file of 8 MiB to a device on a simulated cellular link, in MB/s; the baseline is as many bytes in bare calls on that link, with the number in flight that is best in the median",
    ),
    (
        "mobile_bad",
        "the same on a bad day of that link, and whether it ends in time",
    ),
    (
        "resume",
        "what is received twice of a file when the fetching process is killed half way, in files; less is better",
    ),
    (
        "first_byte",
        "from the wish for a file to its first verified byte, in milliseconds; the baseline is a round trip through the tunnel, with 100 ms added, and less is better; beside it the same right after a start, in round trips",
    ),
    (
        "fetch_memory",
        "the most memory of a process while a file of 1 GiB is put and fetched, in MiB; the baseline is the same for 64 MiB, and less is better; beside it how far that is above idle",
    ),
    (
        "idle",
        "what passes the link of a device in one group in which nothing happens, in kB a minute; the baseline is a node without a group, and less is better",
    ),
    (
        "members_cold_10",
        "reading the 10 members of a group whose record the device has never seen, in calls on Veilid; the baseline are as few bare calls as there can be, and less is better",
    ),
    ("members_cold_100", "the same for 100 members"),
    ("members_cold", "the same for 1,000"),
    (
        "list_cached_100",
        "the list of a repo of 100 files, the first time after a start without a network, in milliseconds; the baseline reads the same blobs and opens nothing, and less is better",
    ),
    ("list_cached_1000", "the same for 1,000 files"),
    ("list_cached_10000", "the same for 10,000"),
    ("list_cached", "the same for 100,000"),
    (
        "put_one_more_100",
        "what one more file in a repo of 100 adds to the store beside its own bytes, in bytes; the baseline is the whole list, and less is better",
    ),
    ("put_one_more_1000", "the same with 1,000 files"),
    ("put_one_more_10000", "the same with 10,000"),
    ("put_one_more", "the same with 100,000"),
    (
        "store_import_large",
        "storing one blob of 1 GiB, until it would survive a power cut, in MB/s; the baseline of all that is stored is iroh's file store",
    ),
    ("store_read_large", "reading it, verified, in MB/s"),
    (
        "store_random_read",
        "reading 64 KiB at random places of 1 GiB, verified, in MB/s",
    ),
    (
        "store_import_small",
        "storing 10,000 blobs of 20 KiB, 16 at a time, until they would survive a power cut, in blobs a second",
    ),
    (
        "store_read_small",
        "reading them in another order, 16 at a time, in blobs a second",
    ),
    (
        "store_open",
        "opening a store with 100,000 blobs, in milliseconds; the baseline opens the same tables and nothing else, and less is better",
    ),
    (
        "store_memory",
        "the most memory that all of this takes beyond that of a Veilid node with an empty store, in MiB; the baseline is what is allowed, and less is better",
    ),
];

/// What can be asked for: each figure, and what several of them begin with.
fn names() -> Vec<&'static str> {
    let mut names: Vec<&'static str> = FIGURES
        .iter()
        .flat_map(|(figure, _)| {
            figure
                .match_indices('_')
                .map(|(at, _)| &figure[..at])
                .chain([*figure])
        })
        .chain([STORE_MEMORY_CHILD, scale::NAME])
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}

fn figures() -> String {
    let lines: String = FIGURES
        .iter()
        .map(|(name, says)| format!("\n  {name}: {says}"))
        .collect();
    let scale = scale::NAME;
    format!(
        "Figures:{lines}\n\n  {scale}: members_cold, list_cached and put_one_more, in all sizes"
    )
}

impl Arguments {
    fn delay(&self) -> Option<Duration> {
        Some(Duration::from_millis(self.delay.into()))
    }

    /// Whether a figure was asked for: by its name, or by what the names of several begin with.
    fn wants(&self, figure: &str) -> bool {
        let Some(name) = self.name.as_deref() else {
            return true;
        };
        if name == scale::NAME {
            return scale::has(figure);
        }
        if FIGURES.iter().any(|(known, _)| *known == name) {
            return figure == name;
        }
        figure
            .strip_prefix(name)
            .is_some_and(|rest| rest.starts_with('_'))
    }
}

type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

fn main() -> ExitCode {
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("save-bench: {error}");
            return ExitCode::FAILURE;
        }
    };
    let first = std::env::args_os().nth(1).unwrap_or_default();
    let done = if first == CHILD {
        runtime.block_on(child::run())
    } else if first == scale::CHILD {
        runtime.block_on(scale::child())
    } else {
        runtime.block_on(run(&Arguments::parse()))
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("save-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: &Arguments) -> Result<()> {
    if arguments.wants("tunnel_goodput") {
        goodput::tunnel(arguments).await?;
    }
    if arguments.wants("fetch_goodput") {
        goodput::fetch(arguments).await?;
    }
    links::long(arguments).await?;
    links::parallel(arguments).await?;
    if arguments.wants("many_small") {
        files::small(arguments).await?;
    }
    links::mobile(arguments).await?;
    if arguments.wants("resume") {
        files::resume(arguments).await?;
    }
    if arguments.wants("first_byte") {
        files::first_byte(arguments).await?;
    }
    if arguments.wants("fetch_memory") {
        rest::memory(arguments).await?;
    }
    if arguments.wants("idle") {
        rest::idle(arguments).await?;
    }
    scale::run(arguments).await?;
    store::run(arguments).await
}

/// Megabytes a second.
fn rate(bytes: usize, start: Instant) -> f64 {
    bytes as f64 / start.elapsed().as_secs_f64() / 1e6
}
