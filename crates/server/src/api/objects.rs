//! Objects: list, get, delete, and the verbs that people use on them.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use lightbyte_api::object::Object;
use lightbyte_api::wire::{ChangeAction, Changed, List, RolloutStep};
use lightbyte_api::{Event, Kind, Name, ObjectRef};
use lightbyte_plan::request::{self, Context, Outcome, Refusal};
use lightbyte_plan::why::{self, Explanation, Stuck};
use lightbyte_plan::{View, status};

use crate::api::answer::{Answer, Answered};
use crate::api::caller::Caller;
use crate::api::input::{self, Parameters};
use crate::problem::Failure;
use crate::writer::{Done, Written};
use crate::{Server, clock};

/// How many objects one answer lists at most; the header `lightbyte-next` says where to go on.
pub(crate) const LIST_ITEMS_MAX: u64 = 10_000;
/// How many events one answer lists at most.
pub(crate) const EVENTS_LISTED_MAX: u64 = 1_000;

/// `GET /v1/objects/KIND`
pub(crate) async fn list(
    State(server): State<Arc<Server>>,
    Path(word): Path<String>,
    parameters: Parameters,
) -> Answered<List<Object>> {
    parameters.only(&["label", "limit", "after", "min_revision", "at"])?;
    let kind = input::kind(&word)?;
    let labels = parameters.labels()?;
    let limit = parameters.number("limit")?.unwrap_or(LIST_ITEMS_MAX).clamp(1, LIST_ITEMS_MAX);
    let bad_name = |error| Failure::bad(format!("`after` must be a name: {error}"));
    let after: Option<Name> = parameters.one("after").map(str::parse).transpose().map_err(bad_name)?;
    let view = server.view_for(&parameters).await?;

    let later = |object: &&ObjectRef| after.as_ref().is_none_or(|after| object.name > *after);
    let fits = |object: &Object| {
        labels.iter().all(|(key, value)| object.labels.get(key).is_some_and(|found| found == value))
    };
    let found = view.objects_of(kind).filter(later).filter_map(|object| status::object(&view, object));
    let mut items: Vec<Object> = found.filter(fits).take(limit as usize + 1).collect();
    let cut = items.len() as u64 > limit;
    items.truncate(limit as usize);
    let next = items.last().filter(|_| cut).map(|object| object.name.to_string());
    Ok(Answer { next, ..Answer::at(view.revision(), List { items }) })
}

/// `GET /v1/objects/KIND/NAME`
pub(crate) async fn get(
    State(server): State<Arc<Server>>,
    path: Path<(String, String)>,
    parameters: Parameters,
) -> Answered<Object> {
    parameters.only(&["min_revision", "at"])?;
    let object = input::object(path)?;
    let view = server.view_for(&parameters).await?;
    let found = status::object(&view, &object).ok_or_else(|| not_found(&object))?;
    Ok(Answer { etag: Some(status::revision(&view, &object)), ..Answer::at(view.revision(), found) })
}

fn not_found(object: &ObjectRef) -> Failure {
    Refusal::NotFound { object: object.clone() }.into()
}

/// `GET /v1/objects/KIND/NAME/why`
pub(crate) async fn why(
    State(server): State<Arc<Server>>,
    path: Path<(String, String)>,
    parameters: Parameters,
) -> Answered<Explanation> {
    parameters.only(&["on", "min_revision", "at"])?;
    let object = input::object(path)?;
    let bad_name = |error| Failure::bad(format!("`on` must be the name of a worker: {error}"));
    let on: Option<Name> = parameters.one("on").map(str::parse).transpose().map_err(bad_name)?;
    let view = server.view_for(&parameters).await?;
    if let Some(worker) = on.as_ref().map(|name| ObjectRef::new(Kind::Worker, name.clone()))
        && view.asked(&worker).is_none()
    {
        return Err(not_found(&worker));
    }
    let explanation = why::why(&view, &object, on.as_ref()).ok_or_else(|| not_found(&object))?;
    Ok(Answer::at(view.revision(), explanation))
}

/// `GET /v1/stuck`
pub(crate) async fn stuck(
    State(server): State<Arc<Server>>,
    parameters: Parameters,
) -> Answered<List<Stuck>> {
    parameters.only(&["min_revision"])?;
    let view = server.view_for(&parameters).await?;
    Ok(Answer::at(view.revision(), List { items: why::stuck(&view, clock::now()) }))
}

/// `GET /v1/objects/KIND/NAME/events`
pub(crate) async fn events_of(
    State(server): State<Arc<Server>>,
    path: Path<(String, String)>,
    parameters: Parameters,
) -> Answered<List<Event>> {
    parameters.only(&["min_revision"])?;
    let object = input::object(path)?;
    let view = server.view_for(&parameters).await?;
    let items = server.events.of(&server.follower, &object);
    if items.is_empty() && status::object(&view, &object).is_none() {
        return Err(not_found(&object));
    }
    Ok(Answer::at(view.revision(), List { items }))
}

/// `GET /v1/events`
pub(crate) async fn events(
    State(server): State<Arc<Server>>,
    parameters: Parameters,
) -> Answered<List<Event>> {
    parameters.only(&["limit", "min_revision"])?;
    let limit = parameters.number("limit")?.unwrap_or(EVENTS_LISTED_MAX).min(EVENTS_LISTED_MAX);
    let view = server.view_for(&parameters).await?;
    Ok(Answer::at(view.revision(), List { items: server.events.newest(&server.follower, limit as usize) }))
}

