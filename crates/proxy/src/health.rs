//! What a proxy holds of a backend's health, from checks and from requests.
//!
//! ```text
//!              unhealthy_after failed checks in a row
//!   healthy  ─────────────────────────────────────────▶  failing
//!      ▲     ◀─────────────────────────────────────────
//!      │           healthy_after good checks in a row
//!      │  its time is over            failed requests in a row, if the pool bears one more
//!      └───────────── ejected ◀────── healthy or failing
//! ```
//!
//! The two are independent: a backend gets requests when it is neither failing nor ejected. A new one is healthy: only
//! those that were ready stand in a topology.

use std::time::Duration;

use lightbyte_api::topology::{Check, Ejection};

/// Doublings of the time of an ejection. The topology's longest time bounds it long before.
const DOUBLINGS_MAX: u32 = 20;

/// The health of one backend of one pool. Times count from the start of the process.
#[derive(Clone, Debug, Default)]
pub(crate) struct Health {
    checks_good: u32,
    checks_failed: u32,
    is_failing: bool,
    requests_failed: u32,
    ejections: u32,
    ejected_until: Duration,
    since: Duration,
    reason: String,
}

/// How it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    Healthy,
    Failing,
    Ejected,
}

impl Standing {
    /// As people read it.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Standing::Healthy => "healthy",
            Standing::Failing => "failing",
            Standing::Ejected => "ejected",
        }
    }
}

impl Health {
    /// Of one that is new.
    pub(crate) fn new(now: Duration) -> Health {
        Health { since: now, ..Health::default() }
    }

    /// How it stands now.
    pub(crate) fn standing(&self, now: Duration) -> Standing {
        if self.is_failing {
            Standing::Failing
        } else if now < self.ejected_until {
            Standing::Ejected
        } else {
            Standing::Healthy
        }
    }

    /// Until when it gets no requests; zero if it is not ejected.
    pub(crate) const fn ejected_until(&self) -> Duration {
        self.ejected_until
    }

    /// Whether checks hold it for broken.
    pub(crate) const fn is_failing(&self) -> bool {
        self.is_failing
    }

    /// Since when it stands so, and why. An ejection that is over began the present standing.
    pub(crate) fn story(&self, now: Duration) -> (Duration, &str) {
        let is_over = !self.is_failing && self.ejected_until > self.since && now >= self.ejected_until;
        if is_over { (self.ejected_until, "its ejection is over") } else { (self.since, &self.reason) }
    }

    /// A check ended: well, or with a reason. True if the standing changed.
    pub(crate) fn checked(&mut self, result: Result<(), String>, check: &Check, now: Duration) -> bool {
        let was_failing = self.is_failing;
        match result {
            Ok(()) => {
                self.checks_failed = 0;
                self.checks_good = self.checks_good.saturating_add(1);
                if was_failing && self.checks_good >= check.healthy_after {
                    self.is_failing = false;
                    self.tell(format!("{} good checks in a row", self.checks_good), now);
                }
            }
            Err(reason) => {
                self.checks_good = 0;
                self.checks_failed = self.checks_failed.saturating_add(1);
                if !was_failing && self.checks_failed >= check.unhealthy_after {
                    self.is_failing = true;
                    self.tell(format!("check: {reason}"), now);
                }
            }
        }
        was_failing != self.is_failing
    }

    /// Nobody checks it any more, so nobody would ever say that it is well again.
    pub(crate) fn unchecked(&mut self, now: Duration) {
        (self.checks_good, self.checks_failed) = (0, 0);
        if self.is_failing {
            self.is_failing = false;
            self.tell("it is not checked any more".to_owned(), now);
        }
    }

    /// A request got a good answer: the row of failures is over, and so is that of ejections.
    pub(crate) const fn answered(&mut self) {
        self.requests_failed = 0;
        self.ejections = 0;
    }

    /// A request failed. `may_eject` says whether the pool bears one more ejection. True if it was ejected.
    pub(crate) fn failed(&mut self, ejection: &Ejection, may_eject: bool, now: Duration) -> bool {
        if now < self.ejected_until {
            return false;
        }
        self.requests_failed = self.requests_failed.saturating_add(1);
        if self.requests_failed < ejection.failures || !may_eject {
            return false;
        }
        let factor = 1_u64 << self.ejections.min(DOUBLINGS_MAX);
        let time_ms = ejection.first_ms.saturating_mul(factor).min(ejection.longest_ms);
        self.ejected_until = now + Duration::from_millis(time_ms);
        self.ejections = self.ejections.saturating_add(1);
        self.tell(format!("{} failed requests in a row", self.requests_failed), now);
        self.requests_failed = 0;
        true
    }

