//! Which devices advertise a tunnel, and when each was last heard of.
//!
//! A device counts as seen when it answered, and when it published its tunnel. The time of the second is what its own clock says, so it
//! counts once for each tunnel, and never as later than this device's clock. The times outlast tunnels that were withdrawn, and restarts.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
};

use dht_records::{DeviceId, GuestRole, TunnelValue};
use serde::{Deserialize, Serialize};
use tokio::{sync::Notify, time::Instant};
use veilid_core::PublicKey;

use crate::{
    Error, Result,
    ledger::{GroupLedger, RowName},
};

/// The first byte of a row of this kind.
pub(crate) const KIND: u8 = 5;
const VERSION: u8 = 1;

/// The devices of a repo.
#[derive(Clone, Debug, Default)]
pub(crate) struct Presence {
    /// Those that advertise a tunnel, this one excepted, as far as that was looked for.
    pub(crate) devices: BTreeMap<DeviceId, Seen>,
    /// When one of those that do so no longer was last seen.
    earlier: Option<u64>,
    /// When the network said who they are.
    looked: Option<Instant>,
}

/// A device that advertises a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    /// When it was last seen, in seconds since 1970.
    pub(crate) at: u64,
    /// When it published its tunnel, as it says itself.
    published_at: u64,
    /// What it says that it is, if it is a guest.
    pub(crate) role: Option<GuestRole>,
}

impl Presence {
    /// When one of the devices was last seen, in seconds since 1970.
    pub(crate) fn last_seen(&self) -> Option<u64> {
        let now = self.devices.values().map(|seen| seen.at).max();
        now.max(self.earlier)
    }

    /// Takes up who advertises a tunnel now. Whether these are others than before.
    fn take_up(&mut self, tunnels: &[TunnelValue], now: u64) -> bool {
        let mut devices = BTreeMap::new();
        for tunnel in tunnels {
            let seen = self.seen(tunnel, now);
            devices.insert(tunnel.device, seen);
        }
        let before = std::mem::replace(&mut self.devices, devices);
        let gone = before
            .iter()
            .filter(|(device, _)| !self.devices.contains_key(device))
            .map(|(_, seen)| seen.at);
        self.earlier = self.earlier.max(gone.max());
        before.keys().ne(self.devices.keys())
    }

    fn seen(&self, tunnel: &TunnelValue, now: u64) -> Seen {
        let before = self.devices.get(&tunnel.device);
        let at = match before {
            // It has been counted. A time to come must not count again and again.
            Some(before) if before.published_at == tunnel.published_at => before.at,
            before => {
                let published = tunnel.published_at.min(now);
                before.map_or(published, |before| before.at.max(published))
            }
        };
        Seen {
            at,
            published_at: tunnel.published_at,
            role: tunnel.role,
        }
    }
}

/// A row of the ledger.
#[derive(Serialize, Deserialize)]
struct Row {
    version: u8,
    repo: String,
    earlier: Option<u64>,
    devices: Vec<Device>,
}

#[derive(Serialize, Deserialize)]
struct Device {
    device: DeviceId,
    published_at: u64,
    seen: u64,
}

/// The presence of everybody in a group.
#[derive(Debug, Default)]
pub(crate) struct Presences {
    state: Mutex<State>,
    /// There is something to be written down.
    changed: Notify,
    /// Held while rows are written, so that none is replaced by an older one.
    writing: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    of: HashMap<PublicKey, Presence>,
    unwritten: HashSet<PublicKey>,
}

impl Presences {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who was seen in a repo.
    pub(crate) fn of(&self, repo: &PublicKey) -> Presence {
        self.lock().of.get(repo).cloned().unwrap_or_default()
    }

    /// When the network last said who advertises a tunnel in a repo.
    pub(crate) fn looked(&self, repo: &PublicKey) -> Option<Instant> {
        self.lock().of.get(repo)?.looked
    }

    /// A device answered.
    pub(crate) fn heard(&self, repo: &PublicKey, device: &DeviceId, now: u64) {
        let mut state = self.lock();
        let of = state.of.get_mut(repo);
        let Some(seen) = of.and_then(|of| of.devices.get_mut(device)) else {
            return;
        };
        if seen.at < now {
            seen.at = now;
            self.is_unwritten(&mut state, repo);
        }
    }

