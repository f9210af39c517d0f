//! What the device remembers: who it is, and the groups that it is in, sealed row by row in Veilid's table store.

use std::path::Path;

use data_encoding::HEXLOWER;
use dht_records::{DeviceId, GroupAccess, GroupSecret, LocatorKey};
use group::{GroupSecrets, OwnSecrets};
use serde::{Deserialize, Serialize};
use store_adapter::{Protection, Secrets};
use veilid_core::{KeyPair, PublicKey, TableDB, VeilidAPI};
use zeroize::{Zeroize, Zeroizing};

use crate::{
    Error, Result,
    keys::{self, StateKey},
};

const TABLE: &str = "save_dweb_state_v1";
const COLUMN: u32 = 0;
const DEVICE: &[u8] = b"device";
const GROUP: &[u8] = b"group/";
/// The version of a group's row.
const VERSION: u32 = 2;

/// The table of what this device remembers.
pub(crate) struct State {
    table: TableDB,
    key: StateKey,
    secrets: Secrets,
    /// Whether a change of protection was cut off when only this key's next record was there.
    cut_off: bool,
    /// Whether it is not known which protection counts. The next start finds out.
    uncertain: bool,
}

/// A change of protection that has begun.
pub(crate) struct Rekey {
    key: StateKey,
    /// How the keys were guarded before.
    pub(crate) old: Protection,
}

/// The keys of a group, as they are sealed. Version 1 knew members only.
#[derive(Serialize, Deserialize)]
struct StoredGroup {
    version: u32,
    /// The owner's key pair in Veilid's text form, which members have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    owner: Option<String>,
    /// The group's public key, and the secret in hex, which readers have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reader: Option<(String, String)>,
    /// The group's public key, and the locator key in hex, which replicas have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    replica: Option<(String, String)>,
    /// The own repo's key pair in Veilid's text form.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    repo: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    me: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ending: Option<Ending>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    announcing: Option<Announcing>,
}

/// A move to this group that the members of another one are still to be told of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Announcing {
    /// The public key of the group that moves.
    pub(crate) of: String,
    /// The repo keys of the members who are to be told.
    pub(crate) stay: Vec<PublicKey>,
}

/// How a group comes to its end on this device. Remembered until it has, over restarts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Ending {
    /// The others are told first.
    Leave,
    /// Nobody is told.
    Forget,
}

/// A group that is remembered, and what is still to be done about it.
#[derive(Debug)]
pub(crate) struct Remembered {
    pub(crate) secrets: GroupSecrets,
    pub(crate) ending: Option<Ending>,
    pub(crate) announcing: Option<Announcing>,
}

impl From<GroupSecrets> for Remembered {
    fn from(secrets: GroupSecrets) -> Self {
        Self {
            secrets,
            ending: None,
            announcing: None,
        }
    }
}

impl Drop for StoredGroup {
    fn drop(&mut self) {
        self.owner.zeroize();
        self.repo.zeroize();
        for (_, secret) in [&mut self.reader, &mut self.replica].into_iter().flatten() {
            secret.zeroize();
        }
    }
}

impl State {
    /// Opens the state; makes its key if nothing was ever sealed.
    pub(crate) async fn open(
        api: &VeilidAPI,
        directory: &Path,
        protection: Protection,
    ) -> Result<Self> {
        let table = store_adapter::open_table(api, directory, TABLE, 1).await?;
        let empty = table.get_key_count(COLUMN).await? == 0;
        let secrets = Secrets::new(api, protection);
        let (key, cut_off) = match keys::load(&secrets).await? {
            (Some(key), cut_off) => (key, cut_off),
            (None, _) if empty => {
                let key = StateKey::new()?;
                secrets.save(keys::NAME, &key.to_bytes()).await?;
                (key, false)
            }
            (None, _) => return Err(Error::KeyLost),
        };
        Ok(Self {
            table,
            key,
            secrets,
            cut_off,
            uncertain: false,
        })
    }

    /// First half of changing the protection: puts a new key where [`open`](Self::open) finds it with the new protection, while the old
    /// one still opens everything. An earlier change that could not be completed is completed first, since its key would be lost
    /// otherwise. If this fails, the protection stays as it is.
    ///
    /// Between the halves the rest of the device is changed, at once or not at all. Then whichever protection opens that
    /// opens this, too.
    pub(crate) async fn begin_rekey(&mut self, protection: Protection) -> Result<Rekey> {
        self.settle().await?;
        let key = self.key.successor()?;
        let old = self.secrets.set_protection(protection).await;
        match self.secrets.save(keys::NEXT, &key.to_bytes()).await {
            Ok(()) => Ok(Rekey { key, old }),
            Err(error) => {
                self.cancel_rekey(old).await;
                Err(error.into())
            }
        }
    }

