//! A device of its own process on a host of the devnet, as the bench sees it.

use std::{
    collections::HashMap,
    process::Stdio,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use devnet::{Devnet, Host, NetworkSettings};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::{Child, ChildStdin, Command},
    sync::oneshot,
    time::timeout,
};

use crate::{
    CHILD, Result, calls,
    protocol::{Answer, Call, Called, Counts, Fetch, Fetched, Keys, Line, Memory, Put, Request},
};

/// Longer than anything here takes that does not hang.
const LIMIT: Duration = Duration::from_secs(1_200);
/// How long a device may take to end.
const STOP: Duration = Duration::from_secs(30);
/// In flight, of which the best counts as what bare calls carry.
pub(crate) const IN_FLIGHT: [usize; 4] = [8, 16, 32, 64];
/// A bare call for data, and its reply, in bytes.
const CALL: usize = 64;
const REPLY: usize = 32_000;
/// How long TCP's congestion control may keep believing in the round trip of before: BBR takes the shortest of ten seconds, and sends
/// little where that was much shorter. A device that moves to a longer link makes new connections, which have nothing to forget.
const BELIEVED: Duration = Duration::from_secs(11);
/// What stop and wait sends in a call, in bytes.
const STOP_AND_WAIT: usize = 28 * 1024;

type Waiting = Mutex<HashMap<u64, oneshot::Sender<Result<Value, String>>>>;

/// A device that is running.
pub(crate) struct Device {
    pub(crate) host: Host,
    child: Child,
    stdin: tokio::sync::Mutex<ChildStdin>,
    waiting: Arc<Waiting>,
    next: AtomicU64,
}

