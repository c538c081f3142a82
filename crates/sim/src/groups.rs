//! Scale groups: what people ask of them, and what must hold of them, counted without their planner.

use std::collections::{BTreeMap, BTreeSet};

use lightbyte_api::assigned::{Assigned, HostObject};
use lightbyte_api::health::HealthState;
use lightbyte_api::kinds::scalegroup::{
    Choice as GroupChoice, Healing, RetiredFor, Rollout, Share, Spec as GroupSpec, Template, Update,
};
use lightbyte_api::kinds::{vm, worker};
use lightbyte_api::object::Asked;
use lightbyte_api::observed::{Observed, ObservedVm, VmPhase};
use lightbyte_api::records::Record;
use lightbyte_api::wire::RolloutStep;
use lightbyte_api::{ByteSize, Choice, Key, Kind, Manifest, ObjectRef, Span, Spec, Timestamp, Uid, WorkerId};
use lightbyte_plan::planner::worker::{self as worker_planner, LOST_AFTER};
use lightbyte_plan::planner::{VIEW_AGE_MAX, since};
use lightbyte_plan::request::{self, Context, Outcome, Refusal};
use lightbyte_plan::view::View;
use lightbyte_plan::{Transaction, Write, status};

use crate::cluster::{Checked, Cluster};
use crate::load::{self, replicas};
use crate::oracle::{placement, told, violated};
use crate::slots;
use crate::user::name;

const GROUPS: [&str; 2] = ["web", "api"];
/// Members of this memory end by themselves while there are faults.
const BROKEN_MEMORY: ByteSize = ByteSize::from_mib(192);
/// How many calm rounds a bad update lasts.
const BAD_ROUNDS: usize = 30;
/// How many rounds without a write mean that no member is on its way.
const SETTLED_ROUNDS: usize = 10;
/// How many calm rounds a worker is lost for: longer than it takes to count as lost.
const LOST_ROUNDS: usize = 50;

impl Cluster {
    /// Somebody asks something of a group, or of the workers that groups are on.
    pub(crate) fn group_user(
        &mut self,
        view: &View,
        context: &Context,
    ) -> (&'static str, ObjectRef, Result<Outcome, Refusal>) {
        let group = ObjectRef::new(Kind::ScaleGroup, name(GROUPS[self.rng.below(GROUPS.len())]));
        let manifest = match self.rng.below(19) {
            15..=18 => return self.member_user(view, context),
            12..=14 => {
                let step = match self.rng.below(7) {
                    0..=2 => RolloutStep::Pause,
                    3 => RolloutStep::Resume,
                    4 => RolloutStep::Promote,
                    5 => RolloutStep::Undo { to: None },
                    _ => RolloutStep::Undo { to: Some(1 + self.rng.below(3) as u64) },
                };
                return ("change", group.clone(), request::rollout(view, &group, step, context));
            }
            0 => return ("delete", group.clone(), request::delete(view, &group, context)),
            1..=3 => self.some_drain(),
            // The same again in another number.
            4..=6 => match view.living(&group).map(|asked| &asked.spec) {
                Some(Spec::ScaleGroup(spec)) => {
                    let spec = self.resized(spec.clone());
                    manifest(&group, spec)
                }
                _ => return ("change", group.clone(), Err(Refusal::NotFound { object: group })),
            },
            _ => manifest(&group, self.some_group(&group)),
        };
        ("change", manifest.object(), request::apply(view, &manifest, context))
    }

