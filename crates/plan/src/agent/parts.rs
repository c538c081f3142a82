//! Parts of images on a worker: which are to be fetched, and which are kept.
//!
//! ```text
//!   not here ──(something on this host is made from it)──> fetched, by the shell, for as long as that is so ──> here
//!
//!   here ──(nothing needs it)──> noted ──(UNNEEDED_GRACE)──> quarantine ──(QUARANTINE_GRACE)──> removed
//!     ^                            │                            │
//!     └──────(needed again)────────┴────────────────────────────┘
//! ```
//!
//! A part is needed when something that is saved on this host is made from it, or when a registered version of any image
//! has it. What is registered comes whole from a server, at least as new as what this worker has seen; without that
//! nothing is put away: absence never acts.

use std::collections::BTreeSet;

use lightbyte_api::assigned::{Assigned, Source, WantedVm, WantedVolume};
use lightbyte_api::kinds::image::Part;
use lightbyte_api::observed::{ObservedWorker, part_name};
use lightbyte_api::units::Span;
use lightbyte_api::{Kind, Spec, Timestamp};

use super::facts::{Facts, VmmState};
use super::{Agent, HostObject};
use crate::planner::later;
use crate::view::View;

/// How long nothing must need a part before it goes into quarantine: an import may be under way, and an image that was taken
/// back is often wanted again the same day.
pub const UNNEEDED_GRACE: Span = Span::from_secs(24 * 3_600);
/// How long a part stays in quarantine before it is removed, and how long one that has not come whole waits to be gone on with.
pub const QUARANTINE_GRACE: Span = Span::from_secs(7 * 24 * 3_600);
/// How many parts are put away at once: a mistake should not empty a host before somebody can see it.
pub const PUT_AWAY_MAX: usize = 16;

/// The parts that an object is made from.
pub fn parts_of(assigned: &Assigned) -> impl Iterator<Item = &Part> {
    let (kernel, initrd, root) = match assigned {
        Assigned::Vm(vm) => (Some(&vm.kernel), vm.initrd.as_ref(), None),
        Assigned::Volume(volume) => match &volume.source {
            Source::Image(part) => (None, None, Some(part)),
            Source::Blank(_) | Source::Disk(_) => (None, None, None),
        },
    };
    kernel.into_iter().chain(initrd).chain(root)
}

/// The parts without which the object's next step cannot be taken.
pub(super) fn wanted(facts: &Facts) -> &[Part] {
    let is_next = match facts.saved.as_ref().map(|saved| (&saved.assigned, saved)) {
        Some((Assigned::Vm(vm), saved)) => {
            vm.wanted == WantedVm::Running && facts.vmm == VmmState::Absent && !saved.off
        }
        Some((Assigned::Volume(volume), saved)) => {
            // What another worker has is fetched from there.
            let is_arriving = volume.arriving.is_some() || facts.arriving.is_some();
            volume.wanted == WantedVolume::Present && facts.disk.is_none() && !saved.created && !is_arriving
        }
        None => false,
    };
    if is_next { &facts.parts_missing } else { &[] }
}

impl Agent {
    /// The parts that are to be fetched now. A fetch of any other is to be called off.
    #[must_use]
    pub fn parts_wanted(&self) -> BTreeSet<Part> {
        self.desks.values().flat_map(|desk| wanted(desk.facts())).cloned().collect()
    }

    /// The checksums of all parts that something on this host is made from.
    #[must_use]
    pub fn parts_needed(&self) -> BTreeSet<String> {
        let saved = self.desks.values().filter_map(|desk| desk.facts().saved.as_ref());
        let here = saved.flat_map(|saved| parts_of(&saved.assigned));
        here.map(|part| part.sha256.clone()).collect()
    }

    /// A part has come to this host.
    pub fn part_came(&mut self, part: &Part) {
        self.part_problems.remove(&part.sha256);
        self.desks.values_mut().for_each(|desk| desk.part_came(part));
    }

    /// A part cannot be fetched now; it is tried again.
    pub fn part_hindered(&mut self, part: &Part, problem: &str) {
        self.part_problems.insert(part.sha256.clone(), problem.to_owned());
    }

    /// What hinders the fetch of a part that `object` waits for.
    pub(super) fn part_problem(&self, object: HostObject) -> Option<String> {
        let mut parts = self.desks.get(&object).into_iter().flat_map(|desk| wanted(desk.facts()));
        parts.find_map(|part| self.part_problems.get(&part.sha256)).cloned()
    }

    /// Forgets what hindered fetches that nobody wants any more.
    pub(super) fn forget_part_problems(&mut self) {
        if !self.part_problems.is_empty() {
            let wanted = self.parts_wanted();
            self.part_problems.retain(|sha256, _| wanted.iter().any(|part| part.sha256 == *sha256));
        }
    }
}

/// The checksums of the parts of all registered versions of all images; `None` when one of them cannot be read.
#[must_use]
pub fn registered(view: &View) -> Option<BTreeSet<String>> {
    if view
        .unreadable_asked()
        .any(|key| matches!(key, lightbyte_api::Key::Asked(object) if object.kind == Kind::Image))
    {
        return None;
    }
    let mut found = BTreeSet::new();
    for object in view.objects_of(Kind::Image) {
        let Spec::Image(image) = &view.asked(object)?.spec else { return None };
        for version in &image.versions {
            found.extend(version.parts().map(|part| part.sha256.clone()));
        }
    }
    Some(found)
}

