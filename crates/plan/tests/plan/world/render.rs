//! Writes as short stable lines: uids become names, and what does not matter to a decision is left out.

use std::collections::BTreeMap;

use lightbyte_api::assigned::{Assigned, AssignedNic, AssignedVm, AssignedVolume, Source};
use lightbyte_api::firewall::Opening;
use lightbyte_api::kinds::{loadbalancer, scalegroup, secret};
use lightbyte_api::object::Asked;
use lightbyte_api::observed::Observed;
use lightbyte_api::records::{Promise, Record};
use lightbyte_api::waiting::Waiting;
use lightbyte_api::{Choice, Decided, Key, ObjectRef, Spec, Uid};
use lightbyte_plan::{Transaction, View, Write};

use super::at;

/// Names for uids.
#[derive(Default)]
pub(crate) struct Names(BTreeMap<Uid, ObjectRef>);

impl Names {
    /// Those of all objects in `view`.
    pub(crate) fn of(view: &View) -> Names {
        let named = view.objects().filter_map(|object| Some((view.asked(object)?.meta.uid, object.clone())));
        Names(named.collect())
    }

    /// These, and those of the objects that `transaction` makes.
    fn with(&self, transaction: &Transaction) -> Names {
        let made = transaction.writes.values().filter_map(|write| match write {
            Write::Put(Key::Asked(object), Record::Asked(asked)) => Some((asked.meta.uid, object.clone())),
            _ => None,
        });
        Names(self.0.clone().into_iter().chain(made).collect())
    }

    /// `vm/a` for the uid of that VM.
    pub(crate) fn show(&self, uid: Uid) -> String {
        self.0.get(&uid).map_or_else(|| format!("unknown {uid}"), ToString::to_string)
    }

    fn worker(&self, uid: Uid) -> String {
        self.0.get(&uid).map_or_else(|| "unknown".to_owned(), |object| object.name.to_string())
    }

    fn key(&self, key: &Key) -> String {
        match key {
            Key::Asked(object) => format!("asked {object}"),
            Key::Decided(object) => format!("decided {object}"),
            Key::Assigned(worker, object) => {
                format!("assigned {} {}", self.worker(worker.uid()), self.show(object.uid))
            }
            Key::Observed(worker, object) => {
                format!("observed {} {}", self.worker(worker.uid()), self.show(object.uid))
            }
            Key::WorkerLedger(worker) => format!("ledger {}", self.worker(worker.uid())),
            Key::Address(network, address) => format!("address {network} {address}"),
            Key::Alive(worker) => format!("alive {}", self.worker(worker.uid())),
            Key::Epoch => "epoch".to_owned(),
            Key::Leader => "leader".to_owned(),
        }
    }
}

fn promised(names: &Names, promise: &Promise) -> String {
    let from: Vec<String> = promise.from.iter().map(|uid| names.show(*uid)).collect();
    format!(
        " promises {} CPUs {} to {} from {}",
        promise.cpus,
        promise.memory,
        names.show(promise.vm),
        from.join(" ")
    )
}

/// What is written, a line each, in the order of the rendered text.
pub(crate) fn writes(names: &Names, transaction: &Transaction) -> String {
    let names = names.with(transaction);
    let mut lines: Vec<String> = transaction.writes.values().map(|write| line(&names, write)).collect();
    lines.sort();
    lines.join("\n")
}

/// What is written, and what it rests on besides what is written. Every written key must be guarded as `view` has it.
pub(crate) fn transaction(view: &View, transaction: &Transaction) -> String {
    let names = Names::of(view).with(transaction);
    for (key, revision) in &transaction.guards {
        assert_eq!(*revision, view.mod_revision(key), "the guard of {key} is what the view shows");
    }
    for key in transaction.writes.keys() {
        assert!(transaction.guards.contains_key(key), "{key} is written and not guarded");
    }
    let rests = transaction.guards.iter().filter(|(key, _)| !transaction.writes.contains_key(*key));
    let mut rests: Vec<String> = rests
        .map(|(key, revision)| match revision {
            0 => format!("rests on no {}", names.key(key)),
            _ => format!("rests on {}", names.key(key)),
        })
        .collect();
    rests.sort();
    [writes(&Names::of(view), transaction), rests.join("\n")].join("\n")
}

/// Text for people who read tests.
pub(crate) trait Show {
    fn show(&self, names: &Names) -> String;
}

