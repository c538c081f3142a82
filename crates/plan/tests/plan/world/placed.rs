//! A VM that was placed already: its decision, claims, room, volume, assignments and reports.

use std::net::Ipv4Addr;

use lightbyte_api::assigned::{
    Arriving, Assigned, AssignedDisk, AssignedNic, AssignedVm, AssignedVolume, HostObject, Source,
    VirtualAddress, WantedVm, WantedVolume,
};
use lightbyte_api::decided::{Decision, Verdict};
use lightbyte_api::first_boot::FirstBoot;
use lightbyte_api::health::{Health, HealthState};
use lightbyte_api::kinds::vm::RestartPolicy;
use lightbyte_api::kinds::{image, vm, volume};
use lightbyte_api::object::{Asked, Meta, Owner};
use lightbyte_api::observed::{
    Lease, Observed, ObservedProxy, ObservedVirtualAddress, ObservedVm, ObservedVolume, RefusedTopology,
    Squatter, VmPhase, VolumePhase,
};
use lightbyte_api::records::{AddressClaim, WorkerLedger};
use lightbyte_api::waiting::{Waiting, WorkerTask};
use lightbyte_api::{
    ByteSize, Choice, Decided, Key, Kind, MacAddress, Name, ObjectRef, Spec, Uid, VolumeId, WaitingOn,
    WorkerId,
};

use super::lines::Line;
use super::{Store, at, uid, worker_id};

/// How far the volume of a placed VM is; each state has all that the one before it has.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum VolumeState {
    Gone,
    Unplaced,
    Assigned,
    Claimed,
    Present,
    Lost,
}

fn volume_state(line: &Line<'_>) -> VolumeState {
    match line.get("volume").unwrap_or("present") {
        "gone" => VolumeState::Gone,
        "unplaced" => VolumeState::Unplaced,
        "assigned" => VolumeState::Assigned,
        "claimed" => VolumeState::Claimed,
        "present" => VolumeState::Present,
        "lost" => VolumeState::Lost,
        other => panic!("`{other}` is no state of a volume"),
    }
}

/// Writes everything of a placed VM but what is asked of it.
pub(super) fn vm(
    store: &mut Store,
    object: &ObjectRef,
    spec: &vm::Spec,
    worker_name: &Name,
    line: &Line<'_>,
) {
    let worker = worker_id(worker_name.as_str());
    let volume_name = object.name.child(vm::ROOT_DISK).expect("a short name");
    let volume = ObjectRef::new(Kind::Volume, volume_name.clone());
    let owner = uid(object);
    let address: Ipv4Addr = line.or("address", "10.77.0.2");
    let nics: Vec<vm::PlacedNic> = spec
        .nics
        .iter()
        .enumerate()
        .map(|(index, nic)| vm::PlacedNic {
            network: nic.network.clone(),
            mac: MacAddress::of_nic(owner, index),
            address: (!line.has("leased")).then(|| nic.address.unwrap_or(address)),
            address6: line.get("address6").map(|address| address.parse().expect("an address")),
        })
        .collect();
    for nic in &nics {
        let claim = AddressClaim { owner, object: object.clone(), squatted: None };
        if let Some(address) = nic.address {
            store.put(&Key::Address(nic.network.clone(), address), claim);
        }
    }
    let best =
        Verdict { worker: worker_name.clone(), score: Some(875_000), reasons: vec!["spread".to_owned()] };
    let placement = vm::Placement {
        worker,
        worker_name: worker_name.clone(),
        image_version: "v1".to_owned(),
        cpus: spec.cpus,
        memory: spec.memory,
        disks: spec
            .disks
            .iter()
            .map(|disk| {
                let volume_name = disk.volume.clone().unwrap_or_else(|| volume_name.clone());
                let volume = VolumeId::new(uid(&ObjectRef::new(Kind::Volume, volume_name.clone())));
                vm::PlacedDisk { name: disk.name.clone(), volume, volume_name, read_only: disk.read_only }
            })
            .collect(),
        nics,
        ports: spec.ports.iter().map(vm::PortForward::worker_side).collect(),
        decision: Decision {
            revision: 5,
            workers: 3,
            best: vec![best],
            refused: vec![("away".to_owned(), 1)],
        },
    };
    charge(store, worker, spec);
    assign(store, object, spec, &placement, line);
    let choice = Choice::Vm(vm::Choice { placement: Some(placement), promised: None });
    // `unready_since=20`: its planner has told since when it is not as asked.
    let unready = line.get("unready_since").map(|since| Waiting {
        on: WaitingOn::Worker { worker: worker_name.clone(), to: WorkerTask::Start },
        since: at(since.parse().expect("seconds")),
    });
    let decided = Decided {
        uid: owner,
        waiting_on: unready.into_iter().collect(),
        at_rest_since: line.get("rests_since").map(|since| at(since.parse().expect("seconds"))),
        choice,
    };
    store.put(&Key::Decided(object.clone()), decided);
    report(store, object, worker, line);
    root_volume(store, &volume, object, spec, worker, line);
}

