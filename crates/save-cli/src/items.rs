//! What commands give back: one [`Item`] is one line of `--json`, and one frame on the socket.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::error::Failure;

/// A text that gives access. It crosses the socket and goes to standard output, but `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes the text over.
    pub fn new(text: impl Into<Zeroizing<String>>) -> Self {
        Self(text.into())
    }

    /// The text.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl Serialize for Secret {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self::new(String::deserialize(deserializer)?))
    }
}

/// One result of a command. In JSON its variant is the field `type`, in snake case.
///
/// Keys are written as Veilid writes them (`VLD0:…`), sizes are bytes, times are seconds since 1970.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Item {
    /// A group of this device.
    Group {
        /// The group's public key.
        id: String,
        /// Its name, where known.
        name: Option<String>,
        /// How many members are known.
        members: usize,
        /// What this device is in it: `member`, `reader` or `replica`.
        role: String,
        /// Whether this device can archive in it.
        writable: bool,
        /// Whether everything that was done here has been published.
        published: bool,
        /// What has not: `group`, `member`, `files`, `merge`, `slot`, `tunnel`.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pending: Vec<String>,
    },
    /// A link.
    Link {
        /// The group's public key.
        group: String,
        /// What the link grants.
        kind: String,
        /// The link itself.
        link: Secret,
        /// From when on programs refuse it, if it expires.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        expires: Option<u64>,
        /// What it is called, if it is called anything.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        label: Option<String>,
    },
    /// A picture of a link's QR code that has been written.
    LinkPicture {
        /// The group's public key.
        group: String,
        /// What the link grants.
        kind: String,
        /// The file it was written to.
        file: PathBuf,
        /// From when on programs refuse the link, if it expires.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        expires: Option<u64>,
        /// What the link is called, if it is called anything.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        label: Option<String>,
    },
    /// A member of a group.
    Member {
        /// The name that the member gave itself.
        name: Option<String>,
        /// The member's public key.
        repo: String,
        /// What they are, where that is known: `member`, `reader` or `replica`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        role: Option<String>,
        /// Whether it is this device.
        is_self: bool,
        /// How many files the member has.
        files: Option<u64>,
        /// How many bytes the member's files have.
        bytes: Option<u64>,
        /// Devices of theirs that can be found now, this one excepted.
        tunnels: usize,
        /// When one of them was last heard of, if ever.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        last_seen: Option<u64>,
        /// Why and for how long a device of theirs is being left alone, if one is.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ignored: Option<LeftAlone>,
    },
    /// A device that reads or stores along without being a member.
    Guest {
        /// Its id in this group, in hex.
        device: String,
        /// What it says that it is, if it says it: `reader` or `replica`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        role: Option<String>,
        /// When it was last heard of.
        last_seen: u64,
    },
    /// A group that this device is in no more.
    Left {
        /// The group's public key.
        group: String,
        /// Whether the others know. Otherwise `save run` or the next command tells them, except where only this device left.
        told: bool,
        /// Whether only this device left: the group was forgotten here, and the others are never told.
        #[serde(default)]
        this_device: bool,
    },
    /// What a member says of a group that moved to new keys.
    Moved {
        /// The group's public key.
        group: String,
        /// The public key of the member who says so.
        by: String,
        /// The name of that member.
        member: Option<String>,
        /// The new group's public key.
        to: String,
    },
    /// Files that were copied into another group.
    Copied {
        /// The other group's public key.
        group: String,
        /// Files that were copied.
        copied: u64,
        /// Files that were there already.
        there: u64,
        /// Files that are not on this device, and so were not copied.
        missing: u64,
    },
    /// A file in an archive.
    File {
        /// Its path.
        path: String,
        /// Its size.
        size: u64,
        /// Its media type, where known.
        media_type: Option<String>,
        /// When it was last modified, where known.
        modified: Option<u64>,
        /// The public key of the member who archived it.
        repo: String,
        /// The name of that member.
        member: Option<String>,
        /// Whether that member is this device.
        is_self: bool,
        /// Whether all of the file is on this device.
        here: bool,
    },
    /// A file that has been archived on this device.
    Stored {
        /// Its path.
        path: String,
        /// Its size.
        size: u64,
    },
    /// A file that has been taken out of the archive on this device.
    Removed {
        /// Its path.
        path: String,
    },
    /// What has become of a change.
    Publication {
        /// The network holds the change, so that others can learn of it. Otherwise it is stored here and will be published when
        /// `save run` reaches the network.
        published: bool,
        /// Why not.
        reason: Option<String>,
    },
    /// A file that has been fetched and written.
    Fetched {
        /// Its path in the archive.
        path: String,
        /// The file it was written to; none for standard output.
        file: Option<PathBuf>,
        /// Its size.
        size: u64,
    },
    /// How far a member's files are on this device after a synchronisation.
    Synced {
        /// The member's public key.
        repo: String,
        /// The member's name, where known.
        member: Option<String>,
        /// Files that are here.
        files: u64,
        /// All files.
        files_total: u64,
        /// Bytes that are here, sealed as they travel.
        bytes: u64,
        /// All bytes, sealed as they travel.
        bytes_total: u64,
        /// Whether the newest list and all files of it are here.
        complete: bool,
        /// Why not.
        #[serde(skip_serializing_if = "Option::is_none")]
        error: Option<Failure>,
    },
    /// Something that is wanted and not here yet.
    Wanted {
        /// The member's public key.
        repo: String,
        /// The member's name, where known.
        member: Option<String>,
        /// The file's path; none for all files of the member.
        path: Option<String>,
        /// Since when.
        since: u64,
        /// Whether it is being fetched at the moment.
        active: bool,
    },
    /// Something that is not wanted any more.
    Forgotten {
        /// The member's public key.
        repo: String,
        /// The file's path; none for all files of the member.
        path: Option<String>,
    },
    /// A member who answered a ping.
    Pong {
        /// The member's public key.
        repo: String,
        /// The member's name.
        member: Option<String>,
        /// The time there and back.
        milliseconds: f64,
    },
    /// A member who did not answer a ping.
    Silent {
        /// The member's public key.
        repo: String,
        /// The member's name.
        member: Option<String>,
        /// Why.
        error: Failure,
    },
    /// How this device is doing.
    Status {
        /// The directory.
        directory: PathBuf,
        /// The process id of the `save run` that answered; none if the command had to start a node itself.
        daemon: Option<u32>,
        /// Whether the network can be used.
        online: bool,
        /// All that the backend says of itself.
        backend: serde_json::Value,
    },
    /// What was found when everything on this device was read.
    Verified {
        /// How many pieces were read: files, and the lists of them.
        pieces: u64,
        /// Their bytes.
        bytes: u64,
        /// The hashes of those that were damaged.
        damaged: Vec<String>,
    },
    /// The keys are protected in another way from now on.
    KeysChanged {
        /// In which: `keyring`, `password`, `key_file` or `insecure`.
        protection: String,
    },
    /// Everything that this device kept has been taken away.
    Wiped {
        /// The directory.
        directory: PathBuf,
    },
    /// `save run` serves from now on.
    Running {
        /// The directory.
        directory: PathBuf,
        /// Its process id.
        pid: u32,
    },
    /// `save run` has reached the network.
    Online,
    /// `save run` has ended; everything is on disk.
    Stopped {
        /// How long it took.
        milliseconds: u64,
        /// Whether the Veilid node ended in order. Otherwise it was waiting for others who do not answer, and was cut off.
        complete: bool,
    },
}

