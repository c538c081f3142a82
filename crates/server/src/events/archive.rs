//! The events that are stored: each server has a copy of them, at the revision of its view, and the leader makes from it the
//! next batch. Nothing here waits or writes.

use std::collections::{BTreeMap, BTreeSet};

use lightbyte_api::ObjectRef;
use lightbyte_api::event::{self, Event, EventKey, Numbered, Told};
use lightbyte_store::{Event as Change, Guard, LeaseId, Listing, Operation, Transaction, Versioned};

/// How many events are kept of one object: the story of a boot or two, and the last words of a member.
pub(crate) const EVENTS_PER_OBJECT_MAX: u64 = 48;
/// How many events are kept in all: some megabytes in etcd, and in each server. The oldest go first.
pub(crate) const EVENTS_STORED_MAX: usize = 20_000;
/// How many events one transaction stores. Each may push out another, and a transaction has 128 operations; and fewer than a
/// ring has, so that no slot is written twice.
pub(crate) const BATCH_EVENTS_MAX: usize = 40;

const _: () = assert!(BATCH_EVENTS_MAX < EVENTS_PER_OBJECT_MAX as usize);
const _: () = assert!(2 * BATCH_EVENTS_MAX + 3 <= lightbyte_store::rules::OPERATIONS_MAX);

/// Where an event is kept.
type Place = (ObjectRef, u64);

/// What is in a slot.
struct Kept {
    mod_revision: u64,
    /// Nothing when this version cannot read it. It is shown to nobody, and its turn to be overwritten comes all the same.
    numbered: Option<Numbered>,
}

/// The stored events, as far as the view has come.
pub(crate) struct Archive {
    told: Told,
    /// The revision that wrote that; 0 when nobody has.
    told_at: u64,
    rings: BTreeMap<ObjectRef, BTreeMap<u64, Kept>>,
    /// The oldest first.
    ages: BTreeSet<(u64, Place)>,
    /// How many are kept at most.
    stored_max: usize,
    /// What changed up to here is in it. A watch that was resumed may repeat, and a list may be ahead of the watch.
    revision: u64,
}

impl Default for Archive {
    fn default() -> Archive {
        Archive {
            told: Told::default(),
            told_at: 0,
            rings: BTreeMap::new(),
            ages: BTreeSet::new(),
            stored_max: EVENTS_STORED_MAX,
            revision: 0,
        }
    }
}

/// The next events to store, and what storing them rests on.
pub(crate) struct Batch(Transaction);

impl Batch {
    /// The transaction: on the lease that its events are to have, and resting on `session` too.
    pub(crate) fn on(self, session: &[Guard], leased: LeaseId) -> Transaction {
        let Batch(mut transaction) = self;
        transaction.guards.extend_from_slice(session);
        let told = EventKey::Told.to_string();
        for operation in &mut transaction.operations {
            if let Operation::Put { key, lease, .. } = operation
                && *key != told
            {
                *lease = Some(leased);
            }
        }
        transaction
    }
}

impl Archive {
    /// The archive of a list of [`event::EVENTS_PREFIX`].
    pub(crate) fn of_listing(listing: &Listing) -> Archive {
        let mut archive = Archive { revision: listing.revision, ..Archive::default() };
        listing.entries.iter().for_each(|(key, found)| archive.set(key, Some(found)));
        archive
    }

    /// Takes what a watch of everything heard up to `revision`; what is no event, or known, is passed over.
    pub(crate) fn apply(&mut self, changes: &[Change], revision: u64) {
        let known = self.revision;
        self.revision = known.max(revision);
        for change in changes.iter().filter(|change| change.mod_revision() > known) {
            match change {
                Change::Put { key, value } => self.set(key, Some(value)),
                Change::Delete { key, .. } => self.set(key, None),
            }
        }
    }

    /// Takes what a key holds, or that it is gone.
    pub(crate) fn set(&mut self, key: &str, found: Option<&Versioned>) {
        match key.parse() {
            Ok(EventKey::Told) => {
                self.told_at = found.map_or(0, |found| found.mod_revision);
                // One that cannot be read is a newer version's: nothing is known to have been told.
                self.told = found.and_then(|found| event::decode(&found.value)).unwrap_or_default();
            }
            Ok(EventKey::Of(object, slot)) => self.put(object, slot, found),
            Err(_) => {}
        }
    }

    fn put(&mut self, object: ObjectRef, slot: u64, found: Option<&Versioned>) {
        let ring = self.rings.entry(object.clone()).or_default();
        if let Some(before) = ring.remove(&slot) {
            self.ages.remove(&(before.mod_revision, (object.clone(), slot)));
        }
        if let Some(Versioned { value, mod_revision, .. }) = found {
            let numbered = event::decode::<Numbered>(value).filter(|found| found.event.object == object);
            ring.insert(slot, Kept { mod_revision: *mod_revision, numbered });
            self.ages.insert((*mod_revision, (object, slot)));
        } else if ring.is_empty() {
            self.rings.remove(&object);
        }
    }

