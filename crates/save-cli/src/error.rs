//! What can go wrong, and the form in which it crosses the socket and is printed.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use save_backend::ErrorKind;
use serde::{Deserialize, Serialize};

use crate::exit::Code;

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The backend failed. Ask its own `is_retryable`.
    #[error(transparent)]
    Backend(#[from] save_backend::Error),
    /// The running `save` answered a request with a failure.
    #[error("{}", .0.message)]
    Remote(Failure),
    /// The link given to `group join` cannot be used.
    #[error(transparent)]
    Link(#[from] save_backend::LinkError),
    /// The link is longer than the largest QR code. Hand it on as text.
    #[error("this link is too long for a QR code, with {characters} characters")]
    TooLongForQr {
        /// How long it is.
        characters: usize,
    },
    /// The terminal would break the lines of the QR code. Widen it, or use `--png`.
    #[error(
        "the QR code needs {needed} columns, and this terminal has {columns}: widen it, or use --png FILE"
    )]
    TerminalTooNarrow {
        /// How wide the terminal is.
        columns: usize,
        /// How wide it has to be.
        needed: usize,
    },
    /// The picture of a QR code could not be made.
    #[error("the picture cannot be made: {reason}")]
    Picture {
        /// Why.
        reason: String,
    },
    /// The command line asks for something that makes no sense. Correct it.
    #[error("{0}")]
    Usage(String),
    /// This device is in no group yet. Create one or join one.
    #[error("this device is in no group: use `save group create NAME` or `save group join`")]
    NoGroups,
    /// No group of this device fits the name or key prefix.
    #[error("no group is called '{wanted}', and no group's key begins with it")]
    NoSuchGroup {
        /// What was asked for.
        wanted: String,
    },
    /// No member of the group fits the name or key prefix.
    #[error("no member is called '{wanted}', and no member's key begins with it")]
    NoSuchMember {
        /// What was asked for.
        wanted: String,
    },
    /// No member's list, as far as it is known here, has a file at this path.
    #[error("no member has a file at '{path}'{}", if *.asked { "" } else { ", as far as this device knows" })]
    NoSuchFile {
        /// The path that was asked for.
        path: String,
        /// The network was asked as well.
        asked: bool,
    },
    /// No version that was replaced is here.
    #[error("no replaced version of '{path}' is on this device")]
    NotReplaced {
        /// The path that was asked for.
        path: String,
    },
    /// More than one thing fits. Say which one is meant.
    #[error("more than one {what} fits '{wanted}': {}", .choices.join(", "))]
    Ambiguous {
        /// Of what there is more than one.
        what: &'static str,
        /// What was asked for.
        wanted: String,
        /// What fits.
        choices: Vec<String>,
    },
    /// A path that cannot stand in an archive. Choose another one.
    #[error("'{path}' cannot be a path in an archive: {reason}")]
    BadPath {
        /// The path.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A directory was given where a file is wanted.
    #[error("'{}' is a directory: use --recursive to archive what is in it", .path.display())]
    IsDirectory {
        /// The directory.
        path: PathBuf,
    },
    /// A device, socket or pipe was given where a file is wanted.
    #[error("'{}' is not a regular file", .path.display())]
    NotAFile {
        /// What is no file.
        path: PathBuf,
    },
    /// Writing would overwrite a file. Remove it, choose another name, or use `--force`.
    #[error("'{}' exists already: use --force to overwrite it", .path.display())]
    Exists {
        /// The file in the way.
        path: PathBuf,
    },
    /// A local file or directory could not be read or written.
    #[error("'{}' cannot be {action}: {source}", .path.display())]
    File {
        /// The file or directory.
        path: PathBuf,
        /// What was tried: "read", "written", …
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// Standard input or output failed.
    #[error("standard {stream} failed: {source}")]
    Stream {
        /// "input" or "output".
        stream: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// A file did not have the length that its entry says.
    #[error("'{path}' came with {got} bytes instead of {wanted}")]
    WrongLength {
        /// The file's path in the archive.
        path: String,
        /// Bytes that came.
        got: u64,
        /// Bytes that should have come.
        wanted: u64,
    },
    /// A file that is on this device cannot be read.
    #[error("'{path}' cannot be read from this device's store: {source}")]
    Stored {
        /// The file's path in the archive.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The file is not on this device, and `--offline` forbids to fetch it.
    #[error("'{path}' is not on this device, and --offline forbids to fetch it")]
    NotHere {
        /// The file's path in the archive.
        path: String,
    },
    /// A command that needs the network was given `--offline`.
    #[error("this needs the network, and --offline was given")]
    NeedsNetwork,
    /// Nothing happened for as long as `--timeout` allows. Try again, or allow more.
    #[error("nothing came for {} s (see --timeout)", .limit.as_secs())]
    Silence {
        /// The time allowed.
        limit: Duration,
    },
    /// Nobody on the network knows the group, or nobody who does is online.
    #[error("the group does not answer; tried for {} s (see --timeout)", .limit.as_secs())]
    GroupDoesNotAnswer {
        /// The time allowed.
        limit: Duration,
    },
    /// None of the members that were asked answered.
    #[error("no member answered")]
    NobodyAnswered,
    /// Not everything is here after a synchronisation.
    #[error("{}", incomplete(*missing))]
    Incomplete {
        /// How many are known to be missing.
        missing: u64,
    },
    /// Nothing of this kind is wanted.
    #[error("this is not wanted")]
    NotWanted,
    /// A `save run` uses this directory already.
    #[error("`save run` is running in '{}' already", .directory.display())]
    AlreadyRunning {
        /// The directory.
        directory: PathBuf,
    },
    /// Another command uses this directory and did not end in time.
    #[error("another process uses '{}' and has not ended within {} s", .directory.display(), .limit.as_secs())]
    DirectoryInUse {
        /// The directory.
        directory: PathBuf,
        /// How long was waited.
        limit: Duration,
    },
    /// The path of the socket is longer than the system allows, and there is no way around it here.
    #[error("'{}' is too long a path for a socket: choose a directory with a shorter one", .path.display())]
    SocketPathTooLong {
        /// The socket's path.
        path: PathBuf,
    },
    /// No directory was given, and the system does not say where a user's data belong.
    #[error("there is no home directory to keep the data in: use --dir")]
    NoHome,
    /// The network settings file is not valid.
    #[error("the network settings in '{}' are not valid: {source}", .path.display())]
    BadSettings {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// No key storage of the system answers.
    #[error(
        "the system's key storage cannot be used ({reason}): unlock it, or on a machine without one protect the keys by a \
         password (--password-file, SAVE_PASSWORD, --ask-password) or a key file (--key-file)"
    )]
    NoKeyStorage {
        /// What the system said.
        reason: String,
    },
    /// The keys are protected in another way than the command line says, or what protects them is not there.
    #[error("{error}: {advice}")]
    Keys {
        /// What the backend says.
        error: save_backend::Error,
        /// What can be done.
        advice: &'static str,
    },
    /// Some of what is on this device is damaged. It counts as missing now, and is fetched again when it is asked for.
    #[error(
        "{count} pieces of what is on this device are damaged: they count as missing now, and are fetched again when they are asked for"
    )]
    DamagedPieces {
        /// How many.
        count: usize,
    },
    /// What came over the socket is not what this version expects.
    #[error(
        "the running `save` does not speak this version's language ({reason}): stop it and start it again"
    )]
    Protocol {
        /// What was not understood.
        reason: String,
    },
    /// The running `save` ended before it had answered.
    #[error("the running `save` has ended before it answered")]
    ConnectionLost,
    /// The user ended the command.
    #[error("interrupted")]
    Interrupted,
    /// The backend panicked, which is a fault of this program.
    #[error("the backend has crashed: {reason}")]
    Crashed {
        /// What it said.
        reason: String,
    },
    /// Stopping took longer than it may and was cut off. Nothing is lost; tunnels that are still published expire.
    #[error("stopping was cut off after {:.1} s", .limit.as_secs_f32())]
    SlowStop {
        /// The time allowed.
        limit: Duration,
    },
}

