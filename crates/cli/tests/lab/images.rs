//! Images in a cluster of real VMs: brought to the host that needs them, found damaged before they are used, imported
//! through a server.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::bed::{Bed, path, skip, until};
use crate::real::{machines, missing};

const CORDONED: &str = "kind: worker\nname: n1\nspec: {cordoned: true}\n";

fn images() -> PathBuf {
    std::env::var_os("LIGHTBYTE_IMAGES").map(PathBuf::from).expect("images")
}

fn manifest(image: &str) -> Value {
    let text = fs::read(images().join(image).join("manifest.json")).expect("a manifest");
    serde_json::from_slice(&text).expect("JSON")
}

fn sha256(manifest: &Value, part: &str) -> String {
    manifest[part]["sha256"].as_str().expect("a checksum").to_owned()
}

/// A lab of two hosts on which VMs come to the second one.
fn begin(test: &str, name: &str) -> Option<Bed> {
    if let Some(why) = missing() {
        skip(test, &why);
        return None;
    }
    let bed = Bed::new(name, &["--vmm", "qemu", "--nodes", "2"])?;
    bed.start();
    bed.ok(&["apply", "-f", path(&bed.manifests(CORDONED))]);
    Some(bed)
}

fn part(bed: &Bed, host: &str, sha256: &str) -> PathBuf {
    bed.state().join(host).join("parts").join(sha256)
}

/// Puts another content under the part's name: what the host shares with others is not touched.
fn damage(part: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut content = fs::read(part).expect("a part");
    change(&mut content);
    fs::remove_file(part).expect("remove it");
    fs::write(part, content).expect("write it");
}

#[test]
fn a_part_comes_to_the_host_that_needs_it_and_is_never_used_damaged() {
    let test = "a_part_comes_to_the_host_that_needs_it_and_is_never_used_damaged";
    let Some(bed) = begin(test, "images") else { return };
    let demo = manifest("demo");
    let (kernel, root) = (sha256(&demo, "kernel"), sha256(&demo, "root"));
    assert!(part(&bed, "n1", &kernel).exists() && !part(&bed, "n2", &kernel).exists());
    bed.ok(&["run", "demo", "--name", "far"]);
    assert_eq!(bed.json(&["get", "vm/far"])["status"]["worker"], "n2");
    for name in ["kernel", "initrd", "root"] {
        assert!(part(&bed, "n2", &sha256(&demo, name)).exists(), "{name}");
    }
    // It says that it has them, so others need not ask a server.
    until("n2 says what it has", || bed.ok(&["describe", "worker/n2"]).contains("parts: 3"));

    // One that was cut is put aside and fetched again; the VM never sees it.
    bed.ok(&["stop", "vm/far"]);
    damage(&part(&bed, "n2", &kernel), |content| content.truncate(1 << 20));
    bed.ok(&["start", "vm/far"]);
    bed.ok(&["wait", "vm/far", "--for", "ready"]);
    let quarantined = bed.state().join("n2/parts/quarantine").join(&kernel);
    assert_eq!(fs::metadata(&quarantined).expect("the bad one is kept").len(), 1 << 20);
    assert_eq!(
        fs::read(part(&bed, "n2", &kernel)).expect("a part"),
        fs::read(part(&bed, "n1", &kernel)).expect("a part")
    );

    // With a wrong bit on every host nothing is started, and the VM says why.
    bed.ok(&["stop", "vm/far"]);
    for host in ["n1", "n2"] {
        damage(&part(&bed, host, &kernel), |content| content[4_000_000] ^= 1);
    }
    bed.ok(&["start", "vm/far", "--no-wait"]);
    until("the VM says which part is damaged", || {
        let vm = bed.json(&["get", "vm/far"]);
        let problem = vm["status"]["problem"].as_str().unwrap_or_default().to_owned();
        problem.contains(&kernel[..12])
            && problem.contains("lightbyte import image")
            && problem.contains("was damaged")
    });
    assert!(machines(&bed).is_empty(), "nothing is started from what is damaged");
    let why = bed.ok(&["why", "vm/far"]);
    assert!(why.contains(&kernel[..12]), "{why}");
    // An import of the same version brings it back, and the VM starts by itself.
    bed.ok(&["import", "image", path(&images().join("demo"))]);
    bed.ok(&["wait", "vm/far", "--for", "ready"]);
    assert!(part(&bed, "n2", &root).exists());
}

#[test]
fn an_image_is_imported_through_a_server() {
    let test = "an_image_is_imported_through_a_server";
    let Some(bed) = begin(test, "import") else { return };
    let mine = bed.state().with_file_name("mine");
    fs::create_dir_all(&mine).expect("a directory");
    let mut manifest = manifest("demo");
    for name in ["kernel", "initrd", "root"] {
        let file = manifest[name]["file"].as_str().expect("a file").to_owned();
        fs::copy(images().join("demo").join(&file), mine.join(&file)).expect("a copy");
    }
    // Another root disk: some bytes more, which no file system minds.
    let root = mine.join(manifest["root"]["file"].as_str().expect("a file"));
    let grown = fs::metadata(&root).expect("a disk").len() + (1 << 20);
    fs::File::options().write(true).open(&root).and_then(|disk| disk.set_len(grown)).expect("a larger disk");
    let said = std::process::Command::new("sha256sum").arg(&root).output().expect("sha256sum");
    manifest["root"]["sha256"] = json!(String::from_utf8_lossy(&said.stdout)[..64]);
    manifest["root"]["bytes"] = json!(grown);
    manifest["name"] = json!("mine");
    manifest["version"] = json!("v1");
    let write =
        |manifest: &Value| fs::write(mine.join("manifest.json"), manifest.to_string()).expect("a manifest");
    write(&manifest);
    let said = bed.ok(&["import", "image", path(&mine)]);
    assert_eq!(said, "image/mine created (version v1 is current)\n");
    assert!(part(&bed, "n1", manifest["root"]["sha256"].as_str().expect("a checksum")).exists());
    bed.ok(&["run", "mine", "--name", "own"]);
    manifest["version"] = json!("v2");
    write(&manifest);
    let said = bed.ok(&["import", "image", path(&mine), "--no-current"]);
    assert_eq!(said, "image/mine changed (version v1 is current)\n");
    // What is broken is not sent.
    fs::write(mine.join("vmlinux"), "no kernel").expect("a file");
    assert!(bed.fails(&["import", "image", path(&mine)]).1.contains("nothing was imported"));
}
