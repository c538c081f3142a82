//! The small records beside the objects: ledgers, claims, liveness, and the cluster's own.

use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::address::MacAddress;
use crate::assigned::Assigned;
use crate::decided::Decided;
use crate::envelope::{self, DecodeError, Envelope};
use crate::key::Key;
use crate::kinds::vm::WorkerPort;
use crate::name::Name;
use crate::object::{Asked, ObjectRef};
use crate::observed::Observed;
use crate::uid::{Uid, WorkerId};
use crate::units::ByteSize;

/// What is given away of a worker's capacity. Rewritten by each transaction that places or frees something there, so
/// that two placements cannot both take the last room: the second one's guard fails.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerLedger {
    /// Virtual CPUs given away.
    pub cpus: u64,
    /// Memory given away.
    pub memory: ByteSize,
    /// VMs placed there.
    pub vms: u64,
    /// Its ports that lead to VMs, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<WorkerPort>,
    /// Room that is kept for a VM while others leave it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub promised: Option<Promise>,
}

/// Room on a worker that members of groups leave for a VM with a higher priority. Nobody else of that priority or a lower one is
/// given it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promise {
    /// The VM that it is kept for.
    pub vm: Uid,
    /// Its priority.
    pub priority: u64,
    /// Virtual CPUs.
    pub cpus: u64,
    /// Memory.
    pub memory: ByteSize,
    /// The members that are to leave.
    pub from: Vec<Uid>,
}

impl WorkerLedger {
    /// The same with nothing promised to `vm`.
    #[must_use]
    pub fn without_promise_to(mut self, vm: Uid) -> WorkerLedger {
        self.promised = self.promised.filter(|promise| promise.vm != vm);
        self
    }
}

/// An address that is taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressClaim {
    /// Who holds it: a VM; its network when it is squatted; a load balancer when the VM is no more and a proxy may still send there.
    pub owner: Uid,
    /// Who that was, for people.
    pub object: ObjectRef,
    /// Set when a machine that is none of ours answers for it: nobody is given it until a person releases it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub squatted: Option<Squatted>,
}

/// What is known of somebody who has an address that is not theirs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Squatted {
    /// The hardware address that answered.
    pub mac: MacAddress,
    /// The worker that found it.
    pub worker: Name,
    /// When that became known, on the leader's clock.
    pub since: Timestamp,
}

/// A worker's liveness. Leased: it goes by itself when nobody renews it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alive {
    /// The worker.
    pub worker: WorkerId,
    /// The boot of the worker's kernel.
    pub boot_id: String,
    /// When this life began, on the server's clock.
    pub since: Timestamp,
}

/// The cluster's identity, compared in every transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Epoch {
    /// The cluster.
    pub cluster: Uid,
    /// Raised by each restore from a backup; workers refuse an older one.
    pub epoch: u64,
}

/// Who leads. Leased.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leader {
    /// The server's name.
    pub server: Name,
    /// The identity of this run of the server: a restarted server is another candidate.
    pub run: Uid,
    /// Where its API is.
    pub url: String,
}

/// Any stored value, read.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// Under `asked/`.
    Asked(Arc<Asked>),
    /// Under `decided/`.
    Decided(Arc<Decided>),
    /// Under `assigned/`.
    Assigned(Arc<Assigned>),
    /// Under `observed/`.
    Observed(Arc<Observed>),
    /// Under `ledger/worker/`.
    WorkerLedger(WorkerLedger),
    /// Under `claimed/address/`.
    AddressClaim(AddressClaim),
    /// Under `alive/`.
    Alive(Alive),
    /// `meta/epoch`.
    Epoch(Epoch),
    /// `leader`.
    Leader(Leader),
}

/// Writes the same list of variants for reading and writing.
macro_rules! each_record {
    ($record:expr, $inner:ident => $body:expr) => {
        match $record {
            Record::Asked($inner) => $body,
            Record::Decided($inner) => $body,
            Record::Assigned($inner) => $body,
            Record::Observed($inner) => $body,
            Record::WorkerLedger($inner) => $body,
            Record::AddressClaim($inner) => $body,
            Record::Alive($inner) => $body,
            Record::Epoch($inner) => $body,
            Record::Leader($inner) => $body,
        }
    };
}

impl Record {
    /// Reads the stored bytes of `key`, and what of them this version does not know.
    ///
    /// # Errors
    /// [`DecodeError`] when this version cannot read them. The caller keeps the key as unreadable; it never drops it.
    pub fn decode(key: &Key, bytes: &[u8]) -> Result<(Record, envelope::Unknown), DecodeError> {
        match key {
            Key::Asked(object) => {
                let (asked, unknown) = envelope::decode::<Asked>(bytes)?;
                if asked.spec.kind() != object.kind {
                    return Err(DecodeError::WrongKind);
                }
                Ok((Record::Asked(Arc::new(asked)), unknown))
            }
            Key::Decided(_) => {
                envelope::decode(bytes).map(|(value, unknown)| (Record::Decided(Arc::new(value)), unknown))
            }
            Key::Assigned(..) => {
                envelope::decode(bytes).map(|(value, unknown)| (Record::Assigned(Arc::new(value)), unknown))
            }
            Key::Observed(..) => {
                envelope::decode(bytes).map(|(value, unknown)| (Record::Observed(Arc::new(value)), unknown))
            }
            Key::WorkerLedger(_) => {
                envelope::decode(bytes).map(|(value, unknown)| (Record::WorkerLedger(value), unknown))
            }
            Key::Address(..) => {
                envelope::decode(bytes).map(|(value, unknown)| (Record::AddressClaim(value), unknown))
            }
            Key::Alive(_) => envelope::decode(bytes).map(|(value, unknown)| (Record::Alive(value), unknown)),
            Key::Epoch => envelope::decode(bytes).map(|(value, unknown)| (Record::Epoch(value), unknown)),
            Key::Leader => envelope::decode(bytes).map(|(value, unknown)| (Record::Leader(value), unknown)),
        }
    }

    /// The bytes to store: the record in its envelope, with the fields kept that an older read of it did not know.
    #[must_use]
    pub fn encode(&self, envelope: &Envelope<'_>, unknown: &envelope::Unknown) -> Vec<u8> {
        each_record!(self, inner => envelope::encode(envelope, inner, unknown))
    }
}

macro_rules! record_from {
    ($($variant:ident($type:ty) $wrap:expr;)*) => {$(
        impl From<$type> for Record {
            fn from(value: $type) -> Record {
                Record::$variant($wrap(value))
            }
        }
    )*};
}
record_from! {
    Asked(Asked) Arc::new;
    Decided(Decided) Arc::new;
    Assigned(Assigned) Arc::new;
    Observed(Observed) Arc::new;
    WorkerLedger(WorkerLedger) std::convert::identity;
    AddressClaim(AddressClaim) std::convert::identity;
    Alive(Alive) std::convert::identity;
    Epoch(Epoch) std::convert::identity;
    Leader(Leader) std::convert::identity;
}
