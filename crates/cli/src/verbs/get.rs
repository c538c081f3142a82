//! `lightbyte get`: lists and single objects, in every form.

use anyhow::{Context as _, Result};
use lightbyte_api::object::{Object, ObjectRef};
use lightbyte_api::wire::{List, WatchLine};
use lightbyte_api::{Kind, Timestamp};
use lightbyte_link::ClientError;
use serde_json::json;

use crate::arguments::{Form, Get};
use crate::cluster::Cluster;
use crate::failure::{Code, Failure};
use crate::table;
use crate::target::{self, Target};
use crate::terminal::{print, say};
use crate::waiting::{RESUME_PAUSE, may_resume, next_line};
use crate::yaml;

/// What is shown: all of some kinds, or some objects.
enum Shown {
    Kinds(Vec<Kind>),
    Objects(Vec<ObjectRef>),
}

pub(crate) async fn run(cluster: &Cluster, words: &Get) -> Result<Code> {
    let shown = shown(cluster, &words.targets).await?;
    let objects = read(cluster, &shown, &words.labels).await?;
    let is_single =
        words.targets.len() <= 2 && matches!(&shown, Shown::Objects(objects) if objects.len() == 1);
    print(&render(&objects, words.output, is_single, &shown)?)?;
    if words.watch {
        return watch(cluster, words, &shown).await;
    }
    if objects.is_empty() && matches!(words.output, Form::Table | Form::Wide) {
        say(&format!("nothing is there{}", if words.labels.is_empty() { "" } else { " with these labels" }));
    }
    Ok(Code::Done)
}

async fn shown(cluster: &Cluster, words: &[String]) -> Result<Shown> {
    let mut objects = Vec::new();
    for target in target::read(words)? {
        match target {
            Target::Kind(kind) => return Ok(Shown::Kinds(vec![kind])),
            target => objects.push(cluster.resolve(target).await?),
        }
    }
    Ok(if objects.is_empty() { Shown::Kinds(Kind::ALL.to_vec()) } else { Shown::Objects(objects) })
}

async fn read(cluster: &Cluster, shown: &Shown, labels: &[(String, String)]) -> Result<Vec<Object>> {
    let mut found = Vec::new();
    match shown {
        Shown::Kinds(kinds) => {
            for kind in kinds {
                found.extend(cluster.objects(*kind, labels).await.with_context(|| format!("list {kind}s"))?);
            }
        }
        Shown::Objects(objects) => {
            for object in objects {
                let read = cluster.object(object).await.with_context(|| format!("get `{object}`"))?;
                found.extend(has_labels(&read, labels).then_some(read));
            }
        }
    }
    Ok(found)
}

fn has_labels(object: &Object, labels: &[(String, String)]) -> bool {
    labels.iter().all(|(key, value)| object.labels.get(key) == Some(value))
}

fn render(objects: &[Object], form: Form, is_single: bool, shown: &Shown) -> Result<String> {
    let single = objects.first().filter(|_| is_single);
    Ok(match form {
        Form::Name => objects.iter().map(|object| format!("{}/{}\n", object.kind, object.name)).collect(),
        Form::Json => match single {
            Some(object) => serde_json::to_string_pretty(object)?,
            None => serde_json::to_string_pretty(&List { items: objects.to_vec() })?,
        },
        Form::Yaml => yaml::write_documents(objects)?,
        Form::Table | Form::Wide => tables(objects, form == Form::Wide, Timestamp::now(), shown),
    })
}

/// A table for each kind that has objects; with names that carry the kind when there are several.
fn tables(objects: &[Object], wide: bool, now: Timestamp, shown: &Shown) -> String {
    let has_one_kind = match shown {
        Shown::Kinds(kinds) => kinds.len() == 1,
        Shown::Objects(objects) => objects.iter().all(|object| object.kind == objects[0].kind),
    };
    let table_of = |kind: &Kind| {
        let of_kind: Vec<&Object> = objects.iter().filter(|object| object.kind == *kind).collect();
        if of_kind.is_empty() {
            return None;
        }
        let rows = of_kind.iter().map(|object| {
            let mut row = table::row(object, wide, now);
            if !has_one_kind && let Some(name) = row.first_mut() {
                *name = format!("{kind}/{name}");
            }
            row
        });
        Some(table::lay_out(&std::iter::once(table::head(*kind, wide)).chain(rows).collect::<Vec<_>>()))
    };
    Kind::ALL.iter().filter_map(table_of).collect::<Vec<_>>().join("\n")
}

