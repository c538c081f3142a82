//! How a disk changes its worker, with one moment after which it is the other's:
//!
//! ```text
//!   from   present ──────────────────> held ───────────────────────> released ────────────> quarantined ──> nothing
//!                   nobody has it any more │                ^                │              ^
//!                                          v                │                v              │
//!   to     nothing ──> arriving, copied ──> arriving, held ─ complete ────── arrived ──> present
//!                      (while it is used)   (what differs)  (all of it verified, durable)
//! ```
//!
//! Until `released` is asked for, the move can be taken back; from then on it only goes forward. From `held` on no machine can
//! use the disk on its old worker, and on the new one none can before it has arrived: so never on both. What is left on the
//! old worker goes to its quarantine. Sequences rise over both workers, so that a disk which comes back to one is newer there
//! than what that worker knew. A worker that dies at any point comes back to what is saved there, and it goes on.

use lightbyte_api::assigned::{Arriving, Assigned, AssignedVolume, HostObject, WantedVolume};
use lightbyte_api::observed::VolumePhase;
use lightbyte_api::waiting::WorkerTask;
use lightbyte_api::{Key, Kind, Name, ObjectRef, Uid, VolumeId, WaitingOn, WorkerId};

use super::disk::OnHost;
use super::{Plan, elsewhere_of, worker_of};
use crate::transaction::Write;
use crate::view::View;

/// A disk that may move.
pub(super) struct Moving<'a> {
    pub(super) view: &'a View,
    pub(super) uid: Uid,
    /// The worker that has it.
    pub(super) worker: WorkerId,
    /// The other worker that has something of it.
    pub(super) elsewhere: Option<WorkerId>,
    /// The worker that it is to be on, if anybody minds.
    pub(super) asked: Option<&'a Name>,
    /// Why nobody may be kept from using it yet.
    pub(super) used: Option<WaitingOn>,
    /// A disk of the new worker that may be much like it.
    pub(super) base: Option<VolumeId>,
    /// Whether what is left on the old worker is kept for a while.
    pub(super) quarantine: bool,
}

/// The next step of a move.
#[derive(Default)]
pub(super) struct Step {
    /// The workers from now on, when they change: the one that has it, and the other.
    pub(super) workers: Option<(WorkerId, Option<WorkerId>)>,
    pub(super) writes: Vec<Write>,
    pub(super) waiting_on: Vec<WaitingOn>,
    pub(super) rests_on: Vec<Key>,
}

impl Step {
    fn wait(waiting_on: Vec<WaitingOn>) -> Step {
        Step { waiting_on, ..Step::default() }
    }

    fn write(assigned: Vec<(&OnHost<'_>, AssignedVolume)>) -> Step {
        let write = |(host, next): (&OnHost<'_>, AssignedVolume)| {
            Write::put(host.key.clone(), Assigned::Volume(next))
        };
        Step { writes: assigned.into_iter().map(write).collect(), ..Step::default() }
    }
}

/// Whether the disk of `object` is on its way to another worker, and not on its way back: nobody is newly given it then.
pub(crate) fn is_leaving(view: &View, object: &ObjectRef) -> bool {
    let (Some(asked), Some(to)) = (view.asked(object), elsewhere_of(view, object)) else { return false };
    let to = OnHost::of(view, to, asked.meta.uid);
    to.assigned.is_none_or(|assigned| assigned.arriving.is_some() && !assigned.wanted.is_removal())
}

/// Whether the disk of `object` is on its way to another worker, all of it that could be fetched is there, and nothing is left to
/// do before its holder lets go of it.
pub(super) fn waits_for_holder(view: &View, object: &ObjectRef) -> bool {
    let found = view.asked(object).zip(worker_of(view, object)).zip(elsewhere_of(view, object));
    let Some(((asked, from), to)) = found.filter(|_| is_leaving(view, object)) else { return false };
    let (from, to) = (OnHost::of(view, from, asked.meta.uid), OnHost::of(view, to, asked.meta.uid));
    let is_used = from.assigned.is_some_and(|assigned| assigned.wanted == WantedVolume::Present);
    is_used && to.assigned.is_some_and(|coming| to.is(VolumePhase::Copied, coming))
}

impl Moving<'_> {
    /// The next step, and what it waits for; nothing for a disk that is where it is to be.
    pub(super) fn next(&self) -> Step {
        let from = OnHost::of(self.view, self.worker, self.uid);
        let Some(assigned) = from.assigned else { return Step::default() };
        let Some(elsewhere) = self.elsewhere else { return self.begin(&from, assigned) };
        let to = OnHost::of(self.view, elsewhere, self.uid);
        match to.assigned {
            None => Step::wait(vec![WaitingOn::Unreadable { key: to.key.to_string() }]),
            Some(leftover) if leftover.wanted.is_removal() => self.forget(&to),
            Some(leftover) if leftover.wanted == WantedVolume::Released => {
                self.clear((&from, assigned), (&to, leftover))
            }
            Some(arriving) => self.carry_on((&from, assigned), (&to, arriving), elsewhere),
        }
    }

