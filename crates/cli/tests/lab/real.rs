//! Real VMs: namespaces as hosts, QEMU, a kernel, the page.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::bed::{Bed, pass, signal, skip, until};

/// Why real VMs cannot run here; `None` when they can.
pub(crate) fn missing() -> Option<String> {
    let is_root =
        Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout.trim_ascii() == b"0");
    let on_path = |program: &str| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
    };
    if !is_root {
        return Some("it needs root for namespaces and taps".to_owned());
    }
    if let Some(program) = ["qemu-system-x86_64", "ip", "nft"].into_iter().find(|program| !on_path(program)) {
        return Some(format!("{program} is not installed; `cargo xtask setup` installs it"));
    }
    if !Path::new("/dev/net/tun").exists() {
        return Some("this machine has no /dev/net/tun".to_owned());
    }
    match std::env::var_os("LIGHTBYTE_IMAGES") {
        Some(images) if Path::new(&images).join("demo/manifest.json").is_file() => None,
        _ => Some("there is no demo image; `cargo xtask test` makes it".to_owned()),
    }
}

pub(crate) fn page(address: &str) -> Option<String> {
    page_at(&format!("{address}:80"))
}

/// The page behind an address with a port.
pub(crate) fn page_at(address: &str) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&address.parse().ok()?, Duration::from_secs(2)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    stream.write_all(b"GET / HTTP/1.0\r\nhost: vm\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    Some(text)
}

/// The machine processes whose words name this lab's state.
pub(crate) fn machines(bed: &Bed) -> Vec<String> {
    let state = bed.state().display().to_string();
    let processes = std::fs::read_dir("/proc").expect("/proc").filter_map(|entry| Some(entry.ok()?.path()));
    let machine = |process: std::path::PathBuf| {
        let words = std::fs::read(process.join("cmdline")).ok()?;
        let words = String::from_utf8_lossy(&words).into_owned();
        let is_ours = words.starts_with("qemu-system") || words.contains("/qemu-system");
        (is_ours && words.contains(&state)).then(|| process.display().to_string())
    };
    processes.filter_map(machine).collect()
}

#[test]
fn real_vms_answer_and_outlive_their_agent() {
    let test = "real_vms_answer_and_outlive_their_agent";
    if let Some(why) = missing() {
        return skip(test, &why);
    }
    let Some(bed) = Bed::new("real", &["--vmm", "qemu"]) else { return };
    bed.start();
    let address = bed.ok(&["run", "demo", "--name", "hello"]).trim().to_owned();
    let text = page(&address).expect("the page answers as soon as the VM is ready");
    assert!(text.contains("hello"), "{text}");
    let before = machines(&bed);
    assert_eq!(before.len(), 1, "{before:?}");
    assert_eq!(bed.ok(&["exec", "hello", "--", "hostname"]), "hello\n");
    assert_eq!(
        bed.fails(&["exec", "hello", "--", "sh", "-c", "echo lost >&2; exit 7"]),
        (7, "lost\n".to_owned())
    );
    assert!(bed.ok(&["logs", "hello"]).contains("lightbyte-guest"), "the console is kept");

    commands_are_not_held_up(&bed);

    let worker = bed.json(&["get", "vm/hello"])["status"]["worker"].as_str().unwrap_or_default().to_owned();
    let name = format!("{worker}-worker");
    let agent = bed.process(&name);
    signal("KILL", agent);
    until("the agent is started again", || bed.process(&name) != agent);
    assert!(page(&address).is_some(), "the VM goes on without its agent");
    bed.ok(&["wait", "vm/hello", "--for", "ready"]);
    assert_eq!(machines(&bed), before, "the same process goes on");

    // The channel to the guest is the agent's again: an orderly stop goes through it.
    bed.ok(&["stop", "vm/hello"]);
    bed.ok(&["wait", "vm/hello", "--for", "stopped"]);
    assert!(machines(&bed).is_empty());
    bed.ok(&["start", "vm/hello"]);
    bed.ok(&["wait", "vm/hello", "--for", "ready"]);
    assert!(page(&address).is_some());

    bed.ok(&["delete", "vm/hello", "--yes"]);
    assert!(machines(&bed).is_empty(), "nothing runs");
    assert!(page(&address).is_none(), "nothing answers");
}

