//! Many plans in one transaction, and the overlay of what the feed has not brought yet.

use insta::assert_snapshot;
use lightbyte_api::object::{Asked, Meta};
use lightbyte_api::{Key, Kind, Spec};
use lightbyte_plan::reconciler::{OVERLAYS_MAX, PLANS_PER_TURN_MAX};
use lightbyte_plan::transaction::{LARGE_BYTES_MAX, Transaction, WRITES_MAX, Write};

use super::{Leading, same};
use crate::world::{name, object, transaction};

/// A world with `count` VMs and a worker that has room for all.
fn many(count: usize) -> String {
    let vms: Vec<String> = (0..count).map(|index| format!("vm v{index}")).collect();
    let room = "worker n1 cpus=4096 memory=4TiB\nimage demo v1\nnetwork default 10.77.0.0/16 pool=2-5000";
    format!("{room}\n{}", vms.join("\n"))
}

#[test]
fn a_vm_and_its_volume_are_planned_in_one_batch() {
    let mut leading = Leading::new("rack\nvm a");
    let before = leading.store.view();
    let batch = leading.next().expect("a batch");
    // Every key once, and compared as it was before the batch: the volume's decision rests on its VM's, which this
    // batch writes, and so on the absence of it.
    assert_snapshot!(transaction(&before, &batch), @"
    claim default 10.77.0.2 for vm/a
    ledger n1 1 CPUs 128MiB 1 VMs
    put asked volume/a-root generation 1 64MiB of demo v1 of vm/a
    put assigned n1 vm/a running sequence 1 generation 1, 1 128MiB, volume/a-root, demo v1, 10.77.0.2/24 on br0
    put assigned n1 volume/a-root present sequence 1 generation 1, 64MiB
    put decided vm/a on n1 v1 root=a-root default=10.77.0.2, since 60 waits: worker `n1` to start it
    put decided volume/a-root on n1, since 60 waits: worker `n1` to make the disk
    rests on alive n1
    rests on asked image/demo
    rests on asked network/default
    rests on asked vm/a
    rests on asked worker/n1
    rests on epoch
    rests on leader
    rests on no observed n1 vm/a
    rests on no observed n1 volume/a-root
    rests on observed n1 worker/n1
    ");
    assert!(leading.send(&batch));
    assert_eq!(leading.next(), None, "the batch left nothing to do");
}

#[test]
fn ends_follow_each_other_in_one_batch() {
    let mut leading = Leading::new(
        "rack\nvm a deleting\nvm b on=n1 deleting wanted=removed volume=assigned volume_removing",
    );
    let batch = leading.next().expect("a batch");
    assert_snapshot!(crate::world::writes(&crate::world::Names::of(&leading.store.view()), &batch), @"
    delete asked vm/a
    delete asked vm/b
    delete asked volume/b-root
    delete assigned n1 vm/b
    delete assigned n1 volume/b-root
    delete decided vm/b
    delete decided volume/b-root
    ledger n1 0 CPUs 0B 0 VMs
    release default 10.77.0.2
    ");
    assert!(leading.send(&batch));
    leading.settle();
    assert_eq!(leading.batches.len(), 1, "one batch was enough");
}

#[test]
fn what_a_batch_makes_and_removes_is_never_there() {
    // The image is planned first, and waits for its user; then the user ends, and the image with it. That it waited
    // is not written, and the decision that was to say so is guarded as absent and not deleted.
    let mut leading = Leading::new("image old v1 deleting\nvm a image=old deleting");
    let before = leading.store.view();
    let batch = leading.next().expect("a batch");
    assert_snapshot!(transaction(&before, &batch), @"
    delete asked image/old
    delete asked vm/a
    rests on epoch
    rests on leader
    rests on no decided image/old
    rests on no decided vm/a
    ");
    assert!(leading.send(&batch));
    assert_eq!(leading.next(), None);
}

#[test]
fn hundreds_of_vms_take_several_batches_within_the_limits() {
    for feeds in [true, false] {
        let mut leading = Leading::new(&many(300));
        let mut sent = 0;
        while let Some(batch) = leading.next() {
            assert!(leading.send(&batch), "nobody else writes");
            sent += 1;
            if feeds {
                leading.feed();
            }
        }
        if !feeds {
            assert_eq!(sent, OVERLAYS_MAX, "the loop waits for its feed");
            leading.settle();
        }
        let view = leading.store.view();
        let placed =
            view.objects_of(Kind::Vm).filter(|vm| lightbyte_plan::planner::worker_of(&view, vm).is_some());
        assert_eq!(placed.count(), 300);
        let addresses = view.claimed_addresses(&name("default")).count();
        assert_eq!(addresses, 300, "each has an address of its own");
        let full = leading.batches.iter().filter(|batch| batch.writes.len() > WRITES_MAX / 2).count();
        assert!(
            full * 2 > leading.batches.len(),
            "{full} of {} batches are well filled",
            leading.batches.len()
        );
    }
}

#[test]
fn nothing_is_written_twice_while_the_feed_is_behind() {
    let mut leading = Leading::new("rack\nvm a\nvm b");
    let behind = leading.store.view();
    let batch = leading.next().expect("a batch");
    // While it is in flight nothing else is sent, whatever the feed brings.
    assert_eq!(leading.next(), None);
    leading.reconciler.feed(behind.clone(), Some(&[Key::Asked(object("vm/a"))]));
    assert_eq!(leading.next(), None);
    assert!(leading.send(&batch));
    let truth = leading.store.view();
    assert!(same(leading.reconciler.view(), &truth), "the overlay shows what was written");
    // A feed that is still behind, a full listing that is, and at last the real one.
    leading
        .reconciler
        .feed(behind.clone(), Some(&[Key::Asked(object("vm/a")), Key::Decided(object("vm/b"))]));
    assert_eq!(leading.next(), None);
    leading.reconciler.feed(behind, None);
    assert_eq!(leading.next(), None);
    assert!(same(leading.reconciler.view(), &truth));
    leading.feed();
    assert_eq!(leading.next(), None);
    assert!(same(leading.reconciler.view(), &truth));
}

#[test]
fn a_turn_is_bounded() {
    let mut leading = Leading::settled(&many(PLANS_PER_TURN_MAX));
    leading.reconciler.feed(leading.fed.clone(), None);
    let before = leading.reconciler.counters().plans;
    assert_eq!(leading.next(), None);
    assert_eq!(leading.reconciler.counters().plans - before, PLANS_PER_TURN_MAX as u64);
    assert!(!leading.reconciler.is_idle(), "the rest is for the next turns");
    leading.settle();
    assert_eq!(leading.reconciler.counters().panics, 0);
}

/// A VM whose end needs more writes than a transaction has: one for each child.
fn with_many_children() -> Leading {
    let mut leading = Leading::settled("rack\nvm a on=n1 observed=running\nvm b cpus=9");
    let view = leading.store.view();
    let child = view.asked(&object("volume/a-root")).expect("the volume").as_ref().clone();
    for index in 0..=WRITES_MAX {
        let named = object(&format!("volume/a-{index}"));
        let meta = Meta { uid: crate::world::uid(&named), ..child.meta.clone() };
        leading.store.put(&Key::Asked(named), Asked { meta, spec: child.spec.clone() });
    }
    let parent = view.asked(&object("vm/a")).expect("the VM").as_ref().clone();
    let meta = Meta { deleting_since: Some(leading.now), ..parent.meta };
    leading.store.put(&Key::Asked(object("vm/a")), Asked { meta, spec: parent.spec });
    leading
}

#[test]
fn a_plan_that_no_transaction_can_hold_is_quarantined_and_the_others_go_on() {
    let mut leading = with_many_children();
    leading.settle();
    assert_snapshot!(leading.last(), @"put decided vm/a on n1 v1 root=a-root default=10.77.0.2, since 60 waits: its planner failed: its plan needs more than 128 writes or 128 guards, or is too large");
    // The others are not held up.
    let mut asked = leading.store.view().asked(&object("vm/b")).expect("the VM").as_ref().clone();
    if let Spec::Vm(spec) = &mut asked.spec {
        spec.cpus = 1;
    }
    leading.store.put(&Key::Asked(object("vm/b")), asked);
    leading.settle();
    assert_snapshot!(leading.last(), @"
    claim default 10.77.0.3 for vm/b
    ledger n2 1 CPUs 128MiB 1 VMs
    put asked volume/b-root generation 1 64MiB of demo v1 of vm/b
    put assigned n2 vm/b running sequence 1 generation 1, 1 128MiB, volume/b-root, demo v1, 10.77.0.3/24 on br0
    put assigned n2 volume/b-root present sequence 1 generation 1, 64MiB
    put decided vm/b on n2 v1 root=b-root default=10.77.0.3, since 60 waits: worker `n2` to start it
    put decided volume/b-root on n2, since 60 waits: worker `n2` to make the disk
    ");
    // What is asked of it changes, and its plan has become smaller: it is tried again.
    for index in 0..=WRITES_MAX {
        leading.store.delete(&format!("asked/volume/a-{index}"));
    }
    let asked = leading.store.view().asked(&object("vm/a")).expect("the VM").as_ref().clone();
    leading.store.put(&Key::Asked(object("vm/a")), asked);
    leading.settle();
    assert_snapshot!(leading.last(), @"
    put asked volume/a-root generation 1 64MiB of demo v1 of vm/a deleting
    put assigned n1 vm/a removed sequence 2 generation 1, 1 128MiB, volume/a-root, demo v1, 10.77.0.2/24 on br0
    put assigned n1 volume/a-root removed sequence 2 generation 1, 64MiB
    put decided vm/a on n1 v1 root=a-root default=10.77.0.2, since 60 waits: worker `n1` to remove it, since 60 waits: its child volume/a-root to go
    put decided volume/a-root on n1, since 60 waits: worker `n1` to remove it
    ");
}

/// The store refuses what is larger than a request may be, and it would be sent again for ever.
#[test]
fn a_batch_is_no_larger_than_the_store_takes() {
    let script = "x".repeat(32_000);
    let vms = (0..60).map(|index| {
        format!(r#"asked vm/v{index} {{"image": "demo", "nics": [], "memory": "64MiB", "first_boot": {{"script": "{script}"}}}}"#)
    });
    let vms: Vec<String> = vms.collect();
    let world = format!("worker n1 cpus=100 memory=64GiB\nimage demo v1\n{}", vms.join("\n"));
    let leading = Leading::settled(&world);
    let bytes = |batch: &Transaction| batch.writes.values().map(Write::large_bytes).sum::<usize>();
    assert!(leading.batches.iter().all(|batch| bytes(batch) <= LARGE_BYTES_MAX));
    assert_eq!(leading.batches.iter().map(bytes).sum::<usize>(), 60 * 32_000, "all were placed");
}
