//! What the proxy says of itself.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::clock;
use crate::lock::lock;
use crate::state::State;

/// What holds, requests in flight by uid, and the health of backends.
pub(super) fn status(state: &State) -> Value {
    let table = state.table.load_full();
    let now = clock::now();
    let members = table.pools.iter().flat_map(|pool| &pool.members);
    let health: Vec<Value> = members
        .map(|member| {
            let (standing, since, reason) = member.story(now);
            let since_ms = u64::try_from(now.saturating_sub(since).as_millis()).unwrap_or(u64::MAX);
            json!({
                "pool": member.pool, "uid": member.uid, "address": member.address, "health": standing.word(),
                "for_ms": since_ms, "reason": reason, "requests": member.counts.all(),
            })
        })
        .collect();
    // After the table: a count that is read now includes all that began under an earlier one.
    let in_flight = lock(&state.registry).in_flight();
    json!({
        "revision": table.revision,
        "in_flight": in_flight,
        "backends": health,
        "not_listening": *lock(&state.not_listening),
        "connections": state.listeners.shared().connections(),
        "uptime_ms": State::uptime_ms(),
        "version": env!("CARGO_PKG_VERSION"),
    })
}

/// Counters in the text format of Prometheus. Names in it are plain by the topology's rules, so none needs an escape.
pub(super) fn metrics(state: &State) -> String {
    let table = state.table.load_full();
    let mut text = String::new();
    for (name, kind) in [
        ("lightbyte_proxy_route_requests_total", "counter"),
        ("lightbyte_proxy_route_seconds", "histogram"),
        ("lightbyte_proxy_backend_requests_total", "counter"),
        ("lightbyte_proxy_backend_seconds", "histogram"),
    ] {
        let _ = writeln!(text, "# TYPE {name} {kind}");
    }
    for route in &table.routes {
        route.counts.write(&mut text, "lightbyte_proxy_route", &format!("route=\"{}\"", route.name));
    }
    for member in table.pools.iter().flat_map(|pool| &pool.members) {
        let labels = format!("pool=\"{}\",backend=\"{}\"", member.pool, member.uid);
        member.counts.write(&mut text, "lightbyte_proxy_backend", &labels);
    }
    for (uid, count) in lock(&state.registry).in_flight() {
        let _ = writeln!(text, "lightbyte_proxy_in_flight{{backend=\"{uid}\"}} {count}");
    }
    let _ = writeln!(text, "lightbyte_proxy_connections {}", state.listeners.shared().connections());
    let _ = writeln!(text, "lightbyte_proxy_log_lines_dropped_total {}", state.access.dropped());
    let _ = writeln!(text, "lightbyte_proxy_revision {}", table.revision);
    text
}
