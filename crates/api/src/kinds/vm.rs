//! A **VM**: one virtual machine, with its disks and network cards.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Field, Kind, SpecRules};
use crate::address::MacAddress;
use crate::decided::Decision;
use crate::name::Name;
use crate::object::ObjectRef;
use crate::reader::Reader;
use crate::uid::{VolumeId, WorkerId};
use crate::units::{ByteSize, Span};

/// The most virtual CPUs: Firecracker's limit (`MAX_SUPPORTED_VCPUS`), which every driver of ours honours.
pub const CPUS_MAX: u64 = 32;
/// The least memory a VM is given: less does not boot the images we know.
pub const MEMORY_MIN: ByteSize = ByteSize::from_mib(64);
/// The most memory a VM is given.
pub const MEMORY_MAX: ByteSize = ByteSize::from_mib(1 << 20);
/// How many disks a VM has at most.
pub const DISKS_MAX: usize = 8;
/// How many network cards a VM has at most.
pub const NICS_MAX: usize = 4;
/// The name of the first disk, which holds the root file system.
pub const ROOT_DISK: &str = "root";
/// The network of a VM that names none.
pub const DEFAULT_NETWORK: &str = "default";

/// What is asked of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// The image that its root disk is cloned from.
    pub image: Name,
    /// Virtual CPUs.
    #[serde(default = "default_cpus")]
    pub cpus: u64,
    /// Memory of the guest.
    #[serde(default = "default_memory")]
    pub memory: ByteSize,
    /// Whether it should run. A stopped VM keeps its worker, disks and addresses.
    #[serde(default = "default_running")]
    pub running: bool,
    /// What happens when its worker is lost.
    #[serde(default)]
    pub on_worker_loss: OnWorkerLoss,
    /// Its disks; the first is the root disk.
    #[serde(default = "default_disks")]
    pub disks: Vec<Disk>,
    /// Its network cards.
    #[serde(default = "default_nics")]
    pub nics: Vec<Nic>,
}

/// What happens to a VM when its worker is lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnWorkerLoss {
    /// It waits for the worker. Nothing is lost, and nothing runs twice.
    #[default]
    Wait,
    /// It is started elsewhere with a fresh disk once its worker has been gone for `after`. Refused until fencing
    /// exists: without it the same VM could run twice.
    Recreate {
        /// How long the worker must be gone.
        after: Span,
    },
}

/// A disk of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// Its name within the VM.
    pub name: Name,
    /// Its size; as large as the image's when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<ByteSize>,
}

/// A network card of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nic {
    /// The network that it is on.
    pub network: Name,
    /// The address it must have; the next free one of the pool when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<Ipv4Addr>,
}

/// What the VM planner chose.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Choice {
    /// Where it runs, and everything that was fixed in the same transaction. It never changes by itself.
    pub placement: Option<Placement>,
}

/// The outcome of placing a VM.
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
    /// Its disks, in the order of the specification.
    pub disks: Vec<PlacedDisk>,
    /// Its network cards, in the order of the specification.
    pub nics: Vec<PlacedNic>,
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
}

/// A network card with its addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacedNic {
    /// The network that it is on.
    pub network: Name,
    /// Its Ethernet address.
    pub mac: MacAddress,
    /// Its IPv4 address.
    pub address: Ipv4Addr,
}

fn default_cpus() -> u64 {
    1
}
fn default_memory() -> ByteSize {
    ByteSize::from_mib(128)
}
fn default_running() -> bool {
    true
}
fn default_disks() -> Vec<Disk> {
    Name::new(ROOT_DISK).map(|name| Disk { name, size: None }).into_iter().collect()
}
fn default_nics() -> Vec<Nic> {
    Name::new(DEFAULT_NETWORK).map(|network| Nic { network, address: None }).into_iter().collect()
}

impl Spec {
    /// A VM of `image` with every default.
    #[must_use]
    pub fn of_image(image: Name) -> Spec {
        Spec {
            image,
            cpus: default_cpus(),
            memory: default_memory(),
            running: default_running(),
            on_worker_loss: OnWorkerLoss::default(),
            disks: default_disks(),
            nics: default_nics(),
        }
    }
}

impl SpecRules for Spec {
    const ABOUT: &'static str = "a virtual machine with its disks and network cards";

