//! Taking everything of a device away.

use std::{fs::File, path::Path, sync::Arc};

use store_adapter::VeilidStore;
use veilid_core::{VeilidAPI, VeilidConfig};

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
    /// [`Error::NoDevice`] and [`Error::DirectoryInUse`]; then nothing was done.
    /// [`Error::KeyringUnavailable`] if the keys could not be taken out of the keyring; all the rest is gone nevertheless.
    /// [`Error::Directory`] if a file could not be removed; call it again.
    pub async fn wipe(self) -> Result<()> {
        let directory = self.directory_path();
        if !directory::has_device(directory)? {
            return Err(Error::NoDevice {
                path: directory.to_owned(),
            });
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
    remove_with_node(directory, config).await
}

/// Only a node can reach the keyring, and Veilid's own key in it only while it starts. The tables are worth nothing without it.
async fn remove_with_node(directory: &Path, mut config: VeilidConfig) -> Result<()> {
    config.protected_store.delete = true;
    config.table_store.wipe_on_invalid_device_encryption_key = true;
    config.table_store.delete = true;
    let api = veilid_core::api_startup(Arc::new(|_| {}), config)
        .await
        .map_err(|error| startup_error(directory, error))?;
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

#[cfg(test)]
mod tests {
    use store_adapter::{Protection, StoreOptions};
    use zeroize::Zeroizing;

    use super::*;
    use crate::state::State;

    async fn start(config: &VeilidConfig) -> VeilidAPI {
        veilid_core::api_startup(Arc::new(|_| {}), config.clone())
            .await
            .unwrap()
    }

    #[tokio::test]
    async fn a_node_takes_keys_and_tables_away_without_the_password() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = directory::config(dir.path(), "w".to_owned());
        KeyPlace::Nowhere.apply(&mut config, &KeyStorage::InsecureFile, true);
        let api = start(&config).await;
        let protection = Protection::Password(Zeroizing::new("lost".to_owned()));
        let state = State::open(&api, dir.path(), protection.clone())
            .await
            .unwrap();
        state.device().await.unwrap();
        let blobs = dir.path().join(directory::BLOBS);
        let options = StoreOptions::default().with_protection(protection.clone());
        let store = VeilidStore::open(&api, &blobs, options).await.unwrap();
        store.close().await.unwrap();
        drop((state, store));
        assert_eq!(api.list_user_secrets().await.unwrap().len(), 2);
        api.shutdown().await;
        let tables = || {
            let entries = std::fs::read_dir(&config.table_store.directory).unwrap();
            let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
            names.collect::<std::collections::BTreeSet<_>>()
        };
        let before = tables();

        remove_with_node(dir.path(), config.clone()).await.unwrap();
        // What Veilid names itself is there again, empty.
        assert!(
            before
                .intersection(&tables())
                .all(|name| name.contains("__veilid"))
        );
        assert!(!blobs.exists());
        let api = start(&config).await;
        assert!(api.list_user_secrets().await.unwrap().is_empty());
        api.shutdown().await;
    }

    #[tokio::test]
    async fn what_is_no_device_is_not_wiped() {
        let dir = tempfile::tempdir().unwrap();
        let directory = dir.path().join("directory");
        let wipe = async || {
            let wiped = Backend::builder().directory(&directory).wipe().await;
            assert!(matches!(wiped, Err(Error::NoDevice { .. })), "{wiped:?}");
        };
        wipe().await;
        assert!(!directory.exists());
        // Called as a device calls them, but another program's.
        let blob = directory.join(directory::BLOBS).join("one");
        std::fs::create_dir_all(blob.parent().unwrap()).unwrap();
        std::fs::write(&blob, "mine").unwrap();
        std::fs::write(directory.join(directory::ID), "mine").unwrap();
        wipe().await;
        assert!(blob.exists());
        assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 2);
    }

    #[tokio::test]
    async fn a_directory_in_use_is_not_wiped() {
        let dir = tempfile::tempdir().unwrap();
        let lock = directory::lock(dir.path()).unwrap();
        directory::namespace(dir.path()).unwrap();
        let wipe = || Backend::builder().directory(dir.path()).wipe();
        assert!(matches!(wipe().await, Err(Error::DirectoryInUse)));
        assert!(dir.path().join(directory::ID).exists());
        drop(lock);
        wipe().await.unwrap();
        assert!(!dir.path().exists());
    }
}
