//! The virtual address of a load balancer in the guest of the proxy that has it: the worker's side.
//!
//! ```text
//!   assigned ──> its tap lets it through ──> the guest has it ──> the network is told, and again from time to time
//!      │ leaving: the proxy lets what is open to it end, and answers nobody new ──> left
//!      v
//!   not assigned ──> its tap lets nothing through ──> reported: somebody else may have it
//! ```
//!
//! While no heartbeat is acknowledged the network is asked from time to time who else has it. If somebody has, it is given up in favour
//! of whom a leader may have given it to: that is saved, and so lasts until it comes again in a later turn.
//!
//! What counts is the tap: a guest that still has the address sends nothing from it.

use std::net::Ipv4Addr;

use lightbyte_api::assigned::VirtualAddress;
use lightbyte_api::observed::ObservedVirtualAddress;
use lightbyte_api::{Span, Timestamp};

use crate::planner::later;

/// From one time to the next that the guest is told that it has the address, and so is seen to answer.
pub const TOLD_PERIOD: Span = Span::from_secs(1);
/// From one time to the next that the network is told: somebody may have heard of another since.
pub const ANNOUNCED_PERIOD: Span = Span::from_secs(10);
/// From one look to the next while the guest is to leave it.
pub const LEAVING_PERIOD: Span = Span::from_millis(50);
/// The pause before a guest that did not answer is told again; it doubles with each time in a row.
const RETRY_FIRST: Span = Span::from_millis(100);
/// The longest pause.
const RETRY_LIMIT: Span = Span::from_secs(5);
/// After how many times in a row without an answer that is reported, and so another proxy gets the address.
const SILENT_TIMES: u32 = 2;

/// What to tell a guest, and its network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errand {
    /// The address that it has; none if it is to have none.
    pub wanted: Option<VirtualAddress>,
    /// Whether the network is asked first who else has it: the store cannot be reached, so it may have been given to another.
    pub ask: bool,
    /// Whether the network is told then.
    pub announce: bool,
}

/// What came of telling a guest, and its network, of a virtual address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// It is as it was told.
    Done {
        /// It was to leave the address, and nothing is open to it any more.
        left: bool,
    },
    /// Somebody else on the network has the address.
    Taken,
    /// It did not answer, or the network could not be told.
    Failed(String),
}

/// The virtual address in a guest as its worker knows it.
#[derive(Clone, Debug, Default)]
pub(super) struct Address {
    /// What it was told last in this life of the machine.
    said: Option<VirtualAddress>,
    left: bool,
    /// What it is being told; without a value if the machine is another one since.
    errand: Option<Option<Errand>>,
    due: Option<Timestamp>,
    /// When the network was told last.
    announced_at: Option<Timestamp>,
    /// The turn in which somebody else was found to have it.
    taken_turn: Option<u64>,
    failures: u32,
    problem: Option<String>,
}

impl Address {
    /// The machine is not there any more.
    pub(super) fn end_life(&mut self) {
        let errand = self.errand.map(|_| None);
        *self = Address { errand, ..Address::default() };
    }

    /// What to tell a guest that is to have `wanted` now.
    pub(super) fn errand(
        &mut self,
        wanted: Option<VirtualAddress>,
        cut_off: bool,
        now: Timestamp,
    ) -> Option<Errand> {
        if self.next_wake(wanted).is_none_or(|at| now < at) {
            return None;
        }
        let is_told = self.announced_at.is_some_and(|at| now < later(at, ANNOUNCED_PERIOD));
        let stays = wanted.is_some_and(|wanted| wanted.leaves_within.is_none());
        let ask = cut_off && wanted.is_some();
        let errand = Errand { wanted, ask, announce: stays && (self.said != wanted || !is_told) };
        self.errand = Some(Some(errand));
        Some(errand)
    }

    /// When there is something to tell.
    pub(super) fn next_wake(&self, wanted: Option<VirtualAddress>) -> Option<Timestamp> {
        if self.errand.is_some() || (wanted.is_none() && self.said.is_none()) {
            return None;
        }
        let is_taken = wanted.is_some_and(|wanted| self.taken_turn == Some(wanted.turn));
        match self.failures {
            0 if self.said != wanted && !is_taken => Some(Timestamp::MIN),
            _ => Some(self.due.unwrap_or(Timestamp::MIN)),
        }
    }

    /// Takes what came of telling it.
    pub(super) fn take(&mut self, told: Told, now: Timestamp) {
        let Some(errand) = self.errand.take().flatten() else { return };
        match told {
            Told::Done { left } => {
                let is_leaving = errand.wanted.is_some_and(|address| address.leaves_within.is_some());
                (self.said, self.left, self.failures, self.problem) =
                    (errand.wanted, left && is_leaving, 0, None);
                self.announced_at = if errand.announce { Some(now) } else { self.announced_at };
                let period = if is_leaving && !self.left { LEAVING_PERIOD } else { TOLD_PERIOD };
                self.due = Some(later(now, period));
            }
            Told::Taken => {
                self.taken_turn = errand.wanted.map(|wanted| wanted.turn);
                self.due = Some(later(now, TOLD_PERIOD));
            }
            Told::Failed(problem) => {
                let factor = 1_u64.checked_shl(self.failures).unwrap_or(u64::MAX);
                let pause = RETRY_FIRST.millis().saturating_mul(factor).min(RETRY_LIMIT.millis());
                self.failures = self.failures.saturating_add(1);
                self.problem = Some(problem);
                self.due = Some(later(now, Span::from_millis(pause)));
            }
        }
    }

