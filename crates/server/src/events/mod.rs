//! What happened to objects. It is kept for seven days in the store, by the leader; every server has a copy.
//!
//! ```text
//!   follower ──news──> record: story ──> what is yet to be stored ──(the leader)──> keep ──> store
//!       └──keys beside the view──> archive: what is stored          <──────────── watch ──────┘
//!                                     └────────── merged ──> GET /v1/events
//! ```
//!
//! Every server sees the same changes, and tells the same of them. What the mark of the archive says has been told is taken
//! from the archive; what came after it, from what this server has seen itself. So answers do not wait for the store, all
//! servers say the same of what is a moment old, and the server that leads next stores what the last one did not.
//!
//! | file | concern |
//! |---|---|
//! | `story` | how an object looks, and what to say about a change of that |
//! | `asked` | what somebody asked, in words |
//! | `actors` | who did it |
//! | `archive` | what is stored, and the next batch to store |
//! | `keep` | stores it, as the leader |

mod actors;
pub(crate) mod archive;
mod asked;
pub(crate) mod keep;
mod story;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lightbyte_api::records::Record;
use lightbyte_api::{Event, Key, Name, ObjectRef};
use lightbyte_plan::View;
use lightbyte_plan::planner::since;
use tokio::sync::Notify;
use tokio::time::{Duration, sleep};

use self::actors::Hands;
use self::archive::{Archive, Batch, EVENTS_PER_OBJECT_MAX};
use self::story::{Look, look};
use crate::follower::Follower;
use crate::news::{News, Subscription};
use crate::{Server, affected, clock, last_words};

/// How many events wait to be stored: those of the start of a thousand VMs. Beyond, the oldest are dropped, and that is told.
pub(crate) const QUEUE_EVENTS_MAX: usize = 10_000;
/// The pause before a lost place in the stream of changes is taken again.
const AGAIN_PAUSE: Duration = Duration::from_millis(100);

/// What this server has seen, beyond what is stored.
#[derive(Default)]
pub(crate) struct Events {
    seen: Mutex<Seen>,
    /// Rung when there is something to store.
    bell: Notify,
}

#[derive(Default)]
struct Seen {
    /// The newest view that was looked at.
    revision: u64,
    /// How each living object was seen last.
    last: BTreeMap<ObjectRef, Look>,
    /// What happened and is not stored, as far as this server knows; the oldest first.
    queue: VecDeque<Queued>,
    /// The revision of the mark by which the queue was gone through last.
    settled_at: u64,
    dropped: Option<Dropped>,
}

struct Queued {
    event: Event,
    /// It was learnt after the view that showed it, by the leader alone: the mark of the archive does not speak of it.
    late: bool,
}

/// Events that were dropped because the queue was full.
struct Dropped {
    count: usize,
    last: Event,
}

impl Queued {
    fn is_stored(&self, archive: &Archive) -> bool {
        (!self.late && self.event.revision <= archive.told_through()) || archive.has(&self.event)
    }
}

impl Dropped {
    fn told(&self) -> Event {
        let count = self.count;
        Event {
            what: "dropped".into(),
            message: format!(
                "{count} events up to here, of this object and others, came too quickly to be kept"
            ),
            actor: None,
            ..self.last.clone()
        }
    }
}

/// What is to be stored next.
pub(crate) struct Next {
    /// The transaction and its size.
    pub(crate) batch: Batch,
    /// How many dropped events it tells of.
    pub(crate) dropped: usize,
}

impl Events {
    /// The events of one object, oldest first.
    pub(crate) fn of(&self, follower: &Follower, object: &ObjectRef) -> Vec<Event> {
        let (seen, archive) = (self.seen(), follower.archive());
        let mut events = archive.of(object);
        events.retain(is_young);
        events.extend(seen.unstored(&archive, |found| found == object));
        drop((archive, seen));
        // Stable: within a revision they stay as they were told.
        events.sort_by_key(|event| event.revision);
        events.split_off(events.len().saturating_sub(EVENTS_PER_OBJECT_MAX as usize))
    }

