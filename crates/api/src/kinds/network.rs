//! A **network**: a Linux bridge that every worker has, and where the addresses of VMs on it are from: a pool that lightbyte
//! gives away, or the DHCP server of whoever runs that network.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Value, json};

use super::{Field, SpecRules};
use crate::address::{AddressError, InterfaceId, Subnet, Subnet6};
use crate::reader::Reader;

/// How many addresses one pool has at most: a /16. A larger pool would make a full scan of claims slow.
pub const POOL_ADDRESSES_MAX: u64 = 1 << 16;
/// How many name servers a guest is told: more are ignored by resolvers (resolv.conf(5), `MAXNS`).
pub const DNS_SERVERS_MAX: usize = 3;
/// The longest prefix of a subnet of IPv6: behind it stands an interface identifier (RFC 4291, 2.5.1).
pub const PREFIX6_LENGTH_MAX: u8 = 64;
/// The longest name of a Linux interface (netdevice(7), `IFNAMSIZ` less the final zero).
pub const INTERFACE_NAME_LENGTH_MAX: usize = 15;

/// The least MTU: what IPv6 needs (RFC 8200, 5).
pub const MTU_MIN: u32 = 1_280;
/// The largest MTU: jumbo frames as switches commonly take them.
pub const MTU_MAX: u32 = 9_216;

/// What is asked of a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// Where the IPv4 addresses of VMs are from.
    #[serde(flatten)]
    pub ipv4: Ipv4,
    /// The name servers that guests are told, before those that a DHCP server names.
    #[serde(default)]
    pub dns: Vec<IpAddr>,
    /// The bridge on every worker.
    pub bridge: String,
    /// The largest packets of VMs; those of Ethernet without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Where the IPv6 addresses of VMs are from; they have none without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnet6: Option<Prefix6>,
    /// Where guests send what is not in the subnet of IPv6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway6: Option<Ipv6Addr>,
}

/// Where the IPv4 addresses of VMs are from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Ipv4 {
    /// This pool.
    Pool(Pool),
    /// What the network's DHCP server says (RFC 2131), gateway and name servers with it.
    Dhcp {
        /// The word for that, where a pool has its subnet.
        subnet: Dhcp,
    },
}

impl Ipv4 {
    /// By DHCP.
    pub const DHCP: Ipv4 = Ipv4::Dhcp { subnet: Dhcp::Dhcp };
}

/// The word for [`Ipv4::Dhcp`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dhcp {
    /// It.
    Dhcp,
}

/// The addresses that lightbyte may give.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// The subnet of the bridge.
    pub subnet: Subnet,
    /// Where guests send what is not in the subnet.
    #[serde(default)]
    pub gateway: Option<Ipv4Addr>,
    /// The first address that VMs may get.
    #[serde(rename = "pool_first")]
    pub first: Ipv4Addr,
    /// The last address that VMs may get.
    #[serde(rename = "pool_last")]
    pub last: Ipv4Addr,
}

impl Pool {
    /// How many addresses it has.
    #[must_use]
    pub fn size(&self) -> u64 {
        u64::from(u32::from(self.last).saturating_sub(u32::from(self.first))) + 1
    }

    /// Its addresses in order.
    pub fn addresses(&self) -> impl Iterator<Item = Ipv4Addr> + use<> {
        (u32::from(self.first)..=u32::from(self.last)).map(Ipv4Addr::from)
    }
}

/// Where the first half of VMs' IPv6 addresses is from. The last is [`InterfaceId::of`] their IPv4 address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prefix6 {
    /// This subnet.
    Subnet(Subnet6),
    /// What routers of the network advertise (RFC 4862).
    Auto,
}

/// The word for [`Prefix6::Auto`].
const AUTO: &str = "auto";
/// The word for [`Ipv4::Dhcp`].
const DHCP: &str = "dhcp";

impl FromStr for Prefix6 {
    type Err = AddressError;
    fn from_str(text: &str) -> Result<Prefix6, AddressError> {
        if text == AUTO { Ok(Prefix6::Auto) } else { text.parse().map(Prefix6::Subnet) }
    }
}

impl fmt::Display for Prefix6 {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Prefix6::Subnet(subnet) => subnet.fmt(formatter),
            Prefix6::Auto => formatter.write_str(AUTO),
        }
    }
}

impl Serialize for Prefix6 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Prefix6 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Prefix6, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Nothing is chosen for a network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Choice {}

