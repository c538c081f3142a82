//! What the host asks of a guest's agent, over whatever way a driver has into the guest. Blocking and bounded: a guest may
//! be silent, endless or hostile.

use std::time::{Duration, Instant};

use lightbyte_api::VmId;
use lightbyte_guest::protocol::{AGENT_PORT, Frozen};
use serde_json::json;

use crate::channel;
use crate::driver::{DriverError, Guest};

/// How long a guest may hold its breath while a disk of it is copied; it goes on by itself then.
const FREEZE_MAX: Duration = Duration::from_secs(30);
/// How long a guest may take to bring what it holds in memory to its disks.
const FLUSH_MAX: Duration = Duration::from_secs(20);
/// How long a guest may take for everything else.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// Guests that hold their breath: nothing of theirs reaches their disks. They go on when this is dropped.
pub(crate) struct Flushed<'a> {
    guest: &'a dyn Guest,
    /// The VMs, each with how many file systems it froze.
    vms: Vec<(VmId, u32)>,
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
            let frozen = ask(guest, *vm, "/v1/freeze", &body, FLUSH_MAX);
            let frozen = frozen.and_then(|answer| file_systems(&answer));
            // One that did not answer in time may hold its breath all the same.
            flushed.vms.push((*vm, *frozen.as_ref().unwrap_or(&0)));
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
        for (vm, frozen) in &self.vms {
            let thawed = ask(self.guest, *vm, "/v1/thaw", "{}", ANSWER_MAX);
            let thawed = thawed.and_then(|answer| match file_systems(&answer)? {
                thawed if thawed < *frozen => Err(DriverError::Refused("its time was over".to_owned())),
                _ => Ok(()),
            });
            thawed.map_err(|why| {
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
        for (vm, _) in &self.vms {
            let _ = ask(self.guest, *vm, "/v1/thaw", "{}", ANSWER_MAX);
        }
    }
}

/// Tells a guest that a disk has grown, so that its file system follows. One that cannot be told sees it when it starts.
pub(crate) fn tell_grown(guest: &dyn Guest, vm: VmId) {
    let _ = ask(guest, vm, "/v1/grow", "{}", FLUSH_MAX);
}

/// Posts `body` to a path of the agent, and gives its answer.
fn ask(guest: &dyn Guest, vm: VmId, path: &str, body: &str, wait: Duration) -> Result<Vec<u8>, DriverError> {
    let until = Instant::now() + wait;
    let stream = guest.connect(vm, AGENT_PORT, wait)?;
    let failed =
        |source| DriverError::System { context: format!("ask the guest's agent for {path}"), source };
    stream.set_write_timeout(Some(wait)).map_err(failed)?;
    match channel::exchange(&stream, "POST", path, body.as_bytes(), until).map_err(failed)? {
        (200, answer) => Ok(answer),
        (status, _) => Err(DriverError::Refused(format!("its agent answers {status}"))),
    }
}

/// How many file systems the guest froze or thawed.
fn file_systems(answer: &[u8]) -> Result<u32, DriverError> {
    let frozen = serde_json::from_slice::<Frozen>(answer);
    frozen
        .map(|frozen| frozen.file_systems)
        .map_err(|_| DriverError::Refused("its agent answers nonsense".to_owned()))
}
