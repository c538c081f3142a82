//! Which workers VMs may be placed on: labels, and VMs that are kept apart.

use std::collections::BTreeMap;

use lightbyte_api::kinds::vm;
use lightbyte_api::object::Asked;
use lightbyte_api::placing::Placing;
use lightbyte_api::{Key, Kind, ObjectRef, Spec};
use lightbyte_plan::transaction::Transaction;
use lightbyte_plan::view::View;

use crate::cluster::{Checked, Cluster};
use crate::oracle::{placement, violated};

impl Cluster {
    /// Most VMs may go anywhere.
    pub(crate) fn some_placing(&mut self) -> Placing {
        let label = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), value.to_owned())]);
        match self.rng.below(40) {
            0 => Placing { on: label("zone", "a"), ..Placing::default() },
            1 => Placing { on: label("worker", "n2"), ..Placing::default() },
            2 => Placing { apart: label("app", "web"), ..Placing::default() },
            3 => Placing { apart: label("app", "a"), prefer: label("zone", "b"), ..Placing::default() },
            _ => Placing::default(),
        }
    }

    /// Labels of a worker.
    pub(crate) fn some_zone(&mut self) -> BTreeMap<String, String> {
        let zone = ["a", "b"][self.rng.below(2)];
        if self.rng.once_in(3) { BTreeMap::new() } else { [("zone".to_owned(), zone.to_owned())].into() }
    }
}

/// Whether `worker` has what the VM asks of it, and nobody is there that it is to be apart from.
pub(crate) fn may_go(view: &View, vm: &ObjectRef, spec: &vm::Spec, worker: &ObjectRef) -> bool {
    let labels =
        |object: &ObjectRef| view.asked(object).map(|asked| asked.meta.labels.clone()).unwrap_or_default();
    let (own, of_worker) = (labels(vm), labels(worker));
    let has_labels = spec.placement.on.iter().all(|(key, value)| match key.as_str() {
        "worker" => worker.name.as_str() == value,
        key => of_worker.get(key) == Some(value),
    });
    let is_near = |other: &&ObjectRef| {
        let is_there = placement(view, other).is_some_and(|placed| placed.worker_name == worker.name);
        let Some(Asked { meta, spec: Spec::Vm(others) }) = view.asked(other).map(AsRef::as_ref) else {
            return false;
        };
        *other != vm
            && is_there
            && (spec.placement.is_apart_from(&meta.labels) || others.placement.is_apart_from(&own))
    };
    has_labels && view.objects_of(Kind::Vm).find(is_near).is_none()
}

/// Every VM that a batch places is where it may be.
pub(crate) fn check_batch(batch: &Transaction, before: &View, after: &View) -> Checked {
    for key in batch.writes.keys() {
        let Key::Decided(vm) = key else { continue };
        let (None, Some(placed)) = (placement(before, vm), placement(after, vm)) else { continue };
        let Some(Spec::Vm(spec)) = after.asked(vm).map(|asked| &asked.spec) else { continue };
        let worker = ObjectRef::new(Kind::Worker, placed.worker_name.clone());
        if !may_go(after, vm, spec, &worker) {
            return violated("placing", format!("{vm} is placed on {worker}, against {:?}", spec.placement));
        }
    }
    Ok(())
}
