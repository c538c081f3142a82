//! Parts of images: taken from people, given to workers, and who else has them. The bytes are on this server's own disk.

use std::sync::Arc;
use std::time::Duration;

use axum::body::to_bytes;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use bytes::Bytes;
use lightbyte_api::kinds::image::Part;
use lightbyte_api::parts::{
    Fetch, PART_BYTES_MAX, PART_CHUNK_BYTES_MAX, PART_SOURCES_MAX, PartSource, PartState, RegisteredParts,
};
use lightbyte_api::wire::List;
use lightbyte_api::{ByteSize, Kind};
use lightbyte_link::{Client, Endpoint, file};
use lightbyte_plan::agent::parts as plan;
use lightbyte_plan::delivery;
use lightbyte_plan::planner::worker_of;
use lightbyte_plan::request::Refusal;
use lightbyte_vmm::parts::{PartError, is_digest};
use lightbyte_vmm::{DriverError, Parts};
use tokio::time::timeout;

use crate::Server;
use crate::api::answer::{Answer, Answered};
use crate::api::caller::Caller;
use crate::api::input::{self, Parameters};
use crate::problem::Failure;

/// How many uploads are worked on at once: each holds a chunk in memory.
pub(crate) const UPLOADS_AT_ONCE_MAX: usize = 8;
/// How long the check of a part may hold up its answer. It goes on, and who asks later finds it done.
const CHECKED_WITHIN: Duration = Duration::from_secs(2);
/// How long a worker may take to say what it fetches: whoever asks waits for it.
const FETCHES_WITHIN: Duration = Duration::from_secs(2);

/// `GET /v1/parts`: the parts of all registered versions, or a refusal: never a list that is not whole.
pub(crate) async fn registered(
    State(server): State<Arc<Server>>,
    parameters: Parameters,
) -> Answered<RegisteredParts> {
    parameters.only(&["min_revision"])?;
    let view = server.view_for(&parameters).await?;
    let unreadable = || {
        let title =
            "an image that is stored cannot be read by this version, so nobody can say which parts it has";
        Failure::unavailable(title, "upgrade this server")
    };
    let (parts, epoch) = plan::registered(&view).zip(delivery::epoch(&view)).ok_or_else(unreadable)?;
    Ok(Answer::at(view.revision(), RegisteredParts { epoch, revision: view.revision(), parts }))
}

/// `GET /v1/parts/SHA256/sources`
pub(crate) async fn sources(
    State(server): State<Arc<Server>>,
    Path(sha256): Path<String>,
    parameters: Parameters,
) -> Answered<List<PartSource>> {
    parameters.only(&["min_revision"])?;
    let sha256 = checksum(sha256)?;
    let view = server.view_for(&parameters).await?;
    let source = |said: &lightbyte_api::ObservedWorker| PartSource {
        worker: said.name.clone(),
        address: said.address.clone(),
    };
    let items = plan::holders(&view, &sha256).take(PART_SOURCES_MAX).map(source).collect();
    Ok(Answer::at(view.revision(), List { items }))
}

/// `GET /v1/parts/SHA256`: its bytes.
pub(crate) async fn get(
    State(server): State<Arc<Server>>,
    Path(sha256): Path<String>,
    headers: HeaderMap,
    parameters: Parameters,
) -> Result<Response, Failure> {
    parameters.only(&[])?;
    let sha256 = checksum(sha256)?;
    let permit = server.stream_permit()?;
    let parts = store(&server)?;
    let opened = tokio::task::spawn_blocking(move || parts.open(&sha256));
    match timeout(CHECKED_WITHIN, opened).await {
        Ok(Ok(Ok(Some(found)))) => file::answer(found, &headers, permit).map_err(Failure),
        Ok(Ok(Ok(None))) => {
            let title = "this server does not have this part";
            Err(Failure::new(StatusCode::NOT_FOUND, title)
                .hint("ask another, or one of the part's `sources`"))
        }
        Ok(Ok(Err(error))) => Err(Failure::new(StatusCode::INTERNAL_SERVER_ERROR, error.chain())),
        Ok(Err(panic)) => Err(Failure::new(StatusCode::INTERNAL_SERVER_ERROR, panic.to_string())),
        Err(_) => Err(Failure::unavailable("the part is being checked", "ask again")),
    }
}

/// `GET /v1/parts/SHA256/state?size=`
pub(crate) async fn state(
    State(server): State<Arc<Server>>,
    Path(sha256): Path<String>,
    parameters: Parameters,
) -> Answered<PartState> {
    parameters.only(&["size"])?;
    let part = part(sha256, &parameters)?;
    let state = on_disk(&server, move |parts| state_of(parts, &part)).await?;
    Ok(answered(&server, state))
}

/// `POST /v1/parts/SHA256?size=&offset=`: the next bytes of a part. Those that do not begin where the last ones ended are
/// not taken; the answer says where to go on. With the last ones the part appears, if its checksum is right.
pub(crate) async fn upload(
    State(server): State<Arc<Server>>,
    caller: Caller,
    Path(sha256): Path<String>,
    parameters: Parameters,
    request: Request,
) -> Answered<PartState> {
    parameters.only(&["size", "offset"])?;
    let part = part(sha256, &parameters)?;
    let offset = parameters.number("offset")?.unwrap_or(0);
    let _place = server.uploads.try_acquire().map_err(|_| {
        let title = format!("this server takes {UPLOADS_AT_ONCE_MAX} uploads at once, which is its limit");
        Failure::new(StatusCode::TOO_MANY_REQUESTS, title).hint("try again in a moment")
    })?;
    let too_large = |_| {
        let title = format!("one request brings at most {PART_CHUNK_BYTES_MAX} bytes of a part");
        Failure::new(StatusCode::PAYLOAD_TOO_LARGE, title).hint("send the part in several")
    };
    let bytes = to_bytes(request.into_body(), PART_CHUNK_BYTES_MAX).await.map_err(too_large)?;
    let state = on_disk(&server, move |parts| take(parts, &part, offset, &bytes)).await?;
    tracing::debug!(%caller, offset, held = state.held, "bytes of a part were taken");
    Ok(answered(&server, state))
}

