//! Certificates that are ordered: when, when the authority may look, and what becomes of what it says.

use insta::assert_snapshot;
use lightbyte_api::Span;
use lightbyte_api::kinds::secret::{Account, Acme, DIRECTORY_DEFAULT, Order, Pair, PrivateKey, Proof, Text};
use lightbyte_api::topology::Challenge;
use lightbyte_plan::forecast::{BootEstimate, Context, end_of};
use lightbyte_plan::planner::secret::acme::{ANSWERED_WITHIN, News, Step, next_step};
use lightbyte_plan::zone::{compose, concerns};

use crate::world::{Store, add, at, next_plan, object, plan_with_news, world};

const LASTING: &str = include_str!("../../../../sim/certificates/lasting.pem");
const EXPIRED: &str = include_str!("../../../../sim/certificates/expired.pem");

const SECRET: &str = r#"asked secret/shop { "acme": { "names": ["a.example"] } }"#;
const BALANCER: &str = r#"asked loadbalancer/lb { "listeners": [{ "port": 443, "protocol": "https" }, { "port": 80 }], "certificates": ["shop"], "pools": [{ "name": "web", "vms": ["a"], "port": 80 }] }"#;
const GROUP: &str = r#"asked scalegroup/lb-proxy { "replicas": 2, "template": { "image": "proxy", "labels": { "loadbalancer": "lb" } } } owner=loadbalancer/lb"#;

fn proxy(number: u32, said: &str) -> String {
    format!(
        "vm lb-proxy-{number} owner=scalegroup/lb-proxy on=n1 observed=running address=10.77.0.{} {said}",
        5 + number
    )
}

fn acme(name: &str) -> Acme {
    Acme {
        names: vec![name.to_owned()],
        challenge: Proof::Http,
        directory: DIRECTORY_DEFAULT.to_owned(),
        contact: Vec::new(),
    }
}

fn account() -> Account {
    Account { directory: DIRECTORY_DEFAULT.to_owned(), sealed: "sealed:account".to_owned() }
}

/// News that a certificate for a name is ordered.
fn ordered(name: &str, url: &str, seconds: i64) -> News {
    let challenge = Challenge { token: "t".to_owned(), answer: "t.a".to_owned() };
    let order = Order {
        acme: acme(name),
        url: url.to_owned(),
        key: "sealed:key".to_owned(),
        challenges: vec![challenge],
        texts: Vec::new(),
        since: at(seconds),
    };
    News::Ordered { account: account(), order }
}

fn issued(url: &str, chain: &str) -> News {
    let pair = Pair { chain: chain.to_owned(), key: PrivateKey::Sealed("sealed:key".to_owned()) };
    News::Issued { url: url.to_owned(), pair }
}

fn failed(url: Option<&str>, seconds: i64) -> News {
    let url = url.map(str::to_owned);
    News::Failed { acme: acme("a.example"), url, because: "no".to_owned(), at: at(seconds), account: None }
}

/// What is to be done next.
fn step(store: &Store, seconds: i64) -> &'static str {
    match next_step(&store.view(), &object("secret/shop"), None, at(seconds)) {
        Step::Rest => "rest",
        Step::Order { account: None, .. } => "order",
        Step::Order { account: Some(_), .. } => "order with the account",
        Step::Answer { .. } => "answer",
    }
}

/// A load balancer with two proxies that is to show a certificate which nobody has.
fn begun() -> Store {
    let mut store = world(&format!(
        "rack\nvm a on=n1 observed=running\n{SECRET}\n{BALANCER}\n{GROUP}\n{}\n{}",
        proxy(1, ""),
        proxy(2, "")
    ));
    next_plan(&mut store, "secret/shop", 60);
    next_plan(&mut store, "loadbalancer/lb", 60);
    store
}

#[test]
fn it_is_ordered_answered_for_by_every_proxy_and_shown() {
    let mut store = begun();
    assert_eq!(step(&store, 60), "order");
    assert_snapshot!(plan_with_news(&mut store, "secret/shop", 61, ordered("a.example", "o1", 61)), @"put decided secret/shop versions , ordered o1, since 60 waits: a certificate from https://acme-v02.api.letsencrypt.org/directory");
    assert_eq!(step(&store, 61), "rest", "no proxy knows what to answer");
    assert_snapshot!(next_plan(&mut store, "loadbalancer/lb", 61), @"put decided loadbalancer/lb revision 2, accepted 1 web=[vm/a], vm/a at 10.77.0.2, proxy vm/lb-proxy-1 from 1, proxy vm/lb-proxy-2 from 1, answers t.a for t, since 60 waits: secret/shop is not made yet, since 60 waits: its proxies, scalegroup/lb-proxy, to be available");
    add(&mut store, &proxy(1, "told=2"));
    assert_eq!(step(&store, 62), "rest", "one proxy would not answer");
    let anyway = 61 + i64::try_from(ANSWERED_WITHIN.millis() / 1_000).expect("fits");
    assert_eq!((step(&store, anyway - 1), step(&store, anyway)), ("rest", "answer"));
    add(&mut store, &proxy(2, "told=2"));
    assert_eq!(step(&store, 62), "answer");
    assert_snapshot!(plan_with_news(&mut store, "secret/shop", 63, issued("o1", LASTING)), @"put decided secret/shop versions 1 of lasting.example");
    assert_eq!(step(&store, 63), "rest");
    assert_snapshot!(next_plan(&mut store, "loadbalancer/lb", 63), @"put decided loadbalancer/lb revision 3, accepted 1 web=[vm/a], tried 2 web=[vm/a], vm/a at 10.77.0.2, proxy vm/lb-proxy-1 from 1, proxy vm/lb-proxy-2 from 1, vm/lb-proxy-1 tries 3, since 63 waits: vm/lb-proxy-1 to try what is asked before the others, since 63 waits: vm/lb-proxy-1 to take what it was told last");
}

