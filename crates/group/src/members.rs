//! Who is in the group, as its slots tell it.

use std::{fmt, sync::Arc, time::Duration};

use dht_records::{
    Changed, DeviceId, Fetch, GroupAccess, GroupMetadata, GuestRole, SlotIndex, SlotRoot, SlotValue,
};
use futures::{StreamExt, stream::FuturesUnordered};
use repo::Repo;
use serde::{Deserialize, Serialize};
use tokio::{
    task::JoinHandle,
    time::{Instant, timeout_at},
};
use veilid_core::PublicKey;

use crate::{Error, Group, GroupEvent, Result, ledger::RowName, peers::Peer};

/// What somebody is in a group; their keys decide it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Role {
    /// Reads everything, and has a repo of their own.
    Member,
    /// Reads everything, and writes nothing.
    Reader,
    /// Stores, verifies and serves what it cannot read.
    Replica,
}

impl Role {
    pub(crate) fn of(access: &GroupAccess) -> Self {
        match access {
            GroupAccess::Member { .. } => Self::Member,
            GroupAccess::Reader { .. } => Self::Reader,
            GroupAccess::Replica { .. } => Self::Replica,
        }
    }

    fn of_guest(role: GuestRole) -> Option<Self> {
        match role {
            GuestRole::Reader => Some(Self::Reader),
            GuestRole::Replica => Some(Self::Replica),
            _ => None,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Member => "member",
            Self::Reader => "reader",
            Self::Replica => "replica",
        })
    }
}

/// A member of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Member {
    /// Their name, where this group's keys can read it.
    pub name: Option<String>,
    /// The public key of their data repository, which identifies them.
    pub repo: PublicKey,
    /// What they are, where that is known: whoever has a slot is a member.
    pub role: Option<Role>,
    /// Whether this is the member that this device writes as.
    pub is_self: bool,
    /// Files in their collection, as their slot states it.
    pub files: u64,
    /// Bytes in their collection before sealing, as their slot states it.
    pub bytes: u64,
    /// Devices of theirs that advertise a tunnel now, this one excepted, as far as that was looked for. One that stopped cleanly
    /// advertises none; one that lost its network or its power does so still.
    pub tunnels: usize,
    /// When one of their other devices last answered or published its tunnel, in seconds since 1970. The second is what their clock says,
    /// and never later than this device's. It is kept when they stop, and when this device does.
    pub last_seen: Option<u64>,
}

/// A device that stores or reads along without a slot of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Guest {
    /// The device.
    pub device: DeviceId,
    /// What it is, as it says itself: whoever has a link of any kind can write that, and older versions say nothing.
    pub role: Option<Role>,
    /// When it last answered or published its tunnel, as in [`Member`].
    pub last_seen: u64,
}

/// What is known of a member from their slot.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub(crate) index: SlotIndex,
    /// The counter of the slot's value.
    pub(crate) counter: u64,
    pub(crate) repo: PublicKey,
    pub(crate) root: Option<SlotRoot>,
    pub(crate) name: Option<String>,
}

/// How long whoever asks for the guests waits for them.
const GUESTS: Duration = Duration::from_secs(4);
/// The first byte of a row of this kind.
pub(crate) const KIND: u8 = 3;
const VERSION: u8 = 1;

/// A row of the ledger: a member outlasts their slot, which anybody with the owner's key can overwrite.
#[derive(Serialize, Deserialize)]
struct Row {
    version: u8,
    repo: String,
    index: u32,
    counter: u64,
    root: Option<SlotRoot>,
    name: Option<String>,
    /// They left, by their own signature.
    left: bool,
}

