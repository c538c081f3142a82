//! Placing: everything that is fixed for a VM's life, in one transaction.

use std::collections::{BTreeMap, BTreeSet};

use lightbyte_api::assigned::{Assigned, AssignedDisk, AssignedNic, AssignedVm, HostObject};
use lightbyte_api::kinds::vm::{
    Choice as VmChoice, Disk, PlacedDisk, Placement, PortForward, ROOT_DISK, Spec as VmSpec, WorkerPort,
};
use lightbyte_api::kinds::{SpecRules as _, image, volume};
use lightbyte_api::object::{Asked, Meta, Owner};
use lightbyte_api::observed::part_name;
use lightbyte_api::placing::{Placing, has_all};
use lightbyte_api::records::WorkerLedger;
use lightbyte_api::waiting::WorkerTask;
use lightbyte_api::{
    ByteSize, Choice, Decided, Key, Kind, Name, ObjectRef, Spec, Uid, VolumeId, WaitingOn, WorkerId,
};

use super::shape::{assigned_disk, attached, elsewhere};
use super::{Inputs, Plan, Vm, nics, promise, unreadable, wanted};
use crate::planner::volume::worker_to_be;
use crate::planner::{scalegroup, worker_of};
use crate::scheduler::{Missing, Need, Wishes, schedule};
use crate::transaction::Write;
use crate::view::View;

/// What a VM needs of a worker.
///
/// # Errors
/// The reason to wait when its image is not known.
pub fn need(view: &View, meta: &Meta, spec: &VmSpec) -> Result<Need, WaitingOn> {
    let version = image_version(view, meta, spec)?;
    let Placing { on, near, prefer, prefer_near, prefer_apart, .. } = &spec.placement;
    Ok(Need {
        uid: Some(meta.uid),
        priority: spec.priority,
        cpus: spec.cpus,
        memory: spec.memory,
        architecture: version.architecture.clone(),
        labels: meta.labels.clone(),
        pinned: pinned(view, spec)?,
        ports: worker_ports(spec).collect(),
        group: meta.group().map(|group| group.uid),
        on: on.clone(),
        near: near.clone(),
        near_to: near_to(view, meta, near),
        apart_from: apart_from(view, meta, spec),
        wishes: Wishes {
            on: prefer.clone(),
            near_to: near_to(view, meta, prefer_near),
            apart_from: with_others(view, meta, prefer_apart).collect(),
            failed_on: failed_on(view, meta),
            parts: version.parts().map(|part| part_name(&part.sha256).to_owned()).collect(),
        },
    })
}

/// The workers with another VM that has all of `labels`; none when nothing is named. Those that are to go are there until they
/// are gone.
fn with_others<'a>(
    view: &'a View,
    meta: &Meta,
    labels: &'a BTreeMap<String, String>,
) -> impl Iterator<Item = WorkerId> {
    let uid = meta.uid;
    let others = view.vms_having(labels).filter(move |(_, asked)| asked.meta.uid != uid);
    others.filter_map(|(other, _)| worker_of(view, &other))
}

/// The workers with a VM that it is to be near to. It may be the first of its like, if it is one.
fn near_to(view: &View, meta: &Meta, near: &BTreeMap<String, String>) -> Option<BTreeSet<WorkerId>> {
    let others = view.vms_with(near).filter(|(_, asked)| asked.meta.uid != meta.uid);
    let workers: BTreeSet<WorkerId> = others.filter_map(|(other, _)| worker_of(view, &other)).collect();
    let is_first = workers.is_empty() && has_all(&meta.labels, near);
    (!near.is_empty() && !is_first).then_some(workers)
}

/// The workers on which members of its group failed lately, and more than once.
fn failed_on(view: &View, meta: &Meta) -> BTreeSet<WorkerId> {
    let choice = meta.group().and_then(|group| scalegroup::choice(view, &group.object));
    let failed = choice.iter().flat_map(|choice| &choice.failed_on).filter(|failed| failed.is_often());
    failed.map(|failed| failed.worker).collect()
}

