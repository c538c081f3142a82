//! What can be found of a machine, as it was found. What it means is for the judge to say.

use std::path::PathBuf;
use std::time::Duration;

use lightbyte_vmm::KvmVerdict;

/// Everything that is looked at.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Whether the reader may see and try everything.
    pub is_root: bool,
    /// What our own program in a machine of KVM has said.
    pub kvm: KvmVerdict,
    /// The CPU.
    pub cpu: Cpu,
    /// The memory.
    pub memory: Memory,
    /// The way of VMs to the network.
    pub network: Network,
    /// Who has the port of DNS at all addresses.
    pub dns_port: Vec<Holder>,
    /// Where VMs are kept; or why that cannot be looked at.
    pub state: Result<Place, String>,
    /// The options of the mount on which jails are, if not in the state; or why they cannot be looked at.
    pub jails: Option<Result<Mount, String>>,
    /// The kernel's own judgement of its clock; or why there is none.
    pub clock: Result<Clock, String>,
    /// The identity of this boot; or why it cannot be read.
    pub boot_id: Result<String, String>,
    /// What a process may have.
    pub limits: Limits,
    /// Control groups.
    pub groups: Groups,
    /// Programs.
    pub programs: Programs,
}

/// The CPU.
#[derive(Clone, Debug, Default)]
pub struct Cpu {
    /// The flag of hardware virtualisation, `vmx` or `svm`; nothing if the CPU shows none.
    pub virtualisation: Option<&'static str>,
    /// Whether this machine is a VM itself.
    pub is_guest: bool,
    /// Weaknesses that the kernel calls vulnerable.
    pub weaknesses: Vec<String>,
    /// Whether cores run two threads at once; nothing if the kernel does not tell.
    pub smt: Option<bool>,
}

/// The memory.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    /// Whether the kernel merges equal pages; nothing if it cannot.
    pub merges: Option<bool>,
    /// Swap areas that are not in memory themselves.
    pub swaps: Vec<String>,
    /// `vm.overcommit_memory`; nothing if it cannot be read.
    pub overcommit: Option<u64>,
}

/// What came of trying something out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tried {
    /// It works.
    Works,
    /// It does not, and what was said.
    Fails(String),
    /// It could not be tried, and why.
    NotTried(String),
}

/// The bridge of the VMs' network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bridge {
    /// No interface has its name.
    Missing,
    /// An interface of another kind has its name.
    Other,
    /// It is there.
    There {
        /// Whether it is switched on.
        is_up: bool,
        /// Its ports that are not taps of ours.
        ports: Vec<String>,
    },
}

/// The way of VMs to the network.
#[derive(Clone, Debug)]
pub struct Network {
    /// Whether taps can be made.
    pub has_tun: bool,
    /// The bridge.
    pub bridge: Bridge,
    /// Whether the host's IP rules see what crosses bridges; nothing if they cannot.
    pub filters_bridges: Option<bool>,
    /// The same for IPv6.
    pub filters_bridges6: Option<bool>,
    /// Rules as those of taps.
    pub rules: Tried,
}

/// Somebody who has a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// UDP or TCP.
    pub protocol: &'static str,
    /// What the program is called; nothing if only root may know.
    pub program: Option<String>,
}

/// The mount that a path is on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mount {
    /// Where it is mounted.
    pub place: PathBuf,
    /// Its kind, such as `xfs`.
    pub kind: String,
    /// Its options, such as `nodev`.
    pub options: Vec<String>,
}

/// Where VMs are kept.
#[derive(Clone, Debug)]
pub struct Place {
    /// The directory that was looked at: the state, or the nearest one above that is there.
    pub directory: PathBuf,
    /// Whether that is the state itself.
    pub is_state: bool,
    /// What it is on.
    pub mount: Mount,
    /// Free bytes for those who are not root.
    pub free_bytes: u64,
    /// What came of writing there; or why nothing could be written.
    pub trial: Result<Trial, String>,
}

/// What came of writing small files.
#[derive(Clone, Debug)]
pub struct Trial {
    /// Whether two files can share their blocks.
    pub shares: Tried,
    /// Median of fdatasync(2) after a write into what was written before.
    pub flush_fixed: Duration,
    /// Median of fdatasync(2) after a write beyond the end.
    pub flush_growing: Duration,
}

/// The kernel's own judgement of its clock (adjtimex(2)). Nobody else was asked for the time.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// Whether somebody keeps it right.
    pub is_synchronised: bool,
    /// How far off it may be at most, as the kernel counts.
    pub error_max: Duration,
}

/// What a process may have; nothing where there is no limit.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// Open files of one process.
    pub open_files: Option<u64>,
    /// Processes and threads, the lowest of all limits.
    pub processes: Option<u64>,
}

/// Controllers of control groups.
#[derive(Clone, Debug, Default)]
pub struct Groups {
    /// Those of version 2.
    pub unified: Vec<String>,
    /// Those of version 1 that are mounted.
    pub separate: Vec<String>,
}

/// A program that is there.
#[derive(Clone, Debug)]
pub struct Program {
    /// Where it is.
    pub path: PathBuf,
    /// Whether its directory is in `PATH`.
    pub is_in_path: bool,
    /// What it says of its version, or why it says nothing.
    pub version: Result<String, String>,
}

/// Programs; nothing for those that are not there.
#[derive(Clone, Debug, Default)]
pub struct Programs {
    /// QEMU.
    pub qemu: Option<Program>,
    /// Firecracker.
    pub firecracker: Option<Program>,
    /// Its jailer.
    pub jailer: Option<Program>,
    /// What makes file systems of blank volumes.
    pub mkfs: Option<Program>,
    /// What makes the rules of taps.
    pub nft: Option<Program>,
}
