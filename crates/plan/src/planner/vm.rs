//! VMs: placed once, kept as asked, taken away in order.
//!
//! ```text
//!   asked ──> place: worker, disks, addresses and the assignment, in one transaction
//!               │ no room, no image, no address: wait for it
//!               v
//!            keep: the assignment follows what is asked; wait for the worker
//!               │ end asked
//!               v
//!            tear down: assigned `removed`, disks deleted ──> worker reports it gone ──> disks gone ──> end
//! ```
//!
//! Delete wins: tear-down never waits for set-up, and is possible from every state.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use lightbyte_api::assigned::{Assigned, AssignedNic, AssignedVm, HostObject, WantedVm};
use lightbyte_api::kinds::vm::{Choice as VmChoice, PlacedDisk, PlacedNic, Placement, Spec as VmSpec};
use lightbyte_api::kinds::{SpecRules as _, image, volume};
use lightbyte_api::object::{Asked, Meta, Owner};
use lightbyte_api::observed::{Observed, ObservedVm, VmPhase};
use lightbyte_api::records::{AddressClaim, WorkerLedger};
use lightbyte_api::waiting::WorkerTask;
use lightbyte_api::{ByteSize, Choice, Key, Kind, MacAddress, Name, ObjectRef, Spec, VolumeId, WaitingOn, WorkerId};

use super::network::free_address;
use super::{Inputs, Plan};
use crate::scheduler::{Need, schedule};
use crate::transaction::Write;
use crate::view::View;

/// Plans a VM.
#[must_use]
pub fn plan(view: &View, object: &ObjectRef, inputs: &Inputs) -> Plan {
    let Some(asked) = view.asked(object) else { return Plan::rest() };
    let Spec::Vm(spec) = &asked.spec else { return Plan::rest() };
    let deleting = asked.meta.deleting_since.is_some();
    match placement(view, object) {
        None if deleting => Plan::end(),
        None => place(&Vm { view, object, meta: &asked.meta, spec }, inputs).unwrap_or_else(Plan::wait),
        Some(placement) => {
            let vm = Vm { view, object, meta: &asked.meta, spec };
            let on_host = OnHost::of(view, placement, asked);
            if deleting { tear_down(&vm, placement, &on_host, inputs) } else { keep(&vm, &on_host) }
        }
    }
}

/// Where a VM was placed.
#[must_use]
pub fn placement<'a>(view: &'a View, object: &ObjectRef) -> Option<&'a Placement> {
    match &view.decided(object)?.choice {
        Choice::Vm(choice) => choice.placement.as_ref(),
        _ => None,
    }
}

struct Vm<'a> {
    view: &'a View,
    object: &'a ObjectRef,
    meta: &'a Meta,
    spec: &'a VmSpec,
}

// ---------------------------------------------------------------------------------------------------- placing

/// What a VM needs of a worker.
///
/// # Errors
/// The reason to wait when its image is not known.
pub fn need(view: &View, spec: &VmSpec) -> Result<Need, WaitingOn> {
    let architecture = current_version(view, spec)?.architecture.clone();
    Ok(Need { cpus: spec.cpus, memory: spec.memory, architecture })
}

fn current_version<'a>(view: &'a View, spec: &VmSpec) -> Result<&'a image::Version, WaitingOn> {
    let image = ObjectRef::new(Kind::Image, spec.image.clone());
    let Some(Spec::Image(image_spec)) = view.living(&image).map(|asked| &asked.spec) else {
        return Err(WaitingOn::Missing { object: image });
    };
    image_spec.current_version().ok_or_else(|| WaitingOn::ImageVersion {
        image: spec.image.clone(),
        version: image_spec.current.clone(),
    })
}

