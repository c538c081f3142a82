//! What is told of an object: how it looked, how it looks now, and the way from one to the other in words.

use std::collections::BTreeSet;

use lightbyte_api::records::Squatted;
use lightbyte_api::{Kind, ObjectRef, Spec, WaitingOn};
use lightbyte_plan::planner::scalegroup;
use lightbyte_plan::{View, status};

/// What of an object makes an event when it changes.
#[derive(Clone, PartialEq)]
pub(super) struct Look {
    state: String,
    waiting_on: BTreeSet<WaitingOn>,
    /// How many members a group is to have, and why, when it says so itself.
    size: Option<(u64, String)>,
    /// A VM's addresses.
    addresses: Vec<String>,
    /// A network's addresses that others have, in words.
    squatted: BTreeSet<String>,
}

/// What to say about the way from one look to the next.
pub(super) fn told(before: Option<&Look>, after: Option<&Look>) -> Vec<(&'static str, String)> {
    let nothing = BTreeSet::new();
    let mut told = Vec::new();
    match (before, after) {
        (None, None) => return told,
        (None, Some(after)) => told.push(("created", format!("it was asked for and is {}", after.state))),
        (Some(_), None) => told.push(("gone", "nothing of it is left".to_owned())),
        (Some(before), Some(after)) if before.state != after.state => {
            told.push(("state", format!("it was {} and is {}", before.state, after.state)));
        }
        (Some(_), Some(_)) => {}
    }
    let waited = before.map_or(&nothing, |look| &look.waiting_on);
    let waits = after.map_or(&nothing, |look| &look.waiting_on);
    told.extend(waits.difference(waited).map(|on| ("waiting", format!("it waits: {on}"))));
    if let (Some(before), Some(after)) = (before, after) {
        if let (Some((count_before, _)), Some((count, because))) = (&before.size, &after.size)
            && count_before != count
        {
            let because = if because.is_empty() { String::new() } else { format!(": {because}") };
            told.push(("scaled", format!("its size is to be {count} and was {count_before}{because}")));
        }
        // One that a DHCP server gives comes and goes with the machine: another in its place is what counts.
        let is_exchanged = before.addresses.len() == after.addresses.len();
        if is_exchanged && before.addresses != after.addresses {
            let (old, new) = (before.addresses.join(", "), after.addresses.join(", "));
            told.push(("address", format!("it had {old} and has {new}")));
        }
        let news = after.squatted.difference(&before.squatted);
        told.extend(news.map(|squatted| ("squatted", squatted.clone())));
        let gone = before.squatted.difference(&after.squatted);
        told.extend(gone.map(|squatted| ("released", format!("not so any more: {squatted}"))));
    }
    if after.is_some() {
        told.extend(waited.difference(waits).map(|on| ("resolved", format!("it waits no more: {on}"))));
    }
    told
}

/// How an object looks; nothing for what is not there.
pub(super) fn look(view: &View, object: &ObjectRef) -> Option<Look> {
    // Every change of the store is looked at: only what is needed is made.
    let status = status::brief(view, object)?;
    // Room and addresses in use are no events of the worker or the network.
    let waiting_on = match object.kind {
        Kind::Image => BTreeSet::new(),
        _ => status.waiting_on.iter().cloned().map(|waiting| waiting.on).collect(),
    };
    let addresses = if object.kind == Kind::Vm { status::addresses(view, object) } else { Vec::new() };
    Some(Look {
        size: size(view, object),
        addresses,
        squatted: squatted(view, object),
        state: status.state,
        waiting_on,
    })
}

/// How many members a group is to have, and why, where it says so itself.
fn size(view: &View, object: &ObjectRef) -> Option<(u64, String)> {
    let Spec::ScaleGroup(spec) = &view.asked(object)?.spec else { return None };
    let scaling = scalegroup::choice(view, object).and_then(|choice| choice.scaling.as_ref());
    let because = scaling.filter(|_| spec.autoscale.is_some()).map(|scaling| scaling.because.clone());
    Some((scalegroup::replicas(view, object, spec), because.unwrap_or_default()))
}

/// Who has a network's addresses, in the words of whoever waits for them.
fn squatted(view: &View, network: &ObjectRef) -> BTreeSet<String> {
    if network.kind != Kind::Network {
        return BTreeSet::new();
    }
    let told = |address| {
        let Squatted { mac, worker, .. } = view.address_claim(&network.name, address)?.squatted.clone()?;
        Some(WaitingOn::Squatted { network: network.name.clone(), address, mac, worker }.to_string())
    };
    view.claimed_addresses(&network.name).filter_map(told).take(status::SQUATTED_SHOWN_MAX).collect()
}
