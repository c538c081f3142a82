//! How far a fetch is: for people who ask, and stored nowhere.

use std::time::Duration;

use lightbyte_api::kinds::image::Part;
use lightbyte_api::parts::Fetch;
use tokio::time::Instant;

/// How much of the estimate the newest second is.
const SMOOTHING: f64 = 0.3;
/// How long bytes are counted before they change the estimate.
const COUNTED: Duration = Duration::from_secs(1);

/// How far one fetch is.
#[derive(Clone, Debug)]
pub(super) struct Progress {
    done: u64,
    from: Option<String>,
    problem: Option<String>,
    per_second: Option<f64>,
    counted_from: (Instant, u64),
}

impl Progress {
    pub(super) fn new(now: Instant) -> Progress {
        Progress { done: 0, from: None, problem: None, per_second: None, counted_from: (now, 0) }
    }

    /// It comes from `from`, beginning at byte `done`.
    pub(super) fn begins(&mut self, from: &str, done: u64, now: Instant) {
        self.from = Some(from.to_owned());
        self.problem = None;
        self.done = done;
        self.counted_from = (now, done);
    }

    /// So much has come.
    pub(super) fn grows(&mut self, done: u64, now: Instant) {
        self.done = done;
        let (since, before) = self.counted_from;
        let passed = now.saturating_duration_since(since);
        if passed >= COUNTED {
            let newest = done.saturating_sub(before) as f64 / passed.as_secs_f64();
            self.per_second = Some(match self.per_second {
                Some(before) => before * (1.0 - SMOOTHING) + newest * SMOOTHING,
                None => newest,
            });
            self.counted_from = (now, done);
        }
    }

    /// Nobody sends it now.
    pub(super) fn is_hindered(&mut self, problem: &str, done: u64) {
        (self.from, self.done, self.per_second) = (None, done, None);
        self.problem = Some(problem.to_owned());
    }

    /// As people are told.
    pub(super) fn told(&self, part: &Part) -> Fetch {
        let left = part.size.bytes().saturating_sub(self.done) as f64;
        let seconds_left =
            self.per_second.filter(|rate| *rate >= 1.0).map(|rate| (left / rate).ceil() as u64);
        Fetch {
            sha256: part.sha256.clone(),
            size: part.size.bytes(),
            done: self.done,
            from: self.from.clone(),
            seconds_left,
            problem: self.problem.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lightbyte_api::ByteSize;

    #[test]
    fn the_estimate_follows_what_comes() {
        let part = Part { sha256: "a".repeat(64), size: ByteSize::from_bytes(10_000) };
        let begin = Instant::now();
        let mut progress = Progress::new(begin);
        progress.begins("n1", 2_000, begin);
        assert_eq!(progress.told(&part).seconds_left, None);
        progress.grows(4_000, begin + Duration::from_secs(2));
        let told = progress.told(&part);
        assert_eq!((told.done, told.seconds_left, told.from.as_deref()), (4_000, Some(6), Some("n1")));
        // A source that stalls makes it longer, a little each second.
        progress.grows(4_000, begin + Duration::from_secs(3));
        assert_eq!(progress.told(&part).seconds_left, Some(9));
        progress.is_hindered("nobody has it", 4_000);
        let told = progress.told(&part);
        assert_eq!((told.problem.as_deref(), told.seconds_left), (Some("nobody has it"), None));
    }
}
