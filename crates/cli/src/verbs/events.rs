//! `lightbyte events`: what happened, and with `--watch` what happens.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use lightbyte_api::object::ObjectRef;
use lightbyte_api::wire::WatchLine;
use lightbyte_api::{Kind, Timestamp};

use crate::arguments::Events;
use crate::cluster::{Cluster, Event};
use crate::failure::Code;
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
            target => shown.objects.push(cluster.resolve(target).await?),
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
        say("nothing has happened since this server started");
    }
    Ok(Code::Done)
}

/// A line for each event.
pub(crate) fn render(events: &[Event]) -> String {
    let row = |event: &Event| vec![clock(event.at), event.object.to_string(), event.message.clone()];
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

    #[test]
    fn an_event_is_a_line() {
        let event = |at: &str, object: &str, message: &str| Event {
            at: at.parse().unwrap(),
            object: object.parse().unwrap(),
            message: message.to_owned(),
        };
        let events = [
            event("2026-11-22T10:00:00.123Z", "vm/hello", "it was asked for and is pending"),
            event("2026-11-22T10:00:01Z", "volume/hello-root", "it was creating and is ready"),
        ];
        let expect = "2026-11-22T10:00:00Z  vm/hello           it was asked for and is pending\n\
                      2026-11-22T10:00:01Z  volume/hello-root  it was creating and is ready\n";
        assert_eq!(render(&events), expect);
    }
}
