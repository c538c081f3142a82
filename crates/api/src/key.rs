//! The layout of the store: every key, and who writes it.
//!
//! ```text
//! asked/<kind>/<name>                   API; owned children: the owner's controller
//! decided/<kind>/<name>                 the kind's controller
//! assigned/<worker>/<kind>/<uid>        controllers
//! observed/<worker>/<kind>/<uid>        that worker
//! ledger/worker/<worker>                whoever places or frees on it
//! claimed/address/<network>/<ip>        whoever needs or frees it
//! alive/<worker>                        leased through a server
//! meta/epoch                            init, restore
//! leader                                leased
//! ```
//!
//! Keys are ordered here as they are grouped above, so that a range of the view is an index: all assignments of one
//! worker, all claims of one network.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use crate::assigned::HostObject;
use crate::name::Name;
use crate::object::ObjectRef;
use crate::uid::WorkerId;

/// Where the view begins in etcd. The version is of the layout, not of a value.
pub const ROOT: &str = "/lightbyte/v1/";

/// A key of the store.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// What is asked of an object.
    Asked(ObjectRef),
    /// What was decided for it.
    Decided(ObjectRef),
    /// What a worker is to do.
    Assigned(WorkerId, HostObject),
    /// What a worker says.
    Observed(WorkerId, HostObject),
    /// A worker's capacity ledger.
    WorkerLedger(WorkerId),
    /// An address that is taken.
    Address(Name, Ipv4Addr),
    /// A worker's liveness.
    Alive(WorkerId),
    /// The cluster's identity.
    Epoch,
    /// The elected leader.
    Leader,
}

/// A text that is no key of this layout.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a key of this version's layout")]
pub struct KeyError {
    /// The text.
    pub text: String,
}

impl fmt::Display for Key {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Key::Asked(object) => write!(formatter, "asked/{}/{}", object.kind.word(), object.name),
            Key::Decided(object) => write!(formatter, "decided/{}/{}", object.kind.word(), object.name),
            Key::Assigned(worker, HostObject { kind, uid }) => {
                write!(formatter, "assigned/{worker}/{}/{uid}", kind.word())
            }
            Key::Observed(worker, HostObject { kind, uid }) => {
                write!(formatter, "observed/{worker}/{}/{uid}", kind.word())
            }
            Key::WorkerLedger(worker) => write!(formatter, "ledger/worker/{worker}"),
            Key::Address(network, address) => write!(formatter, "claimed/address/{network}/{address}"),
            Key::Alive(worker) => write!(formatter, "alive/{worker}"),
            Key::Epoch => formatter.write_str("meta/epoch"),
            Key::Leader => formatter.write_str("leader"),
        }
    }
}

impl FromStr for Key {
    type Err = KeyError;
    fn from_str(text: &str) -> Result<Key, KeyError> {
        let parts: Vec<&str> = text.split('/').collect();
        parse(&parts).ok_or_else(|| KeyError { text: text.to_owned() })
    }
}

fn parse(parts: &[&str]) -> Option<Key> {
    // Kinds are compared by their word alone: short names are for people, and a key has one spelling.
    let kind = |word: &str| crate::Kind::ALL.iter().find(|kind| kind.word() == word).copied();
    let object = |word: &str, name: &str| Some(ObjectRef::new(kind(word)?, name.parse().ok()?));
    let host = |word: &str, uid: &str| Some(HostObject { kind: kind(word)?, uid: uid.parse().ok()? });
    Some(match parts {
        ["asked", word, name] => Key::Asked(object(word, name)?),
        ["decided", word, name] => Key::Decided(object(word, name)?),
        ["assigned", worker, word, uid] => Key::Assigned(worker.parse().ok()?, host(word, uid)?),
        ["observed", worker, word, uid] => Key::Observed(worker.parse().ok()?, host(word, uid)?),
        ["ledger", "worker", worker] => Key::WorkerLedger(worker.parse().ok()?),
        ["claimed", "address", network, address] => {
            Key::Address(network.parse().ok()?, address.parse().ok()?)
        }
        ["alive", worker] => Key::Alive(worker.parse().ok()?),
        ["meta", "epoch"] => Key::Epoch,
        ["leader"] => Key::Leader,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Kind, Uid};

    #[test]
    fn every_key_is_read_back_as_it_was_written() {
        let worker = WorkerId::new(Uid::from_bits(7));
        let name = Name::new("hello").unwrap();
        let host = HostObject { kind: Kind::Vm, uid: Uid::from_bits(9) };
        let keys = [
            Key::Asked(ObjectRef::new(Kind::Vm, name.clone())),
            Key::Decided(ObjectRef::new(Kind::Volume, name.clone())),
            Key::Assigned(worker, host),
            Key::Observed(worker, host),
            Key::WorkerLedger(worker),
            Key::Address(name, Ipv4Addr::new(10, 77, 0, 2)),
            Key::Alive(worker),
            Key::Epoch,
            Key::Leader,
        ];
        for key in keys {
            assert_eq!(key.to_string().parse(), Ok(key));
        }
    }

    #[test]
    fn other_texts_are_no_keys() {
        for text in
            ["", "asked", "asked/vm", "asked/vms/a", "asked/vm/A", "asked/vm/a/b", "alive/n1", "meta/epoch/"]
        {
            assert!(text.parse::<Key>().is_err(), "{text}");
        }
    }
}
