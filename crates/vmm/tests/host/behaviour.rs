//! The life of a VM on its host: the order of its steps, how it stops, and how it is started again when it ends.

use std::net::Ipv4Addr;

use insta::assert_snapshot;
use lightbyte_api::Span;
use lightbyte_api::assigned::{Assigned, AssignedVm, VirtualAddress, WantedVm, WantedVolume};
use lightbyte_api::kinds::vm::RestartPolicy;
use lightbyte_api::observed::{BootTimes, VmPhase};
use lightbyte_plan::agent::vm::{CRASH_PAUSE_FIRST, CRASH_PAUSE_LIMIT, SHUTDOWN_GRACE, STEADY_AFTER};
use lightbyte_plan::agent::{Action, Leaving, Step, VmmState};

use crate::bench::{Bench, Guest, VM, VOLUME, assigned_vm, assigned_volume, at, vm_id};

/// What the bench does when `act` has happened.
fn traced(bench: &mut Bench, act: impl FnOnce(&mut Bench)) -> String {
    let before = bench.trace.len();
    act(bench);
    bench.rest();
    bench.trace[before..].join("\n")
}

#[test]
fn a_vm_lives_in_this_order() {
    let mut bench = Bench::new();
    let start = |bench: &mut Bench| {
        bench.assign(VOLUME, Some(Assigned::Volume(assigned_volume(1, WantedVolume::Present))));
        bench.assign(VM, Some(Assigned::Vm(assigned_vm(1, WantedVm::Running, 0))));
        bench.begin();
    };
    assert_snapshot!(traced(&mut bench, start), @"
    volume: report Claimed 1
    vm: report Claimed 1
    volume: save Present 1
    vm: save Running 1 restarts 0 done 0
    volume: CreateDisk { written_by: [] }
    vm: EnsureTaps
    volume: report Claimed 1
    volume: save Present 1 created
    vm: Probe
    volume: report Present 1
    vm: Start
    vm: report Running 1
    ");
    assert_snapshot!(traced(&mut bench, |bench| bench.tell_vm(2, WantedVm::Running, 1)), @"
    vm: save Running 2 restarts 0 done 0
    vm: report Stopping 2
    vm: Shutdown
    vm: Kill
    vm: report Claimed 2
    vm: save Running 2 restarts 0 done 1
    vm: report Claimed 2
    vm: Start
    vm: report Running 2
    ");
    assert_snapshot!(traced(&mut bench, |bench| bench.tell_vm(3, WantedVm::Stopped, 1)), @"
    vm: save Stopped 3 restarts 0 done 1
    vm: report Stopping 3
    vm: Shutdown
    vm: Kill
    vm: RemoveTaps
    vm: report Stopped 3
    ");
    assert_snapshot!(traced(&mut bench, |bench| bench.tell_vm(4, WantedVm::Running, 1)), @"
    vm: save Running 4 restarts 0 done 1
    vm: report Claimed 4
    vm: EnsureTaps
    vm: Probe
    vm: Start
    vm: report Running 4
    ");
    assert_snapshot!(traced(&mut bench, Bench::machine_ends), @"
    vm: report Crashed 4
    vm: save Running 4 restarts 1 done 1
    vm: report Crashed 4
    vm: Kill
    vm: Start
    vm: report Running 4
    ");
    let remove = |bench: &mut Bench| {
        bench.tell_volume(2, WantedVolume::Removed);
        bench.tell_vm(5, WantedVm::Removed, 1);
    };
    assert_snapshot!(traced(&mut bench, remove), @"
    volume: save Removed 2 created
    vm: save Removed 5 restarts 1 done 1
    volume: report Claimed 2
    vm: report Stopping 5
    vm: Kill
    volume: RemoveDisk
    vm: RemoveTaps
    volume: report Lost 2
    volume: Forget
    vm: Forget
    volume: report withdrawn
    vm: report withdrawn
    ");
    assert!(bench.host.everything().is_empty());
}

#[test]
fn a_vm_waits_for_its_disk() {
    let mut bench = Bench::new();
    bench.assign(VM, Some(Assigned::Vm(assigned_vm(1, WantedVm::Running, 0))));
    bench.begin();
    bench.rest();
    assert_eq!((bench.phase(), bench.facts(VM).vmm), (Some(VmPhase::Claimed), VmmState::Absent));
    bench.tell_volume(1, WantedVolume::Present);
    bench.rest();
    assert_eq!(bench.phase(), Some(VmPhase::Running));
}

#[test]
fn a_guest_has_its_grace_and_no_more() {
    // (guest, whether it is to be removed, milliseconds until it is gone)
    let grace = i64::try_from(SHUTDOWN_GRACE.millis()).expect("a short grace");
    let cases = [
        (Guest::Obeys, WantedVm::Stopped, 0),
        (Guest::Ignores, WantedVm::Stopped, grace),
        (Guest::Silent, WantedVm::Stopped, 0),
        (Guest::Ignores, WantedVm::Removed, 0),
    ];
    for (guest, wanted, expected) in cases {
        let mut bench = Bench::new();
        bench.guest = guest;
        bench.assign(VOLUME, Some(Assigned::Volume(assigned_volume(1, WantedVolume::Present))));
        bench.assign(VM, Some(Assigned::Vm(assigned_vm(1, WantedVm::Running, 0))));
        bench.begin();
        bench.rest();
        let told = bench.now.as_millisecond();
        bench.tell_vm(2, wanted, 0);
        bench.act();
        let waits = bench.facts(VM).vmm == VmmState::Running;
        assert_eq!(waits, expected > 0, "{guest:?} {wanted:?}");
        if waits {
            assert_eq!(bench.phase(), Some(VmPhase::Stopping));
            assert_eq!(bench.agent.next_wake().map(|wake| wake.as_millisecond() - told), Some(expected));
        }
        bench.rest();
        assert_eq!(bench.facts(VM).vmm, VmmState::Absent, "{guest:?} {wanted:?}");
        assert_eq!(bench.now.as_millisecond() - told, expected, "{guest:?} {wanted:?}");
    }
}

#[test]
fn a_start_that_comes_while_a_guest_shuts_down_waits_for_its_end() {
    let mut bench = Bench::running();
    bench.guest = Guest::Ignores;
    bench.tell_vm(2, WantedVm::Stopped, 0);
    bench.act();
    assert_eq!(bench.phase(), Some(VmPhase::Stopping));
    // It was asked to shut down, and is wanted again: it runs, and when it obeys late it is started again.
    bench.tell_vm(3, WantedVm::Running, 0);
    bench.act();
    bench.guest = Guest::Obeys;
    bench.machine_ends();
    bench.rest();
    assert_eq!(bench.phase(), Some(VmPhase::Running));
}

/// The pause, in milliseconds, between the end of the machine and its next start.
fn pause_after_end(bench: &mut Bench) -> u64 {
    let ended = bench.now.as_millisecond();
    bench.machine_ends();
    bench.act();
    assert_eq!(bench.phase(), Some(VmPhase::Crashed));
    assert_eq!(bench.facts(VM).vmm, VmmState::Absent, "its traces are removed at once");
    bench.rest();
    assert_eq!(bench.phase(), Some(VmPhase::Running));
    u64::try_from(bench.now.as_millisecond() - ended).expect("a time that goes on")
}

#[test]
fn the_pause_of_a_crash_loop_doubles_and_is_forgotten_after_a_steady_run() {
    let mut bench = Bench::running();
    let mut expected = CRASH_PAUSE_FIRST.millis();
    for crash in 1..=8 {
        bench.after(Span::from_millis(STEADY_AFTER.millis() - 1));
        expected = (2 * expected).min(CRASH_PAUSE_LIMIT.millis());
        assert_eq!(pause_after_end(&mut bench), expected, "crash {crash}");
        assert_eq!(bench.observed_vm().map(|observed| observed.restarts), Some(crash));
    }
    assert_eq!(expected, CRASH_PAUSE_LIMIT.millis());
    bench.after(STEADY_AFTER);
    assert_eq!(pause_after_end(&mut bench), CRASH_PAUSE_FIRST.millis(), "it ran long enough");
    assert_eq!(pause_after_end(&mut bench), 2 * CRASH_PAUSE_FIRST.millis(), "and ends quickly again");
}

#[test]
fn an_end_that_was_asked_for_is_no_crash() {
    let mut bench = Bench::running();
    for restart in 1..=3 {
        let before = bench.now;
        bench.tell_vm(1 + restart, WantedVm::Running, restart);
        bench.rest();
        let observed = bench.observed_vm().expect("a report");
        assert_eq!(
            (observed.phase, observed.restarts, observed.restarts_done),
            (VmPhase::Running, 0, restart)
        );
        assert_eq!(bench.now, before, "nothing is waited for");
    }
}

#[test]
fn a_rebooted_host_starts_again_what_is_saved() {
    let mut bench = Bench::running();
    bench.host.reboot();
    bench.begin();
    bench.rest();
    assert_eq!(bench.phase(), Some(VmPhase::Running));
    assert!(bench.facts(VM).taps_complete);
    // Also when no server can be reached: what is saved counts.
    bench.host.reboot();
    bench.agent = lightbyte_plan::agent::Agent::begin(
        lightbyte_vmm::hands::find_all(&bench.drivers).expect("a whole list"),
    );
    bench.run();
    assert_eq!(bench.facts(VM).vmm, VmmState::Running);
}

#[test]
fn a_virtual_address_is_reported_for_as_long_as_it_is_let_through() {
    let mut bench = Bench::running();
    let address = Ipv4Addr::new(10, 77, 0, 40);
    let with = |sequence: u64, address: Option<Ipv4Addr>, wanted: WantedVm| {
        let mut assigned = assigned_vm(sequence, wanted, 0);
        assigned.nics[0].virtual_address =
            address.map(|address| VirtualAddress { address, turn: 1, leaves_within: None });
        Some(Assigned::Vm(assigned))
    };
    let mut check = |sequence: u64, asked: Option<Ipv4Addr>, wanted: WantedVm, expected: Option<Ipv4Addr>| {
        bench.assign(VM, with(sequence, asked, wanted));
        bench.news(VM);
        bench.act();
        let observed = bench.observed_vm().expect("a report");
        assert_eq!(
            (observed.sequence, observed.virtual_address.map(|has| has.address)),
            (sequence, expected)
        );
        let shown = bench.host.taps(vm_id()).first().and_then(|nic| nic.virtual_address);
        assert_eq!(shown.map(|has| has.address), expected);
    };
    check(2, Some(address), WantedVm::Running, Some(address));
    check(3, None, WantedVm::Running, None);
    check(4, Some(address), WantedVm::Running, Some(address));
    // It goes before the machine is asked to end.
    check(5, None, WantedVm::Stopped, None);
}

#[test]
fn a_running_vm_is_adopted_without_a_word_from_its_guest() {
    let mut bench = Bench::running();
    let reports = bench.trace.len();
    bench.begin_unheard();
    bench.rest();
    assert_eq!(bench.trace.len(), reports, "what was reported of it still holds");
    // It may be asked to stop before its guest is heard: then nobody is there to ask.
    bench.guest = Guest::Ignores;
    bench.tell_vm(2, WantedVm::Stopped, 0);
    bench.act();
    assert_eq!(bench.phase(), Some(VmPhase::Stopped));
}

#[test]
fn a_vm_that_was_starting_is_running_when_its_guest_says_so() {
    let mut bench = Bench::new();
    bench.guest = Guest::Silent;
    bench.assign(VOLUME, Some(Assigned::Volume(assigned_volume(1, WantedVolume::Present))));
    bench.assign(VM, Some(Assigned::Vm(assigned_vm(1, WantedVm::Running, 0))));
    bench.begin();
    bench.rest();
    assert_eq!(bench.phase(), Some(VmPhase::Starting));
    bench.begin_unheard();
    bench.rest();
    assert_eq!(bench.phase(), Some(VmPhase::Starting), "an adopted machine is not taken for a ready one");
    bench.agent.guest_ready(VM, bench.now, bench.now);
    bench.rest();
    assert_eq!(bench.phase(), Some(VmPhase::Running));
    // A word from a guest of before the last start does not count.
    bench.machine_ends();
    bench.agent.guest_ready(VM, bench.now, bench.now);
    bench.act();
    assert_eq!(bench.phase(), Some(VmPhase::Crashed));
}

#[test]
fn each_part_of_a_boot_is_timed() {
    let mut bench = Bench::new();
    bench.guest = Guest::Silent;
    bench.assign(VOLUME, Some(Assigned::Volume(assigned_volume(1, WantedVolume::Present))));
    bench.assign(VM, Some(Assigned::Vm(assigned_vm(1, WantedVm::Running, 0))));
    // Asked at -1000; delivered at 0; started at 250; its agent runs from 2250; ready at 2300.
    bench.begin();
    while bench.facts(VM).vmm == VmmState::Absent {
        for (object, action) in bench.agent.actions(bench.now) {
            if action == Action::Step(Step::Start) {
                bench.now = at(250);
            }
            bench.do_one(object, action);
        }
    }
    bench.agent.guest_ready(VM, at(2_250), at(2_300));
    bench.rest();
    let expected = BootTimes {
        request_to_dispatch: 1_000,
        dispatch_to_vmm: 250,
        vmm_to_agent: 2_000,
        agent_to_ready: 50,
    };
    assert_eq!(bench.observed_vm().and_then(|observed| observed.boot), Some(expected));
    // They outlive the agent.
    bench.begin_unheard();
    bench.rest();
    assert_eq!(bench.observed_vm().and_then(|observed| observed.boot), Some(expected));
}

#[test]
fn a_guest_that_shuts_down_stays_off_and_one_that_reboots_comes_back() {
    let mut bench = Bench::running();
    assert_snapshot!(traced(&mut bench, |bench| bench.guest_leaves(Leaving::Reboot)), @"
    vm: report Starting 1
    vm: Kill
    vm: report Claimed 1
    vm: Start
    vm: report Running 1
    ");
    assert_snapshot!(traced(&mut bench, |bench| bench.guest_leaves(Leaving::Poweroff)), @"
    vm: report Off 1
    vm: save Running 1 restarts 0 done 0
    vm: Kill
    vm: RemoveTaps
    ");
    // A host that was rebooted, and whatever else is changed, leaves it off.
    assert_snapshot!(traced(&mut bench, |bench| {
        bench.host.reboot();
        bench.begin();
    }), @"");
    assert_snapshot!(traced(&mut bench, |bench| bench.tell_vm(2, WantedVm::Running, 0)), @"
    vm: save Running 2 restarts 0 done 0
    vm: report Off 2
    ");
    // Asked for once more, it starts; and so it does after it was stopped as asked.
    assert_snapshot!(traced(&mut bench, |bench| bench.tell_vm(3, WantedVm::Running, 1)), @"
    vm: save Running 3 restarts 0 done 0
    vm: report Claimed 3
    vm: save Running 3 restarts 0 done 1
    vm: report Claimed 3
    vm: EnsureTaps
    vm: Probe
    vm: Start
    vm: report Running 3
    ");
    bench.guest_leaves(Leaving::Poweroff);
    bench.rest();
    assert_snapshot!(traced(&mut bench, |bench| bench.tell_vm(4, WantedVm::Stopped, 1)), @"
    vm: save Stopped 4 restarts 0 done 1
    vm: report Stopped 4
    vm: save Stopped 4 restarts 0 done 1
    ");
    assert_snapshot!(traced(&mut bench, |bench| bench.tell_vm(5, WantedVm::Running, 1)), @"
    vm: save Running 5 restarts 0 done 1
    vm: report Claimed 5
    vm: EnsureTaps
    vm: Probe
    vm: Start
    vm: report Running 5
    ");
}

#[test]
fn the_restart_policy_says_what_ends_a_vm_for_good() {
    let check = |policy: RestartPolicy, leaving: Option<Leaving>, runs_again: bool| {
        let mut bench = Bench::running();
        let assigned = AssignedVm { restart: policy, ..assigned_vm(2, WantedVm::Running, 0) };
        bench.assign(VM, Some(Assigned::Vm(assigned)));
        bench.news(VM);
        bench.rest();
        match leaving {
            Some(leaving) => bench.guest_leaves(leaving),
            None => bench.machine_ends(),
        }
        bench.rest();
        bench.after(CRASH_PAUSE_LIMIT);
        bench.rest();
        let phase = if runs_again { VmPhase::Running } else { VmPhase::Off };
        assert_eq!(bench.phase(), Some(phase), "{policy:?} {leaving:?}");
        assert_eq!(bench.facts(VM).vmm == VmmState::Running, runs_again, "{policy:?} {leaving:?}");
    };
    let (off, reboot) = (Some(Leaving::Poweroff), Some(Leaving::Reboot));
    for (policy, ends) in [
        (RestartPolicy::Always, [(None, true), (off, true), (reboot, true)]),
        (RestartPolicy::OnCrash, [(None, true), (off, false), (reboot, true)]),
        (RestartPolicy::Never, [(None, false), (off, false), (reboot, true)]),
    ] {
        ends.into_iter().for_each(|(leaving, runs_again)| check(policy, leaving, runs_again));
    }
}
