//! What can go wrong with a devnet, and what to do about it.

use std::path::PathBuf;
use std::time::Duration;

use crate::namespaces::Obstacle;

/// The result of this crate's calls.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a devnet, a host or a node could not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The system does not let this process make network namespaces. Change what the obstacles
    /// name, or run as root.
    #[error(
        "this process may not make network namespaces ({source}). {}",
        Obstacle::advice(obstacles)
    )]
    NamespacesForbidden {
        /// What was found that forbids it; empty where nothing known was found.
        obstacles: Vec<Obstacle>,
        /// What the system answered.
        source: std::io::Error,
    },
    /// Namespaces can only be entered before the first thread starts. Call [`crate::enter`] first
    /// thing in `main`, or start the program through `devnet-run`.
    #[error("namespaces can only be entered by a process of one thread, this one has {threads}")]
    ThreadsRunning {
        /// How many threads the process has.
        threads: usize,
    },
    /// The process is in no namespace of its own. Start it through `devnet-run`, as
    /// `cargo xtask test` does, or call [`crate::enter`] first thing in `main`.
    #[error(
        "a devnet needs network namespaces of its own: start this program through devnet-run, \
         as `cargo xtask test` does"
    )]
    NotInside,
    /// A Veilid network needs at least six backbone nodes to find two distinct routes of two hops.
    #[error("a devnet needs at least {needed} backbone nodes, {nodes} were asked for", needed = crate::MIN_NODES)]
    TooFewNodes {
        /// How many were asked for.
        nodes: usize,
    },
    /// Every address of the devnet is taken. Stop this devnet and start another one.
    #[error("a devnet has room for {max} hosts, backbone included", max = crate::MAX_HOSTS)]
    TooManyHosts,
    /// A node did not get ready in time. `state` says where it stands.
    #[error("node {node} is not ready after {waited:?}: {state}")]
    NotReady {
        /// The name of the host that the node runs on.
        node: String,
        /// The node's attachment, peers and dial information, in Veilid's own words.
        state: String,
        /// How long it was waited for.
        waited: Duration,
    },
    /// The host, or the devnet that it belongs to, has been stopped.
    #[error("host {host} has been stopped")]
    Stopped {
        /// The host's name.
        host: String,
    },
    /// A host did not end in time; its threads go on in the background.
    #[error("host {host} has not stopped after {waited:?}")]
    NotStopped {
        /// The host's name.
        host: String,
        /// How long it was waited for.
        waited: Duration,
    },
    /// A rate of zero, or above what the kernel's token bucket can count.
    #[error("{bytes_per_second} bytes per second is no rate for a link: 1 to {max}", max = u32::MAX)]
    InvalidRate {
        /// The rate asked for.
        bytes_per_second: u64,
    },
    /// A delay that no link has.
    #[error("{round_trip:?} is no delay for a link: at most {max:?}", max = crate::delay::LONGEST)]
    InvalidDelay {
        /// The delay asked for.
        round_trip: Duration,
    },
    /// A delay needs a TUN device, which this machine does not have or does not let this process have. Load the kernel's module
    /// `tun`, or give the process access to `/dev/net/tun`.
    #[error(
        "a delayed link needs /dev/net/tun, which cannot be used ({source}): load the kernel's module tun, and let this \
         process read and write the device (Docker: --device /dev/net/tun)"
    )]
    TunUnavailable {
        /// What the system answered.
        source: std::io::Error,
    },
    /// A setting that Veilid does not understand, such as an unknown capability.
    #[error("network setting {setting}: {value:?} is not understood")]
    InvalidSetting {
        /// The name of the field in the network settings.
        setting: &'static str,
        /// Its value.
        value: String,
    },
    /// The kernel refused to change a link, an address, a route or a queue.
    #[error("{action}: {source}")]
    Netlink {
        /// What was being done.
        action: &'static str,
        /// The kernel's answer.
        source: rtnetlink::Error,
    },
    /// The kernel refused a system call that sets a namespace up.
    #[error("{action}: {source}")]
    System {
        /// What was being done.
        action: &'static str,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// A file or directory of the devnet cannot be written or read.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// Veilid refused a call.
    #[error("veilid: {0}")]
    Veilid(#[from] veilid_core::VeilidAPIError),
}

impl Error {
    /// Whether the same call may succeed later without anything being changed.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::NotReady { .. } => true,
            Self::Veilid(error) => matches!(
                error,
                veilid_core::VeilidAPIError::Timeout
                    | veilid_core::VeilidAPIError::TryAgain { .. }
                    | veilid_core::VeilidAPIError::NoConnection { .. }
            ),
            _ => false,
        }
    }

    pub(crate) fn system(action: &'static str) -> impl FnOnce(rustix::io::Errno) -> Self {
        move |errno| Self::System {
            action,
            source: errno.into(),
        }
    }

    pub(crate) fn netlink(action: &'static str) -> impl FnOnce(rtnetlink::Error) -> Self {
        move |source| Self::Netlink { action, source }
    }

    pub(crate) fn file(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { path, source }
    }
}
