//! The two halves of a stream.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::core::Now;
use crate::core::server::SessionKey;
use crate::core::streams::Streams;
use crate::node::{Node, Wakers};
use crate::session::Shared;
use crate::{Error, Result};

/// Where a stream lives.
#[derive(Clone)]
pub(crate) enum Host {
    Client(Arc<Shared>),
    Server(Arc<Node>, SessionKey),
}

/// A stream of a session; its wakers go when both halves are dropped.
struct Handle {
    host: Host,
    id: u64,
}

impl Handle {
    fn with<T>(&self, act: impl FnOnce(&mut Streams, &mut Wakers, Now) -> Result<T>) -> Result<T> {
        match &self.host {
            Host::Client(shared) => shared.with_streams(self.id, act),
            Host::Server(node, key) => node
                .with_streams(key, self.id, act)
                .unwrap_or(Err(Error::Closed)),
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        match &self.host {
            Host::Client(shared) => shared.forget_wakers(self.id),
            Host::Server(node, key) => node.forget_wakers(key, self.id),
        }
    }
}

pub(crate) fn halves(host: Host, id: u64) -> (SendStream, RecvStream) {
    let handle = Arc::new(Handle { host, id });
    (
        SendStream {
            handle: handle.clone(),
        },
        RecvStream {
            handle,
            partial: BytesMut::new(),
        },
    )
}

/// The sending half of a stream.
///
/// Dropping it ends the stream after what was written: the session delivers the rest. Written bytes leave within milliseconds without a `flush`.
pub struct SendStream {
    handle: Arc<Handle>,
}

impl fmt::Debug for SendStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SendStream").field(&self.id()).finish()
    }
}

impl SendStream {
    /// The number of the stream in its session.
    pub fn id(&self) -> u64 {
        self.handle.id
    }

    fn poll_write_some(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<Result<usize>> {
        let id = self.handle.id;
        let taken = self.handle.with(|streams, wakers, now| {
            let taken = streams.write(id, data, now)?;
            if taken == 0 && !data.is_empty() {
                wakers.send = Some(cx.waker().clone());
                return Ok(None);
            }
            Ok(Some(taken))
        });
        match taken.transpose() {
            Some(taken) => Poll::Ready(taken),
            None => Poll::Pending,
        }
    }

    /// Takes some of `data`, at least one byte, and says how many. Waits while the stream's buffer is full. Safe to drop.
    ///
    /// A writer whose reader is there and does not read waits without limit: to bound that, put a timeout around this call (nothing was taken
    /// when it is dropped), and [`reset`](Self::reset) the stream.
    ///
    /// # Errors
    /// [`Stopped`](Error::Stopped) when the other side stopped reading, [`Finished`](Error::Finished) after `finish` or `reset`, or whatever
    /// ended the session.
    pub async fn write(&mut self, data: &[u8]) -> Result<usize> {
        poll_fn(|cx| self.poll_write_some(cx, data)).await
    }

    /// Takes all of `data`. When dropped half-way, a part of it may have been taken.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub async fn write_all(&mut self, mut data: &[u8]) -> Result<()> {
        while !data.is_empty() {
            let taken = self.write(data).await?;
            data = data.get(taken..).unwrap_or_default();
        }
        Ok(())
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
        let id = self.handle.id;
        self.handle.with(|streams, _, now| streams.flush(id, now))
    }

    /// Ends the stream after what was written. Returns at once; [`stopped`](Self::stopped) tells when everything has arrived. A second call does nothing.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn finish(&mut self) -> Result<()> {
        let id = self.handle.id;
        self.handle.with(|streams, _, now| streams.finish(id, now))
    }

    /// Abandons the stream: what has not arrived is not delivered, and the reader gets [`Error::Reset`] with `code` (below 2^62).
    /// Does nothing once the stream is finished and delivered.
    pub fn reset(&mut self, code: u64) {
        let id = self.handle.id;
        let _ = self.handle.with(|streams, _, now| {
            streams.reset(id, code, now);
            Ok(())
        });
    }

    /// Waits until the other side stopped reading (its code), or has received everything up to the end that
    /// [`finish`](Self::finish) set (`None`). Safe to drop.
    ///
    /// # Errors
    /// [`Finished`](Error::Finished) after `reset`, or whatever ended the session before that.
    pub async fn stopped(&mut self) -> Result<Option<u64>> {
        let id = self.handle.id;
        poll_fn(|cx| {
            let end = self.handle.with(|streams, wakers, _| {
                let end = streams.stopped(id)?;
                if end.is_none() {
                    wakers.send = Some(cx.waker().clone());
                }
                Ok(end)
            });
            match end.transpose() {
                Some(end) => Poll::Ready(end),
                None => Poll::Pending,
            }
        })
        .await
    }
}

