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

impl Step<'_> {
    fn larger(self, other: Self) -> Self {
        if other.to > self.to { other } else { self }
    }
}

/// What the load asks for, or where nothing is measured, the bounds. Of several signals the one that needs most members is
/// followed; members go when all of them allow it.
fn wish<'a>(policy: &'a Autoscale, known: &Known<'_>, current: u64, low: &Bound<'_>) -> Option<Step<'a>> {
    if !policy.is_by_load() {
        let step = Step { to: low.members, rate: &policy.scale_in, because: low.because() };
        return (low.members < current).then_some(step);
    }
    let load = known.load?;
    let out = Signal::all(policy).filter_map(|signal| {
        let (to, reading) = signal.out(policy, load, known.now, current)?;
        Some(Step { to, rate: &policy.scale_out, because: signal.because(reading) })
    });
    // Of two that need as many, the first one is told.
    let most = out.reduce(Step::larger);
    if most.is_some() {
        return most;
    }
    let allowed = Signal::all(policy).map(|signal| {
        let (to, reading) = signal.allowed(policy, load, known.now)?;
        Some(Step { to: to.max(low.members), rate: &policy.scale_in, because: signal.because(reading) })
    });
    // One that is not known lets nobody go.
    let allowed = allowed.collect::<Option<Vec<Step<'_>>>>()?;
    allowed.into_iter().reduce(Step::larger).filter(|step| step.to < current)
}

/// Something by which a group scales, with how much of it each member is to have.
#[derive(Clone, Copy)]
enum Signal {
    /// Hundredths of a member's CPUs.
    Cpu(u64),
    /// Requests in a second.
    Requests(u64),
    /// Requests in flight.
    Concurrency(u64),
}

impl Signal {
    fn all(policy: &Autoscale) -> impl Iterator<Item = Signal> {
        let cpu = policy.cpu.map(|Percent(target)| Signal::Cpu(target));
        let requests = policy.requests_per_second.map(Signal::Requests);
        cpu.into_iter().chain(requests).chain(policy.concurrency.map(Signal::Concurrency))
    }

    /// How many members there are to be at least, if that is more than there are: the least of a window.
    fn out<'a>(
        self,
        policy: &Autoscale,
        load: &'a Load,
        now: Timestamp,
        current: u64,
    ) -> Option<(u64, &'a Reading)> {
        let reading = load.of(policy.scale_out.window, now)?.min_by_key(|reading| self.amount(reading))?;
        // Members that are all as busy as they can be show that there is more to do, and not how much: half as many again.
        let is_full = matches!(self, Signal::Cpu(_))
            && reading.measured >= current
            && reading.cpu * 100 >= reading.measured * WHOLE * FULL_PERCENT;
        let more = if is_full { current + current.div_ceil(2) } else { 0 };
        let to = self.needed(reading, 100).max(more).min(policy.max);
        let most = u128::from(current) * u128::from(self.target() + self.tolerance());
        (u128::from(self.amount(reading)) > most && to > current).then_some((to, reading))
    }

    /// How many members are enough: the most of a window.
    fn allowed<'a>(self, policy: &Autoscale, load: &'a Load, now: Timestamp) -> Option<(u64, &'a Reading)> {
        let enough = |reading: &Reading| {
            let needed = self.needed(reading, 100 - TOLERANCE_PERCENT);
            match self {
                // Whoever is silent may be as busy as he is to be.
                Signal::Cpu(_) => needed.saturating_add(reading.silent),
                Signal::Requests(_) | Signal::Concurrency(_) if reading.sent.is_all => needed,
                // A proxy that is silent may send any number.
                Signal::Requests(_) | Signal::Concurrency(_) => u64::MAX,
            }
        };
        let most = load.of(policy.scale_in.window, now)?.max_by_key(|reading| enough(reading))?;
        Some((enough(most), most))
    }

    /// How much there is of it, in thousandths.
    fn amount(self, reading: &Reading) -> u64 {
        match self {
            Signal::Cpu(_) => reading.cpu,
            Signal::Requests(_) => reading.sent.requests,
            Signal::Concurrency(_) => reading.sent.in_flight,
        }
    }

    /// How much each member is to have, in thousandths.
    fn target(self) -> u64 {
        match self {
            Signal::Cpu(percent) => percent.max(1) * WHOLE / 100,
            Signal::Requests(count) | Signal::Concurrency(count) => count.clamp(1, u64::from(u32::MAX)) * WHOLE,
        }
    }

    /// By how much each member may be above that until there are more.
    fn tolerance(self) -> u64 {
        let tolerance = self.target() * TOLERANCE_PERCENT / 100;
        match self {
            // Half of what is free above a high target is tolerance too: nobody is measured to be busier than he can be.
            Signal::Cpu(_) => tolerance.min(WHOLE.saturating_sub(self.target()) / 2),
            Signal::Requests(_) | Signal::Concurrency(_) => tolerance,
        }
    }

    /// How many members what was measured needs, when each has so many hundredths of what it is to have.
    fn needed(self, reading: &Reading, percent: u64) -> u64 {
        let each = u128::from(self.target()) * u128::from(percent);
        let needed = (u128::from(self.amount(reading)) * 100).div_ceil(each.max(1));
        u64::try_from(needed).unwrap_or(u64::MAX)
    }

    fn because(self, reading: &Reading) -> String {
        let amount = self.amount(reading) / WHOLE;
        match self {
            Signal::Cpu(target) => {
                let busy = reading.cpu * 100 / WHOLE;
                format!("its members' CPUs are {busy}% busy in all, and {target}% each is wanted")
            }
            Signal::Requests(target) => {
                format!("it gets {amount} requests a second in all, and {target} for each member are wanted")
            }
            Signal::Concurrency(target) => {
                format!("{amount} requests to it are in flight, and {target} for each member are wanted")
            }
        }
    }
}
