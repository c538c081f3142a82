//! What people read: `why`, `stuck` and the status of every kind.

use insta::assert_snapshot;
use lightbyte_plan::planner::{self, Inputs};
use lightbyte_plan::{View, status, why};

use crate::world::{MADE_AT, Store, at, name, object, world};

/// The world of `text` after every object was planned once.
fn planned(text: &str) -> Store {
    let mut store = world(text);
    for object in store.view().objects().cloned().collect::<Vec<_>>() {
        let view = store.view();
        let inputs = Inputs { view_read_at: Some(at(60)), ..Inputs::at(at(60), 1 << 64) };
        let plan = match planner::frozen(&view, &object) {
            Some(frozen) => lightbyte_plan::Plan::wait(frozen),
            None => planner::plan(&view, &object, &inputs),
        };
        if let Some(transaction) = planner::complete(&view, &object, plan, inputs.now) {
            store.commit(&transaction).expect("a plan fits its view");
        }
    }
    store
}

/// Why `named` is as it is, as a person would read it.
fn check(text: &str, named: &str) -> String {
    check_on(text, named, None)
}

/// The same, with what one worker is to it.
fn check_on(text: &str, named: &str, on: Option<&str>) -> String {
    let view = planned(text).view();
    let found = why::why(&view, &object(named), on.map(name).as_ref());
    let Some(found) = found else { return "there is none".to_owned() };
    let ready = if found.ready { "ready" } else { "not ready" };
    let head = format!("{} is {}, {ready}", found.object, found.state);
    let hints = found.hints.iter().map(|hint| format!("hint: {hint}"));
    let verdicts = found.verdicts.iter().map(|verdict| {
        let score = verdict.score.map_or_else(|| "refused".to_owned(), |score| score.to_string());
        format!("  {} {score}: {}", verdict.worker, verdict.reasons.join("; "))
    });
    let lines = [head].into_iter().chain(found.because.iter().map(|because| format!("- {because}")));
    let remedies = found.remedies.iter().map(|remedy| format!("or: {remedy}"));
    lines.chain(hints).chain(remedies).chain(verdicts).collect::<Vec<String>>().join("\n")
}

