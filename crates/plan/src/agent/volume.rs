//! The next step of a volume on its host: made once, from then on it must exist.
//!
//! ```text
//!   saved ──> source there, image part here? ──> create (temporary name, then rename) ──> save `created` ──> present <──> grow
//!                                                            │ the file is gone: lost; never made again blank
//!   wanted removed:  in use? wait ──> remove the file ──> forget
//! ```

use lightbyte_api::assigned::{AssignedVolume, WantedVolume};
use lightbyte_api::observed::{Observed, ObservedVolume, VolumePhase};
use lightbyte_api::{ByteSize, Timestamp};

use super::desk::{Around, Facts, Next, Saved, Step};

/// The next step of a volume that is saved. Pure; each step is idempotent.
#[must_use]
pub fn next_step(saved: &Saved, assigned: &AssignedVolume, facts: &Facts, around: &Around) -> Next {
    match (assigned.wanted, facts.disk) {
        (WantedVolume::Removed, _) if !around.used_by.is_empty() => Next::Rest,
        (WantedVolume::Removed, Some(_)) => Next::Do(Step::RemoveDisk),
        (WantedVolume::Removed, None) => Next::Do(Step::Forget),
        (WantedVolume::Present, Some(_)) if !saved.created => {
            Next::Do(Step::Save(Saved { created: true, ..saved.clone() }))
        }
        (WantedVolume::Present, Some(size)) if size < assigned.size => {
            Next::Do(Step::GrowDisk { used_by: around.maybe_used_by.clone() })
        }
        (WantedVolume::Present, None) if !facts.parts_missing.is_empty() => Next::Rest,
        (WantedVolume::Present, Some(_)) => Next::Rest,
        // It was there: never made again.
        (WantedVolume::Present, None) if saved.created => Next::Rest,
        (WantedVolume::Present, None) if !around.source_present => Next::Rest,
        (WantedVolume::Present, None) => {
            Next::Do(Step::CreateDisk { written_by: around.source_written_by.clone() })
        }
    }
}

/// Whether a VM may be started with it.
#[must_use]
pub fn is_present(facts: &Facts) -> bool {
    facts.disk.is_some()
        && facts.saved.as_ref().is_some_and(|saved| saved.created && !saved.assigned.is_removal())
}

/// Whether it was there, and is gone although nobody asked for that.
#[must_use]
pub fn is_lost(facts: &Facts) -> bool {
    facts.disk.is_none()
        && facts.saved.as_ref().is_some_and(|saved| saved.created && !saved.assigned.is_removal())
}

fn phase(facts: &Facts) -> VolumePhase {
    match (is_present(facts), facts.saved.as_ref().is_some_and(|saved| saved.created)) {
        (true, _) => VolumePhase::Present,
        (false, true) if facts.disk.is_none() => VolumePhase::Lost,
        (false, _) => VolumePhase::Claimed,
    }
}

/// The first report: the worker has taken it up, and nothing is on the host yet.
pub(super) const fn claim(assigned: &AssignedVolume, now: Timestamp) -> ObservedVolume {
    ObservedVolume {
        sequence: assigned.sequence,
        generation: assigned.generation,
        phase: VolumePhase::Claimed,
        size: ByteSize::from_bytes(0),
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
        size: facts.disk.unwrap_or_default(),
        since,
        problem: problem.or(lost),
    }
}
