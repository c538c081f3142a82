//! What the proxy in a guest is told, and what it says: the worker's side of a load balancer.
//!
//! ```text
//!   told a newer one ──> tell it ──> acknowledged ──> look: whom is it still busy with? ──> again, until nobody
//!                          │ refused: reported, and not told again        │
//!                          └ no answer: told again after a pause <────────┘
//! ```
//!
//! What is in flight is asked after the acknowledgement, and from then on only falls to nothing: no request begins any more to who is
//! not in what the proxy holds.

use lightbyte_api::observed::{BUSY_REPORTED_MAX, ObservedProxy, PROBLEM_LENGTH_MAX, RefusedTopology};
use lightbyte_api::topology::SecretText;
use lightbyte_api::{Span, Timestamp, Uid};
use serde::{Deserialize, Serialize};

use crate::planner::later;

/// From one look to the next while the proxy is busy with somebody who has left.
pub const BUSY_PERIOD: Span = Span::from_millis(100);
/// From one look to the next else: whether it has begun anew.
pub const IDLE_PERIOD: Span = Span::from_secs(2);
/// The pause before a proxy that did not answer is asked again; it doubles with each time in a row.
const RETRY_FIRST: Span = Span::from_millis(250);
/// The longest pause.
const RETRY_LIMIT: Span = Span::from_secs(5);
/// After how many times in a row without an answer that is reported: a proxy that begins takes a moment.
const SILENT_TIMES: u32 = 4;

/// What a proxy is to be told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// The revision.
    pub revision: u64,
    /// Everybody who is in it.
    pub members: Vec<Uid>,
    /// The text of a [`Topology`](lightbyte_api::topology::Topology). It has private keys in it, and is kept on no disk of the host.
    pub document: SecretText,
}

/// What came of telling or asking a proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It does this.
    Does {
        /// The revision that holds; nought if none does.
        revision: u64,
        /// Those that requests are in flight to.
        in_flight: Vec<Uid>,
        /// For how long it has run, in milliseconds.
        uptime_ms: u64,
    },
    /// It did not take what it was told.
    Refused(String),
    /// It did not answer.
    Silent(String),
}

/// A proxy as its worker knows it.
#[derive(Clone, Debug, Default)]
pub(super) struct Proxy {
    wanted: Option<Told>,
    said: Option<ObservedProxy>,
    /// Something is under way; for the machine that is there now.
    errand: Option<Errand>,
    /// When it is asked next; at once without.
    due: Option<Timestamp>,
    silent: u32,
    problem: Option<String>,
    uptime_ms: u64,
}

#[derive(Clone, Copy, Debug)]
struct Errand {
    told: Option<u64>,
    is_of_this_life: bool,
}

impl Proxy {
    /// Takes what is to be told, unless something newer is.
    pub(super) fn want(&mut self, told: Told) {
        if self.wanted.as_ref().is_none_or(|wanted| wanted.revision <= told.revision) {
            self.wanted = Some(told);
        }
    }

    /// The machine is not there any more.
    pub(super) fn end_life(&mut self) {
        let wanted = self.wanted.take();
        let errand = self.errand.map(|errand| Errand { is_of_this_life: false, ..errand });
        *self = Proxy { wanted, errand, ..Proxy::default() };
    }

    /// What is reported; `None` when nothing is known of it.
    pub(super) const fn said(&self) -> Option<&ObservedProxy> {
        self.said.as_ref()
    }

    /// What is to be reported of it as a problem.
    pub(super) fn problem(&self) -> Option<String> {
        self.problem.clone().filter(|_| self.silent >= SILENT_TIMES)
    }

    /// What to do now: `Some(None)` asks it what it does, `Some(Some(_))` tells it before.
    pub(super) fn errand(&mut self, now: Timestamp) -> Option<Option<Told>> {
        if self.next_wake().is_none_or(|at| now < at) {
            return None;
        }
        let told = self.wanted.clone().filter(|wanted| self.is_to_be_told(wanted));
        self.errand = Some(Errand { told: told.as_ref().map(|told| told.revision), is_of_this_life: true });
        Some(told)
    }

