//! Leases. A renewal is one message on a stream that is kept for the next one.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use etcd_client::{Error, LeaseGrantOptions, LeaseKeepAliveStream, LeaseKeeper};

use super::call::{About, Failure};
use super::channel::Turn;
use super::{Inner, incomplete};
use crate::error::StoreError;
use crate::store::{Lease, LeaseId};

/// How long one try of a renewal may take: short, since the next member must be asked within the time to live.
const RENEW_TIMEOUT: Duration = Duration::from_millis(1500);

/// How many streams are kept: one for each worker that a server serves, and its own. Beyond, a stream is made anew.
const KEEPERS_MAX: usize = 4096;

/// A stream that renews one lease.
struct Keeper {
    /// The member that it runs to: a stream that was kept says nothing about the member of today.
    turn: Turn,
    keeper: LeaseKeeper,
    stream: LeaseKeepAliveStream,
}

/// The streams of leases that were renewed before.
#[derive(Default)]
pub(super) struct Keepers(Mutex<BTreeMap<LeaseId, Keeper>>);

impl Keepers {
    fn take(&self, lease: LeaseId) -> Option<Keeper> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&lease)
    }

    fn keep(&self, lease: LeaseId, keeper: Keeper) {
        let mut keepers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if keepers.len() >= KEEPERS_MAX {
            // The oldest lease is the likeliest to have been given up by its owner.
            keepers.pop_first();
        }
        keepers.insert(lease, keeper);
    }
}

impl Inner {
    pub(super) async fn lease_grant(&self, ttl: Duration) -> Result<Lease, StoreError> {
        let seconds = whole_seconds(ttl);
        let answer = self.repeat(self.request_timeout, About::default(), || {
            let mut client = self.client.lease_client();
            async move { client.grant(seconds, None).await }
        });
        let answer = answer.await?;
        let ttl = u64::try_from(answer.ttl()).map_err(|_| incomplete("time to live"))?;
        Ok(Lease { id: LeaseId(answer.id()), ttl: Duration::from_secs(ttl) })
    }

    pub(super) async fn lease_ensure(&self, lease: LeaseId, ttl: Duration) -> Result<(), StoreError> {
        let seconds = whole_seconds(ttl);
        let granted = self.repeat(self.request_timeout, About::default(), || {
            let mut client = self.client.lease_client();
            async move {
                match client.grant(seconds, Some(LeaseGrantOptions::new().with_id(lease.0))).await {
                    // Somebody's earlier grant, or a try of this one whose answer was lost.
                    Err(Error::GRpcStatus(status)) if status.message().contains("lease already exists") => {
                        Ok(())
                    }
                    granted => granted.map(drop),
                }
            }
        });
        Ok(granted.await?)
    }

    pub(super) async fn lease_keep_alive(&self, lease: LeaseId) -> Result<Duration, StoreError> {
        let about = About { lease: Some(lease), ..About::default() };
        // A kept stream may have died with its member: that is no news about the lease.
        if let Some(keeper) = self.keepers.take(lease) {
            match self.once_at(keeper.turn, RENEW_TIMEOUT, about, renew(keeper)).await {
                Ok((ttl, keeper)) => return self.renewed(lease, ttl, keeper),
                Err(Failure::Transient(_)) => {}
                Err(failure) => return Err(failure.into()),
            }
        }
        let (ttl, keeper) = self
            .repeat(RENEW_TIMEOUT, about, || {
                let (mut client, turn) = (self.client.lease_client(), self.members.turn());
                async move {
                    let (keeper, stream) = client.keep_alive(lease.0).await?;
                    renew(Keeper { turn, keeper, stream }).await
                }
            })
            .await?;
        self.renewed(lease, ttl, keeper)
    }

    fn renewed(&self, lease: LeaseId, ttl: i64, keeper: Keeper) -> Result<Duration, StoreError> {
        match u64::try_from(ttl) {
            Ok(seconds) if seconds > 0 => {
                self.keepers.keep(lease, keeper);
                Ok(Duration::from_secs(seconds))
            }
            _ => Err(StoreError::LeaseGone { lease }),
        }
    }

    pub(super) async fn lease_revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        drop(self.keepers.take(lease));
        let about = About { lease: Some(lease), ..About::default() };
        let answer = self.repeat(self.request_timeout, about, || {
            let mut client = self.client.lease_client();
            async move { client.revoke(lease.0).await }
        });
        match answer.await {
            // Whoever revoked it, or its time: it is gone.
            Ok(_) | Err(Failure::Known(StoreError::LeaseGone { .. })) => Ok(()),
            Err(failure) => Err(failure.into()),
        }
    }
}

/// etcd counts whole seconds; the end must not come before what was asked.
fn whole_seconds(ttl: Duration) -> i64 {
    let seconds = ttl.as_secs().saturating_add(u64::from(ttl.subsec_nanos() > 0));
    i64::try_from(seconds).unwrap_or(i64::MAX)
}

/// One renewal on an open stream. A new stream brings a first answer of its own, which the client swallows with the
/// time to live in it; that is why even a new one is asked again.
async fn renew(mut keeper: Keeper) -> Result<(i64, Keeper), Error> {
    keeper.keeper.keep_alive().await?;
    match keeper.stream.message().await? {
        Some(answer) => Ok((answer.ttl(), keeper)),
        None => Err(Error::LeaseKeepAliveError("the stream has ended".to_owned())),
    }
}
