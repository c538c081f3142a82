//! Forecasts are honest: what one tells of a change is what the loop then does, with workers to whom everything succeeds.
//!
//! What is compared: of every object the steps in their order, and how everything is in the end. Not compared: how long
//! it takes, what comes first of two objects that have nothing to do with each other, and uids.

use std::collections::BTreeMap;

use lightbyte_api::kinds::vm::PlacedNic;
use lightbyte_api::kinds::worker;
use lightbyte_api::wire::RolloutStep;
use lightbyte_api::{Key, Kind, Manifest, ObjectRef, Span, Spec, Uid, WaitingOn};
use lightbyte_plan::forecast::{self, BootEstimate, Change, What};
use lightbyte_plan::planner::scalegroup as scalegroup_planner;
use lightbyte_plan::request::{self, Outcome};
use lightbyte_plan::{View, planner, room, status};
use lightbyte_store::MemoryCore;

use crate::balancers;
use crate::cluster::{Checked, Cluster, Sent};
use crate::load;
use crate::oracle::{Writer, placement, violated};
use crate::server;
use crate::user::name;

/// How long a boot lasts: a round.
const BOOT: Span = Span::from_secs(1);
/// How often those that wait are deleted: others may come to wait then.
const ROUNDS_OF_ROOM_MAX: usize = 8;

impl Cluster {
    /// Asks what a change would do, makes it, and compares.
    pub(crate) fn foresee(&mut self) -> Checked {
        self.tell(|| "------ a forecast ------".to_owned());
        // A forecast knows of no strangers, no sick guests and no load.
        self.demands.are_hidden = true;
        self.squatters.clear();
        for worker in &self.workers {
            worker.host.set_squatters(BTreeMap::new());
            worker.host.running().into_iter().for_each(|vm| worker.host.make_sick(vm, false));
        }
        self.make_room()?;
        // Some are asked while something else is under way.
        if self.rng.once_in(3) {
            let view = self.oracle.truth().clone();
            if let Some(change) = self.some_change(&view).filter(|change| !matches!(change, Change::Lose(_)))
            {
                self.make(&view, &change)?;
            }
            for _ in 0..self.rng.below(4) {
                self.calm_round()?;
            }
        }
        let view = self.oracle.truth().clone();
        // Nor of hosts that refuse what they are told.
        if view.objects_of(Kind::Network).any(|network| is_without_bridge(&view, network)) {
            return Ok(());
        }
        let Some(change) = self.some_change(&view) else { return Ok(()) };
        let boot = BootEstimate { lasts: BOOT, measured: 0 };
        let context = forecast::Context { now: self.now(), fresh: self.rng.bits(), boot };
        let told = forecast::forecast(&view, std::slice::from_ref(&change), &context, &|| true);
        let Ok(told) = told else {
            return match self.make(&view, &change)? {
                true => violated("plan", format!("{change:?} was foreseen to be refused, and is not")),
                false => Ok(()),
            };
        };
        // Where somebody waits for what others let go, who gets it is chance.
        if view.objects().any(|object| waits_for_room(&view, &Key::Decided(object.clone()))) {
            return Ok(());
        }
        // What proxies refuse no forecast knows.
        if view.objects_of(Kind::ScaleGroup).any(|group| balancers::are_refusing(&view, group)) {
            return Ok(());
        }
        if told.steps_anyway > 0 {
            // A worker that is lost goes on until its lease has ended.
            if matches!(change, Change::Lose(_)) {
                return Ok(());
            }
            self.counts.add("forecast: of what moves");
        }
        let Ok(end) = forecast::end_of(&view, std::slice::from_ref(&change), &context) else { return Ok(()) };
        self.tell(|| format!("{change:?} is foreseen: {told:#?}"));
        if told.steps_anyway == 0 && !view.objects_of(Kind::Vm).any(|vm| placement(&view, vm).is_none()) {
            check_loss(&view, &change, &end)?;
        }
        if !self.make(&view, &change)? {
            return Ok(());
        }
        let mut lowest: BTreeMap<ObjectRef, usize> =
            told.groups.iter().map(|group| (group.group.clone(), group.before)).collect();
        self.rest_and(|cluster| {
            for (group, lowest) in &mut lowest {
                let now = scalegroup_planner::available(cluster.oracle.truth(), group, cluster.now());
                *lowest = now.min(*lowest);
            }
        })?;
        for told in &told.groups {
            let seen = lowest.get(&told.group).copied().unwrap_or(told.lowest);
            if seen < told.lowest {
                return violated("plan", format!("{change:?}: {told:?}, and {seen} were available"));
            }
        }
        self.counts.add(match (&change, told.steps.len()) {
            (_, 0) => "forecast: nothing",
            (Change::Lose(_), _) => "forecast: lost worker",
            (Change::Delete(object), _) if view.group_of(object).is_some() => "forecast: member replaced",
            (Change::Delete(_), _) => "forecast: delete",
            (Change::Apply(Manifest { spec: Spec::Worker(_), .. }), _) => "forecast: drain",
            (Change::Apply(Manifest { spec: Spec::ScaleGroup(_), .. }), _) => "forecast: group",
            (Change::Rollout(..), _) => "forecast: rollout",
            (Change::Apply(_), _) => "forecast: VM",
        });
        let run = Run::since(&self.core, &view);
        // Who waits for room gets it from the host that is quicker, and what lets go of room or an address at the same
        // moment is sooner or later: no forecast can tell.
        let named = !run.waited_for_room && told.steps_anyway == 0;
        if run.waited_for_room {
            self.counts.add("forecast: room was waited for");
        }
        // Whether an address is free again before the next one is given is a matter of moments too.
        let addressed = named && run.steps.iter().all(|(_, what)| *what != What::Gone);
        let foreseen = told.steps.into_iter().map(|step| (step.object, step.what));
        let chance = Chance { named, rested: told.steps_anyway == 0 };
        let (foreseen, done) = (by_object(foreseen, chance), by_object(run.steps.into_iter(), chance));
        if let Some((object, foreseen, done)) = first_difference(&foreseen, &done) {
            let text = format!("{change:?}: of {object} was foreseen {foreseen:?}, and done {done:?}");
            return violated("plan", text);
        }
        let (mut foreseen, mut found) =
            (picture(&end, named, addressed), picture(self.oracle.truth(), named, addressed));
        // What is in trouble stays so in a forecast; a real agent tries again when rules of its firewall change, and says so.
        // Nor does it know what an authority makes of an order.
        let is_chance =
            |object: &&ObjectRef| has_crashed_for_good(&view, object) || is_ordered(&view, object);
        for object in view.objects().filter(is_chance) {
            foreseen.remove(object);
            found.remove(object);
        }
        if let Some((object, foreseen, found)) = first_difference(&foreseen, &found) {
            let text = format!("{change:?}: of {object} was foreseen {foreseen:?}, and is {found:?}");
            return violated("plan", text);
        }
        Ok(())
    }

