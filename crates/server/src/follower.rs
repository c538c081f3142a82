//! Follows the store: keeps the newest view, and tells subscribers of every change of it.
//!
//! ```text
//!   list ──> watch ──> batch ──> view ──┬──> whoever waits for a revision (`reach`)
//!    ^         │                        ├──> queues of subscribers: leader, workers' streams, people's watches
//!    └─────────┘ compacted, gone back,  └──> the ring of changed keys, from which a watch is resumed
//!                or a check that differs
//! ```
//!
//! Watches are never trusted alone: every few minutes the view is compared with a list at its own revision, and every
//! half a second a linearizable read tells how old the view may be.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lightbyte_api::event::EVENTS_PREFIX;
use lightbyte_api::{Key, WorkerId, Writer, envelope};
use lightbyte_plan::View;
use lightbyte_store::beside::is_beside;
use lightbyte_store::feed::Feed;
use lightbyte_store::{Batch, Event, Listing, Store, StoreError};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};

use crate::chain;
use crate::events::archive::Archive;
use crate::news::{Hub, News, Subscription};

/// How often the view is compared with a list.
const CHECK_PERIOD: Duration = Duration::from_secs(180);
/// How often a linearizable read asks how far the store is: well within half of a leader's time to live.
const CONFIRM_PERIOD: Duration = Duration::from_millis(500);
/// How long the view may take to reach such a read until the next one is made.
const CONFIRM_WITHIN: Duration = Duration::from_secs(2);
/// The pause after the store did not answer.
const RETRY_PAUSE: Duration = Duration::from_millis(250);
/// The key that is read to learn the store's revision; any would do.
const CONFIRM_KEY: &str = "meta/epoch";

/// What is known of the store.
#[derive(Clone, Default)]
pub(crate) struct Known {
    /// `None` until the first list.
    view: Option<View>,
    /// The newest linearizable read whose revision the view has reached since.
    confirmed: Option<Confirmed>,
}

/// A linearizable read that the view has reached.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Confirmed {
    /// The moment before it was made.
    pub(crate) asked_at: Instant,
    /// The revision that it returned.
    pub(crate) revision: u64,
}

/// What is known at one moment.
pub(crate) struct Moment {
    /// The newest view.
    pub(crate) view: View,
    /// The newest linearizable read that it has reached.
    pub(crate) confirmed: Option<Confirmed>,
    /// The keys that changed since the revision that was asked about; `None` if that was too long ago.
    pub(crate) changed: Option<Vec<Key>>,
}

/// The store could not be followed far enough in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooOld {
    /// The revision that the view has; 0 when there is none.
    pub(crate) revision: u64,
}

/// Keeps the newest view.
pub(crate) struct Follower {
    store: Arc<dyn Store>,
    known: watch::Sender<Known>,
    hub: Mutex<Hub>,
    /// The events that are stored, at the revision of the view or a moment ahead of it.
    archive: Mutex<Archive>,
}

impl Follower {
    /// A follower that knows nothing yet.
    pub(crate) fn new(store: Arc<dyn Store>) -> Follower {
        Follower {
            store,
            known: watch::Sender::new(Known::default()),
            hub: Mutex::default(),
            archive: Mutex::default(),
        }
    }

    /// The newest view; `None` before the first list.
    pub(crate) fn view(&self) -> Option<View> {
        self.known.borrow().view.clone()
    }

    /// The events that are stored.
    pub(crate) fn archive(&self) -> MutexGuard<'_, Archive> {
        // A panic inside would lose at most one event.
        self.archive.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The moment before the last linearizable read that the view has reached since.
    pub(crate) fn confirmed_at(&self) -> Option<Instant> {
        self.confirmed().map(|confirmed| confirmed.asked_at)
    }

    /// The newest linearizable read that the view has reached.
    pub(crate) fn confirmed(&self) -> Option<Confirmed> {
        self.known.borrow().confirmed
    }

    /// Waits until the view has reached `revision`, and returns it.
    ///
    /// # Errors
    /// [`TooOld`] after `within`.
    pub(crate) async fn reach(&self, revision: u64, within: Duration) -> Result<View, TooOld> {
        let mut known = self.known.subscribe();
        let reached = |known: &Known| known.view.as_ref().is_some_and(|view| view.revision() >= revision);
        if let Ok(Ok(known)) = timeout(within, known.wait_for(reached)).await
            && let Some(view) = &known.view
        {
            return Ok(view.clone());
        }
        Err(TooOld { revision: self.view().map_or(0, |view| view.revision()) })
    }

