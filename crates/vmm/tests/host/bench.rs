//! A worker at work: its agent, its host, and the part of the store that concerns it. Whatever the agent does is
//! held to the rules of the host here, for every test alike.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use lightbyte_api::assigned::{
    Assigned, AssignedDisk, AssignedNic, AssignedVm, AssignedVolume, HostObject, Source, WantedVm,
    WantedVolume,
};
use lightbyte_api::first_boot::FirstBoot;
use lightbyte_api::kinds::image::Part;
use lightbyte_api::kinds::vm::RestartPolicy;
use lightbyte_api::observed::{Observed, ObservedVm, ObservedVolume, VmPhase, VolumePhase};
use lightbyte_api::records::Epoch;
use lightbyte_api::{ByteSize, Kind, MacAddress, Name, Span, Timestamp, Uid, VmId, VolumeId};
use lightbyte_plan::agent::address;
use lightbyte_plan::agent::health::Outcome;
use lightbyte_plan::agent::proxy::Answer;
use lightbyte_plan::agent::{
    Action, Agent, Delivery, Facts, Item, Leaving, News, Reply, Report, Saved, Stamped, Step, VmmState,
};
use lightbyte_vmm::{DriverError, Drivers, FakeHost, hands};

/// How often an agent may be asked for actions before it counts as restless.
const ROUNDS_MAX: usize = 400;

/// The checksum of 64 MiB of zeros, which is what images are here.
pub(crate) const ZEROS_SHA256: &str = "3b6a07d0d404fab4e23b6d34bc6696a6a312dd92821332385e5af7c01c421351";

/// The VM of every test.
pub(crate) const VM: HostObject = HostObject { kind: Kind::Vm, uid: Uid::from_bits(0xA) };
/// Its root volume.
pub(crate) const VOLUME: HostObject = HostObject { kind: Kind::Volume, uid: Uid::from_bits(0xB) };

/// The identity of [`VM`].
pub(crate) const fn vm_id() -> VmId {
    VmId::new(VM.uid)
}

/// The identity of [`VOLUME`].
pub(crate) const fn volume_id() -> VolumeId {
    VolumeId::new(VOLUME.uid)
}

fn part() -> Part {
    Part { sha256: ZEROS_SHA256.to_owned(), size: ByteSize::from_mib(64) }
}

fn name(text: &str) -> Name {
    Name::new(text).expect("a name")
}

/// The assignment of [`VM`], with two NICs so that its taps can be there in part.
pub(crate) fn assigned_vm(sequence: u64, wanted: WantedVm, restarts_asked: u64) -> AssignedVm {
    let nic = |index: usize| AssignedNic {
        bridge: "br0".to_owned(),
        mac: MacAddress::of_nic(VM.uid, index),
        address: Some(Ipv4Addr::new(10, 77, 0, 2)),
        prefix_length: 24,
        gateway: None,
        dns: Vec::new(),
        mtu: None,
        ipv6: None,
        firewall: None,
        ports: Vec::new(),
        virtual_address: None,
    };
    AssignedVm {
        sequence,
        generation: sequence,
        name: name("a"),
        wanted,
        restarts_asked,
        shape: 1,
        restart: RestartPolicy::default(),
        health: None,
        cpus: 1,
        memory: ByteSize::from_mib(128),
        image: name("demo"),
        image_version: "v1".to_owned(),
        kernel: part(),
        initrd: None,
        command_line: String::new(),
        disks: vec![AssignedDisk { volume: volume_id(), read_only: false, mount: None }],
        nics: vec![nic(0), nic(1)],
        first_boot: FirstBoot::default(),
        asked_at: at(-1_000),
    }
}

/// The assignment of [`VOLUME`].
pub(crate) fn assigned_volume(sequence: u64, wanted: WantedVolume) -> AssignedVolume {
    AssignedVolume {
        sequence,
        generation: sequence,
        name: name("a-root"),
        wanted,
        size: ByteSize::from_mib(64),
        source: Source::Image(part()),
        arriving: None,
    }
}

/// A saved assignment.
pub(crate) fn saved(assigned: impl Into<Assigned>) -> Saved {
    Saved::of(assigned.into())
}

/// The time `milliseconds` after the beginning of every test.
pub(crate) fn at(milliseconds: i64) -> Timestamp {
    Timestamp::from_millisecond(1_800_000_000_000 + milliseconds).expect("a time in range")
}

