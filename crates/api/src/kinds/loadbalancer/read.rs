//! Reading what people write of a load balancer.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{
    CERTIFICATES_MAX, Check, DRAIN_MAX, Ejection, LISTENERS_MAX, Listener, Members, POOLS_MAX, PROXIES_MAX, Pool, Proxies, ROUTES_MAX,
    Route, SERVING_BYTES_MAX, Serving, Spec, Sticky, Timeouts, VMS_MAX, drain_default, tries_default,
};
use crate::kinds::Field;
use crate::kinds::vm::{CPUS_MAX, MEMORY_MAX, MEMORY_MIN};
use crate::manifest::read_labels;
use crate::name::Name;
use crate::reader::Reader;
use crate::topology::{
    Certificate, HeaderEdits, PathMatch, RateLimit, RateScope, Redirect, SecretText, Target, maximum,
};
use crate::units::Span;

/// Its fields, for `lightbyte explain`.
pub(super) const FIELDS: &[Field] = &[
    ("proxies", "the VMs that carry the requests: a scale group that belongs to it"),
    ("proxies.replicas", "how many, 1 to 32; 2 when left out"),
    ("proxies.cpus", "virtual CPUs of each; 1 when left out"),
    ("proxies.memory", "memory of each; 128MiB when left out"),
    ("proxies.image", "their image; proxy when left out"),
    ("proxies.network", "the network on which they listen and reach backends; default when left out; fixed for life"),
    ("listeners", "where connections are taken, at most 16"),
    ("listeners[].port", "the port on every proxy"),
    ("listeners[].protocol", "http for HTTP/1.1, and HTTP/2 with prior knowledge; https for both by TLS; http when left out"),
    ("listeners[].proxy_protocol", "whether connections begin with a PROXY header, which only `trusted_peers` may write"),
    ("listeners[].redirect_to_https", "answer each request with a redirect to https at this port"),
    ("certificates", "secrets, at most 16, whose certificates `https` shows: by the name that a client asks for, or the first"),
    ("routes", "which request goes where, at most 200, the more precise first; all to the first pool when left out"),
    ("routes[].name", "names it in metrics and logs"),
    ("routes[].hosts", "exact names or *.domain; every host when left out"),
    ("routes[].path", "/a for the path and all below it, or {exact: /a}; / when left out"),
    ("routes[].methods", "which methods, such as [GET, HEAD]; all when left out"),
    ("routes[].rewrite_prefix", "what stands in the place of the matched prefix when the request goes on"),
    ("routes[].request_headers", "done to requests before they go on"),
    ("routes[].request_headers.set", "headers to set, by name"),
    ("routes[].request_headers.remove", "headers to remove"),
    ("routes[].response_headers", "done to answers before they go back"),
    ("routes[].response_headers.set", "headers to set, by name"),
    ("routes[].response_headers.remove", "headers to remove"),
    ("routes[].pool", "the pool that requests go to"),
    ("routes[].targets", "several pools, in place of `pool`"),
    ("routes[].targets[].pool", "a pool"),
    ("routes[].targets[].weight", "its share of the requests; 1 when left out"),
    ("routes[].timeouts", "how long things may take"),
    ("routes[].timeouts.connect", "to connect to a backend; 1s when left out"),
    ("routes[].timeouts.read", "between two reads from a backend, and to its first byte; 1m when left out"),
    ("routes[].timeouts.write", "between two writes to a backend; 1m when left out"),
    ("routes[].tries", "tries of one request, the first included, 1 to 10; 3 when left out"),
    ("routes[].body_max", "larger bodies are refused with 413; 1GiB when left out"),
    ("routes[].sticky", "keeps a client with its backend"),
    ("routes[].sticky.cookie", "by a cookie of this name"),
    ("routes[].sticky.max_age", "that browsers keep for so long; till they end when left out"),
    ("routes[].rate_limit", "refuses more requests than this with 429, at each proxy"),
    ("routes[].rate_limit.per_second", "requests per second on and on"),
    ("routes[].rate_limit.burst", "requests at once after a pause"),
    ("routes[].rate_limit.scope", "route, or source for each client address; route when left out"),
    ("routes[].redirect", "answers with a redirect, in place of a pool"),
    ("routes[].redirect.status", "301, 302, 303, 307 or 308"),
    ("routes[].redirect.scheme", "http or https; as it was asked when left out"),
    ("routes[].redirect.host", "the host; as it was asked when left out"),
    ("routes[].redirect.path", "the path; as it was asked when left out"),
    ("pools", "backends, at most 64 pools"),
    ("pools[].name", "routes name it so"),
    ("pools[].group", "the members of this scale group"),
    ("pools[].labels", "or the VMs that have all of these labels"),
    ("pools[].vms", "or these VMs, at most 256"),
    ("pools[].port", "where each listens"),
    ("pools[].balance", "round_robin, least_connections, or {hash: source}, {hash: {header: …}}, {hash: {cookie: …}}; round_robin when left out"),
    ("pools[].protocol", "h1, or h2 for HTTP/2 with prior knowledge; h1 when left out"),
    ("pools[].check", "how each proxy tries them, besides what workers say"),
    ("pools[].check.http", "a path that is answered with 200 to 399; a connection is enough when left out"),
    ("pools[].check.every", "from one try to the next, 100ms to 1h; 2s when left out"),
    ("pools[].check.timeout", "a try that takes longer has failed; 1s when left out"),
    ("pools[].check.healthy_after", "good tries in a row until it is healthy again; 1 when left out"),
    ("pools[].check.unhealthy_after", "failed tries in a row until it is not; 2 when left out"),
    ("pools[].ejection", "when one that fails requests gets none for a while"),
    ("pools[].ejection.failures", "after so many in a row; 3 when left out"),
    ("pools[].ejection.first", "for how long the first time; it doubles; 1s when left out"),
    ("pools[].ejection.longest", "the longest; 30s when left out"),
    ("pools[].ejection.percent_max", "how many of a hundred at once; 50 when left out"),
    ("trusted_peers", "subnets whose word about the client (X-Forwarded-*, PROXY) is believed"),
    ("virtual_address", "an address of the proxies' network that always leads to one of them: auto, or one such as 10.77.0.40; none when left out"),
    ("drain", "how long a backend that goes may take to finish its requests, up to 1h; 30s when left out"),
];

