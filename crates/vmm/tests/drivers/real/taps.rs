//! What comes out of a tap reaches others on the bridge only if it is from the tap's own addresses.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::process::Command;
use std::time::{Duration, Instant};

use lightbyte_api::assigned::{AssignedNic, VirtualAddress};
use lightbyte_api::{MacAddress, Uid, VmId};
use lightbyte_vmm::{Network as _, Taps, taps};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{in_namespace, network_is_possible};

const A: VmId = VmId::new(Uid::from_bits(0x71));
const B: VmId = VmId::new(Uid::from_bits(0x72));
const OWN: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 21);
const FOREIGN: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 22);

/// The header of virtio-net in front of each frame: no offload (linux/virtio_net.h).
const OFFLOAD: [u8; 10] = [0; 10];
/// The end of every frame of this test; a number comes before it.
pub(super) const MARK: &[u8] = b"lightbyte test";
/// How long a frame may take: it is through the bridge before the write returns.
pub(super) const FRAME_MAX: Timespec = Timespec { tv_sec: 5, tv_nsec: 0 };
/// How long a bridge may take to see that somebody has opened its port.
const PORT_MAX: Duration = Duration::from_secs(30);
const PORT_PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
pub(super) fn nic(vm: VmId, address: Ipv4Addr) -> AssignedNic {
    AssignedNic {
        bridge: "br0".to_owned(),
        mac: MacAddress::of_nic(vm.uid(), 0),
        address: Some(address),
        prefix_length: 24,
        gateway: None,
        dns: Vec::new(),
        mtu: None,
        ipv6: None,
        firewall: None,
        ports: Vec::new(),
        virtual_address: None,
    }
}

pub(super) fn open(vm: VmId) -> File {
    taps::open(&lightbyte_api::address::tap_name(vm.uid(), 0)).expect("open the tap").into()
}

pub(super) fn frame(source: [u8; 6], kind: &[u8], content: &[u8], number: u16) -> Vec<u8> {
    let to_all = [0xff; 6];
    [&OFFLOAD[..], &to_all, &source, kind, content, &number.to_be_bytes(), MARK].concat()
}

/// The header of an IPv4 datagram to everybody (RFC 791), whose content is the end of a frame. Length and checksum are
/// right: a bridge on which the host filters IPv4 drops others, and cuts what is beyond the length.
pub(super) fn ipv4(address: Ipv4Addr) -> Vec<u8> {
    let bytes = u8::try_from(20 + 2 + MARK.len()).expect("a small datagram");
    let head = [0x45, 0, 0, bytes, 0, 0, 0, 0, 64, 17, 0, 0];
    let mut header = [&head[..], &address.octets(), &[255; 4]].concat();
    let sum: u32 = header.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    let checksum = !u16::try_from((sum & 0xffff) + (sum >> 16)).expect("a small sum");
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
    header
}

/// The header of an IPv6 packet to everybody (RFC 8200), whose content is the end of a frame.
fn ipv6() -> Vec<u8> {
    let bytes = u8::try_from(2 + MARK.len()).expect("a small packet");
    let head = [0x60, 0, 0, 0, 0, bytes, 59, 64];
    let address = |first: u16| Ipv6Addr::new(first, 0, 0, 0, 0, 0, 0, 1).octets();
    [&head[..], &address(0xfe80), &address(0xff02)].concat()
}

/// A request of ARP (RFC 826).
pub(super) fn arp(mac: [u8; 6], address: Ipv4Addr) -> Vec<u8> {
    let head = [0, 1, 8, 0, 6, 4, 0, 1];
    [&head[..], &mac, &address.octets(), &[0; 6], &[10, 77, 0, 1]].concat()
}