fn lock(waiting: &Waiting) -> MutexGuard<'_, HashMap<u64, oneshot::Sender<Result<Value, String>>>> {
    // A map that no panic leaves half changed.
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Device {
    /// Starts a device on the host of this name and waits until it is on the network.
    ///
    /// It is no hop for others: a route through the link that is measured would be a longer way for whoever happens to have it,
    /// the baseline or what stands beside it.
    pub(crate) async fn start(devnet: &Devnet, name: &str) -> Result<Self> {
        let host = devnet.host(name).await?;
        let settings = host.network_settings().serving_nobody();
        Self::start_with(host, settings).await
    }

    /// The same with settings of one's own. A host on which a device was running before starts that one again.
    pub(crate) async fn start_with(host: Host, settings: NetworkSettings) -> Result<Self> {
        let file = host.directory().join("network.json");
        settings.write(&file)?;
        let mut command = Command::from(host.command(std::env::current_exe()?));
        command
            // As `save` has it.
            .env("MALLOC_ARENA_MAX", "1")
            .arg(CHILD)
            .arg("--dir")
            .arg(host.directory().join("device"))
            .arg("--network")
            .arg(file)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn()?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err("a device cannot be spoken to".into());
        };
        let waiting = Arc::<Waiting>::default();
        let answered = waiting.clone();
        tokio::spawn(async move {
            let mut lines = BufReader::new(stdout).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                let Ok(answer) = serde_json::from_str::<Answer>(&line) else {
                    eprintln!("save-bench: a device says {line:?}");
                    continue;
                };
                if let Some(asker) = lock(&answered).remove(&answer.id) {
                    // Whoever gave up does not want to know.
                    let _ = asker.send(answer.result);
                }
            }
            // It has ended: who waits is told so.
            lock(&answered).clear();
        });
        let device = Self {
            host,
            child,
            stdin: tokio::sync::Mutex::new(stdin),
            waiting,
            next: AtomicU64::new(0),
        };
        device.ask::<()>(Request::Ready).await?;
        Ok(device)
    }

    /// Asks for something and waits for the answer.
    pub(crate) async fn ask<T: DeserializeOwned>(&self, request: Request) -> Result<T> {
        let name = self.host.name();
        let what = format!("{request:?}");
        let what: String = what.chars().take(60).collect();
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (asker, answer) = oneshot::channel();
        lock(&self.waiting).insert(id, asker);
        let mut line = serde_json::to_string(&Line { id, request })?;
        line.push('\n');
        self.stdin.lock().await.write_all(line.as_bytes()).await?;
        match timeout(LIMIT, answer).await {
            Ok(Ok(Ok(value))) => Ok(serde_json::from_value(value)?),
            Ok(Ok(Err(error))) => Err(format!("{name}: {what}: {error}").into()),
            Ok(Err(_)) => Err(format!("{name}: {what}: the device has ended").into()),
            Err(_) => Err(format!("{name}: {what}: no answer in {LIMIT:?}").into()),
        }
    }

    /// Makes a group, publishes it, and gives its keys.
    pub(crate) async fn create(&self) -> Result<Keys> {
        let keys = self.ask(Request::Create).await?;
        self.ask::<()>(Request::Flush).await?;
        Ok(keys)
    }

    /// Joins a group and waits until everybody can see that.
    pub(crate) async fn join(&self, group: &Keys) -> Result<Keys> {
        let owner = group.owner.clone();
        let keys = self.ask(Request::Join { owner }).await?;
        self.ask::<()>(Request::Flush).await?;
        Ok(keys)
    }

    /// Writes files and waits until they are published.
    pub(crate) async fn put(&self, name: &str, files: usize, bytes: u64) -> Result<()> {
        let put = Put {
            name: name.to_owned(),
            files,
            bytes,
        };
        self.ask::<f64>(Request::Put(put)).await?;
        self.ask(Request::Flush).await
    }

    /// Waits until the list of a member's files has this name here.
    pub(crate) async fn see(&self, of: &Keys, name: &str) -> Result<()> {
        let (repo, name) = (of.repo.clone(), name.to_owned());
        self.ask(Request::See { repo, name }).await
    }

    /// Fetches a file of a member.
    pub(crate) async fn fetch(&self, of: &Keys, name: &str) -> Result<Fetched> {
        self.ask(Request::Fetch(Fetch {
            repo: of.repo.clone(),
            name: name.to_owned(),
            die_at: None,
        }))
        .await
    }

    /// Has a member put a file, and fetches it here once it is seen.
    pub(crate) async fn exchange(
        &self,
        from: &Device,
        of: &Keys,
        name: &str,
        bytes: u64,
    ) -> Result<Fetched> {
        from.put(name, 1, bytes).await?;
        self.see(of, name).await?;
        // What publishing and seeing set off is over.
        tokio::time::sleep(Duration::from_secs(1)).await;
        self.fetch(of, name).await
    }

    /// A route to this device for bare calls.
    pub(crate) async fn raw_route(&self) -> Result<Vec<u8>> {
        self.ask(Request::RawRoute).await
    }

    /// The best rate of bare calls of 64 bytes with replies of 32,000, in MB/s: so many bytes for each number in flight.
    pub(crate) async fn raw_rate(&self, to: &Device, bytes: u64) -> Result<f64> {
        let mut best: f64 = 0.0;
        for in_flight in IN_FLIGHT {
            best = best.max(self.window_rate(to, bytes, in_flight).await?);
        }
        Ok(best)
    }

    /// The rate of bare calls with so many in flight, in MB/s.
    pub(crate) async fn window_rate(
        &self,
        to: &Device,
        bytes: u64,
        in_flight: usize,
    ) -> Result<f64> {
        let calls = usize::try_from(bytes)?.div_ceil(REPLY);
        let called = self.call(to, calls, in_flight, CALL, REPLY).await?;
        Ok((called.answered * REPLY) as f64 / called.seconds / 1e6)
    }

    /// The rate at which a sender goes that waits for the reply to each call, in MB/s.
    pub(crate) async fn stop_and_wait_rate(&self, to: &Device, bytes: u64) -> Result<f64> {
        let calls = usize::try_from(bytes)?.div_ceil(STOP_AND_WAIT);
        let called = self.call(to, calls, 1, STOP_AND_WAIT, 1).await?;
        Ok((called.answered * STOP_AND_WAIT) as f64 / called.seconds / 1e6)
    }

    /// Makes bare calls.
    pub(crate) async fn call(
        &self,
        to: &Device,
        calls: usize,
        in_flight: usize,
        bytes: usize,
        reply: usize,
    ) -> Result<Called> {
        let called: Called = self
            .ask(Request::Call(Call {
                route: to.raw_route().await?,
                calls,
                in_flight,
                bytes: bytes.max(calls::LEAST),
                reply,
            }))
            .await?;
        if called.answered == 0 {
            return Err("not one bare call was answered".into());
        }
        Ok(called)
    }

    /// What its node did so far.
    pub(crate) async fn counts(&self) -> Result<Counts> {
        self.ask(Request::Counts).await
    }

    /// Its memory; the peak starts anew.
    pub(crate) async fn memory(&self) -> Result<Memory> {
        self.ask(Request::Memory).await
    }

    /// Waits until the process has ended by itself.
    pub(crate) async fn ended(mut self) -> Result<()> {
        timeout(STOP, self.child.wait()).await??;
        Ok(())
    }

    /// Makes the link of its host as long as this, and waits until every connection has learnt that.
    pub(crate) async fn set_delay(&self, round_trip: Option<Duration>) -> Result<()> {
        if round_trip == self.host.delay().await {
            return Ok(());
        }
        self.host.set_delay(round_trip).await?;
        tokio::time::sleep(BELIEVED).await;
        Ok(())
    }

    /// Ends the device in good order.
    pub(crate) async fn stop(self) -> Result<()> {
        self.ask::<()>(Request::Stop).await?;
        self.ended().await
    }
}
