//! Load: what groups' members use, how the leader comes to know of it, and what must hold of groups that scale themselves.

use std::collections::BTreeMap;

use lightbyte_api::kinds::scalegroup::autoscale::{Cron, EVERY_MIN, Zone};
use lightbyte_api::kinds::scalegroup::{Autoscale, Percent, Rate, Schedule, Share, Spec as GroupSpec};
use lightbyte_api::{Kind, ObjectRef, Span, Spec, Timestamp, Uid, VmId};
use lightbyte_plan::load::{self, CpuTime, LOOK_PERIOD, WHOLE};
use lightbyte_plan::status;
use lightbyte_plan::view::View;

use crate::cluster::{Checked, Cluster};
use crate::groups::{choice, manifest};
use crate::oracle::{told, violated};

/// A pattern that began at the beginning of time, and lasts for the whole of a run.
const ALWAYS: &str = "0 0 1 1 *";

/// What guests do with their CPUs.
#[derive(Default)]
pub(crate) struct Demands {
    /// How many thousandths of a member all members of a group would use together.
    of_group: BTreeMap<Uid, u64>,
    /// What each guest has counted, and when that was brought forward last.
    counted: BTreeMap<Uid, (CpuTime, u64)>,
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
        let cpu = if schedules.is_none() || self.rng.once_in(2) {
            Some(Percent([30, 60, 90][self.rng.below(3)]))
        } else {
            None
        };
        let mut rate = |window_most: usize| Rate {
            window: Span::from_secs(self.rng.below(window_most) as u64 * LOOK_PERIOD.millis() / 1_000),
            at_most: [Share::Count(1), Share::Count(2), Share::Percent(50), Share::Percent(100)]
                [self.rng.below(4)],
            every: Span::from_millis(EVERY_MIN.millis() + self.rng.below(3) as u64 * 10_000),
        };
        let (scale_out, scale_in) = (rate(3), rate(4));
        Autoscale { min, max, cpu, scale_out, scale_in, schedules: schedules.into_iter().collect() }
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

    /// What the guests of `members` have counted by now; some do not answer.
    pub(crate) fn count_cpu(&mut self, view: &View) -> BTreeMap<Uid, CpuTime> {
        let mut found = BTreeMap::new();
        if self.demands.are_hidden {
            return found;
        }
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
            let Some(Percent(target)) = policy.cpu else {
                if size != low {
                    return violated("scaling", format!("{group} has {size}, and {low} are enough"));
                }
                continue;
            };
            if !status::state(&view, group).is_some_and(|(_, is_ready)| is_ready) {
                continue;
            }
            self.counts.add("group of the right size");
            let demand = self.demands.of_group.get(&asked.meta.uid).copied().unwrap_or(0);
            let used = demand.min(size * WHOLE);
            let needs = |percent: u64| (used * 100).div_ceil(percent * WHOLE);
            let (fewest, most) = (needs(target * 110 / 100), needs(target * 9 / 10).max(low));
            // A load that is cut into parts is measured a little too small.
            let is_few =
                size + 1 < fewest.min(policy.max) || (size < policy.max && used * 10 > size * target * 111);
            if is_few || size > most {
                let text =
                    format!("{group} has {size} for a load of {demand}, {policy:?}: {}", told(&view, group));
                return violated("scaling", text);
            }
        }
        Ok(())
    }
}
