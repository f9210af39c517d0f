//! What kind of failure a command ended with, and the exit code that goes with it.

use serde::{Deserialize, Serialize};

/// The kind of a failure: a word in JSON, an exit code for the shell. Both are part of the command's interface and
/// do not change their meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Code {
    /// The command line is wrong.
    Usage,
    /// There is no such group, member, file or device.
    NotFound,
    /// More than one group, member or file fits.
    Ambiguous,
    /// A file is in the way, and would have been overwritten.
    AlreadyExists,
    /// The link is not one that can be used.
    BadLink,
    /// A path that cannot stand in an archive.
    BadPath,
    /// The network cannot be reached.
    Offline,
    /// A group or a member does not answer.
    NoAnswer,
    /// Another process uses the directory.
    DirectoryInUse,
    /// The keys cannot be stored or read.
    KeyStorage,
    /// A file or a directory on this machine cannot be read or written.
    Io,
    /// The group cannot take this: it is full, or can be read only.
    Refused,
    /// What arrived or is stored is not what it should be.
    Damaged,
    /// The running `save` does not speak this version's language.
    Protocol,
    /// The keys are protected by a password or a key file, and none was given.
    KeyRequired,
    /// The password or the key file is not the right one.
    WrongKey,
    /// Ended by a signal.
    Interrupted,
    /// Something else went wrong; the message says what. A word of a newer version is read as this.
    #[serde(other)]
    Failed,
}

impl Code {
    /// Every kind, in the order of the exit codes.
    pub const ALL: [Self; 18] = [
        Self::Failed,
        Self::Usage,
        Self::NotFound,
        Self::Ambiguous,
        Self::AlreadyExists,
        Self::BadLink,
        Self::BadPath,
        Self::Offline,
        Self::NoAnswer,
        Self::DirectoryInUse,
        Self::KeyStorage,
        Self::Io,
        Self::Refused,
        Self::Damaged,
        Self::Protocol,
        Self::KeyRequired,
        Self::WrongKey,
        Self::Interrupted,
    ];

    /// The exit code of a command that failed in this way.
    pub fn exit(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::Usage => 2,
            Self::NotFound => 3,
            Self::Ambiguous => 4,
            Self::AlreadyExists => 5,
            Self::BadLink => 6,
            Self::BadPath => 7,
            Self::Offline => 8,
            Self::NoAnswer => 9,
            Self::DirectoryInUse => 10,
            Self::KeyStorage => 11,
            Self::Io => 12,
            Self::Refused => 13,
            Self::Damaged => 14,
            Self::Protocol => 15,
            Self::KeyRequired => 16,
            Self::WrongKey => 17,
            Self::Interrupted => 130,
        }
    }

    /// The word that stands for this kind in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Usage => "usage",
            Self::NotFound => "not_found",
            Self::Ambiguous => "ambiguous",
            Self::AlreadyExists => "already_exists",
            Self::BadLink => "bad_link",
            Self::BadPath => "bad_path",
            Self::Offline => "offline",
            Self::NoAnswer => "no_answer",
            Self::DirectoryInUse => "directory_in_use",
            Self::KeyStorage => "key_storage",
            Self::Io => "io",
            Self::Refused => "refused",
            Self::Damaged => "damaged",
            Self::Protocol => "protocol",
            Self::KeyRequired => "key_required",
            Self::WrongKey => "wrong_key",
            Self::Interrupted => "interrupted",
        }
    }

    /// One line for the table in `save --help` and in the documentation.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Failed => "anything else; the message says what",
            Self::Usage => "the command line is wrong",
            Self::NotFound => "there is no such group, member, file or device",
            Self::Ambiguous => "more than one group, member or file fits",
            Self::AlreadyExists => "a file is in the way (see --force)",
            Self::BadLink => "the link cannot be used; the message says which part is wrong",
            Self::BadPath => "the path cannot stand in an archive",
            Self::Offline => "the network cannot be reached",
            Self::NoAnswer => "the group or the member does not answer",
            Self::DirectoryInUse => "another process uses the directory",
            Self::KeyStorage => "the keys cannot be stored or read",
            Self::Io => "a local file or directory cannot be read or written",
            Self::Refused => "the group is full, or can be read only",
            Self::Damaged => "what arrived or is stored is not what it should be",
            Self::Protocol => "the running `save` is of another version",
            Self::KeyRequired => {
                "the keys are protected by a password or a key file, and none was given"
            }
            Self::WrongKey => "the password or the key file is not the right one",
            Self::Interrupted => "ended by a signal",
        }
    }

    /// The table for `save --help`.
    pub fn table() -> String {
        let mut table = String::from("    0  success\n");
        for code in Self::ALL {
            table.push_str(&format!("  {:>3}  {}\n", code.exit(), code.meaning()));
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn codes_are_distinct_and_words_round_trip() {
        let exits: HashSet<u8> = Code::ALL.iter().map(|code| code.exit()).collect();
        assert_eq!(exits.len(), Code::ALL.len());
        assert!(!exits.contains(&0));
        for code in Code::ALL {
            let json = serde_json::to_string(&code).unwrap();
            assert_eq!(json, format!("{:?}", code.as_str()));
            assert_eq!(serde_json::from_str::<Code>(&json).unwrap(), code);
        }
    }

    #[test]
    fn a_word_of_a_newer_version_is_a_failure() {
        assert_eq!(
            serde_json::from_str::<Code>("\"quota\"").unwrap(),
            Code::Failed
        );
    }

    #[test]
    fn the_documented_numbers_stand() {
        // Scripts depend on these.
        let numbers: Vec<u8> = Code::ALL.iter().map(|code| code.exit()).collect();
        assert_eq!(
            numbers,
            [
                1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 130
            ]
        );
        for code in Code::ALL {
            let row = format!(
                "| {} | `{}` | {} |",
                code.exit(),
                code.as_str(),
                code.meaning()
            );
            assert!(
                include_str!("../README.md").contains(&row),
                "the README lacks: {row}"
            );
        }
    }
}
