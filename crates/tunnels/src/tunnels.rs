//! The tunnels of one Veilid node.

use std::sync::Arc;

use async_trait::async_trait;
use veilid_core::{VeilidAPI, VeilidUpdate};

use crate::{Limits, Listener, Psk, Result, Session};

/// Where a session finds a route to the other side.
#[async_trait]
pub trait RouteSource: Send + Sync + 'static {
    /// A route blob to whoever is to be reached. Asked at first, and again whenever a route died.
    ///
    /// `failed` is the blob that stopped working; the same blob may be returned again when no other is known. An error, such as
    /// [`Error::RouteSource`](crate::Error::RouteSource), makes the session ask again after a growing pause. The future may be dropped at any time.
    async fn route(&self, failed: Option<&[u8]>) -> Result<Vec<u8>>;
}

/// All tunnels of one Veilid node: what it listens on and what it connects to. Cheap to clone.
#[derive(Clone)]
pub struct Tunnels {
    #[allow(dead_code)]
    api: VeilidAPI,
}

impl Tunnels {
    /// Starts the node's tunnels. Their tasks run on the caller's tokio runtime, which has to be the one that the node was started on.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn new(api: VeilidAPI, limits: Limits) -> Self {
        let _ = limits;
        Tunnels { api }
    }

    /// Takes every update of the node; to be called in its update callback. It never blocks. It answers every `AppCall` of the node, those on
    /// foreign routes with one byte.
    pub fn handle_update(&self, update: &VeilidUpdate) {
        let _ = update;
    }

    /// Allocates a private route and listens on it for whoever holds `psk`. Waits until the node is attached and the route works; drop the future to
    /// give up.
    ///
    /// # Errors
    /// [`Error::Closed`](crate::Error::Closed) after [`close`](Self::close).
    pub async fn listen(&self, psk: Psk) -> Result<Listener> {
        let _ = psk;
        Err(crate::Error::Closed)
    }

    /// A session with whoever listens with `psk` on a route that `source` knows. Nothing is sent before the first stream or ping.
    pub fn connect(&self, psk: Psk, source: Arc<dyn RouteSource>) -> Session {
        let _ = (psk, source);
        Session {}
    }

    /// Closes all listeners and sessions, tells the other sides, and releases all routes. Later calls do nothing.
    pub async fn close(&self) {}
}
