//! Directory, network and key storage, as the command line and the environment give them.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use save_backend::{KeyStorage, NetworkSettings};

use crate::args::Common;
use crate::error::{Error, Result};
use crate::keys;

/// What a command needs to reach this device's backend.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The directory, absolute.
    pub directory: PathBuf,
    /// The network.
    pub network: NetworkSettings,
    /// How the keys are protected.
    pub key_storage: KeyStorage,
    /// By a password that is to be asked for instead.
    pub ask_password: bool,
    /// How long the network or a member may be silent.
    pub timeout: Duration,
    /// Use what is on this device, and nothing else.
    pub offline: bool,
    /// Print JSON.
    pub json: bool,
}

impl Settings {
    /// Reads the network file and makes the directory, if need be, so that only its owner can enter it.
    ///
    /// # Errors
    /// [`Error::NoHome`], [`Error::File`] and [`Error::BadSettings`].
    pub fn load(common: &Common) -> Result<Self> {
        let settings = Self::for_wipe(common)?;
        prepare(&settings.directory)?;
        let network = match &common.network {
            Some(path) => read_network(path)?,
            None => NetworkSettings::default(),
        };
        Ok(Self {
            key_storage: keys::given(common, |name| std::env::var_os(name))?,
            ask_password: common.ask_password,
            network,
            ..settings
        })
    }

    /// What `save wipe` needs. Makes no directory and reads no file: a device can be wiped after its password file is lost, and
    /// whatever is wrong with the network settings.
    ///
    /// # Errors
    /// [`Error::NoHome`] and [`Error::File`].
    pub fn for_wipe(common: &Common) -> Result<Self> {
        let directory = match &common.dir {
            Some(directory) => directory.clone(),
            None => default_directory(|name| std::env::var_os(name)).ok_or(Error::NoHome)?,
        };
        let directory =
            std::path::absolute(&directory).map_err(Error::file(&directory, "found"))?;
        Ok(Self {
            directory,
            network: NetworkSettings::default(),
            key_storage: KeyStorage::Keyring,
            ask_password: false,
            timeout: common.timeout,
            offline: common.offline,
            json: common.json,
        })
    }
}

/// The system's place for a user's data. Variables that hold no absolute path count as not set.
fn default_directory(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let path = |name| {
        variable(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let base = if cfg!(target_os = "macos") {
        path("HOME")?.join("Library/Application Support")
    } else {
        match path("XDG_DATA_HOME") {
            Some(path) => path,
            None => path("HOME")?.join(".local/share"),
        }
    };
    Some(base.join("save-dweb"))
}

fn prepare(directory: &Path) -> Result<()> {
    let made = fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory);
    match made {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Err(Error::File {
                path: directory.to_owned(),
                action: "used as a directory",
                source: io::ErrorKind::NotADirectory.into(),
            });
        }
        other => other.map_err(Error::file(directory, "created"))?,
    }
    let mode = fs::metadata(directory)
        .map_err(Error::file(directory, "read"))?
        .permissions()
        .mode();
    if mode & 0o077 != 0 {
        // It may hold other things and be open on purpose, so its mode is left alone. The socket has its own.
        tracing::warn!("other users of this machine can enter the directory");
    }
    Ok(())
}

fn read_network(path: &Path) -> Result<NetworkSettings> {
    let text = fs::read(path).map_err(Error::file(path, "read"))?;
    serde_json::from_slice(&text).map_err(|source| Error::BadSettings {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::Arguments;

    #[test]
    #[cfg(target_os = "linux")]
    fn the_default_follows_the_base_directory_specification() {
        let with = |pairs: &'static [(&str, &str)]| {
            default_directory(move |name| {
                let found = pairs.iter().find(|(key, _)| *key == name);
                found.map(|(_, value)| value.into())
            })
        };
        assert_eq!(
            with(&[("HOME", "/h")]),
            Some("/h/.local/share/save-dweb".into())
        );
        assert_eq!(
            with(&[("HOME", "/h"), ("XDG_DATA_HOME", "/d")]),
            Some("/d/save-dweb".into())
        );
        assert_eq!(
            with(&[("HOME", "/h"), ("XDG_DATA_HOME", "relative")]),
            Some("/h/.local/share/save-dweb".into())
        );
        assert_eq!(with(&[]), None);
    }

    #[test]
    fn a_new_directory_is_private() {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("a/b");
        prepare(&directory).unwrap();
        let mode = fs::metadata(&directory).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
    }

    #[test]
    fn a_file_in_the_way_is_named() {
        let parent = tempfile::tempdir().unwrap();
        let file = parent.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(matches!(prepare(&file), Err(Error::File { path, .. }) if path == file));
    }

    fn common(line: &[&str]) -> Common {
        let line = [&["save", "wipe"], line].concat();
        Arguments::try_parse_from(line).unwrap().common
    }

    #[test]
    fn wiping_reads_no_file_and_makes_no_directory() {
        let parent = tempfile::tempdir().unwrap();
        let path = |name: &str| parent.path().join(name).display().to_string();
        let (directory, missing) = (path("device"), path("missing"));
        for option in [
            &["--network", &missing][..],
            &["--password-file", &missing],
            &["--ask-password"],
        ] {
            let common = common(&[&["--dir", &directory], option].concat());
            let settings = Settings::for_wipe(&common).unwrap();
            assert_eq!(settings.directory, Path::new(&directory));
            assert!(!settings.ask_password);
        }
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0);
    }

    #[test]
    fn bad_network_settings_are_named() {
        let parent = tempfile::tempdir().unwrap();
        let file = parent.path().join("network.json");
        fs::write(&file, "{\"insecure_storage\": 7}").unwrap();
        assert!(matches!(
            read_network(&file),
            Err(Error::BadSettings { .. })
        ));
        fs::write(&file, "{\"insecure_storage\": true}").unwrap();
        assert!(read_network(&file).unwrap().insecure_storage);
    }
}