fn line(names: &Names, write: &Write) -> String {
    match write {
        Write::Delete(Key::Address(network, address)) => format!("release {network} {address}"),
        Write::Delete(key) => format!("delete {}", names.key(key)),
        Write::Put(Key::Address(network, address), Record::AddressClaim(claim)) => {
            assert_eq!(
                names.show(claim.owner),
                claim.object.to_string(),
                "a claim names its owner twice alike"
            );
            match &claim.squatted {
                Some(squatted) => format!("claim {network} {address} squatted by {}", squatted.mac),
                None => format!("claim {network} {address} for {}", claim.object),
            }
        }
        Write::Put(Key::WorkerLedger(worker), Record::WorkerLedger(ledger)) => format!(
            "ledger {} {} CPUs {} {} VMs{}{}",
            names.worker(worker.uid()),
            ledger.cpus,
            ledger.memory,
            ledger.vms,
            ledger.ports.iter().map(|port| format!(" port {}", port.port)).collect::<String>(),
            ledger.promised.iter().map(|promise| promised(names, promise)).collect::<String>()
        ),
        Write::Put(key, record) => format!("put {} {}", names.key(key), record.show(names)),
    }
}

impl Show for Record {
    fn show(&self, names: &Names) -> String {
        match self {
            Record::Asked(asked) => asked.show(names),
            Record::Decided(decided) => decided.show(names),
            Record::Assigned(assigned) => match assigned.as_ref() {
                Assigned::Vm(vm) => vm.show(names),
                Assigned::Volume(volume) => volume.show(names),
            },
            Record::Observed(observed) => observed.show(names),
            Record::Alive(alive) => format!("boot {}", alive.boot_id),
            Record::WorkerLedger(_) | Record::AddressClaim(_) | Record::Epoch(_) | Record::Leader(_) => {
                String::new()
            }
        }
    }
}

impl Show for Asked {
    fn show(&self, _: &Names) -> String {
        let Asked { meta, spec } = self;
        let what = match spec {
            Spec::Worker(spec) if spec.draining => "draining".to_owned(),
            Spec::Worker(spec) => if spec.cordoned { "cordoned" } else { "schedulable" }.to_owned(),
            Spec::ScaleGroup(spec) => format!(
                "{} of {}",
                spec.fixed().map_or("some".to_owned(), |count| count.to_string()),
                spec.template.vm.image
            ),
            Spec::LoadBalancer(spec) => format!("{} proxies", spec.proxies.replicas),
            Spec::Image(spec) => format!("current {}", spec.current),
            Spec::Network(spec) => spec.pool().map_or_else(
                || "by DHCP".to_owned(),
                |pool| format!("{} pool {}-{}", pool.subnet, pool.first, pool.last),
            ),
            Spec::Volume(spec) => {
                let parts = [
                    spec.size.map(|size| size.to_string()),
                    spec.image.as_ref().map(|image| format!("of {image}")),
                    spec.image_version.clone(),
                ];
                parts.into_iter().flatten().collect::<Vec<_>>().join(" ")
            }
            Spec::Snapshot(spec) => format!("of volume/{}", spec.volume),
            Spec::Secret(_) => "a certificate".to_owned(),
            Spec::DnsRecord(spec) => format!("{:?} {}", spec.record_type, spec.values.join(",")),
            Spec::Vm(spec) => {
                let attached =
                    spec.disks.iter().filter_map(|disk| Some(format!(" with {}", disk.volume.as_ref()?)));
                let state = if spec.running { "running" } else { "stopped" };
                format!("{state}{}", attached.collect::<String>())
            }
        };
        let mut text = format!("generation {} {what}", meta.generation);
        for (key, value) in &meta.labels {
            text.push_str(&format!(" {key}:{value}"));
        }
        if let Some(owner) = &meta.owner {
            text.push_str(&format!(" of {}", owner.object));
            if let Some(version) = owner.version {
                text.push_str(&format!(" version {version}"));
            }
            if let Some(slot) = owner.slot {
                text.push_str(&format!(" slot {slot}"));
            }
        }
        if meta.replace {
            text.push_str(" replace");
        }
        if meta.protected {
            text.push_str(" protected");
        }
        if meta.restarts_asked > 0 {
            text.push_str(&format!(" restarts {}", meta.restarts_asked));
        }
        if meta.deleting_since.is_some() {
            text.push_str(" deleting");
        }
        text
    }
}