    /// When there is something to do, if its guest runs.
    pub(super) fn next_wake(&self) -> Option<Timestamp> {
        let wanted = self.wanted.as_ref().filter(|_| self.errand.is_none())?;
        match self.silent {
            0 if self.is_to_be_told(wanted) => Some(Timestamp::MIN),
            _ => Some(self.due.unwrap_or(Timestamp::MIN)),
        }
    }

    fn is_to_be_told(&self, wanted: &Told) -> bool {
        self.said.as_ref().is_none_or(|said| {
            let is_refused = said.refused.as_ref().is_some_and(|refused| refused.revision >= wanted.revision);
            said.revision < wanted.revision && !is_refused
        })
    }

    /// Takes what came of an errand.
    pub(super) fn take(&mut self, answer: Answer, now: Timestamp) {
        let Some(errand) = self.errand.take().filter(|errand| errand.is_of_this_life) else { return };
        match answer {
            Answer::Does { revision, in_flight, uptime_ms } => self.hear(revision, in_flight, uptime_ms, now),
            Answer::Refused(because) => {
                let revision = errand.told.unwrap_or(0);
                let because = plain(&because);
                let said = self.said.get_or_insert_default();
                said.refused = Some(RefusedTopology { revision, because });
                (self.silent, self.problem, self.due) = (0, None, None);
            }
            Answer::Silent(problem) => {
                let factor = 1_u64.checked_shl(self.silent).unwrap_or(u64::MAX);
                let pause = RETRY_FIRST.millis().saturating_mul(factor).min(RETRY_LIMIT.millis());
                self.silent = self.silent.saturating_add(1);
                self.problem = Some(plain(&problem));
                self.due = Some(later(now, Span::from_millis(pause)));
            }
        }
    }

    fn hear(&mut self, revision: u64, in_flight: Vec<Uid>, uptime_ms: u64, now: Timestamp) {
        (self.silent, self.problem) = (0, None);
        // Who is in the newest is not leaving, whichever holds: one that it refused changes nothing of who is.
        let left = |uid: &Uid| self.wanted.as_ref().is_some_and(|told| !told.members.contains(uid));
        let mut busy: Vec<Uid> = in_flight.into_iter().filter(left).collect();
        busy.sort_unstable();
        busy.truncate(BUSY_REPORTED_MAX);
        let before = self.said.take();
        let restarted = before.is_some() && uptime_ms < self.uptime_ms;
        self.uptime_ms = uptime_ms;
        let period = if busy.is_empty() { IDLE_PERIOD } else { BUSY_PERIOD };
        self.due = Some(later(now, period));
        let (refused, restarts) = before.map(|before| (before.refused, before.restarts)).unwrap_or_default();
        self.said = Some(ObservedProxy {
            revision,
            refused: refused.filter(|refused| refused.revision > revision),
            busy,
            restarts: restarts + u64::from(restarted),
        });
    }
}

