//! Ideal workers: the shipped agent of every worker that is alive, on a host where each step succeeds, after the time that
//! such a step takes. What is in trouble already stays so until something else is asked of it: that it cures itself is not
//! foreseen.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use lightbyte_api::assigned::{Assigned, HostObject};
use lightbyte_api::health::HealthState;
use lightbyte_api::observed::{Lease, Observed, ObservedVm, VmPhase, VolumePhase};
use lightbyte_api::{AssignedVm, Key, Kind, Span, Timestamp, Uid, WorkerId};

use super::fork::Fork;
use crate::agent::address;
use crate::agent::probe::Squatted;
use crate::agent::proxy::Answer;
use crate::agent::{Action, Agent, Facts, Fetched, News, Reply, Saved, Step, Told, VmmState, health};
use crate::delivery;
use crate::planner::{later, since, vm};
use crate::request;
use crate::view::View;

/// How long a guest takes to shut down when it is asked to.
const SHUTDOWN: Span = Span::from_secs(3);
/// After how long a guest that has not said that it is ready is not expected to.
const HANGS_AFTER: Span = Span::from_secs(300);
/// How fast a disk is fetched from another worker, in bytes each millisecond: a gigabit each second.
const FETCHED_BYTES_PER_MILLI: u64 = 125_000;

/// See the module.
pub(super) struct IdealWorkers {
    /// How long a boot takes, from the start of the machine to a guest that is ready.
    boot: Span,
    workers: BTreeMap<WorkerId, IdealWorker>,
    /// What ends and when, in the order in which it began.
    due: BTreeMap<(Timestamp, u64), Due>,
    begun: u64,
    /// What is to be looked at.
    touched: BTreeSet<(WorkerId, HostObject)>,
    /// Workers that are alive, and of which not everything can be read: what they would do nobody knows.
    unforeseen: BTreeSet<WorkerId>,
}

struct IdealWorker {
    agent: Agent,
    /// What does not work, and is left as it is.
    troubled: BTreeSet<HostObject>,
}

struct Due {
    worker: WorkerId,
    object: HostObject,
    event: Event,
}

enum Event {
    StepEnds(Step),
    /// The guest of the machine that was started then is ready.
    GuestReady(Option<Timestamp>),
}

impl IdealWorkers {
    /// The workers of `fork` that are alive, with what they have begun.
    pub(super) fn begin(fork: &Fork, boot: Span) -> IdealWorkers {
        let mut ideal = IdealWorkers {
            boot,
            workers: BTreeMap::new(),
            due: BTreeMap::new(),
            begun: 0,
            touched: BTreeSet::new(),
            unforeseen: BTreeSet::new(),
        };
        let view = fork.view();
        for worker in view.objects_of(Kind::Worker).filter_map(|object| view.worker_id(object)) {
            let now = fork.now();
            let unsettled =
                || view.assigned_to(worker).filter(|object| is_unsettled(view, worker, *object, now));
            if unsettled().next().is_some() && ideal.load(fork, worker) {
                ideal.touched.extend(unsettled().map(|object| (worker, object)));
            }
        }
        ideal
    }

    /// Workers that are alive, and of which not everything can be read.
    pub(super) const fn unforeseen(&self) -> &BTreeSet<WorkerId> {
        &self.unforeseen
    }

    /// When something ends next.
    pub(super) fn next_due(&self) -> Option<Timestamp> {
        self.due.keys().next().map(|(at, _)| *at)
    }

    /// Whether the worker takes part: it is alive, and everything about it can be read.
    fn load(&mut self, fork: &Fork, worker: WorkerId) -> bool {
        if self.workers.contains_key(&worker) {
            return true;
        }
        let view = fork.view();
        if view.alive(worker).is_none() || self.unforeseen.contains(&worker) {
            return false;
        }
        let Some(inventory) = delivery::inventory(view, worker, &delivery::unopened) else {
            self.unforeseen.insert(worker);
            return false;
        };
        let objects = || view.assigned_to(worker).chain(view.observed_by(worker));
        let found = objects().filter_map(|object| Some((object, found(view, worker, object)?)));
        let mut agent = Agent::begin(found);
        let now = fork.now();
        let troubled = objects().filter(|object| is_troubled(view, worker, *object, now)).collect();
        for object in objects().filter(|object| is_starting(view, worker, *object)) {
            self.begin_event(later(fork.now(), self.boot), worker, object, Event::GuestReady(None));
        }
        if agent.deliver(inventory, fork.now()).is_err() {
            return false;
        }
        for object in objects().filter(|object| is_running(view, worker, *object)) {
            agent.guest_ready(object, fork.now(), fork.now());
        }
        self.workers.insert(worker, IdealWorker { agent, troubled });
        true
    }

