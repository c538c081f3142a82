//! A **VM**: one virtual machine, with its disks and network cards.

mod placed;

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

pub use self::placed::{Choice, PlacedDisk, PlacedNic, Placement};
use super::{Field, Kind, SpecRules};
use crate::firewall::{Firewall, Protocol};
use crate::first_boot::FirstBoot;
use crate::health::HealthCheck;
use crate::name::Name;
use crate::object::ObjectRef;
use crate::placing::Placing;
use crate::reader::Reader;
use crate::units::{ByteSize, Span, is_nought};

/// The most virtual CPUs: Firecracker's limit (`MAX_SUPPORTED_VCPUS`), which every driver of ours honours.
pub const CPUS_MAX: u64 = 32;
/// The highest priority.
pub const PRIORITY_MAX: u64 = 1_000;
/// The least memory a VM is given: less does not boot the images we know.
pub const MEMORY_MIN: ByteSize = ByteSize::from_mib(64);
/// The most memory a VM is given.
pub const MEMORY_MAX: ByteSize = ByteSize::from_mib(1 << 20);
/// How many disks a VM has at most.
pub const DISKS_MAX: usize = 8;
/// The longest path where a disk is mounted.
pub const MOUNT_BYTES_MAX: usize = 255;
/// Where nothing is mounted: the agent keeps there what it has done at the first boot of the root disk, and the kernel its own.
pub const KEPT_PLACES: [&str; 7] =
    ["/var", "/var/lib", "/var/lib/lightbyte", "/proc", "/sys", "/dev", "/run"];
/// How many ports of its worker a VM has at most.
pub const PORTS_MAX: usize = 16;
/// The least port of a worker that a VM may have: those below are the host's own.
pub const WORKER_PORT_MIN: u16 = 1_024;
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
    /// The version of the image; the current one when it is placed, when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_version: Option<String>,
    /// Virtual CPUs.
    #[serde(default = "default_cpus")]
    pub cpus: u64,
    /// Memory of the guest.
    #[serde(default = "default_memory")]
    pub memory: ByteSize,
    /// How much it matters: members of groups with a lower one make room for it, if it asks for that.
    #[serde(default, skip_serializing_if = "is_nought")]
    pub priority: u64,
    /// Whether it should run. A stopped VM keeps its worker, disks and addresses.
    #[serde(default = "default_running")]
    pub running: bool,
    /// When it is started again after it ended by itself.
    #[serde(default)]
    pub restart: RestartPolicy,
    /// How it is asked whether what it does works; not at all without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthCheck>,
    /// What happens when its worker is lost.
    #[serde(default)]
    pub on_worker_loss: OnWorkerLoss,
    /// Which workers it may be placed on.
    #[serde(default, skip_serializing_if = "Placing::is_any")]
    pub placement: Placing,
    /// Its disks; the first is the root disk.
    #[serde(default = "default_disks")]
    pub disks: Vec<Disk>,
    /// Its network cards.
    #[serde(default = "default_nics")]
    pub nics: Vec<Nic>,
    /// What may come in to it from its networks; everything without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub firewall: Option<Firewall>,
    /// Which ports of its worker are its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PortForward>,
    /// What is done at the first boot of its root disk.
    #[serde(default, skip_serializing_if = "FirstBoot::is_empty")]
    pub first_boot: FirstBoot,
}

/// A port of a worker that leads to one of its VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PortForward {
    /// The port on every address of the worker.
    pub worker_port: u16,
    /// The port of the VM, on its first network card.
    pub port: u16,
    /// TCP or UDP.
    #[serde(default = "default_protocol")]
    pub protocol: Protocol,
}

impl PortForward {
    /// What no two VMs of one worker can have.
    #[must_use]
    pub const fn worker_side(&self) -> WorkerPort {
        WorkerPort { protocol: self.protocol, port: self.worker_port }
    }
}

/// A port of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct WorkerPort {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Its number.
    pub port: u16,
}

fn default_protocol() -> Protocol {
    Protocol::Tcp
}

/// When a VM is started again that ended by itself. A reboot from inside always starts it again, at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RestartPolicy {
    /// Whatever ended it, a shutdown from inside too.
    Always,
    /// When it crashed; one that its guest shut down stays off.
    #[default]
    OnCrash,
    /// Never.
    Never,
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

