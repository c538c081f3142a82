//! Why something waits: typed reasons, so that programs can tell them apart and people can read them.
//!
//! A reason names a class and the objects in it, never a volatile number such as "3 of 4 workers": a number would
//! change, and each change would be written to the store.

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::address::MacAddress;
use crate::kinds::vm::WorkerPort;
use crate::name::Name;
use crate::object::ObjectRef;
use crate::placing::{Clause, Matches};
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
            | WaitingOn::LossBrake
            | WaitingOn::Staying { .. }
            | WaitingOn::InUse { .. } => Span::from_secs(0),
            WaitingOn::VolumeGiven { .. } | WaitingOn::Source { .. } | WaitingOn::Preempting { .. } => {
                Span::from_secs(60)
            }
            // As long as one member may take to start, twice: its own reasons are told sooner.
            WaitingOn::Member { .. }
            | WaitingOn::Proxies { .. }
            | WaitingOn::NoBackends { .. }
            | WaitingOn::Leaving { .. }
            | WaitingOn::HealingPause => Span::from_secs(360),
            // How long requests may take is for its owner to say.
            WaitingOn::InRotation { .. } => Span::from_secs(3_660),
            WaitingOn::Acknowledgement { .. } | WaitingOn::Trial { .. } | WaitingOn::Names => {
                Span::from_secs(60)
            }
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

    /// What a person can do about it.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            WaitingOn::Capacity { .. } => {
                "`lightbyte get workers` shows what is free; add a worker, or delete something".to_owned()
            }
            WaitingOn::WorkersFull => {
                "delete a VM, add a worker, or start an agent with a larger `--vms-max`".to_owned()
            }
            WaitingOn::Workers { .. } => {
                "`lightbyte get workers` shows which are alive and cordoned".to_owned()
            }
            WaitingOn::WorkerLabels { .. } => {
                "`lightbyte get workers -o yaml` shows their labels; `lightbyte edit worker/NAME` changes them, or ask for others".to_owned()
            }
            WaitingOn::Preempting { worker } => {
                format!("`lightbyte describe worker/{worker}` shows what is on it")
            }
            WaitingOn::WorkersReserved => {
                "give it the labels of `only_for` of a worker, or change that: `lightbyte edit worker/NAME`".to_owned()
            }
            WaitingOn::KeptNear { .. } => {
                "`lightbyte get vms -l` with these labels shows where they are; make one, or leave out `placement.near`"
                    .to_owned()
            }
            WaitingOn::KeptApart => {
                "add a worker, delete such a VM, or let them be together: `placement.apart`".to_owned()
            }
            WaitingOn::Missing { object } if object.kind == crate::Kind::Image => {
                "`lightbyte get images` lists what there is; `lightbyte import image DIR` adds one".to_owned()
            }
            WaitingOn::Missing { object } => format!("create {object}, or change what names it"),
            WaitingOn::ImageVersion { image, .. } => {
                format!("`lightbyte describe image/{image}` lists its versions")
            }
            WaitingOn::Address { network } => {
                format!(
                    "`lightbyte describe network/{network}` shows its pool; delete something, or widen the pool"
                )
            }
            WaitingOn::NeedsPool { field, .. } => {
                format!("leave `{field}` out, or put it on a network that has a subnet and a pool")
            }
            WaitingOn::Squatted { network, address, .. } => format!(
                "take the address from that machine, then `lightbyte release address/{address} --network {network}`"
            ),
            WaitingOn::DiskTooSmall { size_min } => format!("ask for at least {size_min}"),
            WaitingOn::Worker { worker, .. }
            | WaitingOn::CrashLoop { worker }
            | WaitingOn::WorkerProblem { worker, .. } => {
                format!(
                    "`lightbyte describe worker/{worker}` shows the worker; the log of its agent says more"
                )
            }
            WaitingOn::WorkerRoom { worker, .. } => {
                format!(
                    "`lightbyte describe worker/{worker}` shows what is free; ask for less, or free something there"
                )
            }
            WaitingOn::WorkerPorts { .. } => {
                "`lightbyte get vms -o yaml` shows which VMs have `ports`; choose others, or delete one"
                    .to_owned()
            }
            WaitingOn::FirewallSources { .. } => {
                "name more labels, so that fewer VMs have all of them; or a subnet by `cidr`".to_owned()
            }
            WaitingOn::WorkerClosed { worker } => {
                format!("`lightbyte describe worker/{worker}` says how it is")
            }
            WaitingOn::VolumeHeld { volume, by } => {
                format!("`lightbyte detach volume/{volume} {by}` first, or attach it read-only to all")
            }
            WaitingOn::VolumeElsewhere { volume, .. } => format!(
                "detach volume/{volume}, or use one on the VM's worker; a snapshot of it makes another beside it"
            ),
            WaitingOn::VolumeGiven { volume } => format!("`lightbyte why volume/{volume}` says more"),
            WaitingOn::Source { object } => format!("`lightbyte why {object}` says more"),
            WaitingOn::Health { .. } => {
                "its console and its journal say more: `lightbyte logs`, with `--unit NAME` for a service"
                    .to_owned()
            }
            WaitingOn::Off => "`lightbyte start` starts it again".to_owned(),
            WaitingOn::WorkerAway { worker } => format!("start worker `{worker}` again"),
            WaitingOn::WorkerAlive { worker } => format!("stop the agent on `{worker}` first"),
            WaitingOn::InUse { by } => format!("delete {by} first"),
            WaitingOn::Child { child } => format!("`lightbyte why {child}` says what that waits for"),
            WaitingOn::Member { member } => format!("`lightbyte why {member}` says what that waits for"),
            WaitingOn::HealingPause => {
                "`lightbyte events` tells what became of them; their consoles say more: `lightbyte logs`"
                    .to_owned()
            }
            WaitingOn::Rejected { .. } => {
                "apply another template; or, where the group follows its image, make another version of that current"
                    .to_owned()
            }
            WaitingOn::Promotion { .. } => {
                "`lightbyte rollout promote GROUP` goes on, `lightbyte rollout undo GROUP` goes back"
                    .to_owned()
            }
            WaitingOn::Paused { .. } => {
                "`lightbyte rollout resume GROUP` goes on, `lightbyte rollout undo GROUP` goes back"
                    .to_owned()
            }
            WaitingOn::Protected { .. } => "`lightbyte unprotect vm/NAME` lets one go".to_owned(),
            WaitingOn::InRotation { loadbalancer } => {
                format!("`lightbyte describe lb/{loadbalancer}` says what is in flight")
            }
            WaitingOn::Names => "it takes some seconds".to_owned(),
            WaitingOn::Proxies { group } => format!("`lightbyte why {group}` says what these wait for"),
            WaitingOn::Acknowledgement { proxy } | WaitingOn::Trial { proxy } => {
                format!("`lightbyte logs {proxy}` shows what its proxy says")
            }
            WaitingOn::TrialFailed { .. } => "ask for something else: the others go on with what they have".to_owned(),
            WaitingOn::NoBackends { .. } => {
                "its VMs must run, and pass their `health` checks if they have any".to_owned()
            }
            WaitingOn::LossBrake => {
                "`lightbyte get workers` shows which; it may be their network, and not they".to_owned()
            }
            WaitingOn::Leaving { vm } => format!("`lightbyte why {vm}` says more about it"),
            WaitingOn::Staying { object } => {
                format!("its disk is kept where it is: move or delete {object}, or undrain the worker")
            }
            WaitingOn::Unreadable { .. } => {
                "upgrade this server to the newest version in the cluster".to_owned()
            }
            WaitingOn::Quarantined { .. } => {
                "report this as a bug; editing the object tries again".to_owned()
            }
        }
    }
}