    /// Takes up who advertises a tunnel in a repo, by the word of the network if there is a time when it said so. Whether these are others than
    /// before.
    pub(crate) fn take_up(
        &self,
        repo: &PublicKey,
        tunnels: &[TunnelValue],
        looked: Option<Instant>,
        now: u64,
    ) -> bool {
        let mut state = self.lock();
        if tunnels.is_empty() && looked.is_none() && !state.of.contains_key(repo) {
            return false;
        }
        let presence = state.of.entry(repo.clone()).or_default();
        presence.looked = looked.or(presence.looked);
        let before = presence.devices.clone();
        let others = presence.take_up(tunnels, now);
        if before != presence.devices {
            self.is_unwritten(&mut state, repo);
        }
        others
    }

    /// Somebody left.
    pub(crate) fn forget(&self, repo: &PublicKey) {
        let mut state = self.lock();
        if state.of.remove(repo).is_some() {
            self.is_unwritten(&mut state, repo);
        }
    }

    fn is_unwritten(&self, state: &mut State, repo: &PublicKey) {
        if state.unwritten.insert(repo.clone()) {
            self.changed.notify_one();
        }
    }

    /// Waits until there is something to be written down.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Takes up a row of the ledger; whether it is one of this kind.
    pub(crate) fn take_up_row(&self, row: &[u8], now: u64) -> bool {
        let Some((&KIND, json)) = row.split_first() else {
            return false;
        };
        let Ok(row) = serde_json::from_slice::<Row>(json) else {
            return false;
        };
        let Ok(repo) = row.repo.parse() else {
            return false;
        };
        if row.version != VERSION {
            return false;
        }
        let devices = row.devices.into_iter().map(|device| {
            let seen = Seen {
                // This device's clock may have been wrong.
                at: device.seen.min(now),
                published_at: device.published_at,
                role: None,
            };
            (device.device, seen)
        });
        let presence = Presence {
            devices: devices.collect(),
            earlier: row.earlier.map(|seen| seen.min(now)),
            looked: None,
        };
        self.lock().of.insert(repo, presence);
        true
    }

    /// Writes down what changed.
    ///
    /// # Errors
    /// Those of the ledger; then it is written the next time.
    pub(crate) async fn write(&self, ledger: &GroupLedger) -> Result<()> {
        let _one_at_a_time = self.writing.lock().await;
        let mut taken = Taken {
            presences: self,
            repos: std::mem::take(&mut self.lock().unwritten),
        };
        let changes = {
            let state = self.lock();
            let rows = taken.repos.iter();
            rows.map(|repo| row(ledger, repo, state.of.get(repo)))
                .collect::<Result<Vec<_>>>()?
        };
        ledger.write(changes).await?;
        taken.repos.clear();
        Ok(())
    }
}

/// Repos whose rows are being written. They count as unwritten again unless that succeeded, also where it was called off.
struct Taken<'a> {
    presences: &'a Presences,
    repos: HashSet<PublicKey>,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if self.repos.is_empty() {
            return;
        }
        let mut state = self.presences.lock();
        state.unwritten.extend(self.repos.drain());
        self.presences.changed.notify_one();
    }
}

/// The row of a repo; no content where nothing is known of it any more.
fn row(
    ledger: &GroupLedger,
    repo: &PublicKey,
    presence: Option<&Presence>,
) -> Result<(RowName, Option<Vec<u8>>)> {
    let repo = repo.to_string();
    let name = ledger.name(KIND, &[repo.as_bytes()]);
    let Some(presence) = presence else {
        return Ok((name, None));
    };
    let devices = presence.devices.iter().map(|(device, seen)| Device {
        device: *device,
        published_at: seen.published_at,
        seen: seen.at,
    });
    let row = Row {
        version: VERSION,
        repo,
        earlier: presence.earlier,
        devices: devices.collect(),
    };
    let mut value = vec![KIND];
    let json = serde_json::to_vec(&row).map_err(|error| Error::Store(error.into()))?;
    value.extend_from_slice(&json);
    Ok((name, Some(value)))
}

#[cfg(test)]
mod tests {
    use dht_records::GroupAccess;
    use veilid_core::{CRYPTO_KIND_VLD0, Crypto, KeyPair};

    use super::*;
    use crate::Ledger;

    fn keys() -> KeyPair {
        Crypto::generate_keypair(CRYPTO_KIND_VLD0).unwrap()
    }

    fn tunnel(device: u8, published_at: u64) -> TunnelValue {
        TunnelValue {
            route: vec![1],
            device: DeviceId([device; 16]),
            published_at,
            role: None,
        }
    }

