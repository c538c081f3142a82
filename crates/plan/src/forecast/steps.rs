//! What is told of the course of a forecast: what changes between two views, in words that people use.

use std::collections::BTreeSet;

use lightbyte_api::assigned::{Assigned, HostObject};
use lightbyte_api::kinds::scalegroup::RetiredFor;
use lightbyte_api::{Asked, Choice, Key, Kind, Name, ObjectRef};
use serde::{Deserialize, Serialize};

use crate::planner::{scalegroup, vm, worker, worker_of};
use crate::status;
use crate::view::View;

/// What happens to an object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum What {
    /// It is made, by its owner or as asked.
    Created,
    /// It is given a worker.
    Placed {
        /// The worker.
        worker: Name,
    },
    /// It goes from its worker to another one.
    Moved {
        /// The other one.
        worker: Name,
    },
    /// It becomes as it is asked to be.
    Becomes {
        /// Its state, in one word.
        state: String,
    },
    /// Its end is asked for.
    LetGo {
        /// Why its group lets it go.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        because: Option<RetiredFor>,
    },
    /// Nothing of it is left.
    Gone,
    /// A worker counts as lost.
    Lost,
    /// A group gives up the update to this version.
    Rejected {
        /// The version.
        version: u64,
    },
}

/// What happens between two views when `keys` change: first what others follow from, then
/// object by object, and last what has come about.
#[must_use]
pub fn between(before: &View, after: &View, keys: &[Key]) -> Vec<(ObjectRef, What)> {
    let mut found = Vec::new();
    let mut looked_at = BTreeSet::new();
    for key in keys {
        let object = match key {
            Key::Asked(object) | Key::Decided(object) => object.clone(),
            Key::Assigned(_, on_host) | Key::Observed(_, on_host) => match after.object_of(on_host.uid) {
                Some(object) => object.clone(),
                None => continue,
            },
            _ => continue,
        };
        if goes_with_its_owner(before, &object) || goes_with_its_owner(after, &object) {
            continue;
        }
        let what = match key {
            Key::Asked(_) => of_asked(before, after, &object),
            Key::Decided(_) => of_decided(before, after, &object),
            _ => None,
        };
        found.extend(what.map(|what| (object.clone(), what)));
        if looked_at.insert(object.clone())
            && let Some(what) = becomes(before, after, &object)
        {
            found.push((object, what));
        }
    }
    // Keys have uids in them, which differ from forecast to forecast.
    let place = |what: &What| match what {
        What::Lost | What::Rejected { .. } => 0,
        What::Becomes { .. } => 2,
        _ => 1,
    };
    found.sort_by(|(one, this), (other, that)| (place(this), one).cmp(&(place(that), other)));
    found
}

/// A VM's own disk is no news.
fn goes_with_its_owner(view: &View, object: &ObjectRef) -> bool {
    let owner = view.asked(object).and_then(|asked| asked.meta.owner.as_ref());
    owner.is_some_and(|owner| owner.object.kind == Kind::Vm)
}

fn of_asked(before: &View, after: &View, object: &ObjectRef) -> Option<What> {
    match (before.asked(object), after.asked(object)) {
        (None, Some(_)) => Some(What::Created),
        (Some(_), None) => Some(What::Gone),
        (Some(was), Some(is)) if was.meta.deleting_since.is_none() && is.meta.deleting_since.is_some() => {
            Some(What::LetGo { because: why_let_go(after, is).or_else(|| why_let_go(before, was)) })
        }
        _ => None,
    }
}

fn why_let_go(view: &View, asked: &Asked) -> Option<RetiredFor> {
    let retiring = &scalegroup::choice(view, &asked.meta.group()?.object)?.retiring;
    retiring.iter().find(|retiring| retiring.uid == asked.meta.uid).map(|retiring| retiring.because)
}

fn of_decided(before: &View, after: &View, object: &ObjectRef) -> Option<What> {
    let name =
        |worker: lightbyte_api::WorkerId| after.object_of(worker.uid()).map(|worker| worker.name.clone());
    match (worker_of(before, object), worker_of(after, object)) {
        (None, Some(worker)) => return Some(What::Placed { worker: name(worker)? }),
        (Some(was), Some(is)) if was != is => return Some(What::Moved { worker: name(is)? }),
        _ => {}
    }
    match &after.decided(object)?.choice {
        Choice::Worker(choice) => (choice.lost && !worker::choice(before, object).lost).then_some(What::Lost),
        Choice::ScaleGroup(choice) => {
            let version = choice.rejected.as_ref()?.version;
            let was = scalegroup::choice(before, object).and_then(|choice| choice.rejected.as_ref());
            (was.map(|rejected| rejected.version) != Some(version)).then_some(What::Rejected { version })
        }
        _ => None,
    }
}

fn becomes(before: &View, after: &View, object: &ObjectRef) -> Option<What> {
    if object.kind == Kind::LoadBalancer {
        // With each of its members that comes or goes it waits for its proxies, and is ready again a moment later.
        return None;
    }
    let state = settled(after, object)?;
    if awaits_its_virtual_address(before, object)
        && status::state(before, object).is_some_and(|(was, _)| was == state)
    {
        return None;
    }
    // An object that nothing is made of on any host is there as soon as it is asked for.
    let was_ready = match before.asked(object) {
        Some(_) => settled(before, object).is_some(),
        None => !matches!(object.kind, Kind::Vm | Kind::Volume | Kind::Snapshot | Kind::ScaleGroup),
    };
    (!was_ready).then(|| What::Becomes { state: state.to_owned() })
}

/// Whether what its tap lets through is not what its worker is told. Which proxy has an address is its load balancer's news:
/// the machine runs all the while.
fn awaits_its_virtual_address(view: &View, object: &ObjectRef) -> bool {
    let told = || {
        let placement = vm::placement(view, object)?;
        let host_object = HostObject { kind: Kind::Vm, uid: view.asked(object)?.meta.uid };
        let Assigned::Vm(assigned) = view.assigned(placement.worker, host_object)?.as_ref() else {
            return None;
        };
        let wanted = assigned.nics.iter().find_map(|nic| nic.virtual_address);
        let has = vm::observed_vm(view, placement.worker, host_object)?.virtual_address;
        Some(wanted.map(|wanted| wanted.turn) != has.map(|has| has.turn))
    };
    object.kind == Kind::Vm && told().unwrap_or(false)
}

/// The state of an object that is as it is asked to be.
fn settled(view: &View, object: &ObjectRef) -> Option<&'static str> {
    // To count the members of a group costs most of all; one that waits for something is not there yet.
    let waits = view.decided(object).is_some_and(|decided| !decided.waiting_on.is_empty());
    if object.kind == Kind::ScaleGroup && waits {
        return None;
    }
    status::state(view, object).and_then(|(state, is_ready)| is_ready.then_some(state))
}
