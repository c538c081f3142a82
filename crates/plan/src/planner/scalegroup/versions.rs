//! Which version a group's members are to be of.

use std::collections::BTreeSet;

use lightbyte_api::kinds::scalegroup::{Choice, Spec as GroupSpec, VERSIONS_KEPT, Version};
use lightbyte_api::{Kind, ObjectRef, Spec, Timestamp, WaitingOn};

use crate::view::View;

/// Chooses the target: what is asked for, or the last version that worked when that has failed. A template that was never asked
/// before becomes a new version.
///
/// # Errors
/// The reason to wait when what is asked for cannot be known, because its image is missing. The choice is as it was.
pub(super) fn choose(
    view: &View,
    spec: &GroupSpec,
    choice: &mut Choice,
    now: Timestamp,
) -> Result<(), WaitingOn> {
    let wanted = wanted(view, spec, choice, now)?;
    choice.rejected.take_if(|rejected| rejected.version != wanted);
    choice.target = Some(match (&choice.rejected, choice.stable) {
        (Some(_), Some(stable)) => stable,
        _ => wanted,
    });
    Ok(())
}

/// The number of the version that is asked for.
fn wanted(view: &View, spec: &GroupSpec, choice: &mut Choice, now: Timestamp) -> Result<u64, WaitingOn> {
    let template = &spec.template;
    let current = template.vm.image_version.clone().map_or_else(|| current_image(view, spec), Ok);
    // A version keeps its image, unless the group is to follow it.
    let is_it = |version: &&Version| {
        let same_image = !spec.update.follow_image || current.as_ref() == Ok(&version.image_version);
        version.template == *template && same_image
    };
    if let Some(known) = choice.versions.iter().rev().find(is_it) {
        return Ok(known.number);
    }
    let image_version = current?;
    let number = choice.versions.last().map_or(0, |version| version.number) + 1;
    choice.versions.push(Version { number, template: template.clone(), image_version, made_at: now });
    Ok(number)
}

fn current_image(view: &View, spec: &GroupSpec) -> Result<String, WaitingOn> {
    let image = ObjectRef::new(Kind::Image, spec.template.vm.image.clone());
    match view.living(&image).map(|asked| &asked.spec) {
        Some(Spec::Image(image)) => Ok(image.current.clone()),
        _ => Err(WaitingOn::Missing { object: image }),
    }
}

/// Forgets versions that nobody needs: those in use stay, and the newest of the others.
pub(super) fn forget(choice: &mut Choice, in_use: &BTreeSet<u64>) {
    let rejected = choice.rejected.as_ref().map(|rejected| rejected.version);
    let named: BTreeSet<u64> = [choice.target, choice.stable, rejected].into_iter().flatten().collect();
    let newest = choice.versions.len().saturating_sub(VERSIONS_KEPT);
    let mut index = 0;
    choice.versions.retain(|version| {
        index += 1;
        index > newest || named.contains(&version.number) || in_use.contains(&version.number)
    });
}