/// A program that takes no input hears a signal, and one whose reader is slow loses nothing of what it says.
fn commands_are_not_held_up(bed: &Bed) {
    let begun = |script: &str| {
        let script = format!("echo begun; {script}");
        let mut child = bed.child(&["exec", "hello", "--", "sh", "-c", &script]);
        let mut output = BufReader::new(child.stdout.take().expect("its output"));
        let mut line = String::new();
        output.read_line(&mut line).expect("its first line");
        assert_eq!(line, "begun\n");
        (child, output)
    };
    let (mut deaf, _output) = begun("exec sleep 1000");
    let mut input = deaf.stdin.take().expect("its input");
    let written = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&written);
    let stuffing = std::thread::spawn(move || {
        while input.write_all(&[0; 4 << 10]).is_ok() {
            count.fetch_add(4 << 10, Ordering::Relaxed);
        }
    });
    // All that may be on its way, and most of what a pipe holds.
    until("its input is full", || written.load(Ordering::Relaxed) >= 300 << 10);
    signal("INT", i32::try_from(deaf.id()).expect("a process number"));
    assert_eq!(deaf.wait().expect("its end").code(), Some(130), "128 and the signal's number");
    stuffing.join().expect("nobody takes the rest");

    let (mut loud, mut output) = begun("dd if=/dev/zero bs=1k count=3000 2>/dev/null; exit 3");
    pass(Duration::from_secs(1));
    let mut said = Vec::new();
    output.read_to_end(&mut said).expect("all that it says");
    assert_eq!((said.len(), loud.wait().expect("its end").code()), (3_000 << 10, Some(3)));
}

#[test]
fn a_host_that_lost_its_power_starts_its_vms_again_with_their_disks() {
    let test = "a_host_that_lost_its_power_starts_its_vms_again_with_their_disks";
    if let Some(why) = missing() {
        return skip(test, &why);
    }
    let Some(bed) = Bed::new("dark", &["--vmm", "qemu"]) else { return };
    bed.start();
    let address = bed.ok(&["run", "demo", "--name", "hello"]).trim().to_owned();
    let before = bed.json(&["get", "vm/hello"]);
    let worker = before["status"]["worker"].as_str().unwrap_or_default().to_owned();
    bed.ok(&["exec", "hello", "--", "sh", "-c", "echo kept > /kept; sync"]);
    bed.dev("kill", &worker);
    assert!(machines(&bed).is_empty(), "nothing runs without power");
    until("its worker is away", || bed.json(&["get", "vm/hello"])["status"]["state"] == "unknown");
    bed.dev("start", &worker);
    bed.ok(&["wait", "vm/hello", "--for", "ready"]);
    let after = bed.json(&["get", "vm/hello"]);
    for field in ["worker", "addresses", "image_version"] {
        assert_eq!(after["status"][field], before["status"][field], "{field}");
    }
    assert_eq!(bed.ok(&["exec", "hello", "--", "cat", "/kept"]), "kept\n", "its disk is the one it had");
    assert!(page(&address).is_some_and(|text| text.contains("hello")), "it answers at its address");
    bed.ok(&["delete", "vm/hello", "--yes"]);
    assert_eq!(left(&bed), Vec::<String>::new());
}

/// What is left of VMs on the hosts of the lab: machine processes, taps, records and disks.
fn left(bed: &Bed) -> Vec<String> {
    let mut left = machines(bed);
    for host in ["n1", "n2", "n3"] {
        let state = bed.state().join(host).join("worker");
        for kind in ["vm", "volume"] {
            let entries = std::fs::read_dir(state.join(kind)).into_iter().flatten();
            left.extend(entries.filter_map(|entry| Some(entry.ok()?.path().display().to_string())));
        }
        let links =
            Command::new("ip").args(["-n", &bed.namespace(host), "-o", "link"]).output().expect("ip runs");
        let links = String::from_utf8_lossy(&links.stdout).into_owned();
        left.extend(links.lines().filter(|line| line.contains(": lb")).map(str::to_owned));
    }
    left
}

