//! What each tap may send from: one hardware address and one IPv4 address, and on a network with IPv6 the addresses whose last
//! half is the tap's own (`InterfaceId`). Where a DHCP server says the address, see `leases`. Everything else that comes out of a tap is dropped before the bridge sees it:
//! frames, ARP and neighbour discovery of others, tags of VLANs, what is neither IPv4 nor ARP nor IPv6, and what only a router
//! or a DHCP server says.
//!
//! A proxy that has the virtual address of its load balancer has further keys for that, and for what is made of it for IPv6.
//! One set holds a key for each tap, so that making or removing one changes an element and no rule. A tap without a key
//! may send nothing. Rules are made by the program `nft`, which alone knows how the kernel wants them.

use std::net::{Ipv4Addr, Ipv6Addr};

use lightbyte_api::MacAddress;
use lightbyte_api::address::{InterfaceId, Subnet6};

use super::leases;
use super::nft::{NFT, NO_TABLE, run};
use crate::driver::DriverError;

/// The table, as often as it is asked for. Protocols whose names `nft` knows only from the host's list have their numbers. What says nothing that could be looked at (`meta l4proto` knows none) is not let
/// through as IPv6. The type of a frame is read from the frame (`@ll`), not from what the kernel
/// took it for: that leaves out the tag of a VLAN.
pub(super) const TABLE: &str = "\
add table bridge lightbyte-taps
add set bridge lightbyte-taps sources { type ifname . ether_addr . ipv4_addr; }
add set bridge lightbyte-taps addresses6 { typeof iifname . ether saddr . @nh,64,128; }
add set bridge lightbyte-taps interfaces6 { typeof iifname . ether saddr . @nh,128,64; }
add set bridge lightbyte-taps clients { typeof iifname . @ll,48,48; }
add set bridge lightbyte-taps leases { \
    typeof iifname . @ll,48,48 . @nh,96,32; size 65535; flags dynamic,timeout; timeout 2d; }
add chain bridge lightbyte-taps asked
flush chain bridge lightbyte-taps asked
add rule bridge lightbyte-taps asked ip frag-off & 0x3fff != 0 drop
add rule bridge lightbyte-taps asked udp sport != 68 drop
add rule bridge lightbyte-taps asked iifname . @ll,48,48 != @clients drop
add rule bridge lightbyte-taps asked iifname . @th,288,48 != @clients drop
add rule bridge lightbyte-taps asked @th,64,8 1 @th,192,32 0 @th,256,32 0 ip daddr 255.255.255.255 accept
add rule bridge lightbyte-taps asked @th,64,8 1 @th,192,32 0 @th,256,32 0 return
add rule bridge lightbyte-taps asked drop
add chain bridge lightbyte-taps sent { type filter hook prerouting priority -300; policy accept; }
flush chain bridge lightbyte-taps sent
add rule bridge lightbyte-taps sent iifname != \"lb*\" accept
add rule bridge lightbyte-taps sent @ll,96,16 0x0800 meta l4proto udp udp dport 67 jump asked
add rule bridge lightbyte-taps sent @ll,96,16 0x0800 meta l4proto udp udp sport 67 drop
add rule bridge lightbyte-taps sent @ll,96,16 0x0800 meta l4proto udp udp dport 68 drop
add rule bridge lightbyte-taps sent @ll,96,16 0x0800 ip protocol igmp @th,0,8 0x11 drop
add rule bridge lightbyte-taps sent @ll,96,16 0x0800 iifname . ether saddr . ip saddr @sources accept
add rule bridge lightbyte-taps sent @ll,96,16 0x0806 iifname . ether saddr . arp saddr ip @sources \
    iifname . arp saddr ether . arp saddr ip @sources accept
add rule bridge lightbyte-taps sent @ll,96,16 0x0800 iifname . @ll,48,48 . @nh,96,32 @leases accept
add rule bridge lightbyte-taps sent @ll,96,16 0x0806 iifname . @ll,48,48 . @nh,112,32 @leases \
    iifname . @nh,64,48 . @nh,112,32 @leases accept