    /// Whether a good answer would change anything.
    pub(crate) const fn has_failures(&self) -> bool {
        self.requests_failed > 0 || self.ejections > 0
    }

    /// Whether it was ejected and has given no good answer since.
    pub(crate) const fn is_on_probation(&self) -> bool {
        self.ejections > 0
    }

    fn tell(&mut self, reason: String, now: Duration) {
        self.reason = reason;
        self.since = now;
    }
}

/// Whether a pool of `members` with so many `ejected` bears one more.
pub(crate) const fn bears_one_more(members: usize, ejected: usize, percent_max: u8) -> bool {
    (ejected + 1) * 100 <= members * percent_max as usize
}

#[cfg(test)]
mod tests {
    use lightbyte_api::topology::Probe;

    use super::*;

    const CHECK: Check =
        Check { probe: Probe::Tcp, every_ms: 1_000, timeout_ms: 500, healthy_after: 2, unhealthy_after: 3 };
    const EJECTION: Ejection =
        Ejection { failures: 2, first_ms: 100, longest_ms: 350, ejected_percent_max: 50 };

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn checks_turn_it_after_so_many_in_a_row() {
        // `+` a good check, `-` a failed one; `H` and `F` what is expected after it.
        let table = ["-H -H +H -H -H -F -F +F -F +F +H", "+H +H -H", "-H -H -F +F +H -H"];
        for story in table {
            let mut health = Health::default();
            for (index, step) in story.split(' ').enumerate() {
                let result = if step.starts_with('+') { Ok(()) } else { Err("refused".to_owned()) };
                health.checked(result, &CHECK, ms(1));
                let expected = if step.ends_with('H') { Standing::Healthy } else { Standing::Failing };
                assert_eq!(health.standing(ms(1)), expected, "{story}, step {index}");
            }
        }
    }

    #[test]
    fn who_is_not_checked_any_more_does_not_stay_failing() {
        let mut health = Health::default();
        (0..4).for_each(|_| {
            health.checked(Err("refused".to_owned()), &CHECK, ms(1));
        });
        health.unchecked(ms(2));
        assert_eq!(health.standing(ms(2)), Standing::Healthy);
        assert!(!health.checked(Err("refused".to_owned()), &CHECK, ms(3)), "the row begins anew");
    }

    #[test]
    fn ejections_double_up_to_the_longest_and_begin_anew_after_a_good_answer() {
        let mut health = Health::default();
        let mut now = ms(0);
        let mut times = Vec::new();
        for round in 0..6 {
            if round == 5 {
                health.answered();
            }
            assert!(!health.failed(&EJECTION, true, now));
            assert!(health.failed(&EJECTION, true, now));
            assert!(!health.failed(&EJECTION, true, now), "those in flight do not make it longer");
            assert_eq!(health.standing(now), Standing::Ejected);
            times.push((health.ejected_until() - now).as_millis());
            now = health.ejected_until();
            assert_eq!(health.standing(now), Standing::Healthy);
            assert_eq!(health.story(now), (now, "its ejection is over"));
        }
        assert_eq!(times, [100, 200, 350, 350, 350, 100]);
    }

    #[test]
    fn an_ejection_that_the_pool_does_not_bear_is_none() {
        let mut health = Health::default();
        assert!((0..10).all(|_| !health.failed(&EJECTION, false, ms(0))));
        assert!(health.failed(&EJECTION, true, ms(0)), "as soon as it bears it");
        let table = [
            (2, 0, 50, true),
            (2, 1, 50, false),
            (1, 0, 50, false),
            (1, 0, 100, true),
            (10, 2, 30, true),
            (10, 3, 30, false),
            (3, 0, 0, false),
        ];
        for (members, ejected, percent, expected) in table {
            assert_eq!(bears_one_more(members, ejected, percent), expected, "{members} {ejected} {percent}");
        }
    }

    #[test]
    fn a_good_answer_ends_a_row() {
        let mut health = Health::default();
        for _ in 0..5 {
            assert!(!health.failed(&EJECTION, true, ms(0)));
            assert!(health.has_failures());
            health.answered();
            assert!(!health.has_failures());
        }
    }
}
