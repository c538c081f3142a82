//! The root disk of a whole Debian: what its packages are, with the agent as a service, and without anything that would
//! make two VMs the same machine.
//!
//! Who has a VM's console is the cluster's administrator, who could as well read its disk, and the image has no password
//! to ask for: so root is logged in there. Under emulation every unit that starts costs a tenth of a second, so what a
//! microVM has no use for is masked; `systemctl unmask` brings it back.

use std::fs::{self, File};
use std::io::{BufReader, ErrorKind};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use anyhow::Context;
use lightbyte_guest::archive::{Keep, Unpacked, unpack};

use crate::ext4::{self, Disk, Inodes};

/// Size of the disk: room for a few packages, and small enough to hash in seconds. A VM's clone may be larger, and the
/// agent grows into it.
const ROOT_DISK_BYTES: u64 = 1 << 30;

/// Journal of a disk on which packages are installed.
const JOURNAL_MIB: u32 = 16;

/// What the machine that made the tree has left in it: identities, and what was said while it was made. A `*` at the end
/// stands for any rest of a name.
const REMOVED: &[&str] = &[
    "etc/ssh/ssh_host_*",
    "etc/apt/apt.conf.d/99mmdebstrap",
    "etc/dpkg/dpkg.cfg.d/99mmdebstrap",
    "etc/systemd/system/getty.target.wants/getty@tty1.service",
    "var/log/apt",
    "var/log/*.log",
    "var/cache/apt/*",
    "var/lib/systemd/random-seed",
    "run/*",
    "tmp/*",
];

/// Files of ours.
const FILES: &[(&str, &str)] = &[
    ("etc/machine-id", ""),
    ("etc/hostname", "localhost\n"),
    ("etc/hosts", "127.0.0.1 localhost\n::1 localhost\n"),
    ("etc/resolv.conf", ""),
    ("etc/fstab", "# The root is mounted before systemd starts, other disks by lightbyte-guest.\n"),
    ("etc/default/locale", "LANG=C.UTF-8\n"),
    // Nothing below /usr is younger, so nothing is made anew at the first boot (systemd.unit(5), ConditionNeedsUpdate).
    ("etc/.updated", ""),
    ("var/.updated", ""),
    ("usr/lib/systemd/system/lightbyte-guest.service", AGENT_SERVICE),
    ("etc/systemd/system/ssh.service.d/lightbyte.conf", SSH_SERVICE),
    // Keys of other kinds take an emulated CPU many seconds to make, and no client of this decade needs them.
    // And there is no password that one could be asked for.
    (
        "etc/ssh/sshd_config.d/lightbyte.conf",
        "HostKey /etc/ssh/ssh_host_ed25519_key\nPasswordAuthentication no\n",
    ),
    ("etc/systemd/system/serial-getty@.service.d/lightbyte.conf", CONSOLE_SERVICE),
    (
        "etc/systemd/journald.conf.d/lightbyte.conf",
        "[Journal]\nStorage=persistent\nSystemMaxUse=64M\nRuntimeMaxUse=16M\n",
    ),
    // The host waits 30 seconds for the end of a VM.
    ("etc/systemd/system.conf.d/lightbyte.conf", "[Manager]\nDefaultTimeoutStopSec=15s\n"),
];

/// Where the service's agent is on a disk of ours.
pub(crate) const AGENT: &str = "/usr/sbin/lightbyte-guest";

/// Early, so that the host can reach in when the boot goes wrong; what needs the network waits for it.
pub(crate) const AGENT_SERVICE: &str = "\
[Unit]
Description=Agent of the lightbyte host
DefaultDependencies=no
After=systemd-remount-fs.service systemd-journald.socket
Before=network.target shutdown.target
Wants=network.target
Conflicts=shutdown.target

[Service]
Type=notify
ExecStart=/usr/sbin/lightbyte-guest
Restart=always
RestartSec=1
StandardOutput=journal+console
TimeoutStartSec=60
";

/// Host keys are made where they are used.
const SSH_SERVICE: &str = "\
[Service]
ExecStartPre=
ExecStartPre=/bin/sh -c 'test -s /etc/ssh/ssh_host_ed25519_key || exec ssh-keygen -q -t ed25519 -N \"\" -f /etc/ssh/ssh_host_ed25519_key'
";

/// As in Debian's own, with a login that asks nothing.
const CONSOLE_SERVICE: &str = "\
[Service]
ExecStart=
ExecStart=-/sbin/agetty --autologin root --noclear --keep-baud 115200,57600,38400,9600 - $TERM
";

/// Links of ours.
const LINKS: &[(&str, &str)] = &[
    // The agent comes with the initramfs, which leaves it there: another agent changes no root disk.
    ("usr/sbin/lightbyte-guest", "/run/lightbyte/lightbyte-guest"),
    (
        "etc/systemd/system/sysinit.target.wants/lightbyte-guest.service",
        "/usr/lib/systemd/system/lightbyte-guest.service",
    ),
    // Tells the host whether the machine wants to come back.
    ("usr/lib/systemd/system-shutdown/lightbyte-guest", "/usr/sbin/lightbyte-guest"),
];

/// What is no use in a microVM, or nobody's wish in a machine that may live for minutes.
const MASKED: &[&str] = &[
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dev-hugepages.mount",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "getty-static.service",
    "getty@tty1.service",
    "modprobe@dm_mod.service",
    "modprobe@drm.service",
    "modprobe@fuse.service",
    "modprobe@loop.service",
    "sys-fs-fuse-connections.mount",
    "sys-kernel-config.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "systemd-pstore.service",
];

