//! What the application does to its streams.

use bytes::Bytes;

use super::super::codec::MAX_VARINT;
use super::super::stream::{Delivery, Stream};
use super::super::{INITIAL_WINDOW, Now};
use super::Streams;
use crate::Error;

impl Streams {
    /// Opens a stream. Nothing leaves before the first byte or the end of the coalescing time.
    pub fn open(&mut self, protocol: u16, now: Now) -> Result<u64, Error> {
        if self.streams.len() >= self.limits.streams_per_session {
            return Err(Error::TooManyStreams {
                limit: self.limits.streams_per_session,
            });
        }
        let id = self.opened << 1;
        self.opened += 1;
        self.streams
            .insert(id, Stream::new(protocol, Delivery::Pending));
        // The first call tells how much the answer may hold.
        self.grant(id, self.allowance(0) as u64);
        self.touch(id, now, false);
        Ok(id)
    }

    /// Takes what there is room for; 0 when there is none.
    pub fn write(&mut self, id: u64, data: &[u8], now: Now) -> Result<usize, Error> {
        let spare = self
            .limits
            .buffered_bytes_per_session
            .saturating_sub(self.send_held);
        let Some(stream) = self.streams.get_mut(&id) else {
            return Err(Error::Finished);
        };
        stream.check_send()?;
        if stream.send.fin.is_some() {
            return Err(Error::Finished);
        }
        let held = stream.send.buffer.len();
        let most = self
            .limits
            .buffered_bytes_per_stream
            .min(held.saturating_add(spare).max(INITIAL_WINDOW));
        let taken = most.saturating_sub(held).min(data.len());
        if taken < data.len() {
            self.hungry.insert(id);
        } else {
            self.hungry.remove(&id);
        }
        if taken == 0 {
            if !data.is_empty() {
                self.waiting.insert(id);
            }
            return Ok(0);
        }
        stream.send.buffer.write(&data[..taken]);
        let full =
            stream.send.buffer.sendable(stream.send.window) >= self.limits.max_message as u64;
        self.send_held += taken;
        self.touch(id, now, full);
        Ok(taken)
    }

    /// Sends what was written without waiting for more.
    pub fn flush(&mut self, id: u64, now: Now) -> Result<(), Error> {
        let Some(stream) = self.streams.get(&id) else {
            return Err(Error::Finished);
        };
        stream.check_send()?;
        if stream.has_data() {
            self.touch(id, now, true);
        }
        Ok(())
    }

    pub fn finish(&mut self, id: u64, now: Now) -> Result<(), Error> {
        let Some(stream) = self.streams.get_mut(&id) else {
            return Err(Error::Finished);
        };
        stream.check_send()?;
        if stream.send.fin.is_none() {
            stream.send.fin = Some(Delivery::Pending);
            self.hungry.remove(&id);
            self.touch(id, now, true);
        }
        Ok(())
    }

    pub fn reset(&mut self, id: u64, code: u64, now: Now) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        if stream.failed.is_some() || stream.send.is_done() || stream.send.reset.is_some() {
            return;
        }
        self.send_held -= stream.send.buffer.len();
        stream.send.buffer.clear();
        stream.send.reset = Some((code.min(MAX_VARINT), Delivery::Pending));
        self.touch(id, now, true);
        self.wake_writers(id);
    }

    /// `Some` once the other side stopped, or has everything.
    pub fn stopped(&self, id: u64) -> Result<Option<Option<u64>>, Error> {
        let Some(stream) = self.streams.get(&id) else {
            return Err(Error::Finished);
        };
        match (&stream.failed, stream.send.stopped) {
            (_, Some(code)) => Ok(Some(Some(code))),
            _ if stream.send.reset.is_some() => Err(Error::Finished),
            _ if stream.send.is_done() => Ok(Some(None)),
            (Some(error), None) => Err(error.clone()),
            (None, None) => Ok(None),
        }
    }

    /// The next bytes, empty at the end; `None` when there are none yet.
    pub fn read(&mut self, id: u64, max: usize, now: Now) -> Result<Option<Bytes>, Error> {
        let Some(stream) = self.streams.get_mut(&id) else {
            return Err(Error::Finished);
        };
        if stream.recv.stop.is_some() {
            return Err(Error::Finished);
        }
        if let Some(code) = stream.recv.reset {
            return Err(Error::Reset { code });
        }
        if stream.recv.buffer.is_at_end() {
            return Ok(Some(Bytes::new()));
        }
        let Some(bytes) = stream.recv.buffer.read(max) else {
            return match &stream.failed {
                Some(error) => Err(error.clone()),
                None => Ok(None),
            };
        };
        self.recv_held -= bytes.len();
        self.widen(id, now);
        Ok(Some(bytes))
    }

    pub fn stop(&mut self, id: u64, code: u64, now: Now) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        if stream.recv.stop.is_some() {
            return;
        }
        self.recv_held -= stream.recv.buffer.discard();
        if stream.failed.is_none() && !stream.recv.has_ended() {
            stream.recv.stop = Some((code.min(MAX_VARINT), Delivery::Pending));
            self.touch(id, now, true);
        }
        self.recount(id);
    }

    /// The sending handle is gone: what was written is delivered, then the stream ends.
    pub fn drop_send(&mut self, id: u64, now: Now) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        stream.send.dropped = true;
        if stream.failed.is_none()
            && stream.send.fin.is_none()
            && stream.send.reset.is_none()
            && stream.send.stopped.is_none()
        {
            stream.send.fin = Some(Delivery::Pending);
            self.touch(id, now, true);
        }
        self.waiting.remove(&id);
        self.hungry.remove(&id);
        self.reap(id);
    }

    /// The receiving handle is gone: the other side may stop sending.
    pub fn drop_recv(&mut self, id: u64, now: Now) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        stream.recv.dropped = true;
        self.stop(id, 0, now);
        self.reap(id);
    }
}

impl Stream {
    fn check_send(&self) -> Result<(), Error> {
        if let Some(code) = self.send.stopped {
            return Err(Error::Stopped { code });
        }
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        if self.send.reset.is_some() {
            return Err(Error::Finished);
        }
        Ok(())
    }
}