/// The workers with a VM that this one keeps apart from, or that keeps apart from this one.
fn apart_from(view: &View, meta: &Meta, spec: &VmSpec) -> BTreeSet<WorkerId> {
    let others = with_others(view, meta, &spec.placement.apart);
    let keeps_apart = |other: &ObjectRef| {
        let asked = view.asked(other).filter(|asked| asked.meta.uid != meta.uid);
        asked.is_some_and(|asked| matches!(&asked.spec, Spec::Vm(spec) if spec.placement.is_apart_from(&meta.labels)))
    };
    let watchers = view.naming_labels(&meta.labels).filter(keeps_apart);
    others.chain(watchers.filter_map(|other| worker_of(view, &other))).collect()
}

/// The worker that the attached volumes are on, if they are anywhere yet.
fn pinned(view: &View, spec: &VmSpec) -> Result<Option<WorkerId>, WaitingOn> {
    let mut pinned = None;
    for name in spec.disks.iter().filter_map(|disk| disk.volume.as_ref()) {
        let volume = ObjectRef::new(Kind::Volume, name.clone());
        let Some((worker, _)) = worker_to_be(view, &volume) else { continue };
        if pinned.is_some_and(|other| other != worker) {
            return Err(elsewhere(view, name, worker));
        }
        pinned = Some(worker);
    }
    Ok(pinned)
}

fn image_version<'a>(
    view: &'a View,
    meta: &Meta,
    spec: &VmSpec,
) -> Result<&'a image::Version, WaitingOn> {
    let image = ObjectRef::new(Kind::Image, spec.image.clone());
    // An image that is to go stays while a group names it, and its members are replaced meanwhile.
    let asked = if meta.group().is_some() { view.asked(&image) } else { view.living(&image) };
    let Some(Spec::Image(image_spec)) = asked.map(|asked| &asked.spec) else {
        return Err(WaitingOn::Missing { object: image });
    };
    let version = spec.image_version.as_ref().unwrap_or(&image_spec.current);
    let found = image_spec.versions.iter().find(|found| found.version == *version);
    found.ok_or_else(|| WaitingOn::ImageVersion { image: spec.image.clone(), version: version.clone() })
}

/// Chooses everything that is fixed for the VM's life. The error is the reason to wait.
pub(super) fn place(vm: &Vm<'_>, inputs: &Inputs) -> Result<Plan, WaitingOn> {
    // What an index leads back to is looked at before what anybody may take: an address, and room. So the reason to wait
    // changes only when this VM is woken.
    let version = image_version(vm.view, vm.meta, vm.spec)?;
    let disks = choose_disks(vm, version, inputs)?;
    let need = need(vm.view, vm.meta, vm.spec)?;
    // What is promised to it could not be let go of.
    promise::unreadable_ledger(vm).map_or(Ok(()), Err)?;
    let nics = nics::choose(vm)?;
    let scheduled = schedule(vm.view, &need);
    let Some((worker, worker_name)) = scheduled.worker else {
        let missing = scheduled.missing;
        return promise::ask(vm, &need, missing).unwrap_or_else(|| Err(nowhere(vm, need, missing)));
    };
    let worker_object = ObjectRef::new(Kind::Worker, worker_name.clone());
    let ledger_key = Key::WorkerLedger(worker);
    let ledger = taken(vm, worker).ok_or_else(|| unreadable(&ledger_key))?;
    let placement = Placement {
        worker,
        worker_name: worker_name.clone(),
        image_version: version.version.clone(),
        cpus: vm.spec.cpus,
        memory: vm.spec.memory,
        disks: disks.placed,
        nics: nics.iter().map(|(placed, _)| placed.clone()).collect(),
        ports: need.ports,
        decision: scheduled.decision,
    };
    let nics = nics.into_iter().map(|(_, nic)| nic).collect();
    let assigned = assignment(vm, version, disks.assigned, nics);
    let host_object = HostObject { kind: Kind::Vm, uid: vm.meta.uid };
    let let_go = promise::let_go(vm).filter(|write| *write.key() != ledger_key);
    let claims = placement.nics.iter().filter_map(|nic| nics::claim(vm, nic));
    let writes = claims
        .chain(disks.writes)
        .chain(let_go)
        .chain([
            Write::put(ledger_key, ledger),
            Write::put(Key::Assigned(worker, host_object), Assigned::Vm(assigned)),
        ])
        .collect();
    let named = vm.spec.references().into_iter().map(Key::Asked);
    // The worker's cordon, life and capacity are what the choice rests on; its ledger is written, and so guarded.
    let itself = HostObject { kind: Kind::Worker, uid: worker.uid() };
    let of_worker = [
        Key::Asked(worker_object),
        Key::Alive(worker),
        Key::Observed(worker, itself),
        Key::Observed(worker, host_object),
    ];
    Ok(Plan {
        rests_on: named.chain(of_worker).chain(disks.rests_on).collect(),
        writes,
        choice: Some(Choice::Vm(VmChoice { placement: Some(placement), promised: None })),
        waiting_on: vec![WaitingOn::Worker { worker: worker_name, to: first_task(vm.spec) }],
        ..Plan::rest()
    })
}

