//! The record of a repo: its metadata, the root of its collection, and the tunnels of its devices.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};
use veilid_core::{KeyPair, PublicKey, RecordKey};

use crate::access::GroupAccess;
use crate::bytes_in_json::{base64, hex, hex32};
use crate::error::{Error, Result};
use crate::record::{Fetch, Layout, Published, Record, Stamped, Watch, from_json};
use crate::records::Records;
use crate::value::Kind;

/// The subkeys that hold tunnels.
const TUNNELS: std::ops::RangeInclusive<u32> = 2..=31;

/// How many devices of one member can publish a tunnel at the same time.
pub const MAX_TUNNELS: usize = 30;

/// The metadata of a repo, in subkey 0. Unknown fields are ignored.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepoMetadata {
    /// The repo's name.
    pub name: String,
    /// Where the group moved to, for each member who is told.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub moved: Vec<MoveNotice>,
}

/// A group's new keys, sealed to one member.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveNotice {
    /// [Whom](Self::name_of) it is for.
    #[serde(with = "hex")]
    pub to: [u8; 8],
    /// The owner secret of the new group, sealed by Veilid's HPKE to the key of the member's repo.
    #[serde(with = "base64")]
    pub sealed: Vec<u8>,
}

impl MoveNotice {
    /// How a member is named in a notice: the first bytes of their repo's public key.
    #[must_use]
    pub fn name_of(repo: &PublicKey) -> [u8; 8] {
        let bytes: &[u8] = repo.ref_value();
        bytes.first_chunk().copied().unwrap_or_default()
    }
}

impl fmt::Debug for MoveNotice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MoveNotice([redacted])")
    }
}

/// The state of a repo's collection, in subkey 1. Its counter is that of [`Stamped`]. Unknown fields are ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootValue {
    /// The hash of the collection.
    #[serde(with = "hex32")]
    pub hash: [u8; 32],
    /// Bytes of all files.
    pub bytes: u64,
    /// Number of files.
    pub files: u64,
}

/// One device of a member.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DeviceId(#[serde(with = "hex")] pub [u8; 16]);

impl DeviceId {
    /// A new id, at random.
    ///
    /// # Errors
    /// [`Error::Randomness`].
    pub fn random() -> Result<Self> {
        let mut id = [0; 16];
        getrandom::fill(&mut id).map_err(|_| Error::Randomness)?;
        Ok(Self(id))
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Shortened, as ids in logs are.
        let [a, b, ..] = self.0;
        write!(f, "DeviceId({a:02x}{b:02x}…)")
    }
}

/// How a device can be reached, in subkeys 2 to 31. Unknown fields are ignored.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunnelValue {
    /// The blob of a private route, as Veilid imports it.
    #[serde(with = "base64")]
    pub route: Vec<u8>,
    /// The device that holds it.
    pub device: DeviceId,
    /// When it was published, in seconds since 1970.
    pub published_at: u64,
    /// What the device is, if it has no slot, as it says itself: whoever has a link of any kind can write into the guests' record. None
    /// where it says nothing, as members and earlier versions do, or a word that is not known here.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "known_role"
    )]
    pub role: Option<GuestRole>,
}

/// What somebody without a slot is in a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum GuestRole {
    /// Reads everything, and writes nothing.
    Reader,
    /// Stores, verifies and serves what it cannot read.
    Replica,
}

/// A role that only newer programs know does not make a tunnel unreadable.
fn known_role<'de, D: Deserializer<'de>>(json: D) -> Result<Option<GuestRole>, D::Error> {
    let role = serde_json::Value::deserialize(json)?;
    Ok(GuestRole::deserialize(role).ok())
}

impl fmt::Debug for TunnelValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TunnelValue")
            .field("device", &self.device)
            .field("published_at", &self.published_at)
            .field("role", &self.role)
            .finish_non_exhaustive()
    }
}

/// A tunnel, or why it cannot be read, with its subkey.
pub type TunnelEntry = (u32, Result<Stamped<TunnelValue>>);

/// A handle of a repo's record. Cheap to clone.
///
/// What is said of [`GroupRecord`](crate::GroupRecord) on working offline and on errors holds here too. Writing needs
/// the repo's own key pair; the values are sealed under the keys of the group.
#[derive(Clone)]
pub struct RepoRecord {
    record: Record,
}