/// A disk of a VM: one of its own, which is made and deleted with it, or a volume that outlives it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// Its name within the VM.
    pub name: Name,
    /// The size of an own disk; the root disk is as large as the image's when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<ByteSize>,
    /// The volume that is attached; without one the disk is the VM's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<Name>,
    /// Where the guest's agent mounts it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mount: Option<String>,
    /// Whether the VM can only read it. A volume is attached to one VM that writes, or to many that only read.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
    /// Whether it is a volume that outlives the member of a group that has it; for templates of groups only.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keep: bool,
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
    Name::new(ROOT_DISK).map(Disk::own).into_iter().collect()
}
fn default_nics() -> Vec<Nic> {
    Name::new(DEFAULT_NETWORK).map(|network| Nic { network, address: None }).into_iter().collect()
}

impl Disk {
    /// An own disk with every default.
    #[must_use]
    pub const fn own(name: Name) -> Disk {
        Disk { name, size: None, volume: None, mount: None, read_only: false, keep: false }
    }

    /// The attached volume `volume`, by its own name.
    #[must_use]
    pub fn attached(volume: Name) -> Disk {
        Disk { volume: Some(volume.clone()), ..Disk::own(volume) }
    }

    /// Whether `next` may take the place of this own disk: the same but for its size, which may grow.
    fn may_become(&self, next: &Disk) -> bool {
        let grows = match (self.size, next.size) {
            (Some(size), Some(next)) => size <= next,
            (Some(_), None) => false,
            (None, _) => true,
        };
        grows && *self == Disk { size: self.size, ..next.clone() }
    }
}

impl Spec {
    /// A VM of `image` with every default.
    #[must_use]
    pub fn of_image(image: Name) -> Spec {
        Spec {
            image,
            image_version: None,
            cpus: default_cpus(),
            memory: default_memory(),
            priority: 0,
            running: default_running(),
            restart: RestartPolicy::default(),
            health: None,
            on_worker_loss: OnWorkerLoss::default(),
            placement: Placing::default(),
            disks: default_disks(),
            nics: default_nics(),
            firewall: None,
            ports: Vec::new(),
            first_boot: FirstBoot::default(),
        }
    }

    /// Reads what a VM, or each member of a group, is to be.
    pub(super) fn read_template(fields: &mut Reader<'_>) -> Option<Spec> {
        let image = fields.required("image");
        let image_version = fields.optional("image_version");
        let cpus = fields.number("cpus", 1..=CPUS_MAX, default_cpus());
        let memory = fields.or("memory", default_memory());
        let priority = fields.number("priority", 0..=PRIORITY_MAX, 0);
        let running = fields.or("running", default_running());
        let restart = fields.or("restart", RestartPolicy::default());
        let health = fields.object("health", HealthCheck::read);
        if restart == RestartPolicy::Never && health.as_ref().is_some_and(|health| health.restart) {
            let hint = "leave out `health.restart`, or `restart: never`".to_owned();
            fields.problem("health", "cannot restart a VM that is never restarted", Some(hint));
        }
        let on_worker_loss = read_worker_loss(fields);
        let placement = fields.object("placement", Placing::read).unwrap_or_default();
        if placement.preempt && priority == 0 {
            let hint = "say a `priority` above that of those that are to make room".to_owned();
            fields.problem("placement.preempt", "is nothing without a `priority`", Some(hint));
        }
        let disks = fields.list("disks", DISKS_MAX, read_disk).unwrap_or_else(default_disks);
        let nics = fields.list("nics", NICS_MAX, read_nic).unwrap_or_else(default_nics);
        let firewall = fields.object("firewall", Firewall::read);
        let ports = fields.list("ports", PORTS_MAX, read_port).unwrap_or_default();
        check_ports(&ports, &nics, fields);
        let first_boot = fields.object("first_boot", FirstBoot::read).unwrap_or_default();
        if !(MEMORY_MIN..=MEMORY_MAX).contains(&memory) {
            fields.problem(
                "memory",
                format!("must be between {MEMORY_MIN} and {MEMORY_MAX}, is {memory}"),
                None,
            );
        }
        check_disks(&disks, fields);
        let image = image?;
        Some(Spec {
            image,
            image_version,
            cpus,
            memory,
            priority,
            running,
            restart,
            health,
            on_worker_loss,
            placement,
            disks,
            nics,
            firewall,
            ports,
            first_boot,
        })
    }
}

