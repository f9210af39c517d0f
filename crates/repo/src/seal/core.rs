//! The STREAM construction: segments, each under a nonce of its index and whether it is the last.

use std::fmt;

use aead_stream::{NewStream, StreamBE32, StreamPrimitive};
use chacha20poly1305::ChaCha20Poly1305;

use super::{MAX_SEGMENTS, SEALED_SEGMENT, SEGMENT, SealError, TAG};

/// Seals and opens single segments.
///
/// The nonce is that of the age format: eleven bytes of index, big-endian, and a byte that is 1 for the last segment. As an
/// index has at most 32 bits here, its first seven bytes are zero.
pub struct SegmentCipher {
    stream: StreamBE32<ChaCha20Poly1305>,
    associated: Vec<u8>,
}

impl SegmentCipher {
    /// Under a key that is used for one file alone. The associated data are bound to every segment.
    #[must_use]
    pub fn new(key: &[u8; 32], associated: &[u8]) -> Self {
        Self {
            stream: StreamBE32::new(key.into(), &[0; 7].into()),
            associated: associated.to_vec(),
        }
    }

    /// Seals a segment in place, which makes it longer by [`TAG`].
    ///
    /// # Errors
    /// [`SealError::TooLong`] if there is no such segment.
    pub fn seal(&self, index: u64, last: bool, segment: &mut Vec<u8>) -> Result<(), SealError> {
        let position = position(index)?;
        self.stream
            .encrypt_in_place(position, last, &self.associated, segment)
            .map_err(|_| SealError::TooLong)
    }

    /// Opens a segment in place, which makes it shorter by [`TAG`].
    ///
    /// # Errors
    /// [`SealError::Damaged`]; what is then in `segment` is of no use.
    pub fn open(&self, index: u64, last: bool, segment: &mut Vec<u8>) -> Result<(), SealError> {
        let position = position(index)?;
        self.stream
            .decrypt_in_place(position, last, &self.associated, segment)
            .map_err(|_| SealError::Damaged { segment: index })
    }
}

impl fmt::Debug for SegmentCipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SegmentCipher([redacted])")
    }
}

fn position(index: u64) -> Result<u32, SealError> {
    if index >= MAX_SEGMENTS {
        return Err(SealError::TooLong);
    }
    u32::try_from(index).map_err(|_| SealError::TooLong)
}

/// Cuts bytes into segments and seals them.
#[derive(Debug)]
pub struct Sealer {
    cipher: SegmentCipher,
    segment: Vec<u8>,
    index: u64,
}

impl Sealer {
    /// Begins a file.
    #[must_use]
    pub fn new(cipher: SegmentCipher) -> Self {
        Self {
            cipher,
            segment: Vec::with_capacity(SEALED_SEGMENT),
            index: 0,
        }
    }

    /// Takes bytes of the file, and appends to `output` each segment that is known not to be the last.
    ///
    /// # Errors
    /// [`SealError::TooLong`].
    pub fn update(&mut self, mut input: &[u8], output: &mut Vec<u8>) -> Result<(), SealError> {
        while !input.is_empty() {
            if self.segment.len() == SEGMENT {
                self.cipher.seal(self.index, false, &mut self.segment)?;
                output.extend_from_slice(&self.segment);
                self.segment.clear();
                self.index += 1;
            }
            let (now, later) = input.split_at(input.len().min(SEGMENT - self.segment.len()));
            self.segment.extend_from_slice(now);
            input = later;
        }
        Ok(())
    }

    /// Ends the file: appends its last segment.
    ///
    /// # Errors
    /// [`SealError::TooLong`].
    pub fn finish(mut self, output: &mut Vec<u8>) -> Result<(), SealError> {
        self.cipher.seal(self.index, true, &mut self.segment)?;
        output.extend_from_slice(&self.segment);
        Ok(())
    }
}

/// Opens what a [`Sealer`] gave. What it appends is authentic; that the file is complete says [`finish`](Self::finish) alone.
#[derive(Debug)]
pub struct Unsealer {
    cipher: SegmentCipher,
    segment: Vec<u8>,
    index: u64,
}

impl Unsealer {
    /// Begins a file.
    #[must_use]
    pub fn new(cipher: SegmentCipher) -> Self {
        Self {
            cipher,
            segment: Vec::with_capacity(SEALED_SEGMENT),
            index: 0,
        }
    }

    /// Takes sealed bytes, and appends to `output` what each segment holds that is known not to be the last.
    ///
    /// # Errors
    /// [`SealError::Damaged`], [`SealError::Trailing`], [`SealError::TooLong`]. There is no use in going on after an error.
    pub fn update(&mut self, mut input: &[u8], output: &mut Vec<u8>) -> Result<(), SealError> {
        while !input.is_empty() {
            if self.segment.len() == SEALED_SEGMENT {
                let result = self.open_or(
                    false,
                    SealError::Trailing {
                        segment: self.index,
                    },
                );
                self.release(&result, output);
                result?;
                self.segment.clear();
                self.index += 1;
            }
            let (now, later) = input.split_at(input.len().min(SEALED_SEGMENT - self.segment.len()));
            self.segment.extend_from_slice(now);
            input = later;
        }
        Ok(())
    }

    /// Ends the file: appends what its last segment holds.
    ///
    /// # Errors
    /// [`SealError::Damaged`], [`SealError::Truncated`], [`SealError::Length`].
    pub fn finish(mut self, output: &mut Vec<u8>) -> Result<(), SealError> {
        // Only an empty file ends with an empty segment.
        if self.segment.len() < TAG || (self.segment.len() == TAG && self.index > 0) {
            let len = self.index * SEALED_SEGMENT as u64 + self.segment.len() as u64;
            return Err(SealError::Length { len });
        }
        let result = self.open_or(
            true,
            SealError::Truncated {
                segment: self.index,
            },
        );
        self.release(&result, output);
        result
    }

    /// Opens the segment at hand as the last one or not. If it opens the other way round, the error says so: what was sealed is
    /// authentic then, and only its end is not where it should be.
    fn open_or(&mut self, last: bool, otherwise: SealError) -> Result<(), SealError> {
        let damaged = match self.cipher.open(self.index, last, &mut self.segment) {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        // The cipher checks before it decrypts, so the segment is as it was. One that is not whole can only be the last.
        if self.segment.len() == SEALED_SEGMENT
            && self
                .cipher
                .open(self.index, !last, &mut self.segment)
                .is_ok()
        {
            return Err(otherwise);
        }
        Err(damaged)
    }

    fn release(&self, result: &Result<(), SealError>, output: &mut Vec<u8>) {
        if !matches!(result, Err(SealError::Damaged { .. } | SealError::TooLong)) {
            output.extend_from_slice(&self.segment);
        }
    }
}
