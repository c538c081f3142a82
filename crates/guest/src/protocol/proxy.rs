//! What a host says to the proxy in a load balancer's VM, and hears of it. The agent hands it on as it stands.
//!
//! | | |
//! |---|---|
//! | `PUT /v1/topology` | a sealed topology; [`Told`] once it is on disk and holds |
//! | `PUT /v1/virtual-address` | a [`VirtualAddress`]; [`Addressed`] once this guest has it |
//! | `GET /v1/proxy` | [`ProxyStatus`] |
//! | `POST /v1/proxy/explain` | a request; where the proxy would send it, and why |
//! | `GET /v1/proxy/metrics` | counters, in the text format of Prometheus |
//!
//! Where the proxy refuses, its status and a [`Problem`](super::Problem) come back: 422 for a topology that is bad, 409 for one that is
//! older than what holds, 503 for one that this machine cannot carry out now. The agent itself says 503 where the proxy is
//! not up or does not answer, and 404 in an image that has none.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::{Deserialize, Serialize};

/// Largest body of `PUT /v1/topology`: as much as the proxy takes.
pub const TOPOLOGY_BYTES_MAX: usize = 8 * 1024 * 1024;

/// How long the agent waits for the proxy, the body's coming included. A topology is on disk by then, unless file systems
/// are frozen.
pub const PROXY_ANSWER_MS_MAX: u64 = 20_000;

/// Largest answer of the proxy that is handed on: counters of some thousand backends.
pub const PROXY_ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Answer to `PUT /v1/topology`. From now on no request begins to a backend that the topology does not have, and the
/// topology is there after a power cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Told {
    /// That of the topology.
    pub revision: u64,
}

/// Body of `PUT /v1/virtual-address`: an address that the first card has besides its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct VirtualAddress {
    /// The address; none if it is to have none.
    pub address: Option<Ipv4Addr>,
    /// That of IPv6 which goes with it: its last half is `address`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address6: Option<Ipv6Addr>,
    /// Within so long the proxy is to let what is open to it end, and then to answer nobody new. Say it again until it has left.
    pub leaves_within_ms: Option<u64>,
}

/// Answer to `PUT /v1/virtual-address`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Addressed {
    /// The proxy was to leave it, and nothing is open to it any more.
    pub left: bool,
}

/// `GET /v1/proxy`. Counts are of this process: they begin anew when it was started again, which `uptime_ms` shows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProxyStatus {
    /// That of the topology which holds; 0 before there was any.
    pub revision: u64,
    /// Requests in flight by the uids of backends. One that is in no topology any more stays until its count is 0; it has
    /// none if it is not here.
    pub in_flight: BTreeMap<String, u64>,
    /// Each backend, once for each pool that has it.
    pub backends: Vec<BackendStatus>,
    /// Listeners that could not be opened, by name, and why not.
    pub not_listening: BTreeMap<String, String>,
    /// Open connections of clients.
    pub connections: u64,
    /// How long the process has run.
    pub uptime_ms: u64,
    /// The proxy's version.
    pub version: String,
}

/// How a backend stands, as this proxy sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendStatus {
    /// The pool's name.
    #[serde(default)]
    pub pool: String,
    /// The backend's uid.
    pub uid: String,
    /// Where it is asked.
    pub address: SocketAddr,
    /// `healthy`, `failing` or `ejected`.
    #[serde(default)]
    pub health: String,
    /// For how long.
    #[serde(default)]
    pub for_ms: u64,
    /// Why; empty if there is nothing to say.
    #[serde(default)]
    pub reason: String,
    /// Requests that it was given and that have ended, for as long as topologies name it.
    #[serde(default)]
    pub requests: u64,
}
