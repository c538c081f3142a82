//! The next step of a VM on its host.
//!
//! ```text
//!   off <──────── ended by itself and stays off (restart policy; the guest says whether it is a shutdown)
//!                 ┌─────────────────────────── ended by itself: count it, clean, pause ───────────┐
//!                 v                                                                               │
//!   saved ──> taps, probe ──> disks there? ──> start ──> starting ──(guest says ready)──> running ┤
//!                                                       │                               │       │
//!   wanted stopped, or a restart is asked by a person or its health:
//!                                                       kill                  shutdown, then kill
//!   wanted removed:                                     kill ──> remove taps ──> forget
//! ```

use lightbyte_api::Timestamp;
use lightbyte_api::assigned::{AssignedVm, WantedVm};
use lightbyte_api::kinds::vm::RestartPolicy;
use lightbyte_api::observed::{BootTimes, Observed, ObservedVm, VmPhase};
use lightbyte_api::units::Span;

use super::facts::{Around, Facts, Leaving, Saved, VmmState, Volatile};
use super::health::Checks;
use super::probe::{self, Way};
use super::step::{Next, Step};
use crate::planner::later;

/// How long a guest may take to shut down before its machine process is ended.
pub const SHUTDOWN_GRACE: Span = Span::from_secs(30);
/// The pause before a VM that ended by itself is started again; it doubles with each quick end in a row.
pub const CRASH_PAUSE_FIRST: Span = Span::from_secs(1);
/// The longest pause before a VM that ended by itself is started again.
pub const CRASH_PAUSE_LIMIT: Span = Span::from_secs(60);
/// A VM that ran this long before it ended is not in a crash loop.
pub const STEADY_AFTER: Span = Span::from_secs(60);

/// How many reboots in a row, each soon after the start, a guest may make before they are held back.
pub const QUICK_REBOOTS_FREE: u32 = 3;

/// Everything that the next step of a VM depends on.
#[derive(Clone, Debug)]
pub struct Situation<'a> {
    /// What is saved.
    pub saved: &'a Saved,
    /// The saved assignment.
    pub assigned: &'a AssignedVm,
    /// What the host shows.
    pub facts: &'a Facts,
    /// What the agent remembers.
    pub volatile: &'a Volatile,
    /// The other objects on the host.
    pub around: Around,
    /// The time.
    pub now: Timestamp,
}

/// The next step of a VM that is saved. Pure; each step is idempotent, and every host state leads on.
#[must_use]
pub fn next_step(situation: &Situation<'_>) -> Next {
    let has = situation.facts.virtual_address;
    let wanted = situation.saved.virtual_address().map(|wanted| wanted.address);
    match situation.assigned.wanted {
        // Somebody waits for it, so it goes before anything else is done.
        WantedVm::Running | WantedVm::Stopped if has.is_some() && has != wanted => Next::Do(Step::EnsureTaps),
        WantedVm::Removed => remove(situation.facts),
        WantedVm::Stopped => stop(situation),
        WantedVm::Running if situation.saved.restarts_done < situation.assigned.restarts_asked => {
            restart(situation)
        }
        WantedVm::Running => run(situation),
    }
}

