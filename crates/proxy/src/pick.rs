//! Which backend of a pool gets a request.
//!
//! Three passes: first those that are healthy and untried, then those that are untried (a pool whose members are all
//! unhealthy keeps them: better a try than a sure 503), then any.

use lightbyte_api::topology::Balance;

use crate::chance::{mix, stable_hash};

/// Turns until a round repeats. Weights that need more are rounded: one in 4,096 is as fine as anybody can measure.
const ROUND_MAX: u64 = 4_096;

/// Draws in the place of a member that is not fit, before the next one in the round is looked for. The next one alone would
/// bear the whole load of one that is down; drawn, it falls upon all.
const DRAWS: u64 = 6;

/// Pools up to this size are looked through for the member with the fewest requests; of larger ones two are compared.
/// The best of two is nearly as good as the best of all and costs the same in a pool of a thousand.
const LOOKED_THROUGH_MAX: usize = 16;

/// What has to be known of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    Fine,
    Unhealthy,
    /// This request has failed there already.
    Tried,
}

/// The members of a pool, made ready for choices. Those that retire or weigh nothing are not among them.
#[derive(Debug)]
pub(crate) struct Slots {
    weights: Vec<u32>,
    hashes: Vec<u64>,
    round: Vec<u16>,
    way: Way,
}

#[derive(Debug)]
enum Way {
    Turn,
    Fewest,
    Hash,
}

impl Slots {
    /// From the uids and weights of members, none of which is 0.
    pub(crate) fn new(balance: &Balance, members: &[(&str, u32)]) -> Slots {
        let weights: Vec<u32> = members.iter().map(|(_, weight)| *weight).collect();
        let hashes = members.iter().map(|(uid, _)| stable_hash(uid.as_bytes())).collect();
        let way = match balance {
            Balance::RoundRobin => Way::Turn,
            Balance::LeastConnections => Way::Fewest,
            Balance::Hash(_) => Way::Hash,
        };
        Slots { round: round(&weights), weights, hashes, way }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.weights.is_empty()
    }

    /// Whether the fewest requests in flight count.
    pub(crate) const fn is_by_load(&self) -> bool {
        matches!(self.way, Way::Fewest)
    }

    /// A member for the request that has this turn and, where there is one, this key. None only if there are none.
    pub(crate) fn choose(
        &self,
        turn: u64,
        key: Option<u64>,
        standing: impl Fn(usize) -> Standing,
        in_flight: impl Fn(usize) -> usize,
    ) -> Option<usize> {
        let passes: [&dyn Fn(usize) -> bool; 3] = [
            &|member| standing(member) == Standing::Fine,
            &|member| standing(member) != Standing::Tried,
            &|_| true,
        ];
        passes.iter().find_map(|is_fit| match (&self.way, key) {
            (Way::Hash, Some(key)) => self.by_hash(key, is_fit),
            (Way::Fewest, _) => self.by_load(turn, is_fit, &in_flight),
            (Way::Turn, _) | (Way::Hash, None) => self.by_turn(turn, is_fit),
        })
    }

    fn by_turn(&self, turn: u64, is_fit: &dyn Fn(usize) -> bool) -> Option<usize> {
        let length = self.round.len() as u64;
        let from = turn.checked_rem(length)? as usize;
        let drawn = (1..=DRAWS).filter_map(|draw| mix(turn ^ (draw << 56)).checked_rem(length));
        let at = |place: u64| self.round.get(place as usize).map(|member| usize::from(*member));
        let mut soon = [from as u64].into_iter().chain(drawn).filter_map(at);
        if let Some(member) = soon.find(|member| is_fit(*member)) {
            return Some(member);
        }
        let (before, after) = self.round.split_at(from);
        after.iter().chain(before).map(|member| usize::from(*member)).find(|member| is_fit(*member))
    }

