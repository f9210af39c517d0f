//! Publishing what this device writes into a group.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use dht_records::{Fetch, SLOTS, SlotIndex, SlotRoot, SlotValue};
use serde::Serialize;
use tokio::time::timeout;

use crate::{
    Error, Group, GroupEvent, Result,
    own::Own,
    slots::{self, Content},
    upkeep::{LONGEST_PAUSE, PAUSE, online},
};

/// A healthy group looks after itself so often even when nothing seems to change.
const ROUND: Duration = Duration::from_secs(300);
/// How long everybody may take to say whether they have what is to be overruled. A device that was lost may still advertise its tunnel, and is
/// waited for; and an attempt in the background may come first.
const ASK_AGAIN: Duration = Duration::from_secs(240);
/// How often a slot is sought anew when others took it first.
const RACES: usize = 16;

/// Something that this device wrote and that the network does not have yet. It is kept here, and tried again by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Unpublished {
    /// The group's name, or where it moved to.
    Group,
    /// This member's name, or a notice that the group moved.
    Member,
    /// What this member archived or deleted.
    Files,
    /// What another device of this member wrote and is not here yet. Until it is merged, none of this device's files are published. Where
    /// nobody can give it any more, [`Group::overrule`] gives it up.
    Merge,
    /// This member's slot: the others cannot see the newest of the above, or not this member at all.
    Slot,
    /// The route by which this device can be reached.
    Tunnel,
}

impl Unpublished {
    /// A word for it, for people and for JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Group => "group",
            Self::Member => "member",
            Self::Files => "files",
            Self::Merge => "merge",
            Self::Slot => "slot",
            Self::Tunnel => "tunnel",
        }
    }
}

/// How far publishing is.
#[derive(Debug, Default)]
pub(crate) struct Publishing {
    /// Local changes that are published.
    done: u64,
    /// Attempts that were begun, one after the other.
    begun: u64,
    /// The last attempt that failed for a reason of this device's.
    failed: Option<(u64, Arc<Error>)>,
}

impl Publishing {
    pub(crate) fn begin(&mut self) {
        self.begun += 1;
    }

    pub(crate) fn reached(&mut self, changes: u64) {
        self.done = self.done.max(changes);
        self.failed = None;
    }

    pub(crate) fn failed(&mut self, cause: Error) {
        self.failed = Some((self.begun, Arc::new(cause)));
    }

    /// Why an attempt failed that came after so many.
    fn failed_since(&self, attempts: u64) -> Option<&Arc<Error>> {
        let (attempt, cause) = self.failed.as_ref()?;
        (*attempt > attempts).then_some(cause)
    }
}

impl Group {
    /// Whether something that was written here is not published yet.
    pub fn has_unpublished(&self) -> bool {
        self.inner.publishing.borrow().done < *self.inner.changes.borrow()
    }

    /// What that is, in the order of [`Unpublished`].
    ///
    /// # Errors
    /// Those of the local disk.
    pub async fn unpublished(&self) -> Result<Vec<Unpublished>> {
        let inner = &self.inner;
        let mut out = BTreeSet::new();
        for subkey in inner.record.unpublished().await? {
            out.insert(match subkey {
                0 => Unpublished::Group,
                _ => Unpublished::Slot,
            });
        }
        for subkey in inner.seat().record().unpublished().await? {
            out.insert(match subkey {
                0 => Unpublished::Member,
                1 => Unpublished::Files,
                _ => Unpublished::Tunnel,
            });
        }
        if let Some(own) = inner.own.as_ref().filter(|_| !inner.has_left()) {
            if own.repo.unmerged().await?.is_some() {
                out.extend([Unpublished::Files, Unpublished::Merge]);
            }
            let edits = inner.edits.lock().await.edits.clone();
            if edits.in_group() {
                out.insert(Unpublished::Group);
            }
            if edits.in_repo() {
                out.insert(Unpublished::Member);
            }
            if self.is_behind().await? {
                out.insert(Unpublished::Slot);
            }
        }
        Ok(out.into_iter().collect())
    }

    /// Whether something that was written here is not published.
    pub(crate) async fn is_behind(&self) -> Result<bool> {
        let inner = &self.inner;
        let Some(own) = &inner.own else {
            return Ok(false);
        };
        if !own.repo.record().unpublished().await?.is_empty()
            || !inner.record.unpublished().await?.is_empty()
            || !inner.edits.lock().await.edits.is_empty()
            || own.repo.unmerged().await?.is_some()
        {
            return Ok(true);
        }
        let root = own.repo.record().root(Fetch::Cached).await?;
        let root = root.map(|root| root.value.hash);
        let slot = inner
            .known()
            .get(&own.repo.public_key().to_string())
            .cloned();
        Ok(slot.is_none_or(|known| known.root.map(|root| root.hash) != root))
    }

