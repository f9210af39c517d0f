//! What a device does without a group: bare routes, tunnels that carry bytes, and counting.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use async_trait::async_trait;
use bytes::Bytes;
use group::GroupContext;
use tunnels::{Incoming, Psk, RouteSource, Session};

use super::Device;
use crate::{MIB, Result, protocol::Counts};

/// A session with the device that serves, and the route to it that was told last.
pub(super) struct ToServer {
    session: Session,
    route: Arc<Told>,
}

/// A route that the bench has told.
struct Told(Mutex<Vec<u8>>);

#[async_trait]
impl RouteSource for Told {
    async fn route(&self, _: Option<&[u8]>) -> tunnels::Result<Vec<u8>> {
        Ok(self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone())
    }
}

fn psk() -> Psk {
    Psk::from_bytes([1; 32])
}

impl Device {
    /// A route for bare calls, of which none is given out that has died.
    pub(super) async fn raw_route(&self) -> Result<Vec<u8>> {
        let mut raw = self.raw.lock().await;
        if let Some(route) = raw.as_ref()
            && !self.updates.dead().contains(&route.route_id)
        {
            return Ok(route.blob.clone());
        }
        let route = self.api.new_private_route().await?;
        let blob = route.blob.clone();
        *raw = Some(route);
        Ok(blob)
    }

    /// Listens, and sends as many bytes as each stream asks for.
    pub(super) async fn serve(&self) -> Result<Vec<u8>> {
        let mut served = self.served.lock().await;
        let listener = match served.as_ref() {
            Some(listener) => listener.clone(),
            None => {
                let listener = Arc::new(self.context.tunnels.listen(psk()).await?);
                let accepting = listener.clone();
                tokio::spawn(async move {
                    while let Some(incoming) = accepting.accept().await {
                        tokio::spawn(send_bytes(incoming));
                    }
                });
                *served = Some(listener.clone());
                listener
            }
        };
        let mut route = listener.route();
        let route = route.wait_for(Option::is_some).await?.clone();
        Ok(route.unwrap_or_default().to_vec())
    }

    /// Reads so many bytes through one stream; how long that took, in seconds.
    pub(super) async fn stream(&self, route: Vec<u8>, bytes: usize) -> Result<f64> {
        let mut session = self.session.lock().await;
        let session = session.get_or_insert_with(|| {
            let told = Arc::new(Told(Mutex::default()));
            ToServer {
                session: self.context.tunnels.connect(psk(), told.clone()),
                route: told,
            }
        });
        *session
            .route
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = route;
        let start = Instant::now();
        let (mut send, mut recv) = session.session.open(1).await?;
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
        Ok(start.elapsed().as_secs_f64())
    }
}

async fn send_bytes(mut incoming: Incoming) -> tunnels::Result<()> {
    let length = incoming.recv.read_exact(8).await?;
    let length: [u8; 8] = length.as_ref().try_into().unwrap_or_default();
    let mut left = u64::from_be_bytes(length);
    let chunk = Bytes::from(vec![7; MIB]);
    while left > 0 {
        let part = chunk.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        incoming.send.write_bytes(chunk.slice(..part)).await?;
        left -= part as u64;
    }
    incoming.send.finish()
}

/// What the node did so far.
pub(super) fn counts(context: &GroupContext) -> Result<Counts> {
    let stats = context.tunnels.stats();
    Ok(Counts {
        calls: stats.calls_made,
        answers: stats.calls_answered,
        sent: stats.bytes_sent,
        received: stats.bytes_received,
        dht: context.records.stats().calls(),
        link: link_bytes()?,
    })
}

/// All bytes that passed the host's link.
fn link_bytes() -> Result<u64> {
    let devices = std::fs::read_to_string("/proc/self/net/dev")?;
    let line = devices
        .lines()
        .find_map(|line| line.trim().strip_prefix("eth0:"))
        .ok_or("the host has no link")?;
    let columns: Vec<&str> = line.split_whitespace().collect();
    let column = |index: usize| -> Result<u64> {
        let text = columns.get(index).ok_or("the link does not count")?;
        Ok(text.parse()?)
    };
    // Of sixteen columns the first counts what was received, the ninth what was sent.
    Ok(column(0)? + column(8)?)
}
