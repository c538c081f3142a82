//! The network cards of a VM: their addresses, and what becomes of one that somebody else turns out to have.
//!
//! ```text
//!   worker reports a squatter ──┬── another address is free: the claim becomes a squatted one, the VM gets the other
//!                               └── none, or it must have this one: it keeps its claim, and waits
//! ```
//!
//! The address of a card on a network with DHCP is its server's: nothing is claimed for it, and what needs an address that is
//! known (`needs_pool`) is refused.
//!
//! A VM whose worker reports a squatter does not run, and under this assignment never will: so its address may be
//! exchanged. A squatted claim is the network's, until a person releases it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lightbyte_api::address::Cidr;
use lightbyte_api::assigned::{AssignedIpv6, AssignedNic, AssignedVm};
use lightbyte_api::firewall::{From, Opening, SOURCES_MAX, Wall};
use lightbyte_api::kinds::loadbalancer::Member;
use lightbyte_api::kinds::network::{self, Ipv4, Prefix6};
use lightbyte_api::kinds::vm::{PlacedNic, Placement};
use lightbyte_api::observed::{ObservedVm, Squatter};
use lightbyte_api::records::{AddressClaim, Squatted};
use lightbyte_api::{Key, Kind, MacAddress, Name, ObjectRef, Spec, WaitingOn};

use super::{Inputs, Vm, placement, unreadable};
use crate::fronts;
use crate::planner::network::{free_address, unavailable};
use crate::transaction::Write;
use crate::view::View;

/// Addresses that one plan gives.
type Taken = BTreeSet<(Name, Ipv4Addr)>;

/// The network cards of a VM that is being placed. The error is the reason to wait.
pub(super) fn choose(vm: &Vm<'_>) -> Result<Vec<(PlacedNic, AssignedNic)>, WaitingOn> {
    let mut taken = Taken::new();
    let mut nics = Vec::with_capacity(vm.spec.nics.len());
    let networks = vm.spec.nics.iter().map(|nic| living(vm.view, &nic.network));
    let networks: Vec<_> = networks.collect::<Result<_, _>>()?;
    let wall = match wall(vm) {
        (wall, None) => wall,
        (_, Some(problem)) => return Err(problem),
    };
    let without_pool = |index: usize| networks.get(index).is_some_and(|(_, spec)| spec.pool().is_none());
    if let Some(problem) = needs_pool(vm, without_pool) {
        return Err(problem);
    }
    for (index, (nic, (_, spec))) in vm.spec.nics.iter().zip(&networks).enumerate() {
        let address = match spec.ipv4 {
            Ipv4::Dhcp { .. } => None,
            Ipv4::Pool(_) => {
                let free = free_address(vm.view, &nic.network, spec, nic.address, &taken);
                Some(free.ok_or_else(|| unavailable(vm.view, &nic.network, nic.address))?)
            }
        };
        taken.extend(address.map(|address| (nic.network.clone(), address)));
        let mac = MacAddress::of_nic(vm.meta.uid, index);
        let address6 = address.and_then(|address| spec.address6(address));
        let placed = PlacedNic { network: nic.network.clone(), mac, address, address6 };
        let ports = if index == 0 { vm.spec.ports.clone() } else { Vec::new() };
        let assigned = AssignedNic { firewall: wall.clone(), ports, ..assigned_nic(spec, &placed) };
        nics.push((placed, assigned));
    }
    Ok(nics)
}

/// What a VM asks for and no card without an address that is known can have. `without_pool` tells of a card whether its
/// network has none.
fn needs_pool(vm: &Vm<'_>, without_pool: impl Fn(usize) -> bool) -> Option<WaitingOn> {
    vm.spec.nics.iter().enumerate().filter(|(index, _)| without_pool(*index)).find_map(|(index, nic)| {
        let asked = [
            ("firewall", vm.spec.firewall.is_some()),
            ("ports", index == 0 && !vm.spec.ports.is_empty()),
            ("nics[].address", nic.address.is_some()),
        ];
        let (field, _) = asked.into_iter().find(|(_, is_asked)| *is_asked)?;
        Some(WaitingOn::NeedsPool { network: nic.network.clone(), field: field.to_owned() })
    })
}

/// Where the claim of a placed card's address is; nowhere without one.
pub(super) fn claim_key(nic: &PlacedNic) -> Option<Key> {
    Some(Key::Address(nic.network.clone(), nic.address?))
}

/// The claim of a placed card's address.
pub(super) fn claim(vm: &Vm<'_>, nic: &PlacedNic) -> Option<Write> {
    let claim = AddressClaim { owner: vm.meta.uid, object: vm.object.clone(), squatted: None };
    Some(Write::put(claim_key(nic)?, claim))
}

