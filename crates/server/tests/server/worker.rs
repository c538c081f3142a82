//! A worker for tests: the shipped agent and a fake host, over real HTTP. Steps are done in place.

use std::collections::VecDeque;
use std::time::Duration;

use lightbyte_api::assigned::HostObject;
use lightbyte_api::observed::ObservedWorker;
use lightbyte_api::wire::{Heartbeat, HeartbeatAnswer};
use lightbyte_api::{ByteSize, Kind, Name, Timestamp, Uid, WorkerId};
use lightbyte_link::{Client, ClientError, Lines};
use lightbyte_plan::agent::{Action, Agent, Delivery, Reply, Report};
use lightbyte_vmm::{Drivers, FakeHost, hands};
use tokio::time::{MissedTickBehavior, interval, sleep};

/// How often it shows that it lives.
const HEARTBEAT_PERIOD: Duration = Duration::from_secs(1);
/// The pause before anything that failed is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

pub(crate) struct TestWorker {
    pub(crate) id: WorkerId,
    pub(crate) said: ObservedWorker,
    pub(crate) host: FakeHost,
    drivers: Drivers,
    client: Client,
}

impl TestWorker {
    pub(crate) fn new(name: &str, client: &Client) -> TestWorker {
        let host = FakeHost::new(ByteSize::from_mib(2_048), ["br0".to_owned()]);
        let bits = name.bytes().fold(77, |bits: u128, byte| bits * 256 + u128::from(byte));
        let said = ObservedWorker {
            name: Name::new(name).expect("a name"),
            boot_id: format!("boot-{name}"),
            architecture: "x86_64".to_owned(),
            cpus: 4,
            host_cpus: 0,
            vms_max: None,
            orphans: Vec::new(),
            memory: ByteSize::from_mib(2_048),
            vmm: "fake".to_owned(),
            address: String::new(),
            version: "test".to_owned(),
            parts: Vec::new(),
        };
        let drivers = host.drivers();
        TestWorker { id: WorkerId::new(Uid::from_bits(bits)), said, host, drivers, client: client.clone() }
    }

    pub(crate) fn path(&self, verb: &str) -> String {
        format!("/v1/workers/{}/{verb}", self.id)
    }

    pub(crate) async fn register(&self) -> Result<(), ClientError> {
        self.client.post(&self.path("register"), &self.said).await.map(|answer| answer.value)
    }

    pub(crate) async fn heartbeat(&self) -> Result<HeartbeatAnswer, ClientError> {
        let heartbeat = Heartbeat { boot_id: self.said.boot_id.clone() };
        self.client.post(&self.path("heartbeat"), &heartbeat).await.map(|answer| answer.value)
    }

    pub(crate) async fn report(&self, report: &Report) -> Result<Reply, ClientError> {
        self.client.post(&self.path("report"), report).await.map(|answer| answer.value)
    }

    pub(crate) async fn stream(&self, cursor: Option<u64>) -> Result<Lines, ClientError> {
        let cursor = cursor.map(|cursor| format!("?cursor={cursor}")).unwrap_or_default();
        self.client.lines(&format!("{}{cursor}", self.path("stream"))).await
    }

    /// Registers and lives until it is dropped. Guests are ready at once.
    pub(crate) async fn run(self) {
        while self.register().await.is_err() {
            sleep(RETRY_PAUSE).await;
        }
        let facts = hands::find_all(&self.drivers).expect("a fake host lists all");
        let mut agent = Agent::begin(facts);
        let mut beat = interval(HEARTBEAT_PERIOD);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut lines: Option<Lines> = None;
        loop {
            if lines.is_none() {
                lines = self.stream(agent.cursor()).await.ok();
            }
            let delivery = async {
                match &mut lines {
                    Some(lines) => lines.next::<Delivery>().await.ok().flatten(),
                    None => None,
                }
            };
            tokio::select! {
                _ = beat.tick() => {
                    let _ = self.heartbeat().await;
                }
                delivery = delivery => {
                    let taken = delivery.is_some_and(|delivery| agent.deliver(delivery, now()).is_ok());
                    if !taken || !take_what_is_there(&mut agent, &mut lines).await {
                        lines = None;
                        sleep(RETRY_PAUSE).await;
                    }
                }
            }
            self.act(&mut agent).await;
        }
    }

    async fn act(&self, agent: &mut Agent) {
        loop {
            let mut actions: VecDeque<(HostObject, Action)> = agent.actions(now()).into();
            for vm in self.host.running() {
                agent.guest_ready(HostObject { kind: Kind::Vm, uid: vm.uid() }, now(), now());
            }
            for vm in self.host.shutting_down() {
                self.host.exit(vm);
                let object = HostObject { kind: Kind::Vm, uid: vm.uid() };
                agent.observed(object, hands::facts(&self.drivers, object).expect("facts"), None, now());
            }
            if actions.is_empty() {
                actions = agent.actions(now()).into();
            }
            if actions.is_empty() {
                return;
            }
            for (object, action) in actions {
                match action {
                    Action::Report(report) => {
                        let reply = self.report(&report).await.unwrap_or(Reply::Lost);
                        agent.reply(object, reply);
                    }
                    Action::Check(_) => unreachable!("nothing here has a health check"),
                    Action::Proxy(_) | Action::Address(_) => unreachable!("nothing here is a proxy"),
                    Action::Step(step) => {
                        let done = hands::perform(&self.drivers, object, &step);
                        let facts = hands::facts(&self.drivers, object).expect("facts of a fake host");
                        match done {
                            Ok(()) => agent.observed(object, facts, Some(&step), now()),
                            Err(error) => agent.failed(object, facts, &error.chain(), now()),
                        }
                    }
                }
            }
        }
    }
}

/// Takes the lines that have come already, before anything is done: an agent that has reported refuses what is older
/// than its own report. False when the stream is of no use any more.
async fn take_what_is_there(agent: &mut Agent, lines: &mut Option<Lines>) -> bool {
    let Some(lines) = lines else { return false };
    loop {
        tokio::select! {
            biased;
            line = lines.next::<Delivery>() => {
                let taken = line.ok().flatten().is_some_and(|delivery| agent.deliver(delivery, now()).is_ok());
                if !taken {
                    return false;
                }
            }
            () = std::future::ready(()) => return true,
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the test's worker is a machine with a clock")]
pub(crate) fn now() -> Timestamp {
    Timestamp::now()
}