/// The cluster's identity in its `epoch`.
pub(crate) const fn epoch(epoch: u64) -> Epoch {
    Epoch { cluster: Uid::from_bits(1), epoch }
}

/// What a guest does when it is asked to shut down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Guest {
    /// It says that it is ready, and ends when it is asked to.
    Obeys,
    /// It says that it is ready, and does not end.
    Ignores,
    /// It never says that it is ready.
    Silent,
}

/// What the store holds of one object for this worker.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Slot {
    pub(crate) assigned: Option<Stamped<Assigned>>,
    pub(crate) observed: Option<Stamped<Observed>>,
}

/// A worker.
pub(crate) struct Bench {
    pub(crate) host: FakeHost,
    pub(crate) drivers: Drivers,
    pub(crate) agent: Agent,
    pub(crate) store: BTreeMap<HostObject, Slot>,
    pub(crate) revision: u64,
    pub(crate) now: Timestamp,
    pub(crate) guest: Guest,
    /// Every effect, a line each.
    pub(crate) trace: Vec<String>,
    /// Effects until this agent is killed.
    pub(crate) life: usize,
}

/// Why a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// Nothing is left to do, now or later.
    AtRest,
    /// The agent was killed after an effect, before it learned what came of it.
    Killed,
}

impl Bench {
    /// A host with one bridge, whose agent has found nothing and heard nothing.
    pub(crate) fn new() -> Bench {
        let host = FakeHost::new(ByteSize::from_mib(1_024), ["br0".to_owned()]);
        Bench {
            drivers: host.drivers(),
            host,
            agent: Agent::default(),
            store: BTreeMap::new(),
            revision: 10,
            now: at(0),
            guest: Guest::Obeys,
            trace: Vec::new(),
            life: usize::MAX,
        }
    }

    /// A VM with its volume, both assigned and brought to their goals.
    pub(crate) fn running() -> Bench {
        let mut bench = Bench::new();
        bench.assign(VOLUME, Some(Assigned::Volume(assigned_volume(1, WantedVolume::Present))));
        bench.assign(VM, Some(Assigned::Vm(assigned_vm(1, WantedVm::Running, 0))));
        bench.begin();
        bench.rest();
        assert_eq!(bench.phase(), Some(VmPhase::Running));
        bench
    }

    pub(crate) fn slot(&mut self, object: HostObject) -> &mut Slot {
        self.store.entry(object).or_default()
    }

    /// The controllers assign `assigned`, or take the assignment away.
    pub(crate) fn assign(&mut self, object: HostObject, assigned: Option<Assigned>) {
        self.revision += 1;
        let mod_revision = self.revision;
        self.slot(object).assigned = assigned.map(|value| Stamped { mod_revision, value });
    }

    /// The same for [`VM`], and the news reaches the agent.
    pub(crate) fn tell_vm(&mut self, sequence: u64, wanted: WantedVm, restarts_asked: u64) {
        self.assign(VM, Some(Assigned::Vm(assigned_vm(sequence, wanted, restarts_asked))));
        self.news(VM);
    }

    /// The same for [`VOLUME`].
    pub(crate) fn tell_volume(&mut self, sequence: u64, wanted: WantedVolume) {
        self.assign(VOLUME, Some(Assigned::Volume(assigned_volume(sequence, wanted))));
        self.news(VOLUME);
    }

    /// The news of `object` reaches the agent.
    pub(crate) fn news(&mut self, object: HostObject) {
        let assigned = self.slot(object).assigned.clone();
        self.deliver(News::Change { object, assigned });
    }

    pub(crate) fn deliver(&mut self, news: News) {
        let delivery = Delivery { epoch: epoch(1), revision: self.revision, news };
        self.agent.deliver(delivery, self.now).expect("a delivery that is not stale");
    }

    /// The agent begins, finds what is on its host, and gets its inventory. A guest that was ready says so again, as
    /// it would when its channel to the host is there anew.
    pub(crate) fn begin(&mut self) {
        self.begin_unheard();
        if self.facts(VM).vmm == VmmState::Running && self.guest != Guest::Silent {
            self.agent.guest_ready(VM, self.now, self.now);
        }
    }

