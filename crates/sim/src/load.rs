//! Load: what groups' members use and are sent, how the leader comes to know of it, and what must hold of groups that scale
//! themselves.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use lightbyte_api::kinds::scalegroup::autoscale::{Cron, EVERY_MIN, Zone};
use lightbyte_api::kinds::scalegroup::{Autoscale, Percent, Rate, Schedule, Share, Spec as GroupSpec};
use lightbyte_api::wire::Carried;
use lightbyte_api::{Kind, Manifest, ObjectRef, Span, Spec, Timestamp, Uid, VmId};
use lightbyte_plan::load::{self, Counted, CpuTime, LOOK_PERIOD, WHOLE};
use lightbyte_plan::status;
use lightbyte_plan::view::View;

use crate::balancers;
use crate::cluster::{Checked, Cluster};
use crate::groups::{choice, manifest};
use crate::oracle::{told, violated};
use crate::specs;

/// A pattern that began at the beginning of time, and lasts for the whole of a run.
const ALWAYS: &str = "0 0 1 1 *";

/// A group whose members would use all of one has so many requests a second, and as many in flight at once.
const REQUESTS_OF_ONE: u64 = 100;

/// How often the load changes in a run of [`Cluster::follow_requests`].
const LOADS: usize = 4;

/// What guests do with their CPUs, and proxies with their requests.
#[derive(Default)]
pub(crate) struct Demands {
    /// How many thousandths of a member all members of a group would use together.
    of_group: BTreeMap<Uid, u64>,
    /// What each guest has counted, and when that was brought forward last.
    counted: BTreeMap<Uid, (CpuTime, u64)>,
    /// The requests, times the milliseconds of a second, that each proxy has carried to each VM, and when that was brought forward last.
    carried: BTreeMap<(Uid, Uid), (u64, u64)>,
    /// Nobody measures.
    pub(crate) are_hidden: bool,
}

impl Cluster {
    pub(crate) fn some_policy(&mut self) -> Autoscale {
        let min = 1 + self.rng.below(2) as u64;
        let max = min + self.rng.below(4) as u64;
        let schedules = self.rng.once_in(3).then(|| Schedule {
            cron: cron(&format!("{} * * * *", self.rng.below(60))),
            lasts: Span::from_secs(60 * (1 + self.rng.below(30)) as u64),
            time_zone: Zone::default(),
            min: min + self.rng.below((max - min + 1) as usize) as u64,
        });
        // As much of one member, by any signal.
        let target = [30, 60, 90][self.rng.below(3)];
        let signal = if schedules.is_none() { self.rng.below(4) } else { self.rng.below(6) };
        let cpu = matches!(signal, 0 | 1).then_some(Percent(target));
        let requests_per_second = matches!(signal, 1 | 2).then_some(target * REQUESTS_OF_ONE / 100);
        let concurrency = (signal == 3).then_some(target * REQUESTS_OF_ONE / 100);
        let mut rate = |window_most: usize| Rate {
            window: Span::from_secs(self.rng.below(window_most) as u64 * LOOK_PERIOD.millis() / 1_000),
            at_most: [Share::Count(1), Share::Count(2), Share::Percent(50), Share::Percent(100)]
                [self.rng.below(4)],
            every: Span::from_millis(EVERY_MIN.millis() + self.rng.below(3) as u64 * 10_000),
        };
        let (scale_out, scale_in) = (rate(3), rate(4));
        let schedules = schedules.into_iter().collect();
        Autoscale { min, max, cpu, requests_per_second, concurrency, scale_out, scale_in, schedules }
    }

    /// The load of some group is another from now on.
    pub(crate) fn load_changes(&mut self) {
        let groups: Vec<ObjectRef> = self.oracle.truth().objects_of(Kind::ScaleGroup).cloned().collect();
        let Some(group) = self.rng.pick(&groups).cloned() else { return };
        let Some(uid) = self.oracle.truth().asked(&group).map(|asked| asked.meta.uid) else { return };
        let demand = self.rng.below(4) as u64 * WHOLE + self.rng.below(WHOLE as usize) as u64;
        self.tell(|| format!("{group} has a load of {demand} thousandths of a member"));
        self.demands.of_group.insert(uid, demand);
    }

    /// What guests and proxies have counted by now; some do not answer.
    pub(crate) fn count(&mut self, view: &View) -> Counted {
        if self.demands.are_hidden {
            return Counted::default();
        }
        Counted { cpu: self.count_cpu(view), carried: self.count_carried(view) }
    }

