//! The zone of small worlds, as a person would write it down.

use insta::assert_snapshot;
use lightbyte_api::kinds::scalegroup::{Choice as GroupChoice, RetiredFor, Retiring};
use lightbyte_api::{Choice, Decided, Key};
use lightbyte_plan::zone::{ADDRESSES_MAX, compose};

use crate::world::{Store, next_plan, object, uid, world};

/// The zone of a store, a line for each name.
fn zone_of(store: &Store) -> String {
    let view = store.view();
    let composed = compose(&view, "lab");
    let zone = &composed.zone;
    assert_eq!(zone.revision, view.revision());
    assert_eq!(zone.check(), [], "what is composed is taken");
    assert_eq!(composed, compose(&view, "lab"), "the same view, the same zone");
    let mut text = String::new();
    for (owner, records) in &zone.names {
        text.push_str(&format!("{owner}:"));
        records.a.values.iter().for_each(|value| text.push_str(&format!(" {value}")));
        records.aaaa.values.iter().for_each(|value| text.push_str(&format!(" {value}")));
        for service in &records.srv.values {
            text.push_str(&format!(" {}:{}", service.target, service.port));
        }
        records.txt.values.iter().for_each(|value| text.push_str(&format!(" {value:?}")));
        records.cname.values.iter().for_each(|value| text.push_str(&format!(" = {value}")));
        let ttl = [records.a.ttl_s, records.txt.ttl_s, records.cname.ttl_s].into_iter().find(|ttl| *ttl != 5);
        text.push_str(&ttl.map_or_else(|| "\n".to_owned(), |ttl| format!(" for {ttl} s\n")));
    }
    zone.pointers.iter().for_each(|(address, name)| text.push_str(&format!("{address} is {name}\n")));
    composed.clashes.iter().for_each(|record| text.push_str(&format!("left out: {record}\n")));
    text
}

fn zone(text: &str) -> String {
    zone_of(&world(text))
}

#[test]
fn a_vm_has_a_name_while_it_runs_and_is_to_run() {
    let check = |flags: &str, has_name: bool| {
        let zone = zone(&format!("rack\nvm a on=n1 {flags}"));
        assert_eq!(zone.contains("a.vm: 10.77.0.2"), has_name, "{flags}: {zone}");
        assert_eq!(zone.contains("10.77.0.2 is a.vm.lab"), has_name, "{flags}: {zone}");
    };
    check("observed=running", true);
    check("", false);
    check("observed=claimed", false);
    check("observed=starting", false);
    check("observed=crashed", false);
    check("observed=stopping", false);
    // It goes before the stop.
    check("observed=running stopped", false);
    check("observed=running deleting", false);
    // Health is for groups: who asks for this one wants no other.
    check("observed=running checked health=unhealthy", true);
}

