//! Files over links that are long, slow or bad.

use std::time::Duration;

use devnet::{ChaosPreset, Devnet};

use crate::{
    Arguments, MIB, Result,
    device::{Device, IN_FLIGHT},
    goodput::Pair,
    protocol::{Fetched, Keys, Request},
    report::{Figure, Limit, median},
};

/// What is added to each round trip, in milliseconds, and how many times as fast as stop and wait, and as a fixed window, a file
/// has to be.
const DELAYS: [(u64, f64, f64); 3] = [(0, 1.5, 0.9), (100, 10.0, 1.5), (300, 20.0, 2.0)];
/// The file whose rate is measured, and what stop and wait sends, in bytes.
const FILE: u64 = 16 * MIB as u64;
const STOP_AND_WAIT: u64 = 4 * MIB as u64;
/// The fixed window, in calls.
const WINDOW: usize = 20;

/// What each holder's link carries in each direction, in bytes a second, and the file that is fetched from them, in bytes.
const SLOW: u64 = 1_000_000;
const SLOW_FILE: u64 = 8 * MIB as u64;
/// Numbers of holders.
const HOLDERS: [usize; 3] = [1, 2, 4];

/// The file that is fetched over a cellular link, in bytes.
const MOBILE_FILE: u64 = 8 * MIB as u64;
/// On a bad day it has to be here after so long: what 0.6 MB/s needs, and three of the collapses of that link.
const MOBILE_BAD: Duration = Duration::from_secs(600);

/// Whether one of the figures over long links was asked for.
fn wants(arguments: &Arguments, delay: u64) -> [bool; 2] {
    ["vs_stop_and_wait", "vs_fixed_window"]
        .map(|figure| arguments.wants(&format!("{figure}_{delay}")))
}

/// `vs_stop_and_wait_*` and `vs_fixed_window_*`: a file through the group, over what simpler senders reach on the same link.
pub(crate) async fn long(arguments: &Arguments) -> Result<()> {
    if !DELAYS
        .iter()
        .any(|(delay, ..)| wants(arguments, *delay).contains(&true))
    {
        return Ok(());
    }
    let devnet = Devnet::start(devnet::MIN_NODES).await?;
    let pair = Pair::start(&devnet, "holder", "fetcher").await?;
    for (delay, stop_and_wait, window) in DELAYS {
        let wanted = wants(arguments, delay);
        if !wanted.contains(&true) {
            continue;
        }
        let round_trip = (delay > 0).then_some(Duration::from_millis(delay));
        pair.fetcher.set_delay(round_trip).await?;
        let mut figures: [Figure; 2] = Default::default();
        for round in 0..arguments.rounds {
            let name = format!("delay {delay} {round}");
            let fetched = pair
                .fetcher
                .exchange(&pair.holder, &pair.keys, &name, FILE)
                .await?;
            if wanted[0] {
                let baseline = pair
                    .fetcher
                    .stop_and_wait_rate(&pair.holder, STOP_AND_WAIT)
                    .await?;
                figures[0].push(fetched.rate(), baseline);
            }
            if wanted[1] {
                let baseline = pair.fetcher.window_rate(&pair.holder, FILE, WINDOW).await?;
                figures[1].push(fetched.rate(), baseline);
            }
        }
        for (name, figure, limit) in [
            ("vs_stop_and_wait", &figures[0], stop_and_wait),
            ("vs_fixed_window", &figures[1], window),
        ] {
            if !figure.values.is_empty() {
                let limit = [Limit::RatioFrom(limit)];
                figure.print(arguments.json, &format!("{name}_{delay}"), "MB/s", &limit);
            }
        }
    }
    pair.stop().await?;
    Ok(devnet.stop().await?)
}

