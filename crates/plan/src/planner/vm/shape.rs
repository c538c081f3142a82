//! What the machine of a placed VM is made of: CPUs, memory and disks. A machine that runs is as it was when it was started,
//! so a change counts from its next start on.
//!
//! ```text
//!   asked ──> assigned with a new `shape` ──> the worker reports that shape: nothing of the old one runs any more
//!             placement holds old and new                                    placement holds the new alone
//! ```
//!
//! What the placement holds is what others cannot have: room in the worker's ledger, volumes from their planner.

use lightbyte_api::assigned::{AssignedDisk, AssignedVm, HostObject};
use lightbyte_api::kinds::vm::{Disk, PlacedDisk, Placement};
use lightbyte_api::kinds::volume;
use lightbyte_api::object::{Asked, Meta};
use lightbyte_api::observed::ObservedVm;
use lightbyte_api::records::WorkerLedger;
use lightbyte_api::{ByteSize, Key, Kind, Name, ObjectRef, Spec, VolumeId, WaitingOn, WorkerId};

use super::{Vm, unreadable};
use crate::planner::volume::{choice, worker_to_be};
use crate::transaction::Write;
use crate::view::View;

/// What a machine is made of.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Machine {
    pub(super) cpus: u64,
    pub(super) memory: ByteSize,
    pub(super) disks: Vec<AssignedDisk>,
}

impl Machine {
    pub(super) fn of(assigned: &AssignedVm) -> Machine {
        Machine { cpus: assigned.cpus, memory: assigned.memory, disks: assigned.disks.clone() }
    }
}

/// What is to change.
#[derive(Default)]
pub(super) struct Change {
    /// The machine that is asked for, when it may be had.
    pub(super) machine: Option<Machine>,
    /// What is held from now on.
    pub(super) placement: Option<Placement>,
    pub(super) writes: Vec<Write>,
    pub(super) rests_on: Vec<Key>,
}

/// What is to change for the machine to become what is asked, and why it cannot. What only the machine before held is given
/// back whatever hinders the next one.
pub(super) fn change(
    vm: &Vm<'_>,
    placement: &Placement,
    assigned: &AssignedVm,
    observed: Option<&ObservedVm>,
) -> (Change, Option<WaitingOn>) {
    let settled = settle(placement, assigned, observed);
    let wanted = wanted_machine(vm, &settled, assigned).and_then(|wanted| {
        let held = hold(&settled, &wanted);
        check_room(vm.view, placement, &held).map(|()| (wanted, held))
    });
    let (wanted, held, hindrance) = match wanted {
        Ok((wanted, held)) => (Some(wanted), held, None),
        Err(reason) => (None, settled, Some(reason)),
    };
    let ledger = match ledger_write(vm.view, placement, &held) {
        Ok(ledger) => ledger,
        Err(reason) => return (Change::default(), Some(reason)),
    };
    let mut change = Change {
        writes: grow_own_disks(vm).into_iter().chain(ledger).collect(),
        placement: (held != *placement).then_some(held),
        ..Change::default()
    };
    if let Some(wanted) = wanted.filter(|wanted| wanted.machine != Machine::of(assigned)) {
        let worker = HostObject { kind: Kind::Worker, uid: placement.worker.uid() };
        change.rests_on = wanted.rests_on;
        change.rests_on.push(Key::Observed(placement.worker, worker));
        change.machine = Some(wanted.machine);
    }
    (change, hindrance)
}

/// The placement without what only the machine before held, once its worker says that nothing of it is left.
fn settle(placement: &Placement, assigned: &AssignedVm, observed: Option<&ObservedVm>) -> Placement {
    if observed.is_none_or(|observed| observed.shape < assigned.shape) {
        return placement.clone();
    }
    let placed = |disk: &AssignedDisk| {
        let placed = placement.disks.iter().find(|placed| placed.volume == disk.volume)?;
        Some(PlacedDisk { read_only: disk.read_only, ..placed.clone() })
    };
    Placement {
        cpus: assigned.cpus,
        memory: assigned.memory,
        disks: assigned.disks.iter().filter_map(placed).collect(),
        ..placement.clone()
    }
}