    /// Where several wait for room, it goes to who is there when the quicker host has it: so nobody waits.
    fn make_room(&mut self) -> Checked {
        for _ in 0..ROUNDS_OF_ROOM_MAX {
            self.rest()?;
            let view = self.oracle.truth().clone();
            let waits = |vm: &&ObjectRef| {
                let waits = waits_for_room(&view, &Key::Decided((*vm).clone()));
                (placement(&view, vm).is_none() || waits) && view.living(vm).is_some()
            };
            let waiting: Vec<ObjectRef> = view.objects_of(Kind::Vm).filter(waits).cloned().collect();
            if waiting.is_empty() {
                return Ok(());
            }
            for vm in waiting {
                let group = view.group_of(&vm).unwrap_or(&vm);
                let owner = view.asked(group).and_then(|asked| asked.meta.owner.as_ref());
                let object = owner.map_or(group, |owner| &owner.object).clone();
                self.make(&self.oracle.truth().clone(), &Change::Delete(object))?;
            }
        }
        violated("plan", "somebody waits for room, however many others are deleted".to_owned())
    }

    fn some_change(&mut self, view: &View) -> Option<Change> {
        let groups: Vec<ObjectRef> = view.objects_of(Kind::ScaleGroup).cloned().collect();
        let vms = view.objects_of(Kind::Vm).filter(|vm| view.group_of(vm).is_none());
        let vms: Vec<ObjectRef> = vms.cloned().collect();
        let index = self.rng.below(self.workers.len());
        let worker = ObjectRef::new(Kind::Worker, self.workers[index].said.name.clone());
        Some(match self.rng.below(12) {
            10 => {
                let steps = [RolloutStep::Promote, RolloutStep::Resume, RolloutStep::Undo { to: None }];
                Change::Rollout(self.rng.pick(&groups)?.clone(), *self.rng.pick(&steps)?)
            }
            // A member: another takes its place.
            11 => {
                let members = view.objects_of(Kind::Vm).filter(|vm| view.group_of(vm).is_some());
                let members: Vec<ObjectRef> = members.cloned().collect();
                Change::Delete(self.rng.pick(&members)?.clone())
            }
            0 | 1 => Change::Delete(self.rng.pick(&vms)?.clone()),
            2 => Change::Delete(self.rng.pick(&groups)?.clone()),
            3 => Change::Lose(worker),
            4 | 5 => {
                let draining = !self.rng.once_in(4);
                let spec = Spec::Worker(worker::Spec { draining, ..worker::Spec::default() });
                Change::Apply(Manifest { name: worker.name, labels: BTreeMap::new(), spec })
            }
            6 | 7 => {
                let group = self.rng.pick(&groups)?.clone();
                let Spec::ScaleGroup(spec) = &view.living(&group)?.spec else { return None };
                let spec = spec.clone();
                let spec = Spec::ScaleGroup(self.resized(spec));
                Change::Apply(Manifest { name: group.name, labels: BTreeMap::new(), spec })
            }
            8 => {
                let group = self.rng.pick(&groups).cloned();
                let group = group.unwrap_or_else(|| ObjectRef::new(Kind::ScaleGroup, name("web")));
                let mut spec = self.some_group(&group);
                load::rest_schedules_of(&mut spec);
                let spec = Spec::ScaleGroup(spec);
                Change::Apply(Manifest { name: group.name, labels: BTreeMap::new(), spec })
            }
            _ => Change::Apply(self.some_vm(name("fresh"))),
        })
    }

