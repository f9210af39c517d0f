//! What devices take in memory while a large file passes, and in calls and bytes while nothing does.

use std::time::Duration;

use devnet::Devnet;

use crate::{
    Arguments, MIB, Result,
    device::Device,
    goodput::Pair,
    report::{Figure, Limit},
};

/// The files that pass, in MiB.
const LARGE: u64 = 1_024;
const SMALL: u64 = 64;
/// Until what starting set off is over, and its memory given back.
const SETTLE: Duration = Duration::from_secs(20);
/// How long nothing happens.
const IDLE: Duration = Duration::from_secs(120);
/// Before that, everybody is looked at again and again, with pauses that double up to ten minutes.
const QUIET: Duration = Duration::from_secs(16 * 60);

/// `fetch_memory`: the most memory that the process of the holder or of the fetcher has while a large file is put and fetched, in MiB. The
/// baseline is the same for a small file. New devices each time. Beside it how far that is above what they need when idle: the more of the
/// two, for both files, and each of them for the large one.
pub(crate) async fn memory(arguments: &Arguments) -> Result<()> {
    let mut figure = Figure::default();
    let large = (LARGE / u64::from(arguments.scale)).max(SMALL);
    for _ in 0..arguments.rounds {
        let small = peaks(SMALL).await?;
        let peaks = peaks(large).await?;
        figure.push(peaks.process, small.process);
        figure.push_more("above_idle", peaks.above());
        figure.push_more("above_idle_small", small.above());
        figure.push_more("holder", peaks.above[0]);
        figure.push_more("fetcher", peaks.above[1]);
    }
    figure.print(
        arguments.json,
        "fetch_memory",
        "MiB",
        &[Limit::MoreTo("above_idle", 150.0), Limit::RatioTo(1.1)],
    );
    Ok(())
}

/// What a holder and a fetcher took at most, in MiB.
struct Peaks {
    /// Above idle, of each.
    above: [f64; 2],
    /// Of a whole process, the larger of both.
    process: f64,
}

impl Peaks {
    fn above(&self) -> f64 {
        self.above[0].max(self.above[1])
    }
}

async fn peaks(mib: u64) -> Result<Peaks> {
    let devnet = Devnet::start(devnet::MIN_NODES).await?;
    let pair = Pair::start(&devnet, "holder", "fetcher").await?;
    tokio::time::sleep(SETTLE).await;
    let idle = [
        pair.holder.memory().await?.now,
        pair.fetcher.memory().await?.now,
    ];
    pair.fetcher
        .exchange(&pair.holder, &pair.keys, "large", mib * MIB as u64)
        .await?;
    let peak = [
        pair.holder.memory().await?.peak,
        pair.fetcher.memory().await?.peak,
    ];
    let mut above = [0.0; 2];
    for ((above, peak), idle) in above.iter_mut().zip(peak).zip(idle) {
        *above = peak.saturating_sub(idle) as f64 / 1024.0;
    }
    pair.stop().await?;
    devnet.stop().await?;
    Ok(Peaks {
        above,
        process: peak[0].max(peak[1]) as f64 / 1024.0,
    })
}

/// `idle`: what a device in one group does in a minute in which nothing happens: bytes over its link, in kB, beside those of a
/// node without a group, calls of its tunnels and their bytes, and calls on the DHT.
pub(crate) async fn idle(arguments: &Arguments) -> Result<()> {
    let devnet = Devnet::start(devnet::MIN_NODES).await?;
    let holder = Device::start(&devnet, "holder").await?;
    // As devices come, serving others.
    let serving = |name: &'static str| {
        let devnet = &devnet;
        async move {
            let host = devnet.host(name).await?;
            let settings = host.network_settings();
            Device::start_with(host, settings).await
        }
    };
    let (member, bare) = (serving("member").await?, serving("bare").await?);
    let keys = holder.create().await?;
    member.join(&keys).await?;
    member.exchange(&holder, &keys, "file", MIB as u64).await?;
    tokio::time::sleep(QUIET / u32::from(arguments.scale)).await;
    let mut figure = Figure::default();
    let minutes = IDLE.as_secs_f64() / 60.0;
    for _ in 0..arguments.rounds {
        let before = [member.counts().await?, bare.counts().await?];
        tokio::time::sleep(IDLE).await;
        let of_member = member.counts().await?.since(&before[0]);
        let of_bare = bare.counts().await?.since(&before[1]);
        let kilobytes = |bytes: u64| bytes as f64 / minutes / 1e3;
        figure.push(kilobytes(of_member.link), kilobytes(of_bare.link));
        let calls = (of_member.calls + of_member.answers) as f64 / minutes;
        figure.push_more("calls", calls);
        let bytes = (of_member.sent + of_member.received) as f64 / minutes;
        figure.push_more("call_bytes", bytes);
        figure.push_more("dht_calls", of_member.dht as f64 / minutes);
    }
    figure.print(arguments.json, "idle", "kB/min", &[]);
    bare.stop().await?;
    member.stop().await?;
    holder.stop().await?;
    Ok(devnet.stop().await?)
}
