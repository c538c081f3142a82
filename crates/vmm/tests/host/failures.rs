//! Steps that fail: told with their reason, tried again with growing pauses, and told no more once they succeed.

use lightbyte_api::assigned::{Assigned, WantedVm, WantedVolume};
use lightbyte_api::observed::{PROBLEM_LENGTH_MAX, VmPhase, VolumePhase};
use lightbyte_plan::agent::desk::{RETRY_FIRST, RETRY_LIMIT};
use lightbyte_plan::agent::{Action, Step};

use crate::bench::{Bench, Ended, VM, VOLUME, assigned_vm, assigned_volume};

fn problems(bench: &Bench) -> Vec<String> {
    let vm = bench.observed_vm().and_then(|observed| observed.problem.clone());
    let volume = bench.observed_volume().and_then(|observed| observed.problem.clone());
    vm.into_iter().chain(volume).collect()
}

#[test]
fn a_full_disk_is_told_and_its_end_too() {
    let mut bench = Bench::new();
    bench.assign(VOLUME, Some(Assigned::Volume(assigned_volume(1, WantedVolume::Present))));
    bench.begin();
    // The claim and the record succeed, the disk does not.
    bench.host.fail_next(0);
    while bench.facts(VOLUME).saved.is_none() {
        for (object, action) in bench.agent.actions(bench.now) {
            bench.do_one(object, action);
        }
    }
    bench.host.fail_next(8);
    let mut expected = RETRY_FIRST.millis();
    for failure in 1..=8 {
        let before = bench.now.as_millisecond();
        assert_eq!(bench.act(), Ended::AtRest);
        assert_eq!(problems(&bench), ["write to the host: no storage space"], "failure {failure}");
        assert_eq!(bench.observed_volume().map(|observed| observed.phase), Some(VolumePhase::Claimed));
        let wake = bench.agent.next_wake().expect("another try").as_millisecond();
        assert_eq!(u64::try_from(wake - before).ok(), Some(expected), "failure {failure}");
        // Not a moment before.
        bench.now = crate::bench::at(0).max(bench.now);
        assert!(bench.agent.actions(bench.now).is_empty());
        bench.now = bench.agent.next_wake().expect("another try");
        expected = (2 * expected).min(RETRY_LIMIT.millis());
    }
    assert_eq!(expected, RETRY_LIMIT.millis());
    bench.rest();
    assert_eq!(problems(&bench), Vec::<String>::new());
    assert_eq!(bench.observed_volume().map(|observed| observed.phase), Some(VolumePhase::Present));
}

#[test]
fn every_step_may_fail_and_is_done_again() {
    // The changes of a whole life, each of which fails once, twice, or until the pauses are at their longest.
    for failures in [1, 2, 7] {
        for fails_at in 0..20 {
            let mut bench = Bench::new();
            bench.assign(VOLUME, Some(Assigned::Volume(assigned_volume(1, WantedVolume::Present))));
            bench.assign(VM, Some(Assigned::Vm(assigned_vm(1, WantedVm::Running, 0))));
            bench.begin();
            let mut changes = 0;
            let mut fail = |bench: &mut Bench, action: &Action| {
                if matches!(action, Action::Step(_)) {
                    if changes == fails_at {
                        bench.host.fail_next(failures);
                    }
                    changes += 1;
                }
            };
            bring_to_rest(&mut bench, &mut fail);
            assert_eq!(bench.phase(), Some(VmPhase::Running), "{}", bench.trace.join("\n"));
            assert_eq!(problems(&bench), Vec::<String>::new(), "{}", bench.trace.join("\n"));
            bench.tell_volume(2, WantedVolume::Removed);
            bench.tell_vm(2, WantedVm::Removed, 0);
            bring_to_rest(&mut bench, &mut fail);
            assert!(bench.host.everything().is_empty(), "{}", bench.trace.join("\n"));
            assert_eq!((bench.phase(), bench.observed_volume()), (None, None), "{}", bench.trace.join("\n"));
        }
    }
}

/// Runs until nothing is left to do, now or later; `before` sees every action before it is done.
fn bring_to_rest(bench: &mut Bench, before: &mut impl FnMut(&mut Bench, &Action)) {
    loop {
        let actions = bench.agent.actions(bench.now);
        let is_empty = actions.is_empty();
        for (object, action) in actions {
            before(bench, &action);
            bench.do_one(object, action);
        }
        if is_empty {
            match bench.agent.next_wake() {
                Some(wake) if wake > bench.now => bench.now = wake,
                _ => return,
            }
        }
    }
}

#[test]
fn a_new_assignment_does_not_wait_for_the_pause_of_the_old_one() {
    let mut bench = Bench::running();
    bench.tell_vm(2, WantedVm::Stopped, 0);
    bench.host.fail_next(1);
    bench.act();
    assert!(bench.agent.next_wake().is_some_and(|wake| wake > bench.now));
    let before = bench.now;
    bench.tell_vm(3, WantedVm::Removed, 0);
    bench.act();
    assert_eq!(bench.now, before);
    assert!(!bench.host.everything().contains(&VM.uid), "{}", bench.trace.join("\n"));
}

#[test]
fn a_bridge_that_is_missing_is_named() {
    let mut bench = Bench::new();
    let mut assigned = assigned_vm(1, WantedVm::Running, 0);
    assigned.nics[1].bridge = "br7".to_owned();
    bench.assign(VM, Some(Assigned::Vm(assigned)));
    bench.begin();
    // The bench holds that the host refuses nothing for its order, and this is no matter of order: so by hand.
    loop {
        let actions = bench.agent.actions(bench.now);
        if actions.is_empty() {
            break;
        }
        for (object, action) in actions {
            match action {
                Action::Step(step) if step == Step::EnsureTaps => {
                    let refused = lightbyte_vmm::hands::perform(&bench.drivers, object, &step);
                    let problem = refused.expect_err("a bridge that is not there").chain();
                    bench.agent.failed(object, bench.facts(object), &problem, bench.now);
                }
                action => {
                    bench.do_one(object, action);
                }
            }
        }
    }
    assert_eq!(problems(&bench), ["this host has no bridge `br7`"]);
    assert_eq!(bench.phase(), Some(VmPhase::Claimed));
}

#[test]
fn a_problem_is_told_in_bounded_words() {
    let mut bench = Bench::running();
    bench.tell_vm(2, WantedVm::Stopped, 0);
    let step = bench.agent.actions(bench.now);
    assert_eq!(step.len(), 1);
    bench.agent.failed(VM, bench.facts(VM), &"ü".repeat(10_000), bench.now);
    bench.act();
    assert_eq!(problems(&bench)[0].chars().count(), PROBLEM_LENGTH_MAX);
}
