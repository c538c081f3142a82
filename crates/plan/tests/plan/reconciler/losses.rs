//! Workers that are away, and the groups that miss them.

use insta::assert_snapshot;

use super::Leading;

const GROUP: &str = r#"rack
    worker n3 cpus=4 memory=1GiB
    asked scalegroup/web {"replicas": 1, "template": {"image": "demo"}}
    vm web-1 owner=scalegroup/web version=1 image_version=v1 on=n3 observed=running"#;

#[test]
fn a_worker_that_is_away_for_long_is_lost_and_its_members_are_replaced() {
    let mut leading = Leading::settled(GROUP);
    assert_snapshot!(leading.last(), @"put decided scalegroup/web made 0, versions 1:v1, target 1, stable 1");
    leading.store.delete(&crate::world::key("alive/{worker/n3}").to_string());
    leading.settle();
    assert_snapshot!(leading.last(), @"
    put decided scalegroup/web made 0, versions 1:v1, target 1, stable 1, since 60 waits: its member vm/web-1 to be available
    put decided vm/web-1 on n3 v1 root=web-1-root default=10.77.0.2, since 60 waits: worker `n3`, which is away
    put decided worker/n3 away since 60
    ");
    assert_eq!(leading.wakes_in(), 30_000);
    leading.after(30_000);
    leading.settle();
    assert_snapshot!(leading.last(), @"
    claim default 10.77.0.3 for vm/web-2
    ledger n1 1 CPUs 128MiB 1 VMs
    put asked vm/web-2 generation 1 running of scalegroup/web version 1
    put asked volume/web-2-root generation 1 64MiB of demo v1 of vm/web-2
    put assigned n1 vm/web-2 running sequence 1 generation 1, 1 128MiB, volume/web-2-root, demo v1, 10.77.0.3/24 on br0
    put assigned n1 volume/web-2-root present sequence 1 generation 1, 64MiB
    put decided scalegroup/web made 2, versions 1:v1, target 1, stable 1, since 90 waits: its member vm/web-2 to be available
    put decided vm/web-2 on n1 v1 root=web-2-root default=10.77.0.3, since 90 waits: worker `n1` to start it
    put decided volume/web-2-root on n1, since 90 waits: worker `n1` to make the disk
    put decided worker/n3 away since 60 lost
    ");
}

#[test]
fn when_many_are_away_none_is_lost() {
    let mut leading = Leading::settled(&format!("{GROUP}\nworker n4 away"));
    leading.store.delete(&crate::world::key("alive/{worker/n3}").to_string());
    leading.settle();
    assert_snapshot!(leading.last(), @"
    put decided scalegroup/web made 0, versions 1:v1, target 1, stable 1, since 60 waits: its member vm/web-1 to be available
    put decided vm/web-1 on n3 v1 root=web-1-root default=10.77.0.2, since 60 waits: worker `n3`, which is away
    put decided worker/n3 since 60 waits: too many workers are away at once for any to be taken for lost
    ");
}
