//! The directory of a device: who uses it, its id, and where in it Veilid keeps what.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use veilid_core::VeilidConfig;

use crate::{Error, KeyStorage, Result};

/// The blob store.
pub(crate) const BLOBS: &str = "blobs";
/// What the Veilid node keeps.
pub(crate) const VEILID: &str = "veilid";
pub(crate) const LOCK: &str = "lock";
pub(crate) const ID: &str = "id";
pub(crate) const NEW_ID: &str = "id.new";
/// Which of Veilid's tables hold the state.
const TABLES: [&str; 2] = ["tables", "tables.new"];

/// Makes the directory, and holds it for this process.
pub(crate) fn lock(directory: &Path) -> Result<File> {
    let failed = failed(directory);
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(directory).map_err(&failed)?;
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(directory.join(LOCK))
        .map_err(&failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(Error::DirectoryInUse),
        Err(fs::TryLockError::Error(source)) => Err(failed(source)),
    }
}

/// What tells this directory's keys from those of other directories in the same keyring: an id that is chosen once and moves with
/// the directory. `None` if it was not chosen yet.
pub(crate) fn known_namespace(directory: &Path) -> Result<Option<String>> {
    match fs::read(directory.join(ID)) {
        Ok(id) => match String::from_utf8(id) {
            Ok(id) if id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit()) => Ok(Some(id)),
            _ => Err(Error::StateDamaged {
                what: "the directory's id",
            }),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(directory)(error)),
    }
}

/// The same, chosen if need be.
pub(crate) fn namespace(directory: &Path) -> Result<String> {
    if let Some(id) = known_namespace(directory)? {
        return Ok(id);
    }
    if directory.join(VEILID).exists() {
        // A new id would make everything below unreadable without a word.
        return Err(Error::StateDamaged {
            what: "the directory's id is gone",
        });
    }
    let mut id = [0; 16];
    getrandom::fill(&mut id).map_err(|_| Error::Randomness)?;
    let id = data_encoding::HEXLOWER.encode(&id);
    let new = directory.join(NEW_ID);
    let write = || {
        let mut file = File::create(&new)?;
        io::Write::write_all(&mut file, id.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, directory.join(ID))?;
        File::open(directory)?.sync_all()
    };
    write().map_err(failed(directory))?;
    Ok(id)
}

/// What all nodes in this directory have in common.
pub(crate) fn config(directory: &Path, namespace: String) -> VeilidConfig {
    let directory = directory.join(VEILID);
    let directory = directory.to_string_lossy();
    let mut config = VeilidConfig::new(
        "save-dweb",
        "open-archive",
        "org",
        Some(&directory),
        Some(&directory),
    );
    config.namespace = namespace;
    // Veilid's default deletes every table when the keyring is locked or lost.
    config.table_store.wipe_on_invalid_device_encryption_key = false;
    config
}

/// Where the keys of this directory lie. Once there are some, it is never another place: a node that looks for them elsewhere
/// would make new ones there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeyPlace {
    /// In the keyring.
    Keyring,
    /// In a file of the directory, for want of a keyring.
    File,
    /// There are none yet.
    Nowhere,
}

impl KeyPlace {
    pub(crate) fn of(config: &VeilidConfig) -> Self {
        let tables = Path::new(&config.table_store.directory)
            .join(format!("{}___veilid_all_tables", config.namespace));
        if key_file(config).exists() {
            Self::File
        } else if tables.exists() {
            Self::Keyring
        } else {
            Self::Nowhere
        }
    }

    /// Says to the node where the keys are, or may be made. `plain`: in a plain file without more ado.
    pub(crate) fn apply(self, config: &mut VeilidConfig, storage: &KeyStorage, plain: bool) {
        let (always_file, or_file) = match self {
            Self::File => (true, true),
            Self::Keyring => (false, false),
            Self::Nowhere => {
                let plain = plain || matches!(storage, KeyStorage::InsecureFile);
                (plain, plain || storage.wraps())
            }
        };
        config.protected_store.always_use_insecure_storage = always_file;
        config.protected_store.allow_insecure_fallback = or_file;
    }
}