impl Error {
    /// For `map_err` on operations on a file.
    pub fn file(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File {
            path,
            action,
            source,
        }
    }

    /// The kind of this failure.
    pub fn code(&self) -> Code {
        match self {
            Self::Backend(error) | Self::Keys { error, .. } => backend_code(error.kind()),
            Self::Remote(failure) => failure.code,
            Self::Link(_) | Self::TooLongForQr { .. } => Code::BadLink,
            Self::Usage(_)
            | Self::TerminalTooNarrow { .. }
            | Self::IsDirectory { .. }
            | Self::NeedsNetwork => Code::Usage,
            Self::NoGroups
            | Self::NoSuchGroup { .. }
            | Self::NoSuchMember { .. }
            | Self::NoSuchFile { .. }
            | Self::NotReplaced { .. }
            | Self::NotHere { .. } => Code::NotFound,
            Self::Ambiguous { .. } => Code::Ambiguous,
            Self::BadPath { .. } => Code::BadPath,
            Self::Exists { .. } => Code::AlreadyExists,
            Self::File { source, .. } if source.kind() == io::ErrorKind::NotFound => Code::NotFound,
            Self::Stored { source, .. } if source.kind() == io::ErrorKind::InvalidData => {
                Code::Damaged
            }
            Self::Stored { .. }
            | Self::NotAFile { .. }
            | Self::File { .. }
            | Self::Stream { .. }
            | Self::SocketPathTooLong { .. }
            | Self::NoHome
            | Self::BadSettings { .. } => Code::Io,
            Self::WrongLength { .. } | Self::DamagedPieces { .. } => Code::Damaged,
            Self::NotWanted => Code::NotFound,
            Self::Silence { .. }
            | Self::GroupDoesNotAnswer { .. }
            | Self::NobodyAnswered
            | Self::Incomplete { .. } => Code::NoAnswer,
            Self::AlreadyRunning { .. } | Self::DirectoryInUse { .. } => Code::DirectoryInUse,
            Self::NoKeyStorage { .. } => Code::KeyStorage,
            Self::Protocol { .. } => Code::Protocol,
            Self::Picture { .. }
            | Self::ConnectionLost
            | Self::Crashed { .. }
            | Self::SlowStop { .. } => Code::Failed,
            Self::Interrupted => Code::Interrupted,
        }
    }

