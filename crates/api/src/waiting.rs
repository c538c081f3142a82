//! Why something waits: typed reasons, so that programs can tell them apart and people can read them.
//!
//! A reason names a class and the objects in it, never a volatile number such as "3 of 4 workers": a number would
//! change, and each change would be written to the store.

mod words;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::address::MacAddress;
use crate::kinds::vm::WorkerPort;
use crate::name::Name;
use crate::object::ObjectRef;
use crate::placing::Matches;
use crate::units::{ByteSize, Span};

/// One reason to wait.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "reason", rename_all = "snake_case")]
pub enum WaitingOn {
    /// No worker has this much free.
    Capacity {
        /// Virtual CPUs needed.
        cpus: u64,
        /// Memory needed.
        memory: ByteSize,
    },
    /// Every worker that has room for it has as many VMs as it takes.
    WorkersFull,
    /// No worker may take it: none is registered, alive, schedulable and of the architecture.
    Workers {
        /// The architecture needed.
        architecture: String,
    },
    /// No worker that is ready has the labels that it asks for.
    WorkerLabels {
        /// What they must be.
        on: Matches,
    },
    /// Members of groups with a lower priority are to leave it their room.
    Preempting {
        /// The worker that they are on.
        worker: Name,
    },
    /// Every worker that could take it is only for VMs with other labels.
    WorkersReserved,
    /// On no worker that could take it there is a VM that it is to be near to.
    KeptNear {
        /// The labels of such VMs.
        near: BTreeMap<String, String>,
    },
    /// On every worker that could take it there is a VM that it keeps apart from, or that keeps apart from it.
    KeptApart,
    /// An object that is named here does not exist, or is being deleted.
    Missing {
        /// That object.
        object: ObjectRef,
    },
    /// An image has no such version.
    ImageVersion {
        /// The image.
        image: Name,
        /// The version.
        version: String,
    },
    /// No address is free, or not the one that was asked for.
    Address {
        /// The network.
        network: Name,
    },
    /// It asks for what only a network with a pool can give.
    NeedsPool {
        /// The network, whose addresses come by DHCP.
        network: Name,
        /// The field of the VM that asks for it.
        field: String,
    },
    /// Somebody else on the network has the address, and the VM can have no other.
    Squatted {
        /// The network.
        network: Name,
        /// The address.
        address: Ipv4Addr,
        /// The hardware address that answers for it.
        mac: MacAddress,
        /// The worker that found it.
        worker: Name,
    },
    /// The asked disk is smaller than what it is made from, or than it is.
    DiskTooSmall {
        /// The least size.
        size_min: ByteSize,
    },
    /// The worker that the VM is on has too little room for it to grow.
    WorkerRoom {
        /// The worker.
        worker: Name,
        /// Virtual CPUs that the VM is to have.
        cpus: u64,
        /// Memory that the VM is to have.
        memory: ByteSize,
    },
    /// No worker that could take it has these ports free.
    WorkerPorts {
        /// The ports that it is to have.
        ports: Vec<WorkerPort>,
    },
    /// The labels that its firewall names come to too many addresses.
    FirewallSources {
        /// How many there may be.
        addresses_max: u64,
    },
    /// The worker that its volumes are on takes no VM now: it is away, cordoned or being deleted.
    WorkerClosed {
        /// The worker.
        worker: Name,
    },
    /// The volume is given to another VM, and has one writer or many readers.
    VolumeHeld {
        /// The volume.
        volume: Name,
        /// The VM that has it.
        by: ObjectRef,
    },
    /// The volume has not been given to this VM yet.
    VolumeGiven {
        /// The volume.
        volume: Name,
    },
    /// The volumes of one VM are on different workers, or not on its own.
    VolumeElsewhere {
        /// One of them.
        volume: Name,
        /// Where it is; none while that worker's own record cannot be read.
        worker: Option<Name>,
    },
    /// The disk that it is made from is not there yet.
    Source {
        /// The volume or snapshot.
        object: ObjectRef,
    },
    /// The worker has not reported the end of its work yet.
    Worker {
        /// The worker.
        worker: Name,
        /// What it is doing.
        to: WorkerTask,
    },
    /// The worker is not alive.
    WorkerAway {
        /// The worker.
        worker: Name,
    },
    /// The machine ended by itself, and is started again after a pause.
    CrashLoop {
        /// The worker.
        worker: Name,
    },
    /// It ended by itself and is not started again, as its restart policy says.
    Off,
    /// No check of its health has passed since it booted, or too many in a row have failed.
    Health {
        /// Why the last one failed, once too many have.
        problem: Option<String>,
    },
    /// The worker cannot do it; its report says why.
    WorkerProblem {
        /// The worker.
        worker: Name,
        /// What it said.
        problem: String,
    },
    /// The worker's agent still runs, and would register it again.
    WorkerAlive {
        /// The worker.
        worker: Name,
    },
    /// Other objects still use it.
    InUse {
        /// One of them.
        by: ObjectRef,
    },
    /// Its children must go first.
    Child {
        /// One of them.
        child: ObjectRef,
    },
    /// A member of the group must become available.
    Member {
        /// One of them.
        member: ObjectRef,
    },
    /// More members have failed than are replaced without a pause.
    HealingPause,
    /// A version of the group's template failed, and is not tried again.
    Rejected {
        /// Its number.
        version: u64,
        /// What was seen of its members.
        because: String,
    },
    /// The canaries of a version are available, and a person says whether it goes on.
    Promotion {
        /// The version.
        version: u64,
    },
    /// A person has stopped the update to a version.
    Paused {
        /// The version.
        version: u64,
    },
    /// It has more members than it is to have, and a person has protected those that would go.
    Protected {
        /// How many more.
        members: u64,
    },
    /// A load balancer may still send requests to it, and it is not stopped before.
    InRotation {
        /// The load balancer.
        loadbalancer: Name,
    },
    /// It has the virtual address of its load balancer, which moves to another proxy first.
    VirtualAddress {
        /// The load balancer.
        loadbalancer: Name,
    },
    /// A proxy is to give the virtual address up, and nobody else gets it before.
    AddressLeft {
        /// Its VM.
        proxy: ObjectRef,
    },
    /// Clients may still know it by the name of its load balancer, and it is not stopped before.
    Names,
    /// The proxies of a load balancer must become available.
    Proxies {
        /// The group of them.
        group: ObjectRef,
    },
    /// A proxy has not taken yet what it was told last.
    Acknowledgement {
        /// Its VM.
        proxy: ObjectRef,
    },
    /// One proxy tries what is asked before the others get it.
    Trial {
        /// Its VM.
        proxy: ObjectRef,
    },
    /// What is asked was tried by one proxy and is not given to the others.
    TrialFailed {
        /// What was seen.
        because: String,
    },
    /// A certificate is not good for long any more.
    CertificateExpires {
        /// Till when it is good.
        at: Timestamp,
    },
    /// A certificate is not good any more.
    CertificateExpired {
        /// Since when.
        at: Timestamp,
    },
    /// A certificate cannot be shown to anybody.
    CertificateUnusable {
        /// Why.
        because: String,
    },
    /// A certification authority is asked for a certificate.
    Ordered {
        /// Whose directory.
        directory: String,
    },
    /// A certification authority gave no certificate.
    OrderFailed {
        /// Why.
        because: String,
        /// When it is asked again.
        again_at: Timestamp,
    },
    /// Nobody in a pool serves.
    NoBackends {
        /// The pool.
        pool: String,
    },
    /// Too many workers are away at once for any of them to be taken for lost.
    LossBrake,
    /// A worker that is drained still has it; its group makes another elsewhere.
    Leaving {
        /// The VM.
        vm: ObjectRef,
    },
    /// A worker that is drained still has it, and it does not leave by itself.
    Staying {
        /// The VM or volume.
        object: ObjectRef,
    },
    /// A stored value that it depends on cannot be read by this version; nothing is done until it can.
    Unreadable {
        /// The key.
        key: String,
    },
    /// Its planner failed; it is left alone until what is asked of it changes.
    Quarantined {
        /// What the planner said.
        problem: String,
    },
}

