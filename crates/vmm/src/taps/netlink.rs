//! As much of rtnetlink(7) as taps need: which interfaces there are, and one message that names one, joins it to a
//! bridge and brings it up.

use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;

use lightbyte_api::MacAddress;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};

/// Room for one part of the list: the kernel fills what it is given, up to 32 KiB at once (netlink(7)).
const ANSWER_BYTES: usize = 64 * 1024;

/// Parts of a list that are read: over a million interfaces.
const ANSWERS_MAX: usize = 100_000;

/// `struct nlmsghdr`: length, type, flags, sequence number, port.
const HEADER_BYTES: usize = 16;
/// `struct ifinfomsg`: family, type, index, flags, mask of changes.
const LINK_BYTES: usize = 16;

const ERROR: u16 = 2;
const DONE: u16 = 3;
const NEW_LINK: u16 = 16;
const GET_LINK: u16 = 18;
const REQUEST: u16 = 1;
const ACKNOWLEDGE: u16 = 4;
const DUMP: u16 = 0x300;
const DELETE_NEIGHBOUR: u16 = 29;
/// `AF_INET`.
const INET: u8 = 2;
/// `AF_INET6`.
const INET6: u8 = 10;
/// `struct ndmsg`: family, index, state, flags and kind.
const NEIGHBOUR_BYTES: usize = 12;
/// `NDA_DST`.
const DESTINATION: u16 = 1;
const ADDRESS: u16 = 1;
const NAME: u16 = 3;
const MTU: u16 = 4;
const MASTER: u16 = 10;
const ALIAS: u16 = 20;
/// `IFF_UP` (netdevice(7)).
const UP: u32 = 1;

/// An interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    /// Text that somebody has given it.
    pub(super) alias: String,
    /// Its hardware address; none of Ethernet's where it has none.
    pub(super) mac: Option<MacAddress>,
    pub(super) is_up: bool,
}

/// A connection to the kernel, in the network namespace of this thread.
pub(super) struct Netlink {
    socket: OwnedFd,
    answer: Vec<u8>,
}

impl Netlink {
    pub(super) fn open() -> io::Result<Netlink> {
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        Ok(Netlink { socket, answer: vec![0; ANSWER_BYTES] })
    }

    /// Every interface of the namespace.
    pub(super) fn links(&mut self) -> io::Result<Vec<Link>> {
        send(&self.socket, &message(GET_LINK, REQUEST | DUMP, 0, 0, &[]), SendFlags::empty())?;
        let mut links = Vec::new();
        for _ in 0..ANSWERS_MAX {
            let (length, _) = recv(&self.socket, &mut self.answer, RecvFlags::empty())?;
            if read_links(&self.answer[..length], &mut links)? {
                return Ok(links);
            }
        }
        Err(invalid("the list of interfaces has no end"))
    }

    /// Gives an interface its hardware address, its alias and the largest packets it takes, joins it to a bridge and brings
    /// it up.
    pub(super) fn set_up(
        &mut self,
        index: u32,
        bridge: u32,
        address: MacAddress,
        alias: &str,
        mtu: u32,
    ) -> io::Result<()> {
        let mut attributes = Vec::new();
        attribute(&mut attributes, MTU, &mtu.to_ne_bytes());
        attribute(&mut attributes, ADDRESS, &address.bytes());
        attribute(&mut attributes, MASTER, &bridge.to_ne_bytes());
        attribute(&mut attributes, ALIAS, alias.as_bytes());
        self.change(index, UP, &attributes)
    }

    /// Gives an interface an alias.
    pub(super) fn set_alias(&mut self, index: u32, alias: &str) -> io::Result<()> {
        let mut attributes = Vec::new();
        attribute(&mut attributes, ALIAS, alias.as_bytes());
        self.change(index, 0, &attributes)
    }

    /// Forgets where on a bridge an address is, if anything is remembered of it.
    pub(super) fn forget_neighbour(&mut self, index: u32, address: IpAddr) -> io::Result<()> {
        match self.request(&neighbour(index, address)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            outcome => outcome,
        }
    }

    fn change(&mut self, index: u32, up: u32, attributes: &[u8]) -> io::Result<()> {
        self.request(&message(NEW_LINK, REQUEST | ACKNOWLEDGE, index, up, attributes))
    }

    fn request(&mut self, message: &[u8]) -> io::Result<()> {
        send(&self.socket, message, SendFlags::empty())?;
        let (length, _) = recv(&self.socket, &mut self.answer, RecvFlags::empty())?;
        read_links(&self.answer[..length], &mut Vec::new()).map(|_| ())
    }
}

fn message(kind: u16, flags: u16, index: u32, up: u32, attributes: &[u8]) -> Vec<u8> {
    let length = HEADER_BYTES + LINK_BYTES + attributes.len();
    let mut message = Vec::with_capacity(length);
    message.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(&flags.to_ne_bytes());
    // Sequence number and port: one request at a time, and the kernel knows who asks. Then family and type.
    message.extend_from_slice(&[0; 8 + 4]);
    message.extend_from_slice(&index.to_ne_bytes());
    message.extend_from_slice(&up.to_ne_bytes());
    message.extend_from_slice(&up.to_ne_bytes());
    message.extend_from_slice(attributes);
    message
}

