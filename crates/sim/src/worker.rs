//! Workers: a host that outlives its agent, an agent that may die between any two steps, and a network that delays,
//! loses and reorders.

mod faults;

use std::collections::VecDeque;

use lightbyte_api::assigned::HostObject;
use lightbyte_api::health::HealthCheck;
use lightbyte_api::observed::ObservedWorker;
use lightbyte_api::{ByteSize, Kind, Name, Uid, VmId, VolumeId, WorkerId};
use lightbyte_plan::agent::{Action, Agent, Delivery, Reply, Report, Stamped, Step};
use lightbyte_plan::{Transaction, delivery, request};
use lightbyte_store::LeaseId;
use lightbyte_vmm::{Drivers, FakeHost, hands};

use crate::balancers::{Errand, Front};
use crate::cluster::{Checked, Cluster, LEASE_MILLIS, Sent, Violation};
use crate::health;
use crate::oracle::Writer;
use crate::rng::Rng;
use crate::squatters::Heard;

/// What every worker offers: room for four of the smaller VMs.
pub(crate) const CPUS: u64 = 4;
/// What every worker offers.
pub(crate) const MEMORY: ByteSize = ByteSize::from_mib(1_024);

/// What the second worker takes.
const VMS_MAX: u64 = 3;

/// One worker.
pub(crate) struct Worker {
    /// Its identity.
    pub(crate) id: WorkerId,
    /// What it says of itself.
    pub(crate) said: ObservedWorker,
    /// The host.
    pub(crate) host: FakeHost,
    /// The lease of its liveness.
    pub(crate) lease: Option<LeaseId>,
    pub(crate) drivers: Drivers,
    agent: Option<Agent>,
    /// Raised when the agent begins anew: what an older one began comes to nothing.
    incarnation: u64,
    stream: Option<Stream>,
    steps: VecDeque<(HostObject, Step)>,
    /// Checks of guests that are under way.
    pub(crate) checks: VecDeque<(HostObject, HealthCheck)>,
    /// How many checks of a machine's guest have failed since one passed.
    pub(crate) failed_checks: std::collections::BTreeMap<VmId, u64>,
    /// Its proxies.
    pub(crate) front: Front,
    reports: VecDeque<(u64, Report)>,
    late: VecDeque<Report>,
    replies: VecDeque<(u64, HostObject, Reply)>,
    /// The guests that have said to this agent that they are ready: they say it once.
    told_ready: std::collections::BTreeSet<VmId>,
    /// Volumes whose file vanished: it must never be made again, blank.
    pub(crate) lost: std::collections::BTreeSet<VolumeId>,
    /// VMs whose guest was ever heard to shut them down.
    pub(crate) powered_off: std::collections::BTreeSet<VmId>,
    /// What was heard of addresses.
    pub(crate) heard: Heard,
    registered: bool,
    pub(crate) cut_off: bool,
    /// When its life ends, if that is known.
    pub(crate) life: Option<Life>,
}

/// How a life ends before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(test), expect(dead_code, reason = "the crash matrix, a test, ends lives at a certain effect"))]
pub(crate) enum Death {
    /// The agent dies.
    Agent,
    /// The host loses its power.
    Host,
}

/// A life that ends after so many effects.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Life {
    pub(crate) effects_left: usize,
    pub(crate) death: Death,
}

struct Stream {
    server: usize,
    queue: VecDeque<Delivery>,
}

impl Worker {
    /// A worker whose agent has not begun.
    pub(crate) fn new(index: usize, rng: &mut Rng) -> Worker {
        let name = Name::new(&format!("n{}", index + 1)).unwrap_or_else(|_| unreachable!("a short name"));
        let host = FakeHost::new(MEMORY, ["br0".to_owned()]);
        host.without_parts();
        let said = ObservedWorker {
            name,
            boot_id: format!("boot-{index}-0"),
            architecture: if index == 2 && rng.once_in(3) { "aarch64" } else { "x86_64" }.to_owned(),
            cpus: CPUS,
            host_cpus: 1,
            vms_max: (index == 1).then_some(VMS_MAX),
            orphans: Vec::new(),
            memory: MEMORY,
            vmm: "fake".to_owned(),
            address: String::new(),
            version: "sim".to_owned(),
            parts: Vec::new(),
        };
        Worker {
            id: WorkerId::new(Uid::from_bits(rng.bits())),
            said,
            drivers: host.drivers(),
            host,
            lease: None,
            agent: None,
            incarnation: 0,
            stream: None,
            steps: VecDeque::new(),
            checks: VecDeque::new(),
            failed_checks: std::collections::BTreeMap::new(),
            front: Front::default(),
            reports: VecDeque::new(),
            late: VecDeque::new(),
            replies: VecDeque::new(),
            told_ready: std::collections::BTreeSet::new(),
            lost: std::collections::BTreeSet::new(),
            powered_off: std::collections::BTreeSet::new(),
            heard: Heard::new(),
            registered: false,
            cut_off: false,
            life: None,
        }
    }

