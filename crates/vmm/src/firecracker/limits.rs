//! Limits of the host on a jailed process: control groups, made by the jailer and removed by us. Where a host has
//! neither version with the controllers for CPU and memory, there are none.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use lightbyte_api::VmId;

use crate::driver::DriverError;
use crate::room::system;

/// The group that holds one for each VM.
const PARENT: &str = "lightbyte";

/// What Firecracker may need beside its guest's memory, in bytes: it says 5 MiB, and page tables and the pages of files
/// that it is just writing count too.
const OVERHEAD_BYTES: u64 = 64 << 20;

/// The time in which shares of CPUs are dealt out, in microseconds: the kernel's own choice.
const PERIOD_US: u64 = 100_000;

/// Share of a CPU for Firecracker's own threads, in microseconds of each period: its disks and network.
const OVERHEAD_US: u64 = PERIOD_US / 2;

/// Control groups of one VM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Limits {
    /// The jailer's arguments.
    pub(super) words: Vec<OsString>,
    /// The directories that the jailer makes.
    pub(super) directories: Vec<PathBuf>,
}

/// Limits of a VM on this host.
pub(super) fn limits(vm: VmId, cpus: u64, memory_bytes: u64) -> Limits {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    let controllers = |mount: &Path| fs::read_to_string(mount.join("cgroup.controllers")).unwrap_or_default();
    of_mounts(&mounts, controllers, vm, cpus, memory_bytes)
}

/// Version 2 is preferred: it is what hosts have, and both controllers are in one group there.
fn of_mounts(
    mounts: &str,
    controllers: impl Fn(&Path) -> String,
    vm: VmId,
    cpus: u64,
    memory_bytes: u64,
) -> Limits {
    let memory_max = memory_bytes.saturating_add(OVERHEAD_BYTES);
    let quota_us = cpus.saturating_mul(PERIOD_US).saturating_add(OVERHEAD_US);
    let mounts: Vec<(PathBuf, &str, Vec<&str>)> = mounts.lines().filter_map(mount).collect();
    let unified = mounts.iter().find(|(place, kind, _)| {
        let has = controllers(place);
        *kind == "cgroup2"
            && ["cpu", "memory"].iter().all(|name| has.split_whitespace().any(|had| had == *name))
    });
    if let Some((place, ..)) = unified {
        let values = [format!("memory.max={memory_max}"), format!("cpu.max={quota_us} {PERIOD_US}")];
        return Limits { words: words("2", values), directories: vec![directory(place, vm)] };
    }
    let of = |name: &str| {
        let found = mounts.iter().find(|(_, kind, options)| *kind == "cgroup" && options.contains(&name));
        found.map(|(place, ..)| directory(place, vm))
    };
    match (of("cpu"), of("memory")) {
        (Some(cpu), Some(memory)) => {
            let values = [
                format!("memory.limit_in_bytes={memory_max}"),
                format!("cpu.cfs_period_us={PERIOD_US}"),
                format!("cpu.cfs_quota_us={quota_us}"),
            ];
            let mut directories = vec![cpu, memory];
            directories.dedup();
            Limits { words: words("1", values), directories }
        }
        _ => Limits::default(),
    }
}

/// Place, kind and options of a line of proc_mounts(5).
fn mount(line: &str) -> Option<(PathBuf, &str, Vec<&str>)> {
    let mut words = line.split(' ').skip(1);
    Some((words.next()?.into(), words.next()?, words.next()?.split(',').collect()))
}

fn directory(mount: &Path, vm: VmId) -> PathBuf {
    mount.join(PARENT).join(vm.to_string())
}

fn words(version: &str, values: impl IntoIterator<Item = String>) -> Vec<OsString> {
    let mut words: Vec<OsString> =
        ["--cgroup-version", version, "--parent-cgroup", PARENT].into_iter().map(OsString::from).collect();
    for value in values {
        words.extend(["--cgroup".into(), value.into()]);
    }
    words
}

/// Removes the groups of a process that has ended. Those of other VMs, and the one that holds them, stay.
///
/// # Errors
/// If somebody is in one.
pub(super) fn remove(directories: &[PathBuf]) -> Result<(), DriverError> {
    for directory in directories {
        match fs::remove_dir(directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(system(format!("remove the control group {}", directory.display()))(error));
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use lightbyte_api::Uid;

    const V1: &str = "\
cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,relatime,cpu,cpuacct 0 0
cgroup /sys/fs/cgroup/memory cgroup rw,relatime,memory 0 0
cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime 0 0";

    fn check(mounts: &str, controllers: &str) -> (String, Vec<String>) {
        let vm = VmId::new(Uid::from_bits(7));
        let limits = of_mounts(mounts, |_| controllers.to_owned(), vm, 2, 256 << 20);
        let words: Vec<String> =
            limits.words.iter().map(|word| word.to_string_lossy().into_owned()).collect();
        let directories = limits.directories.iter().map(|place| {
            let place = place.display().to_string();
            place.strip_suffix(&format!("/lightbyte/{vm}")).expect("a VM's own").to_owned()
        });
        (words.join(" "), directories.collect())
    }

    #[test]
    fn the_best_version_that_has_both_controllers_is_used() {
        let version_1 = "--cgroup-version 1 --parent-cgroup lightbyte --cgroup memory.limit_in_bytes=335544320 \
                         --cgroup cpu.cfs_period_us=100000 --cgroup cpu.cfs_quota_us=250000";
        let version_2 = "--cgroup-version 2 --parent-cgroup lightbyte --cgroup memory.max=335544320 \
                         --cgroup cpu.max=250000 100000";
        let places = |places: &[&str]| places.iter().map(|place| (*place).to_owned()).collect::<Vec<_>>();
        let unified = "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0";
        let nothing = (String::new(), places(&[]));
        assert_eq!(
            check(V1, "hugetlb"),
            (version_1.to_owned(), places(&["/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup/memory"]))
        );
        assert_eq!(check(V1, "cpu memory"), (version_2.to_owned(), places(&["/sys/fs/cgroup/unified"])));
        assert_eq!(
            check(unified, "cpuset cpu io memory pids\n"),
            (version_2.to_owned(), places(&["/sys/fs/cgroup"]))
        );
        for (mounts, controllers) in [(unified, "cpuset memory"), ("", ""), ("nonsense\n\n", "cpu memory")] {
            assert_eq!(check(mounts, controllers), nothing);
        }
        let joint = "cgroup /c cgroup rw,cpu,memory 0 0";
        assert_eq!(check(joint, ""), (version_1.to_owned(), places(&["/c"])));
    }
}
