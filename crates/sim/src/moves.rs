//! Disks that change their worker: the roads between hosts, and what must hold on both ends.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lightbyte_api::assigned::{Assigned, HostObject, WantedVolume};
use lightbyte_api::kinds::volume;
use lightbyte_api::observed::{Observed, VolumePhase};
use lightbyte_api::records::Record;
use lightbyte_api::{Choice, Key, Kind, Manifest, ObjectRef, Spec, Uid, VolumeId, WorkerId};
use lightbyte_plan::Write;
use lightbyte_plan::view::View;
use lightbyte_vmm::driver::Disks;
use lightbyte_vmm::peers::{InProcess, PeerDisk, Peers};
use lightbyte_vmm::{DriverError, FakeHost};

use crate::cluster::{Checked, Cluster};
use crate::oracle::{told, violated};
use crate::volumes;
use crate::worker::Worker;

/// The network between the hosts.
#[derive(Default)]
pub(crate) struct Roads {
    hosts: Mutex<BTreeMap<WorkerId, FakeHost>>,
    closed: Mutex<BTreeSet<WorkerId>>,
}

impl Roads {
    pub(crate) fn lead_to(&self, worker: WorkerId, host: &FakeHost) {
        lock(&self.hosts).insert(worker, host.clone());
    }

    /// Nobody reaches the worker, or everybody does again.
    pub(crate) fn close(&self, worker: WorkerId, closed: bool) {
        match closed {
            true => lock(&self.closed).insert(worker),
            false => lock(&self.closed).remove(&worker),
        };
    }

    pub(crate) fn open_all(&self) {
        lock(&self.closed).clear();
    }

