//! The process of a device: a Veilid node with the project's stack on it, as `save-backend` builds it, that does what the bench asks.

mod serve;
mod slots;
mod work;

use std::{
    collections::HashMap,
    io::Write,
    path::{Path, PathBuf},
    sync::{Arc, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use clap::Parser;
use devnet::NetworkSettings;
use dht_records::{DeviceId, Records, TableCache};
use group::{Group, GroupContext, Ledger, Serving};
use repo::SystemClock;
use serde::Serialize;
use serde_json::Value;
use store_adapter::{Protection, StoreOptions, VeilidStore};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    runtime::Handle,
    sync::Mutex,
};
use tunnels::{Limits, Tunnels};
use veilid_core::{RouteBlob, RouteId, VeilidAPI, VeilidConfig, VeilidUpdate, api_startup};

use crate::{
    CHILD, Result, calls,
    protocol::{Answer, Line, Memory, Request},
};

/// How long a device looks for its network.
const READY: Duration = Duration::from_secs(120);
/// How long a device that ends tries to say so.
const FAREWELL: Duration = Duration::from_secs(3);

/// Runs a device until it is told to stop.
#[derive(Debug, Parser)]
#[command(name = CHILD)]
struct Arguments {
    /// Where everything of it is kept
    #[arg(long)]
    dir: PathBuf,
    /// How it reaches its network
    #[arg(long)]
    network: PathBuf,
}

/// Everything that a device has.
struct Device {
    api: VeilidAPI,
    context: GroupContext,
    /// The only group, once there is one.
    group: OnceLock<Group>,
    raw: Mutex<Option<RouteBlob>>,
    served: Mutex<Option<Arc<tunnels::Listener>>>,
    session: Mutex<Option<serve::ToServer>>,
    /// Groups whose members are all made here, by the owner's key pair.
    slots: Mutex<HashMap<String, slots::Slots>>,
    /// Groups whose members are read here.
    read: Mutex<HashMap<String, Group>>,
    updates: Arc<Updates>,
}

/// Takes the node's updates to whom they concern.
#[derive(Default)]
struct Updates {
    api: OnceLock<VeilidAPI>,
    records: OnceLock<Records>,
    tunnels: OnceLock<Tunnels>,
    /// Routes of this node that have died.
    dead: std::sync::Mutex<Vec<RouteId>>,
}

impl Updates {
    fn take(&self, update: &VeilidUpdate, runtime: &Handle) {
        if let VeilidUpdate::AppCall(call) = update
            && let Some((id, length)) = calls::asked(call)
            && let Some(api) = self.api.get().cloned()
        {
            runtime.spawn(async move { api.app_call_reply(id, vec![1; length]).await });
            return;
        }
        if let VeilidUpdate::RouteChange(change) = update {
            self.dead().extend(change.dead_routes.iter().cloned());
        }
        if let Some(records) = self.records.get() {
            records.handle_update(update);
        }
        if let Some(tunnels) = self.tunnels.get() {
            tunnels.handle_update(update);
        }
    }

    fn dead(&self) -> MutexGuard<'_, Vec<RouteId>> {
        self.dead.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads requests from standard input and answers on standard output; ends when told to, and with its input.
pub(crate) async fn run() -> Result<()> {
    devnet::trace_to_stderr();
    let arguments = Arguments::parse_from(std::env::args_os().skip(1));
    let device = Arc::new(Device::start(&arguments).await?);
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        let Line { id, request } = serde_json::from_str(&line)?;
        if matches!(request, Request::Stop) {
            device.stop().await?;
            return say(id, Ok(Value::Null));
        }
        let device = device.clone();
        tokio::spawn(async move {
            let result = device.answer(id, request).await;
            if let Err(error) = say(id, result.map_err(|error| error.to_string())) {
                eprintln!("save-bench: {error}");
            }
        });
    }
    Ok(())
}

/// Answers a request.
fn say(id: u64, result: Result<Value, String>) -> Result<()> {
    let mut line = serde_json::to_vec(&Answer { id, result })?;
    line.push(b'\n');
    let mut out = std::io::stdout().lock();
    out.write_all(&line)?;
    out.flush()?;
    Ok(())
}

fn value(value: impl Serialize) -> Result<Value> {
    Ok(serde_json::to_value(value)?)
}

impl Device {
    async fn start(arguments: &Arguments) -> Result<Self> {
        let settings: NetworkSettings =
            serde_json::from_slice(&std::fs::read(&arguments.network)?)?;
        std::fs::create_dir_all(&arguments.dir)?;
        let path = arguments.dir.to_str().ok_or("the path is no text")?;
        let mut config = VeilidConfig::new("save-bench", "bench", "org", Some(path), Some(path));
        config.table_store.wipe_on_invalid_device_encryption_key = false;
        settings.apply(&mut config)?;
        let updates = Arc::new(Updates::default());
        let (feed, runtime) = (updates.clone(), Handle::current());
        let api = api_startup(
            Arc::new(move |update: VeilidUpdate| feed.take(&update, &runtime)),
            config,
        )
        .await?;
        let records = Records::new(api.clone(), Arc::new(TableCache::open(&api).await?));
        let options = StoreOptions::default().with_protection(Protection::Insecure);
        let store = VeilidStore::open(&api, &arguments.dir.join("blobs"), options).await?;
        let tunnels = Tunnels::new(api.clone(), Limits::default());
        // Each is set here and nowhere else.
        let _ = updates.api.set(api.clone());
        let _ = updates.records.set(records.clone());
        let _ = updates.tunnels.set(tunnels.clone());
        api.attach().await?;
        Ok(Self {
            context: GroupContext {
                records,
                store,
                tunnels,
                device: device_id(&arguments.dir.join("id"))?,
                clock: Arc::new(SystemClock),
                ledger: Ledger::open(&api, &arguments.dir).await?,
                serving: Serving::default(),
            },
            api,
            group: OnceLock::new(),
            raw: Mutex::default(),
            served: Mutex::default(),
            session: Mutex::default(),
            slots: Mutex::default(),
            read: Mutex::default(),
            updates,
        })
    }

    async fn answer(&self, id: u64, request: Request) -> Result<Value> {
        match request {
            Request::Ready => {
                let _attached = self
                    .api
                    .wait_for_attachment_condition(None, Some(READY))
                    .await?;
                Ok(Value::Null)
            }
            Request::Create => value(self.create().await?),
            Request::Join { owner } => value(self.join(&owner).await?),
            Request::Load { keys } => value(self.load(&keys).await?),
            Request::Flush => value(self.flush().await?),
            Request::Put(put) => value(self.put(put).await?),
            Request::See { repo, name } => value(self.see(&repo, &name).await?),
            Request::Fetch(fetch) => value(self.fetch(id, fetch).await?),
            Request::Ping { repo } => value(self.ping(&repo).await?),
            Request::RawRoute => value(self.raw_route().await?),
            Request::Call(call) => value(calls::make(&self.api, call).await?),
            Request::Serve => value(self.serve().await?),
            Request::Stream { route, bytes } => value(self.stream(route, bytes).await?),
            Request::WriteSlots { members } => value(self.write_slots(members).await?),
            Request::ChangeSlot { owner } => value(self.change_slot(&owner).await?),
            Request::ReadMembers { owner } => value(self.read_members(&owner).await?),
            Request::ForgetMembers { owner } => value(self.forget_members(&owner).await?),
            Request::ReadSlotsBare { owner } => value(self.read_slots_bare(&owner).await?),
            Request::Chaos { preset } => {
                let command = match preset {
                    Some(preset) => format!("chaos preset {}", preset.name()),
                    None => "chaos reset".to_owned(),
                };
                self.api.debug(command).await?;
                Ok(Value::Null)
            }
            Request::Counts => value(self.counts()?),
            Request::Memory => {
                let memory = Memory {
                    now: status("VmRSS:")?,
                    peak: status("VmHWM:")?,
                };
                // Sets the peak to the present value.
                std::fs::write("/proc/self/clear_refs", "5")?;
                value(memory)
            }
            // Taken before it comes here.
            Request::Stop => Ok(Value::Null),
        }
    }

    async fn stop(&self) -> Result<()> {
        if let Some(group) = self.group.get() {
            group.stop(FAREWELL).await;
        }
        self.context.tunnels.close().await;
        self.context.records.close().await;
        self.context.ledger.close();
        self.context.store.close().await?;
        self.api.clone().shutdown().await;
        Ok(())
    }
}

/// The device's name for itself, which stays the same when it starts again.
fn device_id(file: &Path) -> Result<DeviceId> {
    match std::fs::read(file) {
        Ok(bytes) => Ok(DeviceId(
            bytes.try_into().map_err(|_| "the device's id is damaged")?,
        )),
        Err(_) => {
            let id = DeviceId::random()?;
            std::fs::write(file, id.0)?;
            Ok(id)
        }
    }
}

/// A line of this process's status, in KiB.
pub(crate) fn status(line: &str) -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let value = status
        .lines()
        .find_map(|found| found.strip_prefix(line))
        .and_then(|rest| rest.trim().strip_suffix(" kB"))
        .ok_or("the system does not tell the memory of this process")?;
    Ok(value.parse()?)
}
