//! What goes to the network: root, metadata and tunnels.

use dht_records::{Fetch, GuestRole, Published, Stamped, TunnelEntry, TunnelValue};

use super::Repo;
use crate::Result;

/// How often a tunnel is set again because another device took its subkey.
const TUNNEL_ATTEMPTS: usize = 3;

impl Repo {
    /// Publishes what is not published: root, metadata, tunnels. Does nothing if there is nothing.
    ///
    /// Where another device of this member published meanwhile, its root stands, and `overwritten` says so (subkey 1): fetch
    /// that collection, [`adopt`](Self::adopt) it, and publish again. If it is here already, this is done here.
    ///
    /// # Errors
    /// [`Error::ReadOnly`](crate::Error::ReadOnly), [`Error::Records`](crate::Error::Records).
    pub async fn publish(&self) -> Result<Published> {
        self.check_writable()?;
        let published = self.inner.record.publish().await?;
        if published.overwritten().any(|subkey| subkey == ROOT) && self.inner.keys.is_some() {
            let _writing = self.writing().await?;
            self.take_in_record().await?;
        }
        Ok(published)
    }

    /// Publishes the route by which this device can be reached, instead of the one that it published before, along with
    /// whatever else is not published. In the guests' record a device says its `role` along with it.
    ///
    /// # Errors
    /// As [`publish`](Self::publish).
    pub async fn publish_tunnel(&self, route: &[u8], role: Option<GuestRole>) -> Result<Published> {
        self.check_writable()?;
        let tunnel = TunnelValue {
            route: route.to_vec(),
            device: self.inner.device,
            published_at: self.inner.clock.now(),
            role,
        };
        let mut attempt = 1;
        loop {
            let subkey = self.inner.record.set_tunnel(&tunnel).await?;
            let published = self.publish().await?;
            if attempt == TUNNEL_ATTEMPTS || !published.overwritten().any(|lost| lost == subkey) {
                return Ok(published);
            }
            attempt += 1;
        }
    }

    /// Takes this device's tunnel back.
    ///
    /// # Errors
    /// As [`publish`](Self::publish).
    pub async fn withdraw_tunnel(&self) -> Result<Published> {
        self.check_writable()?;
        self.inner.record.clear_tunnel(self.inner.device).await?;
        self.publish().await
    }

    /// The tunnels of all devices of this member, the one that was published last first. Those that cannot be read are left
    /// out; [`RepoRecord::tunnels`](dht_records::RepoRecord::tunnels) has them.
    ///
    /// # Errors
    /// [`Error::Records`](crate::Error::Records).
    pub async fn tunnels(&self, fetch: Fetch) -> Result<Vec<Stamped<TunnelValue>>> {
        let tunnels = self.inner.record.tunnels(fetch).await?;
        let mut readable: Vec<_> = tunnels
            .into_iter()
            .filter_map(|(_, tunnel): TunnelEntry| tunnel.ok())
            .collect();
        readable.sort_by_key(|tunnel| std::cmp::Reverse(tunnel.value.published_at));
        Ok(readable)
    }
}

/// The subkey of the root.
const ROOT: u32 = 1;