    /// Delivers what of `keys` concerns workers. One whose life has ended does nothing any more.
    /// `before` is what was there until now.
    pub(super) fn deliver(&mut self, fork: &Fork, before: &View, keys: &[Key]) {
        for key in keys {
            if let Key::Alive(worker) = key {
                self.workers.remove(worker);
            }
            let Key::Assigned(worker, object) = key else { continue };
            let is_new = !self.workers.contains_key(worker);
            if !self.load(fork, *worker) {
                continue;
            }
            let Some(ideal) = self.workers.get_mut(worker) else { continue };
            let was_troubled =
                ideal.troubled.remove(object) || is_troubled(before, *worker, *object, fork.now());
            if was_troubled && !is_asked_anew(before, fork.view(), *worker, *object) {
                ideal.troubled.insert(*object);
            }
            let delivery = delivery::change(fork.view(), *worker, key).filter(|_| !is_new);
            if let Some(delivery) = delivery {
                // Revisions only rise here, so nothing is refused.
                let _ = ideal.agent.deliver(delivery, fork.now());
            }
            self.touch(fork.view(), *worker, *object);
        }
        // A proxy's own assignment may be as new.
        keys.iter().for_each(|key| self.deliver_topologies(fork, key));
    }

    /// Delivers what is decided for a load balancer to its proxies.
    fn deliver_topologies(&mut self, fork: &Fork, key: &Key) {
        if !matches!(key, Key::Decided(_)) {
            return;
        }
        let workers: BTreeSet<WorkerId> = delivery::concerned(fork.view(), key).into_iter().collect();
        for worker in workers {
            if !self.load(fork, worker) {
                continue;
            }
            for delivery in delivery::topologies(fork.view(), worker, key, &delivery::unopened) {
                let News::Topology { object, .. } = delivery.news else { continue };
                if let Some(ideal) = self.workers.get_mut(&worker) {
                    let _ = ideal.agent.deliver(delivery, fork.now());
                }
                self.touched.insert((worker, object));
            }
        }
    }

    /// Does what is to be done now; reports go into `fork`.
    pub(super) fn turn(&mut self, fork: &mut Fork) {
        while let Some(entry) = self.due.first_entry() {
            if entry.key().0 > fork.now() {
                break;
            }
            let Due { worker, object, event } = entry.remove();
            self.end_event(fork, worker, object, event);
        }
        while let Some((worker, object)) = self.touched.pop_first() {
            let Some(ideal) = self.workers.get_mut(&worker) else { continue };
            if ideal.troubled.contains(&object) || !fork.spend(1) {
                continue;
            }
            for action in ideal.agent.actions_of(object, fork.now()) {
                self.act(fork, worker, object, action);
            }
        }
    }

    fn act(&mut self, fork: &mut Fork, worker: WorkerId, object: HostObject, action: Action) {
        match action {
            Action::Report(report) => {
                let stored = request::report(fork.view(), worker, &report).map(request::Outcome::transaction);
                let reply = match stored {
                    Ok(Some(transaction)) => Reply::Accepted { revision: fork.commit(transaction) },
                    _ => Reply::Lost,
                };
                let is_lost = reply == Reply::Lost;
                if let Some(ideal) = self.workers.get_mut(&worker) {
                    ideal.agent.reply(object, reply);
                }
                if !is_lost {
                    self.touched.insert((worker, object));
                }
            }
            Action::Step(step) => match self.lasts(worker, object, &step) {
                Some(span) => {
                    self.begin_event(later(fork.now(), span), worker, object, Event::StepEnds(step));
                }
                None => self.end_event(fork, worker, object, Event::StepEnds(step)),
            },
            Action::Check(_) => {
                if let Some(ideal) = self.workers.get_mut(&worker) {
                    ideal.agent.checked(object, health::Outcome::Passed, fork.now());
                }
                self.touched.insert((worker, object));
            }
            Action::Address(_) => {
                if let Some(ideal) = self.workers.get_mut(&worker) {
                    ideal.agent.addressed(object, address::Told::Done { left: true }, fork.now());
                }
                self.touched.insert((worker, object));
            }
            Action::Proxy(told) => {
                if let Some(ideal) = self.workers.get_mut(&worker) {
                    let does = |told: Told| told.revision;
                    let known = ideal
                        .agent
                        .desk(&object)
                        .and_then(|desk| desk.proxy())
                        .map_or(0, |said| said.revision);
                    // It takes what it is told, and is busy with nobody.
                    let revision = told.map_or(known, does);
                    let answer = Answer::Does { revision, in_flight: Vec::new(), uptime_ms: u64::MAX };
                    ideal.agent.answered(object, answer, fork.now());
                }
                self.touched.insert((worker, object));
            }
        }
    }

