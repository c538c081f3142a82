//! What the members of groups that scale themselves use: measured, held by the leader for as long as it leads, stored nowhere.
//!
//! ```text
//!   guests' counters ──> Gauge ──> a reading per group and look ──> Load ──> Inputs of the group's planner
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use lightbyte_api::kinds::scalegroup::autoscale::WINDOW_MAX;
use lightbyte_api::wire::Usage;
use lightbyte_api::{Kind, ObjectRef, Span, Spec, Timestamp, Uid};

use crate::planner::{scalegroup, since};
use crate::view::View;

/// How often members are looked at.
pub const LOOK_PERIOD: Span = Span::from_secs(15);
/// After how long without a look what was seen before says nothing any more.
pub const GAP_MAX: Span = Span::from_millis(LOOK_PERIOD.millis() * 3);
/// A whole in the unit of load: one member whose CPUs are all busy all the time.
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

/// Makes readings of what members' guests have counted.
#[derive(Debug, Default)]
pub struct Gauge {
    /// What each member had counted when it answered last, and when that was.
    counted: BTreeMap<Uid, (CpuTime, Timestamp)>,
    loads: BTreeMap<Uid, Arc<Load>>,
}

/// Whether a group scales by the load of its members.
#[must_use]
pub fn scales_by_it(view: &View, group: &ObjectRef) -> bool {
    let spec = view.living(group).map(|asked| &asked.spec);
    matches!(spec, Some(Spec::ScaleGroup(spec)) if spec.autoscale.as_ref().is_some_and(|policy| policy.cpu.is_some()))
}

/// The members whose load is asked for: those whose guests are up, of groups that scale by it.
pub fn wanted(view: &View) -> impl Iterator<Item = &ObjectRef> {
    let groups = view.objects_of(Kind::ScaleGroup).filter(|group| scales_by_it(view, group));
    groups.flat_map(move |group| scalegroup::up(view, group).0)
}

impl Gauge {
    /// Takes what the members' guests have counted by now. A member that is not in `counted` did not answer; when it does
    /// again, its share is that of the time since it last did. Returns the groups that have a reading more.
    pub fn take(&mut self, view: &View, now: Timestamp, counted: &BTreeMap<Uid, CpuTime>) -> Vec<ObjectRef> {
        let (mut known, mut loads, mut groups) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
        for group in view.objects_of(Kind::ScaleGroup).filter(|group| scales_by_it(view, group)) {
            let Some(asked) = view.asked(group) else { continue };
            let Spec::ScaleGroup(spec) = &asked.spec else { continue };
            let (up, living) = scalegroup::up(view, group);
            let mut reading = Reading { at: now, cpu: 0, measured: 0, silent: 0 };
            for member in up.iter().filter_map(|member| Some(view.asked(member)?.meta.uid)) {
                let before = self.counted.get(&member).filter(|(_, at)| since(*at, now) <= GAP_MAX);
                if let Some(time) = counted.get(&member) {
                    let share = before.and_then(|(before, _)| time.share_since(*before));
                    reading.cpu += share.unwrap_or(0);
                    reading.measured += u64::from(share.is_some());
                    known.insert(member, (*time, now));
                } else if let Some(before) = before {
                    known.insert(member, *before);
                }
            }
            let all = living.max(scalegroup::replicas(view, group, spec));
            reading.silent = all.saturating_sub(reading.measured);
            let mut load = self.loads.remove(&asked.meta.uid).unwrap_or_default();
            Arc::make_mut(&mut load).push(reading);
            loads.insert(asked.meta.uid, load);
            groups.push(group.clone());
        }
        (self.counted, self.loads) = (known, loads);
        groups
    }

    /// The readings of each group.
    #[must_use]
    pub const fn loads(&self) -> &BTreeMap<Uid, Arc<Load>> {
        &self.loads
    }
}
