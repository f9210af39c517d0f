//! Who is in the group, as its slots tell it.

use std::{collections::HashSet, sync::Arc};

use dht_records::{Fetch, Slot, SlotIndex, SlotValue};
use futures::{StreamExt, stream::FuturesUnordered};
use iroh_blobs::Hash;
use repo::Repo;
use veilid_core::PublicKey;

use crate::{Error, Group, GroupEvent, Result, peers::Peer};

/// A member of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Their name, where this group's keys can read it.
    pub name: Option<String>,
    /// The public key of their data repository, which identifies them.
    pub repo: PublicKey,
    /// Whether this is the member that this device writes as.
    pub is_self: bool,
    /// Files in their collection, as of what is here of it.
    pub files: u64,
    /// Bytes in their collection before sealing, as of what is here of it.
    pub bytes: u64,
}

/// What is known of a member from their slot.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub(crate) index: SlotIndex,
    /// The counter of the slot's value.
    pub(crate) counter: u64,
    pub(crate) slot: Slot,
}

impl Group {
    /// The members, from what was seen last; with `Fetch::Network` their slots are read again first.
    ///
    /// # Errors
    /// With `Fetch::Network` those of the network; with `Fetch::Cached` only those of the local disk.
    pub async fn members(&self, fetch: Fetch) -> Result<Vec<Member>> {
        if matches!(fetch, Fetch::Network) {
            self.refresh_members().await?;
        }
        let known: Vec<Known> = self.known_members();
        let mut members = Vec::with_capacity(known.len() + 1);
        let own = self.own_repo().public_key().clone();
        if !known.iter().any(|known| known.slot.repo == own) {
            // Not advertised yet; this device knows it is there all the same.
            members.push(self.own_member().await?);
        }
        for known in known {
            if known.slot.repo == own {
                members.push(self.own_member().await?);
                continue;
            }
            let repo = self.repo(&known.slot.repo).await?;
            let held = repo.held_root().await?;
            members.push(Member {
                name: known.slot.name.clone(),
                repo: known.slot.repo.clone(),
                is_self: false,
                files: held.as_ref().map_or(0, |root| root.files),
                bytes: held.as_ref().map_or(0, |root| root.bytes),
            });
        }
        Ok(members)
    }

    async fn own_member(&self) -> Result<Member> {
        let held = self.own_repo().held_root().await?;
        Ok(Member {
            name: Some(self.inner.me.clone()),
            repo: self.own_repo().public_key().clone(),
            is_self: true,
            files: held.as_ref().map_or(0, |root| root.files),
            bytes: held.as_ref().map_or(0, |root| root.bytes),
        })
    }

    pub(crate) fn known_members(&self) -> Vec<Known> {
        self.inner.known().values().cloned().collect()
    }

    /// The repos of the other members.
    pub(crate) async fn other_repos(&self) -> Result<Vec<Repo>> {
        let own = self.own_repo().public_key().clone();
        let mut repos = Vec::new();
        for known in self.known_members() {
            if known.slot.repo != own {
                repos.push(self.repo(&known.slot.repo).await?);
            }
        }
        Ok(repos)
    }

    /// Reads the slots from the network, and tells of what changed.
    pub(crate) async fn refresh_members(&self) -> Result<()> {
        self.take_up_slots(Fetch::Network).await
    }

    /// Reads the slots and takes up what they say. A slot that cannot be read or whose signature is wrong changes nothing.
    pub(crate) async fn take_up_slots(&self, fetch: Fetch) -> Result<()> {
        let slots = self.inner.record.slots(fetch).await?;
        let (mut changed, mut newcomer) = (false, false);
        let mut new_roots = Vec::new();
        {
            let mut known = self.inner.known();
            for (index, slot) in slots {
                let (counter, value) = match slot {
                    Ok(stamped) => (stamped.counter, stamped.value),
                    Err(error) => {
                        tracing::debug!(slot = index.get(), %error, "a slot cannot be read");
                        continue;
                    }
                };
                match value {
                    SlotValue::Member(slot) => {
                        let key = slot.repo.to_string();
                        let before = known.get(&key);
                        // A member may stand in two slots for a moment, after two writers raced; the newer root counts.
                        let newer = before.is_none_or(|before| {
                            root_counter(&slot) > root_counter(&before.slot)
                                || (before.index == index && counter > before.counter)
                        });
                        if newer {
                            newcomer |= before.is_none();
                            if before.is_none_or(|b| b.slot.root != slot.root) {
                                new_roots.push(slot.repo.clone());
                            }
                            changed = true;
                            known.insert(
                                key,
                                Known {
                                    index,
                                    counter,
                                    slot,
                                },
                            );
                        }
                    }
                    SlotValue::Left(left) => {
                        changed |= known.remove(&left.repo.to_string()).is_some();
                    }
                    // Cleared, or of a kind that only newer programs know.
                    _ => {}
                }
            }
        }
        if changed {
            self.inner.emit(GroupEvent::MembersChanged);
        }
        if newcomer {
            self.inner.engine.newcomer();
        }
        if !new_roots.is_empty() {
            self.inner.roots_changed.notify_one();
        }
        for repo in new_roots {
            self.inner.emit(GroupEvent::RootChanged { repo });
        }
        Ok(())
    }

    /// The repo of a member, opened once.
    pub(crate) async fn repo(&self, key: &PublicKey) -> Result<Repo> {
        if *key == self.own_repo().public_key().clone() {
            return Ok(self.own_repo().clone());
        }
        let mut repos = self.inner.repos.lock().await;
        if let Some(repo) = repos.get(key) {
            return Ok(repo.clone());
        }
        let repo = Repo::open(
            &self.inner.ctx.repo_context(),
            &self.inner.access,
            key.clone(),
            None,
        )
        .await?;
        repos.insert(key.clone(), repo.clone());
        Ok(repo)
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
        let mut free: HashSet<Hash> = repo.reachable().await?.into_iter().collect();
        let mut files = HashSet::new();
        if !repo.is_writable() {
            // Lists open only under this group's keys, but anybody can name any file in theirs.
            for entry in repo.list().await? {
                free.remove(&entry.blob);
                files.insert(entry.blob);
            }
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

fn root_counter(slot: &Slot) -> u64 {
    slot.root.as_ref().map_or(0, |root| root.counter)
}

/// The other members' devices. A member whose tunnels cannot be read now is left out.
pub(crate) async fn devices(group: &Group, fetch: Fetch) -> Vec<Arc<Peer>> {
    let repos = match group.other_repos().await {
        Ok(repos) => repos,
        Err(error) => {
            tracing::debug!(%error, "the members cannot be read");
            return Vec::new();
        }
    };
    let mut asked: FuturesUnordered<_> = repos
        .iter()
        .map(|repo| group.inner.peers.of(repo, fetch))
        .collect();
    let mut devices = Vec::new();
    while let Some(found) = asked.next().await {
        match found {
            Ok(found) => devices.extend(found),
            Err(error) => tracing::debug!(%error, "a member's tunnels cannot be read"),
        }
    }
    devices
}
