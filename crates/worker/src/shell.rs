//! Carries messages between the agent, which decides, and everything else: a server's stream, reports and their
//! answers, steps on the host, events of machines, and time.
//!
//! The agent belongs to one task. At most one report and one step of each object are under way, because the agent
//! hands out no more; each of them is a task of its own that sends back what came of it.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use lightbyte_api::assigned::HostObject;
use lightbyte_api::health::HealthCheck;
use lightbyte_api::observed::{ObservedWorker, Orphan};
use lightbyte_api::{Kind, Timestamp, VmId, WorkerId};
use lightbyte_link::{Client, ClientError, Lines};
use lightbyte_plan::agent::address;
use lightbyte_plan::agent::health::Outcome;
use lightbyte_plan::agent::proxy::Answer;
use lightbyte_plan::agent::{Action, Agent, Delivery, Facts, Reply, Report, Step, Told};
use lightbyte_vmm::{Drivers, VmmEvent, hands};
use tokio::sync::{Semaphore, mpsc, watch};

use crate::clock::now;
use crate::life::describe;
use crate::parts::{self, Fetches, News as PartNews};
use crate::systemd::Watchdog;

/// How many messages may wait for the agent. Each task under way sends one, and there are at most three for each object
/// of a host; machine events come on top. A full queue makes the senders wait.
const MESSAGES_MAX: usize = 4_096;
/// How many steps run at once: each holds a thread, and disks do not get faster by more.
const STEPS_AT_ONCE_MAX: usize = 16;
/// How many disks are made or grown at once: a copy may take hours, and must not keep machines from being ended.
const DISKS_AT_ONCE_MAX: usize = 4;
/// How many guests are checked, and proxies asked, at once: each holds a thread, and a silent one for as long as its check may take.
const CHECKS_AT_ONCE_MAX: usize = 64;
/// The pause before a stream is opened again, and before a lost report is sent again.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// The pause before the host is asked again after it could not tell.
const UNCLEAR_PAUSE: Duration = Duration::from_secs(1);
/// How long a server may take to store a report. It is sent again, to another, without harm: its guard tells.
const REPORT_WITHIN: Duration = Duration::from_secs(5);
/// A stream that says nothing for so long is dead: servers tell their progress every two seconds.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// What the tasks send to the agent's own.
enum Message {
    Stream(Option<Lines>),
    Replied(HostObject, Reply),
    StepDone { object: HostObject, step: Step, facts: Facts, problem: Option<String> },
    Checked(HostObject, Outcome),
    Answered(HostObject, Answer),
    Addressed(HostObject, address::Told),
    Machine(VmmEvent),
}

pub(crate) struct Shell {
    worker: WorkerId,
    client: Client,
    drivers: Drivers,
    agent: Agent,
    stream: Option<Lines>,
    sender: mpsc::Sender<Message>,
    messages: mpsc::Receiver<Message>,
    steps: Arc<Semaphore>,
    disk_steps: Arc<Semaphore>,
    checks: Arc<Semaphore>,
    caught_up: watch::Sender<bool>,
    /// When the last heartbeat was sent that was acknowledged.
    acknowledged: watch::Receiver<Option<Timestamp>>,
    fetches: Option<Fetches>,
    /// What this worker says of itself.
    said: watch::Sender<ObservedWorker>,
}

impl Shell {
    /// `caught_up` is told when the store knows how everything on this host is.
    pub(crate) fn begin(
        worker: WorkerId,
        client: Client,
        drivers: Drivers,
        store: Option<Arc<parts::Store>>,
        caught_up: watch::Sender<bool>,
        acknowledged: watch::Receiver<Option<Timestamp>>,
        said: watch::Sender<ObservedWorker>,
    ) -> Result<Shell> {
        let (sender, messages) = mpsc::channel(MESSAGES_MAX);
        let events = sender.clone();
        // Listening comes before looking: what happens in between is then told twice, not missed.
        drivers.vmm.watch(Arc::new(move |event| {
            if let Err(mpsc::error::TrySendError::Full(_)) = events.try_send(Message::Machine(event)) {
                tracing::error!("the agent is too far behind; an event of a machine was dropped");
            }
        }));
        let begun = Instant::now();
        let found = hands::find_all(&drivers).context("list what is on this host")?;
        if !found.is_empty() {
            let took_ms = begun.elapsed().as_secs_f64() * 1e3;
            tracing::info!("found {} objects of an earlier run in {took_ms:.1} ms", found.len());
        }
        let steps = Arc::new(Semaphore::new(STEPS_AT_ONCE_MAX));
        let disk_steps = Arc::new(Semaphore::new(DISKS_AT_ONCE_MAX));
        Ok(Shell {
            worker,
            client,
            drivers,
            agent: Agent::begin(found),
            stream: None,
            sender,
            messages,
            steps,
            disk_steps,
            checks: Arc::new(Semaphore::new(CHECKS_AT_ONCE_MAX)),
            caught_up,
            acknowledged,
            fetches: store.map(Fetches::new),
            said,
        })
    }

