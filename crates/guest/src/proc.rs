//! Files of /proc that tell what a machine uses, for the agent of a guest and that of its host.

/// How long a tick of /proc/stat lasts: the kernel tells them as hundredths of a second on every architecture (proc(5)).
const TICK_MILLIS: u64 = 10;

/// What the kernel has counted since it started, in milliseconds over all CPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuMillis {
    /// In which something ran.
    pub busy: u64,
    /// In which nothing did, or it waited for a disk.
    pub idle: u64,
    /// Which the machine beneath took away.
    pub stolen: u64,
}

/// The first line of /proc/stat (proc_stat(5)); nought where it is not one.
#[must_use]
pub fn cpu_millis(stat: &str) -> CpuMillis {
    let mut words = stat.lines().next().unwrap_or_default().split_whitespace();
    if words.next() != Some("cpu") {
        return CpuMillis::default();
    }
    // Two more columns follow, which user and nice contain.
    let mut ticks = words.map(|word| word.parse::<u64>().unwrap_or(0));
    let [user, nice, system, idle, wait, irq, soft, stolen] =
        std::array::from_fn(|_| ticks.next().unwrap_or(0));
    let millis = |ticks: &[u64]| {
        ticks.iter().fold(0_u64, |sum, ticks| sum.saturating_add(*ticks)).saturating_mul(TICK_MILLIS)
    };
    CpuMillis {
        busy: millis(&[user, nice, system, irq, soft]),
        idle: millis(&[idle, wait]),
        stolen: millis(&[stolen]),
    }
}

/// A line of /proc/meminfo, such as `MemTotal` (proc_meminfo(5)), in bytes; it is told in KiB.
#[must_use]
pub fn memory_bytes(meminfo: &str, name: &str) -> Option<u64> {
    let rest = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    rest.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_writes_is_read_and_nonsense_is_nought() {
        let found = cpu_millis("cpu  10 1 5 900 4 2 3 50 7 0\ncpu0 1 1\n");
        assert_eq!(found, CpuMillis { busy: 210, idle: 9_040, stolen: 500 });
        assert_eq!(cpu_millis("cpu 1"), CpuMillis { busy: 10, ..CpuMillis::default() });
        assert_eq!(cpu_millis("cpus 1 2 3 4"), CpuMillis::default());
        assert_eq!(cpu_millis(""), CpuMillis::default());
        let meminfo = "MemTotal:         106428 kB\nMemFree: 1 kB\nMemAvailable:      84356 kB\n";
        assert_eq!(memory_bytes(meminfo, "MemTotal"), Some(106_428 * 1024));
        assert_eq!(memory_bytes(meminfo, "MemAvailable"), Some(84_356 * 1024));
        assert_eq!(memory_bytes("MemTotal: much", "MemTotal"), None);
        assert_eq!(memory_bytes("MemTotal: 18446744073709551615 kB", "MemTotal"), None);
        assert_eq!(memory_bytes(meminfo, "Mem"), None);
    }
}
