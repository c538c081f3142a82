//! Groups and their members over time: lost workers, healing, images that move on.

use insta::assert_snapshot;

use lightbyte_api::object::Asked;
use lightbyte_api::{Key, Spec};

use super::Leading;
use crate::world::object;

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

#[test]
fn a_member_that_is_unhealthy_for_long_is_replaced() {
    let mut leading = Leading::settled(
        r#"rack
        asked scalegroup/web {"replicas": 1, "template": {"image": "demo"}}
        vm web-1 owner=scalegroup/web version=1 image_version=v1 on=n1 checked observed=running health=unhealthy"#,
    );
    assert_eq!(
        leading.wakes_in(),
        300_000,
        "a version that has not worked yet is given the time of an update"
    );
    leading.after(300_000);
    leading.settle();
    let view = leading.store.view();
    assert!(view.living(&object("vm/web-1")).is_none(), "it goes");
    assert!(view.living(&object("vm/web-2")).is_some(), "another one takes its place");
}

#[test]
fn members_of_a_version_are_of_one_image() {
    let mut leading = Leading::settled(
        r#"rack
        image demo v1,v2 current=v1
        asked scalegroup/web {"replicas": 1, "template": {"image": "demo"}}"#,
    );
    let mut change = |named: &str, change: fn(&mut Spec)| {
        let mut asked = Asked::clone(leading.store.view().asked(&object(named)).expect("an object"));
        change(&mut asked.spec);
        leading.store.put(&Key::Asked(object(named)), asked);
    };
    change("image/demo", |spec| {
        if let Spec::Image(spec) = spec {
            spec.current = "v2".to_owned();
        }
    });
    change("scalegroup/web", |spec| {
        if let Spec::ScaleGroup(spec) = spec {
            spec.replicas = Some(2);
        }
    });
    leading.settle();
    let version = |member: &str| {
        let view = leading.store.view();
        let placement = lightbyte_plan::planner::vm::placement(&view, &object(member)).expect("a placed VM");
        placement.image_version.clone()
    };
    assert_eq!([version("vm/web-1"), version("vm/web-2")], ["v1", "v1"]);
}

#[test]
fn a_version_that_failed_is_not_tried_again() {
    let mut leading = Leading::settled(GROUP);
    let mut asked = Asked::clone(leading.store.view().asked(&object("scalegroup/web")).expect("a group"));
    if let Spec::ScaleGroup(spec) = &mut asked.spec {
        spec.template.vm.cpus = 2;
    }
    leading.store.put(&Key::Asked(object("scalegroup/web")), asked);
    leading.settle();
    let members = |leading: &Leading| {
        let view = leading.store.view();
        ["web-1", "web-2", "web-3"].map(|name| view.living(&object(&format!("vm/{name}"))).is_some())
    };
    assert_eq!(members(&leading), [true, true, false], "one of the new version");
    // Nobody starts it in the time that an update is given.
    for _ in 0..3 {
        leading.after(300_000);
        leading.settle();
        assert_eq!(members(&leading), [true, false, false]);
        let view = leading.store.view();
        let choice = lightbyte_plan::planner::scalegroup::choice(&view, &object("scalegroup/web"));
        let choice = choice.expect("a decision");
        assert_eq!(
            (choice.target, choice.rejected.as_ref().map(|rejected| rejected.version)),
            (Some(1), Some(2))
        );
    }
}

/// Another one would have the same volume.
#[test]
fn a_member_whose_volume_hinders_it_is_not_replaced() {
    let mut leading = Leading::settled(
        r#"rack
        asked scalegroup/db {"template": {"image": "demo", "disks": [{"name": "root"}, {"name": "data", "size": "1GiB", "keep": true}]}}
        volume db-data-1 size=1GiB on=n1 held=db-1 observed=lost volume_problem=its_file_is_gone
        vm db-1 owner=scalegroup/db version=1 image_version=v1 slot=1 attach=db-data-1 on=n1 observed=claimed problem=one_of_its_disks_is_gone"#,
    );
    let before = leading.batches.len();
    leading.after(3_600_000);
    leading.settle();
    assert_snapshot!(leading.decided_from(before), @"");
}
