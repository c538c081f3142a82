//! The root disk of tiny images: busybox, in that of load balancers the proxy, and nothing else.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};

use crate::ext4::{self, Disk, Inodes};

/// Size of the demo's root disk; a VM's clone may be larger.
const ROOT_DISK_BYTES: u64 = 64 << 20;

/// The same of a proxy, with room for what it writes: topologies (8 MiB each, of which there are up to four for a moment)
/// and the access log (8 MiB).
const PROXY_DISK_BYTES: u64 = 128 << 20;

/// Where the guest's agent looks for the proxy.
const PROXY: &str = "bin/lightbyte-proxy";

/// A small journal, since a VM's root disk may be kept.
const JOURNAL_MIB: u32 = 4;

/// Directories of the root disk.
const DIRECTORIES: &[&str] = &[
    "bin", "dev", "etc", "home", "mnt", "proc", "root", "run", "sbin", "sys", "tmp", "usr/bin", "usr/lib",
    "usr/sbin", "var/lib", "var/log",
];

/// Small files of the root disk.
const FILES: &[(&str, &str)] = &[
    ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n"),
    ("etc/group", "root:x:0:\nnogroup:x:65534:\n"),
    ("etc/hosts", "127.0.0.1 localhost\n"),
    ("etc/resolv.conf", ""),
    ("etc/hostname", "localhost\n"),
];

/// Makes the disk `root.ext4` in `out`.
///
/// # Errors
/// If busybox does not say what it can do, or the disk cannot be made.
pub(crate) fn make(busybox: &Path, proxy: Option<&Path>, out: &Path) -> anyhow::Result<()> {
    let tree = out.join("root.tree");
    let _ = fs::remove_dir_all(&tree);
    for directory in DIRECTORIES {
        fs::create_dir_all(tree.join(directory))?;
    }
    fs::set_permissions(tree.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    fs::set_permissions(tree.join("root"), fs::Permissions::from_mode(0o700))?;
    for (name, text) in FILES {
        fs::write(tree.join(name), text)?;
    }
    program(busybox, &tree.join("bin/busybox")).context("copy busybox")?;
    let applets = Command::new(tree.join("bin/busybox")).arg("--list").output().context("ask busybox")?;
    ensure!(applets.status.success(), "busybox --list failed");
    for applet in String::from_utf8_lossy(&applets.stdout).lines().filter(|applet| *applet != "busybox") {
        ensure!(!applet.contains('/'), "an applet named {applet}");
        symlink("busybox", tree.join("bin").join(applet)).with_context(|| format!("link {applet}"))?;
    }
    if let Some(proxy) = proxy {
        program(proxy, &tree.join(PROXY)).context("copy the proxy")?;
    }
    let bytes = if proxy.is_some() { PROXY_DISK_BYTES } else { ROOT_DISK_BYTES };
    let disk = Disk { bytes, journal_mib: JOURNAL_MIB, inodes: Inodes::Nought };
    ext4::make(&out.join("root.ext4"), &tree, &disk)?;
    fs::remove_dir_all(&tree).context("remove the tree")
}

fn program(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::copy(from, to)?;
    fs::set_permissions(to, fs::Permissions::from_mode(0o755))
}