    pub(crate) fn some_group(&mut self, group: &ObjectRef) -> GroupSpec {
        let mut vm = vm::Spec::of_image(name(["demo", "base"][self.rng.below(2)]));
        vm.memory = [ByteSize::from_mib(64), ByteSize::from_mib(128), BROKEN_MEMORY][self.rng.below(3)];
        vm.health = self.some_health();
        vm.placement = self.some_placing();
        (vm.priority, vm.placement.preempt) = self.some_priority();
        let labels = [("app", "a")].map(|(key, value)| (key.to_owned(), value.to_owned()));
        let labels: BTreeMap<String, String> =
            if self.rng.once_in(3) { labels.into() } else { BTreeMap::new() };
        let max_surge = self.rng.below(3) as u64;
        let autoscale = if self.rng.once_in(3) { Some(self.some_policy()) } else { None };
        let mut spec = GroupSpec {
            replicas: autoscale.is_none().then(|| self.rng.below(4) as u64),
            autoscale,
            template: Template { labels, vm },
            update: Update {
                max_surge,
                max_unavailable: if max_surge == 0 { 1 } else { self.rng.below(2) as u64 },
                ready_for: Span::from_secs(self.rng.below(2) as u64 * 3),
                within: Span::from_secs(5 + self.rng.below(20) as u64),
                canary: match self.rng.below(3) {
                    0 => Some(Share::Count(1)),
                    1 => Some(Share::Percent(50)),
                    _ => None,
                },
                follow_image: self.rng.once_in(2),
                roll_back: !self.rng.once_in(4),
            },
            healing: Healing { after: Span::from_secs(5 + self.rng.below(15) as u64) },
        };
        self.keep_some(group, &mut spec);
        spec
    }

    /// The same group in another number.
    pub(crate) fn resized(&mut self, mut spec: GroupSpec) -> GroupSpec {
        match &mut spec.autoscale {
            Some(policy) => {
                policy.min = 1 + self.rng.below(3) as u64;
                policy.max = policy.min + self.rng.below(3) as u64;
                policy.schedules.iter_mut().for_each(|schedule| schedule.min = schedule.min.min(policy.max));
            }
            None => spec.replicas = Some(self.rng.below(5) as u64),
        }
        spec
    }

    fn some_drain(&mut self) -> Manifest {
        let index = self.rng.below(self.workers.len());
        let draining = self.rng.once_in(3);
        let name = self.workers[index].said.name.clone();
        let spec = Spec::Worker(worker::Spec { draining, ..worker::Spec::default() });
        Manifest { name, labels: self.some_zone(), spec }
    }

    /// What is broken ends.
    pub(crate) fn broken_members_end(&mut self, index: usize) {
        let mut broken = Vec::new();
        self.workers[index].host.each_running(|vm, assigned| {
            if assigned.memory == BROKEN_MEMORY {
                broken.push(vm);
            }
        });
        if let Some(vm) = self.rng.pick(&broken).copied() {
            self.counts.add("fault: member of a bad version ended");
            self.tell(|| format!("VM {vm} on n{}, of a bad version, ends by itself", index + 1));
            self.end_guest(index, vm);
        }
    }

    /// All is well but for one worker, which is away for longer than groups wait for it.
    pub(crate) fn lose_a_worker(&mut self) -> Checked {
        self.heal();
        let lost = self.rng.below(self.workers.len());
        self.tell(|| format!("------ n{} is lost ------", lost + 1));
        self.workers[lost].cut_off = true;
        // With another one it is too many, unless nothing is to be placed there anyway: `check_losses` looks at that.
        let with_another = self.rng.once_in(3);
        if with_another {
            let other = (lost + 1) % self.workers.len();
            self.workers[other].cut_off = true;
        }
        for _ in 0..LOST_ROUNDS {
            self.calm_round()?;
        }
        self.goes_on_alone(lost)?;
        if with_another {
            return Ok(());
        }
        // A load that changed a while ago may have moved a group just now.
        self.settles(SETTLED_ROUNDS, LOST_ROUNDS, |_| {})?;
        let worker = self.workers[lost].id;
        let view = self.oracle.truth();
        if view.assigned_to(worker).next().is_some() {
            let object = ObjectRef::new(Kind::Worker, self.workers[lost].said.name.clone());
            let choice = worker_planner::choice(view, &object);
            let is_lost = choice.lost;
            // What was given to it a moment ago, such as the copy of a volume, is waited for from then on.
            let is_early = |at: Timestamp| since(at, self.now()).millis() < LOST_AFTER.millis();
            if choice.away_since.is_some_and(is_early) {
                return Ok(());
            }
            let can_be =
                view.asked(&object).is_some() && view.unreadable(&Key::Decided(object.clone())).is_none();
            if can_be && !is_lost {
                return violated(
                    "rule 10",
                    format!("{object} is away and not lost: {}", told(view, &object)),
                );
            }
            self.counts.add("worker lost");
        }
        for group in self.oracle.truth().objects_of(Kind::ScaleGroup) {
            check_group(self.oracle.truth(), group, Some(worker))?;
        }
        crate::addresses::check_taken_over(self.oracle.truth(), worker, &self.workers)?;
        Ok(())
    }
}

