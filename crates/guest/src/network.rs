//! Makes the guest's name and network what the host says. Doing it again changes nothing.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::net::{IpAddr, Ipv6Addr};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use lightbyte_guest::protocol::{Identity, Ipv6, Nic};

use crate::boot::read_limited;
use crate::dhcp::Lease;
use crate::netlink::Netlink;

/// Interfaces that one guest may have; the host sends fewer.
const NICS_MAX: usize = 8;

/// Name servers that a resolver uses (resolv.conf(5), MAXNS).
const NAME_SERVERS_MAX: usize = 3;

/// Longest host name (hostname(7)).
const NAME_BYTES_MAX: usize = 63;

/// Gives the cards what an identity says; `before` is the one that was applied last. Its files are for [`write_files`].
///
/// # Errors
/// If the identity makes no sense (then nothing is changed), or the kernel refuses a step (then saying it again repairs).
pub(crate) fn apply(identity: &Identity, before: Option<&Identity>) -> anyhow::Result<()> {
    check(identity)?;
    announce_addresses();
    let mut netlink = Netlink::open().context("open netlink")?;
    if let Some(lo) = index_of("lo") {
        netlink.link_up(lo).context("bring up lo")?;
    }
    for nic in before.map(|before| before.nics.as_slice()).unwrap_or_default() {
        if !identity.nics.contains(nic) {
            // Gone or changed: an address that is no longer ours must not be answered for.
            let _ = remove(&mut netlink, nic);
        }
    }
    for nic in &identity.nics {
        // A token that is set again takes the addresses away that were made with it.
        let is_set_up = before.is_some_and(|before| before.nics.contains(nic));
        add(&mut netlink, nic, is_set_up).with_context(|| format!("set up {}", nic.mac))?;
    }
    if !identity.name.is_empty() {
        rustix::system::sethostname(identity.name.as_bytes()).context("set the host name")?;
    }
    Ok(())
}

/// Gives a card what a DHCP server has given, in place of what it gave before.
///
/// # Errors
/// If the kernel refuses a step.
pub(crate) fn take_lease(
    index: u32,
    before: Option<&Lease>,
    lease: Option<&Lease>,
    takes_route: bool,
) -> anyhow::Result<()> {
    let mut netlink = Netlink::open().context("open netlink")?;
    if let Some(Lease { address, prefix_length, .. }) = before
        && lease.is_none_or(|lease| (lease.address, lease.prefix_length) != (*address, *prefix_length))
    {
        // What is no longer ours must not be answered for.
        let _ = netlink.remove_address(index, (*address).into(), *prefix_length);
    }
    let Some(lease) = lease else { return Ok(()) };
    netlink.add_address(index, lease.address.into(), lease.prefix_length).context("set the address")?;
    match lease.gateway.filter(|_| takes_route) {
        Some(gateway) => netlink.default_route(index, gateway.into()).context("set the default route"),
        None => Ok(()),
    }
}

/// Gives the first card these addresses besides its own, in place of those that it `has`, which is kept true whatever goes wrong. One of
/// IPv6 that the kernel does not take is told, and keeps nobody from that of IPv4.
///
/// # Errors
/// If there is no card, or the kernel refuses a step.
pub(crate) fn set_virtual_addresses(
    identity: Option<&Identity>,
    has: &mut Vec<IpAddr>,
    addresses: &[IpAddr],
) -> anyhow::Result<()> {
    /// Nobody else is reached by it.
    const fn alone(address: IpAddr) -> u8 {
        if address.is_ipv4() { 32 } else { 128 }
    }
    let nic = identity.and_then(|identity| identity.nics.first()).context("this guest has no card yet")?;
    let index = interface(&nic.mac).context("there is no such interface")?;
    let mut netlink = Netlink::open().context("open netlink")?;
    has.retain(|old| {
        let stays = addresses.contains(old);
        if !stays {
            // One that is not there any more is as it should be.
            let _ = netlink.remove_address(index, *old, alone(*old));
        }
        stays
    });
    for address in addresses {
        let result = match address {
            IpAddr::V4(_) => netlink.add_address(index, *address, alone(*address)),
            // Who begins a connection has it from an address of his own: this one may be another's in a moment.
            IpAddr::V6(address) => netlink.add_unused_address6(index, *address),
        };
        match result {
            Ok(()) if has.contains(address) => {}
            Ok(()) => has.push(*address),
            Err(error) if address.is_ipv6() => println!("lightbyte-guest: set {address}: {error}"),
            Err(error) => return Err(error).context("set the virtual address"),
        }
    }
    Ok(())
}

/// Lets interfaces that come up say to whom their addresses belong (RFC 5227, 2.3; `arp_notify` of the kernel's
/// ip-sysctl): a neighbour may remember the VM that had the address before, and would send to it for seconds.
fn announce_addresses() {
    // A kernel without it costs those seconds, and nothing else.
    let _ = fs::write("/proc/sys/net/ipv4/conf/all/arp_notify", "1\n");
}

