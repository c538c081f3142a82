//! What must hold, computed without the deciders: after every step the rules of safety, and when it is calm the goal.
//!
//! The oracle sees the store as it is, at its newest revision. It shares the types of the view with the shipped code,
//! and none of its decisions.

mod roles;

use std::collections::{BTreeMap, BTreeSet};

use lightbyte_api::address::InterfaceId;
use lightbyte_api::assigned::HostObject;
use lightbyte_api::kinds::vm::{self, Placement};
use lightbyte_api::records::Record;
use lightbyte_api::{Choice, Key, Kind, ObjectRef, Spec, Uid, VolumeId, WorkerId};
use lightbyte_plan::agent::Step;
use lightbyte_plan::view::View;
use lightbyte_plan::{Transaction, Write, status};
use lightbyte_store::MemoryCore;
use lightbyte_store::feed::Feed;

pub(crate) use self::roles::check_roles;
use crate::cluster::{Checked, Violation};
use crate::worker::{CPUS, MEMORY, Worker};
use crate::{
    balancers, groups, health, leases, moves, placing, preemption, secrets, squatters, volumes, walls,
};

/// Who writes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Writer {
    /// A person, through the API.
    Person,
    /// The leader, in this run of its server.
    Leader(Uid),
    /// A server that wants to lead.
    Candidate,
    /// A worker's report.
    Worker(WorkerId),
    /// A worker's registration.
    Registration(WorkerId),
    /// A server, for a worker's liveness.
    Server,
}

/// What is known independently of the deciders.
#[derive(Default)]
pub(crate) struct Oracle {
    truth: Feed,
    checked: u64,
    /// Acknowledged objects with the generation that was acknowledged last.
    acknowledged: BTreeMap<Uid, (ObjectRef, u64)>,
    /// Everything whose end was ever asked for.
    ends_asked: BTreeSet<Uid>,
    /// Everything whose end was acknowledged.
    ends_acknowledged: BTreeSet<Uid>,
    owners: BTreeMap<Uid, Uid>,
    /// How often each disk was written to by a guest.
    pub(crate) written: BTreeMap<VolumeId, u64>,
}

pub(crate) fn violated<T>(rule: &str, what: impl std::fmt::Display) -> Result<T, Violation> {
    Err(Violation(format!("{rule}: {what}")))
}

impl Oracle {
    /// The store as it is.
    pub(crate) const fn truth(&self) -> &View {
        self.truth.view()
    }

    /// Follows the store to its newest revision.
    pub(crate) fn follow(&mut self, core: &MemoryCore) {
        if core.revision() <= self.truth().revision() {
            return;
        }
        match core.events("", self.truth.next_revision(), usize::MAX) {
            Ok(batches) => batches.iter().for_each(|batch| drop(self.truth.apply(batch))),
            Err(_) => drop(core.list("", None).map(|listing| self.truth.relist(&listing))),
        }
    }

    /// A person's request for `object` was acknowledged.
    pub(crate) fn acknowledged(&mut self, decision: &Transaction) {
        for (key, write) in &decision.writes {
            if let (Key::Asked(object), Write::Put(_, Record::Asked(asked))) = (key, write) {
                let (uid, generation) = (asked.meta.uid, asked.meta.generation);
                let known = self.acknowledged.entry(uid).or_insert_with(|| (object.clone(), generation));
                known.1 = known.1.max(generation);
                if asked.meta.deleting_since.is_some() {
                    self.ends_acknowledged.insert(uid);
                }
            }
        }
    }

    /// A person asks for the end of what is `object` in `view`.
    pub(crate) fn deletion_asked(&mut self, view: &View, object: &ObjectRef) {
        self.ends_asked.extend(view.asked(object).map(|asked| asked.meta.uid));
    }

    /// A commit lets members of groups go.
    pub(crate) fn members_let_go(&mut self, decision: &Transaction) -> Checked {
        let ends = groups::ends_of(decision, self.truth())?;
        self.ends_asked.extend(ends);
        Ok(())
    }

    fn end_was_asked(&self, uid: Uid) -> bool {
        self.ends_asked.contains(&uid)
            || moves::is_old_copy(self.truth(), uid)
            || self.owners.get(&uid).is_some_and(|owner| self.ends_asked.contains(owner))
    }

