//! What is counted of requests, by route and by backend.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper ends of the histogram's buckets. Fixed, so that those of all proxies can be added up.
const BUCKETS_MS: [u64; 14] = [1, 2, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000];

/// Classes of answers: 1xx to 5xx, and requests that got no answer because one of the two broke off.
const CLASSES: [&str; 6] = ["1xx", "2xx", "3xx", "4xx", "5xx", "none"];

/// Counters of one route or one backend.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    classes: [AtomicU64; CLASSES.len()],
    buckets: [AtomicU64; BUCKETS_MS.len() + 1],
    microseconds: AtomicU64,
    pub(crate) retries: AtomicU64,
}

impl Counts {
    /// A request ended, with this status if it got one.
    pub(crate) fn ended(&self, status: Option<u16>, took: Duration) {
        let class = match status {
            Some(status @ 100..=599) => usize::from(status / 100 - 1),
            _ => CLASSES.len() - 1,
        };
        self.classes[class].fetch_add(1, Ordering::Relaxed);
        let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = BUCKETS_MS.partition_point(|end_ms| end_ms * 1_000 < took_us);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.microseconds.fetch_add(took_us, Ordering::Relaxed);
    }

    /// All that have ended.
    pub(crate) fn all(&self) -> u64 {
        self.classes.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }

    /// Its lines in the text format of Prometheus. `labels` is like `route="web"`, of names that need no escape.
    pub(crate) fn write(&self, text: &mut String, prefix: &str, labels: &str) {
        for (class, count) in CLASSES.iter().zip(&self.classes) {
            let count = count.load(Ordering::Relaxed);
            let _ = writeln!(text, "{prefix}_requests_total{{{labels},class=\"{class}\"}} {count}");
        }
        let mut sum = 0;
        for (index, count) in self.buckets.iter().enumerate() {
            sum += count.load(Ordering::Relaxed);
            match BUCKETS_MS.get(index) {
                Some(end_ms) => {
                    let end = *end_ms as f64 / 1_000.0;
                    let _ = writeln!(text, "{prefix}_seconds_bucket{{{labels},le=\"{end}\"}} {sum}");
                }
                None => {
                    let _ = writeln!(text, "{prefix}_seconds_bucket{{{labels},le=\"+Inf\"}} {sum}");
                }
            }
        }
        let seconds = self.microseconds.load(Ordering::Relaxed) as f64 / 1e6;
        let _ = writeln!(text, "{prefix}_seconds_sum{{{labels}}} {seconds}");
        let _ = writeln!(text, "{prefix}_seconds_count{{{labels}}} {sum}");
        let retries = self.retries.load(Ordering::Relaxed);
        let _ = writeln!(text, "{prefix}_retries_total{{{labels}}} {retries}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_class_and_time() {
        let counts = Counts::default();
        let table =
            [(Some(200), 1_000), (Some(204), 1_001), (Some(503), 40_000_000), (None, 0), (Some(999), 0)];
        for (status, took_us) in table {
            counts.ended(status, Duration::from_micros(took_us));
        }
        let mut text = String::new();
        counts.write(&mut text, "p", "route=\"a\"");
        for line in [
            "p_requests_total{route=\"a\",class=\"2xx\"} 2",
            "p_requests_total{route=\"a\",class=\"5xx\"} 1",
            "p_requests_total{route=\"a\",class=\"none\"} 2",
            "p_seconds_bucket{route=\"a\",le=\"0.001\"} 3",
            "p_seconds_bucket{route=\"a\",le=\"0.002\"} 4",
            "p_seconds_bucket{route=\"a\",le=\"30\"} 4",
            "p_seconds_bucket{route=\"a\",le=\"+Inf\"} 5",
            "p_seconds_sum{route=\"a\"} 40.002001",
        ] {
            assert!(text.lines().any(|is| is == line), "{line} in {text}");
        }
    }
}
