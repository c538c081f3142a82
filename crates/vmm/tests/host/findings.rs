//! What these tests found wrong in the agent when they were first run, each mended since.

use lightbyte_api::Span;
use lightbyte_api::assigned::{Arriving, Assigned, AssignedVolume, Source, WantedVm, WantedVolume};
use lightbyte_api::observed::{Observed, VmPhase};
use lightbyte_api::{Uid, VolumeId, WorkerId};
use lightbyte_plan::agent::{Action, Stamped, Step, VmmState};

use crate::bench::{Bench, Ended, Guest, VM, VOLUME, assigned_volume};

/// a failed `Shutdown` leaves `retry_at` in the past: `next_wake` says "now" for the whole grace, and the shell spins.
#[test]
fn next_wake_is_never_in_the_past_when_nothing_is_to_be_done() {
    let mut bench = Bench::running();
    bench.guest = Guest::Ignores;
    bench.tell_vm(2, WantedVm::Stopped, 0);
    for (object, action) in bench.agent.actions(bench.now) {
        bench.do_one(object, action);
    }
    bench.host.fail_next(1);
    bench.act();
    bench.now = bench.agent.next_wake().expect("a retry");
    bench.act();
    assert!(bench.agent.actions(bench.now).is_empty());
    let wake = bench.agent.next_wake().expect("the end of the grace");
    assert!(wake > bench.now, "next_wake {wake} at {}", bench.now);
}

/// a step that failed but left its effect behind: nothing is to be done any more, and the problem is told for ever.
#[test]
fn a_problem_goes_when_nothing_is_left_to_do() {
    let mut bench = Bench::running();
    bench.tell_vm(2, WantedVm::Stopped, 0);
    loop {
        let mut removed = false;
        for (object, action) in bench.agent.actions(bench.now) {
            if action == Action::Step(Step::RemoveTaps) {
                lightbyte_vmm::hands::perform(&bench.drivers, object, &Step::RemoveTaps).expect("taps go");
                bench.agent.failed(object, bench.facts(object), "time-out", bench.now);
                removed = true;
            } else {
                bench.do_one(object, action);
            }
        }
        if removed {
            break;
        }
    }
    bench.rest();
    bench.after(Span::from_secs(3_600));
    bench.rest();
    let observed = bench.observed_vm().expect("a report");
    assert_eq!((observed.phase, observed.problem.clone()), (VmPhase::Stopped, None));
}

/// a stop that was taken back leaves `stopping_since`: the next stop kills at once, without asking the guest.
#[test]
fn a_second_stop_has_its_grace_too() {
    let mut bench = Bench::running();
    bench.guest = Guest::Ignores;
    bench.tell_vm(2, WantedVm::Stopped, 0);
    bench.act();
    bench.tell_vm(3, WantedVm::Running, 0);
    bench.act();
    bench.after(Span::from_secs(3_600));
    bench.tell_vm(4, WantedVm::Stopped, 0);
    bench.act();
    assert_eq!(bench.facts(VM).vmm, VmmState::Running, "{}", bench.trace.join("\n"));
}

/// the boot time of a start after a crash counts from the delivery of the assignment, days ago.
#[test]
fn the_boot_after_a_crash_is_not_counted_from_the_first_delivery() {
    let mut bench = Bench::running();
    bench.after(Span::from_secs(86_400));
    bench.machine_ends();
    bench.rest();
    let boot = bench.observed_vm().and_then(|observed| observed.boot).expect("boot times");
    assert!(boot.dispatch_to_vmm < 60_000, "{boot:?}");
}

/// an end that is found together with a new assignment is not counted.
#[test]
fn an_end_counts_although_an_assignment_comes_with_it() {
    let mut bench = Bench::running();
    bench.machine_ends();
    bench.tell_vm(2, WantedVm::Running, 0);
    bench.rest();
    assert_eq!(bench.observed_vm().map(|observed| observed.restarts), Some(1), "{}", bench.trace.join("\n"));
}

/// what a person starts anew is still held in the pause of the crash loop, and told as crashed.
#[test]
fn a_start_by_a_person_ends_the_crash_pause() {
    let mut bench = Bench::running();
    for _ in 0..6 {
        bench.machine_ends();
        bench.rest();
    }
    bench.machine_ends();
    bench.act();
    bench.tell_vm(2, WantedVm::Stopped, 0);
    bench.act();
    bench.tell_vm(3, WantedVm::Running, 0);
    bench.act();
    assert_eq!(bench.phase(), Some(VmPhase::Running));
}