impl Cluster {
    /// All is well, and somebody updates each group to what does not stay up: it must come back from there.
    pub(crate) fn update_badly(&mut self) -> Checked {
        self.tell(|| "------ bad updates ------".to_owned());
        // Some of them are never seen to be bad: somebody has paused the group before.
        let group = ObjectRef::new(Kind::ScaleGroup, name(GROUPS[0]));
        let paused = Some(group).filter(|_| self.core.revision().is_multiple_of(2));
        if let Some(group) = &paused {
            self.steer(group, RolloutStep::Pause)?;
        }
        for round in 0..BAD_ROUNDS {
            if round == 0 {
                self.ask_for_bad_versions()?;
            }
            self.calm_round()?;
            for index in 0..self.workers.len() {
                self.broken_members_end(index);
            }
        }
        let view = self.oracle.truth();
        for group in view.objects_of(Kind::ScaleGroup) {
            let choice = choice(view, group);
            let Some(rejected) = &choice.rejected else { continue };
            self.counts.add("version rejected");
            let Some(Spec::ScaleGroup(spec)) = view.living(group).map(|asked| &asked.spec) else { continue };
            let of_version = |member: &&ObjectRef| {
                let owner = view.living(member).and_then(|asked| asked.meta.owner.as_ref());
                owner.is_some_and(|owner| owner.version == Some(rejected.version))
            };
            let uid = view.asked(group).map_or(Uid::from_bits(0), |asked| asked.meta.uid);
            let are_back = living(view, group).into_iter().filter(|member| {
                let object = view.object_of(*member);
                object.is_some_and(|object| !of_version(&object)) && serves(view, *member)
            });
            // One that serves stays until enough others do: where these wait for an address it is all that people have.
            let enough = are_back.count() as u64 >= replicas(view, group, spec);
            let goes_on =
                spec.update.roll_back && enough && view.children(uid).any(|member| of_version(&member));
            let is_back = choice.target == choice.stable || !spec.update.roll_back;
            if goes_on || !is_back || choice.stable == Some(rejected.version) {
                return violated("roll-back", format!("{group} goes on with a rejected version: {choice:?}"));
            }
        }
        if let Some(group) = &paused {
            if told(self.oracle.truth(), group).contains("Paused") {
                self.counts.add("wait: paused");
            }
            self.steer(group, RolloutStep::Resume)?;
        }
        Ok(())
    }

    /// Somebody steers the update of a group, if it is there.
    fn steer(&mut self, group: &ObjectRef, step: RolloutStep) -> Checked {
        let context = Context { now: self.now(), uid: Uid::from_bits(1), if_match: None };
        match request::rollout(self.oracle.truth(), group, step, &context) {
            Ok(outcome) => self.make_true(outcome),
            // One that is not there, or was not looked at, has no update.
            Err(_) => Ok(()),
        }
    }

    fn ask_for_bad_versions(&mut self) -> Checked {
        let view = self.oracle.truth().clone();
        for group in view.objects_of(Kind::ScaleGroup) {
            let Some(Spec::ScaleGroup(spec)) = view.living(group).map(|asked| &asked.spec) else { continue };
            let mut spec = spec.clone();
            spec.template.vm.memory = BROKEN_MEMORY;
            spec.replicas = spec.fixed().map(|replicas| replicas.max(1));
            // One that is refused stays as it is.
            let _ = self.ask_for(&manifest(group, spec))?;
        }
        Ok(())
    }
}

pub(crate) fn manifest(group: &ObjectRef, spec: GroupSpec) -> Manifest {
    Manifest { name: group.name.clone(), labels: BTreeMap::new(), spec: Spec::ScaleGroup(spec) }
}

// ---------------------------------------------------------------------------------------------------- after each plan

pub(crate) fn choice(view: &View, group: &ObjectRef) -> GroupChoice {
    match view.decided(group).map(|decided| &decided.choice) {
        Some(Choice::ScaleGroup(choice)) => choice.clone(),
        _ => GroupChoice::default(),
    }
}

