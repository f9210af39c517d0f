//! How a secret is wrapped. The format is specified in `docs/formats/secret.md`.

use std::fmt;

use argon2::{Algorithm, Argon2, Params, Version};
use chacha20poly1305::{
    KeyInit, XChaCha20Poly1305, XNonce,
    aead::{Aead, Payload},
};
use zeroize::Zeroizing;

use crate::{Error, Result};

/// The version that this program writes, and the only one it reads.
pub(crate) const VERSION: u8 = 1;

const PLAIN: u8 = 0;
const PASSWORD: u8 = 1;
const KEY_FILE: u8 = 2;

const SALT: usize = 16;
const NONCE: usize = 24;
const TAG: usize = 16;
const CHECKSUM: usize = 8;

// Versioned, never reused for another purpose, never changed.
const PLAIN_CONTEXT: &str = "save-dweb-backend v1 secret under no key";
const KEY_FILE_CONTEXT: &str = "save-dweb-backend v1 secret under key file";
const CHECKSUM_CONTEXT: &str = "save-dweb-backend v1 secret record checksum";
const DOMAIN: &[u8] = b"save-dweb-backend v1 secret record";

/// The key that wraps a secret.
#[derive(Clone)]
pub(crate) struct Key(Zeroizing<[u8; 32]>);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key([redacted])")
    }
}

/// What the key follows from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wrap {
    /// A constant: the seal is then no more than a checksum.
    Plain,
    Password {
        salt: [u8; SALT],
        cost: Cost,
    },
    KeyFile {
        salt: [u8; SALT],
    },
}

/// What Argon2id costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cost {
    pub(crate) memory_kib: u32,
    pub(crate) passes: u32,
    pub(crate) lanes: u32,
}

impl Cost {
    /// OWASP's first choice for Argon2id ("Password Storage Cheat Sheet").
    pub(crate) const DEFAULT: Self = Self {
        memory_kib: 19 * 1024,
        passes: 2,
        lanes: 1,
    };
    /// More than this is refused, so that a forged record cannot take the memory or the time of the device.
    pub(crate) const MAX: Self = Self {
        memory_kib: 256 * 1024,
        passes: 16,
        lanes: 4,
    };

    fn params(self) -> Option<Params> {
        let within = self.memory_kib <= Self::MAX.memory_kib
            && self.passes <= Self::MAX.passes
            && self.lanes <= Self::MAX.lanes;
        if !within {
            return None;
        }
        Params::new(self.memory_kib, self.passes, self.lanes, Some(32)).ok()
    }
}

/// A wrapped secret, taken apart and checked for damage.
pub(crate) struct Record<'a> {
    pub(crate) wrap: Wrap,
    header: &'a [u8],
    nonce: [u8; NONCE],
    sealed: &'a [u8],
}

impl<'a> Record<'a> {
    pub(crate) fn parse(name: &str, bytes: &'a [u8]) -> Result<Self> {
        // First of all, because nothing behind it is known to mean the same in another version.
        match bytes.first() {
            Some(&VERSION) => {}
            None | Some(0) => return Err(Error::DamagedKeyRecord),
            Some(&found) => return Err(Error::NewerKeyFormat { found }),
        }
        Self::take_apart(name, bytes).ok_or(Error::DamagedKeyRecord)
    }

    fn take_apart(name: &str, bytes: &'a [u8]) -> Option<Self> {
        let (body, sum) = bytes.split_last_chunk::<CHECKSUM>()?;
        if *sum != checksum(name, body) {
            return None;
        }
        let (mode, rest) = body.get(1..)?.split_first()?;
        let (wrap, rest) = match *mode {
            PLAIN => (Wrap::Plain, rest),
            PASSWORD => {
                let (salt, rest) = rest.split_first_chunk::<SALT>()?;
                let (memory, rest) = rest.split_first_chunk::<4>()?;
                let (passes, rest) = rest.split_first_chunk::<4>()?;
                let (lanes, rest) = rest.split_first_chunk::<4>()?;
                let cost = Cost {
                    memory_kib: u32::from_be_bytes(*memory),
                    passes: u32::from_be_bytes(*passes),
                    lanes: u32::from_be_bytes(*lanes),
                };
                cost.params()?;
                (Wrap::Password { salt: *salt, cost }, rest)
            }
            KEY_FILE => {
                let (salt, rest) = rest.split_first_chunk::<SALT>()?;
                (Wrap::KeyFile { salt: *salt }, rest)
            }
            _ => return None,
        };
        let (header, _) = body.split_at(body.len() - rest.len());
        let (nonce, sealed) = rest.split_first_chunk::<NONCE>()?;
        (sealed.len() >= TAG).then_some(Self {
            wrap,
            header,
            nonce: *nonce,
            sealed,
        })
    }

