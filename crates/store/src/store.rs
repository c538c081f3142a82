//! The trait and its vocabulary.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::error::StoreError;

/// A point in the one order of all writes. It starts at 1 (empty); the first write is 2.
pub type Revision = u64;

/// Names a lease for as long as the cluster lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub i64);

impl fmt::Display for LeaseId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // As etcdctl prints it, so that a person can look it up.
        write!(formatter, "{:x}", self.0)
    }
}

/// A granted lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// Its name.
    pub id: LeaseId,
    /// The time to live that the store chose: at least what was asked (etcd counts whole seconds and has a minimum).
    pub ttl: Duration,
}

/// A value and the revision that wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versioned {
    /// The bytes as written.
    pub value: Bytes,
    /// The revision of the transaction that wrote them.
    pub mod_revision: Revision,
    /// The lease whose end deletes the key, if any.
    pub lease: Option<LeaseId>,
}

/// A condition of a transaction: the key was last written at this revision, or is absent when it is 0.
///
/// Absence says nothing about the past: a key that was created and deleted meanwhile passes a guard of 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guard {
    /// The key.
    pub key: String,
    /// The revision at which it must have been written last; 0 when it must not exist.
    pub mod_revision: Revision,
}

impl Guard {
    /// The key must not exist.
    pub fn absent(key: impl Into<String>) -> Self {
        Self { key: key.into(), mod_revision: 0 }
    }

    /// The key must be as it was at `mod_revision`.
    pub fn at(key: impl Into<String>, mod_revision: Revision) -> Self {
        Self { key: key.into(), mod_revision }
    }
}

/// One change of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// Write the key. Without a lease the key is detached from the one it had.
    Put {
        /// The key.
        key: String,
        /// Its new value.
        value: Bytes,
        /// The lease that carries it.
        lease: Option<LeaseId>,
    },
    /// Delete the key; nothing happens when it is absent.
    Delete {
        /// The key.
        key: String,
    },
}

impl Operation {
    /// A put without a lease.
    pub fn put(key: impl Into<String>, value: impl Into<Bytes>) -> Self {
        Self::Put { key: key.into(), value: value.into(), lease: None }
    }

    /// A deletion.
    pub fn delete(key: impl Into<String>) -> Self {
        Self::Delete { key: key.into() }
    }

    /// The key that is changed.
    #[must_use]
    pub fn key(&self) -> &str {
        match self {
            Self::Put { key, .. } | Self::Delete { key } => key,
        }
    }
}

/// All or nothing: if every guard holds, every operation happens at one revision.
///
/// Every key that is written must be guarded too; [`crate::settle`] tells why. A transaction without operations is a
/// linearizable check of its guards and takes no revision.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Transaction {
    /// What must hold; each key once.
    pub guards: Vec<Guard>,
    /// What is done; each key once.
    pub operations: Vec<Operation>,
}

/// How a transaction ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It was applied.
    Committed {
        /// Where. For a transaction that only deleted and had to be settled, an upper bound: at this revision its
        /// effect was there.
        revision: Revision,
    },
    /// A guard did not hold; nothing was applied.
    Conflict {
        /// The revision at which the guards were compared.
        revision: Revision,
        /// Every guarded key as it was then, in the order of the guards.
        current: Vec<(String, Option<Versioned>)>,
    },
}

/// The answer to [`Store::get`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Read {
    /// The store's revision at the read: at least that of every write acknowledged before the read began.
    pub revision: Revision,
    /// The key's value, if it exists.
    pub value: Option<Versioned>,
}

/// The answer to [`Store::list`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// The one revision that all entries were read at. Watch from the next one.
    pub revision: Revision,
    /// The keys under the prefix, in byte order.
    pub entries: Vec<(String, Versioned)>,
}

/// A change, as a watch tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The key was written.
    Put {
        /// The key.
        key: String,
        /// What was written.
        value: Versioned,
    },
    /// The key was deleted, by a transaction or by the end of its lease.
    Delete {
        /// The key.
        key: String,
        /// The revision of the deletion.
        mod_revision: Revision,
    },
}

impl Event {
    /// The key that changed.
    #[must_use]
    pub fn key(&self) -> &str {
        match self {
            Self::Put { key, .. } | Self::Delete { key, .. } => key,
        }
    }

    /// The revision of the change.
    #[must_use]
    pub fn mod_revision(&self) -> Revision {
        match self {
            Self::Put { value, .. } => value.mod_revision,
            Self::Delete { mod_revision, .. } => *mod_revision,
        }
    }
}