    pub(crate) async fn run(mut self, shutdown: impl Future<Output = ()>) -> Result<()> {
        tokio::pin!(shutdown);
        self.open_stream(Duration::ZERO);
        let mut watchdog = Watchdog::begin();
        let mut tidying =
            tokio::time::interval_at(tokio::time::Instant::now() + parts::TIDY_PERIOD, parts::TIDY_PERIOD);
        loop {
            self.carry_out();
            if !*self.caught_up.borrow() && self.agent.is_caught_up() {
                self.caught_up.send_replace(true);
            }
            let wake = self.agent.next_wake().map_or(Duration::from_secs(60), until).min(watchdog.turn());
            tokio::select! {
                () = &mut shutdown => {
                    watchdog.end();
                    return Ok(());
                }
                Some(message) = self.messages.recv() => self.take(message),
                line = next_line(self.stream.as_mut()) => self.take_line(line),
                news = next_part(self.fetches.as_mut()) => self.take_part(news),
                _ = tidying.tick() => self.tidy(),
                () = tokio::time::sleep(wake) => {}
            }
        }
    }

    /// Sets off everything that the agent wants to be done now.
    fn carry_out(&mut self) {
        let acknowledged_at = *self.acknowledged.borrow();
        acknowledged_at.into_iter().for_each(|at| self.agent.acknowledged(at));
        for (object, action) in self.agent.actions(now()) {
            match action {
                Action::Report(report) => self.send(object, report),
                Action::Step(step) => self.perform(object, step),
                Action::Check(check) => self.check(object, check),
                Action::Proxy(told) => self.ask_proxy(object, told),
                Action::Address(errand) => self.tell_address(object, errand),
            }
        }
        let orphans = self.agent.orphans();
        self.said.send_if_modified(|said| {
            let is_new = said.orphans != orphans;
            let is_unknown = |orphan: &&Orphan| said.orphans.iter().all(|said| said.uid != orphan.uid);
            for orphan in orphans.iter().filter(|orphan| is_new && is_unknown(orphan)) {
                let Orphan { kind, uid, left, .. } = orphan;
                tracing::warn!("nobody has assigned {kind} {uid}, and it is left alone: {left}");
            }
            if is_new {
                said.orphans = orphans;
            }
            is_new
        });
        if let Some(fetches) = &mut self.fetches {
            fetches.want(&self.agent.parts_wanted());
        }
    }

    fn send(&self, object: HostObject, report: Report) {
        let (client, sender) = (self.client.within(REPORT_WITHIN), self.sender.clone());
        let path = format!("/v1/workers/{}/report", self.worker);
        tokio::spawn(async move {
            let reply = match client.post::<_, Reply>(&path, &report).await {
                Ok(answer) => answer.value,
                Err(error) => {
                    tracing::warn!("report on {} {} failed: {}", object.kind, object.uid, describe(&error));
                    tokio::time::sleep(RETRY_PAUSE).await;
                    Reply::Lost
                }
            };
            // The agent's end is the only reason for a closed queue.
            let _ = sender.send(Message::Replied(object, reply)).await;
        });
    }

    fn perform(&self, object: HostObject, step: Step) {
        let (drivers, sender) = (self.drivers.clone(), self.sender.clone());
        let steps = match step {
            Step::CreateDisk { .. } | Step::GrowDisk { .. } | Step::FetchDisk => Arc::clone(&self.disk_steps),
            _ => Arc::clone(&self.steps),
        };
        let name = self.name_of(object);
        tokio::spawn(async move {
            let _turn = steps.acquire_owned().await;
            tracing::debug!("{name}: {}", step_name(&step));
            let (hands, doing) = (drivers.clone(), step.clone());
            let outcome = tokio::task::spawn_blocking(move || hands::perform(&hands, object, &doing)).await;
            let problem = match outcome {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(format!("{}: {}", step_name(&step), error.chain())),
                Err(panic) => Some(format!("{}: the driver failed: {panic}", step_name(&step))),
            };
            match &problem {
                Some(problem) => tracing::warn!("{name}: {problem}"),
                None if !matches!(step, Step::Save(_) | Step::Look | Step::FetchDisk) => {
                    tracing::info!("{name}: {}", step_name(&step));
                }
                None => {}
            }
            let facts = observe(&drivers, object).await;
            let _ = sender.send(Message::StepDone { object, step, facts, problem }).await;
        });
    }

