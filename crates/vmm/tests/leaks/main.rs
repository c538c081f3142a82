//! Nothing stays behind: a VM comes and goes by every end that it can have, on real taps, rules and files, and under an
//! agent that is killed between any two steps. Afterwards the host has what it had before: interfaces, rules, files,
//! descriptors. Only the machine process is in memory.
//!
//! It runs in a network namespace of its own, with everything on a small tmpfs that goes with it. It needs root and some
//! programs; without one of them it says so and is skipped.

mod machines;
mod room;
mod states;
mod worker;

use std::fs::{self, File};

use lightbyte_api::assigned::{Source, WantedVm, WantedVolume};
use lightbyte_plan::agent::Leaving;
use lightbyte_vmm::files::Access;
use lightbyte_vmm::{Network as _, Taps};

use room::{Room, in_namespace};
use worker::{Guest, Worker, volume_id};

/// Effects of the agent after which it is killed: more than there are in a life.
const KILLS: usize = 12;
/// How often what fails is tried again before the VM is given up.
const TRIES: usize = 4;

/// How a VM ends, or why it never begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// It is deleted before it is whole: while its disk is made, or it starts.
    Early,
    Running,
    /// Its machine process ends by itself, and it is deleted at once.
    Crashed,
    /// The same, after it has come back.
    CrashedAndBack,
    /// Its guest has shut it down.
    Off,
    Stopped,
    /// Its guest does not do as it is asked.
    Stubborn,
    /// Its host had no power for a moment.
    PowerCut,
    /// Its disk is gone from under it.
    DiskLost,
    /// Somebody else has its disk.
    DiskHeld,
    NoBridge,
    /// The bridge of its second card is missing.
    NoSecondBridge,
    /// The part of the image that its disk is made of is missing.
    NoPart,
    NoKernel,
    /// Its disk does not fit.
    Full,
    /// Not a byte is left once it runs.
    FullToTheBrim,
    /// The agent is killed in the midst of steps, and their halves are left.
    Halves,
    /// The same, and the VM is deleted before another agent could go on with it.
    HalvesEarly,
}

/// Ends of VMs that have run.
const OF_RUNNING: [End; 8] = [
    End::Running,
    End::Crashed,
    End::CrashedAndBack,
    End::Off,
    End::Stopped,
    End::Stubborn,
    End::PowerCut,
    End::FullToTheBrim,
];

/// Ends of VMs that have not, or not again.
const OF_OTHERS: [End; 10] = [
    End::Early,
    End::DiskLost,
    End::DiskHeld,
    End::NoBridge,
    End::NoSecondBridge,
    End::NoPart,
    End::NoKernel,
    End::Full,
    End::Halves,
    End::HalvesEarly,
];

#[test]
fn nothing_is_left_of_a_vm_that_ran() {
    in_namespace("nothing_is_left_of_a_vm_that_ran", |room| all_lives(&room, &OF_RUNNING));
}

#[test]
fn nothing_is_left_of_a_vm_that_did_not_start() {
    in_namespace("nothing_is_left_of_a_vm_that_did_not_start", |room| all_lives(&room, &OF_OTHERS));
}

/// A life for every end and every effect after which the agent is killed.
fn all_lives(room: &Room, ends: &[End]) {
    // What the first life makes for good (threads, buffers) is no leak.
    live(room, End::Running, 0);
    let before = room.left();
    for end in ends {
        for kill in 0..KILLS {
            live(room, *end, kill);
            assert_eq!(room.left(), before, "{end:?}, killed after {kill} effects");
        }
    }
}

