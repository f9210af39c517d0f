//! Sealing and opening over an `AsyncRead`, piece by piece.

use bytes::Bytes;
use futures::{Stream, stream};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::{FileKeys, HEADER, Header, SEALED_SEGMENT, SEGMENT, SealError, Sealer, Unsealer};
use crate::{Error, Result};

/// Seals what it reads.
///
/// Each call of [`next`](Self::next) gives one piece, of about 64 KiB. Dropping such a call loses nothing.
#[derive(Debug)]
pub struct SealStream<R> {
    source: R,
    header: Option<Header>,
    /// None after the last piece.
    sealer: Option<Sealer>,
    hasher: blake3::Hasher,
    size: u64,
    buffer: Vec<u8>,
}

impl<R: AsyncRead + Unpin> SealStream<R> {
    /// Begins a file with a random salt.
    ///
    /// # Errors
    /// [`Error::Randomness`].
    pub fn new(keys: &FileKeys, source: R) -> Result<Self> {
        Ok(Self::with_salt(keys, super::random_salt()?, source))
    }

    /// Begins a file with a given salt, which must not be used for another file: for vectors and tests.
    #[must_use]
    pub fn with_salt(keys: &FileKeys, salt: [u8; 32], source: R) -> Self {
        let (header, cipher) = keys.seal(salt);
        Self {
            source,
            header: Some(header),
            sealer: Some(Sealer::new(cipher)),
            hasher: blake3::Hasher::new(),
            size: 0,
            buffer: vec![0; SEGMENT],
        }
    }

    /// The next piece; `None` after the last.
    ///
    /// # Errors
    /// [`Error::Source`] if the source cannot be read, [`Error::Seal`] if it is too long.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        if let Some(header) = self.header.take() {
            return Ok(Some(Bytes::copy_from_slice(&header.to_bytes())));
        }
        let mut output = Vec::new();
        while let Some(sealer) = &mut self.sealer {
            let read = self
                .source
                .read(&mut self.buffer)
                .await
                .map_err(Error::Source)?;
            let Some(bytes) = self.buffer.get(..read).filter(|bytes| !bytes.is_empty()) else {
                if let Some(sealer) = self.sealer.take() {
                    sealer.finish(&mut output)?;
                }
                break;
            };
            self.hasher.update(bytes);
            self.size += bytes.len() as u64;
            sealer.update(bytes, &mut output)?;
            if !output.is_empty() {
                break;
            }
        }
        Ok(if output.is_empty() {
            None
        } else {
            Some(output.into())
        })
    }

    /// Bytes read so far.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The BLAKE3 hash of the bytes read so far.
    #[must_use]
    pub fn plain_hash(&self) -> [u8; 32] {
        *self.hasher.finalize().as_bytes()
    }

    /// The pieces as a stream.
    pub fn into_stream(self) -> impl Stream<Item = Result<Bytes>> {
        stream::try_unfold(self, |mut this| async move {
            Ok(this.next().await?.map(|piece| (piece, this)))
        })
    }
}

/// Opens a sealed file that it reads from the beginning.
///
/// Each call of [`next`](Self::next) gives one piece, which is authentic. That the file is complete says the `None` after the
/// last piece. Dropping such a call loses nothing.
#[derive(Debug)]
pub struct UnsealStream<R> {
    source: R,
    keys: FileKeys,
    header: Vec<u8>,
    state: State,
    buffer: Vec<u8>,
}

#[derive(Debug)]
enum State {
    Header,
    Segments(Unsealer),
    End,
    /// What failed stays failed, so that nobody takes the end for a good one.
    Failed(SealError),
}

impl<R: AsyncRead + Unpin> UnsealStream<R> {
    /// Begins a file.
    #[must_use]
    pub fn new(keys: &FileKeys, source: R) -> Self {
        Self {
            source,
            keys: keys.clone(),
            header: Vec::with_capacity(HEADER),
            state: State::Header,
            buffer: vec![0; SEALED_SEGMENT],
        }
    }

    /// The next piece; `None` when the file has ended as it should.
    ///
    /// # Errors
    /// [`Error::Source`] if the source cannot be read, [`Error::Seal`] if it is no sealed file, or not a whole one.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        let mut output = Vec::new();
        while output.is_empty() {
            let room = match &self.state {
                State::Header => HEADER - self.header.len(),
                State::Segments(_) => SEALED_SEGMENT,
                State::End => return Ok(None),
                State::Failed(error) => return Err((*error).into()),
            };
            let mut limited = (&mut self.source).take(room as u64);
            let read = limited
                .read(&mut self.buffer)
                .await
                .map_err(Error::Source)?;
            let bytes = self.buffer.get(..read).unwrap_or_default();
            match step(
                &mut self.state,
                &mut self.header,
                &self.keys,
                bytes,
                &mut output,
            ) {
                Ok(()) => {}
                Err(error) => {
                    self.state = State::Failed(error);
                    return Err(error.into());
                }
            }
        }
        Ok(Some(output.into()))
    }

    /// The pieces as a stream.
    pub fn into_stream(self) -> impl Stream<Item = Result<Bytes>> {
        stream::try_unfold(self, |mut this| async move {
            Ok(this.next().await?.map(|piece| (piece, this)))
        })
    }
}

/// Takes what was read, none of it meaning the end.
fn step(
    state: &mut State,
    header: &mut Vec<u8>,
    keys: &FileKeys,
    bytes: &[u8],
    output: &mut Vec<u8>,
) -> Result<(), SealError> {
    match std::mem::replace(state, State::End) {
        State::Header => {
            header.extend_from_slice(bytes);
            *state = if header.len() == HEADER || bytes.is_empty() {
                State::Segments(Unsealer::new(keys.open(&Header::parse(header)?)?))
            } else {
                State::Header
            };
        }
        State::Segments(unsealer) if bytes.is_empty() => unsealer.finish(output)?,
        State::Segments(mut unsealer) => {
            unsealer.update(bytes, output)?;
            *state = State::Segments(unsealer);
        }
        ended @ (State::End | State::Failed(_)) => *state = ended,
    }
    Ok(())
}
