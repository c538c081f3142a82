//! Answers that the proxy gives itself.

use bytes::Bytes;
use http::header;
use lightbyte_api::topology::Redirect;
use pingora_core::{Error, ErrorSource, ErrorType, Result};
use pingora_http::ResponseHeader;
use pingora_proxy::{FailToProxy, Session};

use super::{host_of, status};
use crate::table::name_of;

/// Sends the client to the same place by `https`. Always true: the answer is written.
pub(super) async fn to_https(session: &mut Session, port: u16) -> Result<bool> {
    let request = session.req_header();
    let name = name_of(host_of(request)).to_owned();
    if name.is_empty() {
        return Err(status(400, "no host"));
    }
    let path = request.uri.path_and_query().map_or("/", |path| path.as_str());
    let location = location_of_https(&name, port, path);
    // 308 keeps method and body, which 301 does not.
    write_redirect(session, 308, location).await
}

/// Answers with a route's redirect. Always true: the answer is written.
pub(super) async fn redirect(session: &mut Session, redirect: &Redirect, scheme: &str) -> Result<bool> {
    let request = session.req_header();
    let path = request.uri.path_and_query().map_or("/", |path| path.as_str());
    let location = location(redirect, scheme, host_of(request), path);
    write_redirect(session, redirect.status, location).await
}

/// Answers a certification authority (RFC 8555, 8.3). Always true: the answer is written.
pub(super) async fn challenge(session: &mut Session, answer: String) -> Result<bool> {
    let mut response = ResponseHeader::build(200, Some(3))?;
    response.insert_header(header::CONTENT_TYPE, "application/octet-stream")?;
    response.insert_header(header::CONTENT_LENGTH, answer.len().to_string())?;
    response.insert_header(header::CACHE_CONTROL, "no-store")?;
    let has_body = session.req_header().method != http::Method::HEAD;
    session.write_response_header(Box::new(response), !has_body).await?;
    if has_body {
        session.write_response_body(Some(Bytes::from(answer)), true).await?;
    }
    Ok(true)
}

/// The same place by `https`. `path` has its query.
pub(crate) fn location_of_https(host: &str, port: u16, path: &str) -> String {
    let port = if port == 443 { String::new() } else { format!(":{port}") };
    format!("https://{}{port}{path}", name_of(host))
}

/// Where a redirect leads of what was asked. `path` has its query.
pub(crate) fn location(redirect: &Redirect, scheme: &str, host: &str, path: &str) -> String {
    let scheme = redirect.scheme.as_deref().unwrap_or(scheme);
    let host = redirect.host.as_deref().unwrap_or(host);
    let path = redirect.path.as_deref().unwrap_or(path);
    format!("{scheme}://{host}{path}")
}

async fn write_redirect(session: &mut Session, code: u16, location: String) -> Result<bool> {
    let mut response = ResponseHeader::build(code, Some(2))?;
    response.insert_header(header::LOCATION, location)?;
    response.insert_header(header::CONTENT_LENGTH, "0")?;
    session.write_response_header(Box::new(response), true).await?;
    Ok(true)
}

/// What a client is told of a failure; nothing, if it has an answer already or is gone.
pub(super) async fn failure(session: &mut Session, error: &Error) -> FailToProxy {
    let code = code_of(error);
    if code > 0 && session.response_written().is_none() {
        let reason = http::StatusCode::from_u16(code).ok().and_then(|status| status.canonical_reason());
        let body = format!("{code} {}\n", reason.unwrap_or_default());
        let is_written = write_failure(session, code, body).await;
        if is_written.is_err() {
            return FailToProxy { error_code: 0, can_reuse_downstream: false };
        }
    }
    FailToProxy { error_code: code, can_reuse_downstream: false }
}

async fn write_failure(session: &mut Session, code: u16, body: String) -> Result<()> {
    let mut response = ResponseHeader::build(code, Some(3))?;
    response.insert_header(header::CONTENT_LENGTH, body.len().to_string())?;
    response.insert_header(header::CONTENT_TYPE, "text/plain")?;
    response.insert_header(header::CACHE_CONTROL, "no-store")?;
    session.as_downstream_mut().write_error_response(response, Bytes::from(body)).await
}

/// 0 if the client is gone.
fn code_of(error: &Error) -> u16 {
    match (error.etype(), error.esource()) {
        (ErrorType::HTTPStatus(code), _) => *code,
        (
            ErrorType::ReadTimedout | ErrorType::ConnectTimedout | ErrorType::WriteTimedout,
            ErrorSource::Upstream,
        ) => 504,
        (_, ErrorSource::Upstream) => 502,
        (
            ErrorType::WriteError | ErrorType::ReadError | ErrorType::ConnectionClosed,
            ErrorSource::Downstream,
        ) => 0,
        (ErrorType::ReadTimedout, ErrorSource::Downstream) => 408,
        (_, ErrorSource::Downstream) => 400,
        (_, ErrorSource::Internal | ErrorSource::Unset) => 500,
    }
}
