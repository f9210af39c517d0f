//! The path of a file in a repo.

use std::{fmt, str::FromStr};

use caseless::Caseless;
use unicode_normalization::UnicodeNormalization;

/// The path of a file in a repo: relative, components separated by `/`, in Unicode NFC.
///
/// A path is safe to make on any common file system, below a directory of the caller's: no component is empty, `.`, `..`, a
/// device name of Windows, or ends with a dot or a space; none contains a backslash, a control character or a character
/// that turns the direction of the text. A component has at most [`MAX_COMPONENT`](Self::MAX_COMPONENT) bytes, a path at
/// most [`MAX`](Self::MAX).
///
/// Two paths that differ in case alone name the same file; see [`key`](Self::key).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryPath(String);

/// Why a text is not an [`EntryPath`]. Says which rule, not the text, so that it may be logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PathError {
    /// There is nothing.
    #[error("path is empty")]
    Empty,
    /// It begins with `/`. Paths are relative.
    #[error("path is absolute")]
    Absolute,
    /// Two `/` in a row, or one at the end.
    #[error("path has an empty component")]
    EmptyComponent,
    /// A component is `.` or `..`.
    #[error("path has a component `.` or `..`")]
    Dots,
    /// A component ends with a dot or a space, which Windows drops without a word.
    #[error("path has a component that ends with a dot or a space")]
    TrailingDotOrSpace,
    /// A component is a device name of Windows, such as `CON`, also with an ending.
    #[error("path has a component that is reserved on Windows")]
    Reserved,
    /// A control character, a line separator, a character that turns the direction of text, or one that is none.
    #[error("path has the forbidden character U+{:04X}", u32::from(*character))]
    Character {
        /// The character.
        character: char,
    },
    /// A backslash, which is a separator on Windows.
    #[error("path has a backslash")]
    Backslash,
    /// A component is too long.
    #[error("path has a component of {len} bytes, more than {max}", max = EntryPath::MAX_COMPONENT)]
    ComponentTooLong {
        /// Its bytes, in NFC.
        len: usize,
    },
    /// The path is too long.
    #[error("path has {len} bytes, more than {max}", max = EntryPath::MAX)]
    TooLong {
        /// Its bytes, in NFC.
        len: usize,
    },
    /// The stored path is not in NFC. Only a faulty program writes such a one; what a user types is brought into NFC.
    #[error("path is not in Unicode NFC")]
    NotNormal,
}

impl EntryPath {
    /// The longest path, in bytes of UTF-8.
    pub const MAX: usize = 512;
    /// The longest component, in bytes of UTF-8: what common file systems take.
    pub const MAX_COMPONENT: usize = 255;

    /// Reads a path, and brings it into NFC.
    ///
    /// # Errors
    /// The first rule of [`PathError`] that it breaks.
    pub fn parse(text: &str) -> Result<Self, PathError> {
        // Most paths are ASCII, and the tables of Unicode are slow.
        let path = match text.is_ascii() {
            true => text.to_owned(),
            false => text.nfc().collect(),
        };
        if path.is_empty() {
            return Err(PathError::Empty);
        }
        if path.starts_with('/') {
            return Err(PathError::Absolute);
        }
        path.split('/').try_for_each(check_component)?;
        if path.len() > Self::MAX {
            return Err(PathError::TooLong { len: path.len() });
        }
        Ok(Self(path))
    }

    /// Reads a path that was stored, and so has to be in NFC already.
    pub(crate) fn parse_stored(text: &str) -> Result<Self, PathError> {
        let path = Self::parse(text)?;
        if path.0 == text {
            Ok(path)
        } else {
            Err(PathError::NotNormal)
        }
    }

    /// The path as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its components, from the outermost.
    pub fn components(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }

    /// Its last component.
    #[must_use]
    pub fn file_name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or(&self.0)
    }

    /// The path with all differences of case taken away (Unicode's canonical caseless matching). Paths with equal keys
    /// are the same file.
    #[must_use]
    pub fn key(&self) -> String {
        match self.0.is_ascii() {
            true => self.0.to_ascii_lowercase(),
            false => without_case(&self.0),
        }
    }
}

