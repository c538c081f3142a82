//! Every small state of a VM on its host, with every wish, and an agent that is killed after any effect: it always
//! comes to what was asked, and no step on the way breaks a rule of the bench.

use lightbyte_api::assigned::{Assigned, WantedVm, WantedVolume};
use lightbyte_api::observed::{VmPhase, VolumePhase};
use lightbyte_plan::agent::VmmState;

use crate::bench::{Bench, Ended, VM, VOLUME, assigned_vm, assigned_volume, claim, saved, vm_id, volume_id};

/// The sequence of what is saved.
const SAVED_AT: u64 = 5;
/// How many effects an agent that is killed again and again lives for: an end of the machine takes two reports, a
/// save and a kill, and a shorter life counts it again and again.
const SHORT_LIFE: usize = 5;
/// How many short lives may pass before the goal.
const LIVES_MAX: usize = 40;

/// What is wanted of the VM: whether it runs, and whether a restart is asked for.
type Wish = (WantedVm, u64);

const WISHES: [Wish; 4] =
    [(WantedVm::Running, 0), (WantedVm::Running, 1), (WantedVm::Stopped, 0), (WantedVm::Removed, 0)];

#[derive(Clone, Copy, Debug, PartialEq)]
enum Taps {
    None,
    Some,
    All,
}

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
    saved: Option<Wish>,
    /// With its sequence; `None` when no assignment is there.
    wish: Option<(Wish, u64)>,
    vmm: VmmState,
    taps: Taps,
    disk: Disk,
    claimed: bool,
}

/// Every situation with this wish and with what is `saved`.
fn situations(saved: Option<Wish>, wish: Option<(Wish, u64)>) -> Vec<Situation> {
    let mut situations = Vec::new();
    for vmm in [VmmState::Absent, VmmState::Running, VmmState::Exited] {
        for taps in [Taps::None, Taps::Some, Taps::All] {
            for disk in [Disk::Unknown, Disk::Made, Disk::Present, Disk::Lost] {
                for claimed in [true, false] {
                    // A machine without taps ran before its host was rebooted, and so has ended; and what is saved
                    // was claimed before.
                    let possible =
                        (vmm != VmmState::Running || taps != Taps::None) && (claimed || saved.is_none());
                    if possible {
                        situations.push(Situation { saved, wish, vmm, taps, disk, claimed });
                    }
                }
            }
        }
    }
    situations
}

/// A worker in that situation, before its agent begins.
fn bench_of(situation: &Situation) -> Bench {
    let Situation { saved: kept, wish, vmm, taps, disk, claimed } = *situation;
    let mut bench = Bench::new();
    let drivers = bench.drivers.clone();
    let vm = assigned_vm(SAVED_AT, WantedVm::Running, 0);
    let volume = assigned_volume(1, WantedVolume::Present);
    drivers.disks.ensure(volume_id(), &volume, None).expect("a disk");
    drivers.network.ensure(vm_id(), &vm.nics).expect("taps");
    if vmm != VmmState::Absent {
        drivers.vmm.ensure(vm_id(), &vm).expect("a machine");
    }
    if vmm == VmmState::Exited {
        bench.host.exit(vm_id());
    }
    match taps {
        Taps::None => drivers.network.remove(vm_id()).expect("no taps"),
        Taps::Some => drivers.network.ensure(vm_id(), &vm.nics[..1]).expect("one tap"),
        Taps::All => {}
    }
    if let Some((wanted, restarts)) = kept {
        drivers
            .records
            .save(VM, &saved(Assigned::Vm(assigned_vm(SAVED_AT, wanted, restarts))))
            .expect("a record");
    }
    if claimed {
        bench.slot(VM).observed = Some(claim(VM, SAVED_AT));
    }
    if matches!(disk, Disk::Unknown | Disk::Lost) {
        bench.host.lose_disk(volume_id());
    }
    if disk != Disk::Unknown {
        let record = lightbyte_plan::agent::Saved {
            created: disk != Disk::Made,
            ..saved(Assigned::Volume(volume.clone()))
        };
        drivers.records.save(VOLUME, &record).expect("a record");
        bench.slot(VOLUME).observed = Some(claim(VOLUME, 1));
    }
    bench.assign(VOLUME, Some(Assigned::Volume(volume)));
    if let Some(((wanted, restarts), sequence)) = wish {
        bench.assign(VM, Some(Assigned::Vm(assigned_vm(sequence, wanted, restarts))));
    }
    bench
}

/// What counts in the end, computed without the agent: what is saved, unless something newer is wished.
fn counts(situation: &Situation) -> Option<Wish> {
    match (situation.saved, situation.wish) {
        (None, wish) => wish.map(|(wish, _)| wish),
        (Some(_), Some((wish, sequence))) if sequence > SAVED_AT => Some(wish),
        (saved, _) => saved,
    }
}

