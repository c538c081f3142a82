//! Firewalls with the addresses of those that their labels name, and ports of workers.

use std::fmt::Write as _;

use insta::assert_snapshot;

use crate::world::plans;

#[test]
fn labels_become_the_addresses_of_those_who_have_them() {
    let others = "rack
        vm b on=n2 address=10.77.0.5 label=app:web
        vm c on=n2 address=10.77.0.4 label=app:web
        vm d on=n2 address=10.77.0.6 label=app:db
        vm e on=n2 address=10.77.0.7 label=app:web deleting";
    assert_snapshot!(plans(&format!("{others}
        vm a opens=app:web opens=10.78.0.0/24 opens=app:nobody label=app:web"), "vm/a"), @"
    claim default 10.77.0.2 for vm/a
    ledger n1 1 CPUs 128MiB 1 VMs
    put asked volume/a-root generation 1 64MiB of demo v1 app:web of vm/a
    put assigned n1 vm/a running sequence 1 generation 1, 1 128MiB, volume/a-root, demo v1, 10.77.0.2/24 on br0 walled [tcp from 10.77.0.4/32,10.77.0.5/32; tcp from 10.78.0.0/24]
    put decided vm/a on n1 v1 root=a-root default=10.77.0.2, since 60 waits: worker `n1` to start it
    ");
    assert_snapshot!(plans(&format!("{others}
        vm a walled"), "vm/a"), @"
    claim default 10.77.0.2 for vm/a
    ledger n1 1 CPUs 128MiB 1 VMs
    put asked volume/a-root generation 1 64MiB of demo v1 of vm/a
    put assigned n1 vm/a running sequence 1 generation 1, 1 128MiB, volume/a-root, demo v1, 10.77.0.2/24 on br0 walled []
    put decided vm/a on n1 v1 root=a-root default=10.77.0.2, since 60 waits: worker `n1` to start it
    ");
    // One that is placed follows them.
    assert_snapshot!(plans(&format!("{others}
        vm a opens=app:web on=n1 observed=running"), "vm/a"), @"
    put assigned n1 vm/a running sequence 2 generation 1, 1 128MiB, volume/a-root, demo v1, 10.77.0.2/24 on br0 walled [tcp from 10.77.0.4/32,10.77.0.5/32]
    put decided vm/a on n1 v1 root=a-root default=10.77.0.2, since 60 waits: worker `n1` to start it
    ");
}

#[test]
fn labels_that_come_to_too_many_addresses_are_a_reason_to_wait() {
    let mut world = "rack\nnetwork big 10.79.0.0/16".to_owned();
    // Four cards each: 257 addresses and more.
    for index in 1..=65 {
        let nics: String = (1..=4).map(|card| format!(" nic=big:10.79.{card}.{index}")).collect();
        let _ = write!(world, "\nvm w{index}{nics} on=n2 label=app:web");
    }
    assert_snapshot!(plans(&format!("{world}\nvm a opens=app:web"), "vm/a"), @"put decided vm/a since 60 waits: the labels that its firewall names come to more than 256 addresses");
    assert_snapshot!(plans(&format!("{world}\nvm a walled opens=app:web on=n1 observed=running"), "vm/a"), @"
    put assigned n1 vm/a running sequence 2 generation 1, 1 128MiB, volume/a-root, demo v1, 10.77.0.2/24 on br0 walled []
    put decided vm/a on n1 v1 root=a-root default=10.77.0.2, since 60 waits: the labels that its firewall names come to more than 256 addresses, since 60 waits: worker `n1` to start it
    then
    put decided vm/a on n1 v1 root=a-root default=10.77.0.2, since 60 waits: the labels that its firewall names come to more than 256 addresses
    ");
}

#[test]
fn a_port_of_a_worker_is_one_vms() {
    assert_snapshot!(plans("rack
        vm a port=8080:80 port=9090:90", "vm/a"), @"
    claim default 10.77.0.2 for vm/a
    ledger n1 1 CPUs 128MiB 1 VMs port 8080 port 9090
    put asked volume/a-root generation 1 64MiB of demo v1 of vm/a
    put assigned n1 vm/a running sequence 1 generation 1, 1 128MiB, volume/a-root, demo v1, 10.77.0.2/24 on br0 8080->80 9090->90
    put decided vm/a on n1 v1 root=a-root default=10.77.0.2, since 60 waits: worker `n1` to start it
    ");
    assert_snapshot!(plans("rack
        vm b on=n2 address=10.77.0.3 port=8080:80 observed=running
        vm a port=8080:80", "vm/a"), @"
    claim default 10.77.0.2 for vm/a
    ledger n1 1 CPUs 128MiB 1 VMs port 8080
    put asked volume/a-root generation 1 64MiB of demo v1 of vm/a
    put assigned n1 vm/a running sequence 1 generation 1, 1 128MiB, volume/a-root, demo v1, 10.77.0.2/24 on br0 8080->80
    put decided vm/a on n1 v1 root=a-root default=10.77.0.2, since 60 waits: worker `n1` to start it
    ");
    assert_snapshot!(plans("rack
        vm b on=n2 address=10.77.0.3 port=8080:80 observed=running
        vm c on=n1 address=10.77.0.4 port=8080:80 observed=running
        vm a port=8080:80", "vm/a"), @"put decided vm/a since 60 waits: no worker that could take it has all of its ports free: tcp 8080");
    assert_snapshot!(plans("rack
        vm a on=n1 port=8080:80 wanted=removed sequence=2 deleting volume=gone", "vm/a"), @"
    delete asked vm/a
    delete assigned n1 vm/a
    delete decided vm/a
    ledger n1 0 CPUs 0B 0 VMs
    release default 10.77.0.2
    ");
}