/// What a worker is waited for to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkerTask {
    /// Make the disk.
    Create,
    /// Make the disk larger.
    Grow,
    /// Fetch the disk from the worker that has it.
    Fetch,
    /// Let go of the disk, so that another worker may have it.
    Release,
    /// Start the machine.
    Start,
    /// Stop the machine.
    Stop,
    /// Remove everything.
    Remove,
}

/// A reason with the time it began.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    /// The reason.
    #[serde(flatten)]
    pub on: WaitingOn,
    /// Since when.
    pub since: Timestamp,
}

impl WaitingOn {
    /// How long this wait is normal. After it the object counts as stuck, and a person should look; `None` for what may
    /// last.
    #[must_use]
    pub const fn patience(&self) -> Option<Span> {
        Some(match self {
            // The grace may be long, and people have time.
            WaitingOn::Off
            | WaitingOn::Health { problem: None }
            | WaitingOn::Promotion { .. }
            | WaitingOn::Paused { .. }
            | WaitingOn::Protected { .. } => return None,
            // A guest under software emulation on a loaded machine takes up to 120 s to boot.
            WaitingOn::Worker { to: WorkerTask::Start, .. } => Span::from_secs(180),
            // How long that takes is a matter of size; what hinders it is told.
            WaitingOn::Worker { to: WorkerTask::Fetch, .. } => return None,
            WaitingOn::Worker { .. } | WaitingOn::Child { .. } => Span::from_secs(60),
            WaitingOn::WorkerAway { .. } => Span::from_secs(30),
            // Nothing in the cluster will end these by itself: a person has to, so they are stuck at once.
            WaitingOn::Missing { .. }
            | WaitingOn::ImageVersion { .. }
            | WaitingOn::Squatted { .. }
            | WaitingOn::NeedsPool { .. }
            | WaitingOn::FirewallSources { .. }
            | WaitingOn::DiskTooSmall { .. }
            | WaitingOn::WorkerProblem { .. }
            | WaitingOn::CrashLoop { .. }
            | WaitingOn::Health { problem: Some(_) }
            | WaitingOn::Unreadable { .. }
            | WaitingOn::Quarantined { .. }
            | WaitingOn::WorkerAlive { .. }
            | WaitingOn::VolumeHeld { .. }
            | WaitingOn::VolumeElsewhere { .. }
            | WaitingOn::Rejected { .. }
            | WaitingOn::TrialFailed { .. }
            | WaitingOn::CertificateExpires { .. }
            | WaitingOn::CertificateExpired { .. }
            | WaitingOn::CertificateUnusable { .. }
            | WaitingOn::OrderFailed { .. }
            | WaitingOn::LossBrake
            | WaitingOn::Staying { .. }
            | WaitingOn::InUse { .. } => Span::from_secs(0),
            WaitingOn::VolumeGiven { .. } | WaitingOn::Source { .. } | WaitingOn::Preempting { .. } => {
                Span::from_secs(60)
            }
            // The proxies must have what they are to answer, and the authority looks more than once.
            WaitingOn::Ordered { .. } => Span::from_secs(5 * 60),
            // As long as one member may take to start, twice: its own reasons are told sooner.
            WaitingOn::Member { .. }
            | WaitingOn::Proxies { .. }
            | WaitingOn::NoBackends { .. }
            | WaitingOn::Leaving { .. }
            | WaitingOn::HealingPause => Span::from_secs(360),
            // How long requests may take is for its owner to say.
            WaitingOn::InRotation { .. } | WaitingOn::VirtualAddress { .. } => Span::from_secs(3_660),
            WaitingOn::Acknowledgement { .. }
            | WaitingOn::Trial { .. }
            | WaitingOn::AddressLeft { .. }
            | WaitingOn::Names => Span::from_secs(60),
            WaitingOn::Capacity { .. }
            | WaitingOn::WorkersFull
            | WaitingOn::Workers { .. }
            | WaitingOn::WorkerLabels { .. }
            | WaitingOn::WorkersReserved
            | WaitingOn::KeptNear { .. }
            | WaitingOn::KeptApart
            | WaitingOn::WorkerRoom { .. }
            | WaitingOn::WorkerPorts { .. }
            | WaitingOn::WorkerClosed { .. }
            | WaitingOn::Address { .. } => Span::from_secs(10),
        })
    }
}
