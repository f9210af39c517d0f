//! What the device remembers: who it is, and the groups that it is in, sealed row by row in Veilid's table store.

use dht_records::{DeviceId, GroupAccess};
use group::GroupSecrets;
use serde::{Deserialize, Serialize};
use veilid_core::{KeyPair, PublicKey, TableDB, VeilidAPI};
use zeroize::{Zeroize, Zeroizing};

use crate::{Error, Result, keys::StateKey};

const TABLE: &str = "save_dweb_state_v1";
const COLUMN: u32 = 0;
const DEVICE: &[u8] = b"device";
const GROUP: &[u8] = b"group/";

/// The table of what this device remembers.
pub(crate) struct State {
    table: TableDB,
    key: StateKey,
}

/// The keys of a group, as they are sealed.
#[derive(Serialize, Deserialize)]
struct StoredGroup {
    version: u32,
    /// The owner's key pair in Veilid's text form.
    owner: String,
    /// The own repo's key pair in Veilid's text form.
    repo: String,
    me: String,
}

impl Drop for StoredGroup {
    fn drop(&mut self) {
        self.owner.zeroize();
        self.repo.zeroize();
    }
}

impl State {
    pub(crate) async fn open(api: &VeilidAPI) -> Result<Self> {
        let table = api.open_table_db(TABLE, 1).await?;
        let empty = table.get_key_count(COLUMN).await? == 0;
        let key = StateKey::load(api, empty).await?;
        Ok(Self { table, key })
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
    pub(crate) async fn save_group(&self, secrets: &GroupSecrets) -> Result<()> {
        let owner = secrets.access.owner().ok_or(Error::StateDamaged {
            what: "a group without its owner key",
        })?;
        let stored = StoredGroup {
            version: 1,
            owner: owner.to_string(),
            repo: secrets.repo.to_string(),
            me: secrets.me.clone(),
        };
        let json =
            Zeroizing::new(
                serde_json::to_vec(&stored).map_err(|_| Error::StateDamaged {
                    what: "a group's keys",
                })?,
            );
        self.store(&row(&secrets.access.public_key()), &json).await
    }

    /// All groups that are remembered, by their keys; one whose row does not open does not stop the others.
    pub(crate) async fn groups(&self) -> Result<Vec<(String, Result<GroupSecrets>)>> {
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
        Ok(())
    }
}

fn row(group: &PublicKey) -> Vec<u8> {
    [GROUP, group.to_string().as_bytes()].concat()
}

fn decode(json: &[u8]) -> Result<GroupSecrets> {
    let damaged = || Error::StateDamaged {
        what: "a group's keys",
    };
    let stored: StoredGroup = serde_json::from_slice(json).map_err(|_| damaged())?;
    if stored.version != 1 {
        return Err(Error::StateDamaged {
            what: "a group's keys of an unknown version",
        });
    }
    let pair = |text: &str| text.parse::<KeyPair>().map_err(|_| damaged());
    Ok(GroupSecrets {
        access: GroupAccess::Member {
            owner: pair(&stored.owner)?,
        },
        repo: pair(&stored.repo)?,
        me: stored.me.clone(),
    })
}
