//! What it costs to begin, to go on after a crash, and to fetch many small files.

use std::time::Duration;

use devnet::Devnet;

use crate::{
    Arguments, MIB, Result,
    device::Device,
    goodput::Pair,
    protocol::{Fetch, Fetched, Request},
    report::{Figure, Limit, median},
};

/// Small files, the size of each in bytes, and how many are asked for at a time.
const SMALL: usize = 1_000;
const SMALL_BYTES: u64 = 4 * 1024;
/// In flight, of bare calls for as many bytes each.
const IN_FLIGHT: usize = 32;
/// What is fetched in two halves, in bytes.
const RESUMED: u64 = 64 * MIB as u64;
/// A link on which a round trip can be told from the time that processors need.
const FAR: Duration = Duration::from_millis(100);
/// The file whose first byte is waited for, in bytes.
const FAR_FILE: u64 = 4 * MIB as u64;
const PINGS: usize = 5;

/// `many_small`: small files of one repo, in files a second, over bare calls for as many bytes; and calls for each file.
pub(crate) async fn small(arguments: &Arguments) -> Result<()> {
    let devnet = Devnet::start(devnet::MIN_NODES).await?;
    let pair = Pair::start(&devnet, "holder", "fetcher").await?;
    let (holder, fetcher) = (&pair.holder, &pair.fetcher);
    let files = (SMALL / usize::from(arguments.scale)).max(2);
    let mut figure = Figure::default();
    for round in 0..arguments.rounds {
        let name = format!("small {round}");
        let reply = usize::try_from(SMALL_BYTES)?;
        let called = fetcher.call(holder, files, IN_FLIGHT, 0, reply).await?;
        holder.put(&name, files, SMALL_BYTES).await?;
        fetcher.see(&pair.keys, &name).await?;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let fetched: Fetched = fetcher
            .ask(Request::Fetch(Fetch {
                repo: pair.keys.repo.clone(),
                name,
                die_at: None,
            }))
            .await?;
        figure.push(
            files as f64 / fetched.seconds,
            called.answered as f64 / called.seconds,
        );
        let calls = fetched.counts.calls as f64 / files as f64;
        figure.push_more("calls_per_file", calls);
    }
    let limit = [Limit::MoreTo("calls_per_file", 1.5)];
    figure.print(arguments.json, "many_small", "files/s", &limit);
    pair.stop().await?;
    Ok(devnet.stop().await?)
}

/// `resume`: what is fetched twice when the fetching process is killed half way, as a part of the file. A fetch that nothing
/// disturbs tells what comes in beside the file itself.
pub(crate) async fn resume(arguments: &Arguments) -> Result<()> {
    let devnet = Devnet::start(devnet::MIN_NODES).await?;
    let holder = Device::start(&devnet, "holder").await?;
    let keys = holder.create().await?;
    let mut fetcher = Device::start(&devnet, "fetcher").await?;
    let own = fetcher.join(&keys).await?;
    let mut figure = Figure::default();
    for round in 0..arguments.rounds {
        let whole = fetcher
            .exchange(&holder, &keys, &format!("whole {round}"), RESUMED)
            .await?;
        let name = format!("halves {round}");
        holder.put(&name, 1, RESUMED).await?;
        fetcher.see(&keys, &name).await?;
        let half: Fetched = fetcher
            .ask(Request::Fetch(Fetch {
                repo: keys.repo.clone(),
                name: name.clone(),
                die_at: Some(RESUMED / 2),
            }))
            .await?;
        let host = fetcher.host.clone();
        fetcher.ended().await?;
        let settings = host.network_settings().serving_nobody();
        fetcher = Device::start_with(host, settings).await?;
        fetcher
            .ask::<()>(Request::Load { keys: own.clone() })
            .await?;
        fetcher.see(&keys, &name).await?;
        fetcher.fetch(&keys, &name).await?;
        // All that this process received: what was wanted is fetched as soon as it runs.
        let rest = fetcher.counts().await?;
        let twice =
            half.counts.received as f64 + rest.received as f64 - whole.counts.received as f64;
        let of_file = |bytes: f64| bytes / RESUMED as f64;
        figure.push(of_file(twice), 1.0);
        figure.push_more("received_first", of_file(half.counts.received as f64));
        figure.push_more("received_then", of_file(rest.received as f64));
        figure.push_more(
            "received_undisturbed",
            of_file(whole.counts.received as f64),
        );
    }
    figure.print(arguments.json, "resume", "files", &[Limit::ValueTo(0.02)]);
    fetcher.stop().await?;
    holder.stop().await?;
    Ok(devnet.stop().await?)
}

/// `first_byte`: from the wish for a file to its first verified byte, over a round trip of a tunnel. Beside it the same for the first
/// thing that a device does once it is started and on the network, in round trips.
pub(crate) async fn first_byte(arguments: &Arguments) -> Result<()> {
    let devnet = Devnet::start(devnet::MIN_NODES).await?;
    let holder = Device::start(&devnet, "holder").await?;
    let keys = holder.create().await?;
    let mut fetcher = Device::start(&devnet, "fetcher").await?;
    let own = fetcher.join(&keys).await?;
    fetcher.set_delay(Some(FAR)).await?;
    let mut figure = Figure::default();
    for round in 0..arguments.rounds {
        let cold = format!("far and cold {round}");
        holder.put(&cold, 1, FAR_FILE).await?;
        let fetched = fetcher
            .exchange(&holder, &keys, &format!("far {round}"), FAR_FILE)
            .await?;
        let first = fetched.first.ok_or("no byte came")?;
        let mut pings = Vec::new();
        for _ in 0..PINGS {
            let repo = keys.repo.clone();
            pings.push(fetcher.ask(Request::Ping { repo }).await?);
        }
        let ping: f64 = median(&pings);
        figure.push(first * 1e3, ping * 1e3);
        // Both files are in the list that is here by now.
        let host = fetcher.host.clone();
        fetcher.stop().await?;
        let settings = host.network_settings().serving_nobody();
        fetcher = Device::start_with(host, settings).await?;
        fetcher
            .ask::<()>(Request::Load { keys: own.clone() })
            .await?;
        let fetched = fetcher.fetch(&keys, &cold).await?;
        let first = fetched.first.ok_or("no byte came")?;
        figure.push_more("cold_round_trips", first / ping);
    }
    let limits = [Limit::RatioTo(6.0), Limit::MoreTo("cold_round_trips", 6.0)];
    figure.print(arguments.json, "first_byte", "ms", &limits);
    fetcher.stop().await?;
    holder.stop().await?;
    Ok(devnet.stop().await?)
}