/// A message that has an entry of the neighbour table deleted: `struct ndmsg` of 12 bytes (rtnetlink(7)), and the address.
fn neighbour(index: u32, address: IpAddr) -> Vec<u8> {
    let mut attributes = Vec::new();
    match address {
        IpAddr::V4(address) => attribute(&mut attributes, DESTINATION, &address.octets()),
        IpAddr::V6(address) => attribute(&mut attributes, DESTINATION, &address.octets()),
    }
    let mut message = message(DELETE_NEIGHBOUR, REQUEST | ACKNOWLEDGE, index, 0, &attributes);
    message[HEADER_BYTES] = if address.is_ipv4() { INET } else { INET6 };
    // Index, then state, flags and kind, which stay nought; it is shorter than that of a link.
    message.drain(HEADER_BYTES + NEIGHBOUR_BYTES..HEADER_BYTES + LINK_BYTES);
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    message[..4].copy_from_slice(&length.to_ne_bytes());
    message
}

/// `struct rtattr`: length and type, then the value, up to a multiple of four bytes.
fn attribute(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    message.extend_from_slice(&length.to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(value);
    message.resize(message.len().next_multiple_of(4), 0);
}

/// Reads messages of interfaces; true at the end of a list or of an answer.
fn read_links(mut bytes: &[u8], links: &mut Vec<Link>) -> io::Result<bool> {
    while !bytes.is_empty() {
        let length = word(bytes, 0).map_or(0, |length| length as usize);
        let message = bytes.get(..length).filter(|_| length >= HEADER_BYTES);
        let message = message.ok_or_else(|| invalid("a broken message"))?;
        match half(message, 4) {
            Some(DONE) => return Ok(true),
            Some(ERROR) => {
                return match word(message, HEADER_BYTES).map_or(0, u32::cast_signed) {
                    0 => Ok(true),
                    code => Err(io::Error::from_raw_os_error(code.saturating_neg())),
                };
            }
            Some(NEW_LINK) => links.push(read_link(message).ok_or_else(|| invalid("a broken interface"))?),
            _ => {}
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

fn read_link(message: &[u8]) -> Option<Link> {
    let is_up = word(message, HEADER_BYTES + 8)? & UP != 0;
    let mut link = Link { index: word(message, HEADER_BYTES + 4)?, is_up, ..Link::default() };
    let mut rest = message.get(HEADER_BYTES + LINK_BYTES..)?;
    while rest.len() >= 4 {
        let length = usize::from(half(rest, 0)?);
        let value = rest.get(4..length)?;
        let text = || String::from_utf8_lossy(value).trim_end_matches('\0').to_owned();
        match half(rest, 2)? {
            NAME => link.name = text(),
            ALIAS => link.alias = text(),
            ADDRESS => link.mac = value.try_into().ok().map(MacAddress::new),
            _ => {}
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Some(link)
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes)
}

fn invalid(text: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str, alias: &str) -> Vec<u8> {
        let mut attributes = Vec::new();
        attribute(&mut attributes, NAME, format!("{name}\0").as_bytes());
        attribute(&mut attributes, 99, b"something else");
        attribute(&mut attributes, ALIAS, alias.as_bytes());
        message(NEW_LINK, 0, index, 0, &attributes)
    }

    fn end(kind: u16, code: i32) -> Vec<u8> {
        message(kind, 0, 0, 0, &[]).into_iter().take(16).chain(code.to_ne_bytes()).collect()
    }

    #[test]
    fn lists_are_read_to_their_end() {
        let mut bytes = [link(1, "lo", ""), link(7, "lb0", "an alias")].concat();
        let mut links = Vec::new();
        assert!(!read_links(&bytes, &mut links).unwrap());
        let (name, alias) = ("lb0".to_owned(), "an alias".to_owned());
        assert_eq!(links[1], Link { index: 7, name, alias, ..Link::default() });
        let mut done = end(DONE, 0);
        done[0] = 20;
        bytes.extend(done);
        assert!(read_links(&bytes, &mut links).unwrap());
        assert_eq!(links.len(), 4);
    }

    #[test]
    fn errors_and_broken_messages_are_told() {
        let mut refused = end(ERROR, -16);
        refused[0] = 20;
        let error = read_links(&refused, &mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ResourceBusy);
        let whole = link(1, "lo", "");
        for length in 1..whole.len() {
            assert!(read_links(&whole[..length], &mut Vec::new()).is_err(), "{length}");
        }
    }

    #[test]
    fn this_machine_has_interfaces() {
        let links = Netlink::open().and_then(|mut netlink| netlink.links()).unwrap();
        assert!(links.iter().any(|link| link.name == "lo"), "{links:?}");
    }
}