fn without_case(text: &str) -> String {
    text.chars().nfd().default_case_fold().nfd().collect()
}

impl FromStr for EntryPath {
    type Err = PathError;

    fn from_str(text: &str) -> Result<Self, PathError> {
        Self::parse(text)
    }
}

impl TryFrom<&str> for EntryPath {
    type Error = PathError;

    fn try_from(text: &str) -> Result<Self, PathError> {
        Self::parse(text)
    }
}

impl AsRef<str> for EntryPath {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for EntryPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for EntryPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A debug print tends to end in a log, where no file name belongs.
        f.write_str("EntryPath([redacted])")
    }
}

fn check_component(component: &str) -> Result<(), PathError> {
    if component.is_empty() {
        return Err(PathError::EmptyComponent);
    }
    if component == "." || component == ".." {
        return Err(PathError::Dots);
    }
    for character in component.chars() {
        if character == '\\' {
            return Err(PathError::Backslash);
        }
        if is_forbidden(character) {
            return Err(PathError::Character { character });
        }
    }
    if component.ends_with(['.', ' ']) {
        return Err(PathError::TrailingDotOrSpace);
    }
    if is_reserved(component) {
        return Err(PathError::Reserved);
    }
    if component.len() > EntryPath::MAX_COMPONENT {
        return Err(PathError::ComponentTooLong {
            len: component.len(),
        });
    }
    Ok(())
}

fn is_forbidden(character: char) -> bool {
    let code = u32::from(character);
    character.is_control()
        // Line and paragraph separator, the overrides and isolates of direction, the byte order mark.
        || matches!(code, 0x2028..=0x202e | 0x2066..=0x2069 | 0xfeff)
        // Unicode's "noncharacters".
        || matches!(code, 0xfdd0..=0xfdef)
        || code & 0xfffe == 0xfffe
}

