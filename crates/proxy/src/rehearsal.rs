//! A topology is rehearsed before it holds: for each route one made-up request goes the whole way that a client's would, to a
//! made-up backend and back. What such a request ends with, or does not end at all, is known before anybody else's comes.
//!
//! It runs through a gateway and counts of its own, over loopback. TLS is no part of it: that keys fit their certificates is seen
//! when these are read.

use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use http::Method;
use lightbyte_api::topology::{
    Backend, BackendProtocol, Listener, PathMatch, Pool, Protocol, ProxyProtocol, Route, Target, Timeouts,
    Topology,
};
use pingora_core::apps::ServerApp as _;
use pingora_core::protocols::Stream;
use pingora_proxy::HttpProxy;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::access::AccessLog;
use crate::connection::{Connection, Watched};
use crate::framed::Framed;
use crate::gateway::Gateway;
use crate::leaving::Leaving;
use crate::proxy::http_proxy;
use crate::registry::Registry;
use crate::say::say;
use crate::state::NotApplied;
use crate::table::Table;

/// How long a request may take, which goes nowhere.
const REQUEST_MAX: Duration = Duration::from_secs(2);

/// After how long no more of them are begun: whoever tells the proxy waits for it. Routes that are not reached by then are taken as they
/// are, and tried with what the proxy is told next.
const REHEARSAL_MAX: Duration = Duration::from_secs(3);

/// The pause after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What the made-up backend says to everything.
const BACKEND_SAYS: &[u8] = b"HTTP/1.1 204 No Content\r\n\r\n";

/// The longest head that the made-up backend reads.
const BACKEND_HEAD_BYTES_MAX: usize = 1024 * 1024;

/// As much of an answer as is looked at: `HTTP/1.1 204`.
const STATUS_BYTES: usize = 12;

/// What of a topology is rehearsed: all but who the backends are, what is proved to authorities, and certificates.
pub(crate) fn script(topology: &Topology) -> Topology {
    // Field by field: whoever is left out may be thousands.
    let pool = |pool: &Pool| Pool {
        name: pool.name.clone(),
        balance: pool.balance.clone(),
        protocol: pool.protocol,
        backends: Vec::new(),
        check: pool.check.clone(),
        ejection: pool.ejection,
    };
    Topology {
        format: topology.format,
        revision: 0,
        listeners: topology.listeners.clone(),
        certificates: Vec::new(),
        challenges: Vec::new(),
        routes: topology.routes.clone(),
        pools: topology.pools.iter().map(pool).collect(),
        limits: topology.limits,
        trusted_peers: topology.trusted_peers.clone(),
    }
}

/// Asks each route of a script that `before` did not have, once for each of its targets. Returns what of the script needs no more of
/// that: all of it, but for routes that time did not suffice for.
///
/// # Errors
/// [`NotApplied::Bad`] if the proxy breaks off or fails by itself, [`NotApplied::NotHere`] if this machine fails it.
pub(crate) async fn rehearse(script: &Topology, before: Option<&Topology>) -> Result<Topology, NotApplied> {
    let routes = new_routes(script, before);
    let listeners = script.listeners.iter();
    let Some(listener) = listeners.clone().find(|listener| listener.redirect_to_https.is_none()) else {
        return Ok(script.clone());
    };
    let Some(rounds) = routes.iter().map(|route| route.targets.len().max(1)).max() else {
        return Ok(script.clone());
    };
    let mut stages = Vec::with_capacity(rounds);
    for round in 0..rounds {
        let stage = Stage::set(script, round).await;
        stages.push(stage.map_err(|error| NotApplied::NotHere(format!("try the topology: {error}")))?);
    }
    let end = Instant::now() + REHEARSAL_MAX;
    // Ports differ in little, so one request for each of them.
    for other in listeners.filter(|other| other.port != listener.port) {
        if let Some(route) = routes.first() {
            stages[0].play(other, route).await?;
        }
    }
    let mut untried = HashSet::new();
    for route in routes {
        for stage in &stages[..route.targets.len().max(1)] {
            if Instant::now() >= end {
                untried.insert(route.name.as_str());
                break;
            }
            stage.play(listener, route).await?;
        }
    }
    if !untried.is_empty() {
        say(format_args!("{} routes were not tried within {REHEARSAL_MAX:?}; they will be", untried.len()));
    }
    let routes = script.routes.iter().filter(|route| !untried.contains(route.name.as_str()));
    Ok(Topology { routes: routes.cloned().collect(), ..script.clone() })
}

