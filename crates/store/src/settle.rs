//! Turns an unknown result into a known one.
//!
//! A connection that breaks after a transaction was sent leaves its sender not knowing whether it was committed. The
//! rule that **every written key is guarded** makes this settleable: a commit changes a guarded key, so the same
//! transaction cannot be applied twice, and sending it again is safe.
//!
//! ```text
//!              committed -> Committed
//!   send --->  conflict  -> Conflict
//!     ^        failed    -> the error
//!     |        unknown ---------------+
//!     |                               v
//!     +--- unknown, deadline ahead -- send again --- committed -> Committed (the first try was lost)
//!                                         |--------- conflict, values are ours -> Committed (the first try did it)
//!                                         |--------- conflict, a key is untouched -> Conflict (the first did nothing)
//!                                         |--------- conflict, neither -> Unknown (ours may lie under a newer write)
//!                                         +--------- failed, or deadline passed -> Unknown
//! ```
//!
//! *Ours* means: every put is there byte for byte with its lease, all at one revision, and every delete is absent.
//! Two writers that write the same bytes to the same keys cannot be told apart by this, so values must say who wrote
//! them (the stored envelope carries writer and time).

use std::future::Future;
use std::ops::ControlFlow;
use std::time::Duration;

use tokio::time::Instant;

use crate::error::{Cause, StoreError, cause};
use crate::store::{Operation, Outcome, Revision, Transaction, Versioned};

/// How long a transaction is tried until its result is called unknown. A try takes up to 5 s against a stopped
/// member, and the next goes to another: this allows each of three members to be met once.
pub const SETTLE_WITHIN: Duration = Duration::from_secs(15);

/// The pause between two tries: an election of etcd takes about a second, and a try in it costs the members little.
pub const SETTLE_PAUSE: Duration = Duration::from_millis(100);

/// One try of a transaction that did not end with an [`Outcome`].
#[derive(Debug, Clone)]
pub enum AttemptError {
    /// It may have been committed.
    Unknown(Cause),
    /// It was certainly not committed.
    Failed(StoreError),
}

/// What is known about a transaction between its tries. Pure, so that the simulator can drive it on its own clock.
#[derive(Debug, Clone, Default)]
pub struct Settling {
    unknown: Option<Cause>,
}

impl Settling {
    /// Takes the result of one try and says how the transaction ended, or that it must be sent again.
    pub fn judge(
        &mut self,
        transaction: &Transaction,
        attempt: Result<Outcome, AttemptError>,
    ) -> ControlFlow<Result<Outcome, StoreError>> {
        let unknown = match (attempt, self.unknown.take()) {
            (Err(AttemptError::Unknown(cause)), _) => {
                self.unknown = Some(cause);
                return ControlFlow::Continue(());
            }
            (Ok(outcome), None) => return ControlFlow::Break(Ok(outcome)),
            (Err(AttemptError::Failed(error)), None) => return ControlFlow::Break(Err(error)),
            // The later try failed for certain, which says nothing about the earlier one.
            (Err(AttemptError::Failed(_)), Some(cause)) => {
                return ControlFlow::Break(Err(StoreError::Unknown(cause)));
            }
            (Ok(committed @ Outcome::Committed { .. }), Some(_)) => return ControlFlow::Break(Ok(committed)),
            (Ok(Outcome::Conflict { revision, current }), Some(cause)) => (revision, current, cause),
        };
        let (revision, current, cause) = unknown;
        ControlFlow::Break(match look(transaction, revision, &current) {
            Trace::Ours(revision) => Ok(Outcome::Committed { revision }),
            Trace::None => Ok(Outcome::Conflict { revision, current }),
            Trace::Covered => Err(StoreError::Unknown(cause)),
        })
    }

    /// Gives up: no more tries will be made.
    #[must_use]
    pub fn give_up(self) -> StoreError {
        StoreError::Unknown(self.unknown.unwrap_or_else(|| cause("no try was made")))
    }
}

/// Sends a transaction until its result is known or [`SETTLE_WITHIN`] has passed. Used by every store.
///
/// # Errors
/// What the tries say; [`StoreError::Unknown`] when they do not.
pub async fn settle<Send, Sent>(transaction: &Transaction, mut send: Send) -> Result<Outcome, StoreError>
where
    Send: FnMut() -> Sent,
    Sent: Future<Output = Result<Outcome, AttemptError>>,
{
    let deadline = Instant::now() + SETTLE_WITHIN;
    let mut settling = Settling::default();
    loop {
        match settling.judge(transaction, send().await) {
            ControlFlow::Break(result) => return result,
            ControlFlow::Continue(()) if Instant::now() + SETTLE_PAUSE >= deadline => {
                return Err(settling.give_up());
            }
            ControlFlow::Continue(()) => tokio::time::sleep(SETTLE_PAUSE).await,
        }
    }
}

/// What the guarded keys tell about an earlier try.
pub(crate) enum Trace {
    /// It was committed at this revision.
    Ours(Revision),
    /// It was not committed: a key that it would have written is as it was before.
    None,
    /// Nothing can be told: what it would have written may have been written over.
    Covered,
}