fn in_words(labels: &BTreeMap<String, String>) -> String {
    labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<String>>().join(", ")
}

impl fmt::Display for WaitingOn {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WaitingOn::Capacity { cpus, memory } => {
                write!(formatter, "no worker has {cpus} CPU and {memory} free")
            }
            WaitingOn::WorkersFull => {
                formatter.write_str("every worker that has room for it has as many VMs as it takes")
            }
            WaitingOn::Workers { architecture } => {
                write!(formatter, "no {architecture} worker is ready to take it")
            }
            WaitingOn::WorkerLabels { on } => {
                let clauses: Vec<String> =
                    on.iter().map(|(key, wanted)| Clause(key, wanted).to_string()).collect();
                write!(formatter, "no worker that is ready has the labels {}", clauses.join(", "))
            }
            WaitingOn::Preempting { worker } => {
                write!(formatter, "members with a lower priority to leave their room on worker `{worker}`")
            }
            WaitingOn::WorkersReserved => {
                formatter.write_str("every worker that could take it is only for VMs with other labels")
            }
            WaitingOn::KeptNear { near } => {
                write!(formatter, "no worker that could take it has a VM with the labels {}", in_words(near))
            }
            WaitingOn::KeptApart => {
                formatter.write_str("every worker that could take it has a VM that it is to be apart from")
            }
            WaitingOn::Missing { object } => {
                write!(formatter, "{object} does not exist, or is being deleted")
            }
            WaitingOn::ImageVersion { image, version } => {
                write!(formatter, "image `{image}` has no version `{version}`")
            }
            WaitingOn::Address { network } => {
                write!(formatter, "network `{network}` has no free address for it")
            }
            WaitingOn::NeedsPool { network, field } => write!(
                formatter,
                "its `{field}` needs an address that is known, and those of network `{network}` come by DHCP"
            ),
            WaitingOn::Squatted { network, address, mac, worker } => write!(
                formatter,
                "{address} of network `{network}` is in use by a machine that is no VM of ours: worker `{worker}` heard {mac} answer for it"
            ),
            WaitingOn::DiskTooSmall { size_min } => {
                write!(formatter, "the disk is smaller than the {size_min} that it needs")
            }
            WaitingOn::Worker { worker, to } => {
                let task = match to {
                    WorkerTask::Create => "make the disk",
                    WorkerTask::Grow => "make the disk larger",
                    WorkerTask::Fetch => "fetch the disk",
                    WorkerTask::Release => "let go of the disk",
                    WorkerTask::Start => "start it",
                    WorkerTask::Stop => "stop it",
                    WorkerTask::Remove => "remove it",
                };
                write!(formatter, "worker `{worker}` to {task}")
            }
            WaitingOn::WorkerRoom { worker, cpus, memory } => {
                write!(formatter, "its worker `{worker}` has no room for it to have {cpus} CPU and {memory}")
            }
            WaitingOn::WorkerPorts { ports } => {
                let ports = ports.iter().map(|port| format!("{} {}", port.protocol.word(), port.port));
                let ports = ports.collect::<Vec<_>>().join(", ");
                write!(formatter, "no worker that could take it has all of its ports free: {ports}")
            }
            WaitingOn::FirewallSources { addresses_max } => write!(
                formatter,
                "the labels that its firewall names come to more than {addresses_max} addresses"
            ),
            WaitingOn::WorkerClosed { worker } => {
                write!(formatter, "its volumes are on worker `{worker}`, which takes no VM now")
            }
            WaitingOn::VolumeHeld { volume, by } => write!(formatter, "volume/{volume} is attached to {by}"),
            WaitingOn::VolumeGiven { volume } => write!(formatter, "volume/{volume} to be given to it"),
            WaitingOn::VolumeElsewhere { volume, worker: Some(worker) } => {
                write!(formatter, "volume/{volume} is on worker `{worker}`, and it cannot be there")
            }
            WaitingOn::VolumeElsewhere { volume, worker: None } => {
                write!(formatter, "volume/{volume} is on another worker, and it cannot be there")
            }
            WaitingOn::Source { object } => write!(formatter, "{object} is not made yet"),
            WaitingOn::WorkerAway { worker } => write!(formatter, "worker `{worker}`, which is away"),
            WaitingOn::Off => formatter.write_str("it was shut down from inside, or ended, and stays off"),
            WaitingOn::Health { problem: None } => formatter.write_str("a check of its health to pass"),
            WaitingOn::Health { problem: Some(problem) } => {
                write!(formatter, "a check of its health to pass: {problem}")
            }
            WaitingOn::CrashLoop { worker } => write!(formatter, "it ended by itself on worker `{worker}`"),
            WaitingOn::WorkerProblem { worker, problem } => write!(formatter, "worker `{worker}`: {problem}"),
            WaitingOn::WorkerAlive { worker } => write!(formatter, "the agent on `{worker}` still runs"),
            WaitingOn::InUse { by } => write!(formatter, "{by} still uses it"),
            WaitingOn::Child { child } => write!(formatter, "its child {child} to go"),
            WaitingOn::Member { member } => write!(formatter, "its member {member} to be available"),
            WaitingOn::HealingPause => {
                formatter.write_str("more members have failed than are replaced without a pause")
            }
            WaitingOn::Rejected { version, because } => {
                write!(formatter, "version {version} of its template failed: {because}")
            }
            WaitingOn::Promotion { version } => {
                write!(formatter, "version {version} to be promoted; its canaries are available")
            }
            WaitingOn::Paused { version } => write!(formatter, "the update to version {version} is paused"),
            WaitingOn::Protected { members } => {
                write!(
                    formatter,
                    "a person to let go of {members} more than it is to have, which are protected"
                )
            }
            WaitingOn::InRotation { loadbalancer } => {
                write!(formatter, "loadbalancer/{loadbalancer} to send it nothing more")
            }
            WaitingOn::Names => {
                formatter.write_str("clients to forget that its load balancer's name led to it")
            }
            WaitingOn::Proxies { group } => write!(formatter, "its proxies, {group}, to be available"),
            WaitingOn::Acknowledgement { proxy } => {
                write!(formatter, "{proxy} to take what it was told last")
            }
            WaitingOn::Trial { proxy } => write!(formatter, "{proxy} to try what is asked before the others"),
            WaitingOn::TrialFailed { because } => {
                write!(formatter, "one proxy has tried what is asked: {because}")
            }
            WaitingOn::NoBackends { pool } => write!(formatter, "somebody in pool `{pool}` to serve"),
            WaitingOn::LossBrake => {
                formatter.write_str("too many workers are away at once for any to be taken for lost")
            }
            WaitingOn::Leaving { vm } => write!(formatter, "{vm} to be made again elsewhere"),
            WaitingOn::Staying { object } => write!(formatter, "{object}, which does not leave by itself"),
            WaitingOn::Unreadable { key } => {
                write!(formatter, "stored value `{key}` cannot be read by this version")
            }
            WaitingOn::Quarantined { problem } => write!(formatter, "its planner failed: {problem}"),
        }
    }
}