/// Frames that must not get out, and why.
fn forged(own: [u8; 6], foreign: [u8; 6]) -> Vec<(&'static str, Vec<u8>)> {
    let make = |source, kind: &[u8], content: &[u8]| frame(source, kind, content, 0);
    let tagged = |tag: &[u8]| [tag, &[0, 7, 8, 0], ipv4(OWN).as_slice()].concat();
    vec![
        ("IPv4 from another hardware address", make(foreign, &[8, 0], &ipv4(OWN))),
        ("IPv4 from another address", make(own, &[8, 0], &ipv4(FOREIGN))),
        ("IPv4 from both of another", make(foreign, &[8, 0], &ipv4(FOREIGN))),
        ("IPv4 from nobody", make(own, &[8, 0], &ipv4(Ipv4Addr::UNSPECIFIED))),
        ("ARP for another address", make(own, &[8, 6], &arp(own, FOREIGN))),
        ("ARP for another hardware address", make(own, &[8, 6], &arp(foreign, OWN))),
        ("ARP in a frame of another", make(foreign, &[8, 6], &arp(own, OWN))),
        ("IPv6", make(own, &[0x86, 0xdd], &ipv6())),
        ("IPv4 in a VLAN", make(own, &[], &tagged(&[0x81, 0]))),
        ("IPv4 in a VLAN of a provider", make(own, &[], &tagged(&[0x88, 0xa8]))),
        ("LLDP", make(own, &[0x88, 0xcc], &[0])),
        ("RARP", make(own, &[0x80, 0x35], &arp(own, OWN))),
        ("a length instead of a type", make(own, &[0, 38], &ipv4(OWN))),
    ]
}

/// The number of the next frame of this test that comes to `tap`.
pub(super) fn receive(tap: &File, wait: &Timespec) -> Option<u16> {
    loop {
        if poll(&mut [PollFd::new(tap, PollFlags::IN)], Some(wait)).expect("wait") == 0 {
            return None;
        }
        let mut frame = vec![0; 65_536];
        let mut reader = tap;
        let length = reader.read(&mut frame).expect("read a frame");
        // The host itself says something now and then.
        if let Some([.., high, low]) = frame[..length].strip_suffix(MARK) {
            return Some(u16::from_be_bytes([*high, *low]));
        }
    }
}

/// What `find` finds in one of the frames that come to `tap`.
pub(super) fn heard<T>(tap: &File, what: &str, find: impl Fn(&[u8]) -> Option<T>) -> T {
    loop {
        let ready = poll(&mut [PollFd::new(tap, PollFlags::IN)], Some(&FRAME_MAX)).expect("wait");
        assert!(ready > 0, "nothing is heard of {what}");
        let mut frame = vec![0; 65_536];
        let mut reader = tap;
        let length = reader.read(&mut frame).expect("read a frame");
        if let Some(found) = find(&frame[OFFLOAD.len()..length]) {
            return found;
        }
    }
}

/// Where the address is by this frame, if that is a word of ARP from it.
fn announced(frame: &[u8], address: Ipv4Addr) -> Option<Vec<u8>> {
    let is_word = frame.get(12..14) == Some(&[8, 6]) && frame.get(28..32) == Some(&address.octets());
    is_word.then(|| frame[22..28].to_vec())
}

pub(super) fn send(mut tap: &File, frame: &[u8]) {
    assert_eq!(tap.write(frame).expect("send a frame"), frame.len());
}

/// Sends what is allowed until it arrives.
pub(super) fn until_ports_forward(from: &File, to: &File, allowed: &[u8]) {
    let begin = Instant::now();
    loop {
        send(from, allowed);
        if receive(to, &PORT_PAUSE).is_some() {
            break;
        }
        assert!(begin.elapsed() < PORT_MAX, "the bridge does not forward");
    }
    // What was sent before is through as well.
    while receive(to, &PORT_PAUSE).is_some() {}
}

fn keys() -> usize {
    let words = ["-j", "list", "set", "bridge", "lightbyte-taps", "sources"];
    let output = Command::new("nft").args(words).output().expect("start nft");
    String::from_utf8_lossy(&output.stdout).matches("\"concat\":").count()
}

pub(super) fn nft(words: &str) {
    assert!(Command::new("nft").args(words.split(' ')).status().expect("start nft").success(), "nft {words}");
}

