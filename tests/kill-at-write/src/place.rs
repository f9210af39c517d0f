//! Where a call changes something.

use std::ffi::{CStr, c_char, c_int};

use libc::{AT_FDCWD, PATH_MAX};

const LONGEST: usize = PATH_MAX as usize;

/// A path in memory of its own: a call can be made in a signal handler, where nothing may be allocated.
pub(crate) struct Place {
    bytes: [u8; LONGEST],
    len: usize,
}

impl Place {
    const NONE: Self = Self {
        bytes: [0; LONGEST],
        len: 0,
    };

    /// The file that is open as `fd`.
    pub(crate) fn open(fd: c_int) -> Self {
        let mut name = [0; 32];
        let mut digits = fd.unsigned_abs();
        let mut start = name.len() - 1;
        loop {
            start -= 1;
            name[start] = b'0' + (digits % 10) as u8;
            digits /= 10;
            if digits == 0 {
                break;
            }
        }
        let prefix = b"/proc/self/fd/";
        start -= prefix.len();
        name[start..start + prefix.len()].copy_from_slice(prefix);
        let link = CStr::from_bytes_until_nul(&name[start..]);
        match link {
            Ok(link) if fd >= 0 => Self::target(link),
            _ => Self::NONE,
        }
    }

    fn target(link: &CStr) -> Self {
        let mut place = Self::NONE;
        // SAFETY: the link is a C string, and the buffer takes as many bytes as is said.
        let len =
            unsafe { libc::readlink(link.as_ptr(), place.bytes.as_mut_ptr().cast(), LONGEST) };
        place.len = usize::try_from(len).unwrap_or(0);
        place
    }

    /// The path of a call.
    ///
    /// # Safety
    /// `path` is null or a C string.
    pub(crate) unsafe fn named(path: *const c_char) -> Self {
        // SAFETY: as is asked of the caller.
        unsafe { Self::named_at(AT_FDCWD, path) }
    }

    /// The path of a call, which starts at an open directory if it is relative.
    ///
    /// # Safety
    /// `path` is null or a C string.
    pub(crate) unsafe fn named_at(directory: c_int, path: *const c_char) -> Self {
        if path.is_null() {
            return Self::NONE;
        }
        // SAFETY: as is asked of the caller, and not null.
        let path = unsafe { CStr::from_ptr(path) }.to_bytes();
        if path.first() == Some(&b'/') {
            return Self::NONE.with(path);
        }
        let start = if directory == AT_FDCWD {
            Self::target(c"/proc/self/cwd")
        } else {
            Self::open(directory)
        };
        start.with(b"/").with(path)
    }

    fn with(mut self, more: &[u8]) -> Self {
        match self.bytes.get_mut(self.len..self.len + more.len()) {
            Some(room) => {
                room.copy_from_slice(more);
                self.len += more.len();
                self
            }
            None => Self::NONE,
        }
    }

    /// The path below a directory, which ends with a slash; nothing if it is elsewhere.
    pub(crate) fn below(&self, directory: &[u8]) -> Option<&[u8]> {
        self.bytes[..self.len].strip_prefix(directory)
    }
}
