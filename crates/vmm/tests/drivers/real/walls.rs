//! What may come in to a VM comes in, and nothing else does; with real connections between machines on a bridge.
//!
//! The VM is a machine too here: its wire ends at the bridge under the name of the VM's tap, which the driver takes for one.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use lightbyte_api::address::tap_name;
use lightbyte_api::assigned::AssignedNic;
use lightbyte_api::firewall::Wall;
use lightbyte_api::{Uid, VmId};
use lightbyte_vmm::{Network as _, TapState, Taps};
use serde_json::{Value, json};

use super::machine::{Machine, connect};
use super::{in_namespace, network_is_possible, taps};

const VM: VmId = VmId::new(Uid::from_bits(0x91));
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 41);
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 42);
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// The VM's card with a firewall that allows this, and with these ports of the host.
fn nic(allow: Option<Value>, ports: Value) -> AssignedNic {
    let wall = |allow| serde_json::from_value::<Wall>(json!({ "allow": allow })).expect("a wall");
    let ports = serde_json::from_value(ports).expect("ports");
    AssignedNic { firewall: allow.map(wall), ports, ..taps::nic(VM, ADDRESS) }
}

fn tcp(port: u16, from: &str) -> Value {
    json!({ "protocol": "tcp", "ports": [port], "from": [from] })
}

/// Whether a byte gets there and back.
fn is_alive(client: &mut TcpStream, server: &mut TcpStream) -> bool {
    for stream in [&*client, &*server] {
        stream.set_read_timeout(Some(ANSWER_MAX)).expect("a time-out");
    }
    let mut byte = [0];
    client.write_all(b"?").is_ok()
        && server.read_exact(&mut byte).is_ok()
        && server.write_all(b"!").is_ok()
        && client.read_exact(&mut byte).is_ok()
}

/// The VM, another machine, and what they listen on.
struct Lan {
    driver: Taps,
    vm: Machine,
    other: Machine,
    http: TcpListener,
    _more: TcpListener,
    others: TcpListener,
}

impl Lan {
    fn new() -> Lan {
        let driver = Taps::new().expect("make the rules");
        let mut vm = Machine::new(&tap_name(VM.uid(), 0), &taps::nic(VM, ADDRESS).mac.to_string());
        let mut other = Machine::new("wire", "02:00:00:00:00:98");
        vm.ip(&format!("addr add {ADDRESS}/24 dev eth0"));
        other.ip(&format!("addr add {OTHER}/24 dev eth0"));
        let (http, more, others) = (vm.listen(80), vm.listen(81), other.listen(80));
        Lan { driver, vm, other, http, _more: more, others }
    }

    fn ensure(&self, nic: &AssignedNic) {
        self.driver.ensure(VM, std::slice::from_ref(nic)).expect("make it so");
        assert!(self.state(nic).as_assigned);
    }

    fn state(&self, nic: &AssignedNic) -> TapState {
        self.driver.state(VM, std::slice::from_ref(nic)).expect("an answer")
    }

    /// Who gets through to the VM: the other machine to ports 80 and 81, the host to port 80.
    fn reached(&self) -> [bool; 3] {
        let (http, more) = (format!("{ADDRESS}:80"), format!("{ADDRESS}:81"));
        [self.other.connect(&http).is_some(), self.other.connect(&more).is_some(), connect(&http).is_some()]
    }

    /// The VM's own connections work, whatever may come in.
    fn check_answers(&self) {
        let mut client = self.vm.connect(&format!("{OTHER}:80")).expect("the VM reaches the other");
        let (mut server, from) = self.others.accept().expect("a connection");
        assert_eq!(from.ip(), ADDRESS);
        assert!(is_alive(&mut client, &mut server), "answers come in");
        let (asks, answers) = (self.vm.udp(5_000), self.other.udp(5_001));
        asks.send_to(b"?", (OTHER, 5_001)).expect("it asks");
        let mut buffer = [0; 8];
        let (_, from) = answers.recv_from(&mut buffer).expect("the other hears it");
        answers.send_to(b"!", from).expect("it answers");
        assert!(asks.recv_from(&mut buffer).is_ok(), "the answer comes in");
    }
}

