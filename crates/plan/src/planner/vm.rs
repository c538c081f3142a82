//! VMs: placed once, kept as asked, taken away in order.
//!
//! ```text
//!   asked ──> place: worker, disks, addresses and the assignment, in one transaction
//!               │ no room, no image, no address: wait for it; or room that others are to leave (`promise`)
//!               v
//!            keep: the assignment follows what is asked; wait for the worker
//!               │     what the machine is made of changes at its next start: until then both count (`shape`)
//!               │ end asked
//!               v
//!            tear down: assigned `removed`, disks deleted ──> worker reports it gone ──> disks gone ──> end
//! ```
//!
//! Whom a load balancer may send requests to is stopped only when it sends none any more, or its time is over (`fronts`); and its
//! addresses are free only when no proxy can send to them.
//!
//! Delete wins: tear-down never waits for set-up, and is possible from every state.

mod nics;
mod place;
mod promise;
mod shape;

use lightbyte_api::assigned::{Assigned, AssignedVm, HostObject, WantedVm};
use lightbyte_api::health::HealthState;
use lightbyte_api::kinds::vm::{Choice as VmChoice, Placement, Spec as VmSpec};
use lightbyte_api::object::{Asked, Meta};
use lightbyte_api::observed::{Observed, ObservedVm, VmPhase};
use lightbyte_api::records::WorkerLedger;
use lightbyte_api::waiting::WorkerTask;
use lightbyte_api::{ByteSize, Choice, Key, Kind, Name, ObjectRef, Spec, WaitingOn, WorkerId};

pub use self::place::need;
use self::place::place;
pub(crate) use self::place::try_another;
use super::{Inputs, Plan};
use crate::fronts::{self, Hold};
use crate::transaction::Write;
use crate::view::View;

/// Plans a VM.
#[must_use]
pub fn plan(view: &View, object: &ObjectRef, inputs: &Inputs) -> Plan {
    let Some(asked) = view.asked(object) else { return Plan::rest() };
    let Spec::Vm(spec) = &asked.spec else { return Plan::rest() };
    let deleting = asked.meta.deleting_since.is_some();
    match placement(view, object) {
        None => {
            let vm = Vm { view, object, meta: &asked.meta, spec };
            if deleting { promise::end(&vm) } else { place(&vm, inputs).unwrap_or_else(|waits| promise::wait(&vm, waits)) }
        }
        Some(placement) => {
            let vm = Vm { view, object, meta: &asked.meta, spec };
            let on_host = OnHost::of(view, placement, asked);
            if deleting {
                tear_down(&vm, placement, &on_host, inputs)
            } else {
                keep(&vm, placement, &on_host, inputs)
            }
        }
    }
}

/// Where a VM was placed.
#[must_use]
pub fn placement<'a>(view: &'a View, object: &ObjectRef) -> Option<&'a Placement> {
    match &view.decided(object)?.choice {
        Choice::Vm(choice) => choice.placement.as_ref(),
        _ => None,
    }
}

/// Whether the virtual address that a VM is to have now is not the one that is assigned to it.
pub(crate) fn has_other_address(view: &View, object: &ObjectRef) -> bool {
    let Some((placement, asked)) = placement(view, object).zip(view.asked(object)) else { return false };
    let assigned = view.assigned(placement.worker, HostObject { kind: Kind::Vm, uid: asked.meta.uid });
    match (assigned.map(AsRef::as_ref), &asked.spec) {
        (Some(Assigned::Vm(assigned)), Spec::Vm(spec)) => {
            nics::with_virtual_address(&Vm { view, object, meta: &asked.meta, spec }, assigned).is_some()
        }
        _ => false,
    }
}

struct Vm<'a> {
    view: &'a View,
    object: &'a ObjectRef,
    meta: &'a Meta,
    spec: &'a VmSpec,
}

fn wanted(spec: &VmSpec) -> WantedVm {
    if spec.running { WantedVm::Running } else { WantedVm::Stopped }
}

