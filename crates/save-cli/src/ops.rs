//! What a request means: the one dispatcher, used by `save run` for what comes over its socket and by a command
//! that has started a node of its own, so that both do the same.

mod device;
mod files;
mod groups;
mod lifecycle;
mod output;
mod selection;
mod sync;

use std::path::PathBuf;
use std::time::Duration;

use save_backend::Backend;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Failure, Result};
use crate::items::Secret;
use crate::protocol::{Call, Frame, PROTOCOL_VERSION};
pub use output::Output;
pub(crate) use selection::short_key;

/// How often work on this device's disk counts as a sign of life.
const SIGN_OF_LIFE: Duration = Duration::from_secs(1);
/// How many frames may wait for a slow reader.
pub const BACKLOG: usize = 16;

/// What can be asked for. `group` is a name or the beginning of a key, and may be left out where there is one group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "operation", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Operation {
    /// How the device is doing.
    Status,
    /// A new group.
    Create {
        /// Its name.
        name: String,
        /// What this device calls itself in it.
        me: String,
    },
    /// Joining a group.
    Join {
        /// The link.
        link: Secret,
        /// What this device calls itself in it.
        me: String,
    },
    /// The groups of this device.
    Groups,
    /// A link into a group.
    Link {
        /// Which group.
        group: Option<String>,
        /// What it is to give: the word in a link.
        kind: String,
    },
    /// A new name.
    Rename {
        /// Which group.
        group: Option<String>,
        /// The name.
        name: String,
        /// Of this device's member instead of the group.
        me: bool,
    },
    /// Leaving a group.
    Leave {
        /// Which group.
        group: Option<String>,
        /// Forget it on this device only.
        this_device: bool,
    },
    /// Moving a group to new keys.
    Move {
        /// Which group.
        group: Option<String>,
        /// Who is not told: names or beginnings of keys.
        without: Vec<String>,
        /// The group that it moves to; a new one if left out.
        to: Option<String>,
    },
    /// Whether a group moved.
    Moved {
        /// Which group.
        group: Option<String>,
        /// Join the new one.
        follow: bool,
    },
    /// Copying this device's files into another group.
    Copy {
        /// Which group.
        group: Option<String>,
        /// Into which.
        to: String,
    },
    /// Publishing without what another device of this member wrote.
    Overrule {
        /// Which group.
        group: Option<String>,
    },
    /// The members of a group.
    Members {
        /// Which group.
        group: Option<String>,
        /// Ask the network first.
        refresh: bool,
    },
    /// Archiving files.
    Put {
        /// Which group.
        group: Option<String>,
        /// The files.
        files: Vec<PutFile>,
    },
    /// The files of a group.
    List {
        /// Which group.
        group: Option<String>,
        /// Ask the network first.
        refresh: bool,
    },
    /// The bytes of a file.
    Get {
        /// Which group.
        group: Option<String>,
        /// Whose file: a name or the beginning of a key.
        member: Option<String>,
        /// The file's path.
        path: String,
    },
    /// The versions that another device of the member replaced.
    Replaced {
        /// Which group.
        group: Option<String>,
    },
    /// The bytes of the newest of them.
    GetReplaced {
        /// Which group.
        group: Option<String>,
        /// The file's path.
        path: String,
    },
    /// Bringing all files here.
    Sync {
        /// Which group.
        group: Option<String>,
        /// Whose files: a name or the beginning of a key; everybody's if left out.
        member: Option<String>,
    },
    /// What is wanted and not here yet.
    Wanted {
        /// Which group.
        group: Option<String>,
    },
    /// Wanting something no longer.
    Forget {
        /// Which group.
        group: Option<String>,
        /// Whose: a name or the beginning of a key.
        member: Option<String>,
        /// The file's path; all files of the member if left out.
        path: Option<String>,
    },
    /// Taking a file of this device out of the archive.
    Remove {
        /// Which group.
        group: Option<String>,
        /// The file's path.
        path: String,
    },
    /// Asking members for a sign of life.
    Ping {
        /// Which group.
        group: Option<String>,
        /// Which member; all others if left out.
        member: Option<String>,
    },
    /// Reading everything on this device.
    Verify,
    /// Protecting the keys in another way.
    ChangeKeys {
        /// In which.
        to: NewKeys,
    },
    /// Taking everything away that this device keeps.
    Wipe,
}

/// How the keys are to be protected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "protection", rename_all = "snake_case")]
#[non_exhaustive]
pub enum NewKeys {
    /// By the system's keyring.
    Keyring,
    /// By a password.
    Password {
        /// The password.
        password: Secret,
    },
    /// By a key file.
    KeyFile {
        /// Where it is or is to be, absolute.
        path: PathBuf,
    },
    /// By nothing.
    Insecure,
}