/// Where Veilid keeps keys for want of a keyring.
fn key_file(config: &VeilidConfig) -> PathBuf {
    Path::new(&config.protected_store.directory)
        .join(format!("insecure_keyring_{}", config.namespace))
}

/// Whether a device is in the directory, or what a wipe that was cut off left of one. Changes nothing.
pub(crate) fn has_device(directory: &Path) -> Result<bool> {
    match known_namespace(directory) {
        Ok(Some(_)) => Ok(true),
        // The id is lost or damaged, if it ever was one.
        Ok(None) | Err(Error::StateDamaged { .. }) => {
            Ok(directory.join(LOCK).exists() && directory.join(VEILID).exists())
        }
        Err(error) => Err(error),
    }
}

/// Removes what a device made in its directory, keys first and last that by which it is known to be a device's; and the directory
/// itself if nothing else is in it.
pub(crate) fn remove(directory: &Path, lock: File) -> Result<()> {
    let remove = || {
        let veilid = directory.join(VEILID);
        let file = |name| unless_missing(fs::remove_file(directory.join(name)));
        for path in [veilid.join("protected_store"), directory.join(BLOBS)] {
            unless_missing(fs::remove_dir_all(path))?;
        }
        TABLES.into_iter().try_for_each(file)?;
        unless_missing(fs::remove_dir_all(veilid))?;
        [NEW_ID, ID, LOCK].into_iter().try_for_each(file)?;
        drop(lock);
        match unless_missing(fs::remove_dir(directory)) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
            result => result,
        }
    };
    remove().map_err(failed(directory))
}

fn unless_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

pub(crate) fn failed(directory: &Path) -> impl Fn(io::Error) -> Error {
    |source| Error::Directory {
        path: directory.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use zeroize::Zeroizing;

    use super::*;

    #[test]
    fn keys_stay_where_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(dir.path(), "n".to_owned());
        let password = KeyStorage::Password(Zeroizing::new("x".to_owned()));
        let mut chosen = |storage: &KeyStorage, plain| {
            KeyPlace::of(&config).apply(&mut config, storage, plain);
            (
                config.protected_store.always_use_insecure_storage,
                config.protected_store.allow_insecure_fallback,
            )
        };
        let keyring = KeyStorage::Keyring;
        let insecure = KeyStorage::InsecureFile;
        assert_eq!(chosen(&keyring, false), (false, false));
        assert_eq!(chosen(&password, false), (false, true));
        assert_eq!(chosen(&insecure, false), (true, true));
        assert_eq!(chosen(&keyring, true), (true, true));

        let tables = dir.path().join("veilid/table_store");
        fs::create_dir_all(&tables).unwrap();
        fs::write(tables.join("n___veilid_all_tables"), "").unwrap();
        for storage in [&keyring, &password, &insecure] {
            assert_eq!(chosen(storage, false), (false, false));
        }

        let keys = dir.path().join("veilid/protected_store");
        fs::create_dir_all(&keys).unwrap();
        fs::write(keys.join("insecure_keyring_n"), "").unwrap();
        for storage in [&keyring, &password, &insecure] {
            assert_eq!(chosen(storage, false), (true, true));
        }
    }

    #[test]
    fn only_what_is_ours_is_removed() {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("device");
        let held = lock(&directory).unwrap();
        assert!(matches!(lock(&directory), Err(Error::DirectoryInUse)));
        let id = namespace(&directory).unwrap();
        assert_eq!(known_namespace(&directory).unwrap(), Some(id));
        fs::create_dir_all(directory.join("veilid/protected_store")).unwrap();
        fs::create_dir_all(directory.join("blobs/segments")).unwrap();
        fs::write(directory.join("tables"), "").unwrap();
        fs::write(directory.join("mine"), "").unwrap();
        assert!(has_device(&directory).unwrap());
        // Also where it lost its id.
        fs::write(directory.join(ID), b"damaged\xff").unwrap();
        assert!(has_device(&directory).unwrap());
        remove(&directory, held).unwrap();
        let left: Vec<_> = fs::read_dir(&directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(left, ["mine"]);
        assert!(!has_device(&directory).unwrap());
        fs::remove_file(directory.join("mine")).unwrap();
        let held = lock(&directory).unwrap();
        remove(&directory, held).unwrap();
        assert!(!directory.exists());
    }
}
