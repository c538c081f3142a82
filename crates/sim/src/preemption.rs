//! VMs with a priority: whom they make leave, and the room that is kept for them meanwhile.

use lightbyte_api::kinds::scalegroup::RetiredFor;
use lightbyte_api::kinds::vm;
use lightbyte_api::records::{Promise, WorkerLedger};
use lightbyte_api::{Choice, Key, Kind, ObjectRef, Spec, Uid, WaitingOn, WorkerId};
use lightbyte_plan::transaction::Transaction;
use lightbyte_plan::view::View;

use crate::cluster::{Checked, Cluster};
use crate::oracle::{placement, possible, told, violated};
use crate::placing::have;

impl Cluster {
    /// A priority, and whether others make room for it.
    pub(crate) fn some_priority(&mut self) -> (u64, bool) {
        let priority = self.rng.below(6).saturating_sub(3) as u64;
        (priority, priority > 0 && self.rng.once_in(2))
    }
}

fn ledgers(view: &View) -> impl Iterator<Item = (WorkerId, &WorkerLedger)> {
    let workers = view.objects_of(Kind::Worker).filter_map(|object| view.worker_id(object));
    workers.filter_map(|worker| Some((worker, view.worker_ledger(worker)?)))
}

fn priority(view: &View, uid: Uid) -> Option<u64> {
    match &view.asked(view.object_of(uid)?)?.spec {
        Spec::Vm(spec) => Some(spec.priority),
        _ => None,
    }
}

/// What is kept from a VM of that priority on a worker.
pub(crate) fn kept_from(view: &View, worker: WorkerId, vm: Uid, priority: u64) -> Option<&Promise> {
    let promise = view.worker_ledger(worker)?.promised.as_ref()?;
    (promise.vm != vm && promise.priority >= priority).then_some(promise)
}

/// Room is promised to VMs alone that are there, have no worker, and know of it.
pub(crate) fn check_promises(view: &View) -> Checked {
    for (worker, promise) in
        ledgers(view).filter_map(|(worker, ledger)| Some((worker, ledger.promised.as_ref()?)))
    {
        let Some(object) = view.object_of(promise.vm) else {
            // What is asked of it may be unreadable, and no index knows it then.
            if view.unreadable_asked().next().is_some() {
                continue;
            }
            return violated("promise", format!("{worker} keeps room for {}, which is gone", promise.vm));
        };
        let Some(decided) = view.decided(object) else { continue };
        let knows = matches!(&decided.choice, Choice::Vm(choice) if choice.promised == Some(worker) && choice.placement.is_none());
        if !knows {
            return violated("promise", format!("{worker} keeps room for {object}: {}", told(view, object)));
        }
    }
    Ok(())
}

/// Whether a batch is about a VM for which others make room.
pub(crate) fn is_under_way(batch: &Transaction, before: &View, after: &View) -> bool {
    let asks = |object: &ObjectRef| {
        let asked = before.asked(object).or_else(|| after.asked(object)).map(|asked| &asked.spec);
        matches!(asked, Some(Spec::Vm(spec)) if spec.placement.preempt)
    };
    batch.writes.keys().any(|key| matches!(key, Key::Decided(object) if asks(object)))
}

/// A batch lets those go alone for a priority that have a lower one, and gives nobody what is promised to another.
pub(crate) fn check_batch(batch: &Transaction, before: &View, after: &View) -> Checked {
    let decided = || {
        batch.writes.keys().filter_map(|key| if let Key::Decided(object) = key { Some(object) } else { None })
    };
    let placed = || decided().filter(|vm| placement(before, vm).is_none() && placement(after, vm).is_some());
    let spec_of = |vm: &ObjectRef| match before.asked(vm).or_else(|| after.asked(vm)).map(|asked| &asked.spec)
    {
        Some(Spec::Vm(spec)) => Some((spec.priority, spec.placement.preempt)),
        _ => None,
    };
    let promises =
        || [before, after].into_iter().flat_map(ledgers).filter_map(|(_, ledger)| ledger.promised.as_ref());
    for group in decided() {
        for member in preempted(before, after, group) {
            // One that is made, let go and gone within a batch is in neither.
            let Some(least) = priority(before, member).or_else(|| priority(after, member)) else { continue };
            let is_promised =
                promises().any(|promise| promise.from.contains(&member) && least < promise.priority);
            // It may be promised, left, and taken or given up, within one batch.
            let was_promised =
                decided().filter_map(spec_of).any(|(priority, preempts)| preempts && least < priority);
            if !is_promised && !was_promised {
                return violated(
                    "preemption",
                    format!("{member} of {group} is let go for nobody that matters more"),
                );
            }
        }
    }
    let placed: Vec<&ObjectRef> = placed().collect();
    // Of several it is not known in which order they were placed.
    let [vm] = placed.as_slice() else { return Ok(()) };
    check_kept(batch, before, after, vm)
}