impl Drop for SendStream {
    fn drop(&mut self) {
        let id = self.handle.id;
        let _ = self.handle.with(|streams, _, now| {
            streams.drop_send(id, now);
            Ok(())
        });
    }
}

/// The receiving half of a stream. Dropping it before the end stops the sender with code 0.
pub struct RecvStream {
    handle: Arc<Handle>,
    /// Bytes that were taken for a read of a whole number of them that is not complete yet.
    partial: BytesMut,
}

impl fmt::Debug for RecvStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RecvStream").field(&self.id()).finish()
    }
}

impl RecvStream {
    /// The number of the stream in its session.
    pub fn id(&self) -> u64 {
        self.handle.id
    }

    fn poll_read_some(&mut self, cx: &mut Context<'_>, max: usize) -> Poll<Result<Bytes>> {
        if !self.partial.is_empty() {
            let len = self.partial.len().min(max);
            return Poll::Ready(Ok(self.partial.split_to(len).freeze()));
        }
        self.poll_read_new(cx, max)
    }

    fn poll_read_new(&mut self, cx: &mut Context<'_>, max: usize) -> Poll<Result<Bytes>> {
        let id = self.handle.id;
        let bytes = self.handle.with(|streams, wakers, now| {
            let bytes = streams.read(id, max, now)?;
            if bytes.is_none() {
                wakers.recv = Some(cx.waker().clone());
            }
            Ok(bytes)
        });
        match bytes.transpose() {
            Some(bytes) => Poll::Ready(bytes),
            None => Poll::Pending,
        }
    }

    /// The next bytes, between 1 and `max`, as soon as there are any; empty at the end of the stream. Safe to drop.
    ///
    /// # Errors
    /// [`Reset`](Error::Reset) when the other side abandoned the stream, [`Finished`](Error::Finished) after `stop`, or whatever ended the session.
    pub async fn read(&mut self, max: usize) -> Result<Bytes> {
        if max == 0 {
            return Ok(Bytes::new());
        }
        poll_fn(|cx| self.poll_read_some(cx, max)).await
    }

    /// The next `len` bytes; fewer only where the stream ends. Safe to drop: bytes that came stay for the next read.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub async fn read_full(&mut self, len: usize) -> Result<Bytes> {
        if self.partial.is_empty() {
            // Mostly one piece has it all, and need not be copied.
            let first = self.read(len).await?;
            if first.len() == len || first.is_empty() {
                return Ok(first);
            }
            self.partial.extend_from_slice(&first);
        }
        while self.partial.len() < len {
            let missing = len - self.partial.len();
            let more = poll_fn(|cx| self.poll_read_new(cx, missing)).await?;
            if more.is_empty() {
                break;
            }
            self.partial.extend_from_slice(&more);
        }
        let len = self.partial.len().min(len);
        Ok(self.partial.split_to(len).freeze())
    }

    /// The next `len` bytes exactly. Safe to drop: bytes that came stay for the next read.
    ///
    /// # Errors
    /// [`UnexpectedEnd`](Error::UnexpectedEnd) where the stream ends before, otherwise as [`read`](Self::read).
    pub async fn read_exact(&mut self, len: usize) -> Result<Bytes> {
        let bytes = self.read_full(len).await?;
        if bytes.len() < len {
            return Err(Error::UnexpectedEnd {
                wanted: len,
                got: bytes.len(),
            });
        }
        Ok(bytes)
    }

    /// Everything up to the end.
    ///
    /// # Errors
    /// [`TooLong`](Error::TooLong) as soon as more than `limit` bytes came, otherwise as [`read`](Self::read).
    pub async fn read_to_end(&mut self, limit: usize) -> Result<Bytes> {
        let bytes = self.read_full(limit.saturating_add(1)).await?;
        if bytes.len() > limit {
            return Err(Error::TooLong { limit });
        }
        Ok(bytes)
    }

    /// Stops reading: bytes not read yet are dropped, and the sender gets [`Error::Stopped`] with `code` (below 2^62).
    pub fn stop(&mut self, code: u64) {
        let id = self.handle.id;
        self.partial.clear();
        let _ = self.handle.with(|streams, _, now| {
            streams.stop(id, code, now);
            Ok(())
        });
    }
}

impl Drop for RecvStream {
    fn drop(&mut self) {
        let id = self.handle.id;
        let _ = self.handle.with(|streams, _, now| {
            streams.drop_recv(id, now);
            Ok(())
        });
    }
}

impl AsyncWrite for SendStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_some(cx, data).map_err(io::Error::from)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let id = self.handle.id;
        Poll::Ready(
            self.handle
                .with(|streams, _, now| streams.flush(id, now))
                .map_err(io::Error::from),
        )
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.finish().map_err(io::Error::from))
    }
}

impl AsyncRead for RecvStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        self.poll_read_some(cx, buf.remaining())
            .map_ok(|bytes| buf.put_slice(&bytes))
            .map_err(io::Error::from)
    }
}
