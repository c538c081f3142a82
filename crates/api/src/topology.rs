//! What a load balancer's proxies are told: listeners, certificates, routes and pools, as one document.
//!
//! The document is whole: no choice is left to who reads it, and nothing of it refers to anything outside. The server
//! composes it, a proxy applies it in one step or refuses it. [`Topology::check`] is the rule for both sides, so what
//! the server sends is what a proxy takes.

mod check;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

pub use check::{Problem, maximum};

/// The format that this code writes and reads. A reader refuses every other: what it does not understand of a
/// topology it could not carry out.
pub const FORMAT: u32 = 1;

/// A topology with a checksum of its text, as it is sent and as it lies on a proxy's disk.
///
/// The checksum is of the bytes of the member `topology` just as they stand in the document. So nobody needs a
/// canonical form, and a field that a newer server adds does not break an older reader's sum.
#[derive(Debug, Serialize, Deserialize)]
pub struct Sealed {
    /// SHA-256 of `topology`'s text, in lower-case hexadecimal digits.
    pub checksum: String,
    /// The text of a [`Topology`].
    pub topology: Box<RawValue>,
}

/// Everything a proxy does, complete.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Topology {
    /// [`FORMAT`].
    pub format: u32,
    /// Rises with every change. A proxy never goes back to an older one.
    pub revision: u64,
    /// Where connections are taken.
    #[serde(default)]
    pub listeners: Vec<Listener>,
    /// For listeners with `https`.
    #[serde(default)]
    pub certificates: Vec<Certificate>,
    /// What a certification authority asks by HTTP, to see that names lead here; answered on every port before all routes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub challenges: Vec<Challenge>,
    /// Which request goes where. Of several that fit, the more precise one is taken (host before path, the exact
    /// before the longest prefix), and among equals the first.
    #[serde(default)]
    pub routes: Vec<Route>,
    /// Groups of backends.
    #[serde(default)]
    pub pools: Vec<Pool>,
    /// What clients may take.
    #[serde(default)]
    pub limits: Limits,
    /// Peers whose word about the client (`X-Forwarded-*`, `Forwarded`) is believed and passed on, and who alone may
    /// connect to listeners with a PROXY header.
    #[serde(default)]
    pub trusted_peers: Vec<Network>,
}

/// A port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listener {
    /// Unique in the topology.
    pub name: String,
    /// Where to listen; all IPv4 addresses if it is not given.
    #[serde(default = "unspecified")]
    pub address: IpAddr,
    /// Unique in the topology.
    pub port: u16,
    /// What is spoken.
    pub protocol: Protocol,
    /// Whether connections begin with a PROXY header.
    #[serde(default)]
    pub proxy_protocol: ProxyProtocol,
    /// Answer each request with a redirect to `https` at this port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redirect_to_https: Option<u16>,
}

impl Listener {
    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.port)
    }
}

const fn unspecified() -> IpAddr {
    IpAddr::V4(Ipv4Addr::UNSPECIFIED)
}

/// What a listener speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// HTTP/1.1 and HTTP/2 with prior knowledge, in clear text.
    Http,
    /// The same by TLS; the client chooses by ALPN.
    Https,
}

impl Protocol {
    /// As it stands in URLs.
    #[must_use]
    pub const fn scheme(self) -> &'static str {
        match self {
            Protocol::Http => "http",
            Protocol::Https => "https",
        }
    }
}

/// Whether connections begin with a PROXY header. There is no "if there is one": then every client could write one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProxyProtocol {
    /// They do not.
    #[default]
    Off,
    /// They must, version 1 or 2; others are closed.
    Required,
}

/// A certificate and the names for which it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// Exact names or `*.domain`. The first certificate is shown to clients that name none of all these.
    pub server_names: Vec<String>,
    /// The chain, the server's own first, in PEM form.
    pub chain_pem: String,
    /// Its key.
    pub key_pem: SecretText,
}

