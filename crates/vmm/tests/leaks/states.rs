//! Every small state of a VM on real taps, rules, records and disks, with every wish, and an agent that is killed after an
//! effect: it comes to what was asked, and when the VM is removed nothing is left of it.
//!
//! `tests/host/states.rs` does the same on the fake host, with older wishes and restarts, and kills after each effect. Here that
//! takes minutes: of each situation one kill is tried, and another of the next. `LIGHTBYTE_EVERY_KILL=1` tries all.

use lightbyte_api::assigned::{Assigned, WantedVm, WantedVolume};
use lightbyte_plan::agent::{Facts, Saved, VmmState};
use lightbyte_vmm::hands;

use crate::room::{Left, Room, in_namespace};
use crate::worker::{VM, VOLUME, Worker, vm_id, volume_id};

/// Says that an agent is killed after each effect of each situation.
const EVERY_KILL: &str = "LIGHTBYTE_EVERY_KILL";
/// More effects than the agent needs from any situation.
const EFFECTS_MAX: usize = 60;

const WISHES: [WantedVm; 3] = [WantedVm::Running, WantedVm::Stopped, WantedVm::Removed];

#[derive(Clone, Copy, Debug, PartialEq)]
enum Disk {
    /// Assigned, and nothing more.
    Unknown,
    /// Its file was made; that it must exist from now on is not saved yet.
    Made,
    Present,
    /// It was there.
    Lost,
}

#[derive(Clone, Copy, Debug)]
struct Situation {
    saved: Option<WantedVm>,
    /// Newer than what is saved.
    wish: Option<WantedVm>,
    vmm: VmmState,
    /// How many of its two are there.
    taps: usize,
    disk: Disk,
}

fn situations(saved: Option<WantedVm>, wish: Option<WantedVm>) -> Vec<Situation> {
    let mut all = Vec::new();
    for vmm in [VmmState::Absent, VmmState::Running, VmmState::Exited] {
        for taps in [0, 1, 2] {
            for disk in [Disk::Unknown, Disk::Made, Disk::Present, Disk::Lost] {
                // A machine that runs has its taps open, and nothing takes them away.
                if vmm != VmmState::Running || taps == 2 {
                    all.push(Situation { saved, wish, vmm, taps, disk });
                }
            }
        }
    }
    all
}

/// A worker in that situation, before its agent begins.
fn worker_in(room: &Room, situation: &Situation) -> Worker {
    let Situation { saved: kept, wish, vmm, taps, disk } = *situation;
    let mut worker = Worker::new(room);
    let drivers = worker.drivers.clone();
    let saved = |assigned: Assigned, created| Saved { created, ..Saved::of(assigned) };
    let keeps = |object, record: &Saved| drivers.records.save(object, record).expect("a record");
    worker.volume.wanted = WantedVolume::Present;
    // A disk is made where its record is, and a machine's console likewise.
    keeps(VOLUME, &saved(Assigned::Volume(worker.volume.clone()), disk != Disk::Made));
    keeps(VM, &saved(Assigned::Vm(worker.vm.clone()), false));
    drivers.disks.ensure(volume_id(), &worker.volume, None).expect("a disk");
    drivers.network.ensure(vm_id(), &worker.vm.nics).expect("taps");
    if vmm != VmmState::Absent {
        drivers.vmm.ensure(vm_id(), &worker.vm).expect("a machine");
    }
    if vmm == VmmState::Exited {
        worker.machines.exit(vm_id());
    }
    if taps < 2 {
        drivers.network.remove(vm_id()).expect("no taps");
        drivers.network.ensure(vm_id(), &worker.vm.nics[..taps]).expect("some taps");
    }
    match kept {
        Some(wanted) => {
            worker.vm.wanted = wanted;
            keeps(VM, &saved(Assigned::Vm(worker.vm.clone()), false));
        }
        None => drivers.records.forget(VM).expect("no record"),
    }
    if matches!(disk, Disk::Unknown | Disk::Lost) {
        std::fs::remove_file(room.files.disk(volume_id())).expect("a disk");
    }
    if disk == Disk::Unknown {
        drivers.records.forget(VOLUME).expect("no record");
    }
    worker.tell_volume(WantedVolume::Present);
    wish.into_iter().for_each(|wish| worker.tell_vm(wish));
    worker
}

