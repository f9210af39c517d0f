//! The functions of the C library that change files.

use std::{
    ffi::{c_char, c_int, c_uint, c_void},
    mem,
    sync::atomic::{AtomicPtr, Ordering},
};

use libc::{
    ENOSPC, F_OK, O_CREAT, O_TRUNC, RTLD_NEXT, iovec, mode_t, off_t, off64_t, size_t, ssize_t,
};

use crate::{place::Place, turn};

/// The function that would have been called without this library, as a pointer to a function.
macro_rules! next {
    ($name:expr, $type:ty) => {{
        static NEXT: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());
        let mut found = NEXT.load(Ordering::Relaxed);
        if found.is_null() {
            // SAFETY: the name is a C string.
            found = unsafe { libc::dlsym(RTLD_NEXT, concat!($name, "\0").as_ptr().cast()) };
            assert!(!found.is_null(), "the C library has no {}", $name);
            NEXT.store(found, Ordering::Relaxed);
        }
        // SAFETY: the C library's function of this name has this type.
        unsafe { mem::transmute::<*mut c_void, $type>(found) }
    }};
}

/// Functions that change what is at some places, from their arguments; with what those that take space give when there is none.
macro_rules! changes {
    ($($name:ident($($argument:ident: $type:ty),*) -> $result:ty, at $($place:expr),+ $(=> $full:expr)?;)*) => {$(
        #[doc = concat!("Counts, and calls the C library's `", stringify!($name), "`.")]
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($argument: $type),*) -> $result {
            // SAFETY: the caller keeps to the contract of the C library's function: paths are C strings.
            #[allow(unused_unsafe, reason = "a place can be one of an open file")]
            let places = unsafe { [$($place),+] };
            let turn = turn::take(stringify!($name), &places);
            if let Some(turn) = &turn {
                turn.die_if_last(|| {});
                $(if turn.has_no_space() {
                    return $full;
                })?
            }
            let next = next!(stringify!($name), unsafe extern "C" fn($($type),*) -> $result);
            // SAFETY: the arguments are the caller's.
            unsafe { next($($argument),*) }
        }
    )*};
}

changes! {
    writev(fd: c_int, parts: *const iovec, count: c_int) -> ssize_t, at Place::open(fd) => -1;
    pwritev(fd: c_int, parts: *const iovec, count: c_int, at: off_t) -> ssize_t, at Place::open(fd) => -1;
    pwritev64(fd: c_int, parts: *const iovec, count: c_int, at: off64_t) -> ssize_t, at Place::open(fd) => -1;
    pwritev2(fd: c_int, parts: *const iovec, count: c_int, at: off_t, flags: c_int) -> ssize_t, at Place::open(fd) => -1;
    pwritev64v2(fd: c_int, parts: *const iovec, count: c_int, at: off64_t, flags: c_int) -> ssize_t, at Place::open(fd) => -1;
    copy_file_range(from: c_int, from_at: *mut off64_t, to: c_int, to_at: *mut off64_t, len: size_t, flags: c_uint) -> ssize_t, at Place::open(to) => -1;
    sendfile(to: c_int, from: c_int, from_at: *mut off_t, len: size_t) -> ssize_t, at Place::open(to) => -1;
    sendfile64(to: c_int, from: c_int, from_at: *mut off64_t, len: size_t) -> ssize_t, at Place::open(to) => -1;

    ftruncate(fd: c_int, len: off_t) -> c_int, at Place::open(fd);
    ftruncate64(fd: c_int, len: off64_t) -> c_int, at Place::open(fd);
    truncate(path: *const c_char, len: off_t) -> c_int, at Place::named(path);
    truncate64(path: *const c_char, len: off64_t) -> c_int, at Place::named(path);
    fallocate(fd: c_int, mode: c_int, at: off_t, len: off_t) -> c_int, at Place::open(fd) => -1;
    fallocate64(fd: c_int, mode: c_int, at: off64_t, len: off64_t) -> c_int, at Place::open(fd) => -1;
    posix_fallocate(fd: c_int, at: off_t, len: off_t) -> c_int, at Place::open(fd) => ENOSPC;
    posix_fallocate64(fd: c_int, at: off64_t, len: off64_t) -> c_int, at Place::open(fd) => ENOSPC;

    rename(from: *const c_char, to: *const c_char) -> c_int, at Place::named(from), Place::named(to);
    renameat(from_in: c_int, from: *const c_char, to_in: c_int, to: *const c_char) -> c_int,
        at Place::named_at(from_in, from), Place::named_at(to_in, to);
    renameat2(from_in: c_int, from: *const c_char, to_in: c_int, to: *const c_char, flags: c_uint) -> c_int,
        at Place::named_at(from_in, from), Place::named_at(to_in, to);
    link(from: *const c_char, to: *const c_char) -> c_int, at Place::named(to) => -1;
    linkat(from_in: c_int, from: *const c_char, to_in: c_int, to: *const c_char, flags: c_int) -> c_int,
        at Place::named_at(to_in, to) => -1;
    symlink(target: *const c_char, path: *const c_char) -> c_int, at Place::named(path) => -1;
    symlinkat(target: *const c_char, directory: c_int, path: *const c_char) -> c_int, at Place::named_at(directory, path) => -1;
    mkdir(path: *const c_char, mode: mode_t) -> c_int, at Place::named(path) => -1;
    mkdirat(directory: c_int, path: *const c_char, mode: mode_t) -> c_int, at Place::named_at(directory, path) => -1;
    unlink(path: *const c_char) -> c_int, at Place::named(path);
    unlinkat(directory: c_int, path: *const c_char, flags: c_int) -> c_int, at Place::named_at(directory, path);
    rmdir(path: *const c_char) -> c_int, at Place::named(path);
    remove(path: *const c_char) -> c_int, at Place::named(path);
}

