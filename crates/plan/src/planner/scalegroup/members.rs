//! The members of a group as a view shows them.

use std::sync::Arc;

use lightbyte_api::assigned::{Assigned, AssignedVm, HostObject, WantedVm};
use lightbyte_api::kinds::scalegroup::{RetiredFor, Spec as GroupSpec};
use lightbyte_api::kinds::vm::Placement;
use lightbyte_api::object::Asked;
use lightbyte_api::observed::{ObservedVm, VmPhase};
use lightbyte_api::{Key, Kind, ObjectRef, Span, Spec, Timestamp, Uid, WaitingOn, WorkerId};

use super::steps::{Seat, Service};
use crate::planner::{moves, since, vm, worker};
use crate::places::Place;
use crate::view::View;

/// A member that ended by itself so often since it was placed, and does not serve, has failed whatever the time.
const RESTARTS_MAX: u64 = 5;

/// A member.
pub(super) struct Member<'a> {
    pub(super) object: &'a ObjectRef,
    pub(super) asked: &'a Asked,
    /// The version that it is made of.
    pub(super) version: u64,
    /// The number in its name.
    pub(super) number: u64,
    pub(super) worker: Option<WorkerId>,
    pub(super) state: State,
    /// Whose place it has, in a group that keeps volumes.
    pub(super) slot: Option<u64>,
    /// Why it goes whatever its version, if it does.
    pub(super) leaves: Option<RetiredFor>,
    /// Whether a VM with a higher priority is promised its room.
    pub(super) preempted: bool,
}

/// What is known of a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// It has no worker yet.
    Unplaced,
    /// Its worker says, of what is assigned now, that it does not serve.
    Bad(Trouble),
    /// It serves, and not yet for as long as is asked.
    Young {
        /// How long it is until it is available.
        left: Span,
    },
    /// It is available.
    Available,
    /// Its worker is lost: it may serve still, and is not relied on.
    Lost,
    /// Nobody can say.
    Unknown,
}

/// What is wrong with a member that does not serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Trouble {
    /// For how long it has been as it is.
    pub(super) lasts: Span,
    /// Whether it ended by itself.
    pub(super) ended: bool,
    /// Whether it did so time and again.
    pub(super) ends_always: bool,
    /// What it waits for.
    pub(super) reason: Option<WaitingOn>,
    /// Whether a volume that is attached to it is what hinders it.
    pub(super) of_volume: bool,
}

impl Trouble {
    /// Whether another one in its place may fare better. It would wait for the same address, image or network, and have the same
    /// volumes.
    pub(super) fn may_be_cured(&self) -> bool {
        let by_another = matches!(
            self.reason,
            Some(
                WaitingOn::Worker { .. }
                    | WaitingOn::WorkerProblem { .. }
                    | WaitingOn::CrashLoop { .. }
                    | WaitingOn::Health { .. }
                    | WaitingOn::Off
            )
        );
        by_another && !self.of_volume
    }
}

impl Member<'_> {
    pub(super) const fn service(&self) -> Service {
        match self.state {
            State::Unplaced | State::Bad(_) => Service::None,
            State::Young { .. } => Service::Young,
            State::Available => Service::Available,
            State::Lost | State::Unknown => Service::Unknown,
        }
    }

    /// Why it is to be replaced though it may work, when all members are to be of `target`.
    pub(super) fn outdated(&self, target: Option<u64>) -> Option<RetiredFor> {
        if self.leaves.is_some() {
            return self.leaves;
        }
        target.filter(|target| *target != self.version).map(|_| RetiredFor::Update)
    }

    /// The keys that say that it does not serve.
    pub(super) fn rests_on(&self) -> Vec<Key> {
        let host_object = HostObject { kind: Kind::Vm, uid: self.asked.meta.uid };
        let mut keys = vec![Key::Decided(self.object.clone())];
        if let Some(worker) = self.worker {
            keys.extend([
                Key::Assigned(worker, host_object),
                Key::Observed(worker, host_object),
                Key::Alive(worker),
            ]);
        }
        keys
    }
}

