//! `lightbyte get`: lists and single objects, in every form.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use lightbyte_api::object::{Object, ObjectRef};
use lightbyte_api::wire::{List, WatchLine};
use lightbyte_api::{Kind, Name, Timestamp};
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
    let (objects, revision) = read(cluster, &shown, &words.labels).await?;
    let layout = Layout::new(&objects, &shown, words.output == Form::Wide, Timestamp::now());
    let is_single =
        words.targets.len() <= 2 && matches!(&shown, Shown::Objects(objects) if objects.len() == 1);
    print(&render(&objects, words.output, is_single, &layout)?)?;
    if words.watch {
        return watch(cluster, words, &shown, &layout, revision).await;
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

/// The objects, and the oldest revision that any of them was read at.
async fn read(cluster: &Cluster, shown: &Shown, labels: &[(String, String)]) -> Result<(Vec<Object>, u64)> {
    let mut found = Vec::new();
    let mut oldest = None;
    match shown {
        Shown::Kinds(kinds) => {
            for kind in kinds {
                found.extend(cluster.objects(*kind, labels).await.with_context(|| format!("list {kind}s"))?);
                // No answer is older than the ones before it.
                oldest.get_or_insert(cluster.seen());
            }
        }
        Shown::Objects(objects) => {
            for object in objects {
                let read = cluster.object(object).await.with_context(|| format!("get `{object}`"))?;
                found.extend(has_labels(&read, labels).then_some(read));
                oldest.get_or_insert(cluster.seen());
            }
        }
    }
    Ok((found, oldest.unwrap_or_default()))
}

fn has_labels(object: &Object, labels: &[(String, String)]) -> bool {
    labels.iter().all(|(key, value)| object.labels.get(key) == Some(value))
}

fn render(objects: &[Object], form: Form, is_single: bool, layout: &Layout) -> Result<String> {
    let single = objects.first().filter(|_| is_single);
    Ok(match form {
        Form::Name => objects.iter().map(|object| format!("{}/{}\n", object.kind, object.name)).collect(),
        Form::Json => match single {
            Some(object) => serde_json::to_string_pretty(object)?,
            None => serde_json::to_string_pretty(&List { items: objects.to_vec() })?,
        },
        Form::Yaml => yaml::write_documents(objects)?,
        Form::Table | Form::Wide => layout.tables(objects, Timestamp::now()),
    })
}

/// How rows look: whether names carry their kind, because there are several, and how wide each kind's columns are.
struct Layout {
    has_one_kind: bool,
    wide: bool,
    widths: BTreeMap<Kind, Vec<usize>>,
}

impl Layout {
    fn new(objects: &[Object], shown: &Shown, wide: bool, now: Timestamp) -> Layout {
        let has_one_kind = match shown {
            Shown::Kinds(kinds) => kinds.len() == 1,
            Shown::Objects(objects) => objects.windows(2).all(|pair| pair[0].kind == pair[1].kind),
        };
        let mut layout = Layout { has_one_kind, wide, widths: BTreeMap::new() };
        for kind in Kind::ALL {
            let of_kind = objects.iter().filter(|object| object.kind == *kind);
            let rows = of_kind.map(|object| layout.row(object, now));
            let rows: Vec<Vec<String>> = std::iter::once(table::head(*kind, wide)).chain(rows).collect();
            layout.widths.insert(*kind, table::widths(&rows));
        }
        layout
    }

    fn name(&self, kind: Kind, name: &Name) -> String {
        if self.has_one_kind { name.to_string() } else { format!("{kind}/{name}") }
    }

    fn row(&self, object: &Object, now: Timestamp) -> Vec<String> {
        let mut row = table::row(object, self.wide, now);
        if let Some(name) = row.first_mut() {
            *name = self.name(object.kind, &object.name);
        }
        row
    }

    fn line(&self, kind: Kind, row: &[String]) -> String {
        table::line(row, self.widths.get(&kind).map_or(&[], Vec::as_slice)) + "\n"
    }

    /// A table for each kind that has objects.
    fn tables(&self, objects: &[Object], now: Timestamp) -> String {
        let table_of = |kind: &Kind| {
            let rows = objects.iter().filter(|object| object.kind == *kind);
            let rows: String = rows.map(|object| self.line(*kind, &self.row(object, now))).collect();
            let head = self.line(*kind, &table::head(*kind, self.wide));
            (!rows.is_empty()).then(|| head + &rows)
        };
        Kind::ALL.iter().filter_map(table_of).collect::<Vec<_>>().join("\n")
    }
}

/// Prints a line for each change after what was printed already.
async fn watch(
    cluster: &Cluster,
    words: &Get,
    shown: &Shown,
    layout: &Layout,
    revision: u64,
) -> Result<Code> {
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
    // A change that no column shows is none to whoever reads a table.
    let mut last: BTreeMap<ObjectRef, String> = BTreeMap::new();
    let is_table = matches!(words.output, Form::Table | Form::Wide);
    let mut tell = |object: ObjectRef, line: String| {
        let before = last.insert(object, line.clone());
        if is_table && before.as_ref() == Some(&line) { Ok(()) } else { print(&line) }
    };
    follow(cluster, kind, revision, |line| match line {
        WatchLine::Object { object, .. }
            if is_shown(&ObjectRef::new(object.kind, object.name.clone()))
                && has_labels(&object, &words.labels) =>
        {
            let line = line_of(&object, words.output, layout)?;
            tell(ObjectRef::new(object.kind, object.name), line)
        }
        WatchLine::Gone { object, .. } if is_shown(&object) && words.labels.is_empty() => {
            let line = line_of_gone(&object, words.output, layout)?;
            tell(object, line)
        }
        _ => Ok(()),
    })
    .await
}

/// Hands every change after `revision` to `each`, on another server when one breaks off, until Ctrl-C.
pub(crate) async fn follow(
    cluster: &Cluster,
    kind: Option<Kind>,
    revision: u64,
    mut each: impl FnMut(WatchLine) -> Result<()>,
) -> Result<Code> {
    let mut from = revision;
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

fn line_of(object: &Object, form: Form, layout: &Layout) -> Result<String> {
    Ok(match form {
        Form::Json | Form::Yaml => serde_json::to_string(object)?,
        Form::Name => format!("{}/{}", object.kind, object.name),
        Form::Table | Form::Wide => layout.line(object.kind, &layout.row(object, Timestamp::now())),
    })
}

fn line_of_gone(object: &ObjectRef, form: Form, layout: &Layout) -> Result<String> {
    Ok(match form {
        Form::Json | Form::Yaml => serde_json::to_string(&json!({"gone": object}))?,
        Form::Name => format!("{object} gone"),
        Form::Table | Form::Wide => {
            let name = layout.name(object.kind, &object.name);
            layout.line(object.kind, &table::row_of_gone(&name, object.kind))
        }
    })
}
