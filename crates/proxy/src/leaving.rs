//! How a proxy leaves a virtual address that is about to be another's, so that nothing that is open breaks.
//!
//! ```text
//!   told ──▶ each answer is the last of its connection, and idle connections end; new ones are still taken
//!     │ none is open that was before, or the time is almost over
//!     v
//!   held ──▶ whoever begins a connection is not answered: it asks again in a second, and somebody else has the address
//!     │ what is on its way has come, and no connection is open to the address any more; or a second is over
//!     v
//!   left
//! ```
//!
//! To hold is to drop the first packet of connections (SYN) before the kernel sees it, by a filter on the listening sockets:
//! a refusal would be an error for the client, and silence is a second's delay. So it lasts no longer than that: what is
//! still open then would keep all others waiting.
//!
//! With an address of IPv4 that of IPv6 is left whose last half it is: both are somebody's together.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use lightbyte_api::address::InterfaceId;
use socket2::{SockFilter, SockRef};
use tokio::sync::watch;

use crate::lock::lock;

/// How long what was answered before may take to become a connection.
const SETTLED_AFTER: Duration = Duration::from_millis(100);

/// How long nobody is answered: as long as a client waits before it asks again (RFC 6298, 2.1).
const HELD_MAX: Duration = Duration::from_secs(1);

/// Which address is left, and how far that is.
#[derive(Debug)]
pub(crate) struct Leaving {
    /// The address as a number, nought if none is left: looked at with each request.
    address: AtomicU32,
    /// The same, for those who wait for it.
    told: watch::Sender<Option<Ipv4Addr>>,
    /// The address that nobody is answered at any more.
    held: watch::Sender<Option<Ipv4Addr>>,
    progress: Mutex<Progress>,
}

#[derive(Debug, Default)]
struct Progress {
    /// Open connections by the address that they came in at.
    open: HashMap<Ipv4Addr, usize>,
    /// Raised whenever an address begins to be left, or is not left any more.
    generation: u64,
    /// How many are open to the address that were before that began.
    before: usize,
    since: Option<Instant>,
    held_since: Option<Instant>,
}

/// What comes next in leaving.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Goes,
    Hold,
    Left,
}

/// How far it is.
#[derive(Clone, Copy, Debug)]
struct Standing {
    told_for: Duration,
    within: Duration,
    held_for: Option<Duration>,
    /// Connections that are open, and those among them that were before.
    open: usize,
    before: usize,
}

impl Standing {
    fn next(self) -> Next {
        match self.held_for {
            None if self.before == 0 || self.told_for + HELD_MAX >= self.within => Next::Hold,
            Some(held_for) if self.open == 0 && held_for >= SETTLED_AFTER => Next::Left,
            Some(held_for) if held_for >= HELD_MAX => Next::Left,
            _ => Next::Goes,
        }
    }
}

impl Default for Leaving {
    fn default() -> Leaving {
        let (told, held) = (watch::Sender::new(None), watch::Sender::new(None));
        Leaving { address: AtomicU32::new(0), told, held, progress: Mutex::default() }
    }
}

/// Where a connection came in: the address of IPv4, or the one that is the last half of that of IPv6; no address if neither is.
pub(crate) fn place_of(local: IpAddr) -> Ipv4Addr {
    match local.to_canonical() {
        IpAddr::V4(local) => local,
        IpAddr::V6(local) => InterfaceId::of_address(local).address4().unwrap_or(Ipv4Addr::UNSPECIFIED),
    }
}

impl Leaving {
    /// Leaves an address within so long, or none any more. Whether it is left: nothing is open to it, or its time is over, and
    /// nothing comes to be.
    pub(crate) fn leave(&self, wanted: Option<(Ipv4Addr, Duration)>) -> bool {
        let mut progress = lock(&self.progress);
        let address = wanted.map(|(address, _)| address);
        let open = address.and_then(|address| progress.open.get(&address).copied()).unwrap_or(0);
        let is_new = self.told.send_if_modified(|told| std::mem::replace(told, address) != address);
        if is_new {
            self.address.store(address.map_or(0, Ipv4Addr::to_bits), Ordering::Relaxed);
            self.held.send_replace(None);
            (progress.generation, progress.before) = (progress.generation + 1, open);
            (progress.since, progress.held_since) = (Some(Instant::now()), None);
        }
        let (Some((address, within)), Some(since)) = (wanted, progress.since) else { return false };
        let standing = Standing {
            told_for: since.elapsed(),
            within,
            held_for: progress.held_since.map(|at| at.elapsed()),
            open,
            before: progress.before,
        };
        match standing.next() {
            Next::Goes => false,
            Next::Left => true,
            Next::Hold => {
                self.held.send_replace(Some(address));
                progress.held_since = Some(Instant::now());
                false
            }
        }
    }

    /// Whether connections to this address are to end.
    pub(crate) fn is_left(&self, address: Ipv4Addr) -> bool {
        // Nought is no address: neither of who comes nor of what is left.
        !address.is_unspecified() && self.address.load(Ordering::Relaxed) == address.to_bits()
    }

    /// Returns once connections to this address are to end.
    pub(crate) async fn begins(&self, address: Ipv4Addr) {
        // Who could tell is here for as long as this is asked.
        let _ = self.told.subscribe().wait_for(|told| *told == Some(address)).await;
    }

    /// For [`hold`], by whoever has a listening socket.
    pub(crate) fn held(&self) -> watch::Receiver<Option<Ipv4Addr>> {
        self.held.subscribe()
    }

    /// Counts a connection that came in at this address, until it is [closed](Leaving::closed); what that needs to know.
    pub(crate) fn opened(&self, address: Ipv4Addr) -> u64 {
        let mut progress = lock(&self.progress);
        *progress.open.entry(address).or_default() += 1;
        progress.generation
    }