/// What is held while the machine before may still run.
fn hold(placement: &Placement, wanted: &Wanted) -> Placement {
    Placement {
        cpus: wanted.machine.cpus.max(placement.cpus),
        memory: wanted.machine.memory.max(placement.memory),
        disks: union(wanted.placed.clone(), &placement.disks),
        ..placement.clone()
    }
}

/// The old disks that are not among the new ones follow them. One that is among both is written to if either may.
fn union(mut new: Vec<PlacedDisk>, old: &[PlacedDisk]) -> Vec<PlacedDisk> {
    for disk in old {
        match new.iter_mut().find(|other| other.volume == disk.volume) {
            Some(other) => other.read_only &= disk.read_only,
            None => new.push(disk.clone()),
        }
    }
    new
}

/// A machine that may be had.
struct Wanted {
    machine: Machine,
    /// Its disks as they are placed.
    placed: Vec<PlacedDisk>,
    /// The decisions that gave it new ones.
    rests_on: Vec<Key>,
}

/// The machine that is asked for. The error is the reason to wait.
fn wanted_machine(vm: &Vm<'_>, placement: &Placement, assigned: &AssignedVm) -> Result<Wanted, WaitingOn> {
    let (mut disks, mut placed_disks, mut rests_on) = (Vec::new(), Vec::new(), Vec::new());
    for disk in &vm.spec.disks {
        let placed = match (placed_already(placement, assigned, disk), &disk.volume) {
            (Some(placed), _) => placed,
            (None, Some(volume)) => {
                let placed = attached(vm, disk, volume)?;
                let object = ObjectRef::new(Kind::Volume, volume.clone());
                if let Some((worker, keys)) = worker_to_be(vm.view, &object) {
                    if worker != placement.worker {
                        return Err(elsewhere(vm.view, volume, worker));
                    }
                    rests_on.extend(keys);
                }
                rests_on.extend([Key::Asked(object.clone()), Key::Decided(object)]);
                placed
            }
            // An own disk is placed with the VM and stays; without, the store is damaged.
            (None, None) => return Err(unreadable(&Key::Decided(vm.object.clone()))),
        };
        disks.push(assigned_disk(disk, &placed));
        placed_disks.push(placed);
    }
    let machine = Machine { cpus: vm.spec.cpus, memory: vm.spec.memory, disks };
    Ok(Wanted { machine, placed: placed_disks, rests_on })
}

/// The disk as it is assigned now: nothing has to be decided for it again.
fn placed_already(placement: &Placement, assigned: &AssignedVm, disk: &Disk) -> Option<PlacedDisk> {
    let is_it = |placed: &&PlacedDisk| match &disk.volume {
        Some(volume) => placed.volume_name == *volume,
        None => placed.name == disk.name,
    };
    let placed = placement.disks.iter().find(is_it)?;
    let assigned = assigned.disks.iter().find(|assigned| assigned.volume == placed.volume)?;
    (assigned.read_only == disk.read_only).then(|| PlacedDisk {
        name: disk.name.clone(),
        read_only: disk.read_only,
        ..placed.clone()
    })
}

/// A volume that was given to the VM, as its disk. The error is the reason to wait.
pub(super) fn attached(vm: &Vm<'_>, disk: &Disk, volume: &Name) -> Result<PlacedDisk, WaitingOn> {
    let object = ObjectRef::new(Kind::Volume, volume.clone());
    let held = |by: &ObjectRef| WaitingOn::VolumeHeld { volume: volume.clone(), by: by.clone() };
    let Some(asked) = vm.view.living(&object) else { return Err(WaitingOn::Missing { object }) };
    if let Some(owner) = &asked.meta.owner {
        return Err(held(&owner.object));
    }
    let choice = choice(vm.view, &object).cloned().unwrap_or_default();
    let mine = choice.holders.iter().find(|holder| holder.uid == vm.meta.uid);
    let other = choice.holders.iter().find(|holder| holder.uid != vm.meta.uid);
    let may = mine.is_some_and(|holder| disk.read_only || !holder.read_only);
    if !may {
        let given = WaitingOn::VolumeGiven { volume: volume.clone() };
        return Err(other.map_or(given, |other| held(&other.vm)));
    }
    let makes_itself =
        matches!(&asked.spec, Spec::Volume(spec) if spec.worker.is_some() || spec.snapshot.is_some());
    if makes_itself && choice.worker.is_none() {
        return Err(WaitingOn::Source { object });
    }
    Ok(PlacedDisk {
        name: disk.name.clone(),
        volume: VolumeId::new(asked.meta.uid),
        volume_name: volume.clone(),
        read_only: disk.read_only,
    })
}

