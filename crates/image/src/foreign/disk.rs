//! A disk with a Linux on it. Its root file system becomes the root disk, its kernel the kernel; the initramfs is ours, with
//! modules of that kernel and the agent, which hands over to the disk's own init and comes back as a service of it.
//!
//! Only ext4 is read, by a library that believes no number; `e2fsck` and `debugfs` work on a copy.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use ext4_view::{Ext4, Ext4Read};

use super::table::{self, Extent};
use super::{Base, DiskFormat, Foreign, cpio, squeeze};
use crate::cpio::Archive;
use crate::manifest::Manifest;
use crate::modules::without_signature;
use crate::{full, kernel, pack};

/// Largest disk that is taken.
const DISK_BYTES_MAX: u64 = 256 << 30;
/// Largest kernel, as it lies on the disk.
const KERNEL_BYTES_MAX: u64 = 256 << 20;
/// Largest module, uncompressed.
const MODULE_BYTES_MAX: u64 = 64 << 20;
/// Largest text that is read, such as a list of modules.
const TEXT_BYTES_MAX: u64 = 4 << 20;
/// Most names of a directory that are looked at.
const NAMES_MAX: usize = 10_000;
/// Copied at once; a run of zeros so long becomes a hole.
const COPY_BYTES: usize = 256 << 10;

/// Modules that a VM cannot do without, unless they are built into the kernel. Others that they need are found by the
/// disk's own list.
const NEEDED: &[&str] = &["virtio_mmio", "virtio_blk", "virtio_net", "vmw_vsock_virtio_transport", "ext4"];
/// What ext4 asks for by another way than that list.
const HELPFUL: &[&str] = &["crc32c_generic"];

/// Where an init of systemd is.
const SYSTEMD: &[&str] = &["/usr/lib/systemd/systemd", "/lib/systemd/systemd"];

/// Where the agent of the initramfs leaves itself for the service.
const AGENT: &str = "/run/lightbyte/lightbyte-guest";

const FSTAB: &str =
    "# The root is mounted before systemd starts, other disks by lightbyte-guest. What stood here was:\n";

/// Makes the image.
pub(super) fn make(foreign: &Foreign, format: &DiskFormat, base: &Base, out: &Path) -> Result<Manifest> {
    let converted = out.join("disk.raw");
    let from = match format {
        DiskFormat::Raw => foreign.from.clone(),
        DiskFormat::Qcow2 => {
            convert(&foreign.from, &converted).context("convert the qcow2 disk")?;
            converted.clone()
        }
    };
    let disk = File::open(&from).context("open the disk")?;
    let length = disk.metadata().context("look at the disk")?.len();
    ensure!(length <= DISK_BYTES_MAX, "the disk has {length} bytes, and {DISK_BYTES_MAX} are taken");
    let (extent, others) = find_root(&disk)?;
    let root = out.join("root.ext4");
    copy(&disk, extent, &root).context("copy the root file system")?;
    repair(&root).context("check the root file system")?;
    let tree = Ext4::load_from_path(&root).context("read the root file system")?;
    let (version, image) = find_kernel(&tree, &disk, &others)?;
    fs::write(
        out.join(pack::KERNEL),
        kernel::extract(&image).with_context(|| format!("unpack the kernel {version}"))?,
    )
    .context("write the kernel")?;
    let agent = fs::read(base.initramfs()?).context("read the base's initramfs")?;
    let agent = cpio::file(&agent, "init").context("take the agent out of the base's initramfs")?;
    let initramfs =
        initramfs(&tree, &version, agent).with_context(|| format!("make an initramfs for {version}"))?;
    fs::write(out.join(pack::INITRAMFS), initramfs).context("write the initramfs")?;
    let has_systemd = SYSTEMD.iter().any(|path| exists(&tree, path));
    let edits = has_systemd.then(|| edits(&tree)).transpose()?;
    drop(tree);
    if let Some(edits) = edits {
        edit(&root, &edits, out).context("put the agent into the root file system")?;
    }
    if matches!(format, DiskFormat::Qcow2) {
        fs::remove_file(&converted).context("remove the converted disk")?;
    }
    // Without systemd there is nothing that would start the agent, so it stays process 1.
    let command_line = if has_systemd { "lightbyte.init=/sbin/init" } else { "" };
    pack::describe(&foreign.name, command_line, &base.manifest.agent_version, out)
}