impl Spec {
    /// The addresses that lightbyte may give on it; none where they come by DHCP.
    #[must_use]
    pub const fn pool(&self) -> Option<&Pool> {
        match &self.ipv4 {
            Ipv4::Pool(pool) => Some(pool),
            Ipv4::Dhcp { .. } => None,
        }
    }

    /// The IPv6 address of a VM with that IPv4 address, where the network says which.
    #[must_use]
    pub fn address6(&self, address: Ipv4Addr) -> Option<Ipv6Addr> {
        match self.subnet6? {
            Prefix6::Subnet(subnet) => Some(InterfaceId::of(address).within(subnet)),
            Prefix6::Auto => None,
        }
    }

    /// Whether a VM may be given `address`: in the pool, and neither it nor what is made from it a gateway's.
    #[must_use]
    pub fn may_give(&self, address: Ipv4Addr) -> bool {
        let is_gateways6 = self.gateway6.is_some() && self.gateway6 == self.address6(address);
        self.pool().is_some_and(|pool| {
            (pool.first..=pool.last).contains(&address) && pool.gateway != Some(address) && !is_gateways6
        })
    }
}

impl SpecRules for Spec {
    const ABOUT: &'static str = "a bridge on every worker, and the addresses that VMs get on it";

    const FIELDS: &'static [Field] = &[
        ("subnet", "the IPv4 subnet of the bridge, or `dhcp` where a DHCP server of it gives the addresses; fixed for life"),
        ("gateway", "where guests send what is not in the subnet; nowhere when left out"),
        ("dns", "the name servers that guests are told, at most 3"),
        ("pool_first", "the first address that VMs may get; the subnet's second when left out"),
        ("pool_last", "the last address that VMs may get; the one before broadcast when left out"),
        ("bridge", "the Linux bridge that every worker has, at most 15 characters"),
        ("subnet6", "the IPv6 subnet of the bridge, or `auto` for what its routers advertise; none when left out; fixed for life"),
        ("gateway6", "where guests send what is not in subnet6; nowhere when left out"),
        ("mtu", "the largest packets of VMs that are made from then on, 1280 to 9216; 1500 when left out"),
    ];

    fn shortest() -> Option<Value> {
        Some(json!({ "subnet": "10.0.0.0/24" }))
    }

    fn read(fields: &mut Reader<'_>) -> Option<Spec> {
        let ipv4 = read_ipv4(fields);
        let dns: Vec<IpAddr> = fields.or("dns", Vec::new());
        let bridge = fields.or("bridge", "br0".to_owned());
        if dns.len() > DNS_SERVERS_MAX {
            fields.problem("dns", format!("a guest uses at most {DNS_SERVERS_MAX} name servers"), None);
        }
        let is_plain = |character: char| character.is_ascii_alphanumeric() || "-_".contains(character);
        if bridge.is_empty() || bridge.len() > INTERFACE_NAME_LENGTH_MAX || !bridge.chars().all(is_plain) {
            let rule = format!("must be 1 to {INTERFACE_NAME_LENGTH_MAX} letters, digits, - or _");
            fields.problem("bridge", rule, None);
        }
        let mtu: Option<u32> = fields.optional("mtu");
        if mtu.is_some_and(|mtu| !(MTU_MIN..=MTU_MAX).contains(&mtu)) {
            fields.problem("mtu", format!("must be between {MTU_MIN} and {MTU_MAX}"), None);
        }
        let subnet6: Option<Prefix6> = fields.optional("subnet6");
        let gateway6: Option<Ipv6Addr> = fields.optional("gateway6");
        let spec = Spec { ipv4: ipv4?, dns, bridge, mtu, subnet6, gateway6 };
        check_ipv6(&spec, fields);
        Some(spec)
    }

    fn frozen_field(&self, next: &Spec) -> Option<(&'static str, &'static str)> {
        let reason = "VMs hold addresses of it; make a new network instead";
        let subnet_of = |spec: &Spec| spec.pool().map(|pool| pool.subnet);
        let subnet = (subnet_of(self) != subnet_of(next)).then_some(("subnet", reason));
        subnet.or_else(|| (self.subnet6 != next.subnet6).then_some(("subnet6", reason)))
    }
}