    /// The worker that is asked for, if it is another one that is there.
    fn target(&self) -> Result<Option<WorkerId>, WaitingOn> {
        let Some(name) = self.asked else { return Ok(None) };
        let object = ObjectRef::new(Kind::Worker, name.clone());
        let worker = self.view.living(&object).and_then(|_| self.view.worker_id(&object));
        let worker = worker.ok_or(WaitingOn::Missing { object })?;
        Ok(Some(worker).filter(|worker| *worker != self.worker))
    }

    fn begin(&self, from: &OnHost<'_>, assigned: &AssignedVolume) -> Step {
        let to = match self.target() {
            Ok(Some(to)) => to,
            Ok(None) => return Step::default(),
            Err(missing) => return Step::wait(vec![missing]),
        };
        if !from.is(VolumePhase::Present, assigned) {
            // What that waits for is told of the disk itself.
            return Step::default();
        }
        let arriving = AssignedVolume {
            sequence: assigned.sequence + 1,
            arriving: Some(Arriving {
                from: self.worker,
                address: self.address(),
                held: false,
                base: self.base,
            }),
            ..assigned.clone()
        };
        let target = OnHost::of(self.view, to, self.uid);
        let host_object = HostObject { kind: Kind::Volume, uid: self.uid };
        let worker = self.view.object_of(to.uid()).cloned();
        Step {
            workers: Some((self.worker, Some(to))),
            waiting_on: target.wait_for(WorkerTask::Fetch),
            rests_on: worker.map(Key::Asked).into_iter().chain([Key::Observed(to, host_object)]).collect(),
            ..Step::write(vec![(&target, arriving)])
        }
    }

