//! What a tap may send and get of IPv6: its own addresses are those whose last half is its own.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::Command;

use lightbyte_api::address::{InterfaceId, tap_name};
use lightbyte_api::assigned::{AssignedIpv6, AssignedNic, VirtualAddress};
use lightbyte_api::firewall::Wall;
use lightbyte_api::observed::Squatter;
use lightbyte_api::{MacAddress, Uid, VmId};
use lightbyte_vmm::{Network as _, Taps};
use serde_json::{Value, json};

use super::machine::Machine;
use super::taps::{self, FRAME_MAX, MARK, frame, heard, mac_bytes, receive, send, until_ports_forward};
use super::{in_namespace, network_is_possible};

const VM: VmId = VmId::new(Uid::from_bits(0xa1));
const B: VmId = VmId::new(Uid::from_bits(0xa2));
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 51);
/// That of `ADDRESS` in the network's subnet, and elsewhere.
const OWN: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0x0a4d, 0x33);
const OWN_LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0x0a4d, 0x33);
const FOREIGN: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0x0a4d, 0x34);
const OTHER: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0, 0x42);
const ALL: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const REPORTS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x16);
const OTHER_MAC: &str = "02:00:00:00:00:97";

/// What IPv6 carries (RFC 8200, 3).
const ICMP: u8 = 58;
const UDP: u8 = 17;
const NOTHING: u8 = 59;
const FRAGMENT: u8 = 44;
/// With the VM's own last half.
const ELSEWHERE: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0x0a4d, 0x33);

fn nic(vm: VmId, address: Ipv4Addr) -> AssignedNic {
    let subnet = "fd00:77::/64".parse().expect("a subnet");
    let ipv6 = AssignedIpv6 {
        address: Some(InterfaceId::of(address).within(subnet)),
        prefix_length: 64,
        gateway: None,
    };
    AssignedNic { ipv6: Some(ipv6), ..taps::nic(vm, address) }
}

/// The card where routers say the first half.
fn auto() -> AssignedNic {
    let ipv6 = nic(VM, ADDRESS).ipv6.map(|ipv6| AssignedIpv6 { address: None, ..ipv6 });
    AssignedNic { ipv6, ..nic(VM, ADDRESS) }
}

/// A packet whose content is the end of a frame.
fn packet(source: Ipv6Addr, target: Ipv6Addr, carries: u8, content: &[u8]) -> Vec<u8> {
    let bytes = u8::try_from(content.len() + 2 + MARK.len()).expect("a small packet");
    let head = [0x60, 0, 0, 0, 0, bytes, carries, 255];
    [&head[..], &source.octets(), &target.octets(), content].concat()
}

/// A message of neighbour discovery about `about`, without a checksum: nobody on the way looks at it.
fn discovery(kind: u8, about: Ipv6Addr) -> Vec<u8> {
    [&[kind, 0, 0, 0, 0x20, 0, 0, 0][..], &about.octets()].concat()
}

fn udp(from: u16, to: u16) -> Vec<u8> {
    let bytes = u16::try_from(8 + 2 + MARK.len()).expect("a small datagram");
    [from, to, bytes, 0].map(u16::to_be_bytes).concat()
}

