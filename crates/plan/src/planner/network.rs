//! Networks: their addresses are claimed in the transactions of those that need them, by the functions here.

use std::collections::BTreeSet;
use std::iter::successors;
use std::net::Ipv4Addr;

use lightbyte_api::kinds::network::Spec;
use lightbyte_api::records::Squatted;
use lightbyte_api::{Key, Name, ObjectRef, WaitingOn};

use super::{Inputs, Plan, end_when_unused};
use crate::transaction::Write;
use crate::view::View;

/// Plans a network.
#[must_use]
pub fn plan(view: &View, object: &ObjectRef, _inputs: &Inputs) -> Plan {
    let Some(asked) = view.asked(object) else { return Plan::rest() };
    match end_when_unused(view, object, &asked.meta) {
        Plan { ends: true, .. } => end(view, object),
        plan => plan,
    }
}

/// How many squatted claims one plan takes away: all of a network would be too many for a transaction.
const CLAIMS_AT_ONCE_MAX: usize = 64;

/// The end of a network that nobody uses: its squatted claims go first.
fn end(view: &View, object: &ObjectRef) -> Plan {
    let mut writes = Vec::new();
    for address in view.claimed_addresses(&object.name) {
        let key = Key::Address(object.name.clone(), address);
        if view.unreadable(&key).is_some() {
            return Plan::wait(WaitingOn::Unreadable { key: key.to_string() });
        }
        let claim = view.address_claim(&object.name, address);
        if claim.is_some_and(|claim| claim.squatted.is_some()) && writes.len() < CLAIMS_AT_ONCE_MAX {
            writes.push(Write::Delete(key));
        }
    }
    // Each claim that goes wakes its network.
    if writes.is_empty() { Plan::end() } else { Plan { writes, ..Plan::rest() } }
}

/// Why nobody can be given an address, or `wished`, which is not free.
#[must_use]
pub fn unavailable(view: &View, network: &Name, wished: Option<Ipv4Addr>) -> WaitingOn {
    let claim = wished.and_then(|address| Some((address, view.address_claim(network, address)?)));
    let network = network.clone();
    match claim.and_then(|(address, claim)| Some((address, claim.squatted.clone()?))) {
        Some((address, Squatted { mac, worker, .. })) => WaitingOn::Squatted { network, address, mac, worker },
        None => WaitingOn::Address { network },
    }
}

/// The address to give: `wished` if it is free, or the first free one of the pool. `taken` are addresses that the
/// same plan gives already. The caller claims it in its transaction, whose guard is that nobody else has.
#[must_use]
pub fn free_address(
    view: &View,
    network: &Name,
    spec: &Spec,
    wished: Option<Ipv4Addr>,
    taken: &BTreeSet<(Name, Ipv4Addr)>,
) -> Option<Ipv4Addr> {
    let may = |address: &Ipv4Addr| spec.may_give(*address) && !taken.contains(&(network.clone(), *address));
    let is_free = |address: &Ipv4Addr| view.unclaimed_from(network, *address) == Some(*address);
    if let Some(address) = wished {
        return Some(address).filter(|address| may(address) && is_free(address));
    }
    // Few gaps may not be given: the gateway, and what the same plan gives already.
    let next = |address: Ipv4Addr| Some(Ipv4Addr::from(u32::from(address).checked_add(1)?));
    let pool = spec.pool()?;
    let first = view.unclaimed_from(network, pool.first);
    let gaps = successors(first, |gap| view.unclaimed_from(network, next(*gap)?));
    gaps.take_while(|gap| *gap <= pool.last).find(may)
}
