//! `lightbyte apply` and `lightbyte diff`: manifests made true, or compared with what is asked.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use lightbyte_api::wire::{Applied, Apply, ChangeAction, Changed, Difference};
use lightbyte_api::{Kind, ObjectRef};
use serde_json::Value;

use crate::arguments;
use crate::cluster::Cluster;
use crate::failure::Code;
use crate::manifests;
use crate::terminal::{print, say};
use crate::verbs::{delete, plan};

pub(crate) async fn run(cluster: &Cluster, words: &arguments::Apply) -> Result<Code> {
    if let Some(plan) = &words.plan {
        return plan::carry_out(cluster, plan, words.yes).await;
    }
    let applied = send(cluster, &words.files, words.dry_run).await?;
    if words.dry_run {
        print(&render_differences(&applied))?;
    } else {
        print(&applied.changes.iter().map(|changed| summary(changed) + "\n").collect::<String>())?;
    }
    if words.prune { prune(cluster, words, &applied).await } else { Ok(Code::Done) }
}

/// Deletes what has the labels and was not applied. Children go with their owners, and workers are no manifest's.
async fn prune(cluster: &Cluster, words: &arguments::Apply, applied: &Applied) -> Result<Code> {
    let mut objects = Vec::new();
    for kind in Kind::ALL.iter().filter(|kind| **kind != Kind::Worker) {
        let found = cluster.objects(*kind, &words.labels).await;
        let found = found.with_context(|| format!("list what belongs together of kind {kind}"))?;
        let found =
            found.into_iter().filter(|object| object.owner.is_none() && object.status.state != "deleting");
        objects.extend(found.map(|object| ObjectRef::new(object.kind, object.name)));
    }
    objects.retain(|object| applied.changes.iter().all(|changed| changed.object != *object));
    // What was made last may rest on what was made first.
    objects.reverse();
    if objects.is_empty() {
        return Ok(Code::Done);
    }
    if words.dry_run {
        print(&objects.iter().map(|object| format!("{object} would be deleted\n")).collect::<String>())?;
        return Ok(Code::Done);
    }
    if !words.yes && !delete::confirm(&objects)? {
        say("nothing was deleted");
        return Ok(Code::Error);
    }
    for object in &objects {
        cluster.delete(object).await.with_context(|| format!("delete `{object}`"))?;
        print(&format!("{object} deleting"))?;
    }
    Ok(Code::Done)
}

pub(crate) async fn diff(cluster: &Cluster, files: &arguments::Files) -> Result<Code> {
    let applied = send(cluster, &files.files, true).await?;
    let differs = applied.changes.iter().any(|changed| changed.action != ChangeAction::Unchanged);
    print(&render_differences(&applied))?;
    Ok(if differs { Code::Differs } else { Code::Done })
}

/// The manifests of files. The server checks them as well, and has the last word; only we know the files' names.
pub(crate) fn read(files: &[PathBuf]) -> Result<Vec<Value>> {
    let documents = manifests::read(files)?;
    manifests::check(&documents)?;
    Ok(documents.into_iter().map(|document| document.value).collect())
}

async fn send(cluster: &Cluster, files: &[PathBuf], dry_run: bool) -> Result<Applied> {
    let documents = read(files)?;
    let apply = Apply { documents, create_only: false, dry_run };
    cluster.apply(&apply, None).await.context("apply the manifests")
}

/// One line of what was done.
pub(crate) fn summary(changed: &Changed) -> String {
    format!("{} {}", changed.object, word(changed.action))
}

const fn word(action: ChangeAction) -> &'static str {
    match action {
        ChangeAction::Created => "created",
        ChangeAction::Changed => "changed",
        ChangeAction::Unchanged => "unchanged",
        ChangeAction::Deleting => "deleting",
    }
}

/// What differs, object by object; nothing for what is as asked.
fn render_differences(applied: &Applied) -> String {
    let of_one = |changed: &Changed| {
        let head = match changed.action {
            ChangeAction::Unchanged => return String::new(),
            ChangeAction::Created => "would be created",
            ChangeAction::Changed => "would be changed",
            ChangeAction::Deleting => "is being deleted",
        };
        let lines = changed.differences.iter().flat_map(difference);
        format!("{} {head}\n", changed.object) + &lines.collect::<String>()
    };
    applied.changes.iter().map(of_one).collect()
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

fn in_one_line(value: &Value) -> String {
    match value {
        Value::String(text) if !text.is_empty() && !text.contains(char::is_control) => text.clone(),
        value => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn differences_show_what_is_and_what_would_be() {
        let check = |changes: Value, expect: &str| {
            let applied: Applied = serde_json::from_value(json!({ "changes": changes })).unwrap();
            assert_eq!(render_differences(&applied), expect);
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
}
