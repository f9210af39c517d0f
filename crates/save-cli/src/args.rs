//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use save_backend::LinkKind;

/// Archive files with a small group, without a server.
#[derive(Debug, Parser)]
#[command(
    name = "save",
    version,
    arg_required_else_help = true,
    subcommand_required = true,
    after_help = "Start with `save group create NAME` or `save group join`. `save help COMMAND` has examples.",
    after_long_help = after_long_help()
)]
pub struct Arguments {
    /// What holds for every command.
    #[command(flatten)]
    pub common: Common,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// What holds for every command.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Global options")]
pub struct Common {
    /// Where this device keeps its groups, files and keys [default: the system's place for a user's data]
    #[arg(long, global = true, env = "SAVE_DIR", value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// A JSON file with network settings [default: the public Veilid network]
    #[arg(long, global = true, env = "SAVE_NETWORK", value_name = "FILE")]
    pub network: Option<PathBuf>,
    /// The group, by name or by the beginning of its key [default: the only one]
    #[arg(
        long,
        short,
        global = true,
        env = "SAVE_GROUP",
        value_name = "NAME|KEY"
    )]
    pub group: Option<String>,
    /// Print one JSON object per line, failures too
    #[arg(long, global = true)]
    pub json: bool,
    /// How many seconds the network or a member may be silent
    #[arg(long, global = true, value_name = "SECONDS", default_value = "60", value_parser = seconds)]
    pub timeout: Duration,
    /// Use what is on this device, and stay off the network; if `save run` is running, never wait for it
    #[arg(long, global = true)]
    pub offline: bool,
    /// The file with the password that protects the keys
    ///
    /// Its first line without the line break. Without this option the password can stand in SAVE_PASSWORD; at a terminal it is
    /// asked for when it is needed.
    #[arg(
        long,
        global = true,
        env = "SAVE_PASSWORD_FILE",
        value_name = "FILE",
        conflicts_with_all = ["key_file", "ask_password", "insecure_key_storage"]
    )]
    pub password_file: Option<PathBuf>,
    /// The file that protects the keys; made by the first command
    ///
    /// It belongs on another medium than the directory. Without it, nothing on this device can be read.
    #[arg(
        long,
        global = true,
        env = "SAVE_KEY_FILE",
        value_name = "FILE",
        conflicts_with_all = ["ask_password", "insecure_key_storage"]
    )]
    pub key_file: Option<PathBuf>,
    /// Protect the keys by a password that is asked for
    #[arg(long, global = true, conflicts_with = "insecure_key_storage")]
    pub ask_password: bool,
    /// Keep the keys in a plain file, on a machine without a keyring
    ///
    /// Everybody who can read the directory can then read the keys, and with them all that is archived. A network
    /// settings file with "insecure_storage": true does the same.
    #[arg(long, global = true, env = "SAVE_INSECURE_KEY_STORAGE", value_parser = clap::builder::FalseyValueParser::new())]
    pub insecure_key_storage: bool,
    /// Log to standard error; twice for more. RUST_LOG says it in detail
    #[arg(long, short, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

/// A command.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve this device's files to its groups until interrupted
    ///
    /// Others can fetch your files while this runs. The other commands use it while it runs, and start a node of
    /// their own for the moment otherwise. SIGINT and SIGTERM end it within 5 seconds; a second one ends it at once.
    Run,
    /// Create, join and list groups
    #[command(subcommand)]
    Group(GroupCommand),
    /// List the members of a group
    Members {
        /// Ask the network first
        #[arg(long)]
        refresh: bool,
    },
    /// Archive files
    Put(Put),
    /// List the files of all members
    ///
    /// Shows what this device knows, which `save run` keeps current. In the column HERE stands whether all of the file is on
    /// this device.
    Ls {
        /// Ask the network first
        #[arg(long)]
        refresh: bool,
        /// Instead, the versions that another device of yours replaced or deleted, until the next collection of garbage
        #[arg(long, conflicts_with = "refresh")]
        replaced: bool,
    },
    /// Read a file back
    Get(Get),
    /// Bring all members' files to this device
    ///
    /// What nobody can give at the moment stays wanted: `save run` fetches it as soon as somebody has it. Done again when all is
    /// here, it asks no member anything. The exit code is 9 if something is missing.
    #[command(after_help = "Examples:
  save sync
  save sync Press --member Ana")]
    Sync {
        /// The group, by name or by the beginning of its key [default: as --group]
        #[arg(value_name = "GROUP")]
        of: Option<String>,
        /// Only this member's files: a name or the beginning of a key
        #[arg(long, value_name = "MEMBER")]
        member: Option<String>,
    },
    /// List what is wanted and not here yet
    ///
    /// Files that were asked for when nobody had them, and members whose files are being synchronised. `save run` fetches them as
    /// soon as somebody has them.
    Wanted,
    /// Want a file no longer
    Forget {
        /// Its path in the archive [default: all files of the member]
        #[arg(required_unless_present = "from")]
        path: Option<String>,
        /// Whose file: a name or the beginning of a key
        #[arg(long, value_name = "MEMBER")]
        from: Option<String>,
    },
    /// Take one of this device's files out of the archive
    Rm {
        /// Its path in the archive
        path: String,
    },
    /// Say how this device is doing
    Status,
    /// Ask a member for a sign of life
    Ping {
        /// A name or the beginning of a key [default: all others]
        member: Option<String>,
    },
    /// Read everything that is on this device and check it
    ///
    /// What is damaged counts as missing from then on, and is fetched again when it is asked for. The exit code is 14 if
    /// anything was.
    Verify,
    /// Protect this device's keys in another way
    #[command(subcommand)]
    Key(KeyCommand),
    /// Take everything that this device keeps away, for good
    ///
    /// First the keys, without which nothing can be read any more, then all the rest. Neither password nor key file is needed. What
    /// other members have of this device's files stays with them. Flash memory can keep remains of what was removed for
    /// a while. If it is cut off, do it again. The exit code is 3 if there is no device in the directory.
    Wipe {
        /// Really do it
        #[arg(long)]
        yes: bool,
    },
}

