//! What a VM's health comes to on its host, and what follows.

use lightbyte_api::Span;
use lightbyte_api::assigned::{Assigned, AssignedVm, WantedVm};
use lightbyte_api::health::{HealthCheck, HealthProbe, HealthState};
use lightbyte_api::observed::VmPhase;
use lightbyte_plan::agent::Action;
use lightbyte_plan::agent::health::Outcome;
use lightbyte_plan::agent::vm::SHUTDOWN_GRACE;

use crate::bench::{Bench, Guest, VM, assigned_vm, vm_id};

/// A VM that runs and is checked every second, and becomes unhealthy with the second failure.
fn checked(restart: bool) -> Bench {
    let mut bench = Bench::running();
    let check = HealthCheck {
        every: Span::from_secs(1),
        failures: 2,
        grace: Span::from_secs(5),
        restart,
        ..HealthCheck::of(HealthProbe::Tcp { port: 80 })
    };
    let assigned = AssignedVm { health: Some(check), ..assigned_vm(2, WantedVm::Running, 0) };
    bench.assign(VM, Some(Assigned::Vm(assigned)));
    bench.news(VM);
    bench.act();
    bench
}

fn health(bench: &Bench) -> Option<(HealthState, Option<String>)> {
    let health = bench.observed_vm()?.health.clone()?;
    Some((health.state, health.problem))
}

/// Time passes, and what is due by then is done.
fn pass(bench: &mut Bench, seconds: u64) {
    for _ in 0..seconds {
        bench.after(Span::from_secs(1));
        bench.act();
    }
}

#[test]
fn a_guest_is_unhealthy_after_enough_failures_in_a_row_and_well_after_one_success() {
    let mut bench = checked(false);
    assert_eq!(health(&bench), Some((HealthState::Healthy, None)));
    bench.host.make_sick(vm_id(), true);
    pass(&mut bench, 1);
    assert_eq!(health(&bench), Some((HealthState::Healthy, None)), "one failure is none");
    bench.host.make_sick(vm_id(), false);
    pass(&mut bench, 1);
    bench.host.make_sick(vm_id(), true);
    pass(&mut bench, 1);
    assert_eq!(health(&bench), Some((HealthState::Healthy, None)), "not in a row");
    pass(&mut bench, 1);
    let sick = Some((HealthState::Unhealthy, Some("it is sick".to_owned())));
    assert_eq!(health(&bench), sick);
    let since_of = |bench: &Bench| Some(bench.observed_vm()?.health.as_ref()?.since);
    let since = since_of(&bench);
    pass(&mut bench, 3);
    assert_eq!(since_of(&bench), since);
    // An agent that comes after this one knows what was told, has no grace for it, and asks also a guest that says nothing.
    bench.begin();
    bench.act();
    assert_eq!((health(&bench), since_of(&bench), bench.phase()), (sick, since, Some(VmPhase::Running)));
    bench.host.make_sick(vm_id(), false);
    pass(&mut bench, 1);
    assert_eq!(health(&bench), Some((HealthState::Healthy, None)));
    bench.host.make_sick(vm_id(), true);
    bench.begin();
    pass(&mut bench, 2);
    assert_eq!(health(&bench).map(|(state, _)| state), Some(HealthState::Unhealthy));
    assert_eq!(bench.observed_vm().map(|observed| observed.restarts), Some(0));
    // Without a check nothing is told.
    bench.tell_vm(3, WantedVm::Running, 0);
    bench.act();
    assert_eq!(health(&bench), None);
}

#[test]
fn failures_do_not_count_while_a_guest_begins() {
    let mut bench = checked(false);
    bench.host.make_sick(vm_id(), true);
    bench.machine_ends();
    bench.act();
    pass(&mut bench, 2);
    assert_eq!(
        (health(&bench), bench.phase()),
        (Some((HealthState::Starting, None)), Some(VmPhase::Running))
    );
    // Also when another agent comes.
    bench.begin();
    pass(&mut bench, 2);
    assert_eq!(health(&bench), Some((HealthState::Starting, None)), "its grace is not over");
    pass(&mut bench, 5);
    assert_eq!(health(&bench).map(|(state, _)| state), Some(HealthState::Unhealthy));
}

#[test]
fn another_check_begins_anew() {
    let mut bench = checked(true);
    bench.host.make_sick(vm_id(), true);
    pass(&mut bench, 1);
    // Before the second failure something else is asked, which the guest does well; restarts are asked for all the time.
    bench.host.make_sick(vm_id(), false);
    let check = HealthCheck { restart: true, failures: 1, ..HealthCheck::of(HealthProbe::Tcp { port: 81 }) };
    let assigned = AssignedVm { health: Some(check.clone()), ..assigned_vm(3, WantedVm::Running, 0) };
    bench.assign(VM, Some(Assigned::Vm(assigned)));
    bench.news(VM);
    bench.act();
    assert_eq!(health(&bench), Some((HealthState::Healthy, None)));
    // A check that fails is not taken for what the one before came to.
    bench.host.make_sick(vm_id(), true);
    let check = HealthCheck { restart: false, failures: 2, probe: HealthProbe::Tcp { port: 82 }, ..check };
    let assigned = AssignedVm { health: Some(check), ..assigned_vm(4, WantedVm::Running, 0) };
    bench.assign(VM, Some(Assigned::Vm(assigned)));
    bench.news(VM);
    bench.act();
    assert_eq!(health(&bench), Some((HealthState::Starting, None)));
    assert_eq!(bench.observed_vm().map(|observed| observed.restarts), Some(0));
}

#[test]
fn what_comes_back_of_an_older_check_means_nothing() {
    let mut bench = checked(false);
    bench.after(Span::from_secs(1));
    let due = bench.agent.actions(bench.now);
    assert!(matches!(due.as_slice(), [(_, Action::Check(_))]), "{due:?}");
    let check = HealthCheck { failures: 1, ..HealthCheck::of(HealthProbe::Tcp { port: 81 }) };
    let assigned = AssignedVm { health: Some(check), ..assigned_vm(3, WantedVm::Running, 0) };
    bench.assign(VM, Some(Assigned::Vm(assigned)));
    bench.news(VM);
    bench.act();
    assert_eq!(health(&bench), Some((HealthState::Starting, None)), "one at a time");
    bench.agent.checked(VM, Outcome::Failed("of the other".to_owned()), bench.now);
    bench.act();
    assert_eq!(health(&bench), Some((HealthState::Healthy, None)));
}

#[test]
fn an_unhealthy_guest_is_restarted_when_that_is_asked_and_counted_as_a_crash() {
    for guest in [Guest::Obeys, Guest::Ignores] {
        let mut bench = checked(true);
        bench.guest = guest;
        bench.host.make_sick(vm_id(), true);
        pass(&mut bench, 2);
        let observed = bench.observed_vm().expect("a report");
        assert_eq!(observed.restarts, 1, "{guest:?}");
        if guest == Guest::Ignores {
            assert_eq!(observed.phase, VmPhase::Stopping, "it may end in order first");
            bench.after(SHUTDOWN_GRACE);
            bench.act();
        }
        bench.host.make_sick(vm_id(), false);
        pass(&mut bench, 2);
        let observed = bench.observed_vm().expect("a report");
        assert_eq!((observed.phase, observed.restarts), (VmPhase::Running, 1), "{guest:?}");
        assert_eq!(health(&bench), Some((HealthState::Healthy, None)));
    }
}
