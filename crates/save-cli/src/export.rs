//! Writing a file that arrives: beside its place first, and moved there when it is complete.

use std::fs::Permissions;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tempfile::NamedTempFile;

use crate::error::{Error, Result};

/// Where the bytes of a file go.
pub enum Export {
    /// To a file, which is there only when it is complete.
    File {
        #[doc(hidden)]
        temporary: Box<NamedTempFile>,
        /// Its place.
        target: PathBuf,
        /// Take the place of a file that is there.
        force: bool,
    },
    /// To standard output, as they come.
    Stdout,
}

impl Export {
    /// Begins a file.
    ///
    /// # Errors
    /// [`Error::File`] if its directory cannot be written.
    pub fn file(target: PathBuf, force: bool) -> Result<Self> {
        // As for any new file; the user's umask takes from it.
        Self::with_mode(target, force, 0o666)
    }

    /// Begins a file that only its owner can read and write.
    ///
    /// # Errors
    /// As [`Export::file`].
    pub fn private_file(target: PathBuf, force: bool) -> Result<Self> {
        Self::with_mode(target, force, 0o600)
    }

    fn with_mode(target: PathBuf, force: bool, mode: u32) -> Result<Self> {
        let parent = match target.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let temporary = tempfile::Builder::new()
            .prefix(".save-")
            .permissions(Permissions::from_mode(mode))
            .tempfile_in(parent)
            .map_err(Error::file(&target, "written"))?;
        Ok(Self::File {
            temporary: Box::new(temporary),
            target,
            force,
        })
    }

    /// The next bytes.
    ///
    /// # Errors
    /// [`Error::File`] or [`Error::Stream`].
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        match self {
            Self::File {
                temporary, target, ..
            } => temporary
                .write_all(bytes)
                .map_err(Error::file(target, "written")),
            Self::Stdout => io::stdout().lock().write_all(bytes).map_err(stdout),
        }
    }

    /// Puts the complete file in its place, with the time at which it was modified (in seconds since 1970).
    ///
    /// # Errors
    /// [`Error::Exists`] if a file came in the way meanwhile, [`Error::File`] or [`Error::Stream`].
    pub fn finish(self, modified: Option<u64>) -> Result<Option<PathBuf>> {
        let (temporary, target, force) = match self {
            Self::Stdout => {
                io::stdout().lock().flush().map_err(stdout)?;
                return Ok(None);
            }
            Self::File {
                temporary,
                target,
                force,
            } => (temporary, target, force),
        };
        let file = temporary.as_file();
        let time = modified
            .and_then(|seconds| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds)));
        if let Some(time) = time {
            // Some file systems cannot hold every time; the file counts all the same.
            let _ = file.set_modified(time);
        }
        file.sync_all().map_err(Error::file(&target, "written"))?;
        let persisted = if force {
            temporary.persist(&target)
        } else {
            temporary.persist_noclobber(&target)
        };
        match persisted {
            Ok(_) => Ok(Some(target)),
            Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => {
                Err(Error::Exists { path: target })
            }
            Err(error) => Err(Error::File {
                path: target,
                action: "written",
                source: error.error,
            }),
        }
    }
}

fn stdout(source: io::Error) -> Error {
    Error::Stream {
        stream: "output",
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_appears_when_it_is_complete() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("file");
        let mut export = Export::file(target.clone(), false).unwrap();
        export.write(b"abc").unwrap();
        assert!(!target.exists());
        export.finish(Some(1_000_000_000)).unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"abc");
        let modified = fs::metadata(&target).unwrap().modified().unwrap();
        assert_eq!(
            modified.duration_since(SystemTime::UNIX_EPOCH).unwrap(),
            Duration::from_secs(1_000_000_000)
        );
    }

    #[test]
    fn what_is_given_up_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let mut export = Export::file(directory.path().join("file"), false).unwrap();
        export.write(b"abc").unwrap();
        drop(export);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_file_that_came_in_the_way_stays() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("file");
        for force in [false, true] {
            let mut export = Export::file(target.clone(), force).unwrap();
            export.write(b"new").unwrap();
            fs::write(&target, "old").unwrap();
            let finished = export.finish(None);
            if force {
                finished.unwrap();
                assert_eq!(fs::read(&target).unwrap(), b"new");
            } else {
                assert!(matches!(finished, Err(Error::Exists { .. })));
                assert_eq!(fs::read(&target).unwrap(), b"old");
            }
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
