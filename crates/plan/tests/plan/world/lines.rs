//! One line of a world becomes keys of the store.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use lightbyte_api::assigned::HostObject;
use lightbyte_api::firewall::{Firewall, From, Protocol, Rule};
use lightbyte_api::health::{HealthCheck, HealthProbe};
use lightbyte_api::kinds::network::{Ipv4, Pool};
use lightbyte_api::kinds::{image, network, snapshot, vm, volume, worker};
use lightbyte_api::object::{Asked, Meta, Owner};
use lightbyte_api::observed::{Observed, ObservedWorker, PART_NAME_LENGTH};
use lightbyte_api::records::{AddressClaim, Alive, Squatted, WorkerLedger};
use lightbyte_api::{ByteSize, Choice, Key, Kind, MacAddress, Manifest, Name, ObjectRef, Spec, WorkerId};

use super::{Store, at, name, placed, uid, with_uids};

/// The flags and values of one line.
pub(super) struct Line<'a> {
    words: Vec<&'a str>,
}

impl<'a> Line<'a> {
    pub(super) fn has(&self, flag: &str) -> bool {
        self.words.contains(&flag)
    }

    pub(super) fn all(&self, field: &str) -> Vec<&'a str> {
        self.words.iter().filter_map(|word| word.strip_prefix(field)?.strip_prefix('=')).collect()
    }

    pub(super) fn get(&self, field: &str) -> Option<&'a str> {
        self.all(field).first().copied()
    }

    /// The value of `field`, or what `default` says.
    pub(super) fn or<T: std::str::FromStr>(&self, field: &str, default: &str) -> T {
        let text = self.get(field).unwrap_or(default);
        text.parse().unwrap_or_else(|_| panic!("`{text}` is not a good {field}"))
    }
}

/// What makes a rack: enough for most tests.
const RACK: [&str; 4] = [
    "worker n1 cpus=4 memory=1GiB",
    "worker n2 cpus=4 memory=1GiB",
    "image demo v1 root=64MiB",
    "network default 10.77.0.0/24 pool=2-9",
];