impl RepoRecord {
    /// Makes the record of a new repo in the local store. Needs no network; making it twice does no harm.
    ///
    /// # Errors
    /// [`Error::Veilid`] if Veilid refuses.
    pub async fn create(records: &Records, repo: KeyPair, access: &GroupAccess) -> Result<Self> {
        let record = Record::create(records, Layout::Repo, access, repo).await?;
        Ok(Self { record })
    }

    /// A handle of a repo's record, writable with the key pair. Asks nobody: the record is opened when the network is
    /// first needed.
    ///
    /// # Errors
    /// [`Error::KeyMismatch`] if the key pair is not that of `public`; [`Error::Veilid`] if the public key is not one.
    pub async fn attach(
        records: &Records,
        access: &GroupAccess,
        public: PublicKey,
        secret: Option<KeyPair>,
    ) -> Result<Self> {
        let record = Record::attach(records, Layout::Repo, access, public, secret).await?;
        Ok(Self { record })
    }

    /// The repo's public key.
    pub fn public_key(&self) -> &PublicKey {
        self.record.owner()
    }

    /// The key of the record, bare: it follows from the public key.
    pub fn record_key(&self) -> &RecordKey {
        self.record.key()
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
    pub async fn metadata(&self, fetch: Fetch) -> Result<Option<Stamped<RepoMetadata>>> {
        self.record.read_json(0, fetch).await
    }

    /// Sets the metadata, to be published. Gives its counter.
    ///
    /// # Errors
    /// [`Error::ReadOnly`]; [`Error::NoContentKey`] for a replica; [`Error::TooLarge`]; those of the cache.
    pub async fn set_metadata(&self, metadata: &RepoMetadata) -> Result<u64> {
        self.record.write_json(0, metadata).await
    }

    /// Edits the metadata as they are known here, to be published. Gives whether that changed them. What another writer wrote and this handle
    /// reads meanwhile is not lost; metadata that cannot be read as such count as empty.
    ///
    /// # Errors
    /// [`Error::ReadOnly`]; [`Error::NoContentKey`] for a replica; [`Error::TooLarge`]; those of the value and of the cache.
    pub async fn edit_metadata(&self, edit: impl FnOnce(&mut RepoMetadata)) -> Result<bool> {
        self.record.edit_json(0, edit).await
    }

    /// The root of the collection; `None` before the first file.
    ///
    /// # Errors
    /// Those of the value; with [`Fetch::Network`] those of the network.
    pub async fn root(&self, fetch: Fetch) -> Result<Option<Stamped<RootValue>>> {
        self.record.read_json(1, fetch).await
    }

    /// Sets the root, to be published. Gives its counter. Where another device of the same member published a root
    /// meanwhile, `publish` says so, and the root that stands has to be merged and set again.
    ///
    /// # Errors
    /// [`Error::ReadOnly`]; those of the cache.
    pub async fn set_root(&self, root: &RootValue) -> Result<u64> {
        self.record.write_json(1, root).await
    }

    /// The tunnels of the member's devices, by subkey. One that does not open is an error in its place and does not
    /// stop the others.
    ///
    /// # Errors
    /// Those of the cache; with [`Fetch::Network`] those of the network.
    pub async fn tunnels(&self, fetch: Fetch) -> Result<Vec<TunnelEntry>> {
        let failed = match fetch {
            Fetch::Cached => Vec::new(),
            Fetch::Network => self.record.refresh(TUNNELS).await?,
        };
        let mut tunnels = Vec::new();
        for subkey in self.record.known().await? {
            if !TUNNELS.contains(&subkey) || failed.iter().any(|(failed, _)| *failed == subkey) {
                continue;
            }
            match self.record.cached(subkey).await {
                Ok(None) => {}
                Ok(Some(opened)) if opened.payload.is_empty() => {}
                Ok(Some(opened)) => tunnels.push((subkey, from_json(&opened, Kind::Tunnel))),
                Err(error) => tunnels.push((subkey, Err(error))),
            }
        }
        tunnels.extend(
            failed
                .into_iter()
                .map(|(subkey, error)| (subkey, Err(error))),
        );
        tunnels.sort_by_key(|(subkey, _)| *subkey);
        Ok(tunnels)
    }

    /// Sets a device's tunnel, to be published. Gives its subkey: the one that the device has, else a free one, else
    /// the oldest. Goes by what is known here; read the tunnels from the network before, and if `publish` says that
    /// another device took the subkey first, call this again.
    ///
    /// # Errors
    /// [`Error::ReadOnly`]; [`Error::TooLarge`]; those of the cache.
    pub async fn set_tunnel(&self, tunnel: &TunnelValue) -> Result<u32> {
        let known = self.tunnels(Fetch::Cached).await?;
        let subkey = pick_subkey(&known, tunnel.device);
        self.record.write_json(subkey, tunnel).await?;
        Ok(subkey)
    }

    /// Clears a device's tunnels, to be published. Gives how many there were.
    ///
    /// # Errors
    /// [`Error::ReadOnly`]; those of the cache.
    pub async fn clear_tunnel(&self, device: DeviceId) -> Result<usize> {
        let mut cleared = 0;
        for (subkey, tunnel) in self.tunnels(Fetch::Cached).await? {
            if tunnel.is_ok_and(|tunnel| tunnel.value.device == device) {
                self.record.write(subkey, &[]).await?;
                cleared += 1;
            }
        }
        Ok(cleared)
    }

    /// Publishes what is not published; see [`GroupRecord::publish`](crate::GroupRecord::publish).
    ///
    /// # Errors
    /// [`Error::ReadOnly`]; [`Error::Offline`]; others if nothing could be tried at all.
    pub async fn publish(&self) -> Result<Published> {
        self.record.publish().await
    }

    /// Sees to it that the network still has what is known here, as storage nodes forget what nobody asks for. Whoever can write
    /// sends anew what is missing there or older. And Veilid, which keeps signed values, spreads them again to as many nodes as
    /// they belong on, which needs no key; it does so at most every five minutes. Gives how many subkeys were missing or older.
    ///
    /// Watches of the record are registered anew.
    ///
    /// # Errors
    /// [`Error::NotConfirmed`](crate::Error::NotConfirmed) if not all is back: what this device wrote stays queued for
    /// [`publish`](Self::publish); what others wrote may take longer than 30 s, as when Veilid looked after the record less than five
    /// minutes ago, and is left to other devices where the record was made since this node was started. Those of the network.
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

    /// Closes the record for all its handles and ends their watches; see
    /// [`GroupRecord::close`](crate::GroupRecord::close).
    pub async fn close(&self) {
        self.record.core.close().await;
    }

    /// Closes the record and forgets what is stored of it here; see [`GroupRecord::forget`](crate::GroupRecord::forget).
    ///
    /// # Errors
    /// [`Error::Veilid`]; those of the cache.
    pub async fn forget(&self) -> Result<()> {
        self.record.forget().await
    }
}

impl fmt::Debug for RepoRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RepoRecord")
            .field("writable", &self.writable())
            .finish_non_exhaustive()
    }
}

