//! One request to etcd: its time limit, its member, and what its error means.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use etcd_client::Error;
use tokio::time::Instant;
use tonic::{Code, Status};

use super::Inner;
use crate::error::{Cause, StoreError, cause};
use crate::store::{LeaseId, Revision};

/// How long a request that may be repeated is repeated: each of three members may need a try, and an election of
/// etcd takes up to 2.6 s.
const REPEAT_WITHIN: Duration = Duration::from_secs(10);

/// The pause between two tries.
const REPEAT_PAUSE: Duration = Duration::from_millis(100);

/// Why a single request failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// The member did not answer, or could not: another try may succeed, and what was asked may have been done.
    Transient(Cause),
    /// The answer was larger than we take.
    Oversized(Cause),
    /// etcd understood and refused: nothing was done.
    Known(StoreError),
}

/// What a request was about, for errors that do not name it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct About {
    pub(super) lease: Option<LeaseId>,
    pub(super) revision: Option<Revision>,
}

impl Inner {
    /// Makes one request, and leaves the member that fails it.
    pub(super) async fn once<T>(
        &self,
        within: Duration,
        about: About,
        request: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Failure> {
        let turn = self.members.turn();
        let result = match tokio::time::timeout(within, request).await {
            Ok(result) => result.map_err(|error| sort(error, about)),
            Err(_) => Err(Failure::Transient(cause(format!("no answer within {} ms", within.as_millis())))),
        };
        if let Err(Failure::Transient(_)) = &result {
            self.members.leave(turn);
        }
        result
    }

    /// Makes a request that may be repeated until a member answers.
    pub(super) async fn repeat<T, Sent>(
        &self,
        within: Duration,
        about: About,
        mut request: impl FnMut() -> Sent,
    ) -> Result<T, Failure>
    where
        Sent: Future<Output = Result<T, Error>>,
    {
        let deadline = Instant::now() + REPEAT_WITHIN;
        loop {
            match self.once(within, about, request()).await {
                Err(Failure::Transient(_)) if Instant::now() + REPEAT_PAUSE < deadline => {
                    tokio::time::sleep(REPEAT_PAUSE).await;
                }
                result => return result,
            }
        }
    }
}

impl From<Failure> for StoreError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Transient(cause) => Self::Unavailable(cause),
            Failure::Oversized(cause) => Self::Rejected(cause),
            Failure::Known(error) => error,
        }
    }
}

fn sort(error: Error, about: About) -> Failure {
    match error {
        Error::GRpcStatus(status) => sort_status(status, about),
        // The client says so in words only, when a renewal comes back with no time to live.
        Error::LeaseKeepAliveError(text) if text.contains("not found") => gone(about),
        Error::InvalidArgs(_) | Error::InvalidUri(_) | Error::InvalidMetadataValue(_) => {
            Failure::Known(StoreError::Rejected(Arc::new(error)))
        }
        _ => Failure::Transient(Arc::new(error)),
    }
}

fn sort_status(status: Status, about: About) -> Failure {
    let says = |text: &str| status.message().contains(text);
    let revision = about.revision.unwrap_or_default();
    match status.code() {
        Code::OutOfRange if says("compacted") => Failure::Known(StoreError::Compacted { revision }),
        Code::OutOfRange if says("future revision") => {
            Failure::Known(StoreError::FutureRevision { revision })
        }
        Code::OutOfRange if says("decoded message length") => Failure::Oversized(Arc::new(status)),
        Code::NotFound if says("lease not found") => gone(about),
        Code::ResourceExhausted if says("database space exceeded") => Failure::Known(StoreError::Full),
        Code::ResourceExhausted if says("larger than max") => {
            Failure::Known(StoreError::Rejected(Arc::new(status)))
        }
        // Everything else that a member in trouble, a broken connection or a busy one says.
        Code::Unavailable
        | Code::DeadlineExceeded
        | Code::Cancelled
        | Code::Unknown
        | Code::Internal
        | Code::Aborted
        | Code::DataLoss
        | Code::ResourceExhausted => Failure::Transient(Arc::new(status)),
        _ => Failure::Known(StoreError::Rejected(Arc::new(status))),
    }
}

fn gone(about: About) -> Failure {
    Failure::Known(match about.lease {
        Some(lease) => StoreError::LeaseGone { lease },
        None => StoreError::Rejected(cause("a lease is gone that was not named")),
    })
}
