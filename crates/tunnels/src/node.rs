//! What the tunnels of one node share: the server side, the routes in use, and the task that answers calls.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use veilid_core::{OperationId, RouteId, VeilidAPI, VeilidAppCall, VeilidRouteChange};

use crate::core::Now;
use crate::core::codec::{REFUSAL, RouteTag};
use crate::core::server::{CallToken, ListenerId, ServerCore, SessionKey};
use crate::core::streams::Event;
use crate::{Error, Limits, MAX_MESSAGE, Result, Stats};

/// Dead routes of our own that are remembered for a listener that is about to use one.
const REMEMBERED_DEAD: usize = 256;

/// How long a listener that closes waits for its clients to call once more: they pause for two seconds at most.
const FAREWELL: Duration = Duration::from_millis(2_250);

pub(crate) struct Node {
    pub api: VeilidAPI,
    pub limits: Limits,
    pub runtime: Handle,
    pub counts: Counts,
    origin: Instant,
    server: Mutex<ServerSide>,
    pub server_wake: Notify,
    /// A call was answered.
    told: Notify,
    routes: Mutex<Routes>,
    /// Nothing new begins, and sessions end.
    pub closed: CancellationToken,
    /// Listeners release their routes.
    pub released: CancellationToken,
    /// Those of listeners and sessions.
    pub tasks: TaskTracker,
}

/// What [`Stats`] tells, as it is counted.
#[derive(Default)]
pub(crate) struct Counts {
    made: AtomicU64,
    answered: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
}

