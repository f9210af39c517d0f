//! What may follow the fixed fields of a payload: type, length, value.

use std::fmt;

use super::{LinkError, LinkPart};

/// The longest label, in bytes.
pub const MAX_LABEL: usize = 64;

/// An extension of the public part that this version knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LinkExtension {
    /// From when on programs refuse the link.
    Expiry,
    /// What the link is called.
    Label,
}

impl LinkExtension {
    /// Its type in the public part.
    pub(super) fn number(self) -> u8 {
        match self {
            Self::Expiry => 1,
            Self::Label => 2,
        }
    }
}

impl fmt::Display for LinkExtension {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Expiry => "expiry",
            Self::Label => "label",
        })
    }
}

/// Why something is no label of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum LabelProblem {
    /// There is nothing in it but white space.
    #[error("it is empty")]
    Empty,
    /// It is longer than [`MAX_LABEL`].
    #[error("it has {bytes} bytes, and {MAX_LABEL} are the most")]
    TooLong {
        /// How long it is.
        bytes: usize,
    },
    /// It is not UTF-8.
    #[error("it is not UTF-8")]
    NotUtf8,
    /// It has control characters in it, line breaks for example.
    #[error("it has control characters in it")]
    Control,
    /// It begins or ends with white space.
    #[error("it begins or ends with white space")]
    Untrimmed,
}

/// Takes the white space around a text away, and says whether what is left can be a link's label.
///
/// # Errors
/// [`LabelProblem::Empty`], [`LabelProblem::TooLong`] and [`LabelProblem::Control`].
pub fn check_label(text: &str) -> Result<&str, LabelProblem> {
    let label = text.trim();
    if label.is_empty() {
        Err(LabelProblem::Empty)
    } else if label.len() > MAX_LABEL {
        Err(LabelProblem::TooLong { bytes: label.len() })
    } else if label.chars().any(char::is_control) {
        Err(LabelProblem::Control)
    } else {
        Ok(label)
    }
}

/// Type and value of each extension behind the fixed fields of a payload, which have to be there.
pub(super) fn behind(
    payload: &[u8],
    fields: usize,
    part: LinkPart,
) -> Result<Vec<(u8, &[u8])>, LinkError> {
    let rest = payload
        .get(fields..)
        .ok_or(LinkError::MissingFields { part })?;
    split(rest).ok_or(LinkError::BrokenExtension { part })
}

/// None if the last one runs past the end.
fn split(mut rest: &[u8]) -> Option<Vec<(u8, &[u8])>> {
    let mut fields = Vec::new();
    while let [number, length, tail @ ..] = rest {
        let (value, tail) = tail.split_at_checked(usize::from(*length))?;
        fields.push((*number, value));
        rest = tail;
    }
    rest.is_empty().then_some(fields)
}

/// The extensions of the public part that this version knows.
#[derive(Clone, Default)]
pub(super) struct Known {
    /// Seconds since 1970.
    pub(super) expiry: Option<u64>,
    pub(super) label: Option<String>,
}

impl Known {
    /// Finds them among all, and passes over the others.
    pub(super) fn read(fields: &[(u8, &[u8])]) -> Result<Self, LinkError> {
        let mut known = Self::default();
        for (number, value) in fields {
            if *number == LinkExtension::Expiry.number() {
                set(&mut known.expiry, LinkExtension::Expiry, || expiry(value))?;
            } else if *number == LinkExtension::Label.number() {
                set(&mut known.label, LinkExtension::Label, || label(value))?;
            }
        }
        Ok(known)
    }
}

fn set<T>(
    place: &mut Option<T>,
    extension: LinkExtension,
    read: impl FnOnce() -> Result<T, LinkError>,
) -> Result<(), LinkError> {
    if place.is_some() {
        return Err(LinkError::Repeated { extension });
    }
    *place = Some(read()?);
    Ok(())
}

fn expiry(value: &[u8]) -> Result<u64, LinkError> {
    let bytes = value
        .try_into()
        .map_err(|_| LinkError::ExpiryLength { bytes: value.len() })?;
    Ok(u64::from_be_bytes(bytes))
}

fn label(value: &[u8]) -> Result<String, LinkError> {
    let bad = |problem| LinkError::Label { problem };
    let text = str::from_utf8(value).map_err(|_| bad(LabelProblem::NotUtf8))?;
    let label = check_label(text).map_err(bad)?;
    // One label has one form only.
    if label.len() == text.len() {
        Ok(label.to_owned())
    } else {
        Err(bad(LabelProblem::Untrimmed))
    }
}
