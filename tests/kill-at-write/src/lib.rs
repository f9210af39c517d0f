//! A library for `LD_PRELOAD` that kills its process with SIGKILL at a chosen write, as the system does that needs the memory; or that
//! lets the disk be full from there on.
//!
//! It stands in front of the C library's functions that change files, and counts the calls that change something below a directory. The
//! counting begins when the log exists, so the process, or whoever watches it, says when by making that file. Counted calls are made one
//! at a time: at a point, what is on the disk is what the calls before it left.
//!
//! | variable | meaning |
//! | --- | --- |
//! | `KILL_AT_WRITE_BELOW` | the directory, as an absolute path without symbolic links |
//! | `KILL_AT_WRITE_LOG` | the log, outside of the directory: a line for each counted call, with its path below the directory |
//! | `KILL_AT_WRITE_POINT` | dies instead of making the call with this number, the first being 1; without it, only counts |
//! | `KILL_AT_WRITE_TORN` | set to anything: if that call writes bytes, it makes one with the first half of them before |
//! | `KILL_AT_WRITE_FULL` | a file outside of the directory: while it is there, that call and those after it find no space instead |
//! | `KILL_AT_WRITE_STOPS` | set to anything: before each counted call the process stops, as by SIGSTOP, until it is told to go on |
//!
//! Where there is no space, what writes bytes or makes a file or directory fails, also where it would overwrite; what truncates, renames
//! or removes works.
//!
//! Not counted: `fsync` and its like, since a kill before them leaves what a kill before the next write leaves; writes through a memory
//! map; and system calls that are made past the C library.
#![cfg(target_os = "linux")]
#![allow(
    unsafe_code,
    reason = "stands in front of C functions; nothing else of the workspace does"
)]
#![allow(
    clippy::missing_safety_doc,
    reason = "the contract of each function is that of the C library's"
)]

mod calls;
mod place;
mod turn;
