//! News of the view, and who hears of it: queues of subscribers, and the keys that changed of late.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use lightbyte_api::{Key, WorkerId, Writer};
use lightbyte_plan::{View, delivery};
use tokio::sync::mpsc;

/// How many changes a subscriber may lag behind. One that is slower is dropped and has to begin anew: memory is
/// bounded, and a fresh beginning is cheaper than a thousand late changes.
pub(crate) const QUEUE_NEWS_MAX: usize = 1024;
/// How many changed keys are remembered for watches that are resumed: some minutes of a busy cluster, in a few
/// megabytes.
const HISTORY_KEYS_MAX: usize = 1 << 16;

/// A change of the view. With no keys it says how far the view has come, though nothing in it has changed: what was written is
/// beside it, and whoever waits for a revision must hear of that.
#[derive(Clone)]
pub(crate) struct News {
    /// The view after it.
    pub(crate) view: View,
    /// The keys that changed.
    pub(crate) changed: Arc<[Key]>,
    /// Who wrote what people, controllers and the leader write among them; nobody where this version cannot read who. A key
    /// that was written more than once has more than one.
    pub(crate) writers: Arc<[(Key, Option<Writer>)]>,
    /// The newest revision that changed something of the view: events of this news are of that one, on every server alike.
    pub(crate) changed_at: u64,
    /// Whether the view was listed anew: the keys are the difference of two lists, not of two revisions.
    pub(crate) relisted: bool,
}

/// A place in the stream of changes: `view`, and everything after it.
pub(crate) struct Subscription {
    /// The view that the first news follows.
    pub(crate) view: View,
    /// The news. Its end means that this subscriber was too slow, or that the store has gone back: begin anew.
    pub(crate) news: mpsc::Receiver<News>,
}

/// Who hears of what.
#[derive(Default)]
pub(crate) struct Hub {
    /// Those who hear of every change.
    subscribers: Vec<mpsc::Sender<News>>,
    /// Those who hear of what concerns one worker: a thousand streams do not wake for one VM.
    of_workers: BTreeMap<WorkerId, Vec<mpsc::Sender<News>>>,
    history: History,
}

impl Hub {
    /// Everybody begins anew, at `revision`.
    pub(crate) fn begin_anew(&mut self, revision: u64) {
        *self = Hub { history: History::begin(revision), ..Hub::default() };
    }

    /// A place in the stream of all changes after `view`.
    pub(crate) fn subscribe(&mut self, view: View) -> Subscription {
        let (sender, news) = mpsc::channel(QUEUE_NEWS_MAX);
        self.subscribers.push(sender);
        Subscription { view, news }
    }

    /// The same of the changes alone that concern this worker.
    pub(crate) fn subscribe_of(&mut self, worker: WorkerId, view: View) -> Subscription {
        let (sender, news) = mpsc::channel(QUEUE_NEWS_MAX);
        // Streams that have ended are found here: there are never more of them than of those that go on.
        self.of_workers.retain(|_, senders| {
            senders.retain(|sender| !sender.is_closed());
            !senders.is_empty()
        });
        self.of_workers.entry(worker).or_default().push(sender);
        Subscription { view, news }
    }

    /// The keys that changed after `revision`; `None` when that is too long ago.
    pub(crate) fn changed_after(&self, revision: u64) -> Option<Vec<Key>> {
        self.history.after(revision)
    }

    /// Tells whom it concerns.
    pub(crate) fn tell(&mut self, news: &News) {
        self.subscribers.retain(|subscriber| told(subscriber, news));
        if news.changed.is_empty() {
            return;
        }
        self.history.push(news.view.revision(), &news.changed);
        let workers: BTreeSet<WorkerId> =
            news.changed.iter().flat_map(|key| delivery::concerned(&news.view, key)).collect();
        for worker in workers {
            if let Some(senders) = self.of_workers.get_mut(&worker) {
                senders.retain(|subscriber| told(subscriber, news));
            }
        }
    }
}

/// The keys that changed of late.
#[derive(Default)]
struct History {
    /// Every change after this revision is in `changes`.
    complete_from: u64,
    changes: VecDeque<(u64, Arc<[Key]>)>,
    keys: usize,
}

impl History {
    fn begin(revision: u64) -> History {
        History { complete_from: revision, ..History::default() }
    }

    fn push(&mut self, revision: u64, changed: &Arc<[Key]>) {
        self.keys += changed.len();
        self.changes.push_back((revision, Arc::clone(changed)));
        while self.keys > HISTORY_KEYS_MAX {
            let Some((revision, keys)) = self.changes.pop_front() else { return };
            self.keys -= keys.len();
            self.complete_from = revision;
        }
    }

    fn after(&self, revision: u64) -> Option<Vec<Key>> {
        // In order of revisions: whoever asks often does not pass by all of them each time.
        let later = self.changes.range(self.changes.partition_point(|(at, _)| *at <= revision)..);
        (revision >= self.complete_from).then(|| later.flat_map(|(_, keys)| keys.iter().cloned()).collect())
    }
}

/// Tells a subscriber; false when there is none any more, or it is too slow.
fn told(subscriber: &mpsc::Sender<News>, news: &News) -> bool {
    match subscriber.try_send(news.clone()) {
        Ok(()) => true,
        Err(mpsc::error::TrySendError::Closed(_)) => false,
        Err(mpsc::error::TrySendError::Full(_)) => {
            tracing::warn!("a subscriber is more than {QUEUE_NEWS_MAX} changes behind and is dropped");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lightbyte_api::Name;
    use std::net::Ipv4Addr;

    fn key(number: u32) -> Key {
        Key::Address(Name::new("lan").unwrap(), Ipv4Addr::from(number))
    }

    #[test]
    fn history_remembers_so_many_keys_and_says_what_it_forgot() {
        let mut history = History::begin(5);
        let check = |history: &History, from: u64, expect: Option<usize>| {
            assert_eq!(history.after(from).map(|keys| keys.len()), expect, "from {from}");
        };
        check(&history, 4, None);
        check(&history, 5, Some(0));
        history.push(6, &[key(1), key(2)].into());
        history.push(8, &[key(3)].into());
        check(&history, 5, Some(3));
        check(&history, 6, Some(1));
        check(&history, 7, Some(1));
        check(&history, 8, Some(0));
        let many: Vec<Key> = (0..HISTORY_KEYS_MAX as u32).map(key).collect();
        history.push(9, &many.into());
        check(&history, 7, None);
        check(&history, 8, Some(HISTORY_KEYS_MAX));
    }

    #[tokio::test]
    async fn a_slow_subscriber_is_dropped_and_others_are_not() {
        let tell = |hub: &mut Hub, number: u32| {
            let (view, changed, writers) = (View::default(), [key(number)].into(), Arc::default());
            hub.tell(&News { view, changed, writers, changed_at: 1, relisted: false });
        };
        let mut hub = Hub::default();
        let mut slow = hub.subscribe(View::default());
        (0..QUEUE_NEWS_MAX as u32).for_each(|number| tell(&mut hub, number));
        let mut quick = hub.subscribe(View::default());
        tell(&mut hub, 7);
        assert!(quick.news.recv().await.is_some());
        assert_eq!(hub.subscribers.len(), 1);
        let mut taken = 0;
        while slow.news.recv().await.is_some() {
            taken += 1;
        }
        assert_eq!(taken, QUEUE_NEWS_MAX, "what was queued is still delivered, then the end");
    }
}
