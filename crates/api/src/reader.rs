//! Reading what people write: every problem at once, each with its path and, where one is known, a hint.
//!
//! serde stops at the first error, and a person with ten errors would learn them one by one. So a manifest is first
//! parsed to JSON values and then read field by field; serde is asked only for the leaves.

use std::fmt;
use std::ops::RangeInclusive;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::units::Span;

/// How many problems are collected before reading goes on in silence: more would not be read by anyone.
pub const PROBLEMS_MAX: usize = 100;

/// One thing that is wrong with what a person wrote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Where, such as `spec.disks[0].size`.
    pub path: String,
    /// What is wrong there.
    pub message: String,
    /// What would be right.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.is_empty() {
            write!(formatter, "{}: ", self.path)?;
        }
        formatter.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(formatter, " ({hint})"),
            None => Ok(()),
        }
    }
}

/// The fields of one object, and the problems found so far. Call [`Reader::finish`] after the last field: it reports
/// the fields that nobody asked for.
pub struct Reader<'a> {
    path: String,
    fields: Option<&'a Map<String, Value>>,
    known: Vec<&'static str>,
    problems: &'a mut Vec<Problem>,
}

impl<'a> Reader<'a> {
    /// Reads `value`, which stands at `path`. When it is no object that is a problem, and all its fields are missing.
    pub fn new(path: impl Into<String>, value: &'a Value, problems: &'a mut Vec<Problem>) -> Reader<'a> {
        let path = path.into();
        let fields = value.as_object();
        let mut reader = Reader { path, fields, known: Vec::new(), problems };
        if fields.is_none() {
            let path = reader.path.clone();
            reader.push(path, format!("expected fields, found {}", describe(value)), None);
        }
        reader
    }

    /// A field that must be there.
    pub fn required<T: DeserializeOwned>(&mut self, field: &'static str) -> Option<T> {
        match self.take(field) {
            Some(value) => self.leaf(field, value),
            None => {
                if self.fields.is_some() {
                    self.problem(field, "is missing", None);
                }
                None
            }
        }
    }

    /// A field that may be left out or null.
    pub fn optional<T: DeserializeOwned>(&mut self, field: &'static str) -> Option<T> {
        let value = self.take(field)?;
        self.leaf(field, value)
    }

    /// Whether the field is there, whatever it holds.
    #[must_use]
    pub fn has(&self, field: &str) -> bool {
        self.fields.and_then(|fields| fields.get(field)).is_some_and(|value| !value.is_null())
    }

    /// A field with a default.
    pub fn or<T: DeserializeOwned>(&mut self, field: &'static str, default: T) -> T {
        self.optional(field).unwrap_or(default)
    }

    /// A number that must lie in `range`; `default` when it is left out.
    pub fn number(&mut self, field: &'static str, range: RangeInclusive<u64>, default: u64) -> u64 {
        let number = self.or(field, default);
        if !range.contains(&number) {
            let (low, high) = (range.start(), range.end());
            self.problem(field, format!("must be between {low} and {high}, is {number}"), None);
        }
        number
    }

    /// A time that must lie in `range`; `default` when it is left out.
    pub fn span(&mut self, field: &'static str, range: RangeInclusive<Span>, default: Span) -> Span {
        let span = self.or(field, default);
        if !range.contains(&span) {
            let (least, most) = (range.start(), range.end());
            self.problem(field, format!("must be between {least} and {most}, is {span}"), None);
        }
        span
    }

    /// A list of at most `count_max` objects, each read by `read`; `None` when it is left out or any item is bad.
    pub fn list<T>(
        &mut self,
        field: &'static str,
        count_max: usize,
        read: impl Fn(&mut Reader<'_>) -> Option<T>,
    ) -> Option<Vec<T>> {
        let value = self.take(field)?;
        let Some(items) = value.as_array() else {
            self.problem(field, format!("expected a list, found {}", describe(value)), None);
            return None;
        };
        if items.len() > count_max {
            self.problem(field, format!("has {} items, at most {count_max} are allowed", items.len()), None);
            return None;
        }
        let path = self.path_of(field);
        let read_item = |(index, item)| {
            let mut reader = Reader::new(format!("{path}[{index}]"), item, self.problems);
            let found = read(&mut reader);
            reader.finish();
            found
        };
        items.iter().enumerate().map(read_item).collect::<Vec<Option<T>>>().into_iter().collect()
    }

    /// One object inside this one.
    pub fn object<T>(
        &mut self,
        field: &'static str,
        read: impl FnOnce(&mut Reader<'_>) -> Option<T>,
    ) -> Option<T> {
        let value = self.take(field)?;
        let mut reader = Reader::new(self.path_of(field), value, self.problems);
        let found = read(&mut reader);
        reader.finish();
        found
    }

    /// Notes a problem with `field`.
    pub fn problem(&mut self, field: &str, message: impl Into<String>, hint: Option<String>) {
        let path = self.path_of(field);
        self.push(path, message.into(), hint);
    }

    /// Reports every field that was not asked for, with the nearest one that was.
    pub fn finish(mut self) {
        let Some(fields) = self.fields else { return };
        for field in fields.keys().filter(|field| !self.known.contains(&field.as_str())).collect::<Vec<_>>() {
            let hint = match nearest(field, &self.known) {
                Some(nearest) => format!("did you mean `{nearest}`?"),
                None => format!("known here: {}", self.known.join(", ")),
            };
            self.problem(field, "is not a field here", Some(hint));
        }
    }

    fn take(&mut self, field: &'static str) -> Option<&'a Value> {
        self.known.push(field);
        self.fields?.get(field).filter(|value| !value.is_null())
    }

    fn leaf<T: DeserializeOwned>(&mut self, field: &'static str, value: &Value) -> Option<T> {
        match T::deserialize(value) {
            Ok(leaf) => Some(leaf),
            Err(error) => {
                self.problem(field, error.to_string(), None);
                None
            }
        }
    }

    fn path_of(&self, field: &str) -> String {
        if self.path.is_empty() { field.to_owned() } else { format!("{}.{field}", self.path) }
    }

    fn push(&mut self, path: String, message: String, hint: Option<String>) {
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(Problem { path, message, hint });
        }
    }
}

/// The candidate that `text` was probably meant to be: at most two edits away (Damerau and Levenshtein).
#[must_use]
pub fn nearest<'a>(text: &str, candidates: &[&'a str]) -> Option<&'a str> {
    let distance = |candidate: &str| strsim::damerau_levenshtein(text, candidate);
    candidates
        .iter()
        .copied()
        .filter(|candidate| distance(candidate) <= 2)
        .min_by_key(|candidate| distance(candidate))
}

fn describe(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "fields",
    }
}