fn check(identity: &Identity) -> anyhow::Result<()> {
    let name = &identity.name;
    if name.len() > NAME_BYTES_MAX || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
        bail!("the name is no host name");
    }
    if identity.nics.len() > NICS_MAX {
        bail!("more than {NICS_MAX} interfaces");
    }
    for nic in &identity.nics {
        let is_good = nic.address.is_empty() || parse(&nic.address).is_some();
        ensure!(is_good, "{} is no address with a length", nic.address);
        nic.ipv6.as_ref().map_or(Ok(Vec::new()), addresses6)?;
    }
    Ok(())
}

fn add(netlink: &mut Netlink, nic: &Nic, is_set_up: bool) -> anyhow::Result<()> {
    let name = name_of(&nic.mac).context("there is no such interface")?;
    let index = index_of(&name).context("the interface has gone")?;
    if let Some(mtu) = nic.mtu {
        netlink.set_mtu(index, mtu).context("set its MTU")?;
    }
    // The addresses first: an interface that comes up announces those that it has.
    if let Some((address, length)) = parse(&nic.address) {
        netlink.add_address(index, address, length).context("set its address")?;
    }
    let prepared = match &nic.ipv6 {
        Some(ipv6) => prepare_ipv6(netlink, &name, index, ipv6, is_set_up),
        None => {
            turn_ipv6_off(&name);
            Ok(())
        }
    };
    netlink.link_up(index).context("bring it up")?;
    if let Some(gateway) = nic.gateway {
        netlink.default_route(index, gateway).context("set the default route")?;
    }
    // What hinders IPv6 is told when all else works.
    prepared.context("set up IPv6")?;
    match nic.ipv6.as_ref().and_then(|ipv6| ipv6.gateway) {
        Some(gateway) => netlink.default_route(index, gateway).context("set the default route of IPv6"),
        None => Ok(()),
    }
}

/// Nothing of it would get out. Where it cannot be turned off, or is not there, that is all there is to it.
fn turn_ipv6_off(interface: &str) {
    let _ = Settings::of(interface).map(|settings| settings.set("disable_ipv6", "1"));
}

/// Gives the interface its addresses of IPv6, and none that it would give itself.
fn prepare_ipv6(
    netlink: &mut Netlink,
    interface: &str,
    index: u32,
    ipv6: &Ipv6,
    is_set_up: bool,
) -> anyhow::Result<()> {
    let settings = Settings::of(interface).context("this kernel has no IPv6")?;
    let is_auto = ipv6.address.is_empty();
    settings.set("disable_ipv6", "0")?;
    // No address from the hardware's, which the host lets nothing through for (`IN6_ADDR_GEN_MODE_NONE`).
    settings.set("addr_gen_mode", "1")?;
    settings.set("use_tempaddr", "0")?;
    // Also where the guest forwards, as one with containers does.
    settings.set("accept_ra", if is_auto { "2" } else { "0" })?;
    settings.set("autoconf", if is_auto { "1" } else { "0" })?;
    settings.set("ndisc_notify", "1")?;
    for (address, length) in addresses6(ipv6)? {
        netlink.add_address(index, address, length).with_context(|| format!("set {address}"))?;
    }
    if is_auto && !is_set_up {
        let token: Ipv6Addr = ipv6.link_local.parse().context("read the link-local address")?;
        netlink.set_token(index, token).context("set the last half of its addresses")?;
    }
    Ok(())
}

/// The kernel's settings of IPv6 for one interface (ip-sysctl of its documentation).
struct Settings(PathBuf);

impl Settings {
    /// None where the kernel has no IPv6.
    fn of(interface: &str) -> Option<Settings> {
        let directory = Path::new("/proc/sys/net/ipv6/conf").join(interface);
        directory.is_dir().then_some(Settings(directory))
    }

    fn set(&self, name: &str, value: &str) -> anyhow::Result<()> {
        fs::write(self.0.join(name), value).with_context(|| format!("set {name}"))
    }
}

fn remove(netlink: &mut Netlink, nic: &Nic) -> anyhow::Result<()> {
    let index = interface(&nic.mac).context("there is no such interface")?;
    for (address, length) in nic.ipv6.as_ref().map_or(Ok(Vec::new()), addresses6)? {
        let _ = netlink.remove_address(index, address, length);
    }
    match parse(&nic.address) {
        Some((address, length)) => {
            netlink.remove_address(index, address, length).context("remove its address")
        }
        None => Ok(()),
    }
}

/// The addresses that are said, with the lengths of their prefixes.
fn addresses6(ipv6: &Ipv6) -> anyhow::Result<Vec<(IpAddr, u8)>> {
    let link_local = parse(&format!("{}/64", ipv6.link_local)).filter(|(address, _)| address.is_ipv6());
    let mut addresses = vec![link_local.with_context(|| format!("{} is no IPv6 address", ipv6.link_local))?];
    if !ipv6.address.is_empty() {
        let address = parse(&ipv6.address).filter(|(address, _)| address.is_ipv6());
        addresses
            .push(address.with_context(|| format!("{} is no IPv6 address with a length", ipv6.address))?);
    }
    Ok(addresses)
}