    /// Whether the same command can succeed later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Backend(error) | Self::Keys { error, .. } => error.is_retryable(),
            Self::Remote(failure) => failure.retryable,
            Self::NoSuchFile { asked, .. } => !asked,
            Self::Silence { .. }
            | Self::GroupDoesNotAnswer { .. }
            | Self::NobodyAnswered
            | Self::Incomplete { .. }
            | Self::DirectoryInUse { .. }
            | Self::ConnectionLost
            | Self::NoKeyStorage { .. }
            | Self::WrongLength { .. } => true,
            _ => false,
        }
    }
}

/// What a synchronisation left over.
fn incomplete(missing: u64) -> String {
    match missing {
        0 => "all that is known of is here, and there may be more that could not be seen at the moment".to_owned(),
        1 => "a file cannot be had at the moment; `save run` fetches it as soon as somebody has it".to_owned(),
        missing => format!(
            "{missing} files cannot be had at the moment; `save run` fetches them as soon as somebody has them"
        ),
    }
}

/// The exit code for a kind of backend error.
fn backend_code(kind: ErrorKind) -> Code {
    match kind {
        ErrorKind::Invalid => Code::Usage,
        ErrorKind::Link => Code::BadLink,
        ErrorKind::Path => Code::BadPath,
        ErrorKind::NotFound => Code::NotFound,
        ErrorKind::Ambiguous => Code::Ambiguous,
        ErrorKind::Offline => Code::Offline,
        ErrorKind::NoAnswer => Code::NoAnswer,
        ErrorKind::Refused => Code::Refused,
        ErrorKind::DirectoryInUse => Code::DirectoryInUse,
        ErrorKind::KeyStorage => Code::KeyStorage,
        ErrorKind::KeyRequired => Code::KeyRequired,
        ErrorKind::WrongKey => Code::WrongKey,
        ErrorKind::Io => Code::Io,
        ErrorKind::Damaged => Code::Damaged,
        _ => Code::Failed,
    }
}

/// A failure as it crosses the socket, and as `--json` prints it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What kind of failure.
    pub code: Code,
    /// What happened, for people.
    pub message: String,
    /// Whether the same command can succeed later.
    pub retryable: bool,
}

impl From<&Error> for Failure {
    fn from(error: &Error) -> Self {
        if let Error::Remote(failure) = error {
            return failure.clone();
        }
        Self {
            code: error.code(),
            message: chain(error),
            retryable: error.is_retryable(),
        }
    }
}

/// An error's message and those of its causes, each said once.
fn chain(error: &Error) -> String {
    let mut message = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let text = error.to_string();
        if !message.contains(&text) {
            message.push_str(": ");
            message.push_str(&text);
        }
        cause = error.source();
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_of_the_daemon_keeps_its_code() {
        let failure = Failure {
            code: Code::Offline,
            message: "no network".into(),
            retryable: true,
        };
        assert_eq!(Failure::from(&Error::Remote(failure.clone())), failure);
    }

    #[test]
    fn causes_are_said_once() {
        let error = Error::file(Path::new("a"), "read")(io::Error::other("broken"));
        assert_eq!(chain(&error), "'a' cannot be read: broken");
    }

    #[test]
    fn a_missing_file_is_not_found() {
        let error = Error::file(Path::new("a"), "read")(io::ErrorKind::NotFound.into());
        assert_eq!(error.code(), Code::NotFound);
    }
}