/// Functions that write bytes, and so can be torn.
macro_rules! writes {
    ($($name:ident($fd:ident, $from:ident, $len:ident $(, $at:ident: $offset:ty)?);)*) => {$(
        #[doc = concat!("Counts, and calls the C library's `", stringify!($name), "`.")]
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($fd: c_int, $from: *const c_void, $len: size_t $(, $at: $offset)?) -> ssize_t {
            let turn = turn::take(stringify!($name), &[Place::open($fd)]);
            let next = next!(
                stringify!($name),
                unsafe extern "C" fn(c_int, *const c_void, size_t $(, $offset)?) -> ssize_t
            );
            if let Some(turn) = &turn {
                // SAFETY: the arguments are the caller's, with fewer of the bytes.
                turn.die_if_last(|| unsafe {
                    next($fd, $from, $len / 2 $(, $at)?);
                });
                if turn.has_no_space() {
                    return -1;
                }
            }
            // SAFETY: the arguments are the caller's.
            unsafe { next($fd, $from, $len $(, $at)?) }
        }
    )*};
}

writes! {
    write(fd, from, len);
    pwrite(fd, from, len, at: off_t);
    pwrite64(fd, from, len, at: off64_t);
}

/// Functions that open a file, and change something if that makes or empties it.
///
/// C declares them with a variable number of arguments. Where this is built, the third one comes the same way as a fixed one, and is
/// not looked at by the system unless a file is made.
macro_rules! opens {
    (@type $directory:ident) => { c_int };
    ($($name:ident($([$directory:ident])? $path:ident, $flags:ident);)*) => {$(
        #[doc = concat!("Counts what makes or empties a file, and calls the C library's `", stringify!($name), "`.")]
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(
            $($directory: c_int,)?
            $path: *const c_char,
            $flags: c_int,
            mode: mode_t,
        ) -> c_int {
            let directory = libc::AT_FDCWD;
            $(let directory = { let _ = directory; $directory };)?
            // SAFETY: the path is the caller's, a C string.
            let makes = $flags & O_CREAT != 0
                && unsafe { libc::faccessat(directory, $path, F_OK, 0) } != 0;
            let turn = if makes || $flags & O_TRUNC != 0 {
                // SAFETY: as above.
                let place = unsafe { Place::named_at(directory, $path) };
                turn::take(stringify!($name), &[place])
            } else {
                None
            };
            if let Some(turn) = &turn {
                turn.die_if_last(|| {});
                if makes && turn.has_no_space() {
                    return -1;
                }
            }
            let next = next!(
                stringify!($name),
                unsafe extern "C" fn($(opens!(@type $directory),)? *const c_char, c_int, ...) -> c_int
            );
            // SAFETY: the arguments are the caller's.
            unsafe { next($($directory,)? $path, $flags, mode) }
        }
    )*};
}

opens! {
    open(path, flags);
    open64(path, flags);
    openat([directory] path, flags);
    openat64([directory] path, flags);
}

/// Counts what makes or empties a file, and calls the C library's `open` as `creat` does.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn creat(path: *const c_char, mode: mode_t) -> c_int {
    // SAFETY: the arguments are the caller's.
    unsafe { open(path, libc::O_WRONLY | O_CREAT | O_TRUNC, mode) }
}