/// `10.77.0.11/24`.
fn parse(text: &str) -> Option<(IpAddr, u8)> {
    let (address, length) = text.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    let length: u8 = length.parse().ok()?;
    (length <= if address.is_ipv4() { 32 } else { 128 }).then_some((address, length))
}

/// Index of the interface with this hardware address.
pub(crate) fn interface(mac: &str) -> Option<u32> {
    index_of(&name_of(mac)?)
}

/// Name of the interface with this hardware address.
fn name_of(mac: &str) -> Option<String> {
    let entries = fs::read_dir("/sys/class/net").ok()?;
    entries.flatten().find_map(|entry| {
        let address = read_limited(&entry.path().join("address"), 64).ok()?;
        if address.trim().eq_ignore_ascii_case(mac) { entry.file_name().into_string().ok() } else { None }
    })
}

fn index_of(name: &str) -> Option<u32> {
    read_limited(&Path::new("/sys/class/net").join(name).join("ifindex"), 16).ok()?.trim().parse().ok()
}

/// Writes who the guest is into the files that its programs read. `leases` is what DHCP servers have given.
///
/// # Errors
/// If a file cannot be written.
pub(crate) fn write_files(identity: &Identity, leases: &BTreeMap<String, Lease>) -> anyhow::Result<()> {
    // In the order of the cards.
    let leases = || identity.nics.iter().filter_map(|nic| leases.get(&nic.mac));
    let mut servers: Vec<IpAddr> = Vec::new();
    let leased = leases().flat_map(|lease| &lease.dns).map(|server| IpAddr::from(*server));
    for server in identity.dns.iter().copied().chain(leased) {
        if !servers.contains(&server) {
            servers.push(server);
        }
    }
    let mut resolvers = String::new();
    for server in servers.iter().take(NAME_SERVERS_MAX) {
        let _ = writeln!(resolvers, "nameserver {server}");
    }
    let mut hosts = "127.0.0.1 localhost\n::1 localhost\n".to_owned();
    let addresses6 = identity.nics.iter().filter_map(|nic| parse(&nic.ipv6.as_ref()?.address));
    let leased = leases().map(|lease| (lease.address.into(), 0));
    let addresses =
        identity.nics.iter().filter_map(|nic| parse(&nic.address)).chain(leased).chain(addresses6);
    for (address, _) in addresses {
        let _ = writeln!(hosts, "{address} {}", identity.name);
    }
    fs::write("/etc/resolv.conf", resolvers).context("write /etc/resolv.conf")?;
    fs::write("/etc/hosts", hosts).context("write /etc/hosts")?;
    fs::write("/etc/hostname", format!("{}\n", identity.name)).context("write /etc/hostname")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_a_length_that_fits() {
        for good in ["10.77.0.11/24", "0.0.0.0/0", "fd00::1/64", "fd00::1/128"] {
            assert!(parse(good).is_some(), "{good}");
        }
        for bad in ["10.77.0.11", "10.77.0.11/33", "10.77.0/24", "fd00::1/129", "/24", "x/1", "10.77.0.11/-1"]
        {
            assert!(parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn a_bad_identity_is_refused_before_anything_changes() {
        let nic = |address: &str| Nic {
            mac: "02:00:00:00:00:01".into(),
            address: address.into(),
            gateway: None,
            takes_route: false,
            mtu: None,
            ipv6: None,
        };
        let good = Identity { name: "a-1".into(), nics: vec![nic("10.0.0.1/8")], ..Identity::default() };
        assert!(check(&good).is_ok());
        for name in ["a b", "a\n127.0.0.1 evil", "ä", &"x".repeat(64)] {
            assert!(check(&Identity { name: name.into(), ..good.clone() }).is_err(), "{name}");
        }
        assert!(check(&Identity { nics: vec![nic("10.0.0.1")], ..good.clone() }).is_err());
        assert!(check(&Identity { nics: vec![nic("")], ..good.clone() }).is_ok(), "by DHCP");
        let with_ipv6 = |link_local: &str, address: &str| {
            let ipv6 = Ipv6 { link_local: link_local.into(), address: address.into(), gateway: None };
            let nics = vec![Nic { ipv6: Some(ipv6), ..nic("10.0.0.1/8") }];
            check(&Identity { nics, ..good.clone() })
        };
        assert!(with_ipv6("fe80::1", "fd00::1/64").is_ok());
        assert!(with_ipv6("fe80::1", "").is_ok());
        for (link_local, address) in
            [("", ""), ("10.0.0.1", ""), ("fe80::1", "fd00::1"), ("fe80::1", "10.0.0.1/8")]
        {
            assert!(with_ipv6(link_local, address).is_err(), "{link_local} {address}");
        }
        assert!(check(&Identity { nics: vec![nic("10.0.0.1/8"); 9], ..good }).is_err());
    }
}
