//! How this device's keys are guarded, and the key that seals its state.

use std::{fmt, path::PathBuf};

use chacha20poly1305::{
    KeyInit, XChaCha20Poly1305, XNonce,
    aead::{Aead, Payload},
};
use dht_records::{Purpose, SubKey};
use store_adapter::{Protection, Secrets};
use zeroize::Zeroizing;

use crate::{Error, Result};

/// How the device's keys are guarded: the key of its blobs, and the one that seals its groups' keys.
#[derive(Clone, Default)]
#[non_exhaustive]
pub enum KeyStorage {
    /// By the operating system's keyring. Without one, or with a locked one, the backend does not start.
    #[default]
    Keyring,
    /// Wrapped by a password, with Argon2id, wherever they lie: in a keyring if there is one, else in a file of the
    /// directory. Who forgets the password has lost what is on the device. An empty one is no password.
    Password(Zeroizing<String>),
    /// Wrapped by 32 random bytes in this file, wherever they lie. The file is made, for its owner alone, when the device
    /// starts for the first time and there is no such file. It should lie elsewhere than the directory: who has both has
    /// everything, and who loses it has lost what is on the device.
    KeyFile(PathBuf),
    /// In a plain file of the directory. Whoever reads the disk reads the archive: only for tests, and for machines whose disk
    /// is protected otherwise.
    InsecureFile,
}

impl fmt::Debug for KeyStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Keyring => "Keyring",
            Self::Password(_) => "Password([redacted])",
            Self::KeyFile(_) => "KeyFile([redacted])",
            Self::InsecureFile => "InsecureFile",
        })
    }
}

impl KeyStorage {
    /// `plain` is whether the network's settings allow a plain file anyway.
    pub(crate) fn protection(&self, plain: bool) -> Protection {
        match self {
            Self::Keyring if plain => Protection::Insecure,
            Self::Keyring => Protection::Keyring,
            Self::Password(password) => Protection::Password(password.clone()),
            Self::KeyFile(path) => Protection::KeyFile(path.clone()),
            Self::InsecureFile => Protection::Insecure,
        }
    }

    /// Whether the keys are worth nothing to who finds them in a file.
    pub(crate) fn wraps(&self) -> bool {
        matches!(self, Self::Password(_) | Self::KeyFile(_))
    }
}

/// Under which name the key of the state is kept.
pub(crate) const NAME: &str = "save-dweb-state-key-v2";
/// The same while the protection is being changed: under the new one, until everything else is.
pub(crate) const NEXT: &str = "save-dweb-state-key-v2-next";

const LEN: usize = 32;
const VERSION: u8 = 1;
const NONCE: usize = 24;

/// A key as it is kept.
type Bytes = Zeroizing<[u8; LEN]>;

/// Seals and opens the rows of the local state.
pub(crate) struct StateKey {
    bytes: Bytes,
    seal: SubKey,
    /// The key before the last change, as long as there may be rows under it.
    previous: Option<(Bytes, SubKey)>,
}

impl StateKey {
    pub(crate) fn new() -> Result<Self> {
        let mut bytes = Zeroizing::new([0; LEN]);
        getrandom::fill(&mut *bytes).map_err(|_| Error::Randomness)?;
        Ok(Self::of(bytes, None))
    }

    /// The key that takes this one's place.
    pub(crate) fn successor(&self) -> Result<Self> {
        Ok(Self::of(Self::new()?.bytes, Some(self.bytes.clone())))
    }

    fn of(bytes: Bytes, previous: Option<Bytes>) -> Self {
        let seal = |bytes: &Bytes| SubKey::from_bytes(**bytes).derive(Purpose::LocalState);
        Self {
            seal: seal(&bytes),
            previous: previous.map(|bytes| {
                let seal = seal(&bytes);
                (bytes, seal)
            }),
            bytes,
        }
    }

    /// The key as it is kept: 32 bytes, followed by those of the previous key.
    pub(crate) fn to_bytes(&self) -> Zeroizing<Vec<u8>> {
        let mut out = Zeroizing::new(Vec::with_capacity(2 * LEN));
        out.extend_from_slice(&*self.bytes);
        if let Some((previous, _)) = &self.previous {
            out.extend_from_slice(&**previous);
        }
        out
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let damaged = || Error::KeyDamaged;
        let (first, rest) = bytes.split_first_chunk::<LEN>().ok_or_else(damaged)?;
        let previous = match rest {
            [] => None,
            rest => Some(Zeroizing::new(
                *<&[u8; LEN]>::try_from(rest).map_err(|_| damaged())?,
            )),
        };
        Ok(Self::of(Zeroizing::new(*first), previous))
    }

    /// Whether there may be rows under an earlier key.
    pub(crate) fn has_previous(&self) -> bool {
        self.previous.is_some()
    }

    /// Whether this one takes the place of `key`.
    fn follows(&self, key: &Self) -> bool {
        self.previous
            .as_ref()
            .is_some_and(|(previous, _)| **previous == *key.bytes)
    }

    pub(crate) fn forget_previous(&mut self) {
        self.previous = None;
    }