    /// The newest `count` events of all objects, oldest first.
    pub(crate) fn newest(&self, follower: &Follower, count: usize) -> Vec<Event> {
        let (seen, archive) = (self.seen(), follower.archive());
        let mut events = archive.newest(count);
        events.retain(is_young);
        events.extend(seen.unstored(&archive, |_| true));
        drop((archive, seen));
        events.sort_by_key(|event| (event.revision, event.at));
        events.split_off(events.len().saturating_sub(count))
    }

    /// Locked before the archive, where both are.
    fn seen(&self) -> MutexGuard<'_, Seen> {
        // A panic inside would lose at most one event.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins with `view`: what is there already did not happen now.
    fn begin(&self, follower: &Follower, view: &View) {
        let mut seen = self.seen();
        if view.revision() < seen.revision {
            // The store has gone back, as a restore does: what came after that is no history any more.
            *seen = Seen::default();
        }
        let is_first = seen.revision == 0;
        let known: BTreeSet<ObjectRef> = view.objects().cloned().chain(seen.last.keys().cloned()).collect();
        for object in known {
            match look(view, &object) {
                Some(look) if is_first => drop(seen.last.insert(object, look)),
                look => seen.note(view.revision(), &object, look.as_ref(), &Hands::default(), Vec::new()),
            }
        }
        self.end_of_turn(seen, follower, view.revision());
    }

    /// Takes what changed after `before`.
    fn take(&self, follower: &Follower, before: &View, news: &News) {
        let mut seen = self.seen();
        for object in affected::objects(before, &news.view, &*news.changed) {
            let asked = match (before.asked(&object), news.view.asked(&object)) {
                (Some(before), Some(after)) if before.meta.uid == after.meta.uid => {
                    asked::told(before, after)
                }
                _ => Vec::new(),
            };
            let look = look(&news.view, &object);
            if asked.is_empty() && look.as_ref() == seen.last.get(&object) {
                continue;
            }
            let hands = Hands::on(before, news, &object);
            seen.note(news.changed_at, &object, look.as_ref(), &hands, asked);
        }
        self.end_of_turn(seen, follower, news.view.revision());
    }

    fn end_of_turn(&self, mut seen: MutexGuard<'_, Seen>, follower: &Follower, revision: u64) {
        seen.revision = revision;
        // Not held while objects are looked at: the follower waits for it.
        seen.settle(&follower.archive());
        let has_some = !seen.queue.is_empty();
        drop(seen);
        if has_some {
            self.bell.notify_one();
        }
    }

    /// A member of a group said this last on its console; its worker was asked after the view of `revision`.
    pub(crate) fn said(&self, group: &ObjectRef, revision: u64, member: &Name, lines: &[String]) {
        let at = clock::now();
        let mut seen = self.seen();
        for line in lines {
            let message = format!("{member} said: {line}");
            let what = "console".into();
            let event = Event { at, revision, object: group.clone(), what, message, actor: None };
            seen.queue.push_back(Queued { event: event.cut(), late: true });
        }
        drop(seen);
        self.bell.notify_one();
    }

    /// Waits until there may be something to store.
    pub(crate) async fn rung(&self) {
        self.bell.notified().await;
    }

    /// What to store next; nothing when all is stored.
    pub(crate) fn next(&self, follower: &Follower) -> Option<Next> {
        let (mut seen, archive) = (self.seen(), follower.archive());
        seen.settle(&archive);
        if seen.queue.is_empty() {
            return None;
        }
        let told = seen.dropped.as_ref().map(Dropped::told);
        let dropped = seen.dropped.as_ref().map_or(0, |dropped| dropped.count);
        let room = archive::BATCH_EVENTS_MAX - usize::from(told.is_some());
        let through = seen.told_with(room);
        let queued = seen.queue.iter().take(room).map(|queued| queued.event.clone());
        let events: Vec<Event> = told.into_iter().chain(queued).collect();
        Some(Next { batch: archive.batch(&events, through), dropped })
    }