/// Makes a raw disk of a qcow2 one (`docs/interop/qcow2.rst` of QEMU). One that names other files is refused: they would be
/// files of this machine.
fn convert(from: &Path, to: &Path) -> Result<()> {
    let mut head = [0; 104];
    let mut file = File::open(from)?;
    file.read_exact(&mut head).context("read its head")?;
    let word = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let long = |at: usize| u64::from(word(at)) << 32 | u64::from(word(at + 4));
    let version = word(4);
    ensure!(version == 2 || version == 3, "it is of version {version}; 2 and 3 are known");
    ensure!(long(8) == 0, "it rests on another file; `qemu-img convert -O qcow2` makes one that does not");
    ensure!(long(24) <= DISK_BYTES_MAX, "it has {} bytes, and {DISK_BYTES_MAX} are taken", long(24));
    ensure!(word(32) == 0, "it is encrypted");
    // Bit 2 of the incompatible features: the data is in another file.
    ensure!(version == 2 || long(72) & 4 == 0, "its data is in another file");
    let output = Command::new("qemu-img")
        .args(["convert", "-f", "qcow2", "-O", "raw"])
        .args([from, to])
        .output()
        .context("start qemu-img (package qemu-utils)")?;
    ensure!(output.status.success(), "qemu-img: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

/// A part of a disk, as the library reads it.
struct Window {
    disk: File,
    extent: Extent,
}

impl Ext4Read for Window {
    fn read(
        &mut self,
        start: u64,
        target: &mut [u8],
    ) -> std::result::Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let end = start.checked_add(target.len() as u64);
        if end.is_none_or(|end| end > self.extent.length) {
            return Err("it reaches behind the end of its partition".into());
        }
        Ok(self.disk.read_exact_at(target, self.extent.begin + start)?)
    }
}

fn load(disk: &File, extent: Extent) -> Result<Ext4> {
    let disk = disk.try_clone().context("open the disk again")?;
    Ext4::load(Box::new(Window { disk, extent })).context("read a file system")
}

fn exists(tree: &Ext4, path: &str) -> bool {
    tree.exists(path).unwrap_or(false)
}

/// The place of the file system with a Linux on it, and those of the others.
fn find_root(disk: &File) -> Result<(Extent, Vec<Extent>)> {
    let mut found = Vec::new();
    let (mut roots, mut others) = (Vec::new(), Vec::new());
    for extent in table::extents(disk)? {
        let kind = table::kind(disk, extent)?.unwrap_or("something unknown");
        found.push(format!("{kind} of {} MiB", extent.length >> 20));
        if kind != "ext4" {
            continue;
        }
        match load(disk, extent) {
            Ok(tree)
                if ["/etc/os-release", "/usr/lib/os-release", "/sbin/init"]
                    .iter()
                    .any(|path| exists(&tree, path)) =>
            {
                roots.push(extent);
            }
            Ok(_) => others.push(extent),
            Err(error) => found.push(format!("which cannot be read ({error:#})")),
        }
    }
    match roots.as_slice() {
        [root] => Ok((*root, others)),
        [] => {
            bail!("no file system in ext4 with a Linux on it is on the disk; there is: {}", found.join(", "))
        }
        several => bail!("{} systems are on the disk, and one is taken", several.len()),
    }
}

/// Copies a part of the disk. Zeros become holes.
fn copy(disk: &File, extent: Extent, to: &Path) -> Result<()> {
    let target = File::create(to)?;
    target.set_len(extent.length)?;
    let mut buffer = vec![0; COPY_BYTES];
    let mut done = 0;
    while done < extent.length {
        let wanted = usize::try_from(extent.length - done).unwrap_or(usize::MAX).min(COPY_BYTES);
        disk.read_exact_at(&mut buffer[..wanted], extent.begin + done)?;
        if buffer[..wanted].iter().any(|byte| *byte != 0) {
            target.write_all_at(&buffer[..wanted], done)?;
        }
        done += wanted as u64;
    }
    Ok(target.sync_all()?)
}

/// What was not unmounted is brought in order, so that nothing of a journal is lost (e2fsck(8)).
fn repair(root: &Path) -> Result<()> {
    let output = Command::new("e2fsck")
        .args(["-f", "-y"])
        .arg(root)
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        // The same disk gives the same bytes, and so the same version.
        .envs([("E2FSPROGS_FAKE_TIME", "1"), ("E2FSCK_TIME", "1")])
        .output()
        .context("start e2fsck (package e2fsprogs)")?;
    // 0: nothing was wrong; 1: what was wrong was corrected.
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(matches!(output.status.code(), Some(0 | 1)), "it is damaged: {}", said.trim());
    Ok(())
}

/// The newest kernel, with its version: in /boot of the root, or in a partition of its own.
fn find_kernel(tree: &Ext4, disk: &File, others: &[Extent]) -> Result<(String, Vec<u8>)> {
    if let Some(found) = newest(tree, "/boot")? {
        return Ok(found);
    }
    for extent in others {
        if let Some(found) = newest(&load(disk, *extent)?, "/")? {
            return Ok(found);
        }
    }
    bail!("it has no kernel: there is no file `vmlinuz-VERSION` in /boot")
}

fn newest(tree: &Ext4, directory: &str) -> Result<Option<(String, Vec<u8>)>> {
    let Ok(entries) = tree.read_dir(directory) else { return Ok(None) };
    let mut versions = Vec::new();
    for entry in entries.take(NAMES_MAX) {
        let name = entry.context("list kernels")?.file_name().display().to_string();
        let version = name.strip_prefix("vmlinuz-").filter(|version| !version.contains("rescue"));
        versions.extend(version.map(|version| (numbers(version), version.to_owned())));
    }
    versions.sort();
    let Some((_, version)) = versions.pop() else { return Ok(None) };
    let path = format!("{}/vmlinuz-{version}", directory.trim_end_matches('/'));
    Ok(Some((version, read(tree, &path, KERNEL_BYTES_MAX)?)))
}

/// The numbers in a version, which order it.
fn numbers(version: &str) -> Vec<u64> {
    let digits = version.split(|character: char| !character.is_ascii_digit());
    digits.filter_map(|digits| digits.parse().ok()).collect()
}

fn read(tree: &Ext4, path: &str, bytes_max: u64) -> Result<Vec<u8>> {
    let what = || format!("read {path}");
    let length = tree.metadata(path).with_context(what)?.len();
    ensure!(length <= bytes_max, "{path} has {length} bytes, and {bytes_max} are taken");
    tree.read(path).with_context(what)
}

fn text(tree: &Ext4, path: &str) -> Result<String> {
    Ok(String::from_utf8_lossy(&read(tree, path, TEXT_BYTES_MAX)?).into_owned())
}

/// The initramfs: the agent, and the modules that this kernel needs to find its root disk and its host.
fn initramfs(tree: &Ext4, version: &str, agent: &[u8]) -> Result<Vec<u8>> {
    let places = ["/usr/lib/modules", "/lib/modules"].map(|place| format!("{place}/{version}"));
    let place = places.iter().find(|place| exists(tree, place));
    let place = place.with_context(|| format!("it has no modules of its kernel {version}"))?;
    let list = text(tree, &format!("{place}/modules.dep")).context("find its modules")?;
    let built_in = text(tree, &format!("{place}/modules.builtin")).unwrap_or_default();
    let mut archive = Archive::default();
    archive.directory("dev")?;
    archive.device("dev/console", 5, 1)?;
    archive.directory("modules")?;
    let mut names = String::new();
    for (index, path) in in_order(&list, &built_in)?.into_iter().enumerate() {
        let module = read(tree, &format!("{place}/{path}"), MODULE_BYTES_MAX)?;
        let module =
            squeeze::small(module, MODULE_BYTES_MAX).with_context(|| format!("uncompress {path}"))?;
        let name = format!("{index}-{}.ko", name_of(path));
        archive.file(&format!("modules/{name}"), 0o644, without_signature(&module))?;
        let _ = writeln!(names, "{name}");
    }
    archive.file("modules/list", 0o644, names.as_bytes())?;
    archive.file("init", 0o755, agent)?;
    archive.finish().context("finish the archive")
}

/// The name of a module: its file's, in which `-` and `_` are the same.
fn name_of(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split_once(".ko").map_or(file, |(name, _)| name).replace('-', "_")
}

/// The needed modules with all that they need, in the order in which they can be loaded (modules.dep(5): each line names a
/// module and everything that it needs, the last first to be loaded).
fn in_order<'a>(list: &'a str, built_in: &str) -> Result<Vec<&'a str>> {
    let mut order: Vec<&str> = Vec::new();
    for name in HELPFUL.iter().chain(NEEDED) {
        let line =
            list.lines().find(|line| line.split_once(':').is_some_and(|(path, _)| name_of(path) == *name));
        let Some((path, needs)) = line.and_then(|line| line.split_once(':')) else {
            let is_there = built_in.lines().any(|path| name_of(path) == *name) || HELPFUL.contains(name);
            ensure!(is_there, "its kernel has no `{name}`, without which it cannot run as a VM here");
            continue;
        };
        for path in needs.split_whitespace().rev().chain([path]) {
            ensure!(
                !path.split('/').any(|part| part == "..") && !path.starts_with('/'),
                "a module lies at `{path}`"
            );
            if !order.contains(&path) {
                order.push(path);
            }
        }
    }
    Ok(order)
}

