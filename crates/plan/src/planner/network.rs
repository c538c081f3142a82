//! Networks: their addresses are claimed in the transactions of those that need them, by the functions here.

use std::collections::BTreeSet;
use std::iter::successors;
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
    let may = |address: &Ipv4Addr| spec.may_give(*address) && !taken.contains(&(network.clone(), *address));
    let is_free = |address: &Ipv4Addr| view.unclaimed_from(network, *address) == Some(*address);
    if let Some(address) = wished {
        return Some(address).filter(|address| may(address) && is_free(address));
    }
    // Few gaps may not be given: the gateway, and what the same plan gives already.
    let next = |address: Ipv4Addr| Some(Ipv4Addr::from(u32::from(address).checked_add(1)?));
    let first = view.unclaimed_from(network, spec.pool_first);
    let gaps = successors(first, |gap| view.unclaimed_from(network, next(*gap)?));
    gaps.take_while(|gap| *gap <= spec.pool_last).find(may)
}