    /// What is reported of the address that the tap lets through. `earlier` is what was reported of this machine before.
    pub(super) fn report(
        &self,
        let_through: Ipv4Addr,
        earlier: Option<ObservedVirtualAddress>,
    ) -> ObservedVirtualAddress {
        let silent = self.failures >= SILENT_TIMES;
        match self.said.filter(|said| said.address == let_through) {
            Some(said) => {
                ObservedVirtualAddress { address: let_through, turn: said.turn, left: self.left, silent }
            }
            None => {
                let earlier = earlier.filter(|earlier| earlier.address == let_through);
                let nothing = ObservedVirtualAddress { address: let_through, turn: 0, left: false, silent };
                earlier.map_or(nothing, |earlier| ObservedVirtualAddress { silent, ..earlier })
            }
        }
    }

    /// The turn in which somebody else was found to have it.
    pub(super) const fn taken_turn(&self) -> Option<u64> {
        self.taken_turn
    }

    /// What hinders it, once that lasts.
    pub(super) fn problem(&self) -> Option<String> {
        self.problem.clone().filter(|_| self.failures >= SILENT_TIMES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millisecond(millis).expect("a time in range")
    }

    fn address(turn: u64, leaving: bool) -> Option<VirtualAddress> {
        let leaves_within = leaving.then_some(Span::from_secs(30));
        Some(VirtualAddress { address: Ipv4Addr::new(10, 0, 0, 9), turn, leaves_within })
    }

    fn report(held: &Address) -> (u64, bool) {
        let report = held.report(Ipv4Addr::new(10, 0, 0, 9), None);
        (report.turn, report.left)
    }

    fn is_silent(held: &Address) -> bool {
        held.report(Ipv4Addr::new(10, 0, 0, 9), None).silent
    }

    /// What is told at that time, if anything, and whether the network is too.
    fn errand(
        held: &mut Address,
        wanted: Option<VirtualAddress>,
        millis: i64,
    ) -> Option<(Option<u64>, bool)> {
        let errand = held.errand(wanted, false, at(millis))?;
        Some((errand.wanted.map(|wanted| wanted.turn), errand.announce))
    }

    #[test]
    fn a_guest_is_told_at_once_and_from_time_to_time() {
        let mut held = Address::default();
        assert_eq!(errand(&mut held, None, 0), None, "it has none and is to have none");
        assert_eq!(errand(&mut held, address(1, false), 0), Some((Some(1), true)));
        assert_eq!(errand(&mut held, address(1, false), 60_000), None, "one at a time");
        assert_eq!(report(&held), (0, false), "it has not said so yet");
        held.take(Told::Done { left: true }, at(10));
        assert_eq!(report(&held), (1, false), "it was not to leave");
        assert_eq!(errand(&mut held, address(1, false), 1_009), None);
        for (millis, announce) in [(1_010, false), (9_000, false), (11_000, true), (12_000, false)] {
            assert_eq!(
                errand(&mut held, address(1, false), millis),
                Some((Some(1), announce)),
                "at {millis}"
            );
            held.take(Told::Done { left: false }, at(millis));
        }
        assert_eq!(errand(&mut held, address(2, false), 12_001), Some((Some(2), true)), "a new turn at once");
    }

    #[test]
    fn who_is_cut_off_asks_the_network_and_gives_way() {
        let mut held = Address::default();
        let mut asks = |cut_off: bool, millis: i64, told: Told| {
            let errand = held.errand(address(4, false), cut_off, at(millis)).expect("is due");
            held.take(told, at(millis));
            (errand.ask, held.taken_turn())
        };
        let done = Told::Done { left: false };
        assert_eq!(asks(false, 0, done.clone()), (false, None));
        assert_eq!(asks(true, 2_000, done), (true, None));
        assert_eq!(asks(true, 4_000, Told::Taken), (true, Some(4)));
        assert_eq!(held.errand(address(4, false), true, at(4_000)), None, "that was told");
        let mut held = Address::default();
        assert!(held.errand(address(1, false), true, at(0)).is_some_and(|errand| errand.ask));
        held.take(Told::Taken, at(0));
        assert_eq!(held.errand(address(1, false), true, at(0)), None, "also of one that never had it");
    }

    #[test]
    fn who_leaves_is_asked_until_it_has_left() {
        let mut held = Address::default();
        for (now, left) in [(0, false), (50, false), (100, true)] {
            assert_eq!(errand(&mut held, address(1, true), now), Some((Some(1), false)));
            held.take(Told::Done { left }, at(now));
            assert_eq!(report(&held), (1, left));
        }
        assert_eq!(errand(&mut held, address(1, true), 200), None);
        assert_eq!(errand(&mut held, None, 200), Some((None, false)), "it is not its any more");
        held.take(Told::Done { left: false }, at(200));
        assert_eq!(held.next_wake(None), None);
    }

    #[test]
    fn silence_is_told_soon_and_another_machine_knows_nothing() {
        let mut held = Address::default();
        let mut now = 0;
        for (pause, is_told) in [(100, false), (200, true), (400, true), (800, true)] {
            assert_eq!(errand(&mut held, address(1, false), now), Some((Some(1), true)));
            held.take(Told::Failed("silent".to_owned()), at(now));
            assert_eq!((held.problem().is_some(), is_silent(&held)), (is_told, is_told));
            assert_eq!(errand(&mut held, address(1, false), now + pause - 1), None);
            now += pause;
        }
        assert!(errand(&mut held, address(1, false), now).is_some(), "due");
        held.end_life();
        held.take(Told::Done { left: false }, at(now));
        assert_eq!(report(&held), (0, false), "that was of the machine before");
        assert!(errand(&mut held, address(1, false), now).is_some(), "the next one is told at once");
    }
}