impl Group {
    /// The members, from what was seen last; with `Fetch::Network` their slots are read again first: one inspection of the group's record,
    /// and the slots that changed, 16 at a time. [`look_at_members`](Self::look_at_members) reads the tunnels that they advertise.
    ///
    /// While the group is started, both are read in the background as well: the slots when they change, the tunnels of each member after
    /// a start and after a change of their slot, again after 15 seconds, and then after twice as long each time up to 10 minutes while
    /// nothing changes. In groups of more than some 60 members it takes longer, since at most 6 a minute are looked at in the long run.
    ///
    /// # Errors
    /// With `Fetch::Network` those of the network; with `Fetch::Cached` only those of the local disk.
    pub async fn members(&self, fetch: Fetch) -> Result<Vec<Member>> {
        if matches!(fetch, Fetch::Network) {
            self.refresh_members().await?;
        }
        let inner = &self.inner;
        let known: Vec<Known> = self.known_members();
        let mut members = Vec::with_capacity(known.len() + 1);
        if let Some(own) = inner.own.as_ref().filter(|_| !inner.has_left()) {
            // This device knows that it is there, whether advertised yet or not.
            let held = own.repo.held_root().await?;
            members.push(Member {
                name: Some(own.name().await),
                is_self: true,
                files: held.as_ref().map_or(0, |root| root.files),
                bytes: held.as_ref().map_or(0, |root| root.bytes),
                ..self.shown(own.repo.public_key(), None, None)
            });
        }
        members.extend(
            known
                .iter()
                .filter(|known| !inner.is_own(&known.repo))
                .map(|known| self.shown(&known.repo, known.name.clone(), known.root)),
        );
        members.sort_by_cached_key(|member| member.repo.to_string());
        Ok(members)
    }

    fn shown(&self, repo: &PublicKey, name: Option<String>, root: Option<SlotRoot>) -> Member {
        let presence = self.inner.peers.presences.of(repo);
        Member {
            name,
            repo: repo.clone(),
            role: Some(Role::Member),
            is_self: false,
            files: root.map_or(0, |root| root.files),
            bytes: root.map_or(0, |root| root.bytes),
            tunnels: presence.devices.len(),
            last_seen: presence.last_seen(),
        }
    }

    /// The devices that read or store along without a slot, as far as they were looked for: readers and replicas. With
    /// `Fetch::Network` their record is read again first, for at most 4 seconds.
    ///
    /// # Errors
    /// Those of the local disk.
    pub async fn guests(&self, fetch: Fetch) -> Result<Vec<Guest>> {
        let guests = &self.inner.guests;
        if fetch == Fetch::Network {
            // What comes later is there the next time.
            let _ = timeout_at(Instant::now() + GUESTS, look_for_guests(self)).await;
        } else {
            self.inner.peers.of(guests, fetch).await?;
        }
        let presence = self.inner.peers.presences.of(guests.public_key());
        let devices = presence.devices.into_iter();
        Ok(devices
            .map(|(device, seen)| Guest {
                device,
                role: seen.role.and_then(Role::of_guest),
                last_seen: seen.at,
            })
            .collect())
    }

    pub(crate) fn known_members(&self) -> Vec<Known> {
        self.inner.known().values().cloned().collect()
    }

    /// The repos of the other members.
    pub(crate) async fn other_repos(&self) -> Result<Vec<Repo>> {
        let mut repos = Vec::new();
        for known in self.known_members() {
            if !self.inner.is_own(&known.repo) {
                repos.push(self.repo(&known.repo).await?);
            }
        }
        Ok(repos)
    }

    /// Reads the slots from the network, and tells of what changed. Gives why one of them could not be read now, if so.
    pub(crate) async fn refresh_members(&self) -> Result<Option<Error>> {
        self.refresh_from(None).await
    }

    /// The same after a watch announced something: that is read first, and all the rest only where it is not all there is.
    pub(crate) async fn refresh_changed(&self, changed: &Changed) -> Result<Option<Error>> {
        self.refresh_from(Some(changed)).await
    }

    async fn refresh_from(&self, changed: Option<&Changed>) -> Result<Option<Error>> {
        let before = self.metadata().await;
        let fetch = match changed {
            Some(changed) if self.inner.record.read_changed(changed).await? => Fetch::Cached,
            _ => Fetch::Network,
        };
        let failed = self.take_up_slots(fetch).await?;
        let after = self.metadata().await;
        if before.name != after.name {
            self.inner.emit(GroupEvent::Renamed);
        }
        self.emit_moved(before.moved_by.as_ref(), after.moved_by.as_ref());
        Ok(failed)
    }

