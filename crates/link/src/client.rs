//! A client of the HTTP API: JSON in and out, lines of JSON for streams, and another server when one is dead.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use http::header::{CONTENT_RANGE, CONTENT_TYPE, ETAG};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::endpoint::{Endpoint, Stream};
use crate::web_socket::WebSocket;

/// How long a connection may take: a dead machine must not cost more than this before another is asked.
pub const CONNECT_WITHIN: Duration = Duration::from_secs(1);
/// How long a server may take to begin its answer. Writes wait for etcd, whose fail-over takes seconds.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(20);
/// How long a server may take to begin its answer to a read. A stopped process still accepts connections, and this is how
/// it is told from one that works; a read is then asked of the next server.
pub const READ_WITHIN: Duration = Duration::from_secs(5);
/// How long all servers together are tried while none can be reached.
pub const RETRY_WITHIN: Duration = Duration::from_secs(5);
/// The pause after all servers were tried once.
const RETRY_PAUSE: Duration = Duration::from_millis(200);
/// The longest answer that is read into memory: a list of ten thousand objects has about this size.
pub const ANSWER_BYTES_MAX: usize = 64 << 20;
/// The longest line of a stream: an inventory of a worker with hundreds of VMs.
pub const LINE_BYTES_MAX: usize = 16 << 20;

/// A problem document (RFC 9457), as servers of ours send them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Problem {
    /// What is wrong, in one sentence.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// More of it, such as each fault of a manifest.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub details: Vec<String>,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl Problem {
    /// A problem with one sentence, without a full stop.
    #[must_use]
    pub fn new(status: StatusCode, title: impl Into<String>) -> Problem {
        Problem { title: title.into(), status: status.as_u16(), ..Problem::default() }
    }
}

/// As an answer of a server; one without a status is the server's own fault.
impl axum::response::IntoResponse for Problem {
    fn into_response(self) -> axum::response::Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        // A problem is plain data; an empty body would only lose its words.
        let body = serde_json::to_vec(&self).unwrap_or_default();
        (status, [(CONTENT_TYPE, "application/problem+json")], body).into_response()
    }
}

/// Why a request has no good answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The server refused, and said why.
    #[error("{}", .0.title)]
    Refused(Problem),
    /// No server could be reached.
    #[error("no server answers: {tried}")]
    Unreachable {
        /// Who was tried, with what each said.
        tried: String,
    },
    /// The connection broke after the request was sent; it may have been carried out.
    #[error("the connection to {endpoint} broke before it answered")]
    Broken {
        /// The server.
        endpoint: Endpoint,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The answer is not what this version expects.
    #[error("{endpoint} gave an answer that this version does not understand")]
    Answer {
        /// The server.
        endpoint: Endpoint,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

impl ClientError {
    /// The status of a refusal.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        match self {
            ClientError::Refused(problem) => Some(problem.status),
            _ => None,
        }
    }
}

/// An answer with what its headers say.
#[derive(Clone, Debug)]
pub struct Response<T> {
    /// What was asked for.
    pub value: T,
    /// The revision of the server's view, if it said so (`Lightbyte-Revision`).
    pub revision: Option<u64>,
    /// What `If-Match` must say so that nobody else's change is overwritten, where there is such a thing (`ETag`).
    pub etag: Option<String>,
}

/// The header that carries the revision of a server's view.
pub const REVISION_HEADER: &str = "lightbyte-revision";

/// The header that says how many milliseconds old a server's view may be, where that is more than a moment.
pub const AGE_HEADER: &str = "lightbyte-age-millis";

/// The header that says what the sender of a request calls himself. Nothing proves it.
pub const WHO_HEADER: &str = "lightbyte-who";

/// What a request carries.
struct Body {
    content_type: &'static str,
    bytes: Bytes,
}

impl Body {
    const NONE: Body = Body { content_type: "application/json", bytes: Bytes::new() };

    fn json<B: Serialize>(body: Option<&B>) -> Body {
        // Plain data always serialises; an empty body would be refused, and say so.
        let bytes = body.and_then(|body| serde_json::to_vec(body).ok()).unwrap_or_default();
        Body { bytes: bytes.into(), ..Body::NONE }
    }
}

