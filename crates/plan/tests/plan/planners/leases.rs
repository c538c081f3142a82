//! VMs on networks whose addresses come by DHCP.

use insta::assert_snapshot;
use lightbyte_plan::status;
use serde_json::json;

use crate::world::{object, plans, world};

const HOME: &str = "rack
        network home dhcp";

#[test]
fn nothing_is_claimed_where_a_server_gives_the_addresses() {
    assert_snapshot!(plans(&format!("{HOME}
        vm a nic=home"), "vm/a"), @"
    ledger n1 1 CPUs 128MiB 1 VMs
    put asked volume/a-root generation 1 64MiB of demo v1 of vm/a
    put assigned n1 vm/a running sequence 1 generation 1, 1 128MiB, volume/a-root, demo v1, dhcp on br0
    put decided vm/a on n1 v1 root=a-root home=dhcp, since 60 waits: worker `n1` to start it
    ");
    // Beside a card with a pool.
    assert_snapshot!(plans(&format!("{HOME}
        vm a nic=home nic=default"), "vm/a"), @"
    claim default 10.77.0.2 for vm/a
    ledger n1 1 CPUs 128MiB 1 VMs
    put asked volume/a-root generation 1 64MiB of demo v1 of vm/a
    put assigned n1 vm/a running sequence 1 generation 1, 1 128MiB, volume/a-root, demo v1, dhcp on br0 10.77.0.2/24 on br0
    put decided vm/a on n1 v1 root=a-root home=dhcp default=10.77.0.2, since 60 waits: worker `n1` to start it
    ");
    assert_snapshot!(plans(&format!("{HOME}
        vm a nic=home on=n1 leased observed=stopped wanted=removed deleting"), "vm/a"), @"
    put asked volume/a-root generation 1 64MiB of demo v1 of vm/a deleting
    put decided vm/a on n1 v1 root=a-root home=dhcp, since 60 waits: worker `n1` to remove it, since 60 waits: its child volume/a-root to go
    ");
}

#[test]
fn what_needs_a_known_address_is_refused() {
    let check = |vm: &str| plans(&format!("{HOME}\n{vm}"), "vm/a");
    assert_snapshot!(check("vm a nic=home walled"), @"put decided vm/a since 60 waits: its `firewall` needs an address that is known, and those of network `home` come by DHCP");
    assert_snapshot!(check("vm a nic=home:10.77.0.9"), @"put decided vm/a since 60 waits: its `nics[].address` needs an address that is known, and those of network `home` come by DHCP");
    assert_snapshot!(check("vm a nic=home port=8080:80"), @"put decided vm/a since 60 waits: its `ports` needs an address that is known, and those of network `home` come by DHCP");
    // Ports are those of the first card.
    assert_snapshot!(check("vm a nic=default nic=home port=8080:80"), @"
    claim default 10.77.0.2 for vm/a
    ledger n1 1 CPUs 128MiB 1 VMs port 8080
    put asked volume/a-root generation 1 64MiB of demo v1 of vm/a
    put assigned n1 vm/a running sequence 1 generation 1, 1 128MiB, volume/a-root, demo v1, 10.77.0.2/24 on br0 8080->80 dhcp on br0
    put decided vm/a on n1 v1 root=a-root default=10.77.0.2 home=dhcp, since 60 waits: worker `n1` to start it
    ");
    // One that is placed stays as it is, and that is told.
    assert_snapshot!(check("vm a nic=home walled on=n1 leased observed=running"), @"put decided vm/a on n1 v1 root=a-root home=dhcp, since 60 waits: its `firewall` needs an address that is known, and those of network `home` come by DHCP");
}

#[test]
fn a_status_shows_what_the_worker_saw() {
    let check = |given: &str, expected: &[&str]| {
        let world = world(&format!("{HOME}\nvm a nic=home on=n1 leased observed=running {given}"));
        let status = status::object(&world.view(), &object("vm/a")).expect("the VM").status;
        assert_eq!(status.more["addresses"], json!(expected));
    };
    check("", &[]);
    check("lease=192.168.1.57", &["192.168.1.57"]);
}