/// A measure that sees nothing would be content with everything.
#[test]
fn what_is_left_is_seen() {
    in_namespace("what_is_left_is_seen", |room| {
        let before = room.left();
        let differs = |what: &str| assert_ne!(room.left(), before, "{what} is not seen");
        let file = File::open("/dev/null").expect("a file");
        differs("a descriptor");
        drop(file);
        let path = room.run.join("left");
        fs::write(&path, "").expect("write a file");
        differs("a file");
        fs::remove_file(path).expect("remove the file");
        let taps = Taps {};
        let vm = worker::vm_id();
        taps.ensure(vm, &Worker::new(&room).vm.nics).expect("make taps");
        differs("a tap");
        taps.remove(vm).expect("remove the taps");
        assert_eq!(room.left(), before);
        room.leave_halves();
        differs("half a step");
    });
}

/// One life. The agent is killed after so many effects of its beginning, and once more after as many of its end; not at
/// all if that is nought.
fn live(room: &Room, end: End, kill: usize) {
    let mut worker = Worker::new(room);
    prepare(room, end, &mut worker);
    worker.begin(room);
    if worker.killed_after(kill) {
        if matches!(end, End::Halves | End::HalvesEarly) {
            room.leave_halves();
        }
        worker.begin(room);
    }
    if !matches!(end, End::Early | End::HalvesEarly) {
        worker.run(TRIES);
    }
    happen(room, end, &mut worker);
    worker.tell_vm(WantedVm::Removed);
    worker.tell_volume(WantedVolume::Removed);
    if worker.killed_after(kill) {
        worker.begin(room);
    }
    if end == End::FullToTheBrim {
        worker.run(TRIES);
    }
    room.undo();
    worker.rest();
    worker.is_withdrawn();
}

/// What is so before the VM comes.
fn prepare(room: &Room, end: End, worker: &mut Worker) {
    match end {
        End::NoBridge => worker.vm.nics[0].bridge = "br7".to_owned(),
        End::NoSecondBridge => worker.vm.nics[1].bridge = "br7".to_owned(),
        End::NoKernel => worker.vm.kernel.sha256 = "9".repeat(64),
        End::NoPart => {
            if let Source::Image(part) = &mut worker.volume.source {
                part.sha256 = "9".repeat(64);
            }
        }
        End::Full => room.fill(room::SPARE_BYTES),
        End::Stubborn => worker.guest = Guest::Ignores,
        End::DiskHeld => {
            // The disk is there before its VM, and so can be somebody else's.
            worker.tell_volume(WantedVolume::Present);
            worker.begin(room);
            worker.rest();
            room.hold(room.files.hold(volume_id(), Access::Write).expect("a disk"));
        }
        _ => {}
    }
    worker.tell_volume(WantedVolume::Present);
    worker.tell_vm(WantedVm::Running);
}

/// What happens to a VM that is as far as it gets.
fn happen(room: &Room, end: End, worker: &mut Worker) {
    match end {
        End::Crashed => worker.machine_ends(),
        End::CrashedAndBack => {
            worker.machine_ends();
            worker.rest();
            assert!(worker.is_running(), "{}", worker.story());
        }
        End::Off => {
            worker.leaves(Leaving::Poweroff);
            worker.rest();
            assert!(!worker.is_running(), "{}", worker.story());
        }
        End::Stopped | End::Stubborn => {
            worker.tell_vm(WantedVm::Stopped);
            worker.rest();
            assert!(!worker.is_running(), "{}", worker.story());
        }
        End::PowerCut => {
            worker.power_cut();
            worker.begin(room);
        }
        End::DiskLost => {
            worker.tell_vm(WantedVm::Stopped);
            worker.rest();
            fs::remove_file(room.files.disk(volume_id())).expect("remove the disk");
            worker.begin(room);
            worker.tell_vm(WantedVm::Running);
            worker.run(TRIES);
            assert!(!worker.is_running(), "{}", worker.story());
        }
        End::FullToTheBrim => room.fill(0),
        End::Running => assert!(worker.is_running(), "{}", worker.story()),
        End::DiskHeld | End::NoBridge | End::NoSecondBridge | End::NoPart | End::NoKernel | End::Full => {
            assert!(!worker.is_running(), "{}", worker.story());
        }
        End::Early | End::Halves | End::HalvesEarly => {}
    }
}