    /// How far the story is told.
    pub(crate) fn told_through(&self) -> u64 {
        self.told.through
    }

    /// The revision that said so; 0 when none has.
    pub(crate) fn told_at(&self) -> u64 {
        self.told_at
    }

    /// Whether it holds this event.
    pub(crate) fn has(&self, event: &Event) -> bool {
        self.numbered(&event.object).any(|numbered| numbered.event.tells_as(event))
    }

    /// The events of one object, oldest first.
    pub(crate) fn of(&self, object: &ObjectRef) -> Vec<Event> {
        let mut numbered: Vec<&Numbered> = self.numbered(object).collect();
        numbered.sort_by_key(|numbered| numbered.number);
        numbered.into_iter().map(|numbered| numbered.event.clone()).collect()
    }

    /// The events that were stored last, at most `count`, in no order.
    pub(crate) fn newest(&self, count: usize) -> Vec<Event> {
        let event = |(_, (object, slot)): &(u64, Place)| {
            Some(self.rings.get(object)?.get(slot)?.numbered.as_ref()?.event.clone())
        };
        self.ages.iter().rev().filter_map(event).take(count).collect()
    }

    fn numbered(&self, object: &ObjectRef) -> impl Iterator<Item = &Numbered> {
        self.rings
            .get(object)
            .into_iter()
            .flat_map(BTreeMap::values)
            .filter_map(|kept| kept.numbered.as_ref())
    }

    fn next_number(&self, object: &ObjectRef) -> u64 {
        self.numbered(object).map(|numbered| numbered.number + 1).max().unwrap_or(0)
    }

    /// The transaction that stores `events`, of which at most [`BATCH_EVENTS_MAX`] are taken, and says that views are told
    /// up to `through`.
    pub(crate) fn batch(&self, events: &[Event], through: u64) -> Batch {
        let mut transaction = Transaction::default();
        let told = EventKey::Told.to_string();
        transaction.guards.push(Guard::at(&told, self.told_at));
        let value = event::encode(&Told { through: through.max(self.told.through) });
        transaction.operations.push(Operation::put(told, value));
        let mut next: BTreeMap<&ObjectRef, u64> = BTreeMap::new();
        let mut written: BTreeSet<Place> = BTreeSet::new();
        let events = &events[..events.len().min(BATCH_EVENTS_MAX)];
        let mut more = 0;
        for event in events {
            let next = next.entry(&event.object).or_insert_with(|| self.next_number(&event.object));
            let (number, slot) = (*next, *next % EVENTS_PER_OBJECT_MAX);
            *next += 1;
            let key = EventKey::Of(event.object.clone(), slot).to_string();
            let before = self.rings.get(&event.object).and_then(|ring| ring.get(&slot));
            more += usize::from(before.is_none());
            transaction.guards.push(Guard::at(&key, before.map_or(0, |kept| kept.mod_revision)));
            let value = event::encode(&Numbered { number, event: event.clone() });
            transaction.operations.push(Operation::put(key, value));
            written.insert((event.object.clone(), slot));
        }
        self.push_out(more, &written, &mut transaction);
        Batch(transaction)
    }