add rule bridge lightbyte-taps sent @ll,96,16 != 0x86dd drop
add rule bridge lightbyte-taps sent icmpv6 type { nd-router-advert, nd-redirect, mld-listener-query } drop
add rule bridge lightbyte-taps sent meta l4proto 58 exthdr frag exists drop
add rule bridge lightbyte-taps sent meta l4proto udp udp sport 547 drop
add rule bridge lightbyte-taps sent meta l4proto udp udp dport 546 drop
add rule bridge lightbyte-taps sent icmpv6 type nd-neighbor-advert \
    iifname . ether saddr . @th,64,128 != @addresses6 iifname . ether saddr . @th,128,64 != @interfaces6 drop
add rule bridge lightbyte-taps sent @ll,96,16 0x86dd meta l4proto != 255 \
    iifname . ether saddr . @nh,64,128 @addresses6 accept
add rule bridge lightbyte-taps sent @ll,96,16 0x86dd meta l4proto != 255 \
    iifname . ether saddr . @nh,128,64 @interfaces6 accept
add rule bridge lightbyte-taps sent ip6 saddr :: icmpv6 type nd-neighbor-solicit \
    iifname . ether saddr . @th,64,128 @addresses6 accept
add rule bridge lightbyte-taps sent ip6 saddr :: icmpv6 type nd-neighbor-solicit \
    iifname . ether saddr . @th,128,64 @interfaces6 accept
add rule bridge lightbyte-taps sent drop
add set bridge lightbyte-taps walled { type ifname; }
add set bridge lightbyte-taps walls { type ifname . ipv4_addr; }
add set bridge lightbyte-taps walls6 { typeof oifname . @nh,256,64; }
add chain bridge lightbyte-taps received { type filter hook postrouting priority 0; policy accept; }
flush chain bridge lightbyte-taps received
add chain bridge lightbyte-taps answered
flush chain bridge lightbyte-taps answered
add rule bridge lightbyte-taps answered @th,64,8 != 2 return
add rule bridge lightbyte-taps answered @th,192,32 0 return
add rule bridge lightbyte-taps answered @th,192,8 127 return
add rule bridge lightbyte-taps answered @th,192,32 >= 0xe0000000 return
add rule bridge lightbyte-taps answered @th,1952,32 0x63825363 @th,1984,24 0x350105 \
    update @leases { oifname . @th,288,48 . @th,192,32 }
add rule bridge lightbyte-taps answered @th,1952,32 0x63825363 @th,1984,8 != 0x35 \
    update @leases { oifname . @th,288,48 . @th,192,32 }
add rule bridge lightbyte-taps received @ll,96,16 0x0800 udp sport 67 udp dport 68 \
    oifname . @th,288,48 @clients jump answered
add rule bridge lightbyte-taps received oifname != @walled accept
add rule bridge lightbyte-taps received @ll,96,16 0x0806 accept
add rule bridge lightbyte-taps received @ll,96,16 0x0800 oifname . ip daddr @walls accept
add rule bridge lightbyte-taps received @ll,96,16 0x86dd oifname . @nh,256,64 @walls6 accept
add rule bridge lightbyte-taps received @ll,96,16 0x86dd ip6 hoplimit 255 \
    icmpv6 type { nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert } accept
add rule bridge lightbyte-taps received @ll,96,16 0x86dd icmpv6 type mld-listener-query accept
add rule bridge lightbyte-taps received drop
";

/// The sets of the table that say what is known of taps. What DHCP servers have said is only in the table.
const SETS: [&str; 7] = ["sources", "addresses6", "interfaces6", "clients", "walled", "walls", "walls6"];

/// Where the last half of an address of IPv6 begins.
const INTERFACE_ID_BITS: u8 = 64;

/// What one tap may send from, and whether what comes to it is filtered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Source {
    pub(super) tap: String,
    pub(super) mac: MacAddress,
    /// Its IPv4 address; without, a DHCP server says which.
    pub(super) address: Option<Ipv4Addr>,
    /// A virtual address that it has besides, and with it that of IPv6 that is made from it.
    pub(super) virtual_address: Option<Ipv4Addr>,
    /// What it sends of IPv6; without, none of it.
    pub(super) ipv6: Option<Source6>,
    pub(super) wall: Walled,
    /// Tells its rules of its own from others; nought while they are not known.
    pub(super) rules: Option<u64>,
}

