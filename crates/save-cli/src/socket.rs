//! The socket of a running `save run`: `DIR/save.sock`, for its own user alone.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixStream};

use crate::error::{Error, Result};

/// The socket's name in the directory.
pub const SOCKET_NAME: &str = "save.sock";
/// What a socket's path may hold on every system that is supported (Linux has 108 bytes with the final zero, macOS 104).
const LONGEST_PATH: usize = 100;

/// Connects to the `save run` of a directory, if one is running.
///
/// # Errors
/// [`Error::SocketPathTooLong`], and [`Error::File`] if there is a socket that cannot be used.
pub async fn connect(directory: &Path) -> Result<Option<UnixStream>> {
    let path = directory.join(SOCKET_NAME);
    let Some(address) = Address::of(directory, SOCKET_NAME)? else {
        return Ok(None);
    };
    match UnixStream::connect(&address.path).await {
        Ok(stream) => Ok(Some(stream)),
        // No socket, or one that a process left behind that did not end in order.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
            ) =>
        {
            Ok(None)
        }
        Err(source) => Err(Error::File {
            path,
            action: "connected to",
            source,
        }),
    }
}

/// A listening socket, removed when it is dropped.
#[derive(Debug)]
pub struct Listener {
    listener: UnixListener,
    path: PathBuf,
    /// The user whose socket it is.
    owner: u32,
}

impl Listener {
    /// Listens in a directory. A socket that was left behind is replaced; call it only while holding the directory.
    ///
    /// # Errors
    /// [`Error::SocketPathTooLong`] and [`Error::File`].
    pub fn bind(directory: &Path) -> Result<Self> {
        let path = directory.join(SOCKET_NAME);
        let fail = |source| Error::File {
            path: path.clone(),
            action: "created",
            source,
        };
        // A socket is born with the mode that the umask leaves it, so it is made where nobody else can reach it, and
        // moved to its place when its mode is right. Moving also replaces what was left behind in one step.
        let nursery = Nursery::new(directory).map_err(fail)?;
        let address =
            Address::of(&nursery.0, "s")?.ok_or_else(|| fail(io::ErrorKind::NotFound.into()))?;
        let listener = UnixListener::bind(&address.path).map_err(fail)?;
        let born = nursery.0.join("s");
        fs::set_permissions(&born, fs::Permissions::from_mode(0o600)).map_err(fail)?;
        let owner = fs::metadata(&born).map_err(fail)?.uid();
        fs::rename(&born, &path).map_err(fail)?;
        Ok(Self {
            listener,
            path,
            owner,
        })
    }

    /// The next connection of this process's own user; others are turned away.
    ///
    /// # Errors
    /// As `accept(2)`.
    pub async fn accept(&self) -> io::Result<UnixStream> {
        loop {
            let (stream, _) = self.listener.accept().await?;
            match stream.peer_cred() {
                Ok(peer) if peer.uid() == self.owner || peer.uid() == 0 => return Ok(stream),
                _ => tracing::warn!("turned another user's connection away"),
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // If it cannot be removed, the next command finds that nobody answers there.
        let _ = fs::remove_file(&self.path);
    }
}

/// A private directory for a moment.
struct Nursery(PathBuf);

impl Nursery {
    fn new(directory: &Path) -> io::Result<Self> {
        let path = directory.join(format!(".save.sock.{}", std::process::id()));
        match fs::DirBuilder::new().mode(0o700).create(&path) {
            // Left behind by a process that had the same number.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                fs::remove_dir_all(&path)?;
                fs::DirBuilder::new().mode(0o700).create(&path)?;
            }
            other => other?,
        }
        Ok(Self(path))
    }
}

impl Drop for Nursery {
    fn drop(&mut self) {
        // It is empty by now; what is left of it harms nobody.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A path that fits into a socket's address, and what keeps it valid.
struct Address {
    path: PathBuf,
    _directory: Option<File>,
}

impl Address {
    /// The address of a socket in a directory; none if the directory does not exist.
    fn of(directory: &Path, name: &str) -> Result<Option<Self>> {
        let path = directory.join(name);
        if path.as_os_str().len() <= LONGEST_PATH {
            return Ok(Some(Self {
                path,
                _directory: None,
            }));
        }
        // The kernel gives every open directory a short name.
        let open = match File::open(directory) {
            Ok(open) => open,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => {
                return Err(Error::File {
                    path: directory.to_owned(),
                    action: "opened",
                    source,
                });
            }
        };
        let short = PathBuf::from(format!("/proc/self/fd/{}", open.as_raw_fd()));
        if !short.is_dir() {
            return Err(Error::SocketPathTooLong { path });
        }
        Ok(Some(Self {
            path: short.join(name),
            _directory: Some(open),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_is_private_and_goes_away() {
        let directory = tempfile::tempdir().unwrap();
        assert!(connect(directory.path()).await.unwrap().is_none());
        let listener = Listener::bind(directory.path()).unwrap();
        let path = directory.path().join(SOCKET_NAME);
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let (accepted, connected) = tokio::join!(listener.accept(), connect(directory.path()));
        accepted.unwrap();
        assert!(connected.unwrap().is_some());
        drop(listener);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn a_socket_that_was_left_behind_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(SOCKET_NAME);
        // Dropping the listener closes it, but leaves the file.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        assert!(connect(directory.path()).await.unwrap().is_none());
        let listener = Listener::bind(directory.path()).unwrap();
        assert!(connect(directory.path()).await.unwrap().is_some());
        drop(listener);
    }

    #[tokio::test]
    #[cfg(target_os = "linux")]
    async fn a_long_path_works() {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("d".repeat(150));
        assert!(connect(&directory).await.unwrap().is_none());
        fs::create_dir(&directory).unwrap();
        let listener = Listener::bind(&directory).unwrap();
        let (accepted, connected) = tokio::join!(listener.accept(), connect(&directory));
        accepted.unwrap();
        assert!(connected.unwrap().is_some());
    }
}