    /// Every running proxy that may send to a group has an equal part of its requests, and gives it to one member. Some lie, of
    /// those to whom their load balancer sends nothing.
    fn count_carried(&mut self, view: &View) -> BTreeMap<Uid, BTreeMap<Uid, Carried>> {
        let mut found: BTreeMap<Uid, BTreeMap<Uid, Carried>> =
            load::wanted_proxies(view).into_iter().map(|proxy| (proxy, BTreeMap::new())).collect();
        let senders = self.senders();
        found.retain(|proxy, _| senders.contains_key(proxy));
        for group in view.objects_of(Kind::ScaleGroup) {
            let Some(uid) = view.asked(group).map(|asked| asked.meta.uid) else { continue };
            let all = requests(self.demands.of_group.get(&uid).copied().unwrap_or(0));
            let to_it = senders_to(&senders, &members_of(view, group));
            for (index, (proxy, to)) in to_it.iter().enumerate() {
                let (now, senders) = (self.now_millis, to_it.len() as u64);
                let in_flight = all / senders + u64::from((index as u64) < all % senders);
                let (counted, at) = self.demands.carried.entry((*proxy, *to)).or_insert((0, now));
                *counted += in_flight * now.saturating_sub(*at);
                *at = now;
                let carried = Carried { requests: *counted / 1_000, in_flight };
                if let Some(said) = found.get_mut(proxy) {
                    said.insert(*to, carried);
                }
            }
        }
        let vms: Vec<Uid> =
            view.objects_of(Kind::Vm).filter_map(|vm| Some(view.asked(vm)?.meta.uid)).collect();
        for (proxy, said) in &mut found {
            for vm in &vms {
                let is_fronted = senders.get(proxy).is_some_and(|to| to.contains(vm));
                if !is_fronted && view.fronted_by(*vm).next().is_none() {
                    let requests = self.now_millis.saturating_mul(1_000_000);
                    said.insert(*vm, Carried { requests, in_flight: u64::MAX });
                }
            }
        }
        if self.faults {
            found.retain(|_, _| !self.rng.once_in(10));
        }
        found
    }

    /// The proxies that run, each with those whom it may send to.
    fn senders(&self) -> BTreeMap<Uid, Vec<Uid>> {
        self.workers.iter().flat_map(|worker| worker.front.senders(&worker.host.running())).collect()
    }

    /// What the guests of members have counted by now; some do not answer.
    fn count_cpu(&mut self, view: &View) -> BTreeMap<Uid, CpuTime> {
        let mut found = BTreeMap::new();
        let running: Vec<Uid> =
            self.workers.iter().flat_map(|worker| worker.host.running()).map(VmId::uid).collect();
        let mut groups: BTreeMap<Uid, Vec<Uid>> = BTreeMap::new();
        for asked in load::wanted(view).filter_map(|member| view.asked(member)) {
            let group = asked.meta.owner.as_ref().map(|owner| owner.uid);
            let member = Some(asked.meta.uid).filter(|member| running.contains(member));
            if let (Some(group), Some(member)) = (group, member) {
                groups.entry(group).or_default().push(member);
            }
        }
        for (group, members) in groups {
            let demand = self.demands.of_group.get(&group).copied().unwrap_or(0);
            let share = (demand / members.len().max(1) as u64).min(WHOLE);
            for member in members {
                let now = self.now_millis;
                let (time, at) = self.demands.counted.entry(member).or_insert((CpuTime::default(), now));
                let passed = now.saturating_sub(*at);
                let busy = passed * share / WHOLE;
                time.busy_millis += busy;
                time.idle_millis += passed - busy;
                *at = now;
                let time = *time;
                if !(self.faults && self.rng.once_in(10)) {
                    found.insert(member, time);
                }
            }
        }
        found
    }

