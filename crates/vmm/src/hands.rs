//! Carries out one step of the agent on the drivers, and reads back what the host shows. No choice is made here: a
//! step names one driver's verb, and facts are what the drivers say.

use std::net::IpAddr;

use lightbyte_api::assigned::{Assigned, AssignedNic, AssignedVolume, HostObject, Source};
use lightbyte_api::health::HealthCheck;
use lightbyte_api::kinds::image::Part;
use lightbyte_api::{ByteSize, Kind, VmId, VolumeId};
use lightbyte_plan::agent::address;
use lightbyte_plan::agent::health::Outcome;
use lightbyte_plan::agent::parts::parts_of;
use lightbyte_plan::agent::probe::Squatted;
use lightbyte_plan::agent::proxy::Answer;
use lightbyte_plan::agent::{Facts, Saved, Step, Told, VmmState};

use crate::ask::{self, Flushed};
use crate::driver::{DriverError, Drivers, TapState};

/// Does `step` for `object`.
///
/// # Errors
/// What the driver says. The step may have been done in part; doing it again is safe.
pub fn perform(drivers: &Drivers, object: HostObject, step: &Step) -> Result<(), DriverError> {
    let vm = VmId::new(object.uid);
    let volume = VolumeId::new(object.uid);
    match step {
        Step::Save(saved) => drivers.records.save(object, saved),
        Step::Forget => drivers.records.forget(object),
        Step::Shutdown => drivers.vmm.shut_down(vm),
        Step::Kill => drivers.vmm.remove(vm),
        Step::RemoveTaps => drivers.network.remove(vm),
        Step::RemoveDisk => drivers.disks.remove(volume),
        Step::TakeDisk => drivers.disks.take_fetched(volume),
        Step::DropFetched => drivers.disks.drop_fetched(volume),
        Step::QuarantineDisk => drivers.disks.quarantine(volume),
        Step::Look => Ok(()),
        Step::Probe => match drivers.records.load(object)? {
            Some(saved) => probe(drivers, object, saved),
            None => nothing_saved(),
        },
        Step::EnsureTaps => match drivers.records.load(object)? {
            Some(saved) => drivers.network.ensure(vm, &saved.nics()),
            None => nothing_saved(),
        },
        Step::Start | Step::CreateDisk { .. } | Step::GrowDisk { .. } | Step::FetchDisk => {
            let saved = drivers.records.load(object)?;
            match (step, saved.map(|saved| saved.assigned)) {
                (Step::Start, Some(Assigned::Vm(assigned))) => drivers.vmm.ensure(vm, &assigned),
                (Step::CreateDisk { written_by }, Some(Assigned::Volume(assigned))) => {
                    create_disk(drivers, volume, &assigned, written_by)
                }
                (
                    Step::FetchDisk,
                    Some(Assigned::Volume(AssignedVolume { arriving: Some(arriving), .. })),
                ) => drivers.disks.fetch(volume, &arriving),
                (Step::GrowDisk { used_by }, Some(Assigned::Volume(assigned))) => {
                    grow_disk(drivers, volume, assigned.size, used_by)
                }
                _ => nothing_saved(),
            }
        }
    }
}

/// Has the guest's agent try what `check` says. A guest that does not answer has failed.
#[must_use]
pub fn check(drivers: &Drivers, vm: VmId, check: &HealthCheck) -> Outcome {
    ask::check(drivers.guest.as_ref(), vm, check)
}

/// Tells the proxy in a guest what is `told`, if anything, and asks what it does then.
#[must_use]
pub fn ask_proxy(drivers: &Drivers, vm: VmId, told: Option<&Told>) -> Answer {
    ask::ask_proxy(drivers.guest.as_ref(), vm, told)
}

/// Tells a guest that it has a virtual address, or none; and then the network of its card.
#[must_use]
pub fn tell_address(drivers: &Drivers, object: HostObject, errand: address::Errand) -> address::Told {
    let vm = VmId::new(object.uid);
    tell_of_address(drivers, object, vm, errand).unwrap_or_else(|error| address::Told::Failed(error.chain()))
}

fn tell_of_address(
    drivers: &Drivers,
    object: HostObject,
    vm: VmId,
    errand: address::Errand,
) -> Result<address::Told, DriverError> {
    let nics = drivers.records.load(object)?.map(|saved| saved.nics()).unwrap_or_default();
    if errand.ask && drivers.network.is_taken(&nics)? {
        return Ok(address::Told::Taken);
    }
    let address6 = nics.iter().flat_map(AssignedNic::virtual_addresses).find_map(|address| match address {
        IpAddr::V6(address) => Some(address),
        IpAddr::V4(_) => None,
    });
    let left = ask::tell_address(drivers.guest.as_ref(), vm, errand.wanted, address6)?;
    if errand.announce {
        drivers.network.announce(&nics)?;
    }
    Ok(address::Told::Done { left })
}

