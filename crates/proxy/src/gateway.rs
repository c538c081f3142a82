//! What is done with each request: the steps in which the HTTP library asks us. What they decide is decided in
//! [`Table`](crate::table::Table) and its like; this file carries it out.

mod answers;
mod context;
mod dial;
mod held;
pub(crate) mod strict;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use bytes::Bytes;
use http::{Method, StatusCode, header};
use lightbyte_api::topology::BackendProtocol;
use pingora_core::connectors::L4Connect;
use pingora_core::protocols::{ALPN, Digest};
use pingora_core::upstreams::peer::HttpPeer;
use pingora_core::{Error, ErrorSource, ErrorType, Result, RetryType};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::{FailToProxy, ProxyHttp, Session};
use rustix::io::Errno;

use crate::access::AccessLog;
use crate::chance;
use crate::clock;
use crate::connection::Connection;
use crate::forwarded::{self, Origin};
use crate::health;
use crate::patience;
use crate::rate::Limiter;
use crate::registry::{Flight, Member};
use crate::retry::Failure;
use crate::table::{Key, Pool, Table};
use crate::waits::{Leash, Wait};
pub(crate) use context::Context;

/// How long a client may take to read a piece of an answer.
const CLIENT_WRITE_MAX: Duration = Duration::from_secs(60);

/// How long a connection to a backend is kept for the next request. Less than the 5 s after which common servers close
/// theirs: a request that meets the close is lost if it may not be repeated.
const BACKEND_IDLE_MAX: Duration = Duration::from_secs(4);

/// Requests at once on one connection of HTTP/2 to a backend.
const BACKEND_STREAMS_MAX: usize = 100;

/// Times that a choice is made again because the topology was replaced meanwhile.
const CHOICES_MAX: u32 = 16;

/// The proxy's logic.
#[derive(Debug)]
pub(crate) struct Gateway {
    table: Arc<ArcSwap<Table>>,
    access: AccessLog,
    /// One for all: it holds nothing.
    dial: Arc<dyn L4Connect + Send + Sync>,
}

pub(crate) use answers::{location, location_of_https};

fn status(code: u16, why: &'static str) -> Box<Error> {
    Error::explain(ErrorType::HTTPStatus(code), why)
}

impl Gateway {
    pub(crate) fn new(table: Arc<ArcSwap<Table>>, access: AccessLog) -> Gateway {
        Gateway { table, access, dial: Arc::new(dial::Dial) }
    }

    /// Chooses a backend and counts the request as in flight to it.
    ///
    /// Once a topology without a backend holds, no request may begin there: whoever stops the backend relies on its
    /// count. So after counting the table is looked at again, and if it was replaced the choice is made anew. Either
    /// this load sees the new table, or who has stored it sees the count (both are sequentially consistent).
    fn choose(&self, session: &Session, context: &mut Context) -> Result<(Arc<Pool>, Arc<Member>)> {
        for _ in 0..CHOICES_MAX {
            let table = self.table.load_full();
            if !context.is_of(&table) {
                self.find_route(session, context, &table)?;
            }
            let (pool, member) = choose_member(session, context)?;
            let flight = Flight::new(member.clone());
            fence(Ordering::SeqCst);
            if Arc::ptr_eq(&table, &self.table.load()) {
                context.flight = Some(flight);
                return Ok((pool, member));
            }
        }
        Err(status(503, "the topology is replaced all the time"))
    }

    fn find_route(&self, session: &Session, context: &mut Context, table: &Arc<Table>) -> Result<()> {
        let request = session.req_header();
        let route = table.route(host_of(request), request.uri.path(), &request.method);
        context.route = route.cloned();
        context.table = Some(table.clone());
        let Some(route) = &context.route else {
            return Err(status(404, "no route"));
        };
        #[cfg(test)]
        assert_ne!(route.name, POISON, "as a test wants it");
        // What stands after the prefix is cut out as text.
        if route.is_rewriting() && std::str::from_utf8(request.raw_path()).is_err() {
            return Err(status(400, "a path that is not UTF-8"));
        }
        Ok(())
    }