    /// What `next` had was stored. The rest follows from the archive, when that has heard of it.
    pub(crate) fn stored(&self, dropped: usize) {
        let mut seen = self.seen();
        match &mut seen.dropped {
            Some(Dropped { count, .. }) if *count > dropped => *count -= dropped,
            told => *told = None,
        }
    }
}

impl Seen {
    fn unstored(&self, archive: &Archive, wanted: impl Fn(&ObjectRef) -> bool) -> Vec<Event> {
        let queued = self.queue.iter().filter(|queued| wanted(&queued.event.object));
        queued.filter(|queued| !queued.is_stored(archive)).map(|queued| queued.event.clone()).collect()
    }

    /// Forgets what is stored, and then the oldest of what is too much.
    fn settle(&mut self, archive: &Archive) {
        if self.settled_at != archive.told_at() {
            self.settled_at = archive.told_at();
            self.queue.retain(|queued| !queued.is_stored(archive));
        }
        if self.dropped.as_ref().is_some_and(|dropped| dropped.last.revision <= archive.told_through()) {
            // Whoever led meanwhile has told them.
            self.dropped = None;
        }
        while self.queue.len() > QUEUE_EVENTS_MAX
            && let Some(Queued { event, .. }) = self.queue.pop_front()
        {
            let count = self.dropped.take().map_or(1, |dropped| dropped.count + 1);
            self.dropped = Some(Dropped { count, last: event });
        }
    }

    /// Up to which revision everything is told when the first `count` of the queue are.
    fn told_with(&self, count: usize) -> u64 {
        let on_time = |queued: &&Queued| !queued.late;
        let last = self.queue.iter().take(count).rfind(on_time).map(|queued| queued.event.revision);
        let next = self.queue.iter().skip(count).find(on_time).map(|queued| queued.event.revision);
        match (last, next) {
            // More of the same revision is to come.
            (Some(last), Some(next)) if next <= last => next.saturating_sub(1),
            (Some(last), Some(_)) => last,
            // All that was seen is told with them.
            (last, None) => last.unwrap_or(0).max(self.revision),
            (None, Some(_)) => 0,
        }
    }

