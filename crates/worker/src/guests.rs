//! What an agent serves: the way into the guests of this host, for servers, and parts of images (see `parts`) and disks (see
//! `disks`) for others. Bytes go both ways, and nothing of them is kept or looked at.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::{Path, Query, Request, State};
use axum::http::header::{CONNECTION, CONTENT_TYPE, HOST, UPGRADE};
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::Bytes;
use futures::stream;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use lightbyte_api::assigned::HostObject;
use lightbyte_api::wire::EndedVm;
use lightbyte_api::{Kind, Name, Uid, VmId};
use lightbyte_guest::protocol::{self, AGENT_PORT, BODY_BYTES_MAX, CONSOLE_PROTOCOL, EXEC_PROTOCOL};
use lightbyte_link::{Listener, Problem};
use lightbyte_vmm::{ConsoleFrom, DriverError, Drivers};
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, copy, sink, split};
use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};

/// How many streams into guests are open at once; each holds two connections.
const STREAMS_MAX: usize = 256;
/// How long a guest may take to accept a connection, and to begin its answer.
const GUEST_WITHIN: Duration = Duration::from_secs(5);
/// The most of a console that is read at once: twice what is kept of one.
const READING_BYTES_MAX: u64 = 4 << 20;
/// How often a followed console is looked at: nothing tells of what a guest writes.
const CONSOLE_LOOK_PERIOD: Duration = Duration::from_millis(200);
/// How long a server may take to end a connection whose guest's side has ended.
const LINGER_MAX: Duration = Duration::from_secs(5);
/// How long a side that must take what it is sent may take nothing.
const STALL_MAX: Duration = Duration::from_secs(15);
/// How much is carried at once.
const CHUNK_BYTES: usize = 16 << 10;
/// The largest answer of a guest's agent that says what is wrong.
const PROBLEM_BYTES_MAX: usize = 16 << 10;

/// What the handlers share.
struct Guests {
    drivers: Drivers,
    places: Arc<Semaphore>,
    /// The VMs whose console is open: it is one line, and two who type at it would not understand each other.
    consoles: Mutex<BTreeSet<VmId>>,
}

/// Serves until it is dropped.
pub(crate) async fn serve(drivers: Drivers, parts: Router, listener: Listener) {
    let places = Arc::new(Semaphore::new(STREAMS_MAX));
    let disks = crate::disks::router(Arc::clone(&drivers.disks));
    let usage = crate::usage::router(drivers.clone());
    let proxies = crate::proxies::router(drivers.clone());
    let guests = Arc::new(Guests { drivers, places, consoles: Mutex::default() });
    let router = Router::new()
        .route("/v1/vms/{uid}/exec", post(exec))
        .route("/v1/vms/{uid}/console", post(console))
        .route("/v1/vms/{uid}/logs", get(logs))
        .route("/v1/ended/{name}", get(ended))
        .with_state(guests)
        .merge(disks)
        .merge(usage)
        .merge(proxies)
        .merge(parts)
        .fallback(unknown_path)
        .layer(axum::middleware::from_fn(lightbyte_link::guard::keep_pages_out));
    if let Err(error) = axum::serve(listener, router).await {
        tracing::error!(%error, "the listener failed: nobody gets into the guests of this host");
    }
}

async fn unknown_path(uri: Uri) -> Problem {
    Problem::new(StatusCode::NOT_FOUND, format!("there is nothing at `{}`", uri.path()))
}

/// The VM that a path names.
fn vm(Path(uid): Path<String>) -> Result<VmId, Problem> {
    let uid = uid.parse::<Uid>();
    uid.map(VmId::new).map_err(|error| Problem::new(StatusCode::BAD_REQUEST, error.to_string()))
}

impl Guests {
    fn place(&self) -> Result<OwnedSemaphorePermit, Problem> {
        Arc::clone(&self.places).try_acquire_owned().map_err(|_| {
            let title = format!("this worker has {STREAMS_MAX} streams into guests open, which is its limit");
            Problem::new(StatusCode::TOO_MANY_REQUESTS, title)
        })
    }

    /// Asks a driver on a thread where it may block.
    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Drivers) -> Result<T, DriverError> + Send + 'static,
    ) -> Result<T, Problem> {
        let drivers = self.drivers.clone();
        match tokio::task::spawn_blocking(move || question(&drivers)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(DriverError::Refused(reason))) => Err(Problem::new(StatusCode::CONFLICT, reason)),
            Ok(Err(error)) => Err(Problem::new(StatusCode::BAD_GATEWAY, error.chain())),
            Err(panic) => Err(Problem::new(StatusCode::BAD_GATEWAY, format!("the driver failed: {panic}"))),
        }
    }
}