/// What is written into the root file system: paths, contents, and links with their targets.
struct Edits {
    directories: Vec<&'static str>,
    removed: Vec<&'static str>,
    files: Vec<(&'static str, String)>,
    links: Vec<(&'static str, &'static str)>,
}

fn edits(tree: &Ext4) -> Result<Edits> {
    const SERVICE: &str = "/etc/systemd/system/lightbyte-guest.service";
    const WANTED: &str = "/etc/systemd/system/sysinit.target.wants/lightbyte-guest.service";
    const MACHINE_ID: &str = "/etc/machine-id";
    const CLOUD_OFF: &str = "/etc/cloud/cloud-init.disabled";
    let mut fstab = FSTAB.to_owned();
    let before = if exists(tree, "/etc/fstab") { text(tree, "/etc/fstab")? } else { String::new() };
    for line in before.lines() {
        let _ = writeln!(fstab, "# {line}");
    }
    let mut files = vec![
        (SERVICE, full::AGENT_SERVICE.replace(full::AGENT, AGENT)),
        // Other partitions of the disk are not there in a VM, and a boot that waits for them fails.
        ("/etc/fstab", fstab),
        // Each VM is a machine of its own.
        (MACHINE_ID, String::new()),
    ];
    if exists(tree, "/etc/cloud") {
        // There is no cloud here that it could ask, and it asks for minutes.
        files.push((CLOUD_OFF, String::new()));
    }
    let mut links = vec![(WANTED, SERVICE)];
    let shutdown = ["/usr/lib/systemd/system-shutdown", "/lib/systemd/system-shutdown"];
    if let Some(place) = shutdown.iter().find(|place| exists(tree, place)) {
        let link = match *place {
            "/lib/systemd/system-shutdown" => "/lib/systemd/system-shutdown/lightbyte-guest",
            _ => "/usr/lib/systemd/system-shutdown/lightbyte-guest",
        };
        links.push((link, AGENT));
    }
    let is_there = |path: &&str| tree.symlink_metadata(*path).is_ok();
    let directories =
        ["/etc", "/etc/systemd", "/etc/systemd/system", "/etc/systemd/system/sysinit.target.wants"];
    let named = files.iter().map(|(path, _)| *path).chain(links.iter().map(|(path, _)| *path));
    Ok(Edits {
        directories: directories.into_iter().filter(|path| !exists(tree, path)).collect(),
        removed: named.filter(is_there).collect(),
        files,
        links,
    })
}

/// Writes it, by the orders of debugfs(8): every name in them is one of ours.
fn edit(root: &Path, edits: &Edits, out: &Path) -> Result<()> {
    let mut orders = String::new();
    for path in &edits.directories {
        let _ = writeln!(orders, "mkdir {path}");
    }
    for path in &edits.removed {
        let _ = writeln!(orders, "rm {path}");
    }
    let mut written = Vec::new();
    for (index, (path, content)) in edits.files.iter().enumerate() {
        let local = out.join(format!("edit-{index}"));
        File::create(&local)?.write_all(content.as_bytes())?;
        let _ = writeln!(
            orders,
            "write edit-{index} {path}\nsif {path} mode 0100644\nsif {path} uid 0\nsif {path} gid 0"
        );
        written.push(local);
    }
    for (path, target) in &edits.links {
        let _ = writeln!(orders, "symlink {path} {target}");
    }
    let file = out.join("edit-orders");
    fs::write(&file, orders)?;
    written.push(file);
    let output = Command::new("debugfs")
        .args(["-w", "-f", "edit-orders"])
        .arg(std::path::absolute(root)?)
        .current_dir(out)
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        // The same disk gives the same bytes, and so the same version.
        .envs([("E2FSPROGS_FAKE_TIME", "1"), ("E2FSCK_TIME", "1")])
        .output()
        .context("start debugfs (package e2fsprogs)")?;
    written.iter().try_for_each(fs::remove_file)?;
    // It succeeds whatever happens, and says its name and version on standard error.
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    match said.lines().find(|line| !line.starts_with("debugfs ") && !line.trim().is_empty()) {
        Some(complaint) => bail!("debugfs: {complaint}"),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_come_after_what_they_need_and_a_kernel_without_them_is_refused() {
        let list = "kernel/virtio_mmio.ko: kernel/virtio.ko kernel/virtio-ring.ko\n\
                    kernel/virtio_blk.ko.xz: kernel/virtio.ko kernel/virtio-ring.ko\n\
                    kernel/virtio_net.ko: kernel/net_failover.ko kernel/failover.ko kernel/virtio.ko kernel/virtio-ring.ko\n\
                    kernel/vmw_vsock_virtio_transport.ko: kernel/vsock.ko\n";
        let found = in_order(list, "kernel/fs/ext4/ext4.ko\n").unwrap();
        let expect = [
            "virtio-ring.ko",
            "virtio.ko",
            "virtio_mmio.ko",
            "virtio_blk.ko.xz",
            "failover.ko",
            "net_failover.ko",
            "virtio_net.ko",
            "vsock.ko",
            "vmw_vsock_virtio_transport.ko",
        ];
        assert_eq!(found, expect.map(|name| format!("kernel/{name}")));
        let error = in_order(list, "").unwrap_err().to_string();
        assert_eq!(error, "its kernel has no `ext4`, without which it cannot run as a VM here");
        assert!(in_order(&list.replace("kernel/vsock.ko", "../../vsock.ko"), "kernel/ext4.ko").is_err());
    }

    #[test]
    fn the_newest_kernel_is_the_one_with_the_highest_numbers() {
        let newest = ["6.1.0-9-amd64", "6.1.0-13-amd64", "5.19.0-99-amd64"]
            .into_iter()
            .max_by_key(|version| numbers(version));
        assert_eq!(newest, Some("6.1.0-13-amd64"));
    }

    #[test]
    fn a_qcow2_disk_that_names_other_files_is_refused() {
        let place = std::env::temp_dir().join(format!("lightbyte-qcow2-{}", std::process::id()));
        let check = |change: &dyn Fn(&mut [u8]), told: &str| {
            let mut head = [0; 104];
            head[..4].copy_from_slice(b"QFI\xfb");
            head[7] = 3;
            head[31] = 1;
            change(&mut head);
            fs::write(&place, head).unwrap();
            let error = format!("{:#}", convert(&place, &place.with_extension("raw")).unwrap_err());
            assert!(error.contains(told), "{error}");
        };
        check(&|head| head[15] = 104, "rests on another file");
        check(&|head| head[79] = 4, "data is in another file");
        check(&|head| head[35] = 1, "encrypted");
        check(&|head| head[24] = 1, "are taken");
        check(&|head| head[7] = 9, "of version 9");
        fs::remove_file(place).unwrap();
    }
}
