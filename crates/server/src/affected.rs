//! Which objects look different after a change of some keys: the parts that `lightbyte_plan::status` reads.

use std::collections::BTreeSet;

use lightbyte_api::{Key, Kind, ObjectRef, Uid, WorkerId};
use lightbyte_plan::View;
use lightbyte_plan::planner::loadbalancer::balancer_of;

/// The objects that a change of `keys` from `before` to `after` concerns. An object that is gone is among them.
pub(crate) fn objects<'a>(
    before: &View,
    after: &View,
    keys: impl IntoIterator<Item = &'a Key>,
) -> BTreeSet<ObjectRef> {
    let mut objects = BTreeSet::new();
    for key in keys {
        match key {
            Key::Asked(object) | Key::Decided(object) => {
                objects.insert(object.clone());
            }
            Key::Assigned(_, host_object) | Key::Observed(_, host_object) => {
                objects.extend(by_uid(before, after, host_object.uid));
            }
            Key::WorkerLedger(worker) => objects.extend(by_uid(before, after, worker.uid())),
            Key::Address(network, _) => {
                objects.insert(ObjectRef::new(Kind::Network, network.clone()));
            }
            Key::Alive(worker) => objects.extend(on_worker(before, after, *worker)),
            Key::Epoch | Key::Leader => {}
        }
    }
    // What is told of a group is told of its members.
    let groups = objects.iter().flat_map(|object| [before, after].map(|view| view.group_of(object).cloned()));
    let groups: Vec<ObjectRef> = groups.flatten().collect();
    let of_proxies = objects.iter().filter_map(|object| balancer_of(after, object));
    let balancers: Vec<ObjectRef> = of_proxies.collect();
    objects.extend(groups.into_iter().chain(balancers));
    // Parts may be left of what never was an object, or is none any more: its own key tells of its end.
    let is_told = |object: &ObjectRef| {
        let key = Key::Asked(object.clone());
        before.contains(&key) || after.contains(&key)
    };
    objects.retain(is_told);
    objects
}

fn by_uid(before: &View, after: &View, uid: Uid) -> Option<ObjectRef> {
    after.object_of(uid).or_else(|| before.object_of(uid)).cloned()
}

/// The worker, and everything whose state says whether its worker is alive.
fn on_worker(before: &View, after: &View, worker: WorkerId) -> Vec<ObjectRef> {
    let assigned = after.assigned_to(worker).filter_map(|object| by_uid(before, after, object.uid));
    by_uid(before, after, worker.uid()).into_iter().chain(assigned).collect()
}