    /// Rule 13: nothing is removed from a host unless somebody asked for its end.
    pub(crate) fn allow(&self, object: HostObject, step: &Step, at: usize, workers: &[Worker]) -> Checked {
        let disk = VolumeId::new(object.uid);
        match step {
            Step::RemoveDisk | Step::Forget | Step::QuarantineDisk if self.end_was_asked(object.uid) => {
                Ok(())
            }
            Step::RemoveDisk | Step::QuarantineDisk if moves::is_elsewhere(disk, at, workers) => Ok(()),
            // A worker may forget a disk that it has no more.
            Step::Forget
                if object.kind == Kind::Volume
                    && !moves::has(&workers[at], disk)
                    && moves::is_known_elsewhere(disk, at, workers) =>
            {
                Ok(())
            }
            Step::RemoveDisk | Step::Forget | Step::QuarantineDisk => violated(
                "rule 13",
                format!("{step:?} of {} {}, whose end nobody asked for", object.kind, object.uid),
            ),
            _ => Ok(()),
        }
    }

    // ------------------------------------------------------------------------------------------- after each step

    /// The rules that the store alone can break.
    pub(crate) fn check_store(&mut self, core: &MemoryCore) -> Checked {
        if core.revision() == self.checked {
            return Ok(());
        }
        self.checked = core.revision();
        let view = self.truth.view();
        for object in view.objects_of(Kind::Volume).chain(view.objects_of(Kind::Snapshot)) {
            if let Some(asked) = view.asked(object) {
                self.owners.extend(asked.meta.owner.as_ref().map(|owner| (asked.meta.uid, owner.uid)));
                if moves::is_old_copy(view, asked.meta.uid) {
                    // Its volume has let it go, whether that can be read later or not.
                    self.ends_asked.insert(asked.meta.uid);
                }
            }
        }
        check_capacity(view)?;
        preemption::check_promises(view)?;
        check_addresses(view)?;
        walls::check_ports(view)?;
        volumes::check_holders(view)?;
        secrets::check(view)?;
        self.check_acknowledged(view)
    }