    fn begin_event(&mut self, at: Timestamp, worker: WorkerId, object: HostObject, event: Event) {
        self.begun += 1;
        self.due.insert((at, self.begun), Due { worker, object, event });
    }

    fn end_event(&mut self, fork: &Fork, worker: WorkerId, object: HostObject, event: Event) {
        let now = fork.now();
        let Some(ideal) = self.workers.get_mut(&worker) else { return };
        let Some(desk) = ideal.agent.desk(&object) else { return };
        match event {
            Event::StepEnds(step) => {
                let facts = after(desk.facts().clone(), &step, desk.saved_volume().map(|volume| volume.size));
                ideal.agent.observed(object, facts, Some(&step), now);
                if step == Step::Start {
                    let at = later(now, self.boot);
                    self.begin_event(at, worker, object, Event::GuestReady(Some(now)));
                }
            }
            Event::GuestReady(started_at) if desk.volatile().started_at == started_at => {
                ideal.agent.guest_ready(object, now, now);
            }
            // Another machine runs by now.
            Event::GuestReady(_) => {}
        }
        self.touch(fork.view(), worker, object);
    }

    /// How long a step lasts; nothing for what is done at once.
    fn lasts(&self, worker: WorkerId, object: HostObject, step: &Step) -> Option<Span> {
        match step {
            Step::Shutdown => Some(SHUTDOWN),
            Step::FetchDisk => {
                let desk = self.workers.get(&worker)?.agent.desk(&object)?;
                let has_some = desk.facts().arriving.is_some();
                let bytes = desk.saved_volume().filter(|_| !has_some)?.size.bytes();
                Some(Span::from_millis(bytes / FETCHED_BYTES_PER_MILLI))
            }
            _ => None,
        }
    }

    /// Something of `object` has changed: it is looked at, and what rests on it or it rests on.
    fn touch(&mut self, view: &View, worker: WorkerId, object: HostObject) {
        self.touched.insert((worker, object));
        let Some(named) = view.object_of(object.uid) else { return };
        let Some(asked) = view.asked(named) else { return };
        let references = asked.spec.references();
        let owner = asked.meta.owner.as_ref().map(|owner| &owner.object);
        let around =
            view.referrers(named).chain(view.children(asked.meta.uid)).chain(&references).chain(owner);
        let Some(ideal) = self.workers.get(&worker) else { return };
        for neighbour in around.filter(|neighbour| is_on_hosts(neighbour.kind)) {
            let uid = view.asked(neighbour).map(|asked| asked.meta.uid);
            let on_host = uid.map(|uid: Uid| HostObject::of(neighbour.kind, uid));
            if let Some(on_host) = on_host.filter(|on_host| ideal.agent.desk(on_host).is_some()) {
                self.touched.insert((worker, on_host));
            }
        }
    }
}

const fn is_on_hosts(kind: Kind) -> bool {
    matches!(kind, Kind::Vm | Kind::Volume | Kind::Snapshot)
}

