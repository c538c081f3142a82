//! A worker as it is shipped but for its machine processes: its agent, its hands, and the part of the store that concerns
//! it. Steps may fail here, which the agent is told; and it may be killed after any effect.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use lightbyte_api::assigned::{
    Assigned, AssignedDisk, AssignedNic, AssignedVm, AssignedVolume, HostObject, Source, WantedVm,
    WantedVolume,
};
use lightbyte_api::first_boot::FirstBoot;
use lightbyte_api::kinds::image::Part;
use lightbyte_api::kinds::vm::RestartPolicy;
use lightbyte_api::observed::Observed;
use lightbyte_api::records::Epoch;
use lightbyte_api::{ByteSize, Kind, MacAddress, Name, Timestamp, Uid, VmId, VolumeId};
use lightbyte_plan::agent::{
    Action, Agent, Delivery, Item, Leaving, News, Reply, Report, Stamped, Step, VmmState,
};
use lightbyte_vmm::{Drivers, FakeHost, Taps, Vmm as _, hands};

use crate::machines::Machines;
use crate::room::{PART_BYTES, Room, lose_taps};

/// How often an agent may be asked for actions before it counts as restless.
const ROUNDS_MAX: usize = 400;

pub(crate) const VM: HostObject = HostObject { kind: Kind::Vm, uid: Uid::from_bits(0xA) };
pub(crate) const VOLUME: HostObject = HostObject { kind: Kind::Volume, uid: Uid::from_bits(0xB) };

pub(crate) const fn volume_id() -> VolumeId {
    VolumeId::new(VOLUME.uid)
}

/// What a guest does when it is asked to shut down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Guest {
    Obeys,
    Ignores,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Slot {
    assigned: Option<Stamped<Assigned>>,
    observed: Option<Stamped<Observed>>,
}

pub(crate) struct Worker {
    pub(crate) drivers: Drivers,
    pub(crate) machines: Arc<Machines>,
    agent: Agent,
    store: BTreeMap<HostObject, Slot>,
    revision: u64,
    now: Timestamp,
    pub(crate) guest: Guest,
    /// What is assigned next time.
    pub(crate) vm: AssignedVm,
    /// What is assigned next time.
    pub(crate) volume: AssignedVolume,
    story: Vec<String>,
}

impl Worker {
    pub(crate) fn new(room: &Room) -> Worker {
        let host = FakeHost::new(ByteSize::from_mib(1_024), []);
        let machines = Arc::new(Machines::new(host.clone(), room.files.clone(), room.run.clone()));
        let files = Arc::new(room.files.clone());
        Worker {
            drivers: Drivers {
                vmm: machines.clone(),
                disks: files.clone(),
                network: Arc::new(Taps {}),
                parts: Arc::new(room.files.parts().clone()),
                records: files,
                guest: Arc::new(host),
            },
            machines,
            agent: Agent::default(),
            store: BTreeMap::new(),
            revision: 10,
            now: Timestamp::from_millisecond(1_800_000_000_000).expect("a time in range"),
            guest: Guest::Obeys,
            vm: assigned_vm(),
            volume: assigned_volume(),
            story: Vec::new(),
        }
    }

    /// An agent begins, with what it finds on the host.
    pub(crate) fn begin(&mut self, room: &Room) {
        self.story.push("an agent begins".to_owned());
        self.drivers.network = Arc::new(room.start());
        self.agent = Agent::begin(hands::find_all(&self.drivers).expect("a whole list"));
        let items = self.store.iter().map(|(object, slot)| Item {
            object: *object,
            assigned: slot.assigned.clone(),
            observed: slot.observed.clone(),
            told: None,
        });
        let items = items.collect();
        self.deliver(News::Inventory(items));
        if self.is_running() {
            self.agent.guest_ready(VM, self.now, self.now);
        }
    }

