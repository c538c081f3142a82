//! The reconciler: the loop of the leader, as a state machine without I/O.
//!
//! ```text
//!            feed(view, changed keys)                 committed / conflicted
//!                     │                                        │
//!                     v                                        v
//!   changed keys ──> wake ──> queue ──> next() ──> Batch ──> (store) ──> overlay until the feed has it
//! ```
//!
//! The shell feeds it views and sends its batches; the simulator does the same with the same code. It decides on the
//! newest view **plus an overlay** of its own commits that the feed has not brought yet, and puts the plans of many
//! objects into one transaction: one in flight, each key once, each compared as it was before the batch, later plans
//! resting on what earlier ones write.
//!
//! It knows no kind. What wakes whom is said by the view's indexes: an object wakes for its own keys, for the objects
//! that it names or holds, for its owner and its children, and for its worker; a group wakes for what is said of its members and for their workers; whoever waits for room, an address or
//! a readable value wakes when any of it changes. A resync wakes everything, and finds nothing to do: the simulator holds it to that.
//!
//! Deliberately absent: any hint to a planner about what changed, any write outside a batch, and any merge of a
//! conflicting plan. A plan that conflicts is dropped and made anew from a newer view.

mod waking;

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use lightbyte_api::{Key, ObjectRef, Span, Timestamp, Uid, WaitingOn};

use self::waking::waits_elsewhere;
use crate::load::Load;
use crate::planner::secret::acme::News;
use crate::planner::{self, Inputs, Plan, later};
use crate::transaction::{GUARDS_MAX, LARGE_BYTES_MAX, Transaction, WRITES_MAX, Write};
use crate::view::{PENDING, View};

/// How many objects one call of [`Reconciler::next`] plans at most, so that the loop turns and the lease is renewed
/// even when everything was woken at once.
pub const PLANS_PER_TURN_MAX: usize = 512;
/// How many own commits may wait for the feed before the loop waits with them: the overlay stays small.
pub const OVERLAYS_MAX: usize = 16;
/// The first pause of an object whose transaction failed; it doubles with each failure in a row.
pub const BACKOFF_FIRST: Span = Span::from_millis(10);
/// The longest pause of an object whose transaction failed.
pub const BACKOFF_LIMIT: Span = Span::from_millis(2_000);
/// How often everything is woken. The feed misses nothing, so this should never find anything to do.
pub const RESYNC_PERIOD: Span = Span::from_secs(300);
/// The longest text kept of a planner's panic.
const PANIC_TEXT_LENGTH_MAX: usize = 200;

/// The leader's decisions in the making.
pub struct Reconciler {
    /// Guards of every batch: the epoch and the leadership, so that a deposed leader cannot write.
    session: BTreeMap<Key, u64>,
    /// The newest view that the feed brought.
    fed: View,
    /// `fed` with `overlays`: what is decided on.
    view: View,
    overlays: Vec<Overlay>,
    /// Nothing is planned before the feed has reached this revision.
    hold_until: u64,
    in_flight: Option<InFlight>,
    /// When the linearizable read was made that `fed` has reached since.
    read_at: Option<Timestamp>,
    queue: BTreeSet<ObjectRef>,
    later: BTreeSet<(Timestamp, ObjectRef)>,
    /// When each object stands in `later`: once, at its earliest.
    later_of: BTreeMap<ObjectRef, Timestamp>,
    /// Objects that wait for something that no index leads to: room or an address anywhere, or a readable value.
    bystanders: BTreeSet<ObjectRef>,
    failures: BTreeMap<ObjectRef, u32>,
    /// Objects whose planner panicked, with the revision of `asked` at which it did.
    quarantined: BTreeMap<ObjectRef, (u64, String)>,
    next_resync: Option<Timestamp>,
    /// What the members of groups use.
    loads: BTreeMap<Uid, Arc<Load>>,
    /// What came of the last step of each order, in this term.
    news: BTreeMap<Uid, Arc<News>>,
    /// The time that schedules stand at; `None` when they go on.
    time_of_day: Option<Timestamp>,
    counters: Counters,
}

