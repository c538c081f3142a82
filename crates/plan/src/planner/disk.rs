//! A disk on its worker, as the planners of volumes and of snapshots see it: there they are the same.

use lightbyte_api::assigned::{Assigned, AssignedVolume, HostObject, WantedVolume};
use lightbyte_api::observed::{Observed, ObservedVolume, VolumePhase};
use lightbyte_api::waiting::WorkerTask;
use lightbyte_api::{Key, Kind, Name, ObjectRef, Uid, WaitingOn, WorkerId};

use super::Plan;
use crate::transaction::Write;
use crate::view::View;

/// What is assigned and reported of one disk.
pub(super) struct OnHost<'a> {
    pub(super) key: Key,
    worker_name: Option<Name>,
    alive: bool,
    pub(super) assigned: Option<&'a AssignedVolume>,
    observed: Option<&'a ObservedVolume>,
}

impl<'a> OnHost<'a> {
    pub(super) fn of(view: &'a View, worker: WorkerId, uid: Uid) -> OnHost<'a> {
        let host_object = HostObject { kind: Kind::Volume, uid };
        OnHost {
            key: Key::Assigned(worker, host_object),
            worker_name: view.object_of(worker.uid()).map(|object| object.name.clone()),
            alive: view.alive(worker).is_some(),
            assigned: view.assigned(worker, host_object).and_then(|assigned| match assigned.as_ref() {
                Assigned::Volume(assigned) => Some(assigned),
                Assigned::Vm(_) => None,
            }),
            observed: observed(view, worker, uid),
        }
    }

    /// Whether the worker says that the disk is so far, and has seen what is assigned now.
    pub(super) fn is(&self, phase: VolumePhase, assigned: &AssignedVolume) -> bool {
        self.observed
            .is_some_and(|observed| observed.phase == phase && observed.sequence >= assigned.sequence)
    }

    /// Whether the worker has a report of it.
    pub(super) const fn is_reported(&self) -> bool {
        self.observed.is_some()
    }

    /// What hinders the worker, or that it has not said that it is done.
    pub(super) fn hindrance(&self, to: WorkerTask) -> Vec<WaitingOn> {
        let problem = self.observed.and_then(|observed| observed.problem.clone());
        match problem.zip(self.worker_name.clone()).filter(|_| self.alive) {
            Some((problem, worker)) => vec![WaitingOn::WorkerProblem { worker, problem }],
            None => self.wait_for(to),
        }
    }

    pub(super) fn wait_for(&self, to: WorkerTask) -> Vec<WaitingOn> {
        let Some(worker) = self.worker_name.clone() else { return Vec::new() };
        vec![if self.alive { WaitingOn::Worker { worker, to } } else { WaitingOn::WorkerAway { worker } }]
    }

    /// What is missing until the worker has done what `assigned` says.
    pub(super) fn wait(&self, assigned: &AssignedVolume) -> Vec<WaitingOn> {
        match (self.observed, &self.worker_name) {
            // It is on its way to another worker, and what that waits for is told there.
            _ if assigned.wanted != WantedVolume::Present => Vec::new(),
            (Some(ObservedVolume { problem: Some(problem), .. }), Some(worker)) => {
                vec![WaitingOn::WorkerProblem { worker: worker.clone(), problem: problem.clone() }]
            }
            (Some(ObservedVolume { phase: VolumePhase::Present, size, .. }), _) if *size < assigned.size => {
                self.wait_for(WorkerTask::Grow)
            }
            (Some(ObservedVolume { phase: VolumePhase::Present, .. }), _) => Vec::new(),
            (Some(ObservedVolume { phase: VolumePhase::Complete, .. }), _) => {
                self.wait_for(WorkerTask::Fetch)
            }
            _ => self.wait_for(WorkerTask::Create),
        }
    }

    /// Takes the disk away, and then the object whose it is.
    pub(super) fn tear_down(&self) -> Plan {
        match (self.assigned, self.observed) {
            (Some(assigned), _) if !assigned.wanted.is_removal() => {
                let removal = AssignedVolume {
                    sequence: assigned.sequence + 1,
                    wanted: WantedVolume::Removed,
                    ..assigned.clone()
                };
                Plan {
                    writes: vec![Write::put(self.key.clone(), Assigned::Volume(removal))],
                    waiting_on: self.wait_for(WorkerTask::Remove),
                    ..Plan::rest()
                }
            }
            (_, Some(_)) => Plan { waiting_on: self.wait_for(WorkerTask::Remove), ..Plan::rest() },
            (Some(_), None) => Plan { writes: vec![Write::Delete(self.key.clone())], ..Plan::end() },
            (None, None) => Plan::end(),
        }
    }
}

/// What a worker says of a disk.
pub(super) fn observed(view: &View, worker: WorkerId, uid: Uid) -> Option<&ObservedVolume> {
    match view.observed(worker, HostObject { kind: Kind::Volume, uid })?.as_ref() {
        Observed::Volume(observed) => Some(observed),
        Observed::Vm(_) | Observed::Worker(_) => None,
    }
}

/// Whether the disk of that uid is there on `worker`, so that something can be made from it.
pub(super) fn is_present(view: &View, worker: Option<WorkerId>, uid: Uid) -> bool {
    let observed = worker.and_then(|worker| observed(view, worker, uid));
    observed.is_some_and(|observed| observed.phase == VolumePhase::Present)
}

/// Whether the disk of that uid was made on `worker`, whatever has become of it.
pub(super) fn is_made(view: &View, worker: Option<WorkerId>, uid: Uid) -> bool {
    let observed = worker.and_then(|worker| observed(view, worker, uid));
    observed.is_some_and(|observed| observed.phase != VolumePhase::Claimed)
}

/// Why the disk of `object` must stay although its end is asked for: something is being made from it, or cannot be read and
/// may be. What was not placed yet does not count: it finds that what it is to be made from is being deleted.
pub(super) fn made_from(view: &View, object: &ObjectRef) -> Option<WaitingOn> {
    let unreadable = |key: &Key| WaitingOn::Unreadable { key: key.to_string() };
    if let Some(key) = view.unreadable_asked().next() {
        return Some(unreadable(key));
    }
    let others =
        || view.referrers(object).filter(|other| matches!(other.kind, Kind::Volume | Kind::Snapshot));
    let decided = || others().map(|other| Key::Decided(other.clone()));
    if let Some(key) = decided().find(|key| view.unreadable(key).is_some()) {
        return Some(unreadable(&key));
    }
    // From a disk that is lost nothing will be made; one that is held is still read from.
    let phase = view.asked(object).and_then(|asked| {
        let worker = super::worker_of(view, object)?;
        Some(observed(view, worker, asked.meta.uid)?.phase)
    });
    let is_there = matches!(phase, Some(VolumePhase::Present | VolumePhase::Held));
    let is_being_made = |other: &&ObjectRef| {
        let Some(asked) = view.living(other) else { return false };
        let worker = super::worker_of(view, other);
        worker.is_some() && !is_made(view, worker, asked.meta.uid)
    };
    others().filter(|_| is_there).find(is_being_made).map(|by| WaitingOn::InUse { by: by.clone() })
}
