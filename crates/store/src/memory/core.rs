//! The synchronous core: no clock, no task, no lock. Whoever drives it owns time.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use imbl::{OrdMap, OrdSet, Vector};

use crate::beside::is_beside;
use crate::error::{StoreError, cause};
use crate::rules;
use crate::settle::{AttemptError, Settling};
use crate::store::{
    Batch, Event, Lease, LeaseId, Listing, Operation, Outcome, Read, Revision, Transaction, Versioned,
};

/// What goes wrong around one commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommitFault {
    /// The request is lost: nothing is committed, and the sender does not know.
    Before,
    /// The answer is lost: it is committed, and the sender does not know.
    After,
}

/// The times a [`MemoryCore::commit_settled`] tries again: planned faults are finite, so this bounds a mistake only.
const TRIES_MAX: usize = 64;

/// One revision: its events, and what each key held before, so that older revisions can be read.
#[derive(Debug, Clone)]
struct Change {
    events: Vec<Event>,
    before: Vec<Option<Versioned>>,
}

#[derive(Debug, Clone)]
struct Held {
    ttl: Duration,
    expires_at: Duration,
    keys: OrdSet<String>,
}

/// All objects with their history, as a value: a clone is cheap (shared structure), independent, and a snapshot that
/// a restore can go back to. Time is a [`Duration`] since a start that the driver chooses.
#[derive(Debug, Clone)]
pub struct MemoryCore {
    revision: Revision,
    /// As in etcd: the state **at** this revision can be read, its events cannot. 0 before the first compaction.
    compacted: Revision,
    entries: OrdMap<String, Versioned>,
    /// The revisions after `max(compacted, 1)`, without a hole.
    history: Vector<Arc<Change>>,
    leases: OrdMap<LeaseId, Held>,
    next_lease: i64,
    faults: VecDeque<CommitFault>,
}

impl Default for MemoryCore {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryCore {
    /// An empty store at revision 1.
    #[must_use]
    pub fn new() -> Self {
        Self {
            revision: 1,
            compacted: 0,
            entries: OrdMap::new(),
            history: Vector::new(),
            leases: OrdMap::new(),
            next_lease: 1,
            faults: VecDeque::new(),
        }
    }

    /// The newest revision.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The revision of the last compaction, 0 before the first.
    #[must_use]
    pub fn compacted(&self) -> Revision {
        self.compacted
    }

    /// As [`crate::Store::get`].
    #[must_use]
    pub fn get(&self, key: &str) -> Read {
        Read { revision: self.revision, value: self.entries.get(key).cloned() }
    }

    /// As [`crate::Store::list`].
    ///
    /// # Errors
    /// [`StoreError::Compacted`] and [`StoreError::FutureRevision`].
    pub fn list(&self, prefix: &str, at: Option<Revision>) -> Result<Listing, StoreError> {
        let revision = at.unwrap_or(self.revision);
        if revision > self.revision {
            return Err(StoreError::FutureRevision { revision });
        }
        if revision < self.compacted.max(1) {
            return Err(StoreError::Compacted { revision: self.compacted });
        }
        if revision == self.revision {
            return Ok(Listing { revision, entries: under(&self.entries, prefix) });
        }
        let mut entries = self.entries.clone();
        for change in self.history.iter().rev().take(count(self.revision - revision)) {
            for (event, before) in change.events.iter().zip(&change.before) {
                match before {
                    Some(before) => entries.insert(event.key().to_owned(), before.clone()),
                    None => entries.remove(event.key()),
                };
            }
        }
        Ok(Listing { revision, entries: under(&entries, prefix) })
    }

    /// The events under a prefix from revision `from` on: one batch for each revision that has any, at most
    /// `batches_max` of them.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] when events of `from` may be gone, [`StoreError::FutureRevision`] when revisions
    /// before it are still to come.
    pub fn events(&self, prefix: &str, from: Revision, batches_max: usize) -> Result<Vec<Batch>, StoreError> {
        let from = from.max(1);
        if from <= self.compacted {
            return Err(StoreError::Compacted { revision: self.compacted });
        }
        if from > self.revision + 1 {
            return Err(StoreError::FutureRevision { revision: from });
        }
        let first = self.compacted.max(1) + 1;
        let skip = from.saturating_sub(first);
        // Split off, not skipped: the end of a long history is reached without a walk through it.
        let mut history = self.history.clone();
        let wanted = history.split_off(count(skip).min(history.len()));
        let batches = (first + skip..=self.revision).zip(&wanted);
        Ok(batches
            .filter_map(|(revision, change)| {
                let events: Vec<Event> =
                    change.events.iter().filter(|event| event.key().starts_with(prefix)).cloned().collect();
                (!events.is_empty()).then_some(Batch { revision, events })
            })
            .take(batches_max)
            .collect())
    }