/// The host after a step that succeeded. `size` is that of a volume as it is assigned.
fn after(mut facts: Facts, step: &Step, size: Option<lightbyte_api::ByteSize>) -> Facts {
    match step {
        Step::Save(saved) => {
            facts.saved = Some(saved.clone());
            facts.taps_complete &= virtual_address(&facts) == facts.virtual_address;
        }
        Step::EnsureTaps => {
            (facts.taps, facts.taps_complete) = (true, true);
            facts.virtual_address = virtual_address(&facts);
        }
        Step::Probe => facts.probed = true,
        Step::RemoveTaps => {
            (facts.taps, facts.taps_complete, facts.probed) = (false, false, false);
            facts.virtual_address = None;
        }
        Step::Start => {
            facts.vmm = VmmState::Running;
            facts.leases = leases(&facts);
        }
        Step::Shutdown => facts.vmm = VmmState::Exited,
        Step::Kill => {
            facts.vmm = VmmState::Absent;
            facts.leases.clear();
        }
        Step::CreateDisk { .. } | Step::GrowDisk { .. } => facts.disk = size,
        Step::TakeDisk => (facts.disk, facts.arriving) = (size, None),
        Step::FetchDisk => {
            let held = facts.saved.as_ref().is_some_and(|saved| match &saved.assigned {
                Assigned::Volume(volume) => volume.arriving.as_ref().is_some_and(|arriving| arriving.held),
                Assigned::Vm(_) => false,
            });
            facts.arriving = Some(Fetched { complete: true, held });
        }
        Step::DropFetched => facts.arriving = None,
        Step::QuarantineDisk | Step::RemoveDisk => facts.disk = None,
        Step::Forget => facts = Facts::default(),
        Step::Look => {}
    }
    facts
}

/// The virtual address that a VM is to have.
fn virtual_address(facts: &Facts) -> Option<Ipv4Addr> {
    Some(facts.saved.as_ref()?.virtual_address()?.address)
}

/// Whatever a DHCP server would give: that it gives something is all that counts.
fn leases(facts: &Facts) -> Vec<Lease> {
    let Some(Saved { assigned: Assigned::Vm(vm), .. }) = &facts.saved else { return Vec::new() };
    let by_dhcp = (0..).zip(&vm.nics).filter(|(_, nic)| nic.address.is_none());
    by_dhcp.map(|(nic, _)| Lease { nic, address: Ipv4Addr::UNSPECIFIED }).collect()
}

// ------------------------------------------------------------------------------------------- what is there already

/// Whether a worker has not yet done what it was told, or something is under way on it.
fn is_unsettled(view: &View, worker: WorkerId, object: HostObject, now: Timestamp) -> bool {
    let Some(assigned) = view.assigned(worker, object) else { return false };
    let is_behind = |sequence: u64| sequence < assigned.sequence();
    match view.observed(worker, object).map(AsRef::as_ref) {
        None => !assigned.is_removal(),
        Some(Observed::Vm(vm)) => {
            let is_moving = matches!(vm.phase, VmPhase::Claimed | VmPhase::Starting | VmPhase::Stopping);
            // A guest that runs may still have its first check before it.
            let is_unsure = vm.health.as_ref().is_some_and(|health| health.state == HealthState::Starting);
            let is_moving = (is_moving || is_unsure) && !is_troubled(view, worker, object, now);
            is_behind(vm.sequence) || assigned.is_removal() || is_moving || is_leaving(assigned, vm)
        }
        Some(Observed::Volume(volume)) => {
            let is_moving = matches!(volume.phase, VolumePhase::Claimed | VolumePhase::Copied);
            is_behind(volume.sequence) || assigned.is_removal() || is_moving
        }
        Some(Observed::Worker(_)) => false,
    }
}

/// Whether it is to leave its virtual address, and has not yet.
fn is_leaving(assigned: &Assigned, observed: &ObservedVm) -> bool {
    let Assigned::Vm(assigned) = assigned else { return false };
    let has = assigned.nics.first().and_then(|nic| nic.virtual_address);
    let is_to_leave = has.is_some_and(|has| has.leaves_within.is_some());
    is_to_leave && !observed.virtual_address.is_some_and(|has| has.left)
}

