//! How long a try may stay without an answer before the request is tried elsewhere, though its time is not over.
//!
//! A backend that hangs takes connections (its kernel does) and answers nothing; one that vanished does not even say that
//! it is gone. Neither is an error before a time-out, and a time-out that suits slow answers is too long for these. So
//! what is judged is not the request but the backend: it is *silent* if a try waits there and no answer whatever has
//! come from it for longer than the pool's answers ever took lately. Then, and if another backend of the pool is not
//! silent too, tries that may be repeated are taken away from it.
//!
//! What hangs for a reason that all share (a database) makes all silent, and then nothing is taken away from anybody.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The least patience. A healthy backend of a small service answers in a tenth of it, and a client hardly feels it.
pub(crate) const PATIENCE_MIN: Duration = Duration::from_millis(300);

/// How long a connection may take while there is another backend to go to. On one network a connection takes a
/// millisecond, or a second and more if its first packet was lost.
pub(crate) const CONNECT_PATIENCE: Duration = Duration::from_millis(300);

/// How often it is looked for tries that wait for too long.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(25);

/// A look that comes so late says that this process stood still, and what waited for it is no backend's fault.
pub(crate) const LATE: Duration = Duration::from_millis(100);

/// How long the slowest answer is remembered, at least; twice as long at most.
const WINDOW_MS: u64 = 30_000;

/// So many times the slowest answer of late is patience enough.
const FACTOR: u64 = 2;

/// The slowest answers of one backend lately. Windows only turn when an answer comes, so a quiet one forgets nothing.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    slowest_ms: AtomicU64,
    slowest_before_ms: AtomicU64,
    window_began_ms: AtomicU64,
}

impl Pace {
    /// An answer's head came after this time. Threads that meet may lose one; the next answer makes up for it.
    pub(crate) fn answered(&self, took_ms: u64, now_ms: u64) {
        if now_ms.saturating_sub(self.window_began_ms.load(Ordering::Relaxed)) > WINDOW_MS {
            self.window_began_ms.store(now_ms, Ordering::Relaxed);
            let slowest_ms = self.slowest_ms.swap(took_ms, Ordering::Relaxed);
            self.slowest_before_ms.store(slowest_ms, Ordering::Relaxed);
        } else {
            self.slowest_ms.fetch_max(took_ms, Ordering::Relaxed);
        }
    }

    pub(crate) fn slowest_ms(&self) -> u64 {
        let (now, before) = (&self.slowest_ms, &self.slowest_before_ms);
        now.load(Ordering::Relaxed).max(before.load(Ordering::Relaxed))
    }
}

/// The patience of a pool, by the slowest answer of any of its members.
pub(crate) fn patience_ms(slowest_ms: u64) -> u64 {
    let least_ms = u64::try_from(PATIENCE_MIN.as_millis()).unwrap_or(u64::MAX);
    slowest_ms.saturating_mul(FACTOR).max(least_ms)
}

/// What one member of a pool looks like when it is looked for silence.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Look {
    /// Whether it would get requests.
    pub(crate) is_healthy: bool,
    /// For how long its oldest try has waited without any word from it; none if nothing waits.
    pub(crate) silent_ms: Option<u64>,
}

/// Whether tries may be taken away from the member at `index`.
///
/// Somebody else has to be there, and not so silent itself: half of the patience, since tries that went to all at one
/// time are not looked at in the order in which they came.
pub(crate) fn may_take_away(looks: &[Look], index: usize, patience_ms: u64) -> bool {
    let is_silent = looks.get(index).and_then(|look| look.silent_ms).is_some_and(|ms| ms > patience_ms);
    let is_refuge = |look: &Look| look.is_healthy && look.silent_ms.is_none_or(|ms| ms <= patience_ms / 2);
    is_silent && looks.iter().enumerate().any(|(other, look)| other != index && is_refuge(look))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_follows_the_slowest_answer_of_late() {
        let pace = Pace::default();
        let table = [
            (5, 40_000, 5, 300),
            (4, 41_000, 5, 300),
            (2_000, 42_000, 2_000, 4_000),
            (5, 71_000, 2_000, 4_000),
            (6, 102_000, 6, 300),
            (7, 200_000, 7, 300),
        ];
        for (took_ms, now_ms, slowest_ms, patience) in table {
            pace.answered(took_ms, now_ms);
            assert_eq!(
                (pace.slowest_ms(), patience_ms(pace.slowest_ms())),
                (slowest_ms, patience),
                "{took_ms} at {now_ms}"
            );
        }
    }

    #[test]
    fn only_who_is_silent_while_another_is_not_loses_its_tries() {
        let look = |is_healthy, silent_ms| Look { is_healthy, silent_ms };
        let table = [
            (vec![look(true, Some(301)), look(true, None)], true),
            (vec![look(true, Some(301)), look(true, Some(20))], true),
            (vec![look(true, Some(300)), look(true, None)], false),
            (vec![look(true, None), look(true, None)], false),
            (vec![look(true, Some(301)), look(false, None)], false),
            (vec![look(true, Some(301)), look(true, Some(151))], false),
            (vec![look(true, Some(301))], false),
            (vec![look(false, Some(301)), look(true, None)], true),
            (vec![], false),
        ];
        for (looks, expected) in table {
            assert_eq!(may_take_away(&looks, 0, 300), expected, "{looks:?}");
        }
    }
}
