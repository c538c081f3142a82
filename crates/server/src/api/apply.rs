//! Apply: many documents in one request. All are read and judged before the first is written; then each is written in
//! its order, and what was done before a failure is told.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use lightbyte_api::manifest::DOCUMENTS_MAX;
use lightbyte_api::records::Record;
use lightbyte_api::wire::{Applied, Apply, ChangeAction, Changed};
use lightbyte_api::{Key, Manifest, ObjectRef};
use lightbyte_plan::request::{self, Context, Outcome, Refusal};
use lightbyte_plan::{View, Write};
use serde_json::Value;

use crate::api::answer::{Answer, Answered};
use crate::api::caller::Caller;
use crate::api::difference::{asked_for, differences};
use crate::api::input::{Input, Parameters};
use crate::api::objects::changed;
use crate::api::plan::admit;
use crate::problem::Failure;
use crate::{Server, clock};

/// `POST /v1/apply`
pub(crate) async fn apply(
    State(server): State<Arc<Server>>,
    caller: Caller,
    parameters: Parameters,
    Input(apply): Input<Apply>,
) -> Answered<Applied> {
    parameters.only(&["if_match"])?;
    let manifests = read_all(&apply.documents)?;
    let if_match = parameters.if_match()?;
    if if_match.is_some() && manifests.len() != 1 {
        return Err(Failure::bad("If-Match speaks of one object, and the request has several")
            .hint("apply them one by one"));
    }
    let decide = |view: &View, manifest: &Manifest, context: &Context| match apply.create_only {
        true => request::create(view, manifest, context),
        false => request::apply(view, manifest, context),
    };
    server.initialised_view()?;
    let view = server.confirmed_view().await?;
    let sealed = manifests.into_iter().map(|manifest| server.sealed(&view, manifest));
    let manifests = sealed.collect::<Result<Vec<Manifest>, Failure>>()?;
    let context = || Context { now: clock::now(), uid: clock::fresh_uid(), if_match };
    let judged: Vec<_> = manifests.iter().map(|manifest| decide(&view, manifest, &context())).collect();
    refuse_all(&manifests, &judged)?;
    admit(&server, &view, &manifests).await?;
    if apply.dry_run {
        let changes = manifests.iter().zip(judged).map(|(manifest, judged)| foresee(&view, manifest, judged));
        let changes = changes.collect::<Result<_, Failure>>()?;
        return Ok(Answer::at(view.revision(), Applied { changes }));
    }

    let mut changes: Vec<Changed> = Vec::new();
    let mut revision = view.revision();
    for manifest in &manifests {
        let context = context();
        let written = server.write(&caller, |view| decide(view, manifest, &context)).await;
        let written = written.map_err(|failure| tell_done(failure, &changes))?;
        revision = revision.max(written.revision);
        changes.push(changed(&written, &manifest.object())?);
    }
    Ok(Answer::at(revision, Applied { changes }))
}

/// What was done before a document failed.
fn tell_done(failure: Failure, changes: &[Changed]) -> Failure {
    let word = |action| match action {
        ChangeAction::Created => "created",
        ChangeAction::Changed => "changed",
        ChangeAction::Unchanged => "unchanged",
        ChangeAction::Deleting => "deleting",
    };
    let done = changes.iter().map(|change| format!("done before: {} {}", change.object, word(change.action)));
    failure.details(done)
}

// --------------------------------------------------------------------------------------------------------- reading

/// Reads every document, or tells every problem of every document.
pub(crate) fn read_all(documents: &[Value]) -> Result<Vec<Manifest>, Failure> {
    if documents.len() > DOCUMENTS_MAX {
        let title =
            format!("the request has {} documents, at most {DOCUMENTS_MAX} are allowed", documents.len());
        return Err(Failure::new(StatusCode::PAYLOAD_TOO_LARGE, title).hint("send them in several requests"));
    }
    let mut problems = Vec::new();
    let mut bad_documents = 0;
    let mut manifests: Vec<Manifest> = Vec::new();
    let mut first_of: BTreeMap<ObjectRef, usize> = BTreeMap::new();
    for (index, document) in documents.iter().enumerate() {
        let found = match Manifest::read(document) {
            Err(found) => found.iter().map(ToString::to_string).collect(),
            Ok(manifest) => match first_of.insert(manifest.object(), index) {
                Some(first) => vec![format!("document {} speaks of the same object", first + 1)],
                None => {
                    manifests.push(manifest);
                    Vec::new()
                }
            },
        };
        bad_documents += usize::from(!found.is_empty());
        problems.extend(found.iter().map(|problem| format!("{}: {problem}", place(index, document))));
    }
    match problems.len() {
        0 => Ok(manifests),
        1 => Err(Failure::bad("the manifest has a problem").details(problems)),
        count if documents.len() == 1 => {
            Err(Failure::bad(format!("the manifest has {count} problems")).details(problems))
        }
        count => {
            let of = documents.len();
            let title = format!("{bad_documents} of {of} documents have problems, {count} in all");
            Err(Failure::bad(title).details(problems))
        }
    }
}

/// Where a document is, and what it says that it is.
fn place(index: usize, document: &Value) -> String {
    let word = |field| document.get(field).and_then(Value::as_str);
    match (word("kind"), word("name")) {
        (Some(kind), Some(name)) => format!("document {} ({kind}/{name})", index + 1),
        (None, Some(name)) => format!("document {} (`{name}`)", index + 1),
        _ => format!("document {}", index + 1),
    }
}

/// Refuses the request when any document is refused, and tells why for each.
fn refuse_all(manifests: &[Manifest], judged: &[Result<Outcome, Refusal>]) -> Result<(), Failure> {
    let refused: Vec<(usize, &Refusal)> = judged
        .iter()
        .enumerate()
        .filter_map(|(index, judged)| Some((index, judged.as_ref().err()?)))
        .collect();
    let Some((_, first)) = refused.first() else { return Ok(()) };
    let failure = Failure::from((*first).clone());
    if refused.len() == 1 {
        return Err(failure);
    }
    let details = refused.iter().map(|(index, refusal)| {
        format!("document {} ({}): {refusal}", index + 1, manifests[*index].object())
    });
    let title =
        format!("{} of {} documents are refused, nothing was written", refused.len(), manifests.len());
    let status = StatusCode::from_u16(failure.0.status).unwrap_or(StatusCode::CONFLICT);
    Err(Failure::new(status, title).details(details))
}

// --------------------------------------------------------------------------------------------------------- dry run

/// What a write would change, after defaults.
fn foresee(view: &View, manifest: &Manifest, judged: Result<Outcome, Refusal>) -> Result<Changed, Failure> {
    let object = manifest.object();
    let before = view.asked(&object).map(AsRef::as_ref);
    let (action, decision) = match judged? {
        Outcome::Create(decision) => (ChangeAction::Created, Some(decision)),
        Outcome::Change(decision) => (ChangeAction::Changed, Some(decision)),
        Outcome::Nothing => (ChangeAction::Unchanged, None),
    };
    let key = Key::Asked(object.clone());
    let after = match decision.as_ref().and_then(|decision| decision.writes.get(&key)) {
        Some(Write::Put(_, Record::Asked(asked))) => Some(asked.as_ref()),
        _ => before,
    };
    let Some(meta) = after.map(|asked| &asked.meta) else {
        return Err(Refusal::NotFound { object }.into());
    };
    let (generation, uid) = (meta.generation, meta.uid);
    Ok(Changed {
        differences: differences(&asked_for(before), &asked_for(after)),
        object,
        action,
        generation,
        uid,
    })
}
