//! Scale groups: make members and let them go. Where a member runs, and all else about it, is its own planner's.
//!
//! ```text
//!   asked ──> versions: which one all members are to be of
//!               │  members: how each one is
//!               v
//!             steps: how many to make, which to let go ──> asked of members ──> their planner places them
//!               │                                  └─────> retiring ──> their end is asked for
//!               │ end asked
//!               v
//!             the end of all members is asked for ──> they are gone ──> end
//! ```

mod members;
pub mod size;
mod slots;
pub mod steps;
mod versions;

use lightbyte_api::kinds::scalegroup::{
    Choice as GroupChoice, FailedOn, HealingBucket, Rejected, Retiring, RetiredFor, Spec as GroupSpec, Version,
};
use lightbyte_api::object::{Asked, Meta, Owner};
use lightbyte_api::{Choice, Key, Kind, ObjectRef, Span, Spec, Timestamp, WaitingOn};

pub(crate) use self::members::{is_made_again, is_named_like_member};
use self::members::{Member, Seats, State};
use self::size::{Known, Size};
use self::steps::{Count, Counted, Service, Steps};
use super::{Inputs, Plan, STALE_PAUSE, later, since};
use crate::transaction::Write;
use crate::view::View;

/// How many members one plan makes: with what their own plans write, they fit into a few transactions.
const MADE_PER_PLAN_MAX: usize = 8;
/// How many members one plan lets go.
const RETIRED_PER_PLAN_MAX: usize = 8;
/// How many names are tried for one plan's members besides their own number.
const NAMES_TRIED_MAX: u64 = 64;
/// The share of a group, in hundredths, whose failed members are replaced without a pause; two always are.
const HEALED_PERCENT_MAX: u64 = 30;
/// After how long one more failed member may be replaced, at first.
const HEALING_PERIOD: Span = Span::from_secs(60);
/// How often that is doubled at most: an hour and four minutes.
const HEALING_DOUBLINGS_MAX: u64 = 6;

/// For how long a worker on which members failed is the last choice for the next one.
const FAILED_LATELY: Span = Span::from_secs(600);
/// How many such workers are remembered.
const FAILED_ON_MAX: usize = 16;

/// Plans a scale group.
#[must_use]
pub fn plan(view: &View, object: &ObjectRef, inputs: &Inputs) -> Plan {
    let Some(asked) = view.asked(object) else { return Plan::rest() };
    let Spec::ScaleGroup(spec) = &asked.spec else { return Plan::rest() };
    // One that cannot be read is no child in any index; it is there.
    if let Some(key) = unreadable_member(view, object) {
        return Plan::wait(WaitingOn::Unreadable { key: key.to_string() });
    }
    let size = size_of(view, object, spec, inputs);
    let replicas = size.as_ref().map_or_else(|| spec.fixed().unwrap_or(0), |size| size.scaling.desired);
    let group = Group { view, object, asked, spec, inputs, replicas, size };
    if asked.meta.deleting_since.is_some() { group.tear_down() } else { group.keep() }
}

/// The size of a group that scales itself.
fn size_of(view: &View, object: &ObjectRef, spec: &GroupSpec, inputs: &Inputs) -> Option<Size> {
    let policy = spec.autoscale.as_ref()?;
    let known = Known {
        now: inputs.now,
        time_of_day: inputs.time_of_day.unwrap_or(inputs.now),
        members: staying(view, object),
        before: choice(view, object).and_then(|choice| choice.scaling.as_ref()),
        load: inputs.load.as_deref(),
    };
    Some(size::next(policy, &known))
}

/// How many members a group is to have: as asked, or as was decided for it last; by a policy that nobody has looked at yet,
/// as many as it has.
#[must_use]
pub fn replicas(view: &View, group: &ObjectRef, spec: &GroupSpec) -> u64 {
    let Some(policy) = &spec.autoscale else { return spec.fixed().unwrap_or(0) };
    match choice(view, group).and_then(|choice| choice.scaling.as_ref()) {
        Some(scaling) => scaling.desired,
        None => staying(view, group).clamp(policy.min, policy.max.max(policy.min)),
    }
}

