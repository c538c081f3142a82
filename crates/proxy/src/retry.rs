//! When a request may be tried again, and how often in all.

use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use crate::bucket::Bucket;
use crate::lock::lock;

/// Thousandths of a retry that each request earns: retries are at most 20 % of requests, so backends that drown are
/// not drowned by retries.
const EARNED_THOUSANDTHS: i64 = 200;

/// Retries that can be saved up, in thousandths: those of 500 requests.
const SAVED_THOUSANDTHS_MAX: i64 = 100_000;

/// Retries per second that need no saving, so that the few requests of a quiet pool are helped too.
const FLOOR_PER_SECOND: u32 = 10;

/// What became of a try.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Failure {
    /// Nothing was sent: there was no connection.
    pub(crate) is_before_sending: bool,
    /// The method may be repeated (RFC 9110, 9.2.2).
    pub(crate) is_idempotent: bool,
    /// What was read of the body is still there, all of it.
    pub(crate) is_body_kept: bool,
    /// The client has got a part of an answer.
    pub(crate) is_answer_begun: bool,
    /// Tries so far.
    pub(crate) tries: u32,
    /// Tries that the route allows.
    pub(crate) tries_max: u32,
}

impl Failure {
    /// Whether another try can do no harm. The budget is another matter.
    pub(crate) const fn is_repeatable(self) -> bool {
        !self.is_answer_begun
            && self.is_body_kept
            && self.tries < self.tries_max
            && (self.is_before_sending || self.is_idempotent)
    }
}

/// How many retries a pool bears.
#[derive(Debug)]
pub(crate) struct Budget {
    saved_thousandths: AtomicI64,
    floor: Mutex<Bucket>,
}

impl Budget {
    pub(crate) fn new(now: Duration) -> Budget {
        let floor = Mutex::new(Bucket::full(FLOOR_PER_SECOND, FLOOR_PER_SECOND, now));
        Budget { saved_thousandths: AtomicI64::new(0), floor }
    }

    /// A first try was made.
    pub(crate) fn earn(&self) {
        // The limit may be passed by a few where threads meet, and costs no lock.
        if self.saved_thousandths.load(Ordering::Relaxed) < SAVED_THOUSANDTHS_MAX {
            self.saved_thousandths.fetch_add(EARNED_THOUSANDTHS, Ordering::Relaxed);
        }
    }

    /// Whether one more retry is borne; it counts as made.
    pub(crate) fn spend(&self, now: Duration) -> bool {
        let less = |saved: i64| (saved >= 1_000).then_some(saved - 1_000);
        self.saved_thousandths.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok()
            || lock(&self.floor).take(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_can_do_no_harm_is_repeated() {
        let fine = Failure {
            is_before_sending: false,
            is_idempotent: true,
            is_body_kept: true,
            is_answer_begun: false,
            tries: 1,
            tries_max: 3,
        };
        let table = [
            (fine, true),
            (Failure { is_idempotent: false, ..fine }, false),
            (Failure { is_idempotent: false, is_before_sending: true, ..fine }, true),
            (Failure { is_body_kept: false, ..fine }, false),
            (Failure { is_body_kept: false, is_before_sending: true, ..fine }, false),
            (Failure { is_answer_begun: true, ..fine }, false),
            (Failure { tries: 3, ..fine }, false),
        ];
        for (failure, expected) in table {
            assert_eq!(failure.is_repeatable(), expected, "{failure:?}");
        }
    }

    #[test]
    fn retries_are_a_fifth_of_requests_and_a_floor() {
        let table = [(0_u32, 10), (5, 11), (100, 30), (10_000, 110)];
        for (requests, expected) in table {
            let budget = Budget::new(Duration::ZERO);
            (0..requests).for_each(|_| budget.earn());
            let spent = (0..1_000).filter(|_| budget.spend(Duration::ZERO)).count();
            assert_eq!(spent, expected, "after {requests} requests");
        }
    }
}