fn nothing_saved() -> Result<(), DriverError> {
    Err(DriverError::Refused("nothing is saved that this step could follow".to_owned()))
}

/// Probes for the addresses of the saved assignment. Who has one is saved with its sequence; that nobody has is noted
/// with the taps, by their driver.
fn probe(drivers: &Drivers, object: HostObject, saved: Saved) -> Result<(), DriverError> {
    let Assigned::Vm(assigned) = &saved.assigned else { return nothing_saved() };
    let squatters = drivers.network.probe(VmId::new(object.uid), &saved.nics())?;
    if squatters.is_empty() {
        return Ok(());
    }
    let squatted = Some(Squatted { sequence: assigned.sequence, squatters });
    drivers.records.save(object, &Saved { squatted, ..saved })
}

fn create_disk(
    drivers: &Drivers,
    volume: VolumeId,
    assigned: &AssignedVolume,
    written_by: &[VmId],
) -> Result<(), DriverError> {
    let Source::Disk(source) = assigned.source else { return drivers.disks.ensure(volume, assigned, None) };
    // A machine may have been started with other disks than it is to have now.
    let mut machines = Vec::with_capacity(written_by.len());
    for vm in written_by {
        machines.extend(drivers.vmm.place_of(*vm, source)?.map(|place| (*vm, place)));
    }
    if machines.is_empty() {
        return drivers.disks.ensure(volume, assigned, None);
    }
    let flushed = Flushed::all(drivers.guest.as_ref(), &machines)?;
    drivers.disks.ensure(volume, assigned, Some(&|| flushed.release()))
}

fn grow_disk(
    drivers: &Drivers,
    volume: VolumeId,
    size: ByteSize,
    used_by: &[VmId],
) -> Result<(), DriverError> {
    for vm in used_by {
        drivers.vmm.grow_disk(*vm, volume, size)?;
        ask::tell_grown(drivers.guest.as_ref(), *vm);
    }
    drivers.disks.grow(volume, size)
}

/// What the host shows of `object`.
///
/// # Errors
/// When a driver cannot tell; nothing may be concluded then.
pub fn facts(drivers: &Drivers, object: HostObject) -> Result<Facts, DriverError> {
    let saved = drivers.records.load(object)?;
    match object.kind {
        Kind::Vm => {
            let vm = VmId::new(object.uid);
            let nics = saved.as_ref().map(Saved::nics).unwrap_or_default();
            let TapState { count, as_assigned, probed, leases, virtual_address } =
                drivers.network.state(vm, &nics)?;
            let vmm = drivers.vmm.state(vm)?;
            let taps = count > 0;
            let parts_missing = parts_missing(drivers, saved.as_ref().map(|saved| &saved.assigned))?;
            let more = Facts { parts_missing, leases, virtual_address, ..Facts::default() };
            Ok(Facts { vmm, taps, taps_complete: as_assigned, probed, saved, ..more })
        }
        _ => {
            let volume = VolumeId::new(object.uid);
            let (disk, arriving) = (drivers.disks.size(volume)?, drivers.disks.fetched(volume)?);
            let parts_missing = parts_missing(drivers, saved.as_ref().map(|saved| &saved.assigned))?;
            Ok(Facts { saved, disk, arriving, parts_missing, ..Facts::default() })
        }
    }
}

/// The parts of images that an object is made from, and that are not here.
fn parts_missing(drivers: &Drivers, assigned: Option<&Assigned>) -> Result<Vec<Part>, DriverError> {
    let mut missing = Vec::new();
    for part in assigned.into_iter().flat_map(parts_of) {
        if !drivers.parts.has(part)? {
            missing.push(part.clone());
        }
    }
    Ok(missing)
}

/// Everything of ours that the host shows, with its facts: what an agent begins with.
///
/// # Errors
/// When a driver cannot list all. An agent must not begin on a partial list.
pub fn find_all(drivers: &Drivers) -> Result<Vec<(HostObject, Facts)>, DriverError> {
    let vms = drivers.vmm.list()?.into_iter().chain(drivers.network.list()?);
    let vms = vms.map(|vm| HostObject { kind: Kind::Vm, uid: vm.uid() });
    let volumes = drivers.disks.list()?.into_iter();
    let volumes = volumes.map(|volume| HostObject { kind: Kind::Volume, uid: volume.uid() });
    let mut objects: Vec<HostObject> =
        drivers.records.list()?.into_iter().chain(vms).chain(volumes).collect();
    objects.sort_unstable();
    objects.dedup();
    objects.into_iter().map(|object| Ok((object, facts(drivers, object)?))).collect()
}

/// Whether a machine process is there in any form.
#[must_use]
pub fn has_process(facts: &Facts) -> bool {
    facts.vmm != VmmState::Absent
}
