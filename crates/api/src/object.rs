//! Objects: what every kind has in common.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use crate::kinds::scalegroup::Rollout;
use crate::kinds::{Kind, KindError, Spec};
use crate::name::{Name, NameError};
use crate::uid::Uid;
use crate::waiting::Waiting;

/// How many labels an object has at most.
pub const LABELS_MAX: usize = 32;
/// The longest key or value of a label.
pub const LABEL_LENGTH_MAX: usize = 63;

/// The parts of an object that no kind owns. Written with the specification under `asked/`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// The object's identity, never used again.
    pub uid: Uid,
    /// Raised by one whenever the specification changes; begins at 1.
    pub generation: u64,
    /// What people attach for their own use.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// The object that made this one and alone may change it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<Owner>,
    /// When it was asked for, or last changed.
    pub changed_at: Timestamp,
    /// Set when its end was asked for. It never becomes unset: delete wins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deleting_since: Option<Timestamp>,
    /// How often a restart was asked for.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub restarts_asked: u64,
    /// What people ask of a group's updates while they are on their way. No part of any manifest.
    #[serde(default, skip_serializing_if = "Rollout::is_default")]
    pub rollout: Rollout,
    /// Whether another one is asked for in its place; of members of groups, whose group does it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub replace: bool,
    /// Whether a group that has more members than it is to have lets others go, and never this one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub protected: bool,
}

impl Meta {
    /// The group that a VM is a member of.
    #[must_use]
    pub fn group(&self) -> Option<&Owner> {
        self.owner.as_ref().filter(|owner| owner.object.kind == Kind::ScaleGroup)
    }

    /// The parts of an object that is asked for now.
    #[must_use]
    pub fn new(uid: Uid, owner: Option<Owner>, labels: BTreeMap<String, String>, now: Timestamp) -> Meta {
        Meta {
            uid,
            generation: 1,
            labels,
            owner,
            changed_at: now,
            deleting_since: None,
            restarts_asked: 0,
            rollout: Rollout::default(),
            replace: false,
            protected: false,
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands references to skip_serializing_if")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// The owner of a child, by name for people and by uid for machines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// Its kind and name.
    pub object: ObjectRef,
    /// Its uid: a new object of the same name is not the owner.
    pub uid: Uid,
    /// Which version of its owner's template it was made of; for members of a scale group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// Whose place it has, from 1: it is given the volumes that are kept for that; for members of a scale group that keeps some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<u64>,
}

impl Owner {
    /// The owner of what is of no version.
    #[must_use]
    pub const fn new(object: ObjectRef, uid: Uid) -> Owner {
        Owner { object, uid, version: None, slot: None }
    }
}

/// What is asked of an object: its common parts and its specification.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// The parts that no kind owns.
    #[serde(flatten)]
    pub meta: Meta,
    /// What its kind asks.
    pub spec: Spec,
}

/// A kind and a name: `vm/hello`. What people type, and what planners queue.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectRef {
    /// The kind.
    pub kind: Kind,
    /// The name.
    pub name: Name,
}

impl ObjectRef {
    /// The object `name` of `kind`.
    #[must_use]
    pub const fn new(kind: Kind, name: Name) -> ObjectRef {
        ObjectRef { kind, name }
    }
}

/// Why a text is no [`ObjectRef`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ObjectRefError {
    /// There is no `/`.
    #[error("`{0}` is not KIND/NAME such as vm/hello")]
    Shape(String),
    /// The kind is unknown.
    #[error(transparent)]
    Kind(#[from] KindError),
    /// The name is no name.
    #[error(transparent)]
    Name(#[from] NameError),
}

impl FromStr for ObjectRef {
    type Err = ObjectRefError;
    fn from_str(text: &str) -> Result<ObjectRef, ObjectRefError> {
        let (kind, name) = text.split_once('/').ok_or_else(|| ObjectRefError::Shape(text.to_owned()))?;
        Ok(ObjectRef { kind: kind.parse()?, name: name.parse()? })
    }
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(&format!("{}/{}", self.kind, self.name))
    }
}

impl Serialize for ObjectRef {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ObjectRef {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<ObjectRef, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// One object as people see it, put together from what is asked, decided and observed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Object {
    /// The kind.
    pub kind: Kind,
    /// The name.
    pub name: Name,
    /// The identity.
    pub uid: Uid,
    /// How often the specification was changed, from 1.
    pub generation: u64,
    /// What people attached.
    pub labels: BTreeMap<String, String>,
    /// Who made it, if no person did.
    pub owner: Option<ObjectRef>,
    /// What is asked.
    pub spec: Value,
    /// What is true.
    pub status: Status,
}

/// What is true of an object.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// One word: a pure function of the parts, never stored.
    pub state: String,
    /// Whether what was asked last has been reached.
    pub ready: bool,
    /// Since when it is in this state, where that is known.
    pub since: Option<Timestamp>,
    /// Why it is not yet what was asked.
    pub waiting_on: Vec<Waiting>,
    /// When the wait becomes `stuck`.
    pub deadline: Option<Timestamp>,
    /// What only this kind has.
    #[serde(flatten)]
    pub more: serde_json::Map<String, Value>,
}