fn unreadable(key: &Key) -> WaitingOn {
    WaitingOn::Unreadable { key: key.to_string() }
}

// ---------------------------------------------------------------------------------------------------- keeping

/// The VM as its worker has it.
struct OnHost<'a> {
    key: Key,
    worker: Name,
    alive: bool,
    assigned: Option<&'a AssignedVm>,
    observed: Option<&'a ObservedVm>,
}

impl<'a> OnHost<'a> {
    fn of(view: &'a View, placement: &Placement, asked: &Asked) -> OnHost<'a> {
        let host_object = HostObject { kind: Kind::Vm, uid: asked.meta.uid };
        OnHost {
            key: Key::Assigned(placement.worker, host_object),
            worker: placement.worker_name.clone(),
            alive: view.alive(placement.worker).is_some(),
            assigned: view.assigned(placement.worker, host_object).and_then(|assigned| {
                match assigned.as_ref() {
                    Assigned::Vm(assigned) => Some(assigned),
                    Assigned::Volume(_) => None,
                }
            }),
            observed: observed_vm(view, placement.worker, host_object),
        }
    }

    fn wait_for(&self, to: WorkerTask) -> Vec<WaitingOn> {
        let worker = self.worker.clone();
        vec![if self.alive { WaitingOn::Worker { worker, to } } else { WaitingOn::WorkerAway { worker } }]
    }

    /// What is still missing until the worker has done what `assigned` says.
    fn wait(&self, assigned: &AssignedVm) -> Vec<WaitingOn> {
        let worker = self.worker.clone();
        if !self.alive {
            return vec![WaitingOn::WorkerAway { worker }];
        }
        let to = if assigned.wanted == WantedVm::Running { WorkerTask::Start } else { WorkerTask::Stop };
        let Some(observed) = self.observed else { return self.wait_for(to) };
        if let Some(problem) = observed.problem.clone() {
            return vec![WaitingOn::WorkerProblem { worker, problem }];
        }
        let reached = observed.sequence >= assigned.sequence;
        match (assigned.wanted, observed.phase) {
            (WantedVm::Running, VmPhase::Running) if reached => health_wait(assigned, observed),
            (WantedVm::Stopped, VmPhase::Stopped) if reached => Vec::new(),
            (WantedVm::Running, VmPhase::Crashed) => vec![WaitingOn::CrashLoop { worker }],
            (WantedVm::Running, VmPhase::Off) if reached => vec![WaitingOn::Off],
            _ => self.wait_for(to),
        }
    }
}

/// A VM whose health is checked is as it was asked to be when a check has passed.
fn health_wait(assigned: &AssignedVm, observed: &ObservedVm) -> Vec<WaitingOn> {
    if is_healthy(assigned, observed) {
        return Vec::new();
    }
    vec![WaitingOn::Health { problem: observed.health.as_ref().and_then(|health| health.problem.clone()) }]
}

/// Whether nothing is known against its health.
#[must_use]
pub fn is_healthy(assigned: &AssignedVm, observed: &ObservedVm) -> bool {
    let state = observed.health.as_ref().map(|health| health.state);
    assigned.health.is_none() || state == Some(HealthState::Healthy)
}

/// What a worker says of a VM.
#[must_use]
pub fn observed_vm(view: &View, worker: WorkerId, host_object: HostObject) -> Option<&ObservedVm> {
    match view.observed(worker, host_object)?.as_ref() {
        Observed::Vm(observed) => Some(observed),
        Observed::Volume(_) | Observed::Worker(_) => None,
    }
}

/// Lets the assignment follow what is asked. Whether it runs never waits for what it is made of.
fn keep(vm: &Vm<'_>, placement: &Placement, on_host: &OnHost<'_>, inputs: &Inputs) -> Plan {
    let Some(assigned) = on_host.assigned else {
        // Absence never acts: an assignment that vanished is reported, not made up.
        return Plan::wait(unreadable(&on_host.key));
    };
    let (change, hindrance) = shape::change(vm, placement, assigned, on_host.observed);
    let machine = change.machine.unwrap_or_else(|| shape::Machine::of(assigned));
    let network = nics::change(vm, placement, assigned, on_host.observed, inputs);
    let (placed_nics, assigned_nics) = network.nics.unzip();
    let stop = stop(vm, assigned, inputs);
    let next = AssignedVm {
        // What is asked is reached only with the machine that is asked.
        generation: if hindrance.is_some() || !network.hindrances.is_empty() || stop.waiting_on.is_some() {
            assigned.generation
        } else {
            vm.meta.generation
        },
        wanted: if stop.waiting_on.is_some() { WantedVm::Running } else { wanted(vm.spec) },
        restarts_asked: if stop.waiting_on.is_some() { assigned.restarts_asked } else { vm.meta.restarts_asked },
        restart: vm.spec.restart,
        health: vm.spec.health.clone(),
        cpus: machine.cpus,
        memory: machine.memory,
        disks: machine.disks,
        nics: assigned_nics.unwrap_or_else(|| assigned.nics.clone()),
        ..assigned.clone()
    };
    let mut writes = change.writes;
    writes.extend(network.writes);
    let mut waiting_on = network.hindrances;
    waiting_on.extend(stop.waiting_on);
    if next == *assigned {
        // What nobody but a person can end is said alone.
        let waits = if waiting_on.is_empty() { on_host.wait(assigned) } else { Vec::new() };
        waiting_on.extend(waits);
    } else {
        let sequence = assigned.sequence + 1;
        let shape =
            if shape::Machine::of(&next) == shape::Machine::of(assigned) { assigned.shape } else { sequence };
        let next = AssignedVm { sequence, shape, asked_at: vm.meta.changed_at, ..next };
        waiting_on.extend(on_host.wait(&next));
        writes.push(Write::put(on_host.key.clone(), Assigned::Vm(next)));
    }
    let placement = match placed_nics {
        Some(nics) => Some(Placement { nics, ..change.placement.unwrap_or_else(|| placement.clone()) }),
        None => change.placement,
    };
    let choice = placement.map(|placement| Choice::Vm(VmChoice { placement: Some(placement), promised: None }));
    Plan {
        waiting_on: hindrance.into_iter().chain(waiting_on).collect(),
        rests_on: change.rests_on.into_iter().chain(network.rests_on).chain(stop.rests_on).collect(),
        writes,
        choice,
        again: stop.left,
        ..Plan::rest()
    }
}

/// What stands against a stop or a restart that is asked for; nothing where none is.
fn stop(vm: &Vm<'_>, assigned: &AssignedVm, inputs: &Inputs) -> Hold {
    let runs = assigned.wanted == WantedVm::Running;
    let is_asked = !vm.spec.running || vm.meta.restarts_asked > assigned.restarts_asked;
    match runs && is_asked {
        true => fronts::hold(vm.view, vm.object, vm.meta.uid, vm.meta.changed_at, inputs.now),
        false => Hold::default(),
    }
}

// ------------------------------------------------------------------------------------------------ tearing down

fn tear_down(vm: &Vm<'_>, placement: &Placement, on_host: &OnHost<'_>, inputs: &Inputs) -> Plan {
    let runs = on_host.assigned.is_some_and(|assigned| assigned.wanted == WantedVm::Running);
    let asked_at = vm.meta.deleting_since.filter(|_| runs);
    let hold = asked_at.map(|at| fronts::hold(vm.view, vm.object, vm.meta.uid, at, inputs.now)).unwrap_or_default();
    let leaving = on_host.assigned.and_then(|assigned| nics::with_virtual_address(vm, assigned));
    if let Some(waits) = hold.waiting_on {
        let waits = Plan { waiting_on: vec![waits], again: hold.left, ..Plan::rest() };
        let Some((assigned, (nics, rests_on))) = on_host.assigned.zip(leaving) else { return waits };
        let next = AssignedVm { sequence: assigned.sequence + 1, nics, ..assigned.clone() };
        let writes = vec![Write::put(on_host.key.clone(), Assigned::Vm(next))];
        return Plan { writes, rests_on: vec![rests_on], ..waits };
    }
    let mut writes = delete_children(vm, inputs);
    let mut waiting_on = Vec::new();
    match (on_host.assigned, on_host.observed) {
        (Some(assigned), _) if assigned.wanted != WantedVm::Removed => {
            let removal = AssignedVm {
                sequence: assigned.sequence + 1,
                generation: vm.meta.generation,
                wanted: WantedVm::Removed,
                nics: leaving.map_or_else(|| assigned.nics.clone(), |(nics, _)| nics),
                ..assigned.clone()
            };
            writes.push(Write::put(on_host.key.clone(), Assigned::Vm(removal)));
            waiting_on = on_host.wait_for(WorkerTask::Remove);
        }
        (_, Some(_)) => waiting_on = on_host.wait_for(WorkerTask::Remove),
        (_, None) => {}
    }
    waiting_on
        .extend(vm.view.children(vm.meta.uid).next().map(|child| WaitingOn::Child { child: child.clone() }));
    // A load balancer that cannot be read may know its addresses.
    waiting_on.extend(vm.view.unreadable_decided(Kind::LoadBalancer).map(unreadable));
    if !waiting_on.is_empty() {
        return Plan { writes, waiting_on, rests_on: hold.rests_on, ..Plan::rest() };
    }
    // What cannot be read is not gone: a disk may be there, an address or room may be held.
    if let Some(key) = held_keys(placement).find(|key| vm.view.unreadable(key).is_some()) {
        return Plan::wait(unreadable(&key));
    }
    // The worker has removed its claim after its last clean-up, and can make no new one: a claim is guarded by the
    // assignment that it was made for. So nothing runs, and room and addresses are free.
    if on_host.assigned.is_some() {
        writes.push(Write::Delete(on_host.key.clone()));
    }
    let ledger_key = Key::WorkerLedger(placement.worker);
    let Some(ledger) = freed(vm.view, placement) else { return Plan::wait(unreadable(&ledger_key)) };
    writes.push(Write::put(ledger_key, ledger));
    writes.extend(placement.nics.iter().filter_map(|nic| nics::release(vm, nic)));
    Plan { writes, rests_on: hold.rests_on, ..Plan::end() }
}

/// The worker's ledger without the VM; `None` when there is no readable ledger to take from.
pub(crate) fn freed(view: &View, placement: &Placement) -> Option<WorkerLedger> {
    let ledger = view.worker_ledger(placement.worker)?;
    Some(WorkerLedger {
        cpus: ledger.cpus.saturating_sub(placement.cpus),
        memory: ByteSize::from_bytes(ledger.memory.bytes().saturating_sub(placement.memory.bytes())),
        vms: ledger.vms.saturating_sub(1),
        ports: ledger.ports.iter().filter(|port| !placement.ports.contains(port)).copied().collect(),
        promised: ledger.promised.clone(),
    })
}

/// The keys of other kinds that hold something for a placed VM.
fn held_keys(placement: &Placement) -> impl Iterator<Item = Key> {
    let disks = placement.disks.iter();
    let disks = disks.map(|disk| Key::Asked(ObjectRef::new(Kind::Volume, disk.volume_name.clone())));
    disks.chain(placement.nics.iter().filter_map(nics::claim_key))
}

/// Asks for the end of all children whose end is not asked for yet.
fn delete_children(vm: &Vm<'_>, inputs: &Inputs) -> Vec<Write> {
    let living = vm.view.children(vm.meta.uid).filter_map(|child| Some((child, vm.view.living(child)?)));
    living
        .map(|(child, asked)| {
            let meta = Meta { deleting_since: Some(inputs.now), ..asked.meta.clone() };
            Write::put(Key::Asked(child.clone()), Asked { meta, spec: asked.spec.clone() })
        })
        .collect()
}
