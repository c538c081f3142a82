//! What a proxy on this host would do with a request, asked of it when a server asks.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use lightbyte_api::explain::{Explained, QUESTION_BYTES_MAX, Question};
use lightbyte_api::{Uid, VmId};
use lightbyte_link::Problem;
use lightbyte_vmm::{DriverError, Drivers, explain};
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

/// How long a guest's agent may take.
const GUEST_WITHIN: Duration = Duration::from_secs(2);
/// How long one waits for its turn: with that less than a server waits.
const TURN_WITHIN: Duration = Duration::from_millis(800);
/// How many are asked at once; each holds a thread.
const QUESTIONS_AT_ONCE_MAX: usize = 8;

struct Asker {
    drivers: Drivers,
    places: Arc<Semaphore>,
}

pub(crate) fn router(drivers: Drivers) -> Router {
    let asker = Asker { drivers, places: Arc::new(Semaphore::new(QUESTIONS_AT_ONCE_MAX)) };
    Router::new()
        .route("/v1/vms/{uid}/explain", post(ask))
        .layer(DefaultBodyLimit::max(QUESTION_BYTES_MAX))
        .with_state(Arc::new(asker))
}

/// `POST /v1/vms/UID/explain`
async fn ask(
    State(asker): State<Arc<Asker>>,
    Path(uid): Path<String>,
    Json(question): Json<Question>,
) -> Result<Json<Explained>, Problem> {
    let uid: Uid =
        uid.parse().map_err(|_| Problem::new(StatusCode::BAD_REQUEST, format!("`{uid}` is no uid")))?;
    let place = timeout(TURN_WITHIN, Arc::clone(&asker.places).acquire_owned()).await;
    let Ok(Ok(place)) = place else {
        let title = format!("this worker asks {QUESTIONS_AT_ONCE_MAX} proxies already, which is its limit");
        return Err(Problem::new(StatusCode::TOO_MANY_REQUESTS, title));
    };
    let drivers = asker.drivers.clone();
    let asked = spawn_blocking(move || {
        let explained = explain(drivers.guest.as_ref(), VmId::new(uid), &question, GUEST_WITHIN);
        // It is the thread that counts, whether somebody still waits for it or not.
        drop(place);
        explained
    });
    match asked.await {
        Ok(Ok(explained)) => Ok(Json(explained)),
        Ok(Err(DriverError::Refused(reason))) => Err(Problem::new(StatusCode::CONFLICT, reason)),
        Ok(Err(error)) => Err(Problem::new(StatusCode::BAD_GATEWAY, error.chain())),
        Err(panic) => Err(Problem::new(StatusCode::BAD_GATEWAY, format!("the driver failed: {panic}"))),
    }
}
