//! Whose going would make room for a VM with a higher priority.

use std::cmp::Reverse;

use lightbyte_api::placing::has_all;
use lightbyte_api::records::Promise;
use lightbyte_api::{ByteSize, Kind, Name, ObjectRef, Spec, Uid, WorkerId};

use super::refusals::{FULL, NO_ROOM, refusal};
use super::{Candidate, Free, Need, candidate};
use crate::planner::vm;
use crate::view::View;

/// How many workers are looked at, those with the most room first.
const WORKERS_TRIED_MAX: usize = 64;

/// Members of groups with a lower priority whose room would do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Preemption {
    /// The worker that they are on.
    pub worker: WorkerId,
    /// Its name.
    pub name: Name,
    /// The members; nobody, when those that are leaving anyway are enough.
    pub from: Vec<Uid>,
}

/// Who would have to go, and where: those of the lowest priority, as few as will do.
#[must_use]
pub fn choose(view: &View, need: &Need) -> Option<Preemption> {
    let candidates = view.workers_by_room().filter_map(|name| candidate(view, name)).take(WORKERS_TRIED_MAX);
    let found = candidates.filter_map(|candidate| {
        let victims = victims(view, &candidate, need)?;
        let highest = victims.iter().map(|victim| victim.priority).max();
        let memory: u64 = victims.iter().map(|victim| victim.memory.bytes()).sum();
        let from = victims.iter().map(|victim| victim.uid).collect();
        let preemption = Preemption { worker: candidate.id, name: candidate.object.name.clone(), from };
        Some(((highest, victims.len(), memory), preemption))
    });
    found.min_by_key(|(cost, _)| *cost).map(|(_, preemption)| preemption)
}

/// Whether what was promised will still do, once those have left who are to.
#[must_use]
pub fn still_does(view: &View, need: &Need, worker: WorkerId) -> bool {
    let candidate = view.object_of(worker.uid()).and_then(|object| candidate(view, &object.name));
    let Some(candidate) = candidate.filter(|candidate| lacks_only_room(candidate, need)) else {
        return false;
    };
    let (Some(observed), Some(ledger)) = (candidate.observed, candidate.ledger) else { return false };
    let Some(promise) = ledger.promised.as_ref().filter(|promise| Some(promise.vm) == need.uid) else {
        return false;
    };
    let is_same = (promise.priority, promise.cpus, promise.memory) == (need.priority, need.cpus, need.memory);
    let leaves = |found: &OnWorker| found.is_leaving || promise.from.contains(&found.uid);
    let mut free = Free::to(need, observed, ledger);
    on_worker(view, worker, need).filter(leaves).for_each(|found| free.add(&found));
    is_same && free.does(need)
}

/// What `need` is promised on a worker.
#[must_use]
pub fn promise(need: &Need, from: Vec<Uid>) -> Option<Promise> {
    Some(Promise { vm: need.uid?, priority: need.priority, cpus: need.cpus, memory: need.memory, from })
}

/// A VM on a worker.
#[derive(Clone, Debug)]
struct OnWorker {
    uid: Uid,
    priority: u64,
    cpus: u64,
    memory: ByteSize,
    /// Whether its end is asked for already.
    is_leaving: bool,
    /// Whether a group would make another of it.
    is_member: bool,
    /// Whether it is whom the VM is to be near to: without it the place would be none.
    is_company: bool,
}

impl Free {
    fn add(&mut self, found: &OnWorker) {
        self.cpus = self.cpus.saturating_add(found.cpus);
        self.memory = ByteSize::from_bytes(self.memory.bytes().saturating_add(found.memory.bytes()));
        self.vms = self.vms.saturating_add(1);
    }

    fn does(&self, need: &Need) -> bool {
        self.has_room(need) && self.vms > 0
    }
}

/// Its ports are looked at last: what would be refused for them is no place, however much room is made.
fn lacks_only_room(candidate: &Candidate<'_>, need: &Need) -> bool {
    let taken = candidate.ledger.map(|ledger| ledger.ports.as_slice()).unwrap_or_default();
    let has_ports = !need.ports.iter().any(|port| taken.contains(port));
    has_ports && matches!(refusal(candidate, need), Some(NO_ROOM | FULL))
}

/// Who has to leave a worker that lacks only room; `None` when it would not do.
fn victims(view: &View, candidate: &Candidate<'_>, need: &Need) -> Option<Vec<OnWorker>> {
    let (observed, ledger) = (candidate.observed?, candidate.ledger?);
    // One promise at a time: what is kept for somebody who matters as much stays.
    let is_promised = ledger
        .promised
        .as_ref()
        .is_some_and(|promise| Some(promise.vm) != need.uid && promise.priority >= need.priority);
    if is_promised || !lacks_only_room(candidate, need) {
        return None;
    }
    let mut free = Free::to(need, observed, ledger);
    let (leaving, staying): (Vec<OnWorker>, Vec<OnWorker>) =
        on_worker(view, candidate.id, need).partition(|found| found.is_leaving);
    leaving.iter().for_each(|found| free.add(found));
    let may_leave = |found: &OnWorker| found.is_member && !found.is_company && found.priority < need.priority;
    let mut less: Vec<OnWorker> = staying.into_iter().filter(may_leave).collect();
    less.sort_by_key(|found| (found.priority, Reverse(found.memory), Reverse(found.cpus), found.uid));
    let mut victims: Vec<OnWorker> = Vec::new();
    for found in less {
        if free.does(need) {
            break;
        }
        free.add(&found);
        victims.push(found);
    }
    free.does(need).then(|| without_needless(victims, free, need))
}

/// The same without those whose room is more than is needed, the one that matters most spared first.
fn without_needless(mut victims: Vec<OnWorker>, mut free: Free, need: &Need) -> Vec<OnWorker> {
    for index in (0..victims.len()).rev() {
        let mut without = free;
        let found = &victims[index];
        without.cpus = without.cpus.saturating_sub(found.cpus);
        without.memory = ByteSize::from_bytes(without.memory.bytes().saturating_sub(found.memory.bytes()));
        without.vms = without.vms.saturating_sub(1);
        if without.does(need) {
            free = without;
            victims.remove(index);
        }
    }
    victims
}

fn on_worker(view: &View, worker: WorkerId, need: &Need) -> impl Iterator<Item = OnWorker> {
    let vms = view.assigned_to(worker).filter(|on_host| on_host.kind == Kind::Vm);
    vms.filter_map(move |on_host| {
        let object: &ObjectRef = view.object_of(on_host.uid)?;
        let (asked, placement) = (view.asked(object)?, vm::placement(view, object)?);
        let Spec::Vm(spec) = &asked.spec else { return None };
        Some(OnWorker {
            uid: on_host.uid,
            priority: spec.priority,
            cpus: placement.cpus,
            memory: placement.memory,
            is_leaving: asked.meta.deleting_since.is_some(),
            is_member: asked.meta.group().is_some(),
            is_company: !need.near.is_empty() && has_all(&asked.meta.labels, &need.near),
        })
    })
}