impl SpecRules for Spec {
    const ABOUT: &'static str = "a virtual machine with its disks and network cards";

    const FIELDS: &'static [Field] = &[
        ("image", "the image that its root disk is cloned from; fixed for life"),
        ("image_version", "the version of the image; the current one when left out; fixed for life"),
        ("cpus", "virtual CPUs, 1 to 32; a change takes effect when the VM starts next"),
        ("memory", "memory of the guest, 64MiB to 1TiB; a change takes effect when the VM starts next"),
        (
            "priority",
            "how much it matters, up to 1000; 0 when left out. Members of groups with a lower one make room if `placement.preempt` is set",
        ),
        ("running", "whether it should run; stopped, it keeps its worker, disks and addresses"),
        (
            "restart",
            "when it is started again after it ended by itself: always, on_crash or never; a reboot always does",
        ),
        ("health", "how its agent tries from inside whether what it does works, at once; not at all when left out"),
        ("health.http", "passes when a GET is answered with a status from 200 to 399"),
        ("health.http.port", "the port, on 127.0.0.1 or the first address of the VM"),
        ("health.http.path", "the path, with its query; / when left out"),
        ("health.tcp", "passes when a connection is accepted"),
        ("health.tcp.port", "the port, on 127.0.0.1 or the first address of the VM"),
        ("health.exec", "passes when a command ends with code 0"),
        ("health.exec.command", "the program with its arguments, at most 64 words; no shell"),
        ("health.every", "the time from one check to the next, 1s to 1h; 10s when left out"),
        ("health.timeout", "how long one may take, 100ms to 30s; 2s when left out"),
        ("health.failures", "after how many failures in a row it is unhealthy, 1 to 100; 3 when left out"),
        (
            "health.grace",
            "for how long after a boot failures do not count, until one check has passed; 60s when left out",
        ),
        ("health.restart", "whether it is restarted when it is unhealthy; not when left out"),
        ("on_worker_loss", "what happens when its worker is lost: wait"),
        ("placement", "which workers it may be placed on; it is looked at when it is placed, and not again"),
        (
            "placement.on",
            "what labels of its worker must be: a, [a, b], {not: a} or {exists: true}; `worker` is the name of each",
        ),
        ("placement.near", "labels of VMs: another one that has all of them is on its worker"),
        ("placement.apart", "labels of VMs: none that has all of them is on its worker"),
        (
            "placement.preempt",
            "whether members of groups with a lower priority make room for it where there is none; not when left out",
        ),
        ("placement.prefer", "what labels of its worker should be, where there is a choice"),
        ("placement.prefer_near", "labels of VMs that should be on its worker, where there is a choice"),
        ("placement.prefer_apart", "labels of VMs that should not be on its worker, where there is a choice"),
        (
            "disks",
            "its disks, at most 8: own ones, deleted with it, and attached volumes, which may come and go",
        ),
        ("disks[].name", "its name within the VM; the first must be root; a volume's own name when left out"),
        ("disks[].size", "the size of an own disk, which may grow; the root's is the image's when left out"),
        ("disks[].volume", "the volume to attach; it takes effect when the VM starts next"),
        ("disks[].mount", "the absolute path where the guest's agent mounts it; not at all when left out"),
        ("disks[].read_only", "whether the VM can only read it; a volume has one writer, or many readers"),
        (
            "disks[].keep",
            "in the template of a group: a volume that outlives the member, and is given to the one that takes its place",
        ),
        ("nics", "its network cards, at most 4; fixed for life"),
        ("nics[].network", "the network that it is on"),
        ("nics[].address", "the address it must have; the next free one when left out"),
        ("firewall", "what may come in from its networks, at once; everything when left out"),
        ("firewall.allow", "what is allowed, at most 32 rules; answers to its own connections always are"),
        ("firewall.allow[].from", "from whom: {cidr: …} or {labels: …} of VMs; anybody when left out"),
        ("firewall.allow[].from.cidr", "an IPv4 subnet, such as 10.0.0.0/8"),
        (
            "firewall.allow[].from.labels",
            "the labels that a VM must have; all VMs that have them, as they come and go",
        ),
        ("firewall.allow[].protocol", "tcp, udp or icmp"),
        ("firewall.allow[].ports", "at most 16 ports or ranges, such as 80 or 8000-8010; all when left out"),
        ("ports", "ports of its worker that lead to it, at most 16; fixed for life"),
        (
            "ports[].worker_port",
            "the port on every address of its worker, 1024 to 65535; two VMs of a worker never have the same",
        ),
        ("ports[].port", "the port of the VM, on its first network card"),
        ("ports[].protocol", "tcp or udp; tcp when left out"),
        ("first_boot", "what is done at the first boot of its root disk, at most 32KiB; fixed for life"),
        ("first_boot.ssh_keys", "public keys of those who may log in as root, at most 32"),
        ("first_boot.files", "files to write, at most 32"),
        ("first_boot.files[].path", "the absolute path"),
        ("first_boot.files[].mode", "the permissions in octal; \"0644\" when left out"),
        ("first_boot.files[].content", "the text"),
        ("first_boot.script", "what /bin/sh runs after that"),
    ];

    fn shortest() -> Option<Value> {
        Some(json!({ "image": "demo" }))
    }

    fn read(fields: &mut Reader<'_>) -> Option<Spec> {
        let spec = Spec::read_template(fields)?;
        for index in (0..spec.disks.len()).filter(|index| spec.disks[*index].keep) {
            let hint = "attach a volume: {volume: data}; it outlives the VM".to_owned();
            fields.problem(&format!("disks[{index}].keep"), "is for templates of groups", Some(hint));
        }
        Some(spec)
    }

    fn references(&self) -> Vec<ObjectRef> {
        let networks = self.nics.iter().map(|nic| ObjectRef::new(Kind::Network, nic.network.clone()));
        let volumes = self.disks.iter().filter_map(|disk| disk.volume.clone());
        let volumes = volumes.map(|volume| ObjectRef::new(Kind::Volume, volume));
        std::iter::once(ObjectRef::new(Kind::Image, self.image.clone()))
            .chain(networks)
            .chain(volumes)
            .collect()
    }

    fn frozen_field(&self, next: &Spec) -> Option<(&'static str, &'static str)> {
        let reason = "it is fixed when a VM is made; delete the VM and make it again";
        let frozen = [
            ("image", self.image != next.image),
            ("image_version", self.image_version != next.image_version),
            ("nics", self.nics != next.nics),
            ("ports", self.ports != next.ports),
            ("first_boot", self.first_boot != next.first_boot),
        ];
        let frozen = frozen.into_iter().find(|(_, changed)| *changed).map(|(field, _)| (field, reason));
        let own_disks =
            "its own disks may grow, and are else fixed when a VM is made; attach a volume instead";
        frozen.or_else(|| (!self.keeps_own_disks(next)).then_some(("disks", own_disks)))
    }
}

