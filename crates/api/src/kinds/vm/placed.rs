//! What was chosen for a VM.

use std::net::{Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use super::WorkerPort;
use crate::address::MacAddress;
use crate::decided::Decision;
use crate::name::Name;
use crate::uid::{VolumeId, WorkerId};
use crate::units::ByteSize;

/// What the VM planner chose.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Choice {
    /// Where it runs, and everything that was fixed in the same transaction. It never changes by itself.
    pub placement: Option<Placement>,
    /// The worker whose ledger promises it room that others are to leave, until it is placed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub promised: Option<WorkerId>,
}

/// The outcome of placing a VM: what it holds. While a change waits for the VM's next start, that is the old and the
/// new together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// The chosen worker.
    pub worker: WorkerId,
    /// Its name then.
    pub worker_name: Name,
    /// The image version that the VM keeps until it is updated.
    pub image_version: String,
    /// What is counted for it in the worker's ledger.
    pub cpus: u64,
    /// What is counted for it in the worker's ledger.
    pub memory: ByteSize,
    /// Its disks: those of the specification in their order, then those that its machine may still use.
    pub disks: Vec<PlacedDisk>,
    /// Its network cards, in the order of the specification.
    pub nics: Vec<PlacedNic>,
    /// What is counted for it in the worker's ledger.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<WorkerPort>,
    /// Why this worker.
    pub decision: Decision,
}

/// A disk with the volume that it became.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacedDisk {
    /// Its name within the VM.
    pub name: Name,
    /// The volume's uid.
    pub volume: VolumeId,
    /// The volume's name.
    pub volume_name: Name,
    /// Whether the machine can only read it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
}

/// A network card with its addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacedNic {
    /// The network that it is on.
    pub network: Name,
    /// Its Ethernet address.
    pub mac: MacAddress,
    /// Its IPv4 address, where its network has a pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<Ipv4Addr>,
    /// Its IPv6 address, where its network says which.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address6: Option<Ipv6Addr>,
}
