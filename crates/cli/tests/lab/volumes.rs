//! Volumes of real VMs, as a person uses them: what is written stays, whatever becomes of the VM.

use crate::bed::{Bed, skip, until};
use crate::real::missing;

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
    let blocks: u64 = inside("a", "stat -fc '%b %S' /data | { read a b; echo $((a * b >> 20)); }")
        .trim()
        .parse()
        .expect("MiB");
    assert!(blocks > 200, "the file system has {blocks} MiB");

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
