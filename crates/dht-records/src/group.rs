//! The record of a group: its metadata and its members' slots.

use std::collections::{HashMap, HashSet};
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use veilid_core::{KeyPair, PublicKey, RecordKey};

use crate::access::GroupAccess;
use crate::contexts::Purpose;
use crate::error::Result;
use crate::record::{Changed, Fetch, Layout, Published, Record, Stamped, Watch, first_failure};
use crate::records::Records;
use crate::slot::{Leave, SLOTS, Slot, SlotContext, SlotIndex, SlotRoot, SlotValue};
use crate::value::ValueKey;

#[cfg(doc)]
use crate::error::Error;

/// Above so many changed subkeys an inspection costs less than reading each: of many notices that come at once some are old news.
const CHANGED: usize = 64;

/// The metadata of a group, in subkey 0. Unknown fields are ignored.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupMetadata {
    /// The group's name.
    pub name: String,
    /// The repo key of the member who says that the group moved to new keys; the notices are in their
    /// [`RepoMetadata`](crate::RepoMetadata).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moved_by: Option<PublicKey>,
}

/// A handle of a group's record. Cheap to clone.
///
/// Reads with [`Fetch::Cached`] and all writes work offline: a write is durable in the cache when it returns, and
/// [`GroupRecord::publish`] sends it. Reads with [`Fetch::Network`] fail with [`Error::Offline`] while nobody answers
/// and with [`Error::RecordNotFound`] where nobody knows the record, or with [`Error::Timeout`].
#[derive(Clone)]
pub struct GroupRecord {
    record: Record,
    access: GroupAccess,
    names: Option<ValueKey>,
    verified: Arc<Mutex<Verified>>,
}

/// The slots that were opened last, each with the hash of its sealed value. In a large group only those that changed have to be
/// opened and verified again.
type Verified = HashMap<SlotIndex, (blake3::Hash, Stamped<SlotValue>)>;

impl GroupRecord {
    /// Makes the record of a new group in the local store. Needs no network; making it twice does no harm.
    ///
    /// # Errors
    /// [`Error::Veilid`] if Veilid refuses.
    pub async fn create(records: &Records, owner: KeyPair) -> Result<Self> {
        let access = GroupAccess::Member {
            owner: owner.clone(),
        };
        let record = Record::create(records, Layout::Group, &access, owner).await?;
        Ok(Self::new(record, access))
    }

    /// A handle of a group's record. Asks nobody: the record is opened when the network is first needed.
    ///
    /// # Errors
    /// [`Error::Veilid`] if the public key is not one.
    pub async fn attach(records: &Records, access: GroupAccess) -> Result<Self> {
        let public = access.public_key();
        let record = Record::attach(
            records,
            Layout::Group,
            &access,
            public,
            access.owner().cloned(),
        )
        .await?;
        Ok(Self::new(record, access))
    }

    fn new(record: Record, access: GroupAccess) -> Self {
        let names = access
            .content()
            .map(|key| ValueKey::new(key.derive(Purpose::SlotName)));
        Self {
            record,
            access,
            names,
            verified: Arc::default(),
        }
    }

    /// The group's public key.
    pub fn public_key(&self) -> &PublicKey {
        self.record.owner()
    }

    /// The key of the record, bare: it follows from the public key.
    pub fn record_key(&self) -> &RecordKey {
        self.record.key()
    }

    /// The keys of the group that this handle has.
    #[must_use]
    pub fn access(&self) -> &GroupAccess {
        &self.access
    }

    /// Whether this handle can write.
    #[must_use]
    pub fn writable(&self) -> bool {
        self.record.writable()
    }

    /// The metadata; `None` if there is none yet.
    ///
    /// # Errors
    /// [`Error::NoContentKey`] for a replica; those of the value; with [`Fetch::Network`] those of the network.
    pub async fn metadata(&self, fetch: Fetch) -> Result<Option<Stamped<GroupMetadata>>> {
        self.record.read_json(0, fetch).await
    }

    /// Sets the metadata, to be published. Gives its counter.
    ///
    /// # Errors
    /// [`Error::ReadOnly`]; [`Error::TooLarge`]; those of the cache.
    pub async fn set_metadata(&self, metadata: &GroupMetadata) -> Result<u64> {
        self.record.write_json(0, metadata).await
    }

