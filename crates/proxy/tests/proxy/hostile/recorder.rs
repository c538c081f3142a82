//! A backend that believes everything and remembers all of it: what it took for requests.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;

/// First lines of requests that came whole.
type Lines = Arc<Mutex<Vec<String>>>;

/// The backend.
pub(super) struct Recorder {
    pub(super) address: SocketAddr,
    request_lines: Lines,
    task: AbortHandle,
}

impl Recorder {
    pub(super) async fn start() -> Recorder {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = listener.local_addr().expect("has one");
        let request_lines = Lines::default();
        let shared = request_lines.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(believe(stream, shared.clone()));
            }
        });
        Recorder { address, request_lines, task: task.abort_handle() }
    }

    /// Whether a whole request came whose first line has these words.
    pub(super) fn was_asked(&self, words: &str) -> bool {
        self.request_lines
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .any(|line| line.contains(words))
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Reads requests as a simple server does: a head to its empty line, then what `chunked` or the length says.
async fn believe(mut stream: TcpStream, lines: Lines) -> std::io::Result<()> {
    let mut unread = Vec::new();
    loop {
        let end = loop {
            if let Some(end) = find(&unread, b"\r\n\r\n") {
                break end + 4;
            }
            more(&mut stream, &mut unread).await?;
        };
        let head = String::from_utf8_lossy(&unread[..end]).into_owned();
        unread.drain(..end);
        let line = head.lines().next().unwrap_or_default().to_owned();
        let head = head.to_ascii_lowercase();
        if head.contains("transfer-encoding: chunked") {
            while take_chunk(&mut stream, &mut unread).await? > 0 {}
        } else if let Some(length) = head.split("content-length: ").nth(1) {
            let digits: String = length.chars().take_while(char::is_ascii_digit).collect();
            let length = digits.parse::<usize>().unwrap_or_default();
            while unread.len() < length {
                more(&mut stream, &mut unread).await?;
            }
            unread.drain(..length);
        }
        lines.lock().unwrap_or_else(PoisonError::into_inner).push(line);
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await?;
    }
}

/// Takes a chunk off, and returns its size; after the last one the trailers too.
async fn take_chunk(stream: &mut TcpStream, unread: &mut Vec<u8>) -> std::io::Result<usize> {
    let line = take_line(stream, unread).await?;
    let digits = line.split(';').next().unwrap_or_default().trim();
    let size = usize::from_str_radix(digits, 16).map_err(std::io::Error::other)?;
    if size == 0 {
        while !take_line(stream, unread).await?.is_empty() {}
        return Ok(0);
    }
    while unread.len() < size + 2 {
        more(stream, unread).await?;
    }
    unread.drain(..size + 2);
    Ok(size)
}

async fn take_line(stream: &mut TcpStream, unread: &mut Vec<u8>) -> std::io::Result<String> {
    loop {
        if let Some(end) = find(unread, b"\r\n") {
            let line: Vec<u8> = unread.drain(..end + 2).collect();
            return Ok(String::from_utf8_lossy(&line[..end]).into_owned());
        }
        more(stream, unread).await?;
    }
}

async fn more(stream: &mut TcpStream, unread: &mut Vec<u8>) -> std::io::Result<()> {
    if stream.read_buf(unread).await? == 0 { Err(std::io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}
