//! Who looks, the clock, and limits.

use std::time::Duration;

use super::super::Finding;
use super::super::facts::{Facts, Groups};
use super::Check;

/// Descriptors that a worker has for each VM: its process, its sockets, its console.
const FILES_PER_VM: u64 = 8;
/// What a worker needs for itself.
const FILES_OF_WORKER: u64 = 64;
/// VMs that a host should have descriptors for.
const VMS_WISHED: u64 = 500;
/// With fewer VMs a host is not worth its name.
const VMS_MIN: u64 = 10;

/// Processes and threads of a VM: its machine process with a thread for each CPU, the channel, and its thread in the worker.
const THREADS_PER_VM: u64 = 16;

/// More than this and a certificate or a lease may look too old on one host and fresh on another.
const CLOCK_ERROR_MAX: Duration = Duration::from_secs(1);

/// Letters and dashes of a boot's identity (random(4)).
const BOOT_ID_LENGTH: usize = 36;

/// Controllers that hold a jailed VM to its size.
const CONTROLLERS: [&str; 2] = ["cpu", "memory"];

pub(super) fn rights(facts: &Facts) -> Finding {
    let check = Check { name: "rights", why: "a worker makes taps, rules and jails, which only root may" };
    match facts.is_root {
        true => check.ok("root"),
        false => check.warn("not root: some things are not tried", "sudo lightbyte doctor"),
    }
}

pub(super) fn clock(facts: &Facts) -> Finding {
    let check = Check {
        name: "clock",
        why: "hosts whose clocks differ tell their stories in the wrong order, and certificates end too soon or too late",
    };
    let next = "apt install chrony, or timedatectl set-ntp true";
    match &facts.clock {
        Err(why) => check.warn(format!("the kernel does not tell: {why}"), next),
        Ok(clock) if !clock.is_synchronised => {
            check.warn("nobody keeps it right, as far as the kernel knows", next)
        }
        Ok(clock) if clock.error_max > CLOCK_ERROR_MAX => check.warn(
            format!("kept right, but it may be off by {} ms", clock.error_max.as_millis()),
            "chronyc tracking, or timedatectl timesync-status",
        ),
        Ok(clock) => check.ok(format!(
            "kept right; off by {} ms at most, as the kernel counts",
            clock.error_max.as_millis()
        )),
    }
}

pub(super) fn boot_id(facts: &Facts) -> Finding {
    let check = Check {
        name: "boot id",
        why: "by it a worker knows that its host has booted and its VMs have ended",
    };
    let next = "mount -t proc proc /proc";
    match &facts.boot_id {
        Ok(id) if id.len() == BOOT_ID_LENGTH => check.ok(id.clone()),
        Ok(id) => check.bad(format!("`{id}` is none"), next),
        Err(why) => check.bad(format!("it cannot be read: {why}"), next),
    }
}

pub(super) fn open_files(facts: &Facts) -> Finding {
    let check = Check {
        name: "open files",
        why: "a worker has files open for each VM; the limit is of this shell, and a service has its own (LimitNOFILE)",
    };
    let Some(limit) = facts.limits.open_files else { return check.ok("no limit") };
    let vms = limit.saturating_sub(FILES_OF_WORKER) / FILES_PER_VM;
    counted(check, limit, vms, &format!("ulimit -n {}", FILES_OF_WORKER + VMS_WISHED * FILES_PER_VM))
}

pub(super) fn processes(facts: &Facts) -> Finding {
    let check = Check {
        name: "processes",
        why: "each VM is a process with threads; the lowest of all limits counts, that of this shell's control group too",
    };
    let Some(limit) = facts.limits.processes else { return check.ok("no limit") };
    let next = format!(
        "sysctl -w kernel.pid_max=4194304, ulimit -u unlimited, and TasksMax={} for a service",
        VMS_WISHED * THREADS_PER_VM
    );
    counted(check, limit, limit / THREADS_PER_VM, &next)
}

fn counted(check: Check, limit: u64, vms: u64, next: &str) -> Finding {
    let found = format!("{limit}, enough for some {vms} VMs");
    match vms {
        0..VMS_MIN => check.bad(found, next),
        VMS_MIN..VMS_WISHED => check.warn(found, next),
        _ => check.ok(format!("{limit}")),
    }
}

pub(super) fn groups(facts: &Facts) -> Finding {
    let check = Check {
        name: "control groups",
        why: "they hold a jailed VM to its CPUs and memory; where they are missing one VM can take all",
    };
    let Groups { unified, separate } = &facts.groups;
    let has = |list: &[String]| CONTROLLERS.iter().all(|name| list.iter().any(|had| had == name));
    if has(unified) {
        check.ok(format!("version 2: {}", unified.join(", ")))
    } else if has(separate) {
        check.ok(format!("version 1: {}", separate.join(", ")))
    } else {
        check.warn(
            "`cpu` and `memory` are not both there, in either version",
            "mount -t cgroup2 cgroup2 /sys/fs/cgroup",
        )
    }
}