/// Reads one line into `store`.
pub(super) fn read(store: &mut Store, line: &str) {
    let words: Vec<&str> = line.split_whitespace().collect();
    match words.as_slice() {
        ["rack"] => RACK.iter().for_each(|line| read(store, line)),
        ["worker", given, words @ ..] => worker(store, &name(given), &Line { words: words.to_vec() }),
        ["image", given, versions, words @ ..] => {
            image(store, &name(given), versions, &Line { words: words.to_vec() });
        }
        ["network", given, subnet, words @ ..] => {
            network(store, &name(given), subnet, &Line { words: words.to_vec() });
        }
        ["squatted", network, address] => squatted(store, &name(network), address),
        ["volume", given, words @ ..] => volume(store, &name(given), &Line { words: words.to_vec() }),
        ["snapshot", given, words @ ..] => snapshot(store, &name(given), &Line { words: words.to_vec() }),
        ["vm", given, words @ ..] => vm(store, &name(given), &Line { words: words.to_vec() }),
        ["asked", given, words @ ..] => asked(store, given, words),
        ["opaque", key] => {
            store.put_bytes(&with_uids(key), br#"{"format":9}"#.to_vec());
        }
        ["drop", key] => store.delete(&with_uids(key)),
        _ => panic!("`{line}` is no line of a world"),
    }
}

/// What is asked of an object of any kind, as a person would write it.
fn asked(store: &mut Store, object: &str, words: &[&str]) {
    let object: ObjectRef = object.parse().expect("an object");
    let (flags, json): (Vec<&str>, Vec<&str>) = words.iter().partition(|word| {
        **word == "deleting" || word.starts_with("owner=") || word.starts_with("generation=")
    });
    let spec: serde_json::Value = serde_json::from_str(&json.join(" ")).expect("JSON");
    let document = serde_json::json!({ "kind": object.kind, "name": object.name, "spec": spec });
    let manifest = Manifest::read(&document).unwrap_or_else(|problems| panic!("{problems:?}"));
    ask(store, object, manifest.spec, &Line { words: flags });
}

/// The labels that stand there as `field=key:value`.
fn labels(line: &Line<'_>, field: &str) -> BTreeMap<String, String> {
    let labels = line.all(field).into_iter().map(|label| label.split_once(':').expect("key:value"));
    labels.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

/// Puts what is asked of an object, with the parts that all kinds share.
fn ask(store: &mut Store, object: ObjectRef, spec: Spec, line: &Line<'_>) {
    let labels = labels(line, "label");
    let owner = line.get("owner").map(|owner| {
        let object: ObjectRef = owner.parse().expect("an object");
        let version = line.get("version").map(|version| version.parse().expect("a number"));
        let slot = line.get("slot").map(|slot| slot.parse().expect("a number"));
        Owner { uid: uid(&object), object, version, slot }
    });
    let meta = Meta {
        generation: line.or("generation", "1"),
        deleting_since: line.has("deleting").then(|| at(30)),
        restarts_asked: line.or("restarts", "0"),
        replace: line.has("replace"),
        protected: line.has("protected"),
        ..Meta::new(uid(&object), owner, labels, at(0))
    };
    store.put(&Key::Asked(object), Asked { meta, spec });
}

fn worker(store: &mut Store, given: &Name, line: &Line<'_>) {
    let object = ObjectRef::new(Kind::Worker, given.clone());
    let worker = WorkerId::new(uid(&object));
    ask(
        store,
        object,
        Spec::Worker(worker::Spec {
            cordoned: line.has("cordoned"),
            draining: line.has("draining"),
            only_for: labels(line, "only"),
        }),
        line,
    );
    let boot_id = "boot-1".to_owned();
    if !line.has("silent") {
        let said = ObservedWorker {
            name: given.clone(),
            boot_id: boot_id.clone(),
            architecture: line.or("architecture", "x86_64"),
            cpus: line.or("cpus", "4"),
            host_cpus: 0,
            vms_max: line.get("vms_max").map(|vms_max| vms_max.parse().expect("a number")),
            orphans: Vec::new(),
            memory: line.or("memory", "1GiB"),
            vmm: "fake".to_owned(),
            address: line.or("listens", ""),
            version: "0.1.0".to_owned(),
            parts: line.all("has").into_iter().map(|digit| digit.repeat(PART_NAME_LENGTH)).collect(),
        };
        let itself = HostObject { kind: Kind::Worker, uid: worker.uid() };
        store.put(&Key::Observed(worker, itself), Observed::Worker(said));
    }
    let ledger = WorkerLedger {
        cpus: line.or("used_cpus", "0"),
        memory: line.or("used_memory", "0"),
        vms: line.or("vms", "0"),
        ports: Vec::new(),
        promised: None,
    };
    store.put(&Key::WorkerLedger(worker), ledger);
    if !line.has("away") {
        store.put(&Key::Alive(worker), Alive { worker, boot_id, since: at(0) });
    }
}

fn image(store: &mut Store, given: &Name, versions: &str, line: &Line<'_>) {
    let part = |kind: &str, size| image::Part { sha256: kind.repeat(64), size };
    let versions: Vec<image::Version> = versions
        .split(',')
        .map(|version| image::Version {
            version: version.to_owned(),
            architecture: line.or("architecture", "x86_64"),
            kernel: part("a", ByteSize::from_mib(40)),
            initrd: None,
            command_line: String::new(),
            root: part("b", line.or("root", "64MiB")),
        })
        .collect();
    let last = versions.last().map(|version| version.version.clone()).unwrap_or_default();
    let current = line.get("current").map_or(last, ToOwned::to_owned);
    let spec = image::Spec { current, versions };
    ask(store, ObjectRef::new(Kind::Image, given.clone()), Spec::Image(spec), line);
}

/// A subnet, or `dhcp`.
fn network(store: &mut Store, given: &Name, subnet: &str, line: &Line<'_>) {
    let ipv4 = if subnet == "dhcp" { Ipv4::DHCP } else { Ipv4::Pool(pool(subnet, line)) };
    let spec = network::Spec {
        ipv4,
        dns: Vec::new(),
        bridge: "br0".to_owned(),
        mtu: None,
        subnet6: None,
        gateway6: None,
    };
    ask(store, ObjectRef::new(Kind::Network, given.clone()), Spec::Network(spec), line);
}

fn pool(subnet: &str, line: &Line<'_>) -> Pool {
    let subnet: lightbyte_api::Subnet = subnet.parse().expect("a subnet");
    let host = |offset: &str| {
        Ipv4Addr::from(u32::from(subnet.base()) + offset.parse::<u32>().expect("the number of a host"))
    };
    let (first, last) = line.get("pool").unwrap_or("2-254").split_once('-').expect("pool=first-last");
    Pool {
        subnet,
        gateway: line.get("gateway").map(|gateway| gateway.parse().expect("an address")),
        first: host(first),
        last: host(last),
    }
}

/// An address that a machine which is no VM of ours has.
fn squatted(store: &mut Store, network: &Name, address: &str) {
    let object = ObjectRef::new(Kind::Network, network.clone());
    let mac = MacAddress::new([2, 0, 0, 0, 0, 9]);
    let squatted = Some(Squatted { mac, worker: name("n1"), since: at(10) });
    let key = Key::Address(network.clone(), address.parse().expect("an address"));
    store.put(&key, AddressClaim { owner: uid(&object), object, squatted });
}

fn vm(store: &mut Store, given: &Name, line: &Line<'_>) {
    let mut spec = vm::Spec::of_image(line.or("image", "demo"));
    spec.image_version = line.get("image_version").map(ToOwned::to_owned);
    spec.cpus = line.or("cpus", "1");
    spec.memory = line.or("memory", "128MiB");
    spec.priority = line.or("priority", "0");
    spec.running = !line.has("stopped");
    if let Some(disk) = spec.disks.first_mut() {
        disk.size = line.get("disk").map(|size| size.parse().expect("a size"));
    }
    let nics = line.all("nic");
    if line.has("nonic") || !nics.is_empty() {
        spec.nics = nics.into_iter().map(nic).collect();
    }
    let opens = line.all("opens");
    if line.has("walled") || !opens.is_empty() {
        spec.firewall = Some(Firewall { allow: opens.into_iter().map(opens_to).collect() });
    }
    if line.has("checked") {
        spec.health = Some(HealthCheck::of(HealthProbe::Tcp { port: 80 }));
    }
    spec.ports = line.all("port").into_iter().map(port).collect();
    let object = ObjectRef::new(Kind::Vm, given.clone());
    let attached = |field: &str| line.all(field).into_iter().map(attached).collect::<Vec<_>>();
    spec.disks.extend(attached("attach"));
    if let Some(worker) = line.get("on") {
        // What it was placed with may differ from what is asked now.
        let mut before = spec.clone();
        before.disks.extend(attached("had"));
        if line.has("unchecked_before") {
            before.health = None;
        }
        before.cpus = line.or("had_cpus", &spec.cpus.to_string());
        placed::vm(store, &object, &before, &name(worker), line);
    }
    spec.disks.extend(attached("wants"));
    if let Some(disk) = line.get("grow") {
        spec.disks[0].size = Some(disk.parse().expect("a size"));
    }
    ask(store, object, Spec::Vm(spec), line);
}

/// `app:web`: TCP from VMs with this label; `10.0.0.0/8`: from there.
fn opens_to(text: &str) -> Rule {
    let from = match text.split_once(':') {
        Some((key, value)) => From::Labels([(key.to_owned(), value.to_owned())].into()),
        None => From::Cidr(text.parse().expect("a subnet")),
    };
    Rule { from: Some(from), protocol: Protocol::Tcp, ports: Vec::new() }
}

/// `8080:80`.
fn port(text: &str) -> vm::PortForward {
    let (worker_port, port) = text.split_once(':').expect("port=worker's:its");
    let number = |text: &str| text.parse().expect("a port");
    vm::PortForward { worker_port: number(worker_port), port: number(port), protocol: Protocol::Tcp }
}

/// `data`, or `data:ro`.
fn attached(text: &str) -> vm::Disk {
    let (volume, read_only) = text.strip_suffix(":ro").map_or((text, false), |volume| (volume, true));
    vm::Disk { read_only, ..vm::Disk::attached(name(volume)) }
}

fn volume(store: &mut Store, given: &Name, line: &Line<'_>) {
    let size = |text: &str| text.parse().expect("a size");
    let spec = volume::Spec {
        size: line.get("size").map(size),
        snapshot: line.get("snapshot").map(name),
        image: line.get("image").map(name),
        worker: line.get("worker").map(name),
        copies: line.get("copies").map(|to| volume::Copies {
            to: name(to),
            every: line.or("every", "2h"),
            keep: line.or("keep", "2"),
        }),
        ..volume::Spec::default()
    };
    let object = ObjectRef::new(Kind::Volume, given.clone());
    let holders = line.all("held").into_iter().map(|text| {
        let (vm, read_only) = text.strip_suffix(":ro").map_or((text, false), |vm| (vm, true));
        let vm = ObjectRef::new(Kind::Vm, name(vm));
        volume::Holder { uid: uid(&vm), vm, read_only }
    });
    let holders: Vec<volume::Holder> = holders.collect();
    let worker = line.get("on").map(|worker| WorkerId::new(uid(&ObjectRef::new(Kind::Worker, name(worker)))));
    let elsewhere = line.get("elsewhere").map(placed::worker_named);
    let copied = line.get("copied").map(|number| volume::Copied {
        number: number.parse().expect("a number"),
        at: at(line.or("copied_at", "0")),
    });
    let choice = volume::Choice { worker, elsewhere, holders, copied };
    if choice != volume::Choice::default() {
        placed::decide(store, &object, Choice::Volume(choice));
    }
    if let Some(worker) = worker {
        placed::disk(store, &object, worker, line);
    }
    ask(store, object, Spec::Volume(spec), line);
}

fn snapshot(store: &mut Store, given: &Name, line: &Line<'_>) {
    let object = ObjectRef::new(Kind::Snapshot, given.clone());
    if let Some(worker) = line.get("on") {
        let worker = WorkerId::new(uid(&ObjectRef::new(Kind::Worker, name(worker))));
        let elsewhere = line.get("elsewhere").map(placed::worker_named);
        let choice = snapshot::Choice { worker: Some(worker), elsewhere, size: line.or("had_size", "1GiB") };
        placed::decide(store, &object, Choice::Snapshot(choice));
        placed::disk(store, &object, worker, line);
    }
    let spec = snapshot::Spec {
        volume: line.or("of", "data"),
        worker: line.get("worker").map(name),
        protected: false,
    };
    ask(store, object, Spec::Snapshot(spec), line);
}

fn nic(text: &str) -> vm::Nic {
    let (network, address) = match text.split_once(':') {
        Some((network, address)) => (network, Some(address.parse().expect("an address"))),
        None => (text, None),
    };
    vm::Nic { network: name(network), address }
}