    /// A try failed: the backend's health, and whether there is another one.
    fn after_failure(
        &self,
        session: &Session,
        context: &mut Context,
        mut error: Box<Error>,
        is_before: bool,
        is_reused: bool,
    ) -> Box<Error> {
        let Some((pool, member)) =
            context.pool.clone().zip(context.flight.take().map(|flight| flight.member.clone()))
        else {
            error.set_retry(false);
            return error;
        };
        // We shut the connection down ourselves, and that was paid for.
        let is_cut = context.wait.take().is_some_and(|wait| wait.is_cut());
        // That a backend closes a connection that it had waited on is its right.
        let is_stale = is_reused && error.retry == RetryType::ReusedOnly && !is_cut;
        if !is_stale && !is_own(&error) {
            note_failure(&pool, &member);
        }
        let is_before = is_before || is_untouched(&error);
        let failure = Failure {
            is_before_sending: is_before,
            is_idempotent: session.req_header().method.is_idempotent(),
            is_body_kept: !session.as_ref().retry_buffer_truncated(),
            is_answer_begun: session.response_written().is_some(),
            tries: context.tries,
            tries_max: context.route.as_ref().map_or(1, |route| route.tries_max),
        };
        // Where nothing was sent, another try is no load that anybody has borne yet, so it costs nothing.
        let is_free = is_before || is_cut;
        let is_again = failure.is_repeatable() && (is_free || pool.budget.spend(clock::now()));
        if is_again {
            member.counts.retries.fetch_add(1, Ordering::Relaxed);
            if let Some(route) = &context.route {
                route.counts.retries.fetch_add(1, Ordering::Relaxed);
            }
            context.tried.push(member.uid.clone());
        }
        error.set_retry(is_again);
        error
    }
}

/// The member for a request: the one that its cookie names, or one by the pool's own way.
fn choose_member(session: &Session, context: &mut Context) -> Result<(Arc<Pool>, Arc<Member>)> {
    let route = context.route.clone().ok_or_else(|| status(404, "no route"))?;
    let now_ms = clock::now_ms();
    let cookie = route.sticky.as_ref().and_then(|sticky| cookie_of(session.req_header(), &sticky.cookie));
    if let Some((pool, index)) = cookie.and_then(|cookie| route.stuck_to(cookie)) {
        let member = &pool.members[index];
        if member.is_healthy(now_ms) && !context.tried.contains(&member.uid) {
            context.pool = Some(pool.clone());
            context.stick = None;
            return Ok((pool.clone(), member.clone()));
        }
    }
    // A second try stays in the pool that the first was given: its share is counted already.
    let pool = context.pool.take().filter(|pool| context.tries > 0 && route.has(pool));
    let pool = pool.or_else(|| route.pool().cloned()).ok_or_else(|| status(503, "no backend"))?;
    let key = pool.key.as_ref().and_then(|key| hash_of(key, session.req_header(), context.source));
    let index = pool.choose(key, &context.tried, now_ms).ok_or_else(|| status(503, "no backend"))?;
    let member = pool.members.get(index).cloned().ok_or_else(|| status(503, "no backend"))?;
    context.pool = Some(pool.clone());
    context.stick = route.sticky.is_some().then(|| chance::stable_hash(member.uid.as_bytes()));
    Ok((pool, member))
}

/// Whether the try may be taken away from a backend that falls silent: safe methods only (RFC 9110, 9.2.1), since it is
/// we who break it off and the backend may be at work on it.
fn is_movable(session: &mut Session, context: &Context, pool: &Arc<Pool>, member: &Member) -> bool {
    pool.protocol == BackendProtocol::H1
        && session.req_header().method.is_safe()
        && session.is_body_empty()
        && !session.is_upgrade_req()
        && context.has_refuge(pool, member)
}

/// Whether we could not even try: no descriptors or ports are left here, which says nothing about the backend.
fn is_own(error: &Error) -> bool {
    let errno = error.root_cause().downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error);
    let lacking = [Errno::MFILE, Errno::NFILE, Errno::ADDRNOTAVAIL].map(Errno::raw_os_error);
    errno.is_some_and(|errno| lacking.contains(&errno))
}

/// Whether a backend of HTTP/2 has said that it did nothing with the request: by `GOAWAY` before it, or `REFUSED_STREAM`.
fn is_untouched(error: &Error) -> bool {
    *error.etype() == ErrorType::H2Error && error.retry == RetryType::Decided(true)
}

fn note_failure(pool: &Pool, member: &Member) {
    if let Some(ejection) = &pool.ejection {
        let ejected = pool.ejected(clock::now_ms());
        let may_eject = health::bears_one_more(pool.members.len(), ejected, ejection.ejected_percent_max);
        member.failed(ejection, may_eject);
    }
}