#[test]
fn deletion_in_every_state_leaves_nothing() {
    let test = "deletion_in_every_state_leaves_nothing";
    if let Some(why) = missing() {
        return skip(test, &why);
    }
    let Some(bed) = Bed::new("delete", &["--vmm", "qemu"]) else { return };
    bed.start();
    // Pending, claimed, cloning, starting, booting, just ready.
    for (index, millis) in [0, 60, 150, 400, 900, 1_600, 2_600].into_iter().enumerate() {
        let vm = format!("vm/early-{index}");
        bed.ok(&["run", "demo", "--name", &format!("early-{index}"), "--no-wait"]);
        pass(Duration::from_millis(millis));
        bed.ok(&["delete", &vm, "--yes"]);
        assert_eq!(left(&bed), Vec::<String>::new(), "after {millis} ms");
    }
    let states: [(&str, &[&[&str]]); 3] = [
        ("stopped", &[&["stop", "vm/late"], &["wait", "vm/late", "--for", "stopped"]]),
        ("stopping", &[&["stop", "vm/late"]]),
        ("restarting", &[&["restart", "vm/late"]]),
    ];
    for (state, verbs) in states {
        bed.ok(&["run", "demo", "--name", "late"]);
        verbs.iter().for_each(|words| drop(bed.run(words)));
        bed.ok(&["delete", "vm/late", "--yes"]);
        assert_eq!(left(&bed), Vec::<String>::new(), "{state}");
    }
    bed.ok(&["run", "demo", "--name", "crashed"]);
    let machine = machines(&bed).pop().expect("a machine");
    signal("KILL", machine.trim_start_matches("/proc/").parse().expect("a process number"));
    bed.ok(&["delete", "vm/crashed", "--yes"]);
    assert_eq!(left(&bed), Vec::<String>::new(), "ended by itself");
    let used = &bed.json(&["get", "network/default"])["status"]["addresses_used"];
    assert_eq!(used, 0, "all addresses are free");
}

/// How many boots meet the death of their agent: few in CI, as many as a person asks for elsewhere.
fn kills() -> u64 {
    std::env::var("LIGHTBYTE_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(6)
}

#[test]
fn agents_killed_at_any_moment_of_a_boot_lose_nothing() {
    let test = "agents_killed_at_any_moment_of_a_boot_lose_nothing";
    if let Some(why) = missing() {
        return skip(test, &why);
    }
    let Some(bed) = Bed::new("kills", &["--vmm", "qemu", "--nodes", "1"]) else { return };
    bed.start();
    let kills = kills();
    for index in 0..kills {
        let name = format!("vm-{index}");
        let vm = format!("vm/{name}");
        bed.ok(&["run", "demo", "--name", &name, "--no-wait"]);
        // Spread over a boot of about two seconds.
        pass(Duration::from_millis(index * 2_200 / kills));
        let agent = bed.process("n1-worker");
        signal("KILL", agent);
        bed.ok(&["wait", &vm, "--for", "ready", "--timeout", "60s"]);
        let object = bed.json(&["get", &vm]);
        let address = object["status"]["addresses"][0].as_str().unwrap_or_default();
        let address = address.split('/').next().unwrap_or_default();
        assert!(page(address).is_some_and(|text| text.contains(&name)), "boot {index}: the page answers");
        assert_eq!(object["status"]["restarts"], 0, "boot {index}: it was not started twice");
        assert_eq!(machines(&bed).len(), 1, "boot {index}: one machine");
        // An orderly stop needs the channel to the guest.
        bed.ok(&["stop", &vm]);
        bed.ok(&["wait", &vm, "--for", "stopped", "--timeout", "20s"]);
        bed.ok(&["delete", &vm, "--yes"]);
    }
}
