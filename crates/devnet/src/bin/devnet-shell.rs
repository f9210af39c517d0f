//! `devnet-shell [COMMAND…]`: starts a devnet and runs a command on a host of its own.

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitCode;

use devnet::Devnet;
use tokio::signal::unix::{SignalKind, signal};

const USAGE: &str = "\
Usage: devnet-shell [--nodes N] [COMMAND [ARGUMENT…]]

Starts a Veilid network of N nodes (6) on this machine and runs COMMAND (your
shell) on a host of its own. SAVE_NETWORK names the network settings file with
which a backend joins the network.";

fn main() -> ExitCode {
    devnet::trace_to_stderr();
    match run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("devnet-shell: {error}");
            ExitCode::from(125)
        }
    }
}

fn run() -> Result<ExitCode, Box<dyn std::error::Error>> {
    let mut arguments = std::env::args_os().skip(1).peekable();
    let mut nodes = devnet::MIN_NODES;
    while let Some(argument) = arguments.next_if(|argument| {
        argument == "--nodes" || argument == "--help" || argument == "-h" || argument == "--"
    }) {
        match argument.to_str() {
            Some("--nodes") => {
                let count = arguments.next().unwrap_or_default();
                let count = count.to_string_lossy().into_owned();
                nodes = count
                    .parse()
                    .map_err(|_| format!("--nodes: {count:?} is no number"))?;
            }
            Some("--") => break,
            _ => {
                println!("{USAGE}");
                return Ok(ExitCode::SUCCESS);
            }
        }
    }
    let mut command: Vec<OsString> = arguments.collect();
    if command.is_empty() {
        command.push(std::env::var_os("SHELL").unwrap_or_else(|| "/bin/sh".into()));
    }
    // Before the runtime, which starts threads.
    devnet::enter()?;
    tokio::runtime::Runtime::new()?.block_on(run_on_devnet(nodes, &command))
}

async fn run_on_devnet(
    nodes: usize,
    command: &[OsString],
) -> Result<ExitCode, Box<dyn std::error::Error>> {
    let (program, arguments) = command.split_first().ok_or("no command")?;
    let begin = std::time::Instant::now();
    eprintln!("Starting a Veilid network of {nodes} nodes …");
    let devnet = Devnet::start(nodes).await?;
    let host = devnet.host("shell").await?;
    let settings = devnet.directory().join("network.json");
    host.network_settings().write(&settings)?;
    eprintln!(
        "Ready after {:.1} s. This host is {} and {}.\nSAVE_NETWORK={}",
        begin.elapsed().as_secs_f64(),
        host.ipv4(),
        host.ipv6(),
        settings.display(),
    );
    // A terminal sends these to the whole foreground group: the command decides what they mean,
    // and the network outlives it.
    let mut interrupts = signal(SignalKind::interrupt())?;
    let mut quits = signal(SignalKind::quit())?;
    let mut terminations = signal(SignalKind::terminate())?;
    let mut process = host.command(program);
    process.args(arguments).env("SAVE_NETWORK", &settings);
    let mut child = tokio::process::Command::from(process)
        .spawn()
        .map_err(|error| format!("{}: {error}", program.to_string_lossy()))?;
    let status = loop {
        tokio::select! {
            status = child.wait() => break status?,
            _ = interrupts.recv() => {}
            _ = quits.recv() => {}
            _ = terminations.recv() => child.start_kill()?,
        }
    };
    devnet.stop().await?;
    let code = status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal));
    Ok(code
        .and_then(|code| u8::try_from(code).ok())
        .map_or(ExitCode::FAILURE, ExitCode::from))
}