pub(crate) fn hash_of(key: &Key, request: &RequestHeader, source: IpAddr) -> Option<u64> {
    match key {
        Key::Header(name) => request.headers.get(name).map(|value| chance::stable_hash(value.as_bytes())),
        Key::Cookie(name) => cookie_of(request, name).map(|value| chance::stable_hash(value.as_bytes())),
        Key::Source => Some(chance::stable_hash(source.to_canonical().to_string().as_bytes())),
    }
}

/// The value of a cookie. Clients send several cookies in one header, and by HTTP/2 in several.
pub(crate) fn cookie_of<'a>(request: &'a RequestHeader, name: &str) -> Option<&'a str> {
    let headers = request.headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let pairs = headers.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.filter(|(key, _)| *key == name).map(|(_, value)| value.trim_matches('"')).next()
}

/// The host that was asked for: the authority of HTTP/2 and of absolute forms, or the header.
pub(crate) fn host_of(request: &RequestHeader) -> &str {
    let authority = request.uri.authority().map(http::uri::Authority::as_str);
    let header = || request.headers.get(header::HOST).and_then(|host| host.to_str().ok());
    authority.or_else(header).unwrap_or_default()
}

/// Sets the path that the backend is asked for. It is asked by path always: of an absolute form it might go by another
/// part than we did.
fn set_path(
    session: &Session,
    request: &mut RequestHeader,
    rewritten: Option<String>,
    host: &str,
) -> Result<()> {
    let is_absolute = !session.is_http2() && strict::is_absolute(request);
    if !is_absolute && rewritten.is_none() {
        return Ok(());
    }
    let path = rewritten.unwrap_or_else(|| request.uri.path().to_owned());
    let path = request.uri.query().map_or_else(|| path.clone(), |query| format!("{path}?{query}"));
    // Only the path stays of what is set, so the host that stood in the target goes to the header.
    if request.uri.authority().is_some() {
        request.insert_header(header::HOST, host)?;
    }
    request.set_raw_path(path.as_bytes())
}

fn connection_of(session: &Session) -> Option<&Arc<Connection>> {
    session.digest()?.proxy_digest.as_ref()?.user_data.as_ref()?.downcast_ref()
}

#[async_trait]
impl ProxyHttp for Gateway {
    type CTX = Context;

    fn new_ctx(&self) -> Context {
        Context::new(self.table.load_full())
    }

    fn init_downstream_modules(&self, _: &mut pingora_core::modules::http::HttpModules) {
        // Bodies pass as they are: the library's default would be a compressor that is switched off.
    }

    async fn early_request_filter(&self, session: &mut Session, context: &mut Context) -> Result<()> {
        let connection =
            connection_of(session).cloned().ok_or_else(|| status(500, "a stream that is not ours"))?;
        let is_h2 = session.is_http2();
        // By default the library closes the connection, and a request that was sent early is lost.
        session.as_downstream_mut().set_pipelining_enabled(true);
        context.request = Some(connection.request(is_h2));
        context.source = connection.peer.ip();
        context.connection = Some(connection);
        strict::check(session, context.limits().header_bytes_max)
    }

    async fn request_filter(&self, session: &mut Session, context: &mut Context) -> Result<bool> {
        let table = context.table.clone().unwrap_or_default();
        session.set_write_timeout(Some(CLIENT_WRITE_MAX));
        let connection = context.connection.as_ref().ok_or_else(|| status(500, "no connection"))?;
        if connection.is_to_end() {
            session.set_keepalive(None);
        }
        let is_read = matches!(session.req_header().method, Method::GET | Method::HEAD);
        let challenge = is_read.then(|| table.challenge(session.req_header().uri.path())).flatten();
        if let Some(answer) = challenge {
            return answers::challenge(session, answer.to_owned()).await;
        }
        let redirect = match table.listeners.get(&connection.port) {
            Some(listener) => listener.redirect_to_https,
            None => {
                // The port is gone: what is under way is served, and the connection ends.
                session.set_keepalive(None);
                connection.redirect_to_https
            }
        };
        if let Some(https_port) = redirect {
            return answers::to_https(session, https_port).await;
        }
        self.find_route(session, context, &table)?;
        let Some(route) = context.route.clone() else {
            return Err(status(404, "no route"));
        };
        if !route
            .limiter
            .as_deref()
            .is_none_or(|limiter: &Limiter| limiter.admit(context.source, clock::now()))
        {
            return Err(status(429, "too many requests"));
        }
        if let Some(redirect) = &route.redirect {
            let scheme = context.scheme();
            return answers::redirect(session, redirect, scheme).await;
        }
        let length = session.req_header().headers.get(header::CONTENT_LENGTH);
        let length: Option<u64> = length.and_then(|value| value.to_str().ok()?.trim().parse().ok());
        if length.is_some_and(|length| length > route.body_bytes_max) {
            return Err(status(413, "the body is too large"));
        }
        Ok(false)
    }