/// The members that live: nobody has asked for their end, and they are not being let go.
fn living(view: &View, group: &ObjectRef) -> BTreeSet<Uid> {
    let Some(asked) = view.asked(group) else { return BTreeSet::new() };
    let retiring: BTreeSet<Uid> = choice(view, group).retiring.iter().map(|retiring| retiring.uid).collect();
    let children = view.children(asked.meta.uid).filter_map(|child| view.living(child));
    children.map(|asked| asked.meta.uid).filter(|uid| !retiring.contains(uid)).collect()
}

/// Whether a member serves, by what its worker says.
pub(crate) fn serves(view: &View, member: Uid) -> bool {
    is_up(view, member, |observed| observed.problem.is_none())
}

/// Whether a VM runs and is healthy, by what its worker says, and what more is asked.
pub(crate) fn is_up(view: &View, member: Uid, more: impl Fn(&ObservedVm) -> bool) -> bool {
    let Some(object) = view.object_of(member) else { return false };
    let Some(worker) = placement(view, object).map(|placement| placement.worker) else { return false };
    let host_object = HostObject { kind: Kind::Vm, uid: member };
    let assigned = view.assigned(worker, host_object).map(AsRef::as_ref);
    let observed = view.observed(worker, host_object).map(AsRef::as_ref);
    let (Some(Assigned::Vm(assigned)), Some(Observed::Vm(observed))) = (assigned, observed) else {
        return false;
    };
    let health = observed.health.as_ref().map(|health| health.state);
    let is_told = observed.proxy.as_ref().is_some_and(|proxy| proxy.revision > 0);
    view.alive(worker).is_some()
        && (is_told || !is_proxy(view, object))
        && observed.phase == VmPhase::Running
        && observed.sequence >= assigned.sequence
        && more(observed)
        && (assigned.health.is_none() || health == Some(HealthState::Healthy))
}

/// A proxy serves nobody before it is told what to do.
fn is_proxy(view: &View, vm: &ObjectRef) -> bool {
    let group = view.group_of(vm).and_then(|group| view.asked(group));
    group.and_then(|group| group.meta.owner.as_ref()).is_some()
}

fn is_on_lost(view: &View, member: Uid) -> bool {
    let worker = view.object_of(member).and_then(|object| placement(view, object));
    worker.is_some_and(|placement| {
        let worker = view.object_of(placement.worker.uid());
        let decided = worker.and_then(|worker| view.decided(worker)).map(|decided| &decided.choice);
        matches!(decided, Some(Choice::Worker(choice)) if choice.lost)
    })
}

/// Rule 9 and the budgets, for a batch of the leader. It was `fed` a view that is `age_millis` old, decided on what it had
/// written `before` as well, and `after` has the batch too.
pub(crate) fn check_batch(
    batch: &Transaction,
    fed: &View,
    (before, after): (&View, &View),
    (now, age_millis): (Timestamp, Option<u64>),
) -> Checked {
    check_losses(batch, fed, before)?;
    for (key, write) in &batch.writes {
        let (Key::Decided(group), Write::Put(_, Record::Decided(_))) = (key, write) else { continue };
        let Some(asked) = after.asked(group) else { continue };
        let Spec::ScaleGroup(spec) = &asked.spec else { continue };
        // What its load balancer asks of it later in the batch it did not know yet.
        if batch.writes.contains_key(&Key::Asked(group.clone())) {
            continue;
        }
        load::check_step(group, spec, now, (before, after))?;
        let size = replicas(after, group, spec);
        let known: BTreeSet<Uid> =
            choice(before, group).retiring.iter().map(|retiring| retiring.uid).collect();
        let news = choice(after, group).retiring;
        let serving = |members: &BTreeSet<Uid>| members.iter().filter(|uid| serves(fed, **uid)).count();
        // That somebody matters more is no choice of the group's.
        let gone = news.iter().filter(|retiring| retiring.because != RetiredFor::Preemption);
        let gone = gone.map(|retiring| retiring.uid).filter(|uid| !known.contains(uid));
        let gone: BTreeSet<Uid> = gone.filter(|uid| serves(fed, *uid)).collect();
        let members = living(after, group);
        slots::check_slots(after, group, &members)?;
        let proven = choice(after, group).stable;
        let of_it = |uid: &Uid| {
            let member =
                fed.object_of(*uid).or_else(|| after.object_of(*uid)).and_then(|member| after.asked(member));
            let version = member.and_then(|member| member.meta.owner.as_ref()?.version);
            version == proven && serves(fed, *uid)
        };
        let counted: Vec<&Uid> = members.iter().filter(|uid| !is_on_lost(after, **uid)).collect();
        // Somebody that matters more may have made one leave later in the batch.
        let preempted = news.iter().filter(|retiring| retiring.because == RetiredFor::Preemption);
        let preempted = preempted.filter(|retiring| !known.contains(&retiring.uid)).count();
        if proven != choice(before, group).stable
            && preempted == 0
            && (counted.is_empty() || !counted.iter().all(|uid| of_it(uid)))
        {
            return violated(
                "proven",
                format!("{group} takes {proven:?} for proven, and not all members are of it"),
            );
        }
        if asked.meta.deleting_since.is_none() && !gone.is_empty() {
            let floor = size.saturating_sub(spec.update.max_unavailable) as usize;
            if serving(&members) + preempted < floor {
                return violated(
                    "rule 9",
                    format!("{group} is left with {} that serve, and needs {floor}", serving(&members)),
                );
            }
            if age_millis.is_none_or(|age| age >= VIEW_AGE_MAX.millis()) {
                return violated(
                    "rule 9",
                    format!(
                        "{group} lost {gone:?} by a view of {age_millis:?} ms: {:?}",
                        choice(after, group).retiring
                    ),
                );
            }
        }
        let made = batch.writes.values().any(|write| match write {
            Write::Put(Key::Asked(object), Record::Asked(child)) => {
                let owner = child.meta.owner.as_ref().map(|owner| owner.uid);
                owner == Some(asked.meta.uid) && before.asked(object).is_none()
            }
            _ => false,
        });
        let counted = counted.len() as u64;
        let most = size + spec.update.max_surge;
        if made && counted > most {
            return violated("surge", format!("{group} has {counted} members, at most {most} are allowed"));
        }
    }
    Ok(())
}