    /// The server whose stream this worker reads.
    pub(crate) fn stream_from(&self) -> Option<usize> {
        self.stream.as_ref().map(|stream| stream.server)
    }

    /// A delivery is put on its way.
    pub(crate) fn push_delivery(&mut self, delivery: Delivery) {
        if let Some(stream) = &mut self.stream {
            stream.queue.push_back(delivery);
        }
    }

    pub(crate) const fn agent(&self) -> Option<&Agent> {
        self.agent.as_ref()
    }

    pub(crate) const fn agent_mut(&mut self) -> Option<&mut Agent> {
        self.agent.as_mut()
    }

    fn kill_agent(&mut self) {
        self.agent = None;
        self.incarnation += 1;
        self.stream = None;
        self.steps.clear();
        self.checks.clear();
        self.front.forget_errands();
        // Whoever adopts a machine asks its guest again.
        self.told_ready.clear();
    }

    fn reboot(&mut self, index: usize) {
        self.kill_agent();
        self.host.reboot();
        self.heard.clear();
        self.said.boot_id = format!("boot-{index}-{}", self.incarnation);
        self.registered = false;
        self.lease = None;
    }

    /// Whether its life ends with this effect, before the agent learns of it.
    fn dies(&mut self, index: usize) -> bool {
        let Some(life) = &mut self.life else { return false };
        let death = life.death;
        match life.effects_left.checked_sub(1) {
            Some(left) => {
                life.effects_left = left;
                return false;
            }
            None => self.life = None,
        }
        match death {
            Death::Agent => self.kill_agent(),
            Death::Host => self.reboot(index),
        }
        true
    }

    /// VMs that run and whose guests have said that they are ready.
    pub(crate) fn ready(&self) -> Vec<VmId> {
        let running = self.host.running();
        self.told_ready.iter().copied().filter(|vm| running.contains(vm)).collect()
    }

    /// The guest of `vm` says that it is ready, unless it has said so.
    fn guest_says_ready(&mut self, vm: VmId, now: lightbyte_api::Timestamp) {
        if let Some(agent) = &mut self.agent
            && self.told_ready.insert(vm)
        {
            self.host.lease(vm);
            agent.guest_ready(HostObject { kind: Kind::Vm, uid: vm.uid() }, now, now);
        }
    }
}

impl Cluster {
    /// One worker does one thing.
    pub(crate) fn worker_acts(&mut self) -> Checked {
        let index = self.rng.below(self.workers.len());
        if self.workers[index].agent.is_none() {
            self.begin_agent(index);
        }
        for _ in 0..=self.rng.below(5) {
            match self.rng.below(20) {
                18..=19 if self.has_balancers && self.rng.once_in(2) => self.take_errand(index),
                18..=19 => self.take_check(index),
                16 if self.has_balancers => self.requests(index)?,
                0 => self.heartbeat(index)?,
                1 => self.connect_if_idle(index),
                2..=4 => self.take_delivery(index),
                5..=9 => self.do_step(index)?,
                10..=11 => self.send_report(index)?,
                12..=13 => self.take_reply(index),
                14..=15 => self.part_comes(index)?,
                _ if self.rng.once_in(3) => self.guests_write(index),
                _ if self.rng.once_in(6) => self.server_gives_another(index),
                _ => self.guests_become_ready(index),
            }
            self.agent_turns(index)?;
        }
        Ok(())
    }

