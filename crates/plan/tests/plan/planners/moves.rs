//! How a disk changes its worker, step by step, and the copies that a volume has taken of it.

use insta::assert_snapshot;

use crate::world::{guarded, plans};

/// What is written for `volume/data`, asked to be on n2, in a world with this line.
fn moving(line: &str) -> String {
    plans(&format!("rack\n volume data size=1GiB worker=n2 {line}"), "volume/data")
}

#[test]
fn a_volume_that_nobody_has_is_held_fetched_released_and_handed_over() {
    assert_snapshot!(moving("on=n1"), @"
    put assigned n2 volume/data present sequence 2 generation 1, 1GiB blank ext4 arriving from worker/n1
    put decided volume/data on n1 and n2, since 60 waits: worker `n2` to fetch the disk
    then
    put assigned n1 volume/data held sequence 2 generation 1, 1GiB blank ext4
    put decided volume/data on n1 and n2, since 60 waits: worker `n1` to let go of the disk
    ");
    assert_snapshot!(moving("on=n1 elsewhere=n2 arriving=used assigned=held observed=held"), @"
    put assigned n2 volume/data present sequence 2 generation 1, 1GiB blank ext4 arriving from worker/n1, held
    put decided volume/data on n1 and n2, since 60 waits: worker `n2` to fetch the disk
    ");
    assert_snapshot!(moving("on=n1 elsewhere=n2 arriving=held assigned=held observed=held"), @"put decided volume/data on n1 and n2, since 60 waits: worker `n2` to fetch the disk");
    assert_snapshot!(moving("on=n1 elsewhere=n2 arriving=held assigned=held observed=held fetched=complete"), @"
    put assigned n1 volume/data released sequence 2 generation 1, 1GiB blank ext4
    put decided volume/data on n1 and n2, since 60 waits: worker `n1` to let go of the disk
    ");
    let released = "on=n1 elsewhere=n2 arriving=held assigned=released observed=released fetched=complete";
    assert_snapshot!(moving(released), @"
    put assigned n2 volume/data present sequence 2 generation 1, 1GiB blank ext4
    put decided volume/data on n2 and n1, since 60 waits: worker `n2` to fetch the disk
    ");
    // It is the other's now.
    let arrived = "on=n2 elsewhere=n1 left=released fetched=released";
    assert_snapshot!(moving(&format!("{arrived} observed=complete")), @"put decided volume/data on n2 and n1, since 60 waits: worker `n2` to fetch the disk");
    assert_snapshot!(moving(&format!("{arrived} observed=present")), @"
    put assigned n1 volume/data quarantined sequence 2 generation 1, 1GiB blank ext4
    put decided volume/data on n2 and n1, since 60 waits: worker `n1` to remove it
    ");
    assert_snapshot!(moving("on=n2 elsewhere=n1 left=quarantined fetched=released"), @"put decided volume/data on n2 and n1, since 60 waits: worker `n1` to remove it");
    assert_snapshot!(moving("on=n2 elsewhere=n1 left=quarantined"), @"
    delete assigned n1 volume/data
    put decided volume/data on n2
    ");
    assert_snapshot!(moving("on=n2"), @"nothing");
}

#[test]
fn a_move_rests_on_what_both_workers_said() {
    let line = "rack
        volume data size=1GiB worker=n2 on=n1 elsewhere=n2 arriving=held assigned=held observed=held fetched=complete";
    assert_snapshot!(guarded(line, "volume/data"), @"
    put assigned n1 volume/data released sequence 2 generation 1, 1GiB blank ext4
    put decided volume/data on n1 and n2, since 60 waits: worker `n1` to let go of the disk
    rests on asked volume/data
    rests on assigned n2 volume/data
    rests on observed n1 volume/data
    rests on observed n2 volume/data
    ");
}

#[test]
fn nothing_counts_that_was_said_before_it_was_asked() {
    // Reports are of sequence 1.
    let old = "sequence=2 on=n1 elsewhere=n2";
    assert_snapshot!(moving(&format!("{old} arriving=used assigned=held observed=held")), @"put decided volume/data on n1 and n2, since 60 waits: worker `n1` to let go of the disk");
    assert_snapshot!(moving(&format!("{old} arriving=held assigned=held observed=held fetched=complete")), @"put decided volume/data on n1 and n2, since 60 waits: worker `n1` to let go of the disk");
    assert_snapshot!(moving(&format!("{old} arriving=held assigned=released observed=released fetched=complete")), @"put decided volume/data on n1 and n2, since 60 waits: worker `n2` to fetch the disk");
}

#[test]
fn a_volume_that_somebody_has_is_fetched_and_waits_for_him() {
    let attached = |line: &str| {
        let world = format!(
            "rack
            volume data size=1GiB worker=n2 held=a on=n1 elsewhere=n2 arriving=used {line}
            vm a nonic on=n1 attach=data observed=running volume=present
            vm b nonic attach=data:ro"
        );
        plans(&world, "volume/data")
    };
    assert_snapshot!(attached("fetched=claimed"), @"put decided volume/data on n1 and n2 held by vm/a, since 60 waits: worker `n2` to fetch the disk");
    assert_snapshot!(attached("fetched=copied"), @"put decided volume/data on n1 and n2 held by vm/a, since 60 waits: volume/data is attached to vm/a");
    // Who does not have it already is not given it.
    assert_snapshot!(plans("rack
        volume data size=1GiB worker=n2 on=n1 elsewhere=n2 arriving=used
        vm b nonic attach=data", "volume/data"), @"
    put assigned n1 volume/data held sequence 2 generation 1, 1GiB blank ext4
    put decided volume/data on n1 and n2, since 60 waits: worker `n1` to let go of the disk
    ");
}

#[test]
fn a_move_is_taken_back_until_the_disk_was_to_be_released() {
    let stays = |line: &str| plans(&format!("rack\n volume data size=1GiB worker=n1 {line}"), "volume/data");
    assert_snapshot!(stays("on=n1 elsewhere=n2 arriving=used fetched=claimed"), @"
    put assigned n1 volume/data present sequence 3 generation 1, 1GiB blank ext4
    put assigned n2 volume/data removed sequence 2 generation 1, 1GiB blank ext4 arriving from worker/n1
    put decided volume/data on n1 and n2, since 60 waits: worker `n2` to remove it
    ");
    assert_snapshot!(stays("on=n1 elsewhere=n2 arriving=held assigned=held observed=held fetched=complete"), @"
    put assigned n1 volume/data present sequence 3 generation 1, 1GiB blank ext4
    put assigned n2 volume/data removed sequence 2 generation 1, 1GiB blank ext4 arriving from worker/n1, held
    put decided volume/data on n1 and n2, since 60 waits: worker `n2` to remove it
    then
    put decided volume/data on n1 and n2, since 60 waits: worker `n1` to make the disk, since 60 waits: worker `n2` to remove it
    ");
    assert_snapshot!(stays("on=n1 elsewhere=n2 left=removed fetched=claimed"), @"put decided volume/data on n1 and n2, since 60 waits: worker `n2` to remove it");
    assert_snapshot!(stays("on=n1 elsewhere=n2 left=removed"), @"
    delete assigned n2 volume/data
    put decided volume/data on n1
    ");
    // Then it goes on, and comes back by another move.
    let released = "on=n1 elsewhere=n2 arriving=held assigned=released observed=released fetched=complete";
    assert_snapshot!(stays(released), @"
    put assigned n2 volume/data present sequence 2 generation 1, 1GiB blank ext4
    put decided volume/data on n2 and n1, since 60 waits: worker `n2` to fetch the disk
    ");
    // The worker that it was to go to is gone.
    assert_snapshot!(plans("worker n1 cpus=4 memory=1GiB
        worker n2 cpus=4 memory=1GiB deleting
        volume data size=1GiB worker=n2 on=n1 elsewhere=n2 arriving=used", "volume/data"), @"
    put assigned n1 volume/data present sequence 3 generation 1, 1GiB blank ext4
    put assigned n2 volume/data removed sequence 2 generation 1, 1GiB blank ext4 arriving from worker/n1
    put decided volume/data on n1 and n2, since 60 waits: worker `n2` to remove it
    then
    delete assigned n2 volume/data
    put decided volume/data on n1
    then
    put decided volume/data on n1, since 60 waits: worker/n2 does not exist, or is being deleted
    ");
}

#[test]
fn a_volume_that_moves_is_deleted_on_both_workers() {
    assert_snapshot!(moving("on=n1 elsewhere=n2 arriving=used fetched=claimed deleting"), @"
    put assigned n1 volume/data removed sequence 2 generation 1, 1GiB blank ext4
    put assigned n2 volume/data removed sequence 2 generation 1, 1GiB blank ext4 arriving from worker/n1
    put decided volume/data on n1 and n2, since 60 waits: worker `n1` to remove it, since 60 waits: worker `n2` to remove it
    ");
    assert_snapshot!(moving("on=n1 observed=nothing removing elsewhere=n2 left=removed fetched=claimed deleting"), @"
    delete assigned n1 volume/data
    put decided volume/data on n1 and n2, since 60 waits: worker `n2` to remove it
    ");
    assert_snapshot!(moving("on=n1 observed=nothing removing elsewhere=n2 left=removed deleting"), @"
    delete asked volume/data
    delete assigned n1 volume/data
    delete assigned n2 volume/data
    delete decided volume/data
    ");
}

#[test]
fn a_snapshot_that_is_kept_elsewhere_is_taken_and_moved_and_what_is_like_it_is_there_already() {
    assert_snapshot!(plans("rack
        volume data size=1GiB on=n1
        snapshot old of=data on=n2 worker=n2
        snapshot new of=data on=n1 worker=n2", "snapshot/new"), @"
    put assigned n2 snapshot/new present sequence 2 generation 1, 1GiB blank ext4 arriving from worker/n1
    put decided snapshot/new on n1 1GiB and n2, since 60 waits: worker `n2` to fetch the disk
    then
    put assigned n1 snapshot/new held sequence 2 generation 1, 1GiB blank ext4
    put decided snapshot/new on n1 1GiB and n2, since 60 waits: worker `n1` to let go of the disk
    ");
    assert_snapshot!(plans("rack
        volume data size=1GiB on=n1
        snapshot new of=data on=n2 worker=n2 elsewhere=n1 left=released fetched=released", "snapshot/new"), @"
    put assigned n1 snapshot/new removed sequence 2 generation 1, 1GiB blank ext4
    put decided snapshot/new on n2 1GiB and n1, since 60 waits: worker `n1` to remove it
    ");
    // Something is being made from it.
    assert_snapshot!(plans("rack
        volume data size=1GiB on=n1
        volume other snapshot=new on=n1 observed=claimed
        snapshot new of=data on=n1 worker=n2 elsewhere=n2 arriving=held assigned=held observed=held fetched=complete",
        "snapshot/new"), @"put decided snapshot/new on n1 1GiB and n2, since 60 waits: volume/other still uses it");
}

#[test]
fn copies_are_taken_in_turn_and_the_last_good_ones_are_kept() {
    let copied = |volume: &str, others: &str| {
        plans(&format!("rack\n volume data size=1GiB on=n1 copies=n2 {volume}\n{others}"), "volume/data")
    };
    let copy =
        |number: u32, line: &str| format!("snapshot data-copy-{number} of=data owner=volume/data {line}");
    let good = "on=n2 worker=n2";
    assert_snapshot!(copied("", ""), @"
    put asked snapshot/data-copy-1 generation 1 of volume/data of volume/data
    put decided volume/data on n1 copied 1
    ");
    // One is being made; the next is not due.
    assert_snapshot!(copied("copied=1", &copy(1, "on=n1 worker=n2")), @"nothing");
    assert_snapshot!(copied("copied=1", &copy(1, good)), @"nothing");
    // It is due.
    assert_snapshot!(copied("copied=1 copied_at=-7200", &copy(1, good)), @"
    put asked snapshot/data-copy-2 generation 1 of volume/data of volume/data
    put decided volume/data on n1 copied 2
    ");
    assert_snapshot!(copied("copied=1 copied_at=-7200", &copy(1, "on=n1 worker=n2")), @"nothing");
    // The third is not there yet, so both others stay; then the oldest goes.
    let two = format!("{}\n{}", copy(9, good), copy(10, good));
    assert_snapshot!(copied("copied=11", &format!("{two}\n{}", copy(11, "on=n1 worker=n2"))), @"nothing");
    assert_snapshot!(copied("copied=11", &format!("{two}\n{}", copy(11, good))), @"put asked snapshot/data-copy-9 generation 1 of volume/data of volume/data deleting");
    // No more of them.
    assert_snapshot!(copied("copied=10 keep=0", &two), @"
    put asked snapshot/data-copy-10 generation 1 of volume/data of volume/data deleting
    put asked snapshot/data-copy-9 generation 1 of volume/data of volume/data deleting
    ");
    // The volume waits for them to go.
    assert_snapshot!(copied("copied=10 deleting", &two), @"
    put asked snapshot/data-copy-10 generation 1 of volume/data of volume/data deleting
    put asked snapshot/data-copy-9 generation 1 of volume/data of volume/data deleting
    put decided volume/data on n1 copied 10, since 60 waits: its child snapshot/data-copy-10 to go
    ");
}
