//! Copies of a volume on another worker: snapshots that it owns, taken in turn, as many kept as are asked for.

use lightbyte_api::kinds::snapshot;
use lightbyte_api::kinds::volume::{Choice as VolumeChoice, Copied, Copies};
use lightbyte_api::object::{Asked, Meta, Owner};
use lightbyte_api::{Key, Kind, ObjectRef, Span, Spec, Uid};

use super::disk::is_present;
use super::{Inputs, later, worker_of};
use crate::transaction::Write;
use crate::view::View;

/// How many names are tried for one copy.
const NAMES_TRIED_MAX: u64 = 16;

/// What is done about copies now.
#[derive(Default)]
pub(super) struct Turn {
    pub(super) writes: Vec<Write>,
    /// What is noted of the newest copy, when another one is begun.
    pub(super) copied: Option<Copied>,
    /// When the next one is due.
    pub(super) again: Option<Span>,
}

/// One copy that is to be there.
struct Copy<'a> {
    object: &'a ObjectRef,
    asked: &'a Asked,
    /// It is on the worker that it goes to.
    is_done: bool,
}

/// Takes the next copy when it is due and the one before is done, and lets the oldest go when there are more than are
/// kept. One that is not done counts for nothing: the last good ones are never given up for it.
pub(super) fn take_turn(
    view: &View,
    volume: &ObjectRef,
    meta: &Meta,
    copies: &Copies,
    choice: &VolumeChoice,
    inputs: &Inputs,
) -> Turn {
    let mut living: Vec<Copy<'_>> = view
        .children(meta.uid)
        .filter(|child| child.kind == Kind::Snapshot)
        .filter_map(|object| {
            let asked = view.living(object)?;
            Some(Copy { object, asked, is_done: is_done(view, object, asked, copies) })
        })
        .collect();
    living.sort_by_key(|copy| number_of(copy.object));
    let keep = usize::try_from(copies.keep).unwrap_or(usize::MAX);
    let done: Vec<&Copy<'_>> = living.iter().filter(|copy| copy.is_done || keep == 0).collect();
    let old = &done[..done.len().saturating_sub(keep)];
    let mut turn = Turn { writes: old.iter().map(|copy| end(copy, inputs)).collect(), ..Turn::default() };
    let is_busy = living.iter().any(|copy| !copy.is_done);
    if keep == 0 || is_busy {
        // The end of the one that is being made wakes this volume.
        return turn;
    }
    let due = choice.copied.map_or(inputs.now, |copied| later(copied.at, copies.every));
    if due > inputs.now {
        let left = due.as_millisecond().saturating_sub(inputs.now.as_millisecond());
        turn.again = Some(Span::from_millis(u64::try_from(left).unwrap_or(0)));
        return turn;
    }
    let last = choice.copied.map_or(0, |copied| copied.number);
    // Somebody may have taken a name; after a few the next turn goes on.
    let begun = (last + 1..=last + NAMES_TRIED_MAX)
        .find_map(|number| Some((number, begin(view, volume, meta, copies, (number, inputs))?)));
    let number = begun.as_ref().map_or(last + NAMES_TRIED_MAX, |(number, _)| *number);
    turn.writes.extend(begun.map(|(_, write)| write));
    turn.copied = Some(Copied { number, at: inputs.now });
    turn
}

fn begin(
    view: &View,
    volume: &ObjectRef,
    owner: &Meta,
    copies: &Copies,
    (number, inputs): (u64, &Inputs),
) -> Option<Write> {
    let object = ObjectRef::new(Kind::Snapshot, volume.name.child(&format!("copy-{number}")).ok()?);
    let key = Key::Asked(object);
    if view.contains(&key) {
        return None;
    }
    let made_by = Owner::new(volume.clone(), owner.uid);
    let meta = Meta::new(inputs.uid(0), Some(made_by), owner.labels.clone(), inputs.now);
    let spec =
        snapshot::Spec { volume: volume.name.clone(), worker: Some(copies.to.clone()), protected: false };
    Some(Write::put(key, Asked { meta, spec: Spec::Snapshot(spec) }))
}

fn end(copy: &Copy<'_>, inputs: &Inputs) -> Write {
    let meta = Meta { deleting_since: Some(inputs.now), ..copy.asked.meta.clone() };
    Write::put(Key::Asked(copy.object.clone()), Asked { meta, spec: copy.asked.spec.clone() })
}

/// Asks for the end of all copies whose end is not asked for yet.
pub(super) fn end_all(view: &View, volume: Uid, inputs: &Inputs) -> Vec<Write> {
    let living = view.children(volume).filter_map(|object| {
        let asked = view.living(object)?;
        Some(end(&Copy { object, asked, is_done: false }, inputs))
    });
    living.collect()
}

/// Whether a copy is there, on the worker that it was made for.
fn is_done(view: &View, object: &ObjectRef, asked: &Asked, copies: &Copies) -> bool {
    let Spec::Snapshot(spec) = &asked.spec else { return false };
    let to = spec.worker.as_ref().unwrap_or(&copies.to);
    let to = view.worker_id(&ObjectRef::new(Kind::Worker, to.clone()));
    to.is_some() && worker_of(view, object) == to && is_present(view, to, asked.meta.uid)
}

/// The number of a copy, from its name.
fn number_of(copy: &ObjectRef) -> u64 {
    let number = copy.name.as_str().rsplit('-').next().and_then(|number| number.parse().ok());
    number.unwrap_or(0)
}
