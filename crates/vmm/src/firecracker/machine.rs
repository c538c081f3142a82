//! What Firecracker is told of one machine, and how: fully resolved, no choice left.

use std::fmt;

use lightbyte_api::address::MacAddress;

use super::api::{Api, ApiError};
use super::paths::{LOG, METRICS, VSOCK};
use super::types::{
    Balloon, BootSource, Drive, Entropy, Logger, MachineConfig, Metrics, NetworkInterface, RateLimiter,
    TokenBucket, Vsock,
};
use crate::driver::DriverError;
use crate::room::refuse;

/// Address of every guest on its own vsock (CIDs below are taken, vsock(7)). It need not be unique on a host.
const GUEST_CID: u32 = 3;

/// How often a guest says how it uses its memory, in seconds: often enough to see a trend, and next to nothing to do.
const STATISTICS_EVERY_S: u64 = 10;

/// Random bytes that a guest may take in [`ENTROPY_MS`]: more than any program waits for, and too few to keep a CPU of
/// the host busy.
const ENTROPY_BYTES: u64 = 64 * 1024;
/// The time for that, in milliseconds.
const ENTROPY_MS: u64 = 100;

/// Kernel arguments for a stock kernel in this machine, before the image's own: `reboot=k` is how a guest ends its
/// Firecracker, and the others leave out devices that are not there, which a kernel looks for for seconds.
const ARGUMENTS: &str = "console=ttyS0 quiet panic=-1 reboot=k cryptomgr.notests=1 tsc=reliable no_timer_check \
                         8250.nr_uarts=1 i8042.noaux i8042.nomux i8042.dumbkbd random.trust_cpu=on";

/// The kernel as an object of errors, and what to do about it.
const KERNEL: (&str, &str) =
    ("the image's kernel", "it takes uncompressed ELF kernels only (vmlinux), so import the image with one");
/// The machine as a whole, likewise.
const MACHINE: (&str, &str) =
    ("the machine", "see whether KVM is usable and the host has the memory, then start the VM again");

/// A raw disk.
#[derive(Clone, Debug)]
pub(super) struct Disk {
    pub(super) path: String,
    pub(super) read_only: bool,
}

/// Firecracker's name of a disk.
pub(super) fn disk_id(index: usize) -> String {
    format!("disk{index}")
}

/// What one VM is started with. Files are named as Firecracker sees them.
#[derive(Clone, Debug)]
pub(super) struct Machine {
    pub(super) kernel: String,
    pub(super) initrd: Option<String>,
    /// The image's kernel arguments.
    pub(super) command_line: String,
    /// Raw disks, the root first.
    pub(super) disks: Vec<Disk>,
    /// Taps with the hardware addresses behind them.
    pub(super) taps: Vec<(String, MacAddress)>,
    pub(super) memory_mib: u64,
    pub(super) cpus: u64,
}

impl Machine {
    /// Tells Firecracker everything, and starts the machine.
    ///
    /// # Errors
    /// [`DriverError::Refused`] with Firecracker's words, what they are about, and what to do.
    pub(super) fn start(&self, api: &Api) -> Result<(), DriverError> {
        let logger = Logger { log_path: LOG.to_owned(), level: "Warning" };
        told(api.set_logger(&logger), "its log", "see whether the host's disk is full")?;
        let metrics = Metrics { metrics_path: METRICS.to_owned() };
        told(api.set_metrics(&metrics), "its metrics", "see whether the host's disk is full")?;
        let machine = MachineConfig { vcpu_count: self.cpus, mem_size_mib: self.memory_mib };
        let size = format!("{} CPUs and {} MiB", self.cpus, self.memory_mib);
        told(api.set_machine(&machine), size, "change the VM's size, or run it with QEMU")?;
        told(api.set_boot_source(&self.boot_source()), KERNEL.0, KERNEL.1)?;
        for drive in self.drives() {
            told(
                api.add_drive(&drive),
                format!("disk {}", drive.path_on_host),
                "see whether the file is whole",
            )?;
        }
        for interface in self.interfaces() {
            let tap = format!("tap {}", interface.host_dev_name);
            told(api.add_network_interface(&interface), tap, "see whether it is there and not in use")?;
        }
        told(
            api.set_vsock(&Vsock { guest_cid: GUEST_CID, uds_path: VSOCK.to_owned() }),
            "the VM's vsock",
            "see whether the host's disk is full",
        )?;
        told(api.set_entropy(&entropy()), "a source of random numbers", "report it")?;
        told(api.set_balloon(&balloon()), "a balloon", "report it")?;
        let started = api.start();
        let (what, next) = match &started {
            Err(ApiError::Refused(reason)) => refused_at_start(reason),
            _ => MACHINE,
        };
        told(started, what, next)
    }

    fn boot_source(&self) -> BootSource {
        let arguments = format!("{ARGUMENTS} {}", self.command_line);
        BootSource {
            kernel_image_path: self.kernel.clone(),
            initrd_path: self.initrd.clone(),
            boot_args: arguments.trim_end().to_owned(),
        }
    }

