//! CPU and memory: whether VMs run, and what they can learn of each other.

use lightbyte_vmm::KvmVerdict;

use super::super::facts::{Cpu, Facts};
use super::super::{Finding, Runner, Wishes};
use super::Check;

pub(super) fn kvm(wishes: &Wishes, facts: &Facts) -> Finding {
    let check = Check {
        name: "kvm",
        why: "without KVM every instruction of a guest is emulated: VMs are many times slower, and Firecracker cannot run them",
    };
    let place = if facts.cpu.is_guest { "; this machine is a VM itself" } else { "" };
    let found = format!("{}{place}", facts.kvm);
    let next = match &facts.kvm {
        KvmVerdict::Usable => return check.ok(found),
        KvmVerdict::NotThere => switch_on(&facts.cpu),
        KvmVerdict::NotPermitted => "sudo lightbyte doctor",
        KvmVerdict::Unfit(_) => {
            "lightbyte worker --vmm qemu …, or take a machine with hardware virtualisation"
        }
    };
    check.bad_if(wishes.runner == Some(Runner::Firecracker), found, next)
}

fn switch_on(cpu: &Cpu) -> &'static str {
    match (cpu.virtualisation, cpu.is_guest) {
        (Some("vmx"), _) => "modprobe kvm_intel",
        (Some(_), _) => "modprobe kvm_amd",
        (None, true) => {
            "allow nested virtualisation where this VM is set up, or use lightbyte worker --vmm qemu …"
        }
        (None, false) => {
            "switch on virtualisation (VT-x, AMD-V) in the firmware, or use lightbyte worker --vmm qemu …"
        }
    }
}

pub(super) fn weaknesses(facts: &Facts) -> Finding {
    let check = Check {
        name: "cpu weaknesses",
        why: "through some weaknesses of CPUs a guest can read memory of others or of the host",
    };
    match facts.cpu.weaknesses.as_slice() {
        [] => check.ok("the kernel knows of none that is open"),
        open => check.warn(
            format!("open: {}", open.join(", ")),
            "install the newest kernel and microcode, and reboot; /sys/devices/system/cpu/vulnerabilities tells more",
        ),
    }
}

pub(super) fn smt(facts: &Facts) -> Finding {
    let check = Check {
        name: "smt",
        why: "two guests on the two threads of one core can learn secrets from each other by the time that things take",
    };
    match facts.cpu.smt {
        Some(false) => check.ok("off: a core runs one thread"),
        Some(true) => check.warn(
            "on: a core runs two threads at once; well where all guests trust each other",
            "echo off > /sys/devices/system/cpu/smt/control, and `nosmt` on the kernel's command line to keep it",
        ),
        None => check.ok("the kernel does not tell of any"),
    }
}

pub(super) fn merging(facts: &Facts) -> Finding {
    let check = Check {
        name: "page merging",
        why: "where equal pages of guests are merged, a guest can find out what others have in memory, and damage it by flipping bits",
    };
    match facts.memory.merges {
        Some(true) => check.warn("on (KSM)", "echo 2 > /sys/kernel/mm/ksm/run"),
        Some(false) => check.ok("off"),
        None => check.ok("this kernel has none"),
    }
}

pub(super) fn swap(facts: &Facts) -> Finding {
    let check = Check {
        name: "swap",
        why: "guests' memory is written to the disk, where it stays when they are gone; and a host that swaps stalls all of them",
    };
    match facts.memory.swaps.as_slice() {
        [] => check.ok("none on a disk"),
        swaps => check.warn(
            format!("in use: {}", swaps.join(", ")),
            "swapoff -a, and take it out of /etc/fstab; or encrypt it with a key that is lost at each boot",
        ),
    }
}

pub(super) fn overcommit(facts: &Facts) -> Finding {
    let check = Check {
        name: "overcommit",
        why: "a VM's memory is promised when it starts, and used as its guest needs it",
    };
    match facts.memory.overcommit {
        Some(2) => check.warn(
            "strict: the kernel promises no more memory than there is, so VMs may not start although much is free",
            "sysctl -w vm.overcommit_memory=0",
        ),
        Some(1) => check.ok("everything is promised"),
        Some(_) => check.ok("as usual"),
        None => check.ok("the kernel does not tell"),
    }
}
