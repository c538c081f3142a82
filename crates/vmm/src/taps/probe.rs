//! Whether anybody on a bridge has an address: probes of ARP (RFC 5227), shortened to what a start of a VM can bear.
//!
//! They leave by the bridge itself, from its own hardware address and from no IPv4 address, so that nobody remembers
//! anything for them. What answers is a machine on the wire or another port of the bridge. It is not the VM: that does not
//! run; and what carries its hardware address is a copy of its own earlier words. An address of the host's own answers
//! nothing that the host sends, so that is asked otherwise.

use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use lightbyte_api::MacAddress;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::addr::{SocketAddrArg, SocketAddrLen, SocketAddrOpaque};
use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType};
use rustix::net::{bind, recv, send, socket_with};

/// How often each address is asked for (`PROBE_NUM` of RFC 5227).
const PROBES: u32 = 3;
/// The pause between two of them. The RFC wants a second or two for networks of its time; a LAN answers in one or two
/// milliseconds, and a lost frame is made good by the next.
const PROBE_PAUSE: Duration = Duration::from_millis(30);
/// How long an answer to the last one may take.
const ANSWER_WITHIN: Duration = Duration::from_millis(60);
/// Most frames that are read for one address: a LAN that says more of ARP in so short a time is broken.
const FRAMES_MAX: usize = 10_000;

/// `ETH_P_ARP` (linux/if_ether.h).
const ARP: u16 = 0x0806;
/// A frame of ARP for IPv4 over Ethernet.
const FRAME_BYTES: usize = 42;
/// The hardware type Ethernet, the protocol IPv4, and the length of their addresses (RFC 826).
const ETHERNET_AND_IPV4: [u8; 6] = [0, 1, 8, 0, 6, 4];

/// Who has `address` on a bridge?
pub(super) struct Question {
    /// Index of the bridge.
    pub(super) bridge: u32,
    /// Its hardware address.
    pub(super) from: MacAddress,
    /// The hardware address of whoever is about to have the address.
    pub(super) own: MacAddress,
    pub(super) address: Ipv4Addr,
}

/// The hardware addresses that answer, for each question. Blocks for as long as the probes take, less if all are answered.
pub(super) fn ask(questions: &[Question]) -> io::Result<Vec<Option<MacAddress>>> {
    let mut asked: Vec<Asked<'_>> = questions.iter().map(Asked::begin).collect::<Result<_, _>>()?;
    for round in 1..=PROBES {
        for asked in asked.iter().filter(|asked| asked.answer.is_none()) {
            send(&asked.socket, &probe(asked.question), SendFlags::empty())?;
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
        let protocol = std::num::NonZero::new(u32::from(ARP.to_be())).map(Protocol::from_raw);
        let socket = socket_with(AddressFamily::PACKET, SocketType::RAW, flags, protocol)?;
        bind(&socket, &LinkAddress::of(question.bridge)?)?;
        let answer = is_hosts_own(question.address).then_some(question.from);
        Ok(Asked { question, socket, answer, frames: 0 })
    }

    /// Reads what has come.
    fn read(&mut self) -> io::Result<()> {
        let mut frame = [0; FRAME_BYTES];
        while self.answer.is_none() && self.frames < FRAMES_MAX {
            self.frames += 1;
            match recv(&self.socket, &mut frame, RecvFlags::empty()) {
                Ok((length, _)) => self.answer = conflict(&frame[..length.min(FRAME_BYTES)], self.question),
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

/// The probe: a request to everybody from no IPv4 address.
fn probe(question: &Question) -> [u8; FRAME_BYTES] {
    let mut frame = [0; FRAME_BYTES];
    frame[..6].fill(0xff);
    frame[6..12].copy_from_slice(&question.from.bytes());
    frame[12..14].copy_from_slice(&ARP.to_be_bytes());
    frame[14..20].copy_from_slice(&ETHERNET_AND_IPV4);
    frame[21] = 1;
    frame[22..28].copy_from_slice(&question.from.bytes());
    frame[38..42].copy_from_slice(&question.address.octets());
    frame
}

/// The hardware address of whoever shows by this frame that it has the address, or is about to take it itself.
fn conflict(frame: &[u8], question: &Question) -> Option<MacAddress> {
    let part = |from: usize, to: usize| frame.get(from..to);
    if part(12, 14)? != ARP.to_be_bytes() || part(14, 20)? != ETHERNET_AND_IPV4 {
        return None;
    }
    let mac = MacAddress::new(part(22, 28)?.try_into().ok()?);
    let (sender, target) = (part(28, 32)?, part(38, 42)?);
    let address = question.address.octets();
    let probes = part(20, 22)? == [0, 1] && sender == [0; 4] && target == address;
    let is_other = mac != question.own && mac != question.from;
    (is_other && (sender == address || probes)).then_some(mac)
}

/// Whether the host itself has the address. Only then can a socket be bound to it, unless the host allows others.
fn is_hosts_own(address: Ipv4Addr) -> bool {
    let allows_others = std::fs::read_to_string("/proc/sys/net/ipv4/ip_nonlocal_bind");
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
    fn of(index: u32) -> io::Result<LinkAddress> {
        let index = i32::try_from(index).map_err(io::Error::other)?;
        let family = AddressFamily::PACKET.as_raw();
        Ok(LinkAddress {
            family,
            protocol: ARP.to_be(),
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

    const SQUATTER: [u8; 6] = [2, 0, 0, 0, 0, 9];

    fn question() -> Question {
        Question {
            bridge: 1,
            from: MacAddress::new([2, 0, 0, 0, 0, 1]),
            own: MacAddress::new([2, 0, 0, 0, 0, 2]),
            address: Ipv4Addr::new(10, 77, 0, 5),
        }
    }

    fn frame(operation: u8, mac: [u8; 6], sender: [u8; 4], target: [u8; 4]) -> Vec<u8> {
        let mut frame = probe(&question()).to_vec();
        frame[21] = operation;
        frame[22..28].copy_from_slice(&mac);
        frame[28..32].copy_from_slice(&sender);
        frame[38..42].copy_from_slice(&target);
        frame
    }

    #[test]
    fn who_has_the_address_is_told_from_who_asks_for_it() {
        let (wanted, other, nobody) = ([10, 77, 0, 5], [10, 77, 0, 6], [0; 4]);
        let (from, own) = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        let check = |what: &str, frame: &[u8], expect: bool| {
            let expect = expect.then_some(MacAddress::new(SQUATTER));
            assert_eq!(conflict(frame, &question()), expect, "{what}");
        };
        check("an answer", &frame(2, SQUATTER, wanted, other), true);
        check("a request from it", &frame(1, SQUATTER, wanted, other), true);
        check("an announcement", &frame(1, SQUATTER, wanted, wanted), true);
        check("somebody probes for it", &frame(1, SQUATTER, nobody, wanted), true);
        check("somebody asks for it", &frame(1, SQUATTER, other, wanted), false);
        check("an answer of another", &frame(2, SQUATTER, other, wanted), false);
        check("a probe for another", &frame(1, SQUATTER, nobody, other), false);
        check("the VM's own words", &frame(2, own, wanted, other), false);
        check("our own probe", &frame(1, from, nobody, wanted), false);
        let whole = frame(2, SQUATTER, wanted, other);
        (0..whole.len()).for_each(|length| check("a part", &whole[..length], false));
        let mut broken = whole;
        broken[18] = 8;
        check("of another length", &broken, false);
    }
}
