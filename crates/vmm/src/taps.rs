//! Taps: persistent, so that they are there before a VM and after it, and either VMM finds them by name.
//!
//! A tap is finished (named for its VM, on its bridge, up, without IPv6 of the host's own) before it is made
//! persistent. A crash in between therefore leaves nothing, and what is there is whole. Which VM a tap is of, and what it
//! may send from, stands in its alias, since its name is a hash, and so that the rules can be made again from it.
//!
//! A guest sends from its own addresses only, see `sources`: they are let through before the tap is up, and taken away
//! before it goes. What may come in to it, and which ports of the host lead there, is in `walls`. That VMs cannot reach the hosts' own ports is done by other rules, not here.

mod leases;
mod netlink;
mod nft;
mod probe;
mod sources;
mod walls;

use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd as _, OwnedFd};

use lightbyte_api::address::{InterfaceId, tap_name};
use lightbyte_api::assigned::AssignedNic;
use lightbyte_api::kinds::vm::NICS_MAX;
use lightbyte_api::observed::{Lease, Squatter};
use lightbyte_api::{MacAddress, Uid, VmId};

use self::netlink::{Link, Netlink};
use self::probe::Question;
use self::sources::{Source, Source6, Walled};
use crate::driver::{DriverError, Network, TapState};

/// What the alias of a tap begins with; the VM's uid, the hardware address and the IPv4 address or `dhcp` follow, for one that speaks IPv6
/// the word for that, and for one with rules of its own which these are.
const ALIAS_PREFIX: &str = "lightbyte vm ";
/// Before what it may send from of IPv6: an address, or the word for all with its own last half.
const IPV6: &str = "ipv6:";
const AUTO: &str = "auto";
/// In place of the IPv4 address, where a DHCP server says it.
const DHCP: &str = "dhcp";
/// Before the virtual address that it has besides.
const VIRTUAL: &str = "virtual:";
/// Before the hash of its rules, for one with a wall and for one without.
const WALL: &str = "wall:";
const PORTS: &str = "ports:";
/// What it ends with once nobody answered for the address.
const PROBED: &str = " probed";

/// The table of the rules that taps have of their own.
const TABLE: [&str; 3] = ["table", "inet", "lightbyte"];

/// What Ethernet takes (`ETH_DATA_LEN`, linux/if_ether.h).
const ETHERNET_MTU: u32 = 1_500;

/// linux/if_tun.h: a tap, without the packet information header, with offload headers as virtio-net uses them.
const FLAGS: u16 = 0x0002 | 0x1000 | 0x4000;

const TUNSETIFF: rustix::ioctl::Opcode = rustix::ioctl::opcode::write::<i32>(b'T', 202);
const TUNSETOWNER: rustix::ioctl::Opcode = rustix::ioctl::opcode::write::<i32>(b'T', 204);
const TUNSETPERSIST: rustix::ioctl::Opcode = rustix::ioctl::opcode::write::<i32>(b'T', 203);

/// The rules that every worker's taps need, before there are any: a host that takes them can have taps.
pub const RULES: &str = sources::TABLE;

/// Taps in the network namespace of this process.
#[derive(Clone, Copy, Debug)]
pub struct Taps {}

impl Taps {
    /// Makes the rules for the taps that are there. It takes some 20 ms, and the driver keeps nothing.
    ///
    /// # Errors
    /// [`DriverError::Refused`] when the host has no `nft`.
    pub fn new() -> Result<Taps, DriverError> {
        let links = links()?;
        let mut sources = sources_of(&links);
        let with_rules = |source: &&mut Source| source.rules.is_some();
        if !sources.iter_mut().any(|source| with_rules(&source)) && nft::list(&TABLE)?.is_null() {
            sources::begin(&sources)?;
            return Ok(Taps {});
        }
        let list = nft::list(&TABLE)?;
        let mut unknown = Vec::new();
        for source in sources.iter_mut().filter(with_rules) {
            // An agent looks at its taps when it has begun, and makes again what is not known.
            if walls::clear(&list, |tap| tap == source.tap).is_empty() {
                source.rules = Some(0);
                source.wall = if source.wall == Walled::No { Walled::No } else { Walled::Closed };
                unknown.push(source.clone());
            }
        }
        sources::begin(&sources)?;
        let is_left = |tap: &str| !sources.iter().any(|source| source.tap == tap && source.rules.is_some());
        nft::run(nft::NFT, &walls::clear(&list, is_left))?;
        for source in &unknown {
            let link = links.iter().find(|link| link.name == source.tap);
            let alias_of = |link: &Link| Some((link.index, alias(vm_of(link)?, source)));
            if let Some((index, alias)) = link.and_then(alias_of) {
                let noted = Netlink::open().and_then(|mut netlink| netlink.set_alias(index, &alias));
                noted.map_err(system(format!("note that the rules of {} are gone", source.tap)))?;
            }
        }
        Ok(Taps {})
    }
}

