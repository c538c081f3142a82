//! What the members of groups that scale themselves use, and what is sent to them: measured, held by the leader for as long as it
//! leads, stored nowhere.
//!
//! ```text
//!   guests' and proxies' counters ──> Gauge ──> a reading per group and look ──> Load ──> Inputs of the group's planner
//! ```

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use lightbyte_api::kinds::scalegroup::autoscale::{Autoscale, WINDOW_MAX};
use lightbyte_api::wire::{Carried, Usage};
use lightbyte_api::{Kind, Name, ObjectRef, Span, Spec, Timestamp, Uid};

use crate::fronts;
use crate::planner::{scalegroup, since};
use crate::view::View;

/// How often members are looked at.
pub const LOOK_PERIOD: Span = Span::from_secs(15);
/// After how long without a look what was seen before says nothing any more.
pub const GAP_MAX: Span = Span::from_millis(LOOK_PERIOD.millis() * 3);
/// A whole in the units of load: one member whose CPUs are all busy all the time, one request, one in a second.
pub const WHOLE: u64 = 1_000;
/// How many readings a group has at most.
const READINGS_MAX: usize = (WINDOW_MAX.millis() / LOOK_PERIOD.millis()) as usize + 2;

/// What a guest's kernel has counted since it started, over all of its CPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuTime {
    /// In which something ran.
    pub busy_millis: u64,
    /// In which nothing did.
    pub idle_millis: u64,
}

impl From<Usage> for CpuTime {
    fn from(usage: Usage) -> CpuTime {
        CpuTime { busy_millis: usage.cpu_busy_millis, idle_millis: usage.cpu_idle_millis }
    }
}

impl CpuTime {
    /// The share of the time since `before` in which something ran, in thousandths. `None` when no time has passed, or the
    /// counters went back: the guest has started anew.
    #[must_use]
    pub fn share_since(self, before: CpuTime) -> Option<u64> {
        let busy = self.busy_millis.checked_sub(before.busy_millis)?;
        let idle = self.idle_millis.checked_sub(before.idle_millis)?;
        let whole = busy.checked_add(idle).filter(|whole| *whole > 0)?;
        u64::try_from(u128::from(busy) * u128::from(WHOLE) / u128::from(whole)).ok()
    }
}

/// What guests and proxies have counted by now. Whoever is not in it did not answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Members, by VM.
    pub cpu: BTreeMap<Uid, CpuTime>,
    /// Proxies, by VM: to whom each has sent how much.
    pub carried: BTreeMap<Uid, BTreeMap<Uid, Carried>>,
}

/// The load of a group at one look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// When, on the leader's clock.
    pub at: Timestamp,
    /// What all members that were measured used together, in thousandths of a member: the average since the look before.
    pub cpu: u64,
    /// How many were measured.
    pub measured: u64,
    /// How many there are or are to be besides: they start, or did not answer.
    pub silent: u64,
    /// What proxies send to all members together.
    pub sent: Sent,
}

/// What the proxies of load balancers send to the members of a group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Requests that ended, in thousandths of one in a second: the average since the look before.
    pub requests: u64,
    /// Requests under way, in thousandths of one.
    pub in_flight: u64,
    /// Every proxy that may send to them was counted, and there is one. Otherwise it may be more.
    pub is_all: bool,
}

/// The readings of one group, oldest first, without a gap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Load {
    readings: VecDeque<Reading>,
}

impl Load {
    /// Adds a reading. After a gap, or on a clock that was set back, it is the first one.
    pub fn push(&mut self, reading: Reading) {
        let follows = self
            .readings
            .back()
            .is_none_or(|last| last.at <= reading.at && since(last.at, reading.at) <= GAP_MAX);
        if !follows {
            self.readings.clear();
        }
        if self.readings.len() == READINGS_MAX {
            self.readings.pop_front();
        }
        self.readings.push_back(reading);
    }

    /// The readings of a `window` that ends with the newest one, the newest first; `None` when not all of it was looked at,
    /// or the newest is old. So what it says changes with a reading, and with time alone only to nothing.
    #[must_use]
    pub fn of(&self, window: Span, now: Timestamp) -> Option<impl Iterator<Item = &Reading>> {
        let (first, last) = (self.readings.front()?, self.readings.back()?.at);
        let is_whole = since(first.at, last) >= window && last <= now && since(last, now) <= GAP_MAX;
        let is_within = move |reading: &&Reading| since(reading.at, last) <= window;
        is_whole.then(|| self.readings.iter().rev().take_while(is_within))
    }
}

/// Makes readings of what guests and proxies have counted.
#[derive(Debug, Default)]
pub struct Gauge {
    /// What each member had counted when it answered last, and when that was.
    counted: BTreeMap<Uid, (CpuTime, Timestamp)>,
    /// The same of each proxy.
    carried: BTreeMap<Uid, (BTreeMap<Uid, Carried>, Timestamp)>,
    loads: BTreeMap<Uid, Arc<Load>>,
}

/// The policy of a group that scales by load.
fn policy_of<'a>(view: &'a View, group: &ObjectRef) -> Option<&'a Autoscale> {
    match view.living(group).map(|asked| &asked.spec) {
        Some(Spec::ScaleGroup(spec)) => spec.autoscale.as_ref().filter(|policy| policy.is_by_load()),
        _ => None,
    }
}

/// Whether a group scales by load.
#[must_use]
pub fn scales_by_it(view: &View, group: &ObjectRef) -> bool {
    policy_of(view, group).is_some()
}