    fn carry_on(
        &self,
        (from, assigned): (&OnHost<'_>, &AssignedVolume),
        (to, coming): (&OnHost<'_>, &AssignedVolume),
        elsewhere: WorkerId,
    ) -> Step {
        let Some(arriving) = &coming.arriving else {
            return Step::wait(vec![WaitingOn::Unreadable { key: to.key.to_string() }]);
        };
        let released = assigned.wanted == WantedVolume::Released;
        if !released && self.target() != Ok(Some(elsewhere)) {
            return take_back((from, assigned), (to, coming));
        }
        if arriving.address != self.address() {
            return self.fetch(to, coming, Arriving { address: self.address(), ..arriving.clone() });
        }
        let complete = arriving.held && to.is(VolumePhase::Complete, coming);
        match assigned.wanted {
            WantedVolume::Present => match &self.used {
                // What is fetched while it is used need not be fetched when nobody may.
                // A fetch that cannot go on may go on once it is free: then that has to wake.
                Some(used) if !to.is(VolumePhase::Copied, coming) => {
                    let fetch = to.hindrance(WorkerTask::Fetch);
                    let is_hindered = matches!(fetch.as_slice(), [WaitingOn::WorkerProblem { .. }]);
                    Step::wait(fetch.into_iter().chain(is_hindered.then(|| used.clone())).collect())
                }
                Some(used) => Step::wait(vec![used.clone()]),
                None => let_go(from, assigned, WantedVolume::Held),
            },
            WantedVolume::Held if !from.is(VolumePhase::Held, assigned) => {
                Step::wait(from.hindrance(WorkerTask::Release))
            }
            WantedVolume::Held if !arriving.held => {
                self.fetch(to, coming, Arriving { held: true, ..arriving.clone() })
            }
            WantedVolume::Held if !complete => Step::wait(to.hindrance(WorkerTask::Fetch)),
            WantedVolume::Held => match &self.used {
                Some(used) => Step::wait(vec![used.clone()]),
                None => let_go(from, assigned, WantedVolume::Released),
            },
            WantedVolume::Released if !complete => Step::wait(to.hindrance(WorkerTask::Fetch)),
            WantedVolume::Released if !from.is(VolumePhase::Released, assigned) => {
                Step::wait(from.hindrance(WorkerTask::Release))
            }
            WantedVolume::Released => self.hand_over(assigned, (to, coming), elsewhere),
            WantedVolume::Quarantined | WantedVolume::Removed => Step::default(),
        }
    }

    fn fetch(&self, to: &OnHost<'_>, coming: &AssignedVolume, arriving: Arriving) -> Step {
        let next =
            AssignedVolume { sequence: coming.sequence + 1, arriving: Some(arriving), ..coming.clone() };
        Step { waiting_on: to.wait_for(WorkerTask::Fetch), ..Step::write(vec![(to, next)]) }
    }

    /// It is the other's from here on.
    fn hand_over(
        &self,
        assigned: &AssignedVolume,
        (to, coming): (&OnHost<'_>, &AssignedVolume),
        elsewhere: WorkerId,
    ) -> Step {
        let arrived = AssignedVolume {
            sequence: coming.sequence.max(assigned.sequence) + 1,
            generation: assigned.generation,
            size: assigned.size,
            arriving: None,
            ..coming.clone()
        };
        Step {
            workers: Some((elsewhere, Some(self.worker))),
            waiting_on: to.wait_for(WorkerTask::Fetch),
            ..Step::write(vec![(to, arrived)])
        }
    }

    /// What the old worker has is not needed once the new one has made it its own.
    fn clear(
        &self,
        (here, assigned): (&OnHost<'_>, &AssignedVolume),
        (old, leftover): (&OnHost<'_>, &AssignedVolume),
    ) -> Step {
        let left = if self.quarantine { WantedVolume::Quarantined } else { WantedVolume::Removed };
        match here.is(VolumePhase::Present, assigned) {
            true => Step {
                waiting_on: old.wait_for(WorkerTask::Remove),
                ..Step::write(vec![(old, wanted(leftover, left))])
            },
            // What that waits for is told of the disk itself.
            false => Step::default(),
        }
    }

    /// Waits until nothing is left on the other worker.
    fn forget(&self, leftover: &OnHost<'_>) -> Step {
        if leftover.is_reported() {
            return Step::wait(leftover.wait_for(WorkerTask::Remove));
        }
        Step {
            workers: Some((self.worker, None)),
            writes: vec![Write::Delete(leftover.key.clone())],
            ..Step::default()
        }
    }

    /// Where the worker that has it listens; empty while that is not known, and then nobody can fetch from it.
    fn address(&self) -> String {
        self.view.observed_worker(self.worker).map(|worker| worker.address.clone()).unwrap_or_default()
    }
}

fn wanted(assigned: &AssignedVolume, wanted: WantedVolume) -> AssignedVolume {
    AssignedVolume { sequence: assigned.sequence + 1, wanted, ..assigned.clone() }
}

fn let_go(from: &OnHost<'_>, assigned: &AssignedVolume, next: WantedVolume) -> Step {
    Step {
        waiting_on: from.wait_for(WorkerTask::Release),
        ..Step::write(vec![(from, wanted(assigned, next))])
    }
}

/// The disk stays: who waited for it may have it, and what was fetched of it goes.
fn take_back(
    (from, assigned): (&OnHost<'_>, &AssignedVolume),
    (to, coming): (&OnHost<'_>, &AssignedVolume),
) -> Step {
    let dropped = wanted(coming, WantedVolume::Removed);
    let sequence = dropped.sequence.max(assigned.sequence) + 1;
    let kept = AssignedVolume { sequence, wanted: WantedVolume::Present, ..assigned.clone() };
    Step { waiting_on: to.wait_for(WorkerTask::Remove), ..Step::write(vec![(to, dropped), (from, kept)]) }
}

/// The end of a disk of which two workers may have something.
pub(super) fn tear_down(view: &View, uid: Uid, worker: WorkerId, elsewhere: Option<WorkerId>) -> Plan {
    let ends = OnHost::of(view, worker, uid).tear_down();
    let Some(other) = elsewhere.map(|elsewhere| OnHost::of(view, elsewhere, uid).tear_down()) else {
        return ends;
    };
    Plan {
        ends: ends.ends && other.ends,
        writes: ends.writes.into_iter().chain(other.writes).collect(),
        waiting_on: ends.waiting_on.into_iter().chain(other.waiting_on).collect(),
        ..Plan::default()
    }
}
