//! What may come in to a VM, and which ports of its worker are its own: rules of nftables beside those of `sources`.
//!
//! Connections are tracked, so that answers to the VM's own come in. Bridges have no tracking of their own on every kernel,
//! so this is done where the host's does it: with `br_netfilter`, what a bridge passes on goes through the hooks of IPv4,
//! and there through one table of ours; what is of IPv6 likewise. A VM is known there by its bridge and its address, or the last
//! half of it, which nobody else can send from. What neither sees (other kinds of frames, other addresses) is kept from a walled
//! tap by the bridge itself.
//!
//! ```text
//!   postrouting ── walls, walls6 { bridge . address : jump wall-TAP } ──> known connection, allowed, or dropped
//!   prerouting, output ── ports { protocol . port : jump ports-TAP } ──> to the VM
//! ```

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::net::IpAddr;

use lightbyte_api::address::{Cidr, InterfaceId};
use lightbyte_api::assigned::AssignedNic;
use lightbyte_api::firewall::{Opening, Protocol, Wall};
use serde_json::Value;

use crate::driver::DriverError;

/// The table, as often as it is asked for.
const TABLE: &str = "\
add table inet lightbyte
add map inet lightbyte walls { type ifname . ipv4_addr : verdict; }
add map inet lightbyte walls6 { typeof oifname . @nh,256,64 : verdict; }
add map inet lightbyte ports { type inet_proto . inet_service : verdict; }
add chain inet lightbyte received { type filter hook postrouting priority 0; policy accept; }
add chain inet lightbyte incoming { type nat hook prerouting priority -100; policy accept; }
add chain inet lightbyte own { type nat hook output priority -100; policy accept; }
flush chain inet lightbyte received
flush chain inet lightbyte incoming
flush chain inet lightbyte own
add rule inet lightbyte received oifname . ip daddr vmap @walls
add rule inet lightbyte received meta nfproto ipv6 oifname . @nh,256,64 vmap @walls6
add rule inet lightbyte incoming fib daddr type local meta l4proto . th dport vmap @ports
add rule inet lightbyte own fib daddr type local meta l4proto . th dport vmap @ports
";

/// Told apart from rules as an earlier version makes them, which are made again.
const WALL_VERSION: u32 = 3;

/// What the names of chains begin with; the tap's follows.
const WALL: &str = "wall-";
const PORTS: &str = "ports-";

/// Whether a card has rules of its own.
pub(super) fn has_rules(nic: &AssignedNic) -> bool {
    nic.firewall.is_some() || !nic.ports.is_empty()
}

/// Whether this host can carry out the rules of a card.
///
/// # Errors
/// [`DriverError::Refused`] with what would help.
pub(super) fn check(nic: &AssignedNic) -> Result<(), DriverError> {
    if nic.address.is_none() {
        let why = "a card whose address comes by DHCP can have neither firewall nor ports";
        return Err(DriverError::Refused(why.to_owned()));
    }
    let is_on = |path: &str| fs::read_to_string(path).is_ok_and(|text| text.trim() == "1");
    let bridge = &nic.bridge;
    let of_ipv6 = nic.ipv6.as_ref().filter(|_| nic.firewall.is_some()).map(|_| "ip6tables");
    for tables in ["iptables"].into_iter().chain(of_ipv6) {
        let seen = is_on(&format!("/proc/sys/net/bridge/bridge-nf-call-{tables}"))
            || is_on(&format!("/sys/class/net/{bridge}/bridge/nf_call_{tables}"));
        if !seen {
            return Err(DriverError::Refused(format!(
                "this host keeps no track of connections over bridges, which firewalls and ports of VMs need: \
                 `modprobe br_netfilter && sysctl net.bridge.bridge-nf-call-{tables}=1`"
            )));
        }
    }
    if !nic.ports.is_empty() && !is_on(&format!("/proc/sys/net/ipv4/conf/{bridge}/forwarding")) {
        return Err(DriverError::Refused(format!(
            "this host forwards nothing from `{bridge}`, which ports of VMs need: `sysctl net.ipv4.conf.{bridge}.forwarding=1`"
        )));
    }
    Ok(())
}

