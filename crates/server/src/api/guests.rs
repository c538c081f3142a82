//! The way from a person to a guest: the worker that has it is asked, and bytes go both ways. Nothing of them is kept or
//! looked at here.
//!
//! ```text
//!   CLI ──WebSocket──> any server ──HTTP upgrade──> worker's agent ──vsock──> guest's agent
//! ```

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse as _, Response};
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt as _, StreamExt as _, stream};
use lightbyte_api::wire::EndedVm;
use lightbyte_api::{ObjectRef, Timestamp, Uid, VmId};
use lightbyte_guest::protocol::{CONSOLE_PROTOCOL, EXEC_PROTOCOL, Exec};
use lightbyte_link::{ByteStream, Client, ClientError, Endpoint, Upgraded};
use lightbyte_plan::View;
use lightbyte_plan::guest::{self, Way};
use lightbyte_plan::request::Refusal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::Server;
use crate::api::caller::Caller;
use crate::api::input::{self, Parameters};
use crate::problem::Failure;

/// How much is carried at once.
const CHUNK_BYTES: usize = 32 << 10;
/// The longest message that a person's side may send: more than a frame of the guest's protocol has.
const MESSAGE_BYTES_MAX: usize = 128 << 10;
/// How often a person who says nothing is asked whether he is still there.
const PING_PERIOD: Duration = Duration::from_secs(20);

/// How long a person's side may take to end a connection whose guest's side has ended.
const LINGER_MAX: Duration = Duration::from_secs(5);

/// How long a worker may take to begin its answer to an upgrade: it waits for the guest twice, five seconds each time.
const UPGRADE_WITHIN: Duration = Duration::from_secs(12);
/// How long a worker may take to say whether it had a VM, how long all of them may, and how many are asked at once: a client
/// waits five seconds.
const ENDED_EACH_WITHIN: Duration = Duration::from_secs(1);
const ENDED_WITHIN: Duration = Duration::from_millis(1_500);
const ENDED_AT_ONCE_MAX: usize = 16;
/// How long a worker may take to begin sending a console: less than a client waits for a read, so that it is told why.
const LOGS_WITHIN: Duration = Duration::from_secs(3);

type Upgrade = Result<WebSocketUpgrade, WebSocketUpgradeRejection>;

/// `GET /v1/objects/vm/NAME/exec`, a WebSocket: runs a command in a guest.
pub(crate) async fn exec(
    State(server): State<Arc<Server>>,
    caller: Caller,
    path: Path<(String, String)>,
    parameters: Parameters,
    upgrade: Upgrade,
) -> Result<Response, Failure> {
    parameters.only(&["command", "env", "directory", "terminal", "rows", "columns", "min_revision"])?;
    let owned = |name| parameters.all(name).map(str::to_owned).collect::<Vec<String>>();
    let size = |name| {
        let number = parameters.number(name)?.unwrap_or(0);
        u16::try_from(number).map_err(|_| Failure::bad(format!("`{name}` is larger than any terminal")))
    };
    let command = Exec {
        argv: owned("command"),
        env: owned("env"),
        cwd: parameters.one("directory").unwrap_or_default().to_owned(),
        terminal: parameters.flag("terminal")?,
        rows: size("rows")?,
        columns: size("columns")?,
    };
    if command.argv.is_empty() {
        return Err(
            Failure::bad("no command is named").hint("name it in `command`, a parameter for each word")
        );
    }
    let way = way_to(&server, path, &parameters).await?;
    tracing::info!(vm = %way.vm, %caller, program = command.argv[0], "a command is run in a guest");
    connect(&server, way, "exec", EXEC_PROTOCOL, &command, upgrade).await
}

/// `GET /v1/objects/vm/NAME/console`, a WebSocket: a guest's serial console.
pub(crate) async fn console(
    State(server): State<Arc<Server>>,
    caller: Caller,
    path: Path<(String, String)>,
    parameters: Parameters,
    upgrade: Upgrade,
) -> Result<Response, Failure> {
    parameters.only(&["min_revision"])?;
    let way = way_to(&server, path, &parameters).await?;
    tracing::info!(vm = %way.vm, %caller, "a console is opened");
    connect(&server, way, "console", CONSOLE_PROTOCOL, &(), upgrade).await
}