/// What one tap may send from of IPv6, its link-local address aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source6 {
    /// One address.
    Address(Ipv6Addr),
    /// All whose last half is its own: routers say the first.
    Auto,
}

impl Source {
    /// The last half of its addresses of IPv6.
    fn interface6(&self) -> Option<InterfaceId> {
        let of_mac = || InterfaceId::of_mac(self.mac);
        self.ipv6.map(|_| self.address.map_or_else(of_mac, InterfaceId::of))
    }

    /// The last half of the virtual address of IPv6 that goes with that of IPv4, where the first half is known.
    fn virtual_interface6(&self) -> Option<InterfaceId> {
        let is_known = matches!(self.ipv6, Some(Source6::Address(_)));
        self.virtual_address.filter(|_| is_known).map(InterfaceId::of)
    }

    /// The addresses of IPv6 that it may send from, where they are known.
    fn addresses6(&self) -> impl Iterator<Item = Ipv6Addr> + use<> {
        let known = match (self.ipv6, self.interface6()) {
            (Some(Source6::Address(address)), Some(interface)) => {
                let subnet = Subnet6::of(address, INTERFACE_ID_BITS);
                let also = self.virtual_interface6().map(|interface| interface.within(subnet));
                [Some(address), Some(interface.link_local()), also]
            }
            _ => [None; 3],
        };
        known.into_iter().flatten()
    }
}

/// Whether a tap has a wall, see `walls`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Walled {
    /// It has none: everything comes in.
    No,
    /// Its rules are not there: nothing comes in but ARP and neighbour discovery.
    Closed,
    /// What is for its own addresses comes as far as its rules.
    Open,
}

/// Makes the table, and lets these taps and no others send. What DHCP servers have said to them goes on being true.
///
/// # Errors
/// [`DriverError::Refused`] when `nft` is missing or says no.
pub(super) fn begin(all: &[Source]) -> Result<(), DriverError> {
    let sets = SETS.map(|set| format!("flush set bridge lightbyte-taps {set}\n"));
    run(NFT, &format!("{TABLE}{}{}", sets.concat(), elements("add", all)))
}

/// Lets `new` send, and what of `old` is not in it not any more. If the table is gone, as after somebody has flushed all
/// rules of the host, it is made again, and then `others` may send too; those with walls are closed until theirs are made
/// again. `more` is carried out in the same transaction.
///
/// # Errors
/// As [`begin`].
pub(super) fn change(
    old: &[Source],
    new: &[Source],
    others: &[Source],
    more: &str,
) -> Result<(), DriverError> {
    match run(NFT, &(difference(old, new) + more)) {
        Err(DriverError::Refused(why)) if why.contains(NO_TABLE) => {
            let closed = |source: &Source| match source.wall {
                Walled::No => source.clone(),
                Walled::Closed | Walled::Open => Source { wall: Walled::Closed, ..source.clone() },
            };
            let others: Vec<Source> = others.iter().map(closed).collect();
            run(NFT, &format!("{TABLE}{}{}{more}", elements("add", &others), elements("add", new)))
        }
        outcome => outcome,
    }
}

fn difference(old: &[Source], new: &[Source]) -> String {
    let gone: Vec<Source> = old.iter().filter(|source| !new.contains(source)).cloned().collect();
    // One that is not there cannot be deleted, and adding one that is there changes nothing.
    [elements("add", &gone), elements("delete", &gone), elements("add", new)].concat()
}