/// Chooses everything that is fixed for the VM's life. The error is the reason to wait.
fn place(vm: &Vm<'_>, inputs: &Inputs) -> Result<Plan, WaitingOn> {
    let version = current_version(vm.view, vm.spec)?;
    let need = need(vm.view, vm.spec)?;
    let nics = choose_nics(vm)?;
    let (disks, volumes) = make_disks(vm, version, inputs)?;
    let scheduled = schedule(vm.view, &need);
    let Some((worker, worker_name)) = scheduled.worker else {
        return Err(match scheduled.only_room_is_missing {
            true => WaitingOn::Capacity { cpus: need.cpus, memory: need.memory },
            false => WaitingOn::Workers { architecture: need.architecture },
        });
    };
    let worker_object = ObjectRef::new(Kind::Worker, worker_name.clone());
    let ledger_key = Key::WorkerLedger(worker);
    let ledger = taken(vm.view, worker, vm.spec).ok_or_else(|| unreadable(&ledger_key))?;
    let placement = Placement {
        worker,
        worker_name: worker_name.clone(),
        image_version: version.version.clone(),
        cpus: vm.spec.cpus,
        memory: vm.spec.memory,
        disks,
        nics: nics.iter().map(|(placed, _)| placed.clone()).collect(),
        decision: scheduled.decision,
    };
    let assigned = assignment(vm, version, &placement, nics.into_iter().map(|(_, nic)| nic).collect());
    let host_object = HostObject { kind: Kind::Vm, uid: vm.meta.uid };
    let claims = placement.nics.iter().map(|nic| {
        let claim = AddressClaim { owner: vm.meta.uid, object: vm.object.clone() };
        Write::put(Key::Address(nic.network.clone(), nic.address), claim)
    });
    let writes = claims
        .chain(volumes)
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
        rests_on: named.chain(of_worker).collect(),
        writes,
        choice: Some(Choice::Vm(VmChoice { placement: Some(placement) })),
        waiting_on: vec![WaitingOn::Worker { worker: worker_name, to: first_task(vm.spec) }],
        ..Plan::rest()
    })
}


fn first_task(spec: &VmSpec) -> WorkerTask {
    if spec.running { WorkerTask::Start } else { WorkerTask::Stop }
}

/// The worker's ledger with the VM in it; `None` when there is no readable ledger to add to.
fn taken(view: &View, worker: WorkerId, spec: &VmSpec) -> Option<WorkerLedger> {
    let ledger = view.worker_ledger(worker)?;
    Some(WorkerLedger {
        cpus: ledger.cpus.saturating_add(spec.cpus),
        memory: ByteSize::from_bytes(ledger.memory.bytes().saturating_add(spec.memory.bytes())),
        vms: ledger.vms + 1,
    })
}

/// The worker's ledger without the VM; `None` when there is no readable ledger to take from.
fn freed(view: &View, placement: &Placement) -> Option<WorkerLedger> {
    let ledger = view.worker_ledger(placement.worker)?;
    Some(WorkerLedger {
        cpus: ledger.cpus.saturating_sub(placement.cpus),
        memory: ByteSize::from_bytes(ledger.memory.bytes().saturating_sub(placement.memory.bytes())),
        vms: ledger.vms.saturating_sub(1),
    })
}

fn unreadable(key: &Key) -> WaitingOn {
    WaitingOn::Unreadable { key: key.to_string() }
}

fn choose_nics(vm: &Vm<'_>) -> Result<Vec<(PlacedNic, AssignedNic)>, WaitingOn> {
    let mut taken: BTreeSet<(Name, Ipv4Addr)> = BTreeSet::new();
    let mut nics = Vec::with_capacity(vm.spec.nics.len());
    for (index, nic) in vm.spec.nics.iter().enumerate() {
        let network = ObjectRef::new(Kind::Network, nic.network.clone());
        let Some(Spec::Network(spec)) = vm.view.living(&network).map(|asked| &asked.spec) else {
            return Err(WaitingOn::Missing { object: network });
        };
        let address = free_address(vm.view, &nic.network, spec, nic.address, &taken)
            .ok_or_else(|| WaitingOn::Address { network: nic.network.clone() })?;
        taken.insert((nic.network.clone(), address));
        let mac = MacAddress::of_nic(vm.meta.uid, index);
        let assigned = AssignedNic {
            bridge: spec.bridge.clone(),
            mac,
            address,
            prefix_length: spec.subnet.prefix_length(),
            gateway: spec.gateway,
            dns: spec.dns.clone(),
        };
        nics.push((PlacedNic { network: nic.network.clone(), mac, address }, assigned));
    }
    Ok(nics)
}

