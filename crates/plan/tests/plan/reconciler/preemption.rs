//! Members of groups that make room for a VM with a higher priority.

use insta::assert_snapshot;
use lightbyte_api::{Key, WaitingOn};

use super::Leading;
use crate::world::{object, world};

/// A worker that two groups fill; n2 is full of a VM that is no member.
fn full(asked: &str) -> String {
    let member = |name: &str, group: &str| {
        format!("vm {name} owner=scalegroup/{group} version=1 image_version=v1 on=n1 observed=running")
    };
    let group = |name: &str, priority: u64, replicas: u64| {
        format!(
            r#"asked scalegroup/{name} {{"replicas": {replicas}, "template": {{"image": "demo", "priority": {priority}}}}}"#
        )
    };
    [
        "image demo v1 architecture=x86_64\nnetwork default 10.77.0.0/24".to_owned(),
        "worker n1 cpus=4 memory=1GiB\nworker n2 cpus=1 memory=1GiB".to_owned(),
        "vm alone on=n2 observed=running".to_owned(),
        group("less", 0, 3),
        group("more", 5, 1),
        member("less-1", "less"),
        member("less-2", "less"),
        member("less-3", "less"),
        format!("{} priority=5", member("more-1", "more")),
        asked.to_owned(),
    ]
    .join("\n")
}

fn big(priority: u64, cpus: u64, preempt: bool) -> String {
    format!(
        r#"asked vm/big {{"image": "demo", "cpus": {cpus}, "priority": {priority}, "placement": {{"preempt": {preempt}}}}}"#
    )
}

#[test]
fn as_few_of_the_least_as_will_do_make_room() {
    let leading = Leading::settled(&full(&big(3, 2, true)));
    assert_snapshot!(leading.decided_from(0), @"
    ledger n1 4 CPUs 512MiB 4 VMs promises 2 CPUs 128MiB to vm/big from vm/less-3 vm/less-2
    put decided scalegroup/less made 5, versions 1:v1, target 1, stable none, retiring vm/less-2 for preemption, retiring vm/less-3 for preemption, since 60 waits: its member vm/less-4 to be available, since 60 waits: its child vm/less-2 to go
    put decided scalegroup/more made 0, versions 1:v1, target 1, stable 1
    put decided vm/big since 60 waits: members with a lower priority to leave their room on worker `n1`
    put decided vm/less-2 on n1 v1 root=less-2-root default=10.77.0.2, since 60 waits: worker `n1` to remove it, since 60 waits: its child volume/less-2-root to go
    put decided vm/less-3 on n1 v1 root=less-3-root default=10.77.0.2, since 60 waits: worker `n1` to remove it, since 60 waits: its child volume/less-3-root to go
    put decided vm/less-4 since 60 waits: no worker has 1 CPU and 128MiB free
    put decided vm/less-5 since 60 waits: no worker has 1 CPU and 128MiB free
    ");
}

#[test]
fn a_promise_wakes_the_groups_of_those_that_are_to_leave() {
    let mut leading = Leading::settled(&full(""));
    let asked =
        world(&full(&big(3, 2, true))).view().asked(&object("vm/big")).expect("it is asked").as_ref().clone();
    leading.store.put(&Key::Asked(object("vm/big")), asked);
    let before = leading.batches.len();
    leading.settle();
    let decided = leading.decided_from(before);
    assert!(
        decided.contains("retiring vm/less-2 for preemption, retiring vm/less-3 for preemption"),
        "{decided}"
    );
}

#[test]
fn nobody_makes_room_unasked_for_an_equal_or_in_vain() {
    for (priority, cpus, preempt) in [(3, 2, false), (5, 4, true), (9, 5, true)] {
        let leading = Leading::settled(&full(&big(priority, cpus, preempt)));
        let decided = leading.store.view().decided(&object("vm/big")).cloned().expect("a decision");
        let on = &decided.waiting_on.first().expect("a reason to wait").on;
        assert!(matches!(on, WaitingOn::Capacity { .. }), "{priority} {cpus} {preempt}: {on:?}");
    }
}

#[test]
fn what_is_promised_is_let_go_with_whom_it_was_promised_to() {
    let mut leading = Leading::settled(&full(&big(3, 2, true)));
    let before = leading.batches.len();
    let key = Key::Asked(object("vm/big"));
    let mut asked = leading.store.view().asked(&object("vm/big")).expect("it is asked").as_ref().clone();
    asked.meta.deleting_since = Some(leading.now);
    leading.store.put(&key, asked);
    leading.settle();
    assert_snapshot!(leading.decided_from(before), @"
    delete decided vm/big
    ledger n1 4 CPUs 512MiB 4 VMs
    ");
}
