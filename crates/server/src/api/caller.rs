//! Who asks. Everything is allowed to everybody today; every handler is handed the caller all the same, and every
//! write says for whom it was made.

use std::convert::Infallible;
use std::fmt;
use std::net::SocketAddr;

use axum::extract::connect_info::{ConnectInfo, Connected};
use axum::extract::{FromRequestParts, Request};
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::Response;
use axum::serve::IncomingStream;
use lightbyte_link::{Listener, Peer};

/// Who asks, as far as the link knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Caller {
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

impl fmt::Display for Caller {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Caller::Local { user_id } => write!(formatter, "user {user_id}"),
            // The port is another for each connection, and says nothing.
            Caller::Address(address) => write!(formatter, "{}", address.ip()),
            Caller::Unknown => formatter.write_str("somebody unknown"),
        }
    }
}

impl<State: Send + Sync> FromRequestParts<State> for Caller {
    type Rejection = Infallible;
    async fn from_request_parts(parts: &mut Parts, _: &State) -> Result<Caller, Infallible> {
        let found = parts.extensions.get::<ConnectInfo<Caller>>();
        Ok(found.map_or(Caller::Unknown, |ConnectInfo(caller)| caller.clone()))
    }
}

/// Notes each request at the level of a developer's interest.
pub(crate) async fn note(caller: Caller, request: Request, next: Next) -> Response {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let response = next.run(request).await;
    tracing::debug!(%caller, %method, path, status = response.status().as_u16(), "request");
    response
}

impl Connected<IncomingStream<'_, Listener>> for Caller {
    fn connect_info(stream: IncomingStream<'_, Listener>) -> Caller {
        match stream.remote_addr() {
            Peer::Local { user_id } => Caller::Local { user_id: *user_id },
            Peer::Address(address) => Caller::Address(*address),
        }
    }
}
