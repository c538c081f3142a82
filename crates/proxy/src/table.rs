//! A topology made ready for requests: all that can be done once is done here.

mod compile;
mod paths;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use http::{HeaderName, HeaderValue, Method};
use lightbyte_api::topology::{
    BackendProtocol, CHALLENGE_PATH, Check, Ejection, Limits, Listener, Network, Redirect, Sticky, Timeouts,
};

use crate::certificates::Certificates;
use crate::chance;
use crate::counts::Counts;
use crate::pick::{Slots, Standing};
use crate::rate::Limiter;
use crate::registry::Member;
use crate::retry::Budget;
use paths::Paths;

/// A topology, compiled.
#[derive(Debug, Default)]
pub(crate) struct Table {
    pub(crate) revision: u64,
    pub(crate) listeners: HashMap<u16, Listener>,
    pub(crate) certificates: Certificates,
    /// Answers to certification authorities, by token.
    challenges: HashMap<String, String>,
    pub(crate) routes: Vec<Arc<Route>>,
    pub(crate) pools: Vec<Arc<Pool>>,
    pub(crate) limits: Limits,
    trusted_peers: Vec<Network>,
    exact_hosts: HashMap<String, Paths>,
    /// By the domain, without `*.`.
    wildcard_hosts: HashMap<String, Paths>,
    any_host: Paths,
}

/// A route, compiled.
#[derive(Debug)]
pub(crate) struct Route {
    pub(crate) name: String,
    pub(crate) counts: Arc<Counts>,
    pub(crate) redirect: Option<Redirect>,
    pub(crate) limiter: Option<Arc<Limiter>>,
    pub(crate) request_headers: Edits,
    pub(crate) response_headers: Edits,
    pub(crate) timeouts: Timeouts,
    pub(crate) tries_max: u32,
    pub(crate) body_bytes_max: u64,
    pub(crate) sticky: Option<Sticky>,
    methods: Vec<Method>,
    /// What to cut off the path, and what to put there.
    rewrite: Option<(String, String)>,
    /// Pools that have members, each with the sum of weights up to and with it.
    targets: Vec<(u64, Arc<Pool>)>,
    turn: AtomicU64,
}

/// A pool, compiled.
#[derive(Debug)]
pub(crate) struct Pool {
    pub(crate) name: String,
    pub(crate) protocol: BackendProtocol,
    pub(crate) check: Option<Check>,
    pub(crate) ejection: Option<Ejection>,
    pub(crate) budget: Arc<Budget>,
    pub(crate) key: Option<Key>,
    /// Those that may get requests, in the order of the slots.
    pub(crate) members: Vec<Arc<Member>>,
    slots: Slots,
    turn: AtomicU64,
}

/// What of a request is hashed.
#[derive(Debug)]
pub(crate) enum Key {
    Header(HeaderName),
    Cookie(String),
    Source,
}

/// Headers to remove and to set, parsed.
#[derive(Debug, Default)]
pub(crate) struct Edits {
    pub(crate) remove: Vec<HeaderName>,
    pub(crate) set: Vec<(HeaderName, HeaderValue)>,
}

impl Table {
    /// The route of a request, if there is one. `host` may have a port, `path` has no query.
    pub(crate) fn route(&self, host: &str, path: &str, method: &Method) -> Option<&Arc<Route>> {
        let host = name_of(host);
        let lower;
        let host = if host.bytes().any(|byte| byte.is_ascii_uppercase()) {
            lower = host.to_ascii_lowercase();
            &lower
        } else {
            host
        };
        let fits = |index: &usize| self.routes[*index].takes(method);
        let exact = self.exact_hosts.get(host).and_then(|paths| paths.find(path, fits));
        let index =
            exact.or_else(|| self.by_wildcard(host, path, fits)).or_else(|| self.any_host.find(path, fits));
        index.map(|index| &self.routes[index])
    }

    /// What a certification authority is answered that asks for this path.
    pub(crate) fn challenge(&self, path: &str) -> Option<&str> {
        if self.challenges.is_empty() {
            return None;
        }
        self.challenges.get(path.strip_prefix(CHALLENGE_PATH)?).map(String::as_str)
    }

    fn by_wildcard(&self, host: &str, path: &str, fits: impl Fn(&usize) -> bool + Copy) -> Option<usize> {
        if self.wildcard_hosts.is_empty() {
            return None;
        }
        // The longest domain first. A name has at most 127 labels; what is longer is no name.
        let domains = host.match_indices('.').take(127).map(|(dot, _)| &host[dot + 1..]);
        domains.filter_map(|domain| self.wildcard_hosts.get(domain)).find_map(|paths| paths.find(path, fits))
    }