#[test]
fn a_tap_sends_from_its_own_addresses_only() {
    let name = "real::taps::a_tap_sends_from_its_own_addresses_only";
    in_namespace(name, network_is_possible(), |()| {
        let driver = Taps::new().expect("make the rules");
        for _ in 0..2 {
            driver.ensure(A, &[nic(A, OWN)]).expect("make a tap");
            driver.ensure(B, &[nic(B, FOREIGN)]).expect("make a tap");
            assert_eq!(keys(), 2);
        }
        let (a, b) = (open(A), open(B));
        let bytes = |vm: VmId| mac_bytes(MacAddress::of_nic(vm.uid(), 0));
        let (own, foreign) = (bytes(A), bytes(B));
        let allowed = |number| {
            [frame(own, &[8, 0], &ipv4(OWN), number), frame(own, &[8, 6], &arp(own, OWN), number + 1)]
        };
        until_ports_forward(&a, &b, &allowed(1)[0]);
        let check = || {
            for (number, (what, frame)) in (1_u16..).step_by(2).zip(forged(own, foreign)) {
                send(&a, &frame);
                for (number, allowed) in (number..).zip(allowed(number)) {
                    send(&a, &allowed);
                    assert_eq!(receive(&b, &FRAME_MAX), Some(number), "after {what}");
                }
            }
        };
        check();

        // Somebody flushes all rules: they are there again with the next tap, for every tap.
        nft("flush ruleset");
        for (what, frame) in forged(own, foreign) {
            send(&a, &frame);
            assert_eq!(receive(&b, &FRAME_MAX), Some(0), "{what} gets out without rules");
        }
        driver.ensure(B, &[nic(B, FOREIGN)]).expect("make the rules again");
        check();
        // An agent begins, and a key of a tap that has gone is there.
        nft("add element bridge lightbyte-taps sources { \"lb0\" . 02:00:00:00:00:01 . 10.77.0.9 }");
        assert_eq!(keys(), 3);
        Taps::new().expect("make the rules");
        assert_eq!(keys(), 2);
        check();

        // Another address takes the place of the one before.
        driver.ensure(A, &[nic(A, Ipv4Addr::new(10, 77, 0, 23))]).expect("change the address");
        assert_eq!(keys(), 2);
        send(&a, &allowed(1)[0]);
        send(&a, &frame(own, &[8, 0], &ipv4(Ipv4Addr::new(10, 77, 0, 23)), 77));
        assert_eq!(receive(&b, &FRAME_MAX), Some(77), "the old address is not let through");
        drop((a, b));
        for left in [1, 0] {
            driver.remove(if left == 1 { A } else { B }).expect("remove a tap");
            assert_eq!(keys(), left);
        }
    });
}

pub(super) fn mac_bytes(mac: MacAddress) -> [u8; 6] {
    let text = mac.to_string();
    let mut pairs = text.split(':').map(|pair| u8::from_str_radix(pair, 16).expect("a hexadecimal pair"));
    std::array::from_fn(|_| pairs.next().expect("six pairs"))
}

