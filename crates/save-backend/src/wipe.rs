//! Taking everything of a device away.

use std::{fs::File, path::Path, sync::Arc};

use store_adapter::VeilidStore;
use veilid_core::VeilidAPI;

use crate::{
    Backend, BackendBuilder, Error, KeyStorage, Result,
    builder::startup_error,
    directory::{self, KeyPlace},
    keys,
};

impl BackendBuilder {
    /// Takes away everything that a device has in the directory, for good: first its keys, then all the rest. Neither password nor key
    /// file is needed. What else is in the directory stays, and so does a key file.
    ///
    /// Without the keys nothing can be read any more, from a copy of the disk either. But flash memory can keep remains of a
    /// file that was removed, that of the keys included, until it needs the space; where the keys were wrapped or in a
    /// keyring, such remains are of no use by themselves. What others have of this device's files, and what the network knows,
    /// stays.
    ///
    /// # Errors
    /// [`Error::DirectoryInUse`] and [`Error::Directory`] if there is no such directory; then nothing was done.
    /// [`Error::KeyringUnavailable`] if the keys could not be taken out of the keyring; all the rest is gone nevertheless.
    /// [`Error::Directory`] if a file could not be removed; call it again.
    pub async fn wipe(self) -> Result<()> {
        let directory = self.directory_path();
        if let Err(source) = std::fs::metadata(directory) {
            return Err(directory::failed(directory)(source));
        }
        let lock = directory::lock(directory)?;
        everything(directory, lock).await
    }
}

impl Backend {
    /// Stops the device and takes away everything that it has, for good; see [`BackendBuilder::wipe`]. Does not wait for the network:
    /// tunnels that are published expire.
    ///
    /// # Errors
    /// [`Error::Stopped`] if it was stopped before; then nothing was done. Else as [`BackendBuilder::wipe`], which can be called
    /// again after this one failed.
    pub async fn wipe(&self) -> Result<()> {
        self.inner.cancel.cancel();
        let Some(state) = self.inner.state.write().await.take() else {
            return Err(Error::Stopped);
        };
        // At once. What fails here is tried again below, where its failure is reported.
        if let Err(error) = state.remove_key().await {
            tracing::warn!(%error, "the key of the state is not removed yet");
        }
        drop(state);
        let store = self.inner.context.store.clone();
        if let Err(error) = store.wipe().await {
            tracing::warn!(%error, "the store is not removed yet");
        }
        let lock = self.end(std::time::Duration::ZERO).await.1;
        match lock {
            Some(lock) => everything(&self.inner.directory, lock).await,
            None => Err(Error::Stopped),
        }
    }
}

async fn everything(directory: &Path, lock: File) -> Result<()> {
    let keys = remove_keys(directory).await;
    let owned = directory.to_owned();
    tokio::task::spawn_blocking(move || directory::remove(&owned, lock))
        .await
        .map_err(|_| Error::Stopped)??;
    keys
}

/// Takes the keys out of the keyring. Those in a file go with the directory.
async fn remove_keys(directory: &Path) -> Result<()> {
    let Some(namespace) = directory::known_namespace(directory).ok().flatten() else {
        return Ok(());
    };
    let mut config = directory::config(directory, namespace);
    let place = KeyPlace::of(&config);
    if place != KeyPlace::Keyring {
        return Ok(());
    }
    place.apply(&mut config, &KeyStorage::Keyring, false);
    // Veilid's own key, and the tables, which are worth nothing without it.
    config.protected_store.delete = true;
    config.table_store.wipe_on_invalid_device_encryption_key = true;
    config.table_store.delete = true;
    let api = veilid_core::api_startup(Arc::new(|_| {}), config)
        .await
        .map_err(startup_error)?;
    let removed = remove_secrets(&api, &directory.join(directory::BLOBS)).await;
    api.shutdown().await;
    removed
}

async fn remove_secrets(api: &VeilidAPI, blobs: &Path) -> Result<()> {
    for name in [keys::NAME, keys::NEXT] {
        api.remove_user_secret(name.to_owned())
            .await
            .map_err(keyring)?;
    }
    if blobs.exists() {
        match VeilidStore::destroy(api, blobs).await {
            Err(store_adapter::Error::KeyringUnavailable { reason }) => {
                return Err(Error::KeyringUnavailable { reason });
            }
            // A store whose format or files are damaged goes with the directory.
            Err(error) => tracing::warn!(%error, "the store is removed as files"),
            Ok(()) => {}
        }
    }
    // What a damaged store would leave. Not every keyring can list what it has.
    if let Err(error) = api.delete_all_user_secrets().await {
        tracing::debug!(%error, "the keyring was not searched for more keys");
    }
    Ok(())
}

fn keyring(error: veilid_core::VeilidAPIError) -> Error {
    Error::KeyringUnavailable {
        reason: error.to_string(),
    }
}
