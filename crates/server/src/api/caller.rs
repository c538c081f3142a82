//! Who asks. Everything is allowed to everybody today; every handler is handed the caller all the same, and every
//! write says for whom it was made: where the request came from, and what its sender calls himself, which nothing proves.

use std::fmt;
use std::net::SocketAddr;

use axum::extract::connect_info::{ConnectInfo, Connected};
use axum::extract::{FromRequestParts, Request};
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::Response;
use axum::serve::IncomingStream;
use lightbyte_api::Name;
use lightbyte_api::actor::{SAYS, Who, WhoError, Writer};
use lightbyte_link::client::WHO_HEADER;
use lightbyte_link::{Listener, Peer};

use crate::problem::Failure;

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Caller {
    /// As far as the link knows.
    pub(crate) origin: Origin,
    /// What they call themselves, in the header [`WHO_HEADER`].
    pub(crate) says: Option<Who>,
}

/// Where a request comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A process on this machine.
    Local {
        /// Its user.
        user_id: u32,
    },
    /// Somebody on the network.
    Address(SocketAddr),
    /// Nobody: a request that came over no connection. It is allowed nothing that others are not.
    Unknown,
}

impl Caller {
    /// Who writes what `server` writes for this caller.
    pub(crate) fn writer(&self, server: &Name) -> Writer {
        Writer::Request { server: server.clone(), from: self.origin.to_string(), says: self.says.clone() }
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Caller { origin, says } = self;
        match says {
            None => write!(formatter, "{origin}"),
            Some(who) => write!(formatter, "{origin}{SAYS}{who}"),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Local { user_id } => write!(formatter, "user {user_id}"),
            // The port is another for each connection, and says nothing.
            Origin::Address(address) => write!(formatter, "{}", address.ip()),
            Origin::Unknown => formatter.write_str("somebody unknown"),
        }
    }
}

impl<State: Send + Sync> FromRequestParts<State> for Caller {
    type Rejection = Failure;
    async fn from_request_parts(parts: &mut Parts, _: &State) -> Result<Caller, Failure> {
        let found = parts.extensions.get::<ConnectInfo<Origin>>();
        let origin = found.map_or(Origin::Unknown, |ConnectInfo(origin)| origin.clone());
        Ok(Caller { origin, says: said(parts)? })
    }
}

/// What the sender of a request calls himself. A header that cannot be taken as it is, is refused and not mended: what is
/// written down would not be what was said.
fn said(parts: &Parts) -> Result<Option<Who>, Failure> {
    let Some(header) = parts.headers.get(WHO_HEADER) else { return Ok(None) };
    let bad = |_| {
        Failure::bad(format!("the header `{WHO_HEADER}` cannot be taken: {WhoError}"))
            .hint("leave it out, or say something such as ana@laptop")
    };
    String::from_utf8_lossy(header.as_bytes()).parse().map(Some).map_err(bad)
}

/// Notes each request at the level of a developer's interest.
pub(crate) async fn note(caller: Caller, request: Request, next: Next) -> Response {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let response = next.run(request).await;
    tracing::debug!(%caller, %method, path, status = response.status().as_u16(), "request");
    response
}

impl Connected<IncomingStream<'_, Listener>> for Origin {
    fn connect_info(stream: IncomingStream<'_, Listener>) -> Origin {
        match stream.remote_addr() {
            Peer::Local { user_id } => Origin::Local { user_id: *user_id },
            Peer::Address(address) => Origin::Address(*address),
        }
    }
}
