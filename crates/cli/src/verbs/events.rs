//! `lightbyte events`: what happened, and with `--watch` what happens.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result};
use lightbyte_api::object::ObjectRef;
use lightbyte_api::wire::WatchLine;
use lightbyte_api::{Event, Kind, Timestamp};

use crate::arguments::Events;
use crate::cluster::Cluster;
use crate::failure::{self, Code};
use crate::table;
use crate::target::{self, Target};
use crate::terminal::{print, say};
use crate::verbs::get;
use crate::waiting;

/// Whose events are shown: all kinds when both are empty.
struct Shown {
    kinds: Vec<Kind>,
    objects: Vec<ObjectRef>,
}

impl Shown {
    fn has(&self, object: &ObjectRef) -> bool {
        (self.kinds.is_empty() && self.objects.is_empty())
            || self.kinds.contains(&object.kind)
            || self.objects.contains(object)
    }
}

pub(crate) async fn run(cluster: &Cluster, words: &Events) -> Result<Code> {
    let mut shown = Shown { kinds: Vec::new(), objects: Vec::new() };
    for target in target::read(&words.targets)? {
        match target {
            Target::Kind(kind) => shown.kinds.push(kind),
            target => shown.objects.extend(objects(cluster, target).await?),
        }
    }
    let events = match shown.objects.as_slice() {
        [object] => cluster.events(Some(object)).await,
        _ => cluster.events(None).await,
    };
    let mut events = events.context("list the events")?;
    events.retain(|event| shown.has(&event.object));
    print(&render(&events))?;
    if words.watch {
        return watch(cluster, &shown).await;
    }
    if events.is_empty() {
        say("nothing has happened in the last seven days");
    }
    Ok(Code::Done)
}

/// The objects that a target means; those that are gone are told of too.
async fn objects(cluster: &Cluster, target: Target) -> Result<Vec<ObjectRef>> {
    let name = match &target {
        Target::Named(name) => Some(name.clone()),
        _ => None,
    };
    let error = match cluster.resolve(target).await {
        Ok(object) => return Ok(vec![object]),
        Err(error) => error,
    };
    let Some(name) = name.filter(|_| failure::code_of(&error) == Code::NotFound) else { return Err(error) };
    let events = cluster.events(None).await.context("list the events")?;
    let of_name = events.into_iter().map(|event| event.object).filter(|object| object.name == name);
    let found: BTreeSet<ObjectRef> = of_name.collect();
    if found.is_empty() { Err(error) } else { Ok(found.into_iter().collect()) }
}

/// A line for each event, with who did it at its end: most people look for what happened.
pub(crate) fn render(events: &[Event]) -> String {
    let row = |event: &Event| {
        let by = event.actor.as_ref().map(|actor| format!(" [{actor}]")).unwrap_or_default();
        vec![clock(event.at), event.object.to_string(), format!("{}{by}", event.message)]
    };
    table::lay_out(&events.iter().map(row).collect::<Vec<_>>())
}

/// Says each change of state or reason, in the words of a wait.
async fn watch(cluster: &Cluster, shown: &Shown) -> Result<Code> {
    // What is there now, so that only changes are told.
    let mut told: BTreeMap<ObjectRef, String> = BTreeMap::new();
    let mut oldest = None;
    for kind in Kind::ALL {
        let objects = cluster.objects(*kind, &[]).await?;
        // No answer is older than the ones before it.
        oldest.get_or_insert(cluster.seen());
        for object in objects {
            let reference = ObjectRef::new(object.kind, object.name.clone());
            let text = waiting::state(Some(&object));
            told.insert(reference, text);
        }
    }
    get::follow(cluster, None, oldest.unwrap_or_default(), |line| {
        let (reference, text) = match line {
            WatchLine::Object { object, .. } => {
                (ObjectRef::new(object.kind, object.name.clone()), waiting::state(Some(&object)))
            }
            WatchLine::Gone { object, .. } => (object, waiting::state(None)),
            WatchLine::Progress { .. } => return Ok(()),
        };
        if told.get(&reference) == Some(&text) {
            return Ok(());
        }
        if shown.has(&reference) {
            print(&format!("{}  {reference}  {text}", clock(Timestamp::now())))?;
        }
        told.insert(reference, text);
        Ok(())
    })
    .await
}

/// The time in UTC to the second (RFC 3339).
fn clock(time: Timestamp) -> String {
    Timestamp::from_second(time.as_second()).unwrap_or(time).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use lightbyte_api::Writer;

    #[test]
    fn an_event_is_a_line() {
        let event = |at: &str, object: &str, message: &str, writer: Option<&str>| Event {
            at: at.parse().unwrap(),
            revision: 7,
            object: object.parse().unwrap(),
            what: "state".into(),
            message: message.to_owned(),
            actor: writer.map(|writer| writer.parse::<Writer>().unwrap().into()),
        };
        let ana = Some("server n1 for user 0, who says to be ana@laptop");
        let leader = Some("server n1 as leader");
        let events = [
            event("2026-11-22T10:00:00.123Z", "vm/hello", "it was asked for and is pending", ana),
            event("2026-11-22T10:00:01Z", "volume/hello-root", "it was creating and is ready", leader),
            event("2026-11-22T10:00:02Z", "vm/hello", "it was starting and is running", None),
        ];
        let expect = "\
2026-11-22T10:00:00Z  vm/hello           it was asked for and is pending [ana@laptop (unproven)]
2026-11-22T10:00:01Z  volume/hello-root  it was creating and is ready [leader n1]
2026-11-22T10:00:02Z  vm/hello           it was starting and is running
";
        assert_eq!(render(&events), expect);
    }
}
