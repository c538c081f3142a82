//! Reports: what a worker says is true. First a claim, then the facts.

use std::net::Ipv4Addr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::address::MacAddress;
use crate::health::Health;
use crate::kinds::Kind;
use crate::name::Name;
use crate::uid::Uid;
use crate::units::{ByteSize, is_nought};

/// The longest problem text that a worker may report.
pub const PROBLEM_LENGTH_MAX: usize = 500;

/// Digits of a checksum by which a worker names a part that it has: enough to find it, and few enough to be stored for every
/// worker.
pub const PART_NAME_LENGTH: usize = 16;
/// The name that workers have for the part of an image with this checksum.
#[must_use]
pub fn part_name(sha256: &str) -> &str {
    sha256.get(..PART_NAME_LENGTH).unwrap_or(sha256)
}

/// How many parts a worker names: 5 KiB of its report.
pub const PARTS_REPORTED_MAX: usize = 256;

/// How many orphans a worker names.
pub const ORPHANS_REPORTED_MAX: usize = 32;

/// Written under `observed/<worker>/<kind>/<uid>` by that worker. While it exists, the assignment stays: it does the
/// work of a finalizer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Observed {
    /// Of the worker itself.
    Worker(ObservedWorker),
    /// Of a VM.
    Vm(ObservedVm),
    /// Of a volume.
    Volume(ObservedVolume),
}

/// What a worker says of itself. Written when its agent starts, and when something of it changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObservedWorker {
    /// Its name.
    pub name: Name,
    /// The identity of the running kernel (`/proc/sys/kernel/random/boot_id`, random(4)).
    pub boot_id: String,
    /// Architecture as `uname -m` prints it.
    pub architecture: String,
    /// Virtual CPUs that it offers to VMs: often several for each CPU that it has.
    pub cpus: u64,
    /// CPUs that the host has; nought if it does not say.
    #[serde(default, skip_serializing_if = "is_nought")]
    pub host_cpus: u64,
    /// The most VMs that it takes; no limit if it does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vms_max: Option<u64>,
    /// Memory that it offers to VMs.
    pub memory: ByteSize,
    /// The driver that runs its VMs: `firecracker`, `qemu` or `fake`.
    pub vmm: String,
    /// Where its agent listens for streams such as consoles, as `host:port`; empty when it does not.
    #[serde(default)]
    pub address: String,
    /// The version of its agent.
    pub version: String,
    /// The parts of images that it has, by the beginnings of their checksums ([`PART_NAME_LENGTH`] digits), in order; at most
    /// [`PARTS_REPORTED_MAX`]. Other workers fetch them from it, and check what they get.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<String>,
    /// What is on its host and nobody has assigned to it; at most [`ORPHANS_REPORTED_MAX`]. It is left alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub orphans: Vec<Orphan>,
}

/// Something on a host that nobody has assigned to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Orphan {
    /// Of a VM or a volume.
    pub kind: Kind,
    /// Which; the name of its directory, and in the names of its taps.
    pub uid: Uid,
    /// Its name, if there is a record of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
    /// What there is of it, in words for people.
    pub left: String,
}

/// What a worker says of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObservedVm {
    /// The sequence of the assignment that this report speaks of.
    pub sequence: u64,
    /// The generation that was carried out last.
    pub generation: u64,
    /// How far it is.
    pub phase: VmPhase,
    /// Since when, on the worker's clock.
    pub since: Timestamp,
    /// The shape of the machine that runs, or of the next one when none does; see `AssignedVm::shape`.
    #[serde(default)]
    pub shape: u64,
    /// How often it ended by itself and was started again.
    #[serde(default)]
    pub restarts: u64,
    /// The last restart that was asked for and carried out.
    #[serde(default)]
    pub restarts_done: u64,
    /// How long its last boot took.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<BootTimes>,
    /// What the checks of its health came to; nothing without a check, and while it does not run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<Health>,
    /// Addresses of this assignment that somebody else on the network has. Under it the machine is never started.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub squatters: Vec<Squatter>,
    /// Addresses that DHCP servers have given to its cards, while it runs: as the worker saw it, whatever the guest says.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub leases: Vec<Lease>,
    /// What the proxy in it does, if a load balancer has told it anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy: Option<ObservedProxy>,
    /// The virtual address that its worker lets it send from, whether it is still assigned or not. Without this it sends nothing
    /// from any but its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub virtual_address: Option<ObservedVirtualAddress>,
    /// The turn of a virtual address that it gave up by itself, because somebody else had the address while the store could not
    /// be reached; nought if none. It has it again in a later turn.
    #[serde(default, skip_serializing_if = "is_nought")]
    pub address_yielded: u64,
    /// What hinders it, in words for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// What a load balancer's proxy does, as its worker was told by it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ObservedProxy {
    /// The revision of the topology that holds: it lies on the proxy's disk, and no request begins any more to anybody
    /// who is not in it. Nought if none does.
    pub revision: u64,
    /// The last one that it refused, when that was a newer one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<RefusedTopology>,
    /// Those that are not in it and that requests are still in flight to; at most [`BUSY_REPORTED_MAX`], the others count as
    /// among them while there are so many.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub busy: Vec<Uid>,
    /// How often the proxy's process was seen to begin anew in the life of this machine.
    #[serde(skip_serializing_if = "is_nought")]
    pub restarts: u64,
}

