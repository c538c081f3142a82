//! Locks that a panic elsewhere does not poison for ever: what they guard is whole after every statement.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// The guard, whoever panicked with it before.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