impl Show for Decided {
    fn show(&self, names: &Names) -> String {
        let choice = match &self.choice {
            Choice::Vm(choice) => choice.placement.as_ref().map(|placement| {
                let mut text = format!("on {} {}", placement.worker_name, placement.image_version);
                for disk in &placement.disks {
                    let known = names.0.get(&disk.volume.uid());
                    assert!(
                        known.is_none_or(|volume| volume.name == disk.volume_name),
                        "{}",
                        disk.volume_name
                    );
                    let access = if disk.read_only { ":ro" } else { "" };
                    text.push_str(&format!(" {}={}{access}", disk.name, disk.volume_name));
                }
                for nic in &placement.nics {
                    let address =
                        nic.address.map_or_else(|| "dhcp".to_owned(), |address| address.to_string());
                    text.push_str(&format!(" {}={address}", nic.network));
                }
                text
            }),
            Choice::Volume(choice) => {
                let on = choice.worker.map(|worker| format!("on {}", names.worker(worker.uid())));
                let held = choice.holders.iter().map(|holder| {
                    format!("held by {}{}", holder.vm, if holder.read_only { ":ro" } else { "" })
                });
                let other = elsewhere(names, choice.elsewhere);
                let copied = choice.copied.map(|copied| format!("copied {}", copied.number));
                let parts: Vec<String> = on.into_iter().chain(other).chain(held).chain(copied).collect();
                (!parts.is_empty()).then(|| parts.join(" "))
            }
            Choice::Snapshot(choice) => choice.worker.map(|worker| {
                let other = elsewhere(names, choice.elsewhere).map(|other| format!(" {other}"));
                format!("on {} {}{}", names.worker(worker.uid()), choice.size, other.unwrap_or_default())
            }),
            Choice::Worker(choice) => choice.away_since.map(|since| {
                let since = since.as_second() - at(0).as_second();
                format!("away since {since}{}", if choice.lost { " lost" } else { "" })
            }),
            Choice::ScaleGroup(choice) => Some(group(names, choice)),
            Choice::LoadBalancer(choice) => Some(balancer(names, choice)),
            Choice::Secret(choice) => {
                let version =
                    |one: &secret::Version| format!("{} of {}", one.number, one.server_names.join(","));
                let mut text =
                    format!("versions {}", choice.versions.iter().map(version).collect::<Vec<_>>().join(" "));
                if let Some(order) = &choice.order {
                    text.push_str(&format!(", ordered {}", order.url));
                }
                if let Some(failure) = &choice.failure {
                    text.push_str(&format!(", failed {} times", failure.times));
                }
                Some(text)
            }
            _ => None,
        };
        let waits = self.waiting_on.iter().map(|waiting| waiting.show(names));
        let parts: Vec<String> = choice.into_iter().chain(waits).collect();
        if parts.is_empty() { "content".to_owned() } else { parts.join(", ") }
    }
}

/// What was chosen for a group, on one line.
fn group(names: &Names, choice: &scalegroup::Choice) -> String {
    let number = |number: Option<u64>| number.map_or_else(|| "none".to_owned(), |number| number.to_string());
    let versions =
        choice.versions.iter().map(|version| format!("{}:{}", version.number, version.image_version));
    let mut text = format!(
        "made {}, versions {}, target {}, stable {}",
        choice.members_made,
        versions.collect::<Vec<_>>().join(","),
        number(choice.target),
        number(choice.stable)
    );
    if let Some(rejected) = &choice.rejected {
        text.push_str(&format!(", rejected {}", rejected.version));
    }
    for retiring in &choice.retiring {
        let because = format!("{:?}", retiring.because).to_lowercase();
        text.push_str(&format!(", retiring {} for {because}", names.show(retiring.uid)));
    }
    if let Some(healing) = choice.healing {
        text.push_str(&format!(", heals {}", healing.left));
    }
    text
}

/// What was chosen for a load balancer, on one line.
fn balancer(names: &Names, choice: &loadbalancer::Choice) -> String {
    let uids = |uids: &[Uid]| uids.iter().map(|uid| names.show(*uid)).collect::<Vec<_>>().join(" ");
    let mut text = format!("revision {}", choice.revision);
    for configuration in &choice.configurations {
        let state = if choice.accepted == Some(configuration.number) { "accepted" } else { "tried" };
        text.push_str(&format!(", {state} {}", configuration.number));
        for (pool, members) in &configuration.pools {
            text.push_str(&format!(" {pool}=[{}]", uids(members)));
        }
    }
    for member in &choice.members {
        text.push_str(&format!(", {} at {}", names.show(member.uid), member.address));
    }
    for leaving in &choice.leaving {
        let overdue = if leaving.overdue { " overdue" } else { "" };
        text.push_str(&format!(
            ", {} leaving since {}{overdue}",
            names.show(leaving.member.uid),
            leaving.revision
        ));
    }
    for proxy in &choice.proxies {
        text.push_str(&format!(", proxy {} from {}", names.show(proxy.uid), proxy.from));
    }
    if let Some(trial) = &choice.trial {
        text.push_str(&format!(", {} tries {}", names.show(trial.proxy), trial.revision));
    }
    for challenge in &choice.challenges {
        text.push_str(&format!(", answers {} for {}", challenge.answer, challenge.token));
    }
    if let Some(held) = &choice.virtual_address {
        let holder = held.holder.map_or_else(|| "nobody".to_owned(), |holder| names.show(holder));
        let leaving = if held.leaving_since.is_some() { " leaving" } else { "" };
        text.push_str(&format!(", {} at {holder}{leaving} turn {}", held.address, held.turn));
        if !held.former.is_empty() {
            text.push_str(&format!(" once at {}", uids(&held.former)));
        }
    }
    if let Some(rejected) = &choice.rejected {
        text.push_str(&format!(", rejected: {}", rejected.because));
    }
    text
}