    /// Instead of the second half.
    pub(crate) async fn cancel_rekey(&mut self, old: Protection) {
        self.secrets.set_protection(old).await;
        if let Err(error) = self.secrets.remove(keys::NEXT).await {
            // It is of no use to anybody, and the next start removes it.
            tracing::warn!(%error, "a key that was not put to use is still there");
        }
    }

    /// Instead of either, where it is not known what became of the rest of the device: both keys stay.
    pub(crate) async fn leave_rekey(&mut self, old: Protection) {
        self.secrets.set_protection(old).await;
        self.uncertain = true;
    }

    /// Second half: from now on only the new protection opens the state.
    pub(crate) async fn finish_rekey(&mut self, rekey: Rekey) -> Result<()> {
        self.key = rekey.key;
        self.cut_off = true;
        self.settle().await
    }

    /// Brings to its end a change of protection, this one or one that was cut off. To be called when all the rest of the device
    /// is open, so that it is sure which protection counts.
    pub(crate) async fn settle(&mut self) -> Result<()> {
        if self.uncertain {
            return Err(store_adapter::Error::KeyUncertain.into());
        }
        if self.cut_off {
            self.secrets.save(keys::NAME, &self.key.to_bytes()).await?;
            self.cut_off = false;
        }
        if self.key.has_previous() {
            self.seal_anew().await?;
            let mut key = StateKey::from_bytes(&self.key.to_bytes())?;
            key.forget_previous();
            self.secrets.save(keys::NAME, &key.to_bytes()).await?;
            self.key = key;
        }
        Ok(self.secrets.remove(keys::NEXT).await?)
    }

    /// Takes the key away. What is sealed stays sealed for good.
    pub(crate) async fn remove_key(&self) -> Result<()> {
        self.secrets.remove(keys::NAME).await?;
        Ok(self.secrets.remove(keys::NEXT).await?)
    }

    async fn seal_anew(&self) -> Result<()> {
        let transaction = self.table.transact();
        let sealed = async {
            for row in self.table.get_keys(COLUMN).await? {
                let plain = match self.load(&row).await {
                    Ok(Some(plain)) => plain,
                    Ok(None) => continue,
                    // It does not open with any key, and stays what it is.
                    Err(Error::StateDamaged { .. }) => continue,
                    Err(error) => return Err(error),
                };
                let sealed = self.key.seal(&row, &plain)?;
                transaction.store(COLUMN, row, sealed.into()).await?;
            }
            Ok(())
        };
        if let Err(error) = sealed.await {
            transaction.rollback();
            return Err(error);
        }
        transaction.commit().await?;
        // The new rows have to last before the old key goes.
        Ok(self.table.cleanup().await?)
    }

    /// The id of this device; chosen at random the first time.
    pub(crate) async fn device(&self) -> Result<DeviceId> {
        if let Some(bytes) = self.load(DEVICE).await? {
            let bytes = bytes
                .as_slice()
                .try_into()
                .map_err(|_| Error::StateDamaged {
                    what: "the device id",
                })?;
            return Ok(DeviceId(bytes));
        }
        let device = DeviceId::random()?;
        self.store(DEVICE, &device.0).await?;
        Ok(device)
    }

    /// Remembers a group.
    pub(crate) async fn save_group(&self, group: &Remembered) -> Result<()> {
        let Remembered {
            secrets,
            ending,
            announcing,
        } = group;
        let access = &secrets.access;
        let mut stored = StoredGroup {
            version: VERSION,
            owner: None,
            reader: None,
            replica: None,
            repo: secrets.own.as_ref().map(|own| own.repo.to_string()),
            me: secrets.own.as_ref().map(|own| own.me.clone()),
            ending: *ending,
            announcing: announcing.clone(),
        };
        match access {
            GroupAccess::Member { owner } => stored.owner = Some(owner.to_string()),
            GroupAccess::Reader { public, secret } => {
                let secret = HEXLOWER.encode(secret.as_bytes());
                stored.reader = Some((public.to_string(), secret));
            }
            GroupAccess::Replica { public, locator } => {
                let locator = HEXLOWER.encode(locator.as_bytes());
                stored.replica = Some((public.to_string(), locator));
            }
        }
        let json =
            Zeroizing::new(
                serde_json::to_vec(&stored).map_err(|_| Error::StateDamaged {
                    what: "a group's keys",
                })?,
            );
        self.store(&row(&access.public_key()), &json).await
    }

