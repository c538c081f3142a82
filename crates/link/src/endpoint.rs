//! Where a peer is, and the byte streams to it.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::str::FromStr;
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::net::sockopt;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

/// The port of an API whose URL names none.
pub const DEFAULT_PORT: u16 = 7_700;

/// The pause after a connection could not be accepted, such as for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long a connection is silent before the peer's kernel is asked whether it is there (tcp(7)).
const KEEPALIVE_IDLE: Duration = Duration::from_secs(20);
/// How often it is asked.
const KEEPALIVE_PERIOD: Duration = Duration::from_secs(5);
/// How often it may fail to answer.
const KEEPALIVE_COUNT: u32 = 3;
/// How long what was sent may stay unacknowledged (tcp(7), `TCP_USER_TIMEOUT`).
const UNACKNOWLEDGED_MAX_MS: u32 = 30_000;

/// Where a peer is: `http://host:port` or `unix:/path`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// Host and port. The host is a name or an address.
    Tcp(String, u16),
    /// A Unix socket.
    Unix(PathBuf),
}

/// A text that is no [`Endpoint`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a server such as http://10.0.0.1:7700 or unix:/run/lightbyte/api.sock")]
pub struct EndpointError(String);

impl FromStr for Endpoint {
    type Err = EndpointError;
    fn from_str(text: &str) -> Result<Endpoint, EndpointError> {
        let bad = || EndpointError(text.to_owned());
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.starts_with('/') { Ok(Endpoint::Unix(path.into())) } else { Err(bad()) };
        }
        let host = text.strip_prefix("http://").ok_or_else(bad)?.trim_end_matches('/');
        let (host, port) = match host.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, port.parse().map_err(|_| bad())?),
            _ => (host, DEFAULT_PORT),
        };
        let is_host = !host.is_empty()
            && host.chars().all(|character| character.is_ascii_graphic() && !"/?#@".contains(character));
        if is_host { Ok(Endpoint::Tcp(host.to_owned(), port)) } else { Err(bad()) }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Endpoint::Tcp(host, port) => write!(formatter, "http://{host}:{port}"),
            Endpoint::Unix(path) => write!(formatter, "unix:{}", path.display()),
        }
    }
}

impl Endpoint {
    /// The peer at what a worker says of itself: `host:port`, or the path of a Unix socket; nothing if it says neither.
    #[must_use]
    pub fn of_address(address: &str) -> Option<Endpoint> {
        let scheme = if address.starts_with('/') { "unix:" } else { "http://" };
        format!("{scheme}{address}").parse().ok()
    }

    /// Opens a byte stream to the peer. The caller bounds the time.
    ///
    /// # Errors
    /// What the system says.
    pub async fn connect(&self) -> io::Result<Stream> {
        match self {
            Endpoint::Tcp(host, port) => {
                let stream = TcpStream::connect((host.trim_matches(['[', ']']), *port)).await?;
                Ok(Stream::Tcp(tuned(stream)?))
            }
            Endpoint::Unix(path) => Ok(Stream::Unix(UnixStream::connect(path).await?)),
        }
    }
}

/// Who is at the other end, as far as the link knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Somebody on the network.
    Address(SocketAddr),
    /// A process on this machine, by the credentials of its socket (unix(7), `SO_PEERCRED`).
    Local {
        /// Its user.
        user_id: u32,
    },
}

/// Accepts streams.
pub enum Listener {
    /// On the network.
    Tcp(TcpListener),
    /// On this machine. The path is removed when the listener is dropped.
    Unix(UnixListener, PathBuf),
}

impl Listener {
    /// Listens at `endpoint`. A Unix socket left behind by a process that is gone is replaced; its mode allows the
    /// owner alone.
    ///
    /// # Errors
    /// What the system says; `AddrInUse` when another process listens there.
    pub async fn bind(endpoint: &Endpoint) -> io::Result<Listener> {
        match endpoint {
            Endpoint::Tcp(host, port) => {
                let host = host.trim_matches(['[', ']']);
                Ok(Listener::Tcp(TcpListener::bind((host, *port)).await?))
            }
            Endpoint::Unix(path) => bind_unix(path).await,
        }
    }