/// The members of `group` that are not being deleted, in the order in which they were made.
pub(super) fn living<'a>(
    view: &'a View,
    group: &Asked,
    spec: &GroupSpec,
    now: Timestamp,
) -> Vec<Member<'a>> {
    // A proxy serves once it has been told what to do.
    let is_proxy = group.meta.owner.as_ref().is_some_and(|owner| owner.object.kind == Kind::LoadBalancer);
    let children = view.children(group.meta.uid).filter(|child| child.kind == Kind::Vm);
    let mut members: Vec<Member<'a>> = children
        .filter_map(|object| {
            let asked = view.living(object)?;
            let worker = vm::placement(view, object).map(|placement| placement.worker);
            Some(Member {
                object,
                asked,
                version: asked.meta.owner.as_ref().and_then(|owner| owner.version).unwrap_or(0),
                number: number_of(object).unwrap_or(0),
                worker,
                state: state(view, object, asked, (spec.update.ready_for, is_proxy), now),
                slot: slot_of(asked),
                leaves: why_it_leaves(view, asked, worker),
                preempted: worker.is_some_and(|worker| is_promised(view, worker, asked.meta.uid)),
            })
        })
        .collect();
    members.sort_by_key(|member| member.number);
    members
}

/// Whose place a member has.
pub(super) fn slot_of(asked: &Asked) -> Option<u64> {
    asked.meta.owner.as_ref()?.slot
}

/// Whether another VM would be made elsewhere in place of this one: it is a member of a group, and has no volumes that are kept.
#[must_use]
pub(crate) fn is_made_again(asked: &Asked) -> bool {
    asked.meta.group().is_some() && slot_of(asked).is_none()
}

/// Why a member goes though it is of the right version. One whose volumes are kept is where they are, so it leaves no worker
/// before they do.
fn why_it_leaves(view: &View, asked: &Asked, worker: Option<WorkerId>) -> Option<RetiredFor> {
    if asked.meta.replace {
        return Some(RetiredFor::Request);
    }
    if slot_of(asked).is_none() {
        return worker.is_some_and(|worker| is_emptied(view, worker)).then_some(RetiredFor::Drain);
    }
    // Who only waits for the volume is not in its way.
    worker?;
    let references = asked.spec.references();
    let mut volumes = references.iter().filter(|object| object.kind == Kind::Volume);
    volumes.any(|volume| moves::waits_for_holder(view, volume)).then_some(RetiredFor::Move)
}

/// Numbers for zones, racks and workers, in the order in which they are met.
#[derive(Default)]
pub(super) struct Seats {
    zones: Vec<Option<Arc<str>>>,
    racks: Vec<Place>,
    workers: Vec<WorkerId>,
}

impl Seats {
    /// Where `member` is. Those without a worker are together nowhere.
    pub(super) fn of(&mut self, view: &View, member: &Member<'_>) -> Seat {
        let nowhere = usize::MAX;
        let Some(worker) = member.worker else { return Seat { zone: nowhere, rack: nowhere, worker: nowhere } };
        let place = view.place_of(worker);
        Seat {
            zone: number_in(&mut self.zones, place.zone.clone()),
            rack: number_in(&mut self.racks, place),
            worker: number_in(&mut self.workers, worker),
        }
    }
}

fn number_in<T: PartialEq>(known: &mut Vec<T>, one: T) -> usize {
    known.iter().position(|other| *other == one).unwrap_or_else(|| {
        known.push(one);
        known.len() - 1
    })
}

/// The number in a member's name.
fn number_of(member: &ObjectRef) -> Option<u64> {
    member.name.as_str().rsplit('-').next()?.parse().ok()
}

/// Whether members of `group` could have the name of `object`.
pub(crate) fn is_named_like_member(group: &ObjectRef, object: &ObjectRef) -> bool {
    let rest = object.name.as_str().strip_prefix(group.name.as_str()).and_then(|rest| rest.strip_prefix('-'));
    object.kind == Kind::Vm
        && rest.is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()))
}

fn is_promised(view: &View, worker: WorkerId, member: Uid) -> bool {
    let promised = view.worker_ledger(worker).and_then(|ledger| ledger.promised.as_ref());
    promised.is_some_and(|promise| promise.from.contains(&member))
}

fn is_emptied(view: &View, worker: WorkerId) -> bool {
    let asked = view.object_of(worker.uid()).and_then(|object| view.asked(object));
    asked.is_some_and(|asked| {
        let draining = matches!(&asked.spec, Spec::Worker(spec) if spec.draining);
        draining || asked.meta.deleting_since.is_some()
    })
}

