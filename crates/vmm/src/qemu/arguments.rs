//! QEMU's command line. Every argument here was found to matter; `docs/decisions/0006-vsock-backend.md` and
//! `0007-kvm-probe.md` tell of the ones that are not plain.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use lightbyte_api::address::MacAddress;

use super::paths::Paths;
use crate::spawn::CHILD_FD_FIRST;

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
    pub(super) disks: Vec<Disk>,
    pub(super) memory_mib: u64,
    pub(super) cpus: u64,
    /// Hardware addresses, one for each tap that is handed over.
    pub(super) macs: Vec<MacAddress>,
    /// The console's file, which QEMU appends to.
    pub(super) console: PathBuf,
    pub(super) accelerator: Accelerator,
}

/// A raw disk.
pub(super) struct Disk {
    pub(super) path: PathBuf,
    pub(super) read_only: bool,
}

/// What runs the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Accelerator {
    /// The CPU, by KVM. Its clock is the guest's clock.
    Kvm,
    /// QEMU itself. Speed of this host's time stamp counter, where there is one.
    Tcg { tsc_khz: Option<u64> },
}

/// Arguments for a VM whose child has its QMP listener as [`CHILD_FD_FIRST`] and its taps as those that follow.
pub(super) fn arguments(machine: &Machine, paths: &Paths) -> Vec<OsString> {
    let mut words = Words::default();
    words.two("-name", &machine.name);
    // rtc: under KVM QEMU would leave it out, and a kernel looks for it for seconds.
    words.two("-M", "microvm,acpi=on,rtc=on,x-option-roms=off,memory-backend=mem");
    words.two("-bios", "qboot.rom");
    match machine.accelerator {
        Accelerator::Kvm => {
            words.two("-accel", "kvm");
            words.two("-cpu", "host");
        }
        Accelerator::Tcg { .. } => {
            words.two("-accel", &format!("tcg,tb-size={TRANSLATION_MIB}"));
            // arat: the timer goes on in idle, without which an idle guest costs six times as much. rdrand: the guest
            // has good random numbers from the first instruction.
            words.two("-cpu", "qemu64,+arat,+rdrand");
        }
    }
    words.two("-smp", &machine.cpus.to_string());
    words.two("-m", &format!("{}M", machine.memory_mib));
    words.two("-object", &format!("memory-backend-memfd,id=mem,size={}M,share=on", machine.memory_mib));
    words.word("-nodefaults").word("-no-user-config").word("-no-reboot");
    words.two("-display", "none");
    // Not with -daemonize, whose own fork and setsid these settings forbid.
    words.two("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
    words.path("-pidfile", "", &paths.pid_file);
    // What is said goes to the file, whether somebody is at the socket or not. Append mode lets the host shorten the
    // file while QEMU writes.
    let socket = option_path(&paths.console);
    let log = option_path(&machine.console);
    words.two(
        "-chardev",
        &format!("socket,id=console,server=on,wait=off,path={socket},logfile={log},logappend=on"),
    );
    words.two("-serial", "chardev:console");
    words.two("-chardev", &format!("socket,id=qmp,fd={CHILD_FD_FIRST},server=on,wait=off"));
    words.two("-mon", "chardev=qmp,mode=control");
    words.path("-kernel", "", &machine.kernel);
    if let Some(initrd) = &machine.initrd {
        words.path("-initrd", "", initrd);
    }
    words.two("-append", &command_line(machine));
    for (index, disk) in machine.disks.iter().enumerate() {
        let access = if disk.read_only { ",readonly=on" } else { "" };
        words.path("-drive", &format!("id={},format=raw,if=none{access},file=", disk_id(index)), &disk.path);
        words.two("-device", &format!("virtio-blk-device,drive={}", disk_id(index)));
    }
    for (index, (mac, fd)) in machine.macs.iter().zip(CHILD_FD_FIRST + 1..).enumerate() {
        words.two("-netdev", &format!("tap,id=nic{index},fd={fd}"));
        words.two("-device", &format!("virtio-net-device,netdev=nic{index},mac={mac}"));
    }
    words.path("-chardev", "socket,id=vsock,path=", &paths.vhost);
    words.two("-device", "vhost-user-vsock-device,chardev=vsock");
    words.0
}

/// QEMU's name of a disk.
pub(super) fn disk_id(index: usize) -> String {
    format!("disk{index}")
}

/// What a stock kernel needs on this machine, then what the image wants.
fn command_line(machine: &Machine) -> String {
    let counter = match machine.accelerator {
        Accelerator::Tcg { tsc_khz: Some(khz) } => format!(" tsc_early_khz={khz} tsc=reliable"),
        // KVM tells its guests the speed of the counter, and whether it can be trusted (kvmclock).
        Accelerator::Tcg { tsc_khz: None } | Accelerator::Kvm => String::new(),
    };
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
        let text = if before.is_empty() {
            path.as_os_str().to_string_lossy().into_owned()
        } else {
            option_path(path)
        };
        self.word(name).word(&format!("{before}{text}"));
    }
}

