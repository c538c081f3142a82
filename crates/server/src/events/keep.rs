//! Stores events, as the leader: a few times a second, while there are any. **It must not hold up anything**: it is a task of
//! its own for the term, and what it cannot store waits in a queue that drops its oldest.

use std::sync::Arc;
use std::time::Duration;

use lightbyte_api::records::Record;
use lightbyte_api::{Key, Timestamp, Uid};
use lightbyte_plan::View;
use lightbyte_store::{Guard, LeaseId, Outcome, Revision, StoreError, Versioned};
use tokio::time::sleep;

use crate::writer::REACH_WITHIN;
use crate::{Server, chain, clock};

/// How many transactions store events in a second at most.
pub(crate) const WRITES_PER_SECOND_MAX: u32 = 4;
/// The pause before each, in which more events come together.
const PAUSE: Duration = Duration::from_millis(1_000 / WRITES_PER_SECOND_MAX as u64);
/// The pause after the store did not take them.
const FAILED_PAUSE: Duration = Duration::from_secs(1);
/// How long an event is kept.
pub(crate) const KEPT_FOR: Duration = Duration::from_secs(7 * 24 * 3_600);
/// How long one lease is given to events: all of an hour go at once, so there are never more than the hours of
/// [`KEPT_FOR`] and one.
const LEASE_SECONDS: i64 = 3_600;
/// How many leases that should have ended are ended with each new one: those of a day.
const OLD_LEASES_ENDED: i64 = 24;
/// After how many conflicts in a row the archive is read anew: it does not say what is stored.
const CONFLICTS_MAX: u32 = 3;
/// How many bits of a lease's id count the hours. The others are the cluster's own.
const HOUR_BITS: u32 = 24;

/// How an attempt to store ended.
enum Stored {
    /// It was done, or there was nothing to do.
    Done,
    /// Something else is stored than the archive says.
    Behind,
    /// The store did not take it.
    Failed(StoreError),
    /// Another leads, or the cluster is another one.
    Deposed,
}

/// Stores events until this server leads no more. `session` is what says that it does.
pub(crate) async fn keep(server: Arc<Server>, session: Vec<Guard>) {
    let mut leased = None;
    let mut told = false;
    let mut conflicts = 0;
    loop {
        sleep(PAUSE).await;
        match store(&server, &session, &mut leased).await {
            Stored::Done => (told, conflicts) = (false, 0),
            Stored::Behind if conflicts < CONFLICTS_MAX => conflicts += 1,
            Stored::Behind => {
                tracing::warn!("the stored events are others than this server knows of; reading them anew");
                if let Err(error) = server.follower.list_events().await {
                    tracing::debug!(error = chain(&error), "the stored events cannot be listed");
                }
                conflicts = 0;
                sleep(FAILED_PAUSE).await;
            }
            Stored::Failed(error) => {
                // The lease may be what is missing.
                leased = None;
                match told {
                    false => tracing::warn!(error = chain(&error), "events cannot be stored; trying again"),
                    true => tracing::debug!(error = chain(&error), "events cannot be stored"),
                }
                told = true;
                sleep(FAILED_PAUSE).await;
                continue;
            }
            Stored::Deposed => return,
        }
        if server.events.next(&server.follower).is_none() {
            server.events.rung().await;
        }
    }
}

async fn store(server: &Server, session: &[Guard], leased: &mut Option<LeaseId>) -> Stored {
    let Some(view) = server.follower.view() else { return Stored::Done };
    let Some(next) = server.events.next(&server.follower) else { return Stored::Done };
    let Some(lease) = lease_of(&view, clock::now()) else { return Stored::Done };
    if *leased != Some(lease) {
        if let Err(error) = server.store.lease_ensure(lease, KEPT_FOR).await {
            return Stored::Failed(error);
        }
        if let Err(error) = end_old_leases(server, &view).await {
            return Stored::Failed(error);
        }
        *leased = Some(lease);
    }
    let dropped = next.dropped;
    match server.store.commit(next.batch.on(session, lease)).await {
        Ok(Outcome::Committed { revision }) => {
            server.events.stored(dropped);
            // The next batch is made from what the archive says. If it has not heard of this one by then, the guards of
            // that batch fail, and it is made again.
            let _ = server.follower.reach(revision, REACH_WITHIN).await;
            Stored::Done
        }
        Ok(Outcome::Conflict { revision, current }) if is_ours(session, &current) => {
            // The archive was behind: a lease of last week has ended just now, or this is the end of an unknown outcome.
            let _ = server.follower.reach(revision, REACH_WITHIN).await;
            Stored::Behind
        }
        Ok(Outcome::Conflict { .. }) => Stored::Deposed,
        Err(error) => Stored::Failed(error),
    }
}