fn state(
    view: &View,
    object: &ObjectRef,
    asked: &Asked,
    (ready_for, is_proxy): (Span, bool),
    now: Timestamp,
) -> State {
    let decided_key = Key::Decided(object.clone());
    if view.unreadable(&decided_key).is_some() {
        return State::Unknown;
    }
    let Some(placement) = vm::placement(view, object) else { return State::Unplaced };
    let host_object = HostObject { kind: Kind::Vm, uid: asked.meta.uid };
    let worker = placement.worker;
    let keys = [Key::Assigned(worker, host_object), Key::Observed(worker, host_object), Key::Alive(worker)];
    if keys.iter().any(|key| view.unreadable(key).is_some()) {
        return State::Unknown;
    }
    if view.alive(worker).is_none() {
        return if is_lost(view, placement) { State::Lost } else { State::Unknown };
    }
    let Some(Assigned::Vm(assigned)) = view.assigned(worker, host_object).map(AsRef::as_ref) else {
        return State::Unknown;
    };
    let observed = vm::observed_vm(view, worker, host_object);
    match observed {
        // What a report says of an older assignment may have changed.
        Some(observed) if observed.sequence < assigned.sequence => State::Unknown,
        Some(observed) if serves(assigned, observed) && (!is_proxy || is_told(observed)) => {
            age(view, object, ready_for, now)
        }
        _ => State::Bad(trouble(view, object, asked, observed, now)),
    }
}

/// Whether its guest is up, as its worker says, and so has something to say of its load; it may serve nobody, and because of it.
pub(super) fn is_up(view: &View, member: &Member<'_>) -> bool {
    let host_object = HostObject { kind: Kind::Vm, uid: member.asked.meta.uid };
    let observed = member.worker.filter(|worker| view.alive(*worker).is_some());
    let observed = observed.and_then(|worker| vm::observed_vm(view, worker, host_object));
    observed.is_some_and(|observed| observed.phase == VmPhase::Running)
}

fn is_lost(view: &View, placement: &Placement) -> bool {
    let object = view.object_of(placement.worker.uid());
    object.is_some_and(|object| worker::choice(view, object).lost)
}

fn serves(assigned: &AssignedVm, observed: &ObservedVm) -> bool {
    assigned.wanted == WantedVm::Running
        && observed.phase == VmPhase::Running
        && observed.problem.is_none()
        && vm::is_healthy(assigned, observed)
}

/// Whether the proxy in it does what some topology says.
fn is_told(observed: &ObservedVm) -> bool {
    observed.proxy.as_ref().is_some_and(|proxy| proxy.revision > 0)
}

/// How long it has served, on the leader's clock: since its own decision waits for nothing.
fn age(view: &View, object: &ObjectRef, ready_for: Span, now: Timestamp) -> State {
    let decided = view.decided(object);
    let served = match decided {
        Some(decided) if decided.waiting_on.is_empty() => decided.at_rest_since.map(|at| since(at, now)),
        _ => Some(Span::from_millis(0)),
    };
    match served.map(|served| ready_for.millis().saturating_sub(served.millis())) {
        None | Some(0) => State::Available,
        Some(left) => State::Young { left: Span::from_millis(left) },
    }
}

fn trouble(view: &View, object: &ObjectRef, asked: &Asked, observed: Option<&ObservedVm>, now: Timestamp) -> Trouble {
    let waiting_on = view.decided(object).map(|decided| decided.waiting_on.as_slice()).unwrap_or_default();
    let restarts = observed.map_or(0, |observed| observed.restarts);
    let phase = observed.map(|observed| observed.phase);
    Trouble {
        lasts: waiting_on.iter().map(|waiting| since(waiting.since, now)).max().unwrap_or_default(),
        ended: restarts > 0 || matches!(phase, Some(VmPhase::Crashed | VmPhase::Off)),
        ends_always: restarts >= RESTARTS_MAX,
        reason: waiting_on.first().map(|waiting| waiting.on.clone()),
        of_volume: asked.spec.references().iter().any(|object| is_volume_with_problem(view, object)),
    }
}

fn is_volume_with_problem(view: &View, object: &ObjectRef) -> bool {
    let decided = view.decided(object).filter(|_| object.kind == Kind::Volume);
    let mut waiting_on = decided.into_iter().flat_map(|decided| &decided.waiting_on);
    waiting_on.any(|waiting| matches!(waiting.on, WaitingOn::WorkerProblem { .. }))
}
