//! What the host asks of a guest's agent, over whatever way a driver has into the guest. Blocking and bounded: a guest may
//! be silent, endless or hostile.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use lightbyte_api::VmId;
use lightbyte_guest::protocol::AGENT_PORT;
use serde_json::json;

use crate::driver::{DriverError, Guest};
use crate::http;

/// How long a guest may hold its breath while a disk of it is copied; it goes on by itself then.
const FREEZE_MAX: Duration = Duration::from_secs(30);
/// How long a guest may take to bring what it holds in memory to its disks.
const FLUSH_MAX: Duration = Duration::from_secs(20);
/// How long a guest may take for everything else.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// Largest answer that is read.
const ANSWER_BYTES_MAX: u64 = 64 * 1024;

/// Guests that hold their breath: nothing of theirs reaches their disks. They go on when this is dropped.
pub(crate) struct Flushed<'a> {
    guest: &'a dyn Guest,
    vms: Vec<VmId>,
}

impl<'a> Flushed<'a> {
    /// Has the guests bring everything to their disks and hold their breath.
    ///
    /// # Errors
    /// [`DriverError::Refused`] when one of them does not; then all go on.
    pub(crate) fn all(guest: &'a dyn Guest, vms: &[VmId]) -> Result<Flushed<'a>, DriverError> {
        let mut flushed = Flushed { guest, vms: Vec::with_capacity(vms.len()) };
        let body = json!({ "for_ms": FREEZE_MAX.as_millis() }).to_string();
        for vm in vms {
            let outcome = ask(guest, *vm, "/v1/freeze", &body, FLUSH_MAX);
            // One that did not answer in time may hold its breath all the same.
            flushed.vms.push(*vm);
            outcome.map_err(|why| {
                let what = "the guest that uses the disk did not bring its data to it";
                DriverError::Refused(format!("{what} ({}); stop the VM, and it goes on", why.chain()))
            })?;
        }
        Ok(flushed)
    }

    /// Lets the guests go on.
    ///
    /// # Errors
    /// [`DriverError::Refused`] when one of them has gone on before: what was copied since is worth nothing.
    pub(crate) fn release(&self) -> Result<(), DriverError> {
        for vm in &self.vms {
            ask(self.guest, *vm, "/v1/thaw", "{}", ANSWER_MAX).map_err(|why| {
                let what = "the guest went on writing while its disk was copied";
                DriverError::Refused(format!("{what} ({}); stop the VM, and it goes on", why.chain()))
            })?;
        }
        Ok(())
    }
}

impl Drop for Flushed<'_> {
    fn drop(&mut self) {
        // Each goes on by itself in the end, and one that was let go says no.
        for vm in &self.vms {
            let _ = ask(self.guest, *vm, "/v1/thaw", "{}", ANSWER_MAX);
        }
    }
}

/// Tells a guest that a disk has grown, so that its file system follows. One that cannot be told sees it when it starts.
pub(crate) fn tell_grown(guest: &dyn Guest, vm: VmId) {
    let _ = ask(guest, vm, "/v1/grow", "{}", FLUSH_MAX);
}

/// Posts `body` to a path of the agent.
fn ask(guest: &dyn Guest, vm: VmId, path: &str, body: &str, wait: Duration) -> Result<(), DriverError> {
    let until = Instant::now() + wait;
    let stream = guest.connect(vm, AGENT_PORT, wait)?;
    let failed =
        |source| DriverError::System { context: format!("ask the guest's agent for {path}"), source };
    let answer = post(&stream, path, body, until).map_err(failed)?;
    let status = answer.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3));
    match status {
        Some("200" | "202" | "204") => Ok(()),
        Some(status) => Err(DriverError::Refused(format!("its agent answers {status}"))),
        None => Err(DriverError::Refused("its agent answers no HTTP".to_owned())),
    }
}

/// The answer's head.
fn post(mut stream: &UnixStream, path: &str, body: &str, until: Instant) -> io::Result<String> {
    let left = || {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::Error::from(io::ErrorKind::TimedOut)) } else { Ok(left) }
    };
    stream.set_write_timeout(Some(left()?))?;
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: guest\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(&[head.as_bytes(), body.as_bytes()].concat())?;
    let mut answer = Vec::new();
    let mut chunk = [0; 4096];
    while http::head_bytes(&answer).is_none() && answer.len() as u64 <= ANSWER_BYTES_MAX {
        stream.set_read_timeout(Some(left()?))?;
        match stream.read(&mut chunk)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => answer.extend_from_slice(&chunk[..read]),
        }
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
