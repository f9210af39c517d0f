//! Starting a backend.

use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use dht_records::{Records, TableCache};
use group::{Group, GroupContext};
use repo::{Clock, SystemClock};
use store_adapter::{Protection, StoreOptions, VeilidStore};
use tokio::sync::watch;
use tunnels::{Limits, Tunnels};
use veilid_core::{UpdateCallback, VeilidAPI, VeilidAPIError, VeilidConfig, VeilidUpdate};

use crate::{
    Backend, Error, EventKind, KeyStorage, NetworkSettings, Result, backend::Attachment,
    events::Events, keys, state::State,
};

/// Says how a backend is to start.
#[must_use]
pub struct BackendBuilder {
    directory: PathBuf,
    network: NetworkSettings,
    key_storage: KeyStorage,
    clock: Arc<dyn Clock>,
    limits: Limits,
}

impl Default for BackendBuilder {
    fn default() -> Self {
        Self {
            directory: PathBuf::from("save-dweb"),
            network: NetworkSettings::default(),
            key_storage: KeyStorage::default(),
            clock: Arc::new(SystemClock),
            limits: Limits::default(),
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

    /// Where the device's keys are kept. Default: the operating system's keyring.
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

    /// Starts the device: opens what it remembers, finishes what a crash left, and begins to attach to the network without
    /// waiting for it.
    ///
    /// # Errors
    /// [`Error::DirectoryInUse`], [`Error::Directory`], [`Error::KeyringUnavailable`], [`Error::KeyLost`],
    /// [`Error::StateDamaged`], [`Error::Setting`]; nothing is deleted in any of these cases.
    pub async fn start(self) -> Result<Backend> {
        let lock = lock(&self.directory)?;
        let namespace = namespace(&self.directory)?;
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
            .map_err(startup_error)?;
        match self.open(&api, &updates, events, lock).await {
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
        let state = State::open(api).await?;
        let device = state.device().await?;
        let cache = TableCache::open(api).await?;
        let records = Records::new(api.clone(), Arc::new(cache));
        let protection = if self.insecure() {
            Protection::Insecure
        } else {
            Protection::Keyring
        };
        let options = StoreOptions::default().with_protection(protection);
        let store = VeilidStore::open(api, &self.directory.join("blobs"), options).await?;
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
        };
        let mut groups = Vec::new();
        let mut broken = Vec::new();
        for (id, secrets) in state.groups().await? {
            let loaded = match secrets {
                Ok(secrets) => Group::load(context.clone(), &secrets)
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
        api.attach().await?;
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
            updates.attachment.subscribe(),
            events,
            lock,
        );
        *backend.broken() = broken;
        for group in groups {
            backend.adopt(group).await;
        }
        Ok(backend)
    }

    fn insecure(&self) -> bool {
        self.network.insecure_storage || self.key_storage == KeyStorage::InsecureFile
    }

    fn config(&self, namespace: String) -> Result<VeilidConfig> {
        let directory = self.directory.join("veilid");
        let directory = directory.to_string_lossy();
        let mut config = VeilidConfig::new(
            "save-dweb",
            "open-archive",
            "org",
            Some(&directory),
            Some(&directory),
        );
        config.namespace = namespace;
        self.network.apply(&mut config)?;
        // Veilid's default deletes every table when the keyring is locked or lost.
        config.table_store.wipe_on_invalid_device_encryption_key = false;
        let insecure = self.insecure();
        config.protected_store.always_use_insecure_storage = insecure;
        config.protected_store.allow_insecure_fallback = insecure;
        if insecure {
            tracing::warn!("this device's keys are kept in a plain file");
        }
        Ok(config)
    }
}

/// Makes the directory, and holds it for this process.
fn lock(directory: &Path) -> Result<File> {
    let failed = |source| Error::Directory {
        path: directory.to_owned(),
        source,
    };
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(directory).map_err(failed)?;
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(directory.join("lock"))
        .map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(Error::DirectoryInUse),
        Err(std::fs::TryLockError::Error(source)) => Err(failed(source)),
    }
}

/// What tells this directory's keys from those of other directories in the same keyring: an id that is chosen once and moves with
/// the directory.
fn namespace(directory: &Path) -> Result<String> {
    let failed = |source| Error::Directory {
        path: directory.to_owned(),
        source,
    };
    let path = directory.join("id");
    match std::fs::read_to_string(&path) {
        Ok(id) if id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit()) => return Ok(id),
        Ok(_) => {
            return Err(Error::StateDamaged {
                what: "the directory's id",
            });
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    if directory.join("veilid").exists() {
        // A new id would make everything below unreadable without a word.
        return Err(Error::StateDamaged {
            what: "the directory's id is gone",
        });
    }
    let mut id = [0; 16];
    getrandom::fill(&mut id).map_err(|_| Error::Randomness)?;
    let id = data_encoding::HEXLOWER.encode(&id);
    let new = directory.join("id.new");
    let write = || {
        let mut file = File::create(&new)?;
        std::io::Write::write_all(&mut file, id.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&new, &path)?;
        File::open(directory)?.sync_all()
    };
    write().map_err(failed)?;
    Ok(id)
}

fn startup_error(error: VeilidAPIError) -> Error {
    let text = error.to_string();
    let about_keys = [
        "protected store",
        "keyring",
        "user secret",
        "device encryption key",
    ];
    if about_keys
        .iter()
        .any(|word| text.to_lowercase().contains(word))
    {
        keys::keyring(error)
    } else {
        Error::Veilid(error)
    }
}