    /// Groups behind a load balancer and one to which nobody sends, on a cluster where all works: each comes to the size that its
    /// load needs, however often that changes.
    pub(crate) fn follow_requests(&mut self) -> Checked {
        self.faults = false;
        for _ in 0..2 {
            // Workers come first.
            self.calm_round()?;
        }
        let target = [30, 60, 90][self.rng.below(3)];
        let signals = [
            json!({ "requests_per_second": target }),
            json!({ "concurrency": target }),
            json!({ "requests_per_second": target, "cpu": format!("{}%", 120 - target) }),
        ];
        let group = |name: &str, signal: &Value| {
            let mut policy = signal.clone();
            (policy["min"], policy["max"]) = (json!(1), json!(3));
            policy["scale_in"] = json!({ "window": "30s", "every": "15s" });
            let template = json!({ "image": "demo", "memory": "64MiB" });
            json!({ "kind": "scalegroup", "name": name, "spec": { "autoscale": policy, "template": template } })
        };
        let balancer = json!({ "kind": "loadbalancer", "name": "lb", "spec": {
            "proxies": { "replicas": 1 + self.rng.below(2), "image": "demo", "memory": "64MiB" },
            "listeners": [{ "port": 80 }],
            "pools": [{ "name": "main", "group": "web", "port": 80 }],
        }});
        let groups = ["web", "lone"].map(|name| group(name, &signals[self.rng.below(signals.len())]));
        for document in specs::ground().chain(groups).chain([balancer]) {
            let manifest =
                Manifest::read(&document).unwrap_or_else(|problems| unreachable!("{document}: {problems:?}"));
            if let Err(refusal) = self.ask_for(&manifest)? {
                return violated("scaling", format!("{manifest:?} is refused: {refusal}"));
            }
        }
        for _ in 0..LOADS {
            self.rest()?;
            self.check_sizes()?;
            self.load_changes();
        }
        self.rest()?;
        self.check_sizes()
    }

    /// Schedules begin and end no more: what is on stays so.
    pub(crate) fn rest_schedules(&mut self) -> Checked {
        let view = self.oracle.truth().clone();
        for group in view.objects_of(Kind::ScaleGroup) {
            let Some(Spec::ScaleGroup(spec)) = view.living(group).map(|asked| &asked.spec) else { continue };
            let mut spec = spec.clone();
            rest_schedules_of(&mut spec);
            // One that is refused stays as it is.
            let _ = self.ask_for(&manifest(group, spec))?;
        }
        Ok(())
    }
}

/// Lets the schedules of a group be on for ever.
pub(crate) fn rest_schedules_of(spec: &mut GroupSpec) {
    let schedules = spec.autoscale.iter_mut().flat_map(|policy| &mut policy.schedules);
    for schedule in schedules {
        (schedule.cron, schedule.lasts) = (cron(ALWAYS), Span::from_secs(31 * 24 * 60 * 60));
    }
}

fn cron(text: &str) -> Cron {
    Cron::try_from(text.to_owned()).unwrap_or_else(|_| unreachable!("a pattern"))
}

/// How many members a group is to have.
pub(crate) fn replicas(view: &View, group: &ObjectRef, spec: &GroupSpec) -> u64 {
    let scaling = choice(view, group).scaling;
    spec.fixed().or(scaling.map(|scaling| scaling.desired)).unwrap_or(0)
}

fn least(policy: &Autoscale, now: Timestamp) -> u64 {
    let on = policy.schedules.iter().filter(|schedule| schedule.is_on(now));
    on.map(|schedule| schedule.min).chain([policy.min]).max().unwrap_or(1)
}

/// A plan of the leader changes the size of a group: within the bounds, and as fast as its rates allow.
pub(crate) fn check_step(
    group: &ObjectRef,
    spec: &GroupSpec,
    now: Timestamp,
    (before, after): (&View, &View),
) -> Checked {
    let view = before;
    let (before, after) = (choice(before, group).scaling, choice(after, group).scaling);
    if before == after {
        return Ok(());
    }
    let (Some(policy), Some(after)) = (&spec.autoscale, after) else { return Ok(()) };
    let low = least(policy, now);
    if !(low..=policy.max).contains(&after.desired) {
        return violated("scaling", format!("{group} is to have {after:?}, at least {low}: {policy:?}"));
    }
    let Some(before) = before.filter(|before| (low..=policy.max).contains(&before.desired)) else {
        return Ok(());
    };
    let rate = if after.desired > before.desired { &policy.scale_out } else { &policy.scale_in };
    let step = after.desired.abs_diff(before.desired);
    let rested = now.duration_since(before.changed_at).as_millis();
    let is_by_requests = policy.is_by_requests() && policy.cpu.is_none();
    let is_sent = |uid: &Uid| view.fronted_by(*uid).next().is_some();
    if step > 0 && is_by_requests && after.desired > low && !members_of(view, group).iter().any(is_sent) {
        return violated(
            "scaling",
            format!("nobody sends to {group}, and it goes from {before:?} to {after:?}"),
        );
    }
    if step > rate.step_from(before.desired) || (step > 0 && rested < i128::from(rate.every.millis())) {
        return violated("scaling", format!("{group} goes from {before:?} to {after:?} at {now}: {rate:?}"));
    }
    Ok(())
}

