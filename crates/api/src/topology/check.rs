//! What makes a topology good or bad, with the place and in plain words.

use std::collections::BTreeSet;
use std::fmt;

use super::{
    Backend, BackendProtocol, Balance, Certificate, Challenge, Check, Ejection, FORMAT, HashKey, HeaderEdits,
    Limits, Listener, Network, PathMatch, Pool, Probe, Protocol, ProxyProtocol, RateLimit, Redirect, Route,
    Sticky, Target, Timeouts, Topology,
};

/// Upper limits. They hold for what a proxy takes, so that no document can make one too big or too slow.
pub mod maximum {
    /// Listeners of a proxy: each is a task and a socket.
    pub const LISTENERS: usize = 64;
    /// Certificates, which are all held in memory.
    pub const CERTIFICATES: usize = 1_000;
    /// Server names of a certificate.
    pub const SERVER_NAMES: usize = 100;
    /// Challenges of certification authorities: each name of a certificate that is ordered has one.
    pub const CHALLENGES: usize = 1_000;
    /// A token or an answer. Real ones have 43 and 87 bytes.
    pub const CHALLENGE_BYTES: usize = 256;
    /// Routes.
    pub const ROUTES: usize = 2_000;
    /// Hosts, methods, headers or targets of one route.
    pub const PER_ROUTE: usize = 64;
    /// Pools.
    pub const POOLS: usize = 1_000;
    /// Backends of a pool: a choice looks at each of them in the worst case.
    pub const BACKENDS: usize = 1_000;
    /// Backends of all pools: each with a check is a connection now and then.
    pub const BACKENDS_IN_ALL: usize = 10_000;
    /// Networks that are trusted.
    pub const TRUSTED_PEERS: usize = 64;
    /// A name of a listener, route, pool or cookie, or a uid.
    pub const NAME_BYTES: usize = 128;
    /// A host name (RFC 1035, 2.3.4).
    pub const HOST_BYTES: usize = 253;
    /// A path, or a header's value.
    pub const TEXT_BYTES: usize = 4_096;
    /// A chain or a key.
    pub const PEM_BYTES: usize = 64 * 1024;
    /// A weight, so that sums do not overflow.
    pub const WEIGHT: u32 = 1_000_000;
    /// Tries of a request.
    pub const TRIES: u32 = 10;
    /// A span: a day.
    pub const SPAN_MS: u64 = 24 * 60 * 60 * 1_000;
    /// Requests per second, or at once.
    pub const RATE: u32 = 10_000_000;
    /// Headers of a request. The HTTP library itself ends at 1 MiB.
    pub const HEADER_BYTES: u64 = 512 * 1024;
    /// Connections.
    pub const CONNECTIONS: u32 = 1_000_000;
}

/// What is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The place, as `routes[3].hosts[0]`.
    pub path: String,
    /// In plain words.
    pub what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.path, self.what)
    }
}

impl std::error::Error for Problem {}

type Checked = Result<(), Problem>;

fn problem(path: impl Into<String>, what: impl Into<String>) -> Checked {
    Err(Problem { path: path.into(), what: what.into() })
}

impl Topology {
    /// Whether a proxy can carry it out. Says the first thing that is wrong.
    ///
    /// That certificates parse and fit their keys is not seen here: this crate knows no cryptography.
    ///
    /// # Errors
    /// The [`Problem`].
    pub fn check(&self) -> Result<(), Problem> {
        if self.format != FORMAT {
            return problem("format", format!("is {}, this reader knows {FORMAT} only", self.format));
        }
        self.check_lengths()?;
        for (index, listener) in self.listeners.iter().enumerate() {
            listener.check(&format!("listeners[{index}]"), self)?;
        }
        for (index, certificate) in self.certificates.iter().enumerate() {
            certificate.check(&format!("certificates[{index}]"))?;
        }
        for (index, challenge) in self.challenges.iter().enumerate() {
            challenge.check(&format!("challenges[{index}]"))?;
        }
        for (index, route) in self.routes.iter().enumerate() {
            route.check(&format!("routes[{index}]"))?;
        }
        for (index, pool) in self.pools.iter().enumerate() {
            pool.check(&format!("pools[{index}]"))?;
        }
        for (index, network) in self.trusted_peers.iter().enumerate() {
            network.check(&format!("trusted_peers[{index}]"))?;
        }
        self.limits.check()?;
        self.check_uniqueness()?;
        self.check_references()
    }

