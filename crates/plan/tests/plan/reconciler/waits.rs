//! When the loop should be called again.

use lightbyte_api::Key;
use lightbyte_api::object::{Asked, Meta};

use super::Leading;
use crate::world::object;

/// while the loop holds for its feed, `next_wake` is in the past: a shell that sleeps until then spins.
#[test]
fn next_wake_is_not_in_the_past_while_the_loop_waits_for_its_feed() {
    let mut leading = Leading::new("rack\nvm a");
    let batch = leading.next().expect("a batch");
    let asked = leading.store.view().asked(&object("vm/a")).expect("the VM").as_ref().clone();
    let meta = Meta { labels: [("a".to_owned(), "b".to_owned())].into(), ..asked.meta };
    leading.store.put(&Key::Asked(object("vm/a")), Asked { meta, spec: asked.spec });
    assert!(!leading.send(&batch));
    leading.after(1_000);
    assert_eq!(leading.next(), None);
    assert!(leading.reconciler.next_wake().is_none_or(|wake| wake > leading.now));
}

/// a turn that planned its most and wrote nothing says neither "now" nor anything else about the rest.
#[test]
fn a_loop_with_a_queue_says_so() {
    let vms: Vec<String> = (0..600).map(|index| format!("vm v{index} image=none")).collect();
    let mut leading = Leading::settled(&vms.join("\n"));
    leading.reconciler.feed(leading.fed.clone(), None);
    assert_eq!(leading.next(), None);
    assert!(!leading.reconciler.is_idle());
    assert!(
        leading.reconciler.next_wake().is_some_and(|wake| wake <= leading.now),
        "the rest waits for the resync"
    );
}
