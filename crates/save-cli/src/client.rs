//! The asking side: over the socket of a running `save run`, or of a node that this process starts for the moment.

use std::time::Duration;

use futures::{SinkExt as _, StreamExt as _};
use save_backend::{Backend, KeyStorage};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tokio_util::codec::Framed;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Result};
use crate::keys::Keys;
use crate::ops::{self, BACKLOG, Device, Operation};
use crate::protocol::{Call, Frame, FrameCodec, PROTOCOL_VERSION};
use crate::settings::Settings;
use crate::socket;

/// How long a backend may take to end: the tunnels' withdrawal has its own limit of three seconds within it.
pub const STOP_LIMIT: Duration = Duration::from_millis(4_400);
/// How often a directory is tried that another command uses.
pub const RETRY_INTERVAL: Duration = Duration::from_millis(200);

/// A way to have requests answered.
pub enum Service {
    /// By a running `save run`.
    Daemon(UnixStream),
    /// By this process.
    Own(Device),
}

impl Service {
    /// Finds the running `save run`, or starts a node. Where another command uses the directory at the moment, waits
    /// for its end as long as the timeout says. Asks for the password where one is needed and there is a terminal.
    ///
    /// # Errors
    /// [`Error::DirectoryInUse`], [`Error::NoKeyStorage`], [`Error::Keys`] and whatever the backend's start gives.
    pub async fn open(settings: &Settings) -> Result<Self> {
        let mut deadline = Instant::now() + settings.timeout;
        let mut told = false;
        let mut keys = Keys::new(settings);
        loop {
            if let Some(stream) = socket::connect(&settings.directory).await? {
                return Ok(Self::Daemon(stream));
            }
            let storage = keys.storage().await?;
            match start(settings, storage).await {
                Ok(backend) => {
                    return Ok(Self::Own(Device {
                        backend,
                        directory: settings.directory.clone(),
                        daemon: None,
                        wiped: CancellationToken::new(),
                    }));
                }
                Err(Error::Keys { error, .. }) if keys.can_ask_again(&error) => {
                    // What the user takes to type does not count.
                    keys.ask_again(&error).await?;
                    deadline = Instant::now() + settings.timeout;
                }
                Err(Error::DirectoryInUse { .. }) if Instant::now() < deadline => {
                    if !told {
                        told = true;
                        tracing::info!("waiting for another command to end");
                    }
                    tokio::time::sleep(RETRY_INTERVAL).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether this process answers the requests itself.
    pub fn is_own(&self) -> bool {
        matches!(self, Self::Own(_))
    }

    /// Asks for something. Dropping the replies cancels it.
    ///
    /// # Errors
    /// [`Error::ConnectionLost`] if the running `save run` has ended meanwhile.
    pub async fn call(
        self,
        settings: &Settings,
        operation: Operation,
    ) -> Result<(Replies, Option<Device>)> {
        let call = Call {
            version: PROTOCOL_VERSION,
            timeout_ms: u64::try_from(settings.timeout.as_millis()).unwrap_or(u64::MAX),
            offline: settings.offline,
            operation,
        };
        match self {
            Self::Daemon(stream) => {
                let mut framed = Framed::new(stream, FrameCodec);
                framed.send(&Frame::Request(call)).await?;
                Ok((Replies::Daemon(Box::new(framed)), None))
            }
            Self::Own(device) => {
                let (sender, frames) = mpsc::channel(BACKLOG);
                let task = tokio::spawn(ops::answer(device.clone(), call, sender)).abort_handle();
                Ok((
                    Replies::Own {
                        frames,
                        _task: AbortOnDrop(task),
                    },
                    Some(device),
                ))
            }
        }
    }
}

/// What comes back for a request.
pub enum Replies {
    /// Over the socket.
    Daemon(Box<Framed<UnixStream, FrameCodec>>),
    /// From this process.
    Own {
        /// The replies.
        frames: mpsc::Receiver<Frame>,
        #[doc(hidden)]
        _task: AbortOnDrop,
    },
}

impl Replies {
    /// The next reply; none when the request is done.
    ///
    /// # Errors
    /// [`Error::Remote`] if the request failed, [`Error::ConnectionLost`] and [`Error::Protocol`] if the running
    /// `save run` is no help.
    pub async fn next(&mut self) -> Result<Option<Frame>> {
        let frame = match self {
            Self::Daemon(framed) => framed.next().await.transpose()?,
            Self::Own { frames, .. } => frames.recv().await,
        };
        match frame {
            None => Err(Error::ConnectionLost),
            Some(Frame::Done) => Ok(None),
            Some(Frame::Failed(failure)) => Err(Error::Remote(failure)),
            Some(frame) => Ok(Some(frame)),
        }
    }
}

/// Ends a task when it is dropped.
pub struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Starts a backend, once.
///
/// # Errors
/// [`Error::DirectoryInUse`] if another process uses the directory, [`Error::NoKeyStorage`] if the system has no
/// keyring, [`Error::Keys`] if it is the wrong key, and whatever else the backend's start gives.
pub async fn start(settings: &Settings, keys: KeyStorage) -> Result<Backend> {
    let builder = Backend::builder()
        .directory(&settings.directory)
        .network(settings.network.clone())
        .offline(settings.offline)
        .key_storage(keys);
    undisturbed(builder.start())
        .await?
        .map_err(|error| explained(settings, error))
}

/// Takes everything away that is in the directory, once.
///
/// # Errors
/// As [`start`].
pub async fn wipe(settings: &Settings) -> Result<()> {
    let builder = Backend::builder().directory(&settings.directory);
    undisturbed(builder.wipe())
        .await?
        .map_err(|error| explained(settings, error))
}

/// Says what can be done.
fn explained(settings: &Settings, error: save_backend::Error) -> Error {
    use save_backend::Error as E;
    let advice = match &error {
        E::DirectoryInUse => {
            return Error::DirectoryInUse {
                directory: settings.directory.clone(),
                limit: settings.timeout,
            };
        }
        E::KeyringUnavailable { reason } => {
            return Error::NoKeyStorage {
                reason: reason.clone(),
            };
        }
        E::PasswordRequired => {
            "give it with --password-file or SAVE_PASSWORD, or start the command at a terminal"
        }
        E::KeyFileRequired => "give it with --key-file",
        E::WrongKey => "nothing was changed",
        E::NotWrapped => "leave it away, and use `save key change` to protect them",
        E::InsecureKeyStorage => {
            "allow that with --insecure-key-storage, and use `save key change` to protect them"
        }
        E::KeyLost => "restore the keyring or the directory, or use `save wipe` to begin anew",
        _ => return Error::from(error),
    };
    Error::Keys { error, advice }
}

/// Ends a backend, withdrawing its tunnels, in bounded time.
///
/// # Errors
/// [`Error::SlowStop`] if it took longer than [`STOP_LIMIT`], and whatever the backend's stop gives.
pub async fn stop(backend: &Backend) -> Result<()> {
    let backend = backend.clone();
    let stop = undisturbed(async move { backend.stop().await });
    match tokio::time::timeout(STOP_LIMIT, stop).await {
        Ok(stopped) => Ok(stopped??),
        Err(_) => Err(Error::SlowStop { limit: STOP_LIMIT }),
    }
}

/// Runs to the end what must not be dropped half way: Veilid panics if its start or its end is. Where nobody waits any more, the
/// end of the process ends it.
async fn undisturbed<T: Send + 'static>(
    work: impl Future<Output = T> + Send + 'static,
) -> Result<T> {
    tokio::spawn(work).await.map_err(|error| Error::Crashed {
        reason: error.to_string(),
    })
}
