//! Frames of ARP for IPv4 over Ethernet (RFC 826, RFC 5227).

use std::net::Ipv4Addr;

use lightbyte_api::MacAddress;

/// `ETH_P_ARP` (linux/if_ether.h).
pub(super) const PROTOCOL: u16 = 0x0806;
const FRAME_BYTES: usize = 42;
/// The hardware type Ethernet, the protocol IPv4, and the length of their addresses (RFC 826).
const ETHERNET_AND_IPV4: [u8; 6] = [0, 1, 8, 0, 6, 4];

/// A request to everybody from no IPv4 address.
pub(super) fn probe(from: MacAddress, address: Ipv4Addr) -> Vec<u8> {
    let mut frame = vec![0; FRAME_BYTES];
    frame[..6].fill(0xff);
    frame[6..12].copy_from_slice(&from.bytes());
    frame[12..14].copy_from_slice(&PROTOCOL.to_be_bytes());
    frame[14..20].copy_from_slice(&ETHERNET_AND_IPV4);
    frame[21] = 1;
    frame[22..28].copy_from_slice(&from.bytes());
    frame[38..42].copy_from_slice(&address.octets());
    frame
}

/// An announcement to everybody that `address` is at `mac` (RFC 5227, 3).
pub(super) fn announcement(mac: MacAddress, address: Ipv4Addr) -> Vec<u8> {
    let mut frame = probe(mac, address);
    frame[28..32].copy_from_slice(&address.octets());
    frame
}

/// Who says in this frame that the address is theirs, or asks for it in order to have it.
pub(super) fn claimed_by(frame: &[u8], address: Ipv4Addr) -> Option<MacAddress> {
    let part = |from: usize, to: usize| frame.get(from..to);
    if part(12, 14)? != PROTOCOL.to_be_bytes() || part(14, 20)? != ETHERNET_AND_IPV4 {
        return None;
    }
    let mac = MacAddress::new(part(22, 28)?.try_into().ok()?);
    let (sender, target) = (part(28, 32)?, part(38, 42)?);
    let address = address.octets();
    let probes = part(20, 22)? == [0, 1] && sender == [0; 4] && target == address;
    (sender == address || probes).then_some(mac)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 9];
    const WANTED: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 5);

    fn frame(operation: u8, sender: [u8; 4], target: [u8; 4]) -> Vec<u8> {
        let mut frame = probe(MacAddress::new(OTHER), WANTED);
        frame[21] = operation;
        frame[28..32].copy_from_slice(&sender);
        frame[38..42].copy_from_slice(&target);
        frame
    }

    #[test]
    fn an_announcement_says_who_has_the_address() {
        let frame = announcement(MacAddress::new(OTHER), WANTED);
        assert_eq!(claimed_by(&frame, WANTED), Some(MacAddress::new(OTHER)));
        assert_eq!((&frame[..6], &frame[20..22]), (&[0xff; 6][..], &[0, 1][..]), "a request to everybody");
        assert_eq!(frame[28..32], frame[38..42], "of what the sender has");
    }

    #[test]
    fn who_has_the_address_is_told_from_who_asks_for_it() {
        let (wanted, other, nobody) = (WANTED.octets(), [10, 77, 0, 6], [0; 4]);
        let check = |what: &str, frame: &[u8], expect: bool| {
            let expect = expect.then_some(MacAddress::new(OTHER));
            assert_eq!(claimed_by(frame, WANTED), expect, "{what}");
        };
        check("an answer", &frame(2, wanted, other), true);
        check("a request from it", &frame(1, wanted, other), true);
        check("an announcement", &frame(1, wanted, wanted), true);
        check("somebody probes for it", &frame(1, nobody, wanted), true);
        check("somebody asks for it", &frame(1, other, wanted), false);
        check("an answer of another", &frame(2, other, wanted), false);
        check("a probe for another", &frame(1, nobody, other), false);
        let whole = frame(2, wanted, other);
        (0..whole.len()).for_each(|length| check("a part", &whole[..length], false));
        let mut broken = whole;
        broken[18] = 8;
        check("of another length", &broken, false);
    }
}
