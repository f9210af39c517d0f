//! Whether a process may have namespaces of its own, and how it gets into them.

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use rustix::fs::{Mode, OFlags};
use rustix::thread::UnshareFlags;

use crate::{Error, Result, links};

/// The environment variable by which `devnet-run` tells the program that it starts which network
/// namespace it made for it.
pub const INSIDE_VARIABLE: &str = "DEVNET_NAMESPACE";

/// The namespace that [`enter`] made for this very process.
static ENTERED: OnceLock<String> = OnceLock::new();

/// A setting of the machine that forbids namespaces to unprivileged users.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Obstacle {
    /// Ubuntu's AppArmor takes the rights of a new user namespace away.
    AppArmor,
    /// Debian's switch for unprivileged user namespaces is off.
    UserNamespacesOff,
    /// The number of user namespaces is limited to none.
    NoUserNamespaces,
    /// The number of network namespaces is limited to none.
    NoNetworkNamespaces,
    /// A container whose seccomp profile forbids namespaces.
    Container,
}

impl Obstacle {
    /// The sentence that says what to change.
    pub fn remedy(self) -> &'static str {
        match self {
            Self::AppArmor => {
                "AppArmor restricts user namespaces: \
                 run `sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0`"
            }
            Self::UserNamespacesOff => {
                "Unprivileged user namespaces are switched off: \
                 run `sudo sysctl -w kernel.unprivileged_userns_clone=1`"
            }
            Self::NoUserNamespaces => {
                "User namespaces are limited to none: \
                 run `sudo sysctl -w user.max_user_namespaces=15000`"
            }
            Self::NoNetworkNamespaces => {
                "Network namespaces are limited to none: \
                 run `sudo sysctl -w user.max_net_namespaces=15000`"
            }
            Self::Container => {
                "This is a container whose seccomp profile forbids namespaces: start it with \
                 `--security-opt seccomp=unconfined` or `--cap-add SYS_ADMIN --cap-add NET_ADMIN`"
            }
        }
    }

    /// What to change, in one line for all obstacles.
    pub(crate) fn advice(obstacles: &[Self]) -> String {
        let mut sentences: Vec<_> = obstacles.iter().map(|found| found.remedy()).collect();
        if sentences.is_empty() {
            sentences.push("No known setting forbids it; a security module or a sandbox may");
        }
        format!("{}. Running as root also works", sentences.join(". "))
    }

    /// Looks for obstacles; `read` gives the content of a file, or `None` where there is none.
    fn find(read: impl Fn(&str) -> Option<String>) -> Vec<Self> {
        let is = |path: &str, value: &str| read(path).is_some_and(|text| text.trim() == value);
        let mut found = Vec::new();
        if is(
            "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
            "1",
        ) {
            found.push(Self::AppArmor);
        }
        if is("/proc/sys/kernel/unprivileged_userns_clone", "0") {
            found.push(Self::UserNamespacesOff);
        }
        if is("/proc/sys/user/max_user_namespaces", "0") {
            found.push(Self::NoUserNamespaces);
        }
        if is("/proc/sys/user/max_net_namespaces", "0") {
            found.push(Self::NoNetworkNamespaces);
        }
        let filtered = read("/proc/self/status").is_some_and(|status| {
            status
                .lines()
                .any(|line| line.strip_prefix("Seccomp:").map(str::trim) == Some("2"))
        });
        let container = read("/.dockerenv").is_some() || read("/run/.containerenv").is_some();
        if filtered && container {
            found.push(Self::Container);
        }
        found
    }
}

/// Tells whether this process may make network namespaces, by letting a child process do so.
///
/// Fails with [`Error::NamespacesForbidden`], which says what to change.
pub fn check() -> Result<()> {
    if inside() {
        return Ok(());
    }
    let plan = Plan::of_this_user();
    let mut child = Command::new("/proc/self/exe");
    child
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    // SAFETY: runs between fork and exec, where only async-signal-safe calls are allowed. The
    // closure makes system calls on what was prepared before and does not allocate. It always
    // fails, so that the program is never started.
    #[allow(
        unsafe_code,
        reason = "the only way to try a system call in a child process"
    )]
    unsafe {
        child.pre_exec(move || match plan.carry_out() {
            Ok(()) => Err(rustix::io::Errno::CANCELED.into()),
            Err(errno) => Err(errno.into()),
        });
    }
    match child.spawn() {
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::CANCELED.raw_os_error()) => {
            Ok(())
        }
        Err(source) => Err(forbidden(source)),
        Ok(mut child) => {
            // Not reached: the closure never lets the program start.
            child.kill().map_err(Error::file("/proc/self/exe"))?;
            child.wait().map_err(Error::file("/proc/self/exe"))?;
            Ok(())
        }
    }
}

