//! The side that is called.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use veilid_core::{RouteBlob, VeilidAPIError};

use crate::core::server::ListenerId;
use crate::node::{Node, RouteSide, error_kind, route_tag};
use crate::stream::{Host, halves};
use crate::{Error, Psk, RecvStream, Result, SendStream, SessionId};

/// Listens on a private route, which it replaces when it dies. Dropping it closes it.
pub struct Listener {
    node: Arc<Node>,
    id: ListenerId,
    route: watch::Receiver<Option<Bytes>>,
    accept: Arc<Notify>,
    closed: CancellationToken,
}

/// A stream that the other side opened.
#[derive(Debug)]
pub struct Incoming {
    /// The session that it belongs to. All streams with this id come from one client.
    pub session: SessionId,
    /// What the client wants to speak on the stream.
    pub protocol: u16,
    /// What goes to the client.
    pub send: SendStream,
    /// What comes from the client.
    pub recv: RecvStream,
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener").finish_non_exhaustive()
    }
}

impl Listener {
    pub(crate) async fn start(node: Arc<Node>, psk: Psk) -> Result<Self> {
        let closed = node.released.child_token();
        let (publish, mut route) = watch::channel(None);
        let (id, accept) = node.listen(psk);
        node.tasks.spawn_on(
            keep_route(node.clone(), id, publish, closed.clone()),
            &node.runtime,
        );
        // Dropped when this future is, and then it closes.
        let listener = Listener {
            node,
            id,
            route: route.clone(),
            accept,
            closed,
        };
        tokio::select! {
            found = route.wait_for(Option::is_some) => match found {
                Ok(_) => {}
                Err(_) => return Err(Error::Veilid("the node has shut down".into())),
            },
            () = listener.closed.cancelled() => return Err(Error::Closed),
        }
        Ok(listener)
    }

    /// The blob of the current route, to be published; it changes when a dead route was replaced, and is `None` while there is none.
    pub fn route(&self) -> watch::Receiver<Option<Bytes>> {
        self.route.clone()
    }

    /// The next stream that a client opens, or `None` once the listener is closed. May be called by several tasks at once, and dropped at any time.
    pub async fn accept(&self) -> Option<Incoming> {
        loop {
            let woken = self.accept.notified();
            match self.node.take_incoming(self.id) {
                Ok(Some((key, id, protocol))) => {
                    let (send, recv) = halves(Host::Server(self.node.clone(), key), id);
                    return Some(Incoming {
                        session: key.1,
                        protocol,
                        send,
                        recv,
                    });
                }
                Ok(None) => woken.await,
                Err(_) => {
                    // For the next one who waits.
                    self.accept.notify_one();
                    return None;
                }
            }
        }
    }

    /// Ends all sessions of this listener, tells their clients, and releases its route. Takes two seconds when a client with open streams does
    /// not call in that time.
    pub async fn close(&self) {
        self.node.unlisten(self.id).await;
        self.closed.cancel();
        // The task that keeps the route drops the sender when the route is released.
        let mut route = self.route.clone();
        while route.changed().await.is_ok() {}
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let (node, id, closed) = (self.node.clone(), self.id, self.closed.clone());
        self.node.runtime.spawn(async move {
            node.unlisten(id).await;
            closed.cancel();
        });
    }
}

/// Keeps a private route alive until `closed`, and releases it then.
async fn keep_route(
    node: Arc<Node>,
    id: ListenerId,
    publish: watch::Sender<Option<Bytes>>,
    closed: CancellationToken,
) {
    loop {
        let Some(RouteBlob { route_id, blob }) = allocate(&node, &closed).await else {
            return;
        };
        let tag = route_tag(&route_id);
        let died = node.watch(RouteSide::Own, &route_id);
        node.add_route(id, tag);
        publish.send_replace(Some(blob.into()));
        let dead = node.is_dead(&route_id)
            || tokio::select! {
                () = died.notified() => true,
                () = closed.cancelled() => false,
            };
        node.unwatch(RouteSide::Own, &route_id, &died);
        node.remove_route(tag);
        publish.send_replace(None);
        if !dead {
            // An error says that it died just now.
            let _ = node.api.release_private_route(route_id);
            return;
        }
        tracing::debug!("a listener's route died, it is being replaced");
    }
}

/// Tries until there is a route; `None` when the listener is closed or the node has shut down.
async fn allocate(node: &Node, closed: &CancellationToken) -> Option<RouteBlob> {
    let mut pause = node.limits.route_backoff / 40;
    loop {
        let api = node.api.clone();
        let mut attempt = node
            .runtime
            .spawn(async move { api.new_private_route().await });
        let result = tokio::select! {
            result = &mut attempt => result,
            () = closed.cancelled() => {
                // Dropped half-way, a route would stay allocated for good.
                let api = node.api.clone();
                node.runtime.spawn(async move {
                    if let Ok(Ok(late)) = attempt.await {
                        let _ = api.release_private_route(late.route_id);
                    }
                });
                return None;
            }
        };
        match result {
            Ok(Ok(blob)) => return Some(blob),
            Ok(Err(error @ (VeilidAPIError::NotInitialized | VeilidAPIError::Shutdown))) => {
                tracing::debug!(
                    kind = error_kind(&error),
                    "no route for a listener: the node has shut down"
                );
                return None;
            }
            Ok(Err(error)) => tracing::debug!(
                kind = error_kind(&error),
                pause_ms = pause.as_millis(),
                "no route for a listener yet"
            ),
            // The attempt panicked inside Veilid, or the runtime is going down.
            Err(error) => {
                tracing::debug!(panicked = error.is_panic(), "no route for a listener yet")
            }
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = closed.cancelled() => return None,
        }
        pause = (pause * 2).clamp(Duration::from_millis(10), node.limits.route_backoff);
    }
}
