//! Why a worker cannot take a VM.

use std::collections::BTreeMap;

use super::{Candidate, Free, Need};

/// What is missing for a VM to be placed: the least of it, as some worker has all the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// Ports of a worker that no other VM has.
    Ports,
    /// A worker with room that takes one more.
    Places,
    /// Room.
    Room,
    /// A worker with room without a VM that it keeps apart from.
    Distance,
    /// A worker with a VM that it is to be near to.
    Company,
    /// A worker that is not for other VMs alone.
    Access,
    /// A worker with the labels that it asks for.
    Labels,
    /// A worker that may take it at all.
    Worker,
}

pub(super) const NO_ROOM: &str = "too little room";
pub(super) const FULL: &str = "as many VMs as it takes";
const VOLUMES_ELSEWHERE: &str = "its volumes are on another worker";
const PORT_TAKEN: &str = "a port of it is another VM's";
const OTHER_LABELS: &str = "without the labels that it asks for";
const FOR_OTHERS: &str = "only for VMs with other labels";
const TOO_FAR: &str = "without a VM that it is to be near to";
const TOO_NEAR: &str = "it has a VM that it keeps apart from";
const NO_LEDGER: &str = "no readable ledger";

impl Missing {
    /// Of refusals by class: they are looked for in the opposite order of [`refusal`].
    pub(super) fn of(refused: &BTreeMap<&'static str, u64>) -> Missing {
        let missing = [
            (PORT_TAKEN, Missing::Ports),
            (FULL, Missing::Places),
            (NO_ROOM, Missing::Room),
            (TOO_NEAR, Missing::Distance),
            (TOO_FAR, Missing::Company),
            (FOR_OTHERS, Missing::Access),
            (OTHER_LABELS, Missing::Labels),
        ];
        let missing = missing.into_iter().find(|(refusal, _)| refused.contains_key(refusal));
        missing.map_or(Missing::Worker, |(_, missing)| missing)
    }
}

/// Why `candidate` cannot take it: the class of the reason, which is what histograms count.
pub(super) fn refusal(candidate: &Candidate<'_>, need: &Need) -> Option<&'static str> {
    if need.pinned.is_some_and(|worker| worker != candidate.id) {
        return Some(VOLUMES_ELSEWHERE);
    }
    let (Some(observed), true) = (candidate.observed, candidate.alive) else { return Some("away") };
    let Some(ledger) = candidate.ledger else { return Some(NO_LEDGER) };
    let free = Free::to(need, observed, ledger);
    if candidate.deleting {
        Some("being deleted")
    } else if candidate.spec.cordoned {
        Some("cordoned")
    } else if candidate.spec.draining {
        Some("being drained")
    } else if observed.architecture != need.architecture {
        Some("other architecture")
    } else if !need.on.iter().all(|label| candidate.has(label)) {
        Some(OTHER_LABELS)
    } else if !candidate.spec.is_for(&need.labels) {
        Some(FOR_OTHERS)
    } else if need.near_to.as_ref().is_some_and(|workers| !workers.contains(&candidate.id)) {
        Some(TOO_FAR)
    } else if need.apart_from.contains(&candidate.id) {
        Some(TOO_NEAR)
    } else if !free.has_room(need) {
        Some(NO_ROOM)
    } else if free.vms == 0 {
        Some(FULL)
    } else if need.ports.iter().any(|port| ledger.ports.contains(port)) {
        Some(PORT_TAKEN)
    } else {
        None
    }
}

/// The same in words.
pub(super) fn explain(refusal: &str, candidate: &Candidate<'_>, need: &Need) -> String {
    let (Some(observed), Some(ledger), NO_ROOM) = (candidate.observed, candidate.ledger, refusal) else {
        return refusal.to_owned();
    };
    let Free { cpus, memory, .. } = Free::to(need, observed, ledger);
    format!(
        "{NO_ROOM}: {cpus} of {} CPUs and {memory} of {} free, needs {} and {}",
        observed.cpus, observed.memory, need.cpus, need.memory
    )
}
