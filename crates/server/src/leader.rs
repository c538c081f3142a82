//! Leads while it can: wins the election, turns the reconciler, and gives up what it cannot be sure of.
//!
//! ```text
//!   wait for a fresh view ──> campaign ──> term: news ──> feed ──> next ──> commit ──> committed / conflicted / unknown
//!            ^                              │  renew each TTL/3, only from this loop and from a fresh view
//!            └──────────────────────────────┘  lease lost, deposed, view not fresh, stopped
//! ```
//!
//! What protects the store from a leader that does not know that it is none is not this file but the guards of every
//! batch: the epoch, and the leader key as this term created it.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use lightbyte_api::envelope::Envelope;
use lightbyte_api::records::{Leader, Record};
use lightbyte_api::{Key, Timestamp, Uid, Writer};
use lightbyte_plan::load::{Counted, Gauge, LOOK_PERIOD};
use lightbyte_plan::{Reconciler, Transaction as Decision, View};
use lightbyte_store::feed::{encode, met};
use lightbyte_store::{Candidate, Guard, Leadership, LeaseId, Outcome, StoreError};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

use crate::acme::Issuer;
use crate::news::{News, Subscription};
use crate::{Server, chain, clock, events, usage};

/// How long a leader that is dead keeps others from leading.
pub(crate) const LEADER_TTL: Duration = Duration::from_secs(5);
/// How old a linearizable read may be that the view has reached, for a leader to renew.
const FRESH_WITHIN: Duration = Duration::from_millis(LEADER_TTL.as_millis() as u64 / 2);
/// How often a leader renews: a lost renewal or two do not end a term.
const RENEW_PERIOD: Duration = Duration::from_millis(LEADER_TTL.as_millis() as u64 / 3);
/// The pause after a renewal that could not be made.
const RENEW_PAUSE: Duration = Duration::from_millis(100);
/// How long giving up the lease may take; else it ends by itself.
const RESIGN_WITHIN: Duration = Duration::from_secs(1);
/// The pause after an election that failed for a reason that waiting alone does not cure.
const ELECTION_PAUSE: Duration = Duration::from_secs(2);
/// The pause between two questions for the store's revision after an unknown outcome.
const ASK_PAUSE: Duration = Duration::from_millis(100);

/// The shortest pause before the loop turns again although nothing happened.
const WAKE_PAUSE: Duration = Duration::from_millis(5);

/// What came of a batch.
enum Answer {
    Committed(u64),
    Conflict(u64, BTreeMap<Key, u64>),
    Unknown(u64),
}

/// Why a term ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The server stops.
    Stopped,
    /// The lease is gone, or a batch met another leader or epoch: somebody else may lead.
    Deposed,
    /// The lease could not be renewed in time: the store did not answer, or the view was not fresh.
    NotRenewed,
}

type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Leads whenever it can, until `stop` says so.
pub(crate) async fn lead(server: Arc<Server>, mut stop: watch::Receiver<bool>) {
    let run = clock::fresh_uid();
    // The lease of a term that ended while the store was away: it would keep everybody waiting, this server included.
    let mut left_behind = None;
    loop {
        let elected = tokio::select! {
            elected = campaign(&server, run, left_behind) => elected,
            _ = stop.wait_for(|stop| *stop) => return,
        };
        let leadership = match elected {
            Ok(leadership) => leadership,
            Err(error) => {
                tracing::error!(error = chain(&error), "the election failed");
                sleep(ELECTION_PAUSE).await;
                continue;
            }
        };
        let lease = leadership.lease();
        let Some(term) = Term::begin(Arc::clone(&server), &leadership) else { continue };
        tracing::info!(server = %server.name, "leads");
        // Ended with the term, when it is dropped.
        let mut beside = JoinSet::new();
        beside.spawn(events::keep::keep(Arc::clone(&server), term.session(&leadership)));
        let end = term.run(leadership, &mut stop).await;
        let resigned = timeout(RESIGN_WITHIN, server.store.lease_revoke(lease)).await;
        left_behind = (!matches!(resigned, Ok(Ok(())))).then_some(lease);
        if end == End::Stopped {
            return;
        }
    }
}

async fn campaign(server: &Server, run: Uid, left_behind: Option<LeaseId>) -> Result<Leadership, StoreError> {
    // A server that cannot follow the store would win only to give up.
    server.follower.fresh_with(&Key::Epoch, FRESH_WITHIN).await;
    if let Some(lease) = left_behind {
        // If it fails, the lease ends by itself, as it would have done.
        let _ = timeout(RESIGN_WITHIN, server.store.lease_revoke(lease)).await;
    }
    let record = Record::from(Leader { server: server.name.clone(), run, url: server.url.clone() });
    let writer = format!("server {}", server.name);
    let value = record.encode(&Envelope { written_at: clock::precise(), writer: &writer }, &None);
    Candidate::new(Arc::clone(&server.store), Key::Leader.to_string(), value, LEADER_TTL).campaign().await
}

