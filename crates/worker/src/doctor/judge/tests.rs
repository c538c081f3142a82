//! A machine that is well, and what each change of it does to the verdicts.

use std::path::{Path, PathBuf};
use std::time::Duration;

use lightbyte_api::ByteSize;
use lightbyte_vmm::KvmVerdict;

use super::super::facts::{
    Bridge, Clock, Cpu, Facts, Groups, Holder, Limits, Memory, Mount, Network, Place, Program, Programs,
    Trial, Tried,
};
use super::super::{Finding, Report, Runner, Verdict, Wishes};
use super::judge;

fn wishes() -> Wishes {
    Wishes {
        state: "/var/lib/lightbyte".into(),
        jails: None,
        bridge: "br0".to_owned(),
        runner: None,
        firecracker: "firecracker".into(),
        jailer: None,
        reserve: ByteSize::from_mib(10 << 10),
    }
}

fn program(path: &str, version: &str) -> Option<Program> {
    Some(Program { path: path.into(), is_in_path: true, version: Ok(version.to_owned()) })
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

fn place() -> Place {
    Place {
        directory: "/var/lib/lightbyte".into(),
        is_state: true,
        mount: Mount { place: "/var/lib".into(), kind: "xfs".to_owned(), options: words("rw nosuid") },
        free_bytes: 100 << 30,
        trial: Ok(Trial {
            shares: Tried::Works,
            flush_fixed: Duration::from_micros(65),
            flush_growing: Duration::from_micros(4_130),
        }),
    }
}

/// A machine with nothing to complain about.
fn well() -> Facts {
    Facts {
        is_root: true,
        kvm: KvmVerdict::Usable,
        cpu: Cpu { virtualisation: Some("vmx"), is_guest: false, weaknesses: Vec::new(), smt: Some(false) },
        memory: Memory { merges: Some(false), swaps: Vec::new(), overcommit: Some(0) },
        network: Network {
            has_tun: true,
            bridge: Bridge::There { is_up: true, ports: words("eno1") },
            filters_bridges: Some(true),
            filters_bridges6: Some(true),
            rules: Tried::Works,
        },
        dns_port: Vec::new(),
        state: Ok(place()),
        jails: None,
        clock: Ok(Clock { is_synchronised: true, error_max: Duration::from_millis(12) }),
        boot_id: Ok("19329263-55c6-4452-af84-738f96178561".to_owned()),
        limits: Limits { open_files: Some(1 << 20), processes: Some(32_768) },
        groups: Groups { unified: words("cpu memory pids"), separate: Vec::new() },
        programs: Programs {
            qemu: program("/usr/bin/qemu-system-x86_64", "QEMU emulator version 7.2.22"),
            firecracker: program("/opt/firecracker", "Firecracker v1.16.1"),
            jailer: program("/opt/jailer", "Jailer v1.16.1"),
            mkfs: program("/usr/sbin/mkfs.ext4", "mke2fs 1.47.0 (5-Feb-2023)"),
            nft: program("/usr/sbin/nft", "nftables v1.0.6"),
        },
    }
}

/// What is not well, a line each: `verdict check: found > next`.
fn complaints(findings: &[Finding]) -> Vec<String> {
    let complaints = findings.iter().filter(|finding| finding.verdict != Verdict::Ok);
    complaints
        .map(|finding| {
            let next = finding.next.as_deref().unwrap_or("nothing to do");
            format!("{} {}: {} > {next}", finding.verdict.word(), finding.check, finding.found)
        })
        .collect()
}

/// Changes the machine that is well, and compares the beginning of each complaint.
fn check(change: impl FnOnce(&mut Wishes, &mut Facts), expected: &[&str]) {
    let (mut wishes, mut facts) = (wishes(), well());
    change(&mut wishes, &mut facts);
    let found = complaints(&judge(&wishes, &facts));
    let fits = found.len() == expected.len()
        && found.iter().zip(expected).all(|(found, expected)| found.starts_with(expected));
    assert!(fits, "expected {expected:#?}\nfound {found:#?}");
}

fn with_place(facts: &mut Facts, change: impl FnOnce(&mut Place)) {
    if let Ok(place) = &mut facts.state {
        change(place);
    }
}

fn with_trial(facts: &mut Facts, change: impl FnOnce(&mut Trial)) {
    if let Ok(Place { trial: Ok(trial), .. }) = &mut facts.state {
        change(trial);
    }
}

#[test]
fn a_machine_that_is_well_is_told_so() {
    check(|_, _| {}, &[]);
    let findings = judge(&wishes(), &well());
    let mut names: Vec<_> = findings.iter().map(|finding| finding.check).collect();
    assert!(findings.iter().all(|finding| !finding.why.is_empty() && finding.next.is_none()));
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), findings.len(), "two checks have one name");
    assert_eq!(Report::new(findings).verdict, Verdict::Ok);
}