#[test]
fn a_vm_keeps_its_name_while_its_worker_is_away() {
    let away = "worker n3 away\nimage demo v1\nnetwork default 10.77.0.0/24\nvm a on=n3 observed=running";
    assert_snapshot!(zone(away), @r"
    a.vm: 10.77.0.2
    10.77.0.2 is a.vm.lab
    ");
}

#[test]
fn every_address_of_a_vm_is_named_and_only_those_of_pools_backwards() {
    assert_snapshot!(zone(
        "rack\nnetwork lan dhcp\nnetwork lan2 10.78.0.0/24\n\
         vm a on=n1 observed=running nic=default:10.77.0.4 nic=lan2:10.78.0.9\n\
         vm b on=n1 observed=running nic=lan leased lease=192.168.1.5\n\
         vm c on=n1 observed=running nic=lan leased"
    ), @r"
    a.vm: 10.77.0.4 10.78.0.9
    b.vm: 192.168.1.5
    10.77.0.4 is a.vm.lab
    10.78.0.9 is a.vm.lab
    ");
    // Networks may have one subnet: the first one's.
    assert_snapshot!(zone(
        "rack\nnetwork lan2 10.77.0.0/24\nvm a on=n1 observed=running\nvm b on=n1 observed=running nic=lan2:10.77.0.2"
    ), @r"
    a.vm: 10.77.0.2
    b.vm: 10.77.0.2
    10.77.0.2 is a.vm.lab
    ");
    assert_snapshot!(zone(
        "rack\nasked network/six {\"subnet\":\"10.79.0.0/24\",\"subnet6\":\"fd00:79::/64\"}\n\
         vm a on=n1 observed=running nic=six:10.79.0.2 address6=fd00:79::5"
    ), @r"
    a.vm: 10.79.0.2 fd00:79::5
    10.79.0.2 is a.vm.lab
    fd00:79::5 is a.vm.lab
    ");
}

const GROUP: &str = "rack\nasked scalegroup/web {\"replicas\":3,\"template\":{\"image\":\"demo\"}}";

fn member(number: u8, flags: &str) -> String {
    format!("vm web-{number} owner=scalegroup/web on=n1 address=10.77.0.{} {flags}", number + 1)
}

/// The addresses of the group, of which some are let go.
fn group(members: &[String], retiring: &[&str]) -> String {
    let mut store = world(&format!("{GROUP}\n{}", members.join("\n")));
    let retiring =
        retiring.iter().map(|name| Retiring { uid: uid(&object(name)), because: RetiredFor::Update });
    let choice = GroupChoice { retiring: retiring.collect(), ..GroupChoice::default() };
    put(&mut store, "scalegroup/web", Choice::ScaleGroup(choice));
    let zone = zone_of(&store);
    zone.lines().find_map(|line| line.strip_prefix("web.group: ")).unwrap_or("none").to_owned()
}

fn put(store: &mut Store, named: &str, choice: Choice) {
    let object = object(named);
    let decided = Decided { uid: uid(&object), waiting_on: Vec::new(), at_rest_since: None, choice };
    store.put(&Key::Decided(object), decided);
}

#[test]
fn a_group_has_the_addresses_of_those_who_serve() {
    let check = |flags: [&str; 3], retiring: &[&str], expect: &str| {
        let members = [member(1, flags[0]), member(2, flags[1]), member(3, flags[2])];
        assert_eq!(group(&members, retiring), expect, "{flags:?} {retiring:?}");
    };
    let runs = "observed=running";
    let ill = "observed=running checked health=unhealthy";
    let well = "observed=running checked health=healthy";
    check([runs, runs, runs], &[], "10.77.0.2 10.77.0.3 10.77.0.4");
    check([runs, "observed=starting", runs], &[], "10.77.0.2 10.77.0.4");
    check([runs, runs, runs], &["vm/web-2"], "10.77.0.2 10.77.0.4");
    check(["observed=running deleting", runs, runs], &[], "10.77.0.3 10.77.0.4");
    check([well, ill, "observed=running checked health=starting"], &[], "10.77.0.2");
    // Health alone empties no name; whoever is asked to go is not brought back by that.
    check([ill, ill, "observed=crashed"], &[], "10.77.0.2 10.77.0.3");
    check([ill, well, ill], &["vm/web-2"], "10.77.0.2 10.77.0.4");
    check([runs, runs, runs], &["vm/web-1", "vm/web-2", "vm/web-3"], "none");
    check(["", "", ""], &[], "none");
}

#[test]
fn a_member_on_a_worker_that_is_away_is_named_only_if_there_is_nobody_else() {
    let check = |third: &str, expect: &str| {
        let store = world(&format!(
            "{GROUP}\nworker n3 away\n{}\nvm web-3 owner=scalegroup/web on=n3 address=10.77.0.4 observed=running",
            member(1, third)
        ));
        let zone = zone_of(&store);
        assert!(zone.contains(&format!("web.group: {expect}\n")), "{third}: {zone}");
        assert!(zone.contains("web-3.vm: 10.77.0.4\n"), "{zone}");
    };
    check("observed=running", "10.77.0.2");
    check("", "10.77.0.4");
}

#[test]
fn a_load_balancer_has_the_addresses_of_proxies_that_know_what_to_do() {
    let balancer = |deleting: &str, owner: &str| {
        zone(&format!(
            "rack\nasked loadbalancer/shop {{\"listeners\":[{{\"port\":8080}},{{\"port\":81}}],\
             \"pools\":[{{\"name\":\"web\",\"group\":\"web\",\"port\":80}}]}} {deleting}\n\
             asked scalegroup/shop-proxy {{\"replicas\":3,\"template\":{{\"image\":\"proxy\"}}}} {owner}\n\
             vm shop-proxy-1 owner=scalegroup/shop-proxy on=n1 observed=running address=10.77.0.2 told=3\n\
             vm shop-proxy-2 owner=scalegroup/shop-proxy on=n1 observed=running address=10.77.0.3 told=0\n\
             vm shop-proxy-3 owner=scalegroup/shop-proxy on=n1 observed=running address=10.77.0.4"
        ))
    };
    let named =
        |zone: &str| zone.lines().filter(|line| line.contains("shop.lb")).collect::<Vec<_>>().join("\n");
    assert_snapshot!(named(&balancer("", "owner=loadbalancer/shop")), @r"
    _http._tcp.shop.lb: shop.lb.lab:8080
    shop.lb: 10.77.0.2
    ");
    assert_snapshot!(named(&balancer("deleting", "owner=loadbalancer/shop")), @"");
    // Somebody's own group of that name is none of its business.
    assert_snapshot!(named(&balancer("", "")), @"");
}

#[test]
fn a_virtual_address_is_named_in_both_families() {
    let mut store = world(
        "rack\nasked network/six {\"subnet\":\"10.79.0.0/24\",\"subnet6\":\"fd00:79::/64\"}\n\
         asked loadbalancer/shop {\"virtual_address\":\"10.79.0.40\",\"proxies\":{\"network\":\"six\"},\
         \"listeners\":[{\"port\":80}],\"pools\":[{\"name\":\"web\",\"group\":\"web\",\"port\":80}]}\n\
         asked scalegroup/shop-proxy {\"replicas\":1,\"template\":{\"image\":\"proxy\"}} owner=loadbalancer/shop\n\
         vm shop-proxy-1 owner=scalegroup/shop-proxy on=n1 observed=running nic=six:10.79.0.2 address6=fd00:79::a4f:2 told=1",
    );
    next_plan(&mut store, "loadbalancer/shop", 60);
    assert_snapshot!(zone_of(&store), @r"
    _http._tcp.shop.lb: shop.lb.lab:80
    shop-proxy-1.vm: 10.79.0.2 fd00:79::a4f:2
    shop-proxy.group: 10.79.0.2 fd00:79::a4f:2
    shop.lb: 10.79.0.40 fd00:79::a4f:28
    10.79.0.2 is shop-proxy-1.vm.lab
    10.79.0.40 is shop.lb.lab
    fd00:79::a4f:2 is shop-proxy-1.vm.lab
    fd00:79::a4f:28 is shop.lb.lab
    ");
}

#[test]
fn what_people_write_stands_beside_and_never_in_place_of_what_is_there() {
    assert_snapshot!(zone(
        r#"rack
        asked dnsrecord/mail {"type":"A","values":["192.0.2.1","192.0.2.2"]}
        asked dnsrecord/more {"type":"A","host":"Mail","values":["192.0.2.2","192.0.2.3"],"ttl":"10s"}
        asked dnsrecord/said {"type":"TXT","host":"mail","values":["v=spf1 -all"],"ttl":"5s"}
        asked dnsrecord/top {"type":"AAAA","host":"@","values":["2001:db8::1"]}
        asked dnsrecord/www {"type":"CNAME","values":["Web.Group.lab."],"ttl":"5m"}
        asked dnsrecord/old {"type":"A","values":["192.0.2.9"]} deleting"#
    ), @r#"
    @: 2001:db8::1
    mail: 192.0.2.1 192.0.2.2 192.0.2.3 "v=spf1 -all" for 10 s
    www: = web.group.lab for 300 s
    "#);
    assert_snapshot!(zone(
        r#"rack
        vm a on=n1 observed=running
        vm b stopped
        asked dnsrecord/r1 {"type":"A","host":"a.vm","values":["192.0.2.1"]}
        asked dnsrecord/r2 {"type":"TXT","host":"a.vm","values":["ours"]}
        asked dnsrecord/r3 {"type":"CNAME","host":"b.vm","values":["elsewhere.example"]}
        asked dnsrecord/r4 {"type":"CNAME","host":"@","values":["elsewhere.example"]}
        asked dnsrecord/r5 {"type":"CNAME","host":"x","values":["elsewhere.example"]}
        asked dnsrecord/r6 {"type":"TXT","host":"x","values":["first"]}
        asked dnsrecord/r7 {"type":"CNAME","host":"y","values":["one.example"]}
        asked dnsrecord/r8 {"type":"CNAME","host":"y","values":["two.example"]}"#
    ), @r#"
    a.vm: 10.77.0.2 "ours" for 60 s
    x: "first" for 60 s
    y: = one.example for 60 s
    10.77.0.2 is a.vm.lab
    left out: dnsrecord/r1
    left out: dnsrecord/r3
    left out: dnsrecord/r4
    left out: dnsrecord/r5
    left out: dnsrecord/r8
    "#);
}

#[test]
fn so_many_addresses_as_fit_an_answer_are_told() {
    let records: Vec<String> = (0..150)
        .map(|record| {
            let values: Vec<String> = (0..16).map(|value| format!("\"10.9.{record}.{value}\"")).collect();
            format!(
                "asked dnsrecord/r{record} {{\"type\":\"A\",\"host\":\"many\",\"values\":[{}]}}",
                values.join(",")
            )
        })
        .collect();
    let composed = compose(&world(&records.join("\n")).view(), "lab");
    assert_eq!(composed.zone.names["many"].a.values.len(), ADDRESSES_MAX);
    assert_eq!(composed.zone.check(), []);
}