    fn begin_agent(&mut self, index: usize) {
        let worker = &mut self.workers[index];
        if let Ok(facts) = hands::find_all(&worker.drivers) {
            worker.agent = Some(Agent::begin(facts));
            self.tell(|| format!("an agent begins on n{}", index + 1));
        }
    }

    /// The agent says what it wants to be done, and that is put on its way.
    pub(crate) fn agent_turns(&mut self, index: usize) -> Checked {
        let now = self.now();
        let worker = &mut self.workers[index];
        let Some(agent) = &mut worker.agent else { return Ok(()) };
        let actions = agent.actions(now);
        for (object, action) in actions {
            match action {
                Action::Report(report) => worker.reports.push_back((worker.incarnation, report)),
                Action::Step(step) => {
                    health::check_step(worker, object, &step)?;
                    worker.steps.push_back((object, step));
                }
                Action::Check(check) => worker.checks.push_back((object, check)),
                Action::Proxy(told) => worker.front.push(object, Errand::Proxy(told)),
                Action::Address(errand) => worker.front.push(object, Errand::Address(errand)),
            }
        }
        Ok(())
    }

    fn connect_if_idle(&mut self, index: usize) {
        if self.workers[index].stream.is_none() || self.rng.once_in(8) {
            self.connect(index);
        }
    }

    fn connect(&mut self, index: usize) {
        let servers: Vec<usize> = self.up_servers().into();
        let Some(server) = self.rng.pick(&servers).copied().filter(|_| !self.workers[index].cut_off) else {
            return;
        };
        self.begin_stream(index, server);
    }

    fn begin_stream(&mut self, index: usize, server: usize) {
        let view = self.servers[server].feed.view();
        let cursor = self.workers[index].agent.as_ref().and_then(Agent::cursor);
        if !delivery::may_begin(view, cursor, Some(self.core.revision())) {
            self.counts.add("stream refused by an old view");
            return;
        }
        if let Some(inventory) = delivery::inventory(view, self.workers[index].id, &delivery::unopened) {
            self.workers[index].stream = Some(Stream { server, queue: [inventory].into() });
        }
    }

    /// The streams that a server served end with it.
    pub(crate) fn drop_streams(&mut self, server: usize) {
        for worker in self.workers.iter_mut().filter(|worker| worker.stream_from() == Some(server)) {
            worker.stream = None;
        }
    }

    fn take_delivery(&mut self, index: usize) {
        let now = self.now();
        let worker = &mut self.workers[index];
        let (Some(agent), false) = (&mut worker.agent, worker.cut_off) else { return };
        let Some(delivery) = worker.stream.as_mut().and_then(|stream| stream.queue.pop_front()) else {
            return;
        };
        if agent.deliver(delivery, now).is_err() {
            worker.stream = None;
            self.counts.add("stale delivery refused");
        }
    }

    pub(crate) fn do_step(&mut self, index: usize) -> Checked {
        let now = self.now();
        let Some((object, step)) = self.workers[index].steps.pop_front() else { return Ok(()) };
        self.counts.add(step_name(&step));
        self.tell(|| format!("n{} does {} for {} {}", index + 1, step_name(&step), object.kind, object.uid));
        self.oracle.allow(object, &step, index, &self.workers)?;
        self.check_stop(index, object, &step)?;
        let worker = &mut self.workers[index];
        let outcome = hands::perform(&worker.drivers, object, &step);
        worker.front.break_off(&worker.host.running());
        let vm = VmId::new(object.uid);
        if outcome.is_ok() {
            worker.check_probes(object, &step, &self.squatters)?;
        }
        match step {
            // The machine is gone: the guest of the next one has its own word to say.
            Step::Kill => {
                worker.told_ready.remove(&vm);
                worker.failed_checks.remove(&vm);
            }
            Step::Forget if outcome.is_ok() => worker.front.remove(vm),
            // It is the other worker's that came, and not the one that vanished here once.
            Step::TakeDisk if outcome.is_ok() => drop(worker.lost.remove(&VolumeId::new(object.uid))),
            // A quick guest is heard before the end of the step that started it.
            Step::Start if outcome.is_ok() && self.rng.once_in(3) => {
                self.counts.add("guest ready before its start was told");
                self.workers[index].guest_says_ready(vm, now);
            }
            _ => {}
        }
        if self.workers[index].dies(index) {
            return Ok(());
        }
        if self.faults && self.rng.once_in(20) {
            // The agent dies after the effect, and before it knows of it.
            self.counts.add("fault: agent killed");
            self.workers[index].kill_agent();
            return Ok(());
        }
        let worker = &mut self.workers[index];
        let Some(agent) = &mut worker.agent else { return Ok(()) };
        match (hands::facts(&worker.drivers, object), outcome) {
            (Ok(facts), Ok(())) => agent.observed(object, facts, Some(&step), now),
            (Ok(facts), Err(error)) => {
                if self.trace {
                    println!("             it fails: {}", error.chain());
                }
                agent.failed(object, facts, &error.chain(), now);
            }
            (Err(_), _) => worker.kill_agent(),
        }
        Ok(())
    }

