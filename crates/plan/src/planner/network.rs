//! Networks: their addresses are claimed in the transactions of those that need them, by the functions here.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use lightbyte_api::kinds::network::Spec;
use lightbyte_api::{Name, ObjectRef};

use super::{Inputs, Plan, end_when_unused};
use crate::view::View;

/// Plans a network.
#[must_use]
pub fn plan(view: &View, object: &ObjectRef, _inputs: &Inputs) -> Plan {
    view.asked(object).map_or_else(Plan::rest, |asked| end_when_unused(view, object, &asked.meta))
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
    let is_free = |address: &Ipv4Addr| {
        spec.may_give(*address)
            && !taken.contains(&(network.clone(), *address))
            && !view.contains(&lightbyte_api::Key::Address(network.clone(), *address))
    };
    match wished {
        Some(address) => Some(address).filter(is_free),
        None => first_gap(view, network, spec).chain(spec.pool()).find(is_free),
    }
}

/// The first address that no claim holds, found by walking the claims in order: cheap also for a pool that is
/// nearly full. It may be one that may not be given; then the pool is searched.
fn first_gap(view: &View, network: &Name, spec: &Spec) -> impl Iterator<Item = Ipv4Addr> + use<> {
    let mut gap = u32::from(spec.pool_first);
    for claimed in view.claimed_addresses(network).map(u32::from) {
        if claimed > gap {
            break;
        }
        gap = gap.max(claimed.saturating_add(1));
    }
    std::iter::once(Ipv4Addr::from(gap))
}