    /// The times of the devices, and of all that were ever seen.
    fn times(presences: &Presences, repo: &PublicKey) -> (Vec<u64>, Option<u64>) {
        let presence = presences.of(repo);
        let devices = presence.devices.values().map(|seen| seen.at);
        (devices.collect(), presence.last_seen())
    }

    async fn again(ledger: &GroupLedger, now: u64) -> Presences {
        let presences = Presences::default();
        for (_, row) in ledger.load().await.unwrap() {
            assert!(presences.take_up_row(&row, now));
        }
        presences
    }

    #[test]
    fn who_withdraws_is_remembered_and_not_counted() {
        let (presences, repo) = (Presences::default(), keys().key());
        assert!(!presences.take_up(&repo, &[], None, 10));
        assert_eq!(times(&presences, &repo), (vec![], None));
        assert!(presences.take_up(&repo, &[tunnel(1, 5), tunnel(2, 7)], None, 10));
        assert!(!presences.take_up(&repo, &[tunnel(1, 5), tunnel(2, 7)], None, 11));
        assert_eq!(times(&presences, &repo), (vec![5, 7], Some(7)));
        presences.heard(&repo, &DeviceId([1; 16]), 20);
        presences.heard(&repo, &DeviceId([9; 16]), 21);
        assert_eq!(times(&presences, &repo), (vec![20, 7], Some(20)));
        assert!(presences.take_up(&repo, &[tunnel(2, 7)], None, 30));
        assert_eq!(times(&presences, &repo), (vec![7], Some(20)));
        assert!(presences.take_up(&repo, &[], None, 31));
        assert_eq!(times(&presences, &repo), (vec![], Some(20)));
        // It comes back, by a clock that is behind.
        assert!(presences.take_up(&repo, &[tunnel(1, 15)], None, 40));
        assert_eq!(times(&presences, &repo), (vec![15], Some(20)));
    }

    #[tokio::test]
    async fn a_time_to_come_counts_once() {
        let (presences, repo) = (Presences::default(), keys().key());
        let owner = keys();
        let ledger = GroupLedger::new(Ledger::in_memory(), &GroupAccess::Member { owner });
        for now in [100, 110, 120] {
            presences.take_up(&repo, &[tunnel(1, u64::MAX)], None, now);
            assert_eq!(times(&presences, &repo), (vec![100], Some(100)));
        }
        presences.write(&ledger).await.unwrap();
        let presences = again(&ledger, 130).await;
        presences.take_up(&repo, &[tunnel(1, u64::MAX)], None, 130);
        assert_eq!(times(&presences, &repo), (vec![100], Some(100)));
        // Another tunnel was published after that.
        presences.take_up(&repo, &[tunnel(1, u64::MAX - 1)], None, 140);
        assert_eq!(times(&presences, &repo), (vec![140], Some(140)));
        // The own clock was wrong, and is put right.
        presences.write(&ledger).await.unwrap();
        assert_eq!(
            times(&again(&ledger, 50).await, &repo),
            (vec![50], Some(50))
        );
    }

    #[tokio::test]
    async fn times_outlast_restarts_and_go_with_the_member() {
        let (presences, one, other) = (Presences::default(), keys().key(), keys().key());
        let owner = keys();
        let access = GroupAccess::Member { owner };
        let ledger = GroupLedger::new(Ledger::in_memory(), &access);
        presences.take_up(&one, &[tunnel(1, 5), tunnel(2, 6)], None, 10);
        presences.take_up(&other, &[tunnel(3, 8)], None, 10);
        presences.heard(&one, &DeviceId([1; 16]), 12);
        presences.take_up(&one, &[tunnel(2, 6)], None, 13);
        // What could not be written is written the next time.
        let closed = Ledger::in_memory();
        closed.close();
        let failed = presences.write(&GroupLedger::new(closed, &access)).await;
        assert!(failed.is_err());
        presences.write(&ledger).await.unwrap();
        let presences = again(&ledger, 20).await;
        assert_eq!(times(&presences, &one), (vec![6], Some(12)));
        assert_eq!(times(&presences, &other), (vec![8], Some(8)));

        presences.forget(&one);
        presences.write(&ledger).await.unwrap();
        let presences = again(&ledger, 20).await;
        assert_eq!(times(&presences, &one), (vec![], None));
        assert_eq!(times(&presences, &other), (vec![8], Some(8)));
    }
}
