//! A machine that has an address which a VM is about to have is heard on the wire, and nobody else is taken for one.

use std::net::Ipv4Addr;
use std::process::Command;
use std::time::{Duration, Instant};

use lightbyte_api::observed::Squatter;
use lightbyte_api::{MacAddress, Uid, VmId};
use lightbyte_vmm::{Network as _, TapState, Taps};

use super::machine::Machine;
use super::taps::{address_of, nic};
use super::{in_namespace, network_is_possible};

const VM: VmId = VmId::new(Uid::from_bits(0x81));
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 31);
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 32);
const MAC: &str = "02:00:00:00:00:99";
/// How long a probe may take on a loaded machine.
const PROBE_MAX: Duration = Duration::from_millis(600);

fn mac(text: &str) -> MacAddress {
    text.parse().expect("a hardware address")
}

#[test]
fn a_squatter_is_heard_and_nobody_else_is_taken_for_one() {
    let name = "real::squatters::a_squatter_is_heard_and_nobody_else_is_taken_for_one";
    in_namespace(name, network_is_possible(), |()| {
        let taps = Taps::new().expect("make the rules");
        let mut machine = Machine::new("wire", MAC);
        let probe = |address: Ipv4Addr| {
            let nics = [nic(VM, address)];
            taps.ensure(VM, &nics).expect("make a tap");
            let begin = Instant::now();
            let found = taps.probe(VM, &nics).expect("an answer");
            let took = begin.elapsed();
            eprintln!("a probe for {address}, which {} have, took {took:?}", found.len());
            assert!(took < PROBE_MAX, "{took:?}");
            let state = taps.state(VM, &nics).expect("an answer");
            assert_eq!(
                state,
                TapState { count: 1, as_assigned: true, probed: found.is_empty(), ..TapState::default() }
            );
            found
        };
        let squatted = |address, text| vec![Squatter { nic: 0, address, mac: mac(text) }];
        assert_eq!(probe(ADDRESS), []);
        // What was found out stays with the tap, and goes with another address.
        let again = [nic(VM, ADDRESS)];
        taps.ensure(VM, &again).expect("as it is");
        assert!(taps.state(VM, &again).expect("an answer").probed);
        assert_eq!(
            taps.state(VM, &[nic(VM, OTHER)]).expect("an answer"),
            TapState { count: 1, as_assigned: false, probed: false, ..TapState::default() }
        );
        machine.ip(&format!("addr add {ADDRESS}/24 dev eth0"));
        taps.remove(VM).expect("remove it");
        assert_eq!(probe(ADDRESS), squatted(ADDRESS, MAC));
        assert_eq!(probe(OTHER), []);
        assert_eq!(probe(ADDRESS), squatted(ADDRESS, MAC));
        // A copy of the VM's own words, as a switch that learns may send them back.
        machine.ip(&format!("link set eth0 address {}", nic(VM, ADDRESS).mac));
        assert_eq!(probe(ADDRESS), []);
        // The host answers nothing that it sends itself.
        let bridge = address_of("br0");
        let gateway = Ipv4Addr::new(10, 77, 0, 1);
        assert_eq!(probe(gateway), squatted(gateway, &bridge));
        let down = Command::new("ip").args(["link", "set", "br0", "down"]).status().expect("run ip");
        assert!(down.success());
        let refused = taps.probe(VM, &[nic(VM, OTHER)]).expect_err("nothing can be heard");
        assert_eq!(refused.to_string(), "bridge `br0` is down");
        taps.remove(VM).expect("remove it");
    });
}