    /// The group's metadata as they are known here; empty where they cannot be read.
    async fn metadata(&self) -> GroupMetadata {
        let metadata = self.inner.record.metadata(Fetch::Cached).await;
        let metadata = metadata.ok().flatten();
        metadata.map(|stamped| stamped.value).unwrap_or_default()
    }

    /// Takes up a row of the ledger; whether it is one of this kind.
    pub(crate) fn take_up_member(&self, row: &[u8]) -> bool {
        let Some((&KIND, json)) = row.split_first() else {
            return false;
        };
        let parsed = || -> Option<(Known, bool)> {
            let row: Row = serde_json::from_slice(json).ok()?;
            let known = Known {
                index: SlotIndex::new(row.index).ok()?,
                counter: row.counter,
                repo: row.repo.parse().ok()?,
                root: row.root,
                name: row.name,
            };
            (row.version == VERSION).then_some((known, row.left))
        };
        let Some((known, left)) = parsed() else {
            return false;
        };
        let key = known.repo.to_string();
        if left {
            self.inner.left().insert(key);
        } else {
            self.inner.known().insert(key, known);
        }
        true
    }

    /// Reads the slots and takes up what they say. A slot that cannot be read or whose signature is wrong changes nothing, and
    /// neither does one that is gone: a member leaves by their own word alone. Gives why a slot could not be read now, if so.
    pub(crate) async fn take_up_slots(&self, fetch: Fetch) -> Result<Option<Error>> {
        let mut read = Vec::new();
        let mut failed = None;
        for (index, slot) in self.inner.record.slots(fetch).await? {
            match slot {
                Ok(stamped) => read.push((index, stamped.counter, stamped.value)),
                Err(error) => {
                    tracing::debug!(slot = index.get(), %error, "a slot cannot be read");
                    if error.is_retryable() {
                        failed.get_or_insert(Error::from(error));
                    }
                }
            }
        }
        let inner = &self.inner;
        let (mut newcomer, mut gone) = (false, Vec::new());
        let mut new_roots = Vec::new();
        let mut rows = Vec::new();
        {
            let (mut known, mut left) = (inner.known(), inner.left());
            // First, so that an older slot of theirs does not bring them back.
            for (index, counter, value) in &read {
                let SlotValue::Left(leave) = value else {
                    continue;
                };
                let key = leave.repo.to_string();
                if left.insert(key.clone()) {
                    known.remove(&key);
                    gone.push(leave.repo.clone());
                    let last = Known {
                        index: *index,
                        counter: *counter,
                        repo: leave.repo.clone(),
                        root: None,
                        name: None,
                    };
                    rows.push(self.row(&last, true)?);
                }
            }
            for (index, counter, value) in read {
                // Cleared, or of a kind that only newer programs know.
                let SlotValue::Member(slot) = value else {
                    continue;
                };
                let key = slot.repo.to_string();
                if left.contains(&key) {
                    continue;
                }
                let before = known.get(&key);
                // A member may stand in two slots for a moment, after two writers raced; the newer root counts.
                let newer = before.is_none_or(|before| {
                    root_counter(slot.root.as_ref()) > root_counter(before.root.as_ref())
                        || (before.index == index && counter > before.counter)
                });
                if !newer {
                    continue;
                }
                newcomer |= before.is_none();
                if before.is_none_or(|before| before.root != slot.root) {
                    new_roots.push(slot.repo.clone());
                }
                let now = Known {
                    index,
                    counter,
                    repo: slot.repo,
                    root: slot.root,
                    name: slot.name,
                };
                rows.push(self.row(&now, false)?);
                known.insert(key, now);
            }
        }
        if rows.is_empty() {
            return Ok(failed);
        }
        if let Err(error) = inner.ledger.write(rows).await {
            // The record says it too, for as long as nobody overwrites it.
            tracing::warn!(%error, "who is in the group is not written down");
        }
        for repo in gone {
            self.let_go(&repo).await;
        }
        inner.emit(GroupEvent::MembersChanged);
        inner.slots_changed.notify_one();
        if newcomer {
            inner.engine.newcomer();
        }
        if !new_roots.is_empty() {
            inner.roots_changed.notify_one();
        }
        for repo in new_roots {
            inner.emit(GroupEvent::RootChanged { repo });
        }
        Ok(failed)
    }