/// What is answered to a request for `/.well-known/acme-challenge/TOKEN` (RFC 8555, 8.3). It is no secret: whoever asks is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Challenge {
    /// What is asked for: letters, digits, `-` and `_`.
    pub token: String,
    /// The answer, of ASCII that can be seen.
    pub answer: String,
}

/// Where challenges are asked for.
pub const CHALLENGE_PATH: &str = "/.well-known/acme-challenge/";

/// A text that is not to be seen in logs.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SecretText(String);

impl SecretText {
    /// Hides the text from `Debug`.
    #[must_use]
    pub const fn new(text: String) -> SecretText {
        SecretText(text)
    }

    /// The text itself.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

/// Never prints the text.
impl fmt::Debug for SecretText {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "({} secret bytes)", self.0.len())
    }
}

/// Which requests, and what becomes of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Unique in the topology; names it in metrics and logs.
    pub name: String,
    /// Exact names or `*.domain` (any depth below it); every host if there is none.
    #[serde(default)]
    pub hosts: Vec<String>,
    /// Which paths.
    #[serde(default)]
    pub path: PathMatch,
    /// Which methods; all if there is none.
    #[serde(default)]
    pub methods: Vec<String>,
    /// What stands in the place of the matched prefix when the request goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rewrite_prefix: Option<String>,
    /// Done to requests before they go on.
    #[serde(default)]
    pub request_headers: HeaderEdits,
    /// Done to answers before they go back.
    #[serde(default)]
    pub response_headers: HeaderEdits,
    /// Where requests go, by weight. None, or none with members, is valid: it answers 503.
    #[serde(default)]
    pub targets: Vec<Target>,
    /// How long things may take.
    #[serde(default)]
    pub timeouts: Timeouts,
    /// Tries of one request, the first included.
    #[serde(default = "tries")]
    pub tries_max: u32,
    /// Bodies larger than this are refused with 413; the topology's limit if it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body_bytes_max: Option<u64>,
    /// Keep a client with its backend by a cookie.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sticky: Option<Sticky>,
    /// More requests than this are refused with 429.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<RateLimit>,
    /// Answer with a redirect; `targets` mean nothing then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redirect: Option<Redirect>,
}

const fn tries() -> u32 {
    3
}

/// Which paths.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PathMatch {
    /// The path and all below it: `/a` fits `/a` and `/a/b`, not `/ab`.
    Prefix(String),
    /// This path only.
    Exact(String),
}

impl Default for PathMatch {
    fn default() -> PathMatch {
        PathMatch::Prefix("/".to_owned())
    }
}

/// Headers set and removed. First what is removed, then what is set; a header that is set replaces all of its name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeaderEdits {
    /// By name.
    #[serde(default)]
    pub set: BTreeMap<String, String>,
    /// Names.
    #[serde(default)]
    pub remove: Vec<String>,
}

/// A pool and its share of a route's requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// The pool's name.
    pub pool: String,
    /// Its share among the route's targets; 0 gets nothing.
    #[serde(default = "one")]
    pub weight: u32,
}

const fn one() -> u32 {
    1
}

/// How long things may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Timeouts {
    /// To connect to a backend.
    pub connect_ms: u64,
    /// Between two reads from a backend, and to its first byte: 504 after that. WebSockets too are closed by it.
    pub read_ms: u64,
    /// Between two writes to a backend.
    pub write_ms: u64,
}

impl Default for Timeouts {
    fn default() -> Timeouts {
        Timeouts { connect_ms: 1_000, read_ms: 60_000, write_ms: 60_000 }
    }
}

/// Keeps a client with its backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sticky {
    /// The cookie's name. Its value says nothing about the backend but to a proxy.
    pub cookie: String,
    /// How long browsers keep it; till they end if it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_age_s: Option<u64>,
}

/// A token bucket for each proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateLimit {
    /// Requests per second on and on.
    pub per_second: u32,
    /// Requests at once after a pause.
    pub burst: u32,
    /// Whom the bucket belongs to.
    #[serde(default)]
    pub scope: RateScope,
}

/// Whom a bucket belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RateScope {
    /// The route.
    #[default]
    Route,
    /// Each client address (of IPv6 each /64).
    Source,
}

