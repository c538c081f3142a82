//! Images of others, made into ours and booted: a disk with a partition table, a qcow2 disk, a container's image.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::bed::{Bed, path, skip};
use crate::real::missing;

fn images() -> PathBuf {
    std::env::var_os("LIGHTBYTE_IMAGES").map(PathBuf::from).expect("images")
}

fn run(program: &str, words: &[&str]) -> String {
    let output = Command::new(program).args(words).env("PATH", path_with_sbin()).output().expect("a program");
    assert!(output.status.success(), "{program} {words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn path_with_sbin() -> String {
    format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default())
}

/// A Debian as others have it, on a disk with a partition table: its own kernel in /boot, and nothing of ours.
fn debian_disk(place: &Path) -> Option<PathBuf> {
    let root = images().join("debian/root.ext4");
    let kernels = images().with_file_name("kernel").join("boot");
    let kernel = fs::read_dir(kernels).ok()?.flatten().map(|entry| entry.path());
    let kernel = kernel.into_iter().find(|path| path.to_string_lossy().contains("/vmlinuz-"))?;
    let name = kernel.file_name()?.to_str()?.to_owned();
    let own = place.join("root.ext4");
    run("cp", &["--sparse=always", path(&root), path(&own)]);
    let orders = format!(
        "rm /etc/systemd/system/sysinit.target.wants/lightbyte-guest.service\n\
         rm /usr/lib/systemd/system/lightbyte-guest.service\n\
         rm /usr/lib/systemd/system-shutdown/lightbyte-guest\n\
         rm /usr/sbin/lightbyte-guest\n\
         mkdir /boot\n\
         write {} /boot/{name}\n\
         write {} /etc/brought\n",
        kernel.display(),
        place.join("brought").display()
    );
    fs::write(place.join("brought"), "by others\n").expect("a file");
    fs::write(place.join("orders"), orders).expect("orders");
    run("debugfs", &["-w", "-f", path(&place.join("orders")), path(&own)]);
    let disk = place.join("disk.raw");
    let begin = 2_048 * 512;
    let length = fs::metadata(&own).expect("a disk").len();
    let mut table = vec![0; 512];
    table[450] = 0x83;
    table[454..458].copy_from_slice(&2_048_u32.to_le_bytes());
    table[458..462].copy_from_slice(&u32::try_from(length / 512).expect("a small disk").to_le_bytes());
    table[510..].copy_from_slice(&[0x55, 0xaa]);
    let mut file = File::create(&disk).expect("a disk");
    file.write_all(&table).expect("a partition table");
    file.set_len(begin + length).expect("room");
    let mut source = File::open(&own).expect("a file system");
    let mut chunk = vec![0; 1 << 20];
    for at in (0..length).step_by(chunk.len()) {
        let read = source.read(&mut chunk).expect("a file system");
        if chunk[..read].iter().any(|byte| *byte != 0) {
            file.seek(SeekFrom::Start(begin + at)).expect("a place");
            file.write_all(&chunk[..read]).expect("a file system");
        }
    }
    fs::remove_file(own).expect("the copy goes");
    Some(disk)
}

fn lab(test: &str, name: &str) -> Option<(Bed, PathBuf)> {
    if let Some(why) = missing() {
        skip(test, &why);
        return None;
    }
    let bed = Bed::new(name, &["--vmm", "qemu"])?;
    let place = bed.state().with_file_name("foreign");
    fs::create_dir_all(&place).expect("a place");
    Some((bed, place))
}

#[test]
fn a_disk_of_others_boots_with_the_agent_as_a_service() {
    let test = "a_disk_of_others_boots_with_the_agent_as_a_service";
    if !images().join("debian/manifest.json").is_file() {
        return skip(test, "there is no debian image; `cargo xtask images debian` makes it");
    }
    let Some((bed, place)) = lab(test, "disk") else { return };
    let disk = debian_disk(&place).expect("a disk");
    bed.start();
    let said = bed.ok(&["import", "image", "theirs", "--from", path(&disk)]);
    assert!(said.starts_with("image/theirs created (version "), "{said}");
    bed.ok(&["run", "theirs", "--name", "far", "--memory", "256MiB"]);
    assert_eq!(bed.ok(&["exec", "far", "--", "cat", "/etc/brought"]), "by others\n");
    assert_eq!(bed.ok(&["exec", "far", "--", "systemctl", "is-active", "lightbyte-guest"]), "active\n");
    assert_eq!(bed.ok(&["exec", "far", "--", "hostname"]), "far\n");
    bed.ok(&["delete", "vm/far", "--yes"]);
    // The same from a qcow2 disk is the same version: the bytes are.
    let has_qemu_img = Command::new("qemu-img").arg("--version").output().is_ok();
    if !has_qemu_img {
        return skip(test, "qemu-img is not installed (package qemu-utils): no qcow2 disk is made");
    }
    let qcow2 = place.join("disk.qcow2");
    run("qemu-img", &["convert", "-c", "-f", "raw", "-O", "qcow2", path(&disk), path(&qcow2)]);
    let again = bed.ok(&["import", "image", "theirs", "--from", path(&qcow2)]);
    assert!(again.starts_with("image/theirs unchanged (version "), "{again}");
    let rests = place.join("rests.qcow2");
    run("qemu-img", &["create", "-f", "qcow2", "-b", path(&disk), "-F", "raw", path(&rests)]);
    assert!(
        bed.fails(&["import", "image", "bad", "--from", path(&rests)]).1.contains("rests on another file")
    );
}