    fn check_lengths(&self) -> Checked {
        length("listeners", self.listeners.len(), maximum::LISTENERS)?;
        length("certificates", self.certificates.len(), maximum::CERTIFICATES)?;
        length("challenges", self.challenges.len(), maximum::CHALLENGES)?;
        length("routes", self.routes.len(), maximum::ROUTES)?;
        length("pools", self.pools.len(), maximum::POOLS)?;
        length("trusted_peers", self.trusted_peers.len(), maximum::TRUSTED_PEERS)?;
        let backends = self.pools.iter().map(|pool| pool.backends.len()).sum();
        length("pools", backends, maximum::BACKENDS_IN_ALL)
    }

    fn check_uniqueness(&self) -> Checked {
        unique("listeners", "name", self.listeners.iter().map(|listener| listener.name.as_str()))?;
        unique("listeners", "port", self.listeners.iter().map(|listener| listener.port))?;
        unique("challenges", "token", self.challenges.iter().map(|challenge| challenge.token.as_str()))?;
        unique("routes", "name", self.routes.iter().map(|route| route.name.as_str()))?;
        unique("pools", "name", self.pools.iter().map(|pool| pool.name.as_str()))
    }

    fn check_references(&self) -> Checked {
        let pools: BTreeSet<&str> = self.pools.iter().map(|pool| pool.name.as_str()).collect();
        for (index, route) in self.routes.iter().enumerate() {
            for (target, Target { pool, .. }) in route.targets.iter().enumerate() {
                if !pools.contains(pool.as_str()) {
                    return problem(
                        format!("routes[{index}].targets[{target}].pool"),
                        format!("there is no pool `{pool}`"),
                    );
                }
            }
        }
        Ok(())
    }
}

impl Listener {
    fn check(&self, at: &str, topology: &Topology) -> Checked {
        name(&format!("{at}.name"), &self.name)?;
        if self.port == 0 {
            return problem(format!("{at}.port"), "is 0, which names no port");
        }
        if self.redirect_to_https == Some(0) {
            return problem(format!("{at}.redirect_to_https"), "is 0, which names no port");
        }
        if self.protocol == Protocol::Https && topology.certificates.is_empty() {
            return problem(format!("{at}.protocol"), "is `https`, and there is no certificate");
        }
        if self.proxy_protocol == ProxyProtocol::Required && topology.trusted_peers.is_empty() {
            return problem(
                format!("{at}.proxy_protocol"),
                "is `required`, and there are no `trusted_peers` who could write a header",
            );
        }
        if self.protocol == Protocol::Https && self.redirect_to_https.is_some() {
            return problem(
                format!("{at}.redirect_to_https"),
                "would send clients of `https` round in circles",
            );
        }
        Ok(())
    }
}

impl Challenge {
    /// Whether a proxy can answer it: what an authority says is put into a path and into an answer.
    ///
    /// # Errors
    /// The [`Problem`].
    pub fn check(&self, path: &str) -> Checked {
        let is_letter = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        let is_short = |text: &str| (1..=maximum::CHALLENGE_BYTES).contains(&text.len());
        if !is_short(&self.token) || !self.token.bytes().all(is_letter) {
            return problem(format!("{path}.token"), "is no token of ACME");
        }
        if !is_short(&self.answer) || !self.answer.bytes().all(|byte| byte.is_ascii_graphic()) {
            return problem(format!("{path}.answer"), "is no answer of ACME");
        }
        Ok(())
    }
}

