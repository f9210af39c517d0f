//! What a device remembers of its groups beside the files: which blobs it obtained in which group, and what it still wants.
//!
//! One table of Veilid's table store for all groups. A row's name is a keyed hash and its value is sealed, both under keys that follow
//! from the group's own; so the disk shows how many rows there are, and nothing else. A crash loses no row whose writing has returned.

use std::{
    collections::BTreeMap,
    fmt, io,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use chacha20poly1305::{
    KeyInit, XChaCha20Poly1305, XNonce,
    aead::{Aead, Payload},
};
use dht_records::{GroupAccess, Purpose};
use veilid_core::{TableDB, VeilidAPI};
use zeroize::Zeroizing;

use crate::{Error, Result};

const TABLE: &str = "save_dweb_groups_v1";
const COLUMN: u32 = 0;
const VERSION: u8 = 1;
const NONCE: usize = 24;
/// A group's rows begin with so many bytes of a hash.
const GROUP: usize = 8;
const NAME: usize = 16;

/// Rows of all groups of a device. Cheap to clone. Close it before the node shuts down.
#[derive(Clone)]
pub struct Ledger {
    rows: Arc<Mutex<Option<Rows>>>,
}

#[derive(Clone)]
enum Rows {
    Table(TableDB),
    Memory(Arc<Mutex<BTreeMap<Vec<u8>, Vec<u8>>>>),
}

impl fmt::Debug for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ledger")
    }
}

impl Ledger {
    /// Opens the table of a node, and remembers in `directory`, which has to be there, which of the node's files it is.
    ///
    /// # Errors
    /// [`Error::StoreAdapter`].
    pub async fn open(api: &VeilidAPI, directory: &Path) -> Result<Self> {
        let table = store_adapter::open_table(api, directory, TABLE, 1).await?;
        Ok(Self::over(Rows::Table(table)))
    }

    /// One that forgets everything with the process, for tests.
    #[must_use]
    pub fn in_memory() -> Self {
        Self::over(Rows::Memory(Arc::default()))
    }

    fn over(rows: Rows) -> Self {
        Self {
            rows: Arc::new(Mutex::new(Some(rows))),
        }
    }

    /// Lets go of the table. Reading and writing fail from then on.
    pub fn close(&self) {
        lock(&self.rows).take();
    }

