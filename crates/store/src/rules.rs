//! What a transaction must keep, checked before anything is sent, so that memory and etcd refuse alike.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::StoreError;
use crate::store::{Operation, Transaction};

/// etcd's `--max-txn-ops` counts compares and operations each: 128 by default on every version.
pub const GUARDS_MAX: usize = 128;

/// See [`GUARDS_MAX`].
pub const OPERATIONS_MAX: usize = 128;

/// etcd's `--max-request-bytes`, 1.5 MiB by default: the size of the encoded transaction, keys and framing included.
pub const TRANSACTION_BYTES_MAX: usize = 1536 * 1024;

/// What one guard or operation costs in the encoding beyond its key and value: field tags, lengths, revision, lease,
/// the read of the else branch, and a root prefix of up to [`ROOT_BYTES_MAX`] that the etcd store adds to each key.
const FRAME_BYTES: usize = 64 + 2 * ROOT_BYTES_MAX;

/// The longest root prefix of an etcd store.
pub const ROOT_BYTES_MAX: usize = 64;

/// A rule that a transaction breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A key is written without being guarded, so that an unknown result could not be settled.
    #[error("`{key}` is written but not guarded")]
    Unguarded {
        /// The key.
        key: String,
    },
    /// A key is guarded twice.
    #[error("`{key}` is guarded twice")]
    GuardedTwice {
        /// The key.
        key: String,
    },
    /// A key is written twice.
    #[error("`{key}` is written twice")]
    WrittenTwice {
        /// The key.
        key: String,
    },
    /// A key is deleted that must be absent: the commit would not change it, so it could not be seen afterwards.
    #[error("`{key}` is deleted but guarded as absent")]
    DeletesAbsent {
        /// The key.
        key: String,
    },
    /// A key is empty.
    #[error("a key is empty")]
    EmptyKey,
}

/// Checks a transaction against every rule of this module.
///
/// # Errors
/// [`StoreError::Refused`] for a rule, [`StoreError::TooLarge`] for a limit.
pub fn check(transaction: &Transaction) -> Result<(), StoreError> {
    within("guards", transaction.guards.len(), GUARDS_MAX)?;
    within("operations", transaction.operations.len(), OPERATIONS_MAX)?;
    within("bytes", size_bytes(transaction), TRANSACTION_BYTES_MAX)?;
    keys(transaction).map_err(StoreError::Refused)
}

/// An upper bound of the encoded size, in bytes.
#[must_use]
pub fn size_bytes(transaction: &Transaction) -> usize {
    // A guarded key is sent twice: in the compare and in the read of the else branch.
    let guards: usize = transaction.guards.iter().map(|guard| 2 * guard.key.len() + FRAME_BYTES).sum();
    let operations: usize = transaction.operations.iter().map(operation_bytes).sum();
    guards + operations + FRAME_BYTES
}

fn operation_bytes(operation: &Operation) -> usize {
    match operation {
        Operation::Put { key, value, .. } => key.len() + value.len() + FRAME_BYTES,
        Operation::Delete { key } => key.len() + FRAME_BYTES,
    }
}

fn within(what: &'static str, actual: usize, limit: usize) -> Result<(), StoreError> {
    if actual > limit { Err(StoreError::TooLarge { what, actual, limit }) } else { Ok(()) }
}

fn keys(transaction: &Transaction) -> Result<(), Refusal> {
    let mut guarded = BTreeMap::new();
    for guard in &transaction.guards {
        if guard.key.is_empty() {
            return Err(Refusal::EmptyKey);
        }
        if guarded.insert(guard.key.as_str(), guard.mod_revision).is_some() {
            return Err(Refusal::GuardedTwice { key: guard.key.clone() });
        }
    }
    let mut written = BTreeSet::new();
    for operation in &transaction.operations {
        let key = operation.key();
        if !written.insert(key) {
            return Err(Refusal::WrittenTwice { key: key.to_owned() });
        }
        match (guarded.get(key), operation) {
            (None, _) => return Err(Refusal::Unguarded { key: key.to_owned() }),
            (Some(0), Operation::Delete { .. }) => {
                return Err(Refusal::DeletesAbsent { key: key.to_owned() });
            }
            (Some(_), _) => {}
        }
    }
    Ok(())
}
