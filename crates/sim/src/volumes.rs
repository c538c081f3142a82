//! Volumes and snapshots: what people do with them, and what must hold of them.

use std::collections::{BTreeMap, BTreeSet};

use lightbyte_api::assigned::{HostObject, WantedVolume};
use lightbyte_api::kinds::{snapshot, vm, volume};
use lightbyte_api::object::Asked;
use lightbyte_api::observed::{Observed, VolumePhase};
use lightbyte_api::{ByteSize, Choice, Kind, Manifest, ObjectRef, Span, Spec, Uid, VmId, VolumeId, WorkerId};
use lightbyte_plan::status;
use lightbyte_plan::view::View;

use crate::cluster::{Checked, Cluster};
use crate::moves;
use crate::oracle::{placement, told, violated};
use crate::user::name;
use crate::worker::Worker;

const VOLUMES: usize = 4;
const SNAPSHOTS: usize = 2;

// ------------------------------------------------------------------------------------------------------- people

impl Cluster {
    /// A volume or a snapshot. Asked for twice, the volume may have to grow.
    pub(crate) fn some_volume(&mut self) -> Manifest {
        if self.rng.once_in(4) {
            let worker = self.rng.once_in(3).then(|| name("n2"));
            let spec = snapshot::Spec { volume: self.some_volume_name(), worker, protected: false };
            let name = name(&format!("snap-{}", self.rng.below(SNAPSHOTS)));
            return Manifest { name, labels: BTreeMap::new(), spec: Spec::Snapshot(spec) };
        }
        // One that moves is met most.
        let index = if self.rng.once_in(3) { 1 } else { self.rng.below(VOLUMES) };
        let mut spec = volume::Spec {
            size: Some(ByteSize::from_mib(1_024 << self.rng.below(3))),
            ..volume::Spec::default()
        };
        // What is fixed for life is a matter of the name, so that a second request changes the size alone.
        match index {
            0 => spec.snapshot = Some(name("snap-0")),
            1 => spec.worker = Some(name(["n1", "n2", "n3"][self.rng.below(3)])),
            2 if self.rng.once_in(3) => spec.worker = Some(name("n2")),
            _ => {}
        }
        if index == 3 {
            spec.copies = Some(volume::Copies {
                to: name(["n1", "n2", "n3"][self.rng.below(3)]),
                every: Span::from_secs(60),
                keep: self.rng.below(3) as u64,
            });
        }
        Manifest { name: name(&format!("vol-{index}")), labels: BTreeMap::new(), spec: Spec::Volume(spec) }
    }

    fn some_volume_name(&mut self) -> lightbyte_api::Name {
        name(&format!("vol-{}", self.rng.below(VOLUMES)))
    }

    /// Attaches one or two volumes.
    pub(crate) fn attach_some(&mut self, spec: &mut vm::Spec) {
        for _ in 0..=self.rng.below(2) {
            let volume = self.some_volume_name();
            let read_only = self.rng.once_in(3);
            if spec.disks.iter().all(|disk| disk.volume.as_ref() != Some(&volume)) {
                spec.disks.push(vm::Disk { read_only, ..vm::Disk::attached(volume) });
            }
        }
    }

    /// The VM as it is asked, with another machine: more or less of everything, other volumes, a larger root.
    pub(crate) fn some_other_machine(&mut self, view: &View, vm: &ObjectRef) -> Option<Manifest> {
        let Spec::Vm(spec) = &view.asked(vm)?.spec else { return None };
        let mut spec = spec.clone();
        let mut labels = view.asked(vm)?.meta.labels.clone();
        match self.rng.below(7) {
            5 => spec.health = self.some_health(),
            3 => spec.firewall = self.some_firewall(),
            4 => labels = self.some_labels(),
            0 => spec.cpus = 1 + self.rng.below(3) as u64,
            1 => spec.memory = ByteSize::from_mib(128 << self.rng.below(3)),
            2 => spec.disks[0].size = Some(ByteSize::from_mib(64 << self.rng.below(3))),
            _ => {
                spec.disks.retain(|disk| disk.volume.is_none());
                if self.rng.once_in(2) {
                    self.attach_some(&mut spec);
                }
            }
        }
        Some(Manifest { name: vm.name.clone(), labels, spec: Spec::Vm(spec) })
    }
}