/// The rules of a card, in place of those that its tap has.
pub(super) fn rules(tap: &str, nic: &AssignedNic) -> String {
    let mut script = TABLE.to_owned();
    let Some(address) = nic.address else { return script };
    if let Some(wall) = &nic.firewall {
        let chain = format!("{WALL}{tap}");
        begin(&mut script, &chain);
        wall_rules(&mut script, &chain, wall);
        let mut element = |set: &str, key: &dyn std::fmt::Display| {
            let bridge = &nic.bridge;
            let _ = writeln!(
                script,
                "add element inet lightbyte {set} {{ \"{bridge}\" . {key} : jump {chain} }}"
            );
        };
        element("walls", &address);
        if let Some(interface) = nic.interface6() {
            element("walls6", &interface.bits());
        }
        for also in nic.virtual_addresses() {
            match also {
                IpAddr::V4(address) => element("walls", &address),
                IpAddr::V6(address) => element("walls6", &InterfaceId::of_address(address).bits()),
            }
        }
    }
    if !nic.ports.is_empty() {
        let chain = format!("{PORTS}{tap}");
        begin(&mut script, &chain);
        for port in &nic.ports {
            let (protocol, here, there) = (port.protocol.word(), port.worker_port, port.port);
            let _ = writeln!(
                script,
                "add rule inet lightbyte {chain} {protocol} dport {here} dnat ip to {address}:{there}"
            );
            let _ =
                writeln!(script, "add element inet lightbyte ports {{ {protocol} . {here} : jump {chain} }}");
        }
    }
    script
}

fn begin(script: &mut String, chain: &str) {
    let _ = writeln!(script, "add chain inet lightbyte {chain}\nflush chain inet lightbyte {chain}");
}

fn wall_rules(script: &mut String, chain: &str, wall: &Wall) {
    let mut rule = |text: &str| {
        let _ = writeln!(script, "add rule inet lightbyte {chain} {text}");
    };
    rule("ct state established,related accept");
    // Without these nobody could send anything to the VM; a router does not pass them on.
    rule(
        "icmpv6 type { nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert, mld-listener-query } accept",
    );
    wall.allow.iter().flat_map(opening_rules).for_each(|opening| rule(&opening));
    rule("drop");
}

/// The rules of an opening: one for each family that its sources are of, or one for anybody.
fn opening_rules(opening: &Opening) -> Vec<String> {
    let list = |items: Vec<String>| format!("{{ {} }}", items.join(", "));
    let what = match (opening.protocol, opening.ports.is_empty()) {
        (Protocol::Icmp, _) => "meta l4proto { 1, 58 } accept".to_owned(),
        (protocol, true) => format!("meta l4proto {} accept", protocol.word()),
        (protocol, false) => {
            let ports = list(opening.ports.iter().map(ToString::to_string).collect());
            format!("{} dport {ports} accept", protocol.word())
        }
    };
    if opening.from.is_empty() {
        return vec![what];
    }
    let of = |family: &str, is_it: fn(&Cidr) -> bool| {
        let sources =
            opening.from.iter().filter(|source| is_it(source)).map(ToString::to_string).collect::<Vec<_>>();
        (!sources.is_empty()).then(|| format!("{family} saddr {} {what}", list(sources)))
    };
    let v4 = of("ip", |source| matches!(source, Cidr::V4(_)));
    v4.into_iter().chain(of("ip6", |source| matches!(source, Cidr::V6(_)))).collect()
}