impl Certificate {
    /// Whether a proxy takes it at that place of a topology, as far as that is seen without cryptography.
    ///
    /// # Errors
    /// The [`Problem`].
    pub fn check(&self, at: &str) -> Result<(), Problem> {
        length(&format!("{at}.server_names"), self.server_names.len(), maximum::SERVER_NAMES)?;
        if self.server_names.is_empty() {
            return problem(format!("{at}.server_names"), "is empty, so nobody is shown this certificate");
        }
        for (index, server_name) in self.server_names.iter().enumerate() {
            host(&format!("{at}.server_names[{index}]"), server_name)?;
        }
        text(&format!("{at}.chain_pem"), &self.chain_pem, maximum::PEM_BYTES)?;
        text(&format!("{at}.key_pem"), self.key_pem.reveal(), maximum::PEM_BYTES)
    }
}

impl Route {
    fn check(&self, at: &str) -> Checked {
        name(&format!("{at}.name"), &self.name)?;
        length(&format!("{at}.hosts"), self.hosts.len(), maximum::PER_ROUTE)?;
        length(&format!("{at}.methods"), self.methods.len(), maximum::PER_ROUTE)?;
        length(&format!("{at}.targets"), self.targets.len(), maximum::PER_ROUTE)?;
        for (index, name) in self.hosts.iter().enumerate() {
            host(&format!("{at}.hosts[{index}]"), name)?;
        }
        for (index, method) in self.methods.iter().enumerate() {
            token(&format!("{at}.methods[{index}]"), method)?;
        }
        let (PathMatch::Prefix(path) | PathMatch::Exact(path)) = &self.path;
        absolute_path(&format!("{at}.path"), path)?;
        if let Some(prefix) = &self.rewrite_prefix {
            absolute_path(&format!("{at}.rewrite_prefix"), prefix)?;
        }
        self.request_headers.check(&format!("{at}.request_headers"))?;
        self.response_headers.check(&format!("{at}.response_headers"))?;
        for (index, target) in self.targets.iter().enumerate() {
            at_most(&format!("{at}.targets[{index}].weight"), target.weight, maximum::WEIGHT)?;
        }
        self.timeouts.check(&format!("{at}.timeouts"))?;
        within(&format!("{at}.tries_max"), self.tries_max, 1, maximum::TRIES)?;
        self.sticky.iter().try_for_each(|sticky| sticky.check(&format!("{at}.sticky")))?;
        self.rate_limit.iter().try_for_each(|limit| limit.check(&format!("{at}.rate_limit")))?;
        self.redirect.iter().try_for_each(|redirect| redirect.check(&format!("{at}.redirect")))
    }
}

impl HeaderEdits {
    /// Headers that frame messages or say who the client is: to edit them would break what the proxy promises.
    const RESERVED: [&str; 5] = ["connection", "content-length", "host", "transfer-encoding", "upgrade"];

    fn check(&self, at: &str) -> Checked {
        length(&format!("{at}.set"), self.set.len(), maximum::PER_ROUTE)?;
        length(&format!("{at}.remove"), self.remove.len(), maximum::PER_ROUTE)?;
        for header in self.set.keys().chain(&self.remove) {
            let at = format!("{at}.{header}");
            token(&at, header)?;
            if Self::RESERVED.contains(&header.to_ascii_lowercase().as_str()) {
                return problem(at, "is the proxy's own affair");
            }
        }
        for (header, value) in &self.set {
            let at = format!("{at}.set.{header}");
            text(&at, value, maximum::TEXT_BYTES)?;
            if value.bytes().any(|byte| byte != b'\t' && (byte < b' ' || byte == 0x7f)) {
                return problem(at, "holds a control character");
            }
        }
        Ok(())
    }
}

