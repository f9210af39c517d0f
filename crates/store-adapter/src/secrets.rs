//! The few secrets that lie in Veilid's protected store, and how they are guarded there.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::sync::Mutex;
use veilid_core::VeilidAPI;
use zeroize::Zeroizing;

use crate::{Error, Result};

mod file;
mod raw;
mod record;

pub use file::repair_secrets;
pub(crate) use raw::{RawSecrets, VeilidSecrets};

use record::{Cost, Key, Record, Wrap};

/// Bytes of a key file.
const KEY_FILE: usize = 32;

/// How what is secret is guarded where it lies.
#[derive(Clone, Default)]
#[non_exhaustive]
pub enum Protection {
    /// By the operating system's keyring alone. Refused where the protected store is, or may be, a plain file.
    #[default]
    Keyring,
    /// Wrapped by a password, with Argon2id, wherever it lies. Who forgets the password has lost the data. An empty one is
    /// no password.
    Password(Zeroizing<String>),
    /// Wrapped by 32 random bytes in a file, wherever it lies. The file is made, readable by its owner alone, when the first secret
    /// is saved and there is no such file. Who loses the file has lost the data.
    KeyFile(PathBuf),
    /// Not at all where the protected store is a plain file: whoever reads the disk reads the data. For tests, and for
    /// machines whose disk is protected otherwise.
    Insecure,
}

impl fmt::Debug for Protection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Keyring => "Keyring",
            Self::Password(_) => "Password([redacted])",
            Self::KeyFile(_) => "KeyFile([redacted])",
            Self::Insecure => "Insecure",
        })
    }
}

/// Secrets in Veilid's protected store, each under a name, wrapped as [`Protection`] says.
///
/// A secret has at most a few hundred bytes. The format is described in `docs/formats/secret.md`.
#[derive(Debug)]
pub struct Secrets {
    raw: Arc<dyn RawSecrets>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    protection: Protection,
    /// Whether the key file may be made even though a secret is there already: the protection is being changed to it.
    may_make: bool,
    /// What the protection's key was last derived to, so that saving costs no second Argon2.
    derived: Option<(Wrap, Key)>,
}

impl Secrets {
    /// The secrets of a node. Nothing is read yet.
    #[must_use]
    pub fn new(api: &VeilidAPI, protection: Protection) -> Self {
        Self::over(Arc::new(VeilidSecrets::new(api)), protection)
    }

    pub(crate) fn over(raw: Arc<dyn RawSecrets>, protection: Protection) -> Self {
        Self {
            raw,
            state: Mutex::new(State {
                protection,
                may_make: false,
                derived: None,
            }),
        }
    }

    /// The secret of that name; `None` if it was never saved.
    ///
    /// # Errors
    /// [`Error::KeyringUnavailable`] if the protected store is locked or out of reach; [`Error::PasswordRequired`],
    /// [`Error::KeyFileRequired`], [`Error::NotWrapped`] if it is guarded in another way than this was told;
    /// [`Error::WrongKey`]; [`Error::KeyFile`]; [`Error::DamagedKeyRecord`], [`Error::NewerKeyFormat`];
    /// [`Error::InsecureKeyStorage`] for [`Protection::Keyring`] without a keyring; [`Error::Closed`]. Nothing is changed.
    pub async fn load(&self, name: &str) -> Result<Option<Zeroizing<Vec<u8>>>> {
        let mut state = self.state.lock().await;
        let Some(bytes) = self.raw.load(name).await? else {
            self.refuse_insecure(&state.protection)?;
            return Ok(None);
        };
        let record = Record::parse(name, &bytes)?;
        let key = match (&record.wrap, &state.protection) {
            (Wrap::Plain, Protection::Password(_) | Protection::KeyFile(_)) => {
                return Err(Error::NotWrapped);
            }
            (Wrap::Plain, Protection::Keyring | Protection::Insecure) => {
                self.refuse_insecure(&state.protection)?;
                record::plain_key()
            }
            (Wrap::Password { salt, cost }, Protection::Password(password)) => {
                match state.known(&record.wrap) {
                    Some(key) => key,
                    None => record::password_key(password, *salt, *cost).await?,
                }
            }
            (Wrap::Password { .. }, _) => return Err(Error::PasswordRequired),
            (Wrap::KeyFile { salt }, Protection::KeyFile(path)) => {
                record::key_file_key(&*read_key_file(path)?, salt)
            }
            (Wrap::KeyFile { .. }, _) => return Err(Error::KeyFileRequired),
        };
        let value = record.open(name, &key).ok_or(Error::WrongKey)?;
        state.derived = Some((record.wrap, key));
        Ok(Some(value))
    }

