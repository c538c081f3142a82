//! Guests that are sick, and what is said of them.

use lightbyte_api::assigned::{Assigned, HostObject, WantedVm};
use lightbyte_api::health::{HealthCheck, HealthProbe, HealthState};
use lightbyte_api::kinds::vm;
use lightbyte_api::{Kind, ObjectRef, Observed, Span, Uid, VmId};
use lightbyte_plan::View;
use lightbyte_plan::agent::Step;
use lightbyte_plan::agent::health::Outcome;

use crate::cluster::{Checked, Cluster, Violation};
use crate::oracle::{told, violated};
use crate::worker::Worker;

impl Cluster {
    /// Most VMs are not checked.
    pub(crate) fn some_health(&mut self) -> Option<HealthCheck> {
        self.rng.once_in(3).then(|| HealthCheck {
            every: Span::from_secs(1 + self.rng.below(5) as u64),
            failures: 1 + self.rng.below(3) as u64,
            grace: Span::from_secs(self.rng.below(3) as u64),
            restart: self.rng.once_in(2),
            ..HealthCheck::of(HealthProbe::Tcp { port: 80 })
        })
    }

    /// The guest of some VM becomes sick, or well.
    pub(crate) fn health_turns(&mut self, index: usize) {
        let running: Vec<VmId> = self.workers[index].host.running();
        let Some(vm) = self.rng.pick(&running).copied() else { return };
        let host = &self.workers[index].host;
        let is_sick = !host.is_sick(vm);
        host.make_sick(vm, is_sick);
        self.counts.add("fault: guest sick or well");
        self.tell(|| format!("the guest of VM {vm} is {}", if is_sick { "sick" } else { "well" }));
    }

    /// One check comes back.
    pub(crate) fn take_check(&mut self, index: usize) {
        let (now, has_faults) = (self.now(), self.faults);
        let Some((object, check)) = self.workers[index].checks.pop_front() else { return };
        let vm = VmId::new(object.uid);
        if !has_faults && check.restart {
            // Some restart helps in the end.
            self.workers[index].host.make_sick(vm, false);
        }
        let outcome = match self.workers[index].host.is_sick(vm) {
            _ if has_faults && self.rng.once_in(8) => Outcome::Skipped,
            true => Outcome::Failed("it is sick".to_owned()),
            false => Outcome::Passed,
        };
        self.counts.add(match outcome {
            Outcome::Passed => "check passed",
            Outcome::Failed(_) => "check failed",
            Outcome::Skipped => "check skipped",
        });
        let failed = self.workers[index].failed_checks.entry(vm).or_default();
        match outcome {
            Outcome::Passed => *failed = 0,
            Outcome::Failed(_) => *failed += 1,
            Outcome::Skipped => {}
        }
        if let Some(agent) = self.workers[index].agent_mut() {
            agent.checked(object, outcome, now);
        }
    }
}

/// Whether a VM is sick, and that this is said if it runs and is asked.
pub(crate) fn check_told(
    view: &View,
    object: &ObjectRef,
    uid: Uid,
    spec: &vm::Spec,
    worker: &Worker,
) -> Result<bool, Violation> {
    let host_object = HostObject { kind: Kind::Vm, uid };
    let assigned = view.assigned(worker.id, host_object).map(AsRef::as_ref);
    let is_asked = matches!(assigned, Some(Assigned::Vm(assigned)) if assigned.health == spec.health);
    let runs = worker.host.running().contains(&VmId::new(uid));
    if spec.health.is_none() || !runs || !is_asked {
        return Ok(false);
    }
    let is_sick = worker.host.is_sick(VmId::new(uid));
    let expected = if is_sick { HealthState::Unhealthy } else { HealthState::Healthy };
    let said = match view.observed(worker.id, host_object).map(AsRef::as_ref) {
        Some(Observed::Vm(observed)) => observed.health.as_ref().map(|health| health.state),
        _ => None,
    };
    if said != Some(expected) {
        return violated(
            "health",
            format!("{object} is {expected:?} and said to be {said:?}: {}", told(view, object)),
        );
    }
    Ok(is_sick)
}

/// A VM that is asked to run is ended for nothing but its health, and only where that is asked for: judged when the step is
/// chosen, since a check may come back before it is done.
pub(crate) fn check_step(worker: &Worker, object: HostObject, step: &Step) -> Checked {
    let vm = VmId::new(object.uid);
    let desk = worker.agent().and_then(|agent| agent.desk(&object));
    let Some((desk, saved)) = desk.and_then(|desk| Some((desk, desk.facts().saved.as_ref()?))) else {
        return Ok(());
    };
    let Some(assigned) = desk.saved_vm().filter(|_| worker.host.running().contains(&vm)) else {
        return Ok(());
    };
    let is_to_run = assigned.wanted == WantedVm::Running && saved.restarts_done >= assigned.restarts_asked;
    let is_bad = match step {
        Step::Save(next) if next.restarts > saved.restarts => {
            // How many make it unhealthy may have been another number when they failed.
            let has_failed = worker.failed_checks.get(&vm).is_some_and(|failed| *failed > 0);
            !assigned.health.as_ref().is_some_and(|check| check.restart && has_failed)
        }
        Step::Shutdown | Step::Kill => is_to_run && !desk.volatile().crash_counted,
        _ => false,
    };
    if is_bad {
        return violated("health", format!("{step:?} of VM {vm}, which runs and is to run"));
    }
    Ok(())
}
