//! Workers: they register themselves, so nothing is chosen for them. One that is to go waits until nothing is
//! assigned to it and its agent has stopped.

use lightbyte_api::assigned::HostObject;
use lightbyte_api::{Key, Kind, ObjectRef, WaitingOn, WorkerId};

use super::{Inputs, Plan};
use crate::transaction::Write;
use crate::view::View;

/// Plans a worker.
#[must_use]
pub fn plan(view: &View, object: &ObjectRef, _inputs: &Inputs) -> Plan {
    let Some(asked) = view.asked(object) else { return Plan::rest() };
    if asked.meta.deleting_since.is_none() {
        return Plan::rest();
    }
    let worker = WorkerId::new(asked.meta.uid);
    if let Some(host_object) = view.assigned_to(worker).next() {
        let user = view.object_of(host_object.uid).cloned();
        return Plan::wait(match user {
            Some(by) => WaitingOn::InUse { by },
            None => WaitingOn::Unreadable { key: Key::Assigned(worker, host_object).to_string() },
        });
    }
    if view.contains(&Key::Alive(worker)) {
        return Plan::wait(WaitingOn::WorkerAlive { worker: object.name.clone() });
    }
    // Placements guard what is asked of the worker, and so every one is in this view or fails.
    let itself = HostObject { kind: Kind::Worker, uid: asked.meta.uid };
    let writes = [Key::WorkerLedger(worker), Key::Observed(worker, itself)]
        .into_iter()
        .filter(|key| view.contains(key))
        .map(Write::Delete)
        .collect();
    Plan { writes, rests_on: vec![Key::Alive(worker)], ..Plan::end() }
}