#[test]
fn kvm_is_bad_only_where_firecracker_is_asked_for() {
    let missing = "kvm: KVM is not usable: there is no /dev/kvm";
    check(|_, facts| facts.kvm = KvmVerdict::NotThere, &[&format!("warn {missing} > modprobe kvm_intel")]);
    check(
        |wishes, facts| {
            wishes.runner = Some(Runner::Firecracker);
            facts.kvm = KvmVerdict::NotThere;
            facts.cpu = Cpu { virtualisation: None, is_guest: true, ..facts.cpu.clone() };
        },
        &[&format!("bad {missing}; this machine is a VM itself > allow nested virtualisation")],
    );
    check(
        |_, facts| {
            facts.kvm = KvmVerdict::NotThere;
            facts.cpu.virtualisation = None;
        },
        &[&format!("warn {missing} > switch on virtualisation")],
    );
    check(
        |_, facts| {
            facts.kvm = KvmVerdict::NotThere;
            facts.cpu.virtualisation = Some("svm");
        },
        &[&format!("warn {missing} > modprobe kvm_amd")],
    );
    check(
        |_, facts| facts.kvm = KvmVerdict::NotPermitted,
        &["warn kvm: KVM is not usable: this process may not open /dev/kvm > sudo"],
    );
    check(
        |_, facts| facts.kvm = KvmVerdict::Unfit("it only interprets".to_owned()),
        &["warn kvm: KVM is not usable: it only interprets > lightbyte worker --vmm qemu"],
    );
}

#[test]
fn a_program_is_missed_only_where_it_is_needed() {
    let firecracker = |runner| {
        move |wishes: &mut Wishes, facts: &mut Facts| {
            wishes.runner = runner;
            facts.programs.firecracker = None;
        }
    };
    check(firecracker(None), &["warn firecracker: not here; QEMU runs the VMs"]);
    check(firecracker(Some(Runner::Qemu)), &[]);
    check(firecracker(Some(Runner::Firecracker)), &["bad firecracker: it is not here > put"]);
    check(|_, facts| facts.programs.jailer = None, &["bad jailer: it is neither beside"]);
    check(
        |_, facts| facts.programs.jailer = program("/opt/jailer", "Jailer v1.15.0"),
        &["bad jailer: it is of v1.15.0, and Firecracker is v1.16.1 > take"],
    );
    check(|_, facts| facts.programs.qemu = None, &[]);
    check(
        |wishes, facts| {
            wishes.runner = Some(Runner::Qemu);
            facts.programs.qemu = None;
        },
        &["bad qemu: `qemu-system-x86_64` is not in PATH > apt install qemu-system-x86"],
    );
    check(|_, facts| facts.programs.mkfs = None, &["bad mkfs.ext4: it is not here > apt install e2fsprogs"]);
    check(|_, facts| facts.programs.nft = None, &["bad nft: it is not here > apt install nftables"]);
    check(
        |_, facts| {
            if let Some(nft) = &mut facts.programs.nft {
                nft.is_in_path = false;
            }
        },
        &["bad nft: /usr/sbin/nft is not in PATH > start the worker"],
    );
    check(
        |_, facts| {
            if let Some(qemu) = &mut facts.programs.qemu {
                qemu.version = Err("it has no end after 20 s".to_owned());
            }
        },
        &[
            "warn qemu: /usr/bin/qemu-system-x86_64 does not say its version: it has no end after 20 s > /usr/bin/qemu",
        ],
    );
}