impl Cluster {
    /// At rest, and with all members serving, a group has as many as its load needs.
    pub(crate) fn check_sizes(&mut self) -> Checked {
        let view = self.oracle.truth().clone();
        let now = self.now();
        for group in view.objects_of(Kind::ScaleGroup) {
            let Some(asked) = view.living(group) else { continue };
            let Spec::ScaleGroup(spec) = &asked.spec else { continue };
            let Some(policy) = &spec.autoscale else { continue };
            let size = replicas(&view, group, spec);
            let low = least(policy, now);
            if choice(&view, group).scaling.is_none() {
                continue;
            }
            if !(low..=policy.max).contains(&size) {
                return violated("scaling", format!("{group} has {size}, at least {low}: {policy:?}"));
            }
            if !policy.is_by_load() {
                if size != low {
                    return violated("scaling", format!("{group} has {size}, and {low} are enough"));
                }
                continue;
            }
            if !status::state(&view, group).is_some_and(|(_, is_ready)| is_ready) {
                continue;
            }
            self.counts.add("group of the right size");
            let demand = self.demands.of_group.get(&asked.meta.uid).copied().unwrap_or(0);
            let sent =
                self.sent_to(&view, group).map(|is_sent| if is_sent { requests(demand) * 10 } else { 0 });
            if policy.is_by_requests() && sent.is_some_and(|requests| requests > 0) {
                self.counts.add("group of the right size for its requests");
            }
            let by_cpu = policy.cpu.map(|Percent(target)| (target, Some(demand.min(size * WHOLE))));
            let by_requests = policy.requests_per_second.or(policy.concurrency).map(|target| (target, sent));
            let signals: Vec<(u64, Option<u64>)> = by_cpu.into_iter().chain(by_requests).collect();
            let needs = |used: u64, percent: u64| (used * 100).div_ceil(percent * WHOLE);
            // A load that is cut into parts is measured a little too small.
            let is_few = |(target, used): &(u64, Option<u64>)| {
                let Some(used) = *used else { return false };
                let fewest = needs(used, target * 110 / 100);
                size + 1 < fewest.min(policy.max) || (size < policy.max && used * 10 > size * target * 111)
            };
            // What is not known lets nobody go.
            let allows = |(target, used): &(u64, Option<u64>)| {
                used.is_none_or(|used| size <= needs(used, target * 9 / 10).max(low))
            };
            if signals.iter().any(is_few) || !signals.iter().any(allows) {
                let told = told(&view, group);
                let text =
                    format!("{group} has {size} for a load of {demand}, sent {sent:?}, {policy:?}: {told}");
                return violated("scaling", text);
            }
        }
        Ok(())
    }

    /// Whether requests are sent to a group; nothing when not all who may do so can be asked, or nobody may.
    fn sent_to(&self, view: &View, group: &ObjectRef) -> Option<bool> {
        let members = members_of(view, group);
        let balancers = members.iter().flat_map(|member| view.fronted_by(*member));
        let proxies = balancers.flat_map(|name| {
            let balancer = ObjectRef::new(Kind::LoadBalancer, name.clone());
            balancers::choice(view, &balancer).proxies.into_iter().map(|proxy| proxy.uid)
        });
        let proxies: Vec<Uid> = proxies.collect();
        let senders = self.senders();
        let are_known = !proxies.is_empty() && proxies.iter().all(|proxy| senders.contains_key(proxy));
        are_known.then(|| !senders_to(&senders, &members).is_empty())
    }
}

/// How many requests a group has in a second, and in flight at once, whose members would use so much.
const fn requests(demand: u64) -> u64 {
    demand * REQUESTS_OF_ONE / WHOLE
}

fn members_of(view: &View, group: &ObjectRef) -> Vec<Uid> {
    let vms = view.objects_of(Kind::Vm).filter(|vm| view.group_of(vm) == Some(group));
    vms.filter_map(|vm| Some(view.asked(vm)?.meta.uid)).collect()
}

/// The proxies that send to any of `members`, each with one of them.
fn senders_to(senders: &BTreeMap<Uid, Vec<Uid>>, members: &[Uid]) -> Vec<(Uid, Uid)> {
    let to = |to: &[Uid]| to.iter().copied().find(|uid| members.contains(uid));
    senders.iter().filter_map(|(proxy, known)| Some((*proxy, to(known)?))).collect()
}
