//! The stored form of every value: `{format, written_at, writer, value}`.
//!
//! **Lenient**: fields that this version does not know are kept through a read and a write, so that an older server
//! does not wipe what a newer one wrote. What is unknown is found by comparison: the fields of the stored JSON that
//! do not come back when the value read from it is written again.

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The newest stored format that this version reads, and the one that it writes.
pub const FORMAT: u64 = 1;

/// Who writes, and when: for people who look into the store, and to tell two equal writes apart.
#[derive(Clone, Copy, Debug)]
pub struct Envelope<'a> {
    /// When, on the writer's clock.
    pub written_at: Timestamp,
    /// The process that writes, such as `server n1`.
    pub writer: &'a str,
}

/// The parts of a stored value that this version does not know: usually nothing.
pub type Unknown = Option<std::sync::Arc<Map<String, Value>>>;

/// Why stored bytes cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// They are no envelope with such a value.
    #[error("the stored value is not of the expected form")]
    Form(#[source] serde_json::Error),
    /// A newer version wrote them.
    #[error("the stored value has format {found}; this version reads up to {FORMAT}")]
    Newer {
        /// The format found.
        found: u64,
    },
    /// The value is of another kind than its key says.
    #[error("the stored value is of another kind than its key")]
    WrongKind,
}

#[derive(Serialize, Deserialize)]
struct Stored<W, T> {
    format: u64,
    written_at: Timestamp,
    writer: W,
    value: T,
}

#[derive(Deserialize)]
struct Format {
    format: u64,
}

/// Who wrote these stored bytes; nothing when this version cannot read that.
#[must_use]
pub fn writer(bytes: &[u8]) -> Option<String> {
    let stored: Stored<String, serde::de::IgnoredAny> = serde_json::from_slice(bytes).ok()?;
    (stored.format <= FORMAT).then_some(stored.writer)
}

pub(crate) fn decode<T: Serialize + DeserializeOwned>(bytes: &[u8]) -> Result<(T, Unknown), DecodeError> {
    // The format is read first: a newer one may have any form.
    let Format { format } = serde_json::from_slice(bytes).map_err(DecodeError::Form)?;
    if format > FORMAT {
        return Err(DecodeError::Newer { found: format });
    }
    let stored: Stored<String, Value> = serde_json::from_slice(bytes).map_err(DecodeError::Form)?;
    let value = T::deserialize(&stored.value).map_err(DecodeError::Form)?;
    let again = serde_json::to_value(&value).map_err(DecodeError::Form)?;
    let unknown = match stored.value == again {
        true => None,
        false => difference(&stored.value, &again).map(std::sync::Arc::new),
    };
    Ok((value, unknown))
}

pub(crate) fn encode<T: Serialize>(envelope: &Envelope<'_>, value: &T, unknown: &Unknown) -> Vec<u8> {
    let Envelope { written_at, writer } = *envelope;
    let bytes = match unknown {
        None => serde_json::to_vec(&Stored { format: FORMAT, written_at, writer, value }),
        Some(unknown) => serde_json::to_value(value).and_then(|mut value| {
            if let Value::Object(fields) = &mut value {
                merge(fields, unknown);
            }
            serde_json::to_vec(&Stored { format: FORMAT, written_at, writer, value })
        }),
    };
    // Plain data with text keys always serialises; an empty value would be unreadable, and so freeze, not lose.
    bytes.unwrap_or_default()
}

/// The fields of `stored` that `known` does not have, at any depth of objects.
fn difference(stored: &Value, known: &Value) -> Option<Map<String, Value>> {
    let (Value::Object(stored), Value::Object(known)) = (stored, known) else { return None };
    let differing = |(field, value): (&String, &Value)| match known.get(field) {
        None if value.is_null() => None,
        None => Some((field.clone(), value.clone())),
        Some(other) => difference(value, other).map(|inner| (field.clone(), Value::Object(inner))),
    };
    let fields: Map<String, Value> = stored.iter().filter_map(differing).collect();
    (!fields.is_empty()).then_some(fields)
}

/// Adds `unknown` to `fields`, without replacing anything.
fn merge(fields: &mut Map<String, Value>, unknown: &Map<String, Value>) {
    for (field, value) in unknown {
        match (fields.get_mut(field), value) {
            (None, value) => {
                fields.insert(field.clone(), value.clone());
            }
            (Some(Value::Object(inner)), Value::Object(unknown)) => merge(inner, unknown),
            (Some(_), _) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::{Record, WorkerLedger};
    use crate::{Key, Uid, WorkerId};

    const WRITER: Envelope<'static> = Envelope { written_at: Timestamp::UNIX_EPOCH, writer: "test" };

    fn key() -> Key {
        Key::WorkerLedger(WorkerId::new(Uid::from_bits(1)))
    }

    fn stored(value: &str) -> Vec<u8> {
        format!(r#"{{"format":1,"written_at":"1970-01-01T00:00:00Z","writer":"newer","value":{value}}}"#)
            .into_bytes()
    }

    #[test]
    fn unknown_fields_survive_a_read_modify_write() {
        let newer = stored(r#"{"cpus":1,"memory":"1GiB","vms":1,"gpus":2,"cores":{"shared":3}}"#);
        let (record, unknown) = Record::decode(&key(), &newer).unwrap();
        assert_eq!(
            record,
            WorkerLedger {
                cpus: 1,
                memory: crate::ByteSize::from_mib(1024),
                vms: 1,
                ports: Vec::new(),
                promised: None
            }
            .into()
        );
        let changed = Record::from(WorkerLedger { cpus: 5, ..WorkerLedger::default() });
        let text = String::from_utf8(changed.encode(&WRITER, &unknown)).unwrap();
        for part in [r#""cpus":5"#, r#""gpus":2"#, r#""cores":{"shared":3}"#, r#""writer":"test""#] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn what_cannot_be_read_says_why() {
        let check = |bytes: &[u8], expect: &str| {
            let error = Record::decode(&key(), bytes).map(|_| ()).unwrap_err();
            assert_eq!(error.to_string(), expect);
        };
        check(b"", "the stored value is not of the expected form");
        assert_eq!(writer(&stored("{}")).as_deref(), Some("newer"));
        assert_eq!(writer(b"{}"), None);
        check(&stored(r#"{"cpus":"many"}"#), "the stored value is not of the expected form");
        check(
            br#"{"format":2,"anything":true}"#,
            "the stored value has format 2; this version reads up to 1",
        );
    }
}
