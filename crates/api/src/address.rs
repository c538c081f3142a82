//! IPv4 subnets and MAC addresses, as far as lightbyte speaks of them.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An IPv4 subnet in CIDR form (RFC 4632), with all host bits zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subnet {
    base: Ipv4Addr,
    prefix_length: u8,
}

/// Why a text is no [`Subnet`] or no [`MacAddress`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Not of the form `a.b.c.d/length`.
    #[error("`{0}` is not a subnet such as 10.77.0.0/16")]
    Subnet(String),
    /// Host bits are set.
    #[error("`{0}` has host bits set; the subnet is `{1}`")]
    HostBits(String, Subnet),
    /// Not six pairs of hexadecimal digits.
    #[error("`{0}` is not a MAC address such as 02:00:5e:10:00:01")]
    Mac(String),
}

impl Subnet {
    /// The subnet of that prefix length that `address` lies in. A length over 32 counts as 32.
    #[must_use]
    pub fn of(address: Ipv4Addr, prefix_length: u8) -> Subnet {
        let prefix_length = prefix_length.min(32);
        Subnet { base: Ipv4Addr::from(u32::from(address) & mask(prefix_length)), prefix_length }
    }

    /// The network address.
    #[must_use]
    pub const fn base(self) -> Ipv4Addr {
        self.base
    }

    /// The prefix length in bits, 0 to 32.
    #[must_use]
    pub const fn prefix_length(self) -> u8 {
        self.prefix_length
    }

    /// Whether `address` lies in it.
    #[must_use]
    pub fn contains(self, address: Ipv4Addr) -> bool {
        u32::from(address) & mask(self.prefix_length) == u32::from(self.base)
    }

    /// The broadcast address.
    #[must_use]
    pub fn broadcast(self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.base) | !mask(self.prefix_length))
    }
}

fn mask(prefix_length: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix_length)).unwrap_or(0)
}

impl FromStr for Subnet {
    type Err = AddressError;
    fn from_str(text: &str) -> Result<Subnet, AddressError> {
        let bad = || AddressError::Subnet(text.to_owned());
        let (address, length) = text.split_once('/').ok_or_else(bad)?;
        let address: Ipv4Addr = address.parse().map_err(|_| bad())?;
        let prefix_length: u8 = length.parse().ok().filter(|length| *length <= 32).ok_or_else(bad)?;
        let base = Ipv4Addr::from(u32::from(address) & mask(prefix_length));
        let subnet = Subnet { base, prefix_length };
        if base == address { Ok(subnet) } else { Err(AddressError::HostBits(text.to_owned(), subnet)) }
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.base, self.prefix_length)
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
serde_as_text!(Subnet, MacAddress);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Uid;

    #[test]
    fn a_subnet_has_no_host_bits() {
        let check = |text: &str, expect: &str| {
            let found = text.parse::<Subnet>();
            assert_eq!(found.map_or_else(|error| error.to_string(), |subnet| subnet.to_string()), expect);
        };
        check("10.77.0.0/16", "10.77.0.0/16");
        check("0.0.0.0/0", "0.0.0.0/0");
        check("10.77.0.1/32", "10.77.0.1/32");
        check("10.77.0.1/16", "`10.77.0.1/16` has host bits set; the subnet is `10.77.0.0/16`");
        check("10.77.0.0", "`10.77.0.0` is not a subnet such as 10.77.0.0/16");
        check("10.77.0.0/33", "`10.77.0.0/33` is not a subnet such as 10.77.0.0/16");
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
