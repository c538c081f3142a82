//! Who holds a volume, where it is made, and what a VM does with it.

use insta::assert_snapshot;

use crate::world::{guarded, plans};

#[test]
fn a_volume_is_made_beside_the_first_vm_that_is_placed_with_it() {
    let alone = "rack
        volume data size=1GiB";
    assert_snapshot!(plans(alone, "volume/data"), @"nothing");
    let named = "rack
        volume data size=1GiB
        vm a nonic attach=data";
    assert_snapshot!(plans(named, "vm/a"), @"put decided vm/a since 60 waits: volume/data to be given to it");
    assert_snapshot!(guarded(named, "volume/data"), @"
    put decided volume/data held by vm/a
    rests on asked vm/a
    rests on asked volume/data
    rests on no decided vm/a
    ");
    let given = "rack
        volume data size=1GiB held=a
        vm a nonic attach=data";
    assert_snapshot!(guarded(given, "vm/a"), @"
    ledger n1 1 CPUs 128MiB 1 VMs
    put asked volume/a-root generation 1 64MiB of demo v1 of vm/a
    put assigned n1 vm/a running sequence 1 generation 1, 1 128MiB, volume/a-root volume/data, demo v1, no NIC
    put decided vm/a on n1 v1 root=a-root data=data, since 60 waits: worker `n1` to start it
    rests on alive n1
    rests on asked image/demo
    rests on asked vm/a
    rests on asked volume/data
    rests on asked worker/n1
    rests on decided volume/data
    rests on no observed n1 vm/a
    rests on observed n1 worker/n1
    ");
    let placed = "rack
        volume data size=1GiB held=a
        vm a nonic on=n2 attach=data observed=claimed";
    assert_snapshot!(guarded(placed, "volume/data"), @"
    put assigned n2 volume/data present sequence 1 generation 1, 1GiB blank ext4
    put decided volume/data on n2 held by vm/a, since 60 waits: worker `n2` to make the disk
    rests on asked volume/data
    rests on decided vm/a
    rests on no observed n2 volume/data
    ");
}

#[test]
fn a_volume_that_says_where_is_made_at_once() {
    assert_snapshot!(plans("rack
        volume data size=1GiB worker=n2", "volume/data"), @"
    put assigned n2 volume/data present sequence 1 generation 1, 1GiB blank ext4
    put decided volume/data on n2, since 60 waits: worker `n2` to make the disk
    ");
    assert_snapshot!(plans("rack
        volume data size=1GiB worker=n9", "volume/data"), @"put decided volume/data since 60 waits: worker/n9 does not exist, or is being deleted");
    assert_snapshot!(plans("rack
        volume data image=demo size=2GiB worker=n1", "volume/data"), @"
    put assigned n1 volume/data present sequence 1 generation 1, 2GiB
    put decided volume/data on n1, since 60 waits: worker `n1` to make the disk
    ");
    assert_snapshot!(plans("rack
        volume data image=demo size=1MiB worker=n1", "volume/data"), @"put decided volume/data since 60 waits: the disk is smaller than the 64MiB that it needs");
}

#[test]
fn a_vm_goes_where_its_volumes_are() {
    assert_snapshot!(plans("rack
        volume data on=n2 held=a size=1GiB
        vm a nonic attach=data", "vm/a"), @"
    ledger n2 1 CPUs 128MiB 1 VMs
    put asked volume/a-root generation 1 64MiB of demo v1 of vm/a
    put assigned n2 vm/a running sequence 1 generation 1, 1 128MiB, volume/a-root volume/data, demo v1, no NIC
    put decided vm/a on n2 v1 root=a-root data=data, since 60 waits: worker `n2` to start it
    ");
    // No room there, away, or on two workers.
    let check = |ground: &str| {
        plans(
            &format!(
                "{ground}
        image demo v1 root=64MiB
        volume data on=n2 held=a size=1GiB
        volume logs on=n1 held=a size=1GiB
        vm a nonic cpus=2 attach=data"
            ),
            "vm/a",
        )
    };
    assert_snapshot!(check("worker n1\nworker n2 cpus=1"), @"put decided vm/a since 60 waits: its worker `n2` has no room for it to have 2 CPU and 128MiB");
    assert_snapshot!(check("worker n1\nworker n2 away"), @"put decided vm/a since 60 waits: its volumes are on worker `n2`, which takes no VM now");
    assert_snapshot!(plans("rack
        volume data on=n2 held=a size=1GiB
        volume logs on=n1 held=a size=1GiB
        vm a nonic attach=data attach=logs", "vm/a"), @"put decided vm/a since 60 waits: volume/logs is on worker `n1`, and it cannot be there");
}

#[test]
fn a_volume_has_one_writer_or_many_readers() {
    let check = |given: &str| plans(&format!("rack\n{given}"), "volume/data");
    assert_snapshot!(check("volume data size=1GiB held=a
        vm a nonic attach=data
        vm b nonic attach=data"), @"nothing");
    assert_snapshot!(check("volume data size=1GiB held=a:ro
        vm a nonic attach=data:ro
        vm b nonic attach=data:ro
        vm c nonic attach=data"), @"put decided volume/data held by vm/a:ro held by vm/b:ro");
    assert_snapshot!(check("volume data size=1GiB
        vm a nonic attach=data
        vm b nonic attach=data:ro"), @"put decided volume/data held by vm/a");
    // The only reader that wants to write may.
    assert_snapshot!(check("volume data size=1GiB held=a:ro
        vm a nonic attach=data"), @"put decided volume/data held by vm/a");
    assert_snapshot!(plans("rack
        volume data size=1GiB held=a
        vm a nonic attach=data
        vm b nonic attach=data", "vm/b"), @"put decided vm/b since 60 waits: volume/data is attached to vm/a");
    // Somebody's root disk is nobody else's.
    assert_snapshot!(plans("rack
        vm a nonic on=n1 observed=running
        vm b nonic attach=a-root", "vm/b"), @"put decided vm/b since 60 waits: volume/a-root is attached to vm/a");
}

#[test]
fn a_volume_is_held_until_no_machine_can_use_it() {
    let check = |given: &str| plans(&format!("rack\n{given}"), "volume/data");
    // Named no more, and its machine may still run with it.
    assert_snapshot!(check("volume data on=n1 held=a size=1GiB
        vm a nonic on=n1 had=data observed=running
        vm b nonic attach=data"), @"nothing");
    // Named no more, and placed without it.
    assert_snapshot!(check("volume data on=n1 held=a size=1GiB
        vm a nonic on=n1 observed=running
        vm b nonic attach=data"), @"put decided volume/data on n1 held by vm/b");
    // Its holder is gone, or another VM of the same name.
    assert_snapshot!(check("volume data on=n1 held=a size=1GiB"), @"put decided volume/data on n1");
    // What cannot be read may use it.
    assert_snapshot!(check("volume data on=n1 held=a size=1GiB
        opaque asked/vm/a"), @"put decided volume/data on n1 held by vm/a, since 60 waits: stored value `asked/vm/a` cannot be read by this version");
}

#[test]
fn a_running_vm_changes_at_its_next_start() {
    let check = |given: &str| plans(&format!("rack\n{given}"), "vm/a");
    // Attach: assigned with a new shape.
    assert_snapshot!(check("volume data size=1GiB on=n1 held=a
        vm a nonic on=n1 wants=data observed=running"), @"
    put assigned n1 vm/a running sequence 2 generation 1 shape 2, 1 128MiB, volume/a-root volume/data, demo v1, no NIC
    put decided vm/a on n1 v1 root=a-root data=data, since 60 waits: worker `n1` to start it
    ");
    assert_snapshot!(check("volume data size=1GiB on=n2 held=a
        vm a nonic on=n1 wants=data observed=running"), @"put decided vm/a on n1 v1 root=a-root, since 60 waits: volume/data is on worker `n2`, and it cannot be there");
    assert_snapshot!(check("volume data size=1GiB on=n1 held=b
        vm b nonic attach=data
        vm a nonic on=n1 wants=data observed=running"), @"put decided vm/a on n1 v1 root=a-root, since 60 waits: volume/data is attached to vm/b");
    // Detach: assigned without it, and still held.
    assert_snapshot!(check("volume data size=1GiB on=n1 held=a
        vm a nonic on=n1 had=data observed=running"), @"
    put assigned n1 vm/a running sequence 2 generation 1 shape 2, 1 128MiB, volume/a-root, demo v1, no NIC
    put decided vm/a on n1 v1 root=a-root data=data, since 60 waits: worker `n1` to start it
    ");
    // More processors are counted at once, fewer when nothing runs with more.
    assert_snapshot!(check("vm a nonic on=n1 cpus=3 had_cpus=1 observed=running"), @"
    ledger n1 3 CPUs 128MiB 1 VMs
    put assigned n1 vm/a running sequence 2 generation 1 shape 2, 3 128MiB, volume/a-root, demo v1, no NIC
    put decided vm/a on n1 v1 root=a-root, since 60 waits: worker `n1` to start it
    ");
    assert_snapshot!(check("vm a nonic on=n1 cpus=5 had_cpus=1 observed=running"), @"put decided vm/a on n1 v1 root=a-root, since 60 waits: its worker `n1` has no room for it to have 5 CPU and 128MiB");
    assert_snapshot!(check("vm a nonic on=n1 cpus=1 had_cpus=3 observed=running"), @"
    put assigned n1 vm/a running sequence 2 generation 1 shape 2, 1 128MiB, volume/a-root, demo v1, no NIC
    put decided vm/a on n1 v1 root=a-root, since 60 waits: worker `n1` to start it
    ");
    // Stopping never waits for a change that cannot be.
    assert_snapshot!(check("vm a nonic on=n1 cpus=5 had_cpus=1 stopped wanted=running observed=running"), @"
    put assigned n1 vm/a stopped sequence 2 generation 1, 1 128MiB, volume/a-root, demo v1, no NIC
    put decided vm/a on n1 v1 root=a-root, since 60 waits: its worker `n1` has no room for it to have 5 CPU and 128MiB, since 60 waits: worker `n1` to stop it
    ");
}

#[test]
fn volumes_grow_and_own_disks_grow_through_their_vm() {
    assert_snapshot!(plans("rack
        volume data on=n1 size=2GiB had_size=1GiB", "volume/data"), @"
    put assigned n1 volume/data present sequence 2 generation 1, 2GiB blank ext4
    put decided volume/data on n1, since 60 waits: worker `n1` to make the disk larger
    ");
    assert_snapshot!(plans("rack
        vm a nonic on=n1 grow=1GiB observed=running", "vm/a"), @"put asked volume/a-root generation 2 1GiB of demo v1 of vm/a");
}

#[test]
fn snapshots_are_taken_where_the_volume_is_and_make_volumes() {
    assert_snapshot!(guarded("rack
        volume data on=n2 size=1GiB
        snapshot s of=data", "snapshot/s"), @"
    put assigned n2 snapshot/s present sequence 1 generation 1, 1GiB of volume/data
    put decided snapshot/s on n2 1GiB, since 60 waits: worker `n2` to make the disk
    rests on asked snapshot/s
    rests on asked volume/data
    rests on assigned n2 volume/data
    rests on decided volume/data
    rests on no observed n2 snapshot/s
    ");
    assert_snapshot!(plans("rack
        volume data size=1GiB
        snapshot s of=data", "snapshot/s"), @"put decided snapshot/s since 60 waits: volume/data is not made yet");
    assert_snapshot!(plans("rack
        snapshot s of=data", "snapshot/s"), @"put decided snapshot/s since 60 waits: volume/data does not exist, or is being deleted");
    assert_snapshot!(guarded("rack
        snapshot s on=n2
        volume copy snapshot=s", "volume/copy"), @"
    put assigned n2 volume/copy present sequence 1 generation 1, 1GiB of snapshot/s
    put decided volume/copy on n2, since 60 waits: worker `n2` to make the disk
    rests on asked snapshot/s
    rests on asked volume/copy
    rests on decided snapshot/s
    rests on no observed n2 volume/copy
    rests on observed n2 snapshot/s
    ");
    assert_snapshot!(plans("rack
        snapshot s on=n2 observed=claimed
        volume copy snapshot=s", "volume/copy"), @"put decided volume/copy since 60 waits: snapshot/s is not made yet");
    assert_snapshot!(plans("rack
        snapshot s on=n2
        volume copy snapshot=s size=1MiB", "volume/copy"), @"put decided volume/copy since 60 waits: the disk is smaller than the 1GiB that it needs");
}

#[test]
fn what_is_used_is_not_deleted() {
    let check = |given: &str, object: &str| plans(&format!("rack\n{given}"), object);
    assert_snapshot!(check("volume data on=n1 size=1GiB deleting held=a
        vm a nonic on=n1 attach=data observed=running", "volume/data"), @"put decided volume/data on n1 held by vm/a, since 60 waits: volume/data is attached to vm/a");
    // Promised before its end was asked for: without it that VM would never start.
    assert_snapshot!(check("volume data size=1GiB deleting held=a
        vm a nonic on=n1 attach=data observed=claimed", "volume/data"), @"
    put assigned n1 volume/data present sequence 1 generation 1, 1GiB blank ext4
    put decided volume/data on n1 held by vm/a, since 60 waits: worker `n1` to make the disk
    then
    put decided volume/data on n1 held by vm/a, since 60 waits: volume/data is attached to vm/a
    ");
    assert_snapshot!(check("volume data on=n1 size=1GiB deleting
        snapshot s of=data on=n1 observed=claimed", "volume/data"), @"put decided volume/data on n1, since 60 waits: snapshot/s still uses it");
    assert_snapshot!(check("volume data on=n1 size=1GiB deleting
        snapshot s of=data on=n1", "volume/data"), @"
    put assigned n1 volume/data removed sequence 2 generation 1, 1GiB blank ext4
    put decided volume/data on n1, since 60 waits: worker `n1` to remove it
    ");
    assert_snapshot!(check("snapshot s on=n1 deleting
        volume copy snapshot=s on=n1 observed=claimed", "snapshot/s"), @"put decided snapshot/s on n1 1GiB, since 60 waits: volume/copy still uses it");
    assert_snapshot!(check("snapshot s on=n1 deleting removing observed=nothing", "snapshot/s"), @"
    delete asked snapshot/s
    delete assigned n1 snapshot/s
    delete decided snapshot/s
    ");
    assert_snapshot!(check("volume data size=1GiB deleting", "volume/data"), @"delete asked volume/data");
}