    fn note(
        &mut self,
        revision: u64,
        object: &ObjectRef,
        look: Option<&Look>,
        hands: &Hands,
        asked: Vec<String>,
    ) {
        let before = match look {
            Some(look) => self.last.insert(object.clone(), look.clone()),
            None => self.last.remove(object),
        };
        let asked = asked.into_iter().map(|message| ("asked", message));
        let told: Vec<(&'static str, String)> = asked.chain(story::told(before.as_ref(), look)).collect();
        if told.is_empty() {
            return;
        }
        let at = clock::now();
        for (what, message) in told {
            let actor = hands.of(what);
            let event = Event { at, revision, object: object.clone(), what: what.into(), message, actor };
            self.queue.push_back(Queued { event: event.cut(), late: false });
        }
    }
}

/// Whether an event is one of those that are kept: a lease may last longer than it was given, as when etcd elects anew.
fn is_young(event: &Event) -> bool {
    since(event.at, clock::now()).duration() < keep::KEPT_FOR
}

/// The name of the server that leads in a view.
pub(crate) fn leader_of(view: &View) -> Option<&Name> {
    match view.record(&Key::Leader) {
        Some(Record::Leader(leader)) => Some(&leader.server),
        _ => None,
    }
}

/// Writes down what happens, until it is dropped.
pub(crate) async fn record(server: Arc<Server>) {
    loop {
        if let Some(Subscription { mut view, mut news }) = server.follower.subscribe() {
            server.events.begin(&server.follower, &view);
            server.times.note(clock::now(), view.revision());
            while let Some(news) = news.recv().await {
                server.events.take(&server.follower, &view, &news);
                last_words::note(&server, &view, &news);
                view = news.view;
                server.times.note(clock::now(), view.revision());
            }
        }
        sleep(AGAIN_PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lightbyte_api::event::EVENTS_PREFIX;
    use lightbyte_store::{LeaseId, MemoryStore, Outcome, Store as _};
    use std::time::Duration;

    const LEASE: LeaseId = LeaseId(7);

    fn queued(revision: u64, number: usize) -> Queued {
        let event = Event {
            at: clock::now(),
            revision,
            object: "vm/a".parse().expect("an object"),
            what: "state".into(),
            message: format!("number {number}"),
            actor: None,
        };
        Queued { event, late: false }
    }

    /// Stores what is next, and has the archive hear of it; false when there is nothing.
    async fn store_next(events: &Events, follower: &Follower, store: &MemoryStore) -> bool {
        let Some(next) = events.next(follower) else { return false };
        let outcome = store.commit(next.batch.on(&[], LEASE)).await.expect("it is sent");
        assert!(matches!(outcome, Outcome::Committed { .. }), "{outcome:?}");
        events.stored(next.dropped);
        let listing = store.list(EVENTS_PREFIX, None).await.expect("a list");
        *follower.archive() = Archive::of_listing(&listing);
        true
    }

    #[test]
    fn the_mark_stays_behind_a_revision_that_is_not_told_to_its_end() {
        let check = |queue: &[u64], count: usize, expect: u64| {
            let queue = queue.iter().enumerate().map(|(number, revision)| queued(*revision, number));
            let seen = Seen { queue: queue.collect(), ..Seen::default() };
            assert_eq!(seen.told_with(count), expect, "{count}");
        };
        check(&[], 3, 0);
        check(&[5, 6], 3, 6);
        check(&[5, 6, 6, 7], 2, 5);
        check(&[5, 6, 6, 7], 3, 6);
        let late = Queued { late: true, ..queued(9, 9) };
        let seen = Seen { queue: [late, queued(5, 0)].into(), ..Seen::default() };
        assert_eq!((seen.told_with(1), seen.told_with(2)), (0, 5));
    }

    #[tokio::test]
    async fn a_full_queue_drops_its_oldest_and_says_how_many() {
        let (store, events) = (MemoryStore::new(), Events::default());
        store.lease_ensure(LEASE, Duration::from_secs(60)).await.expect("a lease");
        let follower = Follower::new(Arc::new(store.clone()));
        let many = (0..QUEUE_EVENTS_MAX + 5).map(|number| queued(number as u64 + 1, number));
        events.seen().queue.extend(many);
        assert!(store_next(&events, &follower, &store).await);
        let told = follower.archive().of(&"vm/a".parse().expect("an object"));
        assert_eq!(told[0].what, "dropped");
        assert!(told[0].message.starts_with("5 events up to here"), "{}", told[0].message);
        assert_eq!((told[1].revision, told.len()), (6, archive::BATCH_EVENTS_MAX));
        // It is told once, and then the story goes on.
        assert!(store_next(&events, &follower, &store).await);
        let told = follower.archive().of(&"vm/a".parse().expect("an object"));
        assert!(told.iter().skip(1).all(|event| event.what == "state"), "{told:?}");
    }

    #[tokio::test]
    async fn what_another_leader_has_stored_is_not_stored_again() {
        let store = MemoryStore::new();
        store.lease_ensure(LEASE, Duration::from_secs(60)).await.expect("a lease");
        let follower = Follower::new(Arc::new(store.clone()));
        let [one, other] = [Events::default(), Events::default()];
        // One revision with more than a batch: the first leader ends in the middle of it.
        for events in [&one, &other] {
            events.seen().queue.extend((0..60).map(|number| queued(7, number)));
        }
        assert!(store_next(&one, &follower, &store).await);
        let object = "vm/a".parse().expect("an object");
        assert_eq!(other.of(&follower, &object).len(), 48);
        assert!(store_next(&other, &follower, &store).await);
        assert!(!store_next(&other, &follower, &store).await && !store_next(&one, &follower, &store).await);
        let numbers: Vec<String> = (12..60).map(|number| format!("number {number}")).collect();
        let told: Vec<String> =
            follower.archive().of(&object).into_iter().map(|event| event.message).collect();
        assert_eq!(told, numbers);
    }
}
