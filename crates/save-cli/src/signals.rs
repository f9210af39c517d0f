//! SIGINT and SIGTERM: the first asks for an orderly end, the second ends at once.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::error::{Error, Result};
use crate::exit::Code;

/// Both signals, listened for from its making on.
#[derive(Debug)]
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    /// Begins to listen; the signals no longer end the process by themselves.
    ///
    /// # Errors
    /// [`Error::Stream`] if the system does not allow it.
    pub fn new() -> Result<Self> {
        let listen = |kind| {
            signal(kind).map_err(|source| Error::Stream {
                stream: "signal handling",
                source,
            })
        };
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
        })
    }

    /// The next signal.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }

    /// Runs an orderly end; a signal meanwhile ends the process at once.
    pub async fn or_exit<T>(&mut self, end: impl Future<Output = T>) -> T {
        tokio::select! {
            ended = end => ended,
            () = self.next() => std::process::exit(i32::from(Code::Interrupted.exit())),
        }
    }
}