/// No worker is taken for lost while more than 30 % of those that are open to VMs, and more than one, are away.
fn check_losses(batch: &Transaction, fed: &View, before: &View) -> Checked {
    for write in batch.writes.values() {
        let Write::Put(Key::Decided(worker), Record::Decided(decided)) = write else { continue };
        let Choice::Worker(after) = &decided.choice else { continue };
        let was_lost = matches!(before.decided(worker).map(|decided| &decided.choice),
            Some(Choice::Worker(choice)) if choice.lost);
        if !after.lost || was_lost {
            continue;
        }
        let open = fed.objects_of(Kind::Worker).filter_map(|worker| {
            let asked = before.living(worker)?;
            matches!(&asked.spec, Spec::Worker(spec) if !spec.cordoned && !spec.draining)
                .then_some(asked.meta.uid)
        });
        let open: Vec<Uid> = open.collect();
        let away = open.iter().filter(|uid| fed.alive(WorkerId::new(**uid)).is_none()).count();
        if away > 1 && away * 10 > open.len() * 3 {
            return violated(
                "brake",
                format!("{worker} is taken for lost while {away} of {} are away", open.len()),
            );
        }
    }
    Ok(())
}

/// The members that a batch lets go and that serve, by the view of the store as it is.
pub(crate) fn serving_ones_let_go(batch: &Transaction, before: &View, truth: &View) -> Vec<Uid> {
    let mut found = Vec::new();
    for write in batch.writes.values() {
        let Write::Put(Key::Decided(group), Record::Decided(decided)) = write else { continue };
        let Choice::ScaleGroup(after) = &decided.choice else { continue };
        let known: Vec<Uid> = choice(before, group).retiring.iter().map(|retiring| retiring.uid).collect();
        // Whether one serves is nothing to whoever needs its room.
        let news = after.retiring.iter().filter(|retiring| retiring.because != RetiredFor::Preemption);
        let news = news.map(|retiring| retiring.uid).filter(|uid| !known.contains(uid));
        found.extend(news.filter(|uid| serves(truth, *uid)));
    }
    found
}

/// Whom a batch lets go, and why, by the store as it is.
pub(crate) fn let_go(batch: &Transaction, truth: &View) -> Vec<(Uid, RetiredFor)> {
    let mut found = Vec::new();
    for write in batch.writes.values() {
        let Write::Put(Key::Decided(group), Record::Decided(decided)) = write else { continue };
        let Choice::ScaleGroup(after) = &decided.choice else { continue };
        let known = choice(truth, group).retiring;
        let news = after.retiring.iter().filter(|retiring| !known.contains(retiring));
        found.extend(news.map(|retiring| (retiring.uid, retiring.because)));
    }
    found
}

