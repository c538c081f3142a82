//! What would be: the shipped reconciler on a fork of the view, with workers to whom everything succeeds, until nothing is
//! left to do.
//!
//! ```text
//!   view ──> fork + changes ──> Reconciler ──> fork ──> ideal workers ──> fork ──> … ──> at rest
//!                                    └────────── steps, groups, what waits ──────────────┘
//! ```
//!
//! The same deciders run as for the real thing, so a forecast and what then happens differ only where hosts do: in what
//! fails, and in how long things take. Nothing is written anywhere else.

mod fork;
mod ideal;
mod steps;

use std::collections::BTreeMap;

use lightbyte_api::object::ObjectRef;
use lightbyte_api::observed::{BootTimes, Observed};
use lightbyte_api::wire::{Loss, RolloutStep};
use lightbyte_api::{Key, Kind, Manifest, Name, Span, Timestamp, WaitingOn};
use serde::{Deserialize, Serialize};

use self::fork::Fork;
use self::ideal::IdealWorkers;
pub use self::steps::{What, between};
use crate::load;
use crate::planner::{later, scalegroup, since};
use crate::reconciler::Reconciler;
use crate::request::{self, Refusal};
use crate::room;
use crate::view::View;

/// How long deciders may pause before that counts as rest: longer than any group waits for anything.
const PAUSE_MAX: Span = Span::from_secs(25 * 3_600);
/// How far a forecast looks: where something fails time and again, it would never end.
const HORIZON: Span = Span::from_secs(7 * 24 * 3_600);
/// How many steps are told.
pub const STEPS_TOLD_MAX: usize = 10_000;
/// What a boot is taken to last where none was measured.
pub const BOOT_ASSUMED: Span = Span::from_secs(10);
/// How many measured boots are looked at.
const BOOTS_LOOKED_AT_MAX: usize = 1_000;

/// What would be done first.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// A manifest is made true.
    Apply(Manifest),
    /// The end of an object is asked for.
    Delete(ObjectRef),
    /// A worker goes away and does not come back.
    Lose(ObjectRef),
    /// The update of a group is steered.
    Rollout(ObjectRef, RolloutStep),
}

/// What a forecast rests on besides the view.
#[derive(Clone, Copy, Debug)]
pub struct Context {
    /// The time.
    pub now: Timestamp,
    /// A number that nobody else has: where the uids of what is made come from.
    pub fresh: u128,
    /// What a boot is taken to last; see [`boot_estimate`].
    pub boot: BootEstimate,
}

/// What would be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Forecast {
    /// The revision that it starts from.
    pub revision: u64,
    /// What happens, in order; at most [`STEPS_TOLD_MAX`].
    pub steps: Vec<Step>,
    /// How many more steps there are.
    #[serde(default)]
    pub steps_untold: usize,
    /// How many steps would be taken without the change too: the cluster is not at rest.
    pub steps_anyway: usize,
    /// The groups that something happens to.
    pub groups: Vec<GroupForecast>,
    /// What is not as asked in the end.
    pub unmet: Vec<Unmet>,
    /// How long it takes, as far as boots that were measured tell. An estimate.
    pub takes: Span,
    /// What a boot is taken to last.
    pub boot: BootEstimate,
    /// Whether it comes to rest at all, within what a forecast looks at.
    pub comes_to_rest: bool,
    /// Workers that are alive, and of which not everything can be read: what they would do is not known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unforeseen: Vec<Name>,
    /// The groups that something happens to and that scale by their load: it is not known, and their size taken to stay.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scale_by_load: Vec<ObjectRef>,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// How long after the beginning; an estimate.
    pub at: Span,
    /// What it happens to.
    pub object: ObjectRef,
    /// What happens.
    #[serde(flatten)]
    pub what: What,
    /// How many members of its group are available then, if it is of one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub available: Option<usize>,
}

/// What becomes of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupForecast {
    /// The group.
    pub group: ObjectRef,
    /// How many members are available now.
    pub before: usize,
    /// How many are at the least.
    pub lowest: usize,
    /// How many are in the end.
    pub after: usize,
}

/// Something that is not as asked in the end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Unmet {
    /// What.
    pub object: ObjectRef,
    /// What it waits for.
    pub waiting_on: Vec<WaitingOn>,
    /// The same in words.
    pub because: Vec<String>,
    /// What a person can do.
    pub hints: Vec<String>,
    /// Whether it would wait for the same without the change.
    pub anyway: bool,
}

