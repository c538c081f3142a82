//! What happens when a batch is refused, when its outcome is not known, and when somebody else leads.

use std::collections::BTreeMap;

use lightbyte_api::object::{Asked, Meta};
use lightbyte_api::{Key, ObjectRef, Spec};
use lightbyte_plan::reconciler::{BACKOFF_FIRST, BACKOFF_LIMIT};

use super::Leading;
use crate::world::object;

/// Somebody changes the labels of `named`.
fn touch(leading: &mut Leading, named: &ObjectRef) {
    let asked = leading.store.view().asked(named).expect("the object").as_ref().clone();
    let mut labels = asked.meta.labels.clone();
    labels.insert("touched".to_owned(), leading.store.revision().to_string());
    let meta = Meta { labels, ..asked.meta };
    leading.store.put(&Key::Asked(named.clone()), Asked { meta, spec: asked.spec });
}

/// Which VMs the batch places.
fn placed(batch: &lightbyte_plan::Transaction) -> Vec<String> {
    let vms = ["vm/a", "vm/b", "vm/c"].into_iter();
    vms.filter(|vm| batch.writes.contains_key(&Key::Decided(object(vm)))).map(ToOwned::to_owned).collect()
}

#[test]
fn only_whom_a_conflict_concerns_pauses() {
    let mut leading = Leading::new("rack\nvm a\nvm b\nvm c");
    let batch = leading.next().expect("a batch");
    assert_eq!(placed(&batch), ["vm/a", "vm/b", "vm/c"]);
    touch(&mut leading, &object("vm/b"));
    assert!(!leading.send(&batch));
    assert_eq!(leading.reconciler.counters().conflicts, 1);
    // Nothing is planned from the view that was wrong.
    assert_eq!(leading.next(), None);
    assert!(!leading.reconciler.is_idle());
    leading.feed();
    // The change itself wakes vm/b as well: what the feed has brought is newer than what the pause is for.
    let batch = leading.next().expect("a batch");
    assert!(placed(&batch).contains(&"vm/a".to_owned()) && placed(&batch).contains(&"vm/c".to_owned()));
    assert!(leading.send(&batch));
    leading.after(BACKOFF_FIRST.millis());
    leading.settle();
    let view = leading.store.view();
    for vm in ["vm/a", "vm/b", "vm/c"] {
        assert!(lightbyte_plan::planner::worker_of(&view, &object(vm)).is_some(), "{vm}");
    }
}

#[test]
fn the_pause_doubles_up_to_its_limit_and_ends_with_a_success() {
    let mut leading = Leading::new("rack\nvm a");
    let mut expected = BACKOFF_FIRST.millis();
    for _ in 0..12 {
        let batch = leading.next().expect("a batch");
        // The worker's own report is not a key that wakes the VM before its pause ends, so only the pause does.
        let worker = Key::Alive(crate::world::worker_id("n1"));
        let alive = leading.store.view().record(&worker).cloned().expect("a living worker");
        leading.store.put(&worker, alive);
        assert!(!leading.send(&batch), "the worker began another life");
        assert_eq!(leading.reconciler.next_wake(), None, "nothing but the feed can move it on");
        // The feed brings the view on without a word of what changed, as if nothing of it concerned the VM.
        leading.store.follow(&mut leading.fed);
        leading.reconciler.feed(leading.fed.clone(), Some(&[]));
        leading.after(expected - 1);
        assert_eq!(leading.next(), None, "not before the pause of {expected} ms is over");
        assert_eq!(leading.wakes_in(), 1);
        leading.after(1);
        expected = (expected * 2).min(BACKOFF_LIMIT.millis());
    }
    assert_eq!(expected, BACKOFF_LIMIT.millis());
    leading.settle();
    // After a success the next conflict begins anew.
    let asked = leading.store.view().asked(&object("vm/a")).expect("the VM").as_ref().clone();
    let Spec::Vm(spec) = asked.spec else { panic!("a VM") };
    let spec = Spec::Vm(lightbyte_api::kinds::vm::Spec { running: false, ..spec });
    leading.store.put(&Key::Asked(object("vm/a")), Asked { meta: asked.meta, spec });
    leading.feed();
    let batch = leading.next().expect("the assignment follows");
    touch(&mut leading, &object("vm/a"));
    assert!(!leading.send(&batch));
    leading.store.follow(&mut leading.fed);
    leading.reconciler.feed(leading.fed.clone(), Some(&[]));
    assert_eq!(leading.next(), None);
    assert_eq!(leading.wakes_in(), i64::try_from(BACKOFF_FIRST.millis()).expect("a short pause"));
}

#[test]
fn an_unknown_outcome_is_looked_up_in_the_view() {
    for committed in [true, false] {
        let mut leading = Leading::new("rack\nvm a");
        let batch = leading.next().expect("a batch");
        if committed {
            leading.store.commit(&batch).expect("nobody else writes");
        }
        // A linearizable read after it, with other people's writes before and after.
        touch(&mut leading, &object("image/demo"));
        leading.reconciler.unknown(leading.store.revision(), leading.now);
        assert_eq!(leading.next(), None, "nothing is planned before the view has got there");
        leading.after(60_000);
        assert_eq!(leading.next(), None, "however long that takes");
        leading.feed();
        let again = leading.next();
        assert_eq!(again.is_none(), committed, "it is planned again exactly when it was not committed");
        if let Some(again) = again {
            assert!(leading.send(&again));
        }
        leading.settle();
        let ledger = leading.store.view();
        let vms = ledger.worker_ledger(crate::world::worker_id("n1")).map(|ledger| ledger.vms);
        assert_eq!(vms, Some(1), "it was placed once");
    }
}

#[test]
fn a_deposed_leader_knows_it_and_cannot_write() {
    let mut leading = Leading::new("rack\nvm a");
    let batch = leading.next().expect("a batch");
    let leader = leading.store.view().record(&Key::Leader).cloned().expect("a leader");
    leading.store.put(&Key::Leader, leader);
    let (_, current) = leading.store.commit(&batch).expect_err("another term has begun");
    assert!(leading.reconciler.is_deposed(&current));
    // A restore raises the epoch, which has the same end.
    let mut leading = Leading::new("rack\nvm a");
    let batch = leading.next().expect("a batch");
    let epoch = leading.store.view().record(&Key::Epoch).cloned().expect("an epoch");
    leading.store.put(&Key::Epoch, epoch);
    let (_, current) = leading.store.commit(&batch).expect_err("another epoch has begun");
    assert!(leading.reconciler.is_deposed(&current));
    // A plain conflict is none.
    let mut leading = Leading::new("rack\nvm a");
    let batch = leading.next().expect("a batch");
    touch(&mut leading, &object("vm/a"));
    let (_, current) = leading.store.commit(&batch).expect_err("the VM has changed");
    assert!(!leading.reconciler.is_deposed(&current));
    assert!(!leading.reconciler.is_deposed(&BTreeMap::new()));
}

#[test]
fn a_hold_lasts_until_the_view_is_there() {
    let mut leading = Leading::new("rack\nvm a");
    leading.reconciler.hold_until(leading.store.revision() + 2);
    assert_eq!(leading.next(), None);
    touch(&mut leading, &object("image/demo"));
    leading.feed();
    assert_eq!(leading.next(), None);
    touch(&mut leading, &object("image/demo"));
    leading.feed();
    assert!(leading.next().is_some());
}