/// Whether the end of a load balancer's group of proxies is asked for now: only with its own.
fn is_end_of_proxies(asked: &Asked, write: &Write, before: &View) -> Result<bool, crate::cluster::Violation> {
    let owner = asked.meta.owner.as_ref().filter(|owner| owner.object.kind == Kind::LoadBalancer);
    let Some(owner) = owner.filter(|_| asked.meta.deleting_since.is_none()) else { return Ok(false) };
    let is_end = match write {
        Write::Put(_, Record::Asked(after)) => after.meta.deleting_since.is_some(),
        Write::Put(..) => false,
        Write::Delete(_) => true,
    };
    if is_end && before.living(&owner.object).is_some() {
        return violated("rule 13", format!("the proxies of {} end, and it does not", owner.object));
    }
    Ok(is_end)
}

/// The members whose end a commit of the leader asks for, each for a reason that was true when it was stored.
pub(crate) fn ends_of(decision: &Transaction, before: &View) -> Result<Vec<Uid>, crate::cluster::Violation> {
    let mut ends = Vec::new();
    for (key, write) in &decision.writes {
        let Key::Asked(object) = key else { continue };
        let Some(asked) = before.asked(object) else {
            // One may be made, placed, and let go for somebody that matters more, in one batch.
            if let Write::Put(_, Record::Asked(asked)) = write
                && asked.meta.deleting_since.is_some()
            {
                ends.push(asked.meta.uid);
            }
            continue;
        };
        if is_end_of_proxies(asked, write, before)? {
            ends.push(asked.meta.uid);
        }
        let Some(owner) = asked.meta.owner.as_ref().filter(|owner| owner.object.kind == Kind::ScaleGroup)
        else {
            continue;
        };
        let ends_now = match write {
            Write::Put(_, Record::Asked(after)) => after.meta.deleting_since.is_some(),
            Write::Put(..) => false,
            Write::Delete(_) => true,
        };
        if !ends_now || asked.meta.deleting_since.is_some() {
            continue;
        }
        let is_ending = |asked: &Asked| asked.meta.deleting_since.is_some();
        let is_ended_now = match decision.writes.get(&Key::Asked(owner.object.clone())) {
            Some(Write::Put(_, Record::Asked(group))) => is_ending(group),
            Some(Write::Put(..)) | None => false,
            Some(Write::Delete(_)) => true,
        };
        let group_ends = is_ended_now || before.asked(&owner.object).is_none_or(|group| is_ending(group));
        let decided = match decision.writes.get(&Key::Decided(owner.object.clone())) {
            Some(Write::Put(_, Record::Decided(decided))) => match &decided.choice {
                Choice::ScaleGroup(choice) => choice.clone(),
                _ => GroupChoice::default(),
            },
            _ => choice(before, &owner.object),
        };
        let is_let_go = decided.retiring.iter().any(|retiring| retiring.uid == asked.meta.uid);
        // What no worker has claimed can be let go and be gone in one batch.
        let host_object = HostObject { kind: Kind::Vm, uid: asked.meta.uid };
        let worker = placement(before, object).map(|placement| placement.worker);
        let was_nowhere = worker.is_none_or(|worker| !before.contains(&Key::Observed(worker, host_object)));
        if !group_ends && !is_let_go && !was_nowhere {
            return violated("rule 13", format!("the end of {object} was asked for without being let go"));
        }
        ends.push(asked.meta.uid);
    }
    Ok(ends)
}

// ---------------------------------------------------------------------------------------------------- the goal

