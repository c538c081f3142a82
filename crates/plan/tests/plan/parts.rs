//! Parts of images as the view knows them: what is registered, and who has what.

use lightbyte_plan::agent::parts::{holders, registered};

use crate::world::world;

#[test]
fn what_is_registered_is_whole_or_not_said() {
    let check = |changes: &str, expect: Option<usize>| {
        let view = world(&format!("rack\n{changes}")).view();
        assert_eq!(registered(&view).map(|parts| parts.len()), expect, "{changes}");
    };
    check("", Some(2));
    check("image other v1,v2", Some(2));
    check("image going v1 deleting", Some(2));
    check("vm a\nopaque asked/vm/a", Some(2));
    // An image that cannot be read may have any part.
    check("opaque asked/image/demo", None);
    check("opaque asked/image/other", None);
    check("drop asked/image/demo", Some(0));
}

#[test]
fn only_workers_that_live_and_listen_are_asked_for_a_part() {
    let check = |changes: &str, expect: &[&str]| {
        let view = world(&format!("rack\n{changes}")).view();
        let found: Vec<String> = holders(&view, &"a".repeat(64)).map(|said| said.name.to_string()).collect();
        assert_eq!(found, expect, "{changes}");
    };
    check("", &[]);
    check("worker n3 has=a listens=n3:7701", &["n3"]);
    check("worker n3 has=b listens=n3:7701", &[]);
    check("worker n3 has=a", &[]);
    check("worker n3 has=a listens=n3:7701 away", &[]);
    check("worker n3 has=a listens=n3:7701\nworker n4 has=a listens=n4:7701", &["n3", "n4"]);
}
