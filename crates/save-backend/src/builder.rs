//! Starting a backend.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::Duration,
};

use dht_records::{Records, TableCache};
use group::{Group, GroupContext, Ledger, Serving};
use repo::{Clock, SystemClock};
use store_adapter::{StoreOptions, VeilidStore};
use tokio::sync::watch;
use tunnels::{Limits, Tunnels};
use veilid_core::{UpdateCallback, VeilidAPI, VeilidAPIError, VeilidConfig, VeilidUpdate};

use crate::{
    Backend, Error, EventKind, KeyStorage, NetworkSettings, Result,
    backend::Attachment,
    directory::{self, KeyPlace},
    events::Events,
    state::State,
};

/// How often what nothing names any more is removed, and erased for good.
const COLLECT: Duration = Duration::from_secs(60 * 60);

/// Says how a backend is to start.
#[must_use]
pub struct BackendBuilder {
    directory: PathBuf,
    network: NetworkSettings,
    key_storage: KeyStorage,
    clock: Arc<dyn Clock>,
    limits: Limits,
    offline: bool,
}

impl Default for BackendBuilder {
    fn default() -> Self {
        Self {
            directory: PathBuf::from("save-dweb"),
            network: NetworkSettings::default(),
            key_storage: KeyStorage::default(),
            clock: Arc::new(SystemClock),
            limits: Limits::default(),
            offline: false,
        }
    }
}

/// What the node's update callback needs; it is there before the things that it feeds.
struct Updates {
    records: OnceLock<Records>,
    tunnels: OnceLock<Tunnels>,
    attachment: watch::Sender<Attachment>,
    events: Arc<Events>,
}

impl Updates {
    /// Called inside Veilid's callback: neither blocks nor awaits.
    fn take(&self, update: &VeilidUpdate) {
        if let Some(records) = self.records.get() {
            records.handle_update(update);
        }
        if let Some(tunnels) = self.tunnels.get() {
            tunnels.handle_update(update);
        }
        if let VeilidUpdate::Attachment(attachment) = update {
            let now = Attachment {
                state: attachment.state.to_string(),
                online: attachment.public_internet_ready,
            };
            let before = self.attachment.send_replace(now.clone());
            if before.online != now.online {
                self.events.emit(EventKind::Network { online: now.online });
            }
        }
    }
}