    fn by_load(
        &self,
        turn: u64,
        is_fit: &dyn Fn(usize) -> bool,
        in_flight: &dyn Fn(usize) -> usize,
    ) -> Option<usize> {
        // A request in flight counts as much more as the member weighs less; the one to come is counted already.
        let load =
            |member: usize| (in_flight(member) as u64 + 1) * 1_000_000 / u64::from(self.weights[member]);
        let members = self.weights.len();
        if members <= LOOKED_THROUGH_MAX {
            // From another member on each time, so that those that are equal take turns.
            let from = turn.checked_rem(members as u64)? as usize;
            let fit = (from..members).chain(0..from).filter(|member| is_fit(*member));
            return fit.min_by_key(|member| load(*member));
        }
        let one = self.by_turn(mix(turn), is_fit)?;
        let other = self.by_turn(mix(!turn), is_fit)?;
        Some(if load(other) < load(one) { other } else { one })
    }

    /// Rendezvous: each member draws for the key, the best draw wins. So a member that goes takes only its own keys
    /// along. A member's chances follow its weight (the logarithmic method).
    fn by_hash(&self, key: u64, is_fit: &dyn Fn(usize) -> bool) -> Option<usize> {
        let draw = |member: usize| {
            let drawn = (mix(self.hashes[member] ^ key) >> 11) as f64 + 0.5;
            f64::from(self.weights[member]) / -(drawn / (1_u64 << 53) as f64).ln()
        };
        let fit = (0..self.weights.len()).filter(|member| is_fit(*member));
        fit.map(|member| (member, draw(member)))
            .max_by(|one, other| one.1.total_cmp(&other.1))
            .map(|best| best.0)
    }
}

/// The order of turns, each member as often as it weighs and spread out (smooth weighted round robin).
fn round(weights: &[u32]) -> Vec<u16> {
    let divisor = weights.iter().fold(0, |one, other| greatest_common_divisor(one, *other)).max(1);
    let sum: u64 = weights.iter().map(|weight| u64::from(weight / divisor)).sum();
    let scaled: Vec<i64> = weights
        .iter()
        .map(|weight| {
            let weight = u64::from(weight / divisor);
            let weight = if sum > ROUND_MAX { (weight * ROUND_MAX / sum).max(1) } else { weight };
            i64::try_from(weight).unwrap_or(1)
        })
        .collect();
    let length: i64 = scaled.iter().sum();
    let mut credit = vec![0_i64; scaled.len()];
    let mut round = Vec::new();
    for _ in 0..length {
        credit.iter_mut().zip(&scaled).for_each(|(credit, weight)| *credit += weight);
        // The first of the best, so that equal ones come in their order.
        let best = (0..credit.len()).rev().max_by_key(|member| credit[*member]).unwrap_or_default();
        credit[best] -= length;
        round.push(u16::try_from(best).unwrap_or_default());
    }
    round
}

const fn greatest_common_divisor(mut one: u32, mut other: u32) -> u32 {
    while other != 0 {
        (one, other) = (other, one % other);
    }
    one
}

#[cfg(test)]
mod tests {
    use lightbyte_api::topology::HashKey;

    use super::*;

    fn slots(balance: &Balance, weights: &[u32]) -> Slots {
        let names: Vec<String> = (0..weights.len()).map(|index| format!("uid-{index}")).collect();
        let members: Vec<(&str, u32)> =
            names.iter().map(String::as_str).zip(weights.iter().copied()).collect();
        Slots::new(balance, &members)
    }

    #[test]
    fn turns_follow_weights_and_are_spread() {
        let table: [(&[u32], &[usize]); 5] = [
            (&[1, 1, 1], &[0, 1, 2, 0, 1, 2]),
            (&[100, 100], &[0, 1, 0, 1]),
            (&[5, 1, 1], &[0, 0, 1, 0, 2, 0, 0]),
            (&[7], &[0, 0]),
            (&[3, 6], &[1, 0, 1, 1, 0, 1]),
        ];
        for (weights, expected) in table {
            let slots = slots(&Balance::RoundRobin, weights);
            let chosen: Vec<usize> = (0..expected.len() as u64)
                .filter_map(|turn| slots.choose(turn, None, |_| Standing::Fine, |_| 0))
                .collect();
            assert_eq!(chosen, expected, "{weights:?}");
        }
        let long = slots(&Balance::RoundRobin, &[1_000_000, 1, 999_983]).round.len() as u64;
        assert!(long <= ROUND_MAX + 3, "{long}");
    }

