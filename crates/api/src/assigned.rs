//! Assignments: what a worker is to do, fully resolved. There is no choice left in them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::address::{InterfaceId, MacAddress, Subnet6};
use crate::firewall::Wall;
use crate::first_boot::FirstBoot;
use crate::health::HealthCheck;
use crate::kinds::Kind;
use crate::kinds::image::Part;
use crate::kinds::vm::{PortForward, RestartPolicy};
use crate::kinds::volume::Filesystem;
use crate::name::Name;
use crate::uid::{Uid, VolumeId, WorkerId};
use crate::units::{ByteSize, Span};

/// Written under `assigned/<worker>/<kind>/<uid>` by a controller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Assigned {
    /// A VM to run, stop or remove.
    Vm(AssignedVm),
    /// A volume to have or remove.
    Volume(AssignedVolume),
}

/// A VM on its worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AssignedVm {
    /// Raised by its writer on every change; a worker acts only on what is at least as new as what it knows.
    pub sequence: u64,
    /// The generation of the specification that this carries out.
    pub generation: u64,
    /// The VM's name, for the guest's host name and for messages.
    pub name: Name,
    /// What the worker is to bring about.
    pub wanted: WantedVm,
    /// Raised to ask for a stop and a start.
    #[serde(default)]
    pub restarts_asked: u64,
    /// The sequence at which the machine itself was last changed (CPUs, memory, disks): a machine that runs is as it was
    /// when it was started, and follows at its next start.
    #[serde(default)]
    pub shape: u64,
    /// When it is started again after it ended by itself.
    #[serde(default)]
    pub restart: RestartPolicy,
    /// How its guest is asked whether what it does works.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthCheck>,
    /// Virtual CPUs.
    pub cpus: u64,
    /// Memory.
    pub memory: ByteSize,
    /// The image's name, for the guest.
    pub image: Name,
    /// The image's version, for the guest.
    pub image_version: String,
    /// The kernel.
    pub kernel: Part,
    /// The initial RAM file system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<Part>,
    /// What the image gives the kernel.
    #[serde(default)]
    pub command_line: String,
    /// Its disks, the root first.
    pub disks: Vec<AssignedDisk>,
    /// Its network cards.
    pub nics: Vec<AssignedNic>,
    /// What is done at the first boot of its root disk.
    #[serde(default, skip_serializing_if = "FirstBoot::is_empty")]
    pub first_boot: FirstBoot,
    /// When a person asked for this, on the server's clock: where the boot times are counted from.
    pub asked_at: Timestamp,
}

/// What is wanted of a VM. Nothing is ever removed because an assignment is missing: only [`WantedVm::Removed`] does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WantedVm {
    /// It runs.
    Running,
    /// It does not run; its disks stay.
    Stopped,
    /// It does not run, and nothing of it is left.
    Removed,
}

/// A disk of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AssignedDisk {
    /// The volume.
    pub volume: VolumeId,
    /// Whether the machine can only read it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
    /// Where the guest's agent mounts it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mount: Option<String>,
}

/// A network card, with everything that the host and the guest need.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AssignedNic {
    /// The bridge on the worker.
    pub bridge: String,
    /// Its Ethernet address.
    pub mac: MacAddress,
    /// Its IPv4 address; without, a DHCP server of its network says which.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<Ipv4Addr>,
    /// The length of the subnet's prefix, for an address that is known.
    #[serde(default)]
    pub prefix_length: u8,
    /// The gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<Ipv4Addr>,
    /// The name servers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dns: Vec<IpAddr>,
    /// Its IPv6; without, it speaks none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<AssignedIpv6>,
    /// The largest packets; those of Ethernet without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// What may come in; everything without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub firewall: Option<Wall>,
    /// Which ports of the worker lead here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PortForward>,
    /// An address that it has besides its own, until it is another's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub virtual_address: Option<VirtualAddress>,
}

/// The virtual address of a load balancer, on the card of the proxy that has it now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtualAddress {
    /// The address.
    pub address: Ipv4Addr,
    /// Raised whenever the network is to be told anew who has it.
    pub turn: u64,
    /// It is about to be somebody else's: within so long what is open to it comes to its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leaves_within: Option<Span>,
}

impl AssignedNic {
    /// The last half of each of its IPv6 addresses; none where it speaks no IPv6.
    #[must_use]
    pub fn interface6(&self) -> Option<InterfaceId> {
        let of_mac = || InterfaceId::of_mac(self.mac);
        self.ipv6.as_ref().map(|_| self.address.map_or_else(of_mac, InterfaceId::of))
    }

