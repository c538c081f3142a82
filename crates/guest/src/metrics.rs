//! `GET /v1/metrics`: read from /proc when asked, kept nowhere.

use std::path::Path;

use lightbyte_guest::protocol::Metrics;

use crate::boot::read_limited;

/// The files read here have a few kilobytes at most.
const FILE_BYTES_MAX: u64 = 16 * 1024;

/// How long a tick of /proc/stat lasts: the kernel tells them as hundredths of a second on every architecture (proc(5)).
const TICK_MILLIS: u64 = 10;

/// The guest's load and memory now; what cannot be read is nought.
pub(crate) fn metrics() -> Metrics {
    let read = |path: &str| read_limited(Path::new(path), FILE_BYTES_MAX).unwrap_or_default();
    parse(&read("/proc/loadavg"), &read("/proc/meminfo"), &read("/proc/uptime"), &read("/proc/stat"))
}

fn parse(loadavg: &str, meminfo: &str, uptime: &str, stat: &str) -> Metrics {
    let first = |text: &str| text.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(0.0);
    let memory = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
        kib.unwrap_or(0).saturating_mul(1024)
    };
    let (cpu_busy_millis, cpu_idle_millis) = cpu_time(stat);
    Metrics {
        cpu_busy_millis,
        cpu_idle_millis,
        load_1m: first(loadavg),
        memory_total_bytes: memory("MemTotal"),
        memory_available_bytes: memory("MemAvailable"),
        uptime_seconds: first(uptime),
    }
}

/// Busy and idle milliseconds of the first line, whose columns are user, nice, system, idle, iowait, irq, softirq, steal, and
/// two that user and nice contain.
fn cpu_time(stat: &str) -> (u64, u64) {
    let mut words = stat.lines().next().unwrap_or_default().split_whitespace();
    if words.next() != Some("cpu") {
        return (0, 0);
    }
    let mut columns = words.map(|word| word.parse::<u64>().unwrap_or(0));
    let mut column = || columns.next().unwrap_or(0);
    let [user, nice, system, idle, wait, irq, soft] = std::array::from_fn(|_| column());
    let millis = |ticks: [u64; 5]| {
        ticks.iter().fold(0_u64, |sum, ticks| sum.saturating_add(*ticks)).saturating_mul(TICK_MILLIS)
    };
    (millis([user, nice, system, irq, soft]), millis([idle, wait, 0, 0, 0]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_files_are_read_and_nonsense_is_nought() {
        let meminfo = "MemTotal:         106428 kB\nMemFree: 1 kB\nMemAvailable:      84356 kB\n";
        let metrics = parse(
            "0.25 0.10 0.05 1/40 77\n",
            meminfo,
            "12.50 3.00\n",
            "cpu  10 1 5 900 4 2 3 50 7 0\ncpu0 1 1\n",
        );
        let expected = Metrics {
            load_1m: 0.25,
            memory_total_bytes: 106_428 * 1024,
            memory_available_bytes: 84_356 * 1024,
            uptime_seconds: 12.5,
            cpu_busy_millis: 210,
            cpu_idle_millis: 9_040,
        };
        assert_eq!(metrics, expected);
        assert_eq!(parse("", "MemTotal: x", "?", "cpus"), Metrics::default());
    }
}
