//! From what is asked to what proxies are told.

use std::net::IpAddr;

use super::{Choice, Configuration, Listener, Pool, Route, Serving, ShownCertificate};
use crate::address::Cidr;
use crate::topology::{self, Backend, Certificate, Protocol, ProxyProtocol, Target, Topology};
use crate::uid::Uid;
use crate::units::ByteSize;

/// The name of the route that is there when none is asked for.
const DEFAULT_ROUTE: &str = "default";

impl Choice {
    /// What the proxy is to be told now; nothing before there is a configuration, or where `certificate` does not have one of it.
    #[must_use]
    pub fn topology_of(
        &self,
        proxy: Uid,
        certificate: impl Fn(&ShownCertificate) -> Option<Certificate>,
    ) -> Option<Topology> {
        let configuration = self.configuration_of(proxy)?;
        let certificates = configuration.certificates.iter().map(certificate).collect::<Option<_>>()?;
        Some(self.topology(configuration, certificates))
    }

    fn topology(&self, configuration: &Configuration, certificates: Vec<Certificate>) -> Topology {
        let address_of = |uid: &Uid| self.members.iter().find(|member| member.uid == *uid).map(|member| member.address);
        let has_certificates = !certificates.is_empty();
        let mut topology = configuration.serving.topology(self.revision, certificates, |pool| {
            let members = configuration.pools.get(&pool.name).into_iter().flatten();
            let backend = |uid: &Uid| {
                let address = IpAddr::V4(address_of(uid)?);
                Some(Backend { uid: uid.to_string(), address, port: pool.port, weight: 1, retiring: false })
            };
            members.filter_map(backend).collect()
        });
        topology.challenges.clone_from(&self.challenges);
        // Where all certificates are yet to come, nobody could be greeted by TLS.
        topology.listeners.retain(|one| one.protocol == Protocol::Http || has_certificates);
        topology
    }
}

impl Serving {
    /// The topology with the backends that `backends` says are in each pool.
    pub(super) fn topology(
        &self,
        revision: u64,
        certificates: Vec<Certificate>,
        backends: impl Fn(&Pool) -> Vec<Backend>,
    ) -> Topology {
        let routes = match self.routes.as_slice() {
            [] => self.pools.first().map(to_the_only_pool).into_iter().collect(),
            routes => routes.iter().map(route).collect(),
        };
        Topology {
            format: topology::FORMAT,
            revision,
            listeners: self.listeners.iter().map(listener).collect(),
            certificates,
            challenges: Vec::new(),
            routes,
            pools: self.pools.iter().map(|one| pool(one, backends(one))).collect(),
            limits: topology::Limits::default(),
            trusted_peers: self.trusted_peers.iter().map(network).collect(),
        }
    }
}

fn listener(listener: &Listener) -> topology::Listener {
    topology::Listener {
        name: format!("port-{}", listener.port),
        // Those of IPv4 come in by it too.
        address: IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED),
        port: listener.port,
        protocol: listener.protocol,
        proxy_protocol: if listener.proxy_protocol { ProxyProtocol::Required } else { ProxyProtocol::Off },
        redirect_to_https: listener.redirect_to_https,
    }
}

fn network(subnet: &Cidr) -> topology::Network {
    let (address, prefix_bits) = match subnet {
        Cidr::V4(subnet) => (IpAddr::V4(subnet.base()), subnet.prefix_length()),
        Cidr::V6(subnet) => (IpAddr::V6(subnet.base()), subnet.prefix_length()),
    };
    topology::Network { address, prefix_bits }
}

fn to_the_only_pool(pool: &Pool) -> topology::Route {
    let target = Target { pool: pool.name.clone(), weight: 1 };
    route(&Route { targets: vec![target], ..Route::new(DEFAULT_ROUTE.to_owned()) })
}

fn route(route: &Route) -> topology::Route {
    topology::Route {
        name: route.name.clone(),
        hosts: route.hosts.clone(),
        path: route.path.clone(),
        methods: route.methods.clone(),
        rewrite_prefix: route.rewrite_prefix.clone(),
        request_headers: route.request_headers.clone(),
        response_headers: route.response_headers.clone(),
        targets: route.targets.clone(),
        timeouts: topology::Timeouts {
            connect_ms: route.timeouts.connect.millis(),
            read_ms: route.timeouts.read.millis(),
            write_ms: route.timeouts.write.millis(),
        },
        tries_max: route.tries,
        body_bytes_max: route.body_max.map(ByteSize::bytes),
        sticky: route.sticky.as_ref().map(|sticky| topology::Sticky {
            cookie: sticky.cookie.clone(),
            max_age_s: sticky.max_age.map(|age| age.millis() / 1_000),
        }),
        rate_limit: route.rate_limit,
        redirect: route.redirect.clone(),
    }
}

fn pool(pool: &Pool, backends: Vec<Backend>) -> topology::Pool {
    let Pool { check, ejection, .. } = pool;
    topology::Pool {
        name: pool.name.clone(),
        balance: pool.balance.clone(),
        protocol: pool.protocol,
        backends,
        check: Some(topology::Check {
            probe: check.http.clone().map_or(topology::Probe::Tcp, topology::Probe::Http),
            every_ms: check.every.millis(),
            timeout_ms: check.timeout.millis(),
            healthy_after: check.healthy_after,
            unhealthy_after: check.unhealthy_after,
        }),
        ejection: Some(topology::Ejection {
            failures: ejection.failures,
            first_ms: ejection.first.millis(),
            longest_ms: ejection.longest.millis(),
            ejected_percent_max: ejection.percent_max,
        }),
    }
}

impl Route {
    /// A route for everything that leads nowhere yet.
    pub(super) fn new(name: String) -> Route {
        Route {
            name,
            hosts: Vec::new(),
            path: topology::PathMatch::default(),
            methods: Vec::new(),
            rewrite_prefix: None,
            request_headers: topology::HeaderEdits::default(),
            response_headers: topology::HeaderEdits::default(),
            targets: Vec::new(),
            timeouts: super::Timeouts::default(),
            tries: super::tries_default(),
            body_max: None,
            sticky: None,
            rate_limit: None,
            redirect: None,
        }
    }
}