/// A placed disk as the worker has to know it.
pub(super) fn assigned_disk(disk: &Disk, placed: &PlacedDisk) -> AssignedDisk {
    AssignedDisk { volume: placed.volume, read_only: disk.read_only, mount: disk.mount.clone() }
}

/// A volume is on a worker where the VM is not.
pub(super) fn elsewhere(view: &View, volume: &Name, worker: WorkerId) -> WaitingOn {
    let worker = view.object_of(worker.uid()).map(|object| object.name.clone());
    WaitingOn::VolumeElsewhere { volume: volume.clone(), worker }
}

/// Asks for more of the VM's own disks that are to be larger.
fn grow_own_disks(vm: &Vm<'_>) -> Vec<Write> {
    let grown = vm.spec.disks.iter().filter(|disk| disk.volume.is_none()).filter_map(|disk| {
        let object = ObjectRef::new(Kind::Volume, vm.object.name.child(disk.name.as_str()).ok()?);
        let asked = vm.view.living(&object)?;
        let Spec::Volume(spec) = &asked.spec else { return None };
        let is_own = asked.meta.owner.as_ref().is_some_and(|owner| owner.uid == vm.meta.uid);
        if !is_own || disk.size.is_none() || spec.size >= disk.size {
            return None;
        }
        let meta = Meta {
            generation: asked.meta.generation + 1,
            changed_at: vm.meta.changed_at,
            ..asked.meta.clone()
        };
        let spec = volume::Spec { size: disk.size, ..spec.clone() };
        Some(Write::put(Key::Asked(object), Asked { meta, spec: Spec::Volume(spec) }))
    });
    grown.collect()
}

/// Whether the worker has what is held more than before.
fn check_room(view: &View, before: &Placement, after: &Placement) -> Result<(), WaitingOn> {
    let key = Key::WorkerLedger(before.worker);
    let worker = view.observed_worker(before.worker);
    let (ledger, worker) = view.worker_ledger(before.worker).zip(worker).ok_or_else(|| unreadable(&key))?;
    let fits = |total: u64, used: u64, before: u64, after: u64| {
        after <= before || used.saturating_sub(before).saturating_add(after) <= total
    };
    let has_room = fits(worker.cpus, ledger.cpus, before.cpus, after.cpus)
        && fits(worker.memory.bytes(), ledger.memory.bytes(), before.memory.bytes(), after.memory.bytes());
    let (worker, cpus, memory) = (before.worker_name.clone(), after.cpus, after.memory);
    if has_room { Ok(()) } else { Err(WaitingOn::WorkerRoom { worker, cpus, memory }) }
}

/// The worker's ledger with `after` instead of `before`; nothing when that is the same.
fn ledger_write(view: &View, before: &Placement, after: &Placement) -> Result<Option<Write>, WaitingOn> {
    let key = Key::WorkerLedger(before.worker);
    let ledger = view.worker_ledger(before.worker).ok_or_else(|| unreadable(&key))?;
    let exchange = |total: u64, before: u64, after: u64| total.saturating_sub(before).saturating_add(after);
    let memory = exchange(ledger.memory.bytes(), before.memory.bytes(), after.memory.bytes());
    let next = WorkerLedger {
        cpus: exchange(ledger.cpus, before.cpus, after.cpus),
        memory: ByteSize::from_bytes(memory),
        ..ledger.clone()
    };
    Ok((next != *ledger).then(|| Write::put(key, next)))
}
