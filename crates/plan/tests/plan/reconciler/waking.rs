//! Who wakes for what: each change of a settled world is followed to its end, and then a resync finds nothing.

use lightbyte_api::object::{Asked, Meta};
use lightbyte_api::{Key, Spec};
use lightbyte_plan::reconciler::RESYNC_PERIOD;

use super::Leading;
use crate::world::{Store, key, object, world};

/// Waits until the next resync, which must find nothing to write.
fn resync(leading: &mut Leading, context: &str) {
    let objects = leading.store.view().objects().count() as u64;
    leading.after(RESYNC_PERIOD.millis());
    let before = leading.reconciler.counters();
    assert_eq!(leading.next(), None, "{context}: a resync found something");
    let after = leading.reconciler.counters();
    assert_eq!(after.resync_finds, 0, "{context}");
    assert!(after.plans >= before.plans + objects, "{context}: a resync plans everything");
}

/// What is decided for `named` in words: its worker, or what it waits for.
fn outcome(store: &Store, named: &str) -> String {
    let view = store.view();
    let named = object(named);
    let Some(asked) = view.asked(&named) else { return "gone".to_owned() };
    let Some(decided) = view.decided(&named) else { return "nothing decided".to_owned() };
    assert_eq!(decided.uid, asked.meta.uid);
    let waits: Vec<String> = decided.waiting_on.iter().map(|waiting| waiting.on.to_string()).collect();
    let worker = lightbyte_plan::planner::worker_of(&view, &named);
    let worker = worker.and_then(|worker| view.object_of(worker.uid()));
    match (worker, waits.is_empty()) {
        (Some(worker), true) => format!("on {}", worker.name),
        (Some(worker), false) => format!("on {}, waits: {}", worker.name, waits.join(", ")),
        (None, _) => format!("waits: {}", waits.join(", ")),
    }
}

/// Lines of a world that are put over what is there, and a last change: `-KEY` deletes a key.
fn change(store: &mut Store, text: &str) {
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        match line.strip_prefix('-') {
            Some(gone) => store.delete(&key(gone).to_string()),
            None => {
                let other = world(line).view();
                for (found, _) in other.keys().filter(|(found, _)| **found != Key::Epoch) {
                    let record = other.record(found).cloned().expect("a readable world");
                    store.put(found, record);
                }
            }
        }
    }
}

/// In the settled world of `given`, `changes` happen; `named` comes to `expect`, without any resync.
fn check(given: &str, changes: &str, named: &str, expect: &str) {
    let mut leading = Leading::settled(given);
    resync(&mut leading, given);
    change(&mut leading.store, changes);
    leading.settle();
    let context = format!("{given}\n{changes}");
    assert_eq!(outcome(&leading.store, named), expect, "{context}");
    resync(&mut leading, &context);
    assert_eq!(outcome(&leading.store, named), expect, "{context}");
}

const BARE: &str = "worker n1 cpus=4 memory=1GiB\nimage demo v1\nnetwork default 10.77.0.0/24 pool=2-3\n";

#[test]
fn whoever_waits_for_an_object_wakes_when_it_comes() {
    let check = |given: &str, changes: &str, expect: &str| {
        check(&format!("{BARE}{given}"), changes, "vm/a", &format!("on n1, waits: {expect}"));
    };
    let start = "worker `n1` to start it";
    check("vm a image=late", "image late v1", start);
    check("vm a image=late\nimage late v1 current=v2", "image late v1,v2", start);
    check("vm a nic=late", "network late 10.78.0.0/24", start);
    check("vm a nic=default:10.77.0.9", "network default 10.77.0.0/24 pool=2-9", start);
    check("vm a image=arm\nimage arm v1 architecture=aarch64", "worker n1 architecture=aarch64", start);
    check("vm a\nopaque asked/image/demo", "image demo v1", start);
    check("vm a\nopaque asked/network/default", "network default 10.77.0.0/24", start);
}

#[test]
fn whoever_waits_for_room_wakes_when_there_is_some() {
    check(&format!("{BARE}vm a cpus=5"), "worker n2 cpus=8", "vm/a", "on n2, waits: worker `n2` to start it");
    check(&format!("{BARE}vm a cpus=5"), "worker n1 cpus=8", "vm/a", "on n1, waits: worker `n1` to start it");
    check(
        "worker n1 cordoned\nimage demo v1\nvm a nonic",
        "worker n1",
        "vm/a",
        "on n1, waits: worker `n1` to start it",
    );
    check(
        "worker n1 away\nimage demo v1\nvm a nonic",
        "worker n1",
        "vm/a",
        "on n1, waits: worker `n1` to start it",
    );
    check(
        "worker n1\nopaque ledger/worker/{worker/n1}\nimage demo v1\nvm a nonic",
        "worker n1",
        "vm/a",
        "on n1, waits: worker `n1` to start it",
    );
    // The end of another VM frees room, or an address.
    let full = format!("{BARE}vm b cpus=4 on=n1 observed=running deleting wanted=removed volume=gone\nvm a");
    let gone = "-observed/{worker/n1}/vm/{vm/b}";
    check(&full, gone, "vm/a", "on n1, waits: worker `n1` to start it");
    let full = format!(
        "{BARE}vm b on=n1 observed=running deleting wanted=removed volume=gone address=10.77.0.2
        vm c on=n1 observed=running address=10.77.0.3\nvm a"
    );
    check(&full, gone, "vm/a", "on n1, waits: worker `n1` to start it");
}

