//! Secrets: which versions of a certificate are kept, when its end is told, and how load balancers show it.

use insta::assert_snapshot;
use lightbyte_api::topology::{SecretText, Topology};
use lightbyte_plan::agent::News;
use lightbyte_plan::delivery;

use crate::world::{Store, add, next_plan, worker_id, world};

const LASTING: &str = include_str!("../../../../sim/certificates/lasting.pem");
const OTHER: &str = include_str!("../../../../sim/certificates/other.pem");
const EXPIRED: &str = include_str!("../../../../sim/certificates/expired.pem");

/// A secret as it is asked for in a generation.
fn secret(generation: u64, chain: &str, key: &str) -> String {
    let spec = serde_json::json!({ "chain": chain, "key": key });
    format!("asked secret/shop {spec} generation={generation}")
}

const BALANCER: &str = r#"asked loadbalancer/lb { "listeners": [{ "port": 443, "protocol": "https" }], "certificates": ["shop"], "pools": [{ "name": "web", "vms": ["a"], "port": 80 }] }"#;
const GROUP: &str = r#"asked scalegroup/lb-proxy { "replicas": 1, "template": { "image": "proxy", "labels": { "loadbalancer": "lb" } } } owner=loadbalancer/lb"#;

fn proxy(said: &str) -> String {
    format!("vm lb-proxy-1 owner=scalegroup/lb-proxy on=n1 observed=running address=10.77.0.6 {said}")
}

/// A load balancer that shows the first version of its certificate.
fn shown() -> Store {
    let certificate = secret(1, LASTING, "sealed:one");
    let mut store = world(&format!(
        "rack\nvm a on=n1 observed=running\n{certificate}\n{BALANCER}\n{GROUP}\n{}",
        proxy("")
    ));
    next_plan(&mut store, "secret/shop", 60);
    next_plan(&mut store, "loadbalancer/lb", 60);
    add(&mut store, &proxy("told=1"));
    store
}

/// What the proxy of `n1` is told, with the keys that `open` gives.
fn told(store: &Store, open: delivery::Open<'_>) -> Option<Topology> {
    let inventory =
        delivery::inventory(&store.view(), worker_id("n1"), open).expect("everything can be read");
    let News::Inventory(items) = inventory.news else { panic!("an inventory") };
    let told = items.into_iter().find_map(|item| item.told)?;
    Some(serde_json::from_str(told.document.reveal()).expect("a topology"))
}

#[test]
fn a_version_is_kept_for_as_long_as_somebody_shows_it() {
    let mut store = shown();
    add(&mut store, &secret(2, OTHER, "sealed:two"));
    assert_snapshot!(next_plan(&mut store, "secret/shop", 61), @"put decided secret/shop versions 1 of lasting.example 2 of other.example");
    // One proxy tries it: both are told to somebody.
    assert!(next_plan(&mut store, "loadbalancer/lb", 61).contains("tries"));
    assert_snapshot!(next_plan(&mut store, "secret/shop", 61), @"nothing");
    add(&mut store, &proxy("told=2"));
    next_plan(&mut store, "loadbalancer/lb", 62);
    next_plan(&mut store, "loadbalancer/lb", 65);
    assert_snapshot!(next_plan(&mut store, "secret/shop", 65), @"put decided secret/shop versions 2 of other.example");
}

#[test]
fn its_end_waits_for_who_names_it_and_for_who_shows_it() {
    let mut store = shown();
    add(&mut store, &format!("{} deleting", secret(1, LASTING, "sealed:one")));
    assert_snapshot!(next_plan(&mut store, "secret/shop", 61), @"put decided secret/shop versions 1 of lasting.example, since 61 waits: loadbalancer/lb still uses it");
    // The load balancer goes on with it.
    assert_snapshot!(next_plan(&mut store, "loadbalancer/lb", 61), @"put decided loadbalancer/lb revision 1, accepted 1 web=[vm/a], vm/a at 10.77.0.2, proxy vm/lb-proxy-1 from 1, since 60 waits: its proxies, scalegroup/lb-proxy, to be available, since 61 waits: secret/shop does not exist, or is being deleted");
    assert!(told(&store, &delivery::unopened).is_some());
    add(
        &mut store,
        &BALANCER.replace(r#", "protocol": "https""#, "").replace(r#""certificates": ["shop"], "#, ""),
    );
    assert_snapshot!(next_plan(&mut store, "secret/shop", 62), @"nothing");
    next_plan(&mut store, "loadbalancer/lb", 62);
    add(&mut store, &proxy("told=2"));
    next_plan(&mut store, "loadbalancer/lb", 63);
    next_plan(&mut store, "loadbalancer/lb", 66);
    assert_snapshot!(next_plan(&mut store, "secret/shop", 66), @"
    delete asked secret/shop
    delete decided secret/shop
    ");
}

#[test]
fn what_is_over_or_unusable_is_told() {
    let mut store = world(&secret(1, EXPIRED, "sealed:one"));
    assert_snapshot!(next_plan(&mut store, "secret/shop", 60), @"put decided secret/shop versions 1 of expired.example, since 60 waits: another certificate: this one was good till 1970-01-01T00:08:20Z");
    let mut store = world(&secret(1, "nonsense", "sealed:one"));
    assert_snapshot!(next_plan(&mut store, "secret/shop", 60), @"put decided secret/shop versions , since 60 waits: another certificate: its chain has 0 certificates, not 1 to 16");
}

#[test]
fn only_proxies_of_who_names_it_are_told_the_key_and_only_where_it_can_be_opened() {
    let store = shown();
    let open = |_: &lightbyte_api::Name, sealed: &str| {
        (sealed == "sealed:one").then(|| SecretText::new("the key".to_owned()))
    };
    let topology = told(&store, &open).expect("is told");
    assert_eq!(topology.check(), Ok(()));
    let [certificate] = topology.certificates.as_slice() else { panic!("one certificate") };
    assert_eq!((certificate.key_pem.reveal(), certificate.chain_pem.as_str()), ("the key", LASTING));
    assert_eq!(certificate.server_names, ["lasting.example"]);
    // A proxy without its certificates would close its port: better nothing new.
    assert_eq!(told(&store, &|_, _| None), None);
}

#[test]
fn what_a_certificate_could_not_be_read_for_is_told_when_it_can() {
    let view = shown().view();
    let key = |text: &str| text.parse().expect("a key");
    let secret = key("decided/secret/shop");
    assert_eq!(delivery::concerned(&view, &secret), [worker_id("n1")]);
    assert_eq!(delivery::topologies(&view, worker_id("n1"), &secret, &delivery::unopened).len(), 1);
    // Whatever of it changes at once, it is told once.
    let keys = [key("asked/secret/shop"), secret, key("decided/loadbalancer/lb")];
    assert_eq!(delivery::changes(&view, worker_id("n1"), &keys, &delivery::unopened).count(), 1);
    assert!(delivery::concerned(&view, &key("decided/secret/other")).is_empty());
}