#[test]
fn the_way_to_the_network_is_judged_step_by_step() {
    let bridge = |bridge: Bridge| move |_: &mut Wishes, facts: &mut Facts| facts.network.bridge = bridge;
    check(
        bridge(Bridge::Missing),
        &["bad bridge: there is no `br0` > ip link add br0 type bridge && ip link set br0 up"],
    );
    check(bridge(Bridge::Other), &["bad bridge: `br0` is there and is no bridge > name"]);
    check(
        bridge(Bridge::There { is_up: false, ports: words("eno1") }),
        &["bad bridge: `br0` is off > ip link set br0 up"],
    );
    check(
        bridge(Bridge::There { is_up: true, ports: Vec::new() }),
        &["warn bridge: `br0` is on and has no network card"],
    );
    check(|_, facts| facts.network.has_tun = false, &["bad taps: there is no /dev/net/tun > modprobe tun"]);
    check(
        |_, facts| facts.network.rules = Tried::Fails("Operation not supported".to_owned()),
        &[
            "bad tap rules: rules for bridges do not work: Operation not supported > modprobe nf_tables_bridge",
        ],
    );
    check(
        |_, facts| facts.network.rules = Tried::NotTried("not root".to_owned()),
        &["warn tap rules: not tried: not root > sudo lightbyte doctor"],
    );
    check(|_, facts| facts.network.filters_bridges = Some(false), &["warn bridge filter: off"]);
    check(|_, facts| facts.network.filters_bridges6 = Some(false), &["warn bridge filter: off for IPv6"]);
    check(|_, facts| facts.network.filters_bridges = None, &["warn bridge filter: not there"]);
}

#[test]
fn the_port_of_names_has_one_owner() {
    let held = |program: Option<&str>, protocol| Holder { protocol, program: program.map(str::to_owned) };
    let masq = [held(Some("dnsmasq"), "UDP"), held(Some("dnsmasq"), "TCP")];
    let line = "warn dns port: held at all addresses by dnsmasq (UDP), dnsmasq (TCP) > set `bind-interfaces`";
    check(|_, facts| facts.dns_port = masq.to_vec(), &[line]);
    let line = "warn dns port: held at all addresses by named (UDP) > tell named";
    check(|_, facts| facts.dns_port = vec![held(Some("named"), "UDP")], &[line]);
    let line = "warn dns port: held at all addresses by somebody (TCP) > sudo lightbyte doctor";
    check(|_, facts| facts.dns_port = vec![held(None, "TCP")], &[line]);
    check(|_, facts| facts.dns_port = vec![held(Some("lightbyte"), "UDP")], &[]);
}

#[test]
fn the_state_must_last_and_have_room() {
    let unknown =
        ["warn space: not looked at", "warn shared blocks: not looked at", "warn flush: not looked at"];
    let jails = "bad jails: not looked at: Permission denied";
    let state = "bad state: /var/lib/lightbyte cannot be looked at: Permission denied";
    check(
        |_, facts| facts.state = Err("Permission denied".to_owned()),
        &[state, unknown[0], unknown[1], unknown[2], jails],
    );
    let refuse =
        |facts: &mut Facts| with_place(facts, |place| place.trial = Err("it is read-only".to_owned()));
    check(
        |_, facts| refuse(facts),
        &["bad state: /var/lib/lightbyte, on xfs: it is read-only", unknown[1], unknown[2]],
    );
    check(
        |_, facts| {
            refuse(facts);
            facts.is_root = false;
        },
        &[
            "warn rights: not root",
            "warn state: /var/lib/lightbyte, on xfs: it is read-only > sudo",
            unknown[1],
            unknown[2],
        ],
    );
    check(
        |_, facts| with_place(facts, |place| place.mount.kind = "tmpfs".to_owned()),
        &["bad state: /var/lib/lightbyte, on tmpfs, which is in memory"],
    );
    let free =
        |bytes| move |_: &mut Wishes, facts: &mut Facts| with_place(facts, |place| place.free_bytes = bytes);
    check(free(10 << 30), &[]);
    check(
        free((10 << 30) - 1),
        &["warn space: 9.9 GiB free on /var/lib, which is less than the reserve of 10GiB > make room"],
    );
    check(free(512 << 20), &["bad space: 0.5 GiB free on /var/lib; 1GiB is the least > make room"]);
    check(
        |_, facts| {
            with_trial(facts, |trial| trial.shares = Tried::Fails("Operation not supported".to_owned()));
        },
        &["warn shared blocks: files cannot share blocks (Operation not supported)"],
    );
}

#[test]
fn flushes_are_neither_slow_nor_unbelievable() {
    let growing = |micros| {
        move |_: &mut Wishes, facts: &mut Facts| {
            with_trial(facts, |trial| trial.flush_growing = Duration::from_micros(micros));
        }
    };
    check(growing(19_999), &[]);
    check(growing(20_000), &["warn flush: 65 us in place, 20.0 ms at a growing file (medians): slow > put"]);
    check(
        growing(500_000),
        &["bad flush: 65 us in place, 500 ms at a growing file (medians): far too slow > put"],
    );
    check(growing(2), &["warn flush: 65 us in place, 2 us at a growing file (medians): too fast"]);
}

