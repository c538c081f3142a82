//! Snapshots: taken once, where the volume is; from then on a disk of its own.

use lightbyte_api::assigned::{Assigned, AssignedVolume, HostObject, Source, WantedVolume};
use lightbyte_api::kinds::snapshot;
use lightbyte_api::object::Meta;
use lightbyte_api::{Choice, Key, Kind, ObjectRef, Spec, VolumeId, WaitingOn};

use super::disk::{OnHost, is_present, made_from};
use super::{Inputs, Plan, worker_of};
use crate::transaction::Write;
use crate::view::View;

/// Plans a snapshot.
#[must_use]
pub fn plan(view: &View, object: &ObjectRef, _inputs: &Inputs) -> Plan {
    let Some(asked) = view.asked(object) else { return Plan::rest() };
    let Spec::Snapshot(spec) = &asked.spec else { return Plan::rest() };
    match (worker_of(view, object), asked.meta.deleting_since) {
        (None, Some(_)) => Plan::end(),
        (None, None) => take(view, object, &asked.meta, spec).unwrap_or_else(Plan::wait),
        (Some(worker), Some(_)) => match made_from(view, object) {
            Some(reason) => Plan::wait(reason),
            None => OnHost::of(view, worker, asked.meta.uid).tear_down(),
        },
        (Some(worker), None) => {
            let on_host = OnHost::of(view, worker, asked.meta.uid);
            match on_host.assigned {
                Some(assigned) => Plan { waiting_on: on_host.wait(assigned), ..Plan::rest() },
                None => Plan::wait(WaitingOn::Unreadable { key: on_host.key.to_string() }),
            }
        }
    }
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
        choice: Some(Choice::Snapshot(snapshot::Choice { worker: Some(worker), size: assigned.size })),
        writes: vec![Write::put(Key::Assigned(worker, host_object), Assigned::Volume(assigned))],
        ..Plan::rest()
    })
}