    /// The way over these roads to the disks of all hosts.
    pub(crate) fn peers(self: Arc<Roads>) -> Arc<dyn Peers> {
        Arc::new(InProcess(move |disk: &PeerDisk| {
            let host = lock(&self.hosts).get(&disk.worker).cloned();
            let host = host.filter(|_| !lock(&self.closed).contains(&disk.worker));
            let cut_off = || DriverError::Refused("it cannot be reached".to_owned());
            Ok(Arc::new(host.ok_or_else(cut_off)?) as Arc<dyn Disks>)
        }))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Cluster {
    /// Somebody asks for no more copies in the time that is left: else something would always be written.
    pub(crate) fn rest_copies(&mut self) -> Checked {
        let view = self.oracle.truth().clone();
        for object in view.objects_of(Kind::Volume) {
            let Some(asked) = view.living(object) else { continue };
            let Spec::Volume(spec @ volume::Spec { copies: Some(copies), .. }) = &asked.spec else {
                continue;
            };
            let copies = volume::Copies { every: volume::COPIES_EVERY_MAX, ..copies.clone() };
            let spec = Spec::Volume(volume::Spec { copies: Some(copies), ..spec.clone() });
            let manifest = Manifest { name: object.name.clone(), labels: asked.meta.labels.clone(), spec };
            // One that is refused stays as it is.
            let _ = self.ask_for(&manifest)?;
        }
        Ok(())
    }

    /// Every guest on a host writes to its disks.
    pub(crate) fn guests_write(&mut self, index: usize) {
        let written = self.workers[index].host.guests_write();
        if !written.is_empty() {
            self.counts.add("guests wrote");
        }
        self.oracle.written.extend(written);
    }
}

/// Whether machines of this worker may use the disk, as far as its agent knows.
fn is_usable(worker: &Worker, disk: VolumeId) -> bool {
    let object = HostObject { kind: Kind::Volume, uid: disk.uid() };
    let Ok(Some(saved)) = worker.drivers.records.load(object) else { return false };
    matches!(&saved.assigned, Assigned::Volume(assigned)
        if saved.created && assigned.wanted == WantedVolume::Present && assigned.arriving.is_none())
}

/// A disk can be used on one worker only, and what was written to it is there.
pub(crate) fn check_hosts(workers: &[Worker], written: &BTreeMap<VolumeId, u64>) -> Checked {
    let mut usable: BTreeMap<VolumeId, &Worker> = BTreeMap::new();
    for worker in workers {
        for disk in worker.host.disks().into_iter().filter(|disk| is_usable(worker, *disk)) {
            if let Some(other) = usable.insert(disk, worker) {
                let (one, other) = (&other.said.name, &worker.said.name);
                return violated("one worker", format!("volume {disk} can be used on {one} and on {other}"));
            }
            let (found, expected) = (worker.host.writes(disk), written.get(&disk).copied());
            if expected.is_some_and(|expected| found < Some(expected)) {
                let name = &worker.said.name;
                return violated(
                    "no write is lost",
                    format!("volume {disk} on {name} was written to {expected:?} times and shows {found:?}"),
                );
            }
        }
    }
    Ok(())
}

/// Whether another worker has the disk with all that this one has, or had it and it vanished there.
pub(crate) fn is_elsewhere(disk: VolumeId, at: usize, workers: &[Worker]) -> bool {
    let here = workers[at].host.writes(disk);
    others(at, workers)
        .any(|worker| worker.lost.contains(&disk) || (has(worker, disk) && worker.host.writes(disk) >= here))
}

/// Whether the disk is there. What cannot be told counts as there.
pub(crate) fn has(worker: &Worker, disk: VolumeId) -> bool {
    worker.drivers.disks.exists(disk).unwrap_or(true)
}

/// Whether another worker knows the disk, whatever has become of it there.
pub(crate) fn is_known_elsewhere(disk: VolumeId, at: usize, workers: &[Worker]) -> bool {
    let object = HostObject { kind: Kind::Volume, uid: disk.uid() };
    others(at, workers).any(|worker| matches!(worker.drivers.records.load(object), Ok(Some(_))))
}

fn others(at: usize, workers: &[Worker]) -> impl Iterator<Item = &Worker> {
    workers.iter().enumerate().filter(move |(index, _)| *index != at).map(|(_, worker)| worker)
}

/// Nothing of a disk is anywhere but on the workers that its controller knows of.
pub(crate) fn check_leftovers(view: &View) -> Checked {
    for (key, _) in view.keys() {
        let Key::Assigned(worker, HostObject { kind: Kind::Volume, uid }) = key else { continue };
        let Some(object) = view.object_of(*uid) else { continue };
        let (has, elsewhere) = workers_of(view, object);
        if Some(*worker) != has && Some(*worker) != elsewhere {
            return violated("rule 10", format!("{key} of {object} is on a worker that nobody thinks of"));
        }
    }
    Ok(())
}

fn workers_of(view: &View, object: &ObjectRef) -> (Option<WorkerId>, Option<WorkerId>) {
    match view.decided(object).map(|decided| &decided.choice) {
        Some(Choice::Volume(volume::Choice { worker, elsewhere, .. })) => (*worker, *elsewhere),
        Some(Choice::Snapshot(choice)) => (choice.worker, choice.elsewhere),
        _ => (None, None),
    }
}

/// A disk is where it is asked to be, unless somebody uses it or it is lost.
pub(crate) fn check_goal(view: &View, object: &ObjectRef, uid: Uid, workers: &[Worker]) -> Checked {
    let Some(asked) = view.asked(object) else { return Ok(()) };
    let name = match &asked.spec {
        Spec::Volume(spec) => spec.worker.as_ref(),
        Spec::Snapshot(spec) => spec.worker.as_ref(),
        _ => None,
    };
    let (Some(has), elsewhere) = workers_of(view, object) else { return Ok(()) };
    let vanished = workers.iter().any(|worker| worker.lost.contains(&VolumeId::new(uid)));
    let is_lost = vanished || volumes::never_comes(view, workers, VolumeId::new(uid));
    let is_held = matches!(view.decided(object).map(|decided| &decided.choice),
        Some(Choice::Volume(choice)) if !choice.holders.is_empty());
    // Something is to be made from it, and cannot be.
    let is_source = view.referrers(object).any(|other| matches!(other.kind, Kind::Volume | Kind::Snapshot));
    if is_lost || is_held || is_source {
        return Ok(());
    }
    if elsewhere.is_some() {
        return violated("rule 10", format!("{object} is still moving: {}", told(view, object)));
    }
    let Some(name) = name else { return Ok(()) };
    let wanted = ObjectRef::new(Kind::Worker, name.clone());
    let is_there = view.living(&wanted).is_none_or(|asked| asked.meta.uid == has.uid());
    if !is_there {
        return violated("rule 10", format!("{object} is not on {name}: {}", told(view, object)));
    }
    Ok(())
}

/// Whether the uid is that of a copy whose volume lets it go.
pub(crate) fn is_old_copy(view: &View, uid: Uid) -> bool {
    let Some(object) = view.object_of(uid).filter(|object| is_copy(view, object)) else { return false };
    view.living(object).is_none()
}

/// Whether this is a copy that a volume has taken of itself.
pub(crate) fn is_copy(view: &View, object: &ObjectRef) -> bool {
    let Some(asked) = view.asked(object) else { return false };
    matches!(asked.spec, Spec::Snapshot(_)) && asked.meta.owner.is_some()
}

/// Whether this is a copy of a volume that takes them, and lets the old ones go.
pub(crate) fn is_taken_in_turn(view: &View, object: &ObjectRef) -> bool {
    let copy = view.asked(object).filter(|_| is_copy(view, object));
    let owner = copy.and_then(|copy| copy.meta.owner.as_ref());
    let volume =
        owner.and_then(|owner| view.living(&owner.object).filter(|asked| asked.meta.uid == owner.uid));
    matches!(volume.map(|asked| &asked.spec), Some(Spec::Volume(volume::Spec { copies: Some(_), .. })))
}

/// A copy is let go only when as many newer ones as are kept are where they are to be.
pub(crate) fn check_copies(key: &Key, write: &Write, before: &View) -> Checked {
    let Key::Asked(object) = key else { return Ok(()) };
    let Some(copy) = before.living(object) else { return Ok(()) };
    let goes = match write {
        Write::Put(_, Record::Asked(after)) => after.meta.deleting_since.is_some(),
        Write::Put(..) => false,
        // One batch may ask for the end of a copy and carry it out.
        Write::Delete(_) => true,
    };
    let Some(owner) = copy.meta.owner.as_ref().filter(|_| goes) else { return Ok(()) };
    let Some(volume) = before.living(&owner.object).filter(|asked| asked.meta.uid == owner.uid) else {
        return Ok(());
    };
    let Spec::Volume(volume::Spec { copies: Some(copies), .. }) = &volume.spec else { return Ok(()) };
    let newer = before.children(owner.uid).filter(|other| {
        let Some(asked) = before.living(other) else { return false };
        let (has, _) = workers_of(before, other);
        let Spec::Snapshot(spec) = &asked.spec else { return false };
        let named = spec.worker.clone().map(|name| ObjectRef::new(Kind::Worker, name));
        let to = named.and_then(|worker| before.worker_id(&worker));
        let host_object = HostObject { kind: Kind::Volume, uid: asked.meta.uid };
        let seen = has.and_then(|has| before.observed(has, host_object));
        let is_there = matches!(seen.map(AsRef::as_ref),
            Some(Observed::Volume(seen)) if seen.phase == VolumePhase::Present);
        asked.meta.changed_at > copy.meta.changed_at && has == to && is_there
    });
    let newer = newer.count() as u64;
    if newer < copies.keep {
        return violated(
            "copies",
            format!("{object} goes, and {newer} newer ones of {} are there", copies.keep),
        );
    }
    Ok(())
}
