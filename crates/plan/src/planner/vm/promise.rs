//! Room that others are to leave for a VM: asked for, kept while they do, and let go of.

use lightbyte_api::kinds::vm::Choice as VmChoice;
use lightbyte_api::records::WorkerLedger;
use lightbyte_api::{Choice, Key, WaitingOn, WorkerId};

use super::{Plan, Vm, unreadable};
use crate::scheduler::preemption::{self, Preemption};
use crate::scheduler::{Missing, Need};
use crate::transaction::Write;

/// The worker that it is promised room on.
fn promised_on(vm: &Vm<'_>) -> Option<WorkerId> {
    match &vm.view.decided(vm.object)?.choice {
        Choice::Vm(choice) => choice.promised,
        _ => None,
    }
}

/// The ledger that promises it something, without that; nothing where nothing is promised, or the ledger cannot be read.
pub(super) fn let_go(vm: &Vm<'_>) -> Option<Write> {
    let worker = promised_on(vm)?;
    let ledger = vm.view.worker_ledger(worker)?;
    let without = ledger.clone().without_promise_to(vm.meta.uid);
    (without != *ledger).then(|| Write::put(Key::WorkerLedger(worker), without))
}

/// Ends a VM that has no worker.
pub(super) fn end(vm: &Vm<'_>) -> Plan {
    match unreadable_ledger(vm) {
        Some(waits) => Plan::wait(waits),
        None => Plan { writes: let_go(vm).into_iter().collect(), ..Plan::end() },
    }
}

/// Lets a VM wait that has no worker, and lets go of what is promised to it. Not for want of an address: whoever leaves the room
/// leaves an address too, and another in its place would take that, and then leave again.
pub(super) fn wait(vm: &Vm<'_>, waits: WaitingOn) -> Plan {
    let plan = Plan::wait(waits);
    let waits_for_address = plan.waiting_on.iter().any(|on| matches!(on, WaitingOn::Address { .. }));
    if promised_on(vm).is_none() || waits_for_address {
        return plan;
    }
    match unreadable_ledger(vm) {
        Some(waits) => Plan::wait(waits),
        None => Plan {
            writes: let_go(vm).into_iter().collect(),
            choice: Some(Choice::Vm(VmChoice::default())),
            ..plan
        },
    }
}

/// Why it waits if the ledger that promises it something cannot be read.
pub(super) fn unreadable_ledger(vm: &Vm<'_>) -> Option<WaitingOn> {
    let key = Key::WorkerLedger(promised_on(vm)?);
    vm.view.unreadable(&key).map(|_| unreadable(&key))
}

/// Asks members of groups with a lower priority to make room for a VM that asks for that and lacks nothing else. `None` when there
/// are none, or it does not.
pub(super) fn ask(vm: &Vm<'_>, need: &Need, missing: Missing) -> Option<Result<Plan, WaitingOn>> {
    if !vm.spec.placement.preempt || !matches!(missing, Missing::Room | Missing::Places | Missing::Ports) {
        return None;
    }
    let held = promised_on(vm).filter(|worker| preemption::still_does(vm.view, need, *worker));
    if let Some(worker) = held {
        let name = vm.view.object_of(worker.uid())?.name.clone();
        return Some(Ok(Plan { waiting_on: vec![WaitingOn::Preempting { worker: name }], ..Plan::rest() }));
    }
    let Preemption { worker, name, from } = preemption::choose(vm.view, need)?;
    let ledger = vm.view.worker_ledger(worker)?;
    let key = Key::WorkerLedger(worker);
    let promised = preemption::promise(need, from)?;
    let let_go = let_go(vm).filter(|write| *write.key() != key);
    let keeps = Write::put(key, WorkerLedger { promised: Some(promised), ..ledger.clone() });
    Some(Ok(Plan {
        writes: let_go.into_iter().chain([keeps]).collect(),
        choice: Some(Choice::Vm(VmChoice { placement: None, promised: Some(worker) })),
        waiting_on: vec![WaitingOn::Preempting { worker: name }],
        ..Plan::rest()
    }))
}
