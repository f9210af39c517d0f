//! Veilid's protected store as it is: names and bytes.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use futures::future::BoxFuture;
use veilid_core::{VeilidAPI, VeilidAPIError};
use zeroize::Zeroizing;

use super::sync_parent;
use crate::{Error, Result};

/// Where secrets lie.
pub(crate) trait RawSecrets: Send + Sync + fmt::Debug {
    fn load<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<Zeroizing<Vec<u8>>>>>;
    /// What was there stays if this fails.
    fn save<'a>(&'a self, name: &'a str, value: &'a [u8]) -> BoxFuture<'a, Result<()>>;
    /// No error if there is none.
    fn remove<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<()>>;
    /// Whether the operating system guards them; false for a plain file, or when that cannot be told.
    fn guarded(&self) -> bool;
}

/// The protected store of a node.
#[derive(Clone)]
pub(crate) struct VeilidSecrets {
    api: VeilidAPI,
    guarded: bool,
    /// Where Veilid puts secrets when it uses no keyring.
    file: Option<PathBuf>,
}

impl fmt::Debug for VeilidSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VeilidSecrets")
            .field("guarded", &self.guarded)
            .finish_non_exhaustive()
    }
}

impl VeilidSecrets {
    pub(crate) fn new(api: &VeilidAPI) -> Self {
        let config = api.config().ok();
        let file = config.as_ref().map(|config| {
            let name = match config.namespace.as_str() {
                "" => "insecure_keyring".to_owned(),
                namespace => format!("insecure_keyring_{namespace}"),
            };
            Path::new(&config.protected_store.directory).join(name)
        });
        let guarded = config.as_ref().is_some_and(|config| {
            let store = &config.protected_store;
            // Veilid makes the file as soon as it falls back on it.
            let in_file =
                store.allow_insecure_fallback && file.as_ref().is_none_or(|file| file.exists());
            !store.always_use_insecure_storage && !in_file
        });
        Self {
            api: api.clone(),
            guarded,
            file,
        }
    }

    /// Veilid renames a new file over the old one without syncing either.
    async fn sync(&self) -> Result<()> {
        let Some(path) = self.file.clone().filter(|_| !self.guarded) else {
            return Ok(());
        };
        let failed = path.clone();
        let sync = move || match std::fs::File::options().write(true).open(&path) {
            Ok(file) => {
                file.sync_all()?;
                sync_parent(&path)
            }
            // There is a keyring after all.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        };
        tokio::task::spawn_blocking(sync)
            .await
            .map_err(|_| Error::Closed)?
            .map_err(|source| Error::Io {
                path: failed,
                source,
            })
    }

    /// Undoes a change that failed: Veilid keeps it in memory, and on disk a half-written file with which the node would
    /// not start again.
    async fn restore(&self, name: &str, before: Option<Vec<u8>>) {
        let Some(path) = self.file.clone().filter(|_| !self.guarded) else {
            return;
        };
        // These fail for the same reason as before, but put right what is in memory.
        let _ = match before {
            Some(value) => self.api.save_user_secret(name.to_owned(), value).await,
            None => self.api.remove_user_secret(name.to_owned()).await,
        };
        let mut half = path.into_os_string();
        half.push("~");
        let _ = tokio::task::spawn_blocking(move || std::fs::remove_file(half)).await;
    }
}

impl RawSecrets for VeilidSecrets {
    fn load<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<Zeroizing<Vec<u8>>>>> {
        Box::pin(async move {
            let value = self.api.load_user_secret(name.to_owned()).await;
            Ok(value.map_err(failed)?.map(Zeroizing::new))
        })
    }

    fn save<'a>(&'a self, name: &'a str, value: &'a [u8]) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let before = self.api.load_user_secret(name.to_owned()).await;
            let before = before.map_err(failed)?;
            let saved = self.api.save_user_secret(name.to_owned(), value.to_vec());
            if let Err(error) = saved.await {
                self.restore(name, before).await;
                return Err(failed(error));
            }
            self.sync().await
        })
    }

    fn remove<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let before = self.api.load_user_secret(name.to_owned()).await;
            if let Err(error) = self.api.remove_user_secret(name.to_owned()).await {
                if let Ok(before) = before {
                    self.restore(name, before).await;
                }
                return Err(failed(error));
            }
            self.sync().await
        })
    }

    fn guarded(&self) -> bool {
        self.guarded
    }
}

/// What the protected store says when it is locked, out of reach, or gone with its node.
fn failed(error: VeilidAPIError) -> Error {
    match error {
        VeilidAPIError::NotInitialized | VeilidAPIError::Shutdown => Error::Closed,
        VeilidAPIError::Generic { message }
            if message == "User secret is not a buffer" || message == "Failed to decode" =>
        {
            Error::DamagedKeyRecord
        }
        error => Error::KeyringUnavailable {
            reason: error.to_string(),
        },
    }
}
