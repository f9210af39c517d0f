//! A real Veilid network on one machine: the ground that the demo, the integration tests and the
//! benchmarks stand on.
//!
//! Real nodes, real private routes, a real DHT; no internet, no root and no `ip` command, only
//! Linux network namespaces. A router joins hosts, each with an address, a namespace and a runtime
//! of its own; on the first ones run the backbone nodes that every Veilid network needs.
//!
//! ```no_run
//! # async fn example() -> Result<(), devnet::Error> {
//! let devnet = devnet::Devnet::start(devnet::MIN_NODES).await?;
//! let host = devnet.host("phone").await?;
//! let node = host.start_node(&host.directory().join("node")).await?;
//! node.ready(std::time::Duration::from_secs(60)).await?;
//!
//! // Sockets belong to a namespace, so calls on a node are made on its host.
//! let api = node.api().clone();
//! let route = host.run(async move { api.new_private_route().await }).await?;
//!
//! host.limit_rate(250_000).await?; // bytes per second
//! host.set_delay(Some(std::time::Duration::from_millis(100))).await?; // more for each round trip
//! host.cut_off().await?;
//! host.rejoin().await?;
//! devnet.stop().await
//! # }
//! ```
//!
//! # Getting inside
//! A process has to be in namespaces of its own before it starts its first thread, and a test
//! binary starts threads before the first test. So `devnet-run COMMAND…` enters them and becomes
//! the command; as cargo's `runner` it starts each test binary, which is what `cargo xtask test`
//! does. A program can call [`enter`] first thing in `main` instead. [`check`] says what to change
//! on machines that forbid it. Everything vanishes with the process, however it ends.
//!
//! # Processes
//! [`Host::command`] starts a process on a host; [`NetworkSettings::write`] gives it the file that
//! it joins the network by.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may panic"))]
#![cfg(target_os = "linux")]

mod delay;
mod error;
mod host;
mod links;
mod namespaces;
mod network;
mod node;
mod rate;
mod settings;
mod thread;

pub use error::{Error, Result};
pub use host::Host;
pub use namespaces::{INSIDE_VARIABLE, Obstacle, check, current_namespace, enter, inside};
pub use network::{Devnet, DevnetOptions, MAX_HOSTS, MIN_NODES};
pub use node::{Node, NodeOptions};
pub use settings::{ChaosPreset, NetworkSettings};

/// Writes traces to standard error, filtered by `RUST_LOG`; without it, warnings of this
/// workspace's crates alone, since Veilid warns of much that is no fault. For binaries and tests;
/// calls after the first do nothing.
pub fn trace_to_stderr() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| {
        let own = [
            "devnet",
            "dht_records",
            "group",
            "repo",
            "save_backend",
            "store_adapter",
            "tunnels",
        ];
        own.map(|name| format!("{name}=warn")).join(",").into()
    });
    // An error means that a subscriber is there already, which then stays.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .try_init();
}