// ------------------------------------------------------------------------------------------------------------ exec

/// `POST /v1/vms/UID/exec`: what the guest's agent serves under the same name.
async fn exec(
    State(guests): State<Arc<Guests>>,
    path: Path<String>,
    mut request: Request,
) -> Result<Response, Problem> {
    let vm = vm(path)?;
    must_upgrade(&request, EXEC_PROTOCOL)?;
    let server = hyper::upgrade::on(&mut request);
    let too_slow = |_| Problem::new(StatusCode::REQUEST_TIMEOUT, "the command did not come in time");
    let too_large = |_| Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "the command is too long");
    let body =
        timeout(GUEST_WITHIN, to_bytes(request.into_body(), BODY_BYTES_MAX)).await.map_err(too_slow)?;
    let body = body.map_err(too_large)?;
    let place = guests.place()?;
    let stream = guests.ask(move |drivers| drivers.guest.connect(vm, AGENT_PORT, GUEST_WITHIN)).await?;
    let answer = timeout(GUEST_WITHIN, ask_guest(stream, body)).await;
    let answer = answer.map_err(|_| silent("it is too slow"))?.map_err(|error| silent(&error.to_string()))?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(words_of(answer).await);
    }
    let guest = hyper::upgrade::on(answer);
    tokio::spawn(async move {
        if let (Ok(server), Ok(guest)) = (server.await, guest.await) {
            // Whoever reads what a command says may take his time, as with a pager.
            relay(TokioIo::new(server), TokioIo::new(guest), None).await;
        }
        drop(place);
    });
    Ok(upgrades(EXEC_PROTOCOL))
}

fn must_upgrade(request: &Request, protocol: &str) -> Result<(), Problem> {
    match request.headers().get(UPGRADE) {
        Some(found) if found == protocol => Ok(()),
        _ => Err(Problem::new(StatusCode::UPGRADE_REQUIRED, format!("upgrade to {protocol}"))),
    }
}

fn upgrades(protocol: &'static str) -> Response {
    let head = [(CONNECTION, "upgrade"), (UPGRADE, protocol)];
    (StatusCode::SWITCHING_PROTOCOLS, head, Body::empty()).into_response()
}

/// Carries bytes both ways until either side ends. The server's end ends the guest's; the guest's is told to the server,
/// whose own end is then waited for: a connection that is closed with something unread in it loses what it sent last.
/// A guest that takes nothing ends it after [`STALL_MAX`], and a server after `server_stall`: a console must be read,
/// or its guest waits.
async fn relay(
    server: impl AsyncRead + AsyncWrite + Send + 'static,
    guest: impl AsyncRead + AsyncWrite + Send + 'static,
    server_stall: Option<Duration>,
) {
    let (mut from_server, mut to_server) = split(server);
    let (from_guest, to_guest) = split(guest);
    let up = async {
        if carry(&mut from_server, to_guest, Some(STALL_MAX)).await.is_err() {
            // The guest takes nothing any more, and may still have something to say.
            let _ = copy(&mut from_server, &mut sink()).await;
        }
    };
    let down = async {
        // An end that is an error is an end.
        let _ = carry(from_guest, &mut to_server, server_stall).await;
        let _ = timeout(LINGER_MAX, to_server.shutdown()).await;
    };
    tokio::pin!(up);
    tokio::select! {
        () = &mut up => {}
        () = down => drop(timeout(LINGER_MAX, up).await),
    }
}

/// Carries bytes one way until their end. Each write is over after `stall`.
async fn carry(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    stall: Option<Duration>,
) -> std::io::Result<()> {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let bytes = from.read(&mut chunk).await?;
        if bytes == 0 {
            return Ok(());
        }
        let write = async {
            to.write_all(&chunk[..bytes]).await?;
            to.flush().await
        };
        match stall {
            Some(stall) => timeout(stall, write).await??,
            None => write.await?,
        }
    }
}

fn silent(why: &str) -> Problem {
    Problem::new(StatusCode::BAD_GATEWAY, format!("the guest's agent does not answer: {why}"))
}

