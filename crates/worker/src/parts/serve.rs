//! Parts for other workers, and how far this one's fetches are.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use axum::routing::get;
use axum::{Json, Router};
use lightbyte_api::parts::Fetch;
use lightbyte_api::wire::List;
use lightbyte_link::{Problem, file};
use lightbyte_vmm::DriverError;
use lightbyte_vmm::parts::is_digest;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::{Store, lock};

/// How many parts are sent at once; more would only make each slower.
const SENT_AT_ONCE_MAX: usize = 16;
/// How long the check of a part may hold up its answer. It goes on, and who asks later finds it done.
const CHECKED_WITHIN: Duration = Duration::from_secs(2);

/// What the handlers share. A worker without parts has none to give, and fetches none.
struct Served {
    store: Option<Arc<Store>>,
    places: Arc<Semaphore>,
}

/// The paths for parts.
pub(crate) fn router(store: Option<Arc<Store>>) -> Router {
    let places = Arc::new(Semaphore::new(SENT_AT_ONCE_MAX));
    Router::new()
        .route("/v1/parts/{sha256}", get(part))
        .route("/v1/fetches", get(fetches))
        .with_state(Arc::new(Served { store, places }))
}

/// `GET /v1/parts/SHA256`
async fn part(
    State(served): State<Arc<Served>>,
    Path(sha256): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let not_here = || Problem::new(StatusCode::NOT_FOUND, "this worker does not have this part");
    let store = served.store.clone().filter(|_| is_digest(&sha256)).ok_or_else(not_here)?;
    let place = Arc::clone(&served.places).try_acquire_owned();
    let place = place.map_err(|_| {
        Problem::new(StatusCode::TOO_MANY_REQUESTS, "this worker sends as many parts as it may")
    })?;
    let opened = async move { store.ask(move |parts| parts.open(&sha256)).await };
    match timeout(CHECKED_WITHIN, tokio::spawn(opened)).await {
        Ok(Ok(Ok(Some(found)))) => file::answer(found, &headers, place),
        Ok(Ok(Ok(None))) => Err(not_here()),
        Ok(Ok(Err(error))) => {
            Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, DriverError::chain(&error)))
        }
        Ok(Err(panic)) => Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, panic.to_string())),
        Err(_) => Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the part is being checked")),
    }
}

/// `GET /v1/fetches`
async fn fetches(State(served): State<Arc<Served>>) -> Json<List<Fetch>> {
    let items = served.store.iter().flat_map(|store| {
        let progress = lock(&store.progress);
        progress.iter().map(|(part, progress)| progress.told(part)).collect::<Vec<_>>()
    });
    Json(List { items: items.collect() })
}