/// What takes the rules of some taps away, from a list of the table as `nft -j` prints it.
pub(super) fn clear(list: &Value, is_gone: impl Fn(&str) -> bool) -> String {
    let mut script = String::new();
    let mut chains = BTreeSet::new();
    let gone = |chain: &str| {
        let tap = chain.strip_prefix(WALL).or_else(|| chain.strip_prefix(PORTS));
        tap.is_some_and(&is_gone)
    };
    for item in list["nftables"].as_array().into_iter().flatten() {
        if let Some(name) = item["chain"]["name"].as_str().filter(|name| gone(name)) {
            chains.insert(name.to_owned());
        }
        let map = item["map"]["name"].as_str().unwrap_or_default();
        for element in item["map"]["elem"].as_array().into_iter().flatten() {
            let target = element[1]["jump"]["target"].as_str().unwrap_or_default();
            let key = element[0]["concat"].as_array();
            if let (true, Some(key)) = (gone(target), key.and_then(|key| element_key(map, key))) {
                let _ = writeln!(script, "delete element inet lightbyte {map} {{ {key} }}");
            }
        }
    }
    // What nobody jumps to any more.
    for chain in chains {
        let _ = writeln!(script, "flush chain inet lightbyte {chain}\ndelete chain inet lightbyte {chain}");
    }
    script
}

fn element_key(map: &str, parts: &[Value]) -> Option<String> {
    let [first, second] = parts else { return None };
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned);
    let first = if map.starts_with("walls") { format!("\"{}\"", text(first)) } else { text(first) };
    Some(format!("{first} . {}", text(second)))
}

/// Tells one set of rules from another (Fowler, Noll, Vo: FNV-1a).
pub(super) fn hash(nic: &AssignedNic) -> u64 {
    let bytes =
        serde_json::to_vec(&(&nic.bridge, &nic.firewall, &nic.ports, WALL_VERSION)).unwrap_or_default();
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_opening_is_a_rule() {
        let check = |opening: Value, expect: &str| {
            let opening: Opening = serde_json::from_value(opening).expect("an opening");
            assert_eq!(opening_rules(&opening).join("; "), expect);
        };
        check(json!({"protocol": "icmp"}), "meta l4proto { 1, 58 } accept");
        check(json!({"protocol": "udp"}), "meta l4proto udp accept");
        check(
            json!({"protocol": "tcp", "ports": [80, "8000-8010"], "from": ["10.0.0.0/8", "10.77.0.3/32"]}),
            "ip saddr { 10.0.0.0/8, 10.77.0.3/32 } tcp dport { 80, 8000-8010 } accept",
        );
        check(
            json!({"protocol": "udp", "from": ["fd00:77::/64", "10.0.0.0/8"]}),
            "ip saddr { 10.0.0.0/8 } meta l4proto udp accept; ip6 saddr { fd00:77::/64 } meta l4proto udp accept",
        );
    }

    #[test]
    fn the_rules_of_a_tap_are_found_in_a_list() {
        let list = json!({"nftables": [
            {"metainfo": {}},
            {"table": {"family": "inet", "name": "lightbyte"}},
            {"map": {"name": "walls", "elem": [
                [{"concat": ["br0", "10.77.0.2"]}, {"jump": {"target": "wall-lba"}}],
                [{"concat": ["br0", "10.77.0.3"]}, {"jump": {"target": "wall-lbb"}}],
            ]}},
            {"map": {"name": "walls6", "elem": [
                [{"concat": ["br0", 172_818_434]}, {"jump": {"target": "wall-lba"}}],
            ]}},
            {"map": {"name": "ports", "elem": [[{"concat": ["tcp", 8080]}, {"jump": {"target": "ports-lba"}}]]}},
            {"chain": {"name": "received"}},
            {"chain": {"name": "wall-lba"}},
            {"chain": {"name": "ports-lba"}},
            {"chain": {"name": "wall-lbb"}},
        ]});
        let found = clear(&list, |tap| tap == "lba").replace(" inet lightbyte", "");
        assert_eq!(
            found,
            "delete element walls { \"br0\" . 10.77.0.2 }\ndelete element walls6 { \"br0\" . 172818434 }\n\
             delete element ports { tcp . 8080 }\n\
             flush chain ports-lba\ndelete chain ports-lba\nflush chain wall-lba\ndelete chain wall-lba\n"
        );
        assert_eq!(clear(&list, |_| false), "");
        assert_eq!(clear(&Value::Null, |_| true), "");
    }
}