/// The subkey for a device's tunnel.
fn pick_subkey(known: &[TunnelEntry], device: DeviceId) -> u32 {
    let readable = || {
        known
            .iter()
            .filter_map(|(subkey, entry)| Some((*subkey, &entry.as_ref().ok()?.value)))
    };
    if let Some((own, _)) = readable().find(|(_, tunnel)| tunnel.device == device) {
        return own;
    }
    // Devices begin at different subkeys, so that two that start at once seldom meet.
    let first = device
        .0
        .iter()
        .fold(0u32, |sum, byte| sum + u32::from(*byte));
    let free = (0..30)
        .map(|step| 2 + (first + step) % 30)
        .find(|subkey| known.iter().all(|(taken, _)| taken != subkey));
    if let Some(free) = free {
        return free;
    }
    // What cannot be read can be reached by nobody: it goes first, then the oldest.
    let unreadable = known
        .iter()
        .find(|(_, entry)| entry.is_err())
        .map(|(subkey, _)| *subkey);
    let oldest = || {
        readable()
            .min_by_key(|(_, tunnel)| tunnel.published_at)
            .map(|(subkey, _)| subkey)
    };
    unreadable.or_else(oldest).unwrap_or(*TUNNELS.start())
}

#[cfg(test)]
mod tests;
