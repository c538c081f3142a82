//! One leader at a time: whoever created the leader key, for as long as its lease lives.
//!
//! ```text
//!   campaign: key exists -> watch until it is deleted --+
//!                ^                                      |
//!                +--------------------------------------+
//!             key absent -> grant a lease, create the key if it is absent -> Leadership
//!                                                     |
//!                                                     +-- conflict -> revoke the lease, watch again
//! ```
//!
//! A deposed leader may believe for a moment that it still leads: clocks stop, processes are paused, members lie.
//! What protects the store is not the lease but the guard: [`Leadership::guard`] goes into every transaction of a
//! leader, and a successor has another revision.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::error::StoreError;
use crate::store::{
    Event, Guard, Lease, LeaseId, Operation, Outcome, Revision, Store, Transaction, Versioned, Watch,
};

/// The pause after a failed try: a member's election takes about a second, and candidates are few.
const CAMPAIGN_PAUSE: Duration = Duration::from_millis(250);

/// Someone who wants to lead.
pub struct Candidate {
    store: Arc<dyn Store>,
    key: String,
    value: Bytes,
    ttl: Duration,
}

impl Candidate {
    /// A candidate that will write `value` to `key`, on a lease of `ttl`. Values of different candidates must differ
    /// (an unknown result is settled by them).
    pub fn new(
        store: Arc<dyn Store>,
        key: impl Into<String>,
        value: impl Into<Bytes>,
        ttl: Duration,
    ) -> Self {
        Self { store, key: key.into(), value: value.into(), ttl }
    }

    /// Waits until nobody leads and this candidate does.
    ///
    /// It outlasts an unavailable store, trying again each 250 ms without end: it is the caller who knows when to
    /// stop, by dropping the future. Dropped at the wrong moment it may leave a leader key behind, which ends with its
    /// lease.
    ///
    /// # Errors
    /// What no waiting cures: [`StoreError::Refused`], [`StoreError::TooLarge`], [`StoreError::Full`],
    /// [`StoreError::Rejected`].
    pub async fn campaign(&self) -> Result<Leadership, StoreError> {
        loop {
            match self.try_once().await {
                Ok(Some(leadership)) => return Ok(leadership),
                Ok(None) => {}
                Err(
                    error @ (StoreError::Unavailable(_)
                    | StoreError::Unknown(_)
                    | StoreError::LeaseGone { .. }
                    | StoreError::Compacted { .. }
                    | StoreError::FutureRevision { .. }),
                ) => {
                    tracing::debug!(
                        error = &error as &dyn std::error::Error,
                        key = self.key,
                        "campaign again"
                    );
                    tokio::time::sleep(CAMPAIGN_PAUSE).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn try_once(&self) -> Result<Option<Leadership>, StoreError> {
        let read = self.store.get(&self.key).await?;
        if read.value.is_some() {
            self.wait_for_deletion(read.revision).await?;
        }
        let asked_at = Instant::now();
        let lease = self.store.lease_grant(self.ttl).await?;
        let transaction = Transaction {
            guards: vec![Guard::absent(&self.key)],
            operations: vec![Operation::Put {
                key: self.key.clone(),
                value: self.value.clone(),
                lease: Some(lease.id),
            }],
        };
        match self.store.commit(transaction).await {
            Ok(Outcome::Committed { revision }) => Ok(Some(self.lead(lease, revision, asked_at))),
            Ok(Outcome::Conflict { .. }) => {
                self.store.lease_revoke(lease.id).await?;
                Ok(None)
            }
            Err(error) => {
                // The key may be there: with its lease it goes at once, or, if that fails too, after its time.
                let _ = self.store.lease_revoke(lease.id).await;
                Err(error)
            }
        }
    }

    fn lead(&self, lease: Lease, mod_revision: Revision, renewed_at: Instant) -> Leadership {
        Leadership {
            store: Arc::clone(&self.store),
            key: self.key.clone(),
            mod_revision,
            lease: lease.id,
            ttl: lease.ttl,
            renewed_at,
        }
    }

    async fn wait_for_deletion(&self, seen_at: Revision) -> Result<(), StoreError> {
        let mut watch: Watch = self.store.watch(&self.key, seen_at + 1).await?;
        loop {
            let batch = watch.next().await?;
            // The watch is on a prefix: keys that only begin like ours are not ours.
            let last = batch.events.iter().rfind(|event| event.key() == self.key);
            if matches!(last, Some(Event::Delete { .. })) {
                return Ok(());
            }
        }
    }

    /// Who leads now, if anybody: the value of the leader key.
    ///
    /// # Errors
    /// As [`Store::get`].
    pub async fn leader(&self) -> Result<Option<Versioned>, StoreError> {
        Ok(self.store.get(&self.key).await?.value)
    }
}

impl fmt::Debug for Candidate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Candidate")
            .field("key", &self.key)
            .field("ttl", &self.ttl)
            .finish_non_exhaustive()
    }
}

/// A leadership that was won. It ends by itself unless its owner renews it: nothing renews in the background, since
/// only the owner knows whether it still does a leader's work.
pub struct Leadership {
    store: Arc<dyn Store>,
    key: String,
    mod_revision: Revision,
    lease: LeaseId,
    ttl: Duration,
    renewed_at: Instant,
}

impl Leadership {
    /// What every transaction of the leader must hold: the leader key as this leadership created it.
    #[must_use]
    pub fn guard(&self) -> Guard {
        Guard::at(&self.key, self.mod_revision)
    }

    /// The lease that carries the leader key.
    #[must_use]
    pub fn lease(&self) -> LeaseId {
        self.lease
    }

    /// How long the leadership lasts after a renewal.
    #[must_use]
    pub fn ttl(&self) -> Duration {
        self.ttl
    }

    /// The moment **before** the last successful renewal was sent, on the monotonic clock.
    #[must_use]
    pub fn renewed_at(&self) -> Instant {
        self.renewed_at
    }

    /// Until when nobody else can lead, if this machine's clock runs as fast as the store's and no member lies.
    #[must_use]
    pub fn sure_until(&self) -> Instant {
        self.renewed_at + self.ttl
    }

    /// Renews once. The caller decides when, and whether it still deserves to lead.
    ///
    /// # Errors
    /// [`StoreError::LeaseGone`]: somebody else may lead already. [`StoreError::Unavailable`]: not renewed; it still
    /// lasts until [`Leadership::sure_until`].
    pub async fn renew(&mut self) -> Result<(), StoreError> {
        let asked_at = Instant::now();
        self.ttl = self.store.lease_keep_alive(self.lease).await?;
        self.renewed_at = asked_at;
        Ok(())
    }

    /// Ends the leadership now, so that the next candidate need not wait for the lease.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]; it then ends with its lease.
    pub async fn resign(self) -> Result<(), StoreError> {
        self.store.lease_revoke(self.lease).await
    }
}

impl fmt::Debug for Leadership {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Leadership")
            .field("key", &self.key)
            .field("mod_revision", &self.mod_revision)
            .field("lease", &self.lease)
            .finish_non_exhaustive()
    }
}
