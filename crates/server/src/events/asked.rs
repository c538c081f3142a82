//! What somebody asked of an object that was there already, in words.

use lightbyte_api::Asked;
use lightbyte_api::kinds::scalegroup::Rollout;
use lightbyte_api::text::misleads;
use lightbyte_api::wire::Difference;
use serde_json::Value;

use crate::api::difference::{asked_for, differences, may_be_secret};

/// How many fields are named; of more, how many there are.
const FIELDS_TOLD_MAX: usize = 4;
/// The longest value that is told. Longer ones are scripts, keys and lists, which nobody looks for in an event.
const VALUE_LENGTH_MAX: usize = 40;

/// What was asked between the two; nothing when that is nothing that people ask.
pub(super) fn told(before: &Asked, after: &Asked) -> Vec<String> {
    let mut told = Vec::new();
    if before.meta.deleting_since.is_none() && after.meta.deleting_since.is_some() {
        told.push("its end was asked for".to_owned());
    }
    if before.meta.restarts_asked < after.meta.restarts_asked {
        told.push("a restart was asked for".to_owned());
    }
    told.extend(steered(&before.meta.rollout, &after.meta.rollout).map(str::to_owned));
    let found = differences(&asked_for(Some(before)), &asked_for(Some(after)));
    let mut fields: Vec<String> = found.iter().take(FIELDS_TOLD_MAX).map(field).collect();
    if let Some(more) = found.len().checked_sub(FIELDS_TOLD_MAX).filter(|more| *more > 0) {
        fields.push(format!("and {more} more"));
    }
    if !fields.is_empty() {
        told.push(format!("what is asked was changed: {}", fields.join(", ")));
    }
    told
}

fn steered(before: &Rollout, after: &Rollout) -> Option<&'static str> {
    if before.undone != after.undone && after.undone.is_some() {
        return Some("its update was to be taken back");
    }
    if before.promoted != after.promoted && after.promoted.is_some() {
        return Some("its canaries were found good");
    }
    match (before.paused, after.paused) {
        (false, true) => Some("its update was to pause"),
        (true, false) => Some("its update was to go on"),
        _ => None,
    }
}

fn field(Difference { path, before, after }: &Difference) -> String {
    let path = path.strip_prefix("spec.").unwrap_or(path);
    if may_be_secret(path) {
        return path.to_owned();
    }
    match (short(before), short(after)) {
        (Some(before), Some(after)) => format!("{path} from {before} to {after}"),
        _ => path.to_owned(),
    }
}

fn short(value: &Value) -> Option<String> {
    let text = match value {
        Value::Null => "nothing".to_owned(),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
        Value::String(text) if !text.contains(misleads) => text.clone(),
        _ => return None,
    };
    (text.chars().count() <= VALUE_LENGTH_MAX).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use lightbyte_api::kinds::scalegroup::Undone;
    use lightbyte_api::{Manifest, Meta, Timestamp, Uid};
    use serde_json::json;

    fn asked(spec: &Value) -> Asked {
        let manifest =
            Manifest::read(&json!({ "kind": "vm", "name": "a", "spec": spec })).expect("a manifest");
        let meta = Meta::new(Uid::from_bits(1), None, manifest.labels, Timestamp::UNIX_EPOCH);
        Asked { meta, spec: manifest.spec }
    }

    #[test]
    fn every_way_to_ask_is_told() {
        let base = asked(&json!({ "image": "demo", "cpus": 1 }));
        let check = |change: &dyn Fn(&mut Asked), expect: &[&str]| {
            let mut after = base.clone();
            change(&mut after);
            assert_eq!(told(&base, &after), expect);
        };
        check(&|_| {}, &[]);
        check(&|asked| asked.meta.changed_at = Timestamp::MAX, &[]);
        check(&|asked| asked.meta.deleting_since = Some(Timestamp::UNIX_EPOCH), &["its end was asked for"]);
        check(&|asked| asked.meta.restarts_asked += 1, &["a restart was asked for"]);
        check(&|asked| asked.meta.rollout.paused = true, &["its update was to pause"]);
        check(&|asked| asked.meta.rollout.promoted = Some(2), &["its canaries were found good"]);
        let undone = Undone { version: 2, to: 1 };
        check(&|asked| asked.meta.rollout.undone = Some(undone), &["its update was to be taken back"]);
        check(
            &|changed| changed.spec = asked(&json!({ "image": "demo", "cpus": 2 })).spec,
            &["what is asked was changed: cpus from 1 to 2"],
        );
        check(
            &|asked| drop(asked.meta.labels.insert("app".to_owned(), "web".to_owned())),
            &["what is asked was changed: labels.app from nothing to web"],
        );
    }

    #[test]
    fn long_values_and_many_fields_are_not_told() {
        let difference = |path: &str, before: Value, after: Value| {
            field(&Difference { path: path.to_owned(), before, after })
        };
        assert_eq!(difference("spec.script", Value::Null, json!("x".repeat(41))), "script");
        assert_eq!(difference("spec.nics", json!([]), json!([1])), "nics");
        assert_eq!(difference("spec.name", json!("a"), json!("\u{1b}")), "name");
        assert_eq!(difference("spec.name", json!("a"), json!("a\u{202e}b")), "name");
        let secret = "spec.template.first_boot.files[0].content";
        assert_eq!(
            difference(secret, json!("hunter2"), json!("hunter3")),
            secret.trim_start_matches("spec.")
        );
        let before = asked(&json!({ "image": "demo" }));
        let mut after = before.clone();
        after.meta.labels = (0..6).map(|number| (format!("l{number}"), "x".to_owned())).collect();
        let [told] = told(&before, &after).try_into().expect("one sentence");
        assert!(told.ends_with("labels.l3 from nothing to x, and 2 more"), "{told}");
    }
}