/// Windows takes these for devices, whatever stands after the first dot, and with superscript digits too.
fn is_reserved(component: &str) -> bool {
    let stem = component
        .split('.')
        .next()
        .unwrap_or(component)
        .trim_end_matches(' ')
        .to_ascii_uppercase();
    if matches!(
        stem.as_str(),
        "CON" | "PRN" | "AUX" | "NUL" | "CONIN$" | "CONOUT$"
    ) {
        return true;
    }
    let Some(port) = stem
        .strip_prefix("COM")
        .or_else(|| stem.strip_prefix("LPT"))
    else {
        return false;
    };
    let mut rest = port.chars();
    matches!(
        (rest.next(), rest.next()),
        (Some('0'..='9' | '¹' | '²' | '³'), None)
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn error(text: &str) -> PathError {
        EntryPath::parse(text).unwrap_err()
    }

    #[test]
    fn ordinary_paths_are_accepted() {
        for text in [
            "a",
            "photos/2024/IMG 0001.jpg",
            ".hidden",
            "..a",
            "a..b",
            "...a",
            "name with  spaces",
            " leading",
            "Screenshot 10:30.png",
            "what?.txt",
            "日本語/写真.png",
            "CONSOLE",
            "com",
            "COM10",
            "COMA",
            "aux2.txt",
            "lpt",
            "می\u{200c}خواهم.txt",
        ] {
            assert_eq!(EntryPath::parse(text).unwrap().as_str(), text);
        }
        let path = EntryPath::parse("a/b/c.txt").unwrap();
        assert_eq!(path.file_name(), "c.txt");
        assert_eq!(path.components().collect::<Vec<_>>(), ["a", "b", "c.txt"]);
    }

    #[test]
    fn ascii_needs_no_tables() {
        let all: String = (0..128u8).map(char::from).collect();
        assert_eq!(all.nfc().collect::<String>(), all);
        assert_eq!(without_case(&all), all.to_ascii_lowercase());
    }

    #[test]
    fn each_rule_has_its_error() {
        assert_eq!(error(""), PathError::Empty);
        assert_eq!(error("/etc/passwd"), PathError::Absolute);
        for text in ["a//b", "a/"] {
            assert_eq!(error(text), PathError::EmptyComponent);
        }
        for text in [".", "..", "../a", "a/..", "a/../b", "a/./b"] {
            assert_eq!(error(text), PathError::Dots);
        }
        for text in ["a.", "a ", "dir./a", "a . ", "...", ". ."] {
            assert_eq!(error(text), PathError::TrailingDotOrSpace, "{text}");
        }
        for text in [
            "CON",
            "con",
            "a/Nul.txt",
            "com1",
            "LPT9.tar.gz",
            "COM¹",
            "aux .txt",
            "conin$",
            "prn.a.b",
        ] {
            assert_eq!(error(text), PathError::Reserved, "{text}");
        }
        assert_eq!(error("a\\b"), PathError::Backslash);
        for character in [
            '\0',
            '\n',
            '\u{7f}',
            '\u{85}',
            '\u{202e}',
            '\u{2066}',
            '\u{2028}',
            '\u{feff}',
            '\u{ffff}',
            '\u{1fffe}',
            '\u{fdd0}',
        ] {
            assert_eq!(
                error(&format!("a{character}b")),
                PathError::Character { character }
            );
        }
    }

    #[test]
    fn lengths_are_bounded_at_the_byte() {
        let longest = "é".repeat(127) + "x";
        assert!(EntryPath::parse(&longest).is_ok());
        assert_eq!(
            error(&(longest.clone() + "y")),
            PathError::ComponentTooLong { len: 256 }
        );
        let path = format!("{}/{}", longest, "z".repeat(255));
        assert!(EntryPath::parse(&format!("{path}/")).is_err());
        assert_eq!(path.len(), 511);
        assert!(EntryPath::parse(&path).is_ok());
        let path = format!("{}/{}/aa", longest, "z".repeat(253));
        assert_eq!(path.len(), 512);
        assert!(EntryPath::parse(&path).is_ok());
        assert_eq!(error(&format!("{path}b")), PathError::TooLong { len: 513 });
    }

    #[test]
    fn spellings_of_one_name_are_one_path() {
        let composed = EntryPath::parse("caf\u{e9}").unwrap();
        assert_eq!(EntryPath::parse("cafe\u{301}").unwrap(), composed);
        assert_eq!(
            EntryPath::parse_stored("cafe\u{301}"),
            Err(PathError::NotNormal)
        );
        assert_eq!(EntryPath::parse_stored("caf\u{e9}"), Ok(composed.clone()));
        let upper = EntryPath::parse("CAF\u{c9}").unwrap();
        assert_ne!(upper, composed);
        assert_eq!(upper.key(), composed.key());
        let key = |text| EntryPath::parse(text).unwrap().key();
        assert_eq!(key("STRASSE"), key("straße"));
        assert_eq!(key("ΣΊΣΥΦΟΣ"), key("Σίσυφος"));
        assert_ne!(key("a"), key("b"));
    }

    #[test]
    fn debug_shows_no_name() {
        assert_eq!(
            format!("{:?}", EntryPath::parse("secret.txt").unwrap()),
            "EntryPath([redacted])"
        );
    }

    proptest! {
        #[test]
        fn parsing_is_idempotent_and_stays_below(text in "\\PC{0,40}(/\\PC{0,20}){0,3}") {
            if let Ok(path) = EntryPath::parse(&text) {
                prop_assert_eq!(EntryPath::parse_stored(path.as_str()), Ok(path.clone()));
                prop_assert!(path.as_str().len() <= EntryPath::MAX);
                let native = std::path::Path::new(path.as_str());
                prop_assert!(native.components().all(|c| matches!(c, std::path::Component::Normal(_))));
            }
        }
    }
}