    /// Makes the change for real; false when it is refused.
    fn make(&mut self, view: &View, change: &Change) -> Result<bool, crate::cluster::Violation> {
        let context =
            request::Context { now: self.now(), uid: Uid::from_bits(self.rng.bits()), if_match: None };
        let outcome = match change {
            Change::Apply(manifest) => request::apply(view, manifest, &context),
            Change::Rollout(group, step) => request::rollout(view, group, *step, &context),
            Change::Delete(object) => {
                // The end of a member is asked for by its group, when it has let go of it.
                if view.group_of(object).is_none() {
                    self.oracle.deletion_asked(view, object);
                }
                request::delete(view, object, &context)
            }
            Change::Lose(lost) => {
                let id = view.worker_id(lost);
                self.workers
                    .iter_mut()
                    .filter(|worker| Some(worker.id) == id)
                    .for_each(|worker| worker.cut_off = true);
                return Ok(true);
            }
        };
        let Some(decision) = outcome.ok().and_then(Outcome::transaction) else { return Ok(false) };
        match self.commit(&decision, view, Writer::Person, |_| None)? {
            Sent::Committed(_) => {
                self.oracle.acknowledged(&decision);
                Ok(true)
            }
            Sent::Conflict(..) | Sent::Unknown => Ok(false),
        }
    }
}

/// What is said of the loss of a worker beforehand is how many members have no place after it.
fn check_loss(view: &View, change: &Change, end: &View) -> Checked {
    let Change::Lose(worker) = change else { return Ok(()) };
    let is_lost = planner::worker::choice(end, worker).lost;
    let losses = room::losses(view);
    let Some(said) = losses.tried.iter().find(|loss| loss.worker == worker.name).filter(|_| is_lost) else {
        return Ok(());
    };
    let homeless = end.objects_of(Kind::Vm).filter(|vm| placement(end, vm).is_none()).count() as u64;
    if said.homeless == homeless {
        return Ok(());
    }
    violated("n-1", format!("of the loss of {worker} was said {said:?}, and {homeless} have no place"))
}

fn is_without_bridge(view: &View, network: &ObjectRef) -> bool {
    let spec = view.asked(network).map(|asked| &asked.spec);
    matches!(spec, Some(Spec::Network(network)) if network.bridge != "br0")
}

/// What has happened.
struct Run {
    steps: Vec<(ObjectRef, What)>,
    /// Whether somebody waited for room or an address meanwhile.
    waited_for_room: bool,
}

impl Run {
    /// What the store tells to have happened since `view`.
    fn since(core: &MemoryCore, view: &View) -> Run {
        let mut feed = server::begin(core, Some(view.revision()));
        let batches = core.events("", feed.next_revision(), usize::MAX).unwrap_or_default();
        let mut run = Run { steps: Vec::new(), waited_for_room: false };
        for batch in batches {
            let before = feed.view().clone();
            let changed = feed.apply(&batch);
            run.steps.extend(forecast::between(&before, feed.view(), &changed));
            run.waited_for_room |= changed.iter().any(|key| waits_for_room(feed.view(), key));
        }
        run
    }
}

