//! The devices of the other members, and the tunnels to them.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use dht_records::{DeviceId, Fetch, RepoRecord, TunnelValue};
use repo::{Clock, Repo};
use tokio::{
    sync::broadcast,
    time::{Instant, timeout},
};
use tunnels::{Psk, RouteSource, Session, Tunnels};
use veilid_core::PublicKey;

use crate::{GroupEvent, Result, presence::Presences};

/// How long a look for a fresh route may take before the one known from earlier is tried.
const ROUTE: Duration = Duration::from_secs(5);

/// One device of a member.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PeerId {
    pub(crate) repo: PublicKey,
    pub(crate) device: DeviceId,
}

/// One device of a member, and the session with it.
pub(crate) struct Peer {
    pub(crate) id: PeerId,
    pub(crate) session: Session,
}

impl Peer {
    /// A few characters that tell devices apart in a log, and no more than that.
    pub(crate) fn short(&self) -> String {
        data_encoding::HEXLOWER.encode(&blake3::hash(&self.id.device.0).as_bytes()[..4])
    }
}

/// The sessions with the devices of a group's members; each is kept for as long as the group is open and its
/// device is listed.
pub(crate) struct Peers {
    tunnels: Tunnels,
    psk: Psk,
    own_device: DeviceId,
    clock: Arc<dyn Clock>,
    events: broadcast::Sender<GroupEvent>,
    known: Mutex<HashMap<PeerId, Arc<Peer>>>,
    pub(crate) presences: Presences,
}

