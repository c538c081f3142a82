//! Whom a change of a key concerns: said by the view's indexes, for every kind at once.

use lightbyte_api::{Choice, Key, Kind, Name, ObjectRef, Spec, WaitingOn, WorkerId};

use super::Reconciler;
use crate::planner;
use crate::view::View;

impl Reconciler {
    /// Queues every object whom a change of `key` concerns.
    pub(super) fn wake(&mut self, view: &View, key: &Key) {
        match key {
            Key::Asked(object) => self.wake_around(view, object, true),
            // What a group decides is nothing to its members, unless it cannot be read.
            Key::Decided(object) => {
                let concerns_children = object.kind != Kind::ScaleGroup || view.unreadable(key).is_some();
                self.wake_around(view, object, concerns_children);
            }
            Key::Assigned(worker, host_object) => {
                self.queue.extend(view.object_of(host_object.uid).cloned());
                self.queue.extend(view.object_of(worker.uid()).cloned());
            }
            Key::Observed(worker, host_object) => {
                if let Some(object) = view.object_of(host_object.uid) {
                    self.queue.insert(object.clone());
                    self.queue.extend(view.group_of(object).cloned());
                    self.queue.extend(balancers(view, object));
                    // What is made from a disk waits for the report that it is there.
                    self.queue.extend(view.referrers(object).cloned());
                }
                if host_object.uid == worker.uid() {
                    // Where its agent listens stands in the assignments of those that fetch from it.
                    self.wake_worker(view, *worker);
                    self.wake_bystanders();
                }
            }
            Key::Alive(worker) => {
                self.wake_worker(view, *worker);
                self.wake_bystanders();
            }
            Key::Address(network, _) => {
                // One that ends waits for the last claim of an address of it.
                let network = ObjectRef::new(Kind::Network, network.clone());
                if view.asked(&network).is_some_and(|asked| asked.meta.deleting_since.is_some()) {
                    self.queue.insert(network);
                }
                self.wake_bystanders();
            }
            Key::WorkerLedger(worker) => {
                let promised = view.worker_ledger(*worker).and_then(|ledger| ledger.promised.as_ref());
                let leaving = promised.iter().flat_map(|promise| &promise.from);
                let leaving = leaving.filter_map(|member| view.group_of(view.object_of(*member)?));
                self.queue.extend(leaving.cloned());
                self.wake_bystanders();
            }
            Key::Epoch | Key::Leader => {}
        }
    }

    fn wake_around(&mut self, view: &View, object: &ObjectRef, concerns_children: bool) {
        self.queue.insert(object.clone());
        self.queue.extend(view.referrers(object).cloned());
        if object.kind == Kind::Volume {
            // Those of slots are made by the group that members are of, and move when it lets go of these.
            self.queue.extend(view.referrers(object).filter_map(|vm| view.group_of(vm)).cloned());
        }
        self.queue.extend(view.named_by_labels(object));
        if let Some(asked) = view.asked(object) {
            // Whom it keeps away has a place when it does so no more.
            if let Spec::Vm(spec) = &asked.spec
                && !spec.placement.apart.is_empty()
            {
                let others = view.vms_having(&spec.placement.apart).map(|(other, _)| other);
                self.queue.extend(others.filter(|other| planner::worker_of(view, other).is_none()));
            }
            self.queue.extend(asked.spec.references());
            self.queue.extend(asked.meta.owner.iter().map(|owner| owner.object.clone()));
            if concerns_children {
                self.queue.extend(view.children(asked.meta.uid).cloned());
            }
        }
        if let Some(decided) = view.decided(object) {
            self.queue.extend(decided.choice.holds());
            if let Choice::LoadBalancer(choice) = &decided.choice {
                let known = choice.known().filter_map(|uid| view.object_of(uid));
                self.queue.extend(known.filter(|vm| waits_for_rotation(view, vm)).cloned());
                // Who is to have its virtual address, or not any more.
                let proxies = choice.proxies.iter().filter_map(|proxy| view.object_of(proxy.uid));
                let concerns = |vm: &&ObjectRef| {
                    planner::vm::has_other_address(view, vm) || waits_for_rotation(view, vm)
                };
                self.queue.extend(proxies.filter(concerns).cloned());
            }
        }
        self.queue.extend(balancers(view, object));
        // A worker that is drained tells what is still on it.
        let worker = planner::worker_of(view, object);
        self.queue.extend(worker.and_then(|worker| view.object_of(worker.uid())).cloned());
        if let Some(worker) = view.worker_id(object) {
            self.wake_worker(view, worker);
        }
        // Also by one that cannot be read any more: a reason may name it.
        if object.kind == Kind::Worker {
            self.wake_bystanders();
        }
    }

    fn wake_worker(&mut self, view: &View, worker: WorkerId) {
        self.queue.extend(view.object_of(worker.uid()).cloned());
        let assigned = view.assigned_to(worker).filter_map(|host_object| view.object_of(host_object.uid));
        for object in assigned {
            self.queue.insert(object.clone());
            self.queue.extend(view.group_of(object).cloned());
            self.queue.extend(balancers(view, object));
        }
    }

    pub(super) fn wake_bystanders(&mut self) {
        self.queue.append(&mut self.bystanders);
    }
}

/// The load balancers that a VM may be a member or a proxy of.
fn balancers(view: &View, object: &ObjectRef) -> Vec<ObjectRef> {
    let Some(asked) = view.asked(object).filter(|_| object.kind == Kind::Vm) else { return Vec::new() };
    let is_balancer = |object: &ObjectRef| object.kind == Kind::LoadBalancer;
    let named = |name: &Name| ObjectRef::new(Kind::LoadBalancer, name.clone());
    let group = view.group_of(object);
    let by_group =
        group.into_iter().flat_map(|group| view.referrers(group)).filter(|by| is_balancer(by)).cloned();
    let by_name = view.referrers(object).filter(|by| is_balancer(by)).cloned();
    let by_label = view.named_by_labels(object).filter(is_balancer);
    let by_choice = view.fronted_by(asked.meta.uid).map(named);
    let by_told = view.fronts_naming(object, asked);
    let own = planner::loadbalancer::balancer_of(view, object);
    by_group
        .chain(by_name)
        .chain(by_label)
        .chain(by_choice)
        .chain(by_told.iter().map(named))
        .chain(own)
        .collect()
}

/// Whether a VM is to stop, and waits for load balancers.
fn waits_for_rotation(view: &View, vm: &ObjectRef) -> bool {
    let waiting_on = view.decided(vm).map(|decided| decided.waiting_on.as_slice()).unwrap_or_default();
    waiting_on
        .iter()
        .any(|waiting| matches!(waiting.on, WaitingOn::InRotation { .. } | WaitingOn::VirtualAddress { .. }))
}

/// Whether no index leads from what it waits for to who waits.
pub(super) fn waits_elsewhere(on: &WaitingOn) -> bool {
    use WaitingOn as On;
    matches!(
        on,
        On::Capacity { .. }
            | On::WorkersFull
            | On::Workers { .. }
            | On::WorkerLabels { .. }
            | On::Preempting { .. }
            | On::WorkersReserved
            | On::KeptNear { .. }
            | On::KeptApart
            | On::WorkerRoom { .. }
            | On::WorkerPorts { .. }
            | On::WorkerClosed { .. }
            | On::VolumeElsewhere { .. }
            | On::Address { .. }
            | On::Squatted { .. }
            | On::InUse { .. }
            | On::LossBrake
            | On::Unreadable { .. }
    )
}