/// Prints a line for each change after what was printed already.
async fn watch(cluster: &Cluster, words: &Get, shown: &Shown) -> Result<Code> {
    let kind = match shown {
        Shown::Kinds(kinds) if kinds.len() == 1 => kinds.first().copied(),
        Shown::Kinds(_) => None,
        Shown::Objects(objects) => match objects.as_slice() {
            [object] => Some(object.kind),
            _ => None,
        },
    };
    let is_shown = |object: &ObjectRef| match shown {
        Shown::Kinds(kinds) => kinds.contains(&object.kind),
        Shown::Objects(objects) => objects.contains(object),
    };
    follow(cluster, kind, |line| match line {
        WatchLine::Object { object, .. }
            if is_shown(&ObjectRef::new(object.kind, object.name.clone()))
                && has_labels(&object, &words.labels) =>
        {
            print(&line_of(&object, words.output)?)
        }
        WatchLine::Gone { object, .. } if is_shown(&object) && words.labels.is_empty() => {
            print(&line_of_gone(&object, words.output)?)
        }
        _ => Ok(()),
    })
    .await
}

/// Hands every change to `each`, on another server when one breaks off, until Ctrl-C.
pub(crate) async fn follow(
    cluster: &Cluster,
    kind: Option<Kind>,
    mut each: impl FnMut(WatchLine) -> Result<()>,
) -> Result<Code> {
    let mut from = cluster.seen();
    loop {
        match follow_stream(cluster, kind, &mut from, &mut each).await {
            Err(error) if may_resume(&error) => {}
            Err(error) if status_of(&error) == Some(410) => {
                return Err(Failure::new(
                    Code::Error,
                    "the watch was away for too long, and changes are lost",
                )
                .hint("begin it again")
                .into());
            }
            Err(error) => return Err(error),
            Ok(never) => match never {},
        }
        cluster.client().leave_server();
        tokio::time::sleep(RESUME_PAUSE).await;
    }
}

fn status_of(error: &anyhow::Error) -> Option<u16> {
    error.downcast_ref::<ClientError>()?.status()
}

async fn follow_stream(
    cluster: &Cluster,
    kind: Option<Kind>,
    from: &mut u64,
    each: &mut impl FnMut(WatchLine) -> Result<()>,
) -> Result<std::convert::Infallible> {
    let mut lines = cluster.watch(kind, None, Some(*from)).await?;
    loop {
        let line = next_line(&mut lines).await?;
        let revision = match &line {
            WatchLine::Object { revision, .. }
            | WatchLine::Gone { revision, .. }
            | WatchLine::Progress { revision } => *revision,
        };
        each(line)?;
        // Several lines may carry one revision; only progress says that all of them were told.
        *from = (*from).max(revision.saturating_sub(1));
    }
}

fn line_of(object: &Object, form: Form) -> Result<String> {
    Ok(match form {
        Form::Json | Form::Yaml => serde_json::to_string(object)?,
        Form::Name => format!("{}/{}", object.kind, object.name),
        Form::Table | Form::Wide => {
            let wide = form == Form::Wide;
            let widths = table::widths(&[table::head(object.kind, wide)]);
            table::line(&table::row(object, wide, Timestamp::now()), &widths)
        }
    })
}

fn line_of_gone(object: &ObjectRef, form: Form) -> Result<String> {
    Ok(match form {
        Form::Json | Form::Yaml => serde_json::to_string(&json!({"gone": object}))?,
        Form::Name => format!("{object} gone"),
        Form::Table | Form::Wide => {
            let widths = table::widths(&[table::head(object.kind, false)]);
            table::line(&table::row_of_gone(object.name.as_str(), object.kind), &widths)
        }
    })
}
