//! Keeps web pages out. A person's browser runs what any page says, and can reach whatever the person's machine can; until
//! callers prove who they are, what a browser sends for a page must be told from what our own programs send.

use std::net::IpAddr;

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use http::header::{HOST, ORIGIN};
use http::{HeaderMap, StatusCode};

use crate::client::Problem;

/// Refuses requests that a browser sends for a page of somebody else. For `axum::middleware::from_fn`.
pub async fn keep_pages_out(request: Request, next: Next) -> Response {
    match refusal(request.headers()) {
        None => next.run(request).await,
        Some(title) => {
            let hint = Some("ask with `lightbyte`, or with a program that is no browser".to_owned());
            Problem {
                title: title.to_owned(),
                status: StatusCode::FORBIDDEN.as_u16(),
                hint,
                ..Problem::default()
            }
            .into_response()
        }
    }
}

fn refusal(headers: &HeaderMap) -> Option<&'static str> {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    // Browsers say for whose page they ask (RFC 6454); a WebSocket is not kept to its own site by anything else.
    if text(ORIGIN).is_some() {
        return Some("requests for web pages are not answered");
    }
    // A public name may be made to lead to a machine of ours (DNS rebinding). It has a dot, and is no address.
    let host = text(HOST).unwrap_or_default();
    let name = match host.strip_prefix('[') {
        Some(address) => address.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    let is_ours = !name.contains('.') || name.parse::<IpAddr>().is_ok();
    (!is_ours).then_some("this server has an address and no such name")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_and_public_names_are_refused() {
        let check = |pairs: &[(&'static str, &str)], expect: bool| {
            let mut headers = HeaderMap::new();
            pairs.iter().for_each(|(name, value)| drop(headers.insert(*name, value.parse().unwrap())));
            assert_eq!(refusal(&headers).is_none(), expect, "{pairs:?}");
        };
        check(&[("host", "lightbyte")], true);
        check(&[("host", "10.77.0.11:7703")], true);
        check(&[("host", "localhost:7703")], true);
        check(&[("host", "[::1]:7703")], true);
        check(&[], true);
        check(&[("host", "evil.example")], false);
        check(&[("host", "10.77.0.11.evil.example:7703")], false);
        check(&[("host", "127.0.0.1:7703"), ("origin", "https://evil.example")], false);
        check(&[("host", "127.0.0.1:7703"), ("origin", "null")], false);
    }
}
