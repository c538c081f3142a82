//! Programs: which are there, and whether VMs need them here.

use super::super::facts::{Facts, Program};
use super::super::{Finding, Runner, Wishes};
use super::{Check, runs_firecracker};

pub(super) fn qemu(wishes: &Wishes, facts: &Facts) -> Finding {
    let check = Check { name: "qemu", why: "it runs VMs where Firecracker does not" };
    match &facts.programs.qemu {
        Some(program) => known(check, program),
        None if runs_firecracker(wishes, facts) => check.ok("not here; Firecracker runs the VMs"),
        None => check.bad("`qemu-system-x86_64` is not in PATH", "apt install qemu-system-x86"),
    }
}

pub(super) fn firecracker(wishes: &Wishes, facts: &Facts) -> Finding {
    let check = Check {
        name: "firecracker",
        why: "it runs VMs with less memory and a smaller surface than QEMU, and in jails",
    };
    let next = "put `firecracker` and `jailer` of one release into PATH, or name it with --firecracker";
    match &facts.programs.firecracker {
        Some(program) => known(check, program),
        None if wishes.runner == Some(Runner::Firecracker) => check.bad("it is not here", next),
        None if wishes.runner == Some(Runner::Qemu) => check.ok("not here; QEMU is to run the VMs"),
        None if facts.kvm.is_usable() => check.warn("not here; QEMU runs the VMs, without jails", next),
        None => check.ok("not here; without KVM it could not run VMs"),
    }
}

pub(super) fn jailer(wishes: &Wishes, facts: &Facts) -> Finding {
    let check = Check {
        name: "jailer",
        why: "it locks each Firecracker into a directory and a user of its own: a guest that breaks out of its VM is still inside",
    };
    if !runs_firecracker(wishes, facts) {
        return check.ok("not needed; Firecracker does not run VMs here");
    }
    let next = "take `firecracker` and `jailer` from one release";
    let Some(jailer) = &facts.programs.jailer else {
        return check.bad("it is neither beside `firecracker` nor in PATH", next);
    };
    let said = [facts.programs.firecracker.as_ref(), Some(jailer)]
        .map(|program| program.and_then(|program| program.version.as_deref().ok()).and_then(number));
    match said {
        [Some(firecracker), Some(jailer)] if firecracker != jailer => {
            check.bad(format!("it is of {jailer}, and Firecracker is {firecracker}"), next)
        }
        _ => known(check, jailer),
    }
}

pub(super) fn mkfs(facts: &Facts) -> Finding {
    let check = Check { name: "mkfs.ext4", why: "it makes the file system of a blank volume" };
    match &facts.programs.mkfs {
        Some(program) => known(check, program),
        None => check.bad("it is not here", "apt install e2fsprogs"),
    }
}

pub(super) fn nft(facts: &Facts) -> Finding {
    let check = Check { name: "nft", why: "it makes the rules of taps; without it no worker starts" };
    match &facts.programs.nft {
        Some(program) if !program.is_in_path => check.bad(
            format!("{} is not in PATH", program.path.display()),
            "start the worker with its directory in PATH, and `lightbyte doctor` too",
        ),
        Some(program) => known(check, program),
        None => check.bad("it is not here", "apt install nftables"),
    }
}

/// A program that is there: well if it says which version it is.
fn known(check: Check, program: &Program) -> Finding {
    let path = program.path.display();
    match &program.version {
        Ok(version) => check.ok(format!("{version} ({path})")),
        Err(why) => {
            check.warn(format!("{path} does not say its version: {why}"), format!("{path} --version"))
        }
    }
}

/// The first word of a version's line that is one, such as `v1.16.1`.
fn number(line: &str) -> Option<&str> {
    let is_number = |word: &&str| {
        let rest = word.strip_prefix('v').unwrap_or(word);
        rest.contains('.') && rest.starts_with(|character: char| character.is_ascii_digit())
    };
    line.split_whitespace().find(is_number)
}