impl Network for Taps {
    /// Taps that are there are joined to their bridges again.
    fn ensure(&self, vm: VmId, nics: &[AssignedNic]) -> Result<(), DriverError> {
        let links = links()?;
        let index_of = |name: &str| links.iter().find(|link| link.name == name).map(|link| link.index);
        let bridges: Vec<u32> = nics
            .iter()
            .map(|nic| {
                index_of(&nic.bridge)
                    .ok_or_else(|| DriverError::Refused(format!("this host has no bridge `{}`", nic.bridge)))
            })
            .collect::<Result<_, _>>()?;
        nics.iter().filter(|nic| walls::has_rules(nic)).try_for_each(walls::check)?;
        let wanted = sources(vm, nics);
        let (old, others): (Vec<Source>, Vec<Source>) =
            sources_of(&links).into_iter().partition(|source| wanted.iter().any(|new| new.tap == source.tap));
        let rules = wanted.iter().zip(nics).filter(|(_, nic)| walls::has_rules(nic));
        let rules: Vec<String> = rules.map(|(source, nic)| walls::rules(&source.tap, nic)).collect();
        let more = clear_rules(&old)? + &rules.concat();
        sources::change(&old, &wanted, &others, &more)?;
        let cards = wanted.iter().zip(bridges).zip(nics);
        let made = cards.into_iter().try_for_each(|((source, bridge), nic)| {
            let name = &source.tap;
            // What was found out about an address goes on being true of it.
            let probed = alias(vm, source) + PROBED;
            let is_probed = links.iter().any(|link| link.name == *name && link.alias == probed);
            let alias = if is_probed { probed } else { alias(vm, source) };
            let (address, mtu) = (host_side(source.mac), mtu(nic));
            let made = match index_of(name) {
                Some(tap) => {
                    Netlink::open().and_then(|mut netlink| netlink.set_up(tap, bridge, address, &alias, mtu))
                }
                None => make(name, bridge, address, &alias, mtu),
            };
            made.map_err(system(format!("make tap {name}")))
        });
        made.or_else(|error| {
            // What was made of them sends nothing; the next attempt lets it through again.
            sources::change(&wanted, &[], &others, &clear_rules(&wanted)?)?;
            Err(error)
        })
    }

    /// That a VM does not run any more is for the caller to see to; a tap that is open is refused all the same.
    fn remove(&self, vm: VmId) -> Result<(), DriverError> {
        let links = links()?;
        // All before any: a refusal leaves a VM that runs with its whole network.
        let mut found = Vec::new();
        let mut names = Vec::new();
        for index in 0..NICS_MAX {
            let name = tap_name(vm.uid(), index);
            if links.iter().any(|link| link.name == name) {
                found.push(open(&name)?);
                names.push(name);
            }
        }
        // Before the taps: whoever dies in between finds them again, and with them what is to be taken away.
        let (own, others): (Vec<Source>, Vec<Source>) =
            sources_of(&links).into_iter().partition(|source| names.contains(&source.tap));
        sources::change(&own, &[], &others, &(clear_rules(&own)? + &forget_leases(&own)?))?;
        for tap in found {
            set_persistent(&tap, false).map_err(system("let go of a tap"))?;
        }
        Ok(())
    }

    fn probe(&self, vm: VmId, nics: &[AssignedNic]) -> Result<Vec<Squatter>, DriverError> {
        let links = links()?;
        let named = |name: &str| links.iter().find(|link| link.name == name);
        let on_bridge = |nic: &AssignedNic| on_bridge(&links, nic);
        let mut questions = Vec::new();
        let mut cards = Vec::new();
        for (card, nic) in (0..).zip(nics) {
            // Nobody knows yet which one its server will give.
            let Some(known) = nic.address else { continue };
            let (bridge, from) = on_bridge(nic)?;
            for address in addresses(nic, known) {
                questions.push(Question { bridge, from, own: nic.mac, address });
                cards.push((card, known));
            }
        }
        let answers = probe::ask(&questions).map_err(system("probe for the VM's addresses"))?;
        let squatter = |((nic, address), answer): ((u32, Ipv4Addr), Option<MacAddress>)| {
            Some(Squatter { nic, address, mac: answer? })
        };
        let mut squatters: Vec<Squatter> = cards.into_iter().zip(answers).filter_map(squatter).collect();
        // Who has the address of one family means the card's, whatever becomes of the other.
        squatters.dedup_by_key(|squatter| squatter.nic);
        if squatters.is_empty() {
            let marked = sources(vm, nics).iter().try_for_each(|source| {
                let tap = named(&source.tap).ok_or(io::ErrorKind::NotFound)?;
                Netlink::open()?.set_alias(tap.index, &(alias(vm, source) + PROBED))
            });
            marked.map_err(system("note that nobody has the VM's addresses"))?;
        }
        Ok(squatters)
    }

