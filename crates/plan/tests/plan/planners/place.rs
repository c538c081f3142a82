//! A VM gets its worker, disks and addresses in one transaction, or a reason to wait.

use insta::assert_snapshot;

use crate::world::{guarded, plans};

#[test]
fn a_vm_is_placed_with_everything_in_one_transaction() {
    assert_snapshot!(plans("rack
        vm a", "vm/a"), @"
    claim default 10.77.0.2 for vm/a
    ledger n1 1 CPUs 128MiB 1 VMs
    put asked volume/a-root generation 1 64MiB of demo v1 of vm/a
    put assigned n1 vm/a running sequence 1 generation 1, 1 128MiB, volume/a-root, demo v1, 10.77.0.2/24 on br0
    put decided vm/a on n1 v1 root=a-root default=10.77.0.2, since 60 waits: worker `n1` to start it
    ");
    assert_snapshot!(plans("rack
        vm a cpus=2 memory=256MiB disk=1GiB stopped nonic generation=3 restarts=2 label=team:web", "vm/a"), @"
    ledger n1 2 CPUs 256MiB 1 VMs
    put asked volume/a-root generation 1 1GiB of demo v1 team:web of vm/a
    put assigned n1 vm/a stopped sequence 1 generation 3 restarts 2, 2 256MiB, volume/a-root, demo v1, no NIC
    put decided vm/a on n1 v1 root=a-root, since 60 waits: worker `n1` to stop it
    ");
}

#[test]
fn a_placement_rests_on_all_that_it_was_chosen_from() {
    assert_snapshot!(guarded("rack
        network lan 10.78.0.0/24
        vm a nic=default nic=lan", "vm/a"), @"
    claim default 10.77.0.2 for vm/a
    claim lan 10.78.0.2 for vm/a
    ledger n1 1 CPUs 128MiB 1 VMs
    put asked volume/a-root generation 1 64MiB of demo v1 of vm/a
    put assigned n1 vm/a running sequence 1 generation 1, 1 128MiB, volume/a-root, demo v1, 10.77.0.2/24 on br0 10.78.0.2/24 on br0
    put decided vm/a on n1 v1 root=a-root default=10.77.0.2 lan=10.78.0.2, since 60 waits: worker `n1` to start it
    rests on alive n1
    rests on asked image/demo
    rests on asked network/default
    rests on asked network/lan
    rests on asked vm/a
    rests on asked worker/n1
    rests on no observed n1 vm/a
    rests on observed n1 worker/n1
    ");
}

#[test]
fn vms_spread_over_the_free_workers() {
    assert_snapshot!(plans("rack
        vm b on=n1 observed=running
        vm a", "vm/a"), @"
    claim default 10.77.0.3 for vm/a
    ledger n2 1 CPUs 128MiB 1 VMs
    put asked volume/a-root generation 1 64MiB of demo v1 of vm/a
    put assigned n2 vm/a running sequence 1 generation 1, 1 128MiB, volume/a-root, demo v1, 10.77.0.3/24 on br0
    put decided vm/a on n2 v1 root=a-root default=10.77.0.3, since 60 waits: worker `n2` to start it
    ");
}

#[test]
fn a_vm_without_a_worker_waits_for_room_or_for_workers() {
    let check = |given: &str| plans(&format!("image demo v1\nnetwork default 10.77.0.0/24\n{given}"), "vm/a");
    assert_snapshot!(check("vm a"), @"put decided vm/a since 60 waits: no x86_64 worker is ready to take it");
    assert_snapshot!(check("worker n1 cpus=1
        vm a cpus=2"), @"put decided vm/a since 60 waits: no worker has 2 CPU and 128MiB free");
    assert_snapshot!(check("worker n1 memory=100MiB
        vm a"), @"put decided vm/a since 60 waits: no worker has 1 CPU and 128MiB free");
    assert_snapshot!(check("worker n1 used_cpus=4
        worker n2 cordoned
        vm a"), @"put decided vm/a since 60 waits: no worker has 1 CPU and 128MiB free");
    assert_snapshot!(check("worker n1 cordoned
        worker n2 away
        worker n3 silent
        worker n4 deleting
        worker n5 architecture=aarch64
        vm a"), @"put decided vm/a since 60 waits: no x86_64 worker is ready to take it");
    assert_snapshot!(check("worker n1
        drop ledger/worker/{worker/n1}
        vm a"), @"put decided vm/a since 60 waits: no x86_64 worker is ready to take it");
    assert_snapshot!(check("worker n1
        opaque ledger/worker/{worker/n1}
        worker n2
        vm a"), @"
    claim default 10.77.0.2 for vm/a
    ledger n2 1 CPUs 128MiB 1 VMs
    put asked volume/a-root generation 1 64MiB of demo v1 of vm/a
    put assigned n2 vm/a running sequence 1 generation 1, 1 128MiB, volume/a-root, demo v1, 10.77.0.2/24 on br0
    put decided vm/a on n2 v1 root=a-root default=10.77.0.2, since 60 waits: worker `n2` to start it
    ");
}

#[test]
fn a_vm_goes_to_workers_of_its_architecture() {
    assert_snapshot!(plans("rack
        worker n9 architecture=aarch64
        image arm v1 architecture=aarch64
        vm a image=arm", "vm/a"), @"
    claim default 10.77.0.2 for vm/a
    ledger n9 1 CPUs 128MiB 1 VMs
    put asked volume/a-root generation 1 64MiB of arm v1 of vm/a
    put assigned n9 vm/a running sequence 1 generation 1, 1 128MiB, volume/a-root, arm v1, 10.77.0.2/24 on br0
    put decided vm/a on n9 v1 root=a-root default=10.77.0.2, since 60 waits: worker `n9` to start it
    ");
}

#[test]
fn a_vm_waits_for_what_it_names() {
    assert_snapshot!(plans("rack
        vm a image=other", "vm/a"), @"put decided vm/a since 60 waits: image/other does not exist, or is being deleted");
    assert_snapshot!(plans("rack
        image other v1 deleting
        vm a image=other", "vm/a"), @"put decided vm/a since 60 waits: image/other does not exist, or is being deleted");
    assert_snapshot!(plans("rack
        image other v1,v2 current=v3
        vm a image=other", "vm/a"), @"put decided vm/a since 60 waits: image `other` has no version `v3`");
    assert_snapshot!(plans("rack
        vm a nic=lan", "vm/a"), @"put decided vm/a since 60 waits: network/lan does not exist, or is being deleted");
    assert_snapshot!(plans("rack
        network lan 10.78.0.0/24 deleting
        vm a nic=default nic=lan", "vm/a"), @"put decided vm/a since 60 waits: network/lan does not exist, or is being deleted");
    assert_snapshot!(plans("rack
        vm a disk=63MiB", "vm/a"), @"put decided vm/a since 60 waits: the disk is smaller than the 64MiB that it needs");
}

#[test]
fn a_vm_gets_the_current_version_of_its_image() {
    assert_snapshot!(plans("rack
        image multi v1,v2,v3 current=v2
        vm a image=multi nonic", "vm/a"), @"
    ledger n1 1 CPUs 128MiB 1 VMs
    put asked volume/a-root generation 1 64MiB of multi v2 of vm/a
    put assigned n1 vm/a running sequence 1 generation 1, 1 128MiB, volume/a-root, multi v2, no NIC
    put decided vm/a on n1 v2 root=a-root, since 60 waits: worker `n1` to start it
    ");
}

#[test]
fn addresses_are_the_wished_or_the_first_free_ones() {
    let check = |given: &str| {
        let text = format!("rack\nnetwork lan 10.78.0.0/29 pool=2-4 gateway=10.78.0.3\n{given}");
        let lines: Vec<String> = plans(&text, "vm/a")
            .lines()
            .filter(|line| line.starts_with("claim") || line.contains("waits: network"))
            .map(ToOwned::to_owned)
            .collect();
        lines.join("\n")
    };
    assert_snapshot!(check("vm a nic=lan"), @"claim lan 10.78.0.2 for vm/a");
    assert_snapshot!(check("vm a nic=lan:10.78.0.4"), @"claim lan 10.78.0.4 for vm/a");
    // Not in the pool; the gateway's; held by somebody else; held by an unreadable claim.
    assert_snapshot!(check("vm a nic=lan:10.78.0.5"), @"put decided vm/a since 60 waits: network `lan` has no free address for it");
    assert_snapshot!(check("vm a nic=lan:10.78.0.3"), @"put decided vm/a since 60 waits: network `lan` has no free address for it");
    assert_snapshot!(check("vm b on=n1 nic=lan:10.78.0.4
        vm a nic=lan:10.78.0.4"), @"put decided vm/a since 60 waits: network `lan` has no free address for it");
    assert_snapshot!(check("opaque claimed/address/lan/10.78.0.2
        vm a nic=lan"), @"claim lan 10.78.0.4 for vm/a");
    // The gap between two claims, then the gateway is passed over, then the pool is full.
    assert_snapshot!(check("vm b on=n1 nic=lan:10.78.0.4
        vm a nic=lan"), @"claim lan 10.78.0.2 for vm/a");
    assert_snapshot!(check("vm b on=n1 nic=lan:10.78.0.2
        vm a nic=lan"), @"claim lan 10.78.0.4 for vm/a");
    assert_snapshot!(check("vm b on=n1 nic=lan:10.78.0.2
        vm c on=n1 nic=lan:10.78.0.4
        vm a nic=lan"), @"put decided vm/a since 60 waits: network `lan` has no free address for it");
    // Several NICs of one plan share the pool.
    assert_snapshot!(check("vm a nic=lan nic=default nic=lan"), @"
    claim default 10.77.0.2 for vm/a
    claim lan 10.78.0.2 for vm/a
    claim lan 10.78.0.4 for vm/a
    ");
    assert_snapshot!(check("vm a nic=lan nic=lan nic=lan"), @"put decided vm/a since 60 waits: network `lan` has no free address for it");
    assert_snapshot!(check("vm a nic=lan:10.78.0.2 nic=lan:10.78.0.2"), @"put decided vm/a since 60 waits: network `lan` has no free address for it");
    // A wish after a NIC that took the first free address.
    assert_snapshot!(check("vm a nic=lan nic=lan:10.78.0.2"), @"put decided vm/a since 60 waits: network `lan` has no free address for it");
}

#[test]
fn a_volume_of_the_same_name_is_never_taken_over() {
    assert_snapshot!(plans("rack
        vm a on=n1 volume=unplaced
        drop decided/vm/a
        drop assigned/{worker/n1}/vm/{vm/a}", "vm/a"), @"put decided vm/a since 60 waits: volume/a-root still uses it");
}