    /// Applies a transaction, without faults.
    ///
    /// # Errors
    /// [`StoreError::Refused`], [`StoreError::TooLarge`], [`StoreError::LeaseGone`].
    pub fn commit(&mut self, transaction: &Transaction) -> Result<Outcome, StoreError> {
        rules::check(transaction)?;
        let holds =
            |key: &str, revision| self.entries.get(key).map_or(0, |found| found.mod_revision) == revision;
        if !transaction.guards.iter().all(|guard| holds(&guard.key, guard.mod_revision)) {
            let read = |key: &String| (key.clone(), self.entries.get(key).cloned());
            let current = transaction.guards.iter().map(|guard| read(&guard.key)).collect();
            return Ok(Outcome::Conflict { revision: self.revision, current });
        }
        for operation in &transaction.operations {
            if let Operation::Put { lease: Some(lease), .. } = operation
                && !self.leases.contains_key(lease)
            {
                return Err(StoreError::LeaseGone { lease: *lease });
            }
        }
        self.apply(&transaction.operations);
        Ok(Outcome::Committed { revision: self.revision })
    }

    /// Sends a transaction once: takes the next planned fault, if any.
    ///
    /// # Errors
    /// [`AttemptError::Unknown`] by a fault, otherwise what [`MemoryCore::commit`] says.
    pub fn attempt(&mut self, transaction: &Transaction) -> Result<Outcome, AttemptError> {
        let fault = match rules::check(transaction) {
            Ok(()) => self.faults.pop_front(),
            Err(error) => return Err(AttemptError::Failed(error)),
        };
        let lost = |text: &str| Err(AttemptError::Unknown(cause(text)));
        match fault {
            Some(CommitFault::Before) => lost("the request was lost"),
            Some(CommitFault::After) => {
                // What it came to is exactly what the sender must not learn.
                let _ = self.commit(transaction);
                lost("the answer was lost")
            }
            None => self.commit(transaction).map_err(AttemptError::Failed),
        }
    }

    /// Sends a transaction until its result is known, as a store does, without time passing in between.
    ///
    /// # Errors
    /// As [`crate::Store::commit`].
    pub fn commit_settled(&mut self, transaction: &Transaction) -> Result<Outcome, StoreError> {
        let mut settling = Settling::default();
        for _ in 0..TRIES_MAX {
            let attempt = self.attempt(transaction);
            if let ControlFlow::Break(result) = settling.judge(transaction, attempt) {
                return result;
            }
        }
        Err(settling.give_up())
    }

    /// Plans a fault for the next attempt that has none yet.
    pub fn plan_fault(&mut self, fault: CommitFault) {
        self.faults.push_back(fault);
    }

    /// Forgets the events up to and including `revision`; the state at it stays readable.
    ///
    /// # Errors
    /// [`StoreError::FutureRevision`], and [`StoreError::Compacted`] when that has been done already.
    pub fn compact(&mut self, revision: Revision) -> Result<(), StoreError> {
        if revision > self.revision {
            return Err(StoreError::FutureRevision { revision });
        }
        if revision <= self.compacted {
            return Err(StoreError::Compacted { revision: self.compacted });
        }
        let forgotten = revision - self.compacted.max(1);
        self.history = self.history.skip(count(forgotten));
        self.compacted = revision;
        Ok(())
    }

    /// Grants a lease until `now + ttl`.
    pub fn lease_grant(&mut self, ttl: Duration, now: Duration) -> Lease {
        let id = LeaseId(self.next_lease);
        self.next_lease += 1;
        self.leases.insert(id, Held { ttl, expires_at: now.saturating_add(ttl), keys: OrdSet::new() });
        Lease { id, ttl }
    }

    /// Grants a lease of this id until `now + ttl`, unless it lives.
    pub fn lease_ensure(&mut self, lease: LeaseId, ttl: Duration, now: Duration) {
        if !self.leases.contains_key(&lease) {
            let expires_at = now.saturating_add(ttl);
            self.leases.insert(lease, Held { ttl, expires_at, keys: OrdSet::new() });
        }
    }