fn run(situation: &Situation<'_>) -> Next {
    let Situation { saved, assigned, facts, volatile, ref around, now } = *situation;
    match facts.vmm {
        // What may come in to it may change while it runs.
        VmmState::Running if !facts.taps_complete => Next::Do(Step::EnsureTaps),
        // It is restarted for its health: counted once, like an end by itself, and then ended. There is no way back.
        VmmState::Running if volatile.crash_counted => shut_down(situation),
        VmmState::Running if is_to_restart(assigned, volatile) => Next::Do(Step::Save(counted(saved))),
        VmmState::Running => Next::Rest,
        // It stays off: noted before the traces go, so that no agent that comes later starts it.
        VmmState::Exited if !saved.off && stays_off(assigned.restart, volatile) => {
            Next::Do(Step::Save(Saved { off: true, ..saved.clone() }))
        }
        VmmState::Exited if saved.off || volatile.leaving == Some(Leaving::Reboot) => Next::Do(Step::Kill),
        // It ended by itself. The count is saved before the traces go: an agent that dies in between counts it
        // twice, which is better than not at all.
        VmmState::Exited if volatile.crash_counted || volatile.shutdown_asked => Next::Do(Step::Kill),
        VmmState::Exited => Next::Do(Step::Save(counted(saved))),
        VmmState::Absent if saved.off && facts.taps => Next::Do(Step::RemoveTaps),
        VmmState::Absent if saved.off => Next::Rest,
        VmmState::Absent => {
            match volatile.crashed_at.map(|at| later(at, crash_pause(volatile.quick_crashes))) {
                Some(at) if now < at => Next::Until(at),
                _ => match probe::way(saved, assigned, facts) {
                    Way::Squatted => Next::Rest,
                    Way::First(step) => Next::Do(step),
                    Way::Free if !around.disks_present || !facts.parts_missing.is_empty() => Next::Rest,
                    // Noted before the machine can be there, so that what runs is never newer than what is noted.
                    Way::Free if saved.started_shape != assigned.shape => {
                        Next::Do(Step::Save(Saved { started_shape: assigned.shape, ..saved.clone() }))
                    }
                    Way::Free => Next::Do(Step::Start),
                },
            }
        }
    }
}

/// Whether its health asks for a restart.
fn is_to_restart(assigned: &AssignedVm, volatile: &Volatile) -> bool {
    assigned.health.as_ref().is_some_and(|check| check.restart) && volatile.checks.is_unhealthy()
}

/// One more end that nobody asked for.
fn counted(saved: &Saved) -> Saved {
    Saved { restarts: saved.restarts + 1, ..saved.clone() }
}

fn restart(situation: &Situation<'_>) -> Next {
    let Situation { saved, assigned, facts, .. } = *situation;
    match facts.vmm {
        VmmState::Running => shut_down(situation),
        VmmState::Exited => Next::Do(Step::Kill),
        VmmState::Absent => {
            let restarts_done = assigned.restarts_asked;
            Next::Do(Step::Save(Saved { restarts_done, off: false, ..saved.clone() }))
        }
    }
}

fn stop(situation: &Situation<'_>) -> Next {
    match situation.facts.vmm {
        VmmState::Running => shut_down(situation),
        VmmState::Exited => Next::Do(Step::Kill),
        VmmState::Absent if situation.facts.taps => Next::Do(Step::RemoveTaps),
        // Stopped as asked: the next start is asked for as well.
        VmmState::Absent if situation.saved.off => {
            Next::Do(Step::Save(Saved { off: false, ..situation.saved.clone() }))
        }
        VmmState::Absent => Next::Rest,
    }
}

/// Whether a machine that ended is not started again. One that we asked to shut down did as it was asked.
fn stays_off(policy: RestartPolicy, volatile: &Volatile) -> bool {
    let is_ours = volatile.shutdown_asked || volatile.crash_counted;
    !is_ours
        && match (policy, volatile.leaving) {
            (RestartPolicy::Always, _) | (_, Some(Leaving::Reboot)) => false,
            (RestartPolicy::OnCrash, leaving) => leaving == Some(Leaving::Poweroff),
            (RestartPolicy::Never, _) => true,
        }
}

fn shut_down(situation: &Situation<'_>) -> Next {
    match situation.volatile.stopping_since.map(|since| later(since, SHUTDOWN_GRACE)) {
        Some(at) if situation.now < at => Next::Until(at),
        Some(_) => Next::Do(Step::Kill),
        // A guest that has not said that it is ready has nobody to ask.
        None if !situation.volatile.ready => Next::Do(Step::Kill),
        None => Next::Do(Step::Shutdown),
    }
}

/// Removes everything: delete wins, so nothing is waited for.
#[must_use]
pub fn remove(facts: &Facts) -> Next {
    match facts.vmm {
        VmmState::Running | VmmState::Exited => Next::Do(Step::Kill),
        VmmState::Absent if facts.taps => Next::Do(Step::RemoveTaps),
        VmmState::Absent if facts.saved.is_some() => Next::Do(Step::Forget),
        VmmState::Absent => Next::Rest,
    }
}