    fn check(&self, object: HostObject, check: HealthCheck) {
        let (drivers, sender, checks) = (self.drivers.clone(), self.sender.clone(), Arc::clone(&self.checks));
        tokio::spawn(async move {
            let _turn = checks.acquire_owned().await;
            let vm = VmId::new(object.uid);
            let outcome = tokio::task::spawn_blocking(move || hands::check(&drivers, vm, &check)).await;
            let outcome =
                outcome.unwrap_or_else(|panic| Outcome::Failed(format!("the driver failed: {panic}")));
            let _ = sender.send(Message::Checked(object, outcome)).await;
        });
    }

    fn ask_proxy(&self, object: HostObject, told: Option<Told>) {
        let (drivers, sender, checks) = (self.drivers.clone(), self.sender.clone(), Arc::clone(&self.checks));
        let name = self.name_of(object);
        tokio::spawn(async move {
            let _turn = checks.acquire_owned().await;
            let vm = VmId::new(object.uid);
            let revision = told.as_ref().map(|told| told.revision);
            let answer =
                tokio::task::spawn_blocking(move || hands::ask_proxy(&drivers, vm, told.as_ref())).await;
            let answer = answer.unwrap_or_else(|panic| Answer::Silent(format!("the driver failed: {panic}")));
            match (&answer, revision) {
                (Answer::Does { .. }, Some(revision)) => {
                    tracing::info!("{name}: its proxy has revision {revision}");
                }
                (Answer::Refused(because), Some(revision)) => {
                    tracing::warn!("{name}: its proxy refuses revision {revision}: {because}");
                }
                (Answer::Silent(problem), _) => {
                    tracing::debug!("{name}: its proxy does not answer: {problem}");
                }
                _ => {}
            }
            let _ = sender.send(Message::Answered(object, answer)).await;
        });
    }

    fn tell_address(&self, object: HostObject, errand: address::Errand) {
        let (drivers, sender, checks) = (self.drivers.clone(), self.sender.clone(), Arc::clone(&self.checks));
        let name = self.name_of(object);
        tokio::spawn(async move {
            let _turn = checks.acquire_owned().await;
            let told =
                tokio::task::spawn_blocking(move || hands::tell_address(&drivers, object, errand)).await;
            let told =
                told.unwrap_or_else(|panic| address::Told::Failed(format!("the driver failed: {panic}")));
            match &told {
                address::Told::Taken => tracing::warn!("{name}: somebody else has its virtual address"),
                address::Told::Failed(problem) => tracing::debug!("{name}: its virtual address: {problem}"),
                address::Told::Done { left } => tracing::debug!("{name}: told {errand:?}, left: {left}"),
            }
            let _ = sender.send(Message::Addressed(object, told)).await;
        });
    }

    fn name_of(&self, object: HostObject) -> String {
        let saved = self.agent.desk(&object).and_then(|desk| desk.name());
        match saved {
            Some(name) => format!("{}/{name}", object.kind),
            None => format!("{} {}", object.kind, object.uid),
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Stream(Some(lines)) => self.stream = Some(lines),
            Message::Stream(None) => self.open_stream(RETRY_PAUSE),
            Message::Replied(object, reply) => self.agent.reply(object, reply),
            Message::StepDone { object, facts, problem: Some(problem), .. } => {
                self.agent.failed(object, facts, &problem, now());
            }
            Message::StepDone { object, step, facts, problem: None } => {
                self.agent.observed(object, facts, Some(&step), now());
            }
            Message::Checked(object, outcome) => self.agent.checked(object, outcome, now()),
            Message::Addressed(object, told) => self.agent.addressed(object, told, now()),
            Message::Answered(object, answer) => self.agent.answered(object, answer, now()),
            Message::Machine(VmmEvent::Ready { vm, agent_at }) => {
                self.agent.guest_ready(HostObject { kind: Kind::Vm, uid: vm.uid() }, agent_at, now());
            }
            Message::Machine(VmmEvent::Hindered { vm, problem }) => {
                self.agent.guest_problem(HostObject { kind: Kind::Vm, uid: vm.uid() }, &problem);
            }
            Message::Machine(VmmEvent::Leaving { vm, leaving }) => {
                let object = HostObject { kind: Kind::Vm, uid: vm.uid() };
                tracing::info!("{}: its guest is about to end: {leaving:?}", self.name_of(object));
                self.agent.guest_leaves(object, leaving);
            }
            Message::Machine(VmmEvent::Exited(vm)) => {
                let object = HostObject { kind: Kind::Vm, uid: vm.uid() };
                tracing::info!("{}: its machine process has ended", self.name_of(object));
                self.agent.look(object);
            }
        }
    }