struct Overlay {
    revision: u64,
    writes: Vec<Write>,
}

struct InFlight {
    transaction: Transaction,
    /// Which objects rest on which keys, to know whom a conflict concerns.
    objects: Vec<(ObjectRef, BTreeSet<Key>)>,
}

/// What the loop has done since it began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Plans made.
    pub plans: u64,
    /// Plans that wrote something.
    pub writing_plans: u64,
    /// Transactions sent.
    pub batches: u64,
    /// Transactions that failed because something had changed.
    pub conflicts: u64,
    /// Writing plans that a resync alone had woken: a missed wake-up, and so a bug.
    pub resync_finds: u64,
    /// Panics of planners.
    pub panics: u64,
}

impl Reconciler {
    /// A loop for one term of leadership. `session` are the guards that every batch carries.
    #[must_use]
    pub fn new(session: BTreeMap<Key, u64>, view: View) -> Reconciler {
        let mut reconciler = Reconciler {
            session,
            fed: view.clone(),
            view,
            overlays: Vec::new(),
            hold_until: 0,
            in_flight: None,
            read_at: None,
            queue: BTreeSet::new(),
            later: BTreeSet::new(),
            later_of: BTreeMap::new(),
            bystanders: BTreeSet::new(),
            failures: BTreeMap::new(),
            quarantined: BTreeMap::new(),
            next_resync: None,
            loads: BTreeMap::new(),
            news: BTreeMap::new(),
            time_of_day: None,
            counters: Counters::default(),
        };
        reconciler.queue = reconciler.view.objects().cloned().collect();
        reconciler
    }

    /// The view with what this loop has written and the feed has not brought yet.
    #[must_use]
    pub const fn view(&self) -> &View {
        &self.view
    }

    /// What the loop has done.
    #[must_use]
    pub const fn counters(&self) -> Counters {
        self.counters
    }

