//! Volumes, workers, images, networks and DNS records.

use insta::assert_snapshot;

use crate::world::{guarded, plans};

#[test]
fn a_volume_follows_its_owner() {
    let check = |line: &str| plans(&format!("rack\nvm a on=n1 {line}"), "volume/a-root");
    assert_snapshot!(check("volume=unplaced"), @"
    put assigned n1 volume/a-root present sequence 1 generation 1, 64MiB
    put decided volume/a-root on n1, since 60 waits: worker `n1` to make the disk
    ");
    assert_snapshot!(check("volume=assigned"), @"put decided volume/a-root on n1, since 60 waits: worker `n1` to make the disk");
    assert_snapshot!(check("volume=claimed"), @"put decided volume/a-root on n1, since 60 waits: worker `n1` to make the disk");
    assert_snapshot!(check("volume=present"), @"nothing");
    assert_snapshot!(check("volume=claimed volume_problem=disk_full"), @"put decided volume/a-root on n1, since 60 waits: worker `n1`: disk full");
    assert_snapshot!(check("volume=lost volume_problem=its_file_is_gone"), @"put decided volume/a-root on n1, since 60 waits: worker `n1`: its file is gone");
    assert_snapshot!(guarded("rack
        vm a on=n1 volume=unplaced", "volume/a-root"), @"
    put assigned n1 volume/a-root present sequence 1 generation 1, 64MiB
    put decided volume/a-root on n1, since 60 waits: worker `n1` to make the disk
    rests on asked image/demo
    rests on asked volume/a-root
    rests on decided vm/a
    rests on no observed n1 volume/a-root
    ");
}

#[test]
fn a_volume_waits_for_its_owner_image_and_worker() {
    assert_snapshot!(plans("rack
        vm a on=n1 volume=unplaced
        drop decided/vm/a", "volume/a-root"), @"nothing");
    assert_snapshot!(plans("rack
        vm a on=n1 volume=unplaced
        drop asked/image/demo", "volume/a-root"), @"put decided volume/a-root since 60 waits: image/demo does not exist, or is being deleted");
    assert_snapshot!(plans("rack
        image demo v2,v3
        vm a on=n1 volume=unplaced", "volume/a-root"), @"put decided volume/a-root since 60 waits: image `demo` has no version `v1`");
    assert_snapshot!(plans("rack
        worker n9 away
        vm a on=n9 volume=claimed", "volume/a-root"), @"put decided volume/a-root on n9, since 60 waits: worker `n9`, which is away");
    // The image may be on its way out: the version was fixed when its VM was placed.
    assert_snapshot!(plans("rack
        image demo v1 deleting
        vm a on=n1 volume=unplaced", "volume/a-root"), @"
    put assigned n1 volume/a-root present sequence 1 generation 1, 64MiB
    put decided volume/a-root on n1, since 60 waits: worker `n1` to make the disk
    ");
}

#[test]
fn a_volume_goes_when_its_end_is_asked_for() {
    let check = |line: &str| plans(&format!("rack\nvm a on=n1 volume_deleting {line}"), "volume/a-root");
    assert_snapshot!(check("volume=unplaced"), @"delete asked volume/a-root");
    assert_snapshot!(check("volume=assigned"), @"
    put assigned n1 volume/a-root removed sequence 2 generation 1, 64MiB
    put decided volume/a-root on n1, since 60 waits: worker `n1` to remove it
    then
    delete asked volume/a-root
    delete assigned n1 volume/a-root
    delete decided volume/a-root
    ");
    assert_snapshot!(check("volume=present"), @"
    put assigned n1 volume/a-root removed sequence 2 generation 1, 64MiB
    put decided volume/a-root on n1, since 60 waits: worker `n1` to remove it
    ");
    assert_snapshot!(check("volume=lost"), @"
    put assigned n1 volume/a-root removed sequence 2 generation 1, 64MiB
    put decided volume/a-root on n1, since 60 waits: worker `n1` to remove it
    ");
    assert_snapshot!(check("volume=present volume_removing"), @"put decided volume/a-root on n1, since 60 waits: worker `n1` to remove it");
    assert_snapshot!(check("volume=assigned volume_removing"), @"
    delete asked volume/a-root
    delete assigned n1 volume/a-root
    delete decided volume/a-root
    ");
    assert_snapshot!(plans("rack
        worker n9 away
        vm a on=n9 volume_deleting volume=present", "volume/a-root"), @"
    put assigned n9 volume/a-root removed sequence 2 generation 1, 64MiB
    put decided volume/a-root on n9, since 60 waits: worker `n9`, which is away
    ");
    assert_snapshot!(plans("rack
        vm a on=n1 volume_deleting volume=present
        opaque observed/{worker/n1}/volume/{volume/a-root}", "volume/a-root"), @"put decided volume/a-root on n1, since 60 waits: stored value `observed/00000000-0000-0000-3ad9-1fb3eb40bbb9/volume/00000000-0000-0000-f0ae-70b68e02a9ee` cannot be read by this version");
    assert_snapshot!(plans("rack
        vm a on=n1 volume_deleting volume=present
        opaque decided/vm/a", "volume/a-root"), @"put decided volume/a-root on n1, since 60 waits: stored value `decided/vm/a` cannot be read by this version");
}

#[test]
fn a_worker_goes_when_nothing_is_left_on_it() {
    assert_snapshot!(plans("rack", "worker/n1"), @"nothing");
    assert_snapshot!(plans("worker n1 deleting", "worker/n1"), @"put decided worker/n1 since 60 waits: the agent on `n1` still runs");
    assert_snapshot!(plans("worker n1 deleting away", "worker/n1"), @"
    delete asked worker/n1
    delete ledger n1
    delete observed n1 worker/n1
    ");
    assert_snapshot!(plans("worker n1 deleting away silent", "worker/n1"), @"
    delete asked worker/n1
    delete ledger n1
    ");
    assert_snapshot!(plans("rack
        worker n9 deleting away
        vm a on=n9 observed=running", "worker/n9"), @"put decided worker/n9 away since 60, since 60 waits: volume/a-root still uses it");
    assert_snapshot!(plans("rack
        worker n9 deleting away
        vm a on=n9
        drop asked/vm/a", "worker/n9"), @"put decided worker/n9 away since 60, since 60 waits: volume/a-root still uses it");
    assert_snapshot!(plans("worker n1 deleting away
        opaque alive/{worker/n1}", "worker/n1"), @"put decided worker/n1 since 60 waits: the agent on `n1` still runs");
    assert_snapshot!(guarded("worker n1 deleting away", "worker/n1"), @"
    delete asked worker/n1
    delete ledger n1
    delete observed n1 worker/n1
    rests on no alive n1
    rests on no decided worker/n1
    ");
}

#[test]
fn images_and_networks_go_when_nobody_names_them() {
    let check = |given: &str| {
        let image = plans(&format!("rack\nimage old v1 deleting\n{given}"), "image/old");
        let network = plans(&format!("rack\nnetwork old 10.80.0.0/24 deleting\n{given}"), "network/old");
        format!("{image}\n{network}")
    };
    assert_snapshot!(check(""), @"
    delete asked image/old
    delete asked network/old
    ");
    // A user that is not placed, one that is placed, one that is going; and a volume uses an image too.
    assert_snapshot!(check("vm a image=old nic=old"), @"
    put decided image/old since 60 waits: vm/a still uses it
    put decided network/old since 60 waits: vm/a still uses it
    ");
    assert_snapshot!(check("vm a image=old nic=old:10.80.0.2 on=n1"), @"
    put decided image/old since 60 waits: volume/a-root still uses it
    put decided network/old since 60 waits: vm/a still uses it
    ");
    assert_snapshot!(check("vm a image=old nic=old:10.80.0.2 on=n1 deleting"), @"
    put decided image/old since 60 waits: volume/a-root still uses it
    put decided network/old since 60 waits: vm/a still uses it
    ");
    assert_snapshot!(check("vm a image=old nic=old:10.80.0.2 on=n1\ndrop asked/vm/a"), @"
    put decided image/old since 60 waits: volume/a-root still uses it
    delete asked network/old
    ");
    // An object that cannot be read may be a user.
    assert_snapshot!(check("vm a\nopaque asked/vm/a"), @"
    put decided image/old since 60 waits: stored value `asked/vm/a` cannot be read by this version
    put decided network/old since 60 waits: stored value `asked/vm/a` cannot be read by this version
    ");
    // Nobody asked for their end.
    assert_snapshot!(plans("rack", "image/demo"), @"nothing");
    assert_snapshot!(plans("rack", "network/default"), @"nothing");
    assert_snapshot!(plans("rack", "vm/none"), @"nothing");
}

#[test]
fn a_record_is_what_it_was_asked_to_be_and_goes_at_once() {
    let check = |more: &str| {
        let line = r#"asked dnsrecord/www {"type": "A", "values": ["192.0.2.1"]}"#;
        plans(&format!("rack\n{line} {more}"), "dnsrecord/www")
    };
    assert_snapshot!(check(""), @"nothing");
    assert_snapshot!(check("deleting"), @"delete asked dnsrecord/www");
}
