//! What a server delivers to a worker: everything of it and nothing of others, or nothing at all.

use insta::assert_snapshot;
use lightbyte_plan::agent::{Delivery, News, Stamped};
use lightbyte_plan::{View, delivery};

use crate::world::{Names, Show, key, worker_id, world};

const TEXT: &str = "rack
    vm a on=n1 observed=running
    vm b on=n2 observed=claimed volume=unplaced address=10.77.0.3
    vm c on=n1 volume=gone nonic";

fn show(view: &View, delivery: Option<Delivery>) -> String {
    let Some(Delivery { epoch, revision, news }) = delivery else { return "nothing".to_owned() };
    assert_eq!((epoch.epoch, revision), (1, view.revision()));
    let names = Names::of(view);
    let stamped = |shown: Option<String>, key: &lightbyte_api::Key| match shown {
        Some(shown) => format!("{shown} at {}", view.mod_revision(key)),
        None => "none".to_owned(),
    };
    let worker = worker_id("n1");
    match news {
        News::Inventory(items) => {
            let lines = items.iter().map(|item| {
                let keys = [
                    lightbyte_api::Key::Assigned(worker, item.object),
                    lightbyte_api::Key::Observed(worker, item.object),
                ];
                let revisions = [
                    item.assigned.as_ref().map(|stamped| stamped.mod_revision),
                    item.observed.as_ref().map(|stamped| stamped.mod_revision),
                ];
                for (key, revision) in keys.iter().zip(revisions) {
                    assert_eq!(revision.unwrap_or(0), view.mod_revision(key), "{key}");
                }
                let wanted = item.assigned.as_ref().map(|stamped| stamped.value.sequence());
                let observed = item.observed.as_ref().map(|stamped| stamped.value.show(&names));
                format!("{}: assigned {wanted:?}, observed {observed:?}", names.show(item.object.uid))
            });
            lines.collect::<Vec<String>>().join("\n")
        }
        News::Change { object, assigned } => {
            let key = lightbyte_api::Key::Assigned(worker, object);
            let shown = assigned.map(|Stamped { value, .. }| format!("sequence {}", value.sequence()));
            format!("{}: {}", names.show(object.uid), stamped(shown, &key))
        }
        News::Reported { object, mod_revision } => {
            let key = lightbyte_api::Key::Observed(worker, object);
            assert_eq!(mod_revision, view.mod_revision(&key));
            format!("{}: reported at {mod_revision}", names.show(object.uid))
        }
        News::Topology { object, told } => {
            format!("{}: told revision {}", names.show(object.uid), told.revision)
        }
        News::Progress => "progress".to_owned(),
    }
}

fn inventory(changes: &str) -> String {
    let view = world(&format!("{TEXT}\n{changes}")).view();
    show(&view, delivery::inventory(&view, worker_id("n1"), &delivery::unopened))
}

#[test]
fn an_inventory_is_whole_or_not_there() {
    assert_snapshot!(inventory(""), @r#"
    volume/a-root: assigned Some(1), observed Some("present sequence 1")
    vm/a: assigned Some(1), observed Some("running sequence 1")
    vm/c: assigned Some(1), observed None
    "#);
    // What was assigned and is not any more, and what is reported without being assigned, are both told.
    assert_snapshot!(inventory("drop assigned/{worker/n1}/vm/{vm/a}\ndrop asked/vm/a"), @r#"
    volume/a-root: assigned Some(1), observed Some("present sequence 1")
    unknown 00000000-0000-0000-1fe3-a200d976e328: assigned None, observed Some("running sequence 1")
    vm/c: assigned Some(1), observed None
    "#);
    // A list with a hole must not be taken for a whole one.
    assert_snapshot!(inventory("opaque assigned/{worker/n1}/vm/{vm/a}"), @"nothing");
    assert_snapshot!(inventory("opaque observed/{worker/n1}/volume/{volume/a-root}"), @"nothing");
    assert_snapshot!(inventory("opaque meta/epoch"), @"nothing");
    // Another worker's values may be what they are.
    assert_ne!(inventory("opaque assigned/{worker/n2}/vm/{vm/b}"), "nothing");
}

#[test]
fn only_changes_of_its_assignments_and_reports_concern_a_worker() {
    let check = |changes: &str, changed: &str| {
        let view = world(&format!("{TEXT}\n{changes}")).view();
        show(&view, delivery::change(&view, worker_id("n1"), &key(changed)))
    };
    assert_snapshot!(check("", "assigned/{worker/n1}/vm/{vm/a}"), @"vm/a: sequence 1 at 14");
    assert_snapshot!(check("drop assigned/{worker/n1}/vm/{vm/a}", "assigned/{worker/n1}/vm/{vm/a}"), @"vm/a: none");
    assert_snapshot!(check("opaque assigned/{worker/n1}/vm/{vm/a}", "assigned/{worker/n1}/vm/{vm/a}"), @"nothing");
    assert_snapshot!(check("", "assigned/{worker/n2}/vm/{vm/b}"), @"nothing");
    assert_snapshot!(check("", "observed/{worker/n1}/vm/{vm/a}"), @"vm/a: reported at 16");
    assert_snapshot!(check("drop observed/{worker/n1}/vm/{vm/a}", "observed/{worker/n1}/vm/{vm/a}"), @"vm/a: reported at 0");
    assert_snapshot!(check("", "observed/{worker/n2}/vm/{vm/b}"), @"nothing");
    assert_snapshot!(check("", "observed/{worker/n1}/worker/{worker/n1}"), @"nothing");
    assert_snapshot!(check("", "asked/vm/a"), @"nothing");
}

#[test]
fn a_stream_begins_where_the_worker_has_been() {
    let view = world(TEXT).view();
    let at = view.revision();
    // (the worker's cursor, the revision of a linearizable read, whether it may begin)
    let cases = [
        (Some(at), None, true),
        (Some(at - 1), None, true),
        (Some(at + 1), None, false),
        (None, Some(at), true),
        (None, Some(at + 1), false),
        (None, None, false),
        (Some(at), Some(at + 1), true),
    ];
    for (cursor, confirmed, expected) in cases {
        assert_eq!(delivery::may_begin(&view, cursor, confirmed), expected, "{cursor:?} {confirmed:?}");
    }
}
