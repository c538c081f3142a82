//! Networks of real VMs, with strangers on the LAN.

use std::fs::File;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::os::fd::AsFd as _;
use std::process::Command;

use rustix::net::netdevice::name_to_index;
use rustix::net::sockopt::set_ipv6_multicast_hops;
use rustix::net::{AddressFamily, Protocol, SendFlags, SocketType, sendto, socket};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::bed::{Bed, skip, until};
use crate::real::{missing, page, page_at};

pub(crate) fn ip(words: &str) {
    let status = Command::new("ip").args(words.split(' ')).status().expect("ip runs");
    assert!(status.success(), "ip {words}");
}

/// A machine on the LAN of a lab that is no host and no VM of it. Its namespace is named as the lab's are, and so goes
/// with the lab.
pub(crate) struct Stranger {
    namespace: String,
}

impl Stranger {
    pub(crate) fn new(bed: &Bed, name: &str) -> Stranger {
        let (namespace, lan) = (bed.namespace(name), bed.namespace("lan"));
        ip(&format!("netns add {namespace}"));
        ip(&format!("-n {lan} link add {name} type veth peer name eth0 netns {namespace}"));
        ip(&format!("-n {lan} link set {name} master lan0 up"));
        ip(&format!("-n {namespace} link set eth0 up"));
        Stranger { namespace }
    }

    pub(crate) fn ip(&self, words: &str) {
        ip(&format!("-n {} {words}", self.namespace));
    }

    /// Does something in its namespace.
    pub(crate) fn inside<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(format!("/run/netns/{}", self.namespace)).expect("its namespace");
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                    .expect("enter its namespace");
                act()
            });
            thread.join().expect("done")
        })
    }

    /// Tells everybody of a prefix, as a router does (RFC 4861, 4.2 and 4.6.2).
    fn advertise(&self, prefix: Ipv6Addr) {
        // 64 hops, nothing else to say, a router for 1800 s; a prefix of 64 bits, on the link and for addresses, for an hour.
        let (mut message, lifetime) = (vec![134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0], 3_600_u32);
        message.extend([3, 4, 64, 0xc0]);
        message.extend([lifetime.to_be_bytes(), lifetime.to_be_bytes(), [0; 4]].concat());
        message.extend(prefix.octets());
        let icmpv6 = std::num::NonZero::new(58).map(Protocol::from_raw);
        self.inside(|| {
            let socket = socket(AddressFamily::INET6, SocketType::RAW, icmpv6).expect("a socket");
            let scope = name_to_index(&socket, "eth0").expect("its index");
            set_ipv6_multicast_hops(&socket, 255).expect("as neighbours do");
            let all = SocketAddrV6::new(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1), 0, 0, scope);
            sendto(&socket, &message, SendFlags::empty(), &all).expect("send it");
        });
    }

    fn mac(&self) -> String {
        let words = ["netns", "exec", &self.namespace, "cat", "/sys/class/net/eth0/address"];
        let output = Command::new("ip").args(words).output().expect("ip runs");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }
}

