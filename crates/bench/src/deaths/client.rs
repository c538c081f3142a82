//! One request, and what came of it.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

/// What a client saw.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    /// How long the whole answer took; none if there was none, or not 200.
    pub(super) whole_ms: Option<f64>,
}

/// A small `GET` on a connection of its own.
pub(super) async fn get(address: SocketAddr, within: Duration) -> Seen {
    let begun = Instant::now();
    let is_whole = matches!(timeout(within, exchange(address)).await, Ok(Ok(true)));
    Seen { whole_ms: is_whole.then(|| begun.elapsed().as_secs_f64() * 1_000.0) }
}

async fn exchange(address: SocketAddr) -> std::io::Result<bool> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: deaths\r\nConnection: close\r\n\r\n").await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(answer.starts_with(b"HTTP/1.1 200 ") && answer.ends_with(b"\r\n\r\nok"))
}