    /// Deletes the oldest events, so that with `more` of them there are not too many.
    fn push_out(&self, more: usize, written: &BTreeSet<Place>, transaction: &mut Transaction) {
        // One batch pushes out as many as it brings and a few: what an older limit has left goes bit by bit.
        let excess = (self.ages.len() + more).saturating_sub(self.stored_max).min(BATCH_EVENTS_MAX);
        let oldest = self.ages.iter().filter(|(_, place)| !written.contains(place));
        for (mod_revision, (object, slot)) in oldest.take(excess) {
            let key = EventKey::Of(object.clone(), *slot).to_string();
            transaction.guards.push(Guard::at(&key, *mod_revision));
            transaction.operations.push(Operation::delete(key));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lightbyte_api::Timestamp;
    use lightbyte_store::{MemoryCore, Outcome};
    use std::time::Duration;

    const LEASE: LeaseId = LeaseId(7);

    fn event(object: &str, revision: u64) -> Event {
        Event {
            at: Timestamp::UNIX_EPOCH,
            revision,
            object: object.parse().expect("an object"),
            what: "state".into(),
            message: format!("at {revision}"),
            actor: None,
        }
    }

    /// A store, and an archive that follows it.
    struct Bed {
        core: MemoryCore,
        archive: Archive,
    }

    impl Bed {
        fn new(stored_max: usize) -> Bed {
            let mut core = MemoryCore::new();
            core.lease_ensure(LEASE, Duration::from_secs(60), Duration::ZERO);
            Bed { core, archive: Archive { stored_max, ..Archive::default() } }
        }

        fn store(&mut self, events: &[Event]) -> Outcome {
            let through = events.last().map_or(0, |event| event.revision);
            let outcome =
                self.core.commit(&self.archive.batch(events, through).on(&[], LEASE)).expect("it is sent");
            self.follow();
            outcome
        }

        fn follow(&mut self) {
            let listing = self.core.list(event::EVENTS_PREFIX, None).expect("a list");
            self.archive = Archive { stored_max: self.archive.stored_max, ..Archive::of_listing(&listing) };
        }

        fn revisions(&self, object: &str) -> Vec<u64> {
            let object = object.parse().expect("an object");
            self.archive.of(&object).iter().map(|event| event.revision).collect()
        }
    }

    #[test]
    fn a_ring_keeps_the_newest_events_of_its_object() {
        let mut bed = Bed::new(EVENTS_STORED_MAX);
        let count = EVENTS_PER_OBJECT_MAX + 5;
        for revision in 1..=count {
            bed.store(&[event("vm/a", revision), event("vm/b", revision)]);
        }
        assert_eq!(bed.revisions("vm/a"), (6..=count).collect::<Vec<u64>>());
        assert_eq!(bed.archive.ages.len() as u64, 2 * EVENTS_PER_OBJECT_MAX);
        assert_eq!(bed.archive.told_through(), count);
        assert!(bed.archive.has(&event("vm/a", count)) && !bed.archive.has(&event("vm/a", 1)));
    }

    #[test]
    fn all_rings_together_have_an_end_and_the_oldest_go_first() {
        let mut bed = Bed::new(10);
        for revision in 1..=30 {
            bed.store(&[event(&format!("vm/a-{revision}"), revision)]);
        }
        assert_eq!(bed.archive.ages.len(), 10);
        let mut newest: Vec<u64> = bed.archive.newest(5).iter().map(|event| event.revision).collect();
        newest.sort_unstable();
        assert_eq!(newest, [26, 27, 28, 29, 30]);
        assert!(
            bed.revisions("vm/a-20").is_empty()
                && !bed.archive.rings.contains_key(&"vm/a-20".parse().unwrap())
        );
    }

    #[test]
    fn the_largest_batch_keeps_the_rules_of_the_store() {
        let mut bed = Bed::new(BATCH_EVENTS_MAX);
        let many = |from: u64| -> Vec<Event> {
            (from..from + 60).map(|at| event(&format!("vm/a-{at}"), at)).collect()
        };
        assert!(matches!(bed.store(&many(1)), Outcome::Committed { .. }));
        assert!(matches!(bed.store(&many(100)), Outcome::Committed { .. }));
        assert_eq!(bed.archive.ages.len(), BATCH_EVENTS_MAX);
        let of_one: Vec<Event> = (1..60).map(|at| event("vm/b", at)).collect();
        assert!(matches!(bed.store(&of_one), Outcome::Committed { .. }));
        assert_eq!(bed.revisions("vm/b").len(), BATCH_EVENTS_MAX);
    }

    #[test]
    fn of_two_who_write_at_once_only_one_does() {
        let mut bed = Bed::new(EVENTS_STORED_MAX);
        bed.store(&[event("vm/a", 1)]);
        let late = bed.archive.batch(&[event("vm/a", 2)], 2).on(&[], LEASE);
        bed.store(&[event("vm/b", 2)]);
        let outcome = bed.core.commit(&late).expect("it is sent");
        assert!(matches!(outcome, Outcome::Conflict { .. }), "{outcome:?}");
        bed.follow();
        assert_eq!((bed.revisions("vm/a"), bed.revisions("vm/b")), (vec![1], vec![2]));
    }

    #[test]
    fn what_is_heard_again_is_known() {
        let mut bed = Bed::new(EVENTS_STORED_MAX);
        bed.store(&[event("vm/a", 1)]);
        let old = bed.core.list(event::EVENTS_PREFIX, None).expect("a list");
        bed.store(&[event("vm/a", 2)]);
        let told_at = bed.archive.told_at();
        let again =
            old.entries.iter().map(|(key, value)| Change::Put { key: key.clone(), value: value.clone() });
        bed.archive.apply(&again.collect::<Vec<Change>>(), old.revision);
        assert_eq!((bed.archive.told_at(), bed.revisions("vm/a")), (told_at, vec![1, 2]));
    }

    #[test]
    fn what_cannot_be_read_is_overwritten_in_its_turn() {
        let mut bed = Bed::new(EVENTS_STORED_MAX);
        let key = EventKey::Of("vm/a".parse().unwrap(), 0).to_string();
        let newer = Transaction {
            guards: vec![Guard::absent(&key)],
            operations: vec![Operation::put(&key, r#"{"format":9}"#)],
        };
        bed.core.commit(&newer).expect("it is sent");
        bed.follow();
        assert!(bed.revisions("vm/a").is_empty());
        assert!(matches!(bed.store(&[event("vm/a", 3)]), Outcome::Committed { .. }));
        assert_eq!(bed.revisions("vm/a"), [3]);
    }
}
