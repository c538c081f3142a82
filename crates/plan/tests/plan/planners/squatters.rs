//! Addresses that somebody else turns out to have.

use insta::assert_snapshot;

use crate::world::{guarded, plans};

#[test]
fn a_squatted_address_is_exchanged_for_the_next_free_one() {
    assert_snapshot!(plans("rack
        vm a on=n1 observed=claimed squatted=10.77.0.2", "vm/a"), @"
    claim default 10.77.0.2 squatted by 02:00:00:00:00:09
    claim default 10.77.0.3 for vm/a
    put assigned n1 vm/a running sequence 2 generation 1, 1 128MiB, volume/a-root, demo v1, 10.77.0.3/24 on br0
    put decided vm/a on n1 v1 root=a-root default=10.77.0.3, since 60 waits: worker `n1` to start it
    ");
    // Rests on the report that it does not run, and on the network that gives the other.
    assert_snapshot!(guarded("rack
        vm b on=n2 address=10.77.0.3
        vm a on=n1 observed=claimed squatted=10.77.0.2", "vm/a"), @"
    claim default 10.77.0.2 squatted by 02:00:00:00:00:09
    claim default 10.77.0.4 for vm/a
    put assigned n1 vm/a running sequence 2 generation 1, 1 128MiB, volume/a-root, demo v1, 10.77.0.4/24 on br0
    put decided vm/a on n1 v1 root=a-root default=10.77.0.4, since 60 waits: worker `n1` to start it
    rests on asked network/default
    rests on asked vm/a
    rests on observed n1 vm/a
    ");
}

#[test]
fn of_two_cards_the_squatted_one_alone_is_exchanged() {
    assert_snapshot!(plans("rack
        network lan 10.78.0.0/24
        vm a nic=default:10.77.0.2 nic=lan on=n1 observed=claimed address=10.78.0.2 squatted=10.78.0.2", "vm/a"), @"
    claim lan 10.78.0.2 squatted by 02:00:00:00:00:09
    claim lan 10.78.0.3 for vm/a
    put assigned n1 vm/a running sequence 2 generation 1, 1 128MiB, volume/a-root, demo v1, 10.77.0.2/24 on br0 10.78.0.3/24 on br0
    put decided vm/a on n1 v1 root=a-root default=10.77.0.2 lan=10.78.0.3, since 60 waits: worker `n1` to start it
    ");
}

#[test]
fn a_vm_that_can_have_no_other_address_waits() {
    assert_snapshot!(plans("rack
        vm a nic=default:10.77.0.5 on=n1 observed=claimed squatted=10.77.0.5", "vm/a"), @"put decided vm/a on n1 v1 root=a-root default=10.77.0.5, since 60 waits: 10.77.0.5 of network `default` is in use by a machine that is no VM of ours: worker `n1` heard 02:00:00:00:00:09 answer for it");
    assert_snapshot!(plans("rack
        network default 10.77.0.0/24 pool=2-2
        vm a on=n1 observed=claimed squatted=10.77.0.2", "vm/a"), @"put decided vm/a on n1 v1 root=a-root default=10.77.0.2, since 60 waits: 10.77.0.2 of network `default` is in use by a machine that is no VM of ours: worker `n1` heard 02:00:00:00:00:09 answer for it");
    assert_snapshot!(plans("rack
        squatted default 10.77.0.5
        vm a nic=default:10.77.0.5", "vm/a"), @"put decided vm/a since 60 waits: 10.77.0.5 of network `default` is in use by a machine that is no VM of ours: worker `n1` heard 02:00:00:00:00:09 answer for it");
    assert_snapshot!(plans("rack
        vm a on=n1 observed=claimed squatted=10.77.0.2
        opaque claimed/address/default/10.77.0.2", "vm/a"), @"put decided vm/a on n1 v1 root=a-root default=10.77.0.2, since 60 waits: stored value `claimed/address/default/10.77.0.2` cannot be read by this version");
}

#[test]
fn a_report_on_an_older_assignment_changes_nothing() {
    assert_snapshot!(plans("rack
        vm a on=n1 sequence=2 seen=1 observed=claimed squatted=10.77.0.2", "vm/a"), @"put decided vm/a on n1 v1 root=a-root default=10.77.0.2, since 60 waits: worker `n1` to start it");
}

#[test]
fn squatted_addresses_are_not_given_and_go_with_their_network() {
    assert_snapshot!(plans("rack
        squatted default 10.77.0.2
        vm a", "vm/a"), @"
    claim default 10.77.0.3 for vm/a
    ledger n1 1 CPUs 128MiB 1 VMs
    put asked volume/a-root generation 1 64MiB of demo v1 of vm/a
    put assigned n1 vm/a running sequence 1 generation 1, 1 128MiB, volume/a-root, demo v1, 10.77.0.3/24 on br0
    put decided vm/a on n1 v1 root=a-root default=10.77.0.3, since 60 waits: worker `n1` to start it
    ");
    assert_snapshot!(plans("rack
        squatted default 10.77.0.2
        vm a on=n1 address=10.77.0.3 wanted=removed sequence=2 deleting volume=gone", "vm/a"), @"
    delete asked vm/a
    delete assigned n1 vm/a
    delete decided vm/a
    ledger n1 0 CPUs 0B 0 VMs
    release default 10.77.0.3
    ");
    assert_snapshot!(plans("network lan 10.78.0.0/24 deleting
        squatted lan 10.78.0.2
        squatted lan 10.78.0.3", "network/lan"), @"
    release lan 10.78.0.2
    release lan 10.78.0.3
    then
    delete asked network/lan
    ");
}
