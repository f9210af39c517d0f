//! The two halves of a stream.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{Error, Result};

/// The sending half of a stream.
///
/// Dropping it ends the stream after what was written: the session delivers the rest. Written bytes leave within milliseconds without a `flush`.
pub struct SendStream {}

impl SendStream {
    /// The number of the stream in its session.
    pub fn id(&self) -> u64 {
        0
    }

    /// Takes some of `data`, at least one byte, and says how many. Waits while the stream's buffer is full.
    ///
    /// # Errors
    /// [`Stopped`](Error::Stopped) when the other side stopped reading, [`Finished`](Error::Finished) after `finish` or `reset`, or whatever
    /// ended the session.
    pub async fn write(&mut self, data: &[u8]) -> Result<usize> {
        let _ = data;
        Err(Error::Closed)
    }

    /// Takes all of `data`. When dropped half-way, a part of it may have been taken.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub async fn write_all(&mut self, data: &[u8]) -> Result<()> {
        let _ = data;
        Err(Error::Closed)
    }

    /// Takes all of `data`.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub async fn write_bytes(&mut self, data: Bytes) -> Result<()> {
        self.write_all(&data).await
    }

    /// Sends at once what was written, without waiting for more to fill a message. Does not wait for its arrival.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub async fn flush(&mut self) -> Result<()> {
        Err(Error::Closed)
    }

    /// Ends the stream after what was written. Returns at once; [`stopped`](Self::stopped) tells when everything has arrived. A second call does nothing.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn finish(&mut self) -> Result<()> {
        Err(Error::Closed)
    }

    /// Abandons the stream: what has not arrived is not delivered, and the reader gets [`Error::Reset`] with `code` (below 2^62).
    /// Does nothing once the stream is finished and delivered.
    pub fn reset(&mut self, code: u64) {
        let _ = code;
    }

    /// Waits until the other side stopped reading (its code), or has received everything up to the end that
    /// [`finish`](Self::finish) set (`None`).
    ///
    /// # Errors
    /// Whatever ended the session before that.
    pub async fn stopped(&mut self) -> Result<Option<u64>> {
        Err(Error::Closed)
    }
}

/// The receiving half of a stream. Dropping it before the end stops the sender with code 0.
pub struct RecvStream {}

impl RecvStream {
    /// The number of the stream in its session.
    pub fn id(&self) -> u64 {
        0
    }

    /// The next bytes, between 1 and `max`, as soon as there are any; empty at the end of the stream.
    ///
    /// # Errors
    /// [`Reset`](Error::Reset) when the other side abandoned the stream, [`Finished`](Error::Finished) after `stop`, or whatever ended the session.
    pub async fn read(&mut self, max: usize) -> Result<Bytes> {
        let _ = max;
        Err(Error::Closed)
    }

    /// The next `len` bytes; fewer only where the stream ends. Safe to drop: bytes that came stay for the next read.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub async fn read_full(&mut self, len: usize) -> Result<Bytes> {
        let _ = len;
        Err(Error::Closed)
    }

    /// The next `len` bytes exactly. Safe to drop: bytes that came stay for the next read.
    ///
    /// # Errors
    /// [`UnexpectedEnd`](Error::UnexpectedEnd) where the stream ends before, otherwise as [`read`](Self::read).
    pub async fn read_exact(&mut self, len: usize) -> Result<Bytes> {
        let _ = len;
        Err(Error::Closed)
    }

    /// Everything up to the end.
    ///
    /// # Errors
    /// [`TooLong`](Error::TooLong) as soon as more than `limit` bytes came, otherwise as [`read`](Self::read).
    pub async fn read_to_end(&mut self, limit: usize) -> Result<Bytes> {
        let _ = limit;
        Err(Error::Closed)
    }

    /// Stops reading: bytes not read yet are dropped, and the sender gets [`Error::Stopped`] with `code` (below 2^62).
    pub fn stop(&mut self, code: u64) {
        let _ = code;
    }
}

impl AsyncWrite for SendStream {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Err(Error::Closed.into()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Err(Error::Closed.into()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Err(Error::Closed.into()))
    }
}

impl AsyncRead for RecvStream {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Err(Error::Closed.into()))
    }
}
