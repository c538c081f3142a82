//! Where VMs are kept.

use std::path::Path;
use std::time::Duration;

use lightbyte_api::ByteSize;

use super::super::facts::{Facts, Mount, Place, Trial, Tried};
use super::super::{Finding, Runner, Wishes};
use super::{Check, runs_firecracker};

/// Less free room than this is none: records and consoles of VMs need it, before any disk.
const FREE_BYTES_MIN: u64 = 1 << 30;

/// What a flush may take: records are saved before each step of a VM, and one step has a few.
const FLUSH_SLOW: Duration = Duration::from_millis(20);

/// A flush that takes so long makes every start of a VM take seconds.
const FLUSH_TOO_SLOW: Duration = Duration::from_millis(500);

/// Nothing that keeps bytes over a power cut answers in less: a system call alone takes a tenth of it.
const FLUSH_UNBELIEVABLE: Duration = Duration::from_micros(3);

/// File systems that are in memory, and empty after a boot.
const IN_MEMORY: [&str; 2] = ["tmpfs", "ramfs"];

pub(super) fn directory(wishes: &Wishes, facts: &Facts) -> Finding {
    let check = Check {
        name: "state",
        why: "disks and records of VMs are kept here, and have to be there after a power cut",
    };
    let state = wishes.state.display();
    let place = match &facts.state {
        Ok(place) => place,
        Err(why) => return refused(check, facts, format!("{state} cannot be looked at: {why}")),
    };
    let found = format!("{}, on {}", whereabouts(&wishes.state, place), place.mount.kind);
    if let Err(why) = &place.trial {
        return refused(check, facts, format!("{found}: {why}"));
    }
    match IN_MEMORY.contains(&place.mount.kind.as_str()) {
        true => check.bad(format!("{found}, which is in memory and empty after a boot"), OTHER_STATE),
        false => check.ok(found),
    }
}

/// What root may not either is bad; what somebody else may not says nothing.
fn refused(check: Check, facts: &Facts, found: String) -> Finding {
    match facts.is_root {
        true => check.bad(found, OTHER_STATE),
        false => check.warn(found, "sudo lightbyte doctor"),
    }
}

fn whereabouts(state: &Path, place: &Place) -> String {
    match place.is_state {
        true => state.display().to_string(),
        false => format!("{} is not there yet; looked at {}", state.display(), place.directory.display()),
    }
}

pub(super) fn space(wishes: &Wishes, facts: &Facts) -> Finding {
    let check = Check {
        name: "space",
        why: "disks of VMs take room as guests write; when none is left they see errors, all at once",
    };
    let Ok(place) = &facts.state else { return not_looked_at(check) };
    let found = format!("{} free on {}", gib(place.free_bytes), place.mount.place.display());
    let next = "make room, or name another directory with --state";
    if place.free_bytes < FREE_BYTES_MIN {
        let least = ByteSize::from_bytes(FREE_BYTES_MIN);
        check.bad(format!("{found}; {least} is the least"), next)
    } else if place.free_bytes < wishes.reserve.bytes() {
        check.warn(format!("{found}, which is less than the reserve of {}", wishes.reserve), next)
    } else {
        check.ok(found)
    }
}

pub(super) fn sharing(facts: &Facts) -> Finding {
    let check = Check {
        name: "shared blocks",
        why: "a new disk shares the blocks of its image where the file system can: made in a millisecond, and no room taken",
    };
    match trial(facts).map(|trial| &trial.shares) {
        Some(Tried::Works) => check.ok("files can share blocks"),
        Some(Tried::Fails(why)) => check.warn(
            format!("files cannot share blocks ({why}): every new disk is a whole copy of its image"),
            "put the state on XFS or btrfs, such as mkfs.xfs /dev/DISK",
        ),
        Some(Tried::NotTried(why)) => check.warn(format!("not tried: {why}"), "sudo lightbyte doctor"),
        None => not_looked_at(check),
    }
}

pub(super) fn flush(facts: &Facts) -> Finding {
    let check = Check {
        name: "flush",
        why: "each step of a VM waits until its record is on the disk, and guests wait for their own flushes",
    };
    let Some(trial) = trial(facts) else { return not_looked_at(check) };
    let (fixed, growing) = (trial.flush_fixed, trial.flush_growing);
    let found = format!("{} in place, {} at a growing file (medians)", time(fixed), time(growing));
    if fixed.min(growing) < FLUSH_UNBELIEVABLE {
        return check.warn(
            format!("{found}: too fast for anything that is kept over a power cut"),
            "look whether the disk is in memory, or a hypervisor drops flushes (its cache mode)",
        );
    }
    let next =
        "put the state on a faster disk: one with power loss protection, or an SSD instead of a rotating one";
    if growing >= FLUSH_TOO_SLOW {
        check.bad(format!("{found}: far too slow"), next)
    } else if growing >= FLUSH_SLOW {
        check.warn(format!("{found}: slow"), next)
    } else {
        check.ok(found)
    }
}

pub(super) fn jails(wishes: &Wishes, facts: &Facts) -> Finding {
    let check = Check {
        name: "jails",
        why: "a jail holds device nodes and the program itself, so its file system must allow both",
    };
    let mount = match &facts.jails {
        Some(mount) => mount.as_ref().map_err(String::as_str),
        None => facts.state.as_ref().map(|place| &place.mount).map_err(String::as_str),
    };
    if wishes.runner == Some(Runner::Qemu) {
        return check.ok("none; QEMU is to run the VMs");
    }
    let mount = match mount {
        Ok(mount) => mount,
        Err(why) => {
            let is_bad = facts.is_root && runs_firecracker(wishes, facts);
            return check.bad_if(is_bad, format!("not looked at: {why}"), OTHER_JAILS);
        }
    };
    let on = format!("{} ({})", mount.place.display(), mount.kind);
    match forbidden(mount).as_slice() {
        [] => check.ok(format!("{on} allows devices and programs")),
        options => check.bad_if(
            runs_firecracker(wishes, facts),
            format!("{on} is mounted {}", options.join(",")),
            format!("mount -o remount,dev,exec {}; or {OTHER_JAILS}", mount.place.display()),
        ),
    }
}

const OTHER_STATE: &str = "name another directory with --state";
const OTHER_JAILS: &str = "name another directory on the state's file system with --jails";

fn forbidden(mount: &Mount) -> Vec<&str> {
    let has = |option: &&str| mount.options.iter().any(|had| had == option);
    ["nodev", "noexec"].into_iter().filter(has).collect()
}

/// With one decimal, cut off: what is free is never told as more.
fn gib(bytes: u64) -> String {
    let tenths = (u128::from(bytes) * 10) >> 30;
    format!("{}.{} GiB", tenths / 10, tenths % 10)
}

fn trial(facts: &Facts) -> Option<&Trial> {
    facts.state.as_ref().ok()?.trial.as_ref().ok()
}

/// What cannot be said because of what `state` says already.
fn not_looked_at(check: Check) -> Finding {
    check.warn("not looked at, see `state`", "lightbyte doctor --state DIR")
}

/// With three figures, which is more than the measurement is worth.
fn time(time: Duration) -> String {
    match time.as_micros() {
        0..1_000 => format!("{} us", time.as_micros()),
        1_000..100_000 => format!("{}.{} ms", time.as_micros() / 1_000, time.as_micros() % 1_000 / 100),
        _ => format!("{} ms", time.as_millis()),
    }
}