/// Whether the bench is where it should be in the end.
fn check_goal(situation: &Situation, bench: &Bench) {
    let facts = bench.facts(VM);
    let context = || format!("{situation:?}\n{facts:?}\n{:?}\n{}", bench.store, bench.trace.join("\n"));
    let disk_there = situation.disk != Disk::Lost;
    assert_eq!(bench.facts(VOLUME).disk.is_some(), disk_there, "{}", context());
    let phase = bench.observed_volume().map(|observed| observed.phase);
    let expected = if disk_there { VolumePhase::Present } else { VolumePhase::Lost };
    assert_eq!(phase, Some(expected), "{}", context());
    match counts(situation) {
        None => {
            assert_eq!(facts.vmm, situation.vmm, "absence acts: {}", context());
            assert_eq!(facts.taps, situation.taps != Taps::None, "absence acts: {}", context());
            assert_eq!(facts.saved, None, "{}", context());
            let reported = situation.claimed && !facts.is_bare();
            assert_eq!(bench.phase().is_some(), reported, "{}", context());
        }
        Some((WantedVm::Running, restarts)) => {
            let kept = facts.saved.as_ref().expect("a record");
            // A machine that runs goes on without its file, and another one is not started.
            let restarts_now = restarts > 0 && situation.saved.is_some();
            let goes_on = situation.vmm == VmmState::Running && !restarts_now;
            let runs = disk_there || goes_on;
            assert_eq!(facts.vmm == VmmState::Running, runs, "{}", context());
            assert!(kept.restarts_done >= restarts, "{}", context());
            if runs && !goes_on {
                assert_eq!(bench.phase(), Some(VmPhase::Running), "{}", context());
                assert!(facts.taps_complete, "{}", context());
            }
        }
        Some((WantedVm::Stopped, _)) => {
            assert_eq!((facts.vmm, facts.taps), (VmmState::Absent, false), "{}", context());
            assert!(facts.saved.is_some(), "{}", context());
            assert_eq!(bench.phase(), Some(VmPhase::Stopped), "{}", context());
        }
        Some((WantedVm::Removed, _)) => {
            assert!(facts.is_bare(), "{}", context());
            assert_eq!(bench.phase(), None, "{}", context());
        }
    }
}

/// Brings the situation to its end: undisturbed, with one kill after each of its effects, and with agents that are
/// killed again and again.
fn check(situation: &Situation) {
    let mut bench = bench_of(situation);
    bench.begin();
    bench.rest();
    check_goal(situation, &bench);
    let effects = bench.trace.len();
    assert!(bench.agent.actions(bench.now).is_empty(), "an agent at rest acts");
    // An agent that begins anew finds nothing to do. It may report that a machine whose disk is lost is claimed and
    // no longer crashed: that it ended is what an agent forgets.
    let steps = bench.steps();
    bench.begin();
    bench.rest();
    assert_eq!(bench.steps(), steps, "{situation:?}\n{}", bench.trace.join("\n"));
    for kill_after in 1..=effects {
        let mut bench = bench_of(situation);
        bench.life = kill_after;
        bench.begin();
        assert_eq!(bench.run(), Ended::Killed);
        bench.begin();
        bench.rest();
        check_goal(situation, &bench);
    }
    let mut bench = bench_of(situation);
    for life in 0.. {
        assert!(life < LIVES_MAX, "{situation:?}\n{}", bench.trace.join("\n"));
        bench.life = SHORT_LIFE;
        bench.begin();
        if bench.run() == Ended::AtRest {
            break;
        }
    }
    bench.rest();
    check_goal(situation, &bench);
}

fn check_all(saved: Option<Wish>, wish: Option<(Wish, u64)>) {
    for situation in situations(saved, wish) {
        check(&situation);
    }
}

#[test]
fn a_vm_that_is_wished_for_the_first_time() {
    for wish in WISHES {
        check_all(None, Some((wish, 1)));
    }
}

#[test]
fn a_vm_that_is_wished_otherwise() {
    for saved in WISHES.into_iter().filter(|saved| saved.0 != WantedVm::Removed) {
        for wish in WISHES {
            check_all(Some(saved), Some((wish, SAVED_AT + 1)));
        }
    }
}

#[test]
fn a_vm_whose_wish_is_saved_already() {
    for wish in WISHES {
        check_all(Some(wish), Some((wish, SAVED_AT)));
    }
}

#[test]
fn a_wish_that_is_older_than_what_is_saved_does_not_count() {
    // Not with a removal that is saved: once it is done nothing is left to compare with, and a claim on the older
    // wish fails only because the store no longer has it.
    for saved in WISHES.into_iter().filter(|saved| saved.0 != WantedVm::Removed) {
        for wish in [(WantedVm::Running, 0), (WantedVm::Removed, 0)] {
            check_all(Some(saved), Some((wish, SAVED_AT - 1)));
        }
    }
}

#[test]
fn absence_never_acts() {
    check_all(None, None);
    for saved in WISHES {
        check_all(Some(saved), None);
    }
}
