//! Where a DHCP server says the address of a card: it sends from what a server has acknowledged to it, and from nothing else.

use std::fs::File;
use std::net::{Ipv4Addr, UdpSocket};

use lightbyte_api::assigned::{AssignedIpv6, AssignedNic};
use lightbyte_api::firewall::Wall;
use lightbyte_api::observed::Lease;
use lightbyte_api::{MacAddress, Uid, VmId};
use lightbyte_vmm::{DriverError, Network as _, Taps};
use rustix::event::Timespec;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    DhcpMessageType, DhcpPacket, DhcpRepr, EthernetAddress, IpAddress, IpProtocol, Ipv4Packet, Ipv4Repr,
    UdpPacket, UdpRepr,
};

use super::machine::Machine;
use super::taps::{
    self, FRAME_MAX, MARK, arp, frame, ipv4, mac_bytes, nft, receive, send, until_ports_forward,
};
use super::{in_namespace, network_is_possible};

const A: VmId = VmId::new(Uid::from_bits(0xd1));
const B: VmId = VmId::new(Uid::from_bits(0xd2));
const B_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 52);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
const LEASED: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 60);
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 61);
const THIRD: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 62);
const NOBODY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
const ALL: Ipv4Addr = Ipv4Addr::BROADCAST;
/// The number of the server's word that is no message.
const THROUGH: u16 = 68;
/// What has come is there.
const AT_ONCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

fn nic(vm: VmId) -> AssignedNic {
    AssignedNic { address: None, prefix_length: 0, ..taps::nic(vm, LEASED) }
}

/// A message about the client with the hardware address `client`.
fn message(kind: DhcpMessageType, transaction: u32, client: [u8; 6], given: Ipv4Addr) -> Vec<u8> {
    full_message(kind, transaction, client, given, NOBODY)
}

/// One that a relay has passed on.
fn full_message(
    kind: DhcpMessageType,
    transaction: u32,
    client: [u8; 6],
    given: Ipv4Addr,
    relay: Ipv4Addr,
) -> Vec<u8> {
    let message = DhcpRepr {
        message_type: kind,
        transaction_id: transaction,
        secs: 0,
        client_hardware_address: EthernetAddress(client),
        client_ip: NOBODY,
        your_ip: given,
        server_ip: NOBODY,
        router: None,
        subnet_mask: None,
        relay_agent_ip: relay,
        broadcast: true,
        requested_ip: None,
        client_identifier: None,
        server_identifier: Some(SERVER),
        parameter_request_list: None,
        dns_servers: None,
        max_size: None,
        lease_duration: Some(3_600),
        renew_duration: None,
        rebind_duration: None,
        additional_options: &[],
    };
    let mut bytes = vec![0; message.buffer_len()];
    message.emit(&mut DhcpPacket::new_unchecked(&mut bytes)).expect("it fits");
    bytes
}

/// A datagram in a frame to everybody, as a guest writes it.
fn datagram(source: [u8; 6], from: (Ipv4Addr, u16), to_port: u16, content: &[u8]) -> Vec<u8> {
    datagram_to(ALL, source, from, to_port, content)
}

/// One to this address, in a frame to everybody.
fn datagram_to(
    target: Ipv4Addr,
    source: [u8; 6],
    from: (Ipv4Addr, u16),
    to_port: u16,
    content: &[u8],
) -> Vec<u8> {
    let udp = UdpRepr { src_port: from.1, dst_port: to_port };
    let bytes = udp.header_len() + content.len();
    let ip = Ipv4Repr {
        src_addr: from.0,
        dst_addr: target,
        next_header: IpProtocol::Udp,
        payload_len: bytes,
        hop_limit: 64,
    };
    let sums = ChecksumCapabilities::default();
    let mut packet = vec![0; ip.buffer_len() + bytes];
    ip.emit(&mut Ipv4Packet::new_unchecked(&mut packet), &sums);
    let (source_ip, target_ip) = (IpAddress::Ipv4(from.0), IpAddress::Ipv4(target));
    let fill = |payload: &mut [u8]| payload.copy_from_slice(content);
    let mut payload = UdpPacket::new_unchecked(&mut packet[ip.buffer_len()..]);
    udp.emit(&mut payload, &source_ip, &target_ip, content.len(), fill, &sums);
    [&[0; 10][..], &[0xff; 6], &source, &[8, 0], &packet].concat()
}

/// A machine on the wire that is the network's DHCP server.
struct Server {
    _machine: Machine,
    socket: UdpSocket,
}