    /// Seals `plain`, so that it opens only under the same `row`.
    pub(crate) fn seal(&self, row: &[u8], plain: &[u8]) -> Result<Vec<u8>> {
        let mut nonce = [0; NONCE];
        getrandom::fill(&mut nonce).map_err(|_| Error::Randomness)?;
        let sealed = cipher(&self.seal)
            .encrypt(
                &XNonce::from(nonce),
                Payload {
                    msg: plain,
                    aad: row,
                },
            )
            .map_err(|_| Error::StateDamaged { what: "a new row" })?;
        let mut out = Vec::with_capacity(1 + NONCE + sealed.len());
        out.push(VERSION);
        out.extend_from_slice(&nonce);
        out.extend_from_slice(&sealed);
        Ok(out)
    }

    /// Opens what `seal` made for the same `row`.
    pub(crate) fn open(&self, row: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>> {
        let damaged = || Error::StateDamaged { what: "a row" };
        let (version, rest) = sealed.split_first().ok_or_else(damaged)?;
        if *version != VERSION {
            return Err(Error::StateDamaged {
                what: "a row of an unknown version",
            });
        }
        let (nonce, sealed) = rest.split_first_chunk::<NONCE>().ok_or_else(damaged)?;
        let open = |key: &SubKey| {
            let payload = Payload {
                msg: sealed,
                aad: row,
            };
            cipher(key).decrypt(&XNonce::from(*nonce), payload).ok()
        };
        open(&self.seal)
            .or_else(|| self.previous.as_ref().and_then(|(_, key)| open(key)))
            .map(Zeroizing::new)
            .ok_or_else(damaged)
    }
}

fn cipher(key: &SubKey) -> XChaCha20Poly1305 {
    XChaCha20Poly1305::new(key.as_bytes().into())
}

/// The key from the protected store, and whether it is the one that a change of protection which was cut off left.
pub(crate) async fn load(secrets: &Secrets) -> Result<(Option<StateKey>, bool)> {
    let key = match secrets.load(NAME).await {
        Ok(None) => return Ok((None, false)),
        Ok(Some(bytes)) => Ok(StateKey::from_bytes(&bytes)?),
        Err(error) if guarded_otherwise(&error) => Err(error),
        Err(error) => return Err(error.into()),
    };
    let next = match secrets.load(NEXT).await {
        Ok(Some(bytes)) => StateKey::from_bytes(&bytes).ok(),
        // It is of another protection than the one that counts, or damaged.
        Ok(None) => None,
        Err(error) if guarded_otherwise(&error) => None,
        Err(store_adapter::Error::DamagedKeyRecord) => None,
        Err(error) => return Err(error.into()),
    };
    match (key, next) {
        // Both protections open both, and there may be rows under the next key by now.
        (Ok(key), Some(next)) if next.follows(&key) => Ok((Some(next), true)),
        (Ok(key), _) => Ok((Some(key), false)),
        (Err(_), Some(next)) => Ok((Some(next), true)),
        (Err(error), None) => Err(error.into()),
    }
}

fn guarded_otherwise(error: &store_adapter::Error) -> bool {
    use store_adapter::Error as E;
    matches!(
        error,
        E::WrongKey
            | E::PasswordRequired
            | E::KeyFileRequired
            | E::NotWrapped
            | E::InsecureKeyStorage
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> StateKey {
        StateKey::from_bytes(&[byte; LEN]).unwrap()
    }

    #[test]
    fn rows_open_under_their_own_name_only() {
        let key = key(7);
        let sealed = key.seal(b"row", b"secret").unwrap();
        assert!(!sealed.windows(6).any(|w| w == b"secret"));
        assert_eq!(*key.open(b"row", &sealed).unwrap(), b"secret");
        assert!(matches!(
            key.open(b"other", &sealed),
            Err(Error::StateDamaged { what: "a row" })
        ));
        for index in 0..sealed.len() {
            let mut flipped = sealed.clone();
            flipped[index] ^= 1;
            assert!(matches!(
                key.open(b"row", &flipped),
                Err(Error::StateDamaged { .. })
            ));
        }
        assert!(key.open(b"row", &[]).is_err());
    }

    #[test]
    fn a_successor_opens_the_old_rows_until_it_forgets() {
        let old = key(7);
        let sealed = old.seal(b"row", b"secret").unwrap();
        let mut new = old.successor().unwrap();
        assert!(new.has_previous());
        assert_eq!(*new.open(b"row", &sealed).unwrap(), b"secret");
        let resealed = new.seal(b"row", b"secret").unwrap();
        assert!(old.open(b"row", &resealed).is_err());
        let kept = StateKey::from_bytes(&new.to_bytes()).unwrap();
        assert_eq!(*kept.open(b"row", &sealed).unwrap(), b"secret");
        assert_eq!(*kept.open(b"row", &resealed).unwrap(), b"secret");
        new.forget_previous();
        assert!(new.open(b"row", &sealed).is_err());
        assert_eq!(new.to_bytes().len(), LEN);
        assert_eq!(*new.open(b"row", &resealed).unwrap(), b"secret");
    }

    #[test]
    fn a_key_of_another_length_is_damage() {
        for len in [0, 31, 33, 63, 65] {
            assert!(matches!(
                StateKey::from_bytes(&vec![1; len]),
                Err(Error::KeyDamaged)
            ));
        }
    }

    #[test]
    fn nothing_secret_is_printed() {
        for storage in [
            KeyStorage::Password(Zeroizing::new("hunter2".to_owned())),
            KeyStorage::KeyFile("/hunter2".into()),
        ] {
            assert!(!format!("{storage:?}").contains("hunter2"));
        }
    }
}
