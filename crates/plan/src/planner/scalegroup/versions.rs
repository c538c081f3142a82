//! Which version a group's members are to be of.

use std::collections::BTreeSet;

use lightbyte_api::kinds::scalegroup::{Choice, Spec as GroupSpec, Undone, VERSIONS_KEPT, Version};
use lightbyte_api::object::Meta;
use lightbyte_api::{Kind, ObjectRef, Spec, Timestamp, WaitingOn};

use crate::view::View;

/// Chooses the target: what is asked for, or the last version that worked when that has failed. A template that was never asked
/// before becomes a new version.
///
/// # Errors
/// The reason to wait when what is asked for cannot be known, because its image is missing.
pub(super) fn choose(
    view: &View,
    meta: &Meta,
    spec: &GroupSpec,
    choice: &mut Choice,
    now: Timestamp,
) -> Result<(), WaitingOn> {
    let known = asked(view, spec, choice);
    let found = known.or_else(|image_version| {
        let number = choice.versions.last().map_or(0, |version| version.number) + 1;
        let (template, image_version) = (spec.template.clone(), image_version?);
        choice.versions.push(Version { number, template, image_version, made_at: now, proven_at: None });
        Ok(number)
    });
    if let Ok(asked) = found {
        let wanted = wanted(meta, choice, asked);
        choice.rejected.take_if(|rejected| rejected.version != wanted);
        choice.target = Some(wanted);
    }
    // What failed is left whether what is asked for can be known or not.
    let goes_back = choice.rejected.is_some() && spec.update.roll_back;
    choice.target = choice.stable.filter(|_| goes_back).or(choice.target);
    found.map(|_| ())
}

/// The version that is wanted when `asked` is asked for: that one, unless somebody has undone it.
pub(super) fn wanted(meta: &Meta, choice: &Choice, asked: u64) -> u64 {
    let undone = meta.rollout.undone.filter(|undone| undone.version == asked);
    undone.map(|undone| undone.to).filter(|to| choice.version(*to).is_some()).unwrap_or(asked)
}

/// The number of the version that the specification asks for; the image version of a new one when there is none yet.
pub(super) fn asked(
    view: &View,
    spec: &GroupSpec,
    choice: &Choice,
) -> Result<u64, Result<String, WaitingOn>> {
    let template = &spec.template;
    let current = template.vm.image_version.clone().map_or_else(|| current_image(view, spec), Ok);
    // A version keeps its image, unless the group is to follow it.
    let is_it = |version: &&Version| {
        let same_image = !spec.update.follow_image || current.as_ref() == Ok(&version.image_version);
        version.template == *template && same_image
    };
    choice.versions.iter().rev().find(is_it).map(|known| known.number).ok_or(current)
}

fn current_image(view: &View, spec: &GroupSpec) -> Result<String, WaitingOn> {
    let image = ObjectRef::new(Kind::Image, spec.template.vm.image.clone());
    match view.living(&image).map(|asked| &asked.spec) {
        Some(Spec::Image(image)) => Ok(image.current.clone()),
        _ => Err(WaitingOn::Missing { object: image }),
    }
}

/// All members are of the target version, and available.
pub(super) fn prove(choice: &mut Choice, now: Timestamp) {
    if choice.stable == choice.target {
        return;
    }
    choice.stable = choice.target;
    let target = choice.target;
    choice.versions.iter_mut().filter(|version| Some(version.number) == target).for_each(|version| {
        version.proven_at = Some(now);
    });
}

/// Forgets versions that nobody needs: those that members are of and those that are named stay, and the newest of the others.
pub(super) fn forget(choice: &mut Choice, in_use: &BTreeSet<u64>, undone: Option<Undone>) {
    let rejected = choice.rejected.as_ref().map(|rejected| rejected.version);
    let undone = undone.into_iter().flat_map(|undone| [undone.version, undone.to]);
    let named = [choice.target, choice.stable, rejected].into_iter().flatten().chain(undone);
    let named: BTreeSet<u64> = named.collect();
    let newest = choice.versions.len().saturating_sub(VERSIONS_KEPT);
    let mut index = 0;
    choice.versions.retain(|version| {
        index += 1;
        index > newest || named.contains(&version.number) || in_use.contains(&version.number)
    });
}
