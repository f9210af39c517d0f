//! What a tunnel carries, beside bare calls.

use std::{
    sync::{Arc, OnceLock},
    time::Instant,
};

use async_trait::async_trait;
use bytes::Bytes;
use devnet::{Devnet, Host, Node, NodeOptions};
use futures::{StreamExt, stream};
use tokio::sync::watch;
use tunnels::{Limits, Listener, Psk, RouteSource, Session, Tunnels};
use veilid_core::{RouteBlob, Target, VeilidAPI, VeilidUpdate};

use crate::{Arguments, MIB, Result, rate, report::Figure};

/// A call that is answered without a tunnel: 64 bytes, and 32,000 bytes come back.
const RAW: [u8; 64] = *b"a bare call, answered at once with thirty-two thousand bytes now";
const RAW_REPLY: usize = 32_000;
/// What is tried for the best bare rate.
const IN_FLIGHT: [usize; 4] = [8, 16, 32, 64];
const READY: std::time::Duration = std::time::Duration::from_secs(90);

/// Bytes through one stream of a tunnel, over the best rate of bare calls between the same two nodes.
pub(crate) async fn run(arguments: &Arguments) -> Result<()> {
    let devnet = Devnet::start(devnet::MIN_NODES).await?;
    let server = Member::start(&devnet, "server").await?;
    let client = Member::start(&devnet, "client").await?;
    let bytes = usize::from(arguments.mib) * MIB;
    let mut values = Vec::new();
    let mut baselines = Vec::new();
    let raw = server.raw_route().await?;
    let (listener, route) = server.listen().await?;
    let session = client.connect(route.clone()).await;
    for _ in 0..arguments.rounds {
        let mut best: f64 = 0.0;
        for in_flight in IN_FLIGHT {
            best = best.max(
                client
                    .raw_rate(raw.blob.clone(), bytes / IN_FLIGHT.len(), in_flight)
                    .await?,
            );
        }
        baselines.push(best);
        values.push(client.tunnel_rate(session.clone(), bytes).await?);
    }
    let figure = Figure { values, baselines };
    figure.print(arguments.json, "tunnel_goodput", "MB/s");
    session.close();
    listener.close().await;
    client.stop().await?;
    server.stop().await?;
    devnet.stop().await?;
    Ok(())
}

/// A node with tunnels.
struct Member {
    host: Host,
    node: Node,
    tunnels: Tunnels,
}

impl Member {
    async fn start(devnet: &Devnet, name: &str) -> Result<Self> {
        let host = devnet.host(name).await?;
        let tunnels: Arc<OnceLock<Tunnels>> = Arc::default();
        let api: Arc<OnceLock<VeilidAPI>> = Arc::default();
        let (feed, reply, handle) = (tunnels.clone(), api.clone(), host.handle().clone());
        let mut options = NodeOptions::default();
        options.on_update = Some(Arc::new(move |update: VeilidUpdate| {
            if let VeilidUpdate::AppCall(call) = &update
                && call.message() == RAW
                && let Some(api) = reply.get().cloned()
            {
                let id = call.id();
                handle.spawn(async move { api.app_call_reply(id, vec![1; RAW_REPLY]).await });
            } else if let Some(tunnels) = feed.get() {
                tunnels.handle_update(&update);
            }
        }));
        let node = host
            .start_node_with(&host.directory().join("node"), options)
            .await?;
        let started = node.api().clone();
        // Each is set here and nowhere else.
        let _ = api.set(started.clone());
        let own = host
            .run(async move { Tunnels::new(started, Limits::default()) })
            .await;
        let _ = tunnels.set(own.clone());
        node.ready(READY).await?;
        Ok(Self {
            host,
            node,
            tunnels: own,
        })
    }

    async fn stop(self) -> Result<()> {
        let tunnels = self.tunnels;
        self.host.run(async move { tunnels.close().await }).await;
        self.node.shutdown().await?;
        Ok(())
    }

    async fn raw_route(&self) -> Result<RouteBlob> {
        let api = self.node.api().clone();
        Ok(self
            .host
            .run(async move { api.new_private_route().await })
            .await?)
    }

    /// Listens, and sends as many bytes as each stream asks for.
    async fn listen(&self) -> Result<(Arc<Listener>, watch::Receiver<Option<Bytes>>)> {
        let tunnels = self.tunnels.clone();
        let listener = self
            .host
            .run(async move { tunnels.listen(psk()).await })
            .await?;
        let listener = Arc::new(listener);
        let accepting = listener.clone();
        self.host.handle().spawn(async move {
            while let Some(mut incoming) = accepting.accept().await {
                tokio::spawn(async move {
                    let length = incoming.recv.read_exact(8).await?;
                    let length: [u8; 8] = length.as_ref().try_into().unwrap_or_default();
                    let mut left = u64::from_be_bytes(length) as usize;
                    let chunk = Bytes::from(vec![7; MIB]);
                    while left > 0 {
                        let part = left.min(chunk.len());
                        incoming.send.write_bytes(chunk.slice(..part)).await?;
                        left -= part;
                    }
                    incoming.send.finish()
                });
            }
        });
        let route = listener.route();
        Ok((listener, route))
    }

    async fn connect(&self, route: watch::Receiver<Option<Bytes>>) -> Session {
        let tunnels = self.tunnels.clone();
        self.host
            .run(async move { tunnels.connect(psk(), Arc::new(Current(route))) })
            .await
    }

    /// Megabytes a second that come back in bare calls.
    async fn raw_rate(&self, route: Vec<u8>, bytes: usize, in_flight: usize) -> Result<f64> {
        let api = self.node.api().clone();
        self.host
            .run(async move {
                let route = api.import_remote_private_route(route)?;
                let context = api.routing_context()?;
                let start = Instant::now();
                let calls = bytes.div_ceil(RAW_REPLY);
                let mut replies = stream::iter(0..calls)
                    .map(|_| context.app_call(Target::RouteId(route.clone()), RAW.to_vec()))
                    .buffer_unordered(in_flight);
                let mut got = 0;
                while let Some(reply) = replies.next().await {
                    // A lost reply carries nothing, which is what the figure is about.
                    got += reply.map_or(0, |reply| reply.len());
                }
                Ok(rate(got, start))
            })
            .await
    }

    /// Megabytes a second that come through one stream.
    async fn tunnel_rate(&self, session: Session, bytes: usize) -> Result<f64> {
        self.host
            .run(async move {
                let start = Instant::now();
                let (mut send, mut recv) = session.open(1).await?;
                send.write_all(&(bytes as u64).to_be_bytes()).await?;
                send.finish()?;
                let mut got = 0;
                loop {
                    let part = recv.read(MIB).await?;
                    if part.is_empty() {
                        break;
                    }
                    got += part.len();
                }
                if got != bytes {
                    return Err(format!("{got} bytes came instead of {bytes}").into());
                }
                Ok(rate(got, start))
            })
            .await
    }
}

fn psk() -> Psk {
    Psk::from_bytes([1; 32])
}

/// The listener's current route.
struct Current(watch::Receiver<Option<Bytes>>);

#[async_trait]
impl RouteSource for Current {
    async fn route(&self, _: Option<&[u8]>) -> tunnels::Result<Vec<u8>> {
        let route = self.0.borrow().clone();
        route
            .map(|route| route.to_vec())
            .ok_or_else(|| tunnels::Error::RouteSource("none yet".into()))
    }
}
