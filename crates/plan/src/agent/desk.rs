//! One object on one worker: from what is assigned, saved, shown by the host and reported to the next step and report.

use lightbyte_api::assigned::{
    Assigned, AssignedNic, AssignedVm, AssignedVolume, HostObject, VirtualAddress, WantedVm, WantedVolume,
};
use lightbyte_api::health::{HealthCheck, HealthProbe};
use lightbyte_api::kinds::image::Part;
use lightbyte_api::observed::{
    Observed, ObservedProxy, ObservedVirtualAddress, Orphan, PROBLEM_LENGTH_MAX, VmPhase, VolumePhase,
};
use lightbyte_api::units::Span;
use lightbyte_api::{Kind, Timestamp};

use super::address::{self, Address};
use super::facts::{Around, Facts, Leaving, Saved, VmmState, Volatile};
use super::health::Checks;
use super::proxy::{Answer, Proxy, Told};
use super::reported::Reported;
use super::step::{Action, Next, Reply, Report, Step};
use super::{Stamped, health, vm, volume};
use crate::planner::later;

/// The pause before a failed step is tried again; it doubles with each failure in a row.
pub const RETRY_FIRST: Span = Span::from_secs(1);
/// The longest pause before a failed step is tried again.
pub const RETRY_LIMIT: Span = Span::from_secs(30);

/// The most of a guest's own words that is reported.
const GUEST_PROBLEM_LENGTH_MAX: usize = 200;

/// One object on one worker.
#[derive(Clone, Debug)]
pub struct Desk {
    object: HostObject,
    wish: Option<Stamped<Assigned>>,
    facts: Facts,
    volatile: Volatile,
    reported: Reported,
    step_in_flight: Option<Step>,
    /// When the agent of a guest began that was ready before the end of the step that starts its machine was told.
    early_ready: Option<Timestamp>,
    /// The guest of this life is being checked; see [`Checks::life`].
    checking: Option<(Timestamp, u64)>,
    /// Something has happened on the host that no step did.
    look_wanted: bool,
    problem: Option<String>,
    failures: u32,
    retry_at: Option<Timestamp>,
    wait_until: Option<Timestamp>,
    lost: Option<&'static str>,
    /// A machine may use this volume.
    used: bool,
    part_problem: Option<String>,
    proxy: Proxy,
    address: Address,
}

impl Desk {
    /// The desk of an object with what the host shows of it.
    #[must_use]
    pub fn found(object: HostObject, facts: Facts) -> Desk {
        let volatile = Volatile { adopted: facts.vmm == VmmState::Running, ..Volatile::default() };
        Desk {
            object,
            wish: None,
            facts,
            volatile,
            reported: Reported::default(),
            step_in_flight: None,
            early_ready: None,
            checking: None,
            look_wanted: false,
            problem: None,
            failures: 0,
            retry_at: None,
            wait_until: None,
            lost: None,
            used: false,
            part_problem: None,
            proxy: Proxy::default(),
            address: Address::default(),
        }
    }

    /// What the host shows.
    #[must_use]
    pub const fn facts(&self) -> &Facts {
        &self.facts
    }

    /// What is forgotten when the agent ends.
    #[must_use]
    pub const fn volatile(&self) -> &Volatile {
        &self.volatile
    }

    /// The object's name, if anything is known of it.
    #[must_use]
    pub fn name(&self) -> Option<&lightbyte_api::Name> {
        let saved = self.facts.saved.as_ref().map(|saved| &saved.assigned);
        match saved.or(self.wish.as_ref().map(|wish| &wish.value))? {
            Assigned::Vm(assigned) => Some(&assigned.name),
            Assigned::Volume(assigned) => Some(&assigned.name),
        }
    }

    /// Whether nothing of it is to be left.
    #[must_use]
    pub fn is_removed(&self) -> bool {
        self.facts.saved.as_ref().is_some_and(|saved| saved.assigned.is_removal())
    }

    /// The saved assignment of a volume.
    #[must_use]
    pub fn saved_volume(&self) -> Option<&AssignedVolume> {
        match &self.facts.saved.as_ref()?.assigned {
            Assigned::Volume(assigned) => Some(assigned),
            Assigned::Vm(_) => None,
        }
    }

