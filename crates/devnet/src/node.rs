//! A real Veilid node on a host.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{broadcast, watch};
use veilid_core::{KeyPair, PublicKeyGroup, SecretKeyGroup};
use veilid_core::{UpdateCallback, VeilidAPI, VeilidConfig, VeilidUpdate, api_startup};

use crate::{ChaosPreset, Error, Host, NetworkSettings, Result};

/// How many updates a receiver may lag behind before it misses some.
const UPDATES: usize = 1024;

/// How a node is started.
pub struct NodeOptions {
    /// The settings to start with; `None` takes the host's own.
    pub settings: Option<NetworkSettings>,
    /// Veilid's name for this node among the nodes of this process, and for its stores; `None`
    /// takes the host's name.
    pub namespace: Option<String>,
    /// Is called with every update, on the host's runtime, before the broadcast. Must not block.
    pub on_update: Option<UpdateCallback>,
    /// Whether to attach to the network at once. The default is to.
    pub attach: bool,
    /// Makes the node the bootstrap of the devnet, under this key.
    pub(crate) bootstrap: Option<KeyPair>,
}

impl Default for NodeOptions {
    fn default() -> Self {
        Self {
            settings: None,
            namespace: None,
            on_update: None,
            attach: true,
            bootstrap: None,
        }
    }
}

/// A running Veilid node. Dropping it shuts the node down in the background.
pub struct Node {
    api: VeilidAPI,
    host: Host,
    /// The number by which the host knows it.
    id: u64,
    updates: broadcast::Sender<VeilidUpdate>,
    ready: watch::Receiver<bool>,
}

impl Node {
    pub(crate) async fn start(host: &Host, directory: &Path, options: NodeOptions) -> Result<Self> {
        let own;
        let settings = match &options.settings {
            Some(settings) => settings,
            None => {
                own = host.network_settings();
                &own
            }
        };
        let namespace = options.namespace.as_deref().unwrap_or(host.name());
        let mut config = host.config_with(settings, directory, namespace)?;
        if let Some(keys) = &options.bootstrap {
            make_bootstrap(&mut config, keys);
        }
        std::fs::create_dir_all(directory).map_err(Error::file(directory))?;

        let (updates, _) = broadcast::channel(UPDATES);
        let (ready_sender, ready) = watch::channel(false);
        let (sender, on_update) = (updates.clone(), options.on_update);
        let callback: UpdateCallback = Arc::new(move |update: VeilidUpdate| {
            if let VeilidUpdate::Attachment(attachment) = &update {
                ready_sender.send_replace(attachment.public_internet_ready);
            }
            if let Some(on_update) = &on_update {
                on_update(update.clone());
            }
            // An error means that nobody listens.
            let _ = sender.send(update);
        });

        let (nodes, attach, chaos) = (
            Arc::clone(host.thread().nodes()),
            options.attach,
            settings.chaos,
        );
        let (api, id) = host
            .thread()
            .run(async move {
                let api = api_startup(callback, config).await?;
                let id = nodes.add(api.clone());
                if chaos.is_some() {
                    set_chaos(&api, chaos).await?;
                }
                if attach {
                    api.attach().await?;
                }
                Ok::<_, Error>((api, id))
            })
            .await??;
        Ok(Self {
            api,
            host: host.clone(),
            id,
            updates,
            ready,
        })
    }

    /// The node. Calls on it have to be made on the host's runtime: see [`Host::run`].
    pub fn api(&self) -> &VeilidAPI {
        &self.api
    }

    /// The host that it runs on.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// What the node reports from now on. A receiver that lags by more than 1,024 updates misses
    /// the oldest.
    pub fn updates(&self) -> broadcast::Receiver<VeilidUpdate> {
        self.updates.subscribe()
    }

    /// Waits until the node is `public_internet_ready`: it has an address, peers and routes.
    ///
    /// Fails with [`Error::NotReady`], which tells the node's state, once the time is over.
    pub async fn ready(&self, timeout: Duration) -> Result<()> {
        let mut ready = self.ready.clone();
        // A closed channel means that the node has shut down; its state will say so.
        let waited = tokio::time::timeout(timeout, ready.wait_for(|ready| *ready)).await;
        if matches!(waited, Ok(Ok(_))) {
            return Ok(());
        }
        Err(Error::NotReady {
            node: self.host.name().to_owned(),
            state: self.state().await,
            waited: timeout,
        })
    }

    /// Simulates a bad link inside the node, or a good one again with `None`.
    pub async fn set_chaos(&self, preset: Option<ChaosPreset>) -> Result<()> {
        let api = self.api.clone();
        self.host
            .thread()
            .run(async move { set_chaos(&api, preset).await })
            .await?
    }

    /// Shuts the node down and waits until it is. Its directory can be started from again.
    pub async fn shutdown(self) -> Result<()> {
        match self.host.thread().nodes().remove(self.id) {
            Some(api) => self.host.thread().run(api.shutdown()).await,
            None => Ok(()),
        }
    }

    /// Where the node stands, for an error message.
    async fn state(&self) -> String {
        let api = self.api.clone();
        let state = self
            .host
            .thread()
            .run(async move { api.get_state().await })
            .await;
        match state {
            Ok(Ok(state)) => format!(
                "{:?}, public internet ready: {}, {} peers, {} reliable",
                state.attachment.state,
                state.attachment.public_internet_ready,
                state.network.peers.len(),
                state.attachment.reliable_peer_count,
            ),
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let thread = self.host.thread();
        thread.nodes().end(self.id, thread.handle());
    }
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node")
            .field("host", &self.host)
            .finish_non_exhaustive()
    }
}

/// Makes a key pair for the bootstrap node, by a node that is never attached: only a node has
/// Veilid's cipher suites.
pub(crate) async fn generate_keys(host: &Host, directory: &Path) -> Result<KeyPair> {
    let options = NodeOptions {
        namespace: Some("keys".to_owned()),
        attach: false,
        ..NodeOptions::default()
    };
    let node = host.start_node_with(directory, options).await?;
    let api = node.api().clone();
    let keys = host
        .run(async move {
            let crypto = api.crypto()?;
            let kind = veilid_core::CRYPTO_KIND_VLD0;
            let suite = crypto.get(kind).ok_or_else(|| {
                veilid_core::VeilidAPIError::generic("veilid-core was built without VLD0")
            })?;
            Ok::<_, veilid_core::VeilidAPIError>(suite.generate_keypair())
        })
        .await?;
    node.shutdown().await?;
    Ok(keys)
}

fn make_bootstrap(config: &mut VeilidConfig, keys: &KeyPair) {
    let routing = &mut config.network.routing_table;
    routing.public_keys = PublicKeyGroup::from(keys.key());
    routing.secret_keys = SecretKeyGroup::from(keys.secret());
    routing.serve_direct_bootstrap = true;
}

async fn set_chaos(api: &VeilidAPI, preset: Option<ChaosPreset>) -> Result<()> {
    let command = match preset {
        Some(preset) => format!("chaos preset {}", preset.name()),
        None => "chaos reset".to_owned(),
    };
    api.debug(command).await?;
    Ok(())
}
