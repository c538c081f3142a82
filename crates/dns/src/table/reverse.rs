//! Reverse names (RFC 1035, 3.5; RFC 3596, 2.5) as the numbers that they are.
//!
//! They are not in the map of names: an IPv6 address has 32 labels, and what is between a name and its zone would be
//! most of the memory. A name is read back into an address, or into the first bits of one, and looked for in order.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lightbyte_api::address::{Cidr, Subnet, Subnet6};
use lightbyte_api::zone::{TTL_DEFAULT_S, Zone};

use super::{Place, RecordSet, Slots};
use crate::wire::{self, rtype};

const V4_SUFFIX: &[u8] = b"\x07in-addr\x04arpa\x00";
const V6_SUFFIX: &[u8] = b"\x03ip6\x04arpa\x00";

/// More labels fit no name of 255 bytes.
const LABELS_MAX: usize = 128;

#[derive(Debug)]
pub(super) struct Reverse {
    /// In order, so that of nested ones the larger comes first.
    subnets: Vec<Cidr>,
    pointers: BTreeMap<IpAddr, [RecordSet; 1]>,
    /// SOA and NS, which each subnet's zone has.
    apex: Box<[RecordSet]>,
}

/// The first bits of an address, as a name below `in-addr.arpa` or `ip6.arpa` has them.
struct Prefix {
    first: IpAddr,
    last: IpAddr,
    bits: u8,
    /// Where the label after so many bits begins; the last entry is that of the suffix, for none.
    starts: [u8; LABELS_MAX],
    labels: usize,
    /// How many labels are numbers, counted from the suffix.
    numbers: usize,
}

impl Reverse {
    pub(super) fn new(zone: &Zone, apex: Box<[RecordSet]>, slots: &mut Slots) -> Reverse {
        let mut subnets = zone.reverse.clone();
        subnets.sort_unstable();
        let pointers = zone.pointers.iter().map(|(address, target)| {
            let data = std::iter::once(wire::encode(target));
            (*address, [RecordSet::new(rtype::PTR, TTL_DEFAULT_S, slots, data)])
        });
        Reverse { subnets, pointers: pointers.collect(), apex }
    }

    /// All reverse names, and nothing known of them.
    pub(super) fn all() -> Reverse {
        let v4 = Cidr::V4(Subnet::of(Ipv4Addr::UNSPECIFIED, 0));
        let v6 = Cidr::V6(Subnet6::of(Ipv6Addr::UNSPECIFIED, 0));
        Reverse { subnets: vec![v4, v6], pointers: BTreeMap::new(), apex: Box::default() }
    }

    pub(super) fn look_up(&self, name: &[u8]) -> Place<'_> {
        let Some(prefix) = Prefix::read(name) else {
            return Place::Outside;
        };
        let Some(apex_labels) = self.subnets.iter().find_map(|subnet| prefix.apex_labels(*subnet)) else {
            return Place::Outside;
        };
        let apex_at = usize::from(prefix.starts[prefix.labels - apex_labels]);
        Place::Zone { apex_at, sets: self.sets(&prefix, apex_labels) }
    }

    fn sets(&self, prefix: &Prefix, apex_labels: usize) -> Option<&[RecordSet]> {
        if prefix.labels == apex_labels {
            return Some(&self.apex);
        }
        if prefix.labels > prefix.numbers {
            return None;
        }
        let (address, pointer) = self.pointers.range(prefix.first..=prefix.last).next()?;
        // What is between an address and its zone is there, and has nothing.
        let is_whole = prefix.first == prefix.last && *address == prefix.first;
        Some(if is_whole { pointer } else { &[] })
    }
}

impl Prefix {
    /// Reads a name; `None` if it is no reverse name.
    fn read(name: &[u8]) -> Option<Prefix> {
        let is_v4 = name.ends_with(V4_SUFFIX);
        if !is_v4 && !name.ends_with(V6_SUFFIX) {
            return None;
        }
        let suffix_at = name.len() - if is_v4 { V4_SUFFIX.len() } else { V6_SUFFIX.len() };
        let mut starts = [0; LABELS_MAX];
        let (mut at, mut labels) = (0, 0);
        while at < suffix_at {
            *starts.get_mut(labels)? = u8::try_from(at).ok()?;
            at += 1 + usize::from(name[at]);
            labels += 1;
        }
        if at != suffix_at {
            return None;
        }
        *starts.get_mut(labels)? = u8::try_from(at).ok()?;
        let label = |index: usize| &name[usize::from(starts[index]) + 1..usize::from(starts[index + 1])];
        let in_order = (0..labels).rev().map(label);
        Some(if is_v4 { Prefix::v4(in_order, starts, labels) } else { Prefix::v6(in_order, starts, labels) })
    }

    fn v4<'a>(labels: impl Iterator<Item = &'a [u8]>, starts: [u8; LABELS_MAX], count: usize) -> Prefix {
        let octets: Vec<u8> = labels.map_while(octet).take(4).collect();
        let mut first = [0; 4];
        first[..octets.len()].copy_from_slice(&octets);
        let mut last = [0xff; 4];
        last[..octets.len()].copy_from_slice(&octets);
        let bits = u8::try_from(octets.len() * 8).unwrap_or(32);
        let (first, last) = (Ipv4Addr::from(first).into(), Ipv4Addr::from(last).into());
        Prefix { first, last, bits, starts, labels: count, numbers: octets.len() }
    }

    fn v6<'a>(labels: impl Iterator<Item = &'a [u8]>, starts: [u8; LABELS_MAX], count: usize) -> Prefix {
        let mut first = 0_u128;
        let mut numbers = 0;
        for nibble in labels.map_while(nibble).take(32) {
            numbers += 1;
            first |= u128::from(nibble) << (128 - 4 * numbers);
        }
        let last = first | u128::MAX.checked_shr(4 * numbers).unwrap_or(0);
        let bits = u8::try_from(4 * numbers).unwrap_or(128);
        let numbers = usize::try_from(numbers).unwrap_or(32);
        let (first, last) = (Ipv6Addr::from(first).into(), Ipv6Addr::from(last).into());
        Prefix { first, last, bits, starts, labels: count, numbers }
    }

    /// How many labels the zone of a subnet has before the suffix, if the name lies in one. A subnet that does not end
    /// where a label does is several zones.
    fn apex_labels(&self, subnet: Cidr) -> Option<usize> {
        let (length, label_bits) = match (subnet, self.first) {
            (Cidr::V4(subnet), IpAddr::V4(first)) if subnet.contains(first) => (subnet.prefix_length(), 8),
            (Cidr::V6(subnet), IpAddr::V6(first)) if subnet.contains(first) => (subnet.prefix_length(), 4),
            _ => return None,
        };
        let labels = length.div_ceil(label_bits);
        (labels * label_bits <= self.bits).then_some(labels.into())
    }
}

/// A number of 8 bits as it is written in a name: decimal, and no zero before it.
fn octet(label: &[u8]) -> Option<u8> {
    let text = std::str::from_utf8(label).ok()?;
    let is_digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let is_short = text.len() == 1 || !text.starts_with('0');
    if is_digits && is_short { text.parse().ok() } else { None }
}

fn nibble(label: &[u8]) -> Option<u8> {
    let [digit] = label else { return None };
    char::from(*digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}