impl Unmet {
    /// Whether all that it waits for is what `before` waited for too.
    fn is_of(&self, before: &Unmet) -> bool {
        self.object == before.object && self.waiting_on.iter().all(|on| before.waiting_on.contains(on))
    }

    /// Whether it goes on as soon as a person says so.
    #[must_use]
    pub fn is_a_question(&self) -> bool {
        self.waiting_on.iter().any(|on| matches!(on, WaitingOn::Promotion { .. } | WaitingOn::Paused { .. }))
    }
}

/// What a boot is taken to last, and what that rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootEstimate {
    /// From the start of a machine to a guest that is ready.
    pub lasts: Span,
    /// Of how many measured boots that is the median; of none it is assumed.
    pub measured: usize,
}

/// Tells what would be after `changes`. When nobody waits for it any more, it ends where it is.
///
/// # Errors
/// [`Refusal`], when a change would be refused. The changes are made in their order.
pub fn forecast(
    view: &View,
    changes: &[Change],
    context: &Context,
    is_wanted: &dyn Fn() -> bool,
) -> Result<Forecast, Refusal> {
    let anyway = Course::begin(view, context).run(is_wanted);
    let unmet_anyway = unmet(anyway.fork.view());
    let steps_anyway = anyway.steps.len() + anyway.steps_untold;
    // Where nothing happens anyway, everything has been looked at already, and it goes on from there.
    let course = if anyway.is_where_it_began() { anyway } else { Course::begin(view, context) };
    Ok(course.with(changes)?.run(is_wanted).told(&unmet_anyway, steps_anyway))
}

/// The view in which a forecast with `changes` ends.
///
/// # Errors
/// As of [`forecast`].
pub fn end_of(view: &View, changes: &[Change], context: &Context) -> Result<View, Refusal> {
    Ok(Course::begin(view, context).with(changes)?.run(&|| true).fork.view().clone())
}

/// What [`room::losses`] would then be worse by: the worst loss of one worker that would leave more members of groups without a
/// place than it would now. `None` when nobody waited for the answer any more.
///
/// # Errors
/// As of [`forecast`].
pub fn worse_loss(
    view: &View,
    changes: &[Change],
    context: &Context,
    is_wanted: &dyn Fn() -> bool,
) -> Result<Option<Option<Loss>>, Refusal> {
    let course = Course::begin(view, context).with(changes)?.run(is_wanted);
    let end = course.fork.view();
    Ok(is_wanted().then(|| room::worsened(&room::losses(view), &room::losses(end))))
}

/// The median of the boots that workers have reported.
#[must_use]
pub fn boot_estimate(view: &View) -> BootEstimate {
    let workers = view.objects_of(Kind::Worker).filter_map(|object| view.worker_id(object));
    let reports = workers.flat_map(|worker| {
        view.observed_by(worker).filter_map(move |object| match view.observed(worker, object)?.as_ref() {
            Observed::Vm(observed) => observed.boot,
            Observed::Volume(_) | Observed::Worker(_) => None,
        })
    });
    let lasts = |boot: BootTimes| boot.vmm_to_agent + boot.agent_to_ready;
    let mut boots: Vec<u64> = reports.map(lasts).take(BOOTS_LOOKED_AT_MAX).collect();
    boots.sort_unstable();
    let median = boots.get(boots.len() / 2).map_or(BOOT_ASSUMED, |millis| Span::from_millis(*millis));
    BootEstimate { lasts: median, measured: boots.len() }
}

/// A forecast in the making.
struct Course {
    /// What it starts from, without the changes.
    origin: View,
    fork: Fork,
    reconciler: Reconciler,
    workers: IdealWorkers,
    boot: BootEstimate,
    began_at: Timestamp,
    last_at: Timestamp,
    fresh: u128,
    steps: Vec<Step>,
    steps_untold: usize,
    groups: BTreeMap<ObjectRef, GroupForecast>,
    /// Whether it was ended before its end.
    is_cut: bool,
}

impl Course {
    fn begin(view: &View, context: &Context) -> Course {
        let fork = Fork::of(view, context.now);
        Course {
            origin: view.clone(),
            workers: IdealWorkers::begin(&fork, context.boot.lasts),
            reconciler: Reconciler::new(BTreeMap::new(), view.clone()).for_forecast(context.now),
            fork,
            boot: context.boot,
            began_at: context.now,
            last_at: context.now,
            fresh: context.fresh,
            steps: Vec::new(),
            steps_untold: 0,
            groups: BTreeMap::new(),
            is_cut: false,
        }
    }

