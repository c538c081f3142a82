//! How a proxy leaves a virtual address that is about to be another's, so that nothing that is open breaks.
//!
//! ```text
//!   told ──▶ each answer is the last of its connection, and idle connections end; new ones are still taken
//!     │ none is open to the address, or `TAKEN_FOR` is over
//!     v
//!   held ──▶ whoever begins a connection is not answered: it asks again in a second, and somebody else has the address
//!     │ what is on its way has come, and no connection is open to the address any more
//!     v
//!   left
//! ```
//!
//! To hold is to drop the first packet of connections (SYN) before the kernel sees it, by a filter on the listening sockets:
//! a refusal would be an error for the client, and silence is a second's delay.

use std::collections::HashMap;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use socket2::{SockFilter, SockRef};
use tokio::sync::watch;

use crate::lock::lock;

/// For how long connections are still taken while some are open.
const TAKEN_FOR: Duration = Duration::from_secs(2);

/// How long what was answered before may take to become a connection.
const SETTLED_AFTER: Duration = Duration::from_millis(100);

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

fn next(told_for: Duration, held_for: Option<Duration>, open: usize) -> Next {
    match held_for {
        None if open == 0 || told_for >= TAKEN_FOR => Next::Hold,
        Some(held_for) if open == 0 && held_for >= SETTLED_AFTER => Next::Left,
        _ => Next::Goes,
    }
}

impl Default for Leaving {
    fn default() -> Leaving {
        let (told, held) = (watch::Sender::new(None), watch::Sender::new(None));
        Leaving { address: AtomicU32::new(0), told, held, progress: Mutex::default() }
    }
}

impl Leaving {
    /// Leaves `address`, or none any more. Whether it is left: nothing is open to it, and nothing comes to be.
    pub(crate) fn leave(&self, address: Option<Ipv4Addr>) -> bool {
        let mut progress = lock(&self.progress);
        let is_new = self.told.send_if_modified(|told| std::mem::replace(told, address) != address);
        if is_new {
            self.address.store(address.map_or(0, Ipv4Addr::to_bits), Ordering::Relaxed);
            self.held.send_replace(None);
            (progress.since, progress.held_since) = (Some(Instant::now()), None);
        }
        let (Some(address), Some(since)) = (address, progress.since) else { return false };
        let open = progress.open.get(&address).copied().unwrap_or(0);
        match next(since.elapsed(), progress.held_since.map(|at| at.elapsed()), open) {
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
        self.address.load(Ordering::Relaxed) == address.to_bits()
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

    /// Counts a connection that came in at this address, until it is [closed](Leaving::closed).
    pub(crate) fn opened(&self, address: Ipv4Addr) {
        *lock(&self.progress).open.entry(address).or_default() += 1;
    }

    pub(crate) fn closed(&self, address: Ipv4Addr) {
        let mut progress = lock(&self.progress);
        if let Some(open) = progress.open.get_mut(&address) {
            *open = open.saturating_sub(1);
            if *open == 0 {
                progress.open.remove(&address);
            }
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
fn filter(address: Ipv4Addr) -> [SockFilter; 6] {
    const LOAD_BYTE: u16 = 0x30;
    const LOAD_WORD: u16 = 0x20;
    const JUMP_IF_ANY: u16 = 0x45;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    /// `SKF_NET_OFF` (linux/filter.h).
    const NETWORK: u32 = 0xfff0_0000;
    /// Where the flags are (RFC 9293, 3.1), and the one for an acknowledgement, which the first packet does not have.
    const FLAGS_AT: u32 = 13;
    const ACK: u32 = 0x10;
    /// Where the destination is (RFC 791, 3.1).
    const DESTINATION_AT: u32 = 16;
    [
        SockFilter::new(LOAD_BYTE, 0, 0, FLAGS_AT),
        SockFilter::new(JUMP_IF_ANY, 3, 0, ACK),
        SockFilter::new(LOAD_WORD, 0, 0, NETWORK + DESTINATION_AT),
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
        for (told, held, open, expected) in [
            (0, None, 0, Next::Hold),
            (0, None, 3, Next::Goes),
            (1_999, None, 3, Next::Goes),
            (2_000, None, 3, Next::Hold),
            (50, Some(50), 0, Next::Goes),
            (150, Some(100), 0, Next::Left),
            (9_000, Some(7_000), 1, Next::Goes),
        ] {
            assert_eq!(next(millis(told), held.map(millis), open), expected, "{told} {held:?} {open}");
        }
    }
}
