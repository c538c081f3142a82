//! How old an answer may be: told with each while the store does not confirm that there is nothing newer.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::HeaderValue;
use axum::middleware::Next;
use axum::response::Response;
use lightbyte_link::client::AGE_HEADER;

use crate::Server;

/// Answers that are younger are as good as new: a view is confirmed about once a second, and later while etcd elects a leader.
const STALE_AFTER: Duration = Duration::from_secs(10);

/// Says with an answer how old it may be, if that is worth saying.
pub(crate) async fn tell(State(server): State<Arc<Server>>, request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let age = server.follower.confirmed_at().map(|at| at.elapsed());
    if let Some(millis) = worth_saying(age) {
        response.headers_mut().insert(AGE_HEADER, HeaderValue::from(millis));
    }
    response
}

/// In milliseconds. A view that was not confirmed yet has just been read.
fn worth_saying(age: Option<Duration>) -> Option<u64> {
    age.filter(|age| *age >= STALE_AFTER).map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_young_is_not_told() {
        let check = |millis: Option<u64>, expected: Option<u64>| {
            assert_eq!(worth_saying(millis.map(Duration::from_millis)), expected, "{millis:?}");
        };
        check(Some(0), None);
        check(Some(9_999), None);
        check(Some(10_000), Some(10_000));
        check(None, None);
    }
}
