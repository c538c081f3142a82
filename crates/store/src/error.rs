//! What can go wrong between a caller and the store, cut by what the caller does about it.

use std::error::Error;
use std::sync::Arc;

use crate::rules::Refusal;
use crate::store::{LeaseId, Revision};

/// What lies under a [`StoreError`]; shared, so that an error can be kept in a view and reported more than once.
pub type Cause = Arc<dyn Error + Send + Sync + 'static>;

/// Why the store did not do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// No member answered in time. Nothing is known to have been written; a read may simply be made again.
    #[error("reach the store")]
    Unavailable(#[source] Cause),

    /// A transaction was sent, and neither it nor its settling tries got a clear answer. It may have been
    /// committed, and it may still be committed **later** (a stopped member keeps what it has received), in which
    /// case its guards held at that time. Decide again from a newer view.
    #[error("learn whether the transaction was committed")]
    Unknown(#[source] Cause),

    /// The transaction breaks a rule of this crate and was not sent: a fault of the program.
    #[error("refuse the transaction")]
    Refused(#[source] Refusal),

    /// More than the store takes. Nothing was written.
    #[error("the transaction has {actual} {what}, the limit is {limit}")]
    TooLarge {
        /// What there is too much of: `operations`, `guards`, `bytes`.
        what: &'static str,
        /// How much there is.
        actual: usize,
        /// How much there may be.
        limit: usize,
    },

    /// The revision asked for is gone. List anew and watch from there.
    #[error("the history up to revision {revision} has been compacted")]
    Compacted {
        /// Up to here at least: what the store told, or what was asked for.
        revision: Revision,
    },

    /// The revision asked for has not been written yet.
    #[error("revision {revision} is still to come")]
    FutureRevision {
        /// The revision that was asked for.
        revision: Revision,
    },

    /// The lease has expired or was revoked; its keys are gone with it, or will be within moments.
    #[error("lease {lease} is gone")]
    LeaseGone {
        /// The lease.
        lease: LeaseId,
    },

    /// The database has reached its quota: puts and lease grants fail, deletes work. Nothing was written. Cure: compact, defragment,
    /// disarm the alarm.
    #[error("the store has reached its space quota")]
    Full,

    /// The store was set up with something that cannot work: a fault of the configuration.
    #[error("set up the store")]
    Misconfigured(#[source] Cause),

    /// The store answered with something that this version cannot understand, or refused for another reason.
    #[error("understand the store's answer")]
    Rejected(#[source] Cause),
}

impl StoreError {
    /// Whether asking again, unchanged, may succeed without anybody doing anything.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Unknown(_))
    }

    /// An [`StoreError::Unavailable`] with a plain text as its cause.
    pub(crate) fn unavailable(detail: impl Into<String>) -> Self {
        Self::Unavailable(cause(detail))
    }
}

/// A cause that is only a text.
pub(crate) fn cause(detail: impl Into<String>) -> Cause {
    Arc::from(Box::<dyn Error + Send + Sync>::from(detail.into()))
}