/// Whether what it was told is known not to work, or has been under way for too long to come to an end.
fn is_troubled(view: &View, worker: WorkerId, object: HostObject, now: Timestamp) -> bool {
    let Some(assigned) = view.assigned(worker, object) else { return false };
    let (sequence, is_bad) = match view.observed(worker, object).map(AsRef::as_ref) {
        Some(Observed::Vm(vm)) => {
            let is_ill = vm.health.as_ref().is_some_and(|health| health.problem.is_some());
            // One that stays off does so by what its agent has saved.
            let has_ended = vm.phase == VmPhase::Crashed;
            let hangs = vm.phase == VmPhase::Starting && since(vm.since, now) > HANGS_AFTER;
            let is_bad = is_ill || has_ended || hangs || vm.problem.is_some() || !vm.squatters.is_empty();
            (vm.sequence, is_bad)
        }
        Some(Observed::Volume(volume)) => {
            (volume.sequence, volume.phase == VolumePhase::Lost || volume.problem.is_some())
        }
        _ => return false,
    };
    is_bad && sequence >= assigned.sequence() && !assigned.is_removal()
}

/// Whether something else is asked of it than before. Rules of its firewall that follow the labels of others are not.
fn is_asked_anew(before: &View, after: &View, worker: WorkerId, object: HostObject) -> bool {
    let (Some(was), Some(is)) = (before.assigned(worker, object), after.assigned(worker, object)) else {
        return true;
    };
    match (was.as_ref(), is.as_ref()) {
        (Assigned::Vm(was), Assigned::Vm(is)) => {
            let asked = |vm: &AssignedVm| (vm.generation, vm.wanted, vm.restarts_asked, vm.shape);
            let cards = |vm: &AssignedVm| -> Vec<_> {
                vm.nics.iter().map(|nic| (nic.bridge.clone(), nic.address)).collect()
            };
            asked(was) != asked(is) || cards(was) != cards(is)
        }
        (was, is) => was != is,
    }
}

fn is_starting(view: &View, worker: WorkerId, object: HostObject) -> bool {
    vm::observed_vm(view, worker, object).is_some_and(|vm| vm.phase == VmPhase::Starting)
}

fn is_running(view: &View, worker: WorkerId, object: HostObject) -> bool {
    vm::observed_vm(view, worker, object).is_some_and(|vm| vm.phase == VmPhase::Running)
}

/// What the host shows of an object, as far as its report tells.
fn found(view: &View, worker: WorkerId, object: HostObject) -> Option<Facts> {
    let assigned = view.assigned(worker, object)?.as_ref();
    let observed = view.observed(worker, object)?.as_ref();
    match (assigned, observed) {
        (Assigned::Vm(assigned), Observed::Vm(vm)) => {
            let vmm = match vm.phase {
                VmPhase::Starting | VmPhase::Running | VmPhase::Stopping => VmmState::Running,
                // What has crashed pauses with nothing left of it.
                VmPhase::Crashed | VmPhase::Claimed | VmPhase::Off | VmPhase::Stopped => VmmState::Absent,
            };
            let squatters = Squatted { sequence: vm.sequence, squatters: vm.squatters.clone() };
            let assigned = AssignedVm { sequence: vm.sequence, ..assigned.clone() };
            let has_taps = vmm != VmmState::Absent;
            Some(Facts {
                saved: Some(Saved {
                    restarts: vm.restarts,
                    restarts_done: vm.restarts_done,
                    started_shape: vm.shape,
                    off: vm.phase == VmPhase::Off,
                    address_yielded: vm.address_yielded,
                    squatted: Some(squatters).filter(|_| !vm.squatters.is_empty()),
                    ..Saved::of(Assigned::Vm(assigned))
                }),
                vmm,
                taps: has_taps,
                taps_complete: has_taps,
                probed: has_taps,
                leases: vm.leases.clone(),
                virtual_address: vm.virtual_address.map(|has| has.address),
                ..Facts::default()
            })
        }
        (Assigned::Volume(assigned), Observed::Volume(volume)) => {
            let fetched = |held: bool| Fetched { complete: true, held };
            let is_there =
                matches!(volume.phase, VolumePhase::Present | VolumePhase::Held | VolumePhase::Released);
            let assigned = lightbyte_api::AssignedVolume { sequence: volume.sequence, ..assigned.clone() };
            Some(Facts {
                saved: Some(Saved {
                    created: is_there || volume.phase == VolumePhase::Lost,
                    ..Saved::of(Assigned::Volume(assigned))
                }),
                disk: is_there.then_some(volume.size),
                arriving: match volume.phase {
                    VolumePhase::Copied => Some(fetched(false)),
                    VolumePhase::Complete => Some(fetched(true)),
                    _ => None,
                },
                ..Facts::default()
            })
        }
        _ => None,
    }
}
