//! What a group does next: a function of its members as they were counted, and of nothing else.
//!
//! A member **satisfies** when it is of the version that all are to be of, and stays where it is. `replicas` of them are
//! wanted; everything else is too much. Scaling, updates, roll-backs, drains and workers that come back are this one rule.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use lightbyte_api::kinds::scalegroup::RetiredFor;

/// A group as it is counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Count {
    /// How many members it is to have.
    pub replicas: usize,
    /// How many more may live meanwhile.
    pub surge_max: usize,
    /// How many of `replicas` may be unavailable by a deed of ours.
    pub unavailable_max: usize,
    /// How many failed members may be replaced now.
    pub heals_left: usize,
    /// Those that live and are not let go; those on lost workers are not among them.
    pub members: Vec<Counted>,
}

/// A member as it is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counted {
    /// Its version.
    pub version: u64,
    /// Why it does not satisfy, if it does not.
    pub outdated: Option<RetiredFor>,
    /// Whether it serves.
    pub service: Service,
    /// Whether it has not served for so long that it is replaced.
    pub has_failed: bool,
    /// Whether it may serve again by itself: others like it have.
    pub may_recover: bool,
    /// Whether a VM with a higher priority is promised its room: it goes, whatever the group is left with.
    pub preempted: bool,
    /// Whether others go when there are too many.
    pub protected: bool,
    /// Where it is.
    pub seat: Seat,
    /// The number in its name: the order in which members were made.
    pub number: u64,
}

/// Where a member is: a number for each zone, for each rack of a zone, and for each worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seat {
    /// Its zone.
    pub zone: usize,
    /// Its rack.
    pub rack: usize,
    /// Its worker.
    pub worker: usize,
}

/// Whether a member serves, as far as that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Service {
    /// It is known not to serve.
    None,
    /// It serves, and not yet for as long as is asked to be available.
    Young,
    /// It is available.
    Available,
    /// Nobody can say: its worker is away, or has not seen what it is to be. It is left alone, and not relied on.
    Unknown,
}

/// What to do. Members are named by their place in [`Count::members`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Steps {
    /// How many members to make.
    pub make: usize,
    /// Which members to let go, and why.
    pub retire: Vec<(usize, RetiredFor)>,
    /// Whether failed members wait for their turn.
    pub healing_pauses: bool,
    /// How many more there are than are wanted, and stay because they are protected.
    pub protected: usize,
}

impl Steps {
    /// Whether nothing is to be done, and nothing waits for its turn.
    #[must_use]
    pub const fn is_nothing(&self) -> bool {
        self.make == 0 && self.retire.is_empty() && !self.healing_pauses
    }
}

/// The next steps. What they promise (rules 9 and 10):
/// - an available member is let go only while `replicas - unavailable_max` others are available, unless it is preempted;
/// - no more than `replicas + surge_max` live because of what is made here;
/// - when `replicas` members satisfy and are all there are, there is nothing to do.
#[must_use]
pub fn next(count: &Count) -> Steps {
    let mut steps = Steps::default();
    let mut healed = 0;
    let preempted = indices(count, |member| member.preempted && member.service != Service::Unknown);
    steps.retire.extend(preempted.iter().map(|index| (*index, RetiredFor::Preemption)));
    let has_failed = |member: &Counted| member.has_failed && member.service == Service::None;
    let failed = indices(count, |member| has_failed(member) && !member.preempted);
    for index in failed.iter().copied() {
        // One that has to go anyway needs no turn.
        let outdated = count.members[index].outdated;
        if outdated.is_none() && healed == count.heals_left {
            continue;
        }
        healed += usize::from(outdated.is_none());
        steps.retire.push((index, outdated.unwrap_or(RetiredFor::Health)));
    }
    let gone: Vec<usize> = steps.retire.iter().map(|(index, _)| *index).collect();
    let left = (0..count.members.len()).filter(|index| !gone.contains(index)).collect::<Vec<_>>();

    let satisfying = left.iter().filter(|index| count.members[**index].outdated.is_none()).count();
    let room = (count.replicas + count.surge_max).saturating_sub(left.len());
    steps.make = count.replicas.saturating_sub(satisfying).min(room);

    let (mut surplus, protected) = surplus(count, &left);
    steps.protected = protected;
    // Those that serve nobody cost nothing, and make room.
    surplus.sort_by_key(|(index, _)| count.members[*index].service);
    let floor = count.replicas.saturating_sub(count.unavailable_max);
    let is_available = |index: &&usize| count.members[**index].service == Service::Available;
    let mut available = left.iter().filter(is_available).count();
    for (index, because) in surplus {
        let member = &count.members[index];
        match member.service {
            // One that has worked is given its time, unless enough others serve.
            Service::None if !member.may_recover || available >= floor => {}
            // Who asked for another one has looked at it.
            Service::None if because == RetiredFor::Request => {}
            // It is not relied on yet, but people may be.
            Service::Young if available >= floor => {}
            Service::Available if available > floor => available -= 1,
            _ => continue,
        }
        steps.retire.push((index, because));
    }
    let is_left = |index: &usize| steps.retire.iter().all(|(gone, _)| gone != index);
    steps.healing_pauses = failed.iter().any(is_left);
    steps
}