/// What a VM may not send, and why.
fn forged() -> Vec<(&'static str, Vec<u8>)> {
    let nobody = Ipv6Addr::UNSPECIFIED;
    vec![
        ("from another address", packet(FOREIGN, ALL, NOTHING, &[])),
        ("from nobody", packet(nobody, ALL, NOTHING, &[])),
        ("from nobody to where multicast is reported", packet(nobody, REPORTS, NOTHING, &[])),
        ("from its own half elsewhere", packet(ELSEWHERE, ALL, NOTHING, &[])),
        ("a query for listeners", packet(OWN_LINK_LOCAL, ALL, ICMP, &discovery(130, ALL))),
        ("the words of a DHCP server from another port", packet(OWN_LINK_LOCAL, ALL, UDP, &udp(1547, 546))),
        ("a fragment of neighbour discovery", packet(OWN, ALL, FRAGMENT, &[ICMP, 0, 0, 1, 0, 0, 0, 1])),
        ("what is not of its version", {
            let mut packet = packet(OWN, ALL, ICMP, &discovery(136, FOREIGN));
            packet[0] = 4 << 4;
            packet
        }),
        ("an advertisement of a router", packet(OWN_LINK_LOCAL, ALL, ICMP, &discovery(134, OWN))),
        ("a redirection", packet(OWN_LINK_LOCAL, ALL, ICMP, &discovery(137, OWN))),
        ("an advertisement for another address", packet(OWN, ALL, ICMP, &discovery(136, FOREIGN))),
        ("a probe for another address", packet(nobody, ALL, ICMP, &discovery(135, FOREIGN))),
        ("the words of a DHCP server", packet(OWN_LINK_LOCAL, ALL, UDP, &udp(547, 547))),
    ]
}

fn allowed() -> Vec<Vec<u8>> {
    vec![
        packet(OWN, ALL, NOTHING, &[]),
        packet(OWN_LINK_LOCAL, ALL, NOTHING, &[]),
        packet(OWN, ALL, ICMP, &discovery(136, OWN)),
        packet(OWN, ALL, ICMP, &discovery(135, FOREIGN)),
        packet(Ipv6Addr::UNSPECIFIED, ALL, ICMP, &discovery(135, OWN)),
        packet(OWN, ALL, UDP, &udp(546, 547)),
    ]
}

#[test]
fn a_tap_speaks_ipv6_for_itself_alone() {
    let name = "real::ipv6::a_tap_speaks_ipv6_for_itself_alone";
    in_namespace(name, network_is_possible(), |()| {
        let driver = Taps::new().expect("make the rules");
        driver.ensure(VM, &[nic(VM, ADDRESS)]).expect("make a tap");
        driver.ensure(B, &[nic(B, Ipv4Addr::new(10, 77, 0, 52))]).expect("make a tap");
        let (a, b) = (taps::open(VM), taps::open(B));
        let own = mac_bytes(MacAddress::of_nic(VM.uid(), 0));
        let foreign = mac_bytes(MacAddress::of_nic(B.uid(), 0));
        let make = |source, content: &[u8], number| frame(source, &[0x86, 0xdd], content, number);
        until_ports_forward(&a, &b, &make(own, &allowed()[0], 1));
        let tagged = [&[0, 7, 0x86, 0xdd], packet(OWN, ALL, NOTHING, &[]).as_slice()].concat();
        let mut all =
            forged().into_iter().map(|(what, content)| (what, make(own, &content, 0))).collect::<Vec<_>>();
        all.push(("from another hardware address", make(foreign, &allowed()[0], 0)));
        all.push(("in a VLAN", frame(own, &[0x81, 0], &tagged, 0)));
        let check = || {
            for (what, forged) in &all {
                send(&a, forged);
                send(&a, &make(own, &allowed()[0], 7));
                assert_eq!(receive(&b, &FRAME_MAX), Some(7), "{what} gets out");
            }
            for (number, content) in (100..).zip(allowed()) {
                send(&a, &make(own, &content, number));
                assert_eq!(receive(&b, &FRAME_MAX), Some(number), "it is the VM's own");
            }
        };
        check();
        // An agent begins anew, and finds in the taps what may be sent from them.
        Taps::new().expect("make the rules");
        check();
        // Where routers say the first half, any is let through before the VM's own last half.
        driver.ensure(VM, &[auto()]).expect("change it");
        for (number, content) in [(200, ELSEWHERE), (201, OWN_LINK_LOCAL)] {
            send(&a, &make(own, &packet(FOREIGN, ALL, NOTHING, &[]), 0));
            send(&a, &make(own, &packet(content, ALL, NOTHING, &[]), number));
            assert_eq!(receive(&b, &FRAME_MAX), Some(number), "{content}");
        }
        driver.ensure(VM, &[nic(VM, ADDRESS)]).expect("change it back");
        check();
        // A card without IPv6 sends none.
        driver.ensure(VM, &[taps::nic(VM, ADDRESS)]).expect("take it away");
        for content in allowed() {
            send(&a, &make(own, &content, 0));
        }
        driver.ensure(VM, &[nic(VM, ADDRESS)]).expect("and back");
        send(&a, &make(own, &allowed()[0], 8));
        assert_eq!(receive(&b, &FRAME_MAX), Some(8), "IPv6 gets out of a card without");
        drop((a, b));
        for vm in [VM, B] {
            driver.remove(vm).expect("remove a tap");
        }
    });
}

