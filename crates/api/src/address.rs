//! Subnets and MAC addresses, as far as lightbyte speaks of them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An IPv4 subnet in CIDR form (RFC 4632), with all host bits zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subnet {
    base: Ipv4Addr,
    prefix_length: u8,
}

/// An IPv6 subnet (RFC 4291, 2.3), with all host bits zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subnet6 {
    base: Ipv6Addr,
    prefix_length: u8,
}

/// Why a text is no subnet or no [`MacAddress`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Not of the form `a.b.c.d/length`.
    #[error("`{0}` is not a subnet such as 10.77.0.0/16")]
    Subnet(String),
    /// Not of the form `a:b::/length`.
    #[error("`{0}` is not a subnet of IPv6 such as fd00:77::/64")]
    Subnet6(String),
    /// Host bits are set.
    #[error("`{0}` has host bits set; the subnet is `{1}`")]
    HostBits(String, String),
    /// Not six pairs of hexadecimal digits.
    #[error("`{0}` is not a MAC address such as 02:00:5e:10:00:01")]
    Mac(String),
}

macro_rules! subnet {
    ($subnet:ident, $address:ident, $number:ident, $bits:literal) => {
        impl $subnet {
            /// The subnet of that prefix length that `address` lies in. A length over the address's counts as that.
            #[must_use]
            pub fn of(address: $address, prefix_length: u8) -> $subnet {
                let prefix_length = prefix_length.min($bits);
                let base = $address::from($number::from(address) & Self::mask(prefix_length));
                $subnet { base, prefix_length }
            }

            /// The network address.
            #[must_use]
            pub const fn base(self) -> $address {
                self.base
            }

            /// The length of the prefix in bits.
            #[must_use]
            pub const fn prefix_length(self) -> u8 {
                self.prefix_length
            }

            /// Whether `address` lies in it.
            #[must_use]
            pub fn contains(self, address: $address) -> bool {
                $number::from(address) & Self::mask(self.prefix_length) == $number::from(self.base)
            }

            fn mask(prefix_length: u8) -> $number {
                $number::MAX.checked_shl($bits - u32::from(prefix_length)).unwrap_or(0)
            }
        }

        impl FromStr for $subnet {
            type Err = AddressError;
            fn from_str(text: &str) -> Result<$subnet, AddressError> {
                let bad = || AddressError::$subnet(text.to_owned());
                let (address, length) = text.split_once('/').ok_or_else(bad)?;
                let address: $address = address.parse().map_err(|_| bad())?;
                let prefix_length: u8 =
                    length.parse().ok().filter(|length| *length <= $bits).ok_or_else(bad)?;
                let subnet = $subnet::of(address, prefix_length);
                if subnet.base == address {
                    Ok(subnet)
                } else {
                    Err(AddressError::HostBits(text.to_owned(), subnet.to_string()))
                }
            }
        }

        impl fmt::Display for $subnet {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(formatter, "{}/{}", self.base, self.prefix_length)
            }
        }
    };
}
subnet!(Subnet, Ipv4Addr, u32, 32);
subnet!(Subnet6, Ipv6Addr, u128, 128);

impl Subnet {
    /// The broadcast address.
    #[must_use]
    pub fn broadcast(self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.base) | !Subnet::mask(self.prefix_length))
    }
}

/// The last half of an IPv6 address, which says whose it is in its subnet (RFC 4291, 2.5.1). A network card's is the IPv4
/// address that it holds: so nobody else of its network has it, and it can be read off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InterfaceId(u64);

impl InterfaceId {
    /// That of a card with an IPv4 address.
    #[must_use]
    pub fn of(address: Ipv4Addr) -> InterfaceId {
        InterfaceId(u64::from(u32::from(address)))
    }

    /// That of a card whose IPv4 address nobody knows before it runs: from its Ethernet address (modified EUI-64; RFC 4291,
    /// appendix A).
    #[must_use]
    pub const fn of_mac(mac: MacAddress) -> InterfaceId {
        let [first, second, third, fourth, fifth, sixth] = mac.bytes();
        InterfaceId(u64::from_be_bytes([first ^ 0x02, second, third, 0xff, 0xfe, fourth, fifth, sixth]))
    }

    /// That of an address of IPv6.
    #[must_use]
    pub const fn of_address(address: Ipv6Addr) -> InterfaceId {
        InterfaceId(address.to_bits() as u64)
    }

    /// The IPv4 address that it is made from, if it can be one's.
    #[must_use]
    pub fn address4(self) -> Option<Ipv4Addr> {
        u32::try_from(self.0).ok().filter(|bits| *bits != 0).map(Ipv4Addr::from)
    }

    /// Its bits.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// The address with it in a subnet. What the subnet's prefix covers is the subnet's.
    #[must_use]
    pub fn within(self, subnet: Subnet6) -> Ipv6Addr {
        let own = u128::from(self.0) & !Subnet6::mask(subnet.prefix_length);
        Ipv6Addr::from(u128::from(subnet.base) | own)
    }

    /// The address with it that is good on its link alone (RFC 4291, 2.5.6).
    #[must_use]
    pub fn link_local(self) -> Ipv6Addr {
        self.within(Subnet6::of(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 64))
    }
}

/// A subnet of either family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cidr {
    /// Of IPv4.
    V4(Subnet),
    /// Of IPv6.
    V6(Subnet6),
}

impl Cidr {
    /// One address alone.
    #[must_use]
    pub fn only(address: IpAddr) -> Cidr {
        match address {
            IpAddr::V4(address) => Cidr::V4(Subnet::of(address, 32)),
            IpAddr::V6(address) => Cidr::V6(Subnet6::of(address, 128)),
        }
    }
}

