//! New names, and the end of a group on this device.

use std::time::Duration;

use dht_records::Fetch;
use group::{Copied, Group};
use tokio::{sync::oneshot, time::timeout};
use veilid_core::PublicKey;

use crate::{
    Backend, Error, EventKind, GroupId, GroupInfo, Result,
    groups::{LONGEST_GROUP_NAME, check_name, info},
    state::{Announcing, Ending, Remembered},
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
        let _one_at_a_time = self.changing(id).await;
        // Not before: what ended meanwhile must not be remembered again.
        let group = self.group(id)?;
        let state = self.inner.state.read().await;
        let state = state.as_ref().ok_or(Error::Stopped)?;
        let mut remembered = state.remembered(id.public_key()).await?;
        // First, so that what is refused is not remembered.
        group.rename_me(me).await?;
        if let Some(own) = &mut remembered.secrets.own {
            me.clone_into(&mut own.me);
        }
        state.save_group(&remembered).await
    }

    /// Publishes what this device holds without what another device of this member wrote and nobody can give, as
    /// [`Group::overrule`] says. Whether there was anything to overrule.
    ///
    /// # Errors
    /// [`Error::GroupNotFound`]; those of [`Group::overrule`] within [`Error::Group`].
    pub async fn overrule(&self, id: &GroupId) -> Result<bool> {
        Ok(self.group(id)?.overrule().await?)
    }

    /// Leaves a group, with all devices of this member: takes everything away that this device keeps of it, blobs that no other group
    /// needs included, and tells the others, for at most `limit`. Gives whether the others were told. If not, that is tried again
    /// until it works, also after restarts, and the keys stay here until then; nothing else does. Dropping the future calls nothing off.
    ///
    /// What the others have of this member's files goes from their devices as well, when they hear of it.
    ///
    /// # Errors
    /// [`Error::GroupNotFound`]; those of the local disk: then this device is in the group as before, or is about to leave. What is left
    /// to do then is tried again, also at the next start.
    pub async fn leave_group(&self, id: &GroupId, limit: Duration) -> Result<bool> {
        let told = self.end_in_background(id, Ending::Leave).await?;
        Ok(matches!(timeout(limit, told).await, Ok(Ok(()))))
    }

    /// Forgets a group on this device: its keys, what is remembered of it, and blobs that no other group needs. The others are told
    /// nothing, and a member stays one, with their other devices. Without another device and without a device link, what this
    /// member wrote can never be changed again. Dropping the future calls nothing off.
    ///
    /// # Errors
    /// As [`leave_group`](Self::leave_group).
    pub async fn forget_group(&self, id: &GroupId) -> Result<()> {
        let _done = self.end_in_background(id, Ending::Forget).await?;
        Ok(())
    }

    /// Moves a group to new keys, after a device with the old ones was lost: makes a new group of the same name, and tells the members
    /// `stay` of it, published in the background. The old group stays as it is, so that the notice can be read; leave it when all have
    /// followed. `docs/security.md` says what this protects, and what it cannot.
    ///
    /// What a dropped future, a crash or a full disk cuts off is done at the next start, or when this is called again: no second group is
    /// made.
    ///
    /// # Errors
    /// [`Error::GroupNotFound`]; within [`Error::Group`] [`group::Error::ReadOnly`], [`group::Error::NoSuchMember`] and
    /// [`group::Error::TooManyStaying`]: then nothing was made. Those of the local disk: then the new group may be there already.
    pub async fn move_group(&self, id: &GroupId, stay: &[PublicKey]) -> Result<GroupInfo> {
        let _one_at_a_time = self.changing(id).await;
        let old = self.group(id)?;
        let me = old.own_name().await?;
        old.check_staying(stay)?;
        let begun = self.moves().await?.into_iter().find(|(of, _)| of == id);
        let new = if let Some((_, new)) = begun {
            let group = self.group(&new)?;
            info(&new, &group).await
        } else {
            let name = old.name(Fetch::Cached).await?.unwrap_or_default();
            let context = self.inner.context.clone();
            let (group, secrets) = Group::create(context, &name, &me).await?;
            let announcing = Announcing {
                of: id.to_string(),
                stay: stay.to_vec(),
            };
            let remembered = Remembered {
                announcing: Some(announcing),
                ..secrets.into()
            };
            self.take_in(group, remembered).await?
        };
        self.announce_move(id, &new.id, stay).await?;
        self.announced(&new.id).await?;
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
        let old = self.group(id)?;
        let moved = old.moved(Fetch::Network).await?;
        let moved = moved.ok_or(Error::NotMoved)?;
        let me = old.own_name().await?;
        self.join_with(moved.access, None, &me).await
    }

    /// Writes this member's files of one group into another one as well, as far as they are on this device, under that group's keys.
    /// What is there already stays, so it can be repeated. Tells how many files and bytes were looked at or copied.
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

    async fn remembered(&self, id: &GroupId) -> Result<Remembered> {
        let state = self.inner.state.read().await;
        let state = state.as_ref().ok_or(Error::Stopped)?;
        state.remembered(id.public_key()).await
    }

    /// Whether this device is in a group, also where it cannot be opened.
    async fn is_remembered(&self, id: &GroupId) -> Result<bool> {
        match self.remembered(id).await {
            Ok(remembered) => Ok(remembered.ending.is_none()),
            Err(Error::GroupNotFound) => Ok(false),
            Err(Error::StateDamaged { .. }) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// The groups that move and whose members are not told yet, each with the one that it moves to.
    async fn moves(&self) -> Result<Vec<(GroupId, GroupId)>> {
        let ids: Vec<GroupId> = self.groups_map().keys().cloned().collect();
        let mut moves = Vec::new();
        for id in ids {
            if let Some(Announcing { of, .. }) = self.remembered(&id).await?.announcing {
                moves.push((of.parse()?, id));
            }
        }
        Ok(moves)
    }

    /// The members of the group that moved to this one are told.
    async fn announced(&self, to: &GroupId) -> Result<()> {
        let _one_at_a_time = self.changing(to).await;
        let state = self.inner.state.read().await;
        let state = state.as_ref().ok_or(Error::Stopped)?;
        let mut remembered = state.remembered(to.public_key()).await?;
        remembered.announcing = None;
        state.save_group(&remembered).await
    }

    /// Goes on with moves that a crash cut off. Needs no network.
    pub(crate) async fn go_on_moving(&self) {
        let went_on = async {
            for (of, to) in self.moves().await? {
                let announcing = self.remembered(&to).await?.announcing;
                if let (Ok(group), Some(announcing)) = (self.group(&of), announcing) {
                    // Who left since then need not be told.
                    let is_member =
                        |key: &PublicKey| group.check_staying(std::slice::from_ref(key)).is_ok();
                    let stay: Vec<_> = announcing.stay.into_iter().filter(is_member).collect();
                    self.announce_move(&of, &to, &stay).await?;
                } else if self.is_remembered(&of).await? {
                    // It cannot be opened now, and perhaps at the next start.
                    continue;
                }
                self.announced(&to).await?;
            }
            Ok::<(), Error>(())
        };
        if let Err(error) = went_on.await {
            tracing::warn!(%error, "the members of a group that moved are not told yet");
        }
    }

    /// Ends a group, in a task of its own, so that nothing is left half done when the caller loses patience. Returns when all is gone
    /// that needs no network to go; what it gives is ready when the rest is.
    async fn end_in_background(
        &self,
        id: &GroupId,
        ending: Ending,
    ) -> Result<oneshot::Receiver<()>> {
        let (here, gone_here) = oneshot::channel();
        let (backend, id) = (self.clone(), id.clone());
        let done = self.spawn_ending(async move {
            let group = match backend.begin_ending(&id, ending).await {
                Ok(group) => group,
                Err(error) => {
                    // Without a receiver nobody wants to know.
                    let _ = here.send(Err(error));
                    return None;
                }
            };
            group.stop(WITHDRAW).await;
            let ended = backend.end_here(&group, ending).await;
            let all_done = ended.is_ok() && ending == Ending::Forget;
            let _ = here.send(ended);
            (!all_done).then_some((group, ending))
        });
        gone_here.await.map_err(|_| Error::Stopped)??;
        Ok(done)
    }

    /// Remembers that a group ends, and takes it out of those that this device is in.
    async fn begin_ending(&self, id: &GroupId, ending: Ending) -> Result<Group> {
        let _one_at_a_time = self.changing(id).await;
        // Not before: what ended meanwhile must not be remembered again.
        let group = self.group(id)?;
        {
            let state = self.inner.state.read().await;
            let state = state.as_ref().ok_or(Error::Stopped)?;
            let mut remembered = state.remembered(id.public_key()).await?;
            remembered.ending = Some(ending);
            state.save_group(&remembered).await?;
        }
        self.groups_map().remove(id).ok_or(Error::GroupNotFound)?;
        self.inner
            .events
            .emit(EventKind::GroupRemoved { group: id.clone() });
        Ok(group)
    }

    async fn finish_ending(&self, group: &Group) -> Result<()> {
        group.forget_records().await?;
        let group = GroupId::new(group.public_key());
        {
            let state = self.inner.state.read().await;
            let state = state.as_ref().ok_or(Error::Stopped)?;
            state.remove_group(group.public_key()).await?;
        }
        self.inner.events.emit(EventKind::GroupLeft { group });
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
        for remembered in endings {
            let Some(ending) = remembered.ending else {
                continue;
            };
            let context = self.inner.context.clone();
            let group = match Group::load(context, &remembered.secrets).await {
                Ok(group) => group,
                Err(error) => {
                    tracing::warn!(%error, "a group that ends cannot be opened");
                    continue;
                }
            };
            match self.end_here(&group, ending).await {
                Ok(()) if ending == Ending::Forget => continue,
                Ok(()) => {}
                Err(error) => {
                    tracing::warn!(%error, "what is here of a group that ends is not taken away yet");
                }
            }
            let _done = self.spawn_ending(std::future::ready(Some((group, ending))));
        }
    }

    /// Ends the group that `begin` gives, however often that has to be tried. What it gives is ready then.
    fn spawn_ending(
        &self,
        begin: impl Future<Output = Option<(Group, Ending)>> + Send + 'static,
    ) -> oneshot::Receiver<()> {
        let (done, is_done) = oneshot::channel();
        let backend = self.clone();
        let cancel = self.inner.cancel.clone();
        self.inner.tasks.spawn(async move {
            let Some((group, ending)) = begin.await else {
                return;
            };
            let work = async {
                let mut pause = PAUSE;
                while let Err(error) = backend.end_group(&group, ending).await {
                    tracing::debug!(%error, "the end of a group is tried again");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
                let _ = done.send(());
            };
            tokio::select! {
                () = cancel.cancelled() => {}
                () = work => {}
            }
        });
        is_done
    }

    async fn end_group(&self, group: &Group, ending: Ending) -> Result<()> {
        self.end_here(group, ending).await?;
        if ending == Ending::Leave {
            self.wait_online(LONGEST_PAUSE).await?;
            group.sign_off().await?;
            self.finish_ending(group).await?;
        }
        Ok(())
    }

    /// What needs no network, which is all where nobody is to be told. Doing it again does no harm.
    async fn end_here(&self, group: &Group, ending: Ending) -> Result<()> {
        if ending == Ending::Leave {
            group.depart().await?;
        }
        group.forget().await?;
        self.collect().await;
        if ending == Ending::Forget {
            self.finish_ending(group).await?;
        }
        Ok(())
    }
}