/// A path inside of an option, where a comma would end it.
fn option_path(path: &Path) -> String {
    path.as_os_str().to_string_lossy().replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::room::Room;
    use lightbyte_api::{Uid, VmId};

    #[test]
    fn commas_are_doubled_where_qemu_splits_at_them() {
        let mut words = Words::default();
        words.path("-kernel", "", Path::new("/a,b"));
        words.path("-drive", "file=", Path::new("/a,b"));
        assert_eq!(words.0, ["-kernel", "/a,b", "-drive", "file=/a,,b"]);
    }

    fn line(accelerator: Accelerator) -> Vec<String> {
        let vm = VmId::new(Uid::from_bits(7));
        let machine = Machine {
            name: vm.to_string(),
            kernel: "/images/kernel".into(),
            initrd: None,
            command_line: "lightbyte.page".to_owned(),
            disks: vec![Disk { path: "/disk".into(), read_only: false }],
            memory_mib: 128,
            cpus: 2,
            macs: vec![MacAddress::of_nic(vm.uid(), 0)],
            console: "/console.log".into(),
            accelerator,
        };
        let words = arguments(&machine, &Paths::of(&Room::new(Path::new("/run"), vm, "")));
        words.into_iter().map(|word| word.into_string().expect("text")).collect()
    }

    /// The words after `name`.
    fn value<'a>(line: &'a [String], name: &str) -> &'a str {
        let place = line.iter().position(|word| word == name).expect("it is there");
        &line[place + 1]
    }

    #[test]
    fn each_accelerator_has_its_cpu_and_its_clock() {
        let tcg = |tsc_khz| Accelerator::Tcg { tsc_khz };
        let end = "cryptomgr.notests=1 lightbyte.page";
        let begin = "console=ttyS0 quiet panic=-1 reboot=t";
        let table = [
            (Accelerator::Kvm, "kvm", "host", format!("{begin} {end}")),
            (tcg(None), "tcg,tb-size=64", "qemu64,+arat,+rdrand", format!("{begin} {end}")),
            (
                tcg(Some(2_100_000)),
                "tcg,tb-size=64",
                "qemu64,+arat,+rdrand",
                format!("{begin} tsc_early_khz=2100000 tsc=reliable {end}"),
            ),
        ];
        for (accelerator, accel, cpu, append) in table {
            let line = line(accelerator);
            assert_eq!((value(&line, "-accel"), value(&line, "-cpu")), (accel, cpu), "{accelerator:?}");
            assert_eq!(value(&line, "-append"), append, "{accelerator:?}");
        }
        // Nothing else depends on it.
        let [kvm, tcg] = [Accelerator::Kvm, tcg(None)].map(line);
        let different: Vec<_> = kvm.iter().zip(&tcg).filter(|(kvm, tcg)| kvm != tcg).collect();
        assert_eq!((kvm.len(), different.len()), (tcg.len(), 2), "{different:?}");
    }
}