/// Knows the servers of one cluster.
#[derive(Clone)]
pub struct Client {
    endpoints: Arc<[Endpoint]>,
    current: Arc<AtomicUsize>,
    /// How old the oldest answer so far may be, in milliseconds.
    oldest_millis: Arc<AtomicU64>,
    answer_within: Duration,
}

impl Client {
    /// A client of these servers.
    #[must_use]
    pub fn new(endpoints: impl Into<Arc<[Endpoint]>>) -> Client {
        Client {
            endpoints: endpoints.into(),
            current: Arc::default(),
            oldest_millis: Arc::default(),
            answer_within: ANSWER_WITHIN,
        }
    }

    /// The same client, for requests that are of no use when they take longer.
    #[must_use]
    pub fn within(&self, answer_within: Duration) -> Client {
        Client { answer_within, ..self.clone() }
    }

    /// How old the oldest answer so far may be, in milliseconds, if any server said so: it does not know whether there is anything
    /// newer.
    #[must_use]
    pub fn oldest_answer_millis(&self) -> Option<u64> {
        Some(self.oldest_millis.load(Ordering::Relaxed)).filter(|millis| *millis > 0)
    }

    /// The servers.
    #[must_use]
    pub fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    /// Leaves the server that was asked last: it answers, and is of no use.
    pub fn leave_server(&self) {
        self.current.fetch_add(1, Ordering::Relaxed);
    }

