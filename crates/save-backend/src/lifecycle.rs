//! New names, and the end of a group on this device.

use std::time::Duration;

use dht_records::Fetch;
use group::{Copied, Group, GroupSecrets};
use tokio::time::timeout;
use veilid_core::PublicKey;

use crate::{
    Backend, Error, EventKind, GroupId, GroupInfo, Result,
    groups::{LONGEST_GROUP_NAME, check_name},
    state::{Ending, Remembered},
};

/// How long a group that is left or forgotten may take to withdraw its tunnel.
const WITHDRAW: Duration = Duration::from_secs(3);
/// First pause after the others could not be told that this member left; it doubles up to `LONGEST_PAUSE`.
const PAUSE: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: Duration = Duration::from_secs(120);

/// A member's word that a group moved to new keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    /// The repo key of the member who says so.
    pub by: PublicKey,
    /// The new group.
    pub to: GroupId,
}

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
    /// [`Error::GroupNotFound`]; those of the local disk: then this device is in the group as before, or is about to leave. What is left to do
    /// then, or where the future is dropped half-way, is done at the next start.
    pub async fn leave_group(&self, id: &GroupId, limit: Duration) -> Result<bool> {
        let group = self.begin_ending(id, Ending::Leave).await?;
        group.depart().await?;
        let told = matches!(timeout(limit, group.sign_off()).await, Ok(Ok(())));
        group.stop(WITHDRAW).await;
        // At once, whatever the network does.
        group.forget().await?;
        self.collect().await;
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
        self.collect().await;
        self.finish_ending(&group).await
    }

    /// Moves a group to new keys, after a device with the old ones was lost: makes a new group of the same name, and tells the members
    /// `stay` of it, published in the background. The old group stays as it is, so that the notice can be read; leave it when all have
    /// followed. `docs/security.md` says what this protects, and what it cannot.
    ///
    /// Where this ends before the members are told, the new group is there: tell them with [`announce_move`](Self::announce_move).
    ///
    /// # Errors
    /// [`Error::GroupNotFound`]; within [`Error::Group`] [`group::Error::ReadOnly`], [`group::Error::NoSuchMember`] and
    /// [`group::Error::TooManyStaying`]: then nothing was made.
    pub async fn move_group(&self, id: &GroupId, stay: &[PublicKey]) -> Result<GroupInfo> {
        let old = self.group(id)?;
        let me = self.secrets_of(id).await?.own;
        let me = me.ok_or(group::Error::ReadOnly)?.me;
        old.check_staying(stay)?;
        let name = old.name(Fetch::Cached).await?;
        let new = self.create_group(&name.unwrap_or_default(), &me).await?;
        self.announce_move(id, &new.id, stay).await?;
        Ok(new)
    }

    /// Tells members of a group that it moved to another one that this device is a member of. It replaces an earlier notice of this
    /// member.
    ///
    /// # Errors
    /// As [`move_group`](Self::move_group).
    pub async fn announce_move(
        &self,
        id: &GroupId,
        to: &GroupId,
        stay: &[PublicKey],
    ) -> Result<()> {
        let to = self.group(to)?;
        Ok(self.group(id)?.announce_move(to.access(), stay).await?)
    }

    /// Where a group moved to, if a member says so and this device is told and is not there yet. If it was that member's device that
    /// was lost, whoever has it says so: ask them before you follow.
    ///
    /// # Errors
    /// [`Error::GroupNotFound`]; those of the network and of the local disk.
    pub async fn moved(&self, id: &GroupId) -> Result<Option<Moved>> {
        // The metadata came with the slots; only the notice itself may have to be fetched.
        let moved = self.group(id)?.moved(Fetch::Network).await?;
        Ok(moved
            .map(|moved| Moved {
                by: moved.by,
                to: GroupId::new(moved.access.public_key()),
            })
            .filter(|moved| self.group(&moved.to).is_err()))
    }

    /// Joins the group that a group moved to, under the name that this member has there. Files are not moved: see
    /// [`copy_files`](Self::copy_files).
    ///
    /// # Errors
    /// [`Error::GroupNotFound`], [`Error::NotMoved`]; else as [`join_group`](Self::join_group).
    pub async fn follow_move(&self, id: &GroupId) -> Result<GroupInfo> {
        let moved = self.group(id)?.moved(Fetch::Network).await?;
        let moved = moved.ok_or(Error::NotMoved)?;
        let own = self.secrets_of(id).await?.own;
        let me = own.ok_or(group::Error::ReadOnly)?.me;
        self.join_with(moved.access, None, &me).await
    }

    /// Writes this member's files of one group into another one as well, as far as they are on this device, under that group's keys.
    /// What is there already stays, so it can be repeated. Tells how many files and bytes were looked at.
    ///
    /// # Errors
    /// [`Error::GroupNotFound`]; [`group::Error::ReadOnly`] within [`Error::Group`]. What was copied before stays.
    pub async fn copy_files(
        &self,
        from: &GroupId,
        to: &GroupId,
        on_progress: impl Fn(u64, u64) + Send + Sync + 'static,
    ) -> Result<Copied> {
        let to = self.group(to)?;
        Ok(self.group(from)?.copy_files_to(&to, on_progress).await?)
    }

    async fn secrets_of(&self, id: &GroupId) -> Result<GroupSecrets> {
        let state = self.inner.state.read().await;
        let state = state.as_ref().ok_or(Error::Stopped)?;
        state.secrets_of(id.public_key()).await
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
        self.inner.events.emit(EventKind::GroupLeft { group: id });
        Ok(())
    }

    /// Takes away the blobs that nothing names any more. What fails now is done by the next collection.
    async fn collect(&self) {
        if let Err(error) = self.inner.context.store.gc().await {
            tracing::warn!(%error, "the files of a group that ended are not collected yet");
        }
    }

    /// Goes on with the end of groups that a stop or a crash cut off. What needs no network is done when this returns.
    pub(crate) async fn go_on_ending(&self, endings: Vec<Remembered>) {
        for Remembered { secrets, ending } in endings {
            let Some(ending) = ending else {
                continue;
            };
            let group = match Group::load(self.inner.context.clone(), &secrets).await {
                Ok(group) => group,
                Err(error) => {
                    tracing::warn!(%error, "a group that ends cannot be opened");
                    continue;
                }
            };
            if let Err(error) = end_here(&group, ending).await {
                tracing::warn!(%error, "what is here of a group that ends is not taken away yet");
            }
            self.spawn_ending(group, ending);
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
        end_here(group, ending).await?;
        self.collect().await;
        if ending == Ending::Leave {
            self.wait_online(LONGEST_PAUSE).await?;
            group.sign_off().await?;
        }
        self.finish_ending(group).await
    }
}

/// What needs no network. Doing it again does no harm.
async fn end_here(group: &Group, ending: Ending) -> Result<()> {
    if ending == Ending::Leave {
        group.depart().await?;
    }
    Ok(group.forget().await?)
}
