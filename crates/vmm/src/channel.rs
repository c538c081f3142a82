//! The host's end of a guest's vsock, in Firecracker's protocol, and as much HTTP as the agent needs. Blocking and
//! bounded.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use lightbyte_guest::protocol::{AGENT_PORT, Leaving, READY_ANSWER, READY_BYTES_MAX, Ready};
use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};

use serde::Deserialize;

use crate::http;

/// Longest first line.
const LINE_BYTES_MAX: usize = 32;

/// Largest answer of the agent, head included: what a proxy says of a thousand backends.
const ANSWER_BYTES_MAX: u64 = 1024 * 1024;

/// How long a write may take.
const WRITE_MAX: Duration = Duration::from_secs(2);

/// How long the guest may take for its one line, once it has dialled.
const LINE_MAX: Duration = Duration::from_secs(5);

/// Reads until a time, however the other side deals out its bytes.
pub(crate) struct Timed<'a> {
    pub(crate) stream: &'a UnixStream,
    pub(crate) until: Instant,
}

impl io::Read for Timed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(Some(left))?;
        self.stream.read(buffer)
    }
}

/// Connects to a port of the guest behind `uds`, and gives a stream that waits for ever.
///
/// # Errors
/// `ConnectionRefused` if nobody takes it; others if the backend is not there or too slow.
pub(crate) fn dial(uds: &Path, port: u32, until: Instant) -> io::Result<UnixStream> {
    let stream = connect(uds, port, until)?;
    stream.set_read_timeout(None)?;
    stream.set_write_timeout(None)?;
    Ok(stream)
}

/// Connects to a socket without waiting: a process that is stuck accepts nobody, and its queue is full some day
/// (connect(2), EAGAIN). What stands there is a socket itself: a link that a jailed process has put in its place would
/// lead to another VM's.
///
/// # Errors
/// If nobody listens there, or takes no more.
pub(crate) fn reach(path: &Path) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    let place = rustix::fs::open(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let address = SocketAddrUnix::new(format!("/proc/self/fd/{}", place.as_raw_fd()))?;
    rustix::net::connect(&socket, &address)?;
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// Connects to a port of the guest behind `uds`; reads and writes of the stream have time-outs.
fn connect(uds: &Path, port: u32, until: Instant) -> io::Result<UnixStream> {
    let mut stream = reach(uds)?;
    // What is written fits into the socket's buffer; the time-out is for a backend that hangs.
    stream.set_write_timeout(Some(WRITE_MAX))?;
    stream.write_all(format!("CONNECT {port}\n").as_bytes())?;
    let mut line = Vec::with_capacity(LINE_BYTES_MAX);
    let mut byte = [0];
    // Byte by byte: what follows the line belongs to the caller. The line comes once per connection.
    while line.last() != Some(&b'\n') {
        if line.len() >= LINE_BYTES_MAX || (Timed { stream: &stream, until }).read(&mut byte)? == 0 {
            return Err(io::Error::new(io::ErrorKind::ConnectionRefused, "the guest refused the connection"));
        }
        line.push(byte[0]);
    }
    if !line.starts_with(b"OK ") {
        return Err(invalid("the channel gave no OK"));
    }
    Ok(stream)
}

/// Sends one request to the agent and gives status and body. It is over after `wait`.
///
/// # Errors
/// If the agent is not there, too slow, or answers no HTTP.
pub(crate) fn request(
    uds: &Path,
    method: &str,
    path: &str,
    body: &[u8],
    wait: Duration,
) -> io::Result<(u16, Vec<u8>)> {
    let until = Instant::now() + wait;
    exchange(&connect(uds, AGENT_PORT, until)?, method, path, body, until)
}

/// Sends one request on a connection to the agent and gives status and body. It is over at that time.
///
/// # Errors
/// If the agent is too slow, or answers no HTTP.
pub(crate) fn exchange(
    mut stream: &UnixStream,
    method: &str,
    path: &str,
    body: &[u8],
    until: Instant,
) -> io::Result<(u16, Vec<u8>)> {
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: guest\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(&[head.as_bytes(), body].concat())?;
    let mut answer = Vec::new();
    Timed { stream, until }.take(ANSWER_BYTES_MAX).read_to_end(&mut answer)?;
    let (status, head_bytes) = head_of(&answer).ok_or_else(|| invalid("the agent answers no HTTP"))?;
    Ok((status, answer.split_off(head_bytes)))
}

/// Status and length of an answer's head.
fn head_of(answer: &[u8]) -> Option<(u16, usize)> {
    let head_bytes = http::head_bytes(answer)?;
    let code = answer.strip_prefix(b"HTTP/1.1 ")?.get(..3)?;
    Some((str::from_utf8(code).ok()?.parse().ok()?, head_bytes))
}

/// What a guest says when it calls.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum Call {
    /// It is ready.
    Ready(Ready),
    /// It ends its machine.
    Leaving(Leaving),
}

/// Takes the guest's call on its ready port; nothing if it said something else or broke off, and will call again.
pub(crate) fn take_call(listener: &UnixListener) -> Option<Call> {
    let (mut stream, _) = listener.accept().ok()?;
    stream.set_write_timeout(Some(WRITE_MAX)).ok()?;
    let timed = Timed { stream: &stream, until: Instant::now() + LINE_MAX };
    let mut line = String::new();
    BufReader::new(timed.take(READY_BYTES_MAX as u64)).read_line(&mut line).ok()?;
    let call = serde_json::from_str(&line).ok()?;
    stream.write_all(READY_ANSWER).ok()?;
    Some(call)
}

fn invalid(text: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_to_a_socket_is_not_followed() {
        let place = std::env::temp_dir().join(format!("lightbyte-channel-{}", std::process::id()));
        std::fs::create_dir_all(&place).expect("make a directory");
        let (socket, link) = (place.join("socket"), place.join("link"));
        let _listener = UnixListener::bind(&socket).expect("listen");
        std::os::unix::fs::symlink(&socket, &link).expect("link");
        reach(&socket).expect("a socket");
        assert_eq!(reach(&link).expect_err("a link").kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(reach(&place.join("none")).expect_err("nothing").kind(), io::ErrorKind::NotFound);
        std::fs::remove_dir_all(&place).expect("remove it");
    }

    #[test]
    fn heads_are_found_or_are_none() {
        let table = [
            ("HTTP/1.1 200 OK\r\n\r\nbody", Some((200, 19))),
            ("HTTP/1.1 422 No\r\nA: b\r\n\r\n", Some((422, 25))),
            ("HTTP/1.1 200 OK\r\n", None),
            ("HTTP/1.1 xyz\r\n\r\n", None),
            ("nonsense\r\n\r\n", None),
        ];
        for (answer, expected) in table {
            assert_eq!(head_of(answer.as_bytes()), expected, "{answer}");
        }
    }
}