    /// Whether nothing is queued, in flight or held. Pauses that end later do not count.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.in_flight.is_none() && self.queue.is_empty()
    }

    /// Whether something must come from outside before anything can be planned: an answer, or the feed.
    fn is_held(&self) -> bool {
        self.in_flight.is_some()
            || self.fed.revision() < self.hold_until
            || self.overlays.len() >= OVERLAYS_MAX
    }

    /// When [`Reconciler::next`] should be called again although nothing happened; a time in the past means now.
    #[must_use]
    pub fn next_wake(&self) -> Option<Timestamp> {
        if self.is_held() {
            return None;
        }
        if !self.queue.is_empty() {
            return Some(Timestamp::MIN);
        }
        self.later.first().map(|(at, _)| *at).into_iter().chain(self.next_resync).min()
    }

    /// When the first pause ends of an object that `is_meant`.
    pub fn next_pause_ends(&self, is_meant: impl Fn(&ObjectRef) -> bool) -> Option<Timestamp> {
        self.later.iter().find(|(_, object)| is_meant(object)).map(|(at, _)| *at)
    }

    /// Looks at everything once, and then never again without a reason; schedules stand at `now`: for who asks what would be.
    #[must_use]
    pub fn for_forecast(self, now: Timestamp) -> Reconciler {
        Reconciler { next_resync: Some(Timestamp::MAX), time_of_day: Some(now), ..self }
    }

    /// Takes what the members of groups use. `groups` are those of which something new is known.
    pub fn measured(&mut self, loads: &BTreeMap<Uid, Arc<Load>>, groups: Vec<ObjectRef>) {
        self.loads.clone_from(loads);
        self.queue.extend(groups);
    }

    /// Takes what came of a step of the order of the secret with this uid.
    pub fn learned(&mut self, uid: Uid, news: Arc<News>) {
        self.news.retain(|known, _| self.view.object_of(*known).is_some());
        self.news.insert(uid, news);
        self.queue.extend(self.view.object_of(uid).cloned());
    }

    /// What came of the last step of the order of the secret with this uid, in this term.
    #[must_use]
    pub fn news_of(&self, uid: Uid) -> Option<&News> {
        self.news.get(&uid).map(Arc::as_ref)
    }

    /// Whether the view is one that may be acted upon: whatever this loop and the leader before have written is in it.
    #[must_use]
    pub fn may_act(&self) -> bool {
        !self.is_held()
    }

    /// Nothing more is planned until the feed has reached `revision`, which a linearizable read returned. Used when
    /// the outcome of a batch could not be learned.
    pub fn hold_until(&mut self, revision: u64) {
        self.hold_until = self.hold_until.max(revision);
    }

    /// Takes a newer view. `changed` are the keys that changed since the last one; `None` when that is not known,
    /// as after a new listing: then everything is woken.
    pub fn feed(&mut self, view: View, changed: Option<&[Key]>) {
        let before = std::mem::replace(&mut self.fed, view);
        match changed {
            Some(changed) => {
                for key in changed.iter().filter(|key| !self.is_own(key)).cloned().collect::<Vec<_>>() {
                    // Indexes of both views: an object that is gone can only be found in the older one.
                    self.wake(&before, &key);
                    let fed = self.fed.clone();
                    self.wake(&fed, &key);
                    if before.unreadable(&key).is_some() != fed.unreadable(&key).is_some() {
                        self.wake_bystanders();
                    }
                }
            }
            None => self.queue.extend(self.fed.objects().cloned()),
        }
        self.overlays.retain(|overlay| overlay.revision > self.fed.revision());
        if self.in_flight.is_none() {
            self.rebuild();
        }
    }

    /// A linearizable read made at `read_at` returned `revision`. It counts once the feed has come so far.
    pub fn confirm(&mut self, revision: u64, read_at: Timestamp) {
        if self.fed.revision() >= revision {
            self.read_at = Some(read_at);
        }
    }

    /// Whether the change of `key` that the feed brought is a commit of this loop, which woke everybody already.
    fn is_own(&self, key: &Key) -> bool {
        let fed = self.fed.mod_revision(key);
        let wrote = |overlay: &Overlay| overlay.writes.iter().any(|write| write.key() == key);
        match fed {
            0 => false,
            fed => self.overlays.iter().any(|overlay| overlay.revision == fed && wrote(overlay)),
        }
    }

    fn rebuild(&mut self) {
        self.view = self.fed.clone();
        for overlay in &self.overlays {
            self.view.write(overlay.writes.iter().cloned(), overlay.revision);
        }
    }

    /// Plans what is due, and returns the transaction to send; then exactly one of [`Reconciler::committed`],
    /// [`Reconciler::conflicted`] and [`Reconciler::unknown`] must follow. `None` when there is nothing to send now.
    pub fn next(&mut self, now: Timestamp, mut fresh: impl FnMut() -> u128) -> Option<Transaction> {
        if self.is_held() {
            return None;
        }
        let resynced = self.take_due(now);
        let mut batch = InFlight {
            transaction: Transaction { guards: self.session.clone(), ..Transaction::default() },
            objects: Vec::new(),
        };
        for _ in 0..PLANS_PER_TURN_MAX {
            let Some(object) = self.queue.pop_first() else { break };
            let uid = self.view.asked(&object).map(|asked| asked.meta.uid);
            let inputs = Inputs {
                now,
                fresh: fresh(),
                view_read_at: self.read_at,
                news: uid.and_then(|uid| self.news.get(&uid)).cloned(),
                load: uid.and_then(|uid| self.loads.get(&uid)).cloned(),
                time_of_day: self.time_of_day,
            };
            let Some(transaction) = self.plan_one(&object, &inputs) else { continue };
            if !fits(&batch.transaction, &transaction) {
                if batch.objects.is_empty() {
                    let problem = format!(
                        "its plan needs more than {WRITES_MAX} writes or {GUARDS_MAX} guards, or is too large"
                    );
                    self.quarantine(object.clone(), problem);
                }
                self.queue.insert(object);
                if batch.objects.is_empty() {
                    continue;
                }
                break;
            }
            // What somebody else of this turn has written may have woken it.
            let is_alone = batch.objects.iter().all(|(other, _)| resynced.contains(other));
            self.counters.resync_finds += u64::from(is_alone && resynced.contains(&object));
            self.add(&mut batch, object, transaction);
        }
        if batch.objects.is_empty() {
            return None;
        }
        self.counters.batches += 1;
        let transaction = batch.transaction.clone();
        self.in_flight = Some(batch);
        Some(transaction)
    }

    /// Moves what is due into the queue; returns what only a resync put there.
    fn take_due(&mut self, now: Timestamp) -> BTreeSet<ObjectRef> {
        while let Some((at, _)) = self.later.first() {
            if *at > now {
                break;
            }
            if let Some((_, object)) = self.later.pop_first() {
                self.later_of.remove(&object);
                self.queue.insert(object);
            }
        }
        let mut resynced = BTreeSet::new();
        if self.next_resync.is_none_or(|at| at <= now) {
            // The first resync is the loop's beginning, where everything is queued anyway.
            if self.next_resync.is_some() {
                let paused: BTreeSet<&ObjectRef> = self.later.iter().map(|(_, object)| object).collect();
                let idle = |object: &&ObjectRef| !self.queue.contains(*object) && !paused.contains(*object);
                resynced = self.view.objects().filter(idle).cloned().collect();
                self.queue.extend(resynced.iter().cloned());
            }
            self.next_resync = Some(later(now, RESYNC_PERIOD));
        }
        resynced
    }

    fn plan_one(&mut self, object: &ObjectRef, inputs: &Inputs) -> Option<Transaction> {
        self.counters.plans += 1;
        let plan = self.plan_or_quarantine(object, inputs);
        match plan.waiting_on.iter().any(waits_elsewhere) {
            true => self.bystanders.insert(object.clone()),
            false => self.bystanders.remove(object),
        };
        if let Some(again) = plan.again {
            self.look_again(later(inputs.now, again), object);
        }
        let transaction = planner::complete(&self.view, object, plan, inputs.now)?;
        self.counters.writing_plans += 1;
        Some(transaction)
    }

    fn plan_or_quarantine(&mut self, object: &ObjectRef, inputs: &Inputs) -> Plan {
        if let Some(frozen) = planner::frozen(&self.view, object) {
            return Plan::wait(frozen);
        }
        let asked = self.view.mod_revision(&Key::Asked(object.clone()));
        if let Some((at, problem)) = self.quarantined.get(object) {
            if *at == asked {
                return Plan::wait(WaitingOn::Quarantined { problem: problem.clone() });
            }
            self.quarantined.remove(object);
        }
        // A bug in one planner must not stop all others. The planner is pure, so nothing is left half changed.
        catch_unwind(AssertUnwindSafe(|| planner::plan(&self.view, object, inputs))).unwrap_or_else(|panic| {
            self.counters.panics += 1;
            let problem = panic_text(panic.as_ref());
            self.quarantine(object.clone(), problem.clone());
            Plan::wait(WaitingOn::Quarantined { problem })
        })
    }

    /// Leaves `object` alone until what is asked of it changes.
    fn quarantine(&mut self, object: ObjectRef, problem: String) {
        let asked = self.view.mod_revision(&Key::Asked(object.clone()));
        self.quarantined.insert(object, (asked, problem));
    }

    fn add(&mut self, batch: &mut InFlight, object: ObjectRef, transaction: Transaction) {
        let rests_on = transaction.guards.keys().cloned().collect();
        for (key, mod_revision) in transaction.guards {
            // What this batch writes is compared as it was before it, by the plan that wrote it.
            if mod_revision != PENDING {
                batch.transaction.guards.entry(key).or_insert(mod_revision);
            }
        }
        let before = self.view.clone();
        self.view.write(transaction.writes.values().cloned(), PENDING);
        let after = self.view.clone();
        for key in transaction.writes.keys() {
            self.wake(&before, key);
            self.wake(&after, key);
        }
        for (key, write) in transaction.writes {
            // What this batch made and removes again was never there: only the guard of its absence stays.
            match (&write, batch.transaction.guards.get(&key)) {
                (Write::Delete(_), Some(0)) => batch.transaction.writes.remove(&key),
                _ => batch.transaction.writes.insert(key, write),
            };
        }
        batch.objects.push((object, rests_on));
    }

    /// The batch was committed at `revision`.
    pub fn committed(&mut self, revision: u64) {
        let Some(batch) = self.in_flight.take() else { return };
        for (object, _) in &batch.objects {
            self.failures.remove(object);
        }
        if revision > self.fed.revision() {
            self.overlays
                .push(Overlay { revision, writes: batch.transaction.writes.into_values().collect() });
        }
        self.rebuild();
    }

    /// The batch was refused at `revision`, where the guarded keys had the revisions `current`. The objects that rest
    /// on what changed pause; the others are planned again at once, all from a view that has reached `revision`.
    pub fn conflicted(&mut self, revision: u64, current: &BTreeMap<Key, u64>, now: Timestamp) {
        let Some(batch) = self.in_flight.take() else { return };
        self.counters.conflicts += 1;
        let changed = |key: &Key| {
            batch.transaction.guards.get(key).is_some_and(|guard| current.get(key) != Some(guard))
        };
        for (object, rests_on) in &batch.objects {
            match rests_on.iter().any(changed) {
                true => self.pause(object, now),
                false => {
                    self.queue.insert(object.clone());
                }
            }
        }
        self.hold_until(revision);
        self.rebuild();
    }

    /// The batch's outcome could not be learned. `revision` is that of a linearizable read made after it: from there
    /// on the view shows whether it was committed.
    pub fn unknown(&mut self, revision: u64, now: Timestamp) {
        let Some(batch) = self.in_flight.take() else { return };
        for (object, _) in &batch.objects {
            self.pause(object, now);
        }
        self.hold_until(revision);
        self.rebuild();
    }

    /// Whether `current`, the revisions that a refused batch met, say that this loop leads no more.
    #[must_use]
    pub fn is_deposed(&self, current: &BTreeMap<Key, u64>) -> bool {
        self.session.iter().any(|(key, revision)| current.get(key).is_some_and(|found| found != revision))
    }

    fn pause(&mut self, object: &ObjectRef, now: Timestamp) {
        let failures = self.failures.entry(object.clone()).or_default();
        let factor = 1_u64.checked_shl(*failures).unwrap_or(u64::MAX);
        *failures = failures.saturating_add(1);
        let pause = BACKOFF_FIRST.millis().saturating_mul(factor).min(BACKOFF_LIMIT.millis());
        self.look_again(later(now, Span::from_millis(pause)), object);
    }

    /// Plans `object` at `at`, or sooner if that was asked for already: its plan then says anew when to look again.
    fn look_again(&mut self, at: Timestamp, object: &ObjectRef) {
        let known = self.later_of.get(object).copied();
        if known.is_some_and(|known| known <= at) {
            return;
        }
        if let Some(known) = known {
            self.later.remove(&(known, object.clone()));
        }
        self.later.insert((at, object.clone()));
        self.later_of.insert(object.clone(), at);
    }
}

fn fits(batch: &Transaction, more: &Transaction) -> bool {
    let guards = more
        .guards
        .iter()
        .filter(|(key, revision)| **revision != PENDING && !batch.guards.contains_key(*key));
    let writes = more.writes.keys().filter(|key| !batch.writes.contains_key(*key));
    let bytes =
        |transaction: &Transaction| -> usize { transaction.writes.values().map(Write::large_bytes).sum() };
    batch.guards.len() + guards.count() <= GUARDS_MAX
        && batch.writes.len() + writes.count() <= WRITES_MAX
        && bytes(batch) + bytes(more) <= LARGE_BYTES_MAX
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a text".to_owned());
    text.chars().take(PANIC_TEXT_LENGTH_MAX).collect()
}