fn assigned_nic(spec: &network::Spec, placed: &PlacedNic) -> AssignedNic {
    AssignedNic {
        bridge: spec.bridge.clone(),
        mac: placed.mac,
        address: placed.address,
        prefix_length: spec.pool().map_or(0, |pool| pool.subnet.prefix_length()),
        gateway: spec.pool().and_then(|pool| pool.gateway),
        dns: spec.dns.clone(),
        mtu: spec.mtu,
        ipv6: ipv6(spec, placed.address6),
        firewall: None,
        ports: Vec::new(),
        virtual_address: None,
    }
}

/// The cards of a VM that was placed with the virtual address that it is to have now; nothing where they have it. With it comes
/// what that rests on.
pub(super) fn with_virtual_address(vm: &Vm<'_>, assigned: &AssignedVm) -> Option<(Vec<AssignedNic>, Key)> {
    let (wanted, rests_on) = fronts::virtual_address(vm.view, vm.object, vm.meta.uid)?;
    let first = assigned.nics.first()?;
    if first.virtual_address == wanted {
        return None;
    }
    let mut nics = assigned.nics.clone();
    nics.first_mut()?.virtual_address = wanted;
    Some((nics, rests_on))
}

/// The IPv6 of a card that has this `address`, where it is known.
fn ipv6(spec: &network::Spec, address: Option<Ipv6Addr>) -> Option<AssignedIpv6> {
    let prefix_length = match spec.subnet6? {
        Prefix6::Subnet(subnet) => subnet.prefix_length(),
        Prefix6::Auto => 0,
    };
    Some(AssignedIpv6 { address, prefix_length, gateway: spec.gateway6 })
}

/// What may come in to the VM, with the addresses that VMs with the named labels have now. Whoever gets or loses such
/// labels, or an address, wakes this VM (`crate::labels`); a plan does not rest on them, since there may be many, and one
/// that was made from older addresses is followed by another.
///
/// A rule whose labels come to too many addresses lets nobody in; with it comes the reason to say so.
fn wall(vm: &Vm<'_>) -> (Option<Wall>, Option<WaitingOn>) {
    let Some(firewall) = &vm.spec.firewall else { return (None, None) };
    let mut left = SOURCES_MAX;
    let mut problem = None;
    let mut allow = Vec::with_capacity(firewall.allow.len());
    for rule in &firewall.allow {
        let from = match &rule.from {
            None => Vec::new(),
            Some(From::Cidr(subnet)) => vec![*subnet],
            Some(From::Labels(labels)) => {
                let sources = addresses(vm, labels);
                match left.checked_sub(sources.len()) {
                    Some(rest) => left = rest,
                    None => {
                        problem = Some(WaitingOn::FirewallSources { addresses_max: SOURCES_MAX as u64 });
                        continue;
                    }
                }
                if sources.is_empty() {
                    // Nobody has the labels: an empty list would mean anybody.
                    continue;
                }
                sources
            }
        };
        allow.push(Opening { from, protocol: rule.protocol, ports: rule.ports.clone() });
    }
    (Some(Wall { allow }), problem)
}

/// The addresses of the other VMs that have all of `labels`, in order.
fn addresses(vm: &Vm<'_>, labels: &BTreeMap<String, String>) -> Vec<Cidr> {
    let others = vm.view.vms_with(labels).filter(|(_, asked)| asked.meta.uid != vm.meta.uid);
    let placed = others.filter_map(|(object, _)| placement(vm.view, &object));
    let addresses = placed.flat_map(|placement| placement.nics.iter().flat_map(of_nic));
    // One more than may be is enough to know that they are too many.
    let addresses: BTreeSet<IpAddr> = addresses.take(SOURCES_MAX + 1).collect();
    addresses.into_iter().map(Cidr::only).collect()
}

/// The addresses of a placed card that are known without the worker.
fn of_nic(nic: &PlacedNic) -> impl Iterator<Item = IpAddr> + use<> {
    [nic.address.map(Into::into), nic.address6.map(Into::into)].into_iter().flatten()
}

/// What becomes of the claim on an address of a VM that is no more, if it has one.
pub(super) fn release(vm: &Vm<'_>, nic: &PlacedNic) -> Option<Write> {
    let member = Member { uid: vm.meta.uid, address: nic.address?, network: nic.network.clone() };
    let claim = vm.view.address_claim(&member.network, member.address)?;
    (claim.owner == member.uid).then(|| fronts::release(vm.view, &member, None))
}

/// The network with what is asked of it, unless it is going.
fn living<'a>(view: &'a View, network: &Name) -> Result<(AddressClaim, &'a network::Spec), WaitingOn> {
    let object = ObjectRef::new(Kind::Network, network.clone());
    let asked = view.living(&object);
    match asked.map(|asked| (asked.meta.uid, &asked.spec)) {
        Some((owner, Spec::Network(spec))) => Ok((AddressClaim { owner, object, squatted: None }, spec)),
        _ => Err(WaitingOn::Missing { object }),
    }
}