// -------------------------------------------------------------------------------------------------------- rules

fn choice<'a>(view: &'a View, object: &ObjectRef) -> Option<&'a volume::Choice> {
    match &view.decided(object)?.choice {
        Choice::Volume(choice) => Some(choice),
        _ => None,
    }
}

/// No disk is written to by one VM and used by another, whatever is stored: judged by what runs.
pub(crate) fn check_machines(workers: &[Worker]) -> Checked {
    let mut users: BTreeMap<VolumeId, (VmId, bool)> = BTreeMap::new();
    let mut checked = Ok(());
    for worker in workers {
        worker.host.each_running(|vm, assigned| {
            for disk in &assigned.disks {
                let other = users.insert(disk.volume, (vm, disk.read_only));
                if let Some((other, read_only)) =
                    other.filter(|(_, read_only)| !(*read_only && disk.read_only))
                {
                    checked = violated(
                        "one writer",
                        format!(
                            "VMs {other} (read only: {read_only}) and {vm} run with volume {}",
                            disk.volume
                        ),
                    );
                }
            }
        });
    }
    checked
}

/// No two placements hold a volume of which one writes; and a volume that a VM is placed with is given to it.
pub(crate) fn check_holders(view: &View) -> Checked {
    let mut users: BTreeMap<VolumeId, (&ObjectRef, bool)> = BTreeMap::new();
    for vm in view.objects_of(Kind::Vm) {
        let (Some(placement), Some(asked)) = (placement(view, vm), view.asked(vm)) else { continue };
        for disk in &placement.disks {
            let other = users.insert(disk.volume, (vm, disk.read_only));
            if let Some((other, _)) = other.filter(|(_, read_only)| !(*read_only && disk.read_only)) {
                return violated(
                    "one writer",
                    format!("{other} and {vm} are placed with {}", disk.volume_name),
                );
            }
            let volume = ObjectRef::new(Kind::Volume, disk.volume_name.clone());
            let Some(volume_asked) = view.asked(&volume) else { continue };
            if volume_asked.meta.owner.is_some() || volume_asked.meta.uid != disk.volume.uid() {
                continue;
            }
            let given = choice(view, &volume).is_some_and(|choice| {
                choice
                    .holders
                    .iter()
                    .any(|holder| holder.uid == asked.meta.uid && (disk.read_only || !holder.read_only))
            });
            let unreadable = view.unreadable(&lightbyte_api::Key::Decided(volume.clone())).is_some();
            if !given && !unreadable {
                return violated(
                    "one writer",
                    format!("{vm} is placed with {volume}, which was not given to it"),
                );
            }
        }
    }
    Ok(())
}

/// Whether the volumes that a VM names let it be placed, and where: a plain look at what is stored.
pub(crate) fn places(view: &View, uid: Uid, spec: &vm::Spec) -> Option<BTreeSet<WorkerId>> {
    let mut places = BTreeSet::new();
    for disk in &spec.disks {
        let Some(name) = &disk.volume else { continue };
        let volume = ObjectRef::new(Kind::Volume, name.clone());
        let asked = view.living(&volume)?;
        let choice = choice(view, &volume)?;
        let mine = choice.holders.iter().find(|holder| holder.uid == uid)?;
        let Spec::Volume(volume_spec) = &asked.spec else { return None };
        let makes_itself = volume_spec.worker.is_some() || volume_spec.snapshot.is_some();
        if asked.meta.owner.is_some()
            || (mine.read_only && !disk.read_only)
            || (makes_itself && choice.worker.is_none())
        {
            return None;
        }
        places.extend(choice.worker);
    }
    Some(places)
}

