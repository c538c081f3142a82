//! Tries from inside whether what the guest is for works, when the host asks.

use std::cell::RefCell;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use lightbyte_guest::protocol::{CHECK_MS_MAX, Check, Checked, Exec, HttpCheck};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::unix::pipe::Receiver;
use tokio::time::timeout;

use crate::agent::Agent;
use crate::exec;

/// How much is read of an answer: its first line (RFC 9112, section 4).
const STATUS_LINE_BYTES_MAX: u64 = 1024;

/// How much is kept of what a command says: its end tells most often what is wrong.
const SAID_BYTES_MAX: usize = 512;

/// Tries it once. It is over after its time, and a command that is not dies with its group.
pub(crate) async fn check(agent: &Rc<Agent>, wanted: &Check) -> Checked {
    // Whatever writes waits for the end of that, and says nothing of how the guest is.
    let skipped = Checked { skipped: true, ..Checked::default() };
    if agent.is_freezing() {
        return skipped;
    }
    let freezes = agent.freezes.get();
    let time = Duration::from_millis(wanted.timeout_ms.min(CHECK_MS_MAX));
    let outcome = match timeout(time, attempt(agent, wanted)).await {
        Ok(outcome) => outcome.map_err(|error| format!("{error:#}")),
        Err(_) => Err(format!("no answer within {} ms", time.as_millis())),
    };
    if outcome.is_err() && agent.freezes.get() != freezes {
        return skipped;
    }
    Checked { passed: outcome.is_ok(), skipped: false, problem: outcome.err().unwrap_or_default() }
}

async fn attempt(agent: &Rc<Agent>, wanted: &Check) -> Result<()> {
    match (&wanted.http, &wanted.tcp) {
        (Some(http), _) => {
            get(agent, http).await.with_context(|| format!("GET {} on port {}", http.path, http.port))
        }
        (None, Some(tcp)) => {
            connect(agent, tcp.port).await.map(drop).with_context(|| format!("port {}", tcp.port))
        }
        (None, None) => run(agent, &wanted.command).await,
    }
}

/// Connects to what listens on every address, or on the first of its own.
async fn connect(agent: &Agent, port: u16) -> io::Result<TcpStream> {
    match TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => match first_address(agent) {
            Some(address) => TcpStream::connect(SocketAddr::new(address, port)).await,
            None => Err(error),
        },
        result => result,
    }
}

fn first_address(agent: &Agent) -> Option<IpAddr> {
    let identity = agent.identity.borrow();
    let nic = identity.as_ref()?.nics.first()?;
    if nic.address.is_empty() {
        return agent.dhcp.borrow().leases().get(&nic.mac).map(|lease| lease.address.into());
    }
    let (address, _) = nic.address.split_once('/')?;
    address.parse().ok()
}

async fn get(agent: &Agent, wanted: &HttpCheck) -> Result<()> {
    let HttpCheck { port, path } = wanted;
    let mut stream = connect(agent, *port).await?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: lightbyte\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    let mut limited = stream.take(STATUS_LINE_BYTES_MAX);
    while !answer.contains(&b'\n') && limited.read_buf(&mut answer).await? > 0 {}
    match status_of(&answer) {
        Some(200..=399) => Ok(()),
        Some(status) => bail!("status {status}"),
        None => bail!("the answer is no HTTP"),
    }
}

/// The status of an answer (RFC 9112, section 4).
fn status_of(answer: &[u8]) -> Option<u16> {
    let line = answer.split(|byte| *byte == b'\n').next()?;
    let mut words = str::from_utf8(line).ok()?.split_ascii_whitespace();
    words.next().filter(|version| version.starts_with("HTTP/1."))?;
    words.next()?.parse().ok()
}

async fn run(agent: &Rc<Agent>, command: &[String]) -> Result<()> {
    let mut process = exec::start(agent, &Exec { argv: command.to_vec(), ..Exec::default() })?;
    // It is told nothing.
    process.input = None;
    let said = RefCell::new(Vec::new());
    let mut outputs = std::mem::take(&mut process.outputs).into_iter().map(|(output, _)| output);
    let (stdout, stderr) = (outputs.next(), outputs.next());
    let code = tokio::select! {
        // What it said before its end is read before its end.
        biased;
        never = keep_end(stdout, &said) => match never {},
        never = keep_end(stderr, &said) => match never {},
        code = &mut process.exit => code.unwrap_or(255),
    };
    process.ended = true;
    if code == 0 {
        return Ok(());
    }
    let said = said.into_inner();
    let said = String::from_utf8_lossy(&said);
    match said.lines().rev().find(|line| !line.trim().is_empty()) {
        Some(line) => bail!("`{}` ended with {code}: {}", command.join(" "), line.trim()),
        None => bail!("`{}` ended with {code}", command.join(" ")),
    }
}

/// Reads for ever, so that the command does not wait for that, and keeps the end of it.
async fn keep_end(output: Option<Receiver>, said: &RefCell<Vec<u8>>) -> Infallible {
    if let Some(mut output) = output {
        let mut chunk = [0; SAID_BYTES_MAX];
        while let Ok(bytes @ 1..) = output.read(&mut chunk).await {
            let mut said = said.borrow_mut();
            said.extend_from_slice(&chunk[..bytes]);
            let surplus = said.len().saturating_sub(SAID_BYTES_MAX);
            said.drain(..surplus);
        }
    }
    std::future::pending().await
}

#[cfg(test)]
mod tests {
    use super::status_of;

    #[test]
    fn only_http_has_a_status() {
        let table = [
            ("HTTP/1.1 200 OK\r\nA: b\r\n", Some(200)),
            ("HTTP/1.0 503 No\r\n", Some(503)),
            ("HTTP/1.1 204\r\n", Some(204)),
            ("HTTP/1.1 ", None),
            ("HTTP/2 200\r\n", None),
            ("220 mail.example ESMTP\r\n", None),
            ("\u{fffd}\r\n", None),
            ("", None),
        ];
        for (answer, expected) in table {
            assert_eq!(status_of(answer.as_bytes()), expected, "{answer:?}");
        }
    }
}