fn crash_pause(quick_crashes: u32) -> Span {
    let factor = 1_u64.checked_shl(quick_crashes).unwrap_or(u64::MAX);
    Span::from_millis(CRASH_PAUSE_FIRST.millis().saturating_mul(factor).min(CRASH_PAUSE_LIMIT.millis()))
}

/// Keeps what the agent remembers in step with what the host shows. `counted`: the step has saved one more end of the
/// machine process.
pub(super) fn note(
    volatile: &mut Volatile,
    before: VmmState,
    after: VmmState,
    step: Option<&Step>,
    counted: bool,
    now: Timestamp,
) {
    match (after, step) {
        (VmmState::Running, Some(Step::Start)) => {
            // What its guest said before the end of this step is of this machine.
            let Volatile { delivered_at, quick_crashes, quick_reboots, leaving, .. } = *volatile;
            let guest_problem = volatile.guest_problem.take();
            *volatile = Volatile {
                started_at: Some(now),
                delivered_at,
                quick_crashes,
                quick_reboots,
                leaving,
                guest_problem,
                ..Volatile::default()
            };
        }
        (VmmState::Exited | VmmState::Running, _) if counted => {
            let steady = volatile.started_at.is_some_and(|started| later(started, STEADY_AFTER) <= now);
            volatile.quick_crashes = if steady { 0 } else { volatile.quick_crashes.saturating_add(1) };
            volatile.crashed_at = Some(now);
            volatile.crash_counted = true;
        }
        (VmmState::Exited, _) if before != VmmState::Exited && volatile.leaving == Some(Leaving::Reboot) => {
            note_reboot(volatile, now);
        }
        (VmmState::Absent, _) if before != VmmState::Absent => {
            volatile.leaving = None;
            volatile.guest_problem = None;
            volatile.stopping_since = None;
            volatile.shutdown_asked = false;
            volatile.crash_counted = false;
        }
        _ => {}
    }
    if after != VmmState::Running {
        volatile.ready = false;
        volatile.adopted = false;
        volatile.checks = Checks::default();
    }
}

/// A reboot is no crash and comes back at once; one after the other, without pause, they are held back as crashes are.
fn note_reboot(volatile: &mut Volatile, now: Timestamp) {
    let steady = volatile.started_at.is_some_and(|started| later(started, STEADY_AFTER) <= now);
    volatile.quick_reboots = if steady { 0 } else { volatile.quick_reboots.saturating_add(1) };
    if volatile.quick_reboots > QUICK_REBOOTS_FREE {
        volatile.quick_crashes = volatile.quick_reboots - QUICK_REBOOTS_FREE;
        volatile.crashed_at = Some(now);
    }
}

pub(super) fn boot_times(
    volatile: &Volatile,
    asked_at: Option<Timestamp>,
    agent_at: Timestamp,
    now: Timestamp,
) -> Option<BootTimes> {
    // A boot that nobody asked for, after a crash, begins with its start.
    let started = volatile.started_at?;
    let delivered = volatile.delivered_at.unwrap_or(started);
    let asked = volatile.delivered_at.and(asked_at).unwrap_or(delivered);
    let millis = |from: Timestamp, to: Timestamp| {
        u64::try_from(to.as_millisecond() - from.as_millisecond()).unwrap_or(0)
    };
    Some(BootTimes {
        request_to_dispatch: millis(asked, delivered),
        dispatch_to_vmm: millis(delivered, started),
        vmm_to_agent: millis(started, agent_at),
        agent_to_ready: millis(agent_at, now),
    })
}

