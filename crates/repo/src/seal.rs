//! Sealed files: what lies in a blob instead of a file. The format is specified in `docs/formats/files.md`.
//!
//! A sealed file is a header and segments of 64 KiB in the STREAM construction, with the nonces of the age format. The core,
//! [`SegmentCipher`], [`Sealer`] and [`Unsealer`], takes key and associated data as parameters and knows neither header nor
//! input and output; [`SealStream`] and [`UnsealStream`] put it over an [`AsyncRead`](tokio::io::AsyncRead). Both need the
//! memory of some segments, whatever the size of the file, and any segment can be opened without the others.

mod core;
mod stream;

use std::{fmt, ops::Range};

use dht_records::{ContentKey, Purpose, SubKey};
use subtle::ConstantTimeEq;

pub use self::{
    core::{Sealer, SegmentCipher, Unsealer},
    stream::{SealStream, UnsealStream},
};

/// The bytes of a file in one segment.
pub const SEGMENT: usize = 64 * 1024;
/// What sealing adds to a segment, in bytes.
pub const TAG: usize = 16;
/// A whole sealed segment, in bytes.
pub const SEALED_SEGMENT: usize = SEGMENT + TAG;
/// The header, in bytes.
pub const HEADER: usize = 4 + 1 + 32 + 32;
/// The most segments of one file, which make 256 TiB.
pub const MAX_SEGMENTS: u64 = u32::MAX as u64;

const MAGIC: &[u8; 4] = b"SAVE";
const VERSION: u8 = 1;

/// Why sealed bytes are not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SealError {
    /// They do not begin as a sealed file does. What is not sealed is never accepted.
    #[error("not a sealed file")]
    NotSealed,
    /// The file was sealed by a newer program.
    #[error("sealed file has the unknown version {version}")]
    UnknownVersion {
        /// The version found.
        version: u8,
    },
    /// The file was sealed under another key (or its salt or commitment is damaged).
    #[error("file was sealed under another key")]
    WrongKey,
    /// The length is not one that a sealed file can have: it was cut off, or something was appended.
    #[error("no sealed file has {len} bytes")]
    Length {
        /// The length found, in bytes, without the header.
        len: u64,
    },
    /// The file was cut off between two segments.
    #[error("file ends after segment {segment}, which is not the last")]
    Truncated {
        /// The index of the segment at the end, from 0.
        segment: u64,
    },
    /// Something was appended to the file.
    #[error("file goes on after segment {segment}, which is the last")]
    Trailing {
        /// The index of the last segment, from 0.
        segment: u64,
    },
    /// A segment does not open: it was changed, moved or swapped, or the file was cut off within it.
    #[error("segment {segment} is damaged")]
    Damaged {
        /// Its index, from 0.
        segment: u64,
    },
    /// The file is longer than [`MAX_SEGMENTS`] segments.
    #[error("file is too long to be sealed")]
    TooLong,
}

/// What seals the files of a group: its content key.
#[derive(Clone)]
pub struct FileKeys {
    material: SubKey,
}

impl FileKeys {
    /// The keys of files under a content key.
    #[must_use]
    pub fn new(content: &ContentKey) -> Self {
        Self {
            material: SubKey::from_bytes(*content.as_bytes()),
        }
    }

    /// Begins a file: its header, and what seals its segments. The salt has to be random and never used again.
    #[must_use]
    pub fn seal(&self, salt: [u8; 32]) -> (Header, SegmentCipher) {
        let header = Header {
            salt,
            commitment: *self.commitment(&salt).as_bytes(),
        };
        let cipher = self.cipher(&header);
        (header, cipher)
    }

    /// What opens the segments behind a header.
    ///
    /// # Errors
    /// [`SealError::WrongKey`] if the header is not committed to this key.
    pub fn open(&self, header: &Header) -> Result<SegmentCipher, SealError> {
        let commitment = self.commitment(&header.salt);
        if bool::from(commitment.as_bytes().ct_eq(&header.commitment)) {
            Ok(self.cipher(header))
        } else {
            Err(SealError::WrongKey)
        }
    }

    fn commitment(&self, salt: &[u8; 32]) -> SubKey {
        self.material.derive_salted(Purpose::FileCommitment, salt)
    }