/// Events of one or more whole revisions, in order.
///
/// An empty batch is progress: everything up to `revision` has been delivered. Revisions of batches never go back,
/// and may repeat when a batch is empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Everything under the prefix up to here has now been delivered.
    pub revision: Revision,
    /// What happened, oldest first.
    pub events: Vec<Event>,
}

/// What an implementation gives behind a [`Watch`].
#[async_trait]
pub trait WatchSource: Send {
    /// As [`Watch::next`]; it must be cancel safe.
    async fn next(&mut self) -> Result<Batch, StoreError>;
}

/// A running watch. Dropping it ends it.
pub struct Watch(Box<dyn WatchSource>);

impl Watch {
    /// Wraps an implementation.
    #[must_use]
    pub fn new(source: Box<dyn WatchSource>) -> Self {
        Self(source)
    }

    /// Waits for the next batch: every event once, in order, without a gap, whole revisions only.
    ///
    /// Cancel safe: a batch is either returned or still to come. A silent watch is not known to be current: only a
    /// batch is, and only up to its revision.
    ///
    /// # Errors
    /// The watch has ended. After [`StoreError::Compacted`], and after [`StoreError::FutureRevision`] (the store has
    /// gone back behind `from`, as a restore does), list anew and watch from there; after
    /// [`StoreError::Unavailable`] watch again from the revision after the last batch.
    pub async fn next(&mut self) -> Result<Batch, StoreError> {
        self.0.next().await
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Watch").finish_non_exhaustive()
    }
}

/// The store. All implementations pass one conformance suite.
#[async_trait]
pub trait Store: Send + Sync {
    /// Reads one key, linearizably.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when no member answers in time.
    async fn get(&self, key: &str) -> Result<Read, StoreError>;

    /// Reads all keys that begin with `prefix` (all keys under the root when it is empty, and none
    /// [beside](crate::beside) it), at one revision: `at`, or the newest, linearizably, when that is `None`. Long lists are
    /// paged inside.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] when `at` is gone (or went while a long list was read),
    /// [`StoreError::FutureRevision`] when it is still to come, [`StoreError::Unavailable`].
    async fn list(&self, prefix: &str, at: Option<Revision>) -> Result<Listing, StoreError>;

    /// Watches all keys that begin with `prefix`, beginning with the events of revision `from` (0 counts as 1).
    /// After a list at revision `r`, watch from `r + 1`. An empty prefix has those [beside](crate::beside) the root too.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]. That `from` has been compacted, or lies more than one revision ahead, may be told
    /// here or by the first [`Watch::next`].
    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, StoreError>;

    /// Applies a transaction, and settles an unknown result before it returns (see [`crate::settle`]).
    ///
    /// # Errors
    /// [`StoreError::Refused`] and [`StoreError::TooLarge`] before anything is sent; [`StoreError::LeaseGone`] when
    /// a put names a lease that is gone; [`StoreError::Full`]; [`StoreError::Unknown`] when settling failed.
    /// Never [`StoreError::Unavailable`]: a transaction that may have been sent is unknown.
    async fn commit(&self, transaction: Transaction) -> Result<Outcome, StoreError>;

    /// Grants a lease that ends `ttl` after its last renewal; the end deletes its keys in one revision. It may live
    /// longer than its time to live (after a change of etcd's leader up to twice as long and more), never shorter.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] (a lease may then exist; it carries nothing and expires), [`StoreError::Full`].
    async fn lease_grant(&self, ttl: Duration) -> Result<Lease, StoreError>;

    /// Grants a lease under an id that the caller has chosen; nothing happens when it lives already. So whoever can say
    /// which lease it needs needs to keep none, and a grant whose answer was lost leaves nothing behind.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`], [`StoreError::Full`].
    async fn lease_ensure(&self, lease: LeaseId, ttl: Duration) -> Result<(), StoreError>;

    /// Renews a lease and returns the time to live that now remains, counted from some moment after the request was
    /// sent: measure from **before** this call.
    ///
    /// # Errors
    /// [`StoreError::LeaseGone`], [`StoreError::Unavailable`].
    async fn lease_keep_alive(&self, lease: LeaseId) -> Result<Duration, StoreError>;

    /// Ends a lease now and deletes its keys. Ending one that is gone already is no error.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn lease_revoke(&self, lease: LeaseId) -> Result<(), StoreError>;
}