    /// Accepts at a TCP socket that listens already, and was handed over: a socket stays in the network namespace in which
    /// it was made.
    ///
    /// # Errors
    /// When the runtime cannot watch it.
    pub fn inherited(socket: OwnedFd) -> io::Result<Listener> {
        let listener = std::net::TcpListener::from(socket);
        listener.set_nonblocking(true)?;
        Ok(Listener::Tcp(TcpListener::from_std(listener)?))
    }

    /// The port that was bound; of use when 0 was asked for.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        match self {
            Listener::Tcp(listener) => listener.local_addr().ok().map(|address| address.port()),
            Listener::Unix(..) => None,
        }
    }

    /// The next stream, and who opened it.
    ///
    /// # Errors
    /// What the system says. The listener goes on: a caller pauses and accepts again.
    pub async fn accept(&mut self) -> io::Result<(Stream, Peer)> {
        match self {
            Listener::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                Ok((Stream::Tcp(tuned(stream)?), Peer::Address(address)))
            }
            Listener::Unix(listener, _) => {
                let (stream, _) = listener.accept().await?;
                let user_id = stream.peer_cred()?.uid();
                Ok((Stream::Unix(stream), Peer::Local { user_id }))
            }
        }
    }
}

/// Sets what every connection of ours wants.
fn tuned(stream: TcpStream) -> io::Result<TcpStream> {
    // Requests and answers are small and wait for each other: Nagle's algorithm would delay them.
    stream.set_nodelay(true)?;
    // A machine that lost its power ends no connection; who waits for it must be told.
    sockopt::set_socket_keepalive(&stream, true)?;
    sockopt::set_tcp_keepidle(&stream, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(&stream, KEEPALIVE_PERIOD)?;
    sockopt::set_tcp_keepcnt(&stream, KEEPALIVE_COUNT)?;
    sockopt::set_tcp_user_timeout(&stream, UNACKNOWLEDGED_MAX_MS)?;
    Ok(stream)
}

async fn bind_unix(path: &Path) -> io::Result<Listener> {
    use std::os::unix::fs::PermissionsExt as _;
    if path.exists() {
        if UnixStream::connect(path).await.is_ok() {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        std::fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(Listener::Unix(listener, path.to_owned()))
}

/// As axum takes it: a connection that cannot be accepted is told, and the next one is waited for.
impl axum::serve::Listener for Listener {
    type Io = Stream;
    type Addr = Peer;

    async fn accept(&mut self) -> (Stream, Peer) {
        loop {
            match Listener::accept(self).await {
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

impl Drop for Listener {
    fn drop(&mut self) {
        if let Listener::Unix(_, path) = self {
            // A path that is gone already is as good.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// A byte stream to a peer.
#[derive(Debug)]
pub enum Stream {
    /// Over the network.
    Tcp(TcpStream),
    /// On this machine.
    Unix(UnixStream),
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_read(context, buffer),
            Stream::Unix(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_write(context, bytes),
            Stream::Unix(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_flush(context),
            Stream::Unix(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_shutdown(context),
            Stream::Unix(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_read_and_written_back() {
        let check = |text: &str, expect: Option<&str>| {
            let found = text.parse::<Endpoint>().ok().map(|endpoint| endpoint.to_string());
            assert_eq!(found.as_deref(), expect, "{text}");
        };
        check("http://10.0.0.1:7700", Some("http://10.0.0.1:7700"));
        check("http://n1/", Some("http://n1:7700"));
        check("http://[fd00::1]:80", Some("http://[fd00::1]:80"));
        check("unix:/run/lightbyte/api.sock", Some("unix:/run/lightbyte/api.sock"));
        check("unix:api.sock", None);
        check("https://n1", None);
        check("http://", None);
        check("http://a b", None);
        check("http://n1:port", None);
        check("n1", None);
    }
}