/// Counts the VM in the ledger of its worker, if that has one.
fn charge(store: &mut Store, worker: WorkerId, spec: &vm::Spec) {
    if let Some(before) = store.view().worker_ledger(worker) {
        let ledger = WorkerLedger {
            cpus: before.cpus + spec.cpus,
            memory: ByteSize::from_bytes(before.memory.bytes() + spec.memory.bytes()),
            vms: before.vms + 1,
            ports: before
                .ports
                .iter()
                .copied()
                .chain(spec.ports.iter().map(vm::PortForward::worker_side))
                .collect(),
            promised: before.promised.clone(),
        };
        store.put(&Key::WorkerLedger(worker), ledger);
    }
}

fn part(kind: &str) -> image::Part {
    image::Part { sha256: kind.repeat(64), size: ByteSize::from_mib(64) }
}

fn assign(
    store: &mut Store,
    object: &ObjectRef,
    spec: &vm::Spec,
    placement: &vm::Placement,
    line: &Line<'_>,
) {
    let wanted = match line.get("wanted") {
        None if spec.running => WantedVm::Running,
        Some("running") => WantedVm::Running,
        None | Some("stopped") => WantedVm::Stopped,
        Some("removed") => WantedVm::Removed,
        Some(other) => panic!("`{other}` cannot be wanted"),
    };
    let nics = placement.nics.iter().map(|nic| AssignedNic {
        bridge: "br0".to_owned(),
        mac: nic.mac,
        address: nic.address,
        prefix_length: 24,
        gateway: None,
        dns: Vec::new(),
        mtu: None,
        ipv6: None,
        firewall: None,
        ports: Vec::new(),
        virtual_address: line.get("virtual").map(|address| VirtualAddress {
            address: address.parse().expect("an address"),
            turn: line.or("turn", "1"),
            leaves_within: line.has("leaving").then_some(lightbyte_api::Span::from_secs(30)),
        }),
    });
    let assigned = AssignedVm {
        sequence: line.or("sequence", "1"),
        generation: line.or("at_generation", line.get("generation").unwrap_or("1")),
        name: object.name.clone(),
        wanted,
        restarts_asked: line.or("at_restarts", line.get("restarts").unwrap_or("0")),
        cpus: spec.cpus,
        memory: spec.memory,
        image: spec.image.clone(),
        image_version: placement.image_version.clone(),
        kernel: part("a"),
        initrd: None,
        command_line: String::new(),
        shape: line.or("shape", "1"),
        restart: RestartPolicy::default(),
        health: spec.health.clone(),
        disks: placement
            .disks
            .iter()
            .map(|disk| AssignedDisk { volume: disk.volume, read_only: disk.read_only, mount: None })
            .collect(),
        nics: nics.collect(),
        first_boot: FirstBoot::default(),
        asked_at: at(0),
    };
    let host_object = HostObject { kind: Kind::Vm, uid: uid(object) };
    store.put(&Key::Assigned(placement.worker, host_object), Assigned::Vm(assigned));
}