/// A member's device that is being left alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftAlone {
    /// Why: `silent`, `lied`, `starving`, or a word of a newer version.
    pub reason: String,
    /// How often in a row.
    pub strikes: u32,
    /// For how many more seconds.
    pub seconds: u64,
}

/// How far a request has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Activity {
    /// What is being done.
    pub stage: Stage,
    /// Bytes done.
    pub done: u64,
    /// Bytes in all, where known.
    pub total: Option<u64>,
}

/// What is being done for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Stage {
    /// Waiting for the network.
    Connecting,
    /// Sealing and storing.
    Storing,
    /// Telling the network.
    Publishing,
    /// Asking who has it.
    Finding,
    /// Bytes are coming.
    Fetching,
    /// Checking what came.
    Verifying,
    /// Something that this version does not know.
    #[serde(other)]
    Other,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_no_link() {
        let item = Item::Link {
            group: "g".into(),
            kind: "member".into(),
            link: Secret::new("save+dweb:secret".to_owned()),
            expires: None,
            label: None,
        };
        assert!(!format!("{item:?}").contains("secret"));
        assert!(
            serde_json::to_string(&item)
                .unwrap()
                .contains("save+dweb:secret")
        );
    }

    #[test]
    fn what_an_older_version_says_of_leaving_can_be_read() {
        let json = r#"{"type":"left","group":"g","told":false}"#;
        let item = Item::Left {
            group: "g".into(),
            told: false,
            this_device: false,
        };
        assert_eq!(serde_json::from_str::<Item>(json).unwrap(), item);
    }

    #[test]
    fn the_type_is_the_first_field() {
        let json = serde_json::to_string(&Item::Removed { path: "a".into() }).unwrap();
        assert_eq!(json, r#"{"type":"removed","path":"a"}"#);
    }
}