    /// The virtual addresses that it has: that of IPv4, and where its IPv6 address is known the one that is made from it likewise.
    pub fn virtual_addresses(&self) -> impl Iterator<Item = IpAddr> + use<> {
        let address = self.virtual_address.map(|has| has.address);
        let address6 = address.zip(self.ipv6.as_ref()).and_then(|(address, ipv6)| {
            let subnet = Subnet6::of(ipv6.address?, ipv6.prefix_length);
            Some(InterfaceId::of(address).within(subnet))
        });
        [address.map(IpAddr::V4), address6.map(IpAddr::V6)].into_iter().flatten()
    }
}

/// The IPv6 of a network card. The last half of its addresses is [`AssignedNic::interface6`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AssignedIpv6 {
    /// Its address; without, those that routers advertise the first half of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<Ipv6Addr>,
    /// The length of the subnet's prefix.
    #[serde(default)]
    pub prefix_length: u8,
    /// The gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<Ipv6Addr>,
}

/// A disk on its worker: a volume's, or a snapshot's, which is the same there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AssignedVolume {
    /// See [`AssignedVm::sequence`].
    pub sequence: u64,
    /// The generation of the specification that this carries out.
    pub generation: u64,
    /// The volume's name, for messages.
    pub name: Name,
    /// What the worker is to bring about.
    pub wanted: WantedVolume,
    /// Its size. A disk that is smaller grows; none ever shrinks.
    pub size: ByteSize,
    /// What it is made from.
    pub source: Source,
    /// It comes from another worker, and is not this one's yet: nothing may use it. When this is gone, it has arrived.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arriving: Option<Arriving>,
}

/// A disk that another worker still has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Arriving {
    /// The worker that has it.
    pub from: WorkerId,
    /// Where that worker's agent listens, as `host:port`.
    pub address: String,
    /// Nobody writes to it any more: what is fetched from now on is what will count.
    #[serde(default)]
    pub held: bool,
    /// A disk of this worker that may be much like it: only what differs need be fetched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<VolumeId>,
}

/// What a disk is made from, once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// A part of an image.
    Image(Part),
    /// Nothing, with a file system or without.
    Blank(Filesystem),
    /// Another disk of the same worker, as it is at that moment.
    Disk(VolumeId),
}

/// What is wanted of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WantedVolume {
    /// It is there.
    Present,
    /// It is there, and no machine may use it: it is being moved away. It may become present again.
    Held,
    /// It is given up in favour of the worker that has its copy: from the moment at which this is saved, no machine of this
    /// worker uses it again. There is no way back.
    Released,
    /// It is not there, and nothing of it is left but a file in quarantine: another worker has it.
    Quarantined,
    /// It is not there, and nothing of it is left.
    Removed,
}

impl WantedVolume {
    /// Whether nothing of it is to be left that anything could use.
    #[must_use]
    pub const fn is_removal(self) -> bool {
        matches!(self, WantedVolume::Quarantined | WantedVolume::Removed)
    }
}

impl Assigned {
    /// See [`AssignedVm::sequence`].
    #[must_use]
    pub const fn sequence(&self) -> u64 {
        match self {
            Assigned::Vm(vm) => vm.sequence,
            Assigned::Volume(volume) => volume.sequence,
        }
    }

    /// The kind of what is assigned.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        match self {
            Assigned::Vm(_) => Kind::Vm,
            Assigned::Volume(_) => Kind::Volume,
        }
    }

    /// Whether nothing of it is to be left.
    #[must_use]
    pub const fn is_removal(&self) -> bool {
        match self {
            Assigned::Vm(vm) => matches!(vm.wanted, WantedVm::Removed),
            Assigned::Volume(volume) => volume.wanted.is_removal(),
        }
    }
}

/// What is assigned to whom: the last parts of the key of an assignment, and of its report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct HostObject {
    /// The kind; one with effects on hosts.
    pub kind: Kind,
    /// The object's uid.
    pub uid: Uid,
}

impl HostObject {
    /// An object of `kind` as hosts know it: a snapshot is a disk there, like a volume.
    #[must_use]
    pub const fn of(kind: Kind, uid: Uid) -> HostObject {
        match kind {
            Kind::Snapshot => HostObject { kind: Kind::Volume, uid },
            kind => HostObject { kind, uid },
        }
    }
}