/// A volume or a snapshot that is to be there is there, as large as asked, if it can be.
pub(crate) fn check_goal(view: &View, object: &ObjectRef, asked: &Asked, workers: &[Worker]) -> Checked {
    moves::check_goal(view, object, asked.meta.uid, workers)?;
    let worker = match &asked.spec {
        Spec::Volume(spec) => {
            check_given(view, object, asked)?;
            let worker = choice(view, object).and_then(|choice| choice.worker);
            if worker.is_none() && could_be_made(view, object, spec) {
                return violated("rule 10", format!("{object} could be made: {}", told(view, object)));
            }
            worker
        }
        Spec::Snapshot(spec) => {
            let worker = match view.decided(object).map(|decided| &decided.choice) {
                Some(Choice::Snapshot(choice)) => choice.worker,
                _ => None,
            };
            if worker.is_none() && is_made(view, &ObjectRef::new(Kind::Volume, spec.volume.clone())) {
                return violated("rule 10", format!("{object} could be taken: {}", told(view, object)));
            }
            worker
        }
        _ => None,
    };
    let Some(worker) = worker else { return Ok(()) };
    check_disk(view, object, asked, worker, workers)
}

/// Whether the disk has vanished, or what it is to be made from has.
pub(crate) fn never_comes(view: &View, workers: &[Worker], disk: VolumeId) -> bool {
    let host_object = HostObject { kind: Kind::Volume, uid: disk.uid() };
    // What a worker has given up is nothing that anybody gets: it may be older than what was lost.
    let counts = |worker: &Worker| match view.assigned(worker.id, host_object).map(AsRef::as_ref) {
        Some(lightbyte_api::Assigned::Volume(assigned)) => {
            assigned.arriving.is_none()
                && matches!(assigned.wanted, WantedVolume::Present | WantedVolume::Held)
        }
        _ => false,
    };
    let has = |worker: &Worker| worker.host.disks().contains(&disk) && !worker.lost.contains(&disk);
    if workers.iter().any(|worker| counts(worker) && has(worker)) {
        return false;
    }
    if workers.iter().any(|worker| worker.lost.contains(&disk)) {
        return true;
    }
    workers.iter().any(|worker| {
        let Some(assigned) = view.assigned(worker.id, host_object) else { return false };
        match assigned.as_ref() {
            lightbyte_api::Assigned::Volume(assigned) => match assigned.source {
                lightbyte_api::assigned::Source::Disk(source) => {
                    is_gone(view, workers, source) || never_comes(view, workers, source)
                }
                _ => false,
            },
            lightbyte_api::Assigned::Vm(_) => false,
        }
    })
}

/// Whether nobody has the disk, or is to have it.
fn is_gone(view: &View, workers: &[Worker], disk: VolumeId) -> bool {
    let host_object = HostObject { kind: Kind::Volume, uid: disk.uid() };
    let is_asked = workers.iter().any(|worker| view.assigned(worker.id, host_object).is_some());
    !is_asked && workers.iter().all(|worker| !worker.host.disks().contains(&disk))
}

