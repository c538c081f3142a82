//! A backend: this program under another word, so that it is a process that can be stopped and killed.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// Longest head that is read.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// Answers each `GET` with two bytes, for ever.
///
/// # Errors
/// When the address cannot be listened on.
pub(crate) async fn serve(address: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(address).await.with_context(|| format!("listen on {address}"))?;
    loop {
        let (stream, _) = listener.accept().await.context("accept")?;
        // A peer that breaks off is no news.
        tokio::spawn(async move { answer_all(stream).await.ok() });
    }
}

async fn answer_all(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut head = Vec::new();
    loop {
        while !head.ends_with(b"\r\n\r\n") {
            let is_over = head.len() > HEAD_BYTES_MAX || stream.read_buf(&mut head).await? == 0;
            if is_over {
                return Ok(());
            }
        }
        head.clear();
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await?;
    }
}
