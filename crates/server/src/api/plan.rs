//! Plans: what changes would do, from the deciders themselves. Nothing is written.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::StatusCode;
use lightbyte_api::manifest::DOCUMENTS_MAX;
use lightbyte_api::wire::{Foresee, Loss, Supposed};
use lightbyte_api::{Kind, Manifest, Spec, Timestamp};
use lightbyte_plan::View;
use lightbyte_plan::forecast::{self, Change, Context, Forecast};
use serde_json::Value;

use crate::api::answer::{Answer, Answered};
use crate::api::apply::read_all;
use crate::api::input::{Input, Parameters};
use crate::problem::Failure;
use crate::{Server, clock};

/// How many forecasts one server makes at once: each keeps a core busy.
pub(crate) const FORECASTS_MAX: usize = 2;

/// How long one may take; what was foreseen until then is told.
const FORESEES_WITHIN: Duration = Duration::from_secs(10);

/// Raised when the handler is dropped: nobody waits for the answer any more.
struct Gone(Arc<AtomicBool>);

impl Drop for Gone {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// `POST /v1/plan`
pub(crate) async fn plan(
    State(server): State<Arc<Server>>,
    parameters: Parameters,
    Input(asked): Input<Foresee>,
) -> Answered<Forecast> {
    parameters.only(&["at"])?;
    let changes = read(asked)?;
    server.initialised_view()?;
    // What was is judged by the clock of then: what was young has not grown old meanwhile.
    let (view, now) = match parameters.one("at") {
        Some(past) => server.look_back("at", past).await?,
        None => (server.confirmed_view().await?, None),
    };
    let sealed = changes.into_iter().map(|change| match change {
        Change::Apply(manifest) => server.sealed(&view, manifest).map(Change::Apply),
        change => Ok(change),
    });
    let changes = sealed.collect::<Result<Vec<Change>, Failure>>()?;
    let revision = view.revision();
    let context = context(&view, now);
    let forecast =
        move |is_wanted: &dyn Fn() -> bool| forecast::forecast(&view, &changes, &context, is_wanted);
    Ok(Answer::at(revision, foresee(&server, forecast).await??))
}

fn context(view: &View, now: Option<Timestamp>) -> Context {
    let boot = forecast::boot_estimate(view);
    Context { now: now.unwrap_or_else(clock::now), fresh: clock::fresh(), boot }
}

/// Looks ahead on a thread that serves nobody else, for as long as somebody waits for it and at most for [`FORESEES_WITHIN`].
async fn foresee<T: Send + 'static>(
    server: &Server,
    look: impl FnOnce(&dyn Fn() -> bool) -> T + Send + 'static,
) -> Result<T, Failure> {
    let permit = Arc::clone(&server.forecasts).try_acquire_owned().map_err(|_| {
        let title = format!("this server makes {FORECASTS_MAX} plans at once, which is its limit");
        Failure::new(StatusCode::TOO_MANY_REQUESTS, title).hint("try again in a moment")
    })?;
    let gone = Gone(Arc::default());
    let (is_gone, stop, began) = (Arc::clone(&gone.0), server.stop.clone(), Instant::now());
    let is_wanted =
        move || !is_gone.load(Ordering::Relaxed) && !*stop.borrow() && began.elapsed() < FORESEES_WITHIN;
    let looked = tokio::task::spawn_blocking(move || {
        let found = look(&is_wanted);
        drop(permit);
        found
    });
    looked.await.map_err(|error| {
        tracing::error!(%error, "a forecast failed");
        Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "the plan could not be made: a bug of this server")
    })
}

/// Whether `manifests` may be made true where room is kept for the loss of any one worker: not when members of groups would
/// have no place then that have one as it is. What groups need for a moment in updates and drains is not looked at.
///
/// # Errors
/// A refusal that says which loss, and what would have no place.
pub(crate) async fn admit(server: &Server, view: &View, manifests: &[Manifest]) -> Result<(), Failure> {
    let needs_room = |manifest: &&Manifest| matches!(manifest.spec, Spec::Vm(_) | Spec::ScaleGroup(_));
    let changes: Vec<Change> = manifests.iter().filter(needs_room).cloned().map(Change::Apply).collect();
    if !server.keeps_room_for_a_loss || changes.is_empty() {
        return Ok(());
    }
    let (view, context) = (view.clone(), context(view, None));
    let look = move |is_wanted: &dyn Fn() -> bool| forecast::worse_loss(&view, &changes, &context, is_wanted);
    let worse = foresee(server, look).await??.ok_or_else(|| {
        let title = format!(
            "whether this leaves room for the loss of a worker was not known within {FORESEES_WITHIN:?}"
        );
        Failure::new(StatusCode::SERVICE_UNAVAILABLE, title).hint("try again, or ask for less at once")
    })?;
    let Some(Loss { worker, homeless, because, .. }) = worse else { return Ok(()) };
    let title = format!(
        "this would leave no room for the loss of worker/{worker}: {homeless} members of groups would have no place"
    );
    let hint = "ask for less, or add a worker; `lightbyte status` says what is left";
    Err(Failure::new(StatusCode::CONFLICT, title).details(because).hint(hint))
}

/// Reads what is supposed; manifests are checked as `apply` checks them.
fn read(asked: Foresee) -> Result<Vec<Change>, Failure> {
    if asked.changes.len() > DOCUMENTS_MAX {
        let title =
            format!("the plan has {} changes, at most {DOCUMENTS_MAX} go together", asked.changes.len());
        return Err(Failure::new(StatusCode::PAYLOAD_TOO_LARGE, title));
    }
    let documents = asked.changes.iter().filter_map(|change| match change {
        Supposed::Apply(document) => Some(document.clone()),
        Supposed::Delete(_) | Supposed::Lose(_) | Supposed::Rollout { .. } => None,
    });
    let manifests: Vec<Manifest> = read_all(&documents.collect::<Vec<Value>>())?;
    let mut manifests = manifests.into_iter();
    let mut changes = Vec::with_capacity(asked.changes.len());
    for change in asked.changes {
        changes.push(match change {
            // There is one for each, or reading them would have failed.
            Supposed::Apply(_) => match manifests.next() {
                Some(manifest) => Change::Apply(manifest),
                None => continue,
            },
            Supposed::Delete(object) => Change::Delete(object),
            Supposed::Lose(worker) if worker.kind != Kind::Worker => {
                return Err(Failure::bad(format!("{worker} cannot be lost: only workers can")));
            }
            Supposed::Lose(worker) => Change::Lose(worker),
            Supposed::Rollout { group, step } => Change::Rollout(group, step),
        });
    }
    Ok(changes)
}
