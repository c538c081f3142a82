//! Active checks: a task for each member of each pool that asks for them.
//!
//! What a result means is decided in [`Health`](crate::health::Health); here it is only found out.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use lightbyte_api::topology::{Check, Probe};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;

use crate::chance;
use crate::registry::Member;
use crate::say::say;
use crate::table::Table;

/// Tries at once, of all pools. Each is a descriptor, and thousands that begin together would fail each other.
const AT_ONCE_MAX: usize = 256;

/// What is read of an answer: enough for the status line.
const ANSWER_BYTES_MAX: usize = 1_024;

/// The tasks that run.
#[derive(Debug)]
pub(crate) struct Checks {
    places: Arc<Semaphore>,
    running: HashMap<(String, String, SocketAddr), (Check, AbortHandle)>,
}

impl Default for Checks {
    fn default() -> Checks {
        Checks { places: Arc::new(Semaphore::new(AT_ONCE_MAX)), running: HashMap::new() }
    }
}

impl Checks {
    /// Checks what the table says, and nothing else. Who is checked already in the same way goes on.
    pub(crate) fn follow(&mut self, table: &Table) {
        let mut before = std::mem::take(&mut self.running);
        for pool in &table.pools {
            let Some(check) = &pool.check else { continue };
            for member in &pool.members {
                let key = (pool.name.clone(), member.uid.clone(), member.address);
                let run = match before.remove(&key) {
                    Some((same, task)) if same == *check => (same, task),
                    other => {
                        stop(other);
                        let task = tokio::spawn(run(self.places.clone(), member.clone(), check.clone()));
                        (check.clone(), task.abort_handle())
                    }
                };
                self.running.insert(key, run);
            }
        }
        before.into_values().for_each(|gone| stop(Some(gone)));
        let unchecked = table.pools.iter().filter(|pool| pool.check.is_none());
        unchecked.flat_map(|pool| &pool.members).for_each(|member| member.unchecked());
    }
}

fn stop(run: Option<(Check, AbortHandle)>) {
    if let Some((_, task)) = run {
        task.abort();
    }
}

async fn run(places: Arc<Semaphore>, member: Arc<Member>, check: Check) {
    let every = Duration::from_millis(check.every_ms);
    // The first try comes soon, spread over the interval, so that a new topology is no wave.
    let mut pause = Duration::from_millis(chance::next() % check.every_ms.max(1));
    loop {
        tokio::time::sleep(pause).await;
        pause = every;
        let Ok(_place) = places.acquire().await else { return };
        let within = Duration::from_millis(check.timeout_ms);
        let result = match tokio::time::timeout(within, probe(member.address, &check.probe)).await {
            Ok(result) => result,
            Err(_) => Err(format!("no answer within {} ms", check.timeout_ms)),
        };
        let is_good = result.is_ok();
        if member.checked(result, &check) {
            let word = if is_good { "healthy" } else { "failing" };
            say(format_args!("backend {} of pool {} is {word}", member.uid, member.pool));
        }
    }
}

async fn probe(address: SocketAddr, probe: &Probe) -> Result<(), String> {
    let mut stream = TcpStream::connect(address).await.map_err(|error| format!("connect: {error}"))?;
    let Probe::Http(path) = probe else {
        return Ok(());
    };
    let request = format!(
        "GET {path} HTTP/1.1\r\nhost: {address}\r\nuser-agent: lightbyte-proxy\r\nconnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.map_err(|error| format!("send: {error}"))?;
    let mut answer = Vec::with_capacity(ANSWER_BYTES_MAX);
    while answer.len() < ANSWER_BYTES_MAX && !answer.contains(&b'\n') {
        let read = stream.read_buf(&mut answer).await.map_err(|error| format!("read: {error}"))?;
        if read == 0 {
            break;
        }
    }
    judge(&answer)
}

/// Whether the status line says 200 to 399.
fn judge(answer: &[u8]) -> Result<(), String> {
    let line = answer.split(|byte| *byte == b'\r' || *byte == b'\n').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    let status = line
        .strip_prefix("HTTP/1.")
        .and_then(|rest| rest.split(' ').nth(1))
        .and_then(|code| code.parse().ok());
    match status {
        Some(200..=399_u16) => Ok(()),
        Some(status) => Err(format!("status {status}")),
        None => Err("an answer that is not HTTP/1".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_line_is_judged() {
        let table: [(&[u8], Result<(), &str>); 7] = [
            (b"HTTP/1.1 200 OK\r\n", Ok(())),
            (b"HTTP/1.0 399\r\n", Ok(())),
            (b"HTTP/1.1 400 Bad\r\n", Err("status 400")),
            (b"HTTP/1.1 503\n", Err("status 503")),
            (b"HTTP/1.1 100 Continue\r\n", Err("status 100")),
            (b"SSH-2.0\r\n", Err("an answer that is not HTTP/1")),
            (b"", Err("an answer that is not HTTP/1")),
        ];
        for (answer, expected) in table {
            assert_eq!(judge(answer), expected.map_err(str::to_owned), "{}", String::from_utf8_lossy(answer));
        }
    }
}
