//! What the host asks of a guest's agent, over whatever way a driver has into the guest. Blocking and bounded: a guest may
//! be silent, endless or hostile.

mod proxy;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lightbyte_api::health::{HealthCheck, HealthProbe};
use lightbyte_api::{Timestamp, VmId};
use lightbyte_guest::protocol::{AGENT_PORT, Check, Checked, Frozen, HttpCheck, Metrics, TcpCheck};
use lightbyte_plan::agent::health::Outcome;
use serde_json::json;

use crate::channel;
use crate::driver::{DriverError, Guest};

pub(crate) use self::proxy::{ask_proxy, tell_address};
pub use self::proxy::{carried, explain};

/// How long a guest may hold its breath while a disk of it is copied; it goes on by itself then.
const FREEZE_MAX: Duration = Duration::from_secs(30);
/// How long a guest may take to bring what it holds in memory to its disks.
const FLUSH_MAX: Duration = Duration::from_secs(20);
/// How long a guest may take for everything else.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// How long a check may take beside its own time.
const CHECK_WAY_MAX: Duration = Duration::from_secs(2);

/// Guests that hold their breath: nothing of theirs reaches one disk of each. They go on when this is dropped.
pub(crate) struct Flushed<'a> {
    guest: &'a dyn Guest,
    /// The word that is ours: another copy's end does not end this one's.
    token: String,
    vms: Vec<VmId>,
}

impl<'a> Flushed<'a> {
    /// Has the guests bring everything to their disks and hold their breath. With each VM the place of the disk that is
    /// to be copied.
    ///
    /// # Errors
    /// [`DriverError::Refused`] when one of them does not; then all go on.
    pub(crate) fn all(guest: &'a dyn Guest, vms: &[(VmId, usize)]) -> Result<Flushed<'a>, DriverError> {
        let mut flushed = Flushed { guest, token: fresh_token(), vms: Vec::with_capacity(vms.len()) };
        for (vm, place) in vms {
            let for_ms = FREEZE_MAX.as_millis();
            let body = json!({ "for_ms": for_ms, "token": flushed.token, "disks": [place] }).to_string();
            // One that does not answer in time may hold its breath all the same.
            flushed.vms.push(*vm);
            let frozen = ask(guest, *vm, "/v1/freeze", &body, FLUSH_MAX);
            let frozen = frozen.and_then(|answer| match file_systems(&answer)? {
                0 => Err(DriverError::Refused("it holds nothing still".to_owned())),
                _ => Ok(()),
            });
            frozen.map_err(|why| {
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
            let thawed = self.thaw(*vm).and_then(|answer| match file_systems(&answer)? {
                0 => Err(DriverError::Refused("its time was over".to_owned())),
                _ => Ok(()),
            });
            thawed.map_err(|why| {
                let what = "the guest went on writing while its disk was copied";
                DriverError::Refused(format!("{what} ({}); stop the VM, and it goes on", why.chain()))
            })?;
        }
        Ok(())
    }

    fn thaw(&self, vm: VmId) -> Result<Vec<u8>, DriverError> {
        ask(self.guest, vm, "/v1/thaw", &json!({ "token": self.token }).to_string(), ANSWER_MAX)
    }
}

impl Drop for Flushed<'_> {
    fn drop(&mut self) {
        // Each goes on by itself in the end, and one that was let go says no.
        for vm in &self.vms {
            let _ = self.thaw(*vm);
        }
    }
}

/// A word that no other copy on this host has.
fn fresh_token() -> String {
    static COPIES: AtomicU64 = AtomicU64::new(0);
    let now = Timestamp::now().as_nanosecond();
    format!("{}-{now}-{}", std::process::id(), COPIES.fetch_add(1, Ordering::Relaxed))
}

/// Tells a guest that a disk has grown, so that its file system follows. One that cannot be told sees it when it starts.
pub(crate) fn tell_grown(guest: &dyn Guest, vm: VmId) {
    let _ = ask(guest, vm, "/v1/grow", "{}", FLUSH_MAX);
}

/// Has the guest's agent try what `check` says.
pub(crate) fn check(guest: &dyn Guest, vm: VmId, check: &HealthCheck) -> Outcome {
    let time = check.timeout.duration();
    let mut wanted = Check { timeout_ms: check.timeout.millis(), ..Check::default() };
    match &check.probe {
        HealthProbe::Http { port, path } => {
            wanted.http = Some(HttpCheck { port: *port, path: path.clone() });
        }
        HealthProbe::Tcp { port } => wanted.tcp = Some(TcpCheck { port: *port }),
        HealthProbe::Exec { command } => wanted.command.clone_from(command),
    }
    let answer = ask(guest, vm, "/v1/check", &json!(wanted).to_string(), time + CHECK_WAY_MAX);
    match answer.map(|answer| serde_json::from_slice::<Checked>(&answer)) {
        Ok(Ok(Checked { skipped: true, .. })) => Outcome::Skipped,
        Ok(Ok(Checked { passed: true, .. })) => Outcome::Passed,
        Ok(Ok(Checked { problem, .. })) => Outcome::Failed(problem),
        Ok(Err(_)) => Outcome::Failed("its agent answers nonsense".to_owned()),
        Err(error) => Outcome::Failed(error.chain()),
    }
}

/// What the guest says it has used since its kernel started. A guest is hostile: it may say anything, within `wait`.
///
/// # Errors
/// When its agent does not answer, or answers nonsense.
pub fn metrics(guest: &dyn Guest, vm: VmId, wait: Duration) -> Result<Metrics, DriverError> {
    let answer = exchange(guest, vm, ("GET", "/v1/metrics"), "", wait)?;
    serde_json::from_slice(&answer).map_err(|_| DriverError::Refused("its agent answers nonsense".to_owned()))
}

/// Posts `body` to a path of the agent, and gives its answer.
fn ask(guest: &dyn Guest, vm: VmId, path: &str, body: &str, wait: Duration) -> Result<Vec<u8>, DriverError> {
    exchange(guest, vm, ("POST", path), body, wait)
}

fn exchange(
    guest: &dyn Guest,
    vm: VmId,
    (method, path): (&str, &str),
    body: &str,
    wait: Duration,
) -> Result<Vec<u8>, DriverError> {
    match answer(guest, vm, (method, path), body, wait)? {
        (200, answer) => Ok(answer),
        (status, _) => Err(DriverError::Refused(format!("its agent answers {status}"))),
    }
}

/// The status and the body of what the agent answers.
fn answer(
    guest: &dyn Guest,
    vm: VmId,
    (method, path): (&str, &str),
    body: &str,
    wait: Duration,
) -> Result<(u16, Vec<u8>), DriverError> {
    let until = Instant::now() + wait;
    let stream = guest.connect(vm, AGENT_PORT, wait)?;
    let failed =
        |source| DriverError::System { context: format!("ask the guest's agent for {path}"), source };
    stream.set_write_timeout(Some(wait)).map_err(failed)?;
    channel::exchange(&stream, method, path, body.as_bytes(), until).map_err(failed)
}

/// How many file systems the guest froze or thawed.
fn file_systems(answer: &[u8]) -> Result<u32, DriverError> {
    let frozen = serde_json::from_slice::<Frozen>(answer);
    frozen
        .map(|frozen| frozen.file_systems)
        .map_err(|_| DriverError::Refused("its agent answers nonsense".to_owned()))
}
