//! What happened to objects: events, and where they are kept.
//!
//! ```text
//! -events/told                     how far the story is told: the leader
//! -events/of/<kind>/<name>/<slot>  a ring for each object: the leader, each on the lease of its hour
//! ```
//!
//! They lie beside the root of the store, are no part of the view, and **nobody decides by them**: losing one is allowed.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::actor::Actor;
use crate::object::ObjectRef;

/// What all keys of events begin with.
pub const EVENTS_PREFIX: &str = "-events/";
/// The newest stored form of events that this version reads, and the one that it writes.
const FORMAT: u64 = 1;
/// The longest message of an event, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 512;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When a server saw it.
    pub at: Timestamp,
    /// The newest revision that changed something of the view that showed it.
    pub revision: u64,
    /// To which object.
    pub object: ObjectRef,
    /// What, in a word: `created`, `asked`, `state`, `waiting`, `resolved`, `scaled`, `console`, `address`, `squatted`,
    /// `released`, `gone`, or `dropped` for events that were too many.
    pub what: Cow<'static, str>,
    /// The same in a sentence, of at most [`MESSAGE_BYTES_MAX`] bytes.
    pub message: String,
    /// Who did it, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<Actor>,
}

impl Event {
    /// The same event with its message cut to what may be kept.
    #[must_use]
    pub fn cut(mut self) -> Event {
        if self.message.len() > MESSAGE_BYTES_MAX {
            let end = self.message.floor_char_boundary(MESSAGE_BYTES_MAX - '\u{2026}'.len_utf8());
            self.message.truncate(end);
            self.message.push('\u{2026}');
        }
        self
    }

    /// Whether both tell the same, whoever saw it and when.
    #[must_use]
    pub fn tells_as(&self, other: &Event) -> bool {
        self.revision == other.revision
            && self.object == other.object
            && self.what == other.what
            && self.message == other.message
    }
}

/// A key of the events.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum EventKey {
    /// How far the story is told.
    Told,
    /// A slot of an object's ring.
    Of(ObjectRef, u64),
}

impl fmt::Display for EventKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EventKey::Told => write!(formatter, "{EVENTS_PREFIX}told"),
            EventKey::Of(object, slot) => write!(formatter, "{EVENTS_PREFIX}of/{object}/{slot}"),
        }
    }
}

/// A text that is no key of the events of this version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is not a key of events of this version's layout")]
pub struct EventKeyError;

impl FromStr for EventKey {
    type Err = EventKeyError;

    fn from_str(text: &str) -> Result<EventKey, EventKeyError> {
        let rest = text.strip_prefix(EVENTS_PREFIX).ok_or(EventKeyError)?;
        if rest == "told" {
            return Ok(EventKey::Told);
        }
        let (object, slot) =
            rest.strip_prefix("of/").and_then(|rest| rest.rsplit_once('/')).ok_or(EventKeyError)?;
        let object = object.parse().map_err(|_| EventKeyError)?;
        Ok(EventKey::Of(object, slot.parse().map_err(|_| EventKeyError)?))
    }
}

/// How far the story is told: one value, rewritten with each batch of events and guarded by it. So two leaders, one of
/// which does not know that it is none, cannot both write a batch; and who leads next knows what it need not tell again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// Everything that views up to this revision showed has been told, or dropped.
    pub through: u64,
}

/// An event in its slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Numbered {
    /// Its number among the events of its object, from 0; its slot follows from it.
    pub number: u64,
    /// The event.
    pub event: Event,
}

#[derive(Serialize, Deserialize)]
struct Stored<T> {
    format: u64,
    #[serde(flatten)]
    value: T,
}

/// The bytes of a stored value of the events.
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    // Plain data always serialises; a value that did not would be shown to nobody, and nothing decides by it.
    serde_json::to_vec(&Stored { format: FORMAT, value }).unwrap_or_default()
}

/// A stored value of the events; nothing when this version cannot read it.
pub fn decode<T: for<'a> Deserialize<'a>>(bytes: &[u8]) -> Option<T> {
    let stored: Stored<T> = serde_json::from_slice(bytes).ok()?;
    (stored.format <= FORMAT).then_some(stored.value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_as_they_are_written() {
        let check = |key: EventKey, text: &str| {
            assert_eq!(key.to_string(), text);
            assert_eq!(text.parse(), Ok(key));
        };
        check(EventKey::Told, "-events/told");
        check(EventKey::Of("vm/web-1".parse().unwrap(), 7), "-events/of/vm/web-1/7");
        for text in
            ["", "-events/", "-events/of/vm/a", "-events/of/vm/a/x", "-events/of/vn/a/1", "asked/vm/a"]
        {
            assert_eq!(text.parse::<EventKey>(), Err(EventKeyError), "{text}");
        }
    }

    fn event(message: &str) -> Event {
        Event {
            at: Timestamp::UNIX_EPOCH,
            revision: 7,
            object: "vm/a".parse().unwrap(),
            what: "state".into(),
            message: message.to_owned(),
            actor: None,
        }
    }

    #[test]
    fn what_is_stored_is_read_again_and_a_newer_form_is_not() {
        let numbered = Numbered { number: 3, event: event("it was a and is b") };
        assert_eq!(decode::<Numbered>(&encode(&numbered)), Some(numbered));
        assert_eq!(decode::<Told>(br#"{"format":1,"through":9,"more":1}"#), Some(Told { through: 9 }));
        assert_eq!(decode::<Told>(br#"{"format":2,"through":9}"#), None);
        assert_eq!(decode::<Told>(b"no"), None);
    }

    #[test]
    fn a_message_is_cut_between_characters() {
        assert_eq!(event("short").cut().message, "short");
        let cut = event(&"\u{e9}".repeat(MESSAGE_BYTES_MAX)).cut().message;
        assert!(cut.len() <= MESSAGE_BYTES_MAX && cut.ends_with("\u{e9}\u{2026}"), "{cut}");
    }
}