/// `GET /v1/objects/vm/NAME/logs`: what a guest wrote to its console.
pub(crate) async fn logs(
    State(server): State<Arc<Server>>,
    path: Path<(String, String)>,
    parameters: Parameters,
) -> Result<Response, Failure> {
    parameters.only(&["lines", "follow", "previous", "min_revision"])?;
    let (lines, follow) = (parameters.number("lines")?, parameters.flag("follow")?);
    let previous = parameters.flag("previous")?;
    if previous && follow {
        let title = "what is over cannot be followed";
        return Err(Failure::new(StatusCode::BAD_REQUEST, title).hint("leave out `follow`"));
    }
    let permit = server.stream_permit()?;
    let object = input::object(path)?;
    let view = server.view_for(&parameters).await?;
    let way = match guest::way_to(&view, &object) {
        Err(Refusal::NotFound { .. }) if previous => ended(&view, &object).await?,
        way => way?,
    };
    let lines = lines.map(|lines| format!("&lines={lines}")).unwrap_or_default();
    let path = format!("/v1/vms/{}/logs?follow={follow}&previous={previous}{lines}", way.vm);
    let source =
        client(&way)?.within(LOGS_WITHIN).bytes(&path).await.map_err(|error| failure(&way, error))?;
    Ok(pass_on(source, permit))
}

/// The way to what a VM said that is no more: only the worker that had it knows, and nothing tells which that was.
async fn ended(view: &View, object: &ObjectRef) -> Result<Way, Failure> {
    let mut answers = stream::iter(guest::all_ways(view))
        .map(|(worker, address)| async move {
            let asked = Way { vm: VmId::new(Uid::from_bits(0)), worker, address };
            let client = client(&asked).ok()?.within(ENDED_EACH_WITHIN);
            let answer = client.get::<Option<EndedVm>>(&format!("/v1/ended/{}", object.name)).await;
            Some(answer.map(|answer| answer.value.map(|EndedVm { vm, at }| (at, Way { vm, ..asked }))))
        })
        .buffer_unordered(ENDED_AT_ONCE_MAX);
    let (mut found, mut silent): (Vec<(Timestamp, Way)>, usize) = (Vec::new(), 0);
    // Those that are not heard in time are as silent as those that fail.
    let until = tokio::time::Instant::now() + ENDED_WITHIN;
    while let Ok(Some(answer)) = tokio::time::timeout_at(until, answers.next()).await {
        match answer {
            Some(Ok(way)) => found.extend(way),
            Some(Err(_)) => silent += 1,
            None => {}
        }
    }
    let newest = found.into_iter().max_by_key(|(at, _)| *at);
    newest.map(|(_, way)| way).ok_or_else(|| {
        let title = format!("`{object}` does not exist, and no worker has kept what one of that name said");
        let failure = Failure::new(StatusCode::NOT_FOUND, title);
        let failure = failure.hint("it is kept for seven days, by the worker that had it");
        match silent {
            0 => failure,
            silent => failure.details([format!("{silent} workers did not answer")]),
        }
    })
}

async fn way_to(
    server: &Server,
    path: Path<(String, String)>,
    parameters: &Parameters,
) -> Result<Way, Failure> {
    let object = input::object(path)?;
    Ok(guest::way_to(&server.view_for(parameters).await?, &object)?)
}

pub(crate) fn client(way: &Way) -> Result<Client, Failure> {
    let endpoint = Endpoint::of_address(&way.address).ok_or_else(|| {
        let title = format!("worker `{}` names no address at which it listens", way.worker);
        Failure::new(StatusCode::CONFLICT, title).hint("start its agent with --listen")
    })?;
    Ok(Client::new(vec![endpoint]))
}

