//! How things were: the store keeps old revisions for a while, and this server remembers which revision was the newest when.
//!
//! Times are in memory, a sample each second for a day, since this server began. What the store has compacted is gone.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use axum::http::StatusCode;
use lightbyte_api::{Span, Timestamp};
use lightbyte_plan::View;
use lightbyte_plan::planner::since;
use lightbyte_store::StoreError;
use lightbyte_store::feed::Feed;

use crate::problem::Failure;
use crate::{Server, clock};

/// How many times are remembered: a day of seconds in which something changed.
const SAMPLES_MAX: usize = 86_400;
/// How long changes fall into one sample.
const SAMPLE_PERIOD: Span = Span::from_secs(1);
/// How many old revisions one server reads at once: each is a list of everything.
pub(crate) const LOOKS_BACK_MAX: usize = 2;

/// Which revision was the newest when.
#[derive(Default)]
pub(crate) struct Times(Mutex<VecDeque<(Timestamp, u64)>>);

impl Times {
    /// `revision` is the newest now.
    pub(crate) fn note(&self, now: Timestamp, revision: u64) {
        let mut times = self.times();
        match times.back_mut() {
            Some((_, newest)) if *newest >= revision => return,
            // The last one of the second counts: a look back to it shows all that it brought.
            Some((at, newest)) if since(*at, now) < SAMPLE_PERIOD => *newest = revision,
            _ => times.push_back((now, revision)),
        }
        if times.len() > SAMPLES_MAX {
            times.pop_front();
        }
    }

    /// The newest revision at `at`; nothing if this server did not watch yet.
    fn revision_at(&self, at: Timestamp) -> Option<u64> {
        let times = self.times();
        let later = times.partition_point(|(sample, _)| *sample <= at);
        Some(times.get(later.checked_sub(1)?)?.1)
    }

    /// When `revision` was the newest, to the second; nothing if this server did not watch then.
    fn time_of(&self, revision: u64) -> Option<Timestamp> {
        let times = self.times();
        let oldest = times.front()?.1;
        let index = times.partition_point(|(_, sample)| *sample < revision);
        // The last sample lasts until now, and the first says nothing of what was before it.
        let (at, _) = times.get(index).or_else(|| times.back())?;
        (revision >= oldest).then_some(*at)
    }

    fn times(&self) -> MutexGuard<'_, VecDeque<(Timestamp, u64)>> {
        // A panic inside would lose at most one sample.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A point in the past, as people write it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Past {
    Revision(u64),
    Time(Timestamp),
}

/// Reads a revision, a time (RFC 3339), or how long ago.
fn read(text: &str, now: Timestamp) -> Option<Past> {
    if let Ok(revision) = text.parse() {
        return Some(Past::Revision(revision));
    }
    if let Ok(ago) = text.parse::<Span>() {
        return now.checked_sub(ago.duration()).ok().map(Past::Time);
    }
    text.parse().ok().map(Past::Time)
}

impl Server {
    /// The view as it was at `text`, the value of the parameter `name`: a revision, a time, or how long ago. And when that
    /// was, on this server's clock, if it is known.
    pub(crate) async fn look_back(
        &self,
        name: &str,
        text: &str,
    ) -> Result<(View, Option<Timestamp>), Failure> {
        let bad = || {
            let title = format!(
                "`{name}` must be a revision, a time such as 2026-11-27T18:00:00Z, or 10m; is `{text}`"
            );
            Failure::bad(title)
        };
        match read(text, clock::now()).ok_or_else(bad)? {
            // Nought means the newest to a store.
            Past::Revision(0) => Err(bad()),
            Past::Revision(revision) => Ok((self.view_of(revision).await?, self.times.time_of(revision))),
            Past::Time(at) if at > clock::now() => Err(Failure::bad(format!("{at} is yet to come"))),
            Past::Time(at) => {
                let revision = self.times.revision_at(at).ok_or_else(|| {
                    let title = format!("this server does not know which revision was the newest at {at}");
                    Failure::new(StatusCode::NOT_FOUND, title).hint(
                        "it remembers a day, from its own start on; ask by a revision, or another server",
                    )
                })?;
                Ok((self.view_of(revision).await?, Some(at)))
            }
        }
    }

    /// The view of an old revision.
    async fn view_of(&self, revision: u64) -> Result<View, Failure> {
        let permit = self.looks_back.try_acquire().map_err(|_| {
            let title = format!("this server looks back {LOOKS_BACK_MAX} times at once, which is its limit");
            Failure::new(StatusCode::TOO_MANY_REQUESTS, title).hint("try again in a moment")
        })?;
        let listing = self.store.list("", Some(revision)).await;
        let read = listing.map(|listing| Feed::begin(&listing).view().clone());
        drop(permit);
        match read {
            Ok(view) => Ok(view),
            Err(StoreError::Compacted { revision: kept }) => {
                let title = format!("revision {revision} is not kept any more");
                Err(Failure::new(StatusCode::NOT_FOUND, title)
                    .hint(format!("the store keeps what was there from revision {kept} on")))
            }
            Err(StoreError::FutureRevision { .. }) => {
                Err(Failure::new(StatusCode::NOT_FOUND, format!("revision {revision} is yet to come")))
            }
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).expect("a time")
    }

    #[test]
    fn a_time_is_the_newest_revision_of_then() {
        let times = Times::default();
        for (second, revision) in [(100, 5), (100, 6), (110, 7), (109, 8), (120, 8)] {
            times.note(at(second), revision);
        }
        let check = |second: i64, expect: Option<u64>| {
            assert_eq!(times.revision_at(at(second)), expect, "{second}");
        };
        check(99, None);
        check(100, Some(6));
        check(109, Some(6));
        check(110, Some(8));
        check(500, Some(8));
        let check = |revision: u64, expect: Option<i64>| {
            assert_eq!(times.time_of(revision), expect.map(at), "{revision}");
        };
        check(5, None);
        check(6, Some(100));
        check(7, Some(110));
        check(8, Some(110));
        check(9, Some(110));
    }

    #[test]
    fn points_in_the_past_are_revisions_times_or_spans() {
        let check = |text: &str, expect: Option<Past>| assert_eq!(read(text, at(1_000)), expect, "{text}");
        check("17", Some(Past::Revision(17)));
        check("10m", Some(Past::Time(at(400))));
        check("1970-01-01T00:10:00Z", Some(Past::Time(at(600))));
        check("yesterday", None);
        check("", None);
    }
}