    /// The same, and the guest says nothing.
    pub(crate) fn begin_unheard(&mut self) {
        self.agent = Agent::begin(hands::find_all(&self.drivers).expect("a whole list"));
        self.inventory();
    }

    pub(crate) fn inventory(&mut self) {
        let item = |(object, slot): (&HostObject, &Slot)| Item {
            object: *object,
            assigned: slot.assigned.clone(),
            observed: slot.observed.clone(),
            told: None,
        };
        let items = self.store.iter().filter(|(_, slot)| **slot != Slot::default()).map(item).collect();
        self.deliver(News::Inventory(items));
    }

    /// What the host shows of `object`.
    pub(crate) fn facts(&self, object: HostObject) -> Facts {
        hands::facts(&self.drivers, object).expect("a host that answers")
    }

    /// How far [`VM`] is, as it was reported last.
    pub(crate) fn phase(&self) -> Option<VmPhase> {
        self.observed_vm().map(|observed| observed.phase)
    }

    /// The last report on [`VM`].
    pub(crate) fn observed_vm(&self) -> Option<&ObservedVm> {
        match &self.store.get(&VM)?.observed.as_ref()?.value {
            Observed::Vm(observed) => Some(observed),
            _ => None,
        }
    }

    /// The last report on [`VOLUME`].
    pub(crate) fn observed_volume(&self) -> Option<&ObservedVolume> {
        match &self.store.get(&VOLUME)?.observed.as_ref()?.value {
            Observed::Volume(observed) => Some(observed),
            _ => None,
        }
    }

    /// Runs until nothing is left to do now; time stands still.
    pub(crate) fn act(&mut self) -> Ended {
        for _ in 0..ROUNDS_MAX {
            let actions = self.agent.actions(self.now);
            if actions.is_empty() {
                return Ended::AtRest;
            }
            for (object, action) in actions {
                if self.do_one(object, action) == Ended::Killed {
                    return Ended::Killed;
                }
            }
        }
        panic!("the agent does not come to rest:\n{}", self.trace.join("\n"));
    }

    /// Runs until nothing is left to do, however late that is.
    pub(crate) fn run(&mut self) -> Ended {
        for _ in 0..ROUNDS_MAX {
            if self.act() == Ended::Killed {
                return Ended::Killed;
            }
            match self.agent.next_wake() {
                Some(wake) if wake > self.now => self.now = wake,
                Some(_) | None => return Ended::AtRest,
            }
        }
        panic!("the agent waits for ever:\n{}", self.trace.join("\n"));
    }

    /// Runs until nothing is left to do; the agent is not killed.
    pub(crate) fn rest(&mut self) {
        self.life = usize::MAX;
        assert_eq!(self.run(), Ended::AtRest);
    }

    pub(crate) fn after(&mut self, span: Span) {
        self.now = self.now.checked_add(span.duration()).expect("a time in range");
    }

    /// How many steps were done on the host so far.
    pub(crate) fn steps(&self) -> usize {
        self.trace.iter().filter(|line| !line.contains(": report")).count()
    }

    pub(crate) fn do_one(&mut self, object: HostObject, action: Action) -> Ended {
        let effect = match action {
            Action::Report(report) => {
                let reply = self.store_report(&report);
                Effect::Reply(reply)
            }
            Action::Check(check) => {
                self.trace.push(format!("{}: check", object.kind));
                Effect::Checked(hands::check(&self.drivers, vm_id(), &check))
            }
            Action::Proxy(told) => {
                self.trace.push(format!("{}: {}", object.kind, if told.is_some() { "tell" } else { "ask" }));
                Effect::Answered(hands::ask_proxy(&self.drivers, vm_id(), told.as_ref()))
            }
            Action::Address(errand) => {
                self.trace.push(format!("{}: tell {errand:?}", object.kind));
                Effect::Addressed(hands::tell_address(&self.drivers, object, errand))
            }
            Action::Step(step) => {
                self.hold_to_the_rules(object, &step);
                self.trace.push(format!("{}: {}", object.kind, show_step(&step)));
                let outcome = hands::perform(&self.drivers, object, &step);
                if let Err(DriverError::Refused(reason)) = &outcome {
                    panic!("the host refuses {step:?}: {reason}\n{}", self.trace.join("\n"));
                }
                Effect::Step(step, outcome.map_err(|error| error.chain()))
            }
        };
        if self.life <= 1 {
            return Ended::Killed;
        }
        self.life -= 1;
        match effect {
            Effect::Reply(reply) => self.agent.reply(object, reply),
            Effect::Checked(outcome) => self.agent.checked(object, outcome, self.now),
            Effect::Addressed(told) => self.agent.addressed(object, told, self.now),
            Effect::Answered(answer) => self.agent.answered(object, answer, self.now),
            Effect::Step(step, Ok(())) => {
                self.agent.observed(object, self.facts(object), Some(&step), self.now);
                self.guest_acts(object, &step);
            }
            Effect::Step(_, Err(problem)) => {
                self.agent.failed(object, self.facts(object), &problem, self.now);
            }
        }
        Ended::AtRest
    }

