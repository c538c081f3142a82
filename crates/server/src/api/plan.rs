//! Plans: what changes would do, from the deciders themselves. Nothing is written.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::StatusCode;
use lightbyte_api::manifest::DOCUMENTS_MAX;
use lightbyte_api::wire::{Foresee, Supposed};
use lightbyte_api::{Kind, Manifest};
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
    let permit = Arc::clone(&server.forecasts).try_acquire_owned().map_err(|_| {
        let title = format!("this server makes {FORECASTS_MAX} plans at once, which is its limit");
        Failure::new(StatusCode::TOO_MANY_REQUESTS, title).hint("try again in a moment")
    })?;
    let boot = forecast::boot_estimate(&view);
    let context = Context { now: now.unwrap_or_else(clock::now), fresh: clock::fresh(), boot };
    let revision = view.revision();
    let gone = Gone(Arc::default());
    let (is_gone, stop, began) = (Arc::clone(&gone.0), server.stop.clone(), Instant::now());
    let is_wanted =
        move || !is_gone.load(Ordering::Relaxed) && !*stop.borrow() && began.elapsed() < FORESEES_WITHIN;
    let foreseen = tokio::task::spawn_blocking(move || {
        let foreseen = forecast::forecast(&view, &changes, &context, &is_wanted);
        drop(permit);
        foreseen
    });
    let foreseen = foreseen.await.map_err(|error| {
        tracing::error!(%error, "a forecast failed");
        Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "the plan could not be made: a bug of this server")
    })?;
    Ok(Answer::at(revision, foreseen?))
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
        Supposed::Delete(_) | Supposed::Lose(_) => None,
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
        });
    }
    Ok(changes)
}