    /// Edits the metadata as they are known here, to be published. Gives whether that changed them. What another writer wrote and this handle
    /// reads meanwhile is not lost; metadata that cannot be read as such count as empty.
    ///
    /// # Errors
    /// [`Error::ReadOnly`]; [`Error::TooLarge`]; those of the value and of the cache.
    pub async fn edit_metadata(&self, edit: impl FnOnce(&mut GroupMetadata)) -> Result<bool> {
        self.record.edit_json(0, edit).await
    }

    /// One slot; `None` if nobody ever wrote it.
    ///
    /// # Errors
    /// [`Error::BadSignature`]; those of the value; with [`Fetch::Network`] those of the network.
    pub async fn slot(&self, index: SlotIndex, fetch: Fetch) -> Result<Option<Stamped<SlotValue>>> {
        if fetch == Fetch::Network {
            let subkey = index.get();
            first_failure(self.record.refresh(subkey..=subkey).await?)?;
        }
        self.known_slot(index).await
    }

    /// All slots that anybody ever wrote, in ascending order. One that does not open or verify is an error in its place
    /// and does not stop the others.
    ///
    /// With [`Fetch::Network`]: one inspection of the record, then the slots that changed, and the metadata if they did, 16 at a time.
    ///
    /// # Errors
    /// Those of the cache; with [`Fetch::Network`] those of the network.
    pub async fn slots(
        &self,
        fetch: Fetch,
    ) -> Result<Vec<(SlotIndex, Result<Stamped<SlotValue>>)>> {
        let mut failed = match fetch {
            Fetch::Cached => Vec::new(),
            Fetch::Network => self.record.refresh(self.readable()).await?,
        };
        failed.retain(|(subkey, _)| *subkey > 0);
        let mut slots = Vec::new();
        let useless: HashSet<u32> = failed.iter().map(|(subkey, _)| *subkey).collect();
        for subkey in self.record.known().await? {
            let Ok(index) = SlotIndex::new(subkey) else {
                continue;
            };
            if useless.contains(&subkey) {
                continue;
            }
            if let Some(slot) = self.known_slot(index).await.transpose() {
                slots.push((index, slot));
            }
        }
        for (subkey, error) in failed {
            slots.push((SlotIndex::new(subkey)?, Err(error)));
        }
        slots.sort_by_key(|(index, _)| *index);
        Ok(slots)
    }

    // The metadata come along where they can be read: a new name costs no inspection of its own.
    fn readable(&self) -> RangeInclusive<u32> {
        u32::from(self.names.is_none())..=SLOTS
    }

    /// Reads what a watch announced, without an inspection, so that [`Fetch::Cached`] gives it. Gives whether each of it was newer than what was
    /// here; if not, [`slots`](Self::slots) with [`Fetch::Network`] tells what there is.
    ///
    /// # Errors
    /// Those of the cache.
    pub async fn read_changed(&self, changed: &Changed) -> Result<bool> {
        let readable = self.readable();
        let subkeys = changed.subkeys.iter().copied();
        let subkeys: Vec<u32> = subkeys.filter(|subkey| readable.contains(subkey)).collect();
        if subkeys.len() > CHANGED {
            return Ok(false);
        }
        self.record.refresh_these(&subkeys).await
    }

    /// Signs a member's slot for one index of this group, with their name sealed under the content key.
    ///
    /// # Errors
    /// [`Error::TooLarge`] for a name above [`MAX_NAME`](crate::MAX_NAME) bytes; [`Error::NoContentKey`] for a name on a
    /// replica.
    pub async fn sign_slot(
        &self,
        index: SlotIndex,
        repo: &KeyPair,
        root: Option<SlotRoot>,
        name: Option<&str>,
    ) -> Result<Slot> {
        self.slot_context().sign(index, repo, root, name).await
    }

    /// Signs a member's leave for one index of this group.
    ///
    /// # Errors
    /// [`Error::Veilid`] if Veilid does not sign with this key.
    pub async fn sign_leave(&self, index: SlotIndex, repo: &KeyPair) -> Result<Leave> {
        self.slot_context().sign_leave(index, repo).await
    }

