//! Where an operation's results go, and the watch over whether anything still happens.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::error::{Error, Result};
use crate::items::{Activity, Item, Stage};
use crate::protocol::Frame;

/// Sends an operation's results on, and remembers when something last happened.
#[derive(Debug)]
pub struct Output {
    frames: mpsc::Sender<Frame>,
    last: Mutex<(Instant, Option<Activity>)>,
}

impl Output {
    /// Results go to `frames`.
    pub fn new(frames: mpsc::Sender<Frame>) -> Self {
        Self {
            frames,
            last: Mutex::new((Instant::now(), None)),
        }
    }

    /// One result.
    ///
    /// # Errors
    /// [`Error::ConnectionLost`] if nobody reads any more; so have all methods here.
    pub async fn item(&self, item: Item) -> Result<()> {
        self.touch();
        self.send(Frame::Item(item)).await
    }

    /// The next bytes of the file that the last item named.
    pub async fn data(&self, bytes: Bytes) -> Result<()> {
        self.touch();
        self.send(Frame::Data(bytes)).await
    }

    /// How far it has come. Never waits: where the reader is slow, this is left out.
    pub fn progress(&self, stage: Stage, done: u64, total: Option<u64>) {
        let activity = Activity { stage, done, total };
        let mut last = self.last();
        // The same again is no sign of life.
        if last.1.as_ref() == Some(&activity) {
            return;
        }
        *last = (Instant::now(), Some(activity.clone()));
        drop(last);
        // The one left out is followed by another, or by the result.
        let _ = self.frames.try_send(Frame::Progress(activity));
    }

    /// Says that something happened that has no result yet.
    pub fn touch(&self) {
        self.last().0 = Instant::now();
    }

    /// Any frame.
    pub async fn send(&self, frame: Frame) -> Result<()> {
        self.frames
            .send(frame)
            .await
            .map_err(|_| Error::ConnectionLost)?;
        // A slow reader is not the operation's silence.
        self.touch();
        Ok(())
    }

    /// Returns when nothing has happened for as long as `limit`.
    pub async fn silence(&self, limit: Duration) {
        loop {
            let last = self.last().0;
            let Some(end) = last.checked_add(limit) else {
                // Longer than the clock goes: no limit.
                return std::future::pending().await;
            };
            // A full queue means that the reader is slow, not the operation.
            if Instant::now() >= end && self.frames.capacity() > 0 {
                return;
            }
            tokio::time::sleep_until(end.max(Instant::now() + Duration::from_millis(100))).await;
        }
    }

    fn last(&self) -> MutexGuard<'_, (Instant, Option<Activity>)> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn silence_starts_anew_with_each_sign_of_life() {
        let (sender, mut receiver) = mpsc::channel(4);
        let output = Output::new(sender);
        let start = Instant::now();
        let signs = async {
            for done in [1, 2, 2, 2] {
                tokio::time::sleep(Duration::from_secs(8)).await;
                output.progress(Stage::Fetching, done, None);
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = signs => {}
            () = output.silence(Duration::from_secs(10)) => {}
        }
        // The last sign of life that said something new came after 16 s.
        let elapsed = start.elapsed();
        assert!(
            elapsed >= Duration::from_secs(26) && elapsed < Duration::from_secs(27),
            "{elapsed:?}"
        );
        assert!(receiver.recv().await.is_some());
    }

    #[tokio::test]
    async fn a_reader_that_is_gone_is_an_error() {
        let (sender, receiver) = mpsc::channel(1);
        drop(receiver);
        let output = Output::new(sender);
        assert!(matches!(
            output.item(Item::Online).await,
            Err(Error::ConnectionLost)
        ));
    }
}
