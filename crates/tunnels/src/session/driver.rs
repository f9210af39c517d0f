//! The task of a session: makes its calls, and finds it a route.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinSet;
use veilid_core::{RouteId, Target, VeilidAPIError};

use super::Shared;
use crate::core::client::{CallFailure, RouteNeed, Transmit};
use crate::node::{RouteSide, error_kind, route_tag};
use crate::{Result, RouteSource};

/// How long a route source may think.
const SEARCH_TIMEOUT: Duration = Duration::from_secs(30);

type Outcome = (u64, std::result::Result<Vec<u8>, CallFailure>);
type Search = Pin<Box<dyn Future<Output = Result<Vec<u8>>> + Send>>;

/// The route in use.
struct Route {
    id: RouteId,
    blob: Vec<u8>,
    died: Arc<Notify>,
}

struct Driver {
    shared: Arc<Shared>,
    source: Arc<dyn RouteSource>,
    calls: JoinSet<Outcome>,
    route: Option<Route>,
    search: Option<Search>,
    /// Searches since the other side was last heard.
    attempts: u32,
    /// The last blob was imported once more since the other side was last heard: Veilid forgets an imported route after five minutes.
    imported_again: bool,
}

pub(super) async fn run(shared: Arc<Shared>, source: Arc<dyn RouteSource>) {
    let mut driver = Driver {
        shared,
        source,
        calls: JoinSet::new(),
        route: None,
        search: None,
        attempts: 0,
        imported_again: false,
    };
    driver.run().await;
    driver.drop_route();
    // Veilid does not like its futures to be dropped half-way; each ends within its own timeout.
    driver.calls.detach_all();
}