    /// Rules 7 and 8: what was acknowledged is there until its end is asked for.
    fn check_acknowledged(&self, view: &View) -> Checked {
        for (uid, (object, generation)) in &self.acknowledged {
            if view.unreadable(&Key::Asked(object.clone())).is_some() {
                continue;
            }
            match view.asked(object).filter(|asked| asked.meta.uid == *uid) {
                None if !self.end_was_asked(*uid) => {
                    return violated("rule 7", format!("{object} {uid} was acknowledged and is gone"));
                }
                Some(asked)
                    if asked.meta.deleting_since.is_none() && self.ends_acknowledged.contains(uid) =>
                {
                    return violated(
                        "rule 8",
                        format!("the end of {object} was acknowledged and is not asked for"),
                    );
                }
                Some(asked) if asked.meta.generation < *generation => {
                    return violated("rule 7", format!("{object} lost generation {generation}"));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The rules that hosts can break: 5 and 6.
    pub(crate) fn check_hosts(&self, workers: &[Worker]) -> Checked {
        let mut vms = BTreeMap::new();
        let mut addresses = BTreeMap::new();
        for (index, worker) in workers.iter().enumerate() {
            let mut checked = Ok(());
            worker.host.each_running(|vm, assigned| {
                if let Some(other) = vms.insert(vm, index) {
                    checked =
                        violated("rule 5", format!("VM {vm} runs on n{} and n{}", other + 1, index + 1));
                }
                for (nic, address) in assigned.nics.iter().filter_map(|nic| Some((nic, nic.address?))) {
                    let other = addresses.insert((nic.bridge.clone(), address), vm);
                    if let Some(other) = other.filter(|other| *other != vm) {
                        checked = violated("rule 6", format!("VMs {vm} and {other} have {address}"));
                    }
                    let own = InterfaceId::of(address);
                    let address6 = nic.ipv6.as_ref().and_then(|ipv6| ipv6.address);
                    if address6.is_some_and(|address| address.octets()[8..] != own.bits().to_be_bytes()) {
                        let why = format!("VM {vm} has {address} and IPv6 of another address");
                        checked = violated("rule 6", why);
                    }
                }
            });
            checked?;
            self.check_host(worker)?;
        }
        volumes::check_machines(workers)?;
        moves::check_hosts(workers, &self.written)
    }

    /// What is on a host was claimed first, and is not withdrawn; and what runs holds its addresses.
    fn check_host(&self, worker: &Worker) -> Checked {
        let view = self.truth.view();
        let reported: BTreeSet<Uid> = view.observed_by(worker.id).map(|object| object.uid).collect();
        if let Some(uid) = worker.host.everything().difference(&reported).next() {
            return violated(
                "claim",
                format!("something of {uid} is on {} and the store shows no report of it", worker.said.name),
            );
        }
        if let Some(blank) = worker.host.disks().iter().find(|volume| worker.lost.contains(volume)) {
            return violated("rule 13", format!("volume {blank} vanished and was made again, blank"));
        }
        let mut checked = Ok(());
        worker.host.each_running(|vm, assigned| {
            for address in assigned.nics.iter().filter_map(|nic| nic.address) {
                let held = view.objects_of(Kind::Network).any(|network| {
                    let key = Key::Address(network.name.clone(), address);
                    view.unreadable(&key).is_some()
                        || view
                            .address_claim(&network.name, address)
                            .is_some_and(|claim| claim.owner == vm.uid())
                });
                if !held {
                    checked = violated("rule 6", format!("VM {vm} runs with {address} and does not hold it"));
                }
            }
        });
        checked
    }

    // -------------------------------------------------------------------------------------------------- the goal

    /// Rule 10: what is asked is so, or cannot be; and nothing else is.
    pub(crate) fn check_goal(&self, workers: &[Worker]) -> Checked {
        let view = self.truth.view();
        if let Err(index) = view.check() {
            return violated("view", format!("the index of {index} differs from the entries"));
        }
        for object in view.objects() {
            self.check_object(view, object, workers)?;
        }
        self.check_leftovers(view, workers)
    }

    fn check_object(&self, view: &View, object: &ObjectRef, workers: &[Worker]) -> Checked {
        let Some(asked) = view.asked(object) else {
            return violated("rule 10", format!("{object} cannot be read"));
        };
        if asked.meta.deleting_since.is_some() {
            let held = matches!(view.decided(object).map(|decided| &decided.choice),
                Some(Choice::Volume(choice)) if !choice.holders.is_empty());
            let named = matches!(object.kind, Kind::Image | Kind::Network | Kind::Secret)
                && view.referrers(object).next().is_some();
            let in_use = held || named || (object.kind == Kind::Secret && secrets::is_shown(view, object));
            return if in_use {
                Ok(())
            } else {
                violated("rule 8", format!("{object} is still there: {}", told(view, object)))
            };
        }
        if let Some(owner) = &asked.meta.owner
            && view.object_of(owner.uid).is_none()
        {
            return violated("rule 10", format!("{object} outlived its owner {}", owner.object));
        }
        groups::check_group(view, object, None)?;
        balancers::check_goal(view, object, workers)?;
        secrets::check_goal(view, object)?;
        let Spec::Vm(spec) = &asked.spec else { return volumes::check_goal(view, object, asked, workers) };
        match placement(view, object) {
            None => match possible(view, object, spec, |_| true) {
                Some(how) => {
                    violated("rule 10", format!("{object} could be placed ({how}): {}", told(view, object)))
                }
                None => preemption::check_goal(view, object, spec),
            },
            Some(placement) => {
                // A volume that is named may be gone, or never have been; one that it is placed with may not.
                let named = asked.spec.references().into_iter().filter(|named| named.kind != Kind::Volume);
                let placed = placement.disks.iter().map(|disk| disk.volume_name.clone());
                let placed = placed.map(|name| ObjectRef::new(Kind::Volume, name));
                let named: Vec<ObjectRef> = named.chain(placed).collect();
                if let Some(gone) = named.iter().find(|named| view.asked(named).is_none()) {
                    return violated(
                        "rule 13",
                        format!("{object} is placed and {gone} that it uses is gone"),
                    );
                }
                walls::check_goal(view, object, asked.meta.uid, workers)?;
                leases::check_goal(view, object, asked.meta.uid, placement, workers)?;
                check_placed(view, object, asked.meta.uid, spec, placement, workers)
            }
        }
    }

    /// Nothing is left of what is gone, neither in the store nor on hosts.
    fn check_leftovers(&self, view: &View, workers: &[Worker]) -> Checked {
        for (key, _) in view.keys() {
            let orphan = match key {
                Key::Decided(object) => view.asked(object).is_none(),
                Key::Assigned(_, object) | Key::Observed(_, object) => view.object_of(object.uid).is_none(),
                Key::Address(network, address) => view
                    .address_claim(network, *address)
                    .is_none_or(|claim| view.object_of(claim.owner).is_none()),
                _ => false,
            };
            if orphan {
                return violated("rule 10", format!("{key} belongs to nothing"));
            }
        }
        moves::check_leftovers(view)?;
        for worker in workers {
            for uid in worker.host.everything() {
                if view.object_of(uid).is_none() {
                    return violated(
                        "rule 10",
                        format!("something of {uid} is left on {}", worker.said.name),
                    );
                }
            }
        }
        Ok(())
    }
}

pub(crate) fn told(view: &View, object: &ObjectRef) -> String {
    let waiting = view.decided(object).map(|decided| decided.waiting_on.clone()).unwrap_or_default();
    let state = status::object(view, object).map(|object| object.status.state).unwrap_or_default();
    format!("it is {state} and waits on {waiting:?}")
}

pub(crate) fn placement<'a>(view: &'a View, object: &ObjectRef) -> Option<&'a Placement> {
    match &view.decided(object)?.choice {
        Choice::Vm(choice) => choice.placement.as_ref(),
        _ => None,
    }
}

/// The sum of what is placed on each worker, from the decisions themselves.
fn placed(view: &View, stays: impl Fn(&ObjectRef) -> bool) -> BTreeMap<WorkerId, (u64, u64, u64)> {
    let mut sums: BTreeMap<WorkerId, (u64, u64, u64)> = BTreeMap::new();
    let vms = view.objects_of(Kind::Vm).filter(|vm| stays(vm));
    for placement in vms.filter_map(|object| placement(view, object)) {
        let sum = sums.entry(placement.worker).or_default();
        *sum = (sum.0 + placement.cpus, sum.1 + placement.memory.bytes(), sum.2 + 1);
    }
    sums
}

/// No worker is given more than it has, and ledgers say what is placed.
fn check_capacity(view: &View) -> Checked {
    let all_readable = view.unreadable_keys().next().is_none();
    let sums = placed(view, |_| true);
    for (worker, (cpus, memory, vms)) in &sums {
        let vms_max = view.observed_worker(*worker).and_then(|worker| worker.vms_max);
        if *cpus > CPUS || *memory > MEMORY.bytes() || vms_max.is_some_and(|vms_max| *vms > vms_max) {
            return violated(
                "rule 3",
                format!("worker {worker} has {cpus} CPUs, {memory} bytes and {vms} VMs placed on it"),
            );
        }
    }
    for object in view.objects_of(Kind::Worker).filter(|_| all_readable) {
        let Some(worker) = view.worker_id(object) else { continue };
        let Some(ledger) = view.worker_ledger(worker) else { continue };
        let sum = sums.get(&worker).copied().unwrap_or_default();
        if (ledger.cpus, ledger.memory.bytes(), ledger.vms) != sum {
            return violated("rule 3", format!("the ledger of {object} says {ledger:?}, placed is {sum:?}"));
        }
    }
    Ok(())
}

/// Every placed network card holds its address.
fn check_addresses(view: &View) -> Checked {
    for object in view.objects_of(Kind::Vm) {
        let (Some(placement), Some(asked)) = (placement(view, object), view.asked(object)) else { continue };
        for (nic, address) in placement.nics.iter().filter_map(|nic| Some((nic, nic.address?))) {
            let key = Key::Address(nic.network.clone(), address);
            let held =
                view.address_claim(&nic.network, address).is_some_and(|claim| claim.owner == asked.meta.uid);
            if !held && view.unreadable(&key).is_none() {
                return violated("rule 6", format!("{object} has {address} and does not hold it"));
            }
        }
    }
    Ok(())
}

/// A plain search for a place of a VM, with capacity from the decisions and not from the ledgers.
pub(crate) struct Search<'a> {
    view: &'a View,
    vm: &'a ObjectRef,
    spec: &'a vm::Spec,
    /// The workers that its volumes are on.
    places: BTreeSet<WorkerId>,
    architecture: &'a str,
    placed: BTreeMap<WorkerId, (u64, u64, u64)>,
}

impl<'a> Search<'a> {
    /// For a VM whose image and volumes are there.
    pub(crate) fn of(view: &'a View, vm: &'a ObjectRef, spec: &'a vm::Spec) -> Option<Search<'a>> {
        Search::among(view, vm, spec, |_| true)
    }

    /// The same, as if those who do not stay were gone.
    pub(crate) fn among(
        view: &'a View,
        vm: &'a ObjectRef,
        spec: &'a vm::Spec,
        stays: impl Fn(&ObjectRef) -> bool,
    ) -> Option<Search<'a>> {
        let meta = &view.asked(vm)?.meta;
        let image = ObjectRef::new(Kind::Image, spec.image.clone());
        let image_asked = if meta.owner.is_some() { view.asked(&image)? } else { view.living(&image)? };
        let Spec::Image(image) = &image_asked.spec else { return None };
        let version = spec.image_version.as_ref().unwrap_or(&image.current);
        let version = image.versions.iter().find(|found| found.version == *version)?;
        let places = volumes::places(view, meta.uid, spec)?;
        let placed = placed(view, stays);
        Some(Search { view, vm, spec, places, architecture: &version.architecture, placed })
    }