fn elsewhere(names: &Names, elsewhere: Option<lightbyte_api::WorkerId>) -> Option<String> {
    elsewhere.map(|worker| format!("and {}", names.worker(worker.uid())))
}

impl Show for Waiting {
    fn show(&self, _: &Names) -> String {
        let since = self.since.as_second() - at(0).as_second();
        format!("since {since} waits: {}", self.on)
    }
}

impl Show for AssignedVm {
    fn show(&self, names: &Names) -> String {
        let disks: Vec<String> = self
            .disks
            .iter()
            .map(|disk| names.show(disk.volume.uid()) + if disk.read_only { ":ro" } else { "" })
            .collect();
        let nics: Vec<String> = self
            .nics
            .iter()
            .map(|nic| {
                let address = nic
                    .address
                    .map_or_else(|| "dhcp".to_owned(), |address| format!("{address}/{}", nic.prefix_length));
                let also = nic.virtual_address.map_or_else(String::new, |also| {
                    let leaving = if also.leaves_within.is_some() { " leaving" } else { "" };
                    format!(" and {} turn {}{leaving}", also.address, also.turn)
                });
                format!("{address}{also} on {}{}", nic.bridge, rules(nic))
            })
            .collect();
        let shape = if self.shape > 1 { format!(" shape {}", self.shape) } else { String::new() };
        let health = if self.health.is_some() { " checked" } else { "" };
        let restarts = match self.restarts_asked {
            0 => String::new(),
            restarts => format!(" restarts {restarts}"),
        };
        format!(
            "{} sequence {} generation {}{restarts}{shape}{health}, {} {}, {}, {} {}, {}",
            format!("{:?}", self.wanted).to_lowercase(),
            self.sequence,
            self.generation,
            self.cpus,
            self.memory,
            disks.join(" "),
            self.image,
            self.image_version,
            if nics.is_empty() { "no NIC".to_owned() } else { nics.join(" ") },
        )
    }
}

/// The rules that a card has of its own.
fn rules(nic: &AssignedNic) -> String {
    let opening = |opening: &Opening| {
        let from: Vec<String> = opening.from.iter().map(ToString::to_string).collect();
        format!("{} from {}", opening.protocol.word(), from.join(","))
    };
    let wall = nic.firewall.as_ref().map(|wall| wall.allow.iter().map(opening).collect::<Vec<_>>());
    let wall = wall.map(|wall| format!(" walled [{}]", wall.join("; ")));
    let ports = nic.ports.iter().map(|port| format!(" {}->{}", port.worker_port, port.port));
    wall.into_iter().chain(ports).collect()
}

impl Show for AssignedVolume {
    fn show(&self, names: &Names) -> String {
        let wanted = format!("{:?}", self.wanted).to_lowercase();
        let source = match &self.source {
            Source::Image(_) => String::new(),
            Source::Blank(filesystem) => format!(" blank {filesystem:?}").to_lowercase(),
            Source::Disk(disk) => format!(" of {}", names.show(disk.uid())),
        };
        let arriving = match &self.arriving {
            Some(arriving) if arriving.held => {
                format!(" arriving from {}, held", names.show(arriving.from.uid()))
            }
            Some(arriving) => format!(" arriving from {}", names.show(arriving.from.uid())),
            None => String::new(),
        };
        let (sequence, generation, size) = (self.sequence, self.generation, self.size);
        format!("{wanted} sequence {sequence} generation {generation}, {size}{source}{arriving}")
    }
}

impl Show for Observed {
    fn show(&self, _: &Names) -> String {
        let problem = |problem: &Option<String>| match problem {
            Some(problem) => format!(", problem: {problem}"),
            None => String::new(),
        };
        match self {
            Observed::Worker(worker) => format!("{} {} {}", worker.name, worker.cpus, worker.memory),
            Observed::Vm(vm) => {
                let phase = format!("{:?}", vm.phase).to_lowercase();
                format!("{phase} sequence {}{}", vm.sequence, problem(&vm.problem))
            }
            Observed::Volume(volume) => {
                let phase = format!("{:?}", volume.phase).to_lowercase();
                format!("{phase} sequence {}{}", volume.sequence, problem(&volume.problem))
            }
        }
    }
}