    /// `GET path`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<Response<T>, ClientError> {
        self.request::<(), T>(Method::GET, path, None, &[]).await
    }

    /// `POST path` with a JSON body.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn post<B: Serialize, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
    ) -> Result<Response<T>, ClientError> {
        self.request(Method::POST, path, Some(body), &[]).await
    }

    /// A request with a JSON body and an answer in JSON. A server that cannot be reached, or that does not answer a
    /// read, costs a try of the next one; a write that was sent is never sent twice.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn request<B: Serialize, T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
        headers: &[(&str, String)],
    ) -> Result<Response<T>, ClientError> {
        let (endpoint, response) = self.send(method, path, &Body::json(body), headers).await?;
        decode(endpoint, response).await
    }

    /// `GET path`, whose answer is a stream of JSON lines.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn lines(&self, path: &str) -> Result<Lines, ClientError> {
        Ok(Lines { bytes: self.bytes(path).await?, buffer: BytesMut::new() })
    }

    /// `GET path`, whose answer is a stream of bytes.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn bytes(&self, path: &str) -> Result<ByteStream, ClientError> {
        let (endpoint, response) = self.send(Method::GET, path, &Body::NONE, &[]).await?;
        Ok(ByteStream { endpoint, body: response.into_body() })
    }

    /// `GET path`, whose answer is a stream of bytes, from byte `from` on (RFC 9110, section 14).
    ///
    /// # Errors
    /// [`ClientError`]; [`ClientError::Broken`] also when the server begins elsewhere.
    pub async fn bytes_from(&self, path: &str, from: u64) -> Result<ByteStream, ClientError> {
        let headers = [("range", format!("bytes={from}-"))];
        let (endpoint, response) = self.send(Method::GET, path, &Body::NONE, &headers).await?;
        let begins = response.headers().get(CONTENT_RANGE).and_then(|range| range.to_str().ok());
        let begins = begins.and_then(|range| range.strip_prefix("bytes ")?.split('-').next()?.parse().ok());
        let is_there = match response.status() {
            StatusCode::PARTIAL_CONTENT => begins == Some(from),
            _ => from == 0,
        };
        if !is_there {
            let source = format!("it does not begin at byte {from}").into();
            return Err(ClientError::Broken { endpoint, source });
        }
        Ok(ByteStream { endpoint, body: response.into_body() })
    }

    /// `POST path` with bytes as they are. As any write it is sent once.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn post_bytes<T: DeserializeOwned>(
        &self,
        path: &str,
        bytes: Bytes,
    ) -> Result<Response<T>, ClientError> {
        let body = Body { content_type: "application/octet-stream", bytes };
        let (endpoint, response) = self.send(Method::POST, path, &body, &[]).await?;
        decode(endpoint, response).await
    }

    /// `POST path` with a JSON body, after which the connection speaks `protocol` (RFC 9110, section 7.8).
    ///
    /// # Errors
    /// [`ClientError`]; [`ClientError::Broken`] also when the server answers without changing the protocol.
    pub async fn upgrade<B: Serialize>(
        &self,
        path: &str,
        protocol: &str,
        body: &B,
    ) -> Result<Upgraded, ClientError> {
        let headers = [("connection", "upgrade".to_owned()), ("upgrade", protocol.to_owned())];
        let (endpoint, response) = self.send(Method::POST, path, &Body::json(Some(body)), &headers).await?;
        upgraded(endpoint, response).await
    }

    /// `GET path`, after which the connection is a WebSocket (RFC 6455).
    ///
    /// # Errors
    /// [`ClientError`]; [`ClientError::Broken`] also when the server does not know WebSockets.
    pub async fn web_socket(&self, path: &str) -> Result<WebSocket, ClientError> {
        let key = generate_key();
        let headers = [
            ("connection", "upgrade".to_owned()),
            ("upgrade", "websocket".to_owned()),
            ("sec-websocket-version", "13".to_owned()),
            ("sec-websocket-key", key.clone()),
        ];
        // Once only, although it is a GET: what stands behind it may have been begun.
        let (endpoint, response) =
            self.send_once(Method::GET, path, &Body::NONE, &headers, self.answer_within).await?;
        let accepted = response.headers().get("sec-websocket-accept").cloned();
        let stream = upgraded(endpoint.clone(), response).await?;
        if accepted.is_none_or(|accepted| accepted != derive_accept_key(key.as_bytes())) {
            return Err(ClientError::Broken { endpoint, source: "it is no WebSocket".into() });
        }
        Ok(WebSocket::of_client(endpoint, stream).await)
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: &Body,
        headers: &[(&str, String)],
    ) -> Result<(Endpoint, http::Response<Incoming>), ClientError> {
        let is_read = method == Method::GET;
        let mut tries_left = if is_read { self.endpoints.len() } else { 1 };
        let within = if is_read { READ_WITHIN.min(self.answer_within) } else { self.answer_within };
        loop {
            tries_left = tries_left.saturating_sub(1);
            match self.send_once(method.clone(), path, body, headers, within).await {
                Err(ClientError::Broken { endpoint, source }) => {
                    // Whoever asks next asks somebody else.
                    self.leave_server();
                    if tries_left == 0 {
                        return Err(ClientError::Broken { endpoint, source });
                    }
                }
                outcome => return outcome,
            }
        }
    }

    async fn send_once(
        &self,
        method: Method,
        path: &str,
        body: &Body,
        headers: &[(&str, String)],
        within: Duration,
    ) -> Result<(Endpoint, http::Response<Incoming>), ClientError> {
        let (endpoint, stream) = self.connect().await?;
        let broken = |source: Box<dyn std::error::Error + Send + Sync>| ClientError::Broken {
            endpoint: endpoint.clone(),
            source,
        };
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "lightbyte")
            .header("content-type", body.content_type);
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        let request = request.body(Full::new(body.bytes.clone())).map_err(|error| broken(error.into()))?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| broken(error.into()))?;
        // The connection ends with its one exchange; what goes wrong with it shows in the exchange.
        tokio::spawn(async move { drop(connection.with_upgrades().await) });
        let response = timeout(within, sender.send_request(request))
            .await
            .map_err(|error| broken(error.into()))?
            .map_err(|error| broken(error.into()))?;
        let age = response.headers().get(AGE_HEADER).and_then(|age| age.to_str().ok()?.parse().ok());
        self.oldest_millis.fetch_max(age.unwrap_or(0), Ordering::Relaxed);
        let status = response.status();
        if status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS {
            return Ok((endpoint, response));
        }
        if status == StatusCode::SERVICE_UNAVAILABLE {
            self.leave_server();
        }
        let bytes = read_all(&endpoint, response).await?;
        let fallback = || Problem { title: format!("the server answered {status}"), ..Problem::default() };
        let problem: Problem = serde_json::from_slice(&bytes).unwrap_or_else(|_| fallback());
        Err(ClientError::Refused(Problem { status: status.as_u16(), ..problem }))
    }

    /// A stream to the first server that accepts one, beginning with the one that answered last.
    async fn connect(&self) -> Result<(Endpoint, Stream), ClientError> {
        let deadline = Instant::now() + RETRY_WITHIN.min(self.answer_within);
        let mut tried = vec![String::new(); self.endpoints.len()];
        loop {
            for _ in 0..self.endpoints.len() {
                let index = self.current.load(Ordering::Relaxed) % self.endpoints.len();
                let endpoint = &self.endpoints[index];
                let failure =
                    match timeout_at(deadline.min(Instant::now() + CONNECT_WITHIN), endpoint.connect()).await
                    {
                        Ok(Ok(stream)) => return Ok((endpoint.clone(), stream)),
                        Ok(Err(error)) => error.to_string(),
                        Err(_) => "no answer in time".to_owned(),
                    };
                tried[index] = format!("{endpoint} ({failure})");
                self.leave_server();
            }
            if Instant::now() + RETRY_PAUSE >= deadline {
                tried.retain(|text| !text.is_empty());
                let tried = if tried.is_empty() { "none is known".to_owned() } else { tried.join(", ") };
                return Err(ClientError::Unreachable { tried });
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }
}

/// An answer in JSON, with what its headers say.
async fn decode<T: DeserializeOwned>(
    endpoint: Endpoint,
    response: http::Response<Incoming>,
) -> Result<Response<T>, ClientError> {
    let header = |name: &str| Some(response.headers().get(name)?.to_str().ok()?.to_owned());
    let revision = header(REVISION_HEADER).and_then(|value| value.parse().ok());
    let etag = header(ETAG.as_str());
    let bytes = read_all(&endpoint, response).await?;
    // An answer without a body is null: the caller says `()`.
    let bytes = if bytes.is_empty() { Bytes::from_static(b"null") } else { bytes };
    let value = serde_json::from_slice(&bytes).map_err(|source| ClientError::Answer { endpoint, source })?;
    Ok(Response { value, revision, etag })
}

async fn read_all(endpoint: &Endpoint, response: http::Response<Incoming>) -> Result<Bytes, ClientError> {
    let broken = |source| ClientError::Broken { endpoint: endpoint.clone(), source };
    let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX);
    Ok(body.collect().await.map_err(broken)?.to_bytes())
}

