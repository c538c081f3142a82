//! The agent's HTTP API.

use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use http_body_util::{BodyExt, Either, Empty, Full, Limited};
use hyper::body::{Body, Bytes, Incoming};
use hyper::header::{CONNECTION, CONTENT_TYPE, UPGRADE};
use hyper::{Method, Request, Response, StatusCode};
use lightbyte_guest::protocol::{
    BODY_BYTES_MAX, Check, EXEC_PROTOCOL, Exec, FREEZE_MS_MAX, Freeze, Frozen, Identity, PROXY_ANSWER_MS_MAX,
    Problem, Shutdown, TOPOLOGY_BYTES_MAX, Thaw, VirtualAddress,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::task::{spawn_blocking, spawn_local};
use tokio::time::timeout;

use crate::agent::Agent;
use crate::proxy::Question;
use crate::relay::Place;
use crate::{becoming, check, exec, freeze, grow, metrics, network, proxy, relay, shutdown};

type Answer = Response<Full<Bytes>>;

/// Answers one request; whatever goes wrong becomes an answer too. A command takes over the place of its connection.
pub(crate) async fn answer(agent: &Rc<Agent>, place: &Place, request: Request<Incoming>) -> Answer {
    let path = request.uri().path().to_owned();
    let result = match (request.method(), path.as_str()) {
        (&Method::GET, "/v1/health") => Ok(json(StatusCode::OK, &serde_json::json!({ "healthy": true }))),
        (&Method::GET, "/v1/info") => Ok(json(StatusCode::OK, &agent.info())),
        (&Method::GET, "/v1/metrics") => Ok(json(StatusCode::OK, &metrics::metrics())),
        (&Method::PUT, "/v1/identity") => identity(agent, request).await,
        (&Method::POST, "/v1/check") => try_health(agent, request).await,
        (&Method::POST, "/v1/exec") => run(agent, place, request).await,
        (&Method::POST, "/v1/shutdown") => stop(agent, request).await,
        (&Method::POST, "/v1/grow") => in_thread(grow::grow).await.map(|grown| json(StatusCode::OK, &grown)),
        (&Method::POST, "/v1/freeze") => freeze(agent, request).await,
        (&Method::POST, "/v1/thaw") => thaw(agent, request).await,
        (&Method::PUT, "/v1/topology") => hand_on(agent, "/topology", request).await,
        (&Method::PUT, "/v1/virtual-address") => virtual_address(agent, request).await,
        (&Method::GET, "/v1/proxy") => get_of_proxy(agent, "/status").await,
        (&Method::POST, "/v1/proxy/explain") => hand_on(agent, "/explain", request).await,
        (&Method::GET, "/v1/proxy/metrics") => get_of_proxy(agent, "/metrics").await,
        _ => Err(problem(StatusCode::NOT_FOUND, "there is nothing here")),
    };
    result.unwrap_or_else(|problem| problem)
}

async fn identity(agent: &Rc<Agent>, request: Request<Incoming>) -> Result<Answer, Answer> {
    let identity: Identity = body(request).await?;
    // A task of its own: a host that breaks off must not leave half of it undone.
    let becoming = {
        let agent = agent.clone();
        spawn_local(async move { becoming::apply(&agent, identity).await })
    };
    becoming
        .await
        .map_err(|error| problem(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()))?
        .map_err(|error| problem(StatusCode::UNPROCESSABLE_ENTITY, &format!("{error:#}")))?;
    Ok(json(StatusCode::OK, &agent.info()))
}

async fn run(agent: &Rc<Agent>, place: &Place, mut request: Request<Incoming>) -> Result<Answer, Answer> {
    let wanted = request.headers().get(UPGRADE).is_some_and(|value| value == EXEC_PROTOCOL);
    if !wanted {
        return Err(problem(StatusCode::UPGRADE_REQUIRED, &format!("upgrade to {EXEC_PROTOCOL}")));
    }
    let upgrade = hyper::upgrade::on(&mut request);
    let command: Exec = body(request).await?;
    let process = exec::start(agent, &command)
        .map_err(|error| problem(StatusCode::UNPROCESSABLE_ENTITY, &format!("{error:#}")))?;
    spawn_local(relay::relay(process, upgrade, place.clone()));
    let answer = Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(CONNECTION, "upgrade")
        .header(UPGRADE, EXEC_PROTOCOL)
        .body(Full::default());
    answer.map_err(|error| problem(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()))
}

async fn try_health(agent: &Rc<Agent>, request: Request<Incoming>) -> Result<Answer, Answer> {
    let wanted: Check = body(request).await?;
    Ok(json(StatusCode::OK, &check::check(agent, &wanted).await))
}

async fn stop(agent: &Rc<Agent>, request: Request<Incoming>) -> Result<Answer, Answer> {
    let how: Shutdown = body(request).await?;
    // Saying it twice starts it once.
    if !agent.shutting_down.replace(true) {
        spawn_local(shutdown::shutdown(agent.clone(), how));
    }
    Ok(json(StatusCode::ACCEPTED, &serde_json::json!({ "shutting_down": true })))
}

async fn freeze(agent: &Rc<Agent>, request: Request<Incoming>) -> Result<Answer, Answer> {
    let wanted: Freeze = body(request).await?;
    if agent.frozen.borrow().as_ref().is_some_and(|frozen| !frozen.is_over()) {
        return Err(problem(StatusCode::CONFLICT, "file systems are frozen already"));
    }
    let time = Duration::from_millis(wanted.for_ms.min(FREEZE_MS_MAX));
    let (token, disks) = (wanted.token.clone(), wanted.disks);
    let _freezing = Freezing::begin(agent);
    let frozen = in_thread(move || freeze::freeze(time, token, &disks))
        .await?
        .map_err(|error| problem(StatusCode::UNPROCESSABLE_ENTITY, &format!("{error:#}")))?;
    if *agent.given_up.borrow() == wanted.token && !wanted.token.is_empty() {
        // Who asked has not waited for it.
        let _ = in_thread(move || frozen.thaw()).await?;
        return Err(problem(StatusCode::CONFLICT, "thawed before it was frozen"));
    }
    let answer = json(StatusCode::OK, &Frozen { file_systems: frozen.count });
    // If two asked at once, the kernel has refused one (EBUSY, ioctl_fifreeze).
    agent.frozen.replace(Some(frozen));
    Ok(answer)
}

/// Says that file systems are about to stand still, until it is dropped: its host may hang up.
struct Freezing<'a>(&'a Agent);