    fn is_taken(&self, nics: &[AssignedNic]) -> Result<bool, DriverError> {
        let links = links()?;
        let mut questions = Vec::new();
        for nic in nics {
            for address in nic.virtual_addresses() {
                let (bridge, from) = on_bridge(&links, nic)?;
                questions.push(Question { bridge, from, own: nic.mac, address });
            }
        }
        let answers = probe::ask(&questions).map_err(system("ask who has the virtual address"))?;
        Ok(answers.iter().any(Option::is_some))
    }

    fn announce(&self, nics: &[AssignedNic]) -> Result<(), DriverError> {
        let links = links()?;
        for nic in nics {
            for address in nic.virtual_addresses() {
                let bridge = links.iter().find(|link| link.name == nic.bridge).ok_or_else(|| {
                    DriverError::Refused(format!("this host has no bridge `{}`", nic.bridge))
                })?;
                probe::announce(bridge.index, nic.mac, address)
                    .map_err(system(format!("tell {} that {address} is at {}", nic.bridge, nic.mac)))?;
            }
        }
        Ok(())
    }

    fn state(&self, vm: VmId, nics: &[AssignedNic]) -> Result<TapState, DriverError> {
        let links = links()?;
        let own: Vec<&Link> = links.iter().filter(|link| vm_of(link) == Some(vm)).collect();
        let wanted = sources(vm, nics);
        let all_are = |what: &dyn Fn(&str, &str) -> bool| {
            wanted.iter().all(|source| {
                let alias = alias(vm, source);
                own.iter().any(|link| link.name == source.tap && what(&link.alias, &alias))
            })
        };
        Ok(TapState {
            count: own.len(),
            as_assigned: all_are(&|found, alias| found.strip_suffix(PROBED).unwrap_or(found) == alias),
            probed: all_are(&|found, alias| found.strip_suffix(PROBED) == Some(alias)),
            leases: leases_of(&wanted)?,
            virtual_address: sources_of(&links)
                .iter()
                .find(|source| source.tap == tap_name(vm.uid(), 0))
                .and_then(|source| source.virtual_address),
        })
    }

    fn list(&self) -> Result<Vec<VmId>, DriverError> {
        let mut vms: Vec<VmId> = links()?.iter().filter_map(vm_of).collect();
        vms.sort_unstable();
        vms.dedup();
        Ok(vms)
    }
}

/// Opens a tap that is there, for a VMM that is about to start.
///
/// # Errors
/// [`DriverError::Refused`] if it is not there, or somebody has it open.
pub fn open(name: &str) -> Result<OwnedFd, DriverError> {
    // Opening one that is not there would make it.
    if !links()?.iter().any(|link| link.name == name) {
        return Err(DriverError::Refused(format!("tap {name} is not there")));
    }
    match attach(name) {
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
            Err(DriverError::Refused(format!("tap {name} is in use")))
        }
        tap => tap.map_err(system(format!("open tap {name}"))),
    }
}

/// Lets processes of a user open the tap, who may not touch any other. Root still can.
///
/// # Errors
/// If the kernel does not take it.
pub(crate) fn give(tap: &OwnedFd, uid: u32) -> io::Result<()> {
    set_number::<TUNSETOWNER>(tap, uid as usize)
}

fn links() -> Result<Vec<Link>, DriverError> {
    Netlink::open().and_then(|mut netlink| netlink.links()).map_err(system("list network interfaces"))
}

/// The index and the hardware address of a card's bridge, which is up.
fn on_bridge(links: &[Link], nic: &AssignedNic) -> Result<(u32, MacAddress), DriverError> {
    let bridge = links
        .iter()
        .find(|link| link.name == nic.bridge)
        .ok_or_else(|| DriverError::Refused(format!("this host has no bridge `{}`", nic.bridge)))?;
    if !bridge.is_up {
        return Err(DriverError::Refused(format!("bridge `{}` is down", nic.bridge)));
    }
    Ok((bridge.index, bridge.mac.unwrap_or(MacAddress::new([0; 6]))))
}