fn rules() -> String {
    let output = Command::new("nft").args(["list", "ruleset"]).output().expect("run nft");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn what_is_allowed_comes_in_and_nothing_else_does() {
    let name = "real::walls::what_is_allowed_comes_in_and_nothing_else_does";
    in_namespace(name, network_is_possible(), |()| {
        let lan = Lan::new();
        lan.ensure(&nic(None, json!([])));
        assert_eq!(lan.reached(), [true; 3], "without a firewall");
        let only_http = nic(Some(json!([tcp(80, "10.77.0.42/32")])), json!([]));
        lan.ensure(&only_http);
        assert_eq!(lan.reached(), [true, false, false]);
        lan.check_answers();
        let unasked = lan.other.udp(5_003);
        let deaf = lan.vm.udp(5_002);
        unasked.send_to(b"?", (ADDRESS, 5_002)).expect("send it");
        deaf.recv_from(&mut [0; 8]).expect_err("what nobody asked for does not come in");

        // A change counts at once, and ends nothing that goes on.
        let mut client = lan.other.connect(&format!("{ADDRESS}:80")).expect("it is allowed");
        let mut server = loop {
            let (stream, _) = lan.http.accept().expect("a connection");
            if stream.peer_addr().ok() == client.local_addr().ok() {
                break stream;
            }
        };
        assert!(is_alive(&mut client, &mut server));
        let range =
            nic(Some(json!([{ "protocol": "tcp", "ports": ["81-90"] }, { "protocol": "icmp" }])), json!([]));
        lan.ensure(&range);
        assert_eq!(lan.reached(), [false, true, false]);
        assert!(is_alive(&mut client, &mut server), "it goes on");
        lan.check_answers();

        // Another agent begins: nothing changes.
        let before = rules();
        Taps::new().expect("begin again");
        assert_eq!(rules(), before);
        assert!(lan.state(&range).as_assigned);

        // Nothing at all may come in.
        lan.ensure(&nic(Some(json!([])), json!([])));
        assert_eq!(lan.reached(), [false; 3]);
        lan.check_answers();
        lan.ensure(&nic(None, json!([])));
        assert_eq!(lan.reached(), [true; 3]);
        assert!(!rules().contains("wall-lb"), "{}", rules());
    });
}

#[test]
fn a_wall_whose_rules_were_flushed_is_closed_until_they_are_made_again() {
    let name = "real::walls::a_wall_whose_rules_were_flushed_is_closed_until_they_are_made_again";
    in_namespace(name, network_is_possible(), |()| {
        let lan = Lan::new();
        let only_http = nic(Some(json!([tcp(80, "10.77.0.0/24")])), json!([]));
        lan.ensure(&only_http);
        assert_eq!(lan.reached(), [true, false, true]);
        assert!(Command::new("nft").args(["flush", "ruleset"]).status().expect("run nft").success());
        Taps::new().expect("begin again");
        assert_eq!(lan.reached(), [false; 3], "closed");
        assert!(!lan.state(&only_http).as_assigned, "its agent is to make them again");
        lan.ensure(&only_http);
        assert_eq!(lan.reached(), [true, false, true]);
        // What a killed agent has left of a tap that is none.
        let left = "add chain inet lightbyte wall-lb0\n\
                    add element inet lightbyte walls { \"br0\" . 10.77.0.99 : jump wall-lb0 }";
        for command in left.lines() {
            assert!(Command::new("nft").arg(command).status().expect("run nft").success());
        }
        Taps::new().expect("begin again");
        assert!(!rules().contains("wall-lb0"), "{}", rules());
        assert_eq!(lan.reached(), [true, false, true]);
    });
}

#[test]
fn ports_of_the_worker_lead_to_the_vm() {
    let name = "real::walls::ports_of_the_worker_lead_to_the_vm";
    in_namespace(name, network_is_possible(), |()| {
        let lan = Lan::new();
        let ports = json!([{ "worker_port": 8080, "port": 80 }]);
        let open = nic(None, ports.clone());
        let refused = lan.driver.ensure(VM, std::slice::from_ref(&open)).expect_err("nothing is forwarded");
        assert!(refused.to_string().ends_with("`sysctl net.ipv4.conf.br0.forwarding=1`"), "{refused}");
        std::fs::write("/proc/sys/net/ipv4/conf/br0/forwarding", "1").expect("let it forward");
        lan.ensure(&open);
        let through = |from: Option<TcpStream>| {
            let mut client = from?;
            let (mut server, address) = lan.http.accept().expect("a connection");
            is_alive(&mut client, &mut server).then_some(address.ip().to_string())
        };
        assert_eq!(
            through(lan.other.connect("10.77.0.1:8080")).as_deref(),
            Some("10.77.0.42"),
            "it sees whom"
        );
        assert_eq!(through(connect("10.77.0.1:8080")).as_deref(), Some("10.77.0.1"), "the host's own way");
        assert!(lan.other.connect("10.77.0.1:8081").is_none());
        // A firewall looks at who asks, not at the worker.
        lan.ensure(&nic(Some(json!([tcp(80, "10.77.0.42/32")])), ports));
        assert_eq!(through(lan.other.connect("10.77.0.1:8080")).as_deref(), Some("10.77.0.42"));
        assert!(connect("10.77.0.1:8080").is_none());
        lan.ensure(&nic(None, json!([])));
        assert!(lan.other.connect("10.77.0.1:8080").is_none(), "it ends with the VM's wish for it");
        assert!(!rules().contains("ports-lb"), "{}", rules());
    });
}