/// `parallel_*`: a file from several holders on slow links, over the rate from one of them.
pub(crate) async fn parallel(arguments: &Arguments) -> Result<()> {
    let wanted: Vec<usize> = HOLDERS
        .into_iter()
        .skip(1)
        .filter(|count| arguments.wants(&format!("parallel_{count}")))
        .collect();
    let Some(most) = wanted.last().copied() else {
        return Ok(());
    };
    let devnet = Devnet::start(devnet::MIN_NODES).await?;
    let mut holders = Vec::new();
    for number in 1..=most {
        holders.push(Device::start(&devnet, &format!("holder {number}")).await?);
    }
    let fetcher = Device::start(&devnet, "fetcher").await?;
    let (Some(first), others) = (holders.first(), holders.get(1..).unwrap_or_default()) else {
        return Err("there is no holder".into());
    };
    let keys = first.create().await?;
    for holder in others {
        holder.join(&keys).await?;
    }
    fetcher.join(&keys).await?;
    let mut figures: Vec<Figure> = wanted.iter().map(|_| Figure::default()).collect();
    for round in 0..arguments.rounds {
        let name = |count: usize| format!("held by {count}, {round}");
        let counts = || HOLDERS.into_iter().filter(|count| *count <= most);
        for count in counts() {
            first.put(&name(count), 1, SLOW_FILE).await?;
            for holder in others.iter().take(count - 1) {
                holder.see(&keys, &name(count)).await?;
                holder.fetch(&keys, &name(count)).await?;
            }
            fetcher.see(&keys, &name(count)).await?;
        }
        for holder in &holders {
            holder.host.limit_rate(SLOW).await?;
        }
        let mut one = f64::NAN;
        for count in counts() {
            let rate = fetcher.fetch(&keys, &name(count)).await?.rate();
            if count == 1 {
                one = rate;
            }
            for (figure, wanted) in figures.iter_mut().zip(&wanted) {
                if *wanted == count {
                    figure.push(rate, one);
                }
            }
        }
        for holder in &holders {
            holder.host.unlimit_rate().await?;
        }
    }
    for (count, figure) in wanted.iter().zip(&figures) {
        let limit = [Limit::RatioFrom(0.9 * *count as f64)];
        figure.print(arguments.json, &format!("parallel_{count}"), "MB/s", &limit);
    }
    fetcher.stop().await?;
    for holder in holders {
        holder.stop().await?;
    }
    Ok(devnet.stop().await?)
}

/// `mobile` and `mobile_bad`: a file to a device on a cellular link, over bare calls on the same link.
pub(crate) async fn mobile(arguments: &Arguments) -> Result<()> {
    let good = arguments.wants("mobile");
    let bad = arguments.wants("mobile_bad");
    if !good && !bad {
        return Ok(());
    }
    let devnet = Devnet::start(devnet::MIN_NODES).await?;
    let pair = Pair::start(&devnet, "holder", "fetcher").await?;
    if good {
        // The number in flight that is best in the median of the rounds is the baseline: the best of each round would be whichever had
        // the luckiest minute of a link that drifts by half.
        let mut figures: [Figure; IN_FLIGHT.len()] = Default::default();
        for round in 0..arguments.rounds {
            let name = format!("fair day {round}");
            let (fetched, raw) = over_chaos(&pair, &pair.keys, &name, ChaosPreset::Mobile).await?;
            for (figure, raw) in figures.iter_mut().zip(raw) {
                figure.push(fetched.rate(), raw);
            }
        }
        let best = |figure: &&Figure| median(&figure.baselines);
        let best = |a: &&Figure, b: &&Figure| best(a).total_cmp(&best(b));
        let figure = figures.iter().max_by(best).ok_or("nothing was measured")?;
        let limit = [Limit::RatioFrom(0.85)];
        figure.print(arguments.json, "mobile", "MB/s", &limit);
    }
    if bad {
        let mut figure = Figure::default();
        for round in 0..arguments.rounds {
            let name = format!("bad day {round}");
            let (fetched, raw) =
                over_chaos(&pair, &pair.keys, &name, ChaosPreset::MobileBad).await?;
            figure.push(fetched.rate(), raw.into_iter().fold(0.0, f64::max));
            figure.push_more("seconds", fetched.seconds);
        }
        let limit = [Limit::MoreTo("seconds", MOBILE_BAD.as_secs_f64())];
        figure.print(arguments.json, "mobile_bad", "MB/s", &limit);
    }
    pair.stop().await?;
    Ok(devnet.stop().await?)
}

/// A file, and as many bytes in bare calls with each number in flight, while the fetcher's link is bad. What comes before that goes over a good one.
async fn over_chaos(
    pair: &Pair,
    of: &Keys,
    name: &str,
    preset: ChaosPreset,
) -> Result<(Fetched, [f64; IN_FLIGHT.len()])> {
    let (holder, fetcher) = (&pair.holder, &pair.fetcher);
    holder.put(name, 1, MOBILE_FILE).await?;
    fetcher.see(of, name).await?;
    let chaos = |preset| fetcher.ask::<()>(Request::Chaos { preset });
    chaos(Some(preset)).await?;
    let fetched = fetcher.fetch(of, name).await?;
    let mut raw = [0.0; IN_FLIGHT.len()];
    for (rate, in_flight) in raw.iter_mut().zip(IN_FLIGHT) {
        *rate = fetcher.window_rate(holder, MOBILE_FILE, in_flight).await?;
    }
    chaos(None).await?;
    Ok((fetched, raw))
}