    const FIELDS: &'static [Field] = &[
    ("image", "the image that its root disk is cloned from; fixed for life"),
    ("cpus", "virtual CPUs, 1 to 32; fixed for life"),
    ("memory", "memory of the guest, 64MiB to 1TiB; fixed for life"),
    ("running", "whether it should run; stopped, it keeps its worker, disks and addresses"),
    ("on_worker_loss", "what happens when its worker is lost: wait"),
    ("disks", "its disks; today the root disk alone; fixed for life"),
    ("disks[].name", "its name within the VM; the first must be root"),
    ("disks[].size", "its size, at most 64TiB; as large as the image's when left out"),
    ("nics", "its network cards, at most 4; fixed for life"),
    ("nics[].network", "the network that it is on"),
    ("nics[].address", "the address it must have; the next free one when left out"),
];

    fn shortest() -> Option<Value> {
        Some(json!({ "image": "demo" }))
    }

    fn read(fields: &mut Reader<'_>) -> Option<Spec> {
        let image = fields.required("image");
        let cpus = fields.number("cpus", 1..=CPUS_MAX, default_cpus());
        let memory = fields.or("memory", default_memory());
        let running = fields.or("running", default_running());
        let on_worker_loss = read_worker_loss(fields);
        let disks = fields.list("disks", DISKS_MAX, read_disk).unwrap_or_else(default_disks);
        let nics = fields.list("nics", NICS_MAX, read_nic).unwrap_or_else(default_nics);
        if !(MEMORY_MIN..=MEMORY_MAX).contains(&memory) {
            fields.problem("memory", format!("must be between {MEMORY_MIN} and {MEMORY_MAX}, is {memory}"), None);
        }
        check_disks(&disks, fields);
        Some(Spec { image: image?, cpus, memory, running, on_worker_loss, disks, nics })
    }

    fn references(&self) -> Vec<ObjectRef> {
        let networks = self.nics.iter().map(|nic| ObjectRef::new(Kind::Network, nic.network.clone()));
        std::iter::once(ObjectRef::new(Kind::Image, self.image.clone())).chain(networks).collect()
    }

    fn frozen_field(&self, next: &Spec) -> Option<(&'static str, &'static str)> {
        let reason = "it is fixed when a VM is made; delete the VM and make it again";
        let frozen = [
            ("image", self.image != next.image),
            ("disks", self.disks != next.disks),
            ("nics", self.nics != next.nics),
            ("cpus", self.cpus != next.cpus),
            ("memory", self.memory != next.memory),
        ];
        frozen.into_iter().find(|(_, changed)| *changed).map(|(field, _)| (field, reason))
    }
}

fn read_worker_loss(fields: &mut Reader<'_>) -> OnWorkerLoss {
    let found = fields.or("on_worker_loss", OnWorkerLoss::default());
    if let OnWorkerLoss::Recreate { .. } = found {
        let hint = "use `wait`; a group replaces lost members without it".to_owned();
        let message = "`recreate` needs fencing, which this version does not have";
        fields.problem("on_worker_loss", message, Some(hint));
    }
    found
}

fn check_disks(disks: &[Disk], fields: &mut Reader<'_>) {
    let is_root = |disk: &Disk| disk.name.as_str() == ROOT_DISK;
    if !disks.first().is_some_and(is_root) {
        fields.problem("disks", format!("the first disk must be named `{ROOT_DISK}`"), None);
    }
    if disks.len() > 1 {
        let message = "only the root disk is supported by this version";
        fields.problem("disks", message, Some("remove the other disks".to_owned()));
    }
}

fn read_disk(fields: &mut Reader<'_>) -> Option<Disk> {
    let name = fields.required("name");
    let size: Option<ByteSize> = fields.optional("size");
    if size.is_some_and(|size| size == ByteSize::default() || size > super::volume::SIZE_MAX) {
        fields.problem("size", format!("must be more than 0 and at most {}", super::volume::SIZE_MAX), None);
    }
    Some(Disk { name: name?, size })
}

fn read_nic(fields: &mut Reader<'_>) -> Option<Nic> {
    let network = fields.or("network", Name::new(DEFAULT_NETWORK).ok());
    let address = fields.optional("address");
    Some(Nic { network: network?, address })
}