/// The routes that `before` did not have. What holds for every route makes all of them new.
fn new_routes<'a>(script: &'a Topology, before: Option<&Topology>) -> Vec<&'a Route> {
    let is_alike =
        |before: &&Topology| **before == Topology { routes: before.routes.clone(), ..script.clone() };
    let before = before.filter(is_alike);
    let is_new = |route: &&Route| before.is_none_or(|before| !before.routes.contains(route));
    script.routes.iter().filter(is_new).collect()
}

/// A made-up request that comes to a route: its method, host and path. None if others are more precise for whatever is made up.
fn request_for(table: &Table, route: &Route) -> Option<(Method, String, String)> {
    let host =
        route.hosts.first().map_or("example.invalid".to_owned(), |host| match host.strip_prefix("*.") {
            Some(domain) => format!("example.{domain}"),
            None => host.clone(),
        });
    let method = route.methods.first().and_then(|method| method.parse().ok()).unwrap_or(Method::GET);
    let paths = match &route.path {
        PathMatch::Exact(path) => vec![path.clone()],
        PathMatch::Prefix(path) => {
            vec![path.clone(), format!("{}/made-up-to-try-it", path.trim_end_matches('/'))]
        }
    };
    let comes_to_it =
        |path: &String| table.route(&host, path, &method).is_some_and(|found| found.name == route.name);
    let path = paths.into_iter().find(comes_to_it)?;
    Some((method, host, path))
}

/// A gateway that holds a script, and the backend that all its pools have.
struct Stage {
    table: Arc<Table>,
    proxy: Arc<HttpProxy<Gateway>>,
    door: TcpListener,
    _backend: JoinSet<()>,
}

impl Stage {
    /// With the target of that number of each route that has one.
    async fn set(script: &Topology, round: usize) -> anyhow::Result<Stage> {
        let backend = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let staged = staged(script, backend.local_addr()?, round);
        // Thousands of routes take their time, and requests go on meanwhile.
        let made = tokio::task::spawn_blocking(move || -> anyhow::Result<_> {
            let table = Arc::new(Table::compile(&staged, &mut Registry::default())?);
            let held = Arc::new(ArcSwap::new(table.clone()));
            Ok((table, http_proxy(Gateway::new(held, AccessLog::new(false)?))?))
        });
        let (table, proxy) = made.await??;
        let door = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let mut tasks = JoinSet::new();
        tasks.spawn(answer_all(backend));
        Ok(Stage { table, proxy, door, _backend: tasks })
    }

    /// One request, as if it had come in by `listener`.
    async fn play(&self, listener: &Listener, route: &Route) -> Result<(), NotApplied> {
        let Some((method, host, path)) = request_for(&self.table, route) else { return Ok(()) };
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: {host}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        );
        let told = |what: &str| {
            format!(
                "route {}: `{method} {host}{path}`, which the proxy made up to try it, {what}",
                route.name
            )
        };
        match tokio::time::timeout(REQUEST_MAX, self.ask(listener, &head)).await {
            Err(_) => Err(NotApplied::NotHere(told(&format!("has no answer within {REQUEST_MAX:?}")))),
            Ok(Err(error)) => Err(NotApplied::NotHere(told(&format!("could not be sent: {error}")))),
            Ok(Ok(None)) => Err(NotApplied::Bad(told("is broken off without an answer"))),
            Ok(Ok(Some(status))) => match status.as_str() {
                "500" => Err(NotApplied::Bad(told("is answered 500"))),
                // The backend that it made up as well was not reached: so it is not the topology.
                "502" | "504" => Err(NotApplied::NotHere(told(&format!("is answered {status}")))),
                _ => Ok(()),
            },
        }
    }

    /// The status that is answered, if any is.
    async fn ask(&self, listener: &Listener, head: &str) -> std::io::Result<Option<String>> {
        let mut client = TcpStream::connect(self.door.local_addr()?).await?;
        let stream = loop {
            let (stream, peer) = self.door.accept().await?;
            if peer == client.local_addr()? {
                break stream;
            }
        };
        let connection =
            Connection::new(listener, client.local_addr()?, Ipv4Addr::UNSPECIFIED, Arc::<Leaving>::default());
        let watched = Watched::new(stream, connection.clone()).map_err(std::io::Error::other)?;
        let stream: Stream = Box::new(Framed::new(Box::new(watched), connection));
        let proxy = self.proxy.clone();
        // In a task, which a panic ends as it would end a client's.
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let (_stop, stopping) = watch::channel(false);
            proxy.process_new(stream, &stopping).await;
        });
        client.write_all(head.as_bytes()).await?;
        let mut status = Vec::new();
        // A connection that is reset has said what it had to say.
        let _ = client.take(STATUS_BYTES as u64).read_to_end(&mut status).await;
        let status = status.get(STATUS_BYTES - 3..).and_then(|digits| std::str::from_utf8(digits).ok());
        Ok(status.map(str::to_owned))
    }
}

