//! What people ask of a group's updates while they are on their way.

use lightbyte_api::kinds::scalegroup::{Rollout, Undone};
use lightbyte_api::object::{Asked, Meta};
use lightbyte_api::wire::RolloutStep;
use lightbyte_api::{ObjectRef, Spec};

use super::{Context, Outcome, Refusal, living, write_asked};
use crate::planner;
use crate::view::View;

/// What was asked of an update is asked no more when another template is.
pub(super) fn after(asked: &Asked, next: &Spec) -> Rollout {
    let before = &asked.meta.rollout;
    match (&asked.spec, next) {
        (Spec::ScaleGroup(spec), Spec::ScaleGroup(next)) if spec.template != next.template => {
            Rollout { paused: before.paused, ..Rollout::default() }
        }
        _ => before.clone(),
    }
}

/// Stops, lets go on, promotes or takes back an update of a group.
///
/// # Errors
/// [`Refusal`], when there is no such group, or nothing to promote or to go back to.
pub fn rollout(
    view: &View,
    object: &ObjectRef,
    step: RolloutStep,
    context: &Context,
) -> Result<Outcome, Refusal> {
    let asked = living(view, object, context)?;
    let Spec::ScaleGroup(spec) = &asked.spec else {
        return Err(Refusal::NotAGroup { object: object.clone() });
    };
    let refused = |reason| Refusal::NoRollout { object: object.clone(), reason };
    let choice = planner::scalegroup::choice(view, object).ok_or_else(|| refused(NOT_LOOKED_AT))?;
    let before = &asked.meta.rollout;
    let rollout = match step {
        RolloutStep::Pause => Rollout { paused: true, ..before.clone() },
        RolloutStep::Resume => Rollout { paused: false, ..before.clone() },
        RolloutStep::Promote if choice.target == choice.stable => return Err(refused(NOTHING_TO_PROMOTE)),
        RolloutStep::Promote => Rollout { promoted: choice.target, ..before.clone() },
        RolloutStep::Undo { to } => {
            let version = planner::scalegroup::asked_version(view, spec, choice);
            let version = version.ok_or_else(|| refused(NOT_LOOKED_AT))?;
            let is_another = |number: u64| Some(number) != choice.target;
            let worked = choice.stable.filter(|stable| is_another(*stable));
            let others = choice.versions.iter().filter(|version| is_another(version.number));
            let others = others.filter_map(|version| Some((version.proven_at?, version.number)));
            let worked_before = others.max().map(|(_, number)| number);
            let to = to.or(worked).or(worked_before).ok_or_else(|| refused(NOTHING_BEFORE))?;
            if choice.version(to).is_none() {
                return Err(refused(NO_SUCH_VERSION));
            }
            // To want what is asked is to undo nothing.
            let undone = (to != version).then_some(Undone { version, to });
            Rollout { undone, ..Rollout::default() }
        }
    };
    if rollout == *before {
        return Ok(Outcome::Nothing);
    }
    let meta = Meta {
        rollout,
        generation: asked.meta.generation + 1,
        changed_at: context.now,
        ..asked.meta.clone()
    };
    Ok(write_asked(view, object, Asked { meta, spec: asked.spec.clone() }))
}

const NOT_LOOKED_AT: &str = "its controller has not looked at it yet";
const NOTHING_TO_PROMOTE: &str = "no update of it is on its way";
const NOTHING_BEFORE: &str = "no other version of it has worked; name one";
const NO_SUCH_VERSION: &str = "that version of it is not known";