/// The workers that live, say that they have the part, and listen somewhere, with their addresses.
pub fn holders<'a>(view: &'a View, sha256: &'a str) -> impl Iterator<Item = &'a ObservedWorker> {
    let name = part_name(sha256);
    let workers = view.objects_of(Kind::Worker).filter_map(|object| view.worker_id(object));
    let alive = workers.filter(|worker| view.alive(*worker).is_some());
    let said = alive.filter_map(|worker| view.observed_worker(worker));
    said.filter(move |said| !said.address.is_empty() && said.parts.iter().any(|part| part == name))
}

/// A part on a host, as whoever tidies up finds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its checksum.
    pub sha256: String,
    /// In which state.
    pub state: State,
}

/// In which state a part is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It is there, and it was noted that nothing needs it, since then.
    Whole {
        /// Since when.
        unneeded_since: Option<Timestamp>,
    },
    /// It has not come whole, and grew last at that time.
    Incoming {
        /// When.
        since: Timestamp,
    },
    /// It is in quarantine since then.
    Quarantined {
        /// Since when.
        since: Timestamp,
        /// Whether it is damaged, and not only unneeded.
        damaged: bool,
    },
}

/// What to do with a part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Deed {
    /// Note that nothing needs it.
    NoteUnneeded(String),
    /// Note that something needs it.
    NoteNeeded(String),
    /// Put it into quarantine.
    PutAway(String),
    /// Take it out of quarantine.
    TakeBack(String),
    /// Remove it from quarantine.
    Remove(String),
    /// Remove what has come of it.
    RemoveIncoming(String),
}

/// What is to be done with the parts of a host of which `needed` are needed, here or by a registered version.
#[must_use]
pub fn tidy(found: &[Found], needed: &BTreeSet<String>, now: Timestamp) -> Vec<Deed> {
    let mut deeds = Vec::new();
    let mut put_away = 0;
    for Found { sha256, state } in found {
        let name = || sha256.clone();
        let is_needed = needed.contains(sha256);
        match *state {
            State::Whole { unneeded_since: Some(_) } if is_needed => deeds.push(Deed::NoteNeeded(name())),
            State::Whole { unneeded_since: None } if !is_needed => deeds.push(Deed::NoteUnneeded(name())),
            State::Whole { unneeded_since: Some(since) }
                if later(since, UNNEEDED_GRACE) <= now && put_away < PUT_AWAY_MAX =>
            {
                put_away += 1;
                deeds.push(Deed::PutAway(name()));
            }
            State::Whole { .. } => {}
            State::Quarantined { damaged: false, .. } if is_needed => deeds.push(Deed::TakeBack(name())),
            State::Quarantined { since, .. } if later(since, QUARANTINE_GRACE) <= now => {
                deeds.push(Deed::Remove(name()));
            }
            State::Incoming { since } if !is_needed && later(since, QUARANTINE_GRACE) <= now => {
                deeds.push(Deed::RemoveIncoming(name()));
            }
            State::Quarantined { .. } | State::Incoming { .. } => {}
        }
    }
    deeds
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nothing_needs_goes_in_steps_and_nothing_else_does() {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let ago =
            |span: Span| Timestamp::from_second(now.as_second() - span.millis() as i64 / 1_000).unwrap();
        let shortly = ago(Span::from_secs(60));
        let check = |state: State, is_needed: bool, expect: Option<fn(String) -> Deed>| {
            let found = [Found { sha256: "a".to_owned(), state }];
            let needed = is_needed.then(|| "a".to_owned()).into_iter().collect();
            let expect: Vec<Deed> = expect.map(|deed| deed("a".to_owned())).into_iter().collect();
            assert_eq!(tidy(&found, &needed, now), expect, "{state:?}, needed: {is_needed}");
        };
        let whole = |unneeded_since| State::Whole { unneeded_since };
        check(whole(None), true, None);
        check(whole(None), false, Some(Deed::NoteUnneeded));
        check(whole(Some(shortly)), false, None);
        check(whole(Some(shortly)), true, Some(Deed::NoteNeeded));
        check(whole(Some(ago(UNNEEDED_GRACE))), false, Some(Deed::PutAway));
        check(whole(Some(ago(UNNEEDED_GRACE))), true, Some(Deed::NoteNeeded));
        let quarantined = |since, damaged| State::Quarantined { since, damaged };
        for damaged in [false, true] {
            check(quarantined(shortly, damaged), false, None);
            check(quarantined(ago(QUARANTINE_GRACE), damaged), false, Some(Deed::Remove));
        }
        check(quarantined(ago(QUARANTINE_GRACE), false), true, Some(Deed::TakeBack));
        check(quarantined(shortly, true), true, None);
        check(State::Incoming { since: shortly }, false, None);
        check(State::Incoming { since: ago(QUARANTINE_GRACE) }, true, None);
        check(State::Incoming { since: ago(QUARANTINE_GRACE) }, false, Some(Deed::RemoveIncoming));
    }

    #[test]
    fn a_host_is_not_emptied_at_once() {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let state = State::Whole { unneeded_since: Some(Timestamp::UNIX_EPOCH) };
        let found: Vec<Found> = (0..50).map(|name| Found { sha256: format!("{name}"), state }).collect();
        assert_eq!(tidy(&found, &BTreeSet::new(), now).len(), PUT_AWAY_MAX);
    }
}