    /// Whether nothing has happened, and no time has passed.
    fn is_where_it_began(&self) -> bool {
        self.fork.view().revision() == self.origin.revision() && self.fork.now() == self.began_at
    }

    /// Makes `changes`, in their order.
    fn with(mut self, changes: &[Change]) -> Result<Course, Refusal> {
        for change in changes {
            self.fresh = next_fresh(self.fresh);
            make(&mut self.fork, change, self.fresh)?;
        }
        let before = self.origin.clone();
        self.spread(&before);
        // What is on a lost worker is relied on no more, though nothing of it has changed; and another `ready_for` makes
        // members young that were not.
        let loses = changes.iter().any(|change| matches!(change, Change::Lose(_)));
        let groups = self.origin.objects_of(Kind::ScaleGroup);
        let is_concerned = |group: &&ObjectRef| {
            loses
                || changes
                    .iter()
                    .any(|change| matches!(change, Change::Apply(new) if new.object() == **group))
        };
        for group in groups.filter(is_concerned).cloned().collect::<Vec<_>>() {
            let is_told = self.groups.contains_key(&group);
            self.count(&group);
            if !is_told {
                self.groups.retain(|name, told| *name != group || told.lowest < told.before);
            }
        }
        Ok(self)
    }

    /// Notes what has changed since `before`, and tells it to everybody.
    fn spread(&mut self, before: &View) {
        let changed = self.fork.take_changed();
        self.note(before, &changed);
        self.workers.deliver(&self.fork, before, &changed);
        self.reconciler.feed(self.fork.view().clone(), Some(&changed));
    }

    /// Runs until nothing is left to do, or nobody waits for it.
    fn run(mut self, is_wanted: &dyn Fn() -> bool) -> Course {
        loop {
            let before = self.fork.view().clone();
            self.workers.turn(&mut self.fork);
            self.spread(&before);
            if self.fork.is_spent() || !is_wanted() {
                self.is_cut = true;
                return self;
            }
            if self.decide() {
                continue;
            }
            let Some(at) = self.next() else { return self };
            if since(self.began_at, at) > HORIZON {
                self.is_cut = true;
                return self;
            }
            self.fork.pass_to(at);
        }
    }

    /// When something happens next. Copies of volumes are made for ever, and nobody waits for them; what an authority makes of an
    /// order is not foreseen, so it is not waited for either.
    fn next(&self) -> Option<Timestamp> {
        let pause =
            self.reconciler.next_pause_ends(|object| !matches!(object.kind, Kind::Volume | Kind::Secret));
        let pause = pause.filter(|at| since(self.last_at, *at) < PAUSE_MAX);
        self.workers.next_due().into_iter().chain(pause).min()
    }

    /// Lets the reconciler decide once; false when it has nothing more to write now.
    fn decide(&mut self) -> bool {
        let now = self.fork.now();
        self.reconciler.confirm(self.fork.view().revision(), now);
        loop {
            let plans = self.reconciler.counters().plans;
            let fresh = &mut self.fresh;
            let batch = self.reconciler.next(now, || {
                *fresh = next_fresh(*fresh);
                *fresh
            });
            let made = self.reconciler.counters().plans - plans;
            self.fork.spend(made);
            if let Some(batch) = batch {
                let before = self.fork.view().clone();
                let revision = self.fork.commit(batch);
                self.reconciler.committed(revision);
                self.spread(&before);
                return true;
            }
            if self.reconciler.is_idle() || self.reconciler.counters().plans == plans {
                return false;
            }
        }
    }

    /// Notes what has happened since `before`.
    fn note(&mut self, before: &View, changed: &[Key]) {
        if changed.is_empty() {
            return;
        }
        let after = self.fork.view().clone();
        let happened = between(before, &after, changed);
        let at = since(self.began_at, self.fork.now());
        if !happened.is_empty() {
            self.last_at = self.fork.now();
        }
        let mut available = BTreeMap::new();
        for group in changed.iter().filter_map(|key| group_of(before, &after, key)) {
            if !available.contains_key(&group) {
                available.insert(group.clone(), self.count(&group));
            }
        }
        for (object, what) in happened {
            if self.steps.len() == STEPS_TOLD_MAX {
                self.steps_untold += 1;
                continue;
            }
            let group = after.group_of(&object).or_else(|| before.group_of(&object));
            let available = group.and_then(|group| available.get(group).copied());
            self.steps.push(Step { at, object, what, available });
        }
    }