/// A virtual address that a VM may send from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObservedVirtualAddress {
    /// The address.
    pub address: Ipv4Addr,
    /// The turn for which its guest has it and the network was told so; nought while it has not. See
    /// [`VirtualAddress::turn`](crate::assigned::VirtualAddress::turn).
    #[serde(default)]
    pub turn: u64,
    /// It was to leave it, and has: nothing is open to it, and nobody is answered.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub left: bool,
    /// Its guest, or the proxy in it, does not answer to what it is told of the address.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub silent: bool,
}

/// How many backends with requests in flight a worker names for a proxy.
pub const BUSY_REPORTED_MAX: usize = 64;

/// A topology that a proxy did not take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedTopology {
    /// Its revision.
    pub revision: u64,
    /// Why, in the proxy's words.
    pub because: String,
}

impl ObservedProxy {
    /// Whether requests may be in flight to somebody who is not in what holds.
    #[must_use]
    pub fn is_busy_with(&self, uid: Uid) -> bool {
        self.busy.len() >= BUSY_REPORTED_MAX || self.busy.contains(&uid)
    }
}

/// An address that a DHCP server has given to a card (RFC 2131, `DHCPACK`); of several the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Lease {
    /// Which of the VM's network cards, the first being 0.
    pub nic: u32,
    /// The address.
    pub address: Ipv4Addr,
}

/// Somebody who answered for an address that a VM was about to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Squatter {
    /// Which of the VM's network cards, the first being 0.
    pub nic: u32,
    /// The address of that card.
    pub address: Ipv4Addr,
    /// The hardware address that answered.
    pub mac: MacAddress,
}

/// How far a VM is on its worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VmPhase {
    /// The worker has taken it up; nothing runs yet.
    Claimed,
    /// Its machine process runs; the guest has not answered yet.
    Starting,
    /// The guest is ready.
    Running,
    /// It ended by itself, and waits for its next start.
    Crashed,
    /// It ended by itself and stays off, as its restart policy says: most often because its guest shut it down.
    Off,
    /// It was asked to stop, and has not yet.
    Stopping,
    /// It does not run, as asked.
    Stopped,
}

/// How long each part of a boot took, in milliseconds. The first spans two machines' clocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootTimes {
    /// From the request until its assignment reached the worker.
    pub request_to_dispatch: u64,
    /// From there until the machine process was started.
    pub dispatch_to_vmm: u64,
    /// From there until the guest agent ran.
    pub vmm_to_agent: u64,
    /// From there until the guest was ready.
    pub agent_to_ready: u64,
}

/// What a worker says of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObservedVolume {
    /// The sequence of the assignment that this report speaks of.
    pub sequence: u64,
    /// The generation that was carried out last.
    pub generation: u64,
    /// How far it is.
    pub phase: VolumePhase,
    /// How large its file is; nought while there is none.
    #[serde(default)]
    pub size: ByteSize,
    /// Since when, on the worker's clock.
    pub since: Timestamp,
    /// What hinders it, in words for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// How far a volume is on its worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VolumePhase {
    /// The worker has taken it up; it is not there yet.
    Claimed,
    /// It is there.
    Present,
    /// It was there, and its file is gone. It is never made again blank.
    Lost,
    /// It is another worker's still, and all of it was fetched once; somebody may be writing to it.
    Copied,
    /// It is another worker's still, and all of it was fetched and verified since nobody writes to it any more.
    Complete,
    /// It is there, and no machine uses it, or can.
    Held,
    /// It is given up: no machine of this worker will ever use it again.
    Released,
}

impl Observed {
    /// The kind of what is reported.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        match self {
            Observed::Worker(_) => Kind::Worker,
            Observed::Vm(_) => Kind::Vm,
            Observed::Volume(_) => Kind::Volume,
        }
    }
}
