//! The devices of the other members, and the tunnels to them.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use dht_records::{DeviceId, Fetch, RepoRecord};
use repo::Repo;
use tokio::time::timeout;
use tunnels::{Psk, RouteSource, Session, Tunnels};
use veilid_core::PublicKey;

use crate::Result;

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
    known: Mutex<HashMap<PeerId, Arc<Peer>>>,
    presence: Mutex<HashMap<PublicKey, Presence>>,
}

/// The other devices that advertise a tunnel in a repo, as far as that was looked for, and when each was last seen.
#[derive(Clone, Debug, Default)]
pub(crate) struct Presence {
    pub(crate) devices: BTreeMap<DeviceId, u64>,
}

impl Presence {
    pub(crate) fn last_seen(&self) -> Option<u64> {
        self.devices.values().max().copied()
    }
}

impl Peers {
    pub(crate) fn new(tunnels: Tunnels, psk: Psk, own_device: DeviceId) -> Self {
        Self {
            tunnels,
            psk,
            own_device,
            known: Mutex::default(),
            presence: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PeerId, Arc<Peer>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn presences(&self) -> MutexGuard<'_, HashMap<PublicKey, Presence>> {
        self.presence.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who was seen in a repo.
    pub(crate) fn presence(&self, repo: &PublicKey) -> Presence {
        self.presences().get(repo).cloned().unwrap_or_default()
    }

    /// A device answered.
    pub(crate) fn heard(&self, peer: &PeerId, now: u64) {
        let mut presences = self.presences();
        let seen = presences
            .get_mut(&peer.repo)
            .and_then(|presence| presence.devices.get_mut(&peer.device));
        if let Some(seen) = seen {
            *seen = now.max(*seen);
        }
    }

    /// The devices that advertise a tunnel in `repo`, this one excepted. And whether that is sure to be all: where the network does not
    /// tell, those that were known before are given.
    pub(crate) async fn of(&self, repo: &Repo, fetch: Fetch) -> Result<(Vec<Arc<Peer>>, bool)> {
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
        let mut known = self.lock();
        let mut peers: Vec<Arc<Peer>> = Vec::new();
        let mut presence = Presence::default();
        for (_, tunnel) in tunnels {
            // One that cannot be read does not stop the others.
            let Ok(tunnel) = tunnel.map(|stamped| stamped.value) else {
                continue;
            };
            if tunnel.device == self.own_device {
                continue;
            }
            let id = PeerId {
                repo: repo.public_key().clone(),
                device: tunnel.device,
            };
            presence.devices.insert(tunnel.device, tunnel.published_at);
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
        if complete && fetch == Fetch::Network {
            // A place in a record can be written again and again; what stood there before must not stay for ever.
            known.retain(|id, peer| {
                let keep =
                    id.repo != *repo.public_key() || presence.devices.contains_key(&id.device);
                if !keep {
                    peer.session.close();
                }
                keep
            });
        }
        drop(known);
        let mut presences = self.presences();
        let before = presences.remove(repo.public_key()).unwrap_or_default();
        for (device, seen) in &mut presence.devices {
            *seen = (*seen).max(before.devices.get(device).copied().unwrap_or(0));
        }
        presences.insert(repo.public_key().clone(), presence);
        Ok((peers, complete))
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
        self.presences().remove(repo);
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