    fn cipher(&self, header: &Header) -> SegmentCipher {
        let key = self.material.derive_salted(Purpose::FileKey, &header.salt);
        SegmentCipher::new(key.as_bytes(), blake3::hash(&header.to_bytes()).as_bytes())
    }
}

impl fmt::Debug for FileKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FileKeys([redacted])")
    }
}

/// The header of a sealed file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    salt: [u8; 32],
    commitment: [u8; 32],
}

impl Header {
    /// The header as bytes.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        let (magic, rest) = bytes.split_at_mut(4);
        let (version, rest) = rest.split_at_mut(1);
        let (salt, commitment) = rest.split_at_mut(32);
        magic.copy_from_slice(MAGIC);
        version.copy_from_slice(&[VERSION]);
        salt.copy_from_slice(&self.salt);
        commitment.copy_from_slice(&self.commitment);
        bytes
    }

    /// Reads a header.
    ///
    /// # Errors
    /// [`SealError::NotSealed`], also for too few bytes; [`SealError::UnknownVersion`].
    pub fn parse(bytes: &[u8]) -> Result<Self, SealError> {
        let rest = bytes.strip_prefix(MAGIC).ok_or(SealError::NotSealed)?;
        let (&version, rest) = rest.split_first().ok_or(SealError::NotSealed)?;
        if version != VERSION {
            return Err(SealError::UnknownVersion { version });
        }
        let (salt, rest) = rest.split_first_chunk().ok_or(SealError::NotSealed)?;
        let commitment = rest.try_into().map_err(|_| SealError::NotSealed)?;
        Ok(Self {
            salt: *salt,
            commitment,
        })
    }
}

/// Where the segments of a sealed file lie, which follows from its length alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    plain: u64,
    segments: u64,
}

impl Layout {
    /// From the length of the file that was sealed, in bytes.
    ///
    /// # Errors
    /// [`SealError::TooLong`].
    pub fn of_plain(len: u64) -> Result<Self, SealError> {
        let segments = len.div_ceil(SEGMENT as u64).max(1);
        if segments > MAX_SEGMENTS {
            return Err(SealError::TooLong);
        }
        Ok(Self {
            plain: len,
            segments,
        })
    }

    /// From the length of the sealed file with its header, in bytes.
    ///
    /// # Errors
    /// [`SealError::NotSealed`] if there is no room for a header, [`SealError::Length`], [`SealError::TooLong`].
    pub fn of_sealed(len: u64) -> Result<Self, SealError> {
        let len = len.checked_sub(HEADER as u64).ok_or(SealError::NotSealed)?;
        let segments = len.div_ceil(SEALED_SEGMENT as u64);
        let plain = len
            .checked_sub(segments * TAG as u64)
            .ok_or(SealError::Length { len })?;
        let layout = Self::of_plain(plain)?;
        // An empty last segment is allowed to an empty file alone, so each length has one layout.
        if layout.segments == segments {
            Ok(layout)
        } else {
            Err(SealError::Length { len })
        }
    }

    /// The length of the file that was sealed.
    #[must_use]
    pub fn plain_len(self) -> u64 {
        self.plain
    }

    /// The length of the sealed file with its header.
    #[must_use]
    pub fn sealed_len(self) -> u64 {
        HEADER as u64 + self.plain + self.segments * TAG as u64
    }

    /// How many segments there are, at least one.
    #[must_use]
    pub fn segments(self) -> u64 {
        self.segments
    }

    /// Where some segments lie in the sealed file; cut off at its end.
    #[must_use]
    pub fn sealed_range(self, segments: Range<u64>) -> Range<u64> {
        let at = |segment: u64| {
            let start =
                (HEADER as u64).saturating_add(segment.saturating_mul(SEALED_SEGMENT as u64));
            start.min(self.sealed_len())
        };
        at(segments.start)..at(segments.end)
    }
}

/// A random salt for one file.
pub(crate) fn random_salt() -> crate::Result<[u8; 32]> {
    let mut salt = [0; 32];
    getrandom::fill(&mut salt).map_err(|_| crate::Error::Randomness)?;
    Ok(salt)
}

#[cfg(test)]
mod age;
#[cfg(test)]
mod tests;