    fn deliver(&mut self, news: News) {
        let epoch = Epoch { cluster: Uid::from_bits(1), epoch: 1 };
        let delivery = Delivery { epoch, revision: self.revision, news };
        self.agent.deliver(delivery, self.now).expect("a delivery that is not stale");
    }

    pub(crate) fn tell_vm(&mut self, wanted: WantedVm) {
        self.vm.sequence += 1;
        self.vm.generation += 1;
        self.vm.wanted = wanted;
        self.tell(VM, Assigned::Vm(self.vm.clone()));
    }

    pub(crate) fn tell_volume(&mut self, wanted: WantedVolume) {
        self.volume.sequence += 1;
        self.volume.generation += 1;
        self.volume.wanted = wanted;
        self.tell(VOLUME, Assigned::Volume(self.volume.clone()));
    }

    fn tell(&mut self, object: HostObject, value: Assigned) {
        self.revision += 1;
        let assigned = Some(Stamped { mod_revision: self.revision, value });
        self.store.entry(object).or_default().assigned = assigned.clone();
        // An agent that has not begun gets it with its inventory.
        if self.agent.cursor().is_some() {
            self.deliver(News::Change { object, assigned });
        }
    }

    /// Whether the machine process runs.
    pub(crate) fn is_running(&self) -> bool {
        self.machines.state(vm_id()).expect("a state") == VmmState::Running
    }

    pub(crate) fn machine_ends(&mut self) {
        self.machines.exit(vm_id());
        self.observe(VM, None);
    }

    pub(crate) fn leaves(&mut self, leaving: Leaving) {
        self.agent.guest_leaves(VM, leaving);
        self.machine_ends();
    }

    /// Nothing runs any more, and what was in memory is gone: taps, rules, sockets.
    pub(crate) fn power_cut(&mut self) {
        self.machines.power_cut();
        lose_taps();
    }

    fn observe(&mut self, object: HostObject, step: Option<&Step>) {
        let facts = hands::facts(&self.drivers, object).expect("a host that answers");
        self.agent.observed(object, facts, step, self.now);
    }

    /// Lets the agent do so many effects and kills it before it learns what came of the last. False if it came to rest
    /// before, or is not to be killed.
    pub(crate) fn killed_after(&mut self, effects: usize) -> bool {
        let mut left = effects;
        while left > 0 {
            let actions = self.agent.actions(self.now);
            if actions.is_empty() {
                return false;
            }
            for (object, action) in actions {
                left -= 1;
                self.act(object, action, left == 0);
                if left == 0 {
                    self.story.push("the agent is killed".to_owned());
                    return true;
                }
            }
        }
        false
    }

    /// Runs until nothing is left to do, or only to wait for the time of another try, so many times.
    pub(crate) fn run(&mut self, waits: usize) {
        for _ in 0..=waits {
            if self.settles() {
                return;
            }
        }
    }

    /// Runs until nothing is left to do, now or later.
    pub(crate) fn rest(&mut self) {
        for _ in 0..ROUNDS_MAX {
            if self.settles() {
                return;
            }
        }
        panic!("the agent waits for ever:\n{}", self.story());
    }

    /// Runs until nothing is left to do now, and on to when there is; true if that is never.
    fn settles(&mut self) -> bool {
        for _ in 0..ROUNDS_MAX {
            let actions = self.agent.actions(self.now);
            if actions.is_empty() {
                let wake = self.agent.next_wake().filter(|wake| *wake > self.now);
                self.now = wake.unwrap_or(self.now);
                return wake.is_none();
            }
            actions.into_iter().for_each(|(object, action)| self.act(object, action, false));
        }
        panic!("the agent does not come to rest:\n{}", self.story());
    }

