//! What `/proc` and `/sys` tell: CPU, memory, clock, limits.

use std::fs;
use std::path::Path;

use rustix::process::{Resource, getrlimit};

use super::super::facts::{Clock, Cpu, Groups, Limits, Memory};
use super::{line, mounts};

/// Controllers of version 1, which share their place with other options of a mount.
const CONTROLLERS: [&str; 5] = ["cpu", "memory", "pids", "blkio", "cpuset"];

pub(super) fn cpu() -> Cpu {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = text.lines().find_map(|line| line.strip_prefix("flags")).unwrap_or_default();
    let has = |flag: &str| flags.split_whitespace().any(|had| had == flag);
    Cpu {
        virtualisation: ["vmx", "svm"].into_iter().find(|flag| has(flag)),
        is_guest: has("hypervisor"),
        weaknesses: weaknesses(),
        smt: line("/sys/devices/system/cpu/smt/active").map(|active| active == "1"),
    }
}

fn weaknesses() -> Vec<String> {
    let Ok(entries) = fs::read_dir("/sys/devices/system/cpu/vulnerabilities") else { return Vec::new() };
    let open = entries
        .flatten()
        .filter(|entry| line(entry.path()).is_some_and(|text| text.starts_with("Vulnerable")));
    let mut names: Vec<String> = open.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort_unstable();
    names
}

pub(super) fn memory() -> Memory {
    Memory {
        merges: line("/sys/kernel/mm/ksm/run").map(|run| run == "1"),
        swaps: swaps(&fs::read_to_string("/proc/swaps").unwrap_or_default()),
        overcommit: line("/proc/sys/vm/overcommit_memory").and_then(|value| value.parse().ok()),
    }
}

/// Swap areas by their names, without those that are compressed memory.
fn swaps(text: &str) -> Vec<String> {
    let names = text.lines().skip(1).filter_map(|line| line.split_whitespace().next());
    names.filter(|name| !name.starts_with("/dev/zram")).map(str::to_owned).collect()
}

pub(super) fn clock() -> Result<Clock, String> {
    let clock = lightbyte_vmm::clock::ask().map_err(|error| error.to_string())?;
    Ok(Clock { is_synchronised: clock.is_synchronised, error_max: clock.error_max })
}

pub(super) fn limits() -> Limits {
    let number = |path: &str| line(path)?.parse::<u64>().ok();
    let processes = [
        number("/proc/sys/kernel/pid_max"),
        number("/proc/sys/kernel/threads-max"),
        getrlimit(Resource::Nproc).current,
        of_group(),
    ];
    Limits {
        open_files: getrlimit(Resource::Nofile).current,
        processes: processes.into_iter().flatten().min(),
    }
}

/// The limit of processes of the control group that this process is in.
fn of_group() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let limits = groups.lines().filter_map(|group| {
        let mut parts = group.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?);
        let is_of = |kind: &str, options: &[String]| match controllers {
            "" => kind == "cgroup2",
            _ => kind == "cgroup" && options.iter().any(|option| option == "pids"),
        };
        let is_limit = controllers.is_empty() || controllers.split(',').any(|name| name == "pids");
        let mount = mounts::all(&mounts).find(|mount| is_limit && is_of(&mount.kind, &mount.options))?;
        let file = mount.place.join(path.trim_start_matches('/')).join("pids.max");
        line(file)?.parse().ok()
    });
    limits.min()
}

pub(super) fn groups() -> Groups {
    groups_of(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default(), |place| {
        line(place.join("cgroup.controllers")).unwrap_or_default()
    })
}

fn groups_of(mounts: &str, controllers: impl Fn(&Path) -> String) -> Groups {
    let mut groups = Groups::default();
    for mount in mounts::all(mounts).filter(|mount| mount.options.iter().all(|option| option != "ro")) {
        match mount.kind.as_str() {
            "cgroup2" => {
                groups.unified = controllers(&mount.place).split_whitespace().map(str::to_owned).collect();
            }
            "cgroup" => {
                let known = mount.options.into_iter().filter(|option| CONTROLLERS.contains(&option.as_str()));
                groups.separate.extend(known);
            }
            _ => {}
        }
    }
    groups.separate.sort_unstable();
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compressed_memory_is_no_swap_on_a_disk() {
        let text = "Filename\tType\tSize\tUsed\tPriority\n/dev/zram0 partition 1 0 100\n/swap\\040file file 8 0 -2\n";
        assert_eq!(swaps(text), ["/swap\\040file"]);
        assert_eq!(swaps(""), Vec::<String>::new());
    }

    #[test]
    fn controllers_of_both_versions_are_told_apart() {
        let mounts = "\
31 1 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct
33 31 0:30 / /sys/fs/cgroup/memory ro,relatime - cgroup cgroup rw,memory
34 31 0:31 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";
        let groups = groups_of(mounts, |_| "hugetlb pids".to_owned());
        assert_eq!(groups.unified, ["hugetlb", "pids"]);
        assert_eq!(groups.separate, ["cpu"]);
    }

    #[test]
    fn this_machine_answers() {
        let limits = limits();
        assert!(limits.processes.is_some_and(|number| number > 1), "{limits:?}");
        assert!(memory().overcommit.is_some());
        assert!(clock().is_ok(), "{:?}", clock());
    }
}
