//! The tunnels of one Veilid node.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::mpsc;
use veilid_core::{VeilidAPI, VeilidUpdate};

use crate::node::{Call, Node, serve_calls};
use crate::{Error, Limits, Listener, Psk, Result, Session};

/// Where a session finds a route to the other side.
#[async_trait]
pub trait RouteSource: Send + Sync + 'static {
    /// A route blob to whoever is to be reached. Asked at first, once more while the first one is tried, and again whenever a route died or
    /// went silent.
    ///
    /// Without `failed`, what is known at once is best, even if it is old. `failed` is the blob in use, which stopped working or of which
    /// that is not known yet: then the newest is asked for. The same blob may be returned again when no other is known. An error, such as
    /// [`Error::RouteSource`], makes the session ask again after a growing pause. The future may be dropped at any time.
    async fn route(&self, failed: Option<&[u8]>) -> Result<Vec<u8>>;
}

/// What a node's tunnels have done since they were started: `app_call`s, and the bytes of their messages and replies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Calls made, those that got lost included.
    pub calls_made: u64,
    /// Calls answered, those of strangers included.
    pub calls_answered: u64,
    /// Bytes of the calls made and of the replies given.
    pub bytes_sent: u64,
    /// Bytes of the replies that came and of the calls taken.
    pub bytes_received: u64,
}

/// All tunnels of one Veilid node: what it listens on and what it connects to. Cheap to clone.
///
/// When the last clone is dropped, everything is closed.
#[derive(Clone)]
pub struct Tunnels {
    node: Arc<Node>,
    calls: mpsc::Sender<Call>,
}

impl fmt::Debug for Tunnels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tunnels").finish_non_exhaustive()
    }
}

impl Tunnels {
    /// Starts the node's tunnels. Their tasks run on the caller's tokio runtime, which has to be the one that the node was started on.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn new(api: VeilidAPI, limits: Limits) -> Self {
        let limits = limits.checked();
        let (calls, queue) = mpsc::channel(limits.call_queue);
        let node = Node::new(api, limits);
        node.runtime.spawn(serve_calls(node.clone(), queue));
        Tunnels { node, calls }
    }

    /// Takes every update of the node; to be called in its update callback. It never blocks. It answers every `AppCall` of the node, those on
    /// foreign routes with one byte.
    pub fn handle_update(&self, update: &VeilidUpdate) {
        match update {
            VeilidUpdate::AppCall(call) => {
                // A full queue drops the call, and its caller repeats it.
                match self.calls.try_reserve() {
                    Ok(place) => place.send(Call::new(call)),
                    Err(_) => tracing::debug!("a call was dropped: too many at once"),
                }
            }
            VeilidUpdate::RouteChange(change) => self.node.route_change(change),
            _ => {}
        }
    }

    /// Allocates a private route and listens on it for whoever holds `psk`. Waits until the node is attached and the route works; drop the future to
    /// give up.
    ///
    /// # Errors
    /// [`Error::Closed`] after [`close`](Self::close), [`Error::Veilid`] when the node has shut down.
    pub async fn listen(&self, psk: Psk) -> Result<Listener> {
        if self.node.closed.is_cancelled() {
            return Err(Error::Closed);
        }
        Listener::start(self.node.clone(), psk).await
    }

    /// A session with whoever listens with `psk` on a route that `source` knows. Nothing is sent before the first stream or ping.
    pub fn connect(&self, psk: Psk, source: Arc<dyn RouteSource>) -> Session {
        Session::start(self.node.clone(), psk, source)
    }

    /// What was called and answered so far.
    pub fn stats(&self) -> Stats {
        self.node.counts.stats()
    }

    /// Closes all listeners and sessions, tells the other sides, and releases all routes: within some three seconds. Later calls fail.
    pub async fn close(&self) {
        self.node.close().await;
    }
}