#[test]
fn a_machine_that_squats_a_pool_address_is_detected_skipped_and_reported() {
    let test = "a_machine_that_squats_a_pool_address_is_detected_skipped_and_reported";
    if let Some(why) = missing() {
        return skip(test, &why);
    }
    let Some(bed) = Bed::new("squat", &["--vmm", "qemu", "--nodes", "1"]) else { return };
    bed.start();
    let network = bed.json(&["get", "network/default"]);
    let first = network["spec"]["pool_first"].as_str().expect("an address").to_owned();
    let prefix = first.strip_suffix(".1").expect("10.x.1.1").to_owned();
    let stranger = Stranger::new(&bed, "stranger");
    stranger.ip(&format!("addr add {first}/16 dev eth0"));

    let address = bed.ok(&["run", "demo", "--name", "hello"]).trim().to_owned();
    assert_eq!(address, format!("{prefix}.2"), "the next one");
    assert!(page(&address).is_some_and(|text| text.contains("hello")));
    let squatted = bed.json(&["get", "network/default"])["status"]["squatted"][0].clone();
    assert_eq!(squatted["address"], first.as_str());
    assert_eq!(squatted["mac"], stranger.mac().as_str());
    assert_eq!(squatted["worker"], "n1");
    let events = bed.ok(&["events", "network/default"]);
    let found = format!("{first} of network `default` is in use by a machine that is no VM of ours");
    assert!(events.contains(&found), "{events}");
    let events = bed.ok(&["events", "vm/hello"]);
    assert!(events.contains(&format!("it had {first}/16 and has {prefix}.2/16")), "{events}");
    // Nobody is given it while a person has not said that it is free, though its squatter goes.
    stranger.ip(&format!("addr del {first}/16 dev eth0"));
    assert_eq!(bed.ok(&["run", "demo", "--name", "second"]).trim(), format!("{prefix}.3"));
    bed.ok(&["release", &format!("address/{first}")]);
    assert_eq!(bed.ok(&["run", "demo", "--name", "third"]).trim(), first);
    bed.ok(&["delete", "vm/third", "--yes"]);

    // One that must have the address waits for it, and says whom it waits for.
    stranger.ip(&format!("addr add {first}/16 dev eth0"));
    bed.ok(&["run", "demo", "--name", "fixed", "--address", &first, "--no-wait"]);
    let why = || bed.ok(&["why", "vm/fixed"]);
    until("it waits", || why().contains(&format!("worker `n1` heard {} answer for it", stranger.mac())));
    assert!(why().contains(&format!("lightbyte release address/{first} --network default")), "{}", why());
    stranger.ip(&format!("addr del {first}/16 dev eth0"));
    bed.ok(&["release", &format!("address/{first}")]);
    bed.ok(&["wait", "vm/fixed", "--for", "ready"]);
    assert!(page(&first).is_some_and(|text| text.contains("fixed")));
    let boot = bed.json(&["get", "vm/hello"])["status"]["boot"].clone();
    eprintln!("the first boot, probed twice: {boot}");
}

/// Whether a VM reaches the page of another.
fn sees(bed: &Bed, vm: &str, address: &str) -> bool {
    let fetch = format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 2 {address} 80");
    let output = bed.run(&["exec", vm, "--", "sh", "-c", &fetch]);
    String::from_utf8_lossy(&output.stdout).contains("200 OK")
}

#[test]
fn firewalls_follow_labels_and_ports_lead_to_their_vm() {
    let test = "firewalls_follow_labels_and_ports_lead_to_their_vm";
    if let Some(why) = missing() {
        return skip(test, &why);
    }
    let Some(bed) = Bed::new("wall", &["--vmm", "qemu", "--nodes", "2"]) else { return };
    bed.start();
    let file = bed.manifests(
        "{kind: vm, name: db, spec: {image: demo, ports: [{worker_port: 8080, port: 80}],
          firewall: {allow: [{protocol: tcp, ports: [80], from: {labels: {app: web}}}]}}}