    /// Forgets a group for good.
    pub(crate) async fn remove_group(&self, group: &PublicKey) -> Result<()> {
        self.table.delete(COLUMN, row(group).into()).await?;
        Ok(self.table.cleanup().await?)
    }

    /// What is remembered of a group.
    pub(crate) async fn remembered(&self, group: &PublicKey) -> Result<Remembered> {
        let json = self.load(&row(group)).await?;
        decode(&json.ok_or(Error::GroupNotFound)?)
    }

    /// All groups that are remembered, by their keys; one whose row does not open does not stop the others.
    pub(crate) async fn groups(&self) -> Result<Vec<(String, Result<Remembered>)>> {
        let mut groups = Vec::new();
        for key in self.table.get_keys(COLUMN).await? {
            let Some(id) = key.strip_prefix(GROUP) else {
                continue;
            };
            let id = String::from_utf8_lossy(id).into_owned();
            let secrets = match self.load(&key).await {
                Ok(Some(json)) => decode(&json),
                Ok(None) => Err(Error::StateDamaged {
                    what: "a group's row",
                }),
                Err(error) => Err(error),
            };
            groups.push((id, secrets));
        }
        Ok(groups)
    }

    async fn load(&self, row: &[u8]) -> Result<Option<Zeroizing<Vec<u8>>>> {
        let sealed = self
            .table
            .load(COLUMN, bytes::Bytes::copy_from_slice(row))
            .await?;
        sealed.map(|sealed| self.key.open(row, &sealed)).transpose()
    }

    async fn store(&self, row: &[u8], plain: &[u8]) -> Result<()> {
        let sealed = self.key.seal(row, plain)?;
        self.table
            .store(COLUMN, bytes::Bytes::copy_from_slice(row), sealed.into())
            .await?;
        // Without this, a power cut in the next moments would take a group's keys. But the row is there by now, and whoever were told that it
        // is not would do once more what it stands for.
        if self.table.cleanup().await.is_err() {
            tracing::warn!(
                "a group's keys are stored, and may not outlast a power cut in the next moments"
            );
        }
        Ok(())
    }
}

fn row(group: &PublicKey) -> Vec<u8> {
    [GROUP, group.to_string().as_bytes()].concat()
}

fn decode(json: &[u8]) -> Result<Remembered> {
    let damaged = || Error::StateDamaged {
        what: "a group's keys",
    };
    let stored: StoredGroup = serde_json::from_slice(json).map_err(|_| damaged())?;
    if !(1..=VERSION).contains(&stored.version) {
        return Err(Error::StateDamaged {
            what: "a group's keys of an unknown version",
        });
    }
    let pair = |text: &str| text.parse::<KeyPair>().map_err(|_| damaged());
    let secret = |text: &str| -> Result<[u8; 32]> {
        let bytes = Zeroizing::new(HEXLOWER.decode(text.as_bytes()).map_err(|_| damaged())?);
        bytes.as_slice().try_into().map_err(|_| damaged())
    };
    let access = match (&stored.owner, &stored.reader, &stored.replica) {
        (Some(owner), None, None) => GroupAccess::Member {
            owner: pair(owner)?,
        },
        (None, Some((public, text)), None) => GroupAccess::Reader {
            public: public.parse().map_err(|_| damaged())?,
            secret: GroupSecret::from_bytes(secret(text)?),
        },
        (None, None, Some((public, text))) => GroupAccess::Replica {
            public: public.parse().map_err(|_| damaged())?,
            locator: LocatorKey::from_bytes(secret(text)?),
        },
        _ => return Err(damaged()),
    };
    let own = match (&stored.repo, &stored.me) {
        (Some(repo), Some(me)) => Some(OwnSecrets {
            repo: pair(repo)?,
            me: me.clone(),
        }),
        (None, None) => None,
        _ => return Err(damaged()),
    };
    if own.is_some() != access.owner().is_some() {
        return Err(damaged());
    }
    Ok(Remembered {
        secrets: GroupSecrets { access, own },
        ending: stored.ending,
        announcing: stored.announcing.clone(),
    })
}

#[cfg(test)]
mod tests;