/// The members that are too much, the first to go first: those that do not satisfy, oldest version first; then, of those that
/// do, as many as are more than asked, the least available first, then one by one from the fullest zone, rack and worker, the
/// youngest first. Those that are protected are not among these; the second says how many more there still are.
fn surplus(count: &Count, left: &[usize]) -> (Vec<(usize, RetiredFor)>, usize) {
    let member = |index: &usize| &count.members[*index];
    let mut outdated: Vec<(usize, RetiredFor)> =
        left.iter().filter_map(|index| Some((*index, member(index).outdated?))).collect();
    outdated.sort_by_key(|(index, _)| (member(index).version, member(index).number));
    let mut satisfying: Vec<usize> =
        left.iter().copied().filter(|index| member(index).outdated.is_none()).collect();
    let mut taken = Taken::default();
    satisfying.iter().for_each(|index| taken.count(&member(index).seat, 1));
    let mut more = Vec::new();
    while satisfying.len() > count.replicas {
        let may_go = (0..satisfying.len()).filter(|place| !member(&satisfying[*place]).protected);
        let first = may_go.min_by_key(|place| {
            let Counted { service, seat, number, .. } = member(&satisfying[*place]);
            let is_kept = matches!(service, Service::Available | Service::Unknown);
            (is_kept, Reverse(taken.around(seat)), Reverse(*number))
        });
        let Some(first) = first.map(|first| satisfying.remove(first)) else { break };
        taken.count(&member(&first).seat, -1);
        more.push((first, RetiredFor::Scale));
    }
    let too_many = satisfying.len().saturating_sub(count.replicas);
    (outdated.into_iter().chain(more).collect(), too_many)
}

/// How many members are in each zone, in each rack and on each worker.
#[derive(Default)]
struct Taken([BTreeMap<usize, i64>; 3]);

impl Taken {
    fn count(&mut self, Seat { zone, rack, worker }: &Seat, more: i64) {
        for (counts, seat) in self.0.iter_mut().zip([zone, rack, worker]) {
            *counts.entry(*seat).or_default() += more;
        }
    }

    /// In the zone, in the rack and on the worker of a seat.
    fn around(&self, Seat { zone, rack, worker }: &Seat) -> [i64; 3] {
        let [zones, racks, workers] = &self.0;
        [(zones, zone), (racks, rack), (workers, worker)]
            .map(|(counts, seat)| counts.get(seat).copied().unwrap_or(0))
    }
}

fn indices(count: &Count, is: impl Fn(&Counted) -> bool) -> Vec<usize> {
    count.members.iter().enumerate().filter(|(_, member)| is(member)).map(|(index, _)| index).collect()
}