    fn guest_acts(&mut self, object: HostObject, step: &Step) {
        match (step, self.guest) {
            (Step::Start, Guest::Obeys | Guest::Ignores) => {
                self.agent.guest_ready(object, self.now, self.now);
            }
            (Step::Shutdown, Guest::Obeys) => self.machine_ends(),
            _ => {}
        }
    }

    /// The machine process of [`VM`] ends, and the agent is told.
    pub(crate) fn guest_leaves(&mut self, leaving: Leaving) {
        self.agent.guest_leaves(VM, leaving);
        self.machine_ends();
    }

    /// The machine process ends by itself.
    pub(crate) fn machine_ends(&mut self) {
        self.host.exit(vm_id());
        self.agent.observed(VM, self.facts(VM), None, self.now);
    }

    /// Stores a report as a server would: compared with what is stored, and a claim with its assignment too.
    pub(crate) fn store_report(&mut self, report: &Report) -> Reply {
        let slot = self.slot(report.object).clone();
        let own = slot.observed.as_ref().map_or(0, |observed| observed.mod_revision);
        let assigned = slot.assigned.as_ref().map_or(0, |assigned| assigned.mod_revision);
        let is_claim = report.own_revision == 0;
        assert_eq!(
            report.assigned_revision.is_some(),
            is_claim,
            "a claim, and only a claim, names its assignment"
        );
        let seen = report.assigned_revision.is_none_or(|revision| revision == assigned);
        let kind = report.object.kind;
        if own != report.own_revision || !seen {
            self.trace.push(format!("{kind}: report refused"));
            return Reply::Refused { observed: slot.observed, assigned_revision: assigned };
        }
        if let Some(Observed::Vm(observed)) = &report.observed {
            let let_through = self.host.taps(vm_id()).first().and_then(|nic| nic.virtual_address);
            let said = observed.virtual_address.map(|has| has.address);
            let shown = let_through.map(|has| has.address);
            // Somebody else is given it as soon as it is not reported any more.
            assert!(shown.is_none() || said == shown, "{shown:?} is let through, and {said:?} reported");
        }
        self.revision += 1;
        let mod_revision = self.revision;
        match &report.observed {
            Some(observed) => self.trace.push(format!("{kind}: report {}", show_report(observed))),
            None => {
                assert!(
                    !self.host.everything().contains(&report.object.uid),
                    "a report is withdrawn while something is left:\n{}",
                    self.trace.join("\n")
                );
                self.trace.push(format!("{kind}: report withdrawn"));
            }
        }
        self.slot(report.object).observed =
            report.observed.clone().map(|value| Stamped { mod_revision, value });
        Reply::Accepted { revision: mod_revision }
    }