/// What is where in the end: the newest wish, or what is there as long as nobody has said anything of it.
fn check_goal(situation: &Situation, worker: &Worker) {
    let facts = |object| hands::facts(&worker.drivers, object).expect("a host that answers");
    let (vm, volume): (Facts, Facts) = (facts(VM), facts(VOLUME));
    let context = || format!("{situation:?}\n{vm:?}\n{}", worker.story());
    let disk_there = situation.disk != Disk::Lost;
    assert_eq!(volume.disk.is_some(), disk_there, "{}", context());
    match situation.wish.or(situation.saved) {
        None => {
            assert_eq!(vm.vmm, situation.vmm, "absence acts: {}", context());
            assert_eq!(vm.taps, situation.taps > 0, "absence acts: {}", context());
            assert_eq!(vm.saved, None, "{}", context());
        }
        Some(WantedVm::Running) => {
            // A machine that runs goes on without its file, and another one is not started.
            let goes_on = situation.vmm == VmmState::Running;
            assert_eq!(vm.vmm == VmmState::Running, disk_there || goes_on, "{}", context());
            assert!(vm.saved.is_some(), "{}", context());
            assert!(vm.taps_complete || vm.vmm != VmmState::Running, "{}", context());
        }
        Some(WantedVm::Stopped) => {
            assert_eq!((vm.vmm, vm.taps), (VmmState::Absent, false), "{}", context());
            assert!(vm.saved.is_some(), "{}", context());
        }
        Some(WantedVm::Removed) => assert!(vm.is_bare(), "{}", context()),
    }
}

/// Brings a situation to its end with an agent that is killed after so many effects, and then the VM away. False if the agent
/// has come to rest before.
fn check(room: &Room, before: &Left, situation: &Situation, kill: usize) -> bool {
    let mut worker = worker_in(room, situation);
    worker.begin(room);
    let killed = worker.killed_after(kill);
    if killed {
        worker.begin(room);
    }
    worker.rest();
    check_goal(situation, &worker);
    worker.tell_vm(WantedVm::Removed);
    worker.tell_volume(WantedVolume::Removed);
    worker.rest();
    worker.is_withdrawn();
    room.forget_ended();
    assert_eq!(room.left(), *before, "{situation:?}, killed after {kill} effects:\n{}", worker.story());
    killed
}

#[test]
fn every_small_state_of_a_real_host_comes_to_every_wish() {
    let name = "states::every_small_state_of_a_real_host_comes_to_every_wish";
    in_namespace(name, |room| {
        let some = |wish: WantedVm| Some(wish);
        let wishes = || [None].into_iter().chain(WISHES.map(some));
        let all = wishes().flat_map(|saved| wishes().flat_map(move |wish| situations(saved, wish)));
        let every_kill = std::env::var_os(EVERY_KILL).is_some();
        let mut before = None;
        let (mut tried, mut kill) = (0, 0);
        for situation in all {
            // What the first makes for good (threads, buffers) is no leak.
            let left = before.get_or_insert_with(|| {
                let mut worker = worker_in(&room, &situation);
                worker.begin(&room);
                worker.tell_vm(WantedVm::Removed);
                worker.tell_volume(WantedVolume::Removed);
                worker.rest();
                room.forget_ended();
                room.left()
            });
            if every_kill {
                let effects = (0..EFFECTS_MAX).take_while(|kill| {
                    tried += 1;
                    check(&room, left, &situation, *kill) || *kill == 0
                });
                assert!(effects.count() < EFFECTS_MAX, "{situation:?} needs more effects than that");
            } else {
                tried += 1;
                kill = if check(&room, left, &situation, kill) || kill == 0 { kill + 1 } else { 0 };
            }
        }
        eprintln!("{tried} ways");
    });
}
