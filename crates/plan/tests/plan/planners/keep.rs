//! A placed VM: the assignment follows what is asked, and the condition says what is still missing.

use insta::assert_snapshot;

use crate::world::{at, guarded, object, plans, world};
use lightbyte_plan::planner::{self, Inputs};

/// The plans for a VM that stands on `n1` with all of `line`.
fn check(line: &str) -> String {
    plans(&format!("rack\nvm a on=n1 {line}"), "vm/a")
}

#[test]
fn reports_become_conditions() {
    assert_snapshot!(check(""), @"put decided vm/a on n1 v1 root=a-root default=10.77.0.2, since 60 waits: worker `n1` to start it");
    assert_snapshot!(check("observed=claimed"), @"put decided vm/a on n1 v1 root=a-root default=10.77.0.2, since 60 waits: worker `n1` to start it");
    assert_snapshot!(check("observed=starting"), @"put decided vm/a on n1 v1 root=a-root default=10.77.0.2, since 60 waits: worker `n1` to start it");
    assert_snapshot!(check("observed=running"), @"nothing");
    assert_snapshot!(check("observed=crashed"), @"put decided vm/a on n1 v1 root=a-root default=10.77.0.2, since 60 waits: it ended by itself on worker `n1`");
    assert_snapshot!(check("observed=stopping"), @"put decided vm/a on n1 v1 root=a-root default=10.77.0.2, since 60 waits: worker `n1` to start it");
    assert_snapshot!(check("observed=stopped"), @"put decided vm/a on n1 v1 root=a-root default=10.77.0.2, since 60 waits: worker `n1` to start it");
    assert_snapshot!(check("observed=running problem=no_bridge"), @"put decided vm/a on n1 v1 root=a-root default=10.77.0.2, since 60 waits: worker `n1`: no bridge");
    assert_snapshot!(check("observed=crashed problem=no_bridge"), @"put decided vm/a on n1 v1 root=a-root default=10.77.0.2, since 60 waits: worker `n1`: no bridge");
    assert_snapshot!(check("stopped"), @"put decided vm/a on n1 v1 root=a-root default=10.77.0.2, since 60 waits: worker `n1` to stop it");
    assert_snapshot!(check("stopped observed=running"), @"put decided vm/a on n1 v1 root=a-root default=10.77.0.2, since 60 waits: worker `n1` to stop it");
    assert_snapshot!(check("stopped observed=stopping"), @"put decided vm/a on n1 v1 root=a-root default=10.77.0.2, since 60 waits: worker `n1` to stop it");
    assert_snapshot!(check("stopped observed=crashed"), @"put decided vm/a on n1 v1 root=a-root default=10.77.0.2, since 60 waits: worker `n1` to stop it");
    assert_snapshot!(check("stopped observed=stopped"), @"nothing");
    // A report of an older assignment does not count.
    assert_snapshot!(check("sequence=3 seen=2 observed=running"), @"put decided vm/a on n1 v1 root=a-root default=10.77.0.2, since 60 waits: worker `n1` to start it");
    assert_snapshot!(check("sequence=3 seen=4 observed=running"), @"nothing");
}

