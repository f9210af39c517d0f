//! The `save` command. Everything is in the library beside it, where it can be tested.

use std::process::ExitCode;

fn main() -> ExitCode {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    use_one_heap();
    save_cli::main()
}

/// Has glibc give all threads memory from one heap. With one for each of them, it keeps two or three times as much of what a transfer
/// needed, and nothing is faster.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn use_one_heap() {
    #[allow(unsafe_code, reason = "there is no other way to tell the C library")]
    // SAFETY: it sets a number, before there is another thread. A refusal changes nothing.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}