/// The connection of an answer that changes its protocol.
async fn upgraded(endpoint: Endpoint, response: http::Response<Incoming>) -> Result<Upgraded, ClientError> {
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        let source = format!("it answered {} and did not change the protocol", response.status()).into();
        return Err(ClientError::Broken { endpoint, source });
    }
    match hyper::upgrade::on(response).await {
        Ok(stream) => Ok(TokioIo::new(stream)),
        Err(error) => Err(ClientError::Broken { endpoint, source: error.into() }),
    }
}

/// A connection that has left HTTP behind: bytes both ways.
pub type Upgraded = TokioIo<hyper::upgrade::Upgraded>;

/// A stream of bytes.
pub struct ByteStream {
    endpoint: Endpoint,
    body: Incoming,
}

impl ByteStream {
    /// The next bytes; `None` at the end of the stream. Cancelling it loses nothing.
    ///
    /// # Errors
    /// [`ClientError::Broken`].
    pub async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        loop {
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(error)) => return Err(self.broken(error.into())),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }

    fn broken(&self, source: Box<dyn std::error::Error + Send + Sync>) -> ClientError {
        ClientError::Broken { endpoint: self.endpoint.clone(), source }
    }
}

/// A stream of JSON lines.
pub struct Lines {
    bytes: ByteStream,
    buffer: BytesMut,
}

impl Lines {
    /// The server that sends them.
    #[must_use]
    pub const fn endpoint(&self) -> &Endpoint {
        &self.bytes.endpoint
    }

    /// The next line; `None` at the end of the stream. Cancelling it loses nothing.
    ///
    /// # Errors
    /// [`ClientError::Broken`], [`ClientError::Answer`].
    pub async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, ClientError> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(end);
                self.buffer.advance(1);
                let endpoint = self.bytes.endpoint.clone();
                return serde_json::from_slice(&line)
                    .map(Some)
                    .map_err(|source| ClientError::Answer { endpoint, source });
            }
            if self.buffer.len() > LINE_BYTES_MAX {
                return Err(self.bytes.broken(format!("a line has more than {LINE_BYTES_MAX} bytes").into()));
            }
            match self.bytes.next().await? {
                None => return Ok(None),
                Some(bytes) => self.buffer.extend_from_slice(&bytes),
            }
        }
    }
}