    #[test]
    fn the_unhealthy_and_the_tried_come_last() {
        use Standing::{Fine, Tried, Unhealthy};
        let table: [(&[Standing], Option<usize>); 6] = [
            (&[Unhealthy, Fine, Tried], Some(1)),
            (&[Tried, Unhealthy, Tried], Some(1)),
            (&[Unhealthy, Unhealthy, Unhealthy], Some(0)),
            (&[Tried, Tried], Some(0)),
            (&[Tried, Tried, Fine], Some(2)),
            (&[], None),
        ];
        for balance in [Balance::RoundRobin, Balance::LeastConnections] {
            for (standings, expected) in table {
                let slots = slots(&balance, &vec![1; standings.len()]);
                let chosen = slots.choose(0, None, |member| standings[member], |_| 0);
                assert_eq!(chosen, expected, "{balance:?} {standings:?}");
            }
        }
    }

    #[test]
    fn the_turns_of_one_that_is_not_fit_fall_upon_all_others() {
        let slots = slots(&Balance::RoundRobin, &[1; 5]);
        let mut counts = [0_i32; 5];
        for turn in 0..4_000 {
            let standing = |member| if member == 1 { Standing::Unhealthy } else { Standing::Fine };
            counts[slots.choose(turn, None, standing, |_| 0).expect("a member")] += 1;
        }
        let is_even = |count: &i32| (count - 1_000).abs() < 100;
        assert!(counts[1] == 0 && counts.iter().filter(|count| is_even(count)).count() == 4, "{counts:?}");
    }

    #[test]
    fn the_fewest_in_flight_for_its_weight_is_chosen() {
        let table: [(&[u32], &[usize], usize); 4] = [
            (&[1, 1, 1], &[3, 1, 2], 1),
            (&[1, 10], &[0, 5], 1),
            (&[1, 10], &[0, 12], 0),
            (&[1, 1], &[9, 9], 0),
        ];
        for (weights, in_flight, expected) in table {
            let slots = slots(&Balance::LeastConnections, weights);
            let chosen = slots.choose(0, None, |_| Standing::Fine, |member| in_flight[member]);
            assert_eq!(chosen, Some(expected), "{weights:?} {in_flight:?}");
        }
        let many = slots(&Balance::LeastConnections, &[1; 100]);
        let busy = (0..1_000).filter_map(|turn| {
            many.choose(turn, None, |_| Standing::Fine, |member| usize::from(member < 50))
        });
        let busy = busy.filter(|member| *member < 50).count();
        assert!((150..350).contains(&busy), "two of a hundred are both busy in a quarter of cases: {busy}");
    }

    #[test]
    fn a_hash_keeps_its_member_and_takes_only_its_own_keys_along() {
        let balance = Balance::Hash(HashKey::Source);
        let slots = slots(&balance, &[1, 1, 2]);
        let with = |key, gone: Option<usize>| {
            let standing = |member| if Some(member) == gone { Standing::Unhealthy } else { Standing::Fine };
            slots.choose(mix(key), Some(mix(key)), standing, |_| 0)
        };
        let mut counts = [0; 3];
        for key in 0..4_000 {
            let before = with(key, None).expect("a member");
            counts[before] += 1;
            let after = with(key, Some(1)).expect("a member");
            assert!(after != 1 && (before == 1 || after == before), "key {key}: {before} to {after}");
        }
        let is_near = |count: i32, expected: i32| (count - expected).abs() < 150;
        assert!(
            is_near(counts[0], 1_000) && is_near(counts[1], 1_000) && is_near(counts[2], 2_000),
            "{counts:?}"
        );
        assert_eq!(
            slots.choose(1, None, |_| Standing::Fine, |_| 0),
            Some(0),
            "without a key it has its turn"
        );
    }
}