    /// The secret, if this is its key.
    pub(crate) fn open(&self, name: &str, key: &Key) -> Option<Zeroizing<Vec<u8>>> {
        cipher(key)
            .decrypt(
                &XNonce::from(self.nonce),
                Payload {
                    msg: self.sealed,
                    aad: &associated(name, self.header),
                },
            )
            .map(Zeroizing::new)
            .ok()
    }
}

pub(crate) fn seal(name: &str, wrap: &Wrap, key: &Key, value: &[u8]) -> Result<Vec<u8>> {
    let mut out = vec![VERSION];
    match wrap {
        Wrap::Plain => out.push(PLAIN),
        Wrap::Password { salt, cost } => {
            out.push(PASSWORD);
            out.extend_from_slice(salt);
            out.extend_from_slice(&cost.memory_kib.to_be_bytes());
            out.extend_from_slice(&cost.passes.to_be_bytes());
            out.extend_from_slice(&cost.lanes.to_be_bytes());
        }
        Wrap::KeyFile { salt } => {
            out.push(KEY_FILE);
            out.extend_from_slice(salt);
        }
    }
    let nonce: [u8; NONCE] = random()?;
    let sealed = cipher(key)
        .encrypt(
            &XNonce::from(nonce),
            Payload {
                msg: value,
                aad: &associated(name, &out),
            },
        )
        // Only for a plaintext of hundreds of gigabytes.
        .map_err(|_| Error::DamagedKeyRecord)?;
    out.extend_from_slice(&nonce);
    out.extend_from_slice(&sealed);
    let sum = checksum(name, &out);
    out.extend_from_slice(&sum);
    Ok(out)
}

pub(crate) fn plain_key() -> Key {
    Key(Zeroizing::new(blake3::derive_key(PLAIN_CONTEXT, b"")))
}

/// Argon2id, on a blocking thread.
pub(crate) async fn password_key(
    password: &Zeroizing<String>,
    salt: [u8; SALT],
    cost: Cost,
) -> Result<Key> {
    let params = cost.params().ok_or(Error::DamagedKeyRecord)?;
    let password = password.clone();
    let derive = move || {
        let mut key = Zeroizing::new([0; 32]);
        Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
            .hash_password_into(password.as_bytes(), &salt, &mut *key)
            .map(|()| Key(key))
            // It is out of memory, or the password has more than 4 GiB.
            .map_err(Error::blobs)
    };
    tokio::task::spawn_blocking(derive)
        .await
        .map_err(|_| Error::Closed)?
}

pub(crate) fn key_file_key(file: &[u8; 32], salt: &[u8; SALT]) -> Key {
    let mut hasher = blake3::Hasher::new_keyed(file);
    hasher.update(KEY_FILE_CONTEXT.as_bytes());
    hasher.update(salt);
    Key(Zeroizing::new(*hasher.finalize().as_bytes()))
}

pub(crate) fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|_| Error::Randomness)?;
    Ok(bytes)
}

fn cipher(key: &Key) -> XChaCha20Poly1305 {
    XChaCha20Poly1305::new((&*key.0).into())
}

fn associated(name: &str, header: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for part in [DOMAIN, name.as_bytes(), header] {
        out.extend_from_slice(&(part.len() as u64).to_be_bytes());
        out.extend_from_slice(part);
    }
    out
}

/// Needs no key, so that damage is told from a wrong password.
fn checksum(name: &str, body: &[u8]) -> [u8; CHECKSUM] {
    let mut hasher = blake3::Hasher::new_derive_key(CHECKSUM_CONTEXT);
    hasher.update(&(name.len() as u64).to_be_bytes());
    hasher.update(name.as_bytes());
    hasher.update(body);
    let mut sum = [0; CHECKSUM];
    hasher.finalize_xof().fill(&mut sum);
    sum
}