    /// Sets a slot, to be published. Gives its counter. Whether another writer had it first, `publish` tells.
    ///
    /// # Errors
    /// [`Error::ReadOnly`]; [`Error::SlotIndexMismatch`]; [`Error::BadSignature`] for a slot of another group; those of
    /// the cache.
    pub async fn set_slot(&self, index: SlotIndex, value: &SlotValue) -> Result<u64> {
        let payload = self.slot_context().write_payload(index, value).await?;
        self.record.write(index.get(), &payload).await
    }

    /// Clears a slot, to be published: an empty value under the next counter, because a DHT cannot unset.
    ///
    /// # Errors
    /// [`Error::ReadOnly`]; those of the cache.
    pub async fn clear_slot(&self, index: SlotIndex) -> Result<u64> {
        self.record.write(index.get(), &[]).await
    }

    /// Gives up a slot that is not published, such as one where a newer program's value stands, which `publish` refuses
    /// to replace. The slot is not known here until it is read from the network again.
    ///
    /// # Errors
    /// Those of the cache.
    pub async fn discard_slot(&self, index: SlotIndex) -> Result<()> {
        self.record.discard(index.get()).await
    }

    /// Publishes what is not published: each value is sent, flushed, and read back from other nodes. See [`Published`]
    /// for what can become of a value.
    ///
    /// # Errors
    /// [`Error::ReadOnly`]; [`Error::Offline`]; others if nothing could be tried at all.
    pub async fn publish(&self) -> Result<Published> {
        self.record.publish().await
    }

    /// Sees to it that the network still has what is known here; see [`RepoRecord::republish`](crate::RepoRecord::republish).
    ///
    /// # Errors
    /// The same.
    pub async fn republish(&self) -> Result<usize> {
        self.record.republish().await
    }

    /// The subkeys that are not published.
    ///
    /// # Errors
    /// Those of the cache.
    pub async fn unpublished(&self) -> Result<Vec<u32>> {
        self.record.unpublished().await
    }

    /// Watches the record. Works offline too; it begins when the network is there.
    ///
    /// # Errors
    /// None at present.
    pub async fn watch(&self) -> Result<Watch> {
        Watch::new(self.record.clone()).await
    }

    /// Closes the record for all its handles and ends their watches. The next call that needs the network opens it
    /// again, which also makes Veilid look whether the network still has it.
    pub async fn close(&self) {
        self.record.core.close().await;
    }

    /// Closes the record, takes it out of the local store, and forgets what was remembered of it. Not its copies on the
    /// network, which fade when nobody opens it any more.
    ///
    /// # Errors
    /// [`Error::Veilid`]; those of the cache.
    pub async fn forget(&self) -> Result<()> {
        self.verified().clear();
        self.record.forget().await
    }

    fn slot_context(&self) -> SlotContext<'_> {
        SlotContext {
            api: self.record.api(),
            group: self.record.owner(),
            record: &self.record.core.opaque,
            names: self.names.as_ref(),
        }
    }

    fn verified(&self) -> MutexGuard<'_, Verified> {
        // A map that no panic leaves half changed.
        self.verified.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known here of a slot.
    async fn known_slot(&self, index: SlotIndex) -> Result<Option<Stamped<SlotValue>>> {
        let Some(sealed) = self.record.sealed(index.get()).await? else {
            return Ok(None);
        };
        let hash = blake3::hash(&sealed);
        if let Some((known, slot)) = self.verified().get(&index)
            && *known == hash
        {
            return Ok(Some(slot.clone()));
        }
        let opened = self.record.unseal(index.get(), &sealed)?;
        let payload = &opened.payload;
        let slot = Stamped {
            counter: opened.counter,
            value: self.slot_context().read_payload(index, payload).await?,
        };
        self.verified().insert(index, (hash, slot.clone()));
        Ok(Some(slot))
    }
}

impl std::fmt::Debug for GroupRecord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GroupRecord")
            .field("access", &self.access)
            .finish_non_exhaustive()
    }
}