/// A guest's words as they may be stored.
fn plain(text: &str) -> String {
    text.chars().filter(|character| !character.is_control()).take(PROBLEM_LENGTH_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GONE: Uid = Uid::from_bits(7);

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millisecond(millis).expect("a time in range")
    }

    fn told(revision: u64) -> Told {
        Told { revision, members: vec![Uid::from_bits(1)], document: SecretText::new(String::new()) }
    }

    fn does(revision: u64, in_flight: &[Uid], uptime_ms: u64) -> Answer {
        Answer::Does { revision, in_flight: in_flight.to_vec(), uptime_ms }
    }

    /// What is told, if anything is to be done at that time.
    fn errand(proxy: &mut Proxy, millis: i64) -> Option<Option<u64>> {
        proxy.errand(at(millis)).map(|told| told.map(|told| told.revision))
    }

    #[test]
    fn it_is_told_the_newest_once_and_asked_until_it_is_busy_with_nobody() {
        let mut proxy = Proxy::default();
        assert_eq!(errand(&mut proxy, 0), None, "nothing is to be told");
        proxy.want(told(3));
        proxy.want(told(2));
        assert_eq!(errand(&mut proxy, 0), Some(Some(3)));
        assert_eq!(errand(&mut proxy, 9_000), None, "one at a time");
        proxy.take(does(3, &[GONE, Uid::from_bits(1)], 100), at(10));
        let said = proxy.said().expect("it has answered");
        assert_eq!((said.revision, said.busy.as_slice()), (3, &[GONE][..]), "who is in it is no news");
        assert_eq!(errand(&mut proxy, 50), None);
        assert_eq!(errand(&mut proxy, 110), Some(None), "soon, while it is busy");
        proxy.take(does(3, &[], 200), at(110));
        assert_eq!(proxy.said().map(|said| said.busy.len()), Some(0));
        assert_eq!(errand(&mut proxy, 1_000), None);
        proxy.want(told(4));
        assert_eq!(errand(&mut proxy, 1_000), Some(Some(4)), "at once");
    }

    #[test]
    fn what_it_refuses_is_reported_and_not_told_again() {
        let mut proxy = Proxy::default();
        proxy.want(told(3));
        assert_eq!(errand(&mut proxy, 0), Some(Some(3)));
        proxy.take(does(3, &[], 100), at(0));
        proxy.want(told(4));
        assert_eq!(errand(&mut proxy, 1), Some(Some(4)));
        proxy.take(Answer::Refused("bad\u{7}".to_owned()), at(1));
        let refused = proxy.said().and_then(|said| said.refused.clone()).expect("it was refused");
        assert_eq!((refused.revision, refused.because.as_str()), (4, "bad"), "without control characters");
        assert_eq!(errand(&mut proxy, 2), Some(None), "asked what it does instead");
        proxy.take(does(3, &[GONE], 101), at(2));
        assert_eq!(proxy.said().map(|said| (said.revision, said.refused.is_some())), Some((3, true)));
        assert_eq!(
            proxy.said().map(|said| said.busy.as_slice()),
            Some(&[GONE][..]),
            "and with whom it still is busy"
        );
        proxy.want(told(5));
        assert_eq!(errand(&mut proxy, 3), Some(Some(5)));
        proxy.take(does(5, &[], 102), at(3));
        assert_eq!(proxy.said().map(|said| (said.revision, said.refused.is_some())), Some((5, false)));
    }

    #[test]
    fn silence_is_waited_out_and_told_when_it_lasts() {
        let mut proxy = Proxy::default();
        proxy.want(told(3));
        let mut now = 0;
        for pause in [250, 500, 1_000, 2_000] {
            assert_eq!(proxy.problem(), None, "a proxy that begins takes a moment");
            assert_eq!(errand(&mut proxy, now), Some(Some(3)));
            proxy.take(Answer::Silent("refused".to_owned()), at(now));
            assert_eq!(errand(&mut proxy, now + pause - 1), None);
            now += pause;
        }
        assert_eq!(proxy.problem(), Some("refused".to_owned()));
        assert_eq!(errand(&mut proxy, now), Some(Some(3)));
        proxy.take(does(3, &[], 100), at(now));
        assert_eq!(proxy.problem(), None);
    }

    #[test]
    fn a_process_that_begins_anew_is_counted_and_another_machine_knows_nothing() {
        let mut proxy = Proxy::default();
        proxy.want(told(3));
        for (uptime_ms, restarts) in [(100, 0), (200, 0), (50, 1), (60, 1)] {
            let now = i64::from(restarts) * 10_000 + 5_000 * i64::try_from(uptime_ms).expect("small");
            assert!(errand(&mut proxy, now).is_some(), "due");
            proxy.take(does(3, &[], uptime_ms), at(0));
            assert_eq!(proxy.said().map(|said| said.restarts), Some(u64::try_from(restarts).expect("small")));
        }
        assert!(errand(&mut proxy, 900_000).is_some(), "due");
        proxy.end_life();
        proxy.take(does(3, &[GONE], 1), at(900_000));
        assert_eq!(proxy.said(), None, "the answer was of the machine before");
        assert_eq!(errand(&mut proxy, 900_000), Some(Some(3)));
    }
}
