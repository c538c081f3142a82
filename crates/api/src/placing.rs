//! Which workers a VM may be placed on, by their labels and by the VMs that are there.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::manifest::{is_label_text, label_rule, read_labels};
use crate::object::LABELS_MAX;
use crate::reader::Reader;

/// The label that every worker has without being given it: its own name.
pub const WORKER_LABEL: &str = "worker";
/// The label that says in which zone a worker is: what fails together, such as a room. Groups are spread over zones first.
pub const ZONE_LABEL: &str = "zone";
/// The label that says in which rack of its zone a worker is. Groups are spread over the racks of a zone next.
pub const RACK_LABEL: &str = "rack";
/// How many values one [`Match`] names.
pub const MATCH_VALUES_MAX: usize = 16;

/// What a label must be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Match {
    /// This.
    Is(String),
    /// One of these.
    OneOf(Vec<String>),
    /// None of these. One that is not there is none of them.
    Not {
        /// These.
        not: Vec<String>,
    },
    /// There, or not there.
    Exists {
        /// Which of the two.
        exists: bool,
    },
}

/// What labels must be, by their keys.
pub type Matches = BTreeMap<String, Match>;

impl Match {
    /// Whether a label with this value is so; `None` for one that is not there.
    #[must_use]
    pub fn holds_for(&self, value: Option<&str>) -> bool {
        let is_among = |values: &[String]| value.is_some_and(|value| values.iter().any(|one| one == value));
        match self {
            Match::Is(wanted) => value == Some(wanted),
            Match::OneOf(values) => is_among(values),
            Match::Not { not } => !is_among(not),
            Match::Exists { exists } => value.is_some() == *exists,
        }
    }

    /// Reads what stands at `path`, if it is one.
    fn read(path: &str, value: &Value, fields: &mut Reader<'_>) -> Option<Match> {
        let texts = |value: &Value| match value {
            Value::String(text) => Some(vec![text.clone()]),
            Value::Array(values) => values.iter().map(|value| value.as_str().map(str::to_owned)).collect(),
            _ => None,
        };
        let member = |key: &str| value.as_object().filter(|object| object.len() == 1)?.get(key);
        let found = match (value, member("not"), member("exists")) {
            (Value::String(text), ..) => Some(Match::Is(text.clone())),
            (Value::Array(_), ..) => texts(value).map(Match::OneOf),
            (_, Some(not), _) => texts(not).map(|not| Match::Not { not }),
            (_, _, Some(exists)) => exists.as_bool().map(|exists| Match::Exists { exists }),
            _ => None,
        };
        let Some(found) = found else {
            let hint = "such as a, [a, b], {not: a}, {not: [a, b]}, {exists: true} or {exists: false}";
            fields.problem(path, "is not what a label can be", Some(hint.to_owned()));
            return None;
        };
        let values = found.values();
        if values.iter().any(|value| !is_label_text(value)) {
            fields.problem(path, label_rule(), None);
        }
        let is_empty = values.is_empty() && !matches!(found, Match::Exists { .. });
        if is_empty || values.len() > MATCH_VALUES_MAX {
            let rule = format!("must name 1 to {MATCH_VALUES_MAX} values, names {}", values.len());
            fields.problem(path, rule, None);
        }
        Some(found)
    }

    fn values(&self) -> &[String] {
        match self {
            Match::Is(value) => std::slice::from_ref(value),
            Match::OneOf(values) | Match::Not { not: values } => values,
            Match::Exists { .. } => &[],
        }
    }
}

/// Reads a field of [`Matches`].
fn read_matches(fields: &mut Reader<'_>, field: &'static str) -> Matches {
    let values: BTreeMap<String, Value> = fields.or(field, BTreeMap::new());
    if values.len() > LABELS_MAX {
        let rule = format!("has {} labels, at most {LABELS_MAX} are allowed", values.len());
        fields.problem(field, rule, None);
    }
    let mut matches = Matches::new();
    for (key, value) in values {
        let path = format!("{field}.{key}");
        if key.is_empty() || !is_label_text(&key) {
            fields.problem(&path, label_rule(), None);
        }
        matches.extend(Match::read(&path, &value, fields).map(|found| (key, found)));
    }
    matches
}

/// `key value`, as people read it.
pub(crate) struct Clause<'a>(pub(crate) &'a str, pub(crate) &'a Match);

