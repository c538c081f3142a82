//! The versions of a group's template, compared.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use lightbyte_api::kinds::scalegroup::{Choice, Version};
use lightbyte_api::wire::VersionChanges;
use lightbyte_api::{Kind, ObjectRef};
use lightbyte_plan::planner::scalegroup;
use lightbyte_plan::request::Refusal;
use serde_json::{Value, json};

use crate::Server;
use crate::api::answer::{Answer, Answered};
use crate::api::difference::{differences, without_secrets};
use crate::api::input::{self, Parameters};
use crate::problem::Failure;

/// `GET /v1/objects/KIND/NAME/rollout`
pub(crate) async fn changes(
    State(server): State<Arc<Server>>,
    path: Path<(String, String)>,
    parameters: Parameters,
) -> Answered<VersionChanges> {
    parameters.only(&["from", "to", "min_revision", "at"])?;
    let object = input::object(path)?;
    if object.kind != Kind::ScaleGroup {
        return Err(Refusal::NotAGroup { object }.into());
    }
    let (from, to) = (parameters.number("from")?, parameters.number("to")?);
    let view = server.view_for(&parameters).await?;
    if view.asked(&object).is_none() {
        return Err(Refusal::NotFound { object }.into());
    }
    let nothing = Choice::default();
    let choice = scalegroup::choice(&view, &object).unwrap_or(&nothing);
    let told = compared(choice, from, to).map_err(|unknown| unknown.failure(&object))?;
    Ok(Answer::at(view.revision(), told))
}

/// Why two versions cannot be compared.
#[derive(Debug, PartialEq)]
enum Unknown {
    /// There are not two of them.
    OnlyOne,
    /// This one is not kept, or never was.
    Version(u64),
}

impl Unknown {
    fn failure(&self, group: &ObjectRef) -> Failure {
        let title = match self {
            Unknown::OnlyOne => format!("{group} has no two versions yet"),
            Unknown::Version(number) => format!("{group} has no version {number}, or not any more"),
        };
        Failure::new(StatusCode::NOT_FOUND, title)
            .hint(format!("`lightbyte rollout history {group}` lists its versions"))
    }
}

/// What differs between two versions of a group. What is not said is taken from what goes on: the version that is wanted is
/// compared with the last that worked, or, where that is the same, with the one before it.
fn compared(choice: &Choice, from: Option<u64>, to: Option<u64>) -> Result<VersionChanges, Unknown> {
    let newest = choice.versions.last().map(|version| version.number);
    let to = to.or(choice.target).or(newest).ok_or(Unknown::OnlyOne)?;
    let before = choice.versions.iter().map(|version| version.number).rfind(|number| *number < to);
    let from = from.or(choice.stable.filter(|stable| *stable != to)).or(before).ok_or(Unknown::OnlyOne)?;
    let version = |number: u64| {
        choice.versions.iter().find(|version| version.number == number).ok_or(Unknown::Version(number))
    };
    let differences = without_secrets(differences(&shown(version(from)?), &shown(version(to)?)));
    Ok(VersionChanges { from, to, differences })
}

fn shown(version: &Version) -> Value {
    // Plain data: it always is JSON.
    let template = serde_json::to_value(&version.template).unwrap_or_default();
    json!({ "image_version": version.image_version, "template": template })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choice(target: Option<u64>, stable: Option<u64>, numbers: &[u64]) -> Choice {
        let version = |number: &u64| {
            json!({ "number": number, "image_version": format!("v{number}"), "made_at": "2026-11-22T10:00:00Z",
                "template": { "image": "demo", "cpus": number } })
        };
        let versions: Vec<Value> = numbers.iter().map(version).collect();
        serde_json::from_value(json!({ "target": target, "stable": stable, "versions": versions }))
            .expect("a choice")
    }

    #[test]
    fn what_is_not_said_follows_from_what_goes_on() {
        let check =
            |choice: Choice, asked: (Option<u64>, Option<u64>), expect: Result<(u64, u64), Unknown>| {
                let found = compared(&choice, asked.0, asked.1).map(|told| (told.from, told.to));
                assert_eq!(found, expect, "{asked:?}");
            };
        check(choice(Some(4), Some(2), &[1, 2, 3, 4]), (None, None), Ok((2, 4)));
        check(choice(Some(4), Some(4), &[1, 2, 3, 4]), (None, None), Ok((3, 4)));
        // Taken back: what is wanted is the older one.
        check(choice(Some(2), Some(2), &[1, 2, 3]), (None, None), Ok((1, 2)));
        check(choice(Some(4), Some(2), &[1, 2, 3, 4]), (Some(1), None), Ok((1, 4)));
        check(choice(Some(4), Some(2), &[1, 2, 3, 4]), (None, Some(3)), Ok((2, 3)));
        check(choice(Some(4), Some(2), &[2, 3, 4]), (Some(1), None), Err(Unknown::Version(1)));
        check(choice(Some(1), None, &[1]), (None, None), Err(Unknown::OnlyOne));
        check(Choice::default(), (None, None), Err(Unknown::OnlyOne));
    }

    #[test]
    fn image_and_template_are_compared() {
        let told = compared(&choice(Some(2), Some(1), &[1, 2]), None, None).expect("two versions");
        let paths: Vec<&str> = told.differences.iter().map(|difference| difference.path.as_str()).collect();
        assert_eq!(paths, ["image_version", "template.cpus"]);
    }
}