impl Driver {
    async fn run(&mut self) {
        let node = self.shared.node.clone();
        let mut heard = Duration::ZERO;
        loop {
            let (calls, need, wake, closed, last_heard) = self.shared.act(|state, now| {
                let calls: Vec<Transmit> = std::iter::from_fn(|| state.core.poll(now)).collect();
                (
                    calls,
                    state.core.route_need(),
                    state.core.next_wake(now),
                    state.core.is_closed(),
                    state.core.last_heard(),
                )
            });
            for call in calls {
                self.call(call);
            }
            if closed {
                return;
            }
            if last_heard > heard {
                heard = last_heard;
                self.attempts = 0;
                self.imported_again = false;
            }
            match need {
                Some(need) if self.search.is_none() => {
                    self.start_search(need, heard.is_zero());
                }
                None if self.search.is_some() => self.search = None,
                _ => {}
            }
            let sleep = async {
                match wake {
                    Some(at) => tokio::time::sleep_until(node.instant(at)).await,
                    None => std::future::pending().await,
                }
            };
            let found = async {
                match &mut self.search {
                    Some(search) => search.await,
                    None => std::future::pending().await,
                }
            };
            let died = async {
                match &self.route {
                    Some(route) => route.died.notified().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Some(done) = self.calls.join_next() => {
                    self.finished(done);
                    while let Some(done) = self.calls.try_join_next() {
                        self.finished(done);
                    }
                }
                found = found => {
                    self.search = None;
                    self.found(found);
                }
                () = died => {
                    tracing::debug!("the route of a session died");
                    // Another is asked for at once.
                    self.imported_again = true;
                    self.shared.act(|state, now| state.core.drop_route(now));
                }
                () = self.shared.wake.notified() => {}
                () = sleep => {}
                () = node.closed.cancelled() => {
                    self.shared.act(|state, _| state.core.close(false));
                    self.say_goodbye().await;
                    return;
                }
            }
        }
    }

    fn call(&mut self, Transmit { number, message }: Transmit) {
        let api = self.shared.node.api.clone();
        let Some(route) = &self.route else { return };
        let target = Target::RouteId(route.id.clone());
        self.shared.node.counts.call(message.len());
        self.calls.spawn_on(
            async move {
                let result = match api.routing_context() {
                    Ok(context) => context.app_call(target, message).await,
                    Err(error) => Err(error),
                };
                (number, result.map_err(failure))
            },
            &self.shared.node.runtime,
        );
    }

    fn finished(&mut self, done: std::result::Result<Outcome, tokio::task::JoinError>) {
        // A task that panicked or was aborted is as good as a lost call: our timer finds it.
        let Ok((number, result)) = done else { return };
        if let Ok(reply) = &result {
            self.shared.node.counts.received(reply.len());
        }
        self.shared.act(|state, now| match result {
            Ok(reply) => state.core.on_reply(number, reply.into(), now),
            Err(failure) => {
                tracing::trace!(?failure, "call failed");
                state.core.on_failure(number, failure, now);
            }
        });
    }

    /// The last call, which tells the other side that the session ends, gets a moment.
    async fn say_goodbye(&mut self) {
        let last = self.shared.act(|state, now| state.core.poll(now));
        if let Some(last) = last {
            let number = last.number;
            self.call(last);
            let answered = async {
                while let Some(done) = self.calls.join_next().await {
                    if done.is_ok_and(|(done, _)| done == number) {
                        return;
                    }
                }
            };
            let _ = tokio::time::timeout(Duration::from_millis(500), answered).await;
        }
    }

    // Routes.

    fn start_search(&mut self, need: RouteNeed, first: bool) {
        let failed = self.route.as_ref().map(|route| route.blob.clone());
        if need == RouteNeed::Missing
            && !self.imported_again
            && let Some(blob) = failed
        {
            self.imported_again = true;
            self.search = Some(Box::pin(async move { Ok(blob) }));
            return;
        }
        tracing::debug!(
            ?need,
            attempts = self.attempts,
            "a session looks for a route"
        );
        let source = self.source.clone();
        let most = self.shared.node.limits.route_backoff;
        let pause = match self.attempts {
            0 => Duration::ZERO,
            // What is known at once is looked after at once.
            1 if first && failed.is_some() => Duration::ZERO,
            attempts => (most / 40 * (1 << attempts.min(6))).min(most),
        };
        self.attempts += 1;
        self.search = Some(Box::pin(async move {
            tokio::time::sleep(pause).await;
            match tokio::time::timeout(SEARCH_TIMEOUT, source.route(failed.as_deref())).await {
                Ok(found) => found,
                Err(_) => Err(crate::Error::RouteSource("the search took too long".into())),
            }
        }));
    }

    fn found(&mut self, found: Result<Vec<u8>>) {
        let node = &self.shared.node;
        let imported = found.map_err(|error| error.to_string()).and_then(|blob| {
            let id = node.import(&blob).map_err(|error| {
                format!("a route that Veilid does not take: {}", error_kind(&error))
            })?;
            let died = node.watch(RouteSide::Remote, &id);
            Ok(Route { id, blob, died })
        });
        match imported {
            Ok(route) => {
                let tag = route_tag(&route.id);
                self.drop_route();
                self.route = Some(route);
                tracing::debug!("a session has a route");
                self.shared.act(|state, now| state.core.set_route(tag, now));
            }
            Err(reason) => {
                tracing::debug!("no route for a session");
                self.shared.act(|state, _| state.core.no_route(reason));
            }
        }
    }

    fn drop_route(&mut self) {
        if let Some(route) = self.route.take() {
            self.shared
                .node
                .unwatch(RouteSide::Remote, &route.id, &route.died);
            self.shared.node.release_import(&route.id);
        }
    }
}

fn failure(error: VeilidAPIError) -> CallFailure {
    match error {
        VeilidAPIError::Timeout | VeilidAPIError::Generic { .. } => CallFailure::Timeout,
        VeilidAPIError::InvalidTarget { .. }
        | VeilidAPIError::NoConnection { .. }
        | VeilidAPIError::InvalidArgument { .. }
        | VeilidAPIError::ParseError { .. } => CallFailure::NoRoute,
        VeilidAPIError::NotInitialized | VeilidAPIError::Shutdown => {
            CallFailure::Fatal("the node has shut down".into())
        }
        _ => CallFailure::Local,
    }
}