/// One term of leadership.
struct Term {
    server: Arc<Server>,
    reconciler: Reconciler,
    subscription: Subscription,
    sending: Option<Boxed<Answer>>,
    gauge: Gauge,
    looking: Option<Boxed<Counted>>,
    next_look: Instant,
    issuer: Issuer,
}

impl Term {
    fn begin(server: Arc<Server>, leadership: &Leadership) -> Option<Term> {
        let subscription = server.follower.subscribe()?;
        let view = subscription.view.clone();
        let leads_since = leadership.guard().mod_revision;
        let session = [(Key::Epoch, view.mod_revision(&Key::Epoch)), (Key::Leader, leads_since)];
        let mut reconciler = Reconciler::new(session.into_iter().collect(), view);
        // Whatever the last leader wrote is in the view before this one decides.
        reconciler.hold_until(leads_since);
        Some(Term {
            server,
            reconciler,
            subscription,
            sending: None,
            gauge: Gauge::default(),
            looking: None,
            next_look: Instant::now(),
            issuer: Issuer::default(),
        })
    }

    /// What a transaction beside the reconciler's must hold.
    fn session(&self, leadership: &Leadership) -> Vec<Guard> {
        let epoch = self.subscription.view.mod_revision(&Key::Epoch);
        vec![Guard::at(Key::Epoch.to_string(), epoch), leadership.guard()]
    }

    async fn run(mut self, leadership: Leadership, stop: &mut watch::Receiver<bool>) -> End {
        let server = Arc::clone(&self.server);
        // In a future of its own, so that a slow renewal does not stop the loop; and polled by this loop alone, so
        // that a loop that does not turn does not renew.
        let mut renewing = std::pin::pin!(keep(server, leadership));
        let end = loop {
            if let Some(late) = self.turn() {
                tracing::warn!(millis = late.as_millis(), "one turn of the leader's loop took too long");
            }
            // While a batch is on its way nothing is planned, whatever is due.
            let wake = if self.sending.is_some() { FRESH_WITHIN } else { until(self.reconciler.next_wake()) };
            self.look();
            self.issuer.look(&self.server, &self.reconciler);
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => break End::Stopped,
                end = &mut renewing => break end,
                answer = when(&mut self.sending) => {
                    self.sending = None;
                    if self.take(answer) {
                        break End::Deposed;
                    }
                }
                news = self.subscription.news.recv() => match news {
                    Some(news) => self.feed_all(&news),
                    None if self.subscribe_again() => {}
                    None => break End::NotRenewed,
                },
                counted = when(&mut self.looking) => {
                    self.looking = None;
                    let groups = self.gauge.take(self.reconciler.view(), clock::now(), &counted);
                    tracing::debug!(guests = counted.cpu.len(), proxies = counted.carried.len(), groups = groups.len(), "looked at the load of groups");
                    self.reconciler.measured(self.gauge.loads(), groups);
                }
                (uid, news) = self.issuer.done() => {
                    news.into_iter().for_each(|news| self.reconciler.learned(uid, Arc::new(news)));
                }
                () = sleep_until(self.next_look), if self.looking.is_none() => {}
                () = sleep(wake) => {}
            }
        };
        let counters = self.reconciler.counters();
        match end {
            End::Stopped => tracing::info!(?counters, "leads no more: it stops"),
            End::Deposed => tracing::warn!(?counters, "leads no more: another leader or epoch was met"),
            End::NotRenewed => {
                tracing::warn!(?counters, "leads no more: the lease could not be renewed in time");
            }
        }
        if counters.resync_finds > 0 {
            tracing::error!(count = counters.resync_finds, "a resync found work that no change had woken");
        }
        end
    }

    /// Plans until there is something to send or nothing to plan; returns how long that took if it was too long.
    fn turn(&mut self) -> Option<Duration> {
        let began = Instant::now();
        self.confirm();
        while self.sending.is_none() {
            let plans = self.reconciler.counters().plans;
            if let Some(decision) = self.reconciler.next(clock::now(), clock::fresh) {
                let view = self.reconciler.view().clone();
                self.sending = Some(Box::pin(send(Arc::clone(&self.server), decision, view)));
            } else if self.reconciler.is_idle() || self.reconciler.counters().plans == plans {
                break;
            }
        }
        Some(began.elapsed()).filter(|took| *took > FRESH_WITHIN)
    }

    /// Begins to ask for what groups scale by, if it is time.
    fn look(&mut self) {
        if self.looking.is_some() || Instant::now() < self.next_look {
            return;
        }
        self.next_look = Instant::now() + LOOK_PERIOD.duration();
        let view = self.reconciler.view().clone();
        self.looking = Some(Box::pin(async move { usage::counted(&view).await }));
    }

    /// Tells the reconciler how young its view is.
    fn confirm(&mut self) {
        let Some(confirmed) = self.server.follower.confirmed() else { return };
        if let Ok(read_at) = clock::now().checked_sub(confirmed.asked_at.elapsed()) {
            self.reconciler.confirm(confirmed.revision, read_at);
        }
    }

    /// Feeds the news and whatever is queued behind it: one plan from the newest view is better than ten from older.
    fn feed_all(&mut self, news: &News) {
        self.feed(news);
        while let Ok(news) = self.subscription.news.try_recv() {
            self.feed(&news);
        }
    }

    fn feed(&mut self, news: &News) {
        let changed = (!news.relisted).then_some(&*news.changed);
        self.reconciler.feed(news.view.clone(), changed);
    }

    /// Takes a new place in the stream of changes after this loop was too slow; false when the store has gone back.
    fn subscribe_again(&mut self) -> bool {
        let Some(subscription) = self.server.follower.subscribe() else { return false };
        if subscription.view.revision() < self.subscription.view.revision() {
            return false;
        }
        self.reconciler.feed(subscription.view.clone(), None);
        self.subscription = subscription;
        true
    }

    /// Takes what came of a batch; true when it says that this term is over.
    fn take(&mut self, answer: Answer) -> bool {
        match answer {
            Answer::Committed(revision) => self.reconciler.committed(revision),
            Answer::Unknown(revision) => self.reconciler.unknown(revision, clock::now()),
            Answer::Conflict(_, current) if self.reconciler.is_deposed(&current) => return true,
            Answer::Conflict(revision, current) => {
                self.reconciler.conflicted(revision, &current, clock::now());
            }
        }
        false
    }
}

