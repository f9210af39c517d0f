//! What a tunnel, and a group on top of it, carry on a link that is limited by the processors alone.

use devnet::Devnet;

use crate::{
    Arguments, MIB, Result,
    device::Device,
    protocol::{Keys, Request},
    report::{Figure, Limit},
};

/// Two devices of one group, and the first one's keys.
pub(crate) struct Pair {
    pub(crate) holder: Device,
    pub(crate) fetcher: Device,
    pub(crate) keys: Keys,
}

impl Pair {
    /// Starts both on a devnet.
    pub(crate) async fn start(devnet: &Devnet, holder: &str, fetcher: &str) -> Result<Self> {
        let holder = Device::start(devnet, holder).await?;
        let fetcher = Device::start(devnet, fetcher).await?;
        let keys = holder.create().await?;
        fetcher.join(&keys).await?;
        Ok(Self {
            holder,
            fetcher,
            keys,
        })
    }

    pub(crate) async fn stop(self) -> Result<()> {
        self.fetcher.stop().await?;
        self.holder.stop().await
    }
}

/// `tunnel_goodput`: bytes through one stream of a tunnel, over the best rate of bare calls between the same two nodes.
pub(crate) async fn tunnel(arguments: &Arguments) -> Result<()> {
    let devnet = Devnet::start(devnet::MIN_NODES).await?;
    let server = Device::start(&devnet, "server").await?;
    let client = Device::start(&devnet, "client").await?;
    client.set_delay(arguments.delay()).await?;
    let bytes = usize::from(arguments.mib) * MIB;
    let mut figure = Figure::default();
    for _ in 0..arguments.rounds {
        let raw = client.raw_rate(&server, bytes as u64 / 4).await?;
        let route = server.ask(Request::Serve).await?;
        let seconds: f64 = client.ask(Request::Stream { route, bytes }).await?;
        figure.push(bytes as f64 / seconds / 1e6, raw);
    }
    figure.print(
        arguments.json,
        "tunnel_goodput",
        "MB/s",
        &[Limit::RatioFrom(0.85)],
    );
    client.stop().await?;
    server.stop().await?;
    Ok(devnet.stop().await?)
}

/// `fetch_goodput`: a file through the group, over the same.
pub(crate) async fn fetch(arguments: &Arguments) -> Result<()> {
    let devnet = Devnet::start(devnet::MIN_NODES).await?;
    let pair = Pair::start(&devnet, "holder", "fetcher").await?;
    pair.fetcher.set_delay(arguments.delay()).await?;
    let bytes = u64::from(arguments.mib) * MIB as u64;
    let mut figure = Figure::default();
    for round in 0..arguments.rounds {
        let raw = pair.fetcher.raw_rate(&pair.holder, bytes / 4).await?;
        let fetched = pair
            .fetcher
            .exchange(&pair.holder, &pair.keys, &format!("file {round}"), bytes)
            .await?;
        figure.push(fetched.rate(), raw);
        let mib = bytes as f64 / MIB as f64;
        figure.push_more("calls_per_mib", fetched.counts.calls as f64 / mib);
    }
    figure.print(
        arguments.json,
        "fetch_goodput",
        "MB/s",
        &[Limit::RatioFrom(0.8)],
    );
    pair.stop().await?;
    Ok(devnet.stop().await?)
}