/// The members whose CPU time is asked for: those whose guests are up, of groups that scale by it.
pub fn wanted(view: &View) -> impl Iterator<Item = &ObjectRef> {
    let is_by_cpu = |group: &&ObjectRef| policy_of(view, group).is_some_and(|policy| policy.cpu.is_some());
    view.objects_of(Kind::ScaleGroup).filter(is_by_cpu).flat_map(|group| scalegroup::up(view, group).0)
}

/// The proxies that are asked what they carry: those that may send to a group which scales by that.
#[must_use]
pub fn wanted_proxies(view: &View) -> BTreeSet<Uid> {
    let is_by_it = |group: &&ObjectRef| policy_of(view, group).is_some_and(Autoscale::is_by_requests);
    let groups = view.objects_of(Kind::ScaleGroup).filter(is_by_it);
    let balancers: BTreeSet<&Name> =
        groups.flat_map(|group| balancers_of(view, &uids(view, &scalegroup::up(view, group).0))).collect();
    balancers.into_iter().flat_map(|balancer| proxies_of(view, balancer)).collect()
}

fn uids(view: &View, members: &[&ObjectRef]) -> Vec<Uid> {
    members.iter().filter_map(|member| Some(view.asked(member)?.meta.uid)).collect()
}

fn balancers_of<'a>(view: &'a View, members: &[Uid]) -> BTreeSet<&'a Name> {
    members.iter().flat_map(|member| view.fronted_by(*member)).collect()
}

fn proxies_of(view: &View, balancer: &Name) -> Vec<Uid> {
    let balancer = ObjectRef::new(Kind::LoadBalancer, balancer.clone());
    let choice = fronts::choice(view, &balancer);
    choice.into_iter().flat_map(|choice| &choice.proxies).map(|proxy| proxy.uid).collect()
}

impl Gauge {
    /// Takes what was counted by now. When somebody who did not answer does again, his share is that of the time since he last
    /// did. Returns the groups that have a reading more.
    pub fn take(&mut self, view: &View, now: Timestamp, counted: &Counted) -> Vec<ObjectRef> {
        let (mut known, mut loads, mut groups) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
        for group in view.objects_of(Kind::ScaleGroup) {
            let Some(policy) = policy_of(view, group) else { continue };
            let Some(asked) = view.asked(group) else { continue };
            let Spec::ScaleGroup(spec) = &asked.spec else { continue };
            let (up, living) = scalegroup::up(view, group);
            let up = uids(view, &up);
            let mut reading = Reading { at: now, cpu: 0, measured: 0, silent: 0, sent: Sent::default() };
            for member in &up {
                let before = self.counted.get(member).filter(|(_, at)| since(*at, now) <= GAP_MAX);
                if let Some(time) = counted.cpu.get(member) {
                    let share = before.and_then(|(before, _)| time.share_since(*before));
                    reading.cpu += share.unwrap_or(0);
                    reading.measured += u64::from(share.is_some());
                    known.insert(*member, (*time, now));
                } else if let Some(before) = before {
                    known.insert(*member, *before);
                }
            }
            if policy.is_by_requests() {
                reading.sent = self.sent(view, now, &up, &counted.carried);
            }
            let all = living.max(scalegroup::replicas(view, group, spec));
            reading.silent = all.saturating_sub(reading.measured);
            let mut load = self.loads.remove(&asked.meta.uid).unwrap_or_default();
            Arc::make_mut(&mut load).push(reading);
            loads.insert(asked.meta.uid, load);
            groups.push(group.clone());
        }
        (self.counted, self.loads) = (known, loads);
        self.carried
            .retain(|proxy, (_, at)| since(*at, now) <= GAP_MAX && !counted.carried.contains_key(proxy));
        self.carried.extend(counted.carried.iter().map(|(proxy, to)| (*proxy, (to.clone(), now))));
        groups
    }

    /// What proxies send to these members. Each is heard of those whom its own load balancer fronts, and of nobody else.
    fn sent(
        &self,
        view: &View,
        now: Timestamp,
        members: &[Uid],
        carried: &BTreeMap<Uid, BTreeMap<Uid, Carried>>,
    ) -> Sent {
        let mut sent = Sent::default();
        let (mut proxies, mut silent) = (0_u64, 0_u64);
        for balancer in balancers_of(view, members) {
            let fronted: Vec<Uid> = members
                .iter()
                .copied()
                .filter(|member| view.fronted_by(*member).any(|name| name == balancer))
                .collect();
            for proxy in proxies_of(view, balancer) {
                proxies += 1;
                let said = carried.get(&proxy);
                let before = self.carried.get(&proxy).filter(|(_, at)| since(*at, now) <= GAP_MAX);
                silent += u64::from(said.is_none() || before.is_none());
                let of = |carried: &BTreeMap<Uid, Carried>, to| carried.get(to).copied().unwrap_or_default();
                for (to, said) in fronted.iter().filter_map(|to| Some((to, of(said?, to)))) {
                    sent.in_flight = sent.in_flight.saturating_add(said.in_flight.saturating_mul(WHOLE));
                    let Some((before, at)) = before else { continue };
                    // Counters that went back: it knows the member anew, and has counted since.
                    let requests =
                        said.requests.checked_sub(of(before, to).requests).unwrap_or(said.requests);
                    sent.requests = sent.requests.saturating_add(per_second(requests, since(*at, now)));
                }
            }
        }
        sent.is_all = proxies > 0 && silent == 0;
        sent
    }

    /// The readings of each group.
    #[must_use]
    pub const fn loads(&self) -> &BTreeMap<Uid, Arc<Load>> {
        &self.loads
    }
}

/// In thousandths of one in a second.
fn per_second(requests: u64, passed: Span) -> u64 {
    let thousandths = u128::from(requests) * u128::from(WHOLE) * 1_000 / u128::from(passed.millis().max(1));
    u64::try_from(thousandths).unwrap_or(u64::MAX)
}