/// A redirect. What is not given stays as it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Redirect {
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
    /// `http` or `https`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheme: Option<String>,
    /// The host, with a port if there is one to name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// The path, with a query if there is one to name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
}

/// Backends that do the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// Unique in the topology.
    pub name: String,
    /// How one is chosen.
    #[serde(default)]
    pub balance: Balance,
    /// What they speak.
    #[serde(default)]
    pub protocol: BackendProtocol,
    /// None is valid: then routes to it answer 503.
    #[serde(default)]
    pub backends: Vec<Backend>,
    /// How their health is tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check: Option<Check>,
    /// When one that fails requests gets none for a while.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ejection: Option<Ejection>,
}

/// How a backend is chosen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Balance {
    /// In turn, by weight.
    #[default]
    RoundRobin,
    /// The one with the fewest requests in flight for its weight.
    LeastConnections,
    /// The same one for the same key, whoever else comes or goes.
    Hash(HashKey),
}

/// What is hashed. A request that has no such key is given a backend in turn.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HashKey {
    /// A request header.
    Header(String),
    /// A cookie.
    Cookie(String),
    /// The client's address.
    Source,
}

/// What backends speak. None of them by TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BackendProtocol {
    /// HTTP/1.1.
    #[default]
    H1,
    /// HTTP/2 with prior knowledge, which is what gRPC needs.
    H2,
}

/// One that answers requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backend {
    /// Who it is. What is counted is counted by uid, across topologies and pools.
    pub uid: String,
    /// Where it is.
    pub address: IpAddr,
    /// Where it listens.
    pub port: u16,
    /// Its share among the pool's; 0 gets nothing.
    #[serde(default = "one")]
    pub weight: u32,
    /// It is to go: no new request, whatever the others' health.
    #[serde(default)]
    pub retiring: bool,
}

/// How health is tried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What is tried.
    pub probe: Probe,
    /// From one try to the next.
    pub every_ms: u64,
    /// A try that takes longer has failed.
    pub timeout_ms: u64,
    /// Good tries in a row until it is healthy again.
    pub healthy_after: u32,
    /// Failed tries in a row until it is not.
    pub unhealthy_after: u32,
}

/// What is tried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Probe {
    /// A connection is taken.
    Tcp,
    /// `GET` of this path is answered with 200 to 399.
    Http(String),
}

/// When a backend that fails requests gets none for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ejection {
    /// Requests in a row that failed to connect, broke off or got 502, 503 or 504.
    pub failures: u32,
    /// The first time; it doubles with each further ejection in a row.
    pub first_ms: u64,
    /// The longest time.
    pub longest_ms: u64,
    /// The share of a pool that may be ejected at once.
    pub ejected_percent_max: u8,
}

/// What clients may take of a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Request line and headers together; more is refused with 431.
    pub header_bytes_max: u64,
    /// A request's body; more is refused with 413.
    pub body_bytes_max: u64,
    /// Connections at once; more wait in the kernel's queue.
    pub connections_max: u32,
    /// From a request's first byte to the end of its headers.
    pub header_timeout_ms: u64,
    /// A connection without a request is closed after this.
    pub idle_timeout_ms: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            header_bytes_max: 64 * 1024,
            body_bytes_max: 1024 * 1024 * 1024,
            connections_max: 10_000,
            header_timeout_ms: 10_000,
            idle_timeout_ms: 60_000,
        }
    }
}

/// Addresses that begin alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// One of them.
    pub address: IpAddr,
    /// How many bits are alike.
    pub prefix_bits: u8,
}

impl Network {
    /// Whether the address is one of them.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                let shift = 32_u32.saturating_sub(self.prefix_bits.into());
                own.to_bits().checked_shr(shift) == other.to_bits().checked_shr(shift)
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                let shift = 128_u32.saturating_sub(self.prefix_bits.into());
                own.to_bits().checked_shr(shift) == other.to_bits().checked_shr(shift)
            }
            _ => false,
        }
    }
}
