//! The most memory that the store takes, measured in a process that does nothing else.

use std::{path::Path, process::Stdio};

use serde::{Deserialize, Serialize};
use tokio::process::Command;

use super::{Node, Sizes, work};
use crate::{Arguments, Result, STORE_MEMORY_CHILD, report::Figure};

/// What is allowed, in MiB.
const LIMIT: f64 = 64.0;

#[derive(Debug, Serialize, Deserialize)]
struct Peak {
    mib: f64,
}

/// Starts one process for each round, and waits for what it measured.
pub(super) async fn measure(arguments: &Arguments) -> Result<Figure> {
    let mut figure = Figure::default();
    for _ in 0..arguments.rounds {
        let mut child = Command::new(std::env::current_exe()?);
        child
            .args([STORE_MEMORY_CHILD, "--scale"])
            .arg(arguments.scale.to_string())
            .stdin(Stdio::null())
            .stderr(Stdio::inherit());
        if let Some(dir) = &arguments.dir {
            child.arg("--dir").arg(dir);
        }
        let output = child.output().await?;
        if !output.status.success() {
            return Err(format!("the measuring process ended with {}", output.status).into());
        }
        let peak: Peak = serde_json::from_slice(&output.stdout)?;
        figure.values.push(peak.mib);
        figure.baselines.push(LIMIT);
    }
    Ok(figure)
}

/// Does everything that is measured, with the project's store alone, and prints how far its memory went above that of a
/// node with an empty store.
pub(super) async fn child(dir: &Path, sizes: Sizes) -> Result<()> {
    let node = Node::start(dir).await?;
    let store_dir = dir.join("store");
    let store = node.open(&store_dir).await?;
    let idle = status("VmRSS:")?;
    // Sets the peak to the present value.
    std::fs::write("/proc/self/clear_refs", "5")?;
    let (hash, _) = work::import_large(&store, dir, sizes.large, 0).await?;
    work::read_large(&store, dir, hash, sizes.large).await?;
    work::read_parts(&store, dir, hash, sizes.large, sizes.reads, 0).await?;
    let (hashes, _) = work::import_small(&store, dir, sizes.small, work::SMALL, 0).await?;
    work::read_small(&store, dir, hashes, work::SMALL, 0).await?;
    work::import_small(&store, dir, sizes.many, 1024, 1).await?;
    store.close().await?;
    let store = node.open(&store_dir).await?;
    let peak = status("VmHWM:")?;
    store.close().await?;
    node.stop().await;
    let mib = peak.saturating_sub(idle) as f64 / 1024.0;
    println!("{}", serde_json::to_string(&Peak { mib })?);
    Ok(())
}

/// A line of this process's status, in KiB.
fn status(line: &str) -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let value = status
        .lines()
        .find_map(|found| found.strip_prefix(line))
        .and_then(|rest| rest.trim().strip_suffix(" kB"))
        .ok_or("the system does not tell the memory of this process")?;
    Ok(value.parse()?)
}