#[test]
fn a_vm_says_why_it_waits_or_where_it_was_placed() {
    assert_snapshot!(check("rack\nvm a", "vm/a"), @"
    vm/a is starting, not ready
    - it waits: worker `n1` to start it
    - it was placed on worker `n1`, the best of 2 looked at, at revision 12
    hint: `lightbyte describe worker/n1` shows the worker; the log of its agent says more
      n1 750000: spread: 75.0 % free after it; few: VMs there: 0
      n2 750000: spread: 75.0 % free after it; few: VMs there: 0
    ");
    assert_snapshot!(check("rack\nvm a on=n1 observed=running", "vm/a"), @"
    vm/a is running, ready
    - it was placed on worker `n1`, the best of 3 looked at, at revision 5
    - refused of them: 1 (away)
      n1 875000: spread
    ");
    assert_snapshot!(check("rack\nworker n3 cordoned\nworker n4 away\nvm a cpus=9", "vm/a"), @"
    vm/a is pending, not ready
    - it waits: no worker has 9 CPU and 128MiB free
    hint: `lightbyte get workers` shows what is free; add a worker, or delete something
    or: ask for 4 CPUs and 128MiB at most
      n1 refused: too little room: 4 of 4 CPUs and 1GiB of 1GiB free, needs 9 and 128MiB
      n2 refused: too little room: 4 of 4 CPUs and 1GiB of 1GiB free, needs 9 and 128MiB
      n3 refused: cordoned
      n4 refused: away
    ");
    assert_snapshot!(check("image demo v1\nnetwork default 10.77.0.0/24\nvm a", "vm/a"), @"
    vm/a is pending, not ready
    - it waits: no x86_64 worker is ready to take it
    hint: `lightbyte get workers` shows which are alive and cordoned
    ");
    assert_snapshot!(check("rack\nvm a image=none", "vm/a"), @"
    vm/a is pending, not ready
    - it waits: image/none does not exist, or is being deleted
    hint: `lightbyte get images` lists what there is; `lightbyte import image DIR` adds one
    ");
    assert_snapshot!(check("rack\nvm a nic=none", "vm/a"), @"
    vm/a is pending, not ready
    - it waits: network/none does not exist, or is being deleted
    hint: create network/none, or change what names it
      n1 750000: spread: 75.0 % free after it; few: VMs there: 0
      n2 750000: spread: 75.0 % free after it; few: VMs there: 0
    ");
    assert_snapshot!(check("rack\nvm a nic=default:10.77.0.200", "vm/a"), @"
    vm/a is pending, not ready
    - it waits: network `default` has no free address for it
    hint: `lightbyte describe network/default` shows its pool; delete something, or widen the pool
      n1 750000: spread: 75.0 % free after it; few: VMs there: 0
      n2 750000: spread: 75.0 % free after it; few: VMs there: 0
    ");
    assert_snapshot!(check("rack\nvm a disk=1MiB", "vm/a"), @"
    vm/a is pending, not ready
    - it waits: the disk is smaller than the 64MiB that it needs
    hint: ask for at least 64MiB
      n1 750000: spread: 75.0 % free after it; few: VMs there: 0
      n2 750000: spread: 75.0 % free after it; few: VMs there: 0
    ");
    assert_snapshot!(check("rack\nvm a on=n1 observed=crashed", "vm/a"), @"
    vm/a is crashed, not ready
    - it waits: it ended by itself on worker `n1`
    - it was placed on worker `n1`, the best of 3 looked at, at revision 5
    - refused of them: 1 (away)
    hint: `lightbyte describe worker/n1` shows the worker; the log of its agent says more
      n1 875000: spread
    ");
    assert_snapshot!(check("rack\nvm a on=n1 observed=claimed problem=no_bridge_br0", "vm/a"), @"
    vm/a is starting, not ready
    - it waits: worker `n1`: no bridge br0
    - it was placed on worker `n1`, the best of 3 looked at, at revision 5
    - refused of them: 1 (away)
    hint: `lightbyte describe worker/n1` shows the worker; the log of its agent says more
      n1 875000: spread
    ");
    assert_snapshot!(check("rack\nworker n9 away\nvm a on=n9 observed=running", "vm/a"), @"
    vm/a is unknown, not ready
    - it waits: worker `n9`, which is away
    - it was placed on worker `n9`, the best of 3 looked at, at revision 5
    - refused of them: 1 (away)
    hint: start worker `n9` again
      n9 875000: spread
    ");
    assert_snapshot!(check("rack\nvm a on=n1 observed=running deleting", "vm/a"), @"
    vm/a is deleting, not ready
    - it waits: worker `n1` to remove it
    - it waits: its child volume/a-root to go
    - it was placed on worker `n1`, the best of 3 looked at, at revision 5
    - refused of them: 1 (away)
    hint: `lightbyte describe worker/n1` shows the worker; the log of its agent says more
    hint: `lightbyte why volume/a-root` says what that waits for
      n1 875000: spread
    ");
    assert_snapshot!(check("rack\nvm a on=n1 observed=running\nopaque asked/network/default", "vm/a"), @"
    vm/a is running, ready
    - it was placed on worker `n1`, the best of 3 looked at, at revision 5
    - refused of them: 1 (away)
      n1 875000: spread
    ");
    assert_snapshot!(check("rack", "vm/a"), @"there is none");
}

#[test]
fn the_other_kinds_say_why_too() {
    assert_snapshot!(check("rack\nvm a on=n1 volume=claimed", "volume/a-root"), @"
    volume/a-root is creating, not ready
    - it waits: worker `n1` to make the disk
    hint: `lightbyte describe worker/n1` shows the worker; the log of its agent says more
    ");
    assert_snapshot!(check("rack\nvm a on=n1 volume=lost volume_problem=its_file_is_gone", "volume/a-root"), @"
    volume/a-root is lost, not ready
    - it waits: worker `n1`: its file is gone
    hint: `lightbyte describe worker/n1` shows the worker; the log of its agent says more
    ");
    assert_snapshot!(check("rack\nimage old v1 deleting\nvm a image=old", "image/old"), @"
    image/old is deleting, not ready
    - it waits: vm/a still uses it
    hint: delete vm/a first
    ");
    assert_snapshot!(check("rack", "network/default"), @"
    network/default is ready, ready
    - it is as asked
    ");
    assert_snapshot!(check("worker n1 deleting", "worker/n1"), @"
    worker/n1 is deleting, not ready
    - it waits: the agent on `n1` still runs
    hint: stop the agent on `n1` first
    ");
    assert_snapshot!(check("worker n1 cordoned", "worker/n1"), @"
    worker/n1 is cordoned, ready
    - it is as asked
    ");
}

/// The state, readiness and beginning of every object, with what only its kind has.
fn states(text: &str) -> String {
    let view = planned(text).view();
    let lines = view.objects().map(|object| state(&view, object));
    lines.collect::<Vec<String>>().join("\n")
}

fn state(view: &View, object: &lightbyte_api::ObjectRef) -> String {
    let status = status::object(view, object).expect("an object of the view").status;
    let ready = if status.ready { " ready" } else { "" };
    let seconds = |at: lightbyte_api::Timestamp| (at.as_second() - MADE_AT).to_string();
    let since = status.since.map_or_else(|| "-".to_owned(), seconds);
    let deadline = status.deadline.map(|at| format!(" until {}", seconds(at))).unwrap_or_default();
    let more = status.more.iter().filter(|(_, value)| !value.is_null());
    let more: Vec<String> = more.map(|(field, value)| format!("{field}={value}")).collect();
    format!("{object} {}{ready} since {since}{deadline} {}", status.state, more.join(" "))
}

#[test]
fn every_kind_has_a_state_in_one_word() {
    assert_snapshot!(states("rack
        worker n3 cordoned used_cpus=1 used_memory=128MiB vms=1
        worker n4 away silent
        vm a
        vm b on=n1 observed=running
        vm c cpus=9
        opaque asked/vm/d"), @r#"
    worker/n1 ready ready since 0 cpus=4 memory="1GiB" cpus_used=1 memory_used="128MiB" vms=1 architecture="x86_64" vmm="fake" version="0.1.0" address=""
    worker/n2 ready ready since 0 cpus=4 memory="1GiB" cpus_used=1 memory_used="128MiB" vms=1 architecture="x86_64" vmm="fake" version="0.1.0" address=""
    worker/n3 cordoned ready since 0 cpus=4 memory="1GiB" cpus_used=1 memory_used="128MiB" vms=1 architecture="x86_64" vmm="fake" version="0.1.0" address=""
    worker/n4 away since - cpus_used=0 memory_used="0B" vms=0
    image/demo ready ready since 0 
    network/default ready ready since - addresses_used=2 addresses=8 squatted=[]
    volume/a-root pending since 60 size="64MiB" attached_to=["vm/a"]
    volume/b-root ready ready since 20 worker="n1" size="64MiB" attached_to=["vm/b"]
    vm/a starting since 0 until 240 restart_to_apply=false worker="n2" addresses=["10.77.0.3/24"] image_version="v1" restarts=0
    vm/b running ready since 20 restart_to_apply=false worker="n1" addresses=["10.77.0.2/24"] image_version="v1" restarts=0
    vm/c pending since 0 until 70 restart_to_apply=false addresses=[] restarts=0
    vm/d unreadable since - problem="the stored value has format 9; this version reads up to 1"
    "#);
}

#[test]
fn a_vm_has_one_state_for_each_situation() {
    let check = |line: &str| {
        let view = planned(&format!("rack\nworker n9 away\nvm a {line}")).view();
        let status = status::object(&view, &object("vm/a")).expect("the VM").status;
        format!("{}{}", status.state, if status.ready { ", ready" } else { "" })
    };
    let cases = [
        ("cpus=9", "pending"),
        ("on=n1", "starting"),
        ("on=n1 observed=claimed", "starting"),
        ("on=n1 observed=starting", "starting"),
        ("on=n1 observed=running", "running, ready"),
        ("on=n1 observed=running problem=disk_full", "running"),
        ("on=n1 observed=crashed", "crashed"),
        ("on=n1 sequence=2 seen=1 observed=running", "running"),
        ("on=n1 generation=2 at_generation=1 wanted=running stopped observed=running", "stopping"),
        ("on=n1 stopped observed=stopping", "stopping"),
        ("on=n1 stopped observed=claimed", "stopping"),
        ("on=n1 stopped observed=stopped", "stopped, ready"),
        ("on=n1 wanted=stopped observed=stopped", "starting"),
        ("on=n9 observed=running", "unknown"),
        ("on=n1 observed=running deleting", "deleting"),
        ("on=n9 observed=running deleting", "deleting"),
    ];
    for (line, expect) in cases {
        assert_eq!(check(line), expect, "{line}");
    }
}

/// What is stuck `seconds` after the world was made; everything was planned 60 s after it.
fn stuck(text: &str, seconds: i64) -> String {
    let stuck = why::stuck(&planned(text).view(), at(seconds));
    let line = |stuck: &why::Stuck| format!("{}: {} (hint: {})", stuck.object, stuck.because, stuck.hint);
    if stuck.is_empty() {
        "nothing".to_owned()
    } else {
        stuck.iter().map(line).collect::<Vec<_>>().join("\n")
    }
}

#[test]
fn a_wait_is_stuck_when_its_patience_is_over() {
    // (world, seconds after 60 at which it is not stuck yet, and is)
    let cases = [
        ("rack\nvm a cpus=9", 9, 10),
        ("rack\nvm a on=n1 observed=claimed", 179, 180),
        ("rack\nvm a on=n1 stopped observed=running", 59, 60),
        ("rack\nworker n9 away\nvm a on=n9 observed=running", 29, 30),
        ("rack\nvm a nic=default:10.77.0.200", 9, 10),
    ];
    for (text, not_yet, by_then) in cases {
        assert_eq!(stuck(text, 60 + not_yet), "nothing", "{text}");
        assert_ne!(stuck(text, 60 + by_then), "nothing", "{text}");
    }
    // What only a person can end is stuck at once.
    assert_snapshot!(stuck("rack
        vm a image=none
        vm b on=n1 observed=crashed
        vm c on=n1 observed=claimed address=10.77.0.3 problem=no_bridge
        vm d disk=1MiB", 60), @"
    vm/a: image/none does not exist, or is being deleted (hint: `lightbyte get images` lists what there is; `lightbyte import image DIR` adds one)
    vm/b: it ended by itself on worker `n1` (hint: `lightbyte describe worker/n1` shows the worker; the log of its agent says more)
    vm/c: worker `n1`: no bridge (hint: `lightbyte describe worker/n1` shows the worker; the log of its agent says more)
    vm/d: the disk is smaller than the 64MiB that it needs (hint: ask for at least 64MiB)
    ");
    assert_eq!(stuck("rack\nvm a on=n1 observed=running", 1_000_000), "nothing");
}

#[test]
fn what_has_no_place_says_what_would_give_it_one() {
    let full = "rack\nvm a on=n1 cpus=3 memory=512MiB observed=running\nvm b on=n2 cpus=3 memory=768MiB observed=running";
    assert_snapshot!(check(&format!("{full}\nvm c cpus=2 memory=256MiB"), "vm/c"), @"
    vm/c is pending, not ready
    - it waits: no worker has 2 CPU and 256MiB free
    hint: `lightbyte get workers` shows what is free; add a worker, or delete something
    or: free 1 CPU on worker `n1`
    or: `lightbyte delete vm/a`, which leaves its room on worker `n1`
    or: ask for 1 CPU and 256MiB at most
      n1 refused: too little room: 1 of 4 CPUs and 512MiB of 1GiB free, needs 2 and 256MiB
      n2 refused: too little room: 1 of 4 CPUs and 256MiB of 1GiB free, needs 2 and 256MiB
    ");
    assert_snapshot!(check(&format!("{full}\nworker n3 cordoned\nworker n4 away\nvm c cpus=2"), "vm/c"), @"
    vm/c is pending, not ready
    - it waits: no worker has 2 CPU and 128MiB free
    hint: `lightbyte get workers` shows what is free; add a worker, or delete something
    or: `lightbyte uncordon worker/n3`
    or: start worker `n4` again
    or: free 1 CPU on worker `n1`
    or: `lightbyte delete vm/a`, which leaves its room on worker `n1`
      n1 refused: too little room: 1 of 4 CPUs and 512MiB of 1GiB free, needs 2 and 128MiB
      n2 refused: too little room: 1 of 4 CPUs and 256MiB of 1GiB free, needs 2 and 128MiB
      n3 refused: cordoned
      n4 refused: away
    ");
    assert_snapshot!(check(&format!("{full}\nvm c cpus=9"), "vm/c"), @"
    vm/c is pending, not ready
    - it waits: no worker has 9 CPU and 128MiB free
    hint: `lightbyte get workers` shows what is free; add a worker, or delete something
    or: ask for 1 CPU and 128MiB at most
      n1 refused: too little room: 1 of 4 CPUs and 512MiB of 1GiB free, needs 9 and 128MiB
      n2 refused: too little room: 1 of 4 CPUs and 256MiB of 1GiB free, needs 9 and 128MiB
    ");
    assert_snapshot!(check(&format!("{full}\nvm c nic=none"), "vm/c"), @"
    vm/c is pending, not ready
    - it waits: network/none does not exist, or is being deleted
    hint: create network/none, or change what names it
      n1 -1: spread: 0.0 % free after it; few: VMs there: 1
      n2 -1: spread: 0.0 % free after it; few: VMs there: 1
    ");
    assert_snapshot!(check_on(&format!("{full}\nvm c cpus=2"), "vm/c", Some("n2")), @"
    vm/c is pending, not ready
    - it waits: no worker has 2 CPU and 128MiB free
    hint: `lightbyte get workers` shows what is free; add a worker, or delete something
    or: free 1 CPU on worker `n2`
    or: `lightbyte delete vm/b`, which leaves its room on worker `n2`
    or: ask for 1 CPU and 128MiB at most
      n2 refused: too little room: 1 of 4 CPUs and 256MiB of 1GiB free, needs 2 and 128MiB
    ");
    assert_snapshot!(check_on(full, "vm/a", Some("n1")), @"
    vm/a is running, ready
    - it was placed on worker `n1`, the best of 3 looked at, at revision 5
    - refused of them: 1 (away)
      n1 250000: spread: 25.0 % free after it; few: VMs there: 0
    ");
    assert_snapshot!(check_on(full, "vm/a", Some("n2")), @"
    vm/a is running, ready
    - it was placed on worker `n1`, the best of 3 looked at, at revision 5
    - refused of them: 1 (away)
      n2 refused: too little room: 1 of 4 CPUs and 256MiB of 1GiB free, needs 3 and 512MiB
    ");
}

#[test]
fn a_vm_goes_where_its_placement_says() {
    let rack = "rack\nworker n3 label=zone:b\nworker n4 label=zone:b used_cpus=4";
    let asked = |world: &str, name: &str, placement: &str| {
        format!("{world}\nasked vm/{name} {{\"image\": \"demo\", \"placement\": {placement}}}")
    };
    let of = |name: &str, placement: &str| asked(rack, name, placement);
    assert_snapshot!(check(&of("a", r#"{"on": {"zone": "b"}}"#), "vm/a"), @"
    vm/a is starting, not ready
    - it waits: worker `n3` to start it
    - it was placed on worker `n3`, the best of 4 looked at, at revision 20
    - refused of them: 1 (too little room)
    - refused of them: 2 (without the labels that it asks for)
    hint: `lightbyte describe worker/n3` shows the worker; the log of its agent says more
      n3 750000: spread: 75.0 % free after it; few: VMs there: 0
    ");
    assert_snapshot!(check(&of("a", r#"{"on": {"worker": "n2"}}"#), "vm/a"), @"
    vm/a is starting, not ready
    - it waits: worker `n2` to start it
    - it was placed on worker `n2`, the best of 4 looked at, at revision 20
    - refused of them: 3 (without the labels that it asks for)
    hint: `lightbyte describe worker/n2` shows the worker; the log of its agent says more
      n2 750000: spread: 75.0 % free after it; few: VMs there: 0
    ");
    assert_snapshot!(check(&of("a", r#"{"on": {"zone": "c"}}"#), "vm/a"), @"
    vm/a is pending, not ready
    - it waits: no worker that is ready has the labels zone=c
    hint: `lightbyte get workers -o yaml` shows their labels; `lightbyte edit worker/NAME` changes them, or ask for others
      n1 refused: without the labels that it asks for
      n2 refused: without the labels that it asks for
      n3 refused: without the labels that it asks for
      n4 refused: without the labels that it asks for
    ");
    assert_snapshot!(check(&of("a", r#"{"prefer": {"zone": "b", "disk": "ssd"}}"#), "vm/a"), @"
    vm/a is starting, not ready
    - it waits: worker `n3` to start it
    - it was placed on worker `n3`, the best of 4 looked at, at revision 20
    - refused of them: 1 (too little room)
    hint: `lightbyte describe worker/n3` shows the worker; the log of its agent says more
      n3 1350000: preferred: 1 of 2; spread: 75.0 % free after it; few: VMs there: 0
      n1 750000: preferred: 0 of 2; spread: 75.0 % free after it; few: VMs there: 0
      n2 750000: preferred: 0 of 2; spread: 75.0 % free after it; few: VMs there: 0
    ");
    // However many others come before it by room.
    let many = (10..40).map(|number| format!("worker w{number}\n")).collect::<String>();
    let prefer = r#"{"image": "demo", "placement": {"prefer": {"zone": "b"}}}"#;
    let chosen = check(&format!("{rack}\n{many}asked vm/a {prefer}"), "vm/a");
    assert!(chosen.contains("placed on worker `n3`"), "{chosen}");
    let near = "vm b on=n1 label=app:db observed=running\nvm c on=n2 label=app:db observed=running\nworker n3 cordoned\nworker n4 away";
    let apart = r#"{"image": "demo", "placement": {"apart": {"app": "db"}}}"#;
    assert_snapshot!(check(&format!("rack\n{near}\nasked vm/a {apart}"), "vm/a"), @"
    vm/a is pending, not ready
    - it waits: every worker that could take it has a VM that it is to be apart from
    hint: add a worker, delete such a VM, or let them be together: `placement.apart`
    or: `lightbyte uncordon worker/n3`
    or: start worker `n4` again
      n1 refused: it has a VM that it keeps apart from
      n2 refused: it has a VM that it keeps apart from
      n3 refused: cordoned
      n4 refused: away
    ");
    // The other way round as well: the one that is there keeps apart from what comes.
    let first = format!("rack\nasked vm/a {apart}");
    assert_snapshot!(check(&format!("{first}\nvm b label=app:db"), "vm/b"), @"
    vm/b is starting, not ready
    - it waits: worker `n2` to start it
    - it was placed on worker `n2`, the best of 2 looked at, at revision 14
    - refused of them: 1 (it has a VM that it keeps apart from)
    hint: `lightbyte describe worker/n2` shows the worker; the log of its agent says more
      n2 750000: spread: 75.0 % free after it; few: VMs there: 0
    ");
    let beside = "rack\nvm b on=n2 label=app:db observed=running";
    let by = |name: &str, placement: &str| asked(beside, name, placement);
    assert_snapshot!(check(&by("a", r#"{"near": {"app": "db"}}"#), "vm/a"), @"
    vm/a is starting, not ready
    - it waits: worker `n2` to start it
    - it was placed on worker `n2`, the best of 2 looked at, at revision 22
    - refused of them: 1 (without a VM that it is to be near to)
    hint: `lightbyte describe worker/n2` shows the worker; the log of its agent says more
      n2 499999: spread: 50.0 % free after it; few: VMs there: 1
    ");
    assert_snapshot!(check(&by("a", r#"{"near": {"app": "cache"}}"#), "vm/a"), @"
    vm/a is pending, not ready
    - it waits: no worker that could take it has a VM with the labels app=cache
    hint: `lightbyte get vms -l` with these labels shows where they are; make one, or leave out `placement.near`
      n1 refused: without a VM that it is to be near to
      n2 refused: without a VM that it is to be near to
    ");
    assert_snapshot!(check(&by("a", r#"{"prefer_apart": {"app": "db"}, "prefer": {"worker": {"not": "n9"}}}"#), "vm/a"), @"
    vm/a is starting, not ready
    - it waits: worker `n1` to start it
    - it was placed on worker `n1`, the best of 2 looked at, at revision 22
    hint: `lightbyte describe worker/n1` shows the worker; the log of its agent says more
      n1 1950000: preferred: 2 of 2; spread: 75.0 % free after it; few: VMs there: 0
      n2 1099999: preferred: 1 of 2; spread: 50.0 % free after it; few: VMs there: 1
    ");
    assert_snapshot!(check(&of("a", r#"{"on": {"zone": {"not": ["a", "b"]}, "rack": {"exists": true}}}"#), "vm/a"), @"
    vm/a is pending, not ready
    - it waits: no worker that is ready has the labels rack, zone not a b
    hint: `lightbyte get workers -o yaml` shows their labels; `lightbyte edit worker/NAME` changes them, or ask for others
      n1 refused: without the labels that it asks for
      n2 refused: without the labels that it asks for
      n3 refused: without the labels that it asks for
      n4 refused: without the labels that it asks for
    ");
    let kept = "rack\nworker n1 only=team:db\nworker n2 cordoned";
    assert_snapshot!(check(&format!("{kept}\nasked vm/a {{\"image\": \"demo\"}}"), "vm/a"), @"
    vm/a is pending, not ready
    - it waits: every worker that could take it is only for VMs with other labels
    hint: give it the labels of `only_for` of a worker, or change that: `lightbyte edit worker/NAME`
    or: `lightbyte uncordon worker/n2`
      n1 refused: only for VMs with other labels
      n2 refused: cordoned
    ");
}