/// Asks the guest's agent to run a command.
async fn ask_guest(
    stream: std::os::unix::net::UnixStream,
    body: Bytes,
) -> Result<hyper::Response<hyper::body::Incoming>, Box<dyn std::error::Error + Send + Sync>> {
    stream.set_nonblocking(true)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(UnixStream::from_std(stream)?)).await?;
    // What goes wrong with it shows in the exchange.
    tokio::spawn(async move { drop(connection.with_upgrades().await) });
    let request = hyper::Request::builder()
        .method(Method::POST)
        .uri("/v1/exec")
        .header(HOST, "guest")
        .header(CONNECTION, "upgrade")
        .header(UPGRADE, EXEC_PROTOCOL)
        .body(Full::new(body))?;
    Ok(sender.send_request(request).await?)
}

/// What the guest's agent says instead of running a command. A guest is hostile: its words are cut and its status is
/// believed only where it means a mistake of the caller.
async fn words_of(answer: hyper::Response<hyper::body::Incoming>) -> Problem {
    let status = if answer.status().is_client_error() { answer.status() } else { StatusCode::BAD_GATEWAY };
    let body = timeout(GUEST_WITHIN, Limited::new(answer.into_body(), PROBLEM_BYTES_MAX).collect()).await;
    let words: protocol::Problem = match body {
        Ok(Ok(body)) => serde_json::from_slice(&body.to_bytes()).unwrap_or_default(),
        _ => protocol::Problem::default(),
    };
    let text: String = words.error.chars().filter(|character| !character.is_control()).collect();
    Problem::new(status, if text.is_empty() { "the guest's agent refuses it".to_owned() } else { text })
}

// --------------------------------------------------------------------------------------------------------- console

/// A console that is open; when it is dropped another may be.
struct OpenConsole {
    guests: Arc<Guests>,
    vm: VmId,
}

impl OpenConsole {
    fn begin(guests: &Arc<Guests>, vm: VmId) -> Result<OpenConsole, Problem> {
        match guests.consoles().insert(vm) {
            true => Ok(OpenConsole { guests: Arc::clone(guests), vm }),
            false => {
                Err(Problem::new(StatusCode::CONFLICT, "its console is open elsewhere, and is one line"))
            }
        }
    }
}

impl Drop for OpenConsole {
    fn drop(&mut self) {
        self.guests.consoles().remove(&self.vm);
    }
}

impl Guests {
    fn consoles(&self) -> MutexGuard<'_, BTreeSet<VmId>> {
        // The set is whole at every moment, whoever panicked.
        self.consoles.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `POST /v1/vms/UID/console`: the guest's serial line.
async fn console(
    State(guests): State<Arc<Guests>>,
    path: Path<String>,
    mut request: Request,
) -> Result<Response, Problem> {
    let vm = vm(path)?;
    must_upgrade(&request, CONSOLE_PROTOCOL)?;
    let (place, open) = (guests.place()?, OpenConsole::begin(&guests, vm)?);
    let stream = guests.ask(move |drivers| drivers.guest.open_console(vm)).await?;
    let lost = |error: std::io::Error| silent(&error.to_string());
    stream.set_nonblocking(true).map_err(lost)?;
    let stream = UnixStream::from_std(stream).map_err(lost)?;
    let server = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        if let Ok(server) = server.await {
            relay(TokioIo::new(server), stream, Some(STALL_MAX)).await;
        }
        drop((place, open));
    });
    Ok(upgrades(CONSOLE_PROTOCOL))
}

// ------------------------------------------------------------------------------------------------------------ logs

/// What of a console is asked for.
#[derive(Deserialize)]
struct Wanted {
    /// How many of the last lines to begin with; all that are kept when not said.
    lines: Option<usize>,
    /// Whether to go on with what is still to come.
    #[serde(default)]
    follow: bool,
    /// Only the life of the machine before the last one.
    #[serde(default)]
    previous: bool,
}

/// A console that is read.
struct Reading {
    guests: Arc<Guests>,
    vm: VmId,
    position: u64,
    follow: bool,
    /// What was read already.
    ready: Vec<u8>,
    _place: OwnedSemaphorePermit,
}

/// `GET /v1/vms/UID/logs`: what the guest wrote to its console.
async fn logs(
    State(guests): State<Arc<Guests>>,
    path: Path<String>,
    Query(wanted): Query<Wanted>,
) -> Result<Response, Problem> {
    let vm = vm(path)?;
    if wanted.previous && wanted.follow {
        return Err(Problem::new(StatusCode::BAD_REQUEST, "what is over cannot be followed"));
    }
    let _place = guests.place()?;
    let mut reading = Reading { guests, vm, position: 0, follow: wanted.follow, ready: Vec::new(), _place };
    let end = match wanted.previous {
        false => reading.end().await?,
        true => {
            let life = reading.guests.ask(move |drivers| drivers.guest.previous_life(vm)).await?;
            reading.position = life.start;
            life.end.min(reading.end().await?)
        }
    };
    reading.begin(wanted.lines, end).await?;
    let body = stream::unfold(reading, |mut reading| async move {
        Some((Ok::<_, Infallible>(reading.next().await?), reading))
    });
    Ok(([(CONTENT_TYPE, "application/octet-stream")], Body::from_stream(body)).into_response())
}