/// The VM as a machine whose wire is the tap, with IPv6 as its agent sets it up; and another.
fn machines() -> (Machine, Machine) {
    let mut vm = Machine::new(&tap_name(VM.uid(), 0), &taps::nic(VM, ADDRESS).mac.to_string());
    vm.ip("link set eth0 addrgenmode none");
    vm.ip("-6 addr flush dev eth0");
    for address in [OWN_LINK_LOCAL, OWN] {
        vm.ip(&format!("addr add {address}/64 dev eth0 nodad"));
    }
    let mut other = Machine::new("wire", OTHER_MAC);
    other.ip(&format!("addr add {OTHER}/64 dev eth0 nodad"));
    (vm, other)
}

fn at(address: Ipv6Addr, port: u16) -> SocketAddr {
    (address, port).into()
}

#[test]
fn a_firewall_holds_for_ipv6_too() {
    let name = "real::ipv6::a_firewall_holds_for_ipv6_too";
    in_namespace(name, network_is_possible(), |()| {
        let driver = Taps::new().expect("make the rules");
        let (vm, other) = machines();
        let _listeners =
            [vm.listen_on(at(OWN, 80)), vm.listen_on(at(OWN, 81)), other.listen_on(at(OTHER, 80))];
        let reached = || [80, 81].map(|port| other.connect(&at(OWN, port).to_string()).is_some());
        let ensure = |allow: Option<Value>| {
            let wall = |allow| serde_json::from_value::<Wall>(json!({ "allow": allow })).expect("a wall");
            let nic = AssignedNic { firewall: allow.map(wall), ..nic(VM, ADDRESS) };
            driver.ensure(VM, std::slice::from_ref(&nic)).expect("make it so");
            assert!(driver.state(VM, &[nic]).expect("an answer").as_assigned);
        };
        let http = |from: &str| json!([{ "protocol": "tcp", "ports": [80], "from": [from] }]);
        let out = || vm.connect(&at(OTHER, 80).to_string()).is_some();
        let check = |what: &str, allow: Option<Value>, expect: [bool; 2]| {
            ensure(allow);
            assert_eq!((reached(), out()), (expect, true), "{what}");
        };
        check("without a firewall", None, [true, true]);
        check("one port from the other", Some(http("fd00:77::42/128")), [true, false]);
        check("one port from others", Some(http("fd00:77::43/128")), [false, false]);
        check("one port from IPv4", Some(http("10.0.0.0/8")), [false, false]);
        check("nothing", Some(json!([])), [false, false]);
        let (unasked, deaf) = (other.udp_on(at(OTHER, 5_003)), vm.udp_on(at(OWN, 5_002)));
        unasked.send_to(b"?", at(OWN, 5_002)).expect("send it");
        deaf.recv_from(&mut [0; 8]).expect_err("what nobody asked for does not come in");
        // The rules of taps that have gone are gone.
        check("without a firewall again", None, [true, true]);
    });
}