/// How far a VM is, as people see it.
#[must_use]
pub fn phase(saved: &Saved, facts: &Facts, volatile: &Volatile, stored: Option<&Observed>) -> VmPhase {
    let was_running = matches!(stored, Some(Observed::Vm(ObservedVm { phase: VmPhase::Running, .. })));
    let lightbyte_api::Assigned::Vm(assigned) = &saved.assigned else { return VmPhase::Claimed };
    let restarting = saved.restarts_done < assigned.restarts_asked;
    match (facts.vmm, assigned.wanted) {
        (VmmState::Absent, WantedVm::Stopped) if !facts.taps => VmPhase::Stopped,
        (_, WantedVm::Stopped | WantedVm::Removed) => VmPhase::Stopping,
        (VmmState::Running | VmmState::Exited, WantedVm::Running) if restarting => VmPhase::Stopping,
        (VmmState::Running, WantedVm::Running) if volatile.crash_counted => VmPhase::Stopping,
        (VmmState::Running, WantedVm::Running) if volatile.ready || (volatile.adopted && was_running) => {
            VmPhase::Running
        }
        (VmmState::Running, WantedVm::Running) => VmPhase::Starting,
        (VmmState::Exited | VmmState::Absent, WantedVm::Running) if saved.off && !restarting => VmPhase::Off,
        (VmmState::Exited, WantedVm::Running) if stays_off(assigned.restart, volatile) => VmPhase::Off,
        // It comes back at once.
        (VmmState::Exited, WantedVm::Running) if volatile.leaving == Some(Leaving::Reboot) => {
            VmPhase::Starting
        }
        (VmmState::Exited, WantedVm::Running) => VmPhase::Crashed,
        (VmmState::Absent, WantedVm::Running) if volatile.crashed_at.is_some() => VmPhase::Crashed,
        (VmmState::Absent, WantedVm::Running) => VmPhase::Claimed,
    }
}

/// The first report: the worker has taken it up, and nothing is on the host yet.
pub(super) const fn claim(assigned: &AssignedVm, shape: u64, now: Timestamp) -> ObservedVm {
    ObservedVm {
        sequence: assigned.sequence,
        generation: assigned.generation,
        phase: VmPhase::Claimed,
        since: now,
        shape,
        restarts: 0,
        restarts_done: assigned.restarts_asked,
        boot: None,
        health: None,
        squatters: Vec::new(),
        leases: Vec::new(),
        proxy: None,
        virtual_address: None,
        address_yielded: 0,
        problem: None,
    }
}

/// What is to be told of a card that has an address by its guest's word, and none that the host saw.
fn without_lease(assigned: &AssignedVm, facts: &Facts) -> Option<String> {
    let is_seen = |nic: u32| facts.leases.iter().any(|lease| lease.nic == nic);
    let mut by_dhcp = (0..).zip(&assigned.nics).filter(|(_, nic)| nic.address.is_none());
    let (_, nic) = by_dhcp.find(|(index, _)| !is_seen(*index))?;
    Some(format!("the host has seen no DHCP server give {} an address, and lets nothing of it out", nic.mac))
}

pub(super) fn report(
    saved: &Saved,
    assigned: &AssignedVm,
    facts: &Facts,
    volatile: &Volatile,
    problem: Option<String>,
    stored: Option<&Observed>,
    now: Timestamp,
) -> ObservedVm {
    let phase = phase(saved, facts, volatile, stored);
    let stored = match stored {
        Some(Observed::Vm(stored)) => Some(stored),
        _ => None,
    };
    ObservedVm {
        sequence: assigned.sequence,
        generation: assigned.generation,
        phase,
        since: stored.filter(|stored| stored.phase == phase).map_or(now, |stored| stored.since),
        shape: if facts.vmm == VmmState::Absent { assigned.shape } else { saved.started_shape },
        restarts: saved.restarts,
        restarts_done: saved.restarts_done,
        // An agent that was restarted did not see the boot; what was reported of it still holds.
        boot: volatile.boot.or_else(|| stored.and_then(|stored| stored.boot)),
        health: match (&assigned.health, facts.vmm) {
            (Some(_), VmmState::Running) => {
                Some(volatile.checks.report(stored.and_then(|stored| stored.health.as_ref()), now))
            }
            _ => None,
        },
        squatters: probe::squatters(saved, assigned).to_vec(),
        problem: problem.or_else(|| without_lease(assigned, facts).filter(|_| phase == VmPhase::Running)),
        proxy: None,
        virtual_address: None,
        address_yielded: saved.address_yielded,
        // Before its guest has said so they are of another start.
        leases: if phase == VmPhase::Running { facts.leases.clone() } else { Vec::new() },
    }
}
