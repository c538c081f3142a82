use serde_json::{Value, json};

use super::*;
use crate::topology::{Sealed, SecretText};

/// A topology with everything in it, good as it stands.
fn good() -> Value {
    json!({
        "format": 1, "revision": 7,
        "listeners": [
            {"name": "plain", "port": 80, "protocol": "http", "redirect_to_https": 443},
            {"name": "tls", "address": "::", "port": 443, "protocol": "https", "proxy_protocol": "required"},
        ],
        "certificates": [{"server_names": ["a.example", "*.b.example"], "chain_pem": "x", "key_pem": "y"}],
        "routes": [{
            "name": "web", "hosts": ["a.example", "*.b.example"], "path": {"prefix": "/api"}, "methods": ["GET"],
            "rewrite_prefix": "/", "request_headers": {"set": {"x-a": "b"}, "remove": ["x-c"]},
            "targets": [{"pool": "web", "weight": 9}, {"pool": "canary"}],
            "timeouts": {"read_ms": 5000}, "tries_max": 2, "sticky": {"cookie": "lb"},
            "rate_limit": {"per_second": 5, "burst": 10, "scope": "source"},
        }, {"name": "gone", "redirect": {"status": 308, "host": "c.example:8443"}}],
        "pools": [{
            "name": "web", "balance": {"hash": {"header": "x-user"}}, "protocol": "h1",
            "backends": [{"uid": "u1", "address": "10.0.0.1", "port": 80}],
            "check": {"probe": {"http": "/healthz"}, "every_ms": 1000, "timeout_ms": 500, "healthy_after": 2, "unhealthy_after": 3},
            "ejection": {"failures": 5, "first_ms": 1000, "longest_ms": 60000, "ejected_percent_max": 50},
        }, {"name": "canary"}],
        "trusted_peers": [{"address": "10.0.0.0", "prefix_bits": 8}],
    })
}

#[test]
fn a_good_topology_passes_and_comes_back_as_it_was() {
    let topology: Topology = serde_json::from_value(good()).expect("reads");
    assert_eq!(topology.check(), Ok(()));
    let text = serde_json::to_string(&topology).expect("writes");
    assert_eq!(serde_json::from_str::<Topology>(&text).expect("reads"), topology);
}

#[test]
fn what_is_wrong_is_said_with_its_place() {
    let long = "x".repeat(5_000);
    let table = [
        ("/format", json!(2), "format: is 2, this reader knows 1 only"),
        ("/listeners/0/port", json!(0), "listeners[0].port: is 0, which names no port"),
        ("/listeners/0/port", json!(443), "listeners[1].port: `443` is there twice"),
        ("/listeners/0/name", json!("tls"), "listeners[1].name: `tls` is there twice"),
        ("/certificates", json!([]), "listeners[1].protocol: is `https`, and there is no certificate"),
        (
            "/certificates/0/server_names",
            json!([]),
            "certificates[0].server_names: is empty, so nobody is shown this certificate",
        ),
        (
            "/routes/0/hosts/0",
            json!("A.example"),
            "routes[0].hosts[0]: `A.example` is neither a host name in lower case nor `*.` and one",
        ),
        (
            "/routes/0/hosts/0",
            json!("*"),
            "routes[0].hosts[0]: `*` is neither a host name in lower case nor `*.` and one",
        ),
        (
            "/routes/0/path/prefix",
            json!("api"),
            "routes[0].path: is not a path that begins with `/` and has visible ASCII characters only",
        ),
        ("/routes/0/path/prefix", json!(format!("/{long}")), "routes[0].path: has 5001 bytes; at most 4096"),
        ("/routes/0/methods/0", json!("GE T"), "routes[0].methods[0]: is not a token of HTTP"),
        (
            "/routes/0/request_headers/remove/0",
            json!("Host"),
            "routes[0].request_headers.Host: is the proxy's own affair",
        ),
        (
            "/routes/0/request_headers/set/x-a",
            json!("b\r\nc: d"),
            "routes[0].request_headers.set.x-a: holds a control character",
        ),
        ("/routes/0/targets/0/pool", json!("none"), "routes[0].targets[0].pool: there is no pool `none`"),
        (
            "/routes/0/targets/0/weight",
            json!(2_000_000),
            "routes[0].targets[0].weight: is 2000000, not 0 to 1000000",
        ),
        ("/routes/0/tries_max", json!(0), "routes[0].tries_max: is 0, not 1 to 10"),
        ("/routes/0/timeouts/read_ms", json!(0), "routes[0].timeouts.read_ms: is 0, not 1 to 86400000"),
        ("/routes/0/rate_limit/burst", json!(0), "routes[0].rate_limit.burst: is 0, not 1 to 10000000"),
        (
            "/routes/1/redirect/status",
            json!(200),
            "routes[1].redirect.status: is 200, which redirects nobody",
        ),
        (
            "/routes/1/redirect/host",
            json!(null),
            "routes[1].redirect: changes nothing, so it would send clients round in circles",
        ),
        (
            "/pools/0/backends/0/uid",
            json!("a b"),
            "pools[0].backends[0].uid: is not 1 to 128 letters, digits, `-`, `_`, `.`, `/`",
        ),
        (
            "/pools/0/check/probe/http",
            json!("x"),
            "pools[0].check.probe: is not a path that begins with `/` and has visible ASCII characters only",
        ),
        (
            "/pools/0/protocol",
            json!("h2"),
            "pools[0].check.probe: speaks HTTP/1, and backends of `h2` do not: use `tcp`",
        ),
        (
            "/pools/0/ejection/ejected_percent_max",
            json!(101),
            "pools[0].ejection.ejected_percent_max: is 101, not 0 to 100",
        ),
        (
            "/trusted_peers",
            json!([]),
            "listeners[1].proxy_protocol: is `required`, and there are no `trusted_peers` who could write a header",
        ),
        ("/trusted_peers/0/prefix_bits", json!(33), "trusted_peers[0].prefix_bits: is 33, not 0 to 32"),
    ];
    for (pointer, value, expected) in table {
        let mut document = good();
        *document.pointer_mut(pointer).expect("is there") = value;
        let topology: Topology = serde_json::from_value(document).expect("reads");
        let said = topology.check().expect_err(pointer).to_string();
        assert_eq!(said, expected, "{pointer}");
    }
}

#[test]
fn networks_contain_what_begins_alike() {
    let table = [
        ("10.0.0.0", 8, "10.255.1.2", true),
        ("10.0.0.0", 8, "11.0.0.0", false),
        ("0.0.0.0", 0, "1.2.3.4", true),
        ("1.2.3.4", 32, "1.2.3.5", false),
        ("fd00::", 8, "fd12::1", true),
        ("::", 0, "1.2.3.4", false),
    ];
    for (address, prefix_bits, other, expected) in table {
        let network = Network { address: address.parse().expect("an address"), prefix_bits };
        assert_eq!(
            network.contains(other.parse().expect("an address")),
            expected,
            "{address}/{prefix_bits} {other}"
        );
    }
}

#[test]
fn a_key_is_not_printed() {
    assert_eq!(format!("{:?}", SecretText::new("key".to_owned())), "(3 secret bytes)");
}

#[test]
fn a_sealed_text_stays_as_it_was_written() {
    let text = r#"{"checksum":"c","topology":{ "format":1,  "unknown": [1, 2] }}"#;
    let sealed: Sealed = serde_json::from_str(text).expect("reads");
    assert_eq!(sealed.topology.get(), r#"{ "format":1,  "unknown": [1, 2] }"#);
}