/// The longest time of any policy here.
const SPAN_MAX: Span = Span::from_secs(24 * 60 * 60);
const SPAN_MIN: Span = Span::from_millis(1);

pub(super) fn spec(fields: &mut Reader<'_>) -> Option<Spec> {
    let proxies = fields.object("proxies", proxies).unwrap_or_default();
    let listeners = fields.list("listeners", LISTENERS_MAX, listener);
    let certificates: Vec<Name> = fields.or("certificates", Vec::new());
    let pools = fields.list("pools", POOLS_MAX, pool);
    let routes = match fields.has("routes") {
        true => fields.list("routes", ROUTES_MAX, route),
        false => fields.list("routes", ROUTES_MAX, route).or(Some(Vec::new())),
    };
    let trusted_peers = fields.or("trusted_peers", Vec::new());
    let virtual_address = fields.optional("virtual_address");
    let drain = fields.span("drain", Span::from_secs(0)..=DRAIN_MAX, drain_default());
    for (field, example) in [("listeners", "[{port: 80}]"), ("pools", "[{name: web, group: web, port: 80}]")] {
        if !fields.has(field) {
            fields.problem(field, "is missing", Some(format!("such as {field}: {example}")));
        }
    }
    let serving = Serving { listeners: listeners?, certificates, routes: routes?, pools: pools?, trusted_peers };
    check(&serving, fields);
    Some(Spec { proxies, serving, drain, virtual_address })
}

