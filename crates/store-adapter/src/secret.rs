//! The one secret of a store: the key of its index, and which epoch it is.

use std::sync::Arc;

use zeroize::Zeroizing;

use crate::{Error, Result, Secrets, seal::Key};

/// epoch (8, big-endian) and key (32).
const LEN: usize = 40;

#[derive(Debug)]
pub(crate) struct StoreSecret {
    secrets: Arc<Secrets>,
    name: String,
    epoch: u64,
    key: RedactedKey,
}

struct RedactedKey(Key);

impl std::fmt::Debug for RedactedKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[redacted]")
    }
}

impl StoreSecret {
    /// The secret that was saved last. `None` if there is none.
    pub(crate) async fn load(secrets: Arc<Secrets>, name: String) -> Result<Option<Self>> {
        let Some(bytes) = secrets.load(&name).await? else {
            return Ok(None);
        };
        let (epoch, key) = decode(&bytes)?;
        Ok(Some(Self {
            secrets,
            name,
            epoch,
            key: RedactedKey(key),
        }))
    }

    /// Saves the first secret of a store.
    pub(crate) async fn create(
        secrets: Arc<Secrets>,
        name: String,
        (epoch, key): (u64, Key),
    ) -> Result<Self> {
        secrets.save(&name, &encode(epoch, &key)).await?;
        Ok(Self {
            secrets,
            name,
            epoch,
            key: RedactedKey(key),
        })
    }

    pub(crate) fn current(&self) -> (u64, Key) {
        (self.epoch, self.key.0.clone())
    }

    /// Takes the place of the old secret, which is gone then.
    pub(crate) async fn replace(&mut self, epoch: u64, key: &Key) -> Result<()> {
        self.secrets.save(&self.name, &encode(epoch, key)).await?;
        self.epoch = epoch;
        self.key = RedactedKey(key.clone());
        Ok(())
    }

    /// Which epoch the next start will find.
    pub(crate) async fn stored_epoch(&self) -> Result<Option<u64>> {
        match self.secrets.load(&self.name).await? {
            Some(bytes) => decode(&bytes).map(|(epoch, _)| Some(epoch)),
            None => Ok(None),
        }
    }
}

fn encode(epoch: u64, key: &Key) -> Zeroizing<Vec<u8>> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(LEN));
    bytes.extend_from_slice(&epoch.to_be_bytes());
    bytes.extend_from_slice(&**key);
    bytes
}

fn decode(bytes: &[u8]) -> Result<(u64, Key)> {
    let bytes: &[u8; LEN] = bytes.try_into().map_err(|_| Error::KeyDamaged)?;
    let (epoch, key) = bytes.split_at(8);
    let epoch = epoch.try_into().map_err(|_| Error::KeyDamaged)?;
    let key: [u8; 32] = key.try_into().map_err(|_| Error::KeyDamaged)?;
    Ok((u64::from_be_bytes(epoch), Key::new(key)))
}