    /// Whether it could go to `object`.
    pub(crate) fn fits(&self, object: &ObjectRef) -> bool {
        let Search { view, vm, spec, .. } = self;
        let Some(asked) = view.living(object) else { return false };
        let worker = WorkerId::new(asked.meta.uid);
        let (Spec::Worker(worker_spec), Some(observed)) = (&asked.spec, view.observed_worker(worker)) else {
            return false;
        };
        let (mut cpus, mut memory, mut vms) = self.placed.get(&worker).copied().unwrap_or_default();
        let uid = view.asked(vm).map(|asked| asked.meta.uid);
        if let Some(kept) = uid.and_then(|uid| preemption::kept_from(view, worker, uid, spec.priority)) {
            (cpus, memory, vms) = (cpus + kept.cpus, memory + kept.memory.bytes(), vms + 1);
        }
        self.places.iter().all(|place| *place == worker)
            && !worker_spec.cordoned
            && !worker_spec.draining
            && placing::may_go(view, vm, spec, object)
            && view.alive(worker).is_some()
            && !walls::takes_ports(view, worker, spec)
            && observed.architecture == self.architecture
            && cpus + spec.cpus <= observed.cpus
            && observed.vms_max.is_none_or(|vms_max| vms < vms_max)
            && memory + spec.memory.bytes() <= observed.memory.bytes()
    }
}

/// How a VM could be placed, if it could, and if those who do not stay were gone.
pub(crate) fn possible(
    view: &View,
    vm: &ObjectRef,
    spec: &vm::Spec,
    stays: impl Fn(&ObjectRef) -> bool,
) -> Option<String> {
    let search = Search::among(view, vm, spec, stays)?;
    for nic in &spec.nics {
        let network = ObjectRef::new(Kind::Network, nic.network.clone());
        let Spec::Network(network) = &view.living(&network)?.spec else { return None };
        let free = |address| network.may_give(address) && view.address_claim(&nic.network, address).is_none();
        let found = match (network.pool(), nic.address) {
            (Some(_), Some(address)) => free(address),
            (Some(pool), None) => pool.addresses().any(free),
            (None, address) => !leases::asks_for_pool(spec) && address.is_none(),
        };
        if !found {
            return None;
        }
    }
    view.objects_of(Kind::Worker)
        .find(|object| search.fits(object))
        .map(|object| format!("on {}", object.name))
}

/// A placed VM runs, or does not run, on its worker, and the status says so.
fn check_placed(
    view: &View,
    object: &ObjectRef,
    uid: Uid,
    spec: &vm::Spec,
    placement: &Placement,
    workers: &[Worker],
) -> Checked {
    let running = spec.running;
    let host = workers.iter().find(|worker| worker.id == placement.worker);
    let mut runs = false;
    let mut no_bridge = false;
    if let Some(worker) = host {
        worker.host.each_running(|vm, _| runs |= vm.uid() == uid);
        let assigned = view.assigned(placement.worker, HostObject { kind: Kind::Vm, uid });
        if let Some(lightbyte_api::Assigned::Vm(assigned)) = assigned.map(AsRef::as_ref) {
            if assigned.disks.iter().any(|disk| volumes::never_comes(view, workers, disk.volume)) {
                // Whether it runs is chance: it may have been started before its disk went.
                return Ok(());
            }
            no_bridge = assigned.nics.iter().any(|nic| nic.bridge != "br0");
        }
    }
    // A machine that was changed and not started since, or a change that cannot be, is not what the status calls ready
    // or not; whether it runs is.
    let is_settled = is_settled(view, object, uid, placement);
    // Nobody can attach a VM to a bridge that its worker does not have; the status must say that it is not ready.
    // One that its guest shut down stays off until it is asked for again.
    let done = view.observed(placement.worker, HostObject { kind: Kind::Vm, uid });
    let is_off = matches!(done.map(AsRef::as_ref),
        Some(lightbyte_api::Observed::Vm(done)) if done.phase == lightbyte_api::observed::VmPhase::Off);
    if is_off && !host.is_some_and(|worker| worker.powered_off.contains(&lightbyte_api::VmId::new(uid))) {
        return violated(
            "rule 10",
            format!("{object} is off, and nobody shut it down: {}", told(view, object)),
        );
    }
    let is_squatted = squatters::must_wait(view, object, uid)?;
    let expected = running && !no_bridge && !is_off && !is_squatted;
    if runs != expected {
        return violated(
            "rule 10",
            format!("{object} runs: {runs}, asked: {running}: {}", told(view, object)),
        );
    }
    let asked = view.asked(object).map_or(0, |asked| asked.meta.restarts_asked);
    if let Some(lightbyte_api::Observed::Vm(done)) = done.map(AsRef::as_ref)
        && runs
        && done.restarts_done != asked
    {
        return violated(
            "rule 10",
            format!("{object} was restarted {} times, asked {asked}", done.restarts_done),
        );
    }
    let is_sick = match host {
        Some(worker) => health::check_told(view, object, uid, spec, worker)?,
        None => false,
    };
    let ready = status::object(view, object).is_some_and(|object| object.status.ready);
    if is_settled && ready == (running && (no_bridge || is_off || is_squatted || is_sick)) {
        return violated("status", format!("{object} says ready: {ready}: {}", told(view, object)));
    }
    Ok(())
}

/// Whether the machine that is assigned is the one that is asked for.
fn is_settled(view: &View, object: &ObjectRef, uid: Uid, placement: &Placement) -> bool {
    let assigned = view.assigned(placement.worker, HostObject { kind: Kind::Vm, uid });
    let (Some(Spec::Vm(spec)), Some(lightbyte_api::Assigned::Vm(assigned))) =
        (view.asked(object).map(|asked| &asked.spec), assigned.map(AsRef::as_ref))
    else {
        return false;
    };
    let has = |disk: &vm::Disk| {
        let name = |placed: &vm::PlacedDisk| match &disk.volume {
            Some(volume) => placed.volume_name == *volume,
            None => placed.name == disk.name,
        };
        let placed = placement.disks.iter().find(|placed| name(placed)).map(|placed| placed.volume);
        assigned.disks.iter().any(|found| Some(found.volume) == placed && found.read_only == disk.read_only)
    };
    let can_be = spec.firewall.is_none() || assigned.nics.iter().all(|nic| nic.address.is_some());
    can_be
        && (assigned.cpus, assigned.memory, assigned.disks.len())
            == (spec.cpus, spec.memory, spec.disks.len())
        && spec.disks.iter().all(has)
}