    /// The report that arrives next. A server that was stopped with a request in its hands stores it much later, when
    /// its sender has long asked again.
    fn next_report(&mut self, index: usize) -> Option<(u64, Report)> {
        let is_late = !self.workers[index].late.is_empty() && self.rng.once_in(6);
        let worker = &mut self.workers[index];
        if is_late {
            self.counts.add("fault: report arrives again");
            return worker.late.pop_front().map(|report| (u64::MAX, report));
        }
        let (incarnation, report) = worker.reports.pop_front()?;
        if self.faults && self.rng.once_in(4) {
            worker.late.push_back(report.clone());
        }
        Some((incarnation, report))
    }

    fn send_report(&mut self, index: usize) -> Checked {
        if self.workers[index].cut_off {
            return Ok(());
        }
        let Some((incarnation, report)) = self.next_report(index) else { return Ok(()) };
        let servers: Vec<usize> = self.up_servers().into();
        let lost = self.faults && self.rng.once_in(20);
        let Some(server) = self.rng.pick(&servers).copied() else {
            self.workers[index].replies.push_back((incarnation, report.object, Reply::Lost));
            return Ok(());
        };
        let worker = self.workers[index].id;
        let view = self.servers[server].feed.view().clone();
        let reply = match request::report(&view, worker, &report).map(request::Outcome::transaction) {
            Ok(Some(decision)) => self.carry_report(&decision, &view, worker, report.object)?,
            _ => Reply::Lost,
        };
        let reply = if lost {
            self.counts.add("fault: reply lost");
            Reply::Lost
        } else {
            reply
        };
        if !self.workers[index].dies(index) {
            self.workers[index].replies.push_back((incarnation, report.object, reply));
        }
        Ok(())
    }

    fn carry_report(
        &mut self,
        decision: &Transaction,
        view: &lightbyte_plan::View,
        worker: WorkerId,
        object: HostObject,
    ) -> Result<Reply, Violation> {
        Ok(match self.commit(decision, view, Writer::Worker(worker), |_| None)? {
            Sent::Committed(revision) => Reply::Accepted { revision },
            Sent::Unknown => Reply::Lost,
            Sent::Conflict(..) => {
                self.counts.add("conflict: worker");
                let truth = self.oracle.truth();
                let key = lightbyte_api::Key::Observed(worker, object);
                Reply::Refused {
                    observed: truth.observed(worker, object).map(|value| Stamped {
                        mod_revision: truth.mod_revision(&key),
                        value: value.as_ref().clone(),
                    }),
                    assigned_revision: truth.mod_revision(&lightbyte_api::Key::Assigned(worker, object)),
                }
            }
        })
    }

    fn take_reply(&mut self, index: usize) {
        let worker = &mut self.workers[index];
        let Some((incarnation, object, reply)) = worker.replies.pop_front() else { return };
        if let Some(agent) = worker.agent.as_mut().filter(|_| incarnation == worker.incarnation) {
            agent.reply(object, reply);
        }
    }

