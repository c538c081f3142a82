//! The end of a VM, asked for in every state: delete wins, children first, and nothing is freed on guesses.

use insta::assert_snapshot;

use crate::world::{guarded, plans};

#[test]
fn a_vm_without_a_worker_is_gone_at_once() {
    assert_snapshot!(plans("rack
        vm a deleting", "vm/a"), @"delete asked vm/a");
    // Also while it waits for something, or names something that is gone.
    assert_snapshot!(plans("vm a image=gone deleting", "vm/a"), @"delete asked vm/a");
}

#[test]
fn a_placed_vm_is_told_to_go_with_its_disks() {
    let check = |line: &str| plans(&format!("rack\nvm a on=n1 deleting {line}"), "vm/a");
    // Not claimed yet: the worker may claim at any moment, so it is told first.
    assert_snapshot!(check("volume=unplaced"), @"
    put asked volume/a-root generation 1 64MiB of demo v1 of vm/a deleting
    put assigned n1 vm/a removed sequence 2 generation 1, 1 128MiB, volume/a-root, demo v1, 10.77.0.2/24 on br0
    put decided vm/a on n1 v1 root=a-root default=10.77.0.2, since 60 waits: worker `n1` to remove it, since 60 waits: its child volume/a-root to go
    then
    put decided vm/a on n1 v1 root=a-root default=10.77.0.2, since 60 waits: its child volume/a-root to go
    ");
    assert_snapshot!(check("observed=claimed volume=claimed"), @"
    put asked volume/a-root generation 1 64MiB of demo v1 of vm/a deleting
    put assigned n1 vm/a removed sequence 2 generation 1, 1 128MiB, volume/a-root, demo v1, 10.77.0.2/24 on br0
    put decided vm/a on n1 v1 root=a-root default=10.77.0.2, since 60 waits: worker `n1` to remove it, since 60 waits: its child volume/a-root to go
    ");
    assert_snapshot!(check("observed=running"), @"
    put asked volume/a-root generation 1 64MiB of demo v1 of vm/a deleting
    put assigned n1 vm/a removed sequence 2 generation 1, 1 128MiB, volume/a-root, demo v1, 10.77.0.2/24 on br0
    put decided vm/a on n1 v1 root=a-root default=10.77.0.2, since 60 waits: worker `n1` to remove it, since 60 waits: its child volume/a-root to go
    ");
    assert_snapshot!(check("observed=crashed problem=no_bridge"), @"
    put asked volume/a-root generation 1 64MiB of demo v1 of vm/a deleting
    put assigned n1 vm/a removed sequence 2 generation 1, 1 128MiB, volume/a-root, demo v1, 10.77.0.2/24 on br0
    put decided vm/a on n1 v1 root=a-root default=10.77.0.2, since 60 waits: worker `n1` to remove it, since 60 waits: its child volume/a-root to go
    ");
    // While an edit is under way, delete wins.
    assert_snapshot!(check("generation=5 at_generation=4 observed=running restarts=2 at_restarts=1"), @"
    put asked volume/a-root generation 1 64MiB of demo v1 of vm/a deleting
    put assigned n1 vm/a removed sequence 2 generation 5 restarts 1, 1 128MiB, volume/a-root, demo v1, 10.77.0.2/24 on br0
    put decided vm/a on n1 v1 root=a-root default=10.77.0.2, since 60 waits: worker `n1` to remove it, since 60 waits: its child volume/a-root to go
    ");
}

#[test]
fn a_vm_on_an_absent_worker_waits_for_it() {
    assert_snapshot!(plans("rack
        worker n9 away
        vm a on=n9 observed=running deleting", "vm/a"), @"
    put asked volume/a-root generation 1 64MiB of demo v1 of vm/a deleting
    put assigned n9 vm/a removed sequence 2 generation 1, 1 128MiB, volume/a-root, demo v1, 10.77.0.2/24 on br0
    put decided vm/a on n9 v1 root=a-root default=10.77.0.2, since 60 waits: worker `n9`, which is away, since 60 waits: its child volume/a-root to go
    ");
}

#[test]
fn room_and_addresses_are_freed_when_the_worker_has_nothing_left() {
    let check = |line: &str| {
        plans(&format!("rack\nvm b on=n1 address=10.77.0.5\nvm a on=n1 deleting {line}"), "vm/a")
    };
    // The machine is there still; its disk is there still; both are gone.
    assert_snapshot!(check("wanted=removed observed=stopping volume=gone"), @"put decided vm/a on n1 v1 root=a-root default=10.77.0.2, since 60 waits: worker `n1` to remove it");
    assert_snapshot!(check("wanted=removed volume_deleting volume_removing"), @"put decided vm/a on n1 v1 root=a-root default=10.77.0.2, since 60 waits: its child volume/a-root to go");
    assert_snapshot!(check("wanted=removed volume=gone"), @"
    delete asked vm/a
    delete assigned n1 vm/a
    delete decided vm/a
    ledger n1 1 CPUs 128MiB 1 VMs
    release default 10.77.0.2
    ");
    // The worker need not be alive for that.
    assert_snapshot!(plans("rack
        worker n9 away
        vm a on=n9 deleting wanted=removed volume=gone", "vm/a"), @"
    delete asked vm/a
    delete assigned n9 vm/a
    delete decided vm/a
    ledger n9 0 CPUs 0B 0 VMs
    release default 10.77.0.2
    ");
    // Nor must the assignment be there.
    assert_snapshot!(plans("rack
        vm a on=n1 deleting wanted=removed volume=gone
        drop assigned/{worker/n1}/vm/{vm/a}", "vm/a"), @"
    delete asked vm/a
    delete decided vm/a
    ledger n1 0 CPUs 0B 0 VMs
    release default 10.77.0.2
    ");
}

#[test]
fn the_last_transaction_rests_on_the_absence_of_a_report() {
    assert_snapshot!(guarded("rack
        vm a on=n1 deleting wanted=removed volume=gone", "vm/a"), @"
    delete asked vm/a
    delete assigned n1 vm/a
    delete decided vm/a
    ledger n1 0 CPUs 0B 0 VMs
    release default 10.77.0.2
    rests on no observed n1 vm/a
    ");
}

#[test]
fn only_what_the_vm_holds_is_freed() {
    // Somebody else holds the address by now.
    assert_snapshot!(plans("rack
        vm b on=n2 observed=running
        vm a on=n1 deleting wanted=removed volume=gone
        vm b on=n2 observed=running", "vm/a"), @"
    delete asked vm/a
    delete assigned n1 vm/a
    delete decided vm/a
    ledger n1 0 CPUs 0B 0 VMs
    ");
    assert_snapshot!(plans("rack
        vm a on=n1 deleting wanted=removed volume=gone
        drop claimed/address/default/10.77.0.2", "vm/a"), @"
    delete asked vm/a
    delete assigned n1 vm/a
    delete decided vm/a
    ledger n1 0 CPUs 0B 0 VMs
    ");
}

#[test]
fn unreadable_neighbours_freeze_the_end() {
    let keys = [
        "ledger/worker/{worker/n1}",
        "claimed/address/default/10.77.0.2",
        "asked/volume/a-root",
        "observed/{worker/n1}/vm/{vm/a}",
        "assigned/{worker/n1}/vm/{vm/a}",
    ];
    let found: Vec<String> = keys
        .iter()
        .map(|key| {
            let given = format!("rack\nvm a on=n1 deleting wanted=removed volume=gone\nopaque {key}");
            plans(&given, "vm/a")
        })
        .collect();
    assert_snapshot!(found.join("\n"), @"
    put decided vm/a on n1 v1 root=a-root default=10.77.0.2, since 60 waits: stored value `ledger/worker/00000000-0000-0000-3ad9-1fb3eb40bbb9` cannot be read by this version
    put decided vm/a on n1 v1 root=a-root default=10.77.0.2, since 60 waits: stored value `claimed/address/default/10.77.0.2` cannot be read by this version
    put decided vm/a on n1 v1 root=a-root default=10.77.0.2, since 60 waits: stored value `asked/volume/a-root` cannot be read by this version
    put decided vm/a on n1 v1 root=a-root default=10.77.0.2, since 60 waits: stored value `observed/00000000-0000-0000-3ad9-1fb3eb40bbb9/vm/00000000-0000-0000-1fe3-a200d976e328` cannot be read by this version
    put decided vm/a on n1 v1 root=a-root default=10.77.0.2, since 60 waits: stored value `assigned/00000000-0000-0000-3ad9-1fb3eb40bbb9/vm/00000000-0000-0000-1fe3-a200d976e328` cannot be read by this version
    ");
    // A ledger that is gone is not an empty one.
    assert_snapshot!(plans("rack
        vm a on=n1 deleting wanted=removed volume=gone
        drop ledger/worker/{worker/n1}", "vm/a"), @"put decided vm/a on n1 v1 root=a-root default=10.77.0.2, since 60 waits: stored value `ledger/worker/00000000-0000-0000-3ad9-1fb3eb40bbb9` cannot be read by this version");
}
