//! A long link: a constant delay, in userspace, since the kernel's own (`netem`) is not on every machine.
//!
//! The router sends what is meant for a host into a TUN device. A task reads it there, keeps each packet for the delay and puts
//! it back, whereupon the router delivers it. The whole round trip is added on the way to the host: for whoever waits for an
//! answer there is no difference, and only half the packets pass userspace.

use std::collections::VecDeque;
use std::ffi::c_int;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::ioctl::{Opcode, Updater, opcode};
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::links::{self, Addresses};
use crate::{Error, Result};

/// The longest delay.
pub(crate) const LONGEST: Duration = Duration::from_secs(10);
/// Bytes that are under way before the next packet is dropped: half a second at 125 MB/s.
const MOST: usize = 64 * 1024 * 1024;
/// The longest packet that a TUN device hands over.
const PACKET: usize = 65_536;
/// Packets that are read or written before the other direction gets its turn.
const BATCH: usize = 256;

const DEVICE: &str = "/dev/net/tun";
const NAME: usize = 16;

/// From `linux/if_tun.h`.
const TUNSETIFF: Opcode = opcode::write::<c_int>(b'T', 202);
const IFF_TUN: u16 = 0x0001;
const IFF_NO_PI: u16 = 0x1000;

/// `struct ifreq`, as `TUNSETIFF` reads and writes it.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; NAME],
    flags: u16,
    rest: [u8; 22],
}

/// The delay of one host's link, in the router's namespace. Dropping it ends its task, and its device goes.
pub(crate) struct Delay {
    round_trip: watch::Sender<Duration>,
    addresses: Addresses,
    /// Whether packets are sent this way now.
    used: bool,
}

impl Delay {
    /// On the router: makes the device and the task, and sends nothing there yet.
    pub(crate) async fn create(host: &str, addresses: Addresses) -> Result<Self> {
        // A name that no host's own link has.
        let link = format!("d{host}");
        let device = open(&link)?;
        links::configure_tun(&link, addresses).await?;
        // SAFETY: the descriptor is owned, so it stays open and the same for as long as the `AsyncFd` has it.
        #[allow(unsafe_code, reason = "tokio has no safe way to wait for a device")]
        let device = unsafe { AsyncFd::register(device) }.map_err(|error| Error::System {
            action: "waiting for a TUN device",
            source: error.into(),
        })?;
        let (round_trip, changed) = watch::channel(Duration::ZERO);
        tokio::spawn(carry(device, changed));
        Ok(Self {
            round_trip,
            addresses,
            used: false,
        })
    }

    /// On the router: puts a delay in place of the one before.
    pub(crate) async fn set(&mut self, round_trip: Option<Duration>) -> Result<()> {
        if let Some(round_trip) = round_trip {
            self.round_trip.send_replace(round_trip);
        }
        if self.used != round_trip.is_some() {
            links::divert(self.addresses, round_trip.is_some()).await?;
            self.used = round_trip.is_some();
        }
        Ok(())
    }

    /// The delay in force.
    pub(crate) fn get(&self) -> Option<Duration> {
        self.used.then(|| *self.round_trip.borrow())
    }
}

/// Makes a TUN device in the namespace of the calling thread. It lasts as long as what is returned.
fn open(name: &str) -> Result<OwnedFd> {
    let unavailable = |errno: Errno| Error::TunUnavailable {
        source: errno.into(),
    };
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let device = rustix::fs::open(DEVICE, flags, Mode::empty()).map_err(unavailable)?;
    let mut request = InterfaceRequest {
        name: [0; NAME],
        flags: IFF_TUN | IFF_NO_PI,
        rest: [0; 22],
    };
    // The kernel wants a zero at the end of the name.
    for (to, from) in request.name.iter_mut().take(NAME - 1).zip(name.bytes()) {
        *to = from;
    }
    // SAFETY: `TUNSETIFF` reads and writes a `struct ifreq`, which `InterfaceRequest` is laid out as: 16 bytes of name and 24
    // bytes of a union that begins with the flags.
    #[allow(unsafe_code, reason = "there is no other way to make a TUN device")]
    unsafe {
        rustix::ioctl::ioctl(
            &device,
            Updater::<TUNSETIFF, InterfaceRequest>::new(&mut request),
        )
    }
    .map_err(unavailable)?;
    Ok(device)
}

/// Packets that are under way, in order.
#[derive(Default)]
struct UnderWay {
    packets: VecDeque<(Instant, Box<[u8]>)>,
    bytes: usize,
    last: Option<Instant>,
}

impl UnderWay {
    /// Takes a packet, which is lost where too many are under way.
    fn push(&mut self, packet: &[u8], due: Instant) {
        if self.bytes + packet.len() > MOST {
            return;
        }
        // A delay that was shortened does not let packets overtake each other.
        let due = self.last.map_or(due, |last| last.max(due));
        self.last = Some(due);
        self.bytes += packet.len();
        self.packets.push_back((due, packet.into()));
    }

    fn pop(&mut self, now: Instant) -> Option<Box<[u8]>> {
        if self.packets.front()?.0 > now {
            return None;
        }
        let (_, packet) = self.packets.pop_front()?;
        self.bytes -= packet.len();
        Some(packet)
    }

    fn due(&self) -> Option<Instant> {
        self.packets.front().map(|(due, _)| *due)
    }
}

/// Keeps each packet for a while, until the delay is dropped.
async fn carry(device: AsyncFd<OwnedFd>, mut round_trip: watch::Receiver<Duration>) {
    let mut under_way = UnderWay::default();
    let mut buffer = vec![0; PACKET];
    loop {
        let due = under_way.due();
        let sleep = async {
            match due {
                Some(due) => sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            ready = device.readable() => {
                let Ok(mut ready) = ready else { return };
                let due = Instant::now() + *round_trip.borrow();
                for _ in 0..BATCH {
                    match rustix::io::read(device.get_ref(), &mut buffer[..]) {
                        Ok(length) => under_way.push(buffer.get(..length).unwrap_or_default(), due),
                        Err(Errno::AGAIN) => {
                            ready.clear_ready();
                            break;
                        }
                        Err(Errno::INTR) => {}
                        Err(error) => {
                            tracing::warn!(%error, "a delayed link is broken");
                            return;
                        }
                    }
                }
            }
            () = sleep => {}
            // Whoever sets the delay is gone, and the device goes as well.
            changed = round_trip.changed() => if changed.is_err() { return },
        }
        let now = Instant::now();
        for _ in 0..BATCH {
            let Some(packet) = under_way.pop(now) else {
                break;
            };
            // What the kernel does not take is lost, as on any link that is cut.
            if let Err(error) = rustix::io::write(device.get_ref(), &packet) {
                tracing::debug!(%error, "a delayed packet is lost");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_request_is_as_long_as_the_kernels() {
        assert_eq!(size_of::<InterfaceRequest>(), 40);
    }

    #[tokio::test]
    async fn packets_come_out_in_order_when_due_and_not_without_end() {
        let mut under_way = UnderWay::default();
        let now = Instant::now();
        let late = now + Duration::from_millis(100);
        under_way.push(&[1], late);
        under_way.push(&[2], now);
        assert_eq!(under_way.due(), Some(late));
        assert_eq!(under_way.pop(now), None);
        assert_eq!(under_way.pop(late).as_deref(), Some(&[1][..]));
        assert_eq!(under_way.pop(late).as_deref(), Some(&[2][..]));
        let half = vec![0; MOST / 2];
        for _ in 0..3 {
            under_way.push(&half, now);
        }
        assert_eq!(under_way.packets.len(), 2);
    }
}