#[test]
fn whoever_is_kept_away_wakes_when_it_is_no_more() {
    let keeps = r#"asked vm/a {"image": "demo", "placement": {"apart": {"app": "x"}}}"#;
    let given = format!("{BARE}{keeps}\nvm b label=app:x");
    let there = "on n1, waits: worker `n1` to start it";
    check(&given, r#"asked vm/a {"image": "demo"}"#, "vm/b", there);
    check(&given, "vm b label=app:y", "vm/b", there);
    // The other way round: the one that keeps apart waits for labels.
    let keeps = r#"asked vm/b {"image": "demo", "placement": {"apart": {"app": "x"}, "on": {"zone": "z"}}}"#;
    let given = format!("worker n1 label=zone:z\n{BARE}vm a label=app:x\n{keeps}")
        .replace("worker n1 cpus=4 memory=1GiB\n", "");
    check(&given, "vm a label=app:y", "vm/b", there);
    let elsewhere =
        format!("{BARE}{}", r#"asked vm/b {"image": "demo", "placement": {"on": {"zone": "z"}}}"#);
    check(&elsewhere, "worker n1 label=zone:z", "vm/b", there);
}

/// A VM that was detached from a volume names it no more: only what it held leads from the one to the other.
#[test]
fn whoever_waits_for_a_volume_wakes_when_it_is_let_go() {
    let given = format!(
        "{BARE}volume data size=1GiB on=n1 held=a
        vm a nonic on=n1 had=data observed=running
        vm b nonic attach=data"
    );
    let let_go = "vm a nonic on=n1 sequence=2 shape=2 observed=running";
    check(&given, let_go, "vm/b", "on n1, waits: worker `n1` to start it");
}

#[test]
fn a_placed_vm_wakes_for_its_worker_and_its_report() {
    let text = format!("{BARE}vm a on=n1 observed=claimed");
    check(&text, "-alive/{worker/n1}", "vm/a", "on n1, waits: worker `n1`, which is away");
    check(&text, "vm a on=n1 observed=running", "vm/a", "on n1");
    let away = "worker n1 away\nimage demo v1\nvm a nonic on=n1 observed=running";
    check(away, "worker n1", "vm/a", "on n1");
    check(&format!("{BARE}vm a on=n1 volume=claimed"), "vm a on=n1 volume=present", "volume/a-root", "on n1");
}

#[test]
fn the_end_of_one_wakes_whoever_waits_for_it() {
    let removing = format!("{BARE}image old v1 deleting\nnetwork lan 10.78.0.0/24 deleting
        vm a image=old nic=lan:10.78.0.2 on=n1 deleting wanted=removed observed=stopping volume=claimed volume_removing");
    let gone = "-observed/{worker/n1}/vm/{vm/a}\n-observed/{worker/n1}/volume/{volume/a-root}";
    for named in ["vm/a", "volume/a-root", "image/old", "network/lan"] {
        check(&removing, gone, named, "gone");
    }
    check(
        &removing,
        "-observed/{worker/n1}/vm/{vm/a}",
        "vm/a",
        "on n1, waits: its child volume/a-root to go",
    );
    let leaving = "worker n9 deleting\nimage demo v1\nvm a nonic on=n9 deleting wanted=removed observed=stopping volume=gone";
    check(leaving, "-observed/{worker/n9}/vm/{vm/a}", "worker/n9", "waits: the agent on `n9` still runs");
    check(leaving, "-observed/{worker/n9}/vm/{vm/a}\n-alive/{worker/n9}", "worker/n9", "gone");
    // A user that could not be read may have been one.
    check("image old v1 deleting\nvm a\nopaque asked/vm/a", "-asked/vm/a", "image/old", "gone");
}

#[test]
fn what_is_asked_again_is_planned_again() {
    let mut leading = Leading::settled(&format!("{BARE}vm a on=n1 observed=running"));
    let asked = leading.store.view().asked(&object("vm/a")).expect("the VM").as_ref().clone();
    let Spec::Vm(mut spec) = asked.spec else { panic!("a VM") };
    spec.running = false;
    let meta = Meta { generation: 2, ..asked.meta };
    leading.store.put(&Key::Asked(object("vm/a")), Asked { meta, spec: Spec::Vm(spec) });
    leading.settle();
    assert_eq!(outcome(&leading.store, "vm/a"), "on n1, waits: worker `n1` to stop it");
    resync(&mut leading, "stopped");
}

#[test]
fn a_loop_that_rests_wakes_for_its_resync_only() {
    let mut leading = Leading::new(&format!("{BARE}vm a"));
    assert!(leading.reconciler.next_wake().is_some_and(|wake| wake <= leading.now), "its queue is full");
    leading.settle();
    assert!(leading.reconciler.is_idle());
    assert_eq!(leading.wakes_in(), i64::try_from(RESYNC_PERIOD.millis()).expect("a period in range"));
    let counters = leading.reconciler.counters();
    leading.after(RESYNC_PERIOD.millis() - 1);
    assert_eq!(leading.next(), None);
    assert_eq!(leading.reconciler.counters(), counters, "nothing is planned before");
    leading.after(1);
    assert_eq!(leading.next(), None);
    assert_eq!(leading.reconciler.counters().plans, counters.plans + 5, "then everything is");
    assert_eq!(leading.wakes_in(), i64::try_from(RESYNC_PERIOD.millis()).expect("a period in range"));
}

#[test]
fn a_new_listing_wakes_everything() {
    let mut leading = Leading::settled(&format!("{BARE}vm a image=late"));
    change(&mut leading.store, "image late v1");
    leading.store.follow(&mut leading.fed);
    leading.reconciler.feed(leading.fed.clone(), None);
    leading.settle();
    assert_eq!(outcome(&leading.store, "vm/a"), "on n1, waits: worker `n1` to start it");
}
