//! A client's connection: who it is, what it is doing, and the stream that notes when its bytes come.
//!
//! ```text
//!   idle ──first byte──▶ head ──all headers read──▶ requests in flight ──the last ends──▶ idle
//! ```
//!
//! The library bounds each read but not a whole head, so a client that sends a byte a minute would stay for ever.
//! Therefore the stream notes when a head begins, and [`Connection::outlived`] ends what takes too long.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd as _;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use http::HeaderValue;
use lightbyte_api::topology::{Limits, Listener, Protocol};
use pingora_core::protocols::raw_connect::ProxyDigest;
use pingora_core::protocols::{
    GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, TimingDigest,
    UniqueID, UniqueIDType,
};
use pingora_http::ResponseHeader;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, BufWriter, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::clock;
use crate::forwarded;
use crate::leaving::Leaving;

/// What is gathered before it is written: a head and a small body go out as one packet.
const WRITE_BUFFER_BYTES: usize = 8 * 1024;

/// How often a connection's times are looked at, at most and at least.
const LOOK_MIN: Duration = Duration::from_millis(50);
const LOOK_MAX: Duration = Duration::from_secs(1);

/// How long a connection without a request is left open once the proxy is told to end: for what is on its way.
const LAST_WORDS: Duration = Duration::from_millis(300);

/// What is known of a connection.
#[derive(Debug)]
pub(crate) struct Connection {
    /// The port that it came in by.
    pub(crate) port: u16,
    pub(crate) protocol: Protocol,
    /// What the port said when it was accepted, for when the port is gone.
    pub(crate) redirect_to_https: Option<u16>,
    /// The client, or what a PROXY header said of it.
    pub(crate) peer: SocketAddr,
    /// Its address as backends are told.
    pub(crate) peer_text: HeaderValue,
    /// Where it came in; no address if that is one of IPv6.
    local: Ipv4Addr,
    leaving: Arc<Leaving>,
    /// 0 while no head is being read.
    head_since_ms: AtomicU64,
    idle_since_ms: AtomicU64,
    requests: AtomicUsize,
    /// Streams of HTTP/2 share a connection, so a byte says nothing about a head.
    is_h2: AtomicBool,
    /// What comes is a WebSocket's by now.
    has_changed_protocol: AtomicBool,
}

impl Connection {
    pub(crate) fn new(
        listener: &Listener,
        peer: SocketAddr,
        local: Ipv4Addr,
        leaving: Arc<Leaving>,
    ) -> Arc<Connection> {
        Arc::new(Connection {
            port: listener.port,
            protocol: listener.protocol,
            redirect_to_https: listener.redirect_to_https,
            peer,
            peer_text: forwarded::peer_text(peer.ip()),
            local,
            leaving,
            head_since_ms: AtomicU64::new(0),
            idle_since_ms: AtomicU64::new(clock::now_ms()),
            requests: AtomicUsize::new(0),
            is_h2: AtomicBool::new(false),
            has_changed_protocol: AtomicBool::new(false),
        })
    }

    /// The word for URLs.
    pub(crate) const fn scheme(&self) -> &'static str {
        match self.protocol {
            Protocol::Http => "http",
            Protocol::Https => "https",
        }
    }

    /// A request's head was read.
    pub(crate) fn request(self: &Arc<Connection>, is_h2: bool) -> Request {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.is_h2.store(is_h2, Ordering::Relaxed);
        self.head_since_ms.store(0, Ordering::Relaxed);
        Request(self.clone())
    }

    /// A backend has agreed to another protocol, and what the client sends from now on is not HTTP. Told before the client hears of it.
    pub(crate) fn change_protocol(&self) {
        self.has_changed_protocol.store(true, Ordering::Relaxed);
    }

    pub(crate) fn has_changed_protocol(&self) -> bool {
        self.has_changed_protocol.load(Ordering::Relaxed)
    }

    fn bytes_came(&self) {
        if self.requests.load(Ordering::Relaxed) == 0 && self.head_since_ms.load(Ordering::Relaxed) == 0 {
            self.head_since_ms.store(clock::now_ms().max(1), Ordering::Relaxed);
        }
    }

    /// The time of a handshake is not that of a head.
    pub(crate) fn begin_anew(&self) {
        self.head_since_ms.store(0, Ordering::Relaxed);
        self.idle_since_ms.store(clock::now_ms(), Ordering::Relaxed);
    }

    /// Whether it takes longer than the limits allow.
    fn is_over(&self, limits: &Limits, now_ms: u64) -> bool {
        if self.requests.load(Ordering::Relaxed) > 0 {
            return false;
        }
        let head_since_ms = self.head_since_ms.load(Ordering::Relaxed);
        let is_reading_head = head_since_ms > 0 && !self.is_h2.load(Ordering::Relaxed);
        if is_reading_head {
            return now_ms.saturating_sub(head_since_ms) > limits.header_timeout_ms;
        }
        now_ms.saturating_sub(self.idle_since_ms.load(Ordering::Relaxed)) > limits.idle_timeout_ms
    }

    /// Returns when the connection has to be closed. `limits` is asked each time, for it may change.
    pub(crate) async fn outlived(&self, limits: impl Fn() -> Limits) {
        loop {
            let now = limits();
            if self.is_over(&now, clock::now_ms()) {
                return;
            }
            let shorter_ms = now.header_timeout_ms.min(now.idle_timeout_ms);
            tokio::time::sleep(Duration::from_millis(shorter_ms / 4).clamp(LOOK_MIN, LOOK_MAX)).await;
        }
    }
}

