//! New names, and the end of a group on this device.

use std::time::Duration;

use group::Group;
use tokio::time::timeout;

use crate::{
    Backend, Error, EventKind, GroupId, Result,
    groups::{LONGEST_GROUP_NAME, check_name},
    state::{Ending, Remembered},
};

/// How long a group that is left or forgotten may take to withdraw its tunnel.
const WITHDRAW: Duration = Duration::from_secs(3);
/// First pause after the others could not be told that this member left; it doubles up to `LONGEST_PAUSE`.
const PAUSE: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: Duration = Duration::from_secs(120);

impl Backend {
    /// Gives a group another name, for everybody. Published in the background.
    ///
    /// # Errors
    /// [`Error::GroupNotFound`], [`Error::InvalidName`]; [`group::Error::ReadOnly`] within [`Error::Group`].
    pub async fn rename_group(&self, id: &GroupId, name: &str) -> Result<()> {
        check_name("group's name", name, LONGEST_GROUP_NAME)?;
        Ok(self.group(id)?.rename(name).await?)
    }

    /// Gives this device's member another name in a group. Published in the background.
    ///
    /// # Errors
    /// As [`rename_group`](Self::rename_group).
    pub async fn rename_me(&self, id: &GroupId, me: &str) -> Result<()> {
        check_name("member's name", me, dht_records::MAX_NAME)?;
        let group = self.group(id)?;
        let _one_at_a_time = self.inner.joining.lock().await;
        let state = self.inner.state.read().await;
        let state = state.as_ref().ok_or(Error::Stopped)?;
        let mut secrets = state.secrets_of(id.public_key()).await?;
        // First, so that what is refused is not remembered.
        group.rename_me(me).await?;
        if let Some(own) = &mut secrets.own {
            me.clone_into(&mut own.me);
        }
        state.save_group(&secrets, None).await
    }

    /// Leaves a group, with all devices of this member: tells the others, for at most `limit`, and takes everything away that this
    /// device keeps of it, blobs that no other group needs included. Gives whether the others were told. If not, that is tried again
    /// until it works, also after restarts, and the keys stay here until then; nothing else does.
    ///
    /// What the others have of this member's files goes from their devices as well, when they hear of it.
    ///
    /// # Errors
    /// [`Error::GroupNotFound`]; those of the local disk: then this device is in the group as before, or is about to leave.
    pub async fn leave_group(&self, id: &GroupId, limit: Duration) -> Result<bool> {
        let group = self.begin_ending(id, Ending::Leave).await?;
        group.depart().await?;
        let told = matches!(timeout(limit, group.sign_off()).await, Ok(Ok(())));
        group.stop(WITHDRAW).await;
        // At once, whatever the network does.
        group.forget().await?;
        if told {
            self.finish_ending(&group).await?;
        } else {
            self.spawn_ending(group, Ending::Leave);
        }
        Ok(told)
    }

    /// Forgets a group on this device: its keys, what is remembered of it, and blobs that no other group needs. The others are told
    /// nothing, and a member stays one, with their other devices. Without another device and without a device link, what this
    /// member wrote can never be changed again.
    ///
    /// # Errors
    /// As [`leave_group`](Self::leave_group).
    pub async fn forget_group(&self, id: &GroupId) -> Result<()> {
        let group = self.begin_ending(id, Ending::Forget).await?;
        group.stop(WITHDRAW).await;
        group.forget().await?;
        self.finish_ending(&group).await
    }

    /// Remembers that a group ends, and takes it out of those that this device is in.
    async fn begin_ending(&self, id: &GroupId, ending: Ending) -> Result<Group> {
        let group = self.group(id)?;
        let _one_at_a_time = self.inner.joining.lock().await;
        {
            let state = self.inner.state.read().await;
            let state = state.as_ref().ok_or(Error::Stopped)?;
            let secrets = state.secrets_of(id.public_key()).await?;
            state.save_group(&secrets, Some(ending)).await?;
        }
        self.groups_map().remove(id).ok_or(Error::GroupNotFound)?;
        self.inner
            .events
            .emit(EventKind::GroupRemoved { group: id.clone() });
        Ok(group)
    }

    async fn finish_ending(&self, group: &Group) -> Result<()> {
        group.forget_records().await?;
        let id = GroupId::new(group.public_key());
        {
            let state = self.inner.state.read().await;
            let state = state.as_ref().ok_or(Error::Stopped)?;
            state.remove_group(id.public_key()).await?;
        }
        // Its blobs. What fails now is done by the next collection.
        if let Err(error) = self.inner.context.store.gc().await {
            tracing::warn!(%error, "the files of a group that ended are not collected yet");
        }
        self.inner.events.emit(EventKind::GroupLeft { group: id });
        Ok(())
    }

    /// Goes on with the end of groups that a stop or a crash cut off.
    pub(crate) async fn go_on_ending(&self, endings: Vec<Remembered>) {
        for Remembered { secrets, ending } in endings {
            let Some(ending) = ending else {
                continue;
            };
            match Group::load(self.inner.context.clone(), &secrets).await {
                Ok(group) => self.spawn_ending(group, ending),
                Err(error) => tracing::warn!(%error, "a group that ends cannot be opened"),
            }
        }
    }

    fn spawn_ending(&self, group: Group, ending: Ending) {
        let backend = self.clone();
        let cancel = self.inner.cancel.clone();
        self.inner.tasks.spawn(async move {
            let work = async {
                let mut pause = PAUSE;
                while let Err(error) = backend.end_group(&group, ending).await {
                    tracing::debug!(%error, "the end of a group is tried again");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            };
            tokio::select! {
                () = cancel.cancelled() => {}
                () = work => {}
            }
        });
    }

    async fn end_group(&self, group: &Group, ending: Ending) -> Result<()> {
        if ending == Ending::Leave {
            group.depart().await?;
        }
        group.forget().await?;
        if ending == Ending::Leave {
            self.wait_online(LONGEST_PAUSE).await?;
            group.sign_off().await?;
        }
        self.finish_ending(group).await
    }
}
