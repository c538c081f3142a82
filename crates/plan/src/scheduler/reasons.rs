//! What counts for a worker that can take a VM.
//!
//! The classes are in one order, and what is less never outweighs what is more: no member failed there lately; few members of
//! its group in the zone, in the rack, on the worker; what the VM would rather have; room; its image there; few VMs.

use std::fmt;

use super::{Candidate, Crowds, Free, Need, Wishes};

/// Weight of one thousandth of free capacity; the number of VMs breaks ties below it.
const SPREAD_WEIGHT: i64 = 1_000;
/// Weight of its image being there, which saves a fetch: a tenth of a worker's room.
const IMAGE_WEIGHT: i64 = 100 * SPREAD_WEIGHT;
/// Weight of one thing that it would rather have: more than half of a worker's room.
const WISH_WEIGHT: i64 = 600 * SPREAD_WEIGHT;
/// Weight of one other member of the same group: more than all of a worker's room.
const MEMBER_WEIGHT: i64 = 2_000 * SPREAD_WEIGHT;
/// Weight of one member in the same rack, and of one in the same zone: more than all that a group can have of the less.
const RACK_WEIGHT: i64 = 1_000 * MEMBER_WEIGHT;
const ZONE_WEIGHT: i64 = 1_000 * RACK_WEIGHT;
/// Weight of a failure.
const FAILURE_WEIGHT: i64 = 2_000 * ZONE_WEIGHT;

/// Something that counts. Words are made for those few whose verdicts are kept.
pub(super) enum Reason {
    /// Members of its group failed there lately.
    Failed,
    /// So many members of its group are in the zone.
    Zone(u64),
    /// So many are in the rack.
    Rack(u64),
    /// So many are there.
    Apart(u64),
    /// It has so many of so many things that are preferred.
    Preferred(usize, usize),
    /// So many thousandths of it are free afterwards.
    Spread(i64),
    /// The parts of its image are there.
    Image,
    /// So many VMs are there.
    Few(i64),
}

impl Reason {
    pub(super) fn score(&self) -> i64 {
        let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        match self {
            Reason::Failed => -FAILURE_WEIGHT,
            Reason::Zone(members) => -number(*members).saturating_mul(ZONE_WEIGHT),
            Reason::Rack(members) => -number(*members).saturating_mul(RACK_WEIGHT),
            Reason::Apart(members) => -number(*members).saturating_mul(MEMBER_WEIGHT),
            Reason::Preferred(wishes, _) => number(*wishes as u64).saturating_mul(WISH_WEIGHT),
            Reason::Spread(free) => free * SPREAD_WEIGHT,
            Reason::Image => IMAGE_WEIGHT,
            Reason::Few(vms) => -vms,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Failed => write!(f, "failed: members of its group did so there lately"),
            Reason::Zone(members) => write!(f, "zone: members of its group in it: {members}"),
            Reason::Rack(members) => write!(f, "rack: members of its group in it: {members}"),
            Reason::Apart(members) => write!(f, "apart: members of its group there: {members}"),
            Reason::Preferred(wishes, wanted) => write!(f, "preferred: {wishes} of {wanted}"),
            Reason::Spread(free) => write!(f, "spread: {}.{} % free after it", free / 10, free % 10),
            Reason::Image => write!(f, "image: it is there already"),
            Reason::Few(vms) => write!(f, "few: VMs there: {vms}"),
        }
    }
}

/// The reasons of a worker that can take it; their scores are added up.
pub(super) fn of(
    crowds: &Crowds<'_>,
    candidate: &Candidate<'_>,
    need: &Need,
) -> impl Iterator<Item = Reason> {
    let offer = candidate.observed.zip(candidate.ledger);
    let of_worker = offer.map(|(observed, ledger)| {
        let per_mille = |free: u64, used: u64, total: u64| {
            u128::from(free.saturating_sub(used)) * 1_000 / u128::from(total.max(1))
        };
        let free = Free::to(need, observed, ledger);
        let cpus = per_mille(free.cpus, need.cpus, observed.cpus);
        let memory = per_mille(free.memory.bytes(), need.memory.bytes(), observed.memory.bytes());
        let free = i64::try_from(cpus.min(memory)).unwrap_or(1_000);
        let vms = i64::try_from(ledger.vms.min(999)).unwrap_or(999);
        let wishes = &need.wishes;
        let has_part = |part: &String| observed.parts.binary_search(part).is_ok();
        let has_image = !wishes.parts.is_empty() && wishes.parts.iter().all(has_part);
        let crowd = need.group.map(|_| crowds.around(candidate.id, candidate.labels));
        let (had, wanted) = granted(candidate, wishes);
        [
            wishes.failed_on.contains(&candidate.id).then_some(Reason::Failed),
            crowd.filter(|_| crowds.has_zones).map(|crowd| Reason::Zone(crowd.zone)),
            crowd.filter(|_| crowds.has_racks).map(|crowd| Reason::Rack(crowd.rack)),
            crowd.map(|crowd| Reason::Apart(crowd.worker)),
            (wanted > 0).then_some(Reason::Preferred(had, wanted)),
            Some(Reason::Spread(free)),
            has_image.then_some(Reason::Image),
            Some(Reason::Few(vms)),
        ]
    });
    of_worker.into_iter().flatten().flatten()
}

/// How many of its wishes a worker grants, and how many there are. That its image is there is nobody's wish.
fn granted(candidate: &Candidate<'_>, wishes: &Wishes) -> (usize, usize) {
    let near = wishes.near_to.as_ref().map(|workers| workers.contains(&candidate.id));
    let apart = (!wishes.apart_from.is_empty()).then(|| !wishes.apart_from.contains(&candidate.id));
    let labels = wishes.on.iter().map(|label| candidate.has(label));
    let granted = labels.chain(near).chain(apart);
    granted.fold((0, 0), |(had, wanted), is_so| (had + usize::from(is_so), wanted + 1))
}

/// Whether nothing is left to wish for: only those that have it all are enough to stop looking for others.
pub(super) fn has_all_wishes(candidate: &Candidate<'_>, wishes: &Wishes) -> bool {
    let (had, wanted) = granted(candidate, wishes);
    had == wanted && !wishes.failed_on.contains(&candidate.id)
}