impl FromStr for Cidr {
    type Err = AddressError;
    fn from_str(text: &str) -> Result<Cidr, AddressError> {
        if text.contains(':') { text.parse().map(Cidr::V6) } else { text.parse().map(Cidr::V4) }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cidr::V4(subnet) => subnet.fmt(formatter),
            Cidr::V6(subnet) => subnet.fmt(formatter),
        }
    }
}

/// An Ethernet address (IEEE 802).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddress([u8; 6]);

impl MacAddress {
    /// The address of the NIC `index` of the machine `uid`: locally administered, unicast, the same each time.
    ///
    /// 46 bits of an FNV-1a hash (Fowler, Noll, Vo) stand in it: among 10,000 NICs two collide with a probability
    /// of about 1 in 1.4 million.
    #[must_use]
    pub fn of_nic(uid: crate::Uid, index: usize) -> MacAddress {
        let hash = nic_hash(uid, index).to_be_bytes();
        MacAddress([(hash[2] & 0xfc) | 0x02, hash[3], hash[4], hash[5], hash[6], hash[7]])
    }

    /// The address of these bytes.
    #[must_use]
    pub const fn new(bytes: [u8; 6]) -> MacAddress {
        MacAddress(bytes)
    }

    /// Its bytes, the first on the wire first.
    #[must_use]
    pub const fn bytes(self) -> [u8; 6] {
        self.0
    }
}

/// The name of the tap of the NIC `index` of the machine `uid`: `lb` and 12 hexadecimal digits, within the 15 bytes
/// that Linux gives an interface name (`IFNAMSIZ`, netdevice(7)).
#[must_use]
pub fn tap_name(uid: crate::Uid, index: usize) -> String {
    format!("lb{:012x}", nic_hash(uid, index) & 0xffff_ffff_ffff)
}

fn nic_hash(uid: crate::Uid, index: usize) -> u64 {
    uid.bits()
        .to_be_bytes()
        .into_iter()
        .chain(index.to_be_bytes())
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        })
}

impl FromStr for MacAddress {
    type Err = AddressError;
    fn from_str(text: &str) -> Result<MacAddress, AddressError> {
        let bad = || AddressError::Mac(text.to_owned());
        let pairs: Vec<&str> = text.split(':').collect();
        let mut bytes = [0; 6];
        if pairs.len() != bytes.len() || pairs.iter().any(|pair| pair.len() != 2) {
            return Err(bad());
        }
        for (byte, pair) in bytes.iter_mut().zip(pairs) {
            *byte = u8::from_str_radix(pair, 16).map_err(|_| bad())?;
        }
        Ok(MacAddress(bytes))
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, f] = self.0;
        write!(formatter, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

impl fmt::Debug for MacAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

macro_rules! serde_as_text {
    ($($type:ty),*) => {$(
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<$type, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}
serde_as_text!(Subnet, Subnet6, Cidr, MacAddress);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Uid;

    #[test]
    fn a_subnet_has_no_host_bits() {
        let check = |text: &str, expect: &str| {
            let found = text.parse::<Cidr>();
            assert_eq!(found.map_or_else(|error| error.to_string(), |subnet| subnet.to_string()), expect);
        };
        check("10.77.0.0/16", "10.77.0.0/16");
        check("0.0.0.0/0", "0.0.0.0/0");
        check("10.77.0.1/32", "10.77.0.1/32");
        check("10.77.0.1/16", "`10.77.0.1/16` has host bits set; the subnet is `10.77.0.0/16`");
        check("10.77.0.0", "`10.77.0.0` is not a subnet such as 10.77.0.0/16");
        check("10.77.0.0/33", "`10.77.0.0/33` is not a subnet such as 10.77.0.0/16");
        check("fd00:77::/64", "fd00:77::/64");
        check("::/0", "::/0");
        check("fd00:77::1/64", "`fd00:77::1/64` has host bits set; the subnet is `fd00:77::/64`");
        check("fd00:77::", "`fd00:77::` is not a subnet of IPv6 such as fd00:77::/64");
        check("fd00:77::/129", "`fd00:77::/129` is not a subnet of IPv6 such as fd00:77::/64");
    }

    #[test]
    fn a_card_s_ipv6_address_is_made_from_its_ipv4_address() {
        let id = InterfaceId::of(Ipv4Addr::new(10, 77, 0, 5));
        let within = |subnet: &str| id.within(subnet.parse().expect("a subnet")).to_string();
        assert_eq!(within("fd00:77::/64"), "fd00:77::a4d:5");
        assert_eq!(within("fd00::/16"), "fd00::a4d:5");
        assert_eq!(id.link_local().to_string(), "fe80::a4d:5");
        let mac = "02:00:0a:4d:00:0b".parse().expect("an Ethernet address");
        assert_eq!(InterfaceId::of_mac(mac).link_local().to_string(), "fe80::aff:fe4d:b");
    }

    #[test]
    fn macs_and_taps_are_stable_and_well_formed() {
        let uid = Uid::from_bits(7);
        let mac = MacAddress::of_nic(uid, 0);
        assert_eq!(mac, mac.to_string().parse().unwrap());
        assert_eq!(mac.0[0] & 0x03, 0x02, "locally administered, unicast");
        assert_ne!(mac, MacAddress::of_nic(uid, 1));
        assert_ne!(tap_name(uid, 0), tap_name(uid, 1));
        assert!(tap_name(uid, 0).len() <= 15);
    }
}
