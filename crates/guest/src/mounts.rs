//! Mounts the disks that the host gave this VM beside its root.

use std::fs;
use std::path::{Component, Path};

use anyhow::{Context as _, Result, bail, ensure};
use lightbyte_guest::protocol::Mount;
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};

use crate::mounted;

/// Disks that a VM may have: their names have one letter.
const DISKS_MAX: u16 = 26;

/// Mounts what is not mounted yet. Each is tried; the first error is given.
///
/// # Errors
/// If one cannot be mounted: the others are.
pub(crate) fn apply(mounts: &[Mount]) -> Result<()> {
    let mut first = Ok(());
    // Those above before those within them.
    let mut mounts: Vec<&Mount> = mounts.iter().filter(|mount| mount.filesystem).collect();
    mounts.sort_by_key(|mount| Path::new(&mount.path).components().count());
    for wanted in mounts {
        let done =
            mount_one(wanted).with_context(|| format!("mount disk {} at `{}`", wanted.disk, wanted.path));
        if let Err(error) = &done {
            println!("lightbyte-guest: {error:#}");
        }
        first = first.and(done);
    }
    first
}

fn mount_one(wanted: &Mount) -> Result<()> {
    let device = device(wanted.disk)?;
    check_path(&wanted.path)?;
    let path = wanted.path.trim_end_matches('/');
    if is_mounted(&device, path)? {
        return Ok(());
    }
    fs::create_dir_all(path).context("make the directory")?;
    let mut flags = MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOATIME;
    if wanted.read_only {
        flags |= MountFlags::RDONLY;
    }
    match mount(&device, path, "ext4", flags, None) {
        Err(Errno::INVAL) => bail!("{device} has no ext4 that the kernel takes"),
        other => Ok(other?),
    }
}

/// Whether the disk is seen there already. Elsewhere is no matter: a guest may do as it likes.
fn is_mounted(device: &str, path: &str) -> Result<bool> {
    let number = fs::metadata(device).with_context(|| format!("look for {device}"))?;
    let number = std::os::unix::fs::MetadataExt::rdev(&number);
    let name = format!("{}:{}", rustix::fs::major(number), rustix::fs::minor(number));
    Ok(mounted::file_systems().iter().any(|found| found.device == name && found.path == path))
}

/// `/dev/vdb` is disk 1; the root is not for mounting.
fn device(disk: u16) -> Result<String> {
    ensure!((1..DISKS_MAX).contains(&disk), "there is no disk {disk}");
    let letter = u8::try_from(disk).map(|disk| char::from(b'a' + disk))?;
    Ok(format!("/dev/vd{letter}"))
}

/// Whether something may be put there: an absolute path that goes down, and not the root itself.
pub(crate) fn check_path(path: &str) -> Result<()> {
    let mut components = Path::new(path).components();
    ensure!(components.next() == Some(Component::RootDir), "the path does not begin with `/`");
    let rest: Vec<Component<'_>> = components.collect();
    ensure!(!rest.is_empty(), "the root is taken");
    ensure!(rest.iter().all(|part| matches!(part, Component::Normal(_))), "the path goes upwards");
    ensure!(!path.contains('\0'), "the path holds a nought");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_and_paths_are_checked() {
        assert_eq!(device(1).ok().as_deref(), Some("/dev/vdb"));
        assert_eq!(device(25).ok().as_deref(), Some("/dev/vdz"));
        assert!(device(0).is_err() && device(26).is_err());
        for (path, is_good) in [
            ("/srv", true),
            ("/srv/a b/", true),
            ("/", false),
            ("", false),
            ("srv", false),
            ("/srv/../etc", false),
            ("/a\0b", false),
        ] {
            assert_eq!(check_path(path).is_ok(), is_good, "{path}");
        }
    }
}