    /// Waits until the view was confirmed no longer ago than `age_max`, and holds `key`.
    pub(crate) async fn fresh_with(&self, key: &Key, age_max: Duration) -> View {
        let mut known = self.known.subscribe();
        let fresh = |known: &Known| {
            known.confirmed.is_some_and(|confirmed| confirmed.asked_at.elapsed() < age_max)
                && known.view.as_ref().is_some_and(|view| view.contains(key))
        };
        loop {
            // The sender lives in `self`: it is never closed while this waits.
            if let Ok(known) = known.wait_for(fresh).await
                && let Some(view) = &known.view
            {
                return view.clone();
            }
        }
    }

    /// A place in the stream of changes that begins with the newest view; `None` before the first list.
    pub(crate) fn subscribe(&self) -> Option<Subscription> {
        let mut hub = self.hub();
        let view = self.view()?;
        Some(hub.subscribe(view))
    }

    /// As [`Follower::subscribe`], of the changes alone that have a key of this worker. The view of its news is not that of
    /// each revision; [`Follower::settled`] tells how far it has come.
    pub(crate) fn subscribe_of(&self, worker: WorkerId) -> Option<Subscription> {
        let mut hub = self.hub();
        let view = self.view()?;
        Some(hub.subscribe_of(worker, view))
    }

    /// The newest view, if all news up to it was taken and more would come.
    pub(crate) fn settled(&self, news: &mpsc::Receiver<News>) -> Option<View> {
        // News and view are published under this lock.
        let _hub = self.hub();
        if news.is_empty() && !news.is_closed() { self.view() } else { None }
    }

    /// As [`Follower::subscribe`], with the keys that changed after `revision`. The inner `None` says that it was too
    /// long ago.
    pub(crate) fn resume(&self, revision: u64) -> Option<(Subscription, Option<Vec<Key>>)> {
        let mut hub = self.hub();
        let view = self.view()?;
        let missed = hub.changed_after(revision);
        Some((hub.subscribe(view), missed))
    }

    /// Wakes whoever waits for anything to become known.
    pub(crate) fn knowledge(&self) -> watch::Receiver<Known> {
        self.known.subscribe()
    }

    /// What is known now, with the keys that changed after `revision`; `None` before the first list.
    pub(crate) fn moment(&self, revision: u64) -> Option<Moment> {
        // News and view are published under this lock.
        let hub = self.hub();
        let Known { view, confirmed } = self.known.borrow().clone();
        Some(Moment { view: view?, confirmed, changed: hub.changed_after(revision) })
    }

    fn hub(&self) -> MutexGuard<'_, Hub> {
        // Nothing in it can be half changed: each step under the lock is one push or one sweep.
        self.hub.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells of the news, if it is any, and puts its view in place.
    fn publish(&self, news: &News) {
        let mut hub = self.hub();
        let known = self.known.borrow().view.as_ref().map_or(0, View::revision);
        if !news.changed.is_empty() || news.view.revision() > known {
            hub.tell(news);
        }
        self.known.send_modify(|known| known.view = Some(news.view.clone()));
    }

    /// Puts a view in place that does not follow from the last one: every subscriber begins anew.
    fn begin(&self, view: &View) {
        tracing::info!(revision = view.revision(), "the store was read");
        if !view.contains(&Key::Epoch) {
            tracing::warn!("the cluster has not been set up: nothing is written until it is");
        }
        let mut hub = self.hub();
        hub.begin_anew(view.revision());
        self.known.send_modify(|known| *known = Known { view: Some(view.clone()), confirmed: None });
    }

    // ---------------------------------------------------------------------------------------------- following

    /// Follows the store until it is dropped.
    pub(crate) async fn follow(&self) {
        let mut feed: Option<Feed> = None;
        loop {
            let (listing, archive) = self.list().await;
            *self.archive() = archive;
            let mut current = self.take_listing(feed.take(), &listing);
            tokio::select! {
                () = self.watch(&mut current) => {}
                () = self.until_different() => {}
            }
            feed = Some(current);
        }
    }

    /// Everything, and the stored events at the same revision.
    async fn list(&self) -> (Listing, Archive) {
        let mut told = false;
        loop {
            match self.list_once().await {
                Ok(listed) => return listed,
                Err(error) if !told => {
                    told = true;
                    tracing::warn!(error = chain(&error), "the store cannot be listed; trying again");
                }
                Err(error) => tracing::debug!(error = chain(&error), "the store cannot be listed"),
            }
            sleep(RETRY_PAUSE).await;
        }
    }

    async fn list_once(&self) -> Result<(Listing, Archive), StoreError> {
        let listing = self.store.list("", None).await?;
        // The view does not wait for events: what is stored is learnt when the next batch of them finds that it is not known.
        let events = self.store.list(EVENTS_PREFIX, Some(listing.revision)).await;
        let archive = events.as_ref().map(Archive::of_listing).unwrap_or_else(|error| {
            tracing::warn!(error = chain(error), "the stored events cannot be listed");
            Archive::default()
        });
        Ok((listing, archive))
    }

