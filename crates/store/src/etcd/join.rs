//! Fragments joined: etcd splits what is too large for one message, also in the middle of a revision.

use crate::store::{Batch, Event};

/// Holds the events of a revision that is not known to be whole.
#[derive(Debug, Default)]
pub(super) struct Joiner {
    held: Vec<Event>,
}

impl Joiner {
    /// Takes the events of one message and gives those of whole revisions. `fragment` says that more of the same
    /// follows; without it, etcd has sent whole revisions.
    ///
    /// At most one revision is held: 128 operations and 1.5 MiB, or the deletions of one lease's keys.
    pub(super) fn take(&mut self, events: impl IntoIterator<Item = Event>, fragment: bool) -> Option<Batch> {
        self.held.extend(events);
        let last = self.held.last()?.mod_revision();
        let whole = if fragment {
            self.held.partition_point(|event| event.mod_revision() < last)
        } else {
            self.held.len()
        };
        let rest = self.held.split_off(whole);
        let events = std::mem::replace(&mut self.held, rest);
        let revision = events.last()?.mod_revision();
        Some(Batch { revision, events })
    }

    /// Whether part of a revision is held.
    pub(super) fn is_open(&self) -> bool {
        !self.held.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Messages as lists of revisions, `+` for more to come; out come batches the same way.
    fn check(messages: &[&str], expected: &str) {
        let mut joiner = Joiner::default();
        let mut told = Vec::new();
        for message in messages {
            let (revisions, fragment) =
                message.strip_suffix('+').map_or((*message, false), |rest| (rest, true));
            let events = revisions.split_whitespace().map(|revision| Event::Delete {
                key: "k".into(),
                mod_revision: revision.parse().expect("a number"),
            });
            let batch = joiner.take(events.collect::<Vec<_>>(), fragment);
            told.extend(batch.map(|batch| {
                let events: Vec<_> =
                    batch.events.iter().map(|event| event.mod_revision().to_string()).collect();
                format!("{}:{}", batch.revision, events.join(" "))
            }));
        }
        assert_eq!(told.join(" | "), expected, "{messages:?}");
    }

    #[test]
    fn revisions_come_whole() {
        check(&["2"], "2:2");
        check(&["2 2 3"], "3:2 2 3");
        check(&["2+", "2"], "2:2 2");
        check(&["2 2+", "2 2+", "2 3+", "3"], "2:2 2 2 2 2 | 3:3 3");
        check(&["2 3+", "4+", "5"], "2:2 | 3:3 | 5:4 5");
        check(&["2 3+", "4"], "2:2 | 4:3 4");
        check(&[""], "");
        check(&["2+", ""], "2:2");
    }
}