    fn rows(&self) -> Result<Rows> {
        lock(&self.rows).clone().ok_or(Error::Closed)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The name of a row within its group.
pub(crate) type RowName = [u8; NAME];

/// The rows of one group.
pub(crate) struct GroupLedger {
    ledger: Ledger,
    group: [u8; GROUP],
    names: Zeroizing<[u8; 32]>,
    cipher: XChaCha20Poly1305,
}

impl GroupLedger {
    pub(crate) fn new(ledger: Ledger, access: &GroupAccess) -> Self {
        let key = access.locator().derive(Purpose::LocalState);
        let part = |salt: &[u8]| key.derive_salted(Purpose::LocalState, salt);
        let (group, names, seal) = (part(b"group"), part(b"names"), part(b"rows"));
        let (first, _) = group
            .as_bytes()
            .split_first_chunk()
            .expect("a key has 32 bytes");
        Self {
            ledger,
            group: *first,
            names: Zeroizing::new(*names.as_bytes()),
            cipher: XChaCha20Poly1305::new(seal.as_bytes().into()),
        }
    }

    /// The name of the row for something of one kind.
    pub(crate) fn name(&self, kind: u8, what: &[&[u8]]) -> RowName {
        let mut hasher = blake3::Hasher::new_keyed(&self.names);
        hasher.update(&[kind]);
        for part in what {
            hasher.update(&(part.len() as u64).to_be_bytes());
            hasher.update(part);
        }
        let hash = hasher.finalize();
        let (name, _) = hash
            .as_bytes()
            .split_first_chunk()
            .expect("a hash has 32 bytes");
        *name
    }

    /// All rows of the group. One that is damaged is left out: what it said is lost, and nothing else.
    ///
    /// # Errors
    /// [`Error::Veilid`], [`Error::Closed`].
    pub(crate) async fn load(&self) -> Result<Vec<(RowName, Zeroizing<Vec<u8>>)>> {
        let mut out = Vec::new();
        let mut take = |key: &[u8], sealed: &[u8]| {
            let Some(name) = self.of_key(key) else { return };
            match self.open(&name, sealed) {
                Some(plain) => out.push((name, plain)),
                None => tracing::warn!("a row of a group is damaged, and left out"),
            }
        };
        match self.ledger.rows()? {
            Rows::Memory(rows) => {
                for (key, sealed) in lock(&rows).iter() {
                    take(key, sealed);
                }
            }
            Rows::Table(table) => {
                for key in table.get_keys(COLUMN).await? {
                    if self.of_key(&key).is_some()
                        && let Some(sealed) = table.load(COLUMN, key.clone()).await?
                    {
                        take(&key, &sealed);
                    }
                }
            }
        }
        Ok(out)
    }

    /// Writes rows, or takes them away, all or none.
    ///
    /// # Errors
    /// [`Error::Veilid`], [`Error::Closed`].
    pub(crate) async fn write(&self, changes: Vec<(RowName, Option<Vec<u8>>)>) -> Result<()> {
        if changes.is_empty() {
            return Ok(());
        }
        let mut sealed = Vec::with_capacity(changes.len());
        for (name, plain) in changes {
            let value = match plain {
                Some(plain) => Some(self.seal(&name, &Zeroizing::new(plain))?),
                None => None,
            };
            sealed.push((self.key(&name), value));
        }
        match self.ledger.rows()? {
            Rows::Memory(rows) => {
                let mut rows = lock(&rows);
                for (key, value) in sealed {
                    match value {
                        Some(value) => rows.insert(key, value),
                        None => rows.remove(&key),
                    };
                }
            }
            Rows::Table(table) => {
                let transaction = table.transact();
                for (key, value) in sealed {
                    let done = match value {
                        Some(value) => transaction.store(COLUMN, key.into(), value.into()).await,
                        None => transaction.delete(COLUMN, key.into()).await,
                    };
                    if let Err(error) = done {
                        transaction.rollback();
                        return Err(error.into());
                    }
                }
                transaction.commit().await?;
            }
        }
        Ok(())
    }

    /// Takes all rows of the group away.
    ///
    /// # Errors
    /// [`Error::Veilid`], [`Error::Closed`].
    pub(crate) async fn clear(&self) -> Result<()> {
        let mut names = Vec::new();
        match self.ledger.rows()? {
            Rows::Memory(rows) => {
                names.extend(lock(&rows).keys().filter_map(|key| self.of_key(key)));
            }
            Rows::Table(table) => {
                let keys = table.get_keys(COLUMN).await?;
                names.extend(keys.iter().filter_map(|key| self.of_key(key)));
            }
        }
        self.write(names.into_iter().map(|name| (name, None)).collect())
            .await
    }

    /// Takes all rows of the group away but those of one kind.
    ///
    /// # Errors
    /// [`Error::Veilid`], [`Error::Closed`].
    pub(crate) async fn clear_but(&self, kind: u8) -> Result<()> {
        let rows = self.load().await?.into_iter();
        let others = rows.filter(|(_, row)| row.first() != Some(&kind));
        self.write(others.map(|(name, _)| (name, None)).collect())
            .await
    }

    fn key(&self, name: &RowName) -> Vec<u8> {
        [&self.group[..], name].concat()
    }

    fn of_key(&self, key: &[u8]) -> Option<RowName> {
        key.strip_prefix(&self.group)?.try_into().ok()
    }

    fn seal(&self, name: &RowName, plain: &[u8]) -> Result<Vec<u8>> {
        let failed = |what| Error::Store(io::Error::other(what));
        let mut nonce = [0; NONCE];
        getrandom::fill(&mut nonce).map_err(|_| failed("no randomness"))?;
        let payload = Payload {
            msg: plain,
            aad: name,
        };
        let sealed = self
            .cipher
            .encrypt(&XNonce::from(nonce), payload)
            .map_err(|_| failed("a row is too long"))?;
        let mut out = Vec::with_capacity(1 + NONCE + sealed.len());
        out.push(VERSION);
        out.extend_from_slice(&nonce);
        out.extend_from_slice(&sealed);
        Ok(out)
    }

    fn open(&self, name: &RowName, sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let (version, rest) = sealed.split_first()?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE>()?;
        if *version != VERSION {
            return None;
        }
        let payload = Payload {
            msg: sealed,
            aad: name,
        };
        let plain = self.cipher.decrypt(&XNonce::from(*nonce), payload).ok()?;
        Some(Zeroizing::new(plain))
    }
}

#[cfg(test)]
mod tests {
    use veilid_core::{CRYPTO_KIND_VLD0, Crypto};

    use super::*;

    fn access() -> GroupAccess {
        let owner = Crypto::generate_keypair(CRYPTO_KIND_VLD0).unwrap();
        GroupAccess::Member { owner }
    }

    #[tokio::test]
    async fn rows_are_sealed_and_each_groups_own() {
        let ledger = Ledger::in_memory();
        let one = GroupLedger::new(ledger.clone(), &access());
        let other = GroupLedger::new(ledger.clone(), &access());
        let name = one.name(1, &[b"a", b"b"]);
        assert_ne!(name, one.name(1, &[b"ab", b""]));
        assert_ne!(name, one.name(2, &[b"a", b"b"]));
        assert_ne!(name, other.name(1, &[b"a", b"b"]));
        one.write(vec![(name, Some(b"a secret path".to_vec()))])
            .await
            .unwrap();
        assert!(other.load().await.unwrap().is_empty());
        let rows = one.load().await.unwrap();
        assert_eq!(rows.len(), 1);
        assert_eq!(rows[0].1.as_slice(), b"a secret path");

        let Rows::Memory(raw) = ledger.rows().unwrap() else {
            unreachable!()
        };
        {
            let mut raw = lock(&raw);
            let sealed = raw.values_mut().next().unwrap();
            assert!(!sealed.windows(6).any(|w| w == b"secret"));
            *sealed.last_mut().unwrap() ^= 1;
        }
        assert!(one.load().await.unwrap().is_empty());

        one.write(vec![(name, None)]).await.unwrap();
        assert!(lock(&raw).is_empty());
        for kind in [1, 2, 3] {
            let row = (one.name(kind, &[]), Some(vec![kind]));
            one.write(vec![row]).await.unwrap();
        }
        one.clear_but(3).await.unwrap();
        let left = one.load().await.unwrap();
        assert_eq!((left.len(), left[0].1[0]), (1, 3));
        one.clear().await.unwrap();
        assert!(lock(&raw).is_empty());
        ledger.close();
        assert!(matches!(one.load().await, Err(Error::Closed)));
    }
}
