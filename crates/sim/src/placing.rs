//! Which workers VMs may be placed on: labels, VMs that are near and that are kept apart, workers that are kept for some; and
//! how members of groups are spread.

use std::collections::{BTreeMap, BTreeSet};

use lightbyte_api::kinds::vm;
use lightbyte_api::object::{Asked, Meta};
use lightbyte_api::placing::{Match, Matches, Placing};
use lightbyte_api::{Key, Kind, Name, ObjectRef, Spec, Uid};
use lightbyte_plan::planner::scalegroup;
use lightbyte_plan::transaction::Transaction;
use lightbyte_plan::view::View;

use crate::cluster::{Checked, Cluster};
use crate::oracle::{Search, placement, violated};
use crate::preemption;

impl Cluster {
    /// Most VMs may go anywhere.
    pub(crate) fn some_placing(&mut self) -> Placing {
        let label = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), value.to_owned())]);
        let matches = |key: &str, wanted: Match| Matches::from([(key.to_owned(), wanted)]);
        let zone = |wanted: Match| Placing { on: matches("zone", wanted), ..Placing::default() };
        let prefer = matches("zone", Match::Is("b".to_owned()));
        match self.rng.below(80) {
            0 => zone(Match::Is("a".to_owned())),
            1 => zone(Match::OneOf(vec!["b".to_owned(), "c".to_owned()])),
            2 => zone(Match::Not { not: vec!["a".to_owned()] }),
            3 => zone(Match::Exists { exists: self.rng.once_in(2) }),
            4 => Placing { on: matches("worker", Match::Is("n2".to_owned())), ..Placing::default() },
            5 | 6 => Placing { apart: label("app", "web"), ..Placing::default() },
            7 | 8 => Placing { apart: label("app", "a"), prefer, ..Placing::default() },
            9 | 10 => Placing { near: label("app", "web"), ..Placing::default() },
            11 => Placing { near: label("app", "a"), prefer_apart: label("app", "db"), ..Placing::default() },
            12 => Placing { prefer_near: label("app", "db"), ..Placing::default() },
            _ => Placing::default(),
        }
    }

    /// Labels of a worker.
    pub(crate) fn some_zone(&mut self) -> BTreeMap<String, String> {
        let mut labels = BTreeMap::new();
        for (key, values) in [("zone", ["a", "b"]), ("rack", ["r1", "r2"])] {
            let value = values[self.rng.below(2)];
            if !self.rng.once_in(3) {
                labels.insert(key.to_owned(), value.to_owned());
            }
        }
        labels
    }

    /// Whom a worker is kept for: mostly it is for all.
    pub(crate) fn some_keeping(&mut self) -> BTreeMap<String, String> {
        if self.rng.once_in(8) { [("app".to_owned(), "web".to_owned())].into() } else { BTreeMap::new() }
    }
}

fn labels(view: &View, object: &ObjectRef) -> BTreeMap<String, String> {
    view.asked(object).map(|asked| asked.meta.labels.clone()).unwrap_or_default()
}

/// Whether `labels` has all of `wanted`.
pub(crate) fn have(labels: &BTreeMap<String, String>, wanted: &BTreeMap<String, String>) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// Whether `worker` has what the VM asks of it, and those are there that it is to be near to, and nobody from whom it is to be
/// apart.
pub(crate) fn may_go(view: &View, vm: &ObjectRef, spec: &vm::Spec, worker: &ObjectRef) -> bool {
    is_allowed(view, vm, spec, worker) && is_near(view, vm, spec, worker)
}

/// The other VMs that are placed, with the names of their workers.
fn others<'a>(view: &'a View, vm: &'a ObjectRef) -> impl Iterator<Item = (&'a Meta, &'a vm::Spec, &'a Name)> {
    view.objects_of(Kind::Vm).filter(move |other| *other != vm).filter_map(|other| {
        let Asked { meta, spec: Spec::Vm(spec) } = view.asked(other)?.as_ref() else { return None };
        Some((meta, spec, &placement(view, other)?.worker_name))
    })
}

fn is_allowed(view: &View, vm: &ObjectRef, spec: &vm::Spec, worker: &ObjectRef) -> bool {
    let (own, of_worker) = (labels(view, vm), labels(view, worker));
    let has_labels = spec.placement.on.iter().all(|(key, wanted)| {
        let own_name = (key == "worker").then(|| worker.name.to_string());
        let value = own_name.or_else(|| of_worker.get(key).cloned());
        match wanted {
            Match::Is(wanted) => value.as_ref() == Some(wanted),
            Match::OneOf(wanted) => value.is_some_and(|value| wanted.contains(&value)),
            Match::Not { not } => value.is_none_or(|value| !not.contains(&value)),
            Match::Exists { exists } => value.is_some() == *exists,
        }
    });
    let is_for_it = match view.asked(worker).map(|asked| &asked.spec) {
        Some(Spec::Worker(spec)) => have(&own, &spec.only_for),
        _ => true,
    };
    let mut there = others(view, vm).filter(|(.., on)| **on == worker.name);
    let is_too_near = there.any(|(meta, other, _)| {
        spec.placement.is_apart_from(&meta.labels) || other.placement.is_apart_from(&own)
    });
    has_labels && is_for_it && !is_too_near
}