/// What one more VM like `asked` would be given: the worker's name, and everything that would be written for it under the name
/// `trial`, which nobody has. For asking whether there is room.
///
/// # Errors
/// The reason why it would have to wait.
pub(crate) fn try_another(
    view: &View,
    asked: &Asked,
    trial: &ObjectRef,
    uid: Uid,
) -> Result<(Name, Vec<Write>), WaitingOn> {
    let missing = || WaitingOn::Missing { object: trial.clone() };
    let Spec::Vm(spec) = &asked.spec else { return Err(missing()) };
    let now = asked.meta.changed_at;
    let meta = Meta { uid, ..asked.meta.clone() };
    let vm = Vm { view, object: trial, meta: &meta, spec };
    let inputs = Inputs::at(now, uid.bits() + 1);
    let mut plan = place(&vm, &inputs)?;
    let Some(choice) = plan.choice.take() else { return Err(missing()) };
    let Choice::Vm(VmChoice { placement: Some(placement), .. }) = &choice else {
        return Err(plan.waiting_on.pop().unwrap_or_else(missing));
    };
    let worker = placement.worker_name.clone();
    let decided = Decided { uid, waiting_on: Vec::new(), at_rest_since: None, choice };
    plan.writes.push(Write::put(Key::Asked(trial.clone()), Asked { meta: meta.clone(), spec: asked.spec.clone() }));
    plan.writes.push(Write::put(Key::Decided(trial.clone()), decided));
    Ok((worker, plan.writes))
}

/// Why no worker can take it.
fn nowhere(vm: &Vm<'_>, need: Need, missing: Missing) -> WaitingOn {
    let Need { cpus, memory, architecture, pinned, ports, on, .. } = need;
    let pinned = pinned.and_then(|worker| Some((worker, vm.view.object_of(worker.uid())?.name.clone())));
    match (pinned, missing) {
        (_, Missing::Places) => WaitingOn::WorkersFull,
        (_, Missing::Ports) => WaitingOn::WorkerPorts { ports },
        (_, Missing::Distance) => WaitingOn::KeptApart,
        (_, Missing::Company) => WaitingOn::KeptNear { near: vm.spec.placement.near.clone() },
        (_, Missing::Access) => WaitingOn::WorkersReserved,
        (_, Missing::Labels) => WaitingOn::WorkerLabels { on },
        (None, Missing::Room) => WaitingOn::Capacity { cpus, memory },
        (Some((_, worker)), Missing::Room) => WaitingOn::WorkerRoom { worker, cpus, memory },
        (Some((_, worker)), Missing::Worker) => WaitingOn::WorkerClosed { worker },
        (None, Missing::Worker) => WaitingOn::Workers { architecture },
    }
}

fn first_task(spec: &VmSpec) -> WorkerTask {
    if spec.running { WorkerTask::Start } else { WorkerTask::Stop }
}

/// The disks of a VM that is being placed.
#[derive(Default)]
struct Disks {
    placed: Vec<PlacedDisk>,
    assigned: Vec<AssignedDisk>,
    /// Ask for the volumes that are its own.
    writes: Vec<Write>,
    /// The decisions that gave it the others.
    rests_on: Vec<Key>,
}

