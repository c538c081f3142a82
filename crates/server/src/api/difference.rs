//! How two objects differ, leaf by leaf: what a dry run shows.

use lightbyte_api::wire::Difference;
use serde_json::Value;

/// The leaves that differ, in the order of `after`, then those that only `before` has.
pub(crate) fn differences(before: &Value, after: &Value) -> Vec<Difference> {
    let mut found = Vec::new();
    compare("", before, after, &mut found);
    found
}

fn compare(path: &str, before: &Value, after: &Value, found: &mut Vec<Difference>) {
    if before == after {
        return;
    }
    let (steps_before, steps_after) = (steps(before), steps(after));
    // A part that has leaves is told by them, also when there is nothing on the other side.
    let has_leaves = |value: &Value, steps: &[(String, &Value)]| value.is_null() || !steps.is_empty();
    let descends = !(before.is_null() && after.is_null())
        && has_leaves(before, &steps_before)
        && has_leaves(after, &steps_after)
        && (before.is_null() || after.is_null() || before.is_object() == after.is_object())
        && !(steps_before.is_empty() && steps_after.is_empty());
    if !descends {
        found.push(Difference { path: path.to_owned(), before: before.clone(), after: after.clone() });
        return;
    }
    let find = |steps: &[(String, &Value)], step: &str| {
        steps.iter().find(|(found, _)| found == step).map_or(Value::Null, |(_, value)| (*value).clone())
    };
    let only_before =
        steps_before.iter().filter(|(step, _)| !steps_after.iter().any(|(other, _)| other == step));
    for (step, _) in steps_after.iter().chain(only_before) {
        let path =
            if path.is_empty() { step.trim_start_matches('.').to_owned() } else { format!("{path}{step}") };
        compare(&path, &find(&steps_before, step), &find(&steps_after, step), found);
    }
}

/// The parts of a value, each with the step that leads there.
fn steps(value: &Value) -> Vec<(String, &Value)> {
    match value {
        Value::Object(fields) => fields.iter().map(|(name, value)| (format!(".{name}"), value)).collect(),
        Value::Array(items) => {
            items.iter().enumerate().map(|(index, value)| (format!("[{index}]"), value)).collect()
        }
        _ => Vec::new(),
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