/// the same with a restart.
#[test]
fn a_restart_by_a_person_ends_the_crash_pause() {
    let mut bench = Bench::running();
    for _ in 0..6 {
        bench.machine_ends();
        bench.rest();
    }
    bench.machine_ends();
    bench.act();
    bench.tell_vm(2, WantedVm::Running, 1);
    bench.act();
    assert_eq!(bench.phase(), Some(VmPhase::Running));
}

/// a shutdown that was asked for and then taken back counts as a crash when the guest obeys.
#[test]
fn an_end_that_was_asked_for_and_taken_back_is_no_crash() {
    let mut bench = Bench::running();
    bench.guest = Guest::Ignores;
    bench.tell_vm(2, WantedVm::Stopped, 0);
    bench.act();
    bench.tell_vm(3, WantedVm::Running, 0);
    bench.act();
    bench.guest = Guest::Obeys;
    bench.machine_ends();
    bench.rest();
    assert_eq!(bench.observed_vm().map(|observed| observed.restarts), Some(0), "{}", bench.trace.join("\n"));
}

/// a VM whose disk is lost waits without saying why.
#[test]
fn a_vm_without_its_disk_says_so() {
    let mut bench = Bench::running();
    bench.tell_vm(2, WantedVm::Stopped, 0);
    bench.rest();
    bench.host.lose_disk(crate::bench::volume_id());
    bench.agent.observed(VOLUME, bench.facts(VOLUME), None, bench.now);
    bench.tell_vm(3, WantedVm::Running, 0);
    bench.rest();
    let observed = bench.observed_vm().expect("a report");
    assert!(observed.problem.is_some(), "{:?}", observed.phase);
}

#[test]
fn what_nobody_has_assigned_is_named_and_left_alone() {
    let mut bench = Bench::running();
    assert_eq!(bench.agent.orphans(), []);
    // The assignments vanish: what runs goes on.
    bench.assign(VM, None);
    bench.assign(VOLUME, None);
    bench.begin();
    bench.act();
    let named = |bench: &Bench| {
        let orphans = bench.agent.orphans();
        orphans
            .into_iter()
            .map(|orphan| format!("{} {}: {}", orphan.kind, orphan.name.expect("its name"), orphan.left))
            .collect::<Vec<_>>()
    };
    assert_eq!(
        named(&bench),
        [
            "volume a-root: what it was assigned once, and goes on with",
            "vm a: what it was assigned once, and goes on with",
        ]
    );
    assert_eq!(bench.facts(VM).vmm, VmmState::Running);
    // An agent that no server has told anything names nothing.
    bench.agent = lightbyte_plan::agent::Agent::begin(
        lightbyte_vmm::hands::find_all(&bench.drivers).expect("a whole list"),
    );
    assert_eq!(bench.agent.orphans(), []);
}

/// It was made of a disk that its new worker never had.
#[test]
fn a_disk_that_arrives_misses_nothing_that_it_was_made_from() {
    let mut bench = Bench::new();
    let arriving =
        Arriving { from: WorkerId::new(Uid::from_bits(9)), address: String::new(), held: false, base: None };
    let disk = |arriving, sequence| {
        let source = Source::Disk(VolumeId::new(Uid::from_bits(99)));
        Assigned::Volume(AssignedVolume {
            source,
            arriving,
            ..assigned_volume(sequence, WantedVolume::Present)
        })
    };
    let problem = |bench: &Bench| match bench.store.get(&VOLUME).and_then(|slot| slot.observed.as_ref()) {
        Some(Stamped { value: Observed::Volume(observed), .. }) => {
            observed.problem.clone().unwrap_or_default()
        }
        other => panic!("{other:?}"),
    };
    bench.assign(VOLUME, Some(disk(Some(arriving), 1)));
    bench.begin();
    let mut is_fetched = false;
    while !is_fetched {
        for (object, action) in bench.agent.actions(bench.now) {
            match action {
                Action::Step(Step::FetchDisk) => is_fetched = true,
                action => assert_eq!(bench.do_one(object, action), Ended::AtRest),
            }
        }
    }
    assert!(!problem(&bench).contains("gone"), "{}", problem(&bench));
    // One that is to be made here of what is not here never will be.
    let mut bench = Bench::new();
    bench.assign(VOLUME, Some(disk(None, 1)));
    bench.begin();
    bench.rest();
    assert_eq!(problem(&bench), "what it is made from is gone from the worker");
}