/// Moves this process into namespaces of its own: user (where it is not root already), network
/// and mount; and brings the loopback interface up.
///
/// Has to be called before the process starts a thread. Does nothing where the process is inside
/// already. Children inherit the namespaces; they vanish with the last process in them.
pub fn enter() -> Result<()> {
    if inside() {
        return Ok(());
    }
    let threads = std::fs::read_dir("/proc/self/task")
        .map_err(Error::file("/proc/self/task"))?
        .count();
    if threads != 1 {
        return Err(Error::ThreadsRunning { threads });
    }
    Plan::of_this_user()
        .carry_out()
        .map_err(|errno| forbidden(errno.into()))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| Error::System {
            action: "starting a runtime",
            source,
        })?;
    runtime.block_on(links::bring_loopback_up())?;
    let name = current_namespace()?;
    ENTERED.get_or_init(|| name);
    Ok(())
}

/// Whether this process is in namespaces that [`enter`] or `devnet-run` made.
pub fn inside() -> bool {
    let Ok(current) = current_namespace() else {
        return false;
    };
    ENTERED.get() == Some(&current)
        || std::env::var(INSIDE_VARIABLE).is_ok_and(|made| made == current)
}

/// The name of this process's network namespace, unique on the machine while it lives.
pub fn current_namespace() -> Result<String> {
    // Compared by device and inode: what the link reads alone would not tell two boots apart, but
    // an environment variable does not outlive a boot.
    let path = "/proc/self/ns/net";
    let target = std::fs::read_link(path).map_err(Error::file(path))?;
    Ok(target.to_string_lossy().into_owned())
}

fn forbidden(source: io::Error) -> Error {
    Error::NamespacesForbidden {
        obstacles: Obstacle::find(|path| std::fs::read_to_string(path).ok()),
        source,
    }
}

/// Everything that entering needs, prepared before so that a forked child need not allocate.
struct Plan {
    root: bool,
    uid_map: String,
    gid_map: String,
}

impl Plan {
    fn of_this_user() -> Self {
        let uid = rustix::process::geteuid();
        let gid = rustix::process::getegid();
        Self {
            root: uid.is_root(),
            uid_map: format!("0 {} 1\n", uid.as_raw()),
            gid_map: format!("0 {} 1\n", gid.as_raw()),
        }
    }

    fn carry_out(&self) -> rustix::io::Result<()> {
        let network = UnshareFlags::NEWNET | UnshareFlags::NEWNS;
        // Root needs no user namespace, but root in a container without capabilities does.
        if self.root && unshare(network).is_ok() {
            return Ok(());
        }
        unshare(network | UnshareFlags::NEWUSER)?;
        write(c"/proc/self/setgroups", b"deny")?;
        write(c"/proc/self/uid_map", self.uid_map.as_bytes())?;
        write(c"/proc/self/gid_map", self.gid_map.as_bytes())?;
        // Where a security module takes the new namespace's rights away, this is what fails.
        unshare(UnshareFlags::NEWNET)
    }
}

fn write(path: &std::ffi::CStr, bytes: &[u8]) -> rustix::io::Result<()> {
    let file = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&file, bytes)?;
    Ok(())
}

/// Gives the calling thread (or a process of one thread) new namespaces.
pub(crate) fn unshare(flags: UnshareFlags) -> rustix::io::Result<()> {
    // SAFETY: file descriptor tables are never unshared here, which is the one thing that makes
    // this call unsafe.
    #[allow(
        unsafe_code,
        reason = "rustix marks the call unsafe for a flag that is not used"
    )]
    unsafe {
        rustix::thread::unshare_unsafe(flags)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn obstacles_are_found_in_what_the_machine_says() {
        let ubuntu = |path: &str| match path {
            "/proc/sys/kernel/apparmor_restrict_unprivileged_userns" => Some("1\n".to_owned()),
            "/proc/sys/kernel/unprivileged_userns_clone" => Some("1\n".to_owned()),
            _ => None,
        };
        assert_eq!(Obstacle::find(ubuntu), [Obstacle::AppArmor]);

        let docker = |path: &str| match path {
            "/.dockerenv" => Some(String::new()),
            "/proc/self/status" => Some("Name:\tx\nSeccomp:\t2\n".to_owned()),
            "/proc/sys/user/max_user_namespaces" => Some("95731\n".to_owned()),
            _ => None,
        };
        assert_eq!(Obstacle::find(docker), [Obstacle::Container]);

        let hardened = |path: &str| match path {
            "/proc/sys/kernel/unprivileged_userns_clone"
            | "/proc/sys/user/max_user_namespaces"
            | "/proc/sys/user/max_net_namespaces" => Some("0".to_owned()),
            _ => None,
        };
        assert_eq!(
            Obstacle::find(hardened),
            [
                Obstacle::UserNamespacesOff,
                Obstacle::NoUserNamespaces,
                Obstacle::NoNetworkNamespaces
            ]
        );
        assert_eq!(Obstacle::find(|_| None), []);
    }

    #[test]
    fn the_error_says_which_setting_to_change() {
        let error = Error::NamespacesForbidden {
            obstacles: vec![Obstacle::AppArmor],
            source: io::Error::from_raw_os_error(1),
        };
        let text = error.to_string();
        assert!(
            text.contains("sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"),
            "{text}"
        );
        assert!(text.contains("root also works"), "{text}");
    }

    #[test]
    fn threads_keep_a_process_out() {
        // The test harness runs this on a thread of its own.
        if !inside() {
            assert!(matches!(
                enter(),
                Err(Error::ThreadsRunning { threads }) if threads > 1
            ));
        }
    }
}
