//! Care of the store: what keeps etcd from filling up, and what people are told of it before that hurts. Decided here, from what its
//! members say of themselves; the server that leads acts by it, a step at a time. In a full store nobody can be elected, since that is
//! a write: where nobody leads all servers act, which at worst does the same twice.
//!
//! - History is forgotten (compaction) when it is older than an hour; a store that is full keeps a minute.
//! - A file that is mostly free pages is written anew (defragmentation): one member at a time, and only while all of them answer, since
//!   that member answers nobody meanwhile. The one that leads is the last.
//! - A full store is let write again once there is room in the file of the member that has raised the alarm.
//!
//! What a member of etcd does at its quota: it raises an alarm, and then no member takes anything but deletions. Only a smaller *file*
//! helps, and only once the alarm is taken back (<https://etcd.io/docs/v3.5/op-guide/maintenance/#space-quota>).

use std::collections::{BTreeMap, VecDeque};

use lightbyte_api::{ByteSize, Span, Timestamp};

use crate::planner::later;

/// How long history is kept, for `--at`, `diff --from` and those who fall behind.
pub const HISTORY_KEPT: Span = Span::from_secs(3_600);
/// The same while the store is full. A list is read at one revision for some seconds.
pub const HISTORY_KEPT_FULL: Span = Span::from_secs(60);
/// How often it is remembered which revision is the newest.
const SAMPLE_PERIOD: Span = Span::from_secs(20);
/// So many revisions are worth a compaction.
const COMPACTED_MIN: u64 = 1_000;
/// So much free space is worth writing the file anew, if it is half of it.
const FREE_BYTES_MIN: u64 = 64 << 20;
/// In a full store this part of the file, in percent.
const FREE_PERCENT_MIN_FULL: u64 = 10;
/// From one time that a member does something to the next.
const AGAIN_AFTER: Span = Span::from_secs(600);
/// The same while the store is full.
const AGAIN_AFTER_FULL: Span = Span::from_secs(60);
/// The quota of members that do not say theirs: etcd's own.
const QUOTA_BYTES_DEFAULT: u64 = 2 << 30;
/// People are told of a file that is this large, in percent of the quota.
const WARNED_PERCENT: u64 = 60;
/// A member may be let write again below this.
const ROOM_PERCENT: u64 = 90;

/// A member of etcd that answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Member {
    /// Its id.
    pub id: u64,
    /// Its version, for people.
    pub version: String,
    /// Whether it leads the others.
    pub leads: bool,
    /// The size of its file.
    pub file_bytes: u64,
    /// How much of that is in use.
    pub used_bytes: u64,
    /// How large the file may be, if it says so.
    pub quota_bytes: Option<u64>,
    /// The newest revision that it knows.
    pub revision: u64,
    /// It has raised the alarm for space.
    pub is_full: bool,
    /// It has raised the alarm for data that differ from the others'.
    pub is_corrupt: bool,
}

impl Member {
    fn free_percent(&self) -> u64 {
        percent(self.file_bytes.saturating_sub(self.used_bytes), self.file_bytes)
    }
}

/// How the store stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// The members by endpoint; nothing of those that do not answer.
    pub members: BTreeMap<String, Option<Member>>,
    /// Which server leads, as far as the one that asks knows.
    pub leads: Leads,
}

/// Which server leads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Leads {
    /// The one that asks.
    #[default]
    This,
    /// Another.
    Another,
    /// None.
    Nobody,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Forget what is older than this revision.
    Compact {
        /// It stays.
        revision: u64,
    },
    /// Have a member write its file anew.
    Defragment {
        /// Which.
        endpoint: String,
    },
    /// Take back the alarm for space of a member.
    LetWrite {
        /// Its id.
        member: u64,
    },
}

/// What a server has seen and done so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Care {
    /// Which revision was the newest when, of the last hour.
    newest: VecDeque<(Timestamp, u64)>,
    compacted: u64,
    defragmented: BTreeMap<String, Timestamp>,
    let_write: BTreeMap<u64, Timestamp>,
}

impl Care {
    /// Takes note of the newest revision. To be told before [`Care::next_step`] is asked.
    pub fn saw(&mut self, standing: &Standing, now: Timestamp) {
        let newest = standing.answering().map(|(_, member)| member.revision).max();
        let is_early = self.newest.back().is_some_and(|(at, _)| now < later(*at, SAMPLE_PERIOD));
        let Some(newest) = newest.filter(|_| !is_early) else { return };
        if self.newest.back().is_some_and(|(_, before)| newest < *before) {
            // It was restored, or is another: what was seen before is not its history.
            (self.newest, self.compacted) = (VecDeque::new(), 0);
        }
        self.newest.push_back((now, newest));
        // The oldest that is kept is older than all that is kept of the history.
        while self.newest.get(1).is_some_and(|(at, _)| later(*at, HISTORY_KEPT) <= now) {
            self.newest.pop_front();
        }
    }

    /// A step was begun; whether it succeeds or not, it is not tried again at once.
    pub fn begun(&mut self, step: &Step, now: Timestamp) {
        match step {
            Step::Compact { revision } => self.compacted = *revision,
            Step::Defragment { endpoint } => {
                self.defragmented.insert(endpoint.clone(), now);
            }
            Step::LetWrite { member } => {
                self.let_write.insert(*member, now);
            }
        }
    }