impl Timeouts {
    fn check(&self, at: &str) -> Checked {
        span(&format!("{at}.connect_ms"), self.connect_ms)?;
        span(&format!("{at}.read_ms"), self.read_ms)?;
        span(&format!("{at}.write_ms"), self.write_ms)
    }
}

impl Sticky {
    fn check(&self, at: &str) -> Checked {
        token(&format!("{at}.cookie"), &self.cookie)
    }
}

impl RateLimit {
    fn check(&self, at: &str) -> Checked {
        within(&format!("{at}.per_second"), self.per_second, 1, maximum::RATE)?;
        within(&format!("{at}.burst"), self.burst, 1, maximum::RATE)
    }
}

impl Redirect {
    fn check(&self, at: &str) -> Checked {
        if ![301, 302, 303, 307, 308].contains(&self.status) {
            return problem(format!("{at}.status"), format!("is {}, which redirects nobody", self.status));
        }
        if self.scheme.as_deref().is_some_and(|scheme| scheme != "http" && scheme != "https") {
            return problem(format!("{at}.scheme"), "is neither `http` nor `https`");
        }
        if let Some(authority) = &self.host {
            let (name, port) = authority
                .rsplit_once(':')
                .map_or((authority.as_str(), None), |(name, port)| (name, Some(port)));
            host(&format!("{at}.host"), name)?;
            if port.is_some_and(|port| port.parse::<u16>().is_err()) {
                return problem(format!("{at}.host"), "has a port that is no number");
            }
        }
        self.path.iter().try_for_each(|path| absolute_path(&format!("{at}.path"), path))?;
        if self.scheme.is_none() && self.host.is_none() && self.path.is_none() {
            return problem(at, "changes nothing, so it would send clients round in circles");
        }
        Ok(())
    }
}

impl Pool {
    fn check(&self, at: &str) -> Checked {
        name(&format!("{at}.name"), &self.name)?;
        length(&format!("{at}.backends"), self.backends.len(), maximum::BACKENDS)?;
        if let Balance::Hash(HashKey::Header(key) | HashKey::Cookie(key)) = &self.balance {
            token(&format!("{at}.balance"), key)?;
        }
        for (index, backend) in self.backends.iter().enumerate() {
            backend.check(&format!("{at}.backends[{index}]"))?;
        }
        unique(&format!("{at}.backends"), "uid", self.backends.iter().map(|backend| backend.uid.as_str()))?;
        self.check.iter().try_for_each(|check| check.check(&format!("{at}.check")))?;
        let is_by_http = self.check.as_ref().is_some_and(|check| matches!(check.probe, Probe::Http(_)));
        if is_by_http && self.protocol == BackendProtocol::H2 {
            return problem(
                format!("{at}.check.probe"),
                "speaks HTTP/1, and backends of `h2` do not: use `tcp`",
            );
        }
        self.ejection.iter().try_for_each(|ejection| ejection.check(&format!("{at}.ejection")))
    }
}

impl Backend {
    fn check(&self, at: &str) -> Checked {
        name(&format!("{at}.uid"), &self.uid)?;
        if self.port == 0 {
            return problem(format!("{at}.port"), "is 0, which names no port");
        }
        at_most(&format!("{at}.weight"), self.weight, maximum::WEIGHT)
    }
}

impl Check {
    fn check(&self, at: &str) -> Checked {
        if let Probe::Http(path) = &self.probe {
            absolute_path(&format!("{at}.probe"), path)?;
        }
        span(&format!("{at}.every_ms"), self.every_ms)?;
        span(&format!("{at}.timeout_ms"), self.timeout_ms)?;
        within(&format!("{at}.healthy_after"), self.healthy_after, 1, 100)?;
        within(&format!("{at}.unhealthy_after"), self.unhealthy_after, 1, 100)
    }
}

impl Ejection {
    fn check(&self, at: &str) -> Checked {
        within(&format!("{at}.failures"), self.failures, 1, 1_000)?;
        span(&format!("{at}.first_ms"), self.first_ms)?;
        span(&format!("{at}.longest_ms"), self.longest_ms)?;
        within(&format!("{at}.ejected_percent_max"), self.ejected_percent_max.into(), 0, 100)
    }
}

