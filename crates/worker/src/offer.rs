//! What a host offers to VMs, and what it keeps for itself.

use std::fs;
use std::thread::available_parallelism;

use anyhow::{Context as _, Result};
use lightbyte_api::ByteSize;
use lightbyte_guest::proc::memory_bytes;

/// Virtual CPUs for each CPU of the host, unless it is said otherwise: most VMs idle most of the time.
pub const CPU_OVERCOMMIT: u64 = 4;

/// The most VMs, unless it is said otherwise. A Linux bridge has at most 1,023 ports (`BR_PORT_BITS`, net/bridge/br_private.h).
pub const VMS_MAX: u64 = 1_000;

/// What stays free of the disk, unless it is said otherwise.
pub const DISK_RESERVE: ByteSize = ByteSize::from_mib(1_024);

/// The least memory that the host keeps.
const MEMORY_KEPT_MIN: u64 = 1 << 30;

/// Of the memory, one part in so many is the host's.
const MEMORY_KEPT_PART: u64 = 8;

/// What a host offers to VMs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// CPUs that the host has.
    pub host_cpus: u64,
    /// Virtual CPUs.
    pub cpus: u64,
    /// Memory of guests.
    pub memory: ByteSize,
    /// The most VMs.
    pub vms_max: u64,
}

impl Offer {
    /// What was asked for, and what this host has where nothing was.
    ///
    /// # Errors
    /// When the host does not say what it has.
    pub fn of_host(
        cpus: Option<u64>,
        cpu_overcommit: u64,
        memory: Option<ByteSize>,
        vms_max: u64,
    ) -> Result<Offer> {
        let host_cpus = available_parallelism().context("count the CPUs of this host")?.get() as u64;
        let memory = match memory {
            Some(memory) => memory,
            None => {
                let text = fs::read_to_string("/proc/meminfo").context("read /proc/meminfo")?;
                offered_memory(memory_bytes(&text, "MemTotal").context("/proc/meminfo has no MemTotal")?)
            }
        };
        let cpus = cpus.unwrap_or_else(|| host_cpus.saturating_mul(cpu_overcommit));
        Ok(Offer { host_cpus, cpus, memory, vms_max })
    }
}

/// All but what the host keeps, in whole MiB.
fn offered_memory(total: u64) -> ByteSize {
    let kept = (total / MEMORY_KEPT_PART).max(MEMORY_KEPT_MIN);
    ByteSize::from_mib(total.saturating_sub(kept) >> 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_keeps_an_eighth_of_its_memory_and_a_gib_at_least() {
        let table = [
            ("MemTotal:        2097152 kB\nMemFree: 1 kB", Some(1_024)),
            ("MemFree: 1 kB\nMemTotal:       67108864 kB", Some(57_344)),
            ("MemTotal:         524288 kB", Some(0)),
            ("MemTotal: much", None),
            ("", None),
        ];
        for (meminfo, expected) in table {
            let offered = memory_bytes(meminfo, "MemTotal").map(offered_memory);
            assert_eq!(offered, expected.map(ByteSize::from_mib), "{meminfo}");
        }
    }
}
