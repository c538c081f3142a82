//! QEMU's command line. Every argument here was found to matter; `docs/decisions/0006-vsock-backend.md` tells of the
//! ones that are not plain.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use lightbyte_api::address::MacAddress;

use super::paths::Paths;
use super::spawn::CHILD_FD_FIRST;

/// Size of the translation cache in MiB: at 32 a boot takes 0.7 s longer, and more only costs memory.
const TRANSLATION_MIB: u32 = 64;

/// What one VM is started with: fully resolved, no choice left.
pub(super) struct Machine {
    /// The VM's uid, for whoever looks at a list of processes.
    pub(super) name: String,
    pub(super) kernel: PathBuf,
    pub(super) initrd: Option<PathBuf>,
    /// The image's kernel arguments; those that the machine needs are added.
    pub(super) command_line: String,
    /// Raw disks, the root first.
    pub(super) disks: Vec<PathBuf>,
    pub(super) memory_mib: u64,
    pub(super) cpus: u64,
    /// Hardware addresses, one for each tap that is handed over.
    pub(super) macs: Vec<MacAddress>,
    /// The console's file, which QEMU appends to.
    pub(super) console: PathBuf,
    /// Speed of this host's time stamp counter.
    pub(super) tsc_khz: Option<u64>,
}

/// Arguments for a VM whose child has its QMP listener as [`CHILD_FD_FIRST`] and its taps as those that follow.
pub(super) fn arguments(machine: &Machine, paths: &Paths) -> Vec<OsString> {
    let mut words = Words::default();
    words.two("-name", &machine.name);
    words.two("-M", "microvm,acpi=on,x-option-roms=off,memory-backend=mem");
    words.two("-bios", "qboot.rom");
    words.two("-accel", &format!("tcg,tb-size={TRANSLATION_MIB}"));
    // arat: the timer goes on in idle, without which an idle guest costs six times as much. rdrand: the guest has good
    // random numbers from the first instruction.
    words.two("-cpu", "qemu64,+arat,+rdrand");
    words.two("-smp", &machine.cpus.to_string());
    words.two("-m", &format!("{}M", machine.memory_mib));
    words.two("-object", &format!("memory-backend-memfd,id=mem,size={}M,share=on", machine.memory_mib));
    words.word("-nodefaults").word("-no-user-config").word("-no-reboot");
    words.two("-display", "none");
    // Not with -daemonize, whose own fork and setsid these settings forbid.
    words.two("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
    words.path("-pidfile", "", &paths.pid_file);
    // Append mode lets the host shorten the file while QEMU writes.
    words.path("-chardev", "file,id=console,append=on,path=", &machine.console);
    words.two("-serial", "chardev:console");
    words.two("-chardev", &format!("socket,id=qmp,fd={CHILD_FD_FIRST},server=on,wait=off"));
    words.two("-mon", "chardev=qmp,mode=control");
    words.path("-kernel", "", &machine.kernel);
    if let Some(initrd) = &machine.initrd {
        words.path("-initrd", "", initrd);
    }
    words.two("-append", &command_line(machine));
    for (index, disk) in machine.disks.iter().enumerate() {
        words.path("-drive", &format!("id=disk{index},format=raw,if=none,file="), disk);
        words.two("-device", &format!("virtio-blk-device,drive=disk{index}"));
    }
    for (index, (mac, fd)) in machine.macs.iter().zip(CHILD_FD_FIRST + 1..).enumerate() {
        words.two("-netdev", &format!("tap,id=nic{index},fd={fd}"));
        words.two("-device", &format!("virtio-net-device,netdev=nic{index},mac={mac}"));
    }
    words.path("-chardev", "socket,id=vsock,path=", &paths.vhost);
    words.two("-device", "vhost-user-vsock-device,chardev=vsock");
    words.0
}

/// What a stock kernel needs on this machine, then what the image wants.
fn command_line(machine: &Machine) -> String {
    let counter =
        machine.tsc_khz.map_or_else(String::new, |khz| format!(" tsc_early_khz={khz} tsc=reliable"));
    let text = format!(
        "console=ttyS0 quiet panic=-1 reboot=t{counter} cryptomgr.notests=1 {}",
        machine.command_line
    );
    text.trim_end().to_owned()
}

#[derive(Default)]
struct Words(Vec<OsString>);

impl Words {
    fn word(&mut self, word: &str) -> &mut Self {
        self.0.push(word.into());
        self
    }

    fn two(&mut self, name: &str, value: &str) {
        self.word(name).word(value);
    }

    /// A path, inside of an option when something stands before it: QEMU wants its commas doubled there.
    fn path(&mut self, name: &str, before: &str, path: &Path) {
        let comma = if before.is_empty() { "," } else { ",," };
        let text = path.as_os_str().to_string_lossy().replace(',', comma);
        self.word(name).word(&format!("{before}{text}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commas_are_doubled_where_qemu_splits_at_them() {
        let mut words = Words::default();
        words.path("-kernel", "", Path::new("/a,b"));
        words.path("-drive", "file=", Path::new("/a,b"));
        assert_eq!(words.0, ["-kernel", "/a,b", "-drive", "file=/a,,b"]);
    }
}
