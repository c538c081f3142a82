//! Who did what a change of the view shows.
//!
//! A report's key names its worker, and the other keys of an object say in their envelopes who wrote them. When several
//! revisions came at once and different ones wrote the same object, it is not known who did what, and nobody is named.

use std::collections::BTreeSet;

use lightbyte_api::{Actor, Key, Kind, ObjectRef, Writer};
use lightbyte_plan::View;

use crate::news::News;

/// Who had a hand in one object.
#[derive(Default)]
pub(super) struct Hands {
    /// Those who wrote what is asked of it.
    asked: BTreeSet<Actor>,
    /// All of them.
    all: BTreeSet<Actor>,
    /// Whether somebody else had whom this version cannot name.
    unknown: bool,
}

impl Hands {
    /// Those who changed `object` with this news, which followed `before`.
    pub(super) fn on(before: &View, news: &News, object: &ObjectRef) -> Hands {
        let mut hands = Hands::default();
        if news.relisted {
            // Two lists differ, and who wrote what in between is not in them.
            return hands;
        }
        let uid = [&news.view, before].into_iter().find_map(|view| Some(view.asked(object)?.meta.uid));
        for key in &*news.changed {
            let is_of_it = match key {
                Key::Asked(found) | Key::Decided(found) => found == object,
                Key::Assigned(_, host) => Some(host.uid) == uid,
                _ => false,
            };
            let is_nameless = |(found, writer): &(Key, Option<Writer>)| found == key && writer.is_none();
            hands.unknown |= is_of_it && news.writers.iter().any(is_nameless);
            match key {
                Key::Asked(found) if found == object => {
                    hands.asked.extend(writers(news, key));
                    // Only its planner ends an object, and only the leader runs planners.
                    if !news.view.contains(key) {
                        hands.asked.extend(leader(&news.view));
                    }
                }
                Key::Decided(found) if found == object => hands.all.extend(writers(news, key)),
                Key::Assigned(_, host) if Some(host.uid) == uid => hands.all.extend(writers(news, key)),
                Key::Observed(worker, host) if Some(host.uid) == uid => {
                    hands.all.extend(worker_of(before, news, worker.uid()));
                }
                Key::Alive(worker) if Some(worker.uid()) == uid && news.view.contains(key) => {
                    hands.all.extend(worker_of(before, news, worker.uid()));
                }
                _ => {}
            }
        }
        hands.all.extend(hands.asked.iter().cloned());
        hands
    }

    /// Who did what is told in this word, if only one can have.
    pub(super) fn of(&self, what: &str) -> Option<Actor> {
        let hands = match what {
            "created" | "asked" | "gone" => &self.asked,
            _ => &self.all,
        };
        hands.first().filter(|_| hands.len() == 1 && !self.unknown).cloned()
    }
}

fn writers(news: &News, key: &Key) -> impl Iterator<Item = Actor> {
    let written = news.writers.iter().filter(move |(found, _)| found == key);
    written.filter_map(|(_, writer)| writer.clone().map(Actor::from))
}

fn worker_of(before: &View, news: &News, uid: lightbyte_api::Uid) -> Option<Actor> {
    let worker = news.view.object_of(uid).or_else(|| before.object_of(uid))?;
    (worker.kind == Kind::Worker).then(|| Actor::worker(&worker.name))
}

/// The leader of a view.
fn leader(view: &View) -> Option<Actor> {
    super::leader_of(view).map(Actor::leader)
}
