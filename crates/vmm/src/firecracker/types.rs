//! What is said to Firecracker and what it answers: the fields that lightbyte uses, under Firecracker's own names.

use serde::{Deserialize, Serialize};

/// Answers who it is.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct InstanceInfo {
    /// The id that it was started with.
    pub id: String,
    /// `Not started`, `Running` or `Paused`.
    pub state: String,
    /// Its version, such as `1.16.1`.
    pub vmm_version: String,
}

/// CPUs and memory.
#[derive(Clone, Debug, Serialize)]
pub struct MachineConfig {
    /// CPUs, 1 to 32.
    pub vcpu_count: u64,
    /// Memory in MiB.
    pub mem_size_mib: u64,
}

/// What the machine begins with.
#[derive(Clone, Debug, Serialize)]
pub struct BootSource {
    /// An uncompressed ELF kernel.
    pub kernel_image_path: String,
    /// An initial file system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initrd_path: Option<String>,
    /// Kernel arguments; Firecracker adds its own.
    pub boot_args: String,
}

/// A raw disk.
#[derive(Clone, Debug, Serialize)]
pub struct Drive {
    /// Letters, digits and underscores.
    pub drive_id: String,
    /// The file.
    pub path_on_host: String,
    /// Whether `root=` is added to the kernel arguments.
    pub is_root_device: bool,
    /// Whether the guest may only read.
    pub is_read_only: bool,
    /// `Writeback`: what the guest flushes is on the host's disk. The default drops flushes.
    pub cache_type: &'static str,
    /// How much it may do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiter>,
}

/// A disk whose file has changed its size.
#[derive(Clone, Debug, Serialize)]
pub struct DriveChange {
    /// Which.
    pub drive_id: String,
    /// The file, as it was named before.
    pub path_on_host: String,
}

/// A network interface.
#[derive(Clone, Debug, Serialize)]
pub struct NetworkInterface {
    /// Letters, digits and underscores.
    pub iface_id: String,
    /// The tap. As root Firecracker makes one that is missing.
    pub host_dev_name: String,
    /// The hardware address.
    pub guest_mac: String,
    /// How much the guest may receive.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rx_rate_limiter: Option<RateLimiter>,
    /// How much the guest may send.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tx_rate_limiter: Option<RateLimiter>,
}

/// The guest's vsock.
#[derive(Clone, Debug, Serialize)]
pub struct Vsock {
    /// The guest's address; 3 and up.
    pub guest_cid: u32,
    /// The host's end.
    pub uds_path: String,
}

/// A source of random numbers.
#[derive(Clone, Debug, Serialize)]
pub struct Entropy {
    /// How much the guest may take.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiter>,
}

/// A balloon.
#[derive(Clone, Debug, Serialize)]
pub struct Balloon {
    /// How much memory it takes from the guest, in MiB.
    pub amount_mib: u64,
    /// Whether it gives way to programs of the guest that would be ended for want of memory.
    pub deflate_on_oom: bool,
    /// How often the guest says how it uses its memory, in seconds.
    pub stats_polling_interval_s: u64,
}

/// How a guest uses its memory. What its kernel does not say is missing.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct BalloonStatistics {
    /// What the balloon should hold, in MiB.
    pub target_mib: u64,
    /// What it holds, in MiB.
    pub actual_mib: u64,
    /// Memory of the guest, in bytes.
    pub total_memory: Option<u64>,
    /// Memory that nothing uses, in bytes.
    pub free_memory: Option<u64>,
    /// Memory that programs could have, in bytes.
    pub available_memory: Option<u64>,
    /// Memory that caches use, in bytes.
    pub disk_caches: Option<u64>,
}

/// Limits of a device.
#[derive(Clone, Debug, Serialize)]
pub struct RateLimiter {
    /// Bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<TokenBucket>,
    /// Operations.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ops: Option<TokenBucket>,
}

/// So many in a time.
#[derive(Clone, Debug, Serialize)]
pub struct TokenBucket {
    /// How many: bytes or operations.
    pub size: u64,
    /// In how many milliseconds.
    pub refill_time: u64,
}

/// Where Firecracker logs to.
#[derive(Clone, Debug, Serialize)]
pub struct Logger {
    /// The file.
    pub log_path: String,
    /// `Error`, `Warning`, `Info`, …
    pub level: &'static str,
}

/// Where Firecracker writes its metrics to.
#[derive(Clone, Debug, Serialize)]
pub struct Metrics {
    /// The file.
    pub metrics_path: String,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct Action {
    pub(super) action_type: &'static str,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct VmState {
    pub(super) state: &'static str,
}

/// Where the state of a machine goes.
#[derive(Clone, Debug, Serialize)]
pub struct SnapshotCreate {
    /// CPUs and devices.
    pub snapshot_path: String,
    /// Memory.
    pub mem_file_path: String,
}

/// Where the state of a machine comes from.
#[derive(Clone, Debug, Serialize)]
pub struct SnapshotLoad {
    /// CPUs and devices.
    pub snapshot_path: String,
    /// Memory.
    pub mem_backend: MemoryBackend,
    /// Whether it runs at once.
    pub resume_vm: bool,
}

/// Where memory comes from.
#[derive(Clone, Debug, Serialize)]
pub struct MemoryBackend {
    /// `File`.
    pub backend_type: &'static str,
    /// The file.
    pub backend_path: String,
}