fn report(store: &mut Store, object: &ObjectRef, worker: WorkerId, line: &Line<'_>) {
    let phase = match line.get("observed") {
        None => return,
        Some("claimed") => VmPhase::Claimed,
        Some("starting") => VmPhase::Starting,
        Some("running") => VmPhase::Running,
        Some("crashed") => VmPhase::Crashed,
        Some("off") => VmPhase::Off,
        Some("stopping") => VmPhase::Stopping,
        Some("stopped") => VmPhase::Stopped,
        Some(other) => panic!("`{other}` is no phase"),
    };
    let observed = ObservedVm {
        sequence: line.or("seen", line.get("sequence").unwrap_or("1")),
        generation: line.or("at_generation", line.get("generation").unwrap_or("1")),
        phase,
        since: at(20),
        shape: line.or("seen_shape", line.get("shape").unwrap_or("1")),
        restarts: line.or("ended", "0"),
        restarts_done: line.or("at_restarts", line.get("restarts").unwrap_or("0")),
        boot: None,
        health: line.get("health").map(health),
        squatters: squatters(store, object, line),
        leases: line.get("lease").map(lease).into_iter().collect(),
        proxy: line.get("told").map(|told| proxy(told, line)),
        virtual_address: line.get("has").map(|address| ObservedVirtualAddress {
            address: address.parse().expect("an address"),
            turn: line.or("turn", "1"),
            left: line.has("left"),
            silent: line.has("silent"),
        }),
        address_yielded: line.or("yielded", "0"),
        problem: line.get("problem").map(|problem| problem.replace('_', " ")),
    };
    store
        .put(&Key::Observed(worker, HostObject { kind: Kind::Vm, uid: uid(object) }), Observed::Vm(observed));
}

/// `told=3`: the revision that the proxy in it does, with `busy=vm/a` and `refuses=5`.
fn proxy(told: &str, line: &Line<'_>) -> ObservedProxy {
    ObservedProxy {
        revision: told.parse().expect("a revision"),
        refused: line.get("refuses").map(|revision| RefusedTopology {
            revision: revision.parse().expect("a revision"),
            because: "it is bad".to_owned(),
        }),
        busy: line.all("busy").into_iter().map(|vm| uid(&vm.parse().expect("an object"))).collect(),
        restarts: line.or("proxy_restarts", "0"),
    }
}

/// `health=healthy`: what the checks came to. `unhealthy` says why.
fn health(text: &str) -> Health {
    let state = match text {
        "starting" => HealthState::Starting,
        "healthy" => HealthState::Healthy,
        "unhealthy" => HealthState::Unhealthy,
        other => panic!("`{other}` is no state of health"),
    };
    let problem = (state == HealthState::Unhealthy).then(|| "status 503".to_owned());
    Health { state, since: at(20), problem }
}

/// `lease=192.168.1.5`: what a DHCP server has given to its first card.
fn lease(address: &str) -> Lease {
    Lease { nic: 0, address: address.parse().expect("an address") }
}

/// `squatted=10.77.0.2`: the worker heard somebody answer for it.
fn squatters(store: &Store, object: &ObjectRef, line: &Line<'_>) -> Vec<Squatter> {
    let view = store.view();
    let nics = match view.decided(object).map(|decided| &decided.choice) {
        Some(Choice::Vm(vm::Choice { placement: Some(placement), .. })) => placement.nics.clone(),
        _ => Vec::new(),
    };
    let mac = MacAddress::new([2, 0, 0, 0, 0, 9]);
    let squatter = |text: &str| {
        let address = text.parse().expect("an address");
        let nic = nics.iter().position(|nic| nic.address == Some(address)).unwrap_or(0);
        Squatter { nic: u32::try_from(nic).expect("a small number"), address, mac }
    };
    line.all("squatted").into_iter().map(squatter).collect()
}

fn root_volume(
    store: &mut Store,
    volume: &ObjectRef,
    vm: &ObjectRef,
    spec: &vm::Spec,
    worker: WorkerId,
    line: &Line<'_>,
) {
    let state = volume_state(line);
    if state == VolumeState::Gone {
        return;
    }
    let host_object = HostObject { kind: Kind::Volume, uid: uid(volume) };
    let removing = line.has("volume_removing");
    let owner = Owner::new(vm.clone(), uid(vm));
    let mut meta = Meta::new(host_object.uid, Some(owner), std::collections::BTreeMap::new(), at(0));
    meta.deleting_since = (removing || line.has("volume_deleting")).then(|| at(30));
    let size = ByteSize::from_mib(64);
    let asked = volume::Spec {
        image: Some(spec.image.clone()),
        image_version: Some("v1".to_owned()),
        size: Some(size),
        ..volume::Spec::default()
    };
    store.put(&Key::Asked(volume.clone()), Asked { meta, spec: Spec::Volume(asked) });
    if state >= VolumeState::Assigned {
        let choice = Choice::Volume(volume::Choice { worker: Some(worker), ..volume::Choice::default() });
        let decided = content(host_object.uid, choice);
        store.put(&Key::Decided(volume.clone()), decided);
        let assigned = AssignedVolume {
            sequence: if removing { 2 } else { 1 },
            generation: 1,
            name: volume.name.clone(),
            wanted: if removing { WantedVolume::Removed } else { WantedVolume::Present },
            size,
            source: Source::Image(part("b")),
            arriving: None,
        };
        store.put(&Key::Assigned(worker, host_object), Assigned::Volume(assigned));
    }
    let phase = match state {
        VolumeState::Claimed => VolumePhase::Claimed,
        VolumeState::Present => VolumePhase::Present,
        VolumeState::Lost => VolumePhase::Lost,
        _ => return,
    };
    let problem = line.get("volume_problem").map(|problem| problem.replace('_', " "));
    let observed = ObservedVolume { sequence: 1, generation: 1, phase, size, since: at(20), problem };
    store.put(&Key::Observed(worker, host_object), Observed::Volume(observed));
}