#[test]
fn a_squatter_of_the_ipv6_address_is_heard() {
    let name = "real::ipv6::a_squatter_of_the_ipv6_address_is_heard";
    in_namespace(name, network_is_possible(), |()| {
        let driver = Taps::new().expect("make the rules");
        let mut other = Machine::new("wire", OTHER_MAC);
        let probe = |nic: &AssignedNic| {
            driver.ensure(VM, std::slice::from_ref(nic)).expect("make a tap");
            driver.probe(VM, std::slice::from_ref(nic)).expect("an answer")
        };
        let mac = OTHER_MAC.parse().expect("a hardware address");
        let squatted = vec![Squatter { nic: 0, address: ADDRESS, mac }];
        assert_eq!(probe(&nic(VM, ADDRESS)), []);
        other.ip(&format!("addr add {OWN}/64 dev eth0 nodad"));
        assert_eq!(probe(&nic(VM, ADDRESS)), squatted);
        // Another address of the pool has another last half; and where routers say the first half, nobody has that yet.
        assert_eq!(probe(&nic(VM, Ipv4Addr::new(10, 77, 0, 53))), []);
        assert_eq!(probe(&auto()), []);
        other.ip(&format!("addr add {OWN_LINK_LOCAL}/64 dev eth0 nodad"));
        assert_eq!(probe(&auto()), squatted);
        driver.remove(VM).expect("remove it");
    });
}

#[test]
fn a_virtual_address_of_ipv6_goes_with_that_of_ipv4() {
    let name = "real::ipv6::a_virtual_address_of_ipv6_goes_with_that_of_ipv4";
    in_namespace(name, network_is_possible(), |()| {
        let driver = Taps::new().expect("make the rules");
        let address = Ipv4Addr::new(10, 77, 0, 40);
        let virtual_address = Some(VirtualAddress { address, turn: 1, leaves_within: None });
        let also = AssignedNic { virtual_address, ..nic(VM, ADDRESS) };
        let address6 = Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0x0a4d, 40);
        assert!(also.virtual_addresses().eq([IpAddr::V4(address), IpAddr::V6(address6)]));
        driver.ensure(VM, std::slice::from_ref(&also)).expect("make a tap");
        driver.ensure(B, &[nic(B, Ipv4Addr::new(10, 77, 0, 52))]).expect("make a tap");
        let (vm, other) = (taps::open(VM), taps::open(B));
        let own = mac_bytes(MacAddress::of_nic(VM.uid(), 0));
        let sent =
            |source: Ipv6Addr, number| frame(own, &[0x86, 0xdd], &packet(source, ALL, NOTHING, &[]), number);
        until_ports_forward(&vm, &other, &sent(OWN, 1));
        let gets_out = || {
            send(&vm, &sent(address6, 7));
            send(&vm, &sent(OWN, 8));
            let mut heard = Vec::new();
            while heard.last() != Some(&8) {
                heard.extend(receive(&other, &FRAME_MAX));
            }
            heard
        };
        assert_eq!(gets_out(), [7, 8]);
        // An agent begins: what its taps say still holds.
        Taps::new().expect("make the rules");
        assert_eq!(gets_out(), [7, 8]);
        driver.ensure(VM, &[nic(VM, ADDRESS)]).expect("let it through no more");
        assert_eq!(gets_out(), [8]);

        // What the host and everybody else remember of it is replaced.
        let ip = |words: &str| Command::new("ip").args(words.split(' ')).output().expect("run ip");
        assert!(ip("neigh replace fd00:77::a4d:28 lladdr 02:00:00:00:00:09 dev br0").status.success());
        driver.announce(std::slice::from_ref(&also)).expect("tell the network");
        let known = String::from_utf8(ip("-6 neigh show dev br0").stdout).expect("text");
        assert!(!known.contains("02:00:00:00:00:09"), "{known}");
        // An advertisement to everybody, with the option that says where the address is.
        let told = heard(&other, "the address", |frame| {
            let is_word = frame.get(54..55) == Some(&[136]) && frame.get(62..78) == Some(&address6.octets());
            is_word.then(|| frame[80..86].to_vec())
        });
        assert_eq!(told, own, "it is at the card that has it");
    });
}
