//! Planners: one for each kind, each a pure function from a snapshot to one plan.
//!
//! A planner is not told what changed. It compares what is asked with what is decided, assigned and observed, and
//! says what to write next and what it waits for. [`complete`] turns its plan into a guarded transaction; there it
//! is decided, once for all kinds, how conditions are kept and what is guarded.
//!
//! **Adding a kind**: a file beside this one with `pub fn plan(view, object, inputs) -> Plan`. The list of kinds in
//! `lightbyte_api::for_each_kind` finds it.

use std::sync::Arc;

use lightbyte_api::assigned::HostObject;
use lightbyte_api::object::{Meta, ObjectRef};
use lightbyte_api::waiting::Waiting;
use lightbyte_api::{Choice, Decided, Key, Kind, Span, Timestamp, Uid, WaitingOn, WorkerId};

use crate::load::Load;
use crate::transaction::{Transaction, Write};
use crate::view::View;

macro_rules! define_planners {
    ($($Kind:ident $module:ident $short:literal;)*) => {
        $(pub mod $module;)*

        /// Plans the next step of one object. Pure: the same view and inputs give the same plan.
        #[must_use]
        pub fn plan(view: &View, object: &ObjectRef, inputs: &Inputs) -> Plan {
            match object.kind { $(Kind::$Kind => $module::plan(view, object, inputs),)* }
        }
    };
}
lightbyte_api::for_each_kind!(define_planners);

mod copies;
mod disk;
pub(crate) mod moves;

/// What a planner may use besides the view.
#[derive(Clone, Debug)]
pub struct Inputs {
    /// The time, on the leader's clock.
    pub now: Timestamp,
    /// A number that nobody else has: where fresh uids come from.
    pub fresh: u128,
    /// When the linearizable read was made that the view has reached since, on the leader's clock. What may take something
    /// away from people rests on a view that is known to be young.
    pub view_read_at: Option<Timestamp>,
    /// What the members of the group that is planned use, as far as it was measured.
    pub load: Option<Arc<Load>>,
    /// What came of the last step of the order of the secret that is planned.
    pub news: Option<Arc<secret::acme::News>>,
    /// The time that schedules go by, where that is not `now`: who asks what a change would do looks into no other day.
    pub time_of_day: Option<Timestamp>,
}

/// The greatest age of a view that an available member of a group is retired on.
pub const VIEW_AGE_MAX: Span = Span::from_millis(1_000);

/// When a plan that needs a younger view is made again.
pub const STALE_PAUSE: Span = Span::from_millis(250);

impl Inputs {
    /// What there is without a leader: the time, and a number that nobody else has.
    #[must_use]
    pub const fn at(now: Timestamp, fresh: u128) -> Inputs {
        Inputs { now, fresh, view_read_at: None, load: None, news: None, time_of_day: None }
    }

    /// The fresh uid number `index` of this plan.
    #[must_use]
    pub const fn uid(&self, index: u64) -> Uid {
        // Fresh numbers are drawn far apart (they are UUIDs), so neighbours are free.
        Uid::from_bits(self.fresh.wrapping_add(index as u128))
    }

    /// Whether the view is young enough to retire what it shows as one of many.
    #[must_use]
    pub fn view_is_fresh(&self) -> bool {
        // A read that is yet to come was made before somebody set the clock back.
        self.view_read_at.is_some_and(|at| at <= self.now && since(at, self.now) < VIEW_AGE_MAX)
    }
}

/// How long ago `at` was; nothing when it is yet to come, as on a clock that runs ahead.
#[must_use]
pub fn since(at: Timestamp, now: Timestamp) -> Span {
    let millis = now.as_millisecond().saturating_sub(at.as_millisecond());
    Span::from_millis(u64::try_from(millis).unwrap_or(0))
}

/// The time `span` after `at`; the last of all when there is no such time.
#[must_use]
pub fn later(at: Timestamp, span: Span) -> Timestamp {
    at.checked_add(span.duration()).unwrap_or(Timestamp::MAX)
}

/// What a planner decided. One plan is one transaction: all or nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Keys of other objects that the plan rests on, absent or present. The object's own keys and all written keys
    /// are guarded without being named here.
    pub rests_on: Vec<Key>,
    /// What to write, besides the decision itself.
    pub writes: Vec<Write>,
    /// A new choice, to be kept with the conditions under `decided/`.
    pub choice: Option<Choice>,
    /// Whether the object is at its end: `asked/` and `decided/` are removed.
    pub ends: bool,
    /// Why the object is not yet what was asked. Becomes its condition.
    pub waiting_on: Vec<WaitingOn>,
    /// When to look again; only for waits on time. Everything else is a watch.
    pub again: Option<Span>,
}

impl Plan {
    /// Nothing to do, nothing to wait for.
    #[must_use]
    pub fn rest() -> Plan {
        Plan::default()
    }

    /// Nothing to do but wait.
    #[must_use]
    pub fn wait(reason: WaitingOn) -> Plan {
        Plan { waiting_on: vec![reason], ..Plan::default() }
    }

    /// The object's end.
    #[must_use]
    pub fn end() -> Plan {
        Plan { ends: true, ..Plan::default() }
    }
}