impl fmt::Display for Clause<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Clause(key, wanted) = self;
        match wanted {
            Match::Is(value) => write!(f, "{key}={value}"),
            Match::OneOf(values) => write!(f, "{key} one of {}", values.join(" ")),
            Match::Not { not } => write!(f, "{key} not {}", not.join(" ")),
            Match::Exists { exists: true } => write!(f, "{key}"),
            Match::Exists { exists: false } => write!(f, "no {key}"),
        }
    }
}

/// Which workers a VM may be placed on. It is looked at when the VM is placed, and never again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Placing {
    /// What the labels of its worker must be, [`WORKER_LABEL`] among them.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub on: Matches,
    /// Its worker has another VM that has all of these labels. Any worker will do for a VM that has them itself while no
    /// other that has them is placed.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub near: BTreeMap<String, String>,
    /// Its worker has no VM that has all of these labels when it is placed, and none is placed there later. Nobody, when there are
    /// none.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub apart: BTreeMap<String, String>,
    /// Whether members of groups with a lower priority make room for it, where there is none.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub preempt: bool,
    /// What the labels of its worker should be, where there is a choice; more of them is better.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub prefer: Matches,
    /// As `near`, where there is a choice.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub prefer_near: BTreeMap<String, String>,
    /// As `apart`, where there is a choice, and only for this VM.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub prefer_apart: BTreeMap<String, String>,
}

impl Placing {
    /// Whether every worker may take it, as far as this goes.
    #[must_use]
    pub fn is_any(&self) -> bool {
        *self == Placing::default()
    }

    /// Whether a VM with `labels` is one that it keeps apart from.
    #[must_use]
    pub fn is_apart_from(&self, labels: &BTreeMap<String, String>) -> bool {
        !self.apart.is_empty() && has_all(labels, &self.apart)
    }

    /// The labels of other VMs that decide where it may be.
    pub fn others(&self) -> impl Iterator<Item = &BTreeMap<String, String>> {
        [&self.near, &self.apart].into_iter().filter(|labels| !labels.is_empty())
    }

    /// Reads the block.
    pub(crate) fn read(fields: &mut Reader<'_>) -> Option<Placing> {
        Some(Placing {
            on: read_matches(fields, "on"),
            near: read_labels(fields, "near"),
            apart: read_labels(fields, "apart"),
            preempt: fields.or("preempt", false),
            prefer: read_matches(fields, "prefer"),
            prefer_near: read_labels(fields, "prefer_near"),
            prefer_apart: read_labels(fields, "prefer_apart"),
        })
    }
}

/// Whether `labels` has all of `wanted`.
#[must_use]
pub fn has_all(labels: &BTreeMap<String, String>, wanted: &BTreeMap<String, String>) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(value: &Value) -> Result<Placing, Vec<String>> {
        let mut problems = Vec::new();
        let mut fields = Reader::new("placement", value, &mut problems);
        let placing = Placing::read(&mut fields).unwrap_or_default();
        fields.finish();
        let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
        if problems.is_empty() { Ok(placing) } else { Err(problems) }
    }

    #[test]
    fn a_match_is_what_it_says() {
        let check = |wanted: Value, holds: [bool; 3]| {
            let placing = read(&json!({ "on": { "zone": wanted } })).unwrap();
            let wanted = &placing.on["zone"];
            assert_eq!(
                [Some("a"), Some("b"), None].map(|value| wanted.holds_for(value)),
                holds,
                "{wanted:?}"
            );
            let stored = serde_json::to_value(wanted).unwrap();
            assert_eq!(serde_json::from_value::<Match>(stored).unwrap(), *wanted);
        };
        check(json!("a"), [true, false, false]);
        check(json!(["a", "c"]), [true, false, false]);
        check(json!(["a", "b"]), [true, true, false]);
        check(json!({ "not": "a" }), [false, true, true]);
        check(json!({ "not": ["a", "b"] }), [false, false, true]);
        check(json!({ "exists": true }), [true, true, false]);
        check(json!({ "exists": false }), [false, false, true]);
    }

    #[test]
    fn what_is_no_match_is_told() {
        for wrong in [
            json!(3),
            json!({}),
            json!([]),
            json!(["a", 3]),
            json!({ "not": "a", "exists": true }),
            json!("ö"),
        ] {
            let problems = read(&json!({ "on": { "zone": wrong } })).unwrap_err();
            assert!(
                problems.len() == 1 && problems[0].contains("placement.on.zone"),
                "{wrong}: {problems:?}"
            );
        }
        assert!(read(&json!({ "prefer": { "": "a" } })).is_err());
    }
}