    /// Registers the worker where that is missing, and keeps it alive.
    fn heartbeat(&mut self, index: usize) -> Checked {
        let servers: Vec<usize> = self.up_servers().into();
        let Some(server) = self.rng.pick(&servers).copied().filter(|_| !self.workers[index].cut_off) else {
            return Ok(());
        };
        let (now, store_now) = (self.now(), self.store_now());
        let view = self.servers[server].feed.view().clone();
        let (id, said) = (self.workers[index].id, self.workers[index].said.clone());
        if !self.workers[index].registered {
            let Ok(outcome) = request::register(&view, id, &said, now) else { return Ok(()) };
            self.workers[index].registered = match outcome.transaction() {
                None => true,
                Some(decision) => {
                    let outcome = self.commit(&decision, &view, Writer::Registration(id), |_| None)?;
                    matches!(outcome, Sent::Committed(_))
                }
            };
            return Ok(());
        }
        let renewed = self.workers[index]
            .lease
            .is_some_and(|lease| self.core.lease_keep_alive(lease, store_now).is_ok());
        if renewed {
            if let Some(agent) = &mut self.workers[index].agent {
                agent.acknowledged(now);
            }
            return Ok(());
        }
        let Ok(outcome) = request::begin_life(&view, id, &said.boot_id, now) else { return Ok(()) };
        let Some(decision) = outcome.transaction() else { return Ok(()) };
        let lease = self.core.lease_grant(std::time::Duration::from_millis(LEASE_MILLIS), store_now).id;
        if let Sent::Committed(_) = self.commit(&decision, &view, Writer::Server, |_| Some(lease))? {
            self.workers[index].lease = Some(lease);
            self.tell(|| format!("n{} is alive", index + 1));
        }
        Ok(())
    }

    fn guests_become_ready(&mut self, index: usize) {
        let now = self.now();
        let worker = &mut self.workers[index];
        for vm in worker.host.shutting_down() {
            worker.host.exit(vm);
            look(worker, vm);
        }
        for vm in worker.host.running() {
            worker.guest_says_ready(vm, now);
        }
    }

    /// Everything in the worker's favour, until nothing is left to do at this moment.
    pub(crate) fn settle_worker(&mut self, index: usize) -> Checked {
        if self.workers[index].agent.is_none() {
            self.begin_agent(index);
        }
        self.heartbeat(index)?;
        self.heartbeat(index)?;
        let server = index % self.servers.len();
        if self.workers[index].stream_from() != Some(server) {
            self.begin_stream(index, server);
        }
        for _ in 0..8 {
            while self.workers[index].stream.as_ref().is_some_and(|stream| !stream.queue.is_empty()) {
                self.take_delivery(index);
            }
            self.guests_become_ready(index);
            self.agent_turns(index)?;
            self.all_parts_come(index)?;
            self.agent_turns(index)?;
            while !self.workers[index].steps.is_empty() {
                self.do_step(index)?;
                self.agent_turns(index)?;
            }
            while !self.workers[index].reports.is_empty() || !self.workers[index].late.is_empty() {
                self.send_report(index)?;
            }
            while !self.workers[index].checks.is_empty() {
                self.take_check(index);
                self.agent_turns(index)?;
            }
            self.requests_end(index);
            while !self.workers[index].front.is_idle() {
                self.take_errand(index);
                self.agent_turns(index)?;
            }
            while !self.workers[index].replies.is_empty() {
                self.take_reply(index);
            }
        }
        Ok(())
    }
}

fn look(worker: &mut Worker, vm: VmId) {
    if let Some(agent) = &mut worker.agent {
        agent.look(HostObject { kind: Kind::Vm, uid: vm.uid() });
    }
}

fn step_name(step: &Step) -> &'static str {
    match step {
        Step::Save(_) => "step: save",
        Step::EnsureTaps => "step: ensure taps",
        Step::Probe => "step: probe",
        Step::RemoveTaps => "step: remove taps",
        Step::Start => "step: start",
        Step::Shutdown => "step: shutdown",
        Step::Kill => "step: kill",
        Step::CreateDisk { .. } => "step: create disk",
        Step::GrowDisk { .. } => "step: grow disk",
        Step::RemoveDisk => "step: remove disk",
        Step::FetchDisk => "step: fetch disk",
        Step::TakeDisk => "step: take disk",
        Step::DropFetched => "step: drop fetched",
        Step::QuarantineDisk => "step: quarantine disk",
        Step::Forget => "step: forget",
        Step::Look => "step: look",
    }
}