impl BackendBuilder {
    /// The directory below which everything is kept; made if it is not there. One process uses it at a time. Default:
    /// `save-dweb` in the current directory.
    pub fn directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = directory.into();
        self
    }

    /// Which Veilid network. Default: the public one.
    pub fn network(mut self, network: NetworkSettings) -> Self {
        self.network = network;
        self
    }

    /// How the device's keys are guarded. Default: by the operating system's keyring.
    pub fn key_storage(mut self, key_storage: KeyStorage) -> Self {
        self.key_storage = key_storage;
        self
    }

    /// What time it is. Default: the system's clock.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// The limits of the tunnels. Default: those of [`Limits`].
    pub fn tunnel_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Whether to stay off the network until [`Backend::go_online`]: nobody can see then that this device is in use. Default: no.
    pub fn offline(mut self, offline: bool) -> Self {
        self.offline = offline;
        self
    }

    /// Starts the device: opens what it remembers, finishes what a crash left, and begins to attach to the network without
    /// waiting for it, unless it is to stay [`offline`](Self::offline).
    ///
    /// # Errors
    /// [`Error::DirectoryInUse`], [`Error::Directory`], [`Error::StateDamaged`], [`Error::Setting`]; of the keys
    /// [`Error::KeyringUnavailable`], [`Error::PasswordRequired`], [`Error::KeyFileRequired`], [`Error::WrongKey`],
    /// [`Error::NotWrapped`], [`Error::InsecureKeyStorage`], [`Error::KeyFile`], [`Error::KeyLost`], [`Error::KeyDamaged`],
    /// [`Error::NewerKeyFormat`]. Nothing is deleted in any of these cases.
    pub async fn start(self) -> Result<Backend> {
        let lock = directory::lock(&self.directory)?;
        let namespace = directory::namespace(&self.directory)?;
        let events = Arc::new(Events::default());
        let updates = Arc::new(Updates {
            records: OnceLock::new(),
            tunnels: OnceLock::new(),
            attachment: watch::Sender::new(Attachment::default()),
            events: events.clone(),
        });
        let callback: UpdateCallback = {
            let updates = updates.clone();
            Arc::new(move |update| updates.take(&update))
        };
        let api = veilid_core::api_startup(callback, self.config(namespace)?)
            .await
            .map_err(|error| startup_error(&self.directory, error))?;
        match Box::pin(self.open(&api, &updates, events, lock)).await {
            Ok(backend) => Ok(backend),
            Err(error) => {
                // Nothing holds on to the node any more; without this it would keep its directory locked.
                api.shutdown().await;
                Err(error)
            }
        }
    }

    async fn open(
        &self,
        api: &VeilidAPI,
        updates: &Updates,
        events: Arc<Events>,
        lock: File,
    ) -> Result<Backend> {
        let protection = self.key_storage.protection(self.network.insecure_storage);
        let mut state = State::open(api, &self.directory, protection.clone()).await?;
        let device = state.device().await?;
        let cache = TableCache::open(api).await?;
        let records = Records::new(api.clone(), Arc::new(cache));
        let blobs = self.directory.join(directory::BLOBS);
        let options = StoreOptions::default()
            .with_protection(protection)
            .with_gc_interval(Some(COLLECT));
        let store = VeilidStore::open(api, &blobs, options).await?;
        if let Err(error) = state.settle().await {
            // What is there can be used all the same, on a full disk for example.
            tracing::warn!(%error, "a change of the keys' protection is not complete yet");
        }
        let tunnels = Tunnels::new(api.clone(), self.limits.clone());
        // Both are set once, here.
        let _ = updates.records.set(records.clone());
        let _ = updates.tunnels.set(tunnels.clone());
        let context = GroupContext {
            records,
            store,
            tunnels,
            device,
            clock: self.clock.clone(),
            ledger: Ledger::open(api, &self.directory).await?,
            serving: Serving::default(),
        };
        let mut groups = Vec::new();
        let mut broken = Vec::new();
        let mut endings = Vec::new();
        for (id, remembered) in state.groups().await? {
            let loaded = match remembered {
                Ok(ending) if ending.ending.is_some() => {
                    endings.push(ending);
                    continue;
                }
                Ok(remembered) => Group::load(context.clone(), &remembered.secrets)
                    .await
                    .map_err(Error::from),
                Err(error) => Err(error),
            };
            match loaded {
                Ok(group) => groups.push(group),
                // One broken group must not keep the others from their archives.
                Err(error) => {
                    tracing::warn!(%error, "a group cannot be opened");
                    broken.push((id, error.to_string()));
                }
            }
        }
        if !self.offline {
            api.attach().await?;
        }
        if let Some(preset) = &self.network.chaos {
            api.debug(format!("chaos preset {preset}"))
                .await
                .map_err(|e| Error::Setting {
                    name: "chaos",
                    reason: e.to_string(),
                })?;
            tracing::warn!("a bad link is being simulated");
        }
        let backend = Backend::assemble(
            api.clone(),
            context,
            state,
            (!self.offline, updates.attachment.subscribe()),
            events,
            (self.directory.clone(), lock),
        );
        *backend.broken() = broken;
        for group in groups {
            backend.adopt(group).await;
        }
        backend.go_on_moving().await;
        backend.go_on_ending(endings).await;
        Ok(backend)
    }

    fn config(&self, namespace: String) -> Result<VeilidConfig> {
        let mut config = directory::config(&self.directory, namespace);
        self.network.apply(&mut config)?;
        store_adapter::repair_secrets(&config).map_err(directory::failed(&self.directory))?;
        let plain = self.network.insecure_storage;
        KeyPlace::of(&config).apply(&mut config, &self.key_storage, plain);
        if matches!(self.key_storage, KeyStorage::InsecureFile) && !plain {
            tracing::warn!("this device's keys are kept in a plain file");
        }
        Ok(config)
    }

    pub(crate) fn directory_path(&self) -> &Path {
        &self.directory
    }
}

/// What it means that the node does not start. Veilid says it in words only.
pub(crate) fn startup_error(directory: &Path, error: VeilidAPIError) -> Error {
    let text = error.to_string();
    let says = |words: &[&str]| {
        let text = text.to_lowercase();
        words.iter().any(|word| text.contains(word))
    };
    // The table store says no more when its key is another one than before.
    if matches!(error, VeilidAPIError::NotInitialized) || says(&["not initialized"]) {
        return Error::KeyLost;
    }
    if says(&[
        "protected store",
        "keyring",
        "user secret",
        "device encryption key",
    ]) {
        return Error::KeyringUnavailable { reason: text };
    }
    if says(&["disk is full", "no space left"]) {
        let full = io::Error::new(io::ErrorKind::StorageFull, text);
        return directory::failed(directory)(full);
    }
    if says(&["disk i/o error"]) {
        return directory::failed(directory)(io::Error::other(text));
    }
    Error::Veilid(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn why_a_node_does_not_start_is_told_apart() {
        let of = |text: &str| startup_error(Path::new("d"), VeilidAPIError::generic(text));
        assert!(matches!(
            of("Could not initialize the protected store."),
            Error::KeyringUnavailable { .. }
        ));
        let locked = VeilidAPIError::try_again("protected store is locked, retry once");
        assert!(startup_error(Path::new("d"), locked).is_retryable());
        assert!(matches!(of("Not initialized"), Error::KeyLost));
        assert!(matches!(
            of("database or disk is full"),
            Error::Directory { source, .. } if source.kind() == io::ErrorKind::StorageFull
        ));
        assert!(matches!(of("disk I/O error"), Error::Directory { .. }));
        assert!(matches!(of("something else"), Error::Veilid(_)));
    }
}