/// How many members more a group has than it is to have.
pub(crate) fn more_than_asked(view: &View, group: &ObjectRef) -> u64 {
    match view.asked(group).map(|asked| &asked.spec) {
        Some(Spec::ScaleGroup(spec)) => {
            (counts(view, group).members as u64).saturating_sub(replicas(view, group, spec))
        }
        _ => 0,
    }
}

/// How many members live and are not let go.
fn staying(view: &View, group: &ObjectRef) -> u64 {
    let Some(asked) = view.asked(group) else { return 0 };
    let choice = choice(view, group);
    let stays = |child: &&ObjectRef| {
        let uid = view.living(child).map(|child| child.meta.uid);
        uid.is_some_and(|uid| choice.is_none_or(|choice| !choice.lets_go(uid)))
    };
    view.children(asked.meta.uid).filter(stays).count() as u64
}

/// What was decided for a group.
#[must_use]
pub fn choice<'a>(view: &'a View, group: &ObjectRef) -> Option<&'a GroupChoice> {
    match &view.decided(group)?.choice {
        Choice::ScaleGroup(choice) => Some(choice),
        _ => None,
    }
}

/// The number of the version that the specification asks for, if there is one yet.
#[must_use]
pub fn asked_version(view: &View, spec: &GroupSpec, choice: &GroupChoice) -> Option<u64> {
    versions::asked(view, spec, choice).ok()
}

/// The number of the version that is wanted: the one that is asked for, or what somebody went back to.
#[must_use]
pub fn wanted_version(view: &View, meta: &Meta, spec: &GroupSpec, choice: &GroupChoice) -> Option<u64> {
    asked_version(view, spec, choice).map(|asked| versions::wanted(meta, choice, asked))
}

/// How many members are there, and how many of them serve, in numbers for people.
#[must_use]
pub fn counts<'a>(view: &'a View, object: &ObjectRef) -> Counts<'a> {
    let mut counts = Counts::default();
    let Some(asked) = view.asked(object) else { return counts };
    let Spec::ScaleGroup(spec) = &asked.spec else { return counts };
    let target = choice(view, object).and_then(|choice| choice.target);
    // Without a clock: those that are young count as ready.
    for member in members::living(view, asked, spec, Timestamp::MAX) {
        counts.list.push((member.object, member.version));
        if member.state == State::Lost {
            continue;
        }
        counts.members += 1;
        counts.ready += usize::from(matches!(member.state, State::Available | State::Young { .. }));
        counts.updated += usize::from(member.outdated(target).is_none());
    }
    counts
}

/// How many members of a group are available.
#[must_use]
pub fn available(view: &View, object: &ObjectRef, now: Timestamp) -> usize {
    let Some(asked) = view.asked(object) else { return 0 };
    let Spec::ScaleGroup(spec) = &asked.spec else { return 0 };
    let members = members::living(view, asked, spec, now);
    members.iter().filter(|member| member.state == State::Available).count()
}

/// Those members of a group whose guests are up, and how many live, without those on lost workers.
#[must_use]
pub fn up<'a>(view: &'a View, object: &ObjectRef) -> (Vec<&'a ObjectRef>, u64) {
    let Some(asked) = view.asked(object) else { return (Vec::new(), 0) };
    let Spec::ScaleGroup(spec) = &asked.spec else { return (Vec::new(), 0) };
    // Without a clock: how long they have served does not matter.
    let mut members = members::living(view, asked, spec, Timestamp::MAX);
    members.retain(|member| member.state != State::Lost);
    let up = members.iter().filter(|member| members::is_up(view, member)).map(|member| member.object);
    (up.collect(), members.len() as u64)
}