#[test]
fn a_virtual_address_is_let_through_while_it_is_assigned_and_the_network_is_told() {
    let name = "real::taps::a_virtual_address_is_let_through_while_it_is_assigned_and_the_network_is_told";
    in_namespace(name, network_is_possible(), |()| {
        let driver = Taps::new().expect("make the rules");
        let address = Ipv4Addr::new(10, 77, 0, 40);
        let also = |vm: VmId, own: Ipv4Addr| {
            let virtual_address = Some(VirtualAddress { address, turn: 1, leaves_within: None });
            vec![AssignedNic { virtual_address, ..nic(vm, own) }]
        };
        driver.ensure(A, &also(A, OWN)).expect("make a tap");
        driver.ensure(B, &[nic(B, FOREIGN)]).expect("make a tap");
        let (a, b) = (open(A), open(B));
        let own = mac_bytes(MacAddress::of_nic(A.uid(), 0));
        until_ports_forward(&a, &b, &frame(own, &[8, 0], &ipv4(OWN), 1));
        let gets_out = || {
            send(&a, &frame(own, &[8, 6], &arp(own, address), 6));
            send(&a, &frame(own, &[8, 0], &ipv4(address), 7));
            send(&a, &frame(own, &[8, 0], &ipv4(OWN), 8));
            let mut heard = Vec::new();
            while heard.last() != Some(&8) {
                heard.extend(receive(&b, &FRAME_MAX));
            }
            heard
        };
        assert_eq!(gets_out(), [6, 7, 8]);
        // An agent begins: what its taps say still holds.
        Taps::new().expect("make the rules");
        assert_eq!(gets_out(), [6, 7, 8]);
        nft("flush ruleset");
        driver.ensure(B, &[nic(B, FOREIGN)]).expect("make the rules again");
        assert_eq!(gets_out(), [6, 7, 8]);
        driver.ensure(A, &[nic(A, OWN)]).expect("let it through no more");
        assert_eq!(gets_out(), [8]);

        // The host remembers where the address was, and hears nothing of what it sends itself.
        let neighbours = || {
            let output = Command::new("ip").args(["neigh", "show", "dev", "br0"]).output().expect("run ip");
            String::from_utf8(output.stdout).expect("text")
        };
        let entry = ["neigh", "replace", "10.77.0.40", "lladdr", "02:00:00:00:00:09", "dev", "br0"];
        assert!(Command::new("ip").args(entry).status().expect("run ip").success());
        assert!(neighbours().contains("10.77.0.40"), "{}", neighbours());
        driver.announce(&also(A, OWN)).expect("tell the network");
        assert!(!neighbours().contains("lladdr"), "{}", neighbours());
        let told = heard(&b, "the address", |frame| announced(frame, address));
        assert_eq!(told, own, "it is at the card that has it");
    });
}

#[test]
fn a_tap_that_cannot_be_made_may_not_send() {
    let name = "real::taps::a_tap_that_cannot_be_made_may_not_send";
    in_namespace(name, network_is_possible(), |()| {
        let driver = Taps::new().expect("make the rules");
        // A bridge cannot be a port of a bridge, which shows only when the tap is made.
        let mut lo = nic(A, OWN);
        lo.bridge = "lo".to_owned();
        driver.ensure(A, &[nic(A, OWN), lo]).expect_err("lo is no bridge");
        assert_eq!(keys(), 0);
        driver.ensure(A, &[nic(A, OWN)]).expect("make one");
        assert_eq!(keys(), 1);
        driver.remove(A).expect("remove it");
        assert_eq!((keys(), driver.count(A).expect("an answer")), (0, 0));
    });
}

/// The hardware address of an interface of this namespace.
pub(super) fn address_of(name: &str) -> String {
    let output = Command::new("ip").args(["-o", "link", "show", "dev", name]).output().expect("run ip");
    let text = String::from_utf8(output.stdout).expect("text");
    let mut words = text.split_whitespace().skip_while(|word| *word != "link/ether");
    words.nth(1).unwrap_or_else(|| panic!("{name} has no address: {text}")).to_owned()
}

/// A bridge takes the lowest address of its ports, and a host whose address changes is not reached for a while.
#[test]
fn the_host_keeps_its_address_whatever_vms_come_and_go() {
    let name = "real::taps::the_host_keeps_its_address_whatever_vms_come_and_go";
    in_namespace(name, network_is_possible(), |()| {
        let ip = |words: &str| {
            let status = Command::new("ip").args(words.split(' ')).status().expect("run ip");
            assert!(status.success(), "ip {words}");
        };
        // The highest that an interface of a real machine can have.
        ip("link add uplink address fc:ff:ff:ff:ff:ff type veth peer name outside");
        ip("link set uplink master br0 up");
        let before = address_of("br0");
        let taps = Taps::new().expect("make the driver");
        for vm in (1..=32).map(|number| VmId::new(Uid::from_bits(number))) {
            taps.ensure(vm, &[nic(vm, OWN)]).expect("make a tap");
            assert_eq!(address_of("br0"), before, "with the tap of {vm}");
            taps.remove(vm).expect("remove it");
            assert_eq!(address_of("br0"), before, "without the tap of {vm}");
        }
        ip("link del uplink");
    });
}