/// Makes the disk `root.ext4` in `out` from a tar file of a whole system.
///
/// # Errors
/// If the file is no such system, or the disk cannot be made.
pub(crate) fn make(tar: &Path, out: &Path) -> anyhow::Result<()> {
    let tree = out.join("root.tree");
    remove(&tree)?;
    fs::create_dir_all(&tree).context("make the tree")?;
    let open = || File::open(tar).map(BufReader::new).with_context(|| format!("open {}", tar.display()));
    unpack(open()?, &tree.join("."), Keep::Modes, &mut Unpacked::default()).context("unpack the system")?;
    let inodes = inodes(tar::Archive::new(open()?)).context("read owners")?;
    for pattern in REMOVED {
        remove_all(&tree, pattern).with_context(|| format!("remove {pattern}"))?;
    }
    for (name, text) in FILES {
        write(&tree.join(name), text.as_bytes()).with_context(|| format!("write {name}"))?;
    }
    let masked = MASKED.iter().map(|unit| (format!("etc/systemd/system/{unit}"), "/dev/null"));
    for (name, target) in LINKS.iter().map(|(name, target)| ((*name).to_owned(), *target)).chain(masked) {
        link(&tree.join(&name), target).with_context(|| format!("link {name}"))?;
    }
    let disk = Disk { bytes: ROOT_DISK_BYTES, journal_mib: JOURNAL_MIB, inodes: still_there(inodes, &tree) };
    ext4::make(&out.join("root.ext4"), &tree, &disk)?;
    remove(&tree)
}

/// Whose the files in the archive are, and the time of the youngest.
pub(crate) fn inodes<R: std::io::Read>(mut archive: tar::Archive<R>) -> anyhow::Result<Inodes> {
    let (mut youngest, mut owned) = (0, Vec::new());
    for entry in archive.entries()? {
        let entry = entry?;
        let header = entry.header();
        youngest = youngest.max(u32::try_from(header.mtime()?).unwrap_or(u32::MAX));
        let (user, group) = (header.uid()?, header.gid()?);
        if (user, group) != (0, 0) {
            let path = entry.path()?;
            owned.push((format!("/{}", path.strip_prefix(".").unwrap_or(&path).display()), user, group));
        }
    }
    Ok(Inodes::Kept { youngest, owned })
}

/// Without files that were removed since.
pub(crate) fn still_there(inodes: Inodes, tree: &Path) -> Inodes {
    match inodes {
        Inodes::Kept { youngest, mut owned } => {
            owned.retain(|(path, ..)| tree.join(path.trim_start_matches('/')).symlink_metadata().is_ok());
            Inodes::Kept { youngest, owned }
        }
        other => other,
    }
}

/// A new file: a link of that name would lead out of the tree.
fn write(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    make_parents(path)?;
    remove(path)?;
    fs::write(path, content)?;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o644))?)
}

fn link(path: &Path, target: &str) -> anyhow::Result<()> {
    make_parents(path)?;
    remove(path)?;
    Ok(symlink(target, path)?)
}

fn make_parents(path: &Path) -> anyhow::Result<()> {
    Ok(path.parent().map_or(Ok(()), fs::create_dir_all)?)
}

/// Removes what is there, if anything is.
fn remove(path: &Path) -> anyhow::Result<()> {
    let result = match path.symlink_metadata() {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match result {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// `pattern` may have one `*` in its last name.
fn remove_all(tree: &Path, pattern: &str) -> anyhow::Result<()> {
    let path = tree.join(pattern);
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let Some((begin, end)) = name.split_once('*') else { return remove(&path) };
    let directory = path.parent().unwrap_or(tree);
    for entry in fs::read_dir(directory).into_iter().flatten() {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.len() >= begin.len() + end.len() && name.starts_with(begin) && name.ends_with(end) {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_fits_is_removed() {
        let tree = std::env::temp_dir().join(format!("lightbyte-full-{}", std::process::id()));
        fs::create_dir_all(tree.join("log/dir.log")).unwrap();
        for name in ["log/a.log", "log/b.txt", "log/.log"] {
            fs::write(tree.join(name), "").unwrap();
        }
        symlink("/etc/passwd", tree.join("log/l.log")).unwrap();
        remove_all(&tree, "log/*.log").unwrap();
        remove_all(&tree, "none/*").unwrap();
        remove_all(&tree, "none").unwrap();
        let left: Vec<_> =
            fs::read_dir(tree.join("log")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["b.txt"]);
        assert!(Path::new("/etc/passwd").exists());
        fs::remove_dir_all(&tree).unwrap();
    }

    #[test]
    fn owners_that_are_not_root_are_found() {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, user, group, time) in [("./etc/", 0, 0, 5), ("./etc/shadow", 0, 42, 7), ("./x", 3, 0, 6)] {
            let mut header = tar::Header::new_gnu();
            header.set_uid(user);
            header.set_gid(group);
            header.set_mtime(time);
            header.set_size(0);
            builder.append_data(&mut header, name, std::io::empty()).unwrap();
        }
        let bytes = builder.into_inner().unwrap();
        let Inodes::Kept { youngest, owned } = inodes(tar::Archive::new(bytes.as_slice())).unwrap() else {
            panic!("they are kept")
        };
        assert_eq!(youngest, 7);
        assert_eq!(owned, [("/etc/shadow".to_owned(), 0, 42), ("/x".to_owned(), 3, 0)]);
    }
}
