//! The side that calls.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::task::Waker;
use std::time::Duration;

use tokio::sync::Notify;

use crate::core::Now;
use crate::core::client::ClientCore;
use crate::core::streams::{Event, Streams};
use crate::node::{Node, Wakers, lock};
use crate::stream::{Host, halves};
use crate::{Psk, RecvStream, Result, RouteSource, SendStream, SessionId};

mod driver;

/// A session with a listener. Cheap to clone. When the last clone and the last stream are dropped, what was written is delivered and the session ends.
#[derive(Clone)]
pub struct Session {
    owner: Arc<Owner>,
}

/// The handles of a session, all together.
struct Owner {
    shared: Arc<Shared>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.shared.act(|state, _| state.core.close(true));
        self.shared.wake.notify_one();
    }
}

/// What the handles of a session share with its task.
pub(crate) struct Shared {
    node: Arc<Node>,
    state: Mutex<State>,
    wake: Notify,
    pings: Notify,
}

struct State {
    core: ClientCore,
    wakers: HashMap<u64, Wakers>,
}

impl Shared {
    /// Does something to the session, then wakes whom it concerns.
    fn act<T>(&self, act: impl FnOnce(&mut State, Now) -> T) -> T {
        let mut wake = Vec::new();
        let (result, pings) = {
            let mut state = lock(&self.state);
            let result = act(&mut state, self.node.now());
            let State { core, wakers } = &mut *state;
            for event in core.streams.events.drain(..) {
                match event {
                    Event::Send(id) => {
                        wake.extend(wakers.get_mut(&id).and_then(|wakers| wakers.send.take()))
                    }
                    Event::Recv(id) => {
                        wake.extend(wakers.get_mut(&id).and_then(|wakers| wakers.recv.take()))
                    }
                    Event::Opened(_) => {}
                }
            }
            (result, std::mem::take(&mut core.ping_events))
        };
        wake.into_iter().for_each(Waker::wake);
        if pings {
            self.pings.notify_waiters();
        }
        result
    }

    pub fn with_streams<T>(
        &self,
        id: u64,
        act: impl FnOnce(&mut Streams, &mut Wakers, Now) -> Result<T>,
    ) -> Result<T> {
        let (result, due) = self.act(|state, now| {
            let before = state.core.streams.due();
            let result = act(
                &mut state.core.streams,
                state.wakers.entry(id).or_default(),
                now,
            );
            (result, state.core.streams.due() != before)
        });
        if due {
            self.wake.notify_one();
        }
        result
    }

    /// Both halves of a stream are dropped.
    pub fn forget_wakers(&self, id: u64) {
        lock(&self.state).wakers.remove(&id);
        // The session may have waited for that to end.
        self.wake.notify_one();
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Session").field(&self.id()).finish()
    }
}

impl Session {
    pub(crate) fn start(node: Arc<Node>, psk: Psk, source: Arc<dyn RouteSource>) -> Self {
        let fresh_id = || {
            let mut id = [0; 16];
            getrandom::fill(&mut id)
                .expect("the system has a source of randomness, or no key of this process is safe");
            SessionId::from_bytes(id)
        };
        let core = ClientCore::new(psk, node.limits.clone(), Box::new(fresh_id));
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                core,
                wakers: HashMap::new(),
            }),
            wake: Notify::new(),
            pings: Notify::new(),
            node,
        });
        shared
            .node
            .tasks
            .spawn_on(driver::run(shared.clone(), source), &shared.node.runtime);
        Session {
            owner: Arc::new(Owner { shared }),
        }
    }

    /// The id under which the other side knows this session. A session that was idle for long, or forgotten by the other side, goes on under a new one.
    pub fn id(&self) -> SessionId {
        lock(&self.owner.shared.state).core.id()
    }

    /// Calls the other side and says how long its answer took. Safe to drop.
    ///
    /// # Errors
    /// [`Unreachable`](crate::Error::Unreachable), [`NoRoute`](crate::Error::NoRoute), [`Refused`](crate::Error::Refused), [`Busy`](crate::Error::Busy) or
    /// [`Closed`](crate::Error::Closed), after [`Limits::give_up`](crate::Limits::give_up) at the latest.
    pub async fn ping(&self) -> Result<Duration> {
        let shared = &self.owner.shared;
        let nonce = shared.act(|state, now| state.core.start_ping(now))?;
        let ping = PendingPing { shared, nonce };
        shared.wake.notify_one();
        loop {
            let mut changed = std::pin::pin!(shared.pings.notified());
            // From here on a change is not missed.
            changed.as_mut().enable();
            if let Some(result) = shared.act(|state, _| state.core.take_ping(ping.nonce)) {
                return result;
            }
            changed.await;
        }
    }

    /// Opens a stream. Sends nothing by itself: the opening travels with the first bytes, or after a moment without any.
    ///
    /// # Errors
    /// [`TooManyStreams`](crate::Error::TooManyStreams) at once, or [`Closed`](crate::Error::Closed).
    pub async fn open(&self, protocol: u16) -> Result<(SendStream, RecvStream)> {
        let shared = &self.owner.shared;
        let id = shared.act(|state, now| state.core.open(protocol, now))?;
        shared.wake.notify_one();
        Ok(halves(Host::Client(shared.clone()), id))
    }

    /// Ends the session at once: all of its streams fail, here and on the other side. What was not delivered yet is lost.
    pub fn close(&self) {
        self.owner.shared.act(|state, _| state.core.close(false));
        self.owner.shared.wake.notify_one();
    }
}

/// Takes the ping back when its caller stops waiting.
struct PendingPing<'a> {
    shared: &'a Shared,
    nonce: u64,
}

impl Drop for PendingPing<'_> {
    fn drop(&mut self) {
        lock(&self.shared.state).core.cancel_ping(self.nonce);
    }
}