/// The members that a batch lets go for somebody that matters more.
fn preempted(before: &View, after: &View, group: &ObjectRef) -> Vec<Uid> {
    let retiring = |view: &View| match view.decided(group).map(|decided| &decided.choice) {
        Some(Choice::ScaleGroup(choice)) => choice.retiring.clone(),
        _ => Vec::new(),
    };
    let known = retiring(before);
    let news = retiring(after).into_iter().filter(|retiring| !known.contains(retiring));
    news.filter(|retiring| retiring.because == RetiredFor::Preemption).map(|retiring| retiring.uid).collect()
}

/// The room of a VM that a batch places is not kept for another.
fn check_kept(batch: &Transaction, before: &View, after: &View, vm: &ObjectRef) -> Checked {
    let (Some(placed), Some(asked)) = (placement(after, vm), after.asked(vm)) else { return Ok(()) };
    let Spec::Vm(spec) = &asked.spec else { return Ok(()) };
    let kept = |view| kept_from(view, placed.worker, asked.meta.uid, spec.priority);
    let (Some(_), Some(promise)) = (kept(before), kept(after)) else { return Ok(()) };
    let (observed, ledger) = (after.observed_worker(placed.worker), after.worker_ledger(placed.worker));
    let Some((observed, ledger)) = observed.zip(ledger) else { return Ok(()) };
    // Those that are to leave have it still.
    let mut vms = after
        .objects_of(Kind::Vm)
        .filter(|vm| placement(after, vm).is_some_and(|on| on.worker == placed.worker));
    let is_leaving = |vm: &ObjectRef| {
        let Some(asked) = after.asked(vm) else { return true };
        asked.meta.deleting_since.is_some() || promise.from.contains(&asked.meta.uid)
    };
    let is_taken = ledger.cpus + promise.cpus > observed.cpus
        || ledger.memory.bytes() + promise.memory.bytes() > observed.memory.bytes();
    let is_taken = is_taken && !vms.any(is_leaving);
    // One that was placed before may have grown into it.
    let is_vm = |key: &&Key| matches!(key, Key::Decided(other) if other.kind == Kind::Vm && other != vm);
    if is_taken && batch.writes.keys().filter(is_vm).count() == 0 {
        return violated("promise", format!("{vm} is given room that is kept for {}", promise.vm));
    }
    Ok(())
}

/// No VM waits for room that members with a lower priority have; and when all is calm, nothing is promised.
pub(crate) fn check_goal(view: &View, object: &ObjectRef, spec: &vm::Spec) -> Checked {
    let waits_for_address = |vm: Uid| {
        let decided = view.object_of(vm).and_then(|vm| view.decided(vm));
        let waits = decided.into_iter().flat_map(|decided| &decided.waiting_on);
        waits.into_iter().any(|waiting| matches!(waiting.on, WaitingOn::Address { .. }))
    };
    let mut promised = ledgers(view).filter_map(|(worker, ledger)| Some((worker, ledger.promised.as_ref()?)));
    if let Some((worker, _)) = promised.find(|(_, promise)| !waits_for_address(promise.vm)) {
        return violated("promise", format!("{worker} still keeps room"));
    }
    if !spec.placement.preempt {
        return Ok(());
    }
    let stays = |other: &ObjectRef| {
        let Some(asked) = view.asked(other) else { return true };
        let near = &spec.placement.near;
        let is_company = !near.is_empty() && have(&asked.meta.labels, near);
        is_company
            || asked.meta.group().is_none()
            || matches!(&asked.spec, Spec::Vm(other) if other.priority >= spec.priority)
    };
    match possible(view, object, spec, stays) {
        Some(how) => violated("rule 10", format!("{object} could preempt {how}: {}", told(view, object))),
        None => Ok(()),
    }
}