    async fn request_body_filter(
        &self,
        _: &mut Session,
        body: &mut Option<Bytes>,
        _: bool,
        context: &mut Context,
    ) -> Result<()> {
        context.body_bytes += body.as_ref().map_or(0, Bytes::len) as u64;
        let body_bytes_max = context.route.as_ref().map_or(u64::MAX, |route| route.body_bytes_max);
        if context.body_bytes > body_bytes_max {
            return Err(status(413, "the body is too large"));
        }
        Ok(())
    }

    async fn upstream_peer(&self, session: &mut Session, context: &mut Context) -> Result<Box<HttpPeer>> {
        let (pool, member) = self.choose(session, context)?;
        if context.tries == 0 {
            pool.budget.earn();
        }
        context.tries += 1;
        context.tried_at_ms = clock::now_ms();
        context.body_bytes = 0;
        context.is_movable = is_movable(session, context, &pool, &member);
        let mut peer = HttpPeer::new(member.address, false, String::new());
        peer.group_key = member.connections_key;
        let timeouts = context.route.as_ref().map(|route| route.timeouts).unwrap_or_default();
        let options = &mut peer.options;
        // Where nothing was sent another try costs nothing, whatever the method.
        let connect = Duration::from_millis(timeouts.connect_ms);
        let has_refuge = context.has_refuge(&pool, &member);
        let connect = if has_refuge { connect.min(patience::CONNECT_PATIENCE) } else { connect };
        options.connection_timeout = Some(connect);
        options.total_connection_timeout = options.connection_timeout;
        options.read_timeout = Some(Duration::from_millis(timeouts.read_ms));
        options.write_timeout = Some(Duration::from_millis(timeouts.write_ms));
        options.idle_timeout = Some(BACKEND_IDLE_MAX);
        options.max_h2_streams = BACKEND_STREAMS_MAX;
        if pool.protocol == BackendProtocol::H2 {
            options.alpn = ALPN::H2;
        }
        if pool.protocol == BackendProtocol::H1 {
            options.custom_l4 = Some(self.dial.clone());
        }
        if pool.protocol == BackendProtocol::H1 && session.is_upgrade_req() && session.is_body_empty() {
            peer.options.custom_l4 = Some(Arc::new(held::Dial));
            // A group of its own, so that it is given no kept connection that does not hold back; and none is left.
            peer.group_key = chance::next() | 1;
            peer.options.idle_timeout = Some(Duration::ZERO);
        }
        Ok(Box::new(peer))
    }

    async fn connected_to_upstream(
        &self,
        _: &mut Session,
        _: bool,
        _: &HttpPeer,
        _: std::os::fd::RawFd,
        digest: Option<&Digest>,
        context: &mut Context,
    ) -> Result<()> {
        let leash = digest.and_then(dial::leash_of).filter(|_| context.is_movable);
        let wait = |(leash, flight): (&Arc<Leash>, &Flight)| Wait::new(flight.member.clone(), leash.clone());
        context.wait = leash.zip(context.flight.as_ref()).map(wait);
        Ok(())
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        request: &mut RequestHeader,
        context: &mut Context,
    ) -> Result<()> {
        let Some((route, table)) = context.route.clone().zip(context.table.clone()) else {
            return Ok(());
        };
        let host = host_of(request).to_owned();
        let connection = context.connection.as_ref().ok_or_else(|| status(500, "no connection"))?;
        let (peer, peer_text, scheme) = (context.source, &connection.peer_text, connection.scheme());
        let is_trusted = table.trusts(peer);
        forwarded::say(request, Origin { peer, peer_text, is_trusted, scheme, host: &host })?;
        forwarded::trace(request)?;
        set_path(session, request, route.rewritten(request.uri.path()), &host)?;
        for name in &route.request_headers.remove {
            request.remove_header(name);
        }
        for (name, value) in &route.request_headers.set {
            request.insert_header(name.clone(), value.clone())?;
        }
        Ok(())
    }