    /// Reads the stored events anew.
    pub(crate) async fn list_events(&self) -> Result<(), StoreError> {
        let listing = self.store.list(EVENTS_PREFIX, None).await?;
        *self.archive() = Archive::of_listing(&listing);
        Ok(())
    }

    fn take_listing(&self, feed: Option<Feed>, listing: &Listing) -> Feed {
        match feed {
            Some(mut feed) if feed.view().revision() <= listing.revision => {
                let changed: Arc<[Key]> = feed.relist(listing).into();
                let view = feed.view().clone();
                // What is gone says nothing of when.
                let newest = changed.iter().map(|key| view.mod_revision(key)).max();
                let changed_at = newest.filter(|newest| *newest > 0).unwrap_or_else(|| view.revision());
                self.publish(&News { view, changed, writers: Arc::default(), changed_at, relisted: true });
                feed
            }
            feed => {
                if let Some(feed) = feed {
                    tracing::error!(
                        before = feed.view().revision(),
                        now = listing.revision,
                        "the store has gone back, as a restore does; everything begins anew"
                    );
                }
                let feed = Feed::begin(listing);
                self.begin(feed.view());
                feed
            }
        }
    }

    /// Watches until only a list helps.
    async fn watch(&self, feed: &mut Feed) {
        loop {
            let error = match self.store.watch("", feed.next_revision()).await {
                Ok(mut watch) => loop {
                    match watch.next().await {
                        Ok(batch) => {
                            let news = news_of(feed, &batch);
                            let new_epoch = news.changed.contains(&Key::Epoch);
                            self.archive().apply(&batch.events, batch.revision);
                            self.publish(&news);
                            if new_epoch {
                                // A restore brings one, and perhaps a history that is not the one followed so far.
                                return;
                            }
                        }
                        Err(error) => break error,
                    }
                },
                Err(error) => error,
            };
            tracing::warn!(
                error = chain(&error),
                from = feed.next_revision(),
                "the watch of the store ended"
            );
            if !matches!(error, StoreError::Unavailable(_)) {
                return;
            }
            sleep(RETRY_PAUSE).await;
        }
    }

    /// Compares the view with a list at its own revision, again and again, until they differ.
    async fn until_different(&self) {
        loop {
            sleep(CHECK_PERIOD).await;
            let Some(view) = self.view() else { continue };
            // A list that fails, or whose revision was compacted meanwhile, says nothing; the next one will.
            let Ok(listing) = self.store.list("", Some(view.revision())).await else { continue };
            let differing = differing(&view, Feed::begin(&listing).view());
            if !differing.is_empty() {
                tracing::error!(
                    revision = view.revision(),
                    keys = ?differing.iter().take(10).map(ToString::to_string).collect::<Vec<_>>(),
                    count = differing.len(),
                    "the view differs from the store at the same revision; it is listed anew"
                );
                return;
            }
        }
    }

    /// Learns again and again how far the store is, and notes when the view has come there.
    pub(crate) async fn confirm(&self) {
        loop {
            let asked_at = Instant::now();
            if let Ok(read) = self.store.get(CONFIRM_KEY).await
                && self.reach(read.revision, CONFIRM_WITHIN).await.is_ok()
            {
                let confirmed = Confirmed { asked_at, revision: read.revision };
                self.known.send_modify(|known| known.confirmed = Some(confirmed));
            }
            sleep(CONFIRM_PERIOD).await;
        }
    }
}

/// What a batch brings to the view that `feed` has.
fn news_of(feed: &mut Feed, batch: &Batch) -> News {
    let of_view = batch.events.iter().filter(|event| !is_beside(event.key()));
    let changed_at = of_view.map(Event::mod_revision).max().unwrap_or(batch.revision);
    let changed = feed.apply(batch).into();
    let writers = writers(batch).into();
    News { view: feed.view().clone(), changed, writers, changed_at, relisted: false }
}

/// Who wrote what of a batch. A worker's reports are left out: their keys name it.
fn writers(batch: &Batch) -> Vec<(Key, Option<Writer>)> {
    let writer = |event: &Event| {
        let Event::Put { key, value } = event else { return None };
        let key: Key = key.parse().ok()?;
        match key {
            Key::Asked(_) | Key::Decided(_) | Key::Assigned(..) => {
                Some((key, envelope::writer(&value.value).and_then(|writer| writer.parse().ok())))
            }
            _ => None,
        }
    };
    batch.events.iter().filter_map(writer).collect()
}

/// The keys that are not at the same revision in both.
fn differing(left: &View, right: &View) -> Vec<Key> {
    let missing = |one: &View, other: &View| -> Vec<Key> {
        one.keys().filter(|(key, at)| other.mod_revision(key) != *at).map(|(key, _)| key.clone()).collect()
    };
    let mut keys = missing(left, right);
    keys.extend(missing(right, left));
    keys.sort_unstable();
    keys.dedup();
    keys
}