fn is_near(view: &View, vm: &ObjectRef, spec: &vm::Spec, worker: &ObjectRef) -> bool {
    let near = &spec.placement.near;
    let is_company = |meta: &Meta| meta.deleting_since.is_none() && have(&meta.labels, near);
    let mut company = others(view, vm).filter(|(meta, ..)| is_company(meta)).peekable();
    let is_first = company.peek().is_none() && have(&labels(view, vm), near);
    near.is_empty() || is_first || company.any(|(.., on)| *on == worker.name)
}

/// Every VM that a batch places is where it may be, and members are spread.
pub(crate) fn check_batch(batch: &Transaction, before: &View, after: &View) -> Checked {
    let placed = batch.writes.keys().filter_map(|key| {
        let Key::Decided(vm) = key else { return None };
        let is_new = placement(before, vm).is_none();
        let worker = &placement(after, vm).filter(|_| is_new)?.worker_name;
        Some((vm, ObjectRef::new(Kind::Worker, worker.clone())))
    });
    let placed: Vec<(&ObjectRef, ObjectRef)> = placed.collect();
    for (vm, worker) in &placed {
        let Some(Spec::Vm(spec)) = after.asked(vm).map(|asked| &asked.spec) else { continue };
        if !is_allowed(after, vm, spec, worker) {
            return violated("placing", format!("{vm} is placed on {worker}, against {:?}", spec.placement));
        }
    }
    // Of several it is not known in which order they were placed.
    let [(vm, worker)] = placed.as_slice() else { return Ok(()) };
    let Some(Spec::Vm(spec)) = after.asked(vm).map(|asked| &asked.spec) else { return Ok(()) };
    // Whom it is near to may leave in the same batch.
    let mut left = before.objects_of(Kind::Vm).filter(|other| after.living(other).is_none());
    let is_left = left.any(|other| have(&labels(before, other), &spec.placement.near));
    if !is_left && !is_near(after, vm, spec, worker) {
        return violated(
            "placing",
            format!("{vm} is placed on {worker}, not near {:?}", spec.placement.near),
        );
    }
    // Room may be kept for somebody and taken within one batch.
    if preemption::is_under_way(batch, before, after) {
        return Ok(());
    }
    check_spread(before, after, vm, worker)
}

/// No worker that could take a member is better for it by where the others are, before the batch and after it.
fn check_spread(before: &View, after: &View, vm: &ObjectRef, chosen: &ObjectRef) -> Checked {
    let Some(asked) = after.asked(vm) else { return Ok(()) };
    let (Some(group), Spec::Vm(spec)) = (asked.meta.group(), &asked.spec) else { return Ok(()) };
    let against = |view: &View, worker: &ObjectRef| against(view, vm, (group.uid, &group.object), worker);
    // Where something else of the batch changed what counts, the chosen one is taken at its best and others at their worst.
    let both = |worker: &ObjectRef| (against(before, worker), against(after, worker));
    let ((failed, crowd), (failed_after, crowd_after)) = both(chosen);
    let least: [usize; 3] = std::array::from_fn(|index| crowd[index].min(crowd_after[index]));
    let at_best = (failed && failed_after, least);
    let at_worst = |worker: &ObjectRef| {
        let ((failed, crowd), (failed_after, crowd_after)) = both(worker);
        let most: [usize; 3] = std::array::from_fn(|index| crowd[index].max(crowd_after[index]));
        (failed || failed_after, most)
    };
    let mut better: BTreeSet<&ObjectRef> =
        after.objects_of(Kind::Worker).filter(|worker| at_worst(worker) < at_best).collect();
    for view in [before, after] {
        let Some(search) = Search::of(view, vm, spec) else { return Ok(()) };
        // A decision that cannot be read holds room that only the ledger knows of.
        let has_room = |worker: &ObjectRef| {
            let worker = view.worker_id(worker);
            let found =
                worker.and_then(|worker| view.worker_ledger(worker).zip(view.observed_worker(worker)));
            found.is_some_and(|(ledger, observed)| {
                ledger.cpus + spec.cpus <= observed.cpus
                    && ledger.memory.bytes() + spec.memory.bytes() <= observed.memory.bytes()
                    && observed.vms_max.is_none_or(|vms_max| ledger.vms < vms_max)
            })
        };
        better.retain(|other| search.fits(other) && has_room(other));
    }
    match better.first() {
        Some(other) => violated("spread", format!("{vm} is placed on {chosen}, and {other} is better")),
        None => Ok(()),
    }
}

/// What is against a worker for a member: a failure lately, and how many other members are in its zone, in its rack and on it.
fn against(
    view: &View,
    vm: &ObjectRef,
    (uid, group): (Uid, &ObjectRef),
    worker: &ObjectRef,
) -> (bool, [usize; 3]) {
    let place = |worker: &ObjectRef| {
        let labels = labels(view, worker);
        (labels.get("zone").cloned(), labels.get("rack").cloned())
    };
    let failed_on =
        scalegroup::choice(view, group).map(|choice| choice.failed_on.as_slice()).unwrap_or_default();
    let has_failed = failed_on
        .iter()
        .filter(|failed| failed.times >= 2)
        .any(|failed| view.worker_id(worker) == Some(failed.worker));
    let others =
        view.children(uid).filter(|member| *member != vm).filter_map(|member| placement(view, member));
    let others = others.map(|placed| ObjectRef::new(Kind::Worker, placed.worker_name.clone()));
    let mut crowd = [0; 3];
    for other in others {
        crowd[0] += usize::from(place(&other).0 == place(worker).0);
        crowd[1] += usize::from(place(&other) == place(worker));
        crowd[2] += usize::from(other == *worker);
    }
    (has_failed, crowd)
}