    async fn upstream_response_filter(
        &self,
        _: &mut Session,
        response: &mut ResponseHeader,
        context: &mut Context,
    ) -> Result<()> {
        // From here on it is not the backend's silence that is waited for.
        context.wait = None;
        if let Some((pool, flight)) = context.pool.as_ref().zip(context.flight.as_ref()) {
            let now_ms = clock::now_ms();
            flight.member.waits.heard(now_ms.saturating_sub(context.tried_at_ms), now_ms);
            match response.status {
                StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => {
                    note_failure(pool, &flight.member);
                }
                status if status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS => {}
                _ => flight.member.answered(),
            }
        }
        Ok(())
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        context: &mut Context,
    ) -> Result<()> {
        // It may have begun while the request was on its way.
        if context.connection.as_ref().is_some_and(|connection| connection.is_to_end()) {
            session.set_keepalive(None);
        }
        if let Some(connection) = context.connection.as_ref()
            && response.status == StatusCode::SWITCHING_PROTOCOLS
        {
            connection.change_protocol();
        }
        let Some(route) = context.route.as_ref() else {
            return Ok(());
        };
        for name in &route.response_headers.remove {
            response.remove_header(name);
        }
        for (name, value) in &route.response_headers.set {
            response.insert_header(name.clone(), value.clone())?;
        }
        if let Some((sticky, hash)) = route.sticky.as_ref().zip(context.stick) {
            let secure = if context.scheme() == "https" { "; Secure" } else { "" };
            let age = sticky.max_age_s.map_or_else(String::new, |age| format!("; Max-Age={age}"));
            let cookie =
                format!("{}={hash:016x}; Path=/; HttpOnly; SameSite=Lax{age}{secure}", sticky.cookie);
            response.append_header(header::SET_COOKIE, cookie)?;
        }
        Ok(())
    }

    fn fail_to_connect(
        &self,
        session: &mut Session,
        _: &HttpPeer,
        context: &mut Context,
        error: Box<Error>,
    ) -> Box<Error> {
        self.after_failure(session, context, error, true, false)
    }

    fn error_while_proxy(
        &self,
        _: &HttpPeer,
        session: &mut Session,
        mut error: Box<Error>,
        context: &mut Context,
        is_reused: bool,
    ) -> Box<Error> {
        let is_ours = matches!(error.etype(), ErrorType::HTTPStatus(_));
        if is_ours || *error.esource() != ErrorSource::Upstream {
            error.set_retry(false);
            return error;
        }
        self.after_failure(session, context, error, false, is_reused)
    }

    async fn fail_to_proxy(&self, session: &mut Session, error: &Error, _: &mut Context) -> FailToProxy {
        answers::failure(session, error).await
    }

    fn suppress_error_log(&self, _: &Session, _: &Context, _: &Error) -> bool {
        // The access log has it.
        true
    }

    async fn logging(&self, session: &mut Session, error: Option<&Error>, context: &mut Context) {
        context.log(session, error, &self.access);
    }
}

/// A route of this name ends in a panic, in tests of what comes of that.
#[cfg(test)]
pub(crate) const POISON: &str = "poison";

/// The address of a client that nobody knows.
pub(crate) const NOBODY: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// What the fuzzing loops reach of the inside.
#[cfg(test)]
pub(crate) mod probe {
    use pingora_core::Result;
    use pingora_proxy::Session;

    pub(crate) use super::strict::is_host;
    pub(crate) use super::{cookie_of, host_of};

    pub(crate) fn check(session: &Session) -> Result<()> {
        super::strict::check(session, 64 * 1024)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lacking_here_is_not_the_backends_failure() {
        for (errno, expected) in [(Errno::MFILE, true), (Errno::NFILE, true), (Errno::CONNREFUSED, false)] {
            let cause = std::io::Error::from_raw_os_error(errno.raw_os_error());
            let inner = Error::because(ErrorType::SocketError, "socket", cause);
            let error = Error::because(ErrorType::InternalError, "connect", inner);
            assert_eq!(is_own(&error), expected, "{errno}");
        }
    }
}