/// The keys of an object that every plan for it rests on.
fn own_keys(view: &View, object: &ObjectRef) -> Vec<Key> {
    let mut keys = vec![Key::Asked(object.clone()), Key::Decided(object.clone())];
    if let (Some(asked), Some(worker)) = (view.asked(object), worker_of(view, object)) {
        let host_object = HostObject::of(object.kind, asked.meta.uid);
        for worker in std::iter::once(worker).chain(elsewhere_of(view, object)) {
            keys.push(Key::Assigned(worker, host_object));
            keys.push(Key::Observed(worker, host_object));
        }
    }
    keys
}

/// The worker that an object was placed on.
#[must_use]
pub fn worker_of(view: &View, object: &ObjectRef) -> Option<WorkerId> {
    match &view.decided(object)?.choice {
        Choice::Vm(choice) => choice.placement.as_ref().map(|placement| placement.worker),
        Choice::Volume(choice) => choice.worker,
        Choice::Snapshot(choice) => choice.worker,
        // Most kinds are nowhere.
        _ => None,
    }
}

/// The one other worker that has something of an object.
#[must_use]
pub fn elsewhere_of(view: &View, object: &ObjectRef) -> Option<WorkerId> {
    match &view.decided(object)?.choice {
        Choice::Volume(choice) => choice.elsewhere,
        Choice::Snapshot(choice) => choice.elsewhere,
        _ => None,
    }
}

/// Why nothing may be done for `object`: a value that it depends on cannot be read by this version. The keys looked
/// at are its own, and what is asked of the objects that it names. Its end needs no image: what was copied from one stands
/// for itself; but a network's addresses are still to be given back.
#[must_use]
pub fn frozen(view: &View, object: &ObjectRef) -> Option<WaitingOn> {
    let asked = view.asked(object);
    let ends = asked.is_some_and(|asked| asked.meta.deleting_since.is_some());
    let mut named = asked.map(|asked| asked.spec.references()).unwrap_or_default();
    named.retain(|object| !(ends && object.kind == Kind::Image));
    let owner = asked.and_then(|asked| asked.meta.owner.clone()).map(|owner| owner.object);
    let of_others = named.into_iter().map(Key::Asked);
    let of_owner = owner.into_iter().flat_map(|owner| [Key::Asked(owner.clone()), Key::Decided(owner)]);
    own_keys(view, object)
        .into_iter()
        .chain(of_others)
        .chain(of_owner)
        .find(|key| view.unreadable(key).is_some())
        .map(|key| WaitingOn::Unreadable { key: key.to_string() })
}

/// Turns a plan into a transaction: adds the object's own keys to the guards, keeps conditions with the time since
/// when they hold, and writes the decision only when it changed. `None` when there is nothing to write.
#[must_use]
pub fn complete(view: &View, object: &ObjectRef, plan: Plan, now: Timestamp) -> Option<Transaction> {
    let asked = view.asked(object)?;
    let decided_key = Key::Decided(object.clone());
    if view.unreadable(&decided_key).is_some() {
        // A condition written here would wipe a choice that a newer version made.
        return None;
    }
    let mut writes = plan.writes;
    if plan.ends {
        writes.push(Write::Delete(Key::Asked(object.clone())));
        if view.contains(&decided_key) {
            writes.push(Write::Delete(decided_key));
        }
    } else {
        let before = view.decided(object);
        let after = Decided {
            uid: asked.meta.uid,
            at_rest_since: at_rest_since(before.map(AsRef::as_ref), &plan.waiting_on, now),
            waiting_on: conditions(before.map_or(&[], |decided| &decided.waiting_on), plan.waiting_on, now),
            choice: plan
                .choice
                .or_else(|| before.map(|decided| decided.choice.clone()))
                .unwrap_or_else(|| Choice::none(object.kind)),
        };
        let is_empty = after.waiting_on.is_empty() && after.choice == Choice::none(object.kind);
        match before {
            None if is_empty => {}
            Some(before) if **before == after => {}
            _ => writes.push(Write::put(decided_key, after)),
        }
    }
    if writes.is_empty() {
        return None;
    }
    Some(Transaction::on(view, own_keys(view, object).into_iter().chain(plan.rests_on), writes))
}

/// Since when it waits for nothing; only noted of what has waited.
fn at_rest_since(before: Option<&Decided>, waiting_on: &[WaitingOn], now: Timestamp) -> Option<Timestamp> {
    let before = before.filter(|_| waiting_on.is_empty())?;
    if before.waiting_on.is_empty() { before.at_rest_since } else { Some(now) }
}

/// The new conditions; those that held before keep their beginning.
fn conditions(before: &[Waiting], after: Vec<WaitingOn>, now: Timestamp) -> Vec<Waiting> {
    let since =
        |on: &WaitingOn| before.iter().find(|waiting| waiting.on == *on).map_or(now, |waiting| waiting.since);
    after.into_iter().map(|on| Waiting { since: since(&on), on }).collect()
}

/// The end of an object that nothing on any worker belongs to: it waits until nobody names it.
fn end_when_unused(view: &View, object: &ObjectRef, meta: &Meta) -> Plan {
    if meta.deleting_since.is_none() {
        return Plan::rest();
    }
    // An object that cannot be read may be a user.
    if let Some(key) = view.unreadable_asked().next() {
        return Plan::wait(WaitingOn::Unreadable { key: key.to_string() });
    }
    // Whoever begins to use it guards what is asked of it, which has changed since the end was asked for. So every
    // user is in this view, or its transaction fails.
    match view.referrers(object).next() {
        Some(user) => Plan::wait(WaitingOn::InUse { by: user.clone() }),
        None => Plan::end(),
    }
}