/// What the worker refuses is passed on in its own words.
fn failure(way: &Way, error: ClientError) -> Failure {
    match error {
        ClientError::Refused(problem) => Failure(problem),
        error => {
            let title = format!("worker `{}` does not answer at {}", way.worker, way.address);
            Failure::unavailable(title, "see that its agent runs; `lightbyte status` shows all workers")
                .details([crate::chain(&error)])
        }
    }
}

/// Connects to the guest first, so that whatever is wrong is told as an answer; then to the person.
async fn connect<B: serde::Serialize>(
    server: &Arc<Server>,
    way: Way,
    what: &str,
    protocol: &str,
    body: &B,
    upgrade: Upgrade,
) -> Result<Response, Failure> {
    let upgrade = upgrade.map_err(|error| {
        Failure::new(error.status(), format!("this path is a WebSocket: {}", error.body_text()))
    })?;
    let permit = server.stream_permit()?;
    let path = format!("/v1/vms/{}/{what}", way.vm);
    let guest = client(&way)?
        .within(UPGRADE_WITHIN)
        .upgrade(&path, protocol, body)
        .await
        .map_err(|error| failure(&way, error))?;
    let mut stop = server.stop.clone();
    let upgrade = upgrade.max_message_size(MESSAGE_BYTES_MAX).max_frame_size(MESSAGE_BYTES_MAX);
    Ok(upgrade.on_upgrade(async move |person| {
        tokio::select! {
            () = relay(person, guest) => {}
            _ = stop.wait_for(|stop| *stop) => {}
        }
        drop(permit);
    }))
}

/// Carries bytes both ways until either side ends. The person's end ends everything: what runs in the guest dies with its
/// connection. The guest's is told to the person, whose own end is then waited for: a connection that is closed with
/// something unread in it loses what it sent last.
async fn relay(person: WebSocket, guest: Upgraded) {
    let (to_person, from_person) = person.split();
    let (from_guest, to_guest) = tokio::io::split(guest);
    let up = up(from_person, to_guest);
    tokio::pin!(up);
    tokio::select! {
        () = &mut up => {}
        () = down(from_guest, to_person) => drop(timeout(LINGER_MAX, up).await),
    }
}

async fn down(mut from_guest: ReadHalf<Upgraded>, mut to_person: SplitSink<WebSocket, Message>) {
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut pings = interval(PING_PERIOD);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let message = tokio::select! {
            read = from_guest.read(&mut chunk) => match read {
                Ok(bytes @ 1..) => Message::Binary(chunk[..bytes].to_vec().into()),
                // An end that is an error is an end.
                _ => Message::Close(None),
            },
            _ = pings.tick() => Message::Ping(bytes::Bytes::new()),
        };
        let is_last = matches!(message, Message::Close(_));
        if to_person.send(message).await.is_err() || is_last {
            return;
        }
    }
}

/// Carries what the person says, until he says goodbye.
async fn up(mut from_person: SplitStream<WebSocket>, mut to_guest: WriteHalf<Upgraded>) {
    let mut listens = true;
    while let Some(Ok(message)) = from_person.next().await {
        let bytes = match message {
            Message::Binary(bytes) => bytes,
            Message::Text(text) => text.into(),
            Message::Close(_) => return,
            Message::Ping(_) | Message::Pong(_) => continue,
        };
        // A guest that takes nothing any more may still have something to say.
        listens = listens && to_guest.write_all(&bytes).await.is_ok();
    }
}

/// Passes bytes on as they come.
fn pass_on(source: ByteStream, permit: OwnedSemaphorePermit) -> Response {
    let next = |(mut source, permit): (ByteStream, OwnedSemaphorePermit)| async move {
        match source.next().await {
            Ok(Some(bytes)) => Some((Ok(bytes), (source, permit))),
            Ok(None) => None,
            // An end that is not one: the caller must see that the answer was cut.
            Err(error) => Some((Err(std::io::Error::other(error)), (source, permit))),
        }
    };
    let body = Body::from_stream(stream::unfold((source, permit), next));
    ([(CONTENT_TYPE, "application/octet-stream")], body).into_response()
}
