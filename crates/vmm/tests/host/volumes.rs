//! Every small state of a volume on its host, with every wish, alone or used by a machine, and an agent that is
//! killed after any effect.

use lightbyte_api::ByteSize;
use lightbyte_api::assigned::{Assigned, WantedVm, WantedVolume};
use lightbyte_api::observed::VolumePhase;
use lightbyte_plan::agent::{Saved, VmmState};

use crate::bench::{Bench, Ended, VM, VOLUME, assigned_vm, assigned_volume, claim, saved, vm_id, volume_id};

/// The sequence of what is saved.
const SAVED_AT: u64 = 5;

/// Whether a machine uses the disk.
#[derive(Clone, Copy, Debug, PartialEq)]
enum User {
    None,
    Stays,
    /// It is to be removed with its disk.
    Goes,
}

#[derive(Clone, Copy, Debug)]
struct Situation {
    /// What is saved, and whether the file was made.
    saved: Option<(WantedVolume, bool)>,
    wish: Option<(WantedVolume, u64)>,
    file: bool,
    /// The file is smaller than is wished.
    small: bool,
    user: User,
    claimed: bool,
}

fn situations() -> Vec<Situation> {
    let kept = [
        None,
        Some((WantedVolume::Present, false)),
        Some((WantedVolume::Present, true)),
        Some((WantedVolume::Removed, true)),
    ];
    let mut situations = Vec::new();
    for saved in kept {
        let newer = [WantedVolume::Present, WantedVolume::Removed].map(|wanted| Some((wanted, SAVED_AT + 1)));
        let same = saved.map(|(wanted, _)| (wanted, SAVED_AT));
        for wish in newer.into_iter().chain([None, same]) {
            for (file, small) in [(true, false), (true, true), (false, false)] {
                for user in [User::None, User::Stays, User::Goes] {
                    for claimed in [true, false] {
                        // A machine runs only with a disk that is there, and what is saved was claimed before.
                        let made = saved.is_some_and(|(_, created)| created);
                        let possible = (user == User::None || (file && made)) && (claimed || saved.is_none());
                        // Delete wins: nobody asks for what is being removed.
                        let back = saved.is_some_and(|(wanted, _)| wanted == WantedVolume::Removed)
                            && wish.is_some_and(|(wanted, _)| wanted == WantedVolume::Present);
                        if possible && !back {
                            situations.push(Situation { saved, wish, file, small, user, claimed });
                        }
                    }
                }
            }
        }
    }
    situations
}

fn bench_of(situation: &Situation) -> Bench {
    let mut bench = Bench::new();
    let drivers = bench.drivers.clone();
    let vm = assigned_vm(1, WantedVm::Running, 0);
    if situation.file {
        let mut volume = assigned_volume(1, WantedVolume::Present);
        if situation.small {
            volume.size = ByteSize::from_mib(32);
        }
        drivers.disks.ensure(volume_id(), &volume, None).expect("a disk");
    }
    if situation.user != User::None {
        drivers.network.ensure(vm_id(), &vm.nics).expect("taps");
        drivers.vmm.ensure(vm_id(), &vm).expect("a machine");
        drivers.records.save(VM, &saved(Assigned::Vm(vm.clone()))).expect("a record");
        bench.slot(VM).observed = Some(claim(VM, 1));
        let goes = situation.user == User::Goes;
        let wanted = if goes { assigned_vm(2, WantedVm::Removed, 0) } else { vm };
        bench.assign(VM, Some(Assigned::Vm(wanted)));
    }
    if let Some((wanted, created)) = situation.saved {
        let kept = Saved { created, ..saved(Assigned::Volume(assigned_volume(SAVED_AT, wanted))) };
        drivers.records.save(VOLUME, &kept).expect("a record");
    }
    if situation.claimed {
        bench.slot(VOLUME).observed = Some(claim(VOLUME, SAVED_AT));
    }
    if let Some((wanted, sequence)) = situation.wish {
        bench.assign(VOLUME, Some(Assigned::Volume(assigned_volume(sequence, wanted))));
    }
    bench
}

