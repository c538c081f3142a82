//! What the checks of a guest's health come to.
//!
//! ```text
//!   ready ──> starting ──(one passes)──────────────> healthy <──(one passes)── unhealthy ──> restarted, if asked
//!                │ (grace over, too many in a row fail)  │                         ^
//!                └───────────────────────────────────────┴──(too many in a row)────┘
//! ```
//!
//! The worker asks, so that a guest that says nothing is seen too; what is tried is tried inside the guest, so that neither
//! its firewall nor where it listens matters. A guest may lie about itself, and harms nobody else by that.

use lightbyte_api::health::{Health, HealthCheck, HealthState, PROBLEM_LENGTH_MAX};
use lightbyte_api::observed::ObservedVm;
use lightbyte_api::{Span, Timestamp};

use crate::planner::later;

/// The longest time between two checks while none has passed: who waits for a boot waits for this as well.
const EVERY_MAX_AT_FIRST: Span = Span::from_secs(1);

/// What one check came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It works.
    Passed,
    /// It does not, for this reason.
    Failed(String),
    /// It could not be tried, and nothing follows.
    Skipped,
}

/// What the checks have come to, in the life of one machine process.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Checks {
    /// When the guest was ready: nothing is checked before.
    ready_at: Option<Timestamp>,
    /// How often something else was asked for since.
    asked_anew: u64,
    /// When the last check ended.
    last_at: Option<Timestamp>,
    /// Whether failures count.
    count: bool,
    failures: u64,
    /// What is to be told.
    told: Option<(HealthState, Option<String>)>,
}

impl Checks {
    /// The guest has become ready.
    pub(super) fn begin(now: Timestamp) -> Checks {
        Checks { ready_at: Some(now), told: Some((HealthState::Starting, None)), ..Checks::default() }
    }

    /// An earlier agent has reported this of the same machine: it goes on from there, whether the guest says anything or not.
    pub(super) fn go_on(stored: &ObservedVm) -> Checks {
        match &stored.health {
            Some(Health { state, since, problem }) => Checks {
                ready_at: Some(*since),
                count: *state != HealthState::Starting,
                told: Some((*state, problem.clone())),
                ..Checks::default()
            },
            None => Checks::begin(stored.since),
        }
    }

    /// Something else is tried from now on: what came of the other means nothing.
    pub(super) fn begin_anew(&mut self) {
        self.asked_anew += 1;
        self.last_at = None;
        self.failures = 0;
        self.told = Some((HealthState::Starting, None));
    }

    /// Which guest's these are, and which check's: what was begun for another one means nothing.
    pub(super) fn life(&self) -> Option<(Timestamp, u64)> {
        self.ready_at.map(|ready_at| (ready_at, self.asked_anew))
    }

    /// When the next check is due.
    pub(super) fn due(&self, check: &HealthCheck) -> Option<Timestamp> {
        let ready_at = self.ready_at?;
        let every = if self.count { check.every } else { check.every.min(EVERY_MAX_AT_FIRST) };
        Some(self.last_at.map_or(ready_at, |last_at| later(last_at, every)))
    }

    /// Takes what a check came to.
    pub(super) fn take(&mut self, check: &HealthCheck, outcome: Outcome, now: Timestamp) {
        self.last_at = Some(now);
        match outcome {
            Outcome::Skipped => {}
            Outcome::Passed => {
                self.count = true;
                self.failures = 0;
                self.told = Some((HealthState::Healthy, None));
            }
            Outcome::Failed(problem) => {
                self.count |= self.ready_at.is_some_and(|ready_at| later(ready_at, check.grace) <= now);
                self.failures = if self.count { self.failures.saturating_add(1) } else { 0 };
                if self.failures >= check.failures && !self.is_told_unhealthy() {
                    let plain = problem.chars().filter(|character| !character.is_control());
                    let plain: String = plain.take(PROBLEM_LENGTH_MAX).collect();
                    self.told = Some((HealthState::Unhealthy, Some(plain)));
                }
            }
        }
    }

    /// Whether too many have failed in a row, and one of them in the life of this agent: what was reported may be of a machine
    /// that was there before this one.
    #[must_use]
    pub fn is_unhealthy(&self) -> bool {
        self.failures > 0 && self.is_told_unhealthy()
    }

    const fn is_told_unhealthy(&self) -> bool {
        matches!(self.told, Some((HealthState::Unhealthy, _)))
    }

    /// What is reported of a VM that runs.
    pub(super) fn report(&self, stored: Option<&Health>, now: Timestamp) -> Health {
        let (state, problem) = self.told.clone().unwrap_or((HealthState::Starting, None));
        let since = stored.filter(|stored| stored.state == state).map_or(now, |stored| stored.since);
        Health { state, since, problem }
    }
}