#[test]
fn a_vm_is_as_it_was_asked_when_its_health_is() {
    assert_snapshot!(check("checked observed=starting"), @"put decided vm/a on n1 v1 root=a-root default=10.77.0.2, since 60 waits: worker `n1` to start it");
    assert_snapshot!(check("checked observed=running"), @"put decided vm/a on n1 v1 root=a-root default=10.77.0.2, since 60 waits: a check of its health to pass");
    assert_snapshot!(check("checked observed=running health=starting"), @"put decided vm/a on n1 v1 root=a-root default=10.77.0.2, since 60 waits: a check of its health to pass");
    assert_snapshot!(check("checked observed=running health=healthy"), @"nothing");
    assert_snapshot!(check("checked observed=running health=unhealthy"), @"put decided vm/a on n1 v1 root=a-root default=10.77.0.2, since 60 waits: a check of its health to pass: status 503");
    // What was told before nobody asked for it any more does not count.
    assert_snapshot!(check("observed=running health=unhealthy"), @"nothing");
    // It is checked at once, without a restart.
    assert_snapshot!(check("checked unchecked_before generation=2 at_generation=1 observed=running"), @"
    put assigned n1 vm/a running sequence 2 generation 2 checked, 1 128MiB, volume/a-root, demo v1, 10.77.0.2/24 on br0
    put decided vm/a on n1 v1 root=a-root default=10.77.0.2, since 60 waits: worker `n1` to start it
    ");
}

#[test]
fn what_an_absent_worker_said_does_not_count() {
    let check = |line: &str| plans(&format!("rack\nworker n9 away\nvm a on=n9 {line}"), "vm/a");
    assert_snapshot!(check(""), @"put decided vm/a on n9 v1 root=a-root default=10.77.0.2, since 60 waits: worker `n9`, which is away");
    assert_snapshot!(check("observed=running"), @"put decided vm/a on n9 v1 root=a-root default=10.77.0.2, since 60 waits: worker `n9`, which is away");
    assert_snapshot!(check("observed=crashed problem=no_bridge"), @"put decided vm/a on n9 v1 root=a-root default=10.77.0.2, since 60 waits: worker `n9`, which is away");
}

#[test]
fn the_assignment_follows_what_is_asked() {
    assert_snapshot!(check("generation=2 at_generation=1 wanted=running stopped observed=running"), @"
    put assigned n1 vm/a stopped sequence 2 generation 2, 1 128MiB, volume/a-root, demo v1, 10.77.0.2/24 on br0
    put decided vm/a on n1 v1 root=a-root default=10.77.0.2, since 60 waits: worker `n1` to stop it
    ");
    assert_snapshot!(check("generation=3 at_generation=2 sequence=5 wanted=stopped observed=stopped"), @"
    put assigned n1 vm/a running sequence 6 generation 3, 1 128MiB, volume/a-root, demo v1, 10.77.0.2/24 on br0
    put decided vm/a on n1 v1 root=a-root default=10.77.0.2, since 60 waits: worker `n1` to start it
    ");
    assert_snapshot!(check("generation=2 at_generation=1 restarts=1 at_restarts=0 observed=running"), @"
    put assigned n1 vm/a running sequence 2 generation 2 restarts 1, 1 128MiB, volume/a-root, demo v1, 10.77.0.2/24 on br0
    put decided vm/a on n1 v1 root=a-root default=10.77.0.2, since 60 waits: worker `n1` to start it
    ");
    // Also on a worker that is away: it will hear of it.
    assert_snapshot!(plans("rack
        worker n9 away
        vm a on=n9 generation=2 at_generation=1 wanted=running stopped observed=running", "vm/a"), @"
    put assigned n9 vm/a stopped sequence 2 generation 2, 1 128MiB, volume/a-root, demo v1, 10.77.0.2/24 on br0
    put decided vm/a on n9 v1 root=a-root default=10.77.0.2, since 60 waits: worker `n9`, which is away
    ");
}

#[test]
fn a_change_rests_on_all_keys_of_the_vm() {
    assert_snapshot!(guarded("rack
        vm a on=n1 generation=2 at_generation=1 wanted=running stopped observed=running", "vm/a"), @"
    put assigned n1 vm/a stopped sequence 2 generation 2, 1 128MiB, volume/a-root, demo v1, 10.77.0.2/24 on br0
    put decided vm/a on n1 v1 root=a-root default=10.77.0.2, since 60 waits: worker `n1` to stop it
    rests on asked vm/a
    rests on observed n1 vm/a
    ");
    assert_snapshot!(guarded("rack
        vm a on=n1 observed=claimed", "vm/a"), @"
    put decided vm/a on n1 v1 root=a-root default=10.77.0.2, since 60 waits: worker `n1` to start it
    rests on asked vm/a
    rests on assigned n1 vm/a
    rests on observed n1 vm/a
    ");
}

#[test]
fn a_placement_stays_when_its_worker_would_not_be_chosen_again() {
    for worker in ["n9 cordoned", "n9 cpus=0", "n9 architecture=aarch64", "n9 deleting"] {
        let found = plans(&format!("rack\nworker {worker}\nvm a on=n9 observed=running"), "vm/a");
        assert_eq!(found, "nothing", "{worker}");
    }
    // Nor does it follow a new version, or mind that what it was made from is gone.
    assert_snapshot!(plans("rack
        vm a image=gone nic=gone on=n1 observed=running", "vm/a"), @"nothing");
}

#[test]
fn a_vanished_assignment_is_reported_and_not_made_up() {
    assert_snapshot!(plans("rack
        vm a on=n1 observed=running
        drop assigned/{worker/n1}/vm/{vm/a}", "vm/a"), @"put decided vm/a on n1 v1 root=a-root default=10.77.0.2, since 60 waits: stored value `assigned/00000000-0000-0000-3ad9-1fb3eb40bbb9/vm/00000000-0000-0000-1fe3-a200d976e328` cannot be read by this version");
}

#[test]
fn what_cannot_be_read_freezes_what_depends_on_it() {
    let keys = [
        "decided/vm/a",
        "assigned/{worker/n1}/vm/{vm/a}",
        "observed/{worker/n1}/vm/{vm/a}",
        "asked/image/demo",
        "asked/network/default",
    ];
    let found: Vec<String> = keys
        .iter()
        .map(|key| {
            let given = format!("rack\nvm a on=n1 observed=running deleting\nopaque {key}");
            format!("{key}: {}", plans(&given, "vm/a"))
        })
        .collect();
    assert_snapshot!(found.join("\n"), @"
    decided/vm/a: nothing
    assigned/{worker/n1}/vm/{vm/a}: put decided vm/a on n1 v1 root=a-root default=10.77.0.2, since 60 waits: stored value `assigned/00000000-0000-0000-3ad9-1fb3eb40bbb9/vm/00000000-0000-0000-1fe3-a200d976e328` cannot be read by this version
    observed/{worker/n1}/vm/{vm/a}: put decided vm/a on n1 v1 root=a-root default=10.77.0.2, since 60 waits: stored value `observed/00000000-0000-0000-3ad9-1fb3eb40bbb9/vm/00000000-0000-0000-1fe3-a200d976e328` cannot be read by this version
    asked/image/demo: put asked volume/a-root generation 1 64MiB of demo v1 of vm/a deleting
    put assigned n1 vm/a removed sequence 2 generation 1, 1 128MiB, volume/a-root, demo v1, 10.77.0.2/24 on br0
    put decided vm/a on n1 v1 root=a-root default=10.77.0.2, since 60 waits: worker `n1` to remove it, since 60 waits: its child volume/a-root to go
    asked/network/default: put decided vm/a on n1 v1 root=a-root default=10.77.0.2, since 60 waits: stored value `asked/network/default` cannot be read by this version
    ");
    assert_snapshot!(plans("rack
        vm a
        opaque asked/vm/a", "vm/a"), @"nothing");
}

/// The conditions of `vm/a` after a plan `seconds` after the world was made.
fn conditions_after(store: &mut crate::world::Store, seconds: i64) -> String {
    let view = store.view();
    let object = object("vm/a");
    let inputs = Inputs { view_read_at: Some(at(seconds)), ..Inputs::at(at(seconds), 7 << 64) };
    let plan = planner::plan(&view, &object, &inputs);
    if let Some(transaction) = planner::complete(&view, &object, plan, inputs.now) {
        store.commit(&transaction).expect("a plan fits its view");
    }
    let view = store.view();
    let waiting = view.decided(&object).map(|decided| decided.waiting_on.clone()).unwrap_or_default();
    let since = |waiting: &lightbyte_api::waiting::Waiting| waiting.since.as_second() - at(0).as_second();
    waiting.iter().map(|waiting| format!("{}: {}", since(waiting), waiting.on)).collect::<Vec<_>>().join(", ")
}

#[test]
fn a_condition_keeps_its_beginning_until_it_changes() {
    let mut store = world("rack\nvm a on=n1 observed=claimed");
    assert_snapshot!(conditions_after(&mut store, 60), @"60: worker `n1` to start it");
    assert_snapshot!(conditions_after(&mut store, 90), @"60: worker `n1` to start it");
    store.delete(&crate::world::key("alive/{worker/n1}").to_string());
    assert_snapshot!(conditions_after(&mut store, 120), @"120: worker `n1`, which is away");
    assert_snapshot!(conditions_after(&mut store, 150), @"120: worker `n1`, which is away");
    // Deleting adds a second condition, and the first goes on.
    let mut store = world("rack\nvm a on=n1 observed=running deleting volume_deleting");
    assert_snapshot!(conditions_after(&mut store, 60), @"60: worker `n1` to remove it, 60: its child volume/a-root to go");
    assert_snapshot!(conditions_after(&mut store, 90), @"60: worker `n1` to remove it, 60: its child volume/a-root to go");
    store.delete("asked/volume/a-root");
    assert_snapshot!(conditions_after(&mut store, 120), @"60: worker `n1` to remove it");
}