impl Peers {
    pub(crate) fn new(
        tunnels: Tunnels,
        psk: Psk,
        own_device: DeviceId,
        clock: Arc<dyn Clock>,
        events: broadcast::Sender<GroupEvent>,
    ) -> Self {
        Self {
            tunnels,
            psk,
            own_device,
            clock,
            events,
            known: Mutex::default(),
            presences: Presences::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PeerId, Arc<Peer>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A device answered.
    pub(crate) fn heard(&self, peer: &PeerId) {
        let now = self.clock.now();
        self.presences.heard(&peer.repo, &peer.device, now);
    }

    /// The devices that advertise a tunnel in `repo`, this one excepted. And whether that is sure to be all: where the network does not
    /// tell, those that were known before are given.
    pub(crate) async fn of(&self, repo: &Repo, fetch: Fetch) -> Result<(Vec<Arc<Peer>>, bool)> {
        let (tunnels, complete, _) = self.read(repo, fetch).await?;
        let mut known = self.lock();
        let mut peers: Vec<Arc<Peer>> = Vec::new();
        for tunnel in tunnels {
            let id = PeerId {
                repo: repo.public_key().clone(),
                device: tunnel.device,
            };
            let peer = known.entry(id.clone()).or_insert_with(|| {
                let source = RepoRoute {
                    record: repo.record().clone(),
                    device: tunnel.device,
                };
                Arc::new(Peer {
                    id,
                    session: self.tunnels.connect(self.psk.clone(), Arc::new(source)),
                })
            });
            if !peers.iter().any(|known| Arc::ptr_eq(known, peer)) {
                peers.push(peer.clone());
            }
        }
        Ok((peers, complete))
    }

    /// Takes up who is known from earlier to advertise a tunnel in `repo`. Asks nobody.
    pub(crate) async fn recall(&self, repo: &Repo) -> Result<()> {
        self.read(repo, Fetch::Cached).await?;
        Ok(())
    }

    /// Looks on the network who advertises a tunnel in `repo`. Whether these are others than before.
    pub(crate) async fn look(&self, repo: &Repo) -> Result<bool> {
        let (_, _, others) = self.read(repo, Fetch::Network).await?;
        Ok(others)
    }

    /// The tunnels of the other devices in `repo`; whether that is sure to be all; and whether these are others than before.
    async fn read(&self, repo: &Repo, fetch: Fetch) -> Result<(Vec<TunnelValue>, bool, bool)> {
        let mut tunnels = Vec::new();
        let complete = match repo.record().tunnels(fetch).await {
            Ok(read) => {
                let failed = read.iter().filter_map(|(_, tunnel)| tunnel.as_ref().err());
                let complete = !failed.into_iter().any(dht_records::Error::is_retryable);
                tunnels = read;
                complete
            }
            // Nobody ever published there, or the network lost it.
            Err(dht_records::Error::RecordNotFound) => {
                tunnels = repo
                    .record()
                    .tunnels(Fetch::Cached)
                    .await
                    .unwrap_or_default();
                tunnels.is_empty()
            }
            Err(error) if fetch == Fetch::Network && error.is_retryable() => {
                tracing::debug!(%error, "a member's tunnels cannot be read");
                false
            }
            Err(error) => return Err(error.into()),
        };
        if !complete && fetch == Fetch::Network {
            tunnels.extend(repo.record().tunnels(Fetch::Cached).await?);
        }
        // One that cannot be read does not stop the others.
        let readable = tunnels.into_iter().filter_map(|(_, tunnel)| tunnel.ok());
        let tunnels: Vec<TunnelValue> = readable
            .map(|tunnel| tunnel.value)
            .filter(|tunnel| tunnel.device != self.own_device)
            .collect();
        let told = complete && fetch == Fetch::Network;
        if told {
            self.drop_others(repo.public_key(), &tunnels);
        }
        let looked = told.then(Instant::now);
        let now = self.clock.now();
        let others = self
            .presences
            .take_up(repo.public_key(), &tunnels, looked, now);
        if others {
            let repo = repo.public_key().clone();
            // Nobody listening is fine.
            let _ = self.events.send(GroupEvent::PresenceChanged { repo });
        }
        Ok((tunnels, complete, others))
    }

    /// Ends the sessions with devices of a repo that advertise no tunnel any more: a place in a record can be written again and again, and what
    /// stood there before must not stay for ever.
    fn drop_others(&self, repo: &PublicKey, tunnels: &[TunnelValue]) {
        self.lock().retain(|id, peer| {
            let keep = id.repo != *repo || tunnels.iter().any(|tunnel| tunnel.device == id.device);
            if !keep {
                peer.session.close();
            }
            keep
        });
    }

    /// Ends the sessions with the devices of somebody who left.
    pub(crate) fn forget(&self, repo: &PublicKey) {
        self.lock().retain(|id, peer| {
            let keep = id.repo != *repo;
            if !keep {
                peer.session.close();
            }
            keep
        });
        self.presences.forget(repo);
    }

    /// Ends all sessions.
    pub(crate) fn close(&self) {
        for (_, peer) in self.lock().drain() {
            peer.session.close();
        }
    }
}

/// Finds a device's current route in the repo record of its member.
struct RepoRoute {
    record: RepoRecord,
    device: DeviceId,
}

impl RepoRoute {
    async fn find(&self, fetch: Fetch) -> Option<Vec<u8>> {
        let tunnels = self.record.tunnels(fetch).await.ok()?;
        tunnels
            .into_iter()
            .filter_map(|(_, tunnel)| tunnel.ok())
            .find(|tunnel| tunnel.value.device == self.device)
            .map(|tunnel| tunnel.value.route)
    }
}

#[async_trait]
impl RouteSource for RepoRoute {
    async fn route(&self, failed: Option<&[u8]>) -> tunnels::Result<Vec<u8>> {
        // What was known last is tried at once, and meanwhile this is asked for the newest.
        if failed.is_none()
            && let Some(route) = self.find(Fetch::Cached).await
        {
            return Ok(route);
        }
        let fresh = timeout(ROUTE, self.find(Fetch::Network)).await;
        let route = match fresh {
            Ok(Some(route)) => Some(route),
            // Gone from the record: the device withdrew it, and will not answer on it either.
            Ok(None) if failed.is_some() => None,
            _ => self.find(Fetch::Cached).await,
        };
        route.ok_or_else(|| tunnels::Error::RouteSource("no tunnel is published".into()))
    }
}