/// A group in numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts<'a> {
    /// Members whose end is not asked for, without those on lost workers.
    pub members: usize,
    /// Those that serve.
    pub ready: usize,
    /// Those that are of the version that all are to be of, and stay where they are.
    pub updated: usize,
    /// Each with its version, in the order in which they were made; those on lost workers too.
    pub list: Vec<(&'a ObjectRef, u64)>,
}

pub(crate) fn unreadable_member<'a>(view: &'a View, group: &ObjectRef) -> Option<&'a Key> {
    view.unreadable_asked().find(|key| match key {
        Key::Asked(object) => is_named_like_member(group, object),
        _ => false,
    })
}

struct Group<'a> {
    view: &'a View,
    object: &'a ObjectRef,
    asked: &'a Asked,
    spec: &'a GroupSpec,
    inputs: &'a Inputs,
    /// How many members there are to be.
    replicas: u64,
    /// Where that comes from, when it scales itself.
    size: Option<Size>,
}

impl Group<'_> {
    // ------------------------------------------------------------------------------------------------- the end

    fn tear_down(&self) -> Plan {
        let children = || self.view.children(self.asked.meta.uid);
        let Some(first) = children().next() else { return Plan::end() };
        let living = children().filter(|child| self.view.living(child).is_some());
        let writes = living.take(RETIRED_PER_PLAN_MAX).filter_map(|child| self.end_of(child)).collect();
        Plan { writes, waiting_on: vec![WaitingOn::Child { child: first.clone() }], ..Plan::rest() }
    }

    fn end_of(&self, member: &ObjectRef) -> Option<Write> {
        let asked = self.view.living(member)?;
        let meta = Meta { deleting_since: Some(self.inputs.now), ..asked.meta.clone() };
        Some(Write::put(Key::Asked(member.clone()), Asked { meta, spec: asked.spec.clone() }))
    }

    // ------------------------------------------------------------------------------------------------- its life

    fn keep(&self) -> Plan {
        let mut choice = choice(self.view, self.object).cloned().unwrap_or_default();
        choice.scaling = self.size.as_ref().map(|size| size.scaling.clone());
        let mut plan = Plan::rest();
        if let Err(hindrance) = versions::choose(self.view, &self.asked.meta, self.spec, &mut choice, self.inputs.now) {
            plan.waiting_on.push(hindrance);
        }
        self.let_go(&mut choice, &mut plan);
        let mut members = members::living(self.view, self.asked, self.spec, self.inputs.now);
        members.retain(|member| !choice.lets_go(member.asked.meta.uid));
        self.judge_update(&mut choice, &members);
        // Those on lost workers are neither relied on nor let go: they are replaced, and what is then too much goes when
        // they come back. Nobody can take the place of one whose volumes are there.
        members.retain(|member| member.state != State::Lost || member.slot.is_some());
        slots::free_those_beyond(self.replicas, &mut members);
        let mix = Mix::of(self, &choice, &members);
        let count = self.count(&choice, &members, &mix);
        let steps = steps::next(&count);
        self.carry_out(&steps, &members, &mix, &mut choice, &mut plan);
        self.renew_volumes(&choice, &members, &mut plan);
        if is_whole(&count, &steps) {
            choice.healing = None;
            let is_one_version = members.iter().all(|member| Some(member.version) == choice.target);
            match choice.rejected {
                None if is_one_version && !mix.has_canaries => versions::prove(&mut choice, self.inputs.now),
                None => plan.waiting_on.extend(mix.waits_for()),
                Some(_) => {}
            }
        }
        self.explain(&choice, &members, &steps, &mut plan);
        let resized = self.size.as_ref().and_then(|size| size.again);
        plan.again = self.again(&choice, &members, &steps).into_iter().chain(resized).min();
        let in_use = self.view.children(self.asked.meta.uid).filter_map(|child| self.version_of(child));
        versions::forget(&mut choice, &in_use.collect(), self.asked.meta.rollout.undone);
        plan.rests_on.push(Key::Asked(ObjectRef::new(Kind::Image, self.spec.template.vm.image.clone())));
        plan.choice = Some(Choice::ScaleGroup(choice));
        plan
    }

    fn version_of(&self, child: &ObjectRef) -> Option<u64> {
        self.view.asked(child)?.meta.owner.as_ref()?.version
    }

    /// Asks for the end of those that are let go and that nothing waits for: nothing does yet. Those that are gone are
    /// forgotten.
    fn let_go(&self, choice: &mut GroupChoice, plan: &mut Plan) {
        choice.retiring.retain(|retiring| self.view.object_of(retiring.uid).is_some());
        let retiring = choice.retiring.iter().filter_map(|retiring| self.view.object_of(retiring.uid));
        plan.writes.extend(retiring.filter_map(|member| self.end_of(member)));
    }

    /// Whether the version that the group is being brought to has failed.
    fn judge_update(&self, choice: &mut GroupChoice, members: &[Member<'_>]) {
        let (Some(target), Some(stable)) = (choice.target, choice.stable) else { return };
        if target == stable || choice.rejected.is_some() {
            return;
        }
        let failed = members.iter().filter(|member| member.version == target).find_map(|member| {
            let State::Bad(trouble) = &member.state else { return None };
            let reason = trouble.reason.as_ref().map(ToString::to_string);
            let because = if trouble.ended {
                reason.unwrap_or_else(|| "it ended by itself".to_owned())
            } else if trouble.lasts >= self.spec.update.within {
                let reason = reason.unwrap_or_else(|| "it does not serve".to_owned());
                format!("not available within {}: {reason}", self.spec.update.within)
            } else {
                return None;
            };
            Some(Rejected { version: target, member: member.object.name.clone(), because })
        });
        if failed.is_some() {
            choice.rejected = failed;
            if self.spec.update.roll_back {
                choice.target = Some(stable);
            }
        }
    }

    /// How long a member that does not serve is left alone.
    fn patience(&self, choice: &GroupChoice, member: &Member<'_>) -> Span {
        // One of a version that has not worked yet is given the time of an update.
        let is_proven = choice.stable == Some(member.version);
        let healing = self.spec.healing.after;
        if is_proven { healing } else { healing.max(self.spec.update.within) }
    }

    fn count(&self, choice: &GroupChoice, members: &[Member<'_>], mix: &Mix) -> Count {
        let mut seats = Seats::default();
        let counted = |member: &Member<'_>| Counted {
            version: member.version,
            outdated: member.outdated(choice.target).filter(|_| !mix.keeps(member)),
            service: member.service(),
            has_failed: match &member.state {
                State::Bad(trouble) if trouble.may_be_cured() => {
                    trouble.ends_always || trouble.lasts >= self.patience(choice, member)
                }
                _ => false,
            },
            may_recover: matches!(member.state, State::Bad(_))
                && choice.version(member.version).is_some_and(|found| found.proven_at.is_some()),
            preempted: member.preempted,
            protected: member.asked.meta.protected,
            seat: seats.of(self.view, member),
            number: member.number,
        };
        let size = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        Count {
            replicas: size(self.replicas),
            surge_max: size(self.spec.update.max_surge),
            unavailable_max: size(self.spec.update.max_unavailable),
            heals_left: size(self.bucket(choice).left),
            members: members.iter().map(counted).collect(),
        }
    }

    fn carry_out(
        &self,
        steps: &Steps,
        members: &[Member<'_>],
        mix: &Mix,
        choice: &mut GroupChoice,
        plan: &mut Plan,
    ) {
        let mut healed = 0;
        let is_fresh = self.inputs.view_is_fresh();
        for (index, because) in steps.retire.iter().take(RETIRED_PER_PLAN_MAX) {
            let member = &members[*index];
            match member.service() {
                // Nothing but what is known now says that it may go.
                Service::None => plan.rests_on.extend(member.rests_on()),
                // Nor does it matter who else serves.
                _ if *because == RetiredFor::Preemption => {}
                // How many others are available is what too many keys say: a view that is known to be young stands for them.
                _ if is_fresh => {}
                _ => continue,
            }
            if *because == RetiredFor::Scale {
                // Whether it is protected.
                plan.rests_on.push(Key::Asked(member.object.clone()));
            }
            if *because == RetiredFor::Preemption {
                plan.rests_on.extend(member.worker.map(Key::WorkerLedger));
            }
            if *because == RetiredFor::Health {
                healed += 1;
                self.note_failure(choice, member);
            }
            choice.retiring.push(Retiring { uid: member.asked.meta.uid, because: *because });
        }
        if healed > 0 {
            let bucket = self.bucket(choice);
            choice.healing = Some(HealingBucket {
                left: bucket.left.saturating_sub(healed),
                streak: bucket.streak + healed,
                ..bucket
            });
        }
        let make = steps.make.min(MADE_PER_PLAN_MAX);
        let new = make.min(mix.new_wanted);
        self.make(new, choice.target, choice, plan);
        self.make(make - new, choice.stable, choice, plan);
    }

    /// Remembers the worker on which a member failed.
    fn note_failure(&self, choice: &mut GroupChoice, member: &Member<'_>) {
        let Some(worker) = member.worker else { return };
        let now = self.inputs.now;
        let before = choice.failed_on.iter().find(|failed| failed.worker == worker);
        let before = before.filter(|failed| since(failed.at, now) < FAILED_LATELY);
        let times = 1 + before.map_or(0, |failed| failed.times);
        choice.failed_on.retain(|failed| failed.worker != worker);
        choice.failed_on.push(FailedOn { worker, at: now, times });
        if choice.failed_on.len() > FAILED_ON_MAX {
            choice.failed_on.remove(0);
        }
    }

    /// Asks for so many members of a version.
    fn make(&self, count: usize, version: Option<u64>, choice: &mut GroupChoice, plan: &mut Plan) {
        let version = version.and_then(|version| choice.version(version)).cloned();
        let Some(version) = version.filter(|_| count > 0) else { return };
        // Only those that are made now look at it: so what is too old is forgotten here, and nothing has to be written later.
        choice.failed_on.retain(|failed| since(failed.at, self.inputs.now) < FAILED_LATELY);
        let slots = version.template.keeps_volumes().then(|| self.free_slots(choice, plan));
        let count = slots.as_ref().map_or(count, |slots| count.min(slots.len()));
        let count = slots::made_per_plan(count, &version);
        let mut made = 0;
        for number in choice.members_made + 1..=choice.members_made + count as u64 + NAMES_TRIED_MAX {
            if made == count {
                break;
            }
            choice.members_made = number;
            let Some(member) = self.free_name(number, &version) else { continue };
            let slot = slots.as_ref().and_then(|slots| slots.get(made).copied());
            let index = plan.writes.len() as u64;
            plan.writes.push(self.member((member, slot), &version, index));
            slot.into_iter().for_each(|slot| self.make_volumes(slot, &version, plan));
            made += 1;
        }
    }

    /// The name of the member with this number; `None` when somebody else has it, or one that its disks need.
    fn free_name(&self, number: u64, version: &Version) -> Option<ObjectRef> {
        let name = self.object.name.child(&number.to_string()).ok()?;
        let own_disks = version.template.vm.disks.iter().filter(|disk| disk.volume.is_none() && !disk.keep);
        let volumes = own_disks.map(|disk| Some(ObjectRef::new(Kind::Volume, name.child(disk.name.as_str()).ok()?)));
        let mut volumes = volumes.collect::<Option<Vec<_>>>()?.into_iter();
        let is_free = |object: ObjectRef| !self.view.contains(&Key::Asked(object));
        let member = ObjectRef::new(Kind::Vm, name);
        (is_free(member.clone()) && volumes.all(is_free)).then_some(member)
    }

    fn member(&self, (member, slot): (ObjectRef, Option<u64>), version: &Version, index: u64) -> Write {
        let owner = Owner {
            object: self.object.clone(),
            uid: self.asked.meta.uid,
            version: Some(version.number),
            slot,
        };
        let labels = version.template.labels.clone();
        let meta = Meta::new(self.inputs.uid(index), Some(owner), labels, self.inputs.now);
        let mut vm = version.template.vm.clone();
        vm.image_version = Some(version.image_version.clone());
        vm.disks = self.disks_in(slot, version);
        Write::put(Key::Asked(member), Asked { meta, spec: Spec::Vm(vm) })
    }

    // ------------------------------------------------------------------------------------------------- its words

    fn explain(&self, choice: &GroupChoice, members: &[Member<'_>], steps: &Steps, plan: &mut Plan) {
        if let Some(Rejected { version, member, because }) = &choice.rejected {
            let because = format!("{member}: {because}");
            plan.waiting_on.push(WaitingOn::Rejected { version: *version, because });
        }
        if steps.healing_pauses {
            plan.waiting_on.push(WaitingOn::HealingPause);
        }
        if steps.protected > 0 {
            plan.waiting_on.push(WaitingOn::Protected { members: steps.protected as u64 });
        }
        let made = plan.writes.iter().find_map(|write| match write.key() {
            Key::Asked(object) if self.view.asked(object).is_none() => Some(object.clone()),
            _ => None,
        });
        let is_missing =
            |member: &&Member<'_>| member.state != State::Available && !choice.lets_go(member.asked.meta.uid);
        let waits_for = members.iter().find(is_missing);
        let waits_for = waits_for.map(|member| member.object.clone()).or(made);
        plan.waiting_on.extend(waits_for.map(|member| WaitingOn::Member { member }));
        // Those on lost workers go only when these are back.
        let going = choice.retiring.iter().find_map(|retiring| self.view.object_of(retiring.uid));
        plan.waiting_on.extend(going.map(|child| WaitingOn::Child { child: child.clone() }));
    }

    /// When time alone changes something.
    fn again(&self, choice: &GroupChoice, members: &[Member<'_>], steps: &Steps) -> Option<Span> {
        let is_updating = choice.stable.is_some() && choice.target != choice.stable;
        let of_member = |member: &Member<'_>| match &member.state {
            State::Bad(trouble) => {
                let is_judged = is_updating && Some(member.version) == choice.target;
                let patience =
                    if is_judged { self.spec.update.within } else { self.patience(choice, member) };
                left_of(patience, trouble.lasts)
            }
            State::Young { left } => Some(*left),
            _ => None,
        };
        let bucket = self.bucket(choice);
        let next_turn = left_of(self.period(&bucket), since(bucket.at, self.inputs.now));
        let waits_for_view =
            steps.retire.iter().any(|(index, because)| {
                members[*index].service() != Service::None && *because != RetiredFor::Preemption
            });
        members
            .iter()
            .filter_map(of_member)
            .chain(next_turn.filter(|_| steps.healing_pauses))
            .chain((waits_for_view && !self.inputs.view_is_fresh()).then_some(STALE_PAUSE))
            .min()
    }

    /// How many failed members may be replaced now.
    fn bucket(&self, choice: &GroupChoice) -> HealingBucket {
        let (now, full) = (self.inputs.now, self.healed_at_once());
        let Some(bucket) = choice.healing else { return HealingBucket { left: full, at: now, streak: 0 } };
        let period = self.period(&bucket).millis();
        let turns = since(bucket.at, now).millis() / period;
        match bucket.left.saturating_add(turns) {
            left if left >= full => HealingBucket { left: full, at: now, ..bucket },
            left => HealingBucket { left, at: later(bucket.at, Span::from_millis(turns.saturating_mul(period))), ..bucket },
        }
    }

    fn healed_at_once(&self) -> u64 {
        (self.replicas * HEALED_PERCENT_MAX).div_ceil(100).max(2)
    }

    /// After how long one more may be replaced: twice as long each time that as many as go at once did not help.
    fn period(&self, bucket: &HealingBucket) -> Span {
        let doublings = (bucket.streak / self.healed_at_once()).saturating_sub(1).min(HEALING_DOUBLINGS_MAX);
        Span::from_millis(HEALING_PERIOD.millis() << doublings)
    }
}

/// How many members are to be of the target version, and which of another one are kept meanwhile.
struct Mix {
    target: Option<u64>,
    /// How many more of the target version there are to be.
    new_wanted: usize,
    /// The numbers of those of the version that worked that stay.
    kept: Vec<u64>,
    paused: bool,
    /// Whether a person has to say that it goes on.
    has_canaries: bool,
}

impl Mix {
    fn of(group: &Group<'_>, choice: &GroupChoice, members: &[Member<'_>]) -> Mix {
        let Group { asked, spec, replicas: whole, .. } = group;
        let rollout = &asked.meta.rollout;
        let replicas = usize::try_from(*whole).unwrap_or(usize::MAX);
        // Those that leave their worker are made again, and count for nothing here.
        let stays = || members.iter().filter(|member| member.leaves.is_none());
        let new = stays().filter(|member| Some(member.version) == choice.target).count();
        let is_updating = choice.stable.is_some() && choice.target != choice.stable;
        let stands_still = choice.rejected.is_some() && !spec.update.roll_back;
        let paused = is_updating && (rollout.paused || stands_still);
        let is_proven = choice.target.and_then(|target| choice.version(target)).is_some_and(|found| found.proven_at.is_some());
        let is_open = is_proven || rollout.promoted == choice.target || choice.rejected.is_some();
        let canary = spec.update.canary.filter(|_| !is_open);
        let allowed = match canary {
            _ if !is_updating => replicas,
            _ if paused => new.min(replicas),
            Some(canary) => usize::try_from(canary.of(*whole)).unwrap_or(usize::MAX),
            None => replicas,
        };
        let mut old: Vec<&Member<'_>> =
            stays().filter(|member| is_updating && Some(member.version) == choice.stable).collect();
        old.sort_by_key(|member| (member.service() == Service::None, member.number));
        let kept = replicas - allowed.max(new).min(replicas);
        let kept = match paused {
            // Nothing is replaced, whatever it is of.
            true => stays().map(|member| member.number).collect(),
            false => old.into_iter().take(kept).map(|member| member.number).collect(),
        };
        let has_canaries = is_updating && canary.is_some();
        Mix { target: choice.target, new_wanted: allowed.saturating_sub(new), kept, paused, has_canaries }
    }

    fn keeps(&self, member: &Member<'_>) -> bool {
        member.leaves.is_none() && self.kept.contains(&member.number)
    }

    /// Whom an update waits for that has come as far as it may.
    fn waits_for(&self) -> Option<WaitingOn> {
        let version = self.target?;
        Some(if self.paused { WaitingOn::Paused { version } } else { WaitingOn::Promotion { version } })
    }
}

/// Whether all members that are asked for are there, available, and of one version.
fn is_whole(count: &Count, steps: &Steps) -> bool {
    let is_good = |member: &Counted| member.outdated.is_none() && member.service == Service::Available;
    steps.is_nothing() && !count.members.is_empty() && count.members.iter().all(is_good)
}

fn left_of(whole: Span, passed: Span) -> Option<Span> {
    let left = whole.millis().saturating_sub(passed.millis());
    (left > 0).then_some(Span::from_millis(left))
}