impl Server {
    fn new() -> Server {
        let mut machine = Machine::new("wire", "02:00:00:00:00:98");
        machine.ip(&format!("addr add {SERVER}/24 dev eth0"));
        machine.ip("route add 255.255.255.255/32 dev eth0");
        let socket = machine.udp(67);
        socket.set_broadcast(true).expect("a socket that may");
        Server { _machine: machine, socket }
    }

    /// The number of the next request.
    fn hears(&self) -> Option<u32> {
        let mut bytes = [0; 1500];
        let (length, _) = self.socket.recv_from(&mut bytes).ok()?;
        Some(DhcpPacket::new_checked(&bytes[..length]).expect("a message").transaction_id())
    }

    fn says(&self, message: &[u8]) {
        self.socket.send_to(message, (ALL, 68)).expect("send");
    }
}

/// Waits until everything that the server has said is through: what follows it on its wire is.
fn settle(server: &Server, b: &File) {
    server.says(&[&THROUGH.to_be_bytes(), MARK].concat());
    assert_eq!(receive(b, &FRAME_MAX), Some(THROUGH));
}

#[test]
fn a_tap_sends_from_what_a_server_has_acknowledged() {
    let name = "real::dhcp::a_tap_sends_from_what_a_server_has_acknowledged";
    in_namespace(name, network_is_possible(), |()| {
        let driver = Taps::new().expect("make the rules");
        driver.ensure(A, &[nic(A)]).expect("make a tap");
        driver.ensure(B, &[taps::nic(B, B_ADDRESS)]).expect("make a tap");
        assert!(driver.probe(A, &[nic(A)]).expect("nothing to ask for").is_empty());
        let server = Server::new();
        let (a, b) = (taps::open(A), taps::open(B));
        let [own, foreign] = [A, B].map(|vm| mac_bytes(MacAddress::of_nic(vm.uid(), 0)));
        let of_b = frame(foreign, &[8, 0], &ipv4(B_ADDRESS), 1);
        until_ports_forward(&b, &a, &of_b);
        let leases = || driver.state(A, &[nic(A)]).expect("an answer").leases;
        let lease = |address| vec![Lease { nic: 0, address }];
        let request = |source, from, client, number| {
            datagram(source, from, 67, &message(DhcpMessageType::Discover, number, client, NOBODY))
        };
        let asks = |number| {
            send(&a, &request(own, (NOBODY, 68), own, number));
            assert_eq!(server.hears(), Some(number), "the words of a client");
        };
        let is_silent = || {
            for address in [LEASED, OTHER, NOBODY] {
                send(&a, &frame(own, &[8, 0], &ipv4(address), 9));
                send(&a, &frame(own, &[8, 6], &arp(own, address), 9));
            }
            asks(100);
            assert_eq!(receive(&b, &AT_ONCE), None, "it has no address");
        };

        // Before anybody has given it one.
        is_silent();
        let forged = [
            ("of another client", request(own, (NOBODY, 68), foreign, 1)),
            ("from another hardware address", request(foreign, (NOBODY, 68), own, 1)),
            ("from another port", request(own, (NOBODY, 1068), own, 1)),
            ("to one machine from nobody", {
                datagram_to(
                    SERVER,
                    own,
                    (NOBODY, 68),
                    67,
                    &message(DhcpMessageType::Discover, 1, own, NOBODY),
                )
            }),
            ("of no client", datagram(own, (NOBODY, 68), 67, &[0; 300])),
            ("that an answer would repeat", {
                datagram(own, (NOBODY, 68), 67, &message(DhcpMessageType::Inform, 1, own, OTHER))
            }),
            ("by a relay", {
                let relayed = full_message(DhcpMessageType::Discover, 1, own, NOBODY, OTHER);
                datagram(own, (NOBODY, 68), 67, &relayed)
            }),
            ("that is an answer", {
                datagram(own, (NOBODY, 68), 67, &message(DhcpMessageType::Offer, 1, own, NOBODY))
            }),
        ];
        for (number, (what, forged)) in (2..).zip(forged) {
            send(&a, &forged);
            send(&a, &request(own, (NOBODY, 68), own, number));
            assert_eq!(server.hears(), Some(number), "a request {what} gets out");
        }

        // What is no acknowledgement to it gives it nothing, nor what another VM says.
        server.says(&message(DhcpMessageType::Offer, 1, own, LEASED));
        server.says(&message(DhcpMessageType::Ack, 1, foreign, LEASED));
        for unfit in [NOBODY, ALL, Ipv4Addr::LOCALHOST, Ipv4Addr::new(224, 0, 0, 1)] {
            server.says(&message(DhcpMessageType::Ack, 1, own, unfit));
        }
        settle(&server, &b);
        assert_eq!(receive(&a, &FRAME_MAX), Some(THROUGH));
        let ack = message(DhcpMessageType::Ack, 1, own, LEASED);
        send(&b, &datagram(foreign, (B_ADDRESS, 67), 68, &ack));
        // Nor may it speak to a server, about this one or itself.
        send(&b, &request(foreign, (B_ADDRESS, 68), own, 50));
        send(&b, &request(foreign, (B_ADDRESS, 68), foreign, 51));
        send(&b, &of_b);
        assert_eq!(receive(&a, &FRAME_MAX), Some(1), "what another VM says as a server");
        assert_eq!(leases(), []);
        is_silent();

        let gives = |address| {
            server.says(&message(DhcpMessageType::Ack, 1, own, address));
            settle(&server, &b);
            assert_eq!(leases(), lease(address));
        };
        gives(LEASED);
        let speaks_from = |address| {
            for (kind, content) in [([8, 0], ipv4(address)), ([8, 6], arp(own, address))] {
                send(&a, &frame(own, &kind, &content, 7));
                assert_eq!(receive(&b, &FRAME_MAX), Some(7), "{address} is its own");
            }
        };
        let is_its_own = || {
            let foreign_words = [
                frame(own, &[8, 0], &ipv4(OTHER), 9),
                frame(foreign, &[8, 0], &ipv4(LEASED), 9),
                frame(own, &[8, 6], &arp(own, OTHER), 9),
                frame(own, &[8, 6], &arp(foreign, LEASED), 9),
            ];
            for words in foreign_words {
                send(&a, &words);
                speaks_from(LEASED);
            }
        };
        is_its_own();
        // From it as well the VM speaks to a server about nobody but itself, and says nothing that an answer would repeat.
        let renewal = |number| {
            let request = message(DhcpMessageType::Request, number, own, NOBODY);
            datagram_to(SERVER, own, (LEASED, 68), 67, &request)
        };
        let forged = [
            request(own, (LEASED, 68), foreign, 60),
            datagram_to(
                SERVER,
                own,
                (LEASED, 68),
                67,
                &message(DhcpMessageType::Release, 60, foreign, NOBODY),
            ),
            datagram_to(SERVER, own, (LEASED, 68), 67, &message(DhcpMessageType::Inform, 60, own, OTHER)),
        ];
        for (number, forged) in (61..).zip(forged) {
            send(&a, &forged);
            send(&a, &renewal(number));
            assert_eq!(server.hears(), Some(number));
        }
        // It lasts longer than an agent does.
        let next = Taps::new().expect("make the rules");
        next.ensure(A, &[nic(A)]).expect("as it is");
        assert_eq!(leases(), lease(LEASED));
        is_its_own();

        // With all rules of the host it goes, and comes with the next acknowledgement.
        nft("flush ruleset");
        driver.ensure(B, &[taps::nic(B, B_ADDRESS)]).expect("make the rules again");
        assert_eq!(leases(), []);
        is_silent();
        // It may also ask everybody from the address that it had.
        send(&a, &request(own, (LEASED, 68), own, 70));
        assert_eq!(server.hears(), Some(70));
        gives(LEASED);
        is_its_own();
        gives(OTHER);
        speaks_from(OTHER);
        // A server that says something else first.
        let mut ack = message(DhcpMessageType::Ack, 1, own, THIRD);
        // Pad is an option as well (RFC 2132, 3.1).
        ack.insert(240, 0);
        server.says(&ack);
        settle(&server, &b);
        speaks_from(THIRD);
        drop((a, b));
        driver.remove(A).expect("remove it");
        let words = ["list", "set", "bridge", "lightbyte-taps", "leases"];
        let left = std::process::Command::new("nft").args(words).output().expect("start nft");
        let left = String::from_utf8_lossy(&left.stdout);
        assert!(left.contains("leases") && !left.contains("elements"), "{left}");
    });
}

#[test]
fn a_card_without_a_known_address_has_no_rules_of_its_own() {
    let name = "real::dhcp::a_card_without_a_known_address_has_no_rules_of_its_own";
    in_namespace(name, network_is_possible(), |()| {
        let driver = Taps::new().expect("make the rules");
        let walled = AssignedNic { firewall: Some(Wall { allow: Vec::new() }), ..nic(A) };
        let refused = driver.ensure(A, &[walled]).expect_err("nobody knows its address");
        assert!(matches!(refused, DriverError::Refused(_)), "{refused:?}");
        assert_eq!(driver.count(A).expect("an answer"), 0);
        // Where routers say its addresses of IPv6, their last half is that of its hardware address.
        let ipv6 = Some(AssignedIpv6 { address: None, prefix_length: 0, gateway: None });
        driver.ensure(A, &[AssignedNic { ipv6, ..nic(A) }]).expect("make a tap");
    });
}