---
{kind: vm, name: web, labels: {app: web}, spec: {image: demo}}
---
{kind: vm, name: other, spec: {image: demo}}
",
    );
    bed.ok(&["apply", "-f", crate::bed::path(&file)]);
    for vm in ["db", "web", "other"] {
        bed.ok(&["wait", &format!("vm/{vm}"), "--for", "ready"]);
    }
    let db = bed.json(&["get", "vm/db"]);
    let address = db["status"]["addresses"][0].as_str().expect("an address").replace("/16", "");
    until("the web reaches the database", || sees(&bed, "web", &address));
    assert!(!sees(&bed, "other", &address), "nobody else does");
    assert!(page(&address).is_none(), "nor does the machine");
    // The machine asks the worker, and is nobody whom the firewall knows.
    let worker = db["status"]["worker"].as_str().expect("a worker").to_owned();
    let number: u8 = worker.trim_start_matches('n').parse().expect("a number");
    let prefix = address.split('.').take(2).collect::<Vec<_>>().join(".");
    let forwarded = format!("{prefix}.0.{}:8080", 10 + number);
    assert!(page_at(&forwarded).is_none());

    // Without a restart: another has the label, and then nobody but the machine is let in.
    let boot = |vm: &str| bed.ok(&["exec", vm, "--", "cat", "/proc/sys/kernel/random/boot_id"]);
    let before = boot("db");
    let other = bed.manifests("{kind: vm, name: other, labels: {app: web}, spec: {image: demo}}\n");
    bed.ok(&["apply", "-f", crate::bed::path(&other)]);
    until("the other reaches it too", || sees(&bed, "other", &address));
    let machine = format!(
        "{{kind: vm, name: db, spec: {{image: demo, ports: [{{worker_port: 8080, port: 80}}],
          firewall: {{allow: [{{protocol: tcp, ports: [80], from: {{cidr: {prefix}.0.1/32}}}}]}}}}}}\n"
    );
    let machine = bed.manifests(&machine);
    bed.ok(&["apply", "-f", crate::bed::path(&machine)]);
    until("the machine reaches it", || page(&address).is_some());
    assert!(!sees(&bed, "web", &address));
    assert!(page_at(&forwarded).is_some_and(|text| text.contains("db")), "by its worker's port too");
    assert_eq!(boot("db"), before, "it was not started again");

    // A port of a worker is one VM's: the second goes to the other worker, and the third waits.
    for vm in ["second", "third"] {
        let text = format!(
            "{{kind: vm, name: {vm}, spec: {{image: demo, ports: [{{worker_port: 8080, port: 80}}]}}}}\n"
        );
        bed.ok(&["apply", "-f", crate::bed::path(&bed.manifests(&text))]);
    }
    bed.ok(&["wait", "vm/second", "--for", "ready"]);
    assert_ne!(bed.json(&["get", "vm/second"])["status"]["worker"], worker.as_str());
    until("the third says why", || bed.ok(&["why", "vm/third"]).contains("tcp 8080"));
    bed.ok(&["delete", "vm/db", "--yes"]);
    bed.ok(&["wait", "vm/third", "--for", "ready"]);
    until("the port leads to the third now", || {
        page_at(&forwarded).is_some_and(|text| text.contains("third"))
    });
}

#[test]
fn a_vm_on_two_networks_answers_on_both_and_leaves_by_the_first() {
    let test = "a_vm_on_two_networks_answers_on_both_and_leaves_by_the_first";
    if let Some(why) = missing() {
        return skip(test, &why);
    }
    let Some(bed) = Bed::new("two", &["--vmm", "qemu", "--nodes", "1"]) else { return };
    bed.start();
    // A range for tests of networks (RFC 2544), whose gateway nobody is.
    let file = bed.manifests(
        "{kind: network, name: lan, spec: {subnet: 198.18.77.0/24, gateway: 198.18.77.1, mtu: 1400}}
---
{kind: vm, name: both, spec: {image: demo, nics: [{network: default}, {network: lan}]}}
",
    );
    bed.ok(&["apply", "-f", crate::bed::path(&file)]);
    bed.ok(&["wait", "vm/both", "--for", "ready"]);
    // The machine is on the second network as well.
    ip(&format!("addr add 198.18.77.254/24 dev lb{}", bed.hash()));
    let addresses = bed.json(&["get", "vm/both"])["status"]["addresses"].clone();
    let addresses: Vec<&str> = addresses
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|text| text.as_str()?.split('/').next())
        .collect();
    assert_eq!(addresses.len(), 2, "{addresses:?}");
    for address in addresses {
        assert!(page(address).is_some_and(|text| text.contains("both")), "{address} answers");
    }
    let inside = |command: &str| bed.ok(&["exec", "both", "--", "sh", "-c", command]);
    let routes = inside("ip route");
    let out: Vec<&str> = routes.lines().filter(|route| route.starts_with("default")).collect();
    assert!(matches!(out.as_slice(), [route] if route.contains(".0.1 dev eth0")), "{routes}");
    assert_eq!(inside("cat /sys/class/net/eth0/mtu /sys/class/net/eth1/mtu"), "1500\n1400\n");
}

