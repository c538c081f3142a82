//! What is held of one request.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use lightbyte_api::topology::Limits;
use pingora_core::Error;
use pingora_proxy::Session;

use super::{NOBODY, host_of};
use crate::access::{AccessLog, Line, METHOD_BYTES_MAX, PATH_BYTES_MAX, cut};
use crate::clock;
use crate::connection::{Connection, Request};
use crate::registry::{Flight, Member};
use crate::table::{Pool, Route, Table};
use crate::waits::Wait;

/// Dropped with the request, however that ends; so what it counts ends too.
pub(crate) struct Context {
    began: Instant,
    pub(crate) request: Option<Request>,
    pub(crate) connection: Option<Arc<Connection>>,
    pub(crate) source: IpAddr,
    pub(crate) table: Option<Arc<Table>>,
    pub(crate) route: Option<Arc<Route>>,
    pub(crate) pool: Option<Arc<Pool>>,
    pub(crate) flight: Option<Flight>,
    /// Uids of backends where this request has failed.
    pub(crate) tried: Vec<String>,
    pub(crate) tries: u32,
    /// When the last try began.
    pub(crate) tried_at_ms: u64,
    /// Whether the try may be taken away from a backend that is silent.
    pub(crate) is_movable: bool,
    /// While such a try waits.
    pub(crate) wait: Option<Wait>,
    pub(crate) body_bytes: u64,
    /// The value of the cookie to set.
    pub(crate) stick: Option<u64>,
}

impl Context {
    pub(crate) fn new(table: Arc<Table>) -> Context {
        Context {
            began: Instant::now(),
            request: None,
            connection: None,
            source: NOBODY,
            table: Some(table),
            route: None,
            pool: None,
            flight: None,
            tried: Vec::new(),
            tries: 0,
            tried_at_ms: 0,
            is_movable: false,
            wait: None,
            body_bytes: 0,
            stick: None,
        }
    }

    /// Whether the route is of this table.
    pub(crate) fn is_of(&self, table: &Arc<Table>) -> bool {
        self.route.is_some() && self.table.as_ref().is_some_and(|own| Arc::ptr_eq(own, table))
    }

    /// Whether there is another backend that would get the request if this one failed it.
    pub(crate) fn has_refuge(&self, pool: &Pool, member: &Member) -> bool {
        let tries_max = self.route.as_ref().map_or(1, |route| route.tries_max);
        let now_ms = clock::now_ms();
        let is_refuge = |other: &Member| other.is_healthy(now_ms) && !self.tried.contains(&other.uid);
        self.tries < tries_max && pool.members.iter().any(|other| other.uid != member.uid && is_refuge(other))
    }

    pub(crate) fn limits(&self) -> Limits {
        self.table.as_ref().map(|table| table.limits).unwrap_or_default()
    }

    pub(crate) fn scheme(&self) -> &'static str {
        self.connection.as_ref().map_or("http", |connection| connection.scheme())
    }

    /// Counts the request and writes its line.
    pub(crate) fn log(&mut self, session: &Session, error: Option<&Error>, access: &AccessLog) {
        let took = self.began.elapsed();
        let status = session.response_written().map(|response| response.status.as_u16());
        if let Some(route) = &self.route {
            route.counts.ended(status, took);
        }
        if let Some(flight) = &self.flight {
            flight.member.counts.ended(status, took);
        }
        if access.is_on() {
            let request = session.req_header();
            access.write(Line {
                time: jiff::Timestamp::now(),
                client: self.source.to_canonical(),
                method: cut(request.method.as_str(), METHOD_BYTES_MAX),
                scheme: self.scheme(),
                host: cut(host_of(request), PATH_BYTES_MAX),
                path: cut(request.uri.path(), PATH_BYTES_MAX),
                status,
                bytes: session.body_bytes_sent(),
                took_us: u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
                route: self.route.as_ref().map(|route| route.name.clone()),
                backend: self.flight.as_ref().map(|flight| flight.member.uid.clone()),
                tries: self.tries,
                error: error.map(|error| error.etype().as_str().to_owned()),
            });
        }
        // The backend has done its part: what is left is between us and the client.
        self.flight = None;
    }
}
