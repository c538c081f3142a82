//! Volumes: each is the root disk of the VM that owns it, and lives where that VM was placed.
//!
//! ```text
//!   asked ──(owner placed)──> assigned: present ──> worker reports it ──> at rest
//!     │                              │
//!     └──(end asked)── unplaced: end └──(end asked)──> assigned: removed ──> worker reports it gone ──> end
//! ```

use lightbyte_api::assigned::{Assigned, AssignedVolume, HostObject, WantedVolume};
use lightbyte_api::kinds::{volume, vm};
use lightbyte_api::object::Meta;
use lightbyte_api::observed::{Observed, ObservedVolume, VolumePhase};
use lightbyte_api::waiting::WorkerTask;
use lightbyte_api::{Choice, Key, Kind, Name, ObjectRef, Spec, VolumeId, WaitingOn, WorkerId};

use super::{Inputs, Plan, worker_of};
use crate::transaction::Write;
use crate::view::View;

/// Plans a volume.
#[must_use]
pub fn plan(view: &View, object: &ObjectRef, _inputs: &Inputs) -> Plan {
    let Some(asked) = view.asked(object) else { return Plan::rest() };
    let Spec::Volume(spec) = &asked.spec else { return Plan::rest() };
    match (worker_of(view, object), asked.meta.deleting_since) {
        (None, Some(_)) => Plan::end(),
        (None, None) => follow_owner(view, spec, object, &asked.meta),
        (Some(worker), deleting_since) => {
            let host_object = HostObject { kind: Kind::Volume, uid: asked.meta.uid };
            let on_host = OnHost::of(view, worker, host_object);
            if deleting_since.is_some() { tear_down(&on_host) } else { Plan { waiting_on: on_host.wait(), ..Plan::rest() } }
        }
    }
}

/// Puts the volume where its owner was placed.
fn follow_owner(view: &View, spec: &volume::Spec, object: &ObjectRef, meta: &Meta) -> Plan {
    let Some((owner, worker)) = owner_placement(view, meta) else {
        // Its owner writes it in the transaction that places itself, so this is a moment, or a damaged store.
        return Plan::rest();
    };
    let image = ObjectRef::new(Kind::Image, spec.image.clone());
    let Some(Spec::Image(image_spec)) = view.asked(&image).map(|asked| &asked.spec) else {
        return Plan::wait(WaitingOn::Missing { object: image });
    };
    let Some(version) = image_spec.version(&spec.image_version) else {
        let (image, version) = (spec.image.clone(), spec.image_version.clone());
        return Plan::wait(WaitingOn::ImageVersion { image, version });
    };
    let assigned = AssignedVolume {
        sequence: 1,
        generation: meta.generation,
        name: object.name.clone(),
        wanted: WantedVolume::Present,
        size: spec.size,
        source: version.root.clone(),
    };
    let host_object = HostObject { kind: Kind::Volume, uid: meta.uid };
    Plan {
        rests_on: vec![Key::Decided(owner), Key::Asked(image), Key::Observed(worker, host_object)],
        writes: vec![Write::put(Key::Assigned(worker, host_object), Assigned::Volume(assigned))],
        choice: Some(Choice::Volume(volume::Choice { worker: Some(worker) })),
        waiting_on: OnHost::of(view, worker, host_object).wait(),
        ..Plan::rest()
    }
}

fn owner_placement(view: &View, meta: &Meta) -> Option<(ObjectRef, WorkerId)> {
    let owner = meta.owner.as_ref()?;
    let Choice::Vm(vm::Choice { placement: Some(placement) }) = &view.decided(&owner.object)?.choice else {
        return None;
    };
    let is_its_disk = placement.disks.iter().any(|disk| disk.volume == VolumeId::new(meta.uid));
    is_its_disk.then(|| (owner.object.clone(), placement.worker))
}

/// The volume as its worker has it.
struct OnHost<'a> {
    key: Key,
    worker_name: Option<Name>,
    alive: bool,
    assigned: Option<&'a AssignedVolume>,
    observed: Option<&'a ObservedVolume>,
}

impl<'a> OnHost<'a> {
    fn of(view: &'a View, worker: WorkerId, host_object: HostObject) -> OnHost<'a> {
        OnHost {
            key: Key::Assigned(worker, host_object),
            worker_name: view.object_of(worker.uid()).map(|object| object.name.clone()),
            alive: view.alive(worker).is_some(),
            assigned: view.assigned(worker, host_object).and_then(|assigned| match assigned.as_ref() {
                Assigned::Volume(assigned) => Some(assigned),
                Assigned::Vm(_) => None,
            }),
            observed: view.observed(worker, host_object).and_then(|observed| match observed.as_ref() {
                Observed::Volume(observed) => Some(observed),
                Observed::Vm(_) | Observed::Worker(_) => None,
            }),
        }
    }

    fn wait_for(&self, to: WorkerTask) -> Vec<WaitingOn> {
        let Some(worker) = self.worker_name.clone() else { return Vec::new() };
        vec![if self.alive { WaitingOn::Worker { worker, to } } else { WaitingOn::WorkerAway { worker } }]
    }

    fn wait(&self) -> Vec<WaitingOn> {
        match (self.observed, &self.worker_name) {
            (Some(ObservedVolume { problem: Some(problem), .. }), Some(worker)) => {
                vec![WaitingOn::WorkerProblem { worker: worker.clone(), problem: problem.clone() }]
            }
            (Some(ObservedVolume { phase: VolumePhase::Present, .. }), _) => Vec::new(),
            _ => self.wait_for(WorkerTask::Create),
        }
    }
}

fn tear_down(on_host: &OnHost<'_>) -> Plan {
    match (on_host.assigned, on_host.observed) {
        (Some(assigned), _) if assigned.wanted != WantedVolume::Removed => {
            let removal = AssignedVolume {
                sequence: assigned.sequence + 1,
                wanted: WantedVolume::Removed,
                ..assigned.clone()
            };
            Plan {
                writes: vec![Write::put(on_host.key.clone(), Assigned::Volume(removal))],
                waiting_on: on_host.wait_for(WorkerTask::Remove),
                ..Plan::rest()
            }
        }
        (_, Some(_)) => Plan { waiting_on: on_host.wait_for(WorkerTask::Remove), ..Plan::rest() },
        (Some(_), None) => Plan { writes: vec![Write::Delete(on_host.key.clone())], ..Plan::end() },
        (None, None) => Plan::end(),
    }
}
