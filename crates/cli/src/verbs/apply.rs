//! `lightbyte apply`: manifests made true.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use lightbyte_api::wire::{Applied, Apply, ChangeAction, Changed};
use lightbyte_api::{Kind, ObjectRef};
use serde_json::Value;

use crate::arguments;
use crate::cluster::Cluster;
use crate::failure::Code;
use crate::manifests;
use crate::terminal::{print, say};
use crate::verbs::{delete, diff, plan};

pub(crate) async fn run(cluster: &Cluster, words: &arguments::Apply) -> Result<Code> {
    if let Some(plan) = &words.plan {
        return plan::carry_out(cluster, plan, words.yes).await;
    }
    let applied = send(cluster, &words.files, words.dry_run).await?;
    if words.dry_run {
        print(&diff::of_apply(&applied))?;
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

/// The manifests of files. The server checks them as well, and has the last word; only we know the files' names.
pub(crate) fn read(files: &[PathBuf]) -> Result<Vec<Value>> {
    let documents = manifests::read(files)?;
    manifests::check(&documents)?;
    Ok(documents.into_iter().map(|document| document.value).collect())
}

/// Sends the manifests of files, or asks what they would change.
pub(crate) async fn send(cluster: &Cluster, files: &[PathBuf], dry_run: bool) -> Result<Applied> {
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