/// What is told by guarded keys that are not as they were to be.
pub(crate) fn look(
    transaction: &Transaction,
    revision: Revision,
    current: &[(String, Option<Versioned>)],
) -> Trace {
    let now = |key: &str| current.iter().find(|(name, _)| name == key).and_then(|(_, value)| value.as_ref());
    let mut written_at = None;
    let mut ours = true;
    for operation in &transaction.operations {
        let guard = transaction.guards.iter().find(|guard| guard.key == operation.key());
        let versioned = now(operation.key());
        // A key guarded as absent and absent still may have been written and deleted since: that tells nothing.
        let untouched =
            |versioned: &Versioned| guard.is_some_and(|guard| guard.mod_revision == versioned.mod_revision);
        if versioned.is_some_and(untouched) {
            return Trace::None;
        }
        ours &= match (operation, versioned) {
            (Operation::Delete { .. }, found) => found.is_none(),
            (Operation::Put { value, lease, .. }, Some(found)) => {
                let same_revision = *written_at.get_or_insert(found.mod_revision) == found.mod_revision;
                same_revision && *value == found.value && *lease == found.lease
            }
            (Operation::Put { .. }, None) => false,
        };
    }
    match (ours, transaction.operations.is_empty()) {
        // Without operations there is no earlier effect: the later answer is the answer.
        (_, true) => Trace::None,
        (true, false) => Trace::Ours(written_at.unwrap_or(revision)),
        (false, false) => Trace::Covered,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Guard, LeaseId};

    fn versioned(value: &'static str, mod_revision: Revision) -> Versioned {
        Versioned { value: value.into(), mod_revision, lease: None }
    }

    /// A transaction that puts `a` over revision 5, creates `b`, deletes `c` of revision 6, and guards `epoch`.
    fn transaction() -> Transaction {
        Transaction {
            guards: vec![Guard::at("a", 5), Guard::absent("b"), Guard::at("c", 6), Guard::at("epoch", 2)],
            operations: vec![
                Operation::put("a", "ours"),
                Operation::put("b", "ours"),
                Operation::delete("c"),
            ],
        }
    }

    fn lost() -> Result<Outcome, AttemptError> {
        Err(AttemptError::Unknown(cause("lost")))
    }

    /// Loses one try, then finds these values; tells what becomes of it.
    fn check(a: Option<Versioned>, b: Option<Versioned>, c: Option<Versioned>, expected: &str) {
        let told = format!("{a:?} {b:?} {c:?}");
        let epoch = Some(versioned("1", 3));
        let current: Vec<(String, Option<Versioned>)> = [("a", a), ("b", b), ("c", c), ("epoch", epoch)]
            .map(|(key, value)| (key.to_owned(), value))
            .into();
        let mut settling = Settling::default();
        assert!(settling.judge(&transaction(), lost()).is_continue());
        let result = match settling.judge(&transaction(), Ok(Outcome::Conflict { revision: 20, current })) {
            ControlFlow::Break(Ok(Outcome::Committed { revision })) => format!("committed at {revision}"),
            ControlFlow::Break(Ok(Outcome::Conflict { .. })) => "conflict".to_owned(),
            ControlFlow::Break(Err(StoreError::Unknown(_))) => "unknown".to_owned(),
            other => format!("{other:?}"),
        };
        assert_eq!(result, expected, "{told}");
    }

    #[test]
    fn a_conflict_after_a_lost_try_is_read() {
        let ours = |at| Some(versioned("ours", at));
        let theirs = |at| Some(versioned("theirs", at));
        check(ours(9), ours(9), None, "committed at 9");
        // A key is as it was: nothing was applied.
        check(theirs(5), None, None, "conflict");
        check(theirs(9), None, theirs(6), "conflict");
        check(ours(9), ours(9), theirs(6), "conflict");
        // Ours may lie under what is there.
        check(theirs(9), ours(8), None, "unknown");
        check(ours(9), ours(8), None, "unknown");
        check(ours(9), None, None, "unknown");
        check(None, None, None, "unknown");
        check(ours(9), ours(9), theirs(10), "unknown");
        let leased = Versioned { lease: Some(LeaseId(1)), ..versioned("ours", 9) };
        check(Some(leased), ours(9), None, "unknown");
    }

    #[test]
    fn what_is_certain_is_told_at_once() {
        let failed = || Err(AttemptError::Failed(StoreError::Full));
        let committed = || Ok(Outcome::Committed { revision: 7 });
        let conflict = || Ok(Outcome::Conflict { revision: 7, current: vec![] });
        let rows: [(Vec<Result<Outcome, AttemptError>>, &str); 6] = [
            (vec![committed()], "Break(Ok(Committed"),
            (vec![conflict()], "Break(Ok(Conflict"),
            (vec![failed()], "Break(Err(Full"),
            (vec![lost(), committed()], "Break(Ok(Committed"),
            (vec![lost(), failed()], "Break(Err(Unknown"),
            (vec![lost(), lost()], "Continue"),
        ];
        for (tries, expected) in rows {
            let mut settling = Settling::default();
            let last = tries.into_iter().map(|attempt| settling.judge(&transaction(), attempt)).last();
            let told = format!("{:?}", last.expect("a try"));
            assert!(told.starts_with(expected), "{told} is not {expected}");
        }
    }

    #[test]
    fn deletions_alone_are_settled_by_their_effect() {
        let transaction =
            Transaction { guards: vec![Guard::at("a", 5)], operations: vec![Operation::delete("a")] };
        let mut settling = Settling::default();
        assert!(settling.judge(&transaction, lost()).is_continue());
        let gone = Outcome::Conflict { revision: 9, current: vec![("a".to_owned(), None)] };
        let result = settling.judge(&transaction, Ok(gone));
        assert!(matches!(result, ControlFlow::Break(Ok(Outcome::Committed { revision: 9 }))), "{result:?}");
    }
}