    /// The leases that live.
    pub fn leases(&self) -> impl Iterator<Item = LeaseId> {
        self.leases.keys().copied()
    }

    /// Renews a lease to `now` plus its time to live. One whose time has passed is gone, swept or not.
    ///
    /// # Errors
    /// [`StoreError::LeaseGone`].
    pub fn lease_keep_alive(&mut self, lease: LeaseId, now: Duration) -> Result<Duration, StoreError> {
        match self.leases.get_mut(&lease) {
            Some(held) if held.expires_at > now => {
                // A stretched lease is never shortened by its renewal.
                held.expires_at = held.expires_at.max(now.saturating_add(held.ttl));
                Ok(held.ttl)
            }
            _ => Err(StoreError::LeaseGone { lease }),
        }
    }

    /// Ends a lease and deletes its keys in one revision (none, if it has no keys). Nothing happens when it is gone.
    pub fn lease_revoke(&mut self, lease: LeaseId) {
        if let Some(held) = self.leases.remove(&lease)
            && !held.keys.is_empty()
        {
            let operations: Vec<Operation> = held.keys.iter().map(Operation::delete).collect();
            self.apply(&operations);
        }
    }

    /// Makes a lease live longer than its renewals say, as a change of etcd's leader does.
    pub fn lease_stretch(&mut self, lease: LeaseId, by: Duration) {
        if let Some(held) = self.leases.get_mut(&lease) {
            held.expires_at = held.expires_at.saturating_add(by);
        }
    }

    /// Ends every lease whose time has passed, in the order of their ends, and returns them.
    pub fn expire(&mut self, now: Duration) -> Vec<LeaseId> {
        if self.next_expiry().is_none_or(|next| next > now) {
            return Vec::new();
        }
        let mut ended: Vec<(Duration, LeaseId)> = self
            .leases
            .iter()
            .filter(|(_, held)| held.expires_at <= now)
            .map(|(lease, held)| (held.expires_at, *lease))
            .collect();
        ended.sort_unstable();
        ended.iter().for_each(|(_, lease)| self.lease_revoke(*lease));
        ended.into_iter().map(|(_, lease)| lease).collect()
    }

    /// When the next lease ends if it is not renewed.
    #[must_use]
    pub fn next_expiry(&self) -> Option<Duration> {
        self.leases.values().map(|held| held.expires_at).min()
    }

    /// Applies checked operations as one revision; without effect there is no revision.
    fn apply(&mut self, operations: &[Operation]) {
        let revision = self.revision + 1;
        let mut change = Change { events: Vec::new(), before: Vec::new() };
        for operation in operations {
            let (event, before) = match operation {
                Operation::Put { key, value, lease } => {
                    let value = Versioned { value: value.clone(), mod_revision: revision, lease: *lease };
                    let before = self.entries.insert(key.clone(), value.clone());
                    (Event::Put { key: key.clone(), value }, before)
                }
                Operation::Delete { key } => match self.entries.remove(key) {
                    Some(before) => {
                        (Event::Delete { key: key.clone(), mod_revision: revision }, Some(before))
                    }
                    None => continue,
                },
            };
            self.carry(&event, before.as_ref());
            change.events.push(event);
            change.before.push(before);
        }
        if !change.events.is_empty() {
            self.revision = revision;
            self.history.push_back(Arc::new(change));
        }
    }

    /// Moves a key from the lease that carried it to the one that does now.
    fn carry(&mut self, event: &Event, before: Option<&Versioned>) {
        if let Some(held) =
            before.and_then(|before| before.lease).and_then(|lease| self.leases.get_mut(&lease))
        {
            held.keys.remove(event.key());
        }
        if let Event::Put { key, value: Versioned { lease: Some(lease), .. } } = event
            && let Some(held) = self.leases.get_mut(lease)
        {
            held.keys.insert(key.clone());
        }
    }
}

fn under(entries: &OrdMap<String, Versioned>, prefix: &str) -> Vec<(String, Versioned)> {
    entries
        .range(prefix.to_owned()..)
        .take_while(|(key, _)| key.starts_with(prefix))
        .filter(|(key, _)| !(prefix.is_empty() && is_beside(key)))
        .map(|(key, versioned)| (key.clone(), versioned.clone()))
        .collect()
}

/// A distance between revisions as a count of things in memory.
fn count(distance: Revision) -> usize {
    usize::try_from(distance).unwrap_or(usize::MAX)
}
