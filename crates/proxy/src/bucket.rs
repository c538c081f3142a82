//! A token bucket. It holds no clock: whoever asks says what time it is.

use std::time::Duration;

/// Tokens that come back with time, up to a limit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bucket {
    tokens: f64,
    tokens_max: f64,
    per_second: f64,
    at: Duration,
}

impl Bucket {
    /// A full one. `now` is counted from any fixed moment.
    pub(crate) fn full(per_second: u32, tokens_max: u32, now: Duration) -> Bucket {
        Bucket {
            tokens: tokens_max.into(),
            tokens_max: tokens_max.into(),
            per_second: per_second.into(),
            at: now,
        }
    }

    /// Takes a token if there is one. A clock that goes backwards gives none back.
    pub(crate) fn take(&mut self, now: Duration) -> bool {
        self.fill(now);
        let is_enough = self.tokens >= 1.0;
        if is_enough {
            self.tokens -= 1.0;
        }
        is_enough
    }

    /// Whether nothing is missing, so that a new one would be the same.
    pub(crate) fn is_full(&mut self, now: Duration) -> bool {
        self.fill(now);
        self.tokens >= self.tokens_max
    }

    fn fill(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.at).as_secs_f64();
        self.tokens = passed.mul_add(self.per_second, self.tokens).min(self.tokens_max);
        self.at = self.at.max(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let mut bucket = Bucket::full(10, 3, Duration::ZERO);
        let table = [
            (0, true),
            (0, true),
            (0, true),
            (0, false),
            (99, false),
            (100, true),
            (50, false),
            (1_000, true),
        ];
        for (at_ms, expected) in table {
            assert_eq!(bucket.take(Duration::from_millis(at_ms)), expected, "at {at_ms} ms");
        }
        assert!(bucket.take(Duration::from_secs(1)) && bucket.take(Duration::from_secs(1)));
        assert!(!bucket.take(Duration::from_secs(1)) && !bucket.is_full(Duration::from_secs(1)));
        assert!(bucket.is_full(Duration::from_secs(9)));
    }
}