impl Spec {
    /// Whether the own disks of `next` are those of this VM, none of them smaller.
    fn keeps_own_disks(&self, next: &Spec) -> bool {
        let own =
            |spec: &Spec| spec.disks.iter().filter(|disk| disk.volume.is_none()).cloned().collect::<Vec<_>>();
        let (before, after) = (own(self), own(next));
        before.len() == after.len() && before.iter().zip(&after).all(|(disk, next)| disk.may_become(next))
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
    let is_root = |disk: &Disk| {
        disk.name.as_str() == ROOT_DISK && Disk { size: None, ..disk.clone() } == Disk::own(disk.name.clone())
    };
    if !disks.first().is_some_and(is_root) {
        let hint = format!("begin the list with {{name: {ROOT_DISK}}}; it has a size and nothing else");
        fields.problem("disks", format!("the first disk must be named `{ROOT_DISK}`"), Some(hint));
    }
    for (index, disk) in disks.iter().enumerate() {
        let before = disks.get(..index).unwrap_or_default();
        let is_twice = |field, text: &str| format!("{field} `{text}` is there twice");
        if before.iter().any(|other| other.name == disk.name) {
            fields.problem("disks", is_twice("the name", disk.name.as_str()), None);
        }
        if let Some(volume) = disk
            .volume
            .as_ref()
            .filter(|volume| before.iter().any(|other| other.volume.as_ref() == Some(volume)))
        {
            fields.problem("disks", is_twice("the volume", volume.as_str()), None);
        }
        if let Some(mount) =
            disk.mount.as_ref().filter(|mount| before.iter().any(|other| other.mount.as_ref() == Some(mount)))
        {
            fields.problem("disks", is_twice("the mount", mount), None);
        }
    }
}

/// Whether a guest can mount something there: an absolute path of plain parts, not the root.
fn is_mount(path: &str) -> bool {
    let parts = path.strip_prefix('/').map(|rest| rest.split('/').collect::<Vec<_>>()).unwrap_or_default();
    let plain = |part: &&str| !matches!(*part, "" | "." | "..") && !part.chars().any(char::is_control);
    let is_free = !KEPT_PLACES.contains(&path);
    path.len() <= MOUNT_BYTES_MAX && is_free && !parts.is_empty() && parts.iter().all(plain)
}

fn read_disk(fields: &mut Reader<'_>) -> Option<Disk> {
    let volume: Option<Name> = fields.optional("volume");
    let name = match volume.clone() {
        Some(volume) => Some(fields.or("name", volume)),
        None => fields.required("name"),
    };
    let size: Option<ByteSize> = fields.optional("size");
    let mount: Option<String> = fields.optional("mount");
    let read_only = fields.or("read_only", false);
    if size.is_some_and(|size| size == ByteSize::default() || size > super::volume::SIZE_MAX) {
        fields.problem("size", format!("must be more than 0 and at most {}", super::volume::SIZE_MAX), None);
    }
    if size.is_some() && volume.is_some() {
        let hint = "set the size of the volume itself".to_owned();
        fields.problem("size", "an attached volume has a size of its own", Some(hint));
    }
    if volume.is_none()
        && size.is_none()
        && name.as_ref().is_some_and(|name: &Name| name.as_str() != ROOT_DISK)
    {
        fields.problem("size", "is missing", Some("such as 10GiB; or name a volume to attach".to_owned()));
    }
    if mount.as_ref().is_some_and(|mount| !is_mount(mount)) {
        fields.problem(
            "mount",
            "must be an absolute path, such as /data, and none that the system itself needs, such as /var",
            None,
        );
    }
    let keep = fields.or("keep", false);
    if keep && (volume.is_some() || read_only) {
        fields.problem("keep", "is for disks of their own that members write to", None);
    }
    Some(Disk { name: name?, size, volume, mount, read_only, keep })
}

fn read_port(fields: &mut Reader<'_>) -> Option<PortForward> {
    let worker_port: Option<u16> = fields.required("worker_port");
    let port: Option<u16> = fields.required("port");
    let protocol = fields.or("protocol", default_protocol());
    if worker_port.is_some_and(|port| port < WORKER_PORT_MIN) {
        let rule =
            format!("must be between {WORKER_PORT_MIN} and {}; those below are the host's own", u16::MAX);
        fields.problem("worker_port", rule, None);
    }
    if port == Some(0) {
        fields.problem("port", format!("must be between 1 and {}", u16::MAX), None);
    }
    if protocol == Protocol::Icmp {
        fields.problem("protocol", "must be tcp or udp", None);
    }
    Some(PortForward { worker_port: worker_port?, port: port?, protocol })
}

fn check_ports(ports: &[PortForward], nics: &[Nic], fields: &mut Reader<'_>) {
    let before = |index: usize| ports.get(..index).unwrap_or_default();
    let twice = |(index, port): (usize, &PortForward)| {
        before(index).iter().any(|other| other.worker_side() == port.worker_side()).then_some(*port)
    };
    if let Some(port) = ports.iter().enumerate().find_map(twice) {
        let (protocol, number) = (port.protocol.word(), port.worker_port);
        fields.problem("ports", format!("the worker's {protocol} port {number} is there twice"), None);
    }
    if !ports.is_empty() && nics.is_empty() {
        fields.problem("ports", "need a network card to lead to", None);
    }
}

fn read_nic(fields: &mut Reader<'_>) -> Option<Nic> {
    let network = fields.or("network", Name::new(DEFAULT_NETWORK).ok());
    let address = fields.optional("address");
    Some(Nic { network: network?, address })
}
