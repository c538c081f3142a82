//! Between the store's bytes and the view's records: the feed that keeps a view, and the encoding of decisions.
//!
//! [`Feed`] is synchronous and knows no task: the server drives it from a watch, the simulator from its own network.

use std::collections::BTreeMap;

use lightbyte_api::Key;
use lightbyte_api::envelope::Envelope;
use lightbyte_plan::transaction::{Transaction as Decision, Write};
use lightbyte_plan::view::{Change, View};

use crate::beside::is_beside;
use crate::store::{Batch, Event, Guard, LeaseId, Listing, Operation, Revision, Transaction, Versioned};

/// A view that follows the store.
#[derive(Clone, Default)]
pub struct Feed {
    view: View,
}

impl Feed {
    /// A feed that begins with a full list.
    #[must_use]
    pub fn begin(listing: &Listing) -> Feed {
        Feed { view: view_of(listing) }
    }

    /// The view as far as the feed has come.
    #[must_use]
    pub const fn view(&self) -> &View {
        &self.view
    }

    /// The revision that a watch must continue from.
    #[must_use]
    pub const fn next_revision(&self) -> Revision {
        self.view.revision() + 1
    }

    /// Applies what a watch delivered, and tells which keys changed. A batch that was delivered before changes
    /// nothing: a watch that was resumed may repeat.
    pub fn apply(&mut self, batch: &Batch) -> Vec<Key> {
        if batch.revision < self.view.revision() {
            return Vec::new();
        }
        let known = self.view.revision();
        // What is beside the root moves the revision on, and nothing else.
        let of_view = batch.events.iter().filter(|event| !is_beside(event.key()));
        let news = of_view.filter(|event| event.mod_revision() > known);
        self.view.apply(batch.revision, news.map(change))
    }

    /// Swaps the view for that of a full list, after a compaction or as a check, and tells which keys differ. A list
    /// that is older than the view changes nothing.
    pub fn relist(&mut self, listing: &Listing) -> Vec<Key> {
        if listing.revision < self.view.revision() {
            return Vec::new();
        }
        let fresh = view_of(listing);
        let gone = self.view.keys().filter(|(key, _)| !fresh.contains(key)).map(|(key, _)| key.clone());
        let differs = fresh.keys().filter(|(key, revision)| self.view.mod_revision(key) != *revision);
        let changed = gone.chain(differs.map(|(key, _)| key.clone())).collect();
        self.view = fresh;
        changed
    }
}

fn view_of(listing: &Listing) -> View {
    View::of_listing(
        listing.revision,
        listing.entries.iter().map(|(key, found)| Change {
            key,
            mod_revision: found.mod_revision,
            value: Some(&found.value),
        }),
    )
}

fn change(event: &Event) -> Change<'_> {
    let value = match event {
        Event::Put { value, .. } => Some(&value.value[..]),
        Event::Delete { .. } => None,
    };
    Change { key: event.key(), mod_revision: event.mod_revision(), value }
}

/// The bytes of a decision. `view` is the one that it was made on: fields that this version does not know are kept
/// from there. `lease` names the lease of a key that must go when its writer does.
#[must_use]
pub fn encode(
    decision: &Decision,
    view: &View,
    envelope: &Envelope<'_>,
    lease: impl Fn(&Key) -> Option<LeaseId>,
) -> Transaction {
    let guards =
        decision.guards.iter().map(|(key, mod_revision)| Guard::at(key.to_string(), *mod_revision)).collect();
    let operations = decision
        .writes
        .values()
        .map(|write| match write {
            Write::Put(key, record) => Operation::Put {
                key: key.to_string(),
                value: record.encode(envelope, &view.unknown(key)).into(),
                lease: lease(key),
            },
            Write::Delete(key) => Operation::delete(key.to_string()),
        })
        .collect();
    Transaction { guards, operations }
}

/// The revisions that a refused transaction met, by key; 0 for a key that was absent.
#[must_use]
pub fn met(current: &[(String, Option<Versioned>)]) -> BTreeMap<Key, Revision> {
    let revision = |found: &Option<Versioned>| found.as_ref().map_or(0, |found| found.mod_revision);
    current.iter().filter_map(|(key, found)| Some((key.parse().ok()?, revision(found)))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MemoryCore;
    use crate::store::Outcome;
    use lightbyte_api::records::WorkerLedger;
    use lightbyte_api::{Timestamp, Uid, WorkerId};

    const WRITER: Envelope<'static> = Envelope { written_at: Timestamp::UNIX_EPOCH, writer: "test" };

    fn ledger(number: u128) -> Key {
        Key::WorkerLedger(WorkerId::new(Uid::from_bits(number)))
    }

    fn put(core: &mut MemoryCore, feed: &Feed, key: Key, cpus: u64) -> Outcome {
        let write = Write::put(key, WorkerLedger { cpus, ..WorkerLedger::default() });
        let decision = Decision::on(feed.view(), [], [write]);
        core.commit(&encode(&decision, feed.view(), &WRITER, |_| None)).unwrap()
    }

    #[test]
    fn a_watch_and_a_list_lead_to_the_same_view() {
        let mut core = MemoryCore::new();
        let mut feed = Feed::begin(&core.list("", None).unwrap());
        for number in 1..4 {
            put(&mut core, &feed, ledger(number), 1);
        }
        for batch in core.events("", feed.next_revision(), 100).unwrap() {
            feed.apply(&batch);
        }
        assert!(feed.relist(&core.list("", None).unwrap()).is_empty(), "nothing differs");
        assert_eq!(feed.view().keys().count(), 3);
    }

    #[test]
    fn a_relist_tells_what_came_changed_and_went() {
        let mut core = MemoryCore::new();
        let mut feed = Feed::default();
        for number in 1..4 {
            put(&mut core, &feed, ledger(number), 1);
        }
        feed.relist(&core.list("", None).unwrap());
        let gone = Decision::on(feed.view(), [], [Write::Delete(ledger(1))]);
        core.commit(&encode(&gone, feed.view(), &WRITER, |_| None)).unwrap();
        put(&mut core, &feed, ledger(2), 2);
        put(&mut core, &feed, ledger(9), 2);
        let mut changed = feed.relist(&core.list("", None).unwrap());
        changed.sort();
        assert_eq!(changed, [ledger(1), ledger(2), ledger(9)]);
    }

    #[test]
    fn a_conflict_tells_the_revision_of_every_guard() {
        let mut core = MemoryCore::new();
        let feed = Feed::default();
        put(&mut core, &feed, ledger(1), 1);
        let Outcome::Conflict { current, .. } = put(&mut core, &feed, ledger(1), 2) else {
            panic!("the view is older than the store")
        };
        assert_eq!(met(&current), BTreeMap::from([(ledger(1), 2)]));
    }
}
