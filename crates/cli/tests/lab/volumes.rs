//! Volumes of real VMs, as a person uses them: what is written stays, whatever becomes of the VM.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::bed::{Bed, signal, skip, until};
use crate::real::{machines, missing};

#[test]
fn a_volume_outlives_its_vm_grows_and_is_snapshotted() {
    let test = "a_volume_outlives_its_vm_grows_and_is_snapshotted";
    if let Some(why) = missing() {
        return skip(test, &why);
    }
    let Some(bed) = Bed::new("volumes", &["--vmm", "qemu", "--nodes", "1"]) else { return };
    bed.start();
    let inside = |vm: &str, words: &str| bed.ok(&["exec", vm, "--", "sh", "-c", words]);

    bed.ok(&["run", "demo", "--name", "a", "--volume", "data:64MiB:/data"]);
    inside("a", "echo first > /data/file");
    bed.ok(&["grow", "volume/data", "256MiB"]);
    // The disk has grown; its guest makes the file system follow, in its own time.
    let mebibytes = || -> u64 {
        let said = inside("a", "stat -fc '%b %S' /data | { read a b; echo $((a * b >> 20)); }");
        said.trim().parse().expect("MiB")
    };
    until("the file system has grown", || mebibytes() > 200);

    // The guest's data is in the snapshot, flushed by itself; and what comes later is not.
    bed.ok(&["create", "snapshot/before", "--from", "volume/data"]);
    inside("a", "echo second > /data/file");
    bed.ok(&["create", "volume/old", "--from", "snapshot/before"]);
    bed.ok(&["attach", "volume/old", "vm/a", "--mount", "/old", "--read-only", "--restart"]);
    assert_eq!(inside("a", "cat /old/file /data/file"), "first\nsecond\n");
    assert!(bed.fails(&["exec", "a", "--", "touch", "/old/x"]).1.contains("Read-only file system"));

    // Nobody else writes to it while a machine may.
    bed.ok(&["run", "demo", "--name", "b", "--volume", "data", "--no-wait"]);
    until("it is told who has it", || bed.ok(&["why", "vm/b"]).contains("volume/data is attached to vm/a"));

    // Shut down from inside it stays off; started, stopped and deleted, its volume stays.
    drop(bed.run(&["exec", "a", "--", "poweroff"]));
    until("it is off", || bed.ok(&["get", "vm/a"]).contains(" off "));
    bed.ok(&["start", "vm/a"]);
    bed.ok(&["stop", "vm/a"]);
    bed.ok(&["delete", "vm/a", "--yes"]);
    bed.ok(&["wait", "vm/b", "--for", "ready"]);
    assert_eq!(inside("b", "cat /mnt/data/file"), "second\n");

    bed.ok(&["delete", "vm/b", "--yes"]);
    for object in ["volume/data", "volume/old", "snapshot/before"] {
        bed.ok(&["delete", object, "--yes"]);
    }
    let left = std::fs::read_dir(bed.state().join("n1/worker/volume")).expect("the directory of volumes");
    assert_eq!(left.count(), 0, "disks are left");
}

#[test]
fn a_volume_moves_to_another_worker_and_is_copied_there() {
    let test = "a_volume_moves_to_another_worker_and_is_copied_there";
    if let Some(why) = missing() {
        return skip(test, &why);
    }
    let Some(bed) = Bed::new("moves", &["--vmm", "qemu", "--nodes", "2"]) else { return };
    bed.start();
    let inside = |vm: &str, words: &str| bed.ok(&["exec", vm, "--", "sh", "-c", words]);
    let worker = |object: &str| {
        let text = bed.ok(&["get", object, "-o", "json"]);
        let found: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        found["status"]["worker"].as_str().expect("it is on a worker").to_owned()
    };
    bed.ok(&["create", "volume/data", "--size", "200MiB", "--worker", "n1"]);
    bed.ok(&["run", "demo", "--name", "a", "--volume", "data:/data"]);
    inside("a", "dd if=/dev/urandom of=/data/file bs=1M count=70 2>/dev/null; sync");
    let sum = inside("a", "sha256sum < /data/file");

    // It is fetched while it is used, and goes when nobody has it.
    bed.ok(&["move", "volume/data", "n2", "--no-wait"]);
    until("its VM is waited for", || {
        bed.ok(&["why", "volume/data"]).contains("volume/data is attached to vm/a")
    });
    inside("a", "echo later > /data/later; sync");
    assert_eq!(worker("volume/data"), "n1");
    bed.ok(&["delete", "vm/a", "--yes"]);
    bed.ok(&["wait", "volume/data", "--for", "ready"]);
    assert_eq!(worker("volume/data"), "n2");
    let disk = |node: &str| {
        let disks = std::fs::read_dir(bed.state().join(node).join("worker/volume")).expect("volumes");
        disks.flatten().filter(|entry| entry.path().join("disk").exists()).count()
    };
    until("the old worker has put it aside", || (disk("n1"), disk("n2")) == (0, 1));
    bed.ok(&["run", "demo", "--name", "b", "--volume", "data:/data"]);
    assert_eq!(worker("vm/b"), "n2");
    assert_eq!(inside("b", "sha256sum < /data/file; cat /data/later"), format!("{sum}later\n"));

    // A copy of it is taken on the other worker, while it is used, and a volume is made of that.
    let manifest = bed.state().join("volume.yaml");
    let text = |keep: u64| {
        format!(
            "kind: volume\nname: data\nspec:\n  size: 200MiB\n  worker: n2\n  copies: {{to: n1, every: 1h, keep: {keep}}}\n"
        )
    };
    std::fs::write(&manifest, text(2)).expect("write the manifest");
    bed.ok(&["apply", "-f", crate::bed::path(&manifest)]);
    until("there is a copy", || bed.run(&["get", "snapshot/data-copy-1"]).status.success());
    bed.ok(&["wait", "snapshot/data-copy-1", "--for", "ready"]);
    assert_eq!(worker("snapshot/data-copy-1"), "n1");
    inside("b", "echo much later > /data/later; sync");
    bed.ok(&["create", "volume/restored", "--from", "snapshot/data-copy-1"]);
    bed.ok(&["run", "demo", "--name", "c", "--volume", "restored:/data"]);
    assert_eq!(worker("vm/c"), "n1");
    assert_eq!(inside("c", "sha256sum < /data/file; cat /data/later"), format!("{sum}later\n"));

    // Copies are not lost by accident.
    for vm in ["vm/b", "vm/c"] {
        bed.ok(&["delete", vm, "--yes"]);
    }
    assert!(bed.fails(&["delete", "volume/data", "--yes"]).1.contains("has copies"));
    std::fs::write(&manifest, text(0)).expect("write the manifest");
    bed.ok(&["apply", "-f", crate::bed::path(&manifest)]);
    bed.ok(&["wait", "snapshot/data-copy-1", "--for", "deleted"]);
    for object in ["volume/data", "volume/restored"] {
        bed.ok(&["delete", object, "--yes"]);
    }
    until("nothing is left", || (disk("n1"), disk("n2")) == (0, 0));
}

