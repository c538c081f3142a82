//! Taps, the bridge and the rules between them.

use super::super::facts::{Bridge, Facts, Holder, Tried};
use super::super::{Finding, Wishes};
use super::Check;

pub(super) fn tun(facts: &Facts) -> Finding {
    let check = Check { name: "taps", why: "a tap is the network card of a VM on this side" };
    match facts.network.has_tun {
        true => check.ok("/dev/net/tun is there"),
        false => check.bad("there is no /dev/net/tun", "modprobe tun"),
    }
}

pub(super) fn bridge(wishes: &Wishes, facts: &Facts) -> Finding {
    let check = Check {
        name: "bridge",
        why: "taps of VMs are joined to it; a VM whose bridge is missing does not start",
    };
    let name = &wishes.bridge;
    match &facts.network.bridge {
        Bridge::Missing => check.bad(
            format!("there is no `{name}`"),
            format!("ip link add {name} type bridge && ip link set {name} up; or name another with --bridge"),
        ),
        Bridge::Other => check.bad(
            format!("`{name}` is there and is no bridge"),
            "name the bridge with --bridge; `ip link show type bridge` lists them",
        ),
        Bridge::There { is_up: false, .. } => {
            check.bad(format!("`{name}` is off"), format!("ip link set {name} up"))
        }
        Bridge::There { is_up: true, ports } if ports.is_empty() => check.warn(
            format!("`{name}` is on and has no network card: VMs reach each other and this host, and others only if this host routes"),
            format!("ip link set CARD master {name}, where CARD leads to the other hosts"),
        ),
        Bridge::There { is_up: true, ports } => check.ok(format!("`{name}` is on, with {}", ports.join(", "))),
    }
}

pub(super) fn rules(facts: &Facts) -> Finding {
    let check = Check {
        name: "tap rules",
        why: "rules of nftables keep a VM from sending under addresses of others; without them no worker starts",
    };
    match &facts.network.rules {
        Tried::Works => check.ok("rules for bridges work, tried in a network of their own"),
        Tried::Fails(why) => check.bad(
            format!("rules for bridges do not work: {why}"),
            "modprobe nf_tables_bridge, or install a kernel that has it; nft 1.0.6 takes these rules, an older one may not",
        ),
        Tried::NotTried(why) => check.warn(format!("not tried: {why}"), "sudo lightbyte doctor"),
    }
}

pub(super) fn filter(facts: &Facts) -> Finding {
    let check = Check {
        name: "bridge filter",
        why: "firewalls of VMs, and ports of this host that lead to one, need the host's IP rules to see what crosses bridges; so does a \
              firewall of the host then, which has to let VMs through",
    };
    let without = "VMs with a firewall or with ports of this host do not start";
    match facts.network.filters_bridges {
        Some(true) if facts.network.filters_bridges6 == Some(false) => check.warn(
            format!("off for IPv6: {without} on networks with `subnet6`"),
            "sysctl -w net.bridge.bridge-nf-call-ip6tables=1",
        ),
        Some(true) => check.ok("on: the host's own IP rules apply to what crosses bridges too"),
        Some(false) => {
            check.warn(format!("off: {without}"), "sysctl -w net.bridge.bridge-nf-call-iptables=1 net.bridge.bridge-nf-call-ip6tables=1")
        }
        None => check.warn(
            format!("not there: {without}"),
            "modprobe br_netfilter && sysctl -w net.bridge.bridge-nf-call-iptables=1 net.bridge.bridge-nf-call-ip6tables=1",
        ),
    }
}

pub(super) fn dns_port(facts: &Facts) -> Finding {
    let check = Check {
        name: "dns port",
        why: "`lightbyte dns` answers for names of VMs at this host's address, and one port has one owner; who listens at another \
              address alone, as systemd-resolved does, is in nobody's way",
    };
    let is_ours = |holder: &&Holder| holder.program.as_deref() == Some("lightbyte");
    let others: Vec<&Holder> = facts.dns_port.iter().filter(|holder| !is_ours(holder)).collect();
    let Some(first) = others.first() else {
        return check.ok("nobody has port 53 at all addresses");
    };
    let name = |holder: &&Holder| {
        let program = holder.program.as_deref().unwrap_or("somebody");
        format!("{program} ({})", holder.protocol)
    };
    let found =
        format!("held at all addresses by {}", others.iter().map(name).collect::<Vec<_>>().join(", "));
    let next = match first.program.as_deref() {
        None => "sudo lightbyte doctor".to_owned(),
        Some("dnsmasq") => "set `bind-interfaces` and `except-interface` of dnsmasq, or stop it".to_owned(),
        Some(program) => format!("tell {program} to listen at 127.0.0.1 alone, or stop it"),
    };
    check.warn(found, next)
}