fn check_goal(situation: &Situation, bench: &Bench) {
    let facts = bench.facts(VOLUME);
    let phase = bench.observed_volume().map(|observed| observed.phase);
    let context = || format!("{situation:?}\n{facts:?}\n{:?}\n{}", bench.store, bench.trace.join("\n"));
    let wanted = situation.wish.map(|(wanted, _)| wanted).or(situation.saved.map(|(wanted, _)| wanted));
    let made = situation.saved.is_some_and(|(_, created)| created);
    let in_use = bench.facts(VM).vmm == VmmState::Running;
    assert_eq!(in_use, situation.user == User::Stays, "{}", context());
    match wanted {
        None => {
            assert_eq!(facts.disk.is_some(), situation.file, "absence acts: {}", context());
            assert_eq!(phase.is_some(), situation.claimed && situation.file, "{}", context());
        }
        Some(WantedVolume::Present) if made && !situation.file => {
            assert!(facts.disk.is_none(), "a lost disk is made again: {}", context());
            assert_eq!(phase, Some(VolumePhase::Lost), "{}", context());
        }
        Some(WantedVolume::Present) => {
            assert_eq!(facts.disk, Some(ByteSize::from_mib(64)), "{}", context());
            assert_eq!(phase, Some(VolumePhase::Present), "{}", context());
        }
        Some(WantedVolume::Removed) if in_use => {
            assert!(facts.disk.is_some(), "taken from a machine: {}", context());
        }
        Some(WantedVolume::Removed) => {
            assert!(facts.is_bare(), "{}", context());
            assert_eq!(phase, None, "{}", context());
        }
    }
}

#[test]
fn a_volume_comes_to_what_is_asked_from_every_state() {
    for situation in situations() {
        let mut bench = bench_of(&situation);
        bench.begin();
        bench.rest();
        check_goal(&situation, &bench);
        let effects = bench.trace.len();
        bench.begin();
        bench.rest();
        assert_eq!(bench.trace.len(), effects, "{situation:?}\n{}", bench.trace.join("\n"));
        for kill_after in 1..=effects {
            let mut bench = bench_of(&situation);
            bench.life = kill_after;
            bench.begin();
            assert_eq!(bench.run(), Ended::Killed);
            bench.begin();
            bench.rest();
            check_goal(&situation, &bench);
        }
        // Agents that live for one effect only.
        let mut bench = bench_of(&situation);
        for _ in 0..=2 * effects {
            bench.life = 1;
            bench.begin();
            if bench.run() == Ended::AtRest {
                break;
            }
        }
        check_goal(&situation, &bench);
    }
}

#[test]
fn a_lost_disk_is_told_and_never_made_again() {
    let mut bench = Bench::running();
    bench.host.lose_disk(volume_id());
    bench.agent.observed(VOLUME, bench.facts(VOLUME), None, bench.now);
    bench.rest();
    let observed = bench.observed_volume().expect("a report");
    assert_eq!(observed.phase, VolumePhase::Lost);
    assert_eq!(observed.problem.as_deref(), Some("its file is gone from the worker"));
    assert_eq!(bench.facts(VM).vmm, VmmState::Running, "the machine goes on with the file that it has open");
    // It ends by itself: it is not started without its disk, whoever asks, and no disk is made.
    bench.machine_ends();
    bench.rest();
    bench.tell_vm(2, WantedVm::Running, 1);
    bench.tell_volume(2, WantedVolume::Present);
    bench.rest();
    bench.begin();
    bench.rest();
    assert_eq!(bench.facts(VM).vmm, VmmState::Absent);
    assert!(bench.facts(VOLUME).disk.is_none());
    // Both can be removed.
    bench.tell_vm(3, WantedVm::Removed, 1);
    bench.tell_volume(3, WantedVolume::Removed);
    bench.rest();
    assert!(bench.host.everything().is_empty());
    // Only when the file is back does it count.
    let mut bench = Bench::running();
    bench.host.lose_disk(volume_id());
    bench.agent.observed(VOLUME, bench.facts(VOLUME), None, bench.now);
    bench.rest();
    let volume = assigned_volume(1, WantedVolume::Present);
    bench.drivers.disks.ensure(volume_id(), &volume, None).expect("a disk that is put back by a person");
    bench.agent.observed(VOLUME, bench.facts(VOLUME), None, bench.now);
    bench.rest();
    assert_eq!(bench.observed_volume().map(|observed| observed.phase), Some(VolumePhase::Present));
}
