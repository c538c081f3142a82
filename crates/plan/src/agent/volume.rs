//! The next step of a volume on its host: made once, from then on it must exist.
//!
//! ```text
//!   saved ──> create (temporary name, then rename) ──> save `created` ──> present
//!                                                            │ the file is gone: lost; never made again blank
//!   wanted removed:  in use? wait ──> remove the file ──> forget
//! ```

use lightbyte_api::Timestamp;
use lightbyte_api::assigned::{AssignedVolume, WantedVolume};
use lightbyte_api::observed::{Observed, ObservedVolume, VolumePhase};

use super::desk::{Around, Facts, Next, Saved, Step};

/// The next step of a volume that is saved. Pure; each step is idempotent.
#[must_use]
pub fn next_step(saved: &Saved, assigned: &AssignedVolume, facts: &Facts, around: Around) -> Next {
    match assigned.wanted {
        WantedVolume::Removed if around.in_use => Next::Rest,
        WantedVolume::Removed if facts.disk => Next::Do(Step::RemoveDisk),
        WantedVolume::Removed => Next::Do(Step::Forget),
        WantedVolume::Present if saved.created => Next::Rest,
        WantedVolume::Present if facts.disk => Next::Do(Step::Save(Saved { created: true, ..saved.clone() })),
        WantedVolume::Present => Next::Do(Step::CreateDisk),
    }
}

/// Whether a VM may be started with it.
#[must_use]
pub fn is_present(facts: &Facts) -> bool {
    facts.disk && facts.saved.as_ref().is_some_and(|saved| saved.created && !saved.assigned.is_removal())
}

/// Whether it was there, and is gone although nobody asked for that.
#[must_use]
pub fn is_lost(facts: &Facts) -> bool {
    !facts.disk && facts.saved.as_ref().is_some_and(|saved| saved.created && !saved.assigned.is_removal())
}

fn phase(facts: &Facts) -> VolumePhase {
    match (is_present(facts), facts.saved.as_ref().is_some_and(|saved| saved.created)) {
        (true, _) => VolumePhase::Present,
        (false, true) if !facts.disk => VolumePhase::Lost,
        (false, _) => VolumePhase::Claimed,
    }
}

/// The first report: the worker has taken it up, and nothing is on the host yet.
pub(super) const fn claim(assigned: &AssignedVolume, now: Timestamp) -> ObservedVolume {
    ObservedVolume {
        sequence: assigned.sequence,
        generation: assigned.generation,
        phase: VolumePhase::Claimed,
        since: now,
        problem: None,
    }
}

pub(super) fn report(
    assigned: &AssignedVolume,
    facts: &Facts,
    problem: Option<String>,
    stored: Option<&Observed>,
    now: Timestamp,
) -> ObservedVolume {
    let phase = phase(facts);
    let since = match stored {
        Some(Observed::Volume(stored)) if stored.phase == phase => stored.since,
        _ => now,
    };
    let wanted_present = assigned.wanted == WantedVolume::Present;
    let lost =
        (phase == VolumePhase::Lost && wanted_present).then(|| "its file is gone from the worker".to_owned());
    ObservedVolume {
        sequence: assigned.sequence,
        generation: assigned.generation,
        phase,
        since,
        problem: problem.or(lost),
    }
}
