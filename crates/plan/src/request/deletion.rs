//! The end of objects, and what is kept from it.

use lightbyte_api::object::{Asked, Meta};
use lightbyte_api::{Kind, ObjectRef, Spec, kinds};

use super::{Context, Outcome, Refusal, change, living, not_owned, write_asked};
use crate::view::View;

/// Asks for the end of `object`. Accepted in every state; a second time it changes nothing. A member of a group goes when its
/// group can do without it, and another takes its place.
///
/// # Errors
/// [`Refusal::NotFound`], [`Refusal::Owned`], [`Refusal::Changed`], [`Refusal::Protected`], [`Refusal::HasCopies`].
pub fn delete(view: &View, object: &ObjectRef, context: &Context) -> Result<Outcome, Refusal> {
    let asked = match living(view, object, context) {
        Err(Refusal::Deleting { .. }) => return Ok(Outcome::Nothing),
        found => found?,
    };
    if is_protected(asked) {
        return Err(Refusal::Protected { object: object.clone() });
    }
    if asked.meta.group().is_some() {
        let meta = Meta { replace: true, ..asked.meta.clone() };
        return Ok(change_meta(view, object, asked, meta));
    }
    not_owned(object, asked)?;
    let mut copies = view.children(asked.meta.uid).filter(|child| child.kind == Kind::Snapshot);
    if object.kind == Kind::Volume && copies.any(|copy| view.living(copy).is_some()) {
        return Err(Refusal::HasCopies { object: object.clone() });
    }
    let meta = Meta { deleting_since: Some(context.now), ..asked.meta.clone() };
    Ok(change_meta(view, object, asked, meta))
}

/// Keeps a volume or a snapshot from being deleted, and a member of a group from being chosen when there are too many; or does
/// so no more.
///
/// # Errors
/// [`Refusal`], when there is no such object, or it is of another kind.
pub fn protect(
    view: &View,
    object: &ObjectRef,
    protected: bool,
    context: &Context,
) -> Result<Outcome, Refusal> {
    let asked = living(view, object, context)?;
    let spec = match &asked.spec {
        Spec::Volume(spec) => Spec::Volume(kinds::volume::Spec { protected, ..spec.clone() }),
        Spec::Snapshot(spec) => Spec::Snapshot(kinds::snapshot::Spec { protected, ..spec.clone() }),
        Spec::Vm(_) if asked.meta.group().is_some() => {
            let meta = Meta { protected, ..asked.meta.clone() };
            return Ok(change_meta(view, object, asked, meta));
        }
        _ => return Err(Refusal::NotProtectable { object: object.clone() }),
    };
    change(view, object, asked, asked.meta.labels.clone(), spec, context)
}

fn change_meta(view: &View, object: &ObjectRef, asked: &Asked, meta: Meta) -> Outcome {
    if meta == asked.meta {
        return Outcome::Nothing;
    }
    write_asked(view, object, Asked { meta, spec: asked.spec.clone() })
}

const fn is_protected(asked: &Asked) -> bool {
    match &asked.spec {
        Spec::Volume(spec) => spec.protected,
        Spec::Snapshot(spec) => spec.protected,
        _ => asked.meta.protected,
    }
}
