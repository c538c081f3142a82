//! What is sent to a group, by what proxies have counted.

use std::collections::BTreeMap;

use lightbyte_api::Uid;
use lightbyte_api::wire::Carried;
use lightbyte_plan::load::{self, Counted, Gauge};

use crate::world::{Store, add, at, next_plan, object, world};

const WEB: &str = r#"asked scalegroup/web { "autoscale": { "max": 9, "requests_per_second": 100 }, "template": { "image": "demo" } }"#;
const ASKED: &str = r#"asked loadbalancer/lb { "listeners": [{ "port": 80 }], "pools": [{ "name": "web", "group": "web", "port": 80 }] }"#;
const PROXIES: &str = r#"asked scalegroup/lb-proxy { "replicas": 2, "template": { "image": "proxy", "labels": { "loadbalancer": "lb" } } } owner=loadbalancer/lb"#;

const OTHERS: &str = r#"asked scalegroup/others { "autoscale": { "max": 9, "concurrency": 10 }, "template": { "image": "demo" } }"#;

/// A group of two that scales by requests, its load balancer with two proxies, and a group of one that none of them sends to.
fn store() -> Store {
    let vm = |name: &str, owner: &str, host: u64| {
        let worker = 1 + host % 2;
        format!("vm {name} {owner} on=n{worker} observed=running address=10.77.0.{host}")
    };
    let members = [vm("web-1", "owner=scalegroup/web", 2), vm("web-2", "owner=scalegroup/web", 3)].join("\n");
    let proxies = [1, 2]
        .map(|number| vm(&format!("lb-proxy-{number}"), "owner=scalegroup/lb-proxy told=1", number + 5));
    let other = vm("other", "owner=scalegroup/others", 9);
    let mut store = world(&format!(
        "rack\n{WEB}\n{members}\n{OTHERS}\n{other}\n{ASKED}\n{PROXIES}\n{}",
        proxies.join("\n")
    ));
    next_plan(&mut store, "loadbalancer/lb", 60);
    add(&mut store, &proxies.join("\n"));
    store
}

/// What a gauge reads of a group after each look, which is `SECOND PROXY MEMBER=REQUESTS/IN_FLIGHT…, PROXY …`: requests a
/// second, those in flight, in thousandths, and whether that is all.
fn check(group: &str, looks: &[(&str, (u64, u64, bool))]) {
    let store = store();
    let view = store.view();
    let uid = |name: &str| -> Uid { view.asked(&object(&format!("vm/{name}"))).expect("a VM").meta.uid };
    let group = view.asked(&object(group)).expect("the group").meta.uid;
    let mut gauge = Gauge::default();
    for (look, expect) in looks {
        let (second, said) = look.split_once(' ').unwrap_or((look, ""));
        let mut counted = Counted::default();
        for said in said.split(", ").filter(|said| !said.is_empty()) {
            let (proxy, carried) = said.split_once(' ').unwrap_or((said, ""));
            let carried: BTreeMap<Uid, Carried> = carried
                .split_whitespace()
                .map(|word| {
                    let (member, numbers) = word.split_once('=').expect("MEMBER=NUMBERS");
                    let (requests, in_flight) = numbers.split_once('/').expect("REQUESTS/IN_FLIGHT");
                    let number = |text: &str| text.parse().expect("a number");
                    (uid(member), Carried { requests: number(requests), in_flight: number(in_flight) })
                })
                .collect();
            counted.carried.insert(uid(proxy), carried);
        }
        let now = at(second.parse().expect("a second"));
        gauge.take(&view, now, &counted);
        let mut readings = gauge.loads()[&group].of(lightbyte_api::Span::default(), now).expect("a reading");
        let sent = readings.next().expect("a reading").sent;
        assert_eq!((sent.requests, sent.in_flight, sent.is_all), *expect, "{look}");
    }
}

#[test]
fn proxies_that_may_send_to_a_group_which_scales_by_it_are_asked() {
    let mut store = store();
    let wanted = |store: &Store| load::wanted_proxies(&store.view()).len();
    assert_eq!(wanted(&store), 2);
    add(
        &mut store,
        r#"asked scalegroup/web { "autoscale": { "max": 9, "cpu": "50%" }, "template": { "image": "demo" } }"#,
    );
    assert_eq!(wanted(&store), 0);
}

#[test]
fn requests_of_all_proxies_are_added_up() {
    check(
        "scalegroup/web",
        &[
            // The first look shows what is under way, and no rate.
            ("15 lb-proxy-1 web-1=100/2 web-2=50/1, lb-proxy-2 web-1=7/0", (0, 3_000, false)),
            ("30 lb-proxy-1 web-1=250/1 web-2=200/0, lb-proxy-2 web-1=157/4", (30_000, 5_000, true)),
            // One that it knows since, and one that it knows anew.
            ("45 lb-proxy-1 web-1=30/0 web-2=200/0, lb-proxy-2 web-1=157/0 web-2=15/0", (3_000, 0, true)),
            // A clock that was set back.
            ("40 lb-proxy-1 web-1=30/0 web-2=200/0, lb-proxy-2 web-1=157/0 web-2=15/0", (0, 0, true)),
        ],
    );
}

#[test]
fn a_proxy_that_is_silent_may_send_any_number() {
    check(
        "scalegroup/web",
        &[
            ("15 lb-proxy-1 web-1=0/0, lb-proxy-2 web-1=0/0", (0, 0, false)),
            ("30 lb-proxy-1 web-1=30/0", (2_000, 0, false)),
            // Its rate is that of the time since it last answered.
            ("45 lb-proxy-1 web-1=30/0, lb-proxy-2 web-1=60/0", (2_000, 0, true)),
            ("60", (0, 0, false)),
            // Longer ago than anything is known of.
            ("120 lb-proxy-1 web-1=90/0, lb-proxy-2 web-1=90/0", (0, 0, false)),
        ],
    );
}

#[test]
fn nobody_is_heard_of_whom_he_does_not_front() {
    check(
        "scalegroup/web",
        &[
            ("15 lb-proxy-1 other=0/0, lb-proxy-2, other web-1=0/0", (0, 0, false)),
            ("30 lb-proxy-1 other=9000/9, lb-proxy-2, other web-1=9000/9", (0, 0, true)),
            // Any number is no reason to fall over.
            (
                "45 lb-proxy-1 web-1=18446744073709551615/18446744073709551615, lb-proxy-2 web-1=18446744073709551615/0",
                (u64::MAX, u64::MAX, true),
            ),
        ],
    );
    check(
        "scalegroup/others",
        &[
            ("15 lb-proxy-1 other=0/0, lb-proxy-2 other=0/0", (0, 0, false)),
            ("30 lb-proxy-1 other=9000/9, lb-proxy-2 other=9000/9", (0, 0, false)),
        ],
    );
}
