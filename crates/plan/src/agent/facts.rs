//! What an agent knows of one object: what its host shows, what was saved, what is around it, and what is forgotten when
//! the agent ends.

use std::net::Ipv4Addr;

use lightbyte_api::assigned::{Assigned, AssignedNic, VirtualAddress};
use lightbyte_api::kinds::image::Part;
use lightbyte_api::observed::{BootTimes, Lease};
use lightbyte_api::{ByteSize, Timestamp, VmId};
use serde::{Deserialize, Serialize};

use super::health::Checks;
use super::probe::Squatted;

/// What the host shows of one object.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    /// What was saved durably.
    pub saved: Option<Saved>,
    /// The machine process of a VM.
    pub vmm: VmmState,
    /// Whether any tap of a VM is there.
    pub taps: bool,
    /// Whether all taps of a VM are there, as they are assigned.
    pub taps_complete: bool,
    /// The virtual address that a VM's taps let through.
    pub virtual_address: Option<Ipv4Addr>,
    /// Whether nobody else had the VM's addresses when its taps were made; see [`super::probe`].
    pub probed: bool,
    /// What DHCP servers have given to a VM's cards.
    pub leases: Vec<Lease>,
    /// The size of a volume's file; `None` when there is none.
    pub disk: Option<ByteSize>,
    /// What was fetched of a volume that another worker has.
    pub arriving: Option<Fetched>,
    /// The parts of images that what is saved is made from, and that are not on this host.
    pub parts_missing: Vec<Part>,
}

/// What was fetched of a disk that another worker has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fetched {
    /// All of it, durably.
    pub complete: bool,
    /// Every part of it was fetched or compared when nobody wrote to it any more.
    pub held: bool,
}

impl Facts {
    /// Whether nothing of the object is on the host.
    #[must_use]
    pub fn is_bare(&self) -> bool {
        self.saved.is_none()
            && self.vmm == VmmState::Absent
            && !self.taps
            && self.disk.is_none()
            && self.arriving.is_none()
    }
}

/// The machine process of a VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VmmState {
    /// There is none, and nothing of it is left.
    #[default]
    Absent,
    /// It runs.
    Running,
    /// It has ended, and its sockets and files are left.
    Exited,
}

/// What a worker keeps of an object on its disk. It is the truth after a restart of the agent or the host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Saved {
    /// The assignment that counts.
    pub assigned: Assigned,
    /// How often the VM ended by itself and was started again.
    #[serde(default)]
    pub restarts: u64,
    /// The last restart that was asked for and carried out.
    #[serde(default)]
    pub restarts_done: u64,
    /// The shape of the machine that was started last, noted before it is; see `AssignedVm::shape`.
    #[serde(default)]
    pub started_shape: u64,
    /// Whether the VM ended by itself and is not to be started again before somebody asks for it.
    #[serde(default)]
    pub off: bool,
    /// Who had an address of the VM when it was about to start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub squatted: Option<Squatted>,
    /// The turn of a virtual address that it gave up by itself; see `ObservedVm::address_yielded`.
    #[serde(default)]
    pub address_yielded: u64,
    /// Whether the volume's file was made. From then on it must exist.
    #[serde(default)]
    pub created: bool,
}

impl Saved {
    /// A VM's cards as they are to be: as assigned, without a virtual address that it gave up by itself.
    #[must_use]
    pub fn nics(&self) -> Vec<AssignedNic> {
        let Assigned::Vm(assigned) = &self.assigned else { return Vec::new() };
        let as_kept = |nic: &AssignedNic| AssignedNic { virtual_address: self.kept(nic), ..nic.clone() };
        assigned.nics.iter().map(as_kept).collect()
    }

    /// The virtual address that a VM is to have.
    #[must_use]
    pub fn virtual_address(&self) -> Option<VirtualAddress> {
        let Assigned::Vm(assigned) = &self.assigned else { return None };
        self.kept(assigned.nics.first()?)
    }

    fn kept(&self, nic: &AssignedNic) -> Option<VirtualAddress> {
        nic.virtual_address.filter(|has| has.turn > self.address_yielded)
    }

    /// An assignment that nothing has come of yet.
    #[must_use]
    pub const fn of(assigned: Assigned) -> Saved {
        Saved {
            assigned,
            restarts: 0,
            restarts_done: 0,
            started_shape: 0,
            off: false,
            squatted: None,
            address_yielded: 0,
            created: false,
        }
    }
}

/// What an object must know of the others on its host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Around {
    /// All disks of this VM are there.
    pub disks_present: bool,
    /// Why one of this VM's disks, or what this volume is made from, will never be there.
    pub lost: Option<&'static str>,
    /// The machines that use this volume.
    pub used_by: Vec<VmId>,
    /// These, and those that may have it although they are to have it no more.
    pub maybe_used_by: Vec<VmId>,
    /// The disk that this volume is made from is there.
    pub source_present: bool,
    /// Why a part of an image that is waited for does not come.
    pub part_problem: Option<String>,
    /// The machines that may be writing to the disk that this volume is made from.
    pub source_written_by: Vec<VmId>,
    /// No heartbeat was acknowledged for a while.
    pub cut_off: bool,
}

/// How a guest says that it ends its machine. It may lie, and one that crashes says nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaving {
    /// It wants to stay off.
    Poweroff,
    /// It wants to be started again.
    Reboot,
}

/// What is forgotten when the agent ends.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Volatile {
    /// The guest has said that it is ready, in the life of this machine process.
    pub ready: bool,
    /// The machine process ran already when this agent began: what was reported of its guest holds until it ends.
    pub adopted: bool,
    /// When the guest was asked to shut down; the beginning of its grace.
    pub stopping_since: Option<Timestamp>,
    /// The guest of this machine process was asked to shut down once: its end is no crash, even when the wish was
    /// taken back meanwhile.
    pub shutdown_asked: bool,
    /// What the guest said that it is about to do, in the life of this machine process.
    pub leaving: Option<Leaving>,
    /// What hinders the guest, in its own words, in the life of this machine process.
    pub guest_problem: Option<String>,
    /// What the checks of its health came to, in the life of this machine process.
    pub checks: Checks,
    /// How often in a row the guest rebooted soon after its start.
    pub quick_reboots: u32,
    /// When the machine process was found to have ended by itself: the beginning of the pause.
    pub crashed_at: Option<Timestamp>,
    /// This end of the machine process is in the saved count.
    pub crash_counted: bool,
    /// When the machine process was started.
    pub started_at: Option<Timestamp>,
    /// How often in a row it ended soon after its start.
    pub quick_crashes: u32,
    /// When the assignment came that the next boot carries out; `None` when it was carried out.
    pub delivered_at: Option<Timestamp>,
    /// How long the last boot took.
    pub boot: Option<BootTimes>,
}
