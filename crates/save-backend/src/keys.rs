//! The key that seals this device's state, and where it is kept.

use chacha20poly1305::{
    KeyInit, XChaCha20Poly1305, XNonce,
    aead::{Aead, Payload},
};
use dht_records::{Purpose, SubKey};
use veilid_core::VeilidAPI;
use zeroize::Zeroizing;

use crate::{Error, Result};

/// Where the device's keys are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeyStorage {
    /// The operating system's keyring. Without one, or with a locked one, the backend does not start.
    #[default]
    Keyring,
    /// A plain file. Whoever reads the disk reads the archive: only for tests, and for machines whose disk is protected otherwise.
    InsecureFile,
}

const NAME: &str = "save-dweb-state-key-v1";
const VERSION: u8 = 1;
const NONCE: usize = 24;

/// Seals and opens the rows of the local state.
pub(crate) struct StateKey(SubKey);

impl StateKey {
    /// The key from the protected store; a new one if nothing was ever sealed.
    pub(crate) async fn load(api: &VeilidAPI, state_is_empty: bool) -> Result<Self> {
        let stored = api.load_user_secret(NAME.into()).await.map_err(keyring)?;
        let bytes: Zeroizing<[u8; 32]> =
            match stored.map(Zeroizing::new) {
                Some(bytes) => Zeroizing::new(bytes.as_slice().try_into().map_err(|_| {
                    Error::StateDamaged {
                        what: "the state key",
                    }
                })?),
                None if state_is_empty => {
                    let mut bytes = Zeroizing::new([0; 32]);
                    getrandom::fill(&mut *bytes).map_err(|_| Error::Randomness)?;
                    api.save_user_secret(NAME.into(), bytes.to_vec())
                        .await
                        .map_err(keyring)?;
                    bytes
                }
                None => return Err(Error::KeyLost),
            };
        Ok(Self(SubKey::from_bytes(*bytes).derive(Purpose::LocalState)))
    }

    /// Seals `plain`, so that it opens only under the same `row`.
    pub(crate) fn seal(&self, row: &[u8], plain: &[u8]) -> Result<Vec<u8>> {
        let mut nonce = [0; NONCE];
        getrandom::fill(&mut nonce).map_err(|_| Error::Randomness)?;
        let sealed = self
            .cipher()
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
        self.cipher()
            .decrypt(
                &XNonce::from(*nonce),
                Payload {
                    msg: sealed,
                    aad: row,
                },
            )
            .map(Zeroizing::new)
            .map_err(|_| damaged())
    }

    fn cipher(&self) -> XChaCha20Poly1305 {
        XChaCha20Poly1305::new(self.0.as_bytes().into())
    }
}

/// What the protected store says when there is no keyring, or it is locked.
pub(crate) fn keyring(error: veilid_core::VeilidAPIError) -> Error {
    Error::KeyringUnavailable {
        reason: error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_open_under_their_own_name_only() {
        let key = StateKey(SubKey::from_bytes([7; 32]));
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
}