/// A group is as asked, or something that its members wait for hinders it.
pub(crate) fn check_group(view: &View, group: &ObjectRef, lost: Option<WorkerId>) -> Checked {
    let Some(asked) = view.living(group) else { return Ok(()) };
    let Spec::ScaleGroup(spec) = &asked.spec else { return Ok(()) };
    if crate::balancers::are_refusing(view, group) {
        // Members that are never available can take nobody's place.
        return Ok(());
    }
    let image = ObjectRef::new(Kind::Image, spec.template.vm.image.clone());
    if view.unreadable_keys().next().is_some() || view.living(&image).is_none() {
        return Ok(());
    }
    let choice = choice(view, group);
    let on = |member: &ObjectRef| placement(view, member).map(|placement| placement.worker);
    let all: Vec<&ObjectRef> = view.children(asked.meta.uid).collect();
    let members: Vec<&ObjectRef> = all
        .iter()
        .copied()
        .filter(|member| view.living(member).is_some())
        // Nobody takes the place of one whose volumes are there.
        .filter(|member| lost.is_none() || on(member) != lost || slots::slot_of(view, member).is_some())
        .collect();
    let count = members.len() as u64;
    // More may be: those of a worker that came back serve until others do. What we make is counted when it is made.
    let size = replicas(view, group, spec);
    if count < size {
        return violated(
            "rule 10",
            format!("{group} has {count} members, asked are {size}: {}", told(view, group)),
        );
    }
    let is_ready =
        |member: &&&ObjectRef| status::object(view, member).is_some_and(|object| object.status.ready);
    if members.iter().filter(is_ready).count() < members.len() {
        // What each of them waits for is checked with the others.
        return Ok(());
    }
    let versions: BTreeSet<Option<u64>> =
        members.iter().filter_map(|member| Some(view.asked(member)?.meta.owner.as_ref()?.version)).collect();
    let waits = told(view, group);
    let is_steered = waits.contains("Promotion") || waits.contains("Paused");
    let stands_still = (choice.rejected.is_some() && !spec.update.roll_back) || is_steered;
    if is_steered {
        check_steered(group, spec, &asked.meta.rollout, &choice, (&versions, &waits))?;
    }
    let goes = |member: &ObjectRef| {
        let is_replaced = view.asked(member).is_some_and(|asked| asked.meta.replace);
        // One whose volumes are kept is where these are.
        let leaves = slots::slot_of(view, member).is_none();
        is_replaced
            || leaves
                && on(member).and_then(|worker| view.object_of(worker.uid())).is_some_and(|worker| {
                    view.asked(worker).is_none_or(|asked| {
                        asked.meta.deleting_since.is_some()
                            || matches!(&asked.spec, Spec::Worker(spec) if spec.draining)
                    })
                })
    };
    let is_protected = |member: &&&ObjectRef| view.asked(member).is_some_and(|asked| asked.meta.protected);
    let protected = members.iter().filter(is_protected).count() as u64;
    let is_larger = count > size && protected >= count - size;
    let is_whole = (count == size || is_larger)
        && (lost.is_some() || all.len() == members.len())
        && (stands_still || versions.iter().all(|version| *version == choice.target))
        && !members.iter().any(|member| goes(member));
    if !is_whole {
        return violated("rule 10", format!("{group} is not as asked: {}", told(view, group)));
    }
    slots::check_settled(view, group, (&members, size))?;
    let target = choice.target.and_then(|target| choice.version(target));
    let is_asked = target.is_some_and(|target| target.template == spec.template);
    if choice.rejected.is_none() && asked.meta.rollout.undone.is_none() && !is_asked {
        return violated(
            "rule 10",
            format!("{group} is of another template than asked: {}", told(view, group)),
        );
    }
    let ready = status::object(view, group).is_some_and(|object| object.status.ready);
    if lost.is_none() && ready == (choice.rejected.is_some() || is_steered || is_larger) {
        return violated("status", format!("{group} says ready: {ready}: {}", told(view, group)));
    }
    Ok(())
}

/// An update stands only where somebody wanted it to, and there is one.
fn check_steered(
    group: &ObjectRef,
    spec: &GroupSpec,
    rollout: &Rollout,
    choice: &GroupChoice,
    (versions, waits): (&BTreeSet<Option<u64>>, &str),
) -> Checked {
    let wanted = rollout.paused || (spec.update.canary.is_some() && rollout.promoted != choice.target);
    let is_update = choice.stable.is_some() && choice.stable != choice.target;
    let is_known = versions.iter().all(|version| [choice.stable, choice.target].contains(version));
    // Who pauses in the midst of two updates keeps members of three versions.
    if wanted && is_update && (is_known || rollout.paused) {
        return Ok(());
    }
    violated("rule 10", format!("{group} stands still and nobody wants that: {waits}"))
}