    /// What no step may do, whatever led to it.
    fn hold_to_the_rules(&mut self, object: HostObject, step: &Step) {
        let facts = self.facts(object);
        let slot = self.slot(object).clone();
        let wanted = slot.assigned.as_ref().map(|assigned| &assigned.value);
        let kept = facts.saved.as_ref().map(|saved| &saved.assigned);
        let counts = kept.or(wanted);
        let removal = counts.is_some_and(Assigned::is_removal);
        let context = || format!("{step:?} of {object:?}\n{facts:?}\n{slot:?}\n{}", self.trace.join("\n"));
        // It is restarted for its health, where that is asked for.
        let is_sick = self.agent.desk(&object).is_some_and(|desk| {
            let asked = desk.saved_vm().and_then(|vm| vm.health.as_ref()).is_some_and(|check| check.restart);
            asked && desk.volatile().checks.is_unhealthy()
        });
        match step {
            Step::Save(saved) => {
                assert!(slot.observed.is_some(), "saved before it was claimed: {}", context());
                let before = kept.map_or(0, Assigned::sequence);
                assert!(saved.assigned.sequence() >= before, "an older assignment is saved: {}", context());
            }
            Step::EnsureTaps
            | Step::Probe
            | Step::Start
            | Step::CreateDisk { .. }
            | Step::GrowDisk { .. } => {
                assert!(slot.observed.is_some(), "an effect before the claim: {}", context());
                assert!(kept.is_some() && !removal, "made without being wanted: {}", context());
            }
            Step::Look => {}
            Step::FetchDisk | Step::TakeDisk => {
                assert!(slot.observed.is_some(), "an effect before the claim: {}", context());
                assert!(kept.is_some() && !removal, "made without being wanted: {}", context());
            }
            Step::RemoveDisk | Step::Forget | Step::DropFetched | Step::QuarantineDisk => {
                assert!(removal, "destroyed unasked: {}", context());
            }
            Step::RemoveTaps => assert!(removal || stops(&facts), "taken away: {}", context()),
            Step::Shutdown => {
                assert!(removal || stops(&facts) || is_sick, "ended unasked: {}", context());
            }
            Step::Kill => {
                let ended = facts.vmm == VmmState::Exited && kept.is_some();
                assert!(ended || removal || stops(&facts) || is_sick, "killed unasked: {}", context());
            }
        }
        if matches!(step, Step::CreateDisk { .. }) {
            let created = facts.saved.as_ref().is_some_and(|saved| saved.created);
            assert!(!created, "a lost disk is made again: {}", context());
            let arriving = matches!(kept, Some(Assigned::Volume(volume)) if volume.arriving.is_some());
            assert!(!arriving, "what another worker has is made: {}", context());
        }
    }
}

enum Effect {
    Reply(Reply),
    Step(Step, Result<(), String>),
    Checked(Outcome),
    Answered(Answer),
    Addressed(address::Told),
}

/// Whether what is saved asks for the machine to stop, for good or to be started again.
fn stops(facts: &Facts) -> bool {
    match facts.saved.as_ref().map(|saved| (saved, &saved.assigned)) {
        Some((saved, Assigned::Vm(vm))) => {
            saved.off || vm.wanted != WantedVm::Running || saved.restarts_done < vm.restarts_asked
        }
        _ => false,
    }
}

fn show_step(step: &Step) -> String {
    match step {
        Step::Save(saved) => match &saved.assigned {
            Assigned::Vm(vm) => format!(
                "save {:?} {} restarts {} done {}",
                vm.wanted, vm.sequence, saved.restarts, saved.restarts_done
            ),
            Assigned::Volume(volume) => format!(
                "save {:?} {}{}",
                volume.wanted,
                volume.sequence,
                if saved.created { " created" } else { "" }
            ),
        },
        other => format!("{other:?}"),
    }
}

fn show_report(observed: &Observed) -> String {
    let problem =
        |problem: &Option<String>| problem.as_ref().map(|text| format!(" ({text})")).unwrap_or_default();
    match observed {
        Observed::Worker(_) => "worker".to_owned(),
        Observed::Vm(vm) => format!("{:?} {}{}", vm.phase, vm.sequence, problem(&vm.problem)),
        Observed::Volume(volume) => {
            format!("{:?} {}{}", volume.phase, volume.sequence, problem(&volume.problem))
        }
    }
}

/// A stored claim of `object`.
pub(crate) fn claim(object: HostObject, sequence: u64) -> Stamped<Observed> {
    let since = at(-500);
    let value = match object.kind {
        Kind::Vm => Observed::Vm(ObservedVm {
            sequence,
            generation: sequence,
            phase: VmPhase::Claimed,
            since,
            shape: 0,
            restarts: 0,
            restarts_done: 0,
            boot: None,
            health: None,
            squatters: Vec::new(),
            leases: Vec::new(),
            proxy: None,
            virtual_address: None,
            address_yielded: 0,
            problem: None,
        }),
        _ => Observed::Volume(ObservedVolume {
            sequence,
            generation: sequence,
            phase: VolumePhase::Claimed,
            size: ByteSize::from_bytes(0),
            since,
            problem: None,
        }),
    };
    Stamped { mod_revision: 3, value }
}