    /// How many members of `group` are available now.
    fn count(&mut self, group: &ObjectRef) -> usize {
        let now = scalegroup::available(self.fork.view(), group, self.fork.now());
        let forecast = self.groups.entry(group.clone()).or_insert_with(|| {
            let before = scalegroup::available(&self.origin, group, self.began_at);
            GroupForecast { group: group.clone(), before, lowest: before, after: now }
        });
        forecast.lowest = forecast.lowest.min(now);
        forecast.after = now;
        now
    }

    fn told(mut self, unmet_anyway: &[Unmet], steps_anyway: usize) -> Forecast {
        let now = self.fork.now();
        let is_told = |group: &GroupForecast| self.origin.asked(&group.group).is_some();
        for group in self.groups.values_mut() {
            // Time alone makes those that are young available.
            group.after = scalegroup::available(self.fork.view(), &group.group, later(now, PAUSE_MAX));
        }
        let mut unmet = unmet(self.fork.view());
        let unforeseen = self.workers.unforeseen().iter().copied();
        let unforeseen: Vec<Name> =
            unforeseen.filter_map(|worker| Some(self.origin.object_of(worker.uid())?.name.clone())).collect();
        let groups: Vec<GroupForecast> = self.groups.into_values().filter(is_told).collect();
        let scales = |group: &&GroupForecast| load::scales_by_it(self.fork.view(), &group.group);
        let scale_by_load = groups.iter().filter(scales).map(|group| group.group.clone()).collect();
        for found in &mut unmet {
            found.anyway = unmet_anyway.iter().any(|other| found.is_of(other));
        }
        Forecast {
            revision: self.origin.revision(),
            steps_untold: self.steps_untold,
            steps_anyway,
            groups,
            scale_by_load,
            unmet,
            takes: since(self.began_at, self.last_at),
            boot: self.boot,
            comes_to_rest: !self.is_cut && unforeseen.is_empty(),
            unforeseen,
            steps: self.steps,
        }
    }
}

/// Fresh numbers are far apart: their neighbours are free.
const fn next_fresh(fresh: u128) -> u128 {
    fresh.wrapping_add(1 << 32)
}

fn make(fork: &mut Fork, change: &Change, fresh: u128) -> Result<(), Refusal> {
    let context =
        request::Context { now: fork.now(), uid: lightbyte_api::Uid::from_bits(fresh), if_match: None };
    let outcome = match change {
        Change::Apply(manifest) => request::apply(fork.view(), manifest, &context)?,
        Change::Delete(object) => request::delete(fork.view(), object, &context)?,
        Change::Rollout(group, step) => request::rollout(fork.view(), group, *step, &context)?,
        Change::Lose(worker) => {
            let id =
                fork.view().worker_id(worker).ok_or_else(|| Refusal::NotFound { object: worker.clone() })?;
            fork.drop_key(Key::Alive(id));
            return Ok(());
        }
    };
    if let Some(transaction) = outcome.transaction() {
        fork.commit(transaction);
    }
    Ok(())
}

/// The group that a change of `key` may make stronger or weaker.
fn group_of(before: &View, after: &View, key: &Key) -> Option<ObjectRef> {
    let object = match key {
        Key::Asked(object) | Key::Decided(object) => object.clone(),
        Key::Assigned(_, on_host) | Key::Observed(_, on_host) => {
            after.object_of(on_host.uid).or_else(|| before.object_of(on_host.uid))?.clone()
        }
        _ => return None,
    };
    after.group_of(&object).or_else(|| before.group_of(&object)).cloned()
}

/// What is not as asked, and why. A member on a worker that is away is missed by nobody whose group has made it again.
fn unmet(view: &View) -> Vec<Unmet> {
    let waits = |object: &ObjectRef| {
        let waiting_on = &view.decided(object).filter(|decided| !decided.waiting_on.is_empty())?.waiting_on;
        Some(waiting_on.iter().map(|waiting| waiting.on.clone()).collect::<Vec<WaitingOn>>())
    };
    let is_replaced = |object: &ObjectRef, waiting_on: &[WaitingOn]| {
        let is_away = waiting_on.iter().all(|on| matches!(on, WaitingOn::WorkerAway { .. }));
        is_away && view.group_of(object).is_some_and(|group| waits(group).is_none())
    };
    let found = view.objects().filter_map(|object| {
        let waiting_on = waits(object).filter(|waiting_on| !is_replaced(object, waiting_on))?;
        let because = waiting_on.iter().map(ToString::to_string).collect();
        let hints = waiting_on.iter().map(WaitingOn::hint).collect();
        Some(Unmet { object: object.clone(), waiting_on, because, hints, anyway: false })
    });
    found.collect()
}