/// The volumes that are its disks: its own ones are asked for, the others must have been given to it.
fn choose_disks(vm: &Vm<'_>, version: &image::Version, inputs: &Inputs) -> Result<Disks, WaitingOn> {
    let mut disks = Disks::default();
    for (index, disk) in vm.spec.disks.iter().enumerate() {
        let placed = match &disk.volume {
            Some(volume) => {
                let object = ObjectRef::new(Kind::Volume, volume.clone());
                disks.rests_on.extend(worker_to_be(vm.view, &object).into_iter().flat_map(|(_, keys)| keys));
                disks.rests_on.push(Key::Decided(object));
                attached(vm, disk, volume)?
            }
            None => {
                let (placed, write) = own_disk(vm, version, disk, inputs.uid(index as u64), inputs)?;
                disks.writes.push(write);
                placed
            }
        };
        disks.assigned.push(assigned_disk(disk, &placed));
        disks.placed.push(placed);
    }
    Ok(disks)
}

/// A disk of its own, with the write that asks for its volume.
fn own_disk(
    vm: &Vm<'_>,
    version: &image::Version,
    disk: &Disk,
    uid: Uid,
    inputs: &Inputs,
) -> Result<(PlacedDisk, Write), WaitingOn> {
    let is_root = disk.name.as_str() == ROOT_DISK;
    let size_min = if is_root { version.root.size } else { ByteSize::default() };
    let size = disk.size.unwrap_or(size_min);
    if size < size_min {
        return Err(WaitingOn::DiskTooSmall { size_min });
    }
    let volume_name = vm.object.name.child(disk.name.as_str()).unwrap_or_else(|_| disk.name.clone());
    let volume = ObjectRef::new(Kind::Volume, volume_name.clone());
    let key = Key::Asked(volume.clone());
    if vm.view.contains(&key) {
        return Err(WaitingOn::InUse { by: volume });
    }
    let owner = Owner::new(vm.object.clone(), vm.meta.uid);
    let meta = Meta::new(uid, Some(owner), vm.meta.labels.clone(), inputs.now);
    let blank = volume::Spec { size: Some(size), ..volume::Spec::default() };
    let spec = match is_root {
        true => volume::Spec {
            image: Some(vm.spec.image.clone()),
            image_version: Some(version.version.clone()),
            ..blank
        },
        false => blank,
    };
    let placed = PlacedDisk {
        name: disk.name.clone(),
        volume: VolumeId::new(uid),
        volume_name,
        read_only: disk.read_only,
    };
    Ok((placed, Write::put(key, Asked { meta, spec: Spec::Volume(spec) })))
}

fn assignment(
    vm: &Vm<'_>,
    version: &image::Version,
    disks: Vec<AssignedDisk>,
    nics: Vec<AssignedNic>,
) -> AssignedVm {
    AssignedVm {
        sequence: 1,
        generation: vm.meta.generation,
        name: vm.object.name.clone(),
        wanted: wanted(vm.spec),
        restarts_asked: vm.meta.restarts_asked,
        shape: 1,
        restart: vm.spec.restart,
        health: vm.spec.health.clone(),
        cpus: vm.spec.cpus,
        memory: vm.spec.memory,
        image: vm.spec.image.clone(),
        image_version: version.version.clone(),
        kernel: version.kernel.clone(),
        initrd: version.initrd.clone(),
        command_line: version.command_line.clone(),
        disks,
        nics,
        first_boot: vm.spec.first_boot.clone(),
        asked_at: vm.meta.changed_at,
    }
}

/// The ports of a worker that a VM is to have.
fn worker_ports(spec: &VmSpec) -> impl Iterator<Item = WorkerPort> {
    spec.ports.iter().map(PortForward::worker_side)
}

/// The worker's ledger with the VM in it; `None` when there is no readable ledger to add to.
fn taken(vm: &Vm<'_>, worker: WorkerId) -> Option<WorkerLedger> {
    let ledger = vm.view.worker_ledger(worker)?.clone().without_promise_to(vm.meta.uid);
    let ports: BTreeSet<WorkerPort> = ledger.ports.iter().copied().chain(worker_ports(vm.spec)).collect();
    Some(WorkerLedger {
        cpus: ledger.cpus.saturating_add(vm.spec.cpus),
        memory: ByteSize::from_bytes(ledger.memory.bytes().saturating_add(vm.spec.memory.bytes())),
        vms: ledger.vms + 1,
        ports: ports.into_iter().collect(),
        promised: ledger.promised,
    })
}