    /// Whether what this peer says of the client is believed.
    pub(crate) fn trusts(&self, peer: IpAddr) -> bool {
        let peer = peer.to_canonical();
        self.trusted_peers.iter().any(|network| network.contains(peer))
    }
}

impl Route {
    fn takes(&self, method: &Method) -> bool {
        self.methods.is_empty() || self.methods.contains(method)
    }

    /// The pool for the next request: by weight, and evenly spread. None if none has members.
    pub(crate) fn pool(&self) -> Option<&Arc<Pool>> {
        let (sum, last) = self.targets.last()?;
        if self.targets.len() == 1 {
            return Some(last);
        }
        // Multiples of the golden ratio fall evenly between 0 and 1, also over a few requests.
        let turn = self.turn.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let drawn = u64::try_from((u128::from(turn) * u128::from(*sum)) >> 64).unwrap_or_default();
        let index = self.targets.partition_point(|(until, _)| *until <= drawn);
        self.targets.get(index).map(|(_, pool)| pool)
    }

    /// The pools that have members, each with how many of a hundred requests it gets.
    pub(crate) fn shares(&self) -> impl Iterator<Item = (u64, &Arc<Pool>)> {
        let sum = self.targets.last().map_or(1, |(until, _)| *until);
        let before = std::iter::once(0).chain(self.targets.iter().map(|(until, _)| *until));
        before.zip(&self.targets).map(move |(from, (until, pool))| ((until - from) * 100 / sum, pool))
    }

    /// The member that a sticky cookie names, with its pool, if it still may get requests.
    pub(crate) fn stuck_to(&self, cookie: &str) -> Option<(&Arc<Pool>, usize)> {
        let wanted = u64::from_str_radix(cookie, 16).ok()?;
        let place = |pool: &Pool| {
            pool.members.iter().position(|member| chance::stable_hash(member.uid.as_bytes()) == wanted)
        };
        self.targets.iter().find_map(|(_, pool)| place(pool).map(|index| (pool, index)))
    }

    /// Whether the pool is one of its targets.
    pub(crate) fn has(&self, pool: &Arc<Pool>) -> bool {
        self.targets.iter().any(|(_, target)| Arc::ptr_eq(target, pool))
    }

    /// Whether the backend is asked for another path.
    pub(crate) const fn is_rewriting(&self) -> bool {
        self.rewrite.is_some()
    }

    /// The path to ask the backend for, if it differs.
    pub(crate) fn rewritten(&self, path: &str) -> Option<String> {
        let (prefix, replacement) = self.rewrite.as_ref()?;
        let rest = path.strip_prefix(prefix.as_str())?.trim_start_matches('/');
        let replacement = replacement.trim_end_matches('/');
        if rest.is_empty() && !replacement.is_empty() {
            return Some(replacement.to_owned());
        }
        Some(format!("{replacement}/{rest}"))
    }
}

impl Pool {
    /// A member for a request. None only if the pool has none.
    pub(crate) fn choose(&self, key: Option<u64>, tried: &[String], now_ms: u64) -> Option<usize> {
        self.choose_in_turn(self.turn.fetch_add(1, Ordering::Relaxed), key, tried, now_ms)
    }

    /// The member that the next request would get, whose turn it stays.
    pub(crate) fn next(&self, key: Option<u64>, now_ms: u64) -> Option<usize> {
        self.choose_in_turn(self.turn.load(Ordering::Relaxed), key, &[], now_ms)
    }

    /// Whether the fewest requests in flight count.
    pub(crate) const fn is_by_load(&self) -> bool {
        self.slots.is_by_load()
    }

    fn choose_in_turn(&self, turn: u64, key: Option<u64>, tried: &[String], now_ms: u64) -> Option<usize> {
        let standing = |index: usize| {
            let member = &self.members[index];
            if tried.iter().any(|uid| *uid == member.uid) {
                Standing::Tried
            } else if member.is_healthy(now_ms) {
                Standing::Fine
            } else {
                Standing::Unhealthy
            }
        };
        self.slots.choose(turn, key, standing, |index| self.members[index].in_flight())
    }

    /// How many members are ejected.
    pub(crate) fn ejected(&self, now_ms: u64) -> usize {
        self.members.iter().filter(|member| member.is_ejected(now_ms)).count()
    }
}

/// A host without its port and without the dot of the root.
pub(crate) fn name_of(host: &str) -> &str {
    let end = if host.starts_with('[') { host.find(']').map(|end| end + 1) } else { host.find(':') };
    let name = end.and_then(|end| host.get(..end)).unwrap_or(host);
    name.strip_suffix('.').unwrap_or(name)
}
