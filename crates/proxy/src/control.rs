//! How the proxy is told and asked: HTTP on a Unix socket that only its owner may open.
//!
//! | | |
//! |---|---|
//! | `PUT /topology` | a sealed topology; 200 with its revision once it is on disk and holds |
//! | `POST /explain` | a request; where it would go, and why |
//! | `PUT /leaving/10.77.0.40/30000` | leave this address within so many milliseconds; whether it is left |
//! | `DELETE /leaving` | leave none |
//! | `GET /status` | what holds, requests in flight, health |
//! | `GET /metrics` | counters, as text |

mod report;

use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

use crate::disk::SEALED_BYTES_MAX;
use crate::explain::explain;
use crate::say::say;
use crate::state::{NotApplied, State};

/// Before the address that is to be left.
const LEAVING: &str = "/leaving/";

/// Connections at once. The agent needs one.
const CONNECTIONS_MAX: usize = 16;

/// How long a peer may take to send a request's head, and then its body.
const HEAD_MAX: Duration = Duration::from_secs(10);
const BODY_MAX: Duration = Duration::from_secs(30);

/// Pause after a failed accept, which otherwise could repeat at once for ever (no descriptors left).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Listens on the socket. One that an earlier process left behind is replaced.
///
/// # Errors
/// If it cannot be made, or something else than a socket stands there.
pub(crate) fn bind(path: &Path) -> anyhow::Result<UnixListener> {
    use std::os::unix::fs::FileTypeExt as _;
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory).context("make the socket's directory")?;
    }
    match std::fs::symlink_metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => {
            std::fs::remove_file(path).context("remove the old socket")?;
        }
        Ok(_) => anyhow::bail!("{} is not a socket", path.display()),
        Err(_) => {}
    }
    let listener = UnixListener::bind(path).context("listen on the control socket")?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
        .context("close the socket to others")?;
    Ok(listener)
}

/// Serves for ever.
pub(crate) async fn serve(state: Arc<State>, listener: UnixListener) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let state = state.clone();
                tokio::spawn(async move {
                    connection(state, stream).await;
                    drop(place);
                });
            }
            Err(error) => {
                say(format_args!("accept on the control socket: {error}"));
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(state: Arc<State>, stream: UnixStream) {
    let service = service_fn(move |request| {
        let state = state.clone();
        async move { Ok::<_, std::convert::Infallible>(answer(&state, request).await) }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_MAX);
    // A peer that breaks off is no news.
    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
}

async fn answer(state: &Arc<State>, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let (parts, body) = request.into_parts();
    match (&parts.method, parts.uri.path()) {
        (&Method::PUT, "/topology") => match read(body).await {
            Ok(sealed) => apply(state, sealed).await,
            Err(refused) => refused,
        },
        (&Method::POST, "/explain") => match read(body).await {
            Ok(question) => explained(state, &question),
            Err(refused) => refused,
        },
        (&Method::DELETE, "/leaving") => leave(state, None),
        (&Method::PUT, path) if path.starts_with(LEAVING) => match left_by(&path[LEAVING.len()..]) {
            Some(left) => leave(state, Some(left)),
            None => refuse(StatusCode::BAD_REQUEST, "no IPv4 address and time"),
        },
        (&Method::GET, "/status") => with_json(StatusCode::OK, &report::status(state)),
        (&Method::GET, "/metrics") => with_text(report::metrics(state)),
        _ => refuse(StatusCode::NOT_FOUND, "no such thing here"),
    }
}

/// `10.77.0.40/30000`.
fn left_by(text: &str) -> Option<(Ipv4Addr, Duration)> {
    let (address, within_ms) = text.split_once('/')?;
    Some((address.parse().ok()?, Duration::from_millis(within_ms.parse().ok()?)))
}

fn leave(state: &State, address: Option<(Ipv4Addr, Duration)>) -> Response<Full<Bytes>> {
    with_json(StatusCode::OK, &json!({"left": state.listeners.shared().leaving.leave(address)}))
}

async fn read(body: Incoming) -> Result<Bytes, Response<Full<Bytes>>> {
    let whole = Limited::new(body, SEALED_BYTES_MAX).collect();
    match tokio::time::timeout(BODY_MAX, whole).await {
        Ok(Ok(whole)) => Ok(whole.to_bytes()),
        Ok(Err(_)) => Err(refuse(StatusCode::PAYLOAD_TOO_LARGE, "a body that is too large or broke off")),
        Err(_) => Err(refuse(StatusCode::REQUEST_TIMEOUT, "a body that does not come")),
    }
}

async fn apply(state: &Arc<State>, sealed: Bytes) -> Response<Full<Bytes>> {
    // In a task of its own: a peer that breaks off in the middle must not leave half of it done.
    let applying = tokio::spawn({
        let state = state.clone();
        async move { state.apply(sealed).await }
    });
    match applying.await {
        Ok(Ok(revision)) => with_json(StatusCode::OK, &json!({"revision": revision})),
        Ok(Err(error)) => {
            let status = match &error {
                NotApplied::Bad(_) => StatusCode::UNPROCESSABLE_ENTITY,
                NotApplied::Older { .. } | NotApplied::Another(_) => StatusCode::CONFLICT,
                NotApplied::NotHere(_) => StatusCode::SERVICE_UNAVAILABLE,
            };
            refuse(status, &error.to_string())
        }
        Err(_) => refuse(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the topology made the proxy panic; the former one holds",
        ),
    }
}

fn explained(state: &State, question: &[u8]) -> Response<Full<Bytes>> {
    let read = serde_json::from_slice(question).map_err(|error| format!("no question: {error}"));
    let answer = read.and_then(|question| explain(&state.table.load(), &question));
    match answer.map(|answer| serde_json::to_value(answer).unwrap_or_default()) {
        Ok(answer) => with_json(StatusCode::OK, &answer),
        Err(reason) => refuse(StatusCode::BAD_REQUEST, &reason),
    }
}

fn refuse(status: StatusCode, reason: &str) -> Response<Full<Bytes>> {
    with_json(status, &json!({"error": reason}))
}

fn with_json(status: StatusCode, value: &serde_json::Value) -> Response<Full<Bytes>> {
    let mut response = with_text(value.to_string());
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    response
}

fn with_text(text: String) -> Response<Full<Bytes>> {
    Response::new(Full::new(Bytes::from(text)))
}
