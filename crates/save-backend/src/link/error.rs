//! What can be wrong with a link.

use std::fmt;

use super::{LINK_VERSION, LabelProblem, LinkExtension, LinkKind};
use crate::UtcTime;

/// Which part of a link an error is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LinkPart {
    /// The number after `save+dweb:`.
    Version,
    /// The word that names the kind.
    Kind,
    /// The part before the `#`.
    Public,
    /// The part after the `#`.
    Secret,
}

impl fmt::Display for LinkPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Version => "the version",
            Self::Kind => "the kind",
            Self::Public => "the part before the '#'",
            Self::Secret => "the part after the '#'",
        })
    }
}

/// Why a text is not a usable link. No variant ever holds a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    /// The text does not begin with `save+dweb:`: it is something else altogether. Ask for the link again.
    #[error("this is not a link: it does not begin with 'save+dweb:'")]
    NotALink,
    /// The text begins as a link does, and is longer than any link can be. Take away what does not belong to it.
    #[error("this is no link: it has {bytes} bytes, and a link has {limit} at the most")]
    TooLong {
        /// How long the text is.
        bytes: usize,
        /// How long a link can be.
        limit: usize,
    },
    /// What stands in the place of the version is no plain number. Copy the link again.
    #[error("this link is mistyped in the version: it is not a number")]
    BadVersion,
    /// The link was made by a newer version of Save. Update, or ask for a link made by this version.
    #[error(
        "this link has version {version}, and this program understands {LINK_VERSION}: a newer one is needed"
    )]
    Newer {
        /// The version in the link.
        version: u32,
    },
    /// The kind is none that this version knows: mistyped, or from a newer Save.
    #[error("this link is of a kind that this program does not know: '{kind}'")]
    UnknownKind {
        /// The word in the link, at most 16 characters of it.
        kind: String,
    },
    /// The end of the link is missing. Copy it again, to the end.
    #[error("this link is cut short in {part}: its end is missing")]
    CutShort {
        /// Where it ends too early.
        part: LinkPart,
    },
    /// A character stands there that cannot: in links there are letters and the digits 2 to 7, and not all of these can be the last one
    /// of a part. Copy the link again.
    #[error(
        "this link is mistyped in {part}: a character that cannot be there, at character {position}"
    )]
    WrongCharacter {
        /// Where the mistake is.
        part: LinkPart,
        /// The place of the character, counted from 1 over the trimmed link.
        position: usize,
    },
    /// A part has more or fewer characters than it says itself. Copy the link again.
    #[error("this link is mistyped in {part}: characters are missing, or there are too many")]
    WrongLength {
        /// Where the mistake is.
        part: LinkPart,
    },
    /// A part has the right characters in number and kind, and not the ones that it was made with; or it belongs to another link, or to one
    /// of another kind. Copy the link again.
    #[error(
        "this link is mistyped in {part}: its checksum is wrong, so characters were changed or come from another link"
    )]
    WrongChecksum {
        /// Where the mistake is.
        part: LinkPart,
    },
    /// The part before the `#` is sound, and goes on with something else. Copy the link again.
    #[error("this link is mistyped: there is no '#' at character {position}")]
    MissingSeparator {
        /// Where it should be, counted from 1 over the trimmed link.
        position: usize,
    },
    /// A complete link, followed by something else. Take away what follows.
    #[error(
        "this link is followed by something that does not belong to it, from character {position} on"
    )]
    TrailingJunk {
        /// Where the link is over, counted from 1 over the trimmed link.
        position: usize,
    },
    /// The checksum is right, but what it protects is shorter than what this kind of link holds: whoever made it made it wrong.
    #[error("this link was made wrongly: {part} does not hold all that a link of its kind holds")]
    MissingFields {
        /// The part that is too short.
        part: LinkPart,
    },
    /// The checksum is right, but an extension in it runs past the end: whoever made the link made it wrong.
    #[error("this link was made wrongly: an extension in {part} is not complete")]
    BrokenExtension {
        /// The part that the extension stands in.
        part: LinkPart,
    },
    /// A link was to be made of keys that are not all of one cryptosystem, or not of 32 bytes.
    #[error("no link can be made of these keys: those for {part} are of another kind or length")]
    Keys {
        /// The part that they were for.
        part: LinkPart,
    },
    /// The link's keys belong to a cryptosystem that this version does not know. Update.
    #[error("this link uses a cryptosystem that this program does not know")]
    UnknownCrypto,
    /// The link has an extension twice: whoever made it made it wrong.
    #[error("this link was made wrongly: it has more than one {extension}")]
    Repeated {
        /// What it has twice.
        extension: LinkExtension,
    },
    /// The link's expiry is no number of 8 bytes: whoever made it made it wrong.
    #[error("this link was made wrongly: its expiry has {bytes} bytes instead of 8")]
    ExpiryLength {
        /// How many it has.
        bytes: usize,
    },
    /// What stands in the link as its label, or was to become it, is none.
    #[error("the link's label cannot be used: {problem}")]
    Label {
        /// What is wrong with it.
        problem: LabelProblem,
    },
    /// The link has so many extensions of a newer version that another one cannot be added.
    #[error("this link is too long already: there is no room for its {extension}")]
    NoRoom {
        /// What was to be added.
        extension: LinkExtension,
    },
    /// The link was good until a time that is over. Ask for a new one.
    #[error("this link has expired: it was good until {} UTC", UtcTime(*.at))]
    Expired {
        /// From when on it is refused, in seconds since 1970.
        at: u64,
    },
    /// The secret in the link does not belong to its public key: whoever made it made it wrong.
    #[error("this link was made wrongly: its secret does not belong to its public key")]
    KeyMismatch,
    /// A sound link of a kind that does not do what it was given for.
    #[error("this is a {got} link, and a {wanted} link is needed here")]
    WrongKind {
        /// The kind of the link.
        got: LinkKind,
        /// The kind that would do.
        wanted: LinkKind,
    },
}

impl LinkError {
    /// Always `false`: the same text gives the same error, and what has expired stays so.
    pub fn is_retryable(&self) -> bool {
        false
    }
}