/// A script whose pools have one backend each, of HTTP/1.1, and whose routes have one target each; with ports that speak plainly.
fn staged(script: &Topology, backend: SocketAddr, round: usize) -> Topology {
    // More patience than a request has: what is late is told as that.
    let patience_ms = 10 * u64::try_from(REQUEST_MAX.as_millis()).unwrap_or(u64::MAX / 10);
    let mut staged = script.clone();
    for listener in &mut staged.listeners {
        (listener.protocol, listener.proxy_protocol) = (Protocol::Http, ProxyProtocol::Off);
    }
    for route in &mut staged.routes {
        route.timeouts = Timeouts { connect_ms: patience_ms, read_ms: patience_ms, write_ms: patience_ms };
        let target = route.targets.get(round).or(route.targets.first()).cloned();
        route.targets = target.map(|target| Target { weight: 1, ..target }).into_iter().collect();
    }
    for pool in &mut staged.pools {
        (pool.protocol, pool.check, pool.ejection) = (BackendProtocol::H1, None, None);
        pool.backends = vec![Backend {
            uid: "rehearsal".to_owned(),
            address: backend.ip(),
            port: backend.port(),
            weight: 1,
            retiring: false,
        }];
    }
    staged
}

async fn answer_all(backend: TcpListener) {
    let mut talks = JoinSet::new();
    loop {
        match backend.accept().await {
            Ok((stream, _)) => drop(talks.spawn(answer(stream))),
            // No descriptors are left: there may be in a moment.
            Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
        while talks.try_join_next().is_some() {}
    }
}

async fn answer(mut stream: TcpStream) {
    let mut head = Vec::new();
    while head.len() < BACKEND_HEAD_BYTES_MAX && stream.read_buf(&mut head).await.is_ok_and(|read| read > 0) {
        if head.ends_with(b"\r\n\r\n") {
            // Whoever asked has an answer, or is gone.
            let _ = stream.write_all(BACKEND_SAYS).await;
            head.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::gateway::POISON;

    fn script_of(routes: &Value) -> Topology {
        let document = json!({
            "format": 1, "revision": 3,
            "listeners": [
                { "name": "moved", "port": 81, "protocol": "http", "redirect_to_https": 443 },
                { "name": "plain", "port": 80, "protocol": "http" },
            ],
            "routes": routes,
            "pools": [
                { "name": "a", "backends": [{ "uid": "u", "address": "192.0.2.1", "port": 9 }], "protocol": "h2" },
                { "name": "h", "balance": { "hash": { "header": "x-user" } } },
            ],
        });
        script(&serde_json::from_value(document).expect("a topology"))
    }

    fn every_kind() -> Value {
        json!([
            { "name": "any", "targets": [{ "pool": "a" }] },
            { "name": "nobody", "path": { "prefix": "/nobody" } },
            { "name": "hashed", "path": { "prefix": "/h" }, "targets": [{ "pool": "h" }], "timeouts": { "connect_ms": 1 } },
            { "name": "posted", "hosts": ["*.b.example"], "methods": ["POST"], "targets": [{ "pool": "a" }] },
            { "name": "moved", "path": { "exact": "/old" }, "redirect": { "status": 301, "path": "/new" } },
            { "name": "rewritten", "hosts": ["c.example"], "path": { "prefix": "/api" }, "rewrite_prefix": "/",
              "request_headers": { "set": { "x-a": "b" } }, "response_headers": { "set": { "x-c": "d" } },
              "sticky": { "cookie": "lb" }, "targets": [{ "pool": "a" }, { "pool": "h" }] },
            { "name": "bounded", "path": { "prefix": "/few" }, "rate_limit": { "per_second": 1, "burst": 1 },
              "targets": [{ "pool": "a" }] }
        ])
    }

    #[tokio::test]
    async fn what_can_be_done_passes() {
        let script = script_of(&every_kind());
        assert!(script.pools.iter().all(|pool| pool.backends.is_empty()));
        assert_eq!(rehearse(&script, None).await.expect("passes"), script);
        assert_eq!(rehearse(&script, Some(&script)).await.expect("there is nothing new"), script);
    }

    #[tokio::test]
    async fn a_route_that_breaks_the_proxy_is_found_by_name() {
        let script = script_of(&json!([
            { "name": "web", "targets": [{ "pool": "a" }] },
            { "name": POISON, "hosts": ["a.example"], "targets": [{ "pool": "a" }] },
        ]));
        let failed = rehearse(&script, None).await.expect_err("breaks off");
        assert_eq!(
            failed.to_string(),
            "route poison: `GET a.example/`, which the proxy made up to try it, is broken off without an answer"
        );
        assert!(matches!(failed, NotApplied::Bad(_)));
    }

    #[test]
    fn what_is_made_up_comes_to_its_route() {
        let script = script_of(&json!([
            { "name": "all" },
            { "name": "root", "path": { "exact": "/" } },
            { "name": "deep", "path": { "prefix": "/a/" }, "hosts": ["*.b.example"], "methods": ["POST"] },
            { "name": "shadowed", "path": { "exact": "/" } },
        ]));
        let table = Table::compile(&script, &mut Registry::default()).expect("compiles");
        let made_up = |route: &Route| {
            request_for(&table, route).map(|(method, host, path)| format!("{method} {host}{path}"))
        };
        let made_up: Vec<Option<String>> = script.routes.iter().map(made_up).collect();
        let expected = [
            Some("GET example.invalid/made-up-to-try-it"),
            Some("GET example.invalid/"),
            Some("POST example.b.example/a/"),
            None,
        ];
        assert_eq!(made_up, expected.map(|text| text.map(str::to_owned)));
    }

    #[test]
    fn each_round_has_another_target() {
        let script = script_of(&json!([
            { "name": "two", "targets": [{ "pool": "a", "weight": 99 }, { "pool": "h" }] },
            { "name": "none" },
        ]));
        let pools = |round| {
            let staged = staged(&script, SocketAddr::from(([127, 0, 0, 1], 9)), round);
            let names =
                staged.routes.iter().flat_map(|route| &route.targets).map(|target| target.pool.clone());
            names.collect::<Vec<_>>().join(" ")
        };
        assert_eq!([pools(0), pools(1)], ["a", "h"]);
    }

    #[test]
    fn what_was_rehearsed_is_not_rehearsed_again() {
        let before = script_of(&json!([{ "name": "a" }, { "name": "b" }]));
        let names = |script: &Topology| {
            let routes = new_routes(script, Some(&before));
            routes.iter().map(|route| route.name.clone()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(names(&before), "");
        assert_eq!(names(&script_of(&json!([{ "name": "b" }, { "name": "c" }]))), "c");
        assert_eq!(names(&script_of(&json!([{ "name": "a", "methods": ["PUT"] }, { "name": "b" }]))), "a");
        let mut limited = before.clone();
        limited.limits.header_bytes_max += 1;
        assert_eq!(names(&limited), "a b");
        assert_eq!(new_routes(&before, None).len(), 2);
    }
}
