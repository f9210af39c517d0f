//! Operations on the device as a whole.

use save_backend::KeyStorage;
use zeroize::Zeroizing;

use super::{Context, NewKeys};
use crate::error::{Error, Result};
use crate::items::{Item, Stage};

impl Context<'_> {
    pub(super) async fn status(&self) -> Result<()> {
        let status = self.backend.status().await;
        let online = status.online;
        let backend = serde_json::to_value(status).map_err(|error| Error::Protocol {
            reason: error.to_string(),
        })?;
        self.output
            .item(Item::Status {
                directory: self.device.directory.clone(),
                daemon: self.device.daemon,
                online,
                backend,
            })
            .await?;
        self.groups().await
    }

    pub(super) async fn verify(&self) -> Result<()> {
        let total = self.backend.stored_bytes().await?;
        self.output.progress(Stage::Verifying, 0, Some(total));
        let verify = self.backend.verify(|progress| {
            self.output
                .progress(Stage::Verifying, progress.bytes, Some(total));
        });
        let report = self.here(verify).await?;
        let count = report.damaged.len();
        self.output
            .item(Item::Verified {
                pieces: report.blobs,
                bytes: report.bytes,
                damaged: report.damaged.iter().map(ToString::to_string).collect(),
            })
            .await?;
        match count {
            0 => Ok(()),
            count => Err(Error::DamagedPieces { count }),
        }
    }

    pub(super) async fn change_keys(&self, to: NewKeys) -> Result<()> {
        let (storage, protection) = match to {
            NewKeys::Keyring => (KeyStorage::Keyring, "keyring"),
            NewKeys::Password { password } => {
                let password = Zeroizing::new(password.expose().to_owned());
                (KeyStorage::Password(password), "password")
            }
            NewKeys::KeyFile { path } => (KeyStorage::KeyFile(path), "key_file"),
            NewKeys::Insecure => (KeyStorage::InsecureFile, "insecure"),
        };
        let changed = self.here(self.backend.rekey(storage)).await;
        changed.map_err(|error| match error {
            error @ save_backend::Error::InsecureKeyStorage => Error::Keys {
                error,
                advice: "this device was first started without a keyring, and its keys stay where they are; choose a \
                         password or a key file",
            },
            error => Error::from(error),
        })?;
        let protection = protection.to_owned();
        self.output.item(Item::KeysChanged { protection }).await
    }

    pub(super) async fn wipe(&self) -> Result<()> {
        let (backend, wiped) = (self.backend.clone(), self.device.wiped.clone());
        // A task, because it must not be left half way when nobody waits for it any more.
        let work = tokio::spawn(async move {
            let result = backend.wipe().await;
            wiped.cancel();
            result
        });
        self.here(work).await.map_err(|error| Error::Crashed {
            reason: error.to_string(),
        })??;
        let directory = self.device.directory.clone();
        self.output.item(Item::Wiped { directory }).await
    }
}
