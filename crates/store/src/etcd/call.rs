//! One request to etcd: its time limit, its member, and what its error means.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use etcd_client::Error;
use tokio::time::Instant;
use tonic::{Code, Status};

use super::Inner;
use super::channel::Turn;
use crate::error::{Cause, StoreError, cause};
use crate::store::{LeaseId, Revision};

/// How long a request that may be repeated is repeated: each of three members may need a try, and an election of
/// etcd takes up to 2.6 s.
const REPEAT_WITHIN: Duration = Duration::from_secs(10);

/// The pause between two tries.
const REPEAT_PAUSE: Duration = Duration::from_millis(100);

/// How long the first try may take; each later one twice as long, up to the limit of the request. A member that has
/// just lost its leader drops what it is sent (measured: a write made right after the leader's death hangs until its
/// time limit), so a short first try brings service back in 2 s instead of 5, and a slow disk still gets its time.
const FIRST_TRY: Duration = Duration::from_millis(1500);

/// The time limit of a try, counted from 0, of a request that may take `most`.
pub(super) fn try_within(tried: u32, most: Duration) -> Duration {
    FIRST_TRY.saturating_mul(1 << tried.min(8)).min(most)
}

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
        self.once_at(self.members.turn(), within, about, request).await
    }

    /// As [`Inner::once`], on something that was opened when it was another member's turn.
    pub(super) async fn once_at<T>(
        &self,
        turn: Turn,
        within: Duration,
        about: About,
        request: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Failure> {
        let result = match tokio::time::timeout(within, request).await {
            Ok(result) => result.map_err(|error| sort(error, about)),
            Err(_) => Err(Failure::Transient(cause(format!("no answer within {} ms", within.as_millis())))),
        };
        if let Err(Failure::Transient(_)) = &result {
            self.members.leave(turn);
        }
        result
    }

    /// Makes a request that may be repeated until a member answers; a try takes `most` at most.
    pub(super) async fn repeat<T, Sent>(
        &self,
        most: Duration,
        about: About,
        mut request: impl FnMut() -> Sent,
    ) -> Result<T, Failure>
    where
        Sent: Future<Output = Result<T, Error>>,
    {
        let deadline = Instant::now() + REPEAT_WITHIN;
        let mut tried = 0;
        loop {
            let within = try_within(tried, most);
            tried += 1;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tries_grow_to_their_limit() {
        let check = |tried, most_ms, expected_ms| {
            let within = try_within(tried, Duration::from_millis(most_ms));
            assert_eq!(within, Duration::from_millis(expected_ms), "try {tried} of at most {most_ms} ms");
        };
        check(0, 5000, 1500);
        check(1, 5000, 3000);
        check(2, 5000, 5000);
        check(u32::MAX, 5000, 5000);
        check(0, 1000, 1000);
    }

    #[test]
    fn statuses_are_sorted_by_what_the_caller_does() {
        let about = About { lease: Some(LeaseId(7)), revision: Some(9) };
        let check = |code, message: &str, expected: &str| {
            let told = format!("{:?}", sort_status(Status::new(code, message), about));
            assert!(told.starts_with(expected), "{message:?} is {told}");
        };
        let compacted = "etcdserver: mvcc: required revision has been compacted";
        check(Code::OutOfRange, compacted, "Known(Compacted { revision: 9 })");
        let future = "etcdserver: mvcc: required revision is a future revision";
        check(Code::OutOfRange, future, "Known(FutureRevision { revision: 9 })");
        check(
            Code::NotFound,
            "etcdserver: requested lease not found",
            "Known(LeaseGone { lease: LeaseId(7) })",
        );
        check(Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded", "Known(Full)");
        check(Code::ResourceExhausted, "etcdserver: too many requests", "Transient");
        check(Code::Unavailable, "etcdserver: no leader", "Transient");
        check(Code::Unavailable, "etcdserver: request timed out", "Transient");
        check(Code::Cancelled, "h2 protocol error: http2 error", "Transient");
        check(Code::InvalidArgument, "etcdserver: duplicate key given in txn request", "Known(Rejected");
        check(Code::Unauthenticated, "etcdserver: invalid auth token", "Known(Rejected");
        check(
            Code::OutOfRange,
            "Error, decoded message length too large: found 9 bytes, the limit is: 4 bytes",
            "Oversized",
        );
    }
}