/// `GET /v1/objects/KIND/NAME/fetches`: what the object's worker fetches now, in its own words.
pub(crate) async fn fetches(
    State(server): State<Arc<Server>>,
    path: Path<(String, String)>,
    parameters: Parameters,
) -> Answered<List<Fetch>> {
    parameters.only(&["min_revision"])?;
    let object = input::object(path)?;
    let view = server.view_for(&parameters).await?;
    view.asked(&object).ok_or_else(|| Refusal::NotFound { object: object.clone() })?;
    let worker = match object.kind {
        Kind::Worker => view.worker_id(&object),
        _ => worker_of(&view, &object),
    };
    let nothing = Answer::at(view.revision(), List { items: Vec::new() });
    // What is nowhere, or on a worker that is away, fetches nothing.
    let Some(worker) = worker.filter(|worker| view.alive(*worker).is_some()) else { return Ok(nothing) };
    let address = view.observed_worker(worker).and_then(|said| Endpoint::of_address(&said.address));
    let Some(endpoint) = address else { return Ok(nothing) };
    let client = Client::new(vec![endpoint]).within(FETCHES_WITHIN);
    let fetches = client.get::<List<Fetch>>("/v1/fetches").await.map_err(|error| {
        Failure::unavailable("the object's worker does not say what it fetches", "see that its agent runs")
            .details([crate::chain(&error)])
    })?;
    Ok(Answer::at(view.revision(), fetches.value))
}

fn answered<T>(server: &Server, value: T) -> Answer<T> {
    // What is on this server's disk is of no revision; the header is on every answer.
    Answer::at(server.follower.view().map_or(0, |view| view.revision()), value)
}

fn checksum(text: String) -> Result<String, Failure> {
    match is_digest(&text) {
        true => Ok(text),
        false => Err(Failure::bad(format!("`{text}` is not a SHA-256 of 64 lower-case hexadecimal digits"))),
    }
}

fn part(sha256: String, parameters: &Parameters) -> Result<Part, Failure> {
    let size = parameters.number("size")?.ok_or_else(|| Failure::bad("`size` says how large the part is"))?;
    if size > PART_BYTES_MAX {
        let title = format!("a part has at most {}", ByteSize::from_bytes(PART_BYTES_MAX));
        return Err(Failure::new(StatusCode::PAYLOAD_TOO_LARGE, title));
    }
    Ok(Part { sha256: checksum(sha256)?, size: ByteSize::from_bytes(size) })
}

fn store(server: &Server) -> Result<Arc<Parts>, Failure> {
    server.parts.clone().ok_or_else(|| {
        Failure::new(StatusCode::CONFLICT, "this server keeps no parts of images")
            .hint("start it with --parts DIR")
    })
}

async fn on_disk<T: Send + 'static>(
    server: &Server,
    deed: impl FnOnce(&Parts) -> Result<T, PartError> + Send + 'static,
) -> Result<T, Failure> {
    let parts = store(server)?;
    match tokio::task::spawn_blocking(move || deed(&parts)).await {
        Ok(done) => done.map_err(|error| failure(&error)),
        Err(panic) => Err(Failure::new(StatusCode::INTERNAL_SERVER_ERROR, panic.to_string())),
    }
}

fn failure(error: &PartError) -> Failure {
    let (status, hint) = match error {
        PartError::NoRoom { .. } => {
            (StatusCode::INSUFFICIENT_STORAGE, "make room there, or ask another server")
        }
        PartError::Wrong { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "send it again from the beginning"),
        PartError::Busy { .. } => (StatusCode::CONFLICT, "wait until that has ended"),
        PartError::System { .. } => (StatusCode::INTERNAL_SERVER_ERROR, "the server's log says more"),
    };
    Failure::new(status, crate::chain(error)).hint(hint)
}

fn state_of(parts: &Parts, part: &Part) -> Result<PartState, PartError> {
    // Checked now: what is registered next must be right.
    let held = parts.has(part)?
        && match parts.checked(part) {
            Ok(_) => true,
            Err(DriverError::Refused(_)) => false,
            Err(error) => return Err(error.into()),
        };
    Ok(PartState { held, received: if held { part.size.bytes() } else { parts.received(&part.sha256) } })
}

fn take(parts: &Parts, part: &Part, offset: u64, bytes: &Bytes) -> Result<PartState, PartError> {
    if parts.has(part)? || parts.take_back(&part.sha256)? {
        let state = state_of(parts, part)?;
        if state.held {
            return Ok(state);
        }
    }
    let mut incoming = parts.receive(part)?;
    if incoming.received() == offset {
        incoming.take(bytes)?;
    }
    let received = incoming.received();
    if !incoming.is_complete() {
        return Ok(PartState { held: false, received });
    }
    incoming.finish()?;
    Ok(PartState { held: true, received })
}
