//! Load balancers: who gets requests, how a change comes to proxies, and how somebody leaves.

use std::net::Ipv4Addr;

use insta::assert_snapshot;

use crate::world::{Store, add, apply_next, name, next_plan, object, world};

const ASKED: &str = r#"asked loadbalancer/lb { "listeners": [{ "port": 80 }], "pools": [{ "name": "web", "vms": ["a", "b"], "port": 80 }] }"#;
const OTHER: &str = r#"asked loadbalancer/lb { "listeners": [{ "port": 81 }], "pools": [{ "name": "web", "vms": ["a", "b"], "port": 80 }] }"#;
const GROUP: &str = r#"asked scalegroup/lb-proxy { "replicas": 2, "template": { "image": "proxy", "labels": { "loadbalancer": "lb" } } } owner=loadbalancer/lb"#;
const A: &str = "vm a on=n1 observed=running";
const B: &str = "vm b on=n2 observed=running address=10.77.0.3";

/// A load balancer with two proxies that have been told of `a` and `b`.
fn at_work() -> Store {
    let mut store = world(&format!("rack\n{A}\n{B}\n{ASKED}\n{GROUP}\n{}\n{}", proxy(1, ""), proxy(2, "")));
    next_plan(&mut store, "loadbalancer/lb", 60);
    add(&mut store, &format!("{}\n{}", proxy(1, "told=1"), proxy(2, "told=1")));
    store
}

/// A proxy with what its worker says of it.
fn proxy(number: u64, said: &str) -> String {
    let address = number + 5;
    format!(
        "vm lb-proxy-{number} owner=scalegroup/lb-proxy on=n{number} observed=running address=10.77.0.{address} {said}"
    )
}

/// The first line that the load balancer's planner decides.
fn decide(store: &mut Store, seconds: i64) -> String {
    next_plan(store, "loadbalancer/lb", seconds)
}

