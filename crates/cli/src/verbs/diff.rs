//! `lightbyte diff`: what `apply` would change, or what was changed between two points of the past.

use anyhow::{Context as _, Result};
use lightbyte_api::ObjectRef;
use lightbyte_api::text::misleads;
use lightbyte_api::wire::{Applied, ChangeAction, Changed, Difference, PastAction, PastChange, PastChanges};
use serde_json::Value;

use crate::arguments::Diff;
use crate::cluster::Cluster;
use crate::failure::{Code, Failure};
use crate::target::{self, Target};
use crate::terminal::{print, say};
use crate::verbs::apply;

pub(crate) async fn run(cluster: &Cluster, words: &Diff) -> Result<Code> {
    let differs = match &words.from {
        Some(from) => of_the_past(cluster, words, from).await?,
        None if words.files.is_empty() || !words.targets.is_empty() => {
            let failure = Failure::usage("nothing is said of what is to be compared");
            let hint = "`lightbyte diff -f FILE` compares manifests, `lightbyte diff --from 10m` what was asked then";
            return Err(failure.hint(hint).into());
        }
        None => {
            let applied = apply::send(cluster, &words.files, true).await?;
            print(&of_apply(&applied))?;
            applied.changes.iter().any(|changed| changed.action != ChangeAction::Unchanged)
        }
    };
    Ok(if differs { Code::Differs } else { Code::Done })
}

/// Shows what was changed; whether anything was.
async fn of_the_past(cluster: &Cluster, words: &Diff, from: &str) -> Result<bool> {
    // Names are not looked up: what they mean may be gone.
    let of = target::read(&words.targets)?.into_iter().map(|target| match target {
        Target::Object(object) => object.to_string(),
        Target::Named(name) => name.to_string(),
        Target::Kind(kind) => kind.to_string(),
    });
    let of: Vec<String> = of.collect();
    let told = cluster.changes(from, words.to.as_deref(), &of).await;
    let told = told.context("compare two points of the past")?;
    print(&of_past(&told))?;
    say(&format!("from revision {} to revision {}", told.from, told.to));
    if told.untold > 0 {
        say(&format!("{} more objects differ; name a kind or an object to see them", told.untold));
    }
    Ok(!told.changes.is_empty())
}

/// What was changed, object by object.
fn of_past(told: &PastChanges) -> String {
    let of_one = |change: &PastChange| {
        let head = match change.action {
            PastAction::Made => "was made",
            PastAction::Changed => "was changed",
            PastAction::MadeAnew => "ended and was made anew",
            PastAction::Deleting => "is being deleted",
            PastAction::Gone => "is gone",
        };
        section(&change.object, head, &change.differences)
    };
    told.changes.iter().map(of_one).collect()
}

/// What differs, object by object; nothing for what is as asked.
pub(crate) fn of_apply(applied: &Applied) -> String {
    let of_one = |changed: &Changed| {
        let head = match changed.action {
            ChangeAction::Unchanged => return String::new(),
            ChangeAction::Created => "would be created",
            ChangeAction::Changed => "would be changed",
            ChangeAction::Deleting => "is being deleted",
        };
        section(&changed.object, head, &changed.differences)
    };
    applied.changes.iter().map(of_one).collect()
}

/// An object, what became of it, and the fields that differ.
pub(crate) fn section(object: &ObjectRef, head: &str, differences: &[Difference]) -> String {
    format!("{object} {head}\n") + &differences.iter().flat_map(difference).collect::<String>()
}

fn difference(difference: &Difference) -> Vec<String> {
    let side = |sign: char, value: &Value| match value {
        Value::Null => None,
        // An empty list or map where nothing was is no difference to a person.
        Value::Object(fields) if fields.is_empty() => None,
        Value::Array(items) if items.is_empty() => None,
        value => Some(format!("  {sign} {}: {}\n", difference.path, in_one_line(value))),
    };
    [side('-', &difference.before), side('+', &difference.after)].into_iter().flatten().collect()
}

/// A value as one line that misleads no terminal: it may be anybody's.
fn in_one_line(value: &Value) -> String {
    let text = match value {
        Value::String(text) if !text.is_empty() && !text.contains(char::is_control) => text.clone(),
        value => value.to_string(),
    };
    let escaped = |character: char| match misleads(character) {
        true => character.escape_unicode().to_string(),
        false => character.to_string(),
    };
    text.chars().map(escaped).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn differences_show_what_is_and_what_would_be() {
        let check = |changes: Value, expect: &str| {
            let applied: Applied = serde_json::from_value(json!({ "changes": changes })).unwrap();
            assert_eq!(of_apply(&applied), expect);
        };
        let uid = "0193a5c0-7d3e-7c4a-9b1e-2f6d8a4b0c1d";
        check(json!([{"object": "vm/a", "action": "unchanged", "generation": 1, "uid": uid}]), "");
        check(
            json!([
                {"object": "vm/a", "action": "changed", "generation": 2, "uid": uid, "differences": [
                    {"path": "spec.running", "before": true, "after": false},
                    {"path": "labels.app", "before": null, "after": "web"},
                    {"path": "labels.old", "before": "x", "after": null},
                ]},
                {"object": "vm/b", "action": "created", "generation": 1, "uid": uid, "differences": [
                    {"path": "spec.nics", "before": null, "after": [{"network": "lan"}]},
                ]},
            ]),
            "vm/a would be changed\n  - spec.running: true\n  + spec.running: false\n  + labels.app: web\n  \
             - labels.old: x\nvm/b would be created\n  + spec.nics: [{\"network\":\"lan\"}]\n",
        );
    }

    #[test]
    fn the_past_is_told_as_it_went() {
        let told: PastChanges = serde_json::from_value(json!({ "from": 7, "to": 9, "untold": 0, "changes": [
            {"object": "vm/a", "action": "made", "differences": [
                {"path": "spec.image", "before": null, "after": "demo"},
            ]},
            {"object": "vm/b", "action": "made_anew", "differences": [
                {"path": "spec.cpus", "before": 1, "after": 2},
            ]},
            {"object": "vm/c", "action": "deleting"},
            {"object": "vm/d", "action": "gone"},
        ] }))
        .unwrap();
        let expect = "\
vm/a was made
  + spec.image: demo
vm/b ended and was made anew
  - spec.cpus: 1
  + spec.cpus: 2
vm/c is being deleted
vm/d is gone
";
        assert_eq!(of_past(&told), expect);
    }
}
