//! A network card as the DHCP client speaks through it: whole frames (packet(7)), and of those that come only what is said to a
//! client, and answers of ARP. smoltcp would answer everything else in the place of the guest's own kernel.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::addr::{SocketAddrArg, SocketAddrLen, SocketAddrOpaque};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use rustix::net::{bind, recv, send, socket_with};
use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;
use smoltcp::wire::{
    ArpOperation, ArpPacket, EthernetAddress, EthernetFrame, EthernetProtocol, IpProtocol, Ipv4Packet,
    UdpPacket,
};
use tokio::io::unix::AsyncFd;

/// The largest frame: Ethernet's, with its header.
const FRAME_BYTES_MAX: usize = 1514;

/// Most frames that are looked at in one turn: a network that says more must not keep the agent from everything else.
const FRAMES_OF_TURN_MAX: usize = 256;

/// Every type of frame (`ETH_P_ALL`, linux/if_ether.h).
const ALL: u16 = 3;

/// Where a DHCP client listens.
const CLIENT_PORT: u16 = 68;

/// A card that can be spoken through while it is open.
pub(crate) struct Wire {
    index: u32,
    mac: EthernetAddress,
    socket: Option<AsyncFd<OwnedFd>>,
    /// How many frames may still be looked at in this turn.
    frames_left: usize,
    /// When something was sent last.
    sent_at: Option<std::time::Instant>,
    /// Why nothing more can come.
    failure: Option<io::Error>,
}

impl Wire {
    pub(crate) const fn new(index: u32, mac: EthernetAddress) -> Wire {
        Wire { index, mac, socket: None, frames_left: 0, sent_at: None, failure: None }
    }

    /// Opens it, unless it is open, and lets so many frames be looked at again.
    ///
    /// # Errors
    /// When the card has gone.
    pub(crate) fn begin_turn(&mut self) -> io::Result<()> {
        self.frames_left = FRAMES_OF_TURN_MAX;
        if let Some(failure) = self.failure.take() {
            return Err(failure);
        }
        if self.socket.is_none() {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            // Of no type: before it is bound to its card it hears nothing.
            let socket = socket_with(AddressFamily::PACKET, SocketType::RAW, flags, None)?;
            bind(&socket, &LinkAddress::of(self.index)?)?;
            self.socket = Some(register(socket)?);
        }
        Ok(())
    }

    pub(crate) fn close(&mut self) {
        self.socket = None;
    }

    /// Since when nothing was sent.
    pub(crate) fn silent_for(&self) -> Duration {
        self.sent_at.map_or(Duration::MAX, |at| at.elapsed())
    }

    /// Waits until something may have come.
    pub(crate) async fn readable(&self) -> io::Result<()> {
        let Some(socket) = &self.socket else { return Ok(()) };
        socket.readable().await.map(|mut ready| ready.clear_ready())
    }

    /// The next frame that is for the client.
    fn next(&mut self) -> Option<Vec<u8>> {
        let socket = self.socket.as_ref()?;
        while let Some(left) = self.frames_left.checked_sub(1) {
            self.frames_left = left;
            let mut frame = vec![0; FRAME_BYTES_MAX];
            match recv(socket.get_ref(), &mut frame, RecvFlags::empty()) {
                Ok((length, _)) => {
                    frame.truncate(length);
                    if is_for_client(&frame, self.mac) {
                        return Some(frame);
                    }
                }
                Err(rustix::io::Errno::INTR) => {}
                // A card that is down may come up: the client asks again.
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::NETDOWN) => return None,
                Err(error) => {
                    self.failure = Some(error.into());
                    return None;
                }
            }
        }
        None
    }
}

fn is_for_client(frame: &[u8], own: EthernetAddress) -> bool {
    let Ok(frame) = EthernetFrame::new_checked(frame) else { return false };
    let is_for_own = frame.dst_addr() == own || frame.dst_addr().is_broadcast();
    if !is_for_own || frame.src_addr() == own {
        return false;
    }
    match frame.ethertype() {
        EthernetProtocol::Arp => ArpPacket::new_checked(frame.payload())
            .is_ok_and(|packet| packet.operation() == ArpOperation::Reply),
        EthernetProtocol::Ipv4 => Ipv4Packet::new_checked(frame.payload())
            .ok()
            .filter(|packet| packet.next_header() == IpProtocol::Udp && packet.frag_offset() == 0)
            .and_then(|packet| UdpPacket::new_checked(packet.payload()).ok().map(|udp| udp.dst_port()))
            .is_some_and(|port| port == CLIENT_PORT),
        _ => false,
    }
}

impl Device for Wire {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, now: Instant) -> Option<(Received, Sending<'_>)> {
        let frame = self.next()?;
        Some((Received(frame), self.transmit(now)?))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sending<'_>> {
        Some(Sending { socket: self.socket.as_ref()?, sent_at: &mut self.sent_at })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = FRAME_BYTES_MAX;
        // What comes from the same host has not got one yet.
        capabilities.checksum.udp = Checksum::Tx;
        capabilities
    }
}

/// A frame that has come.
pub(crate) struct Received(Vec<u8>);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        take(&self.0)
    }
}

/// A frame that is about to leave.
pub(crate) struct Sending<'a> {
    socket: &'a AsyncFd<OwnedFd>,
    sent_at: &'a mut Option<std::time::Instant>,
}

impl TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, fill: F) -> R {
        let mut frame = vec![0; length];
        let filled = fill(&mut frame);
        // One that is lost is sent again.
        let _ = send(self.socket.get_ref(), &frame, SendFlags::empty());
        *self.sent_at = Some(std::time::Instant::now());
        filled
    }
}

#[expect(unsafe_code, reason = "tokio cannot see that a descriptor stays open")]
fn register(socket: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open until it is dropped, which is after `AsyncFd` has let go of it.
    let registered = unsafe { AsyncFd::register(socket) };
    Ok(registered?)
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
    /// All frames of a card.
    fn of(index: u32) -> io::Result<LinkAddress> {
        let index = i32::try_from(index).map_err(io::Error::other)?;
        let (family, protocol) = (AddressFamily::PACKET.as_raw(), ALL.to_be());
        Ok(LinkAddress { family, protocol, index, hardware: 0, kind: 0, length: 0, address: [0; 8] })
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