#[test]
fn a_failure_is_followed_by_a_pause_that_doubles() {
    let mut store = begun();
    assert_snapshot!(plan_with_news(&mut store, "secret/shop", 100, failed(None, 100)), @"put decided secret/shop versions , failed 1 times, since 100 waits: a certificate, which was not given: no");
    assert_eq!((step(&store, 159), step(&store, 160)), ("rest", "order"));
    assert_snapshot!(plan_with_news(&mut store, "secret/shop", 160, failed(None, 160)), @"put decided secret/shop versions , failed 2 times, since 160 waits: a certificate, which was not given: no");
    assert_eq!((step(&store, 279), step(&store, 280)), ("rest", "order"));
    // The same is told once.
    assert_snapshot!(plan_with_news(&mut store, "secret/shop", 200, failed(None, 160)), @"nothing");
    plan_with_news(&mut store, "secret/shop", 280, ordered("a.example", "o1", 280));
    assert_snapshot!(plan_with_news(&mut store, "secret/shop", 281, failed(Some("o0"), 281)), @"nothing");
    assert_snapshot!(plan_with_news(&mut store, "secret/shop", 281, failed(Some("o1"), 281)), @"put decided secret/shop versions , failed 3 times, since 281 waits: a certificate, which was not given: no");
    assert_eq!((step(&store, 520), step(&store, 521)), ("rest", "order with the account"));
}