/// Ends the leases of the day before those that are kept: etcd gives each its whole time again when it elects a leader, and
/// so they may outlive it. To end one that is gone is nothing.
async fn end_old_leases(server: &Server, view: &View) -> Result<(), StoreError> {
    let kept = i64::try_from(KEPT_FOR.as_secs()).unwrap_or(i64::MAX) / LEASE_SECONDS;
    for hours in kept + 2..=kept + 1 + OLD_LEASES_ENDED {
        let then =
            clock::now().checked_sub(Duration::from_secs(u64::try_from(hours * LEASE_SECONDS).unwrap_or(0)));
        if let Some(lease) = then.ok().and_then(|then| lease_of(view, then)) {
            server.store.lease_revoke(lease).await?;
        }
    }
    Ok(())
}

/// Whether the keys of the session are as they were.
fn is_ours(session: &[Guard], current: &[(String, Option<Versioned>)]) -> bool {
    session.iter().all(|guard| {
        let found = current.iter().find(|(key, _)| *key == guard.key);
        let at: Revision = found.and_then(|(_, found)| Some(found.as_ref()?.mod_revision)).unwrap_or(0);
        at == guard.mod_revision
    })
}

/// The lease of what is stored at `now`, the same whoever leads; nothing before the cluster is set up.
fn lease_of(view: &View, now: Timestamp) -> Option<LeaseId> {
    match view.record(&Key::Epoch) {
        Some(Record::Epoch(epoch)) => Some(lease_in(epoch.cluster, now)),
        _ => None,
    }
}

/// Leases have one space of names for all that an etcd holds: the cluster's identity is in the id.
fn lease_in(cluster: Uid, now: Timestamp) -> LeaseId {
    // FNV-1a: the same in every version of every server.
    let hash = cluster.to_string().bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let hour = now.as_second().div_euclid(LEASE_SECONDS).rem_euclid(1 << HOUR_BITS);
    // Positive, as etcd wants it, and never 0, which would leave the choice to etcd.
    let of_cluster = i64::try_from(hash >> (HOUR_BITS + 1)).unwrap_or_default() << HOUR_BITS;
    LeaseId((of_cluster | hour).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_hour_has_one_lease_and_a_week_no_more_than_its_hours() {
        let at = |second: i64| Timestamp::from_second(second).expect("a time");
        let cluster = Uid::from_bits(7);
        let lease = |second: i64| lease_in(cluster, at(second));
        assert_eq!(lease(7_200), lease(7_200 + 3_599));
        assert_ne!(lease(7_200), lease(7_199));
        let week = KEPT_FOR.as_secs() as i64;
        let all: std::collections::BTreeSet<LeaseId> =
            (0..=week).step_by(60).map(|second| lease(1_800_000_000 + second)).collect();
        assert_eq!(all.len(), 7 * 24 + 1);
        assert!(all.iter().all(|lease| lease.0 > 0));
        assert_ne!(lease(0), lease_in(Uid::from_bits(8), at(0)));
    }

    #[test]
    fn a_session_ends_with_any_of_its_keys() {
        let session = [Guard::at("meta/epoch", 2), Guard::at("leader", 5)];
        let found = |at: u64| {
            Some(Versioned {
                value: lightbyte_store::Bytes::from_static(b"{}"),
                mod_revision: at,
                lease: None,
            })
        };
        let check = |leader: Option<Versioned>, expect: bool| {
            let current = [("meta/epoch".to_owned(), found(2)), ("leader".to_owned(), leader)];
            assert_eq!(is_ours(&session, &current), expect);
        };
        check(found(5), true);
        check(found(9), false);
        check(None, false);
    }
}