impl Freezing<'_> {
    fn begin(agent: &Agent) -> Freezing<'_> {
        agent.freezes.set(agent.freezes.get().wrapping_add(1));
        agent.freezing.set(agent.freezing.get().saturating_add(1));
        Freezing(agent)
    }
}

impl Drop for Freezing<'_> {
    fn drop(&mut self) {
        self.0.freezing.set(self.0.freezing.get().saturating_sub(1));
    }
}

async fn thaw(agent: &Rc<Agent>, request: Request<Incoming>) -> Result<Answer, Answer> {
    let wanted: Thaw = body(request).await?;
    let is_theirs = agent.frozen.borrow().as_ref().is_some_and(|frozen| frozen.token == wanted.token);
    let frozen = if is_theirs { agent.frozen.take() } else { None };
    let file_systems = match frozen {
        Some(frozen) => in_thread(move || frozen.thaw()).await?,
        None => {
            agent.given_up.replace(wanted.token);
            0
        }
    };
    Ok(json(StatusCode::OK, &Frozen { file_systems }))
}

/// Hands a topology on to the proxy as it stands: what is in it is between the host and the proxy.
async fn hand_on(agent: &Agent, path: &str, request: Request<Incoming>) -> Result<Answer, Answer> {
    let method = request.method().clone();
    let body = request.into_body();
    if body.size_hint().lower() > TOPOLOGY_BYTES_MAX as u64 {
        let error = format!("more than {TOPOLOGY_BYTES_MAX} bytes");
        return Err(problem(StatusCode::PAYLOAD_TOO_LARGE, &error));
    }
    ask_proxy(agent, method, path, Either::Left(Limited::new(body, TOPOLOGY_BYTES_MAX))).await
}