impl Connection {
    /// Returns when the proxy is told to end and the connection has nothing to do. Of HTTP/2 the library says goodbye itself;
    /// of HTTP/1 it does not see those that have never said a word.
    pub(crate) async fn left(&self, mut stopping: watch::Receiver<bool>) {
        if stopping.wait_for(|is_stopping| *is_stopping).await.is_err() {
            // Whoever could tell is gone, and so nobody waits.
            return std::future::pending().await;
        }
        while self.is_h2.load(Ordering::Relaxed) || !self.has_nothing_to_do() {
            tokio::time::sleep(LOOK_MIN).await;
        }
    }

    /// Returns when the address that it came in at is left and it has nothing to do.
    pub(crate) async fn departed(&self) {
        loop {
            self.leaving.begins(self.local).await;
            while self.is_to_end() {
                if self.has_nothing_to_do() {
                    return;
                }
                tokio::time::sleep(LOOK_MIN).await;
            }
        }
    }

    /// Whether the answer that is given now is its last.
    pub(crate) fn is_to_end(&self) -> bool {
        self.leaving.is_left(self.local)
    }

    /// Whether no request is there, and none has come for as long as one may be on its way.
    fn has_nothing_to_do(&self) -> bool {
        let last_words_ms = u64::try_from(LAST_WORDS.as_millis()).unwrap_or(u64::MAX);
        let idle_ms = clock::now_ms().saturating_sub(self.idle_since_ms.load(Ordering::Relaxed));
        // What comes on HTTP/2 between requests is no head.
        let reads_head =
            self.head_since_ms.load(Ordering::Relaxed) > 0 && !self.is_h2.load(Ordering::Relaxed);
        let is_busy = self.requests.load(Ordering::Relaxed) > 0 || reads_head;
        !is_busy && idle_ms > last_words_ms
    }
}

/// A request on a connection; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Request(Arc<Connection>);

impl Drop for Request {
    fn drop(&mut self) {
        self.0.idle_since_ms.store(clock::now_ms(), Ordering::Relaxed);
        self.0.requests.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection's stream.
pub(crate) struct Watched {
    stream: BufWriter<TcpStream>,
    connection: Arc<Connection>,
    digest: Arc<ProxyDigest>,
    timing: TimingDigest,
}

impl Watched {
    /// # Errors
    /// None in practice: an empty header is made for the library.
    pub(crate) fn new(stream: TcpStream, connection: Arc<Connection>) -> pingora_core::Result<Watched> {
        // The one place where the library carries something of ours from the stream to the request.
        let header = Box::new(ResponseHeader::build(200, Some(0))?);
        let digest = Arc::new(ProxyDigest::new(header, Some(Box::new(connection.clone()))));
        let stream = BufWriter::with_capacity(WRITE_BUFFER_BYTES, stream);
        Ok(Watched { stream, connection, digest, timing: TimingDigest::default() })
    }
}

impl fmt::Debug for Watched {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "connection from {}", self.connection.peer)
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(context, buffer);
        if buffer.filled().len() > before {
            self.connection.bytes_came();
        }
        result
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

impl Peek for Watched {}

#[async_trait]
impl Shutdown for Watched {
    async fn shutdown(&mut self) {
        // A peer that has gone already is no news.
        let _ = AsyncWriteExt::shutdown(&mut self.stream).await;
    }
}

impl UniqueID for Watched {
    fn id(&self) -> UniqueIDType {
        self.stream.get_ref().as_raw_fd()
    }
}

impl Ssl for Watched {}

impl GetTimingDigest for Watched {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        vec![Some(self.timing.clone())]
    }
}

impl GetProxyDigest for Watched {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        Some(self.digest.clone())
    }
}

impl GetSocketDigest for Watched {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_and_a_pause_are_bounded_and_a_request_is_not() {
        let limits = Limits { header_timeout_ms: 100, idle_timeout_ms: 1_000, ..Limits::default() };
        let listener = r#"{"name":"web","port":80,"protocol":"http"}"#;
        let listener: Listener = serde_json::from_str(listener).expect("is one");
        let now_ms = clock::now_ms() + 10_000;
        // (head since, idle since, requests, HTTP/2) as times ago.
        let table = [
            (None, 500, 0, false, false),
            (None, 1_500, 0, false, true),
            (Some(50), 1_500, 0, false, false),
            (Some(150), 150, 0, false, true),
            (Some(150), 150, 0, true, false),
            (Some(150), 1_500, 0, true, true),
            (None, 5_000, 1, false, false),
        ];
        for (head_ago, idle_ago, requests, is_h2, expected) in table {
            let local = Ipv4Addr::LOCALHOST;
            let connection = Connection::new(&listener, (local, 1).into(), local, Arc::default());
            connection.head_since_ms.store(head_ago.map_or(0, |ago| now_ms - ago), Ordering::Relaxed);
            connection.idle_since_ms.store(now_ms - idle_ago, Ordering::Relaxed);
            connection.requests.store(requests, Ordering::Relaxed);
            connection.is_h2.store(is_h2, Ordering::Relaxed);
            assert_eq!(
                connection.is_over(&limits, now_ms),
                expected,
                "{head_ago:?} {idle_ago} {requests} {is_h2}"
            );
        }
    }
}
