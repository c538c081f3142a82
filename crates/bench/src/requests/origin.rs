//! The backend: it costs as little as it can, so that what is measured is in front of it.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// Longest head that is read.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// What asks to be the last on its connection.
const CLOSE: &[u8] = b"connection: close";

/// What the longest answer's path begins with; all others get the short one.
pub(super) const LONG: &str = "/64KiB";
pub(super) const SHORT: &str = "/1KiB";

/// Their bodies.
pub(super) const LONG_BYTES: usize = 64 * 1024;
pub(super) const SHORT_BYTES: usize = 1024;

/// Answers each `GET` with 1 or 64 KiB, for ever.
///
/// # Errors
/// When the address cannot be listened on.
pub(crate) async fn serve(address: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(address).await.with_context(|| format!("listen on {address}"))?;
    let answers: &'static [Vec<u8>; 2] = Box::leak(Box::new([answer(SHORT_BYTES), answer(LONG_BYTES)]));
    loop {
        let (stream, _) = listener.accept().await.context("accept")?;
        // A peer that breaks off is no news.
        tokio::spawn(async move { answer_all(stream, answers).await.ok() });
    }
}

fn answer(bytes: usize) -> Vec<u8> {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {bytes}\r\n\r\n");
    [head.into_bytes(), vec![b'x'; bytes]].concat()
}

async fn answer_all(mut stream: TcpStream, [short, long]: &[Vec<u8>; 2]) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut head = Vec::with_capacity(HEAD_BYTES_MAX);
    loop {
        head.clear();
        while !head.ends_with(b"\r\n\r\n") {
            let is_over = head.len() > HEAD_BYTES_MAX || stream.read_buf(&mut head).await? == 0;
            if is_over {
                return Ok(());
            }
        }
        let is_long = head.strip_prefix(b"GET ").is_some_and(|path| path.starts_with(LONG.as_bytes()));
        stream.write_all(if is_long { long } else { short }).await?;
        if head.windows(CLOSE.len()).any(|bytes| bytes.eq_ignore_ascii_case(CLOSE)) {
            return Ok(());
        }
    }
}
