//! `lightbyte rollout`: the update of a group.

use anyhow::{Context as _, Result};
use lightbyte_api::object::Object;
use lightbyte_api::wire::RolloutStep;
use lightbyte_api::{ObjectRef, Timestamp};
use serde_json::Value;

use crate::arguments::{Goal, OneGroup, Patience, Rollout, RolloutDiff, RolloutOn, RolloutUndo};
use crate::cluster::Cluster;
use crate::failure::Code;
use crate::table;
use crate::terminal::{print, say};
use crate::verbs::diff;
use crate::verbs::scale::read_group;
use crate::waiting::{self, Wish};

pub(crate) async fn run(cluster: &Cluster, words: &Rollout) -> Result<Code> {
    match words {
        Rollout::Status(OneGroup { group }) => show(cluster, group, status).await,
        Rollout::History(OneGroup { group }) => show(cluster, group, history).await,
        Rollout::Diff(words) => compare(cluster, words).await,
        Rollout::Pause(OneGroup { group }) => {
            let group = read_group(cluster, group).await?;
            steer(cluster, &group, RolloutStep::Pause, None).await
        }
        Rollout::Resume(RolloutOn { group, patience }) => {
            let group = read_group(cluster, group).await?;
            steer(cluster, &group, RolloutStep::Resume, Some(*patience)).await
        }
        Rollout::Promote(RolloutOn { group, patience }) => {
            let group = read_group(cluster, group).await?;
            steer(cluster, &group, RolloutStep::Promote, Some(*patience)).await
        }
        Rollout::Undo(RolloutUndo { group, to, patience }) => {
            let group = read_group(cluster, group).await?;
            steer(cluster, &group, RolloutStep::Undo { to: *to }, Some(*patience)).await
        }
    }
}

async fn show(cluster: &Cluster, group: &str, render: fn(&Object, Timestamp) -> String) -> Result<Code> {
    let group = read_group(cluster, group).await?;
    let object = cluster.object(&group).await.with_context(|| format!("look at `{group}`"))?;
    print(&render(&object, Timestamp::now()))?;
    Ok(Code::Done)
}

async fn compare(cluster: &Cluster, words: &RolloutDiff) -> Result<Code> {
    let group = read_group(cluster, &words.group).await?;
    let told = cluster.version_changes(&group, words.from, words.to).await;
    let told = told.with_context(|| format!("compare the versions of `{group}`"))?;
    let head = format!("version {} to {}", told.from, told.to);
    if told.differences.is_empty() {
        say(&format!("{group} {head}: nothing differs"));
        return Ok(Code::Done);
    }
    print(&diff::section(&group, &head, &told.differences))?;
    Ok(Code::Differs)
}

async fn steer(
    cluster: &Cluster,
    group: &ObjectRef,
    step: RolloutStep,
    patience: Option<Patience>,
) -> Result<Code> {
    let word = step.word();
    let changed = cluster.rollout(group, step, None).await;
    let changed = changed.with_context(|| format!("{word} the update of `{group}`"))?;
    match patience.filter(|patience| !patience.no_wait) {
        Some(patience) => {
            waiting::until(cluster, &Wish::after(&changed, Goal::Ready), patience.timeout).await?;
        }
        None => say(&format!("{group}: {word} asked")),
    }
    Ok(Code::Done)
}

fn number(value: &Value) -> String {
    value.as_u64().map_or_else(|| table::NOTHING.to_owned(), |number| number.to_string())
}

fn text(value: &Value) -> String {
    table::plain(value)
}

/// The group's state with its reasons, then a line for each member.
fn status(group: &Object, _: Timestamp) -> String {
    let more = |field: &str| group.status.more.get(field).unwrap_or(&Value::Null);
    let heads = [
        ("state", waiting::state(Some(group))),
        ("version", number(more("version"))),
        ("last that worked", number(more("stable"))),
        ("available", format!("{} of {}", number(more("available")), number(more("replicas")))),
    ];
    let heads: Vec<Vec<String>> =
        heads.into_iter().map(|(head, text)| vec![format!("{head}:"), text]).collect();
    let head = ["MEMBER", "VERSION", "STATE", "WORKER"].map(str::to_owned).to_vec();
    let members = more("members").as_array().into_iter().flatten().map(|member| {
        vec![
            text(&member["name"]),
            number(&member["version"]),
            text(&member["state"]),
            text(&member["worker"]),
        ]
    });
    let rows: Vec<Vec<String>> = std::iter::once(head).chain(members).collect();
    format!("{}\n{}", table::lay_out(&heads), table::lay_out(&rows))
}

/// A line for each version, the newest last.
fn history(group: &Object, now: Timestamp) -> String {
    let more = |field: &str| group.status.more.get(field).unwrap_or(&Value::Null);
    let marks = [
        ("version", "the one that is wanted"),
        ("stable", "the last that worked"),
        ("rejected", "failed"),
        ("undone", "undone"),
    ];
    let head = ["VERSION", "IMAGE VERSION", "MADE", "WHAT"].map(str::to_owned).to_vec();
    let versions = more("versions").as_array().into_iter().flatten().map(|version| {
        let is = |field: &str| more(field).is_u64() && *more(field) == version["number"];
        let marks: Vec<&str> = marks.iter().filter(|(field, _)| is(field)).map(|(_, mark)| *mark).collect();
        let made_at = version["made_at"].as_str().and_then(|at| at.parse().ok());
        let made = made_at.map_or_else(|| table::NOTHING.to_owned(), |at| table::age(at, now));
        let marks = if marks.is_empty() { table::NOTHING.to_owned() } else { marks.join(", ") };
        vec![number(&version["number"]), text(&version["image_version"]), made, marks]
    });
    table::lay_out(&std::iter::once(head).chain(versions).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn group() -> Object {
        serde_json::from_value(json!({
            "kind": "scalegroup", "name": "web", "uid": "0193a5c0-7d3e-7c4a-9b1e-2f6d8a4b0c1d", "generation": 2,
            "labels": {}, "owner": null, "spec": {},
            "status": {
                "state": "canary", "ready": false, "since": null, "deadline": null,
                "waiting_on": [{"reason": "promotion", "version": 2, "since": "2026-11-22T10:00:00Z"}],
                "replicas": 2, "available": 2, "version": 2, "stable": 1, "rejected": null, "undone": null,
                "members": [
                    {"name": "web-1", "version": 1, "state": "running", "worker": "n1"},
                    {"name": "web-3", "version": 2, "state": "pending", "worker": null},
                ],
                "versions": [
                    {"number": 1, "image_version": "v1", "made_at": "2026-11-22T10:00:00Z"},
                    {"number": 2, "image_version": "v2", "made_at": "2026-11-22T10:01:00Z"},
                ],
            },
        }))
        .unwrap()
    }

    #[test]
    fn an_update_is_shown() {
        let now = "2026-11-22T10:01:30Z".parse().unwrap();
        assert_eq!(
            status(&group(), now),
            "state:             canary (waiting: version 2 to be promoted; its canaries are available)\n\
             version:           2\n\
             last that worked:  1\n\
             available:         2 of 2\n\n\
             MEMBER  VERSION  STATE    WORKER\n\
             web-1   1        running  n1\n\
             web-3   2        pending  -\n"
        );
        assert_eq!(
            history(&group(), now),
            "VERSION  IMAGE VERSION  MADE  WHAT\n\
             1        v1             90s   the last that worked\n\
             2        v2             30s   the one that is wanted\n"
        );
    }
}