    /// The saved assignment of a VM.
    #[must_use]
    pub fn saved_vm(&self) -> Option<&AssignedVm> {
        match &self.facts.saved.as_ref()?.assigned {
            Assigned::Vm(assigned) => Some(assigned),
            Assigned::Volume(_) => None,
        }
    }

    /// Whether there is nothing to remember: nothing assigned, on the host, or reported.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.wish.is_none()
            && self.facts.is_bare()
            && self.reported.is_nothing()
            && self.step_in_flight.is_none()
    }

    /// What there is of it although nobody has assigned it.
    pub(super) fn orphan(&self, object: HostObject) -> Option<Orphan> {
        if self.wish.is_some() || self.facts.is_bare() {
            return None;
        }
        let name = self.name().cloned();
        let Facts { vmm, taps, disk, ref arriving, ref saved, .. } = self.facts;
        if saved.is_some() {
            // What comes and goes with its machine is no news.
            let left = "what it was assigned once, and goes on with".to_owned();
            return Some(Orphan { kind: object.kind, uid: object.uid, name, left });
        }
        if self.step_in_flight.is_some() {
            return None;
        }
        let machine = match vmm {
            VmmState::Running => Some("a machine that runs".to_owned()),
            VmmState::Exited => Some("traces of a machine".to_owned()),
            VmmState::Absent => None,
        };
        let left = [
            machine,
            taps.then(|| "taps".to_owned()),
            disk.map(|size| format!("a disk of {size}")),
            arriving.map(|_| "what was fetched of a disk".to_owned()),
        ];
        let left = left.into_iter().flatten().collect::<Vec<String>>().join(", ");
        Some(Orphan { kind: object.kind, uid: object.uid, name, left })
    }

    /// Whether the store has been told by this agent how the object is, or knew it already.
    #[must_use]
    pub const fn is_told(&self) -> bool {
        self.reported.is_told()
    }

    // ------------------------------------------------------------------------------------------------- events

    /// Takes an assignment if it is at least as new as what is known.
    pub(super) fn assign(&mut self, assigned: Option<Stamped<Assigned>>, now: Timestamp) {
        let Some(assigned) = assigned else {
            // Absence never acts: what is saved goes on. Without anything saved there is nothing to go on with.
            self.wish = None;
            self.reported.make_known();
            return;
        };
        let saved = self.facts.saved.as_ref().map_or(0, |saved| saved.assigned.sequence());
        let wished = self.wish.as_ref().map_or(0, |wish| wish.value.sequence());
        if assigned.value.sequence() < saved.max(wished) || assigned.value.kind() != self.object.kind {
            return;
        }
        if assigned.value.sequence() > saved.max(wished) {
            // What a person asks now is not held up by what came of the last wish.
            self.volatile.delivered_at = Some(now);
            self.volatile.stopping_since = None;
            self.volatile.crashed_at = None;
            self.volatile.quick_crashes = 0;
            self.retry_at = None;
            self.failures = 0;
        }
        self.wish = Some(assigned);
        // A stream that has begun with an inventory without this object means that no report is stored.
        self.reported.make_known();
    }

    /// Takes what an inventory of a view of `seen` says of this worker's own report.
    pub(super) fn adopt_report(&mut self, observed: Option<Stamped<Observed>>, seen: u64) {
        self.reported.adopt(observed, seen);
        let was_running = match self.reported.stored() {
            // A machine that was counted as ended since is another one.
            Some(Observed::Vm(stored))
                if stored.phase == VmPhase::Running && stored.restarts == restarts(&self.facts) =>
            {
                Some(stored)
            }
            _ => None,
        };
        let is_found = self.volatile.adopted && self.facts.vmm == VmmState::Running;
        if let (Some(stored), true, None) = (was_running, is_found, self.volatile.checks.life()) {
            self.volatile.checks = Checks::go_on(stored);
        }
    }

    /// Takes the revision at which a view of `seen` has this worker's report; nought if it has none.
    pub(super) fn note_stored(&mut self, mod_revision: u64, seen: u64) {
        self.reported.note(mod_revision, seen);
    }

    pub(super) fn reply(&mut self, reply: Reply) {
        self.reported.reply(reply);
    }

    pub(super) fn observed(&mut self, facts: Facts, step: Option<&Step>, now: Timestamp) {
        match step {
            Some(Step::Look) => self.step_in_flight = None,
            Some(_) => {
                self.step_in_flight = None;
                self.problem = None;
                self.failures = 0;
                self.retry_at = None;
            }
            None => {}
        }
        let before = std::mem::replace(&mut self.facts, facts);
        let counted = restarts(&before) < restarts(&self.facts);
        if probe(&before) != probe(&self.facts) {
            self.volatile.checks.begin_anew();
        }
        vm::note(&mut self.volatile, before.vmm, self.facts.vmm, step, counted, now);
        self.follow_machine(now);
    }

    pub(super) fn failed(&mut self, facts: Facts, problem: &str, now: Timestamp) {
        let factor = 1_u64.checked_shl(self.failures).unwrap_or(u64::MAX);
        let pause = RETRY_FIRST.millis().saturating_mul(factor).min(RETRY_LIMIT.millis());
        self.failures = self.failures.saturating_add(1);
        self.retry_at = Some(later(now, Span::from_millis(pause)));
        self.problem = Some(problem.chars().take(PROBLEM_LENGTH_MAX).collect());
        self.step_in_flight = None;
        let before = std::mem::replace(&mut self.facts, facts).vmm;
        vm::note(&mut self.volatile, before, self.facts.vmm, None, false, now);
        self.follow_machine(now);
    }

    /// What was known of a proxy is of the machine that was there.
    fn follow_machine(&mut self, now: Timestamp) {
        if self.facts.vmm != VmmState::Running {
            self.proxy.end_life();
            self.address.end_life();
        }
        self.catch_up_with_guest(now);
    }

    /// A guest says once that it is ready, and may do so before the end of the step that starts its machine is told.
    fn catch_up_with_guest(&mut self, now: Timestamp) {
        if self.step_in_flight.is_none()
            && let Some(agent_at) = self.early_ready.take()
        {
            self.take_ready(agent_at, now);
        }
    }

    pub(super) fn guest_ready(&mut self, agent_at: Timestamp, now: Timestamp) {
        let has_lease = |nic: &AssignedNic| nic.address.is_none();
        if self.saved_vm().is_some_and(|vm| vm.nics.iter().any(has_lease)) {
            // What the host saw of it is looked at before the guest counts as ready, and when its guest says so again.
            self.early_ready = Some(agent_at);
            self.look();
        } else if self.step_in_flight == Some(Step::Start) {
            self.early_ready = Some(agent_at);
        } else {
            self.take_ready(agent_at, now);
        }
    }

    fn take_ready(&mut self, agent_at: Timestamp, now: Timestamp) {
        if self.facts.vmm == VmmState::Running && !self.volatile.ready {
            self.volatile.ready = true;
            if self.volatile.checks.life().is_none() {
                self.volatile.checks = Checks::begin(now);
            }
            let asked_at = self.saved_vm().map(|vm| vm.asked_at);
            self.volatile.boot = vm::boot_times(&self.volatile, asked_at, agent_at, now);
            self.volatile.delivered_at = None;
        }
    }

    pub(super) fn guest_problem(&mut self, problem: &str) {
        let plain = problem.chars().filter(|character| !character.is_control());
        let plain: String = plain.take(GUEST_PROBLEM_LENGTH_MAX).collect();
        self.volatile.guest_problem = Some(plain).filter(|plain| !plain.is_empty());
    }

    /// A part of an image has come to this host.
    pub(super) fn part_came(&mut self, part: &Part) {
        self.facts.parts_missing.retain(|missing| missing != part);
    }

    pub(super) fn checked(&mut self, outcome: health::Outcome, now: Timestamp) {
        let life = self.checking.take();
        let check = self.saved_vm().and_then(|vm| vm.health.clone());
        if let Some(check) = check.filter(|_| life == self.volatile.checks.life()) {
            self.volatile.checks.take(&check, outcome, now);
        }
    }

    /// What the proxy in the guest has said to this agent.
    #[must_use]
    pub const fn proxy(&self) -> Option<&ObservedProxy> {
        self.proxy.said()
    }

    /// Takes what the proxy in the guest is to be told.
    pub(super) fn tell(&mut self, told: Told) {
        self.proxy.want(told);
    }

    pub(super) fn answered(&mut self, answer: Answer, now: Timestamp) {
        self.proxy.take(answer, now);
    }

    pub(super) fn addressed(&mut self, told: address::Told, now: Timestamp) {
        self.address.take(told, now);
    }

    pub(super) const fn guest_leaves(&mut self, leaving: Leaving) {
        self.volatile.leaving = Some(leaving);
    }

    // ------------------------------------------------------------------------------------------------ actions

    /// When to look again although nothing happened.
    #[must_use]
    pub fn next_wake(&self) -> Option<Timestamp> {
        let step = match self.step_in_flight {
            Some(_) => None,
            None => self.retry_at.or(self.wait_until),
        };
        let check = self.next_check().map(|(at, _)| at);
        let proxy = self.proxy.next_wake().filter(|_| self.is_up());
        let address = self.address.next_wake(self.virtual_address()).filter(|_| self.is_up());
        step.into_iter().chain(check).chain(proxy).chain(address).min()
    }

    /// Whether its guest is ready, as it is reported.
    fn is_up(&self) -> bool {
        let stored = self.reported.stored();
        let phase = |saved| vm::phase(saved, &self.facts, &self.volatile, stored);
        self.object.kind == Kind::Vm && self.facts.saved.as_ref().map(phase) == Some(VmPhase::Running)
    }

    pub(super) fn actions(&mut self, around: Around, now: Timestamp) -> Vec<Action> {
        self.lost = around.lost;
        self.used = !around.used_by.is_empty();
        self.part_problem.clone_from(&around.part_problem);
        let cut_off = around.cut_off;
        // The step first: when nothing is left to do, the report says so.
        let step = self.step(around, now).map(Action::Step);
        let report = self.report(now).map(Action::Report);
        let check = self.check(now).map(Action::Check);
        let is_up = self.is_up();
        let proxy = is_up.then(|| self.proxy.errand(now)).flatten().map(Action::Proxy);
        let address = self.virtual_address();
        let address =
            is_up.then(|| self.address.errand(address, cut_off, now)).flatten().map(Action::Address);
        // One by one: a chain moves each large action through each of its links.
        let mut actions = Vec::new();
        for action in [report, step, check, proxy, address] {
            actions.extend(action);
        }
        actions
    }

    /// The virtual address that its guest is to have: assigned, and let through.
    fn virtual_address(&self) -> Option<VirtualAddress> {
        let wanted = self.facts.saved.as_ref()?.virtual_address()?;
        Some(wanted).filter(|wanted| self.facts.virtual_address == Some(wanted.address))
    }

    fn check(&mut self, now: Timestamp) -> Option<HealthCheck> {
        let check = self.next_check().filter(|(at, _)| *at <= now).map(|(_, check)| check.clone())?;
        self.checking = self.volatile.checks.life();
        Some(check)
    }

    /// The next check with its time, unless one is under way or there is nothing to check.
    fn next_check(&self) -> Option<(Timestamp, &HealthCheck)> {
        let assigned = self.saved_vm().filter(|_| self.checking.is_none())?;
        let is_to_run = assigned.wanted == WantedVm::Running && self.volatile.stopping_since.is_none();
        let check = assigned.health.as_ref().filter(|_| is_to_run)?;
        Some((self.volatile.checks.due(check)?, check))
    }

    fn report(&mut self, now: Timestamp) -> Option<Report> {
        let observed = self.wanted_report(now);
        self.reported.send(self.object, observed, self.wish.as_ref().map(|wish| wish.mod_revision))
    }

    /// What should be stored; `None` when nothing should.
    fn wanted_report(&self, now: Timestamp) -> Option<Observed> {
        let stored = self.reported.stored();
        match (&self.facts.saved, &self.wish) {
            (Some(saved), _) => match &saved.assigned {
                Assigned::Vm(assigned) => {
                    let lost = self.lost.map(str::to_owned);
                    let runs = self.facts.vmm == VmmState::Running;
                    let of_guest = self.volatile.guest_problem.as_ref().filter(|_| runs);
                    let of_guest = of_guest.map(|problem| format!("its guest says: {problem}"));
                    let of_proxy = self.proxy.problem().or(self.address.problem());
                    let problem =
                        self.part_problem.clone().or(self.problem.clone()).or(lost).or(of_guest).or(of_proxy);
                    let (facts, volatile) = (&self.facts, &self.volatile);
                    let mut report = vm::report(saved, assigned, facts, volatile, problem, stored, now);
                    report.proxy = self.proxy_report(report.phase);
                    report.virtual_address = self.address_report();
                    Some(Observed::Vm(report))
                }
                Assigned::Volume(assigned) => Some(Observed::Volume(volume::report(
                    assigned,
                    &self.facts,
                    self.used,
                    self.part_problem.clone().or(self.problem.clone()).or(self.lost.map(str::to_owned)),
                    stored,
                    now,
                ))),
            },
            (None, Some(wish)) if !wish.value.is_removal() || self.reported.is_claim_unsure() => {
                Some(match &wish.value {
                    Assigned::Vm(assigned) => {
                        Observed::Vm(vm::claim(assigned, self.next_shape(&wish.value, 0), now))
                    }
                    Assigned::Volume(assigned) => Observed::Volume(volume::claim(assigned, now)),
                })
            }
            (None, _) if self.facts.is_bare() && self.step_in_flight.is_none() => None,
            // Something is left on the host that was never saved, or no longer is: the report stays as it is.
            (None, _) => stored.cloned(),
        }
    }

    /// What is reported of the proxy in a guest; what an earlier agent has heard of the same machine until it says more.
    fn proxy_report(&self, phase: VmPhase) -> Option<ObservedProxy> {
        let earlier = match self.reported.stored() {
            Some(Observed::Vm(stored)) if self.volatile.adopted => stored.proxy.clone(),
            _ => None,
        };
        let said = self.proxy.said().cloned().or(earlier).filter(|_| phase == VmPhase::Running);
        said.filter(|said| said.revision > 0 || said.refused.is_some())
    }

    /// What is reported of a virtual address; what an earlier agent has heard of the same machine until more is known.
    fn address_report(&self) -> Option<ObservedVirtualAddress> {
        let earlier = match self.reported.stored() {
            Some(Observed::Vm(stored)) if self.volatile.adopted => stored.virtual_address,
            _ => None,
        };
        self.facts.virtual_address.map(|address| self.address.report(address, earlier))
    }

    /// Something happened on the host: it is looked at before anything else is done.
    pub(super) const fn look(&mut self) {
        self.look_wanted = true;
    }

    fn step(&mut self, around: Around, now: Timestamp) -> Option<Step> {
        if self.step_in_flight.is_none() && std::mem::take(&mut self.look_wanted) {
            self.step_in_flight = Some(Step::Look);
            return Some(Step::Look);
        }
        if self.step_in_flight.is_some() || self.retry_at.is_some_and(|at| now < at) {
            return None;
        }
        match self.next_step(around, now) {
            Next::Do(step) => {
                self.wait_until = None;
                self.retry_at = None;
                self.step_in_flight = Some(step.clone());
                if step == Step::Shutdown {
                    self.volatile.stopping_since = Some(now);
                    self.volatile.shutdown_asked = true;
                }
                Some(step)
            }
            Next::Until(at) => {
                self.wait_until = Some(at);
                self.retry_at = None;
                None
            }
            Next::Rest => {
                // A step that failed may have done its work all the same: nothing is left of it.
                self.wait_until = None;
                self.retry_at = None;
                self.problem = None;
                None
            }
        }
    }

    fn next_step(&self, around: Around, now: Timestamp) -> Next {
        if let Some(save) = self.accept().or_else(|| self.yielded()) {
            return Next::Do(Step::Save(save));
        }
        match &self.facts.saved {
            Some(saved) => match &saved.assigned {
                Assigned::Vm(assigned) => vm::next_step(&vm::Situation {
                    saved,
                    assigned,
                    facts: &self.facts,
                    volatile: &self.volatile,
                    around,
                    now,
                }),
                Assigned::Volume(assigned) => volume::next_step(saved, assigned, &self.facts, &around),
            },
            None => self.clean_up(),
        }
    }

    /// The assignment to save: newer than what is saved, and claimed before the first time.
    fn accept(&self) -> Option<Saved> {
        let wish = self.wish.as_ref()?;
        let Some(saved) = &self.facts.saved else {
            let claimed = self.reported.is_claim();
            let fresh = Saved {
                assigned: wish.value.clone(),
                restarts: 0,
                restarts_done: restarts_asked(&wish.value),
                started_shape: self.next_shape(&wish.value, 0),
                off: false,
                squatted: None,
                address_yielded: 0,
                // What was reported as made was made, whatever has become of the record: it is lost, and not made again.
                created: was_made(self.reported.stored()),
            };
            return (claimed && !wish.value.is_removal()).then_some(fresh);
        };
        let started_shape = self.next_shape(&wish.value, saved.started_shape);
        (saved.assigned.sequence() < wish.value.sequence()).then(|| Saved {
            assigned: wish.value.clone(),
            started_shape,
            // What has arrived is there; it is never made again from what it was made from elsewhere.
            created: saved.created || volume::is_arriving(&saved.assigned),
            ..saved.clone()
        })
    }

    /// That the virtual address is somebody else's: noted before it is given up.
    fn yielded(&self) -> Option<Saved> {
        let (saved, turn) = (self.facts.saved.as_ref()?, self.address.taken_turn()?);
        (saved.address_yielded < turn).then(|| Saved { address_yielded: turn, ..saved.clone() })
    }

    /// The shape that is noted with a new assignment: where nothing runs, what is started next is what is accepted; a machine
    /// that is there is of an older one.
    const fn next_shape(&self, wish: &Assigned, noted: u64) -> u64 {
        match (wish, self.facts.vmm) {
            (Assigned::Vm(wish), VmmState::Absent) => wish.shape,
            _ => noted,
        }
    }

    fn wanted_volume(&self) -> Option<WantedVolume> {
        match &self.wish.as_ref()?.value {
            Assigned::Volume(assigned) => Some(assigned.wanted),
            Assigned::Vm(_) => None,
        }
    }

    /// Removes what is on the host without being saved, once it is asked to be removed.
    fn clean_up(&self) -> Next {
        let asked = self.wish.as_ref().is_some_and(|wish| wish.value.is_removal());
        match (asked, self.object.kind) {
            (true, Kind::Vm) => vm::remove(&self.facts),
            (true, Kind::Volume) if self.facts.arriving.is_some() => Next::Do(Step::DropFetched),
            (true, Kind::Volume) if self.facts.disk.is_some() => match self.wanted_volume() {
                Some(WantedVolume::Quarantined) => Next::Do(Step::QuarantineDisk),
                _ => Next::Do(Step::RemoveDisk),
            },
            _ => Next::Rest,
        }
    }
}

/// Whether a worker's report says that the disk was made.
fn was_made(stored: Option<&Observed>) -> bool {
    let not_made = [VolumePhase::Claimed, VolumePhase::Copied];
    matches!(stored, Some(Observed::Volume(stored)) if !not_made.contains(&stored.phase))
}

/// What is tried in its guest.
fn probe(facts: &Facts) -> Option<&HealthProbe> {
    match &facts.saved.as_ref()?.assigned {
        Assigned::Vm(assigned) => assigned.health.as_ref().map(|check| &check.probe),
        Assigned::Volume(_) => None,
    }
}

fn restarts(facts: &Facts) -> u64 {
    facts.saved.as_ref().map_or(0, |saved| saved.restarts)
}

fn restarts_asked(assigned: &Assigned) -> u64 {
    match assigned {
        Assigned::Vm(assigned) => assigned.restarts_asked,
        Assigned::Volume(_) => 0,
    }
}