/// Renews the leadership until it is lost. Only what the loop polls renews.
async fn keep(server: Arc<Server>, mut leadership: Leadership) -> End {
    let mut at = leadership.renewed_at() + RENEW_PERIOD;
    loop {
        sleep_until(at).await;
        let sure_until = leadership.sure_until();
        if Instant::now() >= sure_until {
            return End::NotRenewed;
        }
        at = Instant::now() + RENEW_PAUSE;
        if server.follower.confirmed_at().is_none_or(|confirmed| confirmed.elapsed() >= FRESH_WITHIN) {
            continue;
        }
        match timeout_at(sure_until, leadership.renew()).await {
            Ok(Ok(())) => at = leadership.renewed_at() + RENEW_PERIOD,
            Ok(Err(StoreError::LeaseGone { .. })) => return End::Deposed,
            Ok(Err(error)) => tracing::debug!(error = chain(&error), "the leadership could not be renewed"),
            Err(_) => return End::NotRenewed,
        }
    }
}

/// Sends a batch and learns what came of it.
async fn send(server: Arc<Server>, decision: Decision, view: View) -> Answer {
    let writer = Writer::Leader { server: server.name.clone() }.to_string();
    let envelope = Envelope { written_at: clock::precise(), writer: &writer };
    match server.store.commit(encode(&decision, &view, &envelope, |_| None::<LeaseId>)).await {
        Ok(Outcome::Committed { revision }) => return Answer::Committed(revision),
        Ok(Outcome::Conflict { revision, current }) => return Answer::Conflict(revision, met(&current)),
        Err(error @ (StoreError::Unknown(_) | StoreError::Unavailable(_))) => {
            tracing::warn!(error = chain(&error), "the outcome of a batch is not known");
        }
        Err(error) => tracing::error!(error = chain(&error), "a batch could not be written"),
    }
    // From the revision of a read made after it on, the view shows whether it was committed.
    loop {
        match server.store.get(&Key::Leader.to_string()).await {
            Ok(read) => return Answer::Unknown(read.revision),
            Err(_) => sleep(ASK_PAUSE).await,
        }
    }
}

/// Waits for a future that may not be there.
async fn when<T>(future: &mut Option<Boxed<T>>) -> T {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

/// How long it is until `at`. What is due already may be held until the view has come further: the view wakes the loop
/// then, and meanwhile it must not spin.
fn until(at: Option<Timestamp>) -> Duration {
    let at = at.map(|at| at.duration_since(clock::now()));
    at.map_or(FRESH_WITHIN, |span| Duration::try_from(span).unwrap_or_default()).max(WAKE_PAUSE)
}
