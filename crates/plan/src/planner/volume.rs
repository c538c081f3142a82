//! Volumes: each lives on one worker, and is given to one VM that writes or to many that only read.
//!
//! ```text
//!   asked ──(worker named, source's worker, or first VM placed)──> assigned: present ──> worker reports it ──> at rest
//!     │                              │                                                         ^    │ size asked
//!     └──(end asked)── unplaced: end └──(end asked, nobody holds it)──> assigned: removed ──> gone: end └> grows
//! ```
//!
//! How it changes its worker is in `moves.rs`. Who holds a volume is decided here alone. A VM asks for one by naming it, gets it when it stands in the choice, and has
//! it until it neither names it nor has a machine that may use it. So no two VMs write to one, whatever they ask.

use lightbyte_api::assigned::{Assigned, AssignedVolume, HostObject, Source, WantedVolume};
use lightbyte_api::kinds::vm::{Disk, PlacedDisk};
use lightbyte_api::kinds::volume::{Choice as VolumeChoice, Holder, Spec as VolumeSpec};
use lightbyte_api::object::Meta;
use lightbyte_api::{ByteSize, Choice, Key, Kind, ObjectRef, Spec, Uid, VolumeId, WaitingOn, WorkerId};

use super::disk::{OnHost, is_present, made_from};
use super::moves::Moving;
use super::{Inputs, Plan, copies, moves, vm, worker_of};
use crate::transaction::Write;
use crate::view::View;

/// How many VMs a volume is newly given to in one plan: each is guarded twice, and a plan has room for `GUARDS_MAX`.
const NEW_HOLDERS_MAX: usize = 16;

/// Plans a volume.
#[must_use]
pub fn plan(view: &View, object: &ObjectRef, inputs: &Inputs) -> Plan {
    let Some(asked) = view.asked(object) else { return Plan::rest() };
    let Spec::Volume(spec) = &asked.spec else { return Plan::rest() };
    let volume = Volume { view, object, meta: &asked.meta, spec, inputs };
    let before = choice(view, object).cloned().unwrap_or_default();
    let (holders, rests_on) = volume.give(&before.holders);
    let given = VolumeChoice { holders, ..before.clone() };
    let mut plan = match (given.worker, asked.meta.deleting_since) {
        (None, Some(_)) if !given.holders.is_empty() => volume.place_for_holder(&given),
        (_, Some(_)) => volume.tear_down(&given),
        (None, None) => volume.place(&given).unwrap_or_else(Plan::wait),
        (Some(worker), None) => volume.keep(worker, &given),
    };
    if !plan.ends && plan.choice.is_none() && given != before {
        plan.choice = Some(Choice::Volume(given));
    }
    plan.rests_on.extend(rests_on);
    if !plan.ends {
        // What cannot be read may use it; when it can, this volume is to be looked at again.
        let unreadable = before.holders.iter().filter_map(|holder| unreadable_key(view, &holder.vm));
        plan.waiting_on.extend(unreadable.map(|key| WaitingOn::Unreadable { key: key.to_string() }));
    }
    plan
}

fn unreadable_key(view: &View, vm: &ObjectRef) -> Option<Key> {
    let keys = [Key::Asked(vm.clone()), Key::Decided(vm.clone())];
    keys.into_iter().find(|key| view.unreadable(key).is_some())
}

/// What was decided for a volume.
#[must_use]
pub fn choice<'a>(view: &'a View, object: &ObjectRef) -> Option<&'a VolumeChoice> {
    match &view.decided(object)?.choice {
        Choice::Volume(choice) => Some(choice),
        _ => None,
    }
}

struct Volume<'a> {
    view: &'a View,
    object: &'a ObjectRef,
    meta: &'a Meta,
    spec: &'a VolumeSpec,
    inputs: &'a Inputs,
}

/// A VM that may be given a volume.
struct Claimant {
    holder: Holder,
    /// Whether its specification names the volume, and to write.
    wants_to_write: bool,
}

