//! The way into the guests of a host in memory, and what they said.

use std::io;
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use lightbyte_api::kinds::loadbalancer::PROXY_IMAGE;
use lightbyte_api::wire::EndedVm;
use lightbyte_api::{Name, VmId};
use lightbyte_guest::protocol::AGENT_PORT;

use super::{FakeHost, State, refuse};
use crate::driver::{ConsoleChunk, ConsoleFrom, DriverError, Guest};
use crate::fake_guest::FakeGuest;
use crate::identity;

impl Guest for FakeHost {
    /// Never waits: the guest is in this process.
    fn connect(&self, vm: VmId, port: u32, _wait: Duration) -> Result<UnixStream, DriverError> {
        let mut state = self.lock();
        let is_sick = state.sick.contains(&vm);
        let State { vms, proxies, .. } = &mut *state;
        let Some(found) = vms.get_mut(&vm).filter(|found| found.running) else {
            return refuse("the guest does not run");
        };
        let has_proxy = found.assigned.image.as_str() == PROXY_IMAGE;
        let guest = FakeGuest {
            identity: identity::of(vm, &found.assigned, ""),
            memory_bytes: found.assigned.memory.bytes(),
            started: found.started,
            sick: is_sick,
            proxy: has_proxy.then(|| Arc::clone(proxies.entry(vm).or_default())),
        };
        if port != AGENT_PORT {
            return Err(DriverError::nobody_at(port));
        }
        found.calls.take(guest).map_err(|error| match error.kind() {
            io::ErrorKind::ConnectionRefused => DriverError::nobody_at(port),
            _ => DriverError::System { context: format!("reach port {port} of the guest"), source: error },
        })
    }

    fn previous_life(&self, vm: VmId) -> Result<Range<u64>, DriverError> {
        let state = self.lock();
        let (before, last) = state.lives.get(&vm).copied().unwrap_or_default();
        let is_ended = state.ended.values().any(|ended| ended.vm == vm);
        Ok(if is_ended { last..u64::MAX } else { before..last })
    }

    fn ended(&self, name: &Name) -> Result<Option<EndedVm>, DriverError> {
        Ok(self.lock().ended.get(name).copied())
    }

    fn open_console(&self, vm: VmId) -> Result<UnixStream, DriverError> {
        let mut state = self.lock();
        let Some(found) = state.vms.get_mut(&vm).filter(|found| found.running) else {
            return refuse("the guest does not run");
        };
        let host = self.clone();
        let opened = found.calls.open_console(move |typed| host.lock().say(vm, typed));
        opened
            .map_err(|source| DriverError::System { context: "reach the guest's console".to_owned(), source })
    }

    fn read_console(&self, vm: VmId, from: ConsoleFrom) -> Result<ConsoleChunk, DriverError> {
        let state = self.lock();
        let Some(kept) = state.consoles.get(&vm) else { return Ok(ConsoleChunk::default()) };
        let wanted = from.within(kept.begin..kept.next());
        let skipped = usize::try_from(wanted.start - kept.begin).unwrap_or(usize::MAX);
        let length = usize::try_from(wanted.end - wanted.start).unwrap_or(usize::MAX);
        let bytes = kept.bytes.iter().skip(skipped).take(length).copied().collect();
        Ok(ConsoleChunk { begin: wanted.start, bytes })
    }
}