/// What can be done with the keys.
#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Protect the keys in another way, and replace them
    ///
    /// Without an option, a new password is asked for, or taken from SAVE_NEW_PASSWORD. The present one is given as with
    /// every other command. From then on only the new one opens this device.
    #[command(after_help = "Examples:
  save key change                       asks for the old password and the new one
  save --password-file old key change --new-password-file new
  save key change --new-key-file /media/stick/save.key")]
    Change(KeyChange),
}

/// The arguments of `key change`.
#[derive(Args, Debug)]
#[group(multiple = false)]
pub struct KeyChange {
    /// By the password in the first line of this file
    #[arg(long, value_name = "FILE")]
    pub new_password_file: Option<PathBuf>,
    /// By this file, which is made if there is none
    #[arg(long, value_name = "FILE")]
    pub new_key_file: Option<PathBuf>,
    /// By the system's keyring alone
    #[arg(long)]
    pub keyring: bool,
    /// By nothing
    #[arg(long)]
    pub insecure: bool,
}

/// What can be done with groups.
#[derive(Debug, Subcommand)]
pub enum GroupCommand {
    /// Create a group
    ///
    /// Works offline; the group is published when the network can be reached.
    Create {
        /// What the group is called; only its members can read it
        name: String,
        /// What this device is called in it; only its members can read it
        #[arg(long = "as", value_name = "ME", default_value = "anonymous")]
        me: String,
    },
    /// Join a group by its link
    #[command(after_help = "Examples:
  save group join --as Ana              asks for the link
  save group join --file link.txt
  pass show press-link | save group join -")]
    Join(Join),
    /// List this device's groups
    List,
    /// Print a link into a group: by default whoever reads it is a member
    ///
    /// Hand it on over a channel that you trust. It cannot be taken back.
    #[command(after_help = "Examples:
  save group link > link.txt
  save group link --label 'Press pool, for Ben' --expires 2d
  save group link --qr
  save group link --png link.png")]
    Link(LinkArguments),
    /// Give the group another name, for everybody
    #[command(after_help = "Examples:
  save group rename 'Press pool 2026'
  save group rename --me Benedict       what this member is called in it")]
    Rename {
        /// The new name
        name: String,
        /// Rename this device's member instead
        #[arg(long)]
        me: bool,
    },
    /// Leave the group, with all devices of this member
    ///
    /// Tells the others, and takes the group's keys, lists and files away from this device, except for files that another group needs.
    /// What this member archived goes from the others' devices too. Where the others cannot be told now, `save run` or the next command
    /// does that.
    Leave {
        /// Really do it
        #[arg(long)]
        yes: bool,
        /// Forget the group on this device only, and tell nobody
        #[arg(long)]
        this_device: bool,
    },
    /// Move the group to new keys, after a device was lost
    ///
    /// Makes a new group, tells all members but those who are left out, and copies this device's files. The others follow with
    /// `save group moved --follow`. docs/security.md says what this protects, and what it cannot.
    #[command(after_help = "Examples:
  save group move --without Cleo        Cleo's phone was lost")]
    Move {
        /// Members who are not told: a name or the beginning of a key
        #[arg(long, value_name = "MEMBER", required = true)]
        without: Vec<String>,
        /// Tell of this group, which was made before, instead of making one
        #[arg(long, value_name = "NAME|KEY")]
        to: Option<String>,
    },
    /// Say whether the group moved to new keys, and who says so
    ///
    /// If it was that member's device that was lost, whoever has it says so. Ask them over another channel before you follow.
    Moved {
        /// Join the new group, and copy this device's files into it
        #[arg(long)]
        follow: bool,
    },
    /// Copy this device's files into another group as well
    Copy {
        /// The other group, by name or by the beginning of its key
        #[arg(value_name = "NAME|KEY")]
        to: String,
    },
    /// Publish this device's files without what another device of yours wrote
    ///
    /// For a second device that is lost, and whose list of files nobody has: `save group list` then says that "merge" is not published. Everybody
    /// is asked for the list once more. Files that only it names go from everybody's devices, unless that device comes back.
    Overrule {
        /// Really do it
        #[arg(long)]
        yes: bool,
    },
}

