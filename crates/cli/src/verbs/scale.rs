//! `lightbyte scale`: how many members a group has.

use anyhow::Result;
use lightbyte_api::{Kind, ObjectRef};
use serde_json::{Value, json};

use crate::arguments::{Goal, Replicas, Scale};
use crate::change::change_spec;
use crate::cluster::Cluster;
use crate::failure::{Code, Failure};
use crate::target::{self, Target};
use crate::waiting::{self, Wish};

pub(crate) async fn run(cluster: &Cluster, words: &Scale) -> Result<Code> {
    let group = read_group(cluster, &words.group).await?;
    let changed = change_spec(cluster, &group, |spec| resize(&group, spec, words.replicas)).await?;
    if !words.patience.no_wait {
        waiting::until(cluster, &Wish::of(&changed, Goal::Ready), words.patience.timeout).await?;
    }
    Ok(Code::Done)
}

/// Asks for another number of members.
pub(crate) fn resize(group: &ObjectRef, spec: &mut Value, replicas: Replicas) -> Result<(), Failure> {
    let policy = &spec["autoscale"];
    if policy.is_object() {
        let (min, max) = (&policy["min"], &policy["max"]);
        let failure = Failure::usage(format!("{group} says itself how many members it has, {min} to {max}"));
        let hint = format!(
            "`lightbyte edit {group}`: change autoscale.min or autoscale.max, or put replicas in place of it"
        );
        return Err(failure.hint(hint));
    }
    let before = spec["replicas"].as_u64().unwrap_or(0);
    spec["replicas"] = json!(replicas.from(before));
    Ok(())
}

/// The group that a word means: a bare name is a group's, whatever else is called so.
pub(crate) async fn read_group(cluster: &Cluster, word: &str) -> Result<ObjectRef> {
    let group = match target::read_single(&[word.to_owned()])? {
        Target::Named(name) => ObjectRef::new(Kind::ScaleGroup, name),
        target => cluster.resolve(target).await?,
    };
    if group.kind == Kind::ScaleGroup {
        return Ok(group);
    }
    let failure = Failure::usage(format!("{group} has no members"));
    Err(failure.hint("only a scale group has them: `lightbyte get groups`").into())
}