fn check_disk(
    view: &View,
    object: &ObjectRef,
    asked: &Asked,
    worker: WorkerId,
    workers: &[Worker],
) -> Checked {
    let volume = VolumeId::new(asked.meta.uid);
    let host = workers.iter().find(|host| host.id == worker);
    let vanished = host.is_some_and(|host| host.lost.contains(&volume));
    if vanished || never_comes(view, workers, volume) {
        let is_told =
            status::object(view, object).is_some_and(|object| !object.status.more["problem"].is_null());
        return if is_told {
            Ok(())
        } else {
            violated("status", format!("nobody says that {object} is lost"))
        };
    }
    let size = host.and_then(|host| host.drivers.disks.size(volume).ok().flatten());
    let wanted = match &asked.spec {
        Spec::Volume(spec) => spec.size,
        _ => None,
    };
    let mut is_readers = false;
    if let Some(host) = host {
        host.host.each_running(|_, assigned| {
            is_readers |= assigned.disks.iter().any(|disk| disk.volume == volume && disk.read_only);
        });
    }
    match size {
        None => violated("rule 10", format!("{object} is not on its worker: {}", told(view, object))),
        // Machines that only read hold its lock, and have nobody who could make it larger.
        Some(size) if wanted.is_some_and(|wanted| size < wanted) && !is_readers => {
            violated("rule 10", format!("{object} has {size}, asked {wanted:?}: {}", told(view, object)))
        }
        Some(_) => Ok(()),
    }
}

/// Whether a volume that is nowhere knows where it is to be.
fn could_be_made(view: &View, object: &ObjectRef, spec: &volume::Spec) -> bool {
    if let Some(worker) = &spec.worker {
        return view.living(&ObjectRef::new(Kind::Worker, worker.clone())).is_some();
    }
    if let Some(snapshot) = &spec.snapshot {
        let snapshot = ObjectRef::new(Kind::Snapshot, snapshot.clone());
        let size = match view.decided(&snapshot).map(|decided| &decided.choice) {
            Some(Choice::Snapshot(choice)) => choice.size,
            _ => return false,
        };
        return is_made(view, &snapshot) && spec.size.is_none_or(|wanted| wanted >= size);
    }
    let Some(uid) = view.asked(object).map(|asked| VolumeId::new(asked.meta.uid)) else { return false };
    let mut vms = view.objects_of(Kind::Vm).filter_map(|vm| placement(view, vm));
    vms.any(|placement| placement.disks.iter().any(|disk| disk.volume == uid))
}

/// Whether the disk of a living volume or snapshot was reported as there.
fn is_made(view: &View, object: &ObjectRef) -> bool {
    let Some(asked) = view.living(object) else { return false };
    let worker = match view.decided(object).map(|decided| &decided.choice) {
        Some(Choice::Snapshot(choice)) => choice.worker,
        Some(Choice::Volume(choice)) => choice.worker,
        _ => None,
    };
    let Some(worker) = worker else { return false };
    let observed = view.observed(worker, HostObject { kind: Kind::Volume, uid: asked.meta.uid });
    matches!(observed.map(AsRef::as_ref), Some(Observed::Volume(observed)) if observed.phase == VolumePhase::Present)
}

/// Who could have the volume has it, and who has it is somebody.
fn check_given(view: &View, object: &ObjectRef, asked: &Asked) -> Checked {
    if asked.meta.owner.is_some() {
        return Ok(());
    }
    let holders = choice(view, object).map(|choice| choice.holders.as_slice()).unwrap_or_default();
    if let Some(gone) = holders.iter().find(|holder| view.object_of(holder.uid).is_none()) {
        return violated("rule 10", format!("{object} is held by {}, which is gone", gone.vm));
    }
    if choice(view, object).is_some_and(|choice| choice.elsewhere.is_some()) {
        // Whatever keeps it from arriving keeps it from being given.
        return Ok(());
    }
    for vm in view.objects_of(Kind::Vm) {
        let Some(vm_asked) = view.living(vm) else { continue };
        let Spec::Vm(spec) = &vm_asked.spec else { continue };
        let Some(disk) = spec.disks.iter().find(|disk| disk.volume.as_ref() == Some(&object.name)) else {
            continue;
        };
        let has = holders.iter().any(|holder| holder.uid == vm_asked.meta.uid);
        let is_free = holders.is_empty() || (disk.read_only && holders.iter().all(|holder| holder.read_only));
        if !has && is_free {
            return violated("rule 10", format!("{vm} could have {object}: {}", told(view, object)));
        }
    }
    Ok(())
}