/// The arguments of `group link`.
#[derive(Args, Debug)]
pub struct LinkArguments {
    /// What the link gives
    #[arg(long, value_name = "KIND", default_value = "member", value_parser = link_kind)]
    pub kind: LinkKind,
    /// Let programs refuse the link after this time: 30m, 12h, 7d, 2w
    ///
    /// A courtesy of honest programs, no lock: the keys in the link stay valid, and whoever has it can take the expiry out.
    #[arg(long, value_name = "DURATION", value_parser = lifetime)]
    pub expires: Option<Duration>,
    /// Call the link so; everybody who sees the link can read it
    #[arg(long, value_name = "TEXT", value_parser = label)]
    pub label: Option<String>,
    /// Draw it as a QR code in the terminal; with --json, give the form for QR codes
    ///
    /// Black on white, whatever the terminal's colours are. Where standard output is no terminal, NO_COLOR is set or TERM is "dumb", no
    /// colour is set, and the code is right for light text on a dark background. It stays in what can be scrolled back.
    #[arg(long)]
    pub qr: bool,
    /// Write it as a QR code into a PNG file that only you can read, or `-` for standard output
    #[arg(long, value_name = "FILE")]
    pub png: Option<PathBuf>,
    /// Overwrite a file that exists
    #[arg(long, short, requires = "png")]
    pub force: bool,
}

/// The arguments of `group join`.
#[derive(Args, Debug)]
pub struct Join {
    /// The link, or `-` for standard input
    ///
    /// An argument can be seen by every process of this machine and stays in the shell's history.
    #[arg(conflicts_with = "file")]
    pub link: Option<String>,
    /// Read the link from a file
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// What this device is called in the group; only its members can read it
    #[arg(long = "as", value_name = "ME", default_value = "anonymous")]
    pub me: String,
}

/// The arguments of `put`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  save put march.jpg notes.txt --to 2026/march
  save put IMG_0001.jpg --path march/crowd.jpg
  save put --recursive photos")]
pub struct Put {
    /// The files
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// The folder in the archive
    #[arg(long, value_name = "FOLDER")]
    pub to: Option<String>,
    /// The path in the archive, for one file
    #[arg(long, value_name = "PATH", conflicts_with_all = ["to", "recursive"])]
    pub path: Option<String>,
    /// Archive what is in directories; symbolic links in them are left out
    #[arg(long, short)]
    pub recursive: bool,
}

/// The arguments of `get`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  save get march/crowd.jpg              writes crowd.jpg
  save get march/crowd.jpg -o photos/   writes photos/crowd.jpg
  save get notes.txt --from Ana -o -    prints it")]
pub struct Get {
    /// Its path in the archive
    pub path: String,
    /// Where to write it: a file, an existing directory, or `-` for standard output [default: its name, here]
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Whose file: a name or the beginning of a key
    #[arg(long, value_name = "MEMBER")]
    pub from: Option<String>,
    /// The version that another device of yours replaced or deleted last, as long as it is here
    #[arg(long, conflicts_with = "from")]
    pub replaced: bool,
    /// Overwrite a file that exists
    #[arg(long, short)]
    pub force: bool,
}

fn link_kind(text: &str) -> Result<LinkKind, String> {
    // A server's link is no group's.
    let given = LinkKind::ALL
        .into_iter()
        .filter(|kind| *kind != LinkKind::Server);
    let mut known = Vec::new();
    for kind in given {
        if kind.as_str() == text {
            return Ok(kind);
        }
        known.push(kind.as_str());
    }
    Err(format!("one of {}", known.join(", ")))
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    // A year is longer than anybody waits, and far from what the clock overflows at.
    if !(0.0..=31_536_000.0).contains(&seconds) {
        return Err("must be between 0 and 31536000".to_owned());
    }
    Ok(Duration::from_secs_f64(seconds))
}