    /// Publishes what this device holds without what another device of this member wrote and nobody can give: [`Unpublished::Merge`]. Everybody
    /// is asked for it once more first, so this needs the network; if it comes, it is merged.
    ///
    /// Files that only the other device's list names are gone for all members afterwards, unless that device comes back, which merges the
    /// two. So this is for a device that is lost, and nothing does it unasked. Whether anything was overruled.
    ///
    /// # Errors
    /// [`Error::ReadOnly`], [`Error::Left`]; [`Error::NothingToPublish`] where this device holds no list at all, and would publish an empty
    /// one; those of the network where it cannot be told whether somebody has it, and of the local disk.
    pub async fn overrule(&self) -> Result<bool> {
        let own = self.inner.writer()?;
        if own.repo.unmerged().await?.is_none() {
            return Ok(false);
        }
        if own.repo.held_root().await?.is_none() {
            return Err(Error::NothingToPublish);
        }
        match timeout(ASK_AGAIN, self.sync_collection(own.repo.public_key())).await {
            Ok(Err(Error::NobodyHas { .. } | Error::MemberDoesNotAnswer)) => {}
            Ok(Err(error)) => return Err(error),
            Ok(Ok(())) if own.repo.unmerged().await?.is_none() => return Ok(false),
            Ok(Ok(())) | Err(_) => return Err(Error::Timeout { limit: ASK_AGAIN }),
        }
        own.repo.overrule().await?;
        self.inner.changed();
        Ok(true)
    }

    /// Waits until everything that was written before the call is published.
    ///
    /// # Errors
    /// [`Error::Timeout`]; [`Error::NotPublished`] as soon as it fails for a reason that does not pass by itself, such as a full disk.
    /// Either way nothing is lost, and publishing goes on by itself. [`Error::Closed`] once stopped.
    pub async fn flush(&self, limit: Duration) -> Result<()> {
        let target = *self.inner.changes.borrow();
        let mut publishing = self.inner.publishing.subscribe();
        let begun = publishing.borrow().begun;
        self.inner.dirty.notify_one();
        let ended =
            publishing.wait_for(|now| now.done >= target || now.failed_since(begun).is_some());
        let wait = async {
            let now = tokio::select! {
                now = ended => now.map_err(|_| Error::Closed)?,
                () = self.inner.cancel.cancelled() => return Err(Error::Closed),
            };
            match now.failed_since(begun) {
                Some(cause) if now.done < target => Err(Error::NotPublished(cause.clone())),
                _ => Ok(()),
            }
        };
        timeout(limit, wait)
            .await
            .map_err(|_| Error::Timeout { limit })?
    }
}

