//! Veilid's protected store as it is: names and bytes.

use std::{fmt, io};

use futures::future::BoxFuture;
use tokio::sync::Mutex;
use veilid_core::{VeilidAPI, VeilidAPIError};
use zeroize::Zeroizing;

use super::file::SecretsFile;
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

/// Held while a secret is changed: all secrets of a node are in one file.
static CHANGING: Mutex<()> = Mutex::const_new(());

/// The protected store of a node.
#[derive(Clone)]
pub(crate) struct VeilidSecrets {
    api: VeilidAPI,
    guarded: bool,
    /// Where they lie if the operating system does not guard them.
    file: Option<SecretsFile>,
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
        let file = config.as_ref().map(|config| SecretsFile::of(config));
        let guarded = config.as_ref().is_some_and(|config| {
            let store = &config.protected_store;
            // Veilid makes the file as soon as it falls back on it.
            let in_file =
                store.allow_insecure_fallback && file.as_ref().is_none_or(SecretsFile::exists);
            !store.always_use_insecure_storage && !in_file
        });
        Self {
            api: api.clone(),
            guarded,
            file: file.filter(|_| !guarded),
        }
    }

    async fn change(&self, name: &str, value: Option<&[u8]>) -> Result<()> {
        let _changing = CHANGING.lock().await;
        let before = self.api.load_user_secret(name.to_owned()).await;
        let before = before.map_err(failed)?.map(Zeroizing::new);
        self.with_file(SecretsFile::keep).await?;
        let changed = match self.set(name, value).await {
            Ok(()) => self.with_file(SecretsFile::settle).await,
            Err(error) => Err(error),
        };
        if changed.is_err() && self.file.is_some() {
            // This fails for the same reason, but puts right what Veilid has in memory.
            let _ = self.set(name, before.as_ref().map(|value| &***value)).await;
            self.with_file(SecretsFile::restore).await?;
        }
        changed
    }

    async fn set(&self, name: &str, value: Option<&[u8]>) -> Result<()> {
        let name = name.to_owned();
        let existed = match value {
            Some(value) => self.api.save_user_secret(name, value.to_vec()).await,
            None => self.api.remove_user_secret(name).await,
        };
        existed.map(drop).map_err(failed)
    }

    async fn with_file(
        &self,
        work: impl FnOnce(&SecretsFile) -> io::Result<()> + Send + 'static,
    ) -> Result<()> {
        let Some(file) = self.file.clone() else {
            return Ok(());
        };
        let path = file.path().to_owned();
        tokio::task::spawn_blocking(move || work(&file))
            .await
            .map_err(|_| Error::Closed)?
            .map_err(|source| Error::Io { path, source })
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
        Box::pin(self.change(name, Some(value)))
    }

    fn remove<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.change(name, None))
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