fn vm_of(link: &Link) -> Option<VmId> {
    let mut words = link.alias.strip_prefix(ALIAS_PREFIX)?.split(' ');
    words.next()?.parse::<Uid>().ok().map(VmId::new)
}

fn sources(vm: VmId, nics: &[AssignedNic]) -> Vec<Source> {
    let source = |(index, nic): (usize, &AssignedNic)| Source {
        tap: tap_name(vm.uid(), index),
        mac: nic.mac,
        address: nic.address,
        virtual_address: nic.virtual_address.map(|has| has.address),
        ipv6: nic.ipv6.as_ref().map(|ipv6| ipv6.address.map_or(Source6::Auto, Source6::Address)),
        wall: if nic.firewall.is_some() { Walled::Open } else { Walled::No },
        rules: walls::has_rules(nic).then(|| walls::hash(nic)),
    };
    nics.iter().enumerate().map(source).collect()
}

fn alias(vm: VmId, source: &Source) -> String {
    let mark = if source.wall == Walled::No { PORTS } else { WALL };
    let rules = source.rules.map_or_else(String::new, |rules| format!(" {mark}{rules:x}"));
    let ipv6 = match source.ipv6 {
        None => String::new(),
        Some(Source6::Auto) => format!(" {IPV6}{AUTO}"),
        Some(Source6::Address(address)) => format!(" {IPV6}{address}"),
    };
    let address = source.address.map_or_else(|| DHCP.to_owned(), |address| address.to_string());
    let also = source.virtual_address.map_or_else(String::new, |address| format!(" {VIRTUAL}{address}"));
    format!("{ALIAS_PREFIX}{vm} {} {address}{also}{ipv6}{rules}", source.mac)
}

/// What a card with the IPv4 address `known` is probed for: every address that its guest gives it by itself.
fn addresses(nic: &AssignedNic, known: Ipv4Addr) -> impl Iterator<Item = IpAddr> + use<> {
    let link_local = nic.interface6().map(InterfaceId::link_local);
    let address6 = nic.ipv6.as_ref().and_then(|ipv6| ipv6.address);
    [Some(known.into()), link_local.map(Into::into), address6.map(Into::into)].into_iter().flatten()
}

/// What takes away the rules that these taps have of their own.
fn clear_rules(sources: &[Source]) -> Result<String, DriverError> {
    if sources.iter().all(|source| source.rules.is_none()) {
        return Ok(String::new());
    }
    let is_it = |tap: &str| sources.iter().any(|source| source.tap == tap);
    Ok(walls::clear(&nft::list(&TABLE)?, is_it))
}

/// What takes away the addresses that DHCP servers have given to these taps.
fn forget_leases(sources: &[Source]) -> Result<String, DriverError> {
    if sources.iter().all(|source| source.address.is_some()) {
        return Ok(String::new());
    }
    let is_it = |tap: &str| sources.iter().any(|source| source.tap == tap);
    Ok(leases::forget(&leases::read(&nft::list(&leases::SET)?), is_it))
}

/// What DHCP servers have given to the cards of a VM, whose sources these are.
fn leases_of(sources: &[Source]) -> Result<Vec<Lease>, DriverError> {
    let by_dhcp = |source: &Source| source.address.is_none();
    if !sources.iter().any(by_dhcp) {
        return Ok(Vec::new());
    }
    let all = leases::read(&nft::list(&leases::SET)?);
    let lease = |(nic, source): (u32, &Source)| {
        Some(Lease { nic, address: leases::last(&all, &source.tap, source.mac)? })
    };
    Ok((0..).zip(sources).filter(|(_, source)| by_dhcp(source)).filter_map(lease).collect())
}