impl Counts {
    pub fn call(&self, bytes: usize) {
        self.made.fetch_add(1, Ordering::Relaxed);
        self.sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub fn answer(&self, bytes: usize) {
        self.answered.fetch_add(1, Ordering::Relaxed);
        self.sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub fn received(&self, bytes: usize) {
        self.received.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub fn stats(&self) -> Stats {
        Stats {
            calls_made: self.made.load(Ordering::Relaxed),
            calls_answered: self.answered.load(Ordering::Relaxed),
            bytes_sent: self.sent.load(Ordering::Relaxed),
            bytes_received: self.received.load(Ordering::Relaxed),
        }
    }
}

/// A call that waits for this node's attention.
pub(crate) struct Call {
    token: CallToken,
    route: Option<RouteTag>,
    message: Bytes,
}

impl Call {
    pub fn new(call: &VeilidAppCall) -> Self {
        Call {
            token: call.id().as_u64(),
            route: call.route_id().map(route_tag),
            message: Bytes::copy_from_slice(call.message()),
        }
    }
}

/// Tasks that wait for the halves of a stream.
#[derive(Default)]
pub(crate) struct Wakers {
    pub send: Option<Waker>,
    pub recv: Option<Waker>,
}

#[derive(Default)]
struct AcceptQueue {
    streams: VecDeque<(SessionKey, u64)>,
    wake: Arc<Notify>,
}

struct ServerSide {
    core: ServerCore,
    wakers: HashMap<(SessionKey, u64), Wakers>,
    accept: HashMap<ListenerId, AcceptQueue>,
}

/// A node may import its own route; the two die apart, under one id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum RouteSide {
    Own,
    Remote,
}

#[derive(Default)]
struct Routes {
    /// Imported routes and how many sessions use each: Veilid has one entry for all of them.
    imported: HashMap<RouteId, usize>,
    /// Who wants to know when a route dies.
    watched: HashMap<(RouteSide, RouteId), Vec<Arc<Notify>>>,
    dead: VecDeque<RouteId>,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing is left half-done by a panic that matters more than going on.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What stands for a route in the keys of its sessions, the same on both sides.
pub(crate) fn route_tag(route: &RouteId) -> RouteTag {
    let mut hasher = blake3::Hasher::new();
    hasher
        .update(route.kind().bytes())
        .update(&route.ref_value().bytes());
    RouteTag(*hasher.finalize().as_bytes())
}

impl Node {
    pub fn new(api: VeilidAPI, limits: Limits) -> Arc<Self> {
        Arc::new(Node {
            api,
            runtime: Handle::current(),
            counts: Counts::default(),
            origin: Instant::now(),
            server: Mutex::new(ServerSide {
                core: ServerCore::new(limits.clone()),
                wakers: HashMap::new(),
                accept: HashMap::new(),
            }),
            server_wake: Notify::new(),
            told: Notify::new(),
            routes: Mutex::new(Routes::default()),
            closed: CancellationToken::new(),
            released: CancellationToken::new(),
            tasks: TaskTracker::new(),
            limits,
        })
    }

    pub fn now(&self) -> Now {
        self.origin.elapsed()
    }

    pub fn instant(&self, now: Now) -> Instant {
        self.origin + now.min(self.now() + Duration::from_secs(86_400))
    }

    // The server side.

    /// Does something to the server side, then wakes whom it concerns.
    fn serve<T>(&self, act: impl FnOnce(&mut ServerSide, Now) -> T) -> T {
        let mut wake = Vec::new();
        let result = {
            let mut server = lock(&self.server);
            let result = act(&mut server, self.now());
            let server = &mut *server;
            for (key, event) in server.core.events.drain(..) {
                match event {
                    Event::Opened(id) => wake_opened(&mut server.accept, key, id),
                    Event::Send(id) => wake.extend(
                        server
                            .wakers
                            .get_mut(&(key, id))
                            .and_then(|wakers| wakers.send.take()),
                    ),
                    Event::Recv(id) => wake.extend(
                        server
                            .wakers
                            .get_mut(&(key, id))
                            .and_then(|wakers| wakers.recv.take()),
                    ),
                }
            }
            result
        };
        wake.into_iter().for_each(Waker::wake);
        result
    }

    /// Does something to a session's streams. `wakers` are those of stream `id`.
    pub fn with_streams<T>(
        &self,
        key: &SessionKey,
        id: u64,
        act: impl FnOnce(&mut crate::core::streams::Streams, &mut Wakers, Now) -> T,
    ) -> Option<T> {
        let (result, due) = self.serve(|server, now| {
            let wakers = server.wakers.entry((*key, id)).or_default();
            let result = server.core.with(key, |streams| {
                let before = streams.due();
                let result = act(streams, wakers, now);
                (result, streams.due() != before)
            });
            match result {
                Some((result, due)) => (Some(result), due),
                None => {
                    server.wakers.remove(&(*key, id));
                    (None, false)
                }
            }
        });
        if due {
            self.server_wake.notify_one();
        }
        result
    }

    /// Both halves of a stream are dropped.
    pub fn forget_wakers(&self, key: &SessionKey, id: u64) {
        lock(&self.server).wakers.remove(&(*key, id));
    }

    pub fn listen(&self, psk: crate::Psk) -> (ListenerId, Arc<Notify>) {
        self.serve(|server, _| {
            let id = server.core.listen(psk);
            let queue = AcceptQueue::default();
            let wake = queue.wake.clone();
            server.accept.insert(id, queue);
            (id, wake)
        })
    }

    pub fn add_route(&self, listener: ListenerId, tag: RouteTag) {
        self.serve(|server, _| server.core.add_route(listener, tag));
    }

    pub fn remove_route(&self, tag: RouteTag) {
        self.serve(|server, _| server.core.remove_route(tag));
    }

    /// The next stream that nobody accepted yet. `Err` when the listener is closed.
    pub fn take_incoming(&self, listener: ListenerId) -> Result<Option<(SessionKey, u64, u16)>> {
        self.serve(|server, _| {
            let queue = server.accept.get_mut(&listener).ok_or(Error::Closed)?;
            let next = queue.streams.pop_front();
            if !queue.streams.is_empty() {
                queue.wake.notify_one();
            }
            let Some((key, id)) = next else {
                return Ok(None);
            };
            server.core.accepted(listener);
            // A session that ended meanwhile keeps its streams until they are dropped, so there is one.
            let protocol = server
                .core
                .with(&key, |streams| streams.protocol(id))
                .flatten()
                .unwrap_or_default();
            Ok(Some((key, id, protocol)))
        })
    }

    /// Ends a listener: its streams fail, and its clients are told, for as long as the longest pause between two of their calls.
    pub async fn unlisten(&self, listener: ListenerId) {
        let (replies, wake) = self.serve(|server, now| {
            let queue = server.accept.remove(&listener);
            let mut wake = None;
            if let Some(queue) = queue {
                for (key, id) in queue.streams {
                    server.core.with(&key, |streams| {
                        streams.drop_send(id, now);
                        streams.drop_recv(id, now);
                    });
                }
                wake = Some(queue.wake);
            }
            (server.core.close_listener(listener), wake)
        });
        if let Some(wake) = wake {
            wake.notify_waiters();
            wake.notify_one();
        }
        self.answer(replies).await;
        let until = Instant::now() + FAREWELL;
        while lock(&self.server).core.has_untold(listener) && Instant::now() < until {
            // Each call that comes may be the last of them.
            let _ = tokio::time::timeout_at(until, self.told.notified()).await;
        }
        self.serve(|server, _| server.core.remove_listener(listener));
    }

    /// Ends everything, and waits until routes are released.
    pub async fn close(&self) {
        self.closed.cancel();
        let listeners: Vec<ListenerId> = lock(&self.server).accept.keys().copied().collect();
        futures::future::join_all(
            listeners
                .into_iter()
                .map(|listener| self.unlisten(listener)),
        )
        .await;
        self.released.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    async fn answer(&self, replies: Vec<(CallToken, Vec<u8>)>) {
        for (token, reply) in replies {
            // Veilid drops a longer reply without a word, and the caller waits in vain.
            debug_assert!(reply.len() <= MAX_MESSAGE);
            self.counts.answer(reply.len());
            if let Err(error) = self
                .api
                .app_call_reply(OperationId::new(token), reply)
                .await
            {
                tracing::debug!(kind = error_kind(&error), "a call could not be answered");
            }
        }
    }

    // Routes.

    /// Imports a route, or counts one more user of it.
    pub fn import(&self, blob: &[u8]) -> std::result::Result<RouteId, veilid_core::VeilidAPIError> {
        let id = self.api.import_remote_private_route(blob.to_vec())?;
        *lock(&self.routes).imported.entry(id.clone()).or_default() += 1;
        Ok(id)
    }

    /// One user of an imported route less.
    pub fn release_import(&self, id: &RouteId) {
        let last = {
            let mut routes = lock(&self.routes);
            match routes.imported.get_mut(id) {
                Some(users) if *users > 1 => {
                    *users -= 1;
                    false
                }
                Some(_) => {
                    routes.imported.remove(id);
                    true
                }
                None => false,
            }
        };
        if last {
            // An error says that Veilid had dropped it already.
            let _ = self.api.release_private_route(id.clone());
        }
    }

    /// Whether one of our own routes was reported dead lately.
    pub fn is_dead(&self, id: &RouteId) -> bool {
        lock(&self.routes).dead.contains(id)
    }

    /// Notifies when a route of our own, or an imported one, dies, until [`unwatch`](Self::unwatch).
    pub fn watch(&self, side: RouteSide, id: &RouteId) -> Arc<Notify> {
        let notify = Arc::new(Notify::new());
        lock(&self.routes)
            .watched
            .entry((side, id.clone()))
            .or_default()
            .push(notify.clone());
        notify
    }

    pub fn unwatch(&self, side: RouteSide, id: &RouteId, notify: &Arc<Notify>) {
        let mut routes = lock(&self.routes);
        let key = (side, id.clone());
        if let Some(watchers) = routes.watched.get_mut(&key) {
            watchers.retain(|watcher| !Arc::ptr_eq(watcher, notify));
            if watchers.is_empty() {
                routes.watched.remove(&key);
            }
        }
    }

    pub fn route_change(&self, change: &VeilidRouteChange) {
        let mut routes = lock(&self.routes);
        let own = change
            .dead_routes
            .iter()
            .map(|id| (RouteSide::Own, id.clone()));
        let remote = change
            .dead_remote_routes
            .iter()
            .map(|id| (RouteSide::Remote, id.clone()));
        for key in own.chain(remote) {
            for watcher in routes.watched.get(&key).into_iter().flatten() {
                watcher.notify_one();
            }
        }
        routes.dead.extend(change.dead_routes.iter().cloned());
        while routes.dead.len() > REMEMBERED_DEAD {
            routes.dead.pop_front();
        }
    }
}

fn wake_opened(accept: &mut HashMap<ListenerId, AcceptQueue>, key: SessionKey, id: u64) {
    if let Some(queue) = accept.get_mut(&key.0) {
        queue.streams.push_back((key, id));
        queue.wake.notify_one();
    }
}

/// The name of an error's variant: its text may hold a route.
pub(crate) fn error_kind(error: &veilid_core::VeilidAPIError) -> &'static str {
    use veilid_core::VeilidAPIError as E;
    match error {
        E::NotInitialized => "not initialized",
        E::Timeout => "timeout",
        E::TryAgain { .. } => "try again",
        E::Shutdown => "shutdown",
        E::InvalidTarget { .. } => "invalid target",
        E::NoConnection { .. } => "no connection",
        E::InvalidArgument { .. } => "invalid argument",
        E::ParseError { .. } => "parse error",
        E::Internal { .. } => "internal",
        E::Generic { .. } => "generic",
        _ => "other",
    }
}

/// Answers the calls of a node until the last [`Tunnels`](crate::Tunnels) is dropped.
pub(crate) async fn serve_calls(node: Arc<Node>, mut calls: mpsc::Receiver<Call>) {
    loop {
        let wake = lock(&node.server).core.next_wake();
        let sleep = async {
            match wake {
                Some(at) => tokio::time::sleep_until(node.instant(at)).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            call = calls.recv() => match call {
                Some(call) => take_call(&node, call).await,
                None => break,
            },
            () = node.server_wake.notified() => {}
            () = sleep => {}
        }
        let replies = node.serve(|server, now| server.core.poll(now));
        node.answer(replies).await;
    }
    node.close().await;
}

async fn take_call(node: &Node, call: Call) {
    node.counts.received(call.message.len());
    let replies = match call.route {
        Some(route) => {
            node.serve(|server, now| server.core.on_call(call.token, route, call.message, now))
        }
        // Not over a private route, so not for a listener.
        None => vec![(call.token, REFUSAL.to_vec())],
    };
    node.answer(replies).await;
    node.told.notify_waiters();
}