impl Volume<'_> {
    // ------------------------------------------------------------------------------------------------- holders

    /// Who has the volume from now on, and what a change of that rests on. An owned one is its owner's.
    ///
    /// Only a VM whose placement has it keeps it. Others have it in one order, by name, for all volumes: so two VMs that
    /// want two volumes do not each get one and wait for the other's.
    fn give(&self, before: &[Holder]) -> (Vec<Holder>, Vec<Key>) {
        if self.meta.owner.is_some() {
            return (Vec::new(), Vec::new());
        }
        let kept: Vec<Claimant> = before.iter().filter_map(|holder| self.keeps(holder)).collect();
        let mut holders: Vec<Holder> = kept.iter().map(|claimant| claimant.holder.clone()).collect();
        if let ([claimant], [holder]) = (kept.as_slice(), holders.as_mut_slice()) {
            holder.read_only &= !claimant.wants_to_write;
        }
        let is_new = |vm: &&ObjectRef| kept.iter().all(|claimant| claimant.holder.vm != **vm);
        let others = self.view.referrers(self.object).filter(|other| other.kind == Kind::Vm).filter(is_new);
        let mut new = 0;
        let is_given = self.meta.deleting_since.is_none() && !moves::is_leaving(self.view, self.object);
        for vm in others.filter(|_| is_given) {
            let Some((uid, disk)) = names(self.view, vm, self.object) else { continue };
            let is_free =
                holders.is_empty() || (disk.read_only && holders.iter().all(|holder| holder.read_only));
            let holder = Holder { vm: vm.clone(), uid, read_only: disk.read_only };
            let is_known = before.contains(&holder);
            if is_free && (is_known || new < NEW_HOLDERS_MAX) {
                new += usize::from(!is_known);
                holders.push(holder);
            }
        }
        let changed = before
            .iter()
            .filter(|holder| !holders.contains(holder))
            .chain(holders.iter().filter(|holder| !before.contains(holder)))
            .map(|holder| &holder.vm);
        let rests_on = changed.flat_map(|vm| [Key::Asked(vm.clone()), Key::Decided(vm.clone())]).collect();
        (holders, rests_on)
    }

    /// The holder as it stays, because its machine may use the volume; `None` for one that is like any other.
    fn keeps(&self, holder: &Holder) -> Option<Claimant> {
        if unreadable_key(self.view, &holder.vm).is_some() {
            return Some(Claimant { holder: holder.clone(), wants_to_write: false });
        }
        let is_it = self.view.asked(&holder.vm).is_some_and(|asked| asked.meta.uid == holder.uid);
        let used = vm::placement(self.view, &holder.vm).filter(|_| is_it);
        let used = used.and_then(|placement| placement.disks.iter().find(|disk| self.is_on(disk)))?;
        let named = names(self.view, &holder.vm, self.object).map(|(_, disk)| disk);
        let wants_to_write = named.is_some_and(|disk| !disk.read_only);
        Some(Claimant { holder: Holder { read_only: used.read_only, ..holder.clone() }, wants_to_write })
    }

    fn is_on(&self, disk: &PlacedDisk) -> bool {
        disk.volume == VolumeId::new(self.meta.uid)
    }

    // ------------------------------------------------------------------------------------------------- placing

    /// Makes the volume where it belongs, once that is known. The error is the reason to wait.
    fn place(&self, given: &VolumeChoice) -> Result<Plan, WaitingOn> {
        let Some((worker, because)) = self.find_worker(given)? else { return Ok(Plan::rest()) };
        let (source, source_size, of_source) = self.source(worker)?;
        let size = self.spec.size.unwrap_or(source_size);
        if size < source_size {
            return Err(WaitingOn::DiskTooSmall { size_min: source_size });
        }
        let assigned = AssignedVolume {
            sequence: 1,
            generation: self.meta.generation,
            name: self.object.name.clone(),
            wanted: WantedVolume::Present,
            size,
            source,
            arriving: None,
        };
        let host_object = HostObject { kind: Kind::Volume, uid: self.meta.uid };
        Ok(Plan {
            rests_on: because
                .into_iter()
                .chain(of_source)
                .chain([Key::Observed(worker, host_object)])
                .collect(),
            waiting_on: OnHost::of(self.view, worker, self.meta.uid).wait(&assigned),
            writes: vec![Write::put(Key::Assigned(worker, host_object), Assigned::Volume(assigned))],
            choice: Some(Choice::Volume(VolumeChoice { worker: Some(worker), ..given.clone() })),
            ..Plan::rest()
        })
    }

    /// Its end is asked for before it was made, and waits for a VM that was promised it, and cannot start without.
    fn place_for_holder(&self, given: &VolumeChoice) -> Plan {
        let ends = self.tear_down(given);
        match self.place(given) {
            Ok(plan) if plan.choice.is_some() => plan,
            Ok(_) => ends,
            Err(reason) => {
                Plan { waiting_on: ends.waiting_on.iter().cloned().chain([reason]).collect(), ..ends }
            }
        }
    }

    /// The worker that the volume is to be made on, with what that rests on; `None` while nobody needs it.
    fn find_worker(&self, given: &VolumeChoice) -> Result<Option<(WorkerId, Vec<Key>)>, WaitingOn> {
        if let Some(owner) = &self.meta.owner {
            // Its owner writes it in the transaction that places itself, so without is a moment, or a damaged store.
            return Ok(placed_with(self.view, self.meta.uid, &owner.object));
        }
        if let Some(name) = &self.spec.worker {
            let worker = ObjectRef::new(Kind::Worker, name.clone());
            let id = self.view.living(&worker).and_then(|_| self.view.worker_id(&worker));
            let id = id.ok_or_else(|| WaitingOn::Missing { object: worker.clone() })?;
            return Ok(Some((id, vec![Key::Asked(worker)])));
        }
        if let Some(name) = &self.spec.snapshot {
            let snapshot = ObjectRef::new(Kind::Snapshot, name.clone());
            let worker = worker_of(self.view, &snapshot);
            return Ok(worker.map(|worker| (worker, vec![Key::Decided(snapshot)])));
        }
        Ok(given.holders.iter().find_map(|holder| placed_with(self.view, self.meta.uid, &holder.vm)))
    }

    /// What the volume is made from on `worker`, how large that is, and what this rests on.
    fn source(&self, worker: WorkerId) -> Result<(Source, ByteSize, Vec<Key>), WaitingOn> {
        if let Some(name) = &self.spec.image {
            let image = ObjectRef::new(Kind::Image, name.clone());
            let Some(Spec::Image(spec)) = self.view.asked(&image).map(|asked| &asked.spec) else {
                return Err(WaitingOn::Missing { object: image });
            };
            let version = self.spec.image_version.as_ref().unwrap_or(&spec.current);
            let found = spec.version(version);
            let missing = || WaitingOn::ImageVersion { image: name.clone(), version: version.clone() };
            let root = found.ok_or_else(missing)?.root.clone();
            let size = root.size;
            return Ok((Source::Image(root), size, vec![Key::Asked(image)]));
        }
        let Some(name) = &self.spec.snapshot else {
            return Ok((Source::Blank(self.spec.filesystem), ByteSize::default(), Vec::new()));
        };
        let snapshot = ObjectRef::new(Kind::Snapshot, name.clone());
        let Some(asked) = self.view.living(&snapshot) else {
            return Err(WaitingOn::Missing { object: snapshot });
        };
        let size = match self.view.decided(&snapshot).map(|decided| &decided.choice) {
            Some(Choice::Snapshot(choice)) if is_present(self.view, Some(worker), asked.meta.uid) => {
                choice.size
            }
            _ => return Err(WaitingOn::Source { object: snapshot }),
        };
        let there = Key::Observed(worker, HostObject { kind: Kind::Volume, uid: asked.meta.uid });
        let rests_on = vec![Key::Asked(snapshot.clone()), Key::Decided(snapshot), there];
        Ok((Source::Disk(VolumeId::new(asked.meta.uid)), size, rests_on))
    }

    // ------------------------------------------------------------------------------------------------- keeping

    /// Lets the assignment follow what is asked: its size, and where it is.
    fn keep(&self, worker: WorkerId, given: &VolumeChoice) -> Plan {
        let on_host = OnHost::of(self.view, worker, self.meta.uid);
        let Some(assigned) = on_host.assigned else {
            // Absence never acts: an assignment that vanished is reported, not made up.
            return Plan::wait(WaitingOn::Unreadable { key: on_host.key.to_string() });
        };
        let size = self.spec.size.unwrap_or(assigned.size);
        if size < assigned.size {
            return Plan::wait(WaitingOn::DiskTooSmall { size_min: assigned.size });
        }
        let next = AssignedVolume { generation: self.meta.generation, size, ..assigned.clone() };
        // A disk that is held grows when it has arrived.
        if next == *assigned || assigned.wanted != WantedVolume::Present {
            return self.carry(worker, given, on_host.wait(assigned));
        }
        let next = AssignedVolume { sequence: assigned.sequence + 1, ..next };
        Plan {
            waiting_on: on_host.wait(&next),
            writes: vec![Write::put(on_host.key.clone(), Assigned::Volume(next))],
            ..Plan::rest()
        }
    }

    /// The next step of its move, if it is to be elsewhere; and of its copies.
    fn carry(&self, worker: WorkerId, given: &VolumeChoice, waiting_on: Vec<WaitingOn>) -> Plan {
        if self.meta.owner.is_some() {
            return Plan { waiting_on, ..Plan::rest() };
        }
        let turn = match &self.spec.copies {
            Some(copies) if is_present(self.view, Some(worker), self.meta.uid) => {
                copies::take_turn(self.view, self.object, self.meta, copies, given, self.inputs)
            }
            _ => copies::Turn::default(),
        };
        let held = given
            .holders
            .first()
            .map(|holder| WaitingOn::VolumeHeld { volume: self.object.name.clone(), by: holder.vm.clone() });
        let step = Moving {
            view: self.view,
            uid: self.meta.uid,
            worker,
            elsewhere: given.elsewhere,
            asked: self.spec.worker.as_ref(),
            used: held.or_else(|| made_from(self.view, self.object)),
            base: None,
            quarantine: true,
        }
        .next();
        let (worker, elsewhere) = step.workers.unwrap_or((worker, given.elsewhere));
        let copied = turn.copied.or(given.copied);
        let next = VolumeChoice { worker: Some(worker), elsewhere, copied, ..given.clone() };
        Plan {
            waiting_on: waiting_on.into_iter().chain(step.waiting_on).collect(),
            writes: step.writes.into_iter().chain(turn.writes).collect(),
            rests_on: step.rests_on,
            choice: (next != *given).then_some(Choice::Volume(next)),
            again: turn.again,
            ..Plan::rest()
        }
    }

    fn tear_down(&self, given: &VolumeChoice) -> Plan {
        if let Some(holder) = given.holders.first() {
            let (volume, by) = (self.object.name.clone(), holder.vm.clone());
            return Plan::wait(WaitingOn::VolumeHeld { volume, by });
        }
        if let Some(child) = self.view.children(self.meta.uid).next() {
            let writes = copies::end_all(self.view, self.meta.uid, self.inputs);
            return Plan { writes, ..Plan::wait(WaitingOn::Child { child: child.clone() }) };
        }
        if let Some(reason) = made_from(self.view, self.object) {
            return Plan::wait(reason);
        }
        given.worker.map_or_else(Plan::end, |worker| {
            moves::tear_down(self.view, self.meta.uid, worker, given.elsewhere)
        })
    }
}

