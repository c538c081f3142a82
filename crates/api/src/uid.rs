//! Identities for machines. A name can be used again when its object is gone; a uid never is.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::marker::PhantomData;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::kinds::{Vm, Volume, Worker};

/// The identity of an object of any kind: a UUID (RFC 9562). Whoever makes one chooses the bits; this crate does not.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Uid(uuid::Uuid);

impl Uid {
    /// A uid from its 128 bits.
    #[must_use]
    pub const fn from_bits(bits: u128) -> Uid {
        Uid(uuid::Uuid::from_u128(bits))
    }

    /// The 128 bits.
    #[must_use]
    pub const fn bits(self) -> u128 {
        self.0.as_u128()
    }
}

impl From<uuid::Uuid> for Uid {
    fn from(uuid: uuid::Uuid) -> Uid {
        Uid(uuid)
    }
}

/// Why a text is no [`Uid`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a uid such as 0193a5c0-7d3e-7c4a-9b1e-2f6d8a4b0c1d")]
pub struct UidError {
    /// The text.
    pub text: String,
}

impl FromStr for Uid {
    type Err = UidError;
    fn from_str(text: &str) -> Result<Uid, UidError> {
        uuid::Uuid::try_parse(text).map(Uid).map_err(|_| UidError { text: text.to_owned() })
    }
}

impl fmt::Display for Uid {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(formatter)
    }
}

impl fmt::Debug for Uid {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

/// The identity of an object of kind `K`, so that a worker's uid cannot be passed where a VM's is meant.
pub struct Id<K>(Uid, PhantomData<fn() -> K>);

/// The identity of a worker.
pub type WorkerId = Id<Worker>;
/// The identity of a VM.
pub type VmId = Id<Vm>;
/// The identity of a volume.
pub type VolumeId = Id<Volume>;

impl<K> Id<K> {
    /// Says that `uid` is the uid of a `K`.
    #[must_use]
    pub const fn new(uid: Uid) -> Id<K> {
        Id(uid, PhantomData)
    }

    /// The uid without its kind.
    #[must_use]
    pub const fn uid(self) -> Uid {
        self.0
    }
}

impl<K> Clone for Id<K> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<K> Copy for Id<K> {}
impl<K> PartialEq for Id<K> {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}
impl<K> Eq for Id<K> {}
impl<K> PartialOrd for Id<K> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl<K> Ord for Id<K> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.cmp(&other.0)
    }
}
impl<K> Hash for Id<K> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}
impl<K> fmt::Display for Id<K> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, formatter)
    }
}
impl<K> fmt::Debug for Id<K> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, formatter)
    }
}
impl<K> FromStr for Id<K> {
    type Err = UidError;
    fn from_str(text: &str) -> Result<Id<K>, UidError> {
        text.parse().map(Id::new)
    }
}
impl<K> Serialize for Id<K> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}
impl<'de, K> Deserialize<'de> for Id<K> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Id<K>, D::Error> {
        Uid::deserialize(deserializer).map(Id::new)
    }
}