    /// Saves a secret, over one that is there, guarded as this was told. It survives a power cut when this returns, as far as the
    /// operating system's keyring promises that.
    ///
    /// # Errors
    /// [`Error::KeyringUnavailable`], [`Error::InsecureKeyStorage`], [`Error::KeyFile`], [`Error::Randomness`], [`Error::Closed`];
    /// [`Error::PasswordRequired`] for an empty password; [`Error::Io`] if the disk is full. What was there stays.
    pub async fn save(&self, name: &str, value: &[u8]) -> Result<()> {
        let mut state = self.state.lock().await;
        self.refuse_insecure(&state.protection)?;
        let exists = self.raw.load(name).await?.is_some();
        let (wrap, key) = match &state.protection {
            Protection::Keyring => (Wrap::Plain, record::plain_key()),
            Protection::Insecure => {
                if !exists && !self.raw.guarded() {
                    tracing::warn!(
                        "a key is kept in a plain file: whoever reads the disk reads the data"
                    );
                }
                (Wrap::Plain, record::plain_key())
            }
            Protection::Password(password) if password.is_empty() => {
                return Err(Error::PasswordRequired);
            }
            Protection::Password(password) => match &state.derived {
                Some((wrap @ Wrap::Password { cost, .. }, key)) if *cost == Cost::DEFAULT => {
                    (wrap.clone(), key.clone())
                }
                _ => {
                    let salt = record::random()?;
                    let key = record::password_key(password, salt, Cost::DEFAULT).await?;
                    let cost = Cost::DEFAULT;
                    (Wrap::Password { salt, cost }, key)
                }
            },
            Protection::KeyFile(path) => match &state.derived {
                Some((wrap @ Wrap::KeyFile { .. }, key)) => (wrap.clone(), key.clone()),
                _ => {
                    let salt = record::random()?;
                    if !exists || state.may_make {
                        make_key_file(path)?;
                    }
                    let key = record::key_file_key(&*read_key_file(path)?, &salt);
                    (Wrap::KeyFile { salt }, key)
                }
            },
        };
        let bytes = record::seal(name, &wrap, &key, value)?;
        state.derived = Some((wrap, key));
        self.raw.save(name, &bytes).await?;
        // Some keyrings shorten what is too long for them, and nothing can be worth more than this.
        if self.raw.load(name).await?.is_none_or(|kept| *kept != bytes) {
            return Err(Error::KeyringUnavailable {
                reason: "what was saved could not be read back".to_owned(),
            });
        }
        state.may_make = false;
        Ok(())
    }

    /// Takes a secret away. It is no error if there is none.
    ///
    /// # Errors
    /// [`Error::KeyringUnavailable`], [`Error::Closed`].
    pub async fn remove(&self, name: &str) -> Result<()> {
        let _state = self.state.lock().await;
        self.raw.remove(name).await
    }

    /// How secrets are guarded from now on. What was saved before stays as it is until it is saved again, and cannot be loaded
    /// until then unless it is guarded in the same way.
    /// Gives how they were guarded until now.
    pub async fn set_protection(&self, protection: Protection) -> Protection {
        let mut state = self.state.lock().await;
        state.may_make = matches!(protection, Protection::KeyFile(_));
        state.derived = None;
        std::mem::replace(&mut state.protection, protection)
    }

    fn refuse_insecure(&self, protection: &Protection) -> Result<()> {
        match protection {
            Protection::Keyring if !self.raw.guarded() => Err(Error::InsecureKeyStorage),
            _ => Ok(()),
        }
    }
}

impl State {
    fn known(&self, wrap: &Wrap) -> Option<Key> {
        self.derived
            .as_ref()
            .filter(|(known, _)| known == wrap)
            .map(|(_, key)| key.clone())
    }
}

fn read_key_file(path: &Path) -> Result<Zeroizing<[u8; KEY_FILE]>> {
    let failed = |source| Error::KeyFile {
        path: path.to_owned(),
        source,
    };
    let read = || {
        let mut bytes = Zeroizing::new([0; KEY_FILE]);
        let mut file = fs::File::open(path)?;
        if file.metadata()?.len() != KEY_FILE as u64 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a key file has 32 bytes",
            ));
        }
        io::Read::read_exact(&mut file, &mut *bytes)?;
        Ok(bytes)
    };
    read().map_err(failed)
}

/// Makes the key file if there is none. It appears whole or not at all.
fn make_key_file(path: &Path) -> Result<()> {
    let failed = |source| Error::KeyFile {
        path: path.to_owned(),
        source,
    };
    match fs::symlink_metadata(path) {
        Ok(_) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    let key: Zeroizing<[u8; KEY_FILE]> = Zeroizing::new(record::random()?);
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    let write = || {
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut options = fs::File::options();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(&new)?;
        io::Write::write_all(&mut file, &*key)?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        sync_parent(path)
    };
    write().map_err(failed)
}

/// Makes a name in a directory durable.
pub(crate) fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    sync_directory(parent)
}

/// Makes the names in a directory durable. Windows does so by itself.
pub(crate) fn sync_directory(path: &Path) -> io::Result<()> {
    #[cfg(unix)]
    fs::File::open(path)?.sync_all()?;
    #[cfg(not(unix))]
    let _ = path;
    Ok(())
}

#[cfg(test)]
mod tests;