/// The worker of `vm`, if it was placed with the volume of that uid, and what this rests on.
fn placed_with(view: &View, volume: Uid, vm: &ObjectRef) -> Option<(WorkerId, Vec<Key>)> {
    let placement = vm::placement(view, vm)?;
    let has_it = placement.disks.iter().any(|disk| disk.volume == VolumeId::new(volume));
    has_it.then(|| (placement.worker, vec![Key::Decided(vm.clone())]))
}

/// The worker that a volume is on, or will be because one of its holders is placed there, and what this rests on.
#[must_use]
pub fn worker_to_be(view: &View, volume: &ObjectRef) -> Option<(WorkerId, Vec<Key>)> {
    let (asked, choice) = (view.asked(volume)?, choice(view, volume)?);
    match choice.worker {
        Some(worker) => Some((worker, vec![Key::Decided(volume.clone())])),
        None => choice.holders.iter().find_map(|holder| placed_with(view, asked.meta.uid, &holder.vm)),
    }
}

/// How `vm` names `volume`: its uid and the disk.
fn names<'a>(view: &'a View, vm: &ObjectRef, volume: &ObjectRef) -> Option<(Uid, &'a Disk)> {
    let asked = view.living(vm)?;
    let Spec::Vm(spec) = &asked.spec else { return None };
    let disk = spec.disks.iter().find(|disk| disk.volume.as_ref() == Some(&volume.name))?;
    Some((asked.meta.uid, disk))
}
