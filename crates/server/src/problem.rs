//! What goes wrong, as callers see it: a problem document (RFC 9457) with a status, and what to do about it.

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use lightbyte_link::Problem;
use lightbyte_plan::request::Refusal;
use lightbyte_store::StoreError;

use crate::chain;
use crate::follower::TooOld;

/// A request that was not carried out, or whose outcome is not known.
#[derive(Debug, Clone)]
pub(crate) struct Failure(pub(crate) Problem);

impl Failure {
    /// A failure with one sentence, without a full stop.
    pub(crate) fn new(status: StatusCode, title: impl Into<String>) -> Failure {
        Failure(Problem::new(status, title))
    }

    /// A request that cannot be understood.
    pub(crate) fn bad(title: impl Into<String>) -> Failure {
        Failure::new(StatusCode::BAD_REQUEST, title)
    }

    /// Nothing can be answered now; another server may.
    pub(crate) fn unavailable(title: impl Into<String>, hint: &str) -> Failure {
        Failure::new(StatusCode::SERVICE_UNAVAILABLE, title).hint(hint)
    }

    /// What to do about it.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Failure {
        self.0.hint = Some(hint.into());
        self
    }

    /// More of it.
    pub(crate) fn details(mut self, details: impl IntoIterator<Item = String>) -> Failure {
        self.0.details.extend(details);
        self
    }

    /// A write may have been done.
    pub(crate) fn outcome_unknown() -> Failure {
        Failure::new(
            StatusCode::GATEWAY_TIMEOUT,
            "the store did not say whether it was done; it may have been",
        )
        .hint("`lightbyte get` shows what is there now; asking the same again does no harm")
    }

    /// The view of this server.
    pub(crate) fn no_view() -> Failure {
        let hint = "see that etcd runs; the server tries again by itself";
        Failure::unavailable("this server has not read the store yet", hint)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        if self.0.status >= 500 {
            tracing::debug!(status = self.0.status, title = self.0.title, "a request failed");
        }
        self.0.into_response()
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Failure {
        let failure = Failure::new(status_of(&refusal), refusal.to_string());
        match refusal.hint() {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }
}

fn status_of(refusal: &Refusal) -> StatusCode {
    match refusal {
        Refusal::NotFound { .. } | Refusal::UnknownWorker { .. } => StatusCode::NOT_FOUND,
        Refusal::Changed { .. } => StatusCode::PRECONDITION_FAILED,
        Refusal::NotByPeople { .. }
        | Refusal::NotForKind { .. }
        | Refusal::NotAGroup { .. }
        | Refusal::NotProtectable { .. }
        | Refusal::BadReport { .. } => StatusCode::BAD_REQUEST,
        Refusal::WorkerAway { .. } => StatusCode::SERVICE_UNAVAILABLE,
        Refusal::Exists { .. }
        | Refusal::NotPlaced { .. }
        | Refusal::NotSquatted { .. }
        | Refusal::NoRollout { .. }
        | Refusal::Stopped { .. }
        | Refusal::Deleting { .. }
        | Refusal::Owned { .. }
        | Refusal::Frozen { .. }
        | Refusal::Protected { .. }
        | Refusal::HasCopies { .. }
        | Refusal::WorkerName { .. }
        | Refusal::SecondInstance { .. }
        | Refusal::Unreadable { .. } => StatusCode::CONFLICT,
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Failure {
        match &error {
            StoreError::Unavailable(_) => {
                let hint = "`lightbyte status` shows etcd's members; most of them must run";
                Failure::unavailable("the store does not answer; nothing was written", hint)
            }
            StoreError::Unknown(_) => Failure::outcome_unknown(),
            StoreError::Full => {
                let hint = "the server that leads makes room within a minute or two; if that does not help, `lightbyte etcd status` tells more";
                Failure::unavailable("the store is full; nothing was written", hint)
            }
            StoreError::TooLarge { what, actual, limit } => {
                let title = format!("the write has {actual} {what}, the store takes at most {limit}");
                Failure::new(StatusCode::PAYLOAD_TOO_LARGE, title)
            }
            StoreError::LeaseGone { .. } => {
                Failure::unavailable("the lease ended meanwhile; nothing was written", "ask again")
            }
            StoreError::Compacted { .. }
            | StoreError::FutureRevision { .. }
            | StoreError::Refused(_)
            | StoreError::Misconfigured(_)
            | StoreError::Rejected(_) => {
                tracing::error!(error = chain(&error), "the store refused what this server asked");
                Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "the store refused what this server asked")
                    .details([chain(&error)])
                    .hint("report this as a bug, with the server's log")
            }
        }
    }
}

impl From<TooOld> for Failure {
    fn from(TooOld { revision }: TooOld) -> Failure {
        if revision == 0 {
            return Failure::no_view();
        }
        let title = format!("this server is at revision {revision}, which is older than what was asked for");
        Failure::new(StatusCode::GATEWAY_TIMEOUT, title).hint("ask again, or ask another server")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn every_error_of_the_store_has_a_status_and_a_cure() {
        let cause = || Arc::new(std::io::Error::other("cause")) as lightbyte_store::Cause;
        let check = |error: StoreError, status: u16, part: &str| {
            let problem = Failure::from(error).0;
            let text = format!("{} {}", problem.title, problem.hint.unwrap_or_default());
            assert_eq!(problem.status, status, "{text}");
            assert!(text.contains(part), "{text}");
            assert!(!problem.title.ends_with('.'));
        };
        check(StoreError::Unavailable(cause()), 503, "nothing was written");
        check(StoreError::Unknown(cause()), 504, "it may have been");
        check(StoreError::Full, 503, "lightbyte etcd status");
        check(StoreError::TooLarge { what: "bytes", actual: 2, limit: 1 }, 413, "2 bytes");
        check(StoreError::Rejected(cause()), 500, "report this as a bug");
    }
}