/// What a proxy would refuse.
fn check(serving: &Serving, fields: &mut Reader<'_>) {
    let ports: Vec<u16> = serving.listeners.iter().map(|listener| listener.port).collect();
    let twice = (0..ports.len()).find(|index| ports[..*index].contains(&ports[*index]));
    if let Some(index) = twice {
        fields.problem(&format!("listeners[{index}].port"), format!("`{}` is there twice", ports[index]), None);
        return;
    }
    if serving.certificates.len() > CERTIFICATES_MAX {
        let rule = format!("has {} items, at most {CERTIFICATES_MAX} are allowed", serving.certificates.len());
        fields.problem("certificates", rule, None);
    }
    let names = &serving.certificates;
    if let Some(index) = (0..names.len()).find(|index| names[..*index].contains(&names[*index])) {
        fields.problem(&format!("certificates[{index}]"), format!("`{}` is there twice", names[index]), None);
    }
    if let Err(problem) = serving.topology(1, serving.certificates.iter().map(any).collect(), |_| Vec::new()).check() {
        let path = problem.path.replace(".tries_max", ".tries").replace("_ms", "");
        fields.problem(&path, problem.what, None);
    }
    for (index, pool) in serving.pools.iter().enumerate() {
        if let Members::Labels(labels) = &pool.members
            && labels.is_empty()
        {
            fields.problem(&format!("pools[{index}].labels"), "is empty", Some("such as {app: web}".to_owned()));
        }
    }
    let bytes = serde_json::to_vec(serving).map_or(0, |text| text.len());
    if bytes > SERVING_BYTES_MAX {
        let rule = format!("and the rest have {bytes} bytes, at most {SERVING_BYTES_MAX} are allowed");
        fields.problem("routes", rule, Some("make two load balancers of it".to_owned()));
    }
}

/// In the place of a certificate, which is known later.
fn any(_: &Name) -> Certificate {
    let text = || "-".to_owned();
    Certificate { server_names: vec!["any.invalid".to_owned()], chain_pem: text(), key_pem: SecretText::new(text()) }
}

fn proxies(fields: &mut Reader<'_>) -> Option<Proxies> {
    let default = Proxies::default();
    let memory = fields.or("memory", default.memory);
    if !(MEMORY_MIN..=MEMORY_MAX).contains(&memory) {
        fields.problem("memory", format!("must be between {MEMORY_MIN} and {MEMORY_MAX}, is {memory}"), None);
    }
    Some(Proxies {
        replicas: fields.number("replicas", 1..=PROXIES_MAX, default.replicas),
        cpus: fields.number("cpus", 1..=CPUS_MAX, default.cpus),
        memory,
        image: fields.or("image", default.image),
        network: fields.or("network", default.network),
    })
}

fn listener(fields: &mut Reader<'_>) -> Option<Listener> {
    let port = fields.required("port");
    let protocol = fields.or("protocol", super::http());
    let proxy_protocol = fields.or("proxy_protocol", false);
    let redirect_to_https = fields.optional("redirect_to_https");
    Some(Listener { port: port?, protocol, proxy_protocol, redirect_to_https })
}

/// A path as people write it.
#[derive(Deserialize)]
#[serde(untagged)]
enum PathText {
    Prefix(String),
    Match(PathMatch),
}

fn route(fields: &mut Reader<'_>) -> Option<Route> {
    let name = fields.required("name");
    let path = match fields.optional("path") {
        None => PathMatch::default(),
        Some(PathText::Prefix(prefix)) => PathMatch::Prefix(prefix),
        Some(PathText::Match(path)) => path,
    };
    let ways = ["pool", "targets", "redirect"].into_iter().filter(|way| fields.has(way)).count();
    let pool: Option<String> = fields.optional("pool");
    let targets = fields.list("targets", maximum::PER_ROUTE, target);
    let redirect = fields.object("redirect", redirect);
    if ways != 1 {
        let rule = "one of pool, targets and redirect must be there, and only one";
        fields.problem("pool", rule, Some("such as pool: web".to_owned()));
    }
    let only = |pool| vec![Target { pool, weight: 1 }];
    Some(Route {
        hosts: fields.or("hosts", Vec::new()),
        path,
        methods: fields.or("methods", Vec::new()),
        rewrite_prefix: fields.optional("rewrite_prefix"),
        request_headers: fields.object("request_headers", headers).unwrap_or_default(),
        response_headers: fields.object("response_headers", headers).unwrap_or_default(),
        targets: pool.map(only).or(targets).unwrap_or_default(),
        timeouts: fields.object("timeouts", timeouts).unwrap_or_default(),
        tries: fields.or("tries", tries_default()),
        body_max: fields.optional("body_max"),
        sticky: fields.object("sticky", sticky),
        rate_limit: fields.object("rate_limit", rate_limit),
        redirect,
        name: name?,
    })
}