    /// What is to be done next; nothing when all is well, or nothing would help now.
    #[must_use]
    pub fn next_step(&self, standing: &Standing, now: Timestamp) -> Option<Step> {
        let is_full = standing.answering().any(|(_, member)| member.is_full);
        let acts = match standing.leads {
            Leads::This => true,
            Leads::Another => false,
            Leads::Nobody => is_full,
        };
        if !acts {
            return None;
        }
        self.compaction(is_full, now)
            .or_else(|| self.defragmentation(standing, is_full, now))
            .or_else(|| self.release(standing, now))
    }

    fn compaction(&self, is_full: bool, now: Timestamp) -> Option<Step> {
        let (kept, worth) = if is_full { (HISTORY_KEPT_FULL, 1) } else { (HISTORY_KEPT, COMPACTED_MIN) };
        let is_old = |(at, _): &&(Timestamp, u64)| later(*at, kept) <= now;
        let (_, revision) = *self.newest.iter().rev().find(is_old)?;
        (revision >= self.compacted.saturating_add(worth)).then_some(Step::Compact { revision })
    }

    fn defragmentation(&self, standing: &Standing, is_full: bool, now: Timestamp) -> Option<Step> {
        if standing.away().is_some() {
            return None;
        }
        let is_worth_it = |member: &Member| {
            let free_bytes = member.file_bytes.saturating_sub(member.used_bytes);
            match is_full {
                true => member.free_percent() >= FREE_PERCENT_MIN_FULL,
                false => free_bytes >= FREE_BYTES_MIN && free_bytes >= member.file_bytes / 2,
            }
        };
        let again_after = if is_full { AGAIN_AFTER_FULL } else { AGAIN_AFTER };
        let may =
            |endpoint: &str| self.defragmented.get(endpoint).is_none_or(|at| now >= later(*at, again_after));
        let wanting = standing.answering().filter(|(endpoint, member)| is_worth_it(member) && may(endpoint));
        wanting
            .min_by_key(|(_, member)| member.leads)
            .map(|(endpoint, _)| Step::Defragment { endpoint: endpoint.to_owned() })
    }

    fn release(&self, standing: &Standing, now: Timestamp) -> Option<Step> {
        let may = |member: &Member| {
            self.let_write.get(&member.id).is_none_or(|at| now >= later(*at, AGAIN_AFTER_FULL))
        };
        // Of an unknown quota it is found out by trying, once there is nothing to gain any more.
        let has_room = |member: &Member| match member.quota_bytes {
            Some(quota) => percent(member.file_bytes, quota) < ROOM_PERCENT,
            None => member.free_percent() < FREE_PERCENT_MIN_FULL,
        };
        let mut members = standing.answering().map(|(_, member)| member);
        members
            .find(|member| member.is_full && has_room(member) && may(member))
            .map(|member| Step::LetWrite { member: member.id })
    }
}

impl Standing {
    fn answering(&self) -> impl Iterator<Item = (&str, &Member)> {
        self.members.iter().filter_map(|(endpoint, member)| Some((endpoint.as_str(), member.as_ref()?)))
    }

    /// A member that does not answer. While there is one no other is to be busy with its file: with both away nothing might be written.
    #[must_use]
    pub fn away(&self) -> Option<&str> {
        self.members.iter().find(|(_, member)| member.is_none()).map(|(endpoint, _)| endpoint.as_str())
    }

    /// What people are to know, the worst first: what has happened, and what to do.
    #[must_use]
    pub fn worries(&self) -> Vec<String> {
        let mut worries = Vec::new();
        for (endpoint, member) in self.answering() {
            if member.is_corrupt {
                worries.push(format!(
                    "etcd {endpoint} has other data than its neighbours: stop it, remove it from the cluster and add it anew, empty"
                ));
            }
            if member.is_full {
                worries.push(format!(
                    "etcd {endpoint} is full ({}): nothing is written until the server that leads has made room; \
                     if that lasts, give etcd a larger --quota-backend-bytes",
                    size_of(member)
                ));
            } else if percent(member.file_bytes, quota(member)) >= WARNED_PERCENT {
                worries.push(format!(
                    "etcd {endpoint} has {}: at that it takes no more writes",
                    size_of(member)
                ));
            }
        }
        let (count, away) =
            (self.members.len(), self.members.values().filter(|member| member.is_none()).count());
        let needed = count / 2 + 1;
        if count > 0 && count - away < needed {
            let why = format!("{away} of {count} members of etcd do not answer");
            worries.push(format!("{why}: nothing is written until {needed} of them do; what runs goes on"));
        } else if away > 0 {
            let words = if away == 1 { "member of etcd does" } else { "members of etcd do" };
            let more = count - away + 1 - needed;
            worries.push(format!("{away} {words} not answer: with {more} more nothing can be written"));
        }
        worries
    }
}

/// `1.3GiB of 2GiB`, of a quota that is assumed with that word.
fn size_of(member: &Member) -> String {
    let assumed = if member.quota_bytes.is_none() { ", its quota unless another was set" } else { "" };
    format!("{} of {}{assumed}", rounded(member.file_bytes), rounded(quota(member)))
}

/// In MiB: bytes would only be read wrong.
fn rounded(bytes: u64) -> ByteSize {
    ByteSize::from_bytes(bytes.next_multiple_of(1 << 20))
}

fn quota(member: &Member) -> u64 {
    member.quota_bytes.unwrap_or(QUOTA_BYTES_DEFAULT)
}

fn percent(part: u64, whole: u64) -> u64 {
    part.saturating_mul(100) / whole.max(1)
}
