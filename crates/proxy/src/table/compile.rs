//! From a topology to its table.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use http::{HeaderName, HeaderValue, Method};
use lightbyte_api::topology::{self as api, HashKey, HeaderEdits, PathMatch, Problem, Topology};

use super::{Edits, Key, Pool, Route, Table};
use crate::certificates::Certificates;
use crate::pick::Slots;
use crate::registry::Registry;

impl Table {
    /// Checks and compiles. What the registry knows of backends, routes and pools is taken over.
    ///
    /// # Errors
    /// The first [`Problem`] of the topology, certificates included.
    pub(crate) fn compile(topology: &Topology, registry: &mut Registry) -> Result<Table, Problem> {
        topology.check()?;
        let certificates = Certificates::compile(&topology.certificates)?;
        let pools = topology
            .pools
            .iter()
            .enumerate()
            .map(|(index, pool)| compile_pool(pool, &format!("pools[{index}]"), registry).map(Arc::new))
            .collect::<Result<Vec<_>, _>>()?;
        let mut table = Table {
            revision: topology.revision,
            listeners: topology.listeners.iter().map(|listener| (listener.port, listener.clone())).collect(),
            certificates,
            challenges: topology
                .challenges
                .iter()
                .map(|one| (one.token.clone(), one.answer.clone()))
                .collect(),
            pools,
            limits: topology.limits,
            trusted_peers: topology.trusted_peers.clone(),
            ..Table::default()
        };
        for (index, route) in topology.routes.iter().enumerate() {
            let compiled = table.compile_route(route, &format!("routes[{index}]"), registry)?;
            table.routes.push(Arc::new(compiled));
            table.place(index, route);
        }
        Ok(table)
    }

    fn place(&mut self, index: usize, route: &api::Route) {
        if route.hosts.is_empty() {
            self.any_host.add(&route.path, index);
        }
        for host in &route.hosts {
            let paths = match host.strip_prefix("*.") {
                Some(domain) => self.wildcard_hosts.entry(domain.to_owned()).or_default(),
                None => self.exact_hosts.entry(host.clone()).or_default(),
            };
            paths.add(&route.path, index);
        }
    }

    fn compile_route(&self, route: &api::Route, at: &str, registry: &mut Registry) -> Result<Route, Problem> {
        let mut sum = 0;
        let mut targets = Vec::new();
        for target in route.targets.iter().filter(|target| target.weight > 0) {
            // A pool that has no members gets no share while another has: a canary that is not there costs nobody a 503.
            let pool = self.pools.iter().find(|pool| pool.name == target.pool && !pool.slots.is_empty());
            if let Some(pool) = pool {
                sum += u64::from(target.weight);
                targets.push((sum, pool.clone()));
            }
        }
        let (PathMatch::Prefix(path) | PathMatch::Exact(path)) = &route.path;
        let rewrite = |replacement: &String| (path.trim_end_matches('/').to_owned(), replacement.clone());
        Ok(Route {
            name: route.name.clone(),
            counts: registry.route(&route.name),
            redirect: route.redirect.clone(),
            limiter: route.rate_limit.map(|limit| registry.limiter(&route.name, limit)),
            request_headers: Edits::compile(&route.request_headers, at)?,
            response_headers: Edits::compile(&route.response_headers, at)?,
            timeouts: route.timeouts,
            tries_max: route.tries_max,
            body_bytes_max: route.body_bytes_max.unwrap_or(self.limits.body_bytes_max),
            sticky: route.sticky.clone(),
            methods: route
                .methods
                .iter()
                .map(|method| parse(Method::from_bytes(method.as_bytes()), at, "a method"))
                .collect::<Result<_, _>>()?,
            rewrite: route.rewrite_prefix.as_ref().map(rewrite),
            targets,
            turn: AtomicU64::new(0),
        })
    }
}

fn compile_pool(pool: &api::Pool, at: &str, registry: &mut Registry) -> Result<Pool, Problem> {
    let active: Vec<_> =
        pool.backends.iter().filter(|backend| !backend.retiring && backend.weight > 0).collect();
    let weighed: Vec<(&str, u32)> =
        active.iter().map(|backend| (backend.uid.as_str(), backend.weight)).collect();
    let key = match &pool.balance {
        api::Balance::Hash(HashKey::Header(name)) => {
            Some(Key::Header(parse(HeaderName::from_bytes(name.as_bytes()), at, "a header")?))
        }
        api::Balance::Hash(HashKey::Cookie(name)) => Some(Key::Cookie(name.clone())),
        api::Balance::Hash(HashKey::Source) => Some(Key::Source),
        api::Balance::RoundRobin | api::Balance::LeastConnections => None,
    };
    // The retiring are registered too, so that their requests in flight are told of.
    for backend in &pool.backends {
        registry.member(&pool.name, backend);
    }
    Ok(Pool {
        name: pool.name.clone(),
        protocol: pool.protocol,
        check: pool.check.clone(),
        ejection: pool.ejection,
        budget: registry.budget(&pool.name),
        key,
        members: active.iter().map(|backend| registry.member(&pool.name, backend)).collect(),
        slots: Slots::new(&pool.balance, &weighed),
        turn: AtomicU64::new(0),
    })
}

impl Edits {
    fn compile(edits: &HeaderEdits, at: &str) -> Result<Edits, Problem> {
        let name = |name: &String| parse(HeaderName::from_bytes(name.as_bytes()), at, "a header");
        let pair = |(key, value): (&String, &String)| {
            Ok((name(key)?, parse(HeaderValue::from_bytes(value.as_bytes()), at, "a header's value")?))
        };
        Ok(Edits {
            remove: edits.remove.iter().map(name).collect::<Result<_, Problem>>()?,
            set: edits.set.iter().map(pair).collect::<Result<_, Problem>>()?,
        })
    }
}

fn parse<T, E>(result: Result<T, E>, at: &str, what: &str) -> Result<T, Problem> {
    result.map_err(|_| Problem { path: at.to_owned(), what: format!("holds {what} that HTTP does not know") })
}
