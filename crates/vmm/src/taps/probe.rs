//! Whether anybody on a bridge has an address: probes of ARP (RFC 5227) and of neighbour discovery (RFC 4862, 5.4), shortened
//! to what a start of a VM can bear.
//!
//! They leave by the bridge itself, from its own hardware address and from no IPv4 address, so that nobody remembers
//! anything for them. What answers is a machine on the wire or another port of the bridge. It is not the VM: that does not
//! run; and what carries its hardware address is a copy of its own earlier words. An address of the host's own answers
//! nothing that the host sends, so that is asked otherwise.

mod arp;
mod ndp;

use std::io;
use std::net::{IpAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use lightbyte_api::MacAddress;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::addr::{SocketAddrArg, SocketAddrLen, SocketAddrOpaque};
use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType};
use rustix::net::{bind, recv, send, socket_with};

use super::netlink::Netlink;

/// How often each address is asked for (`PROBE_NUM` of RFC 5227).
const PROBES: u32 = 3;
/// The pause between two of them. The RFC wants a second or two for networks of its time; a LAN answers in one or two
/// milliseconds, and a lost frame is made good by the next.
const PROBE_PAUSE: Duration = Duration::from_millis(30);
/// How long an answer to the last one may take.
const ANSWER_WITHIN: Duration = Duration::from_millis(60);
/// Most frames that are read for one address: a LAN that says more of ARP in so short a time is broken.
const FRAMES_MAX: usize = 10_000;

/// As much of a frame as is looked at.
const FRAME_BYTES: usize = 128;

/// Who has `address` on a bridge?
pub(super) struct Question {
    /// Index of the bridge.
    pub(super) bridge: u32,
    /// Its hardware address.
    pub(super) from: MacAddress,
    /// The hardware address of whoever is about to have the address.
    pub(super) own: MacAddress,
    pub(super) address: IpAddr,
}

impl Question {
    /// The type of the frames that ask it and answer it (linux/if_ether.h).
    const fn protocol(&self) -> u16 {
        match self.address {
            IpAddr::V4(_) => arp::PROTOCOL,
            IpAddr::V6(_) => ndp::PROTOCOL,
        }
    }

    fn probe(&self) -> Vec<u8> {
        match self.address {
            IpAddr::V4(address) => arp::probe(self.from, address),
            IpAddr::V6(address) => ndp::probe(self.from, address),
        }
    }

    /// Who says in this frame that the address is theirs, or is about to be.
    fn conflict(&self, frame: &[u8]) -> Option<MacAddress> {
        let mac = match self.address {
            IpAddr::V4(address) => arp::claimed_by(frame, address),
            IpAddr::V6(address) => ndp::claimed_by(frame, address),
        }?;
        (mac != self.own && mac != self.from).then_some(mac)
    }
}

/// Tells everybody on a bridge that `address` is at `mac`.
///
/// # Errors
/// If it cannot be sent.
pub(super) fn announce(bridge: u32, mac: MacAddress, address: IpAddr) -> io::Result<()> {
    let socket = socket_with(AddressFamily::PACKET, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    let (protocol, frame) = match address {
        IpAddr::V4(address) => (arp::PROTOCOL, arp::announcement(mac, address)),
        IpAddr::V6(address) => (ndp::PROTOCOL, ndp::announcement(mac, address)),
    };
    bind(&socket, &LinkAddress::on(bridge, protocol)?)?;
    send(&socket, &frame, SendFlags::empty()).map(|_| ())?;
    // A host does not hear what it sends itself, and may remember another one.
    Netlink::open()?.forget_neighbour(bridge, address)
}

/// The hardware addresses that answer, for each question. Blocks for as long as the probes take, less if all are answered.
pub(super) fn ask(questions: &[Question]) -> io::Result<Vec<Option<MacAddress>>> {
    let mut asked: Vec<Asked<'_>> = questions.iter().map(Asked::begin).collect::<Result<_, _>>()?;
    for round in 1..=PROBES {
        for asked in asked.iter().filter(|asked| asked.answer.is_none()) {
            send(&asked.socket, &asked.question.probe(), SendFlags::empty())?;
        }
        let wait = if round == PROBES { ANSWER_WITHIN } else { PROBE_PAUSE };
        listen(&mut asked, Instant::now() + wait)?;
    }
    Ok(asked.into_iter().map(|asked| asked.answer).collect())
}

struct Asked<'a> {
    question: &'a Question,
    socket: OwnedFd,
    answer: Option<MacAddress>,
    frames: usize,
}