    /// Whether the collection that a member's slot names is the one that is here.
    pub(crate) async fn has_stated_root(&self, repo: &Repo) -> bool {
        let known = self
            .inner
            .known()
            .get(&repo.public_key().to_string())
            .cloned();
        let stated = known.and_then(|known| known.root).map(|root| root.hash);
        match repo.held_root().await {
            Ok(held) => {
                stated.is_none_or(|stated| held.is_some_and(|held| *held.hash.as_bytes() == stated))
            }
            Err(_) => false,
        }
    }

    /// Writes down that this member left, before anybody else knows.
    pub(crate) async fn mark_left(&self, repo: &PublicKey) -> Result<()> {
        let key = repo.to_string();
        let known = self.inner.known().get(&key).cloned();
        let last = known.unwrap_or_else(|| Known {
            index: SlotIndex::start_of(repo),
            counter: 0,
            repo: repo.clone(),
            root: None,
            name: None,
        });
        self.inner
            .ledger
            .write(vec![self.row(&last, true)?])
            .await?;
        self.inner.left().insert(key.clone());
        self.inner.known().remove(&key);
        Ok(())
    }

    fn row(&self, known: &Known, left: bool) -> Result<(RowName, Option<Vec<u8>>)> {
        let row = Row {
            version: VERSION,
            repo: known.repo.to_string(),
            index: known.index.get(),
            counter: known.counter,
            root: known.root,
            name: known.name.clone(),
            left,
        };
        let mut value = vec![KIND];
        let json = serde_json::to_vec(&row).map_err(|e| Error::Store(e.into()))?;
        value.extend_from_slice(&json);
        let name = self.inner.ledger.name(KIND, &[row.repo.as_bytes()]);
        Ok((name, Some(value)))
    }

    /// Gives up what is here of somebody who left: they took it back, and the next garbage collection does the rest.
    async fn let_go(&self, repo: &PublicKey) {
        if self.inner.is_own(repo) {
            self.inner.emit(GroupEvent::Left);
            return;
        }
        self.inner.reach.remove(&repo.to_string());
        self.inner.peers.forget(repo);
        let forgotten = async {
            self.repo(repo).await?.forget().await?;
            self.inner.repos.lock().await.remove(repo);
            self.inner.peers.presences.write(&self.inner.ledger).await?;
            self.forget_wanted_of(repo).await
        };
        if let Err(error) = forgotten.await {
            tracing::warn!(%error, "what somebody who left had is still here");
        }
    }

    /// Takes up from what is here who advertises a tunnel, and when they were seen.
    pub(crate) async fn recall_presence(&self) -> Result<()> {
        let mut repos = self.other_repos().await?;
        repos.extend(self.own_repo().cloned());
        repos.push(self.inner.guests.clone());
        for repo in repos {
            // What one of them published must not keep this device from its own files.
            if let Err(error) = self.inner.peers.recall(&repo).await {
                tracing::debug!(%error, "a member's tunnels cannot be read");
            }
        }
        Ok(())
    }

    /// The repos of the other members who left.
    pub(crate) async fn left_repos(&self) -> Result<Vec<Repo>> {
        let left = self.inner.left().clone();
        let mut repos = Vec::new();
        for key in left.iter().filter_map(|key| key.parse().ok()) {
            if !self.inner.is_own(&key) {
                repos.push(self.open_repo(&key).await?);
            }
        }
        Ok(repos)
    }

    /// Gives up what is still here of those who left, because that failed at the time.
    pub(crate) async fn let_go_of_the_rest(&self) {
        let rest = async {
            let mut failed = None;
            for repo in self.left_repos().await? {
                self.inner.peers.forget(repo.public_key());
                let gone = async {
                    // One that is damaged goes, too.
                    if !matches!(repo.held_root().await, Ok(None)) {
                        repo.forget().await?;
                    }
                    self.forget_wanted_of(repo.public_key()).await
                };
                failed = gone.await.err().or(failed);
            }
            failed.map_or(Ok(()), Err)
        };
        if let Err(error) = rest.await {
            tracing::warn!(%error, "what somebody who left had is still here");
        }
    }