/// The volumes that become the disks, and the writes that ask for them.
fn make_disks(vm: &Vm<'_>, version: &image::Version, inputs: &Inputs) -> Result<(Vec<PlacedDisk>, Vec<Write>), WaitingOn> {
    let mut disks = Vec::with_capacity(vm.spec.disks.len());
    let mut writes = Vec::with_capacity(vm.spec.disks.len());
    for (index, disk) in vm.spec.disks.iter().enumerate() {
        let size = disk.size.unwrap_or(version.root.size);
        if size < version.root.size {
            return Err(WaitingOn::DiskTooSmall { size_min: version.root.size });
        }
        let volume_name = vm.object.name.child(disk.name.as_str()).unwrap_or_else(|_| disk.name.clone());
        let volume = ObjectRef::new(Kind::Volume, volume_name.clone());
        let key = Key::Asked(volume.clone());
        if vm.view.contains(&key) {
            return Err(WaitingOn::InUse { by: volume });
        }
        let uid = inputs.uid(index as u64);
        let meta = Meta {
            uid,
            generation: 1,
            labels: vm.meta.labels.clone(),
            owner: Some(Owner { object: vm.object.clone(), uid: vm.meta.uid }),
            changed_at: inputs.now,
            deleting_since: None,
            restarts_asked: 0,
        };
        let spec =
            volume::Spec { image: vm.spec.image.clone(), image_version: version.version.clone(), size };
        writes.push(Write::put(key, Asked { meta, spec: Spec::Volume(spec) }));
        disks.push(PlacedDisk { name: disk.name.clone(), volume: VolumeId::new(uid), volume_name });
    }
    Ok((disks, writes))
}

fn assignment(vm: &Vm<'_>, version: &image::Version, placement: &Placement, nics: Vec<AssignedNic>) -> AssignedVm {
    AssignedVm {
        sequence: 1,
        generation: vm.meta.generation,
        name: vm.object.name.clone(),
        wanted: wanted(vm.spec),
        restarts_asked: vm.meta.restarts_asked,
        cpus: vm.spec.cpus,
        memory: vm.spec.memory,
        image: vm.spec.image.clone(),
        image_version: version.version.clone(),
        kernel: version.kernel.clone(),
        initrd: version.initrd.clone(),
        command_line: version.command_line.clone(),
        disks: placement.disks.iter().map(|disk| disk.volume).collect(),
        nics,
        asked_at: vm.meta.changed_at,
    }
}

fn wanted(spec: &VmSpec) -> WantedVm {
    if spec.running { WantedVm::Running } else { WantedVm::Stopped }
}

// ---------------------------------------------------------------------------------------------------- keeping

/// The VM as its worker has it.
struct OnHost<'a> {
    key: Key,
    worker: Name,
    alive: bool,
    assigned: Option<&'a AssignedVm>,
    observed: Option<&'a ObservedVm>,
}

