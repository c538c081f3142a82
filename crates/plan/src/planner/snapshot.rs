//! Snapshots: taken once, where the volume is; from then on a disk of its own. One that is to be elsewhere moves there.

use lightbyte_api::assigned::{Assigned, AssignedVolume, HostObject, Source, WantedVolume};
use lightbyte_api::kinds::snapshot;
use lightbyte_api::object::{Asked, Meta};
use lightbyte_api::{Choice, Key, Kind, ObjectRef, Spec, VolumeId, WaitingOn, WorkerId};

use super::disk::{OnHost, is_present, made_from};
use super::moves::{self, Moving};
use super::{Inputs, Plan, worker_of};
use crate::transaction::Write;
use crate::view::View;

/// Plans a snapshot.
#[must_use]
pub fn plan(view: &View, object: &ObjectRef, _inputs: &Inputs) -> Plan {
    let Some(asked) = view.asked(object) else { return Plan::rest() };
    let Spec::Snapshot(spec) = &asked.spec else { return Plan::rest() };
    let choice = match view.decided(object).map(|decided| &decided.choice) {
        Some(Choice::Snapshot(choice)) => choice.clone(),
        _ => snapshot::Choice::default(),
    };
    match (choice.worker, asked.meta.deleting_since) {
        (None, Some(_)) => Plan::end(),
        (None, None) => take(view, object, &asked.meta, spec).unwrap_or_else(Plan::wait),
        (Some(worker), Some(_)) => match made_from(view, object) {
            Some(reason) => Plan::wait(reason),
            None => moves::tear_down(view, asked.meta.uid, worker, choice.elsewhere),
        },
        (Some(worker), None) => keep(view, object, asked, &choice, worker, spec),
    }
}

/// Brings it to where it is to be kept.
fn keep(
    view: &View,
    object: &ObjectRef,
    asked: &Asked,
    choice: &snapshot::Choice,
    worker: WorkerId,
    spec: &snapshot::Spec,
) -> Plan {
    let on_host = OnHost::of(view, worker, asked.meta.uid);
    let Some(assigned) = on_host.assigned else {
        return Plan::wait(WaitingOn::Unreadable { key: on_host.key.to_string() });
    };
    let step = Moving {
        view,
        uid: asked.meta.uid,
        worker,
        elsewhere: choice.elsewhere,
        asked: spec.worker.as_ref(),
        used: made_from(view, object),
        base: base(view, asked, spec),
        // The volume itself is still there.
        quarantine: false,
    }
    .next();
    let workers = |(worker, elsewhere)| {
        Choice::Snapshot(snapshot::Choice { worker: Some(worker), elsewhere, ..choice.clone() })
    };
    Plan {
        waiting_on: on_host.wait(assigned).into_iter().chain(step.waiting_on).collect(),
        writes: step.writes,
        rests_on: step.rests_on,
        choice: step.workers.map(workers),
        ..Plan::rest()
    }
}

/// The newest snapshot of the same volume that is where this one goes: they are much alike.
fn base(view: &View, asked: &Asked, spec: &snapshot::Spec) -> Option<VolumeId> {
    let worker = view.worker_id(&ObjectRef::new(Kind::Worker, spec.worker.clone()?))?;
    let volume = ObjectRef::new(Kind::Volume, spec.volume.clone());
    let others = view.referrers(&volume).filter(|other| other.kind == Kind::Snapshot);
    let there = others.filter(|other| worker_of(view, other) == Some(worker)).filter_map(|other| {
        let other = view.living(other)?;
        let is_it = other.meta.uid != asked.meta.uid && is_present(view, Some(worker), other.meta.uid);
        is_it.then_some((other.meta.changed_at, other.meta.uid))
    });
    there.max().map(|(_, uid)| VolumeId::new(uid))
}

/// Assigns it to the volume's worker, once the volume is there.
fn take(view: &View, object: &ObjectRef, meta: &Meta, spec: &snapshot::Spec) -> Result<Plan, WaitingOn> {
    let volume = ObjectRef::new(Kind::Volume, spec.volume.clone());
    let Some(of) = view.living(&volume) else { return Err(WaitingOn::Missing { object: volume }) };
    let worker = worker_of(view, &volume).filter(|worker| is_present(view, Some(*worker), of.meta.uid));
    let made = worker.and_then(|worker| Some((worker, OnHost::of(view, worker, of.meta.uid).assigned?)));
    let Some((worker, made)) = made else { return Err(WaitingOn::Source { object: volume }) };
    let assigned = AssignedVolume {
        sequence: 1,
        generation: meta.generation,
        name: object.name.clone(),
        wanted: WantedVolume::Present,
        size: made.size,
        source: Source::Disk(VolumeId::new(of.meta.uid)),
        arriving: None,
    };
    let host_object = HostObject::of(Kind::Snapshot, meta.uid);
    let of_volume = HostObject { kind: Kind::Volume, uid: of.meta.uid };
    Ok(Plan {
        rests_on: vec![
            Key::Asked(volume.clone()),
            Key::Decided(volume),
            Key::Assigned(worker, of_volume),
            Key::Observed(worker, host_object),
        ],
        waiting_on: OnHost::of(view, worker, meta.uid).wait(&assigned),
        choice: Some(Choice::Snapshot(snapshot::Choice {
            worker: Some(worker),
            size: assigned.size,
            ..snapshot::Choice::default()
        })),
        writes: vec![Write::put(Key::Assigned(worker, host_object), Assigned::Volume(assigned))],
        ..Plan::rest()
    })
}