#[test]
fn what_a_first_boot_is_to_do_is_done_once() {
    let test = "what_a_first_boot_is_to_do_is_done_once";
    if let Some(why) = missing() {
        return skip(test, &why);
    }
    let Some(bed) = Bed::new("first-boot", &["--vmm", "qemu", "--nodes", "1"]) else { return };
    bed.start();
    let manifest = bed.state().join("vm.yaml");
    let text = "kind: vm\nname: a\nspec:\n  image: demo\n  first_boot:\n    ssh_keys: [ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAA me]\n    \
                files:\n      - {path: /etc/app/config, mode: \"0600\", content: \"one\\n\"}\n    script: |\n      echo boot >> /boots\n";
    std::fs::write(&manifest, text).expect("write the manifest");
    bed.ok(&["apply", "-f", crate::bed::path(&manifest)]);
    bed.ok(&["wait", "vm/a", "--for", "ready"]);
    let inside = |words: &str| bed.run(&["exec", "a", "--", "sh", "-c", words]);
    until("the script has run", || inside("test -e /boots").status.success());
    bed.ok(&["restart", "vm/a"]);
    let seen = inside("cat /boots /etc/app/config /root/.ssh/authorized_keys; stat -c %a /etc/app/config");
    let seen = String::from_utf8_lossy(&seen.stdout).into_owned();
    assert_eq!(seen, "boot\none\nssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAA me\n600\n");
    bed.ok(&["delete", "vm/a", "--yes"]);
}

/// Everything of a host that a VM could leave: machines, links, rules, and files.
#[derive(Debug, PartialEq)]
struct Left {
    machines: usize,
    links: BTreeSet<String>,
    rules: String,
    files: BTreeSet<PathBuf>,
}

impl Left {
    fn on_first_host(bed: &Bed) -> Left {
        let inside = |words: &str| {
            let namespace = bed.namespace("n1");
            let words = ["netns", "exec", &namespace].into_iter().chain(words.split(' '));
            let output = Command::new("ip").args(words).output().expect("run ip");
            String::from_utf8(output.stdout).expect("text")
        };
        let name = |line: &str| line.split(": ").nth(1).unwrap_or_default().to_owned();
        let mut files = BTreeSet::new();
        for place in ["vm", "volume"] {
            list(&bed.state().join("n1/worker").join(place), &mut files);
        }
        list(&Path::new("/run/lightbyte").join(bed.hash()).join("n1"), &mut files);
        Left {
            machines: machines(bed).len(),
            links: inside("ip -o link").lines().map(name).collect(),
            rules: inside("nft list ruleset"),
            files,
        }
    }
}

fn list(directory: &Path, found: &mut BTreeSet<PathBuf>) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            list(&entry.path(), found);
        }
        found.insert(entry.path());
    }
}

#[test]
fn three_lives_leave_nothing() {
    let test = "three_lives_leave_nothing";
    if let Some(why) = missing() {
        return skip(test, &why);
    }
    let Some(bed) = Bed::new("lives", &["--vmm", "qemu", "--nodes", "1"]) else { return };
    bed.start();
    let before = Left::on_first_host(&bed);
    for life in ["killed agent", "killed machine", "orderly"] {
        bed.ok(&["run", "demo", "--name", "a", "--volume", "data:64MiB"]);
        let during = Left::on_first_host(&bed);
        assert!(
            during.machines == 1 && during.links != before.links && during.files != before.files,
            "{during:?}"
        );
        match life {
            "killed agent" => signal("KILL", bed.process("n1-worker")),
            "killed machine" => {
                let process = machines(&bed).first().and_then(|path| path.rsplit('/').next()?.parse().ok());
                signal("KILL", process.expect("a machine"));
            }
            _ => drop(bed.ok(&["stop", "vm/a"])),
        }
        bed.ok(&["delete", "vm/a", "--yes"]);
        bed.ok(&["delete", "volume/data", "--yes"]);
        assert_eq!(Left::on_first_host(&bed), before, "{life}");
    }
}
