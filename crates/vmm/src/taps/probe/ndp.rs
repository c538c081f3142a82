//! Frames of neighbour discovery for IPv6 (RFC 4861, 4.3 and 4.4), as detection of duplicates uses them (RFC 4862, 5.4).

use std::net::Ipv6Addr;

use lightbyte_api::MacAddress;

/// `ETH_P_IPV6` (linux/if_ether.h).
pub(super) const PROTOCOL: u16 = 0x86dd;
/// Where the parts of a frame begin: the header of IPv6 (RFC 8200, 3), and what it carries.
const IPV6: usize = 14;
const ICMP: usize = 54;
/// A solicitation or an advertisement without options.
const ICMP_BYTES: usize = 24;
/// The protocol that the header of IPv6 names.
const ICMPV6: u8 = 58;
/// What only a neighbour can send: a router would have counted down.
const HOP_LIMIT: u8 = 255;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;

/// A solicitation from no address to those that may have this one.
pub(super) fn probe(from: MacAddress, address: Ipv6Addr) -> Vec<u8> {
    let [.., a, b, c] = address.octets();
    let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from_be_bytes([b, c]));
    frame(from, (Ipv6Addr::UNSPECIFIED, group), &[SOLICITATION, 0, 0, 0, 0, 0, 0, 0], address, &[])
}

/// An advertisement to everybody that `address` is at `mac`, whatever they remember (RFC 4861, 7.2.6).
pub(super) fn announcement(mac: MacAddress, address: Ipv6Addr) -> Vec<u8> {
    /// Nobody has asked, and what is remembered is to be replaced.
    const OVERRIDE: u8 = 0x20;
    /// The option that says where the address is, and its length in units of eight bytes (RFC 4861, 4.6.1).
    const TARGET_AT: [u8; 2] = [2, 1];
    let everybody = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let option = [&TARGET_AT[..], &mac.bytes()].concat();
    frame(mac, (address, everybody), &[ADVERTISEMENT, 0, 0, 0, OVERRIDE, 0, 0, 0], address, &option)
}

/// A frame to a group of neighbours about an address. `head` is that of ICMPv6, whose checksum is nought.
fn frame(
    from: MacAddress,
    (sender, group): (Ipv6Addr, Ipv6Addr),
    head: &[u8; 8],
    target: Ipv6Addr,
    option: &[u8],
) -> Vec<u8> {
    let content_bytes = (ICMP_BYTES + option.len()) as u16;
    let mut frame = vec![0; ICMP];
    // Where groups are on Ethernet (RFC 2464, 7).
    frame[..2].copy_from_slice(&[0x33, 0x33]);
    frame[2..6].copy_from_slice(&group.octets()[12..]);
    frame[6..12].copy_from_slice(&from.bytes());
    frame[12..14].copy_from_slice(&PROTOCOL.to_be_bytes());
    frame[IPV6] = 6 << 4;
    frame[IPV6 + 4..IPV6 + 6].copy_from_slice(&content_bytes.to_be_bytes());
    frame[IPV6 + 6] = ICMPV6;
    frame[IPV6 + 7] = HOP_LIMIT;
    frame[IPV6 + 8..IPV6 + 24].copy_from_slice(&sender.octets());
    frame[IPV6 + 24..ICMP].copy_from_slice(&group.octets());
    frame.extend([&head[..], &target.octets(), option].concat());
    let sum = checksum(&frame, content_bytes);
    frame[ICMP + 2..ICMP + 4].copy_from_slice(&sum.to_be_bytes());
    frame
}

/// The checksum of a frame that carries so much: over the addresses, the length and the protocol too (RFC 8200, 8.1). That of one
/// with its own in it is nought.
fn checksum(frame: &[u8], content_bytes: u16) -> u16 {
    let pairs = frame[IPV6 + 8..]
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or_default()])));
    let sum = pairs.sum::<u32>() + u32::from(content_bytes) + u32::from(ICMPV6);
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}