#[test]
fn another_wish_ends_an_order_and_forgets_a_failure() {
    let mut store = begun();
    plan_with_news(&mut store, "secret/shop", 61, ordered("a.example", "o1", 61));
    add(&mut store, r#"asked secret/shop { "acme": { "names": ["b.example"] } } generation=2"#);
    assert_snapshot!(plan_with_news(&mut store, "secret/shop", 62, ordered("a.example", "o1", 61)), @"put decided secret/shop versions , since 60 waits: a certificate from https://acme-v02.api.letsencrypt.org/directory");
    assert_eq!(step(&store, 62), "order with the account");
    let given = serde_json::json!({ "chain": LASTING, "key": "sealed:one" });
    add(&mut store, &format!("asked secret/shop {given} generation=3"));
    assert_snapshot!(next_plan(&mut store, "secret/shop", 63), @"put decided secret/shop versions 3 of lasting.example");
    assert_eq!(step(&store, 63), "rest");
}

#[test]
fn a_certificate_that_comes_at_its_end_is_not_ordered_at_once() {
    let mut store = begun();
    plan_with_news(&mut store, "secret/shop", 61, ordered("a.example", "o1", 61));
    assert_snapshot!(plan_with_news(&mut store, "secret/shop", 62, issued("o1", EXPIRED)), @"put decided secret/shop versions 1 of expired.example, since 62 waits: another certificate: this one was good till 1970-01-01T00:08:20Z");
    assert_eq!((step(&store, 62 + 3_599), step(&store, 62 + 3_600)), ("rest", "order with the account"));
    // The next has another number: somebody may show the one before.
    plan_with_news(&mut store, "secret/shop", 3_662, ordered("a.example", "o2", 3_662));
    assert_snapshot!(plan_with_news(&mut store, "secret/shop", 3_663, issued("o2", LASTING)), @"put decided secret/shop versions 2 of lasting.example");
    assert_eq!(step(&store, 3_663), "rest");
}

#[test]
fn where_no_load_balancer_names_it_nothing_is_ordered() {
    let mut store = world(&format!("rack\n{SECRET}"));
    assert_eq!(step(&store, 60), "rest");
    assert_snapshot!(next_plan(&mut store, "secret/shop", 60), @"put decided secret/shop versions , since 60 waits: a certificate from https://acme-v02.api.letsencrypt.org/directory");
    assert_eq!(step(&store, 60), "rest");
}

#[test]
fn what_is_shown_by_texts_needs_no_load_balancer_and_time_for_resolvers() {
    let mut store = world(
        "rack\nasked secret/shop { \"acme\": { \"names\": [\"*.lab.example\"], \"challenge\": \"dns\" } }",
    );
    next_plan(&mut store, "secret/shop", 60);
    assert_eq!(step(&store, 60), "order");
    let text = |name: &str| Text { name: name.to_owned(), value: format!("of {name}") };
    let acme = Acme { challenge: Proof::Dns, ..acme("*.lab.example") };
    let texts = vec![
        text("_acme-challenge.lab.example"),
        text("_acme-challenge.lab.example.elsewhere"),
        text("_acme-challenge.slab.example"),
        text(&format!("_acme-challenge.{}lab.example", "a.".repeat(120))),
    ];
    let order = Order {
        acme,
        url: "o1".to_owned(),
        key: "sealed:key".to_owned(),
        challenges: Vec::new(),
        texts,
        since: at(61),
    };
    plan_with_news(&mut store, "secret/shop", 61, News::Ordered { account: account(), order });
    let zone = compose(&store.view(), "lab.example").zone;
    assert!(zone.check().is_empty(), "resolvers take it");
    let texts = zone.names.iter().filter(|(_, records)| !records.txt.is_empty());
    let texts: Vec<(&str, &str)> =
        texts.map(|(name, records)| (name.as_str(), records.txt.values[0].as_str())).collect();
    assert_eq!(texts, [("_acme-challenge", "of _acme-challenge.lab.example")]);
    assert_eq!((step(&store, 70), step(&store, 71)), ("rest", "answer"));
    plan_with_news(&mut store, "secret/shop", 72, issued("o1", LASTING));
    assert!(compose(&store.view(), "lab.example").zone.names.values().all(|records| records.txt.is_empty()));
    assert!(concerns(&"decided/secret/shop".parse().expect("a key")), "the zone is looked at again");
}

#[test]
fn an_account_is_kept_though_its_first_order_failed() {
    let mut store = begun();
    let News::Failed { acme, url, because, at, .. } = failed(None, 100) else { panic!("is one") };
    let news = News::Failed { acme, url, because, at, account: Some(account()) };
    plan_with_news(&mut store, "secret/shop", 100, news);
    assert_eq!(step(&store, 160), "order with the account");
}

#[test]
fn what_comes_and_is_no_certificate_is_a_failure() {
    let mut store = begun();
    plan_with_news(&mut store, "secret/shop", 61, ordered("a.example", "o1", 61));
    assert_snapshot!(plan_with_news(&mut store, "secret/shop", 62, issued("o1", "nothing")), @"put decided secret/shop versions , failed 1 times, since 62 waits: a certificate, which was not given: its chain has 0 certificates, not 1 to 16");
    assert_eq!((step(&store, 121), step(&store, 122)), ("rest", "order with the account"));
}

#[test]
fn an_order_that_nobody_answers_for_is_given_up() {
    let mut store = begun();
    plan_with_news(&mut store, "secret/shop", 61, ordered("a.example", "o1", 61));
    assert_snapshot!(next_plan(&mut store, "secret/shop", 61 + 3_599), @"nothing");
    assert_snapshot!(next_plan(&mut store, "secret/shop", 61 + 3_600), @"put decided secret/shop versions , failed 1 times, since 3661 waits: a certificate, which was not given: nobody has answered the authority in time");
    // What was told of it is no news any more.
    let late = plan_with_news(&mut store, "secret/shop", 61 + 3_601, ordered("a.example", "o1", 61));
    assert_snapshot!(late, @"nothing");
    assert_eq!(step(&store, 61 + 3_660), "order with the account");
}

#[test]
fn a_token_that_comes_twice_is_answered_once() {
    let mut store = begun();
    add(&mut store, &SECRET.replace("shop", "other"));
    add(&mut store, &BALANCER.replace(r#"["shop"]"#, r#"["shop", "other"]"#));
    next_plan(&mut store, "secret/other", 60);
    for name in ["shop", "other"] {
        plan_with_news(&mut store, &format!("secret/{name}"), 61, ordered("a.example", "o1", 61));
    }
    let told = next_plan(&mut store, "loadbalancer/lb", 62);
    assert_eq!(told.matches("answers t.a for t").count(), 1, "{told}");
}

#[test]
fn a_secret_that_is_being_deleted_orders_nothing_more() {
    let mut store = begun();
    plan_with_news(&mut store, "secret/shop", 61, ordered("a.example", "o1", 61));
    add(&mut store, &format!("{SECRET} deleting"));
    assert_snapshot!(next_plan(&mut store, "secret/shop", 62), @"put decided secret/shop versions , since 62 waits: loadbalancer/lb still uses it");
    let late = plan_with_news(&mut store, "secret/shop", 63, issued("o1", LASTING));
    assert_snapshot!(late, @"nothing");
}

#[test]
fn a_forecast_does_not_wait_for_an_authority() {
    let mut store = begun();
    plan_with_news(&mut store, "secret/shop", 61, ordered("a.example", "o1", 61));
    let boot = BootEstimate { lasts: Span::from_secs(10), measured: 0 };
    let context = Context { now: at(62), fresh: 1 << 80, boot };
    let end = end_of(&store.view(), &[], &context).expect("nothing that could be refused");
    let shop = object("secret/shop");
    assert_eq!(end.decided(&shop), store.view().decided(&shop), "the order is neither given up nor answered");
}
