//! How two objects differ, leaf by leaf: what a dry run and a look back show.

use std::collections::BTreeMap;

use lightbyte_api::Asked;
use lightbyte_api::wire::Difference;
use serde_json::{Value, json};

/// What a person asks of an object; nothing of what is not there.
pub(crate) fn asked_for(asked: Option<&Asked>) -> Value {
    asked.map_or(
        Value::Null,
        |asked| json!({ "labels": asked.meta.labels, "spec": asked.spec.to_json().unwrap_or(Value::Null) }),
    )
}

/// The leaves that differ: those of `after` first, then those that only `before` has.
pub(crate) fn differences(before: &Value, after: &Value) -> Vec<Difference> {
    let mut found = Vec::new();
    compare("", before, after, &mut found);
    found
}

/// Whether what stands there may be a password or a key: what is done at a first boot is no one's business but the guest's.
pub(crate) fn may_be_secret(path: &str) -> bool {
    path.split(['.', '[']).any(|step| step == "first_boot")
}

/// The same without values that may be secret: that they differ is told, and not how.
pub(crate) fn without_secrets(differences: Vec<Difference>) -> Vec<Difference> {
    let hidden = |value: Value| if value.is_null() { value } else { json!("(not shown)") };
    let shown = |Difference { path, before, after }| match may_be_secret(&path) {
        true => Difference { path, before: hidden(before), after: hidden(after) },
        false => Difference { path, before, after },
    };
    differences.into_iter().map(shown).collect()
}

fn compare(path: &str, before: &Value, after: &Value, found: &mut Vec<Difference>) {
    if before == after {
        return;
    }
    let (parts_before, parts_after) = (parts(before), parts(after));
    // Parts are compared with parts of the same sort; where one side has nothing, each part of the other is told.
    let alike = before.is_null()
        || after.is_null()
        || (before.is_object() && after.is_object())
        || (before.is_array() && after.is_array());
    if !alike || (parts_before.is_empty() && parts_after.is_empty()) {
        found.push(Difference { path: path.to_owned(), before: before.clone(), after: after.clone() });
        return;
    }
    let only_before = parts_before.keys().filter(|step| !parts_after.contains_key(*step));
    for step in parts_after.keys().chain(only_before) {
        let path = match path {
            "" => step.trim_start_matches('.').to_owned(),
            path => format!("{path}{step}"),
        };
        let of = |parts: &Parts<'_>| parts.get(step).copied().unwrap_or(&Value::Null).clone();
        compare(&path, &of(&parts_before), &of(&parts_after), found);
    }
}

/// The parts of a value by the step that leads there, in the order of the steps.
type Parts<'a> = BTreeMap<String, &'a Value>;

fn parts(value: &Value) -> Parts<'_> {
    match value {
        Value::Object(fields) => fields.iter().map(|(name, value)| (format!(".{name}"), value)).collect(),
        Value::Array(items) => {
            items.iter().enumerate().map(|(index, value)| (format!("[{index}]"), value)).collect()
        }
        _ => Parts::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(before: &Value, after: &Value, expect: &[&str]) {
        let found: Vec<String> = differences(before, after)
            .iter()
            .map(|difference| format!("{}: {} -> {}", difference.path, difference.before, difference.after))
            .collect();
        assert_eq!(found, expect);
    }

    #[test]
    fn every_leaf_that_differs_is_told() {
        check(&json!({"a": 1}), &json!({"a": 1}), &[]);
        check(&json!({"a": 1, "b": {"c": 2}}), &json!({"a": 1, "b": {"c": 3}}), &["b.c: 2 -> 3"]);
        check(&json!({"a": [1, 2]}), &json!({"a": [1]}), &["a[1]: 2 -> null"]);
        check(&json!({"a": {}}), &json!({"a": {"b": 1}}), &["a.b: null -> 1"]);
        check(&json!({"x": true}), &json!({"y": true}), &["y: null -> true", "x: true -> null"]);
        check(
            &Value::Null,
            &json!({"spec": {"disks": [{"name": "root"}], "labels": {}}}),
            &["spec.disks[0].name: null -> \"root\"", "spec.labels: null -> {}"],
        );
        check(&json!({"a": "wait"}), &json!({"a": {"recreate": 1}}), &["a: \"wait\" -> {\"recreate\":1}"]);
        check(&json!({"a": [1]}), &json!({"a": {"b": 1}}), &["a: [1] -> {\"b\":1}"]);
    }
}
