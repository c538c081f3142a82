//! Whether somebody else has an address that a VM is about to have.
//!
//! ```text
//!   taps made ──> probe ──┬── nobody answers: the taps are marked, and the machine may start
//!                         └── somebody does: saved, reported ──> another assignment ──> taps ──> probe
//! ```
//!
//! The mark is part of the taps, so it lasts as long as they do: a machine that crashes or restarts is not probed for
//! again, one whose host lost its power is. A squatter is saved before it is reported, and under the same assignment the
//! machine is never started, whatever a later agent would hear: so whoever gives the VM another address knows that it does
//! not run with this one.

use lightbyte_api::assigned::AssignedVm;
use lightbyte_api::observed::Squatter;
use serde::{Deserialize, Serialize};

use super::facts::{Facts, Saved};
use super::step::Step;

/// Addresses of an assignment that somebody else has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Squatted {
    /// The sequence of the assignment.
    pub sequence: u64,
    /// Who has them.
    pub squatters: Vec<Squatter>,
}

/// What stands between a VM and its start on the side of its network.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Way {
    /// Nothing.
    Free,
    /// This is to be done first.
    First(Step),
    /// Another assignment has to come.
    Squatted,
}

/// The way to the start of a machine that is not there.
pub(super) fn way(saved: &Saved, assigned: &AssignedVm, facts: &Facts) -> Way {
    if !squatters(saved, assigned).is_empty() {
        Way::Squatted
    } else if !facts.taps_complete {
        Way::First(Step::EnsureTaps)
    } else if !facts.probed {
        Way::First(Step::Probe)
    } else {
        Way::Free
    }
}

/// Who has addresses of this assignment, as far as was heard.
#[must_use]
pub fn squatters<'a>(saved: &'a Saved, assigned: &AssignedVm) -> &'a [Squatter] {
    match &saved.squatted {
        Some(squatted) if squatted.sequence == assigned.sequence => &squatted.squatters,
        _ => &[],
    }
}