    /// Carries out an action. One that is killed does not learn what came of it.
    fn act(&mut self, object: HostObject, action: Action, is_killed: bool) {
        match action {
            Action::Report(report) => {
                let reply = self.store_report(&report);
                if !is_killed {
                    self.agent.reply(object, reply);
                }
            }
            Action::Check(_) => unreachable!("nothing here has a health check"),
            Action::Proxy(_) | Action::Address(_) => unreachable!("nothing here is a proxy"),
            Action::Step(step) => {
                let outcome = hands::perform(&self.drivers, object, &step).map_err(|error| error.chain());
                self.story.push(format!("{}: {step:?}: {outcome:?}", object.kind));
                match outcome {
                    _ if is_killed => {}
                    Ok(()) => {
                        self.observe(object, Some(&step));
                        self.guest_acts(&step);
                    }
                    Err(problem) => {
                        let facts = hands::facts(&self.drivers, object).expect("a host that answers");
                        self.agent.failed(object, facts, &problem, self.now);
                    }
                }
            }
        }
    }

    fn guest_acts(&mut self, step: &Step) {
        match step {
            Step::Start => self.agent.guest_ready(VM, self.now, self.now),
            Step::Shutdown if self.guest == Guest::Obeys => self.machine_ends(),
            _ => {}
        }
    }

    /// Stores a report as a server would: compared with what is stored, and a claim with its assignment too.
    fn store_report(&mut self, report: &Report) -> Reply {
        let slot = self.store.entry(report.object).or_default();
        let own = slot.observed.as_ref().map_or(0, |observed| observed.mod_revision);
        let assigned = slot.assigned.as_ref().map_or(0, |assigned| assigned.mod_revision);
        let is_seen = report.assigned_revision.is_none_or(|revision| revision == assigned);
        if own != report.own_revision || !is_seen {
            return Reply::Refused { observed: slot.observed.clone(), assigned_revision: assigned };
        }
        self.revision += 1;
        let mod_revision = self.revision;
        slot.observed = report.observed.clone().map(|value| Stamped { mod_revision, value });
        self.story.push(format!("{}: report {:?}", report.object.kind, report.observed.is_some()));
        Reply::Accepted { revision: mod_revision }
    }

    /// Holds that the store knows that nothing is left.
    pub(crate) fn is_withdrawn(&self) {
        let told = self.store.values().filter(|slot| slot.observed.is_some()).count();
        assert_eq!(told, 0, "a report is left:\n{}", self.story());
    }

    /// All that was done so far, a line each.
    pub(crate) fn story(&self) -> String {
        self.story.join("\n")
    }
}

pub(crate) const fn vm_id() -> VmId {
    VmId::new(VM.uid)
}

fn part(name: &str) -> Part {
    crate::room::part_of(name)
}

fn assigned_vm() -> AssignedVm {
    let nic = |index: usize, last: u8| AssignedNic {
        bridge: "br0".to_owned(),
        mac: MacAddress::of_nic(VM.uid, index),
        address: Some(Ipv4Addr::new(10, 77, 0, last)),
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
        sequence: 0,
        generation: 0,
        name: Name::new("a").expect("a name"),
        wanted: WantedVm::Running,
        restarts_asked: 0,
        shape: 1,
        restart: RestartPolicy::default(),
        health: None,
        cpus: 1,
        memory: ByteSize::from_mib(128),
        image: Name::new("demo").expect("a name"),
        image_version: "v1".to_owned(),
        kernel: part("a"),
        initrd: None,
        command_line: String::new(),
        disks: vec![AssignedDisk { volume: volume_id(), read_only: false, mount: None }],
        nics: vec![nic(0, 2), nic(1, 3)],
        first_boot: FirstBoot::default(),
        asked_at: Timestamp::from_millisecond(1_799_999_999_000).expect("a time in range"),
    }
}

fn assigned_volume() -> AssignedVolume {
    AssignedVolume {
        sequence: 0,
        generation: 0,
        name: Name::new("a-root").expect("a name"),
        wanted: WantedVolume::Present,
        size: ByteSize::from_bytes(PART_BYTES as u64),
        source: Source::Image(part("b")),
        arriving: None,
    }
}