/// Publishes what changes, again and again until it is published.
pub(crate) async fn keep_published(group: &Group) {
    let inner = &group.inner;
    let mut pause = PAUSE;
    loop {
        if online(group).await.is_err() {
            return;
        }
        let target = *inner.changes.borrow();
        inner.publishing.send_modify(Publishing::begin);
        match publish(group).await {
            Ok(()) => {
                pause = PAUSE;
                inner.publishing.send_modify(|now| now.reached(target));
                if *inner.changes.borrow() == target {
                    inner.emit(GroupEvent::Published);
                    // Woken by a change, or looks again after a while.
                    let _ = timeout(ROUND, inner.dirty.notified()).await;
                }
            }
            // Until the group ends here, there is nothing to be published any more.
            Err(error @ Error::Left) => {
                inner.publishing.send_modify(|now| now.failed(error));
                let _ = timeout(ROUND, inner.dirty.notified()).await;
            }
            Err(error) => {
                tracing::debug!(%error, "publishing is tried again");
                inner.emit(GroupEvent::Retrying { what: "publishing" });
                if error.is_local() || !error.is_retryable() {
                    inner.publishing.send_modify(|now| now.failed(error));
                }
                let _ = timeout(pause, inner.dirty.notified()).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
}

async fn publish(group: &Group) -> Result<()> {
    let inner = &group.inner;
    let own = match inner.writer() {
        Err(Error::ReadOnly) => return Ok(()),
        own => own?,
    };
    let merged = merge(group, own).await;
    // Before anybody learns of a root, it is served.
    group.refresh_reach(&own.repo).await?;
    // What waits to be merged keeps this device's files back, and nothing else: until then, the record's root is the other device's.
    let edited = group.publish_records(own).await?;
    // Another device of this member may have been first.
    let merged = match merged {
        Ok(()) => merge(group, own).await,
        failed => failed,
    };
    advertise(group, own).await?;
    edited.map_or(Ok(()), Err)?;
    merged
}

/// Merges what this member's other devices published. Publishing without it would take those files out of the archive.
async fn merge(group: &Group, own: &Own) -> Result<()> {
    while own.repo.unmerged().await?.is_some() {
        group.sync_collection(own.repo.public_key()).await?;
    }
    Ok(())
}

/// Sees to it that this member stands in a slot, with their newest root.
async fn advertise(group: &Group, writer: &Own) -> Result<()> {
    let inner = &group.inner;
    let own = writer.repo.public_key().clone();
    for _ in 0..RACES {
        let mut me = writer.name().await;
        let root = writer.repo.record().root(Fetch::Cached).await?;
        let root = root.map(|root| SlotRoot {
            hash: root.value.hash,
            counter: root.counter,
            bytes: root.value.bytes,
            files: root.value.files,
        });
        group.take_up_slots(Fetch::Network).await?;
        if inner.has_left() {
            return Err(Error::Left);
        }
        let slots = inner.record.slots(Fetch::Cached).await?;
        let mut seen = BTreeMap::new();
        let mut mine = BTreeMap::new();
        for (index, slot) in slots {
            let content = match slot.map(|stamped| stamped.value) {
                Ok(SlotValue::Member(slot)) if slot.repo == own => {
                    mine.insert(index, slot);
                    Content::Own
                }
                Ok(SlotValue::Empty) => Content::Empty,
                Ok(SlotValue::Left(_)) => Content::Farewell,
                _ => Content::Other,
            };
            seen.insert(index, content);
        }
        let full = Error::GroupFull {
            slots: SLOTS as usize,
        };
        let index = slots::place(SlotIndex::start_of(&own), &seen).ok_or(full)?;
        let slot = mine.get(&index);
        if slot.is_some_and(|slot| slot.name.as_ref() != Some(&me)) {
            // Another device of this member may have given them a name that is not known here yet.
            me = match writer.repo.name(Fetch::Network).await {
                Ok(name) => name.unwrap_or(me),
                Err(error) if error.is_retryable() => return Err(error.into()),
                // What stands there is no name.
                Err(_) => me,
            };
        }
        let stands = slot.is_some_and(|slot| slot.root == root && slot.name.as_ref() == Some(&me));
        if stands {
            let index = index.get();
            if inner.record.unpublished().await?.contains(&index) {
                let published = inner.record.publish().await?;
                group.after_publishing(None, Some(&published)).await?;
                let published = published.or_failure()?;
                if published.overwritten().any(|lost| lost == index) {
                    continue;
                }
            }
            return Ok(());
        }
        let slot = inner
            .record
            .sign_slot(index, &writer.keys, root, Some(&me))
            .await?;
        inner
            .record
            .set_slot(index, &SlotValue::Member(slot))
            .await?;
        // The next turn of the loop sees whether the slot is ours.
        let published = inner.record.publish().await?;
        group.after_publishing(None, Some(&published)).await?;
        let _ = published.or_failure()?;
    }
    Err(Error::Timeout { limit: PAUSE })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_failed_after_the_call_counts() {
        let mut now = Publishing::default();
        now.begin();
        let before = now.begun;
        now.failed(Error::Unreadable);
        // The disk may have been full until then.
        assert!(now.failed_since(before).is_none());
        now.begin();
        assert!(now.failed_since(before).is_none());
        now.failed(Error::ReadOnly);
        let cause = now.failed_since(before).unwrap();
        assert!(matches!(**cause, Error::ReadOnly));
        now.begin();
        now.reached(7);
        assert!(now.failed_since(before).is_none());
        now.reached(3);
        assert_eq!(now.done, 7);
    }

    #[test]
    fn what_is_not_published_has_one_word() {
        for what in [
            Unpublished::Group,
            Unpublished::Member,
            Unpublished::Files,
            Unpublished::Merge,
            Unpublished::Slot,
            Unpublished::Tunnel,
        ] {
            assert_eq!(serde_json::to_value(what).unwrap(), what.as_str());
        }
    }
}
