//! Real VMs: namespaces as hosts, QEMU, a kernel, the page.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::bed::{Bed, kill, skip, until};

/// Why real VMs cannot run here; `None` when they can.
fn missing() -> Option<String> {
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

fn page(address: &str) -> Option<String> {
    let mut stream =
        TcpStream::connect_timeout(&format!("{address}:80").parse().ok()?, Duration::from_secs(2)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    stream.write_all(b"GET / HTTP/1.0\r\nhost: vm\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    Some(text)
}

/// The machine processes whose words name this lab's state.
fn machines(bed: &Bed) -> Vec<String> {
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

    let worker = bed.json(&["get", "vm/hello"])["status"]["worker"].as_str().unwrap_or_default().to_owned();
    let name = format!("{worker}-worker");
    let agent = bed.process(&name);
    kill(agent);
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