    /// The repo of a member, opened once.
    pub(crate) async fn repo(&self, key: &PublicKey) -> Result<Repo> {
        if let Some(own) = self.own_repo().filter(|own| own.public_key() == key) {
            return Ok(own.clone());
        }
        let mut repos = self.inner.repos.lock().await;
        if let Some(repo) = repos.get(key) {
            return Ok(repo.clone());
        }
        let repo = self.open_repo(key).await?;
        repos.insert(key.clone(), repo.clone());
        Ok(repo)
    }

    async fn open_repo(&self, key: &PublicKey) -> Result<Repo> {
        let inner = &self.inner;
        let context = inner.ctx.repo_context();
        Ok(Repo::open(&context, &inner.access, key.clone(), None).await?)
    }

    /// Lets the members be told of what `repo` holds now.
    pub(crate) async fn refresh_reach(&self, repo: &Repo) -> Result<()> {
        // One after the other, so that an older root never replaces a newer one.
        let _one_at_a_time = self.inner.reaching.lock().await;
        let Some(root) = repo.held_root().await? else {
            return Ok(());
        };
        let name = repo.public_key().to_string();
        if self.inner.reach.is_at(&name, &root.hash) {
            return Ok(());
        }
        let mut free = repo.reachable().await?;
        let mut files = Vec::new();
        if !repo.is_writable() {
            // Lists open only under this group's keys, but anybody can name any file in theirs.
            files = repo.blobs().await?;
            free.retain(|blob| files.binary_search(blob).is_err());
        }
        self.inner.reach.set(&name, root.hash, free, files);
        Ok(())
    }

    /// Finds a member by repo key.
    ///
    /// # Errors
    /// [`Error::NoSuchMember`].
    pub(crate) fn known_member(&self, repo: &PublicKey) -> Result<Known> {
        self.inner
            .known()
            .get(&repo.to_string())
            .cloned()
            .ok_or(Error::NoSuchMember)
    }
}

fn root_counter(root: Option<&SlotRoot>) -> u64 {
    root.map_or(0, |root| root.counter)
}

/// All other devices: those of the other members, this member's own, and the guests. And whether that is sure to be all: of whose tunnels
/// cannot be read now, those that were known before are given.
pub(crate) async fn devices(group: &Group, fetch: Fetch) -> (Vec<Arc<Peer>>, bool) {
    let mut repos = match group.other_repos().await {
        Ok(repos) => repos,
        Err(error) => {
            tracing::debug!(%error, "the members cannot be read");
            return (Vec::new(), false);
        }
    };
    repos.extend(group.own_repo().cloned());
    let mut asked: FuturesUnordered<_> = repos
        .iter()
        .map(|repo| group.inner.peers.of(repo, fetch))
        .collect();
    let mut devices = Vec::new();
    let mut complete = true;
    while let Some(found) = asked.next().await {
        match found {
            Ok((found, all)) => {
                devices.extend(found);
                complete &= all;
            }
            Err(error) => {
                tracing::debug!(%error, "a member's tunnels cannot be read");
                complete = false;
            }
        }
    }
    devices.extend(guest_devices(group).await);
    (devices, complete)
}

/// The guests' devices, as far as they are known.
pub(crate) async fn guest_devices(group: &Group) -> Vec<Arc<Peer>> {
    let inner = &group.inner;
    match inner.peers.of(&inner.guests, Fetch::Cached).await {
        Ok((guests, _)) => guests,
        Err(error) => {
            tracing::debug!(%error, "the guests cannot be read");
            Vec::new()
        }
    }
}

/// Reads from the network who the guests are. Of a record that nobody ever wrote, the network takes long to say so. Gives whether it told.
pub(crate) fn look_for_guests(group: &Group) -> JoinHandle<bool> {
    let (group, tasks) = (group.clone(), &group.inner.tasks);
    tasks.spawn(async move {
        let inner = &group.inner;
        tokio::select! {
            () = inner.cancel.cancelled() => false,
            found = inner.peers.of(&inner.guests, Fetch::Network) => match found {
                Ok((_, all)) => all,
                Err(error) => {
                    tracing::debug!(%error, "the guests cannot be read");
                    false
                }
            }
        }
    })
}
