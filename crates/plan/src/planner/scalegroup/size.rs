//! How many members a group has: as asked, or by its policy.
//!
//! Load is added up over members before it is compared with the target, so how many members share it makes no difference:
//! while new ones start, what is needed stays the same, and nothing is added twice.

use lightbyte_api::kinds::scalegroup::{Autoscale, Percent, Rate, Scaling, Schedule};
use lightbyte_api::{Span, Timestamp};

use crate::load::{Load, Reading, WHOLE};
use crate::planner::since;

/// By how many hundredths load may be above the target until members are added, and has to be below it after some have gone.
/// Between the two nothing is done, so that a load that trembles moves nobody.
const TOLERANCE_PERCENT: u64 = 10;

/// From how many hundredths on members count as busy as they can be.
const FULL_PERCENT: u64 = 97;

/// What the size of a group rests on besides its policy.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// The time, on the leader's clock.
    pub now: Timestamp,
    /// The time that schedules go by.
    pub time_of_day: Timestamp,
    /// How many members live.
    pub members: u64,
    /// What was decided last.
    pub before: Option<&'a Scaling>,
    /// What members use, as far as it was measured.
    pub load: Option<&'a Load>,
}

/// How many members there are to be, and when time alone may change that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Size {
    /// What is decided.
    pub scaling: Scaling,
    /// When to look again.
    pub again: Option<Span>,
}

/// The size of a group with a policy. It lies between the bounds that hold now; without a whole window of load it stays as
/// it is between them; a step by load is never larger than its rate allows.
#[must_use]
pub fn next(policy: &Autoscale, known: &Known<'_>) -> Size {
    let low = Bound::low(policy, known.time_of_day);
    let current = known.before.map_or(known.members, |before| before.desired);
    let decide = |desired: u64, because: String| Scaling { desired, changed_at: known.now, because };
    let scheduled = if known.time_of_day == known.now { until_change(policy, known.now) } else { None };
    if current < low.members {
        return Size { scaling: decide(low.members, low.because()), again: scheduled };
    }
    if current > policy.max {
        let because = format!("at most {} are asked for", policy.max);
        return Size { scaling: decide(policy.max, because), again: scheduled };
    }
    let Some(before) = known.before else {
        let because = "as many as there were when it began to scale itself".to_owned();
        return Size { scaling: decide(current, because), again: scheduled };
    };
    let stay = |again: Option<Span>| Size {
        scaling: before.clone(),
        again: scheduled.into_iter().chain(again).min(),
    };
    let Some(Step { to, rate, because }) = wish(policy, known, current, &low) else { return stay(None) };
    // A step that is yet to come was made before somebody set the clock back: it keeps nobody waiting.
    let rested = since(before.changed_at, known.now);
    if before.changed_at <= known.now && rested < rate.every {
        return stay(Some(Span::from_millis(rate.every.millis() - rested.millis())));
    }
    let most = rate.step_from(current);
    let desired = to.clamp(current.saturating_sub(most), current + most);
    let again = (desired != to).then_some(rate.every);
    Size { scaling: decide(desired, because), again: scheduled.into_iter().chain(again).min() }
}

/// The fewest members that are asked for now.
struct Bound<'a> {
    members: u64,
    schedule: Option<&'a Schedule>,
}

impl Bound<'_> {
    fn low(policy: &Autoscale, now: Timestamp) -> Bound<'_> {
        let on = policy.schedules.iter().filter(|schedule| schedule.is_on(now));
        let highest = on.max_by_key(|schedule| schedule.min).filter(|schedule| schedule.min > policy.min);
        let members = highest.map_or(policy.min, |schedule| schedule.min).min(policy.max);
        Bound { members, schedule: highest }
    }

    fn because(&self) -> String {
        match self.schedule {
            Some(schedule) => format!("its schedule `{}` asks for {} at least", schedule.cron.as_str(), self.members),
            None => format!("at least {} are asked for", self.members),
        }
    }
}

fn until_change(policy: &Autoscale, now: Timestamp) -> Option<Span> {
    let next = policy.schedules.iter().filter_map(|schedule| schedule.next_change(now)).min()?;
    Some(since(now, next))
}

/// A change that is asked for.
struct Step<'a> {
    to: u64,
    rate: &'a Rate,
    because: String,
}

/// What the load asks for, or where nothing is measured, the bounds.
fn wish<'a>(policy: &'a Autoscale, known: &Known<'_>, current: u64, low: &Bound<'_>) -> Option<Step<'a>> {
    let Some(Percent(target)) = policy.cpu else {
        let step = Step { to: low.members, rate: &policy.scale_in, because: low.because() };
        return (low.members < current).then_some(step);
    };
    let load = known.load?;
    let because = |reading: &Reading| format!("its members' CPUs are {}% busy in all, and {target}% each is wanted", reading.cpu * 100 / WHOLE);
    let least = load.of(policy.scale_out.window, known.now).and_then(|readings| readings.min_by_key(|reading| reading.cpu));
    if let Some(reading) = least {
        // Members that are all as busy as they can be show that there is more to do, and not how much: half as many again.
        let is_full = reading.measured >= current
            && reading.cpu * 100 >= reading.measured * WHOLE * FULL_PERCENT;
        let more = if is_full { current + current.div_ceil(2) } else { 0 };
        let to = needed(reading, target).max(more).min(policy.max);
        // Half of what is free above a high target is tolerance too: nobody is measured to be busier than he can be.
        let tolerance = (target * TOLERANCE_PERCENT).min((100 - target.min(100)) * 50);
        let is_over = reading.cpu * 100 * 100 > current * (target * 100 + tolerance) * WHOLE;
        if is_over && to > current {
            return Some(Step { to, rate: &policy.scale_out, because: because(reading) });
        }
    }
    let allowed = |reading: &Reading| {
        // Whoever is silent may be as busy as he is to be.
        needed(reading, target * (100 - TOLERANCE_PERCENT) / 100) + reading.silent
    };
    let most = load.of(policy.scale_in.window, known.now)?.max_by_key(|reading| allowed(reading))?;
    let to = allowed(most).max(low.members);
    (to < current).then(|| Step { to, rate: &policy.scale_in, because: because(most) })
}

/// How many members what was measured needs, when each is `target` hundredths busy.
fn needed(reading: &Reading, target: u64) -> u64 {
    (reading.cpu * 100).div_ceil(target.max(1) * WHOLE)
}