#[cfg(test)]
mod tests {
    use super::*;
    use lightbyte_api::Name;
    use lightbyte_plan::view::Change;
    use lightbyte_store::{Guard, MemoryStore, Operation, Outcome, Transaction};
    use std::net::Ipv4Addr;
    use tokio::task::JoinHandle;

    const WAIT_MAX: Duration = Duration::from_secs(30);

    fn key(number: u32) -> Key {
        Key::Address(Name::new("lan").unwrap(), Ipv4Addr::from(number))
    }

    /// Writes one key, which must be absent.
    async fn put(store: &MemoryStore, key: &Key) -> u64 {
        let key = key.to_string();
        let operations = vec![Operation::put(&key, "{}")];
        let transaction = Transaction { guards: vec![Guard::absent(&key)], operations };
        match store.commit(transaction).await.expect("an outcome") {
            Outcome::Committed { revision } => revision,
            Outcome::Conflict { .. } => panic!("{key} was absent"),
        }
    }

    /// A follower of a store with one key, at the revision of that.
    async fn followed() -> (MemoryStore, Arc<Follower>, JoinHandle<()>, u64) {
        let store = MemoryStore::new();
        let follower = Arc::new(Follower::new(Arc::new(store.clone())));
        let following = Arc::clone(&follower);
        let task = tokio::spawn(async move { following.follow().await });
        let first = put(&store, &key(1)).await;
        follower.reach(first, WAIT_MAX).await.unwrap();
        (store, follower, task, first)
    }

    async fn recv(subscription: &mut Subscription) -> Option<News> {
        timeout(WAIT_MAX, subscription.news.recv()).await.expect("news in time")
    }

    #[tokio::test]
    async fn it_goes_on_after_a_broken_watch_a_compaction_and_a_restore() {
        let (store, follower, task, first) = followed().await;
        let mut subscription = follower.subscribe().unwrap();

        store.watchers().into_iter().for_each(|watcher| store.drop_watcher(watcher));
        put(&store, &key(2)).await;
        let news = recv(&mut subscription).await.unwrap();
        assert_eq!((news.relisted, &*news.changed), (false, &[key(2)][..]), "resumed without a gap");

        let before = store.snapshot();
        store.watchers().into_iter().for_each(|watcher| store.hold_watcher(watcher, true));
        let lost = put(&store, &key(3)).await;
        store.compact(lost).unwrap();
        store.watchers().into_iter().for_each(|watcher| store.drop_watcher(watcher));
        let news = recv(&mut subscription).await.unwrap();
        assert_eq!((news.relisted, &*news.changed), (true, &[key(3)][..]), "listed anew without a ghost");
        assert_eq!(follower.resume(first).and_then(|(_, missed)| missed), Some(vec![key(2), key(3)]));

        // Three revisions back: what a restore of a backup looks like.
        put(&store, &key(4)).await;
        put(&store, &key(5)).await;
        recv(&mut subscription).await.unwrap();
        recv(&mut subscription).await.unwrap();
        store.restore(before);
        assert!(recv(&mut subscription).await.is_none(), "everybody begins anew");
        let (subscription, missed) = follower.resume(lost).unwrap();
        assert!(subscription.view.revision() < lost);
        assert_eq!(missed, Some(Vec::new()));
        assert!(subscription.view.contains(&key(2)) && !subscription.view.contains(&key(3)));
        task.abort();
    }

    /// A leader whose view has come so far, and that is not told so, would never take it for young again.
    #[tokio::test]
    async fn a_write_beside_the_view_moves_its_subscribers_on() {
        let (store, follower, task, first) = followed().await;
        let mut subscription = follower.subscribe().unwrap();
        let beside = format!("{EVENTS_PREFIX}told");
        let transaction = Transaction {
            guards: vec![Guard::absent(&beside)],
            operations: vec![Operation::put(&beside, "{}")],
        };
        store.commit(transaction).await.expect("an outcome");
        let news = recv(&mut subscription).await.unwrap();
        assert_eq!((news.view.revision(), news.changed.len()), (first + 1, 0));
        task.abort();
    }

    #[test]
    fn views_differ_by_what_one_lacks_and_by_what_is_newer() {
        let view = |entries: &[(u32, u64)]| {
            let keys: Vec<(String, u64)> =
                entries.iter().map(|(number, at)| (key(*number).to_string(), *at)).collect();
            let changes = keys.iter().map(|(key, at)| Change { key, mod_revision: *at, value: Some(b"{}") });
            View::of_listing(9, changes)
        };
        let here = view(&[(1, 2), (2, 3), (3, 4)]);
        assert_eq!(differing(&here, &here), []);
        assert_eq!(differing(&here, &view(&[(1, 2), (2, 5), (4, 6)])), [key(2), key(3), key(4)]);
    }
}
