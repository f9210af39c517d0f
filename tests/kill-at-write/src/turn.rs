//! Whose turn it is to change something, and when the process dies or the disk is full.

use std::{
    env,
    ffi::CString,
    os::unix::ffi::OsStringExt,
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
};

use libc::{
    AT_FDCWD, ENOSPC, F_OK, O_APPEND, O_CLOEXEC, O_WRONLY, SIGKILL, SIGSTOP, SYS_openat,
    SYS_tgkill, SYS_write, c_int,
};

use crate::place::Place;

struct Settings {
    /// Ends with a slash.
    below: Vec<u8>,
    log: CString,
    point: Option<u64>,
    torn: bool,
    /// Instead of the death at the point, the disk is full from there on as long as this file is there.
    full: Option<CString>,
    /// The process stops at each counted call, until somebody lets it go on.
    stops: bool,
}

static SETTINGS: OnceLock<Option<Settings>> = OnceLock::new();
static COUNT: Mutex<Count> = Mutex::new(Count {
    log: None,
    calls: 0,
});

struct Count {
    /// Open once the counting has begun.
    log: Option<c_int>,
    calls: u64,
}

/// Leave to make a counted call. No other is made meanwhile.
pub(crate) struct Turn {
    _count: MutexGuard<'static, Count>,
    is_last: bool,
    is_full: bool,
}

fn settings() -> Option<&'static Settings> {
    SETTINGS
        .get_or_init(|| {
            let text = |name: &str| env::var_os(name).map(OsStringExt::into_vec);
            let mut below = text("KILL_AT_WRITE_BELOW")?;
            below.push(b'/');
            Some(Settings {
                below,
                log: CString::new(text("KILL_AT_WRITE_LOG")?).ok()?,
                point: env::var("KILL_AT_WRITE_POINT")
                    .ok()
                    .map(|point| point.parse().expect("KILL_AT_WRITE_POINT is a number")),
                torn: env::var_os("KILL_AT_WRITE_TORN").is_some(),
                full: text("KILL_AT_WRITE_FULL").and_then(|path| CString::new(path).ok()),
                stops: env::var_os("KILL_AT_WRITE_STOPS").is_some(),
            })
        })
        .as_ref()
}

/// Waits for the turn of a call. None if it is not counted.
pub(crate) fn take(call: &str, places: &[Place]) -> Option<Turn> {
    let settings = settings()?;
    let path = places.iter().find_map(|at| at.below(&settings.below))?;
    let mut count = COUNT.lock().unwrap_or_else(PoisonError::into_inner);
    let log = match count.log {
        Some(log) => log,
        None => {
            let log = open(settings)?;
            count.log = Some(log);
            log
        }
    };
    count.calls += 1;
    let line = [call.as_bytes(), b" ", path, b"\n"].concat();
    // SAFETY: the line is as long as is said. Past the C library, where it would be taken for a call of the process.
    unsafe { libc::syscall(SYS_write, log, line.as_ptr(), line.len()) };
    if settings.stops {
        stop();
    }
    let is_full = settings.point.is_some_and(|point| count.calls >= point)
        // SAFETY: the path is a C string.
        && settings.full.as_ref().is_some_and(|file| unsafe { libc::access(file.as_ptr(), F_OK) } == 0);
    Some(Turn {
        is_last: settings.full.is_none() && settings.point == Some(count.calls),
        is_full,
        _count: count,
    })
}

/// Stops the process. The signal goes to this thread, which takes it before it returns: sent to the process, it could be taken by another
/// thread while this one goes on.
fn stop() {
    // SAFETY: takes no pointer.
    unsafe { libc::syscall(SYS_tgkill, libc::getpid(), libc::gettid(), SIGSTOP) };
}

fn open(settings: &Settings) -> Option<c_int> {
    let flags = O_WRONLY | O_APPEND | O_CLOEXEC;
    // SAFETY: the path is a C string. Past the C library, where it would be taken for a call of the process.
    let log = unsafe { libc::syscall(SYS_openat, AT_FDCWD, settings.log.as_ptr(), flags) };
    c_int::try_from(log).ok().filter(|log| *log >= 0)
}

impl Turn {
    /// Whether there is no space for what the call would write. Then it says so as the system does.
    pub(crate) fn has_no_space(&self) -> bool {
        if self.is_full {
            // SAFETY: the place of this thread's own error.
            unsafe { *libc::__errno_location() = ENOSPC };
        }
        self.is_full
    }

    /// Dies if this is the point to die at; before that, writes `half` if the write is to be torn.
    pub(crate) fn die_if_last(&self, half: impl FnOnce()) {
        if !self.is_last {
            return;
        }
        if settings().is_some_and(|settings| settings.torn) {
            half();
        }
        loop {
            // SAFETY: takes no pointer.
            unsafe { libc::kill(libc::getpid(), SIGKILL) };
        }
    }
}