/// `GET /v1/ended/NAME`: the newest VM of that name that is no more, if what it said is kept.
async fn ended(
    State(guests): State<Arc<Guests>>,
    Path(name): Path<String>,
) -> Result<Json<Option<EndedVm>>, Problem> {
    let name: Name = name
        .parse()
        .map_err(|error| Problem::new(StatusCode::BAD_REQUEST, format!("`{name}` is no name: {error}")))?;
    Ok(Json(guests.ask(move |drivers| drivers.guest.ended(&name)).await?))
}

impl Reading {
    /// Reads all that is kept now, which is two MiB at the most, and leaves the last `lines` of it. What a guest adds
    /// meanwhile comes when it is followed: one that writes all the time would never end.
    async fn begin(&mut self, lines: Option<usize>, end: u64) -> Result<(), Problem> {
        // More than that is there only of a console that nobody has cut yet.
        self.position = self.position.max(end.saturating_sub(READING_BYTES_MAX));
        let mut kept = Vec::new();
        while self.position < end {
            let bytes = self.read().await?;
            if bytes.is_empty() {
                break;
            }
            // The beginning may not be kept any more, and the last chunk goes further.
            let begin = self.position - bytes.len() as u64;
            let wanted = usize::try_from(end.saturating_sub(begin)).unwrap_or(usize::MAX);
            kept.extend(bytes.into_iter().take(wanted));
        }
        let begin = lines.map_or(0, |lines| begin_of_last_lines(&kept, lines));
        self.ready = kept.split_off(begin);
        Ok(())
    }

    /// Where the console ends now.
    async fn end(&self) -> Result<u64, Problem> {
        let (vm, nothing) = (self.vm, ConsoleFrom::Last(0));
        Ok(self.guests.ask(move |drivers| drivers.guest.read_console(vm, nothing)).await?.next())
    }

    async fn read(&mut self) -> Result<Vec<u8>, Problem> {
        let (vm, from) = (self.vm, ConsoleFrom::Position(self.position));
        let chunk = self.guests.ask(move |drivers| drivers.guest.read_console(vm, from)).await?;
        self.position = chunk.next();
        Ok(chunk.bytes)
    }

    /// The next bytes; `None` at the end, which a followed console has when its VM is gone.
    async fn next(&mut self) -> Option<Bytes> {
        if !self.ready.is_empty() {
            return Some(std::mem::take(&mut self.ready).into());
        }
        while self.follow {
            match self.read().await {
                Ok(bytes) if !bytes.is_empty() => return Some(bytes.into()),
                Ok(_) if self.is_gone().await => return None,
                Ok(_) => sleep(CONSOLE_LOOK_PERIOD).await,
                Err(problem) => {
                    tracing::warn!(vm = %self.vm, "a console cannot be followed: {}", problem.title);
                    return None;
                }
            }
        }
        None
    }

    /// Whether nothing of the VM is left here. What cannot be told is not gone.
    async fn is_gone(&self) -> bool {
        let object = HostObject { kind: Kind::Vm, uid: self.vm.uid() };
        matches!(self.guests.ask(move |drivers| drivers.records.load(object)).await, Ok(None))
    }
}

/// Where the last `lines` lines of a text begin.
fn begin_of_last_lines(text: &[u8], lines: usize) -> usize {
    // A line end at the very end ends the last line, and begins none.
    let body = text.strip_suffix(b"\n").unwrap_or(text);
    let ends = body.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n').map(|(index, _)| index + 1);
    match lines {
        0 => text.len(),
        lines => ends.into_iter().nth(lines - 1).unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_found() {
        let check = |text: &str, lines: usize, expect: &str| {
            assert_eq!(&text[begin_of_last_lines(text.as_bytes(), lines)..], expect, "{lines} of {text:?}");
        };
        check("a\nb\nc\n", 2, "b\nc\n");
        check("a\nb\nc", 2, "b\nc");
        check("a\nb\n", 5, "a\nb\n");
        check("a\n\n", 1, "\n");
        check("a\nb\n", 0, "");
        check("", 3, "");
    }
}