#[test]
fn jails_need_devices_and_programs_where_there_are_jails() {
    let options = |options: &'static str, runner: Option<Runner>, has_kvm: bool| {
        move |wishes: &mut Wishes, facts: &mut Facts| {
            wishes.runner = runner;
            facts.programs.firecracker =
                facts.programs.firecracker.take().filter(|_| has_kvm || runner.is_some());
            if !has_kvm {
                facts.kvm = KvmVerdict::NotThere;
            }
            with_place(facts, |place| place.mount.options = words(options));
        }
    };
    let found = "jails: /var/lib (xfs) is mounted nodev,noexec > mount -o remount,dev,exec /var/lib";
    check(options("rw nosuid nodev noexec", None, true), &[&format!("bad {found}")]);
    check(options("rw nodev noexec", None, false), &["warn kvm", &format!("warn {found}")]);
    check(options("rw nodev noexec", Some(Runner::Qemu), true), &[]);
    check(
        |_, facts| {
            with_place(facts, |place| place.mount.options = words("nodev"));
            let place: PathBuf = Path::new("/jails").to_owned();
            facts.jails = Some(Ok(Mount { place, kind: "xfs".to_owned(), options: Vec::new() }));
        },
        &[],
    );
}

#[test]
fn the_clock_and_the_boot_are_known() {
    let clock = |is_synchronised, millis| {
        move |_: &mut Wishes, facts: &mut Facts| {
            facts.clock = Ok(Clock { is_synchronised, error_max: Duration::from_millis(millis) });
        }
    };
    check(clock(true, 1_000), &[]);
    check(clock(true, 1_001), &["warn clock: kept right, but it may be off by 1001 ms > chronyc"]);
    check(clock(false, 16_000), &["warn clock: nobody keeps it right, as far as the kernel knows > apt"]);
    check(
        |_, facts| facts.clock = Err("not permitted".to_owned()),
        &["warn clock: the kernel does not tell: not"],
    );
    check(|_, facts| facts.boot_id = Ok(String::new()), &["bad boot id: `` is none > mount"]);
    check(
        |_, facts| facts.boot_id = Err("gone".to_owned()),
        &["bad boot id: it cannot be read: gone > mount"],
    );
}

#[test]
fn what_guests_could_learn_of_each_other_is_told() {
    check(|_, facts| facts.cpu.smt = Some(true), &["warn smt: on: a core runs two threads at once"]);
    check(|_, facts| facts.cpu.smt = None, &[]);
    check(
        |_, facts| facts.cpu.weaknesses = words("mds tsa"),
        &["warn cpu weaknesses: open: mds, tsa > install"],
    );
    check(
        |_, facts| facts.memory.merges = Some(true),
        &["warn page merging: on (KSM) > echo 2 > /sys/kernel/mm/ksm/run"],
    );
    check(|_, facts| facts.memory.swaps = words("/swapfile"), &["warn swap: in use: /swapfile > swapoff -a"]);
    check(|_, facts| facts.memory.overcommit = Some(1), &[]);
    check(|_, facts| facts.memory.overcommit = Some(2), &["warn overcommit: strict"]);
}

#[test]
fn limits_are_counted_in_vms() {
    let files = |limit| move |_: &mut Wishes, facts: &mut Facts| facts.limits.open_files = limit;
    check(files(None), &[]);
    check(files(Some(4_064)), &[]);
    check(files(Some(1_024)), &["warn open files: 1024, enough for some 120 VMs > ulimit -n 4064"]);
    check(files(Some(100)), &["bad open files: 100, enough for some 4 VMs > ulimit -n 4064"]);
    let processes = |limit| move |_: &mut Wishes, facts: &mut Facts| facts.limits.processes = Some(limit);
    check(processes(8_000), &[]);
    check(processes(4_915), &["warn processes: 4915, enough for some 307 VMs > sysctl"]);
    check(
        |_, facts| facts.groups = Groups { unified: words("hugetlb"), separate: words("cpu pids") },
        &["warn control groups: `cpu` and `memory` are not both there"],
    );
    check(|_, facts| facts.groups = Groups { unified: words("hugetlb"), separate: words("cpu memory") }, &[]);
}
