//! What people asked for between two points of the history: which objects were made, which are gone, and in which fields what
//! is asked differs. What controllers and workers wrote meanwhile is left out: events tell of that.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use lightbyte_api::wire::{PastAction, PastChange, PastChanges};
use lightbyte_api::{Asked, Key, Kind, Name, ObjectRef};
use lightbyte_plan::View;

use crate::Server;
use crate::api::answer::{Answer, Answered};
use crate::api::difference::{asked_for, differences, without_secrets};
use crate::api::input::{self, Parameters};
use crate::problem::Failure;
use crate::writer::REACH_WITHIN;

/// How many objects one answer tells of; of more, how many there are.
const CHANGES_TOLD_MAX: usize = 10_000;

/// How many bytes of fields one answer tells of, as JSON; of the rest, how many objects there are.
const CHANGES_BYTES_MAX: usize = 8 * 1024 * 1024;
/// How many filters one question has.
const WANTED_MAX: usize = 64;

/// Which objects are looked at.
enum Wanted {
    Kind(Kind),
    Object(ObjectRef),
    Named(Name),
}

impl Wanted {
    /// Reads KIND, KIND/NAME or NAME.
    fn read(text: &str) -> Result<Wanted, Failure> {
        let name = |text: &str| {
            text.parse().map_err(|error| Failure::bad(format!("`of` names no object: `{text}`: {error}")))
        };
        match text.split_once('/') {
            Some((kind, text)) => Ok(Wanted::Object(ObjectRef::new(input::kind(kind)?, name(text)?))),
            None => match text.parse() {
                Ok(kind) => Ok(Wanted::Kind(kind)),
                Err(_) => Ok(Wanted::Named(name(text)?)),
            },
        }
    }

    fn has(&self, object: &ObjectRef) -> bool {
        match self {
            Wanted::Kind(kind) => object.kind == *kind,
            Wanted::Object(wanted) => object == wanted,
            Wanted::Named(name) => object.name == *name,
        }
    }
}

/// `GET /v1/changes`
pub(crate) async fn changes(
    State(server): State<Arc<Server>>,
    parameters: Parameters,
) -> Answered<PastChanges> {
    parameters.only(&["from", "to", "of", "min_revision"])?;
    let from = parameters.one("from").ok_or_else(|| {
        Failure::bad("`from` is missing")
            .hint("it is a revision, a time such as 2026-11-27T18:00:00Z, or 10m")
    })?;
    let wanted: Vec<Wanted> = parameters.all("of").map(Wanted::read).collect::<Result<_, _>>()?;
    if wanted.len() > WANTED_MAX {
        return Err(Failure::bad(format!(
            "`of` is given {} times, at most {WANTED_MAX} are allowed",
            wanted.len()
        )));
    }
    let after = match (parameters.one("to"), parameters.number("min_revision")?) {
        (Some(to), _) => server.look_back("to", to).await?.0,
        (None, Some(revision)) => server.follower.reach(revision, REACH_WITHIN).await?,
        (None, None) => server.follower.view().ok_or_else(Failure::no_view)?,
    };
    let (before, _) = server.look_back("from", from).await?;
    if before.revision() > after.revision() {
        let title = format!(
            "`from` is revision {}, which comes after revision {}",
            before.revision(),
            after.revision()
        );
        return Err(Failure::bad(title).hint("exchange the two"));
    }
    let is_wanted =
        move |object: &ObjectRef| wanted.is_empty() || wanted.iter().any(|wanted| wanted.has(object));
    let revision = after.revision();
    // All objects are compared: that is work for a thread of its own.
    let found = tokio::task::spawn_blocking(move || between(&before, &after, is_wanted)).await;
    let found =
        found.map_err(|_| Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "the comparison failed"))?;
    Ok(Answer::at(revision, found))
}

/// What differs in what is asked, object by object.
fn between(before: &View, after: &View, is_wanted: impl Fn(&ObjectRef) -> bool) -> PastChanges {
    let objects: BTreeSet<&ObjectRef> = before.objects().chain(after.objects()).collect();
    let differs = |object: &&ObjectRef| {
        let key = Key::Asked((*object).clone());
        before.mod_revision(&key) != after.mod_revision(&key)
    };
    let found = objects.into_iter().filter(|object| is_wanted(object)).filter(differs);
    let (mut changes, mut bytes, mut untold) = (Vec::new(), 0, 0);
    for object in found {
        if changes.len() == CHANGES_TOLD_MAX || bytes > CHANGES_BYTES_MAX {
            untold += 1;
            continue;
        }
        let Some(found) = change(before, after, object) else { continue };
        bytes += serde_json::to_vec(&found).map_or(0, |json| json.len());
        changes.push(found);
    }
    PastChanges { from: before.revision(), to: after.revision(), changes, untold }
}

fn change(before: &View, after: &View, object: &ObjectRef) -> Option<PastChange> {
    let [was, is] = [before, after].map(|view| view.asked(object).map(AsRef::as_ref));
    let key = Key::Asked(object.clone());
    if [(before, was), (after, is)].iter().any(|(view, asked)| view.contains(&key) && asked.is_none()) {
        // This version cannot read it: it was changed, and how is not known.
        return Some(PastChange {
            object: object.clone(),
            action: PastAction::Changed,
            differences: Vec::new(),
        });
    }
    let differences = without_secrets(differences(&asked_for(was), &asked_for(is)));
    let ends = |asked: &Asked| asked.meta.deleting_since.is_some();
    let action = match (was, is) {
        (None, None) => return None,
        (None, Some(_)) => PastAction::Made,
        (Some(_), None) => PastAction::Gone,
        (Some(was), Some(is)) if was.meta.uid != is.meta.uid => PastAction::MadeAnew,
        (Some(was), Some(is)) if !ends(was) && ends(is) => PastAction::Deleting,
        // A restart was asked for, or an update was steered: no field of the manifest.
        (Some(_), Some(_)) if differences.is_empty() => return None,
        (Some(_), Some(_)) => PastAction::Changed,
    };
    // An object that is gone is told without its fields: `--at` shows them.
    let differences = if action == PastAction::Gone { Vec::new() } else { differences };
    Some(PastChange { object: object.clone(), action, differences })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_wanted_by_kind_name_or_both() {
        let has = |text: &str, object: &str| {
            Wanted::read(text).map(|wanted| wanted.has(&object.parse().expect("an object")))
        };
        let check = |text: &str, object: &str, expect: bool| {
            assert_eq!(has(text, object).ok(), Some(expect), "{text} {object}");
        };
        check("vm", "vm/a", true);
        check("vms", "network/vm", false);
        check("vm/a", "vm/a", true);
        check("vm/a", "vm/b", false);
        check("a", "volume/a", true);
        check("a", "vm/b", false);
        assert!(has("vn/a", "vm/a").is_err() && has("A", "vm/a").is_err() && has("", "vm/a").is_err());
    }
}