#[test]
fn its_group_and_all_who_serve_are_decided_at_once() {
    let mut store = world(&format!("rack\n{A}\nvm b on=n2 observed=starting address=10.77.0.3\n{ASKED}"));
    assert_snapshot!(decide(&mut store, 60), @"
    put asked scalegroup/lb-proxy generation 1 2 of proxy of loadbalancer/lb
    put decided loadbalancer/lb revision 1, accepted 1 web=[vm/a], vm/a at 10.77.0.2, since 60 waits: its proxies, scalegroup/lb-proxy, to be available
    ");
    assert_snapshot!(decide(&mut store, 61), @"nothing");
}

#[test]
fn who_is_to_stop_is_taken_out_first_and_waits_for_every_proxy() {
    let mut store = at_work();
    assert_snapshot!(decide(&mut store, 61), @"put decided loadbalancer/lb revision 1, accepted 1 web=[vm/a vm/b], vm/a at 10.77.0.2, vm/b at 10.77.0.3, proxy vm/lb-proxy-1 from 1, proxy vm/lb-proxy-2 from 1");
    add(&mut store, &format!("{A} deleting"));
    assert_snapshot!(next_plan(&mut store, "vm/a", 62), @"put decided vm/a on n1 v1 root=a-root default=10.77.0.2, since 62 waits: loadbalancer/lb to send it nothing more");
    assert_snapshot!(decide(&mut store, 62), @"put decided loadbalancer/lb revision 2, accepted 1 web=[vm/b], vm/b at 10.77.0.3, vm/a leaving since 2, proxy vm/lb-proxy-1 from 1, proxy vm/lb-proxy-2 from 1, since 62 waits: vm/lb-proxy-1 to take what it was told last, since 62 waits: vm/a does not exist, or is being deleted");
    assert_snapshot!(next_plan(&mut store, "vm/a", 63), @"nothing");
    // One has not got it, the other is still busy.
    add(&mut store, &format!("{}\n{}", proxy(1, "told=2 busy=vm/a"), proxy(2, "told=1")));
    assert!(decide(&mut store, 64).contains("vm/a leaving since 2"));
    add(&mut store, &format!("{}\n{}", proxy(1, "told=2 busy=vm/a"), proxy(2, "told=2")));
    assert!(decide(&mut store, 64).contains("vm/a leaving since 2"));
    add(&mut store, &format!("{}\n{}", proxy(1, "told=2"), proxy(2, "told=2")));
    assert_snapshot!(decide(&mut store, 65), @"put decided loadbalancer/lb revision 2, accepted 1 web=[vm/b], vm/b at 10.77.0.3, proxy vm/lb-proxy-1 from 1, proxy vm/lb-proxy-2 from 1, since 62 waits: vm/a does not exist, or is being deleted");
    assert_snapshot!(next_plan(&mut store, "vm/a", 65), @"
    put asked volume/a-root generation 1 64MiB of demo v1 of vm/a deleting
    put assigned n1 vm/a removed sequence 2 generation 1, 1 128MiB, volume/a-root, demo v1, 10.77.0.2/24 on br0
    put decided vm/a on n1 v1 root=a-root default=10.77.0.2, since 65 waits: worker `n1` to remove it, since 65 waits: its child volume/a-root to go
    ");
}

#[test]
fn the_time_for_requests_is_bounded_and_the_address_rests_until_no_proxy_knows_it() {
    let mut store = at_work();
    decide(&mut store, 61);
    add(&mut store, &format!("{A} deleting"));
    next_plan(&mut store, "vm/a", 62);
    decide(&mut store, 62);
    add(&mut store, &format!("{}\n{}", proxy(1, "told=2 busy=vm/a"), proxy(2, "told=1")));
    assert_snapshot!(decide(&mut store, 92), @"put decided loadbalancer/lb revision 2, accepted 1 web=[vm/b], vm/b at 10.77.0.3, vm/a leaving since 2 overdue, proxy vm/lb-proxy-1 from 1, proxy vm/lb-proxy-2 from 1, since 92 waits: vm/lb-proxy-2 to take what it was told last, since 62 waits: vm/a does not exist, or is being deleted");
    assert_snapshot!(next_plan(&mut store, "vm/a", 92), @"
    put asked volume/a-root generation 1 64MiB of demo v1 of vm/a deleting
    put assigned n1 vm/a removed sequence 2 generation 1, 1 128MiB, volume/a-root, demo v1, 10.77.0.2/24 on br0
    put decided vm/a on n1 v1 root=a-root default=10.77.0.2, since 92 waits: worker `n1` to remove it, since 92 waits: its child volume/a-root to go
    ");
    // Its worker has nothing of it any more.
    add(
        &mut store,
        "drop observed/{worker/n1}/vm/{vm/a}\ndrop asked/volume/a-root\ndrop decided/volume/a-root",
    );
    assert_snapshot!(next_plan(&mut store, "vm/a", 93), @"
    claim default 10.77.0.2 for loadbalancer/lb
    delete asked vm/a
    delete assigned n1 vm/a
    delete decided vm/a
    ledger n1 4 CPUs 512MiB 4 VMs
    ");
    add(&mut store, &format!("{}\n{}", proxy(1, "told=2"), proxy(2, "told=2")));
    assert_snapshot!(decide(&mut store, 94), @"
    put decided loadbalancer/lb revision 2, accepted 1 web=[vm/b], vm/b at 10.77.0.3, proxy vm/lb-proxy-1 from 1, proxy vm/lb-proxy-2 from 1, since 62 waits: vm/a does not exist, or is being deleted
    release default 10.77.0.2
    ");
}

#[test]
fn an_address_rests_with_a_load_balancer_that_is_asked_what_nobody_can_read() {
    let mut store = at_work();
    decide(&mut store, 61);
    add(&mut store, &format!("{A} deleting"));
    next_plan(&mut store, "vm/a", 62);
    decide(&mut store, 62);
    next_plan(&mut store, "vm/a", 200);
    let gone = "drop observed/{worker/n1}/vm/{vm/a}\ndrop asked/volume/a-root\ndrop decided/volume/a-root";
    add(&mut store, &format!("{gone}\nopaque asked/loadbalancer/lb"));
    apply_next(&mut store, "vm/a", 201).expect("the end of the VM");
    let (view, network) = (store.view(), name("default"));
    let claim = view.address_claim(&network, Ipv4Addr::new(10, 77, 0, 2)).expect("it is held");
    assert_eq!(claim.object, object("loadbalancer/lb"));
}

#[test]
fn a_change_is_tried_by_one_proxy_before_the_others_get_it() {
    let mut store = at_work();
    decide(&mut store, 61);
    add(&mut store, OTHER);
    assert_snapshot!(decide(&mut store, 62), @"put decided loadbalancer/lb revision 2, accepted 1 web=[vm/a vm/b], tried 2 web=[vm/a vm/b], vm/a at 10.77.0.2, vm/b at 10.77.0.3, proxy vm/lb-proxy-1 from 1, proxy vm/lb-proxy-2 from 1, vm/lb-proxy-1 tries 2, since 62 waits: vm/lb-proxy-1 to try what is asked before the others, since 62 waits: vm/lb-proxy-1 to take what it was told last");
    add(&mut store, &format!("{}\n{}", proxy(1, "told=2"), proxy(2, "told=2")));
    assert_snapshot!(decide(&mut store, 63), @"put decided loadbalancer/lb revision 2, accepted 1 web=[vm/a vm/b], tried 2 web=[vm/a vm/b], vm/a at 10.77.0.2, vm/b at 10.77.0.3, proxy vm/lb-proxy-1 from 1, proxy vm/lb-proxy-2 from 1, vm/lb-proxy-1 tries 2, since 62 waits: vm/lb-proxy-1 to try what is asked before the others");
    assert_snapshot!(decide(&mut store, 64), @"nothing");
    assert_snapshot!(decide(&mut store, 65), @"put decided loadbalancer/lb revision 3, accepted 2 web=[vm/a vm/b], vm/a at 10.77.0.2, vm/b at 10.77.0.3, proxy vm/lb-proxy-1 from 1, proxy vm/lb-proxy-2 from 1, since 65 waits: vm/lb-proxy-1 to take what it was told last");
}

#[test]
fn what_a_proxy_refuses_is_taken_back_and_not_tried_again() {
    let check = |said: &str, seconds: i64| {
        let mut store = at_work();
        decide(&mut store, 61);
        add(&mut store, OTHER);
        decide(&mut store, 62);
        add(&mut store, &format!("{}\n{}", proxy(1, said), proxy(2, said)));
        format!("{}\nlater: {}", decide(&mut store, seconds), decide(&mut store, seconds + 3_600))
    };
    assert_snapshot!(check("told=1 refuses=2", 63), @"
    put decided loadbalancer/lb revision 3, accepted 1 web=[vm/a vm/b], vm/a at 10.77.0.2, vm/b at 10.77.0.3, proxy vm/lb-proxy-1 from 1, proxy vm/lb-proxy-2 from 1, rejected: it is bad, since 63 waits: one proxy has tried what is asked: it is bad, since 62 waits: vm/lb-proxy-1 to take what it was told last
    later: nothing
    ");
    assert_snapshot!(check("told=2 proxy_restarts=1", 63), @"
    put decided loadbalancer/lb revision 3, accepted 1 web=[vm/a vm/b], vm/a at 10.77.0.2, vm/b at 10.77.0.3, proxy vm/lb-proxy-1 from 1, proxy vm/lb-proxy-2 from 1, rejected: the proxy ended while it tried it, since 63 waits: one proxy has tried what is asked: the proxy ended while it tried it, since 62 waits: vm/lb-proxy-1 to take what it was told last
    later: nothing
    ");
    // Nobody has judged it.
    assert_snapshot!(check("told=1", 92), @"
    put decided loadbalancer/lb revision 3, accepted 1 web=[vm/a vm/b], vm/a at 10.77.0.2, vm/b at 10.77.0.3, proxy vm/lb-proxy-1 from 1, proxy vm/lb-proxy-2 from 1, rejected: the proxy that was to try it did not take it in time, since 92 waits: one proxy has tried what is asked: the proxy that was to try it did not take it in time, since 62 waits: vm/lb-proxy-1 to take what it was told last
    later: put decided loadbalancer/lb revision 4, accepted 1 web=[vm/a vm/b], tried 2 web=[vm/a vm/b], vm/a at 10.77.0.2, vm/b at 10.77.0.3, proxy vm/lb-proxy-1 from 1, proxy vm/lb-proxy-2 from 1, vm/lb-proxy-1 tries 4, since 3692 waits: vm/lb-proxy-1 to try what is asked before the others, since 62 waits: vm/lb-proxy-1 to take what it was told last
    ");
}

const WITH_ADDRESS: &str = r#"asked loadbalancer/lb { "virtual_address": "10.77.0.9", "listeners": [{ "port": 80 }], "pools": [{ "name": "web", "vms": ["a"], "port": 80 }] }"#;

/// A load balancer with two proxies, of which the second has been given its address.
fn with_address() -> Store {
    let proxies = format!("{}\n{}", proxy(1, "told=1"), proxy(2, "told=1"));
    let mut store = world(&format!("rack\n{A}\n{WITH_ADDRESS}\n{GROUP}\n{proxies}"));
    decide(&mut store, 60);
    store
}

/// What of the decision is about the address.
fn held(store: &mut Store, seconds: i64) -> String {
    let decided = decide(store, seconds);
    let parts = decided.lines().flat_map(|line| line.split(", "));
    let about = parts.filter(|part| part.contains("10.77.0.9") || part.contains("virtual address"));
    about.collect::<Vec<_>>().join("; ")
}

#[test]
fn a_virtual_address_is_claimed_and_given_to_one_proxy_that_serves() {
    let proxies = format!("{}\n{}", proxy(1, ""), proxy(2, ""));
    let mut store = world(&format!("rack\n{A}\n{WITH_ADDRESS}\n{GROUP}\n{proxies}"));
    assert_snapshot!(held(&mut store, 60), @"claim default 10.77.0.9 for loadbalancer/lb; 10.77.0.9 at nobody turn 0");
    add(&mut store, &proxy(1, "told=1"));
    assert_snapshot!(held(&mut store, 61), @"10.77.0.9 at vm/lb-proxy-1 turn 1");
    assert_snapshot!(next_plan(&mut store, "vm/lb-proxy-1", 61), @"
    put assigned n1 vm/lb-proxy-1 running sequence 2 generation 1, 1 128MiB, volume/lb-proxy-1-root, demo v1, 10.77.0.6/24 and 10.77.0.9 turn 1 on br0
    put decided vm/lb-proxy-1 on n1 v1 root=lb-proxy-1-root default=10.77.0.6, since 61 waits: worker `n1` to start it
    ");
    assert_snapshot!(next_plan(&mut store, "vm/lb-proxy-2", 61), @"nothing");
}

#[test]
fn a_proxy_that_ends_leaves_the_address_first() {
    let mut store = with_address();
    next_plan(&mut store, "vm/lb-proxy-2", 60);
    add(&mut store, &proxy(2, "told=1 virtual=10.77.0.9 sequence=2 seen=2 has=10.77.0.9 deleting"));
    assert_snapshot!(next_plan(&mut store, "vm/lb-proxy-2", 70), @"put decided vm/lb-proxy-2 on n2 v1 root=lb-proxy-2-root default=10.77.0.7, since 70 waits: the virtual address of loadbalancer/lb to move to another proxy");
    assert_snapshot!(held(&mut store, 71), @"10.77.0.9 at vm/lb-proxy-2 leaving turn 1");
    assert_snapshot!(next_plan(&mut store, "vm/lb-proxy-2", 71), @"put assigned n2 vm/lb-proxy-2 running sequence 3 generation 1, 1 128MiB, volume/lb-proxy-2-root, demo v1, 10.77.0.7/24 and 10.77.0.9 turn 1 leaving on br0");
    assert_snapshot!(held(&mut store, 72), @"");
    add(
        &mut store,
        &proxy(2, "told=1 virtual=10.77.0.9 leaving sequence=3 seen=3 has=10.77.0.9 left deleting"),
    );
    assert_snapshot!(held(&mut store, 73), @"10.77.0.9 at nobody turn 1 once at vm/lb-proxy-2; since 73 waits: vm/lb-proxy-2 to give the virtual address up");
    assert_snapshot!(next_plan(&mut store, "vm/lb-proxy-2", 90), @"
    put asked volume/lb-proxy-2-root generation 1 64MiB of demo v1 of vm/lb-proxy-2 deleting
    put assigned n2 vm/lb-proxy-2 removed sequence 4 generation 1, 1 128MiB, volume/lb-proxy-2-root, demo v1, 10.77.0.7/24 on br0
    put decided vm/lb-proxy-2 on n2 v1 root=lb-proxy-2-root default=10.77.0.7, since 90 waits: worker `n2` to remove it, since 90 waits: its child volume/lb-proxy-2-root to go
    ");
    add(&mut store, &proxy(2, "told=1 sequence=4 seen=4 deleting"));
    assert_snapshot!(held(&mut store, 91), @"10.77.0.9 at vm/lb-proxy-1 turn 2");
}

/// Nobody has been given the address.
fn still_waits(held: &str) {
    assert!(held.is_empty() || held.contains("10.77.0.9 at nobody"), "{held}");
}

#[test]
fn a_proxy_that_does_not_serve_loses_the_address_and_nobody_has_it_before_its_worker_says_so() {
    for said in
        ["told=1 observed=crashed", "told=1 observed=running silent problem=silent", "observed=running"]
    {
        let proxy = |more: &str| proxy(2, &format!("{said} {more}")).replacen("observed=running ", "", 1);
        let mut store = with_address();
        add(&mut store, &proxy("virtual=10.77.0.9 sequence=2 seen=2 has=10.77.0.9"));
        let taken = "10.77.0.9 at nobody turn 1 once at vm/lb-proxy-2";
        assert!(held(&mut store, 71).starts_with(taken), "{said}");
        // The worker has it from its leader, and has not done it; then it has.
        add(&mut store, &proxy("sequence=3 seen=2"));
        still_waits(&held(&mut store, 72));
        add(&mut store, &proxy("sequence=3 seen=3 has=10.77.0.9"));
        still_waits(&held(&mut store, 72));
        add(&mut store, &proxy("sequence=3 seen=3"));
        assert!(held(&mut store, 73).starts_with("10.77.0.9 at vm/lb-proxy-1 turn 2"), "{said}");
    }
}

#[test]
fn a_proxy_that_does_not_take_what_it_is_told_keeps_the_address() {
    let mut store = with_address();
    let of_host = "virtual=10.77.0.9 sequence=2 seen=2 has=10.77.0.9";
    add(&mut store, &proxy(2, &format!("told=1 problem=port_8081_is_in_use {of_host}")));
    assert!(
        held(&mut store, 71).starts_with("10.77.0.9 at vm/lb-proxy-2 turn 1"),
        "what is open to it goes on"
    );
    // But it is not given to one of which anything is known.
    let both = format!(
        "{}\n{}",
        proxy(1, "told=1 problem=port_8081_is_in_use"),
        proxy(2, &format!("told=1 {of_host} silent"))
    );
    add(&mut store, &both);
    assert!(!held(&mut store, 72).contains("nobody"), "nobody else can have it");
}

#[test]
fn the_address_of_a_proxy_whose_worker_is_away_waits_a_while_and_then_for_nobody() {
    let mut store = with_address();
    add(&mut store, &proxy(2, "told=1 virtual=10.77.0.9 sequence=2 seen=2 has=10.77.0.9"));
    add(&mut store, "drop alive/{worker/n2}");
    assert!(!held(&mut store, 100).contains("nobody"), "it is not known for how long");
    next_plan(&mut store, "worker/n2", 101);
    assert_eq!(held(&mut store, 110), "");
    assert!(held(&mut store, 111).starts_with("10.77.0.9 at vm/lb-proxy-1 turn 2 once at vm/lb-proxy-2"));
    // When its worker is back and has nothing of it any more, the network is told again.
    add(&mut store, &format!("worker n2 cpus=4 memory=1GiB\n{}", proxy(2, "told=1 sequence=3 seen=3")));
    assert_eq!(held(&mut store, 112), "10.77.0.9 at vm/lb-proxy-1 turn 3");
}