impl<'a> OnHost<'a> {
    fn of(view: &'a View, placement: &Placement, asked: &Asked) -> OnHost<'a> {
        let host_object = HostObject { kind: Kind::Vm, uid: asked.meta.uid };
        OnHost {
            key: Key::Assigned(placement.worker, host_object),
            worker: placement.worker_name.clone(),
            alive: view.alive(placement.worker).is_some(),
            assigned: view.assigned(placement.worker, host_object).and_then(|assigned| match assigned.as_ref() {
                Assigned::Vm(assigned) => Some(assigned),
                Assigned::Volume(_) => None,
            }),
            observed: observed_vm(view, placement.worker, host_object),
        }
    }

    fn wait_for(&self, to: WorkerTask) -> Vec<WaitingOn> {
        let worker = self.worker.clone();
        vec![if self.alive { WaitingOn::Worker { worker, to } } else { WaitingOn::WorkerAway { worker } }]
    }

    /// What is still missing until the worker has done what `assigned` says.
    fn wait(&self, assigned: &AssignedVm) -> Vec<WaitingOn> {
        let worker = self.worker.clone();
        if !self.alive {
            return vec![WaitingOn::WorkerAway { worker }];
        }
        let to = if assigned.wanted == WantedVm::Running { WorkerTask::Start } else { WorkerTask::Stop };
        let Some(observed) = self.observed else { return self.wait_for(to) };
        if let Some(problem) = observed.problem.clone() {
            return vec![WaitingOn::WorkerProblem { worker, problem }];
        }
        let reached = observed.sequence >= assigned.sequence;
        match (assigned.wanted, observed.phase) {
            (WantedVm::Running, VmPhase::Running) | (WantedVm::Stopped, VmPhase::Stopped) if reached => Vec::new(),
            (WantedVm::Running, VmPhase::Crashed) => vec![WaitingOn::CrashLoop { worker }],
            _ => self.wait_for(to),
        }
    }
}

/// What a worker says of a VM.
#[must_use]
pub fn observed_vm(view: &View, worker: WorkerId, host_object: HostObject) -> Option<&ObservedVm> {
    match view.observed(worker, host_object)?.as_ref() {
        Observed::Vm(observed) => Some(observed),
        Observed::Volume(_) | Observed::Worker(_) => None,
    }
}

/// Lets the assignment follow what is asked.
fn keep(vm: &Vm<'_>, on_host: &OnHost<'_>) -> Plan {
    let Some(assigned) = on_host.assigned else {
        // Absence never acts: an assignment that vanished is reported, not made up.
        return Plan::wait(unreadable(&on_host.key));
    };
    let next = AssignedVm {
        generation: vm.meta.generation,
        wanted: wanted(vm.spec),
        restarts_asked: vm.meta.restarts_asked,
        ..assigned.clone()
    };
    if next == *assigned {
        return Plan { waiting_on: on_host.wait(assigned), ..Plan::rest() };
    }
    let next = AssignedVm { sequence: assigned.sequence + 1, asked_at: vm.meta.changed_at, ..next };
    Plan {
        waiting_on: on_host.wait(&next),
        writes: vec![Write::put(on_host.key.clone(), Assigned::Vm(next))],
        ..Plan::rest()
    }
}

// ------------------------------------------------------------------------------------------------ tearing down

fn tear_down(vm: &Vm<'_>, placement: &Placement, on_host: &OnHost<'_>, inputs: &Inputs) -> Plan {
    let mut writes = delete_children(vm, inputs);
    let mut waiting_on = Vec::new();
    match (on_host.assigned, on_host.observed) {
        (Some(assigned), _) if assigned.wanted != WantedVm::Removed => {
            let removal = AssignedVm {
                sequence: assigned.sequence + 1,
                generation: vm.meta.generation,
                wanted: WantedVm::Removed,
                ..assigned.clone()
            };
            writes.push(Write::put(on_host.key.clone(), Assigned::Vm(removal)));
            waiting_on = on_host.wait_for(WorkerTask::Remove);
        }
        (_, Some(_)) => waiting_on = on_host.wait_for(WorkerTask::Remove),
        (_, None) => {}
    }
    waiting_on.extend(vm.view.children(vm.meta.uid).next().map(|child| WaitingOn::Child { child: child.clone() }));
    if !waiting_on.is_empty() {
        return Plan { writes, waiting_on, ..Plan::rest() };
    }
    // What cannot be read is not gone: a disk may be there, an address or room may be held.
    if let Some(key) = held_keys(placement).find(|key| vm.view.unreadable(key).is_some()) {
        return Plan::wait(unreadable(&key));
    }
    // The worker has removed its claim after its last clean-up, and can make no new one: a claim is guarded by the
    // assignment that it was made for. So nothing runs, and room and addresses are free.
    if on_host.assigned.is_some() {
        writes.push(Write::Delete(on_host.key.clone()));
    }
    let ledger_key = Key::WorkerLedger(placement.worker);
    let Some(ledger) = freed(vm.view, placement) else { return Plan::wait(unreadable(&ledger_key)) };
    writes.push(Write::put(ledger_key, ledger));
    writes.extend(placement.nics.iter().filter_map(|nic| {
        let held = vm.view.address_claim(&nic.network, nic.address)?.owner == vm.meta.uid;
        held.then(|| Write::Delete(Key::Address(nic.network.clone(), nic.address)))
    }));
    Plan { writes, ..Plan::end() }
}

/// The keys of other kinds that hold something for a placed VM.
fn held_keys(placement: &Placement) -> impl Iterator<Item = Key> {
    let disks = placement.disks.iter();
    let disks = disks.map(|disk| Key::Asked(ObjectRef::new(Kind::Volume, disk.volume_name.clone())));
    let addresses = placement.nics.iter().map(|nic| Key::Address(nic.network.clone(), nic.address));
    disks.chain(addresses)
}

/// Asks for the end of all children whose end is not asked for yet.
fn delete_children(vm: &Vm<'_>, inputs: &Inputs) -> Vec<Write> {
    let living = vm.view.children(vm.meta.uid).filter_map(|child| Some((child, vm.view.living(child)?)));
    living
        .map(|(child, asked)| {
            let meta = Meta { deleting_since: Some(inputs.now), ..asked.meta.clone() };
            Write::put(Key::Asked(child.clone()), Asked { meta, spec: asked.spec.clone() })
        })
        .collect()
}
