//! Who asks. Everything is allowed to everybody today; every handler is handed the caller all the same, and every
//! write says for whom it was made.

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use axum::extract::connect_info::{ConnectInfo, Connected};
use axum::extract::{FromRequestParts, Request};
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::Response;
use axum::serve::IncomingStream;
use lightbyte_link::{Listener, Peer, Stream};

/// The pause after a connection could not be accepted, such as for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

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

/// A listener of the link, as axum takes it.
pub(crate) struct LinkListener(pub(crate) Listener);

impl axum::serve::Listener for LinkListener {
    type Io = Stream;
    type Addr = Peer;

    async fn accept(&mut self) -> (Stream, Peer) {
        loop {
            match self.0.accept().await {
                Ok(accepted) => return accepted,
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<Peer> {
        // A peer is who is at the other end; a listener has none.
        Err(io::ErrorKind::Unsupported.into())
    }
}

impl Connected<IncomingStream<'_, LinkListener>> for Caller {
    fn connect_info(stream: IncomingStream<'_, LinkListener>) -> Caller {
        match stream.remote_addr() {
            Peer::Local { user_id } => Caller::Local { user_id: *user_id },
            Peer::Address(address) => Caller::Address(*address),
        }
    }
}