/// A file to archive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PutFile {
    /// Where it is on this machine, absolute.
    pub source: PathBuf,
    /// Its path in the archive.
    pub path: String,
}

/// The device that a request is about.
#[derive(Clone)]
pub struct Device {
    /// The backend.
    pub backend: Backend,
    /// Its directory.
    pub directory: PathBuf,
    /// The process id to report, if this process is a `save run`.
    pub daemon: Option<u32>,
    /// Cancelled when the device is no more.
    pub wiped: CancellationToken,
}

/// Answers one request: results and progress, then [`Frame::Done`] or [`Frame::Failed`]. Dropping the future cancels
/// the request.
pub async fn answer(device: Device, call: Call, frames: mpsc::Sender<Frame>) {
    let output = Output::new(frames);
    let limit = Duration::from_millis(call.timeout_ms);
    let result = tokio::select! {
        result = perform(&device, call, &output, limit) => result,
        // What waits for the network has limits of its own, which say more; this one comes after them.
        () = output.silence(limit.saturating_add(Duration::from_secs(5))) => Err(Error::Silence { limit }),
    };
    let last = match &result {
        Ok(()) => Frame::Done,
        Err(error) => Frame::Failed(Failure::from(error)),
    };
    // Nobody is there to be told if the reader has gone.
    let _ = output.send(last).await;
}

/// What all operations share.
struct Context<'a> {
    device: &'a Device,
    backend: &'a Backend,
    output: &'a Output,
    limit: Duration,
    offline: bool,
}

impl Context<'_> {
    /// Waits for what happens on this device alone. It takes as long as it takes, which is not the silence of others.
    async fn here<T>(&self, work: impl Future<Output = T>) -> T {
        tokio::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                () = tokio::time::sleep(SIGN_OF_LIFE) => self.output.touch(),
            }
        }
    }
}

async fn perform(device: &Device, call: Call, output: &Output, limit: Duration) -> Result<()> {
    if call.version != PROTOCOL_VERSION {
        return Err(Error::Protocol {
            reason: format!(
                "version {} instead of {PROTOCOL_VERSION} was asked for",
                call.version
            ),
        });
    }
    let context = Context {
        device,
        backend: &device.backend,
        output,
        limit,
        offline: call.offline,
    };
    match call.operation {
        Operation::Status => context.status().await,
        Operation::Create { name, me } => context.create(&name, &me).await,
        Operation::Join { link, me } => context.join(&link, &me).await,
        Operation::Groups => context.groups().await,
        Operation::Link { group, kind } => context.link(group.as_deref(), &kind).await,
        Operation::Rename { group, name, me } => context.rename(group.as_deref(), &name, me).await,
        Operation::Leave { group, this_device } => {
            context.leave(group.as_deref(), this_device).await
        }
        Operation::Move { group, without, to } => {
            context
                .move_away(group.as_deref(), &without, to.as_deref())
                .await
        }
        Operation::Moved { group, follow } => context.moved(group.as_deref(), follow).await,
        Operation::Copy { group, to } => context.copy(group.as_deref(), &to).await,
        Operation::Overrule { group } => context.overrule(group.as_deref()).await,
        Operation::Members { group, refresh } => context.members(group.as_deref(), refresh).await,
        Operation::Put { group, files } => context.put(group.as_deref(), files).await,
        Operation::List { group, refresh } => context.list(group.as_deref(), refresh).await,
        Operation::Get {
            group,
            member,
            path,
        } => {
            context
                .get(group.as_deref(), member.as_deref(), &path)
                .await
        }
        Operation::Replaced { group } => context.replaced(group.as_deref()).await,
        Operation::GetReplaced { group, path } => {
            context.get_replaced(group.as_deref(), &path).await
        }
        Operation::Sync { group, member } => {
            context.sync(group.as_deref(), member.as_deref()).await
        }
        Operation::Wanted { group } => context.wanted(group.as_deref()).await,
        Operation::Forget {
            group,
            member,
            path,
        } => {
            context
                .forget(group.as_deref(), member.as_deref(), path.as_deref())
                .await
        }
        Operation::Remove { group, path } => context.remove(group.as_deref(), &path).await,
        Operation::Ping { group, member } => {
            context.ping(group.as_deref(), member.as_deref()).await
        }
        Operation::Verify => context.verify().await,
        Operation::ChangeKeys { to } => context.change_keys(to).await,
        Operation::Wipe => context.wipe().await,
    }
}
