//! The few rtnetlink requests that a guest needs: link up, MTU, token, address, default route. Blocking: the kernel answers at once.
//!
//! Written out by hand because these are six messages; a netlink library would double the agent's size.
//! Source: rtnetlink(7), netlink(7).

use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_NEWROUTE: u16 = 24;
const NLMSG_ERROR: u16 = 2;
const FLAG_REQUEST: u16 = 1;
const FLAG_ACK: u16 = 4;
const FLAG_REPLACE: u16 = 0x100;
const FLAG_CREATE: u16 = 0x400;
const LINK_UP: u32 = 1;
const IFLA_MTU: u16 = 4;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_INET6_TOKEN: u16 = 7;
/// What an attribute that holds others has set in its kind.
const NESTED: u16 = 0x8000;
const INET6: u8 = 10;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_CACHEINFO: u16 = 6;
/// Nobody is asked whether they have the address: the host has.
const ADDRESS_UNASKED: u8 = 2;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const ROUTE_TABLE_MAIN: u8 = 254;
const ROUTE_PROTOCOL_BOOT: u8 = 3;
const ROUTE_UNICAST: u8 = 1;
const HEADER_BYTES: usize = 16;

/// A socket to the kernel's network configuration.
pub(crate) struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    pub(crate) fn open() -> io::Result<Self> {
        let socket = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            None, // NETLINK_ROUTE is protocol 0
        )?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Brings a link up; it may be up already.
    pub(crate) fn link_up(&mut self, index: u32) -> io::Result<()> {
        let mut body = vec![0, 0, 0, 0];
        body.extend_from_slice(&index.to_ne_bytes());
        body.extend_from_slice(&LINK_UP.to_ne_bytes());
        body.extend_from_slice(&LINK_UP.to_ne_bytes());
        self.request(RTM_NEWLINK, 0, &body)
    }

    /// Sets the largest packets of a link.
    pub(crate) fn set_mtu(&mut self, index: u32, mtu: u32) -> io::Result<()> {
        let mut body = vec![0, 0, 0, 0];
        body.extend_from_slice(&index.to_ne_bytes());
        // Neither flags nor a mask of them: it stays up or down.
        body.extend_from_slice(&[0; 8]);
        attribute(&mut body, IFLA_MTU, &mtu.to_ne_bytes());
        self.request(RTM_NEWLINK, 0, &body)
    }

    /// Sets the last half of the IPv6 addresses that routers advertise the first half of.
    pub(crate) fn set_token(&mut self, index: u32, token: Ipv6Addr) -> io::Result<()> {
        let mut body = vec![0, 0, 0, 0];
        body.extend_from_slice(&index.to_ne_bytes());
        body.extend_from_slice(&[0; 8]);
        let (mut of_family, mut of_inet6) = (Vec::new(), Vec::new());
        attribute(&mut of_inet6, IFLA_INET6_TOKEN, &token.octets());
        attribute(&mut of_family, NESTED | u16::from(INET6), &of_inet6);
        attribute(&mut body, NESTED | IFLA_AF_SPEC, &of_family);
        self.request(RTM_NEWLINK, 0, &body)
    }

    /// Gives a link an address; it may have it already.
    pub(crate) fn add_address(&mut self, index: u32, address: IpAddr, length: u8) -> io::Result<()> {
        self.request(RTM_NEWADDR, FLAG_CREATE | FLAG_REPLACE, &address_body(index, address, length))
    }

    /// Gives a link an address of IPv6 that it is reached by, and that nothing is sent from unless somebody asks for that; it may have it
    /// already.
    pub(crate) fn add_unused_address6(&mut self, index: u32, address: Ipv6Addr) -> io::Result<()> {
        let mut body = address_body(index, address.into(), 128);
        // `struct ifa_cacheinfo` (linux/if_addr.h): it is preferred for no time, and good for ever; then two times that the kernel sets.
        let lifetimes = [0, u32::MAX, 0, 0].map(u32::to_ne_bytes).concat();
        attribute(&mut body, IFA_CACHEINFO, &lifetimes);
        self.request(RTM_NEWADDR, FLAG_CREATE | FLAG_REPLACE, &body)
    }

    /// Takes an address from a link.
    pub(crate) fn remove_address(&mut self, index: u32, address: IpAddr, length: u8) -> io::Result<()> {
        self.request(RTM_DELADDR, 0, &address_body(index, address, length))
    }

    /// Sets the default route, replacing another one.
    pub(crate) fn default_route(&mut self, index: u32, gateway: IpAddr) -> io::Result<()> {
        let mut body = vec![
            family(gateway),
            0,
            0,
            0,
            ROUTE_TABLE_MAIN,
            ROUTE_PROTOCOL_BOOT,
            0,
            ROUTE_UNICAST,
            0,
            0,
            0,
            0,
        ];
        attribute(&mut body, RTA_OIF, &index.to_ne_bytes());
        attribute(&mut body, RTA_GATEWAY, &octets(gateway));
        self.request(RTM_NEWROUTE, FLAG_CREATE | FLAG_REPLACE, &body)
    }

    fn request(&mut self, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
        self.sequence += 1;
        let length = u32::try_from(HEADER_BYTES + body.len()).map_err(io::Error::other)?;
        let mut message = Vec::with_capacity(HEADER_BYTES + body.len());
        message.extend_from_slice(&length.to_ne_bytes());
        message.extend_from_slice(&kind.to_ne_bytes());
        message.extend_from_slice(&(FLAG_REQUEST | FLAG_ACK | flags).to_ne_bytes());
        message.extend_from_slice(&self.sequence.to_ne_bytes());
        message.extend_from_slice(&0_u32.to_ne_bytes());
        message.extend_from_slice(body);
        rustix::net::send(&self.socket, &message, SendFlags::empty())?;
        let mut answer = [0; 1024];
        let (bytes, _) = rustix::net::recv(&self.socket, &mut answer, RecvFlags::empty())?;
        match error_of(&answer[..bytes.min(answer.len())]) {
            Some(0) => Ok(()),
            Some(code) => Err(io::Error::from_raw_os_error(code.saturating_neg())),
            None => Err(io::Error::other("the kernel gave no acknowledgement")),
        }
    }
}

fn error_of(answer: &[u8]) -> Option<i32> {
    let kind = u16::from_ne_bytes(answer.get(4..6)?.try_into().ok()?);
    let code = i32::from_ne_bytes(answer.get(HEADER_BYTES..HEADER_BYTES + 4)?.try_into().ok()?);
    (kind == NLMSG_ERROR).then_some(code)
}

fn address_body(index: u32, address: IpAddr, length: u8) -> Vec<u8> {
    let flags = if address.is_ipv6() { ADDRESS_UNASKED } else { 0 };
    let mut body = vec![family(address), length, flags, 0];
    body.extend_from_slice(&index.to_ne_bytes());
    attribute(&mut body, IFA_LOCAL, &octets(address));
    attribute(&mut body, IFA_ADDRESS, &octets(address));
    body
}

fn family(address: IpAddr) -> u8 {
    if address.is_ipv4() { 2 } else { INET6 }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// Attributes are aligned to four bytes; all of ours are multiples of four.
fn attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    body.extend_from_slice(&((4 + value.len()) as u16).to_ne_bytes());
    body.extend_from_slice(&kind.to_ne_bytes());
    body.extend_from_slice(value);
}
