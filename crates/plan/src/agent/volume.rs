//! The next step of a volume on its host: made once, from then on it must exist.
//!
//! ```text
//!   saved ──> source there, image part here? ──> create (temporary name, then rename) ──> save `created` ──> present <──> grow
//!                                                            │ the file is gone: lost; never made again blank
//!   arriving:        fetch, and again ──> complete ──(the assignment says that it has arrived)──> take ──> present
//!   wanted held, released:  nothing to do: what is saved keeps machines away
//!   wanted removed, quarantined:  drop what was fetched ──> in use? wait ──> remove the file, or put it aside ──> forget
//! ```

use lightbyte_api::assigned::{Assigned, AssignedVolume, WantedVolume};
use lightbyte_api::observed::{Observed, ObservedVolume, VolumePhase};
use lightbyte_api::{ByteSize, Timestamp};

use super::facts::{Around, Facts, Fetched, Saved};
use super::step::{Next, Step};

/// The next step of a volume that is saved. Pure; each step is idempotent.
#[must_use]
pub fn next_step(saved: &Saved, assigned: &AssignedVolume, facts: &Facts, around: &Around) -> Next {
    match assigned.wanted {
        WantedVolume::Removed | WantedVolume::Quarantined => remove(assigned.wanted, facts, around),
        WantedVolume::Held | WantedVolume::Released => Next::Rest,
        WantedVolume::Present => match &assigned.arriving {
            Some(arriving) if facts.arriving.is_some_and(|fetched| is_enough(fetched, arriving.held)) => {
                Next::Rest
            }
            Some(_) => Next::Do(Step::FetchDisk),
            None => keep(saved, assigned, facts, around),
        },
    }
}

fn keep(saved: &Saved, assigned: &AssignedVolume, facts: &Facts, around: &Around) -> Next {
    match facts.disk {
        Some(_) if !saved.created => Next::Do(Step::Save(Saved { created: true, ..saved.clone() })),
        Some(size) if size < assigned.size => {
            Next::Do(Step::GrowDisk { used_by: around.maybe_used_by.clone() })
        }
        Some(_) => Next::Rest,
        None if has_arrived(facts) => Next::Do(Step::TakeDisk),
        // It was there: never made again.
        None if saved.created => Next::Rest,
        None if !around.source_present || !facts.parts_missing.is_empty() => Next::Rest,
        None => Next::Do(Step::CreateDisk { written_by: around.source_written_by.clone() }),
    }
}

fn remove(wanted: WantedVolume, facts: &Facts, around: &Around) -> Next {
    match facts.disk {
        _ if facts.arriving.is_some() => Next::Do(Step::DropFetched),
        _ if !around.used_by.is_empty() => Next::Rest,
        Some(_) if wanted == WantedVolume::Quarantined => Next::Do(Step::QuarantineDisk),
        Some(_) => Next::Do(Step::RemoveDisk),
        None => Next::Do(Step::Forget),
    }
}

/// Whether what was fetched is what was asked for.
const fn is_enough(fetched: Fetched, held: bool) -> bool {
    fetched.complete && (fetched.held || !held)
}

fn has_arrived(facts: &Facts) -> bool {
    facts.arriving.is_some_and(|fetched| is_enough(fetched, true))
}

/// Whether another worker has it still.
pub(super) const fn is_arriving(assigned: &Assigned) -> bool {
    matches!(assigned, Assigned::Volume(assigned) if assigned.arriving.is_some())
}

/// Whether a VM may be started with it.
#[must_use]
pub fn is_present(facts: &Facts) -> bool {
    is_there(facts, |wanted| wanted == WantedVolume::Present)
}

/// Whether something may be made from it.
#[must_use]
pub fn is_readable(facts: &Facts) -> bool {
    is_there(facts, |wanted| matches!(wanted, WantedVolume::Present | WantedVolume::Held))
}

fn is_there(facts: &Facts, is_wanted: impl Fn(WantedVolume) -> bool) -> bool {
    let saved = facts.saved.as_ref().filter(|saved| saved.created && !is_arriving(&saved.assigned));
    facts.disk.is_some()
        && saved.is_some_and(
            |saved| matches!(&saved.assigned, Assigned::Volume(assigned) if is_wanted(assigned.wanted)),
        )
}

/// Whether it was there, and is gone although nobody asked for that.
#[must_use]
pub fn is_lost(facts: &Facts) -> bool {
    facts.disk.is_none()
        && !has_arrived(facts)
        && facts.saved.as_ref().is_some_and(|saved| {
            saved.created && !saved.assigned.is_removal() && !is_arriving(&saved.assigned)
        })
}

fn phase(assigned: &AssignedVolume, facts: &Facts, used: bool) -> VolumePhase {
    let created = facts.saved.as_ref().is_some_and(|saved| saved.created);
    match (assigned.wanted, facts.arriving) {
        // That it was given up stays true whatever becomes of the file.
        (WantedVolume::Released, _) if !used => VolumePhase::Released,
        (WantedVolume::Present, Some(fetched)) if facts.disk.is_none() && is_enough(fetched, true) => {
            VolumePhase::Complete
        }
        (WantedVolume::Present, fetched) if assigned.arriving.is_some() => match fetched {
            Some(fetched) if fetched.complete => VolumePhase::Copied,
            _ => VolumePhase::Claimed,
        },
        _ if facts.disk.is_none() && created => VolumePhase::Lost,
        (WantedVolume::Held, _) if facts.disk.is_some() && !used => VolumePhase::Held,
        _ if facts.disk.is_some() && created && !assigned.wanted.is_removal() => VolumePhase::Present,
        _ => VolumePhase::Claimed,
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
    used: bool,
    problem: Option<String>,
    stored: Option<&Observed>,
    now: Timestamp,
) -> ObservedVolume {
    let phase = phase(assigned, facts, used);
    let since = match stored {
        Some(Observed::Volume(stored)) if stored.phase == phase => stored.since,
        _ => now,
    };
    let wanted = !assigned.wanted.is_removal();
    let lost = (phase == VolumePhase::Lost && wanted).then(|| "its file is gone from the worker".to_owned());
    ObservedVolume {
        sequence: assigned.sequence,
        generation: assigned.generation,
        phase,
        size: facts.disk.unwrap_or_default(),
        since,
        problem: problem.or(lost),
    }
}