/// A number of minutes, hours, days or weeks.
fn lifetime(text: &str) -> Result<Duration, String> {
    let bad = || "say 30m, 12h, 7d or 2w, for example".to_owned();
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let seconds: u64 = match text.strip_prefix(number) {
        Some("s") => 1,
        Some("m") => 60,
        Some("h") => 3_600,
        Some("d") => 86_400,
        Some("w") => 7 * 86_400,
        _ => return Err(bad()),
    };
    let number: u64 = number.parse().map_err(|_| bad())?;
    match number.checked_mul(seconds) {
        // A hundred years; whoever wants longer wants no expiry.
        Some(seconds @ 1..=3_155_760_000) => Ok(Duration::from_secs(seconds)),
        _ => Err("must be between 1s and 100 years".to_owned()),
    }
}

fn label(text: &str) -> Result<String, String> {
    save_backend::check_label(text)
        .map(str::to_owned)
        .map_err(|problem| problem.to_string())
}

fn after_long_help() -> String {
    format!(
        "Examples:
  save group create 'Press pool' --as Ana
  save group link                       prints the link to hand on
  save group join --as Ben              asks for the link
  save run                              serves until interrupted
  save put crowd.jpg --to march
  save ls
  save get march/crowd.jpg

Keys:
  This device's keys lie in the system's keyring. Where there is none, they are protected by a password
  (--password-file, SAVE_PASSWORD, --ask-password) or a key file (--key-file), from the first command on.

Files:
  DIR/save.sock is the socket of a running `save run`; only its own user can use it.

Exit codes:
{}",
        crate::exit::Code::table()
    )
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn parse(line: &str) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from(line.split(' '))
    }

    #[test]
    fn the_definition_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn every_command_of_the_documentation_parses() {
        for line in [
            "save run",
            "save run --dir d --network n --json -vv",
            "save group create Press --as Ana",
            "save group join -",
            "save group join --file f --as Ana",
            "save group join",
            "save group list",
            "save group link --group Press",
            "save group link --kind replica --group Press",
            "save group rename new",
            "save group rename --me Ana",
            "save group leave --yes",
            "save group leave --yes --this-device",
            "save group move --without Cleo --without Dan",
            "save group move --without Cleo --to New",
            "save group moved",
            "save group moved --follow",
            "save group copy New",
            "save group overrule --yes",
            "save group link --qr --label Ben --expires 7d",
            "save group link --png link.png --force",
            "save members --refresh",
            "save put a b --to c",
            "save put a --path c",
            "save put -r a",
            "save ls --json",
            "save get p -o - --from Ana --force",
            "save rm p",
            "save sync",
            "save sync Press --member Ana --json",
            "save wanted",
            "save forget p",
            "save forget p --from Ana",
            "save forget --from Ana",
            "save status",
            "save ping",
            "save --timeout 2.5 --offline ping Ana",
            "save --password-file p run",
            "save run --key-file k",
            "save --ask-password status",
            "save verify --json",
            "save key change",
            "save key change --new-password-file n --password-file p",
            "save key change --new-key-file n",
            "save key change --keyring",
            "save key change --insecure",
            "save wipe --yes",
        ] {
            if let Err(error) = parse(line) {
                panic!("{line}: {error}");
            }
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for line in [
            "save",
            "save put",
            "save put a --path c --to d",
            "save group join x --file f",
            "save group link --force",
            "save group link --expires 7",
            "save group link --expires 0d",
            "save group link --expires -1d",
            "save group link --expires 1y",
            "save group link --expires d",
            "save group link --expires 1.5h",
            "save group link --expires 99999999999999999999w",
            "save group link --expires 5300w",
            "save group link --label=",
            "save get",
            "save --timeout -1 ls",
            "save --timeout nan ls",
            "save fly",
            "save group link --kind server",
            "save group move",
            "save forget",
            "save --password-file p --key-file k run",
            "save --ask-password --key-file k run",
            "save --insecure-key-storage --password-file p run",
            "save key",
            "save key change --keyring --insecure",
            "save key change --new-key-file a --new-password-file b",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn the_timeout_takes_fractions() {
        let arguments = parse("save ls --timeout 0.5").unwrap();
        assert_eq!(arguments.common.timeout, Duration::from_millis(500));
    }

    #[test]
    fn lifetimes_have_a_unit() {
        for (text, seconds) in [
            ("1s", 1),
            ("30m", 1_800),
            ("12h", 43_200),
            ("7d", 604_800),
            ("2w", 1_209_600),
        ] {
            assert_eq!(lifetime(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
    }

    #[test]
    fn labels_are_trimmed_and_checked() {
        assert_eq!(label(" for Ben "), Ok("for Ben".to_owned()));
        for bad in [" ".to_owned(), "a\nb".to_owned(), "a".repeat(65)] {
            assert!(label(&bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn long_help_has_the_exit_codes() {
        let help = Arguments::command().render_long_help().to_string();
        assert!(help.contains("  3  there is no such group"), "{help}");
        assert!(help.contains("Examples:"));
    }
}