fn headers(fields: &mut Reader<'_>) -> Option<HeaderEdits> {
    Some(HeaderEdits { set: fields.or("set", BTreeMap::new()), remove: fields.or("remove", Vec::new()) })
}

fn target(fields: &mut Reader<'_>) -> Option<Target> {
    let pool = fields.required("pool");
    let weight = fields.or("weight", 1);
    Some(Target { pool: pool?, weight })
}

fn timeouts(fields: &mut Reader<'_>) -> Option<Timeouts> {
    let default = Timeouts::default();
    Some(Timeouts {
        connect: fields.span("connect", SPAN_MIN..=SPAN_MAX, default.connect),
        read: fields.span("read", SPAN_MIN..=SPAN_MAX, default.read),
        write: fields.span("write", SPAN_MIN..=SPAN_MAX, default.write),
    })
}

fn sticky(fields: &mut Reader<'_>) -> Option<Sticky> {
    let cookie = fields.required("cookie");
    let max_age = fields.optional("max_age");
    Some(Sticky { cookie: cookie?, max_age })
}

fn rate_limit(fields: &mut Reader<'_>) -> Option<RateLimit> {
    let (per_second, burst) = (fields.required("per_second"), fields.required("burst"));
    let scope = fields.or("scope", RateScope::default());
    Some(RateLimit { per_second: per_second?, burst: burst?, scope })
}

fn redirect(fields: &mut Reader<'_>) -> Option<Redirect> {
    let status = fields.required("status");
    let (scheme, host, path) = (fields.optional("scheme"), fields.optional("host"), fields.optional("path"));
    Some(Redirect { status: status?, scheme, host, path })
}

fn pool(fields: &mut Reader<'_>) -> Option<Pool> {
    let name = fields.required("name");
    let named = ["group", "labels", "vms"].into_iter().filter(|way| fields.has(way)).count();
    let group: Option<Name> = fields.optional("group");
    let labels = fields.has("labels").then(|| read_labels(fields, "labels"));
    if labels.is_none() {
        // It is a field that may be left out.
        let _: Option<BTreeMap<String, String>> = fields.optional("labels");
    }
    let vms: Option<Vec<Name>> = fields.optional("vms");
    if named != 1 {
        let rule = "one of group, labels and vms must be there, and only one";
        fields.problem("group", rule, Some("such as group: web".to_owned()));
    }
    if vms.as_ref().is_some_and(|vms| vms.len() > VMS_MAX) {
        fields.problem("vms", format!("has more than {VMS_MAX} VMs"), Some("give them a label".to_owned()));
    }
    let members = group.map(Members::Group).or(labels.map(Members::Labels)).or(vms.map(Members::Vms));
    let port = fields.required("port");
    let balance = fields.or("balance", super::Balance::default());
    let protocol = fields.or("protocol", super::BackendProtocol::default());
    let check = fields.object("check", health).unwrap_or_default();
    let ejection = fields.object("ejection", ejection).unwrap_or_default();
    Some(Pool { name: name?, members: members?, port: port?, balance, protocol, check, ejection })
}

fn health(fields: &mut Reader<'_>) -> Option<Check> {
    let default = Check::default();
    Some(Check {
        http: fields.optional("http"),
        every: fields.span("every", Span::from_millis(100)..=Span::from_secs(3_600), default.every),
        timeout: fields.span("timeout", SPAN_MIN..=Span::from_secs(60), default.timeout),
        healthy_after: fields.or("healthy_after", default.healthy_after),
        unhealthy_after: fields.or("unhealthy_after", default.unhealthy_after),
    })
}

