//! `GET /v1/metrics`: read from /proc when asked, kept nowhere.

use std::path::Path;

use lightbyte_guest::protocol::Metrics;

use crate::boot::read_limited;

/// The files read here have a few kilobytes at most.
const FILE_BYTES_MAX: u64 = 16 * 1024;

/// The guest's load and memory now; what cannot be read is nought.
pub(crate) fn metrics() -> Metrics {
    let read = |path: &str| read_limited(Path::new(path), FILE_BYTES_MAX).unwrap_or_default();
    parse(&read("/proc/loadavg"), &read("/proc/meminfo"), &read("/proc/uptime"))
}

fn parse(loadavg: &str, meminfo: &str, uptime: &str) -> Metrics {
    let first = |text: &str| text.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(0.0);
    let memory = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
        kib.unwrap_or(0).saturating_mul(1024)
    };
    Metrics {
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
        let metrics = parse("0.25 0.10 0.05 1/40 77\n", meminfo, "12.50 3.00\n");
        let expected = Metrics {
            load_1m: 0.25,
            memory_total_bytes: 106_428 * 1024,
            memory_available_bytes: 84_356 * 1024,
            uptime_seconds: 12.5,
        };
        assert_eq!(metrics, expected);
        assert_eq!(parse("", "MemTotal: x", "?"), Metrics::default());
    }
}