impl Limits {
    fn check(&self) -> Checked {
        if self.header_bytes_max == 0 || self.header_bytes_max > maximum::HEADER_BYTES {
            return problem("limits.header_bytes_max", format!("is not 1 to {}", maximum::HEADER_BYTES));
        }
        within("limits.connections_max", self.connections_max, 1, maximum::CONNECTIONS)?;
        span("limits.header_timeout_ms", self.header_timeout_ms)?;
        span("limits.idle_timeout_ms", self.idle_timeout_ms)
    }
}

impl Network {
    fn check(&self, at: &str) -> Checked {
        let bits = if self.address.is_ipv4() { 32 } else { 128 };
        at_most(&format!("{at}.prefix_bits"), self.prefix_bits.into(), bits)
    }
}

fn length(at: &str, length: usize, maximum: usize) -> Checked {
    if length > maximum {
        return problem(at, format!("has {length} entries; at most {maximum}"));
    }
    Ok(())
}

fn text(at: &str, value: &str, maximum: usize) -> Checked {
    if value.len() > maximum {
        return problem(at, format!("has {} bytes; at most {maximum}", value.len()));
    }
    Ok(())
}

fn at_most(at: &str, value: u32, maximum: u32) -> Checked {
    within(at, value, 0, maximum)
}

fn within(at: &str, value: u32, minimum: u32, maximum: u32) -> Checked {
    if value < minimum || value > maximum {
        return problem(at, format!("is {value}, not {minimum} to {maximum}"));
    }
    Ok(())
}

fn span(at: &str, value: u64) -> Checked {
    if value == 0 || value > maximum::SPAN_MS {
        return problem(at, format!("is {value}, not 1 to {}", maximum::SPAN_MS));
    }
    Ok(())
}

/// Names stand in metrics and logs, so they are plain.
fn name(at: &str, name: &str) -> Checked {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./".contains(&byte);
    if name.is_empty() || name.len() > maximum::NAME_BYTES || !name.bytes().all(is_plain) {
        return problem(
            at,
            format!("is not 1 to {} letters, digits, `-`, `_`, `.`, `/`", maximum::NAME_BYTES),
        );
    }
    Ok(())
}

/// A token of HTTP (RFC 9110, 5.6.2).
fn token(at: &str, token: &str) -> Checked {
    let is_fine = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if token.is_empty() || token.len() > maximum::NAME_BYTES || !token.bytes().all(is_fine) {
        return problem(at, "is not a token of HTTP");
    }
    Ok(())
}

/// A host name in lower case, or `*.` and one. An IPv4 address passes as a name.
fn host(at: &str, host: &str) -> Checked {
    let name = host.strip_prefix("*.").unwrap_or(host);
    let is_fine =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'_';
    let is_name =
        name.split('.').all(|label| !label.is_empty() && label.len() < 64 && label.bytes().all(is_fine));
    if host.len() > maximum::HOST_BYTES || !is_name {
        return problem(at, format!("`{host}` is neither a host name in lower case nor `*.` and one"));
    }
    Ok(())
}

fn absolute_path(at: &str, path: &str) -> Checked {
    text(at, path, maximum::TEXT_BYTES)?;
    if !path.starts_with('/') || !path.bytes().all(|byte| byte.is_ascii_graphic()) || path.contains('#') {
        return problem(at, "is not a path that begins with `/` and has visible ASCII characters only");
    }
    Ok(())
}

fn unique<T: Ord + fmt::Display + Copy>(at: &str, what: &str, values: impl Iterator<Item = T>) -> Checked {
    let mut seen = BTreeSet::new();
    for (index, value) in values.enumerate() {
        if !seen.insert(value) {
            return problem(format!("{at}[{index}].{what}"), format!("`{value}` is there twice"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