    fn take_part(&mut self, news: Option<PartNews>) {
        match news {
            Some(PartNews::Came(part)) => self.agent.part_came(&part),
            Some(PartNews::Hindered(part, problem)) => self.agent.part_hindered(&part, &problem),
            // The fetches keep a sender of their own.
            None => {}
        }
    }

    /// Tidies up disks that were put aside; and parts of images, unless nobody has said yet what is assigned.
    fn tidy(&self) {
        let disks = Arc::clone(&self.drivers.disks);
        tokio::task::spawn_blocking(move || disks.sweep());
        let (Some(fetches), Some(epoch), Some(cursor)) =
            (&self.fetches, self.agent.epoch(), self.agent.cursor())
        else {
            return;
        };
        let store = Arc::clone(fetches.store());
        tokio::spawn(parts::tidy(store, self.agent.parts_needed(), epoch.clone(), cursor));
    }

    fn take_line(&mut self, line: Result<Option<Delivery>, ClientError>) {
        let problem = match line {
            Ok(Some(delivery)) => match self.agent.deliver(delivery, now()) {
                Ok(()) => return,
                Err(stale) => stale.to_string(),
            },
            Ok(None) => "the server ended it".to_owned(),
            Err(error) => describe(&error),
        };
        tracing::info!("the stream of assignments ended: {problem}");
        self.stream = None;
        self.client.leave_server();
        self.open_stream(RETRY_PAUSE);
    }

    fn open_stream(&self, pause: Duration) {
        let (client, sender, worker) = (self.client.clone(), self.sender.clone(), self.worker);
        let cursor = self.agent.cursor().map_or_else(String::new, |cursor| format!("?cursor={cursor}"));
        tokio::spawn(async move {
            tokio::time::sleep(pause).await;
            let lines = match client.lines(&format!("/v1/workers/{worker}/stream{cursor}")).await {
                Ok(lines) => Some(lines),
                Err(error) => {
                    tracing::debug!("no stream of assignments: {}", describe(&error));
                    client.leave_server();
                    None
                }
            };
            let _ = sender.send(Message::Stream(lines)).await;
        });
    }
}

/// The next delivery; never when there is no stream.
async fn next_line(stream: Option<&mut Lines>) -> Result<Option<Delivery>, ClientError> {
    let Some(stream) = stream else { return std::future::pending().await };
    match tokio::time::timeout(SILENCE_MAX, stream.next()).await {
        Ok(line) => line,
        Err(_) => Ok(None),
    }
}

/// What became of a fetch; never when nothing is fetched.
async fn next_part(fetches: Option<&mut Fetches>) -> Option<PartNews> {
    match fetches {
        Some(fetches) => fetches.next().await,
        None => std::future::pending().await,
    }
}

/// Asks the host until it can tell. What it cannot tell is never taken for absence.
async fn observe(drivers: &Drivers, object: HostObject) -> Facts {
    loop {
        let hands = drivers.clone();
        match tokio::task::spawn_blocking(move || hands::facts(&hands, object)).await {
            Ok(Ok(facts)) => return facts,
            Ok(Err(error)) => {
                tracing::error!("cannot tell the state of {} {}: {}", object.kind, object.uid, error.chain());
            }
            Err(panic) => {
                tracing::error!("cannot tell the state of {} {}: {panic}", object.kind, object.uid);
            }
        }
        tokio::time::sleep(UNCLEAR_PAUSE).await;
    }
}

fn until(at: Timestamp) -> Duration {
    let millis = at.as_millisecond().saturating_sub(now().as_millisecond());
    Duration::from_millis(u64::try_from(millis).unwrap_or(0))
}

fn step_name(step: &Step) -> &'static str {
    match step {
        Step::Save(_) => "save",
        Step::EnsureTaps => "make taps",
        Step::Probe => "probe for its addresses",
        Step::RemoveTaps => "remove taps",
        Step::Start => "start machine",
        Step::Shutdown => "ask the guest to shut down",
        Step::Kill => "end machine",
        Step::CreateDisk { .. } => "make disk",
        Step::GrowDisk { .. } => "grow disk",
        Step::RemoveDisk => "remove disk",
        Step::FetchDisk => "fetch disk",
        Step::TakeDisk => "take what was fetched as the disk",
        Step::DropFetched => "remove what was fetched",
        Step::QuarantineDisk => "put the disk into quarantine",
        Step::Forget => "forget",
        Step::Look => "look",
    }
}