/// `DELETE /v1/objects/KIND/NAME`
pub(crate) async fn delete(
    State(server): State<Arc<Server>>,
    caller: Caller,
    path: Path<(String, String)>,
    parameters: Parameters,
) -> Answered<Changed> {
    let object = input::object(path)?;
    let answer = change(&server, &caller, &object, &parameters, request::delete).await?;
    // Asked a second time it changes nothing, and is still on its way out.
    Ok(Answer { value: Changed { action: ChangeAction::Deleting, ..answer.value }, ..answer })
}

/// `POST /v1/objects/KIND/NAME/start`, or `stop`
pub(crate) async fn set_running<const RUNNING: bool>(
    State(server): State<Arc<Server>>,
    caller: Caller,
    path: Path<(String, String)>,
    parameters: Parameters,
) -> Answered<Changed> {
    let set_running = |view: &View, object: &ObjectRef, context: &Context| {
        request::set_running(view, object, RUNNING, context)
    };
    change(&server, &caller, &input::object(path)?, &parameters, set_running).await
}

/// `POST /v1/objects/KIND/NAME/restart`
pub(crate) async fn restart(
    State(server): State<Arc<Server>>,
    caller: Caller,
    path: Path<(String, String)>,
    parameters: Parameters,
) -> Answered<Changed> {
    change(&server, &caller, &input::object(path)?, &parameters, request::restart).await
}

/// `POST /v1/objects/KIND/NAME/protect`, or `unprotect`
pub(crate) async fn protect<const PROTECTED: bool>(
    State(server): State<Arc<Server>>,
    caller: Caller,
    path: Path<(String, String)>,
    parameters: Parameters,
) -> Answered<Changed> {
    let protect = |view: &View, object: &ObjectRef, context: &Context| {
        request::protect(view, object, PROTECTED, context)
    };
    change(&server, &caller, &input::object(path)?, &parameters, protect).await
}

/// `POST /v1/objects/KIND/NAME/rollout`
pub(crate) async fn rollout(
    State(server): State<Arc<Server>>,
    caller: Caller,
    path: Path<(String, String)>,
    parameters: Parameters,
) -> Answered<Changed> {
    parameters.only(&["step", "to", "if_match"])?;
    let to = match parameters.one("to") {
        None => None,
        Some(text) => {
            let bad = |_| Failure::bad(format!("`to` must be the number of a version, is `{text}`"));
            Some(text.parse().map_err(bad)?)
        }
    };
    let step = match (parameters.one("step").unwrap_or_default(), to) {
        ("pause", None) => RolloutStep::Pause,
        ("resume", None) => RolloutStep::Resume,
        ("promote", None) => RolloutStep::Promote,
        ("undo", to) => RolloutStep::Undo { to },
        (step, Some(_)) => {
            return Err(Failure::bad(format!("`to` goes with `step=undo`, not with `{step}`")));
        }
        (step, None) => {
            let title = format!("`step` must be pause, resume, promote or undo, is `{step}`");
            return Err(Failure::bad(title));
        }
    };
    let object = input::object(path)?;
    let context = Context { now: clock::now(), uid: clock::fresh_uid(), if_match: parameters.if_match()? };
    let written = server.write(&caller, |view| request::rollout(view, &object, step, &context)).await?;
    Ok(Answer::at(written.revision, changed(&written, &object)?))
}

/// `POST /v1/objects/KIND/NAME/release`
pub(crate) async fn release(
    State(server): State<Arc<Server>>,
    caller: Caller,
    path: Path<(String, String)>,
    parameters: Parameters,
) -> Answered<()> {
    parameters.only(&["address"])?;
    let object = input::object(path)?;
    let text = parameters.one("address").unwrap_or_default();
    let address =
        text.parse().map_err(|_| Failure::bad(format!("`address` must be an address, is `{text}`")))?;
    let context = Context { now: clock::now(), uid: clock::fresh_uid(), if_match: None };
    let released = |view: &View| request::release_address(view, &object, address, &context);
    let written = server.write(&caller, released).await?;
    Ok(Answer::at(written.revision, ()))
}

async fn change(
    server: &Server,
    caller: &Caller,
    object: &ObjectRef,
    parameters: &Parameters,
    decide: impl Fn(&View, &ObjectRef, &Context) -> Result<Outcome, Refusal>,
) -> Answered<Changed> {
    parameters.only(&["if_match"])?;
    let context = Context { now: clock::now(), uid: clock::fresh_uid(), if_match: parameters.if_match()? };
    let written = server.write(caller, |view| decide(view, object, &context)).await?;
    Ok(Answer::at(written.revision, changed(&written, object)?))
}

/// What became of `object`, as the answer to its writer.
pub(crate) fn changed(written: &Written, object: &ObjectRef) -> Result<Changed, Failure> {
    let no_meta = || {
        let title = format!("what was written does not speak of {object}");
        Failure::new(StatusCode::INTERNAL_SERVER_ERROR, title).hint("report this as a bug")
    };
    let meta = written.meta(object).ok_or_else(no_meta)?;
    let action = match written.done {
        Done::Created(_) => ChangeAction::Created,
        Done::Changed(_) => ChangeAction::Changed,
        Done::Nothing => ChangeAction::Unchanged,
    };
    let object = object.clone();
    Ok(Changed { object, action, generation: meta.generation, uid: meta.uid, differences: Vec::new() })
}
