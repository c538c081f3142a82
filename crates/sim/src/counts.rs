//! What happened in a run, by name. A run that never met a fault proves nothing about it, so a zero is red.

use std::collections::BTreeMap;

/// Counters by name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counts(BTreeMap<&'static str, u64>);

/// Everything that a run of many seeds must have met.
pub(crate) const EXPECTED: &[&str] = &[
    "ack: change",
    "ack: create",
    "ack: delete",
    "ack: restart",
    "conflict: api",
    "conflict: leader",
    "conflict: worker",
    "fault: agent killed",
    "fault: answer lost",
    "fault: address squatted",
    "fault: another lease",
    "fault: compaction",
    "fault: guest ended",
    "fault: guest shut down",
    "fault: host rebooted",
    "fault: host write failed",
    "fault: late report",
    "fault: lease stretched",
    "fault: older snapshot",
    "fault: member of a bad version ended",
    "fault: part damaged",
    "fault: proxy begun anew",
    "fault: proxy silent",
    "fault: part hindered",
    "fault: reply lost",
    "fault: request lost",
    "fault: server killed",
    "fault: server paused",
    "fault: stream dropped",
    "fault: unreadable value",
    "fault: worker cut off",
    "forecast: VM",
    "forecast: delete",
    "forecast: drain",
    "forecast: group",
    "forecast: lost worker",
    "forecast: member replaced",
    "forecast: nothing",
    "forecast: of what moves",
    "group of the right size",
    "group of the right size for its requests",
    "guests wrote",
    "guest ready before its start was told",
    "leader: chained batch",
    "leader: deposed",
    "leader: elected",
    "let go: move",
    "let go: request",
    "outcome never learned",
    "part came",
    "refused: deleting",
    "refused: exists",
    "refused: not found",
    "refused: other",
    "request",
    "spec: accepted",
    "spec: made anew",
    "spec: not accepted",
    "spec: refused",
    "stale delivery refused",
    "step: create disk",
    "step: drop fetched",
    "step: ensure taps",
    "step: fetch disk",
    "step: forget",
    "step: grow disk",
    "step: kill",
    "step: look",
    "step: probe",
    "step: quarantine disk",
    "step: remove disk",
    "step: remove taps",
    "step: save",
    "step: shutdown",
    "step: start",
    "step: take disk",
    "stream refused by an old view",
    "topology refused",
    "topology taken",
    "wait: acknowledgement",
    "wait: address",
    "wait: capacity",
    "wait: child",
    "wait: crash loop",
    "wait: in use",
    "wait: kept apart",
    "wait: in rotation",
    "wait: leaving",
    "wait: member",
    "wait: missing",
    "wait: names",
    "authority: issued",
    "authority: not answered",
    "authority: order refused",
    "authority: ordered",
    "wait: certificate ordered",
    "wait: certificate expires",
    "wait: certificate expired",
    "wait: no backends",
    "wait: off",
    "wait: source",
    "wait: staying",
    "wait: paused",
    "wait: pool needed",
    "wait: promotion",
    "wait: proxies",
    "wait: protected",
    "wait: squatted",
    "wait: trial",
    "wait: trial failed",
    "virtual address told",
    "virtual address yielded",
    "wait: virtual address",
    "wait: address left",
    "wait: unreadable",
    "wait: volume elsewhere",
    "wait: volume held",
    "wait: worker",
    "wait: worker away",
    "wait: worker closed",
    "wait: worker labels",
    "wait: worker ports",
    "wait: worker problem",
    "wait: worker room",
    "wait: workers",
    "worker lost",
    "version rejected",
];

impl Counts {
    /// Counts one more `name`.
    pub(crate) fn add(&mut self, name: &'static str) {
        *self.0.entry(name).or_default() += 1;
    }

    /// Adds all of `other`.
    pub(crate) fn merge(&mut self, other: &Counts) {
        for (name, count) in &other.0 {
            *self.0.entry(name).or_default() += count;
        }
    }

    /// How often `name` was counted.
    pub(crate) fn of(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or(0)
    }

    /// Every name with its count, the expected ones also when they never happened.
    pub(crate) fn table(&self) -> BTreeMap<&'static str, u64> {
        let zeros = EXPECTED.iter().map(|name| (*name, 0));
        let mut table: BTreeMap<&'static str, u64> = zeros.collect();
        table.extend(self.0.iter().map(|(name, count)| (*name, *count)));
        table
    }

    /// The expected names that never happened.
    pub(crate) fn missing(&self) -> Vec<&'static str> {
        EXPECTED.iter().copied().filter(|name| self.of(name) == 0).collect()
    }
}
