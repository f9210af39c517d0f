//! A network namespace with a tokio runtime inside: what a host, and the router, run on.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

use futures::future::join_all;
use rustix::fs::{Mode, OFlags};
use rustix::thread::{LinkNameSpaceType, UnshareFlags};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::oneshot;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use veilid_core::VeilidAPI;

use crate::{Error, Result};

/// How long nodes get to shut down when their host stops.
const NODES_SHUTDOWN: Duration = Duration::from_secs(5);
/// How long tasks that block get to end after that.
const TASKS_SHUTDOWN: Duration = Duration::from_secs(1);

/// A thread in a network namespace of its own. Dropping it stops its nodes and its runtime.
pub(crate) struct NamespaceThread {
    name: String,
    handle: Handle,
    namespace: Arc<OwnedFd>,
    nodes: Arc<Nodes>,
    stop: Mutex<Option<oneshot::Sender<()>>>,
    ended: Mutex<mpsc::Receiver<()>>,
}

impl NamespaceThread {
    pub(crate) fn start(name: &str) -> Result<Self> {
        let (ready_sender, ready) = mpsc::channel();
        let (stop_sender, stop) = oneshot::channel();
        // Never sent on: that the other end is gone says that the thread has ended.
        let (end_sender, ended) = mpsc::channel::<()>();
        let nodes = Arc::new(Nodes::default());
        let stopping = Arc::clone(&nodes);
        std::thread::Builder::new()
            .name(format!("devnet-{name}"))
            .spawn(move || {
                let _ended = end_sender;
                match enter_new_namespace() {
                    Err(error) => drop(ready_sender.send(Err(error))),
                    Ok((namespace, runtime)) => {
                        let started = (runtime.handle().clone(), namespace);
                        if ready_sender.send(Ok(started)).is_ok() {
                            runtime.block_on(async {
                                // An error means that the owner is gone, which also means stop.
                                let _ = stop.await;
                                stopping.shut_down().await;
                            });
                        }
                        runtime.shutdown_timeout(TASKS_SHUTDOWN);
                    }
                }
            })
            .map_err(|source| Error::System {
                action: "starting a thread",
                source,
            })?;
        let (handle, namespace) = ready
            .recv()
            .unwrap_or_else(|mpsc::RecvError| Err(stopped(name)))?;
        Ok(Self {
            name: name.to_owned(),
            handle,
            namespace,
            nodes,
            stop: Mutex::new(Some(stop_sender)),
            ended: Mutex::new(ended),
        })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }

    pub(crate) fn namespace(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.namespace)
    }

    pub(crate) fn nodes(&self) -> &Arc<Nodes> {
        &self.nodes
    }

    /// Runs a future inside the namespace. Dropping the returned future ends it. A panic goes on
    /// in the caller.
    pub(crate) async fn run<F>(&self, future: F) -> Result<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        match AbortOnDropHandle::new(self.handle.spawn(future)).await {
            Ok(output) => Ok(output),
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_cancelled) => Err(stopped(&self.name)),
            },
        }
    }

    /// Asks the thread to stop; does not wait.
    pub(crate) fn stop(&self) {
        if let Some(stop) = lock(&self.stop).take() {
            // An error means that it has stopped already.
            let _ = stop.send(());
        }
    }

    /// Waits until the thread has ended, and tells whether it has.
    pub(crate) fn wait(&self, until: Instant) -> bool {
        let left = until.saturating_duration_since(Instant::now());
        lock(&self.ended).recv_timeout(left) == Err(mpsc::RecvTimeoutError::Disconnected)
    }
}

impl AsFd for NamespaceThread {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.namespace.as_fd()
    }
}

/// The Veilid nodes that run in a namespace, so that it can stop them.
#[derive(Default)]
pub(crate) struct Nodes {
    running: Mutex<Vec<(u64, VeilidAPI)>>,
    last_id: AtomicU64,
    /// Nodes that were dropped and are shutting down.
    ending: TaskTracker,
}

impl Nodes {
    /// Adds a node and gives the number to remove it by.
    pub(crate) fn add(&self, api: VeilidAPI) -> u64 {
        let id = self.last_id.fetch_add(1, Ordering::Relaxed);
        lock(&self.running).push((id, api));
        id
    }

    /// Takes a node out; `None` where somebody else is shutting it down.
    pub(crate) fn remove(&self, id: u64) -> Option<VeilidAPI> {
        let mut running = lock(&self.running);
        let position = running.iter().position(|(found, _)| *found == id)?;
        Some(running.swap_remove(position).1)
    }

    /// Shuts a node down in the background; the namespace lasts until that is done.
    pub(crate) fn end(&self, id: u64, handle: &Handle) {
        if let Some(api) = self.remove(id) {
            self.ending.spawn_on(api.shutdown(), handle);
        }
    }

    async fn shut_down(&self) {
        let running = std::mem::take(&mut *lock(&self.running));
        let all = join_all(running.into_iter().map(|(_, api)| api.shutdown()));
        self.ending.close();
        let ended = async { tokio::join!(all, self.ending.wait()) };
        if tokio::time::timeout(NODES_SHUTDOWN, ended).await.is_err() {
            tracing::warn!("a node did not shut down within {NODES_SHUTDOWN:?}");
        }
    }
}

/// Moves the calling thread into a namespace; only its network changes.
pub(crate) fn enter_namespace(namespace: &OwnedFd) -> rustix::io::Result<()> {
    rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
}

fn enter_new_namespace() -> Result<(Arc<OwnedFd>, Runtime)> {
    crate::namespaces::unshare(UnshareFlags::NEWNET)
        .map_err(Error::system("making a network namespace"))?;
    let path = "/proc/thread-self/ns/net";
    let namespace = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(Error::system("opening a network namespace"))?;
    let namespace = Arc::new(namespace);
    let entered = Arc::clone(&namespace);
    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        // A thread inherits the namespace of the thread that starts it, and a thread for blocking
        // calls is started by whoever asks for it, so each one enters for itself.
        .on_thread_start(move || {
            enter_namespace(&entered).expect("a namespace that this process made can be entered");
        })
        .enable_all()
        .build()
        .map_err(|source| Error::System {
            action: "starting a runtime",
            source,
        })?;
    Ok((namespace, runtime))
}

fn stopped(name: &str) -> Error {
    Error::Stopped {
        host: name.to_owned(),
    }
}

/// The mutexes of this file guard plain data that no panic leaves half changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