/// A blob of an OCI layout; its descriptor.
fn blob(layout: &Path, content: &[u8], media_type: &str) -> Value {
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).expect("a directory");
    let file = layout.join("blob");
    fs::write(&file, content).expect("a blob");
    let digest = run("sha256sum", &[path(&file)])[..64].to_owned();
    fs::rename(&file, blobs.join(&digest)).expect("a name");
    json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": content.len()})
}

/// A layer of what is in `tree`; its descriptor, and the digest of the tar file in it.
fn layer(layout: &Path, tree: &Path, squeezed: bool) -> (Value, String) {
    let tar = layout.with_extension("tar");
    run("tar", &["-C", path(tree), "-cf", path(&tar), "."]);
    let diff_id = format!("sha256:{}", &run("sha256sum", &[path(&tar)])[..64]);
    let media_type = "application/vnd.oci.image.layer.v1.tar";
    if !squeezed {
        return (blob(layout, &fs::read(&tar).expect("a layer"), media_type), diff_id);
    }
    run("gzip", &["-f", path(&tar)]);
    let content = fs::read(layout.with_extension("tar.gz")).expect("a layer");
    (blob(layout, &content, &format!("{media_type}+gzip")), diff_id)
}

#[test]
fn a_containers_image_boots_with_the_agent_as_its_first_process() {
    let test = "a_containers_image_boots_with_the_agent_as_its_first_process";
    let Some((bed, place)) = lab(test, "oci") else { return };
    let busybox = images().with_file_name("busybox");
    let busybox = ["bin/busybox", "usr/bin/busybox"].map(|name| busybox.join(name));
    let Some(busybox) = busybox.iter().find(|path| path.is_file()) else {
        return skip(test, "there is no busybox; `cargo xtask setup` fetches one");
    };
    let (layout, lower, upper) = (place.join("layout"), place.join("lower"), place.join("upper"));
    for directory in [lower.join("bin"), lower.join("etc"), upper.join("etc"), layout.clone()] {
        fs::create_dir_all(directory).expect("a directory");
    }
    fs::copy(busybox, lower.join("bin/busybox")).expect("busybox");
    for name in ["sh", "cat", "ls"] {
        std::os::unix::fs::symlink("busybox", lower.join("bin").join(name)).expect("a link");
    }
    fs::write(lower.join("etc/old"), "hidden").expect("a file");
    fs::write(lower.join("etc/hello"), "below").expect("a file");
    fs::write(upper.join("etc/.wh.old"), "").expect("a whiteout");
    fs::write(upper.join("etc/hello"), "above\n").expect("a file");
    let layers = [layer(&layout, &lower, true), layer(&layout, &upper, false)];
    let diff_ids: Vec<&String> = layers.iter().map(|(_, diff_id)| diff_id).collect();
    let config =
        json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}});
    let config = blob(&layout, config.to_string().as_bytes(), "application/vnd.oci.image.config.v1+json");
    let described: Vec<&Value> = layers.iter().map(|(descriptor, _)| descriptor).collect();
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": described});
    let manifest =
        blob(&layout, manifest.to_string().as_bytes(), "application/vnd.oci.image.manifest.v1+json");
    fs::write(layout.join("index.json"), json!({"schemaVersion": 2, "manifests": [manifest]}).to_string())
        .expect("an index");
    fs::write(layout.join("oci-layout"), "{\"imageLayoutVersion\": \"1.0.0\"}").expect("a mark");
    bed.start();
    let said = bed.ok(&["import", "image", "box", "--from", path(&layout)]);
    assert!(said.starts_with("image/box created (version "), "{said}");
    bed.ok(&["run", "box", "--name", "inside"]);
    assert_eq!(bed.ok(&["exec", "inside", "--", "cat", "/etc/hello"]), "above\n");
    assert_eq!(bed.fails(&["exec", "inside", "--", "cat", "/etc/old"]).0, 1);
    assert!(bed.ok(&["exec", "inside", "--", "cat", "/proc/1/comm"]).contains("init"));
    bed.ok(&["delete", "vm/inside", "--yes"]);
    // As one tar file it is the same; with a wrong bit in a layer it is refused.
    let tar = place.join("layout.tar");
    run("tar", &["-C", path(&layout), "-cf", path(&tar), "."]);
    let again = bed.ok(&["import", "image", "box", "--from", path(&tar)]);
    assert!(again.starts_with("image/box unchanged (version "), "{again}");
    let top = described[1]["digest"].as_str().expect("a digest").replace("sha256:", "blobs/sha256/");
    let mut content = fs::read(layout.join(&top)).expect("a layer");
    let at = content.windows(5).position(|window| window == b"above").expect("the file");
    content[at] ^= 1;
    fs::write(layout.join(&top), content).expect("a damaged layer");
    assert!(bed.fails(&["import", "image", "box", "--from", path(&layout)]).1.contains("is damaged"));
}
