//! The way into a guest, and every reason why there is none.

use insta::assert_snapshot;
use lightbyte_plan::guest::way_to;

use crate::world::{object, uid, world};

fn check(text: &str, objects: &[&str]) -> String {
    let view = world(text).view();
    let one = |text: &&str| match way_to(&view, &object(text)) {
        Ok(way) => {
            assert_eq!(way.vm.uid(), uid(&object(text)), "{text}");
            format!("{text}: worker {} at {:?}", way.worker, way.address)
        }
        Err(refusal) => format!("{text}: {refusal} ({})", refusal.hint().unwrap_or_default()),
    };
    objects.iter().map(one).collect::<Vec<String>>().join("\n")
}

#[test]
fn a_guest_is_reached_through_the_worker_that_has_it() {
    let text = "rack
        worker n3 cpus=4 memory=1GiB away
        vm a on=n1 observed=running
        vm b on=n2 observed=stopped stopped
        vm c on=n3 observed=running
        vm d";
    assert_snapshot!(check(text, &["vm/a", "vm/b", "vm/c", "vm/d", "vm/e", "worker/n1"]), @r#"
    vm/a: worker n1 at ""
    vm/b: worker n2 at ""
    vm/c: worker `n3`, which has vm/c, is away (`lightbyte why worker/n3` says more)
    vm/d: vm/d is not on any worker yet (`lightbyte why vm/d` says what it waits for)
    vm/e: vm/e does not exist (`lightbyte get vm` lists what there is)
    worker/n1: worker/n1 cannot be entered: only VMs can ()
    "#);
}
