//! Asks the proxy on its control socket: a request, a connection. A body goes through as it comes: what a process has once
//! held in its memory it mostly keeps, and the agent is to stay small.

use std::path::Path;

use anyhow::{Context as _, Result};
use http_body_util::{BodyExt as _, Either, Empty, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use lightbyte_guest::protocol::PROXY_ANSWER_BYTES_MAX;
use tokio::net::UnixStream;
use tokio::task::spawn_local;

/// What is sent with a question. One type, so that the client is in the agent's program once.
pub(crate) type Question = Either<Limited<Incoming>, Empty<Bytes>>;

/// What the proxy said.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) status: StatusCode,
    pub(crate) kind: Option<HeaderValue>,
    pub(crate) body: Bytes,
}

/// A connection to the proxy.
pub(crate) struct Line(http1::SendRequest<Question>);

impl Line {
    /// # Errors
    /// If the proxy does not listen.
    pub(crate) async fn open(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket).await.context("connect to it")?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.context("greet it")?;
        // It ends when nobody sends and listens any more.
        spawn_local(connection);
        Ok(Self(sender))
    }

    /// Asks once. It has no limit of time.
    ///
    /// # Errors
    /// If the proxy breaks off or says too much, or the body does.
    pub(crate) async fn ask(mut self, method: Method, path: &str, body: Question) -> Result<Said> {
        let request = Request::builder().method(method).uri(path).header(HOST, "proxy").body(body);
        let response = self.0.send_request(request.context("make the request")?).await.context("ask it")?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, PROXY_ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(|error| anyhow::anyhow!(error)).context("read its answer")?.to_bytes();
        Ok(Said { status: head.status, kind: head.headers.get(CONTENT_TYPE).cloned(), body })
    }
}