impl Asked<'_> {
    fn begin(question: &Question) -> io::Result<Asked<'_>> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let protocol = std::num::NonZero::new(u32::from(question.protocol().to_be())).map(Protocol::from_raw);
        let socket = socket_with(AddressFamily::PACKET, SocketType::RAW, flags, protocol)?;
        bind(&socket, &LinkAddress::on(question.bridge, question.protocol())?)?;
        let answer = is_hosts_own(question.address).then_some(question.from);
        Ok(Asked { question, socket, answer, frames: 0 })
    }

    /// Reads what has come.
    fn read(&mut self) -> io::Result<()> {
        let mut frame = [0; FRAME_BYTES];
        while self.answer.is_none() && self.frames < FRAMES_MAX {
            self.frames += 1;
            match recv(&self.socket, &mut frame, RecvFlags::empty()) {
                Ok((length, _)) => self.answer = self.question.conflict(&frame[..length.min(FRAME_BYTES)]),
                Err(rustix::io::Errno::AGAIN) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// Reads what comes until then.
fn listen(asked: &mut [Asked<'_>], until: Instant) -> io::Result<()> {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let mut open: Vec<&mut Asked<'_>> =
            asked.iter_mut().filter(|asked| asked.answer.is_none() && asked.frames < FRAMES_MAX).collect();
        if left.is_zero() || open.is_empty() {
            return Ok(());
        }
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        let mut sockets: Vec<PollFd<'_>> =
            open.iter().map(|asked| PollFd::new(&asked.socket, PollFlags::IN)).collect();
        match poll(&mut sockets, Some(&left)) {
            Ok(0) => return Ok(()),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        open.iter_mut().try_for_each(|asked| asked.read())?;
    }
}

/// Whether the host itself has the address. Only then can a socket be bound to it, unless the host allows others.
fn is_hosts_own(address: IpAddr) -> bool {
    let family = if address.is_ipv4() { "ipv4" } else { "ipv6" };
    let allows_others = std::fs::read_to_string(format!("/proc/sys/net/{family}/ip_nonlocal_bind"));
    allows_others.is_ok_and(|text| text.trim() == "0") && UdpSocket::bind((address, 0)).is_ok()
}

/// `struct sockaddr_ll` (packet(7)).
#[repr(C)]
struct LinkAddress {
    family: u16,
    protocol: u16,
    index: i32,
    hardware: u16,
    kind: u8,
    length: u8,
    address: [u8; 8],
}

impl LinkAddress {
    fn on(bridge: u32, protocol: u16) -> io::Result<LinkAddress> {
        let index = i32::try_from(bridge).map_err(io::Error::other)?;
        let family = AddressFamily::PACKET.as_raw();
        Ok(LinkAddress {
            family,
            protocol: protocol.to_be(),
            index,
            hardware: 0,
            kind: 0,
            length: 0,
            address: [0; 8],
        })
    }
}

#[expect(unsafe_code, reason = "rustix knows no addresses of links")]
// SAFETY: `LinkAddress` is laid out as packet(7) says, and lives as long as the call.
unsafe impl SocketAddrArg for LinkAddress {
    unsafe fn with_sockaddr<R>(&self, call: impl FnOnce(*const SocketAddrOpaque, SocketAddrLen) -> R) -> R {
        let length = SocketAddrLen::try_from(size_of::<LinkAddress>()).unwrap_or(0);
        call(std::ptr::from_ref(self).cast(), length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_taken_for_a_squatter_by_ones_own_words() {
        let mac = |last| MacAddress::new([2, 0, 0, 0, 0, last]);
        let (from, own, other) = (mac(1), mac(2), mac(9));
        for address in ["10.77.0.5", "fd00:77::a4d:5"] {
            let question = Question { bridge: 1, from, own, address: address.parse().expect("an address") };
            let probed_by = |from| question.conflict(&Question { bridge: 1, from, ..question }.probe());
            assert_eq!(probed_by(from), None, "our own probe for {address}");
            assert_eq!(probed_by(own), None, "the VM's own words about {address}");
            assert_eq!(probed_by(other), Some(other), "somebody probes for {address}");
        }
    }
}
