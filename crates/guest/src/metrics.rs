//! `GET /v1/metrics`: read from /proc when asked, kept nowhere.

use std::path::Path;

use lightbyte_guest::proc::{CpuMillis, cpu_millis, memory_bytes};
use lightbyte_guest::protocol::Metrics;

use crate::boot::read_limited;

/// The files read here have a few kilobytes at most.
const FILE_BYTES_MAX: u64 = 16 * 1024;

/// The guest's load and memory now; what cannot be read is nought.
pub(crate) fn metrics() -> Metrics {
    let read = |path: &str| read_limited(Path::new(path), FILE_BYTES_MAX).unwrap_or_default();
    parse(&read("/proc/loadavg"), &read("/proc/meminfo"), &read("/proc/uptime"), &read("/proc/stat"))
}

fn parse(loadavg: &str, meminfo: &str, uptime: &str, stat: &str) -> Metrics {
    let first = |text: &str| text.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(0.0);
    let memory = |name| memory_bytes(meminfo, name).unwrap_or(0);
    // What the host takes away is neither.
    let CpuMillis { busy, idle, stolen: _ } = cpu_millis(stat);
    Metrics {
        cpu_busy_millis: busy,
        cpu_idle_millis: idle,
        load_1m: first(loadavg),
        memory_total_bytes: memory("MemTotal"),
        memory_available_bytes: memory("MemAvailable"),
        uptime_seconds: first(uptime),
    }
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