fn ejection(fields: &mut Reader<'_>) -> Option<Ejection> {
    let default = Ejection::default();
    Some(Ejection {
        failures: fields.or("failures", default.failures),
        first: fields.span("first", SPAN_MIN..=SPAN_MAX, default.first),
        longest: fields.span("longest", SPAN_MIN..=SPAN_MAX, default.longest),
        percent_max: fields.or("percent_max", default.percent_max),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::kinds::{Kind, Spec as KindSpec, SpecRules as _};

    fn read(spec: &Value) -> (Option<KindSpec>, Vec<String>) {
        let mut problems = Vec::new();
        let mut reader = Reader::new("spec", spec, &mut problems);
        let found = KindSpec::read(Kind::LoadBalancer, &mut reader);
        reader.finish();
        (found, problems.iter().map(ToString::to_string).collect())
    }

    /// The shortest with something else in it.
    fn with(field: &str, value: Value) -> Value {
        let mut spec = Spec::shortest().expect("people write it");
        spec[field] = value;
        spec
    }

    #[test]
    fn what_was_read_reads_the_same_again() {
        let check = |spec: &Value| {
            let (found, problems) = read(spec);
            assert_eq!(problems, Vec::<String>::new(), "{spec}");
            let again = found.as_ref().expect("no problem").to_json().expect("plain data");
            assert_eq!(read(&again), (found, Vec::new()), "{again}");
        };
        check(&Spec::shortest().expect("people write it"));
        check(&with("routes", json!([{ "name": "a", "path": "/a", "pool": "web" }])));
        let mut with_tls = with("listeners", json!([{ "port": 443, "protocol": "https" }, { "port": 80, "redirect_to_https": 443 }]));
        with_tls["certificates"] = json!(["shop"]);
        check(&with_tls);
        check(&with("routes", json!([{ "name": "a", "path": { "exact": "/a" }, "targets": [{ "pool": "web", "weight": 3 }] }])));
        check(&with("routes", json!([{ "name": "a", "redirect": { "status": 301, "path": "/b" } }])));
        check(&with("pools", json!([{ "name": "web", "vms": ["a"], "port": 80, "balance": { "hash": "source" } }])));
        check(&with("pools", json!([{ "name": "web", "labels": { "app": "web" }, "port": 80, "check": { "http": "/" } }])));
    }

    #[test]
    fn what_a_proxy_would_refuse_is_refused_with_its_place() {
        let check = |spec: &Value, expected: &str| {
            let (_, problems) = read(spec);
            assert!(problems.iter().any(|problem| problem.contains(expected)), "{spec}: {problems:?}");
        };
        check(&json!({}), "spec.listeners: is missing");
        check(&json!({}), "spec.pools: is missing");
        check(&with("routes", json!([{ "name": "a", "pool": "nowhere" }])), "spec.routes[0].targets[0].pool: there is no pool");
        check(&with("routes", json!([{ "name": "a" }])), "one of pool, targets and redirect must be there");
        check(&with("routes", json!([{ "name": "a", "pool": "web", "tries": 99 }])), "spec.routes[0].tries: is 99");
        check(&with("listeners", json!([{ "port": 80 }, { "port": 80 }])), "spec.listeners[1].port: `80` is there twice");
        check(&with("listeners", json!([{ "port": 80, "proxy_protocol": true }])), "trusted_peers");
        check(&with("pools", json!([{ "name": "web", "group": "web", "vms": ["a"], "port": 80 }])), "one of group, labels and vms");
        check(&with("pools", json!([{ "name": "web", "labels": {}, "port": 80 }])), "spec.pools[0].labels: is empty");
        check(
            &with("listeners", json!([{ "port": 443, "protocol": "https" }])),
            "spec.listeners[0].protocol: is `https`, and there is no certificate",
        );
        check(&with("certificates", json!((0..17).map(|n| format!("c{n}")).collect::<Vec<_>>())), "at most 16 are allowed");
        let routes: Vec<Value> = (0..10_000).map(|number| json!({ "name": format!("r{number}"), "pool": "web" })).collect();
        check(&with("routes", json!(routes)), "has 10000 items, at most 200 are allowed");
        let long = "x".repeat(4_000);
        let routes: Vec<Value> =
            (0..40).map(|number| json!({ "name": format!("r{number}"), "path": format!("/{long}"), "pool": "web" })).collect();
        check(&with("routes", json!(routes)), "at most 131072 are allowed");
    }
}