fn elements(verb: &str, sources: &[Source]) -> String {
    if sources.is_empty() {
        return String::new();
    }
    let line = |set: &str, list: Vec<String>| match list.as_slice() {
        [] => String::new(),
        list => format!("{verb} element bridge lightbyte-taps {set} {{ {} }}\n", list.join(", ")),
    };
    let walled = |is_it: fn(Walled) -> bool| sources.iter().filter(move |source| is_it(source.wall));
    let names = walled(|wall| wall != Walled::No).map(|source| format!("\"{}\"", source.tap));
    let open = || walled(|wall| wall == Walled::Open);
    let known = sources.iter().flat_map(|source| {
        let addresses = source.address.into_iter().chain(source.virtual_address);
        addresses.map(|address| format!("\"{}\" . {} . {address}", source.tap, source.mac))
    });
    let clients = sources.iter().filter(|source| source.address.is_none());
    let clients = clients.map(|source| format!("\"{}\" . {}", source.tap, leases::number(source.mac)));
    let walls = open().flat_map(|source| {
        let addresses = source.address.into_iter().chain(source.virtual_address);
        addresses.map(|address| format!("\"{}\" . {address}", source.tap))
    });
    let of_tap = |source: &Source, key: u128| format!("\"{}\" . {} . {key:#x}", source.tap, source.mac);
    let addresses6 = sources
        .iter()
        .flat_map(|source| source.addresses6().map(|address| of_tap(source, address.to_bits())));
    let auto = sources.iter().filter(|source| source.ipv6 == Some(Source6::Auto));
    let interfaces6 = auto.filter_map(|source| Some(of_tap(source, source.interface6()?.bits().into())));
    let walls6 = open().flat_map(|source| {
        let interfaces = source.interface6().into_iter().chain(source.virtual_interface6());
        interfaces.map(|interface| format!("\"{}\" . {}", source.tap, interface.bits()))
    });
    [
        line("sources", known.collect()),
        line("clients", clients.collect()),
        line("addresses6", addresses6.collect()),
        line("interfaces6", interfaces6.collect()),
        line("walled", names.collect()),
        line("walls", walls.collect()),
        line("walls6", walls6.collect()),
    ]
    .concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(tap: &str, last: u8) -> Source {
        Source {
            tap: tap.to_owned(),
            mac: "02:00:00:00:00:01".parse().expect("a hardware address"),
            address: Some(Ipv4Addr::new(10, 0, 0, last)),
            virtual_address: None,
            ipv6: None,
            wall: Walled::No,
            rules: None,
        }
    }

    #[test]
    fn only_what_differs_is_changed() {
        let (a, b) = (source("lba", 1), source("lbb", 2));
        let check = |old: &[&Source], new: &[&Source], expected: &str| {
            let own = |list: &[&Source]| list.iter().copied().cloned().collect::<Vec<_>>();
            let found = difference(&own(old), &own(new));
            let short = found.replace(" element bridge lightbyte-taps sources", "");
            assert_eq!(short.replace(" . 02:00:00:00:00:01 . 10.0.0.", " "), expected);
        };
        check(&[], &[], "");
        check(&[], &[&a, &b], "add { \"lba\" 1, \"lbb\" 2 }\n");
        check(&[&a], &[&a], "add { \"lba\" 1 }\n");
        let walled = Source { wall: Walled::Open, ..b.clone() };
        let walls = "add element bridge lightbyte-taps walled { \"lbb\" }\n\
                     add element bridge lightbyte-taps walls { \"lbb\" . 10.0.0.2 }\n";
        check(&[], &[&walled], &format!("add {{ \"lbb\" 2 }}\n{walls}"));
        let proxy = Source { virtual_address: Some(Ipv4Addr::new(10, 0, 0, 9)), ..a.clone() };
        let other = "add { \"lba\" 1 }\ndelete { \"lba\" 1 }\nadd { \"lba\" 1, \"lba\" 9 }\n";
        check(&[&a], &[&proxy], other);
        let both = Source { ipv6: Some(Source6::Auto), ..a.clone() };
        let interfaces6 =
            "add element bridge lightbyte-taps interfaces6 { \"lba\" . 02:00:00:00:00:01 . 0xa000001 }\n";
        check(&[], &[&both], &format!("add {{ \"lba\" 1 }}\n{interfaces6}"));
        let address6 = Source6::Address("fd00:77::a00:1".parse().expect("an address"));
        let proxy = Source { ipv6: Some(address6), wall: Walled::Open, ..proxy };
        let found = difference(&[], std::slice::from_ref(&proxy));
        assert!(found.contains(". 0xfd00007700000000000000000a000009"), "{found}");
        assert!(found.contains("walls6 { \"lba\" . 167772161, \"lba\" . 167772169 }"), "{found}");
        let by_dhcp = Source { address: None, ..a.clone() };
        let client = "add element bridge lightbyte-taps clients { \"lba\" . 0x20000000001 }\n";
        check(&[], &[&by_dhcp], client);
        check(&[&a, &b], &[&a], "add { \"lbb\" 2 }\ndelete { \"lbb\" 2 }\nadd { \"lba\" 1 }\n");
    }
}