fn read_ipv4(fields: &mut Reader<'_>) -> Option<Ipv4> {
    let subnet: Option<Subnet4> = fields.required("subnet");
    let gateway: Option<Ipv4Addr> = fields.optional("gateway");
    let first: Option<Ipv4Addr> = fields.optional("pool_first");
    let last: Option<Ipv4Addr> = fields.optional("pool_last");
    let subnet = match subnet? {
        Subnet4::Subnet(subnet) => subnet,
        Subnet4::Dhcp => {
            for (field, value) in [("gateway", gateway), ("pool_first", first), ("pool_last", last)] {
                if value.is_some() {
                    let hint = "leave it out, or name the subnet".to_owned();
                    fields.problem(field, "is what the DHCP server says where subnet is `dhcp`", Some(hint));
                }
            }
            return Some(Ipv4::DHCP);
        }
    };
    let second = Ipv4Addr::from(u32::from(subnet.base()).saturating_add(2));
    let before_broadcast = Ipv4Addr::from(u32::from(subnet.broadcast()).saturating_sub(1));
    let (first, last) = (first.unwrap_or(second), last.unwrap_or(before_broadcast));
    let pool = Pool { subnet, gateway, first, last };
    check_ranges(&pool, fields);
    Some(Ipv4::Pool(pool))
}

/// A subnet as people write it.
#[derive(Deserialize)]
#[serde(try_from = "String")]
enum Subnet4 {
    Subnet(Subnet),
    Dhcp,
}

impl TryFrom<String> for Subnet4 {
    type Error = AddressError;
    fn try_from(text: String) -> Result<Subnet4, AddressError> {
        if text == DHCP { Ok(Subnet4::Dhcp) } else { text.parse().map(Subnet4::Subnet) }
    }
}

fn check_ranges(pool: &Pool, fields: &mut Reader<'_>) {
    let subnet = pool.subnet;
    let inside = |address: Ipv4Addr| {
        subnet.contains(address) && address != subnet.base() && address != subnet.broadcast()
    };
    let named = [("gateway", pool.gateway), ("pool_first", Some(pool.first)), ("pool_last", Some(pool.last))];
    for (field, address) in named {
        if let Some(address) = address.filter(|address| !inside(*address)) {
            fields.problem(field, format!("{address} is not a host address of {subnet}"), None);
        }
    }
    if pool.last < pool.first {
        fields.problem("pool_last", format!("lies before pool_first {}", pool.first), None);
    } else if pool.size() > POOL_ADDRESSES_MAX {
        let hint = "name a smaller range with pool_first and pool_last".to_owned();
        let message =
            format!("the pool has {} addresses, at most {POOL_ADDRESSES_MAX} are allowed", pool.size());
        fields.problem("pool_last", message, Some(hint));
    }
}

fn check_ipv6(spec: &Spec, fields: &mut Reader<'_>) {
    if spec.pool().is_none() && matches!(spec.subnet6, Some(Prefix6::Subnet(_))) {
        let hint = "say `auto`, or leave it out".to_owned();
        fields.problem("subnet6", "needs a pool: addresses of it are made from those of the pool", Some(hint));
    }
    match (spec.subnet6, spec.gateway6) {
        (Some(Prefix6::Subnet(subnet)), gateway) => {
            if subnet.prefix_length() > PREFIX6_LENGTH_MAX {
                let hint = format!("the last 64 bits are the VM's; a /{PREFIX6_LENGTH_MAX} is the least");
                fields.problem("subnet6", format!("{subnet} is too small"), Some(hint));
            }
            let base = subnet.base();
            if base.is_multicast() || base.is_unicast_link_local() || base.is_loopback() || base.is_unspecified() {
                let hint = "such as fd00:77::/64, or what your provider has given you".to_owned();
                fields.problem("subnet6", format!("{subnet} has no addresses that a VM could have"), Some(hint));
            }
            let is_near = |gateway: Ipv6Addr| subnet.contains(gateway) || gateway.is_unicast_link_local();
            if let Some(gateway) = gateway.filter(|gateway| !is_near(*gateway)) {
                fields.problem("gateway6", format!("{gateway} is neither in {subnet} nor link-local"), None);
            }
        }
        (Some(Prefix6::Auto), Some(_)) => {
            let hint = "leave it out, or name the subnet".to_owned();
            fields.problem("gateway6", "is what routers say where subnet6 is `auto`", Some(hint));
        }
        (None, Some(_)) => fields.problem("gateway6", "needs subnet6", None),
        (Some(Prefix6::Auto), None) | (None, None) => {}
    }
}