    /// A connection to this address is closed that was opened in this generation.
    pub(crate) fn closed(&self, address: Ipv4Addr, generation: u64) {
        let mut progress = lock(&self.progress);
        if let Some(open) = progress.open.get_mut(&address) {
            *open = open.saturating_sub(1);
            if *open == 0 {
                progress.open.remove(&address);
            }
        }
        if generation < progress.generation && self.is_left(address) {
            progress.before = progress.before.saturating_sub(1);
        }
    }
}

/// Drops what begins connections to this address at a listening socket, or nothing.
///
/// # Errors
/// If the kernel does not take the filter.
pub(crate) fn hold(socket: &impl AsFd, address: Option<Ipv4Addr>) -> io::Result<()> {
    let socket = SockRef::from(socket);
    match address {
        Some(address) => socket.attach_filter(&filter(address)),
        None => match socket.detach_filter() {
            // There was none.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            detached => detached,
        },
    }
}

/// A program of the kernel's packet filter (its documentation, `networking/filter`): it is given a packet from the head of TCP
/// on, and finds that of IP at an offset of its own.
fn filter(address: Ipv4Addr) -> [SockFilter; 13] {
    const LOAD_BYTE: u16 = 0x30;
    const LOAD_WORD: u16 = 0x20;
    const AND: u16 = 0x54;
    const JUMP_IF_ANY: u16 = 0x45;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    /// `SKF_NET_OFF` (linux/filter.h).
    const NETWORK: u32 = 0xfff0_0000;
    /// Where the flags are (RFC 9293, 3.1), and the one for an acknowledgement, which the first packet does not have.
    const FLAGS_AT: u32 = 13;
    const ACK: u32 = 0x10;
    /// Where the version is, and that of IPv6 (RFC 8200, 3).
    const VERSION: u32 = 0xf0;
    const IPV6: u32 = 0x60;
    /// Where the destination of IPv4 is (RFC 791, 3.1), and the two last words of that of IPv6.
    const DESTINATION_AT: u32 = 16;
    const DESTINATION6_AT: [u32; 2] = [32, 36];
    // The last half of the address of IPv6 is that of IPv4. Jumps count the steps that are left out if so, and if not.
    [
        SockFilter::new(LOAD_BYTE, 0, 0, FLAGS_AT),
        SockFilter::new(JUMP_IF_ANY, 10, 0, ACK),
        SockFilter::new(LOAD_BYTE, 0, 0, NETWORK),
        SockFilter::new(AND, 0, 0, VERSION),
        SockFilter::new(JUMP_IF_EQUAL, 2, 0, IPV6),
        SockFilter::new(LOAD_WORD, 0, 0, NETWORK + DESTINATION_AT),
        SockFilter::new(JUMP_IF_EQUAL, 4, 5, address.to_bits()),
        SockFilter::new(LOAD_WORD, 0, 0, NETWORK + DESTINATION6_AT[0]),
        SockFilter::new(JUMP_IF_EQUAL, 0, 3, 0),
        SockFilter::new(LOAD_WORD, 0, 0, NETWORK + DESTINATION6_AT[1]),
        SockFilter::new(JUMP_IF_EQUAL, 0, 1, address.to_bits()),
        SockFilter::new(RETURN, 0, 0, 0),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_on_until_nothing_is_open_or_its_time_is_over() {
        let millis = Duration::from_millis;
        for (told, held, open, before, expected) in [
            (0, None, 0, 0, Next::Hold),
            (0, None, 3, 1, Next::Goes),
            (0, None, 3, 0, Next::Hold),
            (28_999, None, 3, 1, Next::Goes),
            (29_000, None, 3, 1, Next::Hold),
            (50, Some(50), 0, 0, Next::Goes),
            (150, Some(100), 0, 0, Next::Left),
            (900, Some(900), 1, 0, Next::Goes),
            (1_000, Some(1_000), 1, 0, Next::Left),
        ] {
            let standing = Standing {
                told_for: millis(told),
                within: millis(30_000),
                held_for: held.map(millis),
                open,
                before,
            };
            assert_eq!(standing.next(), expected, "{standing:?}");
        }
    }

    #[test]
    fn both_families_are_one_place() {
        for (local, place) in [
            ("10.77.0.40", "10.77.0.40"),
            ("::ffff:10.77.0.40", "10.77.0.40"),
            ("fd00:77::10.77.0.40", "10.77.0.40"),
            ("fe80::ff:fe00:1", "0.0.0.0"),
        ] {
            let local = local.parse().expect("an address");
            assert_eq!(place_of(local).to_string(), place);
            assert!(!Leaving::default().is_left(place_of(local)), "nothing is left");
        }
    }

    #[test]
    fn who_was_there_before_is_told_from_who_came_since() {
        let leaving = Leaving::default();
        let [left, other] = [Ipv4Addr::new(10, 0, 0, 9), Ipv4Addr::new(10, 0, 0, 1)];
        let before = leaving.opened(left);
        leaving.opened(other);
        let leave = || leaving.leave(Some((left, Duration::from_secs(30))));
        assert!(!leave());
        let since = leaving.opened(left);
        leaving.closed(left, since);
        assert!(!leave() && leaving.held().borrow().is_none(), "one is open that was before");
        let since = leaving.opened(left);
        leaving.closed(left, before);
        assert!(!leave());
        assert_eq!(*leaving.held().borrow(), Some(left));
        leaving.closed(left, since);
        assert!(!leaving.leave(None) && leaving.held().borrow().is_none());
    }
}