/// Who says in this frame that the address is theirs, or asks for it in order to have it.
pub(super) fn claimed_by(frame: &[u8], address: Ipv6Addr) -> Option<MacAddress> {
    let content_bytes = u16::from_be_bytes(frame.get(IPV6 + 4..IPV6 + 6)?.try_into().ok()?);
    // Without what a frame may have after its packet.
    let whole = frame.get(..ICMP + usize::from(content_bytes))?;
    let part = |from: usize, to: usize| whole.get(from..to);
    // What no host would take for true is not: a guest may get it out that may not say the same in order.
    let is_neighbours = part(12, 14)? == PROTOCOL.to_be_bytes()
        && part(IPV6, IPV6 + 1)?[0] >> 4 == 6
        && checksum(whole, content_bytes) == 0
        && part(IPV6 + 6, IPV6 + 8)? == [ICMPV6, HOP_LIMIT]
        && part(ICMP + 8, ICMP + ICMP_BYTES)? == address.octets();
    if !is_neighbours {
        return None;
    }
    let says = match part(ICMP, ICMP + 2)? {
        [ADVERTISEMENT, 0] => true,
        [SOLICITATION, 0] => part(IPV6 + 8, IPV6 + 24)? == [0; 16],
        _ => false,
    };
    says.then_some(MacAddress::new(part(6, 12)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OTHER: MacAddress = MacAddress::new([2, 0, 0, 0, 0, 9]);
    const WANTED: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0x0a4d, 5);

    fn frame(kind: u8, sender: Ipv6Addr, target: Ipv6Addr) -> Vec<u8> {
        let mut frame = probe(OTHER, target);
        frame[ICMP] = kind;
        frame[IPV6 + 8..IPV6 + 24].copy_from_slice(&sender.octets());
        summed(frame)
    }

    fn summed(mut frame: Vec<u8>) -> Vec<u8> {
        frame[ICMP + 2..ICMP + 4].fill(0);
        let sum = checksum(&frame, ICMP_BYTES as u16);
        frame[ICMP + 2..ICMP + 4].copy_from_slice(&sum.to_be_bytes());
        frame
    }

    #[test]
    fn a_probe_goes_to_its_group_with_a_right_checksum() {
        let frame = probe(OTHER, WANTED);
        assert_eq!(frame[..6], [0x33, 0x33, 0xff, 0x4d, 0, 5], "the group's hardware address");
        assert_eq!(
            frame[IPV6 + 24..ICMP],
            *Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff4d, 5).octets().as_slice()
        );
        // With its checksum in it, the sum over all is nought.
        assert_eq!(checksum(&frame, ICMP_BYTES as u16), 0);
    }

    #[test]
    fn an_announcement_says_who_has_the_address() {
        let frame = announcement(OTHER, WANTED);
        assert_eq!(claimed_by(&frame, WANTED), Some(OTHER));
        assert_eq!(frame[..6], [0x33, 0x33, 0, 0, 0, 1], "to everybody");
        assert_eq!(frame[ICMP + 4], 0x20, "whatever they remember");
        assert_eq!(frame[frame.len() - 8..], [2, 1, 2, 0, 0, 0, 0, 9], "where it is");
        assert_eq!(checksum(&frame, 32), 0);
    }

    #[test]
    fn who_has_the_address_is_told_from_who_asks_for_it() {
        let (other, nobody) = (Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0, 1), Ipv6Addr::UNSPECIFIED);
        let check = |what: &str, frame: &[u8], expect: bool| {
            assert_eq!(claimed_by(frame, WANTED), expect.then_some(OTHER), "{what}");
        };
        check("an answer", &frame(ADVERTISEMENT, WANTED, WANTED), true);
        check("somebody probes for it", &frame(SOLICITATION, nobody, WANTED), true);
        check("somebody asks for it", &frame(SOLICITATION, other, WANTED), false);
        check("an answer of another", &frame(ADVERTISEMENT, other, other), false);
        check("another message", &frame(134, other, WANTED), false);
        let whole = frame(ADVERTISEMENT, WANTED, WANTED);
        (0..whole.len()).for_each(|length| check("a part", &whole[..length], false));
        let changed = |at: usize, byte: u8| {
            let mut frame = whole.clone();
            frame[at] = byte;
            frame
        };
        check("from beyond a router", &summed(changed(IPV6 + 7, 254)), false);
        check("of another version", &changed(IPV6, 4 << 4), false);
        check("longer than it is", &changed(IPV6 + 5, 255), false);
        let mut cut = changed(IPV6 + 5, 8);
        cut[ICMP + 2..ICMP + 4].fill(0);
        let sum = checksum(&cut[..ICMP + 8], 8);
        cut[ICMP + 2..ICMP + 4].copy_from_slice(&sum.to_be_bytes());
        check("about an address that is behind its end", &cut, false);
        check("with another checksum", &changed(ICMP + 2, whole[ICMP + 2] ^ 1), false);
    }
}