/// Puts a choice.
pub(super) fn decide(store: &mut Store, object: &ObjectRef, choice: Choice) {
    store.put(&Key::Decided(object.clone()), content(uid(object), choice));
}

fn content(uid: Uid, choice: Choice) -> Decided {
    Decided { uid, waiting_on: Vec::new(), at_rest_since: None, choice }
}

/// The disk of a volume or a snapshot on its worker, assigned and reported as the line says; and what another worker has of it.
pub(super) fn disk(store: &mut Store, object: &ObjectRef, worker: WorkerId, line: &Line<'_>) {
    let wanted = if line.has("removing") { "removed" } else { line.get("assigned").unwrap_or("present") };
    let seen = line.get("observed").unwrap_or("present");
    disk_on(store, object, worker, line, (wanted, seen, None));
    let Some(elsewhere) = line.get("elsewhere") else { return };
    let elsewhere = worker_named(elsewhere);
    let arriving = line.get("arriving").map(|held| Arriving {
        from: worker,
        address: String::new(),
        held: held == "held",
        base: None,
    });
    let wanted = if arriving.is_some() { "present" } else { line.get("left").unwrap_or("quarantined") };
    disk_on(store, object, elsewhere, line, (wanted, line.get("fetched").unwrap_or("nothing"), arriving));
}

pub(super) fn worker_named(worker: &str) -> WorkerId {
    WorkerId::new(uid(&ObjectRef::new(Kind::Worker, Name::new(worker).expect("a name"))))
}

fn disk_on(
    store: &mut Store,
    object: &ObjectRef,
    worker: WorkerId,
    line: &Line<'_>,
    (wanted, seen, arriving): (&str, &str, Option<Arriving>),
) {
    let host_object = HostObject::of(object.kind, uid(object));
    let size = line.or("had_size", line.get("size").unwrap_or("1GiB"));
    let sequence = line.or("sequence", "1");
    let assigned = AssignedVolume {
        sequence,
        generation: line.or("at_generation", "1"),
        name: object.name.clone(),
        wanted: match wanted {
            "present" => WantedVolume::Present,
            "held" => WantedVolume::Held,
            "released" => WantedVolume::Released,
            "quarantined" => WantedVolume::Quarantined,
            "removed" => WantedVolume::Removed,
            other => panic!("`{other}` is nothing that is wanted of a disk"),
        },
        size,
        source: Source::Blank(volume::Filesystem::Ext4),
        arriving,
    };
    store.put(&Key::Assigned(worker, host_object), Assigned::Volume(assigned));
    let phase = match seen {
        "present" => VolumePhase::Present,
        "claimed" => VolumePhase::Claimed,
        "lost" => VolumePhase::Lost,
        "copied" => VolumePhase::Copied,
        "complete" => VolumePhase::Complete,
        "held" => VolumePhase::Held,
        "released" => VolumePhase::Released,
        "nothing" => return,
        other => panic!("`{other}` is no phase of a disk"),
    };
    let sequence = line.or("seen", "1");
    let problem = line.get("volume_problem").map(|problem| problem.replace('_', " "));
    let observed = ObservedVolume { sequence, generation: 1, phase, size, since: at(20), problem };
    store.put(&Key::Observed(worker, host_object), Observed::Volume(observed));
}