/// What taps of ours may send from, as their aliases tell it.
fn sources_of(links: &[Link]) -> Vec<Source> {
    let source = |link: &Link| {
        let mut words = link.alias.strip_prefix(ALIAS_PREFIX)?.split(' ').skip(1);
        let mut next = || words.next();
        let mac = next()?.parse().ok()?;
        let address = match next()? {
            DHCP => None,
            address => Some(address.parse().ok()?),
        };
        let mut rules = next().unwrap_or_default();
        let virtual_address = match rules.strip_prefix(VIRTUAL) {
            None => None,
            Some(address) => {
                rules = next().unwrap_or_default();
                Some(address.parse().ok()?)
            }
        };
        let ipv6 = match rules.strip_prefix(IPV6) {
            None => None,
            Some(AUTO) => Some(Source6::Auto),
            Some(address) => Some(Source6::Address(address.parse().ok()?)),
        };
        if ipv6.is_some() {
            rules = next().unwrap_or_default();
        }
        let hash = |mark| rules.strip_prefix(mark).and_then(|hash| u64::from_str_radix(hash, 16).ok());
        let (walled, ports) = (hash(WALL), hash(PORTS));
        let wall = if walled.is_some() { Walled::Open } else { Walled::No };
        Some(Source {
            tap: link.name.clone(),
            mac,
            address,
            virtual_address,
            ipv6,
            wall,
            rules: walled.or(ports),
        })
    };
    links.iter().filter_map(source).collect()
}

/// The largest packets that a tap takes. A bridge takes the least of its ports for itself, so a tap of less than Ethernet's
/// would change the host's own; there the guest alone keeps to it.
fn mtu(nic: &AssignedNic) -> u32 {
    nic.mtu.unwrap_or(ETHERNET_MTU).max(ETHERNET_MTU)
}

/// The tap's own hardware address. A bridge takes the lowest of its ports for itself, so the kernel's choice, which is
/// random, would change the address of the host with each VM that comes or goes, and nobody would reach the host until
/// they have asked for it anew. This is as high as an address of one interface can be, and never the guest's.
fn host_side(guest: MacAddress) -> MacAddress {
    let [_, second, third, fourth, fifth, last] = guest.bytes();
    MacAddress::new([0xfe, second, third, fourth, fifth, !last])
}

/// Makes a tap: if this process ends before it is whole, the kernel takes it away.
fn make(name: &str, bridge: u32, address: MacAddress, alias: &str, mtu: u32) -> io::Result<()> {
    let tap = attach(name)?;
    let mut netlink = Netlink::open()?;
    let index = netlink
        .links()?
        .iter()
        .find(|link| link.name == name)
        .map(|link| link.index)
        .ok_or(io::ErrorKind::NotFound)?;
    // The host's own IPv6 would give every tap an address by itself, and guests a way around their bridge.
    match fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1") {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        // A kernel without IPv6 has no such file.
        _ => {}
    }
    netlink.set_up(index, bridge, address, alias, mtu)?;
    set_persistent(&tap, true)
}

/// `struct ifreq` as TUNSETIFF reads it: a name of 16 bytes, the flags, and room for the rest of the union.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

/// Opens the tap of that name; it is made if it is not there, and ends with the descriptor unless it is persistent.
fn attach(name: &str) -> io::Result<OwnedFd> {
    let mut request = InterfaceRequest { name: [0; 16], flags: FLAGS, rest: [0; 22] };
    if name.is_empty() || name.len() > 15 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a tap's name has 1 to 15 bytes"));
    }
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    let device = File::options().read(true).write(true).open("/dev/net/tun")?;
    set_interface(&device, request)?;
    Ok(device.into())
}

#[expect(unsafe_code, reason = "TUNSETIFF has no safe form")]
fn set_interface(device: &File, request: InterfaceRequest) -> io::Result<()> {
    // SAFETY: TUNSETIFF (linux/if_tun.h) reads a `struct ifreq` of 40 bytes, which `InterfaceRequest` lays out; its
    // declared argument type is `int`, which is why the opcode is made from that and the setter from the real one.
    unsafe {
        let setter = rustix::ioctl::Setter::<TUNSETIFF, InterfaceRequest>::new(request);
        Ok(rustix::ioctl::ioctl(device, setter)?)
    }
}

fn set_persistent(tap: &OwnedFd, is_persistent: bool) -> io::Result<()> {
    set_number::<TUNSETPERSIST>(tap, usize::from(is_persistent))
}

/// Sets one of a tap's properties that are numbers: TUNSETPERSIST, TUNSETOWNER.
#[expect(unsafe_code, reason = "neither has a safe form")]
fn set_number<const CODE: rustix::ioctl::Opcode>(tap: &OwnedFd, number: usize) -> io::Result<()> {
    // SAFETY: both (linux/if_tun.h) take their argument as a number, not as a pointer.
    unsafe {
        let setter = rustix::ioctl::IntegerSetter::<CODE>::new_usize(number);
        Ok(rustix::ioctl::ioctl(tap.as_fd(), setter)?)
    }
}

fn system(context: impl Into<String>) -> impl FnOnce(io::Error) -> DriverError {
    let context = context.into();
    move |source| DriverError::System { context, source }
}