/// The proxy first: one that still leaves the address answers nobody there.
async fn virtual_address(agent: &Agent, request: Request<Incoming>) -> Result<Answer, Answer> {
    let VirtualAddress { address, address6, leaves_within_ms } = body(request).await?;
    let (method, path) = match address.zip(leaves_within_ms) {
        Some((address, within_ms)) => (Method::PUT, format!("/leaving/{address}/{within_ms}")),
        None => (Method::DELETE, "/leaving".to_owned()),
    };
    let said = ask_proxy(agent, method, &path, Either::Right(Empty::new())).await?;
    if !said.status().is_success() {
        return Ok(said);
    }
    let addresses: Vec<IpAddr> =
        address.map(IpAddr::V4).into_iter().chain(address6.map(IpAddr::V6)).collect();
    let identity = agent.identity.borrow();
    let mut has = agent.virtual_addresses.borrow_mut();
    network::set_virtual_addresses(identity.as_ref(), &mut has, &addresses)
        .map_err(|error| problem(StatusCode::SERVICE_UNAVAILABLE, &format!("{error:#}")))?;
    Ok(said)
}

async fn get_of_proxy(agent: &Agent, path: &str) -> Result<Answer, Answer> {
    ask_proxy(agent, Method::GET, path, Either::Right(Empty::new())).await
}

/// Asks the proxy, and gives its answer as it stands, refusals included.
async fn ask_proxy(agent: &Agent, method: Method, path: &str, mut body: Question) -> Result<Answer, Answer> {
    let asking = async {
        match reach_proxy(agent).await {
            Ok(line) => {
                let said = line.ask(method, path, body).await;
                said.map_err(|error| unavailable(&format!("the proxy does not answer: {error:#}")))
            }
            Err(refusal) => {
                // Who is still sending would see a broken connection in the place of the reason.
                while let Some(Ok(_)) = body.frame().await {}
                Err(refusal)
            }
        }
    };
    let said = timeout(Duration::from_millis(PROXY_ANSWER_MS_MAX), asking).await;
    let said =
        said.map_err(|_| unavailable(&format!("no answer of the proxy within {PROXY_ANSWER_MS_MAX} ms")))??;
    let mut answer = Response::new(Full::new(said.body));
    *answer.status_mut() = said.status;
    if let Some(kind) = said.kind {
        answer.headers_mut().insert(CONTENT_TYPE, kind);
    }
    Ok(answer)
}

async fn reach_proxy(agent: &Agent) -> Result<proxy::Line, Answer> {
    if !agent.proxy.exists() {
        let error = "this image has no proxy: load balancers run on the image `proxy`";
        return Err(problem(StatusCode::NOT_FOUND, error));
    }
    if agent.proxy.process().pid.is_none() {
        return Err(unavailable("the proxy does not run"));
    }
    let line = proxy::Line::open(agent.proxy.control()).await;
    line.map_err(|error| unavailable(&format!("the proxy does not answer: {error:#}")))
}

fn unavailable(error: &str) -> Answer {
    problem(StatusCode::SERVICE_UNAVAILABLE, error)
}

/// Runs what waits for disks beside what the agent serves.
async fn in_thread<T: Send + 'static>(deed: impl FnOnce() -> T + Send + 'static) -> Result<T, Answer> {
    spawn_blocking(deed).await.map_err(|error| problem(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()))
}

/// Reads a JSON body; an empty one means the defaults.
async fn body<T: DeserializeOwned>(request: Request<Incoming>) -> Result<T, Answer> {
    let bytes = Limited::new(request.into_body(), BODY_BYTES_MAX)
        .collect()
        .await
        .map_err(|error| problem(StatusCode::PAYLOAD_TOO_LARGE, &error.to_string()))?
        .to_bytes();
    let text: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
    serde_json::from_slice(text).map_err(|error| problem(StatusCode::BAD_REQUEST, &error.to_string()))
}

fn problem(status: StatusCode, error: &str) -> Answer {
    json(status, &Problem { error: error.to_owned() })
}

fn json(status: StatusCode, value: &impl Serialize) -> Answer {
    // Our own types always become JSON.
    let bytes = serde_json::to_vec(value).unwrap_or_default();
    let mut answer = Response::new(Full::new(Bytes::from(bytes)));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static("application/json"));
    answer
}
