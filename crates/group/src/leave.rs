//! New names, and the end: leaving a group, and forgetting it.

use std::time::Duration;

use dht_records::{Fetch, SlotValue};
use tokio::time::sleep;

use crate::{Error, Group, GroupEvent, Result, members, own::Own};

/// How often a slot is signed off anew when others wrote it first.
const RACES: usize = 8;

impl Group {
    /// Gives the group another name, for everybody; published in the background.
    ///
    /// # Errors
    /// [`Error::ReadOnly`], [`Error::Left`]; a name that does not fit its record; those of the local disk.
    pub async fn rename(&self, name: &str) -> Result<()> {
        self.edit(|edits| edits.group = Some(name.to_owned()))
            .await?;
        self.inner.emit(GroupEvent::Renamed);
        Ok(())
    }

    /// Gives this member another name, on all of their devices; published in the background. The caller should keep the new name along with
    /// the keys, see [`OwnSecrets`](crate::OwnSecrets).
    ///
    /// # Errors
    /// As [`rename`](Self::rename).
    pub async fn rename_me(&self, me: &str) -> Result<()> {
        if me.len() > dht_records::MAX_NAME {
            return Err(Error::NameTooLong {
                limit: dht_records::MAX_NAME,
            });
        }
        self.edit(|edits| edits.me = Some(me.to_owned())).await?;
        self.inner.emit(GroupEvent::MembersChanged);
        Ok(())
    }

    /// From now on this device writes nothing into the group any more, not even after a restart. Call it before
    /// [`sign_off`](Self::sign_off), so that a crash in between leaves a member who is about to leave, and nothing else.
    ///
    /// # Errors
    /// Those of the local disk.
    pub async fn depart(&self) -> Result<()> {
        let Some(own) = &self.inner.own else {
            return Ok(());
        };
        self.mark_left(own.repo.public_key()).await
    }

    /// Tells everybody that this member left: their slot says so from then on, signed, and none of their devices can be found any
    /// more. Of readers and replicas only this device's tunnel goes. Takes as long as the network takes; doing it again does no harm.
    ///
    /// # Errors
    /// Those of the network, most of which can be tried again.
    pub async fn sign_off(&self) -> Result<()> {
        let Some(own) = &self.inner.own else {
            let withdrawn = self.inner.guests.withdraw_tunnel().await;
            return never_published(withdrawn.map(|_| ()).map_err(Error::from));
        };
        never_published(self.clear_slots(own).await)?;
        never_published(clear_tunnels(own).await)
    }

    async fn clear_slots(&self, own: &Own) -> Result<()> {
        let record = &self.inner.record;
        let key = own.repo.public_key();
        for _ in 0..RACES {
            // Also what is only here, and would be published one day.
            let _refreshed = record.slots(Fetch::Network).await?;
            for (index, slot) in record.slots(Fetch::Cached).await? {
                if let Ok(SlotValue::Member(slot)) = slot.map(|stamped| stamped.value)
                    && slot.repo == *key
                {
                    let leave = record.sign_leave(index, &own.keys).await?;
                    record.set_slot(index, &SlotValue::Left(leave)).await?;
                }
            }
            let published = record.publish().await?.or_failure()?;
            if published.overwritten().next().is_none() {
                return Ok(());
            }
            sleep(Duration::from_millis(200)).await;
        }
        Err(dht_records::Error::NotConfirmed.into())
    }

    /// Takes away what is on this device of the group: what it remembers of it, and the names under which blobs are kept. Those that no
    /// other group needs go with the next garbage collection of the store. The group has to be stopped. Doing it again does no harm.
    ///
    /// # Errors
    /// Those of the local disk.
    pub async fn forget(&self) -> Result<()> {
        let mut repos = self.other_repos().await?;
        repos.extend(self.own_repo().cloned());
        repos.extend(self.left_repos().await?);
        for repo in &repos {
            repo.forget().await?;
        }
        // Whose records are to go as well is known from these.
        self.inner.ledger.clear_but(members::KIND).await
    }

    /// Takes away what is on this device of the group's records, after [`forget`](Self::forget). Nothing of what was not published yet is
    /// left then.
    ///
    /// # Errors
    /// Those of the local disk.
    pub async fn forget_records(&self) -> Result<()> {
        let mut repos = self.other_repos().await?;
        repos.extend(self.own_repo().cloned());
        repos.push(self.inner.guests.clone());
        repos.extend(self.left_repos().await?);
        for repo in &repos {
            repo.record().forget().await?;
        }
        self.inner.record.forget().await?;
        self.inner.ledger.clear().await
    }
}

/// What nobody ever published need not be taken back.
fn never_published(outcome: Result<()>) -> Result<()> {
    match outcome {
        Err(
            Error::Records(dht_records::Error::RecordNotFound)
            | Error::Repo(repo::Error::Records(dht_records::Error::RecordNotFound)),
        ) => Ok(()),
        outcome => outcome,
    }
}

/// Clears the tunnels of all devices of this member.
async fn clear_tunnels(own: &Own) -> Result<()> {
    let record = own.repo.record();
    for (_, tunnel) in record.tunnels(Fetch::Network).await? {
        if let Ok(tunnel) = tunnel {
            record.clear_tunnel(tunnel.value.device).await?;
        }
    }
    let _ = record.publish().await?.or_failure()?;
    Ok(())
}