fn waits_for_room(view: &View, key: &Key) -> bool {
    let Key::Decided(object) = key else { return false };
    let waits = view.decided(object).into_iter().flat_map(|decided| &decided.waiting_on);
    waits.into_iter().any(|waiting| {
        matches!(
            waiting.on,
            WaitingOn::Capacity { .. }
                | WaitingOn::WorkersFull
                | WaitingOn::KeptNear { .. }
                | WaitingOn::Preempting { .. }
                | WaitingOn::KeptApart
                | WaitingOn::WorkerPorts { .. }
                | WaitingOn::WorkerRoom { .. }
                | WaitingOn::Address { .. }
                | WaitingOn::Squatted { .. }
        )
    })
}

/// What no forecast can tell.
#[derive(Clone, Copy)]
struct Chance {
    /// Whether it is known which worker gets what.
    named: bool,
    /// Whether nothing was on its way when it was asked: what was, ends before the change reaches it or together with it.
    rested: bool,
}

/// The steps of each object; without the names of workers if these are chance.
fn by_object(
    steps: impl Iterator<Item = (ObjectRef, What)>,
    Chance { named, rested }: Chance,
) -> BTreeMap<ObjectRef, Vec<What>> {
    let mut found: BTreeMap<ObjectRef, Vec<What>> = BTreeMap::new();
    for (object, what) in steps {
        let what = match what {
            What::Placed { .. } if !named => What::Placed { worker: name("any") },
            what => what,
        };
        let steps = found.entry(object).or_default();
        // What was placed nowhere may go in the transaction that asks for its end, or in the next.
        if what == What::Gone && matches!(steps.last(), Some(What::LetGo { .. })) {
            steps.pop();
        }
        // So may a volume be made, and the member be placed that it is made for.
        let is_unused = |step: &What| matches!(step, What::Becomes { state, .. } if *state == "unused");
        if matches!(what, What::Placed { .. }) && steps.last().is_some_and(is_unused) {
            steps.pop();
        }
        let is_again = matches!(what, What::Becomes { .. }) && steps.last() == Some(&what);
        if rested || !is_again {
            steps.push(what);
        }
    }
    found
}

/// Whether a VM has crashed, and cannot be started again by anything that its worker does.
fn has_crashed_for_good(view: &View, object: &ObjectRef) -> bool {
    let waits = view.decided(object).into_iter().flat_map(|decided| &decided.waiting_on);
    let is_hopeless = waits.into_iter().any(|waiting| matches!(waiting.on, WaitingOn::WorkerProblem { .. }));
    is_hopeless && status::state(view, object).is_some_and(|(state, _)| state == "crashed")
}

/// Whether it is a certificate that an authority is to give.
fn is_ordered(view: &View, object: &ObjectRef) -> bool {
    let spec = view.asked(object).map(|asked| &asked.spec);
    matches!(spec, Some(Spec::Secret(secret)) if secret.ordered().is_some())
}

/// How everything is: what is asked, where it is, and what it waits for; without the place, or which addresses it has there,
/// if that is chance.
fn picture(view: &View, named: bool, addressed: bool) -> BTreeMap<ObjectRef, String> {
    let of = |object: &ObjectRef| {
        let asked = view.asked(object).map(|asked| asked.spec.to_json().map(|spec| spec.to_string()));
        let place = placement(view, object).map(|placed| {
            let known = |nic: &PlacedNic| nic.address.map(|address| addressed.then_some(address));
            let addresses: Vec<_> = placed.nics.iter().map(known).collect();
            if named { format!("{} {addresses:?}", placed.worker_name) } else { String::new() }
        });
        let waits = view.decided(object).map(|decided| {
            decided.waiting_on.iter().map(|waiting| waiting.on.to_string()).collect::<Vec<_>>()
        });
        format!("{:?} {asked:?} {place:?} {waits:?}", status::state(view, object))
    };
    view.objects().map(|object| (object.clone(), of(object))).collect()
}

fn first_difference<T: PartialEq + Clone>(
    one: &BTreeMap<ObjectRef, T>,
    other: &BTreeMap<ObjectRef, T>,
) -> Option<(ObjectRef, Option<T>, Option<T>)> {
    let mut objects = one.keys().chain(other.keys());
    let differs = objects.find(|object| one.get(*object) != other.get(*object))?;
    Some((differs.clone(), one.get(differs).cloned(), other.get(differs).cloned()))
}