    fn drives(&self) -> Vec<Drive> {
        let drive = |(index, disk): (usize, &Disk)| Drive {
            drive_id: disk_id(index),
            path_on_host: disk.path.clone(),
            // The image says where its root is, the same under every VMM.
            is_root_device: false,
            is_read_only: disk.read_only,
            cache_type: "Writeback",
            rate_limiter: None,
        };
        self.disks.iter().enumerate().map(drive).collect()
    }

    fn interfaces(&self) -> Vec<NetworkInterface> {
        let interface = |(index, (tap, mac)): (usize, &(String, MacAddress))| NetworkInterface {
            iface_id: format!("nic{index}"),
            host_dev_name: tap.clone(),
            guest_mac: mac.to_string(),
            rx_rate_limiter: None,
            tx_rate_limiter: None,
        };
        self.taps.iter().enumerate().map(interface).collect()
    }
}

/// What a refused start is about: Firecracker reads the kernel only then.
fn refused_at_start(reason: &str) -> (&'static str, &'static str) {
    if reason.contains("Cannot load kernel") || reason.contains("Elf magic") { KERNEL } else { MACHINE }
}

fn entropy() -> Entropy {
    let bandwidth = Some(TokenBucket { size: ENTROPY_BYTES, refill_time: ENTROPY_MS });
    Entropy { rate_limiter: Some(RateLimiter { bandwidth, ops: None }) }
}

/// It takes nothing; it is there for its statistics.
const fn balloon() -> Balloon {
    Balloon { amount_mib: 0, deflate_on_oom: true, stats_polling_interval_s: STATISTICS_EVERY_S }
}

/// Says of a refusal what it is about, and what to do.
fn told(outcome: Result<(), ApiError>, what: impl fmt::Display, next: &str) -> Result<(), DriverError> {
    match outcome {
        Ok(()) => Ok(()),
        Err(ApiError::Refused(reason)) => {
            refuse(format!("Firecracker does not take {what}: {reason}; {next}"))
        }
        Err(error) => Err(DriverError::System {
            context: format!("tell Firecracker of {what}"),
            source: std::io::Error::other(error),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lightbyte_api::Uid;
    use serde_json::json;

    fn machine(command_line: &str) -> Machine {
        Machine {
            kernel: "kernel".to_owned(),
            initrd: None,
            command_line: command_line.to_owned(),
            disks: vec![
                Disk { path: "disk0".to_owned(), read_only: false },
                Disk { path: "/b/disk".to_owned(), read_only: true },
            ],
            taps: vec![("lbt0".to_owned(), MacAddress::of_nic(Uid::from_bits(7), 0))],
            memory_mib: 128,
            cpus: 2,
        }
    }

    #[test]
    fn the_images_arguments_follow_those_of_the_machine() {
        for (own, end) in
            [("lightbyte.page", "random.trust_cpu=on lightbyte.page"), ("", "random.trust_cpu=on")]
        {
            let source = machine(own).boot_source();
            assert!(source.boot_args.starts_with("console=ttyS0 quiet panic=-1 reboot=k "), "{source:?}");
            assert!(source.boot_args.ends_with(end), "{source:?}");
            assert!(!source.boot_args.contains("  "), "{source:?}");
        }
    }

    #[test]
    fn devices_are_what_firecracker_reads() {
        let machine = machine("");
        let drive = |index: usize, path: &str, read_only: bool| {
            json!({ "drive_id": format!("disk{index}"), "path_on_host": path, "is_root_device": false,
                    "is_read_only": read_only, "cache_type": "Writeback" })
        };
        assert_eq!(json!(machine.drives()), json!([drive(0, "disk0", false), drive(1, "/b/disk", true)]));
        let mac = machine.taps[0].1.to_string();
        assert_eq!(
            json!(machine.interfaces()),
            json!([{ "iface_id": "nic0", "host_dev_name": "lbt0", "guest_mac": mac }])
        );
        let source = json!(machine.boot_source());
        assert!(source.get("initrd_path").is_none(), "{source}");
        assert_eq!(
            json!([entropy(), balloon()]),
            json!([
                { "rate_limiter": { "bandwidth": { "size": 65536, "refill_time": 100 } } },
                { "amount_mib": 0, "deflate_on_oom": true, "stats_polling_interval_s": 10 }
            ])
        );
    }

    #[test]
    fn a_refused_start_is_about_the_kernel_or_the_machine() {
        let table = [
            ("Start microvm error: Cannot load kernel due to invalid memory configuration", KERNEL),
            ("Kernel Loader: Invalid Elf magic number", KERNEL),
            ("Cannot create VM: no memory", MACHINE),
            ("", MACHINE),
        ];
        for (reason, expected) in table {
            assert_eq!(refused_at_start(reason), expected, "{reason}");
        }
    }

    #[test]
    fn a_refusal_says_what_it_is_about_and_what_to_do() {
        told(Ok(()), "tap a", "look").expect("it is done");
        let refused =
            told(Err(ApiError::Refused("Resource busy".to_owned())), "tap a", "look").expect_err("it is not");
        assert_eq!(refused.chain(), "Firecracker does not take tap a: Resource busy; look");
        let lost =
            told(Err(ApiError::Protocol("it ended in the middle")), "tap a", "look").expect_err("it is not");
        assert_eq!(
            lost.chain(),
            "tell Firecracker of tap a: Firecracker gave no answer: it ended in the middle"
        );
    }
}