#[test]
fn vms_speak_ipv6_from_a_subnet_and_by_their_router() {
    let test = "vms_speak_ipv6_from_a_subnet_and_by_their_router";
    if let Some(why) = missing() {
        return skip(test, &why);
    }
    let Some(bed) = Bed::new("six", &["--vmm", "qemu", "--nodes", "2"]) else { return };
    bed.start();
    let file = bed.manifests(
        "{kind: network, name: six, spec: {subnet: 198.18.66.0/24, subnet6: \"fd00:66::/64\", gateway6: \"fd00:66::fe\"}}
---
{kind: network, name: auto, spec: {subnet: 198.18.67.0/24, subnet6: auto}}
---
{kind: vm, name: one, spec: {image: demo, nics: [{network: default}, {network: six}, {network: auto}]}}
---
{kind: vm, name: two, spec: {image: demo, nics: [{network: six}, {network: default}]}}
",
    );
    bed.ok(&["apply", "-f", crate::bed::path(&file)]);
    for vm in ["one", "two"] {
        bed.ok(&["wait", &format!("vm/{vm}"), "--for", "ready"]);
    }
    let six = |vm: &str| {
        let addresses = bed.json(&["get", &format!("vm/{vm}")])["status"]["addresses"].clone();
        let addresses = addresses.as_array().expect("a list").iter().filter_map(|text| text.as_str());
        let found = addresses.filter_map(|text| text.strip_suffix("/64")).next();
        found.unwrap_or_else(|| panic!("{vm} has no address of IPv6")).to_owned()
    };
    let (one, two) = (six("one"), six("two"));
    assert!(one.starts_with("fd00:66::c612:42"), "made from its IPv4 address: {one}");
    // The machine is the gateway, and each VM sees the other.
    ip(&format!("addr add fd00:66::fe/64 dev lb{} nodad", bed.hash()));
    for (vm, address) in [("one", &one), ("two", &two)] {
        assert!(page_at(&format!("[{address}]:80")).is_some_and(|text| text.contains(vm)), "{address}");
    }
    assert!(sees(&bed, "one", &two) && sees(&bed, "two", &one));
    let inside = |vm: &str, command: &str| bed.ok(&["exec", vm, "--", "sh", "-c", command]);
    assert!(inside("one", "ip -6 route").contains("default via fd00:66::fe dev eth1"));
    let own = inside("one", "ip -6 addr show dev eth1; ip -6 addr show dev eth0");
    assert_eq!(own.matches("inet6").count(), 2, "no address that would not get through: {own}");

    // A router tells of its prefix. What is made from it has the last half that the VM may send from.
    let router = Stranger::new(&bed, "router");
    router.ip("addr add 2001:db8:67::1/64 dev eth0 nodad");
    router.ip("addr add fe80::67/64 dev eth0 nodad");
    let prefix = "2001:db8:67::".parse().expect("a prefix");
    let learned = || inside("one", "ip -6 addr show dev eth2 scope global");
    until("the VM takes the prefix", || {
        router.advertise(prefix);
        learned().contains("2001:db8:67::c612:43")
    });
    until("it is its own by now", || !learned().contains("tentative"));
    let text = learned();
    let address = text.split_whitespace().find_map(|word| word.strip_suffix("/64")).expect("an address");
    let page = router.inside(|| page_at(&format!("[{address}]:80")));
    assert!(page.is_some_and(|text| text.contains("one")), "{address}");
    assert!(
        inside("one", "ip -6 route").contains("default via fe80::67 dev eth2"),
        "{}",
        inside("one", "ip -6 route")
    );
    assert!(!inside("two", "ip -6 addr").contains("2001:db8"), "only where the network says so");

    // Its agent's next one finds it with its addresses, and says what hinders the guest from having them.
    let worker = bed.json(&["get", "vm/one"])["status"]["worker"].as_str().expect("a worker").to_owned();
    let next_agent = || {
        let agent = bed.process(&format!("{worker}-worker"));
        let agent = rustix::process::Pid::from_raw(agent).expect("a process");
        rustix::process::kill_process(agent, rustix::process::Signal::KILL).expect("it is killed");
    };
    let problem =
        || bed.json(&["get", "vm/one"])["status"]["problem"].as_str().unwrap_or_default().to_owned();
    inside("one", "mount -o bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys");
    next_agent();
    until("it is told", || problem().contains("set up IPv6"));
    assert!(learned().contains(address), "it has it still");
    inside("one", "umount /proc/sys");
    until("it is told no more", || problem().is_empty());
    let text = learned();
    assert!(text.contains(address) && !text.contains("tentative"), "it was not taken away: {text}");
}
