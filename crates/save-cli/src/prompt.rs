//! Asking for a password at a terminal, without echo.

use std::io::{self, IsTerminal as _, Write as _};

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use zeroize::Zeroizing;

use crate::error::{Error, Result};

/// What a terminal gives at most as one line.
const LONGEST: usize = 4096;

/// Whether there is somebody to ask.
pub fn is_possible() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// Asks on standard error and reads a line from the terminal at standard input. If this is dropped before, the terminal echoes
/// again.
///
/// # Errors
/// [`Error::Stream`] if the terminal cannot be used or closes.
pub async fn password(question: &str) -> Result<Zeroizing<String>> {
    let failed = |source: io::Error| Error::Stream {
        stream: "input",
        source,
    };
    let silent = Silence::begin().map_err(failed)?;
    let mut stderr = io::stderr();
    // Without the question, the answer still counts.
    let _ = write!(stderr, "{question}").and_then(|()| stderr.flush());
    let line = tokio::task::spawn_blocking(read_line)
        .await
        .map_err(|_| Error::Interrupted)?
        .map_err(failed);
    drop(silent);
    line
}

/// The terminal echoes no more than the end of the line while this lives.
struct Silence(Termios);

impl Silence {
    fn begin() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO);
        silent.local_modes.insert(LocalModes::ECHONL);
        // What was typed before the question is no answer.
        tcsetattr(io::stdin(), OptionalActions::Flush, &silent)?;
        Ok(Self(before))
    }
}

impl Drop for Silence {
    fn drop(&mut self) {
        // There is nothing that could be done about it.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.0);
    }
}

/// Past the buffer of the standard library, in which the password would stay.
fn read_line() -> io::Result<Zeroizing<String>> {
    let mut line = Zeroizing::new(vec![0; LONGEST]);
    let mut len = 0;
    loop {
        let Some(rest) = line.get_mut(len..).filter(|rest| !rest.is_empty()) else {
            break;
        };
        let read = match rustix::io::read(io::stdin(), rest) {
            Err(rustix::io::Errno::INTR) => continue,
            read => read?,
        };
        len += read;
        if read == 0 || line.get(len - 1) == Some(&b'\n') {
            break;
        }
    }
    if len == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let text = line.get(..len).unwrap_or_default();
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    str::from_utf8(text)
        .map(|text| Zeroizing::new(text.to_owned()))
        .map_err(|_| io::ErrorKind::InvalidData.into())
}