/// What is to change in a placed VM's cards.
#[derive(Default)]
pub(super) struct Change {
    /// All its cards, when any changed.
    pub(super) nics: Option<(Vec<PlacedNic>, Vec<AssignedNic>)>,
    pub(super) writes: Vec<Write>,
    pub(super) rests_on: Vec<Key>,
    pub(super) hindrances: Vec<WaitingOn>,
}

/// What is to change because somebody else has an address of the VM, or something else may come in to it.
pub(super) fn change(
    vm: &Vm<'_>,
    placement: &Placement,
    assigned: &AssignedVm,
    observed: Option<&ObservedVm>,
    inputs: &Inputs,
) -> Change {
    let mut change = Change::default();
    let mut cards = (placement.nics.clone(), assigned.nics.clone());
    let (wall, problem) = wall(vm);
    change.hindrances.extend(problem);
    let without_pool = |index: usize| placement.nics.get(index).is_some_and(|nic| nic.address.is_none());
    change.hindrances.extend(needs_pool(vm, without_pool));
    let mut is_changed = false;
    if let Some((nics, rests_on)) = with_virtual_address(vm, assigned) {
        cards.1 = nics;
        change.rests_on.push(rests_on);
        is_changed = true;
    }
    // A card whose address nobody knows can have no wall: it is as it was, and that is told.
    for card in cards.1.iter_mut().filter(|card| card.address.is_some() && card.firewall != wall) {
        card.firewall.clone_from(&wall);
        is_changed = true;
    }
    let mut taken = Taken::new();
    // A report on an older assignment speaks of a start that may have been tried again since.
    let observed = observed.filter(|observed| observed.sequence == assigned.sequence);
    for squatter in observed.map_or(&[][..], |observed| &observed.squatters) {
        let index = squatter.nic as usize;
        let (Some(placed), Some(card)) = (cards.0.get_mut(index), cards.1.get_mut(index)) else { continue };
        if placed.address != Some(squatter.address) {
            continue;
        }
        match exchange(vm, placement, placed, squatter, &taken, inputs) {
            Ok(exchange) => {
                taken.insert((exchange.placed.network.clone(), exchange.address));
                let (firewall, ports) = (card.firewall.take(), std::mem::take(&mut card.ports));
                let virtual_address = card.virtual_address;
                *card = AssignedNic { firewall, ports, virtual_address, ..exchange.assigned };
                *placed = exchange.placed;
                change.writes.extend(exchange.writes);
                change.rests_on.push(exchange.network);
                is_changed = true;
            }
            Err(hindrance) => change.hindrances.push(hindrance),
        }
    }
    change.nics = is_changed.then_some(cards);
    change
}

/// A card with another address.
struct Exchange {
    address: Ipv4Addr,
    placed: PlacedNic,
    assigned: AssignedNic,
    writes: Vec<Write>,
    /// What is asked of the network that gave it.
    network: Key,
}

fn exchange(
    vm: &Vm<'_>,
    placement: &Placement,
    placed: &PlacedNic,
    squatter: &Squatter,
    taken: &Taken,
    inputs: &Inputs,
) -> Result<Exchange, WaitingOn> {
    let Squatter { address, mac, nic } = *squatter;
    let (network, worker) = (placed.network.clone(), placement.worker_name.clone());
    let stays = || WaitingOn::Squatted { network: network.clone(), address, mac, worker: worker.clone() };
    // What cannot be read is not written over.
    let key = Key::Address(network.clone(), address);
    if vm.view.address_claim(&network, address).is_none_or(|claim| claim.owner != vm.meta.uid) {
        return Err(unreadable(&key));
    }
    let wished = vm.spec.nics.get(nic as usize).is_none_or(|nic| nic.address.is_some());
    let (of_network, spec) = living(vm.view, &network).map_err(|_| stays())?;
    let free = free_address(vm.view, &network, spec, None, taken).filter(|_| !wished).ok_or_else(stays)?;
    let next = PlacedNic { address: Some(free), address6: spec.address6(free), ..placed.clone() };
    let squatted = Some(Squatted { mac, worker: worker.clone(), since: inputs.now });
    let squatted = AddressClaim { squatted, ..of_network };
    Ok(Exchange {
        address: free,
        assigned: assigned_nic(spec, &next),
        writes: claim(vm, &next).into_iter().chain([Write::put(key, squatted)]).collect(),
        network: Key::Asked(ObjectRef::new(Kind::Network, network.clone())),
        placed: next,
    })
}
