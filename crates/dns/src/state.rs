//! What all threads share: the table that holds, how old it may be, and what is counted.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use arc_swap::ArcSwap;

use crate::answer::{Context, Freshness, Verdict, answer};
use crate::counters::{Counters, count};
use crate::reply::Transport;
use crate::table::Table;
use crate::turns::Turns;

/// A zone that nobody has confirmed for longer than this may have changed, in milliseconds.
const STALE_AFTER_MS: u64 = 10_000;

/// A table and when it was last known to be the newest.
#[derive(Debug)]
pub(crate) struct Published {
    pub(crate) table: Table,
    /// Of the zone; `None` if there is none.
    pub(crate) revision: Option<u64>,
    /// Milliseconds since the start, and one; 0 if it never was.
    confirmed: AtomicU64,
}

/// Shared by all threads.
#[derive(Debug)]
pub(crate) struct Shared {
    published: ArcSwap<Published>,
    turns: Turns,
    pub(crate) counters: Counters,
    began: Instant,
    does_forward: bool,
}

impl Shared {
    pub(crate) fn new(zone: &str, does_forward: bool) -> Shared {
        let unknown =
            Published { table: Table::unknown(zone), revision: None, confirmed: AtomicU64::default() };
        Shared {
            published: ArcSwap::from_pointee(unknown),
            turns: Turns::new(),
            counters: Counters::default(),
            began: Instant::now(),
            does_forward,
        }
    }

    /// Lets another table hold. Queries that come after this see it.
    ///
    /// It was confirmed when its predecessor was: that was everything that there was to know then, and this is newer.
    pub(crate) fn publish(&self, table: Table, revision: u64) {
        let confirmed = self.published.load().confirmed.load(Ordering::Relaxed);
        let revision = Some(revision);
        self.published.store(Published { table, revision, confirmed: confirmed.into() }.into());
    }

    /// Notes that a revision was the newest at an instant. Says whether it is the one that holds.
    pub(crate) fn confirm(&self, revision: u64, at: Instant) -> bool {
        let published = self.published.load();
        let holds = published.revision == Some(revision);
        // What was asked before the start has no number here. It would look newer than it is, so it counts for nothing.
        if let Some(at) = self.since_start(at).filter(|_| holds) {
            published.confirmed.fetch_max(at + 1, Ordering::Relaxed);
        }
        holds
    }

    pub(crate) fn revision(&self) -> Option<u64> {
        self.published.load().revision
    }

    /// How many milliseconds ago the zone was known to be the newest.
    pub(crate) fn age_ms(&self) -> Option<u64> {
        self.age_ms_of(&self.published.load())
    }

    /// Whether names that the zone does not have are denied.
    pub(crate) fn denies_unknown(&self) -> bool {
        self.freshness(&self.published.load()) == Freshness::Fresh
    }

    /// Answers a message, and counts it.
    pub(crate) fn answer(&self, transport: Transport, message: &[u8], reply: &mut Vec<u8>) -> Verdict {
        let published = self.published.load();
        let freshness = self.freshness(&published);
        let context = Context { freshness, transport, does_forward: self.does_forward, turns: &self.turns };
        let verdict = answer(&published.table, &context, message, reply);
        match verdict {
            Verdict::Silence => count(&self.counters.silent),
            Verdict::Forward | Verdict::Follow => {}
            Verdict::Send { rcode, is_truncated } => {
                self.counters.answered(rcode);
                if is_truncated {
                    count(&self.counters.truncated);
                }
            }
        }
        verdict
    }

    fn freshness(&self, published: &Published) -> Freshness {
        match published.revision {
            None => Freshness::Missing,
            Some(_) => freshness(self.age_ms_of(published)),
        }
    }

    fn age_ms_of(&self, published: &Published) -> Option<u64> {
        let confirmed = published.confirmed.load(Ordering::Relaxed).checked_sub(1)?;
        Some(self.since_start(Instant::now())?.saturating_sub(confirmed))
    }

    /// In milliseconds.
    fn since_start(&self, at: Instant) -> Option<u64> {
        u64::try_from(at.checked_duration_since(self.began)?.as_millis()).ok()
    }
}

/// What an age makes of a zone.
fn freshness(age_ms: Option<u64>) -> Freshness {
    match age_ms {
        Some(age_ms) if age_ms <= STALE_AFTER_MS => Freshness::Fresh,
        _ => Freshness::Stale,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use lightbyte_api::zone::Zone;

    #[test]
    fn a_zone_is_fresh_for_ten_seconds() {
        let check = |age: Option<u64>, expect| assert_eq!(freshness(age), expect);
        check(None, Freshness::Stale);
        check(Some(0), Freshness::Fresh);
        check(Some(10_000), Freshness::Fresh);
        check(Some(10_001), Freshness::Stale);
    }

    #[test]
    fn who_confirms_names_what() {
        let shared = Shared::new("lab", false);
        let table = || Table::new(&Zone::new("lab", 1));
        assert_eq!((shared.revision(), shared.confirm(0, Instant::now())), (None, false));
        shared.publish(table(), 1);
        assert_eq!((shared.revision(), shared.age_ms()), (Some(1), None));
        assert!(!shared.confirm(2, Instant::now()));
        assert_eq!(shared.age_ms(), None);
        assert!(shared.confirm(1, Instant::now()));
        assert!(shared.age_ms().is_some());
        shared.publish(table(), 2);
        assert!(shared.age_ms().is_some(), "what is newer than a confirmed zone is confirmed");
        assert!(!shared.confirm(1, Instant::now()));
    }

    #[test]
    fn an_older_word_changes_nothing() {
        let shared = Shared::new("lab", false);
        shared.publish(Table::new(&Zone::new("lab", 1)), 1);
        let later = shared.began + Duration::from_secs(60);
        assert!(shared.confirm(1, later));
        assert!(shared.confirm(1, shared.began));
        assert_eq!(shared.age_ms(), Some(0));
    }

    #[test]
    fn what_was_asked_before_the_start_confirms_nothing() {
        let shared = Shared::new("lab", false);
        shared.publish(Table::new(&Zone::new("lab", 1)), 1);
        let before =
            shared.began.checked_sub(Duration::from_secs(1)).expect("the machine has been up for longer");
        assert!(shared.confirm(1, before));
        assert_eq!((shared.age_ms(), shared.denies_unknown()), (None, false));
    }
}
